//! CHAP for the security stage of login (RFC 1994; RFC 7143 12.1.3 and 9.2.1).
//!
//! [`ChapTarget`] and [`ChapInitiator`] are the two ends. They know nothing of PDUs or stages: a login machine gives
//! them the `CHAP_*` keys that came, and sends the keys that they return.
//!
//! ```text
//!   initiator                                   target
//!   start()        CHAP_A                  -->  handle()  = Send(A, I, C)
//!   handle()       CHAP_N CHAP_R [I C]     -->  handle()  = LookUp(name)   the caller finds the account
//!                                               answer()  = nothing, or CHAP_N CHAP_R
//!   handle()  = Done                       <--
//! ```
//!
//! Both ends are sans-IO: challenges come from bytes of the caller's random number generator, never used twice.
//!
//! ```
//! use iscsi_proto::chap::*;
//! # fn main() -> Result<(), ChapError> {
//! let policy = ChapPolicy::default();
//! let alice = Credentials::new("alice", ChapSecret::new("alice's long secret"))?;
//! let storage = Credentials::new("storage", ChapSecret::new("another long secret"))?;
//!
//! let mut target = ChapTarget::new(policy.clone(), 1, [7; 32]);
//! let mut initiator = ChapInitiator::new(policy, alice.clone(), [9; 32], 2)
//!     .require_target(TargetProof { name: None, secret: storage.secret().clone() });
//!
//! let offer = initiator.start()?;
//! let TargetStep::Send(challenge) = target.handle(as_pairs(&offer))? else { unreachable!() };
//! let InitiatorStep::Send(response) = initiator.handle(as_pairs(&challenge))? else { unreachable!() };
//! let TargetStep::LookUp { name, .. } = target.handle(as_pairs(&response))? else { unreachable!() };
//! assert_eq!(name, "alice");
//! let proof = target.answer(Some(Account { secret: alice.secret(), own: Some(storage.pair()) }))?;
//! assert!(matches!(initiator.handle(as_pairs(&proof))?, InitiatorStep::Done));
//! # Ok(()) }
//! ```
//!
//! What RFC 7143 9.2.1 asks for against reflection is refused on both sides: a peer that sends our own challenge back,
//! a response equal to the one that we would have made, and one secret used in both directions.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

mod binary;
mod initiator;
mod received;
mod secret;
mod target;

pub use binary::{BinaryError, decode_binary, encode_base64, encode_hex};
pub use initiator::{ChapInitiator, InitiatorStep, TargetProof};
pub use secret::{ChapSecret, Credentials, Response};
pub use target::{Account, ChapTarget, TargetStep};

/// Keys to send, in order.
pub type KeyValues = Vec<(&'static str, String)>;

/// Keys to send as the borrowed pairs that the other end's `handle` takes.
pub fn as_pairs(pairs: &KeyValues) -> impl Iterator<Item = (&str, &str)> {
    pairs.iter().map(|(key, value)| (*key, value.as_str()))
}

/// The most bytes of a challenge or a response (RFC 7143 12.1.3).
pub const MAX_BINARY: usize = 1024;
/// The fewest bytes of a peer's challenge: below that an attacker could collect responses to all of them.
pub const MIN_CHALLENGE: usize = 16;
/// The most bytes of CHAP_N, the limit of all simple values (RFC 7143 6.1).
pub const MAX_NAME: usize = 255;
/// The most bytes of a secret.
pub const MAX_SECRET: usize = 255;
/// The fewest bytes of a secret that [`ChapPolicy::default`] accepts: 96 bits (RFC 7143 9.2.1).
pub const MIN_SECRET: usize = 12;

/// The hash algorithm (the number is that of CHAP_A, assigned in IANA's PPP authentication algorithms registry).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Algorithm {
    /// MD5, which every implementation has (RFC 7143 12.1.3).
    Md5 = 5,
    /// SHA-1.
    Sha1 = 6,
    /// SHA-256.
    Sha256 = 7,
    /// SHA3-256.
    Sha3_256 = 8,
}

impl Algorithm {
    /// All of them, the strongest first.
    pub const ALL: [Self; 4] = [Self::Sha3_256, Self::Sha256, Self::Sha1, Self::Md5];

