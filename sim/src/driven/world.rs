//! One run: a server, sessions and raw peers on one thread.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use backstore::{Backstore, RamStore};
use initiator_core::{Connected, Connector, Portal as Address, SessionConfig, Transport};
use iscsi_driver::Clock;
use target_core::lu::{Identity, LogicalUnit, UnitLimits};
use target_core::node::{TargetConfig, TargetNode};
use target_core::registry::Endpoints;
use target_core::server::{LocalServer, Server};
use target_core::session::{Limits, Target};
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use super::plan::{Plan, Stop};
use super::raw::{self, Probe, Raw};
use super::session::{self, Shared};
use super::store::WorkStore;
use super::wire::{End, Ends, WirePlan, wire};
use super::work::Meter;
use super::{Fault, Log};
use crate::model::Model;
use crate::rng::Rng;
use crate::trace::Trace;
use crate::world::Report;

const NAME: &str = "iqn.2026-11.example.sim:driven";
/// Longer than all limits of the target one after the other, and than any operation of the store.
const AFTERWARDS: Duration = Duration::from_secs(300);
/// Turns of a millisecond that the threads of a run get to end in, on however slow a machine.
const MOST_TURNS: u32 = 30_000;
/// No run takes longer.
const MOST_TIME: Duration = Duration::from_secs(24 * 3600);

fn portal() -> SocketAddr {
    ([127, 0, 0, 1], 3260).into()
}

/// How much work may be done until an answer: of each connection the pass that it is in and one that waits before ours,
/// and of our own as much.
fn bound(meter: &Meter, connections: usize) -> Duration {
    const PASSES: u32 = 2;
    // A turn of store operations, the time of a pass, and what it began last.
    let pass = iscsi_driver::Limits::default().time_per_wake + meter.costs().of(1 << 20) * 2;
    pass * PASSES * (connections as u32 + 1)
}

/// What the connections of all initiators run over.
#[derive(Debug, Clone)]
struct Net(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    plan: Plan,
    seed: u64,
    log: Log,
    meter: Meter,
    ends: Ends,
    /// A server listens.
    up: AtomicBool,
    arrivals: mpsc::UnboundedSender<(End, Endpoints)>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rng: Rng,
    wires: u64,
    cuts: u64,
}

impl Net {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, plan: impl FnOnce(&mut State) -> WirePlan) -> io::Result<End> {
        if !self.0.up.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let mut state = self.state();
        state.wires += 1;
        let plan = plan(&mut state);
        let number = state.wires;
        let rng = Rng::new(self.0.seed, 10_000 + number);
        let (ours, theirs) = wire(number, plan, rng, &self.0.log, &self.0.meter, &self.0.ends);
        self.0.log.event(format_args!("wire {number}"));
        let endpoints = Endpoints { local: portal(), peer: ([127, 0, 0, 1], 40_000 + number as u16).into() };
        self.0.arrivals.send((theirs, endpoints)).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(ours)
    }

    fn open_plain(&self) -> io::Result<End> {
        self.open(|_| WirePlan::plain())
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.state().rng.fill(bytes);
    }
}

impl Connector for Net {
    type Stream = End;

    async fn connect(&self, _: SocketAddr) -> io::Result<Connected<End>> {
        let (delay, plan) = (self.0.plan.wire.delay.0, &self.0.plan);
        sleep(delay).await;
        let end = self.open(|state| {
            let cut = state.rng.permille(plan.cuts.0);
            let dead = state.rng.permille(plan.deaths.0);
            state.cuts += u64::from(cut);
            WirePlan {
                cut_after: cut.then(|| state.rng.magnitude(1, plan.cuts.1)),
                dead_after: dead.then(|| state.rng.magnitude(1, plan.deaths.1)),
                ..plan.wire
            }
        })?;
        let local = ([127, 0, 0, 1], 40_000 + end.number() as u16).into();
        Ok(Connected { stream: end, local, peer: portal() })
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        self.fill(bytes);
        Ok(())
    }
}

/// The server, while there is one.
type Seat = Rc<RefCell<Option<LocalServer>>>;

struct World {
    net: Net,
    seat: Seat,
    unit: Arc<LogicalUnit>,
    fault: Fault,
    targets: RefCell<Vec<Weak<Target>>>,
}

/// Lives through a seed.
pub(super) fn live(seed: u64, trace: &Trace) -> Result<Report, String> {
    // The clock's begin is before that of the runtime, whose time stands still from then on.
    let _ = Clock::process();
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let fault = Fault::default();
    let local = LocalSet::new();
    let result = local.block_on(&runtime, async { timeout(MOST_TIME, run(seed, trace, &fault)).await });
    let left = runtime.metrics().num_alive_tasks();
    {
        // What is left of timers is dropped where they belong.
        let _entered = runtime.enter();
        drop(local);
    }
    let report = result.map_err(|_| format!("work is left after {MOST_TIME:?}"))?;
    if left > 0 {
        fault.found(format!("{left} tasks of sessions are left"));
    }
    fault.get().map_or(Ok(report), Err)
}

