//! Two of our queues against each other.

use alloc::vec::Vec;

use iscsi_memory::{Buf, Lease, Payload, Region};
use proptest::prelude::*;

use super::super::{IwarpConfig, IwarpQueue};
use super::wire::{Chunks, Short, Wire, buf, bytes_of, lease, pattern, poll_all};
use crate::queue::{Completion, EndCause, QueuePair, RemoteAccess, RemoteBuffer, Work};

fn config(crc: bool, emss: u32, seed: u64) -> IwarpConfig {
    IwarpConfig { crc, emss, seed, ..IwarpConfig::default() }
}

fn region(bytes: &[u8]) -> Payload {
    let region = Region::heap(bytes.len());
    region.reserve_for_write(0, bytes.len() as u64).unwrap();
    region.write(0, bytes);
    Payload::Region(region.slice(0, bytes.len()))
}

#[test]
fn a_message_goes_there_and_back() {
    let mut wire = Wire::established(config(false, 1460, 1), config(false, 1460, 2));
    let [client, server] = &mut wire.ends;
    client.post_receive(Buf::zeroed(128));
    server.post(Work::Send { id: 3, message: lease(b"answer"), invalidate: None });
    server.ring();
    wire.run();
    let [client, server] = &mut wire.ends;
    assert_eq!(poll_all(client), [Short::Received(b"answer".to_vec(), None)]);
    assert_eq!(poll_all(server), [Short::Done(3)]);
}

#[test]
fn a_responder_is_silent_until_it_has_heard_an_fpdu() {
    let mut wire = Wire::new(config(false, 1460, 1), config(false, 1460, 2), Chunks::WHOLE);
    let [client, server] = &mut wire.ends;
    server.post(Work::Send { id: 1, message: lease(b"early"), invalidate: None });
    server.ring();
    client.post_receive(Buf::zeroed(16));
    wire.run();
    let [client, server] = &mut wire.ends;
    assert!(matches!(poll_all(client)[..], [Short::Established(_)]));
    assert!(matches!(poll_all(server)[..], [Short::Established(_)]));
    // An empty RDMA Write is enough, and needs no buffer.
    client.post(Work::Write { id: 2, from: lease(b""), to: RemoteBuffer::default() });
    client.ring();
    wire.run();
    let [client, server] = &mut wire.ends;
    assert_eq!(poll_all(client), [Short::Received(b"early".to_vec(), None), Short::Done(2)]);
    assert_eq!(poll_all(server), [Short::Done(1)]);
}

/// Writes and reads of `len` bytes between every kind of memory.
fn transfer(crc: [bool; 2], emss: u32, chunks: Chunks, len: usize, lent: bool, staging: usize) {
    let memory = |bytes: &[u8]| if lent { region(bytes) } else { Payload::Buf(buf(bytes)) };
    let configs = [0, 1].map(|end| IwarpConfig { staging_size: staging, ..config(crc[end], emss, end as u64) });
    let [client, server] = configs;
    let mut wire = Wire::established(client, server);
    wire.chunks = chunks;
    let data = pattern(len, 9);
    let [client, server] = &mut wire.ends;
    let sink = client.advertise(memory(&alloc::vec![0; len + 2]), RemoteAccess::Write).unwrap();
    let source = client.advertise(memory(&data), RemoteAccess::Read).unwrap();
    client.post_receive(Buf::zeroed(len + 8));
    client.post_receive(Buf::zeroed(8));
    let to = RemoteBuffer { offset: sink.offset + 1, ..sink };
    server.post(Work::Write { id: 1, from: Lease::whole(memory(&data)), to });
    server.post(Work::Send { id: 2, message: lease(&pattern(len, 1)), invalidate: Some(sink.stag) });
    let into = Lease::part(memory(&alloc::vec![0xee; len + 3]), 2, len);
    server.post(Work::Read { id: 3, into, from: source });
    server.post(Work::Send { id: 4, message: lease(b"end"), invalidate: None });
    server.ring();
    wire.run();
    let [client, server] = &mut wire.ends;
    let expected = [Short::Received(pattern(len, 1), Some(sink.stag)), Short::Received(b"end".to_vec(), None)];
    assert_eq!(poll_all(client), expected);
    let written = bytes_of(&client.withdraw(sink.stag).unwrap());
    assert_eq!((written[0], &written[1..=len], written[len + 1]), (0, &data[..], 0));
    assert_eq!(bytes_of(&client.withdraw(source.stag).unwrap()), data);
    for id in [1, 2] {
        assert!(matches!(server.poll(), Some(Completion::Done { id: done, .. }) if done == id));
    }
    let Some(Completion::Done { id: 3, memory }) = server.poll() else { panic!("the read is done") };
    let read = bytes_of(&memory);
    assert_eq!((&read[..2], &read[2..len + 2], read[len + 2]), (&[0xee; 2][..], &data[..], 0xee));
    assert!(matches!(server.poll(), Some(Completion::Done { id: 4, .. })));
    assert!(server.poll().is_none());
    assert_eq!(client.uses_crc(), crc[0] || crc[1]);
}

