//! What waits for a place in the queue pair, what is in it, and what becomes of it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use iscsi_memory::{Buf, BufPool, Lease, Payload};
use iscsi_proto::datamover::Notification;
use iscsi_proto::pdu::Bhs;

use super::config::padded;
use super::{IserMover, State};
use crate::header::{ControlHeader, HEADER_LEN, HEADERS_LEN, Header};
use crate::queue::{Inline, QueuePair, RemoteBuffer, Stag, Work};

/// What a completion is for; it travels as the work's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkId {
    /// A message, or data in a buffer of the pool, where it goes back: so many bytes.
    Pooled(u32),
    /// Data in the session's buffer or lent memory, or their last part: so many bytes.
    Write(u32),
    /// A part of the data that is first in the queue, of so many bytes; the rest goes on when it is done. Whether the
    /// memory is the pool's.
    PartOfWrite(bool, u32),
    /// A part of a transfer's data: its slot, and which read it is.
    Read(u16, u32),
}

impl WorkId {
    fn pack(self) -> u64 {
        match self {
            Self::Pooled(len) => u64::from(len),
            Self::Write(len) => 1 << 56 | u64::from(len),
            Self::PartOfWrite(pooled, len) => 2 << 56 | u64::from(pooled) << 32 | u64::from(len),
            Self::Read(slot, serial) => 3 << 56 | u64::from(slot) << 32 | u64::from(serial),
        }
    }

    fn unpack(id: u64) -> Self {
        match id >> 56 {
            0 => Self::Pooled(id as u32),
            1 => Self::Write(id as u32),
            2 => Self::PartOfWrite(id >> 32 & 1 != 0, id as u32),
            _ => Self::Read((id >> 32) as u16, id as u32),
        }
    }
}

/// Work that waits, in the order in which it is to be posted.
#[derive(Debug)]
enum Waiting {
    Send { message: Buf, invalidate: Option<Stag> },
    Write { memory: Payload, range: Range },
}

/// What of a memory is to be written, and where.
#[derive(Debug, Clone, Copy)]
struct Range {
    start: usize,
    end: usize,
    to: RemoteBuffer,
    /// The memory is the pool's.
    pooled: bool,
}

#[derive(Debug)]
pub(super) struct SendQueue {
    /// Where messages take buffers. None in a login, of which nothing is kept.
    pool: Option<Box<BufPool>>,
    /// Hello or HelloReply, ahead of everything.
    first: Option<Buf>,
    waiting: VecDeque<Waiting>,
    rest: Option<Range>,
    /// Transfers that wait for an RDMA Read: slot and serial.
    reads: VecDeque<(u16, u32)>,
    /// Work that is posted and not done, and the Reads among it.
    posted: usize,
    reads_posted: usize,
    /// Reads in flight whose task is gone.
    pub(super) orphans: usize,
    /// The Hello exchange is not over: nothing else goes out (RFC 7145 5.1.3).
    pub(super) awaits_hello: bool,
    pub(super) established: bool,
    /// RDMA Reads that may be in flight.
    pub(super) read_depth: usize,
    /// Bytes of messages and data that are not yet sent.
    backlog: usize,
    /// Bytes that are no more in the backlog, of all time.
    sent: u64,
}

impl SendQueue {
    pub(super) fn new() -> Self {
        Self {
            pool: None,
            first: None,
            waiting: VecDeque::new(),
            rest: None,
            reads: VecDeque::new(),
            posted: 0,
            reads_posted: 0,
            orphans: 0,
            awaits_hello: false,
            established: false,
            read_depth: 0,
            backlog: 0,
            sent: 0,
        }
    }

    /// Gives back what lies idle.
    pub(super) fn trim(&mut self) {
        if let Some(pool) = &mut self.pool {
            pool.clear();
        }
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
        // A transfer waits for its place among the reads, whatever else is there.
        if self.reads.is_empty() {
            self.reads = VecDeque::new();
        }
    }

