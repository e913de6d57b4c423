//! How one path stands.

use iscsi_proto::time::Instant;

use super::{Access, Power};

/// What is being done to bring a path up, or that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The next attempt comes then.
    Down {
        next: Instant,
    },
    /// It is being brought up.
    Opening,
    /// What may still land on it is being ended by way of another path; it is not brought up meanwhile, since both log
    /// in with its ISID.
    Reinstating,
    Up,
}

#[derive(Debug)]
pub(super) struct Path {
    pub(super) standing: Standing,
    pub(super) access: Access,
    /// When the port is asked again how it stands.
    pub(super) ask_at: Option<Instant>,
    pub(super) asking: bool,
    /// Its session refuses everything until its list of lost writes is taken.
    pub(super) clearing: bool,
    /// It is being asked to prove that it answers.
    pub(super) proving: bool,
    /// Blocks that its session knows of.
    pub(super) blocks: u64,
    /// The portal group that it was logged in to last.
    pub(super) group: Option<u32>,
    /// How often it has been up.
    pub(super) epoch: u64,
    pub(super) losses: u64,
    pub(super) under_way: usize,
    /// When what may still land on it is ended by other means, while it is down.
    pub(super) resolve_at: Option<Instant>,
    /// That time has come, and no means was at hand.
    pub(super) overdue: bool,
    /// A login by way of another path did not help.
    pub(super) reinstating_failed: bool,
    /// It was down when the LOGICAL UNIT RESET that is under way was sent.
    pub(super) covered_by_reset: bool,
    /// It has been up before, and has told what it tells at each login.
    pub(super) greeted: bool,
    /// It tells 29h/00h at every login.
    pub(super) greets: bool,
    /// A LOGICAL UNIT RESET of our own by another path may make it tell 29h/00h.
    pub(super) expects_reset: bool,
}

impl Path {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            standing: Standing::Down { next: now },
            access: Access::Optimized,
            ask_at: None,
            asking: false,
            clearing: false,
            proving: false,
            blocks: 0,
            group: None,
            epoch: 0,
            losses: 0,
            under_way: 0,
            resolve_at: None,
            overdue: false,
            reinstating_failed: false,
            covered_by_reset: false,
            greeted: false,
            greets: false,
            expects_reset: false,
        }
    }

    /// Whether a unit attention at the beginning of a session means that the power was off.
    pub(super) fn tells_of_loss(&self, power: Power) -> bool {
        match power {
            // Some say it to each nexus that is new, and cost a path that was never up before an alarm where others are
            // lost: what would be hidden otherwise is worse.
            Power::WasOff => true,
            Power::OnOrReset => self.greeted && !self.greets && !self.expects_reset,
            Power::On => false,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.standing == Standing::Up
    }

    /// Whether it takes operations.
    pub(super) fn is_usable(&self) -> bool {
        self.is_up() && self.access.is_active() && !self.clearing
    }
}
