//! One end as a queue pair.

use alloc::sync::Arc;

use iscsi_memory::{Buf, Payload};
use spin::Mutex;

use super::config::End;
use super::fabric::Shared;
use super::state::{Advertised, Packet, Phase};
use crate::queue::{
    Completion, EndCause, QueueLimits, QueuePair, RegisterError, RegisterReason, RemoteAccess, RemoteBuffer, Stag, Work,
};

/// One end of a loopback connection. Dropping it breaks the connection.
#[derive(Debug)]
pub struct LoopbackQueue {
    pub(super) shared: Arc<Mutex<Shared>>,
    pub(super) end: End,
}

impl LoopbackQueue {
    /// Which end it is.
    #[must_use]
    pub fn end(&self) -> End {
        self.end
    }
}

impl QueuePair for LoopbackQueue {
    fn limits(&self) -> QueueLimits {
        self.shared.lock().state(self.end).config.limits
    }

    /// # Panics
    /// When more receives are posted than the limits allow.
    fn post_receive(&mut self, buf: Buf) {
        let shared = &mut *self.shared.lock();
        let state = shared.state(self.end);
        state.outstanding_receives += 1;
        assert!(
            state.outstanding_receives <= state.config.limits.receives,
            "more than {} receives are posted",
            state.config.limits.receives
        );
        match state.phase {
            Phase::Settled(_) | Phase::Ended => state.visible.push_back(Completion::ReceiveFlushed(buf)),
            _ => state.staged_receives.push_back(buf),
        }
    }

    /// # Panics
    /// When more work is posted than the limits allow, or a transfer is too long.
    fn post(&mut self, work: Work) {
        let shared = &mut *self.shared.lock();
        let state = shared.state(self.end);
        let limits = state.config.limits;
        state.outstanding_work += 1;
        assert!(state.outstanding_work <= limits.work, "more than {} work requests are posted", limits.work);
        if let Work::Write { from: lease, .. } | Work::Read { into: lease, .. } = &work {
            assert!(
                lease.len <= limits.transfer,
                "a transfer of {} bytes, the limit is {}",
                lease.len,
                limits.transfer
            );
        }
        state.staged_work.push_back(work);
        if matches!(state.phase, Phase::Settled(_) | Phase::Ended) {
            state.flush_work(false);
        }
    }

    fn ring(&mut self) {
        let shared = &mut *self.shared.lock();
        let state = shared.state(self.end);
        if state.phase == Phase::Open {
            state.ring();
        }
    }

    fn advertise(&mut self, memory: Payload, access: RemoteAccess) -> Result<RemoteBuffer, RegisterError> {
        let shared = &mut *self.shared.lock();
        if shared.state(self.end).advertised.len() >= shared.state(self.end).config.advertisements {
            return Err(RegisterError { memory, reason: RegisterReason::TooMany });
        }
        let stag = loop {
            // Zero says in an iSER header that there is no STag.
            let stag = shared.random.u64() as u32;
            if stag != 0 && !shared.state(self.end).advertised.contains_key(&stag) {
                break stag;
            }
        };
        let offset = shared.random.below(u64::MAX - memory.len() as u64);
        shared.state(self.end).advertised.insert(stag, Advertised { memory, offset, access, alive: true });
        Ok(RemoteBuffer { stag: Stag(stag), offset })
    }

    fn withdraw(&mut self, stag: Stag) -> Option<Payload> {
        let shared = &mut *self.shared.lock();
        let state = shared.state(self.end);
        let advertised = state.advertised.remove(&stag.0)?;
        state.stale = Some(RemoteBuffer { stag, offset: advertised.offset });
        Some(advertised.memory)
    }

    fn poll(&mut self) -> Option<Completion> {
        self.shared.lock().state(self.end).poll()
    }

    fn disconnect(&mut self) {
        let shared = &mut *self.shared.lock();
        let state = shared.state(self.end);
        if state.phase == Phase::Open {
            state.ring();
            state.phase = Phase::Closing;
        }
    }

    fn abort(&mut self) {
        self.shared.lock().leave(self.end, EndCause::Closed, Packet::Reset);
    }
}

impl Drop for LoopbackQueue {
    fn drop(&mut self) {
        let shared = &mut *self.shared.lock();
        shared.leave(self.end, EndCause::Closed, Packet::Reset);
        shared.forget(self.end);
    }
}
