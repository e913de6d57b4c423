//! The decisions.

mod resolving;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

use iscsi_proto::time::Instant;
use scsi_proto::AdditionalSense;

use super::durability::{Durability, Session};
use super::order::{Claims, HeldUp};
use super::path::{Path, Standing};
use super::{Access, Action, Found, Kind, MultipathConfig, Operation, Outcome, PathPolicy, Power, Verdict};
use crate::identity::{Difference, Identity};
use resolving::Resetting;

/// A target that ends each connection at once is not asked without a pause.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// Sent in a session.
    On(Session),
}

#[derive(Debug)]
struct Running {
    operation: Operation,
    state: State,
    /// Nobody waits for it.
    abandoned: bool,
    /// Since when it goes on without a path that takes it.
    since: Option<Instant>,
    /// Paths that have failed it without being lost.
    failed_on: Vec<usize>,
}

/// All paths to a disk, and the operations on it. See the module's page.
///
/// ```
/// use initiator_core::Identity;
/// use initiator_core::multipath::{
///     Access, Action, Found, Kind, MultipathConfig, Operation, Outcome, Paths, Power, Verdict,
/// };
/// use iscsi_proto::time::Instant;
///
/// let now = Instant::ZERO;
/// let mut paths = Paths::new(MultipathConfig::default(), 1, now);
/// paths.handle_timeout(now);
/// assert_eq!(paths.poll(), Some(Action::Connect { path: 0 }));
/// let identity = Identity { serial: Some("A1".into()), block_size: 512, blocks: 2048, ..Identity::default() };
/// let found = Found { identity, access: Access::Optimized, group: Some(1), power: Power::On, volatile: true };
/// paths.opened(0, found, now).unwrap();
/// let operation = paths.submit(Operation { kind: Kind::Read, blocks: 0..8 }, now);
/// assert_eq!(paths.poll(), Some(Action::Send { operation, path: 0 }));
/// paths.ended(operation, Outcome::Done, now);
/// assert_eq!(paths.poll(), Some(Action::End { operation, verdict: Verdict::Done }));
/// ```
#[derive(Debug)]
pub struct Paths {
    config: MultipathConfig,
    paths: Vec<Path>,
    /// What the first path that was up led to, and the most blocks that it has had.
    identity: Option<Identity>,
    /// Whether it may lose with its power what it acknowledged and did not flush.
    volatile: bool,
    running: BTreeMap<u64, Running>,
    /// Operations that wait, the oldest first.
    waiting: BTreeSet<u64>,
    next: u64,
    claims: Claims,
    durability: Durability,
    turn: usize,
    power_ons: u64,
    changes: u64,
    resetting: Option<Resetting>,
    actions: VecDeque<Action>,
}

impl Paths {
    /// So many paths, none of which is up. [`handle_timeout`](Self::handle_timeout) at `now` brings them up.
    #[must_use]
    pub fn new(config: MultipathConfig, count: usize, now: Instant) -> Self {
        Self {
            config,
            paths: (0..count).map(|_| Path::new(now)).collect(),
            identity: None,
            volatile: true,
            running: BTreeMap::new(),
            waiting: BTreeSet::new(),
            next: 0,
            claims: Claims::default(),
            durability: Durability::new(count),
            turn: 0,
            power_ons: 0,
            changes: 0,
            resetting: None,
            actions: VecDeque::new(),
        }
    }

    /// What is to be done next; to be drained after every call that takes `now`.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What it was made with.
    #[must_use]
    pub const fn config(&self) -> &MultipathConfig {
        &self.config
    }

    /// The disk, once a path has led to it, with the most blocks that any path has told.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Whether a path is up.
    ///
    /// # Panics
    /// If there is no such path; so do all methods that are given one.
    #[must_use]
    pub fn is_up(&self, path: usize) -> bool {
        self.paths[path].is_up()
    }

    /// How the port of a path stood last.
    #[must_use]
    pub fn access(&self, path: usize) -> Access {
        self.paths[path].access
    }

    /// Operations under way on a path.
    #[must_use]
    pub fn under_way(&self, path: usize) -> usize {
        self.paths[path].under_way
    }

    /// How often a path was lost.
    #[must_use]
    pub fn losses(&self, path: usize) -> u64 {
        self.paths[path].losses
    }

    /// How often a path that had been up before has told that the target's power was off.
    #[must_use]
    pub const fn power_ons(&self) -> u64 {
        self.power_ons
    }

