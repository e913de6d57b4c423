//! Serial-number arithmetic of RFC 1982 with 32 bits, as CmdSN and StatSN use it (RFC 7143 4.2.2.1).

use core::cmp::Ordering;
use core::fmt;

/// A 32-bit serial number: CmdSN, ExpCmdSN, MaxCmdSN, StatSN, ExpStatSN.
///
/// Comparison wraps: `a < b` when `b` is less than 2^31 steps ahead. Two numbers exactly 2^31 apart have no order (RFC
/// 1982 3.2), so this type is not `Ord`.
///
/// ```
/// use iscsi_proto::serial::Serial;
/// assert!(Serial(0xffff_ffff) < Serial(0));
/// assert_eq!(Serial(0xffff_ffff).next(), Serial(0));
/// assert_eq!(Serial(1).distance(Serial(4)), 3);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Serial(pub u32);

impl Serial {
    /// The number one step ahead.
    #[must_use]
    pub const fn next(self) -> Self {
        self.advance(1)
    }

    /// The number `steps` ahead (RFC 1982 3.1 defines it below 2^31).
    #[must_use]
    pub const fn advance(self, steps: u32) -> Self {
        Self(self.0.wrapping_add(steps))
    }

    /// Signed steps from `self` to `other`; negative when `other` is behind.
    #[must_use]
    pub const fn distance(self, other: Self) -> i32 {
        other.0.wrapping_sub(self.0).cast_signed()
    }
}

impl PartialOrd for Serial {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match other.distance(*self) {
            i32::MIN => None,
            steps => Some(steps.cmp(&0)),
        }
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn opposite_numbers_have_no_order() {
        assert_eq!(Serial(0).partial_cmp(&Serial(1 << 31)), None);
    }

    proptest! {
        #[test]
        fn a_number_is_before_all_within_reach(a: u32, steps in 1u32..0x7fff_ffff) {
            let (a, b) = (Serial(a), Serial(a).advance(steps));
            prop_assert!(a < b);
            prop_assert!(b > a);
            prop_assert_eq!(a.distance(b), steps as i32);
        }
    }
}
