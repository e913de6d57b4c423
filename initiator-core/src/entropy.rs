//! Random bytes from the system's cryptographic generator. The core has none of its own: a login is given them
//! ([`LoginConfig::random`](crate::LoginConfig::random)).

use alloc::sync::Arc;

use crate::error::Error;

/// Fills `bytes`.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    getrandom::fill(bytes)
}

/// So many random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    fill(&mut bytes).map_err(|error| Error::NoRandomness(Arc::new(error)))?;
    Ok(bytes)
}
