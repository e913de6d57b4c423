//! Whole connections of either role over the TCP mover: bytes in any chunks, time, store completions, room to send or none, ends of the stream.

use std::time::Duration;

use initiator_core::InitiatorConnection;
use iscsi_proto::connection::{Connection, StreamConnection, StreamEnd};
use iscsi_proto::login::Offer;
use iscsi_proto::parameters::Digest;
use iscsi_proto::pdu::{BHS_LEN, Bhs, DataIn, DataInStatus, LoginRequest, LoginResponse, R2t, Residual};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use target_core::session;

use super::ends::{self, TARGET};
use crate::hostile::{any_request, login, wire};
use crate::input::Input;
use crate::link::{Link, LinkPlan, Side};
use crate::network::Network;
use crate::pipe::{Bytes, Drive as _, Pipe};
use crate::rng::Rng;
use crate::store::SimStore;

/// A connection under the fuzzer's hand.
struct Bench<C> {
    pipe: Pipe<C, Bytes>,
    network: Network,
    side: Side,
    store: Option<SimStore>,
    now: Instant,
}

impl<C: StreamConnection> Bench<C> {
    fn new(connection: C, side: Side, chunk: usize, store: Option<SimStore>) -> Self {
        let plan = LinkPlan { delay: Duration::ZERO, chunk, ..LinkPlan::calm() };
        Self {
            pipe: Pipe::new(connection, 0, side),
            network: Network::Bytes(Box::new(Link::new(plan, Rng::new(0, 1)))),
            side,
            store,
            now: Instant::ZERO,
        }
    }

    fn settle(&mut self) {
        for _ in 0..200_000 {
            if let Some(store) = &self.store {
                store.advance(self.now);
            }
            let any = self.pipe.run(&mut self.network, self.now).expect("the driving contract");
            // What it sends is taken and not looked at.
            let sent = self.network.discard(self.side.other(), self.now);
            if !any && !sent {
                return;
            }
        }
        panic!("no rest");
    }

    fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(1 << 16) {
            if let Some(link) = self.network.as_link() {
                link.send(self.side.other(), piece.to_vec(), self.now);
            }
            self.settle();
        }
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..2000 {
            let store = self.store.as_ref().and_then(SimStore::next);
            let next =
                [self.pipe.connection.poll_timeout(), store].into_iter().flatten().filter(|at| *at <= until).min();
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            self.settle();
        }
        self.now = self.now.max(until);
        self.settle();
    }

    /// The stream ends, and with it, in time, the connection.
    fn finish(&mut self, broken: bool) {
        if broken {
            self.pipe.connection.handle_stream_end(StreamEnd::Broken, self.now);
        } else {
            self.network.close(self.side.other(), self.now);
        }
        self.settle();
        self.wait(Duration::from_secs(200));
        assert!(self.pipe.connection.is_finished(), "a connection without a stream ends");
    }
}

/// Bytes, requests and time for a target's connection.
pub fn target_connection(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let served = ends::target(flags >> 1, session::Limits::default());
    let mover = TcpMover::new(
        Role::Target,
        TcpMoverConfig { max_tasks: 24, staging_size: 16 << 10, ..TcpMoverConfig::default() },
    );
    let connection = served.accept(mover);
    let chunk = if flags & 0x80 != 0 { 1 + usize::from(flags >> 4 & 7) * 13 } else { 65536 };
    let mut bench = Bench::new(connection, Side::Target, chunk, Some(served.store.clone()));
    bench.settle();
    if flags & 1 == 0 {
        let digest = if flags & 8 != 0 {
            "HeaderDigest=CRC32C\0DataDigest=CRC32C\0"
        } else {
            "ImmediateData=Yes\0InitialR2T=No\0"
        };
        bench.feed(&login(TARGET, "iqn.2026-11.example.sim:fuzz", [0x80, 0, 0, 0, 0, 1], digest));
    }
    let mut cmd_sn = 1;
    while !input.is_empty() && !bench.pipe.connection.is_finished() {
        match input.below(6) {
            0 => bench.feed(input.chunk()),
            1 | 2 => {
                let bytes = any_request(&mut Rng::new(input.u16().into(), 3), &mut cmd_sn);
                bench.feed(&bytes);
            }
            3 => {
                let bhs = Bhs(input.array::<BHS_LEN>());
                let data = input.chunk();
                bench.feed(&wire(bhs, data));
            }
            4 => bench.wait(Duration::from_millis(input.u16().into())),
            _ => bench.pipe.wake(),
        }
    }
    bench.finish(flags & 0x40 != 0);
    drop(bench);
    served.check_over();
}

