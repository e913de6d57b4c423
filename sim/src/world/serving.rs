//! The target: its configuration, its ends of the links, its death and its next start.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iscsi_proto::chap::ChapSecret;
use iscsi_proto::datamover::Datamover;
use iscsi_proto::login::ChapAccount;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iser_transport::loopback::{Faults, LoopbackQueue};
use iser_transport::mover::IserMover;
use iser_transport::queue::QueuePair;
use iser_transport::verbs::simulated::{Device, Make, SimulatedQueue};
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{Attributes, Portal, PortalGroup, TargetConfig, TargetNode};
use target_core::registry::Endpoints;
use target_core::session::{Target, TargetConnection};

use super::World;
use super::hosts::Host;
use crate::disk::SharedDisk;
use crate::fabric::{FabricLink, FabricPlan};
use crate::hostile_queue::HostileQueue;
use crate::link::{Link, LinkPlan, Side};
use crate::network::Network;
use crate::pipe::{Bytes, Completions, Exchange, Pipe, Polls};
use crate::rng::Rng;
use crate::scenario::{Chap, Scenario};
use crate::store::SimStore;
use crate::transport::Transport;
use crate::watch::Watch;

/// The target node of the honest sessions.
pub(super) const HONEST: &str = "iqn.2026-11.example.sim:disk";
/// The target node of all others, with a disk of its own.
pub(super) const OTHER: &str = "iqn.2026-11.example.sim:other";
pub(super) const USER: &str = "simulated";
pub(super) const SECRET: &str = "a secret of the initiator";
pub(super) const TARGET_USER: &str = "simulated target";
pub(super) const TARGET_SECRET: &str = "a secret of the target";

/// A flaw of the initiator's connections: they end without ever having logged in, again and again.
const MOST_LINKS: usize = 3000;

fn account(mutual: bool) -> ChapAccount {
    ChapAccount {
        user: USER.into(),
        secret: ChapSecret::new(SECRET),
        mutual: mutual.then(|| (TARGET_USER.into(), ChapSecret::new(TARGET_SECRET))),
    }
}

/// What a disk's unit is known by.
fn identity(disk: &SharedDisk) -> String {
    if disk.number == 0 { HONEST.into() } else { format!("{HONEST}:{}", disk.number) }
}

/// A target that has just started, and its units of these disks.
pub(super) fn start(
    scenario: &Scenario,
    disks: &[SharedDisk],
    other: &SimStore,
) -> (Arc<Target>, Vec<Arc<LogicalUnit>>) {
    let address: SocketAddr = ([127, 0, 0, 1], 3260).into();
    let group = || PortalGroup::new(1).portal(Portal::new(address).with_iser());
    let units: Vec<_> = disks.iter().map(|disk| disk.unit(&identity(disk))).collect();
    let mut honest = TargetNode::builder().name(HONEST).portal_group(group());
    for (disk, unit) in disks.iter().zip(&units) {
        honest = honest.lun(disk.number, unit.clone());
    }
    honest = match scenario.chap {
        Chap::No => honest.open(),
        chap => honest
            .attributes(Attributes { authentication: true, ..Attributes::open() })
            .account(account(chap == Chap::Mutual)),
    };
    let unit = LogicalUnit::new(Arc::new(other.clone()), Identity::from_seed(OTHER));
    let unit = Arc::new(unit.expect("a geometry that a disk can have"));
    let hostile = TargetNode::builder().name(OTHER).lun(0, unit).portal_group(group()).open();
    let config = TargetConfig::builder().node(honest).node(hostile).build().expect("a configuration that can be");
    let mut limits = scenario.limits.clone();
    if scenario.is_short_of_buffers() {
        // So little that sessions read in pieces, and wait for buffers.
        (limits.buffered, limits.sessions) = (256 << 10, 16);
    }
    (Target::new(config, limits), units)
}

