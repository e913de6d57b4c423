//! How posted work, and the peer's RDMA Reads, become FPDUs.

use alloc::collections::VecDeque;

use iscsi_memory::Payload;
use iscsi_proto::digest::{Crc32c, crc32c};

use super::fault::{self, Fault, Terminate};
use super::header::{
    CRC, LENGTH, MAX_PADDING, Opcode, READ_REQUEST, ReadRequest, TAGGED, Tagged, UNTAGGED, Untagged, padding,
};
use super::send::{SendQueue, Source};
use super::stags::Unreachable;
use super::work::{Job, Kind, Pending};
use super::{IwarpQueue, Role, State};
use crate::queue::{EndCause, Inline, RemoteAccess};

/// An RDMA Read of the peer.
#[derive(Debug, Clone, Copy)]
struct Response {
    request: ReadRequest,
    /// Bytes of it that are queued.
    queued: u32,
}

/// The message under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Current {
    Nothing,
    /// The work of this number, of which so many bytes are queued.
    Work(u64, usize),
    /// The response to the first of the peer's RDMA Reads.
    Response,
}

#[derive(Debug)]
pub(super) struct Pump {
    current: Current,
    responses: VecDeque<Response>,
    /// The last message was a response: it is our own work's turn.
    responded: bool,
    /// Message sequence numbers of the last Send and the last RDMA Read Request.
    sends: u32,
    reads: u32,
    /// Bytes of responses that are not queued.
    waiting: u64,
}

impl Pump {
    pub(super) fn new() -> Self {
        Self { current: Current::Nothing, responses: VecDeque::new(), responded: false, sends: 0, reads: 0, waiting: 0 }
    }

    pub(super) fn waiting(&self) -> usize {
        usize::try_from(self.waiting).unwrap_or(usize::MAX)
    }

    pub(super) fn responses(&self) -> usize {
        self.responses.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.current == Current::Nothing
    }

    /// An RDMA Read of the peer is to be answered.
    pub(super) fn respond(&mut self, request: ReadRequest) {
        self.waiting += u64::from(request.len);
        self.responses.push_back(Response { request, queued: 0 });
    }

    /// Responses that are not begun are not to be sent.
    pub(super) fn forget_responses(&mut self) {
        self.responses.truncate(usize::from(self.current == Current::Response));
        self.waiting = self.responses.iter().map(|response| u64::from(response.request.len - response.queued)).sum();
    }

    pub(super) fn forget(&mut self) {
        self.current = Current::Nothing;
        self.responses.clear();
        self.waiting = 0;
    }
}

/// What one step of the pump came to.
enum Step {
    /// Go on.
    On,
    /// Nothing more can be queued now.
    Rest,
}

impl IwarpQueue {
    /// Queues FPDUs as long as there is something to send and the queue has room.
    pub(super) fn pump(&mut self) {
        loop {
            let step = match self.pump.current {
                Current::Nothing => self.choose(),
                Current::Work(number, queued) => self.continue_work(number, queued),
                Current::Response => self.continue_response(),
            };
            if matches!(step, Step::Rest) {
                return;
            }
        }
    }

    /// Turns to the next message: our work and the peer's reads take turns.
    #[inline]
    fn choose(&mut self) -> Step {
        let work = self.next_work();
        if !self.pump.responses.is_empty() && (work.is_none() || !self.pump.responded) {
            self.pump.responded = true;
            self.pump.current = Current::Response;
            return Step::On;
        }
        self.pump.responded = false;
        let Some((number, job)) = work else { return Step::Rest };
        if let Kind::Read { .. } = job.kind {
            return self.request_read(number, job);
        }
        self.works.start();
        if matches!(job.kind, Kind::Send { .. }) {
            self.pump.sends = self.pump.sends.wrapping_add(1);
        }
        self.pump.current = Current::Work(number, 0);
        Step::On
    }

    /// The next work that may start now.
    #[inline]
    fn next_work(&mut self) -> Option<(u64, Job)> {
        loop {
            let (number, job) = self.works.peek()?;
            if !matches!(job.kind, Kind::Read { .. }) {
                return Some((number, job));
            }
            if self.state == State::Closing {
                // Its data are not waited for.
                self.works.start();
            } else if self.ord == 0 {
                self.end(EndCause::WorkFailed("the peer takes no RDMA Reads"));
                return None;
            } else {
                return (self.reads.len() < usize::from(self.ord)).then_some((number, job));
            }
        }
    }

    fn request_read(&mut self, number: u64, job: Job) -> Step {
        let Kind::Read { from } = job.kind else { return Step::Rest };
        if !self.send.has_room(LENGTH + UNTAGGED + READ_REQUEST + CRC) {
            return Step::Rest;
        }
        self.works.start();
        self.pump.reads = self.pump.reads.wrapping_add(1);
        let (stag, to) = self.stags.sink();
        let request = ReadRequest {
            sink_stag: stag,
            sink_to: to,
            len: job.len as u32,
            source_stag: from.stag.0,
            source_to: from.offset,
        };
        self.untagged(Opcode::ReadRequest, self.pump.reads, &request.emit());
        self.reads.push_back(Pending { work: number, stag, to, start: job.start, len: job.len, placed: 0 });
        Step::On
    }

