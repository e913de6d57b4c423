//! Requests that are no commands: task management, text, logout, NOP-Out.

use alloc::vec::Vec;

use iscsi_proto::datamover::{Datamover, TaskHandle};
use iscsi_proto::misbehavior::Misbehavior;
use iscsi_proto::pdu::{
    Bhs, LogoutReason, LogoutRequest, LogoutResponse, Opcode, PduError, RESERVED_TAG, RejectReason, TaskFunction,
    TaskManagementRequest, TaskManagementResponse, TaskResponse, TextRequest, TextResponse,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;

use super::slots::{After, Moved, State};
use super::{Engine, Flow};
use crate::application::{Application, Control, ControlAnswer};
use crate::command::{Failure, WaitsFor};
use crate::connection::ConnectionEnd;
use crate::identity::KnownDisk;

/// Slots of the tags that are no commands; a command table has at most 4096.
const NOP_SLOT: u16 = 0xff00;
const LOGOUT_SLOT: u16 = 0xff01;
const TEXT_SLOT: u16 = 0xff02;
const TASK_MANAGEMENT_SLOT: u16 = 0xff10;
/// Task management functions under way at a time.
const TASK_MANAGEMENT_LIMIT: usize = 8;

/// Who asked for a task management function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    Application(u32),
    /// A command that is overdue.
    Timeout,
    /// A command that nobody waits for.
    GivenUp,
}

#[derive(Debug, Clone, Copy)]
struct TaskManagement {
    asker: Asker,
    function: TaskFunction,
    lun: u64,
    /// The task to abort.
    referenced: u32,
    /// The next CmdSN when the function was sent: tasks before it are concerned.
    cmd_sn: Serial,
    itt: u32,
    deadline: Instant,
}

#[derive(Debug)]
struct Text {
    /// `None` for an exchange that the target asked for.
    id: Option<u32>,
    itt: u32,
    answer: Vec<u8>,
    /// TTT and LUN of the next request, which asks for more of the answer and could not be sent yet.
    more: Option<(u32, u64)>,
    deadline: Instant,
}

/// Control requests under way.
#[derive(Debug, Default)]
pub(super) struct Controls {
    generation: u16,
    task_management: [Option<TaskManagement>; TASK_MANAGEMENT_LIMIT],
    /// Functions whose time is over: an answer that comes yet tells what has become of commands. The oldest gives way.
    late: [Option<TaskManagement>; TASK_MANAGEMENT_LIMIT],
    /// Where the next one goes.
    next_late: usize,
    text: Option<Text>,
    pub(super) logout_itt: Option<u32>,
    /// Tag and deadline of the NOP-Out under way.
    pub(super) ping: Option<(u32, Instant)>,
    /// A request that cannot be sent now, and since when it waits.
    waiting: Option<(Control, Instant)>,
}

impl Controls {
    fn tag(&mut self, slot: u16) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        TaskHandle { slot, generation: self.generation }.to_itt()
    }

    /// Whether a request with this tag is under way.
    pub(super) fn is_open(&self, itt: u32) -> bool {
        self.logout_itt == Some(itt)
            || self.ping.is_some_and(|(own, _)| own == itt)
            || self.text.as_ref().is_some_and(|text| text.itt == itt)
            || self.task_management.iter().flatten().any(|function| function.itt == itt)
    }

    /// The time of a function is over, and who asked for it has been told so.
    fn put_late(&mut self, own: TaskManagement) {
        self.late[self.next_late] = Some(own);
        self.next_late = (self.next_late + 1) % TASK_MANAGEMENT_LIMIT;
    }

    /// The function with this tag, which is answered, and whether its time was over.
    fn take_function(&mut self, itt: u32) -> Option<(TaskManagement, bool)> {
        let in_time = self.task_management.iter_mut().map(|place| (place, false));
        let mut places = in_time.chain(self.late.iter_mut().map(|place| (place, true)));
        let (place, is_late) = places.find(|(place, _)| place.is_some_and(|own| own.itt == itt))?;
        Some((place.take()?, is_late))
    }

    /// A connection stands: what waits to be sent begins to wait anew.
    pub(super) fn begin_waiting(&mut self, now: Instant) {
        if let Some((_, since)) = &mut self.waiting {
            *since = now;
        }
    }

    /// The earliest deadline of a request under way.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let functions = self.task_management.iter().flatten().map(|function| function.deadline);
        functions.chain(self.text.as_ref().map(|text| text.deadline)).chain(self.ping.map(|(_, at)| at)).min()
    }
}

