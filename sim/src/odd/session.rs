//! What uses the session: reads, writes and flushes, each held against the model, and what the session tells of its disk.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::Waker;

use initiator_core::application::{Application, Control, ControlAnswer, Event};
use initiator_core::command::{Command, Completion, Failure, Outcome};
use iscsi_memory::{Buf, Payload};

use iscsi_proto::time::Instant;
use scsi_proto::{BlockIo, CdbBuf, Lun, SenseKey, service_action};

use super::disk::{BLOCK, OddDisk};
use super::plan::{Comeback, Plan};
use crate::model::{Model, ReadId, WriteId, fill_block, first_value};
use crate::rng::Rng;
use crate::trace::Trace;
use crate::workload::Verdict;

#[derive(Debug)]
enum Doing {
    Read(ReadId),
    Write(WriteId),
    /// What the medium must hold when it is done.
    Flush(ReadId),
}

#[derive(Debug)]
struct UnderWay {
    doing: Doing,
    range: (u64, u64),
    abandoned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Work,
    /// The last reads, from this block on.
    Verify(u64),
    Flush,
    Leave,
    Gone,
}

/// The application of the session.
#[derive(Debug)]
pub(super) struct Uses {
    plan: Rc<Plan>,
    disk: Rc<RefCell<OddDisk>>,
    model: Model,
    rng: Rng,
    trace: Trace,
    verdict: Verdict,
    pub(super) guard: u32,
    stage: Stage,
    issued: u64,
    tokens: u64,
    under_way: BTreeMap<u64, UnderWay>,
    /// Blocks of a command that was just given up.
    follow: Option<(u64, u64)>,
    abandoned: Vec<u64>,
    given_up: Vec<WriteId>,
    take_lost: bool,
    /// A flush has ended without success: what it covered may be lost, and no later one is good.
    flush_failed: bool,
    /// When so many commands are completed, it takes note of what a flush may have lost.
    note_at: Option<u64>,
    /// Text requests that are to be sent, and those that are not answered yet.
    texts: (u32, u32),
    waker: Waker,
    pub(super) logins: u64,
    pub(super) completed: u64,
    pub(super) acknowledged: u64,
    /// Somebody has told that it is another disk.
    told_other: bool,
}

impl Uses {
    pub(super) fn new(
        plan: Rc<Plan>,
        disk: Rc<RefCell<OddDisk>>,
        seed: u64,
        (trace, verdict): (Trace, Verdict),
    ) -> Self {
        let blocks = disk.borrow().blocks();
        Self {
            plan,
            disk,
            model: Model::new(blocks, BLOCK, false),
            rng: Rng::new(seed, 5),
            trace,
            verdict,
            guard: 0,
            stage: Stage::Work,
            issued: 0,
            tokens: 0,
            under_way: BTreeMap::new(),
            follow: None,
            abandoned: Vec::new(),
            given_up: Vec::new(),
            take_lost: false,
            flush_failed: false,
            note_at: None,
            texts: (0, 0),
            waker: Waker::noop().clone(),
            logins: 0,
            completed: 0,
            acknowledged: 0,
            told_other: false,
        }
    }

    /// The session is over.
    pub(super) fn check_over(&mut self) {
        if let Some(token) = self.under_way.keys().next() {
            self.broken(format!("command {token} never completed, the session is over"));
        }
        let disk = self.disk.clone();
        // A target that is silent before it has told what it lost tells it to nobody.
        let untold = [Comeback::Forgetful, Comeback::Silent].iter().all(|how| self.plan.has(|other| other == *how));
        if !disk.borrow().is_other && !untold {
            let read = self.model.begin_read(0, self.model.len());
            let wrong = self.model.end_read(read, &disk.borrow().content).err();
            if let Some(wrong) = wrong {
                self.broken(format!("on the medium, {wrong}"));
            }
        }
    }

    fn broken(&self, what: String) {
        self.verdict.broken(what);
    }

    fn command(&mut self, cdb: CdbBuf, doing: Doing, range: (u64, u64)) -> Command {
        self.trace.event(format_args!("submits {} {doing:?} {range:?}", self.tokens));
        self.under_way.insert(self.tokens, UnderWay { doing, range, abandoned: false });
        let mut command = Command::new(self.tokens, Lun::ZERO, cdb);
        command.guard = Some(self.guard);
        command
    }

    fn read(&mut self, lba: u64, blocks: u64) -> Command {
        self.tokens += 1;
        let read = self.model.begin_read(lba, blocks);
        let mut command = self.command(BlockIo::new(lba, blocks as u32).read(), Doing::Read(read), (lba, blocks));
        command.data_in = Some(Payload::Buf(Buf::zeroed(blocks as usize * BLOCK)));
        command
    }

    /// WRITE SAME(32) with UNMAP, whose bit is that of FUA in other commands.
    fn write_same(&mut self, lba: u64, blocks: u64) -> Command {
        self.tokens += 1;
        let value = first_value(0, self.tokens);
        let mut buf = Buf::zeroed(BLOCK);
        fill_block(value, &mut buf);
        let write = self.model.begin_write(lba, blocks, |_| value);
        let io = BlockIo::new(lba, blocks as u32).with_flags(0x08);
        let cdb = io.to_cdb_32(service_action::WRITE_SAME_32).expect("a write");
        let mut command = self.command(cdb, Doing::Write(write), (lba, blocks));
        command.data_out = Some(Payload::Buf(buf));
        command
    }

