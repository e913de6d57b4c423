//! An initiator that has receives for few PDUs that it does not wait for (RFC 7145 8.1.2), and a target with much to say.

use std::time::Duration;

use iscsi_proto::pdu::{Bhs, LogoutRequest, NopIn, NopOut, Opcode, RESERVED_TAG, Reject, ScsiResponse};
use iscsi_proto::serial::Serial;
use iser_transport::header::ControlHeader;
use iser_transport::loopback::{LoopbackConfig, LoopbackQueue, pair};
use iser_transport::mover::IserMover;
use iser_transport::queue::RemoteAccess;
use sim::by_hand::{Bench, cdb10, message, scsi_command};
use sim::link::Side;
use sim::store::Door;
use target_core::session::TargetConnection;

use super::script::{TARGET, serve};

const NONE: ControlHeader = ControlHeader { read: None, write: None };

/// An initiator by hand, and what it knows of StatSN.
struct Rig {
    bench: Bench<TargetConnection<IserMover<LoopbackQueue>>>,
    cmd_sn: u32,
    /// The StatSN that is expected next, and the one that is acknowledged.
    stat_sn: u32,
    acknowledged: u32,
}

impl Rig {
    fn new(limit: u32) -> Self {
        let (active, passive, fabric) = pair(LoopbackConfig::default(), 5);
        let (connection, served) = serve(passive, Door::Queue);
        let mut bench = Bench::new(connection, Side::Target, active, fabric, Some(served.store));
        bench.peer.receive(32, 76 + 8192);
        bench.settle();
        bench.peer.log_in(TARGET, &format!("MaxOutstandingUnexpectedPDUs={limit}\0"));
        bench.settle();
        let response = bench.peer.heard.pop_front().and_then(|heard| heard.bhs()).expect("login is answered");
        let stat_sn = stat_sn_of(&response) + 1;
        let mut rig = Self { bench, cmd_sn: 1, stat_sn, acknowledged: stat_sn };
        // The first command meets the unit attention of a new nexus.
        rig.command(NONE, [0; 16], (false, false), 0);
        assert_eq!(rig.heard().len(), 1);
        rig.acknowledged = rig.stat_sn;
        rig
    }

    fn send(&mut self, control: ControlHeader, mut bhs: Bhs) {
        bhs.0[28..32].copy_from_slice(&self.acknowledged.to_be_bytes());
        self.bench.peer.send(&message(control, bhs, &[], &[]), None);
    }

    fn post(&mut self, control: ControlHeader, itt: u32, cdb: [u8; 16], directions: (bool, bool), expected: u32) {
        self.send(control, scsi_command(itt, self.cmd_sn, cdb, directions, expected));
        self.cmd_sn += 1;
    }

    fn command(&mut self, control: ControlHeader, cdb: [u8; 16], directions: (bool, bool), expected: u32) {
        self.post(control, self.cmd_sn, cdb, directions, expected);
        self.rest();
    }

    /// SNACKs, which nothing but a Reject answers.
    fn snacks(&mut self, count: u32) {
        for _ in 0..count {
            let mut bhs = Bhs([0; 48]);
            bhs.0[0] = Opcode::SnackRequest as u8;
            bhs.0[1] = 0x80;
            self.send(NONE, bhs);
        }
        self.rest();
    }

    fn rest(&mut self) {
        self.bench.settle();
        self.bench.wait(Duration::from_millis(1));
    }

    /// What came, without a gap in its StatSN.
    fn heard(&mut self) -> Vec<Bhs> {
        let all: Vec<Bhs> = self.bench.peer.heard.drain(..).filter_map(|heard| heard.bhs()).collect();
        for bhs in &all {
            assert_eq!(stat_sn_of(bhs), self.stat_sn, "{:?}", bhs.opcode());
            // RFC 7143 11.19.2: a NOP-In that asks shows the next StatSN and does not take it.
            self.stat_sn += u32::from(bhs.itt() != RESERVED_TAG || bhs.opcode() != Ok(Opcode::NopIn));
        }
        all
    }

