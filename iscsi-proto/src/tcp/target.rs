//! The target's side: write data by immediate, unsolicited and solicited Data-Out; read data and status by Data-In and
//! SCSI Response.

use alloc::vec::Vec;

use super::parts::Parts;
use super::receive::Purpose;
use super::{Limits, State, TcpMover};
use crate::datamover::{
    CommandData, DataError, GetData, MalformedPdu, Notification, PutData, Source, TaskBuffers, TaskHandle, TaskStatus,
};
use crate::pdu::{Bhs, DataIn, DataInStatus, DataOut, Opcode, R2t, RESERVED_TAG, Residual, ResponseCode, ScsiResponse};

/// Tables beyond the tasks themselves have room for this many more entries: commands that were answered without taking
/// their unsolicited data.
const EXTRA_UNSOLICITED: usize = 64;

/// The SCSI Command notified last, until the next notification: the session may ask for its data.
#[derive(Debug, Clone, Copy)]
pub(super) struct CurrentCommand {
    itt: u32,
    expected_length: u32,
    immediate: u32,
    is_final: bool,
    write: bool,
    read: bool,
    taken: Option<u16>,
}

/// Whether a response may ride in the last Data-In of a command of one direction (RFC 7143 11.7.3): GOOD, CONDITION MET
/// and the two INTERMEDIATE statuses, without sense data.
#[inline]
fn may_ride(status: &TaskStatus<'_>) -> bool {
    matches!(status.status, 0x00 | 0x04 | 0x10 | 0x14)
        && status.sense.is_empty()
        && status.bidirectional_read_residual == Residual::None
}

/// One `get_data` under way. Write data come as one unsolicited burst (immediate data and Data-Out without tag), then
/// as the bursts of R2Ts.
#[derive(Debug, Default)]
struct Transfer {
    active: bool,
    generation: u16,
    /// Upper half of the next Target Transfer Tag; the lower half is the slot. It runs on over the slot's uses, so that
    /// stale tags are known.
    next_tag: u16,
    /// R2Ts ever sent from this slot, to tell a stale tag from one that never was.
    tags_used: u32,
    /// R2Ts sent and not yet fulfilled. Their tags are the last so many before `next_tag`; they are fulfilled in order
    /// (RFC 7143 11.8).
    outstanding: u16,
    lun: u64,
    itt: u32,
    /// Bytes wanted in all.
    wanted: u32,
    /// The most that may come unsolicited.
    unsolicited_limit: u32,
    /// Whether FirstBurstLength is what makes the limit, not the command's own length.
    limited_by_first_burst: bool,
    /// Immediate bytes: where unsolicited Data-Out begins.
    immediate: u32,
    /// Bytes of all bursts that have ended, and of the unsolicited burst under way. The oldest outstanding R2T begins
    /// here.
    received: u32,
    /// Bytes of the solicited burst under way.
    burst_received: u32,
    /// Offset of the next R2T.
    next_r2t: u32,
    data_sn: u32,
    r2t_sn: u32,
    bidirectional: bool,
    /// What the initiator did wrong: the transfer fails when the last burst that is on its way has ended.
    failed: Option<DataError>,
    /// Outstanding bursts that have ended since it failed.
    ended: u16,
    /// First bytes of a logical block whose rest comes in another PDU: see `landing`.
    begun: Vec<u8>,
}

/// A command whose unsolicited Data-Out PDUs have not ended with the F bit.
#[derive(Debug, Clone, Copy)]
struct Unsolicited {
    itt: u32,
    /// The transfer that takes them; none: they are dropped in silence.
    slot: Option<u16>,
}

/// Sequence numbers of a command that sends Data-In more than once, or both R2T and Data-In.
#[derive(Debug, Clone, Copy, Default)]
struct Numbering {
    itt: u32,
    /// Next DataSN or R2TSN, which share one sequence (RFC 7143 4.2.2.4).
    next: u32,
    /// Data-In PDUs sent, for ExpDataSN (RFC 7143 11.4.8).
    data_in: u32,
    /// The command has both directions, so its status never rides in a Data-In (RFC 7143 11.7.3).
    bidirectional: bool,
}

