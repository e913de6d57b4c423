//! The target's SecurityNegotiation stage (RFC 7143 6.3.2, 12.1).

use alloc::string::String;
use alloc::vec::Vec;

use super::ChapAccount;
use super::error::LoginError;
use crate::chap::{Account, ChapPolicy, ChapTarget, TargetStep, as_pairs};
use crate::keys::{Key, KeyError, shown};
use crate::misbehavior::Misbehavior;
use crate::text::{NONE, Pair, TextWriter, value};

const CHAP: &str = "CHAP";

/// Where the stage stands.
#[derive(Debug)]
enum State {
    /// AuthMethod has not been spoken of.
    Start,
    /// The initiator offered no AuthMethod, so the target did.
    Proposed,
    /// CHAP runs.
    Chap,
    /// Passed, without authentication or with.
    Passed,
}

/// The security stage of one login.
#[derive(Debug)]
pub(super) struct Security {
    state: State,
    chap: ChapTarget,
    user: Option<String>,
}

impl Security {
    pub(super) fn new(policy: ChapPolicy, challenge: [u8; 32], identifier: u8) -> Self {
        Self { state: State::Start, chap: ChapTarget::new(policy, identifier, challenge), user: None }
    }

    /// Whether the stage may be left; `open` says that no authentication is asked for.
    pub(super) const fn is_passed(&self, open: bool) -> bool {
        matches!(self.state, State::Passed) || open && matches!(self.state, State::Start)
    }

    /// The CHAP name that was proved.
    pub(super) fn take_user(&mut self) -> Option<String> {
        self.user.take()
    }

    /// Takes the security keys of a whole text.
    pub(super) fn receive(
        &mut self,
        pairs: &[Pair<'_>],
        accounts: &[ChapAccount],
        out: &mut TextWriter,
    ) -> Result<(), LoginError> {
        let is_method = |pair: &Pair<'_>| pair.key == Key::AuthMethod.name();
        let methods: Vec<_> = pairs.iter().copied().filter(is_method).collect();
        let chap: Vec<_> = pairs.iter().copied().filter(|pair| !is_method(pair)).collect();
        match (methods.as_slice(), &self.state) {
            ([], State::Start) if !accounts.is_empty() && chap.is_empty() => {
                // RFC 7143 6.3.2: the target may direct the negotiation when the initiator proposes nothing.
                out.push(Key::AuthMethod.name(), CHAP);
                self.state = State::Proposed;
            }
            ([], State::Proposed) => return Err(LoginError::AuthenticationRequired),
            ([], _) => {}
            ([offer], State::Start | State::Proposed) => self.choose(offer.value, accounts, out)?,
            _ => return Err(KeyError::Repeated(Key::AuthMethod).into()),
        }
        if chap.is_empty() {
            return Ok(());
        }
        if !matches!(self.state, State::Chap) {
            return Err(LoginError::Protocol(Misbehavior::ChapKeysFromInitiator));
        }
        self.authenticate(&chap, accounts, out)
    }

    /// RFC 7143 6.3.2: MUST be the first of the list that may be used, here CHAP where there are accounts, else None.
    fn choose(&mut self, offer: &str, accounts: &[ChapAccount], out: &mut TextWriter) -> Result<(), LoginError> {
        let usable = if accounts.is_empty() { NONE } else { CHAP };
        if !value::list(offer).any(|method| method == usable) {
            return Err(if !accounts.is_empty() && value::list(offer).any(|method| method == NONE) {
                LoginError::AuthenticationRequired
            } else {
                LoginError::NoCommonAuthMethod(shown(offer))
            });
        }
        if matches!(self.state, State::Start) {
            out.push(Key::AuthMethod.name(), usable);
        }
        self.state = if accounts.is_empty() { State::Passed } else { State::Chap };
        Ok(())
    }

    fn authenticate(
        &mut self,
        pairs: &[Pair<'_>],
        accounts: &[ChapAccount],
        out: &mut TextWriter,
    ) -> Result<(), LoginError> {
        let keys = match self.chap.handle(pairs.iter().map(|pair| (pair.key, pair.value)))? {
            TargetStep::Send(keys) => keys,
            TargetStep::LookUp { name, .. } => {
                let account = accounts.iter().find(|account| account.user == name).map(|account| Account {
                    secret: &account.secret,
                    own: account.mutual.as_ref().map(|(name, secret)| (name.as_str(), secret)),
                });
                let keys = self.chap.answer(account)?;
                self.user = Some(name);
                self.state = State::Passed;
                keys
            }
        };
        for (key, value) in as_pairs(&keys) {
            out.push(key, value);
        }
        Ok(())
    }
}
