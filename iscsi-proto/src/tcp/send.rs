//! The send queue: headers and small payloads in one reused buffer, large payloads by reference between them.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use iscsi_memory::{Buf, Payload, SendList, SendSlice, SessionBuffers};

use crate::datamover::Notification;
use crate::digest::{Crc32c, crc32c};
use crate::pdu::{BHS_LEN, Bhs, padding};

/// Smallest buffer in bytes of a login: most answers fit.
const SMALLEST_OF_LOGIN: usize = 1 << 10;
/// Smallest buffer in bytes.
const SMALLEST: usize = 4 << 10;

/// Names an entry of the table of payloads that are sent by reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PayloadId(u32);

/// A payload that is, or may be, referenced by queued pieces. Counted: each piece is one reference, and a task that
/// owns it is one more.
#[derive(Debug)]
struct CountedPayload {
    data: Option<Payload>,
    references: u32,
}

/// Bytes `start..end` of a held payload, sent before the buffer's byte `at`.
#[derive(Debug)]
struct Piece {
    at: usize,
    held: PayloadId,
    start: usize,
    end: usize,
}

#[derive(Debug)]
pub(super) struct SendQueue {
    buffers: SessionBuffers,
    /// Bytes to send lie at `head..tail`; the rest is room.
    bytes: Buf,
    head: usize,
    tail: usize,
    /// What is sent before everything else: the rest of a logical block of lent memory of which a part has been sent,
    /// as it was then.
    rest: Vec<u8>,
    pieces: VecDeque<Piece>,
    held: Vec<CountedPayload>,
    free: Vec<PayloadId>,
    /// Bytes to send in all.
    backlog: usize,
    /// Bytes that are no more in the backlog, of all time.
    sent: u64,
    /// The buffer is given back when it is empty and larger than this.
    keep: usize,
    /// The buffer is one of `buffers`.
    pooled: bool,
    /// Little is to be sent, to a peer that has proved nothing: the buffer is none of `buffers`, has no byte more than it
    /// needs, and is freed when all is sent.
    login: bool,
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
}

impl SendQueue {
    /// A queue whose buffer is to come out of `buffers`; `login`: from [`begin_bulk`](Self::begin_bulk) on.
    pub(super) fn new(keep: usize, entries: usize, buffers: SessionBuffers, login: bool) -> Self {
        Self {
            buffers,
            bytes: Buf::zeroed(0),
            head: 0,
            tail: 0,
            rest: Vec::new(),
            pieces: VecDeque::with_capacity(entries),
            held: Vec::with_capacity(entries),
            free: Vec::with_capacity(entries),
            backlog: 0,
            sent: 0,
            keep,
            pooled: false,
            login,
            header_digest: false,
            data_digest: false,
        }
    }

    /// Another buffer of `size` bytes with what is to be sent, whose place is the same.
    fn exchange(&mut self, size: usize) {
        let mut new = if self.login { Buf::small(size) } else { self.buffers.take(size) };
        let used = self.head..self.tail;
        if let (Some(to), Some(from)) = (new.get_mut(used.clone()), self.bytes.get(used)) {
            to.copy_from_slice(from);
        }
        self.replace(new, !self.login);
    }

    /// Has no buffer any more.
    fn discard(&mut self) {
        self.replace(Buf::zeroed(0), false);
    }

    fn replace(&mut self, new: Buf, pooled: bool) {
        let old = core::mem::replace(&mut self.bytes, new);
        if core::mem::replace(&mut self.pooled, pooled) {
            self.buffers.give(old);
        }
    }

    /// The Full Feature Phase begins.
    pub(super) fn begin_bulk(&mut self) {
        self.login = false;
    }

    #[inline]
    pub(super) fn backlog(&self) -> usize {
        self.backlog
    }

