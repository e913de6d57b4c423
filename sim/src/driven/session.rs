//! What applications do with a session of the real initiator, and what has to come of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use initiator_core::command::Failure;
use initiator_core::{Disk, Error, Session, SessionConfig, Transfer};
use scsi_proto::{BlockIo, opcode};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep, timeout};

use super::plan::SessionPlan;
use super::{Fault, Log};
use crate::model::{Model, WriteId, fill_block, first_value};
use crate::rng::Rng;

const BLOCK: usize = 512;
/// Of the operations: a big write.
const BULK: u64 = 86;
/// No call takes longer, whatever happens: the limits of the initiator, one after the other, are shorter.
const MOST_TIME: Duration = Duration::from_secs(1200);

/// What all sessions of a run share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// What is known of the disk.
    pub model: Rc<RefCell<Model>>,
    /// Blocks behind those of the model.
    pub room: u64,
    /// What happened.
    pub log: Log,
    /// What is wrong.
    pub fault: Fault,
    /// Calls that have ended, and writes that were acknowledged.
    pub counts: Rc<Cell<(u64, u64)>>,
    /// Logins may fail, and what must not be repeated: streams are cut, or servers stop.
    pub troubled: bool,
}

/// One session, in all its tasks.
#[derive(Debug, Clone)]
struct Uses {
    number: u64,
    plan: SessionPlan,
    shared: Shared,
    /// Commands so far.
    command: Rc<Cell<u64>>,
    /// Writes whose future was dropped.
    given_up: Rc<RefCell<Vec<WriteId>>>,
}

