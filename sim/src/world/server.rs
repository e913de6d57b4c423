//! A server of the process: its target, which it serves until it stops, and its next one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;

use iscsi_memory::WorkerPool;
use iscsi_proto::chap::ChapSecret;
use iscsi_proto::login::ChapAccount;
use iscsi_proto::name::IscsiName;
use iscsi_proto::time::Instant;
use target_core::lu::{Identity, LogicalUnit, LunMap};
use target_core::node::{Attributes, Portal, PortalGroup, TargetConfig, TargetNode};
use target_core::session::Target;

use crate::disk::SharedDisk;
use crate::pipe::Flag;
use crate::scenario::{Chap, Scenario};
use crate::store::SimStore;
use crate::told::Told;

/// The target node of the honest sessions.
const HONEST: &str = "iqn.2026-11.example.sim:disk";
/// The target node of all others, with a disk of its own, at the first server.
pub(super) const OTHER: &str = "iqn.2026-11.example.sim:other";
pub(super) const USER: &str = "simulated";
pub(super) const SECRET: &str = "a secret of the initiator";
pub(super) const TARGET_USER: &str = "simulated target";
pub(super) const TARGET_SECRET: &str = "a secret of the target";

/// Where every server listens.
pub(super) fn address() -> SocketAddr {
    ([127, 0, 0, 1], 3260).into()
}

fn account(mutual: bool) -> ChapAccount {
    ChapAccount {
        user: USER.into(),
        secret: ChapSecret::new(SECRET),
        mutual: mutual.then(|| (TARGET_USER.into(), ChapSecret::new(TARGET_SECRET))),
    }
}

/// A unit that serves a disk.
pub(super) fn unit(disk: &SharedDisk) -> Arc<LogicalUnit> {
    disk.unit(&if disk.number == 0 { HONEST.into() } else { format!("{HONEST}:{}", disk.number) })
}

/// One life of a server's target.
#[derive(Debug)]
struct Life {
    target: Arc<Target>,
    /// Of the one worker that there is.
    pool: WorkerPool,
}

impl Life {
    fn is_over(&self) -> bool {
        self.target.registry().connections() == 0
    }
}

/// A server.
#[derive(Debug)]
pub(super) struct Server {
    number: usize,
    name: String,
    life: Life,
    /// What it was before it stopped, until its connections have gone.
    before: Option<Life>,
    /// One of each worker. None where nobody looks after sessions that have lost their connection.
    attendants: Vec<(Arc<Flag>, Waker)>,
    /// It takes no connections until then.
    down_until: Option<Instant>,
}

impl Server {
    /// A server that has just started.
    pub(super) fn start(
        scenario: &Scenario,
        number: usize,
        disks: &[SharedDisk],
        units: &[Arc<LogicalUnit>],
        other: &SimStore,
        told: &Told,
    ) -> Self {
        let mut luns = LunMap::builder();
        for (at, (disk, unit)) in disks.iter().zip(units).enumerate() {
            if at == 0 || number == 0 || !scenario.late_luns {
                luns = luns.insert(disk.number, unit.clone(), false);
            } else {
                disk.was_away.set(true);
            }
            if let Some(second) = disk.second_lun {
                luns = luns.insert(second, unit.clone(), false);
            }
        }
        let name = if number == 0 || scenario.one_node { HONEST.into() } else { format!("{HONEST}-{number}") };
        let workers = if scenario.unattended && number > 0 { 0 } else { 1 + scenario.seed % 3 };
        let life = live(scenario, (number, &name), &luns.build(), other, told);
        let attendants = (0..workers).map(|_| Flag::raised()).collect();
        Self { number, name, life, before: None, attendants, down_until: None }
    }

    /// The name of its target node of the honest sessions.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its target.
    pub(super) fn target(&self) -> &Arc<Target> {
        &self.life.target
    }

    /// The buffers of its worker.
    pub(super) fn pool(&self) -> &WorkerPool {
        &self.life.pool
    }

    /// Whether it takes connections.
    pub(super) fn is_up(&self, now: Instant) -> bool {
        self.before.is_none() && self.down_until.is_none_or(|until| until <= now)
    }

    /// The LUNs of its honest sessions.
    pub(super) fn luns(&self) -> Arc<LunMap> {
        self.luns_of(&self.life)
    }

    /// The same, and before them those of the sessions that it still has while it stops.
    pub(super) fn all_luns(&self) -> impl Iterator<Item = Arc<LunMap>> {
        self.before.iter().chain([&self.life]).map(|life| self.luns_of(life))
    }

    fn luns_of(&self, life: &Life) -> Arc<LunMap> {
        let name = IscsiName::new(&self.name).expect("a name");
        life.target.config().node(&name).expect("the node of the disks").luns().clone()
    }

