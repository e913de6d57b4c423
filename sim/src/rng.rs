//! Every decision of a run comes from here: one seed, one stream for each part of the world.

use iscsi_proto::serial::Serial;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};

/// A stream of decisions.
#[derive(Debug, Clone)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The stream `part` of a seed. Parts do not disturb each other: one more decision in one of them changes nothing in the others.
    #[must_use]
    pub fn new(seed: u64, part: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(part);
        Self(rng)
    }

    /// Any number.
    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `n`; 0 for `n` = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(n)) >> 64) as u64
    }

    /// A number from `from` to `to`, both included.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    /// A number from `from` to `to` of which each order of magnitude is as likely as the next: small ones are common, large ones come.
    pub fn magnitude(&mut self, from: u64, to: u64) -> u64 {
        let spread = (to / from.max(1)).max(1).ilog2().into();
        let low = from.max(1) << self.below(u64::from(u32::BITS).min(spread) + 1);
        self.between(low, (low * 2).max(low + 1) - 1).clamp(from, to)
    }

    /// True `n` times in 1000.
    pub fn permille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A serial number to begin with: now and then a few before the largest, or before half of that (RFC 1982).
    pub fn first_number(&mut self, usual: u32) -> Serial {
        match self.below(4) {
            0 => Serial(u32::MAX - self.below(64) as u32),
            1 => Serial((1 << 31) - self.below(64) as u32),
            _ => Serial(usual),
        }
    }

    /// Fills with any bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}
