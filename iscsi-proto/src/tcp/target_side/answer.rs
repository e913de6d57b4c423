//! What goes out for a command: its read data as Data-In, its status in the last of them or in a SCSI Response.

use super::Numbering;
use crate::datamover::{Notification, PutData, Source, TaskStatus};
use crate::pdu::offset::{BUFFER_OFFSET, EXP_CMD_SN, FLAGS, ITT, MAX_CMD_SN, RESIDUAL_COUNT, STAT_SN, TTT};
use crate::pdu::{Bhs, DataIn, DataInStatus, Opcode, RESERVED_TAG, Residual, ResponseCode, ScsiResponse};
use crate::tcp::parts::Parts;
use crate::tcp::{MoverState, TcpMover};
use iscsi_memory::Payload;

/// Whether a response may ride in the last Data-In of a command of one direction (RFC 7143 11.7.3): GOOD, CONDITION MET
/// and the two INTERMEDIATE statuses, without sense data.
#[inline]
fn may_ride(status: &TaskStatus<'_>) -> bool {
    matches!(status.status, 0x00 | 0x04 | 0x10 | 0x14)
        && status.sense.is_empty()
        && status.bidirectional_read_residual == Residual::None
}

impl TcpMover {
    /// The short way of the answer that goes out most: a small piece of lent memory with its status, as one Data-In.
    /// False if it is not that.
    #[inline]
    pub(in crate::tcp) fn put_at_once(&mut self, put: &PutData<'_>) -> bool {
        let (Source::Region { region, offset, len }, Some(status)) = (&put.data, &put.status) else { return false };
        let (offset, len) = (*offset, *len);
        let alone = self.state == MoverState::Open && self.target.numbering.is_empty() && may_ride(status);
        if !alone || len == 0 || len > self.limits.single {
            return false;
        }
        // What `DataIn::emit` makes of it, with the fields that are zero left out: F and S set, first and only DataSN.
        let mut bhs = Bhs::new(Opcode::DataIn);
        bhs.0[FLAGS] = 0x81 | status.residual.flags(0x04, 0x02);
        bhs.0[3] = status.status;
        bhs.set_data_segment_len(len as u32);
        bhs.put_u32::<ITT>(put.itt);
        bhs.put_u32::<TTT>(RESERVED_TAG);
        bhs.put_u32::<STAT_SN>(self.numbers.stat_sn.0);
        bhs.put_u32::<EXP_CMD_SN>(self.numbers.exp_cmd_sn.0);
        bhs.put_u32::<MAX_CMD_SN>(self.numbers.max_cmd_sn.0);
        bhs.put_u32::<BUFFER_OFFSET>(put.buffer_offset);
        bhs.put_u32::<RESIDUAL_COUNT>(status.residual.count());
        self.send.pdu(&bhs, len, |to| region.read(offset, to));
        true
    }

    /// The short way of a status alone, as one SCSI Response. False if there is more to say.
    #[inline]
    pub(in crate::tcp) fn respond_at_once(&mut self, put: &PutData<'_>) -> bool {
        let (Source::None, Some(status)) = (&put.data, &put.status) else { return false };
        let alone = self.state == MoverState::Open && self.target.numbering.is_empty();
        if !alone || !status.sense.is_empty() || status.bidirectional_read_residual != Residual::None {
            return false;
        }
        // What `ScsiResponse::emit` makes of it, with the fields that are zero left out: command completed at target,
        // and no Data-In before.
        let mut bhs = Bhs::new(Opcode::ScsiResponse);
        bhs.0[FLAGS] = 0x80 | status.residual.flags(0x04, 0x02);
        bhs.0[3] = status.status;
        bhs.put_u32::<ITT>(put.itt);
        bhs.put_u32::<STAT_SN>(self.numbers.stat_sn.0);
        bhs.put_u32::<EXP_CMD_SN>(self.numbers.exp_cmd_sn.0);
        bhs.put_u32::<MAX_CMD_SN>(self.numbers.max_cmd_sn.0);
        bhs.put_u32::<RESIDUAL_COUNT>(status.residual.count());
        self.send.header(&bhs);
        true
    }

