//! What happens to paths and target, and how sessions begin and end.

use std::time::Duration;

use initiator_core::application::{Control, ControlAnswer};
use initiator_core::command::Command;
use initiator_core::multipath::{Access, Found, Power};
use initiator_core::{Engine, Identity, InitiatorConnection, LoginConfig};
use iscsi_memory::{Buf, Payload};
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use scsi_proto::capacity::ReadCapacity16;
use scsi_proto::command::{Inquiry, ReadCapacity16 as AskCapacity16, ReportTargetPortGroups};
use scsi_proto::vpd::{self, VpdPage};
use scsi_proto::{AdditionalSense, CdbBuf, Lun, SenseKey, report};

use super::super::Happening;
use super::{Ghost, Line, OddDisk, PathUses, Stage, Told, World};
use crate::link::{Link, Side};
use crate::network::Network;
use crate::odd::plan::Comeback;
use crate::odd::target::Connection;
use crate::pipe::Pipe;
use crate::rng::Rng;

/// Tokens that are no operations.
pub(super) const QUESTION: u64 = 1 << 40;
pub(super) const ASK_ACCESS: u64 = 1 << 41;
pub(super) const PROVE: u64 = 1 << 42;

/// The questions at the beginning of a session.
fn questions() -> [(CdbBuf, usize); 4] {
    let page = |code| (Inquiry { page: Some(code), allocation_length: 255 }.to_cdb(), 255);
    [
        page(vpd::DEVICE_IDENTIFICATION),
        page(vpd::UNIT_SERIAL_NUMBER),
        (AskCapacity16 { allocation_length: 32 }.to_cdb(), 32),
        access_question(),
    ]
}

pub(super) fn access_question() -> (CdbBuf, usize) {
    (ReportTargetPortGroups { extended: false, allocation_length: 255 }.to_cdb(), 255)
}

pub(super) fn question(token: u64, (cdb, room): (CdbBuf, usize)) -> Command {
    Command { data_in: Some(Payload::Buf(Buf::zeroed(room))), ..Command::new(token, Lun::ZERO, cdb) }
}

impl World {
    /// Does what is planned for now.
    pub(super) fn happen(&mut self) {
        let now = self.now;
        while let Some((at, happening)) = self.happenings.first().copied()
            && Instant::ZERO + at <= now
        {
            self.happenings.remove(0);
            self.trace.event(format_args!("{happening:?}"));
            self.cuts += 1;
            match happening {
                Happening::Cut { path, away, told } => {
                    self.ways[path].away_until = now + away;
                    self.cut(path, told);
                }
                Happening::Still { path, away } => {
                    if let Some(link) = self.ways[path].line.as_mut().and_then(|line| line.network.as_link()) {
                        link.hold(now + away);
                    }
                }
                Happening::Restart { away, how } => self.restart(away, how),
                Happening::Other { path, away, how } => {
                    (self.ways[path].other_until, self.ways[path].other_how) = (now + away, Some(how));
                    self.cut(path, true);
                }
                Happening::Grow => {
                    self.disk.comes_back(Comeback::Larger);
                    for way in &mut self.ways {
                        if let Some(line) = way.line.as_mut().filter(|line| !line.other) {
                            line.target.tell(AdditionalSense::CAPACITY_DATA_HAS_CHANGED);
                        }
                    }
                }
                Happening::Access { group, state } => {
                    self.disk.groups[group] = state;
                    for way in &mut self.ways {
                        if let Some(line) = way.line.as_mut().filter(|line| !line.other) {
                            line.target.tell(AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED);
                        }
                    }
                    // In the end some port is active.
                    let last = !self.happenings.iter().any(|(_, later)| matches!(later, Happening::Access { .. }));
                    if last && self.disk.groups.iter().all(|state| *state > 1) {
                        self.disk.groups[group] = 0;
                    }
                }
            }
        }
        for path in 0..self.ways.len() {
            if self.ways[path].fails_at.is_some_and(|at| at <= now) {
                self.ways[path].fails_at = None;
                self.paths.not_opened(path, Power::On, now);
            }
            if let Some((at, accepted)) = self.ways[path].reinstated_at
                && at <= now
            {
                self.ways[path].reinstated_at = None;
                if accepted {
                    self.ghosts.retain(|ghost| ghost.path != path);
                }
                self.paths.reinstated(path, accepted, now);
            }
        }
    }

    fn cut(&mut self, path: usize, told: bool) {
        let now = self.now;
        let Some(line) = &mut self.ways[path].line else { return };
        line.network.cut(now);
        if told {
            line.network.tell_of_cut(Side::Initiator, now);
        }
    }

