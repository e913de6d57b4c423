//! What uses a session: any operations, checked against the model as they complete.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use initiator_core::application::{Application, Control, ControlAnswer, Event};
use initiator_core::command::{Command, Completion, Failure, Outcome, Repeat};
use iscsi_memory::{Buf, Region};
use iscsi_proto::datamover::{CommandData, Sink};
use iscsi_proto::parameters::Digest;
use iscsi_proto::pdu::{TaskAttribute, TaskFunction};
use iscsi_proto::scsi::command::{GetLbaStatus, Inquiry, Unmap};
use iscsi_proto::scsi::provisioning::{Extent, unmap_list};
use iscsi_proto::scsi::{BlockIo, CdbBuf, Lun, SenseKey, command, opcode};
use iscsi_proto::time::Instant;

use crate::model::{FlushId, Model, ReadId, Value, WriteId, fill_block};
use crate::rng::Rng;
use crate::trace::Trace;

/// What a run may look like from the outside, shared by all of its parts.
#[derive(Debug, Clone, Default)]
pub struct Verdict(Rc<RefCell<Option<String>>>);

impl Verdict {
    /// A rule was broken; the first one counts.
    pub fn broken(&self, what: String) {
        self.0.borrow_mut().get_or_insert(what);
    }

    /// What was broken.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.borrow().clone()
    }
}

/// What a workload does.
#[derive(Debug, Clone)]
pub struct WorkPlan {
    /// Operations to do.
    pub operations: u64,
    /// Most of them under way at a time.
    pub depth: usize,
    /// Pause between two, at most.
    pub think: Duration,
    /// Most blocks of one.
    pub most_blocks: u64,
    /// So many in 1000 read; the rest writes, mostly.
    pub reads: u64,
    /// So many in 1000 are neither read nor write.
    pub others: u64,
    /// So often in 1000 operations a task management function is asked for.
    pub functions: u64,
    /// The functions that may be.
    pub function_kinds: &'static [TaskFunction],
    /// So often in 1000 operations one is abandoned.
    pub abandons: u64,
    /// So often in 1000 operations a discovery text is sent.
    pub texts: u64,
    /// The LU can unmap.
    pub unmap: bool,
    /// The store may fail.
    pub store_fails: bool,
    /// The peer or the link breaks the protocol: data and statuses are not checked, completions are.
    pub untrusted: bool,
    /// One bit may flip: a PDU may be rejected for its digest.
    pub flips: bool,
    /// So many atomic commands in 1000 expect what the disk never held.
    pub wrong: u64,
}

/// What each of the last reads may take, whatever commands are given otherwise. A connection may have fallen silent before the calm, and keepalive takes
/// up to ten seconds to find out; the read is then repeated on the next one, and has to succeed.
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
        once: Vec<bool>,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Work,
    Rest,
    Verify { next: u64 },
    Leave,
    Gone,
}

/// The application of one session.
#[derive(Debug)]
pub struct Workload {
    name: &'static str,
    lun: Lun,
    plan: WorkPlan,
    rng: Rng,
    model: Rc<RefCell<Model>>,
    trace: Trace,
    verdict: Verdict,
    stage: Stage,
    issued: u64,
    next_at: Instant,
    next_token: u64,
    under_way: BTreeMap<u64, Operation>,
    abandoned: Vec<u64>,
    /// Blocks of a command that was just given up.
    follow: Option<(u64, u64)>,
    controls: BTreeMap<u32, &'static str>,
    control_wanted: Option<Control>,
    next_control: u32,
    /// Failed writes of which something may still be under way in the target: until the connection is known to live on, or the next login.
    fresh: Vec<WriteId>,
    limbo: Vec<WriteId>,
    given_up: Vec<WriteId>,
    waker: Waker,
    digests: bool,
    logins: u32,
    completed: u64,
    acknowledged: u64,
}

impl Workload {
    /// A workload on a logical unit.
    #[must_use]
    pub fn new(
        name: &'static str,
        lun: Lun,
        plan: WorkPlan,
        rng: Rng,
        model: Rc<RefCell<Model>>,
        trace: Trace,
        verdict: Verdict,
    ) -> Self {
        Self {
            name,
            lun,
            plan,
            rng,
            model,
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
            fresh: Vec::new(),
            limbo: Vec::new(),
            given_up: Vec::new(),
            waker: Waker::noop().clone(),
            digests: false,
            logins: 0,
            completed: 0,
            acknowledged: 0,
        }
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
        if self.stage == Stage::Work {
            self.stage = Stage::Rest;
        }
    }