async fn run(seed: u64, trace: &Trace, fault: &Fault) -> Report {
    let plan = Plan::of(seed);
    let begin = Instant::now();
    let log = Log { trace: trace.clone(), begin };
    log.event(format_args!("{plan:?}"));
    let meter = Meter::new(plan.costs);
    let (arrivals, inbox) = mpsc::unbounded_channel();
    let work_store = plan.store.map(|plan| WorkStore::new(plan, &meter, Rng::new(seed, 2)));
    let store: Arc<dyn Backstore> = match &work_store {
        Some(store) => store.clone(),
        None => Arc::new(RamStore::new((plan.kept + plan.room) * 512).expect("memory for a small store")),
    };
    let unit = LogicalUnit::new(store.clone(), Identity::from_seed("driven")).expect("a disk");
    let unit = unit.with_limits(UnitLimits { max_write_same: plan.room as u32, ..UnitLimits::default() });
    let inner = Inner {
        seed,
        log: log.clone(),
        meter: meter.clone(),
        ends: Ends::default(),
        up: AtomicBool::new(false),
        arrivals,
        state: Mutex::new(State { rng: Rng::new(seed, 3), wires: 0, cuts: 0 }),
        plan: plan.clone(),
    };
    let world = Rc::new(World {
        net: Net(Arc::new(inner)),
        seat: Seat::default(),
        unit: Arc::new(unit),
        fault: fault.clone(),
        targets: RefCell::default(),
    });
    world.start();
    let acceptor = spawn_local(accept(inbox, world.seat.clone()));
    let counts = Rc::new(Cell::new((0, 0)));
    let model = Rc::new(RefCell::new(Model::new(plan.kept, 512, false)));
    let troubled = plan.cuts.0 + plan.deaths.0 + plan.wire.stalls.0 > 0 || !plan.stops.is_empty();
    let shared = Shared {
        model: model.clone(),
        room: plan.room,
        log: log.clone(),
        fault: fault.clone(),
        counts: counts.clone(),
        troubled,
    };
    let mut peers = JoinSet::new();
    for (number, session) in (0..).zip(&plan.sessions) {
        let config = config(number, session.commands, seed);
        peers.spawn_local(session::live(number, *session, shared.clone(), world.net.clone(), config, seed));
    }
    for number in 0..plan.probes {
        peers.spawn_local(world.clone().probe(number, seed));
    }
    for number in 0..plan.rude {
        peers.spawn_local(world.clone().rude(number, seed));
    }
    let stops = spawn_local(world.clone().stops());
    while let Some(ended) = peers.join_next().await {
        if let Err(error) = ended {
            fault.found(format!("a peer ended with {error}"));
        }
    }
    log.event(format_args!("all peers have gone"));
    stops.abort();
    let _ = stops.await;
    world.end(seed).await;
    acceptor.abort();
    let _ = acceptor.await;
    sleep(AFTERWARDS).await;
    world.let_threads_end(work_store.as_deref());
    world.check_over(work_store.as_deref());
    let mut content = vec![0; plan.kept as usize * 512];
    match (&work_store, store.read(0, &mut content).await) {
        (Some(store), _) => content = store.content(),
        (None, Ok(())) => {}
        (None, Err(error)) => fault.found(error.to_string()),
    }
    let read = model.borrow_mut().begin_read(0, plan.kept);
    if let Err(wrong) = model.borrow_mut().end_read(read, &content) {
        fault.found(format!("in the end {wrong}"));
    }
    let (commands, writes) = counts.get();
    let state = world.net.state();
    Report {
        commands,
        writes,
        logins: state.wires,
        cuts: state.cuts,
        crashes: plan.stops.len() as u64,
        time: begin.elapsed(),
        ..Report::default()
    }
}

fn config(number: u64, commands: u16, seed: u64) -> SessionConfig {
    let address = Address { host: "127.0.0.1".into(), port: portal().port() };
    let mut config = SessionConfig::new(address, NAME);
    config.initiator_name = Some(format!("iqn.2026-11.example.sim:driven-{number}"));
    config.isid = Some([0x80, 0, 0, 0, 1, number as u8]);
    config.transport = Transport::Tcp;
    config.reconnect.seed = Some(seed);
    // Stores may be slow, several times in one command.
    config.timeouts.command = Duration::from_secs(300);
    config.limits.commands = commands;
    config
}

/// Hands what comes to the server of the time.
async fn accept(mut inbox: mpsc::UnboundedReceiver<(End, Endpoints)>, seat: Seat) {
    while let Some((end, endpoints)) = inbox.recv().await {
        if let Some(server) = &*seat.borrow() {
            let _ = server.serve(end, endpoints);
        }
    }
}