#[derive(Debug)]
pub(super) struct TargetSide {
    pub(super) current: Option<CurrentCommand>,
    transfers: Vec<Transfer>,
    unsolicited: Vec<Unsolicited>,
    numbering: Vec<Numbering>,
    /// Most entries of `unsolicited` and of `numbering`.
    most: usize,
}

impl TargetSide {
    /// The side as it is until login has ended.
    pub(super) fn new() -> Self {
        Self {
            current: None,
            transfers: Vec::new(),
            unsolicited: Vec::new(),
            numbering: Vec::new(),
            most: EXTRA_UNSOLICITED,
        }
    }

    /// There may be so many tasks.
    pub(super) fn enable(&mut self, tasks: usize) {
        self.most = tasks + EXTRA_UNSOLICITED;
    }

    fn transfer(&mut self, slot: u16) -> Option<&mut Transfer> {
        self.transfers.get_mut(usize::from(slot))
    }

    /// What has come of the block that a transfer is in the middle of.
    pub(super) fn block_begun(&mut self, slot: u16) -> Option<&mut Vec<u8>> {
        self.transfer(slot).map(|transfer| &mut transfer.begun)
    }

    fn expect_unsolicited(&mut self, itt: u32, slot: Option<u16>) {
        if self.unsolicited.len() >= self.most {
            // Data that nobody waits for give way first; a task's own entry never does while there are more of the
            // others than tasks.
            let oldest = self.unsolicited.iter().position(|entry| entry.slot.is_none()).unwrap_or(0);
            self.unsolicited.remove(oldest);
        }
        self.unsolicited.push(Unsolicited { itt, slot });
    }

    /// What still comes unsolicited for this slot is dropped.
    fn drop_unsolicited(&mut self, slot: u16) {
        for entry in &mut self.unsolicited {
            if entry.slot == Some(slot) {
                entry.slot = None;
            }
        }
    }

    fn numbering(&mut self, itt: u32) -> &mut Numbering {
        let at = match self.numbering.iter().position(|entry| entry.itt == itt) {
            Some(at) => at,
            None => {
                if self.numbering.len() >= self.most {
                    self.numbering.remove(0);
                }
                self.numbering.push(Numbering { itt, ..Numbering::default() });
                self.numbering.len() - 1
            }
        };
        #[allow(clippy::indexing_slicing, reason = "the entry was found or made just now")]
        &mut self.numbering[at]
    }

    /// The command is over.
    #[inline]
    pub(super) fn forget_numbering(&mut self, itt: u32) {
        if !self.numbering.is_empty() {
            self.numbering.retain(|entry| entry.itt != itt);
        }
    }
}

impl Transfer {
    fn handle(&self, slot: u16) -> TaskHandle {
        TaskHandle { slot, generation: self.generation }
    }

    /// Bytes of the oldest outstanding burst.
    fn burst_len(&self, limits: &Limits) -> u32 {
        (self.wanted - self.received).min(limits.max_burst)
    }

    /// Checks an unsolicited Data-Out against its sequence (RFC 7143 11.7, 13.14).
    fn check_unsolicited(&self, pdu: &DataOut, len: u32, limits: &Limits) -> Result<(), DataError> {
        let count = u64::from(self.received) + u64::from(len);
        if count > u64::from(self.unsolicited_limit) {
            return Err(self.too_much());
        }
        let end = u64::from(pdu.buffer_offset) + u64::from(len);
        let in_place = if limits.pdu_in_order {
            pdu.buffer_offset == self.received
        } else {
            pdu.buffer_offset >= self.immediate && end <= u64::from(self.unsolicited_limit)
        };
        if pdu.data_sn != self.data_sn || !in_place {
            return Err(DataError::OutOfSequence);
        }
        // RFC 7143 11.4.7.2: an unsolicited burst that ends is as long as it may be.
        if pdu.is_final && count != u64::from(self.unsolicited_limit) {
            return Err(DataError::IncorrectAmountOfData);
        }
        Ok(())
    }

    fn too_much(&self) -> DataError {
        if self.limited_by_first_burst {
            DataError::UnexpectedUnsolicitedData
        } else {
            DataError::IncorrectAmountOfData
        }
    }

