//! The session at ErrorRecoveryLevel 0: commands, sequence numbers, task management, keepalive, logout (RFC 7143 4, 7,
//! 11).
//!
//! An [`Engine`] outlives its connections. While one stands, [`InitiatorConnection`](crate::InitiatorConnection) hands
//! it the mover's notifications and time; between two, its commands wait, and those that were under way are made ready
//! to be sent again where that is allowed ([`Repeat`](crate::command::Repeat)).

mod control;
mod extent;
mod guard;
mod probe;
mod receive;
mod served;
mod slots;
mod start;
mod timers;

use alloc::vec::Vec;
use core::time::Duration;

use iscsi_memory::{Buf, Payload};
use iscsi_proto::datamover::{Datamover, MoverReport, SendCommand, SequenceNumbers, TaskHandle};
use iscsi_proto::pdu::{ScsiCommand, emit_bidirectional_read_length, emit_extended_cdb};
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;
use iscsi_proto::unexpected::UnexpectedPdus;

use crate::application::{Application, Counters, Event};
use crate::command::{Command, Completion, Failure, Outcome};
use crate::config::{Limits, Timeouts};
use crate::connection::ConnectionEnd;
use crate::identity::KnownDisk;
use crate::jitter::Jitter;
use crate::recovery::Service;

use control::Controls;
use extent::{Claim, Effect, Extent};
use guard::{Flushed, Guards};
use slots::{After, ERRANDS, Errand, Moved, Slots, State, Task};

/// Bytes queued in the mover above which no more commands are handed to it.
const SEND_BACKLOG: usize = 4 << 20;

/// How the session stands towards sending commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// No connection, or one in login.
    Down,
    /// Full Feature Phase.
    Open,
    /// Commands under way are waited for until then, and then a logout is sent.
    Draining { until: Instant, asked_by_target: bool },
    /// The logout is sent.
    LoggingOut { until: Instant, asked_by_target: bool },
    /// The connection is over, for this reason.
    Over,
}

/// A session's commands and numbers. See the module's page.
#[derive(Debug)]
pub struct Engine<A> {
    app: A,
    timeouts: Timeouts,
    limits: Limits,
    slots: Slots,
    guards: Guards,
    controls: Controls,
    flow: Flow,
    logout_wanted: bool,
    cmd_sn: Serial,
    exp_cmd_sn: Serial,
    max_cmd_sn: Serial,
    exp_stat_sn: Serial,
    /// Whether a status has come over this connection.
    has_status: bool,
    /// Statuses behind a gap that have come: bit n stands for ExpStatSN + 1 + n.
    ahead: u64,
    /// When the gap has to be filled.
    gap_until: Option<Instant>,
    /// PDUs for immediate delivery that the target has not retired.
    unexpected: UnexpectedPdus,
    /// A lower bound of the deadlines of all commands under way; looked at anew when it passes.
    earliest_deadline: Option<Instant>,
    /// When the peer last showed that it is there: bytes came, or went.
    last_sign: Instant,
    /// When the peer's transport was last seen to have acknowledged data. It did so at any time since the look before.
    last_acknowledged: Instant,
    /// When commands last got on: one was sent, or the target was done with one.
    last_moved: Instant,
    /// What was answered of late after it had moved data.
    served: served::Served,
    /// The first command whose data were found to have moved, by its CmdSN, and when.
    last_moving: Option<(Serial, Instant)>,
    keepalive_check: Option<Instant>,
    /// Why the connection is to end, once that is known.
    end: Option<ConnectionEnd>,
    time2wait: Option<Duration>,
    counters: Counters,
    /// What the connection has done, or the last one did.
    service: Service,
    /// Commands handed over so far.
    issued: u64,
    ahs: Vec<u8>,
    jitter: Jitter,
}

/// The numbers with which the Full Feature Phase begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StartNumbers {
    pub(crate) cmd_sn: Serial,
    pub(crate) exp_cmd_sn: Serial,
    pub(crate) max_cmd_sn: Serial,
    pub(crate) exp_stat_sn: Serial,
    /// MaxOutstandingUnexpectedPDUs of the target; 0 is no limit.
    pub(crate) unexpected: u32,
}

