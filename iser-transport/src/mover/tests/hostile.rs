use super::*;
use iscsi_proto::datamover::MalformedPdu;
use proptest::prelude::*;

fn ends(bytes: &[u8]) {
    let mut rig = Rig::new();
    rig.come(bytes);
    assert!(matches!(rig.terminated(), MoverError::Protocol(_)));
}

// RFC 7145 10.1.3.3.
#[test]
fn format_errors_end_the_connection() {
    let good = message(NONE, scsi_command(COMMAND), &[], &[]);
    ends(&[]);
    ends(&good[..27]);
    ends(&good[..75]);
    ends(&[&[0x00], &good[1..]].concat());
    ends(&[&[0x40], &good[1..]].concat());
    ends(&[&[0x30], &good[1..28]].concat());
    ends(&[&[0x20], &good[1..]].concat());
    let with_data = message(NONE, Bhs::new(Opcode::NopOut), &[], &[1; 5]);
    ends(&with_data[..with_data.len() - 1]);
    ends(&[&with_data[..], &[0; 4]].concat());
    let mut long = good.clone();
    long[HEADER_LEN + 4] = 1;
    ends(&long);
}

#[test]
fn padding_may_be_there_or_not() {
    for padding in 0..4 {
        let mut rig = Rig::new();
        let nop = message(NONE, Bhs::new(Opcode::NopOut), &[], &[1; 5]);
        rig.come(&[&nop[..], &[0; 3][..padding]].concat());
        assert!(matches!(rig.poll(), Some(Notification::Control(_))));
        assert_eq!(rig.mover.control_data(), [1; 5]);
    }
}

// RFC 7145 9.2: flags that do not fit the command.
#[test]
fn stags_that_do_not_fit_the_command_end_the_connection() {
    let read = Command { read: true, len: 512, ..COMMAND };
    let write = Command { write: true, len: 512, ..COMMAND };
    let cases = [
        (reads(READ), COMMAND),
        (writes(WRITE), COMMAND),
        (writes(WRITE), read),
        (reads(READ), write),
        (NONE, read),
        (NONE, write),
        (NONE, Command { data: &[1; 511], ..write }),
    ];
    for (header, command) in cases {
        ends(&message(header, scsi_command(command), command.ahs, command.data));
    }
}

#[test]
fn a_data_segment_above_what_was_declared_ends_the_connection() {
    let parameters = Parameters { max_recv_data_segment_length: 1024, ..parameters() };
    let mut rig = Rig::with(&parameters, LIMITS, ESTABLISHED);
    rig.come(&message(NONE, Bhs::new(Opcode::NopOut), &[], &[0; 1024]));
    assert!(matches!(rig.poll(), Some(Notification::Control(_))));
    rig.come(&message(NONE, Bhs::new(Opcode::NopOut), &[], &[0; 1025]));
    assert_eq!(rig.terminated(), MoverError::DataSegmentTooLong { got: 1025, limit: 1024 });
}

#[test]
fn pdus_that_cannot_be_are_told_as_malformed() {
    let solicited = {
        let mut bhs = data_out(1, 0, 0, true);
        bhs.0[20..24].copy_from_slice(&[0; 4]);
        bhs
    };
    let mut unknown = Bhs::new(Opcode::NopOut);
    unknown.0[0] = 0x1e;
    for bhs in [
        Bhs::new(Opcode::DataIn),
        Bhs::new(Opcode::R2t),
        Bhs::new(Opcode::NopIn),
        solicited,
        unknown,
        data_out(9, 0, 0, true),
    ] {
        let mut rig = Rig::new();
        rig.come(&message(NONE, bhs, &[], &[]));
        let Some(Notification::Malformed { bhs: told, error }) = rig.poll() else { panic!("{bhs:?}") };
        assert_eq!(told, bhs);
        assert_eq!(matches!(error, MalformedPdu::Header(_)), bhs == unknown);
        // The connection goes on.
        rig.command(NONE, COMMAND);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever comes, nothing panics, every receive is posted again, and the end is told once.
    #[test]
    fn any_messages_are_taken(
        messages in proptest::collection::vec((0..16u8, 0..0x40u8, any::<[u8; 20]>(), 0..200usize, 0..4u32), 1..30)
    ) {
        let mut rig = Rig::new();
        let receives = rig.mover.queue.receives.len();
        let mut ended = false;
        for (flags, opcode, fields, len, itt) in messages {
            let mut bhs = Bhs::new(Opcode::NopOut);
            bhs.0[0] = opcode;
            bhs.0[1] = fields[0];
            bhs.0[16..20].copy_from_slice(&itt.to_be_bytes());
            bhs.0[20..36].copy_from_slice(&fields[4..]);
            let mut bytes = message(NONE, bhs, &[], &vec![7; len]);
            bytes[0] = if flags == 0 { 0x20 } else { 0x10 | flags & 0x0c };
            rig.come(&bytes);
            while let Some(notification) = rig.poll() {
                if let Notification::Control(bhs) = notification
                    && bhs.opcode() == Ok(Opcode::ScsiCommand)
                {
                    match fields[1] % 4 {
                        0 => rig.put(itt, Source::None, Some(GOOD)),
                        1 => rig.get((itt % 4) as u16, itt, Payload::Buf(Buf::zeroed(300))),
                        2 => drop(rig.mover.deallocate_task_resources(task((itt % 4) as u16))),
                        _ => {}
                    }
                }
            }
            if rig.mover.queue.aborted || rig.mover.queue.disconnected {
                ended = true;
                break;
            }
            prop_assert_eq!(rig.mover.queue.receives.len(), receives);
        }
        rig.end(EndCause::Closed);
        let told: Vec<_> = std::iter::from_fn(|| rig.poll()).collect();
        prop_assert!(matches!(told.last(), Some(Notification::Terminated(_))), "{} {:?}", ended, told);
    }
}
