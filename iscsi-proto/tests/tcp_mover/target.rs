//! The rules of write data at the target (RFC 7143 11.7, 11.8, 13.10 to 13.19), against Data-Out PDUs made by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iscsi_memory::{Buf, Landing, Payload, ReceiveSlice, Region};
use iscsi_proto::connection::StreamMover;
use iscsi_proto::datamover::{
    DataError, Datamover, GetData, MalformedPdu, Notification, PutData, Source, TaskHandle, TaskStatus,
};
use iscsi_proto::parameters::{Digest, Parameters};
use iscsi_proto::pdu::{Bhs, DataIn, DataOut, Opcode, R2t, RESERVED_TAG, Residual, ScsiResponse};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};

use crate::link::{command, drain, give, logged_in, pattern, pdu, split, take_all};

const ITT: u32 = 0x77;
const LUN: u64 = 9;
const TASK: TaskHandle = TaskHandle { slot: 2, generation: 5 };

fn parameters() -> Parameters {
    Parameters {
        initial_r2t: false,
        first_burst_length: 1024,
        max_burst_length: 2048,
        max_recv_data_segment_length: 16384,
        ..Parameters::default()
    }
}

fn target(parameters: &Parameters) -> TcpMover {
    logged_in(Role::Target, TcpMoverConfig::default(), parameters)
}

fn data_out(ttt: u32, data_sn: u32, buffer_offset: u32, is_final: bool) -> Bhs {
    DataOut { is_final, lun: LUN, itt: ITT, ttt, exp_stat_sn: Serial(1), data_sn, buffer_offset }.emit()
}

/// Starts a write of `length` bytes with `immediate` bytes in the command, into a buffer of `wanted` bytes.
fn write(mover: &mut TcpMover, p: &Parameters, length: u32, immediate: usize, is_final: bool, wanted: usize) {
    let data = pattern(1, length as usize);
    give(mover, &pdu(command(ITT, is_final, false, true, length), &data[..immediate], p));
    assert!(matches!(mover.poll_notify(), Some(Notification::Control(_))));
    let sink = Payload::Buf(Buf::zeroed(wanted));
    mover.get_data(GetData { task: TASK, lun: LUN, itt: ITT, sink });
}

/// Gives part of the write's data by a Data-Out.
fn part(mover: &mut TcpMover, p: &Parameters, ttt: u32, data_sn: u32, range: core::ops::Range<usize>, is_final: bool) {
    let data = pattern(1, range.end);
    give(mover, &pdu(data_out(ttt, data_sn, range.start as u32, is_final), &data[range], p));
}

fn r2ts(mover: &mut TcpMover) -> Vec<R2t> {
    split(&take_all(mover)).iter().map(|(bhs, _)| R2t::parse(bhs).unwrap()).collect()
}

