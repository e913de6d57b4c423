//! One run: a target, its initiators, the links between them, on one thread and virtual time.

mod events;
mod hosts;
mod others;
mod owing;
mod report;
mod server;
mod serving;

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use initiator_core::Recovery;
use iscsi_proto::parameters::Digest;
use iscsi_proto::time::Instant;
use iser_transport::verbs::simulated::Device;
use target_core::lu::LogicalUnit;

pub use report::{Failure, Report};

use crate::borrower::{BLOCKS, Borrower};
use crate::careless::Careless;
use crate::disk::{Disk, SharedDisk};
use crate::hostile::Hostile;
use crate::hostile_queue::HostileQueue;
use crate::link::Side;
use crate::network::Network;
use crate::parting::Parting;
use crate::pipe::DriveTarget;
use crate::rng::Rng;
use crate::scenario::{Kind, Scenario};
use crate::store::{Door, SimStore, StorePlan};
use crate::told::Told;
use crate::trace::Trace;
use crate::workload::{Attentions, Verdict, Workload};
use events::{Fate, Happening};
use hosts::{Host, NAMES, State};
use owing::Owing;
use server::Server;

/// Rounds of a run at most: more is a livelock. A slow link that takes a few bytes a time needs some three million for
/// its data.
const MOST_ROUNDS: u64 = 30_000_000;
/// Virtual time of a run at most.
const MOST_TIME: Duration = Duration::from_secs(4 * 3600);

/// From the LUN of a disk to its second one.
const SECOND: u16 = 1000;

/// A connection at a server.
struct Served {
    server: usize,
    pipe: Box<dyn DriveTarget>,
    /// Of those over RDMA.
    parting: Option<Parting>,
}

struct World<'a> {
    scenario: &'a Scenario,
    now: Instant,
    rng: Rng,
    trace: Trace,
    verdict: Verdict,
    /// All that are in the one process.
    servers: Vec<Server>,
    told: Told,
    /// The process's RDMA device, for verbs.
    device: Option<Device>,
    disks: Vec<SharedDisk>,
    /// The units of the disks, in their order.
    units: Vec<Arc<LogicalUnit>>,
    /// The disk of hostile peers.
    other: SimStore,
    attentions: Attentions,
    networks: Vec<Option<Network>>,
    hosts: Vec<Host>,
    served: Vec<Served>,
    /// Sides whose connection is over: what still comes for them is dropped.
    closed: Vec<(usize, Side, Instant)>,
    hostiles: Vec<Hostile>,
    hostile_queues: Vec<HostileQueue>,
    careless: Vec<Careless>,
    borrowers: Vec<Borrower>,
    hostile_at: Option<(u64, Instant)>,
    /// What becomes of links at a time.
    fates: Vec<(Instant, usize, Fate)>,
    /// Links whose initiator hears nothing any more, or owes.
    deafened: Vec<usize>,
    /// Of those that owe, what becomes of what they ask for.
    owing: Vec<Owing>,
    /// What happens to the target at a time.
    events_at: Vec<(Instant, Happening)>,
    calm: bool,
    rounds: u64,
    cuts: u64,
    flips: u64,
    crashes: u64,
    changes: u64,
    deaf: u64,
}

/// Runs a scenario, and prints its trace if asked for.
///
/// # Errors
/// What it found.
pub fn run(scenario: &Scenario, print: bool) -> Result<Report, Failure> {
    if scenario.kind == Kind::Driven {
        return crate::driven::run(scenario.seed, print);
    }
    if scenario.kind == Kind::Threads {
        return crate::threads::run(scenario.seed, print);
    }
    if scenario.kind == Kind::Odd {
        return crate::odd::run(scenario.seed, print);
    }
    if scenario.kind == Kind::Library {
        return crate::odd::library::run(scenario.seed, print);
    }
    if scenario.kind == Kind::Paths {
        return crate::odd::paths::run(scenario.seed, print);
    }
    let trace = Trace::new(print);
    caught((scenario.seed, scenario.kind, scenario.transport), &trace, || World::new(scenario, trace.clone()).live())
}

