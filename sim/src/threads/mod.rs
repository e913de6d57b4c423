//! Threads: what several of them do at one time, one turn after the other, as the seed says.
//!
//! Elsewhere the simulator drives everything on one thread. Here the product's own threads, and those that use it, are
//! threads of the system that take turns ([`iscsi_memory::turns`]): one runs until it waits, or comes to a point where
//! threads meet: in the midst of a copy within a [`iscsi_memory::Region`], and in what is simulated here, the file
//! system and the stores. Which one is next is a decision of the seed (`schedule`), and so is the run.
//!
//! Each seed lives three small worlds, one after the other:
//! - `file`: the file store, its pool of threads and a file whose calls do their work piece by piece and are held
//!   back for long: no block is torn, nothing that was acknowledged is lost, and a queue whose calls are held back does
//!   not stop another one.
//! - `memory`: a region that several threads read and write: no block is torn.
//! - `unfinished`: sessions whose connection has gone before their operations at the store have ended, and workers and
//!   logins that look after them at the same time: each of them ends.

mod file;
mod memory;
mod schedule;
mod unfinished;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};
use std::time::Duration;

use iscsi_memory::turns::{self, JoinHandle};

use crate::driven::Fault;
use crate::model::{Model, ReadId, WriteId, fill_block, first_value};
use crate::rng::Rng;
use crate::scenario::Kind;
use crate::trace::Trace;
use crate::transport::Transport;
use crate::world::{Failure, Report};
use schedule::{MAIN, Schedule};

/// Runs a seed, and prints its trace if asked for.
///
/// # Errors
/// What it found.
pub fn run(seed: u64, print: bool) -> Result<Report, Failure> {
    let trace = Trace::new(print);
    crate::world::caught((seed, Kind::Threads, Transport::Tcp), &trace, || live(seed, &trace))
}

/// What a world of threads has to do with.
struct World {
    rng: Rng,
    trace: Trace,
    fault: Fault,
}

fn live(seed: u64, trace: &Trace) -> Result<Report, String> {
    let mut report = Report::default();
    let worlds: [fn(&mut World) -> Report; 3] = [file::live, memory::live, unfinished::live];
    for (part, live) in (1..).zip(worlds) {
        let schedule = Schedule::new(Rng::new(seed, 2 * part));
        let mut world = World { rng: Rng::new(seed, 2 * part + 1), trace: trace.clone(), fault: Fault::default() };
        let one = turns::take_part(schedule.clone(), MAIN, || live(&mut world));
        let (count, hash) = schedule.turns();
        trace.event(format_args!("{count} turns, {hash:016x}"));
        if let Some(what) = world.fault.get() {
            return Err(what);
        }
        report.commands += one.commands;
        report.writes += one.writes;
        report.time += one.time;
    }
    Ok(report)
}

/// Something happens now.
fn event(trace: &Trace, what: std::fmt::Arguments<'_>) {
    trace.at(iscsi_proto::time::Instant::ZERO + time());
    trace.event(what);
}

fn time() -> Duration {
    turns::time().unwrap_or_default()
}

/// Lets this much time pass.
fn sleep(time_to: Duration) {
    let until = time() + time_to;
    while time() < until {
        turns::wait(0, Some(until));
    }
}

/// # Panics
/// If the system has no thread left.
fn spawn(name: &str, deed: impl FnOnce() + Send + 'static) -> JoinHandle {
    turns::spawn(name, deed).expect("a thread")
}

/// Waits for their end; a panic of one of them is a fault.
fn join(threads: Vec<JoinHandle>, fault: &Fault) {
    for thread in threads {
        if !thread.join() {
            fault.found("a thread has panicked".into());
        }
    }
}

/// A waker of one thread.
#[derive(Debug, Default)]
struct Bell(AtomicBool);

impl Bell {
    fn name(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(self.clone())
    }

    /// Waits until it was rung since the last time, or the time comes. Whether it was rung.
    fn wait(&self, until: Option<Duration>) -> bool {
        while !self.0.swap(false, Ordering::Relaxed) {
            if until.is_some_and(|until| time() >= until) {
                return false;
            }
            turns::wait(self.name(), until);
        }
        true
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
        turns::wake(self.name(), true);
    }
}

/// What blocks may hold, for all threads. Nobody passes his turn while he has it.
#[derive(Debug, Clone)]
struct SharedModel {
    model: Arc<Mutex<Model>>,
    block_size: usize,
}

impl SharedModel {
    fn new(blocks: u64, block_size: usize) -> Self {
        Self { model: Arc::new(Mutex::new(Model::new(blocks, block_size, false))), block_size }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Model) -> T) -> T {
        look(&mut self.model.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin_read(&self, lba: u64, blocks: u64) -> ReadId {
        self.with(|model| model.begin_read(lba, blocks))
    }

    /// # Errors
    /// What is wrong with the data.
    fn end_read(&self, read: ReadId, data: &[u8]) -> Result<(), String> {
        self.with(|model| model.end_read(read, data)).map_err(|wrong| wrong.to_string())
    }

    /// A write begins: what it writes.
    fn begin_write(&self, (lba, blocks): (u64, u64), session: u64, command: u64) -> (WriteId, Vec<u8>) {
        let first = first_value(session, command);
        let mut data = vec![0; blocks as usize * self.block_size];
        for (value, block) in (first..).zip(data.chunks_mut(self.block_size)) {
            fill_block(value, block);
        }
        (self.with(|model| model.begin_write(lba, blocks, |at| first + at)), data)
    }

    /// Blocks are zeroed.
    fn begin_zero(&self, (lba, blocks): (u64, u64)) -> WriteId {
        self.with(|model| model.begin_write(lba, blocks, |_| 0))
    }

    fn end_write(&self, write: WriteId) {
        self.with(|model| model.acknowledge(write));
    }
}
