//! The application: tasks that read, write and flush a disk of the library's, each operation held against the model.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use initiator_core::command::Failure;
use initiator_core::{Disk, Error, Session, SessionConfig};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::host::Host;
use super::plan::LibraryPlan;
use crate::driven::{Fault, Log};
use crate::model::{Model, WriteId, fill_block, first_value};
use crate::odd::disk::BLOCK;
use crate::rng::Rng;
use crate::world::Report;

/// No call takes longer, whatever happens.
const MOST_TIME: Duration = Duration::from_secs(1200);
/// How exactly the time limit of an operation is kept to.
const EXACTLY: Duration = Duration::from_millis(2);

/// What is done with the disk.
#[derive(Debug)]
pub(super) struct Work {
    plan: Rc<LibraryPlan>,
    host: Host,
    log: Log,
    fault: Fault,
    model: RefCell<Model>,
    /// Commands so far.
    command: Cell<u64>,
    /// Calls that have ended, and writes that were acknowledged.
    counts: Cell<(u64, u64)>,
    /// Writes that their callers do not wait for any more.
    given_up: RefCell<Vec<WriteId>>,
}

impl Work {
    pub(super) fn new(plan: &Rc<LibraryPlan>, host: &Host, log: &Log, fault: &Fault) -> Rc<Self> {
        Rc::new(Self {
            plan: plan.clone(),
            host: host.clone(),
            log: log.clone(),
            fault: fault.clone(),
            model: RefCell::new(Model::new(plan.odd.blocks, BLOCK, false)),
            command: Cell::default(),
            counts: Cell::default(),
            given_up: RefCell::default(),
        })
    }

    pub(super) fn report(&self, logins: u64, time: Duration) -> Report {
        let (commands, writes) = self.counts.get();
        Report { commands, writes, logins, cuts: self.plan.troubles.len() as u64, time, ..Report::default() }
    }

