//! Exclusive, page-aligned buffers and the pool that recycles them.

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use crate::registration::register_by_all_means;
use crate::{Access, DevicePiece, DomainId, RegisterFailure, Registrar, Registration};

/// Alignment of a [`Buf`] in bytes, unless it is a [small](Buf::small) one: what `O_DIRECT` files and registered memory ask for.
const ALIGNMENT: usize = 4096;

/// Buffers of so many bytes or more are mappings of their own: what is freed is given back to the system at once,
/// however small buffers lie around it, and what is not written takes no memory.
#[cfg(all(feature = "std", unix, not(miri)))]
const MAPPED: usize = 64 << 10;

#[cfg(all(feature = "std", unix, not(miri)))]
const fn is_mapped(capacity: usize) -> bool {
    capacity >= MAPPED
}

#[cfg(not(all(feature = "std", unix, not(miri))))]
const fn is_mapped(_capacity: usize) -> bool {
    false
}

/// A mapping of `len` zero bytes; none when the system has no more.
#[cfg(all(feature = "std", unix, not(miri)))]
fn map(len: usize) -> Option<NonNull<u8>> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
    let ptr = unsafe { mmap_anonymous(core::ptr::null_mut(), len, access, MapFlags::PRIVATE) }.ok()?;
    NonNull::new(ptr.cast())
}

#[cfg(all(feature = "std", unix, not(miri)))]
fn unmap(ptr: NonNull<u8>, len: usize) {
    // SAFETY: a mapping of ours with this very length, which nobody uses any more. If the system refuses, it stays,
    // unused.
    let _ = unsafe { rustix::mm::munmap(ptr.as_ptr().cast(), len) };
}

#[cfg(not(all(feature = "std", unix, not(miri))))]
fn map(_len: usize) -> Option<NonNull<u8>> {
    None
}

#[cfg(not(all(feature = "std", unix, not(miri))))]
fn unmap(_ptr: NonNull<u8>, _len: usize) {}

/// An exclusive buffer of fixed capacity that moves between layers: from the pool into a store, from there into a
/// mover, and back.
///
/// It dereferences to its first `len()` bytes, or to a [window](Self::set_window) of it. It carries the registration
/// that an RDMA device asked for when it first met the buffer; the registration goes where the buffer goes, and ends
/// when the buffer is freed or meets another device.
///
/// ```
/// use iscsi_memory::Buf;
/// let mut buf = Buf::zeroed(512);
/// buf[0] = 7;
/// assert_eq!(buf.len(), 512);
/// assert_eq!(buf.as_ptr() as usize % 4096, 0);
/// ```
pub struct Buf {
    ptr: NonNull<u8>,
    capacity: usize,
    start: usize,
    len: usize,
    /// It has no alignment.
    small: bool,
    registration: Option<Arc<dyn Registration>>,
}

// SAFETY: a Buf owns its allocation exclusively, like a Vec<u8>.
unsafe impl Send for Buf {}
// SAFETY: shared access hands out `&[u8]` only.
unsafe impl Sync for Buf {}

