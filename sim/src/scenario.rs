//! What a seed means: the parameters of both sides, the links, the store, the work, and who else is there.

use std::time::Duration;

use initiator_core::{Limits as InitiatorLimits, ReconnectPolicy, Timeouts};
use iscsi_proto::login::Offer;
use iscsi_proto::parameters::Digest;
use iscsi_proto::pdu::TaskFunction;
use iscsi_proto::tcp::{Role, TcpMoverConfig};
use iser_transport::loopback::Faults;
use target_core::session::Limits as TargetLimits;

use crate::link::{LinkPlan, Side};
use crate::rng::Rng;
use crate::store::{Door, StorePlan};
use crate::transport::{IserEnd, IserPlan, Transport};
use crate::workload::WorkPlan;

/// How initiators authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chap {
    /// Not.
    No,
    /// To the target.
    OneWay,
    /// Both sides to each other.
    Mutual,
}

/// How often links fail.
#[derive(Debug, Clone)]
pub struct Weather {
    /// Delay and jitter at most.
    pub delay: Duration,
    /// Stalled sends in 1000, and how long.
    pub stalls: (u64, Duration),
    /// Links in 1000 that are cut.
    pub cuts: u64,
    /// Bytes after which a cut comes, at most.
    pub cut_after: u64,
    /// Of the cuts, those in 1000 that a side does not notice by itself.
    pub half_open: u64,
    /// Links in 1000 in which a bit flips.
    pub flips: u64,
    /// Connections in 1000 that are refused.
    pub refused: u64,
    /// Largest chunk.
    pub chunk: u64,
    /// Bytes under way.
    pub capacity: u64,
    /// Links in 1000 that are cut by time, and after how long at most.
    pub cut_within: (u64, Duration),
}

impl Weather {
    /// The plan of the next link.
    pub fn link(&self, rng: &mut Rng) -> LinkPlan {
        let cut = rng.permille(self.cuts);
        let mut notice = || (!rng.permille(self.half_open)).then(|| Duration::from_millis(rng.magnitude(1, 8000)));
        let notice = [notice(), notice()];
        let side = rng.pick(&[Side::Initiator, Side::Target]);
        LinkPlan {
            delay: self.delay.mul_f64(rng.below(1000) as f64 / 1000.0) + Duration::from_nanos(1),
            jitter: self.delay.mul_f64(rng.below(1000) as f64 / 1000.0),
            capacity: self.capacity as usize,
            chunk: self.chunk as usize,
            stalls: self.stalls,
            cut_after: cut.then(|| rng.magnitude(1, self.cut_after)),
            notice,
            flip: rng.permille(self.flips).then(|| (side, rng.magnitude(1, self.cut_after))),
            mangle: 0,
        }
    }
}

/// One initiator session and its work.
#[derive(Debug, Clone)]
pub struct SessionPlan {
    /// What it offers in login.
    pub offer: Offer,
    /// Its times.
    pub timeouts: Timeouts,
    /// Its bounds.
    pub limits: InitiatorLimits,
    /// Its reconnection.
    pub reconnect: ReconnectPolicy,
    /// Its mover over TCP.
    pub mover: TcpMoverConfig,
    /// Its end of iSER.
    pub iser: IserEnd,
    /// Its work.
    pub work: WorkPlan,
}

/// All of a run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// What carries the sessions.
    pub transport: Transport,
    /// The target's bounds and offer.
    pub limits: TargetLimits,
    /// iSER's networks and the target's end of them.
    pub iser: IserPlan,
    /// The target's movers over TCP.
    pub mover: TcpMoverConfig,
    /// Authentication.
    pub chap: Chap,
    /// The store of the honest sessions.
    pub store: StorePlan,
    /// Links of the honest sessions.
    pub weather: Weather,
    /// The honest sessions.
    pub sessions: Vec<SessionPlan>,
    /// A session to another target node over a link that mangles the bytes: pieces in 1000.
    pub mangled: Option<u64>,
    /// How many connections a peer makes that sends anything.
    pub hostile: u64,
}

fn mover(rng: &mut Rng) -> TcpMoverConfig {
    TcpMoverConfig {
        staging_size: rng.magnitude(16 << 10, 128 << 10) as usize,
        copy_limit: rng.pick(&[0, 512, 4096, 8192, 65536]),
        send_high_water: rng.magnitude(4 << 10, 4 << 20) as usize,
        ..TcpMoverConfig::default()
    }
}

