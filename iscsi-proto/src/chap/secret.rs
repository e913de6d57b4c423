//! Secrets, names that go with them, and the response that proves them.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use super::{Algorithm, ChapError, MAX_NAME};

/// A CHAP secret: wiped from memory when dropped, never shown, compared in constant time.
///
/// How long it must be is told by [`ChapPolicy::min_secret`](super::ChapPolicy::min_secret) and
/// [`MAX_SECRET`](super::MAX_SECRET) when it is used.
#[derive(Clone)]
pub struct ChapSecret(Zeroizing<Vec<u8>>);

impl ChapSecret {
    /// A secret of these bytes; a text stands for its bytes.
    #[must_use]
    pub fn new(secret: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(secret.into()))
    }

    /// A new secret of 128 random bits, as 32 hexadecimal digits that a person can carry to the other end
    /// (RFC 7143 9.2.1). `random` must come from a cryptographic random number generator.
    pub fn generate(random: [u8; 16]) -> Self {
        let random = Zeroizing::new(random);
        let digit = |nibble: u8| {
            if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
        };
        let text = random.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0x0f)]);
        Self(Zeroizing::new(text.collect()))
    }

    /// The secret itself; keep it out of logs.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ChapSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChapSecret(not shown)")
    }
}

impl PartialEq for ChapSecret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for ChapSecret {}

/// What one end proves itself with: a name and a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    name: String,
    secret: ChapSecret,
}

impl Credentials {
    /// Joins a CHAP name and its secret. Many set the iSCSI name as the CHAP name, but any name will do.
    ///
    /// # Errors
    /// [`ChapError::NameLength`], [`ChapError::NameNull`].
    pub fn new(name: impl Into<String>, secret: ChapSecret) -> Result<Self, ChapError> {
        let name = name.into();
        check_name(&name)?;
        Ok(Self { name, secret })
    }

    /// The name, sent as CHAP_N.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Both, as [`Account::own`](super::Account::own) wants them.
    pub fn pair(&self) -> (&str, &ChapSecret) {
        (&self.name, &self.secret)
    }

    /// The secret.
    pub fn secret(&self) -> &ChapSecret {
        &self.secret
    }
}

pub(super) fn check_name(name: &str) -> Result<(), ChapError> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(ChapError::NameLength(name.len()));
    }
    if name.contains('\0') {
        return Err(ChapError::NameNull);
    }
    Ok(())
}

/// A response value: the hash of identifier, secret and challenge (RFC 1994 4.1).
///
/// ```
/// use iscsi_proto::chap::{Algorithm, ChapSecret, Response};
/// let secret = ChapSecret::new("a secret of its own");
/// let response = Response::compute(Algorithm::Sha256, 3, &secret, &[1; 32]);
/// assert_eq!(response.as_bytes().len(), 32);
/// assert!(response.matches(&response.as_bytes().to_vec()));
/// ```
#[derive(Clone)]
pub struct Response {
    bytes: [u8; 32],
    len: usize,
}

impl Response {
    /// Computes the response of the holder of `secret`.
    pub fn compute(algorithm: Algorithm, identifier: u8, secret: &ChapSecret, challenge: &[u8]) -> Self {
        let input: [&[u8]; 3] = [&[identifier], secret.as_bytes(), challenge];
        match algorithm {
            Algorithm::Md5 => Self::digest::<md5::Md5>(input),
            Algorithm::Sha1 => Self::digest::<sha1::Sha1>(input),
            Algorithm::Sha256 => Self::digest::<sha2::Sha256>(input),
            Algorithm::Sha3_256 => Self::digest::<sha3::Sha3_256>(input),
        }
    }

    fn digest<D: md5::Digest>(input: [&[u8]; 3]) -> Self {
        let mut hash = D::new();
        for part in input {
            hash.update(part);
        }
        let digest = hash.finalize();
        let mut bytes = [0; 32];
        let mut len = 0;
        for (to, from) in bytes.iter_mut().zip(digest.iter()) {
            *to = *from;
            len += 1;
        }
        Self { bytes, len }
    }

    /// The response's bytes, as many as the algorithm's digest has.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }

    /// Whether `other` is this response, in a time that does not tell where they differ.
    pub fn matches(&self, other: &[u8]) -> bool {
        self.equals(other).into()
    }

    pub(super) fn equals(&self, other: &[u8]) -> Choice {
        self.as_bytes().ct_eq(other)
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Response(not shown)")
    }
}