impl Buf {
    /// A buffer of `len` zero bytes. A length of zero allocates nothing.
    ///
    /// # Panics
    /// If `len` is over `isize::MAX - 4096`. Aborts through the global handler if memory runs out.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self { ptr: NonNull::dangling(), capacity: 0, start: 0, len: 0, small: false, registration: None };
        }
        let layout = Self::layout(len, false);
        let ptr = if is_mapped(len) {
            map(len)
        } else {
            // SAFETY: the layout's size is not zero.
            NonNull::new(unsafe { alloc_zeroed(layout) })
        };
        let Some(ptr) = ptr else { handle_alloc_error(layout) };
        Self { ptr, capacity: len, start: 0, len, small: false, registration: None }
    }

    /// A buffer of `len` zero bytes without alignment, which takes no byte more than it has: for what many have a little
    /// of, and no file gets. A pool does not keep it.
    ///
    /// ```
    /// use iscsi_memory::{Buf, BufPool};
    /// let buf = Buf::small(4096);
    /// assert_eq!((buf.len(), buf[4095]), (4096, 0));
    /// let mut pool = BufPool::new(1 << 20);
    /// pool.give(buf);
    /// assert_eq!(pool.idle(), 0);
    /// ```
    ///
    /// # Panics
    /// If `len` is over `isize::MAX`. Aborts through the global handler if memory runs out.
    #[must_use]
    pub fn small(len: usize) -> Self {
        if len == 0 || is_mapped(len) {
            return Self::zeroed(len);
        }
        let layout = Self::layout(len, true);
        // SAFETY: the layout's size is not zero.
        let Some(ptr) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Self { ptr, capacity: len, start: 0, len, small: true, registration: None }
    }

    fn layout(capacity: usize, small: bool) -> Layout {
        Layout::from_size_align(capacity, if small { 1 } else { ALIGNMENT })
            .expect("a buffer is smaller than the address space")
    }

    /// Bytes that the buffer can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the length in bytes, from the first byte on; the content up to the capacity stays what it was.
    ///
    /// # Panics
    /// If `len` is above the capacity.
    pub fn set_len(&mut self, len: usize) {
        self.set_window(0, len);
    }

    /// Has the buffer dereference to bytes `start..start + len` of its capacity, so that a long one can be worked on
    /// piece by piece; the content stays what it was. Whoever gives it on sets it back by [`set_len`](Self::set_len).
    ///
    /// ```
    /// use iscsi_memory::Buf;
    /// let mut buf = Buf::zeroed(1024);
    /// buf.set_window(512, 512);
    /// buf.fill(7);
    /// buf.set_len(1024);
    /// assert_eq!((buf[511], buf[512]), (0, 7));
    /// ```
    ///
    /// # Panics
    /// If the bytes lie beyond the capacity.
    pub fn set_window(&mut self, start: usize, len: usize) {
        let end = start.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.capacity),
            "bytes {start}+{len} are above the buffer's capacity of {} bytes",
            self.capacity
        );
        (self.start, self.len) = (start, len);
    }

    #[cfg(feature = "std")]
    pub(crate) fn as_raw(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Bytes `start..start + len` as a work request of the domain names them. The first call for a domain registers the
    /// whole buffer, and gives back what it had from another.
    ///
    /// # Errors
    /// When a limit is reached or the device refuses.
    ///
    /// # Panics
    /// If the bytes are none or lie outside the buffer.
    pub fn device_piece(
        &mut self,
        registrar: &dyn Registrar,
        start: usize,
        len: usize,
    ) -> Result<DevicePiece, RegisterFailure> {
        assert!(
            len != 0 && start.checked_add(len).is_some_and(|end| end <= self.capacity),
            "a work request names bytes of its buffer"
        );
        let key = match &self.registration {
            Some(registration) if registration.domain() == registrar.domain() => registration.local_key(),
            _ => self.register(registrar)?,
        };
        Ok(DevicePiece { address: (self.ptr.as_ptr().expose_provenance() + start) as u64, len, key })
    }

    /// Whether it is registered with a domain.
    #[must_use]
    pub fn is_registered(&self, domain: DomainId) -> bool {
        self.registration.as_ref().is_some_and(|registration| registration.domain() == domain)
    }

    #[cold]
    fn register(&mut self, registrar: &dyn Registrar) -> Result<u32, RegisterFailure> {
        if let Some(old) = &self.registration
            && !old.release()
        {
            // The slot is taken for good; the buffer then is leaked when it is dropped.
            return Err(RegisterFailure::Device(0));
        }
        self.registration = None;
        // SAFETY: `drop` frees the memory only after the registration that is stored here has ended, and until then it
        // stays where it is.
        let registration =
            unsafe { register_by_all_means(registrar, self.ptr.as_ptr(), self.capacity, Access::Local) }?;
        let key = registration.local_key();
        self.registration = Some(registration);
        Ok(key)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if let Some(registration) = &self.registration
            && !registration.release()
        {
            // A device may still write there: better lost than given to somebody else.
            return;
        }
        if is_mapped(self.capacity) {
            unmap(self.ptr, self.capacity);
        } else if self.capacity != 0 {
            // SAFETY: allocated in `zeroed` or `small` with this very layout, and owned by us alone.
            unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.capacity, self.small)) }
        }
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start + len <= capacity` bytes are allocated, and were zero at first.
        unsafe { core::slice::from_raw_parts(self.ptr.as_ptr().add(self.start), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.as_ptr().add(self.start), self.len) }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} of {} bytes)", self.len, self.capacity)
    }
}

/// Smallest size class, as a power of two: 4 KiB.
const SMALLEST: u32 = 12;
/// Number of size classes: 4 KiB to 16 MiB.
const CLASSES: usize = 13;

/// Recycles [`Buf`]s by size class (powers of two from 4 KiB to 16 MiB). One pool belongs to one worker thread.
///
/// Larger buffers are allocated and freed each time. The pool keeps at most `limit` idle bytes; what comes back beyond
/// it is freed.
///
/// ```
/// use iscsi_memory::BufPool;
/// let mut pool = BufPool::new(1 << 20);
/// let buf = pool.take(512);
/// let first = buf.as_ptr();
/// pool.give(buf);
/// assert_eq!(pool.take(4096).as_ptr(), first);
/// ```
#[derive(Debug)]
pub struct BufPool {
    classes: [Vec<Buf>; CLASSES],
    idle: usize,
    limit: usize,
}

impl BufPool {
    /// An empty pool that keeps at most `limit` idle bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { classes: Default::default(), idle: 0, limit }
    }

    fn class(len: usize) -> Option<usize> {
        let class = len.max(1).next_power_of_two().trailing_zeros().saturating_sub(SMALLEST) as usize;
        (class < CLASSES).then_some(class)
    }

    /// Bytes that a buffer of `len` bytes takes.
    #[must_use]
    pub fn capacity_for(len: usize) -> usize {
        Self::class(len).map_or(len, |class| 1 << (class as u32 + SMALLEST))
    }

    /// A buffer of `len` bytes. Its content is whatever its last user left: the taker writes before it reads.
    #[must_use]
    pub fn take(&mut self, len: usize) -> Buf {
        let Some(class) = Self::class(len) else { return Buf::zeroed(len) };
        let mut buf = match self.classes[class].pop() {
            Some(buf) => {
                self.idle -= buf.capacity();
                buf
            }
            None => Buf::zeroed(1 << (class as u32 + SMALLEST)),
        };
        buf.set_len(len);
        buf
    }

    /// Gives a buffer back. Buffers that did not come from a pool are accepted and freed.
    pub fn give(&mut self, buf: Buf) {
        let capacity = buf.capacity();
        if let Some(class) = Self::class(capacity)
            && !buf.small
            && capacity == 1 << (class as u32 + SMALLEST)
            && self.idle + capacity <= self.limit
        {
            self.idle += capacity;
            self.classes[class].push(buf);
        }
    }

    /// Frees all that lies idle.
    pub fn clear(&mut self) {
        self.classes = Default::default();
        self.idle = 0;
    }

    /// Bytes that lie idle in the pool.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle
    }
}
