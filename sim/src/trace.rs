//! What happened, as a hash that two runs of one seed must share, and as lines for a person.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iscsi_proto::time::Instant;

/// Lines kept for the report of a failure.
const KEPT: usize = 60;

/// The trace of one run, shared by all parts of its world.
#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    now: Instant,
    hash: u64,
    events: u64,
    print: bool,
    line: String,
    last: VecDeque<String>,
}

impl Trace {
    /// A trace that also prints each line, if `print`.
    #[must_use]
    pub fn new(print: bool) -> Self {
        let trace = Self::default();
        trace.inner().print = print;
        trace
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is `now`.
    pub fn at(&self, now: Instant) {
        self.inner().now = now;
    }

    /// What time it is.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.inner().now
    }

    /// Something happened.
    pub fn event(&self, what: fmt::Arguments<'_>) {
        let inner = &mut *self.inner();
        inner.line.clear();
        // Writing to a string does not fail.
        let _ = write!(inner.line, "{:?} {what}", inner.now);
        inner.events += 1;
        for byte in inner.line.bytes() {
            // FNV-1a.
            inner.hash = (inner.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if inner.print {
            println!("{}", inner.line);
        }
        if inner.last.len() == KEPT {
            inner.last.pop_front();
        }
        inner.last.push_back(inner.line.clone());
    }

    /// The hash of all events so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.inner().hash
    }

    /// How many events there were.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.inner().events
    }

    /// The last lines.
    #[must_use]
    pub fn last(&self) -> Vec<String> {
        self.inner().last.iter().cloned().collect()
    }
}
