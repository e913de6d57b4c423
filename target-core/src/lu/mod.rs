//! Logical units: a store with an identity, mode parameters and unit attentions; and the map that gives them LUNs.
//!
//! A [`LogicalUnit`] is shared by all sessions that see it, on all workers. What a command reads of it are atomics; the
//! locks inside are taken on change only. What belongs to one I_T nexus (which unit attentions it has still to hear) is
//! kept by its session.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use backstore::{Abilities, Backstore, Geometry, WriteGate};
use iscsi_memory::Region;
use portable_atomic::AtomicU64;
use scsi_proto::SenseFormat;

mod attention;
mod attributes;
mod flushes;
mod identity;
mod map;
mod users;

pub use attention::UnitAttention;
pub use attributes::UnitAttributes;
pub use identity::{Identity, MAX_SERIAL};
pub use map::{LunMap, LunMapBuilder, MappedLun};

pub(crate) use attention::Attentions;
pub(crate) use flushes::FlushesHeard;

/// Names an I_T nexus among all of a process: whoever opens sessions gives each another number. Logical units tell
/// nexuses apart by it, and one may be in several servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NexusId(pub u64);

impl NexusId {
    /// A number that no other caller in this process was given, larger than all before.
    #[must_use]
    pub fn unique() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// Why a store cannot be a logical unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// A block size that SCSI initiators do not handle.
    #[error("the store's block size is {0} bytes; a logical unit needs a power of two from 512 to 4096")]
    BlockSize(u32),
    /// No block at all, or more bytes than 64 bits count.
    #[error(
        "the store has {blocks} blocks of {block_size} bytes; a logical unit needs at least one block and less than \
         2^63 bytes"
    )]
    Size {
        /// Number of blocks.
        blocks: u64,
        /// Bytes of a block.
        block_size: u32,
    },
    /// A region that is not as large as the blocks it is to hold.
    #[error(
        "the store lends a memory region of {region} bytes for {blocks} bytes of blocks; they must be in it in whole"
    )]
    Region {
        /// Bytes of the region.
        region: u64,
        /// Bytes of all blocks.
        blocks: u64,
    },
}

/// What one command may ask of a logical unit. The Block Limits VPD page (SBC-4 6.6.4) tells initiators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitLimits {
    /// MAXIMUM TRANSFER LENGTH in bytes; a longer READ, WRITE or VERIFY gets INVALID FIELD IN CDB. 32 MiB. At least one
    /// block holds anyway.
    pub max_transfer: u32,
    /// MAXIMUM COMPARE AND WRITE LENGTH in blocks, 0 to 255; 0 takes the command away. 16.
    pub max_compare_and_write: u8,
    /// MAXIMUM UNMAP LBA COUNT: the blocks of one UNMAP, over all its descriptors. 2^20 (512 MiB of 512-byte blocks).
    pub max_unmap_blocks: u32,
    /// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT, 1 to 4095. 256.
    pub max_unmap_descriptors: u16,
    /// MAXIMUM WRITE SAME LENGTH in blocks. 2^19 (256 MiB of 512-byte blocks): what a slow disk writes well within an
    /// initiator's time limit.
    pub max_write_same: u32,
}

impl Default for UnitLimits {
    fn default() -> Self {
        Self {
            max_transfer: 32 << 20,
            max_compare_and_write: 16,
            max_unmap_blocks: 1 << 20,
            max_unmap_descriptors: 256,
            max_write_same: 1 << 19,
        }
    }
}

/// Bits of the mode parameters that MODE SELECT may change, and their places in one byte here.
pub(crate) mod mode_bits {
    /// D_SENSE of the Control mode page.
    pub(crate) const D_SENSE: u8 = 1;
    /// SWP of the Control mode page.
    pub(crate) const SWP: u8 = 2;
}

