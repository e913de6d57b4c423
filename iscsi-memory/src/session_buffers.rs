//! Buffers of sessions: from a pool of their worker, within a budget of all.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use core::task::Waker;

use crate::{Buf, BufPool, Lock};

/// Most bytes that are a session's own: what reads and writes go on with when all else is out.
const MOST_OWN: usize = 64 << 10;
/// Least of them: no block is larger, and headers fit beside it.
const LEAST_OWN: usize = 16 << 10;

/// The largest that is not above `n`; 0 for 0.
const fn largest_power_of_two(n: usize) -> usize {
    if n == 0 { 0 } else { 1 << n.ilog2() }
}

/// Bytes that the buffers of all sessions of a target may have together.
///
/// Half of it is the sessions' own: a small share each, which nobody else takes. The other half is shared: a session
/// may take as much of it as it leaves for the others, so that `n` sessions that take all they can get leave a share
/// for the next that comes. A session whose initiator takes nothing thus keeps nobody from going on, and one that gets
/// nothing of the shared half goes on in small pieces.
///
/// A quarter of the shared half is kept for those that need a buffer whole: whoever takes only as much as there is
/// leaves it alone, so the others go on however little is given back. While nobody has anything of that quarter, one of
/// them may take more than is left, so the budget is passed by one command at most.
///
/// ```
/// use iscsi_memory::BufferBudget;
/// let budget = BufferBudget::new(64 << 20, 512);
/// assert_eq!((budget.own(), budget.total(), budget.out()), (64 << 10, 64 << 20, 0));
/// ```
#[derive(Debug)]
pub struct BufferBudget {
    own: usize,
    shared: usize,
    sessions: usize,
    /// Bytes of the shared half that are for the line alone.
    kept: usize,
    /// Of the shared half, by sessions that have more than their own.
    shared_out: AtomicUsize,
    out: AtomicUsize,
    /// How often a session was told to wait.
    waits: AtomicUsize,
    /// Sessions that wait for more than their own, the first in front.
    line: Lock<VecDeque<Waiter>>,
    /// What the first of the line needs of the shared half; 0 when nobody waits.
    claimed: AtomicUsize,
    /// One of [`PLENTY`], [`SHORT`] and [`KNOWN`].
    state: AtomicU8,
}

/// No session was told to wait since half of the budget was free.
const PLENTY: u8 = 0;
/// One was, and nobody knows.
const SHORT: u8 = 1;
/// One was, and somebody knows.
const KNOWN: u8 = 2;

/// A session in the line.
#[derive(Debug)]
struct Waiter {
    session: usize,
    len: usize,
    waker: Waker,
}

impl BufferBudget {
    /// A budget of `total` bytes for at most so many sessions at a time. Where `total` is too little for 16 KiB as the
    /// own of each session, it is raised.
    #[must_use]
    pub fn new(total: usize, sessions: usize) -> Self {
        let sessions = sessions.max(1);
        let share = (total / 2 / sessions).clamp(LEAST_OWN, MOST_OWN);
        let own = largest_power_of_two(share);
        let shared = total.saturating_sub(own * sessions).max(total / 2);
        Self {
            own,
            shared,
            sessions,
            kept: shared / 4,
            shared_out: AtomicUsize::new(0),
            out: AtomicUsize::new(0),
            waits: AtomicUsize::new(0),
            line: Lock::default(),
            claimed: AtomicUsize::new(0),
            state: AtomicU8::new(PLENTY),
        }
    }

    /// Bytes that are each session's own: a power of two, 16 KiB to 64 KiB.
    #[must_use]
    pub fn own(&self) -> usize {
        self.own
    }

    /// The most bytes that may be out.
    #[must_use]
    pub fn total(&self) -> usize {
        self.shared + self.own * self.sessions
    }

    /// Bytes that are out now, of all sessions.
    #[must_use]
    pub fn out(&self) -> usize {
        self.out.load(Ordering::Relaxed)
    }

    /// How often a session was told to wait, or to be content with less, since the start.
    #[must_use]
    pub fn waits(&self) -> usize {
        self.waits.load(Ordering::Relaxed)
    }

