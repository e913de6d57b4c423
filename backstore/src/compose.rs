//! Stores made of stores: RAID 0 and concatenation.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::Waker;

use async_trait::async_trait;
use futures::future::try_join_all;

use super::compose_queue::ComposedQueue;
use super::layout::{Joined, Layout, Striped, pieces};
use super::{Abilities, Backstore, Geometry, LbaStatus, StoreError, StoreQueue};

/// Why stores cannot be put together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// No store at all.
    #[error("a composed store needs at least one store: give one or more")]
    Empty,
    /// Block sizes differ.
    #[error(
        "store {child} has blocks of {found} bytes and store 0 of {expected}: put together only stores of equal \
         block size"
    )]
    BlockSizes {
        /// Number of the store, from 0.
        child: usize,
        /// Its block size in bytes.
        found: u32,
        /// The first store's block size in bytes.
        expected: u32,
    },
    /// The chunk is not whole blocks.
    #[error(
        "a chunk of {chunk} bytes is not a whole number of blocks of {block_size} bytes: give a multiple of it, \
         such as 64 KiB"
    )]
    Chunk {
        /// Chunk size in bytes.
        chunk: u64,
        /// Block size in bytes.
        block_size: u32,
    },
    /// A store holds less than a chunk.
    #[error(
        "store {child} holds {bytes} bytes, less than one chunk of {chunk} bytes: use a smaller chunk or a larger store"
    )]
    TooSmall {
        /// Number of the store, from 0.
        child: usize,
        /// Its size in bytes.
        bytes: u64,
        /// Chunk size in bytes.
        chunk: u64,
    },
    /// The sum does not fit.
    #[error("the stores together hold more than 16 EiB: use fewer or smaller ones")]
    TooLarge,
}

/// A store whose blocks lie in other stores, as a [`Layout`] says: a [`StripeStore`] or a [`LinearStore`].
///
/// It can do what all of its stores can do; its written data are durable when all of theirs are. A request for one
/// store is handed on as it is, buffer and all. One that touches several is split, runs on all of them at the same time
/// and ends when the last part has; if parts fail, the error is that of the lowest bad block known. Its queue is made
/// of theirs, and there is one only if each of them has one. Sizes are what they were when it was made.
pub struct Composed<L> {
    children: Vec<Arc<dyn Backstore>>,
    layout: L,
    geometry: Geometry,
    abilities: Abilities,
}

/// RAID 0: chunks of the stores in turn, so that large transfers and many small ones keep all of them busy.
///
/// Every store gives as many whole chunks as the smallest one has.
///
/// ```
/// use std::sync::Arc;
/// use backstore::{Backstore, NullStore, StripeStore};
/// let disks: Vec<Arc<dyn Backstore>> = (0..4).map(|_| Arc::new(NullStore::new(1 << 30)) as _).collect();
/// let raid = StripeStore::new(disks, 64 << 10)?;
/// assert_eq!(raid.geometry().bytes(), 4 << 30);
/// # Ok::<(), backstore::ComposeError>(())
/// ```
pub type StripeStore = Composed<Striped>;

/// Concatenation: the stores one after the other.
///
/// ```
/// use std::sync::Arc;
/// use backstore::{Backstore, LinearStore, NullStore};
/// let disks: Vec<Arc<dyn Backstore>> = vec![Arc::new(NullStore::new(1 << 30)), Arc::new(NullStore::new(1 << 20))];
/// assert_eq!(LinearStore::new(disks)?.geometry().bytes(), (1 << 30) + (1 << 20));
/// # Ok::<(), backstore::ComposeError>(())
/// ```
pub type LinearStore = Composed<Joined>;

