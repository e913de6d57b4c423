//! A store's own memory, lent to the wire.

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use portable_atomic::AtomicU64;

use crate::blocks::{self, Blocks, PIECE};
#[cfg(feature = "std")]
use crate::chunks::{Chunk, Chunks};
use crate::{MemoryBudget, OutOfMemory, RegionSlice};

/// Bytes of one page, the grain of allocation and of [`Region::discard`].
pub(crate) const PAGE: u64 = 4096;
pub(crate) const PAGE_SHIFT: u32 = 12;
/// Bytes that [`Region::extent`] looks at in one call: reading the marks of so many takes a fraction of a millisecond.
const EXTENT: u64 = 64 << 30;

/// Bytes of a logical block, unless more is said.
const SMALLEST_BLOCK: u32 = 512;
/// Bytes that are discarded at a time: others wait for that long.
pub(crate) const DISCARD: u64 = 1 << 20;

/// What `heap` allocates for `len` bytes: at least one, at page alignment.
fn heap_layout(len: usize) -> Layout {
    Layout::from_size_align(len.max(1), PAGE as usize).expect("a region is smaller than the address space")
}

/// Copies bytes between a region and private memory.
///
/// # Safety
/// As for [`core::ptr::copy_nonoverlapping`].
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(feature = "simulated-threads")]
    if crate::turns::time().is_some() {
        // Other threads see a part of a copy done: here the part ends in the midst of a block.
        let part = len.min(len / 1024 * 512 + 256);
        // SAFETY: both parts are within what the caller names.
        unsafe {
            core::ptr::copy_nonoverlapping(from, to, part);
            crate::turns::point();
            return core::ptr::copy_nonoverlapping(from.add(part), to.add(part), len - part);
        }
    }
    // SAFETY: the caller's.
    unsafe { core::ptr::copy_nonoverlapping(from, to, len) }
}

pub(crate) enum Backing {
    Heap,
    #[cfg(feature = "std")]
    Mapped,
}

