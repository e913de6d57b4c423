//! Receives, and what comes in them: one iSER message each (RFC 7145 9).

use alloc::collections::VecDeque;

use iscsi_memory::Buf;
use iscsi_proto::datamover::{MalformedPdu, MoverError, Notification};
use iscsi_proto::misbehavior::Misbehavior;
use iscsi_proto::parameters::Parameters;
use iscsi_proto::pdu::{BHS_LEN, Bhs, Opcode};
use iscsi_proto::tcp::Role;

use super::config::{LOGIN_DATA_SEGMENT_LEN, padded, receive_len};
use super::{IserMover, State};
use crate::header::{ControlHeader, HEADER_LEN, HEADERS_LEN, Header};
use crate::queue::{QueuePair, Stag};

/// A message that came and was not looked at.
#[derive(Debug)]
pub(super) struct Arrived {
    buf: Buf,
    len: usize,
    invalidated: Option<Stag>,
}

/// Place of a part of the message that was notified last.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) len: usize,
}

#[derive(Debug)]
pub(super) struct Receive {
    inbox: VecDeque<Arrived>,
    /// The message that was notified last; its buffer is posted again at the next notification.
    message: Option<Buf>,
    ahs: Span,
    data: Span,
    /// Target, in a login: bytes of a text whose rest is to come in further PDUs.
    gathered: u32,
    /// Receives that are posted and not used.
    posted: usize,
    /// Bytes of a full-feature receive; zero until they are posted.
    full_len: usize,
    /// Full-feature receives in all.
    full_count: usize,
    /// The most that one data segment may have.
    segment: u32,
    /// No full-feature message came yet.
    pub(super) first: bool,
}

impl Receive {
    pub(super) fn new() -> Self {
        Self {
            inbox: VecDeque::new(),
            message: None,
            ahs: Span::default(),
            data: Span::default(),
            gathered: 0,
            posted: 0,
            full_len: 0,
            full_count: 0,
            segment: LOGIN_DATA_SEGMENT_LEN,
            first: true,
        }
    }

    pub(super) fn next(&mut self) -> Option<Arrived> {
        self.inbox.pop_front()
    }

    /// Bytes that the receives take.
    pub(super) fn memory(&self) -> usize {
        self.posted * self.full_len
    }

    pub(super) fn drop_inbox(&mut self) {
        self.inbox.clear();
    }

    /// Gives back tables that nothing is in.
    pub(super) fn trim(&mut self) {
        if self.inbox.is_empty() {
            self.inbox = VecDeque::new();
        }
    }

    /// A receive came back unused.
    pub(super) fn flushed(&mut self) {
        self.posted = self.posted.saturating_sub(1);
    }

    /// Bytes of the message that was notified last.
    pub(super) fn span(&self, span: Span) -> &[u8] {
        let message = self.message.as_deref().unwrap_or_default();
        message.get(span.start..span.start + span.len).unwrap_or_default()
    }

    pub(super) fn control_ahs(&self) -> &[u8] {
        self.span(self.ahs)
    }

    pub(super) fn control_data(&self) -> &[u8] {
        self.span(self.data)
    }
}

impl<Q: QueuePair> IserMover<Q> {
    fn post_receive(&mut self, buf: Buf) {
        self.receive.posted += 1;
        self.unrung = true;
        self.queue.post_receive(buf);
    }

    /// Login is lock-step: one receive is there for the next PDU of the peer, from before the message that asks for it.
    /// A text over several PDUs costs no more than in one: what is gathered of it is room that the next PDU has not.
    pub(super) fn ensure_login_receive(&mut self) {
        if self.receive.posted == 0 {
            self.receive.posted += 1;
            self.unrung = true;
            let data = LOGIN_DATA_SEGMENT_LEN.saturating_sub(self.receive.gathered);
            self.queue.post_single(HEADERS_LEN + data as usize);
        }
    }