    /// Queues a short Send or Write at once, if nothing is to be sent before it and it fits one segment. False, and
    /// nothing has happened, otherwise.
    #[inline]
    pub(super) fn send_inline(&mut self, kind: Inline, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool {
        let may_send = self.state == State::Open && (self.role == Role::Initiator || self.heard);
        let next = self.pump.is_idle() && self.pump.responses.is_empty() && self.works.all_started();
        let fits = len <= self.config.most_copied().min(self.mulpdu - UNTAGGED);
        if !may_send || !next || !fits || !self.send.has_room(LENGTH + UNTAGGED + len + MAX_PADDING + CRC) {
            return false;
        }
        match kind {
            Inline::Write { to } => {
                let header = Tagged { opcode: Opcode::Write, last: true, stag: to.stag.0, to: to.offset }.emit(len);
                copy_fpdu(&mut self.send, self.crc, &header, len, fill);
                self.copied += len as u64;
            }
            Inline::Send { invalidate } => {
                self.pump.sends = self.pump.sends.wrapping_add(1);
                let opcode = if invalidate.is_some() { Opcode::SendInvalidate } else { Opcode::Send };
                let (invalidate, msn) = (invalidate.map_or(0, |stag| stag.0), self.pump.sends);
                let header = Untagged { opcode, last: true, invalidate, queue: opcode.queue(), msn, mo: 0 }.emit(len);
                copy_fpdu(&mut self.send, self.crc, &header, len, fill);
            }
        }
        true
    }

    /// Queues a message of one untagged segment.
    fn untagged(&mut self, opcode: Opcode, msn: u32, body: &[u8]) {
        let header = Untagged { opcode, last: true, invalidate: 0, queue: opcode.queue(), msn, mo: 0 }.emit(body.len());
        copy_fpdu(&mut self.send, self.crc, &header, body.len(), |to| to.copy_from_slice(body));
    }

    /// An FPDU of an initiator that has nothing to say, or nothing more: no buffer is looked at for it (RFC 6581 9.2,
    /// RFC 5041 7.1).
    pub(super) fn emit_empty_write(&mut self) {
        let header = Tagged { opcode: Opcode::Write, last: true, stag: 0, to: 0 }.emit(0);
        copy_fpdu(&mut self.send, self.crc, &header, 0, |_| {});
    }

    pub(super) fn emit_terminate(&mut self, message: &Terminate) {
        self.untagged(Opcode::Terminate, 1, message.as_bytes());
    }

    /// Queues the next segment of a Send or Write.
    #[inline]
    fn continue_work(&mut self, number: u64, queued: usize) -> Step {
        let Some(job) = self.works.job(number) else { return Step::Rest };
        let (segment, header) = match job.kind {
            Kind::Write { to } => {
                let len = (job.len - queued).min(self.mulpdu - TAGGED);
                // Parts of a large payload in lent memory are never copied.
                let whole = if job.lent { job.len } else { len };
                let small = whole <= self.config.most_copied();
                let segment = Segment { len, last: queued + len == job.len, small };
                let (opcode, last) = (Opcode::Write, segment.last);
                let header = Tagged { opcode, last, stag: to.stag.0, to: to.offset + queued as u64 };
                (segment, Emitted::Tagged(header.emit(len)))
            }
            Kind::Send { invalidate } => {
                let len = (job.len - queued).min(self.mulpdu - UNTAGGED);
                let segment = Segment { len, last: queued + len == job.len, small: len <= self.config.most_copied() };
                // RFC 7145 7.3: new implementations are not to ask for events.
                let opcode = if invalidate.is_some() { Opcode::SendInvalidate } else { Opcode::Send };
                let header = Untagged {
                    opcode,
                    last: segment.last,
                    invalidate: invalidate.map_or(0, |stag| stag.0),
                    queue: opcode.queue(),
                    msn: self.pump.sends,
                    mo: queued as u32,
                };
                (segment, Emitted::Untagged(header.emit(len)))
            }
            Kind::Read { .. } => return Step::Rest,
        };
        let Some(memory) = self.works.memory(number) else { return Step::Rest };
        let start = job.start + queued;
        let Some(copied) =
            queue_fpdu(&mut self.send, self.crc, header.bytes(), memory, start, segment, Source::Work(number))
        else {
            return Step::Rest;
        };
        if matches!(job.kind, Kind::Write { .. }) {
            self.copied += copied;
        }
        if segment.last {
            self.works.queued(number, self.send.queued());
            self.pump.current = Current::Nothing;
        } else {
            self.pump.current = Current::Work(number, queued + segment.len);
        }
        Step::On
    }

    /// Queues the next segment of the response to the first of the peer's reads.
    #[inline]
    fn continue_response(&mut self) -> Step {
        let Some(Response { request, queued }) = self.pump.responses.front().copied() else { return Step::Rest };
        let left = (request.len - queued) as usize;
        let len = left.min(self.mulpdu - TAGGED);
        let segment = Segment { len, last: len == left, small: false };
        let to = request.sink_to.wrapping_add(u64::from(queued));
        let (opcode, last) = (Opcode::ReadResponse, segment.last);
        let header = Tagged { opcode, last, stag: request.sink_stag, to }.emit(len);
        if len == 0 {
            // RFC 5040 5.2.1: the source of an empty read is not looked at.
            if !self.send.has_room(header.len() + CRC) {
                return Step::Rest;
            }
            copy_fpdu(&mut self.send, self.crc, &header, 0, |_| {});
        } else {
            let from = request.source_to.wrapping_add(u64::from(queued));
            let (slot, start) = match self.readable(request.source_stag, from, left as u64) {
                Ok(place) => place,
                Err(fault) => {
                    // It was withdrawn or invalidated since the request came.
                    self.pump.current = Current::Nothing;
                    self.terminate(fault, &Terminate::new(fault, &[]));
                    return Step::Rest;
                }
            };
            let Some(memory) = self.stags.memory(slot) else { return Step::Rest };
            let source = Source::Advertised(slot);
            let Some(copied) = queue_fpdu(&mut self.send, self.crc, &header, memory, start, segment, source) else {
                return Step::Rest;
            };
            self.copied += copied;
        }
        self.pump.waiting -= len as u64;
        if segment.last {
            self.pump.responses.pop_front();
            self.pump.current = Current::Nothing;
        } else if let Some(response) = self.pump.responses.front_mut() {
            response.queued += len as u32;
        }
        Step::On
    }

    /// Where bytes lie that the peer wants to read.
    pub(super) fn readable(&self, stag: u32, to: u64, len: u64) -> Result<(usize, usize), Fault> {
        self.stags.reach(stag, to, len, RemoteAccess::Read).map_err(|unreachable| match unreachable {
            Unreachable::Stag => fault::READ_STAG,
            Unreachable::Access => fault::READ_ACCESS,
            Unreachable::Bounds => fault::READ_BOUNDS,
            Unreachable::Wrap => fault::READ_WRAP,
        })
    }
}

/// A segment's headers as they go out.
enum Emitted {
    Tagged([u8; LENGTH + TAGGED]),
    Untagged([u8; LENGTH + UNTAGGED]),
}

impl Emitted {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Tagged(bytes) => bytes,
            Self::Untagged(bytes) => bytes,
        }
    }
}

