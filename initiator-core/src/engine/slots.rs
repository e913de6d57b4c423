//! The table of commands under way, sized once.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use iscsi_proto::datamover::TaskHandle;
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;

use crate::command::{Command, Failure, Outcome};

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// To be sent as soon as the window allows.
    Ready,
    /// To be sent again at that time.
    BackOff(Instant),
    /// Sent; its buffers are the mover's.
    InFlight,
    /// Sent, overdue, and being aborted.
    Aborting,
    /// Over for the target, but the mover still has its data in the send queue.
    Held,
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
}

/// A command and its history.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) command: Command,
    pub(super) state: State,
    /// When an answer is due; meaningful while in flight.
    pub(super) deadline: Instant,
    pub(super) cmd_sn: Serial,
    pub(super) attempts: u8,
    /// Nobody waits for it any more.
    pub(super) abandoned: bool,
    pub(super) expected_out: u32,
    pub(super) expected_in: u32,
    /// Where its data for the target lie: how a buffer that the mover releases finds back.
    pub(super) out_address: usize,
    /// What follows [`State::Held`].
    pub(super) after: After,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u16,
    task: Option<Task>,
}

/// All commands of a session that its application has handed over.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Commands in [`State::Ready`], in the order of sending.
    ready: VecDeque<u16>,
    in_flight: usize,
    backing_off: usize,
}

impl Slots {
    pub(super) fn new(size: u16) -> Self {
        Self {
            slots: (0..size).map(|_| Slot::default()).collect(),
            free: (0..size).rev().collect(),
            ready: VecDeque::with_capacity(size.into()),
            in_flight: 0,
            backing_off: 0,
        }
    }

    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn backing_off(&self) -> usize {
        self.backing_off
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Takes a command in. The caller has seen [`has_free`](Self::has_free).
    pub(super) fn insert(&mut self, task: Task) -> u16 {
        let index = self.free.pop().expect("a free slot was seen");
        self.slots[usize::from(index)].task = Some(task);
        self.ready.push_back(index);
        index
    }

    pub(super) fn get_mut(&mut self, index: u16) -> Option<&mut Task> {
        self.slots.get_mut(usize::from(index))?.task.as_mut()
    }

    /// The slot behind a tag of the wire, if its command is under way under just this tag.
    pub(super) fn by_tag(&self, itt: u32) -> Option<u16> {
        let TaskHandle { slot, generation } = TaskHandle::from_itt(itt);
        let found = self.slots.get(usize::from(slot)).filter(|found| found.generation == generation)?;
        found.task.as_ref().filter(|task| matches!(task.state, State::InFlight | State::Aborting)).map(|_| slot)
    }

    pub(super) fn handle(&self, index: u16) -> TaskHandle {
        TaskHandle { slot: index, generation: self.slots[usize::from(index)].generation }
    }

    /// The next command to send moves into [`State::InFlight`] under a new tag.
    pub(super) fn start(&mut self) -> Option<(TaskHandle, &mut Task)> {
        let index = self.ready.pop_front()?;
        let slot = &mut self.slots[usize::from(index)];
        slot.generation = slot.generation.wrapping_add(1);
        let task = slot.task.as_mut()?;
        task.state = State::InFlight;
        self.in_flight += 1;
        Some((TaskHandle { slot: index, generation: slot.generation }, task))
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Changes the state of a command that is in the table.
    pub(super) fn set_state(&mut self, index: u16, state: State) {
        let Some(task) = self.slots.get_mut(usize::from(index)).and_then(|slot| slot.task.as_mut()) else { return };
        let old = core::mem::replace(&mut task.state, state);
        self.leave(index, old);
        match state {
            State::Ready => self.ready.push_back(index),
            State::BackOff(_) => self.backing_off += 1,
            State::InFlight | State::Aborting => self.in_flight += 1,
            State::Held => {}
        }
    }

    fn leave(&mut self, index: u16, state: State) {
        match state {
            State::Ready => self.ready.retain(|other| *other != index),
            State::BackOff(_) => self.backing_off -= 1,
            State::InFlight | State::Aborting => self.in_flight -= 1,
            State::Held => {}
        }
    }

    /// Takes a command out of the table.
    pub(super) fn remove(&mut self, index: u16) -> Option<Task> {
        let task = self.slots.get_mut(usize::from(index))?.task.take()?;
        self.leave(index, task.state);
        self.free.push(index);
        Some(task)
    }

    /// Every command in the table, with its slot.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut Task)> {
        (0u16..).zip(&mut self.slots).filter_map(|(index, slot)| Some((index, slot.task.as_mut()?)))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &Task)> {
        (0u16..).zip(&self.slots).filter_map(|(index, slot)| Some((index, slot.task.as_ref()?)))
    }

    /// Puts what was sent before what was not, each in the order in which it was given: the order in which a new connection sends them.
    pub(super) fn sort_ready(&mut self) {
        let slots = &self.slots;
        self.ready.make_contiguous().sort_by(|a, b| {
            let key = |index: &u16| {
                slots[usize::from(*index)].task.as_ref().map_or((true, 0), |task| (task.attempts == 0, task.cmd_sn.0))
            };
            let ((a_new, a_sn), (b_new, b_sn)) = (key(a), key(b));
            a_new.cmp(&b_new).then(if a_new {
                core::cmp::Ordering::Equal
            } else {
                Serial(b_sn).distance(Serial(a_sn)).cmp(&0)
            })
        });
    }
}
