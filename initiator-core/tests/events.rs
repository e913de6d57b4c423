//! What a session tells of itself while its target goes, comes back, and changes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use backstore::{Backstore, Geometry, RamStore, StoreError};
use initiator_core::{Error, Events, Session, SessionConfig, SessionEvent, Transfer};
use scsi_proto::AdditionalSense;
use target_core::lu::{Identity, LogicalUnit, UnitAttention};
use target_core::node::{Portal, PortalGroup, TargetConfig, TargetNode};
use target_core::server::{Server, ServerHandle};

const NAME: &str = "iqn.2026-11.example:events";
/// More patience than anything here takes, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

fn serve(address: &str, unit: &Arc<LogicalUnit>) -> (ServerHandle, initiator_core::Portal) {
    let group = PortalGroup::new(1).portal(Portal::new(address.parse().unwrap()));
    let node = TargetNode::builder().name(NAME).open().portal_group(group).lun(0, unit.clone());
    let server = Server::builder(TargetConfig::builder().node(node).build().unwrap()).workers(1).start().unwrap();
    let portal = initiator_core::Portal { host: "127.0.0.1".into(), port: server.local_addrs()[0].port() };
    (server, portal)
}

/// A store that can be made larger while it is in use.
struct Growing(Mutex<Vec<u8>>);

#[async_trait]
impl Backstore for Growing {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(self.0.lock().unwrap().len() as u64)
    }

    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        let at = lba as usize * 512;
        data.copy_from_slice(&self.0.lock().unwrap()[at..at + data.len()]);
        Ok(())
    }

    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        let at = lba as usize * 512;
        self.0.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// The next event for which there is an answer.
async fn told<T>(events: &mut Events, mut wanted: impl FnMut(SessionEvent) -> Option<T>) -> T {
    let wait = async {
        loop {
            let event = events.next().await.expect("the session goes on");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it is told")
}

#[tokio::test]
async fn a_target_that_goes_and_comes_back_is_told_step_by_step() {
    let unit =
        Arc::new(LogicalUnit::new(Arc::new(RamStore::new(1 << 20).unwrap()), Identity::from_seed("events")).unwrap());
    let (server, portal) = serve("127.0.0.1:0", &unit);
    let mut config = SessionConfig::new(portal.clone(), NAME);
    config.reconnect.longest_delay = Duration::from_millis(50);
    let session = Session::connect(config).await.unwrap();
    let mut events = session.events();
    let first = events.next().await;
    assert!(
        matches!(first, Some(SessionEvent::LoggedIn { portal: at, transport: "tcp", before: 0 }) if at.port() == portal.port),
        "{first:?}"
    );
    tokio::task::spawn_blocking(move || server.stop(Duration::from_secs(2))).await.unwrap();
    let within = told(&mut events, |event| match event {
        SessionEvent::LogoutAsked { within } => Some(within),
        _ => None,
    });
    assert_eq!(within.await, Duration::from_secs(2));
    let lost = told(&mut events, |event| match event {
        SessionEvent::Lost { reason, tried_for, .. } => Some((reason, tried_for)),
        _ => None,
    });
    let (reason, tried_for) = lost.await;
    assert!(matches!(reason, Error::Broken { .. }), "{reason}");
    assert!((Duration::from_secs(110)..=Duration::from_secs(120)).contains(&tried_for), "{tried_for:?}");
    let refused = told(&mut events, |event| match event {
        SessionEvent::AttemptFailed { reason, tried_for, .. } => Some((reason, tried_for)),
        _ => None,
    });
    let (reason, left) = refused.await;
    assert!(matches!(reason, Error::Refused { .. }) && left < tried_for, "{reason}, {left:?}");
    let _server = serve(&format!("127.0.0.1:{}", portal.port), &unit);
    told(&mut events, |event| matches!(event, SessionEvent::LoggedIn { before: 1, .. }).then_some(())).await;
    session.logout().await.unwrap();
    told(&mut events, |event| matches!(event, SessionEvent::Ended(Error::LoggedOut)).then_some(())).await;
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_disk_that_grows_is_followed_though_nobody_uses_it() {
    let store = Arc::new(Growing(Mutex::new(vec![0; 1 << 20])));
    let unit = Arc::new(LogicalUnit::new(store.clone(), Identity::from_seed("grows")).unwrap());
    let (_server, portal) = serve("127.0.0.1:0", &unit);
    let session = Session::connect(SessionConfig::new(portal, NAME)).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    let mut events = session.events();
    store.0.lock().unwrap().resize(2 << 20, 0);
    unit.refresh_geometry();
    // A command of the session's own, behind no handle, meets the unit attention.
    session.command(0, &[0; 6], Transfer::None).await.unwrap();
    let attention = told(&mut events, |event| match event {
        SessionEvent::UnitAttention { lun, code } => Some((lun.number(), code)),
        _ => None,
    });
    assert_eq!(attention.await, (Some(0), AdditionalSense::CAPACITY_DATA_HAS_CHANGED));
    let size = told(&mut events, |event| match event {
        SessionEvent::Resized { blocks, block_size, .. } => Some(blocks * u64::from(block_size)),
        _ => None,
    });
    assert_eq!(size.await, 2 << 20);
    assert_eq!(disk.size(), 2 << 20);
    disk.write((2 << 20) - 512, &[7; 512]).await.unwrap();
    unit.post_unit_attention(None, UnitAttention::ReportedLunsChanged);
    disk.read(0, &mut [0; 512]).await.unwrap();
    told(&mut events, |event| matches!(event, SessionEvent::LunsChanged).then_some(())).await;
    session.logout().await.unwrap();
}
