//! Over the loopback, in whatever order its seed lets things happen.

use iscsi_memory::{Buf, Lease, Payload};
use iser_transport::conformance::{CASES, Connected, End, Harness, Knobs, Plan, Rig};
use iser_transport::loopback::{Fabric, Faults, LoopbackConfig, LoopbackQueue, NoReceive, pair};
use iser_transport::queue::{QueuePair, RemoteAccess};

/// Connections of one kind of network, each with a seed of its own.
struct Loopback {
    config: LoopbackConfig,
    seed: u64,
}

struct Pair {
    queues: [LoopbackQueue; 2],
    fabric: Fabric,
}

impl Loopback {
    fn new(seed: u64) -> Self {
        let mut config = LoopbackConfig::hostile(seed);
        config.faults = Faults { stall: config.faults.stall, ..Faults::default() };
        for end in [&mut config.active, &mut config.passive] {
            end.limits.transfer = end.limits.transfer.max(64 << 10);
        }
        Self { config, seed: seed << 32 }
    }
}

impl Harness for Loopback {
    fn connect(&mut self, plan: &Plan) -> Box<dyn Connected> {
        let mut config = self.config.clone();
        for (end, at) in [(&mut config.active, 0), (&mut config.passive, 1)] {
            end.private = plan.private[at].to_vec();
            end.read_depth = plan.read_depth[at];
        }
        self.seed += 1;
        let (active, passive, fabric) = pair(config, self.seed);
        Box::new(Pair { queues: [active, passive], fabric })
    }

    fn knobs(&self) -> Knobs {
        Knobs {
            pads_private: self.config.pad_private,
            waits_for_receive: self.config.no_receive == NoReceive::Waits,
            rounds: 2,
            ..Knobs::default()
        }
    }
}

impl Connected for Pair {
    fn queue(&mut self, end: End) -> &mut dyn QueuePair {
        &mut self.queues[end as usize]
    }

    fn progress(&mut self) -> bool {
        self.fabric.step().is_some()
    }

    fn cut(&mut self) -> bool {
        self.fabric.cut();
        true
    }
}

#[test]
fn the_loopback_passes_under_all_seeds() {
    for seed in 0..8 {
        for case in CASES {
            println!("seed {seed}: {}", case.name);
            (case.run)(&mut Loopback::new(seed));
        }
    }
}

/// Traffic of all kinds under all faults: whatever happens, the ledger beneath the rig sees everything come back.
#[test]
fn the_loopback_gives_everything_back_under_all_faults() {
    let (mut ended, mut by_itself) = (0, 0);
    for seed in 0..400 {
        let mut harness = Loopback { config: LoopbackConfig::hostile(seed), seed };
        let mut rig = Rig::connecting(&mut harness, &Plan::default());
        for end in End::BOTH {
            rig.receive(end, 30, 1000);
        }
        let mut advertise = |access| rig.advertise(End::Active, Payload::Buf(Buf::zeroed(4096)), access);
        let (to, from) = (advertise(RemoteAccess::Write), advertise(RemoteAccess::Read));
        let memory = || Lease::whole(Payload::Buf(Buf::zeroed(4096)));
        for n in 0..25 {
            rig.send(End::Active, &[n; 500]);
            rig.write(End::Passive, memory(), to);
            rig.read(End::Passive, memory(), from);
            rig.send(End::Passive, &[n; 48]);
            for _ in 0..n {
                rig.pump();
            }
        }
        while rig.pump() {}
        let over = End::BOTH.map(|end| rig.ended(end).is_some());
        by_itself += u32::from(over.contains(&true));
        for end in End::BOTH {
            rig.queue(end).abort();
        }
        rig.until_over();
        for buffer in [to, from] {
            assert_eq!(rig.withdraw(End::Active, buffer.stag).len(), 4096);
        }
        ended += 1;
    }
    assert_eq!(ended, 400);
    assert!((100..350).contains(&by_itself), "{by_itself} of {ended} connections ended by a fault");
}
