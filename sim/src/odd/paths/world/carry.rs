//! Carries out what the paths want done, and tells them what became of it.

use std::time::Duration;

use initiator_core::application::{Control, ControlAnswer};
use initiator_core::command::{Command, Completion, Failure};
use initiator_core::multipath::{Access, Action, Outcome};
use iscsi_memory::Payload;
use iscsi_proto::pdu::{TaskFunction, TaskResponse};
use scsi_proto::Lun;
use scsi_proto::command::test_unit_ready;

use super::happen::{ASK_ACCESS, PROVE, QUESTION, access_of, access_question, question};
use super::{Stage, World};

impl World {
    /// Gives the paths their turn.
    pub(super) fn run_paths(&mut self) -> bool {
        let now = self.now;
        if self.work.is_leaving() {
            return false;
        }
        let mut any = false;
        if self.paths.poll_timeout().is_some_and(|at| at <= now) {
            self.paths.handle_timeout(now);
            if self.paths.poll_timeout().is_some_and(|at| at <= now) {
                self.verdict.broken("the timeout of the paths does not move on".into());
            }
            any = true;
        }
        while let Some(action) = self.paths.poll() {
            any = true;
            self.trace.event(format_args!("{action:?}"));
            self.act(action);
        }
        any
    }

    fn guard(&self, path: usize) -> Option<u32> {
        match self.ways[path].line.as_ref()?.stage {
            Stage::Up { guard } => Some(guard),
            _ => None,
        }
    }

    fn act(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::Send { operation, path } => {
                let Some(guard) = self.guard(path) else {
                    // Its session has ended meanwhile.
                    return self.paths.ended(operation, Outcome::PathLost, now);
                };
                if !self.paths.access(path).is_active() {
                    self.verdict.broken(format!("operation {operation} goes by a port that is not active"));
                }
                self.ways[path].used = true;
                let command = self.work.command(operation);
                if let (Some(app), Some(command)) = (self.app(path), command) {
                    app.command(Command { guard: Some(guard), ..command });
                }
            }
            Action::End { operation, verdict } => {
                if self.work.end(operation, verdict, &self.disk) {
                    for lba in self.paths.take_lost(now).into_iter().flatten() {
                        self.work.lose(lba, &self.disk);
                    }
                }
            }
            Action::Connect { path } => self.connect(path),
            Action::AskAccess { path } => self.put(path, question(ASK_ACCESS, access_question())),
            Action::Prove { path } => self.put(path, Command::new(PROVE, Lun::ZERO, test_unit_ready())),
            Action::Clear { path } => {
                if let (Some(guard), Some(app)) = (self.guard(path), self.app(path)) {
                    app.control(Control::TakeLost { id: 2, guard });
                }
            }
            Action::Reinstate { path, over } => {
                if self.plan.groups[path] != self.plan.groups[over] {
                    self.verdict.broken(format!("path {path} is reinstated by way of {over}"));
                }
                let wait = Duration::from_micros(self.rng.magnitude(1000, 2_000_000));
                let reaches = now >= self.down_until && now >= self.ways[over].away_until;
                let accepted = reaches && !self.rng.permille(self.plan.refused);
                self.ways[path].reinstated_at = Some((now + wait, accepted));
            }
            Action::Reset { over } => {
                let control =
                    Control::TaskManagement { id: 3, function: TaskFunction::LogicalUnitReset, lun: Lun::ZERO };
                if self.guard(over).is_none() {
                    return self.paths.reset_done(false, now);
                }
                self.resetting = Some(over);
                if let Some(app) = self.app(over) {
                    app.control(control);
                }
            }
        }
    }

    fn put(&mut self, path: usize, command: Command) {
        if let Some(app) = self.app(path) {
            app.command(command);
        }
    }

    /// A command of a path's session has ended.
    pub(super) fn completed(&mut self, path: usize, completion: Completion, over: bool) {
        let now = self.now;
        let Completion { token, result, data_in, data_in_len, .. } = completion;
        self.trace.event(format_args!("path {path} completes {token}: {result:?}"));
        let data = match &data_in {
            Some(Payload::Buf(buf)) => &buf[..data_in_len as usize],
            _ => &[],
        };
        match token {
            ASK_ACCESS => {
                let access = match &result {
                    Ok(outcome) if outcome.is_good() => Some(access_of(data, self.plan.groups[path] as usize)),
                    Ok(_) => Some(Access::Optimized),
                    Err(_) => None,
                };
                self.paths.told(path, access, now);
            }
            // An abort that was answered proves as much.
            PROVE if result.is_ok() || result == Err(Failure::TimedOut) && !over => self.paths.proved(path, now),
            PROVE => {
                self.paths.lost(path, now);
                self.leave(path);
            }
            token if token < QUESTION => {
                self.work.compared(token, &result);
                let outcome = Outcome::of(&result, over);
                if outcome == Outcome::Done {
                    self.work.brought(token, data);
                }
                self.paths.ended(token, outcome, now);
            }
            _ => {}
        }
    }

    pub(super) fn answered(&mut self, path: usize, answer: ControlAnswer) {
        let now = self.now;
        self.trace.event(format_args!("path {path}: {answer:?}"));
        match answer {
            ControlAnswer::Lost(_) => self.paths.cleared(path, now),
            ControlAnswer::TaskManagement(response) if self.resetting.take() == Some(path) => {
                self.paths.reset_done(response == TaskResponse::Complete, now);
            }
            ControlAnswer::Failed(_) if self.resetting.take() == Some(path) => self.paths.reset_done(false, now),
            _ => {}
        }
    }
}
