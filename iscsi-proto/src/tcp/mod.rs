//! The TCP mover: the [`Datamover`] over a byte stream, for both roles (RFC 7143 sections 4.2 and 11).
//!
//! Bytes come in through a [`ReceiveWindow`] and go out through a [`SendList`]; between them stand
//!
//! - `staging`: the one receive buffer, out of which `receive` frames PDUs;
//! - `target`: transfers of write data (immediate, unsolicited, R2T and Data-Out) and Data-In with status;
//! - `initiator`: commands with their Data-Out and the placing of Data-In;
//! - `send`: the send queue, a reused buffer for headers and small payloads and references to large ones.
//!
//! A payload of more than the copy limit is received straight into its sink: once its header is known and staging is
//! empty, the window's `payload` is the sink itself. Smaller ones are copied out of staging as they come. In a store's
//! own memory logical blocks land whole either way: straight as [`ReceiveSlice::Blocks`](iscsi_memory::ReceiveSlice),
//! out of staging by `landing`. Nothing allocates per PDU once the tables and buffers have their size.
//!
//! Rules beyond those of [`crate::datamover`]:
//!
//! - Initiator: a task's data that wait in the send queue at the time of [`Datamover::deallocate_task_resources`] stay
//!   with the mover. A [`Payload::Buf`](iscsi_memory::Payload) then comes back later by
//!   [`Notification::Released`], once it is sent or the connection ends; lent memory is let go. The Data-In sink always
//!   comes back at once.
//! - Target: the DataSN of a command runs over several [`Datamover::put_data`] calls, until the one that carries the
//!   status. Each call starts a new sequence (F bit at its end and after every MaxBurstLength bytes).
//! - After a fatal error, and after the stream's end, what is still queued to be sent is dropped:
//!   [`Notification::Released`] gives its buffers back, then comes [`Notification::Terminated`].

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use iscsi_memory::{Payload, ReceiveWindow, SendList, SessionBuffers};

use crate::connection::{StreamEnd, StreamMover};
use crate::datamover::{
    Caps, Datamover, GetData, MoverError, Notification, PutData, SendCommand, SequenceNumbers, TaskBuffers, TaskHandle,
};
use crate::parameters::{Digest, Parameters};
use crate::pdu::{Bhs, Opcode};
use crate::unsolicited::UnsolicitedRules;

mod initiator;
mod landing;
mod parts;
mod receive;
mod send;
mod staging;
mod target_side;

use staging::Staging;

/// MaxRecvDataSegmentLength until login has ended (RFC 7143 13.12: the default). A target takes as much of one login
/// request's text over all its PDUs: who has proved nothing costs no more because it counts in pieces.
const LOGIN_DATA_SEGMENT_LEN: u32 = 8192;
/// Smallest staging buffer: a header with the largest AHS area and a login PDU's data segment fit.
const SMALLEST_STAGING: usize = 16 << 10;
/// Staging of a target until bytes come in bulk: a header with the largest AHS area fits.
const SMALL_STAGING: usize = 2 << 10;
/// Staging of a target in a login: peers that have proved nothing get no more, but for a longer request while it comes.
const LOGIN_STAGING: usize = 1 << 10;

/// Idle memory that a mover with buffers of its own keeps.
const IDLE: usize = 1 << 20;
/// Largest buffer of a target for what it sends that is kept when all is sent.
const KEPT_SENDING: usize = 256 << 10;

/// The role that a mover plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Receives requests.
    Target,
    /// Receives responses.
    Initiator,
}

/// Sizes of a [`TcpMover`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpMoverConfig {
    /// Receive buffer in bytes, at least 16 KiB; default 128 KiB. A target begins with 1 KiB, and takes so much when
    /// bytes come in bulk. It grows when a control PDU with a larger data segment comes, which the declared
    /// MaxRecvDataSegmentLength bounds.
    pub staging_size: usize,
    /// Payloads of at most so many bytes are copied, larger ones move straight from and to their final place; default 8
    /// KiB.
    pub copy_limit: usize,
    /// Target: when more than so many bytes wait to be sent, nothing is received until half of them are gone; default 4
    /// MiB. An initiator always receives: its backlog is bounded by its own commands, and if both ends waited for the
    /// other to read, neither would.
    pub send_high_water: usize,
    /// Tasks that the tables are sized for; default 128. A task with a higher slot makes them grow. A target's tables
    /// begin empty and grow to what its initiator makes use of.
    pub max_tasks: u16,
}

