use super::*;
use alloc::string::ToString;
use proptest::prelude::*;

const ALICE: &str = "alice's long secret";
const STORAGE: &str = "the storage's secret";

fn secret(text: &str) -> ChapSecret {
    ChapSecret::new(text)
}

fn credentials(name: &str, text: &str) -> Credentials {
    Credentials::new(name, secret(text)).unwrap()
}

fn only(algorithm: Algorithm) -> ChapPolicy {
    ChapPolicy { algorithms: vec![algorithm], ..ChapPolicy::default() }
}

/// Runs both ends to the target's `answer` and, for mutual CHAP, to the initiator's verdict.
fn run(mut initiator: ChapInitiator, mut target: ChapTarget, account: Option<Account<'_>>) -> Result<bool, ChapError> {
    let offer = initiator.start()?;
    let TargetStep::Send(challenge) = target.handle(as_pairs(&offer))? else { panic!() };
    let InitiatorStep::Send(response) = initiator.handle(as_pairs(&challenge))? else { panic!() };
    let TargetStep::LookUp { name, mutual } = target.handle(as_pairs(&response))? else { panic!() };
    assert_eq!(target.authenticated_name(), None);
    let proof = target.answer(account)?;
    assert_eq!(target.authenticated_name(), Some(name.as_str()));
    assert_eq!(mutual, !proof.is_empty());
    if mutual {
        assert!(!initiator.is_satisfied());
        initiator.handle(as_pairs(&proof))?;
    }
    Ok(initiator.is_satisfied())
}

#[test]
fn responses_are_the_digests_of_identifier_secret_and_challenge() {
    // Computed with coreutils and Python over 01, the secret and sixteen bytes 00 to 0f.
    let challenge: Vec<u8> = (0..16).collect();
    for (algorithm, expected) in VECTORS {
        let response = Response::compute(algorithm, 1, &secret("secretsecretsecret"), &challenge);
        assert_eq!(encode_hex(response.as_bytes()), expected, "{algorithm}");
    }
}

#[test]
fn every_algorithm_authenticates_both_ends() {
    let (alice, storage) = (credentials("alice", ALICE), credentials("storage", STORAGE));
    for algorithm in Algorithm::ALL {
        for encoding in [BinaryEncoding::Hex, BinaryEncoding::Base64] {
            let policy = ChapPolicy { encoding, ..only(algorithm) };
            let initiator = || ChapInitiator::new(policy.clone(), alice.clone(), [1; 32], 9);
            let target = || ChapTarget::new(policy.clone(), 200, [2; 32]);
            let account = Account { secret: alice.secret(), own: Some(storage.pair()) };
            assert_eq!(run(initiator(), target(), Some(account)), Ok(true));
            let proof = TargetProof { name: Some("storage".into()), secret: secret(STORAGE) };
            let mutual = initiator().require_target(proof.clone());
            assert_eq!(run(mutual, target(), Some(account)), Ok(true));

            let one_way = Account { own: None, ..account };
            let mutual = initiator().require_target(proof.clone());
            assert_eq!(run(mutual, target(), Some(one_way)), Err(ChapError::MutualNotConfigured));
            let other = TargetProof { name: Some("other".into()), ..proof };
            let mutual = initiator().require_target(other);
            let error = run(mutual, target(), Some(account));
            assert_eq!(error, Err(ChapError::TargetName("storage".into())));
        }
    }
}

#[test]
fn a_wrong_secret_and_an_unknown_name_look_alike() {
    let policy = ChapPolicy::default();
    let initiator = || ChapInitiator::new(policy.clone(), credentials("alice", ALICE), [1; 32], 0);
    let target = || ChapTarget::new(policy.clone(), 1, [2; 32]);
    let failure = ChapError::Failed { name: "alice".into() };
    assert_eq!(failure.kind(), ChapErrorKind::AuthenticationFailure);
    let failed = Err(failure);
    assert_eq!(run(initiator(), target(), None), failed);
    let other = secret("not alice's secret");
    let account = Account { secret: &other, own: None };
    assert_eq!(run(initiator(), target(), Some(account)), failed);
}

