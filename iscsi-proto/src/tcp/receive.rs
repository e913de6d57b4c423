//! Framing: PDUs out of staging, payload to where it belongs.

use iscsi_memory::{ReceiveSlice, ReceiveWindow, SessionBuffers};

use super::landing::land;
use super::staging::Staging;
use super::{Role, State, TcpMover};
use crate::connection::StreamEnd;
use crate::datamover::{DataError, MalformedPdu, MoverError, Notification, Sink};
use crate::digest::{Crc32c, crc32c};
use crate::pdu::{BHS_LEN, Bhs, LoginRequest, Opcode, padding};

/// How far the PDU under way has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
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

/// The payload under way.
#[derive(Debug)]
struct Payload {
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
    phase: Phase,
    payload: Payload,
    header_digest: bool,
    data_digest: bool,
    /// SCSI Commands may come, and their headers have no digest.
    plain_commands: bool,
    /// Bytes of the last SCSI Command's data that wait in staging for the session to take them; its header lies before
    /// them.
    at_hand: usize,
    /// The payload in staging may not land in its place now: nothing is received until it has.
    refused: bool,
    /// Nothing has been parsed yet: the peer has not shown that it speaks iSCSI.
    first: bool,
    ahs: (usize, usize),
    data: (usize, usize),
}

impl Receive {
    pub(super) fn new(size: usize, buffers: SessionBuffers) -> Self {
        Self {
            staging: Staging::new(size, buffers),
            phase: Phase::Header,
            payload: Payload {
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
            first: true,
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
        let under_way = matches!(self.phase, Phase::Payload) && payload.purpose == Purpose::DataOut(slot);
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
        self.payload = Payload {
            bhs: *bhs,
            purpose,
            remaining: len as usize,
            place: 0,
            room: 0,
            trailer: self.trailer(len),
            digest: Crc32c::default(),
            sound: false,
        };
        self.phase = Phase::Payload;
    }
}

/// Bytes of a data segment with its padding.
#[inline]
fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// What one step of framing came to.
enum Step {
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
            && self.receive.phase == Phase::Header
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
        bhs.0[1] & 0xe0 == 0xa0
            && len == bhs.u32_at::<20>()
            && len <= self.limits.first_burst
            && self.limits.immediate_data
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
            let step = match self.receive.phase {
                Phase::Header => self.parse_header(),
                Phase::Payload => self.take_payload(),
                Phase::Trailer => self.take_trailer(),
                Phase::Whole { header, total } => self.take_whole(header, total),
                Phase::Checked { total } => self.take_checked(total),
            };
            // What a step queued came before what it tells.
            if !self.events.is_empty() {
                if let Step::Tell(notification) = step {
                    self.events.push_back(notification);
                }
                return self.events.pop_front();
            }
            match step {
                Step::On => {}
                Step::Tell(notification) => return Some(notification),
                Step::Starved => return self.starved(),
            }
        }
    }

    /// Everything that is there has been parsed.
    #[inline]
    fn starved(&mut self) -> Option<Notification> {
        if let Some(end) = self.stream_end {
            let between = self.receive.phase == Phase::Header && self.receive.staging.len() == 0;
            self.fail(match end {
                StreamEnd::EndOfStream if between => MoverError::EndOfStream,
                _ => MoverError::Broken,
            });
        }
        if self.state == State::Open { None } else { self.poll_ending() }
    }

    #[cold]
    fn failed(&mut self, error: MoverError) -> Step {
        self.fail(error);
        Step::Starved
    }