    /// Reads every block and checks it.
    pub fn verify(&mut self) {
        self.stage = Stage::Verify { next: 0 };
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
        if let Some((token, operation)) = self.under_way.iter().next() {
            self.broken(&format!("{} {token} never completed, the session is over", operation.name));
        }
        if let Some((id, name)) = self.controls.iter().next() {
            self.broken(&format!("{name}, {id}, was never answered, the session is over"));
        }
    }

    fn broken(&self, what: &str) {
        self.verdict.broken(format!("{}: {what}", self.name));
    }

    fn buffer_out(&mut self, data: &[u8]) -> CommandData {
        if self.rng.permille(200) {
            let region = Region::heap(data.len() + 512);
            // A heap region takes every page.
            let _ = region.reserve_for_write(0, region.len());
            region.write(512, data);
            return CommandData::Region(region.slice(512, data.len()));
        }
        let mut buf = Buf::zeroed(data.len());
        buf.copy_from_slice(data);
        CommandData::Buf(buf)
    }

    fn buffer_in(&mut self, len: usize) -> Sink {
        // Data that a digest may still refuse are not to be placed in lent memory.
        if !self.digests && self.rng.permille(200) {
            let region = Region::heap(len);
            let _ = region.reserve_for_write(0, region.len());
            return Sink::Region(region.slice(0, len));
        }
        Sink::Buf(Buf::zeroed(len))
    }

    fn command(&mut self, cdb: CdbBuf, operation: Operation, out: Option<&[u8]>) -> Command {
        self.next_token += 1;
        let mut command = Command::new(self.next_token, self.lun, cdb);
        command.data_out = out.map(|data| self.buffer_out(data));
        command.data_in = operation.into.map(|(len, _)| self.buffer_in(len));
        command.attribute = match self.rng.below(20) {
            0 => TaskAttribute::Ordered,
            1 => TaskAttribute::HeadOfQueue,
            _ => TaskAttribute::Simple,
        };
        self.submits(&operation);
        self.under_way.insert(self.next_token, operation);
        command
    }

    fn submits(&self, operation: &Operation) {
        let Operation { name, range: (lba, blocks), .. } = operation;
        self.trace.event(format_args!("{} submits {} {name} {lba}+{blocks}", self.name, self.next_token));
    }

    fn range(&mut self) -> (u64, u64) {
        let len = self.model.borrow().len();
        let blocks = self.rng.magnitude(1, self.plan.most_blocks.min(len));
        // Half of the operations meet in the first blocks.
        let space = if self.rng.permille(500) { (blocks * 2).min(len) } else { len };
        (self.rng.below(space - blocks + 1), blocks)
    }

    /// A CDB for the range, and whether it has FUA.
    fn block_cdb(&mut self, lba: u64, blocks: u64, codes: &[u8]) -> (CdbBuf, bool) {
        let mut io = BlockIo::new(lba, blocks as u32);
        let fua = self.rng.permille(100);
        if fua {
            io = io.with_fua();
        }
        let code = self.rng.pick(codes);
        let made = if code == opcode::READ_6 || code == opcode::WRITE_6 {
            BlockIo::new(lba, blocks as u32).to_cdb(code)
        } else {
            io.to_cdb(code)
        };
        // The CDBs of six bytes have no room for FUA.
        let fua = fua && (made.is_none() || !matches!(code, opcode::READ_6 | opcode::WRITE_6));
        (made.or_else(|| io.to_cdb(codes[0])).expect("a 16-byte CDB has room for any range"), fua)
    }

    fn read(&mut self, lba: u64, blocks: u64) -> Command {
        let block_size = self.model.borrow().block_size();
        let bytes = blocks as usize * block_size;
        let more = if self.rng.permille(30) { self.rng.between(1, 2000) as usize } else { 0 };
        let read = self.model.borrow_mut().begin_read(lba, blocks);
        let (cdb, _) =
            self.block_cdb(lba, blocks, &[opcode::READ_16, opcode::READ_10, opcode::READ_12, opcode::READ_6]);
        let operation = Operation {
            kind: Kind::Read(read),
            out: None,
            into: Some((bytes + more, bytes)),
            name: "read",
            range: (lba, blocks),
        };
        self.command(cdb, operation, None)
    }

