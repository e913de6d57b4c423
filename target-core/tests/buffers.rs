//! The buffers of all sessions stay within their budget, whatever initiators do not take or do not send, and those that
//! do their part go on.

use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use backstore::NullStore;
use iscsi_memory::SendList;
use iscsi_proto::connection::{Connection, StreamConnection};
use iscsi_proto::pdu::{BHS_LEN, Bhs, DataIn, DataOut, LoginRequest, Opcode, R2t, ScsiCommand};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{TargetConfig, TargetNode};
use target_core::registry::{Endpoints, Event};
use target_core::session::{Limits, Target, TargetConnection};

const NAME: &str = "iqn.2026-11.example:buffers";
const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2a;
const LEN: u32 = 256 << 10;

/// The target, and what it has told an operator.
struct World {
    target: Arc<Target>,
    endpoints: Endpoints,
    told: Arc<Mutex<Vec<Event>>>,
    now: Instant,
}

impl World {
    fn new(limits: Limits) -> Self {
        let address = "127.0.0.1:3260".parse().unwrap();
        let unit = LogicalUnit::new(Arc::new(NullStore::new(64 << 20)), Identity::from_seed(NAME)).unwrap();
        let node = TargetNode::builder().name(NAME).open().portal(address).lun(0, Arc::new(unit));
        let target = Target::new(TargetConfig::builder().node(node).build().unwrap(), limits);
        let told = Arc::<Mutex<Vec<Event>>>::default();
        let hears = told.clone();
        target.registry().set_on_event(move |event| hears.lock().unwrap().push(event.clone()));
        Self { target, endpoints: Endpoints { local: address, peer: address }, told, now: Instant::ZERO }
    }

    /// An initiator that is logged in.
    fn peer(&self, number: u32) -> Peer {
        let mover =
            TcpMover::with_buffers(Role::Target, TcpMoverConfig::default(), self.target.worker_pool(1).session());
        let connection = TargetConnection::new(self.target.clone(), mover, self.endpoints, [3; 64], self.now).unwrap();
        let mut peer = Peer { connection, cmd_sn: 1, received: Vec::new() };
        let text = format!(
            "InitiatorName=iqn.2026-11.example:{number}\0TargetName={NAME}\0SessionType=Normal\0InitialR2T=Yes\0\
             ImmediateData=No\0MaxRecvDataSegmentLength=262144\0MaxBurstLength=262144\0"
        );
        let request = LoginRequest::straight_to_full_feature([0x80, 1, 2, 3, 4, 5], 9);
        peer.send(request.emit(), text.as_bytes(), self.now);
        assert_eq!(peer.take(self.now).pop().unwrap().0[36], 0, "logged in");
        // The first command hears of what was before it.
        peer.command(0, 0, self.now);
        assert_eq!(peer.take(self.now).len(), 1);
        peer
    }

    fn within_budget(&self) {
        let budget = self.target.buffers();
        assert!(budget.out() <= budget.total(), "{budget:?}");
    }
}

struct Peer {
    connection: TargetConnection<TcpMover>,
    cmd_sn: u32,
    received: Vec<u8>,
}

impl Peer {
    fn wake(&mut self, now: Instant) {
        self.connection.handle_wake(&mut Context::from_waker(Waker::noop()), now);
        if self.connection.poll_timeout().is_some_and(|due| due <= now) {
            self.connection.handle_timeout(now);
        }
    }

    /// Hands over a PDU, and takes nothing. False if the target takes none now.
    fn send(&mut self, mut bhs: Bhs, data: &[u8], now: Instant) -> bool {
        bhs.set_data_segment_len(data.len() as u32);
        let mut bytes = [&bhs.0, data].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let mut at = 0;
        while at < bytes.len() {
            let n = self.connection.receive_window().fill(&bytes[at..]);
            if n == 0 {
                assert_eq!(at, 0, "a PDU that it has begun to take");
                return false;
            }
            self.connection.handle_received(n, now);
            at += n;
        }
        while {
            self.wake(now);
            self.connection.has_more_work()
        } {}
        true
    }

