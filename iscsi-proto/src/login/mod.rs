//! Login (RFC 7143 section 6): one sans-IO machine for each role.
//!
//! Both take PDUs and give PDUs; the session above moves them with Send_Control. The target's machine asks an
//! [`Authority`] what it may grant; the initiator's machine holds its own wishes.

use alloc::string::String;
use alloc::vec::Vec;

use crate::parameters::{Parameters, SessionType};
use crate::pdu::LoginStatus;
use crate::serial::Serial;

mod error;
mod initiator;
#[cfg(test)]
mod login_tests;
mod security;
mod target;

pub use error::LoginError;
pub use initiator::{ChapLogin, InitiatorGrant, InitiatorLogin, InitiatorLoginConfig, InitiatorStep};
pub use target::{LoginOutcome, LoginReply, TargetGrant, TargetLogin, TargetLoginConfig};

/// What each side offers and accepts, before negotiation. [`Default`] is what this stack offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// HeaderDigest values in order of preference.
    pub header_digest: Vec<crate::parameters::Digest>,
    /// DataDigest values in order of preference.
    pub data_digest: Vec<crate::parameters::Digest>,
    /// MaxConnections, 1 to 65535.
    pub max_connections: u16,
    /// InitialR2T.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength to declare, in bytes.
    pub max_recv_data_segment_length: u32,
    /// MaxBurstLength in bytes.
    pub max_burst_length: u32,
    /// FirstBurstLength in bytes.
    pub first_burst_length: u32,
    /// DefaultTime2Wait in seconds.
    pub default_time2wait: u16,
    /// DefaultTime2Retain in seconds.
    pub default_time2retain: u16,
    /// MaxOutstandingR2T, 1 to 65535.
    pub max_outstanding_r2t: u16,
    /// DataPDUInOrder.
    pub data_pdu_in_order: bool,
    /// DataSequenceInOrder.
    pub data_sequence_in_order: bool,
    /// Highest ErrorRecoveryLevel.
    pub error_recovery_level: u8,
    /// Whether TaskReporting=FastAbort is wanted (initiator) or granted (target), RFC 7143 4.2.3.4.
    pub fast_abort: bool,
    /// Highest iSCSIProtocolLevel.
    pub iscsi_protocol_level: u8,
    /// Whether the transport carries iSER sessions and no others: a normal session's login then comes to
    /// RDMAExtensions=Yes or fails. See [`over`](Self::over).
    pub rdma_extensions: bool,
    /// InitiatorRecvDataSegmentLength in bytes.
    pub initiator_recv_data_segment_length: u32,
    /// TargetRecvDataSegmentLength in bytes.
    pub target_recv_data_segment_length: u32,
    /// MaxOutstandingUnexpectedPDUs to declare, 0 for no limit or 2 to 2^32-1.
    pub max_outstanding_unexpected_pdus: u32,
    /// iSERHelloRequired: whether an initiator asks for the Hello exchange (RFC 7145 5.1.3).
    pub iser_hello_required: bool,
}

impl Offer {
    /// What this offer is on a connection of this mover.
    ///
    /// ```
    /// use iscsi_proto::datamover::Caps;
    /// use iscsi_proto::login::Offer;
    /// let iser = Caps {
    ///     digests: false,
    ///     registered_memory: true,
    ///     copy_limit: 8192,
    ///     transport: "iser",
    ///     rdma_extensions: true,
    ///     half_closes: false,
    /// };
    /// assert!(Offer::default().over(&iser).rdma_extensions);
    /// ```
    #[must_use]
    pub fn over(self, caps: &crate::datamover::Caps) -> Self {
        Self {
            rdma_extensions: caps.rdma_extensions,
            // Data beyond the immediate are fetched by RDMA Read into their place; unsolicited Data-Out would come in
            // Sends and be copied.
            initial_r2t: self.initial_r2t || caps.rdma_extensions,
            // Holds in discovery sessions alone (RFC 7145 6.2), and there receives of this size would stand idle.
            max_recv_data_segment_length: if caps.rdma_extensions { 8192 } else { self.max_recv_data_segment_length },
            ..self
        }
    }
}

