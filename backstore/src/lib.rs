//! The backstore: what a logical unit keeps its blocks in. Three doors, one room behind them.
//!
//! - **Easy door**: [`Backstore`]'s async methods over borrowed buffers. Geometry, read and write are enough for a
//!   disk.
//! - **Fast door**: [`Backstore::open_queue`] gives each worker a [`StoreQueue`] of its own: submit a batch, poll
//!   completions, out of order, no lock shared between workers, no allocation per I/O. Without one, an adapter runs the
//!   easy door's futures behind the same queue.
//! - **Memory door**: [`Backstore::memory`] lends the store's own memory: reads leave straight from it and writes land
//!   straight in it.

#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod block_ranges;
mod compose;
mod compose_queue;
#[cfg(feature = "std")]
mod durability;
#[cfg(feature = "std")]
mod file;
#[cfg(feature = "std")]
mod file_medium;
#[cfg(feature = "std")]
mod file_pool;
mod gate;
mod inline;
mod layout;
mod null;
#[cfg(feature = "std")]
mod open_error;
pub mod queue;
mod ram;
mod size;
#[cfg(feature = "std")]
mod threads;
#[cfg(feature = "std")]
mod under_way;

pub use block_ranges::BlockRanges;
pub use compose::{ComposeError, Composed, LinearStore, StripeStore};
#[cfg(feature = "std")]
pub use file::{FileOptions, FileStore};
#[cfg(feature = "std")]
pub use file_medium::{BlockFile, FileMedium};
pub use gate::{Access, Blocks, GatePlace, WriteGate};
pub use layout::{Joined, Layout, Place, Striped};
pub use null::NullStore;
#[cfg(feature = "std")]
pub use open_error::StoreOpenError;
pub use ram::RamStore;
#[cfg(feature = "std")]
pub use ram::RamStoreBuilder;
pub use size::{SizeError, parse_size};

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::Waker;

use async_trait::async_trait;
use iscsi_memory::{Buf, Region};

/// Size and shape of a store. Blocks are counted from 0 to `blocks - 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Logical block length in bytes: a power of two from 512 to 4096.
    pub block_size: u32,
    /// Number of logical blocks, at least 1.
    pub blocks: u64,
    /// Logical blocks per physical block as a power of two, 0 to 15 (READ CAPACITY (16), SBC-4 5.20).
    pub physical_exponent: u8,
    /// Blocks that are best transferred together (block limits VPD page, SBC-4 6.6.4); 0 when nothing is known.
    pub optimal_transfer: u32,
}

impl Geometry {
    /// `bytes` in blocks of 512 bytes; a tail of less than a block is left out.
    #[must_use]
    pub const fn of_bytes(bytes: u64) -> Self {
        Self { block_size: 512, blocks: bytes / 512, physical_exponent: 3, optimal_transfer: 0 }
    }

    /// Size in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.blocks * self.block_size as u64
    }
}

/// What a store can do beyond read and write. What is declared here is what the device server advertises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities {
    /// [`Backstore::unmap`] gives space back: the LU is thin provisioned (LBPME, LBPU, LBPWS, LBPWS10).
    pub unmap: bool,
    /// Unmapped blocks read as zero (LBPRZ).
    pub unmapped_reads_zero: bool,
    /// Grain of unmap in blocks (OPTIMAL UNMAP GRANULARITY); 0 when nothing is known.
    pub unmap_granularity: u32,
    /// Written data may sit in a volatile cache until [`Backstore::flush`] (WCE).
    pub volatile_cache: bool,
    /// The store refuses writes.
    pub read_only: bool,
    /// The medium does not rotate (MEDIUM ROTATION RATE 1).
    pub solid_state: bool,
}

/// What happened to an I/O. The device server turns each into sense data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The medium cannot be read: MEDIUM ERROR, UNRECOVERED READ ERROR, with the first bad LBA if known.
    #[error("the store could not read its medium")]
    Read(Option<u64>),
    /// The medium cannot be written: MEDIUM ERROR, WRITE ERROR.
    #[error("the store could not write its medium")]
    Write(Option<u64>),
    /// No space left for a thin-provisioned write: DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT.
    #[error("the store has no space left for the write")]
    NoSpace,
    /// The store is read-only: DATA PROTECT, WRITE PROTECTED.
    #[error("the store is read-only")]
    ReadOnly,
    /// COMPARE AND WRITE found a difference at this byte offset: MISCOMPARE.
    #[error("the compared data differ at byte {0}")]
    Miscompare(u32),
    /// The store cannot do this operation: INVALID COMMAND OPERATION CODE.
    #[error("the store cannot do this operation")]
    Unsupported,
    /// The store is gone for now: NOT READY.
    #[error("the store is not reachable")]
    NotReady,
    /// The store broke: HARDWARE ERROR, INTERNAL TARGET FAILURE.
    #[error("the store failed")]
    Failed,
}

/// Provisioning status of a run of blocks (GET LBA STATUS, SBC-4 5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LbaStatus {
    /// Blocks in the run, at least 1.
    pub blocks: u64,
    /// Whether they are mapped; else they are deallocated.
    pub mapped: bool,
}

