//! MaxOutstandingUnexpectedPDUs: how many PDUs a side may have under way for which the peer has no other reason to keep
//! a receive (RFC 7145 6.7, 8.1).
//!
//! Only iSER declares it. Elsewhere the limit is zero, which is none, and nothing is counted.

use alloc::collections::VecDeque;

use crate::serial::Serial;

/// Most that are counted, whatever the peer would take: it bounds the memory that a peer which acknowledges nothing can
/// make us use.
const MOST: u32 = 1024;

/// Counts the unexpected PDUs that the peer has not acknowledged.
///
/// Each is sent with a number (CmdSN or StatSN) and is outstanding until the peer expects a later one.
///
/// ```
/// use iscsi_proto::serial::Serial;
/// use iscsi_proto::unexpected::UnexpectedPdus;
///
/// let mut unexpected = UnexpectedPdus::new(2);
/// unexpected.sent(Serial(7));
/// assert_eq!(unexpected.room(), 1);
/// unexpected.acknowledged(Serial(7));
/// assert_eq!(unexpected.room(), 1);
/// unexpected.acknowledged(Serial(8));
/// assert_eq!(unexpected.room(), 2);
/// ```
#[derive(Debug, Default)]
pub struct UnexpectedPdus {
    limit: u32,
    outstanding: u32,
    /// Their numbers, in order, and how many have each.
    numbers: VecDeque<(Serial, u32)>,
}

impl UnexpectedPdus {
    /// `limit` is what the peer declared: 0 for no limit, or 2 and more. Of a limit above 1024, 1024 are used.
    #[must_use]
    pub const fn new(limit: u32) -> Self {
        let limit = if limit > MOST { MOST } else { limit };
        Self { limit, outstanding: 0, numbers: VecDeque::new() }
    }

    /// How many more may be sent; `u32::MAX` without a limit.
    #[inline]
    #[must_use]
    pub const fn room(&self) -> u32 {
        if self.limit == 0 { u32::MAX } else { self.limit.saturating_sub(self.outstanding) }
    }

    /// Whether none is known to be outstanding. Without a limit none ever is.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.outstanding == 0
    }

    /// One is sent with this number, which is not before those of earlier ones. There is [`room`](Self::room) for it.
    pub fn sent(&mut self, number: Serial) {
        if self.limit == 0 {
            return;
        }
        self.outstanding += 1;
        match self.numbers.back_mut() {
            Some((last, count)) if *last == number => *count += 1,
            _ => self.numbers.push_back((number, 1)),
        }
    }

    /// The peer expects this number next: those with earlier ones are outstanding no more.
    #[inline]
    pub fn acknowledged(&mut self, expected: Serial) {
        if !self.is_empty() {
            self.retire(expected);
        }
    }

    #[cold]
    fn retire(&mut self, expected: Serial) {
        while let Some((_, count)) = self.numbers.pop_front_if(|(number, _)| *number < expected) {
            self.outstanding -= count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let mut unexpected = UnexpectedPdus::new(0);
        for _ in 0..10_000 {
            unexpected.sent(Serial(1));
        }
        assert_eq!((unexpected.room(), unexpected.is_empty(), unexpected.numbers.len()), (u32::MAX, true, 0));
    }

    #[test]
    fn those_with_one_number_go_together_and_over_the_end_of_the_numbers() {
        let mut unexpected = UnexpectedPdus::new(4);
        for number in [u32::MAX, u32::MAX, 0, 1] {
            unexpected.sent(Serial(number));
        }
        assert_eq!(unexpected.room(), 0);
        unexpected.acknowledged(Serial(u32::MAX));
        assert_eq!(unexpected.room(), 0);
        unexpected.acknowledged(Serial(0));
        assert_eq!(unexpected.room(), 2);
        // An older word changes nothing.
        unexpected.acknowledged(Serial(u32::MAX));
        assert_eq!(unexpected.room(), 2);
        unexpected.acknowledged(Serial(9));
        assert!(unexpected.is_empty());
    }

    #[test]
    fn a_limit_beyond_measure_is_cut() {
        let mut unexpected = UnexpectedPdus::new(u32::MAX);
        for number in 0..MOST {
            unexpected.sent(Serial(number));
        }
        assert_eq!(unexpected.room(), 0);
    }
}
