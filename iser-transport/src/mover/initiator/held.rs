//! Messages that wait because a command among them cannot advertise its buffers yet.
//!
//! Commands of one connection go out in the order of their CmdSN (RFC 7143 4.2.2.1), so what comes behind one that
//! waits waits too, unless it is for immediate delivery.

use alloc::collections::VecDeque;

use iscsi_memory::{Buf, Payload};
use iscsi_proto::datamover::TaskHandle;
use iscsi_proto::pdu::{BHS_LEN, Bhs, NopOut, RESERVED_TAG, ScsiCommand};

use super::super::{IserMover, State};
use crate::header::{ControlHeader, HEADER_LEN, HEADERS_LEN, Header};
use crate::queue::QueuePair;

/// A message, and the command that it carries.
#[derive(Debug)]
struct Message {
    buf: Buf,
    task: Option<TaskHandle>,
}

impl Message {
    fn pdu(&self) -> Option<Bhs> {
        self.buf.get(HEADER_LEN..)?.first_chunk::<BHS_LEN>().map(|bhs| Bhs(*bhs))
    }
}

/// What waits, in order. The command window bounds it.
#[derive(Debug)]
pub(super) struct Held {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Held {
    pub(super) fn new(tasks: usize) -> Self {
        Self { messages: VecDeque::with_capacity(tasks), bytes: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.bytes = 0;
    }

    fn pop(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.buf.len();
        Some(message)
    }
}

impl<Q: QueuePair> IserMover<Q> {
    /// A message waits, behind those that do already.
    pub(super) fn hold(&mut self, buf: Buf, task: Option<TaskHandle>) {
        self.set_held(task, true);
        self.initiator.held.bytes += buf.len();
        self.initiator.held.messages.push_back(Message { buf, task });
    }

    fn set_held(&mut self, task: Option<TaskHandle>, held: bool) {
        if let Some(command) = task.and_then(|task| self.initiator.named(task)) {
            command.held = held;
        }
    }

    /// Sends what waited, as far as it can go now.
    pub(super) fn resume_held(&mut self) {
        while matches!(self.state, State::Open)
            && let Some(Message { buf, task }) = self.initiator.held.pop()
        {
            self.set_held(task, false);
            let waits = match task {
                Some(task) => self.advertise_and_send(buf, task),
                None => {
                    self.send_message(buf);
                    None
                }
            };
            if let Some(buf) = waits {
                self.set_held(task, true);
                self.initiator.held.bytes += buf.len();
                self.initiator.held.messages.push_front(Message { buf, task });
                return self.send_overtakers();
            }
        }
    }

    /// Sends what may overtake by now, such as the abort of a task that was sent since.
    fn send_overtakers(&mut self) {
        let mut at = 0;
        while let Some(message) = self.initiator.held.messages.get(at) {
            let bhs = message.pdu().filter(|_| message.task.is_none());
            if bhs.is_some_and(|bhs| self.may_overtake(&bhs))
                && let Some(Message { buf, .. }) = self.initiator.held.messages.remove(at)
            {
                self.initiator.held.bytes -= buf.len();
                self.send_message(buf);
            } else {
                at += 1;
            }
        }
    }

    /// The session gave up a command whose message waits. Its CmdSN is taken, and the target waits for it (RFC 7143
    /// 4.2.2.1): a NOP-Out that is not for immediate delivery takes its place.
    pub(super) fn give_up_held(&mut self, task: TaskHandle) {
        let Some(at) = self.initiator.held.messages.iter().position(|message| message.task == Some(task)) else {
            return;
        };
        self.set_held(Some(task), false);
        let Some(message) = self.initiator.held.messages.get_mut(at) else { return };
        if let Some(command) = message.pdu().and_then(|bhs| ScsiCommand::parse(&bhs).ok()) {
            let nop = NopOut {
                immediate: false,
                lun: 0,
                itt: command.itt,
                ttt: RESERVED_TAG,
                cmd_sn: command.cmd_sn,
                exp_stat_sn: command.exp_stat_sn,
            };
            let before = message.buf.len();
            message.task = None;
            message.buf.set_len(HEADERS_LEN);
            message.buf[..HEADER_LEN].copy_from_slice(&Header::Control(ControlHeader::default()).emit());
            message.buf[HEADER_LEN..].copy_from_slice(&nop.emit().0);
            self.initiator.held.bytes -= before - HEADERS_LEN;
        } else if let Some(Message { buf, .. }) = self.initiator.held.messages.remove(at) {
            self.initiator.held.bytes -= buf.len();
            self.give_pooled(Payload::Buf(buf));
        }
    }
}
