//! The initiator against targets of all kinds.

use super::*;

#[test]
fn a_target_that_cannot_prove_itself_is_left() {
    let rogue = |secret: &str| {
        let mutual = Some(("storage".to_string(), ChapSecret::new(secret)));
        TestAuthority {
            accounts: vec![ChapAccount { user: "alice".into(), secret: ChapSecret::new(SECRET), mutual }],
            ..TestAuthority::open()
        }
    };
    let mutual = || InitiatorLoginConfig { credentials: chap(SECRET, proof()), ..wishes() };
    let (error, refused) = login(mutual(), TargetLoginConfig::default(), &rogue("a guess of the rogue")).unwrap_err();
    assert!(matches!(error, LoginError::Chap(_)) && refused.is_none(), "{error}");
    // One that grants the transition without a word.
    let mut initiator = InitiatorLogin::new(mutual(), [9; 64]);
    let (request, _) = initiator.first_request();
    let response = |csg, nsg, data: &str| (granted(&request, csg, nsg), data.as_bytes().to_vec());
    let (first, data) = response(Stage::SecurityNegotiation, None, "AuthMethod=CHAP\0");
    initiator.handle_response(&first, &data).unwrap();
    let (second, data) =
        response(Stage::SecurityNegotiation, None, "CHAP_A=5\0CHAP_I=1\0CHAP_C=0x000102030405060708090a0b0c0d0e0f\0");
    let InitiatorStep::Send(proof, _) = initiator.handle_response(&second, &data).unwrap() else { panic!() };
    assert_eq!(proof.nsg, Some(Stage::LoginOperationalNegotiation));
    let (third, data) = response(Stage::SecurityNegotiation, Some(Stage::LoginOperationalNegotiation), "");
    assert_eq!(initiator.handle_response(&third, &data).unwrap_err(), LoginError::TargetNotAuthenticated);
    assert_eq!(initiator.handle_response(&third, &data).unwrap_err(), LoginError::Over);
}

#[test]
fn an_initiator_says_each_name_once() {
    let with = InitiatorLoginConfig { credentials: chap(SECRET, proof()), ..wishes() };
    let mut initiator = InitiatorLogin::new(with, [9; 64]);
    let mut target = target();
    let authority = TestAuthority::guarded();
    let (mut request, mut data) = initiator.first_request();
    // RFC 7143 13.4, 13.5: some targets end the login over a repeated name.
    let mut all = words(&data);
    loop {
        let reply = target.handle_request(&request, &data, &authority);
        match initiator.handle_response(&reply.response, &reply.data).unwrap() {
            InitiatorStep::Send(next, bytes) => (request, data) = (next, bytes),
            _ => break,
        }
        all = format!("{all} {}", words(&data));
    }
    for key in ["InitiatorName", "TargetName", "SessionType", "AuthMethod", "MaxBurstLength"] {
        assert_eq!(all.split_whitespace().filter(|pair| pair.starts_with(&format!("{key}="))).count(), 1, "{all}");
    }
}

#[test]
fn a_target_that_breaks_the_rules_is_left_with_a_sentence() {
    let first = |config: InitiatorLoginConfig, response: &dyn Fn(&LoginRequest) -> LoginResponse, data: &str| {
        let mut initiator = InitiatorLogin::new(config, [9; 64]);
        let (request, _) = initiator.first_request();
        initiator.handle_response(&response(&request), &text(data)).map(|_| ()).unwrap_err().to_string()
    };
    let fair = |csg, nsg| move |request: &LoginRequest| granted(request, csg, nsg);
    let secure = || InitiatorLoginConfig { credentials: chap(SECRET, None), ..wishes() };
    for (error, part) in [
        (first(secure(), &fair(SECURITY, Some(OPERATIONAL)), "AuthMethod=CHAP"), "without being asked to"),
        (first(secure(), &fair(SECURITY, None), "AuthMethod=KRB5"), "was not offered"),
        (first(secure(), &fair(SECURITY, None), "AuthMethod=Reject"), "check the CHAP settings"),
        (first(secure(), &fair(SECURITY, None), ""), "did not answer AuthMethod"),
        (first(secure(), &fair(SECURITY, None), "AuthMethod=CHAP MaxBurstLength=512"), "where it does not belong"),
        (first(secure(), &fair(SECURITY, None), "CHAP_A=5"), "AuthMethod"),
        (first(wishes(), &fair(SECURITY, None), ""), "another stage"),
        (first(wishes(), &fair(OPERATIONAL, Some(OPERATIONAL)), ""), "was not asked for"),
        (first(wishes(), &fair(OPERATIONAL, None), "InitiatorName=me"), "only the other side"),
        (first(wishes(), &fair(OPERATIONAL, None), "TargetName=NotUnderstood"), "does not understand TargetName"),
        (first(wishes(), &fair(OPERATIONAL, None), "TargetPortalGroupTag=70000"), "TargetPortalGroupTag"),
        (first(wishes(), &fair(OPERATIONAL, None), "MaxBurstLength=16777215"), "the key's rules forbid"),
        (
            first(wishes(), &|request| LoginResponse { itt: 99, ..granted(request, OPERATIONAL, None) }, ""),
            "Initiator Task Tag",
        ),
        (
            first(wishes(), &|request| LoginResponse { version_active: 1, ..granted(request, OPERATIONAL, None) }, ""),
            "version",
        ),
    ] {
        assert!(error.contains(part), "{error} / {part}");
    }
}

#[test]
fn a_target_without_a_tsih_is_used() {
    let mut initiator = InitiatorLogin::new(wishes(), [9; 64]);
    let (request, _) = initiator.first_request();
    let response = LoginResponse { tsih: 0, ..granted(&request, OPERATIONAL, Some(FULL)) };
    let InitiatorStep::Established(grant) = initiator.handle_response(&response, &[]).unwrap() else { panic!() };
    assert_eq!(grant.tsih, 0);
}

#[test]
fn an_initiator_bends_to_its_peers() {
    // A target that passes over half of the offer, zeroes the ISID and proposes with decided values.
    let mut initiator = InitiatorLogin::new(wishes(), [9; 64]);
    let (request, _) = initiator.first_request();
    let response = LoginResponse { isid: [0; 6], ..granted(&request, OPERATIONAL, Some(FULL)) };
    let data = text(
        "TargetPortalGroupTag=1 HeaderDigest=None InitialR2T=Yes ImmediateData=No FirstBurstLength=Irrelevant \
                     MaxOutstandingR2T=1 DefaultTime2Retain=0 MaxRecvDataSegmentLength=65536 TaskReporting=RFC3720",
    );
    let error = initiator.handle_response(&response, &data);
    // TaskReporting was not offered, and an offer of the target needs an answer.
    assert!(matches!(error, Err(LoginError::Protocol(Misbehavior::OfferAtTheEndOfAStage))), "{error:?}");
    let mut initiator = InitiatorLogin::new(wishes(), [9; 64]);
    initiator.first_request();
    let data = &data[..data.len() - "TaskReporting=RFC3720\0".len()];
    let InitiatorStep::Established(grant) = initiator.handle_response(&response, data).unwrap() else { panic!() };
    let expected = Parameters {
        max_recv_data_segment_length: 262_144,
        peer_max_recv_data_segment_length: 65_536,
        immediate_data: false,
        default_time2retain: 0,
        ..Parameters::default()
    };
    assert_eq!(grant.parameters, expected);
}
