//! Task management, within a session and across sessions (RFC 7143 4.2.3, 11.5, 11.6).

use core::time::Duration;

use iscsi_proto::pdu::{DataOut, Opcode, R2t, TaskFunction, TaskResponse};
use iscsi_proto::serial::Serial;

use super::peer::{Peer, read10, write10};
use super::{ME, OTHER, World};
use crate::node::{Acl, Attributes};
use crate::registry::EndCause;
use crate::session::{EndReason, Limits};

pub(super) fn ready(world: &World, initiator: &str) -> Peer {
    let mut peer = world.logged_in(initiator);
    peer.clear_attention(0);
    peer.clear_attention(1);
    peer
}

pub(super) fn run(peer: &mut Peer, function: TaskFunction, lun: u16, itt: u32) {
    let request = peer.task_function(function, lun, itt);
    peer.send(request.emit(), &[]);
}

#[test]
fn an_aborted_task_is_gone_before_the_answer() {
    let world = World::new();
    let mut peer = ready(&world, ME);
    world.stores[0].shut();
    peer.read(1, 0);
    peer.read(2, 0);
    let mut abort = peer.task_function(TaskFunction::AbortTask, 0, 50);
    abort.referenced_task_tag = 1;
    abort.ref_cmd_sn = peer.cmd_sn.advance(u32::MAX - 1);
    peer.send(abort.emit(), &[]);
    peer.expect_nothing();
    world.stores[0].open();
    peer.wake();
    let mut came = [peer.next().unwrap().bhs, peer.next().unwrap().bhs].map(|bhs| bhs.itt());
    came.sort_unstable();
    assert_eq!(came, [2, 50], "no response to task 1");
    peer.expect_nothing();
    peer.read(1, 0);
    assert_eq!(peer.status(1), 0, "its tag is free again");
}

#[test]
fn abort_task_answers_by_the_referenced_number() {
    let world = World::new();
    let mut peer = ready(&world, ME);
    let mut abort = peer.task_function(TaskFunction::AbortTask, 0, 50);
    abort.referenced_task_tag = 1;
    // It was done long ago.
    abort.ref_cmd_sn = peer.cmd_sn.advance(u32::MAX);
    peer.send(abort.emit(), &[]);
    assert_eq!(peer.function_response(50), TaskResponse::TaskDoesNotExist);
    // It has not come, and never will: its number counts as received.
    abort.ref_cmd_sn = peer.cmd_sn;
    abort.cmd_sn = peer.cmd_sn.next();
    peer.send(abort.emit(), &[]);
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    peer.read(7, 0);
    peer.expect_nothing();
    peer.read(8, 0);
    assert_eq!(peer.status(8), 0);
    // Further ahead, with a request before it that comes later.
    let first = peer.cmd_sn;
    abort.ref_cmd_sn = first.next();
    abort.cmd_sn = first.advance(2);
    peer.send(abort.emit(), &[]);
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    peer.read(9, 0);
    assert_eq!(peer.status(9), 0);
    peer.read(10, 0);
    peer.expect_nothing();
    peer.read(11, 0);
    assert_eq!(peer.status(11), 0);
}

#[test]
fn a_function_is_no_task_to_abort() {
    let world = World::new();
    let mut peer = ready(&world, ME);
    world.stores[0].shut();
    peer.read(1, 0);
    run(&mut peer, TaskFunction::AbortTaskSet, 0, 50);
    let mut abort = peer.task_function(TaskFunction::AbortTask, 0, 51);
    abort.referenced_task_tag = 50;
    peer.send(abort.emit(), &[]);
    assert_eq!(peer.function_response(51), TaskResponse::Rejected);
    world.stores[0].open();
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    peer.expect_nothing();
}

#[test]
fn unknown_luns_and_functions_are_named_as_such() {
    let world = World::new();
    let mut peer = ready(&world, ME);
    for function in [
        TaskFunction::AbortTask,
        TaskFunction::AbortTaskSet,
        TaskFunction::ClearTaskSet,
        TaskFunction::LogicalUnitReset,
    ] {
        run(&mut peer, function, 9, 50);
        assert_eq!(peer.function_response(50), TaskResponse::LunDoesNotExist);
    }
    run(&mut peer, TaskFunction::ClearAca, 0, 50);
    assert_eq!(peer.function_response(50), TaskResponse::NotSupported);
    run(&mut peer, TaskFunction::TaskReassign, 0, 50);
    assert_eq!(peer.function_response(50), TaskResponse::ReassignmentNotSupported);
    let mut odd = peer.task_function(TaskFunction::AbortTask, 0, 50);
    odd.function = Err(99);
    peer.send(odd.emit(), &[]);
    assert_eq!(peer.function_response(50), TaskResponse::NotSupported);
    // RFC 7144 6.3: not without iSCSIProtocolLevel 2.
    run(&mut peer, TaskFunction::QueryTaskSet, 0, 50);
    assert_eq!(peer.function_response(50), TaskResponse::NotSupported);
}

