//! Tests of login: what they share.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use super::*;
use crate::chap::{Algorithm, ChapPolicy, ChapSecret, TargetProof};
use crate::datamover::Caps;
use crate::keys::{Key, KeyError};
use crate::misbehavior::Misbehavior;
use crate::parameters::{Digest, Parameters};
use crate::pdu::{Bhs, LoginRequest, LoginResponse, NopOut, RESERVED_TAG, Stage};
use crate::text::{Pairs, TextError, TextLimits};

mod anything;
mod initiator;
mod pair;
mod target;

const HOST: &str = "iqn.2024-01.com.example:host";
const DISK: &str = "iqn.2024-01.com.example:disk";
const SECRET: &str = "alice's long secret";
const TARGET_SECRET: &str = "the storage's secret";

/// An authority over one target.
struct TestAuthority {
    accounts: Vec<ChapAccount>,
    offer: Offer,
    alias: Option<String>,
    joins: Option<JoinedSession>,
    refusal: Option<Refusal>,
    established: RefCell<Vec<(Identity, Parameters)>>,
}

impl TestAuthority {
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

impl Authority for TestAuthority {
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
    authority: &TestAuthority,
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
        let reply = target.handle_pdu(&request.emit(), &data, authority).unwrap();
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

fn agreed(wishes: InitiatorLoginConfig, config: TargetLoginConfig, authority: &TestAuthority) -> Both {
    let (initiator, target) = login(wishes, config, authority).unwrap();
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

/// A successful response to a request, as a target under test control would send it.
fn granted(request: &LoginRequest, csg: Stage, nsg: Option<Stage>) -> LoginResponse {
    LoginResponse { csg, nsg, tsih: 1, ..LoginResponse::granting(request) }
}

fn request(csg: Stage, nsg: Option<Stage>) -> LoginRequest {
    LoginRequest {
        csg,
        nsg,
        cid: 1,
        cmd_sn: Serial(100),
        ..LoginRequest::straight_to_full_feature([0x80, 1, 2, 3, 4, 5], 0x1234)
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

fn quiet() -> TestAuthority {
    TestAuthority { alias: None, ..TestAuthority::open() }
}

fn target() -> TargetLogin {
    TargetLogin::new(TargetLoginConfig::default(), [7; 64])
}
