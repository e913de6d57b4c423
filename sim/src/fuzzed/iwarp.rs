//! iWARP queue pairs of either role: a list of operations posts work, advertises memory, and plays the peer, in order or against all rules.
//!
//! After each run: everything posted came back once, no advertised memory was touched that the peer may not write to, nothing beside lent memory changed,
//! and what was sent is framed as MPA wants it.

use std::collections::VecDeque;

use iscsi_memory::{Buf, Lease, Payload, Region, RegionSlice, SendList};
use iscsi_proto::connection::StreamEnd;
use iscsi_proto::digest::crc32c;
use iser_transport::iwarp::{IwarpConfig, IwarpQueue};
use iser_transport::queue::{Completion, QueuePair, RemoteAccess, RemoteBuffer, Stag, StreamQueue, Work};

use crate::input::Input;

const FILL: u8 = 0xa5;
const GUARD: u64 = 64;
const READS: u16 = 3;

/// A buffer that is advertised to the peer.
struct Advertised {
    buffer: RemoteBuffer,
    access: RemoteAccess,
    len: usize,
    /// Lent memory that it is the middle of.
    slice: Option<RegionSlice>,
}

struct Bench {
    queue: IwarpQueue,
    crc: bool,
    chunk: usize,
    /// Ids that are posted, in order; how many receives are.
    works: VecDeque<u64>,
    receives: usize,
    next_id: u64,
    established: bool,
    ended: bool,
    advertised: Vec<Advertised>,
    /// What the queue sent and was not looked at; whether the startup frame was.
    output: Vec<u8>,
    started: bool,
    /// The sinks of RDMA Reads that the queue asked for.
    reads: VecDeque<(u32, u64, u32)>,
    msn: [u32; 2],
    /// The peer said what was not made for the place: how many reads are under way is not known any more.
    spoilt: bool,
}

impl Bench {
    fn new(queue: IwarpQueue, crc: bool, chunk: usize) -> Self {
        Self {
            queue,
            crc,
            chunk,
            works: VecDeque::new(),
            receives: 0,
            next_id: 0,
            established: false,
            ended: false,
            advertised: Vec::new(),
            output: Vec::new(),
            started: false,
            reads: VecDeque::new(),
            msn: [1; 2],
            spoilt: false,
        }
    }

    fn poll(&mut self) {
        while let Some(completion) = self.queue.poll() {
            let last = core::mem::replace(&mut self.ended, false);
            match completion {
                Completion::Established(_) => {
                    assert!(!self.established && !last, "a connection is established once");
                    self.established = true;
                }
                Completion::Received { buf, len, .. } => {
                    assert!(len <= buf.len() && self.established && !last);
                    self.receives -= 1;
                }
                Completion::ReceiveFlushed(_) => self.receives -= 1,
                Completion::Done { id, .. } => {
                    assert!(!last);
                    assert_eq!(self.works.pop_front(), Some(id), "work completes in order");
                }
                Completion::Flushed { id, .. } => assert_eq!(self.works.pop_front(), Some(id)),
                Completion::Ended(_) => {
                    assert!(!last && self.works.is_empty() && self.receives == 0, "the end is the last of all");
                    self.ended = true;
                }
            }
            self.ended |= last;
        }
    }

    /// Bytes come from the peer.
    fn feed(&mut self, bytes: &[u8]) {
        for mut piece in bytes.chunks(self.chunk) {
            while !piece.is_empty() {
                let n = self.queue.receive_window().fill(piece);
                if n == 0 {
                    return;
                }
                self.queue.handle_received(n);
                piece = &piece[n..];
            }
        }
        self.poll();
    }

    /// The peer takes at most `most` bytes.
    fn take(&mut self, most: usize) -> bool {
        let mut list = SendList::default();
        self.queue.fill_send_list(&mut list);
        let at = self.output.len();
        for piece in list.as_slice() {
            let from = self.output.len();
            self.output.resize(from + piece.len(), 0);
            piece.copy_to(&mut self.output[from..]);
        }
        let n = (self.output.len() - at).min(most);
        self.output.truncate(at + n);
        if n > 0 {
            self.queue.handle_sent(n);
        }
        self.look();
        self.poll();
        n > 0
    }

