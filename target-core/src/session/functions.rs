//! Task management functions (RFC 7143 4.2.3, 11.5, 11.6; RFC 7144 6.3): truly done, answered only when what they abort
//! is gone.

use alloc::sync::Arc;
use alloc::vec::Vec;

use iscsi_proto::datamover::{Datamover, TaskHandle};
use iscsi_proto::pdu::{Bhs, RejectReason, TaskFunction, TaskManagementRequest, TaskManagementResponse, TaskResponse};
use iscsi_proto::time::Instant;

use super::EndReason;
use super::connection::Connection;
use super::scope::{Scope, lun_number, same_lun};
use super::session::Session;
use super::task_table::{Flags, Task};
use crate::lu::{LogicalUnit, UnitAttention};
use crate::registry::{Barrier, EndCause, Reach};
use crate::task::TaskExecutor;

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
        /// Whose operations.
        scope: Scope,
        /// Up to which one: what a later function aborts began after it, and is nothing to wait for.
        last: u64,
        /// Other sessions.
        others: Option<Others>,
        /// How long for data that the initiator still owes.
        owed_until: Instant,
        /// How long in all.
        until: Instant,
        /// What then.
        then: Then,
    },
}

/// Other sessions that a function waits for.
#[derive(Debug)]
struct Others {
    gone: Arc<Barrier>,
    reach: Reach,
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

