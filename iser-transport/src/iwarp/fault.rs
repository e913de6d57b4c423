//! Errors that end a stream, and the Terminate message that tells the peer (RFC 5040 4.8, RFC 5041 7.2, RFC 5044 8, RFC
//! 6581 8).

use super::header::{LENGTH, READ_REQUEST, TAGGED, UNTAGGED};

/// A rule that the peer broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    /// Layer, error type and error code as the first two bytes of a Terminate's control field.
    pub(super) code: u16,
    /// For people.
    pub(super) text: &'static str,
}

const fn fault(code: u16, text: &'static str) -> Fault {
    Fault { code, text }
}

// RDMAP, remote protection error.
pub(super) const READ_STAG: Fault = fault(0x0100, "an RDMA Read from a buffer that is not advertised");
pub(super) const READ_BOUNDS: Fault = fault(0x0101, "an RDMA Read outside the advertised buffer");
pub(super) const READ_ACCESS: Fault = fault(0x0102, "an RDMA Read from a buffer that may only be written");
pub(super) const READ_WRAP: Fault = fault(0x0104, "an RDMA Read whose end is past the last offset there is");
pub(super) const INVALIDATE: Fault = fault(0x0109, "a Send that invalidates a buffer that is not advertised");
// RDMAP, remote operation error.
pub(super) const RDMAP_VERSION: Fault = fault(0x0205, "an RDMAP version other than 1");
pub(super) const OPCODE: Fault = fault(0x0206, "an RDMAP message that cannot come here");
pub(super) const READ_REQUEST_LENGTH: Fault = fault(0x02ff, "an RDMA Read Request of a wrong length");
pub(super) const RESPONSE_SHORT: Fault = fault(0x02ff, "an RDMA Read Response shorter than what was asked for");
// DDP.
pub(super) const SHORT: Fault = fault(0x1000, "a segment shorter than its headers");
pub(super) const TAGGED_STAG: Fault = fault(0x1100, "a tagged segment for a buffer that it may not write to");
pub(super) const TAGGED_BOUNDS: Fault = fault(0x1101, "a tagged segment outside its buffer");
pub(super) const TAGGED_WRAP: Fault = fault(0x1103, "a tagged segment whose end is past the last offset there is");
pub(super) const TAGGED_VERSION: Fault = fault(0x1104, "a tagged segment with a DDP version other than 1");
pub(super) const QUEUE: Fault = fault(0x1201, "an untagged message for a wrong queue");
pub(super) const NO_RECEIVE: Fault = fault(0x1202, "a message for which no receive is posted");
pub(super) const NO_READ_SLOT: Fault = fault(0x1202, "more RDMA Reads at a time than were agreed on");
pub(super) const MSN: Fault = fault(0x1203, "a message out of sequence");
pub(super) const MO: Fault = fault(0x1204, "a segment out of its message's order");
pub(super) const TOO_LONG: Fault = fault(0x1205, "a message longer than its receive");
pub(super) const UNTAGGED_VERSION: Fault = fault(0x1206, "an untagged segment with a DDP version other than 1");
// MPA.
pub(super) const CRC_MISMATCH: Fault = fault(0x2002, "an MPA CRC that does not match");
pub(super) const READS_TOO_MANY: Fault = fault(0x2006, "the peer wants more RDMA Reads at a time than it was offered");

pub(super) const NO_RTR: Fault = fault(0x2007, "the peer begins with no empty RDMA Write");

/// What a Terminate of the peer says, from the first two bytes of its control field.
///
/// Linux's soft-iWARP on little-endian machines swaps layer and error type; a pair that means nothing as the standard
/// has it is read that way.
pub(super) fn describe(code: u16) -> &'static str {
    let swapped = (code & 0xf000) >> 4 | (code & 0x0f00) << 4 | code & 0x00ff;
    meaning(code).or_else(|| meaning(swapped)).unwrap_or("an error that the RDMA standards do not name")
}