impl<A: Application> Engine<A> {
    /// Whether a request that is no command can be sent now.
    pub(super) fn may_request(&self) -> bool {
        self.unexpected.room() > 0 || self.window_is_open()
    }

    /// How a request that is no command is sent now: whether for immediate delivery, and its CmdSN. Where the target
    /// takes no more unexpected PDUs it is sent in its turn (RFC 7145 8.1.1.3). `None` when the target takes none so
    /// either.
    fn take_place(&mut self) -> Option<(bool, Serial)> {
        if self.unexpected.room() > 0 {
            self.unexpected.sent(self.cmd_sn);
            return Some((true, self.cmd_sn));
        }
        self.take_number()
    }

    /// The CmdSN of a request that is sent in its turn.
    fn take_number(&mut self) -> Option<(bool, Serial)> {
        let cmd_sn = self.cmd_sn;
        self.window_is_open().then(|| {
            self.cmd_sn = cmd_sn.next();
            (false, cmd_sn)
        })
    }

    /// What a request waits for, if it cannot be sent now.
    fn hinders(&self, control: &Control) -> Option<WaitsFor> {
        let has_place = match control {
            Control::TaskManagement { .. } => self.controls.task_management.iter().any(Option::is_none),
            Control::Text { .. } => self.controls.text.is_none(),
            Control::Guard { .. }
            | Control::Unguard { .. }
            | Control::Doubt { .. }
            | Control::AskLost { .. }
            | Control::TakeLost { .. }
            | Control::Logout => {
                return None;
            }
        };
        match (has_place, self.may_request()) {
            (false, _) => Some(WaitsFor::Place),
            (true, false) => Some(WaitsFor::Window),
            (true, true) => None,
        }
    }

    /// When the request that cannot be sent has waited too long.
    pub(super) fn controls_given_up_waiting(&self) -> Option<Instant> {
        let (control, since) = self.controls.waiting.as_ref().filter(|_| self.flow == Flow::Open)?;
        // Those that have its place have limits of their own.
        let limit = Some(self.timeouts.standstill).filter(|limit| !limit.is_zero())?;
        (self.hinders(control) != Some(WaitsFor::Place)).then(|| *since + limit)
    }

    /// Ends a request that has waited too long to be sent.
    fn end_waiting_control(&mut self, now: Instant) {
        if self.controls_given_up_waiting().is_none_or(|at| at > now) {
            return;
        }
        self.fail_waiting_control(Failure::NotSent(WaitsFor::Window));
    }

    pub(super) fn fail_waiting_control(&mut self, failure: Failure) {
        if let Some((Control::TaskManagement { id, .. } | Control::Text { id, .. }, _)) = self.controls.waiting.take() {
            self.app.control_complete(id, ControlAnswer::Failed(failure));
        }
    }

