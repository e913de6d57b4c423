//! What an operation sends to the disk of a path.

use iscsi_memory::Buf;

use super::super::Disk;
use crate::error::Error;

/// An operation that changes blocks.
pub(super) enum Change {
    Data { offset: u64, buf: Buf },
    Unmap { offset: u64, len: u64 },
    Same { offset: u64, len: u64, block: Vec<u8> },
    Compare { offset: u64, expected: Vec<u8>, new: Vec<u8> },
}

impl Change {
    /// First byte, and their number.
    pub(super) fn bytes(&self) -> (u64, u64) {
        match self {
            Self::Data { offset, buf } => (*offset, buf.len() as u64),
            Self::Unmap { offset, len } | Self::Same { offset, len, .. } => (*offset, *len),
            Self::Compare { offset, new, .. } => (*offset, new.len() as u64),
        }
    }

    /// Whether it may be sent anew when nobody knows what became of it.
    pub(super) const fn is_repeatable(&self) -> bool {
        !matches!(self, Self::Compare { .. })
    }

    async fn send(&mut self, disk: &Disk) -> Result<(), Error> {
        match self {
            Self::Data { offset, buf } => {
                let len = buf.len();
                let (back, result) = disk.write_buf(*offset, std::mem::replace(buf, Buf::zeroed(0))).await;
                *buf = back;
                // The runtime of the session is gone, and the data with it.
                if result.is_err() && buf.len() != len { Err(Error::RuntimeGone) } else { result }
            }
            Self::Unmap { offset, len } => disk.unmap(*offset, *len).await,
            Self::Same { offset, len, block } => disk.write_same(*offset, *len, block).await,
            Self::Compare { offset, expected, new } => disk.compare_and_write(*offset, expected, new).await,
        }
    }
}

/// An operation.
pub(super) enum Request<'a> {
    Read { offset: u64, data: &'a mut [u8] },
    Change(Change),
    Flush,
}

impl Request<'_> {
    pub(super) async fn send(&mut self, disk: &Disk) -> Result<(), Error> {
        match self {
            Self::Read { offset, data } => disk.read(*offset, data).await,
            Self::Change(change) => change.send(disk).await,
            Self::Flush => disk.flush().await,
        }
    }
}
