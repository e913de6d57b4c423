//! What a queue sends, header by header (RFC 5040 4, RFC 5041 4, RFC 5044 4), read by other code than its own.

use alloc::vec::Vec;

use iscsi_memory::Payload;

use super::super::IwarpConfig;
use super::raw::{Raw, read_request, tagged, untagged};
use super::wire::{lease, pattern};
use crate::queue::{QueuePair, RemoteAccess, RemoteBuffer, Stag, Work};

/// Bytes of payload in a whole segment of the EMSS below, untagged and tagged.
const EMSS: u32 = 1000;
const UNTAGGED: usize = 994 - 18;
const TAGGED: usize = 994 - 14;

#[test]
fn messages_are_cut_into_segments_of_one_numbering() {
    for (crc, copy_limit) in [(false, 2048), (true, 2048), (false, 0), (true, 0)] {
        let mut raw = Raw::connected(IwarpConfig { crc, copy_limit, emss: EMSS, ..IwarpConfig::default() });
        let mut post = |work| {
            raw.queue.post(work);
            raw.queue.ring();
        };
        let long = pattern(2 * UNTAGGED + 5, 1);
        let to = RemoteBuffer { stag: Stag(0x0102_0304), offset: u64::MAX / 2 };
        let mut expected: Vec<Vec<u8>> = Vec::new();
        // One MSN a message, from 1 on; each remainder of padding.
        for (msn, len) in [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4)] {
            post(Work::Send { id: 1, message: lease(&long[..len]), invalidate: None });
            expected.push(untagged(3, true, [0, 0, msn, 0], &long[..len]));
        }
        post(Work::Send { id: 1, message: lease(&long), invalidate: Some(Stag(0x1234_5678)) });
        for (at, last) in [(0, false), (UNTAGGED, false), (2 * UNTAGGED, true)] {
            let payload = &long[at..(at + UNTAGGED).min(long.len())];
            expected.push(untagged(4, last, [0x1234_5678, 0, 6, at as u32], payload));
        }
        let written = pattern(TAGGED + 7, 2);
        post(Work::Write { id: 1, from: lease(&written), to });
        expected.push(tagged(0, false, to.stag.0, to.offset, &written[..TAGGED]));
        expected.push(tagged(0, true, to.stag.0, to.offset + TAGGED as u64, &written[TAGGED..]));
        post(Work::Send { id: 1, message: lease(b"x"), invalidate: None });
        expected.push(untagged(3, true, [0, 0, 7, 0], b"x"));
        let mut heard = raw.hear();
        // What is sent from its own memory is driven by what has left.
        while heard.len() < expected.len() {
            let more = raw.hear();
            assert!(!more.is_empty(), "{} of {} segments", heard.len(), expected.len());
            heard.extend(more);
        }
        assert_eq!(heard, expected);
    }
}

#[test]
fn responses_are_cut_into_segments_that_name_the_sink_alone() {
    for crc in [false, true] {
        let mut raw = Raw::accepted(IwarpConfig { crc, emss: EMSS, ..IwarpConfig::default() });
        let data = pattern(2 * TAGGED + 1, 3);
        let from = raw.queue.advertise(Payload::Buf(super::wire::buf(&data)), RemoteAccess::Read).unwrap();
        raw.say(&read_request(1, data.len() as u32, from.stag.0, from.offset));
        raw.say(&read_request(2, 4, from.stag.0, from.offset + 8));
        let segment = |last, at: usize, len: usize| tagged(2, last, 0x0a0b_0c0d, 0x77 + at as u64, &data[at..at + len]);
        let second = tagged(2, true, 0x0a0b_0c0d, 0x77, &data[8..12]);
        let expected =
            [segment(false, 0, TAGGED), segment(false, TAGGED, TAGGED), segment(true, 2 * TAGGED, 1), second];
        let mut heard = raw.hear();
        while heard.len() < expected.len() {
            let more = raw.hear();
            assert!(!more.is_empty(), "{} segments", heard.len());
            heard.extend(more);
        }
        assert_eq!(heard, expected);
    }
}
