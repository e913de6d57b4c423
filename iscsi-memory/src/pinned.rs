//! What RDMA devices know of a region: registering it chunk by chunk, and giving back what they had pinned.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::chunks::{CHUNK, Chunk, Table};
use crate::region::{Backing, PAGE, PAGE_SHIFT};
use crate::registration::{Direction, WorkPiece};
use crate::{Access, DevicePiece, DomainId, Region, RegisterFailure, Registrar};

/// Bytes that were never written, in a row, for which it pays to send zeroes in place of copying them with what is
/// around.
const ZEROES: u64 = 16 << 10;

fn chunk_end(offset: u64) -> u64 {
    (offset / CHUNK + 1) * CHUNK
}

fn is_free(table: &Table, offset: u64) -> bool {
    table.get((offset / CHUNK) as usize).is_none_or(Chunk::is_free)
}

impl Region {
    /// The bytes of a chunk.
    fn chunk(&self, index: usize) -> Range<u64> {
        let start = index as u64 * CHUNK;
        start..(start + CHUNK).min(self.len())
    }

    /// Whether at least `eighths` of the chunk's pages have been written.
    fn has_written(&self, chunk: &Range<u64>, eighths: u64) -> bool {
        let pages = (chunk.end - chunk.start).div_ceil(PAGE);
        let words = (chunk.start >> PAGE_SHIFT) as usize / 64..(chunk.end.div_ceil(PAGE) as usize).div_ceil(64);
        let written: u32 = self.written[words].iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum();
        u64::from(written) * 8 >= pages * eighths
    }

    /// Whether a chunk is worth being registered. What is on the heap is there in any case.
    fn is_dense(&self, chunk: &Range<u64>) -> bool {
        matches!(self.backing, Backing::Heap) || self.has_written(chunk, 7)
    }

    /// Whether a registered chunk has become worth more as free memory.
    fn is_sparse(&self, chunk: &Range<u64>) -> bool {
        matches!(self.backing, Backing::Mapped) && !self.has_written(chunk, 6)
    }

    /// The first of bytes `offset..offset + len`, which the caller has checked, as a work request names them. `None`:
    /// they are to be copied.
    pub(crate) fn reach(
        self: &Arc<Self>,
        registrar: &dyn Registrar,
        offset: u64,
        len: usize,
        direction: Direction,
    ) -> Result<Option<WorkPiece>, RegisterFailure> {
        let index = (offset / CHUNK) as usize;
        let chunk = self.chunk(index);
        let len = (len as u64).min(chunk.end - offset);
        let domain = registrar.domain();
        let registered = self.chunks.read().get(index).and_then(|chunk| chunk.of(domain)).cloned();
        let registration = match registered {
            Some(registration) => registration,
            None => {
                if direction == Direction::Out
                    && let (false, end) = self.extent_within(offset, offset + len)
                    && let unwritten = (end - offset).min(len)
                    && unwritten >= len.min(ZEROES)
                    && let Some(zeroes) = registrar.zeroes()
                {
                    let len = zeroes.len.min(unwritten as usize);
                    return Ok(Some(WorkPiece { piece: DevicePiece { len, ..zeroes }, hold: None }));
                }
                let Some(registration) = self.register(registrar, index)? else { return Ok(None) };
                registration
            }
        };
        let address = self.at(offset).expose_provenance() as u64;
        let piece = DevicePiece { address, len: len as usize, key: registration.local_key() };
        Ok(Some(WorkPiece { piece, hold: Some(crate::PieceHold(registration)) }))
    }

    /// Registers a chunk for a domain that does not have it. `None`: it is not worth it, or not now.
    #[cold]
    fn register(
        self: &Arc<Self>,
        registrar: &dyn Registrar,
        index: usize,
    ) -> Result<Option<Arc<dyn crate::Registration>>, RegisterFailure> {
        let range = self.chunk(index);
        let len = (range.end - range.start) as usize;
        if !self.is_dense(&range) || !registrar.has_time_for(len) {
            return Ok(None);
        }
        let mut table = self.chunks.write();
        let chunk = table.place(index, self.len());
        if let Some(registration) = chunk.of(registrar.domain()) {
            return Ok(Some(registration.clone()));
        }
        // SAFETY: a range of our own memory, which is freed only after every registration has ended, and whose pages
        // stay while the chunk is not free.
        let registration = unsafe { registrar.register(self.at(range.start), len, Access::Local) }?;
        chunk.held.push(registration.clone());
        drop(table);
        registrar.has_registered(self);
        Ok(Some(registration))
    }

    /// Gives whole pages of a mapped region back to the machine. They are in no registration, and the caller holds the
    /// lock that keeps it so.
    fn give_back(&self, range: Range<u64>) {
        let len = (range.end - range.start) as usize;
        // SAFETY: whole pages of our own private mapping; the kernel hands out zero pages at the next touch. A failure
        // leaves old bytes there, so they are zeroed by hand.
        unsafe {
            if rustix::mm::madvise(self.at(range.start).cast(), len, rustix::mm::Advice::LinuxDontNeed).is_err() {
                core::ptr::write_bytes(self.at(range.start), 0, len);
            }
        }
    }

