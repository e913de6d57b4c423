//! The Full Feature Phase of a session with its one connection: takes PDUs in CmdSN order, hands commands to the executor and its steps to the mover.
//!
//! The way of a command is in this file; what comes rarely is beside it: `control` (NOP, logout, reject, asynchronous messages), `functions` (task
//! management), `owed` (data that do not come), `text`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::Waker;

use iscsi_proto::datamover::{Datamover, Notification, PutData, SequenceNumbers, Sink, Source, TaskHandle, TaskStatus};
use iscsi_proto::keys::Negotiator;
use iscsi_proto::parameters::{Digest, Parameters};
use iscsi_proto::pdu::{Ahs, AhsIter, Bhs, Opcode, PduError, RESERVED_TAG, RejectReason, ScsiCommand};
use iscsi_proto::serial::Serial;
use iscsi_proto::text::TextLimits;
use iscsi_proto::text::exchange::TextResponder;
use iscsi_proto::time::Instant;
use iscsi_proto::unexpected::UnexpectedPdus;

use super::command_window::{CommandWindow, Place};
use super::control::{Keepalive, Logout};
use super::functions::Functions;
use super::held::{Held, HeldRequests};
use super::task_table::{Flags, Refused, TaskTable};
use super::{EndReason, Target, wire};
use crate::registry::{SessionEntry, Tickets};
use crate::stats::Tally;
use crate::task::{AtOnce, ExecutorConfig, NewTask, Nexus, Step, TaskExecutor};

/// Largest command window.
pub(super) const MAX_WINDOW: u16 = 16384;

/// What login hands over.
pub(super) struct Start {
    pub(super) target: Arc<Target>,
    pub(super) entry: Arc<SessionEntry>,
    pub(super) parameters: Parameters,
    /// The first CmdSN of the Full Feature Phase.
    pub(super) cmd_sn: Serial,
    /// The StatSN behind the last login response.
    pub(super) stat_sn: Serial,
    /// Of the mover.
    pub(super) asks_to_land: bool,
}

/// A session in its Full Feature Phase.
pub(super) struct FullFeature {
    pub(super) core: Core,
    /// None in a discovery session.
    pub(super) executor: Option<TaskExecutor>,
    pub(super) target: Arc<Target>,
    pub(super) entry: Arc<SessionEntry>,
    pub(super) parameters: Parameters,
    pub(super) functions: Functions,
    pub(super) held: HeldRequests,
    pub(super) text: TextResponder,
    /// The negotiation of the text exchange under way: nothing of it holds before its end.
    pub(super) negotiation: Option<Box<Negotiator>>,
    pub(super) keepalive: Keepalive,
    pub(super) logout: Logout,
    /// Data of the request at hand, when the mover is needed to answer it.
    pub(super) scratch: Vec<u8>,
    /// Other sessions that wait until aborted operations of ours have ended.
    pub(super) tickets: Tickets,
    /// When data that a peer owes to aborted tasks must have come, while somebody waits for them.
    pub(super) owed_until: Option<Instant>,
    /// When to look again whether data that commands wait for get on; none when no task is there.
    pub(super) data_check: Option<Instant>,
    /// Wakes whoever drives the connection.
    pub(super) waker: Waker,
    pub(super) now: Instant,
    immediate_commands: u16,
    direct_placement: bool,
    send_backlog: usize,
    stalled: bool,
}

/// What a task's step changes: apart from the executor, which the step borrows.
pub(super) struct Core {
    pub(super) tasks: TaskTable,
    pub(super) window: CommandWindow,
    pub(super) stat_sn: Serial,
    /// Asynchronous Messages and Rejects that the initiator does not wait for and has not acknowledged.
    pub(super) unexpected: UnexpectedPdus,
    immediate: u16,
    tally: Tally,
}

impl Core {
    /// Tells the mover the numbers as they are.
    #[inline]
    pub(super) fn announce<M: Datamover>(&self, mover: &mut M) {
        mover.set_sequence(SequenceNumbers {
            stat_sn: self.stat_sn,
            exp_cmd_sn: self.window.expected(),
            max_cmd_sn: self.window.max(),
            exp_stat_sn: Serial(0),
        });
    }

    /// The next StatSN, taken.
    #[inline]
    pub(super) fn take_stat_sn(&mut self) -> Serial {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.next();
        stat_sn
    }

