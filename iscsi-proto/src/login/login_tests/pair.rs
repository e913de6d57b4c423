//! Both machines against each other.

use super::*;

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
