//! The initiator's side: commands with their advertised buffers (RFC 7145 7.3.1, 7.3.2).
//!
//! What the rest of the mover asks of it, by function:
//!
//! - `open_initiator`: the Full Feature Phase begins; sends the Hello where it is wanted;
//! - `hello_reply`: the target's answer to it;
//! - `command`: a SCSI Command with its buffers;
//! - `send_in_order`: any other PDU, behind the commands that wait unless it may overtake them;
//! - `response`: a control-type PDU came, perhaps with an STag of ours that the target invalidated;
//! - `deallocate_command`: a task is over;
//! - `withdraw_all`: the queue pair has ended, and nothing is advertised any more.
//!
//! A write that fits travels whole as immediate data and has no STag; a larger one sends none and advertises all. So
//! nothing ever hangs on whether a Base Offset counts from the first byte or from the first solicited one, on which
//! initiators and targets differ (RFC 7145 6.9).
//!
//! `place` is where a command's buffer is, and how it gets there and back; `held` is what waits because no more buffers
//! can be advertised.

use alloc::vec::Vec;

use iscsi_memory::{Buf, Payload};
use iscsi_proto::datamover::{MoverError, Notification, SendCommand, TaskBuffers, TaskHandle};
use iscsi_proto::misbehavior::Misbehavior;
use iscsi_proto::pdu::{Bhs, Opcode, Residual, ResponseCode, ScsiResponse, TaskFunction, TaskManagementRequest};
use iscsi_proto::unsolicited::UnsolicitedRules;
use scsi_proto::{Sense, SenseKey, Status};

use super::{IserMover, State};
use crate::header::{ControlHeader, HEADER_LEN, Header, Hello, HelloReply, VERSION};
use crate::queue::{QueuePair, RemoteAccess, Stag};

mod held;
mod place;
#[cfg(test)]
mod tests;

use held::Held;
use place::{Blocked, Place};

/// One command under way.
#[derive(Debug, Default)]
struct Command {
    active: bool,
    generation: u16,
    /// Its message waits, and nothing of it is advertised.
    held: bool,
    /// A SCSI Response came.
    answered: bool,
    bidirectional: bool,
    data_out: Place,
    data_in: Place,
    /// The target may fetch the data for it: they do not travel with the command.
    fetched: bool,
    /// Bytes for the target.
    out_len: u32,
    /// Bytes that the command asks for.
    expected_in: u32,
    /// Bytes that the target says have come.
    in_len: u32,
}

#[derive(Debug)]
pub(super) struct InitiatorSide {
    commands: Vec<Command>,
    held: Held,
    /// STags that the target may use.
    advertised: usize,
}

impl InitiatorSide {
    pub(super) fn new(tasks: usize) -> Self {
        let mut commands = Vec::new();
        commands.resize_with(tasks, Command::default);
        Self { commands, held: Held::new(tasks), advertised: 0 }
    }

    /// Bytes of messages that wait for STags.
    pub(super) fn backlog(&self) -> usize {
        self.held.bytes()
    }

    /// The command that a tag names.
    fn named(&mut self, task: TaskHandle) -> Option<&mut Command> {
        let command = self.commands.get_mut(usize::from(task.slot))?;
        (command.active && command.generation == task.generation).then_some(command)
    }
}

impl<Q: QueuePair> IserMover<Q> {
    /// The final Login Response came.
    pub(super) fn open_initiator(&mut self) {
        self.open_segment();
        if self.parameters.iser_hello_required {
            // RFC 7145 5.1.3: the first message, and the HelloReply is the first that the target sends.
            self.send.awaits_hello = true;
            let hello = Hello { max_version: VERSION, min_version: VERSION, ird: self.config.read_depth };
            self.send_hello(Header::Hello(hello));
        }
    }

    /// RFC 7145 5.1.3, 9.4.
    pub(super) fn hello_reply(&mut self, reply: HelloReply) -> Option<Notification> {
        if !core::mem::take(&mut self.send.awaits_hello) {
            return self.broken(Misbehavior::HelloReplyUnasked);
        }
        if reply.rejected || reply.current_version != VERSION {
            self.fail(MoverError::Rdma("the target rejected the iSER Hello: its version, or its read depth"));
            return None;
        }
        self.served_depth = self.served_depth.min(reply.ord);
        self.pump();
        None
    }

