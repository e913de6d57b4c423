//! MPA startup, byte by byte.

use alloc::vec;
use alloc::vec::Vec;

use iscsi_memory::Buf;

use super::super::{IwarpConfig, IwarpQueue};
use super::raw::{REPLY, REQUEST, Raw, fpdu, mpa, tagged};
use super::wire::{Short, drain, feed, lease, poll_all};
use crate::queue::{EndCause, Established, QueuePair, StreamQueue, Work};
use iscsi_proto::connection::StreamEnd;

fn config() -> IwarpConfig {
    IwarpConfig { private_data: vec![0x80, 0, 0, 0], ird: 7, ord: 9, ..IwarpConfig::default() }
}

#[test]
fn a_request_byte_by_byte() {
    let mut enhanced = b"MPA ID Req Frame\x10\x02\x00\x08\x00\x07\x00\x09\x80\0\0\0".to_vec();
    assert_eq!(drain(&mut IwarpQueue::connect(config())), enhanced);
    enhanced[16] = 0x50;
    assert_eq!(drain(&mut IwarpQueue::connect(IwarpConfig { crc: true, ..config() })), enhanced);
    let plain = b"MPA ID Req Frame\x00\x01\x00\x04\x80\0\0\0";
    assert_eq!(drain(&mut IwarpQueue::connect(IwarpConfig { revision_two: false, ..config() })), plain);
    let peer = b"MPA ID Req Frame\x10\x02\x00\x08\x80\x07\x80\x09\x80\0\0\0";
    assert_eq!(drain(&mut IwarpQueue::connect(IwarpConfig { peer_to_peer: true, ..config() })), peer);
}

/// What a responder answers to a request, and the depth that it then has.
fn reply_to(config: IwarpConfig, flags: u8, revision: u8, private: &[u8]) -> (Vec<u8>, Option<Established>) {
    let mut queue = IwarpQueue::accept(config);
    let request = mpa(REQUEST, flags, revision, private);
    for byte in &request {
        assert_eq!(feed(&mut queue, &[*byte]), 1);
    }
    let established = match poll_all(&mut queue).pop() {
        Some(Short::Established(established)) => Some(established),
        _ => None,
    };
    (drain(&mut queue), established)
}

#[test]
fn a_reply_byte_by_byte() {
    // As Linux's ib_iser over soft-iWARP asks: IRD 128, ORD 1, four bytes of private data.
    let (reply, established) = reply_to(config(), 0x10, 2, &[0, 128, 0, 1, 0x80, 0, 0, 0]);
    assert_eq!(reply, mpa(REPLY, 0x10, 2, &[0, 7, 0, 9, 0x80, 0, 0, 0]));
    assert_eq!(established, Some(Established { peer_private: Some(0x80), read_depth: 9, served_depth: 7 }));
    // A shallower initiator lowers our ORD.
    let (reply, established) = reply_to(config(), 0x10, 2, &[0, 2, 0, 100]);
    assert_eq!(reply, mpa(REPLY, 0x10, 2, &[0, 7, 0, 2, 0x80, 0, 0, 0]));
    assert_eq!(established, Some(Established { peer_private: None, read_depth: 2, served_depth: 7 }));
    // RFC 6581 9.1: not negotiated.
    let (reply, established) = reply_to(config(), 0x10, 2, &[0x3f, 0xff, 0x3f, 0xff]);
    assert_eq!(reply, mpa(REPLY, 0x10, 2, &[0x3f, 0xff, 0x3f, 0xff, 0x80, 0, 0, 0]));
    assert_eq!(established.map(|established| established.read_depth), Some(9));
    // The CRC is used when either wants it.
    assert_eq!(reply_to(config(), 0x50, 2, &[0, 7, 0, 9]).0[16..18], [0x50, 2]);
    assert_eq!(reply_to(IwarpConfig { crc: true, ..config() }, 0, 1, &[]).0[16..18], [0x40, 1]);
    // Unenhanced, in both revisions; in revision 1 the bit means nothing.
    assert_eq!(reply_to(config(), 0, 1, &[9]).0, mpa(REPLY, 0, 1, &[0x80, 0, 0, 0]));
    assert_eq!(reply_to(config(), 0, 2, &[9]).0, mpa(REPLY, 0, 2, &[0x80, 0, 0, 0]));
    assert_eq!(reply_to(config(), 0x10, 1, &[9]).0, mpa(REPLY, 0, 1, &[0x80, 0, 0, 0]));
}

