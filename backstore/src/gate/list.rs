//! The line at a gate: who is there, and for how many others each one waits.
//!
//! Everybody counts those before him when he comes, and is counted down by those that leave, so that nobody looks again
//! and only who may go on is woken. A turn costs a look at those that are in the list, which are few: it holds who is
//! alone or waits for that, what was left behind, and who came to their stripes meanwhile.

use alloc::vec::Vec;
use core::ops::Range;
use core::task::Waker;

use super::blocks::{Blocks, Stripes};
use super::slab::Slab;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Writes, or waits for those before it that keep writers out.
    Shared,
    /// Has its blocks alone, or waits for all those before it.
    Alone,
    /// May still land. It has passed.
    LeftBehind,
}

impl Kind {
    fn keeps_writers_out(self) -> bool {
        self != Self::Shared
    }
}

#[derive(Debug)]
struct Entry {
    /// Its place in the order in which they came.
    number: u64,
    kind: Kind,
    blocks: Blocks,
    /// Those that it waits for.
    before: usize,
    /// Stripes in which there were copies when it came, and ever since.
    copied: Stripes,
    waker: Waker,
}

impl Entry {
    fn waits(&self) -> bool {
        self.before != 0 || self.copied != 0
    }
}

#[derive(Debug)]
pub(super) struct List {
    entries: Slab<Entry>,
    /// The last number that was given.
    last: u64,
    /// Entries that keep writers out.
    closing: usize,
}

impl List {
    pub(super) const fn new() -> Self {
        Self { entries: Slab::new(), last: 0, closing: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn keeps_nobody_out(&self) -> bool {
        self.closing == 0
    }

    /// The number of whoever enters next.
    pub(super) fn next_number(&self) -> u64 {
        self.last + 1
    }

    /// Whether nobody keeps writers out of these blocks.
    pub(super) fn is_open(&self, blocks: &Blocks) -> bool {
        !self.entries.iter().any(|other| other.kind.keeps_writers_out() && other.blocks.overlap_any(blocks))
    }

    pub(super) fn has_passed(&self, index: usize) -> bool {
        self.entries.get(index).is_none_or(|entry| !entry.waits())
    }

    /// Puts one in, which waits for `before` others that are not in the list besides.
    pub(super) fn enter(&mut self, kind: Kind, blocks: Blocks, before: usize, waker: &Waker) -> usize {
        let conflicts = |other: &&Entry| kind.keeps_writers_out() || other.kind.keeps_writers_out();
        let others = self.entries.iter().filter(conflicts).filter(|other| other.blocks.overlap_any(&blocks));
        let before = before + others.count();
        self.last += 1;
        self.closing += usize::from(kind.keeps_writers_out());
        self.entries.insert(Entry { number: self.last, kind, blocks, before, copied: 0, waker: waker.clone() })
    }

    /// Puts one in that has passed without the list. Those that wait for it have counted it.
    pub(super) fn adopt(&mut self, blocks: Blocks) -> usize {
        self.last += 1;
        let waker = Waker::noop().clone();
        self.entries.insert(Entry { number: self.last, kind: Kind::Shared, blocks, before: 0, copied: 0, waker })
    }

    /// Has one wait until no copy that is now in these stripes is under way.
    pub(super) fn await_copies(&mut self, index: usize, copied: Stripes) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.copied = copied;
        }
    }

    /// Has `left` tell which of the stripes that one waits for have copies still. Gives those that pass.
    pub(super) fn copies_ended(&mut self, left: impl Fn(Stripes) -> Stripes) -> Vec<Waker> {
        let waiting = self.entries.iter_mut().filter(|entry| entry.copied != 0);
        let passed = waiting.filter_map(|entry| {
            entry.copied = left(entry.copied);
            (!entry.waits()).then(|| entry.waker.clone())
        });
        passed.collect()
    }

    /// Counts down those that `waited` for one that has left. Gives those that pass.
    fn count_down(&mut self, waited: impl Fn(&Entry) -> bool) -> Vec<Waker> {
        let waiting = self.entries.iter_mut().filter(|entry| entry.before != 0 && waited(entry));
        let passed = waiting.filter_map(|entry| {
            entry.before -= 1;
            (!entry.waits()).then(|| entry.waker.clone())
        });
        passed.collect()
    }

    /// An operation that was not in the list has ended. The last one that counted it is `awaited`.
    pub(super) fn lasting_ended(&mut self, blocks: &Range<u64>, awaited: u64) -> Vec<Waker> {
        // It came before all that keep its blocks to themselves, or it would have found their mark.
        self.count_down(|other| other.kind == Kind::Alone && other.number <= awaited && other.blocks.overlap(blocks))
    }

    /// Takes one out. Gives those that pass.
    pub(super) fn leave(&mut self, index: usize) -> Vec<Waker> {
        let Some(left) = self.entries.remove(index) else { return Vec::new() };
        self.closing -= usize::from(left.kind.keeps_writers_out());
        self.count_down(|other| {
            let waited = match left.kind {
                Kind::Shared => other.kind == Kind::Alone && other.number > left.number,
                Kind::Alone => other.number > left.number,
                // Whoever waits there waits for it, since it was left behind at the latest.
                Kind::LeftBehind => true,
            };
            waited && other.blocks.overlap_any(&left.blocks)
        })
    }

    /// One that has passed keeps writers out from now on, also those that are in the list and wait. Gives its stripes.
    pub(super) fn leave_behind(&mut self, index: usize) -> Stripes {
        let Some(left) = self.entries.get_mut(index).filter(|entry| entry.kind == Kind::Shared) else { return 0 };
        left.kind = Kind::LeftBehind;
        self.closing += 1;
        let (blocks, stripes) = (left.blocks.clone(), left.blocks.stripes());
        for other in self.entries.iter_mut().filter(|other| other.kind == Kind::Shared && other.before != 0) {
            other.before += usize::from(other.blocks.overlap_any(&blocks));
        }
        stripes
    }
}
