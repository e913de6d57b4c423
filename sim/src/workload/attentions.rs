//! Unit attentions that sessions have to hear of.

use std::cell::RefCell;
use std::rc::Rc;

use iscsi_proto::scsi::AdditionalSense;
use iscsi_proto::time::Instant;

/// What happened to a logical unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// It was reset.
    Reset,
    /// A LUN was added or taken away.
    LunsChanged,
    /// It grew.
    Grown,
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
}

/// What happened in a world, for all of its sessions.
#[derive(Debug, Clone, Default)]
pub struct Attentions(Rc<RefCell<Vec<Posted>>>);

impl Attentions {
    /// Something happened, not before `from`, and by `by` for certain.
    pub fn post(&self, lun: Option<u16>, what: Happened, from: Instant, by: Instant) {
        self.0.borrow_mut().push(Posted { lun, what, from, by });
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
}

/// Codes that are kept.
const KEPT: usize = 256;

impl Heard {
    pub(super) fn of(world: Attentions) -> Self {
        Self { world, ..Self::default() }
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

    /// A command that was handed in at `at`, in this session, was done by the unit of `lun`, which tells first what it has to tell.
    ///
    /// # Errors
    /// What it has not told.
    pub(super) fn check(&mut self, lun: u16, at: Instant) -> Result<(), String> {
        let world = self.world.0.borrow();
        let (heard, logged_in_at) = (&self.heard, self.logged_in_at);
        self.owed.extend(world[self.read..].iter().filter(|posted| posted.from > logged_in_at));
        self.read = world.len();
        let is_heard = |posted: &Posted| {
            let mut codes = heard.iter().filter(|(at, of, _)| *at >= posted.from && *of == lun);
            codes.any(|(.., code)| posted.what.is_told_by(*code))
        };
        let mut lost = None;
        self.owed.retain(|posted| {
            let due = posted.lun.is_none_or(|of| of == lun) && posted.by < at;
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