    fn rejects(&mut self) -> usize {
        let heard = self.heard();
        assert!(heard.iter().all(|bhs| Reject::parse(bhs).is_ok()));
        heard.len()
    }
}

fn stat_sn_of(bhs: &Bhs) -> u32 {
    u32::from_be_bytes([bhs.0[24], bhs.0[25], bhs.0[26], bhs.0[27]])
}

#[test]
fn rejects_stop_one_short_of_the_limit_until_they_are_acknowledged() {
    for limit in [2, 3, 5] {
        let mut rig = Rig::new(limit);
        rig.snacks(9);
        assert_eq!(rig.rejects(), limit as usize - 1);
        rig.snacks(9);
        assert_eq!(rig.rejects(), 0);
        rig.acknowledged = rig.stat_sn - 1;
        rig.command(NONE, [0; 16], (false, false), 0);
        assert_eq!(rig.heard().len(), 1);
        rig.snacks(9);
        // All but the last are acknowledged.
        assert_eq!(rig.rejects(), limit as usize - 2);
    }
    let mut rig = Rig::new(0);
    rig.snacks(9);
    assert_eq!(rig.rejects(), 9);
}

/// The last place is for the NOP-In that brings the acknowledgement.
#[test]
fn a_ping_goes_out_at_the_limit() {
    let mut rig = Rig::new(2);
    rig.snacks(3);
    assert_eq!(rig.rejects(), 1);
    rig.bench.wait(Duration::from_secs(31));
    let heard = rig.heard();
    let [ping] = heard[..] else { panic!("{heard:?}") };
    let ping = NopIn::parse(&ping).unwrap();
    assert_ne!(ping.ttt, RESERVED_TAG);
    rig.acknowledged = rig.stat_sn;
    let answer = NopOut {
        immediate: true,
        lun: 0,
        itt: RESERVED_TAG,
        ttt: ping.ttt,
        cmd_sn: Serial(rig.cmd_sn),
        exp_stat_sn: Serial(0),
    };
    rig.send(NONE, answer.emit());
    rig.rest();
    rig.snacks(3);
    assert_eq!(rig.rejects(), 1);
    assert_eq!(rig.bench.peer.ended, None);
}

/// A request has a receive for its answer, and gets it: also when that is a Reject.
#[test]
fn requests_are_answered_at_the_limit() {
    let mut rig = Rig::new(2);
    rig.snacks(3);
    assert_eq!(rig.rejects(), 1);
    let logout = LogoutRequest {
        immediate: true,
        reason: iscsi_proto::pdu::LogoutReason::CloseSession,
        itt: 77,
        cid: 0,
        cmd_sn: Serial(rig.cmd_sn),
        exp_stat_sn: Serial(0),
    };
    let mut bhs = logout.emit();
    bhs.0[1] = 0x80 | 0x55;
    rig.send(NONE, bhs);
    rig.rest();
    assert_eq!(rig.rejects(), 1);
    rig.command(NONE, [0; 16], (false, false), 0);
    assert_eq!(rig.heard().len(), 1);
}

/// A second command of the same tag is dropped without a word, and the first one keeps its STag.
#[test]
fn what_is_dropped_does_no_harm_to_what_it_resembles() {
    let mut rig = Rig::new(2);
    rig.snacks(3);
    assert_eq!(rig.rejects(), 1);
    let buffers: Vec<_> = (0..2).map(|_| rig.bench.peer.advertise(RemoteAccess::Write, 512).unwrap()).collect();
    for buffer in buffers {
        rig.post(ControlHeader { read: Some(buffer), write: None }, 500, cdb10(false, 0, 1), (true, false), 512);
    }
    rig.rest();
    let heard = rig.heard();
    let [response] = heard[..] else { panic!("{heard:?}") };
    let response = ScsiResponse::parse(&response).unwrap();
    assert_eq!((response.itt, response.status), (500, 0));
    let written: Vec<bool> = rig.bench.peer.advertised.iter().map(|own| own.bytes()[0] == 0).collect();
    assert_eq!(written, [true, false]);
    assert_eq!(rig.bench.peer.ended, None);
}
