//! Who may write where: what makes COMPARE AND WRITE and ORWRITE atomic against every other writer of a logical unit,
//! of any session.
//!
//! Writers of a block are there together; an atomic command has its blocks alone. What waits for what goes by exact
//! ranges, in the order in which they came: who writes elsewhere never waits, and nobody is overtaken for ever. Reads
//! take nothing.
//!
//! A write whose task was aborted may still land: it is left behind on its blocks, and nobody writes there until it
//! has ended. So no older write ever covers a newer one, whoever the writers are.
//!
//! There are three roads, so that plain writes pay a few nanoseconds:
//!
//! - A copy to a store's own memory ([`WriteGate::briefly`]) is counted, in one of 64 words by its first block. Who
//!   wants blocks alone waits until the counts of their words were zero once: for a few copies in memory.
//! - A store's operation may last. Its range is noted in one of a few short lists, each with a lock of its own.
//! - Where somebody is alone, waits for that, or was left behind, the words of its blocks are marked. Who finds a mark
//!   goes by the one list (`list.rs`) in which everybody knows how many he waits for.
//!
//! Nobody holds the gate while data are only asked for: a peer that owes them would keep an atomic command waiting.
//! What goes to a store's own memory holds it for one copy, what goes to a store for the time of its operation.
//!
//! The gate does not make sure that a logical block is old or new to readers: stores do, and [`iscsi_memory::Region`]
//! for memory that they lend.

mod blocks;
mod list;
mod slab;

use core::ops::Range;
use core::sync::atomic::Ordering::SeqCst;
use core::task::Waker;

use alloc::vec::Vec;
use iscsi_memory::Lock;
use portable_atomic::AtomicU64;

pub use blocks::Blocks;
use blocks::{Stripes, each, stripes};
use list::{Kind, List};
use slab::Slab;

/// Lists of operations that last, so that workers seldom meet at a lock.
const LISTS: usize = 16;

/// How somebody is at his blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Together with other writers.
    Shared,
    /// Alone: what is written depends on what is read.
    Alone,
}

/// Somebody's place at a [`WriteGate`], from [`WriteGate::enter`] to [`WriteGate::leave`]. It is not given back by
/// dropping it: an operation at a store outlives its task.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct GatePlace(Where);

#[derive(Debug, PartialEq, Eq)]
enum Where {
    Lasting { list: usize, index: usize },
    Listed(usize),
}

/// An operation that lasts.
#[derive(Debug)]
struct Lasting {
    blocks: Range<u64>,
    /// Number of the last one in the list that waits for it; 0 for none.
    awaited: u64,
}

/// On a cache line of its own: all writers read it, and seldom does somebody write it.
#[derive(Debug)]
#[repr(align(64))]
struct Marks(AtomicU64);

/// The write gate of one store: who may write where.
///
/// A copy goes [`briefly`](Self::briefly) through it; an operation that lasts [`enter`](Self::enter)s, is through as
/// soon as [`has_passed`](Self::has_passed) says so, and [`leave`](Self::leave)s. Nothing blocks: who waits is woken.
///
/// ```
/// use backstore::{Access, Blocks, WriteGate};
/// use std::task::Waker;
/// let gate = WriteGate::new();
/// let write = gate.enter(Access::Shared, Blocks::new(100, 8), Waker::noop());
/// assert!(gate.has_passed(&write));
/// let atomic = gate.enter(Access::Alone, Blocks::new(107, 1), Waker::noop());
/// assert!(!gate.has_passed(&atomic), "a writer is there");
/// assert_eq!(gate.briefly(107, 1, || "copied"), None, "and nobody comes between");
/// assert_eq!(gate.briefly(108, 1, || "copied"), Some("copied"));
/// gate.leave(write);
/// assert!(gate.has_passed(&atomic));
/// gate.leave(atomic);
/// ```
#[derive(Debug)]
pub struct WriteGate {
    /// Stripes where somebody in the list keeps others out.
    marks: Marks,
    /// Copies that are under way, by stripes.
    copies: [AtomicU64; 64],
    /// Operations that met no mark. The list's lock is taken before theirs.
    lasting: [Lock<Slab<Lasting>>; LISTS],
    list: Lock<List>,
}

impl Default for WriteGate {
    fn default() -> Self {
        Self::new()
    }
}

