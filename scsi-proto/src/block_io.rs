//! The shape that READ, WRITE and their relatives share: where, how many blocks, and how.

use super::cdb::{Cdb, CdbBuf};
use super::field::{be16, be24, be32, be64, put, u8_at};
use super::{opcode, service_action};

/// LBA, number of blocks and flags of a medium access command (SBC-4 5).
///
/// Parsed from READ, WRITE, VERIFY, WRITE AND VERIFY, WRITE SAME, ORWRITE, PRE-FETCH, SYNCHRONIZE CACHE and
/// COMPARE AND WRITE in all their lengths, and built into any of them:
///
/// ```
/// use scsi_proto::{opcode, BlockIo};
/// let io = BlockIo::new(0x1_0000_0000, 16).with_fua();
/// let cdb = io.to_cdb(opcode::WRITE_16).unwrap();
/// assert_eq!(BlockIo::parse(cdb.as_cdb()), Some(io));
/// assert_eq!(io.to_cdb(opcode::WRITE_10), None); // the LBA does not fit 32 bits
/// assert_eq!(io.write(), cdb);
/// ```
///
/// What a count of zero means is the command's matter: READ(10) of zero blocks reads nothing, WRITE SAME and
/// SYNCHRONIZE CACHE of zero blocks go to the end of the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BlockIo {
    /// The first logical block.
    pub lba: u64,
    /// The number of logical blocks; for COMPARE AND WRITE half of what the data-out buffer holds.
    pub blocks: u32,
    /// The flags of byte 1 (byte 10 of 32-byte CDBs), as they stand.
    pub flags: u8,
    /// The GROUP NUMBER, 0 to 63.
    pub group: u8,
}

const DPO: u8 = 0x10;
const FUA: u8 = 0x08;

impl BlockIo {
    /// `blocks` blocks from `lba`, no flags.
    pub const fn new(lba: u64, blocks: u32) -> Self {
        Self { lba, blocks, flags: 0, group: 0 }
    }

    /// Sets force unit access: the data must have reached the medium, or come from it.
    #[must_use]
    pub const fn with_fua(mut self) -> Self {
        self.flags |= FUA;
        self
    }

    /// Sets disable page out: the data is not worth its place in a cache.
    #[must_use]
    pub const fn with_dpo(mut self) -> Self {
        self.flags |= DPO;
        self
    }

    /// Replaces all flags; see the accessors for their meaning.
    #[must_use]
    pub const fn with_flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// FUA of READ, WRITE, ORWRITE and COMPARE AND WRITE.
    pub const fn fua(self) -> bool {
        self.flags & FUA != 0
    }

    /// DPO of all but WRITE SAME, PRE-FETCH and SYNCHRONIZE CACHE.
    pub const fn dpo(self) -> bool {
        self.flags & DPO != 0
    }

    /// RDPROTECT, WRPROTECT, VRPROTECT or ORPROTECT: how protection information is handled, 0 for none.
    pub const fn protect(self) -> u8 {
        self.flags >> 5
    }

    /// BYTCHK of VERIFY (0 medium only, 1 compare all blocks, 3 compare with one block) and WRITE AND VERIFY.
    pub const fn bytchk(self) -> u8 {
        (self.flags >> 1) & 0x03
    }

    /// IMMED of PRE-FETCH and SYNCHRONIZE CACHE: status may come before the work is done.
    pub const fn immed(self) -> bool {
        self.flags & 0x02 != 0
    }

    /// UNMAP of WRITE SAME: blocks may be deallocated instead of written.
    pub const fn unmap(self) -> bool {
        self.flags & 0x08 != 0
    }

    /// ANCHOR of WRITE SAME: blocks are to be anchored instead of deallocated.
    pub const fn anchor(self) -> bool {
        self.flags & 0x10 != 0
    }

    /// NDOB of WRITE SAME(16) and (32): there is no data-out buffer, zeros are written.
    pub const fn ndob(self) -> bool {
        self.flags & 0x01 != 0
    }

