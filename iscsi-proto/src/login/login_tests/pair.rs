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
                    let authority = if authenticated { TestAuthority::guarded() } else { TestAuthority::open() };
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
                    let (initiator, target) = agreed(initiator, config, &authority);
                    assert_eq!(target.user.as_deref(), authenticated.then_some("alice"));
                    assert_eq!(target.identity.initiator_name, HOST);
                    assert_eq!(target.identity.initiator_alias.as_deref(), Some("a host"));
                    assert_eq!(target.identity.target_name.as_deref(), (!discovery).then_some(DISK));
                    assert_eq!(initiator.target_portal_group_tag, (!discovery).then_some(7));
                    assert_eq!(initiator.target_alias.as_deref(), (!discovery).then_some("the disk"));
                    assert_eq!(initiator.parameters.session_type, target.identity.session_type);
                    assert_eq!(authority.established.borrow().len(), 1);
                }
            }
        }
    }
}

#[test]
fn a_session_starts_from_what_login_says() {
    let (initiator, target) = agreed(wishes(), TargetLoginConfig::default(), &TestAuthority::open());
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
    let (_, target) = agreed(one_way, TargetLoginConfig::default(), &TestAuthority::open());
    assert_eq!(target.user, None);
    // But not where the target was to prove itself.
    let mutual = InitiatorLoginConfig { credentials: chap(SECRET, proof()), ..wishes() };
    let (error, refused) = login(mutual, TargetLoginConfig::default(), &TestAuthority::open()).unwrap_err();
    assert_eq!(error, LoginError::Refused { status: LoginStatus::AUTHENTICATION_FAILURE });
    assert!(matches!(refused, Some(LoginError::NoCommonAuthMethod(_))));
}

