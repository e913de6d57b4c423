//! What a target's SecurityNegotiation stage comes to (RFC 7143 6.3.2, 12.1).

use alloc::string::String;
use alloc::vec::Vec;

use super::ChapAccount;
use super::error::LoginError;
use crate::chap::{Account, ChapTarget, TargetStep, as_pairs};
use crate::keys::{Key, KeyError, shown};
use crate::misbehavior::Misbehavior;
use crate::text::{NONE, Pair, TextWriter, value};

const CHAP: &str = "CHAP";

/// How far the proof is that an initiator gives of itself. Each step takes it whole.
#[derive(Debug)]
pub(super) enum Authentication {
    /// AuthMethod has not come, and was not sent.
    Unspoken(ChapTarget),
    /// The initiator offered no AuthMethod, so the target did.
    Proposed(ChapTarget),
    /// CHAP runs.
    Chap(ChapTarget),
    /// Passed: by CHAP under this name, or by None where no proof is asked for.
    Passed(Option<String>),
}

/// What the wish to leave the stage comes to.
pub(super) enum Outcome {
    /// It is left, with the CHAP name that was proved, if any.
    Passed(Option<String>),
    /// It is not.
    NotYet(Authentication),
}

impl Authentication {
    /// Whether the stage may be left; `open` says that no proof is asked for.
    pub(super) fn finish(self, open: bool) -> Outcome {
        match self {
            Self::Passed(user) => Outcome::Passed(user),
            Self::Unspoken(_) if open => Outcome::Passed(None),
            other => Outcome::NotYet(other),
        }
    }

    /// Takes the security keys of a whole text.
    pub(super) fn receive(
        self,
        pairs: &[Pair<'_>],
        accounts: &[ChapAccount],
        out: &mut TextWriter,
    ) -> Result<Self, LoginError> {
        let is_method = |pair: &Pair<'_>| pair.key == Key::AuthMethod.name();
        let methods: Vec<_> = pairs.iter().copied().filter(is_method).collect();
        let keys: Vec<_> = pairs.iter().copied().filter(|pair| !is_method(pair)).collect();
        let method_chosen = match (methods.as_slice(), self) {
            ([], Self::Unspoken(chap)) if !accounts.is_empty() && keys.is_empty() => {
                // RFC 7143 6.3.2: the target may direct the negotiation when the initiator proposes nothing.
                out.push(Key::AuthMethod.name(), CHAP);
                Self::Proposed(chap)
            }
            ([], Self::Proposed(_)) => return Err(LoginError::AuthenticationRequired),
            ([], other) => other,
            ([offer], Self::Unspoken(chap)) => {
                let method = choose(offer.value, accounts)?;
                out.push(Key::AuthMethod.name(), method);
                Self::by(method, chap)
            }
            ([answer], Self::Proposed(chap)) => Self::by(choose(answer.value, accounts)?, chap),
            _ => return Err(KeyError::Repeated(Key::AuthMethod).into()),
        };
        match method_chosen {
            other if keys.is_empty() => Ok(other),
            Self::Chap(chap) => authenticate(chap, &keys, accounts, out),
            _ => Err(LoginError::Protocol(Misbehavior::ChapKeysFromInitiator)),
        }
    }

    fn by(method: &str, chap: ChapTarget) -> Self {
        if method == CHAP { Self::Chap(chap) } else { Self::Passed(None) }
    }
}

/// RFC 7143 6.3.2: MUST be the first of the list that may be used, here CHAP where there are accounts, else None.
fn choose(offer: &str, accounts: &[ChapAccount]) -> Result<&'static str, LoginError> {
    let usable = if accounts.is_empty() { NONE } else { CHAP };
    if value::list(offer).any(|method| method == usable) {
        return Ok(usable);
    }
    Err(if !accounts.is_empty() && value::list(offer).any(|method| method == NONE) {
        LoginError::AuthenticationRequired
    } else {
        LoginError::NoCommonAuthMethod(shown(offer))
    })
}

fn authenticate(
    mut chap: ChapTarget,
    pairs: &[Pair<'_>],
    accounts: &[ChapAccount],
    out: &mut TextWriter,
) -> Result<Authentication, LoginError> {
    let (keys, next) = match chap.handle(pairs.iter().map(|pair| (pair.key, pair.value)))? {
        TargetStep::Send(keys) => (keys, Authentication::Chap(chap)),
        TargetStep::LookUp { name, .. } => {
            let account = accounts.iter().find(|account| account.user == name).map(|account| Account {
                secret: &account.secret,
                own: account.mutual.as_ref().map(|(name, secret)| (name.as_str(), secret)),
            });
            (chap.answer(account)?, Authentication::Passed(Some(name)))
        }
    };
    for (key, value) in as_pairs(&keys) {
        out.push(key, value);
    }
    Ok(next)
}
