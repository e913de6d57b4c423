//! Who gets in, and what happens to the session that was there before (RFC 7143 6.3.5, 11.13.5).

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::Waker;
use core::time::Duration;
use std::sync::Mutex;

use iscsi_proto::chap::ChapSecret;
use iscsi_proto::login::ChapAccount;
use iscsi_proto::pdu::{Bhs, LoginRequest, LoginResponse, LoginStatus, Opcode};

use super::{ME, OTHER, TARGET, World};
use crate::node::{Acl, Attributes};
use crate::registry::{EndCause, Event};
use crate::session::{EndReason, Limits, TargetConnection};

fn keys<'a>(initiator: &'a str, target: &'a str) -> [(&'a str, &'a str); 3] {
    [("InitiatorName", initiator), ("SessionType", "Normal"), ("TargetName", target)]
}

#[test]
fn a_session_is_in_the_list_from_login_to_logout() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    let sessions = world.target.registry().sessions();
    assert_eq!(sessions.len(), 1);
    let session = &sessions[0];
    assert_eq!((session.initiator_name.as_str(), session.target_name.as_deref()), (ME, Some(TARGET)));
    assert_eq!((session.tsih, session.portal_group_tag, session.transport), (peer.tsih, Some(1), "tcp"));
    // RFC 7143 4.4.3: its TSIH stays, and is nobody else's.
    let mut other = world.logged_in(OTHER);
    assert_ne!(other.tsih, peer.tsih);
    peer.ping(5);
    other.ping(6);
    let tsih = |name| {
        let sessions = world.target.registry().sessions();
        sessions.into_iter().find(|session| session.initiator_name == name).map(|session| session.tsih)
    };
    assert_eq!((tsih(ME), tsih(OTHER)), (Some(peer.tsih), Some(other.tsih)));
    other.close();
    peer.close();
    assert!(peer.is_finished());
    assert!(world.target.registry().sessions().is_empty());
    assert_eq!(world.target.registry().connections(), 0);
}

#[test]
fn refusals_have_their_status_and_end_the_connection() {
    let world = World::new();
    let hidden = "iqn.2026-11.example:hidden";
    for (initiator, target, status) in [
        (ME, "iqn.2026-11.example:none", LoginStatus::NOT_FOUND),
        (OTHER, hidden, LoginStatus::NOT_FOUND),
        (ME, "disk", LoginStatus::INITIATOR_ERROR),
        ("me", TARGET, LoginStatus::INITIATOR_ERROR),
    ] {
        let mut peer = world.connect();
        let response = peer.try_log_in(&keys(initiator, target)).unwrap();
        assert_eq!(response.status, status, "{initiator} at {target}");
        assert!(matches!(peer.end(), Some(EndReason::Login(_))));
        assert!(peer.is_finished());
    }
}

#[test]
fn an_initiator_without_acl_is_not_authorized() {
    let closed = Attributes { authentication: false, ..Attributes::default() };
    let world = World::with(Limits::default(), |node| node.attributes(closed).acl(Acl::new(OTHER)));
    let response = world.connect().try_log_in(&keys(ME, TARGET)).unwrap();
    assert_eq!(response.status, LoginStatus::AUTHORIZATION_FAILURE);
    world.logged_in(OTHER).ping(1);
}

#[test]
fn authentication_is_not_skipped() {
    let account = || ChapAccount { user: "me".into(), secret: ChapSecret::new("twelve bytes."), mutual: None };
    let strict = Attributes { generate_node_acls: true, ..Attributes::default() };
    let world = World::with(Limits::default(), |node| node.attributes(strict).account(account()));
    let response = world.connect().try_log_in(&keys(ME, TARGET)).unwrap();
    assert_eq!(response.status, LoginStatus::AUTHENTICATION_FAILURE);
    assert!(world.target.registry().sessions().is_empty());
}

#[test]
fn a_tsih_joins_nothing() {
    let world = World::new();
    let first = world.logged_in(ME);
    for (tsih, cid, status) in [
        (first.tsih, 4, LoginStatus::TOO_MANY_CONNECTIONS),
        (first.tsih, 3, LoginStatus::CANNOT_INCLUDE_IN_SESSION),
        (first.tsih + 1, 3, LoginStatus::SESSION_DOES_NOT_EXIST),
    ] {
        let mut peer = world.connect();
        let mut request = peer.login_request();
        (request.tsih, request.cid) = (tsih, cid);
        peer.send(request.emit(), &super::text(&keys(ME, TARGET)));
        let pdu = peer.expect(Opcode::LoginResponse);
        assert_eq!(LoginResponse::parse(&pdu.bhs).unwrap().status, status);
    }
}

