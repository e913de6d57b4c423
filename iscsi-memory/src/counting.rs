//! A global allocator that counts, for tests that assert that a path allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting the allocations and reallocations of each thread.
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

    fn count() {
        // A thread's last frees and allocations may come when its locals are gone already: they are not counted.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    }
}

// SAFETY: every call is handed on to the system's allocator unchanged; counting touches no memory of the heap, since the counter is a `const` local
// without destructor.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is `System`'s too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: `ptr` came from `System` through `alloc`, and the caller keeps the contract of `GlobalAlloc::realloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` through `alloc` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}
