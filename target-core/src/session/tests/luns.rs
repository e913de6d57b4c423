//! LUNs above 255, which initiators write in two ways: flat, 41 00, and peripheral, 01 00.

use alloc::sync::Arc;
use alloc::vec::Vec;

use iscsi_proto::pdu::{Opcode, R2t, TaskFunction, TaskResponse};

use super::peer::{Peer, write10};
use super::{Gated, ME, TARGET, World};
use crate::lu::{Identity, LogicalUnit};
use crate::session::Limits;

const FLAT: u64 = 0x4100 << 48;
const PERIPHERAL: u64 = 0x0100 << 48;

/// A peer that sees LUNs 0, 1 and 256, and has heard of the power on of the last.
fn ready() -> Peer {
    let world = World::with(Limits::default(), |node| {
        node.lun(256, Arc::new(LogicalUnit::new(Gated::new(), Identity::from_seed("disk 256")).unwrap()))
    });
    let mut peer = world.connect();
    peer.log_in(ME, TARGET);
    for (itt, lun) in [(1, FLAT), (2, FLAT), (3, PERIPHERAL)] {
        let mut command = peer.command(itt, 0, [0; 16], 0);
        command.lun = lun;
        peer.cmd_sn = peer.cmd_sn.next();
        peer.send(command.emit(), &[]);
        assert_eq!(peer.status(itt) == 0, itt != 1, "the unit attention is told once, whichever way it is written");
    }
    peer
}

/// A write that owes its data, and the LUN that its R2T names.
fn begin(peer: &mut Peer, itt: u32, lun: u64) -> u64 {
    let mut command = peer.command(itt, 0, write10(0, 1), 512);
    command.lun = lun;
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[]);
    R2t::parse(&peer.expect(Opcode::R2t).bhs).unwrap().lun
}

#[test]
fn a_task_is_managed_whichever_way_its_lun_is_written() {
    let mut peer = ready();
    let mut itt = 100;
    for (task, function) in [(FLAT, PERIPHERAL), (PERIPHERAL, FLAT), (FLAT, FLAT), (PERIPHERAL, PERIPHERAL)] {
        itt += 10;
        // RFC 7143 4.2.5.3: what a task's PDUs carry is what its command has.
        assert_eq!(begin(&mut peer, itt, task), task);
        let mut abort = peer.task_function(TaskFunction::AbortTask, 0, itt + 1);
        (abort.lun, abort.referenced_task_tag) = (function, itt);
        abort.ref_cmd_sn = peer.cmd_sn.advance(u32::MAX);
        peer.send(abort.emit(), &[]);
        assert_eq!(peer.function_response(itt + 1), TaskResponse::Complete);
        begin(&mut peer, itt + 2, task);
        let mut set = peer.task_function(TaskFunction::AbortTaskSet, 0, itt + 3);
        set.lun = function;
        peer.send(set.emit(), &[]);
        peer.pass(core::time::Duration::from_secs(1));
        assert_eq!(peer.function_response(itt + 3), TaskResponse::Complete);
        // Both are gone: their places and tags are free, and nothing more is said.
        peer.expect_nothing();
        begin(&mut peer, itt + 2, task);
        let mut reset = peer.task_function(TaskFunction::LogicalUnitReset, 0, itt + 4);
        reset.lun = function;
        peer.send(reset.emit(), &[]);
        peer.pass(core::time::Duration::from_secs(1));
        assert_eq!(peer.function_response(itt + 4), TaskResponse::Complete);
        let mut ready = peer.command(itt + 5, 0, [0; 16], 0);
        ready.lun = function;
        peer.cmd_sn = peer.cmd_sn.next();
        peer.send(ready.emit(), &[]);
        assert_eq!(peer.sense(itt + 5), Some((0x29, 0x03)));
    }
}

#[test]
fn report_luns_lists_large_numbers_flat() {
    let mut peer = ready();
    let mut cdb = [0; 16];
    (cdb[0], cdb[9]) = (0xa0, 64);
    let command = peer.command(7, 0, cdb, 64);
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[]);
    let list = peer.expect(Opcode::DataIn).data;
    let (head, luns) = list.split_at(8);
    assert_eq!(head, [0, 0, 0, 24, 0, 0, 0, 0]);
    let luns: Vec<_> = luns.chunks(8).map(|lun| u64::from_be_bytes(lun.try_into().unwrap())).collect();
    assert_eq!(luns, [0, 1 << 48, FLAT]);
}
