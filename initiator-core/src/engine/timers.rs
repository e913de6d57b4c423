//! What is due when: deadlines of commands and of control requests, back-off, keepalive.

use core::time::Duration;

use iscsi_proto::datamover::Datamover;
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;

use super::slots::{Moved, State};
use super::{Engine, Flow, SEND_BACKLOG};
use crate::application::Application;
use crate::command::{Failure, WaitsFor};
use crate::connection::ConnectionEnd;

/// How often a command is given its time again while data move.
const MOST_SPARED: u8 = 9;
/// How long ago a command with data was answered that still shows that the target gets on: the next may not have begun
/// to move, or moves where the mover cannot see it.
pub(super) const OF_LATE: Duration = Duration::from_secs(10);

impl<A: Application> Engine<A> {
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let flow = match self.flow {
            Flow::Down | Flow::Over => return None,
            Flow::Open => None,
            Flow::Draining { until, .. } | Flow::LoggingOut { until, .. } => Some(until),
        };
        let back_off = if self.slots.backing_off() == 0 {
            None
        } else {
            self.slots
                .iter()
                .filter_map(|(_, task)| if let State::BackOff(at) = task.state { Some(at) } else { None })
                .min()
        };
        let commands = self.earliest_deadline.filter(|_| self.slots.in_flight() > 0);
        let waiting = self.given_up_waiting().map(|(_, at)| at);
        let controls = [self.controls.deadline(), self.controls_given_up_waiting()];
        [flow, back_off, commands, waiting, self.keepalive_check, self.gap_until]
            .into_iter()
            .chain(controls)
            .flatten()
            .min()
    }

    /// The command that has waited longest to be sent, and when it has waited too long. What is under way has limits of
    /// its own, and what waits for it waits no longer than those.
    fn given_up_waiting(&self) -> Option<(u16, Instant)> {
        if self.flow != Flow::Open || self.slots.in_flight() > 0 {
            return None;
        }
        let (index, since) = self.slots.longest_waiting()?;
        let limit = Some(self.timeouts.standstill).filter(|limit| !limit.is_zero())?;
        Some((index, since.max(self.last_moved) + limit))
    }

    /// Ends what has waited too long to be sent.
    fn end_waiting<M: Datamover>(&mut self, mover: &M, now: Instant) {
        while let Some((index, _)) = self.given_up_waiting().filter(|(_, at)| *at <= now) {
            let waits_for = if !self.window_is_open() {
                WaitsFor::Window
            } else if mover.backlog() >= SEND_BACKLOG {
                WaitsFor::Transport
            } else {
                WaitsFor::Order
            };
            self.finish(index, Err(Failure::NotSent(waits_for)), Moved::NOTHING, now);
        }
    }

    pub(crate) fn handle_timeout<M: Datamover>(&mut self, mover: &mut M, now: Instant) {
        if matches!(self.flow, Flow::Down | Flow::Over) {
            return;
        }
        if let Flow::LoggingOut { until, asked_by_target } = self.flow
            && until <= now
        {
            // What the target asked for is the end of the connection, not that of the session.
            let end = if asked_by_target { ConnectionEnd::LogoutAskedByTarget } else { ConnectionEnd::LogoutTimeout };
            self.fail(end);
            return;
        }
        if self.slots.backing_off() > 0 {
            for index in 0..self.slots.size() {
                if let Some(task) = self.slots.get_mut(index)
                    && matches!(task.state, State::BackOff(at) if at <= now)
                {
                    self.slots.set_state(index, State::Ready);
                }
            }
        }
        if self.earliest_deadline.is_some_and(|at| at <= now) {
            self.abort_overdue(mover, now);
        }
        self.end_waiting(mover, now);
        self.control_timeouts(mover, now);
        self.check_gap(now);
        self.keep_alive(mover, now);
    }

    /// Looks which commands under way have moved data since the last look. Commands that were sent one after the other
    /// are overdue one after the other: what was found of late holds for all of them.
    fn look_what_moves<M: Datamover>(&mut self, mover: &M, now: Instant) {
        let mut first = self.last_moving.filter(|(_, at)| now - *at <= OF_LATE);
        for index in 0..self.slots.size() {
            let handle = self.slots.handle(index);
            let Some(task) = self.slots.get_mut(index).filter(|task| task.state == State::InFlight) else { continue };
            let moved = mover.moved(handle);
            if moved > core::mem::replace(&mut task.moved, moved) {
                first = first.filter(|(first, _)| *first <= task.cmd_sn).or(Some((task.cmd_sn, now)));
            }
        }
        self.last_moving = first;
    }

    /// Whether commands get on that a command sent with this CmdSN waits behind, or itself. Those sent after it show
    /// nothing: the target may have lost it.
    fn gets_on(&self, cmd_sn: Serial, now: Instant) -> bool {
        self.last_moving.is_some_and(|(first, at)| first <= cmd_sn && now - at <= OF_LATE)
            || self.served.has_one_before(cmd_sn, now, OF_LATE)
    }

    fn abort_overdue<M: Datamover>(&mut self, mover: &mut M, now: Instant) {
        let mut earliest: Option<Instant> = None;
        self.look_what_moves(mover, now);
        for index in 0..self.slots.size() {
            let Some(task) = self.slots.get_mut(index) else { continue };
            if task.state != State::InFlight {
                continue;
            }
            let mut deadline = task.deadline;
            if deadline <= now && task.command.timeout.is_none() && task.spared < MOST_SPARED {
                let cmd_sn = task.cmd_sn;
                if self.gets_on(cmd_sn, now) {
                    deadline = now + self.timeouts.command;
                    if let Some(task) = self.slots.get_mut(index) {
                        (task.deadline, task.spared) = (deadline, task.spared + 1);
                    }
                }
            }
            if deadline <= now {
                if self.send_abort(mover, index, now) {
                    continue;
                }
                if !self.may_request() {
                    return self.fail(ConnectionEnd::CommandStuck);
                }
                // All places for task management are taken: it is this one's turn once they have had their time.
                deadline = now + self.timeouts.task_management;
            }
            earliest = Some(earliest.map_or(deadline, |at| at.min(deadline)));
        }
        self.earliest_deadline = earliest;
    }

    /// The check is lazy: data that come do not move the timer, the timer looks when they came.
    fn keep_alive<M: Datamover>(&mut self, mover: &mut M, now: Instant) {
        if self.keepalive_check.is_none_or(|at| at > now) || self.flow == Flow::Over {
            return;
        }
        let due = self.last_sign + self.timeouts.keepalive_interval;
        if due > now {
            self.keepalive_check = Some(due);
            return;
        }
        self.keepalive_check = Some(now + self.timeouts.keepalive_interval);
        if self.controls.ping.is_none() {
            self.send_ping(mover, now);
        }
    }
}