    #[inline(always)]
    fn parse_header(&mut self) -> Step {
        let unread = self.receive.staging.unread();
        if self.receive.first
            && let Some(byte) = unread.first()
            && !self.may_begin(*byte)
        {
            return self.failed(MoverError::NotIscsi);
        }
        let Some(header) = unread.first_chunk::<BHS_LEN>() else { return Step::Starved };
        let bhs = Bhs(*header);
        let ahs_len = bhs.ahs_len();
        if self.receive.first && ahs_len > 0 {
            // Login PDUs have none, and the rest of it is not to be waited for.
            return self.failed(MoverError::NotIscsi);
        }
        let mut header_len = BHS_LEN + ahs_len;
        if self.receive.header_digest {
            let Some((covered, rest)) = unread.split_at_checked(header_len) else { return Step::Starved };
            let Some(digest) = rest.first_chunk::<4>() else { return Step::Starved };
            if crc32c(covered) != *digest {
                // RFC 7143 7.7: the length fields cannot be trusted, and ERL 0 has no way to find the next PDU.
                return self.failed(MoverError::HeaderDigest);
            }
            header_len += 4;
        } else if unread.len() < header_len {
            return Step::Starved;
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
            return self.whole(header_len, len);
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
                    return Step::Tell(Notification::Control(bhs));
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
                    return Step::On;
                }
                if opcode == Opcode::ScsiResponse as u8 && self.misses_data(&bhs) {
                    let error = MalformedPdu::Protocol(
                        "data are missing: a SCSI Response counts more Data-In and R2T PDUs than came",
                    );
                    self.receive.staging.consume(header_len);
                    self.receive.begin_payload(&bhs, Purpose::Malformed(error));
                    return Step::On;
                }
            }
        }
        let malformed = match bhs.opcode() {
            Err(error) => MalformedPdu::Header(error),
            Ok(opcode) if opcode.is_request() != (self.role == Role::Target) => {
                MalformedPdu::Protocol("a PDU came that the peer's role never sends")
            }
            Ok(_) => return self.whole(header_len, len),
        };
        self.receive.staging.consume(header_len);
        self.receive.begin_payload(&bhs, Purpose::Malformed(malformed));
        Step::On
    }

    /// A SCSI Command whose immediate data have a digest is told when they are there and sound: with a wrong digest the
    /// whole PDU is discarded, its CmdSN does not count, and nothing but the Reject is said about it (RFC 7143 7.3,
    /// 7.8). None when it may be told.
    #[cold]
    fn check_immediate(&mut self, bhs: &Bhs, header_len: usize) -> Option<Step> {
        let len = bhs.data_segment_len();
        if len > self.limits.first_burst {
            // More than may come with a command: it is refused for that, and staging is not to hold it.
            return None;
        }
        let total = header_len + len as usize + self.receive.trailer(len);
        let Some(pdu) = self.receive.staging.unread().get(..total) else {
            self.receive.staging.make_room(total);
            return Some(Step::Starved);
        };
        let segment = pdu.get(header_len..).unwrap_or_default();
        if segment.split_last_chunk::<4>().is_some_and(|(covered, digest)| crc32c(covered) == *digest) {
            return None;
        }
        self.receive.staging.consume(total);
        Some(Step::Tell(Notification::Malformed { bhs: *bhs, error: MalformedPdu::DataDigest }))
    }

    /// Whether a connection may begin with this byte: a Login Request at a target; a Login Response, or a Reject of
    /// ours, at an initiator.
    fn may_begin(&self, byte: u8) -> bool {
        match self.role {
            Role::Target => byte & 0xbf == Opcode::LoginRequest as u8,
            Role::Initiator => [Opcode::LoginResponse as u8, Opcode::Reject as u8].contains(&byte),
        }
    }

    fn whole(&mut self, header: usize, len: u32) -> Step {
        let total = header + len as usize + self.receive.trailer(len);
        self.receive.phase = Phase::Whole { header, total };
        if self.receive.staging.len() < total {
            self.receive.staging.make_room(total);
        }
        Step::On
    }

    fn take_whole(&mut self, header: usize, total: usize) -> Step {
        let unread = self.receive.staging.unread();
        let Some(pdu) = unread.get(..total) else { return Step::Starved };
        let Some(bhs) = pdu.first_chunk::<BHS_LEN>() else { return Step::Starved };
        let bhs = Bhs(*bhs);
        let len = bhs.data_segment_len() as usize;
        let sound = !self.receive.data_digest || len == 0 || {
            let (covered, digest) = pdu.get(header..).unwrap_or_default().split_at(total - header - 4);
            crc32c(covered) == digest
        };
        let at = self.receive.staging.position();
        self.receive.staging.consume(total);
        self.receive.phase = Phase::Header;
        if !sound {
            return Step::Tell(Notification::Malformed { bhs, error: MalformedPdu::DataDigest });
        }
        self.receive.ahs = (at + BHS_LEN, bhs.ahs_len());
        self.receive.data = (at + header, len);
        Step::Tell(Notification::Control(bhs))
    }

    /// Turns to the payload of a data PDU. `place` is where it goes in its sink.
    #[inline]
    fn data_payload(&mut self, bhs: &Bhs, purpose: Purpose, place: usize) -> Step {
        self.receive.begin_payload(bhs, purpose);
        if let Purpose::DataOut(slot) | Purpose::DataIn(slot) = purpose {
            self.aim(slot, place);
        }
        Step::On
    }

    /// The payload under way goes to this slot's sink, from `place` on.
    #[inline]
    fn aim(&mut self, slot: u16, place: usize) {
        let sink = self.sinks.get(usize::from(slot)).and_then(Option::as_ref);
        let payload = &mut self.receive.payload;
        payload.place = place;
        payload.room = sink.map_or(0, Sink::len).saturating_sub(place).min(payload.remaining);
        if self.receive.data_digest && matches!(sink, Some(Sink::Region(_))) && payload.remaining > 0 {
            // Data that a digest may still refuse are never placed in a store's memory.
            let total = payload.remaining + payload.trailer;
            self.receive.staging.make_room(total);
            self.receive.phase = Phase::Checked { total };
        }
    }

    /// The session has said where the last SCSI Command's immediate data go: to this slot's sink, or nowhere.
    #[inline]
    pub(super) fn settle_immediate(&mut self, slot: Option<u16>) {
        if self.receive.payload.purpose != Purpose::Immediate {
            return;
        }
        self.receive.payload.purpose = slot.map_or(Purpose::Dropped, Purpose::DataOut);
        if let Some(slot) = slot {
            self.aim(slot, 0);
        }
    }

    #[inline(always)]
    fn take_payload(&mut self) -> Step {
        let receive = &mut self.receive;
        let payload = &mut receive.payload;
        receive.refused = false;
        let unread = receive.staging.unread();
        let n = payload.remaining.min(unread.len());
        let bytes = unread.get(..n).unwrap_or_default();
        let room = payload.room.min(n);
        let mut placed = room;
        if room > 0
            && let Purpose::DataOut(slot) | Purpose::DataIn(slot) = payload.purpose
        {
            let from = bytes.get(..room).unwrap_or_default();
            match self.sinks.get_mut(usize::from(slot)) {
                Some(Some(Sink::Buf(buf))) => {
                    if let Some(to) = buf.get_mut(payload.place..payload.place + room) {
                        to.copy_from_slice(from);
                    }
                }
                Some(Some(Sink::Region(slice))) => match self.target.block_begun(slot) {
                    Some(begun) if self.limits.pdu_in_order => {
                        let landed = land(slice, payload.place, from, begun, payload.room == room);
                        (placed, receive.refused) = (landed.bytes, landed.refused);
                    }
                    _ => slice.write(payload.place, from),
                },
                _ => {}
            }
        }
        // What has no room is dropped once the rest has its place.
        let n = if placed < room { placed } else { n };
        if receive.data_digest && !payload.sound {
            payload.digest.update(bytes);
        }
        payload.place += placed;
        payload.room -= placed;
        payload.remaining -= n;
        if payload.remaining > 0 {
            receive.staging.consume(n);
            return Step::Starved;
        }
        if (!receive.data_digest || payload.sound) && unread.len() >= n + payload.trailer {
            // The common case: padding is there too, and nothing is to be checked.
            receive.staging.consume(n + payload.trailer);
            receive.phase = Phase::Header;
            return self.finish_payload();
        }
        receive.staging.consume(n);
        receive.phase = Phase::Trailer;
        Step::On
    }

    fn take_trailer(&mut self) -> Step {
        let receive = &mut self.receive;
        let Some(trailer) = receive.staging.unread().get(..receive.payload.trailer) else { return Step::Starved };
        let mut sound = true;
        if receive.data_digest
            && let Some((pad, digest)) = trailer.split_last_chunk::<4>()
        {
            receive.payload.digest.update(pad);
            sound = receive.payload.digest.finish() == *digest;
        }
        receive.staging.consume(receive.payload.trailer);
        receive.phase = Phase::Header;
        if sound { self.finish_payload() } else { self.refuse_payload() }
    }

    fn take_checked(&mut self, total: usize) -> Step {
        let receive = &mut self.receive;
        let Some(segment) = receive.staging.unread().get(..total) else { return Step::Starved };
        if segment.split_last_chunk::<4>().is_some_and(|(covered, digest)| crc32c(covered) == *digest) {
            receive.payload.sound = true;
            receive.phase = Phase::Payload;
            return Step::On;
        }
        receive.staging.consume(total);
        receive.phase = Phase::Header;
        self.refuse_payload()
    }

    /// The payload is in its place.
    #[inline(always)]
    fn finish_payload(&mut self) -> Step {
        match self.receive.payload.purpose {
            Purpose::DataOut(slot) => match self.data_out_done(slot) {
                Some(notification) => Step::Tell(notification),
                None => Step::On,
            },
            Purpose::DataIn(slot) => {
                let bhs = self.receive.payload.bhs;
                self.data_in_done(slot, &bhs);
                // The S bit: the Data-In carries status (RFC 7143 11.7.3).
                if bhs.0[1] & 0x01 != 0 { Step::Tell(Notification::Control(bhs)) } else { Step::On }
            }
            Purpose::Dropped | Purpose::Immediate => Step::On,
            Purpose::Malformed(error) => Step::Tell(Notification::Malformed { bhs: self.receive.payload.bhs, error }),
        }
    }

    /// The payload failed its digest.
    #[cold]
    fn refuse_payload(&mut self) -> Step {
        let bhs = self.receive.payload.bhs;
        let purpose = self.receive.payload.purpose;
        if self.role == Role::Initiator {
            // Without SNACK there is no way to get the data again (RFC 7143 7.8).
            return self.failed(MoverError::DataDigest);
        }
        self.events.push_back(Notification::Malformed { bhs, error: MalformedPdu::DataDigest });
        if let Purpose::DataOut(slot) = purpose {
            self.refuse_data_out(slot, DataError::DigestError);
        }
        Step::On
    }

    /// Whether the sink of a slot is a store's memory.
    fn is_lent(&self, slot: u16) -> bool {
        matches!(self.sinks.get(usize::from(slot)), Some(Some(Sink::Region(_))))
    }

    /// Header of the PDU whose payload was just placed.
    #[inline]
    pub(super) fn payload_header(&self) -> &Bhs {
        &self.receive.payload.bhs
    }

    /// How many bytes the kernel may write straight into the sink under way. A store's memory is none of these: the
    /// kernel would leave parts of logical blocks there.
    fn direct(&self) -> Option<(u16, usize, usize)> {
        let payload = &self.receive.payload;
        let (Purpose::DataOut(slot) | Purpose::DataIn(slot)) = payload.purpose else { return None };
        let direct = self.receive.phase == Phase::Payload
            && self.receive.staging.len() == 0
            && payload.room > self.config.copy_limit
            && !(self.role == Role::Target && self.is_lent(slot));
        direct.then_some((slot, payload.place, payload.room))
    }

    pub(super) fn window(&mut self, open: bool) -> ReceiveWindow<'_> {
        self.release_at_hand();
        self.receive.data.1 = 0;
        self.receive.ahs.1 = 0;
        let empty = ReceiveSlice::Private(&mut []);
        if !open || self.receive.refused {
            return ReceiveWindow { payload: empty, staging: &mut [] };
        }
        let direct = self.direct();
        let staging = self.receive.staging.room();
        let payload = match direct {
            Some((slot, place, room)) => match self.sinks.get_mut(usize::from(slot)) {
                Some(Some(Sink::Buf(buf))) => {
                    ReceiveSlice::Private(buf.get_mut(place..place + room).unwrap_or_default())
                }
                Some(Some(Sink::Region(slice))) => ReceiveSlice::Lent(slice, place, place + room),
                _ => empty,
            },
            None => empty,
        };
        ReceiveWindow { payload, staging }
    }

    pub(super) fn received(&mut self, n: usize) {
        let mut rest = n;
        if let Some((slot, place, room)) = self.direct() {
            let placed = room.min(n);
            rest -= placed;
            let payload = &mut self.receive.payload;
            if self.receive.data_digest
                && let Some(Some(Sink::Buf(buf))) = self.sinks.get(usize::from(slot))
            {
                payload.digest.update(buf.get(place..place + placed).unwrap_or_default());
            }
            payload.place += placed;
            payload.room -= placed;
            payload.remaining -= placed;
        }
        self.receive.staging.filled(rest);
    }
}
