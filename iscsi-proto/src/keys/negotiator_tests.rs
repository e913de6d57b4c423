use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::login::Offer;
use crate::parameters::{Digest, Parameters, SessionType};
use crate::text::{Pair, Pairs, TextWriter};

fn config(role: Role) -> NegotiatorConfig {
    NegotiatorConfig {
        role,
        phase: NegotiationPhase::Login,
        session_type: SessionType::Normal,
        leading: true,
        offer: Offer::default(),
        before: Parameters::default(),
    }
}

fn pairs(text: &TextWriter) -> Vec<(String, String)> {
    Pairs::new(text.as_bytes()).map(|pair| pair.unwrap()).map(|pair| (pair.key.into(), pair.value.into())).collect()
}

/// Gives a text, as `Key=value` with spaces between, to a negotiator and returns its answers in the same form.
fn tell(negotiator: &mut Negotiator, text: &str) -> Result<String, KeyError> {
    let given = text.split_whitespace().map(|pair| {
        let (key, value) = pair.split_once('=').unwrap();
        Pair { key, value }
    });
    let mut out = TextWriter::new();
    negotiator.receive(given, &mut out)?;
    let answers: Vec<_> = pairs(&out).into_iter().map(|(key, value)| key + "=" + &value).collect();
    Ok(answers.join(" "))
}

fn target(change: impl FnOnce(&mut NegotiatorConfig)) -> Negotiator {
    let mut config = config(Role::Target);
    change(&mut config);
    Negotiator::new(config)
}

#[test]
fn the_table_is_in_order_and_names_are_unique() {
    for (at, key) in Key::ALL.into_iter().enumerate() {
        assert_eq!(key as usize, at);
        assert!(at < 64, "KeySet has 64 bits");
        assert_eq!(Key::from_name(key.name()), Some(key));
        assert!(key.spec().section.starts_with("RFC 714"));
    }
}

#[test]
fn the_table_says_what_the_documents_say() {
    use Senders::{Both, Initiator, Target};
    use Use::{All, FullFeatureOnly, InitializeOnly, LeadingOnly};
    for (name, usage, senders, any_stage) in [
        ("HeaderDigest", InitializeOnly, Both, false),
        ("DataDigest", InitializeOnly, Both, false),
        ("MaxConnections", LeadingOnly, Both, false),
        ("SendTargets", FullFeatureOnly, Initiator, false),
        ("TargetName", InitializeOnly, Initiator, true),
        ("InitiatorName", InitializeOnly, Initiator, true),
        ("TargetAlias", All, Target, true),
        ("InitiatorAlias", All, Initiator, true),
        ("TargetAddress", All, Target, true),
        ("TargetPortalGroupTag", InitializeOnly, Target, true),
        ("InitialR2T", LeadingOnly, Both, false),
        ("ImmediateData", LeadingOnly, Both, false),
        ("MaxRecvDataSegmentLength", All, Both, false),
        ("MaxBurstLength", LeadingOnly, Both, false),
        ("FirstBurstLength", LeadingOnly, Both, false),
        ("DefaultTime2Wait", LeadingOnly, Both, false),
        ("DefaultTime2Retain", LeadingOnly, Both, false),
        ("MaxOutstandingR2T", LeadingOnly, Both, false),
        ("DataPDUInOrder", LeadingOnly, Both, false),
        ("DataSequenceInOrder", LeadingOnly, Both, false),
        ("ErrorRecoveryLevel", LeadingOnly, Both, false),
        ("SessionType", LeadingOnly, Initiator, true),
        ("TaskReporting", LeadingOnly, Both, false),
        ("iSCSIProtocolLevel", LeadingOnly, Both, false),
        ("RDMAExtensions", LeadingOnly, Both, false),
        ("TargetRecvDataSegmentLength", InitializeOnly, Both, false),
        ("InitiatorRecvDataSegmentLength", InitializeOnly, Both, false),
        ("MaxOutstandingUnexpectedPDUs", LeadingOnly, Both, false),
        ("MaxAHSLength", LeadingOnly, Both, false),
        ("TaggedBufferForSolicitedDataOnly", LeadingOnly, Initiator, false),
        ("iSERHelloRequired", LeadingOnly, Initiator, false),
    ] {
        let spec = Key::from_name(name).unwrap().spec();
        assert_eq!((spec.usage, spec.senders, spec.any_stage), (usage, senders, any_stage), "{name}");
    }
}

