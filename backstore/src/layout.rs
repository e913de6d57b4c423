//! How the blocks of several stores are laid out as one.

use alloc::sync::Arc;
use alloc::vec::Vec;

/// Where a block of the whole lies, and how far the same store goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Number of the store.
    pub child: usize,
    /// Block in that store.
    pub lba: u64,
    /// Blocks from there on, at least 1, that follow each other both in the whole and in the store.
    pub run: u64,
}

/// A one-to-one arrangement of blocks. Within each store the order of the blocks is that of the whole: a range of the
/// whole is one range, possibly empty, in each store.
pub trait Layout: Clone + Send + Sync + 'static {
    /// Where block `lba` of the whole lies. It is inside the whole.
    fn place(&self, lba: u64) -> Place;

    /// How many blocks of store `child` lie before block `lba` of the whole, which may be its end.
    fn before(&self, child: usize, lba: u64) -> u64;

    /// The block of the whole at block `lba` of store `child`.
    fn whole(&self, child: usize, lba: u64) -> u64;
}

/// RAID 0: chunks in turn.
#[derive(Debug, Clone, Copy)]
pub struct Striped {
    pub(super) children: u64,
    /// Blocks of a chunk.
    pub(super) chunk: u64,
}

impl Layout for Striped {
    fn place(&self, lba: u64) -> Place {
        let (number, within) = (lba / self.chunk, lba % self.chunk);
        Place {
            child: (number % self.children) as usize,
            lba: number / self.children * self.chunk + within,
            run: self.chunk - within,
        }
    }

    fn before(&self, child: usize, lba: u64) -> u64 {
        let row = self.chunk * self.children;
        let own = (lba % row).saturating_sub(child as u64 * self.chunk).min(self.chunk);
        lba / row * self.chunk + own
    }

    fn whole(&self, child: usize, lba: u64) -> u64 {
        (lba / self.chunk * self.children + child as u64) * self.chunk + lba % self.chunk
    }
}

/// One after the other.
#[derive(Debug, Clone)]
pub struct Joined {
    /// First block of each store, and the end of the last.
    pub(super) starts: Arc<[u64]>,
}

impl Joined {
    pub(super) fn new(lengths: impl Iterator<Item = u64>) -> Option<Self> {
        let mut starts = Vec::from([0u64]);
        let mut end = 0u64;
        for length in lengths {
            end = end.checked_add(length)?;
            starts.push(end);
        }
        Some(Self { starts: starts.into() })
    }
}

impl Layout for Joined {
    fn place(&self, lba: u64) -> Place {
        let next = self.starts.partition_point(|start| *start <= lba);
        let child = next - 1;
        Place { child, lba: lba - self.starts[child], run: self.starts[next] - lba }
    }

    fn before(&self, child: usize, lba: u64) -> u64 {
        lba.clamp(self.starts[child], self.starts[child + 1]) - self.starts[child]
    }

    fn whole(&self, child: usize, lba: u64) -> u64 {
        self.starts[child] + lba
    }
}

/// A part of a range that one store holds in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) child: usize,
    /// Block in the store.
    pub(super) lba: u64,
    /// Offset in the range, in blocks.
    pub(super) offset: u64,
    pub(super) blocks: u64,
}

/// The pieces of a range, in its order.
pub(super) fn pieces<L: Layout>(layout: &L, lba: u64, blocks: u64) -> impl Iterator<Item = Piece> {
    let mut offset = 0;
    core::iter::from_fn(move || {
        (offset < blocks).then(|| {
            let place = layout.place(lba + offset);
            let piece = Piece { child: place.child, lba: place.lba, offset, blocks: place.run.min(blocks - offset) };
            offset += piece.blocks;
            piece
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check<L: Layout>(layout: &L, children: usize, end: u64, lba: u64) {
        let place = layout.place(lba);
        assert!(place.child < children && place.run >= 1);
        assert_eq!(layout.whole(place.child, place.lba), lba);
        for child in 0..children {
            let inside = layout.before(child, lba + 1) - layout.before(child, lba);
            assert_eq!(inside, u64::from(child == place.child));
        }
        assert_eq!(layout.before(place.child, lba), place.lba);
        assert_eq!((0..children).map(|child| layout.before(child, end)).sum::<u64>(), end);
        let last = lba + place.run - 1;
        if last < end {
            assert_eq!(layout.place(last).child, place.child);
            assert_eq!(layout.place(last).lba, place.lba + place.run - 1);
        }
    }

    proptest! {
        #[test]
        fn striping_is_one_to_one(children in 1u64..6, chunk in 1u64..20, rows in 1u64..9, at in 0u64..1000) {
            let layout = Striped { children, chunk };
            let end = children * chunk * rows;
            check(&layout, children as usize, end, at % end);
        }

        #[test]
        fn joining_is_one_to_one(lengths in prop::collection::vec(1u64..50, 1..6), at in 0u64..1000) {
            let layout = Joined::new(lengths.iter().copied()).unwrap();
            let end = lengths.iter().sum::<u64>();
            check(&layout, lengths.len(), end, at % end);
        }
    }
}
