//! The file store: blocks in a regular file or on a block device.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt as _, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Waker;

use async_trait::async_trait;
use iscsi_memory::Buf;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;

use super::file_medium::{BlockFile, FileMedium};
use super::file_pool::{FileQueue, Pool};
use super::{
    Abilities, Backstore, Geometry, LbaStatus, StoreCompletion, StoreError, StoreOp, StoreOpenError, StoreQueue,
};

/// Most threads of one store.
const MOST_THREADS: usize = 64;

/// Options of a [`FileStore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// Bytes of a block: a power of two from 512 to 4096. Default 512.
    pub block_size: u32,
    /// Creates the file with this many bytes if it is not there; no space is taken before blocks are written. What
    /// exists is never resized. Default: a missing file is an error.
    pub create: Option<u64>,
    /// Opens for reading only. Default off.
    pub read_only: bool,
    /// Goes around the page cache (`O_DIRECT`). The file system may then ask for larger blocks. Default off.
    pub direct: bool,
    /// Operations of one queue that run at a time, 1 to 64, each on a thread. One more thread is there for others, so
    /// that a queue whose operations the file holds back does not hold them back too. Default 4.
    pub threads: usize,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self { block_size: 512, create: None, read_only: false, direct: false, threads: 4 }
    }
}

/// A disk in a regular file or on a block device.
///
/// I/O is positional, on threads of the store's own that end with it. Both the easy door and the queue hand it to them,
/// so that no caller waits for the medium. Written data sit in the system's cache until a flush (`fdatasync`), which
/// [`Abilities::volatile_cache`] says. Where the file system punches holes, UNMAP gives space back; block devices are
/// not unmapped. The file is locked (`flock`) against other stores: exclusively, or shared when it is read-only. Its
/// size is what it was at opening.
///
/// ```
/// use futures::executor::block_on;
/// use backstore::{Backstore, FileOptions, FileStore};
/// # let path = std::env::temp_dir().join(format!("file-store-example-{}", std::process::id()));
/// let options = FileOptions { create: Some(1 << 20), ..FileOptions::default() };
/// let store = FileStore::open(&path, &options)?;
/// block_on(store.write(9, &[1; 512])).unwrap();
/// block_on(store.flush()).unwrap();
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), backstore::StoreOpenError>(())
/// ```
#[derive(Debug)]
pub struct FileStore<F = File> {
    path: PathBuf,
    medium: Arc<FileMedium<F>>,
    pool: Pool,
}

impl FileStore {
    /// Opens the file or block device at `path`.
    ///
    /// # Errors
    /// [`StoreOpenError`]: no such file, a directory, no permission, in use, a length with part of a block, no direct
    /// I/O in such blocks.
    pub fn open(path: impl AsRef<Path>, options: &FileOptions) -> Result<Self, StoreOpenError> {
        let path = path.as_ref().to_path_buf();
        let block_size = options.block_size;
        if !matches!(block_size, 512 | 1024 | 2048 | 4096) {
            return Err(StoreOpenError::BlockSize(block_size));
        }
        if let Some(bytes) = options.create
            && (bytes == 0 || !bytes.is_multiple_of(u64::from(block_size)))
        {
            return Err(StoreOpenError::UnevenSize { bytes, block_size });
        }
        let mut file = open_or_create(&path, options)?;
        let failed = |source| StoreOpenError::Io { path: path.clone(), source };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(StoreOpenError::NotAFile { path });
        }
        let locked = if options.read_only { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Err(TryLockError::WouldBlock) => return Err(StoreOpenError::InUse { path }),
            // A file system without locks serves as well.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        // The length of a block device is where its end is.
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if bytes == 0 || !bytes.is_multiple_of(u64::from(block_size)) {
            return Err(StoreOpenError::UnevenFile { path, bytes, block_size });
        }
        if options.direct
            && let Err(source) =
                file.read_exact_at(&mut Buf::zeroed(block_size as usize), bytes - u64::from(block_size))
        {
            return Err(StoreOpenError::Direct { path, block_size, source });
        }
        // A hole punched beyond the end changes nothing, and tells whether the file system can.
        let holes = !options.read_only
            && metadata.is_file()
            && fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, bytes, 1 << 20).is_ok();
        let grain = (metadata.blksize() / u64::from(block_size)).clamp(1, 1 << 16);
        let geometry = Geometry {
            block_size,
            blocks: bytes / u64::from(block_size),
            physical_exponent: (4096 / block_size).trailing_zeros() as u8,
            optimal_transfer: 0,
        };
        let abilities = Abilities {
            unmap: holes,
            unmapped_reads_zero: holes,
            unmap_granularity: if holes { grain as u32 } else { 0 },
            volatile_cache: !options.read_only,
            read_only: options.read_only,
            solid_state: false,
        };
        let medium = FileMedium::new(file, geometry, abilities);
        Self::over(path, medium, options.threads).map_err(|source| StoreOpenError::Threads { source })
    }
}

