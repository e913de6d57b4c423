//! Framing: PDUs out of staging; what is done with their payload is in `payload`.

use crate::pdu::offset::{EXPECTED_DATA_TRANSFER_LENGTH, FLAGS};

use super::staging::Staging;
use super::{LOGIN_DATA_SEGMENT_LEN, MoverState, Role, TcpMover};
use crate::connection::StreamEnd;
use crate::datamover::{MalformedPdu, MoverError, Notification};
use crate::digest::{Crc32c, crc32c};
use crate::misbehavior::Misbehavior;
use crate::pdu::{BHS_LEN, Bhs, LoginRequest, Opcode, padding};

mod payload;

/// How far the PDU under way has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PduPart {
    /// Its header is to come.
    Header,
    /// Its payload is going to its place.
    Payload,
    /// Padding and data digest are to come.
    Trailer,
    /// A PDU that is looked at as a whole: so many bytes from the first unread on.
    Whole { header: usize, total: usize },
    /// A payload that is placed only once its digest is right: so many bytes.
    Checked { total: usize },
}

/// What the payload under way is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Nothing: dropped in silence.
    Dropped,
    /// Dropped, then reported.
    Malformed(MalformedPdu),
    /// Immediate data of the last SCSI Command; becomes `DataOut` or `Dropped` once the session has had its say.
    Immediate,
    /// Write data of the transfer in this slot.
    DataOut(u16),
    /// Read data of the command in this slot.
    DataIn(u16),
}

/// The data segment under way.
#[derive(Debug)]
struct DataSegment {
    bhs: Bhs,
    purpose: Purpose,
    /// Bytes still to come, without padding.
    remaining: usize,
    /// Where the next of them goes in the sink.
    place: usize,
    /// How many of them the sink has room for; the rest are dropped.
    room: usize,
    /// Bytes of padding and digest behind it.
    trailer: usize,
    digest: Crc32c,
    /// Its digest was found right before any of it was placed.
    sound: bool,
}

#[derive(Debug)]
pub(super) struct Receive {
    staging: Staging,
    part: PduPart,
    payload: DataSegment,
    header_digest: bool,
    data_digest: bool,
    /// SCSI Commands may come, and their headers have no digest.
    plain_commands: bool,
    /// Bytes of the last SCSI Command's data that wait in staging for the session to take them; its header lies before
    /// them.
    at_hand: usize,
    /// The payload in staging may not land in its place now: nothing is received until it has.
    refused: bool,
    /// Bytes of the window's payload that have landed in a store's memory: told by whoever fills the window.
    landed: usize,
    /// Nothing has been parsed yet: the peer has not shown that it speaks iSCSI.
    first: bool,
    /// Target, in a login: bytes of a text whose rest is to come in further PDUs.
    gathered: u32,
    ahs: (usize, usize),
    data: (usize, usize),
}

impl Receive {
    pub(super) fn new(staging: Staging) -> Self {
        Self {
            staging,
            part: PduPart::Header,
            payload: DataSegment {
                bhs: Bhs::new(Opcode::NopOut),
                purpose: Purpose::Dropped,
                remaining: 0,
                place: 0,
                room: 0,
                trailer: 0,
                digest: Crc32c::default(),
                sound: false,
            },
            header_digest: false,
            data_digest: false,
            plain_commands: false,
            at_hand: 0,
            refused: false,
            landed: 0,
            first: true,
            gathered: 0,
            ahs: (0, 0),
            data: (0, 0),
        }
    }

    /// The Full Feature Phase begins.
    pub(super) fn enable(&mut self, role: Role, header: bool, data: bool) {
        // With a data digest a command is not told before its immediate data are sound.
        self.plain_commands = role == Role::Target && !header && !data;
        self.header_digest = header;
        self.data_digest = data;
    }

    /// Staging takes up to `most` bytes when they come in bulk.
    pub(super) fn may_grow(&mut self, most: usize) {
        self.staging.may_grow(most);
    }

