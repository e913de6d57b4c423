//! Whole connections of either role over the iSER mover, whose peer is a bare queue pair: messages right and wrong, RDMA to what is advertised and next to
//! it, receives or none, time, store completions, and the end in all its ways.
//!
//! After each run: the connection has ended in bounded time, everything posted and advertised came back, and no byte changed that no command asked for.

use std::time::Duration;

use initiator_core::InitiatorConnection;
use iscsi_proto::connection::{Connection as _, QueueConnection};
use iscsi_proto::login::Offer;
use iscsi_proto::pdu::{
    BHS_LEN, Bhs, DataOut, NopIn, NopOut, Opcode, RESERVED_TAG, Residual, emit_bidirectional_read_length,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::Role;
use iscsi_proto::time::Instant;
use iser_transport::header::{ControlHeader, HEADERS_LEN, Header, Hello, HelloReply, VERSION};
use iser_transport::loopback::{End, EndConfig, LoopbackConfig, NoReceive, pair};
use iser_transport::mover::{IserMover, IserMoverConfig};
use iser_transport::queue::{QueueLimits, RemoteAccess, RemoteBuffer, Stag};
use target_core::session;

use super::ends::{self, TARGET};
use crate::by_hand::{Bench, Ending, cdb10, message, scsi_command, scsi_response};
use crate::hostile::any_request;
use crate::input::Input;
use crate::link::Side;
use crate::pipe::Drive as _;
use crate::rng::Rng;

const OPERATIONS: usize = 300;
/// Bytes of a receive of the peer.
const RECEIVE: usize = HEADERS_LEN + 8192;

/// A network whose `tested` end is a session's with such a mover.
fn network(how: u8, tested: End, mover: &IserMoverConfig) -> LoopbackConfig {
    let scarce = how & 0x08 != 0;
    let ours = EndConfig {
        private: vec![0; 4],
        limits: QueueLimits {
            work: if scarce { 4 } else { mover.work() },
            receives: mover.receives(),
            transfer: if scarce { 4096 } else { 1 << 20 },
        },
        advertisements: if scarce { 2 } else { 64 },
        ..EndConfig::default()
    };
    let peer = EndConfig {
        private: [vec![], vec![0], vec![0xc0, 0, 0, 0], vec![0x80; 600]][usize::from(how & 3)].clone(),
        read_depth: if scarce { 1 } else { 16 },
        ..EndConfig::default()
    };
    let (active, passive) = if tested == End::Active { (ours, peer) } else { (peer, ours) };
    LoopbackConfig {
        active,
        passive,
        no_receive: if how & 4 != 0 { NoReceive::Waits } else { NoReceive::Ends },
        pad_private: how & 0x10 != 0,
        ..LoopbackConfig::default()
    }
}

/// Any message is a header that reads as it is written, or none.
fn header_reads_as_written(bytes: &[u8]) {
    if let Ok(header) = Header::parse(bytes) {
        assert_eq!(Header::parse(&header.emit()), Ok(header));
    }
}

fn any_header(input: &mut Input<'_>) -> Header {
    let kind = input.u8();
    let versions = input.u8();
    let depth = input.u8().into();
    match kind & 3 {
        0 => Header::HelloReply(HelloReply {
            rejected: kind & 4 != 0,
            max_version: versions >> 4,
            current_version: versions & 15,
            ord: depth,
        }),
        1 => Header::HelloReply(HelloReply {
            rejected: false,
            max_version: VERSION,
            current_version: VERSION,
            ord: depth,
        }),
        2 => Header::Hello(Hello { max_version: versions >> 4, min_version: versions & 15, ird: depth }),
        _ => Header::Hello(Hello { max_version: VERSION, min_version: VERSION, ird: depth }),
    }
}

/// What a session of either role is told and done, whatever its role.
fn disturb<C: QueueConnection>(bench: &mut Bench<C>, input: &mut Input<'_>) {
    match input.below(8) {
        0 => {
            let bytes = input.chunk();
            header_reads_as_written(bytes);
            bench.peer.send(bytes, None);
        }
        1 => {
            let (bhs, ahs, data) = (Bhs(input.array::<BHS_LEN>()), usize::from(input.below(4)) * 4, input.chunk());
            let bytes = message(ControlHeader::default(), bhs, &vec![1; ahs], data);
            bench.peer.send(&bytes, None);
        }
        2 => {
            let header = any_header(input).emit();
            header_reads_as_written(&header);
            bench.peer.send(&header[..header.len() - usize::from(input.below(2))], None);
        }
        3 => {
            let invalidate = Stag(input.u32());
            let nop = NopOut {
                immediate: true,
                lun: 0,
                itt: 900,
                ttt: RESERVED_TAG,
                cmd_sn: Serial(1),
                exp_stat_sn: Serial(1),
            };
            bench.peer.send(&message(ControlHeader::default(), nop.emit(), &[], &[]), Some(invalidate));
        }
        4 => bench.peer.reposts = input.flag(),
        5 => {
            let (count, len) = (input.below(40), input.u16());
            bench.peer.receive(count.into(), len.into());
        }
        6 => {
            let (steps, ours) = (input.u8(), input.flag());
            bench.fabric.stall(if ours { End::Active } else { End::Passive }, steps.into());
        }
        _ => bench.pipe.wake(),
    }
}

/// An initiator by hand against a target's connection.
pub fn iser_target(data: &[u8]) {
    let mut input = Input::new(data);
    let (flags, how) = (input.u8(), input.u8());
    let hello = flags & 8 != 0;
    let limits = session::Limits {
        offer: Offer { iser_hello_required: hello, initial_r2t: flags & 0x10 != 0, ..Offer::default() },
        ..session::Limits::default()
    };
    let served = ends::target(flags >> 1, limits);
    let mover = IserMoverConfig { max_tasks: 24, receive_slack: 24, ..IserMoverConfig::new(Role::Target) };
    let (active, passive, fabric) = pair(network(how, End::Passive, &mover), flags.into());
    let connection = served.accept(IserMover::new(passive, mover));
    let mut bench = Bench::new(connection, Side::Target, active, fabric, Some(served.store.clone()));
    bench.peer.receive(48, RECEIVE);
    bench.settle();
    if flags & 1 == 0 {
        bench.peer.log_in(TARGET, if hello { "iSERHelloRequired=Yes\0" } else { "" });
        bench.settle();
        assert_eq!(served.target.registry().sessions().len(), 1, "the login is right");
        if hello && flags & 0x20 == 0 {
            let hello = Hello { max_version: VERSION, min_version: VERSION, ird: 4 };
            bench.peer.send(&Header::Hello(hello).emit(), None);
        }
    }
    let mut cmd_sn = 1;
    for _ in 0..OPERATIONS {
        if input.is_empty() || bench.pipe.connection.is_finished() {
            break;
        }
        initiate(&mut bench, &mut input, &mut cmd_sn);
        bench.peer.heard.clear();
        bench.settle();
    }
    bench.finish(Ending::ALL[usize::from(how >> 5) % Ending::ALL.len()]);
    drop(bench);
    served.check_over();
}

/// A buffer that is advertised, or one beside it.
fn some_buffer<C: QueueConnection>(bench: &Bench<C>, input: &mut Input<'_>) -> RemoteBuffer {
    let (which, beside) = (input.u8(), input.u8());
    let any = RemoteBuffer { stag: Stag(which.into()), offset: beside.into() };
    let advertised = bench.peer.advertised.get(usize::from(which) % bench.peer.advertised.len().max(1));
    let buffer = advertised.map_or(any, |advertised| advertised.buffer);
    // Mostly right; else off by blocks in either direction.
    let off = if beside < 0xc0 { 0 } else { i64::from(beside as i8) * 512 };
    RemoteBuffer { offset: buffer.offset.wrapping_add_signed(off), ..buffer }
}

/// One operation of an initiator.
fn initiate<C: QueueConnection>(bench: &mut Bench<C>, input: &mut Input<'_>, cmd_sn: &mut u32) {
    match input.below(10) {
        0 if bench.peer.advertised.len() < 8 => {
            let (write, len) = (input.flag(), input.u16());
            bench.peer.advertise(if write { RemoteAccess::Write } else { RemoteAccess::Read }, len.into());
        }
        1 if !bench.peer.advertised.is_empty() => {
            let at = usize::from(input.u8()) % bench.peer.advertised.len();
            bench.peer.withdraw(at);
        }
        2..5 => {
            let (kind, itt, lba, blocks) = (input.u8(), input.below(20), input.u8(), input.below(40));
            let (read, write) = (kind & 1 == 0, kind & 1 != 0 || kind & 0x0e == 0x0e);
            let expected = match kind >> 4 & 3 {
                0 => input.u16().into(),
                _ => u32::from(blocks) * 512,
            };
            let immediate = if kind & 0x40 != 0 && write { usize::from(input.u16() % 9000) } else { 0 };
            let control = ControlHeader {
                read: (read ^ (kind & 0x8f == 0x88)).then(|| some_buffer(bench, input)),
                write: (write && immediate < expected as usize).then(|| some_buffer(bench, input)),
            };
            let mut ahs = Vec::new();
            if read && write {
                emit_bidirectional_read_length(&mut ahs, input.u16().into());
            }
            let mut bhs = scsi_command(itt.into(), *cmd_sn, cdb10(write, lba, blocks), (read, write), expected);
            if kind & 0x8f == 0x81 {
                // Unsolicited data are to follow.
                bhs.0[1] &= 0x7f;
            }
            *cmd_sn = cmd_sn.wrapping_add(1);
            bench.peer.send(&message(control, bhs, &ahs, &vec![0x33; immediate]), None);
        }
        5 => {
            let bytes = any_request(&mut Rng::new(input.u16().into(), 3), cmd_sn);
            let flags = input.u8();
            let control = ControlHeader {
                read: (flags & 1 != 0).then(|| some_buffer(bench, input)),
                write: (flags & 2 != 0).then(|| some_buffer(bench, input)),
            };
            bench.peer.send(&[&Header::Control(control).emit()[..], &bytes].concat(), None);
        }
        6 => {
            let (itt, data_sn, offset, len) = (input.below(20), input.below(4), input.u16(), input.u16());
            let data_out = DataOut {
                is_final: len & 1 != 0,
                lun: 0,
                itt: itt.into(),
                ttt: RESERVED_TAG,
                exp_stat_sn: Serial(1),
                data_sn: data_sn.into(),
                buffer_offset: offset.into(),
            };
            let data = vec![0x44; usize::from(len % 9000)];
            bench.peer.send(&message(ControlHeader::default(), data_out.emit(), &[], &data), None);
        }
        // A target advertises nothing: whatever this names, it ends the connection.
        7 if input.below(16) == 0 => {
            let to = RemoteBuffer { stag: Stag(input.u32()), offset: u64::from(input.u32()) };
            if input.flag() {
                bench.peer.write(to, &[1; 100]);
            } else {
                bench.peer.read(to, 100);
            }
        }
        8 => bench.wait(Duration::from_millis(input.u16().into())),
        _ => disturb(bench, input),
    }
}

/// What a session asked of the target by hand.
struct Asked {
    itt: u32,
    control: ControlHeader,
    expected: u32,
}

/// A target by hand against an initiator's connection under load.
pub fn iser_initiator(data: &[u8]) {
    let mut input = Input::new(data);
    let (flags, how) = (input.u8(), input.u8());
    let (engine, verdict) = ends::engine(flags, 48);
    // Receives of the default length, 256 KiB each, are zeroed and given back in every run: that took nearly all of its time.
    let offer =
        Offer { iser_hello_required: flags & 8 != 0, initiator_recv_data_segment_length: 8192, ..Offer::default() };
    let login = ends::login(offer);
    let mover = IserMoverConfig { max_tasks: 16, receive_slack: 16, ..IserMoverConfig::new(Role::Initiator) };
    let (active, passive, fabric) = pair(network(how, End::Active, &mover), flags.into());
    let mover = IserMover::new(active, mover);
    let connection = InitiatorConnection::new(mover, engine, login, Duration::from_secs(15), Instant::ZERO);
    let mut bench = Bench::new(connection, Side::Initiator, passive, fabric, None);
    bench.peer.receive(48, RECEIVE);
    bench.settle();
    if flags & 1 == 0 {
        assert!(bench.peer.admit(), "a login begins");
        bench.settle();
        assert!(bench.pipe.connection.logged_in_at().is_some(), "the login is right");
        if flags & 0x28 == 8 {
            let reply = HelloReply { rejected: false, max_version: VERSION, current_version: VERSION, ord: 4 };
            bench.peer.send(&Header::HelloReply(reply).emit(), None);
            bench.settle();
        }
    }
    let (mut asked, mut stat_sn) = (Vec::new(), 1);
    for _ in 0..OPERATIONS {
        if input.is_empty() || bench.pipe.connection.is_finished() {
            break;
        }
        listen(&mut bench, &mut asked, &mut stat_sn, flags & 0x40 == 0);
        serve(&mut bench, &mut input, &asked, &mut stat_sn);
        bench.settle();
    }
    bench.finish(Ending::ALL[usize::from(how >> 5) % Ending::ALL.len()]);
    let Bench { pipe, now, .. } = bench;
    let (engine, ..) = pipe.connection.into_parts(now);
    engine.into_app(now).check_over();
    assert_eq!(verdict.get(), None);
}

/// Notes what the initiator asked; answers its pings, if it is to live.
fn listen<C: QueueConnection>(bench: &mut Bench<C>, asked: &mut Vec<Asked>, stat_sn: &mut u32, pongs: bool) {
    while let Some(heard) = bench.peer.heard.pop_front() {
        let Some(bhs) = heard.bhs() else { continue };
        match bhs.opcode() {
            Ok(Opcode::ScsiCommand) => {
                if asked.len() == 16 {
                    asked.remove(0);
                }
                let expected = u32::from_be_bytes([bhs.0[20], bhs.0[21], bhs.0[22], bhs.0[23]]);
                asked.push(Asked { itt: bhs.itt(), control: heard.control(), expected });
            }
            Ok(Opcode::NopOut) if pongs => {
                let pong = NopIn {
                    lun: 0,
                    itt: bhs.itt(),
                    ttt: RESERVED_TAG,
                    stat_sn: Serial(*stat_sn),
                    exp_cmd_sn: Serial(1),
                    max_cmd_sn: Serial(64),
                };
                *stat_sn += 1;
                bench.peer.send(&message(ControlHeader::default(), pong.emit(), &[], &[]), None);
            }
            _ => {}
        }
    }
}

/// One operation of a target.
fn serve<C: QueueConnection>(bench: &mut Bench<C>, input: &mut Input<'_>, asked: &[Asked], stat_sn: &mut u32) {
    let operation = input.below(9);
    let which = usize::from(input.u8());
    let Some(command) = asked.get(which % asked.len().max(1)) else {
        return match operation {
            0..4 => bench.wait(Duration::from_millis(20)),
            _ => disturb(bench, input),
        };
    };
    let (itt, control, expected) = (command.itt, command.control, command.expected);
    match operation {
        // As it should be: the data, then the status, perhaps with the STag's end.
        0 | 1 => {
            if let Some(to) = control.read {
                bench.peer.write(to, &vec![0x55; expected as usize]);
            }
            if let Some(from) = control.write {
                bench.peer.read(from, expected as usize);
            }
            let invalidate = control.read.or(control.write).filter(|_| input.flag()).map(|buffer| buffer.stag);
            let bhs = scsi_response(itt, *stat_sn, 0, Residual::None);
            *stat_sn += 1;
            bench.peer.send(&message(ControlHeader::default(), bhs, &[], &[]), invalidate);
        }
        // Beside it.
        2 => {
            let (writes, off, len) = (input.flag(), input.u16(), input.u16());
            let buffer = if input.flag() { control.read.or(control.write) } else { control.write.or(control.read) };
            let buffer = buffer.unwrap_or_default();
            let buffer = RemoteBuffer { offset: buffer.offset.wrapping_add_signed((off as i16).into()), ..buffer };
            if writes {
                bench.peer.write(buffer, &vec![0x66; len.into()]);
            } else {
                bench.peer.read(buffer, len.into());
            }
        }
        // A status that does not fit.
        3 => {
            let (status, kind, amount) = (input.u8(), input.u8(), input.u16());
            let residual = match kind & 3 {
                0 => Residual::None,
                1 => Residual::Overflow(amount.into()),
                _ => Residual::Underflow(amount.into()),
            };
            let other = asked.get(usize::from(kind >> 2) % asked.len()).and_then(|other| other.control.read);
            let invalidate = if kind & 0x80 != 0 { other.map(|buffer| buffer.stag) } else { None };
            let bhs = scsi_response(itt, *stat_sn, status, residual);
            *stat_sn += 1;
            bench.peer.send(&message(ControlHeader::default(), bhs, &[], input.chunk()), invalidate);
        }
        // Any other PDU of a target.
        4 => {
            let code = [0x20, 0x21, 0x22, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3f][usize::from(input.below(9))];
            let mut bhs = Bhs([0; BHS_LEN]);
            bhs.0[0] = code;
            bhs.0[1] = 0x80 | input.u8();
            bhs.0[2] = input.below(3);
            bhs.0[3] = input.below(9);
            bhs.0[16..20].copy_from_slice(&itt.to_be_bytes());
            bhs.0[20..24].copy_from_slice(&[0xff; 4]);
            bhs.0[24..28].copy_from_slice(&stat_sn.to_be_bytes());
            *stat_sn += 1;
            bhs.0[28..32].copy_from_slice(&1u32.to_be_bytes());
            bhs.0[32..36].copy_from_slice(&64u32.to_be_bytes());
            bench.peer.send(&message(ControlHeader::default(), bhs, &[], input.chunk()), None);
        }
        5 | 6 => bench.wait(Duration::from_millis(input.u16().into())),
        _ => disturb(bench, input),
    }
}