#[test]
fn a_target_with_the_wrong_secret_is_not_believed() {
    let policy = ChapPolicy::default();
    let alice = credentials("alice", ALICE);
    let rogue = credentials("storage", "a guess of the rogue");
    let initiator = ChapInitiator::new(policy.clone(), alice.clone(), [1; 32], 0)
        .require_target(TargetProof { name: None, secret: secret(STORAGE) });
    let account = Account { secret: alice.secret(), own: Some(rogue.pair()) };
    let error = run(initiator, ChapTarget::new(policy, 1, [2; 32]), Some(account));
    assert_eq!(error, Err(ChapError::Failed { name: "storage".into() }));
}

#[test]
fn the_algorithm_is_the_first_common_one_of_the_initiator() {
    let choose = |list: &str, policy: ChapPolicy| -> Result<String, ChapError> {
        let mut target = ChapTarget::new(policy, 1, [2; 32]);
        match target.handle([("AuthMethod", "CHAP"), ("CHAP_A", list)])? {
            TargetStep::Send(keys) => Ok(keys[0].1.clone()),
            TargetStep::LookUp { .. } => panic!(),
        }
    };
    assert_eq!(choose("99,5,7", ChapPolicy::default()), Ok("5".into()));
    assert_eq!(choose("0x7,5", ChapPolicy::default()), Ok("7".into()));
    assert_eq!(choose("5,6,7,8", only(Algorithm::Sha256)), Ok("7".into()));
    let none = choose("5,6", only(Algorithm::Sha256)).unwrap_err();
    assert_eq!(none.kind(), ChapErrorKind::AuthenticationFailure);
    for list in ["", "5,", "md5", "+5", "-1", &"5,".repeat(100)] {
        assert!(matches!(choose(list, ChapPolicy::default()), Err(ChapError::AlgorithmList(_))));
    }
}