/// Bytes, responses and time for an initiator's connection under load.
pub fn initiator_connection(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let (engine, verdict) = ends::engine(flags, 32);
    let mover = TcpMover::new(
        Role::Initiator,
        TcpMoverConfig { max_tasks: 16, staging_size: 16 << 10, ..TcpMoverConfig::default() },
    );
    let offer = Offer { header_digest: vec![Digest::None], data_digest: vec![Digest::None], ..Offer::default() };
    let connection =
        InitiatorConnection::new(mover, engine, ends::login(offer), Duration::from_secs(15), Instant::ZERO);
    let mut bench = Bench::new(connection, Side::Initiator, if flags & 0x80 != 0 { 7 } else { 65536 }, None);
    bench.settle();
    let mut stat_sn = 1u32;
    if flags & 1 == 0 {
        let response = LoginResponse {
            tsih: 1,
            stat_sn: Serial(stat_sn),
            max_cmd_sn: Serial(16),
            ..LoginResponse::granting(&LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 0, 1], 0))
        };
        stat_sn += 1;
        let text = b"TargetPortalGroupTag=1\0HeaderDigest=None\0DataDigest=None\0MaxRecvDataSegmentLength=8192\0InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=65536\0FirstBurstLength=8192\0MaxOutstandingR2T=4\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0MaxConnections=1\0ErrorRecoveryLevel=0\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0";
        bench.feed(&wire(response.emit(), text));
    }
    while !input.is_empty() && !bench.pipe.connection.is_finished() {
        match input.below(7) {
            0 => bench.feed(input.chunk()),
            1 => {
                let bhs = Bhs(input.array::<BHS_LEN>());
                bench.feed(&wire(bhs, input.chunk()));
            }
            2 => bench.feed(&any_response(&mut input, &mut stat_sn)),
            3 => bench.feed(&any_data_in(&mut input, &mut stat_sn)),
            4 => bench.feed(&any_r2t(&mut input, stat_sn)),
            5 => bench.wait(Duration::from_millis(input.u16().into())),
            _ => bench.pipe.wake(),
        }
    }
    bench.finish(flags & 0x40 != 0);
    let Bench { pipe, now, .. } = bench;
    let (engine, ..) = pipe.connection.into_parts(now);
    engine.into_app(now).check_over();
    assert_eq!(verdict.get(), None);
}

/// Tags of the engine's tasks: a generation and a slot.
fn tag(input: &mut Input<'_>) -> u32 {
    let byte = input.u8();
    u32::from(byte >> 4) << 16 | u32::from(byte & 15)
}

fn any_response(input: &mut Input<'_>, stat_sn: &mut u32) -> Vec<u8> {
    let code = [0x20, 0x21, 0x22, 0x24, 0x26, 0x32, 0x3f][usize::from(input.below(7))];
    let mut bhs = Bhs([0; BHS_LEN]);
    bhs.0[0] = code;
    bhs.0[1] = 0x80 | input.u8();
    bhs.0[2] = input.below(3);
    bhs.0[3] = input.below(9);
    bhs.0[16..20].copy_from_slice(&tag(input).to_be_bytes());
    bhs.0[20..24].copy_from_slice(&[0xff; 4]);
    bhs.0[24..28].copy_from_slice(&stat_sn.to_be_bytes());
    *stat_sn += 1;
    bhs.0[28..32].copy_from_slice(&1u32.to_be_bytes());
    bhs.0[32..36].copy_from_slice(&(16 + *stat_sn).to_be_bytes());
    wire(bhs, input.chunk())
}

fn any_data_in(input: &mut Input<'_>, stat_sn: &mut u32) -> Vec<u8> {
    let kind = input.u8();
    let status = (kind & 1 != 0).then(|| {
        *stat_sn += 1;
        DataInStatus { status: 0, residual: Residual::None, stat_sn: Serial(*stat_sn - 1) }
    });
    let data_in = DataIn {
        is_final: kind & 2 != 0,
        acknowledge: false,
        status,
        lun: 0,
        itt: tag(input),
        ttt: 0xffff_ffff,
        exp_cmd_sn: Serial(1),
        max_cmd_sn: Serial(32),
        data_sn: u32::from(kind >> 6),
        buffer_offset: u32::from(input.below(4)) * 512,
    };
    let len = [0, 512, 1024, 8192][usize::from(kind >> 2 & 3)];
    wire(data_in.emit(), &vec![kind; len])
}

fn any_r2t(input: &mut Input<'_>, stat_sn: u32) -> Vec<u8> {
    let kind = input.u8();
    let r2t = R2t {
        lun: 0,
        itt: tag(input),
        ttt: u32::from(kind),
        stat_sn: Serial(stat_sn),
        exp_cmd_sn: Serial(1),
        max_cmd_sn: Serial(32),
        r2t_sn: u32::from(kind >> 6),
        buffer_offset: u32::from(input.u8()) * 512,
        desired_data_transfer_length: 1 + u32::from(input.u16()),
    };
    wire(r2t.emit(), &[])
}
