//! For tests: a queue pair that does nothing by itself, and the login that leads to the Full Feature Phase.

use alloc::collections::{BTreeMap, VecDeque};

use iscsi_memory::{Buf, Payload};
use iscsi_proto::pdu::{Bhs, LoginRequest, LoginResponse};
use iscsi_proto::serial::Serial;

use crate::queue::{
    Completion, QueueLimits, QueuePair, RegisterError, RegisterReason, RemoteAccess, RemoteBuffer, Stag, Work,
};

/// What cannot be registered, and why.
pub(super) type Refuses = fn(&Payload) -> Option<RegisterReason>;

/// A queue pair that a test moves by hand.
pub(super) struct Scripted {
    pub(super) limits: QueueLimits,
    pub(super) receives: VecDeque<Buf>,
    /// Posted, and not yet looked at by the test.
    pub(super) work: VecDeque<Work>,
    /// Receives posted before each work request that is in `work`.
    pub(super) receives_before: VecDeque<usize>,
    /// Work that is posted and not done.
    pub(super) posted: usize,
    pub(super) rings: usize,
    pub(super) completions: VecDeque<Completion>,
    pub(super) advertised: BTreeMap<u32, (Payload, RemoteAccess)>,
    /// How many advertisements there is room for.
    pub(super) room: usize,
    pub(super) refuses: Refuses,
    next_stag: u32,
    pub(super) disconnected: bool,
    pub(super) aborted: bool,
}

impl Scripted {
    pub(super) fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            receives: VecDeque::new(),
            work: VecDeque::new(),
            receives_before: VecDeque::new(),
            posted: 0,
            rings: 0,
            completions: VecDeque::new(),
            advertised: BTreeMap::new(),
            room: 64,
            refuses: |_| None,
            next_stag: 0x40,
            disconnected: false,
            aborted: false,
        }
    }

    /// The oldest work that was not looked at.
    pub(super) fn take_work(&mut self) -> Option<Work> {
        self.receives_before.pop_front();
        self.work.pop_front()
    }

    /// What work comes back as.
    pub(super) fn done(&mut self, id: u64, memory: Payload) -> Completion {
        self.posted -= 1;
        Completion::Done { id, memory }
    }

    /// Everything that was posted comes back.
    pub(super) fn flushed(&mut self) -> Vec<Completion> {
        let mut flushed = Vec::new();
        while let Some(work) = self.take_work() {
            let (id, memory) = match work {
                Work::Send { id, message: lease, .. }
                | Work::Write { id, from: lease, .. }
                | Work::Read { id, into: lease, .. } => (id, lease.memory),
            };
            self.posted -= 1;
            flushed.push(Completion::Flushed { id, memory });
        }
        flushed.extend(self.receives.drain(..).map(Completion::ReceiveFlushed));
        flushed
    }
}

impl QueuePair for Scripted {
    fn limits(&self) -> QueueLimits {
        self.limits
    }

    fn post_receive(&mut self, buf: Buf) {
        self.receives.push_back(buf);
        assert!(self.receives.len() <= self.limits.receives, "the mover keeps within the limits");
    }

    fn post(&mut self, work: Work) {
        self.posted += 1;
        assert!(self.posted <= self.limits.work, "the mover keeps within the limits");
        self.receives_before.push_back(self.receives.len());
        self.work.push_back(work);
    }

    fn ring(&mut self) {
        self.rings += 1;
    }

    fn advertise(&mut self, memory: Payload, access: RemoteAccess) -> Result<RemoteBuffer, RegisterError> {
        let full = (self.advertised.len() >= self.room).then_some(RegisterReason::TooMany);
        if let Some(reason) = full.or((self.refuses)(&memory)) {
            return Err(RegisterError { memory, reason });
        }
        self.next_stag += 1;
        self.advertised.insert(self.next_stag, (memory, access));
        Ok(RemoteBuffer { stag: Stag(self.next_stag), offset: u64::from(self.next_stag) << 32 })
    }

    fn withdraw(&mut self, stag: Stag) -> Option<Payload> {
        self.advertised.remove(&stag.0).map(|(memory, _)| memory)
    }

    fn poll(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    fn disconnect(&mut self) {
        self.disconnected = true;
    }

    fn abort(&mut self) {
        self.aborted = true;
    }
}

const LOGIN: LoginRequest = LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 0, 1], 1);

pub(super) fn login_request() -> Bhs {
    LOGIN.emit()
}

pub(super) fn login_response() -> Bhs {
    LoginResponse { tsih: 1, max_cmd_sn: Serial(8), ..LoginResponse::granting(&LOGIN) }.emit()
}
