//! Parameter data of logical block provisioning: the list of UNMAP and the data of GET LBA STATUS.

use alloc::vec::Vec;

use super::DataError;
use super::field::{be16, be32, be64, put, u8_at};

/// A run of logical blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The first logical block.
    pub lba: u64,
    /// The number of logical blocks; zero is no error and means none.
    pub blocks: u32,
}

/// The UNMAP parameter list as it came (SBC-4 5.35.2); an iterator over its extents that allocates nothing.
///
/// ```
/// use scsi_proto::provisioning::{unmap_list, Extent, UnmapList};
/// let extents = [Extent { lba: 8, blocks: 16 }, Extent { lba: 1 << 33, blocks: 1 }];
/// let list = unmap_list(&extents);
/// assert!(UnmapList::parse(&list).unwrap().eq(extents));
/// ```
#[derive(Debug, Clone)]
pub struct UnmapList<'a> {
    descriptors: &'a [u8],
}

impl<'a> UnmapList<'a> {
    /// The bytes before the first descriptor.
    pub const HEADER: usize = 8;
    /// The bytes of a descriptor.
    pub const DESCRIPTOR: usize = 16;

    /// Reads the list's header. Descriptors that the data cut off are left out, as is an incomplete last one
    /// (SBC-4 5.35.2).
    ///
    /// # Errors
    /// [`DataError::TooShort`] below eight bytes; the command then ends with PARAMETER LIST LENGTH ERROR. A PARAMETER
    /// LIST LENGTH of zero is no error and unmaps nothing: the caller does not get here.
    pub fn parse(list: &'a [u8]) -> Result<Self, DataError> {
        let Some(rest) = list.get(Self::HEADER..) else {
            return Err(DataError::TooShort { what: "an UNMAP parameter list", need: Self::HEADER, got: list.len() });
        };
        // UNMAP DATA LENGTH counts what follows it, so the descriptors have six bytes less.
        let by_data = usize::from(be16(list, 0)).saturating_sub(6);
        let length = usize::from(be16(list, 2)).min(by_data).min(rest.len());
        let whole = length - length % Self::DESCRIPTOR;
        Ok(Self { descriptors: rest.get(..whole).unwrap_or_default() })
    }
}

impl Iterator for UnmapList<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        let (descriptor, rest) = self.descriptors.split_at_checked(Self::DESCRIPTOR)?;
        self.descriptors = rest;
        Some(Extent { lba: be64(descriptor, 0), blocks: be32(descriptor, 8) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = self.descriptors.len() / Self::DESCRIPTOR;
        (count, Some(count))
    }
}

impl ExactSizeIterator for UnmapList<'_> {}

/// The most extents of one UNMAP list: its length fields have 16 bits.
pub const MAX_UNMAP_EXTENTS: usize = 4095;

/// Builds an UNMAP parameter list of the first [`MAX_UNMAP_EXTENTS`] of `extents`.
#[must_use]
pub fn unmap_list(extents: &[Extent]) -> Vec<u8> {
    let extents = extents.get(..MAX_UNMAP_EXTENTS).unwrap_or(extents);
    let length = (extents.len() * UnmapList::DESCRIPTOR) as u16;
    let mut list = Vec::with_capacity(UnmapList::HEADER + usize::from(length));
    list.extend_from_slice(&(length + 6).to_be_bytes());
    list.extend_from_slice(&length.to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    for extent in extents {
        list.extend_from_slice(&extent.lba.to_be_bytes());
        list.extend_from_slice(&extent.blocks.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
    }
    list
}

/// PROVISIONING STATUS of blocks (SBC-4 5.9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provisioning {
    /// Backed by medium, or not known.
    Mapped,
    /// Not backed.
    Deallocated,
    /// Not written, with medium set aside.
    Anchored,
    /// A reserved value.
    Other(u8),
}

impl Provisioning {
    const fn from_bits(bits: u8) -> Self {
        match bits & 0x0f {
            0 => Self::Mapped,
            1 => Self::Deallocated,
            2 => Self::Anchored,
            other => Self::Other(other),
        }
    }

    const fn to_bits(self) -> u8 {
        match self {
            Self::Mapped => 0,
            Self::Deallocated => 1,
            Self::Anchored => 2,
            Self::Other(other) => other & 0x0f,
        }
    }
}

/// One run of blocks of the same status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LbaStatus {
    /// The blocks.
    pub extent: Extent,
    /// Their status.
    pub provisioning: Provisioning,
}

