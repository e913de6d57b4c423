//! The iSER header (RFC 7145 9): the first 28 bytes of every Send message, and the byte of private data that both ends
//! exchange when they connect.

use core::fmt;

use iscsi_proto::misbehavior::Misbehavior;
use iscsi_proto::pdu::BHS_LEN;

use crate::queue::{RemoteBuffer, Stag};

/// Bytes of the iSER header (RFC 7145 9.1).
pub const HEADER_LEN: usize = 28;
/// Bytes of the iSER header and the Basic Header Segment behind it: the shortest message that carries a PDU.
pub const HEADERS_LEN: usize = HEADER_LEN + BHS_LEN;
/// The version of the protocol in Hello and HelloReply (RFC 7145 9.3).
pub const VERSION: u8 = 10;

const CONTROL: u8 = 1;
const HELLO: u8 = 2;
const HELLO_REPLY: u8 = 3;
const WRITE_STAG_VALID: u8 = 0x08;
const READ_STAG_VALID: u8 = 0x04;
const REJECT: u8 = 0x01;

/// Header of a message that carries a control-type PDU (RFC 7145 9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControlHeader {
    /// Write STag and Write Base Offset, if the WSV flag is set: where the target reads a command's data.
    pub write: Option<RemoteBuffer>,
    /// Read STag and Read Base Offset, if the RSV flag is set: where the target writes a command's data.
    pub read: Option<RemoteBuffer>,
}

/// Hello: an initiator's first message where iSERHelloRequired is Yes (RFC 7145 9.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Highest version that the initiator speaks.
    pub max_version: u8,
    /// Lowest version that the initiator speaks.
    pub min_version: u8,
    /// iSER-IRD: RDMA Reads that the initiator serves at a time.
    pub ird: u16,
}

/// HelloReply: a target's answer to [`Hello`] (RFC 7145 9.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HelloReply {
    /// REJ: the target rejects the connection.
    pub rejected: bool,
    /// Highest version that the target speaks.
    pub max_version: u8,
    /// The version that the connection uses.
    pub current_version: u8,
    /// iSER-ORD: RDMA Reads that the target has in flight at most.
    pub ord: u16,
}

/// An iSER header.
///
/// ```
/// use iser_transport::header::{ControlHeader, Header};
/// use iser_transport::queue::{RemoteBuffer, Stag};
/// let read = RemoteBuffer { stag: Stag(0x1234), offset: 0x7000_0000 };
/// let header = Header::Control(ControlHeader { read: Some(read), write: None });
/// assert_eq!(Header::parse(&header.emit()), Ok(header));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// A control-type PDU follows.
    Control(ControlHeader),
    /// Nothing follows.
    Hello(Hello),
    /// Nothing follows.
    HelloReply(HelloReply),
}

/// What is wrong with an iSER message: a format error, which ends the connection (RFC 7145 10.1.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderError {
    /// It is too short for an iSER header.
    TooShort,
    /// The opcode is not assigned.
    UnknownOpcode,
    /// Hello and HelloReply consist of the header alone.
    HelloLength,
}

impl From<HeaderError> for Misbehavior {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::TooShort => Self::IserMessageTooShort,
            HeaderError::UnknownOpcode => Self::IserOpcode,
            HeaderError::HelloLength => Self::HelloLength,
        }
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Misbehavior::from(*self).fmt(f)
    }
}

impl core::error::Error for HeaderError {}

fn be32(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |chunk| u32::from_be_bytes(*chunk))
}

fn be64(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |chunk| u64::from_be_bytes(*chunk))
}

impl Header {
    /// Parses the header of a whole message. Reserved bits, and the fields of an STag that is not valid, are ignored
    /// (RFC 7145 9.2).
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn parse(message: &[u8]) -> Result<Self, HeaderError> {
        let Some((header, rest)) = message.split_first_chunk::<HEADER_LEN>() else { return Err(HeaderError::TooShort) };
        let [first, versions, ..] = *header;
        let depth = be32(header, 0) as u16;
        let buffer = |at| RemoteBuffer { stag: Stag(be32(header, at)), offset: be64(header, at + 4) };
        match first >> 4 {
            CONTROL => Ok(Self::Control(ControlHeader {
                write: (first & WRITE_STAG_VALID != 0).then(|| buffer(4)),
                read: (first & READ_STAG_VALID != 0).then(|| buffer(16)),
            })),
            HELLO | HELLO_REPLY if !rest.is_empty() => Err(HeaderError::HelloLength),
            HELLO => Ok(Self::Hello(Hello { max_version: versions >> 4, min_version: versions & 0x0f, ird: depth })),
            HELLO_REPLY => Ok(Self::HelloReply(HelloReply {
                rejected: first & REJECT != 0,
                max_version: versions >> 4,
                current_version: versions & 0x0f,
                ord: depth,
            })),
            _ => Err(HeaderError::UnknownOpcode),
        }
    }

