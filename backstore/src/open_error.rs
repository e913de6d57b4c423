//! Why a store could not be opened, in sentences for the person who asked for it.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A store that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreOpenError {
    /// The block size is not one that a disk may have.
    #[error("a block size of {0} bytes is not possible: use 512, 1024, 2048 or 4096")]
    BlockSize(u32),
    /// A size of nothing, or with part of a block.
    #[error(
        "a store of {bytes} bytes is not a whole number of blocks of {block_size} bytes: give a multiple of it, at \
         least one block"
    )]
    UnevenSize {
        /// Size asked for in bytes.
        bytes: u64,
        /// Block size in bytes.
        block_size: u32,
    },
    /// More RAM than this machine can ever hold.
    #[error(
        "a RAM store of {} is more than this machine can ever hold: it has {} of memory, and a thin store may be at \
         most {}; give a smaller size, or use a file",
        Binary(*.bytes), Binary(*.memory), Binary(*.most)
    )]
    TooLarge {
        /// Size asked for in bytes.
        bytes: u64,
        /// The machine's memory in bytes.
        memory: u64,
        /// Largest size in bytes.
        most: u64,
    },
    /// The system refused the address space.
    #[error(
        "the system gives no address space for a RAM store of {bytes} bytes ({source}): give a smaller size, or \
         raise `ulimit -v` or vm.overcommit_memory"
    )]
    AddressSpace {
        /// Size asked for in bytes.
        bytes: u64,
        /// What `mmap` said.
        source: io::Error,
    },
    /// The file is not there.
    #[error("there is no file {}: check the path, or create it with `truncate -s SIZE`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The path is a directory or another thing that holds no blocks.
    #[error("{} is not a file or block device: give the path of a regular file or of a block device", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Not allowed to open it.
    #[error(
        "{} may not be opened{}: change its permissions, run as a user who may{}",
        path.display(),
        if *.write { " for writing" } else { "" },
        if *.write { ", or serve it read-only" } else { "" }
    )]
    Denied {
        /// The file.
        path: PathBuf,
        /// Whether writing was asked for.
        write: bool,
    },
    /// Another program, or another store of this one, has it open.
    #[error(
        "{} is in use by another store or program that locks it: end that one first, or serve both read-only",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Its length has part of a block, or nothing.
    #[error(
        "{} is {bytes} bytes long, which is not a whole number of blocks of {block_size} bytes: set its length with \
         `truncate -s`, or use another block size",
        path.display()
    )]
    UnevenFile {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        bytes: u64,
        /// Block size in bytes.
        block_size: u32,
    },
    /// No direct I/O.
    #[error(
        "{} cannot be read with direct I/O in blocks of {block_size} bytes ({source}): use a block size of 4096, or \
         leave direct I/O off",
        path.display()
    )]
    Direct {
        /// The file.
        path: PathBuf,
        /// Block size in bytes.
        block_size: u32,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else that the system says.
    #[error("{} could not be opened ({source}): check the path and the file system", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No threads.
    #[error("the system gives no thread for file I/O ({source}): raise the limit of processes (`ulimit -u`)")]
    Threads {
        /// What the system said.
        source: io::Error,
    },
}

/// A size as people read it: in the largest unit that leaves at least 1, rounded down to a tenth.
struct Binary(u64);

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 6] = [("EiB", 60), ("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let Some((unit, shift)) = UNITS.into_iter().find(|(_, shift)| self.0 >> shift != 0) else {
            return write!(f, "{} bytes", self.0);
        };
        let tenths = (u128::from(self.0) * 10) >> shift;
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}