fn offer(rng: &mut Rng, digests: &[Digest]) -> Offer {
    let max_burst_length = rng.magnitude(512, 1 << 20) as u32;
    Offer {
        header_digest: digests.to_vec(),
        data_digest: digests.to_vec(),
        initial_r2t: rng.permille(500),
        immediate_data: rng.permille(500),
        max_recv_data_segment_length: rng.magnitude(512, 256 << 10) as u32,
        max_burst_length,
        first_burst_length: rng.magnitude(512, max_burst_length.into()) as u32,
        default_time2wait: rng.below(3) as u16,
        max_outstanding_r2t: rng.magnitude(1, 16) as u16,
        data_pdu_in_order: rng.permille(700),
        data_sequence_in_order: rng.permille(700),
        ..Offer::default()
    }
}

fn seconds(rng: &mut Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.between(from * 1000, to * 1000))
}

const GENTLE: &[TaskFunction] = &[TaskFunction::AbortTaskSet, TaskFunction::LogicalUnitReset];
const HARSH: &[TaskFunction] = &[
    TaskFunction::AbortTaskSet,
    TaskFunction::ClearTaskSet,
    TaskFunction::LogicalUnitReset,
    TaskFunction::TargetWarmReset,
    TaskFunction::TargetColdReset,
];

impl Scenario {
    /// The scenario of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let rng = &mut Rng::new(seed, 0);
        // Digests are a matter of the pair: with them, bits may flip.
        let guarded = rng.permille(400);
        let digests: &[Digest] = if guarded {
            &[Digest::Crc32c]
        } else {
            rng.pick::<&[Digest]>(&[&[Digest::None], &[Digest::None, Digest::Crc32c], &[Digest::Crc32c, Digest::None]])
        };
        let faulty = rng.permille(600);
        let slow = rng.permille(500);
        let weather = Weather {
            delay: Duration::from_micros(rng.magnitude(1, 20_000)),
            stalls: if rng.permille(300) {
                (rng.below(20), Duration::from_millis(rng.magnitude(1, 4000)))
            } else {
                (0, Duration::ZERO)
            },
            cuts: if faulty { rng.pick(&[100, 500, 900]) } else { 0 },
            cut_after: rng.magnitude(1 << 10, 1 << 20),
            half_open: if rng.permille(300) { 500 } else { 0 },
            flips: if faulty && guarded { 500 } else { 0 },
            refused: if faulty { rng.pick(&[0, 300]) } else { 0 },
            chunk: rng.pick(&[1, 7, 48, 300, 1460, 1460, 65536, 65536, 1 << 20]),
            capacity: rng.magnitude(256, 1 << 20),
            cut_within: (0, Duration::ZERO),
        };
        // A link of single bytes makes any amount of data long.
        let most_blocks = if weather.chunk < 100 { 4 } else { rng.magnitude(1, 128) };
        let door = rng.pick(&[Door::Easy, Door::Queue, Door::Queue, Door::Memory]);
        let failing = rng.permille(300);
        let store = StorePlan {
            door,
            block_size: rng.pick(&[512, 512, 512, 4096]),
            blocks: rng.between(most_blocks.max(16), 600),
            unmap: rng.permille(600),
            delay: Duration::from_micros(if slow { rng.magnitude(1, 50_000) } else { 0 }),
            slow: if slow {
                (rng.below(50), Duration::from_millis(rng.magnitude(10, 8000)))
            } else {
                (0, Duration::ZERO)
            },
            read_errors: if failing { rng.below(50) } else { 0 },
            write_errors: if failing { rng.below(50) } else { 0 },
            full: if failing { rng.below(50) } else { 0 },
            lose_write: None,
        };
        let count = rng.pick(&[1, 1, 2, 2, 3]);
        let sessions = (0..count).map(|_| Self::session(rng, digests, &store, &weather, most_blocks, count)).collect();
        let command_window = rng.magnitude(1, 128) as u16;
        let mut limits = TargetLimits {
            command_window,
            immediate_commands: rng.between(1, 8) as u16,
            nop_in_idle: rng.permille(700).then(|| seconds(rng, 1, 30)),
            nop_in_timeout: seconds(rng, 2, 15),
            send_backlog: rng.magnitude(4 << 10, 4 << 20) as usize,
            offer: offer(rng, digests),
            ..TargetLimits::default()
        };
        limits.send_timeout = Duration::from_secs(30);
        Self {
            seed,
            transport: Transport::Tcp,
            limits,
            iser: IserPlan::any(&mut Rng::new(seed, 10), faulty),
            mover: mover(rng),
            chap: rng.pick(&[Chap::No, Chap::No, Chap::OneWay, Chap::Mutual]),
            store,
            weather,
            sessions,
            mangled: rng.permille(200).then(|| rng.magnitude(1, 200)),
            hostile: if rng.permille(300) { rng.between(1, 4) } else { 0 },
        }
    }

    /// The scenario of a seed over another transport.
    #[must_use]
    pub fn over(seed: u64, transport: Transport) -> Self {
        let mut scenario = Self::new(seed);
        scenario.transport = transport;
        if transport == Transport::Tcp {
            return scenario;
        }
        scenario.limits.offer = scenario.iser.target.offer.put_in(scenario.limits.offer);
        for session in &mut scenario.sessions {
            session.offer = session.iser.offer.put_in(session.offer.clone());
            // What guards against bits that flip is iWARP's CRC.
            session.iser.crc |= scenario.weather.flips > 0;
        }
        scenario
    }

    /// The scenario of a seed in which rare things meet: a store that takes longer than every time limit, links that are cut by time at any step of a
    /// login, several initiators on the same few blocks, resets, and atomic commands that expect what is not there.
    #[must_use]
    pub fn meeting(seed: u64, transport: Transport) -> Self {
        let mut scenario = Self::over(seed, transport);
        let rng = &mut Rng::new(seed, 12);
        scenario.store.door = rng.pick(&[Door::Easy, Door::Queue, Door::Queue]);
        scenario.store.slow = (rng.pick(&[20, 100, 300]), seconds(rng, 40, 120));
        scenario.store.blocks = scenario.store.blocks.min(128);
        scenario.weather.cut_within = (rng.pick(&[300, 700]), seconds(rng, 1, 60));
        scenario.weather.chunk = scenario.weather.chunk.max(300);
        scenario.mangled = None;
        scenario.hostile = 0;
        while scenario.sessions.len() < 2 {
            let mut session = scenario.sessions[0].clone();
            session.reconnect.seed = Some(rng.u64());
            scenario.sessions.push(session);
        }
        for session in &mut scenario.sessions {
            let work = &mut session.work;
            work.operations = rng.between(20, 60);
            work.most_blocks = work.most_blocks.min(8);
            work.others = rng.pick(&[100, 400]);
            work.reads = rng.between(100, 500);
            work.functions = rng.pick(&[0, 30, 100]);
            work.function_kinds = GENTLE;
            work.wrong = 200;
            work.think = Duration::from_millis(rng.magnitude(1, 4000));
            session.timeouts.command = seconds(rng, 2, 60);
        }
        scenario
    }

    /// The same without faults: only sizes and limits are the seed's.
    #[must_use]
    pub fn calm(mut self) -> Self {
        self.weather = Weather {
            delay: self.weather.delay.min(Duration::from_millis(1)),
            stalls: (0, Duration::ZERO),
            cuts: 0,
            flips: 0,
            refused: 0,
            cut_within: (0, Duration::ZERO),
            // Single bytes take so long that keepalive ends the session, rightly.
            chunk: self.weather.chunk.max(1460),
            ..self.weather
        };
        self.iser.loopback.faults = Faults::default();
        self.store.slow = (0, Duration::ZERO);
        self.mangled = None;
        self.hostile = 0;
        self.limits.nop_in_timeout = Duration::from_secs(10);
        for session in &mut self.sessions {
            session.timeouts.keepalive = Duration::from_secs(10);
            session.timeouts.command = Duration::from_secs(60);
            session.work.functions = 0;
            session.work.abandons = 0;
        }
        self
    }

    fn session(
        rng: &mut Rng,
        digests: &[Digest],
        store: &StorePlan,
        weather: &Weather,
        most_blocks: u64,
        count: u64,
    ) -> SessionPlan {
        let busy = rng.permille(400);
        let work = WorkPlan {
            operations: if weather.chunk < 100 { rng.between(5, 40) } else { rng.between(20, 120) },
            depth: rng.magnitude(1, 64) as usize,
            think: Duration::from_micros(if busy { 0 } else { rng.magnitude(1, 200_000) }),
            most_blocks,
            reads: rng.between(200, 800),
            others: rng.pick(&[0, 100, 400]),
            functions: rng.pick(&[0, 0, 20, 60]),
            function_kinds: if rng.permille(500) { GENTLE } else { HARSH },
            abandons: rng.pick(&[0, 0, 50]),
            texts: rng.pick(&[0, 10]),
            unmap: store.unmap,
            store_fails: store.read_errors + store.write_errors + store.full > 0,
            untrusted: false,
            flips: weather.flips > 0,
            wrong: 0,
        };
        let _ = count;
        SessionPlan {
            offer: offer(rng, digests),
            timeouts: Timeouts {
                command: seconds(rng, 2, 60),
                task_management: seconds(rng, 1, 12),
                keepalive_interval: seconds(rng, 1, 5),
                keepalive: seconds(rng, 1, 5),
                ..Timeouts::default()
            },
            limits: InitiatorLimits { commands: rng.magnitude(1, 128) as u16, ..InitiatorLimits::default() },
            reconnect: ReconnectPolicy { seed: Some(rng.u64()), ..ReconnectPolicy::default() },
            mover: mover(rng),
            iser: IserEnd::any(&mut Rng::new(rng.u64(), 11), Role::Initiator),
            work,
        }
    }
}
