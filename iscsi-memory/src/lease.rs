//! Memory that moves into a work request and comes back in its completion.

use crate::Payload;

/// A range of [`Payload`] that belongs to whoever holds the lease, and to nobody else, until it is given back.
///
/// A device, and with its consent a peer, may read or write the range at any time while the lease is in a work request:
/// that is why it moves in, and comes back only in the completion.
///
/// ```
/// use iscsi_memory::{Buf, Lease, Payload};
/// let lease = Lease::whole(Payload::Buf(Buf::zeroed(512)));
/// assert_eq!((lease.start, lease.len), (0, 512));
/// ```
#[derive(Debug)]
pub struct Lease {
    /// The memory.
    pub memory: Payload,
    /// First byte of the range.
    pub start: usize,
    /// Bytes of the range.
    pub len: usize,
}

impl Lease {
    /// All of a memory.
    #[must_use]
    pub fn whole(memory: Payload) -> Self {
        let len = memory.len();
        Self { memory, start: 0, len }
    }

    /// Bytes `start..start + len` of a memory.
    ///
    /// # Panics
    /// If they lie outside it.
    #[must_use]
    pub fn part(memory: Payload, start: usize, len: usize) -> Self {
        assert!(start.checked_add(len).is_some_and(|end| end <= memory.len()), "a lease lies inside its memory");
        Self { memory, start, len }
    }
}