impl<F: BlockFile> FileStore<F> {
    /// A store over what is open already: `path` is what [`path`](Self::path) says, and `threads` is
    /// [`FileOptions::threads`].
    ///
    /// # Errors
    /// What the system says when it gives no thread.
    ///
    /// ```
    /// use futures::executor::block_on;
    /// use backstore::{Abilities, Backstore, FileMedium, FileStore, Geometry};
    /// # let path = std::env::temp_dir().join(format!("file-store-over-example-{}", std::process::id()));
    /// let file = std::fs::File::create_new(&path)?;
    /// file.set_len(1 << 20)?;
    /// let medium = FileMedium::new(file, Geometry::of_bytes(1 << 20), Abilities::default());
    /// let store = FileStore::over(&path, medium, 4)?;
    /// block_on(store.flush()).unwrap();
    /// # std::fs::remove_file(&path)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn over(path: impl Into<PathBuf>, medium: FileMedium<F>, threads: usize) -> io::Result<Self> {
        let medium = Arc::new(medium);
        let pool = Pool::start(medium.clone(), threads.clamp(1, MOST_THREADS))?;
        Ok(Self { path: path.into(), medium, pool })
    }

    /// The path that was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn run(&self, op: StoreOp) -> Result<StoreCompletion, StoreError> {
        let completion = self.pool.run(op).await?;
        completion.result?;
        Ok(completion)
    }
}

fn open_or_create(path: &Path, options: &FileOptions) -> Result<File, StoreOpenError> {
    let write = !options.read_only;
    let flags = if options.direct { OFlags::DIRECT.bits().cast_signed() } else { 0 };
    let mut how = OpenOptions::new();
    // Opening a named pipe must not wait for its other end; files and block devices take no notice.
    how.read(true).write(write).custom_flags(flags | OFlags::NONBLOCK.bits().cast_signed());
    let result = match (how.open(path), options.create) {
        (Err(error), Some(bytes)) if error.kind() == io::ErrorKind::NotFound => {
            how.write(true).create_new(true).open(path).and_then(|file| match file.set_len(bytes) {
                Ok(()) => Ok(file),
                Err(error) => {
                    // What could not get its size is of no use to the next start either.
                    let _ = std::fs::remove_file(path);
                    Err(error)
                }
            })
        }
        (result, _) => result,
    };
    let path = path.to_path_buf();
    result.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => StoreOpenError::Missing { path },
        io::ErrorKind::IsADirectory => StoreOpenError::NotAFile { path },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StoreOpenError::Denied { path, write },
        io::ErrorKind::InvalidInput if options.direct => {
            StoreOpenError::Direct { path, block_size: options.block_size, source }
        }
        _ if source.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => StoreOpenError::NotAFile { path },
        _ => StoreOpenError::Io { path, source },
    })
}

#[async_trait]
impl<F: BlockFile> Backstore for FileStore<F> {
    fn geometry(&self) -> Geometry {
        self.medium.geometry()
    }

    fn abilities(&self) -> Abilities {
        self.medium.abilities()
    }

    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        let done = self.run(StoreOp::Read { lba, buf: Buf::zeroed(data.len()) }).await?;
        data.copy_from_slice(&done.buf.ok_or(StoreError::Failed)?);
        Ok(())
    }

    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        let mut buf = Buf::zeroed(data.len());
        buf.copy_from_slice(data);
        self.run(StoreOp::Write { lba, buf }).await.map(drop)
    }

    async fn flush(&self) -> Result<(), StoreError> {
        self.run(StoreOp::Flush).await.map(drop)
    }

    fn failed_flushes(&self) -> Option<u64> {
        Some(self.medium.failed_flushes())
    }

    async fn unmap(&self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        self.run(StoreOp::Unmap { lba, blocks }).await.map(drop)
    }

    async fn lba_status(&self, lba: u64) -> Result<LbaStatus, StoreError> {
        self.run(StoreOp::LbaStatus { lba }).await?.lba_status.ok_or(StoreError::Failed)
    }

    fn open_queue(self: Arc<Self>, waker: Waker) -> Option<Box<dyn StoreQueue>> {
        let queue = FileQueue::new(self.pool.jobs(), waker);
        Some(Box::new(KeepsStore { queue, _store: self }))
    }
}

/// A queue whose store, and with it the threads, lives as long as the queue.
struct KeepsStore<F> {
    queue: FileQueue,
    _store: Arc<FileStore<F>>,
}

impl<F: BlockFile> StoreQueue for KeepsStore<F> {
    fn submit(&mut self, batch: &mut Vec<super::StoreRequest>) {
        self.queue.submit(batch);
    }

    fn poll(&mut self, completions: &mut Vec<StoreCompletion>) {
        self.queue.poll(completions);
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod file_tests;
