use super::*;
use iscsi_memory::Region;
use iscsi_proto::pdu::{Reject, RejectReason, ScsiResponse, emit_bidirectional_read_length};

fn region(len: usize) -> (std::sync::Arc<Region>, Vec<u8>) {
    let region = Region::heap(len);
    let data = pattern(len, 3);
    region.reserve_for_write(0, len as u64).unwrap();
    region.write(0, &data);
    (region, data)
}

fn read_command(rig: &mut Rig, itt: u32, len: u32) {
    rig.command(reads(READ), Command { itt, read: true, len, ..COMMAND });
}

// RFC 7145 7.3.5: RDMA Write at the base offset; 7.3.2: then a SCSI Response of its own.
#[test]
fn data_leave_the_region_by_rdma_write_with_the_response_behind() {
    let mut rig = Rig::new();
    let (region, data) = region(16384);
    read_command(&mut rig, 7, 8192);
    rig.put(7, Source::Region { region: &region, offset: 4096, len: 8192 }, Some(GOOD));
    assert_eq!(rig.mover.queue.work.len(), 2, "both are posted at once");
    assert_eq!(rig.write(), (data[4096..12288].to_vec(), READ));
    let sent = rig.sent();
    let response = ScsiResponse::parse(&sent[0].1).unwrap();
    assert_eq!((response.itt, response.status, sent[0].3), (7, 0, Some(READ.stag)));
    let counters = rig.mover.counters();
    assert_eq!((counters.copied, counters.written, counters.invalidates), (0, 8192, 1));
    assert_eq!(rig.mover.backlog(), 0);
    assert!(rig.poll().is_none());
}

#[test]
fn an_stag_is_invalidated_only_where_the_peer_takes_it() {
    for (private, invalidate) in [(Some(0x80), true), (Some(0x00), true), (Some(0xc0), false), (None, false)] {
        let mut rig = Rig::with(&parameters(), LIMITS, Established { peer_private: private, ..ESTABLISHED });
        read_command(&mut rig, 1, 512);
        rig.put(1, Source::Copy(&[1; 512]), Some(GOOD));
        rig.write();
        assert_eq!(rig.sent()[0].3.is_some(), invalidate);
    }
}

// RFC 7145 7.3.2: the Read STag if there is one, else the Write STag, else none.
#[test]
fn the_stag_that_is_invalidated_was_in_the_command() {
    let both = ControlHeader { read: Some(READ), write: Some(WRITE) };
    let mut bidirectional = Vec::new();
    emit_bidirectional_read_length(&mut bidirectional, 512);
    let cases = [
        (NONE, COMMAND, None),
        (reads(READ), Command { read: true, len: 512, ..COMMAND }, Some(READ.stag)),
        (writes(WRITE), Command { write: true, len: 512, ..COMMAND }, Some(WRITE.stag)),
        (both, Command { read: true, write: true, len: 512, ahs: &bidirectional, ..COMMAND }, Some(READ.stag)),
    ];
    for (header, command, stag) in cases {
        let mut rig = Rig::new();
        rig.command(header, command);
        rig.put(1, Source::None, Some(GOOD));
        // Answered at once, or later: the second time nothing is known of the tag any more.
        rig.put(1, Source::None, Some(GOOD));
        rig.command(header, command);
        rig.poll();
        rig.mover.send_control(scsi_response(1), &[]);
        let stags: Vec<_> = rig.sent().into_iter().map(|(.., stag)| stag).collect();
        assert_eq!(stags, [stag, None, stag]);
    }
}

fn scsi_response(itt: u32) -> Bhs {
    let mut bhs = Bhs::new(Opcode::ScsiResponse);
    bhs.0[1] = 0x80;
    bhs.0[16..20].copy_from_slice(&itt.to_be_bytes());
    bhs
}

