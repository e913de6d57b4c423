//! The scripted initiator.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Waker};
use core::time::Duration;
use std::task::Wake;

use iscsi_memory::SendList;
use iscsi_proto::connection::{Connection, StreamConnection, StreamEnd};
use iscsi_proto::pdu::{
    Bhs, DataIn, LoginRequest, LoginResponse, LoginStatus, NopIn, NopOut, Opcode, RESERVED_TAG, Reject, RejectReason,
    ScsiCommand, ScsiResponse, Stage, TaskFunction, TaskManagementRequest, TaskManagementResponse, TaskResponse,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;

use super::text;
use crate::registry::Endpoints;
use crate::session::{EndReason, Target, TargetConnection};

pub(crate) const LOCAL: &str = "127.0.0.1:3260";

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One PDU from the target.
#[derive(Debug, Clone)]
pub(crate) struct Pdu {
    pub(crate) bhs: Bhs,
    pub(crate) data: Vec<u8>,
}

pub(crate) struct Peer {
    pub(crate) connection: TargetConnection<TcpMover>,
    flag: Arc<Flag>,
    waker: Waker,
    pub(crate) now: Instant,
    pub(crate) cmd_sn: Serial,
    pub(crate) stat_sn: Option<Serial>,
    pub(crate) max_cmd_sn: Serial,
    pub(crate) tsih: u16,
    pub(crate) isid: [u8; 6],
    bytes: Vec<u8>,
    inbox: VecDeque<Pdu>,
    /// Whether what the target sends is taken.
    pub(crate) takes: bool,
}

impl Peer {
    pub(crate) fn new(target: Arc<Target>) -> Self {
        let endpoints = Endpoints { local: LOCAL.parse().unwrap(), peer: "127.0.0.1:50000".parse().unwrap() };
        let mover = TcpMover::new(Role::Target, TcpMoverConfig::default());
        let now = Instant::from_nanos(1);
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(flag.clone());
        let mut peer = Self {
            connection: TargetConnection::new(target, mover, endpoints, [7; 64], now).expect("there is a seat"),
            flag,
            waker,
            now,
            cmd_sn: Serial(100),
            stat_sn: None,
            max_cmd_sn: Serial(0),
            tsih: 0,
            isid: [0x80, 0, 0, 0, 0, 1],
            bytes: Vec::new(),
            inbox: VecDeque::new(),
            takes: true,
        };
        peer.wake();
        peer
    }

    /// As a driver's pass after a wake.
    pub(crate) fn wake(&mut self) {
        loop {
            self.flag.0.store(false, Ordering::SeqCst);
            let mut cx = Context::from_waker(&self.waker);
            self.connection.handle_wake(&mut cx, self.now);
            self.take();
            if !self.flag.0.load(Ordering::SeqCst) && !self.connection.has_more_work() {
                return;
            }
        }
    }

    /// Lets time pass, as a driver's timer does.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.connection.poll_timeout()
            && due <= end
        {
            assert!(due >= self.now, "a timeout is never in the past");
            let before = self.now;
            self.now = due;
            self.connection.handle_timeout(due);
            self.take();
            let next = self.connection.poll_timeout();
            assert!(next != Some(due) || before != due, "the timer moves on");
        }
        self.now = end;
        self.wake();
    }

    fn take(&mut self) {
        while self.takes {
            let mut list = SendList::default();
            self.connection.fill_send_list(&mut list);
            let mut sent = Vec::new();
            for slice in list.as_slice() {
                let at = sent.len();
                sent.resize(at + slice.len(), 0);
                slice.copy_to(&mut sent[at..]);
            }
            if sent.is_empty() {
                break;
            }
            self.bytes.extend_from_slice(&sent);
            self.connection.handle_sent(sent.len(), self.now);
        }
        while self.bytes.len() >= 48 {
            let bhs = Bhs(*self.bytes.first_chunk::<48>().unwrap());
            let len = bhs.data_segment_len() as usize;
            let whole = 48 + len.next_multiple_of(4);
            if self.bytes.len() < whole {
                break;
            }
            let data = self.bytes[48..48 + len].to_vec();
            self.bytes.drain(..whole);
            self.check_numbers(&bhs);
            self.inbox.push_back(Pdu { bhs, data });
        }
    }

    /// StatSN runs without holes, and MaxCmdSN never goes back.
    fn check_numbers(&mut self, bhs: &Bhs) {
        let word = |at: usize| u32::from_be_bytes(bhs.0[at..at + 4].try_into().unwrap());
        let opcode = bhs.opcode().unwrap();
        let stat_sn = Serial(word(24));
        let takes = match opcode {
            Opcode::R2t => false,
            Opcode::DataIn => bhs.0[1] & 1 != 0,
            Opcode::NopIn => bhs.itt() != RESERVED_TAG,
            Opcode::LoginResponse => LoginResponse::parse(bhs).unwrap().status.class() == 0,
            _ => true,
        };
        if takes {
            if let Some(expected) = self.stat_sn {
                assert_eq!(stat_sn, expected, "{bhs} has a StatSN out of order");
            }
            self.stat_sn = Some(stat_sn.next());
        }
        let max = Serial(word(32));
        if opcode != Opcode::LoginResponse && self.max_cmd_sn != Serial(0) {
            assert!(max >= self.max_cmd_sn, "MaxCmdSN went back in {bhs}");
        }
        if opcode != Opcode::LoginResponse {
            assert!(Serial(word(28)).distance(max) >= -1, "MaxCmdSN is below ExpCmdSN - 1 in {bhs}");
        }
        self.max_cmd_sn = max;
    }

    pub(crate) fn bytes_in(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut window = self.connection.receive_window();
            let n = window.fill(bytes);
            if n == 0 {
                break;
            }
            self.connection.handle_received(n, self.now);
            bytes = &bytes[n..];
            self.take();
        }
        self.wake();
    }

    pub(crate) fn send_with(&mut self, mut bhs: Bhs, ahs: &[u8], data: &[u8]) {
        bhs.set_ahs_len(ahs.len());
        bhs.set_data_segment_len(data.len() as u32);
        let mut wire = bhs.0.to_vec();
        wire.extend_from_slice(ahs);
        wire.extend_from_slice(data);
        wire.resize(wire.len().next_multiple_of(4), 0);
        self.bytes_in(&wire);
    }

    pub(crate) fn send(&mut self, bhs: Bhs, data: &[u8]) {
        self.send_with(bhs, &[], data);
    }

    pub(crate) fn next(&mut self) -> Option<Pdu> {
        self.inbox.pop_front()
    }

    #[track_caller]
    pub(crate) fn expect(&mut self, opcode: Opcode) -> Pdu {
        let pdu = self.next().unwrap_or_else(|| panic!("nothing came instead of {opcode:?}: {:?}", self.end()));
        assert_eq!(pdu.bhs.opcode(), Ok(opcode), "{pdu:?}");
        pdu
    }

    #[track_caller]
    pub(crate) fn expect_nothing(&mut self) {
        assert!(self.inbox.is_empty(), "{:?}", self.inbox);
    }

    #[track_caller]
    pub(crate) fn expect_reject(&mut self, reason: RejectReason, of: &Bhs) {
        let pdu = self.expect(Opcode::Reject);
        assert_eq!(Reject::parse(&pdu.bhs).unwrap().reason, reason);
        // RFC 7143 11.17.4: the header of the bad PDU comes back.
        assert_eq!(pdu.data[..4], of.0[..4]);
        assert_eq!(pdu.data[8..], of.0[8..]);
    }

    pub(crate) fn end(&self) -> Option<&EndReason> {
        self.connection.end_reason()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.connection.is_finished()
    }

    pub(crate) fn login_request(&self) -> LoginRequest {
        LoginRequest { cid: 3, cmd_sn: self.cmd_sn, ..LoginRequest::straight_to_full_feature(self.isid, 1) }
    }

    pub(crate) fn try_log_in(&mut self, keys: &[(&str, &str)]) -> Option<LoginResponse> {
        let request = self.login_request();
        self.send(request.emit(), &text(keys));
        let pdu = self.next()?;
        Some(LoginResponse::parse(&pdu.bhs).unwrap())
    }

    #[track_caller]
    pub(crate) fn log_in(&mut self, initiator: &str, target: &str) {
        self.log_in_with(initiator, target, &[]);
    }

    #[track_caller]
    pub(crate) fn log_in_with(&mut self, initiator: &str, target: &str, keys: &[(&str, &str)]) {
        let mut all = vec![("InitiatorName", initiator), ("SessionType", "Normal"), ("TargetName", target)];
        all.extend_from_slice(keys);
        let response = self.try_log_in(&all).expect("login is answered");
        assert_eq!(response.status, LoginStatus::SUCCESS);
        assert_eq!(response.nsg, Some(Stage::FullFeaturePhase));
        assert_ne!(response.tsih, 0);
        assert_eq!(response.isid, self.isid);
        self.tsih = response.tsih;
    }

    #[track_caller]
    pub(crate) fn discover_as(&mut self, initiator: &str) {
        let response = self.try_log_in(&[("InitiatorName", initiator), ("SessionType", "Discovery")]).unwrap();
        assert_eq!(response.status, LoginStatus::SUCCESS);
    }

    /// A SCSI command header with the next CmdSN, which is not taken.
    pub(crate) fn command(&self, itt: u32, lun: u16, cdb: [u8; 16], length: u32) -> ScsiCommand {
        let write = matches!(cdb[0], 0x2a);
        ScsiCommand {
            read: !write && length > 0,
            write,
            lun: u64::from(lun) << 48,
            itt,
            expected_data_transfer_length: length,
            cmd_sn: self.cmd_sn,
            cdb,
            ..ScsiCommand::default()
        }
    }

    pub(crate) fn read(&mut self, itt: u32, lun: u16) {
        let command = self.command(itt, lun, read10(0, 1), 512);
        self.cmd_sn = self.cmd_sn.next();
        self.send(command.emit(), &[]);
    }

    pub(crate) fn write(&mut self, itt: u32, lun: u16, data: &[u8]) {
        let command = self.command(itt, lun, write10(0, 1), 512);
        self.cmd_sn = self.cmd_sn.next();
        self.send(command.emit(), data);
    }

    /// Takes the unit attention of a new nexus.
    #[track_caller]
    pub(crate) fn clear_attention(&mut self, lun: u16) {
        for itt in 0xf000_0000.. {
            let command = self.command(itt, lun, [0; 16], 0);
            self.cmd_sn = self.cmd_sn.next();
            self.send(command.emit(), &[]);
            if self.status(itt) == 0 {
                return;
            }
        }
    }

    /// The status of the next response, whichever PDU carries it.
    #[track_caller]
    pub(crate) fn status(&mut self, itt: u32) -> u8 {
        let pdu = self.next().unwrap_or_else(|| panic!("no response to {itt:#x}: {:?}", self.end()));
        assert_eq!(pdu.bhs.itt(), itt, "{pdu:?}");
        match pdu.bhs.opcode() {
            Ok(Opcode::ScsiResponse) => ScsiResponse::parse(&pdu.bhs).unwrap().status,
            Ok(Opcode::DataIn) => DataIn::parse(&pdu.bhs).unwrap().status.expect("status rides along").status,
            _ => panic!("no response: {pdu:?}"),
        }
    }

    /// Status and additional sense code of the next response.
    #[track_caller]
    pub(crate) fn sense(&mut self, itt: u32) -> Option<(u8, u8)> {
        let pdu = self.expect(Opcode::ScsiResponse);
        assert_eq!(pdu.bhs.itt(), itt);
        (pdu.data.len() > 15).then(|| (pdu.data[14], pdu.data[15]))
    }

    pub(crate) fn task_function(&self, function: TaskFunction, lun: u16, itt: u32) -> TaskManagementRequest {
        TaskManagementRequest {
            immediate: true,
            function: Ok(function),
            lun: u64::from(lun) << 48,
            itt,
            cmd_sn: self.cmd_sn,
            ..TaskManagementRequest::default()
        }
    }

    #[track_caller]
    pub(crate) fn function_response(&mut self, itt: u32) -> TaskResponse {
        let pdu = self.expect(Opcode::TaskManagementResponse);
        assert_eq!(pdu.bhs.itt(), itt);
        TaskManagementResponse::parse(&pdu.bhs).unwrap().response
    }

    /// A ping, and whether it comes back.
    #[track_caller]
    pub(crate) fn ping(&mut self, itt: u32) {
        let nop =
            NopOut { immediate: true, lun: 0, itt, ttt: RESERVED_TAG, cmd_sn: self.cmd_sn, exp_stat_sn: Serial(0) };
        self.send(nop.emit(), b"ping");
        let pdu = self.expect(Opcode::NopIn);
        assert_eq!(NopIn::parse(&pdu.bhs).unwrap().itt, itt);
        assert_eq!(pdu.data, b"ping");
    }

    /// ExpCmdSN, and how far MaxCmdSN is ahead of it.
    pub(crate) fn connection_window(&mut self) -> (Serial, i32) {
        let itt = 0xeeee_0000;
        let nop =
            NopOut { immediate: true, lun: 0, itt, ttt: RESERVED_TAG, cmd_sn: self.cmd_sn, exp_stat_sn: Serial(0) };
        self.send(nop.emit(), &[]);
        let pdu = self.expect(Opcode::NopIn);
        let nop = NopIn::parse(&pdu.bhs).unwrap();
        (nop.exp_cmd_sn, nop.exp_cmd_sn.distance(nop.max_cmd_sn))
    }

    /// A response that may be the unit attention of a new nexus.
    #[track_caller]
    pub(crate) fn clear_pending_attention(&mut self, itt: u32) {
        let _ = self.status(itt);
    }

    /// Bytes that wait to be taken.
    pub(crate) fn connection_backlog(&mut self) -> usize {
        let mut list = SendList::default();
        self.connection.fill_send_list(&mut list);
        list.len()
    }

    pub(crate) fn close(&mut self) {
        self.connection.handle_stream_end(StreamEnd::EndOfStream, self.now);
        self.wake();
    }
}

pub(crate) fn read10(lba: u32, blocks: u16) -> [u8; 16] {
    cdb10(0x28, lba, blocks)
}

pub(crate) fn write10(lba: u32, blocks: u16) -> [u8; 16] {
    cdb10(0x2a, lba, blocks)
}

fn cdb10(opcode: u8, lba: u32, blocks: u16) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}
