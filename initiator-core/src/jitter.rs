//! Random delays from a seed, so that many initiators do not come back in step and a simulation replays.

use core::time::Duration;

/// A small generator (splitmix64): good enough to spread delays, of no use for secrets.
#[derive(Debug, Clone)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A delay between half of `around` and one and a half of it.
    pub(crate) fn spread(&mut self, around: Duration) -> Duration {
        let nanos = u64::try_from(around.as_nanos()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2);
        Duration::from_nanos(nanos / 2 + if nanos == 0 { 0 } else { self.next() % nanos })
    }

    /// The `attempt`th delay of an exponential back-off, jittered.
    pub(crate) fn back_off(&mut self, first: Duration, longest: Duration, attempt: u32) -> Duration {
        let delay = first.saturating_mul(1 << attempt.min(20)).min(longest);
        self.spread(delay).min(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_and_is_bounded() {
        let mut jitter = Jitter::new(1);
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(5));
        for attempt in 0..100 {
            let delay = jitter.back_off(first, longest, attempt);
            assert!(delay <= longest && delay >= first / 2);
            assert!(attempt < 8 || delay >= longest / 2);
        }
        assert_eq!(Jitter::new(7).next(), Jitter::new(7).next());
    }
}
