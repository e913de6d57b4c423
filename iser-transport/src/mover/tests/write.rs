use super::*;
use iscsi_memory::Region;
use iscsi_proto::datamover::{DataError, MalformedPdu};

fn write_command(rig: &mut Rig, header: ControlHeader, itt: u32, len: u32, data: &[u8], is_final: bool) {
    rig.command(header, Command { itt, write: true, len, data, is_final, ..COMMAND });
}

fn complete(rig: &mut Rig) -> (u16, Vec<u8>) {
    match rig.poll() {
        Some(Notification::GetDataComplete { task, sink }) => (task.slot, contents(&sink)),
        other => panic!("data are complete, not {other:?}"),
    }
}

fn contents(sink: &Payload) -> Vec<u8> {
    let mut bytes = vec![0; sink.len()];
    match sink {
        Payload::Buf(buf) => bytes.copy_from_slice(buf),
        Payload::Region(slice) => slice.read(0, &mut bytes),
    }
    bytes
}

fn failed(rig: &mut Rig) -> DataError {
    match rig.poll() {
        Some(Notification::GetDataFailed { error, .. }) => error,
        other => panic!("the data fail, not {other:?}"),
    }
}

#[test]
fn all_immediate_data_are_at_hand_until_they_are_asked_for() {
    let mut rig = Rig::new();
    let data = pattern(4096, 1);
    write_command(&mut rig, NONE, 1, 4096, &data, true);
    assert_eq!(rig.mover.immediate_data(), data);
    assert_eq!(rig.mover.control_data(), b"");
    rig.put(1, Source::None, Some(GOOD));
    assert_eq!(rig.sent()[0].3, None);
    assert_eq!(rig.mover.counters().copied, 4096);

    write_command(&mut rig, NONE, 2, 4096, &data, true);
    rig.get(0, 2, Payload::Buf(Buf::zeroed(4096)));
    assert_eq!(rig.mover.immediate_data(), b"");
    assert_eq!(complete(&mut rig), (0, data));
    assert_eq!((rig.mover.counters().copied, rig.mover.counters().immediate), (8192, 8192));
}

#[test]
fn data_that_get_data_would_refuse_are_not_at_hand() {
    let no_immediate = Parameters { immediate_data: false, ..parameters() };
    let short_burst = Parameters { first_burst_length: 512, ..parameters() };
    for (parameters, error) in
        [(no_immediate, DataError::UnexpectedUnsolicitedData), (short_burst, DataError::UnexpectedUnsolicitedData)]
    {
        let mut rig = Rig::with(&parameters, LIMITS, ESTABLISHED);
        write_command(&mut rig, NONE, 1, 1024, &[1; 1024], true);
        assert_eq!(rig.mover.immediate_data(), b"");
        rig.get(0, 1, Payload::Buf(Buf::zeroed(1024)));
        assert_eq!(failed(&mut rig), error);
    }
}

/// A command that counts immediate data which the message does not have, as libiscsi before 1.20 sends it.
#[test]
fn immediate_data_that_are_only_announced_are_fetched_with_the_others() {
    let announced = |len: u32, header| {
        let bhs = scsi_command(Command { itt: 1, write: true, len, ..COMMAND });
        let mut bytes = message(header, bhs, &[], &[]);
        bytes[HEADER_LEN + 5..HEADER_LEN + 8].copy_from_slice(&len.min(8192).to_be_bytes()[1..]);
        bytes
    };
    for len in [512, 65536] {
        let mut rig = Rig::new();
        rig.come(&announced(len, writes(WRITE)));
        assert!(matches!(rig.poll(), Some(Notification::Control(_))));
        assert_eq!(rig.mover.immediate_data(), b"");
        rig.get(3, 1, Payload::Buf(Buf::zeroed(len as usize)));
        assert!(rig.poll().is_none());
        let data = pattern(len as usize, 2);
        assert_eq!(rig.serve_read(&data), WRITE);
        assert_eq!(complete(&mut rig), (3, data));
    }
    // With some of them, or without an STag, it is no message at all.
    let mut cut = announced(512, writes(WRITE));
    cut.push(7);
    for bytes in [cut, announced(512, NONE)] {
        let mut rig = Rig::new();
        rig.come(&bytes);
        assert!(matches!(rig.terminated(), MoverError::Protocol(_)));
    }
}

