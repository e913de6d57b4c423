//! What may happen next between two queue pairs, and what comes of it.

use super::super::port::{Operation, PortEvent, WorkCompletion};
use super::wire::{Taken, Wire, ahead};
use crate::loopback::{End, NoReceive};

/// Requests of one end that may go on at a time: those behind them have not begun.
pub(super) const AHEAD: usize = 24;

/// Pieces that a transfer is cut into at most.
const PIECES: usize = 6;

const LENGTH: i32 = 1;
const PROTECTION: i32 = 4;
const INVALID: i32 = 9;
const REMOTE_ACCESS: i32 = 10;
const NO_RECEIVE: i32 = 13;

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The ends agreed on the connection; each will hear of it.
    Connected,
    /// The passive end refused.
    Rejected,
    /// An end heard that the connection stands.
    Established(End),
    /// Bytes of a request of this end went on their way: of a Read, from the other end's memory.
    Fetched(End, usize),
    /// Bytes of a request of this end were placed: of a Read, in its own memory.
    Placed(End, usize),
    /// Bytes came to this end whose sender is gone.
    Strayed(End),
    /// A message of this end is in a receive of the other.
    Delivered(End, usize),
    /// This end's device has copied what a request sends.
    Copied(End, usize),
    /// A request of this end shows as done.
    Completed(End, usize),
    /// A receive of this end shows as complete.
    Received(End),
    /// A receive of this end shows as flushed.
    ReceiveFlushed(End),
    /// Work of this end shows as flushed, or as done.
    WorkFlushed(End),
    /// An end heard that the connection is over.
    Heard(End),
    /// Nothing, for an end does not read.
    Waited,
    /// This end takes nothing from the network for a while.
    Stalled(End),
    /// This end never again hears of the other.
    Muted(End),
    /// The connection broke.
    Cut,
    /// The device of this end is gone.
    DeviceGone(End),
}

impl Wire {
    pub(super) fn step(&mut self) -> Option<Step> {
        for side in &mut self.sides {
            side.stalled = side.stalled.saturating_sub(1);
        }
        let steps = self.possible();
        if steps.is_empty() {
            return self.sides.iter().any(|side| side.stalled > 0).then_some(Step::Waited);
        }
        let step = self.fault().unwrap_or_else(|| steps[self.random.below(steps.len() as u64) as usize]);
        self.take(step);
        Some(step)
    }

