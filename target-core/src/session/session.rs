//! A session in its Full Feature Phase: what RFC 7143 counts by session, whichever connection it comes over.
//!
//! It owns the CmdSN window, the tasks and who runs them, the task management functions, and what others wait for. It
//! owns no connection: each method that needs one is given the one that it is about, so that several can carry a
//! session without another word here.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::Waker;

use iscsi_memory::{Payload, SessionBuffers};
use iscsi_proto::datamover::{Datamover, Source, TaskHandle, TaskStatus};
use iscsi_proto::parameters::Parameters;
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;

use super::command_window::CommandWindow;
use super::connection::Connection;
use super::functions::Functions;
use super::held::HeldRequests;
use super::task_table::{Flags, Task, TaskTable};
use super::{EndReason, Target};
use crate::registry::{SessionEntry, Tickets};
use crate::stats::Tally;
use crate::task::{ExecutorConfig, Nexus, Step, TaskExecutor};

/// Largest command window.
pub(super) const MAX_WINDOW: u16 = 16384;

/// A session in its Full Feature Phase.
pub(super) struct Session {
    pub(super) target: Arc<Target>,
    /// Its place in the registry: its I_T nexus, and what its login settled on.
    pub(super) entry: Arc<SessionEntry>,
    pub(super) commands: Commands,
    /// None in a discovery session.
    pub(super) executor: Option<TaskExecutor>,
    pub(super) functions: Functions,
    pub(super) held: HeldRequests,
    /// Other sessions that wait until aborted operations of ours have ended.
    pub(super) tickets: Tickets,
    /// LUN and tag of tasks that others have ended, and the last operation by then, where that is told by status, and
    /// that is still to be said.
    pub(super) terminated: Vec<(u64, u32, u64)>,
    buffers: SessionBuffers,
}

/// The commands that were taken. What a task's step changes of the session, apart from the executor, which the step
/// borrows.
pub(super) struct Commands {
    pub(super) tasks: TaskTable,
    pub(super) window: CommandWindow,
    /// Those for immediate delivery, which have no place in the window.
    immediate: u16,
    max_immediate: u16,
    tally: Tally,
}

impl Commands {
    /// Whether another command for immediate delivery has a place.
    #[inline]
    pub(super) fn takes_immediate(&self) -> bool {
        self.immediate < self.max_immediate
    }

    /// Enters a task whose tag is [vacant](TaskTable::vacant). False when there is no slot.
    #[inline]
    pub(super) fn enter(&mut self, itt: u32, lun: u64, cmd_sn: Serial, flags: Flags) -> bool {
        let entered = self.tasks.add(itt, lun, cmd_sn, flags).is_ok();
        self.immediate += u16::from(entered && flags.has(Flags::IMMEDIATE));
        entered
    }

    /// Takes a task out of the table: its place in the command window is free again.
    #[inline]
    pub(super) fn retire(&mut self, task: TaskHandle) -> Option<Task> {
        let task = self.tasks.remove(task)?;
        if task.flags.has(Flags::IMMEDIATE) {
            self.immediate -= 1;
        } else {
            self.window.done();
        }
        Some(task)
    }

    /// Does what the executor says about a task.
    #[inline]
    pub(super) fn step<M: Datamover>(&mut self, connection: &mut Connection<M>, handle: TaskHandle, step: Step<'_>) {
        match step {
            Step::Pending => connection.announce(&self.window),
            Step::GetData { sink } => {
                let Some(task) = self.tasks.get_mut(handle) else { return };
                task.flags = task.flags.with(Flags::FETCHING);
                task.fetched = sink.len() as u32;
                let (lun, itt) = (task.lun, task.itt);
                connection.announce(&self.window);
                connection.mover.get_data(iscsi_proto::datamover::GetData { task: handle, lun, itt, sink });
            }
            Step::Send { data, offset } => {
                let Some(task) = self.tasks.get_mut(handle) else { return };
                let (lun, itt) = (task.lun, task.itt);
                self.tally.read_bytes += data.len() as u64;
                connection.put_part(&self.window, (lun, itt), data, offset);
            }
            Step::Respond { data, offset, status } => {
                if let Some(task) = self.retire(handle) {
                    self.respond(connection, (task.lun, task.itt), task.fetched, (data, offset), status);
                }
            }
        }
    }

