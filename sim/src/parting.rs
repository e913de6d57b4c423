//! A queue pair that tells what the target knows of its session when it goes.
//!
//! As long as it is there, a device may write into memory of a store for the session, so that the session has to be
//! known until it has gone, whatever ends the connection.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use iscsi_memory::{Buf, Payload};
use iser_transport::queue::{
    Completion, Inline, QueueLimits, QueuePair, RegisterError, RemoteAccess, RemoteBuffer, Stag, Work,
};
use target_core::session::Target;

/// The sessions that the target of a connection knew when the queue pair went.
#[derive(Debug, Clone)]
pub struct Parting {
    target: Weak<Target>,
    known: Rc<Cell<Option<usize>>>,
}

impl Parting {
    /// Of a connection that this target takes.
    #[must_use]
    pub fn from(target: &Arc<Target>) -> Self {
        Self { target: Arc::downgrade(target), known: Rc::default() }
    }

    /// Sessions that are known now.
    #[must_use]
    pub fn now_known(&self) -> usize {
        self.target.upgrade().map_or(0, |target| target.registry().entered())
    }

    /// Drops the connection, and looks whether its session was forgotten before its queue pair had gone.
    ///
    /// # Errors
    /// It was.
    pub fn watch(&self, connection: impl Sized) -> Result<(), String> {
        let before = self.now_known();
        drop(connection);
        match self.known.get() {
            Some(known) if known < before => Err("a session was forgotten before its queue pair had gone".into()),
            _ => Ok(()),
        }
    }
}

/// The queue pair.
#[derive(Debug)]
pub struct PartingQueue<Q> {
    queue: Q,
    parting: Parting,
}

impl<Q> PartingQueue<Q> {
    /// The same queue pair, which tells.
    pub fn new(queue: Q, parting: Parting) -> Self {
        Self { queue, parting }
    }
}

impl<Q> Drop for PartingQueue<Q> {
    fn drop(&mut self) {
        self.parting.known.set(Some(self.parting.now_known()));
    }
}

impl<Q: QueuePair> QueuePair for PartingQueue<Q> {
    fn limits(&self) -> QueueLimits {
        self.queue.limits()
    }

    fn post_receive(&mut self, buf: Buf) {
        self.queue.post_receive(buf);
    }

    fn post_receives(&mut self, count: usize, len: usize) {
        self.queue.post_receives(count, len);
    }

    fn trim(&mut self) {
        self.queue.trim();
    }

    fn post(&mut self, work: Work) {
        self.queue.post(work);
    }

    fn post_inline(&mut self, kind: Inline, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool {
        self.queue.post_inline(kind, len, fill)
    }

    fn ring(&mut self) {
        self.queue.ring();
    }

    fn advertise(&mut self, memory: Payload, access: RemoteAccess) -> Result<RemoteBuffer, RegisterError> {
        self.queue.advertise(memory, access)
    }

    fn withdraw(&mut self, stag: Stag) -> Option<Payload> {
        self.queue.withdraw(stag)
    }

    fn poll(&mut self) -> Option<Completion> {
        self.queue.poll()
    }

    fn nudge(&mut self) {
        self.queue.nudge();
    }

    fn disconnect(&mut self) {
        self.queue.disconnect();
    }

    fn abort(&mut self) {
        self.queue.abort();
    }

    fn copied(&self) -> u64 {
        self.queue.copied()
    }
}