// RFC 7145 7.3.6.
#[test]
fn data_are_fetched_into_their_final_place() {
    let mut rig = Rig::new();
    let data = pattern(65536, 2);
    let region = Region::heap(1 << 17);
    region.reserve_for_write(8192, 65536).unwrap();
    write_command(&mut rig, writes(WRITE), 1, 65536, &[], true);
    rig.get(3, 1, Payload::Region(region.slice(8192, 65536)));
    assert!(rig.poll().is_none());
    assert_eq!(rig.serve_read(&data), WRITE);
    assert_eq!(complete(&mut rig), (3, data));
    assert_eq!((rig.mover.counters().copied, rig.mover.counters().read), (0, 65536));
    rig.put(1, Source::None, Some(GOOD));
    assert_eq!(rig.sent()[0].3, Some(WRITE.stag));
}

// RFC 7145 6.9: with No declared the base offset is that of all the data; Linux declares nothing and has it behind the
// unsolicited data.
#[test]
fn the_base_offset_is_what_the_initiator_declared() {
    for (declared, behind) in [(None, 0), (Some(true), 0), (Some(false), 1000)] {
        let parameters = Parameters { tagged_buffer_for_solicited_data_only: declared, ..parameters() };
        let mut rig = Rig::with(&parameters, LIMITS, ESTABLISHED);
        let data = pattern(5000, 4);
        write_command(&mut rig, writes(WRITE), 1, 5000, &data[..1000], true);
        rig.get(0, 1, Payload::Buf(Buf::zeroed(5000)));
        assert!(rig.poll().is_none());
        let from = rig.serve_read(&data[1000..]);
        assert_eq!(from, RemoteBuffer { offset: WRITE.offset + behind, ..WRITE });
        assert_eq!(complete(&mut rig), (0, data));
    }
}

#[test]
fn unsolicited_data_come_first_and_the_rest_is_fetched() {
    for (declared, behind) in [(None, 0), (Some(false), 3000)] {
        let parameters =
            Parameters { first_burst_length: 3000, tagged_buffer_for_solicited_data_only: declared, ..parameters() };
        let mut rig = Rig::with(&parameters, LIMITS, ESTABLISHED);
        let data = pattern(5000, 4);
        write_command(&mut rig, writes(WRITE), 1, 5000, &data[..1000], false);
        assert_eq!(rig.mover.immediate_data(), b"");
        rig.get(0, 1, Payload::Buf(Buf::zeroed(5000)));
        rig.come(&message(NONE, data_out(1, 0, 1000, false), &[], &data[1000..2000]));
        assert!(rig.poll().is_none());
        assert!(rig.work().is_none());
        rig.come(&message(NONE, data_out(1, 1, 2000, true), &[], &data[2000..3000]));
        assert!(rig.poll().is_none());
        let from = rig.serve_read(&data[3000..]);
        assert_eq!(from, RemoteBuffer { offset: WRITE.offset + behind, ..WRITE });
        assert_eq!(complete(&mut rig), (0, data));
        assert_eq!((rig.mover.counters().copied, rig.mover.counters().immediate), (3000, 3000));
    }
}

