//! One logical unit in two servers of a process: what a function of one reaches in the other.

use core::task::Waker;
use core::time::Duration;

use iscsi_proto::pdu::{Opcode, TaskFunction, TaskResponse};

use super::functions::{ready, run};
use super::{ME, OTHER, TARGET, World};
use crate::node::Acl;
use crate::registry::EndCause;
use crate::session::{EndReason, Limits};

fn patient() -> World {
    World::with(Limits { nop_in_idle: None, ..Limits::default() }, |node| node)
}

#[test]
fn a_function_reaches_the_tasks_of_another_server() {
    for (function, code) in [
        (TaskFunction::ClearTaskSet, (0x2f, 0)),
        (TaskFunction::LogicalUnitReset, (0x29, 3)),
        (TaskFunction::TargetWarmReset, (0x29, 2)),
    ] {
        let world = World::new();
        let (mut peer, beside) = (ready(&world, ME), world.beside(|node| node.name("iqn.2026-11.example:beside")));
        let mut other = beside.connect();
        other.log_in(OTHER, "iqn.2026-11.example:beside");
        other.clear_attention(0);
        world.stores[0].shut();
        other.write(1, 0, &[9; 512]);
        run(&mut peer, function, 0, 50);
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
        assert_eq!(other.sense(2), Some(code));
        other.read(3, 0);
        assert_eq!(other.status(3), 0);
    }
}

/// The other server's session is there as long as its write may land, whether somebody looks after it or not.
#[test]
fn a_reset_waits_for_what_a_connection_of_another_server_left_behind() {
    for attended in [true, false] {
        let world = patient();
        let (mut peer, beside) = (ready(&world, ME), world.beside(|node| node));
        let mut other = ready(&beside, OTHER);
        world.stores[0].shut();
        other.write(1, 0, &[9; 512]);
        drop(other);
        run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
        if attended {
            beside.target.registry().poll_unfinished(Waker::noop());
        }
        peer.wake();
        peer.expect_nothing();
        world.stores[0].open();
        if attended {
            assert_eq!(beside.target.registry().poll_unfinished(Waker::noop()), 0);
        }
        peer.wake();
        assert_eq!(peer.function_response(50), TaskResponse::Complete);
        assert!(beside.target.registry().sessions().is_empty());
    }
}

/// A store that holds on to the other server's write: the answer is honest.
#[test]
fn a_reset_is_not_complete_while_another_server_has_a_write_at_the_store() {
    let world = patient();
    let (mut peer, beside) = (ready(&world, ME), world.beside(|node| node));
    let mut other = ready(&beside, OTHER);
    world.stores[0].shut();
    other.write(1, 0, &[9; 512]);
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    other.wake();
    peer.pass(Duration::from_secs(29));
    peer.expect_nothing();
    peer.pass(Duration::from_secs(2));
    assert_eq!(peer.function_response(50), TaskResponse::Rejected);
    // It may still land, and nobody may write over it until it has.
    peer.clear_attention(0);
    peer.write(2, 0, &[8; 512]);
    peer.expect_nothing();
    world.stores[0].open();
    other.wake();
    peer.wake();
    assert_eq!(peer.status(2), 0);
    peer.read(3, 0);
    assert!(peer.expect(Opcode::DataIn).data.iter().all(|byte| *byte == 8));
}

#[test]
fn a_cold_reset_ends_the_sessions_of_its_target_in_every_server() {
    let world = World::new();
    let (mut peer, same) = (ready(&world, ME), world.beside(|node| node));
    let another = world.beside(|node| node.name("iqn.2026-11.example:another"));
    let mut other = ready(&same, OTHER);
    let mut stranger = another.connect();
    stranger.log_in(OTHER, "iqn.2026-11.example:another");
    stranger.clear_attention(0);
    run(&mut peer, TaskFunction::TargetColdReset, 0, 50);
    other.wake();
    assert_eq!(other.end(), Some(&EndReason::Told(EndCause::ColdReset)));
    stranger.wake();
    assert_eq!(stranger.end(), None);
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    assert_eq!(peer.end(), Some(&EndReason::ColdReset));
    stranger.read(1, 0);
    assert_eq!(stranger.sense(1), Some((0x29, 2)));
}

