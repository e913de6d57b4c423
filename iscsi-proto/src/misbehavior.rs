//! What a peer does against the rules, one variant for each, and what the wire hears of it.
//!
//! The errors of the machines ([`MalformedPdu`](crate::datamover::MalformedPdu),
//! [`MoverError`](crate::datamover::MoverError), [`LoginError`](crate::login::LoginError),
//! [`TextExchangeError`](crate::text::exchange::TextExchangeError)) say where it happened and whether the connection
//! goes on; a [`Misbehavior`] says what it was. Its `Display` is a sentence for a person; its fields are for programs.
//! Rules of iSER are among them, because both movers speak through one seam.

use crate::pdu::{LoginStatus, Opcode, RejectReason, Stage};

/// A rule that the peer broke.
///
/// ```
/// use iscsi_proto::misbehavior::Misbehavior;
/// use iscsi_proto::pdu::RejectReason;
/// let asked = Misbehavior::R2tAboveMaxBurstLength { desired: 1 << 20, max_burst_length: 262_144 };
/// assert_eq!(asked.to_string(), "an R2T asks for more than MaxBurstLength");
/// assert_eq!(asked.reject_reason(), RejectReason::ProtocolError);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misbehavior {
    /// A target sent a request, or an initiator a response (RFC 7143 11).
    #[error("a PDU came that the peer's role never sends")]
    OpcodeOfOtherRole(Opcode),
    /// More requests wait for a CmdSN that did not come than the window holds (RFC 7143 4.2.2.1).
    #[error("too much came ahead of a CmdSN that is missing")]
    TooMuchAheadOfCmdSn,

    /// The text of one login request, over all its PDUs, is longer than what is taken of a peer that has proved nothing
    /// (RFC 7143 6.1 asks for 8192 bytes).
    #[error("the text of a login request is longer than what is taken in all")]
    LoginTextTooLong {
        /// Bytes so far.
        len: u32,
        /// The most that are taken.
        limit: u32,
    },

    // Data of a command over TCP.
    /// An R2T for a command without the W bit (RFC 7143 11.8).
    #[error("an R2T came for a command that sends no data")]
    R2tWithoutDataOut,
    /// RFC 7143 11.8.4, 13.13.
    #[error("an R2T asks for more than MaxBurstLength")]
    R2tAboveMaxBurstLength {
        /// Desired Data Transfer Length in bytes.
        desired: u32,
        /// The negotiated MaxBurstLength in bytes.
        max_burst_length: u32,
    },
    /// An R2T for bytes that the command does not have, or that were asked for before (RFC 7143 11.8.4).
    #[error("an R2T asks for data beyond the command's")]
    R2tBeyondData {
        /// Buffer Offset in bytes.
        buffer_offset: u32,
        /// Desired Data Transfer Length in bytes.
        desired: u32,
    },
    /// RFC 7143 13.19.
    #[error("an R2T is out of order, and DataSequenceInOrder is Yes")]
    R2tOutOfOrder {
        /// Its Buffer Offset in bytes.
        buffer_offset: u32,
        /// The next one in order.
        expected: u32,
    },
    /// RFC 7143 4.2.2.4.
    #[error("an R2T has an unexpected R2TSN")]
    R2tSn {
        /// Its R2TSN.
        got: u32,
        /// The next one.
        expected: u32,
    },
    /// A Data-In ends behind what the command reads (RFC 7143 11.7.5).
    #[error("a Data-In lies outside the command's buffer")]
    DataInBeyondBuffer {
        /// Buffer Offset in bytes.
        buffer_offset: u32,
        /// Bytes of the data segment.
        len: u32,
    },
    /// RFC 7143 4.2.2.4.
    #[error("a Data-In has an unexpected DataSN")]
    DataInSn {
        /// Its DataSN.
        got: u32,
        /// The next one.
        expected: u32,
    },
    /// A Data-In begins before the end of the last, where DataPDUInOrder and DataSequenceInOrder are Yes (RFC 7143
    /// 13.18).
    #[error("a Data-In overlays data that came before")]
    DataInOverlap {
        /// Its Buffer Offset in bytes.
        buffer_offset: u32,
        /// Where the last one ended.
        expected: u32,
    },
    /// RFC 7143 11.4.8.
    #[error("data are missing: a SCSI Response counts more Data-In and R2T PDUs than came")]
    DataMissing {
        /// ExpDataSN of the SCSI Response.
        exp_data_sn: u32,
    },

    // Text, in login and in the Full Feature Phase.
    /// RFC 7143 6.2: a text with the C bit is answered without data until it is whole.
    #[error("the target answered before the request was whole")]
    AnswerBeforeRequestIsWhole,
    /// RFC 7143 6.2: an answer with the C bit is asked on without data.
    #[error("a request with text came while the answer was to be continued")]
    TextWhileAnswerContinues,
    /// A Text Response behind the one with the F bit.
    #[error("a text response came after the last")]
    TextAfterTheLast,
    /// RFC 7143 11.11.3.
    #[error("a text response has another task tag than its request")]
    TextOfOtherTask {
        /// Its Initiator Task Tag.
        got: u32,
        /// The request's.
        expected: u32,
    },
    /// RFC 7143 11.11.4.
    #[error("a text response without the F bit has no Target Transfer Tag")]
    TextWithoutTransferTag,
    /// An answer that is longer than its reader takes.
    #[error("the answer to a Text Request is longer than the limit")]
    TextTooLong {
        /// The limit in bytes.
        limit: usize,
    },

    // Login.
    /// The header of a Login Request does not parse (RFC 7143 11.12).
    #[error("the header of a login request is malformed")]
    LoginHeader,
    /// CSG of a Login Request is not the stage that login is in (RFC 7143 11.12.3).
    #[error("a login request is of another stage than login is in")]
    RequestOfOtherStage {
        /// Its CSG.
        got: Stage,
        /// The stage that login is in.
        expected: Stage,
    },
    /// CSG of a Login Response is not its request's (RFC 7143 11.13.4).
    #[error("a login response is of another stage than its request")]
    ResponseOfOtherStage {
        /// Its CSG.
        got: Stage,
        /// The request's.
        expected: Stage,
    },
    /// NSG is not behind CSG (RFC 7143 6.3).
    #[error("a login request asks for a transition to a stage that is not behind its own")]
    LoginTransition {
        /// CSG.
        from: Stage,
        /// NSG.
        to: Stage,
    },
    /// A Login Response with the T bit in answer to a request without (RFC 7143 11.13.6).
    #[error("the target left the stage without being asked to")]
    LoginTransitionUnasked(Stage),
    /// NSG of a Login Response is none that its request may lead to (RFC 7143 6.3).
    #[error("the target went to a stage that was not asked for")]
    LoginTransitionElsewhere {
        /// The request's NSG.
        asked: Stage,
        /// The response's.
        got: Stage,
    },
    /// A redirection without TargetAddress (RFC 7143 11.13.5).
    #[error("the target redirects the login and does not say where to")]
    RedirectionWithoutAddress,
    /// RFC 7143 6.3: the last text of a stage has nothing that needs an answer.
    #[error("the target ended the stage and offers a key that needs an answer")]
    OfferAtTheEndOfAStage,
    /// RFC 7143 6.3.2.
    #[error("the target did not answer AuthMethod")]
    AuthMethodUnanswered,
    /// RFC 7143 12.1.
    #[error("the target did not continue CHAP")]
    ChapNotContinued,
    /// CHAP keys from a target, where the method is another or CHAP has ended (RFC 7143 12.1).
    #[error("the target sent CHAP keys, and CHAP is not under way")]
    ChapKeysFromTarget,
    /// CHAP keys from an initiator, where the method is another or CHAP has ended (RFC 7143 12.1).
    #[error("CHAP keys came where CHAP is not under way")]
    ChapKeysFromInitiator,
    /// RFC 7143 6.3: names and session type are of the first request.
    #[error("a name or session type came after the first request")]
    LateName,

    // iSER (RFC 7145).
    /// RFC 7145 7.3.5, 7.3.6.
    #[error("a Data-In or R2T PDU crossed iSER")]
    DataPduOverIser(Opcode),
    /// RFC 7145 7.3.4.
    #[error("a solicited Data-Out crossed iSER: RDMA Read does its work")]
    SolicitedDataOutOverIser,
    /// RFC 7145 7.3.11.
    #[error("a SNACK crossed iSER")]
    SnackOverIser,
    /// RFC 7145 9.1.
    #[error("a message is shorter than the 28 bytes of an iSER header (RFC 7145 9.1)")]
    IserMessageTooShort,
    /// RFC 7145 9.1.
    #[error("a message has an iSER opcode that RFC 7145 9.1 does not assign")]
    IserOpcode,
    /// RFC 7145 9.3, 9.4.
    #[error("a Hello or HelloReply message is not 28 bytes long (RFC 7145 9.3, 9.4)")]
    HelloLength,
    /// RFC 7145 5.1.3.
    #[error("a Hello came before login was over (RFC 7145 5.1.3)")]
    HelloInLogin,
    /// RFC 7145 5.1.3.
    #[error("a Hello came from a target, or a HelloReply from an initiator (RFC 7145 5.1.3)")]
    HelloOfOtherRole,
    /// RFC 7145 5.1.3.
    #[error("a Hello came after another message (RFC 7145 5.1.3)")]
    LateHello,
    /// RFC 7145 10.1.3.4.
    #[error("the first message was no Hello, which login asked for (RFC 7145 10.1.3.4)")]
    HelloMissing,
    /// RFC 7145 5.1.3.
    #[error("a HelloReply came, and no Hello waits for one (RFC 7145 5.1.3)")]
    HelloReplyUnasked,
    /// RFC 7145 10.1.3.4.
    #[error("the first message was no HelloReply, which login asked for (RFC 7145 10.1.3.4)")]
    HelloReplyMissing,
    /// RFC 7145 9.2.
    #[error("a message is too short for a PDU's header (RFC 7145 9.2)")]
    IserPduTooShort,
    /// The message and the lengths in its Basic Header Segment differ (RFC 7145 9.2).
    #[error("a message is not as long as its PDU's header says")]
    IserPduLength {
        /// Bytes of the message.
        got: usize,
        /// Bytes that its headers and its unpadded data segment make.
        expected: usize,
    },
    /// RFC 7143 6.3.
    #[error("a PDU that is none of login came before login was over (RFC 7143 6.3)")]
    NoLoginPdu,
    /// RFC 7145 7.3.2: a login has no STags.
    #[error("a login PDU invalidates an STag")]
    LoginInvalidatesStag,
    /// RFC 7145 7.3.2.
    #[error("the target invalidated an STag that is not one of the task that it answers")]
    ForeignStagInvalidated(u32),
    /// A SCSI Response to a command that the initiator still holds back.
    #[error("a SCSI Response came for a command that was not sent")]
    ResponseToUnsentCommand,
    /// RFC 7145 9.2.
    #[error("a command that reads nothing advertises a Read STag")]
    ReadStagWithoutRead,
    /// RFC 7145 9.2.
    #[error("a command that writes nothing advertises a Write STag")]
    WriteStagWithoutWrite,
    /// RFC 7145 7.3.1.
    #[error("a command that reads data advertises no Read STag (RFC 7145 7.3.1)")]
    ReadStagMissing,
    /// RFC 7145 7.3.1.
    #[error("a command whose data are not all immediate advertises no Write STag (RFC 7145 7.3.1)")]
    WriteStagMissing,
    /// Data for a command whose Initiator Task Tag a later command of the peer has taken.
    #[error("read data belong to a command whose Read STag is not known any more")]
    ReadStagForgotten,
}

impl Misbehavior {
    /// The Reject reason of a PDU of the Full Feature Phase that does this, where the connection goes on (RFC 7143
    /// 11.17.1). RFC 7145 7.3.11 has the same one for what does not belong on iSER.
    #[must_use]
    pub const fn reject_reason(self) -> RejectReason {
        RejectReason::ProtocolError
    }

    /// The status of a Login Response to who does this (RFC 7143 11.13.5).
    #[must_use]
    pub const fn login_status(self) -> LoginStatus {
        LoginStatus::INITIATOR_ERROR
    }
}