impl Default for TcpMoverConfig {
    fn default() -> Self {
        Self { staging_size: 128 << 10, copy_limit: 8 << 10, send_high_water: 4 << 20, max_tasks: 128 }
    }
}

/// Where the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MoverState {
    /// PDUs come and go.
    Open,
    /// Our side asked for the end: what is queued is sent, nothing more is received.
    Closing,
    /// Buffers are being given back, then this is notified.
    Failed(MoverError),
    /// Notified.
    Closed,
}

/// The values of login that the mover runs by.
#[derive(Debug, Clone)]
struct NegotiatedLimits {
    /// The most that the peer may send in one PDU.
    receive_segment: u32,
    /// The most that we send in one PDU.
    send_segment: u32,
    max_burst: u32,
    unsolicited: UnsolicitedRules,
    max_outstanding_r2t: u16,
    pdu_in_order: bool,
    sequence_in_order: bool,
    /// Payloads of at most so many bytes go out in one PDU, copied.
    single: usize,
}

impl NegotiatedLimits {
    fn of(parameters: &Parameters, copy_limit: usize) -> Self {
        // A data segment that is not the last is filled to whole words (RFC 7143 11.7.7).
        let send_segment = (parameters.peer_max_recv_data_segment_length & !3).max(512);
        let max_burst = parameters.max_burst_length.max(512);
        Self {
            receive_segment: parameters.max_recv_data_segment_length,
            send_segment,
            max_burst,
            single: copy_limit.min(send_segment.min(max_burst) as usize),
            unsolicited: UnsolicitedRules::of(parameters),
            max_outstanding_r2t: parameters.max_outstanding_r2t.max(1),
            pdu_in_order: parameters.data_pdu_in_order,
            sequence_in_order: parameters.data_sequence_in_order,
        }
    }
}

/// The mover over a byte stream. See the [module](self) for its shape and rules.
///
/// ```
/// use iscsi_proto::connection::StreamMover;
/// use iscsi_proto::datamover::{Datamover, Notification};
/// use iscsi_proto::pdu::{LoginRequest, Opcode};
/// use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
///
/// let mut initiator = TcpMover::new(Role::Initiator, TcpMoverConfig::default());
/// let mut target = TcpMover::new(Role::Target, TcpMoverConfig::default());
/// let login = LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 0, 1], 1);
/// initiator.send_control(login.emit(), b"SessionType=Discovery\0");
///
/// let mut wire = vec![0; initiator.backlog()];
/// let mut list = Default::default();
/// initiator.fill_send_list(&mut list);
/// list.as_slice()[0].copy_to(&mut wire);
/// initiator.handle_sent(wire.len());
///
/// let n = target.receive_window().fill(&wire);
/// target.handle_received(n);
/// let Some(Notification::Control(bhs)) = target.poll_notify() else { panic!() };
/// assert_eq!(bhs.opcode(), Ok(Opcode::LoginRequest));
/// assert_eq!(target.control_data(), b"SessionType=Discovery\0");
/// ```
#[derive(Debug)]
pub struct TcpMover {
    role: Role,
    config: TcpMoverConfig,
    parameters: Parameters,
    limits: NegotiatedLimits,
    full_feature: bool,
    state: MoverState,
    stream_end: Option<StreamEnd>,
    throttled: bool,
    numbers: SequenceNumbers,
    receive: receive::Receive,
    send: send::SendQueue,
    /// Buffers of the worker.
    given: Option<SessionBuffers>,
    events: VecDeque<Notification>,
    /// Where received data land, by task slot.
    sinks: Vec<Option<Payload>>,
    target: target_side::TargetSide,
    initiator: initiator::InitiatorSide,
}

impl TcpMover {
    /// A mover at the start of a connection: login PDUs only, no digests.
    #[must_use]
    pub fn new(role: Role, config: TcpMoverConfig) -> Self {
        Self::over(role, config, SessionBuffers::alone(IDLE))
    }

    /// The same with buffers of its worker, which its session takes from as well.
    ///
    /// ```
    /// use iscsi_memory::WorkerPool;
    /// use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
    /// let pool = WorkerPool::new(4 << 20, None);
    /// let mover = TcpMover::with_buffers(Role::Target, TcpMoverConfig::default(), pool.session());
    /// assert_eq!(pool.active(), 0, "before it has to do");
    /// ```
    #[must_use]
    pub fn with_buffers(role: Role, config: TcpMoverConfig, buffers: SessionBuffers) -> Self {
        Self { given: Some(buffers.clone()), ..Self::over(role, config, buffers) }
    }

