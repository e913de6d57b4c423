//! Posted work, in the order in which it was posted, and the RDMA Reads that wait for their data.

use alloc::collections::VecDeque;

use iscsi_memory::{Lease, Payload};

use crate::queue::{Completion, RemoteBuffer, Stag, Work};

/// What kind of work it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Send { invalidate: Option<Stag> },
    Write { to: RemoteBuffer },
    Read { from: RemoteBuffer },
}

#[derive(Debug)]
struct Entry {
    id: u64,
    kind: Kind,
    lease: Lease,
    /// A Send's or Write's end in the stream, once all of it is queued.
    end: Option<u64>,
    /// A Read whose data are all there.
    read: bool,
}

/// What there is to know of work that is being sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) kind: Kind,
    /// Where its bytes lie in its memory.
    pub(super) start: usize,
    pub(super) len: usize,
    /// They lie in lent memory.
    pub(super) lent: bool,
}

/// The ring of posted work. A number names each for as long as it is in the ring.
#[derive(Debug, Default)]
pub(super) struct Works {
    entries: VecDeque<Entry>,
    /// Number of the first entry.
    first: u64,
    /// Number of the next to be started.
    next: u64,
    /// Payload bytes of Sends and Writes that are not started.
    waiting: usize,
    /// Something came back flushed: so does all that was posted behind it.
    flushed: bool,
}

impl Works {
    /// Takes work in. What is wrong with it, if anything.
    pub(super) fn post(&mut self, work: Work) -> Result<(), &'static str> {
        let (id, kind, lease, far) = match work {
            Work::Send { id, message, invalidate } => (id, Kind::Send { invalidate }, message, None),
            Work::Write { id, from, to } => (id, Kind::Write { to }, from, Some(to)),
            Work::Read { id, into, from } => (id, Kind::Read { from }, into, Some(from)),
        };
        let inside = lease.start.checked_add(lease.len).is_some_and(|end| end <= lease.memory.len());
        let short = u32::try_from(lease.len).is_ok();
        let wraps = far.is_some_and(|far| far.offset.checked_add(lease.len as u64).is_none());
        if !matches!(kind, Kind::Read { .. }) {
            self.waiting += lease.len;
        }
        self.entries.push_back(Entry { id, kind, lease, end: None, read: false });
        match (inside, short, wraps) {
            (false, _, _) => Err("a lease lies outside its memory"),
            (_, false, _) => Err("a message of 4 GiB or more"),
            (_, _, true) => Err("a buffer of the peer ends past the last offset there is"),
            _ => Ok(()),
        }
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        self.entries.get(number.checked_sub(self.first)? as usize)
    }

    fn entry_mut(&mut self, number: u64) -> Option<&mut Entry> {
        self.entries.get_mut(number.checked_sub(self.first)? as usize)
    }

    #[inline]
    pub(super) fn memory(&self, number: u64) -> Option<&Payload> {
        self.entry(number).map(|entry| &entry.lease.memory)
    }

    #[inline]
    pub(super) fn memory_mut(&mut self, number: u64) -> Option<&mut Payload> {
        self.entry_mut(number).map(|entry| &mut entry.lease.memory)
    }

    /// The next work that is not started, with its number.
    #[inline]
    pub(super) fn peek(&self) -> Option<(u64, Job)> {
        Some((self.next, self.job(self.next)?))
    }

    #[inline]
    pub(super) fn job(&self, number: u64) -> Option<Job> {
        let Entry { kind, lease, .. } = self.entry(number)?;
        let lent = matches!(lease.memory, Payload::Region(_));
        Some(Job { kind: *kind, start: lease.start, len: lease.len, lent })
    }

    /// Whether no work waits to be started.
    #[inline]
    pub(super) fn all_started(&self) -> bool {
        self.next == self.first + self.entries.len() as u64
    }

    /// The next work is started.
    #[inline]
    pub(super) fn start(&mut self) {
        if let Some((_, job)) = self.peek() {
            if !matches!(job.kind, Kind::Read { .. }) {
                self.waiting -= job.len;
            }
            self.next += 1;
        }
    }

    /// All of a Send or Write is queued, up to this position of the stream.
    #[inline]
    pub(super) fn queued(&mut self, number: u64, end: u64) {
        if let Some(entry) = self.entry_mut(number) {
            entry.end = Some(end);
        }
    }

    /// All data of a Read are in place.
    pub(super) fn read(&mut self, number: u64) {
        if let Some(entry) = self.entry_mut(number) {
            entry.read = true;
        }
    }

    /// Payload bytes of Sends and Writes that are not started.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The first work's completion, if it is done with the stream sent up to `sent`, or `over`.
    #[inline]
    pub(super) fn poll(&mut self, sent: u64, over: bool) -> Option<Completion> {
        let front = self.entries.front()?;
        let done = !self.flushed && (front.read || front.end.is_some_and(|end| end <= sent));
        if !done && !over {
            return None;
        }
        if self.next == self.first {
            // Only what never was started is given back before it is.
            self.start();
        }
        let Entry { id, lease, .. } = self.entries.pop_front()?;
        self.first += 1;
        self.flushed = !done;
        let memory = lease.memory;
        Some(if done { Completion::Done { id, memory } } else { Completion::Flushed { id, memory } })
    }
}

/// An RDMA Read of ours under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    /// Number of the work.
    pub(super) work: u64,
    /// STag and offset that the response names.
    pub(super) stag: u32,
    pub(super) to: u64,
    /// Where its data go in the work's memory.
    pub(super) start: usize,
    pub(super) len: usize,
    /// How much has been placed, or is being placed.
    pub(super) placed: usize,
}
