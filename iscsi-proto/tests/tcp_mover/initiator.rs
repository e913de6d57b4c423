//! What the initiator's mover sends for a write, and how it guards against a target that breaks the rules.

use iscsi_memory::{Buf, Payload, Region};
use iscsi_proto::datamover::{Datamover, MalformedPdu, MoverError, Notification, SendCommand, TaskHandle};
use iscsi_proto::misbehavior::Misbehavior;
use iscsi_proto::parameters::{Digest, Parameters};
use iscsi_proto::pdu::{Bhs, DataIn, DataOut, R2t, RESERVED_TAG, Residual, ResponseCode, ScsiResponse};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};

use crate::link::{command, drain, give, logged_in, pattern, pdu, split, take, take_all};

const TASK: TaskHandle = TaskHandle { slot: 1, generation: 4 };

fn parameters() -> Parameters {
    Parameters {
        initial_r2t: false,
        first_burst_length: 1500,
        max_burst_length: 4096,
        peer_max_recv_data_segment_length: 1000,
        max_recv_data_segment_length: 16384,
        ..Parameters::default()
    }
}

fn initiator(parameters: &Parameters) -> TcpMover {
    logged_in(Role::Initiator, TcpMoverConfig::default(), parameters)
}

fn start(mover: &mut TcpMover, write: usize, read: usize) {
    let mut data = Buf::zeroed(write);
    data.copy_from_slice(&pattern(1, write));
    mover.send_command(SendCommand {
        task: TASK,
        bhs: command(TASK.to_itt(), true, read > 0, write > 0, write.max(read) as u32),
        ahs: &[],
        data_out: (write > 0).then_some(Payload::Buf(data)),
        data_in: (read > 0).then(|| Payload::Buf(Buf::zeroed(read))),
    });
}

fn r2t(r2t_sn: u32, buffer_offset: u32, length: u32) -> Bhs {
    R2t {
        lun: 7,
        itt: TASK.to_itt(),
        ttt: 0x55,
        stat_sn: Serial(0),
        exp_cmd_sn: Serial(0),
        max_cmd_sn: Serial(0),
        r2t_sn,
        buffer_offset,
        desired_data_transfer_length: length,
    }
    .emit()
}

fn data_in(data_sn: u32, buffer_offset: u32) -> Bhs {
    DataIn {
        is_final: true,
        acknowledge: false,
        status: None,
        lun: 0,
        itt: TASK.to_itt(),
        ttt: RESERVED_TAG,
        exp_cmd_sn: Serial(0),
        max_cmd_sn: Serial(0),
        data_sn,
        buffer_offset,
    }
    .emit()
}

type Shape = (u32, u32, u32, usize, bool);

fn shapes(mover: &mut TcpMover) -> Vec<Shape> {
    let data = pattern(1, 100_000);
    let shape = |(bhs, payload): &(Bhs, Vec<u8>)| {
        let pdu = DataOut::parse(bhs).unwrap();
        assert_eq!(payload[..], data[pdu.buffer_offset as usize..][..payload.len()]);
        (pdu.ttt, pdu.data_sn, pdu.buffer_offset, payload.len(), pdu.is_final)
    };
    split(&take_all(mover)).iter().map(shape).collect()
}

#[test]
fn a_write_sends_what_the_keys_allow() {
    let none = RESERVED_TAG;
    let cases: [(bool, bool, usize, usize, &[Shape]); 6] = [
        (false, true, 5000, 1000, &[(none, 0, 1000, 500, true)]),
        (false, false, 5000, 0, &[(none, 0, 0, 1000, false), (none, 1, 1000, 500, true)]),
        (true, true, 5000, 1000, &[]),
        (true, false, 5000, 0, &[]),
        (false, true, 900, 900, &[]),
        (false, true, 1201, 1000, &[(none, 0, 1000, 201, true)]),
    ];
    for (initial_r2t, immediate_data, len, immediate, unsolicited) in cases {
        let p = Parameters { initial_r2t, immediate_data, ..parameters() };
        let mut mover = initiator(&p);
        start(&mut mover, len, 0);
        let head = take(&mut mover, 48 + immediate);
        let bhs = Bhs(head[..48].try_into().unwrap());
        assert_eq!((bhs.data_segment_len() as usize, bhs.is_final()), (immediate, unsolicited.is_empty()));
        assert_eq!(head[48..], pattern(1, immediate));
        assert_eq!(shapes(&mut mover), unsolicited);
    }
}

