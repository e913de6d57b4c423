use super::*;

#[test]
fn one_receive_is_posted_before_anything_comes() {
    let rig = Rig::unconnected(config(), LIMITS);
    let receives = &rig.mover.queue.receives;
    assert_eq!(receives.len(), 1);
    assert!(receives[0].len() >= HEADERS_LEN + 8192);
    assert_eq!(rig.mover.queue.rings, 1);
}

#[test]
fn login_is_lock_step_and_each_answer_has_its_receive_first() {
    let mut rig = Rig::connected(config(), LIMITS, ESTABLISHED);
    for _ in 0..3 {
        rig.come(&message(NONE, login_request(), &[], b"a=b\0"));
        let Some(Notification::Control(bhs)) = rig.poll() else { panic!() };
        assert_eq!(bhs.opcode(), Ok(Opcode::LoginRequest));
        assert_eq!(rig.mover.control_data(), b"a=b\0");
        assert_eq!(rig.mover.queue.receives.len(), 0);
        rig.mover.send_control(login_response(), b"c=d\0");
        assert_eq!(rig.mover.queue.receives_before[0], 1);
        let sent = rig.sent();
        assert_eq!(sent.len(), 1);
        assert_eq!((sent[0].0, &sent[0].2[..], sent[0].3), (NONE, &b"c=d\0"[..], None));
        assert!(rig.poll().is_none());
    }
}

// RFC 7145 5.1.2: resources are there before the final Login Response leaves.
#[test]
fn full_feature_receives_are_posted_before_the_final_response() {
    let mut rig = Rig::connected(config(), LIMITS, ESTABLISHED);
    rig.come(&message(NONE, login_request(), &[], &[]));
    rig.poll();
    rig.mover.notice_key_values(&parameters());
    rig.mover.send_control(login_response(), &[]);
    rig.mover.enable_datamover();
    // The window, the slack, and one for the message at hand, which is a login buffer and comes on top.
    assert_eq!(rig.mover.queue.receives_before[0], 8 + 4 + 1);
    rig.poll();
    assert!(rig.mover.queue.receives.iter().all(|buf| buf.len() >= HEADERS_LEN + 256 + 8192));
}

#[test]
fn a_receive_is_posted_again_when_the_session_is_done_with_it() {
    let mut rig = Rig::new();
    let count = rig.mover.queue.receives.len();
    for itt in 0..50 {
        rig.command(NONE, Command { itt, ..COMMAND });
        assert_eq!(rig.mover.queue.receives.len(), count - 1);
        rig.put(itt, Source::None, Some(GOOD));
        assert!(rig.poll().is_none());
        assert_eq!(rig.mover.queue.receives.len(), count);
        assert_eq!(rig.sent().len(), 1);
    }
}

#[test]
fn only_login_pdus_come_before_login_is_over() {
    for bhs in [scsi_command(COMMAND), data_out(1, 0, 0, true), login_response(), Bhs::new(Opcode::NopOut)] {
        let mut rig = Rig::connected(config(), LIMITS, ESTABLISHED);
        rig.come(&message(NONE, bhs, &[], &[]));
        assert!(matches!(rig.terminated(), MoverError::Protocol(_)));
    }
}

#[test]
fn a_login_pdu_has_at_most_8192_bytes() {
    let mut rig = Rig::connected(config(), LIMITS, ESTABLISHED);
    rig.come(&message(NONE, login_request(), &[], &[0; 8192]));
    assert!(matches!(rig.poll(), Some(Notification::Control(_))));
    let mut rig = Rig::connected(config(), LIMITS, ESTABLISHED);
    let mut bhs = login_request();
    bhs.set_data_segment_len(8193);
    rig.come(&[&Header::Control(NONE).emit()[..], &bhs.0].concat());
    assert_eq!(rig.terminated(), MoverError::DataSegmentTooLong { got: 8193, limit: 8192 });
}

#[test]
fn receives_beyond_the_configured_memory_end_the_connection() {
    let mut rig = Rig::connected(config(), LIMITS, ESTABLISHED);
    rig.come(&message(NONE, login_request(), &[], &[]));
    rig.poll();
    rig.mover.notice_key_values(&Parameters { max_recv_data_segment_length: 0x00ff_ffff, ..parameters() });
    assert!(matches!(rig.terminated(), MoverError::Rdma(_)));
}

#[test]
fn receives_stay_within_what_the_queue_pair_takes() {
    let limits = QueueLimits { receives: 5, ..LIMITS };
    let mut rig = Rig::with(&parameters(), limits, ESTABLISHED);
    for itt in 0..20 {
        rig.command(NONE, Command { itt, ..COMMAND });
        rig.put(itt, Source::None, Some(GOOD));
        rig.sent();
    }
}

// An initiator's receives are there before the request that the target answers with the Full Feature Phase (RFC 7145
// 5.1.1).
#[test]
fn an_initiator_posts_its_receives_before_it_asks_for_the_full_feature_phase() {
    let config = IserMoverConfig { max_tasks: 8, receive_slack: 4, ..IserMoverConfig::new(Role::Initiator) };
    let mut rig = Rig::connected(config, LIMITS, ESTABLISHED);
    let mut first = login_request();
    first.0[1] = 0;
    rig.mover.send_control(first, &[]);
    assert_eq!(rig.mover.queue.receives_before[0], 1);
    rig.sent();
    rig.come(&message(NONE, login_response(), &[], &[]));
    assert!(matches!(rig.poll(), Some(Notification::Control(_))));
    rig.mover.send_control(login_request(), &[]);
    assert_eq!(rig.mover.queue.receives_before[0], 8 + 4 + 1);
}
