//! Peers that break a rule: the right Terminate, and not a byte of memory touched.

use alloc::vec::Vec;

use iscsi_memory::{Buf, Lease, Payload, Region, RegionSlice};

use super::super::IwarpConfig;
use super::raw::{Raw, fpdu, read_request, send, tagged, untagged};
use super::wire::{Short, bytes_of, feed, lease, output, pattern, poll_all};
use crate::queue::{Completion, EndCause, QueuePair, RemoteAccess, RemoteBuffer, Stag, StreamQueue, Work};

const CRC: [bool; 2] = [false, true];

fn config(crc: bool) -> IwarpConfig {
    IwarpConfig { crc, ird: 2, ord: 4, seed: 77, ..IwarpConfig::default() }
}

/// A queue with buffers of 100 bytes for every access, of both kinds of memory, and a receive of 100.
struct Target {
    raw: Raw,
    writable: RemoteBuffer,
    readable: RemoteBuffer,
    lent: RemoteBuffer,
    slice: RegionSlice,
    dead: Stag,
}

impl Target {
    fn new(crc: bool) -> Self {
        let mut raw = Raw::accepted(config(crc));
        let queue = &mut raw.queue;
        queue.post_receive(Buf::zeroed(100));
        let buf = || Payload::Buf(Buf::zeroed(100));
        let slice = Region::heap(4096).slice(50, 100);
        let writable = queue.advertise(buf(), RemoteAccess::Write).unwrap();
        let readable = queue.advertise(buf(), RemoteAccess::Read).unwrap();
        let lent = queue.advertise(Payload::Region(slice.clone()), RemoteAccess::Write).unwrap();
        let dead = queue.advertise(buf(), RemoteAccess::Write).unwrap().stag;
        assert!(queue.withdraw(dead).is_some());
        Self { raw, writable, readable, lent, slice, dead }
    }

    /// This ULPDU is answered with a Terminate of this code, and touches nothing.
    fn refuses(mut self, code: u16, headers: usize, ulpdu: &[u8]) {
        self.raw.say(&send_later());
        self.raw.is_told_off(code, headers, ulpdu);
        for buffer in [self.writable, self.readable] {
            assert_eq!(bytes_of(&self.raw.queue.withdraw(buffer.stag).unwrap()), [0; 100]);
        }
        let mut lent = [1; 100];
        self.slice.read(0, &mut lent);
        assert_eq!(lent, [0; 100]);
        assert!(self.raw.queue.withdraw(self.lent.stag).is_some());
        assert!(self.raw.queue.withdraw(self.lent.stag).is_none());
    }
}

/// An empty RDMA Write: it means nothing, and lets a responder speak.
fn send_later() -> Vec<u8> {
    tagged(0, true, 1, 2, &[])
}

#[test]
fn writes_outside_of_what_was_advertised() {
    for crc in CRC {
        let case = |code, make: fn(&Target) -> Vec<u8>| {
            let target = Target::new(crc);
            let ulpdu = make(&target);
            target.refuses(code, 14, &ulpdu);
        };
        case(0x1100, |t| tagged(0, true, t.writable.stag.0 ^ 0x4000, t.writable.offset, &[9; 8]));
        case(0x1100, |t| tagged(0, true, t.dead.0, t.writable.offset, &[9; 8]));
        case(0x1100, |_| tagged(0, true, 0, 0, &[9; 8]));
        case(0x1100, |t| tagged(0, true, t.readable.stag.0, t.readable.offset, &[9; 8]));
        case(0x1101, |t| tagged(0, true, t.writable.stag.0, t.writable.offset + 93, &[9; 8]));
        case(0x1101, |t| tagged(0, true, t.writable.stag.0, t.writable.offset - 1, &[9; 8]));
        case(0x1101, |t| tagged(0, false, t.lent.stag.0, t.lent.offset, &[9; 101]));
        case(0x1101, |t| tagged(0, true, t.lent.stag.0, t.lent.offset + (1 << 32), &[9; 1]));
        case(0x1101, |t| tagged(0, true, t.lent.stag.0, t.lent.offset, &pattern(40_000, 1)));
        case(0x1103, |t| tagged(0, true, t.lent.stag.0, u64::MAX - 3, &[9; 8]));
    }
}

