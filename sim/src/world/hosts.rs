//! Initiators: each keeps its session connected, as the initiator's runner does over sockets.

use std::time::Duration;

use initiator_core::{Credentials, Engine, InitiatorConnection, LoginConfig, Recovery, may_heal};
use iscsi_proto::chap::ChapSecret;
use iscsi_proto::datamover::Datamover;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;

use super::server::{OTHER, SECRET, TARGET_SECRET, TARGET_USER, USER};
use super::{Fate, World};
use crate::disk::{Disk, DiskPlan};
use crate::fabric::FabricPlan;
use crate::link::{LinkPlan, Side};
use crate::pipe::{Bytes, Completions, DriveInitiator, Exchange, Pipe, Polls};
use crate::rng::Rng;
use crate::scenario::{Chap, SessionPlan};
use crate::store::{Door, StorePlan};
use crate::transport::Transport;
use crate::workload::{Attentions, NexusShare, Workload};

/// Names of honest sessions.
pub(super) const NAMES: [&str; 4] = ["first", "second", "third", "fourth"];

pub(super) enum State {
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
pub(super) struct Host {
    pub(super) plan: SessionPlan,
    login: LoginConfig,
    /// The server that it uses.
    pub(super) server: usize,
    pub(super) recovery: Recovery,
    pub(super) state: State,
    rng: Rng,
    /// It is another target's, over a link that mangles so many pieces in 1000.
    pub(super) mangle: Option<u64>,
    /// The last instant for which its workload was woken.
    woken: Option<Instant>,
    guarded: bool,
    share: NexusShare,
}

impl Host {
    pub(super) fn app<R>(&mut self, look: impl FnOnce(&mut Workload) -> R) -> R {
        match &mut self.state {
            State::Waiting { engine, .. } => look(engine.app()),
            State::Up(pipe) => look(pipe.app()),
            State::Over(app) => look(app),
            State::Moving => unreachable!("a host is looked at between its moves"),
        }
    }

    pub(super) fn engine(&self, app: Workload, seed: u64) -> Engine<Workload> {
        Engine::new(app, self.plan.timeouts, self.plan.limits, seed)
    }
}

impl World<'_> {
    pub(super) fn add_host(&mut self, number: u64, name: &'static str, plan: SessionPlan, mangle: Option<u64>) {
        let seed = self.scenario.seed;
        // Twins are one I_T nexus, as far as the target can tell: at two servers only where these are one target port.
        let twin = number == 1 && self.scenario.twins;
        let apart = mangle.is_none() && (!twin || self.scenario.one_port);
        let server = if apart { number as usize % self.servers.len() } else { 0 };
        let target = if mangle.is_some() { OTHER } else { self.servers[server].name() };
        let credentials = |user: &str, secret: &str| Credentials { user: user.into(), secret: ChapSecret::new(secret) };
        let chap = if mangle.is_some() { Chap::No } else { self.scenario.chap };
        let (nexus, share) = match self.hosts.first() {
            Some(first) if twin => (0, first.share.clone()),
            _ => (number, NexusShare::default()),
        };
        let initiator = format!("iqn.2026-11.example.sim:{}", if twin { NAMES[0] } else { name });
        let login = LoginConfig {
            credentials: (chap != Chap::No).then(|| credentials(USER, SECRET)),
            target_credentials: (chap == Chap::Mutual).then(|| credentials(TARGET_USER, TARGET_SECRET)),
            offer: plan.offer.clone(),
            cmd_sn: Rng::new(seed, 250 + number).first_number(1),
            ..LoginConfig::new(initiator.clone(), target, [0x80, 0, 0, 0, 0, nexus as u8], [number as u8 + 1; 64])
        };
        let (disks, attentions) = if mangle.is_some() {
            let disk = DiskPlan::single(StorePlan { blocks: 128, ..StorePlan::sound(Door::Memory) });
            (
                vec![Disk::new((0, None), disk, (self.scenario.transport, false), Rng::new(seed, 20))],
                Attentions::default(),
            )
        } else {
            (self.disks.clone(), self.attentions.clone())
        };
        self.told.name(number, &initiator);
        let rng = Rng::new(seed, 100 + number);
        let outside = (self.trace.clone(), self.verdict.clone());
        let work = plan.work.clone();
        let app =
            Workload::new((name, number), disks, work, rng, outside, (share.clone(), attentions, self.told.clone()));
        let mut host = Host {
            recovery: Recovery::new(plan.reconnect, seed),
            plan,
            login,
            server,
            state: State::Moving,
            rng: Rng::new(seed, 200 + number),
            mangle,
            woken: None,
            guarded: false,
            share,
        };
        host.state = State::Waiting { engine: Box::new(host.engine(app, seed)), until: Instant::ZERO };
        self.hosts.push(host);
    }

