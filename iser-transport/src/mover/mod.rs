//! The iSER mover: the [`Datamover`] over a [`QueuePair`], for both roles (RFC 7145).
//!
//! Control-type PDUs travel in Sends, one each; read data leave by RDMA Write, write data beyond the immediate are
//! fetched by RDMA Read (RFC 7145 7).
//!
//! - `receive`: receives and what comes in them; login, Hello, and the Full Feature Phase;
//! - `send`: messages and data that wait for a place in the queue pair, and their completions;
//! - `target`: commands with their STags, RDMA Write and SCSI Response; `fetch`: `get_data`; `tags`: the table of STags
//!   by ITT;
//! - `initiator`: commands with their advertised buffers.
//!
//! Nothing allocates per PDU once tables and buffers have their size.
//!
//! Rules beyond those of [`iscsi_proto::datamover`]:
//!
//! - A login PDU with its data is one Send. Full-feature receives are posted before the message leaves that may make
//!   the peer send: the target's final Login Response, the initiator's Login Request that asks for the Full Feature
//!   Phase.
//! - Buffers of a deallocated task that the queue pair still works with come back later, by [`Notification::Released`];
//!   lent memory is let go. Until an RDMA Read of a deallocated task is done, no Send goes out: the initiator may take
//!   its STags back as soon as it is told that the task is over.
//! - The sink of an unfinished `get_data` comes back from `deallocate_task_resources` unless the queue pair
//!   works with it.

use alloc::collections::VecDeque;

use iscsi_memory::{ReceiveSlice, ReceiveWindow, SendList};
use iscsi_proto::connection::{QueueMover, StreamEnd, StreamMover};
use iscsi_proto::datamover::{
    Caps, Datamover, GetData, MoverError, MoverReport, Notification, PutData, SendCommand, SequenceNumbers,
    TaskBuffers, TaskHandle,
};
use iscsi_proto::parameters::Parameters;
use iscsi_proto::pdu::{Bhs, Opcode};
use iscsi_proto::tcp::Role;

use crate::header::{ControlHeader, PrivateData};
use crate::queue::{Completion, EndCause, QueuePair, StreamQueue};

mod config;
mod fetch;
mod initiator;
mod receive;
mod send;
mod tags;
mod target;

pub use config::IserMoverConfig;

/// What a mover has done, in bytes and messages since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IserCounters {
    /// Payload bytes that were copied between a message and their place. Immediate data are, once.
    pub copied: u64,
    /// Payload bytes that travelled as immediate or unsolicited data.
    pub immediate: u64,
    /// Payload bytes that we wrote with RDMA Write.
    pub written: u64,
    /// Payload bytes that we fetched with RDMA Read.
    pub read: u64,
    /// Messages sent.
    pub sends: u64,
    /// Messages among them that invalidated an STag of the peer.
    pub invalidates: u64,
}

/// Where the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// PDUs come and go.
    Open,
    /// Our side asked for the end: what is queued is sent, nothing more is received.
    Closing,
    /// It is over, and the queue pair has yet to give everything back.
    Failed(MoverError),
    /// The queue pair has given everything back; this is to be notified.
    Ended(MoverError),
    /// Notified.
    Closed,
}

/// The mover over a queue pair. See the [module](self) for its rules.
#[derive(Debug)]
pub struct IserMover<Q> {
    queue: Q,
    config: IserMoverConfig,
    parameters: Parameters,
    /// RDMA Reads of the peer that are served at a time.
    served_depth: u16,
    full_feature: bool,
    state: State,
    /// Whether [`QueuePair::disconnect`] was called.
    disconnected: bool,
    /// What is notified when an end of our making has come: [`MoverError::Closed`] if nothing is wrong.
    parting: MoverError,
    /// What the peer said of itself when the connection came to be.
    peer: PrivateData,
    /// Something was posted since the doorbell was rung.
    unrung: bool,
    throttled: bool,
    numbers: SequenceNumbers,
    receive: receive::Receive,
    send: send::SendQueue,
    events: VecDeque<Notification>,
    target: target::TargetSide,
    initiator: initiator::InitiatorSide,
    counters: IserCounters,
}

impl<Q: QueuePair> IserMover<Q> {
    /// A mover over a queue pair that is connected, or about to be. It posts the receive for the first login PDU at
    /// once.
    #[must_use]
    pub fn new(queue: Q, config: IserMoverConfig) -> Self {
        let tasks = usize::from(config.max_tasks);
        let role = config.role;
        let mut mover = Self {
            queue,
            config,
            parameters: Parameters::default(),
            served_depth: 0,
            full_feature: false,
            state: State::Open,
            disconnected: false,
            parting: MoverError::Closed,
            peer: PrivateData::default(),
            unrung: false,
            throttled: false,
            numbers: SequenceNumbers::default(),
            receive: receive::Receive::new(),
            send: send::SendQueue::new(),
            events: VecDeque::new(),
            target: target::TargetSide::new(if role == Role::Target { tasks } else { 0 }),
            initiator: initiator::InitiatorSide::new(if role == Role::Initiator { tasks } else { 0 }),
            counters: IserCounters::default(),
        };
        mover.ensure_login_receive();
        mover.ring();
        mover
    }

    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.config.role
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> IserCounters {
        self.counters
    }

