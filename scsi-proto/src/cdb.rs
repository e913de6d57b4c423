//! Command descriptor blocks as bytes: one that came ([`Cdb`]) and one being made ([`CdbBuf`]).

use core::fmt;

use super::field::{be16, be24, be32, u8_at};
use super::opcode;

/// A command descriptor block that came, cut to its own length (SPC-5 4.2).
///
/// The length follows from the operation code's group code. The fields that every CDB has are here; those of one family
/// of commands are in [`BlockIo`](super::BlockIo) and [`command`](super::command).
///
/// ```
/// use scsi_proto::{opcode, BlockIo, Cdb};
/// let field = [0x28, 0x08, 0, 0, 0x10, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]; // as in the PDU, padded to 16 bytes
/// let cdb = Cdb::new(&field).unwrap();
/// assert_eq!(cdb.opcode(), opcode::READ_10);
/// assert_eq!(cdb.as_bytes().len(), 10);
/// let io = BlockIo::parse(cdb).unwrap();
/// assert_eq!((io.lba, io.blocks, io.fua()), (0x1000, 8, true));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cdb<'a>(&'a [u8]);

/// Bytes that are no CDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CdbError {
    /// The field ends before the CDB does.
    #[error("a CDB of operation code {opcode:#04x} has {need} bytes, {got} came")]
    TooShort {
        /// The operation code, zero when not even that came.
        opcode: u8,
        /// The CDB's length.
        need: usize,
        /// The bytes that came.
        got: usize,
    },
    /// The CDB is longer than any that this stack knows.
    #[error("a CDB of {0} bytes is longer than the {max} that are kept", max = CdbBuf::MAX)]
    TooLong(usize),
}

/// The length that the group code gives; `None` where the standard leaves it open (SPC-5 4.2.5.1).
const fn length_by_group(opcode: u8) -> Option<usize> {
    match opcode >> 5 {
        0 => Some(6),
        1 | 2 => Some(10),
        4 => Some(16),
        5 => Some(12),
        _ => None,
    }
}

impl<'a> Cdb<'a> {
    /// Takes the CDB at the start of `bytes`; what follows it (the padding of the PDU's field) is left out.
    ///
    /// For vendor-specific and reserved operation codes, whose length nobody knows, all bytes are taken, so that
    /// the device server can refuse them by their operation code.
    ///
    /// # Errors
    /// [`CdbError::TooShort`] when the bytes end before the CDB does.
    pub fn new(bytes: &'a [u8]) -> Result<Self, CdbError> {
        let Some(&opcode) = bytes.first() else {
            return Err(CdbError::TooShort { opcode: 0, need: 6, got: 0 });
        };
        let need = match length_by_group(opcode) {
            Some(length) => length,
            // ADDITIONAL CDB LENGTH counts what follows byte 7 (SPC-5 4.2.3).
            None if opcode == opcode::VARIABLE_LENGTH => match bytes.get(7) {
                Some(&additional) => usize::from(additional) + 8,
                None => 8,
            },
            None => bytes.len(),
        };
        bytes.get(..need).map(Self).ok_or(CdbError::TooShort { opcode, need, got: bytes.len() })
    }

    /// The CDB's bytes.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The operation code.
    #[inline]
    pub fn opcode(self) -> u8 {
        u8_at(self.0, 0)
    }

    /// The service action of an operation code that has one.
    pub fn service_action(self) -> Option<u16> {
        match self.opcode() {
            opcode::VARIABLE_LENGTH => Some(be16(self.0, 8)),
            opcode::PERSISTENT_RESERVE_IN
            | opcode::PERSISTENT_RESERVE_OUT
            | opcode::THIRD_PARTY_COPY_OUT
            | opcode::THIRD_PARTY_COPY_IN
            | opcode::ACCESS_CONTROL_IN
            | opcode::ACCESS_CONTROL_OUT
            | opcode::SANITIZE
            | opcode::SERVICE_ACTION_IN_16
            | opcode::SERVICE_ACTION_OUT_16
            | opcode::MAINTENANCE_IN
            | opcode::MAINTENANCE_OUT => Some(u16::from(u8_at(self.0, 1) & 0x1f)),
            _ => None,
        }
    }