/// A disk that sessions serve: a store, who it says it is, and its state that all its initiators share.
///
/// ```
/// use std::sync::Arc;
/// use target_core::lu::{Identity, LogicalUnit, LunMap};
/// # use backstore::{Backstore, Geometry, StoreError};
/// # struct Disk;
/// # #[async_trait::async_trait]
/// # impl Backstore for Disk {
/// #     fn geometry(&self) -> Geometry { Geometry::of_bytes(1 << 20) }
/// #     async fn read(&self, _: u64, _: &mut [u8]) -> Result<(), StoreError> { Ok(()) }
/// #     async fn write(&self, _: u64, _: &[u8]) -> Result<(), StoreError> { Ok(()) }
/// # }
/// let unit = LogicalUnit::new(Arc::new(Disk), Identity::from_seed("iqn.2026-01.org.example:disk,0"))?;
/// assert_eq!(unit.geometry().blocks, 2048);
/// let luns = LunMap::builder().insert(0, Arc::new(unit), false).build();
/// assert_eq!(luns.iter().count(), 1);
/// # Ok::<(), target_core::lu::GeometryError>(())
/// ```
pub struct LogicalUnit {
    store: Arc<dyn Backstore>,
    identity: Identity,
    limits: UnitLimits,
    attributes: UnitAttributes,
    abilities: Abilities,
    region: Option<Arc<Region>>,
    shape: Geometry,
    block_shift: u8,
    /// Number of blocks as initiators were told.
    blocks: AtomicU64,
    mode: AtomicU8,
    stopped: AtomicBool,
    /// Flushes that failed, where the store does not count them.
    failed_flushes: AtomicU64,
    attentions: attention::AttentionLog,
    gate: WriteGate,
    users: users::Users,
}

impl core::fmt::Debug for LogicalUnit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LogicalUnit")
            .field("identity", &self.identity)
            .field("geometry", &self.geometry())
            .finish_non_exhaustive()
    }
}

impl LogicalUnit {
    /// A logical unit over `store`, with the default [`UnitLimits`].
    ///
    /// # Errors
    /// [`GeometryError`] when the store's geometry is none that a disk can have.
    pub fn new(store: Arc<dyn Backstore>, identity: Identity) -> Result<Self, GeometryError> {
        let shape = store.geometry();
        let Geometry { block_size, blocks, .. } = shape;
        if !block_size.is_power_of_two() || !(512..=4096).contains(&block_size) {
            return Err(GeometryError::BlockSize(block_size));
        }
        if blocks == 0 || blocks.checked_mul(block_size.into()).is_none_or(|bytes| bytes > i64::MAX as u64) {
            return Err(GeometryError::Size { blocks, block_size });
        }
        let region = store.memory().cloned();
        if let Some(region) = &region
            && region.len() < shape.bytes()
        {
            return Err(GeometryError::Region { region: region.len(), blocks: shape.bytes() });
        }
        if let Some(region) = &region {
            region.set_block_size(block_size);
        }
        Ok(Self {
            abilities: store.abilities(),
            store,
            identity,
            limits: UnitLimits::default(),
            attributes: UnitAttributes::default(),
            region,
            shape,
            block_shift: block_size.trailing_zeros() as u8,
            blocks: AtomicU64::new(blocks),
            mode: AtomicU8::new(0),
            stopped: AtomicBool::new(false),
            failed_flushes: AtomicU64::new(0),
            attentions: attention::AttentionLog::new(UnitAttributes::default().known_nexuses),
            gate: WriteGate::new(),
            users: users::Users::default(),
        })
    }

    /// Replaces the limits.
    #[must_use]
    pub fn with_limits(mut self, limits: UnitLimits) -> Self {
        self.limits = UnitLimits {
            max_transfer: limits.max_transfer.max(self.shape.block_size),
            max_unmap_descriptors: limits.max_unmap_descriptors.clamp(1, 4095),
            max_unmap_blocks: limits.max_unmap_blocks.max(1),
            max_write_same: limits.max_write_same.max(1),
            ..limits
        };
        self
    }

    /// Replaces the switches. To be called before sessions see the unit, as it begins to remember them anew.
    #[must_use]
    pub fn with_attributes(mut self, attributes: UnitAttributes) -> Self {
        self.attributes = attributes;
        self.attentions = attention::AttentionLog::new(attributes.known_nexuses);
        self
    }

    /// Its switches.
    #[must_use]
    pub fn attributes(&self) -> &UnitAttributes {
        &self.attributes
    }

