//! The real target on a port of the system's choice.

use std::sync::Arc;

use backstore::{Backstore, RamStore};
use initiator_core::{Portal, SessionConfig};
use iscsi_proto::chap::ChapSecret;
use iscsi_proto::login::ChapAccount;
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{PortalGroup, TargetConfig, TargetNode};
use target_core::server::{Server, ServerHandle};
use target_core::session::Limits;

pub(crate) const NAME: &str = "iqn.2026-11.example:real";
pub(crate) const BYTES: u64 = 64 << 20;

/// A server with one RAM LUN; with an account, it asks for CHAP both ways.
pub(crate) fn serve(account: Option<(&str, &str, &str, &str)>) -> (ServerHandle, Portal, Arc<RamStore>) {
    serve_with(account, Limits::default())
}

/// The same with limits.
pub(crate) fn serve_with(
    account: Option<(&str, &str, &str, &str)>,
    limits: Limits,
) -> (ServerHandle, Portal, Arc<RamStore>) {
    let store = Arc::new(RamStore::new(BYTES).unwrap());
    let unit = Arc::new(LogicalUnit::new(store.clone(), Identity::from_seed("real")).unwrap());
    // Both transports on one port; without the feature it is a plain one.
    let portal = target_core::node::Portal::new("127.0.0.1:0".parse().unwrap());
    let portal = if cfg!(feature = "iser") { portal.with_iser() } else { portal };
    let mut node =
        TargetNode::builder().name(NAME).open().portal_group(PortalGroup::new(1).portal(portal)).lun(0, unit);
    let mut config = TargetConfig::builder();
    if let Some((user, secret, target_user, target_secret)) = account {
        let account = ChapAccount {
            user: user.into(),
            secret: ChapSecret::new(secret),
            mutual: Some((target_user.into(), ChapSecret::new(target_secret))),
        };
        let attributes =
            target_core::node::Attributes { authentication: true, ..target_core::node::Attributes::open() };
        node = node.attributes(attributes).account(account.clone());
        config = config.discovery_account(account);
    }
    let server = Server::builder(config.node(node).build().unwrap()).workers(2).limits(limits).start().unwrap();
    let portal = Portal { host: "127.0.0.1".into(), port: server.local_addrs()[0].port() };
    (server, portal, store)
}

/// A session to it.
pub(crate) fn config(portal: &Portal) -> SessionConfig {
    SessionConfig::new(portal.clone(), NAME)
}

/// What the store holds, read behind the target's back.
pub(crate) async fn held(store: &RamStore, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    store.read(offset / 512, &mut data).await.unwrap();
    data
}