#[test]
fn a_silent_peer_is_sent_away_in_time() {
    let world = World::new();
    let mut peer = world.connect();
    peer.pass(Duration::from_secs(14));
    assert!(!peer.is_finished());
    peer.pass(Duration::from_secs(1));
    assert_eq!(peer.end(), Some(&EndReason::LoginTimeout));
    assert!(peer.is_finished());
    assert_eq!(world.target.registry().connections(), 0);
}

/// RFC 7143 6.1: 8192 bytes are taken, and who has proved nothing costs no more.
#[test]
fn a_login_text_over_several_pdus_is_taken_up_to_8192_bytes_and_no_further() {
    let first = [keys(ME, TARGET).map(|(key, value)| std::format!("{key}={value}\0")).concat(), "X-a=".into()].concat();
    for (len, status) in [(8192, LoginStatus::SUCCESS), (8193, LoginStatus::INITIATOR_ERROR)] {
        let world = World::new();
        let mut peer = world.connect();
        let more = LoginRequest { incomplete: true, nsg: None, ..peer.login_request() };
        let mut text = first.clone().into_bytes();
        // Several values, since one has at most 255 bytes where no method asks for more.
        while text.len() + 256 < len {
            text.resize(text.len() + 200, b'x');
            text.extend_from_slice(std::format!("\0X-{}=", text.len()).as_bytes());
        }
        text.resize(len - 1, b'x');
        text.push(0);
        let (start, end) = text.split_at(4100);
        peer.send(more.emit(), start);
        assert_eq!(LoginResponse::parse(&peer.next().unwrap().bhs).unwrap().status, LoginStatus::SUCCESS);
        peer.send(peer.login_request().emit(), end);
        assert_eq!(LoginResponse::parse(&peer.next().unwrap().bhs).unwrap().status, status, "{len}");
    }
}

#[test]
fn a_command_before_login_ends_the_connection() {
    let world = World::new();
    let mut peer = world.connect();
    let command = peer.command(1, 0, [0; 16], 0);
    peer.send(command.emit(), &[]);
    assert!(peer.is_finished());
    let mut peer = world.connect();
    peer.bytes_in(b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n");
    assert!(peer.is_finished());
}

#[test]
fn connections_and_sessions_are_limited() {
    let limits = Limits { connections: 2, sessions: 1, ..Limits::default() };
    let world = World::with(limits, |node| node);
    let _first = world.logged_in(ME);
    let mut second = world.connect();
    let mover = iscsi_proto::tcp::TcpMover::new(iscsi_proto::tcp::Role::Target, Default::default());
    let endpoints = second.connection.endpoints();
    assert!(TargetConnection::new(world.target.clone(), mover, endpoints, [7; 64], second.now).is_some());
    // It had not logged in, and the last one needed its place.
    second.wake();
    assert_eq!(second.end(), Some(&EndReason::Displaced));
    let mut second = world.connect();
    let response = second.try_log_in(&keys(OTHER, TARGET)).unwrap();
    assert_eq!(response.status, LoginStatus::OUT_OF_RESOURCES);
    // The same nexus takes its own place.
    let mut again = world.connect();
    let request = again.login_request();
    again.send(request.emit(), &super::text(&keys(ME, TARGET)));
    again.expect_nothing();
}

#[test]
fn a_new_login_of_the_same_nexus_replaces_the_old_session() {
    let world = World::new();
    let mut old = world.logged_in(ME);
    old.clear_attention(0);
    world.stores[0].shut();
    old.write(1, 0, &[7; 512]);
    let mut new = world.connect();
    assert!(new.try_log_in(&keys(ME, TARGET)).is_none(), "the old session's write is under way");
    old.wake();
    assert_eq!(old.end(), Some(&EndReason::Told(EndCause::Reinstated)));
    assert!(!old.is_finished());
    new.wake();
    new.expect_nothing();
    world.stores[0].open();
    old.wake();
    assert!(old.is_finished());
    old.expect_nothing();
    new.wake();
    new.expect(Opcode::LoginResponse);
    new.ping(9);
    assert_eq!(world.target.registry().sessions().len(), 1);
}

#[test]
fn an_old_session_that_does_not_end_stops_the_new_one_in_time() {
    let world = World::new();
    let mut old = world.logged_in(ME);
    let mut new = world.connect();
    assert!(new.try_log_in(&keys(ME, TARGET)).is_none());
    new.pass(world.target.limits().drain_timeout);
    let refused = LoginResponse::parse(&new.expect(Opcode::LoginResponse).bhs).unwrap();
    assert_eq!(refused.status, LoginStatus::SERVICE_UNAVAILABLE);
    assert_eq!(new.end(), Some(&EndReason::ReinstatementTimeout));
    assert!(new.is_finished());
    old.wake();
    assert!(old.is_finished());
    assert!(world.target.registry().sessions().is_empty());
}

/// RFC 7143 6.3.5: however many logins come and go meanwhile.
#[test]
fn a_nexus_is_known_until_its_last_operation_has_ended() {
    let world = World::new();
    let mut first = world.logged_in(ME);
    first.clear_attention(0);
    world.stores[0].shut();
    first.write(1, 0, &[7; 512]);
    first.close();
    first.wake();
    let mut second = world.connect();
    assert!(second.try_log_in(&keys(ME, TARGET)).is_none(), "the first session's write is under way");
    second.close();
    let mut third = world.connect();
    assert!(third.try_log_in(&keys(ME, TARGET)).is_none(), "and still is");
    first.wake();
    second.wake();
    assert!(second.is_finished());
    third.wake();
    third.expect_nothing();
    world.stores[0].open();
    first.wake();
    third.wake();
    third.expect(Opcode::LoginResponse);
    third.ping(9);
    assert_eq!(world.target.registry().sessions().len(), 1);
}

/// No time limit lets a session in while an older one's write may still land: the connection is over, the session is
/// not.
#[test]
fn a_store_that_hangs_keeps_its_nexus_and_nothing_but_its_nexus() {
    let world = World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node);
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = told.clone();
    world.target.registry().set_on_event(move |event| teller.lock().unwrap().push(event.clone()));
    let mut old = world.logged_in(ME);
    old.clear_attention(0);
    world.stores[0].shut();
    old.write(1, 0, &[7; 512]);
    old.close();
    old.pass(Duration::from_secs(3600));
    assert!(old.is_finished(), "its connection does not wait for ever");
    let (initiator_name, target_name) = (String::from(ME), String::from(TARGET));
    let overdue = Event::OperationsOverdue {
        initiator_name: initiator_name.clone(),
        target_name: target_name.clone(),
        operations: 1,
        connection_ended: true,
    };
    assert_eq!(*told.lock().unwrap(), std::slice::from_ref(&overdue));
    let mut new = world.connect();
    assert!(new.try_log_in(&keys(ME, TARGET)).is_none());
    new.pass(world.target.limits().drain_timeout);
    let refused = LoginResponse::parse(&new.expect(Opcode::LoginResponse).bhs).unwrap();
    assert_eq!(refused.status, LoginStatus::SERVICE_UNAVAILABLE);
    let mut dropped = world.connect();
    assert!(dropped.try_log_in(&keys(ME, TARGET)).is_none());
    drop(dropped);

    let mut other = world.logged_in(OTHER);
    other.clear_attention(0);
    other.write(1, 0, &[8; 512]);
    other.expect_nothing();
    let mut late = world.connect();
    assert!(late.try_log_in(&keys(ME, TARGET)).is_none());
    world.stores[0].open();
    // The newer write has not been given to the store: the older one cannot cover it.
    other.wake();
    other.expect_nothing();
    late.wake();
    late.expect(Opcode::LoginResponse);
    let ended = Event::OperationsEnded { initiator_name, target_name };
    assert_eq!(*told.lock().unwrap(), [overdue, ended]);
    other.wake();
    assert_eq!(other.status(1), 0);
    other.read(2, 0);
    assert_eq!(other.expect(Opcode::DataIn).data[0], 8);
}

