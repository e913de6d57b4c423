//! Both roles together, over TCP: our initiator against our server.

mod cutting_proxy;
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstore::{Backstore, FileOptions, FileStore, RamStore, StoreCompletion, StoreOp, StoreRequest};
use initiator_core::{Credentials, DiscoveryConfig, Error, RemoteStore, Session, SessionConfig, discover};
use iscsi_memory::Buf;
use iscsi_proto::chap::ChapSecret;
use iscsi_proto::parameters::Digest;
use iscsi_proto::pdu::LoginStatus;
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{PortalGroup, TargetConfig, TargetNode};
use target_core::server::{Server, ServerHandle};

use cutting_proxy::proxy;
use server::{BYTES, NAME, config, held, serve};

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(31).wrapping_add(seed * 7) % 251) as u8).collect()
}

fn credentials(user: &str, secret: &str) -> Option<Credentials> {
    Some(Credentials { user: user.into(), secret: ChapSecret::new(secret) })
}

/// Writers each own a megabyte, and write to it pass after pass while the connection is cut `cuts` times.
async fn every_acknowledged_write_is_there(digests: bool, cuts: u64) {
    let (_server, target, store) = serve(None);
    let (portal, cut) = proxy(target).await;
    let mut config = config(&portal);
    config.reconnect.longest_delay = Duration::from_millis(100);
    config.reconnect.first_delay = Duration::from_millis(10);
    config.reconnect.honour_time2wait = false;
    if digests {
        config.offer.header_digest = vec![Digest::Crc32c];
        config.offer.data_digest = vec![Digest::Crc32c];
    }
    let session = Session::connect(config).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..16u64)
        .map(|i| {
            let (disk, stop, store) = (disk.clone(), stop.clone(), store.clone());
            tokio::spawn(async move {
                // Immediate data alone; one with R2Ts; and several Data-Out sequences.
                let len = [4096, 131_072, 786_432, 512][i as usize % 4];
                let mut pass = 0;
                while !stop.load(Ordering::Relaxed) {
                    pass += 1;
                    let data = pattern(len, pass);
                    disk.write(i << 20, &data).await.unwrap();
                    // Nothing that came of an older connection may lie over what was acknowledged.
                    assert!(held(&store, i << 20, len).await == data, "writer {i}, pass {pass}");
                }
                (i, len, pass)
            })
        })
        .collect();
    for n in 1..=cuts {
        tokio::time::sleep(Duration::from_millis(50)).await;
        // The proxy may not have taken the new connection yet: cut until the session has noticed.
        while session.stats().reconnects < n {
            cut.notify_waiters();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        let (i, len, passes) = writer.await.unwrap();
        let mut back = vec![0; len];
        disk.read(i << 20, &mut back).await.unwrap();
        assert!(back == pattern(len, passes), "writer {i}");
    }
    let stats = session.stats();
    assert!(stats.repeated > 0, "commands were in flight when the connection was cut: {stats:?}");
    session.logout().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_survive_cut_connections() {
    every_acknowledged_write_is_there(false, 12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_survive_cut_connections_with_digests() {
    every_acknowledged_write_is_there(true, 6).await;
}

#[tokio::test]
async fn a_session_that_is_open_again_at_once_reinstates_the_old_one() {
    let (server, portal, _) = serve(None);
    let mut config = config(&portal);
    config.isid = Some([0x80, 1, 2, 3, 4, 5]);
    config.reconnect.deadline = Duration::ZERO;
    let first = Session::connect(config.clone()).await.unwrap();
    let second = Session::connect(config).await.unwrap();
    second.disk(0).await.unwrap().write(0, &[1; 512]).await.unwrap();
    assert_eq!(server.sessions().len(), 1);
    drop(first);
    second.logout().await.unwrap();
}

#[tokio::test]
async fn chap_in_all_its_outcomes() {
    let (_server, portal, _) = serve(Some(("alice", "a-secret-of-alice", "real", "a-secret-of-real")));
    let with = |own: Option<Credentials>, target: Option<Credentials>| SessionConfig {
        credentials: own,
        target_credentials: target,
        ..config(&portal)
    };
    let alice = || credentials("alice", "a-secret-of-alice");
    let session = Session::connect(with(alice(), None)).await.unwrap();
    session.logout().await.unwrap();
    let session = Session::connect(with(alice(), credentials("real", "a-secret-of-real"))).await.unwrap();
    session.disk(0).await.unwrap().write(0, &pattern(4096, 3)).await.unwrap();
    session.logout().await.unwrap();
    // A target's name that is not said may be any.
    Session::connect(with(alice(), credentials("", "a-secret-of-real"))).await.unwrap().logout().await.unwrap();
    for (own, target, part) in [
        (credentials("alice", "another-secret"), None, "does not accept the credentials"),
        (credentials("bob", "a-secret-of-alice"), None, "does not accept the credentials"),
        (None, None, "does not accept the credentials"),
        (alice(), credentials("real", "not-the-secret-of-real"), "the target did not prove who it is"),
        (alice(), credentials("other", "a-secret-of-real"), "the target did not prove who it is"),
    ] {
        let error = Session::connect(with(own, target)).await.unwrap_err();
        assert_eq!(error.login_status(), Some(LoginStatus::AUTHENTICATION_FAILURE), "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let ask = |credentials| DiscoveryConfig { credentials, ..DiscoveryConfig::default() };
    assert_eq!(discover(&portal, &ask(alice())).await.unwrap().targets[0].name, NAME);
    let error = discover(&portal, &ask(credentials("alice", "another-secret"))).await.unwrap_err();
    assert!(matches!(error, Error::LoginRefused { .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_not_there() {
    let (_server, portal, _) = serve(None);
    let other = SessionConfig { target_name: "iqn.2026-11.example:other".into(), ..config(&portal) };
    let error = Session::connect(other).await.unwrap_err();
    assert!(matches!(error, Error::LoginRefused { status: LoginStatus::NOT_FOUND, .. }), "{error:?}");
    let session = Session::connect(config(&portal)).await.unwrap();
    let error = session.disk(1).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchLun { lun: 1, .. }), "{error:?}");
    session.logout().await.unwrap();
}

#[tokio::test]
async fn digests_and_every_operation() {
    let (_server, portal, store) = serve(None);
    let mut config = config(&portal);
    config.offer.header_digest = vec![Digest::Crc32c];
    config.offer.data_digest = vec![Digest::Crc32c];
    let session = Session::connect(config).await.unwrap();
    let keys = session.info().parameters;
    assert_eq!((keys.header_digest, keys.data_digest), (Digest::Crc32c, Digest::Crc32c));
    let disk = session.disk(0).await.unwrap();
    assert_eq!((disk.size(), disk.block_size()), (BYTES, 512));
    for len in [512, 4096, 65_536, 262_144, 3 << 20] {
        let data = pattern(len, len as u64);
        disk.write(1 << 20, &data).await.unwrap();
        let mut back = vec![0; len];
        disk.read(1 << 20, &mut back).await.unwrap();
        assert!(back == data, "{len} bytes");
    }
    disk.flush().await.unwrap();
    disk.unmap(1 << 20, 1 << 20).await.unwrap();
    assert!(held(&store, 1 << 20, 1 << 20).await.iter().all(|byte| *byte == 0));
    disk.write_zeroes(2 << 20, 1 << 20).await.unwrap();
    assert!(held(&store, 2 << 20, 1 << 20).await.iter().all(|byte| *byte == 0));
    session.logout().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_disk_is_a_store_by_both_doors() {
    let (_server, portal, store) = serve(None);
    let session = Session::connect(config(&portal)).await.unwrap();
    let remote: Arc<dyn Backstore> = Arc::new(RemoteStore::new(session.disk(0).await.unwrap()).unwrap());
    assert_eq!(remote.geometry().bytes(), BYTES);
    assert!(remote.abilities().unmap);
    let data = pattern(65_536, 9);
    remote.write(128, &data).await.unwrap();
    assert!(held(&store, 65_536, 65_536).await == data);
    let mut back = vec![0; 65_536];
    remote.read(128, &mut back).await.unwrap();
    assert!(back == data);
    remote.unmap(128, 128).await.unwrap();
    assert!(held(&store, 65_536, 65_536).await.iter().all(|byte| *byte == 0));

    let waker = futures::task::noop_waker();
    let mut queue = remote.clone().open_queue(waker).expect("a remote store has a queue");
    let mut requests: Vec<_> = (0..32u64)
        .map(|n| {
            let mut buf = Buf::zeroed(4096);
            buf.copy_from_slice(&pattern(4096, n));
            StoreRequest { token: n, op: StoreOp::Write { lba: n * 8, buf } }
        })
        .collect();
    queue.submit(&mut requests);
    let mut done: Vec<StoreCompletion> = Vec::new();
    while done.len() < 32 {
        queue.poll(&mut done);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for completion in done {
        completion.result.unwrap();
    }
    for n in 0..32 {
        assert!(held(&store, n * 4096, 4096).await == pattern(4096, n), "request {n}");
    }
    session.logout().await.unwrap();
}

/// A server with this one LUN, at `address`.
fn serve_unit(address: &str, unit: LogicalUnit) -> (ServerHandle, initiator_core::Portal) {
    let portal = target_core::node::Portal::new(address.parse().unwrap());
    let group = PortalGroup::new(1).portal(portal);
    let node = TargetNode::builder().name(NAME).open().portal_group(group).lun(0, Arc::new(unit));
    let server = Server::builder(TargetConfig::builder().node(node).build().unwrap()).workers(1).start().unwrap();
    let portal = initiator_core::Portal { host: "127.0.0.1".into(), port: server.local_addrs()[0].port() };
    (server, portal)
}

#[tokio::test]
async fn another_disk_behind_the_lun_gets_nothing_of_a_handle() {
    let ram = |seed: &str, bytes| {
        let store = Arc::new(RamStore::new(bytes).unwrap());
        (store.clone(), LogicalUnit::new(store, Identity::from_seed(seed)).unwrap())
    };
    for (seed, bytes) in [("another", BYTES), ("first", BYTES / 2)] {
        let (server, portal) = serve_unit("127.0.0.1:0", ram("first", BYTES).1);
        let session = Session::connect(config(&portal)).await.unwrap();
        let disk = session.disk(0).await.unwrap();
        disk.write(0, &pattern(4096, 1)).await.unwrap();
        drop(server);
        let (store, unit) = ram(seed, bytes);
        let (_server, _) = serve_unit(&format!("127.0.0.1:{}", portal.port), unit);
        let error = disk.write(0, &pattern(4096, 2)).await.unwrap_err();
        assert!(matches!(error, Error::OtherDisk { lun: 0, .. }), "{error}");
        assert!(matches!(disk.flush().await, Err(Error::OtherDisk { .. })));
        assert!(held(&store, 0, 4096).await == [0; 4096], "not one byte reached it");
        // Whoever opens it anew means it.
        let anew = session.disk(0).await.unwrap();
        anew.write(0, &pattern(4096, 3)).await.unwrap();
        assert!(matches!(disk.read(0, &mut [0; 512]).await, Err(Error::OtherDisk { .. })));
        session.logout().await.unwrap();
    }
}

#[tokio::test]
async fn writes_that_a_restart_may_have_lost_are_told_and_a_flush_does_not_hide_them() {
    let path = std::env::temp_dir().join(format!("iscsi-lost-writes-{}", std::process::id()));
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let unit = || {
        let store = Arc::new(FileStore::open(&path, &FileOptions::default()).unwrap());
        LogicalUnit::new(store, Identity::from_seed("file")).unwrap()
    };
    let (server, portal) = serve_unit("127.0.0.1:0", unit());
    let session = Session::connect(config(&portal)).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    assert_eq!(disk.info().write_cache, Some(true));
    disk.write(0, &pattern(4096, 1)).await.unwrap();
    disk.flush().await.unwrap();
    disk.write(8192, &pattern(4096, 2)).await.unwrap();
    disk.unmap(65536, 4096).await.unwrap();
    drop(server);
    let (_server, _) = serve_unit(&format!("127.0.0.1:{}", portal.port), unit());
    for _ in 0..2 {
        let error = disk.flush().await.unwrap_err();
        assert!(matches!(error, Error::LostWrites { lun: 0 }), "{error}");
    }
    assert_eq!(disk.take_lost_writes().await.unwrap(), [8192..12288, 65536..69632]);
    disk.write(8192, &pattern(4096, 2)).await.unwrap();
    disk.flush().await.unwrap();
    session.logout().await.unwrap();
    std::fs::remove_file(&path).unwrap();
}
