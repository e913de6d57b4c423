//! Work under way: which requests of the device stand for which work, and what it takes to give its memory back.

use std::sync::{Mutex, PoisonError};

use iscsi_memory::{
    Access, Advertised, Buf, DevicePiece, Direction, Lease, Payload, RegisterFailure, Registrar, WorkPiece,
};

use super::port::Operation;
use crate::queue::Work;

/// Keeps what holds memory that a device may use for ever: it is lost, which is better than to give it to somebody
/// else.
pub(super) fn lose(holder: impl Send + 'static) {
    static LOST: Mutex<Vec<Box<dyn Send>>> = Mutex::new(Vec::new());
    LOST.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(holder));
}

/// One work request of the mover. It may take several of the device.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) operation: Operation,
    held: Held,
    start: usize,
    pub(super) len: usize,
    /// Bytes that requests of the device stand for already.
    pub(super) issued: usize,
    /// One of its requests did not succeed.
    pub(super) has_failed: bool,
    /// It is done, and waits for those that were posted before it.
    pub(super) is_over: bool,
}

/// How the memory of a job is held.
#[derive(Debug)]
enum Held {
    Plain(Payload),
    /// With a registration that a peer may write through: iWARP cards want it so of what a Read lands in.
    Sink(Advertised),
    /// The device would not let go of it.
    Lost,
}

impl Job {
    pub(super) fn new(work: Work) -> Self {
        let (id, lease, operation) = match work {
            Work::Send { id, message, invalidate } => (id, message, Operation::Send(invalidate)),
            Work::Write { id, from, to } => (id, from, Operation::Write(to)),
            Work::Read { id, into, from } => (id, into, Operation::Read(from)),
        };
        let Lease { memory, start, len } = lease;
        Self { id, operation, held: Held::Plain(memory), start, len, issued: 0, has_failed: false, is_over: false }
    }

    pub(super) fn rest(&self) -> usize {
        self.len - self.issued
    }

    /// What the device is to do for bytes `issued + ahead..`.
    pub(super) fn operation_at(&self, ahead: usize) -> Operation {
        let mut operation = self.operation;
        if let Operation::Write(remote) | Operation::Read(remote) = &mut operation {
            // The peer chose it, and may have lied: the device is told what comes of it, and the peer's refuses.
            remote.offset = remote.offset.wrapping_add((self.issued + ahead) as u64);
        }
        operation
    }

    /// The next piece of memory from `ahead` bytes behind what is issued. `None`: it is to be copied.
    pub(super) fn piece(
        &mut self,
        registrar: &dyn Registrar,
        ahead: usize,
        len: usize,
    ) -> Result<Option<WorkPiece>, RegisterFailure> {
        let at = self.start + self.issued + ahead;
        let is_read = matches!(self.operation, Operation::Read(_));
        let direction = if is_read { Direction::In } else { Direction::Out };
        match &mut self.held {
            Held::Plain(memory) => memory.device_piece(registrar, at, len, direction),
            Held::Sink(sink) => {
                let address = sink.address() + (self.issued + ahead) as u64;
                Ok(Some(WorkPiece { piece: DevicePiece { address, len, key: sink.local_key() }, hold: None }))
            }
            Held::Lost => Err(RegisterFailure::Device(0)),
        }
    }

    /// Where a device that copies the memory at once finds it.
    pub(super) fn inline_piece(&self) -> DevicePiece {
        let address = match &self.held {
            Held::Plain(memory) => memory.address(self.start),
            Held::Sink(_) | Held::Lost => 0,
        };
        DevicePiece { address, len: self.len, key: 0 }
    }

    /// Registers the job's bytes alone, for a peer to write.
    pub(super) fn become_sink(&mut self, registrar: &dyn Registrar) -> Result<(), RegisterFailure> {
        let Held::Plain(memory) = std::mem::replace(&mut self.held, Held::Lost) else { return Ok(()) };
        match Advertised::new(memory, self.start, self.len, registrar, Access::RemoteWrite) {
            Ok(sink) => {
                self.held = Held::Sink(sink);
                Ok(())
            }
            Err((memory, failure)) => {
                self.held = Held::Plain(memory);
                Err(failure)
            }
        }
    }

    pub(super) fn is_sink(&self) -> bool {
        matches!(self.held, Held::Sink(_))
    }

    /// Requests of it have let go of their registrations.
    pub(super) fn settle(&self) {
        if let Held::Plain(memory) = &self.held {
            memory.settle();
        }
    }

    /// Copies bytes out, from `at` of the job on.
    pub(super) fn read(&self, at: usize, to: &mut [u8]) {
        if let Held::Plain(memory) = &self.held {
            memory.read(self.start + at, to);
        }
    }

    /// Copies bytes in, from `at` of the job on.
    pub(super) fn write(&mut self, at: usize, from: &[u8]) {
        if let Held::Plain(memory) = &mut self.held {
            memory.write(self.start + at, from);
        }
    }

    /// Gives the memory back: an empty one in its place where the device would not let go.
    pub(super) fn into_memory(self) -> Payload {
        match self.held {
            Held::Plain(memory) => memory,
            Held::Sink(sink) => sink.end().unwrap_or_else(|| Payload::Buf(Buf::zeroed(0))),
            Held::Lost => Payload::Buf(Buf::zeroed(0)),
        }
    }
}

