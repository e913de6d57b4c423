//! The target against initiators of all kinds.

use super::*;

fn refusal(reply: LoginReply) -> (LoginStatus, LoginError) {
    let LoginOutcome::Refused(error) = reply.outcome else { panic!("{:?}", reply.outcome) };
    assert_eq!(reply.response.status, error.status());
    // RFC 7143 6.3.1: reserved in a reject.
    assert_eq!((reply.response.nsg, reply.response.csg), (None, SECURITY));
    (reply.response.status, error)
}

#[test]
fn a_stage_ends_right_behind_auth_method_none() {
    // As boot firmware does it.
    let mut target = target();
    let reply = target.handle_request(
        &request(SECURITY, Some(OPERATIONAL)),
        &names("AuthMethod=None SessionType=Normal"),
        &quiet(),
    );
    assert_eq!(reply.response.nsg, Some(OPERATIONAL));
    assert_eq!(reply.response.isid, [0x80, 1, 2, 3, 4, 5]);
    assert_eq!(words(&reply.data), "TargetPortalGroupTag=7 AuthMethod=None");
    let reply =
        target.handle_request(&request(OPERATIONAL, Some(FULL)), &text("MaxConnections=1 InitialR2T=No"), &quiet());
    assert_eq!(words(&reply.data), "MaxConnections=1 InitialR2T=No MaxRecvDataSegmentLength=262144");
    assert_eq!((reply.response.nsg, reply.response.tsih), (Some(FULL), 0x55));
    assert!(matches!(reply.outcome, LoginOutcome::Established(_)));
    assert_eq!(refusal(target.handle_request(&request(OPERATIONAL, Some(FULL)), b"", &quiet())).1, LoginError::Over);
}

#[test]
fn auth_method_none_may_be_repeated_where_nobody_asks_for_authentication() {
    for first in ["AuthMethod=None", ""] {
        let mut target = target();
        target.handle_request(&request(SECURITY, Some(OPERATIONAL)), &names(first), &quiet());
        let again = text("AuthMethod=None InitialR2T=No");
        let reply = target.handle_request(&request(OPERATIONAL, Some(FULL)), &again, &quiet());
        assert_eq!(words(&reply.data), "AuthMethod=None InitialR2T=No MaxRecvDataSegmentLength=262144");
        assert!(matches!(reply.outcome, LoginOutcome::Established(_)));
    }
    let reply = target().handle_request(&request(OPERATIONAL, Some(FULL)), &names("AuthMethod=None"), &quiet());
    assert!(matches!(reply.outcome, LoginOutcome::Established(_)));
    // Where somebody does, it is out of its stage, and nobody's way in.
    let authority = TestAuthority::guarded();
    let reply = target().handle_request(&request(OPERATIONAL, Some(FULL)), &names("AuthMethod=None"), &authority);
    assert_eq!(refusal(reply).0, LoginStatus::AUTHENTICATION_FAILURE);
    assert!(authority.established.borrow().is_empty());
}

#[test]
fn both_stages_may_be_all_but_left_out() {
    // RFC 7143 6.3.1: no proposal at all.
    let mut one = target();
    let reply = one.handle_request(&request(SECURITY, Some(OPERATIONAL)), &names(""), &quiet());
    assert_eq!((reply.response.nsg, words(&reply.data).as_str()), (Some(OPERATIONAL), "TargetPortalGroupTag=7"));
    // All defaults.
    let reply = target().handle_request(&request(OPERATIONAL, Some(FULL)), &names(""), &quiet());
    let LoginOutcome::Established(grant) = reply.outcome else { panic!() };
    let max_recv_data_segment_length = 262_144;
    assert_eq!(grant.parameters, Parameters { max_recv_data_segment_length, ..Parameters::default() });
    // From security to the Full Feature Phase.
    let reply = target().handle_request(&request(SECURITY, Some(FULL)), &names("AuthMethod=CHAP,None"), &quiet());
    let LoginOutcome::Established(grant) = reply.outcome else { panic!() };
    assert_eq!((grant.parameters, reply.response.nsg), (Parameters::default(), Some(FULL)));
    // Not in a hurry: no T bit until asked for.
    let mut slow = target();
    for (nsg, data) in [(None, names("")), (None, text("InitialR2T=Yes")), (Some(FULL), Vec::new())] {
        let reply = slow.handle_request(&request(OPERATIONAL, nsg), &data, &quiet());
        assert_eq!(reply.response.nsg, nsg);
    }
}

#[test]
fn a_target_directs_the_negotiation_where_the_initiator_proposes_nothing() {
    // RFC 7143 6.3.2
    let authority = TestAuthority::guarded();
    let mut target = target();
    let reply = target.handle_request(&request(SECURITY, Some(OPERATIONAL)), &names(""), &authority);
    assert!(words(&reply.data).ends_with("AuthMethod=CHAP") && reply.response.nsg.is_none());
    let reply = target.handle_request(&request(SECURITY, None), &text("AuthMethod=CHAP CHAP_A=5"), &authority);
    assert!(words(&reply.data).starts_with("CHAP_A=5 CHAP_I="), "{}", words(&reply.data));
    // Or is refused when it insists.
    let mut insisting = TargetLogin::new(TargetLoginConfig::default(), [7; 64]);
    insisting.handle_request(&request(SECURITY, Some(OPERATIONAL)), &names(""), &authority);
    let reply = insisting.handle_request(&request(SECURITY, Some(OPERATIONAL)), b"", &authority);
    assert_eq!(refusal(reply).0, LoginStatus::AUTHENTICATION_FAILURE);
}

