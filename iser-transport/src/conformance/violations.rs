//! Peers that break a rule: fatal for their connection, harmless for everything else.

use alloc::sync::Arc;
use alloc::vec::Vec;

use iscsi_memory::{Buf, Lease, Payload, Region};

use super::rig::{Rig, buf, bytes, lent, pattern};
use super::{End, Harness};
use crate::queue::{RemoteAccess, RemoteBuffer, Stag};

/// Memory with an advertised part in its middle; all of it is watched.
struct Guarded {
    region: Arc<Region>,
    before: Vec<u8>,
    buffer: RemoteBuffer,
}

const GUARD: u64 = 8192;
const PART: usize = 6000;

impl Guarded {
    fn new(rig: &mut Rig, end: End, access: RemoteAccess) -> Self {
        let region = lent(GUARD as usize * 3);
        let before = pattern(21, GUARD as usize * 3);
        region.write(0, &before);
        let buffer = rig.advertise(end, Payload::Region(region.slice(GUARD, PART)), access);
        Self { region, before, buffer }
    }

    fn is_untouched(&self) -> bool {
        bytes(&Payload::Region(self.region.slice(0, self.before.len()))) == self.before
    }

    /// Of a Write that begins inside and ends outside, the segments that lie inside may have been placed.
    fn is_untouched_outside(&self) -> bool {
        let now = bytes(&Payload::Region(self.region.slice(0, self.before.len())));
        let (from, to) = (GUARD as usize, GUARD as usize + PART);
        now[..from] == self.before[..from] && now[to..] == self.before[to..]
    }
}

/// Runs a breach of `by` on one connection, while a second one goes on.
fn breach(harness: &mut dyn Harness, by: End, act: impl FnOnce(&mut Rig)) {
    let mut bystander = Rig::new(harness);
    let mut rig = Rig::new(harness);
    for end in End::BOTH {
        bystander.receive(end, 2, 128);
    }
    act(&mut rig);
    rig.until_breach_is_punished(by);
    for end in End::BOTH {
        bystander.send(end, &[1; 100]);
        assert_eq!(bystander.message(end.other()).0, [1; 100]);
    }
    bystander.close();
}

/// An attempt to write or read where it is not allowed: not a byte changes.
fn attempt(
    harness: &mut dyn Harness,
    granted: RemoteAccess,
    tried: RemoteAccess,
    alter: impl Fn(&mut Rig, RemoteBuffer) -> (RemoteBuffer, usize),
) {
    assert!(attempted(harness, granted, tried, alter).is_untouched(), "an access that is not allowed touches memory");
}

fn attempted(
    harness: &mut dyn Harness,
    granted: RemoteAccess,
    tried: RemoteAccess,
    alter: impl Fn(&mut Rig, RemoteBuffer) -> (RemoteBuffer, usize),
) -> Guarded {
    let mut guarded = None;
    breach(harness, End::Passive, |rig| {
        rig.receive(End::Active, 4, 128);
        let guard = Guarded::new(rig, End::Active, granted);
        let (to, len) = alter(rig, guard.buffer);
        match tried {
            RemoteAccess::Write => rig.write(End::Passive, Lease::whole(buf(&pattern(1, len))), to),
            RemoteAccess::Read => rig.read(End::Passive, Lease::whole(Payload::Buf(Buf::zeroed(len))), to),
        };
        rig.send(End::Passive, &[1]);
        rig.until_over();
        if tried == RemoteAccess::Write || rig.knobs().refuses_reads_at_once {
            assert!(rig.seen(End::Active).iter().all(|seen| !matches!(seen, super::Seen::Message(..))), "it goes on");
        }
        guarded = Some(guard);
    });
    guarded.unwrap_or_else(|| panic!("an attempt was made"))
}

const BOTH_WAYS: [RemoteAccess; 2] = [RemoteAccess::Write, RemoteAccess::Read];

pub(super) fn an_overlong_message_ends_the_connection(harness: &mut dyn Harness) {
    for (room, len) in [(128, 129), (128, 8192), (8268, 8269), (1, 100_000)] {
        breach(harness, End::Active, |rig| {
            rig.receive(End::Passive, 1, room);
            rig.receive(End::Passive, 1, 100_000);
            rig.send(End::Active, &pattern(1, len));
            rig.send(End::Active, &[1]);
            rig.until_over();
            assert!(rig.seen(End::Passive).iter().all(|seen| !matches!(seen, super::Seen::Message(..))), "it is taken");
        });
    }
}

