//! Which blocks a command touches: what keeps a later command waiting behind an earlier one whose fate is open.

use scsi_proto::{BlockIo, CdbBuf, Lun, opcode};

use crate::command::Repeat;

/// The blocks that a command reads or changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// None.
    Nothing,
    /// `blocks` from `lba` on.
    Blocks { lba: u64, blocks: u64 },
    /// Any block of the logical unit.
    Unit,
}

impl Extent {
    pub(super) fn of(cdb: &CdbBuf) -> Self {
        let command = cdb.as_cdb();
        match (command.opcode(), BlockIo::parse(command)) {
            // SYNCHRONIZE CACHE and PRE-FETCH move no data of their own, whatever blocks they name.
            (
                opcode::SYNCHRONIZE_CACHE_10
                | opcode::SYNCHRONIZE_CACHE_16
                | opcode::PRE_FETCH_10
                | opcode::PRE_FETCH_16,
                _,
            ) => Self::Nothing,
            // WRITE SAME of no blocks goes to the end of the medium.
            (opcode::WRITE_SAME_10 | opcode::WRITE_SAME_16, Some(io)) if io.blocks == 0 => Self::Unit,
            (_, Some(io)) => Self::Blocks { lba: io.lba, blocks: io.blocks.into() },
            (opcode::UNMAP, None) => Self::Unit,
            // What may be done twice and is no command of blocks asks or sets something; anything else may do anything.
            (_, None) if Repeat::ByOpcode.allows(cdb) => Self::Nothing,
            (_, None) => Self::Unit,
        }
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Nothing, _) | (_, Self::Nothing) => false,
            (Self::Unit, _) | (_, Self::Unit) => true,
            (Self::Blocks { lba, blocks }, Self::Blocks { lba: other, blocks: others }) => {
                lba < other.saturating_add(others) && other < lba.saturating_add(blocks)
            }
        }
    }
}

/// Whether a command changes blocks.
pub(super) fn changes_blocks(cdb: &CdbBuf) -> bool {
    let only_reads = matches!(
        cdb.as_cdb().opcode(),
        opcode::READ_6
            | opcode::READ_10
            | opcode::READ_12
            | opcode::READ_16
            | opcode::VERIFY_10
            | opcode::VERIFY_12
            | opcode::VERIFY_16
    );
    !only_reads && Extent::of(cdb) != Extent::Nothing
}

/// What a command touches, and when it was handed over: the smaller the earlier.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) lun: Lun,
    pub(super) extent: Extent,
    pub(super) changes: bool,
    pub(super) issue: u64,
}

impl Claim {
    /// Whether this command, whose fate is open, has the other wait: it is older, and the later of the two to take
    /// effect would show.
    pub(super) fn holds_up(&self, other: &Self) -> bool {
        self.changes && self.issue < other.issue && self.lun == other.lun && self.extent.overlaps(other.extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_meet_where_their_blocks_do() {
        let write = |lba, blocks| Extent::of(&BlockIo::new(lba, blocks).write());
        assert!(write(0, 4).overlaps(write(3, 1)));
        assert!(!write(0, 4).overlaps(write(4, 4)));
        assert!(write(u64::MAX - 1, 4).overlaps(write(u64::MAX - 1, 1)));
        let unmap = Extent::of(&CdbBuf::new(&[opcode::UNMAP, 0, 0, 0, 0, 0, 0, 0, 24, 0]).unwrap());
        assert!(unmap.overlaps(write(9, 1)));
        let inquiry = CdbBuf::new(&[opcode::INQUIRY, 0, 0, 0, 96, 0]).unwrap();
        assert!(!Extent::of(&inquiry).overlaps(unmap) && !changes_blocks(&inquiry));
        let unknown = CdbBuf::new(&[0xc1; 16]).unwrap();
        assert!(Extent::of(&unknown).overlaps(write(9, 1)) && changes_blocks(&unknown));
        assert!(changes_blocks(&BlockIo::new(0, 1).write()) && !changes_blocks(&BlockIo::new(0, 1).read()));
        let flush = BlockIo::new(0, 0).synchronize_cache();
        assert!(!Extent::of(&flush).overlaps(unmap) && !changes_blocks(&flush));
    }
}