impl<A: Application> Engine<A> {
    /// A session that has had no connection yet.
    #[must_use]
    pub fn new(app: A, timeouts: Timeouts, limits: Limits, seed: u64) -> Self {
        let limits = Limits { commands: limits.commands.clamp(1, 4096), ..limits };
        Self {
            app,
            timeouts,
            limits,
            slots: Slots::new(limits.commands + ERRANDS),
            guards: Guards::default(),
            controls: Controls::default(),
            flow: Flow::Down,
            logout_wanted: false,
            cmd_sn: Serial(1),
            exp_cmd_sn: Serial(1),
            max_cmd_sn: Serial(0),
            exp_stat_sn: Serial(0),
            has_status: false,
            ahead: 0,
            gap_until: None,
            unexpected: UnexpectedPdus::default(),
            earliest_deadline: None,
            last_sign: Instant::ZERO,
            last_acknowledged: Instant::ZERO,
            last_moved: Instant::ZERO,
            served: served::Served::default(),
            last_moving: None,
            keepalive_check: None,
            end: None,
            time2wait: None,
            counters: Counters::default(),
            service: Service::Idle,
            issued: 0,
            ahs: Vec::with_capacity(64),
            jitter: Jitter::new(seed),
        }
    }

    /// What uses the session.
    pub fn app(&mut self) -> &mut A {
        &mut self.app
    }

    /// Gives the application back. Commands still in the table are completed first.
    pub fn into_app(mut self, now: Instant) -> A {
        self.fail_all(Failure::SessionEnded, now);
        self.app
    }

    /// A guard for a disk that was opened before this session, as
    /// [`Control::Guard`](crate::application::Control::Guard) makes one: the unit is asked at the first login already.
    /// Gives its number.
    pub fn guard(&mut self, known: KnownDisk) -> u32 {
        let KnownDisk { lun, identity, volatile } = known;
        self.guards.add(lun, identity, volatile, false)
    }

    /// Whether no command is in the table.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// Figures.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What its connection has done for it, or the last one did if there is none.
    #[must_use]
    pub const fn service(&self) -> Service {
        self.service
    }

    pub(crate) fn start<M: Datamover>(&mut self, mover: &mut M, numbers: StartNumbers, now: Instant) {
        self.cmd_sn = numbers.cmd_sn;
        self.exp_cmd_sn = numbers.exp_cmd_sn;
        self.max_cmd_sn = numbers.max_cmd_sn;
        self.exp_stat_sn = numbers.exp_stat_sn;
        self.has_status = false;
        self.ahead = 0;
        self.gap_until = None;
        self.unexpected = UnexpectedPdus::new(numbers.unexpected);
        self.counters.logins += 1;
        self.service = if self.slots.is_empty() { Service::Idle } else { Service::Nothing };
        self.guards.reconnected();
        self.flow = Flow::Open;
        self.end = None;
        self.time2wait = None;
        self.last_sign = now;
        self.last_moved = now;
        self.served = served::Served::default();
        self.last_moving = None;
        self.controls.begin_waiting(now);
        self.earliest_deadline = None;
        self.keepalive_check =
            (!self.timeouts.keepalive_interval.is_zero()).then(|| now + self.timeouts.keepalive_interval);
        self.publish(mover);
    }

    /// Bytes came, or were taken by the transport: the peer is there, and what was asked of it may stand behind them
    /// (RFC 7143 11.18).
    #[inline]
    pub(crate) fn sign_of_life(&mut self, now: Instant) {
        self.last_sign = now;
    }

    /// The peer's transport has acknowledged data since this was last looked at, which may be long ago: they do not put
    /// off the question whether the peer is there, but what comes of it when no answer does.
    pub(crate) fn acknowledged(&mut self, now: Instant) {
        self.last_acknowledged = now;
    }

    fn publish<M: Datamover>(&self, mover: &mut M) {
        mover.set_sequence(SequenceNumbers { exp_stat_sn: self.exp_stat_sn, ..SequenceNumbers::default() });
    }

    /// The connection is to end for this reason; the first one counts.
    fn fail(&mut self, end: ConnectionEnd) {
        self.end.get_or_insert(end);
        self.flow = Flow::Over;
    }

    pub(crate) fn take_end(&mut self) -> Option<ConnectionEnd> {
        self.end.take()
    }

    /// Time2Wait that the target asked for with the end of the last connection.
    pub(crate) fn take_time2wait(&mut self) -> Option<Duration> {
        self.time2wait.take()
    }

