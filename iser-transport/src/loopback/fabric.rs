//! The network between the two ends: what may happen next, and the choice of it.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use spin::Mutex;

use super::config::{End, Faults, LoopbackConfig};
use super::queue::LoopbackQueue;
use super::state::{Packet, Phase, ReadRequest, State};
use crate::queue::{Completion, EndCause, Established, Stag, Work};
use crate::random::Random;

const NOT_TAKEN: &str = "the network did not take it";

/// Two connected queue pairs, the active end first, and what moves them.
///
/// The connection itself takes steps, too: neither end is established yet, and it may be refused.
#[must_use]
pub fn pair(config: LoopbackConfig, seed: u64) -> (LoopbackQueue, LoopbackQueue, Fabric) {
    let shared = Arc::new(Mutex::new(Shared {
        states: [State::new(config.active.clone()), State::new(config.passive.clone())],
        wires: [Wire::default(), Wire::default()],
        random: Random::new(seed),
        connected: false,
        withholding: [false; 2],
        config,
    }));
    let queue = |end| LoopbackQueue { shared: shared.clone(), end };
    (queue(End::Active), queue(End::Passive), Fabric { shared })
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The ends agreed on the connection; each will hear of it.
    Connected,
    /// The passive end refused.
    Rejected,
    /// An end heard that the connection stands.
    Established(End),
    /// A work request of this end went on its way.
    Started(End),
    /// A piece of what travels came to this end.
    Arrived(End),
    /// This end sent the data that a Read asked for.
    Answered(End),
    /// A receive of this end shows as complete.
    Received(End),
    /// Work of this end shows as done.
    Done(End),
    /// A receive of this end shows as flushed (or as used, if it was before the end came).
    ReceiveFlushed(End),
    /// Work of this end shows as flushed (or as done, if it was before the end came).
    WorkFlushed(End),
    /// All of this end's is flushed: it will hear that the connection is over.
    Settled(End),
    /// This end, asked to disconnect, has sent all and leaves.
    Left(End),
    /// Nothing, for an end does not read.
    Waited,
    /// This end stops reading for a while.
    Stalled(End),
    /// This end never again hears of the other.
    Muted(End),
    /// The connection broke.
    Cut,
    /// The device of this end is gone.
    DeviceGone(End),
}

/// What moves a pair. Clones move the same pair.
#[derive(Debug, Clone)]
pub struct Fabric {
    shared: Arc<Mutex<Shared>>,
}

impl Fabric {
    /// Does one of the things that may happen next, by the seed. `None` when nothing can happen until an end is used
    /// again.
    #[expect(clippy::must_use_candidate, reason = "most callers only move it on")]
    pub fn step(&self) -> Option<Step> {
        self.shared.lock().step()
    }

    /// Steps until nothing more can happen, and returns how many it took.
    #[expect(clippy::must_use_candidate, reason = "most callers only move it on")]
    pub fn run(&self) -> u64 {
        let mut steps = 0;
        while self.step().is_some() {
            steps += 1;
        }
        steps
    }

    /// Whether this end has something to poll.
    #[must_use]
    pub fn is_ready(&self, end: End) -> bool {
        let shared = &mut *self.shared.lock();
        let state = shared.state(end);
        !state.visible.is_empty() || matches!(state.phase, Phase::Settled(_))
    }

    /// Whether an end is over and has yet to be given back what it posted.
    #[must_use]
    pub fn is_flushing(&self) -> bool {
        self.shared.lock().states.iter().any(|state| matches!(state.phase, Phase::Over(_)))
    }

    /// What this end has not yet been given back: work requests and receives that are posted, and buffers that are
    /// advertised.
    #[must_use]
    pub fn held(&self, end: End) -> (usize, usize, usize) {
        let shared = &mut *self.shared.lock();
        let state = shared.state(end);
        (state.outstanding_work, state.outstanding_receives, state.advertised.len())
    }

    /// Breaks the connection for both ends.
    pub fn cut(&self) {
        self.shared.lock().cut();
    }

    /// Breaks the connection for one end; the other hears nothing of it by this.
    pub fn cut_end(&self, end: End) {
        self.shared.lock().end(end, EndCause::Broken);
    }

    /// Nothing goes wrong from here on; what has stays so.
    pub fn calm(&self) {
        let shared = &mut *self.shared.lock();
        shared.config.faults = Faults::default();
        for wire in &mut shared.wires {
            wire.stalled = 0;
        }
    }

    /// Takes the device of one end away.
    pub fn take_device(&self, end: End) {
        self.shared.lock().leave(end, EndCause::DeviceGone, Packet::Reset);
    }

    /// A work request of this end fails, and with it the connection.
    pub fn fail_work(&self, end: End) {
        self.shared.lock().leave(end, EndCause::WorkFailed(NOT_TAKEN), Packet::Reset);
    }

    /// A message comes to this end that finds no receive, or only one that is too short for it.
    pub fn refuse_message(&self, end: End, overlong: bool) {
        self.shared.lock().refuse(end, overlong);
    }

    /// From here on this end never hears of the other again: no message, no data, no end of the connection.
    pub fn mute(&self, end: End) {
        self.shared.lock().wire_to(end).muted = true;
    }

