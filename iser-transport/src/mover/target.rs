//! The target's side: commands with their STags, RDMA Write and SCSI Response.

use iscsi_memory::{Lease, Payload};
use iscsi_proto::datamover::{MalformedPdu, MoverError, Notification, PutData, Source, TaskStatus};
use iscsi_proto::misbehavior::Misbehavior;
use iscsi_proto::pdu::{Ahs, AhsIter, BHS_LEN, Bhs, DataOut, Opcode, RESERVED_TAG, ResponseCode, ScsiResponse};
use iscsi_proto::unsolicited::UnsolicitedRules;

use super::fetch::Transfers;
use super::receive::Span;
use super::tags::{Tag, TagTable, Unsolicited};
use super::{IserMover, State};
use crate::header::{ControlHeader, Header, Hello, HelloReply, VERSION};
use crate::queue::{QueuePair, RemoteBuffer, Stag};

/// Tags beyond the tasks themselves: commands that were answered while their unsolicited data are still coming, or that
/// ended without an answer.
const EXTRA_TAGS: usize = 64;

/// The SCSI Command notified last, until the next notification: the session may ask for its data.
#[derive(Debug, Clone, Copy)]
pub(super) struct CurrentCommand {
    pub(super) tag: Tag,
    /// Place of its immediate data in the message.
    pub(super) data: Span,
    pub(super) is_final: bool,
    /// All that it writes came with it.
    pub(super) whole: bool,
    /// The session rejected it: its tag may be that of another command, which goes on.
    rejected: bool,
}

#[derive(Debug)]
pub(super) struct TargetSide {
    pub(super) current: Option<CurrentCommand>,
    pub(super) tags: TagTable,
    pub(super) transfers: Transfers,
}

impl TargetSide {
    pub(super) fn new(tasks: usize) -> Self {
        let tags = if tasks == 0 { 0 } else { tasks + EXTRA_TAGS };
        Self { current: None, tags: TagTable::new(tags), transfers: Transfers::default() }
    }
}

impl CurrentCommand {
    /// Whether it is what the session means by a tag.
    pub(super) fn names(&self, itt: u32) -> bool {
        self.tag.itt == itt && !self.rejected
    }
}

impl<Q: QueuePair> IserMover<Q> {
    /// The final Login Response has been sent.
    pub(super) fn open_target(&mut self) {
        self.open_segment();
        // RFC 7145 5.1.3: the HelloReply is the first message that a target sends.
        self.send.awaits_hello = self.parameters.iser_hello_required;
    }

    /// RFC 7145 5.1.3. It is answered where login did not ask for it, too: initiators of RFC 5046 send it unasked.
    pub(super) fn hello(&mut self, hello: Hello) -> Option<Notification> {
        if !self.receive.first {
            return self.broken(Misbehavior::LateHello);
        }
        self.receive.first = false;
        let versions = hello.min_version <= VERSION && VERSION <= hello.max_version;
        let ord = u16::try_from(self.send.read_depth).unwrap_or(u16::MAX);
        // RFC 7145 10.1.3.2.
        let rejected = !versions || (hello.ird > 0 && ord == 0);
        let ord = ord.min(hello.ird);
        self.send.read_depth = usize::from(ord);
        self.send.awaits_hello = false;
        let reply = HelloReply { rejected, max_version: VERSION, current_version: VERSION, ord };
        self.send_hello(Header::HelloReply(reply));
        if rejected && matches!(self.state, State::Open) {
            self.close_with(MoverError::Rdma("the initiator's Hello was rejected: its version, or its read depth"));
        }
        None
    }

    /// A request of the Full Feature Phase.
    pub(super) fn request(
        &mut self,
        opcode: Opcode,
        control: ControlHeader,
        bhs: &Bhs,
        data: Span,
    ) -> Option<Notification> {
        if self.send.awaits_hello {
            return self.broken(Misbehavior::HelloMissing);
        }
        match opcode {
            Opcode::ScsiCommand => self.begin_command(control, bhs, data),
            Opcode::DataOut => {
                let malformed = match DataOut::parse(bhs) {
                    Err(error) => MalformedPdu::Header(error),
                    // RFC 7145 7.3.4.
                    Ok(pdu) if pdu.ttt != RESERVED_TAG => MalformedPdu::Protocol(Misbehavior::SolicitedDataOutOverIser),
                    Ok(pdu) => match self.data_out(&pdu, data) {
                        Ok(()) => return None,
                        Err(error) => error,
                    },
                };
                Some(Notification::Malformed { bhs: *bhs, error: malformed })
            }
            // RFC 7145 7.3.11: its Reject is a "protocol error", whatever it would be over TCP.
            Opcode::SnackRequest => {
                Some(Notification::Malformed { bhs: *bhs, error: MalformedPdu::Protocol(Misbehavior::SnackOverIser) })
            }
            _ => {
                self.show_data(data);
                Some(Notification::Control(*bhs))
            }
        }
    }

