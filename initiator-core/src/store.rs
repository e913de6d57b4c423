//! A remote disk as a store of a target: what one target serves, another can serve again.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use backstore::{
    Abilities, Backstore, Geometry, LbaStatus, StoreCompletion, StoreError, StoreOp, StoreQueue, StoreRequest,
};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, Stream};
use scsi_proto::{AdditionalSense, Sense, SenseKey};

use crate::error::Error;
use crate::net::{Disk, DiskInfo};

/// A [`Backstore`] over a [`Disk`]. What the disk can do is what the store declares.
///
/// ```no_run
/// # async fn example(session: initiator_core::Session) -> Result<(), initiator_core::Error> {
/// use std::sync::Arc;
/// use initiator_core::RemoteStore;
/// use backstore::Backstore;
/// let store: Arc<dyn Backstore> = Arc::new(RemoteStore::new(session.disk(0).await?)?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RemoteStore {
    disk: Disk,
    /// What the disk said when it was last asked.
    info: Mutex<DiskInfo>,
}

impl RemoteStore {
    /// A store over a disk.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a disk whose blocks are not of 512 to 4096 bytes: a store's cannot be others.
    pub fn new(disk: Disk) -> Result<Self, Error> {
        let info = disk.info();
        if !(512..=4096).contains(&info.block_size) {
            return Err(Error::Unsupported("being a store: its blocks are not of 512 to 4096 bytes"));
        }
        Ok(Self { disk, info: Mutex::new(info) })
    }

    /// The disk behind it.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Asks the disk for its size anew.
    ///
    /// # Errors
    /// As [`Disk::refresh`].
    pub async fn refresh(&self) -> Result<(), Error> {
        let info = self.disk.refresh().await?;
        *self.info.lock().unwrap_or_else(PoisonError::into_inner) = info;
        Ok(())
    }

    fn with<T>(&self, look: impl FnOnce(&DiskInfo) -> T) -> T {
        look(&self.info.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn offset(&self, lba: u64) -> u64 {
        lba.saturating_mul(self.disk.block_size().into())
    }
}

/// What an error of the remote disk is to the target that serves it again.
fn store_error(error: &Error, write: bool) -> StoreError {
    let sense = match error {
        Error::Scsi { .. } => error.sense(),
        Error::Miscompare(offset) => return StoreError::Miscompare(u32::try_from(*offset).unwrap_or(u32::MAX)),
        Error::Unsupported(_) => return StoreError::Unsupported,
        Error::LoggedOut | Error::Command { .. } | Error::TimedOut { .. } => return StoreError::NotReady,
        error if error.is_transport() => return StoreError::NotReady,
        _ => return StoreError::Failed,
    };
    match sense {
        Some(Sense { code: AdditionalSense::SPACE_ALLOCATION_FAILED_WRITE_PROTECT, .. }) => StoreError::NoSpace,
        Some(Sense { key: SenseKey::DataProtect, .. }) => StoreError::ReadOnly,
        Some(Sense { key: SenseKey::MediumError, information, .. }) if write => StoreError::Write(*information),
        Some(Sense { key: SenseKey::MediumError, information, .. }) => StoreError::Read(*information),
        Some(Sense { key: SenseKey::NotReady, .. }) => StoreError::NotReady,
        Some(Sense { code: AdditionalSense::INVALID_COMMAND_OPERATION_CODE, .. }) => StoreError::Unsupported,
        _ => StoreError::Failed,
    }
}

#[async_trait]
impl Backstore for RemoteStore {
    fn geometry(&self) -> Geometry {
        self.with(|info| {
            let per_physical = info.physical_block_size.checked_div(info.block_size).unwrap_or(1).max(1);
            Geometry {
                block_size: info.block_size,
                blocks: info.blocks,
                physical_exponent: per_physical.ilog2() as u8,
                optimal_transfer: info.optimal_transfer_blocks,
            }
        })
    }

    fn abilities(&self) -> Abilities {
        self.with(|info| Abilities {
            unmap: info.unmap || info.write_same_unmap,
            unmapped_reads_zero: info.unmapped_reads_zero,
            unmap_granularity: info.unmap_granularity,
            volatile_cache: info.write_cache.unwrap_or(true),
            read_only: info.write_protected,
            solid_state: info.rotation == Some(1),
        })
    }

    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        self.disk.read(self.offset(lba), data).await.map_err(|error| store_error(&error, false))
    }

    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        self.disk.write(self.offset(lba), data).await.map_err(|error| store_error(&error, true))
    }

