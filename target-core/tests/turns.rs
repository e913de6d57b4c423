//! One worker, and a WRITE SAME of 2 GiB: how many turns of it pass until somebody else is answered.
//!
//! A turn is one call of [`Connection::handle_wake`], and costs about 1 MiB of store operations. Turns are counted, not
//! time: the test says the same on any machine.
#![cfg(feature = "tokio")]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Context;

use async_trait::async_trait;
use backstore::{Backstore, Geometry, StoreError};
use iscsi_driver::{Clock, drive};
use iscsi_memory::{ReceiveWindow, SendList};
use iscsi_proto::connection::{Connection, StreamConnection, StreamEnd};
use iscsi_proto::pdu::{BHS_LEN, Bhs, DataIn, LoginRequest, NopOut, Opcode, RESERVED_TAG, ScsiCommand, ScsiResponse};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use target_core::lu::{Identity, LogicalUnit, UnitLimits};
use target_core::node::{TargetConfig, TargetNode};
use target_core::registry::Endpoints;
use target_core::session::{Limits, Target, TargetConnection};
use tokio::net::{TcpListener, TcpStream};

const NAME: &str = "iqn.2026-11.example:turns";
const LONG: u64 = 2 << 30;
/// Turns of the long command until another's answer is there. What is needed is one for the worker to see the request,
/// and one more for its answer.
const BOUND: u64 = 4;

/// Counts what is written to it, and keeps nothing.
#[derive(Default)]
struct Written(AtomicU64);

#[async_trait]
impl Backstore for Written {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(2 * LONG)
    }
    async fn read(&self, _: u64, data: &mut [u8]) -> Result<(), StoreError> {
        data.fill(0);
        Ok(())
    }
    async fn write(&self, _: u64, data: &[u8]) -> Result<(), StoreError> {
        self.0.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// A connection, with its turns counted.
struct Counted {
    connection: TargetConnection<TcpMover>,
    turns: Rc<Cell<u64>>,
}

impl Connection for Counted {
    fn poll_timeout(&self) -> Option<Instant> {
        self.connection.poll_timeout()
    }
    fn handle_timeout(&mut self, now: Instant) {
        self.connection.handle_timeout(now);
    }
    fn handle_wake(&mut self, cx: &mut Context<'_>, now: Instant) {
        self.turns.set(self.turns.get() + 1);
        self.connection.handle_wake(cx, now);
    }
    fn has_more_work(&self) -> bool {
        self.connection.has_more_work()
    }
    fn is_finished(&self) -> bool {
        self.connection.is_finished()
    }
}

impl StreamConnection for Counted {
    fn receive_window(&mut self) -> ReceiveWindow<'_> {
        self.connection.receive_window()
    }
    fn handle_received(&mut self, n: usize, now: Instant) {
        self.connection.handle_received(n, now);
    }
    fn handle_stream_end(&mut self, end: StreamEnd, now: Instant) {
        self.connection.handle_stream_end(end, now);
    }
    fn fill_send_list<'a>(&'a mut self, list: &mut SendList<'a>) {
        self.connection.fill_send_list(list);
    }
    fn take_sent(&mut self, n: usize) {
        self.connection.take_sent(n);
    }

    fn go_on(&mut self, now: Instant) {
        self.connection.go_on(now);
    }
}

/// An initiator on the same thread, which sees its answers as soon as the runtime looks at its socket.
struct Initiator {
    stream: TcpStream,
    cmd_sn: u32,
}

