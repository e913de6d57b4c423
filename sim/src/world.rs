//! One run: a target, its initiators, the links between them, on one thread and virtual time.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use initiator_core::{Credentials, Engine, InitiatorConnection, LoginConfig, Recovery, may_heal};
use iscsi_proto::chap::ChapSecret;
use iscsi_proto::datamover::Datamover;
use iscsi_proto::login::ChapAccount;
use iscsi_proto::parameters::Digest;
use iscsi_proto::scsi::Lun;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use iser_transport::loopback::{Faults, LoopbackQueue};
use iser_transport::mover::IserMover;
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{Attributes, Portal, PortalGroup, TargetConfig, TargetNode};
use target_core::registry::Endpoints;
use target_core::session::{Target, TargetConnection};

use crate::fabric::{FabricLink, FabricPlan};
use crate::hostile::Hostile;
use crate::hostile_queue::HostileQueue;
use crate::link::{Link, LinkPlan, Side};
use crate::model::Model;
use crate::network::Network;
use crate::pipe::{Bytes, Completions, DriveInitiator, DriveTarget, Exchange, Pipe};
use crate::rng::Rng;
use crate::scenario::{Chap, Scenario, SessionPlan};
use crate::store::{Door, SimStore, StorePlan};
use crate::trace::Trace;
use crate::transport::Transport;
use crate::workload::{Verdict, Workload};

/// The target node of the honest sessions.
const HONEST: &str = "iqn.2026-11.example.sim:disk";
/// The target node of all others, with a disk of its own.
const OTHER: &str = "iqn.2026-11.example.sim:other";
const USER: &str = "simulated";
const SECRET: &str = "a secret of the initiator";
const TARGET_USER: &str = "simulated target";
const TARGET_SECRET: &str = "a secret of the target";

/// Rounds of a run at most: more is a livelock. A slow link that takes a few bytes a time needs some three million for its data.
const MOST_ROUNDS: u64 = 30_000_000;
/// Virtual time of a run at most.
const MOST_TIME: Duration = Duration::from_secs(4 * 3600);
/// A flaw of the initiator's connections: they end without ever having logged in, again and again.
const MOST_LINKS: usize = 3000;

/// What a run did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Hash of its trace: two runs of one seed have the same.
    pub hash: u64,
    /// Events in the trace.
    pub events: u64,
    /// Commands completed by honest sessions.
    pub commands: u64,
    /// Writes acknowledged to honest sessions.
    pub writes: u64,
    /// Logins of honest sessions.
    pub logins: u64,
    /// Links that were cut.
    pub cuts: u64,
    /// Bits that flipped under digests.
    pub flips: u64,
    /// Virtual time that passed.
    pub time: Duration,
}

/// What a run found.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What carried its sessions.
    pub transport: Transport,
    /// What is wrong.
    pub what: String,
    /// The last lines of its trace.
    pub last: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.last {
            writeln!(f, "    {line}")?;
        }
        let name = self.transport.name();
        writeln!(f, "seed {} over {name}: {}", self.seed, self.what)?;
        write!(f, "replay: cargo run -p sim -- --seed {} --transport {name} --trace", self.seed)
    }
}

enum State {
    Waiting {
        engine: Box<Engine<Workload>>,
        until: Instant,
    },
    Up(Box<dyn DriveInitiator>),
    Over(Box<Workload>),
    /// In between two others.
    Moving,
}

/// An initiator: it keeps its session connected, as the initiator's runner does over sockets.
struct Host {
    plan: SessionPlan,
    login: LoginConfig,
    recovery: Recovery,
    state: State,
    rng: Rng,
    mangle: Option<u64>,
    /// The last instant for which its workload was woken.
    woken: Option<Instant>,
    guarded: bool,
}

impl Host {
    fn app<R>(&mut self, look: impl FnOnce(&mut Workload) -> R) -> R {
        match &mut self.state {
            State::Waiting { engine, .. } => look(engine.app()),
            State::Up(pipe) => look(pipe.app()),
            State::Over(app) => look(app),
            State::Moving => unreachable!("a host is looked at between its moves"),
        }
    }

    fn engine(&self, app: Workload, seed: u64) -> Engine<Workload> {
        Engine::new(app, self.plan.timeouts, self.plan.limits, seed)
    }
}

