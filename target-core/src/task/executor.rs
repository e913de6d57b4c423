//! The executor: a table of tasks, and the way of each through it.
//!
//! The short way leaves no trace in the table: a read of a store with a memory door, and every command that only looks at or sets state, is answered
//! within `start`. The long way is `Blocked` (task attributes), `Receiving` (data from the initiator), `Held` (attributes again), `Gated` (the write
//! gate), `Running` (the store), in this order, each left out where there is no need.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::task::Waker;

use futures::task::AtomicWaker;
use iscsi_memory::Buf;
use iscsi_proto::datamover::{DataError, Sink, Source, TaskHandle, TaskStatus};
use iscsi_proto::pdu::{Residual, TaskAttribute};
use iscsi_proto::scsi::{AdditionalSense, Cdb, Sense, SenseBytes, SenseFormat, Status};

use super::buffers::Buffers;
use super::job::{Hold, Job, Next};
use super::lun::Luns;
use super::slot::{CDB, Slot, State, Transfer, Waiting};
use super::{ExecutorConfig, NewTask, Nexus, Step};
use crate::device_server::{self, Command, Outcome, Plan, Request, Then, absent, fault, flags};
use crate::lu::{LunMap, Stripes, UnitAttention};
use crate::store::{StoreCompletion, StoreError};

/// Rounds of operations that complete at once before a worker's other sessions get their turn.
const ROUNDS: u32 = 64;

/// Passes a store's wake-up on to whoever drives the session now.
#[derive(Default)]
struct Bell(AtomicWaker);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }
}

/// The store operation of an aborted task: what is left to do when it ends.
struct Orphan {
    token: u64,
    lun: u16,
    shared: Stripes,
    alone: Stripes,
}

/// What a step will say, without the borrow.
enum Reply {
    Pending,
    GetData(Sink),
    Respond { data: Data, status: Status, residuals: (Residual, Residual) },
}

enum Data {
    None,
    /// This much of the parameter data.
    Parameters(usize),
    Region {
        lun: u16,
        offset: u64,
        len: usize,
    },
    Buf(Buf),
}

/// What is known of a task while one call works on it.
#[derive(Clone, Copy)]
struct Work {
    slot: usize,
    lun: u16,
    transfer: Transfer,
    /// Data may be placed directly: allowed by the session, and no older task is in the way.
    direct: bool,
}

/// Runs the tasks of one session. Bounds: see [`ExecutorConfig`].
pub struct TaskExecutor {
    map: Arc<LunMap>,
    nexus: Nexus,
    luns: Luns,
    slots: Box<[Slot]>,
    sequence: u64,
    buffers: Buffers,
    /// Parameter data of the last answer.
    out: Vec<u8>,
    /// Sense data of the last answer.
    sense: SenseBytes,
    bell: Arc<Bell>,
    waker: Waker,
    completions: Vec<StoreCompletion>,
    orphans: Vec<Orphan>,
    token: u64,
    /// Operations submitted or gathered, of all LUNs.
    in_flight: usize,
    /// A task ended that others may have waited for.
    unblock: bool,
    /// Tasks that wait for the write gate.
    gated: usize,
}

