//! Write data of commands that fail: when that is told (RFC 7143 7.8, 11.4.2, 11.17.1).

use alloc::vec;

use iscsi_proto::pdu::{DataOut, Opcode, R2t, RESERVED_TAG, RejectReason, TaskFunction, TaskResponse};
use iscsi_proto::serial::Serial;

use super::peer::{Peer, write10};
use super::{ME, TARGET, World};
use crate::lu::UnitAttention;
use crate::session::Limits;

/// Blocks of a LUN of [`World`].
const BLOCKS: u32 = 2048;

/// An initiator that may send data unasked.
fn ready(world: &World) -> Peer {
    let mut peer = world.connect();
    peer.log_in_with(ME, TARGET, &[("InitialR2T", "No"), ("FirstBurstLength", "4096")]);
    peer.clear_attention(0);
    peer
}

/// A write of 2048 bytes, of which 512 come with it and the rest unasked.
fn begin(peer: &mut Peer, itt: u32, lba: u32) {
    let mut command = peer.command(itt, 0, write10(lba, 4), 2048);
    command.is_final = false;
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[3; 512]);
}

fn data_out(itt: u32, data_sn: u32, buffer_offset: u32, is_final: bool) -> DataOut {
    DataOut { is_final, lun: 0, itt, ttt: RESERVED_TAG, exp_stat_sn: Serial(0), data_sn, buffer_offset }
}

#[test]
fn an_error_of_a_command_is_told_behind_its_unsolicited_data() {
    let world = World::new();
    let mut peer = ready(&world);
    begin(&mut peer, 1, BLOCKS);
    peer.send(data_out(1, 0, 512, false).emit(), &[3; 512]);
    peer.expect_nothing();
    // Others go on meanwhile.
    peer.read(2, 0);
    assert_eq!(peer.status(2), 0);
    peer.send(data_out(1, 1, 1024, true).emit(), &[3; 1024]);
    assert_eq!(peer.sense(1), Some((0x21, 0)));
    begin(&mut peer, 1, 0);
    peer.send(data_out(1, 0, 512, true).emit(), &[3; 1536]);
    assert_eq!(peer.status(1), 0, "the tag is free");
    assert_eq!(world.stores[0].bytes.lock().unwrap()[..2048], vec![3; 2048]);
}

/// SAM-5 5.14: a unit attention stays until it is reported, and what is held back reports nothing.
#[test]
fn a_unit_attention_that_waits_for_unsolicited_data_is_told_to_others_too() {
    let world = World::new();
    let mut peer = ready(&world);
    world.units[0].post_unit_attention(None, UnitAttention::ModeParametersChanged);
    begin(&mut peer, 1, 0);
    peer.read(2, 0);
    assert_eq!(peer.sense(2), Some((0x2a, 1)));
    peer.send(data_out(1, 0, 512, true).emit(), &[3; 1536]);
    assert_eq!(peer.sense(1), Some((0x2a, 1)));
    peer.read(2, 0);
    assert_eq!(peer.status(2), 0);
    // Where nobody else comes it is told once.
    world.units[0].post_unit_attention(None, UnitAttention::ModeParametersChanged);
    begin(&mut peer, 1, 0);
    peer.send(data_out(1, 0, 512, true).emit(), &[3; 1536]);
    assert_eq!(peer.sense(1), Some((0x2a, 1)));
    peer.read(2, 0);
    assert_eq!(peer.status(2), 0);
}

#[test]
fn an_error_whose_data_never_end_is_told_in_time() {
    let world = World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node);
    let mut peer = ready(&world);
    begin(&mut peer, 1, BLOCKS);
    let limit = world.target.limits().data_timeout;
    peer.pass(limit / 2);
    peer.expect_nothing();
    peer.pass(limit);
    assert_eq!(peer.sense(1), Some((0x21, 0)));
}

#[test]
fn a_command_that_waits_with_its_error_can_be_aborted() {
    let world = World::new();
    let mut peer = ready(&world);
    begin(&mut peer, 1, BLOCKS);
    let mut abort = peer.task_function(TaskFunction::AbortTask, 0, 50);
    abort.referenced_task_tag = 1;
    abort.ref_cmd_sn = peer.cmd_sn.advance(u32::MAX);
    peer.send(abort.emit(), &[]);
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    peer.send(data_out(1, 0, 512, true).emit(), &[3; 1536]);
    peer.expect_nothing();
    begin(&mut peer, 1, 0);
    peer.send(data_out(1, 0, 512, true).emit(), &[3; 1536]);
    assert_eq!(peer.status(1), 0);
}

/// RFC 7143 4.2.5.3, 11.7.4, and note 2 of 11.17.1.
#[test]
fn a_data_out_that_names_another_lun_is_rejected() {
    let world = World::new();
    let mut peer = ready(&world);
    let mut command = peer.command(1, 0, write10(0, 4), 2048);
    command.is_final = true;
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[]);
    let r2t = R2t::parse(&peer.expect(Opcode::R2t).bhs).unwrap();
    let wrong = DataOut { lun: 1 << 48, ttt: r2t.ttt, ..data_out(1, 0, 0, false) }.emit();
    peer.send(wrong, &[3; 1024]);
    let sent = {
        let mut sent = wrong;
        sent.set_data_segment_len(1024);
        sent
    };
    peer.expect_reject(RejectReason::InvalidPduField, &sent);
    peer.expect_nothing();
    peer.send(DataOut { ttt: r2t.ttt, ..data_out(1, 1, 1024, true) }.emit(), &[3; 1024]);
    assert_eq!(peer.sense(1), Some((0x0c, 0x0d)));
    assert_eq!(world.stores[0].bytes.lock().unwrap()[..2048], vec![0; 2048]);
}
