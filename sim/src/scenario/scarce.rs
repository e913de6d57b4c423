//! Worlds in which buffers are scarce.

use std::time::Duration;

use super::{Chap, Kind, Scenario, seconds};
use crate::borrower::{BLOCK, BLOCKS, Habit, Waits};
use crate::rng::Rng;
use crate::store::Door;
use crate::transport::Transport;

impl Scenario {
    /// The scenario of a seed in which the sessions of a target have few buffers together, and many of them need more
    /// than is there: some owe data of big writes that they never send, some send slowly, some take slowly what they
    /// read, and over RDMA what is fetched comes late. Nothing fails, so nobody is ended but for that, the budget is
    /// kept, and each gets its turn.
    #[must_use]
    pub fn scarce(seed: u64, transport: Transport) -> Self {
        let mut scenario = Self::over(seed, transport).calm();
        scenario.kind = Kind::Scarce;
        let rng = &mut Rng::new(seed, 23);
        scenario.chap = Chap::No;
        scenario.borrowers = (0..rng.between(4, 10)).map(|_| rng.pick(&Habit::ALL)).collect();
        let sessions = rng.between(1, 2) as usize;
        scenario.sessions.truncate(sessions);
        scenario.limits.sessions = sessions + scenario.borrowers.len() + 2;
        scenario.limits.buffered = rng.magnitude(512 << 10, 2 << 20) as usize;
        scenario.limits.data_timeout = seconds(rng, 4, 30);
        scenario.limits.command_window = scenario.limits.command_window.max(16);
        scenario.limits.nop_in_idle = Some(Duration::from_secs(300));
        scenario.limits.offer.max_burst_length = scenario.limits.offer.max_burst_length.max(64 << 10);
        scenario.store.door = rng.pick(&[Door::Queue, Door::Easy]);
        scenario.store.delay = scenario.store.delay.min(Duration::from_millis(1));
        (scenario.store.read_errors, scenario.store.write_errors, scenario.store.full) = (0, 0, 0);
        scenario.store.block_size = 512;
        scenario.store.blocks = 1024;
        scenario.weather.chunk = 65536;
        scenario.weather.capacity = 1 << 20;
        scenario.weather.delay = scenario.weather.delay.min(Duration::from_micros(200));
        let turn = scenario.waits().turn;
        let most_blocks = rng.magnitude(16, 512);
        let is_deep = rng.permille(500);
        for session in &mut scenario.sessions {
            let work = &mut session.work;
            work.undisturbed = false;
            work.operations = rng.between(40, 80);
            work.most_blocks = most_blocks;
            work.others = 200;
            work.reads = 200;
            work.depth = if is_deep { 8 } else { 2 };
            work.store_fails = false;
            work.think = Duration::from_millis(rng.magnitude(1, 2000));
            // What finds no place in line comes again, later each time.
            work.within = Some(turn * 4);
            session.timeouts.command = turn * 5;
        }
        scenario
    }

    /// Bytes of buffers that the sessions of a server may have beyond their budget: one command that is larger than what
    /// is left of it. Other kinds of worlds do not look at this.
    #[must_use]
    pub fn beyond(&self) -> usize {
        const LARGEST: usize = BLOCKS as usize * BLOCK as usize;
        if self.kind == Kind::Scarce { LARGEST } else { usize::MAX >> 1 }
    }

    /// How long the target waits for borrowers, and they for it.
    #[must_use]
    pub fn waits(&self) -> Waits {
        let limits = &self.limits;
        let (data, owed) = (limits.data_timeout, limits.owed_data_wait.min(limits.data_timeout));
        // Each of those before may keep what it has for so long, and a look comes once in the shorter time.
        let turn = owed * 3 * (self.borrowers.len() + self.sessions.len()) as u32;
        Waits { data, owed, turn }
    }
}