#[test]
fn the_security_stage_is_not_left_before_it_is_passed() {
    let authority = TestAuthority::guarded();
    let mut target = target();
    for data in [names("AuthMethod=CHAP"), text("CHAP_A=7,5"), Vec::new()] {
        let reply = target.handle_request(&request(SECURITY, Some(FULL)), &data, &authority);
        assert_eq!(reply.response.nsg, None);
        assert!(matches!(reply.outcome, LoginOutcome::Continue));
    }
    let reply = target.handle_request(&request(OPERATIONAL, Some(FULL)), b"", &authority);
    assert_eq!(refusal(reply).0, LoginStatus::INITIATOR_ERROR);
    assert!(authority.established.borrow().is_empty());
}

#[test]
fn breaches_of_the_login_phase_are_refused_with_their_status() {
    let first = |stage, data: &[u8]| refusal(target().handle_request(&request(stage, Some(FULL)), data, &quiet()));
    let initiator_error = LoginStatus::INITIATOR_ERROR;
    let missing = LoginStatus::MISSING_PARAMETER;
    for (stage, data, status) in [
        (OPERATIONAL, text(&format!("TargetName={DISK}")), missing),
        (OPERATIONAL, text(&format!("InitiatorName={HOST}")), missing),
        (SECURITY, Vec::new(), missing),
        (OPERATIONAL, names("SessionType=Strange"), LoginStatus::SESSION_TYPE_NOT_SUPPORTED),
        (OPERATIONAL, names("AuthMethod=CHAP"), initiator_error),
        (OPERATIONAL, names("AuthMethod=CHAP,None"), initiator_error),
        (OPERATIONAL, names("AuthMethod=None AuthMethod=None"), initiator_error),
        (SECURITY, names("HeaderDigest=None"), initiator_error),
        (SECURITY, names("CHAP_A=5"), initiator_error),
        (SECURITY, names("AuthMethod=None AuthMethod=None"), initiator_error),
        (SECURITY, names("AuthMethod=KRB5,SRP"), LoginStatus::AUTHENTICATION_FAILURE),
        (OPERATIONAL, names("TargetAlias=x"), initiator_error),
        (OPERATIONAL, names("SendTargets=All"), initiator_error),
        (OPERATIONAL, names("InitialR2T=No InitialR2T=No"), initiator_error),
        (OPERATIONAL, names("InitialR2T=Reject"), initiator_error),
        (OPERATIONAL, names("InitiatorName=iqn.2024-01.com.example:other"), initiator_error),
        (OPERATIONAL, text("InitiatorName= TargetName=a"), initiator_error),
        (OPERATIONAL, b"InitiatorName".to_vec(), initiator_error),
    ] {
        let (got, error) = first(stage, &data);
        assert_eq!(got, status, "{}: {error}", String::from_utf8_lossy(&data));
    }
    let long = format!("InitiatorName={} TargetName=a", "i".repeat(224));
    assert!(matches!(
        first(OPERATIONAL, &text(&long)).1,
        LoginError::Key(KeyError::Value { key: Key::InitiatorName, .. })
    ));
}

#[test]
fn fields_of_the_first_request_stay() {
    let base = request(OPERATIONAL, None);
    for (changed, what) in [
        (LoginRequest { isid: [0; 6], ..base }, "the ISID"),
        (LoginRequest { tsih: 1, ..base }, "the TSIH"),
        (LoginRequest { itt: 1, ..base }, "the Initiator Task Tag"),
        (LoginRequest { cid: 9, ..base }, "the CID"),
        (LoginRequest { version_max: 1, ..base }, "the versions"),
    ] {
        let mut target = target();
        target.handle_request(&base, &names(""), &quiet());
        let (status, error) = refusal(target.handle_request(&changed, b"", &quiet()));
        assert_eq!((status, error), (LoginStatus::INITIATOR_ERROR, LoginError::FieldChanged(what)));
    }
    let version = LoginRequest { version_min: 1, version_max: 2, ..base };
    assert_eq!(refusal(target().handle_request(&version, &names(""), &quiet())).0, LoginStatus::UNSUPPORTED_VERSION);
    // RFC 7143 6.3: no way back, none to the same stage, none to another.
    for (csg, nsg) in [(SECURITY, None), (OPERATIONAL, Some(OPERATIONAL)), (OPERATIONAL, Some(SECURITY))] {
        let mut target = target();
        target.handle_request(&base, &names(""), &quiet());
        let reply = target.handle_request(&LoginRequest { csg, nsg, ..base }, b"", &quiet());
        assert_eq!(refusal(reply).0, LoginStatus::INITIATOR_ERROR);
    }
}

