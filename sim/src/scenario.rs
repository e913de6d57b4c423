//! What a seed means: the parameters of both sides, the links, the store, the work, and who else is there.

mod scarce;
mod sharing;
mod sizes;

use std::time::Duration;

use initiator_core::{Limits as InitiatorLimits, ReconnectPolicy, Timeouts};
use iscsi_proto::login::Offer;
use iscsi_proto::parameters::Digest;
use iscsi_proto::pdu::TaskFunction;
use iscsi_proto::tcp::{Role, TcpMoverConfig};
use iser_transport::loopback::Faults;
use target_core::session::Limits as TargetLimits;

use crate::borrower::Habit;
use crate::disk::{Build, DiskPlan};
use crate::link::{LinkPlan, Side};
use crate::rng::Rng;
use crate::store::{Door, StorePlan};
use crate::transport::{IserEnd, IserPlan, Transport};
use crate::workload::WorkPlan;

/// The kinds of worlds that a seed can mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Faults of all sorts.
    #[default]
    Plain,
    /// None.
    Calm,
    /// Where rare things meet.
    Meeting,
    /// No faults, but initiators that owe what they never send.
    Silence,
    /// One initiator, over TCP, and a target that is odd: [`odd`](crate::odd).
    Odd,
    /// One initiator with several sessions, over TCP, to a disk by several paths: [`odd::paths`](crate::odd::paths).
    Paths,
    /// The library's session and disk over the tokio driver, and a target that is odd:
    /// [`odd::library`](crate::odd::library).
    Library,
    /// Several servers share their disks, stores are slow, and servers and LUNs come and go.
    Sharing,
    /// Sessions have few buffers together.
    Scarce,
    /// The real drivers over tokio: [`driven`](crate::driven).
    Driven,
    /// Threads that take turns: [`threads`](crate::threads).
    Threads,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Plain,
        Self::Calm,
        Self::Meeting,
        Self::Silence,
        Self::Odd,
        Self::Library,
        Self::Sharing,
        Self::Paths,
        Self::Scarce,
        Self::Driven,
        Self::Threads,
    ];

    /// How the command line says it, if it does.
    #[must_use]
    pub const fn argument(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Calm => Some("--calm"),
            Self::Meeting => Some("--meeting"),
            Self::Silence => Some("--silence"),
            Self::Odd => Some("--odd"),
            Self::Library => Some("--library"),
            Self::Paths => Some("--paths"),
            Self::Sharing => Some("--sharing"),
            Self::Scarce => Some("--scarce"),
            Self::Driven => Some("--driven"),
            Self::Threads => Some("--threads"),
        }
    }

    /// The scenario of a seed.
    #[must_use]
    pub fn of(self, seed: u64, transport: Transport) -> Scenario {
        match self {
            Self::Plain => Scenario::over(seed, transport),
            Self::Calm => Scenario::over(seed, transport).calm(),
            Self::Meeting => Scenario::meeting(seed, transport),
            Self::Silence => Scenario::silence(seed, transport),
            Self::Odd | Self::Library | Self::Paths | Self::Driven | Self::Threads => {
                Scenario { kind: self, ..Scenario::over(seed, transport) }
            }
            Self::Sharing => Scenario::sharing(seed, transport),
            Self::Scarce => Scenario::scarce(seed, transport),
        }
    }
}

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
    /// Bits flip in data segments only.
    pub flips_data: bool,
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
            flips_data: self.flips_data,
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
    /// So many of its links in 1000 go deaf: it hears nothing any more, and goes on sending; and after how long at most.
    pub deaf: (u64, Duration),
    /// So many of its queue pairs in 1000 come to owe: they send nothing any more of what RDMA Reads ask them for, hear
    /// all and say all else; and after how long at most.
    pub owes: (u64, Duration),
}

impl SessionPlan {
    /// Whether every connection of it goes deaf, or comes to owe.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.deaf.0 >= 1000 || self.owes.0 >= 1000
    }
}

