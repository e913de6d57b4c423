//! What the peer's answers to our offers come to.

use alloc::string::{String, ToString};

use super::{Negotiator, Role};
use crate::keys::settings::{
    boolean, digest_from_name, number, set_boolean, set_digest, set_number, wanted_boolean, wanted_digests,
    wanted_number,
};
use crate::keys::{BooleanFunction, Function, Key, KeyError, Kind, shown};
use crate::parameters::Digest;
use crate::text::{IRRELEVANT, NOT_UNDERSTOOD, REJECT, value};

impl Negotiator {
    pub(super) fn take_declaration_answer(&mut self, key: Key, value: &str) -> Result<(), KeyError> {
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
    pub(super) fn take_answer(&mut self, key: Key, text: &str) -> Result<(), KeyError> {
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
        let acceptable = match key.spec().kind {
            Kind::List if key != Key::TaskReporting => wanted_digests(&self.config.offer, key).contains(&Digest::None),
            Kind::Number { function: Function::Minimum, .. } if self.config.role == Role::Target => {
                number(&self.parameters, key) <= wanted_number(&self.config.offer, key)
            }
            Kind::Boolean(BooleanFunction::And) => {
                wanted_boolean(&self.config.offer, key) || !boolean(&self.parameters, key)
            }
            _ => true,
        };
        if acceptable { Ok(()) } else { Err(KeyError::Rejected { key, offered: self.offered_text(key) }) }
    }
}
