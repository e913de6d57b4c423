//! The executor: a table of tasks, and the calls of the session. How tasks begin, wait in the table and go on is in the
//! sibling modules.
//!
//! The short way leaves no trace in the table: a read of a store with a memory door, and every command that only looks
//! at or sets state, is answered within `start`. The long way is `Blocked` (task attributes), `Receiving` (data from
//! the initiator), `Held` (attributes again), `Gated` (the write gate), `Running` (the store), in this order, each left
//! out where there is no need.

use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Waker;

use futures::task::AtomicWaker;
use iscsi_memory::{Buf, Payload, SessionBuffers};
use iscsi_proto::datamover::{DataError, Source, TaskHandle, TaskStatus};
use iscsi_proto::pdu::{Residual, TaskAttribute};
use scsi_proto::{Sense, SenseBytes, Status};

use super::lun::{Lun, Luns};
use super::progress::TURN;
use super::short::GOOD;
use super::slot::{Slot, State, Transfer};
use super::{AtOnce, ExecutorConfig, NewTask, Nexus, Step};
use crate::device_server::fault;
use crate::lu::{LogicalUnit, LunMap, UnitAttention};
use backstore::{GatePlace, StoreCompletion};

/// Passes a store's wake-up on to whoever drives the session now.
#[derive(Default)]
pub(super) struct Bell {
    driver: AtomicWaker,
    /// Bytes that are to land in some unit's memory have a place in line at its gate.
    pub(super) in_line: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.driver.wake();
    }
}

/// The store operation of an aborted task: what is left to do when it ends.
pub(super) struct Orphan {
    pub(super) token: u64,
    pub(super) lun: u16,
    pub(super) place: Option<GatePlace>,
    /// What the task was in the order of tasks: those that waited for it wait for what it left.
    pub(super) sequence: u64,
    pub(super) attribute: TaskAttribute,
}

/// An ORDERED or HEAD OF QUEUE read that is answered, and whose data are still to be sent from the store's memory.
pub(super) struct Sending {
    pub(super) lun: u16,
    /// How much must have been sent; `u64::MAX` until the session has queued it.
    pub(super) until: u64,
}

/// What a step will say, without the borrow.
pub(super) enum Reply {
    Pending,
    GetData(Payload),
    /// A part of the task's data, from this byte of them on.
    Send {
        buf: Buf,
        offset: u32,
    },
    /// The last of its data, from this byte of them on, and its end.
    Respond {
        data: Data,
        offset: u32,
        status: Status,
        residuals: (Residual, Residual),
    },
}

