//! The two queue pairs as their devices see them: what they have in hand, and what lies between them.
#![allow(unsafe_code, reason = "a device reads and writes memory by its address")]

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use iscsi_memory::{Access, DevicePiece};
use iscsi_proto::time::Instant;

use super::super::connection::Parameters;
use super::super::fake_domain::{FakeDomain, read, write};
use super::super::port::{Batch, Capacity, Operation, PortEvent, Refused, WorkCompletion};
use super::super::status::FLUSHED;
use super::{Device, Make};
use crate::loopback::{End, Faults, LoopbackConfig};
use crate::queue::{EndCause, RemoteBuffer};
use crate::random::Random;

/// Bytes that nobody wrote, from which on they are sent from the device's own zeroes.
const ZEROES: usize = 16 << 10;

/// Steps that a device takes while the host asks for completions, at most.
const BUSY: u64 = 512;

/// Completions taken in one call at most.
const POLLED: u64 = 32;

/// A request that a device has in hand.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) id: u64,
    pub(super) operation: Operation,
    pieces: Vec<DevicePiece>,
    pub(super) len: usize,
    pub(super) is_signaled: bool,
    /// The device may tell that it is done before it has got there, once it has copied what it sends.
    pub(super) is_early: bool,
    /// What the device has copied: it looks at the memory no more.
    pub(super) copy: Option<Vec<u8>>,
    /// Bytes that have not begun their way.
    pub(super) left: Vec<Range<usize>>,
    /// Bytes on their way, and where they belong.
    pub(super) flying: Vec<(usize, Vec<u8>)>,
    /// All of it has got there.
    pub(super) is_done: bool,
    /// It was told that it is done, or is known to be from a later one.
    pub(super) is_told: bool,
    /// Why it fails.
    pub(super) status: Option<i32>,
}

impl Taken {
    pub(super) fn is_read(&self) -> bool {
        matches!(self.operation, Operation::Read(_))
    }

    /// Where its bytes are in memory, those of a range.
    fn places(&self, range: &Range<usize>) -> Vec<DevicePiece> {
        let (mut at, mut places) = (0, Vec::new());
        for piece in &self.pieces {
            let (from, to) = (range.start.max(at), range.end.min(at + piece.len));
            if from < to {
                let address = piece.address + (from - at) as u64;
                places.push(DevicePiece { address, len: to - from, key: piece.key });
            }
            at += piece.len;
        }
        places
    }
}

/// What one end has.
#[derive(Debug)]
pub(super) struct Side {
    make: Make,
    domain: Option<Arc<FakeDomain>>,
    /// The key of the ring that data are copied through.
    ring: u32,
    pub(super) work: VecDeque<Taken>,
    pub(super) receives: VecDeque<(u64, Option<DevicePiece>)>,
    /// Completions of receives that the host does not see yet.
    pub(super) hidden: VecDeque<WorkCompletion>,
    pub(super) shown: VecDeque<WorkCompletion>,
    pub(super) events: VecDeque<PortEvent>,
    /// Pieces of Writes on their way to this end, whose sender has them no more.
    pub(super) strays: Vec<(RemoteBuffer, Vec<u8>)>,
    /// It wants the connection.
    pub(super) is_ready: bool,
    /// It has been told that the connection stands.
    pub(super) is_told: bool,
    /// It has said that the connection ends.
    pub(super) has_left: bool,
    /// Its queue pair does no work any more.
    pub(super) has_failed: bool,
    /// It is destroyed.
    pub(super) is_gone: bool,
    /// It has been told that the connection is over.
    pub(super) has_heard: bool,
    /// It hears nothing any more.
    pub(super) is_muted: bool,
    /// It sends nothing of what Reads ask it for.
    pub(super) withholds_reads: bool,
    /// Steps for which it takes nothing from the network.
    pub(super) stalled: u32,
}

