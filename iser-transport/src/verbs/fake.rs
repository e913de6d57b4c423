//! A device in this process, for tests of the logic above a port: it moves real bytes through the addresses and keys of
//! real registrations, so that AddressSanitizer sees a use of memory that was given back too early.
#![allow(unsafe_code, reason = "a device reads and writes memory by its address")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant as StdInstant;

use iscsi_memory::{Access, DevicePiece, DomainId, Registrar, RegistrationBudget};
use iscsi_proto::time::Instant;

use super::connection::Parameters;
use super::fake_domain::{FakeDomain, Table, read, write};
use super::port::{Batch, Capacity, Operation, Port, PortEvent, Refused, WorkCompletion};
use super::status::FLUSHED;
use crate::queue::EndCause;

const LENGTH: i32 = 1;
const REMOTE_ACCESS: i32 = 10;

/// What the device is like.
#[derive(Debug, Clone)]
pub(super) struct Make {
    pub(super) capacity: Capacity,
    /// Registered bytes.
    pub(super) budget: u64,
    /// Work requests after which it refuses to take more.
    pub(super) refuses_after: usize,
    /// Whether it lets go of the queue pair.
    pub(super) can_destroy: bool,
    /// Whether a message that finds no receive ends the connection, as with iWARP; else it waits, as with InfiniBand.
    pub(super) wants_receives: bool,
    pub(super) private: Vec<u8>,
    pub(super) read_depth: u8,
}

impl Default for Make {
    fn default() -> Self {
        let capacity = Capacity {
            work: 64,
            receives: 64,
            pieces: 4,
            read_pieces: 1,
            inline: 64,
            read_sink_is_remote: false,
            lends_unsignaled: usize::MAX,
        };
        Self {
            capacity,
            budget: 1 << 30,
            refuses_after: usize::MAX,
            can_destroy: true,
            wants_receives: false,
            private: vec![0xC0],
            read_depth: 16,
        }
    }
}

/// A request that a queue pair has taken.
#[derive(Debug)]
struct Taken {
    id: u64,
    operation: Operation,
    pieces: Vec<DevicePiece>,
    /// What was copied when it was posted.
    inline: Option<Vec<u8>>,
    is_signaled: bool,
}

#[derive(Debug)]
struct Side {
    domain: DomainId,
    work: VecDeque<Taken>,
    receives: VecDeque<(u64, Option<DevicePiece>)>,
    completions: VecDeque<WorkCompletion>,
    events: VecDeque<PortEvent>,
    make: Make,
    taken: usize,
    is_ready: bool,
    has_failed: bool,
}

/// Both ends and the wire between them.
#[derive(Debug)]
struct Wire {
    sides: [Side; 2],
    stands: bool,
    is_cut: bool,
}

/// One end.
#[derive(Debug)]
pub(super) struct FakePort {
    wire: Arc<Mutex<Wire>>,
    table: Arc<Table>,
    domain: Option<FakeDomain>,
    side: usize,
    begun: StdInstant,
}

/// Two queue pairs of devices of this make, and the budgets of each.
pub(super) fn pair(makes: [Make; 2]) -> ([FakePort; 2], [Arc<RegistrationBudget>; 2]) {
    let table = Arc::new(Table::default());
    let domains = makes.each_ref().map(|make| FakeDomain::new(&table, make.budget));
    let budgets = domains.each_ref().map(|domain| domain.budget.clone());
    let ids = domains.each_ref().map(|domain| domain.domain);
    let [first, second] = makes;
    let side = |make, domain| Side {
        domain,
        work: VecDeque::new(),
        receives: VecDeque::new(),
        completions: VecDeque::new(),
        events: VecDeque::new(),
        make,
        taken: 0,
        is_ready: false,
        has_failed: false,
    };
    let sides = [side(first, ids[0]), side(second, ids[1])];
    let wire = Arc::new(Mutex::new(Wire { sides, stands: false, is_cut: false }));
    let mut side = 0;
    let ports = domains.map(|domain| {
        side += 1;
        FakePort {
            wire: wire.clone(),
            table: table.clone(),
            domain: Some(domain),
            side: side - 1,
            begun: StdInstant::now(),
        }
    });
    (ports, budgets)
}

impl Side {
    fn complete(&mut self, id: u64, status: i32, len: usize) {
        self.completions.push_back(WorkCompletion { id, status, len, invalidated: None });
    }

