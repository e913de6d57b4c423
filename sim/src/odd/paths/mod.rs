//! A disk by several paths against a target that is odd on each of them: paths that are cut, stand still, crawl, come
//! back, or show another disk, a target that restarts with and without its memory, ports whose access states change, a
//! disk that grows.
//!
//! The decisions are those of [`initiator_core::multipath::Paths`]; this world carries them out over sessions of the real
//! engine, as `Multipath` does over tokio. A session that was lost lives on at the target: what had been sent arrives
//! and is carried out when its time has come, until a login with its ISID, a reset, or the target's restart ends it.
//!
//! The oracle is the [model](crate::model): no success without the data, no acknowledged write covered by an older one,
//! nothing on another disk, what is lost is told, no error while a path can be up, every operation ends, paths of the
//! best access state are used, and used again when they are back.

mod session;
mod world;

use std::time::Duration;

use initiator_core::multipath::{MultipathConfig, PathPolicy};

use super::plan::{Comeback, Plan};
use crate::link::LinkPlan;
use crate::rng::Rng;

pub use world::run;

/// What happens.
#[derive(Debug, Clone, Copy)]
enum Happening {
    /// The path's link is cut, and there is none for so long. The initiator hears of it, or does not.
    Cut { path: usize, away: Duration, told: bool },
    /// Nothing arrives for so long.
    Still { path: usize, away: Duration },
    /// The target is away, and what comes back may have forgotten.
    Restart { away: Duration, how: Comeback },
    /// Another disk is at the end of the path for so long, from its next connection on; the link is cut.
    Other { path: usize, away: Duration, how: Comeback },
    /// The disk has more blocks.
    Grow,
    /// The access state of a target port group.
    Access { group: usize, state: u8 },
}

#[derive(Debug, Clone)]
struct PathsPlan {
    odd: Plan,
    config: MultipathConfig,
    /// The portal group of each path.
    groups: Vec<u32>,
    links: Vec<LinkPlan>,
    /// In the order of time.
    happenings: Vec<(Duration, Happening)>,
    /// Attempts in 1000 to log in with a path's ISID by way of another one that fail.
    refused: u64,
    /// How long a session that was lost lives on at the target.
    lives_on: Duration,
}

impl PathsPlan {
    fn of(seed: u64) -> Self {
        let rng = &mut Rng::new(seed, 0);
        let mut odd = Plan::plain(seed, rng);
        odd.blocks = rng.between(16, 128);
        odd.most_blocks = rng.between(1, 16);
        odd.timeouts.command = Duration::from_secs(8);
        odd.operations = rng.between(60, 400);
        if rng.permille(600) {
            odd.late = (rng.between(10, 150), Duration::from_secs(if rng.permille(500) { 6 } else { 40 }));
        }
        if rng.permille(300) {
            odd.busy = rng.between(10, 300);
        }
        let count = rng.between(2, 4) as usize;
        let apart = rng.permille(500);
        let groups = (0..count).map(|path| if apart { path as u32 + 1 } else { 1 + path as u32 / 2 }).collect();
        let crawling = LinkPlan {
            delay: Duration::from_millis(50),
            jitter: Duration::from_millis(1),
            capacity: 2048,
            chunk: 2048,
            ..LinkPlan::calm()
        };
        let link = |rng: &mut Rng| if rng.permille(150) { crawling.clone() } else { odd.link.clone() };
        let links = (0..count).map(|_| link(rng)).collect();
        let config = MultipathConfig {
            policy: rng.pick(&[PathPolicy::RoundRobin, PathPolicy::LeastQueue]),
            no_path: Duration::from_secs(1200),
            retry: Duration::from_millis(rng.magnitude(50, 2000)),
            doubt: Duration::from_millis(rng.magnitude(500, 8000)),
        };
        let mut plan = Self {
            odd,
            config,
            groups,
            links,
            happenings: Vec::new(),
            refused: if rng.permille(300) { 500 } else { 0 },
            lives_on: Duration::from_secs(rng.magnitude(5, 120)),
        };
        plan.happen(rng, count);
        plan
    }

    fn happen(&mut self, rng: &mut Rng, count: usize) {
        let mut at = Duration::ZERO;
        let alua = rng.permille(400);
        for _ in 0..rng.between(1, 8) {
            at += Duration::from_micros(rng.magnitude(1000, 4_000_000));
            let away = Duration::from_micros(rng.magnitude(100, 30_000_000));
            let path = rng.below(count as u64) as usize;
            let happening = match rng.below(20) {
                0..=5 => Happening::Cut { path, away, told: rng.permille(500) },
                6..=9 => Happening::Still { path, away },
                10..=12 => Happening::Restart {
                    away,
                    how: if rng.permille(600) { Comeback::Forgetful } else { Comeback::Same },
                },
                13..=14 => Happening::Other {
                    path,
                    away,
                    how: rng.pick(&[Comeback::OtherNames, Comeback::OtherSerial, Comeback::Smaller]),
                },
                15 => Happening::Grow,
                _ if alua => {
                    let groups = u64::from(self.groups.iter().copied().max().unwrap_or(1));
                    let state = rng.pick(&[0, 0, 1, 1, 2, 3, 0x0f]);
                    Happening::Access { group: rng.below(groups) as usize, state }
                }
                _ => Happening::Cut { path, away, told: true },
            };
            self.happenings.push((at, happening));
        }
    }

    /// Whether something like this is planned.
    fn has(&self, is: impl Fn(&Happening) -> bool) -> bool {
        self.happenings.iter().any(|(_, happening)| is(happening))
    }

    fn forgets(&self) -> bool {
        self.has(|happening| matches!(happening, Happening::Restart { how: Comeback::Forgetful, .. }))
    }

    fn has_groups(&self) -> bool {
        self.has(|happening| matches!(happening, Happening::Access { .. }))
    }
}
