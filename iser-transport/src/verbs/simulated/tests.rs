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
