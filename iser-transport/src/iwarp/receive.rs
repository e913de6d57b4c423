//! Framing: FPDUs out of the stream, payload to where it belongs (RFC 5044 4).

use iscsi_memory::{ReceiveSlice, ReceiveWindow};
use iscsi_proto::digest::{Crc32c, crc32c};

use super::IwarpQueue;
use super::fault;
use super::header::{CRC, Header, LENGTH, Opcode, TAGGED, UNTAGGED, padding};
use super::place::{Place, Target};
use super::staging::{SMALL, Staging};

/// Smallest receive buffer: the longest startup frame fits.
const SMALLEST_STAGING: usize = 4 << 10;
/// Segments with a longer payload are streamed: while one is under way, no more is received than it and the next
/// header, so that the next payload too goes straight to its place.
pub(super) const STREAMED: usize = 8 << 10;
/// How much is received behind the last segment of a streamed message: small messages may follow, or the next large
/// one.
const BEHIND: usize = 2 << 10;
/// After so many segments that are not streamed, none is expected unless it was asked for, and as much is received at
/// once as there is.
const SMALL_RUN: u8 = 32;

/// How far the FPDU under way has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its headers are to come.
    Header,
    /// It is looked at as a whole: so many bytes from the first unread on.
    Whole(usize),
    /// Its payload is going to its place.
    Payload,
    /// Padding and CRC are to come.
    Trailer,
}

/// The segment whose payload is under way.
#[derive(Debug, Clone, Copy)]
struct Segment {
    header: Header,
    len: usize,
    place: Place,
    /// Where in the place the next byte goes.
    at: usize,
    /// Bytes still to come, without trailer.
    remaining: usize,
    /// Bytes of padding and CRC.
    trailer: usize,
    digest: Crc32c,
}

#[derive(Debug)]
pub(super) struct Receive {
    pub(super) staging: Staging,
    phase: Phase,
    segment: Segment,
    /// Message sequence numbers that are due.
    pub(super) sends: u32,
    pub(super) read_requests: u32,
    /// What has come of the Send under way, and which kind of Send it is.
    pub(super) message: (usize, Opcode),
    /// How much more than the payload under way is to be received at once.
    receive_ahead: usize,
    /// The same while a large transfer is due: what comes before its payload.
    sure_ahead: usize,
    /// Bytes of the FPDU that was the last Send's last.
    send_len: usize,
    /// Segments since the last that was streamed.
    small_run: u8,
}

impl Receive {
    pub(super) fn new(size: usize) -> Self {
        let header = super::header::Tagged { opcode: Opcode::Write, last: true, stag: 0, to: 0 };
        Self {
            staging: Staging::new(size.max(SMALLEST_STAGING)),
            phase: Phase::Header,
            segment: Segment {
                header: Header::Tagged(header),
                len: 0,
                place: Place::Nothing,
                at: 0,
                remaining: 0,
                trailer: 0,
                digest: Crc32c::default(),
            },
            sends: 1,
            read_requests: 1,
            message: (0, Opcode::Send),
            receive_ahead: usize::MAX,
            sure_ahead: LENGTH + TAGGED,
            send_len: 0,
            small_run: SMALL_RUN,
        }
    }

    /// Whether the last FPDU ended with the last byte.
    pub(super) fn is_between(&self) -> bool {
        self.phase == Phase::Header && self.staging.len() == 0
    }

    /// Whether payload is on its way to the advertised buffer of this slot.
    pub(super) fn is_filling(&self, slot: usize) -> bool {
        self.phase == Phase::Payload && self.segment.remaining > 0 && self.segment.place == Place::Advertised(slot)
    }

    /// Turns to the payload of the FPDU at hand, whose header is `header`.
    #[inline]
    fn begin(&mut self, crc: bool, header: Header, len: usize, place: Place, at: usize) {
        let head = LENGTH + header.len();
        let mut digest = Crc32c::default();
        if crc {
            digest.update(self.staging.unread().get(..head).unwrap_or_default());
        }
        self.staging.consume(head);
        let trailer = padding(header.len() + len) + CRC;
        self.segment = Segment { header, len, place, at, remaining: len, trailer, digest };
        self.phase = Phase::Payload;
        self.plan_receive(&header, len);
    }

    /// How much to receive behind this segment.
    #[inline]
    fn plan_receive(&mut self, header: &Header, len: usize) {
        let last = match header {
            Header::Tagged(header) => {
                // Behind a Write there comes a Send that tells of it.
                let told = if header.last && header.opcode == Opcode::Write { self.send_len } else { 0 };
                self.sure_ahead = LENGTH + TAGGED + told;
                header.last
            }
            Header::Untagged(header) => {
                self.sure_ahead = LENGTH + TAGGED;
                self.send_len = (LENGTH + UNTAGGED + len + padding(UNTAGGED + len) + CRC).min(BEHIND);
                header.last
            }
        };
        if len > STREAMED {
            self.small_run = 0;
            self.receive_ahead = if last { BEHIND } else { LENGTH + TAGGED };
        } else if self.small_run < SMALL_RUN {
            self.small_run += 1;
            self.receive_ahead = if self.small_run < SMALL_RUN { BEHIND } else { usize::MAX };
        }
    }

