//! The order in which the writes of a connection come: those that touch the same blocks come in the order in which they
//! were handed to the session, also after a cut.

use scsi_proto::{BlockIo, CdbBuf};

use super::disk::BLOCK;
use crate::model::{command_of, value_of};

#[derive(Debug)]
struct Arrived {
    itt: u32,
    range: (u64, u64),
    /// Its number among the commands of the session, once its first block is there.
    command: Option<u64>,
}

impl Arrived {
    fn overlaps(&self, other: &Self) -> bool {
        let ((lba, blocks), (start, len)) = (self.range, other.range);
        lba < start + len && start < lba + blocks
    }
}

/// The writes that came by a connection, in their order.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    writes: Vec<Arrived>,
    /// Numbers that nobody has asked for yet.
    fresh: Vec<u64>,
}

impl Arrivals {
    pub(super) fn take_commands(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.fresh)
    }

    /// A write came.
    pub(super) fn came(&mut self, itt: u32, cdb: CdbBuf) {
        let Some(io) = BlockIo::parse(cdb.as_cdb()) else { return };
        self.writes.push(Arrived { itt, range: (io.lba, io.blocks.into()), command: None });
    }

    /// So much of its data is there. Its first block tells which command it is. `numbered`: commands are handed over in
    /// the order of their numbers.
    ///
    /// # Errors
    /// It came after one that was handed over later, though neither had come before.
    pub(super) fn carries(&mut self, itt: u32, data: &[u8], numbered: bool) -> Result<(), String> {
        let Some(block) = data.first_chunk::<BLOCK>() else { return Ok(()) };
        let Some(at) = self.writes.iter().rposition(|write| write.itt == itt && write.command.is_none()) else {
            return Ok(());
        };
        let Some(command) = value_of(block).map(command_of) else { return Ok(()) };
        let is_again = self.writes[..at].iter().any(|write| write.command == Some(command));
        self.writes[at].command = Some(command);
        self.fresh.push(command);
        if !numbered {
            return Ok(());
        }
        let own = &self.writes[at];
        let passed = |(place, other): (usize, &Arrived)| {
            let number = other.command?;
            let came_again = self.writes[..place].iter().any(|write| write.command == Some(number));
            let is_late = place < at && number > command && !is_again || place > at && number < command && !came_again;
            (is_late && other.overlaps(own)).then_some(number)
        };
        match self.writes.iter().enumerate().find_map(passed) {
            Some(other) => Err(format!("writes {command} and {other} of the same blocks came in the wrong order")),
            None => Ok(()),
        }
    }
}
