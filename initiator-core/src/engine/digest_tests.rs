//! PDUs of the target whose data segment fails its digest (RFC 7143 7.8).

use iscsi_proto::datamover::MalformedPdu;

use super::*;

/// A session with data digests, of which the next PDU that the target sends fails its own.
fn spoiled() -> Net {
    let mut net = Net::new(INFINITE);
    let engine = net.cut();
    net.data_digest = Digest::Crc32c;
    net.connect(engine);
    net.app().commands.push_back(read(1));
    net.run();
    net.spoil = true;
    net
}

/// Without SNACK nobody can ask for it again: it counts as lost, and the connection ends with it.
fn is_lost(mut net: Net) {
    let (mut engine, end, _) = net.end();
    assert_eq!(end, ConnectionEnd::BadPdu(MalformedPdu::DataDigest));
    assert!(engine.app().done.is_empty(), "the command is not over");
}

#[test]
fn a_response_that_fails_its_digest_is_lost() {
    let mut net = spoiled();
    let command = net.expect_command();
    net.respond(&command, &[], Status::CheckCondition, &[0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0]);
    is_lost(net);
}

#[test]
fn what_the_target_sends_of_itself_and_fails_its_digest_is_lost() {
    let mut net = spoiled();
    let (stat_sn, exp_cmd_sn, max_cmd_sn) = net.numbers();
    let message = AsyncMessage {
        event: AsyncEvent::ScsiEvent,
        lun: 0,
        stat_sn,
        exp_cmd_sn,
        max_cmd_sn,
        parameter1: 0,
        parameter2: 0,
        parameter3: 0,
    };
    net.send(message.emit(), &[0; 20]);
    is_lost(net);
}