/// A LUN that is mapped while sessions are there joins their servers too.
#[test]
fn a_unit_that_was_mapped_later_is_reached_as_well() {
    let world = World::new();
    let beside = World::new();
    let (mut peer, mut other) = (ready(&world, ME), ready(&beside, OTHER));
    let unit = world.units[0].clone();
    beside.target.config().nodes()[0].luns().insert(5, unit, false);
    other.clear_attention(5);
    world.stores[0].shut();
    other.write(1, 5, &[9; 512]);
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    other.wake();
    peer.wake();
    peer.expect_nothing();
    world.stores[0].open();
    other.wake();
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    other.expect_nothing();
}

/// A server that is stopped leaves what its store has still to do to the one beside it.
#[test]
fn a_server_that_is_gone_leaves_its_writes_to_the_one_beside_it() {
    let world = patient();
    let (mut peer, beside) = (ready(&world, ME), world.beside(|node| node));
    let mut other = ready(&beside, OTHER);
    world.stores[0].shut();
    other.write(1, 0, &[9; 512]);
    drop(other);
    drop(beside);
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    peer.expect_nothing();
    peer.clear_attention(0);
    peer.write(1, 0, &[8; 512]);
    peer.expect_nothing();
    world.stores[0].open();
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    assert_eq!(peer.status(1), 0);
    peer.read(2, 0);
    assert!(peer.expect(Opcode::DataIn).data.iter().all(|byte| *byte == 8), "the older write came last");
    assert_eq!(world.target.registry().poll_unfinished(Waker::noop()), 0);
    assert_eq!(world.target.registry().sessions().len(), 1);
}

/// Where none is beside it, the unit keeps what its store has still to do: the next server that has the unit finds it.
#[test]
fn the_last_server_leaves_its_writes_to_the_next() {
    let world = patient();
    let next = world.beside(|node| node);
    let mut old = ready(&world, ME);
    world.stores[0].shut();
    old.write(1, 0, &[9; 512]);
    drop(old);
    drop(world);
    let mut peer = ready(&next, OTHER);
    run(&mut peer, TaskFunction::LogicalUnitReset, 0, 50);
    peer.expect_nothing();
    peer.clear_attention(0);
    peer.write(1, 0, &[8; 512]);
    peer.expect_nothing();
    next.stores[0].open();
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    assert_eq!(peer.status(1), 0);
    peer.read(2, 0);
    assert!(peer.expect(Opcode::DataIn).data.iter().all(|byte| *byte == 8), "the older write came last");
    assert_eq!(next.target.registry().entered(), 1);
}

/// Servers of one node and portal group are one target port: a login at one of them reinstates the session of the other.
#[test]
fn a_login_at_another_server_of_the_same_port_waits_for_the_old_session() {
    let world = patient();
    let beside = world.beside(|node| node);
    let another = world.beside(|node| node.name("iqn.2026-11.example:another"));
    let mut stranger = another.connect();
    stranger.log_in(ME, "iqn.2026-11.example:another");
    let mut old = ready(&world, ME);
    world.stores[0].shut();
    old.write(1, 0, &[9; 512]);
    let mut new = beside.connect();
    let keys = [("InitiatorName", ME), ("SessionType", "Normal"), ("TargetName", TARGET)];
    assert!(new.try_log_in(&keys).is_none(), "the write of the old session may still land");
    old.wake();
    assert_eq!(old.end(), Some(&EndReason::Told(EndCause::Reinstated)));
    stranger.wake();
    assert_eq!(stranger.end(), None, "it is another nexus");
    world.stores[0].open();
    old.wake();
    assert!(old.is_finished());
    new.wake();
    new.expect(Opcode::LoginResponse);
    assert_eq!((world.target.registry().entered(), beside.target.registry().entered()), (0, 1));
}

