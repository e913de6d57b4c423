//! Both roles against each other, with one fault at one step.

use std::task::Waker;
use std::time::Duration;

use iscsi_proto::time::Instant;
use iser_transport::loopback::{End, Fabric, Faults, LoopbackConfig, NoReceive, pair};
use sim::fabric::{FabricLink, FabricPlan};
use sim::link::Side;
use sim::network::Network;
use sim::pipe::{Completions, Drive as _, Pipe};
use sim::rng::Rng;
use sim::served::Served;
use sim::store::Door;
use target_core::session::TargetConnection;

use super::script::{Guarded, Initiator, Script, initiator, reads, serve, writes};
use iser_transport::loopback::LoopbackQueue;
use iser_transport::mover::IserMover;

struct Both {
    initiator: Option<Pipe<Initiator, Completions>>,
    target: Option<Pipe<TargetConnection<IserMover<LoopbackQueue>>, Completions>>,
    served: Served,
    fabric: Fabric,
    network: Network,
    now: Instant,
    written: Vec<Guarded>,
    read: Vec<Guarded>,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Cut,
    DeviceGone(End),
    WorkFails(End),
    NoReceive(End),
    Overlong(End),
    Silence(End),
    Vanishes(End),
}

impl Fault {
    fn all() -> impl Iterator<Item = Self> {
        let kinds: [fn(End) -> Self; 6] =
            [Self::DeviceGone, Self::WorkFails, Self::NoReceive, Self::Overlong, Self::Silence, Self::Vanishes];
        let of_ends = End::BOTH.into_iter().flat_map(move |end| kinds.map(|kind| kind(end)));
        of_ends.chain([Self::Cut])
    }
}

impl Both {
    fn new(config: LoopbackConfig, door: Door) -> Self {
        let (active, passive, fabric) = pair(config, 3);
        let pattern = |salt: u8, len: usize| {
            let memory = Guarded::new(len);
            let bytes: Vec<u8> = (0..len).map(|at| (at / 512) as u8 ^ at as u8 ^ salt).collect();
            memory.fill(&bytes);
            memory
        };
        // By RDMA Read, and as immediate data.
        let written = vec![pattern(1, 20 << 10), pattern(2, 2048)];
        let read: Vec<_> = [20 << 10, 2048, 512].map(Guarded::new).into();
        let first = vec![writes(0, 0, &written[0]), writes(1, 100, &written[1]), reads(2, 200, &read[2])];
        let second = vec![reads(3, 0, &read[0]), reads(4, 100, &read[1])];
        let script = Script { waves: [first, second].into(), ..Script::default() };
        let (connection, served) = serve(passive, door);
        let link = FabricLink::new(fabric.clone(), FabricPlan { burst: 1, ..calm() }, Rng::new(0, 1), Instant::ZERO);
        Self {
            initiator: Some(Pipe::new(initiator(active, script), 0, Side::Initiator)),
            target: Some(Pipe::new(connection, 0, Side::Target)),
            served,
            fabric,
            network: Network::Queues(Box::new(link)),
            now: Instant::ZERO,
            written,
            read,
        }
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Cut => self.fabric.cut(),
            Fault::DeviceGone(end) => self.fabric.take_device(end),
            Fault::WorkFails(end) => self.fabric.fail_work(end),
            Fault::NoReceive(end) => self.fabric.refuse_message(end, false),
            Fault::Overlong(end) => self.fabric.refuse_message(end, true),
            Fault::Silence(end) => self.fabric.mute(end),
            Fault::Vanishes(End::Active) => self.initiator = None,
            Fault::Vanishes(End::Passive) => self.target = None,
        }
        self.network.close(Side::Initiator, self.now);
    }

    /// Runs to the end of both sides, and returns the number of steps.
    fn run(&mut self, fault: Option<(u64, Fault)>) -> u64 {
        for step in 0..200_000 {
            if let Some((at, fault)) = fault
                && at == step
            {
                self.strike(fault);
            }
            self.served.store.advance(self.now);
            let mut moved = false;
            if let Some(pipe) = &mut self.initiator {
                moved |= pipe.run(&mut self.network, self.now).unwrap();
            }
            if let Some(pipe) = &mut self.target {
                moved |= pipe.run(&mut self.network, self.now).unwrap();
            }
            if self.initiator.as_ref().is_none_or(|pipe| pipe.is_finished())
                && self.target.as_ref().is_none_or(|pipe| pipe.is_finished())
            {
                return step;
            }
            if moved {
                self.network.close(Side::Initiator, self.now);
            }
            let ours = self.initiator.as_ref().and_then(|pipe| pipe.next(&self.network, self.now));
            let theirs = self.target.as_ref().and_then(|pipe| pipe.next(&self.network, self.now));
            let next = [ours, theirs, self.served.store.next()].into_iter().flatten().min();
            let next = next.unwrap_or_else(|| panic!("{fault:?}: a connection waits for nothing"));
            self.now = next.max(self.now + Duration::from_nanos(1));
        }
        panic!("{fault:?}: a connection does not end");
    }

    /// Nothing is left, and what was acknowledged is so. Returns how many commands were done.
    fn check(self, what: &str) -> usize {
        assert!(self.now < Instant::ZERO + Duration::from_secs(400), "{what}: it takes too long");
        for end in End::BOTH {
            assert_eq!(self.fabric.held(end), (0, 0, 0), "{what}: {end:?} holds something");
        }
        // What a target that vanished had asked of a device is still done.
        while self.target.is_none()
            && let Some(at) = self.served.store.next()
        {
            self.served.store.advance(at);
        }
        assert_eq!(self.served.target.registry().poll_unfinished(Waker::noop()), 0, "{what}: a session stays");
        assert_eq!(self.served.store.under_way().0, 0, "{what}: store operations are left");
        drop(self.target);
        assert_eq!(
            (self.served.target.registry().connections(), self.served.target.registry().sessions().len()),
            (0, 0),
            "{what}"
        );
        assert!(self.read.iter().chain(&self.written).all(Guarded::guards_hold), "{what}: guards");
        let Some(pipe) = self.initiator else { return 0 };
        let (engine, ..) = pipe.connection.into_parts(self.now);
        let script = engine.into_app(self.now);
        assert_eq!(script.completed.len(), script.issued, "{what}: each command completes once");
        let good = |token| {
            let outcome = script.completed.iter().find(|completion| completion.token == token);
            outcome.is_some_and(|completion| completion.result.as_ref().is_ok_and(|outcome| outcome.is_good()))
        };
        for (token, back, source) in [(3, &self.read[0], &self.written[0]), (4, &self.read[1], &self.written[1])] {
            if good(token) {
                assert!(back.bytes() == source.bytes(), "{what}: {token} reads what was written");
            }
        }
        assert!(!good(2) || self.read[2].bytes().iter().all(|byte| *byte == 0), "{what}");
        script.completed.iter().filter(|completion| good(completion.token)).count()
    }
}