    /// The target goes away with all its sessions, and comes back in its time.
    fn restart(&mut self, away: Duration, how: Comeback) {
        let now = self.now;
        self.down_until = now + away;
        self.disk.comes_back(how);
        self.ghosts.clear();
        let attention = if how == Comeback::Forgetful {
            AdditionalSense::POWER_ON_OCCURRED
        } else {
            AdditionalSense::I_T_NEXUS_LOSS_OCCURRED
        };
        for path in 0..self.ways.len() {
            let way = &mut self.ways[path];
            if way.attention != Some(AdditionalSense::POWER_ON_OCCURRED) {
                way.attention = Some(attention);
            }
            let told = self.rng.permille(500);
            self.cut(path, told);
            if let Some(line) = &mut self.ways[path].line {
                // Nothing answers any more.
                line.target = Connection::new(None);
                line.network.as_link().into_iter().for_each(|link| link.drop_sent(Side::Initiator));
            }
        }
    }

    /// Tries to connect a path.
    pub(super) fn connect(&mut self, path: usize) {
        let now = self.now;
        let way = &mut self.ways[path];
        if now < self.down_until || now < way.away_until {
            // It is refused, or nobody answers.
            let wait = Duration::from_micros(self.rng.magnitude(100, 3_000_000));
            way.fails_at = Some(now + wait);
            return;
        }
        self.links += 1;
        self.trace.event(format_args!("path {path}, link {}", self.links));
        // What the first path leads to is the disk.
        let other = now < way.other_until && self.paths.identity().is_some();
        if other && let Some(how) = way.other_how.take() {
            self.other = OddDisk::new(self.plan.odd.blocks, true);
            self.other.comes_back(how);
        }
        // The login with its ISID ends what the target has of the one before.
        self.ghosts.retain(|ghost| ghost.path != path);
        let link = Link::new(self.plan.links[path].clone(), Rng::new(self.seed, 1000 + self.links));
        let mut target = Connection::new(way.attention.filter(|_| !other));
        target.group = self.plan.groups[path] as usize;
        let config = TcpMoverConfig { max_tasks: self.plan.odd.limits.commands, ..TcpMoverConfig::default() };
        let mover = TcpMover::new(Role::Initiator, config);
        let login = LoginConfig {
            offer: self.plan.odd.offer.clone(),
            cmd_sn: self.plan.odd.cmd_sn,
            ..LoginConfig::new(
                "iqn.2026-11.example.sim:first",
                "iqn.2026-11.example.sim:odd",
                [0x80, 0, 0, 0, 0, path as u8],
                [1; 64],
            )
        };
        let engine = Engine::new(PathUses::new(), self.plan.odd.timeouts, self.plan.odd.limits, self.seed);
        let connection = InitiatorConnection::new(mover, engine, login, self.plan.odd.timeouts.login, now);
        way.line = Some(Line {
            session: Box::new(Pipe::new(connection, 0, Side::Initiator)),
            stage: Stage::Asking {
                identity: Identity::default(),
                access: Access::Optimized,
                answered: 0,
                power: Power::On,
                changed: false,
            },
            network: Network::Bytes(Box::new(link)),
            target,
            other,
        });
    }

    /// The connection of a path has ended, and its session with it.
    pub(super) fn session_over(&mut self, path: usize) {
        let now = self.now;
        let Some(line) = self.ways[path].line.take() else { return };
        let (engine, end, _) = line.session.connection.into_parts(now);
        self.trace.event(format_args!("path {path} is over: {end}"));
        let mut told = engine.into_app(now).told;
        let mut network = line.network;
        // A connection that is given up is reset; what has left still arrives.
        network.cut(now);
        if !end.is_logout() {
            let until = now + self.plan.lives_on;
            self.ghosts.push(Ghost { path, network, target: line.target, other: line.other, until });
        }
        if self.resetting == Some(path) {
            self.resetting = None;
            self.paths.reset_done(false, now);
        }
        let up = matches!(line.stage, Stage::Up { .. });
        let first = self.rng.permille(500);
        if up && first {
            self.paths.lost(path, now);
        }
        for told in told.drain(..) {
            if let Told::Completed(completion) = told
                && completion.token < QUESTION
            {
                self.completed(path, completion, true);
            }
        }
        match line.stage {
            Stage::Up { .. } => self.paths.lost(path, now),
            Stage::Asking { power, .. } | Stage::Guarding { power, .. } => self.paths.not_opened(path, power, now),
            Stage::Leaving => {}
        }
    }

    pub(super) fn app(&mut self, path: usize) -> Option<&mut PathUses> {
        Some(self.ways[path].line.as_mut()?.session.connection.app())
    }

    /// A session is not to be used, or not any more.
    pub(super) fn leave(&mut self, path: usize) {
        if let Some(line) = &mut self.ways[path].line {
            line.stage = Stage::Leaving;
        }
        if let Some(app) = self.app(path) {
            app.control(Control::Logout);
        }
    }

