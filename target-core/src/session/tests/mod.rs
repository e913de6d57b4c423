//! A scripted initiator at PDU level against [`TargetConnection`](super::TargetConnection), in memory, with time by
//! hand.

mod crossings;
mod discovery;
mod flushes;
mod functions;
mod gates;
mod login;
mod luns;
mod numbering;
mod peer;
mod servers;
mod terminated;
mod upkeep;
mod write_data;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use std::sync::Mutex;

use async_trait::async_trait;

use super::{Limits, Target};
use crate::lu::{Identity, LogicalUnit};
use crate::node::{Acl, TargetConfig, TargetNode, TargetNodeBuilder};
use backstore::{Backstore, Geometry, StoreError};

pub(super) const TARGET: &str = "iqn.2026-11.example:disk";
pub(super) const ME: &str = "iqn.2026-11.example:me";
pub(super) const OTHER: &str = "iqn.2026-11.example:other";

/// Blocks in memory behind a gate: while it is shut, operations wait.
#[derive(Default)]
pub(super) struct Gated {
    bytes: Mutex<Vec<u8>>,
    gate: Mutex<(bool, Vec<Waker>)>,
}

impl Gated {
    fn new() -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(vec![0; 1 << 20]), gate: Mutex::default() })
    }

    pub(super) fn shut(&self) {
        self.gate.lock().unwrap().0 = true;
    }

    pub(super) fn open(&self) {
        let wakers = {
            let mut gate = self.gate.lock().unwrap();
            gate.0 = false;
            core::mem::take(&mut gate.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    async fn pass(&self) {
        poll_fn(|cx| {
            let mut gate = self.gate.lock().unwrap();
            if gate.0 {
                gate.1.push(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }
}

#[async_trait]
impl Backstore for Gated {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(1 << 20)
    }
    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        self.pass().await;
        let at = lba as usize * 512;
        data.copy_from_slice(&self.bytes.lock().unwrap()[at..at + data.len()]);
        Ok(())
    }
    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        self.pass().await;
        let at = lba as usize * 512;
        self.bytes.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// A target with one node of two LUNs, and their stores.
pub(super) struct World {
    pub(super) target: Arc<Target>,
    pub(super) stores: [Arc<Gated>; 2],
    pub(super) units: [Arc<LogicalUnit>; 2],
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Limits::default(), |node| node)
    }

    pub(super) fn with(limits: Limits, node: impl Fn(TargetNodeBuilder) -> TargetNodeBuilder) -> Self {
        let stores = [Gated::new(), Gated::new()];
        let unit = |number: usize| {
            let identity = Identity::from_seed(&std::format!("disk {number}"));
            Arc::new(LogicalUnit::new(stores[number].clone(), identity).unwrap())
        };
        let units = [unit(0), unit(1)];
        Self { target: Self::serve(&units, limits, node), stores, units }
    }

    /// Another server of the same logical units.
    pub(super) fn beside(&self, node: impl Fn(TargetNodeBuilder) -> TargetNodeBuilder) -> Self {
        let target = Self::serve(&self.units, self.target.limits().clone(), node);
        Self { target, stores: self.stores.clone(), units: self.units.clone() }
    }

    fn serve(
        units: &[Arc<LogicalUnit>],
        limits: Limits,
        node: impl Fn(TargetNodeBuilder) -> TargetNodeBuilder,
    ) -> Arc<Target> {
        let mut builder = TargetNode::builder().name(TARGET).alias("test").portal(peer::LOCAL.parse().unwrap()).open();
        for (number, unit) in units.iter().enumerate() {
            builder = builder.lun(number as u16, unit.clone());
        }
        let hidden = TargetNode::builder()
            .name("iqn.2026-11.example:hidden")
            .portal("127.0.0.1:3262".parse().unwrap())
            .attributes(crate::node::Attributes { authentication: false, ..crate::node::Attributes::default() })
            .acl(Acl::new(OTHER));
        let config = TargetConfig::builder().node(node(builder)).node(hidden).build().unwrap();
        Target::new(config, limits)
    }

    pub(super) fn connect(&self) -> peer::Peer {
        peer::Peer::new(self.target.clone())
    }

    /// A peer that is logged in as `initiator`.
    pub(super) fn logged_in(&self, initiator: &str) -> peer::Peer {
        let mut peer = self.connect();
        peer.log_in(initiator, TARGET);
        peer
    }
}

pub(super) fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
    let lines: Vec<String> = pairs.iter().map(|(key, value)| std::format!("{key}={value}\0")).collect();
    lines.concat().into_bytes()
}
