use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use proptest::prelude::*;

use super::*;
use crate::chap::{Algorithm, ChapPolicy, ChapSecret, TargetProof};
use crate::keys::{Key, KeyError};
use crate::parameters::{Digest, Parameters};
use crate::pdu::{Bhs, LoginRequest, LoginResponse, NopOut, RESERVED_TAG, Stage};
use crate::text::{Pairs, TextError, TextLimits};

const HOST: &str = "iqn.2024-01.com.example:host";
const DISK: &str = "iqn.2024-01.com.example:disk";
const SECRET: &str = "alice's long secret";
const TARGET_SECRET: &str = "the storage's secret";

/// An authority over one target.
struct House {
    accounts: Vec<ChapAccount>,
    offer: Offer,
    alias: Option<String>,
    joins: Option<JoinedSession>,
    refusal: Option<Refusal>,
    established: RefCell<Vec<(Identity, Parameters)>>,
}

impl House {
    fn open() -> Self {
        Self {
            accounts: Vec::new(),
            offer: Offer::default(),
            alias: Some("the disk".into()),
            joins: None,
            refusal: None,
            established: RefCell::default(),
        }
    }

    fn guarded() -> Self {
        let mutual = Some(("storage".to_string(), ChapSecret::new(TARGET_SECRET)));
        let account = ChapAccount { user: "alice".into(), secret: ChapSecret::new(SECRET), mutual };
        let other = ChapAccount { user: "bob".into(), secret: ChapSecret::new("another long secret"), mutual: None };
        Self { accounts: vec![other, account], ..Self::open() }
    }
}

impl Authority for House {
    fn admit(&self, identity: &Identity) -> Result<Admission, Refusal> {
        let normal = identity.session_type == SessionType::Normal;
        if normal && identity.target_name.as_deref() != Some(DISK) {
            return Err(LoginStatus::NOT_FOUND.into());
        }
        Ok(Admission {
            target_portal_group_tag: normal.then_some(7),
            target_alias: self.alias.clone().filter(|_| normal),
            accounts: self.accounts.clone(),
            offer: self.offer.clone(),
            joins: self.joins.clone(),
        })
    }

    fn establish(&self, identity: &Identity, parameters: &Parameters) -> Result<u16, Refusal> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        self.established.borrow_mut().push((identity.clone(), parameters.clone()));
        Ok(if identity.tsih == 0 { 0x55 } else { identity.tsih })
    }
}

fn wishes() -> InitiatorLoginConfig {
    InitiatorLoginConfig { itt: 3, cid: 2, cmd_sn: Serial(0xffff_ffff), ..InitiatorLoginConfig::new(HOST, DISK) }
}

fn chap(secret: &str, target: Option<TargetProof>) -> Option<ChapLogin> {
    Some(ChapLogin { user: "alice".into(), secret: ChapSecret::new(secret), target })
}

fn proof() -> Option<TargetProof> {
    Some(TargetProof { name: Some("storage".into()), secret: ChapSecret::new(TARGET_SECRET) })
}

type Both = (InitiatorGrant, TargetGrant);

/// Runs a login over emitted and parsed headers.
fn login(
    wishes: InitiatorLoginConfig,
    config: TargetLoginConfig,
    house: &House,
) -> Result<Both, (LoginError, Option<LoginError>)> {
    let segments = (wishes.data_segment, config.data_segment);
    let isid = wishes.isid;
    let mut initiator = InitiatorLogin::new(wishes, [9; 64]);
    let mut target = TargetLogin::new(config, [7; 64]);
    let (mut request, mut data) = initiator.first_request();
    let mut granted = None;
    let mut stat_sn = None;
    for _ in 0..5000 {
        assert!(data.len() <= segments.0);
        let reply = target.handle_pdu(&request.emit(), &data, house).unwrap();
        assert!(reply.data.len() <= segments.1);
        let mut refused = None;
        match reply.outcome {
            LoginOutcome::Continue => assert!(reply.response.nsg != Some(Stage::FullFeaturePhase)),
            LoginOutcome::Established(grant) => granted = Some(*grant),
            LoginOutcome::Refused(error) => refused = Some(error),
        }
        let response = LoginResponse::parse(&reply.response.emit()).unwrap();
        assert_eq!(response, reply.response);
        // RFC 7143 11.13: echoed in every response.
        assert_eq!((response.itt, response.isid), (request.itt, isid));
        if refused.is_none() {
            assert_eq!(response.exp_cmd_sn, request.cmd_sn);
            if let Some(before) = stat_sn.replace(response.stat_sn) {
                assert_eq!(response.stat_sn, Serial::next(before));
                assert_eq!(request.exp_stat_sn, response.stat_sn);
            }
        }
        match initiator.handle_response(&response, &reply.data) {
            Err(error) => return Err((error, refused)),
            Ok(InitiatorStep::Send(next, bytes)) => (request, data) = (next, bytes),
            Ok(InitiatorStep::Established(grant)) => return Ok((*grant, granted.expect("both sides end at once"))),
            Ok(InitiatorStep::Redirected { .. }) => panic!("nobody redirects here"),
        }
    }
    panic!("login does not end");
}

