//! Steps 2 to 11: a target, its LUN, its portal, security, discovery, login, the disk, the session, logout.

use std::net::SocketAddr;
use std::sync::Arc;

use examples::ending::{Ending, failed};
use examples::report::bytes;
use initiator_core::{Credentials, DiscoveryConfig, Portal, Session, discover};
use iscsi_proto::chap::ChapSecret;
use iscsi_proto::login::ChapAccount;
use target_core::node::{Attributes, TargetConfig};
use target_core::store::Backstore;

use super::{Stage, name, open_node, portal, serve, session_config, step, tell, verify};

/// Bytes that the story writes and checks.
const VERIFIED: u64 = 64 << 20;

pub(super) fn tell_all(stage: &Stage, store: Arc<dyn Backstore>) -> Result<(), Ending> {
    step(2, "An iSCSI target, its name made up, one portal group");
    let target = name(0)?;
    tell(&target);
    step(3, "The store is its LUN 0");
    tell(format!("{}, vendor ISCSI-RS, product RAM DISK", bytes(store.geometry().bytes())));
    step(4, "A portal");
    let at = portal();
    let config =
        TargetConfig::builder().node(open_node(&target, at, std::slice::from_ref(&store))?).build().map_err(failed)?;
    let (server, at) = serve(config)?;
    tell(at);
    step(5, "The configuration");
    tell(server.target().config());
    server.stop(crate::serve::GRACE);
    security(stage, at, &target, &store)?;
    let config = TargetConfig::builder().node(open_node(&target, at, &[store])?).build().map_err(failed)?;
    let (server, at) = serve(config)?;
    let result = stage.runtime.block_on(use_it(at));
    server.stop(crate::serve::GRACE);
    result
}

/// Step 6: on, with a wrong and a right secret, and off again.
fn security(stage: &Stage, at: SocketAddr, target: &str, store: &Arc<dyn Backstore>) -> Result<(), Ending> {
    step(6, "Security on: CHAP both ways");
    let mut attributes = Attributes::open();
    attributes.authentication = true;
    let account = ChapAccount {
        user: "alice".into(),
        secret: ChapSecret::new("a secret of alice"),
        mutual: Some(("ramdisk".into(), ChapSecret::new("the target's own"))),
    };
    let node = open_node(target, at, std::slice::from_ref(store))?.attributes(attributes).account(account);
    let (server, at) = serve(TargetConfig::builder().node(node).build().map_err(failed)?)?;
    let credentials =
        |user: &str, secret: &str| Some(Credentials { user: user.into(), secret: ChapSecret::new(secret) });
    let mut config = session_config(at, target);
    let result = stage.runtime.block_on(async {
        match Session::connect(config.clone()).await {
            Err(error) => tell(format!("without a secret: {error}")),
            Ok(_) => return Err(failed("the target let an initiator in that has no secret")),
        }
        config.credentials = credentials("alice", "not her secret");
        match Session::connect(config.clone()).await {
            Err(error) => tell(format!("with a wrong one: {error}")),
            Ok(_) => return Err(failed("the target let an initiator in that has a wrong secret")),
        }
        config.credentials = credentials("alice", "a secret of alice");
        config.target_credentials = credentials("ramdisk", "the target's own");
        let session = Session::connect(config.clone()).await.map_err(failed)?;
        tell(format!("with the right ones: logged in, authentication {:?}", session.info().authentication));
        session.logout().await.map_err(failed)
    });
    server.stop(crate::serve::GRACE);
    result?;
    tell("and off: no authentication, any initiator may write");
    Ok(())
}

/// Steps 7 to 11, as an initiator that knows the address alone.
async fn use_it(at: SocketAddr) -> Result<(), Ending> {
    step(7, "From another program: discovery (SendTargets)");
    let portal = Portal { host: at.ip().to_string(), port: at.port() };
    let targets = discover(&portal, &DiscoveryConfig::default()).await.map_err(failed)?;
    for target in &targets {
        for portal in &target.portals {
            tell(format!("{}:{},{} {}", portal.addr, portal.port, portal.tpgt, target.name));
        }
    }
    step(8, "Login to all targets found");
    for target in &targets {
        let session = Session::connect(session_config(at, &target.name)).await.map_err(failed)?;
        tell(format!("{}: logged in", target.name));
        step(9, "The disk");
        let disk = session.disk(0).await.map_err(failed)?;
        let info = disk.info();
        let state = |on: Option<bool>| match on {
            Some(true) => "enabled",
            Some(false) => "disabled",
            None => "unknown",
        };
        tell(format!("Direct-Access {} {} {} ANSI: {}", info.vendor, info.product, info.revision, info.version));
        tell(format!("{} {}-byte logical blocks ({})", info.blocks, info.block_size, bytes(info.size())));
        tell(format!("Write protect is {}", if info.write_protected { "on" } else { "off" }));
        tell(format!(
            "Write cache: {}, read cache: {}, {} DPO or FUA",
            state(info.write_cache),
            state(info.read_cache),
            if info.dpo_fua { "supports" } else { "doesn't support" }
        ));
        verify(&disk, VERIFIED.min(info.size()), 7).await?;
        tell(format!("{} written, read back and compared", bytes(VERIFIED.min(info.size()))));
        step(10, "The session");
        let info = session.info();
        tell(format!("target {}, portal {}, group {}", info.target_name, info.portal, info.tpgt.unwrap_or(0)));
        tell(format!("transport {}, initiator {}", info.transport, info.initiator_name));
        let keys = &info.parameters;
        tell(format!(
            "HeaderDigest {:?}, DataDigest {:?}, MaxRecvDataSegmentLength {}, MaxBurstLength {}, FirstBurstLength {}, InitialR2T {}, ImmediateData {}",
            keys.header_digest,
            keys.data_digest,
            keys.peer_max_recv_data_segment_length,
            keys.max_burst_length,
            keys.first_burst_length,
            if keys.initial_r2t { "Yes" } else { "No" },
            if keys.immediate_data { "Yes" } else { "No" }
        ));
        step(11, "Logout");
        session.logout().await.map_err(failed)?;
        tell(format!("{}: logged out", target.name));
    }
    Ok(())
}
