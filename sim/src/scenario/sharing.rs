//! Worlds in which several servers share their disks.

use std::time::Duration;

use iscsi_proto::pdu::TaskFunction;

use super::{Chap, HARSH, HELD_UP, Kind, Scenario, seconds};
use crate::disk::DiskPlan;
use crate::rng::Rng;
use crate::store::{Door, StorePlan};
use crate::transport::Transport;

const CLEARING: &[TaskFunction] =
    &[TaskFunction::ClearTaskSet, TaskFunction::ClearTaskSet, TaskFunction::LogicalUnitReset];

impl Scenario {
    /// The scenario of a seed in which servers of one process share their disks, each by two LUNs or one: some of the
    /// disks are slower than every limit of time, the others are not, and what is asked of those is done in time.
    /// Functions of every kind, servers that stop, LUNs that come and go. Half of the seeds have links without faults.
    #[must_use]
    pub fn sharing(seed: u64, transport: Transport) -> Self {
        let mut scenario = Self::meeting(seed, transport);
        scenario.kind = Kind::Sharing;
        let rng = &mut Rng::new(seed, 15);
        scenario.servers = rng.between(1, 3) as usize;
        scenario.one_node = rng.permille(500);
        scenario.one_port = scenario.one_node && scenario.twins;
        scenario.second_luns = rng.permille(500);
        scenario.late_luns = rng.permille(500);
        scenario.unattended = rng.permille(300);
        if rng.permille(500) {
            scenario.stops = (rng.between(1, 4), seconds(rng, 1, 100));
        }
        scenario.limits.drain_timeout = seconds(rng, 2, 8);
        let doors = [Door::Easy, Door::Queue, Door::Queue, Door::File];
        scenario.store.door = rng.pick(&doors);
        scenario.store.delay = scenario.store.delay.min(Duration::from_millis(20));
        (scenario.store.read_errors, scenario.store.write_errors, scenario.store.full) = (0, 0, 0);
        scenario.store.slow = (rng.pick(&[0, 100, 300]), seconds(rng, 5, 30));
        scenario.more_disks.clear();
        for _ in 0..rng.between(1, 2) {
            let slow = (rng.pick(&[0, 0, 300]), seconds(rng, 5, 30));
            let store = StorePlan { door: rng.pick(&doors), slow, ..scenario.store.clone() };
            scenario.more_disks.push(DiskPlan { store, build: Self::build(rng) });
        }
        if scenario.chap == Chap::No && rng.permille(600) {
            scenario.careless = rng.between(1, 3);
            if rng.permille(700) {
                // What shows at once whether data land that were to be dropped.
                let store = StorePlan { door: Door::Memory, slow: (0, Duration::ZERO), ..scenario.store.clone() };
                scenario.more_disks.push(DiskPlan::single(store));
                scenario.crashes = (0, Duration::ZERO);
            }
        }
        if rng.permille(300) {
            scenario.silent = rng.between(10, 40);
            scenario.limits.logins = 4;
            scenario.limits.connections = scenario.sessions.len() + scenario.careless as usize + 4;
        }
        let later = &mut Rng::new(seed, 22);
        let is_calm = rng.permille(500);
        if is_calm {
            let cut_within = (later.pick(&[0, 0, 300, 700]), seconds(later, 1, 60));
            scenario = scenario.undisturbed();
            // Connections break, both sides know it soon, and nothing else is wrong.
            (scenario.weather.cut_within, scenario.weather.half_open) = (cut_within, 0);
        }
        if scenario.careless > 0 && transport == Transport::Tcp {
            scenario.limits.owed_data_wait = later.pick(&[Duration::from_secs(1), Duration::from_secs(10)]);
        }
        let functions = rng.pick(&[HARSH, HARSH, CLEARING]);
        for session in &mut scenario.sessions {
            let work = &mut session.work;
            work.abandons = 0;
            work.functions = rng.pick(&[50, 100]);
            work.function_kinds = functions;
            work.store_fails = false;
            work.one_node = scenario.servers == 1 || scenario.one_node;
            work.simple = scenario.second_luns;
            work.drain = scenario.limits.drain_timeout;
            work.patience = session.timeouts.command;
            // What asks for a function waits for its answer.
            session.timeouts.task_management = Duration::from_secs(20);
            if is_calm {
                session.deaf = (0, Duration::ZERO);
                work.function_within = Some(HELD_UP);
            }
        }
        scenario
    }
}