    /// Checks a Data-Out against the oldest outstanding R2T (RFC 7143 11.8).
    fn check_solicited(&self, pdu: &DataOut, len: u32, limits: &Limits) -> Result<(), DataError> {
        let burst = self.burst_len(limits);
        let count = u64::from(self.burst_received) + u64::from(len);
        if count > u64::from(burst) {
            return Err(DataError::IncorrectAmountOfData);
        }
        let end = u64::from(pdu.buffer_offset) + u64::from(len);
        let in_place = if limits.pdu_in_order {
            pdu.buffer_offset == self.received + self.burst_received
        } else {
            pdu.buffer_offset >= self.received && end <= u64::from(self.received) + u64::from(burst)
        };
        if pdu.data_sn != self.data_sn || !in_place {
            return Err(DataError::OutOfSequence);
        }
        if pdu.is_final && count != u64::from(burst) {
            return Err(DataError::IncorrectAmountOfData);
        }
        Ok(())
    }
}

impl TcpMover {
    /// A SCSI Command's header came and is about to be notified.
    #[inline(always)]
    pub(super) fn begin_command(&mut self, bhs: &Bhs) {
        let flags = bhs.0[1];
        let write = flags & 0x20 != 0;
        let itt = bhs.itt();
        if !write && bhs.data_segment_len() == 0 {
            self.target.forget_numbering(itt);
            return;
        }
        self.begin_tag(itt);
        self.target.current = Some(CurrentCommand {
            itt,
            expected_length: bhs.u32_at::<20>(),
            immediate: bhs.data_segment_len(),
            is_final: flags & 0x80 != 0,
            write,
            read: flags & 0x40 != 0,
            taken: None,
        });
    }

    /// The tag is used anew: whatever was to come for its last use does not come any more.
    #[inline(always)]
    pub(super) fn begin_tag(&mut self, itt: u32) {
        self.target.forget_numbering(itt);
        if !self.target.unsolicited.is_empty() {
            self.target.unsolicited.retain(|entry| entry.itt != itt);
        }
    }

    /// The session has had its chance to ask for the last command's data.
    pub(super) fn settle_command(&mut self) {
        let Some(command) = self.target.current.take() else { return };
        let taken = command.taken.filter(|slot| {
            self.target.transfer(*slot).is_some_and(|transfer| transfer.active && transfer.itt == command.itt)
        });
        if command.taken.is_none() && command.write && !command.is_final {
            self.target.expect_unsolicited(command.itt, None);
        }
        self.settle_immediate(taken);
    }

    #[inline(always)]
    pub(super) fn get(&mut self, get: GetData) {
        self.release_at_hand();
        let GetData { task, lun, itt, sink } = get;
        let slot = task.slot;
        if self.target.transfers.len() <= usize::from(slot) {
            self.target.transfers.resize_with(usize::from(slot) + 1, Transfer::default);
        }
        if self.target.transfer(slot).is_some_and(|transfer| transfer.active) {
            self.end_failed(slot, DataError::IncorrectAmountOfData);
        }
        let wanted = u32::try_from(sink.len()).unwrap_or(u32::MAX);
        self.give_sink(slot, Some(sink));
        let command = self.target.current.filter(|command| command.itt == itt && command.taken.is_none());
        let (first_burst, initial_r2t, immediate_data) =
            (self.limits.first_burst, self.limits.initial_r2t, self.limits.immediate_data);
        let expected = command.map_or(0, |command| command.expected_length);
        let bidirectional = command.is_some_and(|command| command.read && command.write);
        let immediate = command.map_or(0, |command| command.immediate);
        let Some(transfer) = self.target.transfer(slot) else { return };
        *transfer = Transfer {
            active: true,
            generation: task.generation,
            next_tag: transfer.next_tag,
            tags_used: transfer.tags_used,
            lun,
            itt,
            wanted,
            unsolicited_limit: expected.min(first_burst),
            limited_by_first_burst: first_burst < expected,
            immediate,
            bidirectional,
            ..Transfer::default()
        };
        let too_much = transfer.too_much();
        let limit = transfer.unsolicited_limit;
        if bidirectional {
            self.target.numbering(itt).bidirectional = true;
        }
        let Some(command) = command else {
            // Its unsolicited data are gone, so all of it is asked for.
            self.advance_transfer_later(slot);
            return;
        };
        if let Some(current) = &mut self.target.current {
            current.taken = Some(slot);
        }
        if !command.is_final {
            self.target.expect_unsolicited(itt, Some(slot));
        }
        // RFC 7143 13.10, 13.11, 13.14.
        if (immediate > 0 && !immediate_data) || (!command.is_final && initial_r2t) {
            self.fail_transfer(slot, DataError::UnexpectedUnsolicitedData);
        } else if immediate > limit {
            self.fail_transfer(slot, too_much);
        } else if immediate == 0 && command.is_final {
            self.advance_transfer_later(slot);
        }
    }