#[test]
fn rules_of_unsolicited_data_hold_for_one_task() {
    let full = pattern(3000, 1);
    let first = |data_sn, offset, len: usize, is_final| {
        message(NONE, data_out(1, data_sn, offset, is_final), &[], &full[..len])
    };
    let cases = [
        (first(1, 1000, 500, false), DataError::OutOfSequence),
        (first(0, 1500, 500, false), DataError::OutOfSequence),
        (first(0, 1000, 500, true), DataError::IncorrectAmountOfData),
        (first(0, 1000, 2001, true), DataError::UnexpectedUnsolicitedData),
    ];
    for (pdu, error) in cases {
        let parameters = Parameters { first_burst_length: 3000, ..parameters() };
        let mut rig = Rig::with(&parameters, LIMITS, ESTABLISHED);
        write_command(&mut rig, writes(WRITE), 1, 5000, &full[..1000], false);
        rig.get(0, 1, Payload::Buf(Buf::zeroed(5000)));
        rig.come(&pdu);
        if pdu[HEADER_LEN + 1] & 0x80 == 0 {
            // RFC 7143 11.4.2: that is told behind the last of them.
            let before = rig.mover.fetched(task(0));
            rig.come(&message(NONE, data_out(1, 1, 2000, false), &[], &full[..100]));
            assert!(rig.poll().is_none());
            assert!(rig.mover.fetched(task(0)) > before, "they are on their way");
            rig.come(&message(NONE, data_out(1, 2, 2100, true), &[], &full[..100]));
        }
        assert_eq!(failed(&mut rig), error);
        // The connection goes on.
        rig.put(1, Source::None, Some(GOOD));
        assert_eq!(rig.sent().len(), 1);
    }
}

#[test]
fn initial_r2t_forbids_unsolicited_data_outs() {
    let mut rig = Rig::with(&Parameters { initial_r2t: true, ..parameters() }, LIMITS, ESTABLISHED);
    write_command(&mut rig, writes(WRITE), 1, 5000, &[], false);
    rig.get(0, 1, Payload::Buf(Buf::zeroed(5000)));
    assert!(rig.poll().is_none());
    rig.come(&message(NONE, data_out(1, 0, 0, true), &[], &[1; 5000]));
    assert_eq!(failed(&mut rig), DataError::UnexpectedUnsolicitedData);
}

#[test]
fn data_that_nobody_asked_for_are_dropped() {
    let mut rig = Rig::new();
    write_command(&mut rig, writes(WRITE), 1, 5000, &[1; 100], false);
    rig.put(1, Source::None, Some(TaskStatus { status: 2, ..GOOD }));
    assert_eq!(rig.sent()[0].3, Some(WRITE.stag));
    for (sn, is_final) in [(0, false), (1, true)] {
        rig.come(&message(NONE, data_out(1, sn, 100 + sn * 100, is_final), &[], &[1; 100]));
        assert!(rig.poll().is_none());
    }
    rig.come(&message(NONE, data_out(1, 2, 300, true), &[], &[1; 100]));
    let Some(Notification::Malformed { error, .. }) = rig.poll() else { panic!() };
    assert_eq!(error, MalformedPdu::UnknownTask);
}

#[test]
fn a_command_that_waited_is_fetched_if_all_of_it_can_be() {
    for (declared, immediate, reachable) in [(None, 0, true), (None, 100, false), (Some(false), 100, true)] {
        let parameters = Parameters { tagged_buffer_for_solicited_data_only: declared, ..parameters() };
        let mut rig = Rig::with(&parameters, LIMITS, ESTABLISHED);
        let data = pattern(5000, 4);
        write_command(&mut rig, writes(WRITE), 1, 5000, &data[..immediate], true);
        assert!(rig.poll().is_none());
        rig.get(0, 1, Payload::Buf(Buf::zeroed(5000)));
        if reachable {
            assert_eq!(rig.serve_read(&data), WRITE);
            assert_eq!(complete(&mut rig).1, data);
        } else {
            assert_eq!(failed(&mut rig), DataError::IncorrectAmountOfData);
        }
    }
}

// RFC 7145 7.3.6: never more RDMA Reads than the peer serves.
#[test]
fn reads_wait_for_the_read_depth() {
    let mut rig = Rig::with(&parameters(), LIMITS, Established { read_depth: 2, ..ESTABLISHED });
    for slot in 0..5 {
        write_command(&mut rig, writes(WRITE), slot.into(), 512, &[], true);
        rig.get(slot, slot.into(), Payload::Buf(Buf::zeroed(512)));
    }
    assert_eq!(rig.mover.queue.work.len(), 2);
    // A message does not wait for them.
    rig.mover.send_control(Bhs::new(Opcode::NopIn), &[]);
    assert_eq!(rig.mover.queue.work.len(), 3);
    let (first, second) = (rig.read(), rig.read());
    rig.sent();
    // What lies idle is given back; they are not.
    rig.mover.trim();
    for (done, (id, into, _)) in [first, second].into_iter().enumerate() {
        rig.done(id, into.memory);
        assert_eq!(rig.mover.queue.work.len(), done + 1);
    }
    for left in [2, 1, 0] {
        rig.serve_read(&[3; 512]);
        assert_eq!(rig.mover.queue.work.len(), left);
    }
    for slot in 0..5 {
        assert_eq!(complete(&mut rig).0, slot);
    }
}

