//! Operations that nobody waits for any more, dropped or overdue: nothing of them is seen over what came later.

mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backstore::{Backstore, Geometry, RamStore, StoreError};
use futures::future::{Either, select};
use initiator_core::{Disk, Error, Session, SessionConfig};
use iscsi_memory::Buf;
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{PortalGroup, TargetConfig, TargetNode};
use target_core::server::{Server, ServerHandle};

use server::{NAME, config, held, serve};

/// A store whose writes are held back when it is told so.
struct Held {
    ram: RamStore,
    holding: AtomicBool,
    go_on: tokio::sync::Semaphore,
    began: tokio::sync::Semaphore,
}

#[async_trait]
impl Backstore for Held {
    fn geometry(&self) -> Geometry {
        self.ram.geometry()
    }
    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        self.ram.read(lba, data).await
    }
    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        if self.holding.swap(false, Ordering::SeqCst) {
            self.began.add_permits(1);
            self.go_on.acquire().await.unwrap().forget();
        }
        self.ram.write(lba, data).await
    }
}

async fn held_disk() -> (ServerHandle, Arc<Held>, Session, Disk) {
    let store = Arc::new(Held {
        ram: RamStore::new(1 << 20).unwrap(),
        holding: AtomicBool::new(false),
        go_on: tokio::sync::Semaphore::new(0),
        began: tokio::sync::Semaphore::new(0),
    });
    let unit = Arc::new(LogicalUnit::new(store.clone(), Identity::from_seed("held")).unwrap());
    let portal = target_core::node::Portal::new("127.0.0.1:0".parse().unwrap());
    let node = TargetNode::builder().name(NAME).open().portal_group(PortalGroup::new(1).portal(portal)).lun(0, unit);
    let server = Server::builder(TargetConfig::builder().node(node).build().unwrap()).workers(1).start().unwrap();
    let portal = initiator_core::Portal { host: "127.0.0.1".into(), port: server.local_addrs()[0].port() };
    let session = Session::connect(config(&portal)).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    (server, store, session, disk)
}

#[tokio::test]
async fn an_overdue_write_ends_within_its_limit_and_lands_before_a_later_one() {
    let (_server, store, session, disk) = held_disk().await;
    let limit = Duration::from_millis(250);
    let hasty = disk.with_timeout(limit);
    assert_eq!((hasty.timeout(), disk.timeout()), (Some(limit), None));
    hasty.write(0, &[1; 1024]).await.unwrap();
    store.holding.store(true, Ordering::SeqCst);
    let first = tokio::spawn({
        let hasty = hasty.clone();
        async move {
            let began = tokio::time::Instant::now();
            let result = hasty.write(0, &[2; 1024]).await;
            (result, began.elapsed())
        }
    });
    store.began.acquire().await.unwrap().forget();
    // From here on time passes where nothing else is to be done: none of it is that of a busy machine.
    tokio::time::pause();
    let (result, took) = first.await.unwrap();
    tokio::time::resume();
    assert!(matches!(result, Err(Error::TimedOut { lun: 0, after }) if after == limit), "{result:?}");
    assert!(took >= limit, "{took:?}");
    let later = tokio::spawn({
        let disk = disk.clone();
        async move { disk.write(512, &[3; 1024]).await }
    });
    // What touches other blocks goes on meanwhile; the target holds back a few beside those of the write.
    disk.write(512 << 10, &[4; 512]).await.unwrap();
    assert!(!later.is_finished());
    store.go_on.add_permits(1);
    later.await.unwrap().unwrap();
    let mut back = [0; 2048];
    disk.read(0, &mut back).await.unwrap();
    assert!(back[..512] == [2; 512] || back[..512] == [1; 512]);
    assert_eq!(back[512..1536], [3; 1024]);
    session.logout().await.unwrap();
}

#[tokio::test]
async fn an_operation_that_waits_for_a_connection_ends_within_its_limit() {
    let (server, _store, _session, disk) = held_disk().await;
    let limit = Duration::from_millis(700);
    let hasty = disk.with_timeout(limit);
    server.stop(Duration::ZERO);
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let (buf, result) = hasty.write_buf(0, Buf::zeroed(512)).await;
    assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
    assert!(buf.is_empty());
    let took = began.elapsed();
    assert!(took >= limit && took <= limit + Duration::from_millis(1), "{took:?}");
}

#[test]
fn a_limit_needs_no_runtime_of_the_callers() {
    let lasting = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (_server, store, _session, disk) = lasting.block_on(held_disk());
    let hasty = disk.with_timeout(Duration::from_millis(20));
    store.holding.store(true, Ordering::SeqCst);
    let result = futures::executor::block_on(hasty.write(0, &[2; 512]));
    assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
    store.go_on.add_permits(1);
    futures::executor::block_on(disk.write(0, &[3; 512])).unwrap();
    drop(lasting);
    let result = futures::executor::block_on(hasty.write(0, &[4; 512]));
    assert!(matches!(result, Err(Error::RuntimeGone)), "{result:?}");
}

