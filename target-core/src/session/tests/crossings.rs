//! Where two rare things meet: logins, logouts, resets and slow stores at the same time.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::Waker;
use core::time::Duration;
use std::sync::Mutex;

use iscsi_proto::pdu::{
    LoginResponse, LoginStatus, LogoutReason, LogoutRequest, LogoutResponse, LogoutResult, Opcode, TaskFunction,
    TaskResponse,
};
use iscsi_proto::serial::Serial;

use super::functions::{data_out, ready, run, unfinished_write};
use super::peer::{Peer, read10, write10};
use super::{ME, OTHER, TARGET, World};
use crate::registry::{EndCause, Event};
use crate::session::{EndReason, Limits};

fn patient() -> World {
    World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node)
}

/// A login as `initiator` that is not answered yet.
#[track_caller]
fn waiting(world: &World, initiator: &str) -> Peer {
    let mut peer = world.connect();
    let keys = [("InitiatorName", initiator), ("SessionType", "Normal"), ("TargetName", TARGET)];
    assert!(peer.try_log_in(&keys).is_none(), "something of the old session is under way");
    peer
}

fn log_out(peer: &mut Peer) {
    let request = LogoutRequest {
        immediate: true,
        reason: LogoutReason::CloseSession,
        itt: 70,
        cid: 3,
        cmd_sn: peer.cmd_sn,
        exp_stat_sn: Serial(0),
    };
    peer.send(request.emit(), &[]);
}

#[track_caller]
fn logged_out(peer: &mut Peer) -> LogoutResult {
    LogoutResponse::parse(&peer.expect(Opcode::LogoutResponse).bhs).unwrap().response
}

/// Of all that log in as one nexus while its store is slow, the last comes in, whoever is woken first.
#[test]
fn of_many_logins_of_one_nexus_the_last_comes_in() {
    for forward in [true, false] {
        let world = World::with(Limits { sessions: 2, ..Limits::default() }, |node| node);
        let mut old = ready(&world, ME);
        world.stores[0].shut();
        old.write(1, 0, &[7; 512]);
        let mut all: Vec<Peer> = (0..4).map(|_| waiting(&world, ME)).collect();
        all.insert(0, old);
        world.stores[0].open();
        for _ in 0..3 {
            match forward {
                true => all.iter_mut().for_each(Peer::wake),
                false => all.iter_mut().rev().for_each(Peer::wake),
            }
        }
        let mut last = all.pop().unwrap();
        assert_eq!(LoginResponse::parse(&last.expect(Opcode::LoginResponse).bhs).unwrap().status, LoginStatus::SUCCESS);
        last.ping(9);
        for peer in &mut all {
            assert_eq!(peer.end(), Some(&EndReason::Told(EndCause::Reinstated)));
            assert!(peer.is_finished());
            peer.expect_nothing();
        }
        assert_eq!(world.target.registry().sessions().len(), 1);
        assert_eq!(world.target.registry().connections(), 1);
        world.logged_in(OTHER).ping(9);
    }
}

/// The old session's write is at the store, a new one of the nexus waits for it, and so does another initiator's reset.
#[test]
fn a_reset_in_the_middle_of_a_reinstatement_waits_and_is_heard_of() {
    let world = World::new();
    let (mut peer, mut old) = (ready(&world, ME), ready(&world, OTHER));
    world.stores[0].shut();
    old.write(1, 0, &[7; 512]);
    let mut new = waiting(&world, OTHER);
    old.wake();
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    for waits in [&mut old, &mut new, &mut peer] {
        waits.wake();
        waits.expect_nothing();
    }
    world.stores[0].open();
    peer.wake();
    peer.expect_nothing();
    old.wake();
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    new.wake();
    new.expect(Opcode::LoginResponse);
    new.read(1, 0);
    assert_eq!(new.sense(1), Some((0x29, 3)), "the reset that came while it was on its way");
    new.read(2, 0);
    assert_eq!(new.status(2), 0);
}

#[test]
fn a_logout_ends_functions_in_progress_and_is_answered_when_their_tasks_are_gone() {
    let world = World::new();
    let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
    world.stores[0].shut();
    peer.read(1, 0);
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    // This one waits for a command that never comes.
    let mut gathering = peer.task_function(TaskFunction::AbortTaskSet, 1, 51);
    gathering.cmd_sn = peer.cmd_sn.advance(2);
    peer.send(gathering.emit(), &[]);
    log_out(&mut peer);
    peer.expect_nothing();
    // Another's reset in the middle of it.
    run(&mut other, TaskFunction::LogicalUnitReset, 0, 60);
    peer.wake();
    other.wake();
    other.expect_nothing();
    world.stores[0].open();
    peer.wake();
    assert_eq!(logged_out(&mut peer), LogoutResult::Closed);
    peer.expect_nothing();
    assert!(peer.is_finished());
    other.wake();
    assert_eq!(other.function_response(60), TaskResponse::Complete);
}

