//! Overdue commands whose abort does not help, while other resets of their logical unit are under way.

use super::*;

fn reset(net: &mut Net) -> TaskManagementRequest {
    let request = net.expect_function();
    assert_eq!(request.function, Ok(TaskFunction::LogicalUnitReset));
    request
}

#[test]
fn a_reset_of_the_application_is_not_relied_on() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    net.expect_command();
    net.tick();
    assert_eq!(net.expect_function().function, Ok(TaskFunction::AbortTask));
    let function = TaskFunction::LogicalUnitReset;
    net.app().controls.push_back(Control::TaskManagement { id: 1, function, lun: Lun::ZERO });
    net.run();
    reset(&mut net);
    // Neither is answered.
    net.tick();
    assert_eq!(net.app().answers, [(1, ControlAnswer::Failed(Failure::TimedOut))]);
    let own = reset(&mut net);
    net.answer_function(&own, TaskResponse::Complete);
    assert_eq!(net.result(1), Err(Failure::TimedOut));
}

#[test]
fn a_reset_that_is_older_than_the_command_is_not_relied_on() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    net.expect_command();
    net.tick();
    net.expect_function();
    net.tick();
    let first = reset(&mut net);
    let command = Command { timeout: Some(Duration::from_secs(2)), ..read(2) };
    net.app().commands.push_back(command);
    net.run();
    assert_eq!(net.expect_command().cmd_sn, first.cmd_sn);
    net.tick();
    let abort = net.expect_function();
    net.answer_function(&abort, TaskResponse::Rejected);
    let second = reset(&mut net);
    net.answer_function(&first, TaskResponse::Complete);
    assert_eq!(net.result(1), Err(Failure::TimedOut));
    net.answer_function(&second, TaskResponse::Complete);
    assert_eq!(net.result(2), Err(Failure::TimedOut));
}