#[test]
fn a_pdu_that_does_not_belong_into_login_ends_it() {
    let nop = NopOut { immediate: true, lun: 0, itt: 7, ttt: RESERVED_TAG, cmd_sn: Serial(1), exp_stat_sn: Serial(2) };
    // RFC 7143 4.2.3: before login without a word, in login with a reject.
    assert!(target().handle_pdu(&nop.emit(), b"", &quiet()).is_none());
    let mut started = target();
    started.handle_request(&request(OPERATIONAL, None), &names(""), &quiet());
    let reply = started.handle_pdu(&nop.emit(), b"", &quiet()).unwrap();
    assert_eq!(refusal(reply).0, LoginStatus::INVALID_DURING_LOGIN);
    // T and C together, a reserved stage.
    for flags in [0xc7, 0x88, 0x0c, 0x86] {
        let mut bhs = request(OPERATIONAL, None).emit();
        bhs.0[1] = flags;
        let reply = target().handle_pdu(&bhs, &names(""), &quiet()).unwrap();
        assert_eq!(reply.response.itt, 0x1234);
        assert_eq!(refusal(reply).0, LoginStatus::INITIATOR_ERROR);
    }
}

#[test]
fn names_may_be_repeated_but_not_changed() {
    let mut target = target();
    target.handle_request(&request(SECURITY, Some(OPERATIONAL)), &names("AuthMethod=None"), &quiet());
    let reply = target.handle_request(&request(OPERATIONAL, None), &names(""), &quiet());
    assert!(matches!(reply.outcome, LoginOutcome::Continue));
    let reply =
        target.handle_request(&request(OPERATIONAL, None), &text("TargetName=iqn.2024-01.com.example:other"), &quiet());
    assert_eq!(refusal(reply).1, LoginError::Key(KeyError::Repeated(Key::TargetName)));
}

#[test]
fn a_login_is_bounded() {
    let config = TargetLoginConfig {
        text: TextLimits { max_bytes: 200, max_pairs: 5 },
        max_requests: 8,
        ..TargetLoginConfig::default()
    };
    // Empty requests without end.
    let mut target = TargetLogin::new(config.clone(), [7; 64]);
    target.handle_request(&request(OPERATIONAL, None), &names(""), &quiet());
    for _ in 1..8 {
        let reply = target.handle_request(&request(OPERATIONAL, None), b"", &quiet());
        assert!(matches!(reply.outcome, LoginOutcome::Continue));
    }
    let reply = target.handle_request(&request(OPERATIONAL, None), b"", &quiet());
    assert_eq!(refusal(reply).1, LoginError::TooManyRequests(8));
    // A text without end; each C bit is answered without data.
    let mut target = TargetLogin::new(config.clone(), [7; 64]);
    let more = LoginRequest { incomplete: true, ..request(OPERATIONAL, None) };
    for _ in 0..2 {
        let reply = target.handle_request(&more, &[b'a'; 100], &quiet());
        assert!(reply.data.is_empty() && !reply.response.incomplete);
    }
    let reply = target.handle_request(&more, b"a", &quiet());
    assert_eq!(refusal(reply).1, LoginError::Text(TextError::TooLong { limit: 200 }));
    let reply = TargetLogin::new(config, [7; 64]).handle_request(&more, &[b'a'; 201], &quiet());
    assert_eq!(refusal(reply).0, LoginStatus::INITIATOR_ERROR);
    // An initiator does not go on for ever either.
    let mut initiator = InitiatorLogin::new(InitiatorLoginConfig { max_requests: 8, ..wishes() }, [9; 64]);
    let (mut last, _) = initiator.first_request();
    let error = loop {
        match initiator.handle_response(&granted(&last, OPERATIONAL, None), b"") {
            Ok(InitiatorStep::Send(next, _)) => last = next,
            Ok(_) => panic!(),
            Err(error) => break error,
        }
    };
    assert_eq!(error, LoginError::TooManyRequests(8));
}

#[test]
fn a_target_insists_on_its_limits_in_another_round() {
    let offer = Offer { max_burst_length: 65_536, first_burst_length: 4096, ..Offer::default() };
    let authority = TestAuthority { offer, alias: None, ..TestAuthority::open() };
    let mut target = target();
    let reply = target.handle_request(&request(OPERATIONAL, Some(FULL)), &names(""), &authority);
    // RFC 7143 6.3: no transition with a key that needs an answer.
    assert_eq!(reply.response.nsg, None);
    assert_eq!(
        words(&reply.data),
        "TargetPortalGroupTag=7 MaxBurstLength=65536 FirstBurstLength=4096 MaxRecvDataSegmentLength=262144"
    );
    let answer = text("MaxBurstLength=32768 FirstBurstLength=4096");
    let reply = target.handle_request(&request(OPERATIONAL, Some(FULL)), &answer, &authority);
    let LoginOutcome::Established(grant) = reply.outcome else { panic!() };
    assert_eq!((grant.parameters.max_burst_length, grant.parameters.first_burst_length), (32_768, 4096));
}
