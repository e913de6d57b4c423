//! Unit attention conditions (SAM-5 5.14).
//!
//! A logical unit keeps a short log of what happened to it; each session reads on in the log from where it was, and
//! keeps what it found pending for itself. So a session costs the logical unit nothing, and a command costs one load of
//! the log's head.

use alloc::collections::VecDeque;
use core::sync::atomic::Ordering;

use portable_atomic::AtomicU64;
use scsi_proto::AdditionalSense;

use super::NexusId;
use iscsi_memory::Lock;

/// A condition that every I_T nexus is to hear of once, in the order of SAM-5's priorities: what comes first is
/// reported first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum UnitAttention {
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED: more happened than is remembered.
    PowerOnOrReset = 0,
    /// POWER ON OCCURRED: the first time that an I_T nexus comes to a unit since it was made.
    PowerOn = 1,
    /// SCSI BUS RESET OCCURRED: TARGET WARM RESET, TARGET COLD RESET.
    BusReset = 2,
    /// BUS DEVICE RESET FUNCTION OCCURRED: LOGICAL UNIT RESET.
    LogicalUnitReset = 3,
    /// I_T NEXUS LOSS OCCURRED: the I_T nexus was here before, and comes back. The unit has kept its data.
    NexusLoss = 4,
    /// COMMANDS CLEARED BY ANOTHER INITIATOR: CLEAR TASK SET by another I_T nexus.
    CommandsCleared = 5,
    /// REPORTED LUNS DATA HAS CHANGED.
    ReportedLunsChanged = 6,
    /// CAPACITY DATA HAS CHANGED.
    CapacityChanged = 7,
    /// INQUIRY DATA HAS CHANGED.
    InquiryChanged = 8,
    /// MODE PARAMETERS CHANGED.
    ModeParametersChanged = 9,
    /// RESERVATIONS PREEMPTED.
    ReservationsPreempted = 10,
    /// RESERVATIONS RELEASED.
    ReservationsReleased = 11,
    /// REGISTRATIONS PREEMPTED.
    RegistrationsPreempted = 12,
    /// ASYMMETRIC ACCESS STATE CHANGED.
    AsymmetricAccessChanged = 13,
    /// THIN PROVISIONING SOFT THRESHOLD REACHED.
    ThinProvisioningThreshold = 14,
}

impl UnitAttention {
    /// Whether it is a power on or a reset, which stands for all lesser conditions.
    const fn is_reset(self) -> bool {
        (self as u8) < Self::NexusLoss as u8
    }

    const ALL: [Self; 15] = [
        Self::PowerOnOrReset,
        Self::PowerOn,
        Self::BusReset,
        Self::LogicalUnitReset,
        Self::NexusLoss,
        Self::CommandsCleared,
        Self::ReportedLunsChanged,
        Self::CapacityChanged,
        Self::InquiryChanged,
        Self::ModeParametersChanged,
        Self::ReservationsPreempted,
        Self::ReservationsReleased,
        Self::RegistrationsPreempted,
        Self::AsymmetricAccessChanged,
        Self::ThinProvisioningThreshold,
    ];

    /// The additional sense code that reports it.
    #[must_use]
    pub const fn code(self) -> AdditionalSense {
        match self {
            Self::PowerOnOrReset => AdditionalSense::POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED,
            Self::PowerOn => AdditionalSense::POWER_ON_OCCURRED,
            Self::BusReset => AdditionalSense::SCSI_BUS_RESET_OCCURRED,
            Self::LogicalUnitReset => AdditionalSense::BUS_DEVICE_RESET_FUNCTION_OCCURRED,
            Self::NexusLoss => AdditionalSense::I_T_NEXUS_LOSS_OCCURRED,
            Self::CommandsCleared => AdditionalSense::COMMANDS_CLEARED_BY_ANOTHER_INITIATOR,
            Self::ReportedLunsChanged => AdditionalSense::REPORTED_LUNS_DATA_HAS_CHANGED,
            Self::CapacityChanged => AdditionalSense::CAPACITY_DATA_HAS_CHANGED,
            Self::InquiryChanged => AdditionalSense::INQUIRY_DATA_HAS_CHANGED,
            Self::ModeParametersChanged => AdditionalSense::MODE_PARAMETERS_CHANGED,
            Self::ReservationsPreempted => AdditionalSense::RESERVATIONS_PREEMPTED,
            Self::ReservationsReleased => AdditionalSense::RESERVATIONS_RELEASED,
            Self::RegistrationsPreempted => AdditionalSense::REGISTRATIONS_PREEMPTED,
            Self::AsymmetricAccessChanged => AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED,
            Self::ThinProvisioningThreshold => AdditionalSense::THIN_PROVISIONING_SOFT_THRESHOLD_REACHED,
        }
    }
}