fn agreed(wishes: InitiatorLoginConfig, config: TargetLoginConfig, house: &House) -> Both {
    let (initiator, target) = login(wishes, config, house).unwrap();
    assert_eq!(initiator.tsih, target.tsih);
    assert_eq!(initiator.exp_stat_sn, target.next_stat_sn);
    assert_eq!((initiator.cmd_sn, initiator.max_cmd_sn), (target.exp_cmd_sn, target.max_cmd_sn));
    assert_eq!(
        (initiator.parameters.max_recv_data_segment_length, initiator.parameters.peer_max_recv_data_segment_length),
        (target.parameters.peer_max_recv_data_segment_length, target.parameters.max_recv_data_segment_length)
    );
    let mirrored = Parameters {
        max_recv_data_segment_length: target.parameters.max_recv_data_segment_length,
        peer_max_recv_data_segment_length: target.parameters.peer_max_recv_data_segment_length,
        ..initiator.parameters.clone()
    };
    assert_eq!(mirrored, target.parameters);
    (initiator, target)
}

#[test]
fn every_way_in_leads_in() {
    for algorithms in [vec![Algorithm::Md5], vec![Algorithm::Sha1], vec![Algorithm::Sha256], Algorithm::ALL.to_vec()] {
        for segment in [8192, 512, 7, 1] {
            for (credentials, security) in [
                (None, false),
                (None, true),
                (chap(SECRET, None), false),
                (chap(SECRET, proof()), false),
                (chap(SECRET, Some(TargetProof { name: None, secret: ChapSecret::new(TARGET_SECRET) })), false),
            ] {
                for discovery in [false, true] {
                    let authenticated = credentials.is_some();
                    let house = if authenticated { House::guarded() } else { House::open() };
                    let base = if discovery { InitiatorLoginConfig::discovery(HOST) } else { wishes() };
                    let initiator = InitiatorLoginConfig {
                        credentials: credentials.clone(),
                        begin_with_security: security,
                        chap: ChapPolicy { algorithms: algorithms.clone(), ..ChapPolicy::default() },
                        data_segment: segment,
                        max_requests: 5000,
                        initiator_alias: Some("a host".into()),
                        ..base
                    };
                    let config = TargetLoginConfig { data_segment: segment, max_requests: 5000, ..Default::default() };
                    let (initiator, target) = agreed(initiator, config, &house);
                    assert_eq!(target.user.as_deref(), authenticated.then_some("alice"));
                    assert_eq!(target.identity.initiator_name, HOST);
                    assert_eq!(target.identity.initiator_alias.as_deref(), Some("a host"));
                    assert_eq!(target.identity.target_name.as_deref(), (!discovery).then_some(DISK));
                    assert_eq!(initiator.target_portal_group_tag, (!discovery).then_some(7));
                    assert_eq!(initiator.target_alias.as_deref(), (!discovery).then_some("the disk"));
                    assert_eq!(initiator.parameters.session_type, target.identity.session_type);
                    assert_eq!(house.established.borrow().len(), 1);
                }
            }
        }
    }
}

