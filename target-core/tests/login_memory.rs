//! What a connection costs before the end of its login, counted byte by byte: over TCP and over iWARP, at every point
//! where a peer may stop and say no more.
#![cfg(feature = "iser")]

use std::sync::Arc;
use std::task::{Context, Waker};

use backstore::NullStore;
use iscsi_memory::{CountingAllocator, SendList};
use iscsi_proto::connection::{Connection, StreamConnection, StreamMover};
use iscsi_proto::datamover::Notification;
use iscsi_proto::pdu::{Bhs, LoginRequest, LoginResponse, LoginStatus, Opcode, Stage};
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use iser_transport::iwarp::{IwarpConfig, IwarpQueue};
use iser_transport::mover::{IserMover, IserMoverConfig};
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{Portal, PortalGroup, TargetConfig, TargetNode};
use target_core::registry::Endpoints;
use target_core::session::{Limits, Target, TargetConnection};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Bytes of a connection before the end of its login, which is to cost less than 16 KiB in all. The rest is for what a
/// server drives it by: `server_tests` says how much that is.
const MOST: i64 = (14 << 10) + 512;
const KEYS: &str = "HeaderDigest=None\0DataDigest=None\0RDMAExtensions=Yes\0InitiatorRecvDataSegmentLength=8192\0\
                    TargetRecvDataSegmentLength=8192\0";

/// As long as a name may be (RFC 7143 4.2.7.1).
fn name() -> String {
    format!("iqn.2026-11.example:{}", "n".repeat(203))
}

fn target() -> (Arc<Target>, Endpoints) {
    let address = "127.0.0.1:3260".parse().unwrap();
    let unit = LogicalUnit::new(Arc::new(NullStore::new(64 << 20)), Identity::from_seed("counted")).unwrap();
    let group = PortalGroup::new(1).portal(Portal::new(address).with_iser());
    let node = TargetNode::builder().name(name()).open().portal_group(group).lun(0, Arc::new(unit));
    let target = Target::new(TargetConfig::builder().node(node).build().unwrap(), Limits::default());
    (target, Endpoints { local: address, peer: address })
}

/// A target's connection, its peer's mover, and the bytes that the connection has.
struct Pair<M, P> {
    connection: Box<TargetConnection<M>>,
    bytes: i64,
    peer: P,
    request: LoginRequest,
    /// The peer takes what it is sent.
    fetches: bool,
}

impl<M: StreamMover, P: StreamMover> Pair<M, P> {
    fn new(mover: impl FnOnce(&Target) -> M, peer: P) -> Self {
        let (target, endpoints) = target();
        let before = CountingAllocator::bytes();
        let mover = mover(&target);
        let connection = TargetConnection::new(target.clone(), mover, endpoints, [3; 64], Instant::ZERO).unwrap();
        let connection = Box::new(connection);
        let bytes = CountingAllocator::bytes() - before;
        let request = LoginRequest {
            csg: Stage::LoginOperationalNegotiation,
            nsg: None,
            ..LoginRequest::straight_to_full_feature([0x80, 1, 2, 3, 4, 5], 9)
        };
        Self { connection, bytes, peer, request, fetches: true }
    }

    /// Has the connection do something, and counts.
    fn does<T>(&mut self, what: impl FnOnce(&mut TargetConnection<M>) -> T) -> T {
        let before = CountingAllocator::bytes();
        let done = what(&mut self.connection);
        self.bytes += CountingAllocator::bytes() - before;
        done
    }

    /// What the peer's mover has to send.
    fn wire(&mut self) -> Vec<u8> {
        let mut wire = Vec::new();
        loop {
            let mut list = SendList::default();
            self.peer.fill_send_list(&mut list);
            let before = wire.len();
            for slice in list.as_slice() {
                let start = wire.len();
                wire.resize(start + slice.len(), 0);
                slice.copy_to(&mut wire[start..]);
            }
            if wire.len() == before {
                return wire;
            }
            self.peer.handle_sent(wire.len() - before);
        }
    }

