//! Buffers that cannot be advertised, for now or at all.

use super::*;

fn refuses_lent_memory(memory: &Payload) -> Option<RegisterReason> {
    matches!(memory, Payload::Region(_)).then_some(RegisterReason::Budget(1 << 20))
}

#[test]
fn what_cannot_be_registered_goes_through_a_buffer_of_the_pool() {
    let mut rig = Rig::new();
    rig.mover.queue.refuses = refuses_lent_memory;
    let sink = lent(9000);
    rig.read_into(0, Payload::Region(sink.clone()), 9000);
    rig.write_of(1, Payload::Region(lent(9000)), 9000);
    let sent = rig.sent();
    let written = sent[1].header.write.unwrap().stag;
    let mut bytes = vec![0; 9000];
    rig.mover.queue.advertised[&written.0].0.read(0, &mut bytes);
    assert!(bytes == pattern(9000)[..]);
    let read = sent[0].header.read.unwrap().stag;
    rig.mover.queue.advertised.get_mut(&read.0).unwrap().0.write(0, &[9; 9000]);

    rig.answer(&ScsiResponse { residual: Residual::Underflow(1000), ..response(0) }, &[], Some(read));
    let buffers = rig.over(0);
    assert!(matches!(buffers.data_in, Some(Payload::Region(_))));
    assert_eq!(buffers.data_in_len, 8000);
    let mut bytes = vec![0; 9000];
    sink.read(0, &mut bytes);
    assert!(bytes[..8000] == [9; 8000]);
    // What has not come is not made up of an earlier user's data.
    assert!(bytes[8000..] == pattern(9000)[8000..]);
    rig.answer(&response(1), &[], None);
    assert!(matches!(rig.over(1).data_out, Some(Payload::Region(_))));
    assert_eq!(rig.mover.counters().copied, 9000 + 8000);
}

#[test]
fn an_aborted_read_leaves_its_sink_alone() {
    let mut rig = Rig::new();
    rig.mover.queue.refuses = refuses_lent_memory;
    let sink = lent(9000);
    rig.read_into(0, Payload::Region(sink.clone()), 9000);
    let stag = rig.one().header.read.unwrap().stag;
    rig.mover.queue.advertised.get_mut(&stag.0).unwrap().0.write(0, &[9; 9000]);
    assert!(rig.mover.deallocate_task_resources(task(0)).data_in.is_some());
    let mut bytes = vec![0; 9000];
    sink.read(0, &mut bytes);
    assert!(bytes == pattern(9000)[..]);
}

// Verbs: the device does not end the registration, and the memory is lost on purpose.
#[test]
fn a_sink_that_the_queue_pair_keeps_is_gone_and_nothing_has_come_into_it() {
    let mut rig = Rig::new();
    rig.read(0, 4096);
    let stag = rig.one().header.read.unwrap().stag;
    rig.mover.queue.advertised.remove(&stag.0);
    rig.answer(&response(0), &[], None);
    let buffers = rig.over(0);
    assert_eq!((buffers.data_in.is_none(), buffers.data_in_len), (true, 0));
}

#[test]
fn commands_wait_in_order_for_an_stag() {
    // RFC 7143 4.2.2.1: a connection sends its commands in the order of their CmdSN.
    let mut rig = Rig::new();
    rig.mover.queue.room = 2;
    rig.read(0, 512);
    rig.read(1, 512);
    rig.read(2, 512);
    rig.write(3, 512);
    rig.mover.send_control(Bhs::new(Opcode::NopOut), &[]);
    rig.read(4, 512);
    assert_eq!(rig.sent().len(), 2);
    assert_eq!(rig.mover.backlog(), 4 * HEADERS_LEN + 512, "back-pressure counts what waits");
    rig.answer(&response(1), &[], None);
    let over = rig.over(1);
    assert_eq!(over.data_in_len, 512);
    let sent = rig.sent();
    let opcodes: Vec<_> = sent.iter().map(|sent| sent.bhs.opcode().unwrap()).collect();
    assert_eq!(opcodes, [Opcode::ScsiCommand, Opcode::ScsiCommand, Opcode::NopOut]);
    assert!(sent[0].header.read.is_some());
    assert_eq!(sent[1].data.len(), 512);
    rig.answer(&response(0), &[], None);
    assert!(rig.over(0).data_in.is_some());
    assert!(rig.one().header.read.is_some());
    assert_eq!(rig.mover.backlog(), 0);
}