    #[inline]
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent
    }

    /// Room for `n` more bytes behind the queue.
    #[inline]
    fn grab(&mut self, n: usize) -> &mut [u8] {
        if self.bytes.len() - self.tail < n {
            self.grow(n);
        }
        let at = self.tail;
        self.tail += n;
        self.backlog += n;
        self.bytes.get_mut(at..at + n).unwrap_or_default()
    }

    #[cold]
    fn grow(&mut self, n: usize) {
        let used = self.tail - self.head;
        if self.head >= self.bytes.len() / 2 && used + n <= self.bytes.len() {
            self.bytes.copy_within(self.head..self.tail, 0);
            for piece in &mut self.pieces {
                piece.at -= self.head;
            }
            self.tail = used;
            self.head = 0;
        } else {
            let size = self.tail + n;
            self.exchange(match self.login {
                true => size.max(SMALLEST_OF_LOGIN),
                false => size.next_power_of_two().max(SMALLEST),
            });
        }
    }

    /// A header with its digest.
    #[inline]
    pub(super) fn header(&mut self, bhs: &Bhs) {
        if self.header_digest {
            self.bytes_of(&bhs.0);
            self.bytes_of(&crc32c(&bhs.0));
        } else if let Some(to) = self.grab(BHS_LEN).first_chunk_mut() {
            *to = bhs.0;
        }
    }

    /// A whole PDU with a data segment of `len` bytes, written by `fill`: [`header`](Self::header) and
    /// [`copied`](Self::copied) in one.
    #[inline(always)]
    pub(super) fn pdu(&mut self, bhs: &Bhs, len: usize, fill: impl FnOnce(&mut [u8])) {
        if self.header_digest || self.data_digest {
            self.header(bhs);
            self.copied(len, fill);
            return;
        }
        let padded = len + padding(len as u32) as usize;
        let to = self.grab(BHS_LEN + padded);
        let Some((header, rest)) = to.split_first_chunk_mut::<BHS_LEN>() else { return };
        *header = bhs.0;
        let Some((data, pad)) = rest.split_at_mut_checked(len) else { return };
        fill(data);
        if !pad.is_empty() {
            pad.fill(0);
        }
    }

    /// A header with an AHS area, and the digest over both.
    pub(super) fn header_with_ahs(&mut self, bhs: &Bhs, ahs: &[u8]) {
        self.bytes_of(&bhs.0);
        self.bytes_of(ahs);
        if self.header_digest {
            let mut digest = Crc32c::default();
            digest.update(&bhs.0);
            digest.update(ahs);
            self.bytes_of(&digest.finish());
        }
    }

    #[inline]
    fn bytes_of(&mut self, bytes: &[u8]) {
        self.grab(bytes.len()).copy_from_slice(bytes);
    }

    /// A whole data segment of `len` bytes, written by `fill`, with padding and digest. None at all when `len` is zero
    /// (RFC 7143 11.2.4).
    #[inline]
    pub(super) fn copied(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) {
        if len == 0 {
            return;
        }
        let padded = len + padding(len as u32) as usize;
        let digest = if self.data_digest { 4 } else { 0 };
        let to = self.grab(padded + digest);
        let (data, rest) = to.split_at_mut(len);
        fill(data);
        if padded > len {
            let (pad, _) = rest.split_at_mut(padded - len);
            pad.fill(0);
        }
        if digest != 0 {
            let (covered, place) = to.split_at_mut(padded);
            // The digest covers the padding (RFC 7143 11.2.4).
            place.copy_from_slice(&crc32c(covered));
        }
    }

    /// Takes a payload to be sent by reference. It starts with one reference, which
    /// [`drop_reference`](Self::drop_reference) ends.
    pub(super) fn hold(&mut self, data: Payload) -> PayloadId {
        let entry = CountedPayload { data: Some(data), references: 1 };
        if let Some(id) = self.free.pop()
            && let Some(place) = self.held.get_mut(id.0 as usize)
        {
            *place = entry;
            return id;
        }
        self.held.push(entry);
        PayloadId(self.held.len() as u32 - 1)
    }

    /// Ends one reference. Gives the payload when it was the last.
    pub(super) fn drop_reference(&mut self, id: PayloadId) -> Option<Payload> {
        let held = self.held.get_mut(id.0 as usize)?;
        held.references -= 1;
        if held.references > 0 {
            return None;
        }
        self.free.push(id);
        held.data.take()
    }

    /// Bytes `start..end` of a held payload as a whole data segment, by reference, or copied when they are at most
    /// `copy_limit` bytes or lie in lent memory under a digest: lent memory may change between the digest and the
    /// kernel's look at it.
    pub(super) fn held_segment(&mut self, id: PayloadId, start: usize, end: usize, copy_limit: usize) {
        let len = end - start;
        let Some(held) = self.held.get_mut(id.0 as usize) else { return };
        let lent = matches!(held.data, Some(Payload::Region(_)));
        if len <= copy_limit || (lent && self.data_digest) {
            let data = held.data.take();
            self.copied(len, |to| match &data {
                Some(Payload::Buf(buf)) => to.copy_from_slice(buf.get(start..end).unwrap_or_default()),
                Some(Payload::Region(slice)) => slice.read(start, to),
                None => {}
            });
            if let Some(held) = self.held.get_mut(id.0 as usize) {
                held.data = data;
            }
            return;
        }
        held.references += 1;
        let mut digest = Crc32c::default();
        if self.data_digest
            && let Some(Payload::Buf(buf)) = &held.data
        {
            digest.update(buf.get(start..end).unwrap_or_default());
        }
        self.pieces.push_back(Piece { at: self.tail, held: id, start, end });
        self.backlog += len;
        let pad = padding(len as u32) as usize;
        if pad > 0 {
            self.grab(pad).fill(0);
        }
        if self.data_digest {
            digest.update([0; 3].get(..pad).unwrap_or_default());
            self.bytes_of(&digest.finish());
        }
    }

    pub(super) fn fill<'a>(&'a self, list: &mut SendList<'a>) {
        let mut at = self.head;
        list.push(SendSlice::Private(&self.rest));
        for piece in &self.pieces {
            let between = self.bytes.get(at..piece.at).unwrap_or_default();
            at = piece.at;
            let slice = match self.held.get(piece.held.0 as usize).and_then(|held| held.data.as_ref()) {
                Some(Payload::Buf(buf)) => SendSlice::Private(buf.get(piece.start..piece.end).unwrap_or_default()),
                Some(Payload::Region(slice)) => SendSlice::Lent(slice, piece.start, piece.end),
                None => continue,
            };
            if !list.push(SendSlice::Private(between)) || !list.push(slice) {
                return;
            }
        }
        list.push(SendSlice::Private(self.bytes.get(at..self.tail).unwrap_or_default()));
    }

    /// Gives buffer and tables back, when nothing is to be sent and nobody owns a payload.
    pub(super) fn trim(&mut self) {
        if self.backlog == 0 && self.pieces.is_empty() && self.free.len() == self.held.len() {
            (self.head, self.tail) = (0, 0);
            self.discard();
            (self.pieces, self.held, self.free) = Default::default();
            self.rest = Vec::new();
        }
    }

    /// `n` bytes were sent. Buffers that nobody owns any more go to `released`.
    pub(super) fn sent(&mut self, mut n: usize, released: &mut VecDeque<Notification>) {
        assert!(n <= self.backlog, "more bytes than were queued");
        self.backlog -= n;
        self.sent += n as u64;
        if !self.rest.is_empty() {
            let part = self.rest.len().min(n);
            self.rest.drain(..part);
            n -= part;
        }
        while let Some(piece) = self.pieces.front_mut() {
            let between = (piece.at - self.head).min(n);
            self.head += between;
            n -= between;
            let part = (piece.end - piece.start).min(n);
            piece.start += part;
            n -= part;
            if self.head < piece.at {
                return;
            }
            if piece.start < piece.end {
                if part == 0 || self.keep_rest() {
                    return;
                }
                continue;
            }
            let id = piece.held;
            self.pieces.pop_front();
            if let Some(Payload::Buf(buf)) = self.drop_reference(id) {
                released.push_back(Notification::Released(buf));
            }
        }
        self.head += n;
        if self.head == self.tail {
            self.head = 0;
            self.tail = 0;
            if !self.pooled || self.bytes.len() > self.keep {
                self.shrink();
            }
        }
    }

    /// A part of the first piece was sent. In lent memory, the rest of the block that is sent in part is copied now,
    /// while whoever sends still keeps writers out: later it may be another block. False if it was the rest of the
    /// piece.
    #[cold]
    fn keep_rest(&mut self) -> bool {
        let Some(piece) = self.pieces.front_mut() else { return true };
        if let Some(CountedPayload { data: Some(Payload::Region(slice)), .. }) = self.held.get(piece.held.0 as usize) {
            let n = slice.rest_of_block(piece.start).min(piece.end - piece.start);
            self.rest.resize(n, 0);
            slice.read(piece.start, &mut self.rest);
            piece.start += n;
        }
        piece.start < piece.end
    }

    #[cold]
    fn shrink(&mut self) {
        self.discard();
    }

    /// Drops everything queued. Buffers that nobody owns go to `released`.
    pub(super) fn clear(&mut self, released: &mut VecDeque<Notification>) {
        self.rest.clear();
        while let Some(piece) = self.pieces.pop_front() {
            if let Some(Payload::Buf(buf)) = self.drop_reference(piece.held) {
                released.push_back(Notification::Released(buf));
            }
        }
        self.head = 0;
        self.tail = 0;
        self.sent += self.backlog as u64;
        self.backlog = 0;
    }
}

impl Drop for SendQueue {
    fn drop(&mut self) {
        self.discard();
    }
}
