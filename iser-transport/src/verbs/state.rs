//! The logic of a queue pair of verbs, over any [`Port`].
//!
//! Work waits in `pending` until it is issued; what is issued lies in `posted`, in order, and leaves it in order,
//! whatever the order of completions: each stands also for all unsignaled requests before it. Receives complete in
//! order.
//!
//! `issue` has the way to the device, `complete` the way back, `ending` the end.
mod complete;
mod ending;
mod issue;

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iscsi_memory::{Access, Advertised, Buf, DevicePiece, Payload, PieceHold, RegisterFailure, Registrar};
use iscsi_proto::time::Instant;
use portable_atomic::AtomicU64;

use super::config::VerbsConfig;
use super::jobs::{Bounce, Job, Jobs, Posted};
use super::port::{Batch, Capacity, Port, WorkCompletion};
use crate::queue::{
    Completion, EndCause, QueueLimits, RegisterError, RegisterReason, RemoteAccess, RemoteBuffer, Stag, Work,
};

/// Marks the id of a receive.
const RECEIVE: u64 = 1 << 63;

/// What the driver of a queue pair has to know of it.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Counts completions and events.
    pub(super) count: AtomicU64,
    /// The end is under way: look again soon, whatever the device says.
    pub(super) is_ending: AtomicBool,
    /// Something took long, or there is more: others are to have their turn before this queue pair goes on.
    pub(super) gives_way: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The peer has not been asked, or not been answered.
    Idle,
    /// It has.
    Connecting,
    Established,
    /// What is posted is still sent; nothing is posted any more.
    Closing,
    /// The peer has been told that it is over, and may still take what is under way.
    Parting,
    /// The queue pair has been stopped; what is posted completes with errors.
    Draining,
    Ended,
}

#[derive(Debug)]
pub(super) struct State<P: Port> {
    pub(super) port: P,
    capacity: Capacity,
    limits: QueueLimits,
    advertisements: usize,
    linger: std::time::Duration,
    phase: Phase,
    cause: Option<EndCause>,
    deadline: Option<Instant>,
    read_depth: u16,
    staged_receives: Vec<Buf>,
    receives: VecDeque<Buf>,
    /// The id of the oldest receive that is posted, and how many of the youngest the device has refused.
    first_receive: u64,
    refused_receives: usize,
    jobs: Jobs,
    pending: VecDeque<usize>,
    /// Jobs whose order in `pending` was changed, as they were posted.
    passed: VecDeque<usize>,
    posted: VecDeque<Posted>,
    first_posted: u64,
    refused: usize,
    reads: u16,
    bounce: Bounce,
    /// Registrations that requests in `posted` use, in their order.
    holds: VecDeque<PieceHold>,
    /// Memory was registered since the queue pair last had nothing to do: what else is to be registered is copied.
    pub(super) has_registered: Cell<bool>,
    /// Completions given since then.
    given: usize,
    advertised: Vec<(Stag, Advertised)>,
    ready: VecDeque<Completion>,
    batch: Batch,
    receive_batch: Vec<(u64, Option<DevicePiece>)>,
    completions: Vec<WorkCompletion>,
    pub(super) activity: Arc<Activity>,
}

impl<P: Port> State<P> {
    pub(super) fn new(port: P, config: &VerbsConfig) -> Result<Self, RegisterFailure> {
        let capacity = port.capacity();
        let registrar = port.registrar().ok_or(RegisterFailure::Device(0))?;
        let bounce = Bounce::new(registrar, config.bounce_buffers, config.bounce_bytes)?;
        Ok(Self {
            capacity,
            limits: QueueLimits {
                work: capacity.work,
                receives: capacity.receives,
                transfer: config.transfer.clamp(4096, 1 << 30),
            },
            advertisements: config.advertisements,
            linger: config.linger,
            phase: Phase::Idle,
            cause: None,
            deadline: None,
            read_depth: 0,
            staged_receives: Vec::with_capacity(capacity.receives),
            receives: VecDeque::with_capacity(capacity.receives),
            first_receive: 0,
            refused_receives: 0,
            jobs: Jobs::new(capacity.work),
            pending: VecDeque::with_capacity(capacity.work),
            passed: VecDeque::new(),
            posted: VecDeque::with_capacity(capacity.work),
            first_posted: 0,
            refused: 0,
            reads: 0,
            bounce,
            holds: VecDeque::with_capacity(capacity.work),
            has_registered: Cell::new(false),
            given: 0,
            advertised: Vec::new(),
            ready: VecDeque::with_capacity(capacity.work + capacity.receives),
            batch: Batch::default(),
            receive_batch: Vec::with_capacity(capacity.receives),
            completions: Vec::with_capacity(64),
            activity: Arc::default(),
            port,
        })
    }

