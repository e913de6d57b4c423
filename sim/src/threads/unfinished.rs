//! Sessions whose connection has gone before their operations at the store have ended: workers look after them, each when
//! he is woken, and so do, once in a while, logins and functions that wait for them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::Duration;

use async_trait::async_trait;
use backstore::{Backstore, Geometry, StoreCompletion, StoreError, StoreOp, StoreQueue, StoreRequest};
use iscsi_memory::{SendList, turns};
use iscsi_proto::connection::StreamConnection;
use iscsi_proto::pdu::ScsiCommand;
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use scsi_proto::{BlockIo, command, opcode};
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{Portal, PortalGroup, TargetConfig, TargetNode};
use target_core::registry::{Endpoints, Event};
use target_core::session::{Limits, Target, TargetConnection};

use super::{Bell, World, event, join, sleep, spawn};
use crate::hostile::{login, wire};
use crate::world::Report;

const TARGET: &str = "iqn.2026-11.example.sim:unfinished";
/// All that the target might ask for, so that one request does.
const KEYS: &str = "HeaderDigest=None\0DataDigest=None\0InitialR2T=Yes\0ImmediateData=Yes\0MaxBurstLength=65536\0\
                    FirstBurstLength=8192\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0ErrorRecoveryLevel=0\0\
                    MaxConnections=1\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0MaxOutstandingR2T=1\0\
                    MaxRecvDataSegmentLength=8192\0";

/// What one session has at the store.
struct AtStore {
    held: Vec<StoreRequest>,
    ready: Vec<StoreCompletion>,
    waker: Waker,
}

/// A store that ends its operations when it is told to.
#[derive(Default)]
struct HoldingStore(Mutex<Vec<Arc<Mutex<AtStore>>>>);

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Backstore for HoldingStore {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(1 << 20)
    }

    async fn read(&self, _: u64, _: &mut [u8]) -> Result<(), StoreError> {
        Err(StoreError::Unsupported)
    }

    async fn write(&self, _: u64, _: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::Unsupported)
    }

    fn open_queue(self: Arc<Self>, waker: Waker) -> Option<Box<dyn StoreQueue>> {
        let one = Arc::new(Mutex::new(AtStore { held: Vec::new(), ready: Vec::new(), waker }));
        lock(&self.0).push(one.clone());
        Some(Box::new(HoldingQueue(one)))
    }
}

struct HoldingQueue(Arc<Mutex<AtStore>>);

impl StoreQueue for HoldingQueue {
    fn submit(&mut self, batch: &mut Vec<StoreRequest>) {
        lock(&self.0).held.append(batch);
    }

    fn poll(&mut self, completions: &mut Vec<StoreCompletion>) {
        turns::point();
        completions.append(&mut lock(&self.0).ready);
    }
}

/// Whoever is polled next for it hears that one has ended.
fn end_one(of: &Mutex<AtStore>) {
    let mut at_store = lock(of);
    if let Some(StoreRequest { token, op }) = at_store.held.pop() {
        let buf = if let StoreOp::Read { buf, .. } | StoreOp::Write { buf, .. } = op { Some(buf) } else { None };
        at_store.ready.push(StoreCompletion { token, buf, lba_status: None, result: Ok(()) });
        let waker = at_store.waker.clone();
        drop(at_store);
        waker.wake();
    }
}

/// A session that logs in, has an operation at the store, and loses its connection.
fn lose_session(target: &Arc<Target>, number: u8) {
    let local = ([127, 0, 0, 1], 3260).into();
    let endpoints = Endpoints { local, peer: ([127, 0, 0, 1], 10_000 + u16::from(number)).into() };
    let mover = TcpMover::new(Role::Target, TcpMoverConfig::default());
    let connection = TargetConnection::new(target.clone(), mover, endpoints, [number; 64], Instant::ZERO);
    let mut connection = connection.expect("room for a connection");
    let initiator = format!("iqn.2026-11.example.sim:lost-{number}");
    say(&mut connection, &login(TARGET, &initiator, [0x80, 0, 0, 0, 2, number], KEYS));
    let read = BlockIo::new(u64::from(number), 1).to_cdb(opcode::READ_16).expect("a CDB of 16 bytes");
    // The first one meets the unit attention of a new nexus.
    for (cmd_sn, cdb) in (1..).zip([command::test_unit_ready(), read]) {
        let is_read = cmd_sn == 2;
        let mut bytes = [0; 16];
        bytes[..cdb.as_cdb().as_bytes().len()].copy_from_slice(cdb.as_cdb().as_bytes());
        let request = ScsiCommand {
            is_final: true,
            read: is_read,
            itt: cmd_sn,
            cmd_sn: Serial(cmd_sn),
            expected_data_transfer_length: if is_read { 512 } else { 0 },
            cdb: bytes,
            ..ScsiCommand::default()
        };
        say(&mut connection, &wire(request.emit(), &[]));
    }
}

