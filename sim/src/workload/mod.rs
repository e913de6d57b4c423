//! What uses a session: any operations, checked against the model as they complete.

mod attentions;
mod checks;
mod operations;
mod plan;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use initiator_core::application::{Application, Control, ControlAnswer, Event};
use initiator_core::command::{Command, Completion, Failure, Outcome, Repeat};
use iscsi_proto::parameters::Digest;
use iscsi_proto::pdu::{TaskAttribute, TaskFunction, TaskResponse};
use iscsi_proto::time::Instant;
use scsi_proto::AdditionalSense;

pub use attentions::{Attentions, Happened};
pub use plan::{Verdict, WorkPlan};

use crate::disk::SharedDisk;
use crate::model::{FlushId, Once, ReadId, Value, WriteId, command_of, first_value};
use crate::rng::Rng;
use crate::told::Told;
use crate::trace::Trace;
use attentions::Heard;

/// What each of the last reads may take, whatever commands are given otherwise. A connection may have fallen silent before
/// the calm, and keepalive takes up to ten seconds to find out; the read is then repeated on the next one, and has to
/// succeed.
const LAST_READ: Duration = Duration::from_secs(60);

#[derive(Debug)]
enum Kind {
    Read(ReadId),
    Write(WriteId),
    /// A write with FUA.
    Durable(WriteId),
    Compare {
        read: ReadId,
        write: WriteId,
        expected: Vec<Value>,
        once: Vec<Once>,
        first: Value,
    },
    Flush(FlushId),
    Other,
}

#[derive(Debug)]
struct Operation {
    kind: Kind,
    out: Option<usize>,
    into: Option<(usize, usize)>,
    name: &'static str,
    /// First block and blocks, of those that have them.
    range: (u64, u64),
}

/// An operation that was handed in.
#[derive(Debug)]
struct Submitted {
    operation: Operation,
    /// Which of the disks.
    disk: usize,
    /// By which of its LUNs.
    lun: u16,
    at: Instant,
    /// In which login.
    login: u32,
    /// Flushes of the disk that had failed by then.
    dropped: u64,
}

/// A write that failed, of which something may still be under way in the target.
#[derive(Debug)]
struct Failed {
    disk: SharedDisk,
    write: WriteId,
    /// Since when nobody sends anything of it.
    at: Instant,
}

/// What sessions of one I_T nexus share.
#[derive(Debug, Clone, Default)]
pub struct NexusShare(Rc<RefCell<Vec<Failed>>>, Rc<RefCell<FlushesHeard>>);

/// Of how many flushes that failed an I_T nexus has heard, by the number of the disk; and how often that had crashed when
/// it came to it.
type FlushesHeard = BTreeMap<u16, (u64, u64)>;

/// A request that is no command.
#[derive(Debug)]
struct Asked {
    name: &'static str,
    function: Option<(TaskFunction, usize)>,
    at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Work,
    Rest,
    Verify { disk: usize, next: u64 },
    Leave,
    Gone,
}

/// The application of one session.
#[derive(Debug)]
pub struct Workload {
    name: &'static str,
    /// Its number among the sessions of the world.
    number: u64,
    disks: Vec<SharedDisk>,
    /// The disk of the next operation.
    chosen: usize,
    plan: WorkPlan,
    rng: Rng,
    trace: Trace,
    verdict: Verdict,
    stage: Stage,
    issued: u64,
    next_at: Instant,
    next_token: u64,
    under_way: BTreeMap<u64, Submitted>,
    abandoned: Vec<u64>,
    /// The disk and the blocks of a command that was just given up.
    follow: Option<(usize, u64, u64)>,
    controls: BTreeMap<u32, Asked>,
    control_wanted: Option<(Control, usize)>,
    next_control: u32,
    /// Functions whose connection was lost before they were answered, and when they were asked for.
    unanswered: Vec<(TaskFunction, Instant)>,
    /// When it asked last for something that is no command.
    asked_at: Instant,
    /// Failed writes of which something may still be under way in the target: until the connection is known to live on, or the next login.
    fresh: Vec<Failed>,
    limbo: NexusShare,
    given_up: Vec<(usize, WriteId)>,
    heard: Heard,
    attentions: Attentions,
    /// What operators hear.
    told: Told,
    /// When the connection that stands, or logs in, began.
    connected_at: Instant,
    waker: Waker,
    digests: bool,
    logins: u32,
    completed: u64,
    acknowledged: u64,
}