    /// It begins a new life, with other units where it dies with its process, and takes connections from `until` on.
    pub(super) fn restart(
        &mut self,
        scenario: &Scenario,
        units: &[(Arc<LogicalUnit>, Arc<LogicalUnit>)],
        other: &SimStore,
        told: &Told,
        until: Instant,
    ) -> Arc<Target> {
        let mut luns = LunMap::builder();
        for lun in self.luns().iter() {
            let unit = units.iter().find(|(old, _)| Arc::ptr_eq(old, &lun.unit)).map(|(_, new)| new.clone());
            luns = luns.insert(lun.number, unit.unwrap_or(lun.unit), lun.read_only);
        }
        let life = live(scenario, (self.number, &self.name), &luns.build(), other, told);
        let before = std::mem::replace(&mut self.life, life);
        self.down_until = Some(until);
        // Each worker of the next one looks after its sessions from the start.
        self.attendants.iter().for_each(|(_, waker)| waker.wake_by_ref());
        let target = before.target.clone();
        // One that has not come up yet had no connections: those that are ending belong to the one before it.
        self.before.get_or_insert(before);
        target
    }

    /// Whether connections of what it was before are left.
    pub(super) fn is_stopping(&self) -> bool {
        self.before.is_some()
    }

    /// What it was before is gone.
    pub(super) fn forget(&mut self) {
        self.before = None;
    }

    /// It takes connections.
    pub(super) fn come_up(&mut self) {
        self.down_until = None;
    }

    /// Looks after sessions whose connection has gone, as each worker does. Returns whether anybody looked.
    pub(super) fn attend(&self) -> bool {
        let mut any = false;
        for (flag, waker) in &self.attendants {
            if flag.take() {
                for life in self.before.iter().chain([&self.life]) {
                    life.target.registry().poll_unfinished(waker);
                }
                any = true;
            }
        }
        any
    }

    /// Lets go what it was before, when the last of its connections has gone. Returns whether it did.
    pub(super) fn end_before(&mut self) -> bool {
        self.before.take_if(|before| before.is_over()).is_some()
    }

    /// What must be so at any time. Its sessions may have so many bytes of buffers beyond their budget.
    pub(super) fn check_bounds(&self, beyond: usize) -> Result<(), String> {
        let (connections, most) = (self.life.target.registry().connections(), self.life.target.limits().connections);
        if connections > most {
            return Err(format!("{connections} connections are there, of {most} at most"));
        }
        let budget = self.life.target.buffers();
        if budget.out() > budget.total() + beyond {
            return Err(format!(
                "{} bytes of buffers are out, and {beyond} more than planned may be: {budget:?}",
                budget.out()
            ));
        }
        Ok(())
    }

    /// What must be so when all initiators are gone.
    pub(super) fn check_rest(&self) -> Result<(), String> {
        let registry = self.life.target.registry();
        let (sessions, connections) = (registry.entered(), registry.connections());
        if sessions != 0 || connections != 0 {
            return Err(format!("{sessions} sessions and {connections} connections are left"));
        }
        let (budget, pool) = (self.life.target.buffers(), &self.life.pool);
        if (budget.out(), budget.waiting(), pool.active(), pool.idle()) != (0, 0, 0, 0) {
            return Err(format!("memory of sessions that have gone is left: {budget:?}, {pool:?}"));
        }
        Ok(())
    }
}

/// The target of a server, with these LUNs.
fn live(scenario: &Scenario, (number, name): (usize, &str), luns: &LunMap, other: &SimStore, told: &Told) -> Life {
    let group = |tag| PortalGroup::new(tag).portal(Portal::new(address()).with_iser());
    // Servers of one node are portal groups of it.
    let tag = if scenario.one_port { 1 } else { 1 + number as u16 };
    let mut honest = TargetNode::builder().name(name).portal_group(group(tag));
    for lun in luns.iter() {
        honest = honest.lun(lun.number, lun.unit);
    }
    honest = match scenario.chap {
        Chap::No => honest.open(),
        chap => honest
            .attributes(Attributes { authentication: true, ..Attributes::open() })
            .account(account(chap == Chap::Mutual)),
    };
    let mut config = TargetConfig::builder().node(honest);
    if number == 0 {
        let unit = LogicalUnit::new(Arc::new(other.clone()), Identity::from_seed(OTHER));
        let unit = Arc::new(unit.expect("a geometry that a disk can have"));
        config = config.node(TargetNode::builder().name(OTHER).lun(0, unit).portal_group(group(1)).open());
    }
    let target = Target::new(config.build().expect("a configuration that can be"), scenario.limits.clone());
    told.listen(target.registry());
    Life { pool: target.worker_pool(1), target }
}
