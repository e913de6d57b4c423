//! Additional Header Segments (RFC 7143 11.2.2): the rest of a long CDB, and the read length of a bidirectional
//! command.

use alloc::vec::Vec;

use super::PduError;

/// Length in bytes of a whole bidirectional read-data length AHS, header included.
pub const BIDI_READ_AHS_LEN: usize = 8;

/// One Additional Header Segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahs<'a> {
    /// The CDB's bytes from the 17th on (RFC 7143 11.2.2.3), 1 to 244 of them, without padding.
    ExtendedCdb(&'a [u8]),
    /// Bidirectional Read Expected Data Transfer Length in bytes (RFC 7143 11.2.2.4).
    BidirectionalReadLength(u32),
    /// A type that RFC 7143 does not define: its code and its content behind the AHSSpecific byte.
    Unknown(u8, &'a [u8]),
}

/// Walks the AHS area of one PDU.
///
/// ```
/// use iscsi_proto::pdu::{Ahs, AhsIter, emit_bidirectional_read_length};
/// let mut area = Vec::new();
/// emit_bidirectional_read_length(&mut area, 4096);
/// assert_eq!(AhsIter::new(&area).next(), Some(Ok(Ahs::BidirectionalReadLength(4096))));
/// ```
#[derive(Debug, Clone)]
pub struct AhsIter<'a> {
    area: &'a [u8],
    at: usize,
}

impl<'a> AhsIter<'a> {
    /// Over the AHS area, padding included.
    #[must_use]
    pub fn new(area: &'a [u8]) -> Self {
        Self { area, at: 0 }
    }
}

impl<'a> Iterator for AhsIter<'a> {
    type Item = Result<Ahs<'a>, PduError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        let rest = self.area.get(at..).filter(|rest| !rest.is_empty())?;
        self.at = self.area.len();
        // AHSLength counts the bytes behind its own two and the type, AHSSpecific included, padding excluded
        // (11.2.2.1).
        let Some((header, content)) = rest.split_first_chunk::<3>() else { return Some(Err(PduError::InvalidAhs(at))) };
        let len = usize::from(u16::from_be_bytes([header[0], header[1]]));
        let Some(content) = content.get(..len) else { return Some(Err(PduError::InvalidAhs(at))) };
        self.at = at + (3 + len).next_multiple_of(4);
        Some(match (header[2] & 0x3f, content) {
            (1, [_, cdb @ ..]) if !cdb.is_empty() => Ok(Ahs::ExtendedCdb(cdb)),
            (2, [_, a, b, c, d]) => Ok(Ahs::BidirectionalReadLength(u32::from_be_bytes([*a, *b, *c, *d]))),
            (1 | 2, _) | (_, []) => Err(PduError::InvalidAhs(at)),
            (code, [_, content @ ..]) => Ok(Ahs::Unknown(code, content)),
        })
    }
}

/// Appends an extended CDB AHS for `rest`, the CDB's bytes from the 17th on. An empty `rest` appends nothing.
///
/// # Panics
/// If `rest` is longer than 244 bytes: a CDB is at most 260 bytes long (SPC-5 4.2.4).
pub fn emit_extended_cdb(area: &mut Vec<u8>, rest: &[u8]) {
    assert!(rest.len() <= 244, "a CDB is at most 260 bytes long");
    if rest.is_empty() {
        return;
    }
    area.extend_from_slice(&(rest.len() as u16 + 1).to_be_bytes());
    area.extend_from_slice(&[1, 0]);
    area.extend_from_slice(rest);
    area.resize(area.len().next_multiple_of(4), 0);
}

/// Appends a bidirectional read-data length AHS: `len` in bytes.
pub fn emit_bidirectional_read_length(area: &mut Vec<u8>, len: u32) {
    area.extend_from_slice(&[0, 5, 2, 0]);
    area.extend_from_slice(&len.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_kinds_side_by_side() {
        let mut area = Vec::new();
        emit_extended_cdb(&mut area, &[1, 2, 3, 4, 5]);
        emit_bidirectional_read_length(&mut area, 77);
        let all: Vec<_> = AhsIter::new(&area).collect();
        assert_eq!(all, [Ok(Ahs::ExtendedCdb(&[1, 2, 3, 4, 5])), Ok(Ahs::BidirectionalReadLength(77))]);
    }

    #[test]
    fn a_length_beyond_the_area_is_an_error() {
        assert_eq!(AhsIter::new(&[0, 9, 1, 0]).collect::<Vec<_>>(), [Err(PduError::InvalidAhs(0))]);
    }

    proptest! {
        #[test]
        fn any_bytes_end(area: Vec<u8>) {
            prop_assert!(AhsIter::new(&area).count() <= area.len());
        }
    }
}