    /// The CONTROL byte: the last one, or byte 1 of a variable length CDB (SAM-5 5.2).
    pub fn control(self) -> u8 {
        if self.opcode() == opcode::VARIABLE_LENGTH { u8_at(self.0, 1) } else { self.0.last().copied().unwrap_or(0) }
    }

    /// The NACA bit of the CONTROL byte: the initiator asks for an auto contingent allegiance on error.
    pub fn naca(self) -> bool {
        self.control() & 0x04 != 0
    }

    /// The ALLOCATION LENGTH of a command that returns parameter data: the most bytes its answer may have.
    ///
    /// READ CAPACITY(10) has no such field: it returns eight bytes.
    pub fn allocation_length(self) -> Option<u32> {
        let cdb = self.0;
        Some(match self.opcode() {
            opcode::REQUEST_SENSE | opcode::MODE_SENSE_6 => u8_at(cdb, 4).into(),
            opcode::INQUIRY | opcode::RECEIVE_DIAGNOSTIC_RESULTS => be16(cdb, 3).into(),
            opcode::MODE_SENSE_10 | opcode::LOG_SENSE | opcode::PERSISTENT_RESERVE_IN | opcode::READ_DEFECT_DATA_10 => {
                be16(cdb, 7).into()
            }
            opcode::READ_BUFFER_10 => be24(cdb, 6),
            opcode::REPORT_LUNS | opcode::MAINTENANCE_IN | opcode::READ_DEFECT_DATA_12 => be32(cdb, 6),
            opcode::SERVICE_ACTION_IN_16 | opcode::THIRD_PARTY_COPY_IN => be32(cdb, 10),
            _ => return None,
        })
    }

    /// The PARAMETER LIST LENGTH of a command that sends parameter data.
    pub fn parameter_list_length(self) -> Option<u32> {
        let cdb = self.0;
        Some(match self.opcode() {
            opcode::MODE_SELECT_6 => u8_at(cdb, 4).into(),
            opcode::SEND_DIAGNOSTIC => be16(cdb, 3).into(),
            opcode::MODE_SELECT_10 | opcode::LOG_SELECT | opcode::UNMAP | opcode::SANITIZE => be16(cdb, 7).into(),
            opcode::PERSISTENT_RESERVE_OUT => be32(cdb, 5),
            opcode::WRITE_BUFFER => be24(cdb, 6),
            opcode::MAINTENANCE_OUT => be32(cdb, 6),
            opcode::THIRD_PARTY_COPY_OUT => be32(cdb, 10),
            _ => return None,
        })
    }
}

impl fmt::Debug for Cdb<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:02x?}", opcode::name(self.opcode()), self.0)
    }
}

