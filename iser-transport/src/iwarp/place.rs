//! What a segment is for, and whether it may be: the checks of RFC 5041 7.1 and RFC 5040 7.2, and what its end brings
//! about.

use iscsi_memory::{Buf, Payload};

use super::fault::{self, Fault, Terminate, describe};
use super::header::{Header, LENGTH, Opcode, READ_REQUEST, ReadRequest, Tagged, Untagged};
use super::stags::Unreachable;
use super::{IwarpQueue, State};
use crate::queue::{Completion, EndCause, RemoteAccess, Stag};

/// Where a segment's payload goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: it has none.
    Nothing,
    /// The first receive.
    Message,
    /// The work of this number, an RDMA Read.
    Read(u64),
    /// The advertised buffer of this slot.
    Advertised(usize),
}

impl IwarpQueue {
    /// Where the `len` bytes of a segment's payload go, and from which byte there on. Changes nothing.
    #[inline]
    pub(super) fn admit(&self, header: &Header, len: usize) -> Result<(Place, usize), Fault> {
        match header {
            Header::Tagged(header) if header.opcode == Opcode::Write => self.admit_write(header, len),
            Header::Tagged(header) => self.admit_response(header, len),
            Header::Untagged(header) => self.admit_send(header, len),
        }
    }

    #[inline]
    fn admit_write(&self, header: &Tagged, len: usize) -> Result<(Place, usize), Fault> {
        if len == 0 {
            // RFC 5041 7.1: only segments that are not empty are looked at.
            return Ok((Place::Nothing, 0));
        }
        match self.stags.reach(header.stag, header.to, len as u64, RemoteAccess::Write) {
            Ok((slot, at)) => Ok((Place::Advertised(slot), at)),
            // DDP has no code for a wrong direction.
            Err(Unreachable::Stag | Unreachable::Access) => Err(fault::TAGGED_STAG),
            Err(Unreachable::Bounds) => Err(fault::TAGGED_BOUNDS),
            Err(Unreachable::Wrap) => Err(fault::TAGGED_WRAP),
        }
    }

    #[inline]
    fn admit_response(&self, header: &Tagged, len: usize) -> Result<(Place, usize), Fault> {
        let Some(read) = self.reads.front() else { return Err(fault::OPCODE) };
        if len > 0 {
            if header.stag != read.stag {
                return Err(fault::TAGGED_STAG);
            }
            if header.to != read.to + read.placed as u64 || len > read.len - read.placed {
                return Err(fault::TAGGED_BOUNDS);
            }
        }
        if header.last && read.placed + len != read.len {
            return Err(fault::RESPONSE_SHORT);
        }
        Ok((Place::Read(read.work), read.start + read.placed))
    }

    #[inline]
    fn admit_send(&self, header: &Untagged, len: usize) -> Result<(Place, usize), Fault> {
        if header.msn != self.receive.sends {
            return Err(fault::MSN);
        }
        let Some(buf) = self.receives.front() else { return Err(fault::NO_RECEIVE) };
        let (placed, opcode) = self.receive.message;
        if header.mo as usize != placed {
            return Err(fault::MO);
        }
        if placed > 0 && header.opcode != opcode {
            return Err(fault::OPCODE);
        }
        if len > buf.len() - placed {
            return Err(fault::TOO_LONG);
        }
        if header.last && header.opcode.invalidates() && !self.stags.is_alive(header.invalidate) {
            return Err(fault::INVALIDATE);
        }
        Ok((Place::Message, placed))
    }

    /// A message comes: the first receive has memory.
    #[inline]
    pub(super) fn provide_receive(&mut self, header: &Header) {
        if self.receives.is_empty() && self.spare > 0 && matches!(header, Header::Untagged(_)) {
            self.spare -= 1;
            let (len, small) = (self.receive_len, self.receive.staging.is_small());
            self.receives.push_back(if small { Buf::small(len) } else { Buf::zeroed(len) });
        }
    }