#[test]
fn queries_tell_of_tasks_at_protocol_level_2() {
    let world = World::new();
    let mut peer = world.connect();
    peer.log_in_with(ME, super::TARGET, &[("iSCSIProtocolLevel", "2")]);
    peer.clear_attention(0);
    world.stores[0].shut();
    peer.read(1, 0);
    for (lun, tag, response) in
        [(0, 1, TaskResponse::Succeeded), (1, 1, TaskResponse::Complete), (0, 2, TaskResponse::Complete)]
    {
        let mut query = peer.task_function(TaskFunction::QueryTask, lun, 50);
        query.referenced_task_tag = tag;
        peer.send(query.emit(), &[]);
        assert_eq!(peer.function_response(50), response);
    }
    run(&mut peer, TaskFunction::QueryTaskSet, 0, 50);
    assert_eq!(peer.function_response(50), TaskResponse::Succeeded);
    run(&mut peer, TaskFunction::QueryTaskSet, 1, 50);
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    run(&mut peer, TaskFunction::ITNexusReset, 0, 50);
    peer.expect_nothing();
    world.stores[0].open();
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    assert_eq!(peer.end(), Some(&EndReason::NexusReset));
    assert!(peer.is_finished());
}

#[test]
fn abort_task_set_is_for_this_session_and_this_lun() {
    let world = World::new();
    let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
    world.stores.iter().for_each(|store| store.shut());
    peer.read(1, 0);
    peer.read(2, 1);
    other.read(1, 0);
    run(&mut peer, TaskFunction::AbortTaskSet, 0, 50);
    world.stores.iter().for_each(|store| store.open());
    peer.wake();
    other.wake();
    assert_eq!(other.status(1), 0);
    let mut came = [peer.next().unwrap().bhs, peer.next().unwrap().bhs].map(|bhs| bhs.itt());
    came.sort_unstable();
    assert_eq!(came, [2, 50]);
    peer.expect_nothing();
    peer.read(3, 0);
    assert_eq!(peer.status(3), 0, "no unit attention for its own function");
}

#[test]
fn clear_task_set_reaches_other_sessions_and_they_hear_of_it() {
    let world = World::new();
    let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
    world.stores[0].shut();
    other.read(1, 0);
    run(&mut peer, TaskFunction::ClearTaskSet, 0, 50);
    peer.expect_nothing();
    other.wake();
    peer.wake();
    peer.expect_nothing();
    world.stores[0].open();
    other.wake();
    other.expect_nothing();
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    other.read(2, 0);
    assert_eq!(other.sense(2), Some((0x2f, 0)), "COMMANDS CLEARED BY ANOTHER INITIATOR");
    other.read(3, 0);
    assert_eq!(other.status(3), 0);
    peer.read(2, 0);
    assert_eq!(peer.status(2), 0);
}

#[test]
fn a_reset_aborts_everywhere_and_everyone_hears_of_it() {
    for (function, code) in [(TaskFunction::LogicalUnitReset, (0x29, 3)), (TaskFunction::TargetWarmReset, (0x29, 2))] {
        let world = World::new();
        let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
        world.stores[0].shut();
        peer.read(1, 0);
        other.write(1, 0, &[9; 512]);
        run(&mut peer, function, 0, 50);
        other.wake();
        world.stores[0].open();
        peer.wake();
        peer.expect_nothing();
        other.wake();
        other.expect_nothing();
        peer.wake();
        assert_eq!(peer.function_response(50), TaskResponse::Complete);
        for peer in [&mut peer, &mut other] {
            peer.read(2, 0);
            assert_eq!(peer.sense(2), Some(code));
            peer.read(3, 0);
            assert_eq!(peer.status(3), 0);
        }
    }
}

