//! Task management functions (RFC 7143 4.2.3, 11.5, 11.6; RFC 7144 6.3): truly done, answered only when what they abort is gone.

use alloc::sync::Arc;
use alloc::vec::Vec;

use iscsi_proto::datamover::{Datamover, TaskHandle};
use iscsi_proto::pdu::{
    AsyncEvent, Bhs, RejectReason, TaskFunction, TaskManagementRequest, TaskManagementResponse, TaskResponse,
};
use iscsi_proto::scsi::Lun;
use iscsi_proto::time::Instant;

use super::EndReason;
use super::full_feature::FullFeature;
use super::task_table::{Flags, Task};
use crate::lu::{LogicalUnit, UnitAttention};
use crate::registry::{Barrier, EndCause, Ticket};

/// The functions in progress in one session.
#[derive(Debug, Default)]
pub(super) struct Functions(Vec<Function>);

#[derive(Debug)]
struct Function {
    request: TaskManagementRequest,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Waits for commands before it that have not come.
    Gathering {
        /// How long.
        until: Instant,
    },
    /// Waits for what it aborted to be gone.
    Aborting {
        /// Whose operations: of one LUN, or all.
        lun: Option<u64>,
        /// Other sessions.
        others: Option<Arc<Barrier>>,
        /// How long for data that the initiator still owes.
        owed_until: Instant,
        /// How long in all.
        until: Instant,
        /// What then.
        then: Then,
    },
}

#[derive(Debug, Clone)]
enum Then {
    Respond,
    /// The task to abort does not exist.
    Absent,
    /// TARGET COLD RESET: the session ends.
    ColdReset,
    /// I_T NEXUS RESET.
    EndSession,
}

impl Functions {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn has(&self, itt: u32) -> bool {
        self.0.iter().any(|function| function.request.itt == itt)
    }

    /// When the next one is to be looked at again whatever happens.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let deadlines = self.0.iter().map(|function| match &function.state {
            State::Gathering { until } => *until,
            State::Aborting { owed_until, until, .. } if *owed_until > now => *owed_until,
            State::Aborting { until, .. } => *until,
        });
        deadlines.min()
    }
}

/// The number of a LUN field, whichever way it is written; none when it cannot name a logical unit.
pub(super) fn lun_number(field: u64) -> Option<u16> {
    Lun::parse(field.to_be_bytes()).ok()?.number()
}

/// Whether both fields name the same logical unit.
fn same_lun(a: u64, b: u64) -> bool {
    a == b || (lun_number(a).is_some() && lun_number(a) == lun_number(b))
}

