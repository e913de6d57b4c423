//! Where each key's value lives: in [`Offer`] what this side wants, in [`Parameters`] what is agreed.

use super::Key;
use crate::login::Offer;
use crate::parameters::{Digest, Parameters};

pub(super) fn wanted_boolean(offer: &Offer, key: Key) -> bool {
    match key {
        Key::RdmaExtensions => offer.rdma_extensions,
        Key::IserHelloRequired => offer.iser_hello_required,
        Key::InitialR2T => offer.initial_r2t,
        Key::ImmediateData => offer.immediate_data,
        Key::DataPduInOrder => offer.data_pdu_in_order,
        Key::DataSequenceInOrder => offer.data_sequence_in_order,
        _ => false,
    }
}

pub(super) fn set_boolean(parameters: &mut Parameters, key: Key, yes: bool) {
    match key {
        Key::RdmaExtensions => parameters.rdma_extensions = yes,
        Key::InitialR2T => parameters.initial_r2t = yes,
        Key::ImmediateData => parameters.immediate_data = yes,
        Key::DataPduInOrder => parameters.data_pdu_in_order = yes,
        Key::DataSequenceInOrder => parameters.data_sequence_in_order = yes,
        Key::TaggedBufferForSolicitedDataOnly => parameters.tagged_buffer_for_solicited_data_only = Some(yes),
        Key::IserHelloRequired => parameters.iser_hello_required = yes,
        _ => {}
    }
}

pub(super) fn boolean(parameters: &Parameters, key: Key) -> bool {
    match key {
        Key::RdmaExtensions => parameters.rdma_extensions,
        Key::InitialR2T => parameters.initial_r2t,
        Key::ImmediateData => parameters.immediate_data,
        Key::DataPduInOrder => parameters.data_pdu_in_order,
        Key::DataSequenceInOrder => parameters.data_sequence_in_order,
        _ => false,
    }
}

/// What this side wants, kept within the key's bounds whatever the configuration says.
pub(super) fn wanted_number(offer: &Offer, key: Key) -> u64 {
    let wanted: u64 = match key {
        Key::IScsiProtocolLevel => offer.iscsi_protocol_level.into(),
        Key::MaxConnections => offer.max_connections.into(),
        Key::ErrorRecoveryLevel => offer.error_recovery_level.into(),
        Key::MaxRecvDataSegmentLength => offer.max_recv_data_segment_length.into(),
        Key::InitiatorRecvDataSegmentLength => offer.initiator_recv_data_segment_length.into(),
        Key::TargetRecvDataSegmentLength => offer.target_recv_data_segment_length.into(),
        Key::MaxBurstLength => offer.max_burst_length.into(),
        // RFC 7143 13.14: FirstBurstLength MUST NOT exceed MaxBurstLength.
        Key::FirstBurstLength => offer.first_burst_length.min(offer.max_burst_length).into(),
        Key::DefaultTime2Wait => offer.default_time2wait.into(),
        Key::DefaultTime2Retain => offer.default_time2retain.into(),
        // RFC 7143 13.19: MUST be 1 with error recovery and sequences in order.
        Key::MaxOutstandingR2T if offer.error_recovery_level > 0 && offer.data_sequence_in_order => 1,
        Key::MaxOutstandingR2T => offer.max_outstanding_r2t.into(),
        // RFC 7145 6.7: 1 is no value of this key.
        Key::MaxOutstandingUnexpectedPdus if offer.max_outstanding_unexpected_pdus == 1 => 2,
        Key::MaxOutstandingUnexpectedPdus => offer.max_outstanding_unexpected_pdus.into(),
        _ => 0,
    };
    match key.spec().kind {
        super::Kind::Number { min, max, .. } => wanted.clamp(min, max),
        _ => wanted,
    }
}

pub(super) fn number(parameters: &Parameters, key: Key) -> u64 {
    match key {
        Key::IScsiProtocolLevel => parameters.iscsi_protocol_level.into(),
        Key::MaxConnections => parameters.max_connections.into(),
        Key::ErrorRecoveryLevel => parameters.error_recovery_level.into(),
        Key::MaxRecvDataSegmentLength => parameters.peer_max_recv_data_segment_length.into(),
        Key::InitiatorRecvDataSegmentLength => parameters.initiator_recv_data_segment_length.into(),
        Key::TargetRecvDataSegmentLength => parameters.target_recv_data_segment_length.into(),
        Key::MaxBurstLength => parameters.max_burst_length.into(),
        Key::FirstBurstLength => parameters.first_burst_length.into(),
        Key::DefaultTime2Wait => parameters.default_time2wait.into(),
        Key::DefaultTime2Retain => parameters.default_time2retain.into(),
        Key::MaxOutstandingR2T => parameters.max_outstanding_r2t.into(),
        Key::MaxOutstandingUnexpectedPdus => parameters.peer_max_outstanding_unexpected_pdus.into(),
        Key::MaxAhsLength => parameters.peer_max_ahs_length.into(),
        _ => 0,
    }
}

/// Sets a number that is within the key's bounds; of declared keys it is the peer's.
pub(super) fn set_number(parameters: &mut Parameters, key: Key, value: u64) {
    let word = u32::try_from(value).unwrap_or(u32::MAX);
    let half = u16::try_from(value).unwrap_or(u16::MAX);
    let byte = u8::try_from(value).unwrap_or(u8::MAX);
    match key {
        Key::IScsiProtocolLevel => parameters.iscsi_protocol_level = byte,
        Key::MaxConnections => parameters.max_connections = half,
        Key::ErrorRecoveryLevel => parameters.error_recovery_level = byte,
        Key::MaxRecvDataSegmentLength => parameters.peer_max_recv_data_segment_length = word,
        Key::InitiatorRecvDataSegmentLength => parameters.initiator_recv_data_segment_length = word,
        Key::TargetRecvDataSegmentLength => parameters.target_recv_data_segment_length = word,
        Key::MaxBurstLength => parameters.max_burst_length = word,
        Key::FirstBurstLength => parameters.first_burst_length = word,
        Key::DefaultTime2Wait => parameters.default_time2wait = half,
        Key::DefaultTime2Retain => parameters.default_time2retain = half,
        Key::MaxOutstandingR2T => parameters.max_outstanding_r2t = half,
        Key::MaxOutstandingUnexpectedPdus => parameters.peer_max_outstanding_unexpected_pdus = word,
        Key::MaxAhsLength => parameters.peer_max_ahs_length = word,
        _ => {}
    }
}

pub(super) fn wanted_digests(offer: &Offer, key: Key) -> &[Digest] {
    let list = if key == Key::HeaderDigest { &offer.header_digest } else { &offer.data_digest };
    if list.is_empty() { &[Digest::None] } else { list }
}

pub(super) fn set_digest(parameters: &mut Parameters, key: Key, digest: Digest) {
    if key == Key::HeaderDigest {
        parameters.header_digest = digest;
    } else {
        parameters.data_digest = digest;
    }
}

pub(super) fn digest_from_name(name: &str) -> Option<Digest> {
    match name {
        "None" => Some(Digest::None),
        "CRC32C" => Some(Digest::Crc32c),
        _ => None,
    }
}

pub(super) const fn digest_name(digest: Digest) -> &'static str {
    match digest {
        Digest::None => "None",
        Digest::Crc32c => "CRC32C",
    }
}