    /// Bytes of a receive of the Full Feature Phase, and how many there are.
    fn receives(&self, parameters: &Parameters) -> (usize, usize) {
        // Targets send no AHS (RFC 7143 11.2.2).
        let ahs = if self.config.role == Role::Target { parameters.max_ahs_length } else { 4 };
        let len = receive_len(ahs, parameters.max_recv_data_segment_length);
        (len, self.config.receives().min(self.queue.limits().receives))
    }

    /// Whether there is memory for them.
    pub(super) fn has_room_for_receives(&self, parameters: &Parameters) -> bool {
        let (len, count) = self.receives(parameters);
        count.saturating_mul(len) <= self.config.receive_memory
    }

    /// Posts the receives of the Full Feature Phase, unless they are there.
    pub(super) fn open_receives(&mut self) {
        let (len, count) = self.receives(&self.parameters);
        if self.receive.full_len > 0 {
            if len > self.receive.full_len {
                self.fail(MoverError::Rdma(
                    "login settled on a larger data segment than the receives are configured for",
                ));
            }
            return;
        }
        if !self.has_room_for_receives(&self.parameters) {
            self.fail(MoverError::Rdma(
                "the receives for the negotiated data segment need more than the configured memory: raise it, or \
                 declare a smaller segment",
            ));
            return;
        }
        self.receive.full_len = len;
        self.receive.full_count = count;
        let missing = count.saturating_sub(self.receive.posted);
        self.receive.posted += missing;
        self.unrung = true;
        self.queue.post_receives(missing, len);
    }

    /// A message came.
    pub(super) fn arrived(&mut self, buf: Buf, len: usize, invalidated: Option<Stag>) {
        self.receive.posted = self.receive.posted.saturating_sub(1);
        if matches!(self.state, State::Open) {
            self.receive.inbox.push_back(Arrived { buf, len, invalidated });
        }
    }

    /// The session is done with the message that was notified last: its buffer takes another one.
    pub(super) fn release_message(&mut self) {
        if self.config.role == Role::Target {
            self.settle_command();
        }
        let Some(buf) = self.receive.message.take() else { return };
        self.receive.ahs = Span::default();
        self.receive.data = Span::default();
        if self.receive.full_len == 0 {
            // Another one is posted when there is an answer to be expected.
            drop(buf);
            self.receive.trim();
            self.queue.trim();
            return;
        }
        let missing = self.receive.posted + self.receive.inbox.len() < self.receive.full_count;
        if missing && matches!(self.state, State::Open) {
            // The one of login may be too small.
            let fits = buf.len() >= self.receive.full_len;
            self.post_receive(if fits { buf } else { Buf::zeroed(self.receive.full_len) });
        }
    }

    /// A rule is broken that leaves no way on (RFC 7145 10.1.3.3, 10.1.3.4).
    #[cold]
    pub(super) fn broken(&mut self, misbehavior: Misbehavior) -> Option<Notification> {
        self.fail(MoverError::Protocol(misbehavior));
        None
    }

    /// Looks at a message.
    pub(super) fn message(&mut self, arrived: Arrived) -> Option<Notification> {
        let Arrived { buf, len, invalidated } = arrived;
        let parsed = Header::parse(buf.get(..len).unwrap_or_default());
        let header = buf.get(HEADER_LEN..len).and_then(<[u8]>::first_chunk::<BHS_LEN>).map(|bhs| Bhs(*bhs));
        self.receive.message = Some(buf);
        let control = match parsed {
            Err(error) => return self.broken(error.into()),
            Ok(Header::Control(control)) => control,
            Ok(_) if !self.full_feature => return self.broken(Misbehavior::HelloInLogin),
            Ok(Header::Hello(hello)) if self.config.role == Role::Target => return self.hello(hello),
            Ok(Header::HelloReply(reply)) if self.config.role == Role::Initiator => return self.hello_reply(reply),
            Ok(_) => {
                return self.broken(Misbehavior::HelloOfOtherRole);
            }
        };
        let Some(bhs) = header else {
            return self.broken(Misbehavior::IserPduTooShort);
        };
        let (ahs, mut data) = (bhs.ahs_len(), bhs.data_segment_len());
        if self.lacks_immediate_data(&bhs, &control, len) {
            data = 0;
        }
        if data > self.receive.segment {
            self.fail(MoverError::DataSegmentTooLong { got: data, limit: self.receive.segment });
            return None;
        }
        let end = HEADERS_LEN + ahs + data as usize;
        // The lengths of the PDU say it all; its padding may be there or not.
        if len < end || len > HEADERS_LEN + ahs + padded(data) as usize {
            return self.broken(Misbehavior::IserPduLength { got: len, expected: end });
        }
        self.receive.ahs = Span { start: HEADERS_LEN, len: ahs };
        let data = Span { start: HEADERS_LEN + ahs, len: data as usize };
        if self.full_feature {
            self.pdu(control, &bhs, data, invalidated)
        } else {
            self.login_pdu(&bhs, data, invalidated)
        }
    }