impl FullFeature {
    /// A Task Management Function Request whose turn it is.
    pub(super) fn function<M: Datamover>(&mut self, mover: &mut M, bhs: &Bhs) -> Result<(), EndReason> {
        let Ok(request) = TaskManagementRequest::parse(bhs) else { return Ok(()) };
        if self.executor.is_none() {
            self.reject(mover, bhs, RejectReason::CommandNotSupported);
            return Ok(());
        }
        if self.functions.0.len() >= self.target.limits.task_management_functions.max(1) {
            if request.immediate {
                self.reject(mover, bhs, RejectReason::TooManyImmediateCommands);
            } else {
                self.respond(mover, request.itt, TaskResponse::Rejected);
            }
            return Ok(());
        }
        let level2 = self.parameters.iscsi_protocol_level >= 2;
        let needs_lun = match request.function {
            Ok(TaskFunction::AbortTask | TaskFunction::AbortTaskSet) => true,
            Ok(TaskFunction::ClearTaskSet | TaskFunction::LogicalUnitReset) => true,
            Ok(TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset) => false,
            Ok(TaskFunction::QueryTask | TaskFunction::QueryTaskSet) if level2 => true,
            Ok(TaskFunction::ITNexusReset) if level2 => false,
            // RFC 7143 7.2.2: there is no reassignment at ErrorRecoveryLevel below 2.
            Ok(TaskFunction::TaskReassign) => {
                self.respond(mover, request.itt, TaskResponse::ReassignmentNotSupported);
                return Ok(());
            }
            // There is no ACA (NORMACA is 0). RFC 7144 6.3: functions 9 to 12 need iSCSIProtocolLevel 2.
            _ => {
                self.respond(mover, request.itt, TaskResponse::NotSupported);
                return Ok(());
            }
        };
        if needs_lun && self.unit(request.lun).is_none() {
            self.respond(mover, request.itt, TaskResponse::LunDoesNotExist);
            return Ok(());
        }
        if !needs_lun && !self.reaches_others(&request) && request.function != Ok(TaskFunction::ITNexusReset) {
            self.respond(mover, request.itt, TaskResponse::AuthorizationFailed);
            return Ok(());
        }
        match request.function {
            Ok(TaskFunction::AbortTask) => self.abort_task(mover, &request)?,
            Ok(TaskFunction::QueryTask) => {
                let response = match self.task_of(&request) {
                    Ok(_) => TaskResponse::Succeeded,
                    Err(_) if self.functions.has(request.referenced_task_tag) => TaskResponse::Rejected,
                    Err(_) => TaskResponse::Complete,
                };
                self.respond(mover, request.itt, response);
            }
            Ok(TaskFunction::QueryTaskSet) => {
                let lun = request.lun;
                let any = self.core.tasks.search(0, |task| same_lun(task.lun, lun) && !task.flags.has(Flags::ABORTED));
                let response = if any.is_some() { TaskResponse::Succeeded } else { TaskResponse::Complete };
                self.respond(mover, request.itt, response);
            }
            Ok(TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset | TaskFunction::ITNexusReset) => {
                // RFC 7143 4.2.3.3 b: what has not come counts as received.
                while self.core.window.contains(request.cmd_sn) && self.core.window.expected() < request.cmd_sn {
                    self.core.window.pass();
                }
                self.held.drop_before(self.core.window.expected());
                self.begin(mover, request);
                self.release_held(mover)?;
            }
            // RFC 7143 4.2.3.3 b: all commands before it must have come.
            _ if request.immediate && self.core.window.expected() < request.cmd_sn => {
                let until = self.now + self.target.limits.gap_timeout;
                self.functions.0.push(Function { request, state: State::Gathering { until } });
            }
            _ => self.begin(mover, request),
        }
        Ok(())
    }

    /// Whether a function may do anything that other initiators see: where the node's attributes say so, and only from a nexus that may write.
    fn reaches_others(&self, request: &TaskManagementRequest) -> bool {
        let Some((node, _, luns)) = &self.entry.session.normal else { return false };
        let attributes = node.attributes();
        let writes = |lun| lun_number(lun).and_then(|number| luns.get(number)).is_some_and(|lun| !lun.read_only);
        let writes_all = || luns.iter().all(|lun| !lun.read_only);
        match request.function {
            Ok(TaskFunction::TargetWarmReset) => attributes.tmr_warm_reset && writes_all(),
            Ok(TaskFunction::TargetColdReset) => attributes.tmr_cold_reset && writes_all(),
            Ok(TaskFunction::LogicalUnitReset) => attributes.tmr_lun_reset && writes(request.lun),
            Ok(TaskFunction::ClearTaskSet) => attributes.tmr_clear_task_set && writes(request.lun),
            _ => false,
        }
    }

    fn unit(&self, lun: u64) -> Option<Arc<LogicalUnit>> {
        let (_, _, luns) = self.entry.session.normal.as_ref()?;
        luns.get(lun_number(lun)?).map(|mapped| mapped.unit)
    }

    /// The task that the request means.
    fn task_of(&mut self, request: &TaskManagementRequest) -> Result<TaskHandle, ()> {
        let handle = self.core.tasks.find(request.referenced_task_tag).ok_or(())?;
        let task = self.core.tasks.get_mut(handle).ok_or(())?;
        let meant = same_lun(task.lun, request.lun) && !task.flags.has(Flags::ABORTED);
        if meant { Ok(handle) } else { Err(()) }
    }

