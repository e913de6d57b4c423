//! What work costs: virtual time, which passes for nobody else meanwhile.

use std::future::Future as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

/// What the machine of the target takes for things. Initiators are on machines of their own: their work costs nothing.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// A system call, or an operation of the store.
    pub call: Duration,
    /// Each KiB that it moves.
    pub kib: Duration,
}

impl Costs {
    /// A call that moves so many bytes.
    #[must_use]
    pub fn of(&self, bytes: usize) -> Duration {
        self.call + self.kib.mul_f64(bytes as f64 / 1024.0)
    }
}

/// Counts the work of the target.
#[derive(Debug, Clone)]
pub struct Meter {
    costs: Costs,
    done: Arc<AtomicU64>,
}

impl Meter {
    /// Nothing has been done.
    #[must_use]
    pub fn new(costs: Costs) -> Self {
        Self { costs, done: Arc::default() }
    }

    /// What things cost.
    #[must_use]
    pub fn costs(&self) -> Costs {
        self.costs
    }

    /// Does work that moves so many bytes: the clock moves on while the caller has the thread.
    pub fn spend(&self, bytes: usize) {
        let cost = self.costs.of(bytes);
        self.done.fetch_add(cost.as_nanos() as u64, Ordering::Relaxed);
        // Its first poll moves the clock; what it waits for is that others get their turn, which they shall not.
        let _ = pin!(tokio::time::advance(cost)).poll(&mut Context::from_waker(Waker::noop()));
    }

    /// The time that was spent on work.
    #[must_use]
    pub fn done(&self) -> Duration {
        Duration::from_nanos(self.done.load(Ordering::Relaxed))
    }
}
