//! One side's operational negotiation (RFC 7143 6.2): the same rules for both roles, since either may propose and
//! either must answer.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::settings::{
    boolean, digest_from_name, digest_name, number, set_boolean, set_digest, set_number, wanted_boolean,
    wanted_digests, wanted_number,
};
use super::{BooleanFunction, Function, Key, KeyError, KeySet, Kind, Senders, Use, shown};
use crate::login::Offer;
use crate::parameters::{Digest, Parameters, SessionType};
use crate::text::{IRRELEVANT, NOT_UNDERSTOOD, Pair, REJECT, TextWriter, value};

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
pub enum Phase {
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
    pub phase: Phase,
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

    /// Writes all that the initiator offers and declares.
    pub fn offer(&mut self, out: &mut TextWriter) {
        let wish = self.config.offer.clone();
        let normal = self.config.session_type == SessionType::Normal;
        for key in Key::ALL {
            let spec = key.spec();
            if spec.usage == Use::LeadingOnly && !self.config.leading {
                continue;
            }
            match key {
                // RFC 7145 6.3: first in the first request of the stage.
                Key::RdmaExtensions if wish.rdma_extensions && normal => self.offer_boolean(key, out),
                Key::HeaderDigest | Key::DataDigest if !self.wants_rdma() => self.offer_digests(key, out),
                Key::MaxRecvDataSegmentLength if !self.wants_rdma() => self.declare_segment(out),
                Key::ErrorRecoveryLevel if !normal => self.offer_number(key, 0, out),
                Key::ErrorRecoveryLevel | Key::DefaultTime2Wait | Key::DefaultTime2Retain => {
                    self.offer_number(key, wanted_number(&wish, key), out);
                }
                Key::InitiatorRecvDataSegmentLength | Key::TargetRecvDataSegmentLength if self.wants_rdma() => {
                    self.offer_number(key, wanted_number(&wish, key), out);
                }
                Key::MaxOutstandingUnexpectedPdus if self.wants_rdma() => self.declare_unexpected(out),
                Key::IserHelloRequired if self.wants_rdma() && wish.iser_hello_required => self.declare_hello(out),
                _ if !normal => {}
                Key::IScsiProtocolLevel if wish.iscsi_protocol_level != 1 => {
                    self.offer_number(key, wanted_number(&wish, key), out);
                }
                // RFC 7143 13.23: an offer has at least RFC3720 and ResponseFence.
                Key::TaskReporting if wish.fast_abort => self.push_offer(key, "FastAbort,ResponseFence,RFC3720", out),
                Key::FirstBurstLength if wish.initial_r2t && !wish.immediate_data => {}
                Key::MaxConnections | Key::MaxBurstLength | Key::FirstBurstLength | Key::MaxOutstandingR2T => {
                    self.offer_number(key, wanted_number(&wish, key), out);
                }
                Key::InitialR2T | Key::ImmediateData | Key::DataPduInOrder | Key::DataSequenceInOrder => {
                    self.offer_boolean(key, out);
                }
                _ => {}
            }
        }
    }

