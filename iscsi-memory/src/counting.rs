//! A global allocator that counts, for tests that assert that a path allocates nothing, or how much memory something
//! takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator, counting the allocations and reallocations of each thread, and the bytes that it has.
///
/// ```
/// use iscsi_memory::CountingAllocator;
///
/// #[global_allocator]
/// static ALLOCATOR: CountingAllocator = CountingAllocator;
///
/// let before = CountingAllocator::allocations();
/// let boxed = Box::new(1);
/// assert_eq!(CountingAllocator::allocations(), before + 1);
/// drop(boxed);
/// assert_eq!(CountingAllocator::allocations(), before + 1);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct CountingAllocator;

impl CountingAllocator {
    /// Allocations and reallocations of this thread so far.
    #[must_use]
    pub fn allocations() -> u64 {
        ALLOCATIONS.get()
    }

    /// Bytes that this thread allocated and has not freed. What one thread allocates and another frees counts as a
    /// negative number there.
    #[must_use]
    pub fn bytes() -> i64 {
        BYTES.get()
    }

    fn count(more: usize, less: usize) {
        // A thread's last frees and allocations may come when its locals are gone already: they are not counted.
        if more > 0 {
            let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        }
        let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + more as i64 - less as i64));
    }
}

// SAFETY: every call is handed on to the system's allocator unchanged; counting touches no memory of the heap, since
// the counter is a `const` local without destructor.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is `System`'s too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 0);
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        Self::count(new_size, layout.size());
        // SAFETY: `ptr` came from `System` through `alloc`, and the caller keeps the contract of
        // `GlobalAlloc::realloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        Self::count(0, layout.size());
        // SAFETY: `ptr` came from `System` through `alloc` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}