impl Workload {
    /// A workload on some disks.
    #[must_use]
    pub fn new(
        (name, number): (&'static str, u64),
        disks: Vec<SharedDisk>,
        plan: WorkPlan,
        rng: Rng,
        (trace, verdict): (Trace, Verdict),
        (limbo, attentions, told): (NexusShare, Attentions, Told),
    ) -> Self {
        Self {
            name,
            number,
            disks,
            chosen: 0,
            plan,
            rng,
            trace,
            verdict,
            stage: Stage::Work,
            issued: 0,
            next_at: Instant::ZERO,
            next_token: 0,
            under_way: BTreeMap::new(),
            abandoned: Vec::new(),
            follow: None,
            controls: BTreeMap::new(),
            control_wanted: None,
            next_control: 0,
            unanswered: Vec::new(),
            asked_at: Instant::ZERO,
            fresh: Vec::new(),
            limbo,
            given_up: Vec::new(),
            heard: Heard::of(attentions.clone(), number),
            attentions,
            told,
            connected_at: Instant::ZERO,
            waker: Waker::noop().clone(),
            digests: false,
            logins: 0,
            completed: 0,
            acknowledged: 0,
        }
    }

    fn disk(&self) -> SharedDisk {
        self.disks[self.chosen].clone()
    }

    /// Takes a disk for the next operation.
    fn choose(&mut self) {
        if self.disks.len() > 1 {
            self.chosen = self.rng.below(self.disks.len() as u64) as usize;
        }
    }

    /// A connection begins its login.
    pub fn connects(&mut self) {
        self.connected_at = self.trace.now();
    }

    /// The functions that were not answered by the connection that has ended, and when they were asked for.
    pub fn take_unanswered(&mut self) -> Vec<(TaskFunction, Instant)> {
        std::mem::take(&mut self.unanswered)
    }

    /// When it has something to do by itself, if it has.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        (self.stage == Stage::Work && self.under_way.len() < self.plan.depth).then_some(self.next_at)
    }

    /// Whether its operations are all done.
    #[must_use]
    pub fn is_resting(&self) -> bool {
        matches!(self.stage, Stage::Rest | Stage::Gone) && self.under_way.is_empty() && self.controls.is_empty()
    }

    /// Whether it has said good-bye.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Leave | Stage::Gone)
    }

    /// Commands completed, and writes acknowledged.
    #[must_use]
    pub fn done(&self) -> (u64, u64) {
        (self.completed, self.acknowledged)
    }

    /// How often it was logged in.
    #[must_use]
    pub fn logins(&self) -> u32 {
        self.logins
    }

    /// Does no more operations of its own.
    pub fn rest(&mut self) {
        if matches!(self.stage, Stage::Work | Stage::Leave) {
            self.stage = Stage::Rest;
        }
    }

    /// Reads every block and checks it.
    pub fn verify(&mut self) {
        self.stage = Stage::Verify { disk: 0, next: 0 };
        self.control_wanted = None;
        self.abandoned.clear();
        self.waker.wake_by_ref();
    }

    /// Logs out.
    pub fn leave(&mut self) {
        self.stage = Stage::Leave;
        self.waker.wake_by_ref();
    }

    /// The session is over: nothing may be left of it.
    pub fn check_over(&self) {
        if let Some((token, Submitted { operation, .. })) = self.under_way.iter().next() {
            self.broken(&format!("{} {token} never completed, the session is over", operation.name));
        }
        if let Some((id, Asked { name, .. })) = self.controls.iter().next() {
            self.broken(&format!("{name}, {id}, was never answered, the session is over"));
        }
    }

    /// Looks at what has happened since. A command that another's function has found at the store is known to be ended
    /// by that only where links are calm, and where the session itself had no reason to end it.
    fn look_for_attentions(&mut self) {
        let (number, is_calm, asked_at, asks) =
            (self.number, self.plan.function_within.is_some(), self.asked_at, !self.controls.is_empty());
        let now = self.trace.now();
        let (under_way, patience) = (&self.under_way, self.plan.patience);
        self.heard.look(|command, came| {
            let mut own = under_way.iter().filter(|(token, _)| command_of(first_value(number, **token)) == command);
            let waits = own.any(|(_, submitted)| now - submitted.at < patience);
            is_calm && waits && !asks && asked_at < *came
        });
    }

    fn broken(&self, what: &str) {
        self.verdict.broken(format!("{}: {what}", self.name));
    }
}

impl Application for Workload {
    fn register(&mut self, waker: &Waker) {
        self.waker.clone_from(waker);
        // The connection lives: what failed on it is over in the target too.
        for failed in self.fresh.drain(..) {
            failed.disk.model.borrow_mut().fail(failed.write);
        }
    }

