//! MPA startup: the Request and Reply frames of revisions 1 and 2, and what two ends agree on with them (RFC 5044 7.1,
//! RFC 6581).

use alloc::vec::Vec;

use super::IwarpConfig;
use super::fault::{self, Fault};

/// Key of a request frame; a reply's differs in one letter.
const REQUEST_KEY: [u8; 16] = *b"MPA ID Req Frame";
const REPLY_KEY: [u8; 16] = *b"MPA ID Rep Frame";
/// Bytes before the private data.
const FIXED: usize = 20;
/// Most bytes of private data (RFC 5044 7.1.1).
pub(super) const MAX_PRIVATE: usize = 512;
/// Bytes of the longest startup frame.
pub(super) const LONGEST: usize = FIXED + MAX_PRIVATE;
/// Bytes of private data that revision 2 takes for itself (RFC 6581 9).
pub(super) const ENHANCED: usize = 4;

const MARKERS: u8 = 0x80;
const WANTS_CRC: u8 = 0x40;
const REJECT: u8 = 0x20;
const IS_ENHANCED: u8 = 0x10;

/// Most RDMA Reads at a time that the fields can say.
pub(super) const MAX_DEPTH: u16 = 0x3ffe;
/// In place of a depth: it is not to be negotiated (RFC 6581 9.1).
const NOT_NEGOTIATED: u16 = 0x3fff;

/// Whether a TCP stream that begins with `bytes` is an MPA connection: `None` while too few have come to tell.
///
/// A portal serves plain iSCSI and iSER over iWARP on one port with this: an iSCSI connection begins with a Login
/// Request, whose first byte is `0x43` or `0x03`.
///
/// ```
/// use iser_transport::iwarp::begins_mpa;
/// assert_eq!(begins_mpa(b""), None);
/// assert_eq!(begins_mpa(b"MPA ID"), None);
/// assert_eq!(begins_mpa(b"MPA ID Req Frame\0\x01"), Some(true));
/// assert_eq!(begins_mpa(&[0x43, 0x87]), Some(false));
/// ```
#[must_use]
pub fn begins_mpa(bytes: &[u8]) -> Option<bool> {
    let n = bytes.len().min(REQUEST_KEY.len());
    if bytes[..n] != REQUEST_KEY[..n] {
        return Some(false);
    }
    (n == REQUEST_KEY.len()).then_some(true)
}

/// The fields of revision 2 (RFC 6581 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Enhanced {
    /// A: the initiator sends something of no meaning as its first FPDU, so that the responder may begin.
    pub(super) peer_to_peer: bool,
    /// B: that is an empty Send.
    pub(super) send: bool,
    /// C: that is an empty RDMA Write.
    pub(super) write: bool,
    /// D: that is an empty RDMA Read.
    pub(super) read: bool,
    pub(super) ird: u16,
    pub(super) ord: u16,
}

impl Enhanced {
    fn emit(self) -> [u8; ENHANCED] {
        let flags = |high: bool, low: bool| u16::from(high) << 15 | u16::from(low) << 14;
        let ird = flags(self.peer_to_peer, self.send) | self.ird & 0x3fff;
        let ord = flags(self.write, self.read) | self.ord & 0x3fff;
        let ([a, b], [c, d]) = (ird.to_be_bytes(), ord.to_be_bytes());
        [a, b, c, d]
    }

    fn parse([a, b, c, d]: [u8; ENHANCED]) -> Self {
        let (ird, ord) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let bit = |word: u16, bit: u16| word >> bit & 1 == 1;
        let peer_to_peer = bit(ird, 15);
        Self {
            peer_to_peer,
            // RFC 6581 9.2: without A the others are to be ignored.
            send: peer_to_peer && bit(ird, 14),
            write: peer_to_peer && bit(ord, 15),
            read: peer_to_peer && bit(ord, 14),
            ird: ird & 0x3fff,
            ord: ord & 0x3fff,
        }
    }
}

/// A Request or Reply frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) reply: bool,
    pub(super) markers: bool,
    pub(super) crc: bool,
    pub(super) reject: bool,
    pub(super) revision: u8,
    pub(super) enhanced: Option<Enhanced>,
    pub(super) private: &'a [u8],
}