impl core::fmt::Debug for TaskExecutor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("TaskExecutor")
            .field("nexus", &self.nexus)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl TaskExecutor {
    /// An executor for the session `nexus`, which sees `luns`.
    #[must_use]
    pub fn new(config: ExecutorConfig, luns: Arc<LunMap>, nexus: Nexus) -> Self {
        let bell = Arc::new(Bell::default());
        Self {
            luns: Luns::new(&luns),
            map: luns,
            nexus,
            slots: (0..config.slots.max(1)).map(|_| Slot::EMPTY).collect(),
            sequence: 0,
            buffers: Buffers::new(config.max_buffered, config.max_idle),
            out: Vec::new(),
            sense: SenseBytes::default(),
            waker: Waker::from(bell.clone()),
            bell,
            completions: Vec::with_capacity(config.slots.into()),
            orphans: Vec::new(),
            token: 0,
            in_flight: 0,
            unblock: false,
            gated: 0,
        }
    }

    /// The session that it serves.
    #[must_use]
    pub fn nexus(&self) -> &Nexus {
        &self.nexus
    }

    /// A command came. A slot whose earlier task has not ended is aborted first.
    #[inline]
    pub fn start(&mut self, new: NewTask<'_>) -> Step<'_> {
        let reply = self.accept(&new);
        self.step(reply)
    }

    /// The data of [`Step::GetData`] are in place.
    pub fn data_arrived(&mut self, task: TaskHandle, sink: Sink) -> Step<'_> {
        let reply = self.received(task, sink);
        self.step(reply)
    }

    /// The data of [`Step::GetData`] did not come in whole.
    pub fn data_failed(&mut self, task: TaskHandle, sink: Sink, error: DataError) -> Step<'_> {
        if let Sink::Buf(buf) = sink {
            self.buffers.give(buf);
        }
        let reply = match self.live(task) {
            Some(work) => {
                let sense = fault::of_transfer(error);
                self.check_condition(work, &sense)
            }
            None => Reply::Pending,
        };
        self.step(reply)
    }

    /// Hands the gathered store requests to their stores: once per wake.
    pub fn submit(&mut self) {
        if self.in_flight != 0 {
            self.hand_over();
        }
    }

    /// What has become of tasks since: to be called until it gives nothing.
    pub fn poll(&mut self) -> Option<(TaskHandle, Step<'_>)> {
        if self.in_flight == 0 && !self.unblock && self.gated == 0 {
            return None;
        }
        let (task, reply) = self.advance()?;
        Some((task, self.step(reply)))
    }

    /// Forgets the task: no step follows. A store operation under way ends unseen; [`busy`](Self::busy) counts it. Buffers that the mover has of the
    /// task come back by [`give`](Self::give).
    pub fn abort(&mut self, task: TaskHandle) {
        let Some(work) = self.live(task) else { return };
        let slot = &mut self.slots[work.slot];
        let token = core::mem::take(&mut slot.token);
        if token != 0 {
            // What it holds of the write gate it holds until its operation ends.
            let (shared, alone) = (core::mem::take(&mut slot.shared), core::mem::take(&mut slot.alone));
            self.orphans.push(Orphan { token, lun: work.lun, shared, alone });
            if let Some(lun) = self.luns.get_mut(work.lun) {
                lun.orphans += 1;
            }
        }
        self.leave(work.slot);
    }

    /// Who is woken when a store has something to say.
    pub fn set_waker(&mut self, waker: &Waker) {
        self.bell.0.register(waker);
    }

    /// Store operations of aborted tasks that are still under way, for one LUN (by its eight bytes) or for all.
    #[must_use]
    pub fn busy(&self, lun: Option<u64>) -> usize {
        self.luns.orphans(lun)
    }

    /// Takes back a buffer that was sent ([`iscsi_proto::datamover::Notification::Released`]) or that a task had given to the mover.
    pub fn give(&mut self, buf: Buf) {
        self.buffers.give(buf);
    }

    /// Bytes of buffers that are out: at the store, at the mover, or holding data that wait.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.buffers.out()
    }

    #[inline]
    fn step(&self, reply: Reply) -> Step<'_> {
        let (data, status, residuals) = match reply {
            Reply::Respond { data, status, residuals } => (data, status, residuals),
            Reply::GetData(sink) => return Step::GetData { sink },
            Reply::Pending => return Step::Pending,
        };
        let data = match data {
            Data::None => Source::None,
            Data::Parameters(len) => Source::Copy(self.out.get(..len).unwrap_or_default()),
            Data::Buf(buf) => Source::Buf(buf),
            Data::Region { lun, offset, len } => match self.luns.get(lun).and_then(|lun| lun.unit.region()) {
                Some(region) => Source::Region { region, offset, len },
                None => Source::None,
            },
        };
        let sense: &[u8] = if status == Status::CheckCondition { &self.sense } else { &[] };
        let (residual, bidirectional_read_residual) = residuals;
        Step::Respond {
            data,
            status: TaskStatus { status: status.to_byte(), residual, bidirectional_read_residual, sense },
        }
    }

    /// The task behind a handle that is not stale.
    fn live(&self, task: TaskHandle) -> Option<Work> {
        let slot = self.slots.get(usize::from(task.slot))?;
        let live = slot.generation == task.generation && !slot.is_free();
        live.then_some(Work { slot: task.slot.into(), lun: slot.lun, transfer: slot.transfer, direct: false })
    }

    #[inline]
    fn accept(&mut self, new: &NewTask<'_>) -> Reply {
        let transfer = Transfer::of(new);
        self.luns.refresh(&self.map);
        let Some(position) = self.luns.find(new.lun) else { return self.accept_absent(new, transfer) };
        let Some(slot) = self.slots.get_mut(usize::from(new.task.slot)) else {
            return Reply::Respond {
                data: Data::None,
                status: Status::TaskSetFull,
                residuals: transfer.residuals(0, 0),
            };
        };
        if !slot.is_free() {
            let handle = slot.handle(new.task.slot.into());
            self.abort(handle);
        }
        let slot = &mut self.slots[usize::from(new.task.slot)];
        slot.generation = new.task.generation;
        slot.lun = position;
        slot.attribute = new.attribute;
        slot.transfer = transfer;
        slot.wanted_out = 0;
        let work = Work { slot: new.task.slot.into(), lun: position, transfer, direct: new.direct_placement };
        let barriers = self.luns.get(position).map_or(0, |lun| lun.barriers);
        if barriers != 0 || !matches!(new.attribute, TaskAttribute::Simple | TaskAttribute::Untagged) {
            return self.accept_in_order(work, new);
        }
        self.begin(work, new.cdb)
    }

    /// A command to a LUN without a logical unit.
    #[cold]
    fn accept_absent(&mut self, new: &NewTask<'_>, transfer: Transfer) -> Reply {
        self.out.clear();
        let answer = match Cdb::new(new.cdb) {
            Ok(cdb) => absent::run(cdb, &self.map, &mut self.out),
            Err(_) => Err(Sense::illegal_request(AdditionalSense::INVALID_COMMAND_OPERATION_CODE)),
        };
        match answer {
            Ok(()) => {
                if new.cdb.first() == Some(&iscsi_proto::scsi::opcode::REPORT_LUNS) {
                    self.luns_reported();
                }
                self.parameters(transfer)
            }
            Err(sense) => {
                self.sense = sense.to_bytes(SenseFormat::Fixed);
                Reply::Respond { data: Data::None, status: Status::CheckCondition, residuals: transfer.residuals(0, 0) }
            }
        }
    }

    /// A task that waits for others, or that others wait for (SAM-5 8.6).
    fn accept_in_order(&mut self, work: Work, new: &NewTask<'_>) -> Reply {
        if new.attribute == TaskAttribute::Aca {
            // Only while an auto contingent allegiance is there, and NACA is not supported (SAM-5 8.6.5).
            return self.check_condition(work, &Sense::aborted_command(AdditionalSense::INVALID_MESSAGE_ERROR));
        }
        let Some(waiting) = keep(new.cdb) else { return self.begin(work, new.cdb) };
        self.enter(work, State::Blocked(waiting));
        let work = Work { direct: false, ..work };
        if !self.must_wait(work.slot) {
            return self.begin(work, new.cdb);
        }
        // Data that the initiator sends unasked cannot wait: they are fetched now, and the command waits with them.
        let takes_data =
            new.write && device_server::table::find(new.cdb).is_ok_and(|command| command.flags & flags::DATA_OUT != 0);
        if takes_data { self.begin(work, new.cdb) } else { Reply::Pending }
    }

    /// Whether older tasks, or HEAD OF QUEUE ones, keep a task from running.
    fn must_wait(&self, index: usize) -> bool {
        let Some(own) = self.slots.get(index) else { return false };
        if self.luns.get(own.lun).is_none_or(|lun| lun.barriers == 0) {
            return false;
        }
        self.slots.iter().enumerate().any(|(other_index, other)| {
            let older = other.sequence < own.sequence;
            other_index != index
                && !other.is_free()
                && other.lun == own.lun
                && match own.attribute {
                    TaskAttribute::HeadOfQueue => false,
                    TaskAttribute::Ordered => older || other.attribute == TaskAttribute::HeadOfQueue,
                    _ => {
                        (older && other.attribute == TaskAttribute::Ordered)
                            || other.attribute == TaskAttribute::HeadOfQueue
                    }
                }
        })
    }

    /// Puts the task into the table, or gives it another state there.
    fn enter(&mut self, work: Work, state: State) {
        let slot = &mut self.slots[work.slot];
        let waits = |state: &State| matches!(state, State::Blocked(_) | State::Held(_));
        let Some(lun) = self.luns.get_mut(work.lun) else { return };
        if slot.is_free() {
            self.sequence += 1;
            slot.sequence = self.sequence;
            lun.active += 1;
            lun.barriers += u32::from(slot.is_barrier());
        }
        lun.waiting += u32::from(waits(&state));
        lun.waiting -= u32::from(waits(&slot.state));
        self.gated += usize::from(matches!(state, State::Gated(_)));
        self.gated -= usize::from(matches!(slot.state, State::Gated(_)));
        slot.state = state;
    }

    /// Takes the task out of the table, if it ever was in it, with all it holds.
    #[inline]
    fn leave(&mut self, index: usize) {
        if !self.slots[index].is_free() {
            self.leave_table(index);
        }
    }

    fn leave_table(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let state = core::mem::replace(&mut slot.state, State::Free);
        slot.token = 0;
        slot.wanted_out = 0;
        let (shared, alone) = (core::mem::take(&mut slot.shared), core::mem::take(&mut slot.alone));
        if let Some(lun) = self.luns.get_mut(slot.lun) {
            lun.unit.gate().release_shared(shared);
            lun.unit.gate().release_exclusive(alone);
            lun.active -= 1;
            lun.barriers -= u32::from(slot.is_barrier());
            lun.waiting -= u32::from(matches!(state, State::Blocked(_) | State::Held(_)));
            self.unblock |= lun.waiting != 0;
        }
        self.gated -= usize::from(matches!(state, State::Gated(_)));
        if let State::Held(mut job) | State::Gated(mut job) | State::Running(mut job) = state {
            for buf in job.take_buffers() {
                self.buffers.give(buf);
            }
        }
    }

    fn check_condition(&mut self, work: Work, sense: &Sense) -> Reply {
        let format = self.luns.get(work.lun).map_or(SenseFormat::Fixed, |lun| lun.unit.sense_format());
        self.sense = sense.to_bytes(format);
        let wanted_out = self.slots[work.slot].wanted_out;
        self.leave(work.slot);
        Reply::Respond {
            data: Data::None,
            status: Status::CheckCondition,
            residuals: work.transfer.residuals(0, wanted_out),
        }
    }

    fn good(&mut self, work: Work) -> Reply {
        let wanted_out = self.slots[work.slot].wanted_out;
        self.leave(work.slot);
        Reply::Respond { data: Data::None, status: Status::Good, residuals: work.transfer.residuals(0, wanted_out) }
    }

    /// No room for the task's data now (SAM-5 5.3.1: TASK SET FULL while the initiator has other tasks).
    fn full(&mut self, work: Work) -> Reply {
        self.leave(work.slot);
        Reply::Respond { data: Data::None, status: Status::TaskSetFull, residuals: work.transfer.residuals(0, 0) }
    }

    /// GOOD with the parameter data in `out`.
    fn parameters(&self, transfer: Transfer) -> Reply {
        let len = self.out.len().min(transfer.expected_in() as usize);
        Reply::Respond {
            data: Data::Parameters(len),
            status: Status::Good,
            residuals: transfer.residuals(self.out.len() as u64, 0),
        }
    }

    /// REPORT LUNS has told: SPC-5 6.33 clears the unit attention on every logical unit.
    fn luns_reported(&mut self) {
        for lun in self.luns.iter_mut() {
            lun.attentions.catch_up(self.nexus.id, lun.unit.attentions());
            lun.attentions.remove(UnitAttention::ReportedLunsChanged);
        }
    }

    /// Runs the command's function, and begins with what it plans.
    #[inline]
    fn begin(&mut self, work: Work, cdb: &[u8]) -> Reply {
        let Some(lun) = self.luns.get_mut(work.lun) else { return self.good(work) };
        let found = device_server::find(cdb, &lun.unit);
        if !lun.attentions.is_clear(lun.unit.attentions()) {
            let told_anyway = matches!(found, Ok(command) if command.flags & flags::WITH_ATTENTION != 0);
            lun.attentions.catch_up(self.nexus.id, lun.unit.attentions());
            if !told_anyway && let Some(attention) = lun.attentions.take() {
                return self.check_condition(work, &Sense::unit_attention(attention.code()));
            }
        }
        let command = match found {
            Ok(command) => command,
            Err(sense) => return self.check_condition(work, &sense),
        };
        if let Err(sense) = device_server::check_state(command, &lun.unit, lun.read_only) {
            return self.check_condition(work, &sense);
        }
        self.out.clear();
        let Ok(cdb) = Cdb::new(cdb) else {
            return self
                .check_condition(work, &Sense::illegal_request(AdditionalSense::INVALID_COMMAND_OPERATION_CODE));
        };
        let outcome = (command.run)(&mut Request {
            cdb,
            unit: &lun.unit,
            read_only: lun.read_only,
            nexus: &self.nexus,
            luns: &self.map,
            attentions: &mut lun.attentions,
            data_out: work.transfer.expected_out(),
            out: &mut self.out,
        });
        if let Ok(Plan::Read { lba, blocks }) = outcome {
            return self.read(work, lba, blocks);
        }
        self.carry_out(work, command, cdb, outcome)
    }

    /// Blocks to the initiator: straight from the store's memory, or by way of a buffer.
    #[inline]
    fn read(&mut self, work: Work, lba: u64, blocks: u32) -> Reply {
        let Some(lun) = self.luns.get(work.lun) else { return self.good(work) };
        let shift = lun.unit.block_shift();
        let wanted = u64::from(blocks) << shift;
        let len = wanted.min(work.transfer.expected_in().into()) as usize;
        if len == 0 || lun.unit.region().is_some() {
            let data = if len == 0 { Data::None } else { Data::Region { lun: work.lun, offset: lba << shift, len } };
            self.leave(work.slot);
            return Reply::Respond { data, status: Status::Good, residuals: work.transfer.residuals(wanted, 0) };
        }
        // Not more blocks than the initiator takes.
        let blocks = (len as u64).div_ceil(1 << shift);
        let mut job = Job::read(lba, blocks);
        job.set_block_shift(shift);
        if !self.has_room(job.room()) {
            return self.full(work);
        }
        // For the residual: what the command wants in, where a job knows only what it read.
        self.slots[work.slot].wanted_out = wanted;
        self.run(work, job)
    }

    fn carry_out(&mut self, work: Work, command: &'static Command, cdb: Cdb<'_>, outcome: Outcome) -> Reply {
        match outcome {
            Err(sense) => self.check_condition(work, &sense),
            Ok(Plan::Good) => self.good(work),
            Ok(Plan::Data) => {
                if command.opcode == iscsi_proto::scsi::opcode::REPORT_LUNS {
                    self.luns_reported();
                }
                self.leave(work.slot);
                self.parameters(work.transfer)
            }
            Ok(Plan::Read { lba, blocks }) => self.read(work, lba, blocks),
            Ok(Plan::Run(mut job)) => {
                if let Some(lun) = self.luns.get(work.lun) {
                    job.set_block_shift(lun.unit.block_shift());
                }
                if !self.has_room(job.room()) {
                    return self.full(work);
                }
                self.ready(work, job)
            }
            Ok(Plan::Receive { len, then }) => self.fetch(work, command, cdb, len, then),
        }
    }

    /// Asks for the data of a command.
    fn fetch(&mut self, work: Work, command: &'static Command, cdb: Cdb<'_>, wanted: u64, then: Then) -> Reply {
        let Some(lun) = self.luns.get(work.lun) else { return self.good(work) };
        let shift = lun.unit.block_shift();
        if wanted != 0 && !work.transfer.write && work.transfer.read {
            // The initiator holds the command for a read: nothing can be written for it.
            return self.check_condition(work, &Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB));
        }
        let mut len = wanted.min(work.transfer.expected_out().into()) as usize;
        if !matches!(then, Then::Parameters(_)) {
            // A part of a block is not written.
            len = len >> shift << shift;
        }
        self.slots[work.slot].wanted_out = wanted;
        if len == 0 {
            return match then {
                Then::Parameters(_) if wanted != 0 => {
                    self.check_condition(work, &Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR))
                }
                _ => self.good(work),
            };
        }
        let mut shared = 0;
        let sink = match (&then, lun.unit.region()) {
            (Then::Write { lba, .. }, Some(region)) if work.direct => {
                let (offset, stripes) = (lba << shift, crate::lu::WriteGate::stripes(*lba, (len >> shift) as u64));
                if region.reserve_for_write(offset, len as u64).is_err() {
                    return self.check_condition(work, &fault::of_store(StoreError::NoSpace));
                }
                // While an atomic command has the blocks, the data wait in a buffer.
                lun.unit.gate().try_shared(stripes).then(|| {
                    shared = stripes;
                    Sink::Region(region.slice(offset, len))
                })
            }
            _ => None,
        };
        let sink = match sink {
            Some(sink) => sink,
            None if self.has_room(len) => Sink::Buf(self.buffers.take(len)),
            None => return self.full(work),
        };
        let cdb = keep(cdb.as_bytes()).unwrap_or(Waiting { cdb: [0; CDB], len: 0 });
        self.enter(work, State::Receiving { then, cdb, command });
        self.slots[work.slot].shared = shared;
        Reply::GetData(sink)
    }

    fn received(&mut self, task: TaskHandle, sink: Sink) -> Reply {
        let receiving = self.live(task).filter(|work| matches!(self.slots[work.slot].state, State::Receiving { .. }));
        let Some(work) = receiving else {
            if let Sink::Buf(buf) = sink {
                self.buffers.give(buf);
            }
            return Reply::Pending;
        };
        let placeholder = State::Blocked(Waiting { cdb: [0; CDB], len: 0 });
        let state = core::mem::replace(&mut self.slots[work.slot].state, placeholder);
        // `enter` below counts the placeholder out again.
        if let Some(lun) = self.luns.get_mut(work.lun) {
            lun.waiting += 1;
        }
        let State::Receiving { then, cdb, command } = state else { return self.good(work) };
        let shift = self.luns.get(work.lun).map_or(9, |lun| lun.unit.block_shift());
        match (then, sink) {
            (Then::Write { flush: false, .. }, Sink::Region(_)) => self.good(work),
            // The data are on the medium: the command has run, whatever came since.
            (Then::Write { flush: true, .. }, Sink::Region(_)) => self.run(work, Job::flush()),
            (Then::Write { lba, flush }, Sink::Buf(buf)) => {
                let mut job = Job::write(lba, flush);
                job.set_data(buf, shift);
                self.ready(work, job)
            }
            (Then::Run(mut job), Sink::Buf(buf)) => {
                job.set_data(buf, shift);
                self.ready(work, job)
            }
            (Then::Parameters(run), Sink::Buf(buf)) => {
                let reply = self.take_parameters(work, command, &cdb, run, &buf);
                self.buffers.give(buf);
                reply
            }
            // Only plain writes are placed in a region.
            (Then::Run(_) | Then::Parameters(_), Sink::Region(_)) => {
                self.check_condition(work, &fault::of_store(StoreError::Failed))
            }
        }
    }

    fn take_parameters(
        &mut self,
        work: Work,
        command: &'static Command,
        cdb: &Waiting,
        run: fn(&mut Request<'_>, &[u8]) -> Outcome,
        list: &[u8],
    ) -> Reply {
        let Some(lun) = self.luns.get_mut(work.lun) else { return self.good(work) };
        let Ok(cdb) = Cdb::new(cdb.cdb.get(..cdb.len.into()).unwrap_or_default()) else { return self.good(work) };
        self.out.clear();
        let mut request = Request {
            cdb,
            unit: &lun.unit,
            read_only: lun.read_only,
            nexus: &self.nexus,
            luns: &self.map,
            attentions: &mut lun.attentions,
            data_out: work.transfer.expected_out(),
            out: &mut self.out,
        };
        let outcome = run(&mut request, list);
        self.carry_out(work, command, cdb, outcome)
    }

    /// A job has all it needs: it runs, unless older tasks are in the way.
    fn ready(&mut self, work: Work, mut job: Job) -> Reply {
        let held = !self.slots[work.slot].is_free() && self.must_wait(work.slot);
        if held {
            self.enter(work, State::Held(job));
            return Reply::Pending;
        }
        // A write to memory needs no store.
        if let Some(reply) = self.write_to_memory(work, &mut job) {
            return reply;
        }
        self.run(work, job)
    }

    fn write_to_memory(&mut self, work: Work, job: &mut Job) -> Option<Reply> {
        let unit = &self.luns.get(work.lun)?.unit;
        let region = unit.region()?;
        let (offset, data) = job.plain_write()?;
        let (_, stripes) = job.hold();
        if !unit.gate().try_shared(stripes) {
            return None;
        }
        let written = region.reserve_for_write(offset, data.len() as u64).map(|()| region.write(offset, data));
        unit.gate().release_shared(stripes);
        for buf in job.take_buffers() {
            self.buffers.give(buf);
        }
        Some(match written {
            Ok(()) => self.good(work),
            Err(_) => self.check_condition(work, &fault::of_store(StoreError::NoSpace)),
        })
    }

    /// Takes what the job needs of the write gate, then begins it.
    fn run(&mut self, work: Work, job: Job) -> Reply {
        match self.pass_gate(work, &job) {
            true => self.launch(work, job),
            false => {
                self.enter(work, State::Gated(job));
                Reply::Pending
            }
        }
    }

    fn pass_gate(&mut self, work: Work, job: &Job) -> bool {
        let (hold, stripes) = job.hold();
        let Some(lun) = self.luns.get(work.lun) else { return true };
        let (gate, slot) = (lun.unit.gate(), &mut self.slots[work.slot]);
        let mut try_once = || match hold {
            Hold::None => true,
            Hold::Shared => {
                gate.try_shared(stripes) && {
                    slot.shared = stripes;
                    true
                }
            }
            Hold::Alone => gate.try_exclusive(stripes, &mut slot.alone),
        };
        // Whoever lets go between the first try and the wait is seen by the second try.
        try_once() || {
            gate.wait(&self.waker);
            try_once()
        }
    }

    fn launch(&mut self, work: Work, mut job: Job) -> Reply {
        let next = job.begin(&mut self.buffers);
        self.take_next(work, job, next)
    }

    fn take_next(&mut self, work: Work, job: Job, next: Next) -> Reply {
        match next {
            Next::Submit(op) => {
                self.token += 1 << 16;
                let token = self.token | work.slot as u64;
                self.enter(work, State::Running(job));
                self.slots[work.slot].token = token;
                if let Some(lun) = self.luns.get_mut(work.lun) {
                    lun.push(token, op);
                    self.in_flight += 1;
                }
                Reply::Pending
            }
            Next::Over(Ok(None)) => self.good(work),
            Next::Over(Ok(Some(buf))) => self.send(work, buf),
            Next::Over(Err(sense)) => self.check_condition(work, &sense),
        }
    }

    /// A job's data to the initiator, not more than it takes.
    fn send(&mut self, work: Work, mut buf: Buf) -> Reply {
        // For a read it is what the command wants; other jobs answer with all they have.
        let wanted = match core::mem::take(&mut self.slots[work.slot].wanted_out) {
            0 => buf.len() as u64,
            wanted => wanted,
        };
        let len = buf.len().min(work.transfer.expected_in() as usize);
        self.leave(work.slot);
        let data = if len == 0 {
            self.buffers.give(buf);
            Data::None
        } else {
            buf.set_len(len);
            Data::Buf(buf)
        };
        Reply::Respond { data, status: Status::Good, residuals: work.transfer.residuals(wanted, 0) }
    }

    /// Whether a task may use the store and this much of buffers. Operations that aborted tasks left behind are not to pile up on a store that hangs.
    fn has_room(&self, len: usize) -> bool {
        self.orphans.len() < self.slots.len() && self.buffers.has_room(len)
    }

    fn hand_over(&mut self) -> bool {
        let mut any = false;
        for lun in self.luns.iter_mut() {
            any |= lun.submit(&self.waker);
        }
        any
    }

    /// Works until a task has a step to report.
    #[cold]
    fn advance(&mut self) -> Option<(TaskHandle, Reply)> {
        for _ in 0..ROUNDS {
            while let Some(done) = self.completions.pop() {
                if let Some(found) = self.completed(done) {
                    return Some(found);
                }
            }
            if let Some(found) = self.retry_waiting() {
                return Some(found);
            }
            if self.in_flight == 0 {
                return None;
            }
            let submitted = self.hand_over();
            for lun in self.luns.iter_mut() {
                lun.poll(&mut self.completions);
            }
            // Popped from the end, they come in the store's order.
            self.completions.reverse();
            if self.completions.is_empty() && !submitted {
                return None;
            }
        }
        // Long jobs on a fast store: other sessions of the worker first.
        self.waker.wake_by_ref();
        None
    }

    fn completed(&mut self, done: StoreCompletion) -> Option<(TaskHandle, Reply)> {
        self.in_flight = self.in_flight.saturating_sub(1);
        let index = (done.token & 0xffff) as usize;
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.token == done.token) else {
            self.bury(done);
            return None;
        };
        slot.token = 0;
        let handle = slot.handle(index);
        let work = self.live(handle)?;
        let slot = &mut self.slots[index];
        // The job is out of the slot while it goes on; the state stays one that counts as not waiting.
        let State::Running(job) = &mut slot.state else { return None };
        let mut job = core::mem::replace(job, Job::flush());
        let next = job.go_on(&mut self.buffers, done);
        match self.take_next(work, job, next) {
            Reply::Pending => None,
            reply => Some((handle, reply)),
        }
    }

    /// The operation of an aborted task is done.
    fn bury(&mut self, done: StoreCompletion) {
        if let Some(buf) = done.buf {
            self.buffers.give(buf);
        }
        let Some(at) = self.orphans.iter().position(|orphan| orphan.token == done.token) else { return };
        let orphan = self.orphans.swap_remove(at);
        if let Some(lun) = self.luns.get_mut(orphan.lun) {
            lun.orphans -= 1;
            lun.unit.gate().release_shared(orphan.shared);
            lun.unit.gate().release_exclusive(orphan.alone);
        }
    }

    /// Tries the tasks that wait for others or for the write gate, oldest first.
    fn retry_waiting(&mut self) -> Option<(TaskHandle, Reply)> {
        if !self.unblock && self.gated == 0 {
            return None;
        }
        let mut after = 0;
        loop {
            let next = self
                .slots
                .iter()
                .enumerate()
                .filter(|(_, slot)| slot.sequence > after)
                .filter(|(_, slot)| matches!(slot.state, State::Blocked(_) | State::Held(_) | State::Gated(_)))
                .min_by_key(|(_, slot)| slot.sequence)
                .map(|(index, slot)| (index, slot.sequence, slot.handle(index)));
            let Some((index, sequence, handle)) = next else {
                self.unblock = false;
                return None;
            };
            after = sequence;
            let Some(work) = self.live(handle) else { continue };
            if let Some(reply) = self.retry(work, index) {
                return Some((handle, reply));
            }
        }
    }

    fn retry(&mut self, work: Work, index: usize) -> Option<Reply> {
        if matches!(self.slots[index].state, State::Blocked(_) | State::Held(_)) && self.must_wait(index) {
            return None;
        }
        let reply = match &mut self.slots[index].state {
            State::Blocked(waiting) => {
                let waiting = *waiting;
                self.begin(work, waiting.cdb.get(..waiting.len.into()).unwrap_or_default())
            }
            State::Held(job) | State::Gated(job) => {
                let job = core::mem::replace(job, Job::flush());
                self.run(work, job)
            }
            _ => return None,
        };
        (!matches!(reply, Reply::Pending)).then_some(reply)
    }
}

impl Drop for TaskExecutor {
    /// What the session's tasks hold of a logical unit is let go. Operations still at a store end with its queue.
    fn drop(&mut self) {
        for index in 0..self.slots.len() {
            self.leave(index);
        }
        for orphan in core::mem::take(&mut self.orphans) {
            if let Some(lun) = self.luns.get(orphan.lun) {
                lun.unit.gate().release_shared(orphan.shared);
                lun.unit.gate().release_exclusive(orphan.alone);
            }
        }
    }
}

/// Keeps a CDB for later; `None` for one longer than any command's.
fn keep(cdb: &[u8]) -> Option<Waiting> {
    let cdb = cdb.get(..cdb.len().min(CDB))?;
    let mut kept = Waiting { cdb: [0; CDB], len: cdb.len() as u8 };
    kept.cdb.get_mut(..cdb.len())?.copy_from_slice(cdb);
    Some(kept)
}

#[cfg(test)]
#[path = "executor_tests.rs"]
mod tests;