    fn write(&mut self, lba: u64, blocks: u64) -> Command {
        if self.plan.sames > 0 && self.rng.permille(self.plan.sames) {
            return self.write_same(lba, blocks);
        }
        self.tokens += 1;
        let first = first_value(0, self.tokens);
        let mut buf = Buf::zeroed(blocks as usize * BLOCK);
        for (value, block) in (first..).zip(buf.chunks_mut(BLOCK)) {
            fill_block(value, block);
        }
        let write = self.model.begin_write(lba, blocks, |at| first + at);
        let mut command = self.command(BlockIo::new(lba, blocks as u32).write(), Doing::Write(write), (lba, blocks));
        command.data_out = Some(Payload::Buf(buf));
        command
    }

    fn flush_all(&mut self) -> Command {
        self.tokens += 1;
        let read = self.model.begin_read(0, self.model.len());
        self.command(BlockIo::new(0, 0).synchronize_cache(), Doing::Flush(read), (0, 0))
    }

    fn any(&mut self) -> Command {
        if let Some((lba, blocks)) = self.follow.take() {
            return self.write(lba, blocks);
        }
        let len = self.model.len();
        let blocks = self.rng.magnitude(1, self.plan.most_blocks.min(len));
        let space = if self.rng.permille(500) { (blocks * 2).min(len) } else { len };
        let lba = self.rng.below(space - blocks + 1);
        match self.rng.below(100) {
            0..=5 => self.flush_all(),
            6..=45 => self.read(lba, blocks),
            _ => self.write(lba, blocks),
        }
    }

    /// A command that has ended without an answer: may it have?
    fn check_failure(&self, failure: Failure, abandoned: bool) {
        let plan = &self.plan;
        let expected = match failure {
            Failure::Aborted => abandoned,
            Failure::TimedOut => plan.late.0 + plan.lost > 0 || plan.closes_window.is_some() || abandoned,
            Failure::NotSent(_) => plan.closes_window.is_some(),
            Failure::OtherDisk => self.told_other,
            Failure::SessionEnded => plan.has(|how| how == Comeback::Silent) || plan.leaves_for_good(),
            Failure::LostWrites => self.flush_failed || plan.late_errors > 0 || plan.may_lose(),
            _ => false,
        };
        if !expected {
            self.broken(format!("a command failed: {failure}"));
        }
    }

    /// Whether a command may end with this status.
    fn allows(&self, outcome: &Outcome, doing: &Doing, abandoned: bool) -> bool {
        let Some(sense) = outcome.sense else { return false };
        match sense.key {
            SenseKey::MediumError if sense.deferred => self.plan.late_errors > 0,
            SenseKey::MediumError => self.plan.failed_flushes > 0 && matches!(doing, Doing::Flush(_)),
            // What nobody waits for is not sent again.
            SenseKey::NotReady => self.plan.stops.is_some_and(|(_, starts)| abandoned || !starts),
            _ => false,
        }
    }

    fn settle(&mut self, UnderWay { doing, abandoned, .. }: UnderWay, completion: &Completion) -> Result<(), String> {
        let good = match &completion.result {
            Ok(outcome) if outcome.is_good() => true,
            Ok(outcome) if self.allows(outcome, &doing, abandoned) => false,
            Ok(outcome) => return Err(format!("a command ended with {outcome}")),
            Err(failure) => {
                self.check_failure(*failure, abandoned);
                false
            }
        };
        match doing {
            Doing::Read(read) if good => match &completion.data_in {
                Some(Payload::Buf(buf)) => self
                    .model
                    .end_read(read, &buf[..completion.data_in_len as usize])
                    .map_err(|wrong| wrong.to_string()),
                _ => Err("a read brought no data".into()),
            },
            Doing::Flush(read) if good => {
                let disk = self.disk.clone();
                let durable = &disk.borrow().durable;
                let told = self.model.len() as usize * BLOCK;
                self.model.end_read(read, &durable[..told]).map_err(|wrong| format!("flushed, {wrong}"))
            }
            Doing::Read(read) | Doing::Flush(read) => {
                self.flush_failed |= matches!(doing, Doing::Flush(_));
                self.model.forget(read);
                Ok(())
            }
            Doing::Write(write) if good && completion.short_out().is_none() => {
                self.given_up.iter().for_each(|older| self.model.supersede(*older, write));
                self.model.acknowledge(write);
                self.acknowledged += 1;
                Ok(())
            }
            Doing::Write(write) => {
                self.model.fail(write);
                Ok(())
            }
        }
    }
}

impl Application for Uses {
    fn register(&mut self, waker: &Waker) {
        self.waker.clone_from(waker);
    }

