//! Mode parameters: headers, block descriptors and pages (SPC-5 7.5, SBC-4 6.5).
//!
//! MODE SENSE returns and MODE SELECT sends a header, block descriptors and pages. [`ModeData`] is the whole of it,
//! [`ModePage`] one page. The mask of changeable values that MODE SENSE asks for with page control 01b is a page too:
//! one whose changeable fields are all ones.

use alloc::vec::Vec;

use super::DataError;
use super::field::{array, be16, be24, be32, be64, bit, flag, put, u8_at};

mod pages;

pub use pages::{
    Caching, Control, ControlExtension, InformationalExceptions, ModePage, ReadWriteErrorRecovery, page_code,
};

/// What stands before the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModeHeader {
    /// MEDIUM TYPE: 0 for a disk.
    pub medium_type: u8,
    /// WP of the device-specific parameter: the medium is write protected. Reserved in MODE SELECT.
    pub write_protected: bool,
    /// DPOFUA of the device-specific parameter: DPO and FUA are understood. Reserved in MODE SELECT.
    pub dpo_fua: bool,
    /// The block descriptor, if there is one.
    pub block: Option<BlockDescriptor>,
}

/// A block descriptor: number and length of the logical blocks (SBC-4 6.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockDescriptor {
    /// Eight bytes.
    Short {
        /// NUMBER OF LOGICAL BLOCKS; FFFF_FFFFh when there are more.
        blocks: u32,
        /// LOGICAL BLOCK LENGTH in bytes, 24 bits.
        block_length: u32,
    },
    /// Sixteen bytes (LONGLBA), in the ten-byte commands only.
    Long {
        /// NUMBER OF LOGICAL BLOCKS.
        blocks: u64,
        /// LOGICAL BLOCK LENGTH in bytes.
        block_length: u32,
    },
}

impl BlockDescriptor {
    fn emit(self, out: &mut Vec<u8>) {
        match self {
            Self::Short { blocks, block_length } => {
                let [_, a, b, c] = block_length.to_be_bytes();
                out.extend_from_slice(&blocks.to_be_bytes());
                out.extend_from_slice(&[0, a, b, c]);
            }
            Self::Long { blocks, block_length } => {
                out.extend_from_slice(&blocks.to_be_bytes());
                out.extend_from_slice(&[0; 4]);
                out.extend_from_slice(&block_length.to_be_bytes());
            }
        }
    }

    const fn len(self) -> u8 {
        match self {
            Self::Short { .. } => 8,
            Self::Long { .. } => 16,
        }
    }
}

/// Mode parameters as a whole.
///
/// ```
/// use scsi_proto::mode::{Caching, ModeData, ModeHeader, ModePage};
/// let data = ModeData {
///     header: ModeHeader { dpo_fua: true, ..Default::default() },
///     pages: vec![ModePage::Caching(Caching { write_cache: true, ..Default::default() })],
/// };
/// let bytes = data.to_bytes(true);
/// assert_eq!(ModeData::parse(&bytes, true), Ok(data));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModeData {
    /// What stands before the pages.
    pub header: ModeHeader,
    /// The pages in their order.
    pub pages: Vec<ModePage>,
}

impl ModeData {
    /// The data of MODE SENSE(10), if `ten`, or (6), with its MODE DATA LENGTH; the caller cuts it to the allocation
    /// length.
    ///
    /// The six-byte form has no room for a long block descriptor, which becomes a short one there.
    #[must_use]
    pub fn to_bytes(&self, ten: bool) -> Vec<u8> {
        let mut data = self.head(ten);
        for page in &self.pages {
            page.emit(&mut data);
        }
        if ten {
            let length = u16::try_from(data.len() - 2).unwrap_or(u16::MAX);
            put(&mut data, 0, &length.to_be_bytes());
        } else {
            let length = u8::try_from(data.len() - 1).unwrap_or(u8::MAX);
            put(&mut data, 0, &[length]);
        }
        data
    }

    /// The parameter list of MODE SELECT: as [`ModeData::to_bytes`], with what is reserved there set to zero: MODE DATA
    /// LENGTH, WP, DPOFUA and the PS bits.
    #[must_use]
    pub fn to_select_list(&self, ten: bool) -> Vec<u8> {
        let header = ModeHeader { write_protected: false, dpo_fua: false, ..self.header };
        let mut list = Self { header, pages: Vec::new() }.head(ten);
        for page in &self.pages {
            let at = list.len();
            page.emit(&mut list);
            if let Some(first) = list.get_mut(at) {
                *first &= 0x7f;
            }
        }
        list
    }

