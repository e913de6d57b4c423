//! One side's operational negotiation (RFC 7143 6.2): the same rules for both roles, since either may propose and
//! either must answer.

use alloc::vec::Vec;

use super::settings::{wanted_boolean, wanted_digests};
use super::{BooleanFunction, Key, KeyError, KeySet, Kind};
use crate::login::Offer;
use crate::parameters::{Digest, Parameters, SessionType};
use crate::text::{IRRELEVANT, NOT_UNDERSTOOD, Pair, REJECT, TextWriter};

mod answering;
mod offering;
mod settling;

/// Which end of the session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The initiator.
    Initiator,
    /// The target.
    Target,
}

/// Where the negotiation takes place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NegotiationPhase {
    /// The LoginOperationalNegotiation stage.
    Login,
    /// A text exchange in the Full Feature Phase.
    FullFeature,
}

/// What a [`Negotiator`] starts from.
#[derive(Debug, Clone)]
pub struct NegotiatorConfig {
    /// This side.
    pub role: Role,
    /// Login or Full Feature Phase.
    pub phase: NegotiationPhase,
    /// SessionType.
    pub session_type: SessionType,
    /// Whether this is the session's leading connection. On another one, session-wide keys are answered Irrelevant and
    /// keep their values.
    pub leading: bool,
    /// What this side wishes for.
    pub offer: Offer,
    /// The values before: the defaults of a new session, those of the session for another connection or a text
    /// exchange.
    pub before: Parameters,
}

/// The operational negotiation of one side.
///
/// An initiator calls [`offer`](Self::offer) first, a target [`propose`](Self::propose) after the first text that it
/// received; both give every text to [`receive`](Self::receive), send what is written, and take the result with
/// [`finish`](Self::finish) when the other side agrees to end.
#[derive(Debug, Clone)]
pub struct Negotiator {
    config: NegotiatorConfig,
    parameters: Parameters,
    /// Proposed by us, not answered.
    offered: KeySet,
    /// Negotiated, or declared by the peer: RFC 7143 6.3 lets neither happen twice.
    settled: KeySet,
    /// Declared by us.
    declared: KeySet,
    /// Of the last text: the peer's offers that it must have our answer to.
    owed: KeySet,
}

impl Negotiator {
    /// Starts.
    #[must_use]
    pub fn new(config: NegotiatorConfig) -> Self {
        let mut parameters = config.before.clone();
        parameters.session_type = config.session_type;
        Self {
            config,
            parameters,
            offered: KeySet::default(),
            settled: KeySet::default(),
            declared: KeySet::default(),
            owed: KeySet::default(),
        }
    }