impl Side {
    fn new(device: &Device) -> Self {
        Self {
            make: device.make.clone(),
            domain: Some(device.domain.clone()),
            ring: 0,
            work: VecDeque::new(),
            receives: VecDeque::new(),
            hidden: VecDeque::new(),
            shown: VecDeque::new(),
            events: VecDeque::new(),
            strays: Vec::new(),
            is_ready: false,
            is_told: false,
            has_left: false,
            has_failed: false,
            is_gone: false,
            has_heard: false,
            is_muted: false,
            withholds_reads: false,
            stalled: 0,
        }
    }

    pub(super) fn make(&self) -> &Make {
        &self.make
    }

    pub(super) fn is_up(&self) -> bool {
        self.is_ready && !self.has_failed && !self.is_gone
    }

    /// Whether what is on its way comes to it now.
    pub(super) fn hears(&self) -> bool {
        !self.is_muted && self.stalled == 0
    }

    pub(super) fn allows(&self, key: u32, at: u64, len: usize, access: Access) -> bool {
        self.domain.as_ref().is_some_and(|domain| domain.allows(key, at, len, Some(access)))
    }

    fn check(&self, place: DevicePiece, what: &Taken) {
        let known = self.domain.as_ref().is_some_and(|domain| domain.allows(place.key, place.address, place.len, None));
        assert!(known, "a request names memory that is not registered: {:?} of {} bytes", what.operation, what.len);
    }

    /// Reads memory of a request of this end.
    pub(super) fn gather(&self, taken: &Taken, range: Range<usize>) -> Vec<u8> {
        if let Some(copy) = &taken.copy {
            return copy[range].to_vec();
        }
        let mut bytes = Vec::with_capacity(range.len());
        for place in taken.places(&range) {
            self.check(place, taken);
            // SAFETY: registered, as has just been looked up.
            bytes.extend(unsafe { read(place.address, place.len) });
        }
        bytes
    }

    /// Writes memory of a request of this end.
    pub(super) fn scatter(&self, taken: &Taken, at: usize, bytes: &[u8]) {
        let mut rest = bytes;
        for place in taken.places(&(at..at + bytes.len())) {
            self.check(place, taken);
            let (now, later) = rest.split_at(place.len);
            // SAFETY: registered, as has just been looked up.
            unsafe { write(place.address, now) };
            rest = later;
        }
    }

    /// Reads memory that the peer may read.
    pub(super) fn serve(&self, from: RemoteBuffer, len: usize) -> Option<Vec<u8>> {
        // SAFETY: registered, as has just been looked up.
        self.allows(from.stag.0, from.offset, len, Access::RemoteRead).then(|| unsafe { read(from.offset, len) })
    }

    /// Writes memory that the peer may write. Whether it may.
    pub(super) fn place(&self, to: RemoteBuffer, bytes: &[u8]) -> bool {
        let allowed = self.allows(to.stag.0, to.offset, bytes.len(), Access::RemoteWrite);
        if allowed {
            // SAFETY: registered, as has just been looked up.
            unsafe { write(to.offset, bytes) };
        }
        allowed
    }

    /// Writes a message into a receive.
    pub(super) fn fill(&self, into: DevicePiece, bytes: &[u8]) {
        let known = self.domain.as_ref().is_some_and(|domain| domain.allows(into.key, into.address, into.len, None));
        assert!(known, "a receive names memory that is not registered");
        // SAFETY: registered, as has just been looked up.
        unsafe { write(into.address, bytes) };
    }
}

/// Both ends, and the network between them.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) now: Instant,
    pub(super) network: LoopbackConfig,
    pub(super) sides: [Side; 2],
    pub(super) random: Random,
    pub(super) stands: bool,
    /// What each end has not been given back: work, receives, advertised buffers.
    pub(super) held: [(usize, usize, usize); 2],
    /// A host has told its device something since this was last asked for.
    pub(super) was_used: bool,
}

impl Wire {
    pub(super) fn new(network: LoopbackConfig, devices: [&Device; 2], seed: u64) -> Self {
        Self {
            now: Instant::ZERO,
            network,
            sides: devices.map(Side::new),
            random: Random::new(seed),
            stands: false,
            held: [(0, 0, 0); 2],
            was_used: false,
        }
    }

