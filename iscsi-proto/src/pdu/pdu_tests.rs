//! Every PDU: what is emitted parses to the same, fields lie where RFC 7143 section 11 draws them, and no header panics
//! a parser.

use proptest::prelude::*;

use super::*;
use crate::serial::Serial;

fn serial() -> impl Strategy<Value = Serial> {
    any::<u32>().prop_map(Serial)
}

fn residual() -> impl Strategy<Value = Residual> {
    prop_oneof![
        Just(Residual::None),
        any::<u32>().prop_map(Residual::Underflow),
        any::<u32>().prop_map(Residual::Overflow)
    ]
}

fn stages() -> impl Strategy<Value = (bool, Stage, Option<Stage>)> {
    prop_oneof![
        any::<bool>().prop_map(|c| (c, Stage::SecurityNegotiation, None)),
        any::<bool>().prop_map(|c| (c, Stage::LoginOperationalNegotiation, None)),
        Just((false, Stage::SecurityNegotiation, Some(Stage::LoginOperationalNegotiation))),
        Just((false, Stage::LoginOperationalNegotiation, Some(Stage::FullFeaturePhase))),
    ]
}

/// Whether the four bytes from `at` on are `value`.
fn bytes_at(bhs: &Bhs, at: usize, value: u32) -> bool {
    bhs.0[at..at + 4] == value.to_be_bytes()
}

