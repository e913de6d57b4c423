//! How what may still land on a lost path is ended when the path does not come back.

use iscsi_proto::time::Instant;

use super::Paths;
use crate::multipath::Action;
use crate::multipath::path::Standing;

/// A LOGICAL UNIT RESET that is to be sent, or is under way. It ends the tasks of all sessions, and those of the others
/// would wait for their time limits: what is under way on other paths is waited for, and nothing new goes by them.
#[derive(Debug)]
pub(super) struct Resetting {
    /// The path that it goes by.
    pub(super) over: usize,
    /// How long the others are waited for.
    pub(super) until: Instant,
    pub(super) sent: bool,
}

impl Paths {
    /// Begins to end what has been in doubt for long enough.
    pub(super) fn resolve_doubts(&mut self, now: Instant) {
        for path in 0..self.paths.len() {
            let own = &mut self.paths[path];
            if own.resolve_at.is_none_or(|at| at > now) && !own.overdue {
                continue;
            }
            let in_doubt = self.claims.is_in_doubt(path);
            let own = &mut self.paths[path];
            (own.resolve_at, own.overdue) = (None, in_doubt);
            if in_doubt {
                self.resolve(path, now);
            }
        }
        self.send_reset(now);
    }

    fn resolve(&mut self, path: usize, now: Instant) {
        let own = &self.paths[path];
        let (standing, may_reinstate) = (own.standing, !own.reinstating_failed && !own.is_up());
        let same_group = |over: &usize| {
            *over != path && self.paths[*over].is_up() && own.group.is_some() && self.paths[*over].group == own.group
        };
        let over = (0..self.paths.len()).filter(|_| may_reinstate).find(same_group);
        let next = now + self.config.doubt;
        match (over, standing) {
            // Both log in with its ISID, and would end each other's session.
            (Some(_), Standing::Opening | Standing::Reinstating) => return,
            (Some(over), _) => {
                self.paths[path].standing = Standing::Reinstating;
                self.actions.push_back(Action::Reinstate { path, over });
            }
            (None, _) if self.resetting.is_some() => return,
            (None, _) => {
                let usable = (0..self.paths.len()).find(|over| self.paths[*over].is_usable());
                let Some(over) = usable else { return };
                self.resetting = Some(Resetting { over, until: next, sent: false });
            }
        }
        let own = &mut self.paths[path];
        (own.resolve_at, own.overdue) = (Some(next), false);
    }

    /// Sends a reset that is wanted, once nothing else is under way, or has been waited for.
    fn send_reset(&mut self, now: Instant) {
        let Some(Resetting { over, until, sent: false }) = self.resetting else { return };
        if !self.paths[over].is_usable() {
            self.resetting = None;
            return;
        }
        let others = |(path, own): (usize, &super::Path)| path != over && own.is_up() && own.under_way > 0;
        if until > now && (0..).zip(&self.paths).any(others) {
            return;
        }
        for path in 0..self.paths.len() {
            self.paths[path].covered_by_reset = self.claims.is_in_doubt(path);
            self.paths[path].expects_reset |= path != over && self.paths[path].is_up();
        }
        self.resetting = Some(Resetting { over, until, sent: true });
        self.actions.push_back(Action::Reset { over });
    }

    /// A login with the ISID of a path by way of another one was accepted by the same portal group, or was not.
    pub fn reinstated(&mut self, path: usize, done: bool, now: Instant) {
        let own = &mut self.paths[path];
        if own.standing == Standing::Reinstating {
            own.standing = Standing::Down { next: now };
        }
        if done {
            self.claims.resolve(path);
        } else {
            (own.reinstating_failed, own.overdue) = (true, true);
        }
        self.go_on(now);
    }

    /// A LOGICAL UNIT RESET was answered "function complete", or was not.
    pub fn reset_done(&mut self, done: bool, now: Instant) {
        self.resetting = None;
        for path in 0..self.paths.len() {
            if core::mem::take(&mut self.paths[path].covered_by_reset) && done {
                self.claims.resolve(path);
            }
        }
        self.go_on(now);
    }
}
