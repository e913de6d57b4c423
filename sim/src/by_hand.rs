//! An iSER connection of which one end is a session of ours, and the other a bare queue pair that says what it likes.
//!
//! [`ByHand`] is that queue pair: it composes messages, right or wrong, and keeps book of what it lets the session reach. [`Bench`] has both and moves
//! them on virtual time.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use iscsi_memory::{Buf, Lease, Payload, Region};
use iscsi_proto::connection::QueueConnection;
use iscsi_proto::pdu::{
    Ahs, AhsIter, BHS_LEN, Bhs, LoginRequest, LoginResponse, Opcode, Residual, ScsiCommand, ScsiResponse,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;
use iser_transport::header::{ControlHeader, HEADER_LEN, HEADERS_LEN, Header};
use iser_transport::loopback::{End, Fabric, LoopbackQueue};
use iser_transport::queue::{Completion, EndCause, Established, QueuePair, RemoteAccess, RemoteBuffer, Stag, Work};

use crate::fabric::{FabricLink, FabricPlan};
use crate::link::Side;
use crate::network::Network;
use crate::pipe::{Completions, Drive as _, Pipe};
use crate::rng::Rng;
use crate::store::SimStore;

/// What advertised memory holds at first.
pub const FILL: u8 = 0xa5;
/// Bytes of lent memory beside what is advertised of it, on either side.
const GUARD: usize = 512;
/// Messages that are remembered.
const MEMORY: usize = 256;

/// A buffer that the session may reach.
#[derive(Debug)]
pub struct Advertised {
    /// What is told of it.
    pub buffer: RemoteBuffer,
    /// What may be done with it.
    pub access: RemoteAccess,
    region: Arc<Region>,
    /// What commands asked to be filled.
    granted: Vec<Range<usize>>,
}

impl Advertised {
    fn len(&self) -> usize {
        self.region.len() as usize - 2 * GUARD
    }

    /// What it holds now.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.region.read(GUARD as u64, &mut bytes);
        bytes
    }

    /// No byte has changed that no command asked for.
    ///
    /// # Panics
    /// If one has.
    pub fn check(&self) {
        let mut bytes = vec![0; self.region.len() as usize];
        self.region.read(0, &mut bytes);
        for granted in &self.granted {
            bytes[GUARD + granted.start..GUARD + granted.end].fill(FILL);
        }
        let changed = bytes.iter().position(|byte| *byte != FILL);
        assert_eq!(changed, None, "a byte changed that no command asked for, {GUARD} is the first that is advertised");
    }
}

/// A message that came.
#[derive(Debug, Clone)]
pub struct Heard {
    /// All of it.
    pub bytes: Vec<u8>,
    /// The STag that it invalidated.
    pub invalidated: Option<Stag>,
}

impl Heard {
    /// Its PDU's header, if it has one.
    #[must_use]
    pub fn bhs(&self) -> Option<Bhs> {
        self.bytes.get(HEADER_LEN..)?.first_chunk::<BHS_LEN>().map(|bhs| Bhs(*bhs))
    }

    /// Its STags.
    #[must_use]
    pub fn control(&self) -> ControlHeader {
        match Header::parse(&self.bytes) {
            Ok(Header::Control(control)) => control,
            _ => ControlHeader::default(),
        }
    }

    /// The data segment.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        let Some(bhs) = self.bhs() else { return &[] };
        let start = HEADERS_LEN + bhs.ahs_len();
        self.bytes.get(start..start + bhs.data_segment_len() as usize).unwrap_or_default()
    }
}

/// A message of iSER: header, PDU header with the data's length, AHS, data.
#[must_use]
pub fn message(control: ControlHeader, mut bhs: Bhs, ahs: &[u8], data: &[u8]) -> Vec<u8> {
    bhs.set_data_segment_len(data.len() as u32);
    bhs.0[4] = (ahs.len() / 4) as u8;
    [&Header::Control(control).emit()[..], &bhs.0, ahs, data].concat()
}

/// A SCSI Command that reads or writes so many bytes.
#[must_use]
pub fn scsi_command(itt: u32, cmd_sn: u32, cdb: [u8; 16], (read, write): (bool, bool), expected: u32) -> Bhs {
    ScsiCommand {
        read,
        write,
        itt,
        expected_data_transfer_length: expected,
        cmd_sn: Serial(cmd_sn),
        exp_stat_sn: Serial(1),
        cdb,
        ..ScsiCommand::default()
    }
    .emit()
}

/// A SCSI Response.
#[must_use]
pub fn scsi_response(itt: u32, stat_sn: u32, status: u8, residual: Residual) -> Bhs {
    ScsiResponse {
        residual,
        status,
        itt,
        stat_sn: Serial(stat_sn),
        exp_cmd_sn: Serial(1),
        max_cmd_sn: Serial(64),
        ..ScsiResponse::default()
    }
    .emit()
}

