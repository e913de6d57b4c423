//! Every PDU of RFC 7143 section 11, parsed from and emitted into a 48-byte Basic Header Segment.
//!
//! A PDU type holds the header's fields only. The data segment is never part of it: payload is the business of the
//! mover, which knows where it is to land. Parsing rejects what the RFC calls a format error and ignores reserved bits,
//! as 11 ("reserved fields are ignored by receivers") asks.

use core::fmt;

mod ahs;
mod command;
mod control;
mod data;
mod display;
mod login;
mod logout;
pub(crate) mod offset;
#[cfg(test)]
mod pdu_tests;
mod text;

use offset::{FLAGS, ITT, LUN};

pub use ahs::{Ahs, AhsIter, BIDI_READ_AHS_LEN, emit_bidirectional_read_length, emit_extended_cdb};
pub use command::{
    Residual, ResponseCode, ScsiCommand, ScsiResponse, TaskAttribute, TaskFunction, TaskManagementRequest,
    TaskManagementResponse, TaskResponse,
};
pub use control::{AsyncEvent, AsyncMessage, NopIn, NopOut, Reject, RejectReason};
pub use data::{DataIn, DataInStatus, DataOut, R2t, SnackRequest, SnackType};
pub use login::{LoginRequest, LoginResponse, LoginStatus, Stage};
pub use logout::{LogoutReason, LogoutRequest, LogoutResponse, LogoutResult};
pub use text::{TextRequest, TextResponse};

/// Length of the Basic Header Segment in bytes (RFC 7143 11.2.1).
pub const BHS_LEN: usize = 48;
/// Largest AHS area in bytes: TotalAHSLength counts up to 255 four-byte words (RFC 7143 11.2.1.5).
pub const MAX_AHS_LEN: usize = 255 * 4;
/// Largest data segment in bytes: DataSegmentLength has 24 bits (RFC 7143 11.2.1.6).
pub const MAX_DATA_SEGMENT_LEN: u32 = 0x00ff_ffff;
/// The tag value that is no tag: 0xffffffff (RFC 7143 11.2.1.8).
pub const RESERVED_TAG: u32 = 0xffff_ffff;

/// Bytes from `len` up to the next multiple of four (RFC 7143 11.1).
#[must_use]
pub const fn padding(len: u32) -> u32 {
    len.wrapping_neg() & 3
}

/// The PDU's opcode (RFC 7143 11.2.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// NOP-Out, from the initiator.
    NopOut = 0x00,
    /// SCSI Command.
    ScsiCommand = 0x01,
    /// SCSI Task Management Function Request.
    TaskManagementRequest = 0x02,
    /// Login Request.
    LoginRequest = 0x03,
    /// Text Request.
    TextRequest = 0x04,
    /// SCSI Data-Out.
    DataOut = 0x05,
    /// Logout Request.
    LogoutRequest = 0x06,
    /// SNACK Request.
    SnackRequest = 0x10,
    /// NOP-In, from the target.
    NopIn = 0x20,
    /// SCSI Response.
    ScsiResponse = 0x21,
    /// SCSI Task Management Function Response.
    TaskManagementResponse = 0x22,
    /// Login Response.
    LoginResponse = 0x23,
    /// Text Response.
    TextResponse = 0x24,
    /// SCSI Data-In.
    DataIn = 0x25,
    /// Logout Response.
    LogoutResponse = 0x26,
    /// Ready To Transfer.
    R2t = 0x31,
    /// Asynchronous Message.
    AsyncMessage = 0x32,
    /// Reject.
    Reject = 0x3f,
}

impl Opcode {
    /// The opcode of a code point, if RFC 7143 defines it.
    #[must_use]
    pub const fn from_u8(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => Self::NopOut,
            0x01 => Self::ScsiCommand,
            0x02 => Self::TaskManagementRequest,
            0x03 => Self::LoginRequest,
            0x04 => Self::TextRequest,
            0x05 => Self::DataOut,
            0x06 => Self::LogoutRequest,
            0x10 => Self::SnackRequest,
            0x20 => Self::NopIn,
            0x21 => Self::ScsiResponse,
            0x22 => Self::TaskManagementResponse,
            0x23 => Self::LoginResponse,
            0x24 => Self::TextResponse,
            0x25 => Self::DataIn,
            0x26 => Self::LogoutResponse,
            0x31 => Self::R2t,
            0x32 => Self::AsyncMessage,
            0x3f => Self::Reject,
            _ => return None,
        })
    }

    /// Whether an initiator sends it.
    #[must_use]
    pub const fn is_request(self) -> bool {
        (self as u8) < 0x20
    }
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    /// The opcode is not one of RFC 7143.
    #[error("opcode {0:#04x} is not defined by RFC 7143 11.2.1.2")]
    UnknownOpcode(u8),
    /// A parser was handed another opcode's header.
    #[error("this is not a {expected:?} header: its opcode is {found:#04x}")]
    WrongOpcode {
        /// What the parser reads.
        expected: Opcode,
        /// What the header holds.
        found: u8,
    },
    /// A field holds a value that its section does not define.
    #[error("field {field} of the {opcode:?} PDU holds {value:#x}, which RFC 7143 does not define")]
    InvalidField {
        /// The PDU.
        opcode: Opcode,
        /// The field by the RFC's name.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// An Additional Header Segment does not fit its area or its type.
    #[error("the additional header segment at byte {0} of its area is malformed")]
    InvalidAhs(usize),
}

