//! A file of a simulated file system: it takes and gives parts of what is asked for, is interrupted, and has a cache that
//! a crash takes away. An `fsync` of it fails now and then, and what it was to make durable is dropped: it stays in the
//! cache, or the old data come back, as the file system likes, and the next `fsync` is good without it.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backstore::BlockFile;

use crate::rng::Rng;

#[derive(Debug)]
struct Inner {
    bytes: Vec<u8>,
    /// What a crash leaves for certain.
    durable: Vec<u8>,
    /// Changes that nobody has asked to be durable: the first byte, and what is there since.
    cached: VecDeque<(usize, Vec<u8>)>,
    /// Bytes that the device keeps or loses together, and of which no call does a part.
    block: usize,
    /// So many syncs in 1000 fail.
    sync_errors: u64,
    /// Syncs that failed.
    failed: u64,
    /// Blocks that a sync which failed has dropped, and that were not changed since.
    dropped: BTreeSet<usize>,
    rng: Rng,
}

/// The file; its clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct SimFile(Arc<Mutex<Inner>>);

impl SimFile {
    /// A file of zeroes, on a device of blocks.
    #[must_use]
    pub(super) fn new(bytes: usize, block: usize, sync_errors: u64, rng: Rng) -> Self {
        let inner = Inner {
            bytes: vec![0; bytes],
            durable: vec![0; bytes],
            cached: VecDeque::new(),
            block,
            sync_errors,
            failed: 0,
            dropped: BTreeSet::new(),
            rng,
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in it from a byte on.
    pub(super) fn peek(&self, at: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.inner().bytes[at..at + data.len()]);
    }

    /// From now on no sync fails.
    pub(super) fn calm(&self) {
        self.inner().sync_errors = 0;
    }

    /// Syncs that failed so far, and whether something is dropped now.
    pub(super) fn failed(&self) -> (u64, bool) {
        let inner = self.inner();
        (inner.failed, !inner.dropped.is_empty())
    }

    /// What a crash would leave at the least.
    #[must_use]
    pub(super) fn durable(&self) -> Vec<u8> {
        self.inner().durable.clone()
    }

    /// The system goes down and comes up again: of the changes that were not durable, any may be left.
    pub(super) fn crash(&self) {
        let inner = &mut *self.inner();
        for (at, data) in inner.cached.drain(..) {
            for (at, block) in (at..).step_by(inner.block).zip(data.chunks(inner.block)) {
                if inner.rng.permille(500) {
                    inner.durable[at..at + block.len()].copy_from_slice(block);
                }
            }
        }
        inner.bytes.clone_from(&inner.durable);
        inner.dropped.clear();
    }
}

impl Inner {
    /// How much of `len` bytes is moved this time, whole or in part, if the call is not interrupted.
    fn part(&mut self, len: usize) -> io::Result<usize> {
        match self.rng.below(20) {
            0 => Err(io::ErrorKind::Interrupted.into()),
            1 | 2 if len > self.block => {
                let blocks = (len / self.block) as u64;
                Ok(self.rng.between(1, blocks - 1) as usize * self.block)
            }
            _ => Ok(len),
        }
    }

    fn change(&mut self, at: usize, data: Vec<u8>) {
        self.bytes[at..at + data.len()].copy_from_slice(&data);
        let blocks = at / self.block..(at + data.len()) / self.block;
        self.dropped.retain(|block| !blocks.contains(block));
        self.cached.push_back((at, data));
    }
}

impl BlockFile for SimFile {
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = &mut *self.inner();
        let n = inner.part(data.len())?;
        data[..n].copy_from_slice(&inner.bytes[offset as usize..offset as usize + n]);
        Ok(n)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let inner = &mut *self.inner();
        let n = inner.part(data.len())?;
        inner.change(offset as usize, data[..n].to_vec());
        Ok(n)
    }

    fn sync_data(&self) -> io::Result<()> {
        let inner = &mut *self.inner();
        if inner.sync_errors > 0 && inner.rng.permille(inner.sync_errors) {
            inner.failed += 1;
            let old_come_back = inner.rng.permille(500);
            for (at, data) in inner.cached.drain(..) {
                if old_come_back {
                    inner.bytes[at..at + data.len()].copy_from_slice(&inner.durable[at..at + data.len()]);
                }
                inner.dropped.extend(at / inner.block..(at + data.len()) / inner.block);
            }
            return Err(io::ErrorKind::Other.into());
        }
        for (at, data) in inner.cached.drain(..) {
            inner.durable[at..at + data.len()].copy_from_slice(&data);
        }
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let inner = &mut *self.inner();
        inner.part(0)?;
        inner.change(offset as usize, vec![0; len as usize]);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.inner().bytes.len() as u64)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.size()?).then_some(offset))
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        let size = self.size()?;
        if offset < size { Ok(size) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }
}
