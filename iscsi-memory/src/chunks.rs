//! Which parts of a region are registered, and with whom.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::vec::Vec;

use crate::{DomainId, Registration};

/// Bytes that a region registers at a time.
pub(crate) const CHUNK: u64 = 16 << 20;

/// The registrations of one chunk.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// Those of whole chunks, one for each domain.
    pub(crate) held: Vec<Arc<dyn Registration>>,
    /// Those of parts that somebody else holds, or that never ended.
    pub(crate) pins: usize,
}

impl Chunk {
    /// Whether no device knows its pages.
    pub(crate) fn is_free(&self) -> bool {
        self.held.is_empty() && self.pins == 0
    }

    pub(crate) fn key(&self, domain: DomainId) -> Option<u32> {
        self.held.iter().find(|held| held.domain() == domain).map(|held| held.local_key())
    }
}

/// The registrations of a region: empty until the first.
///
/// Whoever gives pages back holds the lock for reading, whoever registers for writing, so that no page goes while it is being registered.
#[derive(Debug, Default)]
pub(crate) struct Chunks(RwLock<Vec<Chunk>>);

impl Chunks {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Vec<Chunk>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// With a place for each chunk of a region of `len` bytes.
    pub(crate) fn write(&self, len: u64) -> RwLockWriteGuard<'_, Vec<Chunk>> {
        let mut chunks = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if chunks.is_empty() {
            chunks.resize_with(len.div_ceil(CHUNK) as usize, Chunk::default);
        }
        chunks
    }
}
