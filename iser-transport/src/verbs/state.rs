//! The logic of a queue pair of verbs, over any [`Port`].
//!
//! Work waits in `pending` until it is issued; what is issued lies in `posted`, in order, and leaves it in order, whatever the order of completions: each
//! stands also for all unsignaled requests before it. Receives complete in order.
//!
//! # The end
//!
//! Whatever ends the connection (a status, an event, a call), it goes the same way once: tell the peer, stop the queue pair, take what
//! still completes, destroy the queue pair, give everything back, [`Completion::Ended`]. Memory is given back only after the queue pair is destroyed; if
//! that fails, the memory is lost on purpose.
#![allow(unsafe_code, reason = "the two calls that hand memory to a device")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use iscsi_memory::{Access, Advertised, Buf, DevicePiece, Memory, RegisterFailure, Registrar};

use super::config::VerbsConfig;
use super::connection::Parameters;
use super::jobs::{self, Bounce, Bounced, Job, Jobs, Outcome, Posted};
use super::port::{Batch, Capacity, Operation, Port, PortEvent, Request, WorkCompletion};
use super::status;
use crate::queue::{
    Completion, EndCause, Established, QueueLimits, RegisterError, RegisterReason, RemoteAccess, RemoteBuffer, Stag,
    Work,
};

/// Marks the id of a receive.
const RECEIVE: u64 = 1 << 63;

/// Longest request of the device in bytes; longer transfers take several. Soft RoCE takes 8 MiB at most.
const REQUEST: usize = 4 << 20;

/// Requests in a row that need no completion of their own.
const UNSIGNALED: usize = 16;

/// What the driver of a queue pair has to know of it.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Counts completions and events.
    pub(super) count: AtomicU64,
    /// The end is under way: look again soon, whatever the device says.
    pub(super) is_ending: AtomicBool,
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
    posted: VecDeque<Posted>,
    first_posted: u64,
    refused: usize,
    reads: u16,
    bounce: Bounce,
    advertised: Vec<(Stag, Advertised)>,
    ready: VecDeque<Completion>,
    batch: Batch,
    receive_batch: Vec<(u64, Option<DevicePiece>)>,
    completions: Vec<WorkCompletion>,
    pub(super) activity: Arc<Activity>,
}

/// What became of the attempt to issue a job's next request.
enum Step {
    /// It is in the batch.
    Issued,
    /// It has to wait for what is posted.
    Wait,
    /// It cannot be done.
    Fail(EndCause),
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
            posted: VecDeque::with_capacity(capacity.work),
            first_posted: 0,
            refused: 0,
            reads: 0,
            bounce,
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

    fn post_receives(&mut self) {
        if self.staged_receives.is_empty() || !self.may_post() {
            return;
        }
        self.receive_batch.clear();
        let first = self.first_receive + self.receives.len() as u64;
        for (id, mut buf) in (first..).zip(self.staged_receives.drain(..)) {
            if self.refused_receives == 0 {
                let piece = match (self.port.registrar(), buf.len()) {
                    (_, 0) => Ok(None),
                    (None, _) => Err(RegisterFailure::Device(0)),
                    (Some(registrar), len) => buf.device_piece(registrar, 0, len).map(Some),
                };
                match piece {
                    Ok(piece) => self.receive_batch.push((id | RECEIVE, piece)),
                    Err(failure) => {
                        self.refused_receives = 1;
                        self.cause = self.cause.or(Some(cannot_register(failure)));
                    }
                }
            } else {
                self.refused_receives += 1;
            }
            self.receives.push_back(buf);
        }
        // SAFETY: each buffer lies in `receives` until its completion, or until the port is destroyed; when that fails it is kept for ever.
        let posted = unsafe { self.port.post_receives(&self.receive_batch) };
        if let Err(refused) = posted {
            self.refused_receives += self.receive_batch.len() - refused.taken;
            self.cause = self.cause.or(Some(EndCause::WorkFailed("the device takes no receive")));
        }
        if self.refused_receives > 0 {
            let cause = self.cause;
            self.end(cause);
        }
    }

