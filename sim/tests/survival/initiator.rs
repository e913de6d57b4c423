//! An initiator's session, and a target by hand.

use std::time::Duration;

use initiator_core::command::Command;
use iscsi_proto::connection::Connection as _;
use iscsi_proto::pdu::{NopIn, Opcode, RESERVED_TAG, Residual};
use iscsi_proto::serial::Serial;
use iser_transport::header::ControlHeader;
use iser_transport::loopback::{End, LoopbackConfig, NoReceive, pair};
use iser_transport::queue::{EndCause, QueuePair, RemoteAccess, RemoteBuffer, Stag};
use sim::by_hand::{Bench, Ending, Heard, message, scsi_response};
use sim::link::Side;

use super::script::{Guarded, Initiator, Script, initiator, reads, writes};

type Ours = Bench<Initiator>;

fn bench(config: LoopbackConfig, commands: Vec<Command>) -> Ours {
    let (active, passive, fabric) = pair(config, 5);
    let script = Script { waves: [commands].into(), stays: true, ..Script::default() };
    let mut bench = Bench::new(initiator(active, script), Side::Initiator, passive, fabric, None);
    bench.peer.receive(48, 76 + 8192);
    bench
}

fn admitted(config: LoopbackConfig, commands: Vec<Command>) -> Ours {
    let mut bench = bench(config, commands);
    bench.settle();
    assert!(bench.peer.admit());
    bench.settle();
    assert!(bench.pipe.connection.logged_in_at().is_some());
    bench
}

/// The commands that came.
fn commands(bench: &mut Ours) -> Vec<Heard> {
    let heard = bench.peer.heard.drain(..);
    heard.filter(|heard| heard.bhs().is_some_and(|bhs| bhs.opcode() == Ok(Opcode::ScsiCommand))).collect()
}

fn good(itt: u32, stat_sn: u32) -> Vec<u8> {
    message(ControlHeader::default(), scsi_response(itt, stat_sn, 0, Residual::None), &[], &[])
}

/// The connection has ended; how the commands did.
fn results(mut bench: Ours, ending: Ending) -> Vec<bool> {
    bench.finish(ending);
    let (engine, ..) = bench.pipe.connection.into_parts(bench.now);
    let script = engine.into_app(bench.now);
    assert_eq!(script.completed.len(), script.issued, "each command completes once");
    script.completed.iter().map(|completion| completion.result.is_ok()).collect()
}