    /// Sends what may be sent: control requests, then commands as far as the target's window and the mover's backlog
    /// allow.
    pub(crate) fn pump<M: Datamover>(&mut self, mover: &mut M, now: Instant) {
        while let Some(token) = self.app.next_abandoned() {
            self.abandon(token, now);
        }
        while self.flow == Flow::Open
            && let Some(index) = self.slots.wants_abort()
            && self.ask_to_abort(mover, index, now)
        {}
        self.ask_who_they_are(now);
        self.start_units(now);
        // RFC 7143 4.2.2.1: a non-immediate command is sent only with CmdSN at most MaxCmdSN.
        while self.flow == Flow::Open
            && self.window_is_open()
            && mover.backlog() < SEND_BACKLOG
            && (self.send_next(mover, now) || self.pull(now))
        {
            self.ask_who_they_are(now);
        }
        // Where nothing is under way and nothing can be sent, the application's commands wait here: their time counts.
        let is_full = !self.window_is_open() || mover.backlog() >= SEND_BACKLOG;
        while is_full && self.flow == Flow::Open && self.slots.in_flight() == 0 && self.pull(now) {}
        // Last, so that commands given before a logout go before it.
        self.pump_controls(mover, now);
    }

    /// Whether a command that is numbered may be sent.
    fn window_is_open(&self) -> bool {
        self.cmd_sn.distance(self.max_cmd_sn) >= 0
    }

    /// Takes a command from the application; false when it has none or the table is full.
    fn pull(&mut self, now: Instant) -> bool {
        while self.slots.has_room() && !self.logout_wanted {
            let Some(command) = self.app.next_command(now) else { return false };
            let length = |len: usize| u32::try_from(len).ok();
            let out = command.data_out.as_ref().map_or(0, Payload::len);
            let (Some(expected_out), Some(expected_in)) =
                (length(out), length(command.data_in.as_ref().map_or(0, |sink| sink.len())))
            else {
                self.refuse(command, Failure::Invalid("its data are longer than 4 GiB"), now);
                continue;
            };
            if let Some(failure) = self.guards.refuses(command.guard, command.replay) {
                self.refuse(command, failure, now);
                continue;
            }
            self.enter(command, expected_out, expected_in, None, now);
            return true;
        }
        false
    }

    /// A command that is to be sent enters the table. The caller has seen that there is room.
    #[inline(always)]
    fn enter(&mut self, command: Command, expected_out: u32, expected_in: u32, errand: Option<Errand>, now: Instant) {
        let claim = Claim::of(&command, self.issued);
        self.issued += 1;
        let task = self.slots.insert(command, claim, errand, now);
        (task.expected_out, task.expected_in) = (expected_out, expected_in);
    }

    /// Sends the next command that waits and may be sent; false when there is none.
    fn send_next<M: Datamover>(&mut self, mover: &mut M, now: Instant) -> bool {
        let Some((handle, task)) = self.slots.start(&self.guards) else { return false };
        self.last_moved = now;
        let command = &mut task.command;
        task.cmd_sn = self.cmd_sn;
        (task.moved, task.spared) = (0, 0);
        task.deadline = now + command.timeout.unwrap_or(self.timeouts.command);
        if task.attempts > 0 {
            self.counters.repeated += 1;
        }
        task.attempts = task.attempts.saturating_add(1);
        self.earliest_deadline = Some(self.earliest_deadline.map_or(task.deadline, |at| at.min(task.deadline)));
        if task.claim.effect == Effect::Flush {
            self.guards.flush_sent(command.guard, task.claim.issue);
        }
        let (data_out, data_in) = (command.data_out.take(), command.data_in.take());
        match &data_out {
            Some(Payload::Buf(buf)) => task.out_address = buf.as_ptr() as usize,
            // Lent memory can be kept by a second handle; a buffer comes back from the mover.
            Some(Payload::Region(slice)) => command.data_out = Some(Payload::Region(slice.clone())),
            None => {}
        }
        let (write, read) = (task.expected_out > 0, task.expected_in > 0);
        self.ahs.clear();
        emit_extended_cdb(&mut self.ahs, command.cdb.extension());
        if read && write {
            emit_bidirectional_read_length(&mut self.ahs, task.expected_in);
        }
        let bhs = ScsiCommand {
            immediate: false,
            is_final: true,
            read,
            write,
            attribute: command.attribute,
            priority: 0,
            lun: u64::from_be_bytes(command.lun.to_bytes()),
            itt: handle.to_itt(),
            expected_data_transfer_length: if write { task.expected_out } else { task.expected_in },
            cmd_sn: self.cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            cdb: command.cdb.pdu_field(),
        }
        .emit();
        mover.send_command(SendCommand { task: handle, bhs, ahs: &self.ahs, data_out, data_in });
        self.cmd_sn = self.cmd_sn.next();
        true
    }

