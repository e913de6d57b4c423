//! Lists of memory to send from and to receive into, over private and lent memory alike.

use alloc::sync::Arc;

use crate::blocks::Wait;
use crate::{Region, RegionSlice};

/// Lent bytes that are held at a time, at most: writers wait for as long as it takes to send them.
const MOST_HELD: usize = 1 << 20;
/// Regions of which bytes are held at a time.
const REGIONS_HELD: usize = 4;

/// One piece of a vectored send.
#[derive(Debug, Clone, Copy)]
pub enum SendSlice<'a> {
    /// Private memory.
    Private(&'a [u8]),
    /// Bytes `start..end` of a lent region slice.
    Lent(&'a RegionSlice, usize, usize),
}

impl SendSlice<'_> {
    /// Bytes in this piece.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Private(bytes) => bytes.len(),
            Self::Lent(_, start, end) => end - start,
        }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the piece's bytes into `to`, which is as long as the piece. For links that are not sockets: simulators,
    /// tests.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn copy_to(&self, to: &mut [u8]) {
        match self {
            Self::Private(bytes) => to.copy_from_slice(bytes),
            Self::Lent(slice, start, end) => {
                assert_eq!(to.len(), end - start, "a piece is copied whole");
                slice.read(*start, to);
            }
        }
    }
}

/// Up to [`CAPACITY`](Self::CAPACITY) pieces to send in order, built anew for each send on the stack.
#[derive(Debug)]
pub struct SendList<'a> {
    slices: [SendSlice<'a>; SendList::CAPACITY],
    used: usize,
}

impl Default for SendList<'_> {
    fn default() -> Self {
        Self { slices: [SendSlice::Private(&[]); Self::CAPACITY], used: 0 }
    }
}

impl<'a> SendList<'a> {
    /// Most pieces in one list.
    pub const CAPACITY: usize = 32;

    /// Adds a piece; empty pieces are left out. Returns false, and adds nothing, when the list is full.
    pub fn push(&mut self, slice: SendSlice<'a>) -> bool {
        if slice.is_empty() {
            return true;
        }
        let Some(place) = self.slices.get_mut(self.used) else { return false };
        *place = slice;
        self.used += 1;
        true
    }

    /// The pieces, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[SendSlice<'a>] {
        &self.slices[..self.used]
    }

    /// Has nobody write the lent bytes of the list until what this gives is dropped, and shortens the list to what is
    /// held so: to 1 MiB of lent bytes, and to those that nobody is writing just now. Some bytes always stay, and the
    /// list ends between two logical blocks. Whoever sends the list tells how much was sent before he lets go, since
    /// the rest of a block of which a part was sent is then copied.
    ///
    /// ```
    /// use iscsi_memory::{Region, SendList, SendSlice};
    /// let slice = Region::heap(4 << 20).slice(0, 4 << 20);
    /// let mut list = SendList::default();
    /// list.push(SendSlice::Private(&[0; 48]));
    /// list.push(SendSlice::Lent(&slice, 0, 4 << 20));
    /// let held = list.hold();
    /// assert_eq!(list.len(), 48 + (1 << 20));
    /// drop(held);
    /// ```
    pub fn hold(&mut self) -> HeldBytes {
        let mut held = HeldBytes::default();
        let mut wait = Wait::default();
        let (mut at, mut room) = (0, MOST_HELD);
        while at < self.used {
            if let SendSlice::Lent(slice, start, end) = self.slices[at] {
                let n = held.hold(slice, start, end - start, room);
                if n == 0 && at == 0 {
                    // Nothing is held, so nobody waits for this in turn.
                    wait.turn();
                    continue;
                }
                room -= n;
                if n < end - start {
                    self.slices[at] = SendSlice::Lent(slice, start, start + n);
                    self.used = at + usize::from(n > 0);
                    break;
                }
            }
            at += 1;
        }
        held
    }

    /// Bytes in all pieces.
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_slice().iter().map(SendSlice::len).sum()
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }
}

/// Lent bytes that nobody writes until this is dropped: see [`SendList::hold`].
#[derive(Debug, Default)]
#[must_use = "what is held is let go at once"]
pub struct HeldBytes {
    /// Regions, and a bit for each stripe of their pieces.
    regions: [Option<(Arc<Region>, u64)>; REGIONS_HELD],
}

impl HeldBytes {
    /// Holds the first of bytes `start..start + len` of a slice, at most `room` of them: how many.
    fn hold(&mut self, slice: &RegionSlice, start: usize, len: usize, room: usize) -> usize {
        let region = slice.region();
        let ours = |held: &Option<(Arc<Region>, u64)>| held.as_ref().is_none_or(|(held, _)| Arc::ptr_eq(held, region));
        let Some(place) = self.regions.iter_mut().find(|held| ours(held)) else { return 0 };
        let offset = slice.offset() + start as u64;
        let block = region.block_size() as u64;
        let whole = ((offset + room as u64) / block * block).saturating_sub(offset) as usize;
        let (_, stripes) = place.get_or_insert_with(|| (region.clone(), 0));
        region.hold(offset, if len <= room { len } else { whole }, stripes)
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        for (region, stripes) in self.regions.iter().flatten() {
            region.release_held(*stripes);
        }
    }
}