    /// One past the last block, or `None` when that is past 2^64.
    pub const fn end(self) -> Option<u64> {
        self.lba.checked_add(self.blocks as u64)
    }

    /// Reads the fields of a command of the family; `None` for any other command.
    ///
    /// The protection information tags of 32-byte CDBs are left out.
    #[inline]
    pub fn parse(cdb: Cdb<'_>) -> Option<Self> {
        let bytes = cdb.as_bytes();
        Some(match Layout::of(cdb.opcode())? {
            Layout::Six => Self {
                lba: u64::from(be24(bytes, 1) & 0x1f_ffff),
                // TRANSFER LENGTH 0 means 256 blocks (SBC-4 5.14 READ(6)).
                blocks: match u8_at(bytes, 4) {
                    0 => 256,
                    count => count.into(),
                },
                flags: 0,
                group: 0,
            },
            Layout::Ten => Self {
                lba: be32(bytes, 2).into(),
                blocks: be16(bytes, 7).into(),
                flags: u8_at(bytes, 1),
                group: u8_at(bytes, 6) & 0x3f,
            },
            Layout::Twelve => Self {
                lba: be32(bytes, 2).into(),
                blocks: be32(bytes, 6),
                flags: u8_at(bytes, 1),
                group: u8_at(bytes, 10) & 0x3f,
            },
            Layout::Sixteen => Self {
                lba: be64(bytes, 2),
                blocks: be32(bytes, 10),
                flags: u8_at(bytes, 1),
                group: u8_at(bytes, 14) & 0x3f,
            },
            Layout::CompareAndWrite => Self {
                lba: be64(bytes, 2),
                blocks: u8_at(bytes, 13).into(),
                flags: u8_at(bytes, 1),
                group: u8_at(bytes, 14) & 0x3f,
            },
            Layout::Variable => {
                // A 32-byte CDB has an ADDITIONAL CDB LENGTH of 18h; another length makes it another command.
                if bytes.len() != 32 || !is_block_service_action(be16(bytes, 8)) {
                    return None;
                }
                Self {
                    lba: be64(bytes, 12),
                    blocks: be32(bytes, 28),
                    flags: u8_at(bytes, 10),
                    group: u8_at(bytes, 6) & 0x3f,
                }
            }
        })
    }

    /// Builds the command `opcode`; `None` if it is not of the family or cannot hold the LBA, the count or the flags.
    ///
    /// For the 32-byte commands see [`BlockIo::to_cdb_32`].
    pub fn to_cdb(self, opcode: u8) -> Option<CdbBuf> {
        let lba_32 = u32::try_from(self.lba);
        let group = self.group & 0x3f;
        Some(match Layout::of(opcode)? {
            Layout::Six => {
                if self.lba > 0x1f_ffff || self.flags != 0 || group != 0 {
                    return None;
                }
                let count = match self.blocks {
                    256 => 0,
                    1..=255 => self.blocks as u8,
                    _ => return None,
                };
                let [_, high, middle, low] = lba_32.ok()?.to_be_bytes();
                CdbBuf::of([opcode, high, middle, low, count, 0])
            }
            Layout::Ten => self.ten(opcode)?,
            Layout::Twelve => {
                let mut cdb = [0; 12];
                cdb[0] = opcode;
                cdb[1] = self.flags;
                put(&mut cdb, 2, &lba_32.ok()?.to_be_bytes());
                put(&mut cdb, 6, &self.blocks.to_be_bytes());
                cdb[10] = group;
                CdbBuf::of(cdb)
            }
            Layout::Sixteen => self.sixteen(opcode),
            Layout::CompareAndWrite => {
                let mut cdb = [0; 16];
                cdb[0] = opcode;
                cdb[1] = self.flags;
                put(&mut cdb, 2, &self.lba.to_be_bytes());
                cdb[13] = u8::try_from(self.blocks).ok()?;
                cdb[14] = group;
                CdbBuf::of(cdb)
            }
            Layout::Variable => return None,
        })
    }

