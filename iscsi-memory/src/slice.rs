//! A part of a region, and who is asked before a peer's bytes land in it.

use alloc::sync::Arc;
use core::fmt;

use crate::region::DISCARD;
#[cfg(feature = "std")]
use crate::{Direction, RegisterFailure, Registrar, WorkPiece};
use crate::{OutOfMemory, Region};

/// Who is asked before bytes that come from a peer land in lent memory: a store's users keep others out for a while by
/// it.
///
/// Nothing is taken while the bytes are waited for.
pub trait Landing: fmt::Debug + Send + Sync {
    /// Calls `copy`, which lands this range of the region, in bytes. False: not now, and nothing was called; whoever
    /// moves the data is woken when it is worth another try.
    fn try_land(&self, offset: u64, len: u64, copy: &mut dyn FnMut()) -> bool;
}

/// A part of a [`Region`] that keeps it alive.
#[derive(Debug, Clone)]
pub struct RegionSlice {
    region: Arc<Region>,
    offset: u64,
    len: usize,
    landing: Option<Arc<dyn Landing>>,
}

impl RegionSlice {
    /// Bytes `offset..offset + len` of a region, which the caller has checked.
    pub(crate) fn new(region: Arc<Region>, offset: u64, len: usize) -> Self {
        Self { region, offset, len, landing: None }
    }

    /// Bytes in the slice.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the slice has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the slice begins in its region, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Copies bytes out, from `start` of the slice on.
    ///
    /// # Panics
    /// If the bytes are outside the slice.
    pub fn read(&self, start: usize, to: &mut [u8]) {
        assert!(start.checked_add(to.len()).is_some_and(|end| end <= self.len), "read outside a lent slice");
        self.region.read(self.offset + start as u64, to);
    }

    /// Copies bytes in, from `start` of the slice on. See [`Region::write`].
    ///
    /// # Panics
    /// If the bytes are outside the slice.
    pub fn write(&self, start: usize, from: &[u8]) {
        assert!(start.checked_add(from.len()).is_some_and(|end| end <= self.len), "write outside a lent slice");
        self.region.write(self.offset + start as u64, from);
    }

    /// The same slice, into which [`try_write`](Self::try_write) writes only as `landing` allows. Nobody else asks.
    #[must_use]
    pub fn with_landing(self, landing: Arc<dyn Landing>) -> Self {
        Self { landing: Some(landing), ..self }
    }

    /// [`write`](Self::write), if the bytes may land now. False: they may not, and nothing is written.
    ///
    /// # Panics
    /// If the bytes are outside the slice.
    #[must_use]
    pub fn try_write(&self, start: usize, from: &[u8]) -> bool {
        let Some(landing) = &self.landing else {
            self.write(start, from);
            return true;
        };
        let (offset, len) = (self.offset + start as u64, from.len() as u64);
        landing.try_land(offset, len, &mut || self.write(start, from))
    }

    /// How many of `available` bytes that are to land in `start..end` land in one go as whole logical blocks: they end
    /// with a block, or with the slice, and lie in one MiB of the region. None if no block begins at `start`.
    pub(crate) fn whole_blocks(&self, start: usize, end: usize, available: usize) -> usize {
        let block = self.region.block_size() as u64;
        let at = self.offset + start as u64;
        if !at.is_multiple_of(block) {
            return 0;
        }
        let n = (end.min(self.len).saturating_sub(start) as u64).min(available as u64).min(DISCARD - at % DISCARD);
        if start as u64 + n == self.len as u64 { n as usize } else { (n / block * block) as usize }
    }

