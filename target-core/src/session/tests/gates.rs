//! Several sessions at one unit whose memory is lent: who waits for whose data.

use alloc::sync::Arc;
use alloc::vec;

use iscsi_memory::Region;
use iscsi_proto::pdu::{DataOut, Opcode, R2t, TaskAttribute, TaskFunction, TaskResponse};
use iscsi_proto::serial::Serial;

use super::peer::{self, Peer, read10, write10};
use super::{ME, OTHER, TARGET};
use crate::lu::{Identity, LogicalUnit};
use crate::node::{TargetConfig, TargetNode};
use crate::session::{Limits, Target};
use backstore::RamStore;

/// A target with one LUN of 1 MiB in memory, and that memory.
fn in_memory(limits: Limits) -> (Arc<Target>, Arc<Region>) {
    let region = Region::heap(1 << 20);
    let unit = LogicalUnit::new(Arc::new(RamStore::over(region.clone())), Identity::from_seed("memory")).unwrap();
    (serve(Arc::new(unit), limits), region)
}

fn serve(unit: Arc<LogicalUnit>, limits: Limits) -> Arc<Target> {
    let node = TargetNode::builder().name(TARGET).portal(peer::LOCAL.parse().unwrap()).open().lun(0, unit);
    Target::new(TargetConfig::builder().node(node).build().unwrap(), limits)
}

fn ready(target: &Arc<Target>, initiator: &str) -> Peer {
    let mut peer = Peer::new(target.clone());
    peer.log_in(initiator, TARGET);
    peer.clear_attention(0);
    peer
}

/// A write without immediate data, and what it is asked for.
fn owe(peer: &mut Peer, itt: u32, lba: u32, blocks: u16) -> R2t {
    let command = peer.command(itt, 0, write10(lba, blocks), u32::from(blocks) * 512);
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), &[]);
    R2t::parse(&peer.expect(Opcode::R2t).bhs).unwrap()
}

fn data_out(r2t: &R2t) -> DataOut {
    DataOut {
        is_final: true,
        lun: r2t.lun,
        itt: r2t.itt,
        ttt: r2t.ttt,
        exp_stat_sn: Serial(0),
        data_sn: 0,
        buffer_offset: r2t.buffer_offset,
    }
}

fn compare_and_write(peer: &mut Peer, itt: u32, lba: u8, data: &[u8]) {
    let mut command = peer.command(itt, 0, [0x89, 0, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, 1, 0, 0], 1024);
    (command.read, command.write) = (false, true);
    peer.cmd_sn = peer.cmd_sn.next();
    peer.send(command.emit(), data);
}

/// SAM-5: a task does not wait for another initiator's data, be it for blocks of the same stripe.
#[test]
fn data_that_an_initiator_owes_hold_up_nobody() {
    for blocks in [1, 64] {
        let (target, region) = in_memory(Limits::default());
        let (mut silent, mut other) = (ready(&target, ME), ready(&target, OTHER));
        let r2t = owe(&mut silent, 1, 0, blocks);
        compare_and_write(&mut other, 1, 16, &[[0; 512], [7; 512]].concat());
        assert_eq!(other.status(1), 0);
        other.write(2, 0, &[2; 512]);
        assert_eq!(other.status(2), 0);
        // Half of them have come: the rest is still nobody else's business.
        let bytes = usize::from(blocks) * 512;
        let mut bhs = data_out(&r2t).emit();
        bhs.set_data_segment_len(bytes as u32);
        silent.bytes_in(&bhs.0);
        silent.bytes_in(&vec![1; bytes / 2]);
        compare_and_write(&mut other, 3, 0, &[[9; 512], [7; 512]].concat());
        assert_eq!(other.status(3), 2);
        silent.bytes_in(&vec![1; bytes - bytes / 2]);
        assert_eq!(silent.status(1), 0);
        let mut first = [0; 512];
        region.read(0, &mut first);
        assert_eq!(first, [1; 512]);
    }
}

