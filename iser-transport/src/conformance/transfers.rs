//! RDMA Writes and Reads.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use iscsi_memory::{Buf, Lease, Payload, Region};

use super::rig::{Rig, buf, bytes, lent, pattern};
use super::{End, Harness, Plan};
use crate::queue::{RemoteAccess, RemoteBuffer, Work};
use crate::random::Random;

/// A peer that hears of a Write looks at once.
pub(super) fn a_message_comes_after_the_writes_before_it(harness: &mut dyn Harness) {
    let mut rig = Rig::new(harness);
    let region = lent(256 << 10);
    let len = (256 << 10).min(rig.queue(End::Passive).limits().transfer);
    let to = rig.advertise(End::Active, Payload::Region(region.slice(0, 256 << 10)), RemoteAccess::Write);
    let mut random = Random::new(5);
    for n in 0..30 {
        rig.receive(End::Active, 1, 128);
        let len = 1 + random.below(len as u64) as usize;
        let at = random.below((256 << 10) - len as u64);
        let data = pattern(n, len);
        let half = len / 2;
        // One list, one doorbell: two Writes and the response.
        rig.stage(End::Passive, Lease::part(buf(&data), 0, half), |id, from| Work::Write {
            id,
            from,
            to: RemoteBuffer { offset: to.offset + at, ..to },
        });
        rig.stage(End::Passive, Lease::part(buf(&data), half, len - half), |id, from| Work::Write {
            id,
            from,
            to: RemoteBuffer { offset: to.offset + at + half as u64, ..to },
        });
        rig.send(End::Passive, &[n as u8; 48]);
        assert_eq!(rig.message(End::Active).0, [n as u8; 48]);
        let mut there = vec![0; len];
        region.read(at, &mut there);
        assert!(there == data, "round {n}: a message came before the data of a Write posted before it");
    }
    rig.withdraw(End::Active, to.stag);
    rig.close();
}

pub(super) fn memory_of_either_kind_is_written(harness: &mut dyn Harness) {
    let mut rig = Rig::new(harness);
    rig.receive(End::Active, 4, 128);
    let source = lent(10_000);
    source.write(0, &pattern(3, 10_000));
    let from_region = |start| Lease::part(Payload::Region(source.slice(1000, 9000)), start, 4000);
    let private = |start: usize| Lease::part(buf(&pattern(3, 10_000)), start + 1000, 4000);
    for (n, (from, into_region)) in
        [(from_region(0), true), (from_region(4500), false), (private(0), true), (private(4500), false)]
            .into_iter()
            .enumerate()
    {
        let expected = pattern(3, 10_000)[if n % 2 == 0 { 1000..5000 } else { 5500..9500 }].to_vec();
        let sink = lent(16_384);
        let memory =
            if into_region { Payload::Region(sink.slice(5000, 4100)) } else { Payload::Buf(Buf::zeroed(4100)) };
        let to = rig.advertise(End::Active, memory, RemoteAccess::Write);
        let id = rig.write(End::Passive, from, RemoteBuffer { offset: to.offset + 100, ..to });
        rig.send(End::Passive, &[1]);
        rig.message(End::Active);
        rig.done(End::Passive, id);
        let there = bytes(&rig.withdraw(End::Active, to.stag));
        assert!(there[100..] == expected, "case {n}: what was written is there");
        assert!(there[..100].iter().all(|byte| *byte == 0), "case {n}: and nothing before it");
    }
    rig.close();
}

pub(super) fn memory_of_either_kind_is_read(harness: &mut dyn Harness) {
    let mut rig = Rig::new(harness);
    let data = pattern(8, 9000);
    for (n, (from_region, into_region)) in
        [(true, true), (true, false), (false, true), (false, false)].into_iter().enumerate()
    {
        let memory = |region: &Arc<Region>, lent: bool, len: usize| {
            if lent { Payload::Region(region.slice(500, len)) } else { Payload::Buf(Buf::zeroed(len)) }
        };
        let (source, sink) = (lent(20_000), lent(20_000));
        let mut advertised = memory(&source, from_region, 9000);
        advertised.write(0, &data);
        let from = rig.advertise(End::Active, advertised, RemoteAccess::Read);
        let into = Lease::part(memory(&sink, into_region, 9000), 50, 8000);
        let id = rig.read(End::Passive, into, RemoteBuffer { offset: from.offset + 1000, ..from });
        let there = bytes(&rig.done(End::Passive, id));
        assert!(there[50..8050] == data[1000..], "case {n}: what was read is there");
        assert!(there[..50].iter().chain(&there[8050..]).all(|byte| *byte == 0), "case {n}: and nothing around it");
        rig.withdraw(End::Active, from.stag);
    }
    rig.close();
}