/// The CDB of READ (10) or WRITE (10).
#[must_use]
pub const fn cdb10(write: bool, lba: u8, blocks: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = if write { 0x2a } else { 0x28 };
    cdb[5] = lba;
    cdb[8] = blocks;
    cdb
}

/// The text that answers a login's offers: each is taken as it is.
pub(crate) fn agreement(offers: &[u8]) -> Vec<u8> {
    let mut text = b"TargetPortalGroupTag=1\0".to_vec();
    for offer in offers.split(|byte| *byte == 0) {
        let offer = String::from_utf8_lossy(offer);
        let Some((key, value)) = offer.split_once('=') else { continue };
        let declared = [
            "InitiatorName",
            "InitiatorAlias",
            "TargetName",
            "SessionType",
            "MaxRecvDataSegmentLength",
            "MaxOutstandingUnexpectedPDUs",
            "MaxAHSLength",
        ];
        if !declared.contains(&key) {
            let first = value.split(',').next().unwrap_or(value);
            text.extend_from_slice(format!("{key}={first}\0").as_bytes());
        }
    }
    text
}

/// The end that is played by hand.
#[derive(Debug)]
pub struct ByHand {
    /// None when it was dropped.
    queue: Option<LoopbackQueue>,
    /// What came, and was not looked at.
    pub heard: VecDeque<Heard>,
    /// How the connection came to be.
    pub established: Option<Established>,
    /// How it ended.
    pub ended: Option<EndCause>,
    /// What it advertises.
    pub advertised: Vec<Advertised>,
    /// What RDMA Reads brought.
    pub fetched: VecDeque<Vec<u8>>,
    /// Whether a receive that was used is posted again.
    pub reposts: bool,
    receives: usize,
    works: usize,
    next_id: u64,
    reads: VecDeque<u64>,
}

impl ByHand {
    /// With a queue pair that nobody has used.
    #[must_use]
    pub fn new(queue: LoopbackQueue) -> Self {
        Self {
            queue: Some(queue),
            heard: VecDeque::new(),
            established: None,
            ended: None,
            advertised: Vec::new(),
            fetched: VecDeque::new(),
            reposts: true,
            receives: 0,
            works: 0,
            next_id: 0,
            reads: VecDeque::new(),
        }
    }

    /// Posts receives, as far as the queue pair takes them.
    pub fn receive(&mut self, count: usize, len: usize) {
        let Some(queue) = &mut self.queue else { return };
        for _ in 0..count.min(queue.limits().receives - self.receives) {
            self.receives += 1;
            queue.post_receive(Buf::zeroed(len));
        }
        queue.ring();
    }

    /// Takes what has completed. Returns whether anything had.
    pub fn poll(&mut self) -> bool {
        let Some(queue) = &mut self.queue else { return false };
        let mut any = false;
        while let Some(completion) = queue.poll() {
            any = true;
            match completion {
                Completion::Established(established) => self.established = Some(established),
                Completion::Received { buf, len, invalidated } => {
                    if self.heard.len() == MEMORY {
                        self.heard.pop_front();
                    }
                    self.heard.push_back(Heard { bytes: buf[..len].to_vec(), invalidated });
                    if self.reposts {
                        queue.post_receive(buf);
                    } else {
                        self.receives -= 1;
                    }
                }
                Completion::ReceiveFlushed(_) => self.receives -= 1,
                Completion::Done { id, memory } => {
                    self.works -= 1;
                    if self.reads.front() == Some(&id) {
                        self.reads.pop_front();
                        let mut bytes = vec![0; memory.len()];
                        memory.read(0, &mut bytes);
                        self.fetched.push_back(bytes);
                    }
                }
                Completion::Flushed { .. } => self.works -= 1,
                Completion::Ended(cause) => self.ended = Some(cause),
            }
        }
        queue.ring();
        any
    }

    fn post(&mut self, work: impl FnOnce(u64) -> Work) {
        let Some(queue) = &mut self.queue else { return };
        if self.works < queue.limits().work {
            self.works += 1;
            queue.post(work(self.next_id));
            queue.ring();
            self.next_id += 1;
        }
    }

    /// Sends a message, whatever it says.
    pub fn send(&mut self, message: &[u8], invalidate: Option<Stag>) {
        self.grant(message);
        let mut buf = Buf::zeroed(message.len());
        buf.copy_from_slice(message);
        self.post(|id| Work::Send { id, message: Lease::whole(Payload::Buf(buf)), invalidate });
    }

