//! What goes wrong on a connection, and what the wire hears of it: Reject reasons. Login statuses are `iscsi_proto`'s,
//! SCSI status and sense the device server's.

use iscsi_proto::datamover::MalformedPdu;
use iscsi_proto::pdu::{PduError, RejectReason};
use iscsi_proto::text::exchange::TextExchangeError;

/// The Reject reason of a PDU that came whole and is wrong (RFC 7143 11.17.1).
pub(super) fn malformed(error: &MalformedPdu) -> RejectReason {
    match error {
        MalformedPdu::Header(error) => header(error),
        MalformedPdu::DataDigest => RejectReason::DataDigestError,
        // Note 2 of RFC 7143 11.17.1: an invalid TTT or ITT, or the LUN that qualifies a TTT.
        MalformedPdu::UnknownTask | MalformedPdu::WrongLun => RejectReason::InvalidPduField,
        MalformedPdu::Protocol(misbehavior) => misbehavior.reject_reason(),
    }
}

/// The Reject reason of a header that does not parse.
pub(super) fn header(error: &PduError) -> RejectReason {
    match error {
        PduError::UnknownOpcode(_) => RejectReason::CommandNotSupported,
        PduError::WrongOpcode { .. } => RejectReason::ProtocolError,
        PduError::InvalidField { .. } | PduError::InvalidAhs(_) => RejectReason::InvalidPduField,
    }
}

/// The Reject reason of a text exchange that cannot go on.
pub(super) fn text(error: &TextExchangeError) -> RejectReason {
    match error {
        TextExchangeError::StaleTag(_) => RejectReason::InvalidPduField,
        TextExchangeError::Protocol(misbehavior) => misbehavior.reject_reason(),
        TextExchangeError::Text(_) | TextExchangeError::TooManyPdus(_) => RejectReason::ProtocolError,
    }
}