    /// Whether a command counts immediate data in its header that the message does not have, and advertises all of them
    /// instead: libiscsi before 1.20 does so with ImmediateData=Yes, and QEMU with it. Nobody else sends such a
    /// message, whose data are all where the STag says.
    fn lacks_immediate_data(&self, bhs: &Bhs, control: &ControlHeader, len: usize) -> bool {
        self.full_feature
            && self.config.role == Role::Target
            && bhs.opcode() == Ok(Opcode::ScsiCommand)
            && control.write.is_some()
            && len == HEADERS_LEN + bhs.ahs_len()
    }

    /// Before login is over there are login PDUs only.
    fn login_pdu(&mut self, bhs: &Bhs, data: Span, invalidated: Option<Stag>) -> Option<Notification> {
        let opcode = bhs.opcode();
        let expected = match self.config.role {
            Role::Target => opcode == Ok(Opcode::LoginRequest),
            Role::Initiator => matches!(opcode, Ok(Opcode::LoginResponse | Opcode::Reject)),
        };
        if !expected {
            return self.broken(Misbehavior::NoLoginPdu);
        }
        if invalidated.is_some() {
            return self.broken(Misbehavior::LoginInvalidatesStag);
        }
        if self.config.role == Role::Target {
            // RFC 7143 11.12.2: the C bit.
            let text = self.receive.gathered.saturating_add(data.len as u32);
            self.receive.gathered = if bhs.0[1] & 0x40 == 0 { 0 } else { text };
        }
        self.receive.data = data;
        Some(Notification::Control(*bhs))
    }

    /// A PDU of the Full Feature Phase.
    fn pdu(
        &mut self,
        control: ControlHeader,
        bhs: &Bhs,
        data: Span,
        invalidated: Option<Stag>,
    ) -> Option<Notification> {
        self.receive.first = false;
        let malformed = match bhs.opcode() {
            Err(error) => MalformedPdu::Header(error),
            // RFC 7145 7.3.5, 7.3.6: what they do is done by RDMA Write and RDMA Read.
            Ok(opcode @ (Opcode::DataIn | Opcode::R2t)) => MalformedPdu::Protocol(Misbehavior::DataPduOverIser(opcode)),
            Ok(opcode) if opcode.is_request() != (self.config.role == Role::Target) => {
                MalformedPdu::Protocol(Misbehavior::OpcodeOfOtherRole(opcode))
            }
            Ok(opcode) => {
                return match self.config.role {
                    Role::Target => self.request(opcode, control, bhs, data),
                    Role::Initiator => {
                        self.receive.data = data;
                        self.response(bhs, invalidated)
                    }
                };
            }
        };
        Some(Notification::Malformed { bhs: *bhs, error: malformed })
    }

    /// The data segment of the message at hand is for
    /// [`control_data`](iscsi_proto::datamover::Datamover::control_data).
    pub(super) fn show_data(&mut self, data: Span) {
        self.receive.data = data;
    }

    /// The Full Feature Phase holds from the next message on.
    pub(super) fn open_segment(&mut self) {
        self.receive.segment = self.parameters.max_recv_data_segment_length;
    }
}