    /// A command leaves the table with its outcome. Its buffers are in the task.
    fn finish(&mut self, index: u16, result: Result<Outcome, Failure>, moved: Moved, now: Instant) {
        let Some(task) = self.slots.get_mut(index) else { return };
        let (errand, lun) = (task.errand, task.command.lun);
        let (data_out, data_in) = (task.command.data_out.take(), task.command.data_in.take());
        match errand {
            None => self.end(index, result, (data_out, data_in), moved, now),
            Some(Errand::Start) => {
                self.slots.remove(index);
                self.start_answered(lun);
            }
            Some(Errand::Ask(guard, question)) => {
                self.slots.remove(index);
                let data = match &data_in {
                    Some(Payload::Buf(buf)) => buf.get(..moved.data_in as usize).unwrap_or_default(),
                    _ => &[],
                };
                self.told((guard, question), result, data, now);
            }
        }
    }

    /// A command of the application's leaves the table with its outcome and these buffers.
    #[inline]
    fn end(
        &mut self,
        index: u16,
        mut result: Result<Outcome, Failure>,
        (data_out, data_in): (Option<Payload>, Option<Payload>),
        moved: Moved,
        now: Instant,
    ) {
        let Some(task) = self.slots.get_mut(index) else { return };
        let token = task.command.token;
        if let Some(guard) = task.command.guard
            && task.claim.effect != Effect::Nothing
        {
            let (claim, replay) = (task.claim, task.command.replay);
            if let Err(failure) = self.note(guard, &claim, replay, &result) {
                result = Err(failure);
            }
        }
        self.slots.remove(index);
        let Moved { data_in: data_in_len, data_out: data_out_len } = moved;
        self.complete(Completion { token, result, data_out, data_in, data_in_len, data_out_len }, now);
    }

    /// A command ends that has never been in the table.
    fn refuse(&mut self, command: Command, failure: Failure, now: Instant) {
        let Command { token, data_out, data_in, .. } = command;
        self.complete(Completion::failed(token, failure, data_out, data_in), now);
    }

    fn complete(&mut self, completion: Completion, now: Instant) {
        self.counters.commands += 1;
        if completion.result.is_ok() {
            self.service = Service::Answers;
        } else if self.service == Service::Nothing && self.flow != Flow::Down && self.slots.is_empty() {
            self.service = Service::Idle;
        }
        self.app.complete(completion, now);
    }

