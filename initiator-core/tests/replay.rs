//! Writes that were acknowledged and not flushed, and a target that loses its memory: they are written anew where the
//! caller has asked for that, and never lost without a word.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backstore::{Abilities, Backstore, Geometry, StoreError};
use initiator_core::{Disk, Error, Multipath, MultipathConfig, Portal, Session, SessionConfig};
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{PortalGroup, TargetConfig, TargetNode};
use target_core::server::{Server, ServerHandle};

const NAME: &str = "iqn.2026-11.example:forgetful";
const BYTES: usize = 16 << 20;

/// A disk whose cache goes with its power.
#[derive(Default)]
struct Forgetful {
    cache: Mutex<Vec<u8>>,
    medium: Mutex<Vec<u8>>,
    flushes: AtomicUsize,
    /// The next flush fails, and the cache is dropped.
    fails: AtomicBool,
}

impl Forgetful {
    fn new() -> Arc<Self> {
        Arc::new(Self { cache: vec![0; BYTES].into(), medium: vec![0; BYTES].into(), ..Self::default() })
    }

    fn lose_power(&self) {
        self.cache.lock().unwrap().clone_from(&self.medium.lock().unwrap());
    }

    fn medium(&self, at: usize, len: usize) -> Vec<u8> {
        self.medium.lock().unwrap()[at..at + len].to_vec()
    }
}

#[async_trait]
impl Backstore for Forgetful {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(BYTES as u64)
    }
    fn abilities(&self) -> Abilities {
        Abilities { volatile_cache: true, ..Abilities::default() }
    }
    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        let at = lba as usize * 512;
        data.copy_from_slice(&self.cache.lock().unwrap()[at..at + data.len()]);
        Ok(())
    }
    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        let at = lba as usize * 512;
        self.cache.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
    async fn flush(&self) -> Result<(), StoreError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        if self.fails.swap(false, Ordering::SeqCst) {
            self.lose_power();
            return Err(StoreError::Write(None));
        }
        self.medium.lock().unwrap().clone_from(&self.cache.lock().unwrap());
        Ok(())
    }
}

/// A target that is started anew with the same disk.
struct Target {
    store: Arc<Forgetful>,
    server: Option<ServerHandle>,
    port: u16,
}

impl Target {
    fn new() -> Self {
        let mut target = Self { store: Forgetful::new(), server: None, port: 0 };
        target.start();
        target
    }

    fn start(&mut self) {
        let unit = Arc::new(LogicalUnit::new(self.store.clone(), Identity::from_seed("forgetful")).unwrap());
        let portal = target_core::node::Portal::new(([127, 0, 0, 1], self.port).into());
        let node =
            TargetNode::builder().name(NAME).open().portal_group(PortalGroup::new(1).portal(portal)).lun(0, unit);
        let server = Server::builder(TargetConfig::builder().node(node).build().unwrap()).workers(1).start().unwrap();
        self.port = server.local_addrs()[0].port();
        self.server = Some(server);
    }

    fn lose_power(&mut self) {
        self.server.take().unwrap().stop(Duration::ZERO);
        self.store.lose_power();
        self.start();
    }

    async fn disk(&self) -> (Session, Disk) {
        let portal = Portal { host: "127.0.0.1".into(), port: self.port };
        let mut config = SessionConfig::new(portal, NAME);
        config.reconnect.first_delay = Duration::from_millis(5);
        config.reconnect.longest_delay = Duration::from_millis(50);
        let session = Session::connect(config).await.unwrap();
        let disk = session.disk(0).await.unwrap();
        (session, disk)
    }
}

async fn read(disk: &Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    disk.read(offset, &mut data).await.unwrap();
    data
}

#[tokio::test]
async fn what_was_lost_is_written_anew_and_nobody_hears_of_it() {
    let mut target = Target::new();
    let (session, plain) = target.disk().await;
    let disk = plain.with_replay(8 << 20);
    disk.write(0, &[1; 8192]).await.unwrap();
    disk.flush().await.unwrap();
    disk.write(1024, &[2; 4096]).await.unwrap();
    disk.write(2048, &[3; 1024]).await.unwrap();
    disk.write_same(64 << 10, 64 << 10, &[4; 512]).await.unwrap();
    disk.compare_and_write(1024, &[2; 512], &[5; 512]).await.unwrap();
    disk.write(1 << 20, &vec![6; 5 << 20]).await.unwrap();
    target.lose_power();
    let mut expected = vec![1; 8192];
    expected[1024..5120].fill(2);
    expected[2048..3072].fill(3);
    expected[1024..1536].fill(5);
    assert!(read(&disk, 0, 8192).await == expected);
    // Twice, and before anything else is asked.
    target.lose_power();
    disk.flush().await.unwrap();
    target.lose_power();
    assert!(target.store.medium(0, 8192) == expected);
    assert!(target.store.medium(64 << 10, 64 << 10) == [4; 64 << 10]);
    assert!(target.store.medium(1 << 20, 5 << 20) == vec![6; 5 << 20]);
    assert!(read(&disk, 0, 8192).await == expected, "there is nothing to be written anew");
    session.logout().await.unwrap();
}

