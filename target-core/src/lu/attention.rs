//! Unit attention conditions (SAM-5 5.14).
//!
//! A logical unit keeps a short log of what happened to it; each session reads on in the log from where it was, and keeps what it found pending for
//! itself. So a session costs the logical unit nothing, and a command costs one load of the log's head.

use alloc::collections::VecDeque;
use core::sync::atomic::{AtomicU64, Ordering};

use iscsi_proto::scsi::AdditionalSense;

use super::NexusId;
use crate::lock::Lock;

/// A condition that every I_T nexus is to hear of once, in the order of SAM-5's priorities: what comes first is reported first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum UnitAttention {
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED: a new I_T nexus, or more happened than the log holds.
    PowerOnOrReset = 0,
    /// POWER ON OCCURRED.
    PowerOn = 1,
    /// SCSI BUS RESET OCCURRED: TARGET WARM RESET.
    BusReset = 2,
    /// BUS DEVICE RESET FUNCTION OCCURRED: LOGICAL UNIT RESET.
    LogicalUnitReset = 3,
    /// I_T NEXUS LOSS OCCURRED.
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

/// Events that a log keeps. A session further behind than that hears [`UnitAttention::PowerOnOrReset`], which stands for all others.
const LOG: usize = 64;

/// What happened to a logical unit, for all sessions to read.
#[derive(Debug, Default)]
pub(crate) struct AttentionLog {
    head: AtomicU64,
    events: Lock<VecDeque<(Option<NexusId>, UnitAttention)>>,
}

impl AttentionLog {
    pub(crate) fn post(&self, except: Option<NexusId>, attention: UnitAttention) {
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
}

impl Attentions {
    /// A new I_T nexus: it hears of the power on (SAM-5 6.2), and of what happens from now on.
    pub(crate) fn of_new_nexus(log: &AttentionLog) -> Self {
        Self { pending: 1 << UnitAttention::PowerOnOrReset as u32, seen: log.head() }
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
        self.pending |= 1 << attention as u32;
    }

    pub(crate) fn remove(&mut self, attention: UnitAttention) {
        self.pending &= !(1 << attention as u32);
    }

    /// The condition to report now. A power on or a reset takes the lesser conditions with it (SAM-5 5.14.2).
    pub(crate) fn take(&mut self) -> Option<UnitAttention> {
        let first = *UnitAttention::ALL.get(self.pending.trailing_zeros() as usize)?;
        if (first as u8) < UnitAttention::NexusLoss as u8 {
            self.pending = 0;
        } else {
            self.remove(first);
        }
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_heard_once_in_order_of_priority_and_not_by_its_cause() {
        let log = AttentionLog::default();
        let mut mine = Attentions::of_new_nexus(&log);
        assert_eq!(mine.take(), Some(UnitAttention::PowerOnOrReset));
        assert!(mine.is_clear(&log));
        log.post(Some(NexusId(1)), UnitAttention::ModeParametersChanged);
        log.post(None, UnitAttention::CapacityChanged);
        let mut other = mine;
        assert!(!mine.is_clear(&log));
        mine.catch_up(NexusId(1), &log);
        other.catch_up(NexusId(2), &log);
        assert_eq!((mine.take(), mine.take()), (Some(UnitAttention::CapacityChanged), None));
        assert_eq!(other.take(), Some(UnitAttention::CapacityChanged));
        assert_eq!(other.take(), Some(UnitAttention::ModeParametersChanged));
        assert_eq!(other.take(), None);
        assert!(other.is_clear(&log));
    }

    #[test]
    fn a_reader_too_far_behind_hears_of_a_reset() {
        let log = AttentionLog::default();
        let mut mine = Attentions::of_new_nexus(&log);
        mine.take();
        for _ in 0..LOG + 5 {
            log.post(None, UnitAttention::CapacityChanged);
        }
        mine.catch_up(NexusId(1), &log);
        assert_eq!((mine.take(), mine.take()), (Some(UnitAttention::PowerOnOrReset), None));
    }

    #[test]
    fn priorities_are_the_positions() {
        for (index, attention) in UnitAttention::ALL.into_iter().enumerate() {
            assert_eq!(attention as usize, index);
        }
    }
}
