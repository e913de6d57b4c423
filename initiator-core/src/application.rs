//! The seam between a session and what uses it.

use alloc::vec::Vec;
use core::ops::Range;
use core::task::Waker;
use core::time::Duration;

use iscsi_proto::datamover::MoverReport;
use iscsi_proto::pdu::{TaskFunction, TaskResponse};
use iscsi_proto::time::Instant;
use scsi_proto::{AdditionalSense, Lun};

use crate::command::{Command, Completion, Failure};
use crate::connection::{ConnectionEnd, LoginSummary};
use crate::error::Error;
use crate::identity::{Difference, KnownDisk};
use crate::url::Portal;

/// A request that is no SCSI command.
#[derive(Debug)]
pub enum Control {
    /// A task management function for a logical unit.
    TaskManagement {
        /// The application's name for it.
        id: u32,
        /// The function; one that names no single task.
        function: TaskFunction,
        /// The logical unit.
        lun: Lun,
    },
    /// A Text Request: key=value pairs, each ended by a zero byte (RFC 7143 11.10).
    Text {
        /// The application's name for it.
        id: u32,
        /// The text.
        text: Vec<u8>,
    },
    /// A handle on a disk: commands that name the guard ([`Command::guard`](crate::command::Command::guard)) are sent
    /// only while the unit is this disk.
    Guard {
        /// The application's name for it.
        id: u32,
        /// The disk.
        disk: KnownDisk,
        /// The number of logins ([`Counters::logins`]) when the unit told this.
        login: u64,
    },
    /// The handle is gone.
    Unguard {
        /// The guard.
        guard: u32,
    },
    /// The unit is asked anew whether it is the disk of the guard, before it gets another command.
    Doubt {
        /// The application's name for it; [`ControlAnswer::Guarded`] answers it.
        id: u32,
        /// The guard.
        guard: u32,
    },
    /// Asks what a disk has lost, and leaves it at that.
    AskLost {
        /// The application's name for it.
        id: u32,
        /// The guard.
        guard: u32,
    },
    /// Takes note of what a disk has lost: its commands pass again.
    TakeLost {
        /// The application's name for it.
        id: u32,
        /// The guard.
        guard: u32,
    },
    /// Log out once nothing is under way; no commands are asked for any more.
    Logout,
}

/// The answer to a [`Control`]; a logout is answered by the end of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlAnswer {
    /// The target's response to a task management function.
    TaskManagement(TaskResponse),
    /// The whole text of the answer.
    Text(Vec<u8>),
    /// The number of the guard: a new one, or one that is in doubt.
    Guarded(u32),
    /// The blocks whose last content is lost.
    Lost(Vec<Range<u64>>),
    /// There is no answer.
    Failed(Failure),
}

/// What happened in a session that its application may want to know.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A connection is logged in, the first one or a new one.
    LoggedIn(&'a LoginSummary),
    /// The connection is over. Commands wait for the next one.
    Disconnected(&'a ConnectionEnd),
    /// The connection is lost, and the session is to be connected again. Told by what runs the session's connections.
    Lost {
        /// Why.
        reason: &'a Error,
        /// How long until the first attempt.
        next_in: Duration,
        /// How long attempts go on.
        tried_for: Duration,
    },
    /// An attempt to connect again came to nothing. Told by what runs the session's connections.
    AttemptFailed {
        /// Why.
        reason: &'a Error,
        /// How long until the next attempt.
        next_in: Duration,
        /// How long attempts go on.
        tried_for: Duration,
    },
    /// The target sent a login elsewhere (RFC 7143 11.13.5). Told by what runs the session's connections.
    Redirected {
        /// Where to.
        to: &'a Portal,
        /// Whether it moved for good.
        permanent: bool,
    },
    /// The target asked for a logout (RFC 7143 11.9.1, event 1), which comes when what is under way has ended.
    LogoutAsked {
        /// How long the target waits for it.
        within: Duration,
    },
    /// An answer breaks the rules in a way that can be lived with.
    OddAnswer {
        /// What was asked.
        command: &'a str,
        /// What is wrong with the answer, and what that costs.
        reason: &'a str,
    },
    /// A logical unit reported a unit attention.
    UnitAttention(Lun, AdditionalSense),
    /// A LUN shows another disk than the one that a guard was made for. Nothing passes that guard any more.
    OtherDisk {
        /// The guard.
        guard: u32,
        /// The logical unit.
        lun: Lun,
        /// How it shows.
        difference: &'a Difference,
    },
    /// A disk is larger than it was.
    Resized {
        /// The guard.
        guard: u32,
        /// The logical unit.
        lun: Lun,
        /// Blocks that it has.
        blocks: u64,
        /// Bytes of a block.
        block_size: u32,
    },
    /// What a disk acknowledged and did not flush is gone. After its power was off nothing passes the guard until
    /// [`Control::TakeLost`]; after a flush that failed no later one is good until then, or until all is written anew.
    /// The second holds too where nobody knows: a unit that tells every new nexus of a power-on or a reset tells it
    /// again.
    LostWrites {
        /// The guard.
        guard: u32,
        /// The logical unit.
        lun: Lun,
    },
}

/// Figures of a session's commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Commands completed.
    pub commands: u64,
    /// Commands sent again.
    pub repeated: u64,
    /// Logins done.
    pub logins: u64,
    /// Unit attentions met.
    pub unit_attentions: u64,
    /// What the connection's mover has done, if it moves data by RDMA.
    pub mover: Option<MoverReport>,
}

/// What uses a session: gives it commands when it has room for them, and takes the completions.
///
/// Commands are pulled, so that those for which the target's window has no room wait where they are made. Each command
/// that was pulled completes exactly once, also over lost connections and at the session's end.
pub trait Application {
    /// Keeps the waker of the session's connection; it is to be woken when there is something new to pull.
    fn register(&mut self, waker: &Waker);

    /// The next command, if there is one.
    fn next_command(&mut self, now: Instant) -> Option<Command>;

    /// The next request that is no command, if there is one.
    fn next_control(&mut self) -> Option<Control> {
        None
    }

    /// The token of a command that nobody waits for any more: it is not sent if it was not yet, not repeated, and
    /// completed as any other.
    fn next_abandoned(&mut self) -> Option<u64> {
        None
    }

    /// A command is done.
    fn complete(&mut self, completion: Completion, now: Instant);

    /// A control request is answered.
    fn control_complete(&mut self, id: u32, answer: ControlAnswer) {
        let _ = (id, answer);
    }

    /// Something happened.
    fn event(&mut self, event: Event<'_>) {
        let _ = event;
    }

    /// All completions of this wake have been given: time to tell those who wait.
    fn flush(&mut self, counters: &Counters) {
        let _ = counters;
    }
}