    /// Takes a task out of the table: its place in the command window is free again.
    #[inline]
    pub(super) fn retire(&mut self, task: TaskHandle) -> Option<super::task_table::Task> {
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
    pub(super) fn step<M: Datamover>(&mut self, mover: &mut M, handle: TaskHandle, step: Step<'_>) {
        match step {
            Step::Pending => self.announce(mover),
            Step::GetData { sink } => {
                let Some(task) = self.tasks.get_mut(handle) else { return };
                task.flags = task.flags.with(Flags::FETCHING);
                task.fetched = sink.len() as u32;
                let (lun, itt) = (task.lun, task.itt);
                self.announce(mover);
                mover.get_data(iscsi_proto::datamover::GetData { task: handle, lun, itt, sink });
            }
            Step::Respond { data, status } => {
                if let Some(task) = self.retire(handle) {
                    self.respond(mover, (task.lun, task.itt), task.fetched, data, status);
                }
            }
        }
    }

    /// Answers a task, which is out of the table.
    #[inline]
    fn respond<M: Datamover>(
        &mut self,
        mover: &mut M,
        (lun, itt): (u64, u32),
        fetched: u32,
        data: Source<'_>,
        status: TaskStatus<'_>,
    ) {
        let sent = data.len() as u64;
        if sent > 0 {
            self.tally.reads += 1;
            self.tally.read_bytes += sent;
        } else if fetched > 0 {
            self.tally.writes += 1;
        } else {
            self.tally.other += 1;
        }
        self.tally.written_bytes += u64::from(fetched);
        self.tally.errors += u64::from(status.status != 0);
        self.announce(mover);
        mover.put_data(PutData { lun, itt, buffer_offset: 0, data, status: Some(status) });
        self.stat_sn = self.stat_sn.next();
        self.announce(mover);
    }
}

/// Where a request stands.
pub(super) enum Turn {
    /// It is to be done now.
    Now,
    /// It is to wait for those before it.
    Wait,
    /// It is to be dropped without a word.
    Never,
}

impl FullFeature {
    pub(super) fn new(start: Start, waker: &Waker, now: Instant) -> Self {
        let Start { target, entry, parameters, cmd_sn, stat_sn, asks_to_land } = start;
        let limits = &target.limits;
        let slots = limits.command_window.clamp(1, MAX_WINDOW) + limits.immediate_commands.clamp(1, 1024);
        let executor = entry.session.normal.as_ref().map(|(node, tag, luns)| {
            let nexus = Nexus {
                id: entry.id,
                initiator_name: entry.session.initiator.as_str().into(),
                isid: entry.session.isid,
                target_name: node.name().as_str().into(),
                portal_group_tag: *tag,
                ports: node.ports(),
                protocol_level: parameters.iscsi_protocol_level.into(),
            };
            let config = ExecutorConfig { slots, ..limits.executor };
            let mut executor = TaskExecutor::new(config, luns.clone(), nexus).sharing(target.buffers.clone());
            executor.set_waker(waker);
            executor.set_asks_to_land(asks_to_land);
            executor
        });
        Self {
            core: Core {
                tasks: TaskTable::new(if executor.is_some() { slots } else { 1 }),
                window: CommandWindow::new(cmd_sn, limits.command_window.clamp(1, MAX_WINDOW)),
                stat_sn,
                unexpected: UnexpectedPdus::new(parameters.peer_max_outstanding_unexpected_pdus),
                immediate: 0,
                tally: Tally::default(),
            },
            executor,
            functions: Functions::default(),
            held: HeldRequests::new(limits.held_bytes),
            text: TextResponder::new(TextLimits::default()),
            negotiation: None,
            keepalive: Keepalive::new(limits, entry.session.nop_in, now),
            logout: Logout::None,
            scratch: Vec::new(),
            tickets: Tickets::new(),
            owed_until: None,
            data_check: None,
            waker: waker.clone(),
            now,
            immediate_commands: limits.immediate_commands.clamp(1, 1024),
            direct_placement: parameters.data_digest == Digest::None,
            send_backlog: limits.send_backlog.max(1),
            stalled: false,
            parameters,
            entry,
            target,
        }
    }

    /// Whether requests wait until the initiator has taken what is sent to it.
    #[inline]
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Whether there is something to do when bytes have been sent.
    #[inline]
    pub(super) fn awaits_sends(&self) -> bool {
        self.stalled || self.executor.as_ref().is_some_and(TaskExecutor::awaits_sends)
    }

