//! SCSI Command and SCSI Response (RFC 7145 7.3.1, 7.3.2).

use super::*;

// RFC 7145 7.3.1: an STag is for solicited data, and there are none.
#[test]
fn a_small_write_travels_whole_in_its_command() {
    let mut rig = Rig::new();
    rig.write(0, 8192);
    let sent = rig.one();
    assert_eq!(sent.header, ControlHeader::default());
    assert!(sent.data == pattern(8192)[..]);
    // F: no Data-Out follow (RFC 7143 11.3.1).
    assert!(ScsiCommand::parse(&sent.bhs).unwrap().is_final);
    assert!(rig.mover.queue.advertised.is_empty());
    assert_eq!((rig.mover.counters().immediate, rig.mover.counters().copied), (8192, 8192));
    rig.answer(&response(0), &[], None);
    let buffers = rig.over(0);
    assert!(buf_of_data(buffers.data_out)[..] == pattern(8192)[..]);
    assert_eq!(buffers.data_in_len, 0);
}

#[test]
fn a_larger_write_sends_nothing_and_advertises_all() {
    let mut rig = Rig::new();
    rig.write(0, 8193);
    let sent = rig.one();
    assert!(sent.data.is_empty() && sent.header.read.is_none());
    assert!(ScsiCommand::parse(&sent.bhs).unwrap().is_final);
    let at = sent.header.write.unwrap();
    assert_eq!(at.offset, u64::from(at.stag.0) << 32, "the Base Offset is the memory's");
    let (memory, access) = &rig.mover.queue.advertised[&at.stag.0];
    assert_eq!((memory.len(), *access), (8193, RemoteAccess::Read));
    rig.answer(&response(0), &[], None);
    // RFC 7145 7.3.2: dead before the session hears of the response.
    assert!(matches!(rig.poll(), Some(Notification::Control(_))));
    assert!(rig.mover.queue.advertised.is_empty());
    assert!(buf_of_data(rig.mover.deallocate_task_resources(task(0)).data_out)[..] == pattern(8193)[..]);
    assert_eq!(rig.mover.counters().copied, 0);
}

#[test]
fn the_immediate_limit_is_the_least_of_what_is_agreed() {
    let whole = |parameters: &Parameters, len: usize, ahs: &[u8]| {
        let mut rig = Rig::with(parameters, 64);
        let data = Some(Payload::Region(lent(len)));
        let bhs = header(0, false, true, len);
        rig.mover.send_command(SendCommand { task: task(0), bhs, ahs, data_out: data, data_in: None });
        let sent = rig.one();
        assert_eq!(sent.ahs, ahs);
        assert_eq!(sent.header.write.is_none(), sent.data.len() == len);
        sent.header.write.is_none()
    };
    let all = parameters();
    assert!(whole(&all, 8192, &[]) && !whole(&all, 8193, &[]));
    let short_burst = Parameters { first_burst_length: 512, ..parameters() };
    assert!(whole(&short_burst, 512, &[]) && !whole(&short_burst, 513, &[]));
    let small_segment = Parameters { peer_max_recv_data_segment_length: 1024, ..parameters() };
    assert!(whole(&small_segment, 1024, &[]) && !whole(&small_segment, 1025, &[]));
    let none = Parameters { immediate_data: false, ..parameters() };
    assert!(!whole(&none, 1, &[]));
    // The receives of some targets have no room for an AHS beside a whole data segment.
    assert!(whole(&all, 8192 - 20, &[0; 20]) && !whole(&all, 8192 - 19, &[0; 20]));
}

// RFC 7145 6.8.
#[test]
fn an_ahs_above_what_the_target_takes_is_not_sent() {
    let mut rig = Rig::with(&Parameters { peer_max_ahs_length: 16, ..parameters() }, 64);
    let bhs = header(0, false, false, 0);
    rig.mover.send_command(SendCommand { task: task(0), bhs, ahs: &[0; 20], data_out: None, data_in: None });
    assert!(rig.mover.queue.work.is_empty());
    assert!(matches!(rig.terminated(), MoverError::Rdma(_)));
}

#[test]
fn what_is_written_is_what_the_command_announces() {
    let mut rig = Rig::new();
    rig.write_of(0, Payload::Buf(pattern(4096)), 1000);
    assert!(rig.one().data == pattern(1000)[..]);
    rig.write_of(1, Payload::Buf(pattern(4096)), 0);
    let sent = rig.one();
    assert!(sent.data.is_empty() && sent.header.write.is_none());
    assert_eq!(buf_of_data(rig.mover.deallocate_task_resources(task(1)).data_out).len(), 4096);
}