    /// A SCSI Command came (RFC 7145 7.3.1).
    fn begin_command(&mut self, control: ControlHeader, bhs: &Bhs, data: Span) -> Option<Notification> {
        let flags = bhs.0[1];
        let (is_final, read, write) = (flags & 0x80 != 0, flags & 0x40 != 0, flags & 0x20 != 0);
        let expected = expected_length(bhs);
        let immediate = data.len as u32;
        let read_len = match (read, write) {
            (true, true) => AhsIter::new(self.receive.control_ahs())
                .find_map(|segment| match segment {
                    Ok(Ahs::BidirectionalReadLength(len)) => Some(len),
                    _ => None,
                })
                .unwrap_or(0),
            (true, false) => expected,
            _ => 0,
        };
        let write_len = if write { expected } else { 0 };
        // RFC 7145 9.2, 10.1.3.3.
        let wrong = match (control.read, control.write) {
            (Some(_), _) if !read => Some(Misbehavior::ReadStagWithoutRead),
            (_, Some(_)) if !write => Some(Misbehavior::WriteStagWithoutWrite),
            (None, _) if read_len > 0 => Some(Misbehavior::ReadStagMissing),
            (_, None) if is_final && write_len > immediate => Some(Misbehavior::WriteStagMissing),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return self.broken(wrong);
        }
        self.counters.immediate += u64::from(immediate);
        self.target.current = Some(CurrentCommand {
            tag: Tag {
                itt: bhs.itt(),
                read: control.read,
                read_len,
                write: control.write,
                write_len,
                immediate,
                lost: false,
                unsolicited: if is_final { Unsolicited::None } else { Unsolicited::Dropped },
            },
            data,
            is_final,
            whole: write && !read && is_final && immediate == expected && immediate > 0,
            rejected: false,
        });
        Some(Notification::Control(*bhs))
    }

    /// Data of the last command that `get_data` would only copy.
    pub(super) fn at_hand(&self) -> &[u8] {
        let Some(current) = &self.target.current else { return &[] };
        let allowed = UnsolicitedRules::of(&self.parameters).allow_immediate(current.tag.immediate);
        if current.whole && allowed { self.receive.span(current.data) } else { &[] }
    }

    /// The session has had its say about the last command: its STags are kept as long as it is not answered.
    pub(super) fn settle_command(&mut self) {
        let Some(current) = self.target.current.take() else { return };
        if current.rejected && self.target.tags.get(current.tag.itt).is_some() {
            return;
        }
        // It was not asked for its data, which are gone with the message, or will be dropped as they come.
        self.keep(Tag { lost: current.tag.immediate > 0 || !current.is_final, ..current.tag });
    }

    /// Enters a tag anew, if there is anything to be known of it: whatever was to come for its last use does not come
    /// any more.
    pub(super) fn keep(&mut self, tag: Tag) {
        if tag.read.is_some() || tag.write.is_some() || tag.unsolicited != Unsolicited::None {
            self.target.tags.insert(tag);
        } else {
            self.target.tags.remove(tag.itt);
        }
    }

    /// A command ends without an answer: its STags are the initiator's again. What still comes for it is dropped.
    pub(super) fn forget_tag(&mut self, itt: u32) {
        let tag = match &mut self.target.current {
            Some(current) if current.names(itt) => &mut current.tag,
            _ => match self.target.tags.get_mut(itt) {
                Some(tag) => tag,
                None => return,
            },
        };
        tag.read = None;
        tag.write = None;
        if tag.unsolicited != Unsolicited::None {
            tag.unsolicited = Unsolicited::Dropped;
        } else if self.target.current.is_none_or(|current| !current.names(itt)) {
            self.target.tags.remove(itt);
        }
    }

    /// The command that a tag names: the last one, or one that waits for its answer.
    pub(super) fn tag(&self, itt: u32) -> Option<Tag> {
        match &self.target.current {
            Some(current) if current.names(itt) => Some(current.tag),
            _ => self.target.tags.get(itt).copied(),
        }
    }

    /// A command is answered: its STags are the initiator's again. Gives the one that the answer may invalidate (RFC
    /// 7145 7.3.2).
    fn answer(&mut self, itt: u32) -> Option<Stag> {
        let mut tag = match self.target.current.take_if(|current| current.names(itt)) {
            Some(current) => {
                if current.whole {
                    // The session took them from the message.
                    self.counters.copied += u64::from(current.tag.immediate);
                }
                current.tag
            }
            None => self.target.tags.remove(itt)?,
        };
        let stag = tag.read.or(tag.write).map(|buffer| buffer.stag);
        tag.read = None;
        tag.write = None;
        if let Unsolicited::Transfer(_) = tag.unsolicited {
            tag.unsolicited = Unsolicited::Dropped;
        }
        self.keep(tag);
        stag.filter(|_| self.peer.send_with_invalidate)
    }

