//! Statuses: their numbers, and what they say of the data.

use iscsi_proto::pdu::{DataIn, DataInStatus};

use super::*;
use crate::command::Short;

/// A SCSI Response with GOOD status that says that so many bytes were not processed.
fn underflow(net: &mut Net, command: &ScsiCommand, missing: u32) {
    residual(net, command, Residual::Underflow(missing));
}

/// A SCSI Response with GOOD status.
fn residual(net: &mut Net, command: &ScsiCommand, residual: Residual) {
    let (stat_sn, exp_cmd_sn, max_cmd_sn) = net.numbers();
    let response = ScsiResponse {
        bidirectional_read_residual: Residual::None,
        residual,
        response: ResponseCode::Completed,
        status: 0,
        itt: command.itt,
        snack_tag: 0,
        stat_sn,
        exp_cmd_sn,
        max_cmd_sn,
        exp_data_sn: 0,
        status_qualifier: 0,
    };
    net.send(response.emit(), &[]);
}

#[test]
fn neighbours_that_were_swapped_are_taken_and_acknowledged_when_the_gap_is_filled() {
    let mut net = Net::new(INFINITE);
    net.app().commands.extend([read(1), read(2), read(3)]);
    net.run();
    let (first, second, third) = (net.expect_command(), net.expect_command(), net.expect_command());
    for (command, stat_sn) in [(&third, 102), (&second, 101)] {
        net.stat_sn = Serial(stat_sn);
        net.good(command);
        net.app().commands.push_back(read(10));
        net.run();
        assert_eq!(net.expect_command().exp_stat_sn, Serial(100), "what is missing is not acknowledged");
    }
    net.stat_sn = Serial(100);
    net.good(&first);
    net.app().commands.push_back(read(11));
    net.run();
    assert_eq!(net.expect_command().exp_stat_sn, Serial(103));
    for token in [1, 2, 3] {
        assert!(net.result(token).is_ok());
    }
    assert!(!net.initiator.as_ref().unwrap().is_finished());
}

#[test]
fn a_gap_that_stays_ends_the_connection() {
    let mut net = Net::new(INFINITE);
    net.app().commands.extend([read(1), read(2)]);
    net.run();
    let (_, second) = (net.expect_command(), net.expect_command());
    net.stat_sn = Serial(101);
    let before = net.now;
    net.good(&second);
    assert!(net.result(2).is_ok());
    while !net.initiator.as_ref().unwrap().is_finished() {
        net.tick();
    }
    assert_eq!(net.end().1, ConnectionEnd::StatSn { got: 101, expected: 100 });
    assert!(
        net.now - before <= Timeouts::default().keepalive + Duration::from_secs(1),
        "long before the command's time"
    );
}

#[test]
fn a_status_far_ahead_ends_the_connection_at_once() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    net.stat_sn = Serial(165);
    net.good(&command);
    assert_eq!(net.end().1, ConnectionEnd::StatSn { got: 165, expected: 100 });
}

#[test]
fn an_old_status_counts_for_nothing_and_for_an_open_task_it_is_named() {
    let mut net = Net::new(INFINITE);
    net.app().commands.extend([read(1), read(2)]);
    net.run();
    let (first, second) = (net.expect_command(), net.expect_command());
    net.good(&first);
    net.stat_sn = Serial(100);
    net.good(&first);
    assert!(!net.initiator.as_ref().unwrap().is_finished(), "a status that came twice");
    net.stat_sn = Serial(100);
    net.good(&second);
    assert_eq!(net.app().done.len(), 1, "an old status must not complete anything");
    assert_eq!(net.end().1, ConnectionEnd::StatSn { got: 100, expected: 101 });
}

#[test]
fn what_a_target_did_not_take_of_a_write_is_told() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(write(1, BlockIo::new(0, 4).write(), 2048));
    net.run();
    let command = net.expect_command();
    underflow(&mut net, &command, 512);
    let completion = net.app().done.pop().unwrap();
    assert!(completion.result.unwrap().is_good());
    assert_eq!(completion.short_out().map(|short| (short.moved, short.of)), Some((1536, 2048)));

    net.app().commands.push_back(write(2, BlockIo::new(0, 4).write(), 2048));
    net.run();
    let command = net.expect_command();
    net.good(&command);
    assert_eq!(net.app().done.pop().unwrap().short_out(), None);
}

#[test]
fn recovered_error_is_success() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    let data = alloc::vec![7; command.expected_data_transfer_length as usize];
    let recovered = sense(SenseKey::RecoveredError, AdditionalSense::new(0x17, 0x01));
    net.respond(&command, &data, Status::CheckCondition, &recovered);
    let completion = net.app().done.pop().unwrap();
    let outcome = completion.result.unwrap();
    assert!(outcome.is_good() && completion.short_in().is_none());
    assert_eq!(outcome.sense.map(|sense| sense.key), Some(SenseKey::RecoveredError), "kept for whoever asks");
}

#[test]
fn data_that_flow_keep_the_connection_alive() {
    let timeouts = Timeouts::default();
    let mut net = Net::with(INFINITE, timeouts, Limits::default());
    net.app().commands.push_back(read(1));
    net.run();
    net.expect_command();
    net.tick();
    net.expect(Opcode::NopOut);
    // Its answer stands behind data, which come slowly: a byte of a header every four seconds.
    let initiator = net.initiator.as_mut().unwrap();
    let mut now = net.now;
    for _ in 0..15 {
        assert_eq!(initiator.receive_window().fill(&[0x25]), 1);
        initiator.handle_received(1, now);
        now = now + Duration::from_secs(4);
        initiator.handle_timeout(now);
        assert!(!initiator.is_finished());
    }
    now = now + timeouts.keepalive_interval + timeouts.keepalive;
    initiator.handle_timeout(now);
    initiator.handle_timeout(now + timeouts.keepalive);
    net.now = now;
    assert_eq!(net.end().1, ConnectionEnd::KeepaliveTimeout, "silence is still silence");
}

