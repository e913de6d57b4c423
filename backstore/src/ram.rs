//! The RAM store: blocks in lazily allocated memory, with all three doors.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::task::Waker;

use async_trait::async_trait;
use iscsi_memory::Region;

use super::inline::{Immediate, InlineQueue};
use super::{Abilities, Backstore, Geometry, LbaStatus, StoreError, StoreQueue};

#[cfg(feature = "std")]
pub use builder::RamStoreBuilder;

/// Grain of allocation and of UNMAP in bytes.
const PAGE: u64 = 4096;

/// A disk in memory. Pages are allocated when first written, reads of what was never written allocate nothing, and
/// UNMAP gives whole pages back.
///
/// # How large
///
/// A store is thin: its size is a promise, its memory limit is what it may take. A write beyond the limit ends with
/// [`StoreError::NoSpace`], which initiators see as a full thin-provisioned disk, in place of the system killing the
/// process. The limit is by default what the machine can hold: its memory (or the control group's share, if that is
/// less) less one eighth. Several stores of one process share a limit by [`RamStoreBuilder::memory_budget`]; other
/// programs are not known of.
///
/// The size may exceed the memory up to 64 times: more than that is refused as a mistake, as is what the address space
/// cannot map. The bookkeeping takes one bit a page, so that even the largest store costs less than one five-hundredth
/// of the memory before the first write.
///
/// ```
/// use futures::executor::block_on;
/// use backstore::{Backstore, RamStore};
/// let store = RamStore::new(50 << 30)?;
/// block_on(store.write(100_000_000, &[7; 512])).unwrap();
/// assert_eq!(store.allocated(), 4096);
/// # Ok::<(), backstore::StoreOpenError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RamStore {
    region: Arc<Region>,
    geometry: Geometry,
}

impl RamStore {
    /// A store over memory of one's own: the region's whole blocks of 512 bytes.
    #[must_use]
    pub fn over(region: Arc<Region>) -> Self {
        let geometry = Self::shape(region.len(), 512);
        Self { region, geometry }
    }

    fn shape(bytes: u64, block_size: u32) -> Geometry {
        Geometry {
            block_size,
            blocks: bytes / u64::from(block_size),
            physical_exponent: (PAGE / u64::from(block_size)).trailing_zeros() as u8,
            optimal_transfer: 0,
        }
    }

    /// Bytes of memory taken by what has been written, a multiple of 4096.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.region.allocated()
    }

    fn offset(&self, lba: u64) -> u64 {
        lba * u64::from(self.geometry.block_size)
    }
}

impl Immediate for RamStore {
    fn read_now(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        self.region.read(self.offset(lba), data);
        Ok(())
    }

    fn write_now(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        let offset = self.offset(lba);
        self.region.take_and_write(offset, data).map_err(|_| StoreError::NoSpace)
    }

    fn unmap_now(&self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        self.region.discard(self.offset(lba), self.offset(blocks));
        Ok(())
    }

    fn lba_status_now(&self, lba: u64) -> LbaStatus {
        let (mapped, end) = self.region.extent(self.offset(lba));
        LbaStatus { blocks: (end / u64::from(self.geometry.block_size)).saturating_sub(lba).max(1), mapped }
    }
}

#[async_trait]
impl Backstore for RamStore {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            unmap: true,
            unmapped_reads_zero: true,
            unmap_granularity: (PAGE / u64::from(self.geometry.block_size)) as u32,
            solid_state: true,
            ..Abilities::default()
        }
    }

    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        self.read_now(lba, data)
    }

    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        self.write_now(lba, data)
    }

    async fn unmap(&self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        self.unmap_now(lba, blocks)
    }

    async fn lba_status(&self, lba: u64) -> Result<LbaStatus, StoreError> {
        Ok(self.lba_status_now(lba))
    }

    fn open_queue(self: Arc<Self>, _: Waker) -> Option<Box<dyn StoreQueue>> {
        Some(Box::new(InlineQueue::new(self)))
    }

    fn memory(&self) -> Option<&Arc<Region>> {
        Some(&self.region)
    }
}

#[cfg(feature = "std")]
mod builder {
    use std::fs;
    use std::sync::Arc;

    use iscsi_memory::{MemoryBudget, Region};

    use super::RamStore;
    use crate::StoreOpenError;

    /// How many times its memory a machine may promise in one store.
    const THIN_FACTOR: u64 = 64;