struct World<'a> {
    scenario: &'a Scenario,
    now: Instant,
    rng: Rng,
    trace: Trace,
    verdict: Verdict,
    target: Arc<Target>,
    stores: Vec<SimStore>,
    model: Rc<RefCell<Model>>,
    networks: Vec<Option<Network>>,
    hosts: Vec<Host>,
    served: Vec<Box<dyn DriveTarget>>,
    /// Sides whose connection is over: what still comes for them is dropped.
    closed: Vec<(usize, Side, Instant)>,
    hostiles: Vec<Hostile>,
    hostile_queues: Vec<HostileQueue>,
    hostile_at: Option<(u64, Instant)>,
    /// Links that are cut by time.
    cuts_at: Vec<(Instant, usize)>,
    calm: bool,
    rounds: u64,
    cuts: u64,
    flips: u64,
}

/// Runs a scenario, and prints its trace if asked for.
///
/// # Errors
/// What it found.
pub fn run(scenario: &Scenario, print: bool) -> Result<Report, Failure> {
    let trace = Trace::new(print);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| World::new(scenario, trace.clone()).live()));
    let failed =
        |what: String| Failure { seed: scenario.seed, transport: scenario.transport, what, last: trace.last() };
    match result {
        Ok(Ok(report)) => Ok(Report { hash: trace.hash(), events: trace.events(), ..report }),
        Ok(Err(what)) => Err(failed(what)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(failed(format!("panic: {}", text.unwrap_or_default())))
        }
    }
}

