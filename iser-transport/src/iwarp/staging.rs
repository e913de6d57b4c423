//! The staging buffer: where headers, small payloads and whatever must be verified before it is placed gather.

use iscsi_memory::Buf;

/// Bytes received and not yet consumed lie at `head..tail`.
#[derive(Debug)]
pub(super) struct Staging {
    /// Memory of it that is not used takes none of the machine's, where buffers are mappings of their own.
    bytes: Buf,
    head: usize,
    tail: usize,
    /// Bytes at first.
    size: usize,
    /// Little comes: it has [`SMALL`] bytes between two FPDUs.
    small: bool,
}

/// Bytes while little comes: headers, and what is looked at as a whole, fit.
pub(super) const SMALL: usize = 128;

impl Staging {
    pub(super) fn new(size: usize) -> Self {
        Self { bytes: Buf::zeroed(0), head: 0, tail: 0, size, small: false }
    }

    /// Whether little comes.
    #[inline]
    pub(super) fn is_small(&self) -> bool {
        self.small
    }

    /// Little comes from now on, or much.
    pub(super) fn set_small(&mut self, small: bool) {
        self.small = small;
        if !small && self.bytes.len() < self.size {
            self.exchange(self.size);
        }
    }

    /// It has its size when nothing is unread.
    #[cold]
    fn provide(&mut self) {
        self.bytes = if self.small { Buf::small(SMALL) } else { Buf::zeroed(self.size) };
    }

    #[inline]
    pub(super) fn unread(&self) -> &[u8] {
        self.bytes.get(self.head..self.tail).unwrap_or_default()
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.tail - self.head
    }

    #[inline]
    pub(super) fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.len());
        self.head += n;
    }

    pub(super) fn clear(&mut self) {
        self.head = 0;
        self.tail = 0;
    }

    /// Room for at most `most` bytes, and for at least one.
    #[inline]
    pub(super) fn room(&mut self, most: usize) -> &mut [u8] {
        if self.head == self.tail {
            self.clear();
            if self.bytes.is_empty() || self.small && self.bytes.len() > SMALL {
                self.provide();
            }
        } else if self.bytes.len() - self.tail < most.min(self.bytes.len() / 4).max(1) {
            self.compact();
        }
        let end = self.tail.saturating_add(most).min(self.bytes.len());
        self.bytes.get_mut(self.tail..end).unwrap_or_default()
    }

    fn compact(&mut self) {
        self.bytes.copy_within(self.head..self.tail, 0);
        self.tail -= self.head;
        self.head = 0;
    }

    /// Bytes came into [`room`](Self::room).
    #[inline]
    pub(super) fn filled(&mut self, n: usize) {
        assert!(n <= self.bytes.len() - self.tail, "more bytes than the window held");
        self.tail += n;
    }

    /// Sees to it that `need` bytes from the first unread on fit. An FPDU's length field bounds `need`.
    #[inline]
    pub(super) fn make_room(&mut self, need: usize) {
        if self.bytes.len() - self.head < need {
            self.grow(need);
        }
    }

    /// Another buffer of `size` bytes, with what is unread at the same place.
    fn exchange(&mut self, size: usize) {
        let mut new = if self.small { Buf::small(size) } else { Buf::zeroed(size) };
        let unread = self.head..self.tail;
        if let (Some(to), Some(from)) = (new.get_mut(unread.clone()), self.bytes.get(unread)) {
            to.copy_from_slice(from);
        }
        self.bytes = new;
    }

    /// Gives back what earlier bytes took, when nothing is unread.
    pub(super) fn trim(&mut self) {
        if self.len() == 0 {
            self.clear();
            self.bytes = Buf::zeroed(0);
        }
    }

    #[cold]
    fn grow(&mut self, need: usize) {
        self.compact();
        if self.bytes.len() < need {
            self.exchange(if self.small { need } else { need.next_power_of_two() });
        }
    }
}
