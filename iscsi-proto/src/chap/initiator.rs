//! The initiator's end: offers algorithms, proves itself, and asks the target for the same if it is to.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use subtle::ConstantTimeEq;

use super::received::{ALGORITHM, CHALLENGE, IDENTIFIER, NAME, RESPONSE, Received, parse_number, shown};
use super::{Algorithm, ChapError, ChapPolicy, ChapSecret, Credentials, KeyValues, Response};

/// CHAP from the initiator's side, for one login.
///
/// Drive it so: send what [`start`](Self::start) returns; give every answer of the target to [`handle`](Self::handle)
/// and send what it returns, until the login machine moves on. When the target moves on, ask
/// [`is_satisfied`](Self::is_satisfied): a target that was to authenticate itself and did not must not be believed.
#[derive(Debug)]
pub struct ChapInitiator {
    policy: ChapPolicy,
    credentials: Credentials,
    seed: [u8; 32],
    identifier: u8,
    proof: Option<TargetProof>,
    state: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Start,
    WaitChallenge,
    WaitProof(Algorithm),
    Done,
    Ended,
}

/// What the target must prove itself with in mutual CHAP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetProof {
    /// The CHAP name that the target must give, or any.
    pub name: Option<String>,
    /// The target's secret.
    pub secret: ChapSecret,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitiatorStep {
    /// Send these keys; see [`ChapInitiator::is_satisfied`] for whether the T bit may go with them.
    Send(KeyValues),
    /// The target has proved itself; nothing more to send.
    Done,
}

impl ChapInitiator {
    /// Begins for the owner of `credentials`.
    ///
    /// `random` and `identifier` are for the challenge to the target in mutual CHAP; `random` must come from a
    /// cryptographic random number generator and be of use to this login only.
    pub fn new(policy: ChapPolicy, credentials: Credentials, random: [u8; 32], identifier: u8) -> Self {
        Self { policy, credentials, seed: random, identifier, proof: None, state: Progress::Start }
    }

    /// Asks for mutual CHAP: the target must prove itself with `proof`.
    #[must_use]
    pub fn require_target(mut self, proof: TargetProof) -> Self {
        self.proof = Some(proof);
        self
    }

    /// The first keys: CHAP_A.
    ///
    /// # Errors
    /// [`ChapError::SecretTooShort`], [`ChapError::SameSecret`] for secrets that RFC 7143 9.2.1 forbids, before
    /// anything is sent; [`ChapError::NoCommonAlgorithm`] for a policy that allows no algorithm;
    /// [`ChapError::OutOfOrder`] when called twice.
    pub fn start(&mut self) -> Result<KeyValues, ChapError> {
        if self.state != Progress::Start {
            return Err(ChapError::OutOfOrder("CHAP_A has been sent"));
        }
        self.state = Progress::Ended;
        self.policy.check_secret(self.credentials.secret())?;
        if let Some(proof) = &self.proof {
            self.policy.check_secret(&proof.secret)?;
            // RFC 7143 9.2.1: a secret for one direction MUST NOT serve the other.
            if proof.secret.as_bytes().ct_eq(self.credentials.secret().as_bytes()).into() {
                return Err(ChapError::SameSecret);
            }
        }
        if self.policy.algorithms.is_empty() {
            return Err(ChapError::NoCommonAlgorithm(String::new()));
        }
        let numbers: Vec<_> = self.policy.algorithms.iter().map(|algorithm| algorithm.number().to_string()).collect();
        self.state = Progress::WaitChallenge;
        Ok(vec![(ALGORITHM, numbers.join(","))])
    }

    /// Takes the keys of the target's next step; keys other than `CHAP_*` are passed over.
    ///
    /// # Errors
    /// [`ChapError`]; CHAP has failed and the connection must be closed.
    pub fn handle<'a>(
        &mut self,
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<InitiatorStep, ChapError> {
        match core::mem::replace(&mut self.state, Progress::Ended) {
            Progress::WaitChallenge => {
                let received = Received::read(pairs, &[ALGORITHM, IDENTIFIER, CHALLENGE])?;
                let algorithm = self.chosen(received.algorithm()?)?;
                let (identifier, challenge) = received.challenge()?;
                self.respond(algorithm, identifier, &challenge)
            }
            Progress::WaitProof(algorithm) => {
                let received = Received::read(pairs, &[NAME, RESPONSE])?;
                let (name, response) = received.response(algorithm)?;
                self.check(algorithm, name, &response)?;
                self.state = Progress::Done;
                Ok(InitiatorStep::Done)
            }
            Progress::Start => Err(ChapError::OutOfOrder("CHAP_A has not been sent")),
            Progress::Done | Progress::Ended => Err(ChapError::OutOfOrder("the initiator's end has finished")),
        }
    }

    /// Whether this end has all it wants: the response is sent and, in mutual CHAP, the target has proved itself.
    ///
    /// With one-way CHAP this holds from the moment that `handle` returned CHAP_R, so the login machine may offer to
    /// leave the security stage in that same request.
    pub fn is_satisfied(&self) -> bool {
        self.state == Progress::Done
    }

    fn chosen(&self, text: &str) -> Result<Algorithm, ChapError> {
        parse_number(text)
            .and_then(Algorithm::from_number)
            .filter(|algorithm| self.policy.algorithms.contains(algorithm))
            .ok_or_else(|| ChapError::NotOffered(shown(text)))
    }

    fn respond(&mut self, algorithm: Algorithm, identifier: u8, challenge: &[u8]) -> Result<InitiatorStep, ChapError> {
        let response = Response::compute(algorithm, identifier, self.credentials.secret(), challenge);
        let mut keys =
            vec![(NAME, self.credentials.name().to_owned()), (RESPONSE, self.policy.encode(response.as_bytes()))];
        self.state = Progress::Done;
        if self.proof.is_some() {
            let own = self.challenge(algorithm);
            // RFC 7143 9.2.1: the originator MUST NOT reuse the responder's challenge.
            if own == challenge {
                self.state = Progress::Ended;
                return Err(ChapError::ReflectedChallenge);
            }
            keys.push((IDENTIFIER, format!("{}", self.identifier)));
            keys.push((CHALLENGE, self.policy.encode(own)));
            self.state = Progress::WaitProof(algorithm);
        }
        Ok(InitiatorStep::Send(keys))
    }

    fn check(&self, algorithm: Algorithm, name: &str, response: &[u8]) -> Result<(), ChapError> {
        let Some(proof) = &self.proof else {
            return Err(ChapError::OutOfPlace(RESPONSE));
        };
        let challenge = self.challenge(algorithm);
        let answer = |secret| Response::compute(algorithm, self.identifier, secret, challenge);
        // RFC 7143 9.2.1: a response equal to what this end would send is a failure.
        if answer(self.credentials.secret()).matches(response) {
            return Err(ChapError::ReflectedResponse);
        }
        if !answer(&proof.secret).matches(response) {
            return Err(ChapError::Failed { name: name.to_owned() });
        }
        match &proof.name {
            Some(expected) if expected != name => Err(ChapError::TargetName(name.to_owned())),
            _ => Ok(()),
        }
    }

    fn challenge(&self, algorithm: Algorithm) -> &[u8] {
        self.seed.get(..algorithm.digest_len()).unwrap_or(&self.seed)
    }
}