    /// The stream has ended: what is left is worked off whatever waits to be sent.
    pub(super) fn unstall(&mut self) {
        self.send_backlog = usize::MAX;
    }

    /// When something is to be done even if nothing happens.
    pub(super) fn deadline(&self) -> Instant {
        let mut deadline = self.keepalive.check_at();
        if !self.functions.is_empty()
            && let Some(functions) = self.functions.deadline(self.now)
        {
            deadline = deadline.min(functions);
        }
        if let Some(gap) = self.held.deadline() {
            deadline = deadline.min(gap);
        }
        for other in [self.owed_until, self.data_check].into_iter().flatten() {
            deadline = deadline.min(other);
        }
        match self.logout {
            Logout::Asked(until) | Logout::Draining { until, .. } => deadline.min(until),
            Logout::None | Logout::Answered => deadline,
        }
    }

    /// Works off everything that there is to do now.
    ///
    /// # Errors
    /// Why the connection is to end.
    pub(super) fn pump<M: Datamover>(&mut self, mover: &mut M, now: Instant) -> Result<(), EndReason> {
        let live = u64::from(self.core.tasks.live());
        self.core.tally.busy_nanos += live * (now - self.now).as_nanos() as u64;
        self.now = now;
        let outcome = self.work(mover);
        self.entry.counters.add(&self.core.tally);
        self.core.tally = Tally::default();
        if let Some(report) = mover.report() {
            self.entry.mover.store(&report);
        }
        outcome
    }

    fn work<M: Datamover>(&mut self, mover: &mut M) -> Result<(), EndReason> {
        loop {
            loop {
                self.stalled = mover.backlog() >= self.send_backlog;
                if self.stalled {
                    break;
                }
                let Some(notification) = mover.poll_notify() else { break };
                self.notified(mover, notification)?;
            }
            let mut steps = false;
            if let Some(executor) = &mut self.executor {
                executor.note_sends(mover.sent(), mover.backlog());
                executor.submit();
                while let Some((task, step)) = executor.poll() {
                    steps = true;
                    self.core.step(mover, task, step);
                }
            }
            if !steps {
                break;
            }
        }
        if !self.functions.is_empty() {
            self.poll_functions(mover)?;
        }
        if !self.tickets.is_empty() && mover.is_drained() {
            let executor = self.executor.as_ref();
            self.tickets.retain(|ticket| executor.is_some_and(|executor| executor.busy_on(ticket.units()) != 0));
        }
        self.watch_owed(mover)?;
        if self.core.tasks.live() == 0 {
            self.data_check = None;
        } else if self.now >= *self.data_check.get_or_insert(self.now + self.target.limits.data_timeout / 4) {
            self.watch_data(mover)?;
        }
        self.poll_logout(mover)
    }

    /// Whether nothing of aborted tasks is under way, in the store or in the mover.
    pub(super) fn drained<M: Datamover>(&self, mover: &M) -> bool {
        mover.is_drained() && self.executor.as_ref().is_none_or(|executor| executor.busy(None) == 0)
    }

    #[inline]
    fn notified<M: Datamover>(&mut self, mover: &mut M, notification: Notification) -> Result<(), EndReason> {
        match notification {
            Notification::Control(bhs) => {
                if !self.core.unexpected.is_empty() {
                    self.core.unexpected.acknowledged(exp_stat_sn_of(&bhs));
                }
                self.request(mover, &bhs)
            }
            Notification::GetDataComplete { task, sink } => {
                if let Some(sink) = self.fetched(mover, task, sink)
                    && let Some(executor) = &mut self.executor
                {
                    self.core.step(mover, task, executor.data_arrived(task, sink));
                }
                Ok(())
            }
            Notification::GetDataFailed { task, sink, error } => {
                if let Some(sink) = self.fetched(mover, task, sink)
                    && let Some(executor) = &mut self.executor
                {
                    self.core.step(mover, task, executor.data_failed(task, sink, error));
                }
                Ok(())
            }
            Notification::Released(buf) => {
                if let Some(executor) = &mut self.executor {
                    executor.give(buf);
                }
                Ok(())
            }
            Notification::Malformed { bhs, error } => {
                let resendable = error == iscsi_proto::datamover::MalformedPdu::DataDigest;
                if !resendable {
                    self.pass_number(mover, &bhs)?;
                }
                self.reject(mover, &bhs, wire::malformed(&error));
                Ok(())
            }
            Notification::Terminated(error) => Err(EndReason::Transport(error)),
        }
    }

