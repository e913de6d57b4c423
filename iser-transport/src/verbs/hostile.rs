//! A queue pair over a device that errs as it is told: completions that are early, late, twice, of nothing or with
//! errors, events at any time, refusals in the middle of a list. Whatever it does, the queue pair must not panic, must
//! give back what it was given exactly once, and must not let go of memory while the device may use it.
#![allow(unsafe_code, reason = "a device reads and writes memory by its address")]

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iscsi_memory::{Buf, DevicePiece, Lease, Payload, Region, Registrar};
use iscsi_proto::time::Instant;

use super::config::VerbsConfig;
use super::connection::Parameters;
use super::fake_domain::{FakeDomain, Table, read, write};
use super::port::{Batch, Capacity, Operation, Port, PortEvent, Refused, WorkCompletion};
use super::state::State;
use crate::queue::{Completion, EndCause, RemoteAccess, RemoteBuffer, Stag, Work};

/// Bytes of the store that is sent from and received into.
const STORE: u64 = 4 << 20;

/// Rounds after which a queue pair that was told to end has ended.
const ROUNDS: usize = 100;

/// Decisions, taken from bytes; zeroes when there are none left.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n.max(1)
    }

    /// What would end nearly every run at once if it were not rare.
    fn rarely(&mut self) -> bool {
        self.byte() >= 0xf8
    }

    fn number(&mut self) -> usize {
        usize::from(u16::from_be_bytes([self.byte(), self.byte()]))
    }
}

/// What the device has in hand.
#[derive(Debug)]
struct Taken {
    id: u64,
    pieces: Vec<DevicePiece>,
    writes: bool,
    is_signaled: bool,
}

#[derive(Debug, Default)]
struct Device {
    work: VecDeque<Taken>,
    receives: VecDeque<Taken>,
    completions: Vec<WorkCompletion>,
    events: VecDeque<PortEvent>,
    /// Requests that it takes before it refuses one.
    takes: Option<usize>,
    /// Its completion queue is broken.
    is_broken: bool,
    cannot_establish: bool,
    has_failed: bool,
}

impl Device {
    /// Takes what is posted, as far as it does.
    fn take(&mut self, all: Vec<Taken>, is_receive: bool) -> Result<(), Refused> {
        let count = all.len();
        let taken = self.takes.map_or(count, |takes| takes.min(count));
        self.takes = self.takes.map(|takes| takes - taken);
        let queue = if is_receive { &mut self.receives } else { &mut self.work };
        queue.extend(all.into_iter().take(taken));
        if taken < count { Err(Refused { taken }) } else { Ok(()) }
    }

    /// Uses memory of everything that it has in hand.
    fn touch(&self, table: &Table, domain: &FakeDomain) {
        for taken in self.work.iter().chain(&self.receives) {
            for piece in &taken.pieces {
                let known = table.allows(domain.domain, piece.key, piece.address, piece.len, None);
                assert!(known, "memory is registered while a request has it: {taken:?}");
                // SAFETY: registered, as has just been looked up.
                let bytes = unsafe { read(piece.address, piece.len.min(64)) };
                if taken.writes {
                    // SAFETY: as above.
                    unsafe { write(piece.address, &bytes) }
                }
            }
        }
    }

    /// Completes a request in hand, or one that never was. What an earlier one has not told is done with it.
    fn complete(&mut self, script: &mut Script<'_>) {
        let is_receive = script.byte() & 1 != 0;
        let queue = if is_receive { &mut self.receives } else { &mut self.work };
        // Receives complete in order, as nothing else is believed.
        let at = if !is_receive || script.rarely() { script.below(queue.len()) } else { 0 };
        let status = if script.rarely() { i32::from(script.byte()) } else { 0 };
        let id = match queue.get(at) {
            Some(taken) => taken.id,
            None if script.rarely() => u64::from(script.byte()) | u64::from(is_receive) << 63,
            None => return,
        };
        Self::finish(queue, id);
        let times = 1 + usize::from(script.rarely());
        let completion = WorkCompletion { id, status, len: script.number(), invalidated: None };
        self.completions.extend(std::iter::repeat_n(completion, times));
    }

    /// Has done with a request, and with those before it that do not tell of their end.
    fn finish(queue: &mut VecDeque<Taken>, id: u64) {
        let Some(at) = queue.iter().position(|taken| taken.id == id) else { return };
        let mut index = 0;
        queue.retain(|taken| {
            let is_done = index == at || (index < at && !taken.is_signaled);
            index += 1;
            !is_done
        });
    }