    /// Opcodes of ten bytes.
    #[inline]
    fn ten(self, opcode: u8) -> Option<CdbBuf> {
        let (lba, blocks) = (u32::try_from(self.lba).ok()?, u16::try_from(self.blocks).ok()?);
        let mut cdb = [0; 10];
        cdb[0] = opcode;
        cdb[1] = self.flags;
        put(&mut cdb, 2, &lba.to_be_bytes());
        cdb[6] = self.group & 0x3f;
        put(&mut cdb, 7, &blocks.to_be_bytes());
        Some(CdbBuf::of(cdb))
    }

    /// Opcodes of sixteen bytes, which hold every LBA and every count.
    fn sixteen(self, opcode: u8) -> CdbBuf {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        cdb[1] = self.flags;
        put(&mut cdb, 2, &self.lba.to_be_bytes());
        put(&mut cdb, 10, &self.blocks.to_be_bytes());
        cdb[14] = self.group & 0x3f;
        CdbBuf::of(cdb)
    }

    /// Builds a 32-byte command such as [`service_action::READ_32`]; `None` for a service action not of the family.
    ///
    /// The protection information tags are zero, as they are ignored when [`BlockIo::protect`] is 0.
    pub fn to_cdb_32(self, action: u16) -> Option<CdbBuf> {
        if !is_block_service_action(action) {
            return None;
        }
        let mut cdb = [0; 32];
        cdb[0] = opcode::VARIABLE_LENGTH;
        cdb[6] = self.group & 0x3f;
        cdb[7] = 0x18;
        put(&mut cdb, 8, &action.to_be_bytes());
        cdb[10] = self.flags;
        put(&mut cdb, 12, &self.lba.to_be_bytes());
        put(&mut cdb, 28, &self.blocks.to_be_bytes());
        Some(CdbBuf::of(cdb))
    }

    /// READ(10) where it fits, else READ(16).
    pub fn read(self) -> CdbBuf {
        self.shortest(opcode::READ_10, opcode::READ_16)
    }

    /// WRITE(10) where it fits, else WRITE(16).
    pub fn write(self) -> CdbBuf {
        self.shortest(opcode::WRITE_10, opcode::WRITE_16)
    }

    /// VERIFY(10) where it fits, else VERIFY(16).
    pub fn verify(self) -> CdbBuf {
        self.shortest(opcode::VERIFY_10, opcode::VERIFY_16)
    }

    /// SYNCHRONIZE CACHE(10) where it fits, else SYNCHRONIZE CACHE(16).
    pub fn synchronize_cache(self) -> CdbBuf {
        self.shortest(opcode::SYNCHRONIZE_CACHE_10, opcode::SYNCHRONIZE_CACHE_16)
    }

    fn shortest(self, ten: u8, sixteen: u8) -> CdbBuf {
        self.ten(ten).unwrap_or_else(|| self.sixteen(sixteen))
    }
}

/// Where the fields stand.
enum Layout {
    Six,
    Ten,
    Twelve,
    Sixteen,
    CompareAndWrite,
    Variable,
}

impl Layout {
    #[inline]
    const fn of(code: u8) -> Option<Self> {
        Some(match code {
            opcode::READ_6 | opcode::WRITE_6 => Self::Six,
            opcode::READ_10
            | opcode::WRITE_10
            | opcode::WRITE_AND_VERIFY_10
            | opcode::VERIFY_10
            | opcode::PRE_FETCH_10
            | opcode::SYNCHRONIZE_CACHE_10
            | opcode::WRITE_SAME_10 => Self::Ten,
            opcode::READ_12 | opcode::WRITE_12 | opcode::WRITE_AND_VERIFY_12 | opcode::VERIFY_12 => Self::Twelve,
            opcode::READ_16
            | opcode::WRITE_16
            | opcode::ORWRITE_16
            | opcode::WRITE_AND_VERIFY_16
            | opcode::VERIFY_16
            | opcode::PRE_FETCH_16
            | opcode::SYNCHRONIZE_CACHE_16
            | opcode::WRITE_SAME_16 => Self::Sixteen,
            opcode::COMPARE_AND_WRITE => Self::CompareAndWrite,
            opcode::VARIABLE_LENGTH => Self::Variable,
            _ => return None,
        })
    }
}

