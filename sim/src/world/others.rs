//! Peers that send anything.

use std::time::Duration;

use super::World;
use super::serving::OTHER;
use crate::hostile::Hostile;
use crate::link::{LinkPlan, Side};
use crate::network::Network;
use crate::rng::Rng;
use crate::transport::Transport;

impl World<'_> {
    pub(super) fn run_hostiles(&mut self) -> bool {
        let mut any = false;
        if let Some((left, at)) = self.hostile_at
            && at <= self.now
        {
            let mut rng = Rng::new(self.scenario.seed, 500 + left);
            let plan = LinkPlan { cut_after: None, flip: None, ..self.scenario.weather.link(&mut rng) };
            if let Some(link) = self.connect(plan, Rng::new(self.scenario.seed, 600 + left), Transport::Tcp) {
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