    fn over(role: Role, config: TcpMoverConfig, buffers: SessionBuffers) -> Self {
        // A target gives memory for what its peer does, not for what the peer may do.
        let is_target = role == Role::Target;
        let tasks = if is_target { 0 } else { usize::from(config.max_tasks) };
        let staging = match role {
            Role::Target => Staging::for_login(LOGIN_STAGING, buffers.clone()),
            Role::Initiator => Staging::new(config.staging_size.max(SMALLEST_STAGING), buffers.clone()),
        };
        let keep = if is_target { KEPT_SENDING.min(config.send_high_water) } else { config.send_high_water };
        let parameters = Parameters::default();
        let limits = NegotiatedLimits {
            receive_segment: LOGIN_DATA_SEGMENT_LEN,
            ..NegotiatedLimits::of(&parameters, config.copy_limit)
        };
        let mut sinks = Vec::new();
        sinks.resize_with(tasks, || None);
        Self {
            role,
            config,
            parameters,
            limits,
            full_feature: false,
            state: MoverState::Open,
            stream_end: None,
            throttled: false,
            numbers: SequenceNumbers::default(),
            receive: receive::Receive::new(staging),
            send: send::SendQueue::new(keep, tasks, buffers, is_target),
            given: None,
            events: VecDeque::with_capacity(tasks * 2),
            sinks,
            target: target_side::TargetSide::new(),
            initiator: initiator::InitiatorSide::new(tasks),
        }
    }

    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    fn give_sink(&mut self, slot: u16, sink: Option<Payload>) {
        let slot = usize::from(slot);
        if self.sinks.len() <= slot {
            self.sinks.resize_with(slot + 1, || None);
        }
        if let Some(place) = self.sinks.get_mut(slot) {
            *place = sink;
        }
    }

    fn take_sink(&mut self, slot: u16) -> Option<Payload> {
        self.sinks.get_mut(usize::from(slot))?.take()
    }

    /// The connection is over: nothing more is sent or received, and what was queued comes back.
    #[cold]
    fn fail(&mut self, error: MoverError) {
        if matches!(self.state, MoverState::Open | MoverState::Closing) {
            self.send.clear(&mut self.events);
            self.state = MoverState::Failed(error);
        }
    }

    /// The next notification that is not made by parsing; the last one ends the connection.
    #[cold]
    fn poll_ending(&mut self) -> Option<Notification> {
        if self.state == MoverState::Closing {
            if self.send.backlog() == 0 {
                self.fail(MoverError::Closed);
            } else {
                match self.stream_end {
                    Some(StreamEnd::EndOfStream) | None => return None,
                    Some(StreamEnd::Broken) => self.fail(MoverError::Broken),
                }
            }
        }
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        let MoverState::Failed(error) = self.state else { return None };
        self.state = MoverState::Closed;
        Some(Notification::Terminated(error))
    }
}

impl Datamover for TcpMover {
    fn caps(&self) -> Caps {
        Caps {
            digests: true,
            registered_memory: false,
            copy_limit: self.config.copy_limit,
            transport: "tcp",
            rdma_extensions: false,
            half_closes: true,
        }
    }

    #[inline]
    fn set_sequence(&mut self, numbers: SequenceNumbers) {
        self.numbers = numbers;
    }

    fn send_control(&mut self, mut bhs: Bhs, data: &[u8]) {
        if self.state != MoverState::Open {
            return;
        }
        if bhs.opcode() == Ok(Opcode::ScsiResponse) {
            self.target.forget_numbering(bhs.itt());
        }
        bhs.set_data_segment_len(data.len() as u32);
        self.send.header(&bhs);
        self.send.copied(data.len(), |to| to.copy_from_slice(data));
    }

    fn put_data(&mut self, put: PutData<'_>) {
        if !self.put_at_once(&put) && !self.respond_at_once(&put) {
            self.put(put);
        }
    }

    fn get_data(&mut self, get: GetData) {
        self.get(get);
    }

    #[inline]
    fn immediate_data(&self) -> &[u8] {
        self.receive.at_hand()
    }

