//! What is answered to the peer's offers and declarations.

use alloc::string::{String, ToString};

use super::{NegotiationPhase, Negotiator, Role, is_answer_word};
use crate::keys::settings::{
    digest_from_name, digest_name, set_boolean, set_digest, set_number, wanted_boolean, wanted_digests, wanted_number,
};
use crate::keys::{BooleanFunction, Function, Key, KeyError, Kind, Senders, Use, shown};
use crate::parameters::{Digest, SessionType};
use crate::text::{IRRELEVANT, REJECT, TextWriter, value};

impl Negotiator {
    pub(super) fn take_proposal(&mut self, key: Key, text: &str, out: &mut TextWriter) -> Result<(), KeyError> {
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
            (Use::FullFeatureOnly, NegotiationPhase::Login) => {
                return Err(KeyError::Stage { key, stage: self.stage() });
            }
            (Use::LeadingOnly | Use::InitializeOnly, NegotiationPhase::FullFeature) => {
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

    pub(super) fn is_irrelevant(&self, key: Key) -> bool {
        let rule = key.spec().irrelevant;
        rule.discovery && self.config.session_type == SessionType::Discovery
            || rule.with_rdma && self.parameters.rdma_extensions
            || rule.without_rdma && !self.parameters.rdma_extensions
            || rule.no_unsolicited_data && self.parameters.initial_r2t && !self.parameters.immediate_data
    }

    pub(super) const fn stage(&self) -> &'static str {
        match self.config.phase {
            NegotiationPhase::Login => "the LoginOperationalNegotiation stage",
            NegotiationPhase::FullFeature => "the Full Feature Phase",
        }
    }
}

/// RFC 7143 13.25: the intervals MUST be rejected. The marker switches may be answered No, which peers of RFC 3720 read
/// as the result of their AND.
fn obsolete_answer(key: Key, text: &str) -> Option<String> {
    let switch = matches!(key, Key::IfMarker | Key::OfMarker);
    Some(if switch && value::boolean(text).is_some() { "No" } else { REJECT }.to_string())
}