    /// Bytes to receive into staging. With a large transfer due, no more than the header of the next large segment: its
    /// payload is then received into its place.
    #[inline]
    fn wanted(&self, large_due: bool) -> usize {
        let receive_ahead = if large_due { self.sure_ahead } else { self.receive_ahead };
        if receive_ahead == usize::MAX {
            return usize::MAX;
        }
        let due = match self.phase {
            Phase::Header => 0,
            Phase::Whole(total) => total,
            Phase::Payload | Phase::Trailer => self.segment.trailer,
        };
        match (due + receive_ahead).saturating_sub(self.staging.len()) {
            0 => self.rest_of_untagged(),
            n => n,
        }
    }

    /// Bytes to receive when as many of a header are there as a tagged one has, and it is none.
    fn rest_of_untagged(&self) -> usize {
        let staged = self.staging.unread();
        let ulpdu = usize::from(u16::from_be_bytes(staged.first_chunk().copied().unwrap_or_default()));
        if ulpdu > BEHIND {
            return UNTAGGED - TAGGED;
        }
        // The message, and the next header.
        (LENGTH + ulpdu + padding(ulpdu) + CRC + LENGTH + TAGGED).saturating_sub(staged.len()).max(1)
    }
}

/// What one step of framing came to.
enum Step {
    /// Go on.
    On,
    /// More bytes are needed, or none any more.
    Rest,
}

impl IwarpQueue {
    /// Takes in all FPDUs that have come.
    pub(super) fn parse(&mut self) {
        loop {
            let step = match self.receive.phase {
                Phase::Header => self.parse_header(),
                Phase::Whole(total) => self.take_whole(total),
                Phase::Payload => self.take_payload(),
                Phase::Trailer => self.take_trailer(),
            };
            if matches!(step, Step::Rest) {
                return;
            }
        }
    }

    fn refused(&mut self, fault: fault::Fault) -> Step {
        self.refuse(fault);
        Step::Rest
    }

    #[inline]
    fn parse_header(&mut self) -> Step {
        let fpdu = self.receive.staging.unread();
        let Some(parsed) = Header::parse(fpdu) else { return Step::Rest };
        let ulpdu = usize::from(u16::from_be_bytes(fpdu.first_chunk().copied().unwrap_or_default()));
        let total = LENGTH + ulpdu + padding(ulpdu) + CRC;
        let staged = fpdu.len();
        let header = match parsed {
            Ok(header) => header,
            // Under the CRC a header is believed only once it is verified.
            Err(_) if self.crc => return self.whole(total),
            Err(fault) => return self.refused(fault),
        };
        if let Header::Untagged(header) = header
            && matches!(header.opcode, Opcode::ReadRequest | Opcode::Terminate)
        {
            return self.whole(total);
        }
        let len = ulpdu - header.len();
        self.provide_receive(&header);
        match self.admit(&header, len) {
            Ok((place, at)) => {
                if !self.crc && staged >= total && len <= STREAMED {
                    self.receive.plan_receive(&header, len);
                    self.place(LENGTH + header.len(), len, place, at);
                    self.receive.staging.consume(total);
                    self.deliver(&header, len);
                    return Step::On;
                }
                // What may be refused yet is placed only in private memory, and only where it spares a copy.
                let short = if self.receive.staging.is_small() { SMALL / 2 } else { STREAMED };
                if self.crc && (staged >= total || len <= short || self.is_lent(place)) {
                    self.receive.plan_receive(&header, len);
                    return self.whole(total);
                }
                self.receive.begin(self.crc, header, len, place, at);
                Step::On
            }
            Err(_) if self.crc => self.whole(total),
            Err(fault) => self.refused(fault),
        }
    }

    #[inline]
    fn whole(&mut self, total: usize) -> Step {
        if total > SMALL && self.receive.staging.is_small() {
            // Nothing that is looked at as a whole is so long in a login, and its length may be a lie.
            return self.refused(fault::TOO_LONG);
        }
        self.receive.phase = Phase::Whole(total);
        self.receive.staging.make_room(total);
        Step::On
    }

    fn take_whole(&mut self, total: usize) -> Step {
        let Some(fpdu) = self.receive.staging.unread().get(..total) else { return Step::Rest };
        if self.crc && fpdu.split_last_chunk::<CRC>().is_none_or(|(covered, field)| crc32c(covered) != *field) {
            return self.refused(fault::CRC_MISMATCH);
        }
        let header = match Header::parse(fpdu) {
            Some(Ok(header)) => header,
            Some(Err(fault)) => return self.refused(fault),
            // An FPDU whose length holds its headers has them.
            None => return self.refused(fault::SHORT),
        };
        if let Header::Untagged(header) = header
            && matches!(header.opcode, Opcode::ReadRequest | Opcode::Terminate)
        {
            if let Err(fault) = self.take_control(&header) {
                return self.refused(fault);
            }
            if !self.takes_in() {
                return Step::Rest;
            }
        } else {
            let ulpdu = usize::from(u16::from_be_bytes(fpdu.first_chunk().copied().unwrap_or_default()));
            let len = ulpdu - header.len();
            self.provide_receive(&header);
            let (place, at) = match self.admit(&header, len) {
                Ok(place) => place,
                Err(fault) => return self.refused(fault),
            };
            self.place(LENGTH + header.len(), len, place, at);
            self.deliver(&header, len);
        }
        self.receive.staging.consume(total);
        self.receive.phase = Phase::Header;
        Step::On
    }