fn meaning(code: u16) -> Option<&'static str> {
    Some(match code {
        0x0000..=0x00ff => "its RDMA layer failed",
        0x0100 => "it does not know the STag of an RDMA Read",
        0x0101 => "an RDMA Read lies outside its buffer",
        0x0102 => "an RDMA Read is not allowed on its buffer",
        0x0103 => "an RDMA Read names a buffer of another connection",
        0x0104 | 0x1103 => "an offset of an RDMA operation wraps",
        0x0109 | 0x0209 => "it cannot invalidate the STag of a Send",
        0x01ff | 0x02ff => "an RDMA error without further reason",
        0x0205 => "it does not speak this version of RDMAP",
        0x0206 => "it did not expect an RDMA message",
        0x0207 | 0x0208 => "its RDMA layer failed in the midst of an operation",
        0x1000..=0x10ff => "its DDP layer failed",
        0x1100 => "it does not know the STag of an RDMA Write or Read Response",
        0x1101 => "an RDMA Write or Read Response lies outside its buffer",
        0x1102 => "an RDMA Write names a buffer of another connection",
        0x1104 | 0x1206 => "it does not speak this version of DDP",
        0x1201 => "a message went to a queue that it does not have",
        0x1202 => "it had posted no receive for a message",
        0x1203 => "a message came out of sequence",
        0x1204 => "a segment came out of its message's order",
        0x1205 => "a message was longer than its receive",
        0x2001 => "its TCP connection is lost",
        0x2002 => "an MPA CRC did not match",
        0x2003 => "an MPA marker did not match",
        0x2004 => "an MPA startup frame was malformed",
        0x2005 => "its MPA layer failed",
        0x2006 => "it cannot serve so many RDMA Reads at a time",
        0x2007 => "it cannot begin in the way that was asked for (RTR)",
        _ => return None,
    })
}

/// Bytes of the longest Terminate message: control field, segment length, untagged header, RDMA Read Request header.
const LONGEST: usize = 4 + LENGTH + UNTAGGED + READ_REQUEST;

/// The body of a Terminate message (RFC 5040 4.8).
#[derive(Debug, Clone, Copy)]
pub(super) struct Terminate {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Terminate {
    /// Tells of `fault`. `fpdu` is the FPDU that it is about, from its length field on and as far as it is at hand;
    /// anything may follow.
    pub(super) fn new(fault: Fault, fpdu: &[u8]) -> Self {
        let len = fpdu.first_chunk().map_or(0, |len| usize::from(u16::from_be_bytes(*len)));
        let fpdu = fpdu.get(..LENGTH + len).unwrap_or(fpdu);
        let mut bytes = [0; LONGEST];
        bytes[..2].copy_from_slice(&fault.code.to_be_bytes());
        let mut len = 4;
        // RFC 5040 4.8, figure 10.
        let layer = fault.code >> 12;
        let protection = fault.code >> 8 == 0x01;
        if layer < 2
            && fault.code >> 8 != 0
            && let Some(&[_, _, ddp, rdmap, ..]) = fpdu.first_chunk::<4>()
        {
            let ddp_header = LENGTH + if ddp & 0x80 != 0 { TAGGED } else { UNTAGGED };
            let rdma_header = if protection && rdmap & 0x0f == 1 { READ_REQUEST } else { 0 };
            if let Some(headers) = fpdu.get(..ddp_header + rdma_header) {
                // M and D, and R with a read request's header.
                bytes[2] = if rdma_header > 0 { 0xe0 } else { 0xc0 };
                bytes[4..4 + headers.len()].copy_from_slice(headers);
                len += headers.len();
            }
        }
        Self { bytes, len }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::{Opcode, ReadRequest, Tagged, Untagged};
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_terminate_names_the_headers_that_its_error_type_asks_for() {
        let write = Tagged { opcode: Opcode::Write, last: true, stag: 0x0a0b_0c0d, to: 9 }.emit(3);
        let terminate = Terminate::new(TAGGED_BOUNDS, &write);
        assert_eq!(terminate.as_bytes()[..4], [0x11, 0x01, 0xc0, 0]);
        assert_eq!(terminate.as_bytes()[4..], write);

        let mut request = Vec::from(
            Untagged { opcode: Opcode::ReadRequest, last: true, invalidate: 0, queue: 1, msn: 1, mo: 0 }
                .emit(READ_REQUEST),
        );
        let body = ReadRequest { sink_stag: 1, sink_to: 2, len: 3, source_stag: 4, source_to: 5 }.emit();
        request.extend_from_slice(&body);
        let terminate = Terminate::new(READ_STAG, &request);
        assert_eq!(terminate.as_bytes()[..4], [0x01, 0x00, 0xe0, 0]);
        assert_eq!(terminate.as_bytes()[4..], request);
        assert_eq!(terminate.as_bytes().len(), LONGEST);

        // An error of MPA is about no message, and of headers that did not come nothing is told.
        assert_eq!(Terminate::new(CRC_MISMATCH, &write).as_bytes(), [0x20, 0x02, 0, 0]);
        assert_eq!(Terminate::new(OPCODE, &write).as_bytes().len(), 4 + 16);
        assert_eq!(Terminate::new(SHORT, &write[..10]).as_bytes(), [0x10, 0x00, 0, 0]);
    }

    #[test]
    fn a_terminate_with_swapped_nibbles_is_understood() {
        assert_eq!(describe(0x2102), describe(0x1202));
        assert_eq!(describe(0x0202), describe(0x2002));
        assert_eq!(describe(0x7777), "an error that the RDMA standards do not name");
    }
}