    fn write(&mut self, lba: u64, blocks: u64) -> Command {
        let block_size = self.model.borrow().block_size();
        let mut data = vec![0; blocks as usize * block_size];
        let first = self.model.borrow_mut().new_values(blocks);
        for (value, block) in (first..).zip(data.chunks_mut(block_size)) {
            fill_block(value, block);
        }
        let write = self.model.borrow_mut().begin_write(lba, blocks, |at| first + at);
        let (cdb, durable) =
            self.block_cdb(lba, blocks, &[opcode::WRITE_16, opcode::WRITE_10, opcode::WRITE_12, opcode::WRITE_6]);
        let operation = Operation {
            kind: if durable { Kind::Durable(write) } else { Kind::Write(write) },
            out: Some(data.len()),
            into: None,
            name: "write",
            range: (lba, blocks),
        };
        self.command(cdb, operation, Some(&data))
    }

    fn write_same(&mut self, lba: u64, blocks: u64) -> Command {
        let block_size = self.model.borrow().block_size();
        let mut data = vec![0; block_size];
        let zero = self.plan.unmap && self.rng.permille(300);
        let value = if zero { 0 } else { self.model.borrow_mut().new_values(1) };
        fill_block(value, &mut data);
        let write = self.model.borrow_mut().begin_write(lba, blocks, |_| value);
        let mut io = BlockIo::new(lba, blocks as u32);
        if zero && self.rng.permille(500) {
            // UNMAP, which for zeroes on a device with LBPRZ is the same.
            io = io.with_flags(0x08);
        }
        let cdb = io.to_cdb(opcode::WRITE_SAME_16).expect("a 16-byte CDB has room for any range");
        let operation = Operation {
            kind: Kind::Write(write),
            out: Some(data.len()),
            into: None,
            name: "write same",
            range: (lba, blocks),
        };
        self.command(cdb, operation, Some(&data))
    }

    fn unmap(&mut self, lba: u64, blocks: u64) -> Command {
        let write = self.model.borrow_mut().begin_write(lba, blocks, |_| 0);
        let half = (blocks / 2) as u32;
        let extents =
            [Extent { lba, blocks: half }, Extent { lba: lba + u64::from(half), blocks: blocks as u32 - half }];
        let list = unmap_list(&extents);
        let cdb = Unmap { anchor: false, parameter_list_length: list.len() as u16 }.to_cdb();
        let operation = Operation {
            kind: Kind::Write(write),
            out: Some(list.len()),
            into: None,
            name: "unmap",
            range: (lba, blocks),
        };
        self.command(cdb, operation, Some(&list))
    }

    fn compare_and_write(&mut self, lba: u64, blocks: u64) -> Command {
        let block_size = self.model.borrow().block_size();
        let model = &mut *self.model.borrow_mut();
        let first = model.new_values(blocks);
        let mut expected: Vec<Value> = (lba..lba + blocks).map(|lba| model.likely(lba)).collect();
        if self.plan.wrong > 0
            && self.rng.permille(self.plan.wrong)
            && let Some(last) = expected.last_mut()
        {
            *last = model.new_values(1);
        }
        let once = model.once(lba, &expected);
        let mut data = vec![0; 2 * blocks as usize * block_size];
        for (value, block) in expected.iter().copied().chain(first..).zip(data.chunks_mut(block_size)) {
            fill_block(value, block);
        }
        let read = model.begin_read(lba, blocks);
        let write = model.begin_write(lba, blocks, |at| first + at);
        let cdb = BlockIo::new(lba, blocks as u32).to_cdb(opcode::COMPARE_AND_WRITE).expect("few blocks");
        let kind = Kind::Compare { read, write, expected, once, first };
        let operation =
            Operation { kind, out: Some(data.len()), into: None, name: "compare and write", range: (lba, blocks) };
        self.next_token += 1;
        let mut command = Command::new(self.next_token, self.lun, cdb);
        let mut buf = Buf::zeroed(data.len());
        buf.copy_from_slice(&data);
        command.data_out = Some(CommandData::Buf(buf));
        self.submits(&operation);
        self.under_way.insert(self.next_token, operation);
        command
    }