    /// Logs in, runs the tasks to their ends, looks at the whole disk, and logs out.
    pub(super) async fn live(self: Rc<Self>, config: SessionConfig, mut rng: Rng) {
        let session = match timeout(MOST_TIME, Session::connect_by(self.host.clone(), config)).await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => return self.fault.found(format!("no login: {error}")),
            Err(_) => return self.fault.found("a login does not end".into()),
        };
        match timeout(MOST_TIME, session.disk(0)).await {
            Ok(Ok(disk)) => {
                let disk = if self.plan.replays { disk.with_replay(64 << 20) } else { disk };
                let mut tasks = JoinSet::new();
                for _ in 0..self.plan.tasks {
                    tasks.spawn_local(self.clone().task(disk.clone(), Rng::new(rng.u64(), 0)));
                }
                while let Some(ended) = tasks.join_next().await {
                    if let Err(error) = ended {
                        self.fault.found(format!("a task ended with {error}"));
                    }
                }
                self.clone().look(disk).await;
            }
            Ok(Err(error)) => self.fault.found(format!("the disk is not opened: {error}")),
            Err(_) => self.fault.found("opening the disk does not end".into()),
        }
        if timeout(MOST_TIME, session.logout()).await.is_err() {
            self.fault.found("the logout does not end".into());
        }
        let read = self.model.borrow_mut().begin_read(0, self.plan.odd.blocks);
        let held = self.host.with_disk(|disk| self.model.borrow_mut().end_read(read, &disk.content));
        if let Err(wrong) = held {
            self.fault.found(format!("on the medium, {wrong}"));
        }
    }

    async fn task(self: Rc<Self>, disk: Disk, mut rng: Rng) {
        for _ in 0..self.plan.operations {
            if rng.permille(300) {
                sleep(Duration::from_micros(rng.magnitude(100, 500_000))).await;
            }
            let limited = rng.permille(self.plan.limited);
            let handle = if limited { disk.with_timeout(self.plan.limit) } else { disk.clone() };
            let drops = rng.permille(self.plan.dropped.0);
            let within = if drops { self.plan.dropped.1.mul_f64(rng.below(1000) as f64 / 1000.0) } else { MOST_TIME };
            let begun = Instant::now();
            let is_over = timeout(within, self.operation(&handle, limited, &mut rng)).await.is_ok();
            if !is_over && !drops {
                return self.fault.found("a call does not end".into());
            }
            if limited && begun.elapsed() > self.plan.limit + EXACTLY {
                let (took, limit) = (begun.elapsed(), self.plan.limit);
                self.fault.found(format!("an operation takes {took:?}, and has {limit:?}"));
            }
            let (calls, writes) = self.counts.get();
            self.counts.set((calls + 1, writes));
        }
    }

    /// In the end every block is read.
    async fn look(self: Rc<Self>, disk: Disk) {
        let most = 32.min(self.plan.odd.blocks);
        for lba in (0..self.plan.odd.blocks).step_by(32) {
            let blocks = most.min(self.plan.odd.blocks - lba);
            if timeout(MOST_TIME, self.read(&disk, lba, blocks, false)).await.is_err() {
                return self.fault.found("the last reads do not end".into());
            }
        }
        if timeout(MOST_TIME, self.flush(&disk, false)).await.is_err() {
            self.fault.found("the last flush does not end".into());
        }
    }

    async fn operation(&self, disk: &Disk, limited: bool, rng: &mut Rng) {
        let blocks = rng.magnitude(1, self.plan.odd.most_blocks);
        let space = if rng.permille(500) { (blocks * 2).min(self.plan.odd.blocks) } else { self.plan.odd.blocks };
        let lba = rng.below(space - blocks + 1);
        match rng.below(100) {
            0..5 => self.flush(disk, limited).await,
            5..40 => self.read(disk, lba, blocks, limited).await,
            _ => self.write(disk, lba, blocks, limited).await,
        }
    }

    /// An error: one that was asked for, or a fault.
    fn failed(&self, what: &str, error: &Error, limited: bool) {
        self.log.event(format_args!("{what}: {error}"));
        if !(limited && matches!(error, Error::TimedOut { .. })) {
            self.fault.found(format!("{what} failed: {error}"));
        }
    }

    async fn read(&self, disk: &Disk, lba: u64, blocks: u64, limited: bool) {
        let read = self.model.borrow_mut().begin_read(lba, blocks);
        let mut data = vec![0; blocks as usize * BLOCK];
        match disk.read(lba * BLOCK as u64, &mut data).await {
            Ok(()) => {
                if let Err(wrong) = self.model.borrow_mut().end_read(read, &data) {
                    self.fault.found(format!("a read: {wrong}"));
                }
            }
            Err(error) => {
                self.model.borrow_mut().forget(read);
                self.failed("a read", &error, limited);
            }
        }
    }

    async fn flush(&self, disk: &Disk, limited: bool) {
        let read = self.model.borrow_mut().begin_read(0, self.plan.odd.blocks);
        match disk.flush().await {
            Ok(()) => {
                let durable = self.host.with_disk(|disk| disk.durable.clone());
                if let Err(wrong) = self.model.borrow_mut().end_read(read, &durable) {
                    self.fault.found(format!("flushed, {wrong}"));
                }
            }
            Err(error) => {
                self.model.borrow_mut().forget(read);
                self.failed("a flush", &error, limited);
            }
        }
    }

    async fn write(&self, disk: &Disk, lba: u64, blocks: u64, limited: bool) {
        let command = self.command.get() + 1;
        self.command.set(command);
        let first = first_value(0, command);
        let mut data = vec![0; blocks as usize * BLOCK];
        for (value, block) in (first..).zip(data.chunks_mut(BLOCK)) {
            fill_block(value, block);
        }
        let write = self.model.borrow_mut().begin_write(lba, blocks, |at| first + at);
        // Whether its future is dropped or it ends with its time limit: nobody waits for it any more.
        let mut fate = Fate { work: self, write: Some((write, command)) };
        match disk.write(lba * BLOCK as u64, &data).await {
            Ok(()) => {
                fate.write = None;
                let model = &mut *self.model.borrow_mut();
                self.given_up.borrow().iter().for_each(|older| model.supersede(*older, write));
                model.acknowledge(write);
                let (calls, writes) = self.counts.get();
                self.counts.set((calls, writes + 1));
            }
            Err(Error::Command { failure: Failure::NotSent(_), .. }) if self.plan.odd.closes_window.is_some() => {}
            Err(error) => self.failed("a write", &error, limited),
        }
    }
}

/// What is told of a write whose future is dropped, or that has failed.
struct Fate<'a> {
    work: &'a Work,
    write: Option<(WriteId, u64)>,
}

impl Drop for Fate<'_> {
    fn drop(&mut self) {
        if let Some((write, command)) = self.write.take() {
            self.work.log.event(format_args!("write {command} is given up"));
            self.work.host.dropped(command);
            self.work.model.borrow_mut().give_up(write);
            self.work.given_up.borrow_mut().push(write);
        }
    }
}