#[test]
fn each_offer_has_its_answer() {
    // The target's wishes are the defaults of `Offer`: bursts of 1 MiB and 256 KiB, 8 R2Ts, InitialR2T=No,
    // ImmediateData=Yes.
    for (offer, answer) in [
        ("HeaderDigest=CRC32C,None", "HeaderDigest=CRC32C"),
        ("HeaderDigest=None", "HeaderDigest=None"),
        ("DataDigest=X-crc64,None,CRC32C", "DataDigest=None"),
        ("DataDigest=X-crc64", "DataDigest=Reject"),
        ("DataDigest=", "DataDigest=Reject"),
        ("MaxConnections=8", "MaxConnections=1"),
        ("MaxConnections=0", "MaxConnections=Reject"),
        ("MaxConnections=65536", "MaxConnections=Reject"),
        ("InitialR2T=No", "InitialR2T=No"),
        ("InitialR2T=Yes", "InitialR2T=Yes"),
        ("InitialR2T=no", "InitialR2T=Reject"),
        ("ImmediateData=Yes", "ImmediateData=Yes"),
        ("ImmediateData=No", "ImmediateData=No"),
        ("MaxBurstLength=262144", "MaxBurstLength=262144"),
        ("MaxBurstLength=0x1000000", "MaxBurstLength=Reject"),
        ("MaxBurstLength=16777215", "MaxBurstLength=1048576"),
        ("MaxBurstLength=511", "MaxBurstLength=Reject"),
        ("MaxBurstLength=512~1024", "MaxBurstLength=Reject"),
        ("MaxBurstLength=0512", "MaxBurstLength=Reject"),
        ("FirstBurstLength=1048576", "FirstBurstLength=262144"),
        ("FirstBurstLength=1048576 MaxBurstLength=4096", "MaxBurstLength=4096 FirstBurstLength=4096"),
        ("DefaultTime2Wait=0", "DefaultTime2Wait=2"),
        ("DefaultTime2Wait=60", "DefaultTime2Wait=60"),
        ("DefaultTime2Wait=3601", "DefaultTime2Wait=Reject"),
        ("DefaultTime2Retain=20", "DefaultTime2Retain=0"),
        ("MaxOutstandingR2T=1", "MaxOutstandingR2T=1"),
        ("MaxOutstandingR2T=65535", "MaxOutstandingR2T=8"),
        ("DataPDUInOrder=No", "DataPDUInOrder=Yes"),
        ("DataSequenceInOrder=No", "DataSequenceInOrder=Yes"),
        ("ErrorRecoveryLevel=2", "ErrorRecoveryLevel=0"),
        ("ErrorRecoveryLevel=3", "ErrorRecoveryLevel=Reject"),
        ("TaskReporting=FastAbort,ResponseFence,RFC3720", "TaskReporting=ResponseFence"),
        ("TaskReporting=FastAbort", "TaskReporting=Reject"),
        ("iSCSIProtocolLevel=31", "iSCSIProtocolLevel=2"),
        ("iSCSIProtocolLevel=1", "iSCSIProtocolLevel=1"),
        ("iSCSIProtocolLevel=32", "iSCSIProtocolLevel=Reject"),
        // RFC 7143 13.25
        ("IFMarker=No", "IFMarker=No"),
        ("OFMarker=Yes", "OFMarker=No"),
        ("IFMarkInt=2048~4096", "IFMarkInt=Reject"),
        ("OFMarkInt=2048", "OFMarkInt=Reject"),
        // RFC 7143 6.2, 13.22
        ("X-com.example.fast=Yes", "X-com.example.fast=NotUnderstood"),
        ("Y-com.example=1", "Y-com.example=NotUnderstood"),
        ("maxburstlength=512", "maxburstlength=NotUnderstood"),
        ("X-com.example.fast=NotUnderstood", ""),
        // Declarations need no answer.
        ("MaxRecvDataSegmentLength=512", ""),
        ("MaxRecvDataSegmentLength=16777216", "MaxRecvDataSegmentLength=Reject"),
        // RFC 7145: without RDMAExtensions the rest means nothing.
        ("RDMAExtensions=Yes", "RDMAExtensions=No"),
        ("InitiatorRecvDataSegmentLength=8192", "InitiatorRecvDataSegmentLength=8192"),
        ("MaxAHSLength=256", ""),
        ("iSERHelloRequired=No", ""),
    ] {
        assert_eq!(tell(&mut target(|_| ()), offer).as_deref(), Ok(answer), "{offer}");
    }
}

