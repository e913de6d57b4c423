//! The target allocates nothing per PDU once a session has warmed up: reads and writes, small and large, with and
//! without digests, from lent memory and through a store's queue.

use std::sync::Arc;
use std::task::{Context, Waker};

use backstore::{Backstore, NullStore, RamStore};
use iscsi_memory::{CountingAllocator, SendList, WorkerPool};
use iscsi_proto::connection::{Connection, StreamConnection};
use iscsi_proto::digest::crc32c;
use iscsi_proto::pdu::{BHS_LEN, Bhs, DataOut, LoginRequest, Opcode, R2t, ScsiCommand};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{TargetConfig, TargetNode};
use target_core::registry::Endpoints;
use target_core::session::{Limits, Target, TargetConnection};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const NAME: &str = "iqn.2026-11.example:counted";
const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2a;

/// An initiator of fixed buffers: it must not allocate either, or it would spoil the count.
struct Peer {
    connection: TargetConnection<TcpMover>,
    digests: bool,
    cmd_sn: u32,
    out: Vec<u8>,
    received: Vec<u8>,
}

impl Peer {
    fn connect(store: Arc<dyn Backstore>) -> Self {
        let (target, endpoints) = target(store);
        Self::connect_to(target, endpoints, None)
    }

    fn connect_to(target: Arc<Target>, endpoints: Endpoints, pool: Option<&WorkerPool>) -> Self {
        let config = TcpMoverConfig::default();
        let mover = match pool {
            Some(pool) => TcpMover::with_buffers(Role::Target, config, pool.session()),
            None => TcpMover::new(Role::Target, config),
        };
        let connection = TargetConnection::new(target, mover, endpoints, [3; 64], Instant::ZERO).unwrap();
        let (out, received) = (Vec::with_capacity(1 << 20), Vec::with_capacity(1 << 21));
        Self { connection, digests: false, cmd_sn: 1, out, received }
    }

    fn log_in(store: Arc<dyn Backstore>, digests: bool) -> Self {
        let mut peer = Self::connect(store);
        peer.complete_login(digests);
        peer
    }

    fn complete_login(&mut self, digests: bool) {
        let peer = self;
        let digest = if digests { "CRC32C" } else { "None" };
        let text = format!(
            "InitiatorName=iqn.2026-11.example:me\0TargetName={NAME}\0SessionType=Normal\0HeaderDigest={digest}\0DataDigest={digest}\0\
             InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=262144\0FirstBurstLength=65536\0MaxBurstLength=262144\0"
        );
        let request = LoginRequest::straight_to_full_feature([0x80, 1, 2, 3, 4, 5], 9);
        peer.push(request.emit(), text.as_bytes());
        peer.exchange();
        let answer = peer.header(0);
        assert_eq!((answer.opcode(), answer.0[36], answer.0[1] & 0x83), (Ok(Opcode::LoginResponse), 0, 0x83));
        peer.digests = digests;
        // The first command hears POWER ON OR RESET.
        peer.io(0x00, 0, 0, 0);
    }

    fn push(&mut self, mut bhs: Bhs, data: &[u8]) {
        bhs.set_data_segment_len(data.len() as u32);
        self.out.extend_from_slice(&bhs.0);
        if self.digests {
            self.out.extend_from_slice(&crc32c(&bhs.0));
        }
        let start = self.out.len();
        self.out.extend_from_slice(data);
        self.out.resize(self.out.len().next_multiple_of(4), 0);
        if self.digests && !data.is_empty() {
            let digest = crc32c(&self.out[start..]);
            self.out.extend_from_slice(&digest);
        }
    }

    /// Hands over what is queued and gathers all answers.
    fn exchange(&mut self) {
        self.received.clear();
        let mut at = 0;
        let mut idle = 0;
        while idle < 3 {
            idle += 1;
            self.connection.handle_wake(&mut Context::from_waker(Waker::noop()), Instant::ZERO);
            if self.connection.has_more_work() {
                idle = 0;
            }
            let n = self.connection.receive_window().fill(&self.out[at..]);
            if n > 0 {
                self.connection.handle_received(n, Instant::ZERO);
                at += n;
                idle = 0;
            }
            let mut list = SendList::default();
            self.connection.fill_send_list(&mut list);
            let mut sent = 0;
            for slice in list.as_slice() {
                let start = self.received.len();
                self.received.resize(start + slice.len(), 0);
                slice.copy_to(&mut self.received[start..]);
                sent += slice.len();
            }
            if sent > 0 {
                self.connection.handle_sent(sent, Instant::ZERO);
                idle = 0;
            }
        }
        assert_eq!(at, self.out.len(), "the target takes what it is sent");
        self.out.clear();
    }

    fn header(&self, at: usize) -> Bhs {
        let mut bytes = [0; BHS_LEN];
        bytes.copy_from_slice(&self.received[at..at + BHS_LEN]);
        Bhs(bytes)
    }

