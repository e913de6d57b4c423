//! Which parts of a region are registered, and with whom.

use std::boxed::Box;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::vec::Vec;

use crate::{DomainId, Registration};

/// Bytes that a region registers at a time: pinning them takes a device a tenth of a millisecond or two, and a store of
/// 50 GiB has no more than some ten thousands of them, which every device holds.
pub(crate) const CHUNK: u64 = 1 << 20;

/// The registrations of one chunk.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// Those of whole chunks, one for each domain. Work requests that use one hold it, too.
    pub(crate) held: Vec<Arc<dyn Registration>>,
    /// Those of parts that somebody else holds, or that never ended.
    pub(crate) pins: usize,
    /// Whether it is in [`Table::due`].
    pub(crate) is_due: bool,
}

impl Chunk {
    /// Whether no device knows its pages.
    pub(crate) fn is_free(&self) -> bool {
        self.held.is_empty() && self.pins == 0
    }

    /// Whether no work request uses it.
    pub(crate) fn is_idle(&self) -> bool {
        // Whoever takes a hold has the lock of the table, so that there can only be fewer of them.
        self.pins == 0 && self.held.iter().all(|held| Arc::strong_count(held) == 1)
    }

    pub(crate) fn of(&self, domain: DomainId) -> Option<&Arc<dyn Registration>> {
        self.held.iter().find(|held| held.domain() == domain)
    }

    /// Ends the registrations that are chosen. Those that cannot be ended pin the chunk for ever.
    pub(crate) fn end(&mut self, is_chosen: impl Fn(&dyn Registration) -> bool) {
        let mut stuck = 0;
        self.held.retain(|held| {
            let chosen = is_chosen(&**held);
            stuck += usize::from(chosen && !held.release());
            !chosen
        });
        self.pins += stuck;
    }
}

/// The chunks of a region, by number. Those that no device has ever known are not there.
#[derive(Debug, Default)]
pub(crate) struct Table {
    chunks: Vec<Option<Box<Chunk>>>,
    /// Chunks with pages to give back that were in use when they were discarded.
    pub(crate) due: Vec<usize>,
}

impl Table {
    pub(crate) fn get(&self, index: usize) -> Option<&Chunk> {
        self.chunks.get(index)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut Chunk> {
        self.chunks.get_mut(index)?.as_deref_mut()
    }

    /// A chunk of a region of `len` bytes.
    pub(crate) fn place(&mut self, index: usize, len: u64) -> &mut Chunk {
        if self.chunks.is_empty() {
            self.chunks.resize_with(len.div_ceil(CHUNK) as usize, || None);
        }
        self.chunks[index].get_or_insert_with(Box::default)
    }

    /// All chunks that a device has known, with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Chunk)> {
        self.chunks.iter().enumerate().filter_map(|(index, chunk)| Some((index, chunk.as_deref()?)))
    }

    /// Their numbers end below this one.
    pub(crate) fn len(&self) -> usize {
        self.chunks.len()
    }
}

/// The registrations of a region: empty until the first.
///
/// Whoever gives pages back holds the lock for reading, whoever registers for writing, so that no page goes while it is
/// being registered.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    table: RwLock<Table>,
    /// Whether there are chunks in [`Table::due`].
    is_due: AtomicBool,
}

impl Chunks {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a chunk may be given back that a work request has used until now.
    pub(crate) fn is_due(&self) -> bool {
        // The hold was let go before this, and `set_due` comes before the question whether somebody holds the chunk:
        // one of the two sees the other.
        fence(Ordering::SeqCst);
        self.is_due.load(Ordering::Relaxed)
    }

    /// To be called with the table locked for writing.
    pub(crate) fn set_due(&self, is_due: bool) {
        self.is_due.store(is_due, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}