#[test]
fn what_is_answered_holds() {
    let mut negotiator = target(|_| ());
    let text = "HeaderDigest=CRC32C MaxRecvDataSegmentLength=65536 InitialR2T=No MaxBurstLength=131072 \
                FirstBurstLength=8192 \
                MaxOutstandingR2T=4 DefaultTime2Wait=5 TaskReporting=RFC3720 iSCSIProtocolLevel=2";
    tell(&mut negotiator, text).unwrap();
    let mut out = TextWriter::new();
    negotiator.propose(&mut out);
    assert_eq!(pairs(&out), [("MaxRecvDataSegmentLength".to_string(), "262144".to_string())]);
    assert_eq!(negotiator.unanswered(), None);
    let expected = Parameters {
        header_digest: Digest::Crc32c,
        max_recv_data_segment_length: 262_144,
        peer_max_recv_data_segment_length: 65_536,
        initial_r2t: false,
        max_burst_length: 131_072,
        first_burst_length: 8192,
        max_outstanding_r2t: 4,
        default_time2wait: 5,
        iscsi_protocol_level: 2,
        ..Parameters::default()
    };
    assert_eq!(negotiator.finish(), Ok(expected));
}

#[test]
fn keys_that_others_make_irrelevant_are_answered_with_a_value() {
    // RFC 7143 13.14, wherever the keys stand in the text
    let mut negotiator = target(|_| ());
    let answer = tell(&mut negotiator, "FirstBurstLength=4096 ImmediateData=No InitialR2T=Yes");
    assert_eq!(answer.as_deref(), Ok("InitialR2T=Yes ImmediateData=No FirstBurstLength=4096"));
    assert_eq!(negotiator.parameters().first_burst_length, 4096, "what was said holds, though nothing goes by it");

    let mut discovery = target(|config| config.session_type = SessionType::Discovery);
    let answer = tell(
        &mut discovery,
        "RDMAExtensions=Yes MaxConnections=4 InitialR2T=No MaxBurstLength=512 ErrorRecoveryLevel=2 DefaultTime2Wait=0 \
         TaskReporting=RFC3720",
    );
    assert_eq!(
        answer.as_deref(),
        Ok("RDMAExtensions=No TaskReporting=RFC3720 MaxConnections=1 ErrorRecoveryLevel=0 InitialR2T=No \
             MaxBurstLength=512 \
            DefaultTime2Wait=2")
    );
    assert_eq!(discovery.finish().unwrap().session_type, SessionType::Discovery);

    // RFC 7143 13: session-wide keys are the leading connection's.
    let before = Parameters { max_burst_length: 512, first_burst_length: 512, ..Parameters::default() };
    let mut second = target(|config| (config.leading, config.before) = (false, before.clone()));
    let answer = tell(&mut second, "MaxBurstLength=4096 HeaderDigest=CRC32C");
    assert_eq!(answer.as_deref(), Ok("HeaderDigest=CRC32C MaxBurstLength=Irrelevant"));
    assert_eq!(second.finish().unwrap(), Parameters { header_digest: Digest::Crc32c, ..before });
}