    /// The algorithm of this number.
    pub const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            5 => Self::Md5,
            6 => Self::Sha1,
            7 => Self::Sha256,
            8 => Self::Sha3_256,
            _ => return None,
        })
    }

    /// The number for CHAP_A.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The bytes of a response, and of the challenges that this stack makes.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sha3_256 => 32,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Md5 => "MD5",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA-256",
            Self::Sha3_256 => "SHA3-256",
        })
    }
}

/// What an end of CHAP accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChapPolicy {
    /// The algorithms allowed.
    ///
    /// An initiator offers them in this order. A target takes the first of the initiator's list that is among them, as
    /// RFC 7143 6.2.1 rules for lists. Default: all, the strongest first. RFC 7143 12.1.3 wants MD5 to be always
    /// offered; leaving it out is a choice for security over reach. Some old targets cannot read a list: offer
    /// `vec![Algorithm::Md5]` to them.
    pub algorithms: Vec<Algorithm>,
    /// The fewest bytes of a secret, [`MIN_SECRET`] by default. Shorter ones are only safe under IPsec or on a
    /// network that nobody can listen to (RFC 7143 9.2.1); 1 allows all.
    pub min_secret: usize,
    /// How binary values are sent. Both encodings are always understood.
    pub encoding: BinaryEncoding,
}

impl Default for ChapPolicy {
    fn default() -> Self {
        Self {
            algorithms: vec![Algorithm::Sha3_256, Algorithm::Sha256, Algorithm::Sha1, Algorithm::Md5],
            min_secret: MIN_SECRET,
            encoding: BinaryEncoding::Hex,
        }
    }
}

impl ChapPolicy {
    fn check_secret(&self, secret: &ChapSecret) -> Result<(), ChapError> {
        // RFC 7143 9.2.1
        match secret.as_bytes().len() {
            0 => Err(ChapError::SecretLength(0)),
            length if length < self.min_secret => Err(ChapError::SecretTooShort { need: self.min_secret }),
            length if length > MAX_SECRET => Err(ChapError::SecretLength(length)),
            _ => Ok(()),
        }
    }

    fn encode(&self, bytes: &[u8]) -> String {
        match self.encoding {
            BinaryEncoding::Hex => encode_hex(bytes),
            BinaryEncoding::Base64 => encode_base64(bytes),
        }
    }
}

/// How CHAP_C and CHAP_R are written (RFC 7143 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BinaryEncoding {
    /// `0x` and hexadecimal digits: what every peer reads.
    #[default]
    Hex,
    /// `0b` and base64: shorter.
    Base64,
}

