//! The heap of the process.

/// Gives pages that the heap of the process keeps free back to the system. It looks at all of the heap, which takes
/// milliseconds where that is large: for a thread that has the time, when much has ended. Where the C library cannot do
/// it (other than glibc), nothing happens.
///
/// ```
/// iscsi_memory::trim_heap();
/// ```
pub fn trim_heap() {
    // SAFETY: glibc's own upkeep: it takes the locks of the heap itself, and no memory that is in use changes.
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    let _ = unsafe { libc::malloc_trim(0) };
}