    fn next_command(&mut self, _now: Instant) -> Option<Command> {
        match self.stage {
            Stage::Work => {
                if self.under_way.len() >= self.plan.depth {
                    return None;
                }
                if self.issued == self.plan.operations {
                    if self.under_way.is_empty() {
                        let stops = self.plan.stops.is_some_and(|(_, starts)| !starts);
                        let ends = self.told_other || self.plan.closes_window.is_some() || stops;
                        self.stage = if ends { Stage::Leave } else { Stage::Verify(0) };
                        self.waker.wake_by_ref();
                    }
                    return None;
                }
                self.issued += 1;
                if !self.plan.slow_texts.is_zero() && self.rng.permille(50) {
                    self.texts.0 += 2;
                    self.waker.wake_by_ref();
                }
                if self.rng.permille(self.plan.abandons)
                    && let Some((token, under_way)) = self.under_way.iter().next_back()
                {
                    self.abandoned.push(*token);
                    self.follow = Some(under_way.range).filter(|(_, blocks)| *blocks > 0);
                }
                Some(self.any())
            }
            Stage::Verify(at) => {
                let blocks = (self.model.len() - at).min(32);
                let next = at + blocks;
                self.stage = if next == self.model.len() { Stage::Flush } else { Stage::Verify(next) };
                Some(self.read(at, blocks))
            }
            Stage::Flush => {
                self.stage = Stage::Leave;
                Some(self.flush_all())
            }
            Stage::Leave | Stage::Gone => None,
        }
    }

    fn next_control(&mut self) -> Option<Control> {
        if std::mem::take(&mut self.take_lost) {
            return Some(Control::TakeLost { id: 1, guard: self.guard });
        }
        if self.texts.0 > 0 {
            self.texts = (self.texts.0 - 1, self.texts.1 + 1);
            return Some(Control::Text { id: 2, text: b"SendTargets=\0".to_vec() });
        }
        if self.stage == Stage::Leave && self.under_way.is_empty() && self.texts.1 == 0 {
            self.stage = Stage::Gone;
            return Some(Control::Logout);
        }
        None
    }

    fn next_abandoned(&mut self) -> Option<u64> {
        let token = self.abandoned.pop()?;
        self.trace.event(format_args!("abandons {token}"));
        if let Some(under_way) = self.under_way.get_mut(&token) {
            under_way.abandoned = true;
            if let Doing::Write(write) = under_way.doing {
                self.model.give_up(write);
                self.given_up.push(write);
            }
        }
        Some(token)
    }

    fn complete(&mut self, completion: Completion, _now: Instant) {
        let token = completion.token;
        self.trace.event(format_args!("completes {token}: {:?} {:?}", completion.result, completion.short_out()));
        let Some(under_way) = self.under_way.remove(&token) else {
            return self.broken(format!("command {token} completed twice, or was never submitted"));
        };
        self.completed += 1;
        if let Err(what) = self.settle(under_way, &completion) {
            self.broken(format!("command {token}: {what}"));
        }
        if self.note_at.is_some_and(|at| at <= self.completed) {
            (self.note_at, self.take_lost) = (None, true);
            self.waker.wake_by_ref();
        }
        if self.under_way.is_empty() {
            self.waker.wake_by_ref();
        }
    }

    fn control_complete(&mut self, id: u32, answer: ControlAnswer) {
        self.trace.event(format_args!("{answer:?}"));
        if id == 2 {
            self.texts.1 -= 1;
            self.waker.wake_by_ref();
            if !matches!(answer, ControlAnswer::Text(_)) {
                self.broken(format!("a text request ends with {answer:?}, though the target answers them all"));
            }
            return;
        }
        let ControlAnswer::Lost(ranges) = answer else {
            return self.broken(format!("what is lost is answered by {answer:?}"));
        };
        let disk = self.disk.clone();
        let mut disk = disk.borrow_mut();
        if disk.is_other {
            return;
        }
        for lba in ranges.into_iter().flatten() {
            let start = lba as usize * BLOCK;
            disk.evict(lba);
            self.model.lose(lba, &disk.content[start..start + BLOCK]);
        }
    }

    fn event(&mut self, event: Event<'_>) {
        self.trace.event(format_args!("{event:?}"));
        match event {
            Event::LoggedIn(_) => self.logins += 1,
            Event::OtherDisk { .. } => {
                self.told_other = true;
                if !self.disk.borrow().is_other {
                    self.broken("the same disk is taken for another".into());
                }
            }
            Event::LostWrites { .. } => {
                let drops = self.plan.late_errors + self.plan.failed_flushes > 0;
                if !self.plan.may_lose() && !drops {
                    self.broken("it tells of lost writes where nothing was lost".into());
                }
                if drops {
                    self.note_at = Some(self.completed + self.rng.magnitude(1, 100));
                    return;
                }
                self.take_lost = true;
                self.waker.wake_by_ref();
            }
            Event::Resized { blocks, .. } => {
                let is = self.disk.borrow().blocks();
                if blocks != is {
                    self.broken(format!("it tells of {blocks} blocks where there are {is}"));
                }
                self.model.grow(blocks - self.model.len());
            }
            _ => {}
        }
    }
}
