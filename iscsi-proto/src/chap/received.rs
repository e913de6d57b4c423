//! The `CHAP_*` keys of one step, picked out of what came.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use super::secret::check_name;
use super::{Algorithm, BinaryError, ChapError, MAX_BINARY, MIN_CHALLENGE, decode_binary};

pub(super) const ALGORITHM: &str = "CHAP_A";
pub(super) const IDENTIFIER: &str = "CHAP_I";
pub(super) const CHALLENGE: &str = "CHAP_C";
pub(super) const NAME: &str = "CHAP_N";
pub(super) const RESPONSE: &str = "CHAP_R";

/// The most algorithms of a CHAP_A list that are looked at.
const MAX_ALGORITHMS: usize = 64;

/// The values of one step; keys of other names are the login machine's matter.
#[derive(Default)]
pub(super) struct Received<'a> {
    algorithm: Option<&'a str>,
    identifier: Option<&'a str>,
    challenge: Option<&'a str>,
    name: Option<&'a str>,
    response: Option<&'a str>,
}

impl<'a> Received<'a> {
    /// Reads the keys of a step that has a place for `allowed`.
    pub(super) fn read(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
        allowed: &[&'static str],
    ) -> Result<Self, ChapError> {
        let mut received = Self::default();
        for (key, value) in pairs {
            let (key, place) = match key {
                ALGORITHM => (ALGORITHM, &mut received.algorithm),
                IDENTIFIER => (IDENTIFIER, &mut received.identifier),
                CHALLENGE => (CHALLENGE, &mut received.challenge),
                NAME => (NAME, &mut received.name),
                RESPONSE => (RESPONSE, &mut received.response),
                _ => continue,
            };
            if !allowed.contains(&key) {
                return Err(ChapError::OutOfPlace(key));
            }
            if place.replace(value).is_some() {
                return Err(ChapError::Twice(key));
            }
        }
        Ok(received)
    }

    /// The CHAP_A value as it came.
    pub(super) fn algorithm(&self) -> Result<&'a str, ChapError> {
        self.algorithm.ok_or(ChapError::Missing(ALGORITHM))
    }

    /// The first algorithm of the CHAP_A list that is allowed.
    pub(super) fn choose(&self, allowed: &[Algorithm]) -> Result<Algorithm, ChapError> {
        let list = self.algorithm()?;
        let mut chosen = None;
        for (count, number) in list.split(',').enumerate() {
            let number = (count < MAX_ALGORITHMS)
                .then(|| parse_number(number))
                .flatten()
                .ok_or_else(|| ChapError::AlgorithmList(shown(list)))?;
            chosen = chosen.or_else(|| Algorithm::from_number(number).filter(|known| allowed.contains(known)));
        }
        chosen.ok_or_else(|| ChapError::NoCommonAlgorithm(shown(list)))
    }

    /// Whether either key of a challenge came.
    pub(super) fn has_challenge(&self) -> bool {
        self.identifier.is_some() || self.challenge.is_some()
    }

    /// CHAP_I and CHAP_C.
    pub(super) fn challenge(&self) -> Result<(u8, Vec<u8>), ChapError> {
        let text = self.identifier.ok_or(ChapError::Missing(IDENTIFIER))?;
        let identifier = parse_number(text)
            .and_then(|number| u8::try_from(number).ok())
            .ok_or_else(|| ChapError::Identifier(shown(text)))?;
        let text = self.challenge.ok_or(ChapError::Missing(CHALLENGE))?;
        let challenge = decode_binary(text, MAX_BINARY).map_err(|source| match source {
            BinaryError::TooLong(_) => ChapError::ChallengeLength(MAX_BINARY + 1),
            source => ChapError::Binary { key: CHALLENGE, source },
        })?;
        if challenge.len() < MIN_CHALLENGE {
            return Err(ChapError::ChallengeLength(challenge.len()));
        }
        Ok((identifier, challenge))
    }

    /// CHAP_N and CHAP_R, the latter of the algorithm's length.
    pub(super) fn response(&self, algorithm: Algorithm) -> Result<(&'a str, Vec<u8>), ChapError> {
        let name = self.name.ok_or(ChapError::Missing(NAME))?;
        check_name(name)?;
        let text = self.response.ok_or(ChapError::Missing(RESPONSE))?;
        let response = decode_binary(text, MAX_BINARY).map_err(|source| ChapError::Binary { key: RESPONSE, source })?;
        if response.len() != algorithm.digest_len() {
            return Err(ChapError::ResponseLength { algorithm, got: response.len() });
        }
        Ok((name, response))
    }
}

/// A numerical value: decimal or hexadecimal (RFC 7143 6.1).
pub(super) fn parse_number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // from_str_radix would take a sign.
    if digits.starts_with('+') {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// The start of a peer's value, for an error.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => text.get(..end).unwrap_or_default().to_owned(),
        None => text.to_owned(),
    }
}