    fn next_command(&mut self, now: Instant) -> Option<Command> {
        match self.stage {
            Stage::Work => {
                if now < self.next_at || self.under_way.len() >= self.plan.depth {
                    return None;
                }
                if self.issued == self.plan.operations {
                    self.stage = if self.plan.leaves { Stage::Leave } else { Stage::Rest };
                    self.waker.wake_by_ref();
                    return None;
                }
                self.issued += 1;
                if !self.plan.think.is_zero() && self.rng.permille(500) {
                    self.next_at = now + self.plan.think.mul_f64(self.rng.below(1000) as f64 / 1000.0);
                }
                if self.rng.permille(self.plan.functions) {
                    self.next_control += 1;
                    let function = self.rng.pick(self.plan.function_kinds);
                    self.choose();
                    let lun = self.any_lun();
                    let control = Control::TaskManagement { id: self.next_control, function, lun };
                    self.control_wanted = Some((control, self.chosen));
                } else if self.rng.permille(self.plan.texts) {
                    self.next_control += 1;
                    let control = Control::Text { id: self.next_control, text: b"SendTargets=\0".to_vec() };
                    self.control_wanted = Some((control, 0));
                }
                if self.rng.permille(self.plan.abandons) && !self.under_way.is_empty() {
                    let at = self.rng.below(self.under_way.len() as u64) as usize;
                    if let Some((token, submitted)) = self.under_way.iter().nth(at) {
                        self.abandoned.push(*token);
                        let (lba, blocks) = submitted.operation.range;
                        self.follow = (blocks > 0).then_some((submitted.disk, lba, blocks));
                        self.waker.wake_by_ref();
                        return None;
                    }
                }
                if self.control_wanted.is_some() || !self.abandoned.is_empty() {
                    self.waker.wake_by_ref();
                }
                Some(self.any())
            }
            Stage::Verify { disk, next } => {
                let Some(of) = self.disks.get(disk) else {
                    if self.under_way.is_empty() {
                        self.stage = Stage::Gone;
                    }
                    return None;
                };
                let len = of.model.borrow().len();
                let blocks = (len - next).min(64);
                self.chosen = disk;
                let all = next + blocks == len;
                self.stage = Stage::Verify { disk: disk + usize::from(all), next: if all { 0 } else { next + blocks } };
                let mut command = self.read(next, blocks);
                command.repeat = Repeat::Always;
                command.timeout = Some(LAST_READ);
                command.attribute = TaskAttribute::Simple;
                Some(command)
            }
            Stage::Rest | Stage::Leave | Stage::Gone => None,
        }
    }

    fn next_control(&mut self) -> Option<Control> {
        if self.stage == Stage::Leave {
            self.stage = Stage::Gone;
            return Some(Control::Logout);
        }
        let (control, disk) = self.control_wanted.take()?;
        let (id, name, function) = match &control {
            Control::TaskManagement { id, function, .. } => {
                self.trace.event(format_args!("{} asks for {function:?}", self.name));
                (*id, "a task management function", Some((*function, disk)))
            }
            Control::Text { id, .. } => (*id, "a text request", None),
            Control::Logout
            | Control::Guard { .. }
            | Control::Unguard { .. }
            | Control::Doubt { .. }
            | Control::AskLost { .. }
            | Control::TakeLost { .. } => {
                return Some(control);
            }
        };
        self.asked_at = self.trace.now();
        self.controls.insert(id, Asked { name, function, at: self.trace.now() });
        Some(control)
    }

    fn next_abandoned(&mut self) -> Option<u64> {
        let token = self.abandoned.pop()?;
        self.trace.event(format_args!("{} abandons {token}", self.name));
        // A command that changes blocks is not to land over a later one from here on.
        if let Some(Submitted { operation, disk, .. }) = self.under_way.get(&token)
            && let Kind::Write(write) | Kind::Durable(write) | Kind::Compare { write, .. } = operation.kind
        {
            self.disks[*disk].model.borrow_mut().give_up(write);
            self.given_up.push((*disk, write));
        }
        Some(token)
    }