    /// What is posted is flushed, receives and work.
    fn fail(&mut self) {
        self.has_failed = true;
        while let Some((id, _)) = self.receives.pop_front() {
            self.complete(id, FLUSHED, 0);
        }
        while let Some(taken) = self.work.pop_front() {
            self.complete(taken.id, FLUSHED, 0);
        }
    }
}

impl Wire {
    /// Does one request of one end. Whether there was one to do.
    fn step(&mut self, table: &Table, from: usize) -> bool {
        let (mine, theirs) = {
            let (first, second) = self.sides.split_at_mut(1);
            if from == 0 { (&mut first[0], &mut second[0]) } else { (&mut second[0], &mut first[0]) }
        };
        if !self.stands || self.is_cut || mine.has_failed || theirs.has_failed {
            return false;
        }
        // What lends the memory of a Write looks at it when the next request has completed.
        let lends = |taken: &Taken| {
            let len: usize = taken.pieces.iter().map(|piece| piece.len).sum();
            let is_write = matches!(taken.operation, Operation::Write(_));
            is_write && !taken.is_signaled && len >= mine.make.capacity.lends_unsignaled
        };
        let next = usize::from(mine.work.front().is_some_and(lends) && mine.work.len() > 1);
        let Some(taken) = mine.work.get(next) else { return false };
        if matches!(taken.operation, Operation::Send(_)) && theirs.receives.is_empty() {
            if theirs.make.wants_receives {
                theirs.fail();
                theirs.events.push_back(PortEvent::PeerProtocol("a message came that there is no receive for"));
            }
            return false;
        }
        let Some(taken) = mine.work.remove(next) else { return false };
        let total: usize = taken.pieces.iter().map(|piece| piece.len).sum();
        let local = taken.inline.is_some()
            || taken.pieces.iter().all(|piece| table.allows(mine.domain, piece.key, piece.address, piece.len, None));
        assert!(local, "a request names memory that is not registered: {taken:?}");
        let gather = |taken: &Taken| {
            taken.inline.clone().unwrap_or_else(|| {
                // SAFETY: registered, as has just been looked up.
                taken.pieces.iter().flat_map(|piece| unsafe { read(piece.address, piece.len) }).collect()
            })
        };
        let status = match taken.operation {
            Operation::Send(_) => {
                let Some((id, into)) = theirs.receives.pop_front() else { return false };
                let bytes = gather(&taken);
                let room = into.map_or(0, |piece| piece.len);
                if bytes.len() > room {
                    theirs.complete(id, LENGTH, 0);
                    theirs.fail();
                    9
                } else {
                    if let Some(piece) = into {
                        let known = table.allows(theirs.domain, piece.key, piece.address, piece.len, None);
                        assert!(known, "a receive names memory that is not registered");
                        // SAFETY: as above.
                        unsafe { write(piece.address, &bytes) }
                    }
                    theirs.complete(id, 0, bytes.len());
                    0
                }
            }
            Operation::Write(to) => {
                let access = Some(Access::RemoteWrite);
                if total > 0 && !table.allows(theirs.domain, to.stag.0, to.offset, total, access) {
                    theirs.fail();
                    REMOTE_ACCESS
                } else {
                    // SAFETY: as above.
                    unsafe { write(to.offset, &gather(&taken)) }
                    0
                }
            }
            Operation::Read(from) => {
                let access = Some(Access::RemoteRead);
                if total > 0 && !table.allows(theirs.domain, from.stag.0, from.offset, total, access) {
                    theirs.fail();
                    REMOTE_ACCESS
                } else {
                    let mut at = from.offset;
                    for piece in &taken.pieces {
                        // SAFETY: as above.
                        unsafe { write(piece.address, &read(at, piece.len)) }
                        at += piece.len as u64;
                    }
                    0
                }
            }
        };
        if status != 0 {
            mine.complete(taken.id, status, 0);
            mine.fail();
        } else if taken.is_signaled {
            mine.complete(taken.id, 0, 0);
        }
        true
    }

    fn cut(&mut self) {
        self.is_cut = true;
        for side in &mut self.sides {
            side.fail();
            side.events.push_back(PortEvent::Disconnected);
        }
    }