    /// A SCSI Command (RFC 7145 7.3.1).
    pub(super) fn command(&mut self, command: SendCommand<'_>) {
        let SendCommand { task, mut bhs, ahs, data_out, data_in } = command;
        let slot = usize::from(task.slot);
        let expected = expected_length(&bhs);
        let (read, write) = (bhs.0[1] & 0x40 != 0, bhs.0[1] & 0x20 != 0);
        let data_out = data_out;
        let data_in = data_in;
        // What the command announces is all that the target may have (RFC 7143 11.3.4).
        let out_len = if write { data_out.as_ref().map_or(0, |data| clamped(data.len())).min(expected) } else { 0 };
        let room = data_in.as_ref().map_or(0, |sink| clamped(sink.len()));
        let expected_in = match (read, write) {
            (true, true) => room,
            (true, false) => room.min(expected),
            _ => 0,
        };
        let immediate = if out_len <= self.immediate_limit(ahs.len()) { out_len } else { 0 };
        if self.initiator.commands.len() <= slot {
            self.initiator.commands.resize_with(slot + 1, Command::default);
        }
        let Some(place) = self.initiator.commands.get_mut(slot) else { return };
        *place = Command {
            active: true,
            generation: task.generation,
            bidirectional: read && write,
            data_out: Place::of(data_out),
            data_in: Place::of(data_in),
            fetched: immediate < out_len,
            out_len,
            expected_in,
            ..Command::default()
        };
        if !matches!(self.state, State::Open) {
            return;
        }
        // RFC 7145 6.8.
        let longest = self.parameters.peer_max_ahs_length;
        if longest > 0 && ahs.len() > longest as usize {
            return self
                .fail(MoverError::Rdma("a command's additional header segments are longer than the target takes"));
        }
        // No unsolicited Data-Out follow (RFC 7143 11.3.1).
        bhs.0[1] |= 0x80;
        let mut message = self.compose(ControlHeader::default(), bhs, ahs, immediate as usize);
        if immediate > 0
            && let Some(Command { data_out: Place::Own(data), .. }) = self.initiator.commands.get(slot)
            && let Some(room) = super::send::data_segment(&mut message, ahs.len(), immediate as usize)
        {
            data.read(0, room);
            self.counters.immediate += u64::from(immediate);
            self.counters.copied += u64::from(immediate);
        }
        let waits = if self.initiator.held.is_empty() { self.advertise_and_send(message, task) } else { Some(message) };
        if let Some(message) = waits {
            self.hold(message, Some(task));
        }
    }

    /// The longest write that travels in the command's own message.
    fn immediate_limit(&self, ahs: usize) -> u32 {
        let segment = self.parameters.peer_max_recv_data_segment_length;
        let most = UnsolicitedRules::of(&self.parameters).immediate_limit(segment);
        // The receives of some targets have room for the data segment and for no AHS beside it.
        most.min(self.config.immediate_limit).saturating_sub(ahs as u32)
    }

    /// Sends a command whose message is made but for its STags. It comes back when it has to wait for them.
    fn advertise_and_send(&mut self, mut message: Buf, task: TaskHandle) -> Option<Buf> {
        match self.advertise(task) {
            Ok(header) => {
                if let Some(start) = message.first_chunk_mut::<HEADER_LEN>() {
                    *start = Header::Control(header).emit();
                }
                self.send_message(message);
                None
            }
            Err(Blocked::UntilOneIsWithdrawn) => Some(message),
            Err(Blocked::ForGood(why)) => {
                self.give_pooled(Payload::Buf(message));
                self.fail(MoverError::Rdma(why));
                None
            }
        }
    }

    /// Advertises what the target is to reach of a command's buffers.
    fn advertise(&mut self, task: TaskHandle) -> Result<ControlHeader, Blocked> {
        let Some(command) = self.initiator.named(task) else { return Ok(ControlHeader::default()) };
        let (fetched, expected_in) = (command.fetched, command.expected_in);
        let read = if expected_in > 0 { Some(self.advertise_place(task, RemoteAccess::Write)?) } else { None };
        let write = match fetched.then(|| self.advertise_place(task, RemoteAccess::Read)).transpose() {
            Ok(write) => write,
            Err(blocked) => {
                self.withdraw(task);
                // With the read part withdrawn it may be the only one that wants anything.
                return Err(if self.initiator.advertised == 0 { blocked.for_good() } else { blocked });
            }
        };
        Ok(ControlHeader { write, read })
    }

    /// Any PDU but a command.
    pub(super) fn send_in_order(&mut self, bhs: &Bhs, message: Buf) {
        if self.initiator.held.is_empty() || self.may_overtake(bhs) {
            self.send_message(message);
        } else {
            self.hold(message, None);
        }
    }

