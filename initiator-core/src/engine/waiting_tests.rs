//! What waits to be sent has a limit, and only while nothing moves.

use super::*;
use crate::command::WaitsFor;

const LIMIT: Duration = Duration::from_secs(60);

/// Lets time pass until the connection has nothing more to wait for, or `until` comes.
fn pass(net: &mut Net, until: Instant) {
    while net.initiator.as_ref().unwrap().poll_timeout().is_some_and(|at| at <= until) {
        net.tick();
    }
    net.now = until;
}

#[test]
fn commands_behind_a_window_that_stays_closed_end() {
    let mut net = Net::new(0);
    let start = net.now;
    net.app().commands.push_back(read(1));
    net.run();
    pass(&mut net, start + LIMIT / 2);
    net.app().commands.push_back(read(2));
    net.run();
    pass(&mut net, start + (LIMIT - Duration::from_nanos(1)));
    assert!(net.app().done.is_empty());
    pass(&mut net, start + LIMIT);
    assert_eq!(net.result(1), Err(Failure::NotSent(WaitsFor::Window)));
    assert!(net.app().done.is_empty(), "the second was handed over later");
    pass(&mut net, start + LIMIT + LIMIT / 2);
    assert_eq!(net.result(2), Err(Failure::NotSent(WaitsFor::Window)));
    assert!(net.got.is_empty() && !net.initiator.as_ref().unwrap().is_finished());
}

#[test]
fn a_session_in_which_commands_get_on_gives_none_up() {
    let mut net = Net::new(1);
    net.app().commands.extend((0..4).map(read));
    net.run();
    // Each takes most of the time that a command has.
    for token in 0..4 {
        let command = net.expect_command();
        let at = net.now + Duration::from_secs(59);
        pass(&mut net, at);
        net.good(&command);
        assert!(net.result(token).is_ok());
    }
    // From here on the window stays closed.
    net.window = 0;
    net.app().commands.extend([read(4), read(5)]);
    net.run();
    let command = net.expect_command();
    net.good(&command);
    assert!(net.result(4).is_ok());
    let answered = net.now;
    pass(&mut net, answered + (LIMIT - Duration::from_nanos(1)));
    assert!(net.app().done.is_empty());
    pass(&mut net, answered + LIMIT);
    assert_eq!(net.result(5), Err(Failure::NotSent(WaitsFor::Window)));
}

#[test]
fn the_time_between_two_connections_does_not_count() {
    let mut net = Net::new(0);
    net.app().commands.push_back(read(1));
    net.app().controls.push_back(Control::Text { id: 1, text: b"SendTargets=\0".to_vec() });
    net.run();
    let later = net.now + LIMIT / 2;
    pass(&mut net, later);
    let engine = net.cut();
    net.now = net.now + LIMIT * 3;
    net.connect(engine);
    net.run();
    let back = net.now;
    pass(&mut net, back + (LIMIT - Duration::from_nanos(1)));
    assert!(net.app().done.is_empty());
    pass(&mut net, back + LIMIT);
    assert_eq!(net.result(1), Err(Failure::NotSent(WaitsFor::Window)));
}

#[test]
fn a_request_that_finds_no_place_at_the_target_ends() {
    // One PDU for immediate delivery, and no numbered one.
    let mut net = Net::with_unexpected(
        0,
        Timeouts { keepalive_interval: Duration::ZERO, task_management: LIMIT * 3, ..Timeouts::default() },
        Limits::default(),
        1,
    );
    let function = |id| Control::TaskManagement { id, function: TaskFunction::LogicalUnitReset, lun: Lun::ZERO };
    let start = net.now;
    net.app().controls.extend([function(1), function(2), Control::TakeLost { id: 3, guard: 0 }]);
    net.run();
    let first = net.expect_function();
    assert!(net.got.is_empty() && net.app().answers.is_empty());
    pass(&mut net, start + LIMIT);
    let waited = Failure::NotSent(WaitsFor::Window);
    let answers = core::mem::take(&mut net.app().answers);
    assert_eq!(answers[0], (2, ControlAnswer::Failed(waited)));
    assert_eq!(answers[1], (3, ControlAnswer::Lost(Vec::new())), "what stood behind it goes on");
    net.answer_function(&first, TaskResponse::Complete);
    assert_eq!(net.app().answers, [(1, ControlAnswer::TaskManagement(TaskResponse::Complete))]);
}

#[test]
fn a_limit_of_zero_waits_for_ever() {
    let mut net = Net::with(
        0,
        Timeouts { keepalive_interval: Duration::ZERO, standstill: Duration::ZERO, ..Timeouts::default() },
        Limits::default(),
    );
    net.app().commands.push_back(read(1));
    net.run();
    assert_eq!(net.initiator.as_ref().unwrap().poll_timeout(), None);
}
