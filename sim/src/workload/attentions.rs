//! Unit attentions that sessions have to hear of.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use iscsi_proto::time::Instant;
use scsi_proto::AdditionalSense;

use crate::model::session_of;

/// What happened to a logical unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// It was reset.
    Reset,
    /// A LUN was added or taken away.
    LunsChanged,
    /// It grew.
    Grown,
    /// Another I_T nexus has ended tasks of this one, without an answer to each.
    Cleared,
}

impl Happened {
    /// Whether this is how it is told of. A power on or a reset stands for all lesser conditions.
    fn is_told_by(self, code: AdditionalSense) -> bool {
        let resets = [
            AdditionalSense::POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED,
            AdditionalSense::POWER_ON_OCCURRED,
            AdditionalSense::SCSI_BUS_RESET_OCCURRED,
            AdditionalSense::BUS_DEVICE_RESET_FUNCTION_OCCURRED,
        ];
        // A LUN that was taken away and comes back tells that its I_T nexus was lost, and is asked for everything again.
        let lost = code == AdditionalSense::I_T_NEXUS_LOSS_OCCURRED;
        let own = match self {
            Self::Reset => false,
            Self::LunsChanged => lost || code == AdditionalSense::REPORTED_LUNS_DATA_HAS_CHANGED,
            Self::Cleared => lost || code == AdditionalSense::COMMANDS_CLEARED_BY_ANOTHER_INITIATOR,
            Self::Grown => lost || code == AdditionalSense::CAPACITY_DATA_HAS_CHANGED,
        };
        own || resets.contains(&code)
    }
}

/// One thing that happened.
#[derive(Debug, Clone, Copy)]
struct Posted {
    /// To the unit of this LUN, or to all.
    lun: Option<u16>,
    what: Happened,
    /// It may have happened from then on.
    from: Instant,
    /// By then it had.
    by: Instant,
    /// Only one session is told: the one of this command, if that was ended; see [`crate::model::command_of`].
    only: Option<u64>,
}

/// What happened in a world, for all of its sessions.
#[derive(Debug, Clone, Default)]
pub struct Attentions(Rc<RefCell<Vec<Posted>>>);

impl Attentions {
    /// Something happened, not before `from`, and by `by` for certain.
    pub fn post(&self, lun: Option<u16>, what: Happened, from: Instant, by: Instant) {
        self.0.borrow_mut().push(Posted { lun, what, from, by, only: None });
    }

    /// A function was complete at `by` that ends tasks of others, and had found this command at the store, since
    /// `from`.
    pub fn post_cleared(&self, lun: u16, command: u64, from: Instant, by: Instant) {
        let posted = Posted { lun: Some(lun), what: Happened::Cleared, from, by, only: Some(command) };
        self.0.borrow_mut().push(posted);
    }
}

/// What one session has heard, and has still to hear.
#[derive(Debug, Default)]
pub(super) struct Heard {
    world: Attentions,
    /// So many of the world's are looked at.
    read: usize,
    owed: Vec<Posted>,
    heard: Vec<(Instant, u16, AdditionalSense)>,
    logged_in_at: Instant,
    number: u64,
}

/// A command whose operation has ended at the store is answered in this time, where links are calm.
const ANSWERED_IN: Duration = Duration::from_secs(2);
/// Codes that are kept.
const KEPT: usize = 256;

impl Heard {
    pub(super) fn of(world: Attentions, number: u64) -> Self {
        Self { world, number, ..Self::default() }
    }

    /// A session begins. What happened before is told by its first attention.
    pub(super) fn logged_in(&mut self, now: Instant) {
        self.owed.clear();
        self.heard.clear();
        self.read = self.world.0.borrow().len();
        self.logged_in_at = now;
    }

    /// A logical unit told of something.
    pub(super) fn hear(&mut self, now: Instant, lun: u16, code: AdditionalSense) {
        if self.heard.len() == KEPT {
            self.heard.remove(0);
        }
        self.heard.push((now, lun, code));
    }

    /// Takes over what the world has posted since. `clears` says of a command, and since when it was at the store,
    /// whether it had to be answered if nobody else ended it.
    pub(super) fn look(&mut self, clears: impl Fn(u64, &Instant) -> bool) {
        let world = self.world.0.borrow();
        let (logged_in_at, number) = (self.logged_in_at, self.number);
        let concerns = |posted: &&Posted| match posted.only {
            Some(command) => session_of(command << 20) == Some(number) && clears(command, &posted.from),
            None => true,
        };
        let new = world[self.read..].iter().filter(|posted| posted.from > logged_in_at).filter(concerns);
        self.owed.extend(new);
        self.read = world.len();
    }

    /// One of our commands is answered: if that is so soon after another's function, it was not ended by it.
    pub(super) fn answered(&mut self, command: u64, now: Instant) {
        self.owed.retain(|posted| posted.only != Some(command) || now > posted.by + ANSWERED_IN);
    }

    /// A command that was handed in at `at`, in this session, was done by the unit of `lun`, which tells first what it has to tell.
    ///
    /// # Errors
    /// What it has not told.
    pub(super) fn check(&mut self, (disk, lun): (u16, u16), at: Instant) -> Result<(), String> {
        let heard = &self.heard;
        let is_heard = |posted: &Posted| {
            let mut codes = heard.iter().filter(|(at, of, _)| *at >= posted.from && *of == lun);
            codes.any(|(.., code)| posted.what.is_told_by(*code))
        };
        let mut lost = None;
        self.owed.retain(|posted| {
            let due = posted.lun.is_none_or(|of| of == disk)
                && posted.by + posted.only.map_or(Duration::ZERO, |_| ANSWERED_IN) < at;
            if due && !is_heard(posted) {
                lost = Some(*posted);
            }
            // What concerns all units is told by each; by the first that is asked is enough here.
            !due
        });
        match lost {
            Some(Posted { what, from, by, .. }) => {
                Err(format!("was done, and nothing had told of a unit attention: {what:?} between {from:?} and {by:?}"))
            }
            None => Ok(()),
        }
    }
}
