//! Sense data, fixed and descriptor format (SPC-5 4.4).

use core::{fmt, ops};

use super::field::{be32, be64, bit, flag, put, u8_at};
use super::{AdditionalSense, DataError};

/// What kind of thing happened (SPC-5 4.4.8, table of sense keys).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum SenseKey {
    /// Nothing to tell.
    #[default]
    NoSense = 0x0,
    /// Done, after the device had to help itself.
    RecoveredError = 0x1,
    /// The logical unit cannot be accessed now.
    NotReady = 0x2,
    /// The medium has a flaw.
    MediumError = 0x3,
    /// The device has a fault.
    HardwareError = 0x4,
    /// The command or its parameters are wrong.
    IllegalRequest = 0x5,
    /// Something changed that the initiator must know before it goes on.
    UnitAttention = 0x6,
    /// The medium is protected against what was asked.
    DataProtect = 0x7,
    /// Blank or unwritten medium was met.
    BlankCheck = 0x8,
    /// The vendor's own.
    VendorSpecific = 0x9,
    /// A third-party copy was aborted.
    CopyAborted = 0xa,
    /// The command was aborted; sending it again may help.
    AbortedCommand = 0xb,
    /// Reserved since SPC-5.
    Reserved = 0xc,
    /// Data is left in a buffer because the medium's end was met.
    VolumeOverflow = 0xd,
    /// What was sent is not what is on the medium.
    Miscompare = 0xe,
    /// Done, with something to tell.
    Completed = 0xf,
}

impl SenseKey {
    /// The key in the low four bits.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 0x0f {
            0x0 => Self::NoSense,
            0x1 => Self::RecoveredError,
            0x2 => Self::NotReady,
            0x3 => Self::MediumError,
            0x4 => Self::HardwareError,
            0x5 => Self::IllegalRequest,
            0x6 => Self::UnitAttention,
            0x7 => Self::DataProtect,
            0x8 => Self::BlankCheck,
            0x9 => Self::VendorSpecific,
            0xa => Self::CopyAborted,
            0xb => Self::AbortedCommand,
            0xc => Self::Reserved,
            0xd => Self::VolumeOverflow,
            0xe => Self::Miscompare,
            _ => Self::Completed,
        }
    }
}

impl fmt::Display for SenseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSense => "NO SENSE",
            Self::RecoveredError => "RECOVERED ERROR",
            Self::NotReady => "NOT READY",
            Self::MediumError => "MEDIUM ERROR",
            Self::HardwareError => "HARDWARE ERROR",
            Self::IllegalRequest => "ILLEGAL REQUEST",
            Self::UnitAttention => "UNIT ATTENTION",
            Self::DataProtect => "DATA PROTECT",
            Self::BlankCheck => "BLANK CHECK",
            Self::VendorSpecific => "VENDOR SPECIFIC",
            Self::CopyAborted => "COPY ABORTED",
            Self::AbortedCommand => "ABORTED COMMAND",
            Self::Reserved => "RESERVED",
            Self::VolumeOverflow => "VOLUME OVERFLOW",
            Self::Miscompare => "MISCOMPARE",
            Self::Completed => "COMPLETED",
        })
    }
}

/// The three sense key specific bytes, whose meaning follows the sense key (SPC-5 4.4.2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SenseKeySpecific {
    /// ILLEGAL REQUEST: the field in error.
    FieldPointer {
        /// The field is in the CDB; otherwise in the parameter data that was sent.
        in_cdb: bool,
        /// The byte, from 0; for a field of several bytes its first.
        byte: u16,
        /// The most significant bit of the field within the byte, if it is not the whole byte.
        bit: Option<u8>,
    },
    /// NO SENSE and NOT READY: how much of the work is done, in 65536ths.
    Progress(u16),
    /// HARDWARE ERROR, MEDIUM ERROR and RECOVERED ERROR: how often it was tried again.
    ActualRetryCount(u16),
    /// COPY ABORTED and all other keys: the bytes as they stand, without the SKSV bit.
    Other([u8; 3]),
}