    /// Has `len` bytes filled, as many as [`whole_blocks`](Self::whole_blocks) gives, if they may land now: the first
    /// from `begun`, the others by `fill`, while nobody else reads or writes them. `fill` waits for nobody.
    ///
    /// # Panics
    /// If the bytes are outside the slice, or fewer than those of `begun`.
    pub(crate) fn try_fill<T>(
        &self,
        start: usize,
        len: usize,
        begun: &[u8],
        fill: impl FnOnce(*mut u8, usize) -> T,
    ) -> Option<T> {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "write outside a lent slice");
        let offset = self.offset + start as u64;
        let Some(landing) = &self.landing else { return Some(self.region.fill_alone(offset, len, begun, fill)) };
        let (mut fill, mut filled) = (Some(fill), None);
        landing.try_land(offset, len as u64, &mut || {
            filled = fill.take().map(|fill| self.region.fill_alone(offset, len, begun, fill));
        });
        filled
    }

    /// Bytes from `start` on to the end of the logical block that it is in, or of the slice; none if a block begins
    /// there.
    #[must_use]
    pub fn rest_of_block(&self, start: usize) -> usize {
        let block = self.region.block_size();
        let at = (self.offset + start as u64) as usize & (block - 1);
        if at == 0 { 0 } else { (block - at).min(self.len.saturating_sub(start)) }
    }

    /// Takes the pages of the slice: see [`Region::reserve_for_write`].
    ///
    /// # Errors
    /// [`OutOfMemory`] when the region's limit would be passed.
    pub fn reserve_for_write(&self) -> Result<(), OutOfMemory> {
        self.region.reserve_for_write(self.offset, self.len as u64)
    }

    /// The region that the slice is a part of.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The first of bytes `start..start + len` as a work request of the domain names them: up to the end of their
    /// chunk, which is registered with the domain if it was not. See
    /// [`Payload::device_piece`](crate::Payload::device_piece).
    ///
    /// # Errors
    /// When a limit is reached or the device refuses.
    ///
    /// # Panics
    /// If the bytes are none or lie outside the slice.
    #[cfg(feature = "std")]
    pub fn device_piece(
        &self,
        registrar: &dyn Registrar,
        start: usize,
        len: usize,
        direction: Direction,
    ) -> Result<Option<WorkPiece>, RegisterFailure> {
        assert!(
            len != 0 && start.checked_add(len).is_some_and(|end| end <= self.len),
            "a work request names bytes of its slice"
        );
        self.region.reach(registrar, self.offset + start as u64, len, direction)
    }

    /// Keeps the pages under bytes of the slice, which are not none, where they are.
    #[cfg(feature = "std")]
    pub(crate) fn pin(&self, start: usize, len: usize) {
        let first = self.offset + start as u64;
        self.region.pin_chunks(first, first + len as u64 - 1, |chunk| chunk.pins += 1);
    }

    /// The reverse of [`pin`](Self::pin).
    #[cfg(feature = "std")]
    pub(crate) fn unpin(&self, start: usize, len: usize) {
        let first = self.offset + start as u64;
        self.region.pin_chunks(first, first + len as u64 - 1, |chunk| chunk.pins -= 1);
        self.region.settle();
    }

    #[cfg(feature = "std")]
    pub(crate) fn as_ptr(&self, start: usize) -> *mut u8 {
        assert!(start <= self.len, "pointer outside a lent slice");
        self.region.at(self.offset + start as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_reads_or_writes_what_is_being_filled() {
        let region = Region::heap(1 << 20);
        let filled = region.slice(0, 1 << 18).try_fill(512, 100_352, &[7; 100], |to, rest| {
            for piece in [512, 65_536] {
                assert_eq!(region.hold(piece, 512, &mut 0), 0, "the piece of byte {piece} is held");
            }
            assert_eq!((to, rest), (region.at(612), 100_252));
        });
        assert_eq!(filled, Some(()));
        let (mut held, mut begun) = (0, [0; 101]);
        assert_eq!(region.hold(512, 100_352, &mut held), 100_352);
        region.release_held(held);
        region.read(512, &mut begun);
        assert_eq!((&begun[..100], begun[100]), (&[7; 100][..], 0));
    }
}
