//! CRC32C, the digest of headers and payloads (RFC 7143 13.1), as the four bytes that go on the wire.
//!
//! With `std` the work is done by `crc-fast`, which uses the machine's vector instructions; without it by the tables of
//! `crc`.

/// A CRC32C that grows with the bytes it is fed.
///
/// A payload's digest covers its padding too (RFC 7143 11.2.4): feed the padding after the data.
///
/// ```
/// use iscsi_proto::digest::{Crc32c, crc32c};
/// let mut digest = Crc32c::default();
/// digest.update(&[0; 20]);
/// digest.update(&[0; 12]);
/// assert_eq!(digest.finish(), [0xaa, 0x36, 0x91, 0x8a]); // RFC 3720 B.4
/// assert_eq!(digest.finish(), crc32c(&[0; 32]));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crc32c {
    /// The shift register, reflected, before the final inversion.
    register: u32,
}

impl Default for Crc32c {
    #[inline]
    fn default() -> Self {
        Self { register: u32::MAX }
    }
}

impl Crc32c {
    /// Takes more bytes in.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        self.register = advance(self.register, bytes);
    }

    /// The digest of all bytes so far, in the order of the wire.
    ///
    /// The register's bits are reflected: bit 31 of the remainder's polynomial is the lowest bit of the first byte, so
    /// the number is sent with its low byte first (RFC 7143 13.1).
    #[inline]
    #[must_use]
    pub fn finish(self) -> [u8; 4] {
        (!self.register).to_le_bytes()
    }
}

/// The digest of `bytes` in the order of the wire.
#[inline]
#[must_use]
pub fn crc32c(bytes: &[u8]) -> [u8; 4] {
    at_once(bytes)
}

/// Without the engine's state to set up, which costs more than a header's bytes.
#[cfg(feature = "std")]
#[inline]
fn at_once(bytes: &[u8]) -> [u8; 4] {
    crc_fast::crc32_iscsi(bytes).to_le_bytes()
}

#[cfg(not(feature = "std"))]
fn at_once(bytes: &[u8]) -> [u8; 4] {
    let mut digest = Crc32c::default();
    digest.update(bytes);
    digest.finish()
}

#[cfg(feature = "std")]
fn advance(register: u32, bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new_with_init_state(crc_fast::CrcAlgorithm::Crc32Iscsi, register.into());
    digest.update(bytes);
    digest.get_state() as u32
}

#[cfg(not(feature = "std"))]
fn advance(register: u32, bytes: &[u8]) -> u32 {
    table_advance(register, bytes)
}

#[cfg(any(not(feature = "std"), test))]
fn table_advance(register: u32, bytes: &[u8]) -> u32 {
    static CRC: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);
    // The crate takes the initial value unreflected.
    let mut digest = CRC.digest_with_initial(register.reverse_bits());
    digest.update(bytes);
    !digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// RFC 3720 B.4.
    #[test]
    fn vectors_of_the_standard() {
        let up: Vec<u8> = (0..32).collect();
        let down: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        assert_eq!(crc32c(&up), [0x4e, 0x79, 0xdd, 0x46]);
        assert_eq!(crc32c(&down), [0x5c, 0xdb, 0x3f, 0x11]);
        let read_10 = [
            0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0x14, 0, 0, 0,
            0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(crc32c(&read_10), [0x56, 0x3a, 0x96, 0xd9]);
    }

    proptest! {
        #[test]
        fn any_split_and_both_engines_agree(bytes in proptest::collection::vec(any::<u8>(), 0..3000), at: usize) {
            let at = at % (bytes.len() + 1);
            let mut digest = Crc32c::default();
            digest.update(&bytes[..at]);
            digest.update(&bytes[at..]);
            prop_assert_eq!(digest.finish(), crc32c(&bytes));
            let by_table = table_advance(table_advance(u32::MAX, &bytes[..at]), &bytes[at..]);
            prop_assert_eq!((!by_table).to_le_bytes(), crc32c(&bytes));
        }
    }
}
