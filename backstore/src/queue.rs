//! The easy door behind the fast one: runs the futures of [`Backstore`]'s methods as a [`StoreQueue`].

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use futures::stream::{FuturesUnordered, StreamExt};

use super::{Backstore, StoreCompletion, StoreError, StoreOp, StoreQueue, StoreRequest};

type Running = Pin<Box<dyn Future<Output = StoreCompletion> + Send>>;

/// A [`StoreQueue`] over any store's async methods. An operation that is ready at its first poll completes within
/// `submit`.
///
/// How many run at a time is bounded by who submits: the task executor has one operation per task.
pub struct EasyQueue {
    store: Arc<dyn Backstore>,
    running: FuturesUnordered<Running>,
    done: Vec<StoreCompletion>,
    waker: Waker,
}

impl EasyQueue {
    /// A queue on `store`; `waker` is woken when an operation under way can go on.
    #[must_use]
    pub fn new(store: Arc<dyn Backstore>, waker: Waker) -> Self {
        Self { store, running: FuturesUnordered::new(), done: Vec::new(), waker }
    }
}

impl core::fmt::Debug for EasyQueue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("EasyQueue")
            .field("running", &self.running.len())
            .field("done", &self.done.len())
            .finish_non_exhaustive()
    }
}

async fn run(store: Arc<dyn Backstore>, StoreRequest { token, op }: StoreRequest) -> StoreCompletion {
    let done = |buf, result: Result<(), StoreError>| StoreCompletion { token, buf, lba_status: None, result };
    match op {
        StoreOp::Read { lba, mut buf } => {
            let result = store.read(lba, &mut buf).await;
            done(Some(buf), result)
        }
        StoreOp::Write { lba, buf } => {
            let result = store.write(lba, &buf).await;
            done(Some(buf), result)
        }
        StoreOp::Flush => done(None, store.flush().await),
        StoreOp::Unmap { lba, blocks } => done(None, store.unmap(lba, blocks).await),
        StoreOp::LbaStatus { lba } => match store.lba_status(lba).await {
            Ok(status) => StoreCompletion { token, buf: None, lba_status: Some(status), result: Ok(()) },
            Err(error) => done(None, Err(error)),
        },
    }
}

impl StoreQueue for EasyQueue {
    fn submit(&mut self, batch: &mut Vec<StoreRequest>) {
        let mut context = Context::from_waker(&self.waker);
        for request in batch.drain(..) {
            let mut future: Running = Box::pin(run(self.store.clone(), request));
            match future.as_mut().poll(&mut context) {
                Poll::Ready(completion) => self.done.push(completion),
                // Its next poll, within the set, leaves the set's own waker with it.
                Poll::Pending => self.running.push(future),
            }
        }
    }

    fn poll(&mut self, completions: &mut Vec<StoreCompletion>) {
        completions.append(&mut self.done);
        let mut context = Context::from_waker(&self.waker);
        while let Poll::Ready(Some(completion)) = self.running.poll_next_unpin(&mut context) {
            completions.push(completion);
        }
    }
}