proptest! {
    #[test]
    fn scsi_command(flags: [bool; 4], attribute in 0u8..5, priority in 0u8..16, lun: u64, words: [u32; 2],
        sn in serial(), stat in serial(), cdb: [u8; 16]) {
        let attribute = [TaskAttribute::Untagged, TaskAttribute::Simple, TaskAttribute::Ordered,
            TaskAttribute::HeadOfQueue, TaskAttribute::Aca][usize::from(attribute)];
        let [immediate, is_final, read, write] = flags;
        let pdu = ScsiCommand { immediate, is_final, read, write, attribute, priority, lun, itt: words[0],
            expected_data_transfer_length: words[1], cmd_sn: sn, exp_stat_sn: stat, cdb };
        let bhs = pdu.emit();
        prop_assert_eq!(ScsiCommand::parse(&bhs), Ok(pdu));
        prop_assert!(bytes_at(&bhs, 16, words[0]));
        prop_assert!(bytes_at(&bhs, 20, words[1]));
        prop_assert!(bytes_at(&bhs, 24, sn.0));
        prop_assert!(bytes_at(&bhs, 28, stat.0));
        prop_assert_eq!(bhs.0[1] & 0x18, 0, "reserved bits");
    }

    #[test]
    fn scsi_response(bidirectional in residual(), residual in residual(), status: u8, status_qualifier: u16,
        words: [u32; 3], sns in [serial(), serial(), serial()]) {
        let pdu = ScsiResponse {
            bidirectional_read_residual: bidirectional, residual, response: ResponseCode::Completed, status,
                status_qualifier, itt: words[0],
            snack_tag: words[1], stat_sn: sns[0], exp_cmd_sn: sns[1], max_cmd_sn: sns[2], exp_data_sn: words[2],
        };
        let bhs = pdu.emit();
        prop_assert_eq!(ScsiResponse::parse(&bhs), Ok(pdu));
        prop_assert!(bytes_at(&bhs, 24, sns[0].0) && bytes_at(&bhs, 28, sns[1].0));
        prop_assert!(bytes_at(&bhs, 32, sns[2].0) && bytes_at(&bhs, 36, words[2]));
        prop_assert_eq!(bhs.0[1] & 0xe1, 0x80);
    }

    #[test]
    fn task_management(immediate: bool, code in 0u8..0x80, lun: u64, words: [u32; 3], sns in [serial(), serial(),
        serial()]) {
        let mut bhs = Bhs::new(Opcode::TaskManagementRequest);
        bhs.0[1] = 0x80 | code;
        let function = TaskManagementRequest::parse(&bhs).unwrap().function;
        prop_assert_eq!(function.is_ok(), (1..=12).contains(&code));
        let pdu = TaskManagementRequest {
            immediate, function, lun, itt: words[0], referenced_task_tag: words[1], cmd_sn: sns[0],
                exp_stat_sn: sns[1], ref_cmd_sn: sns[2], exp_data_sn: words[2],
        };
        prop_assert_eq!(TaskManagementRequest::parse(&pdu.emit()), Ok(pdu));
    }

    #[test]
    fn task_management_response(response in 0u8..9, additional in 0u32..0x100_0000, itt: u32, sns in [serial(),
        serial(), serial()]) {
        let code = if response == 8 { 255 } else { response };
        let mut bhs = Bhs::new(Opcode::TaskManagementResponse);
        bhs.0[2] = code;
        let response = TaskManagementResponse::parse(&bhs).unwrap().response;
        let pdu = TaskManagementResponse { response, additional, itt, stat_sn: sns[0], exp_cmd_sn: sns[1],
            max_cmd_sn: sns[2] };
        let bhs = pdu.emit();
        prop_assert_eq!(bhs.0[2], code);
        prop_assert_eq!(TaskManagementResponse::parse(&bhs), Ok(pdu));
    }

    #[test]
    fn data(is_final: bool, acknowledge: bool, with_status: bool, status: u8, residual in residual(), lun: u64,
        words: [u32; 4], sns in [serial(), serial(), serial()]) {
        let out = DataOut { is_final, lun, itt: words[0], ttt: words[1], exp_stat_sn: sns[0], data_sn: words[2],
            buffer_offset: words[3] };
        let bhs = out.emit();
        prop_assert_eq!(DataOut::parse(&bhs), Ok(out));
        prop_assert!(bytes_at(&bhs, 36, words[2]) && bytes_at(&bhs, 40, words[3]));
        let status = with_status.then_some(DataInStatus { status, stat_sn: sns[0], residual });
        let data_in = DataIn {
            is_final: is_final || with_status, acknowledge, status, lun, itt: words[0], ttt: words[1],
                exp_cmd_sn: sns[1], max_cmd_sn: sns[2],
            data_sn: words[2], buffer_offset: words[3],
        };
        prop_assert_eq!(DataIn::parse(&data_in.emit()), Ok(data_in));
    }

    #[test]
    fn r2t_and_snack(lun: u64, words: [u32; 5], kind in 0u8..4, sns in [serial(), serial(), serial()]) {
        let r2t = R2t {
            lun, itt: words[0], ttt: words[1], stat_sn: sns[0], exp_cmd_sn: sns[1], max_cmd_sn: sns[2],
                r2t_sn: words[2], buffer_offset: words[3],
            desired_data_transfer_length: words[4].max(1),
        };
        let bhs = r2t.emit();
        prop_assert_eq!(R2t::parse(&bhs), Ok(r2t));
        prop_assert!(bytes_at(&bhs, 44, words[4].max(1)));
        let kind = [SnackType::DataOrR2t, SnackType::Status, SnackType::DataAck, SnackType::RData][usize::from(kind)];
        let snack = SnackRequest { kind, lun, itt: words[0], ttt_or_snack_tag: words[1], exp_stat_sn: sns[0],
            beg_run: words[2], run_length: words[3] };
        prop_assert_eq!(SnackRequest::parse(&snack.emit()), Ok(snack));
    }

    #[test]
    fn login((incomplete, csg, nsg) in stages(), versions: [u8; 2], isid: [u8; 6], tsih: u16, itt: u32, cid: u16,
        status: u16, sns in [serial(), serial(), serial()]) {
        let request = LoginRequest {
            incomplete, csg, nsg, version_max: versions[0], version_min: versions[1], isid, tsih, itt, cid,
                cmd_sn: sns[0], exp_stat_sn: sns[1],
        };
        let bhs = request.emit();
        prop_assert_eq!(LoginRequest::parse(&bhs), Ok(request));
        prop_assert!(bhs.immediate(), "RFC 7143 11.12: always immediate");
        prop_assert_eq!(&bhs.0[8..14], &isid);
        let response = LoginResponse {
            incomplete, csg, nsg, version_max: versions[0], version_active: versions[1], isid, tsih, itt,
                stat_sn: sns[0], exp_cmd_sn: sns[1],
            max_cmd_sn: sns[2], status: LoginStatus(status),
        };
        let bhs = response.emit();
        prop_assert_eq!(LoginResponse::parse(&bhs), Ok(response));
        prop_assert_eq!(&bhs.0[36..38], &status.to_be_bytes());
    }

    #[test]
    fn text_and_logout(immediate: bool, flags in 0u8..3, lun: u64, words: [u32; 2], cid: u16, times: [u16; 2],
        sns in [serial(), serial(), serial()]) {
        let (is_final, incomplete) = (flags == 1, flags == 2);
        let request = TextRequest { immediate, is_final, incomplete, lun, itt: words[0], ttt: words[1], cmd_sn: sns[0],
            exp_stat_sn: sns[1] };
        prop_assert_eq!(TextRequest::parse(&request.emit()), Ok(request));
        let response = TextResponse { is_final, incomplete, lun, itt: words[0], ttt: words[1], stat_sn: sns[0],
            exp_cmd_sn: sns[1], max_cmd_sn: sns[2] };
        prop_assert_eq!(TextResponse::parse(&response.emit()), Ok(response));
        let reason = [LogoutReason::CloseSession, LogoutReason::CloseConnection,
            LogoutReason::RemoveForRecovery][usize::from(flags)];
        let request = LogoutRequest { immediate, reason, itt: words[0], cid, cmd_sn: sns[0], exp_stat_sn: sns[1] };
        prop_assert_eq!(LogoutRequest::parse(&request.emit()), Ok(request));
        let result = [LogoutResult::Closed, LogoutResult::CidNotFound,
            LogoutResult::RecoveryNotSupported][usize::from(flags)];
        let response = LogoutResponse {
            response: result, itt: words[0], stat_sn: sns[0], exp_cmd_sn: sns[1], max_cmd_sn: sns[2],
                time2wait: times[0], time2retain: times[1],
        };
        prop_assert_eq!(LogoutResponse::parse(&response.emit()), Ok(response));
    }

    #[test]
    fn nop_async_and_reject(immediate: bool, lun: u64, words: [u32; 3], parameters: [u16; 3], sns in [serial(),
        serial(), serial()]) {
        let out = NopOut { immediate, lun, itt: words[0], ttt: words[1], cmd_sn: sns[0], exp_stat_sn: sns[1] };
        prop_assert_eq!(NopOut::parse(&out.emit()), Ok(out));
        let nop_in = NopIn { lun, itt: words[0], ttt: words[1], stat_sn: sns[0], exp_cmd_sn: sns[1],
            max_cmd_sn: sns[2] };
        prop_assert_eq!(NopIn::parse(&nop_in.emit()), Ok(nop_in));
        let message = AsyncMessage {
            event: AsyncEvent::LogoutRequest, lun, stat_sn: sns[0], exp_cmd_sn: sns[1], max_cmd_sn: sns[2],
                parameter1: parameters[0],
            parameter2: parameters[1], parameter3: parameters[2],
        };
        let bhs = message.emit();
        prop_assert_eq!(AsyncMessage::parse(&bhs), Ok(message));
        prop_assert!(bytes_at(&bhs, 16, RESERVED_TAG), "RFC 7143 11.9: the tag of no task");
        let reject = Reject { reason: RejectReason::ProtocolError, stat_sn: sns[0], exp_cmd_sn: sns[1],
            max_cmd_sn: sns[2], data_sn: words[2] };
        let bhs = reject.emit();
        prop_assert_eq!(Reject::parse(&bhs), Ok(reject));
        prop_assert!(bytes_at(&bhs, 16, RESERVED_TAG), "RFC 7143 11.17: the tag of no task");
    }

    #[test]
    fn no_header_panics_a_parser(bytes in prop::array::uniform32(any::<u8>()), rest: [u8; 16]) {
        let mut all = [0; BHS_LEN];
        all[..32].copy_from_slice(&bytes);
        all[32..].copy_from_slice(&rest);
        let mut bhs = Bhs(all);
        for code in 0..0x40 {
            bhs.0[0] = code;
            let (s, c) = (ScsiCommand::parse(&bhs).is_ok(), bhs.opcode());
            prop_assert!(!s || c == Ok(Opcode::ScsiCommand), "a parser takes its own opcode alone");
            let _ = (ScsiResponse::parse(&bhs), TaskManagementRequest::parse(&bhs),
                TaskManagementResponse::parse(&bhs));
            let _ = (LoginRequest::parse(&bhs), LoginResponse::parse(&bhs), TextRequest::parse(&bhs),
                TextResponse::parse(&bhs));
            let _ = (LogoutRequest::parse(&bhs), LogoutResponse::parse(&bhs), DataOut::parse(&bhs),
                DataIn::parse(&bhs));
            let _ = (R2t::parse(&bhs), SnackRequest::parse(&bhs), AsyncMessage::parse(&bhs), Reject::parse(&bhs));
            let _ = (NopOut::parse(&bhs), NopIn::parse(&bhs));
        }
    }
}