fn say(connection: &mut TargetConnection<TcpMover>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let n = connection.receive_window().fill(bytes);
        assert!(n > 0, "a target that is not busy takes bytes");
        bytes = &bytes[n..];
        connection.handle_received(n, Instant::ZERO);
        loop {
            let mut list = SendList::default();
            connection.fill_send_list(&mut list);
            let n = list.len();
            if n == 0 {
                break;
            }
            connection.handle_sent(n, Instant::ZERO);
        }
    }
}

pub(super) fn live(world: &mut World) -> Report {
    let rng = &mut world.rng;
    let store = Arc::new(HoldingStore::default());
    let unit = LogicalUnit::new(store.clone(), Identity::from_seed(TARGET)).expect("a disk");
    let group = PortalGroup::new(1).portal(Portal::new(([127, 0, 0, 1], 3260).into()));
    let node = TargetNode::builder().name(TARGET).lun(0, Arc::new(unit)).portal_group(group).open();
    let target = Target::new(TargetConfig::builder().node(node).build().expect("a configuration"), Limits::default());
    let ended = Arc::new(AtomicUsize::new(0));
    let count = ended.clone();
    target.registry().set_on_event(move |event| {
        if matches!(event, Event::OperationsEnded { .. }) {
            count.fetch_add(1, Ordering::Relaxed);
            // Whoever hears of it takes his time.
            turns::point();
        }
    });
    let (sessions, workers, logins) = (rng.between(1, 4) as u8, rng.between(1, 2), rng.between(0, 3));
    (0..sessions).for_each(|number| lose_session(&target, number));
    let at_store: usize = lock(&store.0).iter().map(|one| lock(one).held.len()).sum();
    assert_eq!(at_store, usize::from(sessions), "each session has an operation at the store");
    event(&world.trace, format_args!("{sessions} sessions are unfinished, {workers} workers, {logins} logins look"));

    let is_over = Arc::new(AtomicBool::new(false));
    let (mut attending, mut looking, mut bells) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..workers {
        let bell = Arc::new(Bell::default());
        bells.push(bell.clone());
        let (target, is_over) = (target.clone(), is_over.clone());
        attending.push(spawn("worker", move || {
            let waker = bell.waker();
            while !is_over.load(Ordering::Relaxed) {
                target.registry().poll_unfinished(&waker);
                bell.wait(None);
            }
        }));
    }
    for _ in 0..logins {
        let (target, times) = (target.clone(), rng.between(1, 6));
        looking.push(spawn("login", move || {
            for _ in 0..times {
                turns::point();
                target.registry().poll_unfinished(Waker::noop());
            }
        }));
    }
    let (mut order, of_store) = (Vec::new(), lock(&store.0).clone());
    let mut left: Vec<_> = of_store;
    while !left.is_empty() {
        order.push(left.swap_remove(rng.below(left.len() as u64) as usize));
    }
    looking.push(spawn("store", move || {
        for one in order {
            turns::point();
            end_one(&one);
        }
    }));
    join(looking, &world.fault);
    // Until nobody has anything to do any more.
    sleep(Duration::from_secs(1));
    let done = ended.load(Ordering::Relaxed);
    if done != usize::from(sessions) {
        world.fault.found(format!("of {sessions} sessions whose operations have ended {done} are over"));
    }
    is_over.store(true, Ordering::Relaxed);
    bells.into_iter().for_each(Wake::wake);
    join(attending, &world.fault);
    Report { commands: sessions.into(), logins: sessions.into(), ..Report::default() }
}