    /// OPTIMAL UNMAP GRANULARITY in blocks, as initiators are told it; 0 for none.
    #[must_use]
    pub fn unmap_granularity(&self) -> u32 {
        /// From here on QEMU keeps an allocation map; see [`UnitAttributes::unmap_granularity`].
        const MAPPED_BY_QEMU: u64 = 4096;
        let own = self.abilities.unmap_granularity;
        match self.attributes.unmap_granularity {
            _ if !self.abilities.unmap => 0,
            Some(told) => told,
            None if u64::from(own) << self.block_shift < MAPPED_BY_QEMU => own,
            None => 0,
        }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Backstore> {
        &self.store
    }

    /// Its names.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its limits.
    #[must_use]
    pub fn limits(&self) -> &UnitLimits {
        &self.limits
    }

    /// What the store can do, as it was when the logical unit was made.
    #[must_use]
    pub fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    /// Size and shape as initiators were told last; see [`refresh_geometry`](Self::refresh_geometry).
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry { blocks: self.blocks(), ..self.shape }
    }

    /// Asks the store for its size. When it has changed, every initiator gets CAPACITY DATA HAS CHANGED with its next
    /// command, and the new size holds. Commands that tell the size, and accesses past the end, ask by themselves. A
    /// changed block size is not taken over.
    pub fn refresh_geometry(&self) {
        let now = self.store.geometry();
        let mut blocks = if now.block_size == self.shape.block_size { now.blocks } else { return };
        if let Some(region) = &self.region {
            blocks = blocks.min(region.len() >> self.block_shift);
        }
        let blocks = blocks.clamp(1, i64::MAX as u64 >> self.block_shift);
        if self.blocks.swap(blocks, Ordering::AcqRel) != blocks {
            self.post_unit_attention(None, UnitAttention::CapacityChanged);
        }
    }

    /// Has every I_T nexus but `except` hear of `attention` once, with its next command.
    pub fn post_unit_attention(&self, except: Option<NexusId>, attention: UnitAttention) {
        self.attentions.post(except, attention);
    }

    /// What a logical unit reset does to the unit itself (SAM-5 6.3.3): mode parameters go back to their defaults, a
    /// stopped unit starts, and every I_T nexus hears of `cause`. Aborting the tasks is the business of the sessions.
    pub fn reset(&self, cause: UnitAttention) {
        self.mode.store(0, Ordering::Release);
        self.stopped.store(false, Ordering::Release);
        self.post_unit_attention(None, cause);
    }

    /// Whether a write is refused: by the store, or by SWP of the Control mode page.
    #[must_use]
    pub fn is_write_protected(&self) -> bool {
        self.abilities.read_only || self.mode() & mode_bits::SWP != 0
    }

    /// The format of sense data that D_SENSE of the Control mode page chooses.
    pub(crate) fn sense_format(&self) -> SenseFormat {
        if self.mode() & mode_bits::D_SENSE != 0 { SenseFormat::Descriptor } else { SenseFormat::Fixed }
    }

    #[inline]
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn block_shift(&self) -> u8 {
        self.block_shift
    }

    #[inline]
    pub(crate) fn region(&self) -> Option<&Arc<Region>> {
        self.region.as_ref()
    }

    pub(crate) fn max_transfer_blocks(&self) -> u32 {
        self.limits.max_transfer >> self.block_shift
    }

    #[inline]
    pub(crate) fn mode(&self) -> u8 {
        self.mode.load(Ordering::Acquire)
    }

    /// Sets the changeable mode parameters; all other initiators than `by` hear of a change.
    pub(crate) fn set_mode(&self, by: NexusId, mode: u8) {
        if self.mode.swap(mode, Ordering::AcqRel) != mode {
            self.post_unit_attention(Some(by), UnitAttention::ModeParametersChanged);
        }
    }

    #[inline]
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn set_stopped(&self, stopped: bool) {
        self.stopped.store(stopped, Ordering::Release);
    }

    #[inline]
    pub(crate) fn attentions(&self) -> &attention::AttentionLog {
        &self.attentions
    }

    /// Flushes of the store that failed so far.
    pub(crate) fn failed_flushes(&self) -> u64 {
        self.store.failed_flushes().unwrap_or_else(|| self.failed_flushes.load(Ordering::Acquire))
    }

    /// A flush of the store has ended: how many have failed so far.
    fn flush_ended(&self, failed: bool) -> u64 {
        let own = u64::from(failed);
        self.store.failed_flushes().unwrap_or_else(|| self.failed_flushes.fetch_add(own, Ordering::AcqRel) + own)
    }

    /// Whose sessions use it.
    pub(crate) fn users(&self) -> &users::Users {
        &self.users
    }

    #[inline]
    pub(crate) fn gate(&self) -> &WriteGate {
        &self.gate
    }
}