#[test]
fn r2ts_are_served_in_order() {
    let p = Parameters { initial_r2t: true, immediate_data: false, ..parameters() };
    let mut mover = initiator(&p);
    start(&mut mover, 3000, 0);
    take_all(&mut mover);
    give(&mut mover, &pdu(r2t(0, 0, 2000), &[], &p));
    give(&mut mover, &pdu(r2t(1, 2000, 1000), &[], &p));
    assert!(drain(&mut mover).is_empty());
    assert_eq!(
        shapes(&mut mover),
        [(0x55, 0, 0, 1000, false), (0x55, 1, 1000, 1000, true), (0x55, 0, 2000, 1000, true)]
    );
}

/// What the peer did wrong, where that is all that is told.
fn misbehavior(told: &[Notification]) -> Misbehavior {
    let [Notification::Malformed { error: MalformedPdu::Protocol(what), .. }] = told else { panic!("{told:?}") };
    *what
}

#[test]
fn an_r2t_out_of_bounds_is_refused() {
    let p = Parameters { initial_r2t: true, immediate_data: false, ..parameters() };
    let above = |desired| Misbehavior::R2tAboveMaxBurstLength { desired, max_burst_length: 4096 };
    let beyond = |buffer_offset, desired| Misbehavior::R2tBeyondData { buffer_offset, desired };
    let bad = [
        (r2t(0, 0, 5001), above(5001)),
        (r2t(0, 0, 4097), above(4097)),
        (r2t(0, 4, 100), Misbehavior::R2tOutOfOrder { buffer_offset: 4, expected: 0 }),
        (r2t(1, 0, 100), Misbehavior::R2tSn { got: 1, expected: 0 }),
        (r2t(0, 4999, 2), beyond(4999, 2)),
        (r2t(0, u32::MAX, 9), beyond(u32::MAX, 9)),
    ];
    for (bhs, what) in bad {
        let mut mover = initiator(&p);
        start(&mut mover, 5000, 0);
        take_all(&mut mover);
        give(&mut mover, &pdu(bhs, &[], &p));
        assert_eq!(misbehavior(&drain(&mut mover)), what);
        assert_eq!(mover.backlog(), 0);
    }
    // The same bytes again and again, where the order of sequences is free.
    let p = Parameters { data_sequence_in_order: false, ..p };
    let mut mover = initiator(&p);
    start(&mut mover, 5000, 0);
    for r2t_sn in 0..2 {
        give(&mut mover, &pdu(r2t(r2t_sn, 0, 3000), &[], &p));
    }
    assert_eq!(misbehavior(&drain(&mut mover)), beyond(0, 3000));
}

#[test]
fn what_was_not_asked_for_or_not_sent_is_not_the_targets() {
    let p = Parameters { initial_r2t: true, immediate_data: false, ..parameters() };
    let mut mover = initiator(&p);
    start(&mut mover, 3000, 0);
    take_all(&mut mover);
    give(&mut mover, &pdu(r2t(0, 0, 2000), &[], &p));
    assert!(drain(&mut mover).is_empty());
    take(&mut mover, 48 + 1000);
    // The second Data-Out of the burst is still here.
    assert_eq!(mover.deallocate_task_resources(TASK).data_out_len, 2000 - 1048);
    let mut mover = initiator(&p);
    start(&mut mover, 3000, 0);
    take_all(&mut mover);
    give(&mut mover, &pdu(r2t(0, 0, 2000), &[], &p));
    assert!(drain(&mut mover).is_empty());
    take_all(&mut mover);
    assert_eq!(mover.deallocate_task_resources(TASK).data_out_len, 2000, "1000 bytes were never asked for");
}

