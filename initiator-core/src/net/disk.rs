//! A remote disk as an application holds it.

use iscsi_memory::Buf;

use super::{DiskInfo, Extent, Session};
use crate::error::Error;

/// A disk: a logical unit of a session. Clones share it; any number of operations may be under way.
///
/// Offsets and lengths are in bytes and have to be whole blocks. An operation longer than the disk's MAXIMUM TRANSFER LENGTH goes out in several commands
/// side by side. Dropping an operation's future is safe at any time: its memory belongs to the session until the target is done with it. A dropped
/// write may or may not take place.
#[derive(Debug, Clone)]
pub struct Disk {
    session: Session,
}

impl Disk {
    /// What the disk told about itself when it was opened or refreshed.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        DiskInfo::default()
    }

    /// The session that it belongs to.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Asks the disk anew what it is: its size may have changed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn refresh(&self) -> Result<DiskInfo, Error> {
        Err(Error::LoggedOut)
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        0
    }

    /// Logical block length in bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        0
    }

    /// Reads whole blocks.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Scsi`], [`Error::Command`], or the session's end; the content of `data` is then unspecified.
    pub async fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let _ = (offset, data);
        Err(Error::LoggedOut)
    }

    /// Writes whole blocks.
    ///
    /// # Errors
    /// As [`Disk::read`]; the blocks then hold old data, new data, or some of each.
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let _ = (offset, data);
        Err(Error::LoggedOut)
    }

    /// Reads into an own buffer, which comes back; nothing is copied up to the MAXIMUM TRANSFER LENGTH.
    pub async fn read_buf(&self, offset: u64, buf: Buf) -> (Buf, Result<(), Error>) {
        let _ = offset;
        (buf, Err(Error::LoggedOut))
    }

    /// Writes from an own buffer, which comes back; nothing is copied up to the MAXIMUM TRANSFER LENGTH.
    pub async fn write_buf(&self, offset: u64, buf: Buf) -> (Buf, Result<(), Error>) {
        let _ = offset;
        (buf, Err(Error::LoggedOut))
    }

    /// Makes durable what was written before (SYNCHRONIZE CACHE).
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub async fn flush(&self) -> Result<(), Error> {
        Err(Error::LoggedOut)
    }

    /// Gives the blocks' space back (UNMAP, or WRITE SAME with the UNMAP bit).
    ///
    /// # Errors
    /// As [`Disk::read`]; [`Error::Unsupported`] on a disk that is not thin provisioned.
    pub async fn unmap(&self, offset: u64, len: u64) -> Result<(), Error> {
        let _ = (offset, len);
        Err(Error::LoggedOut)
    }

    /// Writes one block's content over a range (WRITE SAME).
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub async fn write_same(&self, offset: u64, len: u64, block: &[u8]) -> Result<(), Error> {
        let _ = (offset, len, block);
        Err(Error::LoggedOut)
    }

    /// Writes `new` if the blocks hold `expected`, in one step (COMPARE AND WRITE).
    ///
    /// # Errors
    /// [`Error::Miscompare`]; else as [`Disk::read`]. After a lost connection the outcome is unknown, and [`Error::Command`] says so.
    pub async fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<(), Error> {
        let _ = (offset, expected, new);
        Err(Error::LoggedOut)
    }

    /// The run of blocks of one provisioning status that begins at `offset` (GET LBA STATUS).
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub async fn lba_status(&self, offset: u64) -> Result<Extent, Error> {
        let _ = offset;
        Err(Error::LoggedOut)
    }
}
