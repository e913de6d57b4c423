//! Real time for the sans-IO machines.
//!
//! It is tokio's clock, which timers go by: where a runtime has stopped its time, machines and timers stand still
//! alike.

use std::sync::OnceLock;
use std::time::{Duration, Instant as StdInstant};

use iscsi_proto::time::Instant;
use tokio::time::Instant as TokioInstant;

/// Maps the machine's monotonic clock, as tokio tells it, to [`iscsi_proto::time::Instant`] and back.
///
/// ```
/// use iscsi_driver::Clock;
/// let clock = Clock::process();
/// let now = clock.now();
/// assert_eq!(clock.instant(clock.std_instant(now)), now);
/// assert!(Clock::process().now() >= now);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    epoch: StdInstant,
}

impl Clock {
    /// The clock whose epoch all of this process shares: its instants may be compared between threads.
    #[must_use]
    pub fn process() -> Self {
        static PROCESS: OnceLock<Clock> = OnceLock::new();
        *PROCESS.get_or_init(|| Self { epoch: StdInstant::now() })
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.instant(TokioInstant::now().into_std())
    }

    /// The machine's instant as ours; what lies before the epoch is the epoch.
    #[must_use]
    pub fn instant(&self, at: StdInstant) -> Instant {
        Instant::ZERO + at.saturating_duration_since(self.epoch)
    }

    /// Our instant as the machine's. What lies more than a year ahead comes back as a year from now: no timer waits
    /// that long.
    #[must_use]
    pub fn std_instant(&self, at: Instant) -> StdInstant {
        const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);
        let since = at - Instant::ZERO;
        let furthest = TokioInstant::now().into_std() + YEAR;
        self.epoch.checked_add(since).map_or(furthest, |at| at.min(furthest))
    }
}