    fn advance_transfer_later(&mut self, slot: u16) {
        if let Some(notification) = self.advance_transfer(slot) {
            self.events.push_back(notification);
        }
    }

    /// A burst has ended: the transfer is complete, or the next R2Ts go out.
    fn advance_transfer(&mut self, slot: u16) -> Option<Notification> {
        let transfer = self.target.transfers.get_mut(usize::from(slot))?;
        if transfer.received >= transfer.wanted {
            transfer.active = false;
            transfer.begun = Vec::new();
            let task = transfer.handle(slot);
            let sink = self.take_sink(slot)?;
            return Some(Notification::GetDataComplete { task, sink });
        }
        transfer.next_r2t = transfer.next_r2t.max(transfer.received);
        // RFC 7143 13.17: so many R2Ts outstanding per task; one that is fulfilled makes room for one.
        while transfer.outstanding < self.limits.max_outstanding_r2t && transfer.next_r2t < transfer.wanted {
            let length = (transfer.wanted - transfer.next_r2t).min(self.limits.max_burst);
            let r2t_sn = if transfer.bidirectional {
                let numbering = self.target.numbering.iter_mut().find(|entry| entry.itt == transfer.itt);
                numbering.map_or(0, |numbering| {
                    numbering.next += 1;
                    numbering.next - 1
                })
            } else {
                transfer.r2t_sn += 1;
                transfer.r2t_sn - 1
            };
            let bhs = R2t {
                lun: transfer.lun,
                itt: transfer.itt,
                ttt: u32::from(transfer.next_tag) << 16 | u32::from(slot),
                stat_sn: self.numbers.stat_sn,
                exp_cmd_sn: self.numbers.exp_cmd_sn,
                max_cmd_sn: self.numbers.max_cmd_sn,
                r2t_sn,
                buffer_offset: transfer.next_r2t,
                desired_data_transfer_length: length,
            }
            .emit();
            transfer.next_tag = transfer.next_tag.wrapping_add(1);
            transfer.tags_used = transfer.tags_used.saturating_add(1);
            transfer.outstanding += 1;
            transfer.next_r2t += length;
            if self.state == State::Open {
                self.send.header(&bhs);
            }
        }
        None
    }

    /// The initiator broke a rule of this one transfer. That is told when the last of what is still on its way for it
    /// has come: the F bit of each burst that an R2T asked for, and of the unsolicited one (RFC 7143 7.8, 11.4.2,
    /// 11.17.1).
    #[cold]
    pub(super) fn fail_transfer(&mut self, slot: u16, error: DataError) {
        let owed = self.target.unsolicited.iter().any(|entry| entry.slot == Some(slot));
        let Some(transfer) = self.target.transfer(slot) else { return };
        if !transfer.active {
            return;
        }
        let error = *transfer.failed.get_or_insert(error);
        let owed = owed || transfer.ended < transfer.outstanding;
        self.receive.forget(slot);
        if !owed {
            self.end_failed(slot, error);
        }
    }

    fn end_failed(&mut self, slot: u16, error: DataError) {
        let Some(transfer) = self.target.transfer(slot) else { return };
        transfer.active = false;
        transfer.outstanding = 0;
        let task = transfer.handle(slot);
        self.target.drop_unsolicited(slot);
        self.receive.forget(slot);
        if let Some(sink) = self.take_sink(slot) {
            self.events.push_back(Notification::GetDataFailed { task, sink, error });
        }
    }

    /// A Data-Out whose payload was refused: its burst has ended all the same if it was the last.
    #[cold]
    pub(super) fn refuse_data_out(&mut self, slot: u16, error: DataError) {
        let (is_final, ttt) = (self.payload_header().is_final(), self.payload_header().u32_at::<20>());
        if let Some(transfer) = self.target.transfer(slot) {
            transfer.ended = transfer.ended.saturating_add(u16::from(is_final && ttt != RESERVED_TAG));
        }
        self.fail_transfer(slot, error);
    }