impl StripeStore {
    /// Stripes `children` in chunks of `chunk` bytes.
    ///
    /// # Errors
    /// [`ComposeError`]: no store, different block sizes, a chunk with part of a block or above the smallest store.
    pub fn new(children: Vec<Arc<dyn Backstore>>, chunk: u64) -> Result<Self, ComposeError> {
        let (mut geometry, mut abilities) = shared(&children)?;
        let block_size = geometry.block_size;
        if chunk == 0 || !chunk.is_multiple_of(u64::from(block_size)) {
            return Err(ComposeError::Chunk { chunk, block_size });
        }
        let blocks = chunk / u64::from(block_size);
        let mut rows = u64::MAX;
        for (child, store) in children.iter().enumerate() {
            let own = store.geometry();
            if own.blocks < blocks {
                return Err(ComposeError::TooSmall { child, bytes: own.bytes(), chunk });
            }
            rows = rows.min(own.blocks / blocks);
        }
        let count = children.len() as u64;
        geometry.blocks = (rows * blocks).checked_mul(count).ok_or(ComposeError::TooLarge)?;
        geometry.blocks.checked_mul(u64::from(block_size)).ok_or(ComposeError::TooLarge)?;
        geometry.optimal_transfer = u32::try_from(blocks.saturating_mul(count)).unwrap_or(0);
        // Grains of the whole are grains of each store only where chunks hold whole ones.
        if abilities.unmap_granularity != 0 && !blocks.is_multiple_of(u64::from(abilities.unmap_granularity)) {
            abilities.unmap_granularity = 0;
        }
        if !blocks.is_multiple_of(1 << geometry.physical_exponent) {
            geometry.physical_exponent = 0;
        }
        Ok(Self { layout: Striped { children: count, chunk: blocks }, children, geometry, abilities })
    }
}

impl LinearStore {
    /// Puts `children` one after the other.
    ///
    /// # Errors
    /// [`ComposeError`]: no store, different block sizes, a sum of more than 64 bits.
    pub fn new(children: Vec<Arc<dyn Backstore>>) -> Result<Self, ComposeError> {
        let (mut geometry, mut abilities) = shared(&children)?;
        let layout = Joined::new(children.iter().map(|child| child.geometry().blocks)).ok_or(ComposeError::TooLarge)?;
        geometry.blocks = layout.starts.last().copied().unwrap_or(0);
        geometry.blocks.checked_mul(u64::from(geometry.block_size)).ok_or(ComposeError::TooLarge)?;
        let aligned = |grain: u64| layout.starts.iter().rev().skip(1).all(|start| start.is_multiple_of(grain));
        if abilities.unmap_granularity != 0 && !aligned(abilities.unmap_granularity.into()) {
            abilities.unmap_granularity = 0;
        }
        if !aligned(1 << geometry.physical_exponent) {
            geometry.physical_exponent = 0;
        }
        Ok(Self { layout, children, geometry, abilities })
    }
}

/// The shape and abilities that all stores share; the number of blocks is the first store's.
fn shared(children: &[Arc<dyn Backstore>]) -> Result<(Geometry, Abilities), ComposeError> {
    let first = children.first().ok_or(ComposeError::Empty)?;
    let (mut geometry, mut abilities) = (first.geometry(), first.abilities());
    geometry.optimal_transfer = 0;
    for (child, store) in children.iter().enumerate() {
        let (shape, able) = (store.geometry(), store.abilities());
        if shape.block_size != geometry.block_size {
            let (found, expected) = (shape.block_size, geometry.block_size);
            return Err(ComposeError::BlockSizes { child, found, expected });
        }
        geometry.physical_exponent = geometry.physical_exponent.max(shape.physical_exponent);
        let (a, b) = (abilities.unmap_granularity, able.unmap_granularity);
        abilities = Abilities {
            unmap: abilities.unmap && able.unmap,
            unmapped_reads_zero: abilities.unmapped_reads_zero && able.unmapped_reads_zero,
            // Unlike grains fit together when one holds whole ones of the other.
            unmap_granularity: match (a.max(b), a.min(b)) {
                (_, 0) => 0,
                (most, least) if most.is_multiple_of(least) => most,
                _ => 0,
            },
            volatile_cache: abilities.volatile_cache || able.volatile_cache,
            read_only: abilities.read_only || able.read_only,
            solid_state: abilities.solid_state && able.solid_state,
        };
    }
    Ok((geometry, abilities))
}

/// The error of child `child` in terms of the whole.
pub(super) fn outward<L: Layout>(layout: &L, child: usize, error: StoreError) -> StoreError {
    match error {
        StoreError::Read(Some(lba)) => StoreError::Read(Some(layout.whole(child, lba))),
        StoreError::Write(Some(lba)) => StoreError::Write(Some(layout.whole(child, lba))),
        error => error,
    }
}