const TASKS: u64 = 256;
const OPERATIONS: u64 = 40;
/// Blocks of each task.
const BLOCKS: u64 = 16;

fn fill(data: &mut [u8], first: u64) {
    for (value, block) in (first..).zip(data.chunks_mut(512)) {
        block.chunks_mut(8).for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
    }
}

fn values(data: &[u8]) -> impl Iterator<Item = u64> {
    data.chunks(512).map(|block| {
        let value = u64::from_le_bytes(*block.first_chunk().unwrap());
        assert!(block.chunks(8).all(|word| word == value.to_le_bytes()), "a block of two writes");
        value
    })
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One task's blocks: what each may hold.
struct Model(Vec<Vec<u64>>);

impl Model {
    fn wrote(&mut self, at: u64, blocks: u64, first: u64) {
        for (value, block) in (first..).zip(&mut self.0[at as usize..(at + blocks) as usize]) {
            *block = vec![value];
        }
    }

    fn may_have_written(&mut self, at: u64, blocks: u64, first: u64) {
        for (value, block) in (first..).zip(&mut self.0[at as usize..(at + blocks) as usize]) {
            block.push(value);
        }
    }

    /// What a read has seen stays: it has waited for the end of every write that was given up before it.
    fn saw(&mut self, at: u64, data: &[u8]) {
        for (value, block) in values(data).zip(&mut self.0[at as usize..]) {
            assert!(block.contains(&value), "{value:#x} is none of {block:x?}");
            *block = vec![value];
        }
    }
}

/// Waits for an operation, or drops it after a random while: at once, after some polls, or after some time.
async fn or_drop<T>(operation: impl Future<Output = T>, chance: u64) -> Option<T> {
    let mut operation = Box::pin(operation);
    if !chance.is_multiple_of(3) {
        return Some(operation.await);
    }
    if chance.is_multiple_of(2) {
        for _ in 0..chance / 6 % 5 {
            if let std::task::Poll::Ready(done) = futures::poll!(&mut operation) {
                return Some(done);
            }
            tokio::task::yield_now().await;
        }
        return None;
    }
    match select(operation, Box::pin(tokio::time::sleep(Duration::from_micros(chance / 6 % 4000)))).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}

async fn task(disk: Disk, number: u64) -> Model {
    let mut state = number;
    let mut model = Model(vec![vec![0]; BLOCKS as usize]);
    let base = number * BLOCKS * 512;
    for operation in 1..=OPERATIONS {
        let at = random(&mut state) % BLOCKS;
        let blocks = 1 + random(&mut state) % (BLOCKS - at);
        let (offset, len) = (base + at * 512, (blocks * 512) as usize);
        let (kind, chance) = (random(&mut state), random(&mut state));
        let first = (number + 1) << 32 | operation << 16;
        let mut data = vec![0; len];
        if kind.is_multiple_of(3) {
            if let Some(result) = or_drop(disk.read(offset, &mut data), chance).await {
                result.unwrap();
                model.saw(at, &data);
            }
            continue;
        }
        fill(&mut data, first);
        match or_drop(disk.write(offset, &data), chance).await {
            Some(result) => {
                result.unwrap();
                model.wrote(at, blocks, first);
            }
            None => model.may_have_written(at, blocks, first),
        }
    }
    let mut data = vec![0; (BLOCKS * 512) as usize];
    disk.read(base, &mut data).await.unwrap();
    model.saw(0, &data);
    model
}

async fn many_tasks_drop_what_they_began(configure: impl Fn(SessionConfig) -> SessionConfig) {
    let (_server, portal, store) = serve(None);
    let mut config = configure(config(&portal));
    // Fewer places than tasks: what waits for one is dropped, too.
    config.limits.commands = 64;
    let session = Session::connect(config).await.unwrap();
    let disk = session.disk(0).await.unwrap();
    let tasks: Vec<_> = (0..TASKS).map(|number| tokio::spawn(task(disk.clone(), number))).collect();
    let all = async {
        let mut models = Vec::new();
        for task in tasks {
            models.push(task.await.unwrap());
        }
        models
    };
    let models = tokio::time::timeout(Duration::from_secs(300), all).await.expect("nobody waits for ever");
    // Behind the target's back, when nothing is under way any more.
    session.logout().await.unwrap();
    for (number, Model(blocks)) in (0..).zip(models) {
        let data = held(&store, number * BLOCKS * 512, (BLOCKS * 512) as usize).await;
        for (at, (value, expected)) in values(&data).zip(blocks).enumerate() {
            assert_eq!(vec![value], expected, "block {at} of task {number}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_that_drop_a_third_of_their_operations_leave_no_trace() {
    many_tasks_drop_what_they_began(|config| config).await;
}

#[cfg(feature = "iser")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_that_drop_a_third_of_their_operations_leave_no_trace_over_iser() {
    many_tasks_drop_what_they_began(|mut config| {
        config.transport = initiator_core::Transport::Iser;
        config.iser.rdma = initiator_core::Rdma::Iwarp;
        config
    })
    .await;
}