    /// Sessions that wait in line for more than their own.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.line.with(|line| line.len())
    }

    /// Whether sessions are told to wait, or to be content with less, while less than half of the budget is free, for
    /// the first time since that was free. Told once.
    pub fn has_become_short(&self) -> bool {
        self.state.load(Ordering::Relaxed) == SHORT && self.state.swap(KNOWN, Ordering::Relaxed) == SHORT
    }

    /// A session is told to wait.
    fn refuse(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
        // One session that meets its own bound is no shortage of all: that would be told again and again.
        if self.rest() < self.shared / 2 {
            let _ = self.state.compare_exchange(PLENTY, SHORT, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Bytes of the shared half that nobody has.
    fn rest(&self) -> usize {
        self.shared.saturating_sub(self.shared_out.load(Ordering::Relaxed))
    }

    /// Whether nobody has anything of what is kept for the line.
    fn line_is_free(&self) -> bool {
        self.rest() >= self.kept
    }

    /// Puts a session at the end of the line, unless it is there.
    fn join(&self, session: usize, len: usize, waker: &Waker) {
        self.line.with(|line| {
            if line.is_empty() && self.line_is_free() {
                waker.wake_by_ref();
            }
            match line.iter_mut().find(|waiter| waiter.session == session) {
                Some(waiter) => {
                    waiter.len = len;
                    waiter.waker.clone_from(waker);
                }
                None => line.push_back(Waiter { session, len, waker: waker.clone() }),
            }
            self.claim(line);
        });
    }

    /// Takes a session out of the line; the next may go on.
    fn leave(&self, session: usize) {
        let next = self.line.with(|line| {
            line.retain(|waiter| waiter.session != session);
            self.claim(line);
            line.front().map(|waiter| waiter.waker.clone())
        });
        if let Some(next) = next {
            next.wake();
        }
    }

    fn claim(&self, line: &VecDeque<Waiter>) {
        let len = line.front().map_or(0, |first| first.len.min(self.shared));
        self.claimed.store(len, Ordering::Relaxed);
    }

    fn is_first(&self, session: usize) -> bool {
        self.line.with(|line| line.front().is_some_and(|first| first.session == session))
    }

    /// Something of the shared half is free: the first of the line looks whether it is enough.
    #[cold]
    fn wake_first(&self) {
        if let Some(waker) = self.line.with(|line| line.front().map(|waiter| waiter.waker.clone())) {
            waker.wake();
        }
    }

    /// What a session with so much out has changes from `before` to `after`.
    fn moved(&self, before: usize, after: usize) {
        let shared = |out: usize| out.saturating_sub(self.own);
        let (was, is) = (shared(before), shared(after));
        if after >= before {
            self.out.fetch_add(after - before, Ordering::Relaxed);
            self.shared_out.fetch_add(is - was, Ordering::Relaxed);
        } else {
            let left = self.out.fetch_sub(before - after, Ordering::Relaxed) - (before - after);
            if self.state.load(Ordering::Relaxed) == KNOWN && left <= self.shared / 2 {
                self.state.store(PLENTY, Ordering::Relaxed);
            }
            self.shared_out.fetch_sub(was - is, Ordering::Relaxed);
            if was > is && self.claimed.load(Ordering::Relaxed) != 0 {
                self.wake_first();
            }
        }
    }
}

struct Shared {
    pool: Lock<BufPool>,
    /// Sessions that have taken something since they last rested.
    users: AtomicUsize,
    budget: Option<Arc<BufferBudget>>,
}

/// The pool of a worker, from which all its sessions take their buffers. It keeps what comes back for the next that
/// takes, up to a limit, and frees all of it when none of its sessions is active any more.
///
/// ```
/// use iscsi_memory::WorkerPool;
/// let pool = WorkerPool::new(1 << 20, None);
/// let session = pool.session();
/// let buf = session.take(4096);
/// assert_eq!(session.out(), 4096);
/// session.give(buf);
/// assert_eq!((session.out(), pool.idle()), (0, 4096));
/// session.rest();
/// assert_eq!(pool.idle(), 0, "nobody is active");
/// ```
#[derive(Clone)]
pub struct WorkerPool(Arc<Shared>);

impl fmt::Debug for WorkerPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerPool").field("idle", &self.idle()).finish_non_exhaustive()
    }
}