    /// Whole frames of what was sent are looked at.
    fn look(&mut self) {
        let mut rest = &self.output[..];
        loop {
            if !self.started {
                let Some(head) = rest.first_chunk::<20>() else { break };
                let len = 20 + usize::from(u16::from_be_bytes([head[18], head[19]]));
                if rest.len() < len {
                    break;
                }
                rest = &rest[len..];
                self.started = true;
                continue;
            }
            let Some(head) = rest.first_chunk::<2>() else { break };
            let ulpdu = usize::from(u16::from_be_bytes(*head));
            let covered = (2 + ulpdu).next_multiple_of(4);
            let Some(fpdu) = rest.get(..covered + 4) else { break };
            assert!(ulpdu >= 14, "a ULPDU holds its headers");
            assert_eq!(fpdu[2] & 0x03, 1);
            if self.crc {
                assert_eq!(crc32c(&fpdu[..covered]), fpdu[covered..], "the CRC is right");
            }
            if fpdu[3] == 0x41 {
                let word = |at: usize| u32::from_be_bytes(*fpdu[at..].first_chunk().expect("a whole request"));
                let to = u64::from(word(24)) << 32 | u64::from(word(28));
                self.reads.push_back((word(20), to, word(32)));
                assert!(self.spoilt || self.reads.len() <= usize::from(READS), "no more reads than the peer takes");
            }
            rest = &rest[covered + 4..];
        }
        let looked = self.output.len() - rest.len();
        self.output.drain(..looked);
    }

    fn memory(&self, lent: bool, len: usize) -> (Payload, Option<RegionSlice>) {
        if !lent {
            let mut buf = Buf::zeroed(len);
            buf.fill(FILL);
            return (Payload::Buf(buf), None);
        }
        let all = len + 2 * GUARD as usize;
        let region = Region::heap(all);
        region.reserve_for_write(0, all as u64).expect("no limit");
        region.write(0, &vec![FILL; all]);
        (Payload::Region(region.slice(GUARD, len)), Some(region.slice(0, all)))
    }

    fn withdraw(&mut self, at: usize) {
        let Advertised { buffer, access, len, slice } = self.advertised.swap_remove(at);
        let memory = self.queue.withdraw(buffer.stag).expect("what is advertised comes back");
        assert!(self.queue.withdraw(buffer.stag).is_none(), "it comes back once");
        let mut bytes = vec![0; memory.len()];
        memory.read(0, &mut bytes);
        assert_eq!(bytes.len(), len);
        assert!(access == RemoteAccess::Write || bytes.iter().all(|byte| *byte == FILL), "it may only be read");
        if let Some(slice) = slice {
            let mut all = vec![0; slice.len()];
            slice.read(0, &mut all);
            let (head, rest) = all.split_at(GUARD as usize);
            assert!(head.iter().chain(&rest[len..]).all(|byte| *byte == FILL), "what is beside it is not touched");
        }
    }

    fn post(&mut self, make: impl FnOnce(u64) -> Work) {
        self.works.push_back(self.next_id);
        self.queue.post(make(self.next_id));
        self.next_id += 1;
    }

    fn fpdu(&mut self, ulpdu: &[u8], spoil: u8) {
        let mut bytes = (ulpdu.len() as u16).to_be_bytes().to_vec();
        bytes.extend_from_slice(ulpdu);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let field = if self.crc { crc32c(&bytes) } else { [0; 4] };
        bytes.extend_from_slice(&field);
        if spoil > 0 {
            self.spoilt = true;
            let at = usize::from(spoil) % bytes.len();
            bytes[at] ^= spoil;
        }
        self.feed(&bytes);
    }