    /// Emits the header. Versions above 15 lose their upper bits.
    #[must_use]
    #[inline]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        match self {
            Self::Control(control) => {
                bytes[0] = CONTROL << 4;
                if let Some(write) = control.write {
                    bytes[0] |= WRITE_STAG_VALID;
                    bytes[4..8].copy_from_slice(&write.stag.0.to_be_bytes());
                    bytes[8..16].copy_from_slice(&write.offset.to_be_bytes());
                }
                if let Some(read) = control.read {
                    bytes[0] |= READ_STAG_VALID;
                    bytes[16..20].copy_from_slice(&read.stag.0.to_be_bytes());
                    bytes[20..28].copy_from_slice(&read.offset.to_be_bytes());
                }
            }
            Self::Hello(hello) => {
                bytes[0] = HELLO << 4;
                bytes[1] = hello.max_version << 4 | hello.min_version & 0x0f;
                bytes[2..4].copy_from_slice(&hello.ird.to_be_bytes());
            }
            Self::HelloReply(reply) => {
                bytes[0] = HELLO_REPLY << 4 | u8::from(reply.rejected);
                bytes[1] = reply.max_version << 4 | reply.current_version & 0x0f;
                bytes[2..4].copy_from_slice(&reply.ord.to_be_bytes());
            }
        }
        bytes
    }
}

/// The private data of a connection request or reply: what its sender can *not* do. The first of four bytes carries the
/// flags, the rest are zero; some networks pad them, and some peers send none.
///
/// ```
/// use iser_transport::header::PrivateData;
/// let reply = PrivateData { zero_based: false, send_with_invalidate: true };
/// assert_eq!(reply.emit(), [0x80, 0, 0, 0]);
/// assert_eq!(PrivateData::of_peer(Some(0x80)), reply);
/// assert_eq!(PrivateData::of_peer(None), PrivateData::default());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrivateData {
    /// Whether zero-based virtual addresses are supported.
    pub zero_based: bool,
    /// Whether it takes Send with Invalidate for the STags that it advertises.
    pub send_with_invalidate: bool,
}

impl PrivateData {
    const NO_ZERO_BASED: u8 = 0x80;
    const NO_SEND_WITH_INVALIDATE: u8 = 0x40;

    /// What the peer's first byte says. Without any it supports neither.
    #[must_use]
    pub const fn of_peer(first: Option<u8>) -> Self {
        match first {
            Some(flags) => Self {
                zero_based: flags & Self::NO_ZERO_BASED == 0,
                send_with_invalidate: flags & Self::NO_SEND_WITH_INVALIDATE == 0,
            },
            None => Self { zero_based: false, send_with_invalidate: false },
        }
    }

