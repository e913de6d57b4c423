//! The fast door of stores that answer at once: requests are done inside [`StoreQueue::submit`].

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{LbaStatus, StoreCompletion, StoreError, StoreOp, StoreQueue, StoreRequest};

/// What an immediate store does, without waiting.
pub(super) trait Immediate: Send + Sync + 'static {
    fn read_now(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError>;
    fn write_now(&self, lba: u64, data: &[u8]) -> Result<(), StoreError>;
    fn unmap_now(&self, lba: u64, blocks: u64) -> Result<(), StoreError>;
    fn lba_status_now(&self, lba: u64) -> LbaStatus;
}

/// A queue whose completions wait for the next poll and nothing else.
pub(super) struct InlineQueue<S> {
    store: Arc<S>,
    done: Vec<StoreCompletion>,
}

impl<S> InlineQueue<S> {
    pub(super) fn new(store: Arc<S>) -> Self {
        Self { store, done: Vec::new() }
    }
}

impl<S: Immediate> StoreQueue for InlineQueue<S> {
    fn submit(&mut self, batch: &mut Vec<StoreRequest>) {
        for StoreRequest { token, op } in batch.drain(..) {
            let mut completion = StoreCompletion { token, buf: None, lba_status: None, result: Ok(()) };
            match op {
                StoreOp::Read { lba, mut buf } => {
                    completion.result = self.store.read_now(lba, &mut buf);
                    completion.buf = Some(buf);
                }
                StoreOp::Write { lba, buf } => {
                    completion.result = self.store.write_now(lba, &buf);
                    completion.buf = Some(buf);
                }
                StoreOp::Flush => {}
                StoreOp::Unmap { lba, blocks } => completion.result = self.store.unmap_now(lba, blocks),
                StoreOp::LbaStatus { lba } => completion.lba_status = Some(self.store.lba_status_now(lba)),
            }
            self.done.push(completion);
        }
    }

    fn poll(&mut self, completions: &mut Vec<StoreCompletion>) {
        completions.append(&mut self.done);
    }
}
