//! A target's session, and an initiator by hand.

use std::time::Duration;

use iscsi_proto::login::LoginError;
use iscsi_proto::pdu::{
    LoginResponse, LoginStatus, LogoutReason, LogoutRequest, NopOut, Opcode, RESERVED_TAG, ScsiResponse, TaskFunction,
    TaskManagementRequest,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::Role;
use iser_transport::header::ControlHeader;
use iser_transport::loopback::{Fabric, LoopbackConfig, LoopbackQueue, NoReceive, pair};
use iser_transport::mover::{IserMover, IserMoverConfig};
use iser_transport::queue::{EndCause, QueuePair, RemoteAccess, RemoteBuffer, Stag};
use sim::by_hand::{Bench, Ending, FILL, Heard, cdb10, message, scsi_command};
use sim::link::Side;
use sim::served::Served;
use sim::store::Door;
use target_core::session::{EndReason, TargetConnection};

use super::script::{TARGET, mover_config, serve, serve_with};

type Ours = Bench<TargetConnection<IserMover<LoopbackQueue>>>;

const NONE: ControlHeader = ControlHeader { read: None, write: None };

struct Rig {
    bench: Ours,
    served: Served,
    cmd_sn: u32,
}

impl Rig {
    fn new(config: LoopbackConfig) -> Self {
        let (active, passive, fabric): (_, _, Fabric) = pair(config, 5);
        let (connection, served) = serve(passive, Door::Memory);
        let mut bench = Bench::new(connection, Side::Target, active, fabric, Some(served.store.clone()));
        bench.peer.receive(32, 76 + 8192);
        bench.settle();
        Self { bench, served, cmd_sn: 1 }
    }

    fn logged_in(config: LoopbackConfig) -> Self {
        let mut rig = Self::new(config);
        rig.bench.peer.log_in(TARGET, "");
        rig.bench.settle();
        assert_eq!(rig.served.target.registry().sessions().len(), 1);
        // The first command meets the unit attention of a new nexus.
        rig.command(NONE, [0; 16], (false, false), 0);
        rig.bench.peer.heard.clear();
        rig
    }

    fn post(&mut self, control: ControlHeader, cdb: [u8; 16], directions: (bool, bool), expected: u32) {
        let bhs = scsi_command(self.cmd_sn, self.cmd_sn, cdb, directions, expected);
        self.cmd_sn += 1;
        self.bench.peer.send(&message(control, bhs, &[], &[]), None);
    }

    fn command(&mut self, control: ControlHeader, cdb: [u8; 16], directions: (bool, bool), expected: u32) {
        self.post(control, cdb, directions, expected);
        self.bench.settle();
        self.bench.wait(Duration::from_millis(1));
    }

    /// Statuses that came.
    fn statuses(&mut self) -> Vec<u8> {
        let responses = self.bench.peer.heard.drain(..).filter_map(|heard: Heard| heard.bhs());
        responses.filter_map(|bhs| ScsiResponse::parse(&bhs).ok()).map(|response| response.status).collect()
    }

    fn over(&mut self) -> bool {
        use iscsi_proto::connection::Connection as _;
        self.bench.pipe.connection.is_finished()
    }

    /// The end, whatever was before it.
    fn close(mut self, ending: Ending) {
        self.bench.finish(ending);
        drop(self.bench);
        self.served.check_over();
    }
}

type Reference = (&'static str, fn(&mut Ours, RemoteAccess) -> RemoteBuffer);

/// References to a buffer of 8 KiB that do not allow what they are used for: each makes its own.
fn bad_references(access: RemoteAccess) -> Vec<Reference> {
    fn good(bench: &mut Ours, access: RemoteAccess) -> RemoteBuffer {
        bench.peer.advertise(access, 8192).unwrap()
    }
    let mut all: Vec<Reference> = vec![
        ("unknown", |bench, access| {
            let buffer = good(bench, access);
            RemoteBuffer { stag: Stag(!buffer.stag.0), ..buffer }
        }),
        ("stale", |bench, access| {
            let buffer = good(bench, access);
            bench.peer.withdraw(0);
            buffer
        }),
        ("past the end", |bench, access| {
            let buffer = good(bench, access);
            RemoteBuffer { offset: buffer.offset.wrapping_add(1), ..buffer }
        }),
        ("before the beginning", |bench, access| {
            let buffer = good(bench, access);
            RemoteBuffer { offset: buffer.offset.wrapping_sub(1), ..buffer }
        }),
        ("another connection's", |bench, access| {
            let (mut other, _far, _) = pair(LoopbackConfig::default(), 99);
            let memory = iscsi_memory::Payload::Buf(iscsi_memory::Buf::zeroed(8192));
            good(bench, access);
            other.advertise(memory, access).unwrap()
        }),
    ];
    if access == RemoteAccess::Write {
        all.push(("to be read only", |bench, _| good(bench, RemoteAccess::Read)));
    } else {
        all.push(("to be written only", |bench, _| good(bench, RemoteAccess::Write)));
    }
    all
}

fn is_refused(rig: &mut Rig, what: &str) {
    assert!(matches!(rig.bench.peer.ended, Some(EndCause::PeerProtocol(_))), "{what}: {:?}", rig.bench.peer.ended);
    rig.bench.wait(Duration::from_secs(1));
    assert!(rig.over(), "{what}: the session ends");
    let reason = rig.bench.pipe.connection.end_reason();
    assert!(matches!(reason, Some(EndReason::Transport(_))), "{what}: {reason:?}");
    for advertised in &rig.bench.peer.advertised {
        assert!(advertised.bytes().iter().all(|byte| *byte == FILL), "{what}: it is touched");
    }
}

// RFC 7145 10.1.3.1.
#[test]
fn a_login_without_memory_for_its_receives_is_refused_for_want_of_resources() {
    // Enough for all of them, and one byte less.
    let one = 76 + 256 + 8192;
    for (short, status) in [(0, LoginStatus::SUCCESS), (1, LoginStatus::OUT_OF_RESOURCES)] {
        let mover = mover_config(Role::Target);
        let mover = IserMoverConfig { receive_memory: mover.receives() * one - short, ..mover };
        let (active, passive, fabric) = pair(LoopbackConfig::default(), 5);
        let (connection, served) = serve_with(passive, Door::Memory, mover);
        let mut bench = Bench::new(connection, Side::Target, active, fabric, Some(served.store));
        bench.peer.receive(32, 76 + 8192);
        bench.settle();
        bench.peer.log_in(TARGET, "");
        bench.settle();
        let response = bench.peer.heard.pop_front().and_then(|heard| heard.bhs()).expect("login is answered");
        assert_eq!(LoginResponse::parse(&response).unwrap().status, status);
        assert_eq!(served.target.registry().sessions().len(), usize::from(short == 0));
        let reason = bench.pipe.connection.end_reason();
        assert_eq!(matches!(reason, Some(EndReason::Login(LoginError::Denied(_)))), short > 0, "{reason:?}");
        bench.finish(Ending::Disconnect);
    }
}

#[test]
fn a_bad_stag_of_a_read_touches_nothing() {
    for (what, reference) in bad_references(RemoteAccess::Write) {
        let mut rig = Rig::logged_in(LoopbackConfig::default());
        let read = Some(reference(&mut rig.bench, RemoteAccess::Write));
        rig.command(ControlHeader { read, write: None }, cdb10(false, 0, 16), (true, false), 8192);
        is_refused(&mut rig, what);
        rig.close(Ending::Disconnect);
    }
}

#[test]
fn a_bad_stag_of_a_write_brings_nothing() {
    for (what, reference) in bad_references(RemoteAccess::Read) {
        let mut rig = Rig::logged_in(LoopbackConfig::default());
        let write = Some(reference(&mut rig.bench, RemoteAccess::Read));
        rig.command(ControlHeader { read: None, write }, cdb10(true, 0, 16), (false, true), 8192);
        is_refused(&mut rig, what);
        let mut bytes = [0xee; 8192];
        rig.served.store.peek(0, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0), "{what}: it is not on the disk");
        rig.close(Ending::Disconnect);
    }
}

/// A command that wants more than it says, less than it says, or a part of a larger buffer.
#[test]
fn nothing_is_touched_but_what_a_command_asks_for() {
    let mut rig = Rig::logged_in(LoopbackConfig::default());
    for (blocks, expected, offset) in
        [(16, 8192, 0), (16, 512, 512), (16, 100, 1000), (4, 8192, 4096), (0, 512, 0), (16, 8192, 57_344), (1, 1, 7)]
    {
        let buffer = rig.bench.peer.advertise(RemoteAccess::Write, 65_536).unwrap();
        let read = Some(RemoteBuffer { offset: buffer.offset.wrapping_add(offset), ..buffer });
        rig.command(ControlHeader { read, write: None }, cdb10(false, 0, blocks), (true, false), expected);
        assert_eq!(rig.statuses().len(), 1, "{blocks} blocks, {expected} bytes");
        let after = rig.bench.peer.withdraw(0).bytes();
        let (start, most) = (offset as usize, expected.min(u32::from(blocks) * 512) as usize);
        let moved = after[start..].iter().take_while(|byte| **byte == 0).count();
        assert_eq!(moved, most, "{blocks} blocks, {expected} bytes at {offset}");
    }
    assert_eq!(rig.bench.peer.ended, None);
    rig.close(Ending::Disconnect);
}

#[test]
fn a_target_has_nothing_to_reach_for() {
    for reads in [false, true] {
        for own in [false, true] {
            let mut rig = Rig::logged_in(LoopbackConfig::default());
            let own = own.then(|| rig.bench.peer.advertise(RemoteAccess::Write, 512).unwrap());
            let at = own.unwrap_or(RemoteBuffer { stag: Stag(1), offset: 0 });
            if reads {
                rig.bench.peer.read(at, 512);
            } else {
                rig.bench.peer.write(at, &[1; 512]);
            }
            rig.bench.settle();
            assert!(matches!(rig.bench.peer.ended, Some(EndCause::ByPeer(_))), "{:?}", rig.bench.peer.ended);
            assert!(rig.bench.peer.fetched.is_empty());
            rig.close(Ending::Disconnect);
        }
    }
}

#[test]
fn a_message_longer_than_the_receive() {
    for logged_in in [false, true] {
        let config = LoopbackConfig::default();
        let mut rig = if logged_in { Rig::logged_in(config) } else { Rig::new(config) };
        rig.bench.peer.send(&vec![0x10; 100_000], None);
        rig.bench.settle();
        assert!(matches!(rig.bench.peer.ended, Some(EndCause::ByPeer(_))), "{:?}", rig.bench.peer.ended);
        rig.bench.wait(Duration::from_secs(1));
        assert!(rig.over());
        rig.close(Ending::Disconnect);
    }
}

fn ping(cmd_sn: u32) -> Vec<u8> {
    let ping = NopOut {
        immediate: true,
        lun: 0,
        itt: 1000 + cmd_sn,
        ttt: RESERVED_TAG,
        cmd_sn: Serial(cmd_sn),
        exp_stat_sn: Serial(1),
    };
    message(NONE, ping.emit(), &[], &[0x77; 64])
}

/// Before login there is one receive, then there are as many as the window lets in; a peer may send more at once.
#[test]
fn more_messages_than_receives() {
    for no_receive in [NoReceive::Ends, NoReceive::Waits] {
        for logged_in in [false, true] {
            let config = LoopbackConfig { no_receive, ..LoopbackConfig::default() };
            let mut rig = if logged_in { Rig::logged_in(config) } else { Rig::new(config) };
            for n in 0..200 {
                let bytes = ping(rig.cmd_sn + n);
                rig.bench.peer.send(&bytes, None);
            }
            rig.bench.settle();
            let pongs = rig
                .bench
                .peer
                .heard
                .iter()
                .filter(|heard| heard.bhs().map(|bhs| bhs.opcode()) == Some(Ok(Opcode::NopIn)));
            // Where messages wait for receives each has its turn; else the connection is over, or has kept up.
            if no_receive == NoReceive::Waits && logged_in {
                assert_eq!(pongs.count(), 200);
            }
            rig.close(Ending::Abort);
        }
    }
}

#[test]
fn an_initiator_without_receives() {
    for no_receive in [NoReceive::Ends, NoReceive::Waits] {
        for receives in [0, 1, 3] {
            let config = LoopbackConfig { no_receive, ..LoopbackConfig::default() };
            let (active, passive, fabric) = pair(config, 5);
            let (connection, served) = serve(passive, Door::Queue);
            let mut bench = Bench::new(connection, Side::Target, active, fabric, Some(served.store.clone()));
            bench.peer.reposts = false;
            bench.peer.receive(receives, 76 + 8192);
            bench.peer.log_in(TARGET, "");
            bench.settle();
            for n in 1..8 {
                let buffer = bench.peer.advertise(RemoteAccess::Write, 512);
                let bhs = scsi_command(n, n, cdb10(false, 0, 1), (true, false), 512);
                bench.peer.send(&message(ControlHeader { read: buffer, write: None }, bhs, &[], &[]), None);
            }
            bench.settle();
            bench.wait(Duration::from_secs(200));
            let mut rig = Rig { bench, served, cmd_sn: 1 };
            assert!(rig.over(), "{no_receive:?}, {receives} receives: it ends by itself");
            rig.close(Ending::Abort);
        }
    }
}

/// It hears nothing and says nothing any more, with commands under way.
#[test]
fn an_initiator_that_falls_silent() {
    for (lba, write) in [(0, false), (8, true)] {
        let mut rig = Rig::logged_in(LoopbackConfig::default());
        let access = if write { RemoteAccess::Read } else { RemoteAccess::Write };
        let buffer = rig.bench.peer.advertise(access, 8192);
        let (read, out) = if write { (None, buffer) } else { (buffer, None) };
        rig.post(ControlHeader { read, write: out }, cdb10(write, lba, 16), (!write, write), 8192);
        rig.bench.fabric.mute(iser_transport::loopback::End::Active);
        rig.bench.fabric.stall(iser_transport::loopback::End::Passive, 40);
        rig.bench.settle();
        rig.bench.wait(Duration::from_secs(200));
        assert!(rig.over(), "{:?}", rig.bench.pipe.connection.end_reason());
        rig.close(Ending::Vanish);
    }
}

/// It never answers the RDMA Read of a write.
#[test]
fn an_initiator_that_owes_data() {
    let mut rig = Rig::logged_in(LoopbackConfig::default());
    let buffer = rig.bench.peer.advertise(RemoteAccess::Read, 8192);
    rig.bench.fabric.mute(iser_transport::loopback::End::Active);
    rig.post(ControlHeader { read: None, write: buffer }, cdb10(true, 8, 16), (false, true), 8192);
    rig.bench.settle();
    rig.bench.wait(Duration::from_secs(29));
    assert_eq!(rig.bench.pipe.connection.end_reason(), None);
    rig.bench.wait(Duration::from_secs(15));
    assert_eq!(rig.bench.pipe.connection.end_reason(), Some(&EndReason::DataTimeout));
    rig.close(Ending::Vanish);
}

/// It asks for a reset, and never answers the RDMA Read of the write that the reset aborts: the session ends in a short time, and with it the write.
#[test]
fn an_initiator_that_owes_data_to_an_aborted_task() {
    let mut rig = Rig::logged_in(LoopbackConfig::default());
    let buffer = rig.bench.peer.advertise(RemoteAccess::Read, 8192);
    rig.bench.fabric.mute(iser_transport::loopback::End::Active);
    rig.post(ControlHeader { read: None, write: buffer }, cdb10(true, 8, 16), (false, true), 8192);
    rig.bench.settle();
    let reset = TaskManagementRequest {
        immediate: true,
        function: Ok(TaskFunction::LogicalUnitReset),
        itt: 5000,
        cmd_sn: Serial(rig.cmd_sn),
        ..TaskManagementRequest::default()
    };
    rig.bench.peer.send(&message(NONE, reset.emit(), &[], &[]), None);
    rig.bench.settle();
    assert_eq!(rig.bench.pipe.connection.end_reason(), None);
    rig.bench.wait(Duration::from_secs(3));
    assert_eq!(rig.bench.pipe.connection.end_reason(), Some(&EndReason::DataOwed));
    rig.close(Ending::Vanish);
}

impl Rig {
    /// A session that is logged out, with a connection that nobody has closed.
    fn logged_out() -> Self {
        let mut rig = Self::logged_in(LoopbackConfig::default());
        let logout = LogoutRequest {
            immediate: true,
            reason: LogoutReason::CloseSession,
            itt: 5000,
            cid: 0,
            cmd_sn: Serial(rig.cmd_sn),
            exp_stat_sn: Serial(1),
        };
        rig.bench.peer.send(&message(NONE, logout.emit(), &[], &[]), None);
        rig.bench.settle();
        let answer = rig.bench.peer.heard.back().and_then(Heard::bhs).map(|bhs| bhs.opcode());
        assert_eq!(answer, Some(Ok(Opcode::LogoutResponse)));
        assert!(rig.bench.peer.ended.is_none() && !rig.over(), "the initiator closes first");
        rig
    }
}

/// It closes the connection itself; one that does not is not waited for long.
#[test]
fn an_initiator_that_has_logged_out() {
    for ending in Ending::ALL {
        Rig::logged_out().close(ending);
    }
    let mut rig = Rig::logged_out();
    rig.bench.wait(Duration::from_millis(1900));
    assert!(!rig.over());
    rig.bench.wait(Duration::from_millis(200));
    assert!(rig.over());
    assert_eq!(rig.bench.peer.ended, Some(EndCause::PeerClosed));
    rig.close(Ending::Disconnect);
    // Nor does it hold up whoever waits for its session to end.
    let mut rig = Rig::logged_out();
    rig.served.target.registry().stop(Duration::ZERO);
    rig.bench.wait(Duration::from_millis(1));
    assert!(rig.over());
    assert_eq!(rig.bench.pipe.connection.end_reason(), Some(&EndReason::LoggedOut));
    rig.close(Ending::Disconnect);
}

#[test]
fn every_end_at_every_stage() {
    for ending in Ending::ALL {
        Rig::new(LoopbackConfig::default()).close(ending);
        // The request of login is on its way.
        let mut rig = Rig::new(LoopbackConfig::default());
        rig.bench.peer.log_in(TARGET, "");
        rig.close(ending);
        Rig::logged_in(LoopbackConfig::default()).close(ending);
        for write in [false, true] {
            for steps in 0..30 {
                let mut rig = Rig::logged_in(LoopbackConfig::default());
                let access = if write { RemoteAccess::Read } else { RemoteAccess::Write };
                let buffer = rig.bench.peer.advertise(access, 8192);
                let (read, out) = if write { (None, buffer) } else { (buffer, None) };
                rig.post(ControlHeader { read, write: out }, cdb10(write, 0, 16), (!write, write), 8192);
                for _ in 0..steps {
                    rig.bench.step();
                }
                rig.close(ending);
            }
        }
    }
}