    /// How often a path was lost or came back, or its port stood otherwise.
    #[must_use]
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let of_paths = self.paths.iter().flat_map(|path| {
            let attempt = match path.standing {
                Standing::Down { next } => Some(next),
                _ => None,
            };
            let ask = path.ask_at.filter(|_| path.is_up() && !path.asking);
            [attempt, ask, path.resolve_at]
        });
        let of_waiting = self.waiting.iter().map(|number| Some(self.running[number].since? + self.config.no_path));
        let of_reset = self.resetting.iter().map(|resetting| (!resetting.sent).then_some(resetting.until));
        of_paths.chain(of_waiting).chain(of_reset).flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for path in 0..self.paths.len() {
            let own = &mut self.paths[path];
            if own.ask_at.is_some_and(|at| at <= now) {
                self.ask(path);
            }
        }
        self.resolve_doubts(now);
        for path in 0..self.paths.len() {
            let own = &mut self.paths[path];
            if matches!(own.standing, Standing::Down { next } if next <= now) {
                own.standing = Standing::Opening;
                self.actions.push_back(Action::Connect { path });
            }
        }
        let limit = self.config.no_path;
        let over = |number: &&u64| self.running[*number].since.is_some_and(|since| since + limit <= now);
        let over: Vec<u64> = self.waiting.iter().filter(over).copied().collect();
        for number in over {
            self.finish(number, Verdict::NoPath);
        }
        self.go_on(now);
    }

    /// Takes an operation in. [`Action::End`] is its end.
    pub fn submit(&mut self, operation: Operation, now: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        if matches!(operation.kind, Kind::Change { .. }) {
            self.claims.enter(number, operation.blocks.clone());
        }
        let running =
            Running { operation, state: State::Waiting, abandoned: false, since: None, failed_on: Vec::new() };
        self.running.insert(number, running);
        self.start(number, now);
        number
    }

    /// Nobody waits for an operation any more. What waits is not sent; a change that was sent runs to its end, which
    /// is still told of; a read or a flush that was sent is forgotten, and its end not told of.
    pub fn abandon(&mut self, number: u64, now: Instant) {
        let Some(running) = self.running.get_mut(&number) else { return };
        match (running.state, running.operation.kind) {
            (State::Waiting, _) => self.finish(number, Verdict::Abandoned),
            (State::On(_), Kind::Change { .. }) => running.abandoned = true,
            (State::On((path, _)), _) => {
                self.paths[path].under_way -= 1;
                self.durability.not_flushed(number);
                self.running.remove(&number);
            }
        }
        self.go_on(now);
    }

    /// What an operation came to on the path that it was sent by.
    pub fn ended(&mut self, number: u64, outcome: Outcome, now: Instant) {
        let Some(running) = self.running.get(&number) else { return };
        let State::On(session) = running.state else { return };
        let (path, epoch) = session;
        let operation = running.operation.clone();
        let is_current = self.paths[path].is_up() && self.paths[path].epoch == epoch;
        if outcome == Outcome::PathLost {
            if is_current {
                self.lose(path, now);
            }
        } else {
            self.claims.settled(number, session);
        }
        self.paths[path].under_way -= 1;
        if operation.kind == Kind::Flush {
            return self.flush_ended(number, path, outcome, now);
        }
        let repeatable = operation.kind != Kind::Change { repeatable: false };
        match outcome {
            Outcome::Done => {
                if self.volatile && matches!(operation.kind, Kind::Change { .. }) {
                    self.durability.acknowledged(session, operation.blocks, number);
                }
                self.finish(number, Verdict::Done);
            }
            Outcome::Failed { .. } => self.finish(number, Verdict::AsTold),
            Outcome::PathLost | Outcome::NoAnswer { may_have_run: true } if !repeatable => {
                self.finish(number, Verdict::AsTold);
            }
            _ => {
                // The session's list is being taken where the unit attention has come first.
                let told = self.durability.has_lost() || self.paths[path].clearing;
                if outcome == Outcome::LostWrites && is_current && !told {
                    self.power_was_off(path, true);
                }
                self.again(number, path, outcome, now);
            }
        }
        self.go_on(now);
    }

    fn flush_ended(&mut self, number: u64, path: usize, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Done if !self.durability.flushed(number, path) => self.again(number, path, outcome, now),
            Outcome::Done => {
                let good = self.durability.may_call_flushed();
                self.finish(number, if good { Verdict::Done } else { Verdict::LostWrites });
            }
            Outcome::Failed { may_have_run } => {
                if may_have_run {
                    self.durability.flush_failed(self.next);
                    self.clear(path);
                }
                self.finish(number, Verdict::AsTold);
            }
            outcome => self.again(number, path, outcome, now),
        }
        self.go_on(now);
    }

    /// An operation is to be sent anew.
    fn again(&mut self, number: u64, path: usize, outcome: Outcome, now: Instant) {
        self.durability.not_flushed(number);
        match outcome {
            Outcome::NotActive(access) => self.set_access(path, access, now),
            Outcome::LostWrites => self.clear(path),
            _ => {}
        }
        let Some(running) = self.running.get_mut(&number) else { return };
        running.state = State::Waiting;
        running.since.get_or_insert(now);
        if matches!(outcome, Outcome::NoAnswer { .. }) {
            running.failed_on.push(path);
        }
        let abandoned = running.abandoned;
        self.waiting.insert(number);
        if abandoned {
            self.finish(number, Verdict::Abandoned);
        }
    }

    /// A path is up, and this was found at its end.
    ///
    /// # Errors
    /// What tells the disk from the one that the other paths lead to: the path is not used, and tried again later.
    pub fn opened(&mut self, path: usize, found: Found, now: Instant) -> Result<(), Difference> {
        let Found { identity, access, group, power, volatile } = found;
        let known = self.identity.get_or_insert_with(|| identity.clone());
        if let Some(difference) = known.differs(&identity) {
            self.not_opened(path, Power::On, now);
            return Err(difference);
        }
        known.blocks = known.blocks.max(identity.blocks);
        self.volatile = volatile;
        let own = &mut self.paths[path];
        own.epoch += 1;
        own.standing = Standing::Up;
        self.changes += 1;
        own.blocks = identity.blocks;
        let same_group = own.epoch == 1 || own.group == group;
        own.group = group;
        let told = own.tells_of_loss(power);
        self.power_ons += u64::from(told && own.greeted);
        own.greets |= !own.greeted && power == Power::OnOrReset;
        (own.greeted, own.expects_reset, own.reinstating_failed) = (true, false, false);
        // The login with the same ISID has ended what was under way before it (RFC 7143 6.3.5).
        if same_group {
            self.claims.resolve(path);
        }
        self.durability.up(path, self.paths[path].epoch);
        if told {
            self.power_was_off(path, false);
        }
        self.set_access(path, access, now);
        self.go_on(now);
        Ok(())
    }

    /// A path could not be brought up. What its session told before it ended counts: the target does not tell it again.
    pub fn not_opened(&mut self, path: usize, power: Power, now: Instant) {
        self.paths[path].standing = Standing::Down { next: now + self.config.retry };
        let own = &self.paths[path];
        if own.tells_of_loss(power) {
            self.power_ons += u64::from(own.greeted);
            self.power_was_off(path, false);
        }
        self.go_on(now);
    }

    /// The session of a path is over.
    pub fn lost(&mut self, path: usize, now: Instant) {
        self.lose(path, now);
        self.go_on(now);
    }

    fn lose(&mut self, path: usize, now: Instant) {
        let own = &mut self.paths[path];
        if !own.is_up() {
            return;
        }
        own.standing = Standing::Down { next: now + self.config.retry.min(PAUSE) };
        own.losses += 1;
        self.changes += 1;
        (own.asking, own.clearing, own.proving, own.covered_by_reset) = (false, false, false, false);
        own.ask_at = None;
        let session = (path, own.epoch);
        self.durability.down(path);
        for (number, running) in &self.running {
            if running.state == State::On(session) {
                // Only writes have an entry.
                self.claims.doubt(*number, session);
            }
        }
        if self.claims.is_in_doubt(path) {
            self.paths[path].resolve_at.get_or_insert(now + self.config.doubt);
        }
    }

    /// How the port of a path stands; `None` when it gave no answer.
    pub fn told(&mut self, path: usize, access: Option<Access>, now: Instant) {
        self.paths[path].asking = false;
        if self.paths[path].is_up() {
            self.set_access(path, access.unwrap_or(self.paths[path].access), now);
        }
        self.go_on(now);
    }

    /// A unit attention came by a path that is up.
    pub fn attention(&mut self, path: usize, code: AdditionalSense, now: Instant) {
        let own = &mut self.paths[path];
        let power = Power::of(code);
        if !own.is_up() {
            return;
        }
        let expected = power == Power::OnOrReset && (own.greets || core::mem::take(&mut own.expects_reset));
        if power != Power::On {
            if !expected {
                self.power_ons += 1;
                self.power_was_off(path, true);
            }
            // Its session may hold that for a loss, and refuse everything.
            self.clear(path);
        }
        if code == AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED {
            self.ask(path);
        }
        self.go_on(now);
    }

    /// The disk has more blocks, says a path.
    pub fn resized(&mut self, path: usize, blocks: u64, now: Instant) {
        self.paths[path].blocks = blocks;
        if let Some(identity) = &mut self.identity {
            identity.blocks = identity.blocks.max(blocks);
        }
        self.go_on(now);
    }

    /// The session of a path has answered.
    pub fn proved(&mut self, path: usize, now: Instant) {
        self.paths[path].proving = false;
        self.durability.proved(path);
        self.go_on(now);
    }

    /// The list of a path's session is taken.
    pub fn cleared(&mut self, path: usize, now: Instant) {
        self.paths[path].clearing = false;
        self.go_on(now);
    }

    /// What the disk has lost, as ranges of blocks. Operations go on.
    pub fn take_lost(&mut self, now: Instant) -> Vec<Range<u64>> {
        let lost = self.durability.take_lost();
        self.go_on(now);
        lost
    }

    fn set_access(&mut self, path: usize, access: Access, now: Instant) {
        let own = &mut self.paths[path];
        self.changes += u64::from(own.access != access);
        own.access = access;
        // A port by which nothing goes has no command to tell of a change with.
        own.ask_at = (access != Access::Optimized).then(|| now + self.config.retry);
    }

    fn ask(&mut self, path: usize) {
        let own = &mut self.paths[path];
        own.ask_at = None;
        if own.is_up() && !core::mem::replace(&mut own.asking, true) {
            self.actions.push_back(Action::AskAccess { path });
        }
    }

    fn clear(&mut self, path: usize) {
        let own = &mut self.paths[path];
        if own.is_up() && !core::mem::replace(&mut own.clearing, true) {
            self.actions.push_back(Action::Clear { path });
        }
    }

    fn power_was_off(&mut self, path: usize, within: bool) {
        self.durability.power_was_off(path, within);
        for other in 0..self.paths.len() {
            let own = &mut self.paths[other];
            if own.is_up() && self.durability.is_unproven(other) && !core::mem::replace(&mut own.proving, true) {
                self.actions.push_back(Action::Prove { path: other });
            }
        }
    }

    /// Something has changed: what waits may go on.
    fn go_on(&mut self, now: Instant) {
        self.resolve_doubts(now);
        if self.waiting.is_empty() {
            return;
        }
        for number in core::mem::take(&mut self.waiting) {
            self.start(number, now);
        }
    }

    /// Sends an operation that waits, or has it wait on.
    fn start(&mut self, number: u64, now: Instant) {
        let Some(running) = self.running.get(&number) else { return };
        if self.durability.has_lost() {
            return self.finish(number, Verdict::LostWrites);
        }
        let held_up = self.claims.holds_up(number);
        if held_up == Some(HeldUp::Older) {
            self.waiting.insert(number);
            return;
        }
        let stopped = held_up.is_some() || self.durability.is_unsure_of_a_path();
        let picked = if stopped { None } else { self.pick(running.operation.blocks.end, &running.failed_on) };
        let failed_on_all =
            !stopped && !running.failed_on.is_empty() && self.pick(running.operation.blocks.end, &[]).is_some();
        let Some(running) = self.running.get_mut(&number) else { return };
        match picked {
            Some(path) => {
                self.turn += 1;
                running.state = State::On((path, self.paths[path].epoch));
                if running.operation.kind == Kind::Flush {
                    self.durability.flush_sent(number);
                }
                self.paths[path].under_way += 1;
                self.actions.push_back(Action::Send { operation: number, path });
            }
            None if failed_on_all => self.finish(number, Verdict::AsTold),
            None => {
                running.since.get_or_insert(now);
                self.waiting.insert(number);
            }
        }
    }

    /// Of the paths that are up and active those of the best state, the next one by the policy.
    fn pick(&self, end: u64, but: &[usize]) -> Option<usize> {
        let count = self.paths.len();
        let only = self.resetting.as_ref().map(|resetting| resetting.over);
        let usable = |number: &usize| {
            let path = &self.paths[*number];
            path.is_usable() && path.blocks >= end && !but.contains(number) && only.is_none_or(|only| only == *number)
        };
        let rank = |number: &usize| {
            let path = &self.paths[*number];
            let queue = if self.config.policy == PathPolicy::LeastQueue { path.under_way } else { 0 };
            (path.access, queue)
        };
        (0..count).map(|step| (self.turn + step) % count).filter(usable).min_by_key(rank)
    }

    fn finish(&mut self, number: u64, verdict: Verdict) {
        self.durability.not_flushed(number);
        self.claims.leave(number);
        self.waiting.remove(&number);
        if self.running.remove(&number).is_some() {
            self.actions.push_back(Action::End { operation: number, verdict });
        }
    }
}

#[cfg(test)]
#[path = "paths_tests.rs"]
mod tests;
