//! The server on real sockets, with a client that speaks PDUs by hand.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use iscsi_proto::pdu::{
    AsyncEvent, AsyncMessage, Bhs, DataIn, LoginRequest, LoginResponse, LoginStatus, NopOut, Opcode, RESERVED_TAG,
    ScsiCommand,
};
use iscsi_proto::serial::Serial;

use super::*;
use crate::lu::{Identity, LogicalUnit};
use crate::node::{TargetNode, TargetNodeBuilder};
use backstore::{Backstore, Geometry, StoreError};

struct Ram(Mutex<Vec<u8>>);

#[async_trait]
impl Backstore for Ram {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(1 << 20)
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

const NAME: &str = "iqn.2026-11.example:disk";

fn node(portals: &[&str]) -> TargetNodeBuilder {
    let store = Arc::new(Ram(Mutex::new(vec![0x5a; 1 << 20])));
    let disk = LogicalUnit::new(store, Identity::from_seed("disk")).unwrap();
    let node = TargetNode::builder().name(NAME).lun(0, Arc::new(disk)).open();
    portals.iter().fold(node, |node, portal| node.portal(portal.parse().unwrap()))
}

fn config(portals: &[&str]) -> TargetConfig {
    TargetConfig::builder().node(node(portals)).build().unwrap()
}

struct Client {
    stream: TcpStream,
    cmd_sn: u32,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { stream, cmd_sn: 1 }
    }

    fn logged_in(address: SocketAddr, isid: u8) -> Self {
        let mut client = Self::connect(address);
        let request = LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 0, isid], 1);
        let text = format!("InitiatorName=iqn.2026-11.example:me\0SessionType=Normal\0TargetName={NAME}\0");
        client.send(request.emit(), text.as_bytes());
        let (bhs, _) = client.receive().unwrap();
        assert_eq!(LoginResponse::parse(&bhs).unwrap().status, LoginStatus::SUCCESS);
        client
    }

    fn send(&mut self, mut bhs: Bhs, data: &[u8]) {
        bhs.set_data_segment_len(data.len() as u32);
        let mut wire = bhs.0.to_vec();
        wire.extend_from_slice(data);
        wire.resize(wire.len().next_multiple_of(4), 0);
        self.stream.write_all(&wire).unwrap();
    }

    /// The next PDU; none at the end of the stream.
    fn receive(&mut self) -> Option<(Bhs, Vec<u8>)> {
        let mut bhs = Bhs([0; 48]);
        self.stream.read_exact(&mut bhs.0).ok()?;
        let mut data = vec![0; (bhs.data_segment_len() as usize).next_multiple_of(4)];
        self.stream.read_exact(&mut data).ok()?;
        Some((bhs, data))
    }

    /// Reads block 0 until the unit attention of the new nexus is gone.
    fn read(&mut self) -> Vec<u8> {
        let mut cdb = [0; 16];
        cdb[0] = 0x28;
        cdb[8] = 1;
        for itt in 10.. {
            let command = ScsiCommand {
                read: true,
                itt,
                expected_data_transfer_length: 512,
                cmd_sn: Serial(self.cmd_sn),
                cdb,
                ..ScsiCommand::default()
            };
            self.cmd_sn += 1;
            self.send(command.emit(), &[]);
            let (bhs, data) = self.receive().expect("a response");
            if let Ok(data_in) = DataIn::parse(&bhs) {
                assert_eq!(data_in.status.unwrap().status, 0);
                return data;
            }
            assert!(itt < 20);
        }
        unreachable!()
    }
}

#[test]
fn blocks_are_served_on_every_portal_and_counted() {
    let server = Server::builder(config(&["127.0.0.1:0", "127.0.0.2:0"])).workers(2).start().unwrap();
    let mut clients: Vec<_> =
        server.local_addrs().iter().zip(1..).map(|(address, isid)| Client::logged_in(*address, isid)).collect();
    for client in &mut clients {
        assert_eq!(client.read(), [0x5a; 512]);
    }
    let sessions = server.sessions();
    assert_eq!(sessions.len(), 2);
    assert!(sessions.iter().all(|session| session.statistics.reads == 1));
    assert_eq!(server.statistics().read_bytes, 1024);
    let ports: Vec<_> = sessions.iter().map(|session| session.endpoints.local).collect();
    assert_eq!(ports, server.local_addrs());
    server.stop(Duration::ZERO);
    for client in &mut clients {
        while client.receive().is_some() {}
    }
}

#[test]
fn a_taken_port_is_named() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let error = Server::builder(config(&[&address])).start().unwrap_err();
    assert!(error.to_string().contains(&address) && error.to_string().contains("taken"), "{error}");
    let error = Server::builder(config(&["192.0.2.1:0"])).start().unwrap_err();
    assert!(matches!(error, ServerError::NoSuchAddress(_)), "{error}");
}

#[test]
fn portals_tell_by_what_they_are_served() {
    use crate::node::{Portal, PortalGroup};
    let plain = Portal::new("127.0.0.1:0".parse().unwrap());
    let both = Portal::new("127.0.0.2:0".parse().unwrap());
    let both = if cfg!(feature = "iser") { both.with_iser() } else { both };
    let config = TargetConfig::builder().node(node(&[]).portal_group(PortalGroup::new(1).portal(plain).portal(both)));
    let server = Server::builder(config.build().unwrap()).workers(1).start().unwrap();
    let tree = server.target().config().to_string();
    let told: Vec<_> = tree.lines().filter(|line| line.contains("127.0.0.")).collect();
    let second = if cfg!(feature = "iser") { "[tcp, iser over iwarp]" } else { "[tcp]" };
    assert!(told[0].ends_with("[tcp]") && told[1].ends_with(second), "{tree}");
    server.stop(Duration::ZERO);
}

