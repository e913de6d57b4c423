//! A portal with both transports on one TCP port, up to where a login begins: what connections may begin with, and what
//! becomes of them.
#![cfg(feature = "iser")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backstore::NullStore;
use iscsi_proto::pdu::{LoginRequest, LoginResponse, LoginStatus};
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{Portal, PortalGroup, TargetConfig, TargetNode};
use target_core::server::{IserConfig, Server, ServerBuilder, ServerHandle};
use target_core::session::{EndReason, Limits};

const NAME: &str = "iqn.2026-11.example:both";
/// Sixteen bytes, flags (CRC and markers refused), revision 1, no private data.
const REQUEST: &[u8; 20] = b"MPA ID Req Frame\0\x01\0\0";
const REPLY_KEY: &[u8] = b"MPA ID Rep Frame";

type Ends = Arc<Mutex<Vec<EndReason>>>;

fn builder(limits: Limits) -> (ServerBuilder, Ends) {
    let unit = LogicalUnit::new(Arc::new(NullStore::new(1 << 20)), Identity::from_seed("both")).unwrap();
    let portal = Portal::new("127.0.0.1:0".parse().unwrap()).with_iser();
    let node =
        TargetNode::builder().name(NAME).lun(0, Arc::new(unit)).open().portal_group(PortalGroup::new(1).portal(portal));
    let ends = Ends::default();
    let seen = ends.clone();
    let config = TargetConfig::builder().node(node).build().unwrap();
    let on_end = move |_, reason: &EndReason| seen.lock().unwrap().push(reason.clone());
    (Server::builder(config).workers(1).limits(limits).on_end(on_end), ends)
}

fn serve(limits: Limits) -> (ServerHandle, Ends) {
    let (builder, ends) = builder(limits);
    (builder.start().unwrap(), ends)
}

