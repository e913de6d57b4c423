//! Data that the initiator owes and does not send: how long they are waited for, and what ends then.

use iscsi_proto::datamover::{DataError, Datamover};

use super::EndReason;
use super::full_feature::FullFeature;
use super::task_table::Flags;

impl FullFeature {
    /// Ends the commands whose data do not get on: nobody's silence keeps a buffer, a place in the command window, or other tasks.
    #[cold]
    pub(super) fn watch_data<M: Datamover>(&mut self, mover: &mut M) -> Result<(), EndReason> {
        let limit = self.target.limits.data_timeout;
        self.data_check = Some(self.now + limit / 4);
        let mut from = 0;
        while let Some(handle) = self.core.tasks.search(from, |task| task.flags.has(Flags::FETCHING)) {
            from = handle.slot + 1;
            let fetched = mover.fetched(handle);
            let Some(task) = self.core.tasks.get_mut(handle) else { continue };
            let since = match task.progress {
                Some((before, since)) if before == fetched => since,
                _ => {
                    task.progress = Some((fetched, self.now));
                    continue;
                }
            };
            // What asks for the data may wait itself, behind what the initiator takes slowly.
            let taking = mover.backlog() != 0 && self.now < self.keepalive.taken() + limit;
            if taking || self.now < since + limit {
                continue;
            }
            if mover.caps().rdma_extensions {
                return Err(EndReason::DataTimeout);
            }
            let itt = task.itt;
            let sink = mover.deallocate_task_resources(handle).data_in;
            mover.forget_command(itt);
            if let Some(sink) = sink.and_then(|sink| self.fetched(mover, handle, sink))
                && let Some(executor) = &mut self.executor
            {
                let failed = executor.data_failed(handle, sink, DataError::IncorrectAmountOfData);
                self.core.step(mover, handle, failed);
            }
        }
        Ok(())
    }

    /// A peer that does not answer an RDMA Read of an aborted task holds up who waits for the task's end, and its memory may be written as long as the
    /// connection is there: it has a short time, then the session ends.
    pub(super) fn watch_owed<M: Datamover>(&mut self, mover: &M) -> Result<(), EndReason> {
        let awaited = !self.tickets.is_empty() || !self.functions.is_empty();
        if !awaited || mover.is_drained() {
            self.owed_until = None;
            return Ok(());
        }
        let until = *self.owed_until.get_or_insert(self.now + self.target.limits.owed_data_wait);
        if self.now >= until { Err(EndReason::DataOwed) } else { Ok(()) }
    }
}