    pub(super) fn limits(&self) -> QueueLimits {
        self.limits
    }

    pub(super) fn copied(&self) -> u64 {
        self.bounce.copied
    }

    fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn end_cause(&self) -> Option<EndCause> {
        (self.phase == Phase::Ended).then(|| self.cause.unwrap_or(EndCause::Broken))
    }

    /// Whether the first completion is there, or the last.
    pub(super) fn is_decided(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::Connecting)
    }

    pub(super) fn post_receive(&mut self, buf: Buf) {
        if self.phase == Phase::Ended {
            self.ready.push_back(Completion::ReceiveFlushed(buf));
        } else {
            self.staged_receives.push(buf);
        }
    }

    pub(super) fn post(&mut self, work: Work) {
        let job = Job::new(work);
        if self.phase == Phase::Ended {
            self.ready.push_back(Completion::Flushed { id: job.id, memory: job.into_memory() });
        } else {
            let index = self.jobs.insert(job);
            self.pending.push_back(index);
        }
    }

    pub(super) fn ring(&mut self) {
        if self.phase == Phase::Idle {
            self.post_receives();
            self.establish();
        }
        self.issue();
    }

    /// Connects or accepts, if that has not been done.
    pub(super) fn establish(&mut self) {
        if self.phase != Phase::Idle {
            return;
        }
        self.phase = Phase::Connecting;
        if let Err(cause) = self.port.establish() {
            self.end(Some(cause));
        }
    }

    pub(super) fn disconnect(&mut self) {
        match self.phase {
            Phase::Idle | Phase::Connecting => self.abort(),
            Phase::Established => {
                self.put_reads_last();
                self.issue();
                if self.phase == Phase::Established {
                    self.phase = Phase::Closing;
                    self.deadline = Some(self.port.now() + self.linger);
                    self.activity.is_ending.store(true, Ordering::Relaxed);
                    self.move_on(false);
                }
            }
            Phase::Closing | Phase::Parting | Phase::Draining | Phase::Ended => {}
        }
    }

    pub(super) fn abort(&mut self) {
        self.end(Some(EndCause::Closed));
    }

    pub(super) fn advertise(&mut self, memory: Payload, access: RemoteAccess) -> Result<RemoteBuffer, RegisterError> {
        if self.advertised.len() >= self.advertisements {
            return Err(RegisterError { memory, reason: RegisterReason::TooMany });
        }
        let access = match access {
            RemoteAccess::Read => Access::RemoteRead,
            RemoteAccess::Write => Access::RemoteWrite,
        };
        let len = memory.len();
        let registrar: &dyn Registrar = match self.port.registrar() {
            Some(registrar) if len > 0 => registrar,
            Some(_) => return Err(RegisterError { memory, reason: RegisterReason::Device(libc::EINVAL) }),
            None => return Err(RegisterError { memory, reason: RegisterReason::Device(libc::ENOTCONN) }),
        };
        match Advertised::new(memory, 0, len, registrar, access) {
            Ok(advertised) => {
                let stag = Stag(advertised.remote_key());
                let offset = advertised.address();
                self.advertised.push((stag, advertised));
                Ok(RemoteBuffer { stag, offset })
            }
            Err((memory, failure)) => Err(RegisterError { memory, reason: reason(failure) }),
        }
    }

    pub(super) fn withdraw(&mut self, stag: Stag) -> Option<Payload> {
        let index = self.advertised.iter().position(|(other, _)| *other == stag)?;
        let (_, advertised) = self.advertised.swap_remove(index);
        let memory = advertised.end();
        if memory.is_none() {
            self.end(Some(EndCause::WorkFailed("the device does not let go of a buffer")));
        }
        memory
    }
}

impl<P: Port> Drop for State<P> {
    fn drop(&mut self) {
        if self.phase == Phase::Ended {
            return;
        }
        if !matches!(self.phase, Phase::Idle | Phase::Connecting) {
            self.port.disconnect();
        }
        self.port.fail();
        if self.port.destroy() {
            self.let_go();
        } else {
            self.lose();
        }
    }
}

fn reason(failure: RegisterFailure) -> RegisterReason {
    match failure {
        RegisterFailure::Budget(limit) => RegisterReason::Budget(limit),
        RegisterFailure::MemoryLock => RegisterReason::MemoryLock,
        RegisterFailure::Device(error) => RegisterReason::Device(error),
    }
}