#[test]
fn a_buffer_comes_back_when_it_is_sent() {
    let mut rig = Rig::new();
    read_command(&mut rig, 1, 4096);
    rig.poll();
    let mut buf = Buf::zeroed(4096);
    buf.fill(9);
    rig.put(1, Source::Buf(buf), Some(GOOD));
    assert!(rig.poll().is_none());
    assert_eq!(rig.mover.backlog(), 4096 + HEADERS_LEN);
    assert_eq!(rig.write().0, [9; 4096]);
    assert!(matches!(rig.poll(), Some(Notification::Released(buf)) if buf.len() == 4096));
    rig.sent();
    assert_eq!(rig.mover.backlog(), 0);
}

#[test]
fn data_in_several_calls_have_their_offsets() {
    let mut rig = Rig::new();
    let (region, data) = region(8192);
    read_command(&mut rig, 1, 8192);
    for (offset, status) in [(0, None), (4096, Some(GOOD))] {
        let source = Source::Region { region: &region, offset: offset.into(), len: 4096 };
        rig.mover.put_data(PutData { lun: 0, itt: 1, buffer_offset: offset, data: source, status });
        rig.poll();
    }
    assert_eq!(rig.write(), (data[..4096].to_vec(), READ));
    assert_eq!(rig.write(), (data[4096..].to_vec(), RemoteBuffer { offset: READ.offset + 4096, ..READ }));
    assert_eq!(rig.sent().len(), 1);
}

#[test]
fn nothing_is_written_beyond_the_expected_length() {
    let mut rig = Rig::new();
    let (region, data) = region(8192);
    read_command(&mut rig, 1, 1000);
    rig.put(1, Source::Region { region: &region, offset: 0, len: 4096 }, None);
    rig.mover.put_data(PutData {
        lun: 0,
        itt: 1,
        buffer_offset: 1000,
        data: Source::Buf(Buf::zeroed(8)),
        status: Some(GOOD),
    });
    assert_eq!(rig.write().0, data[..1000]);
    assert_eq!(rig.sent().len(), 1);
    assert!(matches!(rig.poll(), Some(Notification::Released(_))));
}

#[test]
fn a_bidirectional_command_reads_as_much_as_its_ahs_says() {
    let mut rig = Rig::new();
    let mut ahs = Vec::new();
    emit_bidirectional_read_length(&mut ahs, 600);
    let header = ControlHeader { read: Some(READ), write: Some(WRITE) };
    rig.command(header, Command { read: true, write: true, len: 512, ahs: &ahs, ..COMMAND });
    assert_eq!(rig.mover.control_ahs(), ahs);
    rig.get(0, 1, Payload::Buf(Buf::zeroed(512)));
    assert!(rig.poll().is_none());
    assert_eq!(rig.serve_read(&[5; 512]), WRITE);
    assert!(matches!(rig.poll(), Some(Notification::GetDataComplete { .. })));
    rig.put(1, Source::Copy(&[6; 700]), Some(GOOD));
    assert_eq!(rig.write(), (vec![6; 600], READ));
    assert_eq!(rig.sent()[0].3, Some(READ.stag));
}

#[test]
fn long_data_are_split_at_the_limit_and_the_response_stays_behind() {
    let limits = QueueLimits { transfer: 1000, ..LIMITS };
    let (region, data) = region(4096);
    for by_region in [true, false] {
        let mut rig = Rig::with(&parameters(), limits, ESTABLISHED);
        read_command(&mut rig, 1, 4096);
        if by_region {
            rig.put(1, Source::Region { region: &region, offset: 0, len: 2500 }, Some(GOOD));
        } else {
            let mut buf = Buf::zeroed(2500);
            buf.copy_from_slice(&data[..2500]);
            rig.put(1, Source::Buf(buf), Some(GOOD));
        }
        for (start, end) in [(0, 1000), (1000, 2000), (2000, 2500)] {
            let to = RemoteBuffer { offset: READ.offset + start as u64, ..READ };
            assert_eq!(rig.write(), (data[start..end].to_vec(), to));
        }
        assert_eq!(rig.sent().len(), 1);
        assert_eq!(rig.mover.backlog(), 0);
        assert_eq!(matches!(rig.poll(), Some(Notification::Released(_))), !by_region);
    }
}

