//! The conformance cases over devices that are not there, of several makes, and what only a fake device does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use iscsi_memory::{Buf, Lease, Payload, Region, RegistrationBudget};

use super::config::VerbsConfig;
use super::fake::{self, FakePort, Make};
use super::state::State;
use crate::conformance::{CASES, Connected, End, Harness, Knobs, Plan};
use crate::queue::{
    Completion, EndCause, QueueLimits, QueuePair, RegisterError, RegisterReason, RemoteAccess, RemoteBuffer, Stag, Work,
};

/// What [`VerbsQueue`](super::VerbsQueue) is, over a fake device.
struct FakeQueue(State<FakePort>);

impl QueuePair for FakeQueue {
    fn limits(&self) -> QueueLimits {
        self.0.limits()
    }
    fn post_receive(&mut self, buf: Buf) {
        self.0.post_receive(buf);
    }
    fn post(&mut self, work: Work) {
        self.0.post(work);
    }
    fn ring(&mut self) {
        self.0.ring();
    }
    fn advertise(&mut self, memory: Payload, access: RemoteAccess) -> Result<RemoteBuffer, RegisterError> {
        self.0.advertise(memory, access)
    }
    fn withdraw(&mut self, stag: Stag) -> Option<Payload> {
        self.0.withdraw(stag)
    }
    fn poll(&mut self) -> Option<Completion> {
        self.0.poll()
    }
    fn disconnect(&mut self) {
        self.0.disconnect();
    }
    fn abort(&mut self) {
        self.0.abort();
    }
}

struct Pair {
    queues: Option<[FakeQueue; 2]>,
    budgets: [Arc<RegistrationBudget>; 2],
}

fn config() -> VerbsConfig {
    VerbsConfig { linger: Duration::from_secs(1), bounce_bytes: 16 << 10, ..VerbsConfig::default() }
}

fn pair(makes: [Make; 2]) -> Pair {
    let (ports, budgets) = fake::pair(makes);
    let queues = ports.map(|port| FakeQueue(State::new(port, &config()).unwrap()));
    Pair { queues: Some(queues), budgets }
}

struct Fakes(Make);

impl Harness for Fakes {
    fn connect(&mut self, plan: &Plan) -> Box<dyn Connected> {
        let make = |end: End| Make {
            private: plan.private[end as usize].to_vec(),
            read_depth: plan.read_depth[end as usize] as u8,
            ..self.0.clone()
        };
        Box::new(pair(End::BOTH.map(make)))
    }

    fn knobs(&self) -> Knobs {
        Knobs {
            waits_for_receive: true,
            names_breaches: false,
            invalidates: false,
            patience: 100_000,
            steps: 32,
            ..Knobs::default()
        }
    }
}

impl Connected for Pair {
    fn queue(&mut self, end: End) -> &mut dyn QueuePair {
        &mut self.queues.as_mut().unwrap()[end as usize]
    }

    fn progress(&mut self) -> bool {
        let queues = self.queues.as_mut().unwrap();
        let any = queues[0].0.port.step();
        let any = queues.iter_mut().fold(any, |any, queue| queue.0.progress() | any);
        if !any {
            std::thread::sleep(Duration::from_micros(20));
        }
        any
    }

    fn cut(&mut self) -> bool {
        self.queues.as_ref().unwrap()[0].0.port.cut();
        true
    }
}

impl Pair {
    fn state(&mut self, side: usize) -> &mut State<FakePort> {
        &mut self.queues.as_mut().unwrap()[side].0
    }

    /// Everything that comes on one side until nothing more does.
    fn settle(&mut self, side: usize) -> Vec<Completion> {
        let mut all = Vec::new();
        let mut idle = 0;
        while idle < 500 {
            idle = if self.progress() { 0 } else { idle + 1 };
            while let Some(completion) = self.state(1 - side).poll() {
                drop(completion);
            }
            all.extend(std::iter::from_fn(|| self.state(side).poll()));
        }
        all
    }
}

fn conforms(make: Make) {
    for case in CASES {
        (case.run)(&mut Fakes(make.clone()));
    }
}

