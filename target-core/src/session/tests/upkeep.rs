//! Pings, logout, shutdown, and peers that fall silent (RFC 7143 11.9, 11.14, 11.18).

use core::time::Duration;

use iscsi_proto::pdu::{
    AsyncEvent, AsyncMessage, LogoutReason, LogoutRequest, LogoutResponse, LogoutResult, NopIn, NopOut, Opcode,
    RESERVED_TAG, RejectReason,
};
use iscsi_proto::serial::Serial;

use super::peer::Peer;
use super::{ME, World};
use crate::node::Acl;
use crate::session::{EndReason, Limits};

fn logout(peer: &mut Peer, reason: LogoutReason, cid: u16) {
    let request = LogoutRequest { immediate: true, reason, itt: 77, cid, cmd_sn: peer.cmd_sn, exp_stat_sn: Serial(0) };
    peer.send(request.emit(), &[]);
}

fn outcome(peer: &mut Peer) -> LogoutResult {
    let pdu = peer.expect(Opcode::LogoutResponse);
    assert_eq!(pdu.bhs.itt(), 77);
    LogoutResponse::parse(&pdu.bhs).unwrap().response
}

#[test]
fn pings_come_back_while_the_store_is_slow() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    world.stores[0].shut();
    peer.read(1, 0);
    peer.ping(2);
    world.stores[0].open();
    peer.wake();
    assert_eq!(peer.status(1), 0);
}

#[test]
fn a_ping_without_tag_is_not_answered() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    let nop = NopOut {
        immediate: true,
        lun: 0,
        itt: RESERVED_TAG,
        ttt: RESERVED_TAG,
        cmd_sn: peer.cmd_sn,
        exp_stat_sn: Serial(0),
    };
    peer.send(nop.emit(), b"data");
    peer.expect_nothing();
}

#[test]
fn the_idle_are_asked_and_those_who_do_not_answer_are_gone() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.pass(Duration::from_secs(29));
    peer.expect_nothing();
    peer.pass(Duration::from_secs(1));
    let ask = NopIn::parse(&peer.expect(Opcode::NopIn).bhs).unwrap();
    assert_eq!(ask.itt, RESERVED_TAG);
    assert_ne!(ask.ttt, RESERVED_TAG);
    let answer = NopOut {
        immediate: true,
        lun: 0,
        itt: RESERVED_TAG,
        ttt: ask.ttt,
        cmd_sn: peer.cmd_sn,
        exp_stat_sn: Serial(0),
    };
    peer.send(answer.emit(), &[]);
    peer.expect_nothing();
    peer.send(answer.emit(), &[]);
    peer.expect_reject(RejectReason::InvalidPduField, &answer.emit());
    peer.pass(Duration::from_secs(31));
    peer.expect(Opcode::NopIn);
    peer.pass(Duration::from_secs(16));
    assert_eq!(peer.end(), Some(&EndReason::NopTimeout));
    assert!(peer.is_finished());
}

#[test]
fn a_question_that_is_still_queued_need_not_be_answered() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.takes = false;
    let ping =
        NopOut { immediate: true, lun: 0, itt: 5, ttt: RESERVED_TAG, cmd_sn: peer.cmd_sn, exp_stat_sn: Serial(0) };
    peer.send(ping.emit(), &[0; 4096]);
    peer.pass(Duration::from_secs(50));
    assert_eq!(peer.end(), None);
    peer.takes = true;
    peer.wake();
    assert_eq!(peer.expect(Opcode::NopIn).bhs.itt(), 5);
    assert_eq!(peer.expect(Opcode::NopIn).bhs.itt(), RESERVED_TAG);
    peer.pass(Duration::from_secs(14));
    assert_eq!(peer.end(), None);
    peer.pass(Duration::from_secs(16));
    assert_eq!(peer.end(), Some(&EndReason::NopTimeout));
}

#[test]
fn those_who_cannot_bear_it_are_not_asked() {
    let world = World::with(Limits::default(), |node| node.acl(Acl::new(ME).without_nop_in()));
    let mut peer = world.logged_in(ME);
    peer.pass(Duration::from_secs(600));
    peer.expect_nothing();
    peer.ping(1);
}

#[test]
fn a_peer_that_takes_nothing_is_not_served_for_ever() {
    let limits = Limits { nop_in_idle: None, send_backlog: 100_000, ..Limits::default() };
    let world = World::with(limits, |node| node);
    let mut peer = world.logged_in(ME);
    peer.takes = false;
    let ping =
        NopOut { immediate: true, lun: 0, itt: 5, ttt: RESERVED_TAG, cmd_sn: peer.cmd_sn, exp_stat_sn: Serial(0) };
    for _ in 0..100 {
        peer.send(ping.emit(), &[0; 4096]);
    }
    assert!(peer.connection_backlog() < 400_000, "requests wait until answers are taken");
    peer.takes = true;
    peer.wake();
    let mut answers = 0;
    while peer.next().is_some() {
        answers += 1;
    }
    assert!(answers > 20);
    peer.takes = false;
    peer.send(ping.emit(), &[0; 4096]);
    peer.pass(Duration::from_secs(121));
    assert_eq!(peer.end(), Some(&EndReason::SendTimeout));
    assert!(peer.is_finished());
}

