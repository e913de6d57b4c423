//! What the iSER mover asks of RDMA: a connected queue pair, behind one trait for all providers.
//!
//! The trait is synchronous and never blocks. It has no wake-ups: each provider is driven in its own way (`iwarp` by
//! the byte-stream driver, `loopback` by whoever tests, `verbs` by a driver over its event channels), and the mover
//! polls it when it was driven.
//!
//! # Contract
//!
//! 1. Everything that is posted comes back by [`QueuePair::poll`] exactly once: a receive as [`Completion::Received`]
//!    or [`Completion::ReceiveFlushed`], other work as [`Completion::Done`] or [`Completion::Flushed`]. Posting never
//!    fails: on a queue pair that has ended, work comes back flushed. Only what a device does not let go of is lost,
//!    before [`Completion::Ended`].
//! 2. Receives are consumed in the order in which they were posted. Work is started in the order in which it was
//!    posted, and completes in that order; receives and other work complete independently of each other. A receive that
//!    answers a Send may be reported before that Send is done.
//! 3. The peer that takes a Send also sees the data of every Write posted before it. A Send does *not* wait for a Read
//!    posted before it.
//! 4. The mover keeps within [`QueueLimits`]; Reads beyond the [read depth](Established::read_depth) wait in the queue
//!    pair, and what is posted behind them. [`Completion::Established`] comes before any other completion; work and
//!    receives may be posted before it.
//! 5. Work that fails, a peer that breaks a rule, and the loss of the connection all end the queue pair: what is posted
//!    comes back flushed, then [`Completion::Ended`], and nothing after it but what is posted later still.
//! 6. Memory under a work request or an advertisement is touched by nobody else until it comes back.
//! 7. An advertised buffer can be reached by the peer of this connection only, within its bounds, in the granted
//!    direction, until it is withdrawn, or invalidated by the peer, or the connection ends. What comes for an STag that
//!    does not allow it ends the connection and touches no memory.

use iscsi_memory::{Buf, Lease, Payload, ReceiveWindow, SendList};
use iscsi_proto::connection::StreamEnd;

/// A steering tag: names an advertised buffer to the peer (RFC 5040 1.1). Verbs call it a remote key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Stag(pub u32);

/// A buffer of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemoteBuffer {
    /// Its STag.
    pub stag: Stag,
    /// Tagged offset (virtual address) of its first byte.
    pub offset: u64,
}

/// What a peer may do with an advertised buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteAccess {
    /// RDMA Read.
    Read,
    /// RDMA Write.
    Write,
}

/// One work request other than a receive. `id` is the mover's own and comes back in the completion.
#[derive(Debug)]
pub enum Work {
    /// A message, which takes one receive of the peer.
    Send {
        /// The mover's name for it.
        id: u64,
        /// The message.
        message: Lease,
        /// An STag of the peer that dies with the message's delivery (Send with Invalidate). Only where the peer's
        /// private data allow it, and only one that the peer advertised for the task at hand.
        invalidate: Option<Stag>,
    },
    /// RDMA Write.
    Write {
        /// The mover's name for it.
        id: u64,
        /// The data.
        from: Lease,
        /// Where they go.
        to: RemoteBuffer,
    },
    /// RDMA Read.
    Read {
        /// The mover's name for it.
        id: u64,
        /// Where the data land.
        into: Lease,
        /// Where they are.
        from: RemoteBuffer,
    },
}

/// A short payload's kind: see [`QueuePair::post_inline`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inline {
    /// A message, as [`Work::Send`].
    Send {
        /// An STag of the peer that dies with the message's delivery.
        invalidate: Option<Stag>,
    },
    /// RDMA Write.
    Write {
        /// Where the data go.
        to: RemoteBuffer,
    },
}

/// What became of something posted, and of the connection.
#[derive(Debug)]
pub enum Completion {
    /// The connection stands. The first completion of all.
    Established(Established),
    /// A message came.
    Received {
        /// The receive's buffer.
        buf: Buf,
        /// Bytes of the message, from the buffer's first byte on.
        len: usize,
        /// An STag of ours that the peer invalidated with it. It is dead; its memory still is to be fetched with
        /// [`QueuePair::withdraw`].
        invalidated: Option<Stag>,
    },
    /// A receive was not used: the connection is over.
    ReceiveFlushed(Buf),
    /// Work is done: a Send or Write no longer needs its memory, a Read has all its data in place.
    Done {
        /// The work's id.
        id: u64,
        /// Its memory.
        memory: Payload,
    },
    /// Work was not done, or not known to be done: the connection is over. What a Read's memory holds is unspecified.
    Flushed {
        /// The work's id.
        id: u64,
        /// Its memory.
        memory: Payload,
    },
    /// The connection is over and nothing is in flight any more. The last completion of all.
    Ended(EndCause),
}

/// What the two ends agreed on when the connection came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Established {
    /// First byte of the private data that the peer sent with the connection, if it sent any. The rest has no meaning
    /// for iSER, and some networks pad it.
    pub peer_private: Option<u8>,
    /// RDMA Reads that may be in flight from our side (ORD). Zero: the peer takes none.
    pub read_depth: u16,
    /// RDMA Reads of the peer that this side serves at a time (IRD).
    pub served_depth: u16,
}