#[test]
fn a_session_starts_from_what_login_says() {
    let (initiator, target) = agreed(wishes(), TargetLoginConfig::default(), &House::open());
    assert_eq!((target.exp_cmd_sn, target.max_cmd_sn), (Serial(0xffff_ffff), Serial(126)));
    assert_eq!((target.tsih, target.identity.cid), (0x55, 2));
    let parameters = &initiator.parameters;
    assert_eq!((parameters.max_burst_length, parameters.first_burst_length), (1 << 20, 262_144));
    assert_eq!(parameters.max_outstanding_r2t, 8);
    assert!(!parameters.initial_r2t && parameters.immediate_data);
    assert_eq!(parameters.peer_max_recv_data_segment_length, 262_144);
}

#[test]
fn a_target_without_accounts_takes_an_initiator_with_credentials() {
    let one_way = InitiatorLoginConfig { credentials: chap(SECRET, None), ..wishes() };
    let (_, target) = agreed(one_way, TargetLoginConfig::default(), &House::open());
    assert_eq!(target.user, None);
    // But not where the target was to prove itself.
    let mutual = InitiatorLoginConfig { credentials: chap(SECRET, proof()), ..wishes() };
    let (error, refused) = login(mutual, TargetLoginConfig::default(), &House::open()).unwrap_err();
    assert_eq!(error, LoginError::Refused { status: LoginStatus::AUTHENTICATION_FAILURE });
    assert!(matches!(refused, Some(LoginError::NoCommonAuthMethod(_))));
}

