//! A bounded set of ranges of blocks.

use alloc::vec::Vec;
use core::ops::Range;

/// Ranges that the set holds at most. Beyond that neighbours are joined, and the set covers more than was put in.
const MOST: usize = 1024;

/// Blocks, as ranges that neither touch nor overlap, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // Most writes go on where the last one ended, or lie within what is there.
        let first = self.0.partition_point(|other| other.end < range.start);
        let last = self.0.partition_point(|other| other.start <= range.end);
        if first == last {
            self.0.insert(first, range);
        } else {
            let joined = range.start.min(self.0[first].start)..range.end.max(self.0[last - 1].end);
            self.0[first] = joined;
            self.0.drain(first + 1..last);
        }
        if self.0.len() > MOST {
            self.join_nearest();
        }
    }

    fn join_nearest(&mut self) {
        let gaps = self.0.windows(2).map(|pair| pair[1].start - pair[0].end);
        let Some((at, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) else { return };
        let next = self.0.remove(at + 1);
        self.0[at].end = next.end;
    }

    pub(super) fn extend(&mut self, other: Self) {
        if self.0.is_empty() {
            self.0 = other.0;
        } else {
            other.0.into_iter().for_each(|range| self.add(range));
        }
    }

    pub(super) fn into_vec(self) -> Vec<Range<u64>> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_are_joined() {
        let mut ranges = Ranges::default();
        for range in [0..4, 8..12, 4..6, 20..20, 11..14] {
            ranges.add(range);
        }
        assert_eq!(ranges.into_vec(), [0..6, 8..14]);
    }

    #[test]
    fn a_full_set_covers_more_and_grows_no_further() {
        let mut ranges = Ranges::default();
        for n in 0..3000 {
            ranges.add(n * 10..n * 10 + 1);
        }
        let held = ranges.into_vec();
        assert_eq!(held.len(), MOST);
        assert!((0..3000).all(|n| held.iter().any(|range| range.contains(&(n * 10)))));
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_in(added in proptest::collection::vec((0u64..200, 0u64..20), 0..60)) {
            let mut ranges = Ranges::default();
            let mut model = [false; 220];
            for (start, len) in added {
                ranges.add(start..start + len);
                (start..start + len).for_each(|at| model[at as usize] = true);
            }
            let held = ranges.into_vec();
            for (at, held_there) in (0u64..).zip(model) {
                prop_assert_eq!(held.iter().any(|range| range.contains(&at)), held_there);
            }
            prop_assert!(held.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