impl WorkerPool {
    /// An empty pool that keeps at most `limit` idle bytes. Its sessions' buffers count against `budget`, if there is
    /// one.
    #[must_use]
    pub fn new(limit: usize, budget: Option<Arc<BufferBudget>>) -> Self {
        Self(Arc::new(Shared { pool: Lock::new(BufPool::new(limit)), users: AtomicUsize::new(0), budget }))
    }

    /// Bytes that lie idle in it.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.0.pool.with(|pool| pool.idle())
    }

    /// Sessions that are active: they have taken something since they last rested.
    #[must_use]
    pub fn active(&self) -> usize {
        self.0.users.load(Ordering::Relaxed)
    }

    /// The buffers of a new session.
    #[must_use]
    pub fn session(&self) -> SessionBuffers {
        let account = Account {
            pool: self.clone(),
            out: AtomicUsize::new(0),
            active: AtomicBool::new(false),
            waits: AtomicBool::new(false),
        };
        SessionBuffers(Arc::new(account))
    }
}

struct Account {
    pool: WorkerPool,
    out: AtomicUsize,
    active: AtomicBool,
    /// It is in the line for more.
    waits: AtomicBool,
}

impl Account {
    /// What names it in the line.
    fn name(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    fn leave_line(&self) {
        if self.waits.swap(false, Ordering::Relaxed)
            && let Some(budget) = &self.pool.0.budget
        {
            budget.leave(self.name());
        }
    }

    fn rest(&self) {
        let shared = &self.pool.0;
        if self.active.swap(false, Ordering::Relaxed) && shared.users.fetch_sub(1, Ordering::Relaxed) == 1 {
            shared.pool.with(BufPool::clear);
        }
    }
}

impl Drop for Account {
    /// What is out ends with a store's queue or a transport.
    fn drop(&mut self) {
        self.leave_line();
        if let Some(budget) = &self.pool.0.budget {
            budget.moved(*self.out.get_mut(), 0);
        }
        self.rest();
    }
}

/// The buffers of one session, which all its parts take from and give back to. One thread at a time uses it.
#[derive(Clone)]
pub struct SessionBuffers(Arc<Account>);

impl fmt::Debug for SessionBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionBuffers").field("out", &self.out()).finish_non_exhaustive()
    }
}

impl SessionBuffers {
    /// A session with a pool of its own, which keeps at most `limit` idle bytes, and without a budget.
    #[must_use]
    pub fn alone(limit: usize) -> Self {
        WorkerPool::new(limit, None).session()
    }

    fn budget(&self) -> Option<&BufferBudget> {
        self.0.pool.0.budget.as_deref()
    }

    fn moved(&self, before: usize, after: usize) {
        self.0.out.store(after, Ordering::Relaxed);
        if let Some(budget) = self.budget() {
            budget.moved(before, after);
        }
    }

    /// A buffer of `len` bytes, whether there is room for it or not. Its content is whatever its last user left.
    #[must_use]
    pub fn take(&self, len: usize) -> Buf {
        let shared = &self.0.pool.0;
        if !self.0.active.load(Ordering::Relaxed) {
            self.0.active.store(true, Ordering::Relaxed);
            shared.users.fetch_add(1, Ordering::Relaxed);
        }
        let buf = shared.pool.with(|pool| pool.take(len));
        let out = self.out();
        self.moved(out, out + buf.capacity());
        buf
    }

    /// Gives a buffer back, or one that comes from elsewhere.
    pub fn give(&self, buf: Buf) {
        let out = self.out();
        self.moved(out, out.saturating_sub(buf.capacity()));
        self.0.pool.0.pool.with(|pool| pool.give(buf));
    }

    /// Bytes that are out.
    #[must_use]
    pub fn out(&self) -> usize {
        self.0.out.load(Ordering::Relaxed)
    }

    /// How many bytes the session may take now, of `wanted` at most; 0 when it is to wait for what it has out. It may
    /// always go on when it has nothing out: with at least half of what is its own.
    #[must_use]
    pub fn room(&self, wanted: usize) -> usize {
        let Some(budget) = self.budget() else { return wanted };
        let (out, len) = (self.out(), BufPool::capacity_for(wanted));
        if self.leaves_as_much(budget, out, len) {
            return wanted;
        }
        budget.refuse();
        let own = largest_power_of_two(budget.own.saturating_sub(out));
        // Not in crumbs.
        if own >= len.min(budget.own / 2) { wanted.min(own) } else { 0 }
    }

