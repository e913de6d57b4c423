//! Peers that send anything.

use std::time::Duration;

use super::World;
use super::events::Happening;
use super::server::OTHER;
use crate::borrower::Borrower;
use crate::careless::{Careless, Wish};
use crate::hostile::Hostile;
use crate::link::{LinkPlan, Side};
use crate::network::Network;
use crate::rng::Rng;
use crate::transport::Transport;

impl World<'_> {
    /// Somebody connects and says nothing.
    fn connect_silent(&mut self, left: u64) {
        let server = left as usize % self.servers.len();
        let rng = Rng::new(self.scenario.seed, 600 + left);
        if let Some(link) = self.connect(server, LinkPlan::calm(), rng, Transport::Tcp) {
            self.hostiles.push(Hostile::silent(link));
        }
    }

    /// The careless connect, while their servers are up.
    pub(super) fn add_careless(&mut self) {
        for at in 0..self.scenario.careless {
            let number = 10 + at;
            let (server, seed) = (at as usize % self.servers.len(), self.scenario.seed);
            let rng = Rng::new(seed, 900 + at);
            let Some(link) = self.connect(server, LinkPlan::calm(), Rng::new(seed, 950 + at), Transport::Tcp) else {
                continue;
            };
            let name = format!("iqn.2026-11.example.sim:careless-{number}");
            self.told.name(number, &name);
            let outside = (self.trace.clone(), self.verdict.clone());
            let target = self.servers[server].name();
            let disks = (self.disks.clone(), self.scenario.limits.owed_data_wait);
            self.careless.push(Careless::new((link, server, number), (&name, target), disks, rng, outside, self.now));
        }
    }

    /// The borrowers connect.
    pub(super) fn add_borrowers(&mut self) {
        let (seed, waits) = (self.scenario.seed, self.scenario.waits());
        for (number, habit) in (0..).zip(&self.scenario.borrowers) {
            let plan = LinkPlan { capacity: 64 << 10, ..LinkPlan::calm() };
            let Some(link) = self.connect(0, plan, Rng::new(seed, 1150 + number), Transport::Tcp) else { continue };
            let name = format!("iqn.2026-11.example.sim:borrower-{number}");
            let outside = (self.trace.clone(), self.verdict.clone());
            let rng = Rng::new(seed, 1100 + number);
            self.borrowers.push(Borrower::new((link, number), (&name, OTHER), (*habit, waits), rng, outside, self.now));
        }
    }

    pub(super) fn run_borrowers(&mut self) -> bool {
        let mut any = false;
        for at in 0..self.borrowers.len() {
            let borrower = &mut self.borrowers[at];
            let number = borrower.link();
            if borrower.is_over() {
                continue;
            }
            let Some(link) = self.networks[number].as_mut().and_then(Network::as_link) else { continue };
            any |= borrower.run(link, self.now);
            if borrower.is_over() {
                self.close(number, Side::Initiator);
            }
        }
        any
    }

    /// The borrowers go, whatever they owe.
    pub(super) fn dismiss_borrowers(&mut self) {
        for at in 0..self.borrowers.len() {
            let number = self.borrowers[at].link();
            if let Some(link) = self.networks[number].as_mut().and_then(Network::as_link) {
                self.borrowers[at].leave(link, self.now);
                self.close(number, Side::Initiator);
            }
        }
    }

    pub(super) fn run_careless(&mut self) -> bool {
        let mut any = false;
        for at in 0..self.careless.len() {
            let careless = &mut self.careless[at];
            let number = careless.link();
            if careless.is_over() {
                continue;
            }
            let Some(link) = self.networks[number].as_mut().and_then(Network::as_link) else { continue };
            any |= careless.run(link, self.now);
            let (wish, server) = (careless.take_wish().filter(|_| !self.calm), careless.server);
            if careless.is_over() {
                self.close(number, Side::Initiator);
            }
            if let Some(Wish::Remove(disk)) = wish {
                self.trace.event(format_args!("LUN {} goes at server {server}", self.disks[disk].number));
                self.servers[server].luns().remove(self.disks[disk].number);
                self.disks[disk].was_away.set(true);
                let away = Duration::from_millis(self.rng.magnitude(1, 10_000));
                self.events_at.push((self.now + away, Happening::Late(server)));
                // One thing does not come alone: another of them resets the disk meanwhile, often.
                let other = self.rng.below(self.careless.len() as u64) as usize;
                if other != at && self.rng.permille(700) {
                    self.careless[other].have_reset(disk);
                }
            }
        }
        any
    }

    pub(super) fn run_hostiles(&mut self) -> bool {
        let mut any = false;
        if let Some((left, at)) = self.hostile_at
            && at <= self.now
        {
            let mut rng = Rng::new(self.scenario.seed, 500 + left);
            if left <= self.scenario.silent {
                self.connect_silent(left);
                let wait = Duration::from_millis(rng.magnitude(1, 1000));
                self.hostile_at = (left > 1).then_some((left - 1, self.now + wait));
                return true;
            }
            let plan = LinkPlan { cut_after: None, flip: None, ..self.scenario.weather.link(&mut rng) };
            if let Some(link) = self.connect(0, plan, Rng::new(self.scenario.seed, 600 + left), Transport::Tcp) {
                self.hostiles.push(Hostile::new(link, &mut rng, OTHER, self.now));
            }
            if matches!(self.scenario.transport, Transport::Loopback | Transport::Verbs) {
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
}