pub(super) enum Data {
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
pub(super) struct Work {
    pub(super) slot: usize,
    pub(super) lun: u16,
    pub(super) transfer: Transfer,
    /// Data may be placed directly: allowed by the session, and no older task is in the way.
    pub(super) direct: bool,
    /// No data came with it, nor come unasked: they can be asked for at any time. What came once is not asked for again
    /// (RFC 7143 4.2.5.2).
    pub(super) may_wait: bool,
}

/// Runs the tasks of one session. Bounds: see [`ExecutorConfig`].
pub struct TaskExecutor {
    pub(super) map: Arc<LunMap>,
    pub(super) nexus: Nexus,
    pub(super) luns: Luns,
    /// As many as tasks have needed, at most `most_slots`.
    pub(super) slots: Vec<Slot>,
    pub(super) most_slots: usize,
    pub(super) sequence: u64,
    pub(super) buffers: SessionBuffers,
    max_buffered: usize,
    /// Parameter data of the last answer.
    pub(super) out: Vec<u8>,
    /// Sense data of the last answer.
    pub(super) sense: SenseBytes,
    pub(super) bell: Arc<Bell>,
    pub(super) waker: Waker,
    pub(super) completions: Vec<StoreCompletion>,
    pub(super) orphans: Vec<Orphan>,
    pub(super) token: u64,
    /// Operations submitted or gathered, of all LUNs.
    pub(super) in_flight: usize,
    /// What is left of the turn: see [`TURN`].
    pub(super) turn: usize,
    /// A task ended that others may have waited for.
    pub(super) unblock: bool,
    /// Tasks that wait for the write gate.
    pub(super) gated: usize,
    /// Tasks that wait for buffers for what they read.
    pub(super) short: usize,
    /// The task for which the session waits in line for buffers.
    pub(super) in_line: Option<usize>,
    /// Data of the initiator did not come in time: see [`Self::set_late`].
    pub(super) is_late: bool,
    /// A task was told to come again for want of buffers.
    pub(super) was_refused: bool,
    /// Tasks that wait are being looked at.
    pub(super) retrying: bool,
    /// The mover lands whole blocks in lent memory, and asks before it does.
    pub(super) asks_to_land: bool,
    /// Bytes that have left, and those with what is queued behind them, as last [noted](Self::note_sends).
    pub(super) sent: u64,
    pub(super) queued: u64,
    /// Tasks wait until so much is sent; 0 for none.
    pub(super) awaited: u64,
    pub(super) sending: Vec<Sending>,
    /// A task was told of a flush that failed.
    pub(super) told_flush: bool,
    /// The unit attention that the last answer of one tells, with its LUN.
    pub(super) attention: Option<(u16, UnitAttention)>,
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
            luns: Luns::new(&luns, &nexus),
            map: luns,
            nexus,
            slots: Vec::new(),
            most_slots: config.slots.max(1).into(),
            sequence: 0,
            buffers: SessionBuffers::alone(config.max_idle),
            max_buffered: config.max_buffered,
            out: Vec::new(),
            sense: SenseBytes::default(),
            waker: Waker::from(bell.clone()),
            bell,
            completions: Vec::new(),
            orphans: Vec::new(),
            token: 0,
            in_flight: 0,
            turn: TURN,
            unblock: false,
            gated: 0,
            short: 0,
            in_line: None,
            is_late: false,
            was_refused: false,
            retrying: false,
            asks_to_land: false,
            sent: 0,
            queued: 0,
            awaited: 0,
            sending: Vec::new(),
            told_flush: false,
            attention: None,
        }
    }

    /// Whether one of the last steps tells of a flush that failed. Once that is acknowledged, the caller says so by
    /// [`flushes_heard`](Self::flushes_heard).
    pub(crate) fn take_told_flush(&mut self) -> bool {
        core::mem::take(&mut self.told_flush)
    }

    /// The initiator has acknowledged every step so far that tells of a flush that failed.
    #[cold]
    pub(crate) fn flushes_heard(&mut self) {
        self.luns.iter_mut().for_each(|lun| lun.flushes.acknowledged(&lun.unit));
    }

    /// Tells whether the mover lands whole blocks, and asks before it does
    /// ([`iscsi_proto::datamover::Datamover::asks_to_land`]). Where it does not, the data of a write to lent memory are
    /// fetched into a buffer, and copied when they are all there.
    pub fn set_asks_to_land(&mut self, asks: bool) {
        self.asks_to_land = asks;
    }

    /// Tells how many bytes the mover has [sent](iscsi_proto::datamover::Datamover::sent) and has queued: before each
    /// command, and before [`poll`](Self::poll). A read is answered with the store's own memory; for the tasks that
    /// wait for it, it is over when that has been sent.
    #[inline]
    pub fn note_sends(&mut self, sent: u64, backlog: usize) {
        self.sent = sent;
        self.queued = sent + backlog as u64;
        if self.awaited != 0 {
            self.sends_moved();
        }
        // Buffers may have come back.
        self.unblock |= self.is_short();
    }

    /// Whether a task waits for buffers.
    pub(crate) fn is_short(&self) -> bool {
        self.short != 0 || self.in_line.is_some()
    }

    /// Whether a task was told to come again for want of buffers, since that was last
    /// [forgotten](Self::forget_refusals).
    pub(crate) fn was_refused(&self) -> bool {
        self.was_refused
    }

    /// All that could be given back has been.
    pub(crate) fn forget_refusals(&mut self) {
        self.was_refused = false;
    }

    /// Whether a task waits for bytes to be sent, or for buffers that may come back then, or was told to come again for
    /// want of them.
    #[must_use]
    pub fn awaits_sends(&self) -> bool {
        self.awaited != 0 || self.is_short() || self.was_refused
    }

    #[cold]
    fn sends_moved(&mut self) {
        let (sent, queued, luns) = (self.sent, self.queued, &mut self.luns);
        let mut last = 0;
        self.sending.retain_mut(|sending| {
            sending.until = sending.until.min(queued);
            let over = sending.until <= sent;
            if over && let Some(lun) = luns.get_mut(sending.lun) {
                lun.barriers -= 1;
            }
            last = last.max(sending.until);
            !over
        });
        if self.awaited == u64::MAX {
            self.awaited = queued;
        }
        self.awaited = self.awaited.max(last);
        if self.awaited <= sent {
            self.awaited = 0;
        }
        self.unblock = true;
    }

    /// Has it take its buffers from there, instead of a pool of its own; before the first task.
    #[must_use]
    pub fn with_buffers(mut self, buffers: SessionBuffers) -> Self {
        self.buffers = buffers;
        self
    }

    /// Gives tables back: the session has been silent for a while.
    pub(crate) fn trim(&mut self) {
        if self.slots.iter().all(Slot::is_free) {
            self.slots = Vec::new();
        }
        if self.completions.is_empty() {
            self.completions = Vec::new();
        }
    }

    /// The entry of a slot; none if it is not below the bound.
    pub(super) fn slot_of(&mut self, task: TaskHandle) -> Option<&mut Slot> {
        let at = usize::from(task.slot);
        if at >= self.slots.len() && at < self.most_slots {
            self.slots.resize_with(at + 1, || Slot::EMPTY);
        }
        self.slots.get_mut(at)
    }

    /// The session that it serves.
    #[must_use]
    pub fn nexus(&self) -> &Nexus {
        &self.nexus
    }

    /// Does a command at once if it is one that leaves no task behind: a plain read of a store's memory, or a plain
    /// write to it whose `data` have all come. Otherwise nothing has happened, and [`start`](Self::start) is to be
    /// called.
    #[inline]
    pub fn start_at_once(&mut self, new: &NewTask<'_>, data: &[u8]) -> Option<AtOnce<'_>> {
        if let Some(short) = self.short_read(new) {
            return Some(AtOnce { written: 0, data: self.source(short), status: GOOD });
        }
        if data.is_empty() || !self.write_short(new, data) {
            return None;
        }
        Some(AtOnce { written: data.len() as u32, data: Source::None, status: GOOD })
    }

    /// A command came. A slot whose earlier task has not ended is aborted first.
    #[inline]
    pub fn start(&mut self, new: NewTask<'_>) -> Step<'_> {
        if let Some(short) = self.short_read(&new) {
            return Step::Respond { data: self.source(short), offset: 0, status: GOOD };
        }
        self.start_other(&new)
    }

    fn start_other(&mut self, new: &NewTask<'_>) -> Step<'_> {
        if let Some(sink) = self.short_write(new) {
            return Step::GetData { sink };
        }
        self.attention = None;
        let mut reply = self.accept(new);
        if new.unsolicited {
            reply = self.after_unsolicited(new, reply);
        }
        self.step(reply)
    }

    /// The data of [`Step::GetData`] are in place.
    pub fn data_arrived(&mut self, task: TaskHandle, sink: Payload) -> Step<'_> {
        if matches!(sink, Payload::Region(_)) && self.short_arrived(task) {
            return Step::Respond { data: Source::None, offset: 0, status: GOOD };
        }
        let reply = self.received(task, sink);
        self.step(reply)
    }

    /// The data of [`Step::GetData`] did not come in whole.
    pub fn data_failed(&mut self, task: TaskHandle, sink: Payload, error: DataError) -> Step<'_> {
        if let Payload::Buf(buf) = sink {
            self.buffers.give(buf);
        }
        self.end_receiving(task, &fault::of_transfer(error))
    }

    /// A task that waits for its data ends without them.
    fn end_receiving(&mut self, task: TaskHandle, sense: &Sense) -> Step<'_> {
        let reply = match self.live(task) {
            Some(work) => self.answer_of(work).unwrap_or_else(|| self.check_condition(work, sense)),
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

    /// Forgets the task: no step follows. A store operation under way ends unseen; [`busy`](Self::busy) counts it.
    /// Buffers that the mover has of the task come back by [`give`](Self::give).
    pub fn abort(&mut self, task: TaskHandle) {
        let Some(work) = self.live(task) else { return };
        let slot = &mut self.slots[work.slot];
        let token = core::mem::take(&mut slot.token);
        if token != 0 {
            // What it holds of the write gate it holds until its operation ends, and lets no other writer in there.
            let place = slot.place.take();
            let (sequence, attribute) = (slot.sequence, slot.attribute);
            let barrier = slot.is_barrier();
            let mut orphan = Orphan { token, lun: work.lun, place, sequence, attribute };
            if let Some(lun) = self.luns.get_mut(work.lun) {
                lun.barriers += u32::from(barrier);
                orphan.place = orphan.place.map(|place| lun.unit.gate().leave_behind(place));
                lun.orphans += 1;
            }
            self.orphans.push(orphan);
        }
        self.leave(work.slot);
    }

    /// Forgets every task, as [`abort`](Self::abort) does.
    pub fn abort_all(&mut self) {
        for index in 0..self.slots.len() {
            if let Some(slot) = self.slots.get(index).filter(|slot| !slot.is_free()) {
                let task = slot.handle(index);
                self.abort(task);
            }
        }
    }

    /// The tasks on the logical units that `reached` likes, also where the session no longer sees them.
    pub(crate) fn tasks_where(&self, reached: impl Fn(&Arc<LogicalUnit>) -> bool) -> impl Iterator<Item = TaskHandle> {
        let on = move |lun: u16| self.luns.get(lun).is_some_and(|lun| reached(&lun.unit));
        let busy = self.slots.iter().enumerate().filter(move |(_, slot)| !slot.is_free() && on(slot.lun));
        busy.map(|(index, slot)| slot.handle(index))
    }

    /// Has the initiator hear of what happened to one of its logical units, with its next command to it.
    pub(crate) fn add_attention(&mut self, unit: &Arc<LogicalUnit>, attention: UnitAttention) {
        for lun in self.luns.iter_mut().filter(|lun| Arc::ptr_eq(unit, &lun.unit)) {
            lun.attentions.add(attention);
        }
    }

    /// Who is woken, once, when a store has something to say: to be set again after each wake, before
    /// [`poll`](Self::poll). A turn begins with it.
    pub fn set_waker(&mut self, waker: &Waker) {
        self.bell.driver.register(waker);
        self.turn = TURN;
    }

    /// All that came has been looked at: bytes that waited for their turn at a write gate, had it, and did not land now
    /// have lost it. Nobody waits for a peer that takes no answers, nor for data that came and are wanted no more.
    pub(crate) fn end_turns(&mut self) {
        if self.bell.in_line.load(Ordering::Relaxed) {
            let mut any = false;
            for lun in self.luns.iter_mut() {
                any |= lun.end_turn();
            }
            self.bell.in_line.store(any, Ordering::Relaxed);
        }
    }

    /// The turn has done its part and there is more: nobody is woken for it, [`set_waker`](Self::set_waker) is to be
    /// called again when others have had theirs.
    #[must_use]
    pub fn has_more_work(&self) -> bool {
        self.in_flight != 0 && self.luns.is_behind()
    }

    /// Store operations of aborted tasks that are still under way, for one LUN (by its eight bytes) or for all.
    #[must_use]
    pub fn busy(&self, lun: Option<u64>) -> usize {
        self.busy_since(lun, u64::MAX)
    }

    /// The last operation so far: who has tasks aborted waits for nothing that begins after it.
    pub(crate) fn last_operation(&self) -> u64 {
        // The slot is in the low bits.
        self.token | 0xffff
    }

    /// The same as [`busy`](Self::busy), of operations up to [the last one](Self::last_operation) of a time.
    pub(crate) fn busy_since(&self, lun: Option<u64>, last: u64) -> usize {
        match lun.map(|lun| self.luns.orphans(lun)) {
            None if last == u64::MAX => self.orphans.len(),
            None => self.orphans.iter().filter(|orphan| orphan.token <= last).count(),
            Some(0) => 0,
            Some(_) => {
                let number = lun.and_then(Luns::number);
                self.orphans_of(last, |lun| number == Some(lun.number))
            }
        }
    }

    /// The same for these logical units, or for all.
    pub(crate) fn busy_on(&self, units: Option<&[Arc<LogicalUnit>]>, last: u64) -> usize {
        match units {
            None => self.busy_since(None, last),
            Some(units) => self.orphans_of(last, |lun| units.iter().any(|unit| Arc::ptr_eq(unit, &lun.unit))),
        }
    }

    fn orphans_of(&self, last: u64, likes: impl Fn(&Lun) -> bool) -> usize {
        let old = self.orphans.iter().filter(|orphan| orphan.token <= last);
        old.filter(|orphan| self.luns.get(orphan.lun).is_some_and(&likes)).count()
    }

    /// The logical units on which such operations are under way.
    pub(crate) fn busy_units(&self) -> Arc<[Arc<LogicalUnit>]> {
        self.luns.orphaned().collect()
    }

    /// Takes back a buffer that was sent ([`iscsi_proto::datamover::Notification::Released`]) or that a task had given
    /// to the mover.
    pub fn give(&mut self, buf: Buf) {
        self.buffers.give(buf);
    }

    /// Bytes of buffers that are out: at the store, at the mover, or holding data that wait.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.buffers.out()
    }

    /// How many bytes a read may have now, of `wanted`; 0 when it is to wait. Those that wait come first.
    pub(super) fn room(&self, wanted: usize) -> usize {
        if self.short != 0 && !self.retrying {
            return 0;
        }
        let out = self.buffers.out();
        let within = out == 0 || out.saturating_add(wanted) <= self.max_buffered;
        let room = if within { self.buffers.room(wanted) } else { 0 };
        if room == 0 { self.room_before_others(wanted) } else { room }
    }

    /// The same, where the session has much out: what is held by tasks that wait for others does not keep those others
    /// from going on, with the session's own.
    #[cold]
    fn room_before_others(&self, wanted: usize) -> usize {
        let held = |slot: &Slot| if let State::Held(job) = &slot.state { job.buffered() } else { 0 };
        match self.slots.iter().map(held).sum() {
            0 => 0,
            held => self.buffers.room_beside(wanted, held),
        }
    }

    /// Whether the session may have `len` bytes more in buffers, in one piece. One command alone always may by the
    /// bound of the session.
    pub(super) fn may_take(&self, len: usize) -> bool {
        let out = self.buffers.out();
        let within = out == 0 || out.saturating_add(len) <= self.max_buffered;
        let has_room = |len| if self.is_late { self.buffers.has_spare(len) } else { self.buffers.has_room(len) };
        // What needs no buffer waits for none.
        len == 0 || within && has_room(len)
    }

    /// Tells whether data that the initiator owed have not come in time. As long as it is so, the session gets no more
    /// than its own share of the buffers while others wait for some: it would keep them as long again.
    pub(crate) fn set_late(&mut self, is_late: bool) {
        self.is_late = is_late;
        if is_late && self.in_line.take().is_some() {
            self.buffers.wait_no_more();
            self.unblock = true;
        }
    }

    /// Whether [data did not come in time](Self::set_late).
    pub(crate) fn is_late(&self) -> bool {
        self.is_late
    }

    #[inline]
    pub(super) fn step(&self, reply: Reply) -> Step<'_> {
        let (data, offset, status, residuals) = match reply {
            Reply::Respond { data, offset, status, residuals } => (data, offset, status, residuals),
            Reply::Send { buf, offset } => return Step::Send { data: Source::Buf(buf), offset },
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
            offset,
            status: TaskStatus { status: status.to_byte(), residual, bidirectional_read_residual, sense },
        }
    }

    /// The task behind a handle that is not stale.
    pub(super) fn live(&self, task: TaskHandle) -> Option<Work> {
        let slot = self.slots.get(usize::from(task.slot))?;
        let live = slot.generation == task.generation && !slot.is_free();
        live.then_some(Work {
            slot: task.slot.into(),
            lun: slot.lun,
            transfer: slot.transfer,
            direct: false,
            may_wait: true,
        })
    }
}

impl Drop for TaskExecutor {
    /// What the session's tasks hold of a logical unit is let go. Operations still at a store end with its queue.
    fn drop(&mut self) {
        for index in 0..self.slots.len() {
            self.leave(index);
        }
        for orphan in core::mem::take(&mut self.orphans) {
            if let (Some(lun), Some(place)) = (self.luns.get(orphan.lun), orphan.place) {
                lun.unit.gate().leave(place);
            }
        }
    }
}

#[cfg(test)]
#[path = "executor_tests.rs"]
mod tests;
