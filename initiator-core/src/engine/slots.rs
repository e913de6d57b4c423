//! The table of commands under way, sized once.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use iscsi_memory::Payload;
use iscsi_proto::datamover::TaskHandle;
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;
use scsi_proto::{CdbBuf, Lun};

use super::extent::{Claim, Effect, Extent};
use super::guard::Guards;
use super::probe::Question;
use crate::command::{Command, Failure, Outcome};

/// Places for commands of the session's own: one for each kind of [`Errand`].
pub(super) const ERRANDS: u16 = 2;

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// No command is there.
    Free,
    /// To be sent as soon as the window allows.
    Ready,
    /// To be sent again at that time.
    BackOff(Instant),
    /// To be sent again once its unit has answered a START STOP UNIT.
    Starting,
    /// Sent; its buffers are the mover's.
    InFlight,
    /// Sent, overdue, and being aborted.
    Aborting,
    /// Over for the target, but the mover still has its data in the send queue.
    Held,
}

impl State {
    /// Whether the command waits to be sent, the first time or again.
    pub(super) const fn is_waiting(self) -> bool {
        matches!(self, Self::Ready | Self::BackOff(_) | Self::Starting)
    }
}

/// Bytes that a command moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Moved {
    pub(super) data_in: u32,
    pub(super) data_out: u32,
}

impl Moved {
    pub(super) const NOTHING: Self = Self { data_in: 0, data_out: 0 };
}

/// What becomes of a command that the target is done with.
#[derive(Debug, Clone, Copy)]
pub(super) enum After {
    /// It completes like this, with so many bytes moved.
    Finish(Result<Outcome, Failure>, Moved),
    /// It is sent again as soon as the window allows.
    Again,
    /// It is sent again at that time.
    Later(Instant),
    /// It is sent again once its unit has been started.
    Started,
}

/// What a command of the session's own is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Errand {
    /// A question for a guard, by its number.
    Ask(u32, Question),
    /// START STOP UNIT.
    Start,
}

/// A command and its history.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) command: Command,
    pub(super) state: State,
    /// When the application handed it over.
    pub(super) handed_over: Instant,
    /// When an answer is due; meaningful while in flight.
    pub(super) deadline: Instant,
    pub(super) cmd_sn: Serial,
    /// Bytes of it that had moved when it was last looked at.
    pub(super) moved: u64,
    /// How often it was given its time again.
    pub(super) spared: u8,
    pub(super) attempts: u8,
    /// Nobody waits for it any more.
    pub(super) abandoned: bool,
    /// Nobody waits for it, it is under way, and it may change blocks: its end is to be made sure of.
    pub(super) given_up: bool,
    /// Whether its abort is still to be sent.
    pub(super) abort_wanted: bool,
    pub(super) claim: Claim,
    /// What it is for, where it is no command of the application's.
    pub(super) errand: Option<Errand>,
    /// Its unit has been started for it.
    pub(super) start_tried: bool,
    pub(super) expected_out: u32,
    pub(super) expected_in: u32,
    /// Where its data for the target lie: how a buffer that the mover releases finds back.
    pub(super) out_address: usize,
}

impl Task {
    /// Buffers come back from the mover. It may have released the data for the target before, or may do so later.
    pub(super) fn take_back(&mut self, data_out: Option<Payload>, data_in: Option<Payload>) {
        if data_out.is_some() {
            self.command.data_out = data_out;
        }
        self.command.data_in = data_in;
    }

    /// What a free place holds: a task is large, and is filled in where it stands.
    const fn empty() -> Self {
        let lun = Lun::ZERO;
        Self {
            command: Command::new(0, lun, CdbBuf::EMPTY),
            state: State::Free,
            handed_over: Instant::ZERO,
            deadline: Instant::ZERO,
            cmd_sn: Serial(0),
            moved: 0,
            spared: 0,
            attempts: 0,
            abandoned: false,
            given_up: false,
            abort_wanted: false,
            claim: Claim { lun, extent: Extent::Nothing, effect: Effect::Nothing, issue: 0 },
            errand: None,
            start_tried: false,
            expected_out: 0,
            expected_in: 0,
            out_address: 0,
        }
    }
}

#[derive(Debug)]
struct Slot {
    generation: u16,
    task: Task,
}

impl Slot {
    #[inline]
    fn task(&self) -> Option<&Task> {
        (self.task.state != State::Free).then_some(&self.task)
    }

    #[inline]
    fn task_mut(&mut self) -> Option<&mut Task> {
        (self.task.state != State::Free).then_some(&mut self.task)
    }
}

/// All commands of a session that its application has handed over.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Commands in [`State::Ready`], in the order in which they were handed over.
    ready: VecDeque<u16>,
    in_flight: usize,
    backing_off: usize,
    /// Commands in [`State::Starting`].
    starting: usize,
    /// Commands in [`State::Aborting`].
    aborting: usize,
    /// Commands that are [given up](Task::given_up).
    given_up: usize,
    /// Of these, those whose abort is to be sent.
    aborts_wanted: usize,
    /// What follows [`State::Held`]. Few commands come by that state, and a task is large as it is.
    held: Vec<(u16, After)>,
}

