//! What a queue pair of verbs asks of its device: a seam below the queue pair's own logic, so that the logic can be
//! tested without a device.

use iscsi_memory::{DevicePiece, Registrar};
use iscsi_proto::time::Instant;

use super::connection::Parameters;
use crate::queue::{EndCause, RemoteBuffer, Stag};

/// A work request, ready for the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    /// Comes back in its completion.
    pub(super) id: u64,
    pub(super) operation: Operation,
    /// Its memory: so many pieces of the batch, after those of the requests before it.
    pub(super) pieces: usize,
    /// Whether it has a completion of its own when it succeeds.
    pub(super) is_signaled: bool,
    /// Whether the device copies the memory during the call.
    pub(super) is_inline: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Send(Option<Stag>),
    Write(RemoteBuffer),
    Read(RemoteBuffer),
}

/// Work requests that are started together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) requests: Vec<Request>,
    pub(super) pieces: Vec<DevicePiece>,
}

/// The device did not take all of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    /// It took so many of them.
    pub(super) taken: usize,
}

/// A completion, as the device gives it.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkCompletion {
    pub(super) id: u64,
    /// Zero, or an `IBV_WC_*_ERR`.
    pub(super) status: i32,
    /// Bytes of a message that came.
    pub(super) len: usize,
    pub(super) invalidated: Option<Stag>,
}

/// What happened to the connection, other than completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortEvent {
    Established(Parameters),
    Rejected,
    Failed,
    Disconnected,
    DeviceGone,
    /// The device says that the peer broke a rule.
    PeerProtocol(&'static str),
    /// The device says that the queue pair has failed.
    QueueFailed,
}

/// What the device gave, which may be more than was asked for, or less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capacity {
    pub(super) work: usize,
    pub(super) receives: usize,
    /// Pieces of memory in a Send or Write.
    pub(super) pieces: usize,
    /// Pieces of memory in a Read.
    pub(super) read_pieces: usize,
    /// Bytes that the device copies while a request is posted.
    pub(super) inline: usize,
    /// Whether a peer has to be allowed to write where a Read lands.
    pub(super) read_sink_is_remote: bool,
    /// Bytes of an unsignaled Write from which on its memory is still read after a later request has completed: such
    /// Writes need a completion of their own.
    pub(super) lends_unsignaled: usize,
}

/// The device's side of a queue pair.
#[allow(unsafe_code, reason = "memory that is posted has to be kept, which no type says")]
pub(super) trait Port {
    /// What time it is, since an epoch of the port's choice.
    fn now(&self) -> Instant;

    /// What it can do.
    fn capacity(&self) -> Capacity;

    /// What the peer said with its request, where this end is the one that accepts: it may hear a message before it
    /// hears that the connection stands.
    fn told(&self) -> Option<Parameters>;

    /// Registers memory for it. `None` after [`destroy`](Self::destroy).
    fn registrar(&self) -> Option<&dyn Registrar>;

    /// Connects, or accepts. Receives may be posted before, work only when the connection stands.
    fn establish(&mut self) -> Result<(), EndCause>;

    /// Starts work, with one doorbell.
    ///
    /// # Safety
    /// The memory of the pieces stays where it is and is touched by nobody else until its request has completed, or
    /// [`destroy`](Self::destroy) has returned true.
    unsafe fn post(&mut self, batch: &Batch) -> Result<(), Refused>;

    /// Posts receives, each an id and its memory (none for a receive without room).
    ///
    /// # Safety
    /// As for [`post`](Self::post).
    unsafe fn post_receives(&mut self, receives: &[(u64, Option<DevicePiece>)]) -> Result<(), Refused>;

    /// The next completions, appended. An error means that the completion queue is of no use any more.
    fn poll(&mut self, completions: &mut Vec<WorkCompletion>) -> Result<(), ()>;

    /// The next event.
    fn poll_event(&mut self) -> Option<PortEvent>;

    /// Tells the peer that the connection ends. Work that is done, or under way, still gets there.
    fn disconnect(&mut self);

    /// Stops all work at once: what is posted completes with an error.
    fn fail(&mut self);

    /// Ends the queue pair and all that belongs to it. True when the device touches no memory any more; false means
    /// that it may do so for ever.
    fn destroy(&mut self) -> bool;
}