    /// RFC 7143 11.6.1 a, b, c.
    fn abort_task<M: Datamover>(&mut self, mover: &mut M, request: &TaskManagementRequest) -> Result<(), EndReason> {
        if let Ok(handle) = self.task_of(request) {
            self.abort_now(mover, handle);
            self.abort_done(request, Some(request.lun), None, Then::Respond);
            return Ok(());
        }
        // RFC 7143 11.5.1: not on a task management request.
        if self.functions.has(request.referenced_task_tag) {
            self.respond(mover, request.itt, TaskResponse::Rejected);
            return Ok(());
        }
        let referenced = self.held.find(request.referenced_task_tag).unwrap_or(request.ref_cmd_sn);
        let in_window = self.core.window.contains(referenced) && referenced < request.cmd_sn;
        if !in_window {
            // A reset from elsewhere may have ended it, and its write still be under way in the store: who hears that it does not exist sends it again.
            self.abort_done(request, Some(request.lun), None, Then::Absent);
            return Ok(());
        }
        let deadline = self.now + self.target.limits.gap_timeout;
        if referenced == self.core.window.expected() {
            self.core.window.pass();
        } else if !self.held.plug(referenced, deadline) {
            self.respond(mover, request.itt, TaskResponse::Rejected);
            return Ok(());
        }
        self.respond(mover, request.itt, TaskResponse::Complete);
        // The number counts as received: what waited for it goes on.
        self.after_number(mover, false)
    }

    /// Aborts what a function covers, here and in other sessions.
    fn begin<M: Datamover>(&mut self, mover: &mut M, request: TaskManagementRequest) {
        let registry = self.target.registry.clone();
        let (lun, units, then): (Option<u64>, Vec<_>, _) = match (request.function, self.unit(request.lun)) {
            (Ok(TaskFunction::AbortTaskSet), _) => (Some(request.lun), Vec::new(), Then::Respond),
            (Ok(TaskFunction::ClearTaskSet | TaskFunction::LogicalUnitReset), Some(unit)) => {
                let reached = if self.reaches_others(&request) { alloc::vec![unit] } else { Vec::new() };
                (Some(request.lun), reached, Then::Respond)
            }
            (Ok(TaskFunction::TargetWarmReset), _) => (None, self.units(), Then::Respond),
            (Ok(TaskFunction::TargetColdReset), _) => (None, self.units(), Then::ColdReset),
            (Ok(TaskFunction::ITNexusReset), _) => (None, Vec::new(), Then::EndSession),
            // The LUN was taken away while the function waited.
            _ => return self.respond(mover, request.itt, TaskResponse::LunDoesNotExist),
        };
        let reset = match request.function {
            Ok(TaskFunction::LogicalUnitReset) => Some(UnitAttention::LogicalUnitReset),
            Ok(TaskFunction::TargetWarmReset) => Some(UnitAttention::BusReset),
            Ok(TaskFunction::TargetColdReset) => Some(UnitAttention::BusReset),
            _ => None,
        };
        self.abort_where(mover, true, |task| lun.is_none_or(|lun| same_lun(task.lun, lun)));
        let mut others = None;
        if !units.is_empty() {
            // Whoever loses tasks hears of it, whatever becomes of this function and of its sender: it is told with the abort, not with the answer.
            if let Some(cause) = reset {
                units.iter().for_each(|unit| unit.reset(cause));
            }
            let cleared = reset.is_none().then_some(UnitAttention::CommandsCleared);
            let barrier = Barrier::new(self.entry.mailbox.clone());
            registry.abort(self.entry.id, &units.into(), cleared, &barrier);
            if matches!(then, Then::ColdReset)
                && let Some((node, ..)) = &self.entry.session.normal
            {
                registry.end_all(self.entry.id, node.name().as_str(), EndCause::ColdReset, &barrier);
            }
            others = Some(barrier);
        }
        self.abort_done(&request, lun, others, then);
    }

