//! The ends of the links at the servers, and how servers stop and die.

use std::sync::Arc;
use std::time::Duration;

use iscsi_proto::datamover::Datamover;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iser_transport::loopback::{Faults, LoopbackQueue};
use iser_transport::mover::IserMover;
use iser_transport::queue::QueuePair;
use iser_transport::verbs::simulated::{Device, Make, SimulatedQueue};
use target_core::registry::Endpoints;
use target_core::session::TargetConnection;

use super::events::Happening;
use super::hosts::Host;
use super::server::{self, OTHER};
use super::{Served, World};
use crate::fabric::{FabricLink, FabricPlan};
use crate::hostile_queue::HostileQueue;
use crate::link::{Link, LinkPlan, Side};
use crate::network::Network;
use crate::parting::Parting;
use crate::pipe::{Bytes, Completions, Exchange, Pipe, Polls};
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::store::SimStore;
use crate::transport::Transport;
use crate::watch::Watch;

/// A flaw of the initiator's connections: they end without ever having logged in, again and again.
const MOST_LINKS: usize = 3000;

impl World<'_> {
    /// A byte stream to a server.
    pub(super) fn connect(&mut self, server: usize, plan: LinkPlan, rng: Rng, transport: Transport) -> Option<usize> {
        let link = || Network::Bytes(Box::new(Link::new(plan, rng)));
        let tasks = self.target_tasks();
        if transport == Transport::Iwarp {
            let mover = self.scenario.iser.target.over_iwarp(tasks, self.rng.u64());
            return self.serve(server, (mover, None), link, Bytes::default());
        }
        let config = TcpMoverConfig { max_tasks: tasks, ..self.scenario.mover };
        let mover = TcpMover::with_buffers(Role::Target, config, self.servers[server].pool().session());
        let watch = Watch::new(self.servers[server].name());
        self.serve(server, (mover, None), link, Bytes::watched(watch))
    }

    /// Queue pairs to the server that a host uses; the initiator's mover.
    pub(super) fn connect_loopback(
        &mut self,
        at: usize,
        plan: FabricPlan,
    ) -> Option<(usize, IserMover<LoopbackQueue>)> {
        let (tasks, seed, now) = (self.target_tasks(), self.rng.u64(), self.now);
        let faults = self.faults(at);
        let Host { plan: host, server, .. } = &self.hosts[at];
        let server = *server;
        let end = (&host.iser, host.limits.commands);
        let parting = Parting::from(self.servers[server].target());
        let (initiator, target, fabric) = self.scenario.iser.over_loopback(end, tasks, (faults, &parting), seed);
        let rng = Rng::new(self.scenario.seed, 1000 + self.networks.len() as u64);
        let trace = (self.trace.clone(), self.networks.len());
        let network = || Network::Queues(Box::new(FabricLink::new(fabric, plan, rng, now).traced(trace.0, trace.1)));
        let number = self.serve(server, (target, Some(parting)), network, Completions)?;
        Some((number, initiator))
    }

    /// The device that the process has from its start on.
    pub(super) fn device(scenario: &Scenario) -> Option<Device> {
        let make = Make { zeroes_are_unwritten: scenario.unwritten_is_zero(), ..scenario.iser.target.device.clone() };
        (scenario.transport == Transport::Verbs).then(|| Device::new(make))
    }

    /// Queue pairs of verbs to the server that a host uses; the initiator's mover.
    pub(super) fn connect_verbs(&mut self, at: usize, plan: FabricPlan) -> Option<(usize, IserMover<SimulatedQueue>)> {
        let (tasks, seed, now) = (self.target_tasks(), self.rng.u64(), self.now);
        let device = self.device.clone()?;
        let faults = self.faults(at);
        let Host { plan: host, server, .. } = &self.hosts[at];
        let server = *server;
        let end = (&host.iser, host.limits.commands);
        let parting = Parting::from(self.servers[server].target());
        let (initiator, target, fabric) =
            self.scenario.iser.over_verbs(end, (&device, tasks), (faults, &parting), seed);
        let rng = Rng::new(self.scenario.seed, 1000 + self.networks.len() as u64);
        let trace = (self.trace.clone(), self.networks.len());
        let network = || Network::Queues(Box::new(FabricLink::new(fabric, plan, rng, now).traced(trace.0, trace.1)));
        let number = self.serve(server, (target, Some(parting)), network, Polls::default())?;
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
            (self.serve(0, (target, None), network, Polls::default()), Box::new(queue))
        } else {
            let (queue, target, fabric) = self.scenario.iser.toward_target(tasks, seed);
            let network = || Network::Queues(Box::new(FabricLink::new(fabric, plan, fabric_rng, now)));
            (self.serve(0, (target, None), network, Completions), Box::new(queue))
        };
        if let Some(link) = link {
            self.hostile_queues.push(HostileQueue::new(link, queue, rng, OTHER, now));
        }
    }

    const fn target_tasks(&self) -> u16 {
        self.scenario.limits.command_window + self.scenario.limits.immediate_commands
    }

    /// A server takes a connection, if it does, over a network of which it has one end.
    fn serve<M, X>(
        &mut self,
        server: usize,
        (mover, parting): (M, Option<Parting>),
        network: impl FnOnce() -> Network,
        exchange: X,
    ) -> Option<usize>
    where
        M: Datamover + 'static,
        X: Exchange<TargetConnection<M>> + 'static,
    {
        let number = self.networks.len();
        if number > MOST_LINKS {
            self.verdict.broken(format!("more than {MOST_LINKS} connections were made"));
            return None;
        }
        let endpoints = Endpoints { local: server::address(), peer: ([127, 0, 0, 1], 10_000 + number as u16).into() };
        if !self.servers[server].is_up(self.now) {
            return None;
        }
        let mut entropy = [0; 64];
        self.rng.fill(&mut entropy);
        let target = self.servers[server].target().clone();
        let connection = TargetConnection::new(target, mover, endpoints, entropy, self.now)?;
        self.networks.push(Some(network()));
        let pipe = Box::new(Pipe::new(connection, number, Side::Target).by(exchange));
        self.served.push(Served { server, pipe, parting });
        Some(number)
    }

    pub(super) fn run_served(&mut self) -> Result<bool, String> {
        let mut any = false;
        let mut at = 0;
        while at < self.served.len() {
            let pipe = &mut self.served[at].pipe;
            let Some(link) = &mut self.networks[pipe.link()] else {
                return Err("a link went before its connection".into());
            };
            self.disks.iter().flat_map(|disk| &disk.parts).for_each(SimStore::begin_turn);
            any |= pipe.run(link, self.now)?;
            if let Some(owing) = self.owing.iter_mut().find(|owing| owing.link == pipe.link()) {
                // A queue pair of verbs may part with what waits behind the Read that is not answered.
                let most = if self.device.is_none() { self.scenario.iser.target.work } else { 0 };
                let has_room = link.as_fabric().is_some_and(|fabric| fabric.work(Side::Target) < most);
                owing.ends(|| pipe.ends(), has_room, self.now);
            }
            if pipe.is_finished() {
                let served = self.served.remove(at);
                let number = served.pipe.link();
                self.trace.event(format_args!("target ends link {number}: {}", served.pipe.end_reason()));
                self.part(served);
                self.close(number, Side::Target);
                any = true;
            } else {
                at += 1;
            }
        }
        for server in &mut self.servers {
            any |= server.end_before();
        }
        Ok(any)
    }

    /// A connection goes.
    fn part(&self, Served { pipe, parting, .. }: Served) {
        if let Some(Err(broken)) = parting.map(|parting| parting.watch(pipe)) {
            self.verdict.broken(broken);
        }
    }

    /// The connections of these servers go at once, without another word.
    fn drop_served(&mut self, of: impl Fn(usize) -> bool) {
        let gone: Vec<_> = self.served.extract_if(.., |served| of(served.server)).collect();
        for served in gone {
            let number = served.pipe.link();
            self.part(served);
            if let Some(network) = &mut self.networks[number] {
                network.cut(self.now);
                network.tell_of_cut(Side::Initiator, self.now);
            }
            self.close(number, Side::Target);
        }
    }

    /// A server stops, and starts again after a while: with time for its connections to end, or without.
    pub(super) fn stop(&mut self, server: usize) {
        let down = Duration::from_millis(self.rng.magnitude(1, 10_000));
        let until = self.now + down;
        let old = self.servers[server].restart(self.scenario, &[], &self.other, &self.told, until);
        let grace = self.rng.pick(&[None, Some(Duration::ZERO), Some(Duration::from_secs(3))]);
        if let Some(grace) = grace {
            old.registry().stop(grace);
            let hard = grace + self.scenario.limits.close_timeout;
            self.events_at.push((self.now + hard, Happening::EndStopped(server)));
        } else {
            self.end_stopped(server);
        }
    }

    /// What is left of a server that stops goes.
    pub(super) fn end_stopped(&mut self, server: usize) {
        if !self.servers[server].is_stopping() {
            return;
        }
        self.drop_served(|of| of == server);
        self.servers[server].forget();
    }

    /// The process dies, its system with it, and starts again after a while.
    pub(super) fn crash(&mut self) -> Result<(), String> {
        self.trace.event(format_args!("the target crashes"));
        self.crashes += 1;
        self.drop_served(|_| true);
        let units: Vec<_> = self.disks.iter().map(server::unit).collect();
        let old = std::mem::replace(&mut self.units, units);
        let units: Vec<_> = old.into_iter().zip(self.units.iter().cloned()).collect();
        let down = Duration::from_millis(self.rng.magnitude(1, 10_000));
        let until = self.now + down;
        let mut left = Vec::new();
        for server in &mut self.servers {
            left.push(Arc::downgrade(&server.restart(self.scenario, &units, &self.other, &self.told, until)));
            server.forget();
        }
        drop(units);
        if left.iter().any(|left| left.strong_count() != 0) {
            return Err("something of the target outlives its connections".into());
        }
        self.device = Self::device(self.scenario);
        self.disks.iter().for_each(|disk| disk.crash());
        Ok(())
    }
}