#[test]
fn the_cases_hold_on_a_plain_device() {
    conforms(Make::default());
}

#[test]
fn the_cases_hold_where_a_peer_must_be_allowed_to_write_what_a_read_brings() {
    let mut make = Make::default();
    make.capacity.read_sink_is_remote = true;
    // Its Reads are registered for the peer to write: the device's own test of local keys does not look at that.
    conforms(make);
}

#[test]
fn the_cases_hold_on_a_device_that_reads_the_memory_of_unsignaled_writes_late() {
    let mut make = Make::default();
    make.capacity.lends_unsignaled = 1;
    conforms(make);
}

#[test]
fn the_cases_hold_on_a_device_that_takes_two_requests_at_a_time_and_copies_nothing() {
    let mut make = Make::default();
    (make.capacity.work, make.capacity.inline, make.capacity.pieces) = (2, 0, 1);
    conforms(make);
}

/// A connection whose side 1 has advertised `len` bytes, and side 0 has room for its bounce buffers and `room` bytes.
fn tight(room: u64, len: usize) -> (Pair, RemoteBuffer, Arc<Region>) {
    let bounced = 4 * (16 << 10);
    let mut pair = pair([Make { budget: bounced + room, ..Make::default() }, Make::default()]);
    let region = Region::heap(len);
    region.reserve_for_write(0, len as u64).unwrap();
    let memory = Payload::Region(region.slice(0, len));
    let buffer = pair.state(1).advertise(memory, RemoteAccess::Write).unwrap();
    pair.state(1).ring();
    (pair, buffer, region)
}

#[test]
fn what_cannot_be_registered_is_copied_and_counted() {
    let len = 200_000;
    let (mut pair, to, there) = tight(0, len);
    let from = Region::heap(len);
    let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
    from.reserve_for_write(0, len as u64).unwrap();
    from.write(0, &bytes);
    let lease = Lease::whole(Payload::Region(from.slice(0, len)));
    pair.state(0).post(Work::Write { id: 1, from: lease, to });
    pair.state(0).ring();
    let seen = pair.settle(0);
    assert!(matches!(seen[..], [Completion::Established(_), Completion::Done { id: 1, .. }]), "{seen:?}");
    let mut back = vec![0; len];
    there.read(0, &mut back);
    assert!(back == bytes, "the bytes are there");
    assert_eq!(pair.state(0).copied(), len as u64);

    // And the other way.
    pair.state(1).withdraw(to.stag).unwrap();
    let advertised = Payload::Region(there.slice(0, len));
    let from = pair.state(1).advertise(advertised, RemoteAccess::Read).unwrap();
    let into = Region::heap(len);
    into.reserve_for_write(0, len as u64).unwrap();
    let lease = Lease::part(Payload::Region(into.slice(0, len)), 100, len - 100);
    pair.state(0).post(Work::Read { id: 2, into: lease, from });
    pair.state(0).ring();
    let seen = pair.settle(0);
    assert!(matches!(seen[..], [Completion::Done { id: 2, .. }]), "{seen:?}");
    into.read(0, &mut back);
    assert!(back[100..] == bytes[..len - 100] && back[..100] == [0; 100]);
    assert_eq!(pair.state(0).copied(), 2 * len as u64 - 100);
    assert_eq!(pair.state(1).copied(), 0);
}

/// A connection that stands, side 1 of which has advertised `len` bytes.
fn standing(len: usize) -> (Pair, RemoteBuffer, Arc<Region>) {
    let (mut pair, to, there) = tight(1 << 30, len);
    pair.state(0).ring();
    assert!(matches!(pair.settle(0)[..], [Completion::Established(_)]));
    pair.state(0).activity.gives_way.store(false, Ordering::Relaxed);
    (pair, to, there)
}

/// A region, the first bytes of which are written.
fn written(len: u64, written: u64) -> Arc<Region> {
    let region = Region::mapped(len, u64::MAX).unwrap();
    region.reserve_for_write(0, written).unwrap();
    region.write(0, &vec![5; written as usize]);
    region
}

