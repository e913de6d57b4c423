//! Who may write where: what makes COMPARE AND WRITE and ORWRITE atomic against every other writer of a logical unit,
//! of any session.
//!
//! The medium is cut into 64 interleaved stripes. A writer holds the stripes of its blocks together with other writers;
//! an atomic command holds them alone. Taking a stripe is one atomic addition, so plain writes pay a few nanoseconds.
//! Reads take nothing.
//!
//! A write whose task was aborted may still land: it is left behind on its stripes, and nobody writes there until it
//! has ended. So no older write ever covers a newer one, whoever the writers are.
//!
//! Nobody holds the gate while data are only asked for: a peer that owes them would keep an atomic command waiting, and
//! with it every writer of the same stripes. What goes to a store's own memory holds it for one copy, what goes to a
//! store for the time of its operation.
//!
//! The gate does not make sure that a logical block is old or new to readers: stores do, and [`iscsi_memory::Region`]
//! for memory that they lend.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use core::task::Waker;

use iscsi_memory::Lock;

/// Blocks of a stripe's piece, as a power of two.
const PIECE_SHIFT: u32 = 6;
const EXCLUSIVE: u64 = 1 << 63;
/// One operation that an aborted task has left at the store, in the bits between writers and [`EXCLUSIVE`].
const LEFT_BEHIND: u64 = 1 << 32;
/// What keeps a writer out.
const CLOSED: u64 = !(LEFT_BEHIND - 1);

/// A set of stripes, one bit each: see [`WriteGate::stripes`].
pub type Stripes = u64;

/// The write gate of one store: who may write where.
///
/// Writers take the stripes of their blocks together ([`try_shared`](Self::try_shared)); who compares and writes takes
/// them alone ([`try_exclusive`](Self::try_exclusive)). Nothing blocks: who is refused has itself woken
/// ([`wait`](Self::wait)) and tries again. What is taken is to be released by the same stripes.
///
/// ```
/// use backstore::WriteGate;
/// let gate = WriteGate::new();
/// let blocks = WriteGate::stripes(100, 8);
/// assert!(gate.try_shared(blocks));
/// let mut held = 0;
/// assert!(!gate.try_exclusive(blocks, &mut held), "a writer is there");
/// gate.release_shared(blocks);
/// assert!(gate.try_exclusive(blocks, &mut held));
/// assert!(!gate.try_shared(blocks));
/// gate.release_exclusive(held);
/// ```
#[derive(Debug)]
pub struct WriteGate {
    /// Writers in the low 32 bits, above them operations that aborted tasks left behind; [`EXCLUSIVE`] while one holds
    /// the stripe, or waits for its writers, alone.
    stripes: [AtomicU64; 64],
    waiters: Lock<Vec<Waker>>,
}

fn each(stripes: Stripes) -> impl Iterator<Item = usize> {
    let mut left = stripes;
    core::iter::from_fn(move || {
        (left != 0).then(|| {
            let stripe = left.trailing_zeros() as usize;
            left &= left - 1;
            stripe
        })
    })
}

impl Default for WriteGate {
    fn default() -> Self {
        Self::new()
    }
}

impl WriteGate {
    /// A gate that nobody holds.
    #[must_use]
    pub const fn new() -> Self {
        Self { stripes: [const { AtomicU64::new(0) }; 64], waiters: Lock::new(Vec::new()) }
    }

    /// The stripes of a range of blocks. Ranges far from each other may share some.
    #[inline]
    #[must_use]
    pub fn stripes(lba: u64, blocks: u64) -> Stripes {
        if blocks == 0 {
            return 0;
        }
        let first = lba >> PIECE_SHIFT;
        let pieces = (lba.saturating_add(blocks - 1) >> PIECE_SHIFT) - first + 1;
        if pieces >= 64 { u64::MAX } else { ((1u64 << pieces) - 1).rotate_left(first as u32 & 63) }
    }

    fn stripe(&self, index: usize) -> &AtomicU64 {
        &self.stripes[index & 63]
    }

    /// Takes the stripes together with other writers: all (true) or none (false).
    #[inline]
    #[must_use]
    pub fn try_shared(&self, stripes: Stripes) -> bool {
        let mut taken = 0;
        for index in each(stripes) {
            // A look before the addition: taking it back would wake every waiter, the caller among them, who would then
            // try again at once and for ever.
            if self.stripe(index).load(SeqCst) & CLOSED != 0 {
                self.release_shared(taken);
                return false;
            }
            taken |= 1 << index;
            if self.stripe(index).fetch_add(1, SeqCst) & CLOSED != 0 {
                self.release_shared(taken);
                return false;
            }
        }
        true
    }

    /// Whether writers may pass just now. Nothing is taken.
    #[inline]
    #[must_use]
    pub fn is_open(&self, stripes: Stripes) -> bool {
        each(stripes).all(|index| self.stripe(index).load(SeqCst) & CLOSED == 0)
    }

