//! The initiator's side: commands with immediate, unsolicited and solicited Data-Out, and Data-In into its sink.

use crate::pdu::offset::{EXPECTED_DATA_TRANSFER_LENGTH, FLAGS};
use alloc::vec::Vec;
use iscsi_memory::Payload;

use super::receive::Purpose;
use super::send::PayloadId;
use super::{MoverState, TcpMover};
use crate::datamover::{MalformedPdu, SendCommand, TaskBuffers, TaskHandle};
use crate::misbehavior::Misbehavior;
use crate::pdu::{Bhs, DataIn, DataOut, R2t, RESERVED_TAG, ResponseCode, ScsiResponse};
use crate::unsolicited::UnsolicitedLengths;

/// One command under way.
#[derive(Debug, Default)]
struct Command {
    active: bool,
    generation: u16,
    /// Its data out, and how many bytes of them the target may have.
    out: Option<PayloadId>,
    out_len: u32,
    /// Where the next R2T begins when sequences come in order.
    next_r2t: u32,
    /// Bytes not yet queued: what R2Ts may still ask for.
    unsent: u32,
    /// Bytes that the send queue has sent, in all its life, when the last of this command's are gone.
    gone_at: u64,
    /// Next DataSN or R2TSN.
    input_sn: u32,
    /// R2Ts among them.
    r2t_sn: u32,
    bidirectional: bool,
    /// Bytes that came as Data-In.
    in_len: u32,
    /// Where the next Data-In begins when PDUs come in order.
    next_in: u32,
}

#[derive(Debug)]
pub(super) struct InitiatorSide {
    commands: Vec<Command>,
}

impl InitiatorSide {
    pub(super) fn new(tasks: usize) -> Self {
        let mut commands = Vec::new();
        commands.resize_with(tasks, Command::default);
        Self { commands }
    }

    /// The command that a peer's PDU names.
    #[inline]
    fn named(&mut self, itt: u32) -> Option<(u16, &mut Command)> {
        let task = TaskHandle::from_itt(itt);
        let command = self.commands.get_mut(usize::from(task.slot))?;
        (command.active && command.generation == task.generation).then_some((task.slot, command))
    }
}

/// Data-Out PDUs to be sent as one sequence.
struct Sequence {
    lun: u64,
    itt: u32,
    ttt: u32,
    start: u32,
    end: u32,
    held: PayloadId,
}

impl TcpMover {
    pub(super) fn command(&mut self, command: SendCommand<'_>) {
        let SendCommand { task, mut bhs, ahs, data_out, data_in } = command;
        let slot = usize::from(task.slot);
        if self.initiator.commands.len() <= slot {
            self.initiator.commands.resize_with(slot + 1, Command::default);
        }
        let out_len = data_out.as_ref().map_or(0, Payload::len);
        // What the command announces is all that the target may have (RFC 7143 11.3.4).
        let out_len = u32::try_from(out_len).unwrap_or(u32::MAX).min(bhs.u32_at::<EXPECTED_DATA_TRANSFER_LENGTH>());
        let held = data_out.map(|data| self.send.hold(data));
        self.give_sink(task.slot, data_in);

        let limits = &self.limits;
        let UnsolicitedLengths { immediate, total: unsolicited } =
            limits.unsolicited.lengths(out_len, limits.send_segment);
        if let Some(place) = self.initiator.commands.get_mut(slot) {
            *place = Command {
                active: true,
                generation: task.generation,
                out: held,
                out_len,
                next_r2t: unsolicited,
                unsent: out_len - unsolicited,
                bidirectional: bhs.0[FLAGS] & 0x60 == 0x60,
                ..Command::default()
            };
        }
        if self.state != MoverState::Open {
            return;
        }
        // RFC 7143 11.3.1: without the F bit, unsolicited Data-Out follow.
        bhs.0[FLAGS] = bhs.0[FLAGS] & 0x7f | if unsolicited > immediate { 0 } else { 0x80 };
        bhs.set_data_segment_len(immediate);
        if ahs.is_empty() {
            self.send.header(&bhs);
        } else {
            bhs.set_ahs_len(ahs.len());
            self.send.header_with_ahs(&bhs, ahs);
        }
        if let Some(held) = held {
            if immediate > 0 {
                self.send.held_segment(held, 0, immediate as usize, self.config.copy_limit);
            }
            if unsolicited > immediate {
                let itt = bhs.itt();
                self.data_out(Sequence { lun: 0, itt, ttt: RESERVED_TAG, start: immediate, end: unsolicited, held });
            }
            self.note_queued(slot);
        }
    }