/// A long-lived range of memory that a store lends to movers and to the kernel.
///
/// Reads and writes copy through raw pointers and never form a Rust reference to the memory, because peers on several
/// threads, the kernel and RDMA devices access it at the same time.
///
/// # Logical blocks
///
/// Every logical block is old or new, never half of both: to [`read`](Self::read), to what is
/// [held](crate::SendList::hold) while it is sent, and between writers, whichever of [`write`](Self::write) and
/// [`discard`](Self::discard) they use, on any thread. A block is as large as [`block_size`](Self::block_size) says,
/// and begins at a multiple of it. Several blocks are not one step: SCSI promises nothing about commands that overlap
/// in time (SBC-4 4.6). [`ReceiveSlice::Blocks`](crate::ReceiveSlice::Blocks) has the kernel receive by this rule; RDMA
/// devices, and the kernel where it receives into [`ReceiveSlice::Lent`](crate::ReceiveSlice::Lent), do not keep it.
///
/// A thread that writes waits until readers of the same 64 KiB have sent or copied them, and one that reads until they
/// are written: for one copy in memory, or one system call.
///
/// # Pages
///
/// Pages are allocated when first written; a bitmap knows which. Reading a page never written costs no memory. Pages
/// are those of 4 KiB: huge pages would take memory that nobody wrote and that [`allocated`](Self::allocated) and the
/// limit do not see.
///
/// A [`discard`](Self::discard) between [`reserve_for_write`](Self::reserve_for_write) and the write itself takes the
/// reservation away. `write` then takes the page again, beyond the limit if need be. Who lets the kernel or a device
/// write, which may take long, reserves again when the data are in place: until then the page reads as zero.
///
/// # RDMA devices
///
/// A device registers the region in chunks of 1 MiB, each when it is first used with a protection domain and at least
/// seven eighths of its pages have been written. What is not registered is copied
/// ([`Payload::device_piece`](crate::Payload::device_piece)), and what was never written is sent from
/// [zeroes](crate::Registrar::zeroes) that the device keeps: reading pins nothing that nobody wrote. Registered chunks
/// count in the [`RegistrationBudget`](crate::RegistrationBudget).
///
/// A device keeps to the pages that it has seen, so that no page of a registered chunk goes back to the machine. Where
/// a [`discard`](Self::discard) leaves less than three quarters of a chunk written, its registrations end, and all of
/// it goes back that is not written; while a work request uses the chunk it is zeroed by hand, and goes back after that
/// ([`settle`](Self::settle)). What devices have pinned is thus never more than four thirds of what is written.
///
/// # Soundness
///
/// The memory is one allocation (or mapping) that lives as long as the region. Its pointer leaves this crate only
/// inside the `iovec`s of the `socket` module, whose lists hold the slice, and with it the region, until the call
/// returns, and in registrations, which end before the memory is freed; where one cannot be ended, the memory is not
/// freed. No reference to the memory is ever formed, so that writes by others while it is read break no rule of Rust's
/// references. Copies that race are a data race by the letter of the memory model, as every access to memory that is
/// shared with a device or another process is; each is one `memcpy` between the shared memory and private memory, and
/// no decision depends on the bytes.
///
/// ```
/// use iscsi_memory::Region;
/// let region = Region::heap(1 << 16);
/// region.reserve_for_write(4096, 512).unwrap();
/// region.write(4096, &[1; 512]);
/// let mut back = [0; 512];
/// region.read(4096, &mut back);
/// assert_eq!(back, [1; 512]);
/// assert_eq!(region.allocated(), 4096);
/// region.discard(4096, 4096);
/// assert_eq!(region.allocated(), 0);
/// ```
pub struct Region {
    ptr: NonNull<u8>,
    len: u64,
    pub(crate) backing: Backing,
    /// One bit a page: set when the page was written.
    pub(crate) written: Vec<AtomicU64>,
    allocated_pages: AtomicU64,
    budget: Arc<MemoryBudget>,
    blocks: Blocks,
    /// Bytes of a logical block.
    block_size: AtomicU32,
    #[cfg(feature = "std")]
    pub(crate) chunks: Chunks,
}

// SAFETY: the memory is owned by the Region until it drops, and is only ever accessed through raw-pointer copies.
unsafe impl Send for Region {}
// SAFETY: as for Send; concurrent overlapping copies are documented above to give unspecified bytes.
unsafe impl Sync for Region {}

impl Region {
    /// A region of `len` zero bytes on the heap, aligned to pages, for small stores and machines without `mmap`. Aborts
    /// through the global handler if memory runs out.
    ///
    /// # Panics
    /// If `len` is over `isize::MAX - 4096`.
    #[must_use]
    pub fn heap(len: usize) -> Arc<Self> {
        let layout = heap_layout(len);
        // SAFETY: the layout's size is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        Arc::new(Self::over(ptr, len as u64, Backing::Heap, MemoryBudget::new(u64::MAX)))
    }

    /// A region of `len` bytes of lazily allocated anonymous memory, of which at most `limit` bytes may be allocated at
    /// a time.
    ///
    /// # Errors
    /// What `mmap` says when the address space cannot hold `len` bytes.
    #[cfg(feature = "std")]
    pub fn mapped(len: u64, limit: u64) -> std::io::Result<Arc<Self>> {
        Self::mapped_within(len, &MemoryBudget::new(limit))
    }