    fn tell(&mut self, script: &mut Script<'_>) {
        let depth = script.byte();
        let told = Parameters { private: Some(depth), incoming_reads: depth, outgoing_reads: depth };
        let is_bad = script.rarely();
        self.events.push_back(match script.below(5) {
            _ if !is_bad => PortEvent::Established(told),
            0 => PortEvent::Rejected,
            1 => PortEvent::Failed,
            2 => PortEvent::Disconnected,
            3 => PortEvent::DeviceGone,
            _ => PortEvent::QueueFailed,
        });
    }
}

/// One end of a connection that has no other.
#[derive(Debug)]
struct HostilePort {
    device: Arc<Mutex<Device>>,
    domain: Option<FakeDomain>,
    capacity: Capacity,
    told: Option<Parameters>,
}

fn lock(device: &Mutex<Device>) -> MutexGuard<'_, Device> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Port for HostilePort {
    fn now(&self) -> Instant {
        // It waits for nothing.
        Instant::ZERO
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn told(&self) -> Option<Parameters> {
        self.told
    }

    fn registrar(&self) -> Option<&dyn Registrar> {
        self.domain.as_ref().map(|domain| domain as &dyn Registrar)
    }

    fn establish(&mut self) -> Result<(), EndCause> {
        if lock(&self.device).cannot_establish { Err(EndCause::Broken) } else { Ok(()) }
    }

    unsafe fn post(&mut self, batch: &Batch) -> Result<(), Refused> {
        let mut pieces = batch.pieces.iter().copied();
        let taken = batch.requests.iter().map(|request| {
            let pieces: Vec<_> = pieces.by_ref().take(request.pieces).collect();
            let writes = matches!(request.operation, Operation::Read(_));
            // What is inline was copied.
            let pieces = if request.is_inline { Vec::new() } else { pieces };
            Taken { id: request.id, pieces, writes, is_signaled: request.is_signaled }
        });
        let taken = taken.collect();
        lock(&self.device).take(taken, false)
    }

    unsafe fn post_receives(&mut self, receives: &[(u64, Option<DevicePiece>)]) -> Result<(), Refused> {
        let taken = receives.iter().map(|(id, piece)| {
            let pieces = piece.iter().copied().collect();
            Taken { id: *id, pieces, writes: true, is_signaled: true }
        });
        lock(&self.device).take(taken.collect(), true)
    }

    fn poll(&mut self, completions: &mut Vec<WorkCompletion>) -> Result<(), ()> {
        let mut device = lock(&self.device);
        let device = &mut *device;
        let some = device.completions.len().min(4);
        for completion in device.completions.drain(..some) {
            // A completion that was told before its request was posted: nobody can tell it from a true one, and a
            // device has done with what it has told.
            Device::finish(&mut device.work, completion.id);
            Device::finish(&mut device.receives, completion.id);
            completions.push(completion);
        }
        if device.is_broken { Err(()) } else { Ok(()) }
    }

    fn poll_event(&mut self) -> Option<PortEvent> {
        lock(&self.device).events.pop_front()
    }

    fn disconnect(&mut self) {}

    fn fail(&mut self) {
        lock(&self.device).has_failed = true;
    }

    fn destroy(&mut self) -> bool {
        // It has nothing in hand any more.
        *lock(&self.device) = Device::default();
        self.domain = None;
        true
    }
}

/// What the queue pair was given and has not given back.
#[derive(Debug, Default)]
struct Given {
    next: u64,
    work: BTreeSet<u64>,
    receives: usize,
    has_ended: bool,
}

impl Given {
    fn back(&mut self, completion: Completion) {
        match completion {
            Completion::Established(_) => assert!(!self.has_ended),
            Completion::Received { buf, len, .. } => {
                assert!(len <= buf.len() && !self.has_ended);
                self.receives = self.receives.checked_sub(1).expect("no more receives than were posted");
            }
            Completion::ReceiveFlushed(_) => {
                self.receives = self.receives.checked_sub(1).expect("no more receives than were posted");
            }
            Completion::Done { id, .. } | Completion::Flushed { id, .. } => {
                assert!(self.work.remove(&id), "{id} comes back once");
            }
            Completion::Ended(_) => {
                assert!(!self.has_ended, "a connection ends once");
                self.has_ended = true;
            }
        }
    }
}

fn memory(script: &mut Script<'_>, store: &Arc<Region>) -> Payload {
    let len = script.number() * 4;
    match script.below(3) {
        0 => Payload::Buf(Buf::zeroed(len)),
        _ => {
            let offset = script.number() as u64 * 64 % (STORE - len as u64);
            Payload::Region(store.slice(offset, len))
        }
    }
}