/// What a function has done to others is told whatever becomes of who asked for it.
#[test]
fn who_loses_tasks_hears_of_it_also_when_the_sender_is_gone_or_answered_rejected() {
    let functions = [
        (TaskFunction::ClearTaskSet, (0x2f, 0)),
        (TaskFunction::LogicalUnitReset, (0x29, 3)),
        (TaskFunction::TargetWarmReset, (0x29, 2)),
    ];
    for (function, code) in functions {
        for cut in [true, false] {
            let world = World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node);
            let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
            world.stores[0].shut();
            other.read(1, 0);
            run(&mut peer, function, 0, 50);
            if cut {
                drop(peer);
            } else {
                peer.pass(Duration::from_secs(31));
                assert_eq!(peer.function_response(50), TaskResponse::Rejected);
            }
            other.wake();
            world.stores[0].open();
            other.wake();
            other.expect_nothing();
            other.read(2, 0);
            assert_eq!(other.sense(2), Some(code));
            other.read(3, 0);
            assert_eq!(other.status(3), 0);
        }
    }
}

/// A session whose connection is over is there still, as long as a write of its may land.
#[test]
fn a_reset_waits_for_sessions_that_are_ending_replaced_or_without_a_connection() {
    let world = World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node);
    let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
    let mut gone = world.connect();
    gone.isid[5] = 9;
    gone.log_in(ME, super::TARGET);
    gone.clear_attention(0);
    world.stores[0].shut();
    other.write(1, 0, &[9; 512]);
    gone.write(1, 0, &[8; 512]);
    drop(gone);
    // A login of its nexus has taken the other session's place, and given up.
    let mut successor = world.connect();
    let names = [("InitiatorName", OTHER), ("SessionType", "Normal"), ("TargetName", super::TARGET)];
    assert!(successor.try_log_in(&names).is_none());
    drop(successor);
    other.wake();
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    peer.expect_nothing();
    world.stores[0].open();
    peer.wake();
    peer.expect_nothing();
    other.wake();
    assert!(other.is_finished());
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
}

/// What hangs on one unit is nothing to a reset of another.
#[test]
fn a_reset_does_not_wait_for_the_store_of_another_unit() {
    let world = World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node);
    let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
    let mut gone = world.connect();
    gone.isid[5] = 9;
    gone.log_in(ME, super::TARGET);
    gone.clear_attention(1);
    world.stores[1].shut();
    for holder in [&mut other, &mut gone] {
        holder.read(1, 1);
        run(holder, TaskFunction::AbortTaskSet, 1, 50);
        holder.expect_nothing();
    }
    drop(gone);
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    other.wake();
    world.target.registry().poll_unfinished(core::task::Waker::noop());
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    run(&mut peer, TaskFunction::LogicalUnitReset, 1, 51);
    other.wake();
    world.target.registry().poll_unfinished(core::task::Waker::noop());
    peer.wake();
    peer.expect_nothing();
}

/// A reset from elsewhere has ended the task, and its write is still in the store: who is told that the task does not
/// exist sends it again.
#[test]
fn a_task_that_a_reset_ended_does_not_exist_once_its_write_is_over() {
    let world = World::new();
    let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
    world.stores[0].shut();
    other.write(1, 0, &[9; 512]);
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    other.wake();
    let mut abort = other.task_function(TaskFunction::AbortTask, 0, 51);
    abort.referenced_task_tag = 1;
    abort.ref_cmd_sn = other.cmd_sn.advance(u32::MAX);
    other.send(abort.emit(), &[]);
    other.expect_nothing();
    world.stores[0].open();
    other.wake();
    assert_eq!(other.function_response(51), TaskResponse::TaskDoesNotExist);
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
}

/// From a nexus that may not write, and where the attributes say so, nothing that other initiators see.
#[test]
fn resets_reach_others_only_where_they_may() {
    let attributes = Attributes {
        tmr_warm_reset: false,
        tmr_cold_reset: false,
        tmr_lun_reset: false,
        tmr_clear_task_set: false,
        ..Attributes::open()
    };
    let reader = || Acl::new(ME).map_read_only_lun(0, 0).map_lun(1, 1);
    for world in [
        World::with(Limits::default(), |node| node.attributes(attributes)),
        World::with(Limits::default(), |node| node.acl(reader())),
    ] {
        let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
        for (function, response) in [
            (TaskFunction::ClearTaskSet, TaskResponse::Complete),
            (TaskFunction::LogicalUnitReset, TaskResponse::Complete),
            (TaskFunction::TargetWarmReset, TaskResponse::AuthorizationFailed),
            (TaskFunction::TargetColdReset, TaskResponse::AuthorizationFailed),
        ] {
            world.stores[0].shut();
            peer.read(1, 0);
            other.read(1, 0);
            run(&mut peer, function, 0, 50);
            other.wake();
            world.stores[0].open();
            peer.wake();
            if response != TaskResponse::Complete {
                assert_eq!(peer.function_response(50), response);
                assert_eq!(peer.status(1), 0);
            } else {
                assert_eq!(peer.function_response(50), response);
                peer.expect_nothing();
            }
            other.wake();
            assert_eq!(other.status(1), 0, "{function:?} has ended another's task");
            other.read(2, 0);
            assert_eq!(other.status(2), 0, "{function:?} is heard of by another");
        }
    }
}

