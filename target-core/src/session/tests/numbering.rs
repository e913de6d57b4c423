//! CmdSN, task tags, immediate commands and rejected PDUs (RFC 7143 4.2.2.1, 11.17).

use alloc::vec::Vec;

use iscsi_proto::pdu::{
    Bhs, Opcode, RESERVED_TAG, RejectReason, ScsiResponse, SnackRequest, SnackType, TaskFunction, TaskResponse,
    emit_bidirectional_read_length, emit_extended_cdb,
};
use iscsi_proto::serial::Serial;

use super::peer::read10;
use super::{ME, World};
use crate::session::{EndReason, Limits};

#[test]
fn out_of_window_and_duplicate_requests_are_dropped_in_silence() {
    let world = World::with(Limits { command_window: 4, ..Limits::default() }, |node| node);
    let mut peer = world.logged_in(ME);
    let first = peer.cmd_sn;
    for ahead in [u32::MAX, 4, 5, 1 << 30, 1 << 31] {
        let mut command = peer.command(9, 0, [0; 16], 0);
        command.cmd_sn = first.advance(ahead);
        peer.send(command.emit(), &[]);
        peer.expect_nothing();
    }
    peer.clear_attention(0);
    let mut again = peer.command(10, 0, [0; 16], 0);
    again.cmd_sn = first;
    peer.send(again.emit(), &[]);
    peer.expect_nothing();
    peer.ping(11);
}

#[test]
fn the_window_closes_when_it_is_full_and_opens_with_each_response() {
    let world = World::with(Limits { command_window: 2, ..Limits::default() }, |node| node);
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    world.stores[0].shut();
    peer.read(1, 0);
    peer.read(2, 0);
    peer.read(3, 0);
    peer.expect_nothing();
    assert_eq!(peer.connection_window(), (peer.cmd_sn.advance(u32::MAX), -1), "closed, and the third was dropped");
    world.stores[0].open();
    peer.wake();
    assert_eq!((peer.status(1), peer.status(2)), (0, 0));
    peer.expect_nothing();
    peer.cmd_sn = peer.cmd_sn.advance(u32::MAX);
    peer.read(3, 0);
    assert_eq!(peer.status(3), 0);
}

#[test]
fn requests_are_done_in_the_order_of_their_numbers() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    let first = peer.cmd_sn;
    for (itt, ahead) in [(3, 2), (2, 1)] {
        let mut command = peer.command(itt, 0, read10(0, 1), 512);
        command.cmd_sn = first.advance(ahead);
        peer.send(command.emit(), &[]);
        peer.expect_nothing();
    }
    peer.read(1, 0);
    assert_eq!((peer.status(1), peer.status(2), peer.status(3)), (0, 0, 0));
    peer.cmd_sn = first.advance(3);
    peer.read(4, 0);
    assert_eq!(peer.status(4), 0);
}

#[test]
fn a_write_that_was_held_asks_for_its_data_again() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    let mut command = peer.command(2, 0, super::peer::write10(0, 1), 512);
    command.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[7; 512]);
    peer.expect_nothing();
    peer.read(1, 0);
    peer.expect(Opcode::R2t);
    assert_eq!(peer.status(1), 0);
}

#[test]
fn a_gap_is_not_waited_for_without_end() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    let mut command = peer.command(2, 0, [0; 16], 0);
    command.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[]);
    peer.pass(world.target.limits().gap_timeout);
    assert_eq!(peer.end(), Some(&EndReason::Gap));
    assert!(peer.is_finished());
}

#[test]
fn what_is_held_is_bounded() {
    let world = World::with(Limits { held_bytes: 400, ..Limits::default() }, |node| node);
    let mut peer = world.logged_in(ME);
    for ahead in 1..=4 {
        let mut command = peer.command(ahead, 0, [0; 16], 0);
        command.cmd_sn = peer.cmd_sn.advance(ahead);
        peer.send(command.emit(), &[]);
    }
    assert!(matches!(peer.end(), Some(EndReason::Protocol(_))));
}

#[test]
fn a_tag_in_use_is_rejected_and_its_number_taken() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    world.stores[0].shut();
    peer.read(1, 0);
    let again = peer.command(1, 0, read10(0, 1), 512);
    peer.read(1, 0);
    peer.expect_reject(RejectReason::TaskInProgress, &again.emit());
    peer.read(2, 1);
    peer.clear_pending_attention(2);
    world.stores[0].open();
    peer.wake();
    assert_eq!(peer.status(1), 0);
}

#[test]
fn places_of_immediate_commands_are_given_back() {
    let world = World::with(Limits { immediate_commands: 2, ..Limits::default() }, |node| node);
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    for itt in 1..=20 {
        let mut command = peer.command(itt, 0, read10(0, 1), 512);
        command.immediate = true;
        peer.send(command.emit(), &[]);
        assert_eq!(peer.status(itt), 0);
    }
}

#[test]
fn immediate_commands_are_limited() {
    let world = World::with(Limits { immediate_commands: 2, ..Limits::default() }, |node| node);
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    world.stores[0].shut();
    for itt in 1..=3 {
        let mut command = peer.command(itt, 0, read10(0, 1), 512);
        command.immediate = true;
        peer.send(command.emit(), &[]);
        if itt == 3 {
            peer.expect_reject(RejectReason::TooManyImmediateCommands, &command.emit());
        } else {
            peer.expect_nothing();
        }
    }
    world.stores[0].open();
    peer.wake();
    assert_eq!((peer.status(1), peer.status(2)), (0, 0));
    peer.read(4, 0);
    assert_eq!(peer.status(4), 0, "immediate commands took no number");
}