#[test]
fn a_response_that_counts_more_pdus_than_came_tells_of_lost_data() {
    let p = parameters();
    for (exp_data_sn, lost) in [(0, false), (1, false), (2, true), (u32::MAX, false)] {
        let mut mover = initiator(&p);
        start(&mut mover, 0, 512);
        give(&mut mover, &pdu(data_in(0, 0), &[1; 512], &p));
        let response = ScsiResponse {
            bidirectional_read_residual: Residual::None,
            residual: Residual::None,
            response: ResponseCode::Completed,
            status: 0,
            itt: TASK.to_itt(),
            snack_tag: 0,
            stat_sn: Serial(0),
            exp_cmd_sn: Serial(0),
            max_cmd_sn: Serial(0),
            exp_data_sn,
            status_qualifier: 0,
        };
        give(&mut mover, &pdu(response.emit(), &[], &p));
        let told = drain(&mut mover);
        if lost {
            assert_eq!(misbehavior(&told), Misbehavior::DataMissing { exp_data_sn });
        } else {
            assert!(matches!(told[..], [Notification::Control(_)]), "{exp_data_sn}: {told:?}");
        }
    }
}

#[test]
fn data_in_out_of_bounds_or_order_are_refused() {
    let p = parameters();
    let beyond = |buffer_offset, len| Misbehavior::DataInBeyondBuffer { buffer_offset, len };
    for (bhs, len, what) in [
        (data_in(0, 100), 413, beyond(100, 413)),
        (data_in(1, 0), 100, Misbehavior::DataInSn { got: 1, expected: 0 }),
        (data_in(0, u32::MAX), 100, beyond(u32::MAX, 100)),
    ] {
        let mut mover = initiator(&p);
        start(&mut mover, 0, 512);
        give(&mut mover, &pdu(bhs, &vec![1; len], &p));
        assert_eq!(misbehavior(&drain(&mut mover)), what);
        let Some(Payload::Buf(buf)) = mover.deallocate_task_resources(TASK).data_in else { panic!() };
        assert_eq!(buf[..], [0; 512]);
    }
    let mut mover = initiator(&p);
    start(&mut mover, 0, 512);
    give(&mut mover, &pdu(data_in(0, 100), &[1; 100], &p));
    give(&mut mover, &pdu(data_in(1, 150), &[1; 100], &p));
    assert!(matches!(drain(&mut mover)[..], [Notification::Malformed { .. }]));
    assert_eq!(mover.deallocate_task_resources(TASK).data_in_len, 100);
    give(&mut mover, &pdu(data_in(2, 200), &[1; 100], &p));
    assert!(matches!(drain(&mut mover)[..], [Notification::Malformed { error: MalformedPdu::UnknownTask, .. }]));
}

#[test]
fn a_read_digest_error_ends_the_connection() {
    let p = Parameters { data_digest: Digest::Crc32c, ..parameters() };
    let mut mover = initiator(&p);
    start(&mut mover, 0, 512);
    let mut bytes = pdu(data_in(0, 0), &[1; 512], &p);
    bytes[60] ^= 0x80;
    give(&mut mover, &bytes);
    assert!(matches!(drain(&mut mover)[..], [Notification::Terminated(MoverError::DataDigest)]));
    assert!(mover.deallocate_task_resources(TASK).data_in.is_some(), "the sink comes back after the end too");
}

#[test]
fn data_that_wait_to_be_sent_come_back_once_sent() {
    let p = Parameters {
        peer_max_recv_data_segment_length: 65536,
        first_burst_length: 65536,
        max_burst_length: 65536,
        ..parameters()
    };
    let mut mover = initiator(&p);
    start(&mut mover, 60_000, 0);
    assert!(mover.deallocate_task_resources(TASK).data_out.is_none());
    assert!(drain(&mut mover).is_empty());
    let sent = take_all(&mut mover);
    assert_eq!(sent[48..], pattern(1, 60_000));
    assert!(matches!(drain(&mut mover)[..], [Notification::Released(_)]));

    let region = Region::heap(60_000);
    mover.send_command(SendCommand {
        task: TASK,
        bhs: command(TASK.to_itt(), true, false, true, 60_000),
        ahs: &[],
        data_out: Some(Payload::Region(region.slice(0, 60_000))),
        data_in: None,
    });
    mover.deallocate_task_resources(TASK);
    assert_eq!(std::sync::Arc::strong_count(&region), 2, "kept alive until it is sent");
    take_all(&mut mover);
    assert_eq!(std::sync::Arc::strong_count(&region), 1);
}