impl WriteGate {
    /// A gate at which nobody is.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            marks: Marks(AtomicU64::new(0)),
            copies: [const { AtomicU64::new(0) }; 64],
            lasting: [const { Lock::new(Slab::new()) }; LISTS],
            list: Lock::new(List::new()),
        }
    }

    #[inline]
    fn is_marked(&self, stripes: Stripes) -> bool {
        self.marks.0.load(SeqCst) & stripes != 0
    }

    fn copies(&self, stripe: usize) -> &AtomicU64 {
        &self.copies[stripe & 63]
    }

    /// Does `copy`, which writes these blocks and waits for nothing but the processor, together with other writers.
    /// `None`, and nothing done, while somebody keeps writers out there, or waits for that.
    #[inline]
    pub fn briefly<T>(&self, lba: u64, blocks: u64, copy: impl FnOnce() -> T) -> Option<T> {
        let stripes = stripes(lba, blocks);
        // Who marks the stripes after this looks at the counts after that: one of the two sees the other.
        each(stripes).for_each(|stripe| _ = self.copies(stripe).fetch_add(1, SeqCst));
        let mut listed = None;
        if self.is_marked(stripes) {
            self.end_copy(stripes);
            listed = Some(self.enter_if_open(lba, blocks)?);
        }
        let done = copy();
        match listed {
            None => self.end_copy(stripes),
            Some(place) => self.leave(place),
        }
        Some(done)
    }

    #[inline]
    fn end_copy(&self, stripes: Stripes) {
        each(stripes).for_each(|stripe| _ = self.copies(stripe).fetch_sub(1, SeqCst));
        if self.is_marked(stripes) {
            self.look_for_copies(stripes);
        }
    }

    #[cold]
    fn look_for_copies(&self, stripes: Stripes) {
        let passed =
            self.list.lock().copies_ended(|copied| self.stripes_with_copies(copied & stripes) | copied & !stripes);
        wake(passed);
    }

    fn stripes_with_copies(&self, stripes: Stripes) -> Stripes {
        each(stripes).filter(|stripe| self.copies(*stripe).load(SeqCst) != 0).fold(0, |all, stripe| all | 1 << stripe)
    }

    #[cold]
    fn enter_if_open(&self, lba: u64, blocks: u64) -> Option<GatePlace> {
        let blocks = Blocks::new(lba, blocks);
        let mut list = self.list.lock();
        list.is_open(&blocks).then(|| GatePlace(Where::Listed(list.enter(Kind::Shared, blocks, 0, Waker::noop()))))
    }

    /// Whether writers may pass at once just now. Nothing is taken.
    #[inline]
    #[must_use]
    pub fn is_open(&self, lba: u64, blocks: u64) -> bool {
        !self.is_marked(stripes(lba, blocks)) || self.list.lock().is_open(&Blocks::new(lba, blocks))
    }

    /// Gets in line for these blocks. `waker` is woken when all those that were before it have left, unless that is so
    /// at once: see [`has_passed`](Self::has_passed). Those that come later to the same blocks wait until it
    /// [leaves](Self::leave).
    pub fn enter(&self, access: Access, blocks: Blocks, waker: &Waker) -> GatePlace {
        match (access, blocks.single()) {
            (Access::Shared, Some(range)) => self
                .enter_lasting(range, blocks.stripes())
                .unwrap_or_else(|| GatePlace(Where::Listed(self.list.lock().enter(Kind::Shared, blocks, 0, waker)))),
            (Access::Shared, None) => GatePlace(Where::Listed(self.list.lock().enter(Kind::Shared, blocks, 0, waker))),
            (Access::Alone, _) => self.enter_alone(blocks, waker),
        }
    }

    fn enter_lasting(&self, blocks: Range<u64>, stripes: Stripes) -> Option<GatePlace> {
        let list = stripes.trailing_zeros() as usize % LISTS;
        let mut lasting = self.lasting[list].lock();
        // Who marks the stripes takes this lock after that, and sees what was entered before.
        if self.is_marked(stripes) {
            return None;
        }
        Some(GatePlace(Where::Lasting { list, index: lasting.insert(Lasting { blocks, awaited: 0 }) }))
    }

    fn enter_alone(&self, blocks: Blocks, waker: &Waker) -> GatePlace {
        let mut list = self.list.lock();
        let stripes = blocks.stripes();
        self.marks.0.fetch_or(stripes, SeqCst);
        let number = list.next_number();
        let mut before = 0;
        for lasting in &self.lasting {
            for other in lasting.lock().iter_mut().filter(|other| blocks.overlap(&other.blocks)) {
                other.awaited = number;
                before += 1;
            }
        }
        let index = list.enter(Kind::Alone, blocks, before, waker);
        list.await_copies(index, self.stripes_with_copies(stripes));
        GatePlace(Where::Listed(index))
    }

    /// Whether all those that were before it have left.
    #[must_use]
    pub fn has_passed(&self, place: &GatePlace) -> bool {
        match place.0 {
            Where::Lasting { .. } => true,
            Where::Listed(index) => self.list.lock().has_passed(index),
        }
    }

    /// Gives the place up, whether it was through or not: those that waited for it go on.
    pub fn leave(&self, place: GatePlace) {
        match place.0 {
            Where::Lasting { list, index } => {
                let left = self.lasting[list].lock().remove(index);
                if let Some(Lasting { blocks, awaited }) = left.filter(|left| left.awaited != 0) {
                    let passed = self.list.lock().lasting_ended(&blocks, awaited);
                    wake(passed);
                }
            }
            Where::Listed(index) => {
                let mut list = self.list.lock();
                let passed = list.leave(index);
                if list.keeps_nobody_out() {
                    self.marks.0.store(0, SeqCst);
                }
                drop(list);
                wake(passed);
            }
        }
    }

    /// The task of a write that is through was aborted while its operation is at the store: its blocks are closed to
    /// every writer that is not through yet, until the place is [left](Self::leave).
    pub fn leave_behind(&self, place: GatePlace) -> GatePlace {
        let mut list = self.list.lock();
        let index = match place.0 {
            Where::Lasting { list: at, index } => {
                let Some(left) = self.lasting[at].lock().remove(index) else { return place };
                list.adopt(Blocks::from(left.blocks))
            }
            Where::Listed(index) => index,
        };
        self.marks.0.fetch_or(list.leave_behind(index), SeqCst);
        GatePlace(Where::Listed(index))
    }

    /// Whether nobody is at the gate, and nothing was left behind.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let list = self.list.lock();
        list.is_empty()
            && self.marks.0.load(SeqCst) == 0
            && self.stripes_with_copies(Stripes::MAX) == 0
            && self.lasting.iter().all(|lasting| lasting.lock().is_empty())
    }
}

fn wake(passed: Vec<Waker>) {
    passed.into_iter().for_each(Waker::wake);
}

#[cfg(test)]
mod tests;