    /// From here on this end sends nothing of what Reads ask it for; all else goes on.
    pub fn withhold_reads(&self, end: End) {
        self.shared.lock().withholding[end as usize] = true;
    }

    /// This end takes nothing from the network for so many steps.
    pub fn stall(&self, end: End, steps: u32) {
        self.shared.lock().wire_to(end).stalled = steps;
    }
}

/// What travels in one direction.
#[derive(Debug, Default)]
pub(super) struct Wire {
    pub(super) packets: VecDeque<Packet>,
    stalled: u32,
    muted: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: LoopbackConfig,
    pub(super) states: [State; 2],
    /// By sender.
    pub(super) wires: [Wire; 2],
    pub(super) random: Random,
    connected: bool,
    /// By end: it owes what Reads ask it for.
    withholding: [bool; 2],
}

impl Shared {
    pub(super) fn state(&mut self, end: End) -> &mut State {
        &mut self.states[end as usize]
    }

    pub(super) fn wire_to(&mut self, end: End) -> &mut Wire {
        &mut self.wires[end.other() as usize]
    }

    pub(super) fn send(&mut self, from: End, packet: Packet) {
        // Nobody hears what is sent to an end that is over.
        if self.state(from.other()).is_up() {
            self.wires[from as usize].packets.push_back(packet);
        }
    }

    /// Reads that an end may have in flight: what it wants and what the other answers.
    pub(super) fn read_depth(&self, end: End) -> u16 {
        self.config.end(end).read_depth.min(self.config.end(end.other()).read_depth)
    }

    /// The connection is over for this end; what it has posted will be flushed.
    pub(super) fn end(&mut self, end: End, cause: EndCause) {
        let state = self.state(end);
        if !state.is_up() {
            return;
        }
        // What it asked for is what it hears of, also when the peer was quicker.
        let asked = state.phase == Phase::Closing && matches!(cause, EndCause::PeerClosed | EndCause::Broken);
        state.phase = Phase::Over(if asked { EndCause::Closed } else { cause });
        state.answering.clear();
        self.wire_to(end).packets.clear();
    }

    /// Ends the connection for this end and tells the other, which may or may not get what was under way.
    pub(super) fn leave(&mut self, end: End, cause: EndCause, word: Packet) {
        if !self.state(end).is_up() {
            return;
        }
        self.end(end, cause);
        if self.random.below(2) == 0 {
            self.wires[end as usize].packets.clear();
        }
        self.send(end, word);
    }

    fn cut(&mut self) {
        for end in End::BOTH {
            self.end(end, EndCause::Broken);
        }
    }

    /// Frees what a dropped end has left.
    pub(super) fn forget(&mut self, end: End) {
        let mut fresh = State::new(self.config.end(end).clone());
        fresh.phase = Phase::Ended;
        *self.state(end) = fresh;
    }

    fn step(&mut self) -> Option<Step> {
        for wire in &mut self.wires {
            wire.stalled = wire.stalled.saturating_sub(1);
        }
        let steps = self.possible();
        if steps.is_empty() {
            return self.wires.iter().any(|wire| wire.stalled > 0).then_some(Step::Waited);
        }
        let step = self.fault().unwrap_or_else(|| steps[self.random.below(steps.len() as u64) as usize]);
        self.take(step);
        Some(step)
    }

    /// All that may happen next.
    fn possible(&mut self) -> Vec<Step> {
        let mut steps = vec![];
        if !self.connected && self.states.iter().all(State::is_up) {
            steps.push(Step::Connected);
        }
        for end in End::BOTH {
            let (connected, depth) = (self.connected, self.read_depth(end));
            let withholds = self.withholding[end as usize];
            if self.can_arrive(end) {
                steps.push(Step::Arrived(end));
            }
            let state = self.state(end);
            match state.phase {
                Phase::Over(_) => {
                    if state.has_receives_to_flush() {
                        steps.push(Step::ReceiveFlushed(end));
                    }
                    if state.has_work_to_flush() {
                        steps.push(Step::WorkFlushed(end));
                    }
                    if !state.has_receives_to_flush() && !state.has_work_to_flush() {
                        steps.push(Step::Settled(end));
                    }
                    continue;
                }
                Phase::Settled(_) | Phase::Ended => continue,
                Phase::Closing if !connected || state.is_drained() => steps.push(Step::Left(end)),
                Phase::Open | Phase::Closing => {}
            }
            if connected && !state.established {
                steps.push(Step::Established(end));
            }
            if !state.answering.is_empty() && !withholds {
                steps.push(Step::Answered(end));
            }
            if !state.established {
                continue;
            }
            if state.startable(depth).is_some() {
                steps.push(Step::Started(end));
            }
            if !state.received.is_empty() {
                steps.push(Step::Received(end));
            }
            if state.work.front().is_some_and(|item| item.done) {
                steps.push(Step::Done(end));
            }
        }
        steps
    }

