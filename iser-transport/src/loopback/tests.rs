//! The instrument itself: what the conformance cases cannot ask of every provider.

use alloc::format;
use alloc::vec::Vec;

use iscsi_memory::{Buf, Lease, Payload};

use super::*;
use crate::queue::{Completion, EndCause, QueuePair, RemoteAccess, Work};

fn message(byte: u8) -> Lease {
    let mut buf = Buf::zeroed(100);
    buf.fill(byte);
    Lease::whole(Payload::Buf(buf))
}

fn send(queue: &mut LoopbackQueue, id: u64) {
    queue.post(Work::Send { id, message: message(id as u8), invalidate: None });
    queue.ring();
}

fn receives(queue: &mut LoopbackQueue, n: usize) {
    for _ in 0..n {
        queue.post_receive(Buf::zeroed(128));
    }
    queue.ring();
}

fn drain(queue: &mut LoopbackQueue) -> Vec<Completion> {
    core::iter::from_fn(|| queue.poll()).collect()
}

fn cause(queue: &mut LoopbackQueue) -> EndCause {
    match drain(queue).pop() {
        Some(Completion::Ended(cause)) => cause,
        other => panic!("not ended, but {other:?}"),
    }
}

/// What a run of a few messages both ways looks like under a seed.
fn story(seed: u64) -> String {
    let (mut active, mut passive, fabric) = pair(LoopbackConfig::default(), seed);
    receives(&mut active, 8);
    receives(&mut passive, 8);
    let mut story = String::new();
    for id in 0..8 {
        send(&mut active, id);
        send(&mut passive, id);
    }
    while let Some(step) = fabric.step() {
        story += &format!("{step:?} {:?} {:?} ", active.poll(), passive.poll());
    }
    story
}

#[test]
fn a_seed_is_a_run() {
    assert_eq!(story(3), story(3));
    assert_ne!(story(3), story(4));
}

#[test]
fn nothing_moves_before_the_doorbell() {
    let (mut active, mut passive, fabric) = pair(LoopbackConfig::default(), 1);
    passive.post_receive(Buf::zeroed(128));
    active.post(Work::Send { id: 1, message: message(1), invalidate: None });
    fabric.run();
    assert_eq!(drain(&mut passive).len(), 1);
    passive.ring();
    active.ring();
    fabric.run();
    assert!(matches!(drain(&mut passive)[..], [Completion::Received { len: 100, .. }]));
}

#[test]
fn a_message_waits_for_its_receive_where_that_is_the_rule() {
    let config = LoopbackConfig { no_receive: NoReceive::Waits, ..LoopbackConfig::default() };
    let (mut active, mut passive, fabric) = pair(config, 1);
    send(&mut active, 1);
    fabric.run();
    assert_eq!(drain(&mut passive).len(), 1);
    receives(&mut passive, 1);
    fabric.run();
    assert!(matches!(drain(&mut passive)[..], [Completion::Received { len: 100, .. }]));
    // One that waits when its sender leaves is lost, and the end of the connection is not.
    send(&mut active, 2);
    fabric.run();
    active.abort();
    fabric.run();
    assert_eq!(cause(&mut passive), EndCause::Broken);
    assert_eq!(cause(&mut active), EndCause::Closed);
}

#[test]
fn each_fault_happens_and_names_itself() {
    let faulty = |faults: Faults| {
        let (mut active, mut passive, fabric) = pair(LoopbackConfig { faults, ..LoopbackConfig::default() }, 5);
        receives(&mut passive, 8);
        let to = passive.advertise(Payload::Buf(Buf::zeroed(4096)), RemoteAccess::Write).unwrap();
        active.post(Work::Write { id: 0, from: message(9), to });
        send(&mut active, 1);
        fabric.run();
        (cause(&mut active), cause(&mut passive))
    };
    let always = 1_000_000;
    assert_eq!(faulty(Faults { cut: always, ..Faults::default() }), (EndCause::Broken, EndCause::Broken));
    assert_eq!(faulty(Faults { reject: always, ..Faults::default() }), (EndCause::Rejected, EndCause::Broken));
    let gone = faulty(Faults { device_gone: always, ..Faults::default() });
    assert!(matches!(gone, (EndCause::DeviceGone, EndCause::Broken) | (EndCause::Broken, EndCause::DeviceGone)));
    let failed = faulty(Faults { fail_work: always, ..Faults::default() });
    assert!(matches!(failed, (EndCause::WorkFailed(_), EndCause::Broken)), "{failed:?}");
    for faults in [
        Faults { drop_receive: always, ..Faults::default() },
        Faults { overlong: always, ..Faults::default() },
        Faults { alter_stag: always, ..Faults::default() },
    ] {
        let (active, passive) = faulty(faults);
        let EndCause::PeerProtocol(why) = passive else { panic!("{passive:?}") };
        assert_eq!(active, EndCause::ByPeer(why));
    }
}