/// All of a run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// Its kind.
    pub kind: Kind,
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
    /// The stores of LUN 0, of the honest sessions.
    pub store: StorePlan,
    /// How LUN 0 is made of them.
    pub build: Build,
    /// More disks of the honest sessions.
    pub more_disks: Vec<DiskPlan>,
    /// Their LUNs are far apart: some need the flat space addressing method.
    pub far_luns: bool,
    /// The first two sessions are one I_T nexus: each reinstates the session of the other.
    pub twins: bool,
    /// How often the target's process dies, and with it what is not durable, and within which time.
    pub crashes: (u64, Duration),
    /// How often LUNs come, go and grow, and within which time.
    pub changes: (u64, Duration),
    /// Servers in the process, each with all disks.
    pub servers: usize,
    /// They serve one target node.
    pub one_node: bool,
    /// By one portal group tag.
    pub one_port: bool,
    /// Each disk has a second LUN.
    pub second_luns: bool,
    /// The second server and those after it get all disks but the first one later.
    pub late_luns: bool,
    /// Nobody looks after the sessions of those servers that have lost their connection.
    pub unattended: bool,
    /// How often a server stops and starts again, and within which time.
    pub stops: (u64, Duration),
    /// Tasks that another I_T nexus ends are answered TASK ABORTED (TAS, SPC-5 7.5.9).
    pub tells_aborted: bool,
    /// Links of the honest sessions.
    pub weather: Weather,
    /// The honest sessions.
    pub sessions: Vec<SessionPlan>,
    /// A session to another target node over a link that mangles the bytes: pieces in 1000.
    pub mangled: Option<u64>,
    /// How many connections a peer makes that sends anything.
    pub hostile: u64,
    /// How many connections are made that say nothing.
    pub silent: u64,
    /// Initiators that do what few do.
    pub careless: u64,
    /// Initiators of another target node of the first server that need buffers.
    pub borrowers: Vec<Habit>,
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

/// What a silent initiator may cost another's command where nothing else is slow: it owes data to a task that a reset aborts
/// for a second at most (`Limits::owed_data_wait`), and a reset may follow another.
const HELD_UP: Duration = Duration::from_secs(5);

