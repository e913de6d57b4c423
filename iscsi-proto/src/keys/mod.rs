//! The text keys: what RFC 7143 sections 12.1 and 13, RFC 7144 7.1.1 and RFC 7145 section 6 say about each, as one
//! table, and their negotiation.
//!
//! [`Key`] names a key, [`Key::spec`] is its line of the table. [`Negotiator`] runs the operational negotiation of one
//! side: what it offers, what it answers, and the [`Parameters`](crate::parameters::Parameters) that come out. The
//! login machines own one.
//!
//! ```
//! use iscsi_proto::keys::{Function, Key, Kind};
//! let key = Key::from_name("MaxBurstLength").unwrap();
//! assert_eq!(key.spec().kind, Kind::Number { min: 512, max: 16_777_215, function: Function::Minimum });
//! assert_eq!(Key::from_name("maxburstlength"), None); // RFC 7143 6.1: keys are case sensitive
//! ```

use alloc::string::String;

mod negotiator;
#[cfg(test)]
mod negotiator_tests;
mod settings;

pub use negotiator::{NegotiationPhase, Negotiator, NegotiatorConfig, Role};

/// A key that this stack knows. The order is the order in which a text's keys are looked at: a key comes behind those
/// that decide on its relevance or its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs, reason = "each variant is named as its key")]
pub enum Key {
    SessionType,
    InitiatorName,
    InitiatorAlias,
    TargetName,
    TargetAlias,
    TargetAddress,
    TargetPortalGroupTag,
    AuthMethod,
    ChapA,
    ChapI,
    ChapC,
    ChapN,
    ChapR,
    SendTargets,
    NodeArchitecture,
    RdmaExtensions,
    IScsiProtocolLevel,
    TaskReporting,
    HeaderDigest,
    DataDigest,
    IfMarker,
    OfMarker,
    IfMarkInt,
    OfMarkInt,
    MaxConnections,
    ErrorRecoveryLevel,
    InitialR2T,
    ImmediateData,
    MaxRecvDataSegmentLength,
    InitiatorRecvDataSegmentLength,
    TargetRecvDataSegmentLength,
    MaxBurstLength,
    FirstBurstLength,
    DefaultTime2Wait,
    DefaultTime2Retain,
    DataPduInOrder,
    DataSequenceInOrder,
    MaxOutstandingR2T,
    MaxOutstandingUnexpectedPdus,
    MaxAhsLength,
    TaggedBufferForSolicitedDataOnly,
    IserHelloRequired,
}

/// When a key may be used (RFC 7143 13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// SecurityNegotiation stage only (RFC 7143 12).
    Security,
    /// LO: in the login of a session's leading connection only.
    LeadingOnly,
    /// IO: in login only.
    InitializeOnly,
    /// FFPO: in the Full Feature Phase only.
    FullFeatureOnly,
    /// ALL: in login and in the Full Feature Phase.
    All,
}

/// Who may send a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Senders {
    /// The initiator.
    Initiator,
    /// The target.
    Target,
    /// Either.
    Both,
}

/// How a negotiation's result comes from the two values (RFC 7143 13, "result function").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// The result cannot exceed the offer.
    Minimum,
    /// The result cannot be below the offer.
    Maximum,
    /// No offer needed: each side declares its own, no answer.
    Declared,
}

/// How a boolean's result comes from the two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BooleanFunction {
    /// Yes only when both say so.
    And,
    /// Yes when one says so.
    Or,
    /// Declared.
    Declared,
}

/// The values of a key and how they are settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A declared text, name or list.
    Text,
    /// A list of which the other side picks the first that it can (RFC 7143 6.2.1).
    List,
    /// Yes or No.
    Boolean(BooleanFunction),
    /// A number in these bounds.
    Number {
        /// The least.
        min: u64,
        /// The greatest.
        max: u64,
        /// How the result is found.
        function: Function,
    },
    /// A key of RFC 3720 that is no longer negotiated (RFC 7143 13.25).
    Obsolete,
}

/// What makes a key meaningless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Irrelevance {
    /// SessionType=Discovery.
    pub discovery: bool,
    /// RDMAExtensions=Yes.
    pub with_rdma: bool,
    /// RDMAExtensions=No.
    pub without_rdma: bool,
    /// InitialR2T=Yes and ImmediateData=No.
    pub no_unsolicited_data: bool,
}

/// A key's line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySpec {
    /// The name on the wire.
    pub name: &'static str,
    /// The section that defines it.
    pub section: &'static str,
    /// When it may be used.
    pub usage: Use,
    /// Who may send it.
    pub senders: Senders,
    /// Whether it may also be sent in the SecurityNegotiation stage.
    pub any_stage: bool,
    /// Its values.
    pub kind: Kind,
    /// When it has no meaning.
    pub irrelevant: Irrelevance,
    /// Whether peers that know only RFC 3720 may answer NotUnderstood.
    pub later: bool,
}