    /// A control-type PDU of the session is about to leave: what it means for the command that it answers.
    pub(super) fn control_leaves(&mut self, bhs: &Bhs, data: &[u8]) -> Option<Stag> {
        match bhs.opcode() {
            Ok(Opcode::ScsiResponse) => self.answer(bhs.itt()),
            Ok(Opcode::Reject) => {
                // The data segment is the header of what is rejected (RFC 7143 11.17.2).
                if let Some(rejected) = data.first_chunk::<BHS_LEN>() {
                    self.refuse_command(&Bhs(*rejected));
                }
                None
            }
            _ => None,
        }
    }

    /// The session refuses a request: if it is the last command, nothing more is done for that.
    pub(super) fn refuse_command(&mut self, request: &Bhs) {
        if let Some(current) = &mut self.target.current
            && request.itt() == current.tag.itt
            && request.0[0] & 0x3f == Opcode::ScsiCommand as u8
        {
            current.rejected = true;
            current.tag.read = None;
            current.tag.write = None;
        }
    }

    /// `put_data`: RDMA Write (RFC 7145 7.3.5), then SCSI Response (RFC 7145 7.3.2).
    pub(super) fn put(&mut self, put: PutData<'_>) {
        let PutData { lun: _, itt, buffer_offset, data, status } = put;
        if !matches!(self.state, State::Open) {
            if let Source::Buf(buf) = data
                && !matches!(self.state, State::Closed)
            {
                self.release(Payload::Buf(buf));
            }
            return;
        }
        if !data.is_empty() {
            match self.tag(itt) {
                Some(Tag { read: Some(to), read_len, .. }) => self.write(data, buffer_offset, to, read_len),
                // It asked for nothing: the residual tells it what there would have been.
                Some(Tag { read_len: 0, .. }) => self.drop_source(data),
                _ => {
                    self.drop_source(data);
                    self.fail(MoverError::Protocol(Misbehavior::ReadStagForgotten));
                    return;
                }
            }
        } else {
            self.drop_source(data);
        }
        if let Some(status) = status {
            let invalidate = self.answer(itt);
            self.respond(itt, &status, invalidate);
        }
        self.pump();
    }

    fn drop_source(&mut self, data: Source<'_>) {
        if let Source::Buf(buf) = data {
            self.release(Payload::Buf(buf));
        }
    }

    /// Queues data to be written behind `offset` of the advertised buffer, never beyond its `most` bytes.
    fn write(&mut self, data: Source<'_>, offset: u32, to: RemoteBuffer, most: u32) {
        let len = data.len().min(most.saturating_sub(offset) as usize);
        if len == 0 {
            return self.drop_source(data);
        }
        let to = RemoteBuffer { offset: to.offset.wrapping_add(u64::from(offset)), ..to };
        let inline = match &data {
            Source::None | Source::Buf(_) => false,
            Source::Copy(bytes) => {
                self.write_inline(to, len, &mut |place| place.copy_from_slice(bytes.get(..len).unwrap_or_default()))
            }
            Source::Region { region, offset, .. } => {
                self.write_inline(to, len, &mut |place| region.read(*offset, place))
            }
        };
        if inline {
            return;
        }
        match data {
            Source::None => {}
            Source::Copy(bytes) => {
                let mut copy = self.send.take_buffer(len);
                copy.copy_from_slice(bytes.get(..len).unwrap_or_default());
                self.counters.copied += len as u64;
                self.send.queue_write(Lease::whole(Payload::Buf(copy)), to, true);
            }
            Source::Region { region, offset, .. } => {
                self.send.queue_write(Lease::whole(Payload::Region(region.slice(offset, len))), to, false);
            }
            Source::Buf(buf) => self.send.queue_write(Lease::part(Payload::Buf(buf), 0, len), to, false),
        }
    }

    fn respond(&mut self, itt: u32, status: &TaskStatus<'_>, invalidate: Option<Stag>) {
        let bhs = ScsiResponse {
            bidirectional_read_residual: status.bidirectional_read_residual,
            residual: status.residual,
            response: ResponseCode::Completed,
            status: status.status,
            status_qualifier: 0,
            itt,
            snack_tag: 0,
            stat_sn: self.numbers.stat_sn,
            exp_cmd_sn: self.numbers.exp_cmd_sn,
            max_cmd_sn: self.numbers.max_cmd_sn,
            // No Data-In PDUs are sent (RFC 7145 7.3.5).
            exp_data_sn: 0,
        }
        .emit();
        let limit = self.config.response_data_limit.min(self.parameters.peer_max_recv_data_segment_length) as usize;
        let sense = status.sense.get(..limit.saturating_sub(2)).unwrap_or(status.sense);
        // RFC 7143 11.4.7: sense data follow their two-byte length.
        let len = if sense.is_empty() { 0 } else { sense.len() + 2 };
        let fill = |to: &mut [u8]| {
            if let Some((length, rest)) = to.split_first_chunk_mut::<2>() {
                *length = (sense.len() as u16).to_be_bytes();
                rest.copy_from_slice(sense);
            }
        };
        self.send_pdu(ControlHeader::default(), bhs, &[], len, fill, invalidate);
    }
}

/// Expected Data Transfer Length of a SCSI Command (RFC 7143 11.3.4).
fn expected_length(bhs: &Bhs) -> u32 {
    bhs.0.get(20..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}
