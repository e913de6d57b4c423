//! Connections that stop in the middle of their login.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use iscsi_proto::pdu::{BHS_LEN, Bhs, LoginRequest, Opcode, Stage};
use iser_transport::header::{ControlHeader, Header};

use super::{KIB, Measured, PATIENCE, ROUNDS};
use crate::program::TARGET;

/// As many as may log in at a time, with some room.
const CONNECTIONS: u64 = 250;
const ISER_KEYS: &str = "HeaderDigest=None\0DataDigest=None\0RDMAExtensions=Yes\0InitiatorRecvDataSegmentLength=8192\0\
                         TargetRecvDataSegmentLength=8192\0";

/// Where a peer stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Halt {
    /// The stream is there, over iSER with the startup frames of MPA.
    Connected,
    /// The first request is answered.
    Answered,
    /// So is the first, and 4 KB of the second have come, of 8.
    Unfinished,
    /// So is the first, and half of a text in two requests, and most of the other half has come.
    Gathered,
}

/// The initiator's end, over iSER by iWARP without CRC, one segment a message.
struct Peer {
    stream: TcpStream,
    iser: bool,
    sent: u32,
}

impl Peer {
    fn connect(portal: &str, iser: bool) -> Self {
        let mut stream = TcpStream::connect(portal).unwrap();
        if iser {
            stream.write_all(b"MPA ID Req Frame\0\x01\0\0").unwrap();
            let mut reply = [0; 20];
            stream.read_exact(&mut reply).unwrap();
            let mut private = vec![0; usize::from(u16::from_be_bytes([reply[18], reply[19]]))];
            stream.read_exact(&mut private).unwrap();
        }
        Self { stream, iser, sent: 0 }
    }

    /// Sends a request, all of it but for the last `missing` bytes.
    fn ask(&mut self, incomplete: bool, text: &str, missing: usize) {
        let mut bhs = LoginRequest {
            incomplete,
            csg: Stage::LoginOperationalNegotiation,
            nsg: None,
            ..LoginRequest::straight_to_full_feature([0x80, 1, 2, 3, 4, 5], 9)
        }
        .emit();
        bhs.set_data_segment_len(text.len() as u32);
        let mut bytes = [&bhs.0, text.as_bytes()].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        if self.iser {
            bytes = self.segment(&bytes);
        }
        self.stream.write_all(&bytes[..bytes.len() - missing]).unwrap();
    }

    /// A message in one FPDU of a Send (RFC 5044 4, RFC 5041 4.2, RFC 5040 4.1).
    fn segment(&mut self, pdu: &[u8]) -> Vec<u8> {
        self.sent += 1;
        let mut segment = vec![0x41, 0x43];
        for word in [0, 0, self.sent, 0] {
            segment.extend_from_slice(&u32::to_be_bytes(word));
        }
        segment.extend_from_slice(&Header::Control(ControlHeader::default()).emit());
        segment.extend_from_slice(pdu);
        let mut fpdu = (segment.len() as u16).to_be_bytes().to_vec();
        fpdu.append(&mut segment);
        fpdu.resize(fpdu.len().next_multiple_of(4) + 4, 0);
        fpdu
    }

    /// The answer to a request, which is short.
    fn is_answered(&mut self) {
        let bhs = if self.iser {
            let mut len = [0; 2];
            self.stream.read_exact(&mut len).unwrap();
            let len = usize::from(u16::from_be_bytes(len));
            let mut rest = vec![0; (2 + len).next_multiple_of(4) - 2 + 4];
            self.stream.read_exact(&mut rest).unwrap();
            Bhs(*rest[18 + 28..].first_chunk().unwrap())
        } else {
            let mut header = [0; BHS_LEN];
            self.stream.read_exact(&mut header).unwrap();
            let bhs = Bhs(header);
            let mut data = vec![0; bhs.data_segment_len().next_multiple_of(4) as usize];
            self.stream.read_exact(&mut data).unwrap();
            bhs
        };
        assert_eq!((bhs.opcode(), bhs.0[36]), (Ok(Opcode::LoginResponse), 0));
    }

    fn halt_at(&mut self, halt: Halt) {
        if halt == Halt::Connected {
            return;
        }
        let keys = if self.iser { ISER_KEYS } else { "" };
        let first = "InitiatorName=iqn.2026-11.example:halfway\0SessionType=Normal\0";
        self.ask(false, &format!("{first}TargetName={TARGET}\0{keys}"), 0);
        self.is_answered();
        let text = format!("X-example={}\0", "x".repeat(8100));
        match halt {
            Halt::Connected | Halt::Answered => {}
            Halt::Unfinished => self.ask(false, &text, 4100),
            Halt::Gathered => {
                self.ask(true, &text[..4000], 0);
                self.is_answered();
                self.ask(false, &text[4000..], 100);
            }
        }
    }
}

/// Waits until the server has taken all that was sent to it out of its sockets.
fn all_is_read(portal: &str) {
    let port: u16 = portal.rsplit(':').next().unwrap().parse().unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        // Columns of /proc/net/tcp: number, local address, remote address, state, queues `tx:rx`; numbers in hex.
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let unread = table.lines().skip(1).any(|line| {
            let columns: Vec<_> = line.split_whitespace().collect();
            // State 01 is ESTABLISHED.
            columns[1].ends_with(&format!(":{port:04X}")) && columns[3] == "01" && !columns[4].ends_with(":00000000")
        });
        if !unread {
            return;
        }
        assert!(Instant::now() < until, "the server does not read what it is sent");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn connections_cost_little(name: &str, iser: bool) {
    let measured = Measured::new(name, iser);
    let portal = measured.serving.portal();
    for halt in [Halt::Connected, Halt::Answered, Halt::Unfinished, Halt::Gathered] {
        if iser && halt == Halt::Gathered {
            // The text lies behind a hole that the receive for its first part left: what the connection itself has is
            // counted in `login_memory` of the target.
            continue;
        }
        for round in 1..=ROUNDS {
            let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| Peer::connect(&portal, iser)).collect();
            peers.iter_mut().for_each(|peer| peer.halt_at(halt));
            all_is_read(&portal);
            let more = measured.memory().saturating_sub(measured.start);
            let each = more / CONNECTIONS;
            drop(peers);
            let left = measured.has_given_back();
            println!(
                "{CONNECTIONS} connections, iSER {iser}, {halt:?}, round {round}: {each} bytes each, {} KiB when they \
                 have gone",
                left / KIB
            );
            assert!(each < 16 * KIB, "{each} bytes each, iSER {iser}, {halt:?}");
        }
    }
}

#[test]
fn connections_that_stop_in_their_login_over_tcp() {
    connections_cost_little("halfway", false);
}

#[test]
fn connections_that_stop_in_their_login_over_iwarp() {
    connections_cost_little("halfway-iser", true);
}