impl World<'_> {
    /// A byte stream to the target.
    pub(super) fn connect(&mut self, plan: LinkPlan, rng: Rng, transport: Transport) -> Option<usize> {
        let link = || Network::Bytes(Box::new(Link::new(plan, rng)));
        let tasks = self.target_tasks();
        if transport == Transport::Iwarp {
            let mover = self.scenario.iser.target.over_iwarp(tasks, self.rng.u64());
            return self.serve(mover, link, Bytes::default());
        }
        let config = TcpMoverConfig { max_tasks: tasks, ..self.scenario.mover };
        let mover = TcpMover::with_buffers(Role::Target, config, self.pool.session());
        self.serve(mover, link, Bytes::watched(Watch::new(HONEST)))
    }

    /// Queue pairs to the target; the initiator's mover.
    pub(super) fn connect_loopback(
        &mut self,
        at: usize,
        plan: FabricPlan,
    ) -> Option<(usize, IserMover<LoopbackQueue>)> {
        let (tasks, seed, now) = (self.target_tasks(), self.rng.u64(), self.now);
        let faults = self.faults(at);
        let Host { plan: host, .. } = &self.hosts[at];
        let end = (&host.iser, host.limits.commands);
        let (initiator, target, fabric) = self.scenario.iser.over_loopback(end, tasks, faults, seed);
        let rng = Rng::new(self.scenario.seed, 1000 + self.networks.len() as u64);
        let trace = (self.trace.clone(), self.networks.len());
        let network = || Network::Queues(Box::new(FabricLink::new(fabric, plan, rng, now).traced(trace.0, trace.1)));
        let number = self.serve(target, network, Completions)?;
        Some((number, initiator))
    }

    /// The device that the target has from its start on.
    pub(super) fn device(scenario: &Scenario) -> Option<Device> {
        let make = Make { zeroes_are_unwritten: scenario.unwritten_is_zero(), ..scenario.iser.target.device.clone() };
        (scenario.transport == Transport::Verbs).then(|| Device::new(make))
    }

    /// Queue pairs of verbs to the target; the initiator's mover.
    pub(super) fn connect_verbs(&mut self, at: usize, plan: FabricPlan) -> Option<(usize, IserMover<SimulatedQueue>)> {
        let (tasks, seed, now) = (self.target_tasks(), self.rng.u64(), self.now);
        let device = self.device.clone()?;
        let faults = self.faults(at);
        let Host { plan: host, .. } = &self.hosts[at];
        let end = (&host.iser, host.limits.commands);
        let (initiator, target, fabric) = self.scenario.iser.over_verbs(end, (&device, tasks), faults, seed);
        let rng = Rng::new(self.scenario.seed, 1000 + self.networks.len() as u64);
        let trace = (self.trace.clone(), self.networks.len());
        let network = || Network::Queues(Box::new(FabricLink::new(fabric, plan, rng, now).traced(trace.0, trace.1)));
        let number = self.serve(target, network, Polls::default())?;
        Some((number, initiator))
    }

    /// What goes wrong on the next network of a host's.
    fn faults(&self, at: usize) -> Faults {
        let mut faults = if self.calm { Faults::default() } else { self.scenario.iser.loopback.faults };
        if let (Some(mangle), false) = (self.hosts[at].mangle, self.calm) {
            faults.mangle = mangle as u32 * 1000;
        }
        faults
    }

    pub(super) fn connect_hostile_queue(&mut self, left: u64) {
        let (tasks, seed, now) = (self.target_tasks(), self.rng.u64(), self.now);
        let mut rng = Rng::new(self.scenario.seed, 700 + left);
        let plan = FabricPlan { cut_after: None, ..self.scenario.weather.fabric(&mut rng) };
        let fabric_rng = Rng::new(self.scenario.seed, 800 + left);
        let (link, queue): (_, Box<dyn QueuePair>) = if let Some(device) = self.device.clone() {
            let (queue, target, fabric) = self.scenario.iser.toward_target_over_verbs(&device, tasks, seed);
            let network = || Network::Queues(Box::new(FabricLink::new(fabric, plan, fabric_rng, now)));
            (self.serve(target, network, Polls::default()), Box::new(queue))
        } else {
            let (queue, target, fabric) = self.scenario.iser.toward_target(tasks, seed);
            let network = || Network::Queues(Box::new(FabricLink::new(fabric, plan, fabric_rng, now)));
            (self.serve(target, network, Completions), Box::new(queue))
        };
        if let Some(link) = link {
            self.hostile_queues.push(HostileQueue::new(link, queue, rng, OTHER, now));
        }
    }

    const fn target_tasks(&self) -> u16 {
        self.scenario.limits.command_window + self.scenario.limits.immediate_commands
    }

    /// The target takes a connection, if it does, over a network of which it has one end.
    fn serve<M, X>(&mut self, mover: M, network: impl FnOnce() -> Network, exchange: X) -> Option<usize>
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
        if self.down_until.is_some_and(|until| until > self.now) {
            return None;
        }
        let mut entropy = [0; 64];
        self.rng.fill(&mut entropy);
        let connection = TargetConnection::new(self.target.clone(), mover, endpoints, entropy, self.now)?;
        self.networks.push(Some(network()));
        self.served.push(Box::new(Pipe::new(connection, number, Side::Target).by(exchange)));
        Some(number)
    }

    pub(super) fn run_served(&mut self) -> Result<bool, String> {
        let mut any = false;
        let mut at = 0;
        while at < self.served.len() {
            let pipe = &mut self.served[at];
            let Some(link) = &mut self.networks[pipe.link()] else {
                return Err("a link went before its connection".into());
            };
            self.disks.iter().flat_map(|disk| &disk.parts).for_each(SimStore::begin_turn);
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

    /// The process dies, its system with it, and starts again after a while.
    pub(super) fn crash(&mut self) -> Result<(), String> {
        self.trace.event(format_args!("the target crashes"));
        self.crashes += 1;
        for pipe in std::mem::take(&mut self.served) {
            let number = pipe.link();
            drop(pipe);
            if let Some(network) = &mut self.networks[number] {
                network.cut(self.now);
                network.tell_of_cut(Side::Initiator, self.now);
            }
            self.close(number, Side::Target);
        }
        self.units.clear();
        let (next, units) = start(self.scenario, &self.disks, &self.other);
        let old = std::mem::replace(&mut self.target, next);
        self.pool = self.target.worker_pool(1);
        self.units = units;
        // Each worker of the next one looks after its sessions from the start.
        self.attendants.iter().for_each(|(_, waker)| waker.wake_by_ref());
        let left = Arc::downgrade(&old);
        drop(old);
        if left.strong_count() != 0 {
            return Err("something of the target outlives its connections".into());
        }
        self.device = Self::device(self.scenario);
        self.disks.iter().for_each(|disk| disk.crash());
        let down = Duration::from_millis(self.rng.magnitude(1, 10_000));
        self.down_until = Some(self.now + down);
        Ok(())
    }
}