/// SAM-5 8.6: an ORDERED task waits for all older ones, and a younger one for a HEAD OF QUEUE or ORDERED one; a read is
/// over when its data have left the store's memory.
#[test]
fn a_read_is_not_over_while_its_data_wait_to_be_sent() {
    for (reads, writes) in [
        (TaskAttribute::Simple, TaskAttribute::Ordered),
        (TaskAttribute::HeadOfQueue, TaskAttribute::Simple),
        (TaskAttribute::Ordered, TaskAttribute::Simple),
    ] {
        let (target, region) = in_memory(Limits::default());
        region.reserve_for_write(0, 1 << 17).unwrap();
        region.write(0, &[1; 1 << 17]);
        let mut peer = ready(&target, ME);
        peer.takes = false;
        for itt in 1..5 {
            let mut command = peer.command(itt, 0, read10(0, 256), 1 << 17);
            command.attribute = reads;
            peer.cmd_sn = peer.cmd_sn.next();
            peer.send(command.emit(), &[]);
        }
        let mut command = peer.command(5, 0, write10(0, 1), 512);
        command.attribute = writes;
        peer.cmd_sn = peer.cmd_sn.next();
        peer.send(command.emit(), &[2; 512]);
        peer.takes = true;
        peer.wake();
        let mut bytes = 0;
        while bytes < 4 << 17 {
            let pdu = peer.expect(Opcode::DataIn);
            assert!(pdu.data.iter().all(|byte| *byte == 1), "{reads:?} {writes:?}");
            bytes += pdu.data.len();
        }
        assert_eq!(peer.status(5), 0);
        let mut first = [0; 512];
        region.read(0, &mut first);
        assert_eq!(first, [2; 512]);
        peer.write(6, 0, &[3; 512]);
        assert_eq!(peer.status(6), 0);
        peer.expect_nothing();
    }
}

/// Data of an aborted write that come late land nowhere, though they were to land in the store's own memory.
#[test]
fn late_data_of_an_aborted_write_do_not_reach_lent_memory() {
    let (target, region) = in_memory(Limits::default());
    let mut peer = ready(&target, ME);
    let r2t = owe(&mut peer, 1, 0, 32);
    let mut abort = peer.task_function(TaskFunction::AbortTask, 0, 50);
    abort.referenced_task_tag = 1;
    abort.ref_cmd_sn = peer.cmd_sn.advance(u32::MAX);
    peer.send(abort.emit(), &[]);
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    peer.send(data_out(&r2t).emit(), &vec![7; 32 * 512]);
    peer.expect_nothing();
    let mut now = vec![1; 32 * 512];
    region.read(0, &mut now);
    assert!(now.iter().all(|byte| *byte == 0), "nothing was written");
}

/// A session waits for data of a write that it has aborted itself, and its LUN is taken away: another server's reset
/// ends that wait too.
#[test]
fn data_that_are_owed_to_an_aborted_write_do_not_land_after_the_reset_of_another() {
    let (target, region) = in_memory(Limits::default());
    let luns = target.config().nodes()[0].luns().clone();
    let beside = serve(luns.get(0).unwrap().unit, Limits::default());
    let (mut peer, mut other) = (ready(&beside, ME), ready(&target, OTHER));
    let r2t = owe(&mut other, 1, 0, 32);
    let abort = other.task_function(TaskFunction::AbortTaskSet, 0, 50);
    other.send(abort.emit(), &[]);
    other.expect_nothing();
    luns.remove(0);
    let reset = peer.task_function(TaskFunction::LogicalUnitReset, 0, 50);
    peer.send(reset.emit(), &[]);
    other.wake();
    peer.wake();
    assert_eq!(peer.function_response(50), TaskResponse::Complete);
    other.send(data_out(&r2t).emit(), &vec![7; 32 * 512]);
    let mut now = vec![1; 32 * 512];
    region.read(0, &mut now);
    assert!(now.iter().all(|byte| *byte == 0), "nothing was written");
}