    fn other(&mut self) -> Command {
        let (lba, blocks) = self.range();
        let plain = |name| Operation { kind: Kind::Other, out: None, into: None, name, range: (0, 0) };
        match self.rng.below(8) {
            0 | 1 => {
                let flush = self.model.borrow_mut().begin_flush();
                let operation = Operation { kind: Kind::Flush(flush), ..plain("flush") };
                self.command(BlockIo::new(0, 0).synchronize_cache(), operation, None)
            }
            2 if self.plan.unmap => self.unmap(lba, blocks),
            3 => self.write_same(lba, blocks),
            4 => self.compare_and_write(lba, blocks.min(8)),
            5 => {
                let cdb = Inquiry { page: self.rng.permille(500).then_some(0x83), allocation_length: 255 }.to_cdb();
                let operation =
                    Operation { kind: Kind::Other, out: None, into: Some((255, 0)), name: "inquiry", range: (0, 0) };
                self.command(cdb, operation, None)
            }
            6 => {
                let cdb = GetLbaStatus { lba, allocation_length: 64, report_type: 0 }.to_cdb();
                let operation = Operation {
                    kind: Kind::Other,
                    out: None,
                    into: Some((64, 0)),
                    name: "get lba status",
                    range: (lba, 0),
                };
                self.command(cdb, operation, None)
            }
            _ => self.command(command::test_unit_ready(), plain("test unit ready"), None),
        }
    }

    fn any(&mut self) -> Command {
        // What is written after a write that was given up, to the same blocks, is what shows whether that one stays away.
        if let Some((lba, blocks)) = self.follow.take() {
            return self.write(lba, blocks);
        }
        let (lba, blocks) = self.range();
        if self.rng.permille(self.plan.others) {
            self.other()
        } else if self.rng.permille(self.plan.reads) {
            self.read(lba, blocks)
        } else {
            self.write(lba, blocks)
        }
    }

    fn check_buffers(&self, operation: &Operation, completion: &Completion) {
        let out = completion.data_out.as_ref().map(|data| match data {
            CommandData::Buf(buf) => buf.len(),
            CommandData::Region(slice) => slice.len(),
        });
        if out != operation.out {
            self.broken(&format!("the data of {} {} came back as {out:?}", operation.name, completion.token));
        }
        let into = completion.data_in.as_ref().map(Sink::len);
        if into != operation.into.map(|(len, _)| len) {
            self.broken(&format!("the buffer of {} {} came back as {into:?}", operation.name, completion.token));
        }
    }

    fn check_status(&self, operation: &Operation, outcome: &Outcome) {
        if outcome.is_good() || self.plan.untrusted {
            return;
        }
        let expected = match outcome.sense.map(|sense| sense.key) {
            // BUSY, TASK SET FULL, TASK ABORTED: when retries do not help.
            None => outcome.status != 0x02,
            Some(SenseKey::AbortedCommand | SenseKey::UnitAttention) => true,
            Some(SenseKey::MediumError | SenseKey::HardwareError | SenseKey::NotReady | SenseKey::DataProtect) => {
                self.plan.store_fails
            }
            Some(SenseKey::Miscompare) => matches!(operation.kind, Kind::Compare { .. }),
            Some(_) => false,
        };
        if !expected {
            self.broken(&format!("{} ended with {outcome}", operation.name));
        }
    }

    fn check_failure(&self, operation: &Operation, failure: Failure) {
        let expected = match failure {
            Failure::NotRepeatable => matches!(operation.kind, Kind::Compare { .. }),
            Failure::TimedOut | Failure::Aborted | Failure::SessionEnded => true,
            Failure::Rejected(_) => self.plan.flips,
            Failure::ConnectionLost
            | Failure::TargetFailure(_)
            | Failure::Invalid(_)
            | Failure::OtherDisk
            | Failure::LostWrites => false,
        };
        if !expected && !self.plan.untrusted {
            self.broken(&format!("{} failed: {failure}", operation.name));
        }
    }