#[test]
fn error_recovery_holds_r2ts_to_one() {
    let recovering = || target(|config| config.offer.error_recovery_level = 2);
    // RFC 7143 13.19
    let answer = tell(&mut recovering(), "MaxOutstandingR2T=8 ErrorRecoveryLevel=1");
    assert_eq!(answer.as_deref(), Ok("ErrorRecoveryLevel=1 MaxOutstandingR2T=1"));
    let mut out_of_order = target(|config| {
        (config.offer.error_recovery_level, config.offer.data_sequence_in_order) = (2, false);
    });
    let answer = tell(&mut out_of_order, "MaxOutstandingR2T=8 ErrorRecoveryLevel=1 DataSequenceInOrder=No");
    assert_eq!(answer.as_deref(), Ok("ErrorRecoveryLevel=1 DataSequenceInOrder=No MaxOutstandingR2T=8"));
    // In two texts, several R2Ts first.
    let mut negotiator = target(|config| config.offer.error_recovery_level = 0);
    assert_eq!(tell(&mut negotiator, "MaxOutstandingR2T=8").as_deref(), Ok("MaxOutstandingR2T=8"));
    assert_eq!(tell(&mut negotiator, "ErrorRecoveryLevel=1").as_deref(), Ok("ErrorRecoveryLevel=0"));
}

#[test]
fn breaches_end_the_negotiation() {
    let error = |text: &str| tell(&mut target(|_| ()), text).unwrap_err();
    assert_eq!(error("MaxBurstLength=512 MaxBurstLength=512"), KeyError::Repeated(Key::MaxBurstLength));
    assert_eq!(error("TargetAlias=a"), KeyError::Sender(Key::TargetAlias));
    assert!(matches!(error("SendTargets=All"), KeyError::Stage { key: Key::SendTargets, .. }));
    assert!(matches!(error("AuthMethod=None"), KeyError::Stage { key: Key::AuthMethod, .. }));
    for word in ["Reject", "Irrelevant", "NotUnderstood"] {
        // RFC 7143 6.2
        let text = alloc::format!("MaxBurstLength={word}");
        assert!(matches!(error(&text), KeyError::ReservedWord { key: Key::MaxBurstLength, .. }), "{word}");
    }
    // RFC 7143 6.3: also over several texts.
    let mut negotiator = target(|_| ());
    tell(&mut negotiator, "InitialR2T=Yes").unwrap();
    assert_eq!(tell(&mut negotiator, "InitialR2T=No"), Err(KeyError::Repeated(Key::InitialR2T)));
    // RFC 7143 6.2: a target MUST check the rules between keys.
    let mut negotiator = target(|_| ());
    tell(&mut negotiator, "MaxBurstLength=4096").unwrap();
    assert!(matches!(negotiator.finish(), Err(KeyError::Integrity(_))));
}

fn initiator(change: impl FnOnce(&mut NegotiatorConfig)) -> Negotiator {
    let mut config = config(Role::Initiator);
    change(&mut config);
    let mut negotiator = Negotiator::new(config);
    negotiator.offer(&mut TextWriter::new());
    negotiator
}

