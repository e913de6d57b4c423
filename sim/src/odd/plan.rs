//! What a seed means for a world with an odd target.

use std::time::Duration;

use initiator_core::{Limits, ReconnectPolicy, Timeouts};
use iscsi_proto::login::Offer;
use iscsi_proto::parameters::Digest;
use iscsi_proto::serial::Serial;

use crate::link::LinkPlan;
use crate::rng::Rng;

/// What the target is after it was away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comeback {
    /// As before.
    Same,
    /// Without what was in its volatile cache, and it says so.
    Forgetful,
    /// Another disk at the same address.
    OtherNames,
    OtherSerial,
    OtherBlockSize,
    Smaller,
    /// The same disk with more blocks.
    Larger,
    /// It takes logins, and answers nothing after them, ever.
    Silent,
}

impl Comeback {
    /// Whether it is another disk than before.
    pub(super) const fn is_other(self) -> bool {
        matches!(self, Self::OtherNames | Self::OtherSerial | Self::OtherBlockSize | Self::Smaller)
    }
}

/// How the target asks for the end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Farewell {
    /// For a logout within so many seconds, which it may answer or not.
    AsksForLogout { within: u16, mute: bool },
    /// It drops the session, and does not want to see it again for so many seconds.
    Drops { time2wait: u16 },
}

impl Farewell {
    pub(super) const fn is_mute(&self) -> bool {
        matches!(self, Self::AsksForLogout { mute: true, .. })
    }
}

/// The one thing, or the few, in which the target is odd.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) blocks: u64,
    /// Blocks written and not flushed are lost with the power.
    pub(super) volatile: bool,
    /// What happens to the target, when, and for how long it is away.
    pub(super) restarts: Vec<(Duration, Duration, Comeback)>,
    /// It tells 29h/00h at every login: whether it forgot something, nobody can know.
    pub(super) greets: bool,
    /// Writes in 1000 of which it does less than all, and says GOOD.
    pub(super) short: u64,
    /// Responses in 1000 that the next one overtakes.
    pub(super) swaps: u64,
    /// Commands in 1000 that take up to this long.
    pub(super) late: (u64, Duration),
    /// Commands in 1000 that find no room.
    pub(super) busy: u64,
    /// From then on the command window stays as it is.
    pub(super) closes_window: Option<Duration>,
    /// Until then, where it opens again.
    pub(super) reopens: Option<Duration>,
    /// It makes no sense where nobody needs it: pages of limits and of modes.
    pub(super) senseless: bool,
    /// Writes that overlap come in the order of their numbers.
    pub(super) numbered: bool,
    /// The first CmdSN and the first StatSN of each connection.
    pub(super) cmd_sn: Serial,
    pub(super) stat_sn: Serial,
    /// It begins the Full Feature Phase with the StatSN of its last login response.
    pub(super) repeats_login_number: bool,
    /// The disk tells also a name that is that of all disks of its vendor.
    pub(super) vendors_name: bool,
    /// ABORT TASK in 1000 that it turns to up to so much later; the task may be done meanwhile.
    pub(super) slow_aborts: (u64, Duration),
    /// Commands in 1000 that tell of an earlier write that could not be kept.
    pub(super) late_errors: u64,
    /// Flushes in 1000 that fail, and drop what they were to make durable.
    pub(super) failed_flushes: u64,
    /// When the unit stops, and whether it can be started again.
    pub(super) stops: Option<(Duration, bool)>,
    /// How it asks for the end of connections, and when.
    pub(super) farewell: Option<Farewell>,
    pub(super) farewells: Vec<Duration>,
    /// For how long after a login the command window is closed.
    pub(super) opens_late: Duration,
    /// For how long text requests wait at most; zero: there are none.
    pub(super) slow_texts: Duration,
    /// Answers to NOP-Outs in 1000 with a StatSN that was used before.
    pub(super) old_pongs: u64,
    /// Commands in 1000 that are never done.
    pub(super) lost: u64,
    /// Writes in 1000 that are a WRITE SAME(32) which may unmap.
    pub(super) sames: u64,
    /// It reads so many bytes at a time, and so rarely; its transport acknowledges what it has read.
    pub(super) reads: Option<(usize, Duration)>,
    pub(super) link: LinkPlan,
    /// What a command takes where nothing is late.
    pub(super) latency: Duration,
    pub(super) offer: Offer,
    pub(super) timeouts: Timeouts,
    pub(super) limits: Limits,
    pub(super) reconnect: ReconnectPolicy,
    pub(super) operations: u64,
    pub(super) depth: usize,
    pub(super) most_blocks: u64,
    /// Commands in 1000 that nobody waits for in the end.
    pub(super) abandons: u64,
}