/// One request of the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Posted {
    /// The job that it is a part of.
    pub(super) job: usize,
    /// Whether the job is done with it.
    pub(super) is_last: bool,
    /// Whether it has a completion of its own. Otherwise a later one stands for it.
    pub(super) is_signaled: bool,
    pub(super) outcome: Outcome,
    /// Where it is copied through, and the bytes of the job that this stands for.
    pub(super) bounce: Option<Bounced>,
    /// Registrations that it holds.
    pub(super) holds: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Open,
    Done,
    Failed,
}

/// Bytes of a job on their way through a [`Bounce`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounced {
    /// Where they are there.
    place: usize,
    /// What the place costs, with what was left out before it.
    spent: usize,
    /// Where they are in the job.
    at: usize,
    len: usize,
}

/// Jobs by number, with the free numbers.
#[derive(Debug)]
pub(super) struct Jobs {
    places: Vec<Option<Job>>,
    free: Vec<usize>,
}

impl Jobs {
    pub(super) fn new(capacity: usize) -> Self {
        Self { places: Vec::with_capacity(capacity), free: Vec::with_capacity(capacity) }
    }

    pub(super) fn insert(&mut self, job: Job) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.places[index] = Some(job);
                index
            }
            None => {
                self.places.push(Some(job));
                self.places.len() - 1
            }
        }
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Job> {
        self.places.get_mut(index)?.as_mut()
    }

    fn get(&self, index: usize) -> Option<&Job> {
        self.places.get(index)?.as_ref()
    }

    pub(super) fn is_over(&self, index: usize) -> bool {
        self.get(index).is_some_and(|job| job.is_over)
    }

    pub(super) fn is_read(&self, index: usize) -> bool {
        self.get(index).is_some_and(|job| matches!(job.operation, Operation::Read(_)))
    }

    pub(super) fn remove(&mut self, index: usize) -> Option<Job> {
        let job = self.places.get_mut(index)?.take()?;
        self.free.push(index);
        Some(job)
    }

    /// The requests of all of them have let go of their registrations.
    pub(super) fn settle(&self) {
        self.places.iter().flatten().for_each(Job::settle);
    }

    /// Lets all memory be lost: the device may still use it.
    pub(super) fn lose(&mut self) {
        self.places.drain(..).for_each(lose);
    }
}

/// Grain of what is copied: a line of a processor's cache.
const GRAIN: usize = 64;

/// A registered ring for data whose own memory is not registered. What is taken is given back in the same order.
#[derive(Debug)]
pub(super) struct Bounce {
    ring: Buf,
    first: DevicePiece,
    /// Most bytes at a time.
    most: usize,
    /// Where the next bytes go, and how many before it are in use.
    next: usize,
    used: usize,
    /// Bytes copied through it.
    pub(super) copied: u64,
}

impl Bounce {
    /// Room for `places` pieces of `bytes`, registered at once: it has to be there when nothing else can be registered.
    pub(super) fn new(registrar: &dyn Registrar, places: usize, bytes: usize) -> Result<Self, RegisterFailure> {
        let most = bytes.max(4096).next_multiple_of(GRAIN);
        let mut ring = Buf::zeroed(most * places.max(1));
        let first = ring.device_piece(registrar, 0, 1)?;
        Ok(Self { ring, first, most, next: 0, used: 0, copied: 0 })
    }

    /// Most bytes that are copied at a time.
    pub(super) fn size(&self) -> usize {
        self.most
    }

    /// Takes room for `len` bytes of a job, from `at` on, with it as a work request names it. `None`: what is in use
    /// has to be given back first.
    pub(super) fn take(&mut self, at: usize, len: usize) -> Option<(Bounced, DevicePiece)> {
        if self.used == 0 {
            self.next = 0;
        }
        let room = len.next_multiple_of(GRAIN);
        // A piece does not lie across the end.
        let fits = self.next + room <= self.ring.len();
        let (place, skipped) = if fits { (self.next, 0) } else { (0, self.ring.len() - self.next) };
        if self.used + skipped + room > self.ring.len() {
            return None;
        }
        self.next = place + room;
        self.used += skipped + room;
        let piece = DevicePiece { address: self.first.address + place as u64, len, ..self.first };
        Some((Bounced { place, spent: skipped + room, at, len }, piece))
    }

    /// Fills what was taken.
    pub(super) fn fill(&mut self, job: &Job, bounced: Bounced) {
        job.read(bounced.at, &mut self.ring[bounced.place..bounced.place + bounced.len]);
        self.copied += bounced.len as u64;
    }

    /// Empties what was taken into the job.
    pub(super) fn empty(&mut self, job: &mut Job, bounced: Bounced) {
        job.write(bounced.at, &self.ring[bounced.place..bounced.place + bounced.len]);
        self.copied += bounced.len as u64;
    }

    /// Gives back what was taken longest ago.
    pub(super) fn give(&mut self, bounced: Bounced) {
        self.used -= bounced.spent;
    }

    pub(super) fn lose(&mut self) {
        lose(std::mem::replace(&mut self.ring, Buf::zeroed(0)));
    }
}