    /// Forgets them all, unanswered.
    pub(super) fn clear(&mut self) {
        self.0.clear();
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

impl Session {
    /// A Task Management Function Request whose turn it is.
    pub(super) fn function<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        bhs: &Bhs,
    ) -> Result<(), EndReason> {
        let Ok(request) = TaskManagementRequest::parse(bhs) else { return Ok(()) };
        if self.is_discovery() {
            connection.reject(&self.commands.window, bhs, RejectReason::CommandNotSupported);
            return Ok(());
        }
        if self.functions.0.len() >= self.target.limits.task_management_functions.max(1) {
            if request.immediate {
                connection.reject(&self.commands.window, bhs, RejectReason::TooManyImmediateCommands);
            } else {
                self.respond(connection, request.itt, TaskResponse::Rejected);
            }
            return Ok(());
        }
        let level2 = self.parameters().iscsi_protocol_level >= 2;
        let needs_lun = match request.function {
            Ok(TaskFunction::AbortTask | TaskFunction::AbortTaskSet) => true,
            Ok(TaskFunction::ClearTaskSet | TaskFunction::LogicalUnitReset) => true,
            Ok(TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset) => false,
            Ok(TaskFunction::QueryTask | TaskFunction::QueryTaskSet) if level2 => true,
            Ok(TaskFunction::ITNexusReset) if level2 => false,
            // RFC 7143 7.2.2: there is no reassignment at ErrorRecoveryLevel below 2.
            Ok(TaskFunction::TaskReassign) => {
                self.respond(connection, request.itt, TaskResponse::ReassignmentNotSupported);
                return Ok(());
            }
            // There is no ACA (NORMACA is 0). RFC 7144 6.3: functions 9 to 12 need iSCSIProtocolLevel 2.
            _ => {
                self.respond(connection, request.itt, TaskResponse::NotSupported);
                return Ok(());
            }
        };
        if needs_lun && self.unit(request.lun).is_none() {
            self.respond(connection, request.itt, TaskResponse::LunDoesNotExist);
            return Ok(());
        }
        if !needs_lun && !self.reaches_others(&request) && request.function != Ok(TaskFunction::ITNexusReset) {
            self.respond(connection, request.itt, TaskResponse::AuthorizationFailed);
            return Ok(());
        }
        match request.function {
            Ok(TaskFunction::AbortTask) => self.abort_task(connection, &request)?,
            Ok(TaskFunction::QueryTask) => {
                let response = match self.task_of(&request) {
                    Ok(_) => TaskResponse::Succeeded,
                    Err(_) if self.functions.has(request.referenced_task_tag) => TaskResponse::Rejected,
                    Err(_) => TaskResponse::Complete,
                };
                self.respond(connection, request.itt, response);
            }
            Ok(TaskFunction::QueryTaskSet) => {
                let scope = self.scope(request.lun);
                let any = self.commands.tasks.search(0, |task| scope.covers(task) && !task.flags.has(Flags::ABORTED));
                let response = if any.is_some() { TaskResponse::Succeeded } else { TaskResponse::Complete };
                self.respond(connection, request.itt, response);
            }
            Ok(TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset | TaskFunction::ITNexusReset) => {
                // RFC 7143 4.2.3.3 b: what has not come counts as received.
                self.commands.window.pass_to(request.cmd_sn);
                self.held.drop_before(self.commands.window.expected());
                self.begin(connection, request);
                self.release_held(connection)?;
            }
            // RFC 7143 4.2.3.3 b: all commands before it must have come.
            _ if request.immediate && self.commands.window.expected() < request.cmd_sn => {
                let until = connection.now + self.target.limits.gap_timeout;
                self.functions.0.push(Function { request, state: State::Gathering { until } });
            }
            _ => self.begin(connection, request),
        }
        Ok(())
    }

    /// Whether a function may do anything that other initiators see: where the node's attributes say so, and only from
    /// a nexus that may write.
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

    /// The task that the request means.
    fn task_of(&mut self, request: &TaskManagementRequest) -> Result<TaskHandle, ()> {
        let handle = self.commands.tasks.find(request.referenced_task_tag).ok_or(())?;
        let task = self.commands.tasks.get_mut(handle).ok_or(())?;
        let meant = same_lun(task.lun, request.lun) && !task.flags.has(Flags::ABORTED);
        if meant { Ok(handle) } else { Err(()) }
    }

    /// RFC 7143 11.6.1 a, b, c.
    fn abort_task<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        request: &TaskManagementRequest,
    ) -> Result<(), EndReason> {
        if let Ok(handle) = self.task_of(request) {
            self.abort_now(connection, handle);
            self.abort_done(connection.now, request, (self.scope(request.lun), None), Then::Respond);
            return Ok(());
        }
        // RFC 7143 11.5.1: not on a task management request.
        if self.functions.has(request.referenced_task_tag) {
            self.respond(connection, request.itt, TaskResponse::Rejected);
            return Ok(());
        }
        let referenced = self.held.find(request.referenced_task_tag).unwrap_or(request.ref_cmd_sn);
        let in_window = self.commands.window.contains(referenced) && referenced < request.cmd_sn;
        if !in_window {
            // A reset from elsewhere may have ended it, and its write still be under way in the store: who hears that
            // it does not exist sends it again.
            self.abort_done(connection.now, request, (self.scope(request.lun), None), Then::Absent);
            return Ok(());
        }
        let deadline = connection.now + self.target.limits.gap_timeout;
        if referenced == self.commands.window.expected() {
            self.commands.window.pass();
        } else if !self.held.plug(referenced, deadline) {
            self.respond(connection, request.itt, TaskResponse::Rejected);
            return Ok(());
        }
        self.respond(connection, request.itt, TaskResponse::Complete);
        // The number counts as received: what waited for it goes on.
        self.after_number(connection, false)
    }