/// One place of a vectored receive.
#[derive(Debug)]
pub enum ReceiveSlice<'a> {
    /// Private memory.
    Private(&'a mut [u8]),
    /// Bytes `start..end` of a lent region slice: they land as they come, also a part of a logical block. Where others
    /// read and write the blocks at the same time, whole ones are written by [`RegionSlice::try_write`].
    Lent(&'a RegionSlice, usize, usize),
    /// Whole blocks of a lent region slice that others read and write at the same time.
    Blocks(BlocksPlace<'a>),
}

/// A place in lent memory that others read and write: of the bytes that have come, whole logical blocks land, all at
/// once. Where none has come whole, or where they may not land now, what has come goes to staging.
///
/// ```
/// use iscsi_memory::{BlocksPlace, ReceiveSlice, ReceiveWindow, Region};
/// let slice = Region::heap(8192).slice(0, 4096);
/// let (mut landed, mut staging) = (0, [0; 600]);
/// let place = BlocksPlace::new(&slice, (0, 4096), &[], &mut landed);
/// let mut window = ReceiveWindow { payload: ReceiveSlice::Blocks(place), staging: &mut staging };
/// assert_eq!(window.fill(&[7; 1100]), 1100);
/// assert_eq!((landed, staging[75], staging[76]), (1024, 7, 0));
/// ```
#[derive(Debug)]
pub struct BlocksPlace<'a> {
    slice: &'a RegionSlice,
    start: usize,
    end: usize,
    begun: &'a [u8],
    landed: &'a mut usize,
}

impl<'a> BlocksPlace<'a> {
    /// Bytes `start..end` of a slice, of which the first have come before: `begun`, which is less than a block. A block
    /// begins at `start`. Whoever fills the place tells in `landed`, 0 to begin with, how many bytes have landed, with
    /// those of `begun`.
    pub fn new(slice: &'a RegionSlice, (start, end): (usize, usize), begun: &'a [u8], landed: &'a mut usize) -> Self {
        *landed = 0;
        Self { slice, start, end, begun, landed }
    }

    /// Bytes that fit.
    fn len(&self) -> usize {
        (self.end - self.start).saturating_sub(self.begun.len())
    }

    /// How many bytes from `start` on land when so many more have come: whole blocks, or none.
    pub(crate) fn whole(&self, more: usize) -> usize {
        self.slice.whole_blocks(self.start, self.end, self.begun.len() + more)
    }

    /// Has the first `whole` bytes land: those that came before, then those that `fill` fills, as many as it is told.
    /// None, and nothing happens, if they are none or may not land now. The place is as long afterwards as what was
    /// asked for.
    pub(crate) fn try_fill<T, E>(
        &mut self,
        whole: usize,
        fill: impl FnOnce(*mut u8, usize) -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        let begun = self.begun;
        self.end = self.start + begun.len();
        if whole <= begun.len() {
            return None;
        }
        let filled = self.slice.try_fill(self.start, whole, begun, fill)?;
        self.end = self.start + whole;
        *self.landed = if filled.is_ok() { whole } else { 0 };
        Some(filled)
    }

    /// Fills the place's first bytes from `from`, as far as they are whole blocks: how many it took.
    fn fill(&mut self, from: &[u8]) -> usize {
        let filled = self.try_fill(self.whole(from.len()), |to, wanted| {
            let now = &from[..wanted];
            // SAFETY: `wanted` bytes at `to` are this call's alone; the source is private memory.
            unsafe { core::ptr::copy_nonoverlapping(now.as_ptr(), to, wanted) }
            Ok::<_, core::convert::Infallible>(wanted)
        });
        filled.map_or(0, |taken| taken.unwrap_or(0))
    }
}

impl ReceiveSlice<'_> {
    /// Bytes in this place.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Private(bytes) => bytes.len(),
            Self::Lent(_, start, end) => *end - *start,
            Self::Blocks(place) => place.len(),
        }
    }

    /// Whether it has no room.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills the place's first bytes from `from`, and gives how many it took: all that fit, or what
    /// [`Blocks`](Self::Blocks) lets land. For links that are not sockets: simulators, tests.
    pub fn fill(&mut self, from: &[u8]) -> usize {
        let from = &from[..from.len().min(self.len())];
        match self {
            Self::Private(bytes) => bytes[..from.len()].copy_from_slice(from),
            Self::Lent(slice, start, _) => slice.write(*start, from),
            Self::Blocks(place) => return place.fill(from),
        }
        from.len()
    }
}

/// Where the next bytes of a stream go: the rest of the payload under way (empty when there is none), then staging.
#[derive(Debug)]
pub struct ReceiveWindow<'a> {
    /// The final place of the payload whose header has already come.
    pub payload: ReceiveSlice<'a>,
    /// Where headers and small payloads gather.
    pub staging: &'a mut [u8],
}

impl ReceiveWindow<'_> {
    /// Bytes that fit.
    #[must_use]
    pub fn len(&self) -> usize {
        self.payload.len() + self.staging.len()
    }

    /// Whether nothing fits: the connection wants its output drained first.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills the window from `from` and returns how many bytes fitted. For links that are not sockets.
    pub fn fill(&mut self, from: &[u8]) -> usize {
        let first = self.payload.fill(from);
        let second = (from.len() - first).min(self.staging.len());
        self.staging[..second].copy_from_slice(&from[first..first + second]);
        first + second
    }
}