    /// How many bytes the session may take of its own now, of `wanted` at most, if `held` of those that it has out did
    /// not count: they come back only when what takes these has gone on. 0 when it is to wait. Each session may pass
    /// the budget by its own in this way.
    #[must_use]
    pub fn room_beside(&self, wanted: usize, held: usize) -> usize {
        let Some(budget) = self.budget() else { return wanted };
        let own = largest_power_of_two(budget.own.saturating_sub(self.out().saturating_sub(held)));
        if own >= BufPool::capacity_for(wanted).min(budget.own / 2) { wanted.min(own) } else { 0 }
    }

    /// Whether `len` bytes more are within the session's own, or leave as much of the shared half as it then has of it.
    fn leaves_as_much(&self, budget: &BufferBudget, out: usize, len: usize) -> bool {
        let beyond = (out + len).saturating_sub(budget.own);
        let rest = budget.rest().saturating_sub(budget.claimed.load(Ordering::Relaxed).max(budget.kept));
        beyond == 0 || beyond.saturating_add(len) <= rest
    }

    /// Whether the session may take `len` bytes now, in one piece.
    #[must_use]
    pub fn has_room(&self, len: usize) -> bool {
        let Some(budget) = self.budget() else { return true };
        let (out, len) = (self.out(), BufPool::capacity_for(len));
        let waits = self.0.waits.load(Ordering::Relaxed);
        let is_first = || waits && budget.is_first(self.0.name());
        let may = self.leaves_as_much(budget, out, len)
            || (out <= budget.own
                && (budget.claimed.load(Ordering::Relaxed) == 0 || is_first())
                && (len <= budget.rest() || budget.line_is_free()));
        if may {
            self.0.leave_line();
        } else {
            budget.refuse();
        }
        may
    }

    /// Whether what is out is no more than the session's own; nothing, where there is no budget.
    #[must_use]
    pub fn has_only_its_own(&self) -> bool {
        self.out() <= self.budget().map_or(0, BufferBudget::own)
    }

    /// Whether the session may take `len` bytes now that others do without: they are its own, or nobody waits for any.
    #[must_use]
    pub fn has_spare(&self, len: usize) -> bool {
        let Some(budget) = self.budget() else { return true };
        let (out, len) = (self.out(), BufPool::capacity_for(len));
        out + len <= budget.own || budget.waiting() == 0 && self.leaves_as_much(budget, out, len)
    }

    /// The session waits in line until [`has_room`](Self::has_room) for `len` bytes, which is to be asked when `waker`
    /// is woken. Others get nothing of the shared half that the first of the line needs, so that its turn comes.
    pub fn wait_for_room(&self, len: usize, waker: &Waker) {
        if let Some(budget) = self.budget() {
            self.0.waits.store(true, Ordering::Relaxed);
            budget.join(self.0.name(), BufPool::capacity_for(len), waker);
        }
    }

    /// Whether the session waits in line.
    #[must_use]
    pub fn is_in_line(&self) -> bool {
        self.0.waits.load(Ordering::Relaxed)
    }

    /// The session waits no more: the task that did is gone.
    pub fn wait_no_more(&self) {
        self.0.leave_line();
    }