#[test]
fn who_may_not_come_in_is_told_why() {
    let failed = LoginStatus::AUTHENTICATION_FAILURE;
    let cases: [(InitiatorLoginConfig, TestAuthority, LoginStatus, &str); 7] = [
        (
            InitiatorLoginConfig { credentials: chap("not alice's secret", None), ..wishes() },
            TestAuthority::guarded(),
            failed,
            "check the CHAP user and secret",
        ),
        (wishes(), TestAuthority::guarded(), failed, "whether it asks for CHAP"),
        (InitiatorLoginConfig { begin_with_security: true, ..wishes() }, TestAuthority::guarded(), failed, "CHAP"),
        (
            InitiatorLoginConfig { target_name: Some("iqn.2024-01.com.example:nothing".into()), ..wishes() },
            TestAuthority::open(),
            LoginStatus::NOT_FOUND,
            "no target of this name",
        ),
        (
            InitiatorLoginConfig { target_name: None, ..wishes() },
            TestAuthority::open(),
            LoginStatus::MISSING_PARAMETER,
            "missing parameter",
        ),
        (
            wishes(),
            TestAuthority { refusal: Some(LoginStatus::OUT_OF_RESOURCES.into()), ..TestAuthority::open() },
            LoginStatus::OUT_OF_RESOURCES,
            "try again later",
        ),
        (
            InitiatorLoginConfig { tsih: 9, ..wishes() },
            TestAuthority::open(),
            LoginStatus::SESSION_DOES_NOT_EXIST,
            "log in anew",
        ),
    ];
    for (initiator, authority, status, words) in cases {
        let (error, refused) = login(initiator, TargetLoginConfig::default(), &authority).unwrap_err();
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
    let authority = TestAuthority { joins: Some(joins), ..TestAuthority::open() };
    let joining = InitiatorLoginConfig { tsih: 0x77, cmd_sn: Serial(500), joins: Some(parameters), ..wishes() };
    let (initiator, target) = login(joining, TargetLoginConfig::default(), &authority).unwrap();
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
    let offer = Offer {
        rdma_extensions: true,
        header_digest: vec![Digest::Crc32c],
        target_recv_data_segment_length: 65_536,
        ..Offer::default()
    };
    let authority = TestAuthority {
        offer: Offer { target_recv_data_segment_length: 16_384, ..offer.clone() },
        ..TestAuthority::open()
    };
    let rdma = InitiatorLoginConfig {
        offer: Offer { initiator_recv_data_segment_length: 65_536, max_outstanding_unexpected_pdus: 32, ..offer },
        ..wishes()
    };
    let (initiator, target) = login(rdma.clone(), TargetLoginConfig::default(), &authority).unwrap();
    assert!(initiator.parameters.rdma_extensions && target.parameters.rdma_extensions);
    assert_eq!(initiator.parameters.header_digest, Digest::None);
    assert_eq!(target.parameters.peer_max_outstanding_unexpected_pdus, 32);
    assert_eq!(initiator.parameters.max_outstanding_unexpected_pdus, 32);
    assert_eq!(initiator.parameters.peer_max_outstanding_unexpected_pdus, 16);
    let lengths = |p: &Parameters| (p.max_recv_data_segment_length, p.peer_max_recv_data_segment_length);
    assert_eq!((lengths(&initiator.parameters), lengths(&target.parameters)), ((65_536, 16_384), (16_384, 65_536)));
}

#[test]
fn an_iser_connection_without_rdma_extensions_does_not_log_in() {
    // RFC 7145 6.3
    let iser = Offer { rdma_extensions: true, ..Offer::default() };
    let wishing = InitiatorLoginConfig { offer: iser.clone(), ..wishes() };
    let (error, _) = login(wishing, TargetLoginConfig::default(), &TestAuthority::open()).unwrap_err();
    assert_eq!(error, LoginError::Key(KeyError::NoRdmaExtensions));
    assert!(error.to_string().contains("enable iSER"), "{error}");

    // The target asks an initiator that says nothing, takes no No, and refuses.
    let authority = TestAuthority { offer: iser, ..quiet() };
    let (error, refused) = login(wishes(), TargetLoginConfig::default(), &authority).unwrap_err();
    assert_eq!(refused, Some(LoginError::Key(KeyError::NoRdmaExtensions)));
    assert_eq!(error, LoginError::Refused { status: LoginStatus::INITIATOR_ERROR });
    assert!(authority.established.borrow().is_empty());

    let mut target = target();
    let reply = target.handle_request(&request(OPERATIONAL, Some(FULL)), &names("SessionType=Normal"), &authority);
    assert!(words(&reply.data).contains("RDMAExtensions=Yes"), "{}", words(&reply.data));
    assert_eq!(reply.response.nsg, None);
    for (answer, well) in
        [("RDMAExtensions=Yes", true), ("RDMAExtensions=No", false), ("RDMAExtensions=NotUnderstood", false)]
    {
        let mut target = self::target();
        target.handle_request(&request(OPERATIONAL, None), &names("SessionType=Normal"), &authority);
        let reply = target.handle_request(&request(OPERATIONAL, Some(FULL)), &text(answer), &authority);
        match reply.outcome {
            LoginOutcome::Established(grant) => assert!(well && grant.parameters.rdma_extensions, "{answer}"),
            LoginOutcome::Refused(error) => assert!(!well && error == KeyError::NoRdmaExtensions.into(), "{answer}"),
            LoginOutcome::Continue => panic!("{answer}"),
        }
    }
}

#[test]
fn a_discovery_session_over_iser_is_an_ordinary_one() {
    // RFC 7145 5.1: the key MUST NOT be negotiated for one.
    let iser = Offer { rdma_extensions: true, ..Offer::default() };
    let discovery = InitiatorLoginConfig { offer: iser.clone(), ..InitiatorLoginConfig::discovery(HOST) };
    let (mut first, authority) =
        (InitiatorLogin::new(discovery.clone(), [9; 64]), TestAuthority { offer: iser, ..quiet() });
    assert!(!words(&first.first_request().1).contains("RDMAExtensions"));
    let (initiator, target) = login(discovery, TargetLoginConfig::default(), &authority).unwrap();
    assert!(!initiator.parameters.rdma_extensions && !target.parameters.rdma_extensions);
}

#[test]
fn the_offer_of_open_iscsi_over_iser_gets_what_the_kernels_target_answers() {
    let iser = Caps {
        digests: false,
        registered_memory: true,
        copy_limit: 0,
        transport: "iser",
        rdma_extensions: true,
        half_closes: false,
    };
    let authority = TestAuthority { offer: Offer::default().over(&iser), ..quiet() };
    let offered = "SessionType=Normal HeaderDigest=None DataDigest=None DefaultTime2Wait=2 DefaultTime2Retain=0 \
                   IFMarker=No OFMarker=No \
                   ErrorRecoveryLevel=0 InitialR2T=No ImmediateData=Yes MaxBurstLength=16776192 \
                   FirstBurstLength=262144 MaxOutstandingR2T=1 \
                   MaxConnections=1 DataPDUInOrder=Yes DataSequenceInOrder=Yes RDMAExtensions=Yes \
                   TargetRecvDataSegmentLength=8192 \
                   InitiatorRecvDataSegmentLength=262144";
    let mut target = target();
    let reply = target.handle_request(&request(OPERATIONAL, Some(FULL)), &names(offered), &authority);
    let words = words(&reply.data);
    for answer in [
        "TargetPortalGroupTag=7",
        "RDMAExtensions=Yes",
        "TargetRecvDataSegmentLength=8192",
        "InitiatorRecvDataSegmentLength=262144",
        "InitialR2T=Yes",
        "ImmediateData=Yes",
    ] {
        assert!(words.split(' ').any(|word| word == answer), "{answer} in {words}");
    }
    // RFC 7145 6.2: it need not be declared. An initiator that knows nothing of the newer keys is told nothing of them.
    assert!(!words.contains("MaxRecvDataSegmentLength") && !words.contains("Unexpected"), "{words}");
    let LoginOutcome::Established(grant) = reply.outcome else { panic!("{:?}", reply.outcome) };
    let Parameters { rdma_extensions, max_recv_data_segment_length, peer_max_recv_data_segment_length, .. } =
        grant.parameters;
    assert!(rdma_extensions);
    assert_eq!((max_recv_data_segment_length, peer_max_recv_data_segment_length), (8192, 262_144));
    // Nothing was declared, which is not the same as No (RFC 7145 6.9).
    assert_eq!(grant.parameters.tagged_buffer_for_solicited_data_only, None);
}

#[test]
fn an_iser_initiator_says_what_it_needs_before_the_answer_is_known() {
    // RFC 7145 6.3: RDMAExtensions comes first, digests and MaxRecvDataSegmentLength not at all.
    let offer = Offer {
        rdma_extensions: true,
        initiator_recv_data_segment_length: 16_384,
        iser_hello_required: true,
        ..Offer::default()
    };
    let mut initiator = InitiatorLogin::new(InitiatorLoginConfig { offer, ..wishes() }, [9; 64]);
    let (request, data) = initiator.first_request();
    let offered = words(&data);
    assert_eq!(request.nsg, Some(FULL));
    assert!(offered.contains("SessionType=Normal RDMAExtensions=Yes"), "{offered}");
    assert!(
        offered.contains("MaxOutstandingUnexpectedPDUs=16") && offered.contains("iSERHelloRequired=Yes"),
        "{offered}"
    );
    assert!(!offered.contains("Digest") && !offered.contains("MaxRecvDataSegmentLength"), "{offered}");
    // RFC 7145 5.1.1: so that receive buffers stand before this very request goes out.
    let most = initiator.at_most();
    assert!(most.rdma_extensions && most.iser_hello_required);
    assert_eq!((most.max_recv_data_segment_length, most.max_outstanding_unexpected_pdus), (16_384, 16));
    // A target of RFC 5046 does not know the key: there is no Hello then (RFC 7145 5.1.3).
    let answers =
        "TargetPortalGroupTag=1 RDMAExtensions=Yes iSERHelloRequired=NotUnderstood InitiatorRecvDataSegmentLength=512";
    match initiator.handle_response(&granted(&request, OPERATIONAL, Some(FULL)), &text(answers)).unwrap() {
        InitiatorStep::Established(grant) => {
            assert!(!grant.parameters.iser_hello_required);
            assert_eq!(grant.parameters.max_recv_data_segment_length, 512);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn declarations_of_iser_are_kept_for_the_side_that_needs_them() {
    // RFC 7145 6.7 to 6.10
    let authority = TestAuthority { offer: Offer { rdma_extensions: true, ..Offer::default() }, ..quiet() };
    let declared = "RDMAExtensions=Yes MaxOutstandingUnexpectedPDUs=4 MaxAHSLength=64 \
                    TaggedBufferForSolicitedDataOnly=No \
                    iSERHelloRequired=Yes";
    let mut target = target();
    let reply = target.handle_request(&request(OPERATIONAL, Some(FULL)), &names(declared), &authority);
    assert!(words(&reply.data).contains("MaxOutstandingUnexpectedPDUs=16"));
    let LoginOutcome::Established(grant) = reply.outcome else { panic!("{:?}", reply.outcome) };
    let parameters = grant.parameters;
    assert_eq!((parameters.peer_max_outstanding_unexpected_pdus, parameters.max_outstanding_unexpected_pdus), (4, 16));
    assert_eq!((parameters.peer_max_ahs_length, parameters.max_ahs_length), (64, 256));
    assert_eq!(parameters.tagged_buffer_for_solicited_data_only, Some(false));
    assert!(parameters.iser_hello_required);
}

#[test]
fn a_connection_joins_no_session_of_the_other_kind() {
    // RFC 7145 5.1: iSER-assisted mode is a session-wide attribute.
    let joins = |rdma_extensions| {
        let parameters = Parameters { rdma_extensions, ..Parameters::default() };
        Some(JoinedSession { parameters, exp_cmd_sn: Serial(1), max_cmd_sn: Serial(2) })
    };
    for (session, transport) in [(true, false), (false, true), (true, true)] {
        let offer = Offer { rdma_extensions: transport, ..Offer::default() };
        let authority = TestAuthority { offer, joins: joins(session), ..quiet() };
        let joining = LoginRequest { tsih: 9, ..request(OPERATIONAL, Some(FULL)) };
        let reply = target().handle_request(&joining, &names(""), &authority);
        assert_eq!(
            matches!(reply.outcome, LoginOutcome::Established(_)),
            session == transport,
            "{session} {transport}"
        );
    }
}