    /// A session tells something.
    pub(super) fn told(&mut self, path: usize, told: Told) {
        let now = self.now;
        let Some(line) = &mut self.ways[path].line else { return };
        match (&mut line.stage, told) {
            (_, Told::LoggedIn) => {
                self.logins += 1;
                for (at, asked) in (0..).zip(questions()) {
                    if let Some(app) = self.app(path) {
                        app.command(question(QUESTION + at, asked));
                    }
                }
            }
            (Stage::Asking { power, changed, .. } | Stage::Guarding { power, changed, .. }, Told::Attention(code)) => {
                self.trace.event(format_args!("path {path} begins with {code:?}"));
                *power = (*power).max(Power::of(code));
                *changed |= code == AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED;
            }
            (Stage::Asking { identity, access, answered, power, changed }, Told::Completed(completion)) => {
                let data = match &completion.data_in {
                    Some(Payload::Buf(buf)) => buf[..completion.data_in_len as usize].to_vec(),
                    _ => Vec::new(),
                };
                let refused = |sense: scsi_proto::Sense| sense.key == SenseKey::IllegalRequest;
                let (good, told) = match &completion.result {
                    Ok(outcome) => (outcome.is_good(), outcome.is_good() || outcome.sense.is_some_and(refused)),
                    Err(_) => (false, false),
                };
                if !told {
                    let power = *power;
                    self.leave(path);
                    return self.paths.not_opened(path, power, now);
                }
                match completion.token - QUESTION {
                    0 | 1 if good => {
                        let page = VpdPage::parse(&data).ok();
                        page.iter().for_each(|page| identity.set_names(page));
                        page.iter().for_each(|page| identity.set_serial(page));
                    }
                    2 if good => {
                        if let Ok(capacity) = ReadCapacity16::parse(&data) {
                            identity.blocks = capacity.blocks().unwrap_or(0);
                            identity.block_size = capacity.block_length;
                        }
                    }
                    3 if good => *access = access_of(&data, line.target.group),
                    _ => {}
                }
                *answered += 1;
                if *answered == questions().len() {
                    let (identity, access, power, changed) = (identity.clone(), *access, *power, *changed);
                    let known = initiator_core::KnownDisk {
                        lun: Lun::ZERO,
                        identity: identity.clone(),
                        volatile: self.plan.odd.volatile,
                    };
                    line.stage = Stage::Guarding { identity, access, power, changed };
                    if let Some(app) = self.app(path) {
                        app.control(Control::Guard { id: 1, disk: known, login: 1 });
                    }
                }
            }
            (Stage::Guarding { identity, access, power, changed }, Told::Answered(ControlAnswer::Guarded(guard))) => {
                let found = Found {
                    identity: identity.clone(),
                    access: *access,
                    group: Some(self.plan.groups[path]),
                    power: *power,
                    volatile: self.plan.odd.volatile,
                };
                let (other, changed) = (line.other, *changed);
                line.stage = Stage::Up { guard };
                self.ways[path].used = false;
                match self.paths.opened(path, found, now) {
                    Ok(()) if other => self.verdict.broken(format!("path {path} leads to another disk, and is used")),
                    Ok(()) if changed => {
                        self.paths.attention(path, AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED, now);
                    }
                    Ok(()) => {}
                    Err(difference) => {
                        self.trace.event(format_args!("path {path}: {difference}"));
                        if !other {
                            // It may have grown since another path has looked, and this one before.
                            let grown = self.plan.has(|happening| matches!(happening, Happening::Grow));
                            if !grown {
                                self.verdict.broken(format!("path {path} is refused: {difference}"));
                            }
                        }
                        self.leave(path);
                    }
                }
            }
            (Stage::Up { .. }, Told::Attention(code)) => {
                self.trace.event(format_args!("path {path}: {code:?}"));
                self.paths.attention(path, code, now);
            }
            (Stage::Up { .. }, Told::Resized(blocks)) => {
                self.paths.resized(path, blocks, now);
                self.work.resized(self.paths.identity().map_or(0, |identity| identity.blocks));
            }
            (Stage::Up { .. }, Told::OtherDisk) => {
                self.verdict.broken(format!("the same disk by path {path} is taken for another"));
            }
            (Stage::Up { .. }, Told::Completed(completion)) => self.completed(path, completion, false),
            (Stage::Up { .. }, Told::Answered(answer)) => self.answered(path, answer),
            (Stage::Leaving, Told::Completed(completion)) if completion.token < QUESTION => {
                self.completed(path, completion, true);
            }
            _ => {}
        }
    }
}

/// How the group stands that a path came in by.
pub(super) fn access_of(data: &[u8], group: usize) -> Access {
    let groups = report::parse_target_port_groups(data, false).unwrap_or_default();
    let own = groups.iter().find(|other| usize::from(other.group) == group);
    own.map_or(Access::Optimized, |own| Access::from_code(own.state))
}