const ALWAYS: Irrelevance =
    Irrelevance { discovery: false, with_rdma: false, without_rdma: false, no_unsolicited_data: false };
const NORMAL: Irrelevance = Irrelevance { discovery: true, ..ALWAYS };
const DIGEST: Irrelevance = Irrelevance { with_rdma: true, ..ALWAYS };
const ISER: Irrelevance = Irrelevance { discovery: true, without_rdma: true, ..ALWAYS };
const FIRST_BURST: Irrelevance = Irrelevance { discovery: true, no_unsolicited_data: true, ..ALWAYS };

const fn number(min: u64, max: u64, function: Function) -> Kind {
    Kind::Number { min, max, function }
}

const fn spec(name: &'static str, section: &'static str, usage: Use, senders: Senders, kind: Kind) -> KeySpec {
    KeySpec { name, section, usage, senders, any_stage: false, kind, irrelevant: ALWAYS, later: false }
}

impl KeySpec {
    const fn any_stage(mut self) -> Self {
        self.any_stage = true;
        self
    }

    const fn irrelevant(mut self, irrelevant: Irrelevance) -> Self {
        self.irrelevant = irrelevant;
        self
    }

    const fn later(mut self) -> Self {
        self.later = true;
        self
    }
}

/// 2^24 - 1, the longest data segment.
const SEGMENT_MAX: u64 = 0xff_ffff;
/// 2^32 - 1.
const WORD_MAX: u64 = 0xffff_ffff;

impl Key {
    /// All keys, in order.
    pub const ALL: [Self; 42] = {
        use Key::*;
        [
            SessionType,
            InitiatorName,
            InitiatorAlias,
            TargetName,
            TargetAlias,
            TargetAddress,
            TargetPortalGroupTag,
            AuthMethod,
            ChapA,
            ChapI,
            ChapC,
            ChapN,
            ChapR,
            SendTargets,
            NodeArchitecture,
            RdmaExtensions,
            IScsiProtocolLevel,
            TaskReporting,
            HeaderDigest,
            DataDigest,
            IfMarker,
            OfMarker,
            IfMarkInt,
            OfMarkInt,
            MaxConnections,
            ErrorRecoveryLevel,
            InitialR2T,
            ImmediateData,
            MaxRecvDataSegmentLength,
            InitiatorRecvDataSegmentLength,
            TargetRecvDataSegmentLength,
            MaxBurstLength,
            FirstBurstLength,
            DefaultTime2Wait,
            DefaultTime2Retain,
            DataPduInOrder,
            DataSequenceInOrder,
            MaxOutstandingR2T,
            MaxOutstandingUnexpectedPdus,
            MaxAhsLength,
            TaggedBufferForSolicitedDataOnly,
            IserHelloRequired,
        ]
    };

    /// The key of this name; case counts.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }

    /// Its name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// Its line of the table.
    #[must_use]
    pub const fn spec(self) -> KeySpec {
        use BooleanFunction::{And, Or};
        use Function::{Declared, Maximum, Minimum};
        use Kind::{Boolean, List, Obsolete, Text};
        use Senders::{Both, Initiator, Target};
        use Use::{All, FullFeatureOnly, InitializeOnly, LeadingOnly, Security};
        let segment = number(512, SEGMENT_MAX, Minimum);
        let unbounded = number(0, WORD_MAX, Declared);
        match self {
            Self::SessionType => spec("SessionType", "RFC 7143 13.21", LeadingOnly, Initiator, Text).any_stage(),
            Self::InitiatorName => spec("InitiatorName", "RFC 7143 13.5", InitializeOnly, Initiator, Text).any_stage(),
            Self::InitiatorAlias => spec("InitiatorAlias", "RFC 7143 13.7", All, Initiator, Text).any_stage(),
            // In the Full Feature Phase the target sends it too, within the answer to SendTargets.
            Self::TargetName => spec("TargetName", "RFC 7143 13.4", InitializeOnly, Initiator, Text).any_stage(),
            Self::TargetAlias => spec("TargetAlias", "RFC 7143 13.6", All, Target, Text).any_stage(),
            Self::TargetAddress => spec("TargetAddress", "RFC 7143 13.8", All, Target, Text).any_stage(),
            Self::TargetPortalGroupTag => {
                spec("TargetPortalGroupTag", "RFC 7143 13.9", InitializeOnly, Target, Text).any_stage()
            }
            Self::AuthMethod => spec("AuthMethod", "RFC 7143 12.1", Security, Both, List),
            Self::ChapA => spec("CHAP_A", "RFC 7143 12.1.3", Security, Both, List),
            Self::ChapI => spec("CHAP_I", "RFC 7143 12.1.3", Security, Both, Text),
            Self::ChapC => spec("CHAP_C", "RFC 7143 12.1.3", Security, Both, Text),
            Self::ChapN => spec("CHAP_N", "RFC 7143 12.1.3", Security, Both, Text),
            Self::ChapR => spec("CHAP_R", "RFC 7143 12.1.3", Security, Both, Text),
            Self::SendTargets => spec("SendTargets", "RFC 7143 13.3", FullFeatureOnly, Initiator, Text),
            Self::NodeArchitecture => {
                spec("X#NodeArchitecture", "RFC 7143 13.26", LeadingOnly, Both, Text).any_stage().later()
            }
            Self::RdmaExtensions => {
                spec("RDMAExtensions", "RFC 7145 6.3", LeadingOnly, Both, Boolean(And)).irrelevant(NORMAL).later()
            }
            Self::IScsiProtocolLevel => {
                spec("iSCSIProtocolLevel", "RFC 7144 7.1.1", LeadingOnly, Both, number(0, 31, Minimum))
                    .irrelevant(NORMAL)
                    .later()
            }
            Self::TaskReporting => {
                spec("TaskReporting", "RFC 7143 13.23", LeadingOnly, Both, List).irrelevant(NORMAL).later()
            }
            Self::HeaderDigest => spec("HeaderDigest", "RFC 7143 13.1", InitializeOnly, Both, List).irrelevant(DIGEST),
            Self::DataDigest => spec("DataDigest", "RFC 7143 13.1", InitializeOnly, Both, List).irrelevant(DIGEST),
            Self::IfMarker => spec("IFMarker", "RFC 7143 13.25", InitializeOnly, Both, Obsolete),
            Self::OfMarker => spec("OFMarker", "RFC 7143 13.25", InitializeOnly, Both, Obsolete),
            Self::IfMarkInt => spec("IFMarkInt", "RFC 7143 13.25", InitializeOnly, Both, Obsolete),
            Self::OfMarkInt => spec("OFMarkInt", "RFC 7143 13.25", InitializeOnly, Both, Obsolete),
            Self::MaxConnections => {
                spec("MaxConnections", "RFC 7143 13.2", LeadingOnly, Both, number(1, 65_535, Minimum))
                    .irrelevant(NORMAL)
            }
            Self::ErrorRecoveryLevel => {
                spec("ErrorRecoveryLevel", "RFC 7143 13.20", LeadingOnly, Both, number(0, 2, Minimum))
            }
            Self::InitialR2T => spec("InitialR2T", "RFC 7143 13.10", LeadingOnly, Both, Boolean(Or)).irrelevant(NORMAL),
            Self::ImmediateData => {
                spec("ImmediateData", "RFC 7143 13.11", LeadingOnly, Both, Boolean(And)).irrelevant(NORMAL)
            }
            Self::MaxRecvDataSegmentLength => {
                spec("MaxRecvDataSegmentLength", "RFC 7143 13.12", All, Both, number(512, SEGMENT_MAX, Declared))
                    .irrelevant(DIGEST)
            }
            Self::InitiatorRecvDataSegmentLength => {
                spec("InitiatorRecvDataSegmentLength", "RFC 7145 6.5", InitializeOnly, Both, segment)
                    .irrelevant(ISER)
                    .later()
            }
            Self::TargetRecvDataSegmentLength => {
                spec("TargetRecvDataSegmentLength", "RFC 7145 6.4", InitializeOnly, Both, segment)
                    .irrelevant(ISER)
                    .later()
            }
            Self::MaxBurstLength => {
                spec("MaxBurstLength", "RFC 7143 13.13", LeadingOnly, Both, segment).irrelevant(NORMAL)
            }
            Self::FirstBurstLength => {
                spec("FirstBurstLength", "RFC 7143 13.14", LeadingOnly, Both, segment).irrelevant(FIRST_BURST)
            }
            Self::DefaultTime2Wait => {
                spec("DefaultTime2Wait", "RFC 7143 13.15", LeadingOnly, Both, number(0, 3600, Maximum))
            }
            Self::DefaultTime2Retain => {
                spec("DefaultTime2Retain", "RFC 7143 13.16", LeadingOnly, Both, number(0, 3600, Minimum))
            }
            Self::DataPduInOrder => {
                spec("DataPDUInOrder", "RFC 7143 13.18", LeadingOnly, Both, Boolean(Or)).irrelevant(NORMAL)
            }
            Self::DataSequenceInOrder => {
                spec("DataSequenceInOrder", "RFC 7143 13.19", LeadingOnly, Both, Boolean(Or)).irrelevant(NORMAL)
            }
            Self::MaxOutstandingR2T => {
                spec("MaxOutstandingR2T", "RFC 7143 13.17", LeadingOnly, Both, number(1, 65_535, Minimum))
                    .irrelevant(NORMAL)
            }
            Self::MaxOutstandingUnexpectedPdus => {
                spec("MaxOutstandingUnexpectedPDUs", "RFC 7145 6.7", LeadingOnly, Both, unbounded)
                    .irrelevant(ISER)
                    .later()
            }
            Self::MaxAhsLength => {
                spec("MaxAHSLength", "RFC 7145 6.8", LeadingOnly, Both, unbounded).irrelevant(ISER).later()
            }
            Self::TaggedBufferForSolicitedDataOnly => spec(
                "TaggedBufferForSolicitedDataOnly",
                "RFC 7145 6.9",
                LeadingOnly,
                Initiator,
                Boolean(BooleanFunction::Declared),
            )
            .irrelevant(ISER)
            .later(),
            Self::IserHelloRequired => {
                spec("iSERHelloRequired", "RFC 7145 6.10", LeadingOnly, Initiator, Boolean(BooleanFunction::Declared))
                    .irrelevant(ISER)
                    .later()
            }
        }
    }
}