/// Builds GET LBA STATUS data (SBC-4 5.9.2); the caller cuts it to the allocation length.
#[must_use]
pub fn lba_status_data(statuses: &[LbaStatus]) -> Vec<u8> {
    // PARAMETER DATA LENGTH counts what follows it.
    let length = u32::try_from(4 + 16 * statuses.len()).unwrap_or(u32::MAX);
    let mut data = Vec::with_capacity(8 + 16 * statuses.len());
    data.extend_from_slice(&length.to_be_bytes());
    data.extend_from_slice(&[0; 4]);
    for LbaStatus { extent, provisioning } in statuses {
        let mut descriptor = [0; 16];
        put(&mut descriptor, 0, &extent.lba.to_be_bytes());
        put(&mut descriptor, 8, &extent.blocks.to_be_bytes());
        descriptor[12] = provisioning.to_bits();
        data.extend_from_slice(&descriptor);
    }
    data
}

/// Reads GET LBA STATUS data, as far as it came.
///
/// # Errors
/// [`DataError::TooShort`] below eight bytes.
pub fn parse_lba_status_data(data: &[u8]) -> Result<Vec<LbaStatus>, DataError> {
    let Some(rest) = data.get(8..) else {
        return Err(DataError::TooShort { what: "GET LBA STATUS data", need: 8, got: data.len() });
    };
    let length = (be32(data, 0) as usize).saturating_sub(4).min(rest.len());
    let descriptors = rest.get(..length).unwrap_or_default();
    Ok(descriptors
        .chunks_exact(16)
        .map(|descriptor| LbaStatus {
            extent: Extent { lba: be64(descriptor, 0), blocks: be32(descriptor, 8) },
            provisioning: Provisioning::from_bits(u8_at(descriptor, 12)),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn an_unmap_list_stands_as_drawn() {
        let list = unmap_list(&[Extent { lba: 0x0102, blocks: 3 }]);
        assert_eq!(list, [0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3, 0, 0, 0, 0]);
        assert_eq!(unmap_list(&vec![Extent { lba: 0, blocks: 0 }; 5000]).len(), 8 + 16 * 4095);
    }

    #[test]
    fn cut_and_odd_lists_hold_their_whole_descriptors() {
        let list = unmap_list(&[Extent { lba: 1, blocks: 1 }, Extent { lba: 2, blocks: 2 }]);
        assert_eq!(UnmapList::parse(&list).unwrap().len(), 2);
        assert_eq!(UnmapList::parse(&list[..39]).unwrap().len(), 1);
        assert_eq!(UnmapList::parse(&list[..8]).unwrap().len(), 0);
        assert!(UnmapList::parse(&list[..7]).is_err());
        let mut odd = list.clone();
        odd[3] = 31;
        assert_eq!(UnmapList::parse(&odd).unwrap().len(), 1);
        odd[1] = 0; // UNMAP DATA LENGTH rules too
        assert_eq!(UnmapList::parse(&odd).unwrap().len(), 0);
    }

    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        proptest::collection::vec(any::<(u64, u32)>().prop_map(|(lba, blocks)| Extent { lba, blocks }), 0..20)
    }

    proptest! {
        #[test]
        fn lists_round_trip(extents in extents(), bits in 0u8..16) {
            let list = unmap_list(&extents);
            prop_assert_eq!(UnmapList::parse(&list).unwrap().collect::<Vec<_>>(), extents.clone());
            let provisioning = Provisioning::from_bits(bits);
            let statuses: Vec<_> = extents.into_iter().map(|extent| LbaStatus { extent, provisioning }).collect();
            prop_assert_eq!(parse_lba_status_data(&lba_status_data(&statuses)), Ok(statuses));
        }

        #[test]
        fn any_bytes_parse_or_not(bytes: Vec<u8>) {
            let _ = parse_lba_status_data(&bytes);
            if let Ok(list) = UnmapList::parse(&bytes) {
                prop_assert!(list.count() <= bytes.len() / 16);
            }
        }
    }
}
