//! How work gets to the device: receives first, then as much of what is pending as it takes.
#![allow(unsafe_code, reason = "the two calls that hand memory to a device, and registering it")]

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use iscsi_memory::{Access, DevicePiece, DomainId, Region, RegisterFailure, Registrar, Registration, WorkPiece};

use super::super::jobs::{Outcome, Posted};
use super::super::port::{Operation, Port, Request};
use super::{Phase, RECEIVE, State};
use crate::queue::EndCause;

/// Longest request of the device in bytes; longer transfers take several. Soft RoCE takes 8 MiB at most.
const REQUEST: usize = 4 << 20;

/// Requests in a row that need no completion of their own.
const UNSIGNALED: usize = 16;

/// Most bytes that are registered at a time, for data: as long as a device takes for that, others of the thread wait.
const REGISTERED: usize = 4 << 20;

/// A registrar that registers one piece of memory a turn. What else there is, is copied.
struct Sparing<'a> {
    registrar: &'a dyn Registrar,
    has_registered: &'a Cell<bool>,
}

// SAFETY: the registrar's own registrations.
unsafe impl Registrar for Sparing<'_> {
    fn domain(&self) -> DomainId {
        self.registrar.domain()
    }

    unsafe fn register(
        &self,
        at: *mut u8,
        len: usize,
        access: Access,
    ) -> Result<Arc<dyn Registration>, RegisterFailure> {
        self.has_registered.set(true);
        // SAFETY: as the caller says.
        unsafe { self.registrar.register(at, len, access) }
    }

    fn has_time_for(&self, len: usize) -> bool {
        !self.has_registered.get() && len <= REGISTERED
    }

    fn zeroes(&self) -> Option<DevicePiece> {
        self.registrar.zeroes()
    }

    fn make_room(&self, len: usize) -> bool {
        self.registrar.make_room(len)
    }

    fn has_registered(&self, region: &Arc<Region>) {
        self.registrar.has_registered(region);
    }
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
    pub(super) fn post_receives(&mut self) {
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
        // SAFETY: each buffer lies in `receives` until its completion, or until the port is destroyed; when that fails
        // it is kept for ever.
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

    /// Hands receives, then as much of the pending work to the device as it takes: a message of ours may be what lets
    /// the peer send into a receive, and on iWARP a message that finds none is the end of the connection.
    pub(super) fn issue(&mut self) {
        self.post_receives();
        if !matches!(self.phase, Phase::Established | Phase::Closing) || self.pending.is_empty() {
            return;
        }
        if self.phase == Phase::Closing {
            self.put_reads_last();
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
        // SAFETY: the memory lies in `jobs`, and copies of it in `bounce`, until the completion or until the port is
        // destroyed; when that fails both are kept for ever. `Job` and `Bounce` touch no memory that is posted.
        let posted = unsafe { self.port.post(&self.batch) };
        if let Err(refused) = posted {
            self.refused = self.batch.requests.len() - refused.taken;
            failed = failed.or(Some(EndCause::WorkFailed("the device takes no work")));
        }
        if failed.is_some() {
            self.end(failed);
        }
    }

    /// One completion for each chain, so that one is taken for a Write and the Send behind it; Reads have their own,
    /// and so has what is before one, since that may take long.
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
        // Half of the places is left to everything else: Reads may never be answered.
        let most_reads = usize::from(self.read_depth).min((self.capacity.work / 2).max(1));
        if is_read && usize::from(self.reads) >= most_reads {
            return if self.read_depth == 0 {
                Step::Fail(EndCause::WorkFailed("the peer takes no RDMA Read"))
            } else {
                Step::Wait
            };
        }
        let most = if is_read { self.capacity.read_pieces } else { self.capacity.pieces };
        let rest = job.rest().min(REQUEST);
        let first_piece = self.batch.pieces.len();
        let (mut taken, mut pieces, mut holds, mut failure) = (0, 0, 0, None);
        let sparing = Sparing { registrar, has_registered: &self.has_registered };
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
            // A message cannot do without, and is short.
            let registrar = if is_send { registrar } else { &sparing };
            match job.piece(registrar, taken, rest - taken) {
                Ok(Some(WorkPiece { piece, hold })) => {
                    taken += piece.len;
                    pieces += 1;
                    self.batch.pieces.push(piece);
                    holds += usize::from(hold.is_some());
                    self.holds.extend(hold);
                }
                Ok(None) => break,
                Err(error) => failure = Some(error),
            }
        }
        if self.has_registered.get() {
            self.activity.gives_way.store(true, Ordering::Relaxed);
        }
        let mut bounced = None;
        if taken < rest && (is_send || taken == 0) {
            // What is not registered, and a message in too many pieces, is copied.
            self.batch.pieces.truncate(first_piece);
            self.holds.truncate(self.holds.len() - std::mem::take(&mut holds));
            let len = rest.min(self.bounce.size());
            if is_send && len < job.rest() {
                return Step::Fail(
                    failure.map_or(EndCause::WorkFailed("a message lies in too many pieces"), cannot_register),
                );
            }
            let Some((bounce, piece)) = self.bounce.take(job.issued, len) else { return Step::Wait };
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
            holds,
        });
        let is_signaled = matches!(operation, Operation::Write(_)) && taken >= self.capacity.lends_unsignaled;
        self.batch.requests.push(Request { id, operation, pieces, is_signaled, is_inline });
        Step::Issued
    }
}

fn cannot_register(failure: RegisterFailure) -> EndCause {
    EndCause::WorkFailed(match failure {
        RegisterFailure::Budget(_) => {
            "the limit of registered memory leaves no room for the buffers of a connection: raise it in the \
             configuration"
        }
        RegisterFailure::MemoryLock => "the process may not lock more memory (`ulimit -l`): raise the memlock limit",
        RegisterFailure::Device(_) => "the device refused to register memory",
    })
}