/// Has a world live; a panic in it is what the seed found, like any other fault.
pub(crate) fn caught(
    (seed, kind, transport): (u64, Kind, crate::transport::Transport),
    trace: &Trace,
    live: impl FnOnce() -> Result<Report, String>,
) -> Result<Report, Failure> {
    let failed = |what: String| Failure { seed, kind, transport, what, last: trace.last() };
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(live)) {
        Ok(Ok(report)) => Ok(Report { hash: trace.hash(), events: trace.events(), ..report }),
        Ok(Err(what)) => Err(failed(what)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(failed(format!("panic: {}", text.unwrap_or_default())))
        }
    }
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, trace: Trace) -> Self {
        let seed = scenario.seed;
        let of_other = StorePlan {
            door: Door::Queue,
            blocks: (scenario.borrowers.len() as u64 * BLOCKS).max(128),
            block_size: 512,
            unmap: true,
            lose_write: None,
            ..scenario.store.clone()
        };
        let other = SimStore::new(of_other, Rng::new(seed, 2));
        let second = |lun: u16| scenario.second_luns.then_some(lun + SECOND);
        let like = (scenario.transport, scenario.tells_aborted);
        let mut disks = vec![Disk::new((0, second(0)), scenario.first_disk(), like, Rng::new(seed, 1))];
        for (number, plan) in (1..).zip(&scenario.more_disks) {
            // LUNs of both ways to address them.
            let lun = number * if scenario.far_luns { 200 } else { 1 };
            let rng = Rng::new(seed, 30 + u64::from(number));
            disks.push(Disk::new((lun, second(lun)), plan.clone(), like, rng));
        }
        for disk in &disks {
            trace.event(format_args!("LUN {}: {:?}", disk.number, disk.plan));
        }
        let units: Vec<_> = disks.iter().map(server::unit).collect();
        let told = Told::default();
        let servers =
            (0..scenario.servers).map(|number| Server::start(scenario, number, &disks, &units, &other, &told));
        let servers = servers.collect();
        let mut world = Self {
            scenario,
            now: Instant::ZERO,
            rng: Rng::new(seed, 3),
            verdict: Verdict::default(),
            servers,
            told,
            device: World::device(scenario),
            disks,
            units,
            other,
            attentions: Attentions::default(),
            networks: Vec::new(),
            hosts: Vec::new(),
            served: Vec::new(),
            closed: Vec::new(),
            hostiles: Vec::new(),
            hostile_queues: Vec::new(),
            careless: Vec::new(),
            borrowers: Vec::new(),
            hostile_at: (scenario.hostile + scenario.silent > 0)
                .then_some((scenario.hostile + scenario.silent, Instant::ZERO)),
            fates: Vec::new(),
            deafened: Vec::new(),
            owing: Vec::new(),
            events_at: Vec::new(),
            calm: false,
            rounds: 0,
            cuts: 0,
            flips: 0,
            crashes: 0,
            changes: 0,
            deaf: 0,
            trace,
        };
        world.plan_events();
        for (at, plan) in scenario.sessions.iter().enumerate() {
            world.add_host(at as u64, NAMES[at.min(NAMES.len() - 1)], plan.clone(), None);
        }
        world.add_careless();
        world.add_borrowers();
        if let (Some(mangle), Some(plan)) = (scenario.mangled, scenario.sessions.first()) {
            let mut plan = plan.clone();
            plan.work.untrusted = true;
            plan.offer.header_digest = vec![Digest::None];
            plan.offer.data_digest = vec![Digest::None];
            world.add_host(8, "mangled", plan, Some(mangle));
        }
        world
    }

    /// The whole story.
    fn live(mut self) -> Result<Report, String> {
        // Nobody waits for those that never hear anything for long.
        self.until(|world| {
            let mut others = world.hosts.iter_mut().filter(|host| host.mangle.is_none() && !host.plan.is_silent());
            others.all(|host| host.app(|app| app.is_resting()))
        })?;
        self.calm_down();
        self.until(|world| {
            let mut silent = world.hosts.iter_mut().filter(|host| host.plan.is_silent() && host.mangle.is_none());
            silent.all(|host| host.app(|app| app.is_resting()))
        })?;
        self.until(|world| {
            let last = world.hosts.iter_mut().filter(|host| host.plan.work.leaves && host.mangle.is_none());
            last.into_iter().all(|host| matches!(host.state, State::Over(_)))
        })?;
        self.each_honest(Workload::verify);
        self.until(|world| {
            world.hosts.iter_mut().all(|host| host.mangle.is_some() || host.app(|app| app.is_resting()))
        })?;
        self.each_honest(Workload::leave);
        self.until(|world| world.hosts.iter().all(|host| matches!(host.state, State::Over(_))))?;
        self.find_silence();
        self.until(|world| {
            let over = world.hostiles.iter().all(Hostile::is_over);
            let over = over && world.careless.iter().all(Careless::is_over);
            over && world.served.is_empty() && world.hostile_queues.iter().all(HostileQueue::is_over)
        })?;
        self.until(|world| world.stores().all(|store| store.under_way().0 == 0))?;
        // Where nobody looks after what connections have left behind, whoever ends a server does.
        self.servers.iter().for_each(|server| _ = server.target().registry().poll_unfinished(Waker::noop()));
        self.check_rest()?;
        let mut report = Report {
            cuts: self.cuts,
            flips: self.flips,
            crashes: self.crashes,
            changes: self.changes,
            deaf: self.deaf,
            time: self.now - Instant::ZERO,
            ..Report::default()
        };
        for host in self.hosts.iter_mut().filter(|host| host.mangle.is_none()) {
            let ((commands, writes), logins) = host.app(|app| (app.done(), app.logins()));
            report.commands += commands;
            report.writes += writes;
            report.logins += u64::from(logins);
        }
        let sessions = self.scenario.sessions.len() as u64;
        if self.scenario.loses_nobody() && report.logins != sessions {
            return Err(format!(
                "{} logins of {sessions} sessions, and nothing is wrong with their links",
                report.logins
            ));
        }
        Ok(report)
    }

    fn each_honest(&mut self, tell: impl Fn(&mut Workload)) {
        let seed = self.scenario.seed;
        for host in self.hosts.iter_mut().filter(|host| host.mangle.is_none() && !host.plan.work.leaves) {
            // What the faults have used up of the time to reconnect in is no longer missing: a connection that fell
            // silent before may still be lost.
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
        self.stores().for_each(SimStore::calm);
        for link in self.networks.iter_mut().flatten() {
            link.calm();
        }
        for hostile in &mut self.hostiles {
            hostile.close();
        }
        for hostile in &mut self.hostile_queues {
            hostile.close();
        }
        self.careless.iter_mut().for_each(Careless::leave);
        self.dismiss_borrowers();
        self.hostile_at = None;
        self.events_at.clear();
        self.settle_changes();
        // Who is deaf for good stays so: nobody can tell what it has missed.
        let fates = std::mem::take(&mut self.fates);
        drop(fates);
        for number in std::mem::take(&mut self.deafened) {
            if let Some(network) = &mut self.networks[number] {
                network.cut(self.now);
                network.tell_of_cut(Side::Initiator, self.now);
                network.tell_of_cut(Side::Target, self.now);
            }
        }
        for host in self.hosts.iter_mut().filter(|host| host.plan.is_silent()) {
            host.app(Workload::rest);
        }
        let leaves =
            |host: &&mut Host| host.mangle.is_some() || host.plan.work.leaves && !matches!(host.state, State::Over(_));
        for host in self.hosts.iter_mut().filter(leaves) {
            host.app(|app| {
                app.rest();
                app.leave();
            });
            if let State::Up(pipe) = &host.state {
                pipe.wake();
            }
        }
    }

    /// A target that never asks has no means to find out that a network is dead that says nothing: it leaves that to
    /// the system below, such as TCP's own keepalive.
    fn find_silence(&mut self) {
        if self.scenario.limits.nop_in_idle.is_some() {
            return;
        }
        for Served { pipe, .. } in &self.served {
            if let Some(link) = self.networks[pipe.link()].as_mut().filter(|link| link.is_cut()) {
                link.tell_of_cut(Side::Target, self.now);
            }
        }
    }

    /// What must be so when all are gone.
    fn check_rest(&mut self) -> Result<(), String> {
        self.servers.iter().try_for_each(Server::check_rest)?;
        for store in self.stores() {
            let (now, most) = store.under_way();
            if now != 0 || most > 4096 {
                return Err(format!("{now} store operations are left, of {most} at most"));
            }
        }
        for disk in &self.disks {
            // What a flush that failed has dropped cannot be read.
            if disk.has_dropped().1 {
                continue;
            }
            let data = disk.content();
            let mut model = disk.model.borrow_mut();
            let len = model.len();
            let read = model.begin_read(0, len);
            model.end_read(read, &data).map_err(|wrong| format!("on the medium of {}, {wrong}", disk.number))?;
        }
        Ok(())
    }

    fn until(&mut self, done: impl Fn(&mut Self) -> bool) -> Result<(), String> {
        loop {
            self.settle()?;
            if let Some(what) = self.verdict.get() {
                return Err(what);
            }
            self.check_promises()?;
            self.check_pinned()?;
            self.owing.iter().try_for_each(Owing::check)?;
            if done(self) {
                return Ok(());
            }
            let Some(next) = self.next() else { return Err("nothing will ever happen again, and work is left".into()) };
            if next - Instant::ZERO > MOST_TIME {
                return Err(format!("work is left after {MOST_TIME:?}"));
            }
            self.now = next.max(self.now);
            self.trace.at(self.now);
            self.told.at(self.now);
        }
    }

    /// What was promised to survive a crash survives one at this moment.
    fn check_promises(&self) -> Result<(), String> {
        if let Some(broken) = self.told.broken() {
            return Err(format!("an operator heard: {broken}"));
        }
        self.servers.iter().try_for_each(|server| server.check_bounds(self.scenario.beyond()))?;
        for disk in &self.disks {
            if let Some(landed) = disk.careless.landed(disk) {
                return Err(format!("LUN {}: {landed}", disk.number));
            }
            if let Some(broken) = disk.parts.iter().find_map(SimStore::broken) {
                return Err(format!("LUN {}: {broken}", disk.number));
            }
            let mut model = disk.model.borrow_mut();
            if !model.take_promised() {
                continue;
            }
            let Some(left) = disk.after_crash() else { continue };
            model.survives(&left).map_err(|wrong| format!("after a crash, {wrong}"))?;
        }
        Ok(())
    }

    /// Each piece of memory that the target's device has registered is written for the most part, as long as no work
    /// request is under way.
    fn check_pinned(&self) -> Result<(), String> {
        let is_busy = |network: &Network| network.has_work(Side::Target);
        if self.device.is_none() || self.networks.iter().flatten().any(is_busy) {
            return Ok(());
        }
        for disk in &self.disks {
            if let Some((start, written)) = disk.parts.iter().find_map(SimStore::pinned) {
                let number = disk.number;
                return Err(format!(
                    "of the MiB at {start} of LUN {number}, which is registered, {written} are written"
                ));
            }
        }
        Ok(())
    }

    /// All stores of the target.
    fn stores(&self) -> impl Iterator<Item = &SimStore> {
        self.disks.iter().flat_map(|disk| &disk.parts).chain([&self.other])
    }

    /// Each server looks after its sessions whose connection has gone.
    fn attend(&mut self) -> bool {
        // Each of them has its turn.
        self.servers.iter().filter(|server| server.attend()).count() != 0
    }

    /// Does everything that can be done now.
    fn settle(&mut self) -> Result<(), String> {
        self.stores().for_each(|store| store.advance(self.now));
        self.meet_fates();
        self.happen()?;
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
            any |= self.attend();
            any |= self.run_hostiles() | self.run_careless() | self.run_borrowers();
            any |= self.clear_closed();
            if !any {
                return Ok(());
            }
        }
    }

    fn next(&mut self) -> Option<Instant> {
        let now = self.now;
        let mut next: Vec<Option<Instant>> = self.stores().map(SimStore::next).collect();
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
        for Served { pipe, .. } in &self.served {
            next.push(self.networks[pipe.link()].as_ref().and_then(|link| pipe.next(link, now)));
        }
        for hostile in &self.hostiles {
            next.push(self.networks[hostile.link].as_ref().and_then(|link| hostile.next(link, now)));
        }
        for careless in self.careless.iter().filter(|careless| !careless.is_over()) {
            next.push(self.networks[careless.link()].as_ref().and_then(|link| careless.next(link, now)));
        }
        for borrower in self.borrowers.iter().filter(|borrower| !borrower.is_over()) {
            next.push(self.networks[borrower.link()].as_ref().and_then(|link| borrower.next(link, now)));
        }
        for hostile in self.hostile_queues.iter().filter(|hostile| !hostile.is_over()) {
            let fabric = self.networks[hostile.link].as_mut().and_then(Network::as_fabric);
            next.push(fabric.and_then(|fabric| hostile.next(fabric, now)));
        }
        next.push(self.hostile_at.map(|(_, at)| at));
        next.extend(self.fates.iter().map(|(at, ..)| Some(*at)));
        next.extend(self.events_at.iter().map(|(at, _)| Some(*at)));
        for (link, side, until) in &self.closed {
            next.push(Some(*until).filter(|at| *at > now));
            next.push(self.networks[*link].as_ref().and_then(|link| link.next(*side, now)));
        }
        next.into_iter().flatten().min()
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
