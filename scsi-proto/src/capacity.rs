//! READ CAPACITY data (SBC-4 5.20 and 5.21).

use super::DataError;
use super::field::{array, be16, be32, be64, bit, flag, put, u8_at};

/// READ CAPACITY(10) data: eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadCapacity10 {
    /// The last logical block, FFFF_FFFFh when it does not fit and READ CAPACITY(16) must be asked.
    pub last_lba: u32,
    /// Bytes in a logical block.
    pub block_length: u32,
}

impl ReadCapacity10 {
    /// The data of a disk whose last block is `last_lba`.
    #[must_use]
    pub fn new(last_lba: u64, block_length: u32) -> Self {
        Self { last_lba: u32::try_from(last_lba).unwrap_or(u32::MAX), block_length }
    }

    /// Whether the disk is too large for this form.
    #[must_use]
    pub const fn is_saturated(self) -> bool {
        self.last_lba == u32::MAX
    }

    /// Reads the data.
    ///
    /// # Errors
    /// [`DataError::TooShort`] below eight bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, DataError> {
        if bytes.len() < 8 {
            return Err(DataError::TooShort { what: "READ CAPACITY(10) data", need: 8, got: bytes.len() });
        }
        Ok(Self { last_lba: be32(bytes, 0), block_length: be32(bytes, 4) })
    }

    /// The data for the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        put(&mut bytes, 0, &self.last_lba.to_be_bytes());
        put(&mut bytes, 4, &self.block_length.to_be_bytes());
        bytes
    }
}

/// READ CAPACITY(16) data: 32 bytes.
///
/// ```
/// use scsi_proto::capacity::ReadCapacity16;
/// let disk = ReadCapacity16 { last_lba: (50 << 30) / 512 - 1, block_length: 512, thin: true, ..Default::default() };
/// assert_eq!(ReadCapacity16::parse(&disk.to_bytes()), Ok(disk));
/// assert_eq!(disk.bytes(), 50 << 30);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadCapacity16 {
    /// The last logical block.
    pub last_lba: u64,
    /// Bytes in a logical block.
    pub block_length: u32,
    /// The protection type, 1 to 3, if PROT_EN is set.
    pub protection: Option<u8>,
    /// P_I_EXPONENT: 2 to this power are the protection intervals of a block, 0 to 15.
    pub protection_interval_exponent: u8,
    /// 2 to this power are the logical blocks of a physical block, 0 to 15.
    pub physical_block_exponent: u8,
    /// LBPME: the logical unit is thin or resource provisioned, blocks can be unmapped.
    pub thin: bool,
    /// LBPRZ: unmapped blocks read as zeros.
    pub unmapped_reads_zero: bool,
    /// LOWEST ALIGNED LOGICAL BLOCK ADDRESS, 0 to 16383.
    pub lowest_aligned_lba: u16,
}

impl ReadCapacity16 {
    /// The bytes of the data.
    pub const LEN: usize = 32;

    /// The number of logical blocks; `None` when it is 2^64.
    #[must_use]
    pub const fn blocks(self) -> Option<u64> {
        self.last_lba.checked_add(1)
    }

    /// The capacity in bytes.
    #[must_use]
    pub const fn bytes(self) -> u128 {
        (self.last_lba as u128 + 1) * self.block_length as u128
    }

    /// Reads the data; a device of SBC-2 returns only twelve bytes.
    ///
    /// # Errors
    /// [`DataError::TooShort`] below twelve bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, DataError> {
        if bytes.len() < 12 {
            return Err(DataError::TooShort { what: "READ CAPACITY(16) data", need: 12, got: bytes.len() });
        }
        Ok(Self {
            last_lba: be64(bytes, 0),
            block_length: be32(bytes, 8),
            protection: bit(bytes, 12, 0).then(|| ((u8_at(bytes, 12) >> 1) & 0x07) + 1),
            protection_interval_exponent: u8_at(bytes, 13) >> 4,
            physical_block_exponent: u8_at(bytes, 13) & 0x0f,
            thin: bit(bytes, 14, 7),
            unmapped_reads_zero: bit(bytes, 14, 6),
            lowest_aligned_lba: be16(bytes, 14) & 0x3fff,
        })
    }

    /// The data for the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put(&mut bytes, 0, &self.last_lba.to_be_bytes());
        put(&mut bytes, 8, &self.block_length.to_be_bytes());
        bytes[12] = self.protection.map_or(0, |kind| (kind.wrapping_sub(1) & 0x07) << 1 | 1);
        bytes[13] = self.protection_interval_exponent << 4 | self.physical_block_exponent & 0x0f;
        let [high, low] = array(&(self.lowest_aligned_lba & 0x3fff).to_be_bytes(), 0);
        bytes[14] = flag(self.thin, 7) | flag(self.unmapped_reads_zero, 6) | high;
        bytes[15] = low;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn a_large_disk_saturates_the_short_form() {
        assert!(ReadCapacity10::new(u64::from(u32::MAX), 512).is_saturated());
        assert!(!ReadCapacity10::new(u64::from(u32::MAX) - 1, 512).is_saturated());
        let bytes = ReadCapacity10::new(0x1_ffff, 512).to_bytes();
        assert_eq!(bytes, [0, 1, 0xff, 0xff, 0, 0, 2, 0]);
    }

    #[test]
    fn flags_stand_where_the_standard_draws_them() {
        let disk = ReadCapacity16 {
            last_lba: 7,
            block_length: 4096,
            protection: Some(1),
            physical_block_exponent: 3,
            thin: true,
            unmapped_reads_zero: true,
            lowest_aligned_lba: 0x0102,
            ..ReadCapacity16::default()
        };
        assert_eq!(disk.to_bytes()[..16], [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0x10, 0, 1, 3, 0xc1, 2]);
        let last = ReadCapacity16 { last_lba: u64::MAX, block_length: u32::MAX, ..disk };
        assert_eq!((last.blocks(), last.bytes()), (None, (1 << 64) * u128::from(u32::MAX)));
    }

    proptest! {
        #[test]
        fn what_is_parsed_is_emitted_alike(bytes: Vec<u8>, full: [u8; 32]) {
            let _ = (ReadCapacity10::parse(&bytes), ReadCapacity16::parse(&bytes));
            let short = ReadCapacity10::parse(&full).unwrap();
            prop_assert_eq!(ReadCapacity10::parse(&short.to_bytes()), Ok(short));
            let long = ReadCapacity16::parse(&full).unwrap();
            prop_assert_eq!(ReadCapacity16::parse(&long.to_bytes()), Ok(long));
        }
    }
}