#[track_caller]
fn completes(mover: &mut TcpMover, wanted: usize) {
    match &drain(mover)[..] {
        [Notification::GetDataComplete { task: TASK, sink: Payload::Buf(buf) }] => {
            assert_eq!(&buf[..], &pattern(1, wanted)[..]);
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn fails(mover: &mut TcpMover, expected: DataError) {
    match &drain(mover)[..] {
        [Notification::GetDataFailed { task: TASK, error, .. }] => assert_eq!(*error, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn immediate_unsolicited_and_solicited_in_turn() {
    let p = Parameters { max_outstanding_r2t: 2, ..parameters() };
    let mut mover = target(&p);
    write(&mut mover, &p, 7000, 500, false, 7000);
    part(&mut mover, &p, RESERVED_TAG, 0, 500..700, false);
    part(&mut mover, &p, RESERVED_TAG, 1, 700..1024, true);
    assert!(drain(&mut mover).is_empty());
    let asked = r2ts(&mut mover);
    assert_eq!(asked.len(), 2);
    assert_eq!((asked[0].r2t_sn, asked[0].buffer_offset, asked[0].desired_data_transfer_length), (0, 1024, 2048));
    assert_eq!((asked[1].r2t_sn, asked[1].buffer_offset, asked[1].desired_data_transfer_length), (1, 3072, 2048));
    assert_eq!((asked[0].lun, asked[0].itt), (LUN, ITT));
    assert_ne!(asked[0].ttt, asked[1].ttt);
    // No fresh R2T before the burst's F bit; then exactly one.
    part(&mut mover, &p, asked[0].ttt, 0, 1024..2000, false);
    assert!(drain(&mut mover).is_empty() && r2ts(&mut mover).is_empty());
    part(&mut mover, &p, asked[0].ttt, 1, 2000..3072, true);
    assert!(drain(&mut mover).is_empty());
    let third = r2ts(&mut mover);
    assert_eq!(third.len(), 1);
    assert_eq!((third[0].r2t_sn, third[0].buffer_offset, third[0].desired_data_transfer_length), (2, 5120, 1880));
    part(&mut mover, &p, asked[1].ttt, 0, 3072..5120, true);
    // A zero-length PDU may carry the F bit.
    part(&mut mover, &p, third[0].ttt, 0, 5120..7000, false);
    assert!(drain(&mut mover).is_empty() && r2ts(&mut mover).is_empty());
    part(&mut mover, &p, third[0].ttt, 1, 7000..7000, true);
    completes(&mut mover, 7000);
}

#[test]
fn a_shorter_sink_takes_its_part() {
    let p = parameters();
    let mut mover = target(&p);
    write(&mut mover, &p, 1000, 400, false, 512);
    part(&mut mover, &p, RESERVED_TAG, 0, 400..1000, true);
    completes(&mut mover, 512);
    write(&mut mover, &p, 1000, 1000, true, 0);
    completes(&mut mover, 0);
}

#[test]
fn forbidden_unsolicited_data_fail_the_task() {
    let p = Parameters { initial_r2t: true, ..parameters() };
    let mut mover = target(&p);
    write(&mut mover, &p, 1000, 0, false, 1000);
    part(&mut mover, &p, RESERVED_TAG, 0, 0..500, false);
    // That is told behind the F bit; then the tag is unknown.
    assert!(drain(&mut mover).is_empty());
    part(&mut mover, &p, RESERVED_TAG, 1, 500..1000, true);
    fails(&mut mover, DataError::UnexpectedUnsolicitedData);
    part(&mut mover, &p, RESERVED_TAG, 0, 0..1000, true);
    assert!(matches!(drain(&mut mover)[..], [Notification::Malformed { error: MalformedPdu::UnknownTask, .. }]));

    let p = Parameters { immediate_data: false, ..parameters() };
    let mut mover = target(&p);
    write(&mut mover, &p, 1000, 100, true, 1000);
    fails(&mut mover, DataError::UnexpectedUnsolicitedData);

    let p = parameters();
    let mut mover = target(&p);
    write(&mut mover, &p, 5000, 1025, true, 5000);
    fails(&mut mover, DataError::UnexpectedUnsolicitedData);
    let mut mover = target(&p);
    write(&mut mover, &p, 5000, 1000, false, 5000);
    part(&mut mover, &p, RESERVED_TAG, 0, 1000..1025, true);
    fails(&mut mover, DataError::UnexpectedUnsolicitedData);
    let mut mover = target(&p);
    write(&mut mover, &p, 5000, 1000, false, 5000);
    part(&mut mover, &p, RESERVED_TAG, 0, 1000..1020, true);
    fails(&mut mover, DataError::IncorrectAmountOfData);
    let mut mover = target(&p);
    write(&mut mover, &p, 600, 500, false, 600);
    part(&mut mover, &p, RESERVED_TAG, 0, 500..601, true);
    fails(&mut mover, DataError::IncorrectAmountOfData);
}

/// RFC 7143 7.8, 7.9: the task fails, and is answered when the last of its data has come.
#[test]
fn wrong_numbers_and_offsets_fail_the_task_behind_its_data() {
    let p = parameters();
    for (data_sn, offset) in [(1, 500), (0, 400), (0, 600)] {
        let mut mover = target(&p);
        write(&mut mover, &p, 1024, 500, false, 1024);
        give(&mut mover, &pdu(data_out(RESERVED_TAG, data_sn, offset, false), &[0; 100], &p));
        assert!(drain(&mut mover).is_empty());
        give(&mut mover, &pdu(data_out(RESERVED_TAG, data_sn + 1, offset + 100, true), &[0; 100], &p));
        fails(&mut mover, DataError::OutOfSequence);
    }
    for (data_sn, offset) in [(1, 0), (0, 4)] {
        let mut mover = target(&p);
        write(&mut mover, &p, 4000, 0, true, 4000);
        let asked = r2ts(&mut mover);
        give(&mut mover, &pdu(data_out(asked[0].ttt, data_sn, offset, false), &[0; 100], &p));
        assert!(drain(&mut mover).is_empty());
        give(&mut mover, &pdu(data_out(asked[0].ttt, data_sn + 1, 500, true), &[0; 100], &p));
        fails(&mut mover, DataError::OutOfSequence);
        assert!(r2ts(&mut mover).is_empty());
        // What is still under way for the old tag is late, not malformed.
        give(&mut mover, &pdu(data_out(asked[0].ttt, data_sn + 2, 600, true), &[0; 100], &p));
        assert!(drain(&mut mover).is_empty());
    }
}

#[test]
fn a_task_that_failed_is_told_when_each_of_its_bursts_has_ended() {
    let p = Parameters { max_outstanding_r2t: 3, ..parameters() };
    // In the order of the R2Ts and against it, and given up in between.
    for (order, given_up) in [([0, 1, 2], false), ([2, 1, 0], false), ([1, 0, 2], true)] {
        let mut mover = target(&p);
        write(&mut mover, &p, 6144, 0, true, 6144);
        let asked = r2ts(&mut mover);
        give(&mut mover, &pdu(data_out(asked[order[0]].ttt, 7, 0, false), &[0; 100], &p));
        let before = mover.fetched(TASK);
        for (done, at) in order.into_iter().enumerate() {
            assert!(drain(&mut mover).is_empty(), "{done} of 3 have ended");
            if given_up && done == 2 {
                assert!(mover.deallocate_task_resources(TASK).data_in.is_some());
            }
            give(&mut mover, &pdu(data_out(asked[at].ttt, 8, 100, true), &[0; 100], &p));
        }
        if given_up {
            assert!(drain(&mut mover).is_empty());
        } else {
            assert!(mover.fetched(TASK) > before, "they are on their way");
            fails(&mut mover, DataError::OutOfSequence);
        }
        // The slot and its tags go on.
        write(&mut mover, &p, 2048, 0, true, 2048);
        let fresh = r2ts(&mut mover);
        part(&mut mover, &p, fresh[0].ttt, 0, 0..2048, true);
        completes(&mut mover, 2048);
    }
}

#[test]
fn immediate_data_of_a_task_that_failed_do_not_end_it() {
    let p = Parameters { immediate_data: false, ..parameters() };
    let mut mover = target(&p);
    write(&mut mover, &p, 1000, 400, false, 1000);
    assert!(drain(&mut mover).is_empty());
    part(&mut mover, &p, RESERVED_TAG, 0, 400..1000, true);
    fails(&mut mover, DataError::UnexpectedUnsolicitedData);
}

/// RFC 7143 4.2.5.3, 11.7.4: behind a Target Transfer Tag the LUN is the command's; without one it is reserved.
#[test]
fn a_data_out_of_another_lun_is_refused() {
    let p = parameters();
    let mut mover = target(&p);
    write(&mut mover, &p, 3000, 500, false, 3000);
    let other = |bhs: Bhs| DataOut { lun: LUN + 1, ..DataOut::parse(&bhs).unwrap() }.emit();
    give(&mut mover, &pdu(other(data_out(RESERVED_TAG, 0, 500, true)), &pattern(1, 1024)[500..], &p));
    assert!(drain(&mut mover).is_empty());
    let asked = r2ts(&mut mover);
    give(&mut mover, &pdu(other(data_out(asked[0].ttt, 0, 1024, false)), &[0; 100], &p));
    assert!(matches!(drain(&mut mover)[..], [Notification::Malformed { error: MalformedPdu::WrongLun, .. }]));
    part(&mut mover, &p, asked[0].ttt, 1, 1124..3000, true);
    fails(&mut mover, DataError::IncorrectAmountOfData);
}

#[test]
fn a_burst_has_the_length_that_was_asked_for() {
    let p = parameters();
    for (len, is_final) in [(2047, true), (2049, true), (2052, false)] {
        let mut mover = target(&p);
        write(&mut mover, &p, 4000, 0, true, 4000);
        let asked = r2ts(&mut mover);
        part(&mut mover, &p, asked[0].ttt, 0, 0..len, is_final);
        if !is_final {
            assert!(drain(&mut mover).is_empty());
            part(&mut mover, &p, asked[0].ttt, 1, len..len, true);
        }
        fails(&mut mover, DataError::IncorrectAmountOfData);
    }
}

#[test]
fn any_order_within_a_burst_when_negotiated() {
    let p = Parameters { data_pdu_in_order: false, ..parameters() };
    let mut mover = target(&p);
    write(&mut mover, &p, 3000, 200, false, 3000);
    part(&mut mover, &p, RESERVED_TAG, 0, 600..1024, false);
    part(&mut mover, &p, RESERVED_TAG, 1, 200..600, true);
    assert!(drain(&mut mover).is_empty());
    let asked = r2ts(&mut mover);
    part(&mut mover, &p, asked[0].ttt, 0, 2000..3000, false);
    part(&mut mover, &p, asked[0].ttt, 1, 1024..2000, true);
    completes(&mut mover, 3000);
}

#[test]
fn r2ts_are_fulfilled_in_order() {
    let p = Parameters { max_outstanding_r2t: 2, ..parameters() };
    let mut mover = target(&p);
    write(&mut mover, &p, 4096, 0, true, 4096);
    let asked = r2ts(&mut mover);
    part(&mut mover, &p, asked[1].ttt, 0, 2048..4096, true);
    assert!(drain(&mut mover).is_empty());
    part(&mut mover, &p, asked[0].ttt, 0, 0..2048, true);
    fails(&mut mover, DataError::OutOfSequence);
}

#[test]
fn data_of_an_aborted_task_are_dropped_in_silence() {
    let p = parameters();
    let mut mover = target(&p);
    write(&mut mover, &p, 4000, 500, false, 4000);
    // In the middle of a payload.
    let bytes = pdu(data_out(RESERVED_TAG, 0, 500, false), &[9; 300], &p);
    give(&mut mover, &bytes[..200]);
    assert!(drain(&mut mover).is_empty());
    assert!(matches!(mover.deallocate_task_resources(TASK).data_in, Some(Payload::Buf(_))));
    assert!(mover.deallocate_task_resources(TASK).data_in.is_none());
    give(&mut mover, &bytes[200..]);
    part(&mut mover, &p, RESERVED_TAG, 1, 800..1024, true);
    assert!(drain(&mut mover).is_empty());

    write(&mut mover, &p, 4000, 0, true, 4000);
    let asked = r2ts(&mut mover);
    mover.deallocate_task_resources(TASK);
    // The slot's next use does not mistake the old tag for its own.
    write(&mut mover, &p, 2048, 0, true, 2048);
    let fresh = r2ts(&mut mover);
    part(&mut mover, &p, asked[0].ttt, 0, 0..2048, true);
    assert!(drain(&mut mover).is_empty());
    part(&mut mover, &p, fresh[0].ttt, 0, 0..2048, true);
    completes(&mut mover, 2048);
    // A tag that never was.
    part(&mut mover, &p, fresh[0].ttt.wrapping_add(1 << 16), 0, 0..2048, true);
    assert!(matches!(drain(&mut mover)[..], [Notification::Malformed { error: MalformedPdu::UnknownTask, .. }]));
}

#[test]
fn data_that_nobody_asks_for_are_dropped() {
    let p = parameters();
    let mut mover = target(&p);
    // More commands without takers than the table holds.
    for itt in 0..300 {
        give(&mut mover, &pdu(command(itt, false, false, true, 1024), &[1; 100], &p));
        assert!(matches!(drain(&mut mover)[..], [Notification::Control(_)]));
    }
    let late = |itt| DataOut {
        is_final: true,
        lun: 0,
        itt,
        ttt: RESERVED_TAG,
        exp_stat_sn: Serial(0),
        data_sn: 0,
        buffer_offset: 100,
    };
    give(&mut mover, &pdu(late(299).emit(), &[1; 924], &p));
    assert!(drain(&mut mover).is_empty());
    give(&mut mover, &pdu(late(0).emit(), &[1; 924], &p));
    assert!(matches!(drain(&mut mover)[..], [Notification::Malformed { error: MalformedPdu::UnknownTask, .. }]));
    // A session that asks later gets all of it by R2T.
    mover.get_data(GetData { task: TASK, lun: 0, itt: 298, sink: Payload::Buf(Buf::zeroed(1024)) });
    let asked = r2ts(&mut mover);
    assert_eq!((asked[0].buffer_offset, asked[0].desired_data_transfer_length), (0, 1024));
}

#[test]
fn a_large_payload_goes_straight_to_its_sink() {
    let p = Parameters { max_burst_length: 65536, max_recv_data_segment_length: 65536, ..parameters() };
    let mut mover = target(&p);
    write(&mut mover, &p, 20_000, 0, true, 20_000);
    let asked = r2ts(&mut mover);
    let data = pattern(1, 20_000);
    let bytes = pdu(data_out(asked[0].ttt, 0, 0, true), &data, &p);
    give(&mut mover, &bytes[..148]);
    assert!(drain(&mut mover).is_empty());
    assert_eq!(mover.receive_window().payload.len(), 19_900);
    give(&mut mover, &bytes[148..15_048]);
    assert!(drain(&mut mover).is_empty());
    assert_eq!(mover.receive_window().payload.len(), 0, "the rest is small");
    give(&mut mover, &bytes[15_048..]);
    completes(&mut mover, 20_000);
}

/// Lets nothing land while it is shut.
#[derive(Debug, Default)]
struct Door {
    shut: AtomicBool,
}

impl Landing for Door {
    fn try_land(&self, _: u64, _: u64, copy: &mut dyn FnMut()) -> bool {
        let open = !self.shut.load(Ordering::Relaxed);
        if open {
            copy();
        }
        open
    }
}

/// Nothing is received in the meantime, and nothing is lost.
#[test]
fn data_that_may_not_land_wait() {
    let p = Parameters { max_burst_length: 65536, max_recv_data_segment_length: 65536, ..parameters() };
    for first in [48, 1000, 10_000] {
        let mut mover = target(&p);
        let (region, door) = (Region::heap(20_000), Arc::new(Door::default()));
        give(&mut mover, &pdu(command(ITT, true, false, true, 20_000), &[], &p));
        assert!(matches!(mover.poll_notify(), Some(Notification::Control(_))));
        let slice = region.slice(0, 20_000).with_landing(door.clone());
        region.reserve_for_write(0, 20_000).unwrap();
        mover.get_data(GetData { task: TASK, lun: LUN, itt: ITT, sink: Payload::Region(slice) });
        let asked = r2ts(&mut mover);
        let bytes = pdu(data_out(asked[0].ttt, 0, 0, true), &pattern(1, 20_000), &p);
        door.shut.store(true, Ordering::Relaxed);
        give(&mut mover, &bytes[..first]);
        assert!(drain(&mut mover).is_empty());
        assert_eq!(mover.receive_window().is_empty(), first > 48);
        let mut memory = vec![0; 20_000];
        region.read(0, &mut memory);
        assert_eq!(memory, [0; 20_000]);
        assert_eq!(mover.fetched(TASK) as usize, first - 48, "they have come");
        door.shut.store(false, Ordering::Relaxed);
        assert!(drain(&mut mover).is_empty());
        assert_eq!(mover.fetched(TASK) as usize, first - 48);
        give(&mut mover, &bytes[first..]);
        assert!(matches!(drain(&mut mover)[..], [Notification::GetDataComplete { .. }]));
        region.read(0, &mut memory);
        assert_eq!(memory, pattern(1, 20_000));
    }
}

/// PDUs that end inside logical blocks, and bytes that come in any pieces: what has not come of a block never shows.
#[test]
fn a_block_lands_whole() {
    let p = Parameters { max_burst_length: 65536, max_recv_data_segment_length: 65536, ..parameters() };
    let (before, data) = (pattern(7, 20_480), pattern(1, 20_480));
    for (segment, step) in [(20_480, 20_480), (20_480, 1000), (700, 333), (1536, 20_480), (10_000, 4096)] {
        let mut mover = target(&p);
        let region = Region::heap(1 << 16);
        region.write(4096, &before);
        let mut now = vec![0; 20_480];
        give(&mut mover, &pdu(command(ITT, true, false, true, 20_480), &[], &p));
        assert!(matches!(mover.poll_notify(), Some(Notification::Control(_))));
        let sink = Payload::Region(region.slice(4096, 20_480));
        mover.get_data(GetData { task: TASK, lun: LUN, itt: ITT, sink });
        let ttt = r2ts(&mut mover)[0].ttt;
        let mut bytes = Vec::new();
        for (sn, (at, part)) in (0..).step_by(segment).zip(data.chunks(segment)).enumerate() {
            let last = at + part.len() == data.len();
            bytes.extend(pdu(data_out(ttt, sn as u32, at as u32, last), part, &p));
        }
        let mut told = Vec::new();
        for chunk in bytes.chunks(step) {
            // Never a place that the kernel may fill as bytes come.
            assert!(!matches!(mover.receive_window().payload, ReceiveSlice::Lent(..)));
            give(&mut mover, chunk);
            told.extend(drain(&mut mover));
            region.read(4096, &mut now);
            for ((now, old), new) in now.chunks(512).zip(before.chunks(512)).zip(data.chunks(512)) {
                assert!(now == old || now == new, "segments of {segment}, {step} at a time: a torn block");
            }
        }
        assert!(matches!(told[..], [Notification::GetDataComplete { .. }]), "{segment} {step} {told:?}");
        assert_eq!(now, data);
    }
}

/// What is left of a block is of the same time as what has been sent of it, wherever a send or a PDU ends.
#[test]
fn a_block_is_sent_whole() {
    let p = Parameters { max_burst_length: 65536, ..parameters() };
    for (segment, part) in [(65_536, 5000), (65_536, 777), (1000, 777), (700, 100_000), (8192, 3000), (5000, 777)] {
        let mut mover = target(&Parameters { peer_max_recv_data_segment_length: segment, ..p.clone() });
        let region = Region::heap(1 << 16);
        region.write(0, &[1; 1 << 16]);
        let status =
            TaskStatus { status: 0, residual: Residual::None, bidirectional_read_residual: Residual::None, sense: &[] };
        let data = Source::Region { region: &region, offset: 512, len: 40_448 };
        mover.put_data(PutData { lun: 0, itt: ITT, buffer_offset: 0, data, status: Some(status) });
        let (mut wire, mut round) = (Vec::new(), 1);
        while mover.backlog() > 0 {
            let mut list = Default::default();
            mover.fill_send_list(&mut list);
            let mut all = vec![0; list.len()];
            let mut at = 0;
            for piece in list.as_slice() {
                piece.copy_to(&mut all[at..][..piece.len()]);
                at += piece.len();
            }
            all.truncate(part);
            mover.handle_sent(all.len());
            wire.extend(all);
            round = round % 250 + 1;
            region.write(0, &vec![round; 1 << 16]);
        }
        let mut read: Vec<u8> = Vec::new();
        while !wire.is_empty() {
            let len = Bhs(*wire.first_chunk().unwrap()).data_segment_len() as usize;
            read.extend(&wire[48..48 + len]);
            wire.drain(..48 + len.next_multiple_of(4));
        }
        assert_eq!(read.len(), 40_448);
        for block in read.chunks(512) {
            assert!(
                block.iter().all(|byte| *byte == block[0]),
                "segments of {segment}, {part} at a time: a torn block"
            );
        }
    }
}

#[test]
fn bad_data_never_reach_lent_memory() {
    let p = Parameters {
        data_digest: Digest::Crc32c,
        max_burst_length: 65536,
        max_recv_data_segment_length: 65536,
        ..parameters()
    };
    let mut mover = target(&p);
    let region = Region::heap(20_000);
    region.reserve_for_write(0, 20_000).unwrap();
    for good in [false, true] {
        give(&mut mover, &pdu(command(ITT, true, false, true, 20_000), &[], &p));
        assert!(matches!(mover.poll_notify(), Some(Notification::Control(_))));
        mover.get_data(GetData { task: TASK, lun: LUN, itt: ITT, sink: Payload::Region(region.slice(0, 20_000)) });
        let asked = r2ts(&mut mover);
        let mut bytes = pdu(data_out(asked[0].ttt, 0, 0, true), &[0xee; 20_000], &p);
        bytes[10_000] ^= u8::from(!good);
        for chunk in bytes.chunks(7000) {
            assert!(matches!(mover.receive_window().payload, ReceiveSlice::Private(&mut [])));
            give(&mut mover, chunk);
            if chunk.len() == 7000 {
                assert!(drain(&mut mover).is_empty());
            }
        }
        let told = drain(&mut mover);
        let mut memory = vec![0; 20_000];
        region.read(0, &mut memory);
        if good {
            assert!(matches!(told[..], [Notification::GetDataComplete { .. }]));
            assert_eq!(memory, [0xee; 20_000]);
        } else {
            assert!(matches!(
                told[..],
                [
                    Notification::Malformed { error: MalformedPdu::DataDigest, .. },
                    Notification::GetDataFailed { error: DataError::DigestError, .. }
                ]
            ));
            assert_eq!(memory, [0; 20_000]);
        }
    }
}

#[test]
fn a_digest_error_in_a_data_out_fails_the_task_only() {
    let p = Parameters {
        data_digest: Digest::Crc32c,
        max_burst_length: 65536,
        max_recv_data_segment_length: 65536,
        ..parameters()
    };
    let mut mover = target(&p);
    for len in [512, 12_000] {
        give(&mut mover, &pdu(command(ITT, true, false, true, len), &[], &p));
        assert!(matches!(mover.poll_notify(), Some(Notification::Control(_))));
        let sink = Payload::Buf(Buf::zeroed(len as usize));
        mover.get_data(GetData { task: TASK, lun: LUN, itt: ITT, sink });
        let asked = r2ts(&mut mover);
        // Not before the F bit (RFC 7143 7.8).
        let mut bytes = pdu(data_out(asked[0].ttt, 0, 0, false), &pattern(1, len as usize), &p);
        *bytes.last_mut().unwrap() ^= 1;
        give(&mut mover, &bytes);
        assert!(matches!(drain(&mut mover)[..], [Notification::Malformed { error: MalformedPdu::DataDigest, .. }]));
        let mut bytes = pdu(data_out(asked[0].ttt, 1, 0, true), &[1; 8], &p);
        *bytes.last_mut().unwrap() ^= 1;
        give(&mut mover, &bytes);
        assert!(matches!(
            drain(&mut mover)[..],
            [
                Notification::GetDataFailed { error: DataError::DigestError, .. },
                Notification::Malformed { error: MalformedPdu::DataDigest, .. },
            ]
        ));
    }
}

#[test]
fn a_command_whose_immediate_data_fail_their_digest_is_not_told() {
    let p = Parameters { data_digest: Digest::Crc32c, first_burst_length: 65536, ..parameters() };
    let mut mover = target(&p);
    for len in [512, 8000] {
        let good = pdu(command(ITT, true, false, true, len), &pattern(1, len as usize), &p);
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        let (most, last) = bad.split_at(bad.len() - 1);
        give(&mut mover, most);
        assert!(drain(&mut mover).is_empty());
        give(&mut mover, last);
        assert!(matches!(drain(&mut mover)[..], [Notification::Malformed { error: MalformedPdu::DataDigest, .. }]));
        // The same command again, whole.
        give(&mut mover, &good);
        assert!(matches!(mover.poll_notify(), Some(Notification::Control(_))));
        mover.get_data(GetData { task: TASK, lun: LUN, itt: ITT, sink: Payload::Buf(Buf::zeroed(len as usize)) });
        let told = drain(&mut mover);
        let [Notification::GetDataComplete { sink: Payload::Buf(buf), .. }] = &told[..] else { panic!("{told:?}") };
        assert_eq!(buf[..], pattern(1, len as usize));
    }
}

fn good() -> Option<TaskStatus<'static>> {
    Some(TaskStatus {
        status: 0,
        residual: Residual::Underflow(24),
        bidirectional_read_residual: Residual::None,
        sense: &[],
    })
}

#[test]
fn data_in_is_cut_by_segment_and_burst() {
    let p = Parameters { peer_max_recv_data_segment_length: 1000, max_burst_length: 2500, ..parameters() };
    let mut mover = target(&p);
    let bytes = pattern(3, 6000);
    mover.put_data(PutData { lun: 0, itt: 5, buffer_offset: 100, data: Source::Copy(&bytes), status: good() });
    let pdus = split(&take_all(&mut mover));
    let shape: Vec<_> = pdus
        .iter()
        .map(|(bhs, data)| {
            let pdu = DataIn::parse(bhs).unwrap();
            // RFC 7143 11.7.2: not at ErrorRecoveryLevel 0.
            assert!(!pdu.acknowledge);
            (pdu.data_sn, pdu.buffer_offset, data.len(), pdu.is_final, pdu.status.is_some())
        })
        .collect();
    assert_eq!(
        shape,
        [
            (0, 100, 1000, false, false),
            (1, 1100, 1000, false, false),
            (2, 2100, 500, true, false),
            (3, 2600, 1000, false, false),
            (4, 3600, 1000, false, false),
            (5, 4600, 500, true, false),
            (6, 5100, 1000, true, true),
        ]
    );
    assert_eq!(DataIn::parse(&pdus[6].0).unwrap().status.unwrap().residual, Residual::Underflow(24));
    assert_eq!(pdus.into_iter().flat_map(|(_, data)| data).collect::<Vec<_>>(), bytes);
}

#[test]
fn status_with_sense_comes_apart_and_counts_data_in() {
    let p = Parameters { peer_max_recv_data_segment_length: 512, ..parameters() };
    let mut mover = target(&p);
    let (first, second) = (pattern(3, 1000), pattern(4, 200));
    mover.put_data(PutData { lun: 0, itt: 5, buffer_offset: 0, data: Source::Copy(&first), status: None });
    let status = Some(TaskStatus { status: 2, sense: &[0x72, 3, 0x11], ..good().unwrap() });
    mover.put_data(PutData { lun: 0, itt: 5, buffer_offset: 1000, data: Source::Copy(&second), status });
    mover.put_data(PutData { lun: 0, itt: 5, buffer_offset: 0, data: Source::None, status: good() });
    let pdus = split(&take_all(&mut mover));
    let numbers: Vec<_> = pdus[..3].iter().map(|(bhs, _)| DataIn::parse(bhs).unwrap().data_sn).collect();
    assert_eq!(numbers, [0, 1, 2]);
    let response = ScsiResponse::parse(&pdus[3].0).unwrap();
    assert_eq!((response.exp_data_sn, response.status), (3, 2));
    assert_eq!(pdus[3].1, [0, 3, 0x72, 3, 0x11]);
    let response = ScsiResponse::parse(&pdus[4].0).unwrap();
    assert_eq!((response.exp_data_sn, response.status, response.residual), (0, 0, Residual::Underflow(24)));
    assert_eq!(pdus[4].0.opcode(), Ok(Opcode::ScsiResponse));
}

#[test]
fn nothing_is_received_while_too_much_waits_to_be_sent() {
    let config = TcpMoverConfig { send_high_water: 10_000, ..TcpMoverConfig::default() };
    let mut mover = logged_in(Role::Target, config, &parameters());
    let region = Region::heap(11_000);
    let put = PutData {
        lun: 0,
        itt: 5,
        buffer_offset: 0,
        data: Source::Region { region: &region, offset: 0, len: 11_000 },
        status: good(),
    };
    mover.put_data(put);
    assert!(mover.receive_window().is_empty());
    crate::link::take(&mut mover, 5000);
    assert!(mover.receive_window().is_empty(), "half of the limit is not reached");
    crate::link::take(&mut mover, 2000);
    assert!(!mover.receive_window().is_empty());
}

#[test]
fn queued_buffers_come_back_when_the_stream_breaks() {
    let mut mover = target(&parameters());
    let data = Source::Buf(Buf::zeroed(50_000));
    mover.put_data(PutData { lun: 0, itt: 5, buffer_offset: 0, data, status: good() });
    crate::link::take(&mut mover, 20_000);
    mover.handle_stream_end(iscsi_proto::connection::StreamEnd::Broken);
    assert!(matches!(drain(&mut mover)[..], [Notification::Released(_), Notification::Terminated(_)]));
}
