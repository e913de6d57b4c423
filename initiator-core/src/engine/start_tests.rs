//! Units that are to be started.

use super::*;

const STOPPED: AdditionalSense = AdditionalSense::NOT_READY_INITIALIZING_COMMAND_REQUIRED;

fn stopped(net: &mut Net, command: &ScsiCommand) {
    net.respond(command, &[], Status::CheckCondition, &sense(SenseKey::NotReady, STOPPED));
}

fn expect_start(net: &mut Net) -> ScsiCommand {
    let command = net.expect_command();
    // SBC-4 5.31: START, not IMMED.
    assert_eq!(command.cdb[..6], [opcode::START_STOP_UNIT, 0, 0, 0, 1, 0]);
    command
}

#[test]
fn a_unit_that_asks_for_it_is_started_once_for_all_its_commands() {
    let mut net = Net::new(INFINITE);
    net.app().commands.extend([read(1), read(2)]);
    net.run();
    let (first, second) = (net.expect_command(), net.expect_command());
    stopped(&mut net, &first);
    let start = expect_start(&mut net);
    stopped(&mut net, &second);
    assert!(net.got.is_empty() && net.app().done.is_empty(), "one START STOP UNIT at a time");
    net.good(&start);
    for token in [1, 2] {
        let command = net.expect_command();
        assert_eq!(command.cdb[..], read(token).cdb.pdu_field()[..]);
        net.good(&command);
        assert!(net.result(token).is_ok_and(|outcome| outcome.is_good()));
    }
    assert!(net.initiator.as_ref().unwrap().poll_timeout().is_none() && net.got.is_empty());
}

#[test]
fn a_unit_that_does_not_start_is_told_of() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    stopped(&mut net, &command);
    let start = expect_start(&mut net);
    stopped(&mut net, &start);
    let again = net.expect_command();
    stopped(&mut net, &again);
    let outcome = net.result(1).unwrap();
    assert_eq!(outcome.sense.map(|sense| sense.code), Some(STOPPED));
    assert!(net.got.is_empty(), "START STOP UNIT goes out once");
}

#[test]
fn what_waits_for_a_start_keeps_its_order_over_a_cut_and_can_be_given_up() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(write(1, BlockIo::new(0, 1).write(), 512));
    net.run();
    let command = net.expect_command();
    stopped(&mut net, &command);
    expect_start(&mut net);
    net.app().commands.push_back(write(2, BlockIo::new(0, 1).write(), 512));
    net.app().commands.push_back(write(3, BlockIo::new(8, 1).write(), 512));
    net.run();
    let other = net.expect_command();
    assert_eq!(other.cdb[5], 8, "a later write to the same block waits");
    assert!(net.got.is_empty());
    let engine = net.cut();
    net.connect(engine);
    net.run();
    let blocks: Vec<_> = (0..3).map(|_| net.expect_command()).collect();
    assert_eq!(blocks.iter().map(|command| command.cdb[5]).collect::<Vec<_>>(), [0, 0, 8]);
    stopped(&mut net, &blocks[0]);
    expect_start(&mut net);
    net.app().abandoned.push(1);
    net.run();
    assert_eq!(net.result(1), Err(Failure::Aborted));
}

#[test]
fn a_command_that_reports_what_comes_starts_nothing() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(Command { retry: false, ..read(1) });
    net.run();
    let command = net.expect_command();
    stopped(&mut net, &command);
    assert_eq!(net.result(1).unwrap().sense.map(|sense| sense.code), Some(STOPPED));
    assert!(net.got.is_empty());
}
