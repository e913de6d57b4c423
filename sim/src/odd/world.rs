//! One run: an initiator, the odd target, the link between them, on one thread and virtual time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use initiator_core::{ConnectionEnd, Engine, InitiatorConnection, LoginConfig, Recovery};
use iscsi_proto::connection::StreamConnection as _;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use scsi_proto::AdditionalSense;

use super::disk::OddDisk;
use super::plan::{Comeback, Plan};
use super::session::Uses;
use super::target::Connection;
use crate::link::{Link, Side};
use crate::network::Network;
use crate::pipe::{Bytes, Drive as _, Pipe};
use crate::rng::Rng;
use crate::scenario::Kind;
use crate::trace::Trace;
use crate::transport::Transport;
use crate::workload::Verdict;
use crate::world::{Failure, Report};

/// Rounds and virtual time of a run at most.
const MOST_ROUNDS: u64 = 5_000_000;
const MOST_TIME: Duration = Duration::from_secs(6 * 3600);

type Session = Pipe<InitiatorConnection<TcpMover, Uses>, Bytes>;

enum State {
    Waiting {
        engine: Box<Engine<Uses>>,
        until: Instant,
    },
    Up(Box<Session>),
    Over(Box<Uses>),
    /// In between two others.
    Moving,
}

struct World {
    plan: Rc<Plan>,
    seed: u64,
    now: Instant,
    rng: Rng,
    trace: Trace,
    verdict: Verdict,
    disk: Rc<RefCell<OddDisk>>,
    network: Option<Network>,
    target: Option<Connection>,
    links: u64,
    state: State,
    recovery: Recovery,
    /// Restarts to come.
    restarts: Vec<(Duration, Duration, Comeback)>,
    down_until: Instant,
    /// When the unit stops.
    stop: Option<Instant>,
    /// When it asks for the end of a connection.
    farewells: VecDeque<Duration>,
    /// When the target reads next, and whether there is something that it has left.
    reads_at: Instant,
    has_unread: bool,
    /// What the next connection is told at first.
    attention: Option<AdditionalSense>,
    cuts: u64,
    /// It answers nothing but logins any more.
    is_silent: bool,
    rounds: u64,
}

/// Runs a seed, and prints its trace if asked for.
///
/// # Errors
/// What it found.
pub fn run(seed: u64, print: bool) -> Result<Report, Failure> {
    let trace = Trace::new(print);
    crate::world::caught((seed, Kind::Odd, Transport::Tcp), &trace, || World::new(seed, trace.clone()).live())
}

impl World {
    fn new(seed: u64, trace: Trace) -> Self {
        let plan = Rc::new(Plan::of(seed));
        trace.event(format_args!("{plan:?}"));
        let mut disk = OddDisk::new(plan.blocks, plan.volatile);
        disk.has_vendors_name = plan.vendors_name;
        let disk = Rc::new(RefCell::new(disk));
        let verdict = Verdict::default();
        let uses = Uses::new(plan.clone(), disk.clone(), seed, (trace.clone(), verdict.clone()));
        let mut engine = Engine::new(uses, plan.timeouts, plan.limits, seed);
        let guard = engine.guard(disk.borrow().known());
        engine.app().guard = guard;
        Self {
            seed,
            now: Instant::ZERO,
            rng: Rng::new(seed, 4),
            trace,
            verdict,
            disk,
            network: None,
            target: None,
            links: 0,
            state: State::Waiting { engine: Box::new(engine), until: Instant::ZERO },
            recovery: Recovery::new(plan.reconnect, seed),
            restarts: plan.restarts.clone(),
            farewells: plan.farewells.iter().copied().collect(),
            reads_at: Instant::ZERO,
            has_unread: false,
            stop: plan.stops.map(|(at, _)| Instant::ZERO + at),
            down_until: Instant::ZERO,
            attention: None,
            cuts: 0,
            is_silent: false,
            rounds: 0,
            plan,
        }
    }