/// Events that a log keeps. A session further behind than that hears [`UnitAttention::PowerOnOrReset`], which stands
/// for all others.
const LOG: usize = 64;

/// What happened to a logical unit, for all sessions to read.
#[derive(Debug)]
pub(crate) struct AttentionLog {
    head: AtomicU64,
    events: Lock<VecDeque<(Option<NexusId>, UnitAttention)>>,
    known: Lock<Known>,
}

/// The I_T nexuses that have been at the unit.
#[derive(Debug)]
struct Known {
    /// Who came last is last.
    nexuses: VecDeque<KnownNexus>,
    capacity: usize,
    /// Some were forgotten: whoever comes now may have been here.
    forgot: bool,
}

#[derive(Debug)]
struct KnownNexus {
    /// What names it.
    key: u64,
    /// The power on or the reset that it has not heard of yet.
    owed: Option<UnitAttention>,
    /// Flushes that failed of which it has heard; `None` until it is first asked for.
    flushes: Option<u64>,
}

impl AttentionLog {
    /// `capacity` is how many I_T nexuses are remembered.
    pub(crate) fn new(capacity: usize) -> Self {
        let known = Known { nexuses: VecDeque::new(), capacity: capacity.max(1), forgot: false };
        Self { head: AtomicU64::new(0), events: Lock::default(), known: Lock::new(known) }
    }

    /// A nexus comes, named by `key`: what it is to hear first.
    fn enter(&self, key: u64, plain: bool) -> u32 {
        let mut known = self.known.lock();
        let at = known.nexuses.iter().position(|other| other.key == key);
        match at.and_then(|at| known.nexuses.remove(at)) {
            Some(nexus) => {
                let owed = nexus.owed;
                known.nexuses.push_back(nexus);
                bit(UnitAttention::NexusLoss) | owed.map_or(0, bit)
            }
            None => {
                if known.nexuses.len() >= known.capacity {
                    known.nexuses.pop_front();
                    known.forgot = true;
                }
                let first = if known.forgot || plain { UnitAttention::PowerOnOrReset } else { UnitAttention::PowerOn };
                known.nexuses.push_back(KnownNexus { key, owed: Some(first), flushes: None });
                bit(first)
            }
        }
    }

    /// A nexus has heard of the power on or of a reset: it hears of it no more when it comes back.
    #[cold]
    fn heard(&self, key: u64) {
        let mut known = self.known.lock();
        if let Some(nexus) = known.nexuses.iter_mut().find(|other| other.key == key) {
            nexus.owed = None;
        }
    }

    /// A nexus has not heard of it after all.
    #[cold]
    fn owe(&self, key: u64, attention: UnitAttention) {
        let mut known = self.known.lock();
        if let Some(nexus) = known.nexuses.iter_mut().find(|other| other.key == key) {
            nexus.owed.get_or_insert(attention);
        }
    }

    /// How many flushes that failed a nexus has heard of that has come before; `now` for one that has not.
    pub(crate) fn flushes_heard(&self, key: u64, now: u64) -> u64 {
        let mut known = self.known.lock();
        let nexus = known.nexuses.iter_mut().find(|other| other.key == key);
        nexus.map_or(now, |nexus| *nexus.flushes.get_or_insert(now))
    }

