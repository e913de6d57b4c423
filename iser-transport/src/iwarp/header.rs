//! DDP and RDMAP headers as they stand in an FPDU, behind its length field (RFC 5041 4, RFC 5040 4, RFC 5044 4).

use super::fault::{self, Fault};

/// Bytes of an FPDU's length field.
pub(super) const LENGTH: usize = 2;
/// Most bytes of padding in an FPDU.
pub(super) const MAX_PADDING: usize = 3;
/// Bytes of an FPDU's CRC field.
pub(super) const CRC: usize = 4;
/// Bytes of a tagged segment's headers.
pub(super) const TAGGED: usize = 14;
/// Bytes of an untagged segment's headers.
pub(super) const UNTAGGED: usize = 18;
/// Bytes of the RDMAP header of an RDMA Read Request.
pub(super) const READ_REQUEST: usize = 28;

/// Queue of Sends.
const SEND_QUEUE: u32 = 0;
/// Queue of RDMA Read Requests.
const READ_QUEUE: u32 = 1;
/// Queue of the Terminate message.
const TERMINATE_QUEUE: u32 = 2;

/// Bytes of padding behind a ULPDU of `len` bytes: length field, ULPDU and padding are a multiple of four (RFC 5044
/// 4.1).
#[inline]
pub(super) fn padding(len: usize) -> usize {
    (LENGTH + len).wrapping_neg() & 3
}

/// What a message is (RFC 5040 4.1, figure 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Opcode {
    Write = 0,
    ReadRequest = 1,
    ReadResponse = 2,
    Send = 3,
    SendInvalidate = 4,
    SendSolicited = 5,
    SendSolicitedInvalidate = 6,
    Terminate = 7,
}

impl Opcode {
    fn of(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Write,
            1 => Self::ReadRequest,
            2 => Self::ReadResponse,
            3 => Self::Send,
            4 => Self::SendInvalidate,
            5 => Self::SendSolicited,
            6 => Self::SendSolicitedInvalidate,
            7 => Self::Terminate,
            _ => return None,
        })
    }

    fn is_tagged(self) -> bool {
        matches!(self, Self::Write | Self::ReadResponse)
    }

    pub(super) fn invalidates(self) -> bool {
        matches!(self, Self::SendInvalidate | Self::SendSolicitedInvalidate)
    }

    /// The queue of an untagged message.
    pub(super) fn queue(self) -> u32 {
        match self {
            Self::ReadRequest => READ_QUEUE,
            Self::Terminate => TERMINATE_QUEUE,
            _ => SEND_QUEUE,
        }
    }

    /// The two control bytes: DDP's T, L and version, RDMAP's version and opcode. Both versions are 1.
    fn control(self, last: bool) -> [u8; 2] {
        [u8::from(self.is_tagged()) << 7 | u8::from(last) << 6 | 0x01, 0x40 | self as u8]
    }
}

/// Headers of a tagged segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tagged {
    pub(super) opcode: Opcode,
    /// The message's last segment.
    pub(super) last: bool,
    pub(super) stag: u32,
    /// Tagged offset of the segment's first byte.
    pub(super) to: u64,
}

impl Tagged {
    /// The FPDU's first bytes, with `len` bytes of payload behind them.
    #[inline]
    pub(super) fn emit(&self, len: usize) -> [u8; LENGTH + TAGGED] {
        let mut bytes = [0; LENGTH + TAGGED];
        bytes[..2].copy_from_slice(&((TAGGED + len) as u16).to_be_bytes());
        bytes[2..4].copy_from_slice(&self.opcode.control(self.last));
        bytes[4..8].copy_from_slice(&self.stag.to_be_bytes());
        bytes[8..].copy_from_slice(&self.to.to_be_bytes());
        bytes
    }
}

/// Headers of an untagged segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Untagged {
    pub(super) opcode: Opcode,
    /// The message's last segment.
    pub(super) last: bool,
    /// STag to invalidate; zero in messages that invalidate none.
    pub(super) invalidate: u32,
    pub(super) queue: u32,
    /// Message sequence number, from one on.
    pub(super) msn: u32,
    /// Message offset of the segment's first byte.
    pub(super) mo: u32,
}

impl Untagged {
    /// The FPDU's first bytes, with `len` bytes of RDMAP header and payload behind them.
    #[inline]
    pub(super) fn emit(&self, len: usize) -> [u8; LENGTH + UNTAGGED] {
        let mut bytes = [0; LENGTH + UNTAGGED];
        bytes[..2].copy_from_slice(&((UNTAGGED + len) as u16).to_be_bytes());
        bytes[2..4].copy_from_slice(&self.opcode.control(self.last));
        bytes[4..8].copy_from_slice(&self.invalidate.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.queue.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.msn.to_be_bytes());
        bytes[16..].copy_from_slice(&self.mo.to_be_bytes());
        bytes
    }
}

/// Headers of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Tagged(Tagged),
    Untagged(Untagged),
}

