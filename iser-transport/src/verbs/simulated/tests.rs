//! The conformance cases over simulated devices of several makes.

use std::time::Duration;

use iscsi_memory::{Lease, Region};

use super::*;
use crate::conformance::{CASES, Connected, Harness, Knobs, Plan};
use crate::loopback::NoReceive;

struct Simulated {
    make: Make,
    network: LoopbackConfig,
    seed: u64,
}

struct Pair {
    queues: [SimulatedQueue; 2],
    fabric: SimulatedFabric,
    now: Instant,
}

impl Harness for Simulated {
    fn connect(&mut self, plan: &Plan) -> Box<dyn Connected> {
        let mut network = self.network.clone();
        for (own, end) in [(&mut network.active, 0), (&mut network.passive, 1)] {
            own.private = plan.private[end].to_vec();
            own.read_depth = plan.read_depth[end];
        }
        let devices = [Device::new(self.make.clone()), Device::new(self.make.clone())];
        self.seed += 1;
        let (active, passive, fabric) = pair(&network, [&devices[0], &devices[1]], self.seed).unwrap();
        Box::new(Pair { queues: [active, passive], fabric, now: Instant::ZERO })
    }

    fn knobs(&self) -> Knobs {
        Knobs {
            waits_for_receive: self.network.no_receive == NoReceive::Waits,
            names_breaches: false,
            refuses_reads_at_once: false,
            invalidates: false,
            patience: 2000,
            steps: 32,
            ..Knobs::default()
        }
    }
}

impl Connected for Pair {
    fn queue(&mut self, end: End) -> &mut dyn QueuePair {
        &mut self.queues[end as usize]
    }

    fn progress(&mut self) -> bool {
        let any = self.fabric.step().is_some();
        let any = self.queues.iter_mut().fold(any, |any, queue| queue.state.progress() | any);
        self.now = self.now + Duration::from_millis(1);
        self.fabric.set_time(self.now);
        any
    }

    fn cut(&mut self) -> bool {
        self.fabric.cut();
        true
    }
}

fn conforms(make: &Make, network: &LoopbackConfig) {
    for seed in 0..3 {
        for case in CASES {
            (case.run)(&mut Simulated { make: make.clone(), network: network.clone(), seed: seed * 1_000_000 });
        }
    }
}

#[test]
fn the_cases_hold_where_work_is_done_when_it_has_arrived() {
    conforms(&Make::default(), &LoopbackConfig { early_done: 0, ..LoopbackConfig::default() });
}

#[test]
fn the_cases_hold_where_work_is_done_when_it_is_copied() {
    let make = Make { lends_unsignaled: 4096, is_concurrent: true, ..Make::default() };
    conforms(&make, &LoopbackConfig { early_done: 1_000_000, ..LoopbackConfig::default() });
}

#[test]
fn the_cases_hold_where_messages_wait_and_little_is_registered() {
    let make = Make { pieces: 1, inline: 0, refusals: 1000, bounce_bytes: 16 << 10, ..Make::default() };
    conforms(&make, &LoopbackConfig { no_receive: NoReceive::Waits, pad_private: false, ..LoopbackConfig::default() });
}

#[test]
fn the_cases_hold_where_a_peer_must_be_allowed_to_write_what_a_read_brings() {
    conforms(&Make { read_sink_is_remote: true, ..Make::default() }, &LoopbackConfig::default());
}

/// The device uses memory until it says that it does not: the memory of a Write that is given back too early is missed.
#[test]
#[should_panic(expected = "memory that is not registered")]
fn a_registration_that_ends_too_early_is_found() {
    let devices = [Device::new(Make::default()), Device::new(Make::default())];
    let region = Region::mapped(1 << 20, u64::MAX).unwrap();
    region.reserve_for_write(0, 1 << 20).unwrap();
    for seed in 0..50 {
        let (mut active, mut passive, fabric) =
            pair(&LoopbackConfig::default(), [&devices[0], &devices[1]], seed).unwrap();
        let to = passive.advertise(Payload::Buf(Buf::zeroed(8192)), RemoteAccess::Write).unwrap();
        let from = Lease::whole(Payload::Region(region.slice(0, 8192)));
        active.post(Work::Write { id: 1, from, to });
        active.ring();
        passive.ring();
        for _ in 0..seed % 10 {
            fabric.step();
            while active.poll().is_some() {}
            while passive.poll().is_some() {}
        }
        region.forget(devices[0].domain.domain);
        while fabric.step().is_some() {}
    }
}

