//! Logouts, at either side's wish.

use super::*;

fn ask_for_logout(net: &mut Net, seconds: u16) {
    let (stat_sn, exp_cmd_sn, max_cmd_sn) = net.numbers();
    let message = AsyncMessage {
        lun: 0,
        event: AsyncEvent::LogoutRequest,
        stat_sn,
        exp_cmd_sn,
        max_cmd_sn,
        parameter1: 0,
        parameter2: 0,
        parameter3: seconds,
    };
    net.send(message.emit(), &[]);
}

#[test]
fn a_logout_that_the_target_asked_for_and_does_not_answer_ends_in_a_new_login() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    net.expect_command();
    ask_for_logout(&mut net, 4);
    net.tick();
    net.expect(Opcode::LogoutRequest);
    net.tick();
    let (engine, end, _) = net.end();
    assert_eq!(end, ConnectionEnd::LogoutAskedByTarget);
    assert!(!end.is_logout() && crate::recovery::may_heal(&end));
    net.connect(engine);
    net.run();
    let command = net.expect_command();
    net.good(&command);
    assert!(net.result(1).is_ok());
}

#[test]
fn a_target_that_hangs_up_on_our_logout_ends_the_session() {
    let mut net = Net::new(INFINITE);
    net.app().controls.push_back(Control::Logout);
    net.run();
    net.expect(Opcode::LogoutRequest);
    net.initiator.as_mut().unwrap().handle_stream_end(StreamEnd::EndOfStream, net.now);
    let (_, end, _) = net.end();
    assert!(end.is_logout(), "{end:?}");

    // On one that the target asked for, it does not.
    let mut net = Net::new(INFINITE);
    ask_for_logout(&mut net, 4);
    net.expect(Opcode::LogoutRequest);
    net.initiator.as_mut().unwrap().handle_stream_end(StreamEnd::EndOfStream, net.now);
    let (_, end, _) = net.end();
    assert!(!end.is_logout(), "{end:?}");
}
