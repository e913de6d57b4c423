//! The operations on the disk, each held against the model.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use initiator_core::command::{Command, Failure, Outcome};
use initiator_core::multipath::{Kind, Operation, Verdict as Verdicts};
use iscsi_memory::{Buf, Payload};
use iscsi_proto::time::Instant;
use scsi_proto::{BlockIo, Lun, SenseKey, opcode};

use super::World;
use crate::model::{Model, Once, ReadId, Value, WriteId, fill_block, first_value};
use crate::odd::disk::{BLOCK, OddDisk};
use crate::odd::paths::PathsPlan;
use crate::rng::Rng;
use crate::workload::Verdict;

#[derive(Debug)]
enum Doing {
    Read(ReadId, Vec<u8>),
    Write(WriteId, u64),
    Compare(Compare),
    /// What the medium must hold when it is done.
    Flush(ReadId),
}

/// A COMPARE AND WRITE.
#[derive(Debug)]
struct Compare {
    read: ReadId,
    write: WriteId,
    expected: Vec<Value>,
    once: Vec<Once>,
    first: Value,
    /// The last answer was that the blocks hold something else.
    differs: bool,
}

#[derive(Debug)]
struct UnderWay {
    doing: Doing,
    range: (u64, u64),
    abandoned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Work,
    /// All paths are to be back.
    Settle(Instant),
    /// So many reads more, to see which paths are used.
    Spread(usize),
    /// The last reads, from this block on.
    Verify(u64),
    Flush,
    Leave,
    Over,
}

#[derive(Debug)]
pub(super) struct Work {
    plan: Rc<PathsPlan>,
    model: Model,
    rng: Rng,
    /// Which changes are made by COMPARE AND WRITE.
    atomic: Rng,
    verdict: Verdict,
    stage: Stage,
    under_way: BTreeMap<u64, UnderWay>,
    issued: u64,
    values: u64,
    next_at: Instant,
    pace: Duration,
    follow: Option<(u64, u64)>,
    given_up: Vec<WriteId>,
    last_flush: bool,
    pub(super) completed: u64,
    pub(super) acknowledged: u64,
}

/// How long a path may take to be back once nothing is wrong with it.
const BACK: Duration = Duration::from_secs(120);