/// Bytes of a Read that takes several requests of a device.
const LARGE: usize = (4 << 20) + 4096;

/// A connection with so many places for work, and Reads at a time, over which the active end reads
/// [`LARGE`], and says something behind that.
fn reading(work: usize, read_depth: u16) -> (SimulatedQueue, SimulatedQueue, SimulatedFabric) {
    let mut network = LoopbackConfig::default();
    network.active.limits.work = work;
    network.active.limits.transfer = LARGE;
    (network.active.read_depth, network.passive.read_depth) = (read_depth, read_depth);
    let devices = [Device::new(Make::default()), Device::new(Make::default())];
    let (mut active, mut passive, fabric) = pair(&network, [&devices[0], &devices[1]], 1).unwrap();
    let from = passive.advertise(Payload::Buf(Buf::zeroed(LARGE)), RemoteAccess::Read).unwrap();
    passive.post_receive(Buf::zeroed(100));
    active.post(Work::Read { id: 1, into: Lease::whole(Payload::Buf(Buf::zeroed(LARGE))), from });
    active.post(Work::Send { id: 2, message: Lease::whole(Payload::Buf(Buf::zeroed(50))), invalidate: None });
    active.ring();
    passive.ring();
    (active, passive, fabric)
}

#[test]
fn the_last_words_do_not_wait_for_a_read_that_is_never_answered() {
    for (work, read_depth) in [(128, 1), (2, 2)] {
        let (mut active, mut passive, fabric) = reading(work, read_depth);
        fabric.withhold_reads(End::Passive);
        let mut received = 0;
        while fabric.step().is_some() {
            while let Some(completion) = active.poll() {
                if matches!(completion, Completion::Established(_)) {
                    active.disconnect();
                }
            }
            while let Some(completion) = passive.poll() {
                received += usize::from(matches!(completion, Completion::Received { .. }));
            }
        }
        assert_eq!(received, 1, "{work} places, {read_depth} Reads at a time");
    }
}

#[test]
fn who_moves_a_device_hears_of_what_a_queue_pair_posts_by_itself() {
    let (mut active, mut passive, fabric) = reading(128, 1);
    let mut by_itself = 0;
    while fabric.step().is_some() {
        while passive.poll().is_some() {}
        let _ = fabric.was_used();
        let told = std::iter::from_fn(|| active.poll()).count();
        by_itself += usize::from(told == 0 && fabric.was_used());
    }
    assert!(by_itself > 0, "a Read takes several requests, one at a time");
}

#[test]
fn many_messages_pass_a_read_that_is_never_answered() {
    const MESSAGES: usize = 3 * steps::AHEAD;
    let network = LoopbackConfig { early_done: 0, ..LoopbackConfig::default() };
    let devices = [Device::new(Make::default()), Device::new(Make::default())];
    let (mut active, mut passive, fabric) = pair(&network, [&devices[0], &devices[1]], 1).unwrap();
    let from = passive.advertise(Payload::Buf(Buf::zeroed(4096)), RemoteAccess::Read).unwrap();
    fabric.withhold_reads(End::Passive);
    active.post(Work::Read { id: 0, into: Lease::whole(Payload::Buf(Buf::zeroed(4096))), from });
    for id in 1..=MESSAGES as u64 {
        passive.post_receive(Buf::zeroed(100));
        active.post(Work::Send { id, message: Lease::whole(Payload::Buf(Buf::zeroed(50))), invalidate: None });
    }
    active.ring();
    passive.ring();
    let mut received = 0;
    while fabric.step().is_some() {
        while active.poll().is_some() {}
        let completions = std::iter::from_fn(|| passive.poll());
        received += completions.filter(|completion| matches!(completion, Completion::Received { .. })).count();
    }
    assert_eq!(received, MESSAGES);
}