    /// Data of a command have been queued.
    #[inline]
    fn note_queued(&mut self, slot: usize) {
        let gone_at = self.send.sent_bytes() + self.send.backlog() as u64;
        if let Some(command) = self.initiator.commands.get_mut(slot) {
            command.gone_at = gone_at;
        }
    }

    /// Queues one sequence of Data-Out PDUs.
    fn data_out(&mut self, sequence: Sequence) {
        let Sequence { lun, itt, ttt, start, end, held } = sequence;
        let large = (end - start) as usize > self.config.copy_limit;
        let copy_limit = if large { self.config.copy_limit / 4 } else { self.config.copy_limit };
        let (mut at, mut data_sn) = (start, 0);
        while at < end {
            let n = (end - at).min(self.limits.send_segment);
            let mut bhs = DataOut {
                is_final: at + n == end,
                lun,
                itt,
                ttt,
                exp_stat_sn: self.numbers.exp_stat_sn,
                data_sn,
                buffer_offset: at,
            }
            .emit();
            bhs.set_data_segment_len(n);
            self.send.header(&bhs);
            self.send.held_segment(held, at as usize, (at + n) as usize, copy_limit);
            at += n;
            data_sn += 1;
        }
    }

    /// An R2T came: its burst is queued.
    pub(super) fn ready_to_transfer(&mut self, bhs: &Bhs) -> Result<(), MalformedPdu> {
        let r2t = R2t::parse(bhs)?;
        let (max_burst, in_order) = (self.limits.max_burst, self.limits.sequence_in_order);
        let (slot, command) = self.initiator.named(r2t.itt).ok_or(MalformedPdu::UnknownTask)?;
        let Some(held) = command.out else {
            return Err(MalformedPdu::Protocol(Misbehavior::R2tWithoutDataOut));
        };
        let length = r2t.desired_data_transfer_length;
        let end = u64::from(r2t.buffer_offset) + u64::from(length);
        if length > max_burst {
            return Err(MalformedPdu::Protocol(Misbehavior::R2tAboveMaxBurstLength {
                desired: length,
                max_burst_length: max_burst,
            }));
        }
        // The sum is bounded too, so that a peer cannot have the same bytes queued again and again.
        if end > u64::from(command.out_len) || length > command.unsent {
            return Err(MalformedPdu::Protocol(Misbehavior::R2tBeyondData {
                buffer_offset: r2t.buffer_offset,
                desired: length,
            }));
        }
        if in_order && r2t.buffer_offset != command.next_r2t {
            return Err(MalformedPdu::Protocol(Misbehavior::R2tOutOfOrder {
                buffer_offset: r2t.buffer_offset,
                expected: command.next_r2t,
            }));
        }
        // RFC 7143 4.2.2.4 counts R2Ts of a bidirectional command together with its Data-In; its own example A.3.3
        // counts them apart. Both are taken.
        if r2t.r2t_sn != command.input_sn && !(command.bidirectional && r2t.r2t_sn == command.r2t_sn) {
            return Err(MalformedPdu::Protocol(Misbehavior::R2tSn { got: r2t.r2t_sn, expected: command.input_sn }));
        }
        command.input_sn = command.input_sn.wrapping_add(1);
        command.r2t_sn = command.r2t_sn.wrapping_add(1);
        command.unsent -= length;
        command.next_r2t = end as u32;
        self.data_out(Sequence {
            lun: r2t.lun,
            itt: r2t.itt,
            ttt: r2t.ttt,
            start: r2t.buffer_offset,
            end: end as u32,
            held,
        });
        self.note_queued(slot.into());
        Ok(())
    }

    /// A Data-In's header came: what its payload is for, and where it goes.
    #[inline]
    pub(super) fn data_in_header(&mut self, bhs: &Bhs) -> (Purpose, usize) {
        match self.check_data_in(bhs) {
            Ok(checked) => checked,
            Err(error) => (Purpose::Malformed(error), 0),
        }
    }