    pub(super) fn set_ring(&mut self, end: End, key: u32) {
        self.side(end).ring = key;
    }

    pub(super) fn side(&mut self, end: End) -> &mut Side {
        &mut self.sides[end as usize]
    }

    pub(super) fn capacity(&self, end: End) -> Capacity {
        let make = &self.sides[end as usize].make;
        let limits = if end == End::Active { self.network.active.limits } else { self.network.passive.limits };
        Capacity {
            work: limits.work,
            receives: limits.receives,
            pieces: make.pieces.max(1),
            read_pieces: make.read_pieces.max(1),
            inline: make.inline,
            read_sink_is_remote: make.read_sink_is_remote,
            lends_unsignaled: make.lends_unsignaled,
        }
    }

    /// What an end is told of the other.
    pub(super) fn parameters(&self, end: End) -> Parameters {
        let (active, passive) = (&self.network.active, &self.network.passive);
        let depth = active.read_depth.min(passive.read_depth).min(255) as u8;
        let other = if end == End::Active { passive } else { active };
        let first = other.private.first().copied();
        let private = if self.network.pad_private { Some(first.unwrap_or(0)) } else { first };
        Parameters { private, incoming_reads: depth, outgoing_reads: depth }
    }

    pub(super) fn establish(&mut self, end: End) -> Result<(), EndCause> {
        let other = &self.sides[end.other() as usize];
        if other.has_failed || other.is_gone || self.sides[end as usize].has_failed {
            return Err(EndCause::Broken);
        }
        self.side(end).is_ready = true;
        self.was_used = true;
        Ok(())
    }

    pub(super) fn post(&mut self, end: End, batch: &Batch) -> Result<(), Refused> {
        let capacity = self.capacity(end).work;
        let mut pieces = batch.pieces.iter();
        self.was_used |= !batch.requests.is_empty();
        for (index, request) in batch.requests.iter().enumerate() {
            let pieces: Vec<DevicePiece> = pieces.by_ref().take(request.pieces).copied().collect();
            if self.random.per_million(self.network.faults.fail_work / 4) {
                return Err(Refused { taken: index });
            }
            let len = pieces.iter().map(|piece| piece.len).sum();
            let early = self.random.per_million(self.network.early_done);
            let side = &mut self.sides[end as usize];
            let is_send = matches!(request.operation, Operation::Send(_));
            let is_read = matches!(request.operation, Operation::Read(_));
            let copy = request.is_inline.then(|| {
                // SAFETY: inline memory is alive during the call.
                pieces.iter().flat_map(|piece| unsafe { read(piece.address, piece.len) }).collect()
            });
            let left = std::iter::once(0..len).filter(|range| !range.is_empty()).collect();
            let taken = Taken {
                id: request.id,
                operation: request.operation,
                pieces,
                len,
                is_signaled: request.is_signaled,
                is_early: early && !is_read,
                copy,
                left,
                flying: Vec::new(),
                is_done: len == 0 && !is_send,
                is_told: false,
                status: None,
            };
            side.check_copies(&taken);
            side.work.push_back(taken);
            let in_hand = side.work.iter().filter(|taken| !taken.is_told).count();
            assert!(in_hand <= capacity, "more than {capacity} work requests are with the device");
        }
        Ok(())
    }

    pub(super) fn post_receives(&mut self, end: End, receives: &[(u64, Option<DevicePiece>)]) {
        self.was_used |= !receives.is_empty();
        self.side(end).receives.extend(receives);
    }

    pub(super) fn poll(&mut self, end: End, completions: &mut Vec<WorkCompletion>) {
        if self.sides[end as usize].make.is_concurrent {
            for _ in 0..self.random.below(BUSY) {
                if !self.side(end).shown.is_empty() || self.step().is_none() {
                    break;
                }
            }
        }
        let most = 1 + self.random.below(POLLED) as usize;
        let shown = &mut self.side(end).shown;
        completions.extend(shown.drain(..shown.len().min(most)));
    }

    pub(super) fn poll_event(&mut self, end: End) -> Option<PortEvent> {
        self.side(end).events.pop_front()
    }

