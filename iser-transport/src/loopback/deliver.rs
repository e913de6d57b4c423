//! What arrives at an end, and whether it may.

use alloc::vec;
use alloc::vec::Vec;

use super::config::{End, NoReceive};
use super::fabric::Shared;
use super::state::{Packet, ReadRequest};
use crate::queue::{Completion, EndCause, RemoteAccess, RemoteBuffer, Stag, Work};

const NO_RECEIVE: &str = "a message came without a receive";
const OVERLONG: &str = "a message is longer than its receive";
const UNKNOWN: &str = "an STag that is not advertised";
const DEAD: &str = "an STag that was invalidated";
const DIRECTION: &str = "an STag that is not advertised in this direction";
const OUTSIDE: &str = "bytes outside of an advertised buffer";

impl Shared {
    /// Whether the next to arrive at an end is a message that waits for a receive.
    pub(super) fn waits_for_receive(&mut self, end: End) -> bool {
        self.config.no_receive == NoReceive::Waits
            && self.state(end).receives.is_empty()
            && matches!(self.wire_to(end).packets.front(), Some(Packet::Send { .. }))
            // A sender that has left asks no more.
            && !self.wire_to(end).packets.back().is_some_and(Packet::is_last)
    }

    /// The next that is under way arrives: a message whole, data in pieces.
    pub(super) fn arrive(&mut self, end: End) {
        let lost = self.config.no_receive == NoReceive::Waits && self.state(end).receives.is_empty();
        let packets = &mut self.wire_to(end).packets;
        if lost && matches!(packets.front(), Some(Packet::Send { .. })) {
            packets.drain(..packets.len() - 1);
        }
        let Some(packet) = packets.pop_front() else { return };
        let outcome = match packet {
            Packet::Send { number, data, invalidate } => self.take_message(end, number, &data, invalidate),
            Packet::Write { number, data, placed, to } => self.take_write(end, number, data, placed, to),
            Packet::ReadRequest(request) => self.take_request(end, request),
            Packet::ReadResponse { number, data, placed } => {
                self.take_response(end, number, data, placed);
                Ok(())
            }
            Packet::Terminate(why) => {
                self.end(end, EndCause::ByPeer(why));
                Ok(())
            }
            Packet::Fin => {
                self.end(end, EndCause::PeerClosed);
                Ok(())
            }
            Packet::Reset => {
                self.end(end, EndCause::Broken);
                Ok(())
            }
        };
        if let Err(why) = outcome {
            self.leave(end, EndCause::PeerProtocol(why), Packet::Terminate(why));
        }
    }

    /// The peer's message cannot be taken.
    pub(super) fn refuse(&mut self, end: End, overlong: bool) {
        let why = if overlong { OVERLONG } else { NO_RECEIVE };
        self.leave(end, EndCause::PeerProtocol(why), Packet::Terminate(why));
    }

    fn done(&mut self, end: End, number: u64) {
        if let Some(item) = self.state(end).item(number) {
            item.done = true;
        }
    }