#[test]
fn who_may_not_come_in_is_told_why() {
    let failed = LoginStatus::AUTHENTICATION_FAILURE;
    let cases: [(InitiatorLoginConfig, House, LoginStatus, &str); 7] = [
        (
            InitiatorLoginConfig { credentials: chap("not alice's secret", None), ..wishes() },
            House::guarded(),
            failed,
            "check the CHAP user and secret",
        ),
        (wishes(), House::guarded(), failed, "whether it asks for CHAP"),
        (InitiatorLoginConfig { begin_with_security: true, ..wishes() }, House::guarded(), failed, "CHAP"),
        (
            InitiatorLoginConfig { target_name: Some("iqn.2024-01.com.example:nothing".into()), ..wishes() },
            House::open(),
            LoginStatus::NOT_FOUND,
            "no target of this name",
        ),
        (
            InitiatorLoginConfig { target_name: None, ..wishes() },
            House::open(),
            LoginStatus::MISSING_PARAMETER,
            "missing parameter",
        ),
        (
            wishes(),
            House { refusal: Some(LoginStatus::OUT_OF_RESOURCES.into()), ..House::open() },
            LoginStatus::OUT_OF_RESOURCES,
            "try again later",
        ),
        (
            InitiatorLoginConfig { tsih: 9, ..wishes() },
            House::open(),
            LoginStatus::SESSION_DOES_NOT_EXIST,
            "log in anew",
        ),
    ];
    for (initiator, house, status, words) in cases {
        let (error, refused) = login(initiator, TargetLoginConfig::default(), &house).unwrap_err();
        assert_eq!(error, LoginError::Refused { status }, "{words}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(refused.map(|error| error.status()), Some(status), "{words}");
    }
}

#[test]
fn a_target_that_cannot_prove_itself_is_left() {
    let rogue = |secret: &str| {
        let mutual = Some(("storage".to_string(), ChapSecret::new(secret)));
        House {
            accounts: vec![ChapAccount { user: "alice".into(), secret: ChapSecret::new(SECRET), mutual }],
            ..House::open()
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

/// A successful response to a request, as a target under test control would send it.
fn granted(request: &LoginRequest, csg: Stage, nsg: Option<Stage>) -> LoginResponse {
    LoginResponse {
        incomplete: false,
        csg,
        nsg,
        version_max: 0,
        version_active: 0,
        isid: request.isid,
        tsih: 1,
        itt: request.itt,
        stat_sn: Serial(0),
        exp_cmd_sn: request.cmd_sn,
        max_cmd_sn: request.cmd_sn,
        status: LoginStatus::SUCCESS,
    }
}

fn request(csg: Stage, nsg: Option<Stage>) -> LoginRequest {
    LoginRequest {
        incomplete: false,
        csg,
        nsg,
        version_max: 0,
        version_min: 0,
        isid: [0x80, 1, 2, 3, 4, 5],
        tsih: 0,
        itt: 0x1234,
        cid: 1,
        cmd_sn: Serial(100),
        exp_stat_sn: Serial(0),
    }
}

const SECURITY: Stage = Stage::SecurityNegotiation;
const OPERATIONAL: Stage = Stage::LoginOperationalNegotiation;
const FULL: Stage = Stage::FullFeaturePhase;

/// A text with spaces for its null bytes.
fn text(pairs: &str) -> Vec<u8> {
    pairs.split_whitespace().flat_map(|pair| pair.bytes().chain([0])).collect()
}

fn names(more: &str) -> Vec<u8> {
    text(&format!("InitiatorName={HOST} TargetName={DISK} {more}"))
}

fn words(data: &[u8]) -> String {
    let pairs: Vec<_> =
        Pairs::new(data).map(Result::unwrap).map(|pair| format!("{}={}", pair.key, pair.value)).collect();
    pairs.join(" ")
}

fn quiet() -> House {
    House { alias: None, ..House::open() }
}

fn target() -> TargetLogin {
    TargetLogin::new(TargetLoginConfig::default(), [7; 64])
}

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
    let house = House::guarded();
    let mut target = target();
    let reply = target.handle_request(&request(SECURITY, Some(OPERATIONAL)), &names(""), &house);
    assert!(words(&reply.data).ends_with("AuthMethod=CHAP") && reply.response.nsg.is_none());
    let reply = target.handle_request(&request(SECURITY, None), &text("AuthMethod=CHAP CHAP_A=5"), &house);
    assert!(words(&reply.data).starts_with("CHAP_A=5 CHAP_I="), "{}", words(&reply.data));
    // Or is refused when it insists.
    let mut insisting = TargetLogin::new(TargetLoginConfig::default(), [7; 64]);
    insisting.handle_request(&request(SECURITY, Some(OPERATIONAL)), &names(""), &house);
    let reply = insisting.handle_request(&request(SECURITY, Some(OPERATIONAL)), b"", &house);
    assert_eq!(refusal(reply).0, LoginStatus::AUTHENTICATION_FAILURE);
}

#[test]
fn the_security_stage_is_not_left_before_it_is_passed() {
    let house = House::guarded();
    let mut target = target();
    for data in [names("AuthMethod=CHAP"), text("CHAP_A=7,5"), Vec::new()] {
        let reply = target.handle_request(&request(SECURITY, Some(FULL)), &data, &house);
        assert_eq!(reply.response.nsg, None);
        assert!(matches!(reply.outcome, LoginOutcome::Continue));
    }
    let reply = target.handle_request(&request(OPERATIONAL, Some(FULL)), b"", &house);
    assert_eq!(refusal(reply).0, LoginStatus::INITIATOR_ERROR);
    assert!(house.established.borrow().is_empty());
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
        (OPERATIONAL, names("AuthMethod=None"), initiator_error),
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
fn redirections_tell_where_to() {
    struct Moved(LoginStatus);
    impl Authority for Moved {
        fn admit(&self, _: &Identity) -> Result<Admission, Refusal> {
            Err(Refusal { status: self.0, target_address: Some("[2001:db8::1]:3260".into()) })
        }
        fn establish(&self, _: &Identity, _: &Parameters) -> Result<u16, Refusal> {
            Err(self.0.into())
        }
    }
    for (status, moved_for_good) in
        [(LoginStatus::TARGET_MOVED_TEMPORARILY, false), (LoginStatus::TARGET_MOVED_PERMANENTLY, true)]
    {
        let mut initiator = InitiatorLogin::new(wishes(), [9; 64]);
        let (request, data) = initiator.first_request();
        let reply = target().handle_request(&request, &data, &Moved(status));
        match initiator.handle_response(&reply.response, &reply.data).unwrap() {
            InitiatorStep::Redirected { address, permanent } => {
                assert_eq!((address.as_str(), permanent), ("[2001:db8::1]:3260", moved_for_good));
            }
            other => panic!("{other:?}"),
        }
        let mut initiator = InitiatorLogin::new(wishes(), [9; 64]);
        initiator.first_request();
        let error = initiator.handle_response(&reply.response, b"").unwrap_err();
        assert!(error.to_string().contains("where to"), "{error}");
    }
}

#[test]
fn a_connection_joins_a_session_with_its_values() {
    let parameters = Parameters {
        max_burst_length: 4096,
        first_burst_length: 4096,
        header_digest: Digest::Crc32c,
        max_connections: 4,
        ..Parameters::default()
    };
    let joins = JoinedSession { parameters: parameters.clone(), exp_cmd_sn: Serial(500), max_cmd_sn: Serial(531) };
    let house = House { joins: Some(joins), ..House::open() };
    let joining = InitiatorLoginConfig { tsih: 0x77, cmd_sn: Serial(500), joins: Some(parameters), ..wishes() };
    let (initiator, target) = login(joining, TargetLoginConfig::default(), &house).unwrap();
    assert_eq!((initiator.tsih, target.tsih), (0x77, 0x77));
    assert_eq!((target.exp_cmd_sn, target.max_cmd_sn), (Serial(500), Serial(531)));
    for parameters in [initiator.parameters, target.parameters] {
        assert_eq!((parameters.max_burst_length, parameters.max_connections), (4096, 4));
        // The connection's own.
        assert_eq!((parameters.header_digest, parameters.max_recv_data_segment_length), (Digest::None, 262_144));
    }
}

#[test]
fn rdma_extensions_bring_their_keys_and_drop_the_digests() {
    // RFC 7145 6
    let offer = Offer { rdma_extensions: true, header_digest: vec![Digest::Crc32c], ..Offer::default() };
    let house = House { offer: Offer { target_recv_data_segment_length: 16_384, ..offer.clone() }, ..House::open() };
    let rdma = InitiatorLoginConfig {
        offer: Offer { initiator_recv_data_segment_length: 65_536, max_outstanding_unexpected_pdus: 32, ..offer },
        ..wishes()
    };
    let (initiator, target) = login(rdma.clone(), TargetLoginConfig::default(), &house).unwrap();
    assert!(initiator.parameters.rdma_extensions && target.parameters.rdma_extensions);
    assert_eq!(initiator.parameters.header_digest, Digest::None);
    assert_eq!(target.parameters.max_outstanding_unexpected_pdus, 32);
    let lengths = |p: &Parameters| (p.max_recv_data_segment_length, p.peer_max_recv_data_segment_length);
    assert_eq!((lengths(&initiator.parameters), lengths(&target.parameters)), ((65_536, 16_384), (16_384, 65_536)));
    // A target that knows nothing of it.
    let (initiator, _) = login(rdma, TargetLoginConfig::default(), &House::open()).unwrap();
    assert!(!initiator.parameters.rdma_extensions);
}

#[test]
fn an_initiator_says_each_name_once() {
    let with = InitiatorLoginConfig { credentials: chap(SECRET, proof()), ..wishes() };
    let mut initiator = InitiatorLogin::new(with, [9; 64]);
    let mut target = target();
    let house = House::guarded();
    let (mut request, mut data) = initiator.first_request();
    // RFC 7143 13.4, 13.5: some targets end the login over a repeated name.
    let mut all = words(&data);
    loop {
        let reply = target.handle_request(&request, &data, &house);
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
        (
            first(wishes(), &|request| LoginResponse { tsih: 0, ..granted(request, OPERATIONAL, Some(FULL)) }, ""),
            "TSIH",
        ),
    ] {
        assert!(error.contains(part), "{error} / {part}");
    }
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
    assert!(matches!(error, Err(LoginError::Protocol(_))));
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

#[test]
fn a_target_insists_on_its_limits_in_another_round() {
    let offer = Offer { max_burst_length: 65_536, first_burst_length: 4096, ..Offer::default() };
    let house = House { offer, alias: None, ..House::open() };
    let mut target = target();
    let reply = target.handle_request(&request(OPERATIONAL, Some(FULL)), &names(""), &house);
    // RFC 7143 6.3: no transition with a key that needs an answer.
    assert_eq!(reply.response.nsg, None);
    assert_eq!(
        words(&reply.data),
        "TargetPortalGroupTag=7 MaxBurstLength=65536 FirstBurstLength=4096 MaxRecvDataSegmentLength=262144"
    );
    let answer = text("MaxBurstLength=32768 FirstBurstLength=4096");
    let reply = target.handle_request(&request(OPERATIONAL, Some(FULL)), &answer, &house);
    let LoginOutcome::Established(grant) = reply.outcome else { panic!() };
    assert_eq!((grant.parameters.max_burst_length, grant.parameters.first_burst_length), (32_768, 4096));
}

fn arbitrary_text() -> impl Strategy<Value = Vec<u8>> {
    let key = prop_oneof![
        8 => (0usize..Key::ALL.len()).prop_map(|at| Key::ALL[at].name().to_string()),
        1 => "[A-Za-z][A-Za-z0-9.#-]{0,6}",
    ];
    let value = prop_oneof![
        Just(HOST.to_string()),
        Just(DISK.to_string()),
        Just("Yes".to_string()),
        Just("No".to_string()),
        Just("None".to_string()),
        Just("CHAP".to_string()),
        Just("CHAP,None".to_string()),
        Just("5".to_string()),
        Just("alice".to_string()),
        Just("0x00112233445566778899aabbccddeeff".to_string()),
        Just("4096".to_string()),
        Just("Reject".to_string()),
        Just("NotUnderstood".to_string()),
        Just("Irrelevant".to_string()),
        Just("Discovery".to_string()),
        "[ -~]{0,12}",
    ];
    let pairs = proptest::collection::vec((key, value), 0..6);
    prop_oneof![
        6 => pairs.prop_map(|pairs| pairs.into_iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect()),
        1 => proptest::collection::vec(any::<u8>(), 0..80),
    ]
}

prop_compose! {
    fn arbitrary_bhs(opcode: u8)(known: bool, flags: u8, stage in 0u8..16, mut bytes in any::<[u8; 16]>(), fixed: bool) -> Bhs {
        let mut bhs = Bhs([0; 48]);
        if !fixed {
            bhs.0[8..24].copy_from_slice(&bytes);
        }
        bytes.fill(0);
        bhs.0[0] = if known { opcode } else { flags };
        // Mostly flags that make sense.
        bhs.0[1] = if known { flags & 0xc0 | stage } else { flags };
        bhs
    }
}

proptest! {
    #[test]
    fn no_pdus_panic_a_target(guarded: bool, introduce: bool, pdus in proptest::collection::vec((arbitrary_bhs(0x43), arbitrary_text()), 0..12)) {
        let house = if guarded { House::guarded() } else { House::open() };
        let mut target = target();
        let mut over = false;
        if introduce {
            let stage = if guarded { SECURITY } else { OPERATIONAL };
            let first = LoginRequest { isid: [0; 6], itt: 0, cid: 0, ..request(stage, None) };
            target.handle_request(&first, &names(if guarded { "AuthMethod=CHAP" } else { "" }), &house);
        }
        for (bhs, data) in &pdus {
            let Some(reply) = target.handle_pdu(bhs, data, &house) else { continue };
            prop_assert!(reply.data.len() <= 8192);
            match reply.outcome {
                LoginOutcome::Continue => prop_assert!(!over && reply.response.status == LoginStatus::SUCCESS),
                LoginOutcome::Established(grant) => {
                    prop_assert!(!over && !guarded, "nobody guesses the secret");
                    prop_assert!(grant.parameters.first_burst_length <= grant.parameters.max_burst_length);
                    over = true;
                }
                LoginOutcome::Refused(error) => {
                    prop_assert!(reply.response.status.class() != 0 && !error.to_string().is_empty());
                    over = true;
                }
            }
        }
    }

    #[test]
    fn no_pdus_panic_an_initiator(way in 0u8..4, pdus in proptest::collection::vec((arbitrary_bhs(0x23), arbitrary_text()), 0..12)) {
        let credentials = match way { 0 | 1 => None, 2 => chap(SECRET, None), _ => chap(SECRET, proof()) };
        let mutual = way == 3;
        let mut initiator = InitiatorLogin::new(InitiatorLoginConfig { itt: 0, credentials, begin_with_security: way == 1, ..wishes() }, [9; 64]);
        initiator.first_request();
        for (bhs, data) in &pdus {
            let Ok(response) = LoginResponse::parse(bhs) else { continue };
            match initiator.handle_response(&response, data) {
                Ok(InitiatorStep::Send(request, data)) => {
                    prop_assert!(data.len() <= 8192);
                    prop_assert_eq!(LoginRequest::parse(&request.emit()).unwrap(), request);
                }
                Ok(InitiatorStep::Established(_)) => prop_assert!(!mutual, "nobody guesses the secret"),
                Ok(InitiatorStep::Redirected { .. }) => {}
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