/// The store comes back right after everybody has given up: the next try finds all in order.
#[test]
fn a_store_that_comes_back_late_leaves_nothing_behind() {
    let world = patient();
    let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
    world.stores[0].shut();
    other.write(1, 0, &[9; 512]);
    other.wake();
    let mut late = waiting(&world, OTHER);
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    let limit = world.target.limits().drain_timeout;
    for waits in [&mut peer, &mut other, &mut late] {
        waits.pass(limit);
    }
    assert_eq!(peer.function_response(50), TaskResponse::Rejected);
    let refused = LoginResponse::parse(&late.expect(Opcode::LoginResponse).bhs).unwrap();
    assert_eq!(refused.status, LoginStatus::SERVICE_UNAVAILABLE);
    world.stores[0].open();
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 51);
    other.wake();
    peer.wake();
    assert_eq!(peer.function_response(51), TaskResponse::Complete);
    let mut back = world.logged_in(OTHER);
    back.clear_attention(0);
    peer.clear_attention(0);
    peer.write(2, 0, &[8; 512]);
    assert_eq!(peer.status(2), 0);
    back.read(2, 0);
    assert!(back.expect(Opcode::DataIn).data.iter().all(|byte| *byte == 8));
    assert_eq!(world.target.registry().sessions().len(), 2);
}

#[test]
fn resets_of_two_initiators_that_cross_are_both_complete() {
    for function in [TaskFunction::LogicalUnitReset, TaskFunction::TargetWarmReset, TaskFunction::ClearTaskSet] {
        let world = World::new();
        let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
        world.stores[0].shut();
        peer.write(1, 0, &[1; 512]);
        other.write(1, 0, &[2; 512]);
        run(&mut peer, function, 0, 50);
        run(&mut other, function, 0, 50);
        peer.wake();
        world.stores[0].open();
        for _ in 0..2 {
            peer.wake();
            other.wake();
        }
        assert_eq!(peer.function_response(50), TaskResponse::Complete);
        assert_eq!(other.function_response(50), TaskResponse::Complete);
        peer.expect_nothing();
        other.expect_nothing();
    }
}

#[test]
fn cold_resets_that_cross_end_both_sessions_and_leave_nothing() {
    let world = World::new();
    let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
    world.stores[0].shut();
    peer.write(1, 0, &[1; 512]);
    other.write(1, 0, &[2; 512]);
    run(&mut peer, TaskFunction::TargetColdReset, 0, 50);
    run(&mut other, TaskFunction::TargetColdReset, 0, 50);
    peer.wake();
    world.stores[0].open();
    for _ in 0..2 {
        peer.wake();
        other.wake();
    }
    assert!(peer.is_finished() && other.is_finished());
    assert!(world.target.registry().sessions().is_empty());
    let mut back = world.logged_in(ME);
    back.read(1, 0);
    assert_eq!(back.sense(1), Some((0x29, 2)));
}

#[test]
fn a_cold_reset_is_done_though_its_sender_is_cut() {
    let world = World::new();
    let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
    world.stores[0].shut();
    peer.write(1, 0, &[1; 512]);
    run(&mut peer, TaskFunction::TargetColdReset, 0, 50);
    drop(peer);
    other.wake();
    assert_eq!(other.end(), Some(&EndReason::Told(EndCause::ColdReset)));
    world.stores[0].open();
    world.target.registry().poll_unfinished(Waker::noop());
    assert!(world.target.registry().sessions().is_empty());
}

/// A unit has one task set, by however many LUNs a session sees it.
#[test]
fn a_function_covers_the_tasks_of_its_unit_by_every_lun() {
    let world = World::new();
    let twice = world.beside(|node| node.lun(7, world.units[0].clone()));
    for function in [TaskFunction::AbortTaskSet, TaskFunction::ClearTaskSet, TaskFunction::LogicalUnitReset] {
        let mut peer = ready(&twice, ME);
        peer.clear_attention(7);
        world.stores[0].shut();
        peer.write(1, 7, &[9; 512]);
        run(&mut peer, function, 0, 50);
        peer.expect_nothing();
        // Nor does it matter when one of them is taken away.
        let luns = twice.target.config().nodes()[0].luns().clone();
        luns.remove(7);
        run(&mut peer, function, 0, 51);
        peer.expect_nothing();
        world.stores[0].open();
        peer.wake();
        assert_eq!(peer.function_response(50), TaskResponse::Complete);
        assert_eq!(peer.function_response(51), TaskResponse::Complete);
        peer.expect_nothing();
        luns.insert(7, world.units[0].clone(), false);
        drop(peer);
        // Nor that the initiator still owes its data.
        let mut peer = ready(&twice, OTHER);
        peer.clear_attention(7);
        let r2t = unfinished_write(&mut peer, 1, 7);
        run(&mut peer, function, 0, 50);
        peer.expect_nothing();
        data_out(&mut peer, &r2t);
        assert_eq!(peer.function_response(50), TaskResponse::Complete);
        peer.expect_nothing();
    }
}

