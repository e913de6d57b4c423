//! Who reads and who writes a region's bytes just now, so that a logical block is old or new to everyone.
//!
//! The region is cut into pieces of 64 KiB, which 64 words share by turns. Whoever writes has a piece alone for the
//! time of one copy in memory. Whoever copies out looks at the piece's count of writes before and after, and copies
//! again where it has changed: small reads so write nothing that other processors look at. The kernel cannot copy again
//! what it has sent, so bytes that it reads are held, together with other readers, for the time of the system call.
//!
//! Whoever has pieces waits for nothing but the processor and, where he discards, for the next piece, in the order of
//! their stripes, so that no two block each other. A wait is as long as one copy of 64 KiB, a discard of 1 MiB, or one
//! system call that sends. A writer that waits keeps new readers out, so that readers in turn cannot keep it waiting.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::fence;

use portable_atomic::AtomicU64;

/// Bytes of a piece, as a power of two.
const PIECE_SHIFT: u32 = 16;
/// Bytes of a piece. No logical block lies in two.
pub(crate) const PIECE: u64 = 1 << PIECE_SHIFT;
/// Words that the pieces share.
const STRIPES: usize = 64;
/// How often a copy is made anew before it keeps writers out.
const COPIES: usize = 4;

/// Readers that hold the piece: the low bits.
const READERS: u64 = CLAIMED - 1;
/// A writer has it, or waits for its readers to go.
const CLAIMED: u64 = 1 << 31;
/// One step of the count of writes, which is odd while one is under way.
const STEP: u64 = 1 << 32;

/// One word, alone on its cache line: workers that write to neighbouring pieces are not to slow each other down.
#[derive(Debug)]
#[repr(align(64))]
struct Word(AtomicU64);

/// The words of one region.
#[derive(Debug)]
pub(crate) struct Blocks([Word; STRIPES]);

/// A piece that nobody else reads or writes until this is dropped.
pub(crate) struct Alone<'a>(&'a AtomicU64);

impl Drop for Alone<'_> {
    #[inline]
    fn drop(&mut self) {
        // Claimed and without readers: nobody else changes it.
        let word = self.0.load(Relaxed);
        self.0.store((word & !CLAIMED).wrapping_add(STEP), Release);
    }
}

/// The stripe of the piece that a byte is in.
pub(crate) fn stripe(offset: u64) -> u32 {
    (offset >> PIECE_SHIFT) as u32 & (STRIPES as u32 - 1)
}

impl Blocks {
    pub(crate) fn new() -> Self {
        Self([const { Word(AtomicU64::new(0)) }; STRIPES])
    }

    fn word(&self, stripe: u32) -> &AtomicU64 {
        &self.0[stripe as usize & (STRIPES - 1)].0
    }

    /// Has the piece of a byte alone, once its readers have left it.
    #[inline]
    pub(crate) fn write(&self, offset: u64) -> Alone<'_> {
        let word = self.word(stripe(offset));
        let seen = word.load(Relaxed);
        let free = seen & (CLAIMED | READERS) == 0;
        if !free || word.compare_exchange(seen, (seen | CLAIMED).wrapping_add(STEP), Acquire, Relaxed).is_err() {
            Self::claim(word);
        }
        // Whoever sees one of the bytes that are written now sees the count that was made odd before them.
        fence(Release);
        Alone(word)
    }

    #[cold]
    fn claim(word: &AtomicU64) {
        let mut wait = Wait::default();
        while word.fetch_or(CLAIMED, Acquire) & CLAIMED != 0 {
            wait.turn();
        }
        while word.load(Acquire) & READERS != 0 {
            wait.turn();
        }
        word.fetch_add(STEP, Acquire);
    }

    /// Has `copy` copy bytes out of the piece that `offset` is in, as often as it takes to have them from between two
    /// writes.
    #[inline]
    pub(crate) fn read(&self, offset: u64, mut copy: impl FnMut()) {
        let word = self.word(stripe(offset));
        let before = word.load(Acquire);
        if before & STEP == 0 {
            copy();
            fence(Acquire);
            if (word.load(Relaxed) ^ before) / STEP == 0 {
                return;
            }
        }
        self.read_again(offset, &mut copy);
    }

    #[cold]
    fn read_again(&self, offset: u64, copy: &mut dyn FnMut()) {
        let word = self.word(stripe(offset));
        let mut wait = Wait::default();
        for _ in 1..COPIES {
            let before = word.load(Acquire);
            if before & STEP == 0 {
                copy();
                fence(Acquire);
                if (word.load(Relaxed) ^ before) / STEP == 0 {
                    return;
                }
            }
            wait.turn();
        }
        while !self.try_hold(stripe(offset)) {
            wait.turn();
        }
        copy();
        self.release(1 << stripe(offset));
    }

    /// Keeps writers out of a stripe, together with other readers. False while a writer has it, or waits for it.
    pub(crate) fn try_hold(&self, stripe: u32) -> bool {
        let free = |word: u64| (word & CLAIMED == 0).then(|| word + 1);
        self.word(stripe).fetch_update(Acquire, Relaxed, free).is_ok()
    }

    /// Lets stripes go that were held, one bit each.
    pub(crate) fn release(&self, stripes: u64) {
        let mut left = stripes;
        while left != 0 {
            self.word(left.trailing_zeros()).fetch_sub(1, Release);
            left &= left - 1;
        }
    }
}

/// A wait for another processor.
#[derive(Debug, Default)]
pub(crate) struct Wait(u32);

impl Wait {
    /// Spins for about a microsecond in all, then lets others have the processor: whoever is waited for may need it.
    pub(crate) fn turn(&mut self) {
        self.0 += 1;
        #[cfg(feature = "simulated-threads")]
        crate::turns::point();
        #[cfg(feature = "std")]
        if self.0 > 32 {
            std::thread::yield_now();
            return;
        }
        core::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_holds_writers_off_and_a_writer_that_waits_keeps_readers_out() {
        let blocks = Blocks::new();
        assert!(blocks.try_hold(0) && blocks.try_hold(0));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| drop(blocks.write(PIECE * STRIPES as u64)));
            while blocks.try_hold(0) {
                blocks.release(1);
                std::thread::yield_now();
            }
            assert!(!writer.is_finished());
            assert!(blocks.try_hold(1), "only its own stripe");
            blocks.release(0b11);
            assert!(!writer.is_finished(), "one reader is left");
            blocks.release(0b1);
        });
        assert_eq!(blocks.0[0].0.load(Relaxed), 2 * STEP);
    }

    #[test]
    fn a_copy_that_a_write_came_between_is_made_again() {
        let blocks = Blocks::new();
        let mut copies = 0;
        blocks.read(0, || {
            copies += 1;
            if copies < 3 {
                drop(blocks.write(0));
            }
        });
        assert_eq!(copies, 3);
        blocks.read(0, || {
            copies += 1;
            drop(blocks.write(PIECE));
        });
        assert_eq!(copies, 4, "another piece is none of its business");
    }

    #[test]
    fn writers_that_come_again_and_again_are_kept_out_at_last() {
        let blocks = Blocks::new();
        let mut copies = 0;
        blocks.read(0, || {
            copies += 1;
            if copies <= COPIES {
                drop(blocks.write(0));
            } else {
                assert_eq!(blocks.0[0].0.load(Relaxed) & READERS, 1);
            }
        });
        assert_eq!(copies, COPIES + 1);
        assert_eq!(blocks.0[0].0.load(Relaxed) & (READERS | CLAIMED), 0);
    }
}