    /// RDMA Write of so many bytes.
    pub fn write(&mut self, to: RemoteBuffer, bytes: &[u8]) {
        let mut buf = Buf::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        self.post(|id| Work::Write { id, from: Lease::whole(Payload::Buf(buf)), to });
    }

    /// RDMA Read of so many bytes.
    pub fn read(&mut self, from: RemoteBuffer, len: usize) {
        let id = self.next_id;
        self.post(|id| Work::Read { id, into: Lease::whole(Payload::Buf(Buf::zeroed(len))), from });
        if self.next_id > id {
            self.reads.push_back(id);
        }
    }

    /// Advertises memory that is full of [`FILL`], if there is room for it.
    pub fn advertise(&mut self, access: RemoteAccess, len: usize) -> Option<RemoteBuffer> {
        let region = Region::heap(len + 2 * GUARD);
        region.reserve_for_write(0, region.len()).expect("a heap region takes every page");
        region.write(0, &vec![FILL; len + 2 * GUARD]);
        let buffer = self.queue.as_mut()?.advertise(Payload::Region(region.slice(GUARD as u64, len)), access).ok()?;
        self.advertised.push(Advertised { buffer, access, region, granted: Vec::new() });
        Some(buffer)
    }

    /// Withdraws one, and checks it.
    pub fn withdraw(&mut self, at: usize) -> Advertised {
        let advertised = self.advertised.swap_remove(at);
        if let Some(queue) = &mut self.queue {
            assert!(queue.withdraw(advertised.buffer.stag).is_some(), "what is advertised comes back");
        }
        advertised.check();
        advertised
    }

    /// What a message lets the session write.
    fn grant(&mut self, message: &[u8]) {
        let Ok(Header::Control(ControlHeader { read: Some(to), .. })) = Header::parse(message) else { return };
        let Some(bhs) = message.get(HEADER_LEN..).and_then(<[u8]>::first_chunk::<BHS_LEN>).map(|bhs| Bhs(*bhs)) else {
            return;
        };
        let (read, write) = (bhs.0[1] & 0x40 != 0, bhs.0[1] & 0x20 != 0);
        if bhs.opcode() != Ok(Opcode::ScsiCommand) || !read {
            return;
        }
        let expected = u32::from_be_bytes([bhs.0[20], bhs.0[21], bhs.0[22], bhs.0[23]]);
        let ahs = message.get(HEADERS_LEN..HEADERS_LEN + bhs.ahs_len()).unwrap_or_default();
        let bidirectional = AhsIter::new(ahs).find_map(|segment| match segment {
            Ok(Ahs::BidirectionalReadLength(len)) => Some(len),
            _ => None,
        });
        let len = if write { bidirectional.unwrap_or(0) } else { expected };
        let Some(at) = self.advertised.iter().position(|advertised| advertised.buffer.stag == to.stag) else { return };
        let advertised = &mut self.advertised[at];
        let most = advertised.len() as i128;
        let start = i128::from(to.offset.wrapping_sub(advertised.buffer.offset) as i64);
        let (start, end) = (start.clamp(0, most), (start + i128::from(len)).clamp(0, most));
        advertised.granted.push(start as usize..end as usize);
    }

    /// Ends the connection in order.
    pub fn disconnect(&mut self) {
        self.queue.iter_mut().for_each(LoopbackQueue::disconnect);
    }

    /// Ends the connection at once.
    pub fn abort(&mut self) {
        self.queue.iter_mut().for_each(LoopbackQueue::abort);
    }

    /// Drops the queue pair.
    pub fn vanish(&mut self) {
        self.advertised.iter().for_each(Advertised::check);
        self.queue = None;
    }

    /// The login of an initiator, straight to the Full Feature Phase.
    pub fn log_in(&mut self, target: &str, more: &str) {
        let request = LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 0, 1], 1);
        let text = format!(
            "InitiatorName=iqn.2026-11.example.sim:by-hand\0TargetName={target}\0SessionType=Normal\0RDMAExtensions=Yes\0InitiatorRecvDataSegmentLength=8192\0TargetRecvDataSegmentLength=8192\0{more}"
        );
        self.send(&message(ControlHeader::default(), request.emit(), &[], text.as_bytes()), None);
    }

    /// The answer to an initiator's Login Request, which is taken from what was heard. Returns whether there was one.
    pub fn admit(&mut self) -> bool {
        let Some(request) = self.heard.pop_front() else { return false };
        let Some(Ok(login)) = request.bhs().map(|bhs| LoginRequest::parse(&bhs)) else { return false };
        let response =
            LoginResponse { tsih: 1, max_cmd_sn: login.cmd_sn.advance(15), ..LoginResponse::granting(&login) };
        let text = agreement(request.data());
        self.send(&message(ControlHeader::default(), response.emit(), &[], &text), None);
        true
    }
}