/// A target reset ends what came by LUNs that the node has no more.
#[test]
fn a_target_reset_reaches_the_tasks_of_a_lun_that_was_taken_away() {
    for function in [TaskFunction::TargetWarmReset, TaskFunction::TargetColdReset] {
        for luns in 1..=2 {
            let world = World::new();
            let (mut peer, mut other) = (ready(&world, ME), ready(&world, OTHER));
            other.clear_attention(1);
            world.stores[1].shut();
            other.write(1, 1, &[9; 512]);
            let map = world.target.config().nodes()[0].luns().clone();
            (0..luns).for_each(|lun| map.remove(1 - lun));
            run(&mut peer, function, 0, 50);
            other.wake();
            peer.wake();
            peer.expect_nothing();
            world.stores[1].open();
            other.wake();
            peer.wake();
            assert_eq!(peer.function_response(50), TaskResponse::Complete);
            while let Some(pdu) = other.next() {
                assert_ne!(pdu.bhs.opcode(), Ok(Opcode::ScsiResponse), "{function:?}: its task was ended");
            }
        }
    }
}

/// Servers of a target node that share no unit any more are the same target all the same.
#[test]
fn a_target_reset_reaches_servers_of_the_target_that_share_no_unit_any_more() {
    for function in [TaskFunction::TargetWarmReset, TaskFunction::TargetColdReset] {
        let world = patient();
        let beside = world.beside(|node| node);
        let (mut peer, mut other) = (ready(&world, ME), ready(&beside, OTHER));
        let map = world.target.config().nodes()[0].luns().clone();
        map.iter().for_each(|lun| map.remove(lun.number));
        world.stores[0].shut();
        other.write(1, 0, &[9; 512]);
        run(&mut peer, function, 0, 50);
        other.wake();
        peer.wake();
        peer.expect_nothing();
        world.stores[0].open();
        other.wake();
        peer.wake();
        assert_eq!(peer.function_response(50), TaskResponse::Complete, "{function:?}");
        let is_cold = function == TaskFunction::TargetColdReset;
        assert_eq!(other.end(), is_cold.then_some(&EndReason::Told(EndCause::ColdReset)));
    }
}

/// The sender and the session of the other server see different units of their node.
#[test]
fn a_target_reset_reaches_servers_of_the_target_by_units_that_its_sender_does_not_see() {
    let world = World::with(Limits::default(), |node| node.acl(Acl::new(ME).map_lun(0, 0)));
    let beside = world.beside(|node| node);
    let map = beside.target.config().nodes()[0].luns().clone();
    map.remove(0);
    let (mut peer, mut other) = (world.logged_in(ME), beside.logged_in(OTHER));
    run(&mut peer, TaskFunction::TargetColdReset, 0, 50);
    other.wake();
    assert_eq!(other.end(), Some(&EndReason::Told(EndCause::ColdReset)));
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
}

/// The nexus is the same, whether the servers still share a unit or not.
#[test]
fn a_login_reinstates_its_nexus_at_a_server_that_shares_no_unit_any_more() {
    let world = patient();
    let beside = world.beside(|node| node);
    let (mut old, mut known) = (ready(&world, ME), ready(&beside, OTHER));
    let map = beside.target.config().nodes()[0].luns().clone();
    map.iter().for_each(|lun| map.remove(lun.number));
    world.stores[0].shut();
    old.write(1, 0, &[9; 512]);
    let mut new = beside.connect();
    let keys = [("InitiatorName", ME), ("SessionType", "Normal"), ("TargetName", TARGET)];
    assert!(new.try_log_in(&keys).is_none(), "the write of the old session may still land");
    old.wake();
    assert_eq!(old.end(), Some(&EndReason::Told(EndCause::Reinstated)));
    known.wake();
    assert_eq!(known.end(), None, "it is another nexus");
    world.stores[0].open();
    old.wake();
    new.wake();
    new.expect(Opcode::LoginResponse);
}

/// Nobody polls but the thread of a server that has stopped.
#[cfg(feature = "tokio")]
#[test]
fn a_thread_waits_for_what_a_stopped_server_has_left() {
    let world = World::new();
    let mut peer = world.logged_in(ME);
    peer.clear_attention(0);
    world.stores[0].shut();
    peer.write(1, 0, &[7; 512]);
    drop(peer);
    assert_eq!(world.target.registry().entered(), 1, "its write is under way");
    crate::server::left::look_after(&world.target);
    assert_eq!(world.target.registry().entered(), 1);
    world.stores[0].open();
    for _ in 0..60_000 {
        if world.target.registry().entered() == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("nobody has waited for it");
}