#[test]
fn a_read_advertises_its_sink() {
    let mut rig = Rig::new();
    rig.read(0, 4096);
    let sent = rig.one();
    assert!(sent.header.write.is_none() && sent.data.is_empty());
    let at = sent.header.read.unwrap();
    let (memory, access) = rig.mover.queue.advertised.get_mut(&at.stag.0).unwrap();
    assert_eq!((memory.len(), *access), (4096, RemoteAccess::Write));
    memory.write(100, b"from the target");
    rig.answer(&response(0), &[], None);
    let buffers = rig.over(0);
    assert_eq!(&buf_of_sink(buffers.data_in)[100..115], b"from the target");
    assert_eq!(buffers.data_in_len, 4096);
    assert_eq!(rig.mover.counters().copied, 0);
}

#[test]
fn lent_memory_is_advertised_as_it_is() {
    let mut rig = Rig::new();
    let (sink, source) = (lent(16_384), lent(16_384));
    rig.read_into(0, Payload::Region(sink.clone()), 16_384);
    rig.write_of(1, Payload::Region(source), 16_384);
    let sent = rig.sent();
    let stag = sent[0].header.read.unwrap().stag;
    rig.mover.queue.advertised.get_mut(&stag.0).unwrap().0.write(0, b"news");
    let mut bytes = [0; 4];
    sink.read(0, &mut bytes);
    assert_eq!(&bytes, b"news");
    assert!(matches!(rig.mover.queue.advertised[&sent[1].header.write.unwrap().stag.0].0, Payload::Region(_)));
    for slot in 0..2 {
        rig.answer(&response(slot), &[], None);
        rig.over(slot);
    }
}

fn bidirectional(rig: &mut Rig, out: usize, room: usize) -> Sent {
    let mut ahs = Vec::new();
    iscsi_proto::pdu::emit_bidirectional_read_length(&mut ahs, room as u32);
    let command = SendCommand {
        task: task(0),
        bhs: header(0, true, true, out),
        ahs: &ahs,
        data_out: Some(Payload::Buf(pattern(out))),
        data_in: Some(Payload::Buf(Buf::zeroed(room))),
    };
    rig.mover.send_command(command);
    rig.one()
}

// RFC 7145 9.5.3.
#[test]
fn a_bidirectional_command_has_two_stags() {
    let mut rig = Rig::new();
    let sent = bidirectional(&mut rig, 20_000, 512);
    let (write, read) = (sent.header.write.unwrap().stag, sent.header.read.unwrap().stag);
    assert_eq!(rig.mover.queue.advertised[&write.0].1, RemoteAccess::Read);
    assert_eq!(rig.mover.queue.advertised[&read.0].1, RemoteAccess::Write);
    // RFC 7145 7.3.2: the message kills one at most; the other is ours to kill.
    let short = ScsiResponse { bidirectional_read_residual: Residual::Underflow(12), ..response(0) };
    rig.answer(&short, &[], Some(read));
    let buffers = rig.over(0);
    assert!(rig.mover.queue.advertised.is_empty());
    assert_eq!((buf_of_data(buffers.data_out).len(), buf_of_sink(buffers.data_in).len()), (20_000, 512));
    assert_eq!(buffers.data_in_len, 500);

    let sent = bidirectional(&mut rig, 100, 512);
    assert!(sent.header.write.is_none() && sent.header.read.is_some());
    assert_eq!(sent.data.len(), 100);
}

#[test]
fn an_stag_that_the_target_invalidates_is_the_tasks_own() {
    // RFC 7145 7.3.2, 1.5.1.
    for read in [true, false] {
        let mut rig = Rig::new();
        if read {
            rig.read(0, 9000);
        } else {
            rig.write(0, 9000);
        }
        let header = rig.one().header;
        let stag = header.read.or(header.write).unwrap().stag;
        rig.answer(&response(0), &[], Some(stag));
        let buffers = rig.over(0);
        assert!(buffers.data_in.is_some() == read && buffers.data_out.is_some() != read);
    }
    let other_task = |invalidate: fn(Stag, Stag) -> Stag| {
        let mut rig = Rig::new();
        rig.read(0, 512);
        rig.read(1, 512);
        let sent = rig.sent();
        let stag = |at: usize| sent[at].header.read.unwrap().stag;
        rig.answer(&response(0), &[], Some(invalidate(stag(0), stag(1))));
        assert!(matches!(rig.terminated(), MoverError::Protocol(Misbehavior::ForeignStagInvalidated(_))));
        for slot in 0..2 {
            assert!(rig.mover.deallocate_task_resources(task(slot)).data_in.is_some());
        }
    };
    other_task(|_, other| other);
    other_task(|_, _| Stag(0xdead));
    // Only a SCSI Response invalidates any.
    let mut rig = Rig::new();
    rig.read(0, 512);
    let stag = rig.one().header.read.unwrap().stag;
    let mut nop = Bhs::new(Opcode::NopIn);
    nop.0[16..20].copy_from_slice(&task(0).to_itt().to_be_bytes());
    rig.come(&message(nop, &[]), Some(stag));
    assert!(matches!(rig.terminated(), MoverError::Protocol(_)));
}