#[test]
fn data_that_the_peer_acknowledges_keep_the_connection_alive() {
    let timeouts = Timeouts::default();
    let mut net = Net::with(INFINITE, timeouts, Limits::default());
    net.tick();
    net.expect(Opcode::NopOut);
    // It stands behind data in the socket, which takes no more for long.
    let initiator = net.initiator.as_mut().unwrap();
    let mut now = net.now;
    for _ in 0..15 {
        now = now + Duration::from_secs(5);
        initiator.peer_acknowledged(now);
        initiator.handle_timeout(now);
        assert!(!initiator.is_finished());
    }
    initiator.handle_timeout(now + timeouts.keepalive);
    net.now = now;
    assert_eq!(net.end().1, ConnectionEnd::KeepaliveTimeout);
}

#[test]
fn data_that_were_acknowledged_before_a_silence_do_not_put_off_its_end() {
    let timeouts = Timeouts::default();
    let mut net = Net::with(INFINITE, timeouts, Limits::default());
    // The socket is looked at when the question is due, and has data acknowledged since the look before.
    let initiator = net.initiator.as_mut().unwrap();
    let due = initiator.poll_timeout().unwrap();
    initiator.peer_acknowledged(due);
    net.tick();
    net.expect(Opcode::NopOut);
    net.tick();
    assert_eq!(net.now, due + timeouts.keepalive);
    assert_eq!(net.end().1, ConnectionEnd::KeepaliveTimeout);
}

/// The answer to a ping, with this StatSN.
fn pong(net: &mut Net, ping: &Bhs, stat_sn: u32) {
    let (_, exp_cmd_sn, max_cmd_sn) = net.numbers();
    let itt = ping.itt();
    net.send(NopIn { lun: 0, itt, ttt: RESERVED_TAG, stat_sn: Serial(stat_sn), exp_cmd_sn, max_cmd_sn }.emit(), &[]);
}

#[test]
fn a_target_that_does_not_count_its_last_login_response_is_used() {
    let mut net = Net::with(INFINITE, Timeouts::default(), Limits::default());
    net.tick();
    let (ping, _) = net.expect(Opcode::NopOut);
    pong(&mut net, &ping, 99);
    net.app().commands.extend([read(1), read(2)]);
    net.run();
    let (first, second) = (net.expect_command(), net.expect_command());
    assert_eq!(first.exp_stat_sn, Serial(100));
    net.stat_sn = Serial(100);
    net.good(&first);
    net.good(&second);
    assert!(net.result(1).is_ok() && net.result(2).is_ok());
    assert!(!net.initiator.as_ref().unwrap().is_finished());
}

#[test]
fn an_answer_with_an_old_number_is_named_whatever_it_answers() {
    // The first number may be one behind, and no later one.
    let mut net = Net::with(INFINITE, Timeouts::default(), Limits::default());
    net.tick();
    let (ping, _) = net.expect(Opcode::NopOut);
    pong(&mut net, &ping, 98);
    assert_eq!(net.end().1, ConnectionEnd::StatSn { got: 98, expected: 100 });

    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    let function = |id| Control::TaskManagement { id, function: TaskFunction::LogicalUnitReset, lun: Lun::ZERO };
    net.app().controls.push_back(function(1));
    net.run();
    let (command, function) = (net.expect_command(), net.expect_function());
    net.good(&command);
    net.stat_sn = Serial(100);
    net.answer_function(&function, TaskResponse::Complete);
    assert!(net.end().0.app().answers.iter().all(|(_, answer)| matches!(answer, ControlAnswer::Failed(_))));
}

#[test]
fn a_recovery_that_is_told_late_says_nothing_of_the_command_that_meets_it() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    let late = Sense { deferred: true, ..Sense::new(SenseKey::RecoveredError, AdditionalSense::WRITE_ERROR) };
    net.respond(&command, &[], Status::CheckCondition, &late.to_bytes(SenseFormat::Fixed));
    let again = net.expect_command();
    assert!(net.app().done.is_empty(), "it did not run");
    net.good(&again);
    assert!(net.result(1).is_ok_and(|outcome| outcome.is_good()));
}

#[test]
fn a_write_of_which_the_target_wanted_more_is_not_done() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(write(1, BlockIo::new(0, 1).write(), 512));
    net.run();
    let command = net.expect_command();
    residual(&mut net, &command, Residual::Overflow(512));
    let completion = net.app().done.pop().unwrap();
    assert_eq!(completion.short_out(), Some(Short { moved: 0, of: 512 }));
}

#[test]
fn a_gap_that_a_forgotten_read_fills_is_filled() {
    let mut net = Net::new(INFINITE);
    net.app().commands.extend([read(1)]);
    net.run();
    let command = net.expect_command();
    net.stat_sn = Serial(101);
    net.good(&command);
    let (_, exp_cmd_sn, max_cmd_sn) = net.numbers();
    let status = DataInStatus { status: 0, stat_sn: Serial(100), residual: Residual::None };
    let forgotten = DataIn {
        is_final: true,
        acknowledge: false,
        status: Some(status),
        lun: 0,
        itt: 0x77,
        ttt: RESERVED_TAG,
        exp_cmd_sn,
        max_cmd_sn,
        data_sn: 0,
        buffer_offset: 0,
    };
    net.send(forgotten.emit(), &[]);
    let initiator = net.initiator.as_ref().unwrap();
    assert!(!initiator.is_finished());
    assert_eq!(initiator.poll_timeout(), None, "nothing is waited for");
}
