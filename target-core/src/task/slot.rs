//! The task table's entries.

use alloc::boxed::Box;
use alloc::sync::Arc;

use iscsi_proto::datamover::TaskHandle;
use iscsi_proto::pdu::{Residual, TaskAttribute};
use scsi_proto::{SenseBytes, Status};

use super::NewTask;
use super::job::Job;
use crate::device_server::{Command, Then};
use crate::lu::{LogicalUnit, UnitAttention};
use backstore::GatePlace;

/// Longest CDB that is kept: no command of the device server has a longer one.
pub(super) const CDB: usize = 32;

/// What the initiator expects of the data, in both directions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Transfer {
    pub(super) read: bool,
    pub(super) write: bool,
    expected: u32,
    bidirectional_read: u32,
}

impl Transfer {
    #[inline]
    pub(super) fn of(new: &NewTask<'_>) -> Self {
        Self {
            read: new.read,
            write: new.write,
            expected: new.expected_data_transfer_length,
            bidirectional_read: new.bidirectional_read_length.unwrap_or(0),
        }
    }

    /// Whether data are expected, but in neither direction.
    #[inline]
    pub(super) fn has_no_direction(&self) -> bool {
        self.expected != 0 && !self.read && !self.write
    }

    /// Most bytes to the initiator.
    #[inline]
    pub(super) fn expected_in(&self) -> u32 {
        match (self.read, self.write) {
            (true, false) => self.expected,
            (true, true) => self.bidirectional_read,
            (false, _) => 0,
        }
    }

    /// Most bytes from the initiator.
    #[inline]
    pub(super) fn expected_out(&self) -> u32 {
        if self.write { self.expected } else { 0 }
    }

    /// The residuals of a command that would move this much, out of or beyond what is expected (RFC 7143 11.4.5): of
    /// the command as a whole, and of a bidirectional command's read part.
    #[inline]
    pub(super) fn residuals(&self, wanted_in: u64, wanted_out: u64) -> (Residual, Residual) {
        match (self.read, self.write) {
            (true, true) => {
                (Residual::between(self.expected, wanted_out), Residual::between(self.bidirectional_read, wanted_in))
            }
            // A read that the initiator took for a write moves nothing of what either side means.
            (false, true) => (Residual::between(self.expected, wanted_out), Residual::None),
            (true, false) => (Residual::between(self.expected, wanted_in), Residual::None),
            (false, false) => (Residual::between(self.expected, wanted_in.max(wanted_out)), Residual::None),
        }
    }
}

/// A command that waits, with what is needed to begin it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub(super) cdb: [u8; CDB],
    pub(super) len: u8,
}

/// Where a task is.
pub(super) enum State {
    Free,
    /// Waits for older tasks, and has not begun.
    Blocked(Waiting),
    /// Its data are on the way.
    Receiving {
        then: Then,
        /// For parameters: the command, whose checks saw it first.
        cdb: Waiting,
        command: &'static Command,
    },
    /// Its data are on the way into the store's memory, and that is all.
    Placing,
    /// Has its data, and waits for older tasks.
    Held(Job),
    /// Waits for other writers.
    Gated(Job),
    /// Waits until it may have buffers for what it does next.
    Short(Job),
    /// Has an operation at the store.
    Running(Job),
    /// Is over, but for its answer: that waits for the end of data that come unasked.
    Over(Box<Answer>),
}

/// The answer to a task that is over.
pub(super) struct Answer {
    pub(super) status: Status,
    pub(super) residuals: (Residual, Residual),
    pub(super) sense: SenseBytes,
    /// The unit attention that it tells, of the unit at this place in the list of LUNs.
    pub(super) attention: Option<(u16, Arc<LogicalUnit>, UnitAttention)>,
}

/// The place of a task in the list of LUNs that is on none of them, or not any more.
pub(super) const NOWHERE: u16 = u16::MAX;

impl State {
    /// Whether the task waits for something that is looked at again and again.
    pub(super) fn waits(&self) -> bool {
        matches!(self, Self::Blocked(_) | Self::Held(_) | Self::Gated(_) | Self::Short(_))
    }
}

/// Whether others may have to wait for a task because of what it is.
pub(super) fn is_barrier(attribute: TaskAttribute) -> bool {
    matches!(attribute, TaskAttribute::Ordered | TaskAttribute::HeadOfQueue)
}

/// One entry of the task table.
pub(super) struct Slot {
    pub(super) generation: u16,
    pub(super) lun: u16,
    pub(super) attribute: TaskAttribute,
    pub(super) transfer: Transfer,
    pub(super) state: State,
    /// Its place among the tasks of the session.
    pub(super) sequence: u64,
    /// How much must have been sent before it runs: what older reads are answered with.
    pub(super) after: u64,
    /// Bytes that the command wants from the initiator.
    pub(super) wanted_out: u64,
    /// Bytes that went to the initiator before the status.
    pub(super) sent: u32,
    /// Its place at the unit's write gate.
    pub(super) place: Option<GatePlace>,
    /// The operation at the store; 0 for none.
    pub(super) token: u64,
    /// Flushes that failed of which the initiator had heard when the task came.
    pub(super) flushes_heard: u64,
}

impl Slot {
    pub(super) const EMPTY: Self = Self {
        generation: 0,
        lun: 0,
        attribute: TaskAttribute::Untagged,
        transfer: Transfer { read: false, write: false, expected: 0, bidirectional_read: 0 },
        state: State::Free,
        sequence: 0,
        after: 0,
        wanted_out: 0,
        sent: 0,
        place: None,
        token: 0,
        flushes_heard: 0,
    };

    #[inline]
    pub(super) fn is_free(&self) -> bool {
        matches!(self.state, State::Free)
    }

    pub(super) fn is_barrier(&self) -> bool {
        is_barrier(self.attribute)
    }

    pub(super) fn handle(&self, slot: usize) -> TaskHandle {
        TaskHandle { slot: slot as u16, generation: self.generation }
    }
}