    /// A task's data phase is over. Gives the sink back to go on with, unless the task was aborted meanwhile.
    #[inline]
    pub(super) fn fetched<M: Datamover>(&mut self, mover: &mut M, handle: TaskHandle, sink: Sink) -> Option<Sink> {
        if let Some(task) = self.core.tasks.get_mut(handle) {
            task.flags = task.flags.without(Flags::FETCHING);
            if !task.flags.has(Flags::ABORTED) {
                return Some(sink);
            }
            if let Some(task) = self.core.retire(handle) {
                mover.forget_command(task.itt);
            }
        }
        self.give_sink(sink);
        None
    }

    /// Takes back the sink of a task that was aborted.
    pub(super) fn give_sink(&mut self, sink: Sink) {
        match (sink, &mut self.executor) {
            (Sink::Buf(buf), Some(executor)) => executor.give(buf),
            (Sink::Buf(_), None) => {}
            // What has landed is there, also where the blocks were unmapped meanwhile: their pages count again, or it would show with a later write. Where
            // they have no room any more it stays unseen.
            (Sink::Region(slice), _) => drop(slice.reserve_for_write()),
        }
    }

    #[inline]
    fn request<M: Datamover>(&mut self, mover: &mut M, bhs: &Bhs) -> Result<(), EndReason> {
        if bhs.0[0] & 0x3f == Opcode::ScsiCommand as u8 && bhs.ahs_len() == 0 {
            let command = match ScsiCommand::parse(bhs) {
                Ok(command) => command,
                Err(error) => return self.refuse(mover, bhs, wire::header(&error)),
            };
            return match self.turn(command.immediate, command.cmd_sn) {
                Turn::Now => {
                    self.command(mover, bhs, &command, (&command.cdb, None), true);
                    self.after_number(mover, command.immediate)
                }
                Turn::Wait => self.hold(mover, bhs, command.cmd_sn),
                Turn::Never => Ok(()),
            };
        }
        self.other_request(mover, bhs)
    }

    /// Where a request stands in the order of CmdSN; a numbered one whose turn it is has its number taken.
    #[inline]
    pub(super) fn turn(&mut self, immediate: bool, cmd_sn: Serial) -> Turn {
        if immediate {
            return Turn::Now;
        }
        match self.core.window.place(cmd_sn) {
            Place::Next => {
                self.core.window.take();
                Turn::Now
            }
            Place::Ahead => Turn::Wait,
            // RFC 7143 4.2.2.1: silently ignored.
            Place::Outside => Turn::Never,
        }
    }

    /// A number was taken: what waited for it may go on.
    #[inline]
    pub(super) fn after_number<M: Datamover>(&mut self, mover: &mut M, immediate: bool) -> Result<(), EndReason> {
        if immediate || self.held.is_empty() { Ok(()) } else { self.release_held(mover) }
    }

    #[cold]
    fn hold<M: Datamover>(&mut self, mover: &mut M, bhs: &Bhs, cmd_sn: Serial) -> Result<(), EndReason> {
        let deadline = self.now + self.target.limits.gap_timeout;
        if self.held.add(cmd_sn, *bhs, mover.control_ahs(), mover.control_data(), deadline) {
            Ok(())
        } else {
            Err(EndReason::Protocol("too much came ahead of a CmdSN that is missing"))
        }
    }

    /// Does what was held, as long as the next number is among it.
    #[cold]
    pub(super) fn release_held<M: Datamover>(&mut self, mover: &mut M) -> Result<(), EndReason> {
        while let Some(held) = self.held.take(self.core.window.expected()) {
            match held {
                Held::Plugged => self.core.window.pass(),
                Held::Request { bhs, ahs, data } => {
                    self.core.window.take();
                    self.scratch.clear();
                    self.scratch.extend_from_slice(&data);
                    self.deliver(mover, &bhs, &ahs)?;
                }
            }
        }
        self.held.head_moved(self.now + self.target.limits.gap_timeout);
        Ok(())
    }