#[test]
fn a_command_that_was_never_sent_leaves_no_gap() {
    let mut rig = Rig::new();
    rig.mover.queue.room = 1;
    rig.read(0, 512);
    rig.write(1, 9000);
    rig.write(2, 100);
    assert_eq!(rig.sent().len(), 1);
    assert_eq!(buf_of_data(rig.mover.deallocate_task_resources(task(1)).data_out).len(), 9000);
    // RFC 7143 11.18: a NOP-Out that is not for immediate delivery takes its CmdSN.
    let sent = rig.sent();
    assert_eq!(sent.len(), 2);
    let nop = NopOut::parse(&sent[0].bhs).unwrap();
    let expected = NopOut {
        immediate: false,
        lun: 0,
        itt: task(1).to_itt(),
        ttt: RESERVED_TAG,
        cmd_sn: Serial(101),
        exp_stat_sn: Serial(9),
    };
    assert_eq!((nop, sent[0].header), (expected, ControlHeader::default()));
    assert_eq!(sent[1].data.len(), 100);
    assert_eq!(rig.mover.backlog(), 0);
}

#[test]
fn an_answer_to_a_command_that_waits_is_a_protocol_error() {
    let mut rig = Rig::new();
    rig.mover.queue.room = 1;
    rig.read(0, 512);
    rig.read(1, 512);
    rig.answer(&response(1), &[], None);
    assert!(matches!(rig.terminated(), MoverError::Protocol(Misbehavior::ResponseToUnsentCommand)));
    for slot in 0..2 {
        assert!(rig.mover.deallocate_task_resources(task(slot)).data_in.is_some());
    }
}

#[test]
fn a_buffer_that_never_can_be_advertised_ends_the_connection() {
    let cases: [(Refuses, &str); 3] = [
        (|_| Some(RegisterReason::MemoryLock), "ulimit"),
        (|_| Some(RegisterReason::Budget(1)), "configuration"),
        (|_| Some(RegisterReason::Device(12)), "refused"),
    ];
    for (refuses, word) in cases {
        let mut rig = Rig::new();
        rig.mover.queue.refuses = refuses;
        rig.read(0, 512);
        assert!(rig.mover.queue.work.is_empty());
        assert!(matches!(rig.terminated(), MoverError::Rdma(why) if why.contains(word)));
        assert!(rig.mover.deallocate_task_resources(task(0)).data_in.is_some());
    }
    let mut rig = Rig::new();
    rig.mover.queue.room = 1;
    let command = SendCommand {
        task: task(0),
        bhs: header(0, true, true, 9000),
        ahs: &[],
        data_out: Some(Payload::Buf(pattern(9000))),
        data_in: Some(Payload::Buf(Buf::zeroed(512))),
    };
    rig.mover.send_command(command);
    assert!(matches!(rig.terminated(), MoverError::Rdma(_)));
    let buffers = rig.mover.deallocate_task_resources(task(0));
    assert!(buffers.data_in.is_some() && buffers.data_out.is_some());
}

// RFC 7143 4.2.2.1: what is for immediate delivery takes no CmdSN.
#[test]
fn a_stuck_task_can_be_aborted_while_others_wait_for_its_stag() {
    let abort = |slot: u16, function| {
        TaskManagementRequest {
            immediate: true,
            function: Ok(function),
            lun: 0,
            itt: 0x1_ff10,
            referenced_task_tag: task(slot).to_itt(),
            cmd_sn: Serial(103),
            exp_stat_sn: Serial(9),
            ref_cmd_sn: Serial(100 + u32::from(slot)),
            exp_data_sn: 0,
        }
        .emit()
    };
    let mut rig = Rig::new();
    rig.mover.queue.room = 1;
    for slot in 0..3 {
        rig.read(slot, 512);
    }
    rig.sent();
    // The target does not have these tasks yet: it could only say that they do not exist.
    rig.mover.send_control(abort(1, TaskFunction::AbortTask), &[]);
    rig.mover.send_control(abort(0, TaskFunction::LogicalUnitReset), &[]);
    assert!(rig.sent().is_empty());
    rig.mover.send_control(abort(0, TaskFunction::AbortTask), &[]);
    assert_eq!(rig.one().bhs, abort(0, TaskFunction::AbortTask));
    rig.mover.deallocate_task_resources(task(0));
    // The command that waited, and now the function that concerns it.
    let sent = rig.sent();
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0].bhs.itt(), task(1).to_itt());
    assert_eq!(sent[1].bhs, abort(1, TaskFunction::AbortTask));
    rig.mover.deallocate_task_resources(task(1));
    let sent = rig.sent();
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0].bhs.itt(), task(2).to_itt());
    assert_eq!(sent[1].bhs, abort(0, TaskFunction::LogicalUnitReset));
}