impl<'a> Frame<'a> {
    pub(super) fn emit(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + ENHANCED + self.private.len());
        bytes.extend_from_slice(if self.reply { &REPLY_KEY } else { &REQUEST_KEY });
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        bytes.push(
            flag(self.markers, MARKERS)
                | flag(self.crc, WANTS_CRC)
                | flag(self.reject, REJECT)
                | flag(self.enhanced.is_some(), IS_ENHANCED),
        );
        bytes.push(self.revision);
        let own = if self.enhanced.is_some() { ENHANCED } else { 0 };
        bytes.extend_from_slice(&((own + self.private.len()) as u16).to_be_bytes());
        if let Some(enhanced) = self.enhanced {
            bytes.extend_from_slice(&enhanced.emit());
        }
        bytes.extend_from_slice(self.private);
        bytes
    }

    /// The frame at the start of `bytes` and how long it is; `None` when it is not whole yet.
    pub(super) fn parse(bytes: &'a [u8], reply: bool) -> Result<Option<(Self, usize)>, &'static str> {
        let key = if reply { &REPLY_KEY } else { &REQUEST_KEY };
        let n = bytes.len().min(key.len());
        if bytes[..n] != key[..n] {
            return Err("what came first is not the MPA startup frame that is due");
        }
        let Some(fixed) = bytes.first_chunk::<FIXED>() else { return Ok(None) };
        let [.., flags, revision, high, low] = *fixed;
        let len = usize::from(u16::from_be_bytes([high, low]));
        if len > MAX_PRIVATE {
            return Err("an MPA startup frame has more than 512 bytes of private data");
        }
        if !(1..=2).contains(&revision) {
            return Err("an MPA revision other than 1 and 2");
        }
        let Some(mut private) = bytes.get(FIXED..FIXED + len) else { return Ok(None) };
        let mut enhanced = None;
        // In revision 1 the bit is reserved, and not to be looked at.
        if revision == 2 && flags & IS_ENHANCED != 0 {
            let Some((fields, rest)) = private.split_first_chunk() else {
                return Err("an MPA startup frame of revision 2 without the fields it announces");
            };
            enhanced = Some(Enhanced::parse(*fields));
            private = rest;
        }
        let frame = Self {
            reply,
            markers: flags & MARKERS != 0,
            crc: flags & WANTS_CRC != 0,
            reject: reply && flags & REJECT != 0,
            revision,
            enhanced,
            private,
        };
        Ok(Some((frame, FIXED + len)))
    }
}

/// What two ends agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreement {
    pub(super) crc: bool,
    /// RDMA Reads of ours at a time.
    pub(super) ord: u16,
    /// RDMA Reads of the peer at a time.
    pub(super) ird: u16,
    /// The initiator's first FPDU is an empty RDMA Write.
    pub(super) empty_write: bool,
}

/// How an initiator asks.
pub(super) fn request(config: &IwarpConfig) -> Frame<'_> {
    let enhanced = config.revision_two.then(|| Enhanced {
        peer_to_peer: config.peer_to_peer,
        send: false,
        write: config.peer_to_peer,
        read: false,
        ird: config.ird(),
        ord: config.ord(),
    });
    Frame {
        reply: false,
        markers: false,
        crc: config.crc,
        reject: false,
        revision: if config.revision_two { 2 } else { 1 },
        enhanced,
        private: &config.private_data,
    }
}

/// How a responder answers, and what holds then; no agreement when the answer is a refusal.
pub(super) fn answer<'a>(config: &'a IwarpConfig, request: &Frame<'_>) -> (Frame<'a>, Option<Agreement>) {
    let crc = config.crc || request.crc;
    let mut agreement = Agreement { crc, ord: config.ord(), ird: config.ird(), empty_write: false };
    let enhanced = request.enhanced.map(|peer| {
        // RFC 6581 9.1: our ORD is at most the initiator's IRD. A depth that is not to be negotiated stays what it is,
        // and the answer says the same.
        let ord = if peer.ird == NOT_NEGOTIATED {
            NOT_NEGOTIATED
        } else {
            agreement.ord = agreement.ord.min(peer.ird);
            agreement.ord
        };
        // An empty Write is preferred to an empty Read; an empty Send would take a receive, and is not offered. Who
        // asks for that alone is told what would do.
        let read = peer.peer_to_peer && peer.read && !peer.write;
        let write = peer.peer_to_peer && !read;
        if read {
            agreement.ird = agreement.ird.max(1);
        }
        let ird = if peer.ord == NOT_NEGOTIATED { NOT_NEGOTIATED } else { agreement.ird };
        Enhanced { peer_to_peer: peer.peer_to_peer, send: false, write, read, ird, ord }
    });
    let frame = Frame {
        reply: true,
        markers: false,
        crc: agreement.crc,
        reject: request.markers,
        revision: request.revision,
        enhanced,
        private: &config.private_data,
    };
    (frame, (!request.markers).then_some(agreement))
}

/// What an initiator makes of the answer to its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted(Agreement),
    /// The peer refused.
    Rejected,
    /// The answer does not fit the request.
    Malformed(&'static str),
    /// The answer asks for what we cannot give; the peer is told.
    Refused(Fault),
}

/// Takes the answer in.
pub(super) fn conclude(config: &IwarpConfig, reply: &Frame<'_>) -> Answer {
    if reply.reject {
        return Answer::Rejected;
    }
    if reply.markers {
        return Answer::Malformed("the peer wants MPA markers, which are not supported");
    }
    let crc = config.crc || reply.crc;
    let mut agreement = Agreement { crc, ord: config.ord(), ird: config.ird(), empty_write: false };
    match (config.revision_two, reply.enhanced) {
        (true, None) => return Answer::Malformed("the peer answered an MPA request of revision 2 without its fields"),
        (false, Some(_)) => return Answer::Malformed("the peer answered an MPA request of revision 1 with revision 2"),
        (false, None) => {}
        (true, Some(peer)) => {
            if peer.ird != NOT_NEGOTIATED {
                agreement.ord = agreement.ord.min(peer.ird);
            }
            if peer.ord != NOT_NEGOTIATED && peer.ord > agreement.ird {
                return Answer::Refused(fault::READS_TOO_MANY);
            }
            if config.peer_to_peer && peer.peer_to_peer {
                if !peer.write {
                    return Answer::Refused(fault::NO_RTR);
                }
                agreement.empty_write = true;
            }
        }
    }
    Answer::Accepted(agreement)
}