    fn can_arrive(&mut self, end: End) -> bool {
        if !self.state(end).is_up() {
            return false;
        }
        let waits = self.waits_for_receive(end);
        let connected = self.connected;
        let wire = self.wire_to(end);
        let leaves = wire.packets.front().is_some_and(Packet::is_last);
        !wire.packets.is_empty() && wire.stalled == 0 && !wire.muted && !waits && (connected || leaves)
    }

    fn fault(&mut self) -> Option<Step> {
        if !self.states.iter().all(State::is_up) {
            return None;
        }
        let faults = self.config.faults;
        if !self.connected {
            return self.random.per_million(faults.reject).then_some(Step::Rejected);
        }
        let end = End::BOTH[self.random.below(2) as usize];
        if self.random.per_million(faults.cut) {
            return Some(Step::Cut);
        }
        if self.random.per_million(faults.device_gone) {
            return Some(Step::DeviceGone(end));
        }
        if self.random.per_million(faults.mute) {
            return Some(Step::Muted(end));
        }
        self.random.per_million(faults.stall).then_some(Step::Stalled(end))
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Connected => self.connected = true,
            Step::Rejected => {
                self.end(End::Active, EndCause::Rejected);
                self.end(End::Passive, EndCause::Broken);
            }
            Step::Established(end) => {
                let established = self.established(end);
                let state = self.state(end);
                state.established = true;
                state.visible.push_back(Completion::Established(established));
            }
            Step::Started(end) => self.start(end),
            Step::Arrived(end) => self.arrive(end),
            Step::Answered(end) => self.answer(end),
            Step::Received(end) => self.state(end).show_received(),
            Step::Done(end) => self.state(end).show_done(),
            Step::ReceiveFlushed(end) => self.state(end).flush_receive(),
            Step::WorkFlushed(end) => {
                let as_done = self.random.below(2) == 0;
                self.state(end).flush_work(as_done);
            }
            Step::Settled(end) => {
                if let Phase::Over(cause) = self.state(end).phase {
                    self.state(end).phase = Phase::Settled(cause);
                }
            }
            Step::Left(end) => {
                self.end(end, EndCause::Closed);
                self.send(end, Packet::Fin);
            }
            Step::Stalled(end) => {
                let steps = 1 + self.random.below(300) as u32;
                self.wire_to(end).stalled = steps;
            }
            Step::Muted(end) => self.wire_to(end).muted = true,
            Step::Cut => self.cut(),
            Step::DeviceGone(end) => self.leave(end, EndCause::DeviceGone, Packet::Reset),
            Step::Waited => {}
        }
    }

    fn established(&self, end: End) -> Established {
        let first = self.config.end(end.other()).private.first().copied();
        Established {
            peer_private: if self.config.pad_private { Some(first.unwrap_or(0)) } else { first },
            read_depth: self.read_depth(end),
            served_depth: self.read_depth(end),
        }
    }

    /// The next work request goes on its way.
    fn start(&mut self, end: End) {
        if self.random.per_million(self.config.faults.fail_work) {
            return self.leave(end, EndCause::WorkFailed(NOT_TAKEN), Packet::Reset);
        }
        let depth = self.read_depth(end);
        let early = self.random.per_million(self.config.early_done);
        let state = &mut self.states[end as usize];
        let Some(item) = state.startable(depth) else { return };
        item.started = true;
        let number = item.number;
        let packet = match &item.work {
            Work::Send { message, invalidate, .. } => {
                item.done = early;
                Packet::Send { number, data: copy(message), invalidate: *invalidate }
            }
            Work::Write { from, to, .. } => {
                item.done = early;
                Packet::Write { number, data: copy(from), placed: 0, to: *to }
            }
            Work::Read { .. } if depth == 0 => {
                return self.leave(end, EndCause::WorkFailed("the peer answers no Reads"), Packet::Reset);
            }
            Work::Read { into, from, .. } => {
                let request = ReadRequest { number, from: *from, len: into.len };
                state.reads += 1;
                Packet::ReadRequest(request)
            }
        };
        let packet = self.mangled(end, packet);
        self.send(end, packet);
    }

    /// What a bad peer makes of a message.
    fn mangled(&mut self, end: End, packet: Packet) -> Packet {
        let Packet::Send { number, mut data, mut invalidate } = packet else { return packet };
        if self.random.per_million(self.config.faults.mangle) && !data.is_empty() {
            let at = self.random.below(data.len() as u64) as usize;
            match self.random.below(5) {
                0 => data.truncate(at),
                1 => {
                    let any = self.random.u64();
                    let theirs = self.state(end.other()).advertised.keys().next().copied();
                    invalidate = Some(Stag(theirs.filter(|_| any.is_multiple_of(2)).unwrap_or(any as u32)));
                }
                2 => data[at] ^= 1 << self.random.below(8),
                // The headers come first.
                3 => {
                    let at = at % 76.min(data.len());
                    data[at] = self.random.u64() as u8;
                }
                _ => {
                    for byte in &mut data[at..] {
                        *byte = self.random.u64() as u8;
                    }
                }
            }
        }
        Packet::Send { number, data, invalidate }
    }
}

fn copy(lease: &iscsi_memory::Lease) -> Vec<u8> {
    let mut data = vec![0; lease.len];
    lease.memory.read(lease.start, &mut data);
    data
}
