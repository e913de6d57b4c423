//! Where payload goes: into the sink of its task, once its digest is right where that is asked for.

use crate::pdu::offset::FLAGS;
use iscsi_memory::{BlocksPlace, Payload, ReceiveSlice, ReceiveWindow};

use super::{FramingStep, PduPart, Purpose};
use crate::datamover::{DataError, MalformedPdu, MoverError, Notification};
use crate::digest::crc32c;
use crate::pdu::Bhs;
use crate::tcp::landing::land;
use crate::tcp::{Role, TcpMover};

impl TcpMover {
    /// Turns to the payload of a data PDU. `place` is where it goes in its sink.
    #[inline]
    pub(super) fn data_payload(&mut self, bhs: &Bhs, purpose: Purpose, place: usize) -> FramingStep {
        self.receive.begin_payload(bhs, purpose);
        if let Purpose::DataOut(slot) | Purpose::DataIn(slot) = purpose {
            self.aim(slot, place);
        }
        FramingStep::On
    }

    /// The payload under way goes to this slot's sink, from `place` on.
    #[inline]
    fn aim(&mut self, slot: u16, place: usize) {
        let sink = self.sinks.get(usize::from(slot)).and_then(Option::as_ref);
        let payload = &mut self.receive.payload;
        payload.place = place;
        payload.room = sink.map_or(0, Payload::len).saturating_sub(place).min(payload.remaining);
        if self.receive.data_digest && matches!(sink, Some(Payload::Region(_))) && payload.remaining > 0 {
            // Data that a digest may still refuse are never placed in a store's memory.
            let total = payload.remaining + payload.trailer;
            self.receive.staging.make_room(total);
            self.receive.part = PduPart::Checked { total };
        }
    }

    /// The session has said where the last SCSI Command's immediate data go: to this slot's sink, or nowhere.
    #[inline]
    pub(in crate::tcp) fn settle_immediate(&mut self, slot: Option<u16>) {
        if self.receive.payload.purpose != Purpose::Immediate {
            return;
        }
        self.receive.payload.purpose = slot.map_or(Purpose::Dropped, Purpose::DataOut);
        if let Some(slot) = slot {
            self.aim(slot, 0);
        }
    }