impl SenseKeySpecific {
    fn parse(key: SenseKey, bytes: [u8; 3]) -> Option<Self> {
        let [first, high, low] = bytes;
        if first & 0x80 == 0 {
            return None; // SKSV
        }
        let value = u16::from_be_bytes([high, low]);
        Some(match key {
            SenseKey::IllegalRequest => Self::FieldPointer {
                in_cdb: first & 0x40 != 0,
                byte: value,
                bit: (first & 0x08 != 0).then_some(first & 0x07),
            },
            SenseKey::NoSense | SenseKey::NotReady => Self::Progress(value),
            SenseKey::HardwareError | SenseKey::MediumError | SenseKey::RecoveredError => Self::ActualRetryCount(value),
            _ => Self::Other([first & 0x7f, high, low]),
        })
    }

    fn to_bytes(self) -> [u8; 3] {
        let (first, value) = match self {
            Self::FieldPointer { in_cdb, byte, bit } => {
                let bit = bit.map_or(0, |bit| 0x08 | (bit & 0x07));
                (flag(in_cdb, 6) | bit, byte)
            }
            Self::Progress(value) | Self::ActualRetryCount(value) => (0, value),
            Self::Other([first, high, low]) => (first & 0x7f, u16::from_be_bytes([high, low])),
        };
        let [high, low] = value.to_be_bytes();
        [0x80 | first, high, low]
    }
}

/// The format that sense data is sent in; D_SENSE of the control mode page chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SenseFormat {
    /// 18 bytes; an INFORMATION field of 32 bits.
    #[default]
    Fixed,
    /// Descriptors; an INFORMATION field of 64 bits.
    Descriptor,
}

/// Sense data: what a CHECK CONDITION means.
///
/// ```
/// use scsi_proto::{AdditionalSense, Sense, SenseFormat};
/// let sense = Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB).at_cdb_byte(2);
/// let wire = sense.to_bytes(SenseFormat::Fixed);
/// assert_eq!(Sense::parse(&wire), Ok(sense));
/// assert_eq!(sense.to_string(), "ILLEGAL REQUEST: INVALID FIELD IN CDB (byte 2 of the CDB)");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sense {
    /// What kind of thing happened.
    pub key: SenseKey,
    /// What happened, more closely.
    pub code: AdditionalSense,
    /// It happened to an earlier command that had already got its status (response codes 71h and 73h).
    pub deferred: bool,
    /// INFORMATION: for block commands an LBA, with MISCOMPARE the offset in bytes. The fixed format has no room above
    /// 2^32 - 1 and leaves it out.
    pub information: Option<u64>,
    /// COMMAND-SPECIFIC INFORMATION; in the fixed format zero means none.
    pub command_specific: Option<u64>,
    /// The sense key specific bytes.
    pub specific: Option<SenseKeySpecific>,
    /// FIELD REPLACEABLE UNIT CODE, 0 for none.
    pub field_replaceable_unit: u8,
    /// ILI: the block length asked for does not fit the medium's.
    pub incorrect_length: bool,
}

impl Sense {
    /// Sense data of a key and a code, with nothing else.
    pub const fn new(key: SenseKey, code: AdditionalSense) -> Self {
        Self {
            key,
            code,
            deferred: false,
            information: None,
            command_specific: None,
            specific: None,
            field_replaceable_unit: 0,
            incorrect_length: false,
        }
    }

    /// NO SENSE, as REQUEST SENSE returns when there is nothing to tell.
    pub const NONE: Self = Self::new(SenseKey::NoSense, AdditionalSense::NONE);

    /// ILLEGAL REQUEST with `code`.
    pub const fn illegal_request(code: AdditionalSense) -> Self {
        Self::new(SenseKey::IllegalRequest, code)
    }

    /// UNIT ATTENTION with `code`.
    pub const fn unit_attention(code: AdditionalSense) -> Self {
        Self::new(SenseKey::UnitAttention, code)
    }

    /// ABORTED COMMAND with `code`.
    pub const fn aborted_command(code: AdditionalSense) -> Self {
        Self::new(SenseKey::AbortedCommand, code)
    }