    async fn flush(&self) -> Result<(), StoreError> {
        self.disk.flush().await.map_err(|error| store_error(&error, true))
    }

    async fn unmap(&self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        self.disk.unmap(self.offset(lba), self.offset(blocks)).await.map_err(|error| store_error(&error, true))
    }

    async fn lba_status(&self, lba: u64) -> Result<LbaStatus, StoreError> {
        if !self.with(|info| info.thin) {
            return Ok(LbaStatus { blocks: self.geometry().blocks.saturating_sub(lba).max(1), mapped: true });
        }
        let extent = self.disk.lba_status(self.offset(lba)).await.map_err(|error| store_error(&error, false))?;
        Ok(LbaStatus { blocks: (extent.len / u64::from(self.disk.block_size())).max(1), mapped: extent.mapped })
    }

    fn open_queue(self: Arc<Self>, waker: Waker) -> Option<Box<dyn StoreQueue>> {
        Some(Box::new(RemoteQueue { store: self, running: FuturesUnordered::new(), waker }))
    }
}

/// The fast door: buffers go to the session as they are and come back, with no copy between the two connections.
struct RemoteQueue {
    store: Arc<RemoteStore>,
    running: FuturesUnordered<BoxFuture<'static, StoreCompletion>>,
    waker: Waker,
}

impl StoreQueue for RemoteQueue {
    fn submit(&mut self, batch: &mut Vec<StoreRequest>) {
        for request in batch.drain(..) {
            let store = self.store.clone();
            self.running.push(Box::pin(perform(store, request)));
        }
        // The futures begin when they are polled.
        self.waker.wake_by_ref();
    }

    fn poll(&mut self, completions: &mut Vec<StoreCompletion>) {
        let mut cx = Context::from_waker(&self.waker);
        while let Poll::Ready(Some(completion)) = std::pin::Pin::new(&mut self.running).poll_next(&mut cx) {
            completions.push(completion);
        }
    }
}

async fn perform(store: Arc<RemoteStore>, request: StoreRequest) -> StoreCompletion {
    let StoreRequest { token, op } = request;
    let mut completion = StoreCompletion { token, buf: None, lba_status: None, result: Ok(()) };
    match op {
        StoreOp::Read { lba, buf } => {
            let len = buf.len();
            let (buf, result) = store.disk.read_buf(store.offset(lba), buf).await;
            completion.result = result.map_err(|error| store_error(&error, false));
            completion.buf = Some(whole(buf, len));
        }
        StoreOp::Write { lba, buf } => {
            let len = buf.len();
            let (buf, result) = store.disk.write_buf(store.offset(lba), buf).await;
            completion.result = result.map_err(|error| store_error(&error, true));
            completion.buf = Some(whole(buf, len));
        }
        StoreOp::Flush => completion.result = store.flush().await,
        StoreOp::Unmap { lba, blocks } => completion.result = store.unmap(lba, blocks).await,
        StoreOp::LbaStatus { lba } => match store.lba_status(lba).await {
            Ok(status) => completion.lba_status = Some(status),
            Err(error) => completion.result = Err(error),
        },
    }
    completion
}

/// A session that ends in the middle of a transfer may keep the buffer; the target's pool gets one of the same length.
fn whole(buf: iscsi_memory::Buf, len: usize) -> iscsi_memory::Buf {
    if buf.len() == len { buf } else { iscsi_memory::Buf::zeroed(len) }
}
