//! TAS: tasks that another I_T nexus ends are answered TASK ABORTED where the unit says so (SPC-5 7.5.10).

use alloc::sync::Arc;

use iscsi_proto::pdu::{Opcode, R2t, TaskFunction, TaskResponse};
use scsi_proto::Status;

use super::peer::{Peer, write10};
use super::{Gated, ME, OTHER, TARGET, World};
use crate::lu::{Identity, LogicalUnit, UnitAttributes};
use crate::session::Limits;

/// The LUN whose unit has TAS set.
const LUN: u16 = 2;

fn ready() -> (Peer, Peer, Arc<Gated>) {
    let store = Gated::new();
    let unit = LogicalUnit::new(store.clone(), Identity::from_seed("told")).unwrap();
    let unit = Arc::new(unit.with_attributes(UnitAttributes { emulate_tas: true, ..UnitAttributes::default() }));
    let world = World::with(Limits::default(), |node| node.lun(LUN, unit.clone()));
    let log_in = |initiator| {
        let mut peer = world.connect();
        peer.log_in(initiator, TARGET);
        peer.clear_attention(LUN);
        peer
    };
    (log_in(ME), log_in(OTHER), store)
}

#[test]
fn a_task_that_another_ends_is_answered_when_nothing_of_it_is_under_way() {
    let cases = [
        (TaskFunction::ClearTaskSet, None),
        (TaskFunction::LogicalUnitReset, Some((0x29, 3))),
        (TaskFunction::TargetWarmReset, Some((0x29, 2))),
    ];
    for (function, attention) in cases {
        let (mut peer, mut other, store) = ready();
        store.shut();
        other.write(1, LUN, &[7; 512]);
        let command = other.command(2, LUN, write10(8, 1), 512);
        other.cmd_sn = other.cmd_sn.next();
        other.send(command.emit(), &[]);
        R2t::parse(&other.expect(Opcode::R2t).bhs).unwrap();
        peer.read(1, LUN);
        let request = peer.task_function(function, LUN, 50);
        peer.send(request.emit(), &[]);
        other.wake();
        other.expect_nothing();
        store.open();
        other.wake();
        for itt in [1, 2] {
            assert_eq!(other.status(itt), Status::TaskAborted.to_byte());
        }
        other.expect_nothing();
        peer.wake();
        // Its sender has the function's own answer for its tasks.
        assert_eq!(peer.function_response(50), TaskResponse::Complete);
        peer.expect_nothing();
        // The status stands for COMMANDS CLEARED, not for a reset.
        other.read(3, LUN);
        match attention {
            Some(code) => assert_eq!(other.sense(3), Some(code)),
            None => assert_eq!(other.status(3), 0),
        }
        other.write(1, LUN, &[8; 512]);
        assert_eq!(other.status(1), 0, "the tag is free");
    }
}

/// RFC 7143 4.2.3: nothing is said of a task behind the answer to a function that aborts it.
#[test]
fn an_abort_of_a_task_that_another_ended_is_answered_behind_its_status() {
    let (mut peer, mut other, store) = ready();
    store.shut();
    other.write(1, LUN, &[7; 512]);
    let request = peer.task_function(TaskFunction::ClearTaskSet, LUN, 50);
    peer.send(request.emit(), &[]);
    other.wake();
    let mut abort = other.task_function(TaskFunction::AbortTask, LUN, 51);
    abort.referenced_task_tag = 1;
    abort.ref_cmd_sn = other.cmd_sn.advance(u32::MAX);
    other.send(abort.emit(), &[]);
    other.expect_nothing();
    store.open();
    other.wake();
    assert_eq!(other.status(1), Status::TaskAborted.to_byte());
    assert_eq!(other.function_response(51), TaskResponse::TaskDoesNotExist);
    other.expect_nothing();
}

#[test]
fn the_control_mode_page_tells_of_it() {
    let (mut peer, ..) = ready();
    let told = |peer: &mut Peer, lun| {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[2], cdb[4]) = (0x1a, 8, 0x0a, 64);
        let command = peer.command(9, lun, cdb, 64);
        peer.cmd_sn = peer.cmd_sn.next();
        peer.send(command.emit(), &[]);
        peer.expect(Opcode::DataIn).data[4 + 5] & 0x40 != 0
    };
    peer.clear_attention(0);
    assert!(told(&mut peer, LUN));
    assert!(!told(&mut peer, 0));
}
