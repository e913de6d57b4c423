use super::*;

fn fetching(rig: &mut Rig) {
    rig.command(writes(WRITE), Command { itt: 1, write: true, len: 512, ..COMMAND });
    rig.get(0, 1, Payload::Buf(Buf::zeroed(512)));
    rig.command(reads(READ), Command { itt: 2, read: true, len: 512, ..COMMAND });
    rig.put(2, Source::Buf(Buf::zeroed(512)), Some(GOOD));
    assert!(rig.poll().is_none());
}

#[test]
fn what_is_queued_is_sent_before_the_end() {
    let mut rig = Rig::with(&parameters(), QueueLimits { work: 1, ..LIMITS }, ESTABLISHED);
    rig.command(reads(READ), Command { read: true, len: 512, ..COMMAND });
    rig.put(1, Source::Copy(&[1; 512]), Some(GOOD));
    rig.mover.connection_terminate();
    rig.mover.connection_terminate();
    assert!(!rig.mover.queue.disconnected);
    rig.mover.send_control(Bhs::new(Opcode::NopIn), &[]);
    rig.write();
    assert!(rig.mover.queue.disconnected, "the last message is posted");
    assert_eq!(rig.sent().len(), 1);
    assert!(rig.poll().is_none());
    rig.end(EndCause::Closed);
    assert!(matches!(rig.poll(), Some(Notification::Terminated(MoverError::Closed))));
    assert!(rig.poll().is_none());
}

#[test]
fn nothing_more_is_received_after_a_termination() {
    let mut rig = Rig::new();
    rig.mover.connection_terminate();
    rig.come(&message(NONE, scsi_command(COMMAND), &[], &[]));
    assert!(rig.poll().is_none());
}

#[test]
fn an_abort_gives_every_buffer_back() {
    let mut rig = Rig::with(&parameters(), QueueLimits { work: 2, ..LIMITS }, ESTABLISHED);
    fetching(&mut rig);
    rig.command(reads(READ), Command { itt: 3, read: true, len: 512, ..COMMAND });
    rig.put(3, Source::Buf(Buf::zeroed(512)), Some(GOOD));
    rig.mover.connection_abort();
    rig.mover.connection_abort();
    assert!(rig.mover.queue.aborted);
    assert!(matches!(rig.poll(), Some(Notification::Released(_))), "it was not posted yet");
    assert!(rig.poll().is_none(), "the rest is in the hands of the queue pair");
    rig.end(EndCause::Closed);
    assert!(matches!(rig.poll(), Some(Notification::Released(_))));
    assert!(matches!(rig.poll(), Some(Notification::Terminated(MoverError::Broken))));
    assert!(
        matches!(rig.mover.deallocate_task_resources(task(0)).data_in, Some(Payload::Buf(buf)) if buf.len() == 512)
    );
    assert_eq!(rig.mover.backlog(), 0);
}

#[test]
fn causes_of_an_end_are_told() {
    let cases = [
        (EndCause::Closed, MoverError::Closed),
        (EndCause::PeerClosed, MoverError::EndOfStream),
        (EndCause::Broken, MoverError::Broken),
        (EndCause::ByPeer("a"), MoverError::Rdma("a")),
        (EndCause::PeerProtocol("b"), MoverError::Rdma("b")),
        (EndCause::WorkFailed("c"), MoverError::Rdma("c")),
    ];
    for (cause, error) in cases {
        let mut rig = Rig::new();
        fetching(&mut rig);
        rig.end(cause);
        assert!(matches!(rig.poll(), Some(Notification::Released(_))));
        let Some(Notification::Terminated(told)) = rig.poll() else { panic!() };
        assert_eq!(told, error);
        assert!(rig.mover.deallocate_task_resources(task(0)).data_in.is_some());
    }
}

#[test]
fn what_came_before_the_end_is_told_first() {
    let mut rig = Rig::new();
    rig.come(&message(NONE, scsi_command(COMMAND), &[], &[]));
    rig.end(EndCause::PeerClosed);
    assert!(matches!(rig.poll(), Some(Notification::Control(_))));
    // Its answer has nowhere to go, and its buffers come back.
    rig.put(1, Source::Buf(Buf::zeroed(8)), Some(GOOD));
    assert!(matches!(rig.poll(), Some(Notification::Released(_))));
    assert!(matches!(rig.poll(), Some(Notification::Terminated(MoverError::EndOfStream))));
}
