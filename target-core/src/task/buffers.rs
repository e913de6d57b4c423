//! A session's buffers between wire and store, counted, and the budget that it shares with the other sessions.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use iscsi_memory::{Buf, BufPool};

/// Bytes that the buffers of all sessions of a target may have together.
///
/// A session may take as much as it leaves for the others. One alone so gets half of the budget, `n` that take all they
/// can get an equal share each, and one share stays for the next that comes: sessions whose initiators do not read keep
/// nobody from going on.
#[derive(Debug)]
pub struct BufferBudget {
    total: usize,
    out: AtomicUsize,
}

impl BufferBudget {
    /// A budget of `total` bytes.
    #[must_use]
    pub const fn new(total: usize) -> Self {
        Self { total, out: AtomicUsize::new(0) }
    }

    /// Bytes that are out now, of all sessions. Sessions that have none out may go beyond the budget by one task each.
    #[must_use]
    pub fn out(&self) -> usize {
        self.out.load(Ordering::Relaxed)
    }

    /// Bytes that nobody has.
    fn rest(&self) -> usize {
        self.total.saturating_sub(self.out())
    }
}

/// Takes buffers from a pool and counts the bytes that are out.
#[derive(Debug)]
pub(crate) struct Buffers {
    pool: BufPool,
    out: usize,
    max: usize,
    /// What the session shares with others, if with any.
    shared: Option<Arc<BufferBudget>>,
}

impl Buffers {
    pub(crate) fn new(max: usize, max_idle: usize) -> Self {
        Self { pool: BufPool::new(max_idle), out: 0, max, shared: None }
    }

    /// The same within what all sessions may take together; before the first buffer.
    pub(crate) fn share(&mut self, budget: Arc<BufferBudget>) {
        self.shared = Some(budget);
    }

    /// Whether a task may take `len` bytes more. One task alone always may, so that no configuration and nobody else
    /// locks it out.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        let wanted = self.out.saturating_add(len);
        let leaves_as_much = |budget: &Arc<BufferBudget>| wanted <= budget.rest().saturating_sub(len);
        self.out == 0 || (wanted <= self.max && self.shared.as_ref().is_none_or(leaves_as_much))
    }

    /// Frees what lies idle.
    pub(crate) fn trim(&mut self) {
        self.pool.clear();
    }

    pub(crate) fn take(&mut self, len: usize) -> Buf {
        let buf = self.pool.take(len);
        self.out += buf.capacity();
        if let Some(budget) = &self.shared {
            budget.out.fetch_add(buf.capacity(), Ordering::Relaxed);
        }
        buf
    }

    pub(crate) fn give(&mut self, buf: Buf) {
        let back = buf.capacity().min(self.out);
        self.out -= back;
        if let Some(budget) = &self.shared {
            budget.out.fetch_sub(back, Ordering::Relaxed);
        }
        self.pool.give(buf);
    }

    /// Bytes that are out.
    #[cfg(test)]
    pub(crate) fn out(&self) -> usize {
        self.out
    }
}

impl Drop for Buffers {
    /// What is out now ends with a store's queue or with the mover.
    fn drop(&mut self) {
        if let Some(budget) = &self.shared {
            budget.out.fetch_sub(self.out, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const PIECE: usize = 256 << 10;

    /// Takes all that the session gets.
    fn fill(buffers: &mut Buffers, kept: &mut Vec<Buf>) {
        while buffers.has_room(PIECE) {
            kept.push(buffers.take(PIECE));
        }
    }

    #[test]
    fn sessions_that_take_all_they_get_leave_something_for_the_next() {
        let budget = Arc::new(BufferBudget::new(48 << 20));
        let mut sessions: Vec<_> = (0..10).map(|_| Buffers::new(64 << 20, 0)).collect();
        let mut kept: Vec<Vec<Buf>> = (0..10).map(|_| Vec::new()).collect();
        for (session, kept) in sessions.iter_mut().zip(&mut kept) {
            session.share(budget.clone());
            fill(session, kept);
        }
        assert_eq!(sessions[0].out(), 24 << 20, "as much as it leaves");
        let one_each = sessions.len() * PIECE;
        assert!(budget.out() <= (48 << 20) + one_each, "{}", budget.out());
        // One that gives back what it has always may go on.
        for _ in 0..100 {
            let last = kept[9].pop().unwrap();
            sessions[9].give(last);
            fill(&mut sessions[9], &mut kept[9]);
        }
        // What ends with its session is free for the others.
        drop(sessions.split_off(1));
        kept.truncate(1);
        assert_eq!(budget.out(), 24 << 20);
        for buf in kept.remove(0) {
            sessions[0].give(buf);
        }
        assert_eq!(budget.out(), 0);
    }
}
