//! How much memory regions may take.

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::Ordering;

use portable_atomic::AtomicU64;

use crate::region::PAGE_SHIFT;

/// The region's limit of allocated bytes is reached: the write would need memory that it may not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory {
    /// The limit in bytes.
    pub limit: u64,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the store's memory limit of {} bytes is reached: unmap blocks, or give the store a higher limit",
            self.limit
        )
    }
}

impl core::error::Error for OutOfMemory {}

/// How many bytes regions may have allocated together, and how many they have: drawn as pages are first written, given
/// back as they are discarded and when a region ends. One is shared by all RAM stores of a process, or as their owner
/// likes.
///
/// ```
/// use iscsi_memory::{MemoryBudget, Region};
/// let budget = MemoryBudget::new(8192);
/// let (one, other) = (Region::mapped_within(1 << 30, &budget)?, Region::mapped_within(1 << 30, &budget)?);
/// one.reserve_for_write(0, 8192).unwrap();
/// assert!(other.reserve_for_write(0, 1).is_err());
/// one.discard(0, 4096);
/// other.reserve_for_write(0, 1).unwrap();
/// drop((one, other));
/// assert_eq!(budget.used(), 0);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct MemoryBudget {
    limit: u64,
    used_pages: AtomicU64,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used_pages: AtomicU64::new(0) })
    }

    /// Bytes that may be allocated at a time.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes allocated by all its regions, a multiple of 4096.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used_pages.load(Ordering::Relaxed) << PAGE_SHIFT
    }

    /// Takes one page.
    ///
    /// # Errors
    /// [`OutOfMemory`] when the limit would be passed; nothing is taken then.
    pub(crate) fn take_page(&self) -> Result<(), OutOfMemory> {
        let count = self.used_pages.fetch_add(1, Ordering::Relaxed);
        if (count + 1) << PAGE_SHIFT > self.limit {
            self.give_pages(1);
            return Err(OutOfMemory { limit: self.limit });
        }
        Ok(())
    }

    /// Takes one page, also beyond the limit.
    pub(crate) fn take_page_beyond(&self) {
        self.used_pages.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives pages back.
    pub(crate) fn give_pages(&self, pages: u64) {
        self.used_pages.fetch_sub(pages, Ordering::Relaxed);
    }
}