    /// Copies `len` bytes of staging, from the unread byte `from` on, to their place.
    #[inline]
    fn place(&mut self, from: usize, len: usize, place: Place, at: usize) {
        let bytes = self.receive.staging.unread().get(from..from + len).unwrap_or_default();
        let target = match place {
            Place::Nothing => None,
            Place::Message => self.receives.front_mut().map(|buf| Target::Private(buf)),
            Place::Read(number) => self.works.memory_mut(number).map(Target::of),
            Place::Advertised(slot) => self.stags.memory_mut(slot).map(Target::of),
        };
        if let Some(mut target) = target {
            target.write(at, bytes);
            // What a message holds beside headers is counted by whoever copies it on.
            if place != Place::Message {
                self.copied += len as u64;
            }
        }
    }

    #[inline]
    fn take_payload(&mut self) -> Step {
        let Segment { place, at, remaining, .. } = self.receive.segment;
        let n = remaining.min(self.receive.staging.len());
        if n > 0 {
            self.place(0, n, place, at);
        }
        let segment = &mut self.receive.segment;
        if self.crc {
            segment.digest.update(self.receive.staging.unread().get(..n).unwrap_or_default());
        }
        segment.at += n;
        segment.remaining -= n;
        self.receive.staging.consume(n);
        if segment.remaining > 0 {
            return Step::Rest;
        }
        self.receive.phase = Phase::Trailer;
        Step::On
    }

    #[inline]
    fn take_trailer(&mut self) -> Step {
        let Segment { header, len, trailer, mut digest, .. } = self.receive.segment;
        let Some(bytes) = self.receive.staging.unread().get(..trailer) else { return Step::Rest };
        if self.crc
            && let Some((pad, field)) = bytes.split_last_chunk::<CRC>()
        {
            digest.update(pad);
            if digest.finish() != *field {
                return self.refused(fault::CRC_MISMATCH);
            }
        }
        self.receive.staging.consume(trailer);
        self.receive.phase = Phase::Header;
        self.deliver(&header, len);
        Step::On
    }

    /// Whether payload goes straight to its place: everything staged has been taken.
    #[inline]
    fn direct(&self) -> Option<(Place, usize, usize)> {
        let Segment { place, at, remaining, .. } = self.receive.segment;
        let direct = self.takes_in() && self.receive.phase == Phase::Payload && remaining > 0;
        direct.then_some((place, at, remaining))
    }

    /// Whether the peer may be sending a payload that is worth a receive of its own: a Read under way, or a buffer
    /// advertised for Writes. Where segments are short they all are gathered in staging.
    #[inline]
    fn large_due(&self) -> bool {
        !self.crc
            && self.mulpdu > STREAMED
            && (self.stags.awaits_large() || self.reads.iter().take(2).any(|read| read.len - read.placed > STREAMED))
    }

    pub(super) fn window(&mut self) -> ReceiveWindow<'_> {
        let direct = self.direct();
        let wanted = if self.takes_in() { self.receive.wanted(self.large_due()) } else { usize::MAX };
        let Self { receive, receives, works, stags, .. } = self;
        let staging = receive.staging.room(wanted);
        let target = match direct {
            Some((Place::Message, _, _)) => receives.front_mut().map(|buf| Target::Private(buf)),
            Some((Place::Read(number), _, _)) => works.memory_mut(number).map(Target::of),
            Some((Place::Advertised(slot), _, _)) => stags.memory_mut(slot).map(Target::of),
            Some((Place::Nothing, _, _)) | None => None,
        };
        let payload = match (direct, target) {
            (Some((_, at, n)), Some(Target::Private(bytes))) => {
                ReceiveSlice::Private(bytes.get_mut(at..at + n).unwrap_or_default())
            }
            (Some((_, at, n)), Some(Target::Lent(slice))) => ReceiveSlice::Lent(slice, at, at + n),
            _ => ReceiveSlice::Private(&mut []),
        };
        ReceiveWindow { payload, staging }
    }

    /// The first `n` bytes of the window are filled.
    #[inline]
    pub(super) fn received(&mut self, n: usize) {
        let mut rest = n;
        if let Some((place, at, remaining)) = self.direct() {
            let placed = remaining.min(n);
            rest -= placed;
            if self.crc {
                let mut digest = self.receive.segment.digest;
                // Lent memory is never received into straight under the CRC.
                if let Some(Target::Private(bytes)) = self.memory_at(place) {
                    digest.update(bytes.get(at..at + placed).unwrap_or_default());
                }
                self.receive.segment.digest = digest;
            }
            self.receive.segment.at += placed;
            self.receive.segment.remaining -= placed;
        }
        self.receive.staging.filled(rest);
    }
}
