//! A session's buffers between wire and store, counted.

use iscsi_memory::{Buf, BufPool};

/// Takes buffers from a pool and counts the bytes that are out.
#[derive(Debug)]
pub(crate) struct Buffers {
    pool: BufPool,
    out: usize,
    max: usize,
}

impl Buffers {
    pub(crate) fn new(max: usize, max_idle: usize) -> Self {
        Self { pool: BufPool::new(max_idle), out: 0, max }
    }

    /// Whether a task may take `len` bytes more. One task alone always may, so that no configuration locks it out.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.out == 0 || self.out.saturating_add(len) <= self.max
    }

    pub(crate) fn take(&mut self, len: usize) -> Buf {
        let buf = self.pool.take(len);
        self.out += buf.capacity();
        buf
    }

    pub(crate) fn give(&mut self, buf: Buf) {
        self.out = self.out.saturating_sub(buf.capacity());
        self.pool.give(buf);
    }

    /// Bytes that are out.
    #[cfg(test)]
    pub(crate) fn out(&self) -> usize {
        self.out
    }
}
