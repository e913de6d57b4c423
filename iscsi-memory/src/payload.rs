//! What a command's data lie in: a buffer from a pool, or a part of a store's lent memory.

use crate::{Buf, ReceiveSlice, RegionSlice, SendSlice};
#[cfg(feature = "std")]
use crate::{Direction, RegisterFailure, Registrar, WorkPiece};

/// Memory of either kind, owned: what moves between a session, its mover and RDMA, and comes back.
///
/// ```
/// use iscsi_memory::{Buf, Payload};
/// let mut payload = Payload::Buf(Buf::zeroed(512));
/// payload.write(4, b"data");
/// let mut four = [0; 4];
/// payload.read(4, &mut four);
/// assert_eq!((payload.len(), &four), (512, b"data"));
/// ```
#[derive(Debug)]
pub enum Payload {
    /// A private buffer.
    Buf(Buf),
    /// Lent memory, kept alive.
    Region(RegionSlice),
}

impl Payload {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Buf(buf) => buf.len(),
            Self::Region(slice) => slice.len(),
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes out, from `start` on.
    ///
    /// # Panics
    /// If they lie outside the memory.
    pub fn read(&self, start: usize, to: &mut [u8]) {
        match self {
            Self::Buf(buf) => to.copy_from_slice(&buf[start..start + to.len()]),
            Self::Region(slice) => slice.read(start, to),
        }
    }

    /// Copies bytes in, from `start` on.
    ///
    /// # Panics
    /// If they lie outside the memory.
    pub fn write(&mut self, start: usize, from: &[u8]) {
        match self {
            Self::Buf(buf) => buf[start..start + from.len()].copy_from_slice(from),
            Self::Region(slice) => slice.write(start, from),
        }
    }

    /// Bytes `start..end` as a piece to send.
    ///
    /// # Panics
    /// If they lie outside the memory.
    #[must_use]
    pub fn send_slice(&self, start: usize, end: usize) -> SendSlice<'_> {
        match self {
            Self::Buf(buf) => SendSlice::Private(&buf[start..end]),
            Self::Region(slice) => SendSlice::Lent(slice, start, end),
        }
    }

    /// Bytes `start..end` as a place to receive into.
    ///
    /// # Panics
    /// If they lie outside the memory.
    #[must_use]
    pub fn receive_slice(&mut self, start: usize, end: usize) -> ReceiveSlice<'_> {
        match self {
            Self::Buf(buf) => ReceiveSlice::Private(&mut buf[start..end]),
            Self::Region(slice) => ReceiveSlice::Lent(slice, start, end),
        }
    }

    #[cfg(feature = "std")]
    pub(crate) fn as_ptr(&self, start: usize) -> *mut u8 {
        match self {
            Self::Buf(buf) => buf.as_raw().wrapping_add(start),
            Self::Region(slice) => slice.as_ptr(start),
        }
    }

    /// Virtual address of byte `start`, for devices that copy the memory while they are asked to.
    ///
    /// # Panics
    /// If it lies outside the memory.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn address(&self, start: usize) -> u64 {
        assert!(start <= self.len(), "an address lies inside its memory");
        self.as_ptr(start).expose_provenance() as u64
    }

    /// The first of bytes `start..start + len` as a work request names them: all of them, or as many as lie in one
    /// registration. What was not registered with the domain before is registered now, where that pays and there is
    /// [time](Registrar::has_time_for) for it; a region may give zeroes for what was never written. `None`: the first
    /// of these bytes are to be copied.
    ///
    /// # Errors
    /// When a limit is reached or the device refuses.
    ///
    /// # Panics
    /// If the bytes are none or lie outside the memory.
    #[cfg(feature = "std")]
    pub fn device_piece(
        &mut self,
        registrar: &dyn Registrar,
        start: usize,
        len: usize,
        direction: Direction,
    ) -> Result<Option<WorkPiece>, RegisterFailure> {
        match self {
            Self::Buf(buf) if buf.is_registered(registrar.domain()) || registrar.has_time_for(buf.capacity()) => {
                let piece = buf.device_piece(registrar, start, len)?;
                Ok(Some(WorkPiece { piece, hold: None }))
            }
            Self::Buf(_) => Ok(None),
            Self::Region(slice) => slice.device_piece(registrar, start, len, direction),
        }
    }

    /// A work request is done with it, and its holds are dropped: see [`Region::settle`](crate::Region::settle).
    #[cfg(feature = "std")]
    pub fn settle(&self) {
        if let Self::Region(slice) = self {
            slice.region().settle();
        }
    }
}