fn account(mutual: bool) -> ChapAccount {
    ChapAccount {
        user: USER.into(),
        secret: ChapSecret::new(SECRET),
        mutual: mutual.then(|| (TARGET_USER.into(), ChapSecret::new(TARGET_SECRET))),
    }
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, trace: Trace) -> Self {
        let seed = scenario.seed;
        let address: SocketAddr = ([127, 0, 0, 1], 3260).into();
        let store = SimStore::new(scenario.store.clone(), Rng::new(seed, 1));
        let other = SimStore::new(
            StorePlan {
                door: Door::Queue,
                blocks: 128,
                block_size: 512,
                unmap: true,
                lose_write: None,
                ..scenario.store.clone()
            },
            Rng::new(seed, 2),
        );
        let unit = |store: &SimStore, name: &str| {
            Arc::new(
                LogicalUnit::new(Arc::new(store.clone()), Identity::from_seed(name))
                    .expect("a geometry that a disk can have"),
            )
        };
        let group = || PortalGroup::new(1).portal(Portal::new(address).with_iser());
        let mut honest = TargetNode::builder().name(HONEST).lun(0, unit(&store, HONEST)).portal_group(group());
        honest = match scenario.chap {
            Chap::No => honest.open(),
            chap => honest
                .attributes(Attributes { authentication: true, ..Attributes::open() })
                .account(account(chap == Chap::Mutual)),
        };
        let hostile = TargetNode::builder().name(OTHER).lun(0, unit(&other, OTHER)).portal_group(group()).open();
        let config = TargetConfig::builder().node(honest).node(hostile).build().expect("a configuration that can be");
        let model = Rc::new(RefCell::new(Model::new(
            scenario.store.blocks,
            scenario.store.block_size as usize,
            scenario.store.door == Door::Memory,
        )));
        let mut world = Self {
            scenario,
            now: Instant::ZERO,
            rng: Rng::new(seed, 3),
            verdict: Verdict::default(),
            target: Target::new(config, scenario.limits.clone()),
            stores: vec![store, other],
            model,
            networks: Vec::new(),
            hosts: Vec::new(),
            served: Vec::new(),
            closed: Vec::new(),
            hostiles: Vec::new(),
            hostile_queues: Vec::new(),
            hostile_at: (scenario.hostile > 0).then_some((scenario.hostile, Instant::ZERO)),
            cuts_at: Vec::new(),
            calm: false,
            rounds: 0,
            cuts: 0,
            flips: 0,
            trace,
        };
        for (at, plan) in scenario.sessions.iter().enumerate() {
            let name = ["first", "second", "third"][at.min(2)];
            world.add_host(at as u64, name, plan.clone(), HONEST, None);
        }
        if let (Some(mangle), Some(plan)) = (scenario.mangled, scenario.sessions.first()) {
            let mut plan = plan.clone();
            plan.work.untrusted = true;
            plan.offer.header_digest = vec![Digest::None];
            plan.offer.data_digest = vec![Digest::None];
            world.add_host(8, "mangled", plan, OTHER, Some(mangle));
        }
        world
    }

    fn add_host(&mut self, number: u64, name: &'static str, plan: SessionPlan, target: &str, mangle: Option<u64>) {
        let seed = self.scenario.seed;
        let credentials = |user: &str, secret: &str| Credentials { user: user.into(), secret: ChapSecret::new(secret) };
        let chap = if mangle.is_some() { Chap::No } else { self.scenario.chap };
        let initiator = format!("iqn.2026-11.example.sim:{name}");
        let login = LoginConfig {
            credentials: (chap != Chap::No).then(|| credentials(USER, SECRET)),
            target_credentials: (chap == Chap::Mutual).then(|| credentials(TARGET_USER, TARGET_SECRET)),
            offer: plan.offer.clone(),
            ..LoginConfig::new(initiator, target, [0x80, 0, 0, 0, 0, number as u8], [number as u8 + 1; 64])
        };
        let model =
            if mangle.is_some() { Rc::new(RefCell::new(Model::new(128, 512, true))) } else { self.model.clone() };
        let lun = Lun::new(0).expect("LUN 0 exists");
        let rng = Rng::new(seed, 100 + number);
        let app = Workload::new(name, lun, plan.work.clone(), rng, model, self.trace.clone(), self.verdict.clone());
        let mut host = Host {
            recovery: Recovery::new(plan.reconnect, seed),
            plan,
            login,
            state: State::Moving,
            rng: Rng::new(seed, 200 + number),
            mangle,
            woken: None,
            guarded: false,
        };
        host.state = State::Waiting { engine: Box::new(host.engine(app, seed)), until: Instant::ZERO };
        self.hosts.push(host);
    }

    /// The whole story.
    fn live(mut self) -> Result<Report, String> {
        self.until(|world| {
            world.hosts.iter_mut().all(|host| host.mangle.is_some() || host.app(|app| app.is_resting()))
        })?;
        self.calm_down();
        self.each_honest(Workload::verify);
        self.until(|world| {
            world.hosts.iter_mut().all(|host| host.mangle.is_some() || host.app(|app| app.is_resting()))
        })?;
        self.each_honest(Workload::leave);
        self.until(|world| world.hosts.iter().all(|host| matches!(host.state, State::Over(_))))?;
        self.find_silence();
        self.until(|world| {
            let over = world.hostiles.iter().all(Hostile::is_over);
            over && world.served.is_empty() && world.hostile_queues.iter().all(HostileQueue::is_over)
        })?;
        self.check_rest()?;
        let mut report =
            Report { cuts: self.cuts, flips: self.flips, time: self.now - Instant::ZERO, ..Report::default() };
        for host in self.hosts.iter_mut().filter(|host| host.mangle.is_none()) {
            let ((commands, writes), logins) = host.app(|app| (app.done(), app.logins()));
            report.commands += commands;
            report.writes += writes;
            report.logins += u64::from(logins);
        }
        Ok(report)
    }

    fn each_honest(&mut self, tell: impl Fn(&mut Workload)) {
        let seed = self.scenario.seed;
        for host in self.hosts.iter_mut().filter(|host| host.mangle.is_none()) {
            // What the faults have used up of the time to reconnect in is no longer missing: a connection that fell silent before may still be lost.
            host.recovery = Recovery::new(host.plan.reconnect, seed);
            host.state = match std::mem::replace(&mut host.state, State::Moving) {
                State::Over(mut app) => {
                    tell(&mut app);
                    State::Waiting { engine: Box::new(host.engine(*app, seed)), until: self.now }
                }
                other => {
                    host.state = other;
                    host.app(&tell);
                    std::mem::replace(&mut host.state, State::Moving)
                }
            };
            if let State::Up(pipe) = &host.state {
                pipe.wake();
            }
        }
    }

    /// No more faults from here on: what was promised is to be shown.
    fn calm_down(&mut self) {
        self.trace.event(format_args!("calm"));
        self.calm = true;
        for store in &self.stores {
            store.calm();
        }
        for link in self.networks.iter_mut().flatten() {
            link.calm();
        }
        for hostile in &mut self.hostiles {
            hostile.close();
        }
        for hostile in &mut self.hostile_queues {
            hostile.close();
        }
        self.hostile_at = None;
        self.cuts_at.clear();
        for host in self.hosts.iter_mut().filter(|host| host.mangle.is_some()) {
            host.app(|app| {
                app.rest();
                app.leave();
            });
            if let State::Up(pipe) = &host.state {
                pipe.wake();
            }
        }
    }

    /// A target that never asks has no means to find out that a network is dead that says nothing: it leaves that to the system below, such as TCP's own
    /// keepalive.
    fn find_silence(&mut self) {
        if self.scenario.limits.nop_in_idle.is_some() {
            return;
        }
        for pipe in &self.served {
            if let Some(link) = self.networks[pipe.link()].as_mut().filter(|link| link.is_cut()) {
                link.tell_of_cut(Side::Target, self.now);
            }
        }
    }

    /// What must be so when all are gone.
    fn check_rest(&mut self) -> Result<(), String> {
        let registry = self.target.registry();
        if !registry.sessions().is_empty() || registry.connections() != 0 {
            return Err(format!(
                "{} sessions and {} connections are left",
                registry.sessions().len(),
                registry.connections()
            ));
        }
        for store in &self.stores {
            let (now, most) = store.under_way();
            if now != 0 || most > 4096 {
                return Err(format!("{now} store operations are left, of {most} at most"));
            }
        }
        let mut model = self.model.borrow_mut();
        let mut data = vec![0; (model.len() as usize) * model.block_size()];
        self.stores[0].peek(0, &mut data);
        let len = model.len();
        let read = model.begin_read(0, len);
        model.end_read(read, &data).map_err(|wrong| format!("on the medium, {wrong}"))
    }

    fn until(&mut self, done: impl Fn(&mut Self) -> bool) -> Result<(), String> {
        loop {
            self.settle()?;
            if let Some(what) = self.verdict.get() {
                return Err(what);
            }
            self.check_promises()?;
            if done(self) {
                return Ok(());
            }
            let Some(next) = self.next() else { return Err("nothing will ever happen again, and work is left".into()) };
            if next - Instant::ZERO > MOST_TIME {
                return Err(format!("work is left after {MOST_TIME:?}"));
            }
            self.now = next.max(self.now);
            self.trace.at(self.now);
        }
    }

    /// What was promised to survive a crash survives one at this moment.
    fn check_promises(&mut self) -> Result<(), String> {
        let mut model = self.model.borrow_mut();
        if !model.take_promised() {
            return Ok(());
        }
        let Some(left) = self.stores[0].after_crash() else { return Ok(()) };
        model.survives(&left).map_err(|wrong| format!("after a crash, {wrong}"))
    }

    /// Cuts what is to be cut by now.
    fn cut_by_time(&mut self) {
        let now = self.now;
        for (_, number) in self.cuts_at.extract_if(.., |(at, _)| *at <= now) {
            if let Some(network) = &mut self.networks[number] {
                network.cut(now);
            }
        }
    }

    /// Does everything that can be done now.
    fn settle(&mut self) -> Result<(), String> {
        for store in &self.stores {
            store.advance(self.now);
        }
        self.cut_by_time();
        loop {
            self.rounds += 1;
            if self.rounds > MOST_ROUNDS {
                return Err(format!("no rest after {MOST_ROUNDS} rounds"));
            }
            let mut any = false;
            let first = self.rng.below(self.hosts.len() as u64) as usize;
            for at in 0..self.hosts.len() {
                any |= self.run_host((first + at) % self.hosts.len())?;
            }
            if self.rng.permille(800) || !any {
                any |= self.run_served()?;
            }
            any |= self.run_hostiles();
            any |= self.clear_closed();
            if !any {
                return Ok(());
            }
        }
    }

    fn next(&mut self) -> Option<Instant> {
        let now = self.now;
        let mut next: Vec<Option<Instant>> = self.stores.iter().map(SimStore::next).collect();
        for host in &mut self.hosts {
            let due = match &mut host.state {
                State::Waiting { until, .. } => Some(*until),
                State::Up(pipe) => {
                    let due = pipe.app().due().filter(|at| *at > now);
                    let link = self.networks[pipe.link()].as_ref();
                    [due, link.and_then(|link| pipe.next(link, now))].into_iter().flatten().min()
                }
                State::Over(_) | State::Moving => None,
            };
            next.push(due);
        }
        for pipe in &self.served {
            next.push(self.networks[pipe.link()].as_ref().and_then(|link| pipe.next(link, now)));
        }
        for hostile in &self.hostiles {
            next.push(self.networks[hostile.link].as_ref().and_then(|link| hostile.next(link, now)));
        }
        for hostile in self.hostile_queues.iter().filter(|hostile| !hostile.is_over()) {
            let fabric = self.networks[hostile.link].as_mut().and_then(Network::as_fabric);
            next.push(fabric.and_then(|fabric| hostile.next(fabric, now)));
        }
        next.push(self.hostile_at.map(|(_, at)| at));
        next.extend(self.cuts_at.iter().map(|(at, _)| Some(*at)));
        for (link, side, until) in &self.closed {
            next.push(Some(*until).filter(|at| *at > now));
            next.push(self.networks[*link].as_ref().and_then(|link| link.next(*side, now)));
        }
        next.into_iter().flatten().min()
    }

    /// A byte stream to the target.
    fn connect(&mut self, plan: LinkPlan, rng: Rng, transport: Transport) -> Option<usize> {
        let link = || Network::Bytes(Box::new(Link::new(plan, rng)));
        let tasks = self.target_tasks();
        if transport == Transport::Iwarp {
            let mover = self.scenario.iser.target.over_iwarp(tasks, self.rng.u64());
            return self.serve::<_, Bytes>(mover, link);
        }
        let config = TcpMoverConfig { max_tasks: tasks, ..self.scenario.mover };
        self.serve::<_, Bytes>(TcpMover::new(Role::Target, config), link)
    }

    /// Queue pairs to the target; the initiator's mover.
    fn connect_loopback(&mut self, at: usize, plan: FabricPlan) -> Option<(usize, IserMover<LoopbackQueue>)> {
        let (tasks, seed, now) = (self.target_tasks(), self.rng.u64(), self.now);
        let Host { plan: host, mangle, .. } = &self.hosts[at];
        let end = (&host.iser, host.limits.commands);
        let mut faults = if self.calm { Faults::default() } else { self.scenario.iser.loopback.faults };
        if let (Some(mangle), false) = (*mangle, self.calm) {
            faults.mangle = mangle as u32 * 1000;
        }
        let (initiator, target, fabric) = self.scenario.iser.over_loopback(end, tasks, faults, seed);
        let rng = Rng::new(self.scenario.seed, 1000 + self.networks.len() as u64);
        let trace = (self.trace.clone(), self.networks.len());
        let network = || Network::Queues(Box::new(FabricLink::new(fabric, plan, rng, now).traced(trace.0, trace.1)));
        let number = self.serve::<_, Completions>(target, network)?;
        Some((number, initiator))
    }

    fn connect_hostile_queue(&mut self, left: u64) {
        let (tasks, seed, now) = (self.target_tasks(), self.rng.u64(), self.now);
        let (queue, target, fabric) = self.scenario.iser.toward_target(tasks, seed);
        let mut rng = Rng::new(self.scenario.seed, 700 + left);
        let plan = FabricPlan { cut_after: None, ..self.scenario.weather.fabric(&mut rng) };
        let fabric_rng = Rng::new(self.scenario.seed, 800 + left);
        let network = || Network::Queues(Box::new(FabricLink::new(fabric, plan, fabric_rng, now)));
        if let Some(link) = self.serve::<_, Completions>(target, network) {
            self.hostile_queues.push(HostileQueue::new(link, queue, rng, OTHER, now));
        }
    }

    const fn target_tasks(&self) -> u16 {
        self.scenario.limits.command_window + self.scenario.limits.immediate_commands
    }

    /// The target takes a connection, if it does, over a network of which it has one end.
    fn serve<M, X>(&mut self, mover: M, network: impl FnOnce() -> Network) -> Option<usize>
    where
        M: Datamover + 'static,
        X: Exchange<TargetConnection<M>> + 'static,
    {
        let number = self.networks.len();
        if number > MOST_LINKS {
            self.verdict.broken(format!("more than {MOST_LINKS} connections were made"));
            return None;
        }
        let endpoints =
            Endpoints { local: ([127, 0, 0, 1], 3260).into(), peer: ([127, 0, 0, 1], 10_000 + number as u16).into() };
        let mut entropy = [0; 64];
        self.rng.fill(&mut entropy);
        let connection = TargetConnection::new(self.target.clone(), mover, endpoints, entropy, self.now)?;
        self.networks.push(Some(network()));
        self.served.push(Box::new(Pipe::<_, X>::new(connection, number, Side::Target)));
        Some(number)
    }

    fn run_host(&mut self, at: usize) -> Result<bool, String> {
        let now = self.now;
        let state = std::mem::replace(&mut self.hosts[at].state, State::Moving);
        let (state, any) = match state {
            State::Waiting { engine, until } if until <= now => (self.connect_host(at, *engine), true),
            State::Up(mut pipe) => {
                let host = &mut self.hosts[at];
                let due = pipe.app().due().filter(|due| *due <= now);
                if due.is_some() && due != host.woken {
                    host.woken = due;
                    pipe.wake();
                }
                let Some(link) = &mut self.networks[pipe.link()] else {
                    return Err("a link went before its connection".into());
                };
                let any = pipe.run(link, now)?;
                if !host.guarded && pipe.logged_in_at().is_some() {
                    host.guarded = true;
                    link.guard();
                }
                if pipe.is_finished() { (self.disconnect_host(at, pipe), true) } else { (State::Up(pipe), any) }
            }
            other => (other, false),
        };
        self.hosts[at].state = state;
        Ok(any)
    }

    fn connect_host(&mut self, at: usize, engine: Engine<Workload>) -> State {
        let host = &mut self.hosts[at];
        let weather = &self.scenario.weather;
        let transport = self.scenario.transport;
        let plan = match host.mangle {
            _ if self.calm => LinkPlan::calm(),
            None => weather.link(&mut host.rng),
            Some(mangle) => LinkPlan { mangle, flip: None, ..weather.link(&mut host.rng) },
        };
        let refused = !self.calm && host.rng.permille(weather.refused);
        host.guarded = false;
        let number = self.networks.len() as u64;
        let rng = Rng::new(self.scenario.seed, 1000 + number);
        let commands = host.plan.limits.commands;
        let up = match transport {
            _ if refused => Err(engine),
            Transport::Loopback => {
                let plan = if self.calm { FabricPlan::calm() } else { weather.fabric(&mut host.rng) };
                match self.connect_loopback(at, plan) {
                    Some((link, mover)) => Ok(self.begin::<_, Completions>(at, engine, mover, link)),
                    None => Err(engine),
                }
            }
            Transport::Iwarp => match self.connect(plan, rng, transport) {
                Some(link) => {
                    let mover = self.hosts[at].plan.iser.over_iwarp(commands, self.rng.u64());
                    Ok(self.begin::<_, Bytes>(at, engine, mover, link))
                }
                None => Err(engine),
            },
            Transport::Tcp => match self.connect(plan, rng, transport) {
                Some(link) => {
                    let config = TcpMoverConfig { max_tasks: commands, ..self.hosts[at].plan.mover };
                    Ok(self.begin::<_, Bytes>(at, engine, TcpMover::new(Role::Initiator, config), link))
                }
                None => Err(engine),
            },
        };
        up.unwrap_or_else(|engine| {
            self.trace.event(format_args!("host {at} is refused"));
            match self.hosts[at].recovery.failed(self.now) {
                Some(wait) => State::Waiting { engine: Box::new(engine), until: self.now + wait },
                None => self.give_up(engine),
            }
        })
    }

    /// A host begins its login over its end of a network.
    fn begin<M, X>(&mut self, at: usize, engine: Engine<Workload>, mover: M, link: usize) -> State
    where
        M: Datamover + 'static,
        X: Exchange<InitiatorConnection<M, Workload>> + 'static,
    {
        self.trace.event(format_args!("host {at} connects, link {link}"));
        let host = &mut self.hosts[at];
        let (links, within) = self.scenario.weather.cut_within;
        if links > 0 && !self.calm && host.mangle.is_none() && host.rng.permille(links) {
            let wait = Duration::from_micros(host.rng.magnitude(1, within.as_micros() as u64));
            self.cuts_at.push((self.now + wait, link));
        }
        let connection =
            InitiatorConnection::new(mover, engine, host.login.clone(), host.plan.timeouts.login, self.now);
        State::Up(Box::new(Pipe::<_, X>::new(connection, link, Side::Initiator)))
    }

    fn disconnect_host(&mut self, at: usize, pipe: Box<dyn DriveInitiator>) -> State {
        let now = self.now;
        self.close(pipe.link(), Side::Initiator);
        let logged_in_at = pipe.logged_in_at();
        let (engine, end, time2wait) = pipe.into_parts(now);
        self.trace.event(format_args!("host {at} is disconnected: {end}"));
        if end.is_logout() {
            return self.give_up(engine);
        }
        let host = &mut self.hosts[at];
        let wait = if let Some(at) = logged_in_at {
            host.recovery.connected(at);
            host.recovery.lost(time2wait, engine.counters().answered, now)
        } else {
            host.recovery.failed(now).filter(|_| may_heal(&end))
        };
        if wait.is_none() && host.mangle.is_none() && !may_heal(&end) {
            self.verdict.broken(format!("host {at} cannot log in: {end}"));
        }
        match wait {
            Some(wait) => State::Waiting { engine: Box::new(engine), until: now + wait },
            None => self.give_up(engine),
        }
    }

    /// The session is over: every command must have completed.
    fn give_up(&self, engine: Engine<Workload>) -> State {
        let mut app = engine.into_app(self.now);
        app.rest();
        app.check_over();
        State::Over(Box::new(app))
    }

    fn run_served(&mut self) -> Result<bool, String> {
        let mut any = false;
        let mut at = 0;
        while at < self.served.len() {
            let pipe = &mut self.served[at];
            let Some(link) = &mut self.networks[pipe.link()] else {
                return Err("a link went before its connection".into());
            };
            any |= pipe.run(link, self.now)?;
            if pipe.is_finished() {
                let pipe = self.served.remove(at);
                self.trace.event(format_args!("target ends link {}: {}", pipe.link(), pipe.end_reason()));
                self.close(pipe.link(), Side::Target);
                any = true;
            } else {
                at += 1;
            }
        }
        Ok(any)
    }

    fn run_hostiles(&mut self) -> bool {
        let mut any = false;
        if let Some((left, at)) = self.hostile_at
            && at <= self.now
        {
            let mut rng = Rng::new(self.scenario.seed, 500 + left);
            let plan = LinkPlan { cut_after: None, flip: None, ..self.scenario.weather.link(&mut rng) };
            if let Some(link) = self.connect(plan, Rng::new(self.scenario.seed, 600 + left), Transport::Tcp) {
                self.hostiles.push(Hostile::new(link, &mut rng, OTHER, self.now));
            }
            if self.scenario.transport == Transport::Loopback {
                self.connect_hostile_queue(left);
            }
            let wait = Duration::from_millis(rng.magnitude(1, 2000));
            self.hostile_at = (left > 1).then_some((left - 1, self.now + wait));
            any = true;
        }
        for at in 0..self.hostile_queues.len() {
            let hostile = &mut self.hostile_queues[at];
            let number = hostile.link;
            let fabric = self.networks[number].as_mut().and_then(Network::as_fabric);
            let (Some(fabric), false) = (fabric, hostile.is_over()) else { continue };
            any |= hostile.run(fabric, self.now);
            if hostile.is_over() {
                self.close(number, Side::Initiator);
            }
        }
        for at in 0..self.hostiles.len() {
            let hostile = &mut self.hostiles[at];
            if hostile.is_over() {
                continue;
            }
            let number = hostile.link;
            let Some(link) = self.networks[number].as_mut().and_then(Network::as_link) else { continue };
            any |= hostile.run(link, self.now);
            if hostile.is_over() {
                self.close(number, Side::Initiator);
            }
        }
        any
    }

    fn close(&mut self, number: usize, side: Side) {
        let Some(link) = &mut self.networks[number] else { return };
        link.close(side, self.now);
        let other = self.closed.iter().position(|(other, ..)| *other == number);
        if let Some(other) = other {
            self.closed.swap_remove(other);
            self.cuts += u64::from(link.is_cut());
            self.flips += u64::from(link.has_flipped());
            self.networks[number] = None;
        } else {
            // Some programs wait for the peer's end, others do not.
            let linger = Duration::from_millis(if self.rng.permille(500) { 1000 } else { 1 });
            self.closed.push((number, side, self.now + linger));
        }
    }

    /// Drops what comes for sides that are over.
    fn clear_closed(&mut self) -> bool {
        let mut any = false;
        for (number, side, until) in &self.closed {
            let Some(link) = &mut self.networks[*number] else { continue };
            any |= link.discard(*side, self.now);
            if *until <= self.now {
                link.abandon(*side, self.now);
            }
        }
        any
    }
}