    /// Takes the pairs of a whole text and writes the answers.
    ///
    /// # Errors
    /// [`KeyError`]; the negotiation has failed and nothing of it holds (RFC 7143 6.2).
    pub fn receive<'a>(
        &mut self,
        pairs: impl IntoIterator<Item = Pair<'a>>,
        out: &mut TextWriter,
    ) -> Result<(), KeyError> {
        self.owed = KeySet::default();
        let mut known = Vec::new();
        for pair in pairs {
            match Key::from_name(pair.key) {
                Some(key) => known.push((key, pair.value)),
                // RFC 7143 6.2: MUST answer NotUnderstood, but that answer itself needs none.
                None if pair.value == NOT_UNDERSTOOD => {}
                None => out.push(pair.key, NOT_UNDERSTOOD),
            }
        }
        // Keys that others depend on come first, wherever they stand in the text.
        known.sort_by_key(|(key, _)| *key);
        for (key, value) in known {
            if self.offered.remove(key) {
                self.settled.insert(key);
                self.take_answer(key, value)?;
            } else if self.declared.contains(key) && (is_answer_word(value) || key == Key::IserHelloRequired) {
                self.take_declaration_answer(key, value)?;
            } else {
                if !self.settled.insert(key) {
                    return Err(KeyError::Repeated(key));
                }
                self.take_proposal(key, value, out)?;
            }
        }
        Ok(())
    }

    /// A key that we offered and that needs an answer still.
    #[must_use]
    pub fn unanswered(&self) -> Option<Key> {
        let mut keys = self.offered.iter();
        // RFC 7143 6.2.2: no answer is due where the offer alone decides.
        keys.find(|key| match key.spec().kind {
            Kind::Boolean(BooleanFunction::And) => wanted_boolean(&self.config.offer, *key),
            Kind::Boolean(BooleanFunction::Or) => !wanted_boolean(&self.config.offer, *key),
            _ => true,
        })
    }

    /// A key of the last text that the peer cannot do without our answer to.
    #[must_use]
    pub fn owed(&self) -> Option<Key> {
        self.owed.iter().next()
    }

    /// What holds if the negotiation ended now.
    #[must_use]
    pub const fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// What holds at most when all is answered: what receive buffers are made for while the answer is still out (RFC
    /// 7145 5.1.1).
    #[must_use]
    pub fn at_most(&self) -> Parameters {
        let mut parameters = self.parameters.clone();
        if self.wants_rdma() {
            parameters.rdma_extensions = true;
            let key = Key::InitiatorRecvDataSegmentLength;
            if self.offered.contains(key) {
                // An offer that is not answered leaves the default.
                let own = self.offered_number(key) as u32;
                parameters.initiator_recv_data_segment_length = parameters.initiator_recv_data_segment_length.max(own);
            }
            parameters.max_recv_data_segment_length = parameters.initiator_recv_data_segment_length;
        }
        parameters
    }

    /// Ends the negotiation: checks the rules between keys and returns what holds. A key that was offered and not
    /// answered keeps its default.
    ///
    /// # Errors
    /// [`KeyError::NoRdmaExtensions`] when the session would not be of the kind that the connection's transport can
    /// carry. [`KeyError::Integrity`], at the target; an initiator keeps to the stricter of the two values instead.
    /// [`KeyError::Unanswered`] for a digest that is asked for and was not answered.
    pub fn finish(self) -> Result<Parameters, KeyError> {
        let digests = [Key::HeaderDigest, Key::DataDigest];
        let needed = |key: &Key| !wanted_digests(&self.config.offer, *key).contains(&Digest::None);
        if let Some(key) = digests.into_iter().find(|key| self.offered.contains(*key) && needed(key)) {
            return Err(KeyError::Unanswered(key));
        }
        let mut parameters = self.parameters;
        // The Full Feature Phase keeps what login settled (RFC 7145 6.3: leading only).
        if self.config.phase == NegotiationPhase::Login
            && parameters.session_type == SessionType::Normal
            && parameters.rdma_extensions != self.config.offer.rdma_extensions
        {
            return Err(KeyError::NoRdmaExtensions);
        }
        if parameters.session_type == SessionType::Discovery {
            // RFC 7143 13.21: implied whatever was said.
            parameters.max_connections = 1;
            parameters.error_recovery_level = 0;
        } else {
            let unsolicited = !parameters.initial_r2t || parameters.immediate_data;
            if unsolicited && parameters.first_burst_length > parameters.max_burst_length {
                // RFC 7143 6.2: a target MUST check. A shorter first burst never harms an initiator.
                if self.config.role == Role::Target {
                    return Err(KeyError::Integrity("FirstBurstLength exceeds MaxBurstLength (RFC 7143 13.14)"));
                }
            }
            parameters.first_burst_length = parameters.first_burst_length.min(parameters.max_burst_length);
            if parameters.error_recovery_level > 0
                && parameters.data_sequence_in_order
                && parameters.max_outstanding_r2t > 1
            {
                if self.config.role == Role::Target {
                    return Err(KeyError::Integrity(
                        "MaxOutstandingR2T must be 1 with error recovery and DataSequenceInOrder=Yes (RFC 7143 13.19)",
                    ));
                }
                parameters.max_outstanding_r2t = 1;
            }
        }
        if parameters.rdma_extensions {
            // RFC 7145 6.1 and 6.2.
            parameters.header_digest = Digest::None;
            parameters.data_digest = Digest::None;
            let (initiator, target) =
                (parameters.initiator_recv_data_segment_length, parameters.target_recv_data_segment_length);
            let (own, peer) =
                if self.config.role == Role::Initiator { (initiator, target) } else { (target, initiator) };
            parameters.max_recv_data_segment_length = own;
            parameters.peer_max_recv_data_segment_length = peer;
        }
        Ok(parameters)
    }

    fn wants_rdma(&self) -> bool {
        if self.config.leading {
            self.config.offer.rdma_extensions && self.config.session_type == SessionType::Normal
        } else {
            self.config.before.rdma_extensions
        }
    }
}

fn is_answer_word(text: &str) -> bool {
    matches!(text, IRRELEVANT | NOT_UNDERSTOOD | REJECT)
}