    fn send_command(&mut self, command: SendCommand<'_>) {
        self.command(command);
    }

    fn notice_key_values(&mut self, parameters: &Parameters) {
        self.parameters = parameters.clone();
        if self.full_feature {
            self.limits = NegotiatedLimits::of(parameters, self.config.copy_limit);
        }
    }

    fn enable_datamover(&mut self) {
        self.full_feature = true;
        self.limits = NegotiatedLimits::of(&self.parameters, self.config.copy_limit);
        let (header, data) =
            (self.parameters.header_digest == Digest::Crc32c, self.parameters.data_digest == Digest::Crc32c);
        self.send.begin_bulk();
        self.send.header_digest = header;
        self.send.data_digest = data;
        self.receive.enable(self.role, header, data);
        if self.role == Role::Target {
            self.receive.begin_bulk(SMALL_STAGING);
            self.receive.may_grow(self.config.staging_size.max(SMALLEST_STAGING));
            self.target.enable(self.config.max_tasks.into());
        }
    }

    fn buffers(&self) -> Option<&SessionBuffers> {
        self.given.as_ref()
    }

    fn spare(&mut self) {
        self.trim();
        if self.role == Role::Target {
            self.receive.stay();
        }
    }

    fn trim(&mut self) {
        if self.role == Role::Target {
            self.send.trim();
            self.receive.trim();
            if self.full_feature {
                self.receive.may_grow(self.config.staging_size.max(SMALLEST_STAGING));
            }
            if self.sinks.iter().all(Option::is_none) {
                self.sinks = Vec::new();
            }
            if self.events.is_empty() {
                self.events = VecDeque::new();
            }
        }
    }

    fn deallocate_task_resources(&mut self, task: TaskHandle) -> TaskBuffers {
        match self.role {
            Role::Target => self.deallocate_transfer(task),
            Role::Initiator => self.deallocate_command(task),
        }
    }

    fn forget_command(&mut self, itt: u32) {
        self.target.forget_numbering(itt);
    }

    fn connection_terminate(&mut self) {
        if self.state == MoverState::Open {
            self.state = MoverState::Closing;
        }
    }

    fn connection_abort(&mut self) {
        self.fail(MoverError::Broken);
    }

    #[inline]
    fn poll_notify(&mut self) -> Option<Notification> {
        if self.state == MoverState::Open { self.poll_open() } else { self.poll_ending() }
    }

    #[inline]
    fn control_ahs(&self) -> &[u8] {
        self.receive.control_ahs()
    }

    #[inline]
    fn control_data(&self) -> &[u8] {
        self.receive.control_data()
    }

    #[inline]
    fn sent(&self) -> u64 {
        self.send.sent_bytes()
    }

    fn asks_to_land(&self) -> bool {
        // Without order, a part of a block would have to be kept for each PDU.
        self.parameters.data_pdu_in_order
    }

    fn fetched(&self, task: TaskHandle) -> u32 {
        self.fetched_bytes(task)
    }

    fn moved(&self, task: TaskHandle) -> u64 {
        self.moved_bytes(task)
    }

    #[inline]
    fn backlog(&self) -> usize {
        self.send.backlog()
    }

    fn is_closed(&self) -> bool {
        self.state == MoverState::Closed
    }
}

impl StreamMover for TcpMover {
    fn receive_window(&mut self) -> ReceiveWindow<'_> {
        let backlog = self.send.backlog();
        self.throttled = if self.throttled {
            backlog > self.config.send_high_water / 2
        } else {
            backlog > self.config.send_high_water
        };
        // Login is lock-step: who does not take the answer to a request has no other one read.
        let unanswered = !self.full_feature && backlog > 0;
        let held_back = (self.throttled || unanswered) && self.role == Role::Target;
        let open = self.state == MoverState::Open && self.stream_end.is_none() && !held_back;
        self.window(open)
    }

    fn handle_received(&mut self, n: usize) {
        self.received(n);
    }

    fn handle_stream_end(&mut self, end: StreamEnd) {
        self.stream_end = Some(end);
    }

    fn fill_send_list<'a>(&'a self, list: &mut SendList<'a>) {
        self.send.fill(list);
    }

    fn is_sending(&self) -> bool {
        self.send.backlog() > 0
    }

    fn handle_sent(&mut self, n: usize) {
        self.send.sent(n, &mut self.events);
    }
}