impl core::fmt::Display for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct KeySet(u64);

impl KeySet {
    /// Adds a key; whether it is new.
    pub(crate) const fn insert(&mut self, key: Key) -> bool {
        let new = !self.contains(key);
        self.0 |= 1 << key as u8;
        new
    }

    /// Takes a key out; whether it was in.
    pub(crate) const fn remove(&mut self, key: Key) -> bool {
        let was = self.contains(key);
        self.0 &= !(1 << key as u8);
        was
    }

    pub(crate) const fn contains(self, key: Key) -> bool {
        self.0 & 1 << key as u8 != 0
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Key> {
        Key::ALL.into_iter().filter(move |key| self.contains(*key))
    }
}

/// A peer's breach of a key's rules. Login and negotiation cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A key was declared or negotiated twice (RFC 7143 6.3).
    #[error("the peer sent {0} twice in one negotiation ({section})", section = .0.spec().section)]
    Repeated(Key),
    /// The key does not belong into this stage.
    #[error("the peer sent {key} in {stage}, where it does not belong ({section})", section = key.spec().section)]
    Stage {
        /// The key.
        key: Key,
        /// The stage or phase.
        stage: &'static str,
    },
    /// The peer's role may not send the key.
    #[error("the peer sent {0}, which only the other side may send ({section})", section = .0.spec().section)]
    Sender(Key),
    /// An answering word was proposed as a value (RFC 7143 6.2).
    #[error("the peer proposed {key}={value}, a word that can only be an answer")]
    ReservedWord {
        /// The key.
        key: Key,
        /// The value.
        value: String,
    },
    /// The answer cannot come from what was offered.
    #[error("the peer answered {key}={answer} to an offer of {offered}, which the key's rules forbid")]
    Answer {
        /// The key.
        key: Key,
        /// What was offered.
        offered: String,
        /// What came.
        answer: String,
    },
    /// The value is none that the key can have.
    #[error("{value:?} is no value for {key} ({section})", section = key.spec().section)]
    Value {
        /// The key.
        key: Key,
        /// What came.
        value: String,
    },
    /// The peer does not understand a key that every implementation must (RFC 7143 6.2).
    #[error("the peer does not understand {0}, a key that every iSCSI implementation must know")]
    NotUnderstood(Key),
    /// The peer rejects a key that there is no way on without.
    #[error("the peer rejects {key}={offered}; change the setting on one of the sides")]
    Rejected {
        /// The key.
        key: Key,
        /// What was offered.
        offered: String,
    },
    /// An iSER connection without iSER (RFC 7145 6.3), or a connection that joins a session of the other kind (RFC 7145
    /// 5.1).
    #[error(
        "the connection runs over RDMA, and the peer did not agree to RDMAExtensions=Yes: enable iSER on its side, or \
         connect over TCP (RFC 7145 6.3)"
    )]
    NoRdmaExtensions,
    /// Two values that cannot stand together (RFC 7143 6.2).
    #[error("the negotiated values break a rule: {0}")]
    Integrity(&'static str),
    /// The peer ended the negotiation while an answer is due.
    #[error("the peer ended the negotiation without an answer to {0}")]
    Unanswered(Key),
}

/// A value as an error shows it: its beginning.
pub(crate) fn shown(value: &str) -> String {
    value.chars().take(64).collect()
}