#[tokio::test]
async fn what_a_failed_flush_has_lost_is_written_anew_for_the_next() {
    let target = Target::new();
    let (_session, plain) = target.disk().await;
    let disk = plain.with_replay(1 << 20);
    disk.write(0, &[7; 4096]).await.unwrap();
    target.store.fails.store(true, Ordering::SeqCst);
    assert!(matches!(disk.flush().await, Err(Error::Scsi { .. })));
    disk.flush().await.unwrap();
    assert!(target.store.medium(0, 4096) == [7; 4096]);
}

#[tokio::test]
async fn a_loss_that_nobody_has_kept_is_told() {
    let mut target = Target::new();
    let (_session, plain) = target.disk().await;
    let disk = plain.with_replay(1 << 20);
    disk.write(0, &[1; 512]).await.unwrap();
    plain.write(8192, &[2; 512]).await.unwrap();
    target.lose_power();
    for _ in 0..2 {
        assert!(matches!(disk.write(0, &[3; 512]).await, Err(Error::LostWrites { lun: 0 })));
        assert!(matches!(plain.flush().await, Err(Error::LostWrites { lun: 0 })));
    }
    assert_eq!(disk.take_lost_writes().await.unwrap(), vec![8192..8704; 1]);
    disk.flush().await.unwrap();
    assert!(target.store.medium(0, 512) == [1; 512], "what was kept was written anew");
}

#[tokio::test]
async fn what_is_kept_is_bounded_by_flushes() {
    let target = Target::new();
    let (_session, plain) = target.disk().await;
    // What one command moves is the least.
    let disk = plain.with_replay(0);
    for at in 0..12 {
        disk.write(at << 20, &vec![at as u8; 1 << 20]).await.unwrap();
    }
    let flushes = target.store.flushes.load(Ordering::SeqCst);
    assert!(flushes == 3, "{flushes} flushes for 12 MiB of which 4 are kept");
    let roomy = plain.with_replay(64 << 20);
    for at in 0..12 {
        roomy.write(at << 20, &vec![at as u8; 1 << 20]).await.unwrap();
    }
    assert_eq!(target.store.flushes.load(Ordering::SeqCst), flushes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_do_not_notice_that_the_target_loses_its_memory() {
    const WRITERS: u64 = 24;
    const EACH: u64 = 64 << 10;
    let mut target = Target::new();
    let (session, plain) = target.disk().await;
    let disk = plain.with_replay(8 << 20);
    let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let (disk, stop, rounds) = (disk.clone(), stop.clone(), rounds.clone());
            tokio::spawn(async move {
                let mut round = 0_u64;
                while !stop.load(Ordering::SeqCst) {
                    round += 1;
                    let (offset, len) = (number * EACH + round % 8 * 4096, (1 + round % 5) as usize * 4096);
                    let value = (round % 250) as u8 + 1;
                    disk.write(offset, &vec![value; len]).await.unwrap();
                    assert!(read(&disk, offset, len).await == vec![value; len], "writer {number}, round {round}");
                    rounds.fetch_add(1, Ordering::SeqCst);
                    if round % 7 == number % 7 {
                        disk.flush().await.unwrap();
                    }
                }
                read(&disk, number * EACH, EACH as usize).await
            })
        })
        .collect();
    for times in 1..=8 {
        // Each of them has written something since the last time.
        let before = rounds.load(Ordering::SeqCst);
        while rounds.load(Ordering::SeqCst) < before + 2 * WRITERS as usize || session.stats().reconnects < times - 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        target.lose_power();
    }
    stop.store(true, Ordering::SeqCst);
    let mut held = Vec::new();
    for writer in writers {
        held.push(writer.await.unwrap());
    }
    disk.flush().await.unwrap();
    for (number, data) in (0..).zip(held) {
        assert!(target.store.medium(number * EACH as usize, EACH as usize) == data, "writer {number}");
    }
}

#[tokio::test]
async fn what_is_lost_is_told_whichever_path_it_was_written_by() {
    let mut target = Target::new();
    let portal = Portal { host: "127.0.0.1".into(), port: target.port };
    let config = MultipathConfig { retry: Duration::from_millis(20), ..MultipathConfig::default() };
    let way = (SessionConfig::new(portal, NAME), 0);
    let disk = Multipath::open(vec![way.clone(), way], config).await.unwrap();
    disk.write(0, &[1; 4096]).await.unwrap();
    disk.flush().await.unwrap();
    // One goes by each path.
    disk.write(1024, &[2; 1024]).await.unwrap();
    disk.write(8192, &[3; 512]).await.unwrap();
    target.lose_power();
    let mut lost = Vec::new();
    let mut data = [9; 4096];
    // A path may tell before the other is found lost: what that had acknowledged is told then.
    while let Err(error) = disk.read(0, &mut data).await {
        assert!(matches!(error, Error::LostWrites { .. }), "{error}");
        lost.extend(disk.take_lost_writes());
    }
    lost.sort_unstable_by_key(|range| range.start);
    assert_eq!(lost, [1024..2048, 8192..8704]);
    assert!(data == [1; 4096] && disk.power_ons() > 0);
    disk.write(1024, &[4; 512]).await.unwrap();
    disk.flush().await.unwrap();
    assert!(target.store.medium(1024, 512) == [4; 512]);
    disk.logout().await;
}
