//! Control-type PDUs other than those of a command (RFC 7145 7.3).

use super::*;
use iscsi_proto::datamover::MalformedPdu;

// RFC 7145 7.3.2 to 7.3.13, 9.1: one Send each, behind an iSER header that advertises nothing.
#[test]
fn all_that_a_target_says_is_one_send_each() {
    let mut rig = Rig::new();
    let opcodes = [
        Opcode::ScsiResponse,
        Opcode::TaskManagementResponse,
        Opcode::TextResponse,
        Opcode::LogoutResponse,
        Opcode::AsyncMessage,
        Opcode::Reject,
        Opcode::NopIn,
    ];
    for (len, opcode) in opcodes.into_iter().enumerate() {
        rig.mover.send_control(Bhs::new(opcode), &[opcode as u8; 64][..48 + len]);
    }
    let sent = rig.sent();
    assert_eq!(sent.len(), opcodes.len());
    for (len, ((header, bhs, data, invalidate), opcode)) in sent.into_iter().zip(opcodes).enumerate() {
        assert_eq!((header, bhs.opcode(), invalidate), (NONE, Ok(opcode), None));
        assert_eq!(data, [opcode as u8; 64][..48 + len]);
    }
}

// RFC 7145 7.2.
#[test]
fn all_that_an_initiator_says_is_told_with_its_data() {
    let mut rig = Rig::new();
    for opcode in [
        Opcode::NopOut,
        Opcode::TaskManagementRequest,
        Opcode::TextRequest,
        Opcode::LogoutRequest,
        // RFC 7145 7.3.9: it is for the session to reject.
        Opcode::LoginRequest,
    ] {
        rig.come(&message(NONE, Bhs::new(opcode), &[], &[opcode as u8; 50]));
        assert!(matches!(rig.poll(), Some(Notification::Control(bhs)) if bhs.opcode() == Ok(opcode)));
        assert_eq!(rig.mover.control_data(), [opcode as u8; 50]);
    }
}

// RFC 7145 7.3.11: a protocol error, and no reason to end the connection.
#[test]
fn a_snack_is_a_protocol_error() {
    let mut rig = Rig::new();
    let snack = Bhs::new(Opcode::SnackRequest);
    rig.come(&message(NONE, snack, &[], &[]));
    let Some(Notification::Malformed { bhs, error: MalformedPdu::Protocol(_) }) = rig.poll() else { panic!() };
    assert_eq!(bhs, snack);
    rig.command(NONE, COMMAND);
}