    pub(super) fn backlog(&self) -> usize {
        self.backlog
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes of the backlog have left, or never will.
    fn left(&mut self, len: usize) {
        let len = len.min(self.backlog);
        self.backlog -= len;
        self.sent += len as u64;
    }

    /// A buffer for a message or for copied data.
    pub(super) fn take_buffer(&mut self, len: usize) -> Buf {
        match &mut self.pool {
            Some(pool) => pool.take(len),
            None => Buf::small(len),
        }
    }

    fn give_buffer(&mut self, buf: Buf) {
        if let Some(pool) = &mut self.pool {
            pool.give(buf);
        }
    }

    /// The Full Feature Phase begins: so many idle bytes are kept.
    pub(super) fn begin_bulk(&mut self, memory: usize) {
        self.pool = Some(Box::new(BufPool::new(memory)));
    }

    /// An RDMA Read waits for its turn.
    pub(super) fn queue_read(&mut self, slot: u16, serial: u32) {
        self.reads.push_back((slot, serial));
    }

    /// A transfer's RDMA Read is not wanted any more.
    pub(super) fn forget_read(&mut self, slot: u16, serial: u32) {
        self.reads.retain(|read| *read != (slot, serial));
    }

    /// Data to write before everything that is queued later. `pooled`: the memory is the pool's.
    pub(super) fn queue_write(&mut self, from: Lease, to: RemoteBuffer, pooled: bool) {
        let Lease { memory, start, len } = from;
        self.backlog += len;
        let range = Range { start, end: start + len, to, pooled };
        self.waiting.push_back(Waiting::Write { memory, range });
    }

    fn queue_send(&mut self, message: Buf, invalidate: Option<Stag>) {
        self.backlog += message.len();
        self.waiting.push_back(Waiting::Send { message, invalidate });
    }

    /// Whether work is posted that is not done.
    pub(super) fn is_waited_for(&self) -> bool {
        self.posted > 0
    }

    /// Whether nothing but what is posted is left to send.
    fn is_idle(&self) -> bool {
        self.first.is_none() && self.waiting.is_empty() && self.rest.is_none()
    }
}

/// A control-type PDU as it stands in a message (RFC 7145 9.2).
struct Pdu<'a> {
    header: ControlHeader,
    bhs: Bhs,
    ahs: &'a [u8],
    /// Bytes of its data segment.
    data: usize,
}

impl<'a> Pdu<'a> {
    /// Sets the lengths in `bhs`.
    #[inline]
    fn new(header: ControlHeader, mut bhs: Bhs, ahs: &'a [u8], data: usize) -> Self {
        bhs.set_ahs_len(ahs.len());
        bhs.set_data_segment_len(data as u32);
        Self { header, bhs, ahs, data }
    }

    /// Bytes of the message.
    #[inline]
    fn len(&self) -> usize {
        HEADERS_LEN + self.ahs.len() + padded(self.data as u32) as usize
    }

    /// Writes all but the data segment, whose place it gives.
    #[inline(always)]
    fn write<'m>(&self, message: &'m mut [u8]) -> &'m mut [u8] {
        let (iser, rest) = message.split_at_mut(HEADER_LEN);
        iser.copy_from_slice(&Header::Control(self.header).emit());
        let (basic, rest) = rest.split_at_mut(self.bhs.0.len());
        basic.copy_from_slice(&self.bhs.0);
        let (ahs, rest) = rest.split_at_mut(self.ahs.len());
        if !ahs.is_empty() {
            ahs.copy_from_slice(self.ahs);
        }
        let (data, padding) = rest.split_at_mut(self.data);
        if !padding.is_empty() {
            padding.fill(0);
        }
        data
    }
}

/// Place of the data segment in a message: `len` bytes behind the headers and `ahs` bytes of AHS area.
pub(super) fn data_segment(message: &mut Buf, ahs: usize, len: usize) -> Option<&mut [u8]> {
    message.get_mut(HEADERS_LEN + ahs..)?.get_mut(..len)
}