    /// The bytes to send.
    #[must_use]
    pub const fn emit(self) -> [u8; 4] {
        let zero_based = if self.zero_based { 0 } else { Self::NO_ZERO_BASED };
        let invalidate = if self.send_with_invalidate { 0 } else { Self::NO_SEND_WITH_INVALIDATE };
        [zero_based | invalidate, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn buffer() -> impl Strategy<Value = Option<RemoteBuffer>> {
        proptest::option::of(
            (any::<u32>(), any::<u64>()).prop_map(|(stag, offset)| RemoteBuffer { stag: Stag(stag), offset }),
        )
    }

    fn header() -> impl Strategy<Value = Header> {
        prop_oneof![
            (buffer(), buffer()).prop_map(|(write, read)| Header::Control(ControlHeader { write, read })),
            (0..16u8, 0..16u8, any::<u16>()).prop_map(|(max_version, min_version, ird)| Header::Hello(Hello {
                max_version,
                min_version,
                ird
            })),
            (any::<bool>(), 0..16u8, 0..16u8, any::<u16>()).prop_map(
                |(rejected, max_version, current_version, ord)| {
                    Header::HelloReply(HelloReply { rejected, max_version, current_version, ord })
                }
            ),
        ]
    }

    // RFC 7145 9.2, figure 3.
    #[test]
    fn fields_lie_where_the_figure_has_them() {
        let header = Header::Control(ControlHeader {
            write: Some(RemoteBuffer { stag: Stag(0x0102_0304), offset: 0x1112_1314_1516_1718 }),
            read: Some(RemoteBuffer { stag: Stag(0x2122_2324), offset: 0x3132_3334_3536_3738 }),
        });
        let bytes = header.emit();
        assert_eq!(bytes[..4], [0x1c, 0, 0, 0]);
        assert_eq!(bytes[4..8], [1, 2, 3, 4]);
        assert_eq!(bytes[8..16], [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
        assert_eq!(bytes[16..20], [0x21, 0x22, 0x23, 0x24]);
        assert_eq!(bytes[20..], [0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38]);
    }

    // RFC 7145 9.3 and 9.4, figures 4 and 5.
    #[test]
    fn the_hello_messages_have_versions_and_depth() {
        let hello = Header::Hello(Hello { max_version: VERSION, min_version: VERSION, ird: 0x0203 });
        assert_eq!(hello.emit()[..5], [0x20, 0xaa, 2, 3, 0]);
        let reply = HelloReply { rejected: true, max_version: VERSION, current_version: VERSION, ord: 4 };
        assert_eq!(Header::HelloReply(reply).emit()[..5], [0x31, 0xaa, 0, 4, 0]);
    }

    // RFC 7145 9.2: "If set to zero, [they] MUST be ignored at the receiver".
    #[test]
    fn fields_of_an_invalid_stag_are_ignored() {
        let mut bytes = [0xff; HEADER_LEN];
        bytes[0] = 0x13;
        assert_eq!(Header::parse(&bytes), Ok(Header::Control(ControlHeader::default())));
    }

    // RFC 7145 9.2 to 9.4: fields of what is not valid, and reserved ones, are zero where we send and ignored where we
    // receive.
    #[test]
    fn what_says_nothing_is_zero_and_ignored() {
        let buffer = RemoteBuffer { stag: Stag(u32::MAX), offset: u64::MAX };
        let control = |write, read| Header::Control(ControlHeader { write, read }).emit();
        assert_eq!(control(None, None), *[[0x10].as_slice(), &[0; 27]].concat());
        assert_eq!(control(None, Some(buffer)), *[[0x14].as_slice(), &[0; 15], &[0xff; 12]].concat());
        assert_eq!(control(Some(buffer), None), *[[0x18, 0, 0, 0].as_slice(), &[0xff; 12], &[0; 12]].concat());
        let hello = Header::Hello(Hello { max_version: VERSION, min_version: VERSION, ird: 1 });
        let reply =
            Header::HelloReply(HelloReply { rejected: false, max_version: VERSION, current_version: VERSION, ord: 1 });
        for (header, reserved) in [(hello, 0x0f), (reply, 0x0e)] {
            let mut bytes = header.emit();
            assert_eq!((bytes[0] & reserved, &bytes[4..]), (0, [0; 24].as_slice()));
            bytes[0] |= reserved;
            bytes[4..].fill(0xff);
            assert_eq!(Header::parse(&bytes), Ok(header));
        }
        let mut bytes = control(Some(buffer), Some(buffer));
        bytes[0] |= 0x03;
        bytes[1..4].fill(0xff);
        assert_eq!(Header::parse(&bytes).map(|header| header.emit()), Ok(control(Some(buffer), Some(buffer))));
    }

    // RFC 7145 10.1.3.3.
    #[test]
    fn format_errors_are_named() {
        assert_eq!(Header::parse(&[0x10; 27]), Err(HeaderError::TooShort));
        for opcode in (0..16u8).filter(|opcode| !(1..=3).contains(opcode)) {
            assert_eq!(Header::parse(&[opcode << 4; 28]), Err(HeaderError::UnknownOpcode));
        }
        assert_eq!(Header::parse(&[0x20; 29]), Err(HeaderError::HelloLength));
        assert_eq!(Header::parse(&[0x30; 76]), Err(HeaderError::HelloLength));
    }

    proptest! {
        #[test]
        fn what_is_emitted_parses(header in header()) {
            prop_assert_eq!(Header::parse(&header.emit()), Ok(header));
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes: Vec<u8>) {
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert_eq!(Header::parse(&header.emit()), Ok(header));
            }
        }

        #[test]
        fn the_first_private_byte_says_it_all(flags: u8) {
            let peer = PrivateData::of_peer(Some(flags));
            prop_assert_eq!(peer.emit()[0], flags & 0xc0);
        }
    }
}