    fn settle_data(&mut self, operation: Operation, completion: &Completion) -> Result<(), String> {
        let good = completion.result.as_ref().is_ok_and(Outcome::is_good);
        let model = &mut *self.model.borrow_mut();
        if self.plan.untrusted {
            match operation.kind {
                Kind::Read(read) => model.forget(read),
                Kind::Write(write) | Kind::Durable(write) => self.limbo.push(write),
                Kind::Compare { read, write, .. } => {
                    model.forget(read);
                    self.limbo.push(write);
                }
                Kind::Other | Kind::Flush(_) => {}
            }
            return Ok(());
        }
        match operation.kind {
            Kind::Other => Ok(()),
            Kind::Flush(flush) => {
                if good {
                    model.end_flush(flush);
                }
                Ok(())
            }
            Kind::Read(read) if good => {
                let (len, bytes) = operation.into.unwrap_or_default();
                if completion.data_in_len as usize != bytes {
                    return Err(format!("a read of {bytes} bytes into {len} brought {}", completion.data_in_len));
                }
                let mut data = vec![0; bytes];
                match &completion.data_in {
                    Some(Sink::Buf(buf)) => data.copy_from_slice(&buf[..bytes]),
                    Some(Sink::Region(slice)) => slice.read(0, &mut data),
                    None => {}
                }
                model.end_read(read, &data).map_err(|wrong| wrong.to_string())
            }
            Kind::Read(read) => {
                model.forget(read);
                Ok(())
            }
            Kind::Write(write) | Kind::Durable(write) => {
                match &completion.result {
                    Ok(_) if good => {
                        self.given_up.iter().for_each(|older| model.supersede(*older, write));
                        if matches!(operation.kind, Kind::Durable(_)) {
                            model.acknowledge_durable(write);
                        } else {
                            model.acknowledge(write);
                        }
                        self.acknowledged += 1;
                    }
                    Ok(_) => model.fail(write),
                    Err(Failure::SessionEnded) => self.limbo.push(write),
                    Err(_) => self.fresh.push(write),
                }
                Ok(())
            }
            Kind::Compare { read, write, expected, once, first } => match &completion.result {
                Ok(_) if good => {
                    self.given_up.iter().for_each(|older| model.supersede(*older, write));
                    model.acknowledge(write);
                    self.acknowledged += 1;
                    let lba = operation.range.0;
                    model.replace(lba, &expected, &once).map_err(|wrong| format!("replaced what was gone: {wrong}"))?;
                    model.end_equal(read, &expected).map_err(|wrong| format!("compared as equal: {wrong}"))
                }
                Ok(outcome) if outcome.sense.is_some_and(|sense| sense.key == SenseKey::Miscompare) => {
                    model.withdraw(write);
                    let own = first..first + expected.len() as u64;
                    model
                        .end_different(read, &expected, |value| own.contains(&value))
                        .map_err(|wrong| format!("compared as different: {wrong}"))
                }
                Ok(_) => {
                    model.forget(read);
                    model.fail(write);
                    Ok(())
                }
                Err(_) => {
                    model.forget(read);
                    self.fresh.push(write);
                    Ok(())
                }
            },
        }
    }
}

impl Application for Workload {
    fn register(&mut self, waker: &Waker) {
        self.waker.clone_from(waker);
        // The connection lives: what failed on it is over in the target too.
        for write in self.fresh.drain(..) {
            self.model.borrow_mut().fail(write);
        }
    }