    /// Aborts what a function covers, here and in other sessions.
    fn begin<M: Datamover>(&mut self, connection: &mut Connection<M>, request: TaskManagementRequest) {
        let on_unit = || self.scope(request.lun);
        let (scope, units, then): (_, Vec<_>, _) = match (request.function, self.unit(request.lun)) {
            (Ok(TaskFunction::AbortTaskSet), _) => (on_unit(), Vec::new(), Then::Respond),
            (Ok(TaskFunction::ClearTaskSet | TaskFunction::LogicalUnitReset), Some(unit)) => {
                let reached = if self.reaches_others(&request) { alloc::vec![unit] } else { Vec::new() };
                (on_unit(), reached, Then::Respond)
            }
            (Ok(TaskFunction::TargetWarmReset), _) => (Scope::All, self.units(), Then::Respond),
            (Ok(TaskFunction::TargetColdReset), _) => (Scope::All, self.units(), Then::ColdReset),
            (Ok(TaskFunction::ITNexusReset), _) => (Scope::All, Vec::new(), Then::EndSession),
            // The LUN was taken away while the function waited.
            _ => return self.respond(connection, request.itt, TaskResponse::LunDoesNotExist),
        };
        let reset = match request.function {
            Ok(TaskFunction::LogicalUnitReset) => Some(UnitAttention::LogicalUnitReset),
            Ok(TaskFunction::TargetWarmReset) => Some(UnitAttention::BusReset),
            Ok(TaskFunction::TargetColdReset) => Some(UnitAttention::BusReset),
            _ => None,
        };
        let scope = self.with_strays(scope);
        self.abort_scope(connection, &scope);
        let mut others = None;
        let target_reset =
            matches!(request.function, Ok(TaskFunction::TargetWarmReset | TaskFunction::TargetColdReset));
        if target_reset || !units.is_empty() {
            // Whoever loses tasks hears of it, whatever becomes of this function and of its sender: it is told with the
            // abort, not with the answer.
            if let Some(cause) = reset {
                units.iter().for_each(|unit| unit.reset(cause));
            }
            let cleared = reset.is_none().then_some(UnitAttention::CommandsCleared);
            let gone = Barrier::new(self.entry.mailbox.clone());
            let (reach, registry) = (Reach::of(units.into()), &self.target.registry);
            let reach = if target_reset { reach.and_acquaintances(registry) } else { reach.and(registry) };
            match &self.entry.session.normal {
                Some((node, ..)) if target_reset => {
                    let name = node.name().as_str();
                    reach.abort_target(self.entry.id, name, &gone);
                    if matches!(then, Then::ColdReset) {
                        reach.end_all(self.entry.id, name, EndCause::ColdReset, &gone);
                    }
                }
                _ => reach.abort(self.entry.id, cleared, &gone),
            }
            others = Some(Others { gone, reach });
        }
        self.abort_done(connection.now, &request, (scope, others), then);
    }

    fn units(&self) -> Vec<Arc<LogicalUnit>> {
        let Some((_, _, luns)) = &self.entry.session.normal else { return Vec::new() };
        luns.iter().map(|mapped| mapped.unit).collect()
    }

    fn abort_done(
        &mut self,
        now: Instant,
        request: &TaskManagementRequest,
        (scope, others): (Scope, Option<Others>),
        then: Then,
    ) {
        let limits = &self.target.limits;
        let until = now + limits.drain_timeout;
        // RFC 7143 4.2.3.4: with FastAbort nothing is owed. Data that are owed make no function fail.
        let owed_until = if self.parameters().fast_abort { now } else { (now + limits.owed_data_wait).min(until) };
        let last = self.executor.as_ref().map_or(0, TaskExecutor::last_operation);
        self.functions.0.push(Function {
            request: *request,
            state: State::Aborting { scope, last, others, owed_until, until, then },
        });
    }

    /// Goes on with the functions in progress.
    ///
    /// # Errors
    /// When one of them ends the session.
    pub(super) fn poll_functions<M: Datamover>(&mut self, connection: &mut Connection<M>) -> Result<(), EndReason> {
        for function in core::mem::take(&mut self.functions.0) {
            if let Some(function) = self.poll_function(connection, function)? {
                self.functions.0.push(function);
            }
        }
        Ok(())
    }