#[test]
fn reads_outside_of_what_was_advertised() {
    for crc in CRC {
        let case = |code, make: fn(&Target) -> Vec<u8>| {
            let target = Target::new(crc);
            let ulpdu = make(&target);
            target.refuses(code, 46, &ulpdu);
        };
        case(0x0100, |t| read_request(1, 8, t.readable.stag.0 ^ 0x4000, t.readable.offset));
        case(0x0100, |t| read_request(1, 8, t.dead.0, t.readable.offset));
        case(0x0101, |t| read_request(1, 101, t.readable.stag.0, t.readable.offset));
        case(0x0101, |t| read_request(1, u32::MAX, t.readable.stag.0, t.readable.offset));
        case(0x0101, |t| read_request(1, 1, t.readable.stag.0, t.readable.offset - 1));
        case(0x0102, |t| read_request(1, 8, t.writable.stag.0, t.writable.offset));
        case(0x0104, |t| read_request(1, 8, t.readable.stag.0, u64::MAX - 3));
    }
}

#[test]
fn headers_that_cannot_be() {
    for crc in CRC {
        let case = |code, headers, ulpdu: &[u8]| Target::new(crc).refuses(code, headers, ulpdu);
        let altered = |mut ulpdu: Vec<u8>, at: usize, to: u8| {
            ulpdu[at] = to;
            ulpdu
        };
        case(0x1206, 18, &altered(send(1, b"x"), 0, 0x42));
        case(0x1104, 14, &altered(tagged(0, true, 1, 1, b"x"), 0, 0xc2));
        case(0x0205, 18, &altered(send(1, b"x"), 1, 0x83));
        case(0x0206, 18, &altered(send(1, b"x"), 1, 0x4f));
        case(0x0206, 18, &altered(send(1, b"x"), 1, 0x40));
        case(0x0206, 14, &altered(tagged(0, true, 1, 1, b"x"), 1, 0x43));
        case(0x1201, 18, &untagged(3, true, [0, 1, 1, 0], b"x"));
        case(0x1201, 18, &untagged(3, true, [0, 9, 1, 0], b"x"));
        case(0x1201, 18, &untagged(1, true, [0, 0, 1, 0], &[0; 28]));
        // A response to nothing.
        case(0x0206, 14, &tagged(2, true, 1, 1, b"x"));
        case(0x0206, 14, &tagged(2, true, 1, 1, b""));
        // Nothing to name.
        case(0x1000, 0, &[0x41, 0x43]);
        case(0x1000, 0, &[]);
        case(0x1000, 0, &send(1, b"")[..17]);
    }
}

#[test]
fn messages_out_of_sequence_or_without_room() {
    for crc in CRC {
        let case = |code, ulpdu: &[u8]| Target::new(crc).refuses(code, 18, ulpdu);
        case(0x1203, &send(2, b"x"));
        case(0x1203, &send(0, b"x"));
        case(0x1204, &untagged(3, true, [0, 0, 1, 1], b"x"));
        case(0x1204, &untagged(3, true, [0, 0, 1, u32::MAX], b"x"));
        case(0x1205, &send(1, &[7; 101]));
        case(0x1205, &send(1, &pattern(30_000, 1)));
        case(0x0109, &untagged(4, true, [0x1234, 0, 1, 0], b"x"));
        case(0x0109, &untagged(6, true, [0, 0, 1, 0], b""));
        case(0x1203, &read_request(2, 0, 0, 0));
        case(0x1204, &untagged(1, true, [0, 1, 1, 4], &[0; 28]));
        case(0x1205, &untagged(1, true, [0, 1, 1, 0], &[0; 29]));
        case(0x02ff, &untagged(1, true, [0, 1, 1, 0], &[0; 27]));
        case(0x02ff, &untagged(1, false, [0, 1, 1, 0], &[0; 28]));
        // The receive is taken by a first message.
        let mut target = Target::new(crc);
        target.raw.say(&send(1, b"one"));
        assert_eq!(poll_all(&mut target.raw.queue), [Short::Received(b"one".to_vec(), None)]);
        target.refuses(0x1202, 18, &send(2, b""));
        // Segments of a message.
        let begun = || {
            let mut target = Target::new(crc);
            target.raw.say(&untagged(3, false, [0, 0, 1, 0], &[0; 60]));
            target
        };
        begun().refuses(0x1204, 18, &untagged(3, true, [0, 0, 1, 61], &[7; 1]));
        begun().refuses(0x1204, 18, &untagged(3, true, [0, 0, 1, 0], &[7; 1]));
        begun().refuses(0x1205, 18, &untagged(3, true, [0, 0, 1, 60], &[7; 41]));
        begun().refuses(0x1203, 18, &untagged(3, true, [0, 0, 2, 60], &[7; 1]));
        begun().refuses(0x0206, 18, &untagged(5, true, [0, 0, 1, 60], &[7; 1]));
    }
}