const fn is_block_service_action(action: u16) -> bool {
    matches!(
        action,
        service_action::READ_32
            | service_action::VERIFY_32
            | service_action::WRITE_32
            | service_action::WRITE_AND_VERIFY_32
            | service_action::WRITE_SAME_32
            | service_action::ORWRITE_32
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn read_6_of_zero_means_256() {
        let cdb = [opcode::READ_6, 0xe1, 2, 3, 0, 0];
        let io = BlockIo::parse(Cdb::new(&cdb).unwrap()).unwrap();
        assert_eq!(io, BlockIo::new(0x1_0203, 256));
        assert_eq!(io.to_cdb(opcode::READ_6).unwrap().as_bytes(), [8, 1, 2, 3, 0, 0]);
    }

    #[test]
    fn compare_and_write_has_one_byte_of_blocks() {
        let mut cdb = [0xff; 16];
        cdb[0] = opcode::COMPARE_AND_WRITE;
        cdb[13] = 1;
        assert_eq!(BlockIo::parse(Cdb::new(&cdb).unwrap()).unwrap().blocks, 1);
        assert_eq!(BlockIo::new(0, 256).to_cdb(opcode::COMPARE_AND_WRITE), None);
    }

    #[test]
    fn the_shortest_that_fits_is_chosen() {
        let at = |lba, blocks| BlockIo::new(lba, blocks).read().as_cdb().opcode();
        assert_eq!(at(u32::MAX.into(), 0xffff), opcode::READ_10);
        assert_eq!(at(u64::from(u32::MAX) + 1, 1), opcode::READ_16);
        assert_eq!(at(0, 0x1_0000), opcode::READ_16);
    }

    #[test]
    fn flags_stand_where_the_standard_draws_them() {
        let io = BlockIo::new(0, 1).with_fua().with_dpo();
        assert_eq!(io.write().as_bytes()[1], 0x18);
        assert!(io.fua() && io.dpo());
        let io = BlockIo::new(0, 1).with_flags(0b0010_0111);
        assert_eq!((io.protect(), io.bytchk(), io.immed(), io.ndob()), (1, 3, true, true));
    }

    fn family() -> impl Strategy<Value = u8> {
        proptest::sample::select((0..=255).filter(|code| Layout::of(*code).is_some()).collect::<Vec<u8>>())
    }

    proptest! {
        #[test]
        fn built_commands_parse_back(lba: u64, shift in 0u32..64, blocks: u32, narrow in 0u32..32, flags: u8,
            group in 0u8..64, code in family(), action in 0u16..0x20) {
            let io = BlockIo { lba: lba >> shift, blocks: blocks >> narrow, flags, group };
            for io in [io, BlockIo { flags: 0, group: 0, ..io }] {
                if let Some(cdb) = io.to_cdb(code) {
                    prop_assert_eq!(cdb.as_cdb().opcode(), code);
                    prop_assert_eq!(BlockIo::parse(cdb.as_cdb()), Some(io));
                }
                if let Some(cdb) = io.to_cdb_32(action) {
                    prop_assert_eq!(BlockIo::parse(cdb.as_cdb()), Some(io));
                }
                for cdb in [io.read(), io.write(), io.verify(), io.synchronize_cache()] {
                    prop_assert_eq!(BlockIo::parse(cdb.as_cdb()), Some(io));
                }
            }
        }

        #[test]
        fn any_bytes_parse_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..40), code in family()) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = code; }
            if let Ok(cdb) = Cdb::new(&bytes) {
                let _ = BlockIo::parse(cdb);
            }
        }
    }
}