    /// Whether a PDU may go before commands that wait. Without it a task that never ends could not be aborted once all
    /// the others wait for its STag.
    ///
    /// What is for immediate delivery may, as it takes no CmdSN (RFC 7143 4.2.2.1), but for functions that concern what
    /// waits: the target would answer for tasks that it does not have yet.
    fn may_overtake(&mut self, bhs: &Bhs) -> bool {
        if !bhs.immediate() {
            return false;
        }
        match TaskManagementRequest::parse(bhs) {
            Ok(request) => {
                let task = TaskHandle::from_itt(request.referenced_task_tag);
                let waits = self.initiator.named(task).is_some_and(|command| command.held);
                request.function == Ok(TaskFunction::AbortTask) && !waits
            }
            Err(_) => bhs.opcode() != Ok(Opcode::TaskManagementRequest),
        }
    }

    /// A PDU of the Full Feature Phase came from the target.
    pub(super) fn response(&mut self, bhs: &Bhs, invalidated: Option<Stag>) -> Option<Notification> {
        if self.send.awaits_hello {
            return self.broken(Misbehavior::HelloReplyMissing);
        }
        let task = TaskHandle::from_itt(bhs.itt());
        let answers = bhs.opcode() == Ok(Opcode::ScsiResponse);
        let command = if answers { self.initiator.named(task) } else { None };
        // RFC 7145 7.3.2: the initiator makes sure that the correct STag is invalidated.
        match (&command, invalidated) {
            (_, None) => {}
            (Some(command), Some(stag)) if command.data_in.is_at(stag) || command.data_out.is_at(stag) => {}
            (_, Some(stag)) => return self.broken(Misbehavior::ForeignStagInvalidated(stag.0)),
        }
        if let Some(command) = command
            && !command.answered
        {
            if command.held {
                return self.broken(Misbehavior::ResponseToUnsentCommand);
            }
            command.answered = true;
            let (expected, bidirectional) = (command.expected_in, command.bidirectional);
            let came = data_in_len(bhs, self.receive.control_data(), expected, bidirectional);
            if let Some(command) = self.initiator.named(task) {
                command.in_len = came;
            }
            // RFC 7145 7.3.2: all STags of the task are dead before the iSCSI layer is told.
            self.withdraw(task);
            self.resume_held();
        }
        Some(Notification::Control(*bhs))
    }

    /// A task is over: its STags die (RFC 7145 8.3.2) and its buffers come back.
    pub(super) fn deallocate_command(&mut self, task: TaskHandle) -> TaskBuffers {
        let Some(command) = self.initiator.named(task) else { return TaskBuffers::default() };
        if command.held {
            self.give_up_held(task);
        }
        self.withdraw(task);
        let Some(command) = self.initiator.named(task) else { return TaskBuffers::default() };
        command.active = false;
        let buffers = TaskBuffers {
            data_out: command.data_out.take_own(),
            data_in: command.data_in.take_own(),
            data_in_len: command.in_len,
            data_out_len: command.out_len,
        };
        self.resume_held();
        buffers
    }

    /// The queue pair has ended.
    pub(super) fn withdraw_all(&mut self) {
        self.initiator.held.clear();
        for slot in 0..self.initiator.commands.len() {
            let Some(command) = self.initiator.commands.get_mut(slot).filter(|command| command.active) else {
                continue;
            };
            command.held = false;
            let task = TaskHandle { slot: slot as u16, generation: command.generation };
            self.withdraw(task);
        }
    }
}

/// Expected Data Transfer Length of a SCSI Command (RFC 7143 11.3.4).
fn expected_length(bhs: &Bhs) -> u32 {
    bhs.0.get(20..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn clamped(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Bytes of Data-In that the target vouches for. RDMA Writes leave no trace here, so the response has to tell (RFC 7143
/// 11.4.5).
fn data_in_len(bhs: &Bhs, data: &[u8], expected: u32, bidirectional: bool) -> u32 {
    let Ok(response) = ScsiResponse::parse(bhs) else { return 0 };
    if response.response != ResponseCode::Completed {
        return 0;
    }
    let residual = if bidirectional { response.bidirectional_read_residual } else { response.residual };
    match residual {
        Residual::Underflow(short) => expected.saturating_sub(short),
        Residual::Overflow(_) => expected,
        // Without a residual all data have moved. Targets leave it out where a command failed before it moved any.
        Residual::None if is_success(response.status, data) => expected,
        Residual::None => 0,
    }
}

/// Whether a command with this status did what it was to do.
fn is_success(status: u8, data: &[u8]) -> bool {
    match Status::from_byte(status) {
        Some(Status::Good | Status::ConditionMet) => true,
        // RFC 7143 11.4.7: two bytes of length, then sense data.
        Some(Status::CheckCondition) => {
            let sense = data.get(2..).and_then(|sense| Sense::parse(sense).ok());
            sense.is_some_and(|sense| sense.key == SenseKey::RecoveredError)
        }
        _ => false,
    }
}