impl<Q: QueuePair> IserMover<Q> {
    /// Sends a control-type PDU (RFC 7145 9.2). `fill` writes its data segment of `len` bytes; the lengths in `bhs` are
    /// set here. `ahs` is padded.
    pub(super) fn send_pdu(
        &mut self,
        header: ControlHeader,
        bhs: Bhs,
        ahs: &[u8],
        len: usize,
        fill: impl Fn(&mut [u8]),
        invalidate: Option<Stag>,
    ) {
        let pdu = Pdu::new(header, bhs, ahs, len);
        if self.may_post_inline()
            && self.queue.post_inline(Inline::Send { invalidate }, pdu.len(), &mut |to| fill(pdu.write(to)))
        {
            return self.sent_inline(invalidate);
        }
        let mut message = self.send.take_buffer(pdu.len());
        fill(pdu.write(&mut message));
        self.send.queue_send(message, invalidate);
        self.pump();
    }

    /// Sends a message from [`compose`](Self::compose).
    pub(super) fn send_message(&mut self, message: Buf) {
        let kind = Inline::Send { invalidate: None };
        if self.may_post_inline() && self.queue.post_inline(kind, message.len(), &mut |to| to.copy_from_slice(&message))
        {
            self.send.give_buffer(message);
            return self.sent_inline(None);
        }
        self.send.queue_send(message, None);
        self.pump();
    }

