//! The values that login settles on: what the movers and the sessions of both roles run by.

/// Whether CRC32C guards a part of the PDUs (HeaderDigest, DataDigest; RFC 7143 13.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Digest {
    /// No digest.
    #[default]
    None,
    /// CRC32C.
    Crc32c,
}

/// SessionType (RFC 7143 13.21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SessionType {
    /// Discovery: SendTargets only.
    Discovery,
    /// Normal.
    #[default]
    Normal,
}

/// The operational parameters of one connection and its session, as negotiated; [`Default`] is RFC 7143's default of
/// each key (section 13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// SessionType.
    pub session_type: SessionType,
    /// HeaderDigest.
    pub header_digest: Digest,
    /// DataDigest.
    pub data_digest: Digest,
    /// MaxConnections, 1 to 65535.
    pub max_connections: u16,
    /// InitialR2T: data beyond the immediate waits for an R2T.
    pub initial_r2t: bool,
    /// ImmediateData: the SCSI Command may carry data.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength that we declared, in bytes, 512 to 2^24-1: the most that the peer sends in one PDU.
    pub max_recv_data_segment_length: u32,
    /// MaxRecvDataSegmentLength that the peer declared, in bytes: the most that we send in one PDU.
    pub peer_max_recv_data_segment_length: u32,
    /// MaxBurstLength in bytes, 512 to 2^24-1.
    pub max_burst_length: u32,
    /// FirstBurstLength in bytes, 512 to 2^24-1, at most MaxBurstLength.
    pub first_burst_length: u32,
    /// DefaultTime2Wait in seconds, 0 to 3600.
    pub default_time2wait: u16,
    /// DefaultTime2Retain in seconds, 0 to 3600.
    pub default_time2retain: u16,
    /// MaxOutstandingR2T, 1 to 65535.
    pub max_outstanding_r2t: u16,
    /// DataPDUInOrder.
    pub data_pdu_in_order: bool,
    /// DataSequenceInOrder.
    pub data_sequence_in_order: bool,
    /// ErrorRecoveryLevel, 0 to 2.
    pub error_recovery_level: u8,
    /// iSCSIProtocolLevel, 0 to 31; 1 is RFC 7143, 2 adds RFC 7144.
    pub iscsi_protocol_level: u8,
    /// TaskReporting is FastAbort (RFC 7143 13.23).
    pub fast_abort: bool,
    /// RDMAExtensions (RFC 7145 6.3). With it both MaxRecvDataSegmentLengths hold the values of the two keys that
    /// follow (6.2).
    pub rdma_extensions: bool,
    /// InitiatorRecvDataSegmentLength in bytes (RFC 7145 6.5).
    pub initiator_recv_data_segment_length: u32,
    /// TargetRecvDataSegmentLength in bytes (RFC 7145 6.4).
    pub target_recv_data_segment_length: u32,
    /// MaxOutstandingUnexpectedPDUs that we declared (RFC 7145 6.7): what the peer may send unasked; 0 is no limit.
    pub max_outstanding_unexpected_pdus: u32,
    /// MaxOutstandingUnexpectedPDUs that the peer declared: what we may send unasked; 0 is no limit.
    pub peer_max_outstanding_unexpected_pdus: u32,
    /// MaxAHSLength in bytes for what we receive (RFC 7145 6.8): the default, for it is not declared.
    pub max_ahs_length: u32,
    /// MaxAHSLength in bytes that the peer declared: the longest AHS area that we may send; 0 is no limit.
    pub peer_max_ahs_length: u32,
    /// TaggedBufferForSolicitedDataOnly, if the initiator declared it (RFC 7145 6.9). The default is No, but initiators
    /// that say nothing of it are known to behave as with Yes.
    pub tagged_buffer_for_solicited_data_only: Option<bool>,
    /// iSERHelloRequired (RFC 7145 6.10), agreed to by both.
    pub iser_hello_required: bool,
}

impl Parameters {
    /// The session-wide values with the connection's own at their defaults: what another connection of the session
    /// starts from.
    #[must_use]
    pub fn for_new_connection(&self) -> Self {
        let default = Self::default();
        Self {
            header_digest: default.header_digest,
            data_digest: default.data_digest,
            max_recv_data_segment_length: default.max_recv_data_segment_length,
            peer_max_recv_data_segment_length: default.peer_max_recv_data_segment_length,
            initiator_recv_data_segment_length: default.initiator_recv_data_segment_length,
            target_recv_data_segment_length: default.target_recv_data_segment_length,
            ..self.clone()
        }
    }
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            session_type: SessionType::Normal,
            header_digest: Digest::None,
            data_digest: Digest::None,
            max_connections: 1,
            initial_r2t: true,
            immediate_data: true,
            max_recv_data_segment_length: 8192,
            peer_max_recv_data_segment_length: 8192,
            max_burst_length: 262_144,
            first_burst_length: 65_536,
            default_time2wait: 2,
            default_time2retain: 20,
            max_outstanding_r2t: 1,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            error_recovery_level: 0,
            iscsi_protocol_level: 1,
            fast_abort: false,
            rdma_extensions: false,
            initiator_recv_data_segment_length: 8192,
            target_recv_data_segment_length: 8192,
            max_outstanding_unexpected_pdus: 0,
            peer_max_outstanding_unexpected_pdus: 0,
            max_ahs_length: 256,
            peer_max_ahs_length: 256,
            tagged_buffer_for_solicited_data_only: None,
            iser_hello_required: false,
        }
    }
}