    /// Gives back the pages of a chunk that nobody has written. The caller holds the lock for writing: no page is taken
    /// meanwhile.
    fn give_back_unwritten(&self, chunk: Range<u64>) {
        let mut at = chunk.start;
        while at < chunk.end {
            let (is_written, run) = self.extent_within(at, chunk.end);
            let run = run.min(chunk.end);
            if !is_written && run / PAGE > at / PAGE {
                self.give_back(at..run / PAGE * PAGE);
            }
            at = run;
        }
    }

    /// [`discard`](Self::discard) of whole pages of a mapped region, whose marks are cleared.
    pub(crate) fn release_mapped(&self, range: Range<u64>) {
        let table = self.chunks.read();
        let mut at = range.start;
        let mut registered = Vec::new();
        while at < range.end {
            let (free, mut end) = (is_free(&table, at), chunk_end(at));
            while free && end < range.end && is_free(&table, end) {
                end = chunk_end(end);
            }
            let end = end.min(range.end);
            if free {
                self.give_back(at..end);
            } else {
                registered.push(at..end);
            }
            at = end;
        }
        drop(table);
        for part in registered {
            self.release_registered(part);
        }
    }

    /// Zeroes a part of a chunk that was registered a moment ago, or ends its registrations and gives it back.
    fn release_registered(&self, part: Range<u64>) {
        let index = (part.start / CHUNK) as usize;
        let range = self.chunk(index);
        let mut table = self.chunks.write();
        let is_sparse = self.is_sparse(&range);
        let Some(chunk) = table.get_mut(index) else { return self.give_back(part) };
        if is_sparse && chunk.is_idle() {
            chunk.end(|_| true);
        }
        if chunk.is_free() {
            self.give_back(part);
            self.give_back_unwritten(range);
            return;
        }
        // SAFETY: checked range of our own mapping.
        unsafe { core::ptr::write_bytes(self.at(part.start), 0, (part.end - part.start) as usize) }
        if is_sparse && !chunk.is_due {
            chunk.is_due = true;
            table.due.push(index);
            self.chunks.set_due(true);
            // Whoever held it may have let go in between.
            self.settle_all(&mut table);
        }
    }

    /// Gives back the pages that were in use by a work request when they were [discarded](Self::discard): to be called
    /// when a [`PieceHold`](crate::PieceHold) of the region has been dropped. Costs nothing while there are none.
    #[inline]
    pub fn settle(&self) {
        if self.chunks.is_due() {
            self.settle_all(&mut self.chunks.write());
        }
    }

    #[cold]
    fn settle_all(&self, table: &mut Table) {
        let mut due = core::mem::take(&mut table.due);
        due.retain(|&index| {
            let range = self.chunk(index);
            let Some(chunk) = table.get_mut(index) else { return false };
            // It may have been written again meanwhile, and is then worth being kept.
            if self.is_sparse(&range) {
                if !chunk.is_idle() {
                    return true;
                }
                chunk.end(|_| true);
                if chunk.is_free() {
                    self.give_back_unwritten(range);
                }
            }
            chunk.is_due = false;
            false
        });
        table.due = due;
        self.chunks.set_due(!table.due.is_empty());
    }

    /// Bytes of the region that are registered as whole chunks, counted once for each domain.
    #[must_use]
    pub fn registered(&self) -> u64 {
        let size = |index| self.chunk(index).end - self.chunk(index).start;
        self.chunks.read().iter().map(|(index, chunk)| chunk.held.len() as u64 * size(index)).sum()
    }

    /// Whether the chunk of 1 MiB that a byte is in is registered as a whole.
    ///
    /// ```
    /// let region = iscsi_memory::Region::heap(4096);
    /// assert!(!region.is_registered(0));
    /// ```
    #[must_use]
    pub fn is_registered(&self, offset: u64) -> bool {
        self.chunks.read().get((offset / CHUNK) as usize).is_some_and(|chunk| !chunk.held.is_empty())
    }

    /// Ends the registrations of a domain, which has no work requests any more, and gives back what they pinned and
    /// nobody has written.
    pub fn forget(&self, domain: DomainId) {
        self.end_chunks(domain, u64::MAX, |_| true);
    }

    /// Ends registrations of a domain that no work request uses, about as many as cover `bytes`, and gives back what
    /// they pinned and nobody has written. Returns how many bytes they covered.
    pub fn shed(&self, domain: DomainId, bytes: u64) -> u64 {
        self.end_chunks(domain, bytes, Chunk::is_idle)
    }

    fn end_chunks(&self, domain: DomainId, bytes: u64, may_end: impl Fn(&Chunk) -> bool) -> u64 {
        let mut table = self.chunks.write();
        let mut ended = 0;
        for index in 0..table.len() {
            if ended >= bytes {
                break;
            }
            let range = self.chunk(index);
            let Some(chunk) = table.get_mut(index) else { continue };
            if chunk.of(domain).is_none() || !may_end(chunk) {
                continue;
            }
            chunk.end(|held| held.domain() == domain);
            ended += range.end - range.start;
            if chunk.is_free() && matches!(self.backing, Backing::Mapped) {
                self.give_back_unwritten(range);
            }
        }
        ended
    }

    /// Pins the chunks under bytes, which are not none, or lets them go.
    pub(crate) fn pin_chunks(&self, first: u64, last: u64, change: impl Fn(&mut Chunk)) {
        let mut table = self.chunks.write();
        for index in first / CHUNK..=last / CHUNK {
            change(table.place(index as usize, self.len()));
        }
    }
}
