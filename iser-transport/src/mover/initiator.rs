//! The initiator's side: commands with their advertised buffers.
//!
//! What the rest of the mover asks of it, by function:
//!
//! - `open_initiator`: the Full Feature Phase begins; sends the Hello where it is wanted;
//! - `hello_reply`: the target's answer to it;
//! - `command`: a SCSI Command with its buffers;
//! - `response`: a control-type PDU came, perhaps with an STag of ours that the target invalidated;
//! - `deallocate_command`: a task is over;
//! - `withdraw_all`: the queue pair has ended, and nothing is advertised any more.

use alloc::vec::Vec;

use iscsi_proto::datamover::{CommandData, Notification, SendCommand, Sink, TaskBuffers, TaskHandle};
use iscsi_proto::pdu::Bhs;

use super::IserMover;
use crate::header::HelloReply;
use crate::queue::{QueuePair, Stag};

/// Buffers of one command.
#[derive(Debug)]
struct Command {
    task: TaskHandle,
    data_out: Option<CommandData>,
    data_in: Option<Sink>,
}

#[derive(Debug)]
pub(super) struct InitiatorSide {
    commands: Vec<Command>,
}

impl InitiatorSide {
    pub(super) fn new(tasks: usize) -> Self {
        Self { commands: Vec::with_capacity(tasks) }
    }
}

impl<Q: QueuePair> IserMover<Q> {
    pub(super) fn open_initiator(&mut self) {
        self.open_segment();
    }

    pub(super) fn hello_reply(&mut self, _reply: HelloReply) -> Option<Notification> {
        self.broken("a HelloReply came, and no Hello was sent (RFC 7145 5.1.3)")
    }

    pub(super) fn command(&mut self, command: SendCommand<'_>) {
        let SendCommand { task, data_out, data_in, .. } = command;
        self.initiator.commands.push(Command { task, data_out, data_in });
    }

    pub(super) fn response(&mut self, bhs: &Bhs, invalidated: Option<Stag>) -> Option<Notification> {
        if invalidated.is_some() {
            return self.broken("the target invalidated an STag that was not advertised to it");
        }
        Some(Notification::Control(*bhs))
    }

    pub(super) fn deallocate_command(&mut self, task: TaskHandle) -> TaskBuffers {
        let commands = &mut self.initiator.commands;
        let Some(at) = commands.iter().position(|command| command.task == task) else { return TaskBuffers::default() };
        let Command { data_out, data_in, .. } = commands.swap_remove(at);
        TaskBuffers { data_out, data_in, data_in_len: 0 }
    }

    pub(super) fn withdraw_all(&mut self) {}
}
