//! Sizes and limits of an [`IserMover`](super::IserMover).

use iscsi_proto::login::Offer;
use iscsi_proto::tcp::Role;

use crate::header::HEADERS_LEN;

/// Longest data segment of a login PDU, and so of the first receives (RFC 7143 13.12).
pub(super) const LOGIN_DATA_SEGMENT_LEN: u32 = 8192;

/// Sizes of an [`IserMover`](super::IserMover). The defaults fit what Linux initiators and targets do.
///
/// ```
/// use iser_transport::mover::IserMoverConfig;
/// use iscsi_proto::tcp::Role;
/// let config = IserMoverConfig { max_tasks: 32, ..IserMoverConfig::new(Role::Target) };
/// assert!(config.receives() > 32);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IserMoverConfig {
    /// The role.
    pub role: Role,
    /// Commands in flight, 1 to 65534: the target's command window, the initiator's slots. Default 128. Tables and receives are sized for it; no more
    /// than so many commands may be let in.
    pub max_tasks: u16,
    /// Receives beyond those for `max_tasks`: for immediate commands (target), and for what the target sends unasked (initiator). Default 32. It is to
    /// be at least the MaxOutstandingUnexpectedPDUs that login declares (RFC 7145 8.1).
    pub receive_slack: u16,
    /// TargetRecvDataSegmentLength that a target declares at most, in bytes, 512 to 2^24-1; default 8192. What is larger moves by RDMA Read anyway.
    pub target_recv_data_segment_length: u32,
    /// InitiatorRecvDataSegmentLength that an initiator declares at most, in bytes, 512 to 2^24-1; default 8192.
    pub initiator_recv_data_segment_length: u32,
    /// Initiator: whether to declare iSERHelloRequired=Yes (RFC 7145 6.10). Default no. A target answers a Hello either way.
    pub hello: bool,
    /// MaxOutstandingUnexpectedPDUs to declare (RFC 7145 6.7), at most `receive_slack`; 0, the default, declares none.
    pub max_outstanding_unexpected_pdus: u32,
    /// Initiator: writes of at most so many bytes travel whole in the command's message; larger ones are all fetched by the target. Default 8192.
    pub immediate_limit: u32,
    /// Target: most bytes of sense and response data in one PDU, default 128: Linux posts no larger receives, whatever it declares.
    pub response_data_limit: u32,
    /// Longest AHS area that is received, in bytes, at most 1020; default 256 (RFC 7145 6.8).
    pub max_ahs_length: u32,
    /// Memory for receives, in bytes; default 16 MiB. A login that would need more ends the connection.
    pub receive_memory: usize,
    /// Idle memory that is kept for messages to send, in bytes; default 4 MiB.
    pub send_memory: usize,
    /// Target: when more than so many bytes wait to be sent, nothing is received until half of them are gone; default 4 MiB. It works where the mover
    /// runs over a byte stream; over other queue pairs the session's own limits do.
    pub send_high_water: usize,
    /// RDMA Reads in flight at most, whatever the peer would serve; default 32.
    pub read_depth: u16,
}

impl IserMoverConfig {
    /// The defaults for a role.
    #[must_use]
    pub const fn new(role: Role) -> Self {
        Self {
            role,
            max_tasks: 128,
            receive_slack: 32,
            target_recv_data_segment_length: 8192,
            initiator_recv_data_segment_length: 8192,
            hello: false,
            max_outstanding_unexpected_pdus: 0,
            immediate_limit: 8192,
            response_data_limit: 128,
            max_ahs_length: 256,
            receive_memory: 16 << 20,
            send_memory: 4 << 20,
            send_high_water: 4 << 20,
            read_depth: 32,
        }
    }

    /// What login is to offer over this mover: `offer` with everything set that iSER needs, or that makes it fast.
    #[must_use]
    pub fn offer(&self, offer: Offer) -> Offer {
        Offer {
            rdma_extensions: true,
            initiator_recv_data_segment_length: self.initiator_recv_data_segment_length,
            target_recv_data_segment_length: self.target_recv_data_segment_length,
            max_outstanding_unexpected_pdus: self.max_outstanding_unexpected_pdus,
            // Unsolicited data beyond the immediate are copied; fetched data are not.
            initial_r2t: true,
            ..offer
        }
    }

    /// Bytes of a receive for data segments of `segment` bytes, never too small for a login PDU.
    pub(super) fn receive_len(&self, segment: u32) -> usize {
        let ahs = if matches!(self.role, Role::Target) { self.max_ahs_length.min(1020) } else { 0 };
        HEADERS_LEN + (ahs + padded(segment)).max(LOGIN_DATA_SEGMENT_LEN) as usize
    }

    /// Receives that are posted in the Full Feature Phase: what the queue pair is to have room for.
    #[must_use]
    pub const fn receives(&self) -> usize {
        // One more: the message that was notified last is not posted again before the session is done with it.
        self.max_tasks as usize + self.receive_slack as usize + 1
    }

    /// Work requests that keep everything moving: what the queue pair is to have room for. With less the mover waits for completions.
    #[must_use]
    pub const fn work(&self) -> usize {
        self.max_tasks as usize * 2 + self.receive_slack as usize + self.read_depth as usize
    }
}

/// Bytes with padding (RFC 7143 11.1).
pub(super) const fn padded(len: u32) -> u32 {
    len.next_multiple_of(4)
}
