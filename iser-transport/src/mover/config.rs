//! Sizes and limits of an [`IserMover`](super::IserMover).

use iscsi_proto::pdu::MAX_AHS_LEN;
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
    /// Commands in flight, 1 to 65534: the target's command window, the initiator's slots. Default 128. Tables and
    /// receives are sized for it; no more than so many commands may be let in.
    pub max_tasks: u16,
    /// Receives beyond those for `max_tasks`: for immediate commands (target), and for what the target sends unasked
    /// (initiator). Default 32. It is to be at least the MaxOutstandingUnexpectedPDUs that login declares (RFC 7145
    /// 8.1), and the immediate commands that the session lets in.
    pub receive_slack: u16,
    /// Initiator: writes of at most so many bytes travel whole in the command's message; larger ones are all fetched by
    /// the target. Default 8192.
    pub immediate_limit: u32,
    /// Target: most bytes of sense and response data in one PDU, default 128: Linux posts no larger receives, whatever
    /// it declares.
    pub response_data_limit: u32,
    /// Memory for receives, in bytes; default 16 MiB. A target has a login that would need more refused, for want of
    /// resources (RFC 7145 10.1.3.1); an initiator's connection ends.
    pub receive_memory: usize,
    /// Idle memory that is kept for messages to send, in bytes; default 4 MiB.
    pub send_memory: usize,
    /// Target: when more than so many bytes wait to be sent, nothing is received until half of them are gone; default 4
    /// MiB. It works where the mover runs over a byte stream; over other queue pairs the session's own limits do.
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
            immediate_limit: 8192,
            response_data_limit: 128,
            receive_memory: 16 << 20,
            send_memory: 4 << 20,
            send_high_water: 4 << 20,
            read_depth: 32,
        }
    }

    /// Receives that are posted in the Full Feature Phase: what the queue pair is to have room for.
    #[must_use]
    pub const fn receives(&self) -> usize {
        // One more: the message that was notified last is not posted again before the session is done with it.
        self.max_tasks as usize + self.receive_slack as usize + 1
    }

    /// Work requests that keep everything moving: what the queue pair is to have room for. With less the mover waits
    /// for completions.
    #[must_use]
    pub const fn work(&self) -> usize {
        self.max_tasks as usize * 2 + self.receive_slack as usize + self.read_depth as usize
    }
}

/// Bytes of a receive for PDUs with at most `ahs` bytes of AHS area and `segment` bytes of data, never too small for a
/// login PDU.
pub(super) fn receive_len(ahs: u32, segment: u32) -> usize {
    // RFC 7145 6.8: zero is no limit but the field's own.
    let ahs = if ahs == 0 { MAX_AHS_LEN as u32 } else { padded(ahs).min(MAX_AHS_LEN as u32) };
    HEADERS_LEN + (ahs + padded(segment)).max(LOGIN_DATA_SEGMENT_LEN) as usize
}

/// Bytes with padding (RFC 7143 11.1).
pub(super) const fn padded(len: u32) -> u32 {
    len.next_multiple_of(4)
}
