//! An initiator over iWARP that owes the data of an RDMA Read: a raw peer on a socket, which answers what it likes.
#![cfg(feature = "iser")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstore::NullStore;
use iscsi_proto::pdu::{
    Bhs, LoginRequest, LoginResponse, LoginStatus, Opcode, ScsiCommand, TaskFunction, TaskManagementRequest,
    TaskManagementResponse, TaskResponse,
};
use iscsi_proto::serial::Serial;
use iser_transport::header::{ControlHeader, HEADER_LEN, Header};
use iser_transport::queue::{RemoteBuffer, Stag};
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{Portal, PortalGroup, TargetConfig, TargetNode};
use target_core::server::Server;
use target_core::session::{EndReason, Limits};

const NAME: &str = "iqn.2026-11.example:owed";
const KEYS: &str = "HeaderDigest=None\0DataDigest=None\0RDMAExtensions=Yes\0InitiatorRecvDataSegmentLength=8192\0\
                    TargetRecvDataSegmentLength=8192\0";

/// RDMAP's opcodes (RFC 5040 4.1).
const READ_REQUEST: u8 = 1;
const SEND: u8 = 3;

/// The initiator's end, without CRC: MPA, DDP and RDMAP by hand, one segment a message.
struct Peer {
    stream: TcpStream,
    sent: u32,
}

impl Peer {
    fn connect(address: std::net::SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"MPA ID Req Frame\0\x01\0\0").unwrap();
        let mut reply = [0; 20];
        stream.read_exact(&mut reply).unwrap();
        let mut private = vec![0; usize::from(u16::from_be_bytes([reply[18], reply[19]]))];
        stream.read_exact(&mut private).unwrap();
        assert_eq!(reply[16] & 0x40, 0, "no CRC");
        Self { stream, sent: 0 }
    }

    fn send(&mut self, control: ControlHeader, mut bhs: Bhs, data: &[u8]) {
        bhs.set_data_segment_len(data.len() as u32);
        self.sent += 1;
        let mut segment = vec![0x41, 0x40 | SEND];
        for word in [0, 0, self.sent, 0] {
            segment.extend_from_slice(&word.to_be_bytes());
        }
        segment.extend_from_slice(&Header::Control(control).emit());
        segment.extend_from_slice(&bhs.0);
        segment.extend_from_slice(data);
        let mut frame = (segment.len() as u16).to_be_bytes().to_vec();
        frame.append(&mut segment);
        frame.resize(frame.len().next_multiple_of(4) + 4, 0);
        self.stream.write_all(&frame).unwrap();
    }

    /// The next segment: its RDMAP opcode and what is behind DDP's header. None at the end of the stream.
    fn segment(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut len = [0; 2];
        self.stream.read_exact(&mut len).ok()?;
        let len = usize::from(u16::from_be_bytes(len));
        let mut rest = vec![0; (2 + len).next_multiple_of(4) - 2 + 4];
        self.stream.read_exact(&mut rest).ok()?;
        let headers = if rest[0] & 0x80 != 0 { 14 } else { 18 };
        Some((rest[1] & 0x0f, rest[headers..len].to_vec()))
    }

    /// The next PDU; what else comes is passed over. None at the end of the stream.
    fn pdu(&mut self) -> Option<Bhs> {
        loop {
            let (opcode, message) = self.segment()?;
            if let Some(bhs) = message.get(HEADER_LEN..).and_then(<[u8]>::first_chunk)
                && opcode == SEND
            {
                return Some(Bhs(*bhs));
            }
        }
    }

    fn log_in(&mut self) {
        let text = format!("InitiatorName=iqn.2026-11.example:me\0SessionType=Normal\0TargetName={NAME}\0{KEYS}");
        let request = LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 0, 1], 1);
        self.send(ControlHeader::default(), request.emit(), text.as_bytes());
        let response = LoginResponse::parse(&self.pdu().unwrap()).unwrap();
        assert_eq!((response.status, response.nsg.is_some()), (LoginStatus::SUCCESS, true));
    }
}

/// An aborted write whose data the initiator owes over RDMA ends the session, and does not leave the function that
/// aborted it unanswered: nothing of the write can land any more.
#[test]
fn who_owes_rdma_data_hears_that_its_own_reset_is_complete() {
    for function in [TaskFunction::AbortTask, TaskFunction::LogicalUnitReset, TaskFunction::AbortTaskSet] {
        let unit = LogicalUnit::new(Arc::new(NullStore::new(1 << 20)), Identity::from_seed("owed")).unwrap();
        let portal = Portal::new("127.0.0.1:0".parse().unwrap()).with_iser();
        let group = PortalGroup::new(1).portal(portal);
        let node = TargetNode::builder().name(NAME).lun(0, Arc::new(unit)).open().portal_group(group);
        let ends = Arc::new(Mutex::new(Vec::new()));
        let seen = ends.clone();
        let limits = Limits { owed_data_wait: Duration::from_millis(20), ..Limits::default() };
        let server = Server::builder(TargetConfig::builder().node(node).build().unwrap())
            .workers(1)
            .limits(limits)
            .on_end(move |_, reason: &EndReason| seen.lock().unwrap().push(reason.clone()))
            .start()
            .unwrap();
        let mut peer = Peer::connect(server.local_addrs()[0]);
        peer.log_in();
        let command = |itt, cdb, write| ScsiCommand {
            write,
            itt,
            cmd_sn: Serial(itt),
            expected_data_transfer_length: if write { 32768 } else { 0 },
            cdb,
            ..ScsiCommand::default()
        };
        // It meets the unit attention of a new nexus.
        peer.send(ControlHeader::default(), command(1, [0; 16], false).emit(), &[]);
        assert_eq!(peer.pdu().unwrap().opcode(), Ok(Opcode::ScsiResponse));
        let write = Some(RemoteBuffer { stag: Stag(7), offset: 0 });
        let mut cdb = [0; 16];
        cdb[..10].copy_from_slice(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 64, 0]);
        peer.send(ControlHeader { write, read: None }, command(2, cdb, true).emit(), &[]);
        while peer.segment().unwrap().0 != READ_REQUEST {}
        let request = TaskManagementRequest {
            immediate: true,
            function: Ok(function),
            itt: 9,
            referenced_task_tag: 2,
            cmd_sn: Serial(3),
            ref_cmd_sn: Serial(2),
            ..TaskManagementRequest::default()
        };
        peer.send(ControlHeader::default(), request.emit(), &[]);
        let answer = core::iter::from_fn(|| peer.pdu()).find_map(|bhs| TaskManagementResponse::parse(&bhs).ok());
        assert_eq!(answer.map(|answer| answer.response), Some(TaskResponse::Complete), "{function:?}");
        while peer.segment().is_some() {}
        drop(peer);
        server.stop(Duration::ZERO);
        assert_eq!(*ends.lock().unwrap(), [EndReason::DataOwed]);
    }
}