impl Default for Offer {
    fn default() -> Self {
        use crate::parameters::Digest;
        use alloc::vec;
        Self {
            header_digest: vec![Digest::None, Digest::Crc32c],
            data_digest: vec![Digest::None, Digest::Crc32c],
            max_connections: 1,
            initial_r2t: false,
            immediate_data: true,
            max_recv_data_segment_length: 262_144,
            max_burst_length: 1 << 20,
            first_burst_length: 262_144,
            default_time2wait: 2,
            default_time2retain: 0,
            max_outstanding_r2t: 8,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            error_recovery_level: 0,
            fast_abort: false,
            iscsi_protocol_level: 2,
            rdma_extensions: false,
            initiator_recv_data_segment_length: 262_144,
            target_recv_data_segment_length: 8192,
            max_outstanding_unexpected_pdus: 16,
            iser_hello_required: false,
        }
    }
}

/// Who logs in to what: known once the first request's text is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// InitiatorName, as it came.
    pub initiator_name: String,
    /// InitiatorAlias.
    pub initiator_alias: Option<String>,
    /// TargetName; `None` in a discovery session.
    pub target_name: Option<String>,
    /// SessionType.
    pub session_type: SessionType,
    /// ISID.
    pub isid: [u8; 6],
    /// TSIH of the first request.
    pub tsih: u16,
    /// CID.
    pub cid: u16,
}

/// What an [`Authority`] grants.
#[derive(Debug, Clone)]
pub struct Admission {
    /// TargetPortalGroupTag, for a normal session.
    pub target_portal_group_tag: Option<u16>,
    /// TargetAlias.
    pub target_alias: Option<String>,
    /// CHAP accounts that may log in; empty means that no authentication is asked for.
    pub accounts: Vec<ChapAccount>,
    /// What the target offers.
    pub offer: Offer,
    /// The session that the connection joins, when the identity's TSIH is not zero: its session-wide values hold for
    /// this connection too.
    pub joins: Option<JoinedSession>,
}

/// An existing session that another connection joins, or that a connection is reinstated in (RFC 7143 6.3.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedSession {
    /// What its leading connection negotiated.
    pub parameters: Parameters,
    /// ExpCmdSN.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN.
    pub max_cmd_sn: Serial,
}

/// A CHAP account at the target.
#[derive(Debug, Clone)]
pub struct ChapAccount {
    /// The initiator's CHAP name (CHAP_N).
    pub user: String,
    /// Its secret.
    pub secret: crate::chap::ChapSecret,
    /// The target's own name and secret for mutual authentication.
    pub mutual: Option<(String, crate::chap::ChapSecret)>,
}

/// A refusal of login with its status, and where the target went for the redirecting ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Status of the response.
    pub status: LoginStatus,
    /// TargetAddress of a redirection.
    pub target_address: Option<String>,
}

impl From<LoginStatus> for Refusal {
    fn from(status: LoginStatus) -> Self {
        Self { status, target_address: None }
    }
}

/// Decides on logins; implemented by the target.
pub trait Authority {
    /// May this initiator log in there, and by what rules? Asked once, as soon as the names are known.
    ///
    /// # Errors
    /// The refusal: not found, not authorized, moved, too many sessions.
    fn admit(&self, identity: &Identity) -> Result<Admission, Refusal>;

    /// Login is complete but for the last response: registers the session (closing an old one of the same I_T nexus,
    /// RFC 7143 6.3.5) and returns its TSIH, never zero.
    ///
    /// # Errors
    /// The refusal: session does not exist, out of resources.
    fn establish(&self, identity: &Identity, parameters: &Parameters) -> Result<u16, Refusal>;
}
