//! A disk by two paths that flap under verified I/O, and what becomes of it when none is left.

mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use initiator_core::{Access, Error, Multipath, MultipathConfig, PathPolicy, Portal, SessionConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use server::{BYTES, config, held, serve};

/// More patience than anything here takes, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(31).wrapping_add(seed * 7) % 251) as u8).collect()
}

/// A way to the target that can be down: connections are cut, and new ones end at once.
#[derive(Debug, Default)]
struct Way {
    down: AtomicBool,
    cut: Notify,
}

impl Way {
    async fn to(target: Portal) -> (Portal, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let portal = Portal { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
        let way = Arc::new(Self::default());
        let own = way.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                if own.down.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(mut far) = TcpStream::connect((target.host.as_str(), target.port)).await else { continue };
                let way = own.clone();
                tokio::spawn(async move {
                    let cut = way.cut.notified();
                    tokio::pin!(cut);
                    cut.as_mut().enable();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = cut => {}
                    }
                });
            }
        });
        (portal, way)
    }

    fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
        if down {
            self.cut.notify_waiters();
        }
    }
}

fn quick(policy: PathPolicy) -> MultipathConfig {
    MultipathConfig {
        policy,
        retry: Duration::from_millis(20),
        doubt: Duration::from_millis(200),
        ..MultipathConfig::default()
    }
}