impl Plan {
    pub(super) fn of(seed: u64) -> Self {
        let rng = &mut Rng::new(seed, 0);
        let mut plan = Self::plain(seed, rng);
        match rng.below(6) {
            0 | 1 => plan.restart(rng),
            2 => plan.short = rng.between(20, 300),
            3 => plan.swaps = rng.between(20, 600),
            4 => {
                plan.late = (rng.between(10, 150), Duration::from_secs(20));
                plan.timeouts.command = Duration::from_secs(4);
            }
            _ if rng.permille(400) => {
                plan.closes_window = Some(Duration::from_micros(rng.magnitude(1000, 500_000)));
                plan.timeouts.command = Duration::from_secs(8);
            }
            _ => {
                // About 40 kB a second.
                plan.link = LinkPlan {
                    delay: Duration::from_millis(50),
                    jitter: Duration::from_millis(1),
                    capacity: 2048,
                    chunk: 2048,
                    ..LinkPlan::calm()
                };
                plan.timeouts.command = Duration::from_secs(600);
                plan.operations = 60;
            }
        }
        // Two oddities meet now and then.
        if plan.late.0 == 0 && plan.closes_window.is_none() && rng.permille(250) {
            plan.swaps = plan.swaps.max(rng.between(0, 200));
            plan.short = plan.short.max(rng.between(0, 100));
        }
        Self { numbered: true, ..plan.further(seed) }
    }

    /// What came later, with random numbers of its own, so that the seeds before it mean what they meant.
    fn further(mut self, seed: u64) -> Self {
        let rng = &mut Rng::new(seed, 9);
        (self.repeats_login_number, self.vendors_name) = (rng.permille(300), rng.permille(700));
        if rng.permille(500) {
            if self.volatile && self.has(|how| how == Comeback::Forgetful) {
                self.sames = rng.pick(&[0, 300]);
            }
            return self;
        }
        let (cmd_sn, stat_sn) = (self.cmd_sn, self.stat_sn);
        let mut plan = Self { cmd_sn, stat_sn, ..Self::plain(seed, &mut Rng::new(seed, 10)) };
        match rng.below(10) {
            0 => {
                plan.slow_aborts = (500, Duration::from_secs(3));
                plan.late = (rng.between(50, 300), Duration::from_secs(3));
                plan.abandons = rng.between(50, 200);
            }
            1 => (plan.late_errors, plan.volatile) = (rng.between(5, 50), true),
            2 => (plan.failed_flushes, plan.volatile) = (rng.between(50, 500), true),
            3 => plan.stops = Some((Duration::from_micros(rng.magnitude(1000, 1_000_000)), rng.permille(600))),
            4 => {
                plan.farewell = Some(if rng.permille(600) {
                    Farewell::AsksForLogout { within: rng.between(2, 10) as u16, mute: rng.permille(500) }
                } else {
                    Farewell::Drops { time2wait: rng.pick(&[0, 1, 10, 200]) }
                });
                let times = rng.between(1, 3);
                plan.farewells = (0..times).map(|_| Duration::from_micros(rng.magnitude(1000, 3_000_000))).collect();
                plan.farewells.sort_unstable();
            }
            5 => {
                // Longer away than anything may wait while nothing hinders it.
                plan.timeouts.standstill = Duration::from_secs(5);
                plan.opens_late = Duration::from_millis(rng.between(100, 3000));
                let at = Duration::from_micros(rng.magnitude(1000, 1_000_000)) + plan.opens_late;
                plan.restarts = vec![(at, Duration::from_secs(rng.between(6, 20)), Comeback::Same)];
            }
            6 => {
                plan.timeouts.standstill = Duration::from_secs(5);
                plan.slow_texts = Duration::from_secs(20);
                plan.latency = Duration::from_millis(500);
            }
            7 => {
                plan.old_pongs = 500;
                plan.late = (rng.between(10, 150), Duration::from_secs(20));
            }
            8 => {
                plan.lost = rng.between(5, 30);
                plan.latency = Duration::from_secs(2);
                plan.timeouts.command = Duration::from_secs(4);
                (plan.operations, plan.depth) = (200, rng.between(2, 8) as usize);
            }
            _ => {
                plan.link = LinkPlan { delay: Duration::from_millis(20), ..LinkPlan::calm() };
                // Shorter than what is under way takes.
                plan.timeouts.command = Duration::from_secs(rng.between(4, 12));
                (plan.operations, plan.most_blocks) = (60, 48);
                if rng.permille(500) {
                    // What is sent is long under way, and nothing comes back meanwhile.
                    plan.link.capacity = 1 << 20;
                    plan.reads = Some((4096, Duration::from_millis(400)));
                    plan.timeouts.command = Duration::from_secs(600);
                    (plan.blocks, plan.operations, plan.most_blocks) = (1024, 30, 256);
                } else {
                    plan.link.delay = Duration::from_millis(50);
                    (plan.link.capacity, plan.link.chunk) = (2048, 2048);
                }
            }
        }
        plan
    }