    /// Writes data behind everything that is queued, if it can be done at once and without memory of its own: see
    /// [`QueuePair::post_inline`].
    pub(super) fn write_inline(&mut self, to: RemoteBuffer, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool {
        let done = self.may_post_inline() && self.queue.post_inline(Inline::Write { to }, len, fill);
        if done {
            self.counters.written += len as u64;
            self.unrung = true;
        }
        done
    }

    /// Whether nothing waits that is to leave before what is posted now.
    #[inline]
    fn may_post_inline(&self) -> bool {
        let send = &self.send;
        matches!(self.state, State::Open) && send.is_idle() && send.orphans == 0 && !send.awaits_hello
    }

    fn sent_inline(&mut self, invalidate: Option<Stag>) {
        self.counters.sends += 1;
        self.counters.invalidates += u64::from(invalidate.is_some());
        self.unrung = true;
    }

    /// A message with a control-type PDU; its data segment of `len` bytes is still to be written. The lengths in `bhs`
    /// are set here; `ahs` is padded.
    pub(super) fn compose(&mut self, header: ControlHeader, bhs: Bhs, ahs: &[u8], len: usize) -> Buf {
        let pdu = Pdu::new(header, bhs, ahs, len);
        let mut message = self.send.take_buffer(pdu.len());
        pdu.write(&mut message);
        message
    }

    /// Sends a Hello or HelloReply ahead of everything that waits.
    pub(super) fn send_hello(&mut self, header: Header) {
        let mut message = self.send.take_buffer(HEADER_LEN);
        message.copy_from_slice(&header.emit());
        self.send.backlog += message.len();
        self.send.first = Some(message);
        self.pump();
    }

    /// Posts what there is room for.
    #[inline]
    pub(super) fn pump(&mut self) {
        // Most calls find nothing.
        if !self.send.is_idle() || !self.send.reads.is_empty() || matches!(self.state, State::Closing) {
            self.pump_waiting();
        }
    }

    fn pump_waiting(&mut self) {
        if !matches!(self.state, State::Open | State::Closing) {
            return;
        }
        let limits = self.queue.limits();
        let most = limits.work.max(1);
        // Reads go first, as they take the longest, and leave half of the places to everything else.
        let most_reads = self.send.read_depth.min((most / 2).max(1));
        while self.send.posted < most && self.send.reads_posted < most_reads {
            let Some((slot, serial)) = self.send.reads.pop_front() else { break };
            if let Some((into, from)) = self.take_read(slot, serial, limits.transfer) {
                self.send.reads_posted += 1;
                self.counters.read += into.len as u64;
                self.post(Work::Read { id: WorkId::Read(slot, serial).pack(), into, from });
            }
        }
        while self.send.posted < most {
            if let Some(message) = self.send.first.take() {
                self.post_send(message, None);
                continue;
            }
            // A connection that ends does not wait for a peer that owes it data.
            let held_back = self.send.orphans > 0 && matches!(self.state, State::Open);
            if held_back || self.send.awaits_hello || self.send.rest.is_some() {
                break;
            }
            let Some(next) = self.send.waiting.pop_front() else { break };
            match next {
                Waiting::Send { message, invalidate } => self.post_send(message, invalidate),
                Waiting::Write { memory, range } => self.post_write(memory, range, limits.transfer),
            }
        }
        if matches!(self.state, State::Closing) && !self.disconnected && self.send.is_idle() {
            self.disconnected = true;
            self.queue.disconnect();
            self.unrung = true;
        }
    }

    fn post(&mut self, work: Work) {
        self.send.posted += 1;
        self.unrung = true;
        self.queue.post(work);
    }

    fn post_send(&mut self, message: Buf, invalidate: Option<Stag>) {
        self.counters.sends += 1;
        self.counters.invalidates += u64::from(invalidate.is_some());
        self.post(Work::Send {
            id: WorkId::Pooled(message.len() as u32).pack(),
            message: Lease::whole(Payload::Buf(message)),
            invalidate,
        });
    }

    /// Posts a write, or as much of it as one RDMA Write takes: the rest follows when its memory is back.
    fn post_write(&mut self, memory: Payload, range: Range, transfer: usize) {
        let Range { start, end, to, pooled } = range;
        let len = (end - start).min(transfer.max(1));
        let id = if len < end - start {
            let to = RemoteBuffer { offset: to.offset.wrapping_add(len as u64), ..to };
            self.send.rest = Some(Range { start: start + len, to, ..range });
            WorkId::PartOfWrite(pooled, len as u32)
        } else if pooled {
            WorkId::Pooled(len as u32)
        } else {
            WorkId::Write(len as u32)
        };
        self.counters.written += len as u64;
        self.post(Work::Write { id: id.pack(), from: Lease::part(memory, start, len), to });
    }

    /// Work is done, or was flushed.
    pub(super) fn work_done(&mut self, id: u64, memory: Payload, done: bool) {
        self.send.posted = self.send.posted.saturating_sub(1);
        match WorkId::unpack(id) {
            WorkId::Pooled(len) => {
                self.send.left(len as usize);
                self.give_pooled(memory);
            }
            WorkId::Write(len) => {
                self.send.left(len as usize);
                self.release(memory);
            }
            WorkId::PartOfWrite(pooled, len) => {
                self.send.left(len as usize);
                match self.send.rest.take() {
                    Some(range) if done => self.send.waiting.push_front(Waiting::Write { memory, range }),
                    _ if pooled => self.give_pooled(memory),
                    _ => self.release(memory),
                }
            }
            WorkId::Read(slot, serial) => {
                self.send.reads_posted = self.send.reads_posted.saturating_sub(1);
                self.read_done(slot, serial, memory, done);
            }
        }
    }

    pub(super) fn give_pooled(&mut self, memory: Payload) {
        if let Payload::Buf(buf) = memory {
            self.send.give_buffer(buf);
        }
    }

    /// Gives the session its buffer back; lent memory is let go.
    pub(super) fn release(&mut self, memory: Payload) {
        if let Payload::Buf(buf) = memory {
            self.events.push_back(Notification::Released(buf));
        }
    }

    /// Drops what waits to be sent and received, because the connection is over. What the queue pair has comes back by
    /// itself.
    #[cold]
    pub(super) fn drop_waiting(&mut self) {
        self.receive.drop_inbox();
        self.drop_unsent();
    }

    /// Drops what waits to be sent.
    #[cold]
    pub(super) fn drop_unsent(&mut self) {
        self.send.first = None;
        self.send.rest = None;
        self.send.reads.clear();
        while let Some(waiting) = self.send.waiting.pop_front() {
            if let Waiting::Write { memory, range: Range { pooled: false, .. } } = waiting {
                self.release(memory);
            }
        }
        self.send.left(self.send.backlog);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_as_they_were() {
        let all = [
            WorkId::Pooled(0),
            WorkId::Pooled(u32::MAX),
            WorkId::Write(7),
            WorkId::PartOfWrite(false, u32::MAX),
            WorkId::PartOfWrite(true, 0),
            WorkId::Read(0, 0),
            WorkId::Read(0xffff, u32::MAX),
        ];
        for id in all {
            assert_eq!(WorkId::unpack(id.pack()), id);
        }
    }
}