    /// One operation.
    fn operate(&mut self, input: &mut Input<'_>) {
        match input.below(14) {
            0 if self.receives < 8 => {
                self.receives += 1;
                self.queue.post_receive(Buf::zeroed(input.u16().into()));
            }
            1 if self.works.len() < 16 => {
                let (kind, lent, len) = (input.below(4), input.flag(), usize::from(input.u16()));
                let (memory, _) = self.memory(lent, len);
                let lease = Lease::whole(memory);
                let far = RemoteBuffer { stag: Stag(input.u32()), offset: u64::from(input.u32()) << 20 };
                self.post(|id| match kind {
                    0 => Work::Write { id, from: lease, to: far },
                    1 => Work::Read { id, into: lease, from: far },
                    2 => Work::Send { id, message: lease, invalidate: Some(far.stag) },
                    _ => Work::Send { id, message: lease, invalidate: None },
                });
            }
            2 => self.queue.ring(),
            3 if self.advertised.len() < 6 => {
                let (write, lent, len) = (input.flag(), input.flag(), usize::from(input.u16()));
                let access = if write { RemoteAccess::Write } else { RemoteAccess::Read };
                let (memory, slice) = self.memory(lent, len);
                match self.queue.advertise(memory, access) {
                    Ok(buffer) => self.advertised.push(Advertised { buffer, access, len, slice }),
                    Err(error) => assert!(self.advertised.len() >= 4, "{error}"),
                }
            }
            4 if !self.advertised.is_empty() => {
                self.withdraw(usize::from(input.u8()) % self.advertised.len());
            }
            // A tagged segment of the peer, right but for what the input alters.
            5 => {
                let (response, last) = (input.flag(), input.flag());
                let at = usize::from(input.u8());
                let (stag, to) = match self.advertised.get(at % self.advertised.len().max(1)) {
                    _ if response => self.reads.front().map_or((0, 0), |read| (read.0, read.1)),
                    Some(advertised) => (advertised.buffer.stag.0, advertised.buffer.offset),
                    None => (1, 1),
                };
                let (off, len, spoil) = (input.u16(), usize::from(input.u16()), input.u8());
                let to = to.wrapping_add_signed(i64::from(off as i16));
                let mut ulpdu = vec![0x81 | u8::from(last) << 6, 0x40 | u8::from(response) << 1];
                ulpdu.extend_from_slice(&stag.to_be_bytes());
                ulpdu.extend_from_slice(&to.to_be_bytes());
                ulpdu.resize(14 + len.min(60_000), 0x11);
                if response {
                    self.answer(len, last);
                }
                self.fpdu(&ulpdu, spoil);
            }
            // A Send of the peer.
            6 => {
                let (opcode, last, msn) = (3 + input.below(4), input.flag(), input.u8());
                let (mo, len, spoil) = (input.u16(), usize::from(input.u16()), input.u8());
                let invalidate = self.advertised.first().map_or(0, |advertised| advertised.buffer.stag.0);
                let number = self.msn[0].wrapping_add(msn.into());
                let mut ulpdu = vec![0x01 | u8::from(last) << 6, 0x40 | opcode];
                for word in [invalidate, 0, number, mo.into()] {
                    ulpdu.extend_from_slice(&word.to_be_bytes());
                }
                ulpdu.resize(18 + len.min(60_000), 0x22);
                self.msn[0] = self.msn[0].wrapping_add(u32::from(last));
                self.fpdu(&ulpdu, spoil);
            }
            // An RDMA Read of the peer.
            7 => {
                let (at, msn, len, off, spoil) =
                    (usize::from(input.u8()), input.u8(), input.u16(), input.u16(), input.u8());
                let source = self.advertised.get(at % self.advertised.len().max(1));
                let (stag, to) = source.map_or((9, 9), |source| (source.buffer.stag.0, source.buffer.offset));
                let mut ulpdu = vec![0x41, 0x41];
                for word in [0, 1, self.msn[1].wrapping_add(msn.into()), 0, 0x5151, 0, 0x6161, len.into(), stag] {
                    ulpdu.extend_from_slice(&word.to_be_bytes());
                }
                ulpdu.extend_from_slice(&to.wrapping_add_signed(i64::from(off as i16)).to_be_bytes());
                self.msn[1] = self.msn[1].wrapping_add(1);
                self.fpdu(&ulpdu, spoil);
            }
            8 => {
                let bytes = input.chunk();
                self.spoilt = true;
                self.feed(bytes);
            }
            9 => {
                let (ulpdu, spoil) = (input.chunk(), input.u8());
                self.spoilt = true;
                self.fpdu(ulpdu, spoil);
            }
            10 => {
                let most = input.u16();
                self.take(most.into());
            }
            11 => while self.take(usize::MAX) {},
            12 => match input.below(5) {
                0 => self.queue.disconnect(),
                1 => self.queue.abort(),
                2 => self.queue.handle_stream_end(StreamEnd::EndOfStream),
                3 => self.queue.handle_stream_end(StreamEnd::Broken),
                _ => self.queue.set_emss(input.u16().into()),
            },
            _ => self.poll(),
        }
    }