/// Why a queue pair ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndCause {
    /// We asked for it.
    #[error("the connection was closed on our request")]
    Closed,
    /// The peer closed it in order.
    #[error("the peer closed the connection")]
    PeerClosed,
    /// The transport below broke.
    #[error("the connection broke")]
    Broken,
    /// The peer refused the connection.
    #[error("the peer refused the RDMA connection: it serves no iSER there")]
    Rejected,
    /// The peer reported an error of ours and ended the connection (RDMAP Terminate, or an error completion that names
    /// the remote side).
    #[error("the peer ended the connection: {0}")]
    ByPeer(&'static str),
    /// The peer broke a rule: a bad STag, bytes out of bounds, a message without a receive or longer than it, a header
    /// that cannot be.
    #[error("the peer broke the RDMA protocol: {0}")]
    PeerProtocol(&'static str),
    /// Local work failed.
    #[error("an RDMA operation failed: {0}")]
    WorkFailed(&'static str),
    /// The device is gone.
    #[error("the RDMA device is gone")]
    DeviceGone,
}

/// Bounds of a queue pair. Providers round up what they were asked for: believe this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Work requests other than receives that may be posted and not done.
    pub work: usize,
    /// Receives that may be posted and not used.
    pub receives: usize,
    /// Longest Read or Write in bytes.
    pub transfer: usize,
}

/// A buffer cannot be made reachable for the device or the peer; the memory comes back.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct RegisterError {
    /// The memory.
    pub memory: Payload,
    /// What is wrong, and what to do.
    pub reason: RegisterReason,
}

/// Why memory cannot be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegisterReason {
    /// The table of advertisements is full.
    #[error("no more buffers can be advertised on this connection")]
    TooMany,
    /// The configured budget of registered memory is used up.
    #[error("the limit of registered memory ({0} bytes) is reached: raise it in the configuration")]
    Budget(u64),
    /// `ulimit -l` is too small.
    #[error(
        "the process may not lock more memory (`ulimit -l`): raise the memlock limit, or lower the limit of registered \
         memory"
    )]
    MemoryLock,
    /// Another refusal of the device, with its error number.
    #[error("the RDMA device refused to register memory (error {0})")]
    Device(i32),
}

/// A connected, or connecting, queue pair. See the [module](self) for the contract.
pub trait QueuePair {
    /// Its bounds.
    fn limits(&self) -> QueueLimits;

    /// Posts a receive for a message of at most `buf.len()` bytes.
    fn post_receive(&mut self, buf: Buf);

    /// Posts `count` receives for messages of at most `len` bytes each. A provider that needs no memory for a receive
    /// before its message comes takes it then.
    fn post_receives(&mut self, count: usize, len: usize) {
        for _ in 0..count {
            self.post_receive(Buf::zeroed(len));
        }
    }

    /// Posts one receive for a message of at most `len` bytes, where little comes and goes until the next
    /// [`post_receives`](Self::post_receives): a login, of a peer that has proved nothing. A provider that can takes
    /// memory for the receive when its message comes, and none for bulk.
    fn post_single(&mut self, len: usize) {
        self.post_receive(Buf::zeroed(len));
    }

    /// Nothing has come or gone for a while: gives back memory that is for bulk. It is taken again when it is needed.
    fn trim(&mut self) {}

    /// Posts work. It may wait for [`ring`](Self::ring) before it starts.
    fn post(&mut self, work: Work);

    /// Posts a short payload of `len` bytes without memory of its own, and without a completion: `fill` writes it to
    /// where it leaves from. In order it stands behind all work posted before and before all that is posted later.
    ///
    /// False, and `fill` was not called, when it has to be [posted](Self::post) instead: the provider takes none
    /// inline, or none so long, or work that was posted before has not started.
    fn post_inline(&mut self, kind: Inline, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool {
        let _ = (kind, len, fill);
        false
    }

    /// The doorbell: starts what was posted since the last call, receives first, as one batch.
    fn ring(&mut self);

    /// Lets the peer reach memory, until it is withdrawn.
    ///
    /// # Errors
    /// When a limit is reached or the device refuses; the memory comes back in the error.
    fn advertise(&mut self, memory: Payload, access: RemoteAccess) -> Result<RemoteBuffer, RegisterError>;

    /// Ends an advertisement. `None` for an STag that we do not advertise, and for memory that the device does not let
    /// go of, which is lost and ends the connection. While the connection stands the peer cannot reach the memory from
    /// here on; what it sends for the STag ends the connection.
    fn withdraw(&mut self, stag: Stag) -> Option<Payload>;

    /// The next completion.
    fn poll(&mut self) -> Option<Completion>;

    /// The peer has said nothing yet though something was sent to it. A provider whose peer may have overlooked that
    /// sends something that means nothing, and makes the peer look.
    fn nudge(&mut self) {}

    /// Ends the connection in order: work that is posted is sent as far as the peer takes it. Reads that have not started
    /// may be put behind all else: nobody waits for what they bring. Idempotent.
    fn disconnect(&mut self);

    /// Ends the connection at once: what is posted comes back flushed as soon as nothing touches its memory.
    /// Idempotent.
    fn abort(&mut self);

    /// Payload bytes that the provider copied since the connection began.
    fn copied(&self) -> u64 {
        0
    }
}

/// A queue pair that runs over a byte stream: what lets an iSER connection be driven like a TCP one.
pub trait StreamQueue: QueuePair {
    /// Where the next bytes of the stream go; see [`iscsi_proto::connection::StreamConnection::receive_window`].
    fn receive_window(&mut self) -> ReceiveWindow<'_>;

    /// The first `n` bytes of the last window are filled.
    fn handle_received(&mut self, n: usize);

    /// The stream ended.
    fn handle_stream_end(&mut self, end: StreamEnd);

    /// Adds what is to be sent, in order, as far as the list has room.
    fn fill_send_list<'a>(&'a self, list: &mut SendList<'a>);

    /// The first `n` bytes of what [`fill_send_list`](Self::fill_send_list) gave were sent.
    fn handle_sent(&mut self, n: usize);

    /// Whether [`fill_send_list`](Self::fill_send_list) has anything to add.
    fn is_sending(&self) -> bool;

    /// Bytes that wait to be sent.
    fn backlog(&self) -> usize;
}