/// A Basic Header Segment: the first 48 bytes of every PDU.
///
/// ```
/// use iscsi_proto::pdu::{Bhs, NopOut, Opcode, RESERVED_TAG};
/// use iscsi_proto::serial::Serial;
/// let nop = NopOut { immediate: true, lun: 0, itt: 7, ttt: RESERVED_TAG, cmd_sn: Serial(1), exp_stat_sn: Serial(2) };
/// let bhs: Bhs = nop.emit();
/// assert_eq!(bhs.opcode(), Ok(Opcode::NopOut));
/// assert_eq!(NopOut::parse(&bhs), Ok(nop));
/// assert_eq!(bhs.to_string(), "NOP-Out I, ITT 0x7, CmdSN 1, ExpStatSN 2");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(align(8))]
pub struct Bhs(pub [u8; BHS_LEN]);

impl Bhs {
    /// A header of zeroes with the opcode set.
    #[must_use]
    pub const fn new(opcode: Opcode) -> Self {
        let mut bytes = [0; BHS_LEN];
        bytes[0] = opcode as u8;
        Self(bytes)
    }

    /// The opcode.
    ///
    /// # Errors
    /// [`PduError::UnknownOpcode`].
    pub fn opcode(&self) -> Result<Opcode, PduError> {
        let code = self.0[0] & 0x3f;
        Opcode::from_u8(code).ok_or(PduError::UnknownOpcode(code))
    }

    pub(crate) fn expect(&self, expected: Opcode) -> Result<(), PduError> {
        let found = self.0[0] & 0x3f;
        if found == expected as u8 { Ok(()) } else { Err(PduError::WrongOpcode { expected, found }) }
    }

    /// The I bit: the request is for immediate delivery (RFC 7143 11.2.1.1).
    #[must_use]
    pub const fn immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    /// The F bit (RFC 7143 11.2.1.3).
    #[must_use]
    pub const fn is_final(&self) -> bool {
        self.0[FLAGS] & 0x80 != 0
    }

    /// Length of the AHS area in bytes, 0 to 1020.
    #[must_use]
    pub const fn ahs_len(&self) -> usize {
        self.0[4] as usize * 4
    }

    /// Length of the data segment in bytes without padding, 0 to 2^24-1.
    #[must_use]
    pub const fn data_segment_len(&self) -> u32 {
        u32::from_be_bytes([0, self.0[5], self.0[6], self.0[7]])
    }

    /// Sets the data segment's length in bytes.
    ///
    /// # Panics
    /// If `len` needs more than 24 bits; senders are bound by MaxRecvDataSegmentLength, which is smaller.
    pub fn set_data_segment_len(&mut self, len: u32) {
        assert!(len <= MAX_DATA_SEGMENT_LEN, "a data segment has 24 bits of length");
        let [_, a, b, c] = len.to_be_bytes();
        self.0[5] = a;
        self.0[6] = b;
        self.0[7] = c;
    }

    /// Sets the AHS area's length in bytes, a multiple of 4.
    ///
    /// # Panics
    /// If it is above 1020 or no multiple of 4.
    pub fn set_ahs_len(&mut self, len: usize) {
        assert!(len <= MAX_AHS_LEN && len.is_multiple_of(4), "an AHS area is at most 255 words");
        self.0[4] = (len / 4) as u8;
    }

    /// The Initiator Task Tag (RFC 7143 11.2.1.8).
    #[must_use]
    pub const fn itt(&self) -> u32 {
        self.u32_at::<ITT>()
    }

    /// The LUN field's eight bytes as a big-endian number.
    #[must_use]
    pub const fn lun(&self) -> u64 {
        ((self.u32_at::<LUN>() as u64) << 32) | self.u32_at::<{ LUN + 4 }>() as u64
    }

    #[allow(clippy::indexing_slicing, reason = "the place is checked at compile time")]
    #[allow(clippy::cast_lossless, reason = "`From` is not const")]
    pub(crate) const fn u32_at<const AT: usize>(&self) -> u32 {
        const { assert!(AT + 4 <= BHS_LEN) };
        u32::from_be_bytes([self.0[AT], self.0[AT + 1], self.0[AT + 2], self.0[AT + 3]])
    }

    #[allow(clippy::indexing_slicing, reason = "the place is checked at compile time")]
    pub(crate) const fn u16_at<const AT: usize>(&self) -> u16 {
        const { assert!(AT + 2 <= BHS_LEN) };
        u16::from_be_bytes([self.0[AT], self.0[AT + 1]])
    }

    #[allow(clippy::indexing_slicing, reason = "the place is checked at compile time")]
    pub(crate) fn put<const AT: usize, const N: usize>(&mut self, bytes: [u8; N]) {
        const { assert!(AT + N <= BHS_LEN) };
        self.0[AT..AT + N].copy_from_slice(&bytes);
    }

    pub(crate) fn put_u32<const AT: usize>(&mut self, value: u32) {
        self.put::<AT, 4>(value.to_be_bytes());
    }

    pub(crate) fn put_lun(&mut self, lun: u64) {
        self.put::<LUN, 8>(lun.to_be_bytes());
    }

    #[allow(clippy::indexing_slicing, reason = "the place is checked at compile time")]
    pub(crate) fn set_flag<const BYTE: usize>(&mut self, bit: u8, on: bool) {
        const { assert!(BYTE < BHS_LEN) };
        if on {
            self.0[BYTE] |= bit;
        }
    }
}

impl fmt::Debug for Bhs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.opcode() {
            Ok(opcode) => write!(f, "Bhs({opcode:?}, itt {:#x}, {} bytes)", self.itt(), self.data_segment_len()),
            Err(_) => write!(f, "Bhs(opcode {:#04x})", self.0[0] & 0x3f),
        }
    }
}
