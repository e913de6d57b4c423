//! How connections end: at any step, with everything given back.

use iscsi_memory::{Buf, Lease, Payload};

use super::rig::{Rig, buf, bytes, lent, pattern};
use super::{End, Harness, Plan};
use crate::queue::{EndCause, RemoteAccess, RemoteBuffer, Stag, Work};

pub(super) fn what_was_posted_is_sent_before_the_end(harness: &mut dyn Harness) {
    for by in End::BOTH {
        let mut rig = Rig::new(harness);
        let region = lent(100_000);
        let to = rig.advertise(by.other(), Payload::Region(region.slice(0, 100_000)), RemoteAccess::Write);
        rig.receive(by.other(), 20, 128);
        rig.receive(by, 3, 128);
        for n in 0..10 {
            let to = RemoteBuffer { offset: to.offset + n * 10_000, ..to };
            rig.write(by, Lease::whole(buf(&pattern(n, 10_000))), to);
            rig.send(by, &[n as u8; 70]);
        }
        rig.queue(by).disconnect();
        for n in 0..10 {
            assert_eq!(rig.message(by.other()).0, [n; 70]);
        }
        rig.until_over();
        assert_eq!(rig.ended(by), Some(EndCause::Closed));
        assert_eq!(rig.ended(by.other()), Some(EndCause::PeerClosed));
        let there = bytes(&rig.withdraw(by.other(), to.stag));
        for n in 0..10 {
            assert!(there[n * 10_000..][..10_000] == pattern(n as u64, 10_000));
        }
    }
}

/// Work of all kinds both ways, in all stages.
struct Traffic {
    advertised: [RemoteBuffer; 2],
}

impl Traffic {
    fn start(rig: &mut Rig, steps: u32) -> Self {
        for end in End::BOTH {
            rig.receive(end, 12, 600);
        }
        let mut advertise = |access| rig.advertise(End::Active, Payload::Buf(Buf::zeroed(200_000)), access);
        let advertised @ [to, from] = [advertise(RemoteAccess::Write), advertise(RemoteAccess::Read)];
        for n in 0..6 {
            rig.send(End::Active, &pattern(n, 100 * n as usize));
            rig.write(End::Passive, Lease::whole(buf(&pattern(n, 30_000))), to);
            rig.read(End::Passive, Lease::whole(Payload::Buf(Buf::zeroed(20_000))), from);
            rig.send(End::Passive, &[n as u8; 48]);
        }
        for _ in 0..steps {
            rig.pump();
        }
        // Posted, and the bell not rung.
        for end in End::BOTH {
            rig.stage_receive(end, 99);
        }
        rig.stage(End::Passive, Lease::whole(buf(&[1; 99])), |id, from| Work::Write { id, from, to });
        Self { advertised }
    }

    /// The ledger has seen to what was posted; what was advertised comes back once, too.
    fn comes_back(self, rig: &mut Rig) {
        for buffer in self.advertised {
            assert_eq!(rig.withdraw(End::Active, buffer.stag).len(), 200_000);
            assert!(rig.queue(End::Active).withdraw(buffer.stag).is_none(), "memory comes back once");
        }
        rig.settle();
    }
}

fn at_every_step(harness: &mut dyn Harness, act: impl Fn(&mut Rig, u32) -> bool) {
    for step in 0..harness.knobs().steps {
        let mut rig = Rig::connecting(harness, &Plan::default());
        // The first few end while it connects.
        let traffic = Traffic::start(&mut rig, step.saturating_mul(step / 16 + 1));
        if !act(&mut rig, step) {
            return;
        }
        rig.until_over();
        traffic.comes_back(&mut rig);
    }
}

pub(super) fn disconnect_at_every_step(harness: &mut dyn Harness) {
    for by in End::BOTH {
        at_every_step(harness, |rig, _| {
            let over = rig.ended(by);
            rig.queue(by).disconnect();
            rig.until_over();
            // Its peer may have been quicker to end for a reason of its own only if it had ended before.
            assert!(over.is_some() || rig.ended(by) == Some(EndCause::Closed), "{:?}", rig.ended(by));
            true
        });
    }
}

pub(super) fn abort_at_every_step(harness: &mut dyn Harness) {
    for by in End::BOTH {
        at_every_step(harness, |rig, _| {
            let over = rig.ended(by);
            rig.queue(by).abort();
            rig.until_over();
            assert!(over.is_some() || rig.ended(by) == Some(EndCause::Closed), "{:?}", rig.ended(by));
            assert_ne!(rig.ended(by.other()), Some(EndCause::Closed));
            true
        });
    }
}

pub(super) fn a_cut_at_every_step(harness: &mut dyn Harness) {
    at_every_step(harness, |rig, _| rig.cut());
}

pub(super) fn both_ends_leave_at_every_step(harness: &mut dyn Harness) {
    at_every_step(harness, |rig, step| {
        rig.queue(End::Active).disconnect();
        for _ in 0..step % 5 {
            rig.pump();
        }
        if step % 2 == 0 {
            rig.queue(End::Passive).disconnect();
        } else {
            rig.queue(End::Passive).abort();
        }
        true
    });
}

pub(super) fn what_is_posted_after_the_end_comes_back(harness: &mut dyn Harness) {
    let mut rig = Rig::new(harness);
    rig.queue(End::Active).abort();
    rig.until_over();
    for end in End::BOTH {
        rig.receive(end, 3, 128);
        rig.send(end, &[1; 20]);
        let at = RemoteBuffer { stag: Stag(77), offset: 5 };
        rig.write(end, Lease::whole(buf(&[2; 20])), at);
        rig.read(end, Lease::whole(buf(&[3; 20])), at);
        rig.until("all is flushed", |rig| rig.seen(end).len() == 6);
        assert!(rig.seen(end).iter().all(|seen| matches!(seen, super::Seen::Flushed(_) | super::Seen::ReceiveFlushed)));
    }
    rig.settle();
    for end in End::BOTH {
        assert_eq!(rig.seen(end).len(), 6);
    }
}

pub(super) fn ending_is_idempotent(harness: &mut dyn Harness) {
    let mut rig = Rig::new(harness);
    assert!(rig.queue(End::Active).withdraw(Stag(12345)).is_none(), "an STag that is not advertised");
    for end in End::BOTH {
        rig.receive(end, 2, 128);
    }
    for _ in 0..3 {
        rig.queue(End::Active).disconnect();
    }
    rig.until_over();
    for end in End::BOTH {
        rig.queue(end).disconnect();
        rig.queue(end).abort();
        rig.queue(end).abort();
    }
    rig.settle();
    assert_eq!(rig.ended(End::Active), Some(EndCause::Closed));
}