    fn units(&self) -> Vec<Arc<LogicalUnit>> {
        let Some((_, _, luns)) = &self.entry.session.normal else { return Vec::new() };
        luns.iter().map(|mapped| mapped.unit).collect()
    }

    fn abort_done(
        &mut self,
        request: &TaskManagementRequest,
        lun: Option<u64>,
        others: Option<Arc<Barrier>>,
        then: Then,
    ) {
        let limits = &self.target.limits;
        // RFC 7143 4.2.3.4: with FastAbort nothing is owed.
        let owed_until = if self.parameters.fast_abort { self.now } else { self.now + limits.owed_data_wait };
        let until = self.now + limits.drain_timeout;
        self.functions
            .0
            .push(Function { request: *request, state: State::Aborting { lun, others, owed_until, until, then } });
    }

    /// Aborts one task, at once and wholly.
    pub(super) fn abort_now<M: Datamover>(&mut self, mover: &mut M, handle: TaskHandle) {
        let Some(task) = self.core.retire(handle) else { return };
        if let Some(executor) = &mut self.executor
            && !task.flags.has(Flags::ABORTED)
        {
            executor.abort(handle);
        }
        mover.forget_command(task.itt);
        if task.flags.has(Flags::FETCHING)
            && let Some(sink) = mover.deallocate_task_resources(handle).data_in
        {
            self.give_sink(sink);
        }
    }

    /// Aborts the tasks that `covered` likes. With `wait`, those that the initiator still owes data stay in the table until the data have come
    /// (RFC 7143 4.2.3.3 a). Returns whether there were any.
    pub(super) fn abort_where<M: Datamover>(
        &mut self,
        mover: &mut M,
        wait: bool,
        covered: impl Fn(&Task) -> bool,
    ) -> bool {
        let wait = wait && !self.parameters.fast_abort;
        let (mut from, mut any) = (0, false);
        while let Some(handle) = self.core.tasks.search(from, &covered) {
            from = handle.slot + 1;
            any = true;
            let Some(task) = self.core.tasks.get_mut(handle) else { continue };
            if wait && task.flags.has(Flags::FETCHING) {
                if !task.flags.has(Flags::ABORTED) {
                    task.flags = task.flags.with(Flags::ABORTED);
                    if let Some(executor) = &mut self.executor {
                        executor.abort(handle);
                    }
                }
            } else {
                self.abort_now(mover, handle);
            }
        }
        self.core.announce(mover);
        any
    }

    /// Aborts everything: the session is about to end.
    pub(super) fn abort_all<M: Datamover>(&mut self, mover: &mut M) {
        self.abort_where(mover, false, |_| true);
        self.functions.0.clear();
        self.reset_text();
    }

    /// Another session's function aborts our tasks on these units. Those that another function has aborted before, and whose data are still to come,
    /// are among them.
    pub(super) fn abort_units<M: Datamover>(
        &mut self,
        mover: &mut M,
        attention: Option<UnitAttention>,
        ticket: Ticket,
    ) {
        let units = ticket.units().unwrap_or_default();
        let numbers: Vec<_> = match &self.entry.session.normal {
            Some((_, _, luns)) => luns
                .iter()
                .filter(|lun| units.iter().any(|unit| Arc::ptr_eq(unit, &lun.unit)))
                .map(|lun| (lun.number, lun.unit))
                .collect(),
            None => return,
        };
        let tasks: Vec<_> = self.executor.iter().flat_map(|executor| executor.tasks_on(units)).collect();
        let mut hit = Vec::new();
        for handle in tasks {
            if let Some(task) = self.core.tasks.get_mut(handle) {
                hit.extend(lun_number(task.lun));
                self.abort_now(mover, handle);
            }
        }
        let aborted = |task: &Task| task.flags.has(Flags::ABORTED);
        let on_them =
            |task: &Task| lun_number(task.lun).is_some_and(|lun| numbers.iter().any(|(number, _)| *number == lun));
        self.abort_where(mover, false, |task| aborted(task) && on_them(task));
        self.core.announce(mover);
        for (number, unit) in numbers.iter().filter(|(number, _)| hit.contains(number)) {
            if let (Some(attention), Some(executor)) = (attention, &mut self.executor) {
                executor.add_attention(unit, attention);
            }
            // RFC 7143 4.2.3.4 d, 4.2.3.5: the initiator is to stop its data.
            if self.parameters.fast_abort {
                let lun = u64::from_be_bytes(Lun::new(*number).unwrap_or(Lun::ZERO).to_bytes());
                self.send_async(mover, AsyncEvent::TasksTerminated, lun, 0);
            }
        }
        self.tickets.push(ticket);
    }

