//! How a task goes on: its data came, its turn came, or the store answered.

use iscsi_memory::{Buf, Payload};
use iscsi_proto::datamover::TaskHandle;
use scsi_proto::{Cdb, Status};

use super::executor::{Data, Reply, TaskExecutor, Work};
use super::job::{Job, Next, UNMAP_PIECE};
use super::slot::{CDB, State, Waiting, is_barrier};
use crate::device_server::{Command, Outcome, Request, Then, fault};
use backstore::{StoreCompletion, StoreError, StoreOp};

/// What one turn of a session may cost in store operations before it gives way to all else that its worker does: bytes
/// that a store which answers at once moves in well under a millisecond, page faults included. An operation always runs
/// whole, however much it costs.
pub(super) const TURN: usize = 1 << 20;

/// Cost of an operation that moves little or nothing: about as much time as this many bytes.
const LEAST_COST: usize = 4096;

/// What an operation costs of a [`TURN`].
pub(super) fn cost(op: &StoreOp, block_shift: u8) -> usize {
    let bytes = match op {
        StoreOp::Read { buf, .. } | StoreOp::Write { buf, .. } => buf.len(),
        // A job's piece is half a turn.
        StoreOp::Unmap { blocks, .. } => (*blocks << block_shift) as usize / (2 * UNMAP_PIECE / TURN),
        StoreOp::Flush | StoreOp::LbaStatus { .. } => 0,
    };
    bytes.max(LEAST_COST)
}

impl TaskExecutor {
    pub(super) fn received(&mut self, task: TaskHandle, sink: Payload) -> Reply {
        let receiving = self.live(task).filter(|work| matches!(self.slots[work.slot].state, State::Receiving { .. }));
        // Data that have come are not asked for again.
        let receiving = receiving.map(|work| Work { may_wait: false, ..work });
        let Some(work) = receiving else {
            if let Payload::Buf(buf) = sink {
                self.buffers.give(buf);
            }
            return self.live(task).and_then(|work| self.answer_of(work)).unwrap_or(Reply::Pending);
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
            (Then::Write { flush: false, .. }, Payload::Region(_)) => self.good(work),
            // The data are on the medium: the command has run, whatever came since.
            (Then::Write { flush: true, .. }, Payload::Region(_)) => self.run(work, Job::flush()),
            (Then::Write { lba, flush }, Payload::Buf(buf)) => {
                let mut job = Job::write(lba, flush);
                job.set_data(buf, shift);
                self.ready(work, job)
            }
            (Then::Run(mut job), Payload::Buf(buf)) => {
                job.set_data(buf, shift);
                self.ready(work, job)
            }
            (Then::Parameters(run), Payload::Buf(buf)) => {
                let reply = self.take_parameters(work, command, &cdb, run, &buf);
                self.buffers.give(buf);
                reply
            }
            // Only plain writes are placed in a region.
            (Then::Run(_) | Then::Parameters(_), Payload::Region(_)) => {
                self.check_condition(work, &fault::of_store(StoreError::Failed))
            }
        }
    }