    pub(super) fn run_host(&mut self, at: usize) -> Result<bool, String> {
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
        let (commands, server) = (host.plan.limits.commands, host.server);
        let up = match transport {
            _ if refused => Err(engine),
            Transport::Loopback => {
                let plan = if self.calm { FabricPlan::calm() } else { weather.fabric(&mut host.rng) };
                match self.connect_loopback(at, plan) {
                    Some((link, mover)) => Ok(self.begin::<_, Completions>(at, engine, mover, link)),
                    None => Err(engine),
                }
            }
            Transport::Verbs => {
                let plan = if self.calm { FabricPlan::calm() } else { weather.fabric(&mut host.rng) };
                match self.connect_verbs(at, plan) {
                    Some((link, mover)) => Ok(self.begin::<_, Polls>(at, engine, mover, link)),
                    None => Err(engine),
                }
            }
            Transport::Iwarp => match self.connect(server, plan, rng, transport) {
                Some(link) => {
                    let mover = self.hosts[at].plan.iser.over_iwarp(commands, self.rng.u64());
                    Ok(self.begin::<_, Bytes>(at, engine, mover, link))
                }
                None => Err(engine),
            },
            Transport::Tcp => match self.connect(server, plan, rng, transport) {
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
    fn begin<M, X>(&mut self, at: usize, mut engine: Engine<Workload>, mover: M, link: usize) -> State
    where
        M: Datamover + 'static,
        X: Exchange<InitiatorConnection<M, Workload>> + 'static,
    {
        self.trace.event(format_args!("host {at} connects, link {link}"));
        engine.app().connects();
        let host = &mut self.hosts[at];
        let plans = [
            (Fate::Cut, self.scenario.weather.cut_within),
            (Fate::Deaf, host.plan.deaf),
            (Fate::Owing, host.plan.owes),
        ];
        for (fate, (links, within)) in plans {
            if links > 0 && !self.calm && host.mangle.is_none() && host.rng.permille(links) {
                let wait = Duration::from_micros(host.rng.magnitude(1, within.as_micros() as u64));
                self.fates.push((self.now + wait, link, fate));
            }
        }
        let connection =
            InitiatorConnection::new(mover, engine, host.login.clone(), host.plan.timeouts.login, self.now);
        State::Up(Box::new(Pipe::<_, X>::new(connection, link, Side::Initiator)))
    }

    fn disconnect_host(&mut self, at: usize, pipe: Box<dyn DriveInitiator>) -> State {
        let now = self.now;
        self.close(pipe.link(), Side::Initiator);
        let (number, logged_in_at) = (pipe.link(), pipe.logged_in_at());
        let (mut engine, end, time2wait) = pipe.into_parts(now);
        let unanswered = engine.app().take_unanswered();
        if let Some(owing) = self.owing.iter_mut().find(|owing| owing.link == number) {
            owing.unanswered = unanswered;
        }
        self.trace.event(format_args!("host {at} is disconnected: {end}"));
        if end.is_logout() {
            return self.give_up(engine);
        }
        let host = &mut self.hosts[at];
        let wait = if let Some(at) = logged_in_at {
            host.recovery.connected(at);
            host.recovery.lost(time2wait, engine.service(), now).ok()
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
}
