//! What comes from the target: statuses, and everything it says unasked.

use core::time::Duration;

use iscsi_proto::datamover::{Datamover, MalformedPdu, Notification, TaskBuffers};
use iscsi_proto::pdu::{
    AsyncEvent, AsyncMessage, Bhs, DataIn, NopIn, NopOut, Opcode, PduError, RESERVED_TAG, Reject, RejectReason,
    Residual, ResponseCode, ScsiCommand, ScsiResponse,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;
use scsi_proto::{AdditionalSense, Lun, Sense, SenseKey, Status};

use super::slots::{After, Errand, Moved};
use super::timers::OF_LATE;
use super::{Engine, Flow};
use crate::application::{Application, Event};
use crate::command::{Failure, Outcome};
use crate::connection::ConnectionEnd;

/// Delay before the first repetition of a command that the target could not take; it doubles with each.
const FIRST_BACK_OFF: Duration = Duration::from_millis(5);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(1);

/// How far ahead of ExpStatSN a status may be while those before it are waited for.
const MOST_AHEAD: i32 = 64;

impl<A: Application> Engine<A> {
    pub(crate) fn handle<M: Datamover>(&mut self, mover: &mut M, notification: Notification, now: Instant) {
        match notification {
            Notification::Control(bhs) => {
                if let Err(error) = self.control(mover, &bhs, now) {
                    self.fail(ConnectionEnd::Malformed(error));
                }
                self.watch_gap(now);
            }
            // What still comes for a task that was given up here has no place any more, but its StatSN counts.
            Notification::Malformed { bhs, error: MalformedPdu::UnknownTask } => {
                if let Ok(DataIn { status: Some(status), .. }) = DataIn::parse(&bhs) {
                    self.take_status(mover, status.stat_sn);
                    self.watch_gap(now);
                }
            }
            Notification::Malformed { error, .. } => self.fail(ConnectionEnd::BadPdu(error)),
            // Who hangs up on a logout has understood it.
            Notification::Terminated(_) if matches!(self.flow, Flow::LoggingOut { asked_by_target: false, .. }) => {
                self.fail(ConnectionEnd::LogoutTimeout);
            }
            Notification::Terminated(error) => self.fail(ConnectionEnd::Lost(error)),
            Notification::Released(buf) => self.released(buf, now),
            // Those belong to a target.
            Notification::GetDataComplete { .. } | Notification::GetDataFailed { .. } => {}
        }
    }

    fn control<M: Datamover>(&mut self, mover: &mut M, bhs: &Bhs, now: Instant) -> Result<(), PduError> {
        match bhs.opcode()? {
            Opcode::DataIn => {
                let pdu = DataIn::parse(bhs)?;
                self.window(pdu.exp_cmd_sn, pdu.max_cmd_sn);
                if let Some(status) = pdu.status
                    && self.takes_answer(mover, pdu.itt, status.stat_sn)
                {
                    let outcome = Outcome { status: status.status, sense: None, residual: status.residual };
                    self.answered(mover, pdu.itt, Ok(outcome), now);
                }
            }
            Opcode::ScsiResponse => {
                let pdu = ScsiResponse::parse(bhs)?;
                let sense = parse_sense(mover.control_data());
                self.window(pdu.exp_cmd_sn, pdu.max_cmd_sn);
                if self.takes_answer(mover, pdu.itt, pdu.stat_sn) {
                    let result = match pdu.response {
                        ResponseCode::Completed => Ok(Outcome { status: pdu.status, sense, residual: pdu.residual }),
                        ResponseCode::TargetFailure => Err(Failure::TargetFailure(1)),
                        ResponseCode::Vendor(code) => Err(Failure::TargetFailure(code)),
                    };
                    self.answered(mover, pdu.itt, result, now);
                }
            }
            Opcode::NopIn => {
                let pdu = NopIn::parse(bhs)?;
                self.window(pdu.exp_cmd_sn, pdu.max_cmd_sn);
                // RFC 7143 11.19.2: only the answer to a NOP-Out takes a StatSN.
                if pdu.itt != RESERVED_TAG && self.takes_answer(mover, pdu.itt, pdu.stat_sn) {
                    self.pong(pdu.itt);
                }
                if pdu.ttt != RESERVED_TAG {
                    // RFC 7143 11.18: an answer to a NOP-In that asks for one carries its TTT and LUN, and no ITT. RFC
                    // 7145 8.1.1.2: it is expected.
                    self.send_nop(mover, (true, self.cmd_sn), pdu.lun, RESERVED_TAG, pdu.ttt);
                }
            }
            Opcode::TaskManagementResponse | Opcode::TextResponse | Opcode::LogoutResponse => {
                self.control_answered(mover, bhs, now)?;
            }
            Opcode::AsyncMessage => {
                let pdu = AsyncMessage::parse(bhs)?;
                self.window(pdu.exp_cmd_sn, pdu.max_cmd_sn);
                if self.take_status(mover, pdu.stat_sn) {
                    self.asynchronous(mover, &pdu, now);
                }
            }
            Opcode::Reject => {
                let pdu = Reject::parse(bhs)?;
                self.window(pdu.exp_cmd_sn, pdu.max_cmd_sn);
                if self.take_status(mover, pdu.stat_sn) {
                    self.rejected(mover, pdu.reason, now);
                }
            }
            // R2T is the mover's; anything else does not come from a target in the Full Feature Phase.
            other => return Err(PduError::UnknownOpcode(other as u8)),
        }
        Ok(())
    }

    /// RFC 7143 4.2.2.1: ExpCmdSN and MaxCmdSN only grow, and a MaxCmdSN behind ExpCmdSN - 1 makes both be ignored.
    pub(super) fn window(&mut self, exp: Serial, max: Serial) {
        if exp.distance(max) < -1 {
            return;
        }
        if self.exp_cmd_sn < exp {
            self.exp_cmd_sn = exp;
            self.unexpected.acknowledged(exp);
        }
        if self.max_cmd_sn < max {
            self.max_cmd_sn = max;
        }
    }

    /// Whether an answer with this tag and StatSN is new. One whose StatSN says that it came before, though what it
    /// answers is open, leaves no way on: another with its number has been taken.
    #[inline]
    pub(super) fn takes_answer<M: Datamover>(&mut self, mover: &mut M, itt: u32, stat_sn: Serial) -> bool {
        let is_new = self.take_status(mover, stat_sn);
        if !is_new {
            self.answered_before(itt, stat_sn);
        }
        is_new
    }

    #[cold]
    fn answered_before(&mut self, itt: u32, stat_sn: Serial) {
        if self.slots.by_tag(itt).is_some() || self.controls.is_open(itt) {
            self.wrong_stat_sn(stat_sn);
        }
    }

    /// Whether a PDU with this StatSN is new. One that is ahead by a little counts, and those before it may still come:
    /// targets swap neighbours where several threads answer. A gap that stays has no way on at ErrorRecoveryLevel 0
    /// (RFC 7143 7.1.1): the connection ends.
    pub(super) fn take_status<M: Datamover>(&mut self, mover: &mut M, stat_sn: Serial) -> bool {
        // The last login response has a StatSN of its own (RFC 7143 11.13.4). A target that does not count it begins
        // with the same one again. Nothing with this number can have come in the Full Feature Phase before.
        let is_first = !core::mem::replace(&mut self.has_status, true);
        if is_first && stat_sn.next() == self.exp_stat_sn {
            self.exp_stat_sn = stat_sn;
        }
        if stat_sn == self.exp_stat_sn {
            let more = self.ahead.trailing_ones();
            self.ahead = self.ahead.checked_shr(more + 1).unwrap_or(0);
            self.exp_stat_sn = stat_sn.advance(more + 1);
            self.publish(mover);
            return true;
        }
        let distance = self.exp_stat_sn.distance(stat_sn);
        if distance < 0 {
            return false;
        }
        if distance > MOST_AHEAD {
            self.wrong_stat_sn(stat_sn);
            return false;
        }
        let bit = 1 << (distance - 1);
        let is_new = self.ahead & bit == 0;
        self.ahead |= bit;
        is_new
    }

    pub(super) fn wrong_stat_sn(&mut self, got: Serial) {
        self.fail(ConnectionEnd::StatSn { got: got.0, expected: self.exp_stat_sn.0 });
    }

    /// The gap before statuses that have come is to be filled in the time that a NOP-In has.
    fn watch_gap(&mut self, now: Instant) {
        self.gap_until = match self.ahead {
            0 => None,
            _ => self.gap_until.or(Some(now + self.timeouts.keepalive)),
        };
    }

    pub(super) fn check_gap(&mut self, now: Instant) {
        if self.gap_until.is_some_and(|at| at <= now) {
            self.wrong_stat_sn(self.exp_stat_sn.advance(self.ahead.trailing_zeros() + 1));
        }
    }

    fn answered<M: Datamover>(&mut self, mover: &mut M, itt: u32, result: Result<Outcome, Failure>, now: Instant) {
        // A status for a task that is no more (aborted, or answered twice) has done its work with its StatSN.
        let Some(index) = self.slots.by_tag(itt) else { return };
        let TaskBuffers { data_out, data_in, data_in_len, data_out_len } =
            mover.deallocate_task_resources(self.slots.handle(index));
        let mut moved = Moved { data_in: data_in_len, data_out: data_out_len };
        let Some(task) = self.slots.get_mut(index) else { return };
        let expected_out = task.expected_out;
        if moved != Moved::NOTHING {
            self.served.note(task.cmd_sn, now, OF_LATE);
        }
        if let Ok(Outcome { residual: Residual::Underflow(missing), .. }) = result
            && expected_out > 0
        {
            moved.data_out = moved.data_out.min(expected_out.saturating_sub(missing));
        }
        // The target wanted more than the blocks have by our count (RFC 7143 11.4.5.1): what it has made of them nobody
        // knows.
        if let Ok(Outcome { residual: Residual::Overflow(_), .. }) = result {
            moved.data_out = 0;
        }
        // As nearly all commands end: their buffers need not go by the table.
        if matches!(result, Ok(outcome) if outcome.status == Status::Good.to_byte())
            && task.errand.is_none()
            && (expected_out == 0 || data_out.is_some())
        {
            // The second handle of lent memory, which was for sending it again.
            if task.command.data_out.is_some() {
                task.command.data_out = None;
            }
            self.last_moved = now;
            return self.end(index, result, (data_out, data_in), moved, now);
        }
        task.take_back(data_out, data_in);
        match result {
            Ok(outcome) if outcome.status != Status::Good.to_byte() && self.retried(index, &outcome, now) => {}
            _ => self.settle(index, After::Finish(result, moved), now),
        }
    }

    /// Whether a command is sent again because of its status.
    fn retried(&mut self, index: u16, outcome: &Outcome, now: Instant) -> bool {
        let Some(task) = self.slots.get_mut(index) else { return false };
        let lun = task.command.lun;
        let repeatable = task.command.repeat.allows(&task.command.cdb);
        let attempts = task.attempts;
        let willing = task.command.retry && !task.abandoned && attempts <= self.limits.retries;
        enum Again {
            AtOnce,
            Later,
            Started,
            Not,
        }
        // A write that was acknowledged before has failed since (SPC-4 4.5.5).
        if outcome.sense.is_some_and(|sense| sense.deferred && sense.key != SenseKey::RecoveredError) {
            for number in self.guards.writes_failed(lun, self.issued) {
                self.app.event(Event::LostWrites { guard: number, lun });
            }
        }
        let again = match Status::from_byte(outcome.status) {
            // Neither ran.
            Some(Status::Busy | Status::TaskSetFull) => Again::Later,
            Some(Status::TaskAborted) if repeatable => Again::Later,
            Some(Status::CheckCondition) => match outcome.sense {
                // SPC-4 4.5.5: the command did not run, and what is told of an earlier one is no loss.
                Some(Sense { key: SenseKey::RecoveredError, deferred: true, .. }) => Again::AtOnce,
                // SAM-5 5.14: a command that meets a unit attention does not run.
                Some(Sense { key: SenseKey::UnitAttention, code, .. }) => {
                    self.counters.unit_attentions += 1;
                    self.app.event(Event::UnitAttention(lun, code));
                    self.heed(lun, code, now);
                    Again::AtOnce
                }
                Some(Sense { key: SenseKey::AbortedCommand, .. }) if repeatable => Again::Later,
                Some(Sense { key: SenseKey::NotReady, code: AdditionalSense::NOT_READY_BECOMING_READY, .. }) => {
                    Again::Later
                }
                Some(Sense {
                    key: SenseKey::NotReady,
                    code: AdditionalSense::NOT_READY_INITIALIZING_COMMAND_REQUIRED,
                    ..
                }) if !task.start_tried && task.errand.is_none_or(|errand| matches!(errand, Errand::Ask(..))) => {
                    Again::Started
                }
                _ => Again::Not,
            },
            _ => Again::Not,
        };
        if !willing {
            return false;
        }
        match again {
            Again::Not => return false,
            Again::AtOnce => self.settle(index, After::Again, now),
            Again::Started => self.settle(index, After::Started, now),
            Again::Later => {
                let attempt = u32::from(attempts.saturating_sub(1));
                let delay = self.jitter.back_off(FIRST_BACK_OFF, LONGEST_BACK_OFF, attempt);
                self.settle(index, After::Later(now + delay), now);
            }
        }
        true
    }

    fn asynchronous<M: Datamover>(&mut self, mover: &mut M, pdu: &AsyncMessage, now: Instant) {
        match pdu.event {
            AsyncEvent::ScsiEvent => {
                if let (Some(sense), Ok(lun)) = (parse_sense(mover.control_data()), Lun::parse(pdu.lun.to_be_bytes())) {
                    self.app.event(Event::UnitAttention(lun, sense.code));
                    self.heed(lun, sense.code, now);
                }
            }
            // RFC 7143 11.9.1: the initiator MUST honour the request by logging out within Parameter3 seconds.
            AsyncEvent::LogoutRequest => {
                let until = now + Duration::from_secs(u64::from(pdu.parameter3 / 2));
                self.app.event(Event::LogoutAsked { within: Duration::from_secs(pdu.parameter3.into()) });
                if self.flow == Flow::Open {
                    self.flow = Flow::Draining { until, asked_by_target: true };
                }
            }
            AsyncEvent::ConnectionDrop | AsyncEvent::SessionDrop => {
                self.time2wait = Some(Duration::from_secs(pdu.parameter2.into()));
                self.fail(ConnectionEnd::DroppedByTarget);
            }
            AsyncEvent::NegotiationRequest => self.answer_negotiation_request(mover),
            // RFC 7143 11.9.1: all tasks of the logical unit are gone. The NOP-Out acknowledges by its ExpStatSN; where
            // there is no room for it, the next PDU does.
            AsyncEvent::TasksTerminated => {
                self.end_tasks(mover, Some(pdu.lun), self.cmd_sn, true, now);
                if self.unexpected.room() > 0 {
                    self.unexpected.sent(self.cmd_sn);
                    self.send_nop(mover, (true, self.cmd_sn), 0, RESERVED_TAG, RESERVED_TAG);
                }
            }
            AsyncEvent::Vendor(_) => {}
        }
    }

    /// A PDU of ours was rejected; its header is in the data segment.
    fn rejected<M: Datamover>(&mut self, mover: &mut M, reason: RejectReason, now: Instant) {
        let header = mover.control_data().first_chunk().map(|bytes| Bhs(*bytes));
        if reason == RejectReason::DataDigestError {
            // The target dropped the PDU, and at ErrorRecoveryLevel 0 nothing fills its place: a new connection does.
            return self.fail(ConnectionEnd::Rejected(reason));
        }
        let Some(header) = header else { return self.fail(ConnectionEnd::Rejected(reason)) };
        match header.opcode() {
            Ok(Opcode::NopOut) => self.pong(header.itt()),
            Ok(Opcode::TaskManagementRequest | Opcode::TextRequest | Opcode::LogoutRequest) => {
                self.control_rejected(header.itt(), reason, now);
            }
            Ok(Opcode::ScsiCommand) => {
                let cmd_sn = cmd_sn_of(&header);
                if let Some(index) = self.slots.by_tag(header.itt()) {
                    self.reclaim(mover, self.slots.handle(index));
                    self.settle(index, After::Finish(Err(Failure::Rejected(reason)), Moved::NOTHING), now);
                }
                // The number has to have been taken, or every later command waits for it for ever.
                if cmd_sn.distance(self.exp_cmd_sn) <= 0 {
                    self.fail(ConnectionEnd::Rejected(reason));
                }
            }
            // A rejected Data-Out leaves its command waiting; so does what cannot be told.
            _ => self.fail(ConnectionEnd::Rejected(reason)),
        }
    }

    pub(super) fn send_nop<M: Datamover>(
        &mut self,
        mover: &mut M,
        (immediate, cmd_sn): (bool, Serial),
        lun: u64,
        itt: u32,
        ttt: u32,
    ) {
        let nop = NopOut { immediate, lun, itt, ttt, cmd_sn, exp_stat_sn: self.exp_stat_sn };
        mover.send_control(nop.emit(), &[]);
    }
}

fn cmd_sn_of(command: &Bhs) -> Serial {
    ScsiCommand::parse(command).map_or(Serial(0), |command| command.cmd_sn)
}

/// RFC 7143 11.4.7: two bytes of length, then sense data.
fn parse_sense(data: &[u8]) -> Option<Sense> {
    let (len, rest) = data.split_first_chunk::<2>()?;
    let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
    Sense::parse(rest.get(..len)?).ok().filter(|_| len > 0)
}