    /// The login is over: staging has at least `size` bytes.
    pub(super) fn begin_bulk(&mut self, size: usize) {
        self.staging.begin_bulk(size);
    }

    /// In a login: memory that the last PDU took is given back, if it is gone.
    pub(super) fn shrink(&mut self) {
        self.staging.shrink();
    }

    /// Staging stays as it is.
    pub(super) fn stay(&mut self) {
        self.staging.stay();
    }

    /// Gives memory of staging back.
    pub(super) fn trim(&mut self) {
        if self.at_hand == 0 {
            self.staging.trim();
            (self.ahs, self.data) = Default::default();
        }
    }

    #[inline]
    pub(super) fn control_ahs(&self) -> &[u8] {
        self.staging.span(self.ahs.0, self.ahs.1)
    }

    #[inline]
    pub(super) fn control_data(&self) -> &[u8] {
        self.staging.span(self.data.0, self.data.1)
    }

    /// The whole data of the last SCSI Command, as long as they are still in staging.
    #[inline]
    pub(super) fn at_hand(&self) -> &[u8] {
        self.staging.unread().get(..self.at_hand).unwrap_or_default()
    }

    /// The session has had its chance to take the data at hand.
    #[inline]
    fn pass_at_hand(&mut self) {
        self.staging.consume(padded(self.at_hand));
        self.at_hand = 0;
    }

    /// The payload under way is to be dropped if it is for this slot: its task is gone.
    pub(super) fn forget(&mut self, slot: u16) {
        if matches!(self.payload.purpose, Purpose::DataOut(s) | Purpose::DataIn(s) if s == slot) {
            self.payload.purpose = Purpose::Dropped;
            self.payload.room = 0;
        }
    }

    /// Bytes that have come of the payload under way, if it is for this slot.
    pub(super) fn under_way(&self, slot: u16) -> u32 {
        let payload = &self.payload;
        let under_way = matches!(self.part, PduPart::Payload) && payload.purpose == Purpose::DataOut(slot);
        if !under_way {
            return 0;
        }
        let to_come = payload.remaining.saturating_sub(self.staging.len());
        payload.bhs.data_segment_len().saturating_sub(to_come as u32)
    }

    /// Bytes of padding and digest behind a data segment.
    #[inline]
    fn trailer(&self, len: u32) -> usize {
        // A PDU without data segment has no data digest (RFC 7143 11.2.4).
        if len == 0 { 0 } else { padding(len) as usize + if self.data_digest { 4 } else { 0 } }
    }

    /// Turns to the payload of `bhs`, whose header is consumed.
    #[inline(always)]
    fn begin_payload(&mut self, bhs: &Bhs, purpose: Purpose) {
        let len = bhs.data_segment_len();
        self.payload = DataSegment {
            bhs: *bhs,
            purpose,
            remaining: len as usize,
            place: 0,
            room: 0,
            trailer: self.trailer(len),
            digest: Crc32c::default(),
            sound: false,
        };
        self.part = PduPart::Payload;
    }
}

/// Bytes of a data segment with its padding.
#[inline]
fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// What one step of framing came to.
enum FramingStep {
    /// Go on.
    On,
    /// More bytes are needed.
    Starved,
    /// This is to be told.
    Tell(Notification),
}

impl TcpMover {
    #[inline]
    pub(super) fn poll_open(&mut self) -> Option<Notification> {
        self.receive.pass_at_hand();
        if self.receive.plain_commands
            && self.receive.part == PduPart::Header
            && self.events.is_empty()
            && self.target.current.is_none()
            && let Some(bhs) = self.plain_command()
        {
            return Some(Notification::Control(bhs));
        }
        self.poll_any()
    }