#[test]
fn the_response_says_how_much_has_come() {
    // RFC 7143 11.4.5, and 11.4.7 for sense data: MEDIUM ERROR and RECOVERED ERROR in descriptor format.
    let medium: &[u8] = &[0, 8, 0x72, 0x03, 0x11, 0, 0, 0, 0, 0];
    let recovered: &[u8] = &[0, 8, 0x72, 0x01, 0x17, 0, 0, 0, 0, 0];
    let good = response(0);
    let check = ScsiResponse { status: 2, ..good };
    for (answer, sense, came) in [
        (good, &[][..], 4096),
        (ScsiResponse { residual: Residual::Underflow(96), ..good }, &[], 4000),
        (ScsiResponse { residual: Residual::Underflow(4096), ..good }, &[], 0),
        // More than there was to be: nothing is there to be vouched for.
        (ScsiResponse { residual: Residual::Underflow(9999), ..good }, &[], 0),
        (ScsiResponse { residual: Residual::Overflow(512), ..good }, &[], 4096),
        (ScsiResponse { response: ResponseCode::TargetFailure, ..good }, &[], 0),
        (check, medium, 0),
        (ScsiResponse { residual: Residual::Underflow(1096), ..check }, medium, 3000),
        (check, recovered, 4096),
        (ScsiResponse { status: 8, ..good }, &[], 0),
    ] {
        let mut rig = Rig::new();
        rig.read(0, 4096);
        rig.sent();
        rig.answer(&answer, sense, None);
        assert!(matches!(rig.poll(), Some(Notification::Control(_))));
        assert_eq!(rig.mover.control_data(), sense);
        assert_eq!(rig.mover.deallocate_task_resources(task(0)).data_in_len, came, "{answer:?}");
    }
}

#[test]
fn an_aborted_task_gives_its_buffers_back_at_once() {
    // RFC 7145 8.3.2: no response came, and the STags die with the task.
    let mut rig = Rig::new();
    rig.read(0, 4096);
    rig.write(1, 100_000);
    rig.write(2, 512);
    // Their messages are still in the queue pair.
    assert_eq!(rig.mover.queue.work.len(), 3);
    assert_eq!(rig.mover.deallocate_task_resources(task(0)).data_in_len, 0);
    assert_eq!(buf_of_data(rig.mover.deallocate_task_resources(task(1)).data_out).len(), 100_000);
    assert_eq!(buf_of_data(rig.mover.deallocate_task_resources(task(2)).data_out).len(), 512);
    assert!(rig.mover.queue.advertised.is_empty());
    assert_eq!(rig.sent().len(), 3);
    assert!(rig.poll().is_none(), "messages go back to the pool");
    // A late answer has a StatSN, and nothing else.
    rig.answer(&response(1), &[], None);
    assert!(rig.over(1).data_out.is_none());
    // The slot's next use is another task.
    let next = TaskHandle { slot: 1, generation: 4 };
    let data_in = Some(Payload::Buf(Buf::zeroed(512)));
    let bhs = header(1, true, false, 512);
    rig.mover.send_command(SendCommand { task: next, bhs, ahs: &[], data_out: None, data_in });
    rig.answer(&response(1), &[], None);
    assert!(rig.over(1).data_in.is_none());
    assert_eq!(rig.mover.queue.advertised.len(), 1);
    assert!(rig.mover.deallocate_task_resources(next).data_in.is_some());
}

#[test]
fn a_second_response_changes_nothing() {
    let mut rig = Rig::new();
    rig.read(0, 512);
    rig.sent();
    rig.answer(&response(0), &[], None);
    rig.answer(&ScsiResponse { residual: Residual::Underflow(500), ..response(0) }, &[], None);
    assert!(matches!(rig.poll(), Some(Notification::Control(_))));
    assert_eq!(rig.over(0).data_in_len, 512);
}
