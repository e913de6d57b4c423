//! The task table: who is in it, who waits for whom (SAM-5 8.6), and how a task leaves it.

use alloc::boxed::Box;
use alloc::sync::Arc;

use iscsi_memory::{Buf, Payload};
use iscsi_proto::pdu::TaskAttribute;
use scsi_proto::{Sense, SenseFormat, Status};

use super::NewTask;
use super::begin::keep;
use super::executor::{Data, Reply, TaskExecutor, Work};
use super::slot::{Answer, NOWHERE, State, Transfer};

impl TaskExecutor {
    /// Whether older tasks, or HEAD OF QUEUE ones, keep a task from running.
    pub(super) fn must_wait(&self, index: usize) -> bool {
        let Some(own) = self.slots.get(index) else { return false };
        if self.luns.get(own.lun).is_none_or(|lun| lun.barriers == 0) {
            return false;
        }
        let waits_for = |lun: u16, sequence: u64, attribute: TaskAttribute| {
            let older = sequence < own.sequence;
            lun == own.lun
                && match own.attribute {
                    TaskAttribute::HeadOfQueue => false,
                    TaskAttribute::Ordered => older || attribute == TaskAttribute::HeadOfQueue,
                    _ => (older && attribute == TaskAttribute::Ordered) || attribute == TaskAttribute::HeadOfQueue,
                }
        };
        // A read that was answered with the store's memory is not over before that is sent.
        let unsent = match own.attribute {
            TaskAttribute::HeadOfQueue => false,
            TaskAttribute::Ordered if own.after > self.sent => true,
            _ => self.sending.iter().any(|sending| sending.lun == own.lun),
        };
        // Nor is an aborted task while its operation is at the store.
        unsent
            || self.orphans.iter().any(|orphan| waits_for(orphan.lun, orphan.sequence, orphan.attribute))
            || self.slots.iter().enumerate().any(|(other_index, other)| {
                other_index != index && !other.is_free() && waits_for(other.lun, other.sequence, other.attribute)
            })
    }

    /// Puts the task into the table, or gives it another state there.
    pub(super) fn enter(&mut self, work: Work, state: State) {
        let slot = &mut self.slots[work.slot];
        let waits = |state: &State| matches!(state, State::Blocked(_) | State::Held(_));
        let Some(lun) = self.luns.get_mut(work.lun) else { return };
        if slot.is_free() {
            self.sequence += 1;
            slot.sequence = self.sequence;
            slot.flushes_heard = lun.flushes.count();
            lun.active += 1;
            lun.barriers += u32::from(slot.is_barrier());
        }
        lun.waiting += u32::from(waits(&state));
        lun.waiting -= u32::from(waits(&slot.state));
        self.gated += usize::from(matches!(state, State::Gated(_)));
        self.gated -= usize::from(matches!(slot.state, State::Gated(_)));
        self.short += usize::from(matches!(state, State::Short(_)));
        self.short -= usize::from(matches!(slot.state, State::Short(_)));
        slot.state = state;
    }

    /// Takes the task out of the table, if it ever was in it, with all it holds.
    #[inline]
    pub(super) fn leave(&mut self, index: usize) {
        if !self.slots[index].is_free() {
            self.leave_table(index);
        }
    }

    pub(super) fn leave_table(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let state = core::mem::replace(&mut slot.state, State::Free);
        slot.token = 0;
        slot.wanted_out = 0;
        slot.sent = 0;
        slot.after = 0;
        if self.in_line == Some(index) {
            self.in_line = None;
            self.buffers.wait_no_more();
        }
        let place = slot.place.take();
        if let Some(lun) = self.luns.get_mut(slot.lun) {
            if let Some(place) = place {
                lun.unit.gate().leave(place);
            }
            lun.active -= 1;
            lun.barriers -= u32::from(slot.is_barrier());
            lun.waiting -= u32::from(matches!(state, State::Blocked(_) | State::Held(_)));
            self.unblock |= lun.waiting != 0;
        }
        self.gated -= usize::from(matches!(state, State::Gated(_)));
        self.short -= usize::from(matches!(state, State::Short(_)));
        if let State::Held(mut job) | State::Gated(mut job) | State::Short(mut job) | State::Running(mut job) = state {
            for buf in job.take_buffers() {
                self.buffers.give(buf);
            }
        }
    }

    pub(super) fn check_condition(&mut self, work: Work, sense: &Sense) -> Reply {
        let format = self.luns.get(work.lun).map_or(SenseFormat::Fixed, |lun| lun.unit.sense_format());
        self.sense = sense.to_bytes(format);
        let (sent, wanted_out) = (self.slots[work.slot].sent, self.slots[work.slot].wanted_out);
        self.leave(work.slot);
        Reply::Respond {
            data: Data::None,
            offset: sent,
            status: Status::CheckCondition,
            residuals: work.transfer.residuals(sent.into(), wanted_out),
        }
    }