    /// The short way of the PDU that comes most: a SCSI Command without AHS and without header digest, and with nothing
    /// else to be seen to first.
    #[inline(always)]
    fn plain_command(&mut self) -> Option<Bhs> {
        let header = self.receive.staging.unread().first_chunk::<BHS_LEN>()?;
        if header[0] & 0x3f != Opcode::ScsiCommand as u8 || header[4] != 0 {
            return None;
        }
        let bhs = Bhs(*header);
        let len = bhs.data_segment_len();
        if len > self.limits.receive_segment {
            return None;
        }
        self.receive.ahs.1 = 0;
        self.receive.data.1 = 0;
        self.receive.staging.consume(BHS_LEN);
        if len > 0 {
            if self.may_wait_at_hand(&bhs, len) {
                self.receive.at_hand = len as usize;
                self.begin_tag(bhs.itt());
                return Some(bhs);
            }
            self.receive.begin_payload(&bhs, Purpose::Immediate);
        }
        self.begin_command(&bhs);
        Some(bhs)
    }

    /// Whether the data of a SCSI Command are all that it writes, allowed to come with it, and here: then they stay in
    /// staging, and no payload is under way, until the session has taken them, or asked for them with `get_data`.
    #[inline(always)]
    fn may_wait_at_hand(&self, bhs: &Bhs, len: u32) -> bool {
        // F and W set, R clear.
        bhs.0[FLAGS] & 0xe0 == 0xa0
            && len == bhs.u32_at::<EXPECTED_DATA_TRANSFER_LENGTH>()
            && self.limits.unsolicited.allow_immediate(len)
            && !self.receive.data_digest
            && self.receive.staging.len() >= padded(len as usize)
    }

    /// Data at hand become a payload under way, as if their header had come just now: they are asked for, or staging is
    /// about to move.
    #[inline]
    pub(super) fn release_at_hand(&mut self) {
        if self.receive.at_hand > 0 {
            self.receive.at_hand = 0;
            let Some(header) = self.receive.staging.consumed::<BHS_LEN>() else { return };
            let bhs = Bhs(*header);
            self.receive.begin_payload(&bhs, Purpose::Immediate);
            self.begin_command(&bhs);
        }
    }

    #[inline(never)]
    fn poll_any(&mut self) -> Option<Notification> {
        if !self.events.is_empty() {
            return self.events.pop_front();
        }
        self.receive.data.1 = 0;
        self.receive.ahs.1 = 0;
        if self.target.current.is_some() {
            self.settle_command();
        }
        loop {
            let step = match self.receive.part {
                PduPart::Header => self.parse_header(),
                PduPart::Payload => self.take_payload(),
                PduPart::Trailer => self.take_trailer(),
                PduPart::Whole { header, total } => self.take_whole(header, total),
                PduPart::Checked { total } => self.take_checked(total),
            };
            // What a step queued came before what it tells.
            if !self.events.is_empty() {
                if let FramingStep::Tell(notification) = step {
                    self.events.push_back(notification);
                }
                return self.events.pop_front();
            }
            match step {
                FramingStep::On => {}
                FramingStep::Tell(notification) => return Some(notification),
                FramingStep::Starved => return self.starved(),
            }
        }
    }

    /// Everything that is there has been parsed.
    #[inline]
    fn starved(&mut self) -> Option<Notification> {
        if let Some(end) = self.stream_end {
            let between = self.receive.part == PduPart::Header && self.receive.staging.len() == 0;
            self.fail(match end {
                StreamEnd::EndOfStream if between => MoverError::EndOfStream,
                _ => MoverError::Broken,
            });
        }
        if self.state == MoverState::Open { None } else { self.poll_ending() }
    }

    #[cold]
    fn failed(&mut self, error: MoverError) -> FramingStep {
        self.fail(error);
        FramingStep::Starved
    }