#[test]
fn an_altered_stag_touches_no_byte() {
    for seed in 0..50 {
        let faults = Faults { alter_stag: 1_000_000, ..Faults::default() };
        let (mut active, mut passive, fabric) = pair(LoopbackConfig { faults, ..LoopbackConfig::default() }, seed);
        let stale = passive.advertise(Payload::Buf(Buf::zeroed(100)), RemoteAccess::Write).unwrap();
        passive.withdraw(stale.stag).unwrap();
        let to = passive.advertise(Payload::Buf(Buf::zeroed(100)), RemoteAccess::Write).unwrap();
        active.post(Work::Write { id: 0, from: message(9), to });
        active.ring();
        fabric.run();
        assert!(matches!(cause(&mut passive), EndCause::PeerProtocol(_)));
        let Some(Payload::Buf(buf)) = passive.withdraw(to.stag) else { panic!("the buffer is still there") };
        assert!(buf.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_stalled_end_goes_on_and_a_muted_one_does_not() {
    let (mut active, mut passive, fabric) = pair(LoopbackConfig::default(), 1);
    receives(&mut passive, 2);
    fabric.run();
    fabric.stall(End::Passive, 50);
    send(&mut active, 1);
    assert!(fabric.run() >= 50);
    assert_eq!(drain(&mut passive).len(), 2);
    fabric.mute(End::Passive);
    send(&mut active, 2);
    active.abort();
    fabric.run();
    assert!(drain(&mut passive).is_empty());
    passive.abort();
    fabric.run();
    assert_eq!(cause(&mut passive), EndCause::Closed);
}

#[test]
fn what_an_end_holds_is_told() {
    let (mut active, mut passive, fabric) = pair(LoopbackConfig::default(), 1);
    receives(&mut passive, 3);
    let to = passive.advertise(Payload::Buf(Buf::zeroed(100)), RemoteAccess::Write).unwrap();
    send(&mut active, 1);
    assert_eq!((fabric.held(End::Active), fabric.held(End::Passive)), ((1, 0, 0), (0, 3, 1)));
    fabric.run();
    drain(&mut active);
    drain(&mut passive);
    passive.withdraw(to.stag).unwrap();
    assert_eq!((fabric.held(End::Active), fabric.held(End::Passive)), ((0, 0, 0), (0, 2, 0)));
}

#[test]
fn a_byte_changes_where_that_is_wanted() {
    let faults = Faults { corrupt: 1_000_000, ..Faults::default() };
    let (mut active, mut passive, fabric) = pair(LoopbackConfig { faults, ..LoopbackConfig::default() }, 1);
    let to = passive.advertise(Payload::Buf(Buf::zeroed(100)), RemoteAccess::Write).unwrap();
    active.post(Work::Write { id: 0, from: message(9), to });
    active.ring();
    fabric.run();
    let Some(Payload::Buf(buf)) = passive.withdraw(to.stag) else { panic!("the buffer is still there") };
    assert_eq!(buf.iter().filter(|byte| **byte != 9).count(), 1);
}

#[test]
fn a_dropped_queue_breaks_the_connection() {
    let (active, mut passive, fabric) = pair(LoopbackConfig::default(), 1);
    fabric.run();
    drop(active);
    fabric.run();
    assert_eq!(cause(&mut passive), EndCause::Broken);
}

#[test]
#[should_panic(expected = "receives are posted")]
fn who_posts_too_much_is_told() {
    let (mut active, _passive, _fabric) = pair(LoopbackConfig::default(), 1);
    receives(&mut active, 257);
}