    fn lock(wire: &Mutex<Self>) -> MutexGuard<'_, Self> {
        wire.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl FakePort {
    /// Lets both ends do one request each.
    pub(super) fn step(&self) -> bool {
        let mut wire = Wire::lock(&self.wire);
        wire.step(&self.table, 0) | wire.step(&self.table, 1)
    }

    pub(super) fn cut(&self) {
        Wire::lock(&self.wire).cut();
    }

    fn parameters(wire: &Wire, side: usize) -> Parameters {
        let depth = wire.sides[0].make.read_depth.min(wire.sides[1].make.read_depth);
        let private = wire.sides[1 - side].make.private.first().copied();
        Parameters { private, incoming_reads: depth, outgoing_reads: depth }
    }
}

impl Port for FakePort {
    fn now(&self) -> Instant {
        Instant::ZERO + self.begun.elapsed()
    }

    fn capacity(&self) -> Capacity {
        Wire::lock(&self.wire).sides[self.side].make.capacity
    }

    fn told(&self) -> Option<Parameters> {
        (self.side == 1).then(|| Self::parameters(&Wire::lock(&self.wire), 1))
    }

    fn registrar(&self) -> Option<&dyn Registrar> {
        self.domain.as_ref().map(|domain| domain as &dyn Registrar)
    }

    fn establish(&mut self) -> Result<(), EndCause> {
        let mut wire = Wire::lock(&self.wire);
        if wire.is_cut || wire.sides[1 - self.side].has_failed {
            return Err(EndCause::Broken);
        }
        wire.sides[self.side].is_ready = true;
        if wire.sides.iter().all(|side| side.is_ready) {
            wire.stands = true;
            for side in 0..2 {
                let told = Self::parameters(&wire, side);
                wire.sides[side].events.push_back(PortEvent::Established(told));
            }
        }
        Ok(())
    }

    unsafe fn post(&mut self, batch: &Batch) -> Result<(), Refused> {
        let mut wire = Wire::lock(&self.wire);
        let side = &mut wire.sides[self.side];
        let mut pieces = batch.pieces.iter();
        for (taken, request) in batch.requests.iter().enumerate() {
            side.taken += 1;
            if side.taken > side.make.refuses_after {
                return Err(Refused { taken });
            }
            let pieces: Vec<DevicePiece> = pieces.by_ref().take(request.pieces).copied().collect();
            let inline = request.is_inline.then(|| {
                // SAFETY: inline memory is alive during the call.
                pieces.iter().flat_map(|piece| unsafe { read(piece.address, piece.len) }).collect()
            });
            if side.has_failed {
                side.complete(request.id, FLUSHED, 0);
                continue;
            }
            side.work.push_back(Taken {
                id: request.id,
                operation: request.operation,
                pieces,
                inline,
                is_signaled: request.is_signaled,
            });
        }
        Ok(())
    }

    unsafe fn post_receives(&mut self, receives: &[(u64, Option<DevicePiece>)]) -> Result<(), Refused> {
        let mut wire = Wire::lock(&self.wire);
        let side = &mut wire.sides[self.side];
        for (id, piece) in receives {
            if side.has_failed {
                side.complete(*id, FLUSHED, 0);
            } else {
                side.receives.push_back((*id, *piece));
            }
        }
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<WorkCompletion>) -> Result<(), ()> {
        let mut wire = Wire::lock(&self.wire);
        let all = &mut wire.sides[self.side].completions;
        completions.extend(all.drain(..all.len().min(3)));
        Ok(())
    }

    fn poll_event(&mut self) -> Option<PortEvent> {
        Wire::lock(&self.wire).sides[self.side].events.pop_front()
    }

    fn disconnect(&mut self) {
        let mut wire = Wire::lock(&self.wire);
        if wire.stands {
            wire.stands = false;
            for side in &mut wire.sides {
                side.events.push_back(PortEvent::Disconnected);
            }
        }
    }

    fn fail(&mut self) {
        Wire::lock(&self.wire).sides[self.side].fail();
    }

    fn destroy(&mut self) -> bool {
        let mut wire = Wire::lock(&self.wire);
        let can_destroy = wire.sides[self.side].make.can_destroy;
        wire.sides[self.side].fail();
        // The other end waits for somebody who is not there any more.
        let event =
            if std::mem::replace(&mut wire.stands, false) { PortEvent::Disconnected } else { PortEvent::Rejected };
        wire.sides[1 - self.side].events.push_back(event);
        if can_destroy {
            wire.sides[self.side].completions.clear();
            self.domain = None;
        }
        can_destroy
    }
}