const fn calm() -> FabricPlan {
    FabricPlan { pace: Duration::ZERO, ..FabricPlan::calm() }
}

#[test]
fn whatever_goes_wrong_at_any_step() {
    // A store that takes its time, too, though not at every step.
    for (door, stride) in [(Door::Memory, 1), (Door::Queue, 5)] {
        let mut calm = Both::new(LoopbackConfig::default(), door);
        let steps = calm.run(None);
        assert_eq!(calm.check("nothing goes wrong"), 5);
        assert!(steps > 60, "{steps}");
        for fault in Fault::all() {
            let mut done = 0;
            for at in (0..steps).step_by(stride) {
                let mut both = Both::new(LoopbackConfig::default(), door);
                both.run(Some((at, fault)));
                done += both.check(&format!("{fault:?} at step {at}"));
            }
            let vanishes = matches!(fault, Fault::Vanishes(End::Active));
            assert!(vanishes || done > 0, "{fault:?}: commands before it are done");
        }
    }
}

#[test]
fn who_stops_reading_for_a_while_goes_on() {
    for no_receive in [NoReceive::Waits, NoReceive::Ends] {
        for end in End::BOTH {
            for at in (0..60).step_by(3) {
                let mut both = Both::new(LoopbackConfig { no_receive, ..LoopbackConfig::default() }, Door::Memory);
                both.fabric.stall(end, at * 10);
                both.run(None);
                assert_eq!(both.check("an end stalls"), 5);
            }
        }
    }
}

#[test]
fn a_refused_connection() {
    let faults = Faults { reject: 1_000_000, ..Faults::default() };
    let mut both = Both::new(LoopbackConfig { faults, ..LoopbackConfig::default() }, Door::Memory);
    both.run(None);
    assert!(both.now < Instant::ZERO + Duration::from_secs(1), "it is noticed at once");
    assert_eq!(both.check("a refused connection"), 0);
}

#[test]
fn private_data_of_any_kind() {
    let kinds: [&[u8]; 6] = [&[], &[0], &[0xc0], &[0x80, 0, 0, 0], &[0; 3], &[0xff; 196]];
    for pad_private in [false, true] {
        for active in kinds {
            for passive in kinds {
                let mut config = LoopbackConfig { pad_private, ..LoopbackConfig::default() };
                config.active.private = active.to_vec();
                config.passive.private = passive.to_vec();
                let mut both = Both::new(config, Door::Memory);
                both.run(None);
                assert_eq!(both.check("private data"), 5, "{active:?} {passive:?}");
            }
        }
    }
}