    fn live(mut self) -> Result<Report, String> {
        loop {
            self.settle()?;
            if let Some(what) = self.verdict.get() {
                return Err(what);
            }
            if matches!(self.state, State::Over(_)) {
                break;
            }
            let Some(next) = self.next() else { return Err("nothing will ever happen again, and work is left".into()) };
            if next - Instant::ZERO > MOST_TIME {
                return Err(format!("work is left after {MOST_TIME:?}"));
            }
            self.now = next.max(self.now);
            self.trace.at(self.now);
        }
        let State::Over(mut uses) = self.state else { return Err("the session is not over".into()) };
        uses.check_over();
        // One connection for each life of the target: nothing else may end one.
        if uses.logins > self.cuts + 1 && !self.is_silent {
            self.verdict.broken(format!("{} logins, and the target restarted {} times", uses.logins, self.cuts));
        }
        // Each command asks for it once at the most, and so do the questions after a login.
        let starts = self.disk.borrow().starts;
        if starts > uses.completed + 4 * uses.logins {
            self.verdict.broken(format!("{} commands had the unit started {starts} times", uses.completed));
        }
        match self.verdict.get() {
            Some(what) => Err(what),
            None => Ok(Report {
                commands: uses.completed,
                writes: uses.acknowledged,
                logins: uses.logins,
                cuts: self.cuts,
                time: self.now - Instant::ZERO,
                ..Report::default()
            }),
        }
    }

    fn settle(&mut self) -> Result<(), String> {
        self.restart();
        self.part();
        if self.stop.is_some_and(|at| at <= self.now) {
            self.stop = None;
            self.disk.borrow_mut().is_stopped = true;
            self.trace.event(format_args!("the unit stops"));
        }
        loop {
            self.rounds += 1;
            if self.rounds > MOST_ROUNDS {
                return Err(format!("no rest after {MOST_ROUNDS} rounds"));
            }
            let mut any = self.run_initiator()?;
            any |= self.run_target()?;
            if !any {
                return Ok(());
            }
        }
    }

    /// The target goes away, and what comes back in its time may be another.
    fn restart(&mut self) {
        let Some((at, away, how)) = self.restarts.first().copied() else { return };
        if self.now < Instant::ZERO + at {
            return;
        }
        self.restarts.remove(0);
        self.trace.event(format_args!("the target is away for {away:?}, and comes back: {how:?}"));
        self.disk.borrow_mut().comes_back(how);
        self.is_silent = how == Comeback::Silent;
        self.attention = match how {
            // What was not heard is told to the next one.
            Comeback::Same | Comeback::Larger | Comeback::Silent => {
                self.attention.or(Some(AdditionalSense::I_T_NEXUS_LOSS_OCCURRED))
            }
            Comeback::Forgetful if self.rng.permille(300) => {
                Some(AdditionalSense::POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED)
            }
            _ => Some(AdditionalSense::POWER_ON_OCCURRED),
        };
        self.down_until = self.now + away;
        self.cuts += 1;
        self.target = None;
        if let Some(network) = &mut self.network {
            network.cut(self.now);
            network.tell_of_cut(Side::Initiator, self.now);
        }
    }

    /// When the target asks for the end of the connection that stands.
    fn parts_at(&self) -> Option<Instant> {
        self.target.as_ref().filter(|target| target.is_up && !target.has_parted)?;
        Some(Instant::ZERO + *self.farewells.front()?)
    }

    fn part(&mut self) {
        if let Some(farewell) = &self.plan.farewell
            && self.parts_at().is_some_and(|at| at <= self.now)
            && let Some(target) = &mut self.target
        {
            self.trace.event(format_args!("the target says {farewell:?}"));
            self.farewells.pop_front();
            target.say_farewell(farewell);
            self.cuts += 1;
        }
    }

    fn run_initiator(&mut self) -> Result<bool, String> {
        let now = self.now;
        let (state, any) = match std::mem::replace(&mut self.state, State::Moving) {
            State::Waiting { engine, until } if until <= now => (self.connect(*engine), true),
            State::Up(mut pipe) => {
                let Some(network) = &mut self.network else { return Err("the link went before its session".into()) };
                let any = pipe.run(network, now)?;
                if pipe.is_finished() { (self.disconnected(*pipe), true) } else { (State::Up(pipe), any) }
            }
            other => (other, false),
        };
        self.state = state;
        Ok(any)
    }

    fn connect(&mut self, engine: Engine<Uses>) -> State {
        if self.now < self.down_until {
            return match self.recovery.failed(self.now) {
                Some(wait) => State::Waiting { engine: Box::new(engine), until: self.now + wait },
                None => self.give_up(engine),
            };
        }
        self.links += 1;
        self.trace.event(format_args!("link {}", self.links));
        let link = Link::new(self.plan.link.clone(), Rng::new(self.seed, 1000 + self.links));
        self.network = Some(Network::Bytes(Box::new(link)));
        let greeting = AdditionalSense::POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED;
        let attention = if self.plan.greets { Some(greeting) } else { self.attention };
        let mut target = Connection::new(attention);
        target.is_silent = self.is_silent;
        self.target = Some(target);
        let config = TcpMoverConfig { max_tasks: self.plan.limits.commands, ..TcpMoverConfig::default() };
        let mover = TcpMover::new(Role::Initiator, config);
        let login = LoginConfig {
            offer: self.plan.offer.clone(),
            cmd_sn: self.plan.cmd_sn,
            ..LoginConfig::new(
                "iqn.2026-11.example.sim:first",
                "iqn.2026-11.example.sim:odd",
                [0x80, 0, 0, 0, 0, 1],
                [1; 64],
            )
        };
        let connection = InitiatorConnection::new(mover, engine, login, self.plan.timeouts.login, self.now);
        State::Up(Box::new(Pipe::new(connection, 0, Side::Initiator)))
    }