impl Initiator {
    /// A session of its own, served by a task of the runtime; and its turns.
    async fn log_in(target: &Arc<Target>, isid: u8) -> (Self, Rc<Cell<u64>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, peer) = listener.accept().await.unwrap();
        for stream in [&stream, &socket] {
            stream.set_nodelay(true).unwrap();
        }
        let endpoints = Endpoints { local: "127.0.0.1:3260".parse().unwrap(), peer };
        let mover = TcpMover::new(Role::Target, TcpMoverConfig::default());
        let clock = Clock::process();
        let connection = TargetConnection::new(target.clone(), mover, endpoints, [5; 64], clock.now()).unwrap();
        let turns = Rc::new(Cell::new(0));
        let mut counted = Counted { connection, turns: turns.clone() };
        tokio::task::spawn_local(async move { drive(socket, &mut counted, clock).await });
        let mut initiator = Self { stream, cmd_sn: 1 };
        let text = format!("InitiatorName=iqn.2026-11.example:me\0SessionType=Normal\0TargetName={NAME}\0");
        let request = LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 0, isid], 1);
        initiator.send(request.emit(), text.as_bytes()).await;
        let (answer, _) = initiator.receive().await;
        assert_eq!((answer.opcode(), answer.0[36]), (Ok(Opcode::LoginResponse), 0));
        // The first command hears of the power on.
        initiator.command(1, [0; 16], 0, &[]).await;
        initiator.receive().await;
        (initiator, turns)
    }

    async fn send(&mut self, mut bhs: Bhs, data: &[u8]) {
        bhs.set_data_segment_len(data.len() as u32);
        let mut wire = bhs.0.to_vec();
        wire.extend_from_slice(data);
        wire.resize(wire.len().next_multiple_of(4), 0);
        let mut at = 0;
        while at < wire.len() {
            self.stream.writable().await.unwrap();
            at += self.stream.try_write(&wire[at..]).unwrap_or(0);
        }
    }

    async fn take(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            self.stream.readable().await.unwrap();
            match self.stream.try_read(&mut bytes[at..]) {
                Ok(0) => panic!("the target has closed the connection"),
                Ok(n) => at += n,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    }

    async fn receive(&mut self) -> (Bhs, Vec<u8>) {
        let mut bhs = Bhs([0; BHS_LEN]);
        self.take(&mut bhs.0).await;
        let mut data = vec![0; (bhs.data_segment_len() as usize).next_multiple_of(4)];
        self.take(&mut data).await;
        (bhs, data)
    }

    async fn command(&mut self, itt: u32, cdb: [u8; 16], length: u32, data: &[u8]) {
        let write = !data.is_empty();
        let command = ScsiCommand {
            read: !write && length != 0,
            write,
            itt,
            expected_data_transfer_length: length,
            cmd_sn: Serial(self.cmd_sn),
            cdb,
            ..ScsiCommand::default()
        };
        self.cmd_sn += 1;
        self.send(command.emit(), data).await;
    }

    /// Reads one block.
    async fn read(&mut self, itt: u32) {
        let mut cdb = [0; 16];
        (cdb[0], cdb[8]) = (0x28, 1);
        self.command(itt, cdb, 512, &[]).await;
        let (bhs, data) = self.receive().await;
        let answer = DataIn::parse(&bhs).unwrap();
        assert_eq!((answer.itt, answer.status.map(|status| status.status), data.len()), (itt, Some(0), 512));
    }

    async fn ping(&mut self, itt: u32) {
        let cmd_sn = Serial(self.cmd_sn);
        let nop = NopOut { immediate: true, lun: 0, itt, ttt: RESERVED_TAG, cmd_sn, exp_stat_sn: Serial(0) };
        self.send(nop.emit(), b"ping").await;
        let (bhs, data) = self.receive().await;
        assert_eq!((bhs.opcode(), bhs.itt(), &data[..]), (Ok(Opcode::NopIn), itt, &b"ping"[..]));
    }
}

#[test]
fn a_long_write_same_holds_up_nobody() {
    let store = Arc::new(Written::default());
    let unit = LogicalUnit::new(store.clone(), Identity::from_seed("turns")).unwrap();
    let limits = UnitLimits { max_write_same: (LONG / 512) as u32, ..UnitLimits::default() };
    let node = TargetNode::builder().name(NAME).portal("127.0.0.1:3260".parse().unwrap()).open();
    let node = node.lun(0, Arc::new(unit.with_limits(limits)));
    let target = Target::new(TargetConfig::builder().node(node).build().unwrap(), Limits::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let ((mut long, turns), (mut other, _)) =
            (Initiator::log_in(&target, 1).await, Initiator::log_in(&target, 2).await);
        let before = turns.get();
        let mut cdb = [0; 16];
        cdb[0] = 0x93;
        cdb[10..14].copy_from_slice(&((LONG / 512) as u32).to_be_bytes());
        long.command(7, cdb, 512, &[0xa5; 512]).await;
        let mut slowest = (0, 0);
        for question in 0..64 {
            let asked = turns.get();
            other.read(100 + question).await;
            let read = turns.get();
            long.ping(200 + question).await;
            slowest = (slowest.0.max(read - asked), slowest.1.max(turns.get() - read));
        }
        let written = store.0.load(Ordering::Relaxed);
        assert!(0 < written && written < LONG, "{written} bytes were written while 64 questions were answered");
        println!("turns until a read and a ping were answered, at most: {slowest:?}");
        assert!(slowest.0 <= BOUND && slowest.1 <= BOUND, "{slowest:?} turns");
        let (bhs, _) = long.receive().await;
        let answer = ScsiResponse::parse(&bhs).unwrap();
        assert_eq!((answer.itt, answer.status), (7, 0));
        assert_eq!(store.0.load(Ordering::Relaxed), LONG);
        let (took, most) = (turns.get() - before, LONG >> 20);
        println!("the command took {took} turns");
        assert!(took >= most, "{took} turns for {LONG} bytes");
    });
}
