//! Tasks that end without an answer: one, those of a function, those that another session's function reaches, or all.

use alloc::sync::Arc;
use alloc::vec::Vec;

use iscsi_proto::datamover::{Datamover, Source, TaskHandle, TaskStatus};
use iscsi_proto::pdu::{AsyncEvent, Residual};
use scsi_proto::Status;

use super::connection::Connection;
use super::scope::{Scope, lun_field, lun_number};
use super::session::{MAX_WINDOW, Session};
use super::task_table::{Flags, Task};
use crate::lu::{LogicalUnit, UnitAttention};
use crate::registry::Ticket;
use crate::task::TaskExecutor;

impl Session {
    /// Aborts one task, at once and wholly.
    pub(super) fn abort_now<M: Datamover>(&mut self, connection: &mut Connection<M>, handle: TaskHandle) {
        let Some(task) = self.commands.retire(handle) else { return };
        if let Some(executor) = &mut self.executor
            && !task.flags.has(Flags::ABORTED)
        {
            executor.abort(handle);
        }
        connection.mover.forget_command(task.itt);
        if task.flags.has(Flags::FETCHING)
            && let Some(sink) = connection.mover.deallocate_task_resources(handle).data_in
        {
            self.give_sink(sink);
        }
    }

    /// Aborts a task. With `wait`, one that the initiator still owes data stays in the table until the data have come
    /// (RFC 7143 4.2.3.3 a).
    fn abort<M: Datamover>(&mut self, connection: &mut Connection<M>, handle: TaskHandle, wait: bool) {
        let Some(task) = self.commands.tasks.get_mut(handle) else { return };
        if !wait || !task.flags.has(Flags::FETCHING) {
            return self.abort_now(connection, handle);
        }
        if !task.flags.has(Flags::ABORTED) {
            task.flags = task.flags.with(Flags::ABORTED);
            if let Some(executor) = &mut self.executor {
                executor.abort(handle);
            }
        }
    }

    /// Aborts the tasks that `covered` likes; `wait` as RFC 7143 4.2.3.3 a has it, unless TaskReporting is FastAbort.
    pub(super) fn abort_where<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        wait: bool,
        covered: impl Fn(&Task) -> bool,
    ) {
        let wait = wait && !self.parameters().fast_abort;
        let mut from = 0;
        while let Some(handle) = self.commands.tasks.search(from, &covered) {
            from = handle.slot + 1;
            self.abort(connection, handle, wait);
        }
        connection.announce(&self.commands.window);
    }

    /// Aborts the tasks of a function of our own.
    pub(super) fn abort_scope<M: Datamover>(&mut self, connection: &mut Connection<M>, scope: &Scope) {
        self.abort_where(connection, true, |task| scope.covers(task));
        // Those too that came by a LUN which names another unit since, or none.
        let wait = !self.parameters().fast_abort;
        let executor = self.executor.iter();
        let named = |unit: &Arc<LogicalUnit>| scope.units().iter().any(|other| Arc::ptr_eq(other, unit));
        let rest: Vec<_> = executor.flat_map(|executor| executor.tasks_where(named)).collect();
        rest.into_iter().for_each(|handle| self.abort(connection, handle, wait));
        connection.announce(&self.commands.window);
    }

    /// Aborts everything: the session is about to end.
    pub(super) fn abort_all<M: Datamover>(&mut self, connection: &mut Connection<M>) {
        self.abort_where(connection, false, |_| true);
        self.functions.clear();
        connection.reset_text();
    }

    /// Another session's function aborts our tasks on the ticket's units, or all that there are. Those that a function
    /// of our own has aborted, and whose data are still to come, go too.
    pub(super) fn abort_units<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        attention: Option<UnitAttention>,
        ticket: Ticket,
    ) {
        let tells = |unit: &LogicalUnit| unit.attributes().emulate_tas;
        let units = ticket.units();
        let reached =
            |unit: &Arc<LogicalUnit>| units.is_none_or(|units| units.iter().any(|other| Arc::ptr_eq(other, unit)));
        let numbers: Vec<_> = match &self.entry.session.normal {
            Some((_, _, luns)) => {
                luns.iter().filter(|lun| reached(&lun.unit)).map(|lun| (lun.number, lun.unit)).collect()
            }
            None => return,
        };
        let tasks: Vec<_> = self.executor.iter().flat_map(|executor| executor.tasks_where(reached)).collect();
        let mut hit = Vec::new();
        for handle in tasks {
            if let Some(task) = self.commands.tasks.get_mut(handle) {
                let (lun, itt) = (task.lun, task.itt);
                hit.extend(lun_number(lun));
                self.abort_now(connection, handle);
                let told = numbers.iter().any(|(number, unit)| tells(unit) && Some(*number) == lun_number(lun));
                if told && self.terminated.len() < usize::from(MAX_WINDOW) {
                    let last = self.executor.as_ref().map_or(0, TaskExecutor::last_operation);
                    self.terminated.push((lun, itt, last));
                }
            }
        }
        // The LUN by which one of them came may name another unit since, or none; and none of them is waited for by an
        // initiator.
        self.abort_where(connection, false, |task| task.flags.has(Flags::ABORTED));
        connection.announce(&self.commands.window);
        for (number, unit) in numbers.iter().filter(|(number, _)| hit.contains(number)) {
            if let (Some(attention), Some(executor)) = (attention, &mut self.executor)
                && !tells(unit)
            {
                executor.add_attention(unit, attention);
            }
            // RFC 7143 4.2.3.4 d, 4.2.3.5: the initiator is to stop its data.
            if self.parameters().fast_abort {
                let lun = lun_field(*number);
                connection.send_async(&self.commands.window, AsyncEvent::TasksTerminated, lun, 0);
            }
        }
        let last = self.executor.as_ref().map_or(0, TaskExecutor::last_operation);
        self.tickets.push(ticket.up_to(last));
    }

    /// Answers the tasks that another nexus's function has ended, as soon as nothing of them is under way (SAM-5 5.3.1,
    /// 5.6).
    #[cold]
    pub(super) fn tell_terminated<M: Datamover>(&mut self, connection: &mut Connection<M>) {
        let mut at = 0;
        while let Some((lun, itt, last)) = self.terminated.get(at).copied() {
            if self.executor.as_ref().is_some_and(|executor| executor.busy_since(Some(lun), last) != 0) {
                at += 1;
                continue;
            }
            self.terminated.remove(at);
            let status = TaskStatus {
                status: Status::TaskAborted.to_byte(),
                residual: Residual::None,
                bidirectional_read_residual: Residual::None,
                sense: &[],
            };
            self.commands.respond(connection, (lun, itt), 0, (Source::None, 0), status);
        }
    }
}