    fn check_data_in(&mut self, bhs: &Bhs) -> Result<(Purpose, usize), MalformedPdu> {
        let pdu = DataIn::parse(bhs)?;
        let in_order = self.limits.pdu_in_order && self.limits.sequence_in_order;
        let (slot, command) = self.initiator.named(pdu.itt).ok_or(MalformedPdu::UnknownTask)?;
        let room = self.sinks.get(usize::from(slot)).and_then(Option::as_ref).map_or(0, Payload::len);
        let end = u64::from(pdu.buffer_offset) + u64::from(bhs.data_segment_len());
        if end > room as u64 {
            return Err(MalformedPdu::Protocol(Misbehavior::DataInBeyondBuffer {
                buffer_offset: pdu.buffer_offset,
                len: bhs.data_segment_len(),
            }));
        }
        let own = command.input_sn.wrapping_sub(command.r2t_sn);
        if pdu.data_sn != command.input_sn && !(command.bidirectional && pdu.data_sn == own) {
            return Err(MalformedPdu::Protocol(Misbehavior::DataInSn { got: pdu.data_sn, expected: command.input_sn }));
        }
        if in_order && pdu.buffer_offset < command.next_in {
            return Err(MalformedPdu::Protocol(Misbehavior::DataInOverlap {
                buffer_offset: pdu.buffer_offset,
                expected: command.next_in,
            }));
        }
        command.input_sn = command.input_sn.wrapping_add(1);
        command.next_in = end as u32;
        Ok((Purpose::DataIn(slot), pdu.buffer_offset as usize))
    }

    /// Whether a SCSI Response counts more Data-In and R2T PDUs than came: some were lost (RFC 7143 11.4.8, 7.9). Fewer
    /// are let pass: targets leave the field zero.
    #[inline]
    pub(super) fn misses_data(&mut self, bhs: &Bhs) -> bool {
        // ExpDataSN, as it stands in the header: the session parses the rest of it. Most responses come without data.
        let exp_data_sn = bhs.u32_at::<36>();
        if exp_data_sn == 0 {
            return false;
        }
        let Some((_, command)) = self.initiator.named(bhs.itt()) else { return false };
        let ahead = exp_data_sn.wrapping_sub(command.input_sn);
        ahead != 0
            && ahead < 1 << 31
            && ScsiResponse::parse(bhs).is_ok_and(|response| response.response == ResponseCode::Completed)
    }

    /// Read data are in their place.
    #[inline]
    pub(super) fn data_in_done(&mut self, slot: u16, bhs: &Bhs) {
        if let Some(command) = self.initiator.commands.get_mut(usize::from(slot)) {
            command.in_len = command.in_len.saturating_add(bhs.data_segment_len());
        }
    }

    pub(super) fn moved_bytes(&self, task: TaskHandle) -> u64 {
        let is_it = |command: &&Command| command.active && command.generation == task.generation;
        let Some(command) = self.initiator.commands.get(usize::from(task.slot)).filter(is_it) else { return 0 };
        // As below: too few rather than too many.
        let queued = command.gone_at.saturating_sub(self.send.sent_bytes());
        u64::from(command.in_len) + u64::from(command.out_len - command.unsent).saturating_sub(queued)
    }

    pub(super) fn deallocate_command(&mut self, task: TaskHandle) -> TaskBuffers {
        let sent = self.send.sent_bytes();
        let Some((slot, command)) = self.initiator.named(task.to_itt()) else { return TaskBuffers::default() };
        command.active = false;
        let (out, data_in_len) = (command.out.take(), command.in_len);
        // What lies in the queue may be another command's in part: the count is then too low, never too high.
        let queued = u32::try_from(command.gone_at.saturating_sub(sent)).unwrap_or(u32::MAX);
        let data_out_len = (command.out_len - command.unsent).saturating_sub(queued);
        self.receive.forget(slot);
        TaskBuffers {
            data_out: out.and_then(|held| self.send.drop_reference(held)),
            data_in: self.take_sink(slot),
            data_in_len,
            data_out_len,
        }
    }
}