    /// Goes on with one; gives it back if it is still in progress.
    fn poll_function<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        function: Function,
    ) -> Result<Option<Function>, EndReason> {
        let (now, request) = (connection.now, function.request);
        let (scope, last, others, owed_until, until) = match &function.state {
            State::Gathering { until } if self.commands.window.expected() < request.cmd_sn => {
                if now < *until {
                    return Ok(Some(function));
                }
                // What it is to abort has not come in its time: nothing was done, and that is what is said.
                self.respond(connection, request.itt, TaskResponse::Rejected);
                return Ok(None);
            }
            State::Gathering { .. } => {
                self.begin(connection, request);
                return Ok(None);
            }
            State::Aborting { scope, last, others, owed_until, until, .. } => {
                (scope, *last, others, *owed_until, *until)
            }
        };
        let owed = |task: &Task| task.flags.has(Flags::ABORTED) && scope.covers(task);
        if now >= owed_until {
            self.abort_where(connection, false, owed);
        }
        let owes = self.commands.tasks.search(0, owed).is_some();
        let waits_for = others.as_ref().filter(|others| !others.gone.is_open());
        if let Some(others) = waits_for {
            others.reach.poll_unfinished(&connection.waker);
        }
        let busy = self.executor.as_ref().is_some_and(|executor| scope.is_busy(executor, last));
        if connection.mover.is_drained() && !owes && !busy && waits_for.is_none_or(|others| others.gone.is_open()) {
            let State::Aborting { then, .. } = function.state else { return Ok(None) };
            return self.conclude(connection, request.itt, then).map(|()| None);
        }
        if now < until {
            return Ok(Some(function));
        }
        // A store that does not end its operations: the function is not done, and must not be said to be.
        if let Some(others) = waits_for {
            others.reach.tell_overdue(self.entry.id);
        }
        self.tell_overdue(scope.units());
        self.respond(connection, request.itt, TaskResponse::Rejected);
        Ok(None)
    }

    /// The session ends, for data that its initiator owes: functions that wait for nothing but these are complete. Over
    /// RDMA such data come to a buffer, and from there to the store only if their task is still there.
    #[cold]
    pub(super) fn answer_those_that_wait_for_owed_data<M: Datamover>(&mut self, connection: &mut Connection<M>) {
        for Function { request, state } in core::mem::take(&mut self.functions.0) {
            let State::Aborting { scope, last, others, then, .. } = state else { continue };
            let in_store = self.executor.iter().any(|executor| scope.is_busy(executor, last));
            if in_store || others.is_some_and(|others| !others.gone.is_open()) {
                continue;
            }
            // What some of them end, ends.
            let _ = self.conclude(connection, request.itt, then);
            connection.has_last_words = true;
        }
    }

    /// Tells the operator of operations that aborted tasks have at the stores of these units, or of all, if there are
    /// any.
    pub(super) fn tell_overdue(&self, units: &[Arc<LogicalUnit>]) {
        let units = if units.is_empty() { None } else { Some(units) };
        let operations = self.executor.as_ref().map_or(0, |executor| executor.busy_on(units, u64::MAX));
        if operations != 0 {
            self.target.registry.overdue(&self.entry, operations, false);
        }
    }

    fn conclude<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        itt: u32,
        then: Then,
    ) -> Result<(), EndReason> {
        match then {
            Then::Respond => {}
            Then::Absent => {
                self.respond(connection, itt, TaskResponse::TaskDoesNotExist);
                return Ok(());
            }
            Then::ColdReset => {
                self.respond(connection, itt, TaskResponse::Complete);
                return Err(EndReason::ColdReset);
            }
            Then::EndSession => {
                self.respond(connection, itt, TaskResponse::Complete);
                return Err(EndReason::NexusReset);
            }
        }
        self.respond(connection, itt, TaskResponse::Complete);
        Ok(())
    }

    fn respond<M: Datamover>(&mut self, connection: &mut Connection<M>, itt: u32, response: TaskResponse) {
        let response = TaskManagementResponse {
            response,
            additional: 0,
            itt,
            stat_sn: connection.take_stat_sn(),
            exp_cmd_sn: self.commands.window.expected(),
            max_cmd_sn: self.commands.window.max(),
        };
        connection.mover.send_control(response.emit(), &[]);
        connection.announce(&self.commands.window);
    }
}