    pub(super) fn take_parameters(
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
    pub(super) fn ready(&mut self, work: Work, mut job: Job) -> Reply {
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

    pub(super) fn write_to_memory(&mut self, work: Work, job: &mut Job) -> Option<Reply> {
        let unit = &self.luns.get(work.lun)?.unit;
        let region = unit.region()?;
        let (offset, data) = job.plain_write()?;
        let (shift, len) = (unit.block_shift(), data.len() as u64);
        let written = unit.gate().briefly(offset >> shift, len >> shift, || region.take_and_write(offset, data))?;
        for buf in job.take_buffers() {
            self.buffers.give(buf);
        }
        Some(match written {
            Ok(()) => self.good(work),
            Err(_) => self.check_condition(work, &fault::of_store(StoreError::NoSpace)),
        })
    }

    /// Takes what the job needs of the write gate, then begins it.
    pub(super) fn run(&mut self, work: Work, job: Job) -> Reply {
        match self.pass_gate(work, &job) {
            true => self.launch(work, job),
            false => {
                self.enter(work, State::Gated(job));
                Reply::Pending
            }
        }
    }

    pub(super) fn pass_gate(&mut self, work: Work, job: &Job) -> bool {
        let Some(access) = job.access() else { return true };
        let Some(lun) = self.luns.get(work.lun) else { return true };
        let gate = lun.unit.gate();
        let place = &mut self.slots[work.slot].place;
        gate.has_passed(place.get_or_insert_with(|| gate.enter(access, job.written(), &self.waker)))
    }

    pub(super) fn launch(&mut self, work: Work, mut job: Job) -> Reply {
        let wanted = job.piece();
        if wanted != 0 {
            let room = self.room(wanted);
            if !job.set_piece(room) {
                self.enter(work, State::Short(job));
                return Reply::Pending;
            }
        }
        let next = job.begin(&self.buffers);
        self.take_next(work, job, next)
    }

    pub(super) fn take_next(&mut self, work: Work, job: Job, next: Next) -> Reply {
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
            Next::Send(buf) => {
                let slot = &mut self.slots[work.slot];
                let offset = slot.sent;
                slot.sent += buf.len() as u32;
                self.enter(work, State::Short(job));
                self.unblock = true;
                Reply::Send { buf, offset }
            }
            Next::Over(Ok(None)) => self.good(work),
            Next::Over(Ok(Some(buf))) => self.send(work, buf),
            Next::Over(Err(sense)) => self.check_condition(work, &sense),
        }
    }

    /// A job's data to the initiator, not more than it takes.
    pub(super) fn send(&mut self, work: Work, mut buf: Buf) -> Reply {
        // For a read it is what the command wants; other jobs answer with all they have.
        let wanted = match core::mem::take(&mut self.slots[work.slot].wanted_out) {
            0 => buf.len() as u64,
            wanted => wanted,
        };
        let sent = self.slots[work.slot].sent;
        let len = buf.len().min((work.transfer.expected_in() - sent.min(work.transfer.expected_in())) as usize);
        self.leave(work.slot);
        let data = if len == 0 {
            self.buffers.give(buf);
            Data::None
        } else {
            buf.set_len(len);
            Data::Buf(buf)
        };
        let residuals = work.transfer.residuals(wanted, 0);
        Reply::Respond { data, offset: sent, status: Status::Good, residuals }
    }

    pub(super) fn hand_over(&mut self) -> bool {
        let mut any = false;
        for lun in self.luns.next_first() {
            any |= lun.submit(&self.waker, &mut self.turn);
        }
        any
    }

    /// Works until a task has a step to report.
    #[cold]
    pub(super) fn advance(&mut self) -> Option<(TaskHandle, Reply)> {
        loop {
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
    }

    pub(super) fn completed(&mut self, mut done: StoreCompletion) -> Option<(TaskHandle, Reply)> {
        self.in_flight = self.in_flight.saturating_sub(1);
        let index = (done.token & 0xffff) as usize;
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.token == done.token) else {
            self.retire(done);
            return None;
        };
        slot.token = 0;
        let handle = slot.handle(index);
        let work = self.live(handle)?;
        let slot = &mut self.slots[index];
        // The job is out of the slot while it goes on; the state stays one that counts as not waiting.
        let State::Running(job) = &mut slot.state else { return None };
        let mut job = core::mem::replace(job, Job::flush());
        if job.is_flushing()
            && let Some(lun) = self.luns.get_mut(work.lun)
        {
            done.result = lun.flushes.ended(&lun.unit, self.slots[index].flushes_heard, done.result);
            self.told_flush |= done.result.is_err();
        }
        let next = job.go_on(&self.buffers, done);
        match self.take_next(work, job, next) {
            Reply::Pending => None,
            reply => Some((handle, reply)),
        }
    }

    /// The operation of an aborted task is done.
    pub(super) fn retire(&mut self, done: StoreCompletion) {
        if let Some(buf) = done.buf {
            self.buffers.give(buf);
        }
        let Some(at) = self.orphans.iter().position(|orphan| orphan.token == done.token) else { return };
        let orphan = self.orphans.swap_remove(at);
        if let Some(lun) = self.luns.get_mut(orphan.lun) {
            lun.orphans -= 1;
            lun.barriers -= u32::from(is_barrier(orphan.attribute));
            self.unblock |= lun.waiting != 0;
            if let Some(place) = orphan.place {
                lun.unit.gate().leave(place);
            }
        }
    }

    /// Tries the tasks that wait for others or for the write gate, oldest first.
    pub(super) fn retry_waiting(&mut self) -> Option<(TaskHandle, Reply)> {
        if !self.unblock && self.gated == 0 {
            return None;
        }
        let mut after = 0;
        self.retrying = true;
        let found = loop {
            let next = self
                .slots
                .iter()
                .enumerate()
                .filter(|(_, slot)| slot.sequence > after)
                .filter(|(_, slot)| slot.state.waits())
                .min_by_key(|(_, slot)| slot.sequence)
                .map(|(index, slot)| (index, slot.sequence, slot.handle(index)));
            let Some((index, sequence, handle)) = next else {
                self.unblock = false;
                break None;
            };
            after = sequence;
            let Some(work) = self.live(handle) else { continue };
            if let Some(reply) = self.retry(work, index) {
                break Some((handle, reply));
            }
        };
        self.retrying = false;
        found
    }

    pub(super) fn retry(&mut self, work: Work, index: usize) -> Option<Reply> {
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
            State::Short(job) => {
                let job = core::mem::replace(job, Job::flush());
                self.launch(work, job)
            }
            _ => return None,
        };
        (!matches!(reply, Reply::Pending)).then_some(reply)
    }
}
