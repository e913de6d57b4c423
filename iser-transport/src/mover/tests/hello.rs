use super::*;
use crate::header::{Hello, HelloReply, VERSION};

const HELLO: Hello = Hello { max_version: VERSION, min_version: VERSION, ird: 4 };

fn wanted() -> Parameters {
    Parameters { iser_hello_required: true, ..parameters() }
}

fn reply(rig: &mut Rig) -> HelloReply {
    let Some(Work::Send { id, message, invalidate: None }) = rig.work() else { panic!("a HelloReply is sent") };
    let bytes = bytes_of(&message);
    rig.done(id, message.memory);
    match Header::parse(&bytes) {
        Ok(Header::HelloReply(reply)) => reply,
        other => panic!("a HelloReply, not {other:?}"),
    }
}

// RFC 7145 5.1.3.
#[test]
fn the_reply_is_the_first_message_and_settles_the_read_depth() {
    for (ird, read_depth, ord) in [(4, 8, 4), (8, 4, 4), (0, 8, 0)] {
        let mut rig = Rig::with(&wanted(), LIMITS, Established { read_depth, ..ESTABLISHED });
        rig.mover.send_control(Bhs::new(Opcode::NopIn), &[]);
        assert!(rig.work().is_none(), "the reply is to be the first message");
        rig.come(&Header::Hello(Hello { ird, ..HELLO }).emit());
        assert!(rig.poll().is_none());
        let expected = HelloReply { rejected: false, max_version: VERSION, current_version: VERSION, ord };
        assert_eq!(reply(&mut rig), expected);
        assert_eq!(rig.sent().len(), 1);
        for slot in 0..6 {
            rig.command(writes(WRITE), Command { itt: slot.into(), write: true, len: 512, ..COMMAND });
            if ord > 0 {
                rig.get(slot, slot.into(), Payload::Buf(Buf::zeroed(512)));
            }
        }
        assert_eq!(rig.mover.queue.work.len(), ord.into());
    }
}

// RFC 7145 5.1.3: "a 'new' target MUST still respond" where the key was not negotiated.
#[test]
fn a_hello_that_was_not_announced_is_answered() {
    let mut rig = Rig::new();
    rig.come(&Header::Hello(HELLO).emit());
    assert!(rig.poll().is_none());
    assert!(!reply(&mut rig).rejected);
}

// RFC 7145 10.1.3.2.
#[test]
fn what_is_unacceptable_is_rejected() {
    let cases = [
        (Hello { max_version: VERSION - 1, min_version: 1, ..HELLO }, 8),
        (Hello { max_version: 15, min_version: VERSION + 1, ..HELLO }, 8),
        (HELLO, 0),
    ];
    for (hello, read_depth) in cases {
        let mut rig = Rig::with(&wanted(), LIMITS, Established { read_depth, ..ESTABLISHED });
        rig.come(&Header::Hello(hello).emit());
        assert!(rig.poll().is_none());
        assert!(reply(&mut rig).rejected);
        assert!(rig.mover.queue.disconnected);
        rig.end(EndCause::Closed);
        assert!(matches!(rig.poll(), Some(Notification::Terminated(MoverError::Rdma(_)))));
    }
}

// RFC 7145 10.1.3.4.
#[test]
fn a_hello_comes_first_or_not_at_all() {
    let mut rig = Rig::with(&wanted(), LIMITS, ESTABLISHED);
    rig.come(&message(NONE, scsi_command(COMMAND), &[], &[]));
    assert!(matches!(rig.terminated(), MoverError::Protocol(_)));

    let mut rig = Rig::new();
    rig.command(NONE, COMMAND);
    rig.come(&Header::Hello(HELLO).emit());
    assert!(matches!(rig.terminated(), MoverError::Protocol(_)));

    let mut rig = Rig::connected(config(), LIMITS, ESTABLISHED);
    rig.come(&Header::Hello(HELLO).emit());
    assert!(matches!(rig.terminated(), MoverError::Protocol(_)));
}
