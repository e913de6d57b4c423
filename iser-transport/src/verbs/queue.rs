//! The queue pair that the mover holds.

use std::net::SocketAddr;

use iscsi_memory::{Buf, Payload};

use super::config::VerbsConfig;
use super::device::DeviceInfo;
use super::endpoint::DevicePort;
use super::error::VerbsError;
use super::events::VerbsEvents;
use super::state::State;
use crate::queue::{
    Completion, EndCause, QueueLimits, QueuePair, RegisterError, RemoteAccess, RemoteBuffer, Stag, Work,
};

/// A queue pair of an RDMA device. Comes from a [`VerbsListener`](super::VerbsListener) or from `Verbs::connect`
/// (feature `tokio`).
///
/// It is made before the connection stands: receives that are posted at once are there when the peer's first message
/// comes. The peer is asked, or answered, by the first [`ring`](QueuePair::ring) or [`poll`](QueuePair::poll). A queue
/// pair of a listener that is dropped before that refuses the peer.
#[derive(Debug)]
pub struct VerbsQueue {
    state: State<DevicePort>,
    device: DeviceInfo,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
}

impl VerbsQueue {
    pub(super) fn new(port: DevicePort, device: DeviceInfo, config: &VerbsConfig) -> Result<Self, VerbsError> {
        let (local, peer) = port.id().map_or((None, None), |id| (id.local(), id.peer()));
        let state = State::new(port, config).map_err(VerbsError::Register)?;
        Ok(Self { state, device, local, peer })
    }

    /// Asks the peer to connect, or answers it, with private data of one's own instead of those of the configuration.
    /// Does nothing if that was done.
    pub fn establish(&mut self, private: &[u8]) {
        self.state.port.set_private(private);
        self.state.ring();
    }

    /// What its driver waits for.
    #[must_use]
    pub fn events(&self) -> VerbsEvents {
        VerbsEvents::new(&self.state.port, self.state.activity.clone())
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &DeviceInfo {
        &self.device
    }

    /// Our address of the connection.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.local
    }

    /// The peer's address.
    #[must_use]
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Whether [`Completion::Established`] or [`Completion::Ended`] is there or was: connecting is over.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        self.state.is_decided()
    }

    /// Why it has ended, if it has.
    #[must_use]
    pub fn end_cause(&self) -> Option<EndCause> {
        self.state.end_cause()
    }

    /// Takes what the device has to say, and leaves the completions for [`poll`](QueuePair::poll). Whether it said
    /// something.
    pub fn progress(&mut self) -> bool {
        self.state.ring();
        self.state.progress()
    }
}

impl QueuePair for VerbsQueue {
    fn limits(&self) -> QueueLimits {
        self.state.limits()
    }

    fn post_receive(&mut self, buf: Buf) {
        self.state.post_receive(buf);
    }

    fn post(&mut self, work: Work) {
        self.state.post(work);
    }

    fn ring(&mut self) {
        self.state.ring();
    }

    fn advertise(&mut self, memory: Payload, access: RemoteAccess) -> Result<RemoteBuffer, RegisterError> {
        self.state.advertise(memory, access)
    }

    fn withdraw(&mut self, stag: Stag) -> Option<Payload> {
        self.state.withdraw(stag)
    }

    fn poll(&mut self) -> Option<Completion> {
        self.state.poll()
    }

    fn disconnect(&mut self) {
        self.state.disconnect();
    }

    fn abort(&mut self) {
        self.state.abort();
    }

    /// Those whose own memory could not be registered.
    fn copied(&self) -> u64 {
        self.state.copied()
    }
}