/// A write whose data are owed, and whose LUN is gone, is ended by a function on its unit before that is complete.
#[test]
fn a_function_awaits_the_owed_data_of_a_lun_that_is_gone() {
    let world = World::new();
    let twice = world.beside(|node| node.lun(7, world.units[0].clone()));
    for function in [TaskFunction::AbortTaskSet, TaskFunction::ClearTaskSet, TaskFunction::LogicalUnitReset] {
        let mut peer = ready(&twice, ME);
        peer.clear_attention(7);
        let r2t = unfinished_write(&mut peer, 1, 7);
        let luns = twice.target.config().nodes()[0].luns().clone();
        luns.remove(7);
        run(&mut peer, function, 0, 50);
        peer.expect_nothing();
        data_out(&mut peer, &r2t);
        assert_eq!(peer.function_response(50), TaskResponse::Complete);
        peer.expect_nothing();
        luns.insert(7, world.units[0].clone(), false);
    }
}

/// Where a reset is answered "rejected", the operator hears whose operations the store holds, be it another session's.
#[test]
fn the_operator_hears_of_operations_that_keep_another_sessions_reset() {
    let world = patient();
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = told.clone();
    world.target.registry().set_on_event(move |event| teller.lock().unwrap().push(event.clone()));
    let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
    world.stores[0].shut();
    other.write(1, 0, &[9; 512]);
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    other.wake();
    peer.pass(world.target.limits().drain_timeout);
    assert_eq!(peer.function_response(50), TaskResponse::Rejected);
    other.wake();
    let overdue = Event::OperationsOverdue {
        initiator_name: String::from(OTHER),
        target_name: String::from(TARGET),
        operations: 1,
        connection_ended: false,
    };
    let heard = core::mem::take(&mut *told.lock().unwrap());
    assert_eq!(heard, [overdue]);
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Two look after what connections have left behind: who comes while the other is at it looks once more.
#[test]
fn who_looks_for_unfinished_sessions_while_another_does_is_woken_again() {
    let world = World::new();
    let registry = world.target.registry().clone();
    let count = Arc::new(Count::default());
    let (second, weak) = (Waker::from(count.clone()), Arc::downgrade(&registry));
    let left = Arc::new(Mutex::new(Vec::new()));
    let seen = left.clone();
    registry.set_on_event(move |event| {
        if matches!(event, Event::OperationsEnded { .. }) {
            seen.lock().unwrap().push(weak.upgrade().unwrap().poll_unfinished(&second));
        }
    });
    for (initiator, lun) in [(ME, 0), (OTHER, 1)] {
        let mut peer = ready(&world, initiator);
        world.stores[usize::from(lun)].shut();
        peer.write(1, lun, &[7; 512]);
        drop(peer);
    }
    assert_eq!(registry.poll_unfinished(Waker::noop()), 2);
    world.stores[0].open();
    assert_eq!(registry.poll_unfinished(Waker::noop()), 1);
    assert_eq!(*left.lock().unwrap(), [2], "they are in the other's hands");
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    world.stores[1].open();
    assert_eq!(registry.poll_unfinished(Waker::noop()), 0);
}

/// RFC 7143 4.2.3.3 b: with a target reset all before it counts as received, also where the command window is closed
/// behind it.
#[test]
fn a_target_reset_closes_a_gap_in_a_full_window() {
    let world = World::with(Limits { command_window: 3, ..Limits::default() }, |node| node);
    let mut peer = ready(&world, ME);
    world.stores[0].shut();
    peer.read(1, 0);
    // The second of three is lost.
    peer.cmd_sn = peer.cmd_sn.next();
    peer.write(3, 0, &[9; 512]);
    run(&mut peer, TaskFunction::TargetWarmReset, 0, 50);
    world.stores[0].open();
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    peer.expect_nothing();
    peer.clear_attention(0);
    let command = peer.command(4, 0, read10(0, 1), 512);
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[]);
    assert!(peer.expect(Opcode::DataIn).data.iter().all(|byte| *byte == 0), "what was held is dropped");
}

/// Abort, and a gap before it: nothing is said to be done before what may still come.
#[test]
fn abort_task_set_waits_for_a_gap_that_an_abort_task_closes() {
    let world = World::new();
    let mut peer = ready(&world, ME);
    let missing = peer.cmd_sn;
    peer.cmd_sn = missing.next();
    let command = peer.command(2, 0, write10(0, 1), 512);
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[9; 512]);
    run(&mut peer, TaskFunction::AbortTaskSet, 0, 50);
    peer.expect_nothing();
    let mut abort = peer.task_function(TaskFunction::AbortTask, 0, 51);
    abort.referenced_task_tag = 1;
    abort.ref_cmd_sn = missing;
    world.stores[0].shut();
    peer.send(abort.emit(), &[]);
    assert_eq!(peer.function_response(51), TaskResponse::Complete);
    // The write that was held behind the gap asks for its data, and is aborted in the next moment.
    peer.pass(Duration::from_secs(2));
    while let Some(pdu) = peer.next() {
        match pdu.bhs.opcode() {
            Ok(Opcode::R2t) => {}
            Ok(Opcode::TaskManagementResponse) => assert_eq!(pdu.bhs.itt(), 50),
            other => panic!("{other:?}"),
        }
    }
    world.stores[0].open();
    peer.read(3, 0);
    assert!(peer.expect(Opcode::DataIn).data.iter().all(|byte| *byte == 0), "nothing was written");
}