    pub(super) fn fetched_bytes(&self, task: TaskHandle) -> u32 {
        let Some(transfer) = self.target.transfers.get(usize::from(task.slot)) else { return 0 };
        if !transfer.active || transfer.generation != task.generation {
            return 0;
        }
        transfer.received.wrapping_add(transfer.burst_received).wrapping_add(self.receive.under_way(task.slot))
    }

    pub(super) fn deallocate_transfer(&mut self, task: TaskHandle) -> TaskBuffers {
        let Some(transfer) = self.target.transfer(task.slot) else { return TaskBuffers::default() };
        if !transfer.active || transfer.generation != task.generation {
            return TaskBuffers::default();
        }
        transfer.active = false;
        transfer.outstanding = 0;
        self.target.drop_unsolicited(task.slot);
        self.receive.forget(task.slot);
        TaskBuffers { data_in: self.take_sink(task.slot), ..TaskBuffers::default() }
    }

    /// A Data-Out's header came: what its payload is for, and where it goes.
    pub(super) fn data_out_header(&mut self, bhs: &Bhs) -> (Purpose, usize) {
        const UNKNOWN: (Purpose, usize) = (Purpose::Malformed(MalformedPdu::UnknownTask), 0);
        const QUIET: (Purpose, usize) = (Purpose::Dropped, 0);
        let Ok(pdu) = DataOut::parse(bhs) else { return UNKNOWN };
        let len = bhs.data_segment_len();
        let (slot, checked) = if pdu.ttt == RESERVED_TAG {
            let Some(at) = self.target.unsolicited.iter().position(|entry| entry.itt == pdu.itt) else {
                return UNKNOWN;
            };
            let slot = self.target.unsolicited.get(at).and_then(|entry| entry.slot);
            if pdu.is_final {
                self.target.unsolicited.remove(at);
            }
            let Some(slot) = slot else { return QUIET };
            let Some(transfer) = self.target.transfers.get(usize::from(slot)) else { return QUIET };
            let checked = match transfer.failed {
                Some(error) => Err(error),
                None => transfer.check_unsolicited(&pdu, len, &self.limits),
            };
            (slot, checked)
        } else {
            let slot = pdu.ttt as u16;
            let Some(transfer) = self.target.transfers.get(usize::from(slot)) else { return UNKNOWN };
            let age = transfer.next_tag.wrapping_sub((pdu.ttt >> 16) as u16);
            if age == 0 || u32::from(age) > transfer.tags_used {
                return UNKNOWN;
            }
            if !transfer.active || age > transfer.outstanding {
                // Late data of a task that is over (RFC 7143 11.5.1).
                return QUIET;
            }
            if transfer.itt != pdu.itt {
                return UNKNOWN;
            }
            let checked = match transfer.failed {
                Some(error) => Err(error),
                // RFC 7143 4.2.5.3, 11.7.4: the LUN goes with the tag.
                None if transfer.lun != pdu.lun => Err(DataError::IncorrectAmountOfData),
                // RFC 7143 11.8: R2Ts are fulfilled in the order in which they came.
                None if age == transfer.outstanding => transfer.check_solicited(&pdu, len, &self.limits),
                None => Err(DataError::OutOfSequence),
            };
            (slot, checked)
        };
        match checked {
            Ok(()) => {
                if let Some(transfer) = self.target.transfer(slot) {
                    transfer.data_sn = transfer.data_sn.wrapping_add(1);
                }
                (Purpose::DataOut(slot), pdu.buffer_offset as usize)
            }
            Err(error) => {
                let mut purpose = Purpose::Dropped;
                if let Some(transfer) = self.target.transfer(slot) {
                    if pdu.ttt != RESERVED_TAG {
                        transfer.ended = transfer.ended.saturating_add(u16::from(pdu.is_final));
                        if transfer.lun != pdu.lun {
                            purpose = Purpose::Malformed(MalformedPdu::WrongLun);
                        }
                    }
                    // What is dropped is progress all the same.
                    transfer.burst_received = transfer.burst_received.saturating_add(len);
                }
                self.fail_transfer(slot, error);
                (purpose, 0)
            }
        }
    }