#[test]
fn what_the_queue_pair_has_no_place_for_waits_in_order() {
    let limits = QueueLimits { work: 3, ..LIMITS };
    let mut rig = Rig::with(&parameters(), limits, ESTABLISHED);
    for itt in 0..6 {
        read_command(&mut rig, itt, 512);
        rig.put(itt, Source::Copy(&[itt as u8; 512]), Some(GOOD));
    }
    for itt in 0..6u32 {
        assert_eq!(rig.write().0[0], itt as u8);
        let Some(Work::Send { id, message, .. }) = rig.work() else { panic!() };
        assert_eq!(bytes_of(&message)[HEADER_LEN + 16..][..4], itt.to_be_bytes());
        rig.done(id, message.memory);
    }
    assert_eq!(rig.mover.backlog(), 0);
}

#[test]
fn sense_data_fit_small_receives() {
    let mut rig = Rig::new();
    rig.command(NONE, COMMAND);
    let sense = pattern(252, 1);
    rig.put(1, Source::None, Some(TaskStatus { status: 2, sense: &sense, ..GOOD }));
    let data = &rig.sent()[0].2;
    assert_eq!(data.len(), 128);
    assert_eq!(data[..2], [0, 126]);
    assert_eq!(data[2..], sense[..126]);
    rig.command(NONE, COMMAND);
    rig.put(1, Source::None, Some(TaskStatus { status: 2, sense: &sense[..18], ..GOOD }));
    assert_eq!(rig.sent()[0].2, [&[0, 18], &sense[..18]].concat());
}

fn reject() -> Bhs {
    Reject {
        reason: RejectReason::TaskInProgress,
        stat_sn: Serial(1),
        exp_cmd_sn: Serial(1),
        max_cmd_sn: Serial(8),
        data_sn: 0,
    }
    .emit()
}

#[test]
fn a_rejected_duplicate_leaves_the_command_under_way_alone() {
    let mut rig = Rig::new();
    read_command(&mut rig, 1, 512);
    let other = RemoteBuffer { stag: Stag(0xbad), offset: 1 };
    let duplicate = rig.command(reads(other), Command { read: true, len: 512, ..COMMAND });
    rig.mover.send_control(reject(), &duplicate.0);
    rig.put(1, Source::Copy(&[1; 512]), Some(GOOD));
    let Some(Work::Send { id, message, invalidate: None }) = rig.work() else { panic!() };
    rig.done(id, message.memory);
    assert_eq!(rig.write().1, READ);
    assert_eq!(rig.sent()[0].3, Some(READ.stag));
}

#[test]
fn a_tag_that_is_used_anew_has_its_new_stag() {
    let mut rig = Rig::new();
    read_command(&mut rig, 1, 512);
    let other = RemoteBuffer { stag: Stag(0x600d), offset: 1 };
    rig.command(reads(other), Command { read: true, len: 512, ..COMMAND });
    assert!(rig.poll().is_none());
    rig.put(1, Source::Copy(&[1; 512]), Some(GOOD));
    assert_eq!(rig.write().1, other);
}

#[test]
fn data_without_a_known_stag_are_never_passed_over() {
    let mut rig = Rig::new();
    rig.put(77, Source::Buf(Buf::zeroed(512)), Some(GOOD));
    assert!(matches!(rig.poll(), Some(Notification::Released(_))));
    assert!(matches!(rig.terminated(), MoverError::Protocol(_)));
    assert_eq!(rig.sent().len(), 0);
}

#[test]
fn commands_that_end_without_an_answer_leave_nothing_behind() {
    let mut rig = Rig::new();
    read_command(&mut rig, 0, 512);
    for itt in 1..500 {
        read_command(&mut rig, itt, 512);
        if itt % 2 == 0 {
            rig.poll();
        }
        rig.mover.forget_command(itt);
    }
    rig.put(0, Source::Copy(&[1; 512]), Some(GOOD));
    assert_eq!(rig.write().1, READ);
    assert_eq!(rig.sent()[0].3, Some(READ.stag));
    // Nobody has anything to put for one that was forgotten.
    rig.put(499, Source::Copy(&[1; 512]), Some(GOOD));
    assert!(matches!(rig.terminated(), MoverError::Protocol(_)));
}