    /// A request other than a plain SCSI command: copies what belongs to it out of the mover, which is needed for the answer.
    #[cold]
    fn other_request<M: Datamover>(&mut self, mover: &mut M, bhs: &Bhs) -> Result<(), EndReason> {
        let opcode = match bhs.opcode() {
            Ok(opcode) if opcode.is_request() => opcode,
            // RFC 7143 11.17.1: an opcode that only targets send is a protocol error.
            Ok(_) => return self.refuse_unnumbered(mover, bhs, RejectReason::ProtocolError),
            Err(error) => return self.refuse(mover, bhs, wire::header(&error)),
        };
        match opcode {
            // RFC 7143 11.16: there is no SNACK at ErrorRecoveryLevel 0.
            Opcode::SnackRequest => return self.refuse_unnumbered(mover, bhs, RejectReason::SnackReject),
            Opcode::LoginRequest | Opcode::DataOut => {
                return self.refuse_unnumbered(mover, bhs, RejectReason::ProtocolError);
            }
            _ => {}
        }
        let cmd_sn = cmd_sn_of(bhs);
        match self.turn(bhs.immediate(), cmd_sn) {
            Turn::Now => {
                self.scratch.clear();
                self.scratch.extend_from_slice(mover.control_data());
                if bhs.ahs_len() == 0 {
                    self.deliver(mover, bhs, &[])?;
                } else {
                    let ahs = mover.control_ahs().to_vec();
                    self.deliver(mover, bhs, &ahs)?;
                }
                self.after_number(mover, bhs.immediate())
            }
            Turn::Wait => self.hold(mover, bhs, cmd_sn),
            Turn::Never => Ok(()),
        }
    }

    /// Does a request whose turn it is. Its data are in `scratch`.
    fn deliver<M: Datamover>(&mut self, mover: &mut M, bhs: &Bhs, ahs: &[u8]) -> Result<(), EndReason> {
        let opcode = bhs.opcode();
        if opcode != Ok(Opcode::ScsiCommand) && self.tag_in_use(bhs.itt()) {
            self.done_unless_immediate(bhs);
            self.reject(mover, bhs, RejectReason::TaskInProgress);
            return Ok(());
        }
        match opcode {
            Ok(Opcode::ScsiCommand) => {
                match extended(bhs, ahs) {
                    Ok((command, cdb, len, read_length)) => {
                        let cdb = cdb.get(..len).unwrap_or(&cdb);
                        self.command(mover, bhs, &command, (cdb, read_length), false);
                    }
                    Err(error) => {
                        self.done_unless_immediate(bhs);
                        self.reject(mover, bhs, wire::header(&error));
                    }
                }
                return Ok(());
            }
            Ok(Opcode::NopOut) => self.nop_out(mover, bhs),
            Ok(Opcode::TaskManagementRequest) => self.function(mover, bhs)?,
            Ok(Opcode::TextRequest) => self.text_request(mover, bhs),
            Ok(Opcode::LogoutRequest) => self.logout_request(mover, bhs)?,
            _ => {}
        }
        // None of these keeps its place in the command window: what bounds them is elsewhere.
        self.done_unless_immediate(bhs);
        self.core.announce(mover);
        Ok(())
    }

    fn tag_in_use(&self, itt: u32) -> bool {
        itt != RESERVED_TAG && (self.core.tasks.find(itt).is_some() || self.functions.has(itt))
    }

    fn done_unless_immediate(&mut self, bhs: &Bhs) {
        if !bhs.immediate() {
            self.core.window.done();
        }
    }