#[test]
fn reflections_are_refused() {
    // RFC 7143 9.2.1
    let policy = only(Algorithm::Md5);
    let random = [2; 32];
    let ours = encode_hex(&random[..16]);
    let mut target = ChapTarget::new(policy.clone(), 1, random);
    target.handle([("CHAP_A", "5")]).unwrap();
    let any_response = encode_hex(&[0; 16]);
    let keys = [("CHAP_N", "alice"), ("CHAP_R", &any_response), ("CHAP_I", "1"), ("CHAP_C", &ours)];
    assert_eq!(target.handle(keys), Err(ChapError::ReflectedChallenge));

    // The same random number on both ends: the initiator does not send the challenge back.
    let mut initiator = ChapInitiator::new(policy.clone(), credentials("alice", ALICE), random, 1)
        .require_target(TargetProof { name: None, secret: secret(STORAGE) });
    initiator.start().unwrap();
    let keys = [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", ours.as_str())];
    assert_eq!(initiator.handle(keys), Err(ChapError::ReflectedChallenge));
    assert!(!initiator.is_satisfied());

    // A target that has the initiator's secret only.
    let alice = credentials("alice", ALICE);
    let mut initiator = ChapInitiator::new(policy.clone(), alice.clone(), [1; 32], 7)
        .require_target(TargetProof { name: None, secret: secret(STORAGE) });
    initiator.start().unwrap();
    initiator.handle(keys).unwrap();
    let reflected = Response::compute(Algorithm::Md5, 7, alice.secret(), &[1; 16]);
    let reflected = encode_hex(reflected.as_bytes());
    let error = initiator.handle([("CHAP_N", "storage"), ("CHAP_R", &reflected)]);
    assert_eq!(error, Err(ChapError::ReflectedResponse));

    // An initiator that got the target's own response to the target's challenge elsewhere.
    let storage = credentials("storage", STORAGE);
    let mut target = ChapTarget::new(policy, 1, random);
    target.handle([("CHAP_A", "5")]).unwrap();
    let stolen = Response::compute(Algorithm::Md5, 1, storage.secret(), &random[..16]);
    let stolen = encode_hex(stolen.as_bytes());
    target.handle([("CHAP_N", "alice"), ("CHAP_R", &stolen)]).unwrap();
    let account = Account { secret: alice.secret(), own: Some(storage.pair()) };
    assert_eq!(target.answer(Some(account)), Err(ChapError::ReflectedResponse));
    assert_eq!(target.authenticated_name(), None);
}

#[test]
fn one_secret_for_both_directions_is_refused_by_both_ends() {
    let policy = ChapPolicy::default();
    let alice = credentials("alice", ALICE);
    let mut initiator = ChapInitiator::new(policy.clone(), alice.clone(), [1; 32], 0)
        .require_target(TargetProof { name: None, secret: alice.secret().clone() });
    assert_eq!(initiator.start(), Err(ChapError::SameSecret));
    let initiator = ChapInitiator::new(policy.clone(), alice.clone(), [1; 32], 0);
    let same = credentials("storage", ALICE);
    let account = Account { secret: alice.secret(), own: Some(same.pair()) };
    let error = run(initiator, ChapTarget::new(policy, 1, [2; 32]), Some(account));
    assert_eq!(error, Err(ChapError::SameSecret));
}

#[test]
fn short_secrets_are_a_matter_of_policy() {
    let short = credentials("alice", "eleven byte");
    let start = |policy| ChapInitiator::new(policy, short.clone(), [1; 32], 0).start();
    assert_eq!(start(ChapPolicy::default()), Err(ChapError::SecretTooShort { need: 12 }));
    assert!(start(ChapPolicy { min_secret: 1, ..ChapPolicy::default() }).is_ok());
    let mut target = ChapTarget::new(ChapPolicy::default(), 1, [2; 32]);
    target.handle([("CHAP_A", "5")]).unwrap();
    target.handle([("CHAP_N", "alice"), ("CHAP_R", &encode_hex(&[0; 16]))]).unwrap();
    let account = Account { secret: short.secret(), own: None };
    let error = target.answer(Some(account)).unwrap_err();
    assert_eq!(error.kind(), ChapErrorKind::Configuration);
    for length in [0, 256] {
        let odd = Credentials::new("alice", ChapSecret::new(vec![1; length])).unwrap();
        let policy = ChapPolicy { min_secret: 0, ..ChapPolicy::default() };
        let error = ChapInitiator::new(policy, odd, [1; 32], 0).start();
        assert_eq!(error, Err(ChapError::SecretLength(length)));
    }
}

#[test]
fn wrong_keys_are_named() {
    let step = |keys: &[(&str, &str)]| {
        let mut target = ChapTarget::new(ChapPolicy::default(), 1, [2; 32]);
        target.handle([("CHAP_A", "5")]).unwrap();
        let error = target.handle(keys.iter().copied()).unwrap_err();
        // Nothing goes on after an error.
        assert!(matches!(target.handle([("CHAP_A", "5")]), Err(ChapError::OutOfOrder(_))));
        assert!(matches!(target.answer(None), Err(ChapError::OutOfOrder(_))));
        error
    };
    let response = encode_hex(&[0; 16]);
    let good = [("CHAP_N", "alice"), ("CHAP_R", response.as_str())];
    assert_eq!(step(&[]), ChapError::Missing("CHAP_N"));
    assert_eq!(step(&good[..1]), ChapError::Missing("CHAP_R"));
    assert_eq!(step(&[good[0], good[0]]), ChapError::Twice("CHAP_N"));
    assert_eq!(step(&[("CHAP_A", "5")]), ChapError::OutOfPlace("CHAP_A"));
    assert_eq!(step(&[good[0], good[1], ("CHAP_I", "1")]), ChapError::Missing("CHAP_C"));
    assert_eq!(step(&[good[0], good[1], ("CHAP_C", "0x1")]), ChapError::Missing("CHAP_I"));
    let with = |identifier, challenge: &str| step(&[good[0], good[1], ("CHAP_I", identifier), ("CHAP_C", challenge)]);
    let long = encode_hex(&[0; 1025]);
    assert_eq!(with("256", &long), ChapError::Identifier("256".into()));
    assert_eq!(with("1", &long), ChapError::ChallengeLength(1025));
    assert_eq!(with("1", "0x00"), ChapError::ChallengeLength(1));
    let source = BinaryError::Prefix;
    assert_eq!(with("1", "abc"), ChapError::Binary { key: "CHAP_C", source });
    let algorithm = Algorithm::Md5;
    let short = [good[0], ("CHAP_R", "0x00")];
    assert_eq!(step(&short), ChapError::ResponseLength { algorithm, got: 1 });
    assert_eq!(step(&[("CHAP_N", ""), good[1]]), ChapError::NameLength(0));
    let name = "n".repeat(256);
    assert_eq!(step(&[("CHAP_N", &name), good[1]]), ChapError::NameLength(256));
}

#[test]
fn a_target_cannot_choose_what_was_not_offered() {
    let mut initiator = ChapInitiator::new(only(Algorithm::Sha256), credentials("alice", ALICE), [1; 32], 0);
    assert_eq!(initiator.start().unwrap(), [("CHAP_A", "7".to_string())]);
    let challenge = encode_hex(&[3; 16]);
    let error = initiator.handle([("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", &challenge)]);
    assert_eq!(error, Err(ChapError::NotOffered("5".into())));
}

#[test]
fn secrets_are_not_shown() {
    let text = alloc::format!("{:?}", credentials("alice", ALICE));
    assert!(!text.contains(ALICE) && text.contains("alice"));
    let generated = ChapSecret::generate([0xa5; 16]);
    assert_eq!(generated.as_bytes(), "a5".repeat(16).as_bytes());
}

proptest! {
    /// No keys of a peer panic either end or authenticate anybody.
    #[test]
    fn any_keys_are_refused(
        keys in proptest::collection::vec(("CHAP_[AICNR]", "(0[xb])?[0-9a-fA-F,]{0,70}"), 0..6),
        more in proptest::collection::vec(("CHAP_[AICNR]", "\\PC{0,40}"), 0..6),
    ) {
        let mut target = ChapTarget::new(ChapPolicy::default(), 1, [2; 32]);
        let mut initiator = ChapInitiator::new(ChapPolicy::default(), credentials("alice", ALICE), [1; 32], 0)
            .require_target(TargetProof { name: None, secret: secret(STORAGE) });
        initiator.start().unwrap();
        for keys in [&keys, &more] {
            let pairs = || keys.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            let _ = target.handle(pairs());
            let _ = initiator.handle(pairs());
        }
        let account = Account { secret: &secret(ALICE), own: None };
        let _ = target.answer(Some(account));
        prop_assert_eq!(target.authenticated_name(), None);
        prop_assert!(!initiator.is_satisfied());
    }
}

const VECTORS: [(Algorithm, &str); 4] = [
    (Algorithm::Md5, "0x334fc8f9c5838f0af9073439b0e2e173"),
    (Algorithm::Sha1, "0x1e923c8c616f4a06f090b3965b0277becbdb3cdf"),
    (Algorithm::Sha256, "0x8df9594b61d4cbfffdaba9088f0e1ed6e26bcb94286fcf014b9beb84fcb01b89"),
    (Algorithm::Sha3_256, "0xdc20627802131ca05406940ada8417fec708574ec247f25a862967823fc4bf35"),
];