/// Whoever drives connections himself may drop one at any time.
#[test]
fn a_dropped_connection_leaves_its_nexus_behind_until_its_writes_have_ended() {
    let world = World::new();
    let mut old = world.logged_in(ME);
    old.clear_attention(0);
    world.stores[0].shut();
    old.write(1, 0, &[7; 512]);
    drop(old);
    assert_eq!(world.target.registry().poll_unfinished(Waker::noop()), 1);
    let mut new = world.connect();
    assert!(new.try_log_in(&keys(ME, TARGET)).is_none());
    world.stores[0].open();
    assert_eq!(world.target.registry().poll_unfinished(Waker::noop()), 0);
    new.wake();
    new.expect(Opcode::LoginResponse);
}

#[test]
fn other_ports_and_other_initiators_have_sessions_of_their_own() {
    let world = World::new();
    let mut first = world.logged_in(ME);
    let mut second = world.connect();
    second.isid[5] = 2;
    second.log_in(ME, TARGET);
    let mut third = world.logged_in(OTHER);
    for peer in [&mut first, &mut second, &mut third] {
        peer.ping(1);
    }
    assert_eq!(world.target.registry().sessions().len(), 3);
    drop(second);
    assert_eq!(world.target.registry().sessions().len(), 2, "a connection that is dropped takes its session along");
}

#[test]
fn a_broken_header_in_login_is_no_panic() {
    let world = World::new();
    for byte in 0..48 {
        for value in [0, 0x7f, 0x80, 0xff] {
            let mut peer = world.connect();
            let mut bhs: Bhs = peer.login_request().emit();
            bhs.0[byte] = value;
            let mut wire = bhs.0.to_vec();
            wire.extend_from_slice(&super::text(&keys(ME, TARGET)));
            peer.bytes_in(&wire);
        }
    }
}