    /// ILLEGAL REQUEST, INVALID FIELD IN CDB, pointing at `byte` of the CDB.
    pub const fn invalid_field_in_cdb(byte: u16) -> Self {
        Self::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB).at_cdb_byte(byte)
    }

    /// ILLEGAL REQUEST, INVALID FIELD IN PARAMETER LIST, pointing at `byte` of the parameter list.
    pub const fn invalid_field_in_parameter_list(byte: u16) -> Self {
        Self::illegal_request(AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST)
            .with_specific(SenseKeySpecific::FieldPointer { in_cdb: false, byte, bit: None })
    }

    /// Points at a byte of the CDB.
    #[must_use]
    pub const fn at_cdb_byte(self, byte: u16) -> Self {
        self.with_specific(SenseKeySpecific::FieldPointer { in_cdb: true, byte, bit: None })
    }

    /// Points at a field within a byte of the CDB by its most significant bit (0 to 7).
    #[must_use]
    pub const fn at_cdb_bit(self, byte: u16, bit: u8) -> Self {
        self.with_specific(SenseKeySpecific::FieldPointer { in_cdb: true, byte, bit: Some(bit & 7) })
    }

    /// Adds sense key specific bytes.
    #[must_use]
    pub const fn with_specific(mut self, specific: SenseKeySpecific) -> Self {
        self.specific = Some(specific);
        self
    }

    /// Adds the INFORMATION field.
    #[must_use]
    pub const fn with_information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    /// Reads sense data of either format, without the length that an iSCSI SCSI Response puts before it.
    ///
    /// Descriptors that [`Sense`] has no field for are passed over.
    ///
    /// # Errors
    /// [`DataError`] when the data ends before the key and the code, or the response code is none of 70h to 73h.
    pub fn parse(bytes: &[u8]) -> Result<Self, DataError> {
        const WHAT: &str = "sense data";
        let response = u8_at(bytes, 0) & 0x7f;
        let (fixed, need) = match response {
            0x70 | 0x71 => (true, 3),
            0x72 | 0x73 => (false, 4),
            _ if bytes.is_empty() => (true, 3),
            other => {
                return Err(DataError::Reserved { what: WHAT, field: "RESPONSE CODE", found: other.into() });
            }
        };
        if bytes.len() < need {
            return Err(DataError::TooShort { what: WHAT, need, got: bytes.len() });
        }
        let mut sense = if fixed { Self::parse_fixed(bytes) } else { Self::parse_descriptors(bytes) };
        sense.deferred = matches!(response, 0x71 | 0x73);
        Ok(sense)
    }

    fn parse_fixed(bytes: &[u8]) -> Self {
        let key = SenseKey::from_bits(u8_at(bytes, 2));
        let end = usize::from(u8_at(bytes, 7)) + 8;
        let bytes = bytes.get(..end).unwrap_or(bytes);
        Self {
            key,
            code: AdditionalSense::new(u8_at(bytes, 12), u8_at(bytes, 13)),
            deferred: false,
            information: bit(bytes, 0, 7).then(|| be32(bytes, 3).into()),
            command_specific: match be32(bytes, 8) {
                0 => None,
                value => Some(value.into()),
            },
            specific: SenseKeySpecific::parse(key, super::field::array(bytes, 15)),
            field_replaceable_unit: u8_at(bytes, 14),
            incorrect_length: bit(bytes, 2, 5),
        }
    }

    fn parse_descriptors(bytes: &[u8]) -> Self {
        let mut sense =
            Self::new(SenseKey::from_bits(u8_at(bytes, 1)), AdditionalSense::new(u8_at(bytes, 2), u8_at(bytes, 3)));
        let end = usize::from(u8_at(bytes, 7)) + 8;
        let mut rest = bytes.get(8..end.min(bytes.len())).unwrap_or(&[]);
        while let [kind, additional, ..] = *rest {
            let (descriptor, next) = rest.split_at_checked(usize::from(additional) + 2).unwrap_or((rest, &[]));
            match kind {
                0x00 if bit(descriptor, 2, 7) => sense.information = Some(be64(descriptor, 4)),
                0x01 => sense.command_specific = Some(be64(descriptor, 4)),
                0x02 => {
                    let specific = super::field::array(descriptor, 4);
                    sense.specific = SenseKeySpecific::parse(sense.key, specific);
                }
                0x03 => sense.field_replaceable_unit = u8_at(descriptor, 3),
                0x05 => sense.incorrect_length = bit(descriptor, 3, 5),
                _ => {}
            }
            rest = next;
        }
        sense
    }

    /// The bytes for the wire, without the length that an iSCSI SCSI Response puts before them; no allocation.
    pub fn to_bytes(&self, format: SenseFormat) -> SenseBytes {
        match format {
            SenseFormat::Fixed => self.to_fixed(),
            SenseFormat::Descriptor => self.to_descriptors(),
        }
    }

    fn to_fixed(self) -> SenseBytes {
        let mut bytes = [0; 18];
        bytes[0] = if self.deferred { 0x71 } else { 0x70 };
        bytes[2] = self.key as u8 | flag(self.incorrect_length, 5);
        if let Some(information) = self.information.and_then(|value| u32::try_from(value).ok()) {
            bytes[0] |= 0x80;
            put(&mut bytes, 3, &information.to_be_bytes());
        }
        bytes[7] = 10;
        if let Some(value) = self.command_specific.and_then(|value| u32::try_from(value).ok()) {
            put(&mut bytes, 8, &value.to_be_bytes());
        }
        bytes[12] = self.code.asc;
        bytes[13] = self.code.ascq;
        bytes[14] = self.field_replaceable_unit;
        if let Some(specific) = self.specific {
            put(&mut bytes, 15, &specific.to_bytes());
        }
        SenseBytes::default().with(&bytes)
    }

    fn to_descriptors(self) -> SenseBytes {
        let response = if self.deferred { 0x73 } else { 0x72 };
        let mut out =
            SenseBytes::default().with(&[response, self.key as u8, self.code.asc, self.code.ascq, 0, 0, 0, 0]);
        if let Some(information) = self.information {
            out = out.with(&[0x00, 0x0a, 0x80, 0]).with(&information.to_be_bytes());
        }
        if let Some(value) = self.command_specific {
            out = out.with(&[0x01, 0x0a, 0, 0]).with(&value.to_be_bytes());
        }
        if let Some(specific) = self.specific {
            let [a, b, c] = specific.to_bytes();
            out = out.with(&[0x02, 0x06, 0, 0, a, b, c, 0]);
        }
        if self.field_replaceable_unit != 0 {
            out = out.with(&[0x03, 0x02, 0, self.field_replaceable_unit]);
        }
        if self.incorrect_length {
            out = out.with(&[0x05, 0x02, 0, 0x20]);
        }
        let additional = out.len.saturating_sub(8);
        put(&mut out.bytes, 7, &[additional]);
        out
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.deferred {
            f.write_str("deferred ")?;
        }
        write!(f, "{}: {}", self.key, self.code)?;
        match self.specific {
            Some(SenseKeySpecific::FieldPointer { in_cdb, byte, bit }) => {
                let place = if in_cdb { "the CDB" } else { "the parameter data" };
                match bit {
                    Some(bit) => write!(f, " (byte {byte} bit {bit} of {place})")?,
                    None => write!(f, " (byte {byte} of {place})")?,
                }
            }
            Some(SenseKeySpecific::Progress(progress)) => {
                write!(f, " ({}% done)", u32::from(progress) * 100 / 65536)?;
            }
            Some(SenseKeySpecific::ActualRetryCount(count)) => write!(f, " ({count} retries)")?,
            Some(SenseKeySpecific::Other(_)) | None => {}
        }
        match self.information {
            Some(information) => write!(f, ", information {information:#x}"),
            None => Ok(()),
        }
    }
}

/// Sense data on the wire: at most 48 bytes, kept in place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SenseBytes {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl SenseBytes {
    /// The most that [`Sense::to_bytes`] makes.
    pub const MAX: usize = 48;

    fn with(mut self, more: &[u8]) -> Self {
        put(&mut self.bytes, self.len.into(), more);
        self.len += more.len() as u8;
        self
    }
}

impl Default for SenseBytes {
    /// No bytes.
    fn default() -> Self {
        Self { bytes: [0; Self::MAX], len: 0 }
    }
}

impl ops::Deref for SenseBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or(&self.bytes)
    }
}

impl fmt::Debug for SenseBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", &**self)
    }
}

#[cfg(test)]
#[path = "sense_tests.rs"]
mod tests;
