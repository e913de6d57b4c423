//! A target with one disk, whose connections are driven one by one: by the fuzz targets, and in the tests of what a session survives.

use std::net::SocketAddr;
use std::sync::Arc;

use iscsi_proto::datamover::Datamover;
use iscsi_proto::time::Instant;
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{Portal, PortalGroup, TargetConfig, TargetNode};
use target_core::registry::Endpoints;
use target_core::session::{Limits, Target, TargetConnection};

use crate::rng::Rng;
use crate::store::{SimStore, StorePlan};

/// The target and its disk.
#[derive(Debug, Clone)]
pub struct Served {
    /// The target.
    pub target: Arc<Target>,
    /// LUN 0.
    pub store: SimStore,
}

impl Served {
    /// A target of this name, open to all initiators, over TCP and iSER.
    ///
    /// # Panics
    /// If no target can be like that.
    #[must_use]
    pub fn new(name: &str, plan: StorePlan, limits: Limits) -> Self {
        let store = SimStore::new(plan, Rng::new(0, 2));
        let unit = LogicalUnit::new(Arc::new(store.clone()), Identity::from_seed(name)).expect("a disk");
        let group = PortalGroup::new(1).portal(Portal::new(address()).with_iser());
        let node = TargetNode::builder().name(name).lun(0, Arc::new(unit)).portal_group(group).open();
        let config = TargetConfig::builder().node(node).build().expect("a configuration");
        Self { target: Target::new(config, limits), store }
    }

    /// A new connection at the start of time.
    ///
    /// # Panics
    /// If there are too many.
    #[must_use]
    pub fn accept<M: Datamover>(&self, mover: M) -> TargetConnection<M> {
        self.accept_at(mover, Instant::ZERO)
    }

    /// A new connection.
    ///
    /// # Panics
    /// If there are too many.
    #[must_use]
    pub fn accept_at<M: Datamover>(&self, mover: M, now: Instant) -> TargetConnection<M> {
        let endpoints = Endpoints { local: address(), peer: ([127, 0, 0, 1], 4711).into() };
        TargetConnection::new(self.target.clone(), mover, endpoints, [7; 64], now).expect("room")
    }

    /// All connections are gone, and nothing is left of them.
    ///
    /// # Panics
    /// If something is.
    pub fn check_over(&self) {
        let registry = self.target.registry();
        assert_eq!((registry.connections(), registry.sessions().len()), (0, 0), "no connection and no session is left");
        assert_eq!(self.store.under_way().0, 0, "no store operation is left");
    }
}

fn address() -> SocketAddr {
    ([127, 0, 0, 1], 3260).into()
}
