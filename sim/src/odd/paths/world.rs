//! One run: the paths, their sessions and links, and the target, on one thread and virtual time.

mod carry;
mod happen;
mod work;

use std::rc::Rc;
use std::time::Duration;

use initiator_core::multipath::{Access, Paths, Power};
use initiator_core::{Identity, InitiatorConnection};
use iscsi_proto::tcp::TcpMover;
use iscsi_proto::time::Instant;
use scsi_proto::AdditionalSense;

use super::session::{PathUses, Told};
use super::{Happening, PathsPlan};
use crate::link::Side;
use crate::network::Network;
use crate::odd::disk::OddDisk;
use crate::odd::target::Connection;
use crate::pipe::{Bytes, Drive as _, Pipe};
use crate::rng::Rng;
use crate::scenario::Kind;
use crate::trace::Trace;
use crate::transport::Transport;
use crate::workload::Verdict;
use crate::world::{Failure, Report};
use work::Work;

/// Rounds and virtual time of a run at most.
const MOST_ROUNDS: u64 = 5_000_000;
const MOST_TIME: Duration = Duration::from_secs(4 * 3600);

type Session = Pipe<InitiatorConnection<TcpMover, PathUses>, Bytes>;

/// How far a session is.
#[derive(Debug)]
enum Stage {
    /// So many questions are answered.
    Asking {
        identity: Identity,
        access: Access,
        answered: usize,
        power: Power,
        changed: bool,
    },
    /// Its guard is being made.
    Guarding {
        identity: Identity,
        access: Access,
        power: Power,
        changed: bool,
    },
    Up {
        guard: u32,
    },
    /// It is being logged out.
    Leaving,
}

/// A session, and its connection's two ends.
struct Line {
    session: Box<Session>,
    stage: Stage,
    network: Network,
    target: Connection,
    /// The disk that it shows.
    other: bool,
}

/// What the target still has of a session that the initiator has lost.
struct Ghost {
    path: usize,
    network: Network,
    target: Connection,
    other: bool,
    until: Instant,
}

/// A path's end of the world.
struct Way {
    line: Option<Line>,
    /// When the attempt fails that is under way and reaches nobody.
    fails_at: Option<Instant>,
    /// When the login by way of another path is done, and whether it is accepted.
    reinstated_at: Option<(Instant, bool)>,
    away_until: Instant,
    other_until: Instant,
    other_how: Option<crate::odd::plan::Comeback>,
    /// What its nexus is told at its next command.
    attention: Option<AdditionalSense>,
    /// Whether it has been up since something was last wrong with it, and been used.
    used: bool,
}

struct World {
    plan: Rc<PathsPlan>,
    seed: u64,
    now: Instant,
    rng: Rng,
    trace: Trace,
    verdict: Verdict,
    disk: OddDisk,
    other: OddDisk,
    paths: Paths,
    ways: Vec<Way>,
    ghosts: Vec<Ghost>,
    links: u64,
    happenings: Vec<(Duration, Happening)>,
    down_until: Instant,
    /// The path that the reset under way goes by.
    resetting: Option<usize>,
    work: Work,
    rounds: u64,
    logins: u64,
    cuts: u64,
}

/// Runs a seed, and prints its trace if asked for.
///
/// # Errors
/// What it found.
pub fn run(seed: u64, print: bool) -> Result<Report, Failure> {
    let trace = Trace::new(print);
    crate::world::caught((seed, Kind::Paths, Transport::Tcp), &trace, || World::new(seed, trace.clone()).live())
}

impl World {
    fn new(seed: u64, trace: Trace) -> Self {
        let plan = Rc::new(PathsPlan::of(seed));
        trace.event(format_args!("{plan:?}"));
        let mut disk = OddDisk::new(plan.odd.blocks, plan.odd.volatile);
        if plan.has_groups() {
            let groups = plan.groups.iter().copied().max().unwrap_or(1);
            disk.groups = vec![0; groups as usize];
        }
        let verdict = Verdict::default();
        let way = || Way {
            line: None,
            fails_at: None,
            reinstated_at: None,
            away_until: Instant::ZERO,
            other_until: Instant::ZERO,
            other_how: None,
            attention: None,
            used: false,
        };
        Self {
            seed,
            now: Instant::ZERO,
            rng: Rng::new(seed, 4),
            other: OddDisk::new(plan.odd.blocks, plan.odd.volatile),
            disk,
            paths: Paths::new(plan.config, plan.groups.len(), Instant::ZERO),
            ways: plan.groups.iter().map(|_| way()).collect(),
            ghosts: Vec::new(),
            links: 0,
            happenings: plan.happenings.clone(),
            down_until: Instant::ZERO,
            resetting: None,
            work: Work::new(plan.clone(), seed, verdict.clone()),
            rounds: 0,
            logins: 0,
            cuts: 0,
            trace,
            verdict,
            plan,
        }
    }