#[test]
fn logout_ends_tasks_and_then_the_connection() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    world.stores[0].shut();
    peer.write(1, 0, &[1; 512]);
    logout(&mut peer, LogoutReason::CloseSession, 0);
    peer.expect_nothing();
    world.stores[0].open();
    peer.wake();
    assert_eq!(outcome(&mut peer), LogoutResult::Closed);
    peer.expect_nothing();
    assert_eq!(peer.end(), Some(&EndReason::LoggedOut));
    assert!(peer.is_finished());
}

#[test]
fn logouts_that_cannot_be_are_answered_and_change_nothing() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    logout(&mut peer, LogoutReason::CloseConnection, 4);
    assert_eq!(outcome(&mut peer), LogoutResult::CidNotFound);
    logout(&mut peer, LogoutReason::RemoveForRecovery, 3);
    assert_eq!(outcome(&mut peer), LogoutResult::RecoveryNotSupported);
    peer.ping(1);
    logout(&mut peer, LogoutReason::CloseConnection, 3);
    assert_eq!(outcome(&mut peer), LogoutResult::Closed);
    assert!(peer.is_finished());
}

/// The answer comes while initiators listen for it, and the nexus stays known until what it began has ended.
#[test]
fn a_store_that_hangs_does_not_hold_a_logout_for_long() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    world.stores[0].shut();
    peer.write(1, 0, &[9; 512]);
    logout(&mut peer, LogoutReason::CloseSession, 0);
    peer.pass(Duration::from_millis(1999));
    peer.expect_nothing();
    peer.pass(Duration::from_millis(1));
    assert_eq!(outcome(&mut peer), LogoutResult::CleanupFailed);
    assert_eq!(peer.end(), Some(&EndReason::LoggedOut));
    let mut again = world.connect();
    let keys = [("InitiatorName", ME), ("SessionType", "Normal"), ("TargetName", super::TARGET)];
    assert!(again.try_log_in(&keys).is_none(), "the write may still land");
    peer.pass(Duration::from_secs(30));
    assert!(peer.is_finished(), "the connection does not wait for it");
    again.wake();
    again.expect_nothing();
    world.stores[0].open();
    world.target.registry().poll_unfinished(core::task::Waker::noop());
    again.wake();
    again.expect(Opcode::LoginResponse);
}

#[test]
fn a_target_that_stops_asks_for_a_logout_first() {
    let world = World::new();
    let mut polite = world.logged_in(ME);
    let mut slow = world.connect();
    slow.isid[5] = 2;
    slow.log_in(ME, super::TARGET);
    let mut early = world.connect();
    world.target.registry().stop(Duration::from_secs(3));
    for peer in [&mut polite, &mut slow] {
        peer.wake();
        let message = AsyncMessage::parse(&peer.expect(Opcode::AsyncMessage).bhs).unwrap();
        assert_eq!((message.event, message.parameter3), (AsyncEvent::LogoutRequest, 3));
        peer.ping(1);
    }
    early.wake();
    assert!(early.is_finished());
    logout(&mut polite, LogoutReason::CloseSession, 0);
    assert_eq!(outcome(&mut polite), LogoutResult::Closed);
    assert!(polite.is_finished());
    slow.pass(Duration::from_secs(3));
    let message = AsyncMessage::parse(&slow.expect(Opcode::AsyncMessage).bhs).unwrap();
    assert_eq!(message.event, AsyncEvent::SessionDrop);
    assert_eq!(slow.end(), Some(&EndReason::Stopped));
    assert!(slow.is_finished());
    assert_eq!(world.target.registry().connections(), 0);
}

#[test]
fn counters_count_what_was_done() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    let before = world.target.registry().sessions()[0].statistics;
    peer.read(1, 0);
    peer.write(2, 0, &[1; 512]);
    let bad = peer.command(3, 0, [0xff; 16], 0);
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(bad.emit(), &[]);
    let done = world.target.registry().sessions()[0].statistics.since(&before);
    assert_eq!((done.reads, done.writes, done.other, done.errors), (1, 1, 1, 1));
    assert_eq!((done.read_bytes, done.written_bytes), (512, 512));
    world.stores[0].shut();
    peer.read(4, 0);
    peer.pass(Duration::from_millis(5));
    world.stores[0].open();
    peer.wake();
    let done = world.target.registry().sessions()[0].statistics.since(&before);
    assert_eq!(done.busy_nanos, 5_000_000);
}