    /// Goes on with the functions in progress.
    ///
    /// # Errors
    /// When one of them ends the session.
    pub(super) fn poll_functions<M: Datamover>(&mut self, mover: &mut M) -> Result<(), EndReason> {
        let mut at = 0;
        while let Some(function) = self.functions.0.get(at) {
            let request = function.request;
            match &function.state {
                State::Gathering { until } if self.core.window.expected() < request.cmd_sn => {
                    if self.now < *until {
                        at += 1;
                        continue;
                    }
                    // What it is to abort has not come in its time: nothing was done, and that is what is said.
                    self.functions.0.remove(at);
                    self.respond(mover, request.itt, TaskResponse::Rejected);
                }
                State::Gathering { .. } => {
                    self.functions.0.remove(at);
                    self.begin(mover, request);
                }
                State::Aborting { lun, others, owed_until, until, then } => {
                    let (lun, now, until) = (*lun, self.now, *until);
                    let owed =
                        |task: &Task| task.flags.has(Flags::ABORTED) && lun.is_none_or(|lun| same_lun(task.lun, lun));
                    let owes = self.core.tasks.search(0, owed).is_some();
                    let others_gone = others.as_ref().is_none_or(|others| others.is_open());
                    if !others_gone {
                        self.target.registry.hurry_unfinished(&self.waker);
                    }
                    let gone = mover.is_drained()
                        && others_gone
                        && self.executor.as_ref().is_none_or(|executor| executor.busy(lun) == 0);
                    if owes && now >= *owed_until {
                        self.abort_where(mover, false, owed);
                    } else if gone && !owes {
                        let then = then.clone();
                        self.functions.0.remove(at);
                        self.conclude(mover, request.itt, then)?;
                    } else if now >= until {
                        // A store that does not end its operations: the function is not done, and must not be said to be.
                        self.functions.0.remove(at);
                        let operations = self.executor.as_ref().map_or(0, |executor| executor.busy(None));
                        if operations != 0 {
                            self.target.registry.overdue(&self.entry, operations, false);
                        }
                        self.respond(mover, request.itt, TaskResponse::Rejected);
                    } else {
                        at += 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn conclude<M: Datamover>(&mut self, mover: &mut M, itt: u32, then: Then) -> Result<(), EndReason> {
        match then {
            Then::Respond => {}
            Then::Absent => {
                self.respond(mover, itt, TaskResponse::TaskDoesNotExist);
                return Ok(());
            }
            Then::ColdReset => {
                self.respond(mover, itt, TaskResponse::Complete);
                return Err(EndReason::ColdReset);
            }
            Then::EndSession => {
                self.respond(mover, itt, TaskResponse::Complete);
                return Err(EndReason::NexusReset);
            }
        }
        self.respond(mover, itt, TaskResponse::Complete);
        Ok(())
    }

    fn respond<M: Datamover>(&mut self, mover: &mut M, itt: u32, response: TaskResponse) {
        let response = TaskManagementResponse {
            response,
            additional: 0,
            itt,
            stat_sn: self.core.take_stat_sn(),
            exp_cmd_sn: self.core.window.expected(),
            max_cmd_sn: self.core.window.max(),
        };
        mover.send_control(response.emit(), &[]);
        self.core.announce(mover);
    }
}