    /// Options of a [`RamStore`].
    ///
    /// ```
    /// use backstore::{Backstore, RamStore};
    /// let store = RamStore::builder(1 << 30).block_size(4096).memory_limit(64 << 20).open()?;
    /// assert_eq!(store.geometry().blocks, 1 << 18);
    /// # Ok::<(), backstore::StoreOpenError>(())
    /// ```
    #[derive(Debug, Clone)]
    #[must_use]
    pub struct RamStoreBuilder {
        bytes: u64,
        block_size: u32,
        memory_limit: Option<u64>,
        budget: Option<Arc<MemoryBudget>>,
    }

    impl RamStore {
        /// A store of `bytes` in blocks of 512 bytes, with the default memory limit.
        ///
        /// # Errors
        /// [`StoreOpenError`]: a size of nothing, with part of a block, or beyond what the machine can ever hold.
        pub fn new(bytes: u64) -> Result<Self, StoreOpenError> {
            Self::builder(bytes).open()
        }

        /// The default memory limit in bytes, see [`RamStore`]; `None` where the system does not say what it holds.
        #[must_use]
        pub fn default_memory_limit() -> Option<u64> {
            machine_memory().map(|memory| memory - memory / 8)
        }

        /// A store of `bytes` with options.
        pub fn builder(bytes: u64) -> RamStoreBuilder {
            RamStoreBuilder { bytes, block_size: 512, memory_limit: None, budget: None }
        }
    }

    impl RamStoreBuilder {
        /// Bytes of a block: a power of two from 512 to 4096. Default 512.
        pub fn block_size(mut self, bytes: u32) -> Self {
            self.block_size = bytes;
            self
        }

        /// Bytes of memory that the store may take. Default: what the machine can hold, see [`RamStore`].
        pub fn memory_limit(mut self, bytes: u64) -> Self {
            self.memory_limit = Some(bytes);
            self
        }

        /// Bytes of memory that the store may take together with the other stores of the budget, drawn as blocks are
        /// written. It takes the place of a [`memory_limit`](Self::memory_limit). Default: a budget of the store's own.
        pub fn memory_budget(mut self, budget: Arc<MemoryBudget>) -> Self {
            self.budget = Some(budget);
            self
        }

        /// Opens the store.
        ///
        /// # Errors
        /// See [`RamStore::new`]; and a block size that no disk has.
        pub fn open(self) -> Result<RamStore, StoreOpenError> {
            let Self { bytes, block_size, memory_limit, budget } = self;
            if !matches!(block_size, 512 | 1024 | 2048 | 4096) {
                return Err(StoreOpenError::BlockSize(block_size));
            }
            if bytes == 0 || !bytes.is_multiple_of(u64::from(block_size)) {
                return Err(StoreOpenError::UnevenSize { bytes, block_size });
            }
            let memory = machine_memory();
            if let Some(memory) = memory {
                let most = memory.saturating_mul(THIN_FACTOR);
                if bytes > most {
                    return Err(StoreOpenError::TooLarge { bytes, memory, most });
                }
            }
            let limit = memory_limit.or_else(RamStore::default_memory_limit).unwrap_or(u64::MAX);
            let budget = budget.unwrap_or_else(|| MemoryBudget::new(limit));
            let region = Region::mapped_within(bytes, &budget)
                .map_err(|source| StoreOpenError::AddressSpace { bytes, source })?;
            Ok(RamStore { region, geometry: RamStore::shape(bytes, block_size) })
        }
    }

    /// Bytes of memory that this process may ever have: the machine's, or its control group's if that is less. `None`
    /// where the system does not say.
    fn machine_memory() -> Option<u64> {
        let total = mem_total(&fs::read_to_string("/proc/meminfo").ok()?)?;
        Some(group_limit().map_or(total, |limit| limit.min(total)))
    }

    fn mem_total(meminfo: &str) -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    }

    /// The limit of the process's control group (version 2); `max` parses as none.
    fn group_limit() -> Option<u64> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
        fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).ok()?.trim().parse().ok()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn meminfo_is_understood() {
            assert_eq!(mem_total("MemTotal:       24543200 kB\nMemFree: 1 kB\n"), Some(24_543_200 << 10));
            assert_eq!(mem_total("nothing"), None);
            assert!(machine_memory().is_none_or(|bytes| bytes > 1 << 26));
        }
    }
}

#[cfg(all(test, feature = "std"))]
#[path = "ram_tests.rs"]
mod ram_tests;