/// Of so many seeds one has so few buffers that sessions wait for them.
const SHORT_OF_BUFFERS: u64 = 4;

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
            flips_data: false,
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
            sync_errors: 0,
            mapped: None,
            lose_write: None,
        };
        let count = rng.pick(&[1, 1, 2, 2, 3]);
        let sessions = (0..count).map(|_| Self::session(rng, digests, &store, &weather, most_blocks)).collect();
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
        if seed.is_multiple_of(SHORT_OF_BUFFERS) {
            // So little that sessions read in pieces, and wait for buffers.
            (limits.buffered, limits.sessions) = (256 << 10, 16);
        }
        Self {
            seed,
            kind: Kind::Plain,
            build: Build::Single,
            more_disks: Vec::new(),
            far_luns: false,
            twins: false,
            crashes: (0, Duration::ZERO),
            changes: (0, Duration::ZERO),
            servers: 1,
            one_node: true,
            one_port: false,
            second_luns: false,
            late_luns: false,
            unattended: false,
            stops: (0, Duration::ZERO),
            tells_aborted: false,
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
            silent: 0,
            careless: 0,
            borrowers: Vec::new(),
        }
    }

    /// The scenario of a seed over another transport.
    #[must_use]
    pub fn over(seed: u64, transport: Transport) -> Self {
        let mut scenario = Self::new(seed);
        scenario.transport = transport;
        if Rng::new(seed, 17).permille(60) {
            scenario.lengthen();
        }
        if transport == Transport::Tcp {
            if Rng::new(seed, 19).permille(400) {
                scenario.guard_data_only();
            }
            return scenario;
        }
        scenario.limits.offer = scenario.iser.target.offer.put_in(scenario.limits.offer);
        for session in &mut scenario.sessions {
            session.offer = session.iser.offer.put_in(session.offer.clone());
            // What guards against bits that flip is iWARP's CRC.
            session.iser.crc |= scenario.weather.flips > 0;
        }
        if transport == Transport::Verbs && Rng::new(seed, 15).permille(600) {
            scenario.pin();
        }
        scenario
    }

    /// The scenario of a seed in which rare things meet: a store that takes longer than every time limit, links that are cut
    /// by time at any step of a login or fall silent in one direction, several initiators on the same few blocks of several
    /// disks of every build, some of them of one I_T nexus, resets of every kind, changes to the LUNs, a target that dies,
    /// and atomic commands that expect what is not there.
    #[must_use]
    pub fn meeting(seed: u64, transport: Transport) -> Self {
        let mut scenario = Self::over(seed, transport);
        scenario.kind = Kind::Meeting;
        let rng = &mut Rng::new(seed, 12);
        let doors = [Door::Easy, Door::Queue, Door::Queue, Door::File, Door::File, Door::Memory];
        scenario.store.door = rng.pick(&doors);
        scenario.store.slow = (rng.pick(&[20, 100, 300]), seconds(rng, 40, 120));
        scenario.store.blocks = scenario.store.blocks.min(128);
        scenario.store.sync_errors = Rng::new(seed, 13).pick(&[0, 50, 200]);
        scenario.build = Self::build(rng);
        for _ in 0..rng.pick(&[0, 0, 1, 2]) {
            let door = rng.pick(&doors);
            let slow = (rng.pick(&[0, 20, 100]), seconds(rng, 40, 120));
            let store = StorePlan { door, slow, ..scenario.store.clone() };
            scenario.more_disks.push(DiskPlan { store, build: Self::build(rng) });
        }
        scenario.far_luns = rng.permille(300);
        scenario.tells_aborted = Rng::new(seed, 21).permille(300);
        scenario.weather.cut_within = (rng.pick(&[0, 300, 700]), seconds(rng, 1, 60));
        scenario.weather.chunk = scenario.weather.chunk.max(300);
        scenario.mangled = None;
        scenario.hostile = 0;
        let sessions = rng.between(2, 4) as usize;
        while scenario.sessions.len() < sessions {
            let mut session = scenario.sessions[0].clone();
            session.reconnect.seed = Some(rng.u64());
            scenario.sessions.push(session);
        }
        scenario.twins = rng.permille(300);
        let remembers = !scenario.disks().any(|disk| disk.store.door == Door::Memory);
        if remembers && rng.permille(300) {
            scenario.crashes = (rng.between(1, 3), seconds(rng, 1, 200));
        }
        if rng.permille(300) {
            scenario.changes = (rng.between(1, 6), seconds(rng, 1, 200));
        }
        let functions = rng.pick(&[GENTLE, GENTLE, HARSH]);
        for session in &mut scenario.sessions {
            let work = &mut session.work;
            work.operations = rng.between(20, 60);
            work.most_blocks = work.most_blocks.min(8);
            work.others = rng.pick(&[100, 400]);
            work.reads = rng.between(100, 500);
            work.functions = rng.pick(&[0, 30, 100]);
            work.function_kinds = functions;
            work.wrong = 200;
            work.think = Duration::from_millis(rng.magnitude(1, 4000));
            session.timeouts.command = seconds(rng, 2, 60);
            if rng.permille(200) {
                session.deaf = (500, seconds(rng, 1, 60));
            }
        }
        if scenario.twins {
            scenario.sessions[1].work.leaves = true;
        }
        scenario
    }

    fn build(rng: &mut Rng) -> Build {
        match rng.below(6) {
            0 => Build::Stripe(rng.between(2, 4), rng.pick(&[1, 2, 4])),
            1 => Build::Linear(rng.between(2, 3)),
            _ => Build::Single,
        }
    }

    /// LUN 0.
    #[must_use]
    pub fn first_disk(&self) -> DiskPlan {
        DiskPlan { store: self.store.clone(), build: self.build }
    }

    fn disks(&self) -> impl Iterator<Item = DiskPlan> {
        [self.first_disk()].into_iter().chain(self.more_disks.clone())
    }

    /// The scenario of a seed in which nothing is slow and nothing fails, but some initiators owe the data of writes, or the
    /// answers to RDMA Reads, and never send them: nobody else waits for them for long.
    #[must_use]
    pub fn silence(seed: u64, transport: Transport) -> Self {
        let mut scenario = Self::over(seed, transport).calm();
        scenario.kind = Kind::Silence;
        let rng = &mut Rng::new(seed, 14);
        scenario.store.door = rng.pick(&[Door::Queue, Door::Easy, Door::Memory, Door::Memory]);
        scenario.store.delay = scenario.store.delay.min(Duration::from_millis(1));
        (scenario.store.read_errors, scenario.store.write_errors, scenario.store.full) = (0, 0, 0);
        scenario.store.blocks = 128;
        scenario.weather.chunk = 65536;
        scenario.weather.capacity = 1 << 20;
        scenario.weather.delay = scenario.weather.delay.min(Duration::from_micros(200));
        // The silent are found out by what they owe, not by what they do not answer.
        scenario.limits.nop_in_idle = Some(Duration::from_secs(300));
        scenario.limits.offer.immediate_data = rng.permille(300);
        let hears = scenario.silent_hear();
        let silent = if hears { 1 } else { rng.between(1, 2) as usize };
        // What it aborts of its own only is nothing that others may not hear of.
        let own_only = hears && rng.permille(500);
        while scenario.sessions.len() < silent + 2 {
            let mut session = scenario.sessions[0].clone();
            session.reconnect.seed = Some(rng.u64());
            scenario.sessions.push(session);
        }
        let functions = rng.pick(&[0, 50]);
        let held_up = if transport == Transport::Tcp {
            // Who waits for buffers is told to come again now and then.
            if scenario.is_short_of_buffers() { HELD_UP * 2 } else { HELD_UP }
        } else {
            // A device may land what it was told to fetch until its connection is gone: so long, and a quarter more, a writer
            // of the same blocks waits, for each of the silent and perhaps twice.
            scenario.limits.data_timeout = HELD_UP;
            HELD_UP * 6
        };
        for (at, session) in scenario.sessions.iter_mut().enumerate() {
            let work = &mut session.work;
            work.undisturbed = false;
            work.operations = rng.between(40, 80);
            work.most_blocks = 32;
            work.others = 400;
            work.reads = 300;
            work.wrong = 200;
            work.depth = work.depth.min(16);
            work.store_fails = false;
            work.think = Duration::from_millis(rng.magnitude(1, 2000));
            if at < silent {
                session.timeouts.command = Duration::from_secs(600);
                session.timeouts.keepalive = Duration::from_secs(600);
                session.timeouts.keepalive_interval = Duration::from_secs(600);
                session.deaf = (1000, seconds(rng, 1, 20));
                work.reads = 0;
                if hears {
                    session.owes = std::mem::take(&mut session.deaf);
                    session.timeouts.task_management = Duration::from_secs(600);
                    work.functions = rng.pick(&[50, 200]);
                    work.function_kinds = if own_only { &[TaskFunction::AbortTaskSet] } else { GENTLE };
                }
            } else {
                // One of them resets. What it aborts of the others they learn only with their next command, if they have
                // one, and by their own limit of time: nothing else is to be said of those.
                let resets = functions > 0 && at == silent;
                work.functions = if resets { functions } else { 0 };
                work.function_kinds = GENTLE;
                let hears_of_all = functions == 0 || resets;
                work.within = (hears_of_all && (own_only || !hears)).then_some(held_up);
                if hears {
                    // The silent one may be owed something for so long, and say its last words for as long again.
                    work.function_within = Some(scenario.limits.owed_data_wait * 2 + Duration::from_secs(1));
                    session.timeouts.task_management = Duration::from_secs(600);
                }
            }
        }
        scenario
    }

    /// Whether the target's sessions have so few buffers together that they wait for them.
    #[must_use]
    pub fn is_short_of_buffers(&self) -> bool {
        self.seed.is_multiple_of(SHORT_OF_BUFFERS)
    }

    /// Whether no session of the honest is to lose its connection. Links may break in a calm world whose faults were put
    /// in by hand.
    #[must_use]
    pub fn loses_nobody(&self) -> bool {
        matches!(self.kind, Kind::Calm | Kind::Scarce) && self.iser.loopback.faults.mute == 0
    }

    /// Whether the silent of a world of silence hear what is said to them, and keep back only what RDMA Reads ask for.
    fn silent_hear(&self) -> bool {
        matches!(self.transport, Transport::Loopback | Transport::Verbs) && self.seed % 5 == 1
    }

    /// Where bits flip, they do so in data only, and no header has a digest.
    fn guard_data_only(&mut self) {
        if self.weather.flips > 0 {
            self.weather.flips_data = true;
            self.limits.offer.header_digest = vec![Digest::None];
            for session in &mut self.sessions {
                session.offer.header_digest = vec![Digest::None];
            }
        }
    }

    /// The same over links without faults.
    fn undisturbed(mut self) -> Self {
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
        self.mangled = None;
        self.hostile = 0;
        self
    }

    /// The same without faults: only sizes and limits are the seed's.
    #[must_use]
    pub fn calm(mut self) -> Self {
        self = self.undisturbed();
        self.kind = Kind::Calm;
        self.store.slow = (0, Duration::ZERO);
        self.limits.nop_in_timeout = Duration::from_secs(10);
        let short = self.is_short_of_buffers();
        for session in &mut self.sessions {
            session.timeouts.keepalive = Duration::from_secs(10);
            session.timeouts.command = Duration::from_secs(60);
            session.work.functions = 0;
            session.work.abandons = 0;
            // A command that is told to come again, because buffers are short, loses its place in the order.
            session.work.undisturbed = !short;
        }
        self
    }

    fn session(
        rng: &mut Rng,
        digests: &[Digest],
        store: &StorePlan,
        weather: &Weather,
        most_blocks: u64,
    ) -> SessionPlan {
        let busy = rng.permille(400);
        let work = WorkPlan {
            operations: if weather.chunk < 100 { rng.between(5, 40) } else { rng.between(20, 120) },
            depth: rng.magnitude(1, 64) as usize,
            think: Duration::from_micros(if busy { 0 } else { rng.magnitude(1, 200_000) }),
            most_blocks,
            reads: rng.between(200, 800),
            others: rng.pick(&[0, 100, 400]),
            unmaps: 0,
            functions: rng.pick(&[0, 0, 20, 60]),
            function_kinds: if rng.permille(500) { GENTLE } else { HARSH },
            abandons: rng.pick(&[0, 0, 50]),
            texts: rng.pick(&[0, 10]),
            unmap: store.unmap,
            store_fails: store.read_errors + store.write_errors + store.full > 0,
            untrusted: false,
            flips: weather.flips > 0,
            wrong: 0,
            leaves: false,
            undisturbed: false,
            patience: Duration::ZERO,
            one_node: true,
            simple: false,
            function_within: None,
            drain: TargetLimits::default().drain_timeout,
            within: None,
        };
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
            deaf: (0, Duration::ZERO),
            owes: (0, Duration::ZERO),
        }
    }
}