    /// Writes what the target has to say of its own: its MaxRecvDataSegmentLength, and an offer for each key that the
    /// initiator did not mention and whose default the target's settings do not allow. Call it once, after the first
    /// text was received.
    pub fn propose(&mut self, out: &mut TextWriter) {
        let wish = self.config.offer.clone();
        for key in Key::ALL {
            let spec = key.spec();
            if self.settled.contains(key)
                || self.is_irrelevant(key)
                || spec.usage == Use::LeadingOnly && !self.config.leading
            {
                continue;
            }
            match key {
                // RFC 7145 6.3: an initiator that passes over it is asked at the first opportunity.
                Key::RdmaExtensions if wish.rdma_extensions => self.offer_boolean(key, out),
                Key::HeaderDigest | Key::DataDigest if !wanted_digests(&wish, key).contains(&Digest::None) => {
                    self.offer_digests(key, out);
                }
                // An offer of No decides the matter; RFC 7143 6.2.2 makes the answer optional.
                Key::ImmediateData if !wish.immediate_data => self.offer_boolean(key, out),
                Key::MaxBurstLength | Key::InitiatorRecvDataSegmentLength | Key::TargetRecvDataSegmentLength
                    if number(&self.parameters, key) > wanted_number(&wish, key) =>
                {
                    self.offer_number(key, wanted_number(&wish, key), out);
                }
                Key::FirstBurstLength if self.parameters.first_burst_length > self.most_first_burst() => {
                    self.offer_number(key, self.most_first_burst().into(), out);
                }
                _ => {}
            }
        }
        if !self.parameters.rdma_extensions {
            self.declare_segment(out);
        } else if self.config.leading && self.settled.contains(Key::MaxOutstandingUnexpectedPdus) {
            self.declare_unexpected(out);
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
        if self.config.phase == Phase::Login
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

    fn push_offer(&mut self, key: Key, value: &str, out: &mut TextWriter) {
        out.push(key.name(), value);
        self.offered.insert(key);
    }

    fn offer_boolean(&mut self, key: Key, out: &mut TextWriter) {
        let yes = wanted_boolean(&self.config.offer, key);
        self.push_offer(key, value::yes_no(yes), out);
        // Where the offer alone decides, it holds without an answer.
        match key.spec().kind {
            Kind::Boolean(BooleanFunction::And) if !yes => set_boolean(&mut self.parameters, key, false),
            Kind::Boolean(BooleanFunction::Or) if yes => set_boolean(&mut self.parameters, key, true),
            _ => {}
        }
    }

    fn offer_number(&mut self, key: Key, number: u64, out: &mut TextWriter) {
        self.push_offer(key, &number.to_string(), out);
    }

    fn offer_digests(&mut self, key: Key, out: &mut TextWriter) {
        let list = self.digest_list(key);
        self.push_offer(key, &list, out);
    }

    fn digest_list(&self, key: Key) -> String {
        let names: Vec<_> = wanted_digests(&self.config.offer, key).iter().map(|digest| digest_name(*digest)).collect();
        names.join(",")
    }

    fn declare_segment(&mut self, out: &mut TextWriter) {
        let key = Key::MaxRecvDataSegmentLength;
        if self.declared.insert(key) {
            let own = wanted_number(&self.config.offer, key);
            self.parameters.max_recv_data_segment_length = own as u32;
            out.push(key.name(), &own.to_string());
        }
    }

    fn declare_unexpected(&mut self, out: &mut TextWriter) {
        let key = Key::MaxOutstandingUnexpectedPdus;
        if self.declared.insert(key) {
            let own = wanted_number(&self.config.offer, key);
            self.parameters.max_outstanding_unexpected_pdus = own as u32;
            out.push(key.name(), &own.to_string());
        }
    }

    fn declare_hello(&mut self, out: &mut TextWriter) {
        let key = Key::IserHelloRequired;
        if self.declared.insert(key) {
            self.parameters.iser_hello_required = true;
            out.push(key.name(), value::yes_no(true));
        }
    }

    fn most_first_burst(&self) -> u32 {
        let wanted = wanted_number(&self.config.offer, Key::FirstBurstLength);
        (wanted as u32).min(self.parameters.max_burst_length)
    }

    fn is_irrelevant(&self, key: Key) -> bool {
        let rule = key.spec().irrelevant;
        rule.discovery && self.config.session_type == SessionType::Discovery
            || rule.with_rdma && self.parameters.rdma_extensions
            || rule.without_rdma && !self.parameters.rdma_extensions
            || rule.no_unsolicited_data && self.parameters.initial_r2t && !self.parameters.immediate_data
    }

    fn take_proposal(&mut self, key: Key, text: &str, out: &mut TextWriter) -> Result<(), KeyError> {
        let spec = key.spec();
        let wrong_side = match self.config.role {
            Role::Initiator => Senders::Initiator,
            Role::Target => Senders::Target,
        };
        if spec.senders == wrong_side {
            return Err(KeyError::Sender(key));
        }
        if is_answer_word(text) {
            // RFC 7143 6.2: these words are never proposed.
            return Err(KeyError::ReservedWord { key, value: shown(text) });
        }
        let declared = matches!(
            spec.kind,
            Kind::Text | Kind::Boolean(BooleanFunction::Declared) | Kind::Number { function: Function::Declared, .. }
        );
        match (spec.usage, self.config.phase) {
            (Use::Security, _) => return Err(KeyError::Stage { key, stage: self.stage() }),
            (Use::FullFeatureOnly, Phase::Login) => return Err(KeyError::Stage { key, stage: self.stage() }),
            (Use::LeadingOnly | Use::InitializeOnly, Phase::FullFeature) => {
                // What login settled stays; a refusal by answer leaves the session alive.
                out.push(key.name(), REJECT);
                return Ok(());
            }
            // RFC 7143 13: session-wide keys MUST only come on the leading connection. Some initiators send all keys on
            // every connection; none takes effect.
            (Use::LeadingOnly, _) if !self.config.leading => {
                if !declared {
                    out.push(key.name(), IRRELEVANT);
                }
                return Ok(());
            }
            _ => {}
        }
        // RFC 7143 6.2: the acceptor may answer Irrelevant. Initiators in use end their login at that word, and a value
        // that nothing goes by harms nobody.
        if self.is_irrelevant(key) && (declared || key == Key::RdmaExtensions) {
            if !declared {
                out.push(key.name(), value::yes_no(false));
            }
            return Ok(());
        }
        if let Some(answer) = self.answer(key, text) {
            out.push(key.name(), &answer);
            // RFC 7143 6.2.2: an offer that decides by itself needs no answer.
            let decided = match spec.kind {
                Kind::Boolean(BooleanFunction::And) => value::boolean(text) == Some(false),
                Kind::Boolean(BooleanFunction::Or) => value::boolean(text) == Some(true),
                _ => false,
            };
            if !decided {
                self.owed.insert(key);
            }
        }
        Ok(())
    }

    /// What is answered to a proposal; none where none is due. It holds from here on.
    fn answer(&mut self, key: Key, text: &str) -> Option<String> {
        match key.spec().kind {
            Kind::Text => None,
            Kind::Obsolete => obsolete_answer(key, text),
            Kind::List => self.choose(key, text),
            Kind::Boolean(function) => self.answer_boolean(key, function, text),
            Kind::Number { min, max, function } => {
                self.answer_number(key, function, value::number(text).filter(|number| (min..=max).contains(number)))
            }
        }
    }

    /// RFC 7143 6.2.1: the first value of the list that we can.
    fn choose(&mut self, key: Key, text: &str) -> Option<String> {
        let chosen = if key == Key::TaskReporting {
            let can = |name: &&str| match *name {
                // Sessions of one connection keep the order of responses by themselves.
                "RFC3720" | "ResponseFence" => true,
                "FastAbort" => self.config.offer.fast_abort,
                _ => false,
            };
            let chosen = value::list(text).find(can);
            self.parameters.fast_abort = chosen == Some("FastAbort");
            chosen
        } else {
            // RFC 7145 6.1: RDMA has checks of its own.
            let rdma = self.parameters.rdma_extensions;
            let wanted = if rdma { &[Digest::None] } else { wanted_digests(&self.config.offer, key) };
            let chosen = value::list(text).find_map(|name| digest_from_name(name).filter(|one| wanted.contains(one)));
            if let Some(digest) = chosen {
                set_digest(&mut self.parameters, key, digest);
            }
            chosen.map(digest_name)
        };
        Some(chosen.unwrap_or(REJECT).to_string())
    }

    fn answer_boolean(&mut self, key: Key, function: BooleanFunction, text: &str) -> Option<String> {
        let Some(theirs) = value::boolean(text) else { return Some(REJECT.to_string()) };
        let ours = wanted_boolean(&self.config.offer, key);
        let result = match function {
            BooleanFunction::And => theirs && ours,
            BooleanFunction::Or => theirs || ours,
            BooleanFunction::Declared => theirs,
        };
        set_boolean(&mut self.parameters, key, result);
        (function != BooleanFunction::Declared).then(|| value::yes_no(result).to_string())
    }

    /// `theirs` is `None` for what is no number within the key's bounds. RFC 7143 6.2.2: such a value may be answered
    /// with Reject.
    fn answer_number(&mut self, key: Key, function: Function, theirs: Option<u64>) -> Option<String> {
        let Some(theirs) = theirs else { return Some(REJECT.to_string()) };
        let ours = match key {
            Key::ErrorRecoveryLevel if !self.may_recover() => 0,
            Key::FirstBurstLength => self.most_first_burst().into(),
            // RFC 7143 13.19.
            Key::MaxOutstandingR2T
                if self.parameters.error_recovery_level > 0 && self.parameters.data_sequence_in_order =>
            {
                1
            }
            Key::MaxOutstandingR2T => self.config.offer.max_outstanding_r2t.max(1).into(),
            _ => wanted_number(&self.config.offer, key),
        };
        let result = match function {
            Function::Minimum => theirs.min(ours),
            Function::Maximum => theirs.max(ours),
            Function::Declared => {
                self.take_declared_number(key, theirs);
                return None;
            }
        };
        set_number(&mut self.parameters, key, result);
        Some(result.to_string())
    }

    /// Error recovery in a discovery session has no meaning (RFC 7143 13.21), and has no place once several R2Ts are
    /// agreed on (13.19). Within one text ErrorRecoveryLevel is settled before MaxOutstandingR2T, which is then held to
    /// 1.
    fn may_recover(&self) -> bool {
        self.config.session_type == SessionType::Normal
            && (self.parameters.max_outstanding_r2t == 1 || !self.parameters.data_sequence_in_order)
    }

    fn take_declared_number(&mut self, key: Key, theirs: u64) {
        // RFC 7145 6.7, 6.8: 0 is no limit, 1 is not allowed; it is read as the least that is.
        let theirs = match key {
            Key::MaxOutstandingUnexpectedPdus | Key::MaxAhsLength if theirs == 1 => 2,
            _ => theirs,
        };
        set_number(&mut self.parameters, key, theirs);
    }

    fn take_declaration_answer(&mut self, key: Key, value: &str) -> Result<(), KeyError> {
        if key == Key::IserHelloRequired {
            // RFC 7145 5.1.3: a target may answer No, and an old one NotUnderstood. Then there is no Hello.
            self.parameters.iser_hello_required &= value::boolean(value) == Some(true);
            return Ok(());
        }
        match value {
            NOT_UNDERSTOOD if !key.spec().later => Err(KeyError::NotUnderstood(key)),
            REJECT => Err(KeyError::Rejected { key, offered: wanted_number(&self.config.offer, key).to_string() }),
            _ => Ok(()),
        }
    }

    /// RFC 7143 6.2.2: an answer that the rules do not allow is a protocol error.
    fn take_answer(&mut self, key: Key, text: &str) -> Result<(), KeyError> {
        let spec = key.spec();
        if key == Key::RdmaExtensions && value::boolean(text) != Some(true) {
            // Only a side whose transport carries nothing else offers it.
            return Err(KeyError::NoRdmaExtensions);
        }
        match text {
            IRRELEVANT => return Ok(()),
            // RFC 7143 6.2: MUST be understood by all, unless the key came with a later document.
            NOT_UNDERSTOOD if spec.later => return Ok(()),
            NOT_UNDERSTOOD => return Err(KeyError::NotUnderstood(key)),
            REJECT => return self.take_reject(key),
            _ => {}
        }
        let forbidden = |offered: String| KeyError::Answer { key, offered, answer: shown(text) };
        match spec.kind {
            Kind::Boolean(function) => {
                let answer = value::boolean(text).ok_or_else(|| KeyError::Value { key, value: shown(text) })?;
                let ours = wanted_boolean(&self.config.offer, key);
                let possible = match function {
                    BooleanFunction::And => ours || !answer,
                    BooleanFunction::Or => !ours || answer,
                    BooleanFunction::Declared => true,
                };
                if !possible {
                    return Err(forbidden(value::yes_no(ours).to_string()));
                }
                set_boolean(&mut self.parameters, key, answer);
            }
            Kind::Number { min, max, function } => {
                let answer = value::number(text)
                    .filter(|answer| (min..=max).contains(answer))
                    .ok_or_else(|| KeyError::Value { key, value: shown(text) })?;
                let ours = self.offered_number(key);
                let possible = match function {
                    Function::Minimum => answer <= ours,
                    Function::Maximum => answer >= ours,
                    Function::Declared => true,
                };
                if !possible {
                    return Err(forbidden(ours.to_string()));
                }
                set_number(&mut self.parameters, key, answer);
            }
            Kind::List if key == Key::TaskReporting => {
                if !["FastAbort", "ResponseFence", "RFC3720"].contains(&text) {
                    return Err(forbidden("FastAbort,ResponseFence,RFC3720".to_string()));
                }
                self.parameters.fast_abort = text == "FastAbort";
            }
            Kind::List => {
                let wanted = wanted_digests(&self.config.offer, key);
                let answer = digest_from_name(text)
                    .filter(|answer| wanted.contains(answer))
                    .ok_or_else(|| forbidden(self.digest_list(key)))?;
                set_digest(&mut self.parameters, key, answer);
            }
            Kind::Text | Kind::Obsolete => {}
        }
        Ok(())
    }

    /// Nothing was agreed on, so the default stays, where it is one that we can live with.
    fn take_reject(&self, key: Key) -> Result<(), KeyError> {
        let bearable = match key.spec().kind {
            Kind::List if key != Key::TaskReporting => wanted_digests(&self.config.offer, key).contains(&Digest::None),
            Kind::Number { function: Function::Minimum, .. } if self.config.role == Role::Target => {
                number(&self.parameters, key) <= wanted_number(&self.config.offer, key)
            }
            Kind::Boolean(BooleanFunction::And) => {
                wanted_boolean(&self.config.offer, key) || !boolean(&self.parameters, key)
            }
            _ => true,
        };
        if bearable { Ok(()) } else { Err(KeyError::Rejected { key, offered: self.offered_text(key) }) }
    }

    fn offered_number(&self, key: Key) -> u64 {
        match key {
            Key::ErrorRecoveryLevel if self.config.session_type == SessionType::Discovery => 0,
            Key::FirstBurstLength if self.config.role == Role::Target => self.most_first_burst().into(),
            _ => wanted_number(&self.config.offer, key),
        }
    }

    fn offered_text(&self, key: Key) -> String {
        match key.spec().kind {
            Kind::List => self.digest_list(key),
            Kind::Boolean(_) => value::yes_no(wanted_boolean(&self.config.offer, key)).to_string(),
            _ => format!("{}", self.offered_number(key)),
        }
    }

    const fn stage(&self) -> &'static str {
        match self.config.phase {
            Phase::Login => "the LoginOperationalNegotiation stage",
            Phase::FullFeature => "the Full Feature Phase",
        }
    }
}

/// RFC 7143 13.25: the intervals MUST be rejected. The marker switches may be answered No, which peers of RFC 3720 read
/// as the result of their AND.
fn obsolete_answer(key: Key, text: &str) -> Option<String> {
    let switch = matches!(key, Key::IfMarker | Key::OfMarker);
    Some(if switch && value::boolean(text).is_some() { "No" } else { REJECT }.to_string())
}

fn is_answer_word(text: &str) -> bool {
    matches!(text, IRRELEVANT | NOT_UNDERSTOOD | REJECT)
}
