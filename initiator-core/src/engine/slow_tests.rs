//! Commands that are slow, and commands that are lost.

use super::*;

const TIME: Duration = Duration::from_secs(60);

fn read_of(token: u64, len: usize) -> Command {
    Command { data_in: Some(Payload::Buf(Buf::zeroed(len))), ..read(token) }
}

/// The next part of a read's data, without its end.
fn bring(net: &mut Net, command: &ScsiCommand, buffer_offset: u32) {
    let (lun, itt) = (command.lun, command.itt);
    net.target.put_data(PutData { lun, itt, buffer_offset, data: Source::Copy(&[7; 512]), status: None });
    net.run();
}

/// Lets time pass up to then.
fn pass(net: &mut Net, until: Instant) {
    while net.initiator.as_ref().unwrap().poll_timeout().is_some_and(|at| at <= until) {
        net.tick();
    }
    net.now = until;
}

#[test]
fn a_command_whose_data_move_is_not_overdue_and_has_a_limit() {
    let mut net = Net::new(INFINITE);
    let start = net.now;
    net.app().commands.push_back(read_of(1, 512 * 16));
    net.run();
    let command = net.expect_command();
    for n in 0..9 {
        bring(&mut net, &command, n * 512);
        pass(&mut net, start + TIME * (n + 1));
        assert!(net.got.is_empty(), "its data moved in minute {n}");
    }
    bring(&mut net, &command, 9 * 512);
    pass(&mut net, start + TIME * 10);
    assert_eq!(net.expect_function().function, Ok(TaskFunction::AbortTask), "ten times its time are its limit");
}

#[test]
fn a_command_whose_data_stop_is_overdue() {
    let mut net = Net::new(INFINITE);
    let start = net.now;
    net.app().commands.push_back(read_of(1, 2048));
    net.run();
    let command = net.expect_command();
    bring(&mut net, &command, 0);
    pass(&mut net, start + TIME);
    assert!(net.got.is_empty());
    pass(&mut net, start + TIME * 2);
    net.expect_function();
}

#[test]
fn commands_behind_one_whose_data_move_wait_and_later_ones_show_nothing() {
    let mut net = Net::new(INFINITE);
    let start = net.now;
    net.app().commands.extend([read_of(1, 2048), read_of(2, 2048), read_of(3, 2048)]);
    net.run();
    let (first, second, third) = (net.expect_command(), net.expect_command(), net.expect_command());
    bring(&mut net, &first, 0);
    pass(&mut net, start + TIME);
    assert!(net.got.is_empty(), "all wait behind the first");
    // The first is done, and the second is lost: the third shows nothing of it.
    pass(&mut net, start + TIME + Duration::from_secs(30));
    net.respond(&first, &[], Status::Good, &[]);
    bring(&mut net, &third, 0);
    pass(&mut net, start + TIME * 2);
    let abort = net.expect_function();
    assert_eq!((abort.function, abort.referenced_task_tag), (Ok(TaskFunction::AbortTask), second.itt));
    assert!(net.got.is_empty(), "the third gets on");
}

#[test]
fn commands_sent_one_after_the_other_are_spared_one_after_the_other() {
    let mut net = Net::new(INFINITE);
    let start = net.now;
    let step = Duration::from_millis(1);
    for token in 1..=3 {
        net.app().commands.push_back(read_of(token, 2048));
        net.run();
        net.now = net.now + step;
    }
    let commands: Vec<_> = (0..3).map(|_| net.expect_command()).collect();
    for n in 0..4 {
        // None is done, and their data come in turn.
        for command in &commands {
            bring(&mut net, command, n * 512);
        }
        pass(&mut net, start + TIME * (n + 1) + step * 10);
        assert!(net.got.is_empty(), "minute {n}");
    }
    pass(&mut net, start + TIME * 5 + step * 10);
    net.expect_function();
}

#[test]
fn a_command_with_a_time_of_its_own_keeps_to_it() {
    let mut net = Net::new(INFINITE);
    let start = net.now;
    net.app().commands.push_back(Command { timeout: Some(TIME / 2), ..read_of(1, 2048) });
    net.run();
    let command = net.expect_command();
    bring(&mut net, &command, 0);
    pass(&mut net, start + TIME / 2);
    net.expect_function();
}