fn write(id: u64, region: &Arc<Region>, offset: u64, len: usize, to: RemoteBuffer) -> Work {
    Work::Write { id, from: Lease::whole(Payload::Region(region.slice(offset, len))), to }
}

const MIB: u64 = 1 << 20;

#[test]
fn what_was_never_written_leaves_from_zeroes_and_pins_nothing() {
    let (mut pair, to, there) = standing(200_000);
    there.write(0, &[9; 200_000]);
    let region = written(4 * MIB, 0);
    let before = pair.budgets[0].used();
    pair.state(0).post(write(1, &region, MIB - 100_000, 200_000, to));
    pair.state(0).ring();
    assert!(matches!(pair.settle(0)[..], [Completion::Done { id: 1, .. }]));
    let mut back = vec![9; 200_000];
    there.read(0, &mut back);
    assert!(back.iter().all(|byte| *byte == 0));
    assert_eq!((region.registered(), pair.state(0).copied()), (0, 0));
    assert_eq!(pair.budgets[0].used() - before, 8192, "the zeroes");
}

#[test]
fn one_piece_of_memory_is_registered_a_turn_and_the_rest_is_copied() {
    let (mut pair, to, there) = standing(40_000);
    let region = written(4 * MIB, 4 * MIB);
    for id in 0..4 {
        let to = RemoteBuffer { offset: to.offset + id * 10_000, ..to };
        pair.state(0).post(write(id, &region, id * MIB, 10_000, to));
    }
    pair.state(0).ring();
    assert_eq!((region.registered(), pair.state(0).copied()), (MIB, 30_000));
    assert!(pair.state(0).activity.gives_way.load(Ordering::Relaxed), "a device takes long to register memory");
    assert_eq!(pair.settle(0).len(), 4);
    let mut back = vec![0; 40_000];
    there.read(0, &mut back);
    assert!(back.iter().all(|byte| *byte == 5));
    // When all is done the next turn begins.
    pair.state(0).post(write(5, &region, MIB, 10_000, to));
    pair.state(0).ring();
    assert_eq!((region.registered(), pair.state(0).copied()), (2 * MIB, 30_000));
    assert_eq!(pair.settle(0).len(), 1);
}

#[test]
fn memory_that_is_unmapped_while_it_is_sent_goes_back_when_it_has_been() {
    for how in 0..3 {
        let (mut pair, to, _) = standing(1000);
        let region = written(2 * MIB, 2 * MIB);
        pair.state(0).post(write(1, &region, 0, 1000, to));
        pair.state(0).ring();
        region.discard(0, 2 * MIB);
        assert_eq!(region.registered(), MIB, "a request uses it");
        match how {
            0 => assert!(matches!(pair.settle(0)[..], [Completion::Done { id: 1, .. }])),
            1 => {
                pair.state(0).abort();
                assert!(matches!(pair.settle(0)[..], [Completion::Flushed { .. }, Completion::Ended(_)]));
            }
            _ => pair.queues = None,
        }
        assert_eq!(region.registered(), 0);
    }
}

#[test]
fn many_small_pieces_are_copied_at_a_time() {
    // As in the ring of 64 KiB there is room for fifteen, and not for sixteen: one would lie across the end.
    let (mut pair, to, there) = standing(4100 * 40);
    let region = written(4 * MIB, 4 * MIB / 2);
    pair.state(0).has_registered.set(true);
    for id in 0..40 {
        let to = RemoteBuffer { offset: to.offset + id * 4100, ..to };
        pair.state(0).post(write(id, &region, 4100 * id, 4100, to));
    }
    pair.state(0).ring();
    assert_eq!(pair.state(0).copied(), 4100 * 15);
    let ids: Vec<u64> =
        pair.settle(0).iter().map(|seen| if let Completion::Done { id, .. } = seen { *id } else { 99 }).collect();
    assert_eq!(ids, (0..40).collect::<Vec<_>>());
    let mut back = vec![0; 4100 * 40];
    there.read(0, &mut back);
    assert!(back.iter().all(|byte| *byte == 5));
}