impl Header {
    /// Bytes of the headers, without the FPDU's length field.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Tagged(_) => TAGGED,
            Self::Untagged(_) => UNTAGGED,
        }
    }

    /// The headers of the FPDU that begins with `fpdu`, as far as it is there. `None` when too little is.
    ///
    /// What stands in them is right by itself: versions, opcode, kind of buffer, queue, and the length holds them.
    #[inline]
    pub(super) fn parse(fpdu: &[u8]) -> Option<Result<Self, Fault>> {
        let len = usize::from(u16::from_be_bytes(*fpdu.first_chunk()?));
        if len < TAGGED {
            return Some(Err(fault::SHORT));
        }
        let [_, _, ddp, rdmap, stag @ ..] = *fpdu.first_chunk::<8>()?;
        let tagged = ddp & 0x80 != 0;
        let last = ddp & 0x40 != 0;
        if ddp & 0x03 != 1 {
            return Some(Err(if tagged { fault::TAGGED_VERSION } else { fault::UNTAGGED_VERSION }));
        }
        if rdmap >> 6 != 1 {
            return Some(Err(fault::RDMAP_VERSION));
        }
        let opcode = match Opcode::of(rdmap & 0x0f) {
            Some(opcode) if opcode.is_tagged() == tagged => opcode,
            _ => return Some(Err(fault::OPCODE)),
        };
        let stag = u32::from_be_bytes(stag);
        if tagged {
            let to = u64::from_be_bytes(*fpdu.get(8..)?.first_chunk()?);
            return Some(Ok(Self::Tagged(Tagged { opcode, last, stag, to })));
        }
        if len < UNTAGGED {
            return Some(Err(fault::SHORT));
        }
        let word = |at: usize| fpdu.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        let (queue, msn, mo) = (word(8)?, word(12)?, word(16)?);
        if queue != opcode.queue() {
            return Some(Err(fault::QUEUE));
        }
        Some(Ok(Self::Untagged(Untagged { opcode, last, invalidate: stag, queue, msn, mo })))
    }
}

/// The RDMAP header of an RDMA Read Request (RFC 5040 4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadRequest {
    pub(super) sink_stag: u32,
    pub(super) sink_to: u64,
    pub(super) len: u32,
    pub(super) source_stag: u32,
    pub(super) source_to: u64,
}

impl ReadRequest {
    pub(super) fn emit(&self) -> [u8; READ_REQUEST] {
        let mut bytes = [0; READ_REQUEST];
        bytes[..4].copy_from_slice(&self.sink_stag.to_be_bytes());
        bytes[4..12].copy_from_slice(&self.sink_to.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.len.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.source_stag.to_be_bytes());
        bytes[20..].copy_from_slice(&self.source_to.to_be_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8; READ_REQUEST]) -> Self {
        let word = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        let long = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Self { sink_stag: word(0), sink_to: long(4), len: word(12), source_stag: word(16), source_to: long(20) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5040 appendix A.1: RDMA Write.
    #[test]
    fn a_tagged_segment_byte_by_byte() {
        let header = Tagged { opcode: Opcode::Write, last: true, stag: 0x0102_0304, to: 0x1112_1314_1516_1718 };
        let bytes = header.emit(5);
        let expected = [0, 19, 0xc1, 0x40, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18];
        assert_eq!(bytes, expected);
        assert_eq!(Header::parse(&bytes), Some(Ok(Header::Tagged(header))));
        let response = Tagged { opcode: Opcode::ReadResponse, last: false, ..header };
        assert_eq!(response.emit(0)[..4], [0, 14, 0x81, 0x42]);
        for n in 2..bytes.len() {
            assert_eq!(Header::parse(&bytes[..n]), None, "{n} bytes are too few");
        }
    }

    /// RFC 5040 appendix A.4 and A.2: Send with Invalidate, RDMA Read Request.
    #[test]
    fn an_untagged_segment_byte_by_byte() {
        let header = Untagged {
            opcode: Opcode::SendInvalidate,
            last: true,
            invalidate: 0xa1a2_a3a4,
            queue: 0,
            msn: 7,
            mo: 0x0001_0000,
        };
        let bytes = header.emit(76);
        let expected = [0, 94, 0x41, 0x44, 0xa1, 0xa2, 0xa3, 0xa4, 0, 0, 0, 0, 0, 0, 0, 7, 0, 1, 0, 0];
        assert_eq!(bytes, expected);
        assert_eq!(Header::parse(&bytes), Some(Ok(Header::Untagged(header))));
        for n in 2..bytes.len() {
            assert_eq!(Header::parse(&bytes[..n]), None, "{n} bytes are too few");
        }
        let request = ReadRequest {
            sink_stag: 0x0102_0304,
            sink_to: 0x0506_0708_090a_0b0c,
            len: 0x0d0e_0f10,
            source_stag: 0x1112_1314,
            source_to: 0x1516_1718_191a_1b1c,
        };
        let bytes = request.emit();
        assert!(bytes.iter().copied().eq(1..=28));
        assert_eq!(ReadRequest::parse(&bytes), request);
    }

    #[test]
    fn headers_that_cannot_be_are_named() {
        let sound = Untagged { opcode: Opcode::Send, last: true, invalidate: 0, queue: 0, msn: 1, mo: 0 }.emit(0);
        let with = |at: usize, value: u8| {
            let mut bytes = sound;
            bytes[at] = value;
            Header::parse(&bytes).unwrap().unwrap_err()
        };
        assert_eq!(with(1, 13), fault::SHORT);
        assert_eq!(with(1, 17), fault::SHORT);
        assert_eq!(with(2, 0x42), fault::UNTAGGED_VERSION);
        assert_eq!(with(2, 0xc0), fault::TAGGED_VERSION);
        assert_eq!(with(3, 0x03), fault::RDMAP_VERSION);
        assert_eq!(with(3, 0x48), fault::OPCODE);
        assert_eq!(with(2, 0xc1), fault::OPCODE);
        assert_eq!(with(11, 1), fault::QUEUE);
        assert_eq!(with(3, 0x47), fault::QUEUE);
    }

    #[test]
    fn padding_fills_words() {
        assert_eq!([14, 15, 16, 17, 18].map(padding), [0, 3, 2, 1, 0]);
    }
}