    /// The queue pair, for whoever drives it.
    #[must_use]
    pub fn queue(&self) -> &Q {
        &self.queue
    }

    /// The connection is over: nothing more is sent or received. Buffers come back as the queue pair gives them back.
    #[cold]
    fn fail(&mut self, error: MoverError) {
        if matches!(self.state, State::Open | State::Closing) {
            self.state = State::Failed(error);
            self.drop_waiting();
            self.queue.abort();
            self.unrung = true;
        }
    }

    /// Sends what is queued, then ends.
    #[cold]
    fn close_with(&mut self, parting: MoverError) {
        if matches!(self.state, State::Open) {
            self.state = State::Closing;
            self.parting = parting;
            self.receive.drop_inbox();
            self.pump();
        }
    }

    /// The queue pair has ended and given everything back.
    #[cold]
    fn ended(&mut self, cause: EndCause) {
        let error = match (self.state, cause) {
            (State::Failed(error), _) => error,
            (State::Ended(_) | State::Closed, _) => return,
            (State::Closing, EndCause::Closed | EndCause::PeerClosed) => self.parting,
            (_, EndCause::Closed) => MoverError::Closed,
            (_, EndCause::PeerClosed) => MoverError::EndOfStream,
            (_, EndCause::Broken) => MoverError::Broken,
            (_, EndCause::Rejected) => MoverError::Rdma("the peer refused it: it serves no iSER there"),
            (_, EndCause::ByPeer(why) | EndCause::PeerProtocol(why) | EndCause::WorkFailed(why)) => {
                MoverError::Rdma(why)
            }
            (_, EndCause::DeviceGone) => MoverError::Rdma("the RDMA device is gone"),
        };
        self.drop_unsent();
        self.state = State::Ended(error);
        self.withdraw_all();
    }

    /// Takes everything that the queue pair tells, and posts what it has room for now. Returns whether it told
    /// anything.
    fn take_completions(&mut self) -> bool {
        let mut any = false;
        while let Some(completion) = self.queue.poll() {
            any = true;
            self.completed(completion);
        }
        self.pump();
        any
    }

    #[inline]
    fn completed(&mut self, completion: Completion) {
        match completion {
            Completion::Established(established) => {
                self.peer = PrivateData::of_peer(established.peer_private);
                self.send.read_depth = usize::from(established.read_depth.min(self.config.read_depth));
                self.served_depth = established.served_depth;
                self.send.established = true;
            }
            Completion::Received { buf, len, invalidated } => self.arrived(buf, len, invalidated),
            Completion::ReceiveFlushed(_) => self.receive.flushed(),
            Completion::Done { id, memory } => self.work_done(id, memory, true),
            Completion::Flushed { id, memory } => self.work_done(id, memory, false),
            Completion::Ended(cause) => self.ended(cause),
        }
    }
}

impl<Q: QueuePair> Datamover for IserMover<Q> {
    fn caps(&self) -> Caps {
        Caps {
            // RFC 7145 6.1.
            digests: false,
            registered_memory: true,
            copy_limit: self.config.immediate_limit as usize,
            transport: "iser",
            rdma_extensions: true,
            half_closes: false,
        }
    }

    fn set_sequence(&mut self, numbers: SequenceNumbers) {
        self.numbers = numbers;
    }

    fn send_control(&mut self, bhs: Bhs, data: &[u8]) {
        if !matches!(self.state, State::Open) {
            return;
        }
        if !self.full_feature {
            self.ensure_login_receive();
            // T=1, NSG=FullFeaturePhase (RFC 7143 11.12): the target may send anything once it has answered.
            if bhs.opcode() == Ok(Opcode::LoginRequest) && bhs.0[1] & 0x83 == 0x83 {
                self.open_receives();
            }
        }
        match self.config.role {
            Role::Target => {
                let invalidate = self.control_leaves(&bhs, data);
                let fill = |to: &mut [u8]| to.copy_from_slice(data);
                self.send_pdu(ControlHeader::default(), bhs, &[], data.len(), fill, invalidate);
            }
            Role::Initiator => {
                let mut message = self.compose(ControlHeader::default(), bhs, &[], data.len());
                if let Some(segment) = send::data_segment(&mut message, 0, data.len()) {
                    segment.copy_from_slice(data);
                }
                self.send_in_order(&bhs, message);
            }
        }
    }

    fn put_data(&mut self, put: PutData<'_>) {
        self.put(put);
    }

    fn get_data(&mut self, get: GetData) {
        self.get(get);
    }

    fn immediate_data(&self) -> &[u8] {
        self.at_hand()
    }

    fn send_command(&mut self, command: SendCommand<'_>) {
        self.command(command);
    }