/// Reads, and a message behind them, while only few Reads may be in flight.
pub(super) fn reads_beyond_the_depth_wait(harness: &mut dyn Harness) {
    for depth in [1, 2, 5] {
        let mut rig = Rig::connected(harness, &Plan { read_depth: [depth, depth], ..Plan::default() });
        rig.receive(End::Active, 2, 128);
        let data = pattern(4, 64 * 700);
        let from = rig.advertise(End::Active, buf(&data), RemoteAccess::Read);
        let ids: Vec<u64> = (0..64)
            .map(|n| {
                let into = Lease::whole(Payload::Buf(Buf::zeroed(700)));
                rig.read(End::Passive, into, RemoteBuffer { offset: from.offset + n * 700, ..from })
            })
            .collect();
        rig.send(End::Passive, b"behind the Reads");
        for (n, id) in ids.into_iter().enumerate() {
            assert!(bytes(&rig.done(End::Passive, id)) == data[n * 700..(n + 1) * 700], "Read {n} brings other data");
        }
        assert_eq!(rig.message(End::Active).0, b"behind the Reads");
        rig.withdraw(End::Active, from.stag);
        rig.close();
    }
}

pub(super) fn transfers_of_all_sizes_mix(harness: &mut dyn Harness) {
    mix(harness, End::Passive);
}

pub(super) fn transfers_of_all_sizes_mix_from_the_active_end(harness: &mut dyn Harness) {
    mix(harness, End::Active);
}

const WHOLE: usize = 1 << 20;

/// Rounds of Writes, Reads and messages, from 1 byte to 1 MiB, in any order; messages also the other way.
fn mix(harness: &mut dyn Harness, mover: End) {
    let mut rig = Rig::new(harness);
    let mut random = Random::new(0x6d69_7874 + mover as u64);
    let owner = mover.other();
    let most = rig.queue(mover).limits().transfer.min(WHOLE) as u64;
    let sink = lent(WHOLE);
    let mut model = vec![0; WHOLE];
    let source = pattern(11, WHOLE);
    let to = rig.advertise(owner, Payload::Region(sink.slice(0, WHOLE)), RemoteAccess::Write);
    let from = rig.advertise(owner, buf(&source), RemoteAccess::Read);
    for round in 0..rig.knobs().rounds {
        let mut reads = Vec::new();
        let mut messages = Vec::new();
        for n in 0..20 {
            // Each order of magnitude is as likely as the next.
            let magnitude = 1 << random.below(21);
            let len = (1 + random.below(magnitude)).min(most) as usize;
            let at = random.below((WHOLE - len) as u64 + 1);
            match random.below(4) {
                0 => {
                    let message = pattern(n, len % 2000);
                    rig.receive(owner, 1, 2000);
                    rig.send(mover, &message);
                    messages.push(message);
                    rig.receive(mover, 1, 2000);
                    rig.send(owner, &pattern(n, len % 2000));
                }
                1 => {
                    let into = Lease::whole(Payload::Buf(Buf::zeroed(len)));
                    reads.push((rig.read(mover, into, RemoteBuffer { offset: from.offset + at, ..from }), at as usize));
                }
                _ => {
                    let data = pattern(u64::from(round) << 8 | n, len);
                    model[at as usize..at as usize + len].copy_from_slice(&data);
                    rig.write(mover, Lease::whole(buf(&data)), RemoteBuffer { offset: to.offset + at, ..to });
                }
            }
            if random.below(3) == 0 {
                rig.pump();
            }
        }
        rig.receive(owner, 1, 16);
        rig.send(mover, b"round");
        for message in messages {
            assert!(rig.message(owner).0 == message, "round {round}: a message is another one");
            assert!(rig.message(mover).0 == message, "round {round}: a message is another one");
        }
        assert_eq!(rig.message(owner).0, b"round");
        let there = bytes(&Payload::Region(sink.slice(0, WHOLE)));
        assert!(there == model, "round {round}: what was written is not there");
        for (id, at) in reads {
            let read = bytes(&rig.done(mover, id));
            assert!(read == source[at..at + read.len()], "round {round}: a Read brings other data");
        }
    }
    for buffer in [to, from] {
        rig.withdraw(owner, buffer.stag);
    }
    rig.close();
}