/// Joins the results of two parts: the lowest bad block known, else the first error.
pub(super) fn join(one: Result<(), StoreError>, other: Result<(), StoreError>) -> Result<(), StoreError> {
    match (one, other) {
        (Err(a), Err(b)) => Err(if bad_block(b) < bad_block(a) { b } else { a }),
        (Ok(()), other) => other,
        (one, Ok(())) => one,
    }
}

fn bad_block(error: StoreError) -> u64 {
    match error {
        StoreError::Read(Some(lba)) | StoreError::Write(Some(lba)) => lba,
        _ => u64::MAX,
    }
}

impl<L: Layout> Composed<L> {
    fn blocks_of(&self, bytes: usize) -> u64 {
        bytes as u64 / u64::from(self.geometry.block_size)
    }

    fn bytes_of(&self, blocks: u64) -> usize {
        (blocks * u64::from(self.geometry.block_size)) as usize
    }
}

/// Waits for all parts: none may be under way when the caller hears of an error.
async fn all<F: Future<Output = Result<(), StoreError>>>(parts: Vec<F>) -> Result<(), StoreError> {
    let results = try_join_all(parts.into_iter().map(|part| async { Ok::<_, core::convert::Infallible>(part.await) }));
    let Ok(results) = results.await;
    results.into_iter().fold(Ok(()), join)
}

#[async_trait]
impl<L: Layout> Backstore for Composed<L> {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        let mut parts = Vec::new();
        let mut rest = data;
        let blocks = self.blocks_of(rest.len());
        for piece in pieces(&self.layout, lba, blocks) {
            let (part, later) = rest.split_at_mut(self.bytes_of(piece.blocks));
            rest = later;
            let read = self.children[piece.child].read(piece.lba, part);
            parts.push(async move { read.await.map_err(|error| outward(&self.layout, piece.child, error)) });
        }
        all(parts).await
    }

    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        let mut parts = Vec::new();
        for piece in pieces(&self.layout, lba, self.blocks_of(data.len())) {
            let start = self.bytes_of(piece.offset);
            let part = &data[start..start + self.bytes_of(piece.blocks)];
            let write = self.children[piece.child].write(piece.lba, part);
            parts.push(async move { write.await.map_err(|error| outward(&self.layout, piece.child, error)) });
        }
        all(parts).await
    }

    fn failed_flushes(&self) -> Option<u64> {
        // A child that does not count would be missed: then the device server counts what it hears of.
        self.children.iter().map(|child| child.failed_flushes()).sum()
    }

    async fn flush(&self) -> Result<(), StoreError> {
        all(self.children.iter().map(|child| child.flush()).collect()).await
    }

    async fn unmap(&self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        if !self.abilities.unmap {
            return Err(StoreError::Unsupported);
        }
        let mut parts = Vec::new();
        for (child, store) in self.children.iter().enumerate() {
            let first = self.layout.before(child, lba);
            let end = self.layout.before(child, lba + blocks);
            if end > first {
                let unmap = store.unmap(first, end - first);
                parts.push(async move { unmap.await.map_err(|error| outward(&self.layout, child, error)) });
            }
        }
        all(parts).await
    }

    async fn lba_status(&self, lba: u64) -> Result<LbaStatus, StoreError> {
        let place = self.layout.place(lba);
        let status = self.children[place.child].lba_status(place.lba).await;
        let status = status.map_err(|error| outward(&self.layout, place.child, error))?;
        Ok(LbaStatus { blocks: status.blocks.min(place.run), ..status })
    }

    fn open_queue(self: Arc<Self>, waker: Waker) -> Option<Box<dyn StoreQueue>> {
        let queues: Option<Vec<_>> =
            self.children.iter().map(|child| child.clone().open_queue(waker.clone())).collect();
        Some(Box::new(ComposedQueue::new(self.layout.clone(), self.geometry, self.abilities.unmap, queues?)))
    }
}

impl<L> core::fmt::Debug for Composed<L> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Composed({} stores, {} bytes)", self.children.len(), self.geometry.bytes())
    }
}

#[cfg(all(test, feature = "std"))]
#[path = "compose_tests.rs"]
mod compose_tests;