/// One segment of a message.
#[derive(Debug, Clone, Copy)]
struct Segment {
    len: usize,
    last: bool,
    /// Better copied.
    small: bool,
}

/// Queues an FPDU with a payload from memory, copied or by reference. How many bytes were copied; `None` when the queue
/// has no room.
#[inline]
fn queue_fpdu(
    send: &mut SendQueue,
    crc: bool,
    header: &[u8],
    memory: &Payload,
    start: usize,
    segment: Segment,
    source: Source,
) -> Option<u64> {
    let len = segment.len;
    let pad = padding(header.len() - LENGTH + len);
    let buf = match memory {
        // Lent memory may change between the CRC and the kernel's look at it.
        Payload::Region(_) if crc => None,
        Payload::Buf(buf) => buf.get(start..start + len),
        Payload::Region(_) => Some(&[][..]),
    };
    let Some(private) = buf.filter(|_| !segment.small && len > 0) else {
        if !send.has_room(header.len() + len + pad + CRC) {
            return None;
        }
        copy_fpdu(send, crc, header, len, |to| memory.read(start, to));
        return Some(len as u64);
    };
    if !send.has_room(header.len() + pad + CRC) {
        return None;
    }
    send.grab(header.len()).copy_from_slice(header);
    send.refer(source, start, start + len);
    let trailer = send.grab(pad + CRC);
    trailer.fill(0);
    if crc && let Some((pad, field)) = trailer.split_last_chunk_mut::<CRC>() {
        let mut digest = Crc32c::default();
        digest.update(header);
        digest.update(private);
        digest.update(pad);
        *field = digest.finish();
    }
    Some(0)
}

/// Queues an FPDU whose payload of `len` bytes is written by `fill`.
#[inline(always)]
fn copy_fpdu(send: &mut SendQueue, crc: bool, header: &[u8], len: usize, fill: impl FnOnce(&mut [u8])) {
    let pad = padding(header.len() - LENGTH + len);
    let to = send.grab(header.len() + len + pad + CRC);
    let Some((covered, field)) = to.split_last_chunk_mut::<CRC>() else { return };
    let (head, rest) = covered.split_at_mut(header.len());
    head.copy_from_slice(header);
    let (body, pad) = rest.split_at_mut(len);
    fill(body);
    if !pad.is_empty() {
        pad.fill(0);
    }
    // The field is there in any case; without CRC its content means nothing (RFC 5044 7.1.1).
    *field = if crc { crc32c(covered) } else { [0; CRC] };
}