#[test]
fn long_reads_are_split_at_the_limit() {
    let limits = QueueLimits { transfer: 1000, ..LIMITS };
    let mut rig = Rig::with(&parameters(), limits, ESTABLISHED);
    let data = pattern(2500, 9);
    write_command(&mut rig, writes(WRITE), 1, 2500, &[], true);
    rig.get(0, 1, Payload::Buf(Buf::zeroed(2500)));
    for (start, end) in [(0, 1000), (1000, 2000), (2000, 2500)] {
        assert_eq!(rig.serve_read(&data[start..end]).offset, WRITE.offset + start as u64);
    }
    assert_eq!(complete(&mut rig).1, data);
}

#[test]
fn a_peer_that_serves_no_reads_cannot_be_written_from() {
    let mut rig = Rig::with(&parameters(), LIMITS, Established { read_depth: 0, ..ESTABLISHED });
    write_command(&mut rig, writes(WRITE), 1, 512, &[], true);
    rig.get(0, 1, Payload::Buf(Buf::zeroed(512)));
    assert!(matches!(rig.terminated(), MoverError::Rdma(_)));
    assert!(rig.mover.deallocate_task_resources(task(0)).data_in.is_some());
}

fn function_response() -> Bhs {
    Bhs::new(Opcode::TaskManagementResponse)
}

// The initiator takes its STags back once it is told that the task is over: RDMA Reads of it are done by then.
#[test]
fn messages_wait_for_the_reads_of_a_task_that_is_gone() {
    let mut rig = Rig::new();
    write_command(&mut rig, writes(WRITE), 1, 512, &[], true);
    rig.get(0, 1, Payload::Buf(Buf::zeroed(512)));
    let (id, into, _) = rig.read();
    assert!(rig.mover.is_drained());
    assert!(rig.mover.deallocate_task_resources(task(0)).data_in.is_none());
    assert!(rig.mover.deallocate_task_resources(task(0)).data_in.is_none());
    assert!(!rig.mover.is_drained(), "the Read may still bring data");
    rig.mover.send_control(function_response(), &[]);
    rig.mover.send_control(Bhs::new(Opcode::NopIn), &[]);
    assert!(rig.work().is_none());
    // Its slot may be used anew meanwhile.
    write_command(&mut rig, writes(WRITE), 2, 512, &[], true);
    rig.get(0, 2, Payload::Buf(Buf::zeroed(512)));
    let (second, second_into, _) = rig.read();
    rig.done(id, into.memory);
    let opcodes: Vec<_> = rig.sent().iter().map(|sent| sent.1.opcode().unwrap()).collect();
    assert_eq!(opcodes, [Opcode::TaskManagementResponse, Opcode::NopIn]);
    assert!(matches!(rig.poll(), Some(Notification::Released(buf)) if buf.len() == 512));
    rig.done(second, second_into.memory);
    assert_eq!(complete(&mut rig).0, 0);
}

#[test]
fn a_read_that_was_not_posted_is_forgotten_with_its_task() {
    let mut rig = Rig::with(&parameters(), LIMITS, Established { read_depth: 1, ..ESTABLISHED });
    for slot in 0..2 {
        write_command(&mut rig, writes(WRITE), slot.into(), 512, &[], true);
        rig.get(slot, slot.into(), Payload::Buf(Buf::zeroed(512)));
    }
    assert!(rig.mover.deallocate_task_resources(task(1)).data_in.is_some());
    rig.mover.send_control(function_response(), &[]);
    rig.serve_read(&[1; 512]);
    assert_eq!(rig.sent().len(), 1);
    assert_eq!(complete(&mut rig).0, 0);
    assert!(rig.poll().is_none());
}