    /// Hands bytes over, as a driver does.
    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut taken = 0;
            self.does(|connection| {
                connection.handle_wake(&mut Context::from_waker(Waker::noop()), Instant::ZERO);
                let n = connection.receive_window().fill(bytes);
                bytes = &bytes[n..];
                connection.handle_received(n, Instant::ZERO);
                taken = n;
            });
            if taken == 0 {
                assert!(!self.fetches, "{} bytes are not taken", bytes.len());
                break;
            }
            if self.fetches {
                self.carry_back();
            }
        }
        // Drivers ask again before they wait.
        self.does(|connection| _ = connection.receive_window());
    }

    /// Carries what the connection has to send to the peer.
    fn carry_back(&mut self) {
        loop {
            let mut wire = Vec::with_capacity(64 << 10);
            self.does(|connection| {
                let mut list = SendList::default();
                connection.fill_send_list(&mut list);
                for slice in list.as_slice() {
                    let start = wire.len();
                    wire.resize(start + slice.len(), 0);
                    slice.copy_to(&mut wire[start..]);
                }
                connection.handle_sent(wire.len(), Instant::ZERO);
            });
            let mut rest = &wire[..];
            while !rest.is_empty() {
                let n = self.peer.receive_window().fill(rest);
                self.peer.handle_received(n);
                rest = &rest[n..];
            }
            if wire.is_empty() {
                return;
            }
        }
    }

    /// Sends a request with this text, all but the last `missing` bytes of it.
    fn ask(&mut self, incomplete: bool, text: &[u8], missing: usize) {
        let request = LoginRequest { incomplete, ..self.request };
        self.peer.send_control(request.emit(), text);
        self.peer.ring();
        let wire = self.wire();
        self.push(&wire[..wire.len() - missing]);
    }

    /// The answer to a request.
    #[track_caller]
    fn is_answered(&mut self) -> Bhs {
        loop {
            match self.peer.poll_notify() {
                Some(Notification::Control(bhs)) => {
                    assert_eq!(bhs.opcode(), Ok(Opcode::LoginResponse));
                    assert_eq!(LoginResponse::parse(&bhs).unwrap().status, LoginStatus::SUCCESS);
                    self.peer.ring();
                    return bhs;
                }
                Some(Notification::Terminated(error)) => panic!("{error}"),
                Some(_) => {}
                None => panic!("no answer"),
            }
        }
    }

    #[track_caller]
    fn costs(&self, what: &str) {
        println!("{what}: {} bytes", self.bytes);
        assert!(self.bytes < MOST, "{what}: {} bytes", self.bytes);
    }
}

fn tcp() -> Pair<TcpMover, TcpMover> {
    let config = TcpMoverConfig::default();
    let mover = |target: &Target| TcpMover::with_buffers(Role::Target, config, target.worker_pool(1).session());
    Pair::new(mover, TcpMover::new(Role::Initiator, config))
}

fn iwarp(crc: bool) -> Pair<IserMover<IwarpQueue>, IserMover<IwarpQueue>> {
    let mover = |_: &Target| {
        let config = IserMoverConfig::new(Role::Target);
        IserMover::new(IwarpQueue::accept(IwarpConfig { advertisements: 0, crc, ..IwarpConfig::default() }), config)
    };
    let peer = IserMover::new(IwarpQueue::connect(IwarpConfig::default()), IserMoverConfig::new(Role::Initiator));
    Pair::new(mover, peer)
}

/// The first request's text. Names and alias are as long as they may be.
fn first(keys: &str) -> String {
    let initiator = format!("iqn.2026-11.example:{}", "m".repeat(203));
    let alias = "a".repeat(255);
    format!("InitiatorName={initiator}\0InitiatorAlias={alias}\0TargetName={}\0SessionType=Normal\0{keys}", name())
}

fn stops_anywhere<M: StreamMover, P: StreamMover>(pair: fn() -> Pair<M, P>, keys: &str, what: &str) {
    let mut silent = pair();
    silent.costs(&format!("{what}: silent"));
    let hello = silent.wire();
    silent.push(&hello);
    silent.costs(&format!("{what}: after its first bytes"));
    let connected = || {
        let mut pair = pair();
        let hello = pair.wire();
        pair.push(&hello);
        pair
    };
    let halfway = || {
        let mut pair = connected();
        pair.ask(false, first(keys).as_bytes(), 0);
        pair.is_answered();
        pair
    };
    halfway().costs(&format!("{what}: after the answer to its first request"));
    let text = format!("X-example={}\0", "v".repeat(8000));
    for come in [10, 4000, 8000] {
        let mut unfinished = halfway();
        unfinished.ask(false, text.as_bytes(), text.len() - come);
        unfinished.costs(&format!("{what}: {come} bytes of its second request"));
    }
    for first in [100, 4000, 7900] {
        let mut gathered = halfway();
        let (first, rest) = text.as_bytes().split_at(first);
        gathered.ask(true, first, 0);
        gathered.is_answered();
        gathered.costs(&format!("{what}: {} bytes of a text over several requests", first.len()));
        gathered.ask(false, rest, 4);
        gathered.costs(&format!("{what}: the same and most of the rest"));
    }
    // Many keys that nobody knows, whose answer nobody fetches.
    let mut greedy = halfway();
    greedy.fetches = false;
    let unknown: String = (0..200).map(|n| format!("X{n}=\0")).collect();
    for _ in 0..4 {
        greedy.ask(false, unknown.as_bytes(), 0);
        greedy.costs(&format!("{what}: answers that wait"));
    }
}

#[test]
fn over_tcp() {
    stops_anywhere(tcp, "", "TCP");
}

#[test]
fn over_iwarp() {
    stops_anywhere(|| iwarp(false), KEYS, "iWARP");
}

#[test]
fn over_iwarp_with_crc() {
    stops_anywhere(|| iwarp(true), KEYS, "iWARP with CRC");
}