    fn next_command(&mut self, now: Instant) -> Option<Command> {
        match self.stage {
            Stage::Work => {
                if now < self.next_at || self.under_way.len() >= self.plan.depth {
                    return None;
                }
                if self.issued == self.plan.operations {
                    self.stage = Stage::Rest;
                    return None;
                }
                self.issued += 1;
                if !self.plan.think.is_zero() && self.rng.permille(500) {
                    self.next_at = now + self.plan.think.mul_f64(self.rng.below(1000) as f64 / 1000.0);
                }
                if self.rng.permille(self.plan.functions) {
                    self.next_control += 1;
                    let function = self.rng.pick(self.plan.function_kinds);
                    self.control_wanted =
                        Some(Control::TaskManagement { id: self.next_control, function, lun: self.lun });
                } else if self.rng.permille(self.plan.texts) {
                    self.next_control += 1;
                    self.control_wanted =
                        Some(Control::Text { id: self.next_control, text: b"SendTargets=\0".to_vec() });
                }
                if self.rng.permille(self.plan.abandons) && !self.under_way.is_empty() {
                    let at = self.rng.below(self.under_way.len() as u64) as usize;
                    if let Some((token, operation)) = self.under_way.iter().nth(at) {
                        self.abandoned.push(*token);
                        self.follow = Some(operation.range).filter(|(_, blocks)| *blocks > 0);
                        self.waker.wake_by_ref();
                        return None;
                    }
                }
                if self.control_wanted.is_some() || !self.abandoned.is_empty() {
                    self.waker.wake_by_ref();
                }
                Some(self.any())
            }
            Stage::Verify { next } => {
                let len = self.model.borrow().len();
                if next >= len {
                    if self.under_way.is_empty() {
                        self.stage = Stage::Gone;
                    }
                    return None;
                }
                let blocks = (len - next).min(64);
                self.stage = Stage::Verify { next: next + blocks };
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
        let control = self.control_wanted.take()?;
        let (id, name) = match &control {
            Control::TaskManagement { id, function, .. } => {
                self.trace.event(format_args!("{} asks for {function:?}", self.name));
                (*id, "a task management function")
            }
            Control::Text { id, .. } => (*id, "a text request"),
            Control::Logout | Control::Guard { .. } | Control::Unguard { .. } | Control::TakeLost { .. } => {
                return Some(control);
            }
        };
        self.controls.insert(id, name);
        Some(control)
    }

    fn next_abandoned(&mut self) -> Option<u64> {
        let token = self.abandoned.pop()?;
        self.trace.event(format_args!("{} abandons {token}", self.name));
        // A command that changes blocks is not to land over a later one from here on.
        if let Some(Kind::Write(write) | Kind::Durable(write) | Kind::Compare { write, .. }) =
            self.under_way.get(&token).map(|operation| &operation.kind)
        {
            self.model.borrow_mut().give_up(*write);
            self.given_up.push(*write);
        }
        Some(token)
    }

    fn complete(&mut self, completion: Completion, _now: Instant) {
        let token = completion.token;
        let Some(operation) = self.under_way.remove(&token) else {
            return self.broken(&format!("command {token} completed twice, or was never submitted"));
        };
        self.completed += 1;
        let name = operation.name;
        self.trace.event(format_args!("{} completes {token} {name}: {:?}", self.name, completion.result));
        self.check_buffers(&operation, &completion);
        match &completion.result {
            Ok(outcome) => self.check_status(&operation, outcome),
            Err(failure) => self.check_failure(&operation, *failure),
        }
        if matches!(self.stage, Stage::Verify { .. }) && !completion.result.as_ref().is_ok_and(Outcome::is_good) {
            self.broken(&format!(
                "{name} {token} failed with nothing left that could disturb it: {:?}",
                completion.result
            ));
        }
        if let Err(wrong) = self.settle_data(operation, &completion) {
            self.broken(&format!("{name} {token}: {wrong}"));
        }
        if self.stage == (Stage::Verify { next: self.model.borrow().len() }) && self.under_way.is_empty() {
            self.stage = Stage::Gone;
        }
    }

    fn control_complete(&mut self, id: u32, answer: ControlAnswer) {
        self.trace.event(format_args!("{} control {id}: {answer:?}", self.name));
        if self.controls.remove(&id).is_none() {
            self.broken(&format!("control request {id} was answered twice, or never asked"));
        }
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::LoggedIn(summary) => {
                self.logins += 1;
                self.digests = summary.parameters.data_digest == Digest::Crc32c;
                self.trace.event(format_args!("{} logged in: {:?}", self.name, summary.parameters));
                if self.plan.untrusted {
                    return;
                }
                // The login has reinstated the session: nothing of the old one is left (RFC 7143 6.3.5).
                for write in self.limbo.drain(..).chain(self.fresh.drain(..)) {
                    self.model.borrow_mut().fail(write);
                }
            }
            Event::Disconnected(end) => {
                self.trace.event(format_args!("{} disconnected: {end}", self.name));
                self.limbo.append(&mut self.fresh);
            }
            Event::OtherDisk { difference, .. } => {
                self.trace.event(format_args!("{} other disk: {difference}", self.name));
            }
            Event::Resized { blocks, .. } => self.trace.event(format_args!("{} has {blocks} blocks", self.name)),
            Event::LostWrites { .. } => self.trace.event(format_args!("{} lost writes", self.name)),
            Event::UnitAttention(_, code) => self.trace.event(format_args!("{} unit attention {code:?}", self.name)),
        }
    }
}
