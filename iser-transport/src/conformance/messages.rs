//! Messages: Sends and receives.

use iscsi_memory::{Lease, Payload};

use super::rig::{Rig, Seen, buf, bytes, lent, pattern};
use super::{End, Harness};
use crate::queue::{Inline, RemoteAccess, RemoteBuffer};

pub(super) fn messages_arrive_in_order(harness: &mut dyn Harness) {
    let mut rig = Rig::new(harness);
    for end in End::BOTH {
        rig.receive(end, 40, 9000);
    }
    let len = |n: u64| (n * n * 5 + 1) as usize;
    for n in 0..40 {
        for end in End::BOTH {
            rig.send(end, &pattern(n + 100 * end as u64, len(n)));
        }
        if n % 3 == 0 {
            rig.pump();
        }
    }
    for end in End::BOTH {
        for n in 0..40 {
            let (message, invalidated) = rig.message(end);
            assert!(message == pattern(n + 100 * end.other() as u64, len(n)), "message {n} to {end:?} is another one");
            assert_eq!(invalidated, None);
        }
    }
    rig.close();
}

/// Receives of various lengths: the message for each fits just that one.
pub(super) fn receives_are_used_in_order(harness: &mut dyn Harness) {
    let mut rig = Rig::new(harness);
    let lengths = [128, 8268, 76, 4096, 204, 1, 65536, 128];
    for len in lengths {
        rig.stage_receive(End::Passive, len);
    }
    rig.ring(End::Passive);
    for (n, len) in lengths.into_iter().enumerate() {
        rig.send(End::Active, &pattern(n as u64, len));
    }
    for (n, len) in lengths.into_iter().enumerate() {
        assert!(rig.message(End::Passive).0 == pattern(n as u64, len), "message {n} is another one");
    }
    rig.close();
}

pub(super) fn an_empty_message_arrives(harness: &mut dyn Harness) {
    let mut rig = Rig::new(harness);
    rig.receive(End::Passive, 3, 128);
    rig.send(End::Active, &[1]);
    let empty = rig.send(End::Active, &[]);
    rig.send(End::Active, &[2; 128]);
    assert_eq!(rig.message(End::Passive).0, [1]);
    assert_eq!(rig.message(End::Passive).0, []);
    assert_eq!(rig.message(End::Passive).0, [2; 128]);
    rig.done(End::Active, empty);
    rig.close();
}

/// Private memory and lent memory, and a part of either.
pub(super) fn messages_leave_from_any_memory(harness: &mut dyn Harness) {
    let mut rig = Rig::new(harness);
    rig.receive(End::Passive, 4, 5000);
    let region = lent(20_000);
    let all = pattern(1, 20_000);
    region.write(0, &all);
    let whole = Lease::whole(Payload::Region(region.slice(4000, 5000)));
    let part = Lease::part(Payload::Region(region.slice(100, 19_000)), 10_000, 77);
    let ids = [
        rig.send_from(End::Active, whole, None),
        rig.send_from(End::Active, part, None),
        rig.send_from(End::Active, Lease::whole(buf(&all[7..300])), None),
        rig.send_from(End::Active, Lease::part(buf(&all), 333, 4444), None),
    ];
    for expected in [&all[4000..9000], &all[10_100..10_177], &all[7..300], &all[333..4777]] {
        assert!(rig.message(End::Passive).0 == expected, "a message of {} bytes is another one", expected.len());
    }
    let [.., last] = ids.map(|id| rig.done(End::Active, id));
    assert!(bytes(&last) == all, "memory comes back as it was");
    rig.close();
}

/// What is posted inline, where the provider takes any, leaves behind all that was posted before it, and before what is
/// posted later.
pub(super) fn inline_payloads_keep_their_place(harness: &mut dyn Harness) {
    const ROUNDS: u8 = 30;
    let mut rig = Rig::new(harness);
    rig.receive(End::Active, 2 * usize::from(ROUNDS), 20_000);
    let to = rig.advertise(End::Active, buf(&[0; 5000]), RemoteAccess::Write);
    let size = |round: u8| 1 + usize::from(round) * 600;
    for round in 0..ROUNDS {
        rig.send(End::Passive, &pattern(round.into(), size(round)));
        let to = RemoteBuffer { offset: to.offset + u64::from(round) * 100, ..to };
        // Twice the same place: what comes later stays.
        for byte in [!round, round] {
            if !rig.queue(End::Passive).post_inline(Inline::Write { to }, 100, &mut |place| place.fill(byte)) {
                rig.write(End::Passive, Lease::whole(buf(&[byte; 100])), to);
            }
        }
        let send = Inline::Send { invalidate: None };
        if !rig.queue(End::Passive).post_inline(send, 7, &mut |place| place.fill(round)) {
            rig.send(End::Passive, &[round; 7]);
        }
        rig.ring(End::Passive);
        if round % 4 == 3 {
            rig.pump();
        }
    }
    for round in 0..ROUNDS {
        assert!(rig.message(End::Active).0 == pattern(round.into(), size(round)), "message {round} is another one");
        assert_eq!(rig.message(End::Active).0, [round; 7], "the message behind message {round} is another one");
    }
    let there = bytes(&rig.withdraw(End::Active, to.stag));
    for (round, place) in (0..ROUNDS).zip(there.chunks(100)) {
        assert!(place.iter().all(|byte| *byte == round), "what was written last in round {round} is not there");
    }
    rig.close();
}

pub(super) fn the_longest_message_fits(harness: &mut dyn Harness) {
    let mut rig = Rig::new(harness);
    for len in [128, 8268, 32_768] {
        rig.receive(End::Active, 1, len);
        rig.send(End::Passive, &pattern(9, len));
        assert!(rig.message(End::Active).0 == pattern(9, len));
    }
    rig.close();
}

/// It is reported with the message that kills it, and its memory can still be had.
pub(super) fn an_stag_is_invalidated(harness: &mut dyn Harness) {
    if !harness.knobs().invalidates {
        return;
    }
    let mut rig = Rig::new(harness);
    rig.receive(End::Active, 8, 128);
    for n in 0..4 {
        let to = rig.advertise(End::Active, buf(&[0; 3000]), RemoteAccess::Write);
        let kept = rig.advertise(End::Active, buf(&[7; 3000]), RemoteAccess::Read);
        let data = pattern(n, 3000);
        rig.write(End::Passive, Lease::whole(buf(&data)), to);
        rig.send_from(End::Passive, Lease::whole(buf(&[1; 48])), Some(to.stag));
        rig.send(End::Passive, &[2; 48]);
        assert_eq!(rig.message(End::Active).1, Some(to.stag));
        assert_eq!(rig.message(End::Active).1, None);
        assert!(bytes(&rig.withdraw(End::Active, to.stag)) == data, "what was written before the STag died is there");
        assert!(rig.queue(End::Active).withdraw(to.stag).is_none(), "memory comes back once");
        assert!(bytes(&rig.withdraw(End::Active, kept.stag)) == [7; 3000], "the other buffer is as it was");
    }
    rig.settle();
    assert!(!rig.seen(End::Passive).iter().any(|seen| matches!(seen, Seen::Flushed(_))));
    rig.close();
}