    /// Write data are in their place.
    pub(super) fn data_out_done(&mut self, slot: u16) -> Option<Notification> {
        let bhs = *self.payload_header();
        let len = bhs.data_segment_len();
        let transfer = self.target.transfer(slot)?;
        let command = bhs.0[0] & 0x3f == Opcode::ScsiCommand as u8;
        if command || bhs.u32_at::<20>() == RESERVED_TAG {
            transfer.received += len;
        } else {
            transfer.burst_received += len;
        }
        if !bhs.is_final() {
            return None;
        }
        if transfer.burst_received > 0 {
            transfer.received += transfer.burst_received;
            transfer.burst_received = 0;
            transfer.outstanding -= 1;
        }
        transfer.data_sn = 0;
        self.advance_transfer(slot)
    }

    /// The short way of the answer that goes out most: a small piece of lent memory with its status, as one Data-In.
    /// False if it is not that.
    #[inline]
    pub(super) fn put_at_once(&mut self, put: &PutData<'_>) -> bool {
        let (Source::Region { region, offset, len }, Some(status)) = (&put.data, &put.status) else { return false };
        let (offset, len) = (*offset, *len);
        let alone = self.state == State::Open && self.target.numbering.is_empty() && may_ride(status);
        if !alone || len == 0 || len > self.limits.single {
            return false;
        }
        // What `DataIn::emit` makes of it, with the fields that are zero left out: F and S set, first and only DataSN.
        let mut bhs = Bhs::new(Opcode::DataIn);
        bhs.0[1] = 0x81 | status.residual.flags(0x04, 0x02);
        bhs.0[3] = status.status;
        bhs.set_data_segment_len(len as u32);
        bhs.put_u32::<16>(put.itt);
        bhs.put_u32::<20>(RESERVED_TAG);
        bhs.put_u32::<24>(self.numbers.stat_sn.0);
        bhs.put_u32::<28>(self.numbers.exp_cmd_sn.0);
        bhs.put_u32::<32>(self.numbers.max_cmd_sn.0);
        bhs.put_u32::<40>(put.buffer_offset);
        bhs.put_u32::<44>(status.residual.count());
        self.send.pdu(&bhs, len, |to| region.read(offset, to));
        true
    }

    /// The short way of a status alone, as one SCSI Response. False if there is more to say.
    #[inline]
    pub(super) fn respond_at_once(&mut self, put: &PutData<'_>) -> bool {
        let (Source::None, Some(status)) = (&put.data, &put.status) else { return false };
        let alone = self.state == State::Open && self.target.numbering.is_empty();
        if !alone || !status.sense.is_empty() || status.bidirectional_read_residual != Residual::None {
            return false;
        }
        // What `ScsiResponse::emit` makes of it, with the fields that are zero left out: command completed at target,
        // and no Data-In before.
        let mut bhs = Bhs::new(Opcode::ScsiResponse);
        bhs.0[1] = 0x80 | status.residual.flags(0x04, 0x02);
        bhs.0[3] = status.status;
        bhs.put_u32::<16>(put.itt);
        bhs.put_u32::<24>(self.numbers.stat_sn.0);
        bhs.put_u32::<28>(self.numbers.exp_cmd_sn.0);
        bhs.put_u32::<32>(self.numbers.max_cmd_sn.0);
        bhs.put_u32::<44>(status.residual.count());
        self.send.header(&bhs);
        true
    }

    #[inline(never)]
    pub(super) fn put(&mut self, put: PutData<'_>) {
        let PutData { lun: _, itt, buffer_offset, data, status } = put;
        if self.state != State::Open {
            if let Source::Buf(buf) = data
                && self.state != State::Closed
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
                (Source::None, Some(self.send.hold(CommandData::Region(region.slice(offset, len)))))
            }
            Source::Buf(buf) if by_reference => (Source::None, Some(self.send.hold(CommandData::Buf(buf)))),
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
            (Source::Buf(buf), _) => Some(CommandData::Buf(buf)),
            (_, Some(id)) => self.send.drop_reference(id),
            _ => None,
        };
        if let Some(CommandData::Buf(buf)) = returned {
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