#[test]
fn stopping_asks_waits_and_ends_in_bounded_time() {
    let ends = Arc::new(Mutex::new(Vec::new()));
    let seen = ends.clone();
    let server = Server::builder(config(&["127.0.0.1:0"]))
        .workers(2)
        .on_end(move |_, reason| seen.lock().unwrap().push(reason.clone()))
        .start()
        .unwrap();
    let address = server.local_addrs()[0];
    let mut client = Client::logged_in(address, 1);
    let _silent = Client::connect(address);
    while server.target().registry().connections() < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let start = Instant::now();
    let stopping = std::thread::spawn(move || server.stop(Duration::from_millis(300)));
    let (bhs, _) = client.receive().unwrap();
    assert_eq!(AsyncMessage::parse(&bhs).unwrap().event, AsyncEvent::LogoutRequest);
    let (bhs, _) = client.receive().unwrap();
    assert_eq!(AsyncMessage::parse(&bhs).unwrap().event, AsyncEvent::SessionDrop);
    assert!(client.receive().is_none());
    stopping.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let ends = ends.lock().unwrap();
    assert_eq!(ends.len(), 2);
    assert!(ends.iter().all(|reason| *reason == EndReason::Stopped));
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn dropping_a_server_inside_a_runtime_ends_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let server = Server::builder(config(&["127.0.0.1:0"])).workers(1).start().unwrap();
        let mut client = Client::logged_in(server.local_addrs()[0], 1);
        drop(server);
        while client.receive().is_some() {}
    });
}

#[test]
fn too_many_connections_are_turned_away_and_room_comes_back() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let server = Server::builder(config(&["127.0.0.1:0"])).workers(1).limits(limits).start().unwrap();
    let address = server.local_addrs()[0];
    let first = Client::logged_in(address, 1);
    assert!(Client::connect(address).receive().is_none());
    drop(first);
    while server.target().registry().connections() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    Client::logged_in(address, 2).read();
}

#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    let ends = Arc::new(Mutex::new(Vec::new()));
    let seen = ends.clone();
    let limits = Limits { connections: 8, logins: 3, ..Limits::default() };
    let server = Server::builder(config(&["127.0.0.1:0"]))
        .workers(2)
        .limits(limits)
        .on_end(move |_, reason| seen.lock().unwrap().push(reason.clone()))
        .start()
        .unwrap();
    let address = server.local_addrs()[0];
    let mut early = Client::logged_in(address, 1);
    let mut silent: Vec<_> = (0..6).map(|_| Client::connect(address)).collect();
    // The three oldest are displaced by the three that came last.
    for client in &mut silent[..3] {
        assert!(client.receive().is_none());
    }
    let mut late = Client::logged_in(address, 2);
    assert!(silent[3].receive().is_none());
    assert_eq!(early.read(), [0x5a; 512]);
    assert_eq!(late.read(), [0x5a; 512]);
    assert_eq!(server.sessions().len(), 2);
    server.stop(Duration::ZERO);
    let ends = ends.lock().unwrap();
    assert_eq!(ends.iter().filter(|reason| **reason == EndReason::Displaced).count(), 4, "{ends:?}");
}

#[test]
fn a_broken_connection_leaves_the_others_alone() {
    let server = Server::builder(config(&["127.0.0.1:0"])).workers(1).start().unwrap();
    let address = server.local_addrs()[0];
    let mut client = Client::logged_in(address, 1);
    let mut other = Client::logged_in(address, 2);
    other.stream.write_all(&[0xff; 4096]).unwrap();
    drop(other);
    Client::connect(address).stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let ping = NopOut {
        immediate: true,
        lun: 0,
        itt: 7,
        ttt: RESERVED_TAG,
        cmd_sn: Serial(client.cmd_sn),
        exp_stat_sn: Serial(0),
    };
    client.send(ping.emit(), b"still there");
    let (bhs, data) = client.receive().unwrap();
    assert_eq!(bhs.opcode(), Ok(Opcode::NopIn));
    assert!(data.starts_with(b"still there"));
}

#[test]
fn what_a_connection_waits_in_for_its_first_byte_has_no_mover() {
    let worker = Server::builder(config(&["127.0.0.1:0"])).crew(
        #[cfg(all(feature = "verbs", target_os = "linux"))]
        Duration::ZERO,
    );
    let (worker, _) = &worker.workers[0];
    let (sender, mut inbox) = mpsc::unbounded_channel();
    let seats = Seats::from([(sender, Arc::default())]);
    let seat = worker.target.registry().seat(false).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let endpoints = Endpoints { local: stream.local_addr().unwrap(), peer: stream.peer_addr().unwrap() };
    assert!(worker::assign(&seats, worker::Incoming::Tcp(stream, true), endpoints, seat));
    let future = worker.serve(inbox.try_recv().unwrap());
    // With 14.5 KiB of the connection itself (`login_memory`) and some of the runtime's it stays below 16 KiB.
    assert!(size_of_val(&future) < 1280, "{} bytes", size_of_val(&future));
}