#[test]
fn answers_must_follow_from_the_offer() {
    for wrong in [
        "MaxBurstLength=1048577",
        "FirstBurstLength=262145",
        "MaxOutstandingR2T=9",
        "MaxConnections=2",
        "ErrorRecoveryLevel=1",
        "DefaultTime2Wait=1",
        "DefaultTime2Retain=1",
        "DataPDUInOrder=No",
        "HeaderDigest=X-crc64",
        "iSCSIProtocolLevel=3",
    ] {
        let error = tell(&mut initiator(|_| ()), wrong).unwrap_err();
        assert!(matches!(error, KeyError::Answer { .. }), "{wrong}: {error}");
    }
    for wrong in ["MaxBurstLength=1", "MaxBurstLength=x", "InitialR2T=Maybe"] {
        assert!(matches!(tell(&mut initiator(|_| ()), wrong), Err(KeyError::Value { .. })), "{wrong}");
    }
    // RFC 7143 6.2: NotUnderstood is no answer to a key of RFC 3720, and a fair one to later keys.
    assert_eq!(tell(&mut initiator(|_| ()), "InitialR2T=NotUnderstood"), Err(KeyError::NotUnderstood(Key::InitialR2T)));
    let mut negotiator = initiator(|_| ());
    tell(&mut negotiator, "iSCSIProtocolLevel=NotUnderstood MaxConnections=Irrelevant MaxBurstLength=Reject").unwrap();
    let parameters = negotiator.finish().unwrap();
    assert_eq!((parameters.iscsi_protocol_level, parameters.max_burst_length), (1, 262_144));
    // A digest that is insisted on.
    let strict = || initiator(|config| config.offer.header_digest = vec![Digest::Crc32c]);
    assert!(matches!(tell(&mut strict(), "HeaderDigest=None"), Err(KeyError::Answer { .. })));
    assert!(matches!(tell(&mut strict(), "HeaderDigest=Reject"), Err(KeyError::Rejected { .. })));
    assert_eq!(strict().finish(), Err(KeyError::Unanswered(Key::HeaderDigest)));
    // Answered twice.
    let mut negotiator = initiator(|_| ());
    tell(&mut negotiator, "MaxBurstLength=512").unwrap();
    assert_eq!(tell(&mut negotiator, "MaxBurstLength=512"), Err(KeyError::Repeated(Key::MaxBurstLength)));
}

#[test]
fn an_initiator_keeps_below_a_target_that_breaks_the_burst_rule() {
    let mut negotiator = initiator(|_| ());
    tell(&mut negotiator, "MaxBurstLength=4096 FirstBurstLength=8192").unwrap();
    assert_eq!(negotiator.finish().unwrap().first_burst_length, 4096);
}

#[test]
fn a_target_speaks_up_where_the_default_does_not_suit_it() {
    let mut negotiator = target(|config| {
        config.offer.immediate_data = false;
        config.offer.max_burst_length = 65_536;
        config.offer.first_burst_length = 512;
        config.offer.data_digest = vec![Digest::Crc32c];
    });
    tell(&mut negotiator, "InitialR2T=No").unwrap();
    let mut out = TextWriter::new();
    negotiator.propose(&mut out);
    let proposed: Vec<_> = pairs(&out).into_iter().map(|(key, value)| key + "=" + &value).collect();
    assert_eq!(
        proposed.join(" "),
        "DataDigest=CRC32C ImmediateData=No MaxBurstLength=65536 FirstBurstLength=512 MaxRecvDataSegmentLength=262144"
    );
    assert_eq!(negotiator.unanswered(), Some(Key::DataDigest));
    // And the initiator answers.
    let before = Parameters { initial_r2t: false, ..Parameters::default() };
    let mut initiator = Negotiator::new(NegotiatorConfig { before, ..config(Role::Initiator) });
    let answers = tell(&mut initiator, &proposed.join(" ")).unwrap();
    assert_eq!(initiator.owed(), Some(Key::DataDigest));
    tell(&mut negotiator, &answers).unwrap();
    assert_eq!(negotiator.unanswered(), None);
    let parameters = negotiator.finish().unwrap();
    assert_eq!(
        (parameters.data_digest, parameters.max_burst_length, parameters.first_burst_length),
        (Digest::Crc32c, 65_536, 512)
    );
    assert!(!parameters.immediate_data);
}

