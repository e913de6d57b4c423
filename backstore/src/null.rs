//! The null store: for measuring everything but the store.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::task::Waker;

use async_trait::async_trait;

use super::inline::{Immediate, InlineQueue};
use super::{Abilities, Backstore, Geometry, LbaStatus, StoreError, StoreQueue};

/// Reads give zeros, writes vanish, nothing waits and nothing takes memory.
///
/// ```
/// use futures::executor::block_on;
/// use backstore::{Backstore, NullStore};
/// let store = NullStore::new(1 << 40);
/// block_on(store.write(7, &[1; 512])).unwrap();
/// let mut data = [2; 512];
/// block_on(store.read(7, &mut data)).unwrap();
/// assert_eq!(data, [0; 512]);
/// ```
#[derive(Debug, Clone)]
pub struct NullStore {
    geometry: Geometry,
}

impl NullStore {
    /// A store of `bytes` in blocks of 512 bytes. A tail of less than a block is left out; less than a block is taken
    /// as one.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self { geometry: Geometry::of_bytes(if bytes < 512 { 512 } else { bytes }) }
    }

    /// A store of this size and shape.
    #[must_use]
    pub const fn with_geometry(geometry: Geometry) -> Self {
        Self { geometry }
    }
}

impl Immediate for NullStore {
    fn read_now(&self, _: u64, data: &mut [u8]) -> Result<(), StoreError> {
        data.fill(0);
        Ok(())
    }

    fn write_now(&self, _: u64, _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }

    fn unmap_now(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn lba_status_now(&self, lba: u64) -> LbaStatus {
        LbaStatus { blocks: (self.geometry.blocks.saturating_sub(lba)).max(1), mapped: false }
    }
}

#[async_trait]
impl Backstore for NullStore {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            unmap: true,
            unmapped_reads_zero: true,
            unmap_granularity: 1,
            solid_state: true,
            ..Abilities::default()
        }
    }

    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        self.read_now(lba, data)
    }

    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        self.write_now(lba, data)
    }

    async fn unmap(&self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        self.unmap_now(lba, blocks)
    }

    async fn lba_status(&self, lba: u64) -> Result<LbaStatus, StoreError> {
        Ok(self.lba_status_now(lba))
    }

    fn open_queue(self: Arc<Self>, _: Waker) -> Option<Box<dyn StoreQueue>> {
        Some(Box::new(InlineQueue::new(self)))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use futures::executor::block_on;
    use iscsi_memory::Buf;

    use super::*;
    use crate::{StoreOp, StoreRequest};

    #[test]
    fn the_queue_answers_every_request_at_the_next_poll() {
        let store = Arc::new(NullStore::new(1 << 30));
        let mut queue = store.open_queue(Waker::noop().clone()).expect("a queue");
        let mut buf = Buf::zeroed(1024);
        buf.fill(9);
        let mut batch = Vec::from([
            StoreRequest { token: 1, op: StoreOp::Read { lba: 5, buf } },
            StoreRequest { token: 2, op: StoreOp::Write { lba: 5, buf: Buf::zeroed(512) } },
            StoreRequest { token: 3, op: StoreOp::Flush },
            StoreRequest { token: 4, op: StoreOp::Unmap { lba: 0, blocks: 8 } },
            StoreRequest { token: 5, op: StoreOp::LbaStatus { lba: 8 } },
        ]);
        queue.submit(&mut batch);
        assert!(batch.is_empty());
        let mut done = Vec::new();
        queue.poll(&mut done);
        assert_eq!(done.iter().map(|c| c.token).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(done.iter().all(|c| c.result.is_ok()));
        assert!(done[0].buf.as_ref().is_some_and(|buf| buf.len() == 1024 && buf.iter().all(|b| *b == 0)));
        assert_eq!(done[4].lba_status, Some(LbaStatus { blocks: (1 << 21) - 8, mapped: false }));
        done.clear();
        queue.poll(&mut done);
        assert!(done.is_empty());
    }

    #[test]
    fn a_size_below_a_block_is_a_block() {
        assert_eq!(NullStore::new(0).geometry().blocks, 1);
        assert_eq!(block_on(NullStore::new(0).lba_status(0)), Ok(LbaStatus { blocks: 1, mapped: false }));
    }
}
