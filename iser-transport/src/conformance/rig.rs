//! A connection under test, with a ledger of all that was posted.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use iscsi_memory::{Buf, Lease, Payload, Region};

use super::{Connected, End, Harness, Knobs, Plan};
use crate::queue::{Completion, EndCause, Established, QueuePair, RemoteAccess, RemoteBuffer, Stag, Work};
use crate::random::Random;

/// What an end has seen.
#[derive(Debug)]
pub enum Seen {
    /// A message, and the STag that it invalidated.
    Message(Vec<u8>, Option<Stag>),
    /// Work is done.
    Done(u64, Payload),
    /// Work came back flushed.
    Flushed(u64),
    /// A receive came back flushed.
    ReceiveFlushed,
}

/// What tells one memory from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    address: usize,
    len: usize,
}

fn identity(memory: &Payload) -> Identity {
    match memory {
        Payload::Buf(buf) => Identity { address: buf.as_ptr() as usize, len: buf.len() },
        Payload::Region(slice) => Identity { address: 0, len: slice.len() },
    }
}

#[derive(Debug, Default)]
struct Ledger {
    next_id: u64,
    work: VecDeque<(u64, Identity)>,
    receives: VecDeque<Identity>,
    established: Option<Established>,
    ended: Option<EndCause>,
    seen: Vec<Seen>,
    completions: u64,
}

/// A connection under test.
pub struct Rig {
    connected: Box<dyn Connected>,
    knobs: Knobs,
    ledgers: [Ledger; 2],
}

impl Rig {
    /// A connection that may still be connecting.
    pub fn connecting(harness: &mut dyn Harness, plan: &Plan) -> Self {
        Self { connected: harness.connect(plan), knobs: harness.knobs(), ledgers: Default::default() }
    }

    /// A connection that stands.
    pub fn new(harness: &mut dyn Harness) -> Self {
        Self::connected(harness, &Plan::default())
    }

    /// A connection that stands. The active end has said a word: before that, iWARP lets the passive one send nothing
    /// (RFC 5044 7.1.2).
    pub fn connected(harness: &mut dyn Harness, plan: &Plan) -> Self {
        let mut rig = Self::connecting(harness, plan);
        rig.receive(End::Passive, 1, 16);
        let word = rig.send(End::Active, b"first");
        assert_eq!(rig.message(End::Passive).0, b"first");
        rig.done(End::Active, word);
        rig.until("the connection stands", |rig| End::BOTH.iter().all(|end| rig.established(*end).is_some()));
        rig
    }

    fn ledger(&mut self, end: End) -> &mut Ledger {
        &mut self.ledgers[end as usize]
    }

    /// The queue pair itself.
    pub fn queue(&mut self, end: End) -> &mut dyn QueuePair {
        self.connected.queue(end)
    }

    /// What the end heard when the connection came to be.
    pub fn established(&self, end: End) -> Option<Established> {
        self.ledgers[end as usize].established
    }

    /// Why the connection is over for this end, if it is.
    pub fn ended(&self, end: End) -> Option<EndCause> {
        self.ledgers[end as usize].ended
    }

    /// Whether it is over for both.
    pub fn is_over(&self) -> bool {
        self.ledgers.iter().all(|ledger| ledger.ended.is_some())
    }

    /// What an end has seen and nobody has taken yet.
    pub fn seen(&mut self, end: End) -> &mut Vec<Seen> {
        &mut self.ledger(end).seen
    }

    /// Posts receives, of `len` bytes each.
    pub fn receive(&mut self, end: End, n: usize, len: usize) {
        for _ in 0..n {
            self.stage_receive(end, len);
        }
        self.ring(end);
    }

    /// Posts a receive and leaves the doorbell alone.
    pub fn stage_receive(&mut self, end: End, len: usize) {
        let buf = Buf::zeroed(len);
        self.ledger(end).receives.push_back(Identity { address: buf.as_ptr() as usize, len });
        self.queue(end).post_receive(buf);
    }

    /// Rings.
    pub fn ring(&mut self, end: End) {
        self.queue(end).ring();
    }

    /// Posts work and leaves the doorbell alone.
    pub fn stage(&mut self, end: End, lease: Lease, work: impl FnOnce(u64, Lease) -> Work) -> u64 {
        let ledger = self.ledger(end);
        // Any number will do for an id; these are not the same as the order.
        let id = ledger.next_id ^ 0xa5a5;
        ledger.next_id += 1;
        ledger.work.push_back((id, identity(&lease.memory)));
        self.queue(end).post(work(id, lease));
        id
    }

