//! A session driven by its own workload: for load generators, copies and checks that want the engine without a hop
//! between tasks.

use std::task::Waker;
use std::time::Duration;

use iscsi_memory::{Buf, Payload};

use iscsi_proto::time::Instant;
use scsi_proto::{BlockIo, Lun, opcode};

use super::connector::System;
use super::events::{Reporter, SessionEvent};
use super::runner::run;
use super::session::plan;
use crate::application::{Application, Control, Event};
use crate::command::{Command, Completion, Failure, Outcome, Short};
use crate::config::SessionConfig;
use crate::engine::Engine;
use crate::error::Error;
use crate::identity::{Difference, KnownDisk};

/// Which way a [`BlockRequest`] goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the disk into the buffer.
    Read,
    /// From the buffer to the disk.
    Write,
}

/// A read or write.
#[derive(Debug)]
pub struct BlockRequest {
    /// The workload's name for it; comes back in the completion.
    pub token: u32,
    /// LUN.
    pub lun: u16,
    /// First block.
    pub lba: u64,
    /// Number of blocks.
    pub blocks: u32,
    /// Which way.
    pub direction: Direction,
    /// The data: exactly the blocks' bytes.
    pub buf: Buf,
}

/// A finished read or write.
#[derive(Debug)]
pub struct BlockCompletion {
    /// The request's token.
    pub token: u32,
    /// Its buffer.
    pub buf: Buf,
    /// From the moment it was handed over to its status.
    pub latency: Duration,
    /// How it went.
    pub result: Result<(), Error>,
}

/// What a workload says when it is asked for work.
#[derive(Debug)]
pub enum Next {
    /// Do this.
    Request(BlockRequest),
    /// Nothing until a request completes.
    Wait,
    /// Nothing any more: log out once everything has completed.
    Finished,
}

/// What keeps a session busy. It is called on the session's own thread, between receiving and sending: it must not
/// block.
pub trait Workload {
    /// The next request. Asked until it says [`Next::Wait`] or the session's tables are full, and again after each
    /// completion.
    fn next(&mut self, now: Instant) -> Next;

    /// A request is done. The buffer may go into the next one.
    fn complete(&mut self, completion: BlockCompletion, now: Instant);

    /// Something happened in the session. The end of the session is no event here: [`run_load`] returns with it.
    fn event(&mut self, event: SessionEvent) {
        let _ = event;
    }
}

/// A request under way.
#[derive(Debug, Clone, Copy)]
struct Pending {
    token: u32,
    lun: u16,
    direction: Direction,
    since: Instant,
}

/// The workload as the session's application. A command's token is its place in the table.
#[derive(Debug)]
struct Load<W> {
    workload: W,
    pending: Vec<Option<Pending>>,
    free: Vec<u32>,
    /// The guards of the disks that the workload means.
    guards: Vec<(Lun, u32)>,
    differences: Vec<(Lun, Difference)>,
    reporter: Reporter,
    finished: bool,
    logged_out: bool,
}

impl<W> Load<W> {
    /// Why a request is not done.
    #[cold]
    fn error(&self, pending: &Pending, result: Result<Outcome, Failure>, short: Option<Short>) -> Error {
        let opcode = if pending.direction == Direction::Read { opcode::READ_10 } else { opcode::WRITE_10 };
        let lun = pending.lun;
        match (result, short) {
            (Ok(outcome), Some(short)) if outcome.is_good() => Error::Short { opcode, lun, short },
            (Ok(outcome), _) => Error::Scsi { opcode, lun, outcome },
            (Err(Failure::LostWrites), _) => Error::LostWrites { lun },
            (Err(failure), _) => match self.differences.iter().find(|(other, _)| other.number() == Some(lun)) {
                Some((_, difference)) if failure == Failure::OtherDisk => {
                    Error::OtherDisk { lun, difference: difference.clone() }
                }
                _ => Error::Command { opcode, lun, failure },
            },
        }
    }
}

impl<W: Workload> Application for Load<W> {
    /// Completions are what moves it on, and they come on this very thread.
    fn register(&mut self, _waker: &Waker) {}