fn connect(server: &ServerHandle) -> TcpStream {
    let address: SocketAddr = server.local_addrs()[0];
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Sends in single bytes, each on its own.
fn dribble(stream: &mut TcpStream, bytes: &[u8]) {
    for byte in bytes {
        stream.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn login() -> Vec<u8> {
    let text = format!("InitiatorName=iqn.2026-11.example:me\0SessionType=Normal\0TargetName={NAME}\0");
    let request = LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 0, 1], 1);
    let mut bhs = request.emit();
    bhs.set_data_segment_len(text.len() as u32);
    let mut wire = bhs.0.to_vec();
    wire.extend_from_slice(text.as_bytes());
    wire.resize(wire.len().next_multiple_of(4), 0);
    wire
}

fn login_status(stream: &mut TcpStream) -> LoginStatus {
    let mut bhs = iscsi_proto::pdu::Bhs([0; 48]);
    stream.read_exact(&mut bhs.0).unwrap();
    LoginResponse::parse(&bhs).unwrap().status
}

/// The reply's flags, revision and private data.
fn reply(stream: &mut TcpStream) -> (u8, u8, Vec<u8>) {
    let mut fixed = [0; 20];
    stream.read_exact(&mut fixed).unwrap();
    assert_eq!(&fixed[..16], REPLY_KEY);
    let mut private = vec![0; usize::from(u16::from_be_bytes([fixed[18], fixed[19]]))];
    stream.read_exact(&mut private).unwrap();
    (fixed[16], fixed[17], private)
}

fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn wait_for(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(10), "in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn plain_logins_and_mpa_requests_share_a_port_in_whatever_pieces_they_come() {
    let (server, _) = serve(Limits::default());
    let mut whole = connect(&server);
    whole.write_all(&login()).unwrap();
    assert_eq!(login_status(&mut whole), LoginStatus::SUCCESS);
    let mut pieces = connect(&server);
    dribble(&mut pieces, &login());
    assert_eq!(login_status(&mut pieces), LoginStatus::SUCCESS);

    let mut whole = connect(&server);
    whole.write_all(REQUEST).unwrap();
    assert_eq!(reply(&mut whole).1, 1);
    let mut pieces = connect(&server);
    dribble(&mut pieces, REQUEST);
    let (flags, revision, private) = reply(&mut pieces);
    // Neither markers nor a reject; ZBVA is not supported (RFC 7145 appendix A).
    assert_eq!((flags & 0xa0, revision, &private[..]), (0, 1, &[0x80, 0, 0, 0][..]));
}

#[test]
fn private_data_may_be_missing_short_or_padded_and_are_bounded() {
    let (server, _) = serve(Limits::default());
    for len in [0, 1, 3, 4, 56, 512] {
        let mut stream = connect(&server);
        let mut request = REQUEST.to_vec();
        request[18..20].copy_from_slice(&u16::to_be_bytes(len));
        request.resize(20 + usize::from(len), 0xc0);
        stream.write_all(&request).unwrap();
        assert_eq!(reply(&mut stream).0 & 0x20, 0, "{len} bytes");
    }
    let mut stream = connect(&server);
    let mut request = REQUEST.to_vec();
    request[18..20].copy_from_slice(&u16::to_be_bytes(513));
    stream.write_all(&request).unwrap();
    assert!(is_closed(&mut stream));
}

#[test]
fn a_peer_that_wants_markers_is_rejected_and_told_so() {
    let (server, ends) = serve(Limits::default());
    let mut stream = connect(&server);
    let mut request = *REQUEST;
    request[16] = 0x80;
    stream.write_all(&request).unwrap();
    assert_eq!(reply(&mut stream).0 & 0x20, 0x20);
    assert!(is_closed(&mut stream));
    wait_for(|| ends.lock().unwrap().iter().any(|end| end.to_string().contains("markers")));
}

#[test]
fn garbage_is_turned_away_and_leaves_the_others_alone() {
    let (server, ends) = serve(Limits::default());
    let mut logged_in = connect(&server);
    logged_in.write_all(&login()).unwrap();
    assert_eq!(login_status(&mut logged_in), LoginStatus::SUCCESS);
    let garbage: &[&[u8]] = &[
        &[0xff; 600],
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n and more of it that nobody wants",
        &[0; 64],
        b"MQTT",
        REPLY_KEY,
    ];
    for bytes in garbage {
        let mut stream = connect(&server);
        stream.write_all(bytes).unwrap();
        let _ = stream.shutdown(Shutdown::Write);
        assert!(is_closed(&mut stream), "{bytes:?}");
    }
    // An MPA request that breaks off, at each of its bytes.
    for len in 0..REQUEST.len() {
        let mut stream = connect(&server);
        stream.write_all(&REQUEST[..len]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert!(is_closed(&mut stream), "{len} bytes of a request");
    }
    // What comes behind a request before it was answered breaks the protocol, whatever it is.
    let mut stream = connect(&server);
    stream.write_all(&[&REQUEST[..], &[7; 100]].concat()).unwrap();
    assert!(is_closed(&mut stream));
    // Wrong FPDUs behind the answer end the connection with a Terminate message or at once.
    let mut stream = connect(&server);
    stream.write_all(REQUEST).unwrap();
    reply(&mut stream);
    stream.write_all(&[0x5a; 2048]).unwrap();
    assert!(is_closed(&mut stream));
    wait_for(|| server.target().registry().connections() == 1);
    wait_for(|| ends.lock().unwrap().len() == garbage.len() + REQUEST.len() + 2);
    assert_eq!(server.sessions().len(), 1);
}

#[test]
fn who_says_nothing_or_little_is_let_go_in_time() {
    let limits = Limits { login_timeout: Duration::from_millis(200), ..Limits::default() };
    let (server, ends) = serve(limits);
    let start = Instant::now();
    let mut silent = connect(&server);
    let mut first = connect(&server);
    first.write_all(b"M").unwrap();
    let mut half = connect(&server);
    half.write_all(&REQUEST[..17]).unwrap();
    let mut established = connect(&server);
    established.write_all(REQUEST).unwrap();
    reply(&mut established);
    for stream in [&mut silent, &mut first, &mut half, &mut established] {
        assert!(is_closed(stream));
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    wait_for(|| ends.lock().unwrap().len() == 4);
    assert!(ends.lock().unwrap().iter().all(|end| *end == EndReason::LoginTimeout), "{ends:?}");
}

#[test]
fn silent_connections_count_and_hear_of_the_stop() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let (server, ends) = serve(limits);
    let mut silent = connect(&server);
    let mut begun = connect(&server);
    begun.write_all(REQUEST).unwrap();
    reply(&mut begun);
    wait_for(|| server.target().registry().connections() == 2);
    // One too many, of either kind: the oldest of those that have not logged in makes room.
    let mut third = connect(&server);
    third.write_all(REQUEST).unwrap();
    reply(&mut third);
    assert!(is_closed(&mut silent));
    let start = Instant::now();
    server.stop(Duration::from_millis(100));
    assert!(is_closed(&mut begun) && is_closed(&mut third));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(*ends.lock().unwrap(), [EndReason::Displaced, EndReason::Stopped, EndReason::Stopped]);
}

#[test]
fn a_portal_without_iwarp_takes_an_mpa_request_for_what_it_is_in_iscsi() {
    let (builder, _) = builder(Limits { login_timeout: Duration::from_millis(300), ..Limits::default() });
    let server = builder.iser(IserConfig { iwarp: false, ..IserConfig::default() }).start().unwrap();
    let mut stream = connect(&server);
    let mut request = REQUEST.to_vec();
    request.resize(48, 0);
    stream.write_all(&request).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "no MPA reply: {rest:?}");
}

#[test]
fn a_portal_that_cannot_have_its_rdma_device_says_why() {
    let (builder, _) = builder(Limits::default());
    let error = builder.iser(IserConfig { verbs: true, ..IserConfig::default() }).start().unwrap_err().to_string();
    // The libraries, the kernel's modules, or a device at that address: one of them is missing.
    assert!(error.contains("127.0.0.1:") && error.contains("for RDMA: "), "{error}");
}