    fn may_post(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::Connecting | Phase::Established | Phase::Closing)
            && self.refused_receives == 0
            && self.refused == 0
    }

    /// Hands receives, then as much of the pending work to the device as it takes: a message of ours may be what lets the peer send into a receive, and on
    /// iWARP a message that finds none is the end of the connection.
    fn issue(&mut self) {
        self.post_receives();
        if !matches!(self.phase, Phase::Established | Phase::Closing) || self.pending.is_empty() {
            return;
        }
        self.batch.requests.clear();
        self.batch.pieces.clear();
        let mut failed = None;
        while let Some(&index) = self.pending.front()
            && self.posted.len() < self.capacity.work
        {
            match self.step(index) {
                Step::Issued => {}
                Step::Wait => break,
                Step::Fail(cause) => {
                    failed = Some(cause);
                    break;
                }
            }
        }
        self.choose_signals();
        // SAFETY: the memory lies in `jobs`, and copies of it in `bounce`, until the completion or until the port is destroyed; when that fails both are
        // kept for ever. `Job` and `Bounce` touch no memory that is posted.
        let posted = unsafe { self.port.post(&self.batch) };
        if let Err(refused) = posted {
            self.refused = self.batch.requests.len() - refused.taken;
            failed = failed.or(Some(EndCause::WorkFailed("the device takes no work")));
        }
        if failed.is_some() {
            self.end(failed);
        }
    }

    /// One completion for each chain, so that one is taken for a Write and the Send behind it; Reads have their own, and so has what is before one, since
    /// that may take long.
    fn choose_signals(&mut self) {
        let len = self.batch.requests.len();
        for index in 0..len {
            let next_is_read =
                self.batch.requests.get(index + 1).is_none_or(|next| matches!(next.operation, Operation::Read(_)));
            let request = &mut self.batch.requests[index];
            request.is_signaled |= next_is_read
                || matches!(request.operation, Operation::Read(_))
                || request.id as usize % UNSIGNALED == UNSIGNALED - 1;
            if let Some(posted) = self.posted.get_mut((request.id - self.first_posted) as usize) {
                posted.is_signaled = request.is_signaled;
            }
        }
    }

    /// Makes the next request for the first pending job.
    fn step(&mut self, index: usize) -> Step {
        let (Some(job), Some(registrar)) = (self.jobs.get_mut(index), self.port.registrar()) else {
            return Step::Fail(EndCause::DeviceGone);
        };
        let is_read = matches!(job.operation, Operation::Read(_));
        if is_read && self.reads >= self.read_depth {
            return if self.read_depth == 0 {
                Step::Fail(EndCause::WorkFailed("the peer takes no RDMA Read"))
            } else {
                Step::Wait
            };
        }
        let most = if is_read { self.capacity.read_pieces } else { self.capacity.pieces };
        let rest = job.rest().min(REQUEST);
        let first_piece = self.batch.pieces.len();
        let (mut taken, mut pieces, mut failure) = (0, 0, None);
        let is_send = matches!(job.operation, Operation::Send(_));
        let is_inline = is_send && rest > 0 && rest <= self.capacity.inline;
        if is_read
            && self.capacity.read_sink_is_remote
            && rest > 0
            && !job.is_sink()
            && let Err(failure) = job.become_sink(registrar)
        {
            return Step::Fail(cannot_register(failure));
        }
        if is_inline {
            self.batch.pieces.push(job.inline_piece());
            (taken, pieces) = (rest, 1);
        }
        while taken < rest && pieces < most && failure.is_none() {
            match job.piece(registrar, taken, rest - taken) {
                Ok(piece) => {
                    taken += piece.len;
                    pieces += 1;
                    self.batch.pieces.push(piece);
                }
                Err(error) => failure = Some(error),
            }
        }
        let mut bounced = None;
        if taken < rest && (is_send || taken == 0) {
            // What cannot be registered, and a message in too many pieces, is copied.
            self.batch.pieces.truncate(first_piece);
            let len = rest.min(self.bounce.size());
            if is_send && len < job.rest() {
                return Step::Fail(
                    failure.map_or(EndCause::WorkFailed("a message lies in too many pieces"), cannot_register),
                );
            }
            let Some((buffer, piece)) = self.bounce.take(registrar, len) else { return Step::Wait };
            let bounce = Bounced { buffer, at: job.issued, len };
            if !is_read {
                self.bounce.fill(job, bounce);
            }
            self.batch.pieces.push(piece);
            (taken, pieces, bounced) = (len, 1, Some(bounce));
        }
        let operation = job.operation_at(0);
        job.issued += taken;
        let is_last = job.rest() == 0;
        if is_last {
            self.pending.pop_front();
        }
        self.reads += u16::from(is_read);
        let id = self.first_posted + self.posted.len() as u64;
        self.posted.push_back(Posted {
            job: index,
            is_last,
            is_signaled: true,
            outcome: Outcome::Open,
            bounce: bounced,
        });
        let is_signaled = matches!(operation, Operation::Write(_)) && taken >= self.capacity.lends_unsignaled;
        self.batch.requests.push(Request { id, operation, pieces, is_signaled, is_inline });
        Step::Issued
    }

    pub(super) fn poll(&mut self) -> Option<Completion> {
        if self.phase == Phase::Idle {
            self.ring();
        }
        loop {
            if let Some(completion) = self.ready.pop_front() {
                return Some(completion);
            }
            if !self.progress() {
                return None;
            }
        }
    }

    /// Takes what the device has to say. Whether it had something.
    pub(super) fn progress(&mut self) -> bool {
        if matches!(self.phase, Phase::Idle | Phase::Ended) {
            return false;
        }
        let mut any = false;
        while let Some(event) = self.port.poll_event() {
            any = true;
            self.handle_event(event);
        }
        self.completions.clear();
        let mut completions = std::mem::take(&mut self.completions);
        if self.port.poll(&mut completions).is_err() {
            self.end(Some(EndCause::DeviceGone));
        }
        any |= !completions.is_empty();
        for completion in &completions {
            self.handle_completion(completion);
        }
        self.completions = completions;
        if any {
            self.activity.count.fetch_add(1, Ordering::Relaxed);
            self.issue();
        }
        self.move_on(any);
        any || self.has_ready()
    }

    fn handle_event(&mut self, event: PortEvent) {
        match event {
            PortEvent::Established(told) => self.stand(told),
            PortEvent::Rejected => self.end(Some(EndCause::Rejected)),
            PortEvent::Failed => self.end(Some(EndCause::Broken)),
            PortEvent::Disconnected => self.end(Some(EndCause::PeerClosed)),
            PortEvent::DeviceGone => self.end(Some(EndCause::DeviceGone)),
            PortEvent::PeerProtocol(what) => self.end(Some(EndCause::PeerProtocol(what))),
            PortEvent::QueueFailed => self.end(Some(EndCause::WorkFailed("the queue pair failed"))),
        }
    }

    fn stand(&mut self, told: Parameters) {
        if self.phase == Phase::Connecting {
            self.phase = Phase::Established;
            self.read_depth = told.outgoing_reads.into();
            self.ready.push_back(Completion::Established(Established {
                peer_private: told.private,
                read_depth: told.outgoing_reads.into(),
                served_depth: told.incoming_reads.into(),
            }));
        }
    }

    fn handle_completion(&mut self, completion: &WorkCompletion) {
        if completion.id & RECEIVE != 0 {
            self.handle_receive(completion);
            return;
        }
        let Some(index) = completion.id.checked_sub(self.first_posted).map(|index| index as usize) else { return };
        if index >= self.posted.len() - self.refused {
            return;
        }
        // Unsignaled requests before it are done, unless they have told that they are not. Signaled ones may be under way: soft iWARP tells that a Send
        // has left before the Read ahead of it is answered.
        for posted in self.posted.range_mut(..index).filter(|posted| !posted.is_signaled) {
            if posted.outcome == Outcome::Open {
                posted.outcome = Outcome::Done;
            }
        }
        self.posted[index].outcome = if completion.status == 0 { Outcome::Done } else { Outcome::Failed };
        while let Some(posted) = self.posted.front().copied()
            && posted.outcome != Outcome::Open
            && self.posted.len() > self.refused
        {
            self.posted.pop_front();
            self.first_posted += 1;
            self.retire(posted, posted.outcome == Outcome::Failed);
        }
        if completion.status != 0 {
            self.end(status::of_work(completion.status));
        }
    }

    fn handle_receive(&mut self, completion: &WorkCompletion) {
        if completion.id & !RECEIVE != self.first_receive || self.receives.len() <= self.refused_receives {
            self.end(Some(EndCause::WorkFailed("the device mixed up its receives")));
            return;
        }
        if completion.status == 0
            && self.phase == Phase::Connecting
            && let Some(told) = self.port.told()
        {
            // The first message of the peer may overtake the event of the connection.
            self.stand(told);
        }
        let Some(buf) = self.receives.pop_front() else { return };
        self.first_receive += 1;
        if completion.status == 0 {
            let len = completion.len.min(buf.len());
            self.ready.push_back(Completion::Received { buf, len, invalidated: completion.invalidated });
        } else {
            self.ready.push_back(Completion::ReceiveFlushed(buf));
            self.end(status::of_receive(completion.status));
        }
    }

    fn retire(&mut self, posted: Posted, has_failed: bool) {
        let Some(job) = self.jobs.get_mut(posted.job) else { return };
        job.has_failed |= has_failed;
        let is_read = matches!(job.operation, Operation::Read(_));
        self.reads -= u16::from(is_read);
        if let Some(bounced) = posted.bounce {
            if is_read && !has_failed {
                self.bounce.empty(job, bounced);
            }
            self.bounce.give(bounced.buffer);
        }
        if posted.is_last {
            self.give_back(posted.job);
        }
    }

    fn give_back(&mut self, index: usize) {
        if let Some(job) = self.jobs.remove(index) {
            let (id, has_failed) = (job.id, job.has_failed);
            let memory = job.into_memory();
            self.ready.push_back(if has_failed {
                Completion::Flushed { id, memory }
            } else {
                Completion::Done { id, memory }
            });
        }
    }

    /// The connection is over, for this reason if none is known yet.
    fn end(&mut self, cause: Option<EndCause>) {
        match self.phase {
            Phase::Ended => return,
            Phase::Draining => {
                self.cause = self.cause.or(cause);
                return;
            }
            // We asked for it: what follows is the answer.
            Phase::Closing | Phase::Parting => self.cause = Some(EndCause::Closed),
            Phase::Idle | Phase::Connecting | Phase::Established => self.cause = self.cause.or(cause),
        }
        let stood = !matches!(self.phase, Phase::Idle | Phase::Connecting);
        if stood {
            self.port.disconnect();
        }
        self.port.fail();
        self.phase = Phase::Draining;
        self.deadline = Some(Instant::now() + self.linger / 2);
        self.activity.is_ending.store(true, Ordering::Relaxed);
        if !stood {
            // Nothing was ever started on this queue pair.
            self.finish();
        }
    }

    /// Goes on with an end that is under way. `any`: whether something happened just now.
    fn move_on(&mut self, any: bool) {
        let is_late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let has_work = self.posted.len() > self.refused;
        match self.phase {
            Phase::Closing if is_late => self.end(Some(EndCause::Closed)),
            Phase::Closing if !has_work && self.pending.is_empty() => {
                self.port.disconnect();
                self.phase = Phase::Parting;
                self.deadline = Some(Instant::now() + self.linger);
                self.activity.is_ending.store(true, Ordering::Relaxed);
            }
            // The peer has not answered.
            Phase::Parting if is_late => self.end(Some(EndCause::Closed)),
            Phase::Draining => {
                let is_empty = !has_work && self.receives.len() <= self.refused_receives;
                // Why the queue pair failed may be told a little later than that it did.
                if !any && ((is_empty && self.cause.is_some()) || is_late) {
                    self.finish();
                }
            }
            _ => {}
        }
    }

    /// Destroys the queue pair and gives everything back.
    fn finish(&mut self) {
        self.phase = Phase::Ended;
        self.deadline = None;
        self.activity.is_ending.store(false, Ordering::Relaxed);
        self.activity.count.fetch_add(1, Ordering::Relaxed);
        if self.port.destroy() {
            let receives = self.receives.drain(..).chain(self.staged_receives.drain(..));
            self.ready.extend(receives.map(Completion::ReceiveFlushed));
            while let Some(posted) = self.posted.pop_front() {
                if let Some(job) = self.jobs.get_mut(posted.job) {
                    job.has_failed = true;
                }
                if posted.is_last {
                    self.give_back(posted.job);
                }
            }
            while let Some(index) = self.pending.pop_front() {
                if let Some(job) = self.jobs.get_mut(index) {
                    job.has_failed = true;
                }
                self.give_back(index);
            }
        } else {
            self.lose();
        }
        self.ready.push_back(Completion::Ended(self.cause.unwrap_or(EndCause::Broken)));
    }

    /// The device may use the memory for ever.
    fn lose(&mut self) {
        self.receives.drain(..).for_each(jobs::lose);
        self.jobs.lose();
        self.bounce.lose();
        self.posted.clear();
        self.pending.clear();
    }

    pub(super) fn disconnect(&mut self) {
        match self.phase {
            Phase::Idle | Phase::Connecting => self.abort(),
            Phase::Established => {
                self.issue();
                if self.phase == Phase::Established {
                    self.phase = Phase::Closing;
                    self.deadline = Some(Instant::now() + self.linger);
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

    pub(super) fn advertise(&mut self, memory: Memory, access: RemoteAccess) -> Result<RemoteBuffer, RegisterError> {
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

    pub(super) fn withdraw(&mut self, stag: Stag) -> Option<Memory> {
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
        if !self.port.destroy() {
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

fn cannot_register(failure: RegisterFailure) -> EndCause {
    EndCause::WorkFailed(match failure {
        RegisterFailure::Budget(_) => {
            "the limit of registered memory leaves no room for the buffers of a connection: raise it in the configuration"
        }
        RegisterFailure::MemoryLock => "the process may not lock more memory (`ulimit -l`): raise the memlock limit",
        RegisterFailure::Device(_) => "the device refused to register memory",
    })
}