    fn next_command(&mut self, now: Instant) -> Option<Command> {
        if self.finished {
            return None;
        }
        let place = *self.free.last()?;
        let request = match self.workload.next(now) {
            Next::Request(request) => request,
            Next::Wait => return None,
            Next::Finished => {
                self.finished = true;
                return None;
            }
        };
        self.free.pop();
        let BlockRequest { token, lun, lba, blocks, direction, buf } = request;
        self.pending[place as usize] = Some(Pending { token, lun, direction, since: now });
        let io = BlockIo::new(lba, blocks);
        let lun = Lun::new(lun).unwrap_or_default();
        // A guard's LUN is spelled as the target lists it.
        let found = self.guards.iter().find(|(other, _)| *other == lun);
        let (lun, guard) = found.map_or((lun, None), |(lun, guard)| (*lun, Some(*guard)));
        let command = |cdb| Command { guard, ..Command::new(place.into(), lun, cdb) };
        Some(match direction {
            Direction::Read => Command { data_in: Some(Payload::Buf(buf)), ..command(io.read()) },
            Direction::Write => Command { data_out: Some(Payload::Buf(buf)), ..command(io.write()) },
        })
    }

    fn event(&mut self, event: Event<'_>) {
        self.reporter.report(&event, |event| self.workload.event(event));
        if let Event::OtherDisk { lun, difference, .. } = event {
            self.differences.push((lun, difference.clone()));
        }
    }

    fn next_control(&mut self) -> Option<Control> {
        let now = self.finished && !std::mem::replace(&mut self.logged_out, self.finished);
        now.then_some(Control::Logout)
    }

    fn complete(&mut self, completion: Completion, now: Instant) {
        let place = completion.token as usize;
        let Some(pending) = self.pending.get_mut(place).and_then(Option::take) else { return };
        self.free.push(place as u32);
        let latency = now - pending.since;
        let short = match pending.direction {
            Direction::Read => completion.short_in(),
            Direction::Write => completion.short_out(),
        };
        let buf = match (completion.data_in, completion.data_out) {
            (Some(Payload::Buf(buf)), _) | (_, Some(Payload::Buf(buf))) => buf,
            _ => Buf::zeroed(0),
        };
        let result = match (completion.result, short) {
            // An error is large, and most requests have none.
            (Ok(outcome), None) if outcome.is_good() => {
                return self
                    .workload
                    .complete(BlockCompletion { token: pending.token, buf, latency, result: Ok(()) }, now);
            }
            (result, short) => Err(self.error(&pending, result, short)),
        };
        self.workload.complete(BlockCompletion { token: pending.token, buf, latency, result }, now);
    }
}

/// Connects, runs a workload to its end on the caller's thread, and logs out. Recovery is that of any session. Nothing
/// is allocated per request.
///
/// `disks` are those that the workload means: what it asks for their LUNs reaches no other disk, and ends with
/// [`Error::OtherDisk`] or [`Error::LostWrites`] as it would on a [`Disk`](crate::Disk).
///
/// The workload comes back with the result, every request of it completed.
///
/// # Errors
/// See [`Error`].
pub async fn run_load<W: Workload>(config: SessionConfig, disks: &[KnownDisk], workload: W) -> (W, Result<(), Error>) {
    let plan = match plan(&config, &System) {
        Ok(plan) => plan,
        Err(error) => return (workload, Err(error)),
    };
    let size = u32::from(config.limits.commands.clamp(1, 4096));
    let load = Load {
        workload,
        pending: (0..size).map(|_| None).collect(),
        free: (0..size).rev().collect(),
        guards: Vec::new(),
        differences: Vec::new(),
        reporter: Reporter::default(),
        finished: false,
        logged_out: false,
    };
    let mut engine = Engine::new(load, config.timeouts, config.limits, plan.seed);
    for disk in disks {
        let (lun, guard) = (disk.lun, engine.guard(disk.clone()));
        engine.app().guards.push((lun, guard));
    }
    let (mut engine, result) =
        run(&plan, &System, engine, None, |load, carrier| load.reporter.carried_by(&carrier)).await;
    engine.app().finished = true;
    let load = engine.into_app(iscsi_driver::Clock::process().now());
    (load.workload, result)
}