impl Work {
    pub(super) fn new(plan: Rc<PathsPlan>, seed: u64, verdict: Verdict) -> Self {
        let last = plan.happenings.last().map_or(Duration::ZERO, |(at, _)| *at) + Duration::from_secs(1);
        Self {
            model: Model::new(plan.odd.blocks, BLOCK, false),
            rng: Rng::new(seed, 5),
            atomic: Rng::new(seed, 6),
            verdict,
            stage: Stage::Work,
            under_way: BTreeMap::new(),
            issued: 0,
            values: 0,
            next_at: Instant::ZERO,
            pace: last.mul_f64(2.0 / plan.odd.operations as f64),
            follow: None,
            given_up: Vec::new(),
            last_flush: false,
            completed: 0,
            acknowledged: 0,
            plan,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.stage >= Stage::Leave
    }

    pub(super) fn next(&self) -> Option<Instant> {
        match self.stage {
            Stage::Work if self.issued < self.plan.odd.operations && self.under_way.len() < self.plan.odd.depth => {
                Some(self.next_at)
            }
            Stage::Settle(until) => Some(until),
            _ => None,
        }
    }

    fn broken(&self, what: String) {
        self.verdict.broken(what);
    }

    pub(super) fn resized(&mut self, blocks: u64) {
        if blocks > self.model.len() {
            self.model.grow(blocks - self.model.len());
        }
    }

    pub(super) fn lose(&mut self, lba: u64, disk: &OddDisk) {
        let start = lba as usize * BLOCK;
        self.model.lose(lba, &disk.content[start..start + BLOCK]);
    }

    /// The command of an operation, as it goes by some path.
    pub(super) fn command(&self, operation: u64) -> Option<Command> {
        let UnderWay { doing, range: (lba, blocks), .. } = self.under_way.get(&operation)?;
        let io = BlockIo::new(*lba, *blocks as u32);
        Some(match doing {
            Doing::Read(..) => Command {
                data_in: Some(Payload::Buf(Buf::zeroed(*blocks as usize * BLOCK))),
                ..Command::new(operation, Lun::ZERO, io.read())
            },
            Doing::Write(_, first) => {
                let mut buf = Buf::zeroed(*blocks as usize * BLOCK);
                for (value, block) in (*first..).zip(buf.chunks_mut(BLOCK)) {
                    fill_block(value, block);
                }
                Command { data_out: Some(Payload::Buf(buf)), ..Command::new(operation, Lun::ZERO, io.write()) }
            }
            Doing::Compare(Compare { expected, first, .. }) => {
                let mut buf = Buf::zeroed(2 * *blocks as usize * BLOCK);
                for (value, block) in expected.iter().copied().chain(*first..).zip(buf.chunks_mut(BLOCK)) {
                    fill_block(value, block);
                }
                let cdb = io.to_cdb(opcode::COMPARE_AND_WRITE)?;
                Command { data_out: Some(Payload::Buf(buf)), ..Command::new(operation, Lun::ZERO, cdb) }
            }
            Doing::Flush(_) => Command::new(operation, Lun::ZERO, BlockIo::new(0, 0).synchronize_cache()),
        })
    }

    /// A read has brought data.
    pub(super) fn brought(&mut self, operation: u64, data: &[u8]) {
        if let Some(UnderWay { doing: Doing::Read(_, brought), .. }) = self.under_way.get_mut(&operation) {
            brought.clear();
            brought.extend_from_slice(data);
        }
    }

    /// A COMPARE AND WRITE has found something else, or has not come to that.
    pub(super) fn compared(&mut self, operation: u64, result: &Result<Outcome, Failure>) {
        if let Some(UnderWay { doing: Doing::Compare(compare), .. }) = self.under_way.get_mut(&operation) {
            let sense = result.as_ref().ok().and_then(|outcome| outcome.sense);
            compare.differs = sense.is_some_and(|sense| sense.key == SenseKey::Miscompare);
        }
    }

    /// An operation has ended. True when the disk says that it lost writes, which is to be taken note of.
    pub(super) fn end(&mut self, operation: u64, verdict: Verdicts, disk: &OddDisk) -> bool {
        let Some(UnderWay { doing, abandoned, .. }) = self.under_way.remove(&operation) else { return false };
        self.completed += 1;
        let lost = verdict == Verdicts::LostWrites;
        let expected = match verdict {
            Verdicts::Done => true,
            Verdicts::Abandoned => abandoned,
            Verdicts::LostWrites => self.plan.forgets(),
            // What is not to be done twice ends with its path.
            Verdicts::AsTold => self.plan.odd.late.0 > 0 || matches!(doing, Doing::Compare(_)),
            Verdicts::NoPath => false,
        };
        if !expected {
            self.broken(format!("operation {operation} ends with {verdict:?}"));
        }
        let settled = match (doing, verdict) {
            (Doing::Read(read, data), Verdicts::Done) => self.model.end_read(read, &data),
            (Doing::Flush(read), Verdicts::Done) => {
                let told = self.model.len() as usize * BLOCK;
                self.model.end_read(read, &disk.durable[..told])
            }
            (Doing::Read(read, _) | Doing::Flush(read), _) => {
                self.model.forget(read);
                Ok(())
            }
            (Doing::Write(write, _), Verdicts::Done) => {
                self.given_up.iter().for_each(|older| self.model.supersede(*older, write));
                self.model.acknowledge(write);
                self.acknowledged += 1;
                Ok(())
            }
            (Doing::Compare(Compare { read, write, expected, once, .. }), Verdicts::Done) => {
                self.given_up.iter().for_each(|older| self.model.supersede(*older, write));
                self.acknowledged += 1;
                let replaced = self.model.acknowledge_replacing(write, &expected, &once);
                replaced.and_then(|()| self.model.end_equal(read, &expected))
            }
            (Doing::Compare(Compare { read, write, expected, first, differs: true, .. }), Verdicts::AsTold) => {
                self.model.withdraw(write);
                let own = first..first + expected.len() as u64;
                self.model.end_different(read, &expected, |value| own.contains(&value))
            }
            (Doing::Compare(Compare { read, write, .. }), _) => {
                self.model.forget(read);
                self.give_up(write);
                Ok(())
            }
            (Doing::Write(write, _), _) => {
                // It may still land, but never over a later one.
                self.give_up(write);
                Ok(())
            }
        };
        if let Err(wrong) = settled {
            self.broken(format!("operation {operation}: {wrong}"));
        }
        lost
    }

    fn give_up(&mut self, write: WriteId) {
        if !self.given_up.contains(&write) {
            self.model.give_up(write);
            self.given_up.push(write);
        }
    }

    /// All is over.
    pub(super) fn check_over(&mut self, disk: &OddDisk) {
        let read = self.model.begin_read(0, self.model.len());
        if let Err(wrong) = self.model.end_read(read, &disk.content) {
            self.broken(format!("on the medium, {wrong}"));
        }
    }

    fn any(&mut self) -> (Kind, u64, u64) {
        let change = Kind::Change { repeatable: true };
        if let Some((lba, blocks)) = self.follow.take() {
            return (change, lba, blocks);
        }
        let len = self.model.len();
        let blocks = self.rng.magnitude(1, self.plan.odd.most_blocks.min(len));
        let space = if self.rng.permille(600) { (blocks * 2).min(len) } else { len };
        let lba = self.rng.below(space - blocks + 1);
        match self.rng.below(100) {
            0..=5 => (Kind::Flush, 0, 0),
            6..=40 => (Kind::Read, lba, blocks),
            _ if blocks <= 4 && self.atomic.permille(150) => (Kind::Change { repeatable: false }, lba, blocks),
            _ => (change, lba, blocks),
        }
    }

    fn compare(&mut self, lba: u64, blocks: u64) -> Doing {
        self.values += 1;
        let first = first_value(0, self.values);
        let model = &mut self.model;
        let mut expected: Vec<Value> = (lba..lba + blocks).map(|lba| model.likely(lba)).collect();
        if self.atomic.permille(200)
            && let Some(last) = expected.last_mut()
        {
            *last = first + blocks;
        }
        let once = model.once(lba, &expected);
        let read = model.begin_read(lba, blocks);
        let write = model.begin_write(lba, blocks, |at| first + at);
        Doing::Compare(Compare { read, write, expected, once, first, differs: false })
    }
}

impl World {
    fn submit(&mut self, (kind, lba, blocks): (Kind, u64, u64)) {
        let doing = match kind {
            Kind::Read => Doing::Read(self.work.model.begin_read(lba, blocks), Vec::new()),
            Kind::Flush => Doing::Flush(self.work.model.begin_read(0, self.work.model.len())),
            Kind::Change { repeatable: false } => self.work.compare(lba, blocks),
            Kind::Change { repeatable: true } => {
                self.work.values += 1;
                let first = first_value(0, self.work.values);
                Doing::Write(self.work.model.begin_write(lba, blocks, |at| first + at), first)
            }
        };
        let operation = self.paths.submit(Operation { kind, blocks: lba..lba + blocks }, self.now);
        self.trace.event(format_args!("submits {operation}: {doing:?} {lba}+{blocks}"));
        self.work.under_way.insert(operation, UnderWay { doing, range: (lba, blocks), abandoned: false });
    }

