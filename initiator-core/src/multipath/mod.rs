//! A disk by several paths, without I/O: which operation goes by which path and when, what its end on a path means, when
//! paths are brought up, asked and used again.
//!
//! [`Paths`] is driven as the machines of `iscsi-proto` are: `handle`-like calls go in, [`Paths::poll`] gives
//! [`Action`]s, time is an argument, and [`Paths::poll_timeout`] says when [`Paths::handle_timeout`] is due. Whoever
//! drives it has a session for each path that is up, and carries the actions out.
//!
//! # What may still land
//!
//! A write that was under way on a path that is lost may be carried out by the target at any time until the target has
//! ended the session or the task. It is sent anew by another path; what overlaps it waits (`order`) until
//!
//! 1. the path has logged in again with its ISID to the same portal group, which has ended the old session
//!    (RFC 7143 6.3.5), or
//! 2. after [`MultipathConfig::doubt`], a login with that ISID by way of another path that leads to the same portal
//!    group has ended it, or
//! 3. where there is no such path, or it refuses, a LOGICAL UNIT RESET by another path was answered "function
//!    complete".
//!
//! The first two are certain, whatever the network still holds: the session that could have carried it out is gone. The
//! third ends what has reached the target. Commands in the network at that time would still be carried out, so that it
//! is as good as the driver's word that a lost connection is aborted and nothing of it is sent again: then what is left
//! is what routers hold for longer than the path took to be found lost and `doubt` together. dm-multipath of Linux
//! sends later writes at once, and has nothing of the three.
//!
//! # What may be lost
//!
//! See `durability`.

mod durability;
mod order;
mod path;
mod paths;

use core::ops::Range;
use core::time::Duration;

use scsi_proto::AdditionalSense;

use crate::command::{self, Failure};
use crate::identity::Identity;

pub use paths::Paths;

/// How commands are spread over the paths of the best access state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PathPolicy {
    /// Each in its turn.
    #[default]
    RoundRobin,
    /// The one with the fewest operations under way.
    LeastQueue,
}

/// How a disk by several paths deals with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultipathConfig {
    /// Which path is next. Default [`PathPolicy::RoundRobin`].
    pub policy: PathPolicy,
    /// How long an operation goes on without a path that takes it, counted from the first time that it finds none, or
    /// that what may still land on a lost path holds it up; then it ends with an error. Default 120 s.
    pub no_path: Duration,
    /// Between two attempts to bring a path up, and between two questions to a port that is not
    /// active/optimized. Default 1 s.
    pub retry: Duration,
    /// How long what may still land on a lost path holds up others, before it is ended by way of another path. A path
    /// that comes back ends it at once. Default 5 s.
    pub doubt: Duration,
}

impl Default for MultipathConfig {
    fn default() -> Self {
        Self {
            policy: PathPolicy::RoundRobin,
            no_path: Duration::from_secs(120),
            retry: Duration::from_secs(1),
            doubt: Duration::from_secs(5),
        }
    }
}

/// ASYMMETRIC ACCESS STATE of the target port group that a path leads through (SPC-5 5.15.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Active/optimized, or a target that tells no states.
    Optimized,
    /// Active/non-optimized: used while no optimized path is up.
    NonOptimized,
    /// In transition to another state: waited for.
    Transitioning,
    /// Standby: not used.
    Standby,
    /// Unavailable or offline: not used.
    Unavailable,
}

impl Access {
    /// From the code of REPORT TARGET PORT GROUPS (SPC-5 table 264). Logical block dependent and what is not known
    /// count as unavailable.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Optimized,
            1 => Self::NonOptimized,
            2 => Self::Standby,
            0x0f => Self::Transitioning,
            _ => Self::Unavailable,
        }
    }

    /// Whether commands that read and write are carried out.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Optimized | Self::NonOptimized)
    }

    /// What the sense data of a refused command tell of the state.
    #[must_use]
    pub fn of_sense(code: AdditionalSense) -> Option<Self> {
        match code {
            AdditionalSense::ASYMMETRIC_ACCESS_TRANSITION => Some(Self::Transitioning),
            AdditionalSense::TARGET_PORT_IN_STANDBY => Some(Self::Standby),
            AdditionalSense::TARGET_PORT_UNAVAILABLE | AdditionalSense::NOT_READY_OFFLINE => Some(Self::Unavailable),
            _ => None,
        }
    }
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It changes nothing.
    Read,
    /// It changes its blocks. `repeatable`: done twice it is as done once.
    Change {
        /// Whether it may be sent anew when nobody knows what became of it.
        repeatable: bool,
    },
    /// SYNCHRONIZE CACHE of all blocks.
    Flush,
}

/// An operation on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What it does.
    pub kind: Kind,
    /// The blocks that it reads or changes; none for a flush.
    pub blocks: Range<u64>,
}