    /// A nexus has heard of so many.
    pub(crate) fn set_flushes_heard(&self, key: u64, heard: u64) {
        let mut known = self.known.lock();
        if let Some(nexus) = known.nexuses.iter_mut().find(|other| other.key == key) {
            nexus.flushes = Some(heard);
        }
    }

    pub(crate) fn post(&self, except: Option<NexusId>, attention: UnitAttention) {
        if attention.is_reset() {
            // Who is away hears of it too, on coming back.
            let mut known = self.known.lock();
            for KnownNexus { owed, .. } in &mut known.nexuses {
                *owed =
                    Some(owed.map_or(attention, |owed| if owed as u8 <= attention as u8 { owed } else { attention }));
            }
        }
        let mut events = self.events.lock();
        if events.len() == LOG {
            events.pop_front();
        }
        events.push_back((except, attention));
        self.head.fetch_add(1, Ordering::Release);
    }

    /// Number of events posted so far.
    #[inline]
    pub(crate) fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }
}

/// What one I_T nexus has still to hear from one logical unit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attentions {
    pending: u32,
    seen: u64,
    /// What names the nexus and the LUN, over logins.
    key: u64,
}

const fn bit(attention: UnitAttention) -> u32 {
    1 << attention as u32
}

impl Attentions {
    /// A session begins: its I_T nexus hears of the power on (SAM-5 6.2) if it is new, of its loss (SAM-5 6.4) if it
    /// comes back, of resets that it has not heard of, and of what happens from now on. `key` names the nexus, and the
    /// LUN by which it sees the unit; with `plain` the power on is told as [`UnitAttention::PowerOnOrReset`].
    pub(crate) fn of_nexus(log: &AttentionLog, key: u64, plain: bool) -> Self {
        // The head first: what happens in between is heard of twice rather than never.
        let seen = log.head();
        Self { pending: log.enter(key, plain), seen, key }
    }

    /// Whether there is nothing to hear.
    #[inline]
    pub(crate) fn is_clear(&self, log: &AttentionLog) -> bool {
        self.pending == 0 && self.seen == log.head()
    }

    /// Reads on in the log.
    pub(crate) fn catch_up(&mut self, nexus: NexusId, log: &AttentionLog) {
        if self.seen == log.head() {
            return;
        }
        let events = log.events.lock();
        let head = log.head();
        let missed = head - self.seen;
        if missed > events.len() as u64 {
            self.add(UnitAttention::PowerOnOrReset);
        }
        let from = events.len() - (missed as usize).min(events.len());
        for (except, attention) in events.range(from..) {
            if *except != Some(nexus) {
                self.add(*attention);
            }
        }
        self.seen = head;
    }

    pub(crate) fn add(&mut self, attention: UnitAttention) {
        self.pending |= bit(attention);
    }

    pub(crate) fn remove(&mut self, attention: UnitAttention) {
        self.pending &= !bit(attention);
    }

    /// The condition to report now.
    pub(crate) fn take(&mut self, log: &AttentionLog) -> Option<UnitAttention> {
        let first = *UnitAttention::ALL.get(self.pending.trailing_zeros() as usize)?;
        self.told(first, log);
        Some(first)
    }

    /// A condition is reported, if it has not been since. A power on or a reset takes the lesser conditions with it
    /// (SAM-5 5.14.2).
    pub(crate) fn told(&mut self, attention: UnitAttention, log: &AttentionLog) {
        if self.pending & bit(attention) == 0 {
            return;
        }
        if attention.is_reset() {
            self.pending = 0;
            log.heard(self.key);
        } else {
            self.remove(attention);
        }
    }