#[test]
fn more_reads_than_were_agreed_on() {
    for crc in CRC {
        let mut target = Target::new(crc);
        let RemoteBuffer { stag, offset } = target.readable;
        // Nothing goes out meanwhile: the queue of what is sent holds some of the responses, the table no more than two
        // others.
        let mut msn = 0;
        while target.raw.queue.receive_window().staging.len() > 1000 && msn < 1000 {
            msn += 1;
            target.raw.say(&read_request(msn, 100, stag.0, offset));
            if matches!(target.raw.queue.state, super::super::State::Last(_)) {
                break;
            }
        }
        assert!((3..40).contains(&msn), "{msn} reads were taken");
        let request = read_request(msn, 100, stag.0, offset);
        let ulpdus = target.raw.hear();
        let (terminate, responses) = ulpdus.split_last().unwrap();
        assert!(responses.iter().all(|response| response[1] == 0x42 && response.len() == 114));
        assert_eq!(terminate[18..22], [0x12, 0x02, 0xc0, 0]);
        assert_eq!(terminate[24..], request[..18]);
    }
}

/// A queue with an RDMA Read of 100 bytes under way: the sink's STag and offset.
fn reading(crc: bool, lent: bool) -> (Raw, u32, u64) {
    let mut raw = Raw::connected(config(crc));
    let memory = if lent { Payload::Region(Region::heap(100).slice(0, 100)) } else { Payload::Buf(Buf::zeroed(100)) };
    let from = RemoteBuffer { stag: Stag(5), offset: 6 };
    raw.queue.post(Work::Read { id: 1, into: Lease::whole(memory), from });
    raw.queue.ring();
    let [request] = &raw.hear()[..] else { panic!("one request") };
    assert_eq!(request[..18], untagged(1, true, [0, 1, 1, 0], &[]));
    assert_eq!(request[30..], [&100u32.to_be_bytes()[..], &5u32.to_be_bytes(), &6u64.to_be_bytes()].concat());
    let stag = u32::from_be_bytes(request[18..22].try_into().unwrap());
    (raw, stag, u64::from_be_bytes(request[22..30].try_into().unwrap()))
}

#[test]
fn responses_other_than_what_was_asked_for() {
    for (crc, lent) in [(false, false), (false, true), (true, false), (true, true)] {
        let case = |code, make: fn(u32, u64) -> Vec<u8>| {
            let (mut raw, stag, to) = reading(crc, lent);
            raw.say(&tagged(2, false, stag, to, &[0; 40]));
            let ulpdu = make(stag, to);
            raw.say(&ulpdu);
            let ulpdus = raw.hear();
            assert_eq!(ulpdus.len(), 1);
            assert_eq!(ulpdus[0][18..20], u16::to_be_bytes(code));
            let Some(Completion::Flushed { id: 1, memory }) = raw.queue.poll() else { panic!("it is flushed") };
            assert_eq!(bytes_of(&memory), [0; 100]);
        };
        case(0x1100, |stag, to| tagged(2, true, stag ^ 1, to + 40, &[9; 60]));
        case(0x1100, |stag, to| tagged(0, true, stag, to + 40, &[9; 60]));
        case(0x1101, |stag, to| tagged(2, true, stag, to, &[9; 60]));
        case(0x1101, |stag, to| tagged(2, true, stag, to + 41, &[9; 59]));
        case(0x1101, |stag, to| tagged(2, false, stag, to + 40, &[9; 61]));
        case(0x02ff, |stag, to| tagged(2, true, stag, to + 40, &[9; 59]));
        case(0x02ff, |stag, to| tagged(2, true, stag, to + 40, &[]));
        // And the right one.
        let (mut raw, stag, to) = reading(crc, lent);
        raw.say(&tagged(2, false, stag, to, &[1; 100]));
        assert!(raw.queue.poll().is_none());
        raw.say(&tagged(2, true, 0, 0, &[]));
        assert_eq!(poll_all(&mut raw.queue), [Short::Done(1)]);
    }
}