    /// The writer is done: gives back what [`try_shared`](Self::try_shared) took.
    #[inline]
    pub fn release_shared(&self, stripes: Stripes) {
        let mut awaited = false;
        for index in each(stripes) {
            awaited |= self.stripe(index).fetch_sub(1, SeqCst) & EXCLUSIVE != 0;
        }
        if awaited {
            self.wake();
        }
    }

    /// The writer's task was aborted while its operation is at the store: what it holds is closed to every writer until
    /// [`release_left_behind`](Self::release_left_behind).
    pub fn leave_behind(&self, stripes: Stripes) {
        for index in each(stripes) {
            self.stripe(index).fetch_add(LEFT_BEHIND - 1, SeqCst);
        }
    }

    /// The operation that was left behind has ended.
    pub fn release_left_behind(&self, stripes: Stripes) {
        for index in each(stripes) {
            self.stripe(index).fetch_sub(LEFT_BEHIND, SeqCst);
        }
        if stripes != 0 {
            self.wake();
        }
    }

    /// Goes on taking the stripes alone, in the order of their numbers so that two who do so cannot block each other;
    /// `held` is what is taken so far. True when all are, and the last writer has left them.
    #[must_use]
    pub fn try_exclusive(&self, stripes: Stripes, held: &mut Stripes) -> bool {
        for index in each(stripes & !*held) {
            if self.stripe(index).fetch_or(EXCLUSIVE, SeqCst) & EXCLUSIVE != 0 {
                return false;
            }
            *held |= 1 << index;
        }
        each(stripes).all(|index| self.stripe(index).load(SeqCst) == EXCLUSIVE)
    }

    /// Gives back what [`try_exclusive`](Self::try_exclusive) took so far, whether or not that was all.
    pub fn release_exclusive(&self, held: Stripes) {
        for index in each(held) {
            self.stripe(index).fetch_and(!EXCLUSIVE, SeqCst);
        }
        if held != 0 {
            self.wake();
        }
    }

    /// Has `waker` woken at the next release that matters. To be called before another try, not after it.
    pub fn wait(&self, waker: &Waker) {
        let mut waiters = self.waiters.lock();
        if !waiters.iter().any(|other| other.will_wake(waker)) {
            waiters.push(waker.clone());
        }
    }

    fn wake(&self) {
        let waiters = core::mem::take(&mut *self.waiters.lock());
        for waker in waiters {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_name_their_stripes() {
        assert_eq!(WriteGate::stripes(0, 0), 0);
        assert_eq!(WriteGate::stripes(0, 1), 1);
        assert_eq!(WriteGate::stripes(63, 2), 3);
        assert_eq!(WriteGate::stripes(63 * 64, 65), 1 << 63 | 1);
        assert_eq!(WriteGate::stripes(5, 64 * 64), u64::MAX);
        assert_eq!(WriteGate::stripes(u64::MAX, u64::MAX), 1 << 63);
    }

    #[test]
    fn a_try_that_fails_wakes_nobody() {
        use alloc::sync::Arc;
        use core::sync::atomic::AtomicUsize;

        #[derive(Default)]
        struct Count(AtomicUsize);
        impl alloc::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, SeqCst);
            }
        }
        let gate = WriteGate::new();
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        assert!(gate.try_shared(0b01));
        let mut held = 0;
        gate.wait(&waker);
        assert!(!gate.try_exclusive(0b01, &mut held));
        for stripes in [0b01, 0b11] {
            gate.wait(&waker);
            assert!(!gate.try_shared(stripes));
        }
        assert_eq!(count.0.load(SeqCst), 0);
        gate.release_shared(0b01);
        assert_eq!(count.0.load(SeqCst), 1);
    }

    #[test]
    fn what_is_left_behind_keeps_every_writer_out() {
        let gate = WriteGate::new();
        assert!(gate.try_shared(0b11));
        assert!(gate.try_shared(0b01));
        gate.leave_behind(0b11);
        assert!(!gate.try_shared(0b01));
        assert!(!gate.try_shared(0b10));
        assert!(gate.try_shared(0b100));
        let mut held = 0;
        assert!(!gate.try_exclusive(0b10, &mut held), "it waits for the operation");
        gate.release_left_behind(0b11);
        assert!(gate.try_exclusive(0b10, &mut held));
        gate.release_exclusive(held);
        gate.release_shared(0b101);
        assert!(gate.stripes.iter().all(|stripe| stripe.load(SeqCst) == 0));
    }

    #[test]
    fn one_alone_waits_for_the_writers_and_keeps_new_ones_out() {
        let gate = WriteGate::new();
        let mut held = 0;
        assert!(gate.try_shared(0b11));
        assert!(!gate.try_exclusive(0b110, &mut held));
        assert!(!gate.try_shared(0b010));
        assert!(gate.try_shared(0b001));
        let mut other = 0;
        assert!(!gate.try_exclusive(0b100, &mut other));
        gate.release_shared(0b11);
        assert!(gate.try_exclusive(0b110, &mut held));
        gate.release_exclusive(held);
        assert!(gate.try_exclusive(0b100, &mut other));
        gate.release_exclusive(other);
        gate.release_shared(0b1);
        assert!(gate.stripes.iter().all(|stripe| stripe.load(SeqCst) == 0));
    }
}