    #[inline(always)]
    pub(super) fn take_payload(&mut self) -> FramingStep {
        let receive = &mut self.receive;
        let payload = &mut receive.payload;
        receive.refused = false;
        let unread = receive.staging.unread();
        let n = payload.remaining.min(unread.len());
        let bytes = unread.get(..n).unwrap_or_default();
        let room = payload.room.min(n);
        let mut placed = room;
        // What has to be there at a time.
        let mut whole = 0;
        if room > 0
            && let Purpose::DataOut(slot) | Purpose::DataIn(slot) = payload.purpose
        {
            let from = bytes.get(..room).unwrap_or_default();
            match self.sinks.get_mut(usize::from(slot)) {
                Some(Some(Payload::Buf(buf))) => {
                    if let Some(to) = buf.get_mut(payload.place..payload.place + room) {
                        to.copy_from_slice(from);
                    }
                }
                Some(Some(Payload::Region(slice))) => match self.target.block_begun(slot) {
                    Some(begun) if self.limits.pdu_in_order => {
                        whole = slice.region().block_size();
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
            // A block may be larger than staging is where buffers are short.
            receive.staging.make_room(whole);
            return FramingStep::Starved;
        }
        if (!receive.data_digest || payload.sound) && unread.len() >= n + payload.trailer {
            // The common case: padding is there too, and nothing is to be checked.
            receive.staging.consume(n + payload.trailer);
            receive.part = PduPart::Header;
            return self.finish_payload();
        }
        receive.staging.consume(n);
        receive.part = PduPart::Trailer;
        FramingStep::On
    }

    pub(super) fn take_trailer(&mut self) -> FramingStep {
        let receive = &mut self.receive;
        let Some(trailer) = receive.staging.unread().get(..receive.payload.trailer) else {
            return FramingStep::Starved;
        };
        let mut sound = true;
        if receive.data_digest
            && let Some((pad, digest)) = trailer.split_last_chunk::<4>()
        {
            receive.payload.digest.update(pad);
            sound = receive.payload.digest.finish() == *digest;
        }
        receive.staging.consume(receive.payload.trailer);
        receive.part = PduPart::Header;
        if sound { self.finish_payload() } else { self.refuse_payload() }
    }

    pub(super) fn take_checked(&mut self, total: usize) -> FramingStep {
        let receive = &mut self.receive;
        let Some(segment) = receive.staging.unread().get(..total) else { return FramingStep::Starved };
        if segment.split_last_chunk::<4>().is_some_and(|(covered, digest)| crc32c(covered) == *digest) {
            receive.payload.sound = true;
            receive.part = PduPart::Payload;
            return FramingStep::On;
        }
        receive.staging.consume(total);
        receive.part = PduPart::Header;
        self.refuse_payload()
    }

    /// The payload is in its place.
    #[inline(always)]
    fn finish_payload(&mut self) -> FramingStep {
        match self.receive.payload.purpose {
            Purpose::DataOut(slot) => match self.data_out_done(slot) {
                Some(notification) => FramingStep::Tell(notification),
                None => FramingStep::On,
            },
            Purpose::DataIn(slot) => {
                let bhs = self.receive.payload.bhs;
                self.data_in_done(slot, &bhs);
                // The S bit: the Data-In carries status (RFC 7143 11.7.3).
                if bhs.0[FLAGS] & 0x01 != 0 { FramingStep::Tell(Notification::Control(bhs)) } else { FramingStep::On }
            }
            Purpose::Dropped | Purpose::Immediate => FramingStep::On,
            Purpose::Malformed(error) => {
                FramingStep::Tell(Notification::Malformed { bhs: self.receive.payload.bhs, error })
            }
        }
    }

    /// The payload failed its digest.
    #[cold]
    fn refuse_payload(&mut self) -> FramingStep {
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
        FramingStep::On
    }

    /// Header of the PDU whose payload was just placed.
    #[inline]
    pub(in crate::tcp) fn payload_header(&self) -> &Bhs {
        &self.receive.payload.bhs
    }

    /// How many bytes the kernel may write straight into the sink under way. In a store's memory they are whole logical
    /// blocks, and none before the rest of one that has come in part.
    fn direct(&self) -> Option<(u16, usize, usize)> {
        let payload = &self.receive.payload;
        let (Purpose::DataOut(slot) | Purpose::DataIn(slot)) = payload.purpose else { return None };
        let direct = self.receive.part == PduPart::Payload
            && payload.room > self.config.copy_limit
            && match self.landing_block(slot) {
                None => self.receive.staging.len() == 0,
                // The first bytes of the next block may have come.
                Some(block) => {
                    self.limits.pdu_in_order
                        && !self.receive.data_digest
                        && !self.target.has_begun_block(slot)
                        && self.receive.staging.len() < block
                }
            };
        direct.then_some((slot, payload.place, payload.room))
    }

    /// The length of the logical blocks that the payload of a slot lands in, if others read and write there.
    fn landing_block(&self, slot: u16) -> Option<usize> {
        match self.sinks.get(usize::from(slot)) {
            Some(Some(Payload::Region(slice))) if self.role == Role::Target => Some(slice.region().block_size()),
            _ => None,
        }
    }

    pub(in crate::tcp) fn window(&mut self, open: bool) -> ReceiveWindow<'_> {
        self.release_at_hand();
        self.receive.data.1 = 0;
        self.receive.ahs.1 = 0;
        let empty = ReceiveSlice::Private(&mut []);
        if !self.full_feature {
            self.receive.shrink();
        }
        if !open || self.receive.refused {
            return ReceiveWindow { payload: empty, staging: &mut [] };
        }
        let direct = self.direct();
        let (begun, staging) = self.receive.staging.unread_and_room();
        let payload = match direct {
            Some((slot, place, room)) => match self.sinks.get_mut(usize::from(slot)) {
                Some(Some(Payload::Buf(buf))) => {
                    ReceiveSlice::Private(buf.get_mut(place..place + room).unwrap_or_default())
                }
                Some(Some(Payload::Region(slice))) => match self.role {
                    Role::Initiator => ReceiveSlice::Lent(slice, place, place + room),
                    Role::Target => {
                        let landed = &mut self.receive.landed;
                        ReceiveSlice::Blocks(BlocksPlace::new(slice, (place, place + room), begun, landed))
                    }
                },
                _ => empty,
            },
            None => empty,
        };
        ReceiveWindow { payload, staging }
    }

    pub(in crate::tcp) fn received(&mut self, n: usize) {
        let mut rest = n;
        if let Some((slot, place, room)) = self.direct() {
            let placed = match self.landing_block(slot) {
                None => room.min(n),
                Some(_) => self.receive.landed,
            };
            // What had come of the first block has landed with the rest of it.
            let begun = if placed > 0 { self.receive.staging.len() } else { 0 };
            self.receive.staging.consume(begun);
            rest -= placed - begun;
            let payload = &mut self.receive.payload;
            if self.receive.data_digest
                && let Some(Some(Payload::Buf(buf))) = self.sinks.get(usize::from(slot))
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
