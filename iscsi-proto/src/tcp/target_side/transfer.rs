//! Write data of one command: the unsolicited burst, R2Ts and the bursts that they ask for.

use crate::pdu::offset::TTT;
use alloc::vec::Vec;

use super::Transfer;
use crate::datamover::{DataError, GetData, MalformedPdu, Notification, TaskBuffers, TaskHandle};
use crate::pdu::{Bhs, DataOut, Opcode, R2t, RESERVED_TAG};
use crate::tcp::receive::Purpose;
use crate::tcp::{MoverState, NegotiatedLimits, TcpMover};
use crate::unsolicited::DataOutSequence;

impl Transfer {
    fn handle(&self, slot: u16) -> TaskHandle {
        TaskHandle { slot, generation: self.generation }
    }

    /// Bytes of the oldest outstanding burst.
    fn burst_len(&self, limits: &NegotiatedLimits) -> u32 {
        (self.wanted - self.received).min(limits.max_burst)
    }

    /// Checks an unsolicited Data-Out against its sequence.
    fn check_unsolicited(&self, pdu: &DataOut, len: u32, limits: &NegotiatedLimits) -> Result<(), DataError> {
        self.unsolicited.check(pdu, len, self.received, self.data_sn, limits.pdu_in_order)
    }

    /// Checks a Data-Out against the oldest outstanding R2T (RFC 7143 11.8).
    fn check_solicited(&self, pdu: &DataOut, len: u32, limits: &NegotiatedLimits) -> Result<(), DataError> {
        let sequence = DataOutSequence {
            start: self.received,
            end: self.received + self.burst_len(limits),
            received: self.received.saturating_add(self.burst_received),
            data_sn: self.data_sn,
        };
        sequence.check(pdu, len, limits.pdu_in_order)
    }
}

impl TcpMover {
    #[inline(always)]
    pub(in crate::tcp) fn get(&mut self, get: GetData) {
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
        let rules = self.limits.unsolicited;
        let expected = command.map_or(0, |command| command.expected_length);
        let bidirectional = command.is_some_and(|command| command.read && command.write);
        let immediate = command.map_or(0, |command| command.immediate);
        let unsolicited = rules.burst(expected, immediate);
        let Some(transfer) = self.target.transfer(slot) else { return };
        *transfer = Transfer {
            active: true,
            generation: task.generation,
            next_tag: transfer.next_tag,
            tags_used: transfer.tags_used,
            lun,
            itt,
            wanted,
            unsolicited,
            bidirectional,
            ..Transfer::default()
        };
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
        if let Err(error) = rules.check_command(&unsolicited, command.is_final) {
            self.fail_transfer(slot, error);
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
            if self.state == MoverState::Open {
                self.send.header(&bhs);
            }
        }
        None
    }

    /// The initiator broke a rule of this one transfer. That is told when the last of what is still on its way for it
    /// has come: the F bit of each burst that an R2T asked for, and of the unsolicited one (RFC 7143 7.8, 11.4.2,
    /// 11.17.1).
    #[cold]
    pub(in crate::tcp) fn fail_transfer(&mut self, slot: u16, error: DataError) {
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
    pub(in crate::tcp) fn refuse_data_out(&mut self, slot: u16, error: DataError) {
        let (is_final, ttt) = (self.payload_header().is_final(), self.payload_header().u32_at::<TTT>());
        if let Some(transfer) = self.target.transfer(slot) {
            transfer.ended = transfer.ended.saturating_add(u16::from(is_final && ttt != RESERVED_TAG));
        }
        self.fail_transfer(slot, error);
    }

    pub(in crate::tcp) fn fetched_bytes(&self, task: TaskHandle) -> u32 {
        let Some(transfer) = self.target.transfers.get(usize::from(task.slot)) else { return 0 };
        if !transfer.active || transfer.generation != task.generation {
            return 0;
        }
        transfer.received.wrapping_add(transfer.burst_received).wrapping_add(self.receive.under_way(task.slot))
    }

    pub(in crate::tcp) fn deallocate_transfer(&mut self, task: TaskHandle) -> TaskBuffers {
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
    pub(in crate::tcp) fn data_out_header(&mut self, bhs: &Bhs) -> (Purpose, usize) {
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
    pub(in crate::tcp) fn data_out_done(&mut self, slot: u16) -> Option<Notification> {
        let bhs = *self.payload_header();
        let len = bhs.data_segment_len();
        let transfer = self.target.transfer(slot)?;
        let command = bhs.0[0] & 0x3f == Opcode::ScsiCommand as u8;
        if command || bhs.u32_at::<TTT>() == RESERVED_TAG {
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
}
