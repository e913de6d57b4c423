//! Writes that nobody waits for any more: nothing of them lands on what is written later.

use super::*;

fn write_at(token: u64, lba: u64) -> Command {
    write(token, BlockIo::new(lba, 2).write(), 1024)
}

/// A write of blocks 8 and 9 is under way.
fn one_under_way() -> (Net, ScsiCommand) {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(write_at(1, 8));
    net.run();
    let first = net.expect_command();
    (net, first)
}

/// It was given up, and these came behind it: the write, and what is to abort it.
fn one_given_up(later: impl IntoIterator<Item = Command>) -> (Net, ScsiCommand, TaskManagementRequest) {
    let (mut net, first) = one_under_way();
    net.app().abandoned.push(1);
    net.app().commands.extend(later);
    net.run();
    let abort = net.expect_function();
    (net, first, abort)
}

fn lba(command: &ScsiCommand) -> u64 {
    u64::from(u32::from_be_bytes(command.cdb[2..6].try_into().unwrap()))
}

#[test]
fn later_commands_to_the_same_blocks_wait_for_the_abort_of_a_write_that_was_given_up() {
    let (mut net, first, abort) = one_given_up([write_at(2, 9), read(3), write_at(4, 20)]);
    assert_eq!(abort.function, Ok(TaskFunction::AbortTask));
    assert_eq!((abort.referenced_task_tag, abort.ref_cmd_sn), (first.itt, first.cmd_sn));
    let others = [net.expect_command(), net.expect_command()];
    assert!(others[0].read && lba(&others[1]) == 20, "what touches other blocks does not wait");
    assert!(net.got.is_empty());
    net.answer_function(&abort, TaskResponse::Complete);
    assert_eq!(lba(&net.expect_command()), 9);
    assert_eq!(net.result(1), Err(Failure::Aborted));
}

#[test]
fn one_that_is_given_up_twice_is_waited_for_as_one_that_was_once() {
    let (mut net, _, abort) = one_given_up([]);
    net.app().abandoned.push(1);
    net.app().commands.push_back(write_at(2, 9));
    net.run();
    assert!(net.got.is_empty());
    net.answer_function(&abort, TaskResponse::Complete);
    assert_eq!(lba(&net.expect_command()), 9);
}

#[test]
fn what_waits_behind_it_is_not_passed_by_what_waits_for_that_alone() {
    let long = write(2, BlockIo::new(9, 6).write(), 3072);
    let (mut net, _, abort) = one_given_up([long, write_at(3, 12), write_at(4, 20)]);
    assert_eq!(lba(&net.expect_command()), 20);
    assert!(net.got.is_empty(), "12 is among the blocks of the write before");
    net.answer_function(&abort, TaskResponse::Complete);
    assert_eq!([lba(&net.expect_command()), lba(&net.expect_command())], [9, 12]);
}

#[test]
fn its_own_answer_ends_the_wait_too() {
    let (mut net, first, abort) = one_given_up([write_at(2, 8)]);
    net.good(&first);
    assert_eq!(lba(&net.expect_command()), 8);
    net.answer_function(&abort, TaskResponse::TaskDoesNotExist);
    assert!(!net.initiator.as_ref().unwrap().is_finished());
}

#[test]
fn a_target_that_does_not_abort_it_has_it_waited_for() {
    for answer in [Some(TaskResponse::Rejected), None] {
        let (mut net, first, abort) = one_given_up([write_at(2, 8)]);
        match answer {
            Some(answer) => net.answer_function(&abort, answer),
            None => net.tick(),
        }
        assert!(net.got.is_empty(), "nothing is reset for it, and nothing passes it");
        net.good(&first);
        assert_eq!(lba(&net.expect_command()), 8);
    }
}

#[test]
fn the_abort_of_one_ends_it_however_late_it_is_answered() {
    for answer in [TaskResponse::Complete, TaskResponse::TaskDoesNotExist] {
        let (mut net, _, abort) = one_given_up([write_at(2, 8)]);
        net.tick();
        assert!(net.got.is_empty(), "the abort had its time");
        net.answer_function(&abort, answer);
        assert_eq!(net.result(1), Err(Failure::Aborted));
        assert_eq!(lba(&net.expect_command()), 8);
    }
}

#[test]
fn aborts_that_are_answered_late_keep_nobody_from_being_aborted() {
    let mut net = Net::new(INFINITE);
    net.app().commands.extend((0..8).map(|n| write_at(n, n * 2)));
    net.run();
    for _ in 0..8 {
        net.expect_command();
    }
    net.app().abandoned.extend(0..8);
    net.run();
    let mut aborts: Vec<_> = (0..4).map(|_| net.expect_function()).collect();
    assert!(net.got.is_empty(), "a few at a time");
    net.tick();
    aborts.extend((0..4).map(|_| net.expect_function()));
    for abort in &aborts {
        net.answer_function(abort, TaskResponse::Complete);
    }
    assert_eq!(net.app().done.len(), 8);
}

#[test]
fn one_that_waits_to_be_sent_is_never_sent() {
    let (mut net, first) = one_under_way();
    net.respond(&first, &[], Status::Busy, &[]);
    net.app().abandoned.push(1);
    net.app().commands.push_back(write_at(2, 8));
    net.run();
    assert_eq!(net.result(1), Err(Failure::Aborted));
    let second = net.expect_command();
    net.good(&second);
    assert!(net.result(2).is_ok() && net.got.is_empty());
    assert_eq!(net.initiator.as_ref().unwrap().poll_timeout(), None, "nothing is to be sent later");
}

#[test]
fn many_at_once_are_aborted_a_few_at_a_time() {
    let mut net = Net::new(INFINITE);
    net.app().commands.extend((0..12).map(|n| write_at(n, n * 2)));
    net.run();
    for _ in 0..12 {
        net.expect_command();
    }
    net.app().abandoned.extend(0..12);
    net.run();
    let mut aborted = 0;
    while !net.got.is_empty() {
        let abort = net.expect_function();
        net.answer_function(&abort, TaskResponse::Complete);
        aborted += 1;
    }
    assert_eq!((aborted, net.app().done.len()), (12, 12));
}

#[test]
fn what_was_issued_later_does_not_pass_a_write_that_is_sent_again() {
    let (mut net, first) = one_under_way();
    net.respond(&first, &[], Status::Busy, &[]);
    net.app().commands.extend([write_at(2, 9), write_at(3, 30)]);
    net.run();
    assert_eq!(lba(&net.expect_command()), 30);
    assert!(net.got.is_empty());
    net.tick();
    assert_eq!([lba(&net.expect_command()), lba(&net.expect_command())], [8, 9]);
}
