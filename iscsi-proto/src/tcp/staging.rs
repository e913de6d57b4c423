//! The staging buffer: where headers, control PDUs and small payloads gather as they come from the stream.

use alloc::vec::Vec;

/// Bytes received and not yet consumed lie at `head..tail`.
#[derive(Debug)]
pub(super) struct Staging {
    bytes: Vec<u8>,
    head: usize,
    tail: usize,
    /// The size that it grows to when bytes come faster than they are consumed.
    most: usize,
    /// The last bytes that came filled it to its end.
    crowded: bool,
}

impl Staging {
    pub(super) fn new(size: usize) -> Self {
        Self { bytes: alloc::vec![0; size], head: 0, tail: 0, most: size, crowded: false }
    }

    /// From now on it takes up to `most` bytes when they come in bulk.
    pub(super) fn may_grow(&mut self, most: usize) {
        self.most = most.max(self.bytes.len());
    }

    /// Gives memory beyond `size` bytes back, when nothing is unread.
    pub(super) fn trim(&mut self, size: usize) {
        if self.head == self.tail && self.bytes.len() > size {
            *self = Self { most: self.most, ..Self::new(size) };
        }
    }

    #[cold]
    fn grow(&mut self) {
        self.crowded = false;
        if self.bytes.len() < self.most {
            self.bytes.resize(self.most, 0);
        }
    }

    /// What is there to be parsed.
    #[inline]
    pub(super) fn unread(&self) -> &[u8] {
        self.bytes.get(self.head..self.tail).unwrap_or_default()
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.tail - self.head
    }

    /// Position of the first unread byte, for [`span`](Self::span).
    #[inline]
    pub(super) fn position(&self) -> usize {
        self.head
    }

    /// Bytes at a place noted before; nothing moves them until the next [`room`](Self::room) or [`make_room`](Self::make_room).
    pub(super) fn span(&self, at: usize, len: usize) -> &[u8] {
        self.bytes.get(at..at + len).unwrap_or_default()
    }

    #[inline]
    pub(super) fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.len());
        self.head += n;
    }

    /// The last `N` bytes that were consumed, if they are still there.
    #[inline]
    pub(super) fn consumed<const N: usize>(&self) -> Option<&[u8; N]> {
        self.bytes.get(..self.head)?.last_chunk()
    }

    /// Room for the next bytes. At least a fourth of the buffer, unless more than that is unread; positions noted before are void.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.crowded {
            self.grow();
        }
        if self.head == self.tail {
            self.head = 0;
            self.tail = 0;
        } else if self.head > 0 && self.bytes.len() - self.tail < self.bytes.len() / 4 {
            self.compact();
        }
        self.bytes.get_mut(self.tail..).unwrap_or_default()
    }

    fn compact(&mut self) {
        self.bytes.copy_within(self.head..self.tail, 0);
        self.tail -= self.head;
        self.head = 0;
    }

    /// Bytes came into [`room`](Self::room).
    pub(super) fn filled(&mut self, n: usize) {
        assert!(n <= self.bytes.len() - self.tail, "more bytes than the window held");
        self.tail += n;
        self.crowded = self.tail == self.bytes.len();
    }

    /// Sees to it that `need` bytes from the first unread on fit. The caller bounds `need`.
    #[cold]
    pub(super) fn make_room(&mut self, need: usize) {
        if self.bytes.len() - self.head >= need {
            return;
        }
        self.compact();
        if self.bytes.len() < need {
            self.bytes.resize(need.next_power_of_two(), 0);
        }
    }
}
