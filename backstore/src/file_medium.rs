//! The medium of a file store: what each operation does to the file, whole and in order, whatever the file does in
//! pieces.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::durability::{Durability, NotDurable};
use super::under_way::{Access, UnderWay};
use super::{Abilities, Geometry, LbaStatus, StoreCompletion, StoreError, StoreOp};

/// What a file store asks of its file: positional, blocking calls that may do a part of what is asked. [`File`] is one;
/// a simulated file system has another.
pub trait BlockFile: Send + Sync + 'static {
    /// Reads some bytes from `offset` on: `pread` (2). 0 is the end of the file.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::Interrupted`] is tried again.
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes some of the bytes from `offset` on: `pwrite` (2).
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::Interrupted`] is tried again.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize>;

    /// Makes durable what was written: `fdatasync` (2). After an error the file may have lost what was written since
    /// the last success, though a later call succeeds.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::Interrupted`] is tried again.
    fn sync_data(&self) -> io::Result<()>;

    /// Gives `len` bytes from `offset` on back to the file system; they read as zero. The length stays.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::Interrupted`] is tried again.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Bytes of the file.
    ///
    /// # Errors
    /// What the system says.
    fn size(&self) -> io::Result<u64>;

    /// Where data begin, from `offset` on: `None` where there is a hole down to the end, or no such place.
    ///
    /// # Errors
    /// The file system does not tell.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;

    /// Where the next hole begins, from `offset` on; the end of the file is one.
    ///
    /// # Errors
    /// The file system does not tell, or there is no such place.
    fn next_hole(&self, offset: u64) -> io::Result<u64>;
}

impl BlockFile for File {
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, data, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(fallocate(self, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    /// Moving the file offset disturbs nobody: all I/O is positional.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match seek(self, SeekFrom::Data(offset)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        Ok(seek(self, SeekFrom::Hole(offset))?)
    }
}

/// A file as a medium of blocks, with blocking operations. [`FileStore`](super::FileStore) has threads that perform
/// them.
///
/// A logical block that is read is old or new, also where it is written at the same time: reads and writes of the same
/// blocks wait for each other, for at most 200 ms.
///
/// After a flush that failed, the blocks that were written since the last good one cannot be read until they are
/// written or unmapped again: the system has dropped what it could not write, and calls the next flush good.
///
/// ```
/// use backstore::{Abilities, FileMedium, Geometry, StoreOp};
/// # let path = std::env::temp_dir().join(format!("file-medium-example-{}", std::process::id()));
/// let file = std::fs::File::create_new(&path)?;
/// file.set_len(1 << 20)?;
/// let medium = FileMedium::new(file, Geometry::of_bytes(1 << 20), Abilities::default());
/// assert!(medium.perform(7, StoreOp::Flush).result.is_ok());
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct FileMedium<F> {
    file: F,
    geometry: Geometry,
    abilities: Abilities,
    durability: Durability,
    under_way: UnderWay,
}

impl<F: BlockFile> FileMedium<F> {
    /// A medium of this shape in `file`, which is as long as that.
    #[must_use]
    pub fn new(file: F, geometry: Geometry, abilities: Abilities) -> Self {
        Self { file, geometry, abilities, durability: Durability::default(), under_way: UnderWay::default() }
    }

    /// Flushes that failed so far; one that fails is counted before any later one can be good.
    #[must_use]
    pub fn failed_flushes(&self) -> u64 {
        self.durability.failed()
    }

    /// The same with another bound on how long a call is waited for.
    #[cfg(test)]
    pub(super) fn with_patience(self, patience: std::time::Duration) -> Self {
        Self { under_way: UnderWay::with_patience(patience), ..self }
    }

    /// Reads and writes that wait for each other.
    #[cfg(test)]
    pub(super) fn waiting_calls(&self) -> usize {
        self.under_way.waiting()
    }

    #[cfg(test)]
    pub(super) fn waiting_flushes(&self) -> usize {
        self.durability.waiting()
    }

    /// Size and shape.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What it can do beyond read and write.
    #[must_use]
    pub const fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// Does one operation and waits for it. `token` comes back with the completion.
    #[must_use]
    pub fn perform(&self, token: u64, op: StoreOp) -> StoreCompletion {
        let mut done = StoreCompletion { token, buf: None, lba_status: None, result: Ok(()) };
        match op {
            StoreOp::Read { lba, mut buf } => {
                done.result = self.read(lba, &mut buf);
                done.buf = Some(buf);
            }
            StoreOp::Write { lba, buf } => {
                done.result = self.write(lba, &buf);
                done.buf = Some(buf);
            }
            StoreOp::Flush if self.abilities.read_only => {}
            StoreOp::Flush => done.result = self.flush(),
            StoreOp::Unmap { lba, blocks } => done.result = self.unmap(lba, blocks),
            StoreOp::LbaStatus { lba } => done.lba_status = Some(self.lba_status(lba)),
        }
        done
    }