#[test]
fn the_full_feature_phase_changes_little() {
    let mut negotiator = target(|config| config.phase = NegotiationPhase::FullFeature);
    let answer = tell(&mut negotiator, "MaxRecvDataSegmentLength=4096 MaxBurstLength=512 InitiatorAlias=a");
    assert_eq!(answer.as_deref(), Ok("MaxBurstLength=Reject"));
    assert_eq!(negotiator.finish().unwrap().peer_max_recv_data_segment_length, 4096);
}

// RFC 7145 6.2: over iSER MaxRecvDataSegmentLength is ignored by whomever it is declared to, and whenever.
#[test]
fn over_iser_the_segment_lengths_are_those_of_its_own_keys() {
    let lengths = |p: &Parameters| (p.max_recv_data_segment_length, p.peer_max_recv_data_segment_length);
    let own = "RDMAExtensions=Yes InitiatorRecvDataSegmentLength=4096 TargetRecvDataSegmentLength=2048";
    for texts in [[own, "MaxRecvDataSegmentLength=512"], ["MaxRecvDataSegmentLength=512", own]] {
        let mut negotiator = target(|config| config.offer.rdma_extensions = true);
        for text in texts {
            let answer = tell(&mut negotiator, text).unwrap();
            assert!(!answer.contains("Max") && !answer.contains("NotUnderstood"), "{answer}");
        }
        let mut out = TextWriter::new();
        negotiator.propose(&mut out);
        assert!(pairs(&out).iter().all(|(key, _)| key != "MaxRecvDataSegmentLength"));
        assert_eq!(lengths(&negotiator.finish().unwrap()), (2048, 4096));
    }
    let mut negotiator = initiator(|config| config.offer.rdma_extensions = true);
    tell(&mut negotiator, &alloc::format!("MaxRecvDataSegmentLength=512 {own}")).unwrap();
    let before = negotiator.finish().unwrap();
    assert_eq!(lengths(&before), (4096, 2048));
    // In a text exchange the session stays what it is; whose transport it is was for login to say.
    let mut negotiator = target(|config| (config.phase, config.before) = (NegotiationPhase::FullFeature, before));
    let answer = tell(&mut negotiator, "MaxRecvDataSegmentLength=512 X-com.example=1 RDMAExtensions=No").unwrap();
    assert_eq!(answer, "X-com.example=NotUnderstood RDMAExtensions=Reject");
    assert!(negotiator.finish().unwrap().rdma_extensions);
}

/// Runs an initiator against a target to the end.
fn agree(offer: Offer, answer: Offer, session_type: SessionType) -> (Parameters, Parameters) {
    let with = |role, offer: Offer| Negotiator::new(NegotiatorConfig { offer, session_type, ..config(role) });
    let (mut initiator, mut target) = (with(Role::Initiator, offer), with(Role::Target, answer));
    let mut text = TextWriter::new();
    initiator.offer(&mut text);
    let mut first = true;
    for _ in 0..4 {
        let mut reply = TextWriter::new();
        target.receive(Pairs::new(text.as_bytes()).map(Result::unwrap), &mut reply).unwrap();
        if first {
            target.propose(&mut reply);
            first = false;
        }
        text = TextWriter::new();
        initiator.receive(Pairs::new(reply.as_bytes()).map(Result::unwrap), &mut text).unwrap();
    }
    assert_eq!((initiator.unanswered(), target.unanswered()), (None, None));
    (initiator.finish().unwrap(), target.finish().unwrap())
}

fn digests() -> impl Strategy<Value = Vec<Digest>> {
    prop_oneof![
        Just(vec![Digest::None]),
        Just(vec![Digest::None, Digest::Crc32c]),
        Just(vec![Digest::Crc32c, Digest::None]),
    ]
}

