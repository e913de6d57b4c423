//! MaxOutstandingUnexpectedPDUs of the target (RFC 7145 8.1.1.3).

use super::*;

/// What the target has to keep receives for: it counts as the RFC does, by itself.
#[derive(Debug, Default)]
struct Count {
    outstanding: Vec<Serial>,
    most: usize,
}

impl Count {
    fn saw(&mut self, bhs: &Bhs, exp_cmd_sn: Serial) {
        self.outstanding.retain(|cmd_sn| *cmd_sn >= exp_cmd_sn);
        if bhs.immediate() {
            let [.., a, b, c, d] = *bhs.0.first_chunk::<28>().unwrap();
            self.outstanding.push(Serial(u32::from_be_bytes([a, b, c, d])));
        }
        self.most = self.most.max(self.outstanding.len());
    }
}

fn function(id: u32) -> Control {
    Control::TaskManagement { id, function: TaskFunction::AbortTaskSet, lun: Lun::ZERO }
}

fn pong(net: &mut Net, ping: &NopOut) {
    let (stat_sn, exp_cmd_sn, max_cmd_sn) = net.numbers();
    let pong = NopIn { lun: 0, itt: ping.itt, ttt: RESERVED_TAG, stat_sn, exp_cmd_sn, max_cmd_sn };
    net.send(pong.emit(), &[]);
}

/// A numbered ping retires itself and the one before it.
#[test]
fn an_idle_session_is_watched_without_end() {
    let mut net = Net::with_unexpected(4, Timeouts::default(), Limits::default(), 2);
    let (mut count, mut immediate) = (Count::default(), Vec::new());
    for _ in 0..20 {
        net.tick();
        let (bhs, _) = net.expect(Opcode::NopOut);
        let ping = NopOut::parse(&bhs).unwrap();
        count.saw(&bhs, ping.cmd_sn);
        immediate.push(ping.immediate);
        pong(&mut net, &ping);
    }
    assert_eq!(count.most, 1);
    assert!(immediate.chunks(2).all(|two| two == [true, false]), "{immediate:?}");
}

/// Pings leave the last place to what aborts commands.
#[test]
fn pings_of_a_busy_session_stop_short_of_the_limit() {
    let timeouts = Timeouts { command: Duration::from_secs(60), ..Timeouts::default() };
    let mut net = Net::with_unexpected(1, timeouts, Limits::default(), 3);
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    let mut pings = 0;
    let abort = loop {
        net.tick();
        let Some((bhs, _)) = net.got.pop_front() else { continue };
        let Ok(ping) = NopOut::parse(&bhs) else { break TaskManagementRequest::parse(&bhs).unwrap() };
        assert!(ping.immediate);
        pings += 1;
        // The window stays closed, and so nothing is retired.
        let stat_sn = net.stat_sn;
        net.stat_sn = stat_sn.next();
        let (exp_cmd_sn, max_cmd_sn) = (Serial(2), Serial(1));
        let pong = NopIn { lun: 0, itt: ping.itt, ttt: RESERVED_TAG, stat_sn, exp_cmd_sn, max_cmd_sn };
        net.send(pong.emit(), &[]);
    };
    assert_eq!((pings, abort.immediate, abort.referenced_task_tag), (2, true, command.itt));
}

#[test]
fn beyond_the_limit_requests_are_numbered() {
    let mut net = Net::with_unexpected(8, Timeouts::default(), Limits::default(), 3);
    net.app().controls.extend((0..6).map(function));
    net.run();
    let mut count = Count::default();
    let requests: Vec<_> = (0..6)
        .map(|_| {
            let (bhs, _) = net.expect(Opcode::TaskManagementRequest);
            count.saw(&bhs, Serial(1));
            TaskManagementRequest::parse(&bhs).unwrap()
        })
        .collect();
    assert_eq!(count.most, 3);
    let sent: Vec<_> = requests.iter().map(|request| (request.immediate, request.cmd_sn.0)).collect();
    assert_eq!(sent, [(true, 1), (true, 1), (true, 1), (false, 1), (false, 2), (false, 3)]);
    for request in &requests {
        net.answer_function(request, TaskResponse::Complete);
    }
    assert_eq!(net.app().answers.len(), 6);
    // All are retired: there is room for three again.
    net.app().controls.extend((6..9).map(function));
    net.run();
    assert!((0..3).all(|_| net.expect_function().immediate));
}

/// Neither at once nor in their turn: they wait, and the logout behind them.
#[test]
fn requests_wait_for_the_window_when_there_is_no_room() {
    let timeouts = Timeouts { keepalive_interval: Duration::ZERO, ..Timeouts::default() };
    let mut net = Net::with_unexpected(0, timeouts, Limits::default(), 2);
    net.app().controls.extend((0..3).map(function));
    net.app().controls.push_back(Control::Logout);
    net.run();
    let first = net.expect_function();
    assert!(first.immediate && net.expect_function().immediate);
    assert!(net.got.is_empty(), "the third has no place");
    net.window = 2;
    net.answer_function(&first, TaskResponse::Complete);
    let third = net.expect_function();
    assert_eq!((third.immediate, third.cmd_sn), (false, Serial(1)));
    let logout = LogoutRequest::parse(&net.expect(Opcode::LogoutRequest).0).unwrap();
    assert_eq!((logout.immediate, logout.cmd_sn), (false, Serial(2)));
}

/// A logout that can never be sent ends the connection all the same.
#[test]
fn a_logout_without_a_place_times_out() {
    let timeouts = Timeouts { keepalive_interval: Duration::ZERO, ..Timeouts::default() };
    let mut net = Net::with_unexpected(0, timeouts, Limits::default(), 2);
    net.app().controls.extend([function(0), Control::Logout, function(1)]);
    net.run();
    assert!(net.expect_function().immediate && net.expect_function().immediate);
    assert!(net.got.is_empty());
    while !net.initiator.as_ref().unwrap().is_finished() {
        net.tick();
    }
    assert_eq!(net.end().1, ConnectionEnd::LogoutTimeout);
}

/// An acknowledgement is left out, an answer is not: the target has asked for it.
#[test]
fn what_the_target_asks_for_is_answered_at_the_limit() {
    let timeouts = Timeouts { keepalive_interval: Duration::ZERO, ..Timeouts::default() };
    let mut net = Net::with_unexpected(0, timeouts, Limits::default(), 2);
    net.app().controls.extend((0..2).map(function));
    net.run();
    assert!((0..2).all(|_| net.expect_function().immediate));
    let (stat_sn, exp_cmd_sn, max_cmd_sn) = net.numbers();
    let message = AsyncMessage {
        event: AsyncEvent::TasksTerminated,
        lun: 0,
        stat_sn,
        exp_cmd_sn,
        max_cmd_sn,
        parameter1: 0,
        parameter2: 0,
        parameter3: 0,
    };
    net.send(message.emit(), &[]);
    assert!(net.got.is_empty());
    let ping = NopIn { lun: 0, itt: RESERVED_TAG, ttt: 7, stat_sn: net.stat_sn, exp_cmd_sn, max_cmd_sn };
    net.send(ping.emit(), &[]);
    assert_eq!(NopOut::parse(&net.expect(Opcode::NopOut).0).unwrap().ttt, 7);
}
