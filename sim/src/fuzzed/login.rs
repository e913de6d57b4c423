//! Both login machines over any sequence of PDUs, sensible ones and others.

use iscsi_proto::chap::ChapSecret;
use iscsi_proto::login::{
    Admission, Authority, ChapAccount, ChapLogin, Identity, InitiatorLogin, InitiatorLoginConfig, InitiatorStep,
    LoginOutcome, Offer, Refusal, TargetLogin, TargetLoginConfig,
};
use iscsi_proto::parameters::Parameters;
use iscsi_proto::pdu::{BHS_LEN, Bhs, LoginRequest, LoginResponse, LoginStatus, Stage};
use iscsi_proto::serial::Serial;

use crate::input::Input;

const LEAVES: [Option<Stage>; 4] =
    [None, Some(Stage::LoginOperationalNegotiation), Some(Stage::FullFeaturePhase), Some(Stage::SecurityNegotiation)];
const STAGES: [Stage; 3] = [Stage::SecurityNegotiation, Stage::LoginOperationalNegotiation, Stage::FullFeaturePhase];
const TEXTS: [&str; 8] = [
    "InitiatorName=iqn.2026-11.example.sim:fuzz\0TargetName=iqn.2026-11.example.sim:disk\0SessionType=Normal\0",
    "InitiatorName=iqn.2026-11.example.sim:fuzz\0SessionType=Discovery\0AuthMethod=CHAP,None\0",
    "AuthMethod=CHAP\0",
    "CHAP_A=7,5\0",
    "CHAP_N=fuzz\0CHAP_R=0x000102030405060708090a0b0c0d0e0f\0CHAP_I=1\0CHAP_C=0x00112233445566778899aabbccddeeff\0",
    "CHAP_A=5\0CHAP_I=9\0CHAP_C=0x00112233445566778899aabbccddeeff\0",
    "TargetPortalGroupTag=1\0AuthMethod=None\0",
    "HeaderDigest=CRC32C,None\0DataDigest=None\0InitialR2T=No\0MaxBurstLength=1024\0FirstBurstLength=512\0ErrorRecoveryLevel=2\0",
];

struct ScriptedAuthority {
    account: bool,
    mutual: bool,
    refuses: u8,
}

impl Authority for ScriptedAuthority {
    fn admit(&self, identity: &Identity) -> Result<Admission, Refusal> {
        assert!(!identity.initiator_name.is_empty());
        if self.refuses == 1 {
            return Err(LoginStatus::NOT_FOUND.into());
        }
        let mutual = self.mutual.then(|| ("target".to_owned(), ChapSecret::new("the secret of the target")));
        let account = ChapAccount { user: "fuzz".into(), secret: ChapSecret::new("the secret of the fuzzer"), mutual };
        Ok(Admission {
            target_portal_group_tag: Some(1),
            target_alias: Some("fuzzed".into()),
            accounts: if self.account { vec![account] } else { Vec::new() },
            offer: Offer::default(),
            joins: None,
        })
    }

    fn establish(&self, _: &Identity, _: &Parameters) -> Result<u16, Refusal> {
        if self.refuses == 2 { Err(LoginStatus::OUT_OF_RESOURCES.into()) } else { Ok(1) }
    }
}

/// One of the texts, or any bytes, or both.
fn data(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.u8();
    let mut data = Vec::new();
    if kind & 0x10 == 0 {
        data.extend_from_slice(TEXTS[usize::from(kind & 7)].as_bytes());
    }
    if kind & 0x20 != 0 {
        data.extend_from_slice(TEXTS[usize::from(input.below(8))].as_bytes());
    }
    if kind & 0x40 != 0 {
        data.extend_from_slice(input.chunk());
    }
    data.truncate(8192);
    data
}

/// Requests to the target's machine.
pub fn login_target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    let authority = ScriptedAuthority { account: flags & 1 != 0, mutual: flags & 2 != 0, refuses: flags >> 2 & 3 };
    let mut machine = TargetLogin::new(TargetLoginConfig::default(), [flags; 64]);
    let mut over = false;
    while !input.is_empty() {
        let kind = input.u8();
        let bhs = if kind & 0x80 != 0 {
            Bhs(input.array::<BHS_LEN>())
        } else {
            LoginRequest {
                incomplete: kind & 1 != 0,
                csg: STAGES[usize::from(input.below(3))],
                nsg: LEAVES[usize::from(input.below(4))],
                version_max: kind >> 5 & 1,
                version_min: u8::from(kind & 0x1e == 0x1e),
                isid: [0x80, 0, 0, 0, 0, u8::from(kind & 0x0e == 0x0e)],
                tsih: u16::from(kind & 0x1c == 0x1c),
                itt: 1,
                cid: 0,
                cmd_sn: Serial(1),
                exp_stat_sn: Serial(0),
            }
            .emit()
        };
        let data = data(&mut input);
        let Some(reply) = machine.handle_pdu(&bhs, &data, &authority) else { return };
        assert!(reply.data.len() <= 8192);
        assert_eq!(LoginResponse::parse(&reply.response.emit()), Ok(reply.response));
        match reply.outcome {
            LoginOutcome::Continue => assert!(!over, "a login that is over does not go on"),
            LoginOutcome::Established(grant) => {
                assert!(!over, "a login ends once");
                // Nobody gets in without the secret, which no input here can know.
                assert!(!authority.account, "{} got in without a secret", grant.identity.initiator_name);
                over = true;
            }
            LoginOutcome::Refused(error) => {
                assert!(reply.response.status.class() != 0, "{error}");
                over = true;
            }
        }
    }
}

/// Responses to the initiator's machine.
pub fn login_initiator(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    let mut config = if flags & 1 != 0 {
        InitiatorLoginConfig::discovery("iqn.2026-11.example.sim:fuzz")
    } else {
        InitiatorLoginConfig::new("iqn.2026-11.example.sim:fuzz", "iqn.2026-11.example.sim:disk")
    };
    if flags & 2 != 0 {
        config.credentials =
            Some(ChapLogin { user: "fuzz".into(), secret: ChapSecret::new("the secret of the fuzzer"), target: None });
    }
    let mut machine = InitiatorLogin::new(config, [flags; 64]);
    let (mut request, _) = machine.first_request();
    while !input.is_empty() {
        let kind = input.u8();
        let response = if kind & 0x80 != 0 {
            let mut bhs = Bhs(input.array::<BHS_LEN>());
            bhs.0[0] = 0x23;
            let Ok(response) = LoginResponse::parse(&bhs) else { continue };
            response
        } else {
            LoginResponse {
                incomplete: kind & 1 != 0,
                csg: if kind & 2 != 0 { request.csg } else { STAGES[usize::from(input.below(3))] },
                nsg: if kind & 4 != 0 { request.nsg } else { LEAVES[usize::from(input.below(4))] },
                version_max: 0,
                version_active: u8::from(kind & 0x78 == 0x78),
                isid: request.isid,
                tsih: u16::from(kind & 8 != 0),
                itt: request.itt,
                stat_sn: Serial(u32::from(kind >> 4)),
                exp_cmd_sn: Serial(1),
                max_cmd_sn: Serial(32),
                status: if kind & 0x70 == 0x70 { LoginStatus(input.u16()) } else { LoginStatus(0) },
            }
        };
        let data = data(&mut input);
        match machine.handle_response(&response, &data) {
            Ok(InitiatorStep::Send(next, data)) => {
                assert!(data.len() <= 8192);
                assert_eq!(LoginRequest::parse(&next.emit()), Ok(next));
                request = next;
            }
            Ok(_) | Err(_) => return,
        }
    }
}