    /// What a finished command means for what its disk holds, and what its result is instead in the light of that: a
    /// flush is not good for what was lost before.
    fn note(
        &mut self,
        guard: u32,
        claim: &Claim,
        replay: bool,
        result: &Result<Outcome, Failure>,
    ) -> Result<(), Failure> {
        let good = result.as_ref().is_ok_and(Outcome::is_good);
        match (claim.effect, claim.extent) {
            (Effect::Flush, _) => {
                let end = match result {
                    Ok(_) if good => Flushed::Good,
                    Ok(outcome) if outcome.may_have_run() => Flushed::Failed,
                    _ => Flushed::NotRun,
                };
                let nothing_lost = self.guards.flush_done(guard, claim.issue, end, self.issued);
                if end == Flushed::Failed {
                    self.app.event(Event::LostWrites { guard, lun: claim.lun });
                }
                if good && !nothing_lost {
                    return Err(Failure::LostWrites);
                }
            }
            (Effect::Change, Extent::Blocks { lba, blocks }) if good => {
                let blocks = lba..lba.saturating_add(blocks);
                self.guards.acknowledged(guard, blocks.clone(), claim.issue);
                if replay {
                    self.guards.replayed(guard, &blocks);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes a command's buffers back from the mover. Returns how many bytes it moved.
    fn reclaim<M: Datamover>(&mut self, mover: &mut M, handle: TaskHandle) -> Moved {
        let buffers = mover.deallocate_task_resources(handle);
        if let Some(task) = self.slots.get_mut(handle.slot) {
            task.take_back(buffers.data_out, buffers.data_in);
        }
        Moved { data_in: buffers.data_in_len, data_out: buffers.data_out_len }
    }

    /// The target is done with a command whose buffers have been reclaimed.
    fn settle(&mut self, index: u16, after: After, now: Instant) {
        let Some(task) = self.slots.get_mut(index) else { return };
        self.last_moved = now;
        if task.expected_out > 0 && task.command.data_out.is_none() {
            return self.slots.hold(index, after);
        }
        // What was given up while its data were still in the queue is not sent again.
        let refused = |guards: &Guards, task: &Task| {
            guards.refuses(task.command.guard, task.command.replay).or(task.abandoned.then_some(Failure::Aborted))
        };
        match after {
            After::Finish(result, moved) => self.finish(index, result, moved, now),
            _ if let Some(failure) = refused(&self.guards, task) => {
                self.finish(index, Err(failure), Moved::NOTHING, now);
            }
            After::Again => self.slots.set_state(index, State::Ready),
            After::Later(at) => self.slots.set_state(index, State::BackOff(at)),
            After::Started => self.slots.set_state(index, State::Starting),
        }
    }

    /// A buffer comes out of the mover's send queue.
    pub(crate) fn released(&mut self, buf: Buf, now: Instant) {
        let address = buf.as_ptr() as usize;
        let mine = |task: &Task| {
            task.out_address == address
                && task.expected_out > 0
                && task.command.data_out.is_none()
                && !task.state.is_waiting()
        };
        let Some((index, task)) = self.slots.iter_mut().find(|(_, task)| mine(task)) else { return };
        task.command.data_out = Some(Payload::Buf(buf));
        if let Some(after) = self.slots.unhold(index) {
            self.settle(index, after, now);
        }
    }

    fn abandon(&mut self, token: u64, now: Instant) {
        let found = self.slots.iter_mut().find(|(_, task)| task.command.token == token);
        let Some((index, task)) = found else { return };
        if task.state.is_waiting() {
            self.finish(index, Err(Failure::Aborted), Moved::NOTHING, now);
        } else {
            self.slots.give_up(index);
        }
    }

    /// The connection is over: what was under way is made ready again, or completed where it must not be repeated.
    pub(crate) fn connection_lost<M: Datamover>(&mut self, mover: &mut M, now: Instant) {
        self.flow = Flow::Down;
        self.keepalive_check = None;
        self.earliest_deadline = None;
        self.fail_controls();
        self.guards.disconnected();
        for index in 0..self.slots.size() {
            let Some(task) = self.slots.get_mut(index) else { continue };
            let (state, abandoned) = (task.state, task.abandoned);
            let repeatable = task.command.repeat.allows(&task.command.cdb);
            if task.errand.is_some() && state.is_waiting() {
                self.slots.discard(index);
                continue;
            }
            if state == State::Starting {
                self.slots.set_state(index, State::Ready);
            }
            if !matches!(state, State::InFlight | State::Aborting | State::Held) {
                continue;
            }
            let handle = self.slots.handle(index);
            self.reclaim(mover, handle);
            let Some(task) = self.slots.get_mut(index) else { continue };
            // A buffer that a device does not let go of is gone.
            let lost = task.expected_out > 0 && task.command.data_out.is_none()
                || task.expected_in > 0 && task.command.data_in.is_none();
            if task.errand.is_some() {
                self.slots.discard(index);
                continue;
            }
            match state {
                State::Held => {
                    let (result, moved) = match self.slots.unhold(index) {
                        Some(After::Finish(result, moved)) => (result, moved),
                        _ => (Err(Failure::Aborted), Moved::NOTHING),
                    };
                    self.finish(index, result, moved, now);
                }
                _ if abandoned => self.finish(index, Err(Failure::Aborted), Moved::NOTHING, now),
                State::Aborting => self.finish(index, Err(Failure::TimedOut), Moved::NOTHING, now),
                _ if repeatable && !lost => self.slots.set_state(index, State::Ready),
                _ => self.finish(index, Err(Failure::NotRepeatable), Moved::NOTHING, now),
            }
        }
        self.app.flush(&self.counters);
    }

    /// The session is over: every command that it holds, and every one that its application still has, completes with
    /// `failure`.
    pub fn fail_all(&mut self, failure: Failure, now: Instant) {
        for index in 0..self.slots.size() {
            self.finish(index, Err(failure), Moved::NOTHING, now);
        }
        while let Some(command) = self.app.next_command(now) {
            self.refuse(command, failure, now);
        }
        self.fail_waiting_control(failure);
        self.app.flush(&self.counters);
    }

    /// Tells the application what happened. `mover`: the figures of the connection's mover, where it has some.
    #[inline]
    pub(crate) fn flush(&mut self, mover: Option<MoverReport>) {
        self.counters.mover = mover;
        self.app.flush(&self.counters);
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
