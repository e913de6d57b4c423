//! Which blocks a command touches, and what it does to them: what keeps a later command waiting behind an earlier one
//! whose fate is open, and what is known of what a disk holds. Looked at once, when the command is handed over.

use scsi_proto::{BlockIo, CdbBuf, Lun, opcode, service_action};

use crate::command::{Command, Repeat};

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

/// What a command does to blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It changes none.
    Nothing,
    /// Its good status means that all the unit's blocks are on the medium: SYNCHRONIZE CACHE of the whole.
    Flush,
    /// It changes them, and they may be lost until they are flushed.
    Change,
    /// It changes them, and they are on the medium with its status: a write with FUA.
    DurableChange,
}

/// What a command does to which blocks, by its CDB.
fn read_cdb(cdb: &CdbBuf) -> (Extent, Effect) {
    let command = cdb.as_cdb();
    let Some(io) = BlockIo::parse(command) else {
        return match command.opcode() {
            opcode::UNMAP => (Extent::Unit, Effect::Change),
            // What may be done twice and is no command of blocks asks or sets something; anything else may do anything.
            _ if Repeat::ByOpcode.allows(cdb) => (Extent::Nothing, Effect::Nothing),
            _ => (Extent::Unit, Effect::Change),
        };
    };
    let blocks = Extent::Blocks { lba: io.lba, blocks: io.blocks.into() };
    // WRITE SAME of no blocks goes to the end of the medium. The bit of FUA is UNMAP there.
    let same = (if io.blocks == 0 { Extent::Unit } else { blocks }, Effect::Change);
    match command.opcode() {
        opcode::READ_6
        | opcode::READ_10
        | opcode::READ_12
        | opcode::READ_16
        | opcode::VERIFY_10
        | opcode::VERIFY_12
        | opcode::VERIFY_16 => (blocks, Effect::Nothing),
        // These two move no data of their own, whatever blocks they name.
        opcode::SYNCHRONIZE_CACHE_10 | opcode::SYNCHRONIZE_CACHE_16 => {
            let is_whole = io.lba == 0 && io.blocks == 0 && !io.immed();
            (Extent::Nothing, if is_whole { Effect::Flush } else { Effect::Nothing })
        }
        opcode::PRE_FETCH_10 | opcode::PRE_FETCH_16 => (Extent::Nothing, Effect::Nothing),
        opcode::WRITE_6 => (blocks, Effect::Change),
        opcode::WRITE_SAME_10 | opcode::WRITE_SAME_16 => same,
        opcode::VARIABLE_LENGTH if command.service_action() == Some(service_action::WRITE_SAME_32) => same,
        _ => (blocks, if io.fua() { Effect::DurableChange } else { Effect::Change }),
    }
}

/// What a command touches, and when it was handed over: the smaller the earlier.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) lun: Lun,
    pub(super) extent: Extent,
    pub(super) effect: Effect,
    pub(super) issue: u64,
}

impl Claim {
    #[inline]
    pub(super) fn of(command: &Command, issue: u64) -> Self {
        let (mut extent, effect) = read_cdb(&command.cdb);
        if let Some(blocks) = &command.blocks {
            extent = Extent::Blocks { lba: blocks.start, blocks: blocks.end.saturating_sub(blocks.start) };
        }
        Self { lun: command.lun, extent, effect, issue }
    }

    pub(super) const fn changes(&self) -> bool {
        matches!(self.effect, Effect::Change | Effect::DurableChange)
    }

    /// Whether this command, whose fate is open, has the other wait: it is older, and the later of the two to take
    /// effect would show.
    pub(super) fn holds_up(&self, other: &Self) -> bool {
        self.changes() && self.issue < other.issue && self.lun == other.lun && self.extent.overlaps(other.extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(cdb: CdbBuf) -> Claim {
        Claim::of(&Command::new(0, Lun::ZERO, cdb), 0)
    }

    #[test]
    fn commands_meet_where_their_blocks_do() {
        let extent = |cdb| claim(cdb).extent;
        let write = |lba, blocks| extent(BlockIo::new(lba, blocks).write());
        assert!(write(0, 4).overlaps(write(3, 1)));
        assert!(!write(0, 4).overlaps(write(4, 4)));
        assert!(write(u64::MAX - 1, 4).overlaps(write(u64::MAX - 1, 1)));
        let unmap = CdbBuf::new(&[opcode::UNMAP, 0, 0, 0, 0, 0, 0, 0, 24, 0]).unwrap();
        assert!(extent(unmap).overlaps(write(9, 1)));
        let named = Claim::of(&Command { blocks: Some(4..8), ..Command::new(0, Lun::ZERO, unmap) }, 0);
        assert!(named.changes() && named.extent.overlaps(write(7, 1)) && !named.extent.overlaps(write(9, 1)));
        let inquiry = CdbBuf::new(&[opcode::INQUIRY, 0, 0, 0, 96, 0]).unwrap();
        assert!(!extent(inquiry).overlaps(extent(unmap)) && !claim(inquiry).changes());
        let unknown = CdbBuf::new(&[0xc1; 16]).unwrap();
        assert!(extent(unknown).overlaps(write(9, 1)) && claim(unknown).changes());
        assert!(claim(BlockIo::new(0, 1).write()).changes() && !claim(BlockIo::new(0, 1).read()).changes());
        let flush = BlockIo::new(0, 0).synchronize_cache();
        assert!(!extent(flush).overlaps(extent(unmap)) && !claim(flush).changes());
    }

    #[test]
    fn what_a_command_makes_durable_is_told_by_its_cdb() {
        let effect = |io: BlockIo, opcode| claim(io.to_cdb(opcode).unwrap()).effect;
        let io = BlockIo::new(0, 8);
        assert_eq!(effect(io, opcode::WRITE_16), Effect::Change);
        assert_eq!(effect(io.with_fua(), opcode::WRITE_16), Effect::DurableChange);
        assert_eq!(effect(io.with_fua(), opcode::READ_16), Effect::Nothing);
        // There the same bit is UNMAP.
        assert_eq!(effect(io.with_fua(), opcode::WRITE_SAME_16), Effect::Change);
        let long = io.with_fua().to_cdb_32(service_action::WRITE_SAME_32).unwrap();
        assert_eq!(claim(long).effect, Effect::Change);
        let long = io.with_fua().to_cdb_32(service_action::WRITE_32).unwrap();
        assert_eq!(claim(long).effect, Effect::DurableChange);
        let all = BlockIo::new(0, 0).to_cdb_32(service_action::WRITE_SAME_32).unwrap();
        assert_eq!(claim(all).extent, Extent::Unit, "to the end of the medium");
        assert_eq!(effect(BlockIo::new(0, 0), opcode::SYNCHRONIZE_CACHE_10), Effect::Flush);
        assert_eq!(effect(io, opcode::SYNCHRONIZE_CACHE_10), Effect::Nothing, "a part is flushed");
        let immed = BlockIo::new(0, 0).with_flags(0x02);
        assert_eq!(effect(immed, opcode::SYNCHRONIZE_CACHE_16), Effect::Nothing, "it may be under way yet");
    }
}