#[test]
fn a_crc_that_does_not_match() {
    for len in [8, 20_000] {
        for at in [0, 1, 3, 9, 17, 25, 27, 30] {
            let mut raw = Raw::accepted(config(true));
            let slice = Region::heap(32_768).slice(0, 32_768);
            let buffer = raw.queue.advertise(Payload::Region(slice.clone()), RemoteAccess::Write).unwrap();
            let mut bytes = fpdu(&tagged(0, true, buffer.stag.0, buffer.offset, &pattern(len, 3)), true);
            let at = if at > 20 { bytes.len() - 1 - (30 - at) } else { at };
            bytes[at] ^= 0x10;
            // A longer length than was sent: what follows is not there.
            bytes.extend([0; 8192]);
            feed(&mut raw.queue, &bytes);
            let told = raw.hear();
            assert_eq!(told.len(), 1, "byte {at} of {len}");
            assert_eq!(told[0], [untagged(7, true, [0, 2, 1, 0], &[]), [0x20, 2, 0, 0].to_vec()].concat());
            let mut there = alloc::vec![1; 32_768];
            slice.read(0, &mut there);
            assert!(there.iter().all(|byte| *byte == 0), "lent memory is not touched");
        }
    }
}

#[test]
fn a_terminate_ends_the_connection_and_is_not_answered() {
    for crc in CRC {
        let mut raw = Raw::connected(config(crc));
        raw.queue.post_receive(Buf::zeroed(4));
        raw.queue.post(Work::Send { id: 1, message: lease(b"x"), invalidate: None });
        raw.queue.ring();
        raw.say(&untagged(7, true, [0, 2, 1, 0], &[0x12, 0x02, 0, 0]));
        assert!(output(&raw.queue).is_empty());
        let cause = EndCause::ByPeer("it had posted no receive for a message");
        assert_eq!(poll_all(&mut raw.queue), [Short::Flushed(1), Short::ReceiveFlushed, Short::Ended(cause)]);
    }
}

#[test]
fn what_is_queued_goes_out_before_the_terminate() {
    let mut raw = Raw::connected(IwarpConfig { emss: 1460, ..config(false) });
    raw.queue.post(Work::Send { id: 1, message: lease(&pattern(10_000, 0)), invalidate: None });
    raw.queue.ring();
    // A part of the first FPDU is gone already.
    raw.queue.handle_sent(100);
    raw.say(&send(1, b"x"));
    assert!(poll_all(&mut raw.queue).is_empty());
    // What comes behind the breach means nothing.
    raw.say(&send(2, b"x"));
    let rest = output(&raw.queue);
    let at = rest.len() - (2 + 18 + 4 + 2 + 18 + 4);
    assert_eq!(rest[at..at + 4], [0, 42, 0x41, 0x47]);
    raw.queue.handle_sent(rest.len());
    let cause = EndCause::PeerProtocol("a message for which no receive is posted");
    assert_eq!(poll_all(&mut raw.queue), [Short::Done(1), Short::Ended(cause)]);
}

#[test]
fn an_empty_read_names_no_buffer_and_is_answered() {
    let mut raw = Raw::accepted(config(false));
    raw.say(&read_request(1, 0, 1, u64::MAX));
    assert_eq!(raw.hear(), [tagged(2, true, 0x0a0b_0c0d, 0x77, &[])]);
    assert!(poll_all(&mut raw.queue).is_empty());
}