#[test]
fn malformed_pdus_are_rejected_with_their_reason_and_their_number_taken() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);

    let mut attribute = peer.command(1, 0, [0; 16], 0).emit();
    attribute.0[1] |= 7;
    peer.send(attribute, &[]);
    peer.expect_reject(RejectReason::InvalidPduField, &attribute);
    peer.cmd_sn = peer.cmd_sn.next();

    let tag = peer.command(RESERVED_TAG, 0, [0; 16], 0).emit();
    peer.send(tag, &[]);
    peer.expect_reject(RejectReason::InvalidPduField, &tag);
    peer.cmd_sn = peer.cmd_sn.next();

    let mut unknown = Bhs([0; 48]);
    unknown.0[0] = 0x1e;
    peer.send(unknown, &[]);
    peer.expect_reject(RejectReason::CommandNotSupported, &unknown);

    let ours = ScsiResponse::parse(&Bhs::new(Opcode::ScsiResponse)).unwrap().emit();
    peer.send(ours, &[]);
    peer.expect_reject(RejectReason::ProtocolError, &ours);

    let login = peer.login_request().emit();
    peer.send(login, &[]);
    peer.expect_reject(RejectReason::ProtocolError, &login);

    let snack = SnackRequest {
        kind: SnackType::Status,
        lun: 0,
        itt: RESERVED_TAG,
        ttt_or_snack_tag: RESERVED_TAG,
        exp_stat_sn: Serial(0),
        beg_run: 0,
        run_length: 0,
    }
    .emit();
    peer.send(snack, &[]);
    peer.expect_reject(RejectReason::SnackReject, &snack);

    peer.read(2, 0);
    assert_eq!(peer.status(2), 0, "the session goes on");
}

#[test]
fn additional_header_segments_reach_the_device_server_or_are_rejected() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    let mut ahs = Vec::new();
    emit_extended_cdb(&mut ahs, &[0; 16]);
    emit_bidirectional_read_length(&mut ahs, 512);
    let command = peer.command(1, 0, [0x7f; 16], 0);
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send_with(command.emit(), &ahs, &[]);
    assert_eq!(peer.status(1), 2, "the CDB is none that the disk knows");
    let command = peer.command(2, 0, [0; 16], 0).emit();
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send_with(command, &[0xff; 8], &[]);
    peer.expect_reject(RejectReason::InvalidPduField, &command);
    peer.read(3, 0);
    assert_eq!(peer.status(3), 0);
}

#[test]
fn a_full_window_leaves_room_for_immediate_requests() {
    let world = World::with(Limits { command_window: 2, ..Limits::default() }, |node| node);
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    world.stores[0].shut();
    peer.read(1, 0);
    peer.read(2, 0);
    peer.ping(3);
    let abort = peer.task_function(TaskFunction::AbortTaskSet, 0, 4);
    peer.send(abort.emit(), &[]);
    peer.ping(5);
    world.stores[0].open();
    peer.wake();
    assert_eq!(peer.function_response(4), TaskResponse::Complete);
}

#[test]
fn a_gap_is_not_acknowledged() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    let missing = peer.cmd_sn;
    let mut ahead = peer.command(2, 0, read10(0, 1), 512);
    ahead.cmd_sn = missing.next();
    peer.send(ahead.emit(), &[]);
    assert_eq!(peer.connection_window().0, missing);
    peer.read(1, 0);
    assert_eq!((peer.status(1), peer.status(2)), (0, 0));
    assert_eq!(peer.connection_window().0, missing.advance(2));
}

#[test]
fn an_aborted_number_that_never_came_releases_what_is_behind_it() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    let missing = peer.cmd_sn;
    let mut ahead = peer.command(2, 0, read10(0, 1), 512);
    ahead.cmd_sn = missing.next();
    peer.send(ahead.emit(), &[]);
    peer.expect_nothing();
    let mut abort = peer.task_function(TaskFunction::AbortTask, 0, 50);
    abort.referenced_task_tag = 1;
    abort.ref_cmd_sn = missing;
    abort.cmd_sn = missing.advance(2);
    peer.send(abort.emit(), &[]);
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    assert_eq!(peer.status(2), 0);
}

#[test]
fn each_gap_has_its_own_time() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    let (first, gap) = (peer.cmd_sn, world.target.limits().gap_timeout);
    let send = |peer: &mut super::peer::Peer, ahead: u32| {
        let mut command = peer.command(ahead + 1, 0, read10(0, 1), 512);
        command.cmd_sn = first.advance(ahead);
        peer.send(command.emit(), &[]);
    };
    send(&mut peer, 1);
    send(&mut peer, 3);
    peer.pass(gap * 9 / 10);
    send(&mut peer, 0);
    assert_eq!((peer.status(1), peer.status(2)), (0, 0));
    peer.pass(gap * 9 / 10);
    send(&mut peer, 2);
    assert_eq!((peer.status(3), peer.status(4)), (0, 0));
    send(&mut peer, 5);
    peer.pass(gap);
    assert_eq!(peer.end(), Some(&EndReason::Gap));
}

#[test]
fn a_function_does_not_wait_without_end_for_commands_before_it() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    let mut clear = peer.task_function(TaskFunction::AbortTaskSet, 0, 50);
    clear.cmd_sn = peer.cmd_sn.next();
    peer.send(clear.emit(), &[]);
    peer.expect_nothing();
    peer.pass(world.target.limits().gap_timeout);
    assert_eq!(peer.function_response(50), TaskResponse::Rejected);
    peer.read(1, 0);
    assert_eq!(peer.status(1), 0, "the session goes on");
}
