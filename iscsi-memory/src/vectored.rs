//! Lists of memory to send from and to receive into, over private and lent memory alike.

use crate::RegionSlice;

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

/// One place of a vectored receive.
#[derive(Debug)]
pub enum ReceiveSlice<'a> {
    /// Private memory.
    Private(&'a mut [u8]),
    /// Bytes `start..end` of a lent region slice.
    Lent(&'a RegionSlice, usize, usize),
}

impl ReceiveSlice<'_> {
    /// Bytes in this place.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Private(bytes) => bytes.len(),
            Self::Lent(_, start, end) => end - start,
        }
    }

    /// Whether it has no room.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills the place's first bytes from `from`. For links that are not sockets: simulators, tests.
    ///
    /// # Panics
    /// If `from` is longer than the place.
    pub fn fill(&mut self, from: &[u8]) {
        match self {
            Self::Private(bytes) => bytes[..from.len()].copy_from_slice(from),
            Self::Lent(slice, start, end) => {
                assert!(from.len() <= *end - *start, "more bytes than the place holds");
                slice.write(*start, from);
            }
        }
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

    /// Fills the window from `from` and returns how many bytes fitted: none while the payload may not land. For links
    /// that are not sockets.
    pub fn fill(&mut self, from: &[u8]) -> usize {
        let first = from.len().min(self.payload.len());
        let place = match &self.payload {
            ReceiveSlice::Lent(slice, start, _) => Some((*slice, *start)),
            ReceiveSlice::Private(_) => None,
        };
        let landed = place.map(|(slice, start)| slice.try_land(start, first));
        if matches!(landed, Some(None)) {
            return 0;
        }
        self.payload.fill(&from[..first]);
        let second = (from.len() - first).min(self.staging.len());
        self.staging[..second].copy_from_slice(&from[first..first + second]);
        first + second
    }
}
