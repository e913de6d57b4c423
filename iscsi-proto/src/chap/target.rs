//! The target's end: asks the initiator for a response, checks it, and proves itself if asked to.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use subtle::ConstantTimeEq;

use super::received::{ALGORITHM, CHALLENGE, IDENTIFIER, NAME, RESPONSE, Received};
use super::secret::check_name;
use super::{Algorithm, ChapError, ChapPolicy, ChapSecret, KeyValues, Response};

/// CHAP from the target's side, for one login.
///
/// Drive it so: [`handle`](Self::handle) with the step that holds CHAP_A and send what it returns; `handle` with the
/// step that holds CHAP_R, find the account of the name that it returns, and give it to [`answer`](Self::answer). When
/// `answer` returns keys, even none, the initiator is authenticated; [`authenticated_name`](Self::authenticated_name)
/// keeps its name. After an error every further call fails: reject the login.
#[derive(Debug)]
pub struct ChapTarget {
    policy: ChapPolicy,
    identifier: u8,
    seed: [u8; 32],
    state: Progress,
}

#[derive(Debug)]
enum Progress {
    WaitAlgorithms,
    WaitResponse(Algorithm),
    WaitAccount(Algorithm, Claim),
    Authenticated(String),
    Ended,
}

/// What the initiator claims and asks, until its account is known.
#[derive(Debug)]
struct Claim {
    name: String,
    response: Vec<u8>,
    challenge: Option<(u8, Vec<u8>)>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetStep {
    /// Send these keys and wait for the initiator.
    Send(KeyValues),
    /// Find the account of this CHAP name and call [`ChapTarget::answer`].
    LookUp {
        /// The CHAP_N that the initiator gave; not yet believed.
        name: String,
        /// Whether the initiator wants this target to authenticate itself too.
        mutual: bool,
    },
}

/// What a target knows of a CHAP name.
#[derive(Debug, Clone, Copy)]
pub struct Account<'a> {
    /// The initiator's secret.
    pub secret: &'a ChapSecret,
    /// The CHAP name and secret that the target proves itself with to this initiator, if mutual CHAP is configured.
    pub own: Option<(&'a str, &'a ChapSecret)>,
}

impl ChapTarget {
    /// Begins with a challenge identifier and the bytes for a challenge.
    ///
    /// `random` must come from a cryptographic random number generator and be of use to this login only; the
    /// challenge is as long as the digest of the algorithm agreed on.
    pub fn new(policy: ChapPolicy, identifier: u8, random: [u8; 32]) -> Self {
        Self { policy, identifier, seed: random, state: Progress::WaitAlgorithms }
    }

    /// Takes the keys of the initiator's next step; keys other than `CHAP_*` are passed over.
    ///
    /// # Errors
    /// [`ChapError`]; CHAP has failed and the login must be rejected.
    pub fn handle<'a>(&mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<TargetStep, ChapError> {
        match core::mem::replace(&mut self.state, Progress::Ended) {
            Progress::WaitAlgorithms => {
                let received = Received::read(pairs, &[ALGORITHM])?;
                let algorithm = received.choose(&self.policy.algorithms)?;
                self.state = Progress::WaitResponse(algorithm);
                Ok(TargetStep::Send(vec![
                    (ALGORITHM, format!("{}", algorithm.number())),
                    (IDENTIFIER, format!("{}", self.identifier)),
                    (CHALLENGE, self.policy.encode(self.challenge(algorithm))),
                ]))
            }
            Progress::WaitResponse(algorithm) => {
                let received = Received::read(pairs, &[NAME, RESPONSE, IDENTIFIER, CHALLENGE])?;
                let (name, response) = received.response(algorithm)?;
                let mutual = received.has_challenge();
                let challenge = mutual.then(|| received.challenge()).transpose()?;
                // RFC 7143 9.2.1: responders MUST check that their challenge does not come back.
                if let Some((_, theirs)) = &challenge
                    && theirs == self.challenge(algorithm)
                {
                    return Err(ChapError::ReflectedChallenge);
                }
                let name = name.to_owned();
                let claim = Claim { name: name.clone(), response, challenge };
                self.state = Progress::WaitAccount(algorithm, claim);
                Ok(TargetStep::LookUp { name, mutual })
            }
            Progress::WaitAccount(..) => Err(ChapError::OutOfOrder("the account is waited for")),
            Progress::Authenticated(_) | Progress::Ended => Err(ChapError::OutOfOrder("the target's end has finished")),
        }
    }

    /// Checks the initiator's response against its account, `None` if there is none of that name.
    ///
    /// Returns the keys to send: none for one-way CHAP, the target's own name and response for mutual CHAP.
    ///
    /// # Errors
    /// [`ChapError::Failed`] for an unknown name or a wrong secret (both take the same time);
    /// [`ChapError::MutualNotConfigured`], [`ChapError::ReflectedResponse`], [`ChapError::SameSecret`],
    /// [`ChapError::SecretTooShort`]; [`ChapError::OutOfOrder`] before [`TargetStep::LookUp`].
    pub fn answer(&mut self, account: Option<Account<'_>>) -> Result<KeyValues, ChapError> {
        let Progress::WaitAccount(algorithm, claim) = core::mem::replace(&mut self.state, Progress::Ended) else {
            return Err(ChapError::OutOfOrder("no account was asked for"));
        };
        let challenge = self.challenge(algorithm);
        let Some(account) = account else {
            // The same work as for a known name, so that time does not tell which names there are.
            let nobody = ChapSecret::new(self.seed);
            let _ = Response::compute(algorithm, self.identifier, &nobody, challenge).equals(&claim.response);
            return Err(ChapError::Failed { name: claim.name });
        };
        self.policy.check_secret(account.secret)?;
        if let Some((name, own)) = account.own {
            check_name(name)?;
            self.policy.check_secret(own)?;
            // RFC 7143 9.2.1: a secret for one direction MUST NOT serve the other.
            if own.as_bytes().ct_eq(account.secret.as_bytes()).into() {
                return Err(ChapError::SameSecret);
            }
            // RFC 7143 9.2.1: a response equal to what this end would send is a failure.
            if Response::compute(algorithm, self.identifier, own, challenge).matches(&claim.response) {
                return Err(ChapError::ReflectedResponse);
            }
        }
        let expected = Response::compute(algorithm, self.identifier, account.secret, challenge);
        if !expected.matches(&claim.response) {
            return Err(ChapError::Failed { name: claim.name });
        }
        let keys = match (claim.challenge, account.own) {
            (None, _) => Vec::new(),
            (Some(_), None) => return Err(ChapError::MutualNotConfigured),
            (Some((identifier, challenge)), Some((name, own))) => {
                let response = Response::compute(algorithm, identifier, own, &challenge);
                vec![(NAME, name.to_owned()), (RESPONSE, self.policy.encode(response.as_bytes()))]
            }
        };
        self.state = Progress::Authenticated(claim.name);
        Ok(keys)
    }

    /// The initiator's CHAP name once it is authenticated.
    pub fn authenticated_name(&self) -> Option<&str> {
        match &self.state {
            Progress::Authenticated(name) => Some(name),
            _ => None,
        }
    }

    fn challenge(&self, algorithm: Algorithm) -> &[u8] {
        self.seed.get(..algorithm.digest_len()).unwrap_or(&self.seed)
    }
}