impl World {
    fn start(&self) {
        let plan = &self.net.0.plan;
        let unit = self.unit.clone();
        let node = TargetNode::builder().name(NAME).lun(0, unit).portal(portal()).open();
        let config = TargetConfig::builder().node(node).build().expect("a configuration");
        let net = self.net.clone();
        let server = Server::builder(config)
            .limits(Limits::default())
            .driver_limits(iscsi_driver::Limits {
                bytes_per_wake: plan.bytes_per_wake,
                ..iscsi_driver::Limits::default()
            })
            .workers(plan.workers)
            .random(move |bytes| {
                net.fill(bytes);
                Ok(())
            })
            .start_local();
        self.targets.borrow_mut().push(Arc::downgrade(server.target()));
        *self.seat.borrow_mut() = Some(server);
        self.net.0.up.store(true, Ordering::Relaxed);
        self.net.0.log.event(format_args!("a server"));
    }

    async fn stop(&self, how: Stop) {
        self.net.0.up.store(false, Ordering::Relaxed);
        let Some(server) = self.seat.borrow_mut().take() else { return };
        self.net.0.log.event(format_args!("the server stops: {how:?}"));
        match how {
            Stop::Dropped => drop(server),
            Stop::Politely(grace) => {
                let most = grace + server.target().limits().close_timeout + Duration::from_secs(2);
                if timeout(most, server.stop(grace)).await.is_err() {
                    self.fault.found(format!("a server has not stopped after {most:?}"));
                }
            }
        }
        self.net.0.log.event(format_args!("the server has stopped"));
    }

    async fn stops(self: Rc<Self>) {
        for (after, how, away) in self.net.0.plan.stops.clone() {
            sleep(after).await;
            self.stop(how).await;
            sleep(away).await;
            self.start();
        }
    }

    async fn end(&self, seed: u64) {
        let mut rng = Rng::new(seed, 4);
        let how = if rng.permille(300) { Stop::Dropped } else { Stop::Politely(Duration::from_secs(1)) };
        self.stop(how).await;
    }

    /// Connections of all servers, those too that stop.
    fn connections(&self) -> usize {
        self.targets.borrow().iter().filter_map(Weak::upgrade).map(|target| target.registry().connections()).sum()
    }

    async fn probe(self: Rc<Self>, number: u64, seed: u64) {
        let plan = &self.net.0.plan;
        let mut rng = Rng::new(seed, 50 + number);
        let is_fast = plan.store.is_none_or(|store| store.delay.0 + store.slow.0 == 0);
        let probe = Probe { questions: plan.questions, room: plan.kept..plan.kept + plan.room, reads: is_fast, bound };
        let log_in = async |at: u64| {
            let end = self.net.open_plain()?;
            Raw::log_in(end, &self.net.0.meter, NAME, (number * 2 + at) as u8).await
        };
        let result = async {
            let pair = (log_in(0).await?, log_in(1).await?);
            raw::probe(pair, probe, || self.connections(), &mut rng, (&self.net.0.log, &self.fault)).await
        };
        if let Err(error) = result.await {
            self.net.0.log.event(format_args!("probe: {error}"));
            if plan.stops.is_empty() {
                self.fault.found(format!("a connection at which nothing is wrong ends: {error}"));
            }
        }
    }

    async fn rude(self: Rc<Self>, number: u64, seed: u64) {
        let mut rng = Rng::new(seed, 80 + number);
        sleep(Duration::from_micros(rng.magnitude(10, 1_000_000))).await;
        if let Ok(end) = self.net.open_plain() {
            raw::be_rude(end, &self.net.0.meter, NAME, number as u8, &mut rng).await;
        }
    }

    /// What a server that was dropped has left behind is looked after by a thread, whose turns the machine gives, not
    /// virtual time: it has its turn.
    fn let_threads_end(&self, store: Option<&WorkStore>) {
        let is_over = || {
            let is_gone = self.targets.borrow().iter().all(|target| target.strong_count() == 0);
            is_gone && store.is_none_or(|store| store.under_way() == 0)
        };
        let mut turns = 0;
        while turns < MOST_TURNS && !is_over() {
            turns += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Nothing is left.
    fn check_over(&self, store: Option<&WorkStore>) {
        let ends = self.net.0.ends.count();
        if ends > 0 {
            self.fault.found(format!("{ends} ends of streams are left"));
        }
        let targets = self.targets.borrow().iter().filter(|target| target.strong_count() > 0).count();
        if targets > 0 {
            self.fault.found(format!("{targets} targets are left"));
        }
        if let Some(left) = store.map(WorkStore::under_way).filter(|left| *left > 0) {
            self.fault.found(format!("{left} operations of the store are left"));
        }
    }
}
