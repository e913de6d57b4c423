//! The staging buffer: where headers, control PDUs and small payloads gather as they come from the stream.

use alloc::vec::Vec;

use iscsi_memory::{Buf, SessionBuffers};

/// Bytes received and not yet consumed lie at `head..tail`.
#[derive(Debug)]
pub(super) struct Staging {
    buffers: SessionBuffers,
    /// What there is as long as little comes.
    small: Vec<u8>,
    /// What there is instead once more comes.
    bulk: Option<Buf>,
    head: usize,
    tail: usize,
    /// The size that it grows to when bytes come faster than they are consumed.
    most: usize,
    /// The last bytes that came filled it to its end.
    crowded: bool,
    /// Bytes that have to fit for the PDU at hand, from the first unread one on; 0 when it is gone.
    need: usize,
    /// Bytes of `small` between two PDUs, while peers have proved nothing: it grows by what one PDU lacks, and nothing
    /// is received behind that PDU.
    login: Option<usize>,
}

impl Staging {
    /// Staging of `size` bytes that is to grow out of `buffers`.
    pub(super) fn new(size: usize, buffers: SessionBuffers) -> Self {
        let small = alloc::vec![0; size];
        Self { buffers, small, bulk: None, head: 0, tail: 0, most: size, crowded: false, need: 0, login: None }
    }

    /// Staging of `size` bytes for a login: until [`begin_bulk`](Self::begin_bulk) it has no byte more than the PDU at
    /// hand, and takes nothing of `buffers`.
    pub(super) fn for_login(size: usize, buffers: SessionBuffers) -> Self {
        let mut staging = Self::new(size, buffers);
        staging.login = Some(size);
        staging
    }

    /// The login is over: from now on it has at least `size` bytes.
    pub(super) fn begin_bulk(&mut self, size: usize) {
        self.shrink();
        self.login = None;
        if self.small.len() < size {
            self.small.resize(size, 0);
        }
    }

    /// In a login: the PDU that it grew for is gone. Positions noted before are void.
    pub(super) fn shrink(&mut self) {
        if let Some(size) = self.login
            && self.small.len() > size
            && self.len() == 0
        {
            (self.head, self.tail) = (0, 0);
            self.small.truncate(size);
            self.small.shrink_to_fit();
        }
    }

    /// From now on it takes up to `most` bytes when they come in bulk.
    pub(super) fn may_grow(&mut self, most: usize) {
        self.most = most.max(self.size());
    }

    /// Takes no memory for bulk until it [may grow](Self::may_grow) again.
    pub(super) fn stay(&mut self) {
        self.most = 0;
    }

    /// Gives memory for bulk back, when what is unread has room without it.
    pub(super) fn trim(&mut self) {
        // A PDU that has come in part would take it again with the next look.
        if self.bulk.is_none() || self.len().max(self.need) > self.small.len() {
            return;
        }
        let len = self.len();
        if let (Some(to), Some(bulk)) = (self.small.get_mut(..len), self.bulk.take()) {
            to.copy_from_slice(bulk.get(self.head..self.tail).unwrap_or_default());
            self.buffers.give(bulk);
        }
        (self.head, self.tail, self.crowded) = (0, len, false);
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        match &self.bulk {
            Some(bulk) => bulk,
            None => &self.small,
        }
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.bulk {
            Some(bulk) => bulk,
            None => &mut self.small,
        }
    }

    #[inline]
    fn size(&self) -> usize {
        self.bytes().len()
    }

    /// Moves what is unread into a larger buffer. Positions noted before are void.
    #[cold]
    fn enlarge(&mut self, size: usize) {
        let mut bulk = self.buffers.take(size);
        let len = self.len();
        if let (Some(to), Some(from)) = (bulk.get_mut(..len), self.bytes().get(self.head..self.tail)) {
            to.copy_from_slice(from);
        }
        (self.head, self.tail) = (0, len);
        if let Some(old) = self.bulk.replace(bulk) {
            self.buffers.give(old);
        }
    }

    #[cold]
    fn grow(&mut self) {
        self.crowded = false;
        let (size, most) = (self.size(), self.most);
        // A session that waits in line for buffers would give these back at once, and be woken by that, again and
        // again.
        if size < most && !self.buffers.is_in_line() && self.buffers.room(most) == most {
            self.enlarge(most);
        }
    }

    /// What is there to be parsed.
    #[inline]
    pub(super) fn unread(&self) -> &[u8] {
        self.bytes().get(self.head..self.tail).unwrap_or_default()
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

    /// Bytes at a place noted before; nothing moves them until the next [`room`](Self::room) or
    /// [`make_room`](Self::make_room).
    pub(super) fn span(&self, at: usize, len: usize) -> &[u8] {
        self.bytes().get(at..at + len).unwrap_or_default()
    }

    #[inline]
    pub(super) fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.len());
        self.head += n;
        self.need = 0;
    }

    /// The last `N` bytes that were consumed, if they are still there.
    #[inline]
    pub(super) fn consumed<const N: usize>(&self) -> Option<&[u8; N]> {
        self.bytes().get(..self.head)?.last_chunk()
    }

    /// Room for the next bytes. At least a fourth of the buffer, unless more than that is unread; positions noted
    /// before are void.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.crowded {
            self.grow();
        }
        if self.head == self.tail {
            self.head = 0;
            self.tail = 0;
        } else if self.head > 0 && self.size() - self.tail < self.size() / 4 {
            self.compact();
        }
        let tail = self.tail;
        let end = match self.login {
            Some(_) if self.need > 0 => self.head + self.need,
            _ => self.size(),
        };
        self.bytes_mut().get_mut(tail..end).unwrap_or_default()
    }

    /// What is there to be parsed, and [`room`](Self::room).
    pub(super) fn unread_and_room(&mut self) -> (&[u8], &mut [u8]) {
        self.room();
        let (head, tail) = (self.head, self.tail);
        let (used, room) = self.bytes_mut().split_at_mut(tail);
        (used.get(head..).unwrap_or_default(), room)
    }

    fn compact(&mut self) {
        let (head, tail) = (self.head, self.tail);
        self.bytes_mut().copy_within(head..tail, 0);
        self.tail -= self.head;
        self.head = 0;
    }

    /// Bytes came into [`room`](Self::room).
    pub(super) fn filled(&mut self, n: usize) {
        assert!(n <= self.size() - self.tail, "more bytes than the window held");
        self.tail += n;
        self.crowded = self.tail == self.size();
    }

    /// Sees to it that `need` bytes from the first unread on fit. The caller bounds `need`.
    #[cold]
    pub(super) fn make_room(&mut self, need: usize) {
        self.need = need;
        if self.size() - self.head >= need {
            return;
        }
        if self.size() < need && self.login.is_some() {
            self.compact();
            self.small.reserve_exact(need - self.small.len());
            self.small.resize(need, 0);
        } else if self.size() < need {
            self.enlarge(need.next_power_of_two());
        } else {
            self.compact();
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(bulk) = self.bulk.take() {
            self.buffers.give(bulk);
        }
    }
}