    /// The session has been silent for a while and has given back what it does not need: when all sessions of the pool
    /// are so, what lies idle there is freed.
    pub fn rest(&self) {
        self.0.rest();
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const PIECE: usize = 256 << 10;
    const TOTAL: usize = 64 << 20;

    /// Takes all that the session gets.
    fn fill(session: &SessionBuffers, kept: &mut Vec<Buf>) {
        loop {
            match session.room(PIECE) {
                0 => return,
                len => kept.push(session.take(len)),
            }
        }
    }

    #[test]
    fn sessions_that_take_all_they_get_stay_within_the_budget_and_leave_the_next_its_own() {
        let budget = Arc::new(BufferBudget::new(TOTAL, 512));
        let pool = WorkerPool::new(0, Some(budget.clone()));
        let mut sessions: Vec<_> = (0..511).map(|_| (pool.session(), Vec::new())).collect();
        for (session, kept) in &mut sessions {
            fill(session, kept);
            assert!(session.out() >= 32 << 10, "{session:?}");
        }
        assert!(budget.out() <= TOTAL, "{}", budget.out());
        assert!(budget.waits() > 0 && budget.has_become_short() && !budget.has_become_short());
        let last = pool.session();
        for _ in 0..100 {
            let len = last.room(PIECE);
            assert_eq!(len, 64 << 10);
            let buf = last.take(len);
            assert_eq!(last.room(PIECE), 0, "its own is out");
            last.give(buf);
        }
        assert!(last.has_room(64 << 10));
        // What needs its buffer whole goes on by what is kept for the line, and one at a time if it is larger.
        let second = pool.session();
        for len in [1 << 20, 16 << 20] {
            if !last.has_room(len) {
                last.wait_for_room(len, Waker::noop());
                assert!(last.has_room(len));
            }
            let whole = last.take(len);
            assert!(!second.has_room(16 << 20));
            second.wait_for_room(16 << 20, Waker::noop());
            assert!(!second.has_room(16 << 20));
            last.give(whole);
            assert!(second.has_room(16 << 20));
        }
        drop(second);
        sessions.clear();
        assert_eq!(budget.out(), 0);
        assert_eq!(last.room(PIECE), PIECE);
        assert!(!budget.has_become_short());
        assert_eq!(last.room(2 * TOTAL), 64 << 10);
        assert!(!budget.has_become_short(), "it meets its own bound, and others have room");
        let (other, mut kept) = (pool.session(), Vec::new());
        [&last, &other].into_iter().for_each(|session| fill(session, &mut kept));
        assert!(budget.has_become_short(), "told anew when it was over");
    }

    #[test]
    fn whoever_is_alone_takes_what_it_needs() {
        let budget = Arc::new(BufferBudget::new(TOTAL, 512));
        let pool = WorkerPool::new(0, Some(budget.clone()));
        let (one, other) = (pool.session(), pool.session());
        assert!(one.has_room(2 * TOTAL));
        let kept = one.take(25 << 20);
        assert!(!other.has_room(16 << 20), "more than nobody has");
        assert!(other.has_room(2 << 20));
        assert_eq!(one.room(PIECE), 0);
        one.give(kept);
        assert_eq!(budget.out(), 0);
    }

    #[test]
    fn whoever_waits_in_line_gets_its_turn() {
        let budget = Arc::new(BufferBudget::new(TOTAL, 512));
        let pool = WorkerPool::new(0, Some(budget.clone()));
        let (hog, first, second) = (pool.session(), pool.session(), pool.session());
        let mut kept: Vec<_> = (0..64).map(|_| hog.take(PIECE)).collect();
        kept.extend((0..60).map(|_| hog.take(PIECE)));
        assert!(!first.has_room(4 << 20));
        first.wait_for_room(4 << 20, Waker::noop());
        assert!(!second.has_room(PIECE), "the first needs it");
        second.wait_for_room(PIECE, Waker::noop());
        assert_eq!((budget.waiting(), second.room(PIECE)), (2, 64 << 10));
        for buf in kept.drain(..14) {
            assert!(!second.has_room(PIECE));
            hog.give(buf);
        }
        assert!(first.has_room(4 << 20));
        let taken = first.take(4 << 20);
        assert_eq!(budget.waiting(), 1);
        assert!(second.has_room(PIECE));
        assert_eq!(budget.waiting(), 0);
        first.give(taken);
        // One that ends is out of the line.
        first.wait_for_room(PIECE, Waker::noop());
        drop(first);
        assert_eq!(budget.waiting(), 0);
        second.wait_for_room(PIECE, Waker::noop());
        second.wait_no_more();
        assert_eq!(budget.waiting(), 0);
    }

    #[test]
    fn what_is_idle_is_freed_when_the_last_session_rests() {
        let pool = WorkerPool::new(1 << 20, None);
        let (one, other) = (pool.session(), pool.session());
        one.give(one.take(PIECE));
        other.give(other.take(4096));
        one.rest();
        assert_eq!((pool.idle(), pool.active()), (PIECE + 4096, 1));
        drop(other);
        assert_eq!((pool.idle(), pool.active()), (0, 0));
        one.give(one.take(PIECE));
        assert_eq!((pool.idle(), pool.active()), (PIECE, 1));
        one.rest();
        one.rest();
        assert_eq!((pool.idle(), pool.active()), (0, 0));
    }
}