    fn live(mut self) -> Result<Report, String> {
        loop {
            self.settle()?;
            if let Some(what) = self.verdict.get() {
                return Err(what);
            }
            if self.work.is_over() && self.ghosts.is_empty() {
                break;
            }
            let Some(next) = self.next() else { return Err("nothing will ever happen again, and work is left".into()) };
            if next - Instant::ZERO > MOST_TIME {
                return Err(format!("work is left after {MOST_TIME:?}: {:?}", self.paths));
            }
            self.now = next.max(self.now);
            self.trace.at(self.now);
        }
        self.work.check_over(&self.disk);
        match self.verdict.get() {
            Some(what) => Err(what),
            None => Ok(Report {
                commands: self.work.completed,
                writes: self.work.acknowledged,
                logins: self.logins,
                cuts: self.cuts,
                time: self.now - Instant::ZERO,
                ..Report::default()
            }),
        }
    }

    fn settle(&mut self) -> Result<(), String> {
        self.happen();
        loop {
            self.rounds += 1;
            if self.rounds > MOST_ROUNDS {
                return Err(format!("no rest after {MOST_ROUNDS} rounds"));
            }
            let mut any = self.run_paths();
            for path in 0..self.ways.len() {
                any |= self.run_session(path)?;
                any |= self.run_target(path)?;
            }
            any |= self.run_ghosts()?;
            any |= self.work();
            if !any || self.verdict.get().is_some() {
                return Ok(());
            }
        }
    }

    fn run_session(&mut self, path: usize) -> Result<bool, String> {
        let now = self.now;
        let Some(line) = &mut self.ways[path].line else { return Ok(false) };
        let mut any = line.session.run(&mut line.network, now)?;
        if line.session.is_finished() {
            self.session_over(path);
            return Ok(true);
        }
        while let Some(told) =
            self.ways[path].line.as_mut().and_then(|line| line.session.connection.app().told.pop_front())
        {
            any = true;
            self.told(path, told);
        }
        Ok(any)
    }

    /// The target's ends of a path's connection.
    fn run_target(&mut self, path: usize) -> Result<bool, String> {
        let Some(line) = &mut self.ways[path].line else { return Ok(false) };
        let disk = if line.other { &mut self.other } else { &mut self.disk };
        let any = serve(&mut line.target, &mut line.network, disk, &self.plan.odd, &mut self.rng, self.now)?;
        if line.target.has_told && !line.other {
            self.ways[path].attention = None;
        }
        self.spread_reset(path);
        Ok(any)
    }

    fn run_ghosts(&mut self) -> Result<bool, String> {
        let mut any = false;
        let now = self.now;
        for ghost in &mut self.ghosts {
            let disk = if ghost.other { &mut self.other } else { &mut self.disk };
            any |= serve(&mut ghost.target, &mut ghost.network, disk, &self.plan.odd, &mut self.rng, now)?;
            if let Some(link) = ghost.network.as_link() {
                link.arrived(Side::Initiator, now).clear();
            }
        }
        self.ghosts.retain(|ghost| ghost.until > now);
        Ok(any)
    }

    /// A reset of the unit that came by a path ends the tasks of all.
    fn spread_reset(&mut self, path: usize) {
        let Some(line) = &mut self.ways[path].line else { return };
        if !std::mem::take(&mut line.target.has_reset) || line.other {
            return;
        }
        self.trace.event(format_args!("the unit is reset by path {path}"));
        for (_, way) in self.ways.iter_mut().enumerate().filter(|(other, _)| *other != path) {
            if let Some(line) = way.line.as_mut().filter(|line| !line.other) {
                line.target.reset_by_another();
            }
        }
        for ghost in self.ghosts.iter_mut().filter(|ghost| !ghost.other) {
            ghost.target.reset_by_another();
            // The network has let go of what was lost longer ago than a path is in doubt.
            if let Some(link) = ghost.network.as_link() {
                link.drop_sent(Side::Initiator);
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        let now = self.now;
        let of_paths = self.paths.poll_timeout().filter(|_| !self.work.is_leaving());
        let mut all = vec![of_paths, self.happenings.first().map(|(at, _)| Instant::ZERO + *at)];
        for way in &self.ways {
            all.push(way.fails_at);
            all.push(way.reinstated_at.map(|(at, _)| at));
            if let Some(line) = &way.line {
                all.push(line.session.next(&line.network, now));
                all.push(line.network.next(Side::Target, now));
                all.push(line.target.next());
            }
        }
        for ghost in &self.ghosts {
            all.push(Some(ghost.until));
            all.push(ghost.network.next(Side::Target, now));
            all.push(ghost.target.next());
        }
        all.push(self.work.next());
        all.into_iter().flatten().map(|at| at.max(now + Duration::from_nanos(u64::from(at <= now)))).min()
    }
}

/// One end of a connection at the target has its turn.
fn serve(
    target: &mut Connection,
    network: &mut Network,
    disk: &mut OddDisk,
    plan: &crate::odd::plan::Plan,
    rng: &mut Rng,
    now: Instant,
) -> Result<bool, String> {
    let Some(link) = network.as_link() else { return Ok(false) };
    let arrived: Vec<u8> = link.arrived(Side::Target, now).drain(..).collect();
    let mut any = !arrived.is_empty();
    target.receive(&arrived, disk, plan, rng, now);
    any |= target.advance(disk, plan, rng, now);
    let n = link.chunk(target.outbox.len().min(link.room(Side::Target)));
    if n > 0 {
        any = true;
        link.send(Side::Target, target.outbox.drain(..n).collect(), now);
    }
    if target.is_over && target.outbox.is_empty() {
        link.close(Side::Target, now);
    }
    match target.broken.take() {
        Some(what) => Err(what),
        None => Ok(any),
    }
}