    /// Answers a task, which is out of the table.
    #[inline]
    pub(super) fn respond<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        (lun, itt): (u64, u32),
        fetched: u32,
        (data, offset): (Source<'_>, u32),
        status: TaskStatus<'_>,
    ) {
        let sent = data.len() as u64;
        if sent > 0 || offset > 0 {
            self.tally.reads += 1;
            self.tally.read_bytes += sent;
        } else if fetched > 0 {
            self.tally.writes += 1;
        } else {
            self.tally.other += 1;
        }
        self.tally.written_bytes += u64::from(fetched);
        self.tally.errors += u64::from(status.status != 0);
        connection.put_data(&self.window, (lun, itt), (data, offset), status);
    }
}

impl Session {
    /// The session that has been entered as `entry`. `cmd_sn` is the first CmdSN of its Full Feature Phase;
    /// `asks_to_land` as its mover says.
    pub(super) fn new(
        target: Arc<Target>,
        entry: Arc<SessionEntry>,
        cmd_sn: Serial,
        asks_to_land: bool,
        buffers: SessionBuffers,
        waker: &Waker,
    ) -> Self {
        let limits = &target.limits;
        let (window, immediate) =
            (limits.command_window.clamp(1, MAX_WINDOW), limits.immediate_commands.clamp(1, 1024));
        let slots = window + immediate;
        let executor = entry.session.normal.as_ref().map(|(node, tag, luns)| {
            let nexus = Nexus {
                id: entry.id,
                initiator_name: entry.session.initiator.as_str().into(),
                isid: entry.session.isid,
                target_name: node.name().as_str().into(),
                portal_group_tag: *tag,
                ports: node.ports(),
                protocol_level: entry.session.parameters.iscsi_protocol_level.into(),
            };
            let config = ExecutorConfig { slots, ..limits.executor };
            let mut executor = TaskExecutor::new(config, luns.clone(), nexus).with_buffers(buffers.clone());
            executor.set_waker(waker);
            executor.set_asks_to_land(asks_to_land);
            executor
        });
        Self {
            commands: Commands {
                tasks: TaskTable::new(if executor.is_some() { slots } else { 1 }),
                window: CommandWindow::new(cmd_sn, window),
                immediate: 0,
                max_immediate: immediate,
                tally: Tally::default(),
            },
            executor,
            functions: Functions::default(),
            held: HeldRequests::new(limits.held_bytes),
            tickets: Tickets::new(),
            terminated: Vec::new(),
            buffers,
            entry,
            target,
        }
    }

    /// What login settled on for the whole session. What belongs to a connection (digests, MaxRecvDataSegmentLength) is
    /// the connection's to say.
    pub(super) fn parameters(&self) -> &Parameters {
        &self.entry.session.parameters
    }

    /// RFC 7143 4.3: a discovery session takes Text and Logout only.
    pub(super) fn is_discovery(&self) -> bool {
        self.executor.is_none()
    }

    /// Whether there is something to do when bytes have been sent.
    #[inline]
    pub(super) fn awaits_sends(&self) -> bool {
        self.executor.as_ref().is_some_and(TaskExecutor::awaits_sends)
    }

    /// Whether there is more to do when others have had their turn.
    pub(super) fn has_more_work(&self) -> bool {
        self.executor.as_ref().is_some_and(TaskExecutor::has_more_work)
    }