#[test]
fn transfers_of_all_sizes_arrive() {
    for len in [0, 1, 3, 4, 255, 256, 257, 1436, 1440, 1441, 8192, 65_535, 300_000] {
        for (crc, lent) in [([false; 2], false), ([false; 2], true), ([true, false], false), ([false, true], true)] {
            for emss in [200, 1460, 65_483] {
                transfer(crc, emss, Chunks::WHOLE, len, lent, 64 << 10);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn transfers_arrive_in_any_chunks(
        crc: [bool; 2],
        emss in 100u32..70_000,
        chunks in 1u64..,
        len in 0usize..200_000,
        lent: bool,
        staging in prop_oneof![Just(4usize << 10), Just(64 << 10)],
    ) {
        transfer(crc, emss, Chunks(chunks), len, lent, staging);
    }
}

#[test]
fn payload_of_lent_memory_is_not_copied_without_crc() {
    let mut wire = Wire::established(config(false, 65_483, 1), config(false, 65_483, 2));
    let len = 1 << 20;
    let before = wire.ends[1].copied();
    let [client, server] = &mut wire.ends;
    let sink = client.advertise(Payload::Buf(Buf::zeroed(len)), RemoteAccess::Write).unwrap();
    server.post(Work::Write { id: 1, from: Lease::whole(region(&pattern(len, 0))), to: sink });
    server.ring();
    wire.run();
    let [client, server] = &mut wire.ends;
    assert_eq!(server.copied(), before);
    assert_eq!(client.copied(), 0);
    let source = client.advertise(region(&pattern(len, 1)), RemoteAccess::Read).unwrap();
    for id in 2..6 {
        let into = Lease::whole(Payload::Region(Region::heap(len).slice(0, len)));
        server.post(Work::Read { id, into, from: source });
    }
    server.ring();
    wire.run();
    assert_eq!(wire.ends.each_ref().map(|end| end.copied()), [0, before]);
}

/// Every read of both ends at once, more of them than may be under way.
#[test]
fn reads_of_both_ends_take_turns_within_their_depth() {
    let depth = IwarpConfig { ord: 3, ird: 2, ..config(false, 1460, 5) };
    let mut wire = Wire::established(depth.clone(), depth);
    wire.chunks = Chunks(77);
    let data: Vec<_> = (0..10).map(|i| pattern(9000 + i, i as u8)).collect();
    let mut expected = Vec::new();
    for end in 0..2 {
        for (i, bytes) in data.iter().enumerate() {
            let source = wire.ends[1 - end].advertise(region(bytes), RemoteAccess::Read).unwrap();
            let into = Lease::whole(Payload::Buf(Buf::zeroed(bytes.len())));
            wire.ends[end].post(Work::Read { id: i as u64, into, from: source });
            expected.push(bytes.clone());
        }
        wire.ends[end].ring();
    }
    wire.run();
    for end in &mut wire.ends {
        for (i, bytes) in data.iter().enumerate() {
            let Some(Completion::Done { id, memory }) = end.poll() else { panic!("read {i} is done") };
            assert_eq!((id, &bytes_of(&memory)), (i as u64, bytes));
        }
        assert!(end.poll().is_none());
    }
}

fn ended(queue: &mut IwarpQueue) -> EndCause {
    match poll_all(queue).pop() {
        Some(Short::Ended(cause)) => cause,
        other => panic!("no end but {other:?}"),
    }
}

#[test]
fn disconnect_sends_what_is_posted() {
    let mut wire = Wire::established(config(true, 1460, 1), config(false, 1460, 2));
    let [client, server] = &mut wire.ends;
    server.post_receive(Buf::zeroed(100_000));
    server.post_receive(Buf::zeroed(8));
    let source = server.advertise(region(&[1; 8]), RemoteAccess::Read).unwrap();
    client.post_receive(Buf::zeroed(8));
    client.post(Work::Send { id: 1, message: lease(&pattern(90_000, 4)), invalidate: None });
    client.post(Work::Read { id: 2, into: lease(&[0; 8]), from: source });
    client.post(Work::Send { id: 3, message: lease(b"bye"), invalidate: None });
    client.disconnect();
    client.disconnect();
    wire.run();
    let [client, server] = &mut wire.ends;
    let expected =
        [Short::Done(1), Short::Flushed(2), Short::Flushed(3), Short::ReceiveFlushed, Short::Ended(EndCause::Closed)];
    assert_eq!(poll_all(client), expected);
    let expected = [
        Short::Received(pattern(90_000, 4), None),
        Short::Received(b"bye".to_vec(), None),
        Short::Ended(EndCause::PeerClosed),
    ];
    assert_eq!(poll_all(server), expected);
    assert_eq!(bytes_of(&server.withdraw(source.stag).unwrap()), [1; 8]);
}

#[test]
fn whatever_is_posted_comes_back_once_when_the_stream_breaks_at_any_byte() {
    for chunk in 1..200 {
        let mut wire = Wire::new(config(false, 1460, 1), config(chunk % 2 == 0, 1460, 2), Chunks(chunk));
        for end in &mut wire.ends {
            for _ in 0..3 {
                end.post_receive(Buf::zeroed(6000));
            }
            for id in 0..3 {
                end.post(Work::Send { id, message: lease(&pattern(5000, 0)), invalidate: None });
            }
            end.ring();
        }
        for _ in 0..chunk {
            wire.step();
        }
        wire.cut();
        for end in &mut wire.ends {
            let all = poll_all(end);
            let count = |wanted: fn(&Short) -> bool| all.iter().filter(|short| wanted(short)).count();
            assert_eq!(count(|s| matches!(s, Short::Received(..) | Short::ReceiveFlushed)), 3, "{all:?}");
            assert_eq!(count(|s| matches!(s, Short::Done(_) | Short::Flushed(_))), 3, "{all:?}");
            assert_eq!(all.last(), Some(&Short::Ended(EndCause::Broken)));
            end.post(Work::Send { id: 9, message: lease(b"late"), invalidate: None });
            end.post_receive(Buf::zeroed(1));
            assert_eq!(poll_all(end), [Short::Flushed(9), Short::ReceiveFlushed]);
        }
    }
}

#[test]
fn a_buffer_withdrawn_under_a_read_is_given_back_at_once_and_its_bytes_end_there() {
    let mut wire = Wire::established(config(false, 1460, 1), config(false, 1460, 2));
    let [client, server] = &mut wire.ends;
    let data = pattern(100_000, 3);
    let source = client.advertise(Payload::Buf(buf(&data)), RemoteAccess::Read).unwrap();
    server.post(Work::Read { id: 1, into: lease(&[0; 100_000]), from: source });
    server.ring();
    wire.step();
    // The request has come, and the first segments of the response are queued.
    let memory = wire.ends[0].withdraw(source.stag).unwrap();
    assert_eq!(bytes_of(&memory), data);
    drop(memory);
    wire.run();
    let [client, server] = &mut wire.ends;
    assert_eq!(ended(client), EndCause::PeerProtocol("an RDMA Read from a buffer that is not advertised"));
    assert_eq!(ended(server), EndCause::ByPeer("it does not know the STag of an RDMA Read"));
}