    /// As [`mapped`](Self::mapped), with a limit that other regions share.
    ///
    /// # Errors
    /// As [`mapped`](Self::mapped).
    #[cfg(feature = "std")]
    pub fn mapped_within(len: u64, budget: &Arc<MemoryBudget>) -> std::io::Result<Arc<Self>> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        // No allocation is larger: pointers into it are made by adding an offset.
        let size = isize::try_from(len).map_err(|_| std::io::Error::from(std::io::ErrorKind::OutOfMemory))? as usize;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
        let ptr = unsafe {
            mmap_anonymous(
                core::ptr::null_mut(),
                size.max(1),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        // Where huge pages are always on, a first write would take 2 MiB for the 4 KiB that are counted. A kernel
        // without them refuses, and needs it not. SAFETY: the advice changes no byte of our own fresh mapping.
        let _ = unsafe { rustix::mm::madvise(ptr, size.max(1), rustix::mm::Advice::LinuxNoHugepage) };
        let ptr = NonNull::new(ptr.cast::<u8>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Arc::new(Self::over(ptr, len, Backing::Mapped, budget.clone())))
    }

    fn over(ptr: NonNull<u8>, len: u64, backing: Backing, budget: Arc<MemoryBudget>) -> Self {
        let words = len.div_ceil(PAGE).div_ceil(64) as usize;
        // `AtomicU64` has no cheap `vec![]`: collecting zeroes is what allocates them; 50 GiB of region is 1.6 MiB
        // here.
        let written = core::iter::repeat_with(|| AtomicU64::new(0)).take(words).collect();
        Self {
            ptr,
            len,
            backing,
            written,
            allocated_pages: AtomicU64::new(0),
            budget,
            blocks: Blocks::new(),
            block_size: AtomicU32::new(SMALLEST_BLOCK),
            #[cfg(feature = "std")]
            chunks: Chunks::default(),
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the region has no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes allocated by writes, a multiple of 4096.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.allocated_pages.load(Ordering::Relaxed) << PAGE_SHIFT
    }

    /// Most bytes that may be allocated at a time, by all regions of its budget.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.budget.limit()
    }

    /// Bytes of a logical block: what is always read and written as one.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size.load(Ordering::Relaxed) as usize
    }

    /// Tells that the region holds logical blocks of `bytes`, a power of two from 512 to 4096. Where several are told,
    /// the largest counts; 512 by default.
    ///
    /// # Panics
    /// If it is none of these.
    pub fn set_block_size(&self, bytes: u32) {
        assert!(bytes.is_power_of_two() && u64::from(bytes) <= PAGE && bytes >= SMALLEST_BLOCK, "a disk's block size");
        self.block_size.fetch_max(bytes, Ordering::Relaxed);
    }