    /// When something is to be done even if nothing happens; `now` is when something was done last.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let functions = if self.functions.is_empty() { None } else { self.functions.deadline(now) };
        [functions, self.held.deadline()].into_iter().flatten().min()
    }

    /// A connection's watch may have something to say: where all is silent, memory is given back.
    ///
    /// # Errors
    /// Why the connection is to end.
    pub(super) fn watch<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        now: Instant,
    ) -> Result<(), EndReason> {
        if connection.silence_at.is_some_and(|at| now >= at) {
            self.look_for_silence(connection, now);
        }
        connection.watch(&self.commands.window, now)
    }

    /// Gives back the memory that a session which has been silent for a while does not need.
    #[cold]
    fn look_for_silence<M: Datamover>(&mut self, connection: &mut Connection<M>, now: Instant) {
        if !connection.is_silent(now) {
            return;
        }
        connection.mover.trim();
        if let Some(executor) = &mut self.executor {
            executor.trim();
        }
        if self.commands.tasks.live() == 0 && connection.mover.backlog() == 0 && self.buffers.out() == 0 {
            self.buffers.rest();
            connection.silence_at = None;
        }
    }

    /// Works off everything that there is to do now on a connection.
    ///
    /// # Errors
    /// Why the connection is to end.
    pub(super) fn pump<M: Datamover>(&mut self, connection: &mut Connection<M>, now: Instant) -> Result<(), EndReason> {
        let live = u64::from(self.commands.tasks.live());
        self.commands.tally.busy_nanos += live * (now - connection.now).as_nanos() as u64;
        connection.now = now;
        let outcome = self.work(connection);
        self.entry.counters.add(&self.commands.tally);
        self.commands.tally = Tally::default();
        if self.target.buffers().has_become_short() {
            self.target.registry.buffers_short(self.target.buffers());
        }
        if let Some(report) = connection.mover.report() {
            self.entry.mover.store(&report);
        }
        outcome
    }

    fn work<M: Datamover>(&mut self, connection: &mut Connection<M>) -> Result<(), EndReason> {
        let mut trimmed = false;
        loop {
            while let Some(notification) = connection.poll_notify() {
                self.notified(connection, notification)?;
            }
            let mut steps = false;
            if let Some(executor) = &mut self.executor {
                executor.note_sends(connection.mover.sent(), connection.mover.backlog());
                executor.submit();
                while let Some((task, step)) = executor.poll() {
                    steps = true;
                    self.commands.step(connection, task, step);
                }
                if steps && executor.take_told_flush() {
                    connection.flush_told = Some(connection.stat_sn);
                }
            }
            // Once only: the mover takes its room again with the next look at what came.
            if !steps && (trimmed || !self.makes_room(connection)) {
                break;
            }
            trimmed = !steps;
        }
        if let Some(executor) = &mut self.executor {
            executor.end_turns();
        }
        if !self.terminated.is_empty() && connection.mover.is_drained() {
            self.tell_terminated(connection);
        }
        if !self.functions.is_empty() {
            self.poll_functions(connection)?;
        }
        if !self.tickets.is_empty() && connection.mover.is_drained() {
            self.tear_tickets(|_| false);
        }
        self.watch_owed(connection)?;
        self.watch_data(connection)?;
        self.poll_logout(connection)
    }

    /// Where a task waits for buffers, or was told to come again for want of them, those give way that the connection
    /// keeps for bulk. True if that may help.
    fn makes_room<M: Datamover>(&mut self, connection: &mut Connection<M>) -> bool {
        let Some(executor) = self.executor.as_mut() else { return false };
        if !executor.was_refused() && !executor.is_short() {
            return false;
        }
        let before = self.buffers.out();
        connection.mover.spare();
        // What is still to be sent lies in a buffer that goes later.
        if connection.mover.backlog() == 0 {
            executor.forget_refusals();
        }
        self.buffers.out() < before
    }

    /// Whether the session has more of the budget of all sessions than its own.
    pub(super) fn holds_more_than_its_own(&self) -> bool {
        self.buffers.out() > self.target.buffers().own()
    }

    /// Lets those go on who wait for units on which no operation of an aborted task is under way, but not those that
    /// `keep` likes.
    fn tear_tickets(&mut self, keep: impl Fn(&crate::registry::Ticket) -> bool) {
        let executor = self.executor.as_ref();
        let busy = |ticket: &crate::registry::Ticket| {
            executor.is_some_and(|executor| executor.busy_on(ticket.units(), ticket.last()) != 0)
        };
        self.tickets.retain(|ticket| keep(ticket) || busy(ticket));
    }

    /// Whether nothing of aborted tasks is under way, in the store or in the mover.
    pub(super) fn is_drained<M: Datamover>(&self, mover: &M) -> bool {
        mover.is_drained() && self.executor.as_ref().is_none_or(|executor| executor.busy(None) == 0)
    }

    /// Takes what the stores have to say when the connection is ending and all is aborted. True when nothing is under
    /// way any more.
    #[cold]
    pub(super) fn wind_up<M: Datamover>(&mut self, mover: &M) -> bool {
        if let Some(executor) = &mut self.executor {
            executor.submit();
            while executor.poll().is_some() {}
            executor.end_turns();
        }
        if mover.is_drained() {
            // Who waits for one unit does not wait for another's store, nor for the rest of the connection's end.
            self.tear_tickets(|ticket| ticket.units().is_none());
        }
        self.is_drained(mover)
    }

    /// Takes back the sink of a task that was aborted.
    pub(super) fn give_sink(&mut self, sink: Payload) {
        match (sink, &mut self.executor) {
            (Payload::Buf(buf), Some(executor)) => executor.give(buf),
            (Payload::Buf(_), None) | (Payload::Region(_), _) => {}
        }
    }
}