    /// The memory that is behind a place.
    #[inline]
    pub(super) fn memory_at(&mut self, place: Place) -> Option<Target<'_>> {
        match place {
            Place::Nothing => None,
            Place::Message => self.receives.front_mut().map(|buf| Target::Private(buf)),
            Place::Read(number) => self.works.memory_mut(number).map(Target::of),
            Place::Advertised(slot) => self.stags.memory_mut(slot).map(Target::of),
        }
    }

    /// Whether a place is in lent memory.
    #[inline]
    pub(super) fn is_lent(&self, place: Place) -> bool {
        let memory = match place {
            Place::Nothing | Place::Message => None,
            Place::Read(number) => self.works.memory(number),
            Place::Advertised(slot) => self.stags.memory(slot),
        };
        matches!(memory, Some(Payload::Region(_)))
    }

    /// A segment with `len` bytes of payload is in its place.
    #[inline]
    pub(super) fn deliver(&mut self, header: &Header, len: usize) {
        self.heard = true;
        match header {
            Header::Untagged(header) => self.deliver_send(header, len),
            Header::Tagged(header) if header.opcode == Opcode::ReadResponse => {
                if let Some(read) = self.reads.front_mut() {
                    read.placed += len;
                    if header.last {
                        let work = read.work;
                        self.reads.pop_front();
                        self.works.read(work);
                    }
                }
            }
            Header::Tagged(_) => {}
        }
    }

    #[inline]
    fn deliver_send(&mut self, header: &Untagged, len: usize) {
        let len = self.receive.message.0 + len;
        self.receive.message = (len, header.opcode);
        if !header.last {
            return;
        }
        self.receive.message.0 = 0;
        self.receive.sends = self.receive.sends.wrapping_add(1);
        let invalidated = header.opcode.invalidates().then_some(Stag(header.invalidate));
        if let Some(stag) = invalidated {
            self.stags.invalidate(stag.0);
        }
        if let Some(buf) = self.receives.pop_front() {
            self.events.push_back(Completion::Received { buf, len, invalidated });
        }
    }

    /// An RDMA Read Request or a Terminate is at hand, whole.
    pub(super) fn take_control(&mut self, header: &Untagged) -> Result<(), Fault> {
        let fpdu = self.receive.staging.unread();
        let len = usize::from(u16::from_be_bytes(fpdu.first_chunk().copied().unwrap_or_default()));
        let at = LENGTH + Header::Untagged(*header).len();
        let body = fpdu.get(at..LENGTH + len).unwrap_or_default();
        if header.opcode == Opcode::Terminate {
            let code = body.first_chunk().map_or(u16::MAX, |code| u16::from_be_bytes(*code));
            self.end(EndCause::ByPeer(describe(code)));
            return Ok(());
        }
        if header.msn != self.receive.read_requests {
            return Err(fault::MSN);
        }
        if header.mo != 0 {
            return Err(fault::MO);
        }
        let Some(body) = body.first_chunk::<READ_REQUEST>().filter(|_| header.last && body.len() == READ_REQUEST)
        else {
            return Err(if body.len() > READ_REQUEST { fault::TOO_LONG } else { fault::READ_REQUEST_LENGTH });
        };
        if self.pump.responses() >= usize::from(self.ird) {
            return Err(fault::NO_READ_SLOT);
        }
        let request = ReadRequest::parse(body);
        if request.len > 0 {
            self.readable(request.source_stag, request.source_to, u64::from(request.len))?;
        }
        self.receive.read_requests = self.receive.read_requests.wrapping_add(1);
        self.heard = true;
        if self.state == State::Open {
            self.pump.respond(request);
        }
        Ok(())
    }

    /// The FPDU at hand breaks a rule.
    #[cold]
    pub(super) fn refuse(&mut self, fault: Fault) {
        let message = Terminate::new(fault, self.receive.staging.unread());
        self.terminate(fault, &message);
    }
}

/// Memory that payload goes to.
pub(super) enum Target<'a> {
    Private(&'a mut [u8]),
    Lent(&'a iscsi_memory::RegionSlice),
}

impl<'a> Target<'a> {
    pub(super) fn of(memory: &'a mut Payload) -> Self {
        match memory {
            Payload::Buf(buf) => Self::Private(buf),
            Payload::Region(slice) => Self::Lent(slice),
        }
    }

    /// Copies payload in.
    #[inline]
    pub(super) fn write(&mut self, at: usize, from: &[u8]) {
        match self {
            Self::Private(bytes) => {
                if let Some(to) = bytes.get_mut(at..at + from.len()) {
                    to.copy_from_slice(from);
                }
            }
            Self::Lent(slice) => slice.write(at, from),
        }
    }
}