#[test]
fn the_indication_that_an_initiator_can_give_is_agreed() {
    let none = IwarpConfig { ird: 0, ..config() };
    let answer = |private: &[u8]| reply_to(none.clone(), 0x10, 2, private).0[20..24].to_vec();
    assert_eq!(answer(&[0x80, 7, 0xc0, 9]), [0x80, 0, 0x80, 7], "an empty Write is preferred");
    assert_eq!(answer(&[0x80, 7, 0x40, 9]), [0x80, 1, 0x40, 7], "an empty Read needs a depth of one");
    assert_eq!(answer(&[0xc0, 7, 0x00, 9]), [0x80, 0, 0x80, 7], "an empty Send would take a receive");
    assert_eq!(answer(&[0x00, 7, 0xc0, 9]), [0, 0, 0, 7], "without A the others mean nothing");
}

#[test]
fn markers_are_refused_with_a_reply() {
    let mut queue = IwarpQueue::accept(config());
    queue.post_receive(Buf::zeroed(4));
    feed(&mut queue, &mpa(REQUEST, 0x90, 2, &[0, 7, 0, 9]));
    assert!(poll_all(&mut queue).is_empty(), "the end comes when the reply is sent");
    assert_eq!(drain(&mut queue)[16..18], [0x30, 2]);
    let text = "the peer wants MPA markers, which are not supported";
    let expected = [Short::ReceiveFlushed, Short::Ended(EndCause::PeerProtocol(text))];
    assert_eq!(poll_all(&mut queue), expected);
}

#[test]
fn malformed_requests_end_in_silence() {
    let long = mpa(REQUEST, 0, 1, &[0; 513]);
    let mut short = mpa(REQUEST, 0x10, 2, &[0, 1, 0]);
    short.extend([0; 8]);
    let mut other = mpa(REQUEST, 0, 1, &[]);
    other[9] ^= 1;
    let early = [mpa(REQUEST, 0, 1, &[]), fpdu(&tagged(0, true, 0, 0, &[]), false)].concat();
    for bad in [
        long,
        short,
        other,
        early,
        mpa(REPLY, 0, 1, &[]),
        mpa(REQUEST, 0, 0, &[]),
        mpa(REQUEST, 0, 3, &[]),
        b"\x43\x87\0\0".to_vec(),
    ] {
        let mut queue = IwarpQueue::accept(config());
        feed(&mut queue, &bad);
        assert!(drain(&mut queue).is_empty());
        assert!(matches!(poll_all(&mut queue)[..], [Short::Ended(EndCause::PeerProtocol(_))]), "{bad:02x?}");
        assert!(queue.receive_window().is_empty());
    }
}

/// How an initiator takes an answer.
fn taken(config: IwarpConfig, reply: &[u8]) -> (IwarpQueue, Vec<Short>) {
    let mut queue = IwarpQueue::connect(config);
    drain(&mut queue);
    feed(&mut queue, reply);
    let all = poll_all(&mut queue);
    (queue, all)
}