    pub(super) fn good(&mut self, work: Work) -> Reply {
        let wanted_out = self.slots[work.slot].wanted_out;
        self.leave(work.slot);
        Reply::Respond {
            data: Data::None,
            offset: 0,
            status: Status::Good,
            residuals: work.transfer.residuals(0, wanted_out),
        }
    }

    /// An answer waits for the last of the data that come unasked (RFC 7143 11.4.2): they are taken, and dropped.
    #[cold]
    pub(super) fn after_unsolicited(&mut self, new: &NewTask<'_>, reply: Reply) -> Reply {
        let (status, residuals) = match &reply {
            Reply::Respond { data: Data::None | Data::Parameters(0), status, residuals, .. } => (*status, *residuals),
            _ => return reply,
        };
        // A command to no logical unit may be the first in its place.
        let (sense, told) = (self.sense, self.attention.take());
        if self.slot_of(new.task).is_none_or(|slot| !slot.is_free()) {
            return reply;
        }
        let told = told.and_then(|(position, attention)| {
            let lun = self.luns.get_mut(position)?;
            // A command that is done before the answer goes tells of it, too.
            lun.attentions.put_back(attention, lun.unit.attentions());
            Some((position, lun.unit.clone(), attention))
        });
        let Some(slot) = self.slot_of(new.task) else { return reply };
        // It is over: it holds nothing of its LUN, and nobody waits for it.
        slot.generation = new.task.generation;
        slot.lun = NOWHERE;
        slot.state = State::Over(Box::new(Answer { status, residuals, sense, attention: told }));
        Reply::GetData(Payload::Buf(Buf::zeroed(0)))
    }

    /// The answer of a task that is over. It leaves the table.
    pub(super) fn answer_of(&mut self, work: Work) -> Option<Reply> {
        let State::Over(answer) = &self.slots[work.slot].state else { return None };
        let (status, residuals) = (answer.status, answer.residuals);
        self.sense = answer.sense;
        if let Some((position, unit, attention)) = &answer.attention
            && let Some(lun) = self.luns.get_mut(*position).filter(|lun| Arc::ptr_eq(&lun.unit, unit))
        {
            lun.attentions.told(*attention, unit.attentions());
        }
        self.leave(work.slot);
        Some(Reply::Respond { data: Data::None, offset: 0, status, residuals })
    }

    /// No room for `len` bytes of the task's data now. One task of each session that has no more than its own waits for
    /// its turn among all sessions; the initiator is told to come again with the others (SAM-5 5.3.1), and where data
    /// that came with a task could not be asked for once more, or [did not come in time](Self::set_late) before.
    pub(super) fn full(&mut self, work: Work, cdb: &[u8], len: usize) -> Reply {
        let others = self.slots.iter().enumerate().any(|(index, slot)| index != work.slot && !slot.is_free());
        let waits = self.in_line == Some(work.slot);
        let may_wait = work.may_wait && !self.is_late && self.orphans.is_empty() && self.buffers.has_only_its_own();
        if (waits || self.in_line.is_none() && may_wait)
            && let Some(waiting) = keep(cdb)
        {
            self.enter(work, State::Blocked(waiting));
            self.in_line = Some(work.slot);
            self.buffers.wait_for_room(len, &self.waker);
            // It may have become free in between.
            self.unblock = true;
            return Reply::Pending;
        }
        self.leave(work.slot);
        self.was_refused |= len != 0;
        let status = if others { Status::TaskSetFull } else { Status::Busy };
        Reply::Respond { data: Data::None, offset: 0, status, residuals: work.transfer.residuals(0, 0) }
    }

    /// GOOD with the parameter data in `out`.
    pub(super) fn parameters(&self, transfer: Transfer) -> Reply {
        let len = self.out.len().min(transfer.expected_in() as usize);
        Reply::Respond {
            data: Data::Parameters(len),
            offset: 0,
            status: Status::Good,
            residuals: transfer.residuals(self.out.len() as u64, 0),
        }
    }

    /// Whether a task may use the store and this much of buffers. Operations that aborted tasks left behind are not to
    /// pile up on a store that hangs.
    pub(super) fn has_room(&mut self, work: Work, len: usize) -> bool {
        let has_room = !self.has_too_many_orphans() && self.may_take(len);
        if has_room && self.in_line == Some(work.slot) {
            // The next of the session's may wait.
            self.in_line = None;
            self.buffers.wait_no_more();
        }
        has_room
    }

    pub(super) fn has_too_many_orphans(&self) -> bool {
        self.orphans.len() >= self.most_slots
    }
}