/// A store of blocks: the easy door, and the way to the other two.
///
/// Methods take `&self` and run concurrently. The device server has checked that every range lies inside the geometry
/// and that buffers are whole blocks. When a write's future is done its data are what later reads see; when a flush's
/// future is done, what was written before it is durable.
///
/// ```
/// use async_trait::async_trait;
/// use std::sync::Mutex;
/// use backstore::{Backstore, Geometry, StoreError};
///
/// struct Disk(Mutex<Vec<u8>>);
///
/// #[async_trait]
/// impl Backstore for Disk {
///     fn geometry(&self) -> Geometry {
///         Geometry::of_bytes(self.0.lock().unwrap().len() as u64)
///     }
///     async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
///         let at = lba as usize * 512;
///         data.copy_from_slice(&self.0.lock().unwrap()[at..at + data.len()]);
///         Ok(())
///     }
///     async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
///         let at = lba as usize * 512;
///         self.0.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait Backstore: Send + Sync + 'static {
    /// Size and shape. May grow while in use; the device server then reports CAPACITY DATA HAS CHANGED.
    fn geometry(&self) -> Geometry;

    /// What the store can do beyond read and write: nothing, unless said.
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    /// Reads whole blocks from `lba` on into `data`. A block that is written at the same time is read as it was before
    /// or as it is after that, never mixed.
    ///
    /// # Errors
    /// See [`StoreError`]; the content of `data` is then unspecified.
    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError>;

    /// Writes whole blocks from `lba` on.
    ///
    /// # Errors
    /// See [`StoreError`]; the blocks then hold old data, new data, or some of each.
    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError>;

    /// Makes durable what has been written. The default has nothing to do. After one that failed, blocks that were
    /// written since the last good one may be lost: reading them is to fail until they are written again, or to give
    /// what was written.
    ///
    /// # Errors
    /// See [`StoreError`].
    async fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// How many flushes have failed so far, where the store counts them: one that failed is counted before a later one
    /// can succeed. With it the device server tells every I_T nexus of each failure, as what it had written may be
    /// lost, too. `None`: the device server counts those that it hears of.
    fn failed_flushes(&self) -> Option<u64> {
        None
    }

    /// Gives the blocks' space back. Only called when [`Abilities::unmap`] is declared.
    ///
    /// # Errors
    /// See [`StoreError`].
    async fn unmap(&self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        let _ = (lba, blocks);
        Err(StoreError::Unsupported)
    }

    /// Provisioning status from `lba` on. The default says that everything is mapped.
    ///
    /// # Errors
    /// See [`StoreError`].
    async fn lba_status(&self, lba: u64) -> Result<LbaStatus, StoreError> {
        Ok(LbaStatus { blocks: self.geometry().blocks - lba, mapped: true })
    }

    /// The fast door: a queue for one worker of one LUN. `waker` is woken when a completion waits. `None` means that
    /// the easy door is to be used.
    fn open_queue(self: Arc<Self>, waker: Waker) -> Option<Box<dyn StoreQueue>> {
        let _ = waker;
        None
    }

    /// The memory door: the store's blocks lie in this region from its first byte on, and may be read from it and
    /// written to it at any time, also by the kernel. Writers call [`Region::reserve_for_write`] first.
    fn memory(&self) -> Option<&Arc<Region>> {
        None
    }
}

/// One operation of a [`StoreQueue`]. Buffers are whole blocks and come back with the completion.
#[derive(Debug)]
pub enum StoreOp {
    /// Read into the buffer.
    Read {
        /// First block.
        lba: u64,
        /// Filled.
        buf: Buf,
    },
    /// Write from the buffer.
    Write {
        /// First block.
        lba: u64,
        /// The data.
        buf: Buf,
    },
    /// Make durable what has completed.
    Flush,
    /// Give space back.
    Unmap {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u64,
    },
    /// Provisioning status; answered in [`StoreCompletion::lba_status`].
    LbaStatus {
        /// First block.
        lba: u64,
    },
}

/// A submitted operation.
#[derive(Debug)]
pub struct StoreRequest {
    /// The submitter's name for it; comes back in the completion.
    pub token: u64,
    /// What to do.
    pub op: StoreOp,
}

/// A finished operation.
#[derive(Debug)]
pub struct StoreCompletion {
    /// The request's token.
    pub token: u64,
    /// The request's buffer.
    pub buf: Option<Buf>,
    /// Answer of [`StoreOp::LbaStatus`].
    pub lba_status: Option<LbaStatus>,
    /// How it went.
    pub result: Result<(), StoreError>,
}

/// The fast door: one worker's queue to a store.
pub trait StoreQueue: Send {
    /// Takes all requests of the batch, leaving it empty. May complete some at once: the submitter polls after each
    /// submit, as the waker is not woken for those.
    fn submit(&mut self, batch: &mut Vec<StoreRequest>);

    /// Adds the completions that are ready, in any order. Each request completes exactly once.
    fn poll(&mut self, completions: &mut Vec<StoreCompletion>);
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
