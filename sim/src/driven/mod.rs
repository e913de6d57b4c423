//! The real drivers under the simulator: server, sessions and disks over tokio, on one thread, with a clock that stands
//! still unless work is done or everybody waits.
//!
//! Elsewhere the simulator drives connections itself. Here `iscsi-driver` does, below the server's workers
//! (`target_core::server`, on a `LocalSet`) and below `initiator_core::Session`; what is simulated are the streams
//! ([`wire`]), the store ([`store`]), what work costs ([`work`]), random bytes, and time.
//!
//! One seed makes one run: tokio's schedulers for one thread take tasks in the order in which they were woken, its
//! clock is paused, no source of events is left that is not simulated, and `select!` in the product is `biased`.
//! `sim/tests/driven.rs` runs seeds twice and compares their traces. Not here, for they are threads: several workers
//! that run at the same time (here they are tasks that take turns), the file store's pool, applications on other
//! threads than their session. Worlds of threads that take turns ([`crate::threads`]) and named tests stand for those.
//!
//! What is looked at, beside the data ([`crate::model`]): every call ends; one connection does not hold up another for
//! longer than its passes may take ([`raw`]); nothing is left at the end, neither tasks nor streams nor sessions nor
//! operations of the store.

pub mod plan;
pub mod raw;
pub mod session;
pub mod store;
pub mod wire;
pub mod work;
mod world;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use iscsi_proto::time::Instant;

use crate::scenario::Kind;
use crate::trace::Trace;
use crate::transport::Transport;
use crate::world::{Failure, Report};

/// The first thing that was wrong, shared by all parts of a run.
#[derive(Debug, Clone, Default)]
pub struct Fault(Arc<Mutex<Option<String>>>);

impl Fault {
    /// Something is wrong.
    pub fn found(&self, what: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }

    /// What it was.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What happened, and when after the begin.
#[derive(Debug, Clone)]
pub struct Log {
    trace: Trace,
    begin: tokio::time::Instant,
}

impl Log {
    /// Of a run that begins then.
    #[must_use]
    pub fn new(trace: &Trace, begin: tokio::time::Instant) -> Self {
        Self { trace: trace.clone(), begin }
    }

    /// Something happened.
    pub fn event(&self, what: fmt::Arguments<'_>) {
        self.trace.at(Instant::ZERO + self.begin.elapsed());
        self.trace.event(what);
    }
}

/// Runs a seed, and prints its trace if asked for.
///
/// # Errors
/// What it found.
pub fn run(seed: u64, print: bool) -> Result<Report, Failure> {
    let trace = Trace::new(print);
    crate::world::caught((seed, Kind::Driven, Transport::Tcp), &trace, || world::live(seed, &trace))
}