/// Logs in, runs the tasks to their ends, and logs out.
pub async fn live(
    number: u64,
    plan: SessionPlan,
    shared: Shared,
    connector: impl initiator_core::Connector + Clone,
    config: SessionConfig,
    seed: u64,
) {
    let mut rng = Rng::new(seed, 100 + number);
    let begun = Instant::now();
    let session = loop {
        let connect = Session::connect_by(connector.clone(), config.clone());
        // A login is given up in the middle now and then.
        if plan.dropped.0 > 0 && rng.permille(300) {
            let _ = timeout(some_of(&mut rng, plan.dropped.1), connect).await;
            continue;
        }
        match timeout(MOST_TIME, connect).await {
            Ok(Ok(session)) => break session,
            Ok(Err(error)) => {
                shared.log.event(format_args!("session {number}: no login: {error}"));
                if !shared.troubled {
                    return shared.fault.found(format!("session {number} does not log in: {error}"));
                }
                if begun.elapsed() > MOST_TIME {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
            Err(_) => return shared.fault.found(format!("a login of session {number} does not end")),
        }
    };
    shared.log.event(format_args!("session {number} is logged in"));
    let uses = Uses { number, plan, shared, command: Rc::default(), given_up: Rc::default() };
    match timeout(MOST_TIME, session.disk(0)).await {
        Ok(Ok(disk)) => {
            let mut tasks = JoinSet::new();
            for task in 0..plan.tasks {
                let rng = Rng::new(seed, (number << 8) + 1000 + task);
                tasks.spawn_local(uses.clone().task(session.clone(), disk.clone(), rng));
            }
            drop(disk);
            while let Some(ended) = tasks.join_next().await {
                if let Err(error) = ended {
                    uses.shared.fault.found(format!("a task of session {number} ended with {error}"));
                }
            }
        }
        Ok(Err(error)) => uses.failed("opening the disk", &error),
        Err(_) => uses.shared.fault.found(format!("session {number}: opening the disk does not end")),
    }
    if rng.permille(plan.forgotten) {
        return drop(session);
    }
    if timeout(MOST_TIME, session.logout()).await.is_err() {
        uses.shared.fault.found(format!("the logout of session {number} does not end"));
    }
}

fn some_of(rng: &mut Rng, most: Duration) -> Duration {
    most.mul_f64(rng.below(1000) as f64 / 1000.0)
}

impl Uses {
    async fn task(self, session: Session, disk: Disk, mut rng: Rng) {
        for _ in 0..self.plan.operations {
            if rng.permille(self.plan.pauses.0) {
                sleep(some_of(&mut rng, self.plan.pauses.1)).await;
            }
            let drops = rng.permille(self.plan.dropped.0);
            let limit = if drops { some_of(&mut rng, self.plan.dropped.1) } else { MOST_TIME };
            let begun = Instant::now();
            let command = self.command.get();
            self.command.set(command + 1);
            let operation = self.operation(&session, &disk, command, &mut rng);
            let is_over = timeout(limit, operation).await.is_ok();
            if !is_over && !drops {
                return self.shared.fault.found(format!("a call of session {} does not end", self.number));
            }
            let (calls, writes) = self.shared.counts.get();
            self.shared.counts.set((calls + 1, writes));
            let (number, how) = (self.number, if is_over { "over" } else { "dropped" });
            self.shared.log.event(format_args!("session {number}: {command} is {how} after {:?}", begun.elapsed()));
            if rng.permille(100) {
                yield_now().await;
            }
        }
    }

    /// An error. Recovery is to hide what happens to connections, but to what must not be done twice.
    fn failed(&self, what: &str, error: &Error) {
        self.shared.log.event(format_args!("session {}: {what}: {error}", self.number));
        let once = matches!(error, Error::Command { failure: Failure::NotRepeatable, .. });
        if !(self.shared.troubled && once) {
            self.shared.fault.found(format!("session {}: {what} failed: {error}", self.number));
        }
    }

    async fn operation(&self, session: &Session, disk: &Disk, command: u64, rng: &mut Rng) {
        let kept = self.shared.model.borrow().len();
        let first = first_value(self.number, command);
        let lba = rng.below(kept);
        let blocks = rng.magnitude(1, kept - lba);
        let at = lba * BLOCK as u64;
        let room = self.shared.room * BLOCK as u64;
        let len = rng.magnitude(1, (self.plan.big / BLOCK as u64).min(self.shared.room)) * BLOCK as u64;
        let far = kept * BLOCK as u64 + rng.below((room - len) / BLOCK as u64 + 1) * BLOCK as u64;
        let what = if rng.permille(self.plan.bulk) { BULK } else { rng.below(100) };
        let number = self.number;
        self.shared.log.event(format_args!("session {number}: {command} does {what} at {lba}, {blocks} blocks"));
        match what {
            0..30 => self.read(disk, lba, blocks).await,
            30..60 => {
                let mut data = vec![0; blocks as usize * BLOCK];
                for (value, block) in (first..).zip(data.chunks_mut(BLOCK)) {
                    fill_block(value, block);
                }
                self.write(lba, blocks, |at| first + at, "write", disk.write(at, &data)).await;
            }
            60..67 => {
                let mut block = vec![0; BLOCK];
                fill_block(first, &mut block);
                let same = disk.write_same(at, blocks * BLOCK as u64, &block);
                self.write(lba, blocks, |_| first, "write_same", same).await;
            }
            67..73 => self.write(lba, blocks, |_| 0, "unmap", disk.unmap(at, blocks * BLOCK as u64)).await,
            73..79 => self.compare_and_write(disk, lba, first).await,
            79..82 => self.plain("flush", disk.flush().await),
            82..86 => {
                let mut data = vec![0; len as usize];
                self.plain("big read", disk.read(far, &mut data).await);
            }
            BULK..90 => self.plain("big write", disk.write(far, &vec![7; len as usize]).await),
            90..94 => self.plain("big write_same", disk.write_same(far, len, &[7; BLOCK]).await),
            94..96 => self.plain("big unmap", disk.unmap(far, len).await),
            96..98 => {
                let io = BlockIo::new(far / BLOCK as u64, (len / BLOCK as u64) as u32);
                let Some(verify) = io.to_cdb(opcode::VERIFY_16) else { return };
                match session.command(0, verify.as_bytes(), Transfer::None).await {
                    Ok(answer) if answer.status == 2 && !self.shared.troubled => {
                        self.shared.fault.found(format!("VERIFY ended with {answer:?}"));
                    }
                    Ok(_) => {}
                    Err(error) => self.failed("verify", &error),
                }
            }
            _ => self.plain("lba_status", disk.lba_status(far).await.map(|_| ())),
        }
    }

    fn plain(&self, what: &str, result: Result<(), Error>) {
        if let Err(error) = result {
            self.failed(what, &error);
        }
    }

    async fn read(&self, disk: &Disk, lba: u64, blocks: u64) {
        let read = self.shared.model.borrow_mut().begin_read(lba, blocks);
        // A read whose future is dropped is not asked for any more.
        let mut data = vec![0; blocks as usize * BLOCK];
        let result = disk.read(lba * BLOCK as u64, &mut data).await;
        let model = &mut *self.shared.model.borrow_mut();
        match result {
            Ok(()) => {
                if let Err(wrong) = model.end_read(read, &data) {
                    self.shared.fault.found(format!("session {} reads: {wrong}", self.number));
                }
            }
            Err(error) => {
                model.forget(read);
                self.failed("read", &error);
            }
        }
    }

    /// A write, of which nobody knows what has become of it when it fails.
    async fn write(
        &self,
        lba: u64,
        blocks: u64,
        value: impl Fn(u64) -> u64,
        what: &str,
        result: impl Future<Output = Result<(), Error>>,
    ) {
        let write = self.shared.model.borrow_mut().begin_write(lba, blocks, value);
        let mut fate = Fate { uses: self, write: Some(write) };
        let result = result.await;
        fate.write = None;
        match result {
            Ok(()) => self.acknowledged(write, |model| {
                model.acknowledge(write);
                Ok(())
            }),
            Err(error) => self.failed(what, &error),
        }
    }

    fn acknowledged(&self, write: WriteId, done: impl FnOnce(&mut Model) -> Result<(), crate::model::Wrong>) {
        let model = &mut *self.shared.model.borrow_mut();
        for older in self.given_up.borrow().iter() {
            model.supersede(*older, write);
        }
        if let Err(wrong) = done(model) {
            self.shared.fault.found(format!("session {}: {wrong}", self.number));
        }
        let (calls, writes) = self.shared.counts.get();
        self.shared.counts.set((calls, writes + 1));
    }

    async fn compare_and_write(&self, disk: &Disk, lba: u64, first: u64) {
        let (expected, once, read, write) = {
            let model = &mut *self.shared.model.borrow_mut();
            let expected = [model.likely(lba)];
            let once = model.once(lba, &expected);
            let read = model.begin_read(lba, 1);
            (expected, once, read, model.begin_write(lba, 1, |_| first))
        };
        let mut fate = Fate { uses: self, write: Some(write) };
        let (mut old, mut new) = ([0; BLOCK], [0; BLOCK]);
        fill_block(expected[0], &mut old);
        fill_block(first, &mut new);
        let result = disk.compare_and_write(lba * BLOCK as u64, &old, &new).await;
        fate.write = None;
        match result {
            Ok(()) => self.acknowledged(write, |model| {
                model.acknowledge_replacing(write, &expected, &once)?;
                model.end_equal(read, &expected)
            }),
            Err(Error::Miscompare(_)) => {
                let model = &mut *self.shared.model.borrow_mut();
                model.withdraw(write);
                if let Err(wrong) = model.end_different(read, &expected, |value| value == first) {
                    self.shared.fault.found(format!("session {} compared as different: {wrong}", self.number));
                }
            }
            Err(error) => {
                self.shared.model.borrow_mut().forget(read);
                self.failed("compare_and_write", &error);
            }
        }
    }
}

/// What is told of a write whose future is dropped.
struct Fate<'a> {
    uses: &'a Uses,
    write: Option<WriteId>,
}

impl Drop for Fate<'_> {
    fn drop(&mut self) {
        if let Some(write) = self.write.take() {
            self.uses.shared.model.borrow_mut().give_up(write);
            self.uses.given_up.borrow_mut().push(write);
        }
    }
}