#[test]
fn a_cold_reset_ends_all_sessions_of_the_target() {
    let world = World::new();
    let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
    run(&mut peer, TaskFunction::TargetColdReset, 0, 50);
    other.wake();
    assert_eq!(other.end(), Some(&EndReason::Told(EndCause::ColdReset)));
    assert!(other.is_finished());
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    assert_eq!(peer.end(), Some(&EndReason::ColdReset));
    assert!(peer.is_finished());
    assert!(world.target.registry().sessions().is_empty());
    // Who comes back hears of the reset; the data are there, so of no power on.
    let mut back = world.logged_in(OTHER);
    back.read(1, 0);
    assert_eq!(back.sense(1), Some((0x29, 2)));
    back.read(2, 0);
    assert_eq!(back.status(2), 0);
}

#[test]
fn a_reset_does_not_wait_for_a_session_that_breaks_meanwhile() {
    let world = World::new();
    let (mut peer, other) = (ready(&world, ME), ready(&world, OTHER));
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    peer.expect_nothing();
    drop(other);
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
}

#[test]
fn a_store_that_hangs_makes_a_function_fail_in_time() {
    let world = World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node);
    let mut peer = ready(&world, ME);
    world.stores[0].shut();
    peer.read(1, 0);
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    peer.pass(Duration::from_secs(29));
    peer.expect_nothing();
    peer.pass(Duration::from_secs(2));
    assert_eq!(peer.function_response(50), TaskResponse::Rejected);
}

/// A write of 512 bytes without immediate data, which an R2T answers.
pub(super) fn unfinished_write(peer: &mut Peer, itt: u32, lun: u16) -> R2t {
    let command = peer.command(itt, lun, write10(0, 1), 512);
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[]);
    R2t::parse(&peer.expect(Opcode::R2t).bhs).unwrap()
}

pub(super) fn data_out(peer: &mut Peer, r2t: &R2t) {
    let data = DataOut {
        is_final: true,
        lun: r2t.lun,
        itt: r2t.itt,
        ttt: r2t.ttt,
        exp_stat_sn: Serial(0),
        data_sn: 0,
        buffer_offset: 0,
    };
    peer.send(data.emit(), &[3; 512]);
}

#[test]
fn data_that_were_asked_for_are_waited_for_but_not_for_long() {
    let world = World::new();
    let mut peer = ready(&world, ME);
    let r2t = unfinished_write(&mut peer, 1, 0);
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    peer.expect_nothing();
    data_out(&mut peer, &r2t);
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    peer.expect_nothing();
    peer.clear_attention(0);

    unfinished_write(&mut peer, 1, 0);
    run(&mut peer, TaskFunction::AbortTaskSet, 0, 51);
    peer.expect_nothing();
    peer.pass(Duration::from_secs(1));
    assert_eq!(peer.function_response(51), TaskResponse::Complete);
    peer.read(3, 0);
    assert_eq!(peer.status(3), 0);
}

/// Data that never come do not keep the command, and what has come late is nobody's.
#[test]
fn data_that_do_not_come_end_their_command_in_time() {
    let world = World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node);
    let mut peer = ready(&world, ME);
    let r2t = unfinished_write(&mut peer, 1, 0);
    let limit = world.target.limits().data_timeout;
    peer.pass(limit / 2);
    peer.expect_nothing();
    peer.pass(limit);
    assert_eq!(peer.sense(1), Some((0x0c, 0x0d)), "INCORRECT AMOUNT OF DATA");
    data_out(&mut peer, &r2t);
    peer.expect_nothing();
    peer.read(2, 0);
    assert!(peer.expect(Opcode::DataIn).data.iter().all(|byte| *byte == 0), "nothing was written");
    let r2t = unfinished_write(&mut peer, 1, 0);
    data_out(&mut peer, &r2t);
    assert_eq!(peer.status(1), 0, "the tag is free");
}