/// How a connection is brought to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The peer disconnects in order.
    Disconnect,
    /// The peer aborts.
    Abort,
    /// The peer's queue pair is dropped.
    Vanish,
    /// The network breaks.
    Cut,
    /// The device of the session's end is gone.
    DeviceGone,
    /// A work request of the session fails.
    WorkFails,
    /// The session never hears anything again.
    Silence,
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Disconnect, Self::Abort, Self::Vanish, Self::Cut, Self::DeviceGone, Self::WorkFails, Self::Silence];
}

/// A session's connection, and a peer by hand.
#[derive(Debug)]
pub struct Bench<C> {
    /// The connection and what drives it.
    pub pipe: Pipe<C, Completions>,
    /// The peer.
    pub peer: ByHand,
    /// What is between them.
    pub fabric: Fabric,
    /// The time.
    pub now: Instant,
    network: Network,
    side: Side,
    store: Option<SimStore>,
}

impl<C: QueueConnection> Bench<C> {
    /// A connection at its side; `store` is the target's.
    #[must_use]
    pub fn new(connection: C, side: Side, peer: LoopbackQueue, fabric: Fabric, store: Option<SimStore>) -> Self {
        let link = FabricLink::new(fabric.clone(), FabricPlan::calm(), Rng::new(0, 1), Instant::ZERO);
        let network = Network::Queues(Box::new(link));
        let pipe = Pipe::new(connection, 0, side);
        Self { pipe, peer: ByHand::new(peer), fabric, now: Instant::ZERO, network, side, store }
    }

    fn end(&self) -> End {
        match self.side {
            Side::Initiator => End::Active,
            Side::Target => End::Passive,
        }
    }

    /// What the session's queue pair holds; see [`Fabric::held`].
    #[must_use]
    pub fn held(&self) -> (usize, usize, usize) {
        self.fabric.held(self.end())
    }

    /// An end was used.
    fn stir(&mut self) {
        if let Network::Queues(fabric) = &mut self.network {
            fabric.stir(self.now);
        }
    }

    /// Moves everything until nothing moves any more.
    ///
    /// # Panics
    /// If that does not happen, or the connection breaks a rule of its driving contract.
    pub fn settle(&mut self) {
        self.stir();
        for _ in 0..400_000 {
            if let Some(store) = &self.store {
                store.advance(self.now);
            }
            let mut any = self.pipe.run(&mut self.network, self.now).expect("the driving contract");
            any |= self.peer.poll();
            if self.side == Side::Target {
                assert_eq!(self.held().2, 0, "a target advertises nothing");
            }
            if any {
                self.stir();
                continue;
            }
            match self.network.next(self.side, self.now) {
                Some(at) if at > self.now => self.now = at,
                _ => return,
            }
        }
        panic!("no rest");
    }

    /// The network takes one step, and both ends see what it brought.
    ///
    /// # Panics
    /// If the connection breaks a rule of its driving contract.
    pub fn step(&mut self) {
        self.fabric.step();
        if self.fabric.is_ready(self.end()) && !self.pipe.connection.is_finished() {
            self.pipe.connection.handle_completions(self.now);
        }
        self.peer.poll();
    }

    /// Time passes.
    pub fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..2000 {
            let store = self.store.as_ref().and_then(SimStore::next);
            let timeout = self.pipe.connection.poll_timeout();
            let Some(next) = [timeout, store].into_iter().flatten().filter(|at| *at <= until).min() else { break };
            self.now = self.now.max(next);
            self.settle();
        }
        self.now = self.now.max(until);
        self.settle();
    }

    /// The connection ends, and with it, in time, the session; everything comes back.
    ///
    /// # Panics
    /// If that does not happen.
    pub fn finish(&mut self, ending: Ending) {
        match ending {
            Ending::Disconnect => self.peer.disconnect(),
            Ending::Abort => self.peer.abort(),
            Ending::Vanish => self.peer.vanish(),
            Ending::Cut => self.fabric.cut(),
            Ending::DeviceGone => self.fabric.take_device(self.end()),
            Ending::WorkFails => self.fabric.fail_work(self.end()),
            Ending::Silence => self.fabric.mute(self.end()),
        }
        self.settle();
        self.wait(Duration::from_secs(300));
        assert!(self.pipe.connection.is_finished(), "a connection ends with its queue pair: {ending:?}");
        assert_eq!(self.held(), (0, 0, 0), "everything comes back: {ending:?}");
        self.peer.advertised.iter().for_each(Advertised::check);
    }
}