    fn disconnected(&mut self, pipe: Session) -> State {
        let now = self.now;
        let logged_in_at = pipe.connection.logged_in_at();
        let (engine, end, time2wait) = pipe.connection.into_parts(now);
        self.trace.event(format_args!("disconnected: {end}"));
        if self.target.take().is_some_and(|target| target.has_misnumbered) {
            self.misnumbered(&end);
        }
        if end.is_logout() {
            return self.give_up(engine);
        }
        let wait = match logged_in_at {
            Some(at) => {
                self.recovery.connected(at);
                self.recovery.lost(time2wait, engine.service(), now).ok()
            }
            None => self.recovery.failed(now),
        };
        match wait {
            Some(wait) if wait > self.plan.reconnect.deadline => {
                self.verdict.broken(format!("it waits {wait:?} for a target, longer than it may"));
                self.give_up(engine)
            }
            Some(wait) => State::Waiting { engine: Box::new(engine), until: now + wait },
            None => self.give_up(engine),
        }
    }

    /// A connection has ended on which the target answered with a number that it had used before: that is why.
    fn misnumbered(&mut self, end: &ConnectionEnd) {
        self.cuts += 1;
        if matches!(end, ConnectionEnd::KeepaliveTimeout) {
            self.verdict.broken(format!("an answer with an old number was taken for none: {end}"));
        }
    }

    fn give_up(&self, engine: Engine<Uses>) -> State {
        State::Over(Box::new(engine.into_app(self.now)))
    }

    fn run_target(&mut self) -> Result<bool, String> {
        let (Some(target), Some(link)) = (&mut self.target, self.network.as_mut().and_then(Network::as_link)) else {
            return Ok(false);
        };
        let disk = &mut *self.disk.borrow_mut();
        let waiting = link.arrived(Side::Target, self.now);
        let arrived: Vec<u8> = match self.plan.reads {
            Some(_) if self.now < self.reads_at => Vec::new(),
            Some((most, every)) if !waiting.is_empty() => {
                self.reads_at = self.now + every;
                let n = most.min(waiting.len());
                waiting.drain(..n).collect()
            }
            _ => waiting.drain(..).collect(),
        };
        self.has_unread = !waiting.is_empty();
        if let State::Up(pipe) = &mut self.state
            && !arrived.is_empty()
        {
            pipe.connection.peer_acknowledged(self.now);
        }
        let mut any = !arrived.is_empty();
        target.receive(&arrived, disk, &self.plan, &mut self.rng, self.now);
        any |= target.advance(disk, &self.plan, &mut self.rng, self.now);
        if target.has_told {
            self.attention = None;
        }
        let n = link.chunk(target.outbox.len().min(link.room(Side::Target)));
        if n > 0 {
            any = true;
            link.send(Side::Target, target.outbox.drain(..n).collect(), self.now);
        }
        if target.is_over && target.outbox.is_empty() {
            link.close(Side::Target, self.now);
        }
        match target.broken.take() {
            Some(what) => Err(what),
            None => Ok(any),
        }
    }

    fn next(&self) -> Option<Instant> {
        let now = self.now;
        let of_initiator = match &self.state {
            State::Waiting { until, .. } => Some(*until),
            State::Up(pipe) => self.network.as_ref().and_then(|network| pipe.next(network, now)),
            State::Over(_) | State::Moving => None,
        };
        let network = self.network.as_ref().filter(|_| self.target.is_some());
        let of_link = network.and_then(|network| network.next(Side::Target, now));
        let of_target = self.target.as_ref().and_then(Connection::next);
        let of_reading = (self.has_unread && self.target.is_some()).then_some(self.reads_at);
        let of_restart = self.restarts.first().map(|(at, ..)| Instant::ZERO + *at);
        let all = [of_initiator, of_link, of_reading, of_target, of_restart, self.parts_at(), self.stop];
        all.into_iter().flatten().map(|at| at.max(now + Duration::from_nanos(u64::from(at <= now)))).min()
    }
}