    #[inline(always)]
    fn parse_header(&mut self) -> FramingStep {
        let unread = self.receive.staging.unread();
        if self.receive.first
            && let Some(byte) = unread.first()
            && !self.may_begin(*byte)
        {
            return self.failed(MoverError::NotIscsi);
        }
        let Some(header) = unread.first_chunk::<BHS_LEN>() else { return FramingStep::Starved };
        let bhs = Bhs(*header);
        let ahs_len = bhs.ahs_len();
        if ahs_len > 0 && (self.receive.first || !self.full_feature && self.role == Role::Target) {
            // Login PDUs have none (RFC 7143 11.12), and the rest of it is not to be waited for.
            return self.failed(MoverError::NotIscsi);
        }
        let mut header_len = BHS_LEN + ahs_len;
        if self.receive.header_digest {
            let Some((covered, rest)) = unread.split_at_checked(header_len) else { return FramingStep::Starved };
            let Some(digest) = rest.first_chunk::<4>() else { return FramingStep::Starved };
            if crc32c(covered) != *digest {
                // RFC 7143 7.7: the length fields cannot be trusted, and ERL 0 has no way to find the next PDU.
                return self.failed(MoverError::HeaderDigest);
            }
            header_len += 4;
        } else if unread.len() < header_len {
            return FramingStep::Starved;
        }
        let len = bhs.data_segment_len();
        if len > self.limits.receive_segment {
            if self.receive.first && self.role == Role::Target && LoginRequest::parse(&bhs).is_err() {
                return self.failed(MoverError::NotIscsi);
            }
            let limit = self.limits.receive_segment;
            return self.failed(MoverError::DataSegmentTooLong { got: len, limit });
        }
        self.receive.first = false;
        if !self.full_feature {
            return self.login_pdu(&bhs, header_len, len);
        }
        let opcode = bhs.0[0] & 0x3f;
        match self.role {
            Role::Target => {
                if opcode == Opcode::ScsiCommand as u8 {
                    if self.receive.data_digest
                        && len > 0
                        && let Some(step) = self.check_immediate(&bhs, header_len)
                    {
                        return step;
                    }
                    self.receive.ahs = (self.receive.staging.position() + BHS_LEN, ahs_len);
                    self.receive.staging.consume(header_len);
                    if len > 0 {
                        self.receive.begin_payload(&bhs, Purpose::Immediate);
                    }
                    self.begin_command(&bhs);
                    return FramingStep::Tell(Notification::Control(bhs));
                }
                if opcode == Opcode::DataOut as u8 {
                    self.receive.staging.consume(header_len);
                    let (purpose, place) = self.data_out_header(&bhs);
                    return self.data_payload(&bhs, purpose, place);
                }
            }
            Role::Initiator => {
                if opcode == Opcode::DataIn as u8 {
                    self.receive.staging.consume(header_len);
                    let (purpose, place) = self.data_in_header(&bhs);
                    return self.data_payload(&bhs, purpose, place);
                }
                if opcode == Opcode::R2t as u8 {
                    self.receive.staging.consume(header_len);
                    let purpose = match self.ready_to_transfer(&bhs) {
                        Ok(()) => Purpose::Dropped,
                        Err(error) => Purpose::Malformed(error),
                    };
                    self.receive.begin_payload(&bhs, purpose);
                    return FramingStep::On;
                }
                if opcode == Opcode::ScsiResponse as u8 && self.misses_data(&bhs) {
                    let error = MalformedPdu::Protocol(Misbehavior::DataMissing { exp_data_sn: bhs.u32_at::<36>() });
                    self.receive.staging.consume(header_len);
                    self.receive.begin_payload(&bhs, Purpose::Malformed(error));
                    return FramingStep::On;
                }
            }
        }
        let malformed = match bhs.opcode() {
            Err(error) => MalformedPdu::Header(error),
            Ok(opcode) if opcode.is_request() != (self.role == Role::Target) => {
                MalformedPdu::Protocol(Misbehavior::OpcodeOfOtherRole(opcode))
            }
            Ok(_) => return self.whole(header_len, len),
        };
        self.receive.staging.consume(header_len);
        self.receive.begin_payload(&bhs, Purpose::Malformed(malformed));
        FramingStep::On
    }