fn work(script: &mut Script<'_>, store: &Arc<Region>, id: u64) -> Work {
    let far = RemoteBuffer { stag: Stag(script.byte().into()), offset: u64::MAX - script.number() as u64 * 16 };
    match script.below(3) {
        0 => {
            let message = Lease::whole(Payload::Buf(Buf::zeroed(script.number() % 2048)));
            Work::Send { id, message, invalidate: (script.byte() & 1 != 0).then_some(far.stag) }
        }
        1 => Work::Write { id, from: Lease::whole(memory(script, store)), to: far },
        _ => {
            let into = memory(script, store);
            if let Payload::Region(slice) = &into {
                slice.reserve_for_write().expect("there is no limit");
            }
            Work::Read { id, into: Lease::whole(into), from: far }
        }
    }
}

/// Runs a queue pair over a device that does what the bytes say.
///
/// # Panics
/// If the queue pair breaks one of its promises.
pub fn hostile_device(data: &[u8]) {
    let mut script = Script(data);
    let how = script.byte();
    let capacity = Capacity {
        work: 1 + script.below(24),
        receives: 1 + script.below(24),
        pieces: 1 + script.below(4),
        read_pieces: 1 + script.below(2),
        inline: if how & 1 == 0 { 64 } else { 0 },
        read_sink_is_remote: how & 2 != 0,
        lends_unsignaled: if how & 4 == 0 { usize::MAX } else { 4096 },
    };
    let (table, device) = (Arc::default(), Arc::new(Mutex::new(Device::default())));
    // Room for everything, for little, or for the ring alone.
    let budget = 32_768 + [1 << 30, 1 << 20, 0, 65_536][script.below(4)];
    let domain = FakeDomain::new(&table, budget);
    let budget = domain.budget.clone();
    let depth = script.byte();
    let told = Parameters { private: None, incoming_reads: depth, outgoing_reads: depth };
    let port =
        HostilePort { device: device.clone(), domain: Some(domain), capacity, told: (how & 8 != 0).then_some(told) };
    let config =
        VerbsConfig { linger: Duration::ZERO, bounce_bytes: 8192, advertisements: 4, ..VerbsConfig::default() };
    let store = Region::mapped(STORE, u64::MAX).expect("the address space holds it");
    store.reserve_for_write(0, STORE / 2).expect("there is no limit");
    let mut state = State::new(port, &config).expect("there is room for the ring");
    let (mut given, mut advertised) = (Given::default(), Vec::new());
    while !script.0.is_empty() {
        match script.below(14) {
            0 | 1 => {
                if given.receives < capacity.receives {
                    given.receives += 1;
                    state.post_receive(Buf::zeroed(script.number() % 1024));
                }
            }
            2..=4 => {
                if given.work.len() < capacity.work {
                    given.next += 1;
                    given.work.insert(given.next);
                    state.post(work(&mut script, &store, given.next));
                }
            }
            5 => state.ring(),
            6 => {
                if let Some(completion) = state.poll() {
                    given.back(completion);
                }
            }
            7 | 8 => lock(&device).complete(&mut script),
            9 => lock(&device).tell(&mut script),
            10 => {
                let offset = script.number() as u64 * 64;
                store.discard(offset, script.number() as u64 * 64 % (STORE - offset));
            }
            11 => {
                let access = if script.byte() & 1 == 0 { RemoteAccess::Read } else { RemoteAccess::Write };
                if let Ok(buffer) = state.advertise(memory(&mut script, &store), access) {
                    advertised.push(buffer.stag);
                }
            }
            12 => drop(advertised.pop().map(|stag| state.withdraw(stag))),
            _ if script.rarely() => match script.below(5) {
                0 => state.disconnect(),
                1 => state.abort(),
                2 => lock(&device).is_broken = true,
                3 => lock(&device).cannot_establish = true,
                _ => lock(&device).takes = Some(script.below(4)),
            },
            _ => drop(state.progress()),
        }
        if let Some(domain) = &state.port.domain {
            lock(&device).touch(&table, domain);
        }
    }
    if how & 16 == 0 {
        state.abort();
        for _ in 0..ROUNDS {
            while let Some(completion) = state.poll() {
                given.back(completion);
            }
        }
        let all_back = given.work.is_empty() && given.receives == 0 && given.has_ended;
        assert!(all_back, "what was given comes back, and the end is told: {given:?}");
    }
    drop(state);
    store.discard(0, STORE);
    store.settle();
    assert_eq!((store.registered(), store.allocated()), (0, 0), "nothing is held for nobody");
    drop(store);
    assert_eq!(budget.used(), 0, "everything registered is given back");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn whatever_a_device_does_everything_comes_back_once() {
        for seed in 0..3000 {
            let mut random = Random::new(seed);
            let len = random.below(800) as usize;
            let bytes: Vec<u8> = (0..len).map(|_| random.u64() as u8).collect();
            let run = std::panic::catch_unwind(|| hostile_device(&bytes));
            assert!(run.is_ok(), "seed {seed}");
        }
    }
}