    fn offset(&self, lba: u64) -> u64 {
        lba * u64::from(self.geometry.block_size)
    }

    /// `len` bytes as blocks.
    fn range(&self, lba: u64, len: usize) -> Range<u64> {
        lba..lba + len as u64 / u64::from(self.geometry.block_size)
    }

    fn flush(&self) -> Result<(), StoreError> {
        let sync = || loop {
            match self.file.sync_data() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        };
        self.durability.flush(sync).map_err(|not| match not {
            NotDurable::Error(error) => of_write(&error, None),
            NotDurable::Lost => StoreError::Write(None),
        })
    }

    fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        if let Some(lost) = self.durability.first_lost(&self.range(lba, data.len())) {
            return Err(StoreError::Read(Some(lost)));
        }
        let (len, blocks) = (data.len(), self.range(lba, data.len()));
        let read = || whole(len, |at| self.file.read_at(&mut data[at..], self.offset(lba) + at as u64));
        // No byte where there should be some: someone has cut the file shorter.
        self.under_way
            .during(Access::Read, blocks, read)
            .map_err(|(at, _)| StoreError::Read(Some(self.block_at(lba, at))))
    }

    pub(super) fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        if self.abilities.read_only {
            return Err(StoreError::ReadOnly);
        }
        let write = || {
            let done = whole(data.len(), |at| self.file.write_at(&data[at..], self.offset(lba) + at as u64));
            done.map(Ok).map_err(|(at, error)| {
                let block = Some(self.block_at(lba, at));
                Err(error.map_or(StoreError::Write(block), |error| of_write(&error, block)))
            })
        };
        let blocks = self.range(lba, data.len());
        self.under_way.during(Access::Write, blocks.clone(), || self.durability.change(blocks, write))
    }

    fn block_at(&self, lba: u64, byte: usize) -> u64 {
        lba + byte as u64 / u64::from(self.geometry.block_size)
    }

    fn unmap(&self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        if self.abilities.read_only {
            return Err(StoreError::ReadOnly);
        }
        if !self.abilities.unmap {
            return Err(StoreError::Unsupported);
        }
        if blocks == 0 {
            return Ok(());
        }
        let punch = || loop {
            match self.file.punch_hole(self.offset(lba), self.offset(blocks)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Err(of_write(&error, Some(lba)))),
                Ok(()) => return Ok(Ok(())),
            }
        };
        let blocks = lba..lba + blocks;
        self.under_way.during(Access::Write, blocks.clone(), || self.durability.change(blocks, punch))
    }

    /// Where the file system does not tell holes, everything is mapped.
    fn lba_status(&self, lba: u64) -> LbaStatus {
        let block = u64::from(self.geometry.block_size);
        let offset = self.offset(lba);
        let end = self.geometry.bytes();
        // Blocks that a file has lost, since somebody cut it, are no hole: reading them fails.
        let there = self.file.size().unwrap_or(0) / block * block;
        let (mapped, until) = match self.file.next_data(offset) {
            // A hole down to the end of the file.
            Ok(None) if offset < there => (false, there.min(end)),
            Ok(Some(data)) if data / block * block > offset => (false, (data / block * block).min(end)),
            Ok(Some(_)) => match self.file.next_hole(offset) {
                // A block that is data in part is mapped.
                Ok(hole) => (true, hole.next_multiple_of(block).min(end)),
                Err(_) => (true, end),
            },
            _ => (true, end),
        };
        LbaStatus { blocks: (until.saturating_sub(offset) / block).max(1), mapped }
    }
}

/// Has all of `len` bytes moved: `step` moves some from where it is told, and says how many. What fails is told with
/// how far it had come; no error means that there was no progress.
pub(super) fn whole(
    len: usize,
    mut step: impl FnMut(usize) -> io::Result<usize>,
) -> Result<(), (usize, Option<io::Error>)> {
    let mut at = 0;
    while at < len {
        match step(at) {
            Ok(0) => return Err((at, None)),
            Ok(taken) => at += taken,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((at, Some(error))),
        }
    }
    Ok(())
}

pub(super) fn of_write(error: &io::Error, lba: Option<u64>) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => StoreError::ReadOnly,
        io::ErrorKind::Unsupported => StoreError::Unsupported,
        _ => StoreError::Write(lba),
    }
}
