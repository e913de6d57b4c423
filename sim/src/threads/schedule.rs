//! Whose turn it is: threads of the system, of which one runs at a time, as the seed says. The clock stands still unless
//! all of them wait.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iscsi_memory::turns::{Thread, Turns};

use crate::rng::Rng;

/// The thread that lives the world.
pub(super) const MAIN: Thread = Thread(0);
/// Turns of a run at most: more is a livelock.
const MOST_TURNS: u64 = 5_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Runs,
    Waits { what: usize, until: Option<Duration> },
    Joins(usize),
    Ended,
}

#[derive(Debug)]
struct Member {
    doing: Doing,
    /// Rings when it has the turn.
    bell: Arc<Condvar>,
}

impl Member {
    fn new() -> Self {
        Self { doing: Doing::Runs, bell: Arc::default() }
    }
}

#[derive(Debug)]
struct State {
    rng: Rng,
    members: Vec<Member>,
    /// Who has the turn.
    turn: usize,
    turns: u64,
    now: Duration,
    /// Of who has had the turn.
    hash: u64,
    /// Nobody can go on any more: the main thread is told, and the others stay where they are.
    stuck: Option<&'static str>,
}

impl State {
    /// Somebody has the turn.
    fn choose(&mut self) {
        self.turns += 1;
        if self.turns > MOST_TURNS {
            self.stuck.get_or_insert("the threads find no rest");
        }
        while self.stuck.is_none() {
            let runs = |member: &&Member| member.doing == Doing::Runs;
            let able = self.members.iter().filter(runs).count();
            if able > 0 {
                let at = self.rng.below(able as u64) as usize;
                let able = self.members.iter().enumerate().filter(|(_, member)| member.doing == Doing::Runs);
                self.turn = able.map(|(number, _)| number).nth(at).unwrap_or_default();
                // FNV-1a.
                self.hash = (self.hash ^ self.turn as u64).wrapping_mul(0x0100_0000_01b3);
                self.members[self.turn].bell.notify_one();
                return;
            }
            let times = self.members.iter().filter_map(|member| match member.doing {
                Doing::Waits { until, .. } => until,
                _ => None,
            });
            match times.min() {
                Some(next) => self.now = self.now.max(next),
                None => self.stuck = Some("every thread waits for another"),
            }
            for member in &mut self.members {
                if matches!(member.doing, Doing::Waits { until: Some(until), .. } if until <= self.now) {
                    member.doing = Doing::Runs;
                }
            }
        }
        self.turn = MAIN.0;
        self.members[MAIN.0].bell.notify_one();
    }
}

/// The turns of a world.
#[derive(Debug)]
pub(super) struct Schedule(Mutex<State>);

impl Schedule {
    /// Of the main thread alone, which has the turn.
    pub(super) fn new(rng: Rng) -> Arc<Self> {
        let (members, now) = (vec![Member::new()], Duration::ZERO);
        Arc::new(Self(Mutex::new(State { rng, members, turn: MAIN.0, turns: 0, now, hash: 0, stuck: None })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many turns there were, and a hash of whose they were.
    pub(super) fn turns(&self) -> (u64, u64) {
        let state = self.lock();
        (state.turns, state.hash)
    }

    /// Does this meanwhile, until it is somebody's turn who does something else, and then its own again.
    fn pass(&self, me: Thread, doing: Doing) {
        let mut state = self.lock();
        if state.stuck.is_some() {
            return;
        }
        state.members[me.0].doing = doing;
        state.choose();
        self.await_turn(state, me);
    }

    /// # Panics
    /// On the main thread, when nobody can go on any more.
    fn await_turn(&self, mut state: MutexGuard<'_, State>, me: Thread) {
        let bell = state.members[me.0].bell.clone();
        while state.turn != me.0 {
            state = bell.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let stuck = state.stuck;
        drop(state);
        if let Some(stuck) = stuck {
            panic!("{stuck}");
        }
    }
}

impl Turns for Schedule {
    fn point(&self, me: Thread) {
        self.pass(me, Doing::Runs);
    }

    fn wait(&self, me: Thread, what: usize, until: Option<Duration>) {
        self.pass(me, Doing::Waits { what, until });
    }

    fn wake(&self, what: usize, all: bool) {
        let state = &mut *self.lock();
        let waits = |member: &Member| matches!(member.doing, Doing::Waits { what: other, .. } if other == what);
        let count = state.members.iter().filter(|member| waits(member)).count();
        let one = state.rng.below(count as u64) as usize;
        for (at, member) in state.members.iter_mut().filter(|member| waits(member)).enumerate() {
            if all || at == one {
                member.doing = Doing::Runs;
            }
        }
    }

    fn now(&self) -> Duration {
        self.lock().now
    }

    fn add(&self) -> Thread {
        let state = &mut *self.lock();
        state.members.push(Member::new());
        Thread(state.members.len() - 1)
    }

    fn begin(&self, me: Thread) {
        let state = self.lock();
        self.await_turn(state, me);
    }

    fn end(&self, me: Thread) {
        let state = &mut *self.lock();
        for member in &mut state.members {
            if member.doing == Doing::Joins(me.0) {
                member.doing = Doing::Runs;
            }
        }
        state.members[me.0].doing = Doing::Ended;
        if state.turn == me.0 && state.stuck.is_none() {
            state.choose();
        }
    }

    fn join(&self, me: Thread, other: Thread) -> bool {
        let ended = || self.lock().members[other.0].doing == Doing::Ended;
        while !ended() {
            if self.lock().stuck.is_some() {
                return false;
            }
            self.pass(me, Doing::Joins(other.0));
        }
        true
    }
}