    #[inline(never)]
    pub(in crate::tcp) fn put(&mut self, put: PutData<'_>) {
        let PutData { lun: _, itt, buffer_offset, data, status } = put;
        if self.state != MoverState::Open {
            if let Source::Buf(buf) = data
                && self.state != MoverState::Closed
            {
                self.events.push_back(Notification::Released(buf));
            }
            return;
        }
        let mut numbering = if self.target.numbering.is_empty() {
            Numbering { itt, ..Numbering::default() }
        } else {
            *self.target.numbering(itt)
        };
        let riding = status.as_ref().filter(|status| !data.is_empty() && !numbering.bidirectional && may_ride(status));
        self.put_payload(itt, buffer_offset, data, riding, &mut numbering);
        match status {
            Some(_) if riding.is_some() => self.target.forget_numbering(itt),
            Some(status) => {
                self.put_response(itt, &status, numbering.data_in);
                self.target.forget_numbering(itt);
            }
            None => *self.target.numbering(itt) = numbering,
        }
    }

    fn put_payload(
        &mut self,
        itt: u32,
        buffer_offset: u32,
        data: Source<'_>,
        riding: Option<&TaskStatus<'_>>,
        numbering: &mut Numbering,
    ) {
        let total = data.len();
        let (most, burst_most) = (self.limits.send_segment as usize, self.limits.max_burst as usize);
        let mut parts = match &data {
            Source::Region { region, offset, len } if total > most.min(burst_most) => {
                Parts::within_blocks(region, *offset, *len, [most, burst_most])
            }
            _ => None,
        };
        let by_reference = total > self.config.copy_limit && parts.is_none();
        let (data, held) = match data {
            Source::Region { region, offset, len } if by_reference => {
                (Source::None, Some(self.send.hold(Payload::Region(region.slice(offset, len)))))
            }
            Source::Buf(buf) if by_reference => (Source::None, Some(self.send.hold(Payload::Buf(buf)))),
            data => (data, None),
        };
        // Tiny segments of a large payload are cheaper to copy than to reference.
        let copied_segment = self.config.copy_limit / 4;
        let (mut done, mut burst) = (0, 0);
        while done < total {
            let n = (total - done).min(most).min(burst_most - burst);
            let end = done + n;
            let last = end == total;
            burst += n;
            let is_final = last || burst == burst_most;
            if is_final {
                burst = 0;
            }
            let status = if last { riding } else { None };
            let mut bhs = DataIn {
                is_final,
                acknowledge: false,
                status: status.map(|status| DataInStatus {
                    status: status.status,
                    stat_sn: self.numbers.stat_sn,
                    residual: status.residual,
                }),
                lun: 0,
                itt,
                ttt: RESERVED_TAG,
                exp_cmd_sn: self.numbers.exp_cmd_sn,
                max_cmd_sn: self.numbers.max_cmd_sn,
                data_sn: numbering.next,
                buffer_offset: buffer_offset.wrapping_add(done as u32),
            }
            .emit();
            bhs.set_data_segment_len(n as u32);
            numbering.next = numbering.next.wrapping_add(1);
            numbering.data_in = numbering.data_in.wrapping_add(1);
            match (&data, held) {
                (Source::Region { region, offset, .. }, _) => {
                    self.send.pdu(&bhs, n, |to| match &mut parts {
                        Some(parts) => parts.read(to),
                        None => region.read(offset + done as u64, to),
                    });
                }
                (Source::Copy(bytes), _) => {
                    let bytes = bytes.get(done..end).unwrap_or_default();
                    self.send.pdu(&bhs, n, |to| to.copy_from_slice(bytes));
                }
                (Source::Buf(buf), _) => {
                    let bytes = buf.get(done..end).unwrap_or_default();
                    self.send.pdu(&bhs, n, |to| to.copy_from_slice(bytes));
                }
                (Source::None, Some(id)) => {
                    self.send.header(&bhs);
                    self.send.held_segment(id, done, end, copied_segment);
                }
                (Source::None, None) => {}
            }
            done = end;
        }
        let returned = match (data, held) {
            (Source::Buf(buf), _) => Some(Payload::Buf(buf)),
            (_, Some(id)) => self.send.drop_reference(id),
            _ => None,
        };
        if let Some(Payload::Buf(buf)) = returned {
            self.events.push_back(Notification::Released(buf));
        }
    }

    fn put_response(&mut self, itt: u32, status: &TaskStatus<'_>, exp_data_sn: u32) {
        let mut bhs = ScsiResponse {
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
            exp_data_sn,
        }
        .emit();
        let sense = status.sense;
        if sense.is_empty() {
            self.send.header(&bhs);
            return;
        }
        // RFC 7143 11.4.7: sense data follow their two-byte length.
        let len = sense.len() + 2;
        bhs.set_data_segment_len(len as u32);
        self.send.header(&bhs);
        self.send.copied(len, |to| {
            if let Some((length, rest)) = to.split_first_chunk_mut::<2>() {
                *length = (sense.len() as u16).to_be_bytes();
                rest.copy_from_slice(sense);
            }
        });
    }
}