#[test]
fn contradictions_are_format_errors() {
    let mut login = Bhs::new(Opcode::LoginRequest);
    login.0[1] = 0xc1;
    assert!(
        matches!(LoginRequest::parse(&login), Err(PduError::InvalidField { field: "T with C", .. })),
        "RFC 7143 11.12.2"
    );
    let mut text = Bhs::new(Opcode::TextRequest);
    text.0[1] = 0xc0;
    assert!(
        matches!(TextRequest::parse(&text), Err(PduError::InvalidField { field: "F with C", .. })),
        "RFC 7143 11.10.2"
    );
    let mut data = Bhs::new(Opcode::DataIn);
    data.0[1] = 0x01;
    assert!(matches!(DataIn::parse(&data), Err(PduError::InvalidField { .. })), "RFC 7143 11.7.1: S only with F");
    let mut response = Bhs::new(Opcode::ScsiResponse);
    response.0[1] = 0x86;
    assert!(
        matches!(ScsiResponse::parse(&response), Err(PduError::InvalidField { .. })),
        "RFC 7143 11.4.1: O and U exclude each other"
    );
    assert!(
        matches!(R2t::parse(&Bhs::new(Opcode::R2t)), Err(PduError::InvalidField { value: 0, .. })),
        "RFC 7143 11.8.4"
    );
    assert_eq!(Bhs([0x1f; BHS_LEN]).opcode(), Err(PduError::UnknownOpcode(0x1f)));
}

#[test]
fn padding_reaches_the_next_word() {
    assert_eq!([0, 1, 2, 3, 4, 5].map(padding), [0, 3, 2, 1, 0, 3]);
}