    pub(super) fn pump_controls<M: Datamover>(&mut self, mover: &mut M, now: Instant) {
        while self.flow == Flow::Open {
            let (control, since) = match self.controls.waiting.take() {
                Some(waiting) => waiting,
                None => match self.app.next_control() {
                    Some(control) => (control, now),
                    None => break,
                },
            };
            if self.hinders(&control).is_some() {
                self.controls.waiting = Some((control, since));
                break;
            }
            match control {
                Control::Logout => self.logout_wanted = true,
                Control::Guard { id, disk: KnownDisk { lun, identity, volatile }, login } => {
                    let number = self.guards.add(lun, identity, volatile, login == self.counters.logins);
                    self.app.control_complete(id, ControlAnswer::Guarded(number));
                }
                Control::Unguard { guard } => self.guards.remove(guard),
                Control::Doubt { id, guard } => {
                    let lun = self.guards.get(guard).map(|guard| guard.lun);
                    lun.into_iter().for_each(|lun| self.guards.doubt(Some(lun)));
                    self.app.control_complete(id, ControlAnswer::Guarded(guard));
                }
                Control::AskLost { id, guard } => {
                    let lost = self.guards.lost(guard);
                    self.app.control_complete(id, ControlAnswer::Lost(lost));
                }
                Control::TakeLost { id, guard } => {
                    let lost = self.guards.take_lost(guard);
                    self.app.control_complete(id, ControlAnswer::Lost(lost));
                }
                Control::TaskManagement { id, function, lun } => {
                    let lun = u64::from_be_bytes(lun.to_bytes());
                    self.send_function(mover, Asker::Application(id), function, lun, RESERVED_TAG, Serial(0), now);
                }
                Control::Text { id, text } => self.send_text(mover, Some(id), &text, now),
            }
        }
        if self.flow == Flow::Open && self.logout_wanted && self.slots.is_empty() {
            self.flow = Flow::Draining { until: now, asked_by_target: false };
        }
        if let Flow::Draining { until, asked_by_target } = self.flow
            && (self.slots.in_flight() == 0 || now >= until)
        {
            self.flow = Flow::LoggingOut { until: now + self.timeouts.logout, asked_by_target };
        }
        if matches!(self.flow, Flow::LoggingOut { .. })
            && self.controls.logout_itt.is_none()
            && let Some((immediate, cmd_sn)) = self.take_place()
        {
            let itt = self.controls.tag(LOGOUT_SLOT);
            self.controls.logout_itt = Some(itt);
            let request = LogoutRequest {
                immediate,
                reason: LogoutReason::CloseSession,
                itt,
                cid: 0,
                cmd_sn,
                exp_stat_sn: self.exp_stat_sn,
            };
            mover.send_control(request.emit(), &[]);
        }
        self.ask_for_more(mover);
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one PDU")]
    fn send_function<M: Datamover>(
        &mut self,
        mover: &mut M,
        asker: Asker,
        function: TaskFunction,
        lun: u64,
        referenced: u32,
        ref_cmd_sn: Serial,
        now: Instant,
    ) -> bool {
        let Some(place) = self.controls.task_management.iter().position(Option::is_none) else { return false };
        let Some((immediate, cmd_sn)) = self.take_place() else { return false };
        let itt = self.controls.tag(TASK_MANAGEMENT_SLOT + place as u16);
        let request = TaskManagementRequest {
            immediate,
            function: Ok(function),
            lun,
            itt,
            referenced_task_tag: referenced,
            cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            ref_cmd_sn,
            exp_data_sn: 0,
        };
        mover.send_control(request.emit(), &[]);
        let deadline = now + self.timeouts.task_management;
        self.controls.task_management[place] =
            Some(TaskManagement { asker, function, lun, referenced, cmd_sn, itt, deadline });
        true
    }

    /// Sends ABORT TASK for an overdue command; false when too many functions are under way, or the target takes no
    /// request.
    pub(super) fn send_abort<M: Datamover>(&mut self, mover: &mut M, index: u16, now: Instant) -> bool {
        let itt = self.slots.handle(index).to_itt();
        let Some(task) = self.slots.get_mut(index) else { return true };
        let (lun, cmd_sn) = (u64::from_be_bytes(task.command.lun.to_bytes()), task.cmd_sn);
        if !self.send_function(mover, Asker::Timeout, TaskFunction::AbortTask, lun, itt, cmd_sn, now) {
            return false;
        }
        self.slots.set_state(index, State::Aborting);
        true
    }

    /// Sends ABORT TASK for a command that nobody waits for; false when it cannot be sent now.
    pub(super) fn ask_to_abort<M: Datamover>(&mut self, mover: &mut M, index: u16, now: Instant) -> bool {
        // The last places are for commands that are overdue.
        let used = self.controls.task_management.iter().flatten().filter(|own| own.asker == Asker::GivenUp).count();
        let itt = self.slots.handle(index).to_itt();
        let Some(task) = self.slots.get_mut(index) else { return true };
        let (lun, cmd_sn) = (u64::from_be_bytes(task.command.lun.to_bytes()), task.cmd_sn);
        let sent = used < TASK_MANAGEMENT_LIMIT / 2
            && self.send_function(mover, Asker::GivenUp, TaskFunction::AbortTask, lun, itt, cmd_sn, now);
        if sent {
            self.slots.abort_asked(index);
        }
        sent
    }

    fn send_text<M: Datamover>(&mut self, mover: &mut M, id: Option<u32>, text: &[u8], now: Instant) {
        let itt = self.controls.tag(TEXT_SLOT);
        if !self.text_request(mover, itt, RESERVED_TAG, 0, text) {
            return;
        }
        let deadline = now + self.timeouts.command;
        self.controls.text = Some(Text { id, itt, answer: Vec::new(), more: None, deadline });
    }

    /// False when it cannot be sent now.
    fn text_request<M: Datamover>(&mut self, mover: &mut M, itt: u32, ttt: u32, lun: u64, text: &[u8]) -> bool {
        let Some((immediate, cmd_sn)) = self.take_place() else { return false };
        let request = TextRequest {
            immediate,
            is_final: true,
            incomplete: false,
            lun,
            itt,
            ttt,
            cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
        };
        mover.send_control(request.emit(), text);
        true
    }

    /// Asks for the rest of a text answer, if that is wanted and can be.
    fn ask_for_more<M: Datamover>(&mut self, mover: &mut M) {
        let Some(Text { itt, more: Some((ttt, lun)), .. }) = self.controls.text else { return };
        if self.text_request(mover, itt, ttt, lun, &[])
            && let Some(text) = &mut self.controls.text
        {
            text.more = None;
        }
    }

    /// RFC 7143 11.9.1: a request for negotiation is honoured with a Text Request, be it an empty one.
    pub(super) fn answer_negotiation_request<M: Datamover>(&mut self, mover: &mut M) {
        if self.controls.text.is_none() {
            self.send_text(mover, None, &[], self.last_sign);
        }
    }

    pub(super) fn control_answered<M: Datamover>(
        &mut self,
        mover: &mut M,
        bhs: &Bhs,
        now: Instant,
    ) -> Result<(), PduError> {
        match bhs.opcode()? {
            Opcode::TaskManagementResponse => {
                let pdu = TaskManagementResponse::parse(bhs)?;
                self.window(pdu.exp_cmd_sn, pdu.max_cmd_sn);
                if self.takes_answer(mover, pdu.itt, pdu.stat_sn) {
                    self.function_answered(mover, pdu.itt, pdu.response, now);
                }
            }
            Opcode::TextResponse => {
                let pdu = TextResponse::parse(bhs)?;
                self.window(pdu.exp_cmd_sn, pdu.max_cmd_sn);
                if self.takes_answer(mover, pdu.itt, pdu.stat_sn) {
                    self.text_answered(mover, &pdu);
                }
            }
            _ => {
                let pdu = LogoutResponse::parse(bhs)?;
                self.window(pdu.exp_cmd_sn, pdu.max_cmd_sn);
                if self.takes_answer(mover, pdu.itt, pdu.stat_sn) && self.controls.logout_itt == Some(pdu.itt) {
                    self.logged_out(Some(pdu.time2wait));
                }
            }
        }
        Ok(())
    }

    fn logged_out(&mut self, time2wait: Option<u16>) {
        self.controls.logout_itt = None;
        let by_target = matches!(self.flow, Flow::LoggingOut { asked_by_target: true, .. });
        self.time2wait = time2wait.map(|seconds| core::time::Duration::from_secs(seconds.into()));
        self.fail(if by_target { ConnectionEnd::LogoutAskedByTarget } else { ConnectionEnd::LoggedOut });
    }

    fn function_answered<M: Datamover>(&mut self, mover: &mut M, itt: u32, response: TaskResponse, now: Instant) {
        let Some((own, is_late)) = self.controls.take_function(itt) else { return };
        let done = matches!(response, TaskResponse::Complete | TaskResponse::Succeeded);
        match own.asker {
            Asker::Application(id) => {
                if done {
                    let lun = match own.function {
                        TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset => None,
                        _ => Some(own.lun),
                    };
                    match own.function {
                        TaskFunction::AbortTaskSet | TaskFunction::ClearTaskSet => {
                            self.end_tasks(mover, lun, own.cmd_sn, false, now);
                        }
                        TaskFunction::LogicalUnitReset
                        | TaskFunction::TargetWarmReset
                        | TaskFunction::TargetColdReset => self.end_tasks(mover, lun, own.cmd_sn, true, now),
                        _ => {}
                    }
                }
                if !is_late {
                    self.app.control_complete(id, ControlAnswer::TaskManagement(response));
                }
            }
            Asker::Timeout => self.abort_answered(mover, own, response, done, now),
            // Without the target's word on it the command goes on holding up others until it is answered, or overdue.
            Asker::GivenUp => {
                if (done || response == TaskResponse::TaskDoesNotExist)
                    && let Some(index) = self.slots.by_tag(own.referenced)
                {
                    self.reclaim(mover, self.slots.handle(index));
                    self.settle(index, After::Finish(Err(Failure::Aborted), Moved::NOTHING), now);
                }
            }
        }
    }

    fn abort_answered<M: Datamover>(
        &mut self,
        mover: &mut M,
        own: TaskManagement,
        response: TaskResponse,
        done: bool,
        now: Instant,
    ) {
        if own.function == TaskFunction::LogicalUnitReset {
            if done {
                self.end_tasks(mover, Some(own.lun), own.cmd_sn, true, now);
            } else {
                self.fail(ConnectionEnd::CommandStuck);
            }
            return;
        }
        // The command may have been answered while its abort was on its way.
        let Some(index) = self.slots.by_tag(own.referenced) else { return };
        if done {
            self.reclaim(mover, self.slots.handle(index));
            self.settle(index, After::Finish(Err(Failure::TimedOut), Moved::NOTHING), now);
        } else if response == TaskResponse::TaskDoesNotExist {
            // The target has lost it, or another initiator's reset has ended it: it can be sent again if it may have
            // run.
            self.reclaim(mover, self.slots.handle(index));
            let Some(task) = self.slots.get_mut(index) else { return };
            let again = !task.abandoned && task.attempts < 3 && task.command.repeat.allows(&task.command.cdb);
            let after = if again { After::Again } else { After::Finish(Err(Failure::TimedOut), Moved::NOTHING) };
            self.settle(index, after, now);
        } else {
            self.escalate(mover, own, now);
        }
    }

    /// The next harder means after a function that did not help: ABORT TASK, LOGICAL UNIT RESET, a new connection.
    fn escalate<M: Datamover>(&mut self, mover: &mut M, own: TaskManagement, now: Instant) {
        let reset = TaskFunction::LogicalUnitReset;
        // One that the application asked for leads to nothing if it fails, and one that was sent before the command
        // does not end it.
        let task = self.slots.by_tag(own.referenced).and_then(|index| self.slots.get_mut(index));
        let sent = task.map(|task| task.cmd_sn);
        let ends_it = |other: &TaskManagement| {
            other.asker == Asker::Timeout
                && other.function == reset
                && other.lun == own.lun
                && sent.is_none_or(|sent| sent < other.cmd_sn)
        };
        let waits = self.controls.task_management.iter().flatten().any(ends_it);
        let goes_on = own.function != reset
            && (waits || self.send_function(mover, Asker::Timeout, reset, own.lun, RESERVED_TAG, Serial(0), now));
        if !goes_on {
            self.fail(ConnectionEnd::CommandStuck);
        }
    }

    /// The target has ended tasks of a logical unit (of all, for `None`) that were sent before `before`, without a
    /// status each.
    pub(super) fn end_tasks<M: Datamover>(
        &mut self,
        mover: &mut M,
        lun: Option<u64>,
        before: Serial,
        repeat: bool,
        now: Instant,
    ) {
        for index in 0..self.slots.size() {
            let Some(task) = self.slots.get_mut(index) else { continue };
            let concerned = matches!(task.state, State::InFlight | State::Aborting)
                && lun.is_none_or(|lun| lun == u64::from_be_bytes(task.command.lun.to_bytes()))
                && task.cmd_sn < before;
            if !concerned {
                continue;
            }
            let overdue = task.state == State::Aborting;
            let again = repeat && !overdue && !task.abandoned && task.command.repeat.allows(&task.command.cdb);
            self.reclaim(mover, self.slots.handle(index));
            let after = match (overdue, again) {
                (true, _) => After::Finish(Err(Failure::TimedOut), Moved::NOTHING),
                (_, true) => After::Again,
                _ => After::Finish(Err(Failure::Aborted), Moved::NOTHING),
            };
            self.settle(index, after, now);
        }
    }

    fn text_answered<M: Datamover>(&mut self, mover: &mut M, pdu: &TextResponse) {
        let Some(text) = self.controls.text.as_mut().filter(|text| text.itt == pdu.itt) else { return };
        let data = mover.control_data();
        if text.answer.len() + data.len() > self.limits.text_bytes {
            return self.fail(ConnectionEnd::Protocol(Misbehavior::TextTooLong { limit: self.limits.text_bytes }));
        }
        text.answer.extend_from_slice(data);
        if !pdu.is_final {
            // RFC 7143 11.11.4: the next request copies the TTT (and the LUN) and asks for more with no text of its
            // own.
            if pdu.ttt == RESERVED_TAG {
                return self.fail(ConnectionEnd::Protocol(Misbehavior::TextWithoutTransferTag));
            }
            text.more = Some((pdu.ttt, pdu.lun));
            return self.ask_for_more(mover);
        }
        if let Some(Text { id: Some(id), answer, .. }) = self.controls.text.take() {
            self.app.control_complete(id, ControlAnswer::Text(answer));
        }
    }

    pub(super) fn control_rejected(&mut self, itt: u32, reason: RejectReason, _now: Instant) {
        let rejected = ControlAnswer::Failed(Failure::Rejected(reason));
        if self.controls.logout_itt == Some(itt) {
            return self.logged_out(None);
        }
        if self.controls.text.as_ref().is_some_and(|text| text.itt == itt) {
            if let Some(Text { id: Some(id), .. }) = self.controls.text.take() {
                self.app.control_complete(id, rejected);
            }
            return;
        }
        let place = self.controls.task_management.iter_mut().find(|place| place.is_some_and(|own| own.itt == itt));
        match place.and_then(Option::take) {
            Some(TaskManagement { asker: Asker::Application(id), .. }) => self.app.control_complete(id, rejected),
            Some(TaskManagement { asker: Asker::Timeout, .. }) => self.fail(ConnectionEnd::CommandStuck),
            Some(TaskManagement { asker: Asker::GivenUp, .. }) | None => {}
        }
    }

    /// Asks whether the target is there.
    ///
    /// RFC 7145 8.1.1.3: a PDU for immediate delivery stays outstanding until a numbered one is acknowledged, so in a
    /// session without work a second ping is numbered itself. Where there is work it is not, for it is not to wait
    /// behind commands; the last place is left to task management.
    pub(super) fn send_ping<M: Datamover>(&mut self, mover: &mut M, now: Instant) {
        let idle = self.slots.in_flight() == 0;
        let place = if self.unexpected.is_empty() || !idle && self.unexpected.room() > 1 {
            self.take_place()
        } else {
            self.take_number().or_else(|| if self.unexpected.room() > 1 { self.take_place() } else { None })
        };
        match place {
            Some(place) => {
                let itt = self.controls.tag(NOP_SLOT);
                self.controls.ping = Some((itt, now + self.timeouts.keepalive));
                self.send_nop(mover, place, 0, itt, RESERVED_TAG);
            }
            // The commands have deadlines of their own.
            None if !idle => {}
            // Nothing will ever be asked of it.
            None => self.fail(ConnectionEnd::KeepaliveTimeout),
        }
    }

    pub(super) fn pong(&mut self, itt: u32) {
        if self.controls.ping.is_some_and(|(own, _)| own == itt) {
            self.controls.ping = None;
        }
    }

    /// Deals with control requests whose answers are overdue.
    pub(super) fn control_timeouts<M: Datamover>(&mut self, mover: &mut M, now: Instant) {
        self.end_waiting_control(now);
        for place in 0..TASK_MANAGEMENT_LIMIT {
            let Some(own) = self.controls.task_management[place].filter(|own| own.deadline <= now) else { continue };
            self.controls.task_management[place] = None;
            match own.asker {
                Asker::Application(id) => {
                    self.controls.put_late(own);
                    self.app.control_complete(id, ControlAnswer::Failed(Failure::TimedOut));
                }
                // The harder means ends what this one would have.
                Asker::Timeout => self.escalate(mover, own, now),
                // The target may answer only once its store has let go of the command.
                Asker::GivenUp => self.controls.put_late(own),
            }
        }
        if self.controls.text.as_ref().is_some_and(|text| text.deadline <= now)
            && let Some(Text { id: Some(id), .. }) = self.controls.text.take()
        {
            self.app.control_complete(id, ControlAnswer::Failed(Failure::TimedOut));
        }
        if let Some((itt, deadline)) = self.controls.ping
            && deadline <= now
        {
            // The question or its answer may stand behind megabytes of data. While those move the peer is there.
            let deadline = self.last_sign.max(self.last_acknowledged) + self.timeouts.keepalive;
            if deadline <= now {
                self.fail(ConnectionEnd::KeepaliveTimeout);
            } else {
                self.controls.ping = Some((itt, deadline));
            }
        }
    }

    /// The connection is over: control requests end with it.
    pub(super) fn fail_controls(&mut self) {
        // What was not sent waits for the next connection.
        let (generation, waiting) = (self.controls.generation, self.controls.waiting.take());
        let old = core::mem::replace(&mut self.controls, Controls { generation, waiting, ..Controls::default() });
        let functions = old.task_management.into_iter().flatten().filter_map(|own| match own.asker {
            Asker::Application(id) => Some(id),
            Asker::Timeout | Asker::GivenUp => None,
        });
        for id in functions.chain(old.text.and_then(|text| text.id)) {
            self.app.control_complete(id, ControlAnswer::Failed(Failure::ConnectionLost));
        }
    }
}