    /// What was taken is told later: until then it is there for others.
    pub(crate) fn put_back(&mut self, attention: UnitAttention, log: &AttentionLog) {
        self.add(attention);
        if attention.is_reset() {
            log.owe(self.key, attention);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn take_all(mine: &mut Attentions, log: &AttentionLog) -> Vec<UnitAttention> {
        core::iter::from_fn(|| mine.take(log)).collect()
    }

    #[test]
    fn each_is_heard_once_in_order_of_priority_and_not_by_its_cause() {
        let log = AttentionLog::new(8);
        let mut mine = Attentions::of_nexus(&log, 1, false);
        assert_eq!(mine.take(&log), Some(UnitAttention::PowerOn));
        assert!(mine.is_clear(&log));
        log.post(Some(NexusId(1)), UnitAttention::ModeParametersChanged);
        log.post(None, UnitAttention::CapacityChanged);
        let mut other = mine;
        assert!(!mine.is_clear(&log));
        mine.catch_up(NexusId(1), &log);
        other.catch_up(NexusId(2), &log);
        assert_eq!(take_all(&mut mine, &log), [UnitAttention::CapacityChanged]);
        assert_eq!(take_all(&mut other, &log), [UnitAttention::CapacityChanged, UnitAttention::ModeParametersChanged]);
        assert!(other.is_clear(&log));
    }

    #[test]
    fn a_nexus_that_comes_back_hears_of_its_loss_and_of_what_it_missed() {
        let log = AttentionLog::new(8);
        // A power on that was not told yet is told to the next session.
        Attentions::of_nexus(&log, 1, false);
        let mut mine = Attentions::of_nexus(&log, 1, false);
        assert_eq!(take_all(&mut mine, &log), [UnitAttention::PowerOn]);
        let mut mine = Attentions::of_nexus(&log, 1, false);
        assert_eq!(take_all(&mut mine, &log), [UnitAttention::NexusLoss]);
        // Resets while it is away, of which the greater one counts.
        log.post(None, UnitAttention::LogicalUnitReset);
        log.post(None, UnitAttention::BusReset);
        log.post(None, UnitAttention::LogicalUnitReset);
        let mut mine = Attentions::of_nexus(&log, 1, false);
        assert_eq!(take_all(&mut mine, &log), [UnitAttention::BusReset]);
        // One of which it has heard is not told again.
        log.post(None, UnitAttention::LogicalUnitReset);
        mine.catch_up(NexusId(1), &log);
        assert_eq!(take_all(&mut mine, &log), [UnitAttention::LogicalUnitReset]);
        let mut mine = Attentions::of_nexus(&log, 1, false);
        assert_eq!(take_all(&mut mine, &log), [UnitAttention::NexusLoss]);
    }

    #[test]
    fn a_nexus_that_may_be_forgotten_is_not_told_of_a_power_on() {
        let log = AttentionLog::new(2);
        let first = |key| Attentions::of_nexus(&log, key, false).take(&log);
        assert_eq!((first(1), first(2)), (Some(UnitAttention::PowerOn), Some(UnitAttention::PowerOn)));
        assert_eq!(first(1), Some(UnitAttention::NexusLoss));
        // In place of 2, which was here last.
        assert_eq!(first(3), Some(UnitAttention::PowerOnOrReset));
        assert_eq!(first(1), Some(UnitAttention::NexusLoss));
        assert_eq!(first(2), Some(UnitAttention::PowerOnOrReset));
    }

    #[test]
    fn a_reader_too_far_behind_hears_of_a_reset() {
        let log = AttentionLog::new(8);
        let mut mine = Attentions::of_nexus(&log, 1, false);
        mine.take(&log);
        for _ in 0..LOG + 5 {
            log.post(None, UnitAttention::CapacityChanged);
        }
        mine.catch_up(NexusId(1), &log);
        assert_eq!(take_all(&mut mine, &log), [UnitAttention::PowerOnOrReset]);
    }

    #[test]
    fn priorities_are_the_positions() {
        for (index, attention) in UnitAttention::ALL.into_iter().enumerate() {
            assert_eq!(attention as usize, index);
        }
    }
}