#[test]
fn a_queue_pair_that_always_has_more_lets_others_have_their_turn() {
    let (mut pair, ..) = standing(1000);
    // Completions of 300 messages, before anybody asks for them.
    for id in 0..300 {
        pair.state(0).post(Work::Send { id, message: Lease::whole(Payload::Buf(Buf::zeroed(8))), invalidate: None });
        pair.state(1).post_receive(Buf::zeroed(8));
    }
    for _ in 0..2000 {
        for side in 0..2 {
            pair.state(side).ring();
            pair.state(side).progress();
        }
        pair.state(0).port.step();
    }
    let mut taken = || std::iter::from_fn(|| pair.state(0).poll()).count();
    assert_eq!((taken(), taken(), taken()), (256, 44, 0));
    assert!(pair.state(0).activity.gives_way.load(Ordering::Relaxed), "nobody else would come back for the rest");
}

#[test]
fn a_receive_that_cannot_be_registered_ends_the_connection_with_the_reason() {
    let (mut pair, ..) = tight(4096, 4096);
    pair.state(0).post_receive(Buf::zeroed(4096));
    pair.state(0).post_receive(Buf::zeroed(4096));
    pair.state(0).post_receive(Buf::zeroed(4096));
    pair.state(0).ring();
    let seen = pair.settle(0);
    let flushed = seen.iter().filter(|seen| matches!(seen, Completion::ReceiveFlushed(_))).count();
    assert_eq!(flushed, 3);
    let Some(Completion::Ended(cause @ EndCause::WorkFailed(_))) = seen.last() else { panic!("{seen:?}") };
    assert!(cause.to_string().contains("limit of registered memory"), "{cause}");
}

#[test]
fn advertisements_are_bounded_and_give_their_memory_back() {
    let (ports, _) = fake::pair([Make { budget: 1 << 20, ..Make::default() }, Make::default()]);
    let config = VerbsConfig { advertisements: 2, ..config() };
    let [port, _other] = ports;
    let mut state = State::new(port, &config).unwrap();
    let mut advertise = |len| state.advertise(Payload::Buf(Buf::zeroed(len)), RemoteAccess::Read);
    let error = advertise(2 << 20).unwrap_err();
    assert_eq!((error.memory.len(), error.reason), (2 << 20, RegisterReason::Budget(1 << 20)));
    advertise(1).unwrap();
    let second = advertise(5000).unwrap();
    let error = advertise(7).unwrap_err();
    assert_eq!((error.memory.len(), error.reason), (7, RegisterReason::TooMany));
    assert_eq!(state.withdraw(second.stag).unwrap().len(), 5000);
    assert!(state.withdraw(second.stag).is_none());
}

#[test]
fn work_that_the_device_refuses_comes_back_flushed_and_in_order() {
    // Refused in the middle of a list.
    let mut pair = pair([Make { refuses_after: 5, ..Make::default() }, Make::default()]);
    let region = Region::heap(100_000);
    let buffer = pair.state(1).advertise(Payload::Region(region.slice(0, 100_000)), RemoteAccess::Write).unwrap();
    pair.state(1).ring();
    for id in 0..9 {
        let from = Lease::whole(Payload::Buf(Buf::zeroed(1000)));
        pair.state(0).post(Work::Write { id, from, to: buffer });
    }
    pair.state(0).ring();
    let seen = pair.settle(0);
    let ids: Vec<u64> = seen
        .iter()
        .filter_map(|seen| match seen {
            Completion::Done { id, .. } | Completion::Flushed { id, .. } => Some(*id),
            _ => None,
        })
        .collect();
    assert_eq!(ids, (0..9).collect::<Vec<_>>());
    assert!(matches!(seen.last(), Some(Completion::Ended(EndCause::WorkFailed(_)))), "{seen:?}");
}