#[test]
fn answers_are_taken_for_what_they_are() {
    let accepted =
        |depth| Short::Established(Established { peer_private: Some(0), read_depth: depth, served_depth: 7 });
    let (queue, all) = taken(config(), &mpa(REPLY, 0x50, 2, &[0, 3, 0, 7, 0, 0, 0, 0]));
    assert_eq!(all, [accepted(3)]);
    assert!(queue.uses_crc());
    assert_eq!(queue.peer_private_data(), [0; 4]);
    // RFC 6581 9.1: what is not negotiated stays as it is.
    assert_eq!(taken(config(), &mpa(REPLY, 0x10, 2, &[0x3f, 0xff, 0x3f, 0xff, 0, 0, 0, 0])).1, [accepted(9)]);
    let one = IwarpConfig { revision_two: false, ..config() };
    assert_eq!(taken(one.clone(), &mpa(REPLY, 0, 1, &[0, 0, 0, 0])).1, [accepted(9)]);

    let (queue, all) = taken(config(), &mpa(REPLY, 0x30, 2, &[0, 3, 0, 7]));
    assert_eq!((all, queue.wants_revision_one()), (vec![Short::Ended(EndCause::Rejected)], false));
    let (queue, all) = taken(config(), &mpa(REPLY, 0x20, 1, &[]));
    assert_eq!((all, queue.wants_revision_one()), (vec![Short::Ended(EndCause::Rejected)], true));

    for (config, reply) in [
        (config(), mpa(REPLY, 0x90, 2, &[0, 3, 0, 7])),
        (config(), mpa(REPLY, 0, 2, &[0, 3, 0, 7])),
        (one, mpa(REPLY, 0x10, 2, &[0, 3, 0, 7])),
        (config(), mpa(REQUEST, 0x10, 2, &[0, 3, 0, 7])),
    ] {
        let (mut queue, all) = taken(config, &reply);
        assert!(matches!(all[..], [Short::Ended(EndCause::PeerProtocol(_))]), "{all:?}");
        assert!(drain(&mut queue).is_empty());
    }
}

#[test]
fn who_closes_on_revision_two_may_know_revision_one() {
    let (mut queue, _) = taken(config(), &[]);
    queue.handle_stream_end(StreamEnd::EndOfStream);
    assert_eq!(poll_all(&mut queue), [Short::Ended(EndCause::Rejected)]);
    assert!(queue.wants_revision_one());
    let (mut queue, _) = taken(config(), b"MPA");
    queue.handle_stream_end(StreamEnd::Broken);
    assert_eq!(poll_all(&mut queue), [Short::Ended(EndCause::Broken)]);
    assert!(!queue.wants_revision_one());
}

#[test]
fn an_initiator_that_cannot_do_as_the_answer_says_tells_so() {
    for (private, code, crc) in [
        ([0x80, 3, 0x80, 8], 0x2006u16, false),
        ([0x80, 3, 0x40, 7], 0x2007, false),
        // The peer wants the CRC, and looks at that of the Terminate, too.
        ([0x80, 3, 0x80, 8], 0x2006, true),
    ] {
        let mut raw = Raw { queue: IwarpQueue::connect(IwarpConfig { peer_to_peer: true, ..config() }), crc };
        drain(&mut raw.queue);
        feed(&mut raw.queue, &mpa(REPLY, if crc { 0x50 } else { 0x10 }, 2, &private));
        let expected =
            [&[0x41, 0x47, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0][..], &code.to_be_bytes(), &[0, 0]];
        assert_eq!(raw.hear(), [expected.concat()]);
        assert!(matches!(poll_all(&mut raw.queue)[..], [Short::Ended(EndCause::PeerProtocol(_))]));
    }
}

#[test]
fn an_initiator_that_was_asked_to_begins_with_an_empty_write() {
    let mut raw = Raw { queue: IwarpQueue::connect(IwarpConfig { peer_to_peer: true, ..config() }), crc: false };
    raw.queue.post(Work::Send { id: 1, message: lease(b"x"), invalidate: None });
    raw.queue.ring();
    drain(&mut raw.queue);
    feed(&mut raw.queue, &mpa(REPLY, 0x10, 2, &[0x80, 3, 0x80, 7]));
    assert_eq!(raw.hear(), [tagged(0, true, 0, 0, &[]), super::raw::send(1, b"x")]);
}

#[test]
fn a_responder_that_says_nothing_is_nudged_with_an_empty_write() {
    let mut raw = Raw::connected(config());
    raw.queue.post_receive(Buf::zeroed(16));
    raw.queue.post(Work::Send { id: 1, message: lease(b"x"), invalidate: None });
    raw.queue.ring();
    raw.queue.nudge();
    assert_eq!(raw.hear(), [super::raw::send(1, b"x")], "what is still to be sent will do");
    raw.queue.nudge();
    assert_eq!(raw.hear(), [tagged(0, true, 0, 0, &[])]);
    raw.say(&super::raw::send(1, b"y"));
    raw.queue.nudge();
    assert_eq!(raw.hear(), Vec::<Vec<u8>>::new(), "a peer that was heard looks by itself");
}
