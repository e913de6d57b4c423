//! The send queue: headers, trailers and small payloads in one reused buffer, other payloads by reference between them.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use iscsi_memory::{Buf, Payload, SendList, SendSlice};

use super::stags::Stags;
use super::work::Works;

/// Most payloads by reference at a time: each takes a piece of a [`SendList`], and so do the bytes before it.
const MAX_PIECES: usize = (SendList::CAPACITY - 1) / 2;
/// Bytes of the buffer at first: the answers to a full command window of small reads. Memory that was never needed
/// costs nothing.
const SIZE: usize = 128 << 10;

/// Where a payload lies.
#[derive(Debug)]
pub(super) enum Source {
    /// In the work of this number.
    Work(u64),
    /// In the advertised buffer of this slot.
    Advertised(usize),
    /// It was in a buffer that has been withdrawn since.
    Copied(Vec<u8>),
}

/// Bytes `start..end` of a payload, sent before the buffer's byte `at`.
#[derive(Debug)]
struct Piece {
    at: usize,
    source: Source,
    start: usize,
    end: usize,
}

#[derive(Debug)]
pub(super) struct SendQueue {
    /// Bytes to send lie at `head..tail`.
    bytes: Buf,
    head: usize,
    tail: usize,
    pieces: VecDeque<Piece>,
    /// Position in the stream behind all that was ever queued.
    queued: u64,
    /// Position in the stream behind all that was ever sent.
    sent: u64,
    /// Little is sent: the buffer has no byte more than it needs, and is freed when all is sent.
    small: bool,
}

impl SendQueue {
    pub(super) fn new() -> Self {
        Self { bytes: Buf::zeroed(0), head: 0, tail: 0, pieces: VecDeque::new(), queued: 0, sent: 0, small: false }
    }

    /// Little is sent from now on, or much.
    pub(super) fn set_small(&mut self, small: bool) {
        self.small = small;
    }

    /// Bytes of a buffer that is to hold at least so many.
    fn size_for(&self, least: usize) -> usize {
        if self.small { least } else { least.next_power_of_two().max(SIZE) }
    }

    #[inline]
    pub(super) fn queued(&self) -> u64 {
        self.queued
    }

    #[inline]
    pub(super) fn sent_up_to(&self) -> u64 {
        self.sent
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.queued == self.sent
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        (self.queued - self.sent) as usize
    }

    /// Sees to it that the buffer is of at least `size` bytes.
    pub(super) fn reserve(&mut self, size: usize) {
        if self.bytes.len() < size {
            let mut new = if self.small { Buf::small(size) } else { Buf::zeroed(size) };
            let used = self.head..self.tail;
            if let (Some(to), Some(from)) = (new.get_mut(used.clone()), self.bytes.get(used)) {
                to.copy_from_slice(from);
            }
            self.bytes = new;
        }
    }

    /// Gives back what earlier bytes took, when nothing is to be sent.
    pub(super) fn trim(&mut self) {
        if self.is_empty() {
            (self.head, self.tail) = (0, 0);
            self.bytes = Buf::zeroed(0);
            self.pieces = VecDeque::new();
        }
    }

    /// Whether another FPDU with so many bytes in the buffer is to be queued now: later will do if the next list is
    /// full anyway.
    #[inline]
    pub(super) fn has_room(&mut self, n: usize) -> bool {
        if self.pieces.len() >= MAX_PIECES {
            return false;
        }
        if self.small {
            self.reserve(self.tail + n);
        } else if n > self.bytes.len() {
            // Payloads that are copied because of the CRC: room for some at once.
            self.reserve(self.size_for(n * 4));
        }
        // No more is moved than was sent since the last time.
        if self.bytes.len() - self.tail < n && self.head >= self.tail - self.head {
            self.compact();
        }
        self.bytes.len() - self.tail >= n
    }

    fn compact(&mut self) {
        self.bytes.copy_within(self.head..self.tail, 0);
        for piece in &mut self.pieces {
            piece.at -= self.head;
        }
        self.tail -= self.head;
        self.head = 0;
    }

    /// `n` more bytes behind the queue, to be written.
    #[inline]
    pub(super) fn grab(&mut self, n: usize) -> &mut [u8] {
        if self.bytes.len() - self.tail < n {
            // Only startup frames and the Terminate, whose room nobody asked for before.
            self.reserve(self.size_for(self.tail + n));
        }
        let at = self.tail;
        self.tail += n;
        self.queued += n as u64;
        self.bytes.get_mut(at..at + n).unwrap_or_default()
    }

    /// Bytes by reference behind the queue.
    #[inline]
    pub(super) fn refer(&mut self, source: Source, start: usize, end: usize) {
        self.queued += (end - start) as u64;
        self.pieces.push_back(Piece { at: self.tail, source, start, end });
    }

    #[inline]
    pub(super) fn fill<'a>(&'a self, works: &'a Works, stags: &'a Stags, list: &mut SendList<'a>) {
        let mut at = self.head;
        for piece in &self.pieces {
            let between = self.bytes.get(at..piece.at).unwrap_or_default();
            at = piece.at;
            let slice = match &piece.source {
                Source::Work(number) => works.memory(*number).map(|memory| memory.send_slice(piece.start, piece.end)),
                Source::Advertised(slot) => stags.memory(*slot).map(|memory| memory.send_slice(piece.start, piece.end)),
                Source::Copied(bytes) => bytes.get(piece.start..piece.end).map(SendSlice::Private),
            };
            let Some(slice) = slice else { return };
            if !list.push(SendSlice::Private(between)) || !list.push(slice) {
                return;
            }
        }
        list.push(SendSlice::Private(self.bytes.get(at..self.tail).unwrap_or_default()));
    }

    /// `n` bytes were sent.
    pub(super) fn sent(&mut self, mut n: usize) {
        assert!(n <= self.len(), "more bytes than were queued");
        self.sent += n as u64;
        while let Some(piece) = self.pieces.front_mut() {
            let between = (piece.at - self.head).min(n);
            self.head += between;
            n -= between;
            let part = (piece.end - piece.start).min(n);
            piece.start += part;
            n -= part;
            if self.head < piece.at || piece.start < piece.end {
                return;
            }
            self.pieces.pop_front();
        }
        self.head += n;
        if self.head == self.tail {
            self.head = 0;
            self.tail = 0;
            if self.small {
                self.bytes = Buf::zeroed(0);
            }
        }
    }

    /// The buffer of this slot is about to be withdrawn: what is still to be sent of it is kept aside. An FPDU whose
    /// header may be on its way already cannot be taken back, and what the peer may have by then is what it was allowed
    /// to read.
    pub(super) fn detach(&mut self, slot: usize, memory: &Payload) {
        for piece in &mut self.pieces {
            if matches!(piece.source, Source::Advertised(of) if of == slot) {
                let mut bytes = alloc::vec![0; piece.end - piece.start];
                memory.read(piece.start, &mut bytes);
                piece.source = Source::Copied(bytes);
                piece.end -= piece.start;
                piece.start = 0;
            }
        }
    }

    /// Drops everything queued.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.head = 0;
        self.tail = 0;
        self.queued = self.sent;
    }
}