    /// With nothing odd.
    pub(super) fn plain(seed: u64, rng: &mut Rng) -> Self {
        let numbers = &mut Rng::new(seed, 8);
        let delay = Duration::from_micros(rng.magnitude(10, 5000));
        let first_burst_length = rng.pick(&[512, 2048, 8192, 65536]);
        Self {
            blocks: rng.between(64, 512),
            volatile: rng.permille(800),
            restarts: Vec::new(),
            greets: false,
            short: 0,
            swaps: 0,
            late: (0, Duration::ZERO),
            busy: 0,
            closes_window: None,
            reopens: None,
            senseless: false,
            numbered: false,
            cmd_sn: numbers.first_number(1),
            stat_sn: numbers.first_number(100),
            repeats_login_number: false,
            vendors_name: false,
            slow_aborts: (0, Duration::ZERO),
            late_errors: 0,
            failed_flushes: 0,
            stops: None,
            farewell: None,
            farewells: Vec::new(),
            opens_late: Duration::ZERO,
            slow_texts: Duration::ZERO,
            old_pongs: 0,
            lost: 0,
            sames: 0,
            reads: None,
            link: LinkPlan { delay, jitter: delay, chunk: rng.magnitude(64, 64 << 10) as usize, ..LinkPlan::calm() },
            latency: Duration::from_micros(rng.magnitude(10, 20_000)),
            offer: Offer {
                header_digest: vec![Digest::None],
                data_digest: vec![Digest::None],
                initial_r2t: rng.permille(500),
                immediate_data: rng.permille(700),
                max_burst_length: 65536,
                first_burst_length,
                max_outstanding_r2t: 1,
                default_time2wait: 0,
                ..Offer::default()
            },
            timeouts: Timeouts {
                command: Duration::from_secs(60),
                keepalive_interval: Duration::from_secs(2),
                keepalive: Duration::from_secs(2),
                ..Timeouts::default()
            },
            limits: Limits { commands: rng.between(1, 32) as u16, ..Limits::default() },
            reconnect: ReconnectPolicy { seed: Some(seed), ..ReconnectPolicy::default() },
            operations: rng.between(50, 300),
            depth: rng.between(1, 24) as usize,
            most_blocks: rng.between(1, 48),
            abandons: if rng.permille(300) { 50 } else { 0 },
        }
    }

    fn restart(&mut self, rng: &mut Rng) {
        use Comeback::{Forgetful, Larger, OtherBlockSize, OtherNames, OtherSerial, Same, Silent, Smaller};
        self.greets = rng.permille(250);
        let mut at = Duration::ZERO;
        for _ in 0..rng.between(1, 4) {
            at += Duration::from_micros(rng.magnitude(1000, 3_000_000));
            let away = Duration::from_micros(rng.magnitude(100, 20_000_000));
            let how = match rng.below(10) {
                0..=2 => Same,
                3..=6 => Forgetful,
                7 => Larger,
                8 if rng.permille(300) => Silent,
                _ => rng.pick(&[OtherNames, OtherSerial, OtherBlockSize, Smaller]),
            };
            if how == Silent {
                // So long does each of its connections last that it counts as one that stood.
                self.timeouts.keepalive_interval = self.reconnect.longest_delay;
            }
            self.restarts.push((at, away, how));
            at += away;
            if how.is_other() || how == Silent {
                break;
            }
        }
    }

    /// Whether there is a reason to believe that writes are lost.
    pub(super) fn may_lose(&self) -> bool {
        // Another disk that was switched on is only found out after that.
        self.has(|how| how == Comeback::Forgetful || how.is_other()) || self.greets && !self.restarts.is_empty()
    }

    /// Whether a restart of this kind is planned.
    pub(super) fn has(&self, is: impl Fn(Comeback) -> bool) -> bool {
        self.restarts.iter().any(|(_, _, how)| is(*how))
    }

    /// Whether it is away for longer than the session tries.
    pub(super) fn leaves_for_good(&self) -> bool {
        let most = self.reconnect.deadline;
        matches!(self.farewell, Some(Farewell::Drops { time2wait }) if Duration::from_secs(time2wait.into()) > most)
    }
}