    fn take_message(
        &mut self,
        end: End,
        number: u64,
        data: &[u8],
        invalidate: Option<Stag>,
    ) -> Result<(), &'static str> {
        if self.random.per_million(self.config.faults.drop_receive) {
            return Err(NO_RECEIVE);
        }
        if self.random.per_million(self.config.faults.overlong) {
            return Err(OVERLONG);
        }
        let state = self.state(end);
        let room = state.receives.front().ok_or(NO_RECEIVE)?.len();
        if data.len() > room {
            return Err(OVERLONG);
        }
        if let Some(stag) = invalidate {
            let advertised = state.advertised.get_mut(&stag.0).ok_or(UNKNOWN)?;
            if !advertised.alive {
                return Err(DEAD);
            }
            advertised.alive = false;
        }
        if let Some(mut buf) = state.receives.pop_front() {
            buf[..data.len()].copy_from_slice(data);
            state.received.push_back(Completion::Received { buf, len: data.len(), invalidated: invalidate });
        }
        self.done(end.other(), number);
        Ok(())
    }

    /// The place in a buffer that the peer may reach in this way. No bytes need none.
    fn place(
        &mut self,
        end: End,
        buffer: RemoteBuffer,
        len: usize,
        access: RemoteAccess,
    ) -> Result<Option<(u32, usize)>, &'static str> {
        if len == 0 {
            return Ok(None);
        }
        let advertised = self.state(end).advertised.get(&buffer.stag.0).ok_or(UNKNOWN)?;
        if !advertised.alive {
            return Err(DEAD);
        }
        if advertised.access != access {
            return Err(DIRECTION);
        }
        let start = advertised.place(buffer.offset, len).ok_or(OUTSIDE)?;
        Ok(Some((buffer.stag.0, start)))
    }

    /// What a fault makes of a reference to a buffer of `end`: one that it does not advertise, a stale one, or one that
    /// is out of bounds.
    fn altered(&mut self, end: End, buffer: RemoteBuffer, len: usize) -> RemoteBuffer {
        if !self.random.per_million(self.config.faults.alter_stag) {
            return buffer;
        }
        let choice = self.random.below(3);
        let any = self.random.u64() as u32;
        let state = self.state(end);
        match (choice, state.stale, state.advertised.get(&buffer.stag.0)) {
            (0, Some(stale), _) if !state.advertised.contains_key(&stale.stag.0) => stale,
            (1, _, Some(advertised)) => {
                let past = (advertised.memory.len() - len.min(advertised.memory.len())) as u64 + 1;
                RemoteBuffer { offset: advertised.offset.wrapping_add(past), ..buffer }
            }
            _ => {
                let unknown = (any..).chain(1..).find(|stag| !state.advertised.contains_key(stag));
                RemoteBuffer { stag: Stag(unknown.unwrap_or_default()), ..buffer }
            }
        }
    }

    /// What a fault makes of data.
    fn corrupted(&mut self, mut data: Vec<u8>) -> Vec<u8> {
        if !data.is_empty() && self.random.per_million(self.config.faults.corrupt) {
            let at = self.random.below(data.len() as u64) as usize;
            data[at] ^= 1 << self.random.below(8);
        }
        data
    }

    /// Bytes that arrive at once of `left`.
    fn piece(&mut self, left: usize) -> usize {
        if self.random.below(4) == 0 { self.random.below(left as u64) as usize + 1 } else { left }
    }

    fn take_write(
        &mut self,
        end: End,
        number: u64,
        data: Vec<u8>,
        placed: usize,
        to: RemoteBuffer,
    ) -> Result<(), &'static str> {
        let (to, data) =
            if placed == 0 { (self.altered(end, to, data.len()), self.corrupted(data)) } else { (to, data) };
        let mut placed = placed;
        if let Some((stag, start)) = self.place(end, to, data.len(), RemoteAccess::Write)? {
            let piece = self.piece(data.len() - placed);
            if let Some(advertised) = self.state(end).advertised.get_mut(&stag) {
                advertised.memory.write(start + placed, &data[placed..placed + piece]);
            }
            placed += piece;
        }
        if placed == data.len() {
            self.done(end.other(), number);
        } else {
            self.wire_to(end).packets.push_front(Packet::Write { number, data, placed, to });
        }
        Ok(())
    }

    fn take_request(&mut self, end: End, request: ReadRequest) -> Result<(), &'static str> {
        let from = self.altered(end, request.from, request.len);
        self.place(end, from, request.len, RemoteAccess::Read)?;
        self.state(end).answering.push_back(ReadRequest { from, ..request });
        Ok(())
    }

    /// Sends the data that the peer's oldest Read asks for. The buffer may have been withdrawn since it asked.
    pub(super) fn answer(&mut self, end: End) {
        let Some(ReadRequest { number, from, len }) = self.state(end).answering.pop_front() else { return };
        match self.place(end, from, len, RemoteAccess::Read) {
            Ok(place) => {
                let mut data = vec![0; len];
                if let Some((stag, start)) = place
                    && let Some(advertised) = self.state(end).advertised.get(&stag)
                {
                    advertised.memory.read(start, &mut data);
                }
                let data = self.corrupted(data);
                self.send(end, Packet::ReadResponse { number, data, placed: 0 });
            }
            Err(why) => self.leave(end, EndCause::PeerProtocol(why), Packet::Terminate(why)),
        }
    }

    fn take_response(&mut self, end: End, number: u64, data: Vec<u8>, placed: usize) {
        let piece = if data.is_empty() { 0 } else { self.piece(data.len() - placed) };
        let state = self.state(end);
        let to = placed + piece;
        let whole = to == data.len();
        if let Some(item) = state.item(number)
            && let Work::Read { into, .. } = &mut item.work
        {
            into.memory.write(into.start + placed, &data[placed..to]);
            item.done = whole;
        }
        if whole {
            state.reads -= 1;
        } else {
            self.wire_to(end).packets.push_front(Packet::ReadResponse { number, data, placed: to });
        }
    }
}