    fn check(&self, offset: u64, len: u64) {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "bytes {offset}+{len} are outside a region of {} bytes",
            self.len
        );
    }

    /// The address of a byte. The caller has checked that it is inside the region.
    pub(crate) fn at(&self, offset: u64) -> *mut u8 {
        // SAFETY: every caller has checked that `offset` is inside the region's one allocation.
        unsafe { self.ptr.as_ptr().add(offset as usize) }
    }

    fn bit(&self, page: u64) -> (&AtomicU64, u64) {
        (&self.written[(page / 64) as usize], 1 << (page % 64))
    }

    fn is_written(&self, page: u64) -> bool {
        let (word, bit) = self.bit(page);
        word.load(Ordering::Relaxed) & bit != 0
    }

    /// Copies bytes out. Pages never written read as zero. Each logical block is as one write has left it.
    ///
    /// # Panics
    /// If the range is outside the region.
    #[inline]
    pub fn read(&self, offset: u64, to: &mut [u8]) {
        self.check(offset, to.len() as u64);
        let in_page = offset % PAGE + to.len() as u64 <= PAGE;
        if in_page && !to.is_empty() {
            self.blocks.read(offset, || self.copy_page(offset, to));
        } else {
            self.read_pieces(offset, to);
        }
    }

    /// [`read`](Self::read) across pages. The range is checked.
    fn read_pieces(&self, mut offset: u64, to: &mut [u8]) {
        let mut rest = to;
        while !rest.is_empty() {
            let n = (PIECE - offset % PIECE).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at_mut(n);
            self.blocks.read(offset, || {
                let mut at = offset;
                let mut pages = &mut *now;
                while !pages.is_empty() {
                    let n = (PAGE - at % PAGE).min(pages.len() as u64) as usize;
                    let (page, later) = pages.split_at_mut(n);
                    self.copy_page(at, page);
                    at += n as u64;
                    pages = later;
                }
            });
            offset += n as u64;
            rest = later;
        }
    }

    /// Copies out bytes of one page, which the caller has checked.
    #[inline]
    fn copy_page(&self, offset: u64, to: &mut [u8]) {
        if self.is_written(offset >> PAGE_SHIFT) {
            // SAFETY: the caller has checked that the source is inside the region; the destination is private memory.
            unsafe { copy(self.at(offset), to.as_mut_ptr(), to.len()) }
        } else {
            to.fill(0);
        }
    }

    /// Keeps writers out of the pieces of a range, for whoever cannot copy again what he has read: as many of its first
    /// bytes as no writer has, at most `len`. `held` has a bit for each stripe that is taken.
    pub(crate) fn hold(&self, offset: u64, len: usize, held: &mut u64) -> usize {
        let end = offset + len as u64;
        let mut at = offset;
        while at < end {
            let stripe = blocks::stripe(at);
            if *held & 1 << stripe == 0 {
                if !self.blocks.try_hold(stripe) {
                    break;
                }
                *held |= 1 << stripe;
            }
            at = ((at / PIECE + 1) * PIECE).min(end);
        }
        (at - offset) as usize
    }

    /// Lets go what [`hold`](Self::hold) took.
    pub(crate) fn release_held(&self, held: u64) {
        self.blocks.release(held);
    }

    /// Takes the pages of a range into the allocation count before they are written by [`write`](Self::write) or by the
    /// kernel.
    ///
    /// # Errors
    /// [`OutOfMemory`] when the limit would be passed; pages already taken stay taken, the data are untouched.
    ///
    /// # Panics
    /// If the range is outside the region.
    pub fn reserve_for_write(&self, offset: u64, len: u64) -> Result<(), OutOfMemory> {
        self.check(offset, len);
        if len == 0 {
            return Ok(());
        }
        for page in offset >> PAGE_SHIFT..=(offset + len - 1) >> PAGE_SHIFT {
            if !self.is_written(page) {
                self.take_page(page, || self.budget.take_page())?;
            }
        }
        Ok(())
    }

    /// Enters a page as written, if `may` allows it.
    fn take_page(&self, page: u64, may: impl FnOnce() -> Result<(), OutOfMemory>) -> Result<(), OutOfMemory> {
        // `forget` gives back pages that nobody has taken: not while one is being taken.
        #[cfg(feature = "std")]
        let _chunks = self.chunks.read();
        may()?;
        self.allocated_pages.fetch_add(1, Ordering::Relaxed);
        let (word, bit) = self.bit(page);
        if word.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            self.allocated_pages.fetch_sub(1, Ordering::Relaxed);
            self.budget.give_pages(1);
        }
        Ok(())
    }

    /// Has `len` bytes filled that nobody else reads or writes meanwhile: the first from `begun`, the others by `fill`,
    /// which waits for nobody. They lie in one MiB of the region, and have been taken with
    /// [`reserve_for_write`](Self::reserve_for_write).
    ///
    /// # Panics
    /// If the range is outside the region, or shorter than `begun`.
    pub(crate) fn fill_alone<T>(
        &self,
        offset: u64,
        len: usize,
        begun: &[u8],
        fill: impl FnOnce(*mut u8, usize) -> T,
    ) -> T {
        self.check(offset, len as u64);
        let rest = len.checked_sub(begun.len()).expect("what has come is a part of it");
        let end = offset + len as u64;
        assert!(len > 0 && offset / DISCARD == (end - 1) / DISCARD, "bytes of one MiB are filled at a time");
        // In the order of their stripes, as `discard` has it.
        let mut pieces = [const { None }; (DISCARD / PIECE) as usize];
        for (piece, place) in (offset / PIECE..end.div_ceil(PIECE)).zip(&mut pieces) {
            *place = Some(self.blocks.write(piece * PIECE));
        }
        self.enter_pages(offset, len as u64);
        // SAFETY: `check` holds the destination inside the region, and `begun` is no longer than it; the source is
        // private memory.
        unsafe { core::ptr::copy_nonoverlapping(begun.as_ptr(), self.at(offset), begun.len()) }
        fill(self.at(offset + begun.len() as u64), rest)
    }

    /// Pages that are about to be written are entered as written.
    fn enter_pages(&self, offset: u64, len: u64) {
        for page in offset >> PAGE_SHIFT..=(offset + len - 1) >> PAGE_SHIFT {
            if !self.is_written(page) {
                self.take_page_again(page);
            }
        }
    }

    /// Copies bytes in. The range has been taken with [`reserve_for_write`](Self::reserve_for_write) before.
    ///
    /// # Panics
    /// If the range is outside the region.
    pub fn write(&self, offset: u64, from: &[u8]) {
        self.check(offset, from.len() as u64);
        let (mut at, mut rest) = (offset, from);
        while !rest.is_empty() {
            let (now, later) = rest.split_at((PIECE - at % PIECE).min(rest.len() as u64) as usize);
            let _alone = self.blocks.write(at);
            self.enter_pages(at, now.len() as u64);
            // SAFETY: `check` holds the destination inside the region; the source is private memory.
            unsafe { copy(now.as_ptr(), self.at(at), now.len()) }
            at += now.len() as u64;
            rest = later;
        }
    }

    /// [`reserve_for_write`](Self::reserve_for_write) and [`write`](Self::write) in one, for data that are at hand.
    ///
    /// ```
    /// use iscsi_memory::Region;
    /// let region = Region::heap(8192);
    /// region.take_and_write(512, &[1; 512]).unwrap();
    /// assert_eq!(region.allocated(), 4096);
    /// ```
    ///
    /// # Errors
    /// [`OutOfMemory`] when the limit would be passed: nothing is written then.
    ///
    /// # Panics
    /// If the range is outside the region.
    #[inline]
    pub fn take_and_write(&self, offset: u64, from: &[u8]) -> Result<(), OutOfMemory> {
        self.check(offset, from.len() as u64);
        let in_page = offset % PAGE + from.len() as u64 <= PAGE;
        if in_page && !from.is_empty() {
            let _alone = self.blocks.write(offset);
            if self.is_written(offset >> PAGE_SHIFT) {
                // SAFETY: `check` holds the destination inside the region; the source is private memory.
                unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), self.at(offset), from.len()) }
                return Ok(());
            }
        }
        self.take_then_write(offset, from)
    }

    #[inline(never)]
    fn take_then_write(&self, offset: u64, from: &[u8]) -> Result<(), OutOfMemory> {
        self.reserve_for_write(offset, from.len() as u64)?;
        self.write(offset, from);
        Ok(())
    }

    /// A page that was taken for a write has been discarded before it: left so, it would read as zero, and as what is
    /// written now when it is next taken.
    #[cold]
    fn take_page_again(&self, page: u64) {
        let _ = self.take_page(page, || {
            self.budget.take_page_beyond();
            Ok(())
        });
    }

    /// Makes a range read as zero and gives its whole pages back to the machine. What an RDMA device has registered may
    /// go later: see [`Region`].
    ///
    /// # Panics
    /// If the range is outside the region.
    pub fn discard(&self, offset: u64, len: u64) {
        self.check(offset, len);
        let mut at = offset;
        while at < offset + len {
            let end = ((at / DISCARD + 1) * DISCARD).min(offset + len);
            // In the order of their stripes, as everybody takes several: two who do so cannot block each other.
            let mut pieces = [const { None }; (DISCARD / PIECE) as usize];
            for (piece, place) in (at / PIECE..end.div_ceil(PIECE)).zip(&mut pieces) {
                *place = Some(self.blocks.write(piece * PIECE));
            }
            let first = at.next_multiple_of(PAGE).min(end);
            let last = (end / PAGE * PAGE).max(first);
            self.zero(at..first);
            self.release(first..last);
            self.zero(last..end);
            at = end;
        }
    }

    fn zero(&self, range: Range<u64>) {
        if range.is_empty() || !self.is_written(range.start >> PAGE_SHIFT) {
            return;
        }
        // SAFETY: `discard` has checked the range; it lies within one page.
        unsafe { core::ptr::write_bytes(self.at(range.start), 0, (range.end - range.start) as usize) }
    }

    fn release(&self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut given = 0;
        for page in range.start >> PAGE_SHIFT..range.end >> PAGE_SHIFT {
            let (word, bit) = self.bit(page);
            if word.load(Ordering::Relaxed) & bit != 0 && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0 {
                given += 1;
            }
        }
        self.allocated_pages.fetch_sub(given, Ordering::Relaxed);
        self.budget.give_pages(given);
        match self.backing {
            // SAFETY: checked range; heap pages stay ours and are zeroed.
            Backing::Heap => unsafe {
                core::ptr::write_bytes(self.at(range.start), 0, (range.end - range.start) as usize);
            },
            #[cfg(feature = "std")]
            Backing::Mapped => self.release_mapped(range),
        }
    }

    /// How far from `offset` on all bytes are alike allocated or not: whether they are allocated, and the end of that
    /// run, or of its first 64 GiB, which is as far as one call looks.
    ///
    /// # Panics
    /// If `offset` is not inside the region.
    #[must_use]
    pub fn extent(&self, offset: u64) -> (bool, u64) {
        self.extent_within(offset, offset.saturating_add(EXTENT))
    }

    /// [`extent`](Self::extent) that need not look further than `end`.
    pub(crate) fn extent_within(&self, offset: u64, end: u64) -> (bool, u64) {
        self.check(offset, 1);
        let pages = end.min(self.len).div_ceil(PAGE);
        let mut page = offset >> PAGE_SHIFT;
        let state = self.is_written(page);
        while page < pages {
            let whole = if state { u64::MAX } else { 0 };
            if page.is_multiple_of(64) && self.written[(page / 64) as usize].load(Ordering::Relaxed) == whole {
                page += 64;
            } else if self.is_written(page) == state {
                page += 1;
            } else {
                break;
            }
        }
        (state, (page.min(pages) << PAGE_SHIFT).min(self.len))
    }

    /// A part of the region that keeps it alive.
    ///
    /// # Panics
    /// If the range is outside the region.
    #[must_use]
    pub fn slice(self: &Arc<Self>, offset: u64, len: usize) -> RegionSlice {
        self.check(offset, len as u64);
        RegionSlice::new(self.clone(), offset, len)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        #[cfg(feature = "std")]
        {
            let table = self.chunks.write();
            // Each one is asked, also after one has refused.
            let stuck = |chunk: &Chunk| chunk.held.iter().filter(|held| !held.release()).count() + chunk.pins;
            if table.iter().map(|(_, chunk)| stuck(chunk)).sum::<usize>() > 0 {
                // A device may still write there: better lost than given to somebody else.
                return;
            }
        }
        self.budget.give_pages(self.allocated_pages.load(Ordering::Relaxed));
        match self.backing {
            // SAFETY: allocated in `heap` with this very layout; no slice of it is alive, since slices hold the Arc.
            Backing::Heap => unsafe { dealloc(self.ptr.as_ptr(), heap_layout(self.len as usize)) },
            #[cfg(feature = "std")]
            // SAFETY: our own mapping; no slice of it is alive, since slices hold the Arc. The result carries no
            // recourse.
            Backing::Mapped => unsafe {
                let _ = rustix::mm::munmap(self.ptr.as_ptr().cast(), (self.len as usize).max(1));
            },
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes, {} allocated)", self.len, self.allocated())
    }
}