/// What an operation came to on the path that it was sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// The port does not take it: this is how it stands (NOT READY 04h/0Ah to 0Ch).
    NotActive(Access),
    /// The path's session is over, and nobody knows what became of it.
    PathLost,
    /// It has certainly ended at the target, or was never sent: no answer in time and aborted, BUSY to the end. Another
    /// path may do better.
    NoAnswer {
        /// Whether it was sent, and may have been carried out before it ended.
        may_have_run: bool,
    },
    /// The session says that its disk lost writes.
    LostWrites,
    /// It ended with an error that is for the caller. `may_have_run`: where it is a flush, it may have been carried out
    /// in part.
    Failed {
        /// Whether the device server began with it.
        may_have_run: bool,
    },
}

impl Outcome {
    /// What the end of a command says. `over`: its session has ended.
    #[must_use]
    pub fn of(result: &Result<command::Outcome, Failure>, over: bool) -> Self {
        match result {
            Ok(outcome) if outcome.is_good() => Self::Done,
            Ok(outcome) => match outcome.sense.and_then(|sense| Access::of_sense(sense.code)) {
                Some(access) => Self::NotActive(access),
                None if outcome.is_busy() => Self::NoAnswer { may_have_run: false },
                None => Self::Failed { may_have_run: outcome.may_have_run() },
            },
            Err(Failure::LostWrites) => Self::LostWrites,
            // Nothing was sent to another disk.
            Err(Failure::NotRepeatable | Failure::OtherDisk) => Self::PathLost,
            Err(Failure::TimedOut) if !over => Self::NoAnswer { may_have_run: true },
            Err(Failure::NotSent(_)) if !over => Self::NoAnswer { may_have_run: false },
            Err(_) if over => Self::PathLost,
            Err(_) => Self::Failed { may_have_run: true },
        }
    }
}

/// How an operation ends for its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Done,
    /// With what it failed with on the last path that it was sent by.
    AsTold,
    /// No path took it in the time that it has.
    NoPath,
    /// The disk lost writes that it had acknowledged.
    LostWrites,
    /// Nobody waits for it, and it was not sent anew.
    Abandoned,
}

/// What is to be done. Paths are numbered in the order in which they were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send an operation by a path; [`Paths::ended`] answers it.
    Send {
        /// The operation.
        operation: u64,
        /// The path.
        path: usize,
    },
    /// Tell the caller of an operation how it ended. It is forgotten here.
    End {
        /// The operation.
        operation: u64,
        /// How.
        verdict: Verdict,
    },
    /// Bring a path up; [`Paths::opened`] or [`Paths::not_opened`] answers it.
    Connect {
        /// The path.
        path: usize,
    },
    /// Ask the port of a path that is up how it stands; [`Paths::told`] answers it.
    AskAccess {
        /// The path.
        path: usize,
    },
    /// Have the session of a path that is up answer a command that changes nothing (TEST UNIT READY);
    /// [`Paths::proved`] answers it, after all unit attentions that the session told before.
    Prove {
        /// The path.
        path: usize,
    },
    /// Take the list of lost writes that a path's session keeps, which says less than the one kept here;
    /// [`Paths::cleared`] answers it.
    Clear {
        /// The path.
        path: usize,
    },
    /// Log in with the ISID of a path that is down, by way of another that leads to the same portal group, and out
    /// again; [`Paths::reinstated`] answers it.
    Reinstate {
        /// The path that is down.
        path: usize,
        /// By way of this one.
        over: usize,
    },
    /// LOGICAL UNIT RESET by a path that is up; [`Paths::reset_done`] answers it.
    Reset {
        /// The path.
        over: usize,
    },
}

/// What was found at the end of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The disk.
    pub identity: Identity,
    /// How the port stands.
    pub access: Access,
    /// The portal group that was logged in to: equal numbers are equal groups of one target. `None`: not known.
    pub group: Option<u32>,
    /// Whether a power-on or a reset was told before the path was used.
    pub power: Power,
    /// Whether the disk may lose with its power what it acknowledged and did not flush.
    pub volatile: bool,
}

/// Unit attentions that tell that what was not flushed may be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Power {
    /// None was told.
    #[default]
    On,
    /// 29h/00h: power-on, reset, or bus device reset. Some targets say it at every login.
    OnOrReset,
    /// 29h/01h: power-on.
    WasOff,
}

impl Power {
    /// What a unit attention says.
    #[must_use]
    pub fn of(code: AdditionalSense) -> Self {
        match code {
            AdditionalSense::POWER_ON_OCCURRED => Self::WasOff,
            AdditionalSense::POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED => Self::OnOrReset,
            _ => Self::On,
        }
    }
}