    fn head(&self, ten: bool) -> Vec<u8> {
        let ModeHeader { medium_type, write_protected, dpo_fua, block } = self.header;
        let specific = flag(write_protected, 7) | flag(dpo_fua, 4);
        let block = match block {
            Some(BlockDescriptor::Long { blocks, block_length }) if !ten => {
                Some(BlockDescriptor::Short { blocks: u32::try_from(blocks).unwrap_or(u32::MAX), block_length })
            }
            other => other,
        };
        let length = block.map_or(0, BlockDescriptor::len);
        let mut data = Vec::with_capacity(64);
        if ten {
            let long = matches!(block, Some(BlockDescriptor::Long { .. }));
            data.extend_from_slice(&[0, 0, medium_type, specific, u8::from(long), 0, 0, length]);
        } else {
            data.extend_from_slice(&[0, medium_type, specific, length]);
        }
        if let Some(block) = block {
            block.emit(&mut data);
        }
        data
    }

    /// Reads mode parameters with the header of the ten-byte commands, if `ten`, or the six-byte ones.
    ///
    /// MODE DATA LENGTH is not looked at, as it is reserved in MODE SELECT and counts what an allocation length cut off
    /// in MODE SENSE. Of several block descriptors the first is kept.
    ///
    /// # Errors
    /// [`DataError::TooShort`] when header, block descriptors or a page are cut off: PARAMETER LIST LENGTH ERROR for a
    /// device server that reads a list; an initiator asks again with more room, or uses [`ModeData::parse_cut`].
    pub fn parse(data: &[u8], ten: bool) -> Result<Self, DataError> {
        let (parsed, error) = Self::parse_as_far(data, ten)?;
        error.map_or(Ok(parsed), Err)
    }

    /// As [`ModeData::parse`], but keeps the whole pages when the last one is cut off.
    ///
    /// # Errors
    /// [`DataError::TooShort`] when the header or the block descriptors are cut off.
    pub fn parse_cut(data: &[u8], ten: bool) -> Result<Self, DataError> {
        Self::parse_as_far(data, ten).map(|(parsed, _)| parsed)
    }

    fn parse_as_far(data: &[u8], ten: bool) -> Result<(Self, Option<DataError>), DataError> {
        let what = "mode parameters";
        let head = if ten { 8 } else { 4 };
        let short = |need| DataError::TooShort { what, need, got: data.len() };
        let rest = data.get(head..).ok_or_else(|| short(head))?;
        let (medium_type, specific, long, length) = if ten {
            (u8_at(data, 2), 3, bit(data, 4, 0), usize::from(be16(data, 6)))
        } else {
            (u8_at(data, 1), 2, false, usize::from(u8_at(data, 3)))
        };
        let (descriptors, mut rest) = rest.split_at_checked(length).ok_or_else(|| short(head + length))?;
        let block = match (long, descriptors.len()) {
            (true, 16..) => Some(BlockDescriptor::Long {
                blocks: be64(descriptors, 0),
                block_length: u32::from_be_bytes(array(descriptors, 12)),
            }),
            (false, 8..) => {
                Some(BlockDescriptor::Short { blocks: be32(descriptors, 0), block_length: be24(descriptors, 5) })
            }
            _ => None,
        };
        let header =
            ModeHeader { medium_type, write_protected: bit(data, specific, 7), dpo_fua: bit(data, specific, 4), block };
        let mut pages = Vec::new();
        let mut error = None;
        while !rest.is_empty() {
            match ModePage::parse(rest) {
                Ok((page, next)) => {
                    pages.push(page);
                    rest = next;
                }
                Err(cut) => {
                    error = Some(cut);
                    break;
                }
            }
        }
        Ok((Self { header, pages }, error))
    }

    /// The first page of this code and subpage.
    #[must_use]
    pub fn page(&self, code: u8, subpage: u8) -> Option<&ModePage> {
        self.pages.iter().find(|page| page.code() == code && page.subpage() == subpage)
    }
}

#[cfg(test)]
#[path = "mode_tests.rs"]
mod tests;
