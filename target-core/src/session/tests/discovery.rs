//! Discovery sessions and text requests (RFC 7143 4.3, 6.4, Appendix C).

use alloc::string::String;
use alloc::vec::Vec;

use iscsi_proto::pdu::{
    LogoutReason, LogoutRequest, NopOut, Opcode, RESERVED_TAG, RejectReason, TextRequest, TextResponse,
};
use iscsi_proto::serial::Serial;

use super::peer::Peer;
use super::{ME, OTHER, TARGET, World, text};
use crate::node::{Portal, PortalGroup};
use crate::session::EndReason;

fn request(peer: &mut Peer, ttt: u32) -> TextRequest {
    let request = TextRequest {
        immediate: false,
        is_final: true,
        incomplete: false,
        lun: 0,
        itt: 7,
        ttt,
        cmd_sn: peer.cmd_sn,
        exp_stat_sn: Serial(0),
    };
    peer.cmd_sn = peer.cmd_sn.next();
    request
}

/// The whole answer, and in how many PDUs it came.
fn ask(peer: &mut Peer, keys: &[(&str, &str)]) -> (String, usize) {
    let first = request(peer, RESERVED_TAG);
    peer.send(first.emit(), &text(keys));
    let (mut answer, mut pdus) = (Vec::new(), 0);
    loop {
        let pdu = peer.expect(Opcode::TextResponse);
        let response = TextResponse::parse(&pdu.bhs).unwrap();
        answer.extend_from_slice(&pdu.data);
        pdus += 1;
        if response.is_final {
            return (String::from_utf8(answer).unwrap().replace('\0', "\n"), pdus);
        }
        assert!(response.incomplete);
        let more = request(peer, response.ttt);
        peer.send(more.emit(), &[]);
    }
}

fn log_out(peer: &mut Peer) {
    let logout = LogoutRequest {
        immediate: false,
        reason: LogoutReason::CloseSession,
        itt: 8,
        cid: 0,
        cmd_sn: peer.cmd_sn,
        exp_stat_sn: Serial(0),
    };
    peer.send(logout.emit(), &[]);
    peer.expect(Opcode::LogoutResponse);
    assert_eq!(peer.end(), Some(&EndReason::LoggedOut));
    assert!(peer.is_finished());
}

#[test]
fn initiators_hear_of_the_targets_that_they_may_use() {
    let world = World::new();
    let mut peer = world.connect();
    peer.discover_as(ME);
    let record = "TargetName=iqn.2026-11.example:disk\nTargetAddress=127.0.0.1:3260,1\n";
    assert_eq!(ask(&mut peer, &[("SendTargets", "All")]).0, record);
    assert_eq!(ask(&mut peer, &[("SendTargets", TARGET)]).0, record);
    assert_eq!(ask(&mut peer, &[("SendTargets", "iqn.2026-11.example:hidden")]).0, "");
    assert_eq!(ask(&mut peer, &[("SendTargets", "nonsense")]).0, "");
    assert_eq!(ask(&mut peer, &[("SendTargets", "")]).0, "SendTargets=Reject\n");
    log_out(&mut peer);
    let mut peer = world.connect();
    peer.discover_as(OTHER);
    assert!(ask(&mut peer, &[("SendTargets", "All")]).0.contains("hidden\nTargetAddress=127.0.0.1:3262,1"));
}

/// RFC 7143 Appendix C: every address of every portal group, in each kind of question.
#[test]
fn all_ways_to_a_target_are_told() {
    let world = World::with(Default::default(), |node| {
        let second = PortalGroup::new(2).portal(Portal::new("127.0.0.2:3261".parse().unwrap()));
        node.portal("127.0.0.1:3263".parse().unwrap())
            .portal_group(second.portal(Portal::new("[::1]:3264".parse().unwrap())))
    });
    let record = "TargetName=iqn.2026-11.example:disk\nTargetAddress=127.0.0.1:3260,1\nTargetAddress=127.0.0.1:3263,1\n\
                  TargetAddress=127.0.0.2:3261,2\nTargetAddress=[::1]:3264,2\n";
    let mut peer = world.connect();
    peer.discover_as(ME);
    assert_eq!(ask(&mut peer, &[("SendTargets", "All")]).0, record);
    assert_eq!(ask(&mut peer, &[("SendTargets", TARGET)]).0, record);
    let mut peer = world.logged_in(ME);
    assert_eq!(ask(&mut peer, &[("SendTargets", "")]).0, record);
}

#[test]
fn a_normal_session_hears_of_its_own_target() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    let record = "TargetName=iqn.2026-11.example:disk\nTargetAddress=127.0.0.1:3260,1\n";
    assert_eq!(ask(&mut peer, &[("SendTargets", "")]).0, record);
    assert_eq!(ask(&mut peer, &[("SendTargets", "All")]).0, "SendTargets=Reject\n");
    log_out(&mut peer);
    // Of another one that it may use it hears in a discovery session.
    let mut peer = world.logged_in(OTHER);
    assert_eq!(ask(&mut peer, &[("SendTargets", "iqn.2026-11.example:hidden")]).0, "");
    assert_eq!(ask(&mut peer, &[("SendTargets", TARGET)]).0, record);
}