    fn complete(&mut self, completion: Completion, _now: Instant) {
        let token = completion.token;
        let Some(Submitted { operation, disk, lun, at, login, dropped }) = self.under_way.remove(&token) else {
            return self.broken(&format!("command {token} completed twice, or was never submitted"));
        };
        self.completed += 1;
        self.look_for_attentions();
        self.heard.answered(command_of(first_value(self.number, token)), self.trace.now());
        let name = operation.name;
        self.trace.event(format_args!("{} completes {token} {name}: {:?}", self.name, completion.result));
        self.check_buffers(&operation, &completion);
        self.check_time(&operation, at);
        let disk = self.disks[disk].clone();
        let (failed_flushes, is_dropped) = disk.look_for_dropped();
        match &completion.result {
            Ok(outcome) => {
                self.check_status(&operation, &disk, outcome);
                self.check_flush(&operation, &disk, outcome, dropped..failed_flushes);
                self.check_terminated(token, &operation, &disk, outcome);
                if login == self.logins {
                    self.check_attentions(&operation, (&disk, lun), at, outcome);
                }
            }
            Err(failure) => self.check_failure(&operation, *failure),
        }
        let unreadable = |outcome: &Outcome| {
            is_dropped && outcome.sense.is_some_and(|sense| sense.code == AdditionalSense::UNRECOVERED_READ_ERROR)
        };
        if matches!(self.stage, Stage::Verify { .. })
            && !completion.result.as_ref().is_ok_and(|outcome| outcome.is_good() || unreadable(outcome))
        {
            self.broken(&format!(
                "{name} {token} failed with nothing left that could disturb it: {:?}",
                completion.result
            ));
        }
        if let Err(wrong) = self.settle_data(operation, &disk, &completion) {
            self.broken(&format!("{name} {token}: {wrong}"));
        }
        if self.stage == (Stage::Verify { disk: self.disks.len(), next: 0 }) && self.under_way.is_empty() {
            self.stage = Stage::Gone;
        }
    }

    fn control_complete(&mut self, id: u32, answer: ControlAnswer) {
        self.trace.event(format_args!("{} control {id}: {answer:?}", self.name));
        let Some(asked) = self.controls.remove(&id) else {
            return self.broken(&format!("control request {id} was answered twice, or never asked"));
        };
        if let Some((function, disk)) = asked.function {
            if let ControlAnswer::TaskManagement(response) = answer {
                self.check_function_time(function, disk, asked.at);
                match response {
                    TaskResponse::Complete => self.check_function(function, disk, asked.at),
                    TaskResponse::Rejected => self.check_rejection(function, disk, asked.at),
                    _ => {}
                }
            }
            self.check_answer(function, &answer, asked.at);
            if answer == ControlAnswer::Failed(Failure::ConnectionLost) {
                self.unanswered.push((function, asked.at));
            }
        }
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::LoggedIn(summary) => {
                self.logins += 1;
                self.heard.logged_in(self.trace.now());
                // What failed before a nexus came for the first time is not its business.
                for disk in &self.disks {
                    let known = &mut *self.limbo.1.borrow_mut();
                    let now = (disk.crashes.get(), disk.has_dropped().0);
                    let entry = known.entry(disk.number).or_insert(now);
                    if entry.0 != now.0 {
                        *entry = now;
                    }
                }
                self.digests = summary.parameters.data_digest == Digest::Crc32c;
                self.trace.event(format_args!("{} logged in: {:?}", self.name, summary.parameters));
                if self.plan.untrusted {
                    return;
                }
                // The login has reinstated the session: nothing of the old one is left (RFC 7143 6.3.5), whoever had it.
                // What another of this nexus has lost since this connection began may be of a session after that.
                let began = self.connected_at;
                let mut limbo = self.limbo.0.borrow_mut();
                for failed in limbo.extract_if(.., |failed| failed.at <= began).chain(self.fresh.drain(..)) {
                    failed.disk.model.borrow_mut().fail(failed.write);
                }
            }
            Event::Disconnected(end) => {
                self.trace.event(format_args!("{} disconnected: {end}", self.name));
                let now = self.trace.now();
                for failed in &mut self.fresh {
                    failed.at = now;
                }
                self.limbo.0.borrow_mut().append(&mut self.fresh);
            }
            Event::OtherDisk { difference, .. } => {
                self.trace.event(format_args!("{} other disk: {difference}", self.name));
            }
            Event::Resized { blocks, .. } => self.trace.event(format_args!("{} has {blocks} blocks", self.name)),
            Event::LostWrites { .. } => self.trace.event(format_args!("{} lost writes", self.name)),
            Event::UnitAttention(lun, code) => {
                self.trace.event(format_args!("{} unit attention {code:?}", self.name));
                self.heard.hear(self.trace.now(), lun.number().unwrap_or_default(), code);
            }
            other => self.trace.event(format_args!("{} {other:?}", self.name)),
        }
    }
}
