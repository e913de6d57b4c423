//! Big-endian fields at byte offsets, as T10's tables give them.
//!
//! Reads past the end give zero: the callers check the length that a structure must have, and later fields that an
//! older device leaves out mean the same as zero.

/// The byte at `at`, or zero past the end.
#[inline]
pub(super) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// `N` bytes at `at`, or zeros when they are not all there.
#[inline]
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
}

/// A 16-bit field.
#[inline]
pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// A 24-bit field.
#[inline]
pub(super) fn be24(bytes: &[u8], at: usize) -> u32 {
    let [a, b, c] = array(bytes, at);
    u32::from_be_bytes([0, a, b, c])
}

/// A 32-bit field.
#[inline]
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// A 64-bit field.
#[inline]
pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// One flag, shifted to where the standard draws it.
#[inline]
pub(super) fn flag(on: bool, bit: u32) -> u8 {
    u8::from(on) << bit
}

/// Whether bit `bit` of the byte at `at` is set.
#[inline]
pub(super) fn bit(bytes: &[u8], at: usize, bit: u32) -> bool {
    u8_at(bytes, at) & (1 << bit) != 0
}

/// Writes `value` at `at`; bytes that do not fit are left out.
#[inline]
pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(value) {
        *to = *from;
    }
}