#[test]
fn long_answers_come_in_pieces() {
    let world = World::with(Default::default(), |mut node| {
        for port in 4000..4040 {
            node = node.portal(std::format!("127.0.0.1:{port}").parse().unwrap());
        }
        node
    });
    let mut peer = world.connect();
    let login = [("InitiatorName", ME), ("SessionType", "Discovery"), ("MaxRecvDataSegmentLength", "512")];
    peer.try_log_in(&login).unwrap();
    let (answer, pdus) = ask(&mut peer, &[("SendTargets", "All")]);
    assert_eq!(answer.lines().count(), 42);
    assert!(answer.lines().all(|line| line.starts_with("Target")));
    assert_eq!(pdus, answer.len().div_ceil(512));
}

#[test]
fn a_discovery_session_takes_text_and_logout_only() {
    let world = World::new();
    let mut peer = world.connect();
    peer.discover_as(ME);
    let command = peer.command(1, 0, [0; 16], 0).emit();
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command, &[]);
    peer.expect_reject(RejectReason::CommandNotSupported, &command);
    let nop =
        NopOut { immediate: true, lun: 0, itt: 2, ttt: RESERVED_TAG, cmd_sn: peer.cmd_sn, exp_stat_sn: Serial(0) }
            .emit();
    peer.send(nop, &[]);
    peer.expect_reject(RejectReason::CommandNotSupported, &nop);
    let close = LogoutRequest {
        immediate: true,
        reason: LogoutReason::CloseConnection,
        itt: 3,
        cid: 3,
        cmd_sn: peer.cmd_sn,
        exp_stat_sn: Serial(0),
    }
    .emit();
    peer.send(close, &[]);
    peer.expect_reject(RejectReason::ProtocolError, &close);
    log_out(&mut peer);
}

#[test]
fn keys_in_the_full_feature_phase_are_answered() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    assert_eq!(ask(&mut peer, &[("X-com.example.key", "1")]).0, "X-com.example.key=NotUnderstood\n");
    let (_, pdus) = ask(&mut peer, &[("MaxRecvDataSegmentLength", "512")]);
    assert_eq!(pdus, 1);
    let nop =
        NopOut { immediate: true, lun: 0, itt: 2, ttt: RESERVED_TAG, cmd_sn: peer.cmd_sn, exp_stat_sn: Serial(0) };
    peer.send(nop.emit(), &[1; 2000]);
    assert_eq!(peer.expect(Opcode::NopIn).data.len(), 512, "the new limit holds");
}

#[test]
fn a_text_exchange_that_is_none_is_rejected() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    let stale = request(&mut peer, 0x1234).emit();
    peer.send(stale, &[]);
    peer.expect_reject(RejectReason::InvalidPduField, &stale);
    let broken = request(&mut peer, RESERVED_TAG).emit();
    peer.send(broken, b"no equals sign\0");
    peer.expect_reject(RejectReason::ProtocolError, &broken);
    peer.ping(4);
}

#[test]
fn a_failed_negotiation_leaves_the_values() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    let twice = request(&mut peer, RESERVED_TAG).emit();
    let key = "MaxRecvDataSegmentLength";
    peer.send(twice, &text(&[(key, "512"), (key, "1024")]));
    peer.expect_reject(RejectReason::ProtocolError, &twice);
    let nop =
        NopOut { immediate: true, lun: 0, itt: 2, ttt: RESERVED_TAG, cmd_sn: peer.cmd_sn, exp_stat_sn: Serial(0) };
    peer.send(nop.emit(), &[1; 2000]);
    assert_eq!(peer.expect(Opcode::NopIn).data.len(), 2000);
}

/// How long the data of a NOP-In are: as long as MaxRecvDataSegmentLength lets them be.
fn largest(peer: &mut Peer) -> usize {
    let nop =
        NopOut { immediate: true, lun: 0, itt: 2, ttt: RESERVED_TAG, cmd_sn: peer.cmd_sn, exp_stat_sn: Serial(0) };
    peer.send(nop.emit(), &[1; 2000]);
    peer.expect(Opcode::NopIn).data.len()
}

#[test]
fn a_negotiation_over_several_requests_holds_at_its_end_or_not_at_all() {
    const KEY: &str = "MaxRecvDataSegmentLength";
    let world = World::new();
    let mut peer = world.logged_in(ME);
    let begin = |peer: &mut Peer| {
        let first = TextRequest { is_final: false, ..request(peer, RESERVED_TAG) };
        peer.send(first.emit(), &text(&[(KEY, "512")]));
        let response = TextResponse::parse(&peer.expect(Opcode::TextResponse).bhs).unwrap();
        assert!(!response.is_final);
        response.ttt
    };
    // A key twice, and a reset, leave the old value.
    let ttt = begin(&mut peer);
    let again = request(&mut peer, ttt).emit();
    peer.send(again, &text(&[(KEY, "1024")]));
    peer.expect_reject(RejectReason::ProtocolError, &again);
    assert_eq!(largest(&mut peer), 2000);
    begin(&mut peer);
    let reset = request(&mut peer, RESERVED_TAG).emit();
    peer.send(reset, &text(&[("X-com.example.key", "1")]));
    peer.expect(Opcode::TextResponse);
    assert_eq!(largest(&mut peer), 2000);
    // So does a request that does not belong to it.
    let ttt = begin(&mut peer);
    let stale = request(&mut peer, ttt ^ 0x4000).emit();
    peer.send(stale, &[]);
    peer.expect_reject(RejectReason::InvalidPduField, &stale);
    assert_eq!(largest(&mut peer), 2000);
    // At its end it holds.
    let ttt = begin(&mut peer);
    assert_eq!(largest(&mut peer), 2000);
    let last = request(&mut peer, ttt).emit();
    peer.send(last, &[]);
    peer.expect(Opcode::TextResponse);
    assert_eq!(largest(&mut peer), 512);
}