    /// Posts a message.
    pub fn send(&mut self, end: End, bytes: &[u8]) -> u64 {
        self.send_from(end, Lease::whole(buf(bytes)), None)
    }

    /// Posts a message out of any memory, that may invalidate an STag of the peer.
    pub fn send_from(&mut self, end: End, message: Lease, invalidate: Option<Stag>) -> u64 {
        let id = self.stage(end, message, |id, message| Work::Send { id, message, invalidate });
        self.ring(end);
        id
    }

    /// Posts an RDMA Write.
    pub fn write(&mut self, end: End, from: Lease, to: RemoteBuffer) -> u64 {
        let id = self.stage(end, from, |id, from| Work::Write { id, from, to });
        self.ring(end);
        id
    }

    /// Posts an RDMA Read.
    pub fn read(&mut self, end: End, into: Lease, from: RemoteBuffer) -> u64 {
        let id = self.stage(end, into, |id, into| Work::Read { id, into, from });
        self.ring(end);
        id
    }

    /// Advertises memory.
    pub fn advertise(&mut self, end: End, memory: Payload, access: RemoteAccess) -> RemoteBuffer {
        self.queue(end).advertise(memory, access).unwrap_or_else(|error| panic!("a buffer is not advertised: {error}"))
    }

    /// Withdraws what is advertised, which must be the buffer that the advertisement began with.
    pub fn withdraw(&mut self, end: End, stag: Stag) -> Payload {
        self.queue(end).withdraw(stag).unwrap_or_else(|| panic!("the memory of {stag:?} is lost"))
    }

    /// Lets things move on once, and checks each completion against the ledger. Whether anything happened.
    pub fn pump(&mut self) -> bool {
        let mut any = self.connected.progress();
        for end in End::BOTH {
            while let Some(completion) = self.connected.queue(end).poll() {
                any = true;
                self.note(end, completion);
            }
        }
        any
    }

    fn note(&mut self, end: End, completion: Completion) {
        let ledger = &mut self.ledgers[end as usize];
        let what = format!("{end:?}: {completion:?}");
        ledger.completions += 1;
        if matches!(completion, Completion::Established(_)) {
            assert_eq!(ledger.completions, 1, "{what}: `Established` is the first completion, and comes once");
        } else if matches!(completion, Completion::Received { .. } | Completion::Done { .. }) {
            assert!(ledger.established.is_some(), "{what}: before `Established`");
            assert!(ledger.ended.is_none(), "{what}: after `Ended`");
        }
        match completion {
            Completion::Established(established) => ledger.established = Some(established),
            Completion::Received { buf, len, invalidated } => {
                ledger.receive_back(&buf, &what);
                assert!(len <= buf.len(), "{what}: the message is longer than its receive");
                ledger.seen.push(Seen::Message(buf[..len].to_vec(), invalidated));
            }
            Completion::ReceiveFlushed(buf) => {
                ledger.receive_back(&buf, &what);
                ledger.seen.push(Seen::ReceiveFlushed);
            }
            Completion::Done { id, memory } => {
                ledger.work_back(id, &memory, &what);
                ledger.seen.push(Seen::Done(id, memory));
            }
            Completion::Flushed { id, memory } => {
                ledger.work_back(id, &memory, &what);
                ledger.seen.push(Seen::Flushed(id));
            }
            Completion::Ended(cause) => {
                assert!(ledger.ended.is_none(), "{what}: a second time");
                assert!(ledger.work.is_empty(), "{what}: {} work requests have not come back", ledger.work.len());
                assert!(ledger.receives.is_empty(), "{what}: {} receives have not come back", ledger.receives.len());
                ledger.ended = Some(cause);
            }
        }
    }