    /// A SCSI Command whose immediate data have a digest is told when they are there and sound: with a wrong digest the
    /// whole PDU is discarded, its CmdSN does not count, and nothing but the Reject is said about it (RFC 7143 7.3,
    /// 7.8). None when it may be told.
    #[cold]
    fn check_immediate(&mut self, bhs: &Bhs, header_len: usize) -> Option<FramingStep> {
        let len = bhs.data_segment_len();
        if len > self.limits.unsolicited.first_burst_length {
            // More than may come with a command: it is refused for that, and staging is not to hold it.
            return None;
        }
        let total = header_len + len as usize + self.receive.trailer(len);
        let Some(pdu) = self.receive.staging.unread().get(..total) else {
            self.receive.staging.make_room(total);
            return Some(FramingStep::Starved);
        };
        let segment = pdu.get(header_len..).unwrap_or_default();
        if segment.split_last_chunk::<4>().is_some_and(|(covered, digest)| crc32c(covered) == *digest) {
            return None;
        }
        self.receive.staging.consume(total);
        Some(FramingStep::Tell(Notification::Malformed { bhs: *bhs, error: MalformedPdu::DataDigest }))
    }

    /// Whether a connection may begin with this byte: a Login Request at a target; a Login Response, or a Reject of
    /// ours, at an initiator.
    fn may_begin(&self, byte: u8) -> bool {
        match self.role {
            Role::Target => byte & 0xbf == Opcode::LoginRequest as u8,
            Role::Initiator => [Opcode::LoginResponse as u8, Opcode::Reject as u8].contains(&byte),
        }
    }

    /// A login's text over several PDUs costs no more than in one: what is longer is dropped as it comes, and told.
    fn login_pdu(&mut self, bhs: &Bhs, header_len: usize, len: u32) -> FramingStep {
        if self.role == Role::Target && bhs.opcode() == Ok(Opcode::LoginRequest) {
            let text = self.receive.gathered + len;
            if text > LOGIN_DATA_SEGMENT_LEN {
                self.receive.staging.consume(header_len);
                let error =
                    MalformedPdu::Protocol(Misbehavior::LoginTextTooLong { len: text, limit: LOGIN_DATA_SEGMENT_LEN });
                self.receive.begin_payload(bhs, Purpose::Malformed(error));
                return FramingStep::On;
            }
            // RFC 7143 11.12.2: the C bit.
            self.receive.gathered = if bhs.0[FLAGS] & 0x40 == 0 { 0 } else { text };
        }
        self.whole(header_len, len)
    }

    fn whole(&mut self, header: usize, len: u32) -> FramingStep {
        let total = header + len as usize + self.receive.trailer(len);
        self.receive.part = PduPart::Whole { header, total };
        if self.receive.staging.len() < total {
            self.receive.staging.make_room(total);
        }
        FramingStep::On
    }

    fn take_whole(&mut self, header: usize, total: usize) -> FramingStep {
        let unread = self.receive.staging.unread();
        let Some(pdu) = unread.get(..total) else { return FramingStep::Starved };
        let Some(bhs) = pdu.first_chunk::<BHS_LEN>() else { return FramingStep::Starved };
        let bhs = Bhs(*bhs);
        let len = bhs.data_segment_len() as usize;
        let sound = !self.receive.data_digest || len == 0 || {
            let (covered, digest) = pdu.get(header..).unwrap_or_default().split_at(total - header - 4);
            crc32c(covered) == digest
        };
        let at = self.receive.staging.position();
        self.receive.staging.consume(total);
        self.receive.part = PduPart::Header;
        if !sound {
            return FramingStep::Tell(Notification::Malformed { bhs, error: MalformedPdu::DataDigest });
        }
        self.receive.ahs = (at + BHS_LEN, bhs.ahs_len());
        self.receive.data = (at + header, len);
        FramingStep::Tell(Notification::Control(bhs))
    }
}