    fn fault(&mut self) -> Option<Step> {
        if !self.sides.iter().all(|side| side.is_up()) {
            return None;
        }
        let faults = self.network.faults;
        if !self.stands {
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

    fn possible(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if !self.stands && self.sides.iter().all(|side| side.is_up()) {
            steps.push(Step::Connected);
        }
        for end in End::BOTH {
            let (side, other) = (&self.sides[end as usize], &self.sides[end.other() as usize]);
            if side.is_gone {
                continue;
            }
            if !side.hidden.is_empty() {
                steps.push(Step::Received(end));
            }
            // Who leaves has sent all that it had before.
            let has_left = other.has_left && other.work.is_empty() && side.hidden.is_empty();
            let is_over = has_left || other.has_failed || other.is_gone || side.has_left && other.has_heard;
            if is_over && side.is_ready && !side.has_heard && side.hears() {
                steps.push(Step::Heard(end));
            }
            if side.has_failed {
                if !side.receives.is_empty() && side.hidden.is_empty() {
                    steps.push(Step::ReceiveFlushed(end));
                }
                if !side.work.is_empty() {
                    steps.push(Step::WorkFlushed(end));
                }
                // What was on its way to memory of a request still comes until the request is flushed.
                let late = |taken: &&Taken| taken.is_read() && !taken.flying.is_empty();
                if let Some(index) = side.work.iter().take(AHEAD).position(|taken| late(&taken)) {
                    steps.push(Step::Placed(end, index));
                }
                continue;
            }
            if self.stands && !side.is_told {
                steps.push(Step::Established(end));
            }
            if !side.strays.is_empty() && side.hears() {
                steps.push(Step::Strayed(end));
            }
            if self.stands {
                self.of_work(end, &mut steps);
            }
        }
        steps
    }

    /// What may happen to the work of an end that is up.
    fn of_work(&self, end: End, steps: &mut Vec<Step>) {
        let (side, other) = (&self.sides[end as usize], &self.sides[end.other() as usize]);
        let arrives = other.is_up() && other.hears();
        // On iWARP a message may show as done before the Read ahead of it.
        let reads_are_passed = self.network.early_done > 0;
        let (mut writes, mut untold) = (false, false);
        // What is held up itself, as a Read that is not answered and what is not told before it, holds up nothing else.
        let mut ahead = 0;
        for (index, taken) in side.work.iter().enumerate() {
            let before = steps.len();
            let is_open = !taken.is_done;
            match taken.operation {
                Operation::Send(_) if is_open => {
                    let has_room = !other.receives.is_empty() || self.network.no_receive == NoReceive::Ends;
                    // The end that accepts may hear a message before it hears that the connection stands.
                    let is_known = other.is_told || end == End::Active;
                    if !writes && arrives && has_room && is_known {
                        steps.push(Step::Delivered(end, index));
                    }
                }
                Operation::Write(_) if is_open => {
                    if !taken.left.is_empty() {
                        steps.push(Step::Fetched(end, index));
                    }
                    // Of two Writes to one place the later one stays.
                    if !taken.flying.is_empty() && arrives && !writes {
                        steps.push(Step::Placed(end, index));
                    }
                    writes = true;
                }
                Operation::Read(_) if is_open => {
                    if !taken.left.is_empty() && arrives && !other.withholds_reads {
                        steps.push(Step::Fetched(end, index));
                    }
                    if !taken.flying.is_empty() && side.hears() {
                        steps.push(Step::Placed(end, index));
                    }
                }
                _ => {}
            }
            if !taken.is_told {
                if is_open && taken.is_early && taken.copy.is_none() {
                    steps.push(Step::Copied(end, index));
                }
                let is_sent = taken.is_early && taken.copy.is_some();
                if !untold && (taken.is_done && !side.is_muted || is_sent) {
                    steps.push(Step::Completed(end, index));
                }
                untold |= !(taken.is_read() && reads_are_passed);
            }
            ahead += usize::from(steps.len() > before);
            // Nothing passes a message that is not there yet.
            if is_open && matches!(taken.operation, Operation::Send(_)) || ahead == AHEAD {
                break;
            }
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Connected => self.stands = true,
            Step::Rejected => {
                for (end, event) in [(End::Active, PortEvent::Rejected), (End::Passive, PortEvent::Failed)] {
                    let side = self.side(end);
                    side.has_failed = true;
                    side.has_heard = true;
                    side.events.push_back(event);
                }
            }
            Step::Established(end) => {
                let told = self.parameters(end);
                let side = self.side(end);
                side.is_told = true;
                side.events.push_back(PortEvent::Established(told));
            }
            Step::Fetched(end, index) => self.fetch(end, index),
            Step::Placed(end, index) => self.place(end, index),
            Step::Strayed(end) => {
                let at = self.random.below(self.sides[end as usize].strays.len() as u64) as usize;
                let (to, bytes) = self.side(end).strays.swap_remove(at);
                // Its buffer may be withdrawn meanwhile.
                self.side(end).place(to, &bytes);
            }
            Step::Delivered(end, index) => self.deliver(end, index),
            Step::Copied(end, index) => {
                let side = self.side(end);
                let lends = side.work[index].len >= side.lends() && !side.work[index].is_signaled;
                if !lends {
                    let len = side.work[index].len;
                    let copy = side.gather(&side.work[index], 0..len);
                    side.work[index].copy = Some(copy);
                }
            }
            Step::Completed(end, index) => self.complete(end, index),
            Step::Received(end) => {
                let side = self.side(end);
                side.shown.extend(side.hidden.pop_front());
            }
            Step::ReceiveFlushed(end) => self.flush_receive(end),
            Step::WorkFlushed(end) => self.flush_work(end),
            Step::Heard(end) => {
                // The passive end may leave before the connection manager has told it that the connection stands.
                let takes_reply_back = end == End::Active && self.random.below(4) == 0;
                let side = self.side(end);
                side.has_heard = true;
                side.events.push_back(match (side.is_told, end) {
                    (true, _) if takes_reply_back => PortEvent::Rejected,
                    (true, _) => PortEvent::Disconnected,
                    (false, End::Active) => PortEvent::Rejected,
                    (false, End::Passive) => PortEvent::Failed,
                });
            }
            Step::Stalled(end) => {
                let steps = 1 + self.random.below(300) as u32;
                self.side(end).stalled = steps;
            }
            Step::Muted(end) => self.mute(end),
            Step::Cut => self.cut(),
            Step::DeviceGone(end) => {
                let side = self.side(end);
                side.has_failed = true;
                side.has_heard = true;
                side.events.push_back(PortEvent::DeviceGone);
            }
            Step::Waited => {}
        }
    }

    /// Bytes of a transfer go on their way: any part of what is left.
    fn fetch(&mut self, end: End, index: usize) {
        let faults = self.network.faults;
        let taken = &self.sides[end as usize].work[index];
        let is_first = taken.flying.is_empty() && taken.left.first() == Some(&(0..taken.len));
        if is_first && self.random.per_million(faults.fail_work) {
            return self.refuse(end, index, PROTECTION, None);
        }
        if is_first && self.random.per_million(faults.alter_stag) {
            return self.refuse(end, index, REMOTE_ACCESS, Some(PortEvent::QueueFailed));
        }
        let taken = &mut self.sides[end as usize].work[index];
        let at = self.random.below(taken.left.len() as u64) as usize;
        let mut range = taken.left.swap_remove(at);
        if range.len() > 1 && taken.left.len() + taken.flying.len() < PIECES && self.random.below(2) == 0 {
            let cut = range.start + 1 + self.random.below(range.len() as u64 - 1) as usize;
            let (first, last) = (range.start..cut, cut..range.end);
            let is_first = self.random.below(2) == 0;
            let (now, later) = if is_first { (first, last) } else { (last, first) };
            range = now;
            taken.left.push(later);
        }
        let (side, other) = (&self.sides[end as usize], &self.sides[end.other() as usize]);
        let taken = &side.work[index];
        let start = range.start;
        let bytes = match taken.operation {
            Operation::Read(from) => other.serve(ahead(from, start), range.len()),
            _ => Some(side.gather(taken, range)),
        };
        let Some(mut bytes) = bytes else {
            return self.refuse(end, index, REMOTE_ACCESS, Some(PortEvent::QueueFailed));
        };
        if self.random.per_million(faults.corrupt) {
            let at = self.random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.random.below(8);
        }
        self.side(end).work[index].flying.push((start, bytes));
    }

    /// Bytes on their way get there.
    fn place(&mut self, end: End, index: usize) {
        let taken = &mut self.sides[end as usize].work[index];
        let at = self.random.below(taken.flying.len() as u64) as usize;
        let (start, bytes) = taken.flying.swap_remove(at);
        let (side, other) = (&self.sides[end as usize], &self.sides[end.other() as usize]);
        let taken = &side.work[index];
        let allowed = match taken.operation {
            Operation::Write(to) => other.place(ahead(to, start), &bytes),
            _ => {
                side.scatter(taken, start, &bytes);
                true
            }
        };
        let taken = &mut self.sides[end as usize].work[index];
        taken.is_done = taken.left.is_empty() && taken.flying.is_empty();
        if !allowed {
            taken.is_done = false;
            return self.refuse(end, index, REMOTE_ACCESS, Some(PortEvent::QueueFailed));
        }
        self.sweep(end, index);
    }

    /// A message comes to the other end.
    fn deliver(&mut self, end: End, index: usize) {
        let faults = self.network.faults;
        if self.random.per_million(faults.fail_work) {
            return self.refuse(end, index, PROTECTION, None);
        }
        let Operation::Send(invalidate) = self.sides[end as usize].work[index].operation else { return };
        if invalidate.is_some() {
            // Memory that was registered by a program cannot be invalidated from afar.
            return self.refuse(end, index, REMOTE_ACCESS, Some(PortEvent::QueueFailed));
        }
        let other = end.other();
        let next = self.sides[other as usize].receives.front().copied();
        let Some((id, into)) = next.filter(|_| !self.random.per_million(faults.drop_receive)) else {
            let event = PortEvent::PeerProtocol("a message came that there is no receive for");
            return self.refuse(end, index, NO_RECEIVE, Some(event));
        };
        let side = self.side(end);
        let len = side.work[index].len;
        let bytes = side.gather(&side.work[index], 0..len);
        let bytes = self.mangled(bytes);
        let is_long = bytes.len() > into.map_or(0, |piece| piece.len);
        self.side(other).receives.pop_front();
        if is_long || self.random.per_million(faults.overlong) {
            self.side(other).shown_last(WorkCompletion { id, status: LENGTH, len: 0, invalidated: None });
            return self.refuse(end, index, INVALID, Some(PortEvent::QueueFailed));
        }
        if let Some(piece) = into {
            self.side(other).fill(piece, &bytes);
        }
        self.side(other).hidden.push_back(WorkCompletion { id, status: 0, len: bytes.len(), invalidated: None });
        self.side(end).work[index].is_done = true;
        self.sweep(end, index);
    }

    /// What a bad peer makes of a message.
    fn mangled(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        if !bytes.is_empty() && self.random.per_million(self.network.faults.mangle) {
            let at = self.random.below(bytes.len() as u64) as usize;
            match self.random.below(3) {
                0 => bytes.truncate(at),
                1 => bytes[at] ^= 1 << self.random.below(8),
                _ => {
                    for byte in &mut bytes[at..] {
                        *byte = self.random.u64() as u8;
                    }
                }
            }
        }
        bytes
    }

    /// A request shows as done.
    fn complete(&mut self, end: End, index: usize) {
        let side = self.side(end);
        let taken = &mut side.work[index];
        taken.is_told = true;
        if taken.is_signaled {
            side.shown.push_back(WorkCompletion { id: taken.id, status: 0, len: 0, invalidated: None });
        }
        self.sweep(end, index);
    }

    /// A request that is done and told is the device's no more.
    fn sweep(&mut self, end: End, index: usize) {
        let side = self.side(end);
        if side.work[index].is_done && side.work[index].is_told {
            side.work.remove(index);
        }
    }

    /// A request fails, and with it the queue pairs: the other end's, too, where it is told why.
    fn refuse(&mut self, end: End, index: usize, status: i32, event: Option<PortEvent>) {
        self.side(end).work[index].status = Some(status);
        self.fail(end);
        if let Some(event) = event {
            self.side(end.other()).events.push_back(event);
            self.fail(end.other());
        }
    }
}

impl super::wire::Side {
    fn lends(&self) -> usize {
        self.make().lends_unsignaled
    }

    /// Shows a completion behind those of receives that are not shown yet.
    fn shown_last(&mut self, completion: WorkCompletion) {
        self.shown.extend(self.hidden.drain(..));
        self.shown.push_back(completion);
    }
}