/// A CDB of its own, of at most 32 bytes, as an initiator builds it.
///
/// Made by [`BlockIo`](super::BlockIo) and the types of [`command`](super::command), or of raw bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CdbBuf {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl CdbBuf {
    /// The longest CDB kept: that of READ(32).
    pub const MAX: usize = 32;

    /// No CDB: what stands where one is to come.
    ///
    /// ```
    /// assert!(scsi_proto::CdbBuf::EMPTY.as_cdb().as_bytes().is_empty());
    /// ```
    pub const EMPTY: Self = Self { bytes: [0; Self::MAX], len: 0 };

    /// A CDB of these bytes, cut to its length as [`Cdb::new`] does.
    ///
    /// # Errors
    /// [`CdbError::TooShort`] as [`Cdb::new`], [`CdbError::TooLong`] above [`CdbBuf::MAX`] bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, CdbError> {
        let cdb = Cdb::new(bytes)?.as_bytes();
        let mut buf = Self::EMPTY;
        buf.bytes.get_mut(..cdb.len()).ok_or(CdbError::TooLong(cdb.len()))?.copy_from_slice(cdb);
        buf.len = cdb.len() as u8;
        Ok(buf)
    }

    /// Joins the 16 bytes of a SCSI Command PDU and those of its Extended CDB AHS (RFC 7143 11.2.2.3).
    ///
    /// # Errors
    /// As [`CdbBuf::new`].
    pub fn from_parts(field: &[u8; 16], extension: &[u8]) -> Result<Self, CdbError> {
        let total = field.len() + extension.len();
        let mut joined = [0; Self::MAX];
        let (head, tail) = joined.split_at_mut(field.len());
        head.copy_from_slice(field);
        tail.get_mut(..extension.len()).ok_or(CdbError::TooLong(total))?.copy_from_slice(extension);
        Self::new(joined.get(..total).unwrap_or(&joined))
    }

    /// The fixed-length start of a CDB; the caller's bytes are this crate's own tables.
    pub(super) fn of<const N: usize>(cdb: [u8; N]) -> Self {
        const { assert!(N <= Self::MAX) };
        let mut buf = Self::EMPTY;
        for (to, from) in buf.bytes.iter_mut().zip(cdb) {
            *to = from;
        }
        buf.len = N as u8;
        buf
    }

    /// The CDB to read from.
    pub fn as_cdb(&self) -> Cdb<'_> {
        Cdb(self.as_bytes())
    }

    /// The CDB's bytes, without padding.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }

    /// The CDB field of the SCSI Command PDU: the first 16 bytes, zero padded (RFC 7143 11.3.5).
    pub fn pdu_field(&self) -> [u8; 16] {
        super::field::array(&self.bytes, 0)
    }

    /// What goes into an Extended CDB AHS: the bytes past the 16th; empty for all but variable length CDBs.
    pub fn extension(&self) -> &[u8] {
        self.as_bytes().get(16..).unwrap_or(&[])
    }
}

impl AsRef<[u8]> for CdbBuf {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for CdbBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_cdb().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn the_group_code_gives_the_length() {
        let field = [0; 32];
        for (opcode, len) in [(0x12, 6), (0x28, 10), (0x5e, 10), (0x88, 16), (0x9e, 16), (0xa0, 12), (0xaa, 12)] {
            let mut bytes = field;
            bytes[0] = opcode;
            assert_eq!(Cdb::new(&bytes).unwrap().as_bytes().len(), len);
        }
        let mut read_32 = field;
        read_32[0] = opcode::VARIABLE_LENGTH;
        read_32[7] = 0x18;
        read_32[9] = 9;
        let cdb = Cdb::new(&read_32).unwrap();
        assert_eq!(cdb.as_bytes().len(), 32);
        assert_eq!(cdb.service_action(), Some(9));
        assert_eq!(Cdb::new(&read_32[..16]), Err(CdbError::TooShort { opcode: 0x7f, need: 32, got: 16 }));
        let buf = CdbBuf::from_parts(&read_32[..16].try_into().unwrap(), &read_32[16..]).unwrap();
        assert_eq!(buf.as_bytes(), read_32);
        assert_eq!(buf.extension(), &read_32[16..]);
        assert!(matches!(CdbBuf::from_parts(&[0x7f; 16], &[0; 60]), Err(CdbError::TooLong(76))));
    }

    #[test]
    fn nothing_is_no_cdb_and_an_unknown_one_keeps_its_bytes() {
        assert!(Cdb::new(&[]).is_err());
        assert!(Cdb::new(&[0x28, 0, 0]).is_err());
        assert_eq!(Cdb::new(&[0xd1; 16]).unwrap().as_bytes(), [0xd1; 16]);
    }

    proptest! {
        #[test]
        fn accessors_take_any_bytes(bytes: Vec<u8>, code: u8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = code; }
            if let Ok(cdb) = Cdb::new(&bytes) {
                prop_assert!(cdb.as_bytes().len() <= bytes.len());
                let _ = (cdb.service_action(), cdb.naca(), cdb.allocation_length());
                let _ = cdb.parameter_list_length();
                if let Ok(owned) = CdbBuf::new(&bytes) {
                    prop_assert_eq!(owned.as_bytes(), cdb.as_bytes());
                    prop_assert_eq!(owned.as_cdb(), cdb);
                }
            }
        }
    }
}