    fn command(&mut self, opcode: u8, blocks: u16, now: Instant) -> bool {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
        let command = ScsiCommand {
            read: opcode == READ_10,
            write: opcode == WRITE_10,
            itt: self.cmd_sn,
            expected_data_transfer_length: u32::from(blocks) * 512,
            cmd_sn: Serial(self.cmd_sn),
            cdb,
            ..ScsiCommand::default()
        };
        let taken = self.send(command.emit(), &[], now);
        self.cmd_sn += u32::from(taken);
        taken
    }

    /// Takes all that the target has to say, and gives the headers.
    fn take(&mut self, now: Instant) -> Vec<Bhs> {
        // Nobody wakes it in between: what is sent has to be enough for it to go on.
        self.wake(now);
        let mut idle = 0;
        while idle < 3 {
            idle += 1;
            if self.connection.has_more_work() {
                self.wake(now);
                idle = 0;
            }
            let mut list = SendList::default();
            self.connection.fill_send_list(&mut list);
            let mut sent = 0;
            for slice in list.as_slice() {
                let start = self.received.len();
                self.received.resize(start + slice.len(), 0);
                slice.copy_to(&mut self.received[start..]);
                sent += slice.len();
            }
            if sent > 0 {
                self.connection.handle_sent(sent, now);
                idle = 0;
            }
        }
        let mut headers = Vec::new();
        let mut rest = &self.received[..];
        while let Some((header, _)) = rest.split_first_chunk::<BHS_LEN>() {
            headers.push(Bhs(*header));
            rest = &rest[BHS_LEN + Bhs(*header).data_segment_len().next_multiple_of(4) as usize..];
        }
        self.received.clear();
        headers
    }

    /// A READ to its end: bytes in the order of their offsets, and status. None if the status has not come.
    fn read(&mut self, now: Instant) -> Option<u8> {
        self.command(READ_10, (LEN / 512) as u16, now);
        let mut got = 0;
        let mut ended = None;
        for bhs in self.take(now) {
            assert_eq!(bhs.opcode(), Ok(Opcode::DataIn));
            assert_eq!(DataIn::parse(&bhs).unwrap().buffer_offset, got);
            got += bhs.data_segment_len();
            if bhs.0[1] & 1 != 0 {
                ended = Some(bhs.0[3]);
            }
        }
        assert!(ended.is_none() || got == LEN, "{got} bytes");
        ended
    }

    /// Sends what an R2T asks for. Gives the status, if one comes.
    fn serve(&mut self, headers: &[Bhs], now: Instant) -> Option<u8> {
        let mut status = None;
        for bhs in headers {
            match bhs.opcode().unwrap() {
                Opcode::R2t => {
                    let r2t = R2t::parse(bhs).unwrap();
                    let out = DataOut {
                        is_final: true,
                        lun: r2t.lun,
                        itt: r2t.itt,
                        ttt: r2t.ttt,
                        exp_stat_sn: Serial(0),
                        data_sn: 0,
                        buffer_offset: r2t.buffer_offset,
                    };
                    self.send(out.emit(), &vec![7; r2t.desired_data_transfer_length as usize], now);
                    let answers = self.take(now);
                    status = status.or(self.serve(&answers, now));
                }
                Opcode::ScsiResponse => status = Some(bhs.0[3]),
                other => panic!("an unasked {other:?}"),
            }
        }
        status
    }
}

fn limits() -> Limits {
    Limits { connections: 600, logins: 600, nop_in_idle: None, ..Limits::default() }
}

#[test]
fn five_hundred_sessions_that_read_nothing_leave_room_for_one_that_does() {
    let world = World::new(limits());
    let now = world.now;
    let mut hogs: Vec<_> = (0..500).map(|number| world.peer(number)).collect();
    let mut taken = 0;
    for hog in &mut hogs {
        // As many as the target takes of one that reads nothing.
        taken = (0..100).take_while(|_| hog.command(READ_10, (LEN / 512) as u16, now)).count();
        assert!(taken > 0);
        world.within_budget();
    }
    assert!(world.target.buffers().out() > world.target.buffers().total() / 2, "{:?}", world.target.buffers());
    let mut reader = world.peer(1000);
    for _ in 0..50 {
        assert_eq!(reader.read(now), Some(0));
        world.within_budget();
    }
    let told = world.told.lock().unwrap().clone();
    assert!(matches!(told[..], [Event::BuffersShort { .. }]), "{told:?}");
    // Who begins to take what it asked for gets all of it.
    let hog = &mut hogs[499];
    let ends = hog.take(now).iter().filter(|bhs| bhs.0[1] & 1 != 0 && bhs.0[3] == 0).count();
    assert_eq!(ends, taken);
    drop(hogs);
    drop(reader);
    assert_eq!(world.target.buffers().out(), 0);
}