    pub(super) fn leave(&mut self, end: End) {
        self.side(end).has_left = true;
        self.was_used = true;
    }

    /// The queue pair does no work any more: what it has is flushed, step by step.
    pub(super) fn fail(&mut self, end: End) {
        self.side(end).has_failed = true;
    }

    /// The device lets go of everything. What is on its way to the other end still gets there.
    pub(super) fn destroy(&mut self, end: End) {
        self.fail(end);
        while let Some(taken) = self.side(end).work.pop_front() {
            self.let_fly(end, taken);
        }
        let side = self.side(end);
        side.receives.clear();
        side.hidden.clear();
        side.shown.clear();
        side.strays.clear();
        side.domain = None;
        side.is_gone = true;
    }

    /// What a request has on its way goes on without it.
    pub(super) fn let_fly(&mut self, end: End, taken: Taken) {
        let Operation::Write(to) = taken.operation else { return };
        let other = self.side(end.other());
        if other.is_up() {
            let strays = taken.flying.into_iter().map(|(at, bytes)| (ahead(to, at), bytes));
            other.strays.extend(strays);
        }
    }

    pub(super) fn cut(&mut self) {
        for end in End::BOTH {
            self.cut_end(end);
        }
    }

    pub(super) fn cut_end(&mut self, end: End) {
        let side = self.side(end);
        if !side.is_gone && !side.has_heard {
            side.has_heard = true;
            side.has_failed = true;
            let event = if side.is_told { PortEvent::Disconnected } else { PortEvent::Failed };
            side.events.push_back(event);
        }
    }

    pub(super) fn mute(&mut self, end: End) {
        self.side(end).is_muted = true;
    }

    pub(super) fn withhold_reads(&mut self, end: End) {
        self.side(end).withholds_reads = true;
    }

    pub(super) fn calm(&mut self) {
        self.network.faults = Faults::default();
        for side in &mut self.sides {
            side.stalled = 0;
        }
    }

    pub(super) fn has_work(&self, end: End) -> bool {
        let side = &self.sides[end as usize];
        !side.work.is_empty() || !side.shown.is_empty()
    }

    pub(super) fn is_flushing(&self) -> bool {
        let has_any = |side: &Side| !side.work.is_empty() || !side.receives.is_empty() || !side.hidden.is_empty();
        self.sides.iter().any(|side| side.has_failed && !side.is_gone && has_any(side))
    }

    /// Work, or a receive, of an end that has failed comes back.
    pub(super) fn flush_receive(&mut self, end: End) {
        let side = self.side(end);
        if let Some((id, _)) = side.receives.pop_front() {
            side.shown.push_back(WorkCompletion { id, status: FLUSHED, len: 0, invalidated: None });
        }
    }

    pub(super) fn flush_work(&mut self, end: End) {
        let tells = self.random.below(2) == 0;
        let Some(taken) = self.side(end).work.pop_front() else { return };
        if !taken.is_told {
            let done = taken.is_done && tells;
            let status = taken.status.unwrap_or(if done { 0 } else { FLUSHED });
            if taken.is_signaled || status != 0 {
                self.side(end).shown.push_back(WorkCompletion { id: taken.id, status, len: 0, invalidated: None });
            }
        }
        self.let_fly(end, taken);
    }
}

impl Side {
    /// What nobody wrote leaves from zeroes that are there, not from copies of them.
    fn check_copies(&self, taken: &Taken) {
        let Some(first) = taken.pieces.first() else { return };
        let copied = first.key == self.ring && matches!(taken.operation, Operation::Write(_));
        if copied && self.make.zeroes_are_unwritten && taken.copy.is_none() && first.len >= ZEROES {
            let bytes = self.gather(taken, 0..ZEROES);
            assert!(bytes.iter().any(|byte| *byte != 0), "zeroes that nobody wrote are copied");
        }
    }
}

/// The buffer from a byte on.
pub(super) fn ahead(buffer: RemoteBuffer, at: usize) -> RemoteBuffer {
    RemoteBuffer { offset: buffer.offset.wrapping_add(at as u64), ..buffer }
}