#[test]
fn a_buffer_of_the_peer_that_ends_past_the_last_offset_ends_the_connection() {
    // In parts, as what cannot be registered is moved: the second of them would begin behind the last offset.
    for is_read in [false, true] {
        let (mut pair, buffer, _) = tight(0, 100);
        let lease = Lease::whole(Payload::Region(Region::heap(100_000).slice(0, 100_000)));
        let peer = RemoteBuffer { offset: u64::MAX - 99, ..buffer };
        let work = match is_read {
            false => Work::Write { id: 1, from: lease, to: peer },
            true => Work::Read { id: 1, into: lease, from: peer },
        };
        pair.state(0).ring();
        assert!(matches!(pair.settle(0)[..], [Completion::Established(_)]));
        pair.state(0).post(work);
        pair.state(0).ring();
        let seen = pair.settle(0);
        assert!(matches!(seen[..], [Completion::Flushed { id: 1, .. }, Completion::Ended(_)]), "{seen:?}");
    }
}

#[test]
fn receives_are_there_before_the_message_that_asks_for_their_use_leaves() {
    let mut pair = pair([Make { wants_receives: true, ..Make::default() }, Make::default()]);
    let message = |id| Work::Send { id, message: Lease::whole(Payload::Buf(Buf::zeroed(100))), invalidate: None };
    for side in 0..2 {
        pair.state(side).post_receive(Buf::zeroed(100));
        pair.state(side).post_receive(Buf::zeroed(100));
        pair.state(side).ring();
    }
    pair.state(1).post(message(1));
    pair.state(1).ring();
    assert!(matches!(pair.settle(0)[..], [Completion::Established(_), Completion::Received { .. }]));
    // The answer leaves before the doorbell rings: another message has come, and the device was asked for it.
    pair.state(0).post_receive(Buf::zeroed(100));
    pair.state(0).post(message(2));
    pair.state(1).post(message(3));
    pair.state(1).ring();
    let seen = pair.settle(0);
    assert!(matches!(seen[..], [Completion::Received { .. }, Completion::Done { id: 2, .. }]), "{seen:?}");
    pair.state(1).post(message(4));
    pair.state(1).ring();
    let seen = pair.settle(0);
    let came = seen.iter().any(|seen| matches!(seen, Completion::Received { .. }));
    let ended = seen.iter().any(|seen| matches!(seen, Completion::Ended(_)));
    assert!(came && !ended, "{seen:?}");
}

#[test]
fn dropping_a_queue_pair_at_any_time_gives_its_registrations_back() {
    for steps in 0..40 {
        let mut pair = pair([Make::default(), Make::default()]);
        let buffer = pair.state(1).advertise(Payload::Buf(Buf::zeroed(50_000)), RemoteAccess::Write).unwrap();
        for side in 0..2 {
            for _ in 0..4 {
                pair.state(side).post_receive(Buf::zeroed(200));
            }
            for id in 0..6 {
                let message = Lease::whole(Payload::Buf(Buf::zeroed(150)));
                pair.state(side).post(Work::Send { id, message, invalidate: None });
            }
        }
        let from = Lease::whole(Payload::Buf(Buf::zeroed(50_000)));
        pair.state(0).post(Work::Write { id: 9, from, to: buffer });
        for side in 0..2 {
            pair.state(side).ring();
        }
        for _ in 0..steps {
            pair.progress();
        }
        pair.queues = None;
        assert_eq!(pair.budgets.each_ref().map(|budget| budget.used()), [0, 0]);
    }
}

#[test]
fn memory_that_the_device_keeps_is_lost_on_purpose() {
    let make = Make { can_destroy: false, ..Make::default() };
    let mut pair = pair([make, Make::default()]);
    let mut buf = Buf::zeroed(200);
    buf.fill(7);
    let address = buf.as_ptr().expose_provenance();
    pair.state(0).post_receive(buf);
    pair.state(0).ring();
    pair.state(1).ring();
    pair.settle(0);
    pair.state(0).abort();
    let seen = pair.settle(0);
    assert!(matches!(seen[..], [.., Completion::Ended(EndCause::Closed)]), "{seen:?}");
    // SAFETY: kept for ever; AddressSanitizer would tell otherwise.
    #[allow(unsafe_code, reason = "what a device may still do")]
    let byte = unsafe { std::ptr::with_exposed_provenance::<u8>(address).read() };
    assert!(byte == 7 || byte == 0);
}
