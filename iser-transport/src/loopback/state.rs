//! What one end holds: what was posted, what completed, what it advertises.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use iscsi_memory::{Buf, Payload};

use super::config::EndConfig;
use crate::queue::{Completion, EndCause, RemoteAccess, RemoteBuffer, Stag, Work};

/// What travels from one end to the other, in order.
#[derive(Debug)]
pub(super) enum Packet {
    Send {
        number: u64,
        data: Vec<u8>,
        invalidate: Option<Stag>,
    },
    Write {
        number: u64,
        data: Vec<u8>,
        placed: usize,
        to: RemoteBuffer,
    },
    ReadRequest(ReadRequest),
    ReadResponse {
        number: u64,
        data: Vec<u8>,
        placed: usize,
    },
    /// The sender has ended for a fault of the receiver.
    Terminate(&'static str),
    /// The sender has ended in order.
    Fin,
    /// The sender is gone.
    Reset,
}

impl Packet {
    /// Whether nothing can come behind it.
    pub(super) fn is_last(&self) -> bool {
        matches!(self, Self::Terminate(_) | Self::Fin | Self::Reset)
    }
}

/// A Read that the peer asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadRequest {
    /// The requester's item.
    pub(super) number: u64,
    pub(super) from: RemoteBuffer,
    pub(super) len: usize,
}

/// A work request in the queue.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) number: u64,
    pub(super) work: Work,
    pub(super) started: bool,
    pub(super) done: bool,
}

#[derive(Debug)]
pub(super) struct Advertised {
    pub(super) memory: Payload,
    pub(super) offset: u64,
    pub(super) access: RemoteAccess,
    /// Not yet invalidated by the peer.
    pub(super) alive: bool,
}

impl Advertised {
    /// The place of `len` bytes at a tagged offset, if all of them are inside.
    pub(super) fn place(&self, offset: u64, len: usize) -> Option<usize> {
        let start = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        let end = start.checked_add(len)?;
        (end <= self.memory.len()).then_some(start)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Asked to end in order: what was posted is still done.
    Closing,
    /// Over: what is posted comes back flushed.
    Over(EndCause),
    /// Over, and everything that was posted before lies ready.
    Settled(EndCause),
    /// `Ended` was delivered.
    Ended,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) config: EndConfig,
    pub(super) phase: Phase,
    /// Whether the completion `Established` was shown.
    pub(super) established: bool,
    /// Posted, not rung.
    pub(super) staged_receives: VecDeque<Buf>,
    pub(super) staged_work: VecDeque<Work>,
    /// Posted and rung.
    pub(super) receives: VecDeque<Buf>,
    pub(super) work: VecDeque<Item>,
    next_number: u64,
    /// Receives that are complete and do not show yet.
    pub(super) received: VecDeque<Completion>,
    /// What `poll` gives.
    pub(super) visible: VecDeque<Completion>,
    /// Posted, and not yet given back by `poll`.
    pub(super) outstanding_receives: usize,
    pub(super) outstanding_work: usize,
    /// Own Reads that were asked and not answered.
    pub(super) reads: usize,
    /// Reads of the peer to answer.
    pub(super) answering: VecDeque<ReadRequest>,
    pub(super) advertised: BTreeMap<u32, Advertised>,
    /// The last STag that was withdrawn.
    pub(super) stale: Option<RemoteBuffer>,
}

impl State {
    pub(super) fn new(config: EndConfig) -> Self {
        Self {
            config,
            phase: Phase::Open,
            established: false,
            staged_receives: VecDeque::new(),
            staged_work: VecDeque::new(),
            receives: VecDeque::new(),
            work: VecDeque::new(),
            next_number: 0,
            received: VecDeque::new(),
            visible: VecDeque::new(),
            outstanding_receives: 0,
            outstanding_work: 0,
            reads: 0,
            answering: VecDeque::new(),
            advertised: BTreeMap::new(),
            stale: None,
        }
    }

    /// Whether the connection still takes and gives at this end.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Closing)
    }

    pub(super) fn ring(&mut self) {
        self.receives.append(&mut self.staged_receives);
        for work in self.staged_work.drain(..) {
            self.work.push_back(Item { number: self.next_number, work, started: false, done: false });
            self.next_number += 1;
        }
    }

    pub(super) fn item(&mut self, number: u64) -> Option<&mut Item> {
        let first = self.work.front()?.number;
        self.work.get_mut(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    /// The next that has not started, if it may start now.
    pub(super) fn startable(&mut self, read_depth: u16) -> Option<&mut Item> {
        let reads = self.reads;
        let item = self.work.iter_mut().find(|item| !item.started)?;
        (!matches!(item.work, Work::Read { .. }) || reads < usize::from(read_depth) || read_depth == 0).then_some(item)
    }

    /// Whether all work that was rung is done.
    pub(super) fn is_drained(&self) -> bool {
        self.work.iter().all(|item| item.done)
    }

    /// Shows the next receive that is complete.
    pub(super) fn show_received(&mut self) {
        let next = self.received.pop_front();
        self.visible.extend(next);
    }

    /// Shows the first work request, which is done.
    pub(super) fn show_done(&mut self) {
        if let Some(item) = self.work.pop_front() {
            let (id, memory) = take(item.work);
            self.visible.push_back(Completion::Done { id, memory });
        }
    }

    /// Whether something is left to flush.
    pub(super) fn has_receives_to_flush(&self) -> bool {
        !(self.received.is_empty() && self.receives.is_empty() && self.staged_receives.is_empty())
    }

    pub(super) fn has_work_to_flush(&self) -> bool {
        !(self.work.is_empty() && self.staged_work.is_empty())
    }

    pub(super) fn flush_receive(&mut self) {
        match self.received.pop_front() {
            // Who never heard that the connection stands cannot hear of a message.
            Some(Completion::Received { buf, .. }) if !self.established => {
                return self.visible.push_back(Completion::ReceiveFlushed(buf));
            }
            Some(received) => return self.visible.push_back(received),
            None => {}
        }
        let next = self.receives.pop_front().or_else(|| self.staged_receives.pop_front());
        self.visible.extend(next.map(Completion::ReceiveFlushed));
    }

    /// Flushes the first work request; one that is done may still say so.
    pub(super) fn flush_work(&mut self, as_done: bool) {
        if self.work.front().is_some_and(|item| item.done) && as_done {
            return self.show_done();
        }
        let next = self.work.pop_front().map(|item| item.work).or_else(|| self.staged_work.pop_front());
        if let Some(work) = next {
            let (id, memory) = take(work);
            self.visible.push_back(Completion::Flushed { id, memory });
        }
    }

    pub(super) fn poll(&mut self) -> Option<Completion> {
        if let Some(completion) = self.visible.pop_front() {
            match &completion {
                Completion::Received { .. } | Completion::ReceiveFlushed(_) => self.outstanding_receives -= 1,
                Completion::Done { .. } | Completion::Flushed { .. } => self.outstanding_work -= 1,
                Completion::Established(_) | Completion::Ended(_) => {}
            }
            return Some(completion);
        }
        match self.phase {
            Phase::Settled(cause) => {
                self.phase = Phase::Ended;
                Some(Completion::Ended(cause))
            }
            _ => None,
        }
    }
}

fn take(work: Work) -> (u64, Payload) {
    match work {
        Work::Send { id, message: lease, .. }
        | Work::Write { id, from: lease, .. }
        | Work::Read { id, into: lease, .. } => (id, lease.memory),
    }
}