    /// The peer answers the first read so far.
    fn answer(&mut self, len: usize, last: bool) {
        if let Some(read) = self.reads.front_mut() {
            read.1 = read.1.wrapping_add(len as u64);
            if last {
                self.reads.pop_front();
            }
        }
    }

    fn finish(mut self) {
        self.queue.abort();
        self.poll();
        assert!(self.ended && self.works.is_empty() && self.receives == 0, "all comes back");
        assert_eq!(self.queue.backlog(), 0);
        assert!(self.queue.receive_window().is_empty());
        while !self.advertised.is_empty() {
            self.withdraw(0);
        }
    }
}

fn config(flags: u8) -> IwarpConfig {
    IwarpConfig {
        crc: flags & 1 != 0,
        peer_to_peer: flags & 2 != 0,
        ird: READS,
        ord: READS,
        emss: if flags & 4 != 0 { 65_535 } else { 500 },
        advertisements: 4,
        staging_size: if flags & 8 != 0 { 0 } else { 64 << 10 },
        seed: 5,
        ..IwarpConfig::default()
    }
}

fn run(queue: IwarpQueue, flags: u8, startup: &[u8], mut input: Input<'_>) {
    let chunk = if flags & 0x10 != 0 { 1 + usize::from(flags >> 5) * 17 } else { 1 << 20 };
    let mut bench = Bench::new(queue, flags & 1 != 0, chunk);
    if startup.is_empty() {
        // No startup but what the input says; whether there is a CRC depends on it, too.
        bench.crc = false;
    } else {
        bench.take(usize::MAX);
        bench.feed(startup);
        bench.take(usize::MAX);
        assert!(bench.established, "the startup is right");
    }
    for _ in 0..300 {
        if input.is_empty() {
            break;
        }
        bench.operate(&mut input);
    }
    bench.finish();
}

/// The end that accepts: bit 7 of the second byte leaves the startup to the input.
pub fn iwarp_accept(data: &[u8]) {
    let mut input = Input::new(data);
    let (flags, how) = (input.u8(), input.u8());
    let startup = [&b"MPA ID Req Frame\x10\x02\x00\x05"[..], &[how << 6, 3, how << 4 & 0xc0, 3, 0x80]].concat();
    run(IwarpQueue::accept(config(flags)), flags, if how & 0x80 == 0 { &startup } else { &[] }, input);
}

/// The end that connects: bit 7 of the second byte leaves the startup to the input.
pub fn iwarp_connect(data: &[u8]) {
    let mut input = Input::new(data);
    let (flags, how) = (input.u8(), input.u8());
    let startup = b"MPA ID Rep Frame\x10\x02\x00\x05\x80\x03\x80\x03\x80";
    run(IwarpQueue::connect(config(flags)), flags, if how & 0x80 == 0 { startup } else { &[] }, input);
}