impl Slots {
    pub(super) fn new(size: u16) -> Self {
        Self {
            slots: (0..size).map(|_| Slot { generation: 0, task: Task::empty() }).collect(),
            free: (0..size).rev().collect(),
            ready: VecDeque::with_capacity(size.into()),
            in_flight: 0,
            backing_off: 0,
            starting: 0,
            aborting: 0,
            given_up: 0,
            aborts_wanted: 0,
            held: Vec::with_capacity(size.into()),
        }
    }

    /// Whether the application may give a command: the last places are for [`Errand`]s.
    pub(super) fn has_room(&self) -> bool {
        self.free.len() > usize::from(ERRANDS)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn backing_off(&self) -> usize {
        self.backing_off
    }

    pub(super) fn starting(&self) -> usize {
        self.starting
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Takes a command in. The caller has seen [`has_room`](Self::has_room), or has an [`Errand`], of which there is
    /// one of each kind at a time. Its claim is the latest of all.
    #[inline(always)]
    pub(super) fn insert(&mut self, command: Command, claim: Claim, errand: Option<Errand>, now: Instant) -> &mut Task {
        let index = self.free.pop().expect("a free slot was seen");
        self.ready.push_back(index);
        let task = &mut self.slots[usize::from(index)].task;
        debug_assert!(task.state == State::Free);
        task.command = command;
        task.state = State::Ready;
        (task.handed_over, task.deadline) = (now, now);
        task.cmd_sn = Serial(0);
        (task.moved, task.spared, task.attempts) = (0, 0, 0);
        (task.abandoned, task.given_up, task.abort_wanted) = (false, false, false);
        (task.claim, task.errand, task.start_tried) = (claim, errand, false);
        (task.expected_out, task.expected_in, task.out_address) = (0, 0, 0);
        task
    }

    /// Commands are sent in the order in which they were handed over, those too that are sent again: where they touch
    /// the same blocks, none is carried out after one that was given later.
    fn enqueue(&mut self, index: u16) {
        let slots = &self.slots;
        let issue = |index: &u16| slots[usize::from(*index)].task.claim.issue;
        let own = issue(&index);
        if self.ready.back().is_none_or(|last| issue(last) < own) {
            return self.ready.push_back(index);
        }
        let at = self.ready.partition_point(|other| issue(other) < own);
        self.ready.insert(at, index);
    }

    pub(super) fn get_mut(&mut self, index: u16) -> Option<&mut Task> {
        self.slots.get_mut(usize::from(index))?.task_mut()
    }

    /// The slot behind a tag of the wire, if its command is under way under just this tag.
    pub(super) fn by_tag(&self, itt: u32) -> Option<u16> {
        let TaskHandle { slot, generation } = TaskHandle::from_itt(itt);
        let found = self.slots.get(usize::from(slot)).filter(|found| found.generation == generation)?;
        matches!(found.task.state, State::InFlight | State::Aborting).then_some(slot)
    }

    pub(super) fn handle(&self, index: u16) -> TaskHandle {
        TaskHandle { slot: index, generation: self.slots[usize::from(index)].generation }
    }

    /// Where in the queue the next command to send stands: the first that no older one holds up whose fate is open.
    #[inline]
    fn next(&self, guards: &Guards) -> Option<usize> {
        if self.ready.is_empty() {
            return None;
        }
        let open = self.aborting + self.given_up + self.backing_off + self.starting;
        if open == 0 && guards.are_content() { Some(0) } else { self.next_past_open(guards) }
    }

    #[cold]
    fn next_past_open(&self, guards: &Guards) -> Option<usize> {
        let open = |task: &Task| match task.state {
            State::Aborting | State::BackOff(_) | State::Starting => true,
            State::InFlight => task.given_up,
            State::Ready | State::Held | State::Free => false,
        };
        let task = |index: &u16| self.slots.get(usize::from(*index)).and_then(Slot::task);
        let is_held = |at: usize, index: &u16| {
            let Some(own) = task(index) else { return true };
            !guards.lets_pass(own.command.guard)
                || self.iter().any(|(_, other)| open(other) && other.claim.holds_up(&own.claim))
                // What waits here keeps its place before what came later.
                || self.ready.iter().take(at).filter_map(task).any(|other| other.claim.holds_up(&own.claim))
        };
        self.ready.iter().enumerate().position(|(at, index)| !is_held(at, index))
    }

    /// The command that has waited longest to be sent, and when it was handed over.
    pub(super) fn longest_waiting(&self) -> Option<(u16, Instant)> {
        let index = *self.ready.front()?;
        let task = self.slots.get(usize::from(index))?.task()?;
        Some((index, task.handed_over))
    }

    /// The guards of the commands that wait to be sent.
    pub(super) fn ready_guards(&self) -> impl Iterator<Item = u32> {
        self.ready.iter().filter_map(|index| self.slots.get(usize::from(*index))?.task()?.command.guard)
    }

    /// Places in all.
    pub(super) fn size(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Nobody waits for a command that is under way. True when it may change blocks, so that its end is to be made sure
    /// of.
    pub(super) fn give_up(&mut self, index: u16) -> bool {
        let Some(task) = self.get_mut(index) else { return false };
        if core::mem::replace(&mut task.abandoned, true) {
            return task.given_up;
        }
        let open = task.claim.changes() && matches!(task.state, State::InFlight | State::Aborting);
        let asks = open && task.state == State::InFlight;
        task.given_up = open;
        task.abort_wanted = asks;
        self.given_up += usize::from(open);
        self.aborts_wanted += usize::from(asks);
        open
    }

    /// A command is over for the target, and waits for its buffer.
    pub(super) fn hold(&mut self, index: u16, after: After) {
        self.set_state(index, State::Held);
        self.held.push((index, after));
    }

    /// What becomes of a command whose buffer is back.
    pub(super) fn unhold(&mut self, index: u16) -> Option<After> {
        let at = self.held.iter().position(|(other, _)| *other == index)?;
        Some(self.held.swap_remove(at).1)
    }

    /// The next command under way whose abort is to be sent.
    pub(super) fn wants_abort(&self) -> Option<u16> {
        if self.aborts_wanted == 0 {
            return None;
        }
        self.iter().find(|(_, task)| task.abort_wanted && task.state == State::InFlight).map(|(index, _)| index)
    }

    /// The abort of a command is sent, or is not to be sent any more.
    pub(super) fn abort_asked(&mut self, index: u16) {
        if let Some(task) = self.get_mut(index)
            && core::mem::take(&mut task.abort_wanted)
        {
            self.aborts_wanted -= 1;
        }
    }

    /// The next command to send moves into [`State::InFlight`] under a new tag.
    #[inline]
    pub(super) fn start(&mut self, guards: &Guards) -> Option<(TaskHandle, &mut Task)> {
        let at = self.next(guards)?;
        let index = if at == 0 { self.ready.pop_front()? } else { self.ready.remove(at)? };
        let slot = &mut self.slots[usize::from(index)];
        slot.generation = slot.generation.wrapping_add(1);
        let handle = TaskHandle { slot: index, generation: slot.generation };
        let task = slot.task_mut()?;
        task.state = State::InFlight;
        self.in_flight += 1;
        Some((handle, task))
    }

    /// Changes the state of a command that is in the table.
    pub(super) fn set_state(&mut self, index: u16, state: State) {
        let Some(task) = self.slots.get_mut(usize::from(index)).and_then(Slot::task_mut) else { return };
        let old = core::mem::replace(&mut task.state, state);
        self.leave(index, old);
        match state {
            State::Ready => self.enqueue(index),
            State::BackOff(_) => self.backing_off += 1,
            State::Starting => self.starting += 1,
            State::InFlight => self.in_flight += 1,
            State::Aborting => {
                self.in_flight += 1;
                self.aborting += 1;
            }
            State::Held | State::Free => {}
        }
        if !matches!(state, State::InFlight | State::Aborting) {
            self.settled(index);
        }
    }

    /// The fate of a command is known: it holds up nobody.
    fn settled(&mut self, index: u16) {
        self.abort_asked(index);
        if let Some(task) = self.get_mut(index)
            && core::mem::take(&mut task.given_up)
        {
            self.given_up -= 1;
        }
    }

    fn leave(&mut self, index: u16, state: State) {
        match state {
            State::Ready => self.ready.retain(|other| *other != index),
            State::BackOff(_) => self.backing_off -= 1,
            State::Starting => self.starting -= 1,
            State::InFlight => self.in_flight -= 1,
            State::Aborting => {
                self.in_flight -= 1;
                self.aborting -= 1;
            }
            State::Held => self.held.retain(|(other, _)| *other != index),
            State::Free => {}
        }
    }

    /// Takes a command out of the table. Its buffers have been taken from it.
    #[inline]
    pub(super) fn remove(&mut self, index: u16) {
        let Some(task) = self.slots.get_mut(usize::from(index)).and_then(Slot::task_mut) else { return };
        let (state, given_up) = (core::mem::replace(&mut task.state, State::Free), task.given_up);
        self.aborts_wanted -= usize::from(task.abort_wanted);
        self.given_up -= usize::from(given_up);
        match state {
            // As nearly all do.
            State::InFlight => self.in_flight -= 1,
            _ => self.leave(index, state),
        }
        self.free.push(index);
    }

    /// Takes a command out of the table, and lets go of its buffers.
    pub(super) fn discard(&mut self, index: u16) {
        if let Some(task) = self.get_mut(index) {
            (task.command.data_out, task.command.data_in) = (None, None);
        }
        self.remove(index);
    }

    /// Every command in the table, with its slot.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut Task)> {
        (0u16..).zip(&mut self.slots).filter_map(|(index, slot)| Some((index, slot.task_mut()?)))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &Task)> {
        (0u16..).zip(&self.slots).filter_map(|(index, slot)| Some((index, slot.task()?)))
    }
}