/// References beside the right one.
fn elsewhere(right: RemoteBuffer) -> [(&'static str, RemoteBuffer); 4] {
    let (mut other, _far, _) = pair(LoopbackConfig::default(), 77);
    let memory = iscsi_memory::Payload::Buf(iscsi_memory::Buf::zeroed(16_384));
    let foreign = other.advertise(memory, RemoteAccess::Write).unwrap();
    [
        ("unknown", RemoteBuffer { stag: Stag(!right.stag.0), ..right }),
        ("past the end", RemoteBuffer { offset: right.offset.wrapping_add(1), ..right }),
        ("before the beginning", RemoteBuffer { offset: right.offset.wrapping_sub(1), ..right }),
        ("another connection's", foreign),
    ]
}

#[test]
fn a_target_that_reaches_elsewhere_touches_nothing() {
    for case in 0..5 {
        for write in [false, true] {
            let memory = Guarded::new(16_384);
            let command = if write { writes(1, 0, &memory) } else { reads(1, 0, &memory) };
            let mut bench = admitted(LoopbackConfig::default(), vec![command]);
            let asked = commands(&mut bench);
            let control = asked[0].control();
            let right = control.read.or(control.write).unwrap();
            // The last case is the right place in the wrong direction.
            let (what, wrong) = elsewhere(right).get(case).copied().unwrap_or(("the wrong direction", right));
            if write ^ (case == 4) {
                bench.peer.read(wrong, 16_384);
            } else {
                bench.peer.write(wrong, &[1; 16_384]);
            }
            bench.settle();
            assert!(matches!(bench.peer.ended, Some(EndCause::ByPeer(_))), "{what}: {:?}", bench.peer.ended);
            assert!(bench.peer.fetched.is_empty(), "{what}");
            assert_eq!(results(bench, Ending::Disconnect), [false], "{what}");
            assert!(memory.is_untouched(), "{what}");
        }
    }
}

#[test]
fn an_stag_is_dead_when_its_command_is_answered() {
    for invalidates in [false, true] {
        let memory = Guarded::new(16_384);
        let mut config = LoopbackConfig::default();
        config.active.private = vec![0; 4];
        let mut bench = admitted(config, vec![reads(1, 0, &memory)]);
        let asked = commands(&mut bench).remove(0);
        let to = asked.control().read.unwrap();
        bench.peer.write(to, &[7; 16_384]);
        let itt = asked.bhs().unwrap().itt();
        bench.peer.send(&good(itt, 1), invalidates.then_some(to.stag));
        bench.settle();
        assert_eq!((memory.bytes() == [7; 16_384], bench.peer.ended), (true, None));
        assert_eq!(bench.pipe.connection.app().completed.len(), 1);
        bench.peer.write(to, &[8; 512]);
        bench.settle();
        assert!(matches!(bench.peer.ended, Some(EndCause::ByPeer(_))), "{:?}", bench.peer.ended);
        assert_eq!(results(bench, Ending::Disconnect), [true]);
        assert!(memory.bytes() == [7; 16_384] && memory.guards_hold());
    }
}

#[test]
fn an_stag_that_is_not_the_commands_own_is_not_invalidated() {
    for unknown in [false, true] {
        let (one, two) = (Guarded::new(16_384), Guarded::new(16_384));
        let mut bench = admitted(LoopbackConfig::default(), vec![reads(1, 0, &one), reads(2, 0, &two)]);
        let asked = commands(&mut bench);
        let [first, second] = [0, 1].map(|at| asked[at].control().read.unwrap().stag);
        let stag = if unknown { Stag(!first.0) } else { second };
        bench.peer.send(&good(asked[0].bhs().unwrap().itt(), 1), Some(stag));
        bench.settle();
        bench.wait(Duration::from_secs(11));
        assert!(bench.pipe.connection.is_finished());
        assert_eq!(results(bench, Ending::Disconnect), [false, false]);
        assert!(one.is_untouched() && two.is_untouched());
    }
}

#[test]
fn a_message_longer_than_the_receive() {
    for logged_in in [false, true] {
        let memory = Guarded::new(16_384);
        let mut bench = bench(LoopbackConfig::default(), vec![reads(1, 0, &memory)]);
        bench.settle();
        if logged_in {
            assert!(bench.peer.admit());
            bench.settle();
        }
        // It declared 256 KiB.
        bench.peer.send(&vec![0x10; 400_000], None);
        bench.settle();
        assert!(matches!(bench.peer.ended, Some(EndCause::ByPeer(_))), "{:?}", bench.peer.ended);
        assert!(results(bench, Ending::Disconnect).iter().all(|good| !good));
        assert!(memory.is_untouched());
    }
}

#[test]
fn more_messages_than_receives() {
    for no_receive in [NoReceive::Ends, NoReceive::Waits] {
        let memory = Guarded::new(16_384);
        let config = LoopbackConfig { no_receive, ..LoopbackConfig::default() };
        let mut bench = admitted(config, vec![reads(1, 0, &memory)]);
        for n in 0..200 {
            let ping = NopIn {
                lun: 0,
                itt: RESERVED_TAG,
                ttt: n,
                stat_sn: Serial(1),
                exp_cmd_sn: Serial(1),
                max_cmd_sn: Serial(64),
            };
            bench.peer.send(&message(ControlHeader::default(), ping.emit(), &[], &[1; 100]), None);
        }
        bench.settle();
        assert_eq!(results(bench, Ending::Abort), [false]);
        assert!(memory.is_untouched());
    }
}

/// The target takes the login, and not one message more.
#[test]
fn a_target_without_receives() {
    for no_receive in [NoReceive::Ends, NoReceive::Waits] {
        for receives in [0, 1, 2] {
            let (active, passive, fabric) = pair(LoopbackConfig { no_receive, ..LoopbackConfig::default() }, 5);
            let memory = Guarded::new(16_384);
            let waves = [vec![reads(1, 0, &memory), reads(2, 0, &memory), writes(3, 0, &memory)]].into();
            let script = Script { waves, stays: true, ..Script::default() };
            let mut bench = Bench::new(initiator(active, script), Side::Initiator, passive, fabric, None);
            bench.peer.reposts = false;
            bench.peer.receive(receives, 76 + 8192);
            bench.settle();
            bench.peer.admit();
            bench.settle();
            bench.wait(Duration::from_secs(100));
            assert!(bench.pipe.connection.is_finished(), "{no_receive:?}, {receives} receives: it ends by itself");
            assert!(results(bench, Ending::Abort).iter().all(|good| !good));
            assert!(memory.is_untouched());
        }
    }
}

/// It takes commands and answers nothing, or hears nothing at all.
#[test]
fn a_target_that_falls_silent() {
    for logged_in in [false, true] {
        for mutes in [None, Some(End::Active), Some(End::Passive)] {
            let memory = Guarded::new(16_384);
            let mut bench = bench(LoopbackConfig::default(), vec![reads(1, 0, &memory), writes(2, 8, &memory)]);
            bench.settle();
            if logged_in {
                assert!(bench.peer.admit());
                bench.settle();
            }
            if let Some(end) = mutes {
                bench.fabric.mute(end);
            }
            bench.wait(Duration::from_secs(100));
            assert!(bench.pipe.connection.is_finished(), "logged in: {logged_in}, {mutes:?}: it ends by itself");
            assert!(results(bench, Ending::Vanish).iter().all(|good| !good));
            assert!(memory.is_untouched());
        }
    }
}

#[test]
fn every_end_at_every_stage() {
    for ending in Ending::ALL {
        for steps in 0..40 {
            let memory = Guarded::new(16_384);
            let wanted = || vec![reads(1, 0, &memory), writes(2, 8, &memory)];
            // Before and during login.
            let mut early = bench(LoopbackConfig::default(), wanted());
            for _ in 0..steps {
                early.step();
                early.peer.admit();
            }
            results(early, ending);
            // While the target works on what it was asked.
            let mut late = admitted(LoopbackConfig::default(), wanted());
            for asked in commands(&mut late) {
                let (itt, control) = (asked.bhs().unwrap().itt(), asked.control());
                if let Some(to) = control.read {
                    late.peer.write(to, &[9; 16_384]);
                }
                if let Some(from) = control.write {
                    late.peer.read(from, 16_384);
                }
                late.peer.send(&good(itt, 1), None);
            }
            for _ in 0..steps {
                late.step();
            }
            results(late, ending);
            assert!(memory.guards_hold());
        }
    }
}