#[test]
fn writers_that_do_not_send_give_way_to_one_that_does() {
    let mut world = World::new(limits());
    let mut hogs = hogs(&world);
    world.within_budget();
    let mut writer = world.peer(1000);
    writer.command(WRITE_10, (LEN / 512) as u16, world.now);
    assert!(writer.take(world.now).is_empty(), "it waits");
    assert!(world.target.buffers().waiting() > 0);
    // What is little goes on.
    let mut small = world.peer(1001);
    small.command(WRITE_10, 128, world.now);
    let asked = small.take(world.now);
    assert_eq!(small.serve(&asked, world.now), Some(0));
    let mut status = None;
    let mut seconds = 0;
    while status.is_none() {
        seconds += 1;
        assert!(seconds < 60, "everybody gets a turn: {:?}", world.target.buffers());
        world.now = world.now + Duration::from_secs(1);
        for hog in &mut hogs {
            hog.take(world.now);
        }
        world.within_budget();
        let asked = writer.take(world.now);
        status = writer.serve(&asked, world.now);
    }
    assert_eq!(status, Some(0));
    drop((hogs, writer, small));
    assert_eq!(world.target.buffers().out(), 0);
}

/// Three hundred initiators that send nothing of what they were asked for.
fn hogs(world: &World) -> Vec<Peer> {
    let mut hogs: Vec<_> = (0..300).map(|number| world.peer(number)).collect();
    for hog in &mut hogs {
        for _ in 0..20 {
            hog.command(WRITE_10, (LEN / 512) as u16, world.now);
        }
        hog.take(world.now);
    }
    hogs
}

fn opcodes(headers: &[Bhs]) -> Vec<Opcode> {
    headers.iter().map(|bhs| bhs.opcode().unwrap()).collect()
}

#[test]
fn one_command_of_a_session_waits_whatever_else_it_has() {
    let world = World::new(limits());
    let hogs = hogs(&world);
    let mut writer = world.peer(1000);
    writer.command(WRITE_10, 1, world.now);
    writer.command(WRITE_10, (LEN / 512) as u16, world.now);
    assert_eq!(opcodes(&writer.take(world.now)), [Opcode::R2t], "the second waits");
    writer.command(WRITE_10, (LEN / 512) as u16, world.now);
    let told = writer.take(world.now);
    assert_eq!(opcodes(&told), [Opcode::ScsiResponse], "one waits for all");
    assert_eq!(told[0].0[3], 0x28, "TASK SET FULL");
    drop(hogs);
}

#[test]
fn who_let_others_wait_gets_no_more_than_its_own_meanwhile() {
    let mut world = World::new(limits());
    let mut hogs = hogs(&world);
    let failed = |headers: &[Bhs]| headers.iter().any(|bhs| bhs.0[3] == 0x02);
    let mut seconds = 0;
    while !failed(&hogs[0].take(world.now)) {
        seconds += 1;
        assert!(seconds < 10, "its data did not come, and others wait");
        world.now = world.now + Duration::from_secs(1);
    }
    assert!(world.target.buffers().waiting() > 0);
    hogs[0].command(WRITE_10, (LEN / 512) as u16, world.now);
    let told = hogs[0].take(world.now);
    assert_eq!(opcodes(&told), [Opcode::ScsiResponse], "it does not wait with those who have not had their turn");
    assert!(matches!(told[0].0[3], 0x08 | 0x28), "{told:?}");
    // Its own it has.
    hogs[0].command(WRITE_10, 1, world.now);
    let asked = hogs[0].take(world.now);
    assert_eq!(hogs[0].serve(&asked, world.now), Some(0));
    // And all when nobody waits.
    hogs.truncate(1);
    hogs[0].command(WRITE_10, (LEN / 512) as u16, world.now);
    let asked = hogs[0].take(world.now);
    assert_eq!(hogs[0].serve(&asked, world.now), Some(0));
}