    /// A SCSI command whose turn it is. `latest`: it is the one that the mover notified last, so that data at hand are its own.
    #[inline]
    fn command<M: Datamover>(
        &mut self,
        mover: &mut M,
        bhs: &Bhs,
        command: &ScsiCommand,
        (cdb, bidirectional_read_length): (&[u8], Option<u32>),
        latest: bool,
    ) {
        let Some(executor) = &mut self.executor else {
            // RFC 7143 4.3: a discovery session takes Text and Logout only.
            self.done_unless_immediate(bhs);
            return self.reject(mover, bhs, RejectReason::CommandNotSupported);
        };
        let mut flags = Flags::default();
        if command.immediate {
            if self.core.immediate >= self.immediate_commands {
                return self.reject(mover, bhs, RejectReason::TooManyImmediateCommands);
            }
            flags = Flags::IMMEDIATE;
        }
        if command.itt == RESERVED_TAG {
            self.done_unless_immediate(bhs);
            return self.reject(mover, bhs, RejectReason::InvalidPduField);
        }
        let vacant = if !self.functions.is_empty() && self.functions.has(command.itt) {
            Err(Refused::TagInUse)
        } else {
            self.core.tasks.vacant(command.itt)
        };
        let task = match vacant {
            Ok(task) => task,
            Err(refused) => {
                self.done_unless_immediate(bhs);
                let reason = match refused {
                    Refused::TagInUse => RejectReason::TaskInProgress,
                    Refused::Full => RejectReason::LongOperationReject,
                };
                return self.reject(mover, bhs, reason);
            }
        };
        let new = NewTask {
            task,
            lun: command.lun,
            itt: command.itt,
            cdb,
            attribute: command.attribute,
            read: command.read,
            write: command.write,
            expected_data_transfer_length: command.expected_data_transfer_length,
            bidirectional_read_length,
            direct_placement: self.direct_placement,
        };
        executor.note_sends(mover.sent(), mover.backlog());
        let data = if latest { mover.immediate_data() } else { &[] };
        if let Some(AtOnce { written, data, status }) = executor.start_at_once(&new, data) {
            // It was never in the table.
            if !command.immediate {
                self.core.window.done();
            }
            return self.core.respond(mover, (command.lun, command.itt), written, data, status);
        }
        if self.core.tasks.add(command.itt, command.lun, command.cmd_sn, flags).is_ok() {
            self.core.immediate += u16::from(command.immediate);
            self.core.step(mover, task, executor.start(new));
        }
    }

    /// Rejects a request that cannot be done, and takes its number if it has one and it is its turn, so that those behind it go on.
    #[cold]
    fn refuse<M: Datamover>(&mut self, mover: &mut M, bhs: &Bhs, reason: RejectReason) -> Result<(), EndReason> {
        self.pass_number(mover, bhs)?;
        self.reject(mover, bhs, reason);
        Ok(())
    }

    fn refuse_unnumbered<M: Datamover>(
        &mut self,
        mover: &mut M,
        bhs: &Bhs,
        reason: RejectReason,
    ) -> Result<(), EndReason> {
        self.reject(mover, bhs, reason);
        Ok(())
    }

    fn pass_number<M: Datamover>(&mut self, mover: &mut M, bhs: &Bhs) -> Result<(), EndReason> {
        let numbered = matches!(
            bhs.opcode(),
            Ok(Opcode::NopOut
                | Opcode::ScsiCommand
                | Opcode::TaskManagementRequest
                | Opcode::TextRequest
                | Opcode::LogoutRequest)
        ) && !bhs.immediate();
        if numbered && self.core.window.place(cmd_sn_of(bhs)) == Place::Next {
            self.core.window.pass();
            self.after_number(mover, false)?;
        }
        Ok(())
    }
}

/// ExpStatSN, at the same place in every request.
fn exp_stat_sn_of(bhs: &Bhs) -> Serial {
    let [.., a, b, c, d] = *bhs.0.first_chunk::<32>().unwrap_or(&[0; 32]);
    Serial(u32::from_be_bytes([a, b, c, d]))
}

/// CmdSN, at the same place in every numbered request.
pub(super) fn cmd_sn_of(bhs: &Bhs) -> Serial {
    let [.., a, b, c, d] = *bhs.0.first_chunk::<28>().unwrap_or(&[0; 28]);
    Serial(u32::from_be_bytes([a, b, c, d]))
}

/// A command with Additional Header Segments: its whole CDB, that CDB's length, and the bidirectional read length.
fn extended(bhs: &Bhs, ahs: &[u8]) -> Result<(ScsiCommand, [u8; 260], usize, Option<u32>), PduError> {
    let command = ScsiCommand::parse(bhs)?;
    let mut cdb = [0; 260];
    let mut len = 16;
    let mut read_length = None;
    if let Some(first) = cdb.first_chunk_mut::<16>() {
        *first = command.cdb;
    }
    for segment in AhsIter::new(ahs) {
        match segment? {
            Ahs::ExtendedCdb(rest) => {
                let end = 16 + rest.len();
                // RFC 7143 11.2.2.3: one such segment, and no CDB above 260 bytes.
                let place = cdb.get_mut(16..end).filter(|_| len == 16).ok_or(PduError::InvalidAhs(0))?;
                place.copy_from_slice(rest);
                len = end;
            }
            Ahs::BidirectionalReadLength(bytes) => read_length = Some(bytes),
            Ahs::Unknown(..) => return Err(PduError::InvalidAhs(0)),
        }
    }
    Ok((command, cdb, len, read_length))
}
