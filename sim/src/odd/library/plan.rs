//! What a seed means for a library's sessions and an odd target.

use std::time::Duration;

use crate::odd::plan::Plan;
use crate::rng::Rng;

/// What happens to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The connection is cut.
    Cut,
    /// So is it, and the portal that it came by is away for so long; another one is up.
    Gone(Duration),
    /// So is it, and what was not flushed is forgotten.
    Forgetful,
}

#[derive(Debug, Clone)]
pub(super) struct LibraryPlan {
    /// The target, and what the session is made with.
    pub(super) odd: Plan,
    pub(super) portals: usize,
    /// Where the first portal sends logins, and whether for good.
    pub(super) redirects: Option<(usize, bool)>,
    pub(super) troubles: Vec<(Duration, Trouble)>,
    pub(super) tasks: u64,
    pub(super) operations: u64,
    /// The time limit of operations that have one.
    pub(super) limit: Duration,
    /// Operations in 1000 that have it.
    pub(super) limited: u64,
    /// Operations in 1000 whose future is dropped, and after how long at most.
    pub(super) dropped: (u64, Duration),
    /// What is lost is written anew by the library.
    pub(super) replays: bool,
}

impl LibraryPlan {
    pub(super) fn of(seed: u64) -> Self {
        let rng = &mut Rng::new(seed, 11);
        let mut odd = Plan::plain(seed, &mut Rng::new(seed, 12));
        odd.blocks = rng.between(32, 256);
        odd.most_blocks = rng.between(1, 16);
        odd.abandons = 0;
        odd.limits.commands = rng.magnitude(1, 32) as u16;
        odd.senseless = rng.permille(300);
        let mut plan = Self {
            odd,
            portals: 1,
            redirects: None,
            troubles: Vec::new(),
            tasks: rng.between(1, 8),
            operations: rng.between(10, 60),
            limit: Duration::ZERO,
            limited: 0,
            dropped: (0, Duration::ZERO),
            replays: false,
        };
        match rng.below(4) {
            0 => {
                plan.portals = rng.between(2, 4) as usize;
                if rng.permille(700) {
                    plan.redirects = Some((rng.between(1, plan.portals as u64 - 1) as usize, rng.permille(500)));
                }
                let gone = plan.redirects.is_none();
                plan.trouble(
                    rng,
                    |rng| if gone { Trouble::Gone(span(rng, 100_000, 30_000_000)) } else { Trouble::Cut },
                );
            }
            1 => {
                // Its window closes, and opens again; what is dropped meanwhile is never sent.
                plan.odd.offer.immediate_data = true;
                plan.odd.closes_window = Some(span(rng, 1000, 500_000));
                plan.odd.reopens = plan.odd.closes_window.map(|at| at + span(rng, 1_000_000, 20_000_000));
                plan.odd.limits.commands = 64;
                // Some are under way for so long that those behind them are not taken from their callers.
                plan.odd.late = (300, Duration::from_secs(5));
                (plan.tasks, plan.operations) = (40, 6);
                plan.dropped = (500, Duration::from_secs(2));
            }
            2 => {
                // More want to be sent than there is room for, and each waits for a long time.
                plan.odd.limits.commands = rng.between(1, 2) as u16;
                plan.odd.latency = Duration::from_secs(1);
                plan.odd.timeouts.standstill = Duration::from_secs(1);
                plan.odd.timeouts.command = Duration::from_secs(2);
                plan.odd.timeouts.task_management = Duration::from_secs(1);
                (plan.tasks, plan.operations) = (24, 4);
            }
            _ if rng.permille(500) => {
                plan.odd.late = (rng.between(50, 300), Duration::from_secs(20));
                plan.limit = span(rng, 10_000, 5_000_000);
                plan.limited = rng.between(100, 800);
            }
            _ => {
                plan.odd.volatile = true;
                plan.replays = true;
                plan.trouble(rng, |_| Trouble::Forgetful);
            }
        }
        plan
    }

    fn trouble(&mut self, rng: &mut Rng, which: impl Fn(&mut Rng) -> Trouble) {
        let mut at = Duration::ZERO;
        for _ in 0..rng.between(1, 5) {
            at += span(rng, 10_000, 3_000_000);
            self.troubles.push((at, which(rng)));
        }
    }
}

/// So many microseconds.
fn span(rng: &mut Rng, least: u64, most: u64) -> Duration {
    Duration::from_micros(rng.magnitude(least, most))
}
