//! What a user of verbs may choose.

use std::sync::Arc;
use std::time::Duration;

use iscsi_memory::RegistrationBudget;

/// Limits and habits of all queue pairs of a [`Verbs`](super::Verbs).
#[derive(Debug, Clone)]
pub struct VerbsConfig {
    /// Work requests that a queue pair takes. Default 256. A device with less gives less.
    pub work: usize,
    /// Receives that a queue pair takes. Default 256. A device with less gives less.
    pub receives: usize,
    /// Longest Read or Write in bytes. Default 16 MiB, at most 1 GiB.
    pub transfer: usize,
    /// RDMA Reads in flight, each way. Default 16, at most 255. A device or a peer with less gives less.
    pub read_depth: u8,
    /// Buffers that may be advertised at a time on one queue pair. Default 1024.
    pub advertisements: usize,
    /// Connection requests that may wait to be accepted. Default 128.
    pub backlog: u16,
    /// What is registered may be so many bytes. Default 4 GiB of its own; one budget may serve several users of RDMA.
    pub budget: Arc<RegistrationBudget>,
    /// Whether the connections that are accepted on one device share a protection domain, so that a store is registered
    /// once for all, and stays so after the last has gone. Default true. What one of them advertises another's peer
    /// could then reach; iSER targets advertise nothing.
    pub shares_domain: bool,
    /// Buffers of [`bounce_bytes`](Self::bounce_bytes) that each queue pair registers for data in memory that the
    /// budget, or the kernel, does not let be registered. Such data are copied. Default 4, at least 1.
    pub bounce_buffers: usize,
    /// Bytes of one such buffer. Default 64 KiB; no message that is copied may be longer.
    pub bounce_bytes: usize,
    /// How long an idle connection looks for completions by itself before it sleeps until the device wakes it. It does
    /// so only where it has paid lately. Default 200 us; zero never spins.
    pub spin: Duration,
    /// How long the end of a connection may take: what is posted is sent, the peer answers, the device lets go. Default
    /// 1 s for each.
    pub linger: Duration,
    /// Private data of the connection request or reply, of which the first 56 bytes are sent. Default
    /// `[0xC0, 0, 0, 0]`, the iSER header of "no zero-based addresses, no remote invalidation": what this provider
    /// advertises cannot be invalidated by a peer.
    pub private: Vec<u8>,
}

impl Default for VerbsConfig {
    fn default() -> Self {
        Self {
            work: 256,
            receives: 256,
            transfer: 16 << 20,
            read_depth: 16,
            advertisements: 1024,
            backlog: 128,
            budget: RegistrationBudget::new(RegistrationBudget::DEFAULT_LIMIT),
            shares_domain: true,
            bounce_buffers: 4,
            bounce_bytes: 64 << 10,
            spin: Duration::from_micros(200),
            linger: Duration::from_secs(1),
            private: vec![0xC0, 0, 0, 0],
        }
    }
}