    fn notice_key_values(&mut self, parameters: &Parameters) {
        self.parameters = parameters.clone();
        if !self.full_feature {
            self.open_receives();
        }
    }

    fn has_resources_for(&self, parameters: &Parameters) -> bool {
        self.has_room_for_receives(parameters)
    }

    fn enable_datamover(&mut self) {
        self.full_feature = true;
        self.send.begin_bulk(self.config.send_memory);
        match self.config.role {
            Role::Target => self.open_target(),
            Role::Initiator => self.open_initiator(),
        }
    }

    fn deallocate_task_resources(&mut self, task: TaskHandle) -> TaskBuffers {
        match self.config.role {
            Role::Target => self.deallocate_transfer(task),
            Role::Initiator => self.deallocate_command(task),
        }
    }

    fn forget_command(&mut self, itt: u32) {
        self.forget_tag(itt);
    }

    fn trim(&mut self) {
        self.queue.trim();
        self.send.trim();
        self.receive.trim();
        self.target.tags.trim();
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
    }

    fn nudge(&mut self) {
        if matches!(self.state, State::Open) {
            self.queue.nudge();
        }
    }

    fn drop_request(&mut self, bhs: &Bhs) {
        self.refuse_command(bhs);
    }

    fn connection_terminate(&mut self) {
        self.close_with(MoverError::Closed);
    }

    fn connection_abort(&mut self) {
        self.fail(MoverError::Broken);
    }

    fn poll_notify(&mut self) -> Option<Notification> {
        self.release_message();
        let notification = self.next_notification();
        self.pump();
        notification
    }

    fn control_ahs(&self) -> &[u8] {
        self.receive.control_ahs()
    }

    fn control_data(&self) -> &[u8] {
        self.receive.control_data()
    }

    fn sent(&self) -> u64 {
        self.send.sent()
    }

    fn fetched(&self, task: TaskHandle) -> u32 {
        self.target.transfers.fetched(task)
    }

    fn backlog(&self) -> usize {
        match self.state {
            // A queue pair ends when it has nothing left to send.
            State::Ended(_) | State::Closed => 0,
            _ => self.send.backlog() + self.initiator.backlog(),
        }
    }

    fn ring(&mut self) {
        if self.unrung {
            self.unrung = false;
            self.queue.ring();
        }
    }

    fn is_drained(&self) -> bool {
        self.send.orphans == 0
    }

    fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    fn is_established(&self) -> bool {
        self.send.established
    }

    fn report(&self) -> Option<MoverReport> {
        Some(MoverReport {
            // Only targets read.
            read_depth: match self.config.role {
                Role::Target => self.send.read_depth as u16,
                Role::Initiator => self.served_depth,
            },
            copied: self.counters.copied + self.queue.copied(),
            written: self.counters.written,
            read: self.counters.read,
            registered: (self.receive.memory() + self.send.backlog()) as u64,
        })
    }
}

impl<Q: QueuePair> IserMover<Q> {
    fn next_notification(&mut self) -> Option<Notification> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if let Some(message) = self.receive.next() {
                if let Some(notification) = self.message(message) {
                    return Some(notification);
                }
                self.release_message();
                continue;
            }
            if let State::Ended(error) = self.state {
                self.state = State::Closed;
                return Some(Notification::Terminated(error));
            }
            // One by one: a message goes to the session at once.
            let completion = self.queue.poll()?;
            self.completed(completion);
        }
    }
}

impl<Q: QueuePair> QueueMover for IserMover<Q> {
    fn handle_completions(&mut self) -> bool {
        self.take_completions()
    }
}

impl<Q: StreamQueue> StreamMover for IserMover<Q> {
    fn receive_window(&mut self) -> ReceiveWindow<'_> {
        let backlog = self.send.backlog();
        let most = self.config.send_high_water;
        self.throttled = backlog > if self.throttled { most / 2 } else { most };
        // What waits behind an RDMA Read leaves when the Read's data have come.
        // Login is lock-step: who does not take the answer to a request has no other one read.
        let throttled = self.throttled || !self.full_feature;
        let held_back = throttled && self.config.role == Role::Target && self.queue.is_sending();
        if held_back || matches!(self.state, State::Closed) {
            return ReceiveWindow { payload: ReceiveSlice::Private(&mut []), staging: &mut [] };
        }
        self.queue.receive_window()
    }

    fn handle_received(&mut self, n: usize) {
        self.queue.handle_received(n);
        // Messages wait for `poll_notify`. What is done may let others go on, also while nobody asks for notifications.
        if self.send.is_waited_for() {
            self.take_completions();
        }
    }

    fn handle_stream_end(&mut self, end: StreamEnd) {
        self.queue.handle_stream_end(end);
        self.take_completions();
    }

    fn fill_send_list<'a>(&'a self, list: &mut SendList<'a>) {
        self.queue.fill_send_list(list);
    }

    fn is_sending(&self) -> bool {
        self.queue.is_sending()
    }

    fn handle_sent(&mut self, n: usize) {
        self.queue.handle_sent(n);
        self.take_completions();
    }
}

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;