    /// Lets things move on until something holds.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let mut idle = 0;
        while !holds(self) {
            if self.pump() {
                idle = 0;
            } else {
                idle += 1;
            }
            assert!(idle <= self.knobs.patience, "waited in vain until {what}: {}", self.describe());
        }
    }

    /// Lets everything move that moves by itself.
    pub fn settle(&mut self) {
        let mut idle = 0;
        // Where waiting costs time it is short.
        while idle < self.knobs.patience.min(100) {
            idle = if self.pump() { 0 } else { idle + 1 };
        }
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for (end, ledger) in End::BOTH.iter().zip(&self.ledgers) {
            text += &format!(
                "{end:?} is {}established, has {} work requests and {} receives posted, ended: {:?}; ",
                if ledger.established.is_some() { "" } else { "not " },
                ledger.work.len(),
                ledger.receives.len(),
                ledger.ended,
            );
        }
        text
    }

    /// The next message.
    pub fn message(&mut self, end: End) -> (Vec<u8>, Option<Stag>) {
        let mut at = None;
        self.until("a message comes", |rig| {
            at = rig.seen(end).iter().position(|seen| matches!(seen, Seen::Message(..)));
            at.is_some() || rig.ended(end).is_some()
        });
        match at.map(|at| self.seen(end).remove(at)) {
            Some(Seen::Message(bytes, invalidated)) => (bytes, invalidated),
            _ => panic!("the connection is over, but a message was to come: {}", self.describe()),
        }
    }

    /// Waits for this work and gives its memory back.
    pub fn done(&mut self, end: End, id: u64) -> Payload {
        let mut at = None;
        self.until("work is done", |rig| {
            at = rig.seen(end).iter().position(|seen| matches!(seen, Seen::Done(done, _) if *done == id));
            at.is_some() || rig.ended(end).is_some()
        });
        match at.map(|at| self.seen(end).remove(at)) {
            Some(Seen::Done(_, memory)) => memory,
            _ => panic!("the connection is over, but work {id} was to be done: {}", self.describe()),
        }
    }

    /// Waits for the end of the connection, at both ends.
    pub fn until_over(&mut self) {
        if !self.knobs.notices_abort {
            self.until("the connection is over for one end", |rig| rig.ledgers.iter().any(|end| end.ended.is_some()));
            self.settle();
            for end in End::BOTH {
                self.queue(end).abort();
            }
        }
        self.until("the connection is over for both ends", |rig| rig.is_over());
    }

    /// Waits for the end of the connection after `by` has broken a rule.
    pub fn until_breach_is_punished(&mut self, by: End) {
        self.until_over();
        if self.knobs.names_breaches {
            let (breaker, judge) = (self.ended(by), self.ended(by.other()));
            assert!(matches!(judge, Some(EndCause::PeerProtocol(_))), "the peer of who broke a rule says {judge:?}");
            assert!(matches!(breaker, Some(EndCause::ByPeer(_))), "who broke a rule says {breaker:?}");
        }
    }

    /// Ends the connection in order and checks that nothing is left.
    pub fn close(mut self) {
        self.queue(End::Active).disconnect();
        self.until_over();
        assert_eq!(self.ended(End::Active), Some(EndCause::Closed));
    }

    /// Breaks the network; `false` where that cannot be done.
    pub fn cut(&mut self) -> bool {
        self.connected.cut()
    }

    /// What to expect of the provider.
    pub fn knobs(&self) -> Knobs {
        self.knobs
    }
}

impl Ledger {
    fn receive_back(&mut self, buf: &Buf, what: &str) {
        let back = Identity { address: buf.as_ptr() as usize, len: buf.len() };
        assert_eq!(self.receives.pop_front(), Some(back), "{what}: receives come back once, in order");
    }

    fn work_back(&mut self, id: u64, memory: &Payload, what: &str) {
        let back = (id, identity(memory));
        assert_eq!(self.work.pop_front(), Some(back), "{what}: work comes back once, in order, with its memory");
    }
}

/// Private memory that holds these bytes.
pub(super) fn buf(bytes: &[u8]) -> Payload {
    let mut buf = Buf::zeroed(bytes.len());
    buf.copy_from_slice(bytes);
    Payload::Buf(buf)
}

/// A store's memory of zeroes, all of it allocated.
pub(super) fn lent(len: usize) -> Arc<Region> {
    let region = Region::heap(len);
    region.reserve_for_write(0, len as u64).unwrap_or_else(|error| panic!("{error}"));
    region
}

/// All bytes of a memory.
pub(super) fn bytes(memory: &Payload) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes);
    bytes
}

/// Bytes that tell their place, other ones for each `salt`.
pub(super) fn pattern(salt: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(salt);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