/// Why CHAP ended.
///
/// A target answers each of them with a login reject and an initiator closes the connection; which reject is told by
/// [`ChapError::kind`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChapError {
    /// A key that this step needs did not come.
    #[error("the peer did not send {0}, which this step of CHAP needs")]
    Missing(&'static str),
    /// A key came twice.
    #[error("the peer sent {0} twice in one step of CHAP")]
    Twice(&'static str),
    /// A key came in a step that it does not belong to.
    #[error("the peer sent {0} in a step of CHAP that has no place for it")]
    OutOfPlace(&'static str),
    /// A method of this end was called out of order.
    #[error("CHAP was driven out of order: {0}")]
    OutOfOrder(&'static str),
    /// CHAP_A is no list of numbers.
    #[error("CHAP_A must be numbers with commas between them, such as 7,5; the peer sent {0:?}")]
    AlgorithmList(String),
    /// The two ends have no algorithm in common.
    #[error("the peer offers CHAP algorithms {0}, none of which is allowed here")]
    NoCommonAlgorithm(String),
    /// The target chose an algorithm that was not offered.
    #[error("the target chose CHAP algorithm {0:?}, which was not offered")]
    NotOffered(String),
    /// CHAP_I is no number from 0 to 255.
    #[error("CHAP_I must be a number from 0 to 255, the peer sent {0:?}")]
    Identifier(String),
    /// CHAP_C or CHAP_R is no binary value.
    #[error("{key} is no binary value: {source}")]
    Binary {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        source: BinaryError,
    },
    /// The challenge's length is not from [`MIN_CHALLENGE`] to [`MAX_BINARY`].
    #[error("the peer's challenge has {0} bytes; {MIN_CHALLENGE} to {MAX_BINARY} are accepted")]
    ChallengeLength(usize),
    /// The response has not the length of the algorithm's digest.
    #[error("the peer's response has {got} bytes, one of {algorithm} has {need}", need = algorithm.digest_len())]
    ResponseLength {
        /// The algorithm agreed on.
        algorithm: Algorithm,
        /// The bytes that came.
        got: usize,
    },
    /// CHAP_N is empty or longer than [`MAX_NAME`].
    #[error("a CHAP name has 1 to {MAX_NAME} bytes, this one has {0}")]
    NameLength(usize),
    /// A CHAP name holds a null byte, which would end the key on the wire.
    #[error("a CHAP name cannot hold a null character")]
    NameNull,
    /// A secret is empty or longer than [`MAX_SECRET`].
    #[error("a CHAP secret has 1 to {MAX_SECRET} bytes, this one has {0}")]
    SecretLength(usize),
    /// A secret is shorter than the policy allows.
    #[error(
        "the CHAP secret is shorter than the {need} bytes that the policy asks for; use a longer one, or lower the \
         limit if the network is protected"
    )]
    SecretTooShort {
        /// The fewest bytes allowed.
        need: usize,
    },
    /// The same secret stands for both directions.
    #[error("one CHAP secret is configured for both directions; the initiator's and the target's must differ")]
    SameSecret,
    /// The peer sent our own challenge back, or both ends' random numbers are the same.
    #[error("the two directions of CHAP use the same challenge: a reflection attack, or broken random numbers")]
    ReflectedChallenge,
    /// The peer's response is the one that this end would have made.
    #[error(
        "the peer's response is the one that this end would give: a reflection attack, or one secret for both \
         directions"
    )]
    ReflectedResponse,
    /// The initiator wants this target to authenticate itself, and no credentials are there for that.
    #[error("the initiator asks the target to authenticate itself, but the account has no mutual CHAP secret")]
    MutualNotConfigured,
    /// The name is not known, or the response is not that of its secret; which of the two is not told on purpose.
    #[error("authentication failed for CHAP name {name:?}: unknown name or wrong secret")]
    Failed {
        /// The name that the peer gave.
        name: String,
    },
    /// The target gave another name than the one configured.
    #[error("the target calls itself {0:?} in CHAP, which is not the configured name")]
    TargetName(String),
}

/// Who is at fault, for the login status that goes with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChapErrorKind {
    /// A key is missing: login status 0207h, missing parameter.
    MissingKey,
    /// The peer's keys are malformed or out of order: login status 0200h, initiator error.
    Malformed,
    /// Authentication failed: login status 0201h.
    AuthenticationFailure,
    /// This end is configured wrongly; the peer is told of an authentication failure, the operator of the cause.
    Configuration,
}

impl ChapError {
    /// Who is at fault.
    pub const fn kind(&self) -> ChapErrorKind {
        match self {
            Self::Missing(_) => ChapErrorKind::MissingKey,
            Self::Twice(_)
            | Self::OutOfPlace(_)
            | Self::AlgorithmList(_)
            | Self::Identifier(_)
            | Self::Binary { .. }
            | Self::NameLength(_)
            | Self::NameNull => ChapErrorKind::Malformed,
            // RFC 7143 12.1.3: no common algorithm is an authentication failure.
            Self::NoCommonAlgorithm(_)
            | Self::NotOffered(_)
            | Self::ChallengeLength(_)
            | Self::ResponseLength { .. }
            | Self::ReflectedChallenge
            | Self::ReflectedResponse
            | Self::MutualNotConfigured
            | Self::Failed { .. }
            | Self::TargetName(_) => ChapErrorKind::AuthenticationFailure,
            Self::OutOfOrder(_) | Self::SecretLength(_) | Self::SecretTooShort { .. } | Self::SameSecret => {
                ChapErrorKind::Configuration
            }
        }
    }
}

#[cfg(test)]
#[path = "chap_tests.rs"]
mod tests;
