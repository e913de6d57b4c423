//! Data that the initiator owes and does not send: how long they are waited for, and what ends then.

use iscsi_proto::datamover::{DataError, Datamover};

use super::EndReason;
use super::connection::Connection;
use super::session::Session;
use super::task_table::{Flags, Progress};

/// How many times as long a command may have nothing, while data of other commands of its session come.
const TURNS: u32 = 10;

impl Session {
    /// Ends the commands whose data do not get on: nobody's silence keeps a buffer, a place in the command window, or
    /// other tasks.
    #[inline]
    pub(super) fn watch_data<M: Datamover>(&mut self, connection: &mut Connection<M>) -> Result<(), EndReason> {
        if self.commands.tasks.live() == 0 {
            connection.data_check = None;
        } else if connection.now
            >= *connection.data_check.get_or_insert(connection.now + self.target.limits.data_look())
        {
            self.look_at_data(connection)?;
        }
        Ok(())
    }

    #[cold]
    fn look_at_data<M: Datamover>(&mut self, connection: &mut Connection<M>) -> Result<(), EndReason> {
        let limits = &self.target.limits;
        let (data_timeout, look) = (limits.data_timeout, limits.data_look());
        // Whoever holds more buffers than its own while others wait for some, or are told to come again, is to use
        // them.
        let budget = self.target.buffers();
        let refused = budget.waits() != core::mem::replace(&mut connection.refusals, budget.waits());
        let are_short = refused || budget.waiting() != 0;
        if are_short && self.holds_more_than_its_own() {
            // What the connection keeps for bulk goes first: a slow sender of little does not lose its commands for it.
            connection.mover.spare();
        }
        let awaited = are_short && self.holds_more_than_its_own();
        let limit = if awaited { limits.owed_data_wait.min(data_timeout) } else { data_timeout };
        connection.data_check = Some(connection.now + look);
        if let Some(executor) = self.executor.as_mut().filter(|executor| executor.is_late())
            && connection.now >= connection.late_until
        {
            executor.set_late(false);
        }
        if self.note_data_that_get_on(connection) {
            connection.data_moved = connection.now;
        }
        let mut from = 0;
        while let Some(handle) = self.commands.tasks.search(from, |task| task.flags.has(Flags::FETCHING)) {
            from = handle.slot + 1;
            let progress = self.commands.tasks.get_mut(handle).and_then(|task| task.progress);
            let Some(Progress { since: own, asked, .. }) = progress else { continue };
            // On a slow line its data come behind those of others, but it is not to live on them for ever.
            let since = if awaited { own } else { own.max(connection.data_moved.min(own + limit * TURNS)) };
            // What asks for the data may wait itself, behind what the initiator takes slowly: the time begins after
            // that. What is queued later is not waited for, nor what does not get on itself: over RDMA it may be done
            // only behind the data.
            let mover = &connection.mover;
            let is_queued = mover.backlog() != 0 && mover.sent() < asked;
            if is_queued && connection.now < connection.data_sent.1 + limit {
                if let Some(Progress { since, .. }) =
                    self.commands.tasks.get_mut(handle).and_then(|task| task.progress.as_mut())
                {
                    *since = connection.now;
                }
                continue;
            }
            if connection.now < since + limit {
                continue;
            }
            if connection.mover.caps().rdma_extensions {
                return Err(EndReason::DataTimeout);
            }
            let Some(task) = self.commands.tasks.get_mut(handle) else { continue };
            let itt = task.itt;
            let sink = connection.mover.deallocate_task_resources(handle).data_in;
            connection.mover.forget_command(itt);
            if let Some(sink) = sink.and_then(|sink| self.fetched(connection, handle, sink))
                && let Some(executor) = &mut self.executor
            {
                connection.late_until = connection.now + data_timeout;
                executor.set_late(true);
                let failed = executor.data_failed(handle, sink, DataError::IncorrectAmountOfData);
                self.commands.step(connection, handle, failed);
            }
        }
        Ok(())
    }

    /// Takes down what has come for each command since the last look. Whether something has come for any.
    fn note_data_that_get_on<M: Datamover>(&mut self, connection: &mut Connection<M>) -> bool {
        let (mut any, mut from) = (false, 0);
        let sent = connection.mover.sent();
        if connection.data_sent.0 != sent {
            connection.data_sent = (sent, connection.now);
        }
        while let Some(handle) = self.commands.tasks.search(from, |task| task.flags.has(Flags::FETCHING)) {
            from = handle.slot + 1;
            let fetched = connection.mover.fetched(handle);
            let Some(task) = self.commands.tasks.get_mut(handle) else { continue };
            match task.progress {
                Some(before) if before.fetched == fetched => {}
                before => {
                    any |= before.is_some();
                    let asked = sent + connection.mover.backlog() as u64;
                    task.progress = Some(Progress { fetched, since: connection.now, asked });
                }
            }
        }
        any
    }

    /// A peer that does not answer an RDMA Read of an aborted task holds up who waits for the task's end, and its
    /// memory may be written as long as the connection is there: it has a short time, then the session ends.
    pub(super) fn watch_owed<M: Datamover>(&mut self, connection: &mut Connection<M>) -> Result<(), EndReason> {
        let awaited = !self.tickets.is_empty() || !self.functions.is_empty();
        if !awaited || connection.mover.is_drained() {
            connection.owed_until = None;
            return Ok(());
        }
        let until = *connection.owed_until.get_or_insert(connection.now + self.target.limits.owed_data_wait);
        if connection.now < until {
            return Ok(());
        }
        self.answer_those_that_wait_for_owed_data(connection);
        Err(EndReason::DataOwed)
    }
}