/// On a slow line the data of one command come behind those of another.
#[test]
fn data_that_come_in_turn_are_waited_for() {
    let world = World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node);
    let mut peer = ready(&world, ME);
    let r2ts: Vec<_> = (1..5).map(|itt| unfinished_write(&mut peer, itt, 0)).collect();
    let limit = world.target.limits().data_timeout;
    for (itt, r2t) in (1..).zip(&r2ts[..3]) {
        peer.pass(limit * 3 / 4);
        data_out(&mut peer, r2t);
        assert_eq!(peer.status(itt), 0);
    }
    peer.pass(limit);
    peer.pass(limit);
    assert_eq!(peer.sense(4), Some((0x0c, 0x0d)), "nothing comes any more");
}

/// The time for data begins when the initiator has taken what asks for them, not when that is queued.
#[test]
fn data_are_waited_for_from_when_they_are_asked_for() {
    let world = World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node);
    let mut peer = ready(&world, ME);
    let limit = world.target.limits().data_timeout;
    peer.takes = false;
    let command = peer.command(1, 0, write10(0, 1), 512);
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[]);
    peer.pass(limit * 9 / 10);
    peer.takes = true;
    peer.wake();
    let r2t = R2t::parse(&peer.expect(Opcode::R2t).bhs).unwrap();
    peer.pass(limit * 6 / 10);
    data_out(&mut peer, &r2t);
    assert_eq!(peer.status(1), 0);
}

/// Nobody keeps a command for ever by sending the data of others.
#[test]
fn data_of_others_do_not_keep_a_command_for_ever() {
    let world = World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node);
    let mut peer = ready(&world, ME);
    unfinished_write(&mut peer, 1, 0);
    let limit = world.target.limits().data_timeout;
    for itt in 2..20 {
        let r2t = unfinished_write(&mut peer, itt, 0);
        peer.pass(limit * 3 / 4);
        data_out(&mut peer, &r2t);
        let pdu = peer.expect(Opcode::ScsiResponse);
        if pdu.bhs.itt() == 1 {
            assert!(itt > 12, "it has ten times the limit");
            return;
        }
    }
    panic!("it lives on");
}

/// Nobody keeps a command whose data he owes by taking what is sent to him: that was queued behind what asks for them.
#[test]
fn who_takes_other_data_is_not_waited_for() {
    let world = World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node);
    let mut peer = ready(&world, ME);
    unfinished_write(&mut peer, 1, 0);
    let limit = world.target.limits().data_timeout;
    for itt in 2..6 {
        peer.takes = false;
        peer.read(itt, 0);
        peer.pass(limit * 3 / 4);
        peer.takes = true;
        peer.wake();
    }
    let answers = core::iter::from_fn(|| peer.next()).map(|pdu| pdu.bhs.itt());
    assert_eq!(answers.collect::<Vec<_>>(), [2, 3, 4, 1, 5]);
}

#[test]
fn late_data_of_an_aborted_task_are_dropped() {
    let world = World::new();
    let mut peer = ready(&world, ME);
    let r2t = unfinished_write(&mut peer, 1, 0);
    let mut abort = peer.task_function(TaskFunction::AbortTask, 0, 50);
    abort.referenced_task_tag = 1;
    abort.ref_cmd_sn = peer.cmd_sn.advance(u32::MAX);
    peer.send(abort.emit(), &[]);
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    data_out(&mut peer, &r2t);
    peer.expect_nothing();
    peer.read(2, 0);
    let pdu = peer.expect(Opcode::DataIn);
    assert!(pdu.data.iter().all(|byte| *byte == 0), "nothing was written");
}

#[test]
fn a_function_waits_for_the_commands_before_it() {
    let world = World::new();
    let mut peer = ready(&world, ME);
    let missing = peer.cmd_sn;
    let mut reset = peer.task_function(TaskFunction::AbortTaskSet, 0, 50);
    reset.cmd_sn = missing.next();
    peer.send(reset.emit(), &[]);
    peer.expect_nothing();
    world.stores[0].shut();
    let command = peer.command(1, 0, read10(0, 1), 512);
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[]);
    world.stores[0].open();
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    peer.expect_nothing();
}

#[test]
fn functions_in_progress_are_limited() {
    let world = World::new();
    let mut peer = ready(&world, ME);
    world.stores[0].shut();
    peer.read(1, 0);
    for itt in 50..58 {
        run(&mut peer, TaskFunction::AbortTaskSet, 0, itt);
        peer.expect_nothing();
    }
    let more = peer.task_function(TaskFunction::AbortTaskSet, 0, 60).emit();
    peer.send(more, &[]);
    peer.expect_reject(iscsi_proto::pdu::RejectReason::TooManyImmediateCommands, &more);
    world.stores[0].open();
    peer.wake();
    for itt in 50..58 {
        assert_eq!(peer.function_response(itt), TaskResponse::Complete);
    }
}