    /// Nobody waits for the last operation any more.
    fn abandon(&mut self) {
        let Some((operation, under_way)) = self.work.under_way.iter_mut().next_back() else { return };
        let operation = *operation;
        self.trace.event(format_args!("abandons {operation}"));
        self.work.follow = Some(under_way.range).filter(|(_, blocks)| *blocks > 0);
        if let Doing::Write(write, _) | Doing::Compare(Compare { write, .. }) = under_way.doing {
            under_way.abandoned = true;
            self.work.give_up(write);
        } else if let Some(UnderWay { doing: Doing::Read(read, _) | Doing::Flush(read), .. }) =
            self.work.under_way.remove(&operation)
        {
            self.work.model.forget(read);
        }
        self.paths.abandon(operation, self.now);
    }

    /// Goes on with the work.
    pub(super) fn work(&mut self) -> bool {
        let now = self.now;
        match self.work.stage {
            Stage::Work if self.work.issued == self.plan.odd.operations => {
                if !self.work.under_way.is_empty() || !self.happenings.is_empty() {
                    return false;
                }
                let still = self.ways.iter().map(|way| way.away_until.max(way.other_until)).max();
                let calm = still.unwrap_or(now).max(self.down_until).max(now);
                self.work.stage = Stage::Settle(calm + BACK);
                true
            }
            Stage::Work if self.work.under_way.len() < self.plan.odd.depth && self.work.next_at <= now => {
                self.work.issued += 1;
                let pace = self.work.pace.mul_f64(self.work.rng.below(1000) as f64 / 1000.0);
                self.work.next_at = now + pace;
                if self.work.rng.permille(self.plan.odd.abandons) {
                    self.abandon();
                }
                let any = self.work.any();
                self.submit(any);
                true
            }
            Stage::Settle(until) if until <= now => {
                for path in 0..self.ways.len() {
                    if !self.paths.is_up(path) {
                        self.verdict.broken(format!("path {path} does not come back"));
                    }
                }
                self.work.stage = Stage::Spread(16 * self.ways.len());
                true
            }
            Stage::Spread(0) if self.work.under_way.is_empty() => {
                self.check_spread();
                self.work.stage = Stage::Verify(0);
                true
            }
            Stage::Spread(left) if left > 0 && self.work.under_way.len() < 2 * self.ways.len() => {
                // The first ones hear of what has changed at ports that were idle.
                if left == 8 * self.ways.len() {
                    if !self.work.under_way.is_empty() {
                        return false;
                    }
                    self.ways.iter_mut().for_each(|way| way.used = false);
                }
                self.work.stage = Stage::Spread(left - 1);
                self.submit((Kind::Read, 0, 1));
                true
            }
            Stage::Verify(at) if self.work.under_way.is_empty() => {
                let blocks = (self.work.model.len() - at).min(32);
                let next = at + blocks;
                self.work.stage = if next == self.work.model.len() { Stage::Flush } else { Stage::Verify(next) };
                self.submit((Kind::Read, at, blocks));
                true
            }
            Stage::Flush if self.work.under_way.is_empty() => {
                if std::mem::replace(&mut self.work.last_flush, true) {
                    self.work.stage = Stage::Leave;
                    (0..self.ways.len()).for_each(|path| self.leave(path));
                } else {
                    self.submit((Kind::Flush, 0, 0));
                }
                true
            }
            Stage::Leave if self.ways.iter().all(|way| way.line.is_none()) => {
                self.work.stage = Stage::Over;
                true
            }
            _ => false,
        }
    }

    /// All paths of the best state are used again, and no other but where those have failed an operation.
    fn check_spread(&self) {
        let state = |path: usize| {
            let group = self.plan.groups[path] as usize;
            self.disk.groups.get(group - 1).copied().unwrap_or(0)
        };
        let best = (0..self.ways.len()).map(state).min().unwrap_or(0);
        for (path, way) in self.ways.iter().enumerate() {
            let is_best = state(path) == best;
            if way.used != is_best && (is_best || self.plan.odd.late.0 == 0) {
                let how = if way.used { "is used" } else { "is not used" };
                self.verdict.broken(format!("path {path}, whose state is {}, {how}: the best is {best}", state(path)));
            }
        }
    }
}
