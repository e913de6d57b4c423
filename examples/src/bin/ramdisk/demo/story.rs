//! Steps 2 to 11: a target, its LUN, its portal, security, discovery, login, the disk, the session, logout.

use std::net::SocketAddr;
use std::sync::Arc;

use backstore::Backstore;
use examples::carrier::carrier;
use examples::ending::{Ending, failed};
use examples::report::bytes;
use initiator_core::{Authentication, Credentials, DiscoveryConfig, Portal, Session, SessionInfo, Transport, discover};
use iscsi_proto::chap::ChapSecret;
use iscsi_proto::login::ChapAccount;
use target_core::node::{Attributes, TargetConfig};
use target_core::server::ServerHandle;

use super::{Stage, check_pattern, name, open_node, portal, serve, session_config, step, tell, write_pattern};

/// Bytes that the story writes and checks.
const VERIFIED: u64 = 64 << 20;
/// The seed of what it writes over TCP.
pub(super) const SEED: u64 = 7;

/// What the second half of the story finds: a running target with data on its disk.
pub(super) struct Scene {
    pub(super) server: ServerHandle,
    pub(super) at: SocketAddr,
    pub(super) target: String,
    /// Bytes of the disk that hold the pattern of [`SEED`].
    pub(super) written: u64,
}

pub(super) fn tell_all(stage: &Stage, store: Arc<dyn Backstore>) -> Result<Scene, Ending> {
    step(2, "An iSCSI target, its name made up, one portal group")?;
    let target = name(0)?;
    tell(&target)?;
    step(3, "The store is its LUN 0")?;
    tell(format!("{}, vendor ISCSI-RS, product RAM DISK", bytes(store.geometry().bytes())))?;
    step(4, "A portal")?;
    let at = portal();
    let config =
        TargetConfig::builder().node(open_node(&target, at, std::slice::from_ref(&store))?).build().map_err(failed)?;
    let (server, at) = serve(config)?;
    tell(at)?;
    step(5, "The configuration")?;
    tell(server.target().config())?;
    server.stop(crate::serve::GRACE);
    security(stage, at, &target, &store)?;
    let config =
        TargetConfig::builder().node(open_node(&target, at, std::slice::from_ref(&store))?).build().map_err(failed)?;
    let (server, at) = serve(config)?;
    let written = stage.runtime.block_on(use_it(at))?;
    Ok(Scene { server, at, target, written })
}

/// Step 6: on, with a wrong and a right secret, and off again.
fn security(stage: &Stage, at: SocketAddr, target: &str, store: &Arc<dyn Backstore>) -> Result<(), Ending> {
    step(6, "Security on: CHAP both ways")?;
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
    let mut config = session_config(at, target, Transport::Tcp);
    let result = stage.runtime.block_on(async {
        match Session::connect(config.clone()).await {
            Err(error) => tell(format!("without a secret: {error}"))?,
            Ok(_) => return Err(failed("the target let an initiator in that has no secret")),
        }
        config.credentials = credentials("alice", "not her secret");
        match Session::connect(config.clone()).await {
            Err(error) => tell(format!("with a wrong one: {error}"))?,
            Ok(_) => return Err(failed("the target let an initiator in that has a wrong secret")),
        }
        config.credentials = credentials("alice", "a secret of alice");
        config.target_credentials = credentials("ramdisk", "the target's own");
        let session = Session::connect(config.clone()).await.map_err(failed)?;
        if session.info().authentication != Authentication::MutualChap {
            return Err(failed("the target let an initiator in without proving itself"));
        }
        tell("with the right ones: logged in, and each side has proved itself")?;
        session.logout().await.map_err(failed)
    });
    server.stop(crate::serve::GRACE);
    result?;
    tell("and off: no authentication, any initiator may write")?;
    Ok(())
}

/// Steps 7 to 11, as an initiator that knows the address alone. Gives the bytes that it wrote to the disk.
async fn use_it(at: SocketAddr) -> Result<u64, Ending> {
    let mut written = 0;
    step(7, "From another program: discovery (SendTargets)")?;
    let portal = Portal { host: at.ip().to_string(), port: at.port() };
    let targets = discover(&portal, &DiscoveryConfig::default()).await.map_err(failed)?.targets;
    for target in &targets {
        for portal in &target.portals {
            tell(format!("{}:{},{} {}", portal.addr, portal.port, portal.tpgt, target.name))?;
        }
    }
    step(8, "Login to all targets found")?;
    for target in &targets {
        let session = Session::connect(session_config(at, &target.name, Transport::Tcp)).await.map_err(failed)?;
        tell(format!("{}: logged in", target.name))?;
        step(9, "The disk")?;
        let disk = session.disk(0).await.map_err(failed)?;
        let info = disk.info();
        let state = |on: Option<bool>| match on {
            Some(true) => "enabled",
            Some(false) => "disabled",
            None => "unknown",
        };
        tell(format!("Direct-Access {} {} {} ANSI: {}", info.vendor, info.product, info.revision, info.version))?;
        tell(format!("{} {}-byte logical blocks ({})", info.blocks, info.block_size, bytes(info.size())))?;
        tell(format!("Write protect is {}", if info.write_protected { "on" } else { "off" }))?;
        tell(format!(
            "Write cache: {}, read cache: {}, {} DPO or FUA",
            state(info.write_cache),
            state(info.read_cache),
            if info.dpo_fua { "supports" } else { "doesn't support" }
        ))?;
        written = VERIFIED.min(info.size());
        write_pattern(&disk, written, SEED).await?;
        check_pattern(&disk, written, SEED).await?;
        tell(format!("{} written, read back and compared", bytes(written)))?;
        step(10, "The session")?;
        tell_session(&session.info())?;
        let keys = session.info().parameters;
        tell(format!("HeaderDigest {:?}, DataDigest {:?}", keys.header_digest, keys.data_digest))?;
        tell(format!("MaxRecvDataSegmentLength {}", keys.peer_max_recv_data_segment_length))?;
        step(11, "Logout")?;
        session.logout().await.map_err(failed)?;
        tell(format!("{}: logged out", target.name))?;
    }
    Ok(written)
}

/// What both transports have.
pub(super) fn tell_session(info: &SessionInfo) -> Result<(), Ending> {
    tell(format!("target {}, portal {}, group {}", info.target_name, info.portal, info.tpgt.unwrap_or(0)))?;
    let transport = carrier(info.transport, info.provider, info.device.as_deref());
    tell(format!("transport {transport}, initiator {}", info.initiator_name))?;
    let keys = &info.parameters;
    let yes = |on: bool| if on { "Yes" } else { "No" };
    tell(format!(
        "InitialR2T {}, ImmediateData {}, FirstBurstLength {}, MaxBurstLength {}",
        yes(keys.initial_r2t),
        yes(keys.immediate_data),
        keys.first_burst_length,
        keys.max_burst_length
    ))
}