pub(super) fn a_message_without_a_receive(harness: &mut dyn Harness) {
    if harness.knobs().waits_for_receive {
        let mut rig = Rig::new(harness);
        rig.send(End::Active, &[1; 50]);
        rig.send(End::Active, &[2; 60]);
        rig.settle();
        rig.receive(End::Passive, 2, 128);
        assert_eq!(rig.message(End::Passive).0, [1; 50]);
        assert_eq!(rig.message(End::Passive).0, [2; 60]);
        return rig.close();
    }
    breach(harness, End::Active, |rig| {
        rig.receive(End::Passive, 1, 128);
        rig.send(End::Active, &[1; 50]);
        rig.message(End::Passive);
        rig.send(End::Active, &[2; 60]);
    });
}

pub(super) fn an_unknown_stag_ends_the_connection(harness: &mut dyn Harness) {
    for access in BOTH_WAYS {
        for change in [1, 0x100, 0x8000_0000, u32::MAX] {
            attempt(harness, access, access, |_, buffer| {
                (RemoteBuffer { stag: Stag(buffer.stag.0 ^ change), ..buffer }, 512)
            });
        }
    }
}

pub(super) fn bytes_outside_end_the_connection(harness: &mut dyn Harness) {
    // Beyond all memory that the buffer could be a part of; where bounds are exact, by one byte.
    let far: [(u64, usize); 3] = [(1 << 40, 512), (0u64.wrapping_sub(1 << 40), 512), (1 << 63, 1)];
    let near = [(1, PART), (PART as u64, 1), (u64::MAX, 1), (u64::MAX, 512), (PART as u64 - 511, 512)];
    let exact = harness.knobs().exact_bounds;
    for access in BOTH_WAYS {
        for (off, len) in far.into_iter().chain(near.into_iter().filter(|_| exact)) {
            let guard = attempted(harness, access, access, |_, to| {
                (RemoteBuffer { offset: to.offset.wrapping_add(off), ..to }, len)
            });
            assert!(guard.is_untouched_outside(), "{len} bytes at {off} of a buffer touch memory outside of it");
        }
    }
}

pub(super) fn the_wrong_direction_ends_the_connection(harness: &mut dyn Harness) {
    if harness.knobs().checks_direction {
        attempt(harness, RemoteAccess::Read, RemoteAccess::Write, |_, buffer| (buffer, 512));
        attempt(harness, RemoteAccess::Write, RemoteAccess::Read, |_, buffer| (buffer, 512));
    }
}

pub(super) fn a_withdrawn_stag_ends_the_connection(harness: &mut dyn Harness) {
    if harness.knobs().withdraw_revokes {
        for access in BOTH_WAYS {
            attempt(harness, access, access, |rig, buffer| {
                rig.withdraw(End::Active, buffer.stag);
                (buffer, 512)
            });
        }
    }
}

pub(super) fn an_invalidated_stag_ends_the_connection(harness: &mut dyn Harness) {
    if harness.knobs().invalidates {
        for access in BOTH_WAYS {
            attempt(harness, access, access, |rig, buffer| {
                rig.send_from(End::Passive, Lease::whole(buf(&[1])), Some(buffer.stag));
                assert_eq!(rig.message(End::Active).1, Some(buffer.stag));
                (buffer, 512)
            });
        }
    }
}

pub(super) fn an_unknown_stag_is_not_invalidated(harness: &mut dyn Harness) {
    if !harness.knobs().invalidates {
        return;
    }
    for again in [false, true] {
        breach(harness, End::Passive, |rig| {
            rig.receive(End::Active, 4, 128);
            let buffer = rig.advertise(End::Active, buf(&[1; 512]), RemoteAccess::Write);
            let other = Stag(buffer.stag.0 ^ 0x4000);
            if again {
                rig.send_from(End::Passive, Lease::whole(buf(&[1])), Some(buffer.stag));
                rig.message(End::Active);
            }
            let stag = if again { buffer.stag } else { other };
            rig.send_from(End::Passive, Lease::whole(buf(&[1])), Some(stag));
            rig.until_over();
            assert!(rig.seen(End::Active).iter().all(|seen| !matches!(seen, super::Seen::Message(..))), "it is taken");
            rig.withdraw(End::Active, buffer.stag);
        });
    }
}

pub(super) fn an_stag_of_another_connection_ends_the_connection(harness: &mut dyn Harness) {
    if !harness.knobs().checks_owner {
        return;
    }
    for access in BOTH_WAYS {
        let mut other = Rig::new(harness);
        let theirs = Guarded::new(&mut other, End::Active, access);
        attempt(harness, access, access, |_, _| (theirs.buffer, 512));
        assert!(theirs.is_untouched());
        other.withdraw(End::Active, theirs.buffer.stag);
        other.close();
    }
}
