//! What sessions count: relaxed atomics that a session brings up to date once per wake, not once per command.

use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;

use iscsi_proto::datamover::MoverReport;
use portable_atomic::AtomicU64;

/// What one session did in one wake; added to its [`SessionCounters`] at the wake's end.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) other: u64,
    pub(crate) errors: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    /// Commands in progress times the nanoseconds they were.
    pub(crate) busy_nanos: u64,
}

/// One session's counters, read by anyone at any time.
#[derive(Debug, Default)]
pub struct SessionCounters {
    reads: AtomicU64,
    writes: AtomicU64,
    other: AtomicU64,
    errors: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    busy_nanos: AtomicU64,
}

impl SessionCounters {
    /// One writer, so load and store do instead of a locked addition.
    pub(crate) fn add(&self, tally: &Tally) {
        let add = |counter: &AtomicU64, by: u64| {
            if by != 0 {
                counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
            }
        };
        add(&self.reads, tally.reads);
        add(&self.writes, tally.writes);
        add(&self.other, tally.other);
        add(&self.errors, tally.errors);
        add(&self.read_bytes, tally.read_bytes);
        add(&self.written_bytes, tally.written_bytes);
        add(&self.busy_nanos, tally.busy_nanos);
    }

    /// The counters as they are now.
    #[must_use]
    pub fn snapshot(&self) -> SessionStatistics {
        SessionStatistics {
            reads: self.reads.load(Relaxed),
            writes: self.writes.load(Relaxed),
            other: self.other.load(Relaxed),
            errors: self.errors.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            busy_nanos: self.busy_nanos.load(Relaxed),
        }
    }
}

/// The last report of a session's mover, read by anyone at any time.
#[derive(Debug, Default)]
pub(crate) struct MoverGauge {
    /// One above the read depth; 0 as long as there is no report.
    depth: AtomicU64,
    copied: AtomicU64,
    written: AtomicU64,
    read: AtomicU64,
    registered: AtomicU64,
}

impl MoverGauge {
    pub(crate) fn store(&self, report: &MoverReport) {
        self.copied.store(report.copied, Relaxed);
        self.written.store(report.written, Relaxed);
        self.read.store(report.read, Relaxed);
        self.registered.store(report.registered, Relaxed);
        self.depth.store(u64::from(report.read_depth) + 1, Relaxed);
    }

    pub(crate) fn read(&self) -> Option<MoverReport> {
        Some(MoverReport {
            read_depth: self.depth.load(Relaxed).checked_sub(1)?.try_into().unwrap_or(u16::MAX),
            copied: self.copied.load(Relaxed),
            written: self.written.load(Relaxed),
            read: self.read.load(Relaxed),
            registered: self.registered.load(Relaxed),
        })
    }
}

/// What a session, or several, did up to one moment. All figures count from the session's login on.
///
/// ```
/// use target_core::stats::SessionStatistics;
/// let before = SessionStatistics::default();
/// let now = SessionStatistics { reads: 10, busy_nanos: 20_000, ..before };
/// assert_eq!(now.since(&before).mean_latency().as_micros(), 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionStatistics {
    /// Commands that moved data to the initiator and are done.
    pub reads: u64,
    /// Commands that moved data from the initiator and are done.
    pub writes: u64,
    /// Commands without data that are done.
    pub other: u64,
    /// Commands that ended with another status than GOOD.
    pub errors: u64,
    /// Bytes sent to the initiator as data of commands.
    pub read_bytes: u64,
    /// Bytes fetched from the initiator as data of commands.
    pub written_bytes: u64,
    /// The number of commands in progress, integrated over time in nanoseconds; divided by the commands done it is
    /// their mean latency (Little's law).
    pub busy_nanos: u64,
}

impl SessionStatistics {
    /// Commands done.
    #[must_use]
    pub const fn commands(&self) -> u64 {
        self.reads + self.writes + self.other
    }

    /// What was done after `earlier`, a reading of the same counters.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            reads: self.reads.wrapping_sub(earlier.reads),
            writes: self.writes.wrapping_sub(earlier.writes),
            other: self.other.wrapping_sub(earlier.other),
            errors: self.errors.wrapping_sub(earlier.errors),
            read_bytes: self.read_bytes.wrapping_sub(earlier.read_bytes),
            written_bytes: self.written_bytes.wrapping_sub(earlier.written_bytes),
            busy_nanos: self.busy_nanos.wrapping_sub(earlier.busy_nanos),
        }
    }

    /// The sum of both.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            other: self.other + other.other,
            errors: self.errors + other.errors,
            read_bytes: self.read_bytes + other.read_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
            busy_nanos: self.busy_nanos + other.busy_nanos,
        }
    }

    /// Mean time from a command's arrival to its response, by Little's law, to within the length of a wake. Zero
    /// without commands.
    #[must_use]
    pub const fn mean_latency(&self) -> Duration {
        match self.busy_nanos.checked_div(self.commands()) {
            Some(nanos) => Duration::from_nanos(nanos),
            None => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mover_is_reported_as_it_was_last() {
        let gauge = MoverGauge::default();
        assert_eq!(gauge.read(), None);
        let report = MoverReport { read_depth: 0, copied: 1, written: 2, read: 3, registered: 4 };
        gauge.store(&report);
        assert_eq!(gauge.read(), Some(report));
        assert_eq!(report.plus(&MoverReport { read_depth: 7, ..report }).read_depth, 7);
    }

    #[test]
    fn tallies_add_up() {
        let counters = SessionCounters::default();
        let tally = Tally { reads: 2, read_bytes: 1024, busy_nanos: 300, errors: 1, other: 1, ..Tally::default() };
        counters.add(&tally);
        counters.add(&tally);
        let sum = counters.snapshot();
        assert_eq!((sum.commands(), sum.errors, sum.read_bytes), (6, 2, 2048));
        assert_eq!(sum.mean_latency(), Duration::from_nanos(100));
        assert_eq!(sum.since(&sum), SessionStatistics::default());
    }
}
