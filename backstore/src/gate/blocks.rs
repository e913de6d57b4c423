//! Blocks of one command, and the stripes that they lie in.

use alloc::vec::Vec;
use core::ops::Range;

/// Blocks of a stripe's piece, as a power of two.
const PIECE_SHIFT: u32 = 6;

/// A set of stripes, one bit each. The medium is cut into 64 of them, in pieces of 64 blocks by turns: what lies in no
/// common stripe does not overlap, and the rest is to be looked at.
pub(super) type Stripes = u64;

/// The stripes of a range of blocks.
#[inline]
pub(super) fn stripes(lba: u64, blocks: u64) -> Stripes {
    if blocks == 0 {
        return 0;
    }
    let first = lba >> PIECE_SHIFT;
    let pieces = (lba.saturating_add(blocks - 1) >> PIECE_SHIFT) - first + 1;
    if pieces >= 64 { u64::MAX } else { ((1u64 << pieces) - 1).rotate_left(first as u32 & 63) }
}

pub(super) fn each(stripes: Stripes) -> impl Iterator<Item = usize> {
    let mut left = stripes;
    core::iter::from_fn(move || {
        (left != 0).then(|| {
            let stripe = left.trailing_zeros() as usize;
            left &= left - 1;
            stripe
        })
    })
}

/// The blocks that one command writes: a range, or several for UNMAP. Only several take memory of their own.
///
/// ```
/// use backstore::Blocks;
/// assert_eq!(Blocks::new(8, 4), [(8, 4)].into_iter().collect());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocks {
    first: Range<u64>,
    more: Vec<Range<u64>>,
}

impl Blocks {
    /// `blocks` blocks from `lba` on.
    #[must_use]
    pub const fn new(lba: u64, blocks: u64) -> Self {
        Self { first: lba..lba.saturating_add(blocks), more: Vec::new() }
    }

    /// Its only range.
    pub(super) fn single(&self) -> Option<Range<u64>> {
        self.more.is_empty().then(|| self.first.clone())
    }

    fn ranges(&self) -> impl Iterator<Item = &Range<u64>> {
        core::iter::once(&self.first).chain(&self.more)
    }

    pub(super) fn overlap(&self, other: &Range<u64>) -> bool {
        self.ranges().any(|own| own.start.max(other.start) < own.end.min(other.end))
    }

    pub(super) fn overlap_any(&self, other: &Self) -> bool {
        other.ranges().any(|other| self.overlap(other))
    }

    pub(super) fn stripes(&self) -> Stripes {
        self.ranges().fold(0, |all, range| all | stripes(range.start, range.end - range.start))
    }
}

impl From<Range<u64>> for Blocks {
    fn from(first: Range<u64>) -> Self {
        Self { first, more: Vec::new() }
    }
}

impl FromIterator<(u64, u64)> for Blocks {
    /// Ranges, each by its first block and how many they are.
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(ranges: I) -> Self {
        let mut ranges = ranges.into_iter().map(|(lba, blocks)| lba..lba.saturating_add(blocks));
        Self { first: ranges.next().unwrap_or_default(), more: ranges.collect() }
    }
}