prop_compose! {
    fn offers()(
        (header_digest, data_digest) in (digests(), digests()),
        (initial_r2t, immediate_data, data_pdu_in_order, data_sequence_in_order, fast_abort,
            iser_hello_required) in any::<(bool, bool, bool, bool, bool, bool)>(),
        (max_connections, max_outstanding_r2t, default_time2wait, default_time2retain) in any::<(u16, u16, u16, u16)>(),
        (max_recv_data_segment_length, max_burst_length, first_burst_length) in
            (0u32..1 << 25, 0u32..1 << 25, 0u32..1 << 25),
        (initiator_recv_data_segment_length, target_recv_data_segment_length, max_outstanding_unexpected_pdus) in
            (0u32..1 << 25, 0u32..1 << 25, any::<u32>()),
        (error_recovery_level, iscsi_protocol_level) in (0u8..4, 0u8..40),
    ) -> Offer {
        Offer {
            header_digest, data_digest, max_connections, initial_r2t, immediate_data, max_recv_data_segment_length,
                max_burst_length,
            first_burst_length, default_time2wait, default_time2retain, max_outstanding_r2t, data_pdu_in_order,
                data_sequence_in_order,
            error_recovery_level, fast_abort, iscsi_protocol_level, rdma_extensions: false,
                initiator_recv_data_segment_length,
            target_recv_data_segment_length, max_outstanding_unexpected_pdus, iser_hello_required,
        }
    }
}

/// The same values from the other side.
fn mirrored(parameters: Parameters) -> Parameters {
    Parameters {
        max_recv_data_segment_length: parameters.peer_max_recv_data_segment_length,
        peer_max_recv_data_segment_length: parameters.max_recv_data_segment_length,
        max_outstanding_unexpected_pdus: parameters.peer_max_outstanding_unexpected_pdus,
        peer_max_outstanding_unexpected_pdus: parameters.max_outstanding_unexpected_pdus,
        ..parameters
    }
}

proptest! {
    #[test]
    fn both_sides_agree_whatever_they_wish(offer in offers(), answer in offers(), discovery: bool, iser: bool) {
        // Whether it is iSER is for the transport to say, and both have the same.
        let (offer, answer) = (Offer { rdma_extensions: iser, ..offer }, Offer { rdma_extensions: iser, ..answer });
        let session_type = if discovery { SessionType::Discovery } else { SessionType::Normal };
        let (initiator, target) = agree(offer, answer, session_type);
        prop_assert_eq!(&initiator, &mirrored(target));
        prop_assert_eq!(initiator.rdma_extensions, iser && !discovery);
        let no_unsolicited = initiator.initial_r2t && !initiator.immediate_data;
        prop_assert!(initiator.first_burst_length <= initiator.max_burst_length || no_unsolicited || discovery);
        prop_assert!(initiator.error_recovery_level == 0 || !initiator.data_sequence_in_order
            || initiator.max_outstanding_r2t == 1);
        let digests = (initiator.header_digest, initiator.data_digest);
        prop_assert!(!initiator.rdma_extensions || digests == (Digest::None, Digest::None));
        prop_assert!((512..1 << 24).contains(&initiator.max_burst_length));
    }

    #[test]
    fn no_text_panics(target_side: bool, texts in proptest::collection::vec(proptest::collection::vec((0usize..45,
        prop_oneof!["[A-Za-z0-9,~]{0,8}", Just("Yes".to_string()), Just("No".to_string()), Just("512".to_string()),
            Just("Irrelevant".to_string()), Just("Reject".to_string()), Just("NotUnderstood".to_string()),
                Just("None".to_string())]), 0..6), 0..5)) {
        let rdma = |config: &mut NegotiatorConfig| config.offer.rdma_extensions = true;
        let mut negotiator = if target_side { target(rdma) } else { initiator(rdma) };
        for text in &texts {
            let name = |key: usize| Key::ALL.get(key).map_or("X-other", |key| key.name());
            let pairs = text.iter().map(|(key, value)| Pair { key: name(*key), value });
            let mut out = TextWriter::new();
            if negotiator.receive(pairs, &mut out).is_err() {
                return Ok(());
            }
            negotiator.propose(&mut out);
        }
        let _ = negotiator.finish();
    }
}