/// Waits until a path stands as it should.
async fn until(disk: &Multipath, path: usize, up: bool) {
    let wait = async {
        while disk.paths()[path].up != up {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("path {path}: {:?}", disk.paths()));
}

async fn flaps_cost_no_error(policy: PathPolicy) {
    let (server, target, store) = serve(None);
    let (first, second) = (Way::to(target.clone()).await, Way::to(target).await);
    let ways = [&first, &second].map(|(portal, _)| (config(portal), 0));
    let disk = Multipath::open(ways.into(), quick(policy)).await.unwrap();
    assert_eq!((disk.size(), disk.block_size(), server.sessions().len()), (BYTES, 512, 2));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8u64)
        .map(|i| {
            let (disk, stop, store) = (disk.clone(), stop.clone(), store.clone());
            tokio::spawn(async move {
                let len = [4096, 131_072, 786_432, 512][i as usize % 4];
                let (mut pass, mut back) = (0, vec![0; len]);
                while !stop.load(Ordering::Relaxed) {
                    pass += 1;
                    let data = pattern(len, pass);
                    disk.write(i << 20, &data).await.unwrap();
                    // Nothing of a lost path may lie over what was acknowledged.
                    assert!(held(&store, i << 20, len).await == data, "writer {i}, pass {pass}");
                    disk.read(i << 20, &mut back).await.unwrap();
                    assert!(back == data, "writer {i} reads, pass {pass}");
                }
                (i, len, pass)
            })
        })
        .collect();
    for n in 0..6 {
        let (path, way) = [(0, &first.1), (1, &second.1)][n % 2];
        tokio::time::sleep(Duration::from_millis(50)).await;
        way.set_down(true);
        until(&disk, path, false).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        way.set_down(false);
        until(&disk, path, true).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        let (i, len, pass) = writer.await.unwrap();
        assert!(pass > 0 && held(&store, i << 20, len).await == pattern(len, pass), "writer {i}");
    }
    assert!(disk.paths().iter().all(|path| path.losses >= 3), "{:?}", disk.paths());
    disk.logout().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn six_flaps_cost_no_error_round_robin() {
    flaps_cost_no_error(PathPolicy::RoundRobin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn six_flaps_cost_no_error_least_queue() {
    flaps_cost_no_error(PathPolicy::LeastQueue).await;
}

#[tokio::test]
async fn both_paths_are_used_and_overlapping_writes_keep_their_order() {
    let (_server, target, store) = serve(None);
    let disk = Multipath::open(vec![(config(&target), 0), (config(&target), 0)], quick(PathPolicy::RoundRobin)).await;
    let disk = disk.unwrap();
    // Each write overlaps the one before it: the last one is what is there.
    for round in 0..50u64 {
        let writes = (0..8).map(|n| {
            let disk = disk.clone();
            async move { disk.write(0, &pattern(65_536, round * 8 + n)).await.unwrap() }
        });
        futures::future::join_all(writes).await;
        assert!(held(&store, 0, 65_536).await == pattern(65_536, round * 8 + 7), "round {round}");
    }
    disk.flush().await.unwrap();
    let mut buf = iscsi_memory::Buf::zeroed(4096);
    buf.copy_from_slice(&pattern(4096, 77));
    let (buf, written) = disk.write_buf(8192, buf).await;
    assert!(written.is_ok() && buf[..] == pattern(4096, 77), "the buffer is back as it was");
    assert!(held(&store, 8192, 4096).await == pattern(4096, 77));
    disk.write_zeroes(0, 4096).await.unwrap();
    disk.unmap(4096, 4096).await.unwrap();
    assert!(held(&store, 0, 8192).await == [0; 8192]);
    disk.compare_and_write(0, &[0; 512], &[5; 512]).await.unwrap();
    assert!(matches!(disk.compare_and_write(0, &[0; 512], &[6; 512]).await, Err(Error::Miscompare(0))));
    disk.logout().await;
}

#[tokio::test]
async fn who_waits_for_a_change_hears_of_a_path_that_is_lost_and_back() {
    let (_server, target, _) = serve(None);
    let (first, second) = (Way::to(target.clone()).await, Way::to(target).await);
    let ways = [&first, &second].map(|(portal, _)| (config(portal), 0));
    let disk = Multipath::open(ways.into(), quick(PathPolicy::RoundRobin)).await.unwrap();
    // Nothing but the change itself wakes the one who waits.
    let told = async |up: bool| {
        loop {
            let changed = disk.changed();
            if disk.paths()[1].up == up {
                return;
            }
            tokio::time::timeout(PATIENCE, changed).await.expect("the change is told");
        }
    };
    second.1.set_down(true);
    told(false).await;
    second.1.set_down(false);
    told(true).await;
    assert_eq!((disk.paths()[1].losses, disk.power_ons()), (1, 0));
    disk.logout().await;
}

#[tokio::test]
async fn two_disks_are_not_one() {
    let (_one, first, _) = serve(None);
    let unit = target_core::lu::LogicalUnit::new(
        Arc::new(backstore::RamStore::new(BYTES).unwrap()),
        target_core::lu::Identity::from_seed("another"),
    );
    let group =
        target_core::node::PortalGroup::new(1).portal(target_core::node::Portal::new("127.0.0.1:0".parse().unwrap()));
    let node = target_core::node::TargetNode::builder()
        .name(server::NAME)
        .open()
        .portal_group(group)
        .lun(0, Arc::new(unit.unwrap()));
    let target = target_core::node::TargetConfig::builder().node(node).build().unwrap();
    let other = target_core::server::Server::builder(target).workers(1).start().unwrap();
    let second = Portal { host: "127.0.0.1".into(), port: other.local_addrs()[0].port() };
    let opened = Multipath::open(vec![(config(&first), 0), (config(&second), 0)], MultipathConfig::default()).await;
    assert!(matches!(opened, Err(Error::OtherDisk { .. })), "{opened:?}");
}

#[tokio::test]
async fn without_a_path_an_operation_waits_its_time_and_goes_on_when_one_is_back() {
    let (_server, target, store) = serve(None);
    let (portal, way) = Way::to(target).await;
    let limits = MultipathConfig { no_path: Duration::from_millis(200), ..quick(PathPolicy::RoundRobin) };
    let session = SessionConfig { ..config(&portal) };
    let disk = Multipath::open(vec![(session, 0)], limits).await.unwrap();
    way.set_down(true);
    let error = disk.write(0, &[1; 512]).await.unwrap_err();
    assert!(matches!(error, Error::NoPath { .. }) && error.is_transport(), "{error}");
    way.set_down(false);
    until(&disk, 0, true).await;
    disk.write(0, &[2; 512]).await.unwrap();
    assert!(held(&store, 0, 512).await == [2; 512]);
    let away = Multipath::open(vec![], MultipathConfig::default()).await;
    assert!(matches!(away, Err(Error::NoPath { .. })));
    disk.logout().await;
}

#[tokio::test]
async fn paths_through_two_target_port_groups_are_both_used() {
    use target_core::node::{PortalGroup, TargetConfig, TargetNode};
    let store = Arc::new(backstore::RamStore::new(BYTES).unwrap());
    let unit = target_core::lu::LogicalUnit::new(store, target_core::lu::Identity::from_seed("grouped")).unwrap();
    let group = |tag| {
        let portal = target_core::node::Portal::new(format!("127.0.0.{tag}:0").parse().unwrap());
        PortalGroup::new(tag).with_target_port_group(tag + 10).portal(portal)
    };
    let node = TargetNode::builder().name(server::NAME).open().portal_group(group(1)).portal_group(group(2));
    let target = TargetConfig::builder().node(node.lun(0, Arc::new(unit))).build().unwrap();
    let server = target_core::server::Server::builder(target).workers(1).start().unwrap();
    let ways = server.local_addrs().iter().map(|address| {
        let portal = Portal { host: address.ip().to_string(), port: address.port() };
        (config(&portal), 0)
    });
    let disk = Multipath::open(ways.collect(), quick(PathPolicy::RoundRobin)).await.unwrap();
    let before = [disk.paths()[0].clone(), disk.paths()[1].clone()];
    assert!(before.iter().all(|path| path.up && path.access == Access::Optimized), "{before:?}");
    for round in 0..8u64 {
        disk.write(round * 4096, &pattern(4096, round)).await.unwrap();
    }
    let counted = async {
        while server.statistics().writes < 8 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.unwrap();
    let writes: Vec<u64> = server.sessions().iter().map(|session| session.statistics.writes).collect();
    assert_eq!(writes, [4, 4]);
    disk.logout().await;
}
