//! A bounded set of ranges of blocks.

use alloc::vec::Vec;
use core::iter::once;
use core::ops::Range;

/// Ranges that the set holds at most. Beyond that neighbours are joined, and the set covers more than was put in.
const MOST: usize = 1024;

/// Blocks, as ranges that neither touch nor overlap, in ascending order. It holds 1024 ranges at most: where there
/// would be more, the two that are nearest to each other are joined, and it covers what lies between them as well.
///
/// ```
/// use backstore::BlockRanges;
/// let mut ranges = BlockRanges::default();
/// ranges.add(0..4);
/// ranges.add(8..12);
/// ranges.remove(&(2..9));
/// assert_eq!((ranges.first_in(&(1..100)), ranges.first_in(&(2..9))), (Some(1), None));
/// assert_eq!(ranges.into_vec(), [0..2, 9..12]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockRanges(Vec<Range<u64>>);

impl BlockRanges {
    /// Whether it covers no block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts these blocks in.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // Most writes go on where the last one ended, or lie within what is there.
        let first = self.0.partition_point(|other| other.end < range.start);
        let last = self.0.partition_point(|other| other.start <= range.end);
        match self.ends_of(first..last) {
            None => self.0.insert(first, range),
            Some((start, end)) => drop(self.0.splice(first..last, once(range.start.min(start)..range.end.max(end)))),
        }
        if self.0.len() > MOST {
            self.join_nearest();
        }
    }

    /// Where the first of some ranges begins, and the last ends.
    fn ends_of(&self, places: Range<usize>) -> Option<(u64, u64)> {
        let ranges = self.0.get(places)?;
        Some((ranges.first()?.start, ranges.last()?.end))
    }

    /// Takes these blocks out. Where that would split a range of a full set, the range stays whole.
    pub fn remove(&mut self, range: &Range<u64>) {
        let first = self.0.partition_point(|other| other.end <= range.start);
        let last = self.0.partition_point(|other| other.start < range.end);
        let Some((start, end)) = self.ends_of(first..last).filter(|_| !range.is_empty()) else { return };
        let left = [start..range.start, range.end..end].into_iter().filter(|part| !part.is_empty());
        if last - first == 1 && left.clone().count() == 2 && self.0.len() >= MOST {
            return;
        }
        self.0.splice(first..last, left);
    }

    fn join_nearest(&mut self) {
        let gaps = self.0.iter().zip(self.0.iter().skip(1)).map(|(one, next)| next.start - one.end);
        let Some((at, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) else { return };
        let next = self.0.remove(at + 1);
        if let Some(one) = self.0.get_mut(at) {
            one.end = next.end;
        }
    }

    /// Puts in what another one covers.
    pub fn extend(&mut self, other: Self) {
        if self.0.is_empty() {
            self.0 = other.0;
        } else {
            other.0.into_iter().for_each(|range| self.add(range));
        }
    }

    /// The first block of these that it covers.
    #[must_use]
    pub fn first_in(&self, range: &Range<u64>) -> Option<u64> {
        let at = self.0.partition_point(|other| other.end <= range.start);
        self.0.get(at).map(|other| other.start.max(range.start)).filter(|first| *first < range.end)
    }

    /// The ranges, in ascending order.
    #[must_use]
    pub fn into_vec(self) -> Vec<Range<u64>> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_are_joined() {
        let mut ranges = BlockRanges::default();
        for range in [0..4, 8..12, 4..6, 20..20, 11..14] {
            ranges.add(range);
        }
        assert_eq!(ranges.into_vec(), [0..6, 8..14]);
    }

    #[test]
    fn a_full_set_covers_more_and_grows_no_further() {
        let mut ranges = BlockRanges::default();
        for n in 0..3000 {
            ranges.add(n * 10..n * 10 + 1);
        }
        let held = ranges.into_vec();
        assert_eq!(held.len(), MOST);
        assert!((0..3000).all(|n| held.iter().any(|range| range.contains(&(n * 10)))));
        let mut ranges = BlockRanges(held);
        ranges.remove(&(29_995..30_000));
        let widest = ranges.0.iter().position(|range| range.end - range.start > 2).unwrap();
        let middle = ranges.0[widest].start + 1;
        let before = ranges.clone();
        ranges.remove(&(middle..middle + 1));
        assert_eq!(ranges, before, "it would be one range too many");
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_in(steps in proptest::collection::vec((0u64..200, 0u64..20, 0u8..3), 0..60)) {
            let mut ranges = BlockRanges::default();
            let mut model = [false; 220];
            for (start, len, kind) in steps {
                let there = kind > 0;
                if there {
                    ranges.add(start..start + len);
                } else {
                    ranges.remove(&(start..start + len));
                }
                (start..start + len).for_each(|at| model[at as usize] = there);
            }
            let held = ranges.into_vec();
            for (at, held_there) in (0u64..).zip(model) {
                prop_assert_eq!(held.iter().any(|range| range.contains(&at)), held_there);
            }
            let first = held.first().map(|range| range.start);
            prop_assert_eq!(BlockRanges(held.clone()).first_in(&(0..220)), first);
            prop_assert!(held.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