    /// One command of `blocks` blocks from start to status; R2Ts are served.
    fn io(&mut self, opcode: u8, lba: u32, blocks: u16, immediate: usize) {
        static DATA: [u8; 1 << 18] = [0x3c; 1 << 18];
        let len = usize::from(blocks) * 512;
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        cdb[2..6].copy_from_slice(&lba.to_be_bytes());
        cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
        let write = opcode == WRITE_10;
        let command = ScsiCommand {
            read: opcode == READ_10,
            write,
            itt: self.cmd_sn,
            expected_data_transfer_length: len as u32,
            cmd_sn: Serial(self.cmd_sn),
            cdb,
            ..ScsiCommand::default()
        };
        self.cmd_sn += 1;
        self.push(command.emit(), if write { &DATA[..immediate.min(len)] } else { &[] });
        self.exchange();
        let mut got = 0;
        loop {
            let (mut at, mut done) = (0, false);
            while at < self.received.len() {
                let bhs = self.header(at);
                let data = bhs.data_segment_len() as usize;
                let digest = if self.digests { 4 } else { 0 };
                at += BHS_LEN + digest + data.next_multiple_of(4) + if data > 0 { digest } else { 0 };
                match bhs.opcode().unwrap() {
                    Opcode::R2t => {
                        let r2t = R2t::parse(&bhs).unwrap();
                        let out = DataOut {
                            is_final: true,
                            lun: r2t.lun,
                            itt: r2t.itt,
                            ttt: r2t.ttt,
                            exp_stat_sn: Serial(0),
                            data_sn: 0,
                            buffer_offset: r2t.buffer_offset,
                        };
                        self.push(out.emit(), &DATA[..r2t.desired_data_transfer_length as usize]);
                    }
                    Opcode::DataIn => {
                        got += data;
                        done |= bhs.0[1] & 1 != 0;
                    }
                    Opcode::ScsiResponse => done = true,
                    other => panic!("an unasked {other:?}"),
                }
            }
            if done {
                assert!(opcode != READ_10 || got == len, "{got} of {len} bytes read");
                return;
            }
            assert!(!self.out.is_empty(), "the target owes an answer");
            self.exchange();
        }
    }
}

fn target(store: Arc<dyn Backstore>) -> (Arc<Target>, Endpoints) {
    let address = "127.0.0.1:3260".parse().unwrap();
    let unit = Arc::new(LogicalUnit::new(store, Identity::from_seed(NAME)).unwrap());
    let node = TargetNode::builder().name(NAME).open().portal(address).lun(0, unit);
    let target = Target::new(TargetConfig::builder().node(node).build().unwrap(), Limits::default());
    (target, Endpoints { local: address, peer: address })
}

fn count(store: Arc<dyn Backstore>, digests: bool, what: &str) {
    let mut peer = Peer::log_in(store, digests);
    // Blocks of a command, and bytes of it that ride along: all of them, or a part with R2Ts behind, or none.
    for (blocks, immediate) in [(1, 512), (8, 4096), (128, 65_536), (128, 4096), (512, 0)] {
        let mut round = |n: u32| {
            for i in 0..n {
                peer.io(WRITE_10, i % 64 * 512, blocks, immediate);
                peer.io(READ_10, i % 64 * 512, blocks, 0);
            }
        };
        round(200);
        let before = CountingAllocator::allocations();
        round(500);
        let allocations = CountingAllocator::allocations() - before;
        let case = format!("{what}, {blocks} blocks, {immediate} bytes of immediate data, digests {digests}");
        assert_eq!(allocations, 0, "{case}: allocations in 1000 commands");
    }
}

#[test]
fn lent_memory() {
    for digests in [false, true] {
        count(Arc::new(RamStore::new(64 << 20).unwrap()), digests, "RAM");
    }
}

#[test]
fn a_store_with_a_queue() {
    for digests in [false, true] {
        count(Arc::new(NullStore::new(64 << 20)), digests, "null");
    }
}

#[test]
fn a_connection_has_the_memory_that_its_peer_has_proved_to_need() {
    let (target, endpoints) = target(Arc::new(NullStore::new(64 << 20)));
    let own = (1 << 20) + (1 << 21);
    let pool = target.worker_pool(1);
    let start = CountingAllocator::bytes();
    let mut peer = Peer::connect_to(target, endpoints, Some(&pool));
    let connected = CountingAllocator::bytes() - start - own;
    // Part of a request, that says nothing yet.
    let n = peer.connection.receive_window().fill(&[0x43; 40]);
    peer.connection.handle_received(n, Instant::ZERO);
    let silent = CountingAllocator::bytes() - start - own;
    assert!(connected.max(silent) < 16 << 10, "{connected}, {silent} bytes before login");
    assert_eq!(pool.active(), 0);
    drop(peer);
    let (target, endpoints) = self::target(Arc::new(NullStore::new(64 << 20)));
    let pool = target.worker_pool(1);
    let start = CountingAllocator::bytes();
    let mut peer = Peer::connect_to(target.clone(), endpoints, Some(&pool));
    peer.complete_login(false);
    let idle = CountingAllocator::bytes() - start - own;
    assert!(idle < 64 << 10, "{idle} bytes of a session that is idle");
    for i in 0..10 {
        peer.io(WRITE_10, i * 512, 512, 4096);
        peer.io(READ_10, i * 512, 512, 0);
    }
    // Mapped buffers are not the allocator's.
    assert!(pool.idle() >= 256 << 10 && target.buffers().out() > 64 << 10, "{pool:?}, {:?}", target.buffers());
    let until = peer.connection.poll_timeout().unwrap();
    assert_eq!(until, Instant::ZERO + target.limits().idle_after);
    peer.connection.handle_timeout(until);
    assert_eq!((pool.idle(), pool.active(), target.buffers().out()), (0, 0, 0));
    let again = CountingAllocator::bytes() - start - own;
    assert!(again < 64 << 10, "{again} bytes of a session that is idle again");
    peer.io(READ_10, 0, 512, 0);
    assert_eq!(pool.active(), 1);
    drop(peer);
    assert_eq!((pool.idle(), pool.active(), target.buffers().out()), (0, 0, 0), "nothing is left of a session");
}
