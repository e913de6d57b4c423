//! What a seed means.

use std::time::Duration;

use super::store::StorePlan;
use super::wire::WirePlan;
use super::work::Costs;
use crate::rng::Rng;

/// A session with disks, and the tasks that use it.
#[derive(Debug, Clone, Copy)]
pub struct SessionPlan {
    /// Tasks that use it at a time.
    pub tasks: u64,
    /// Operations of each.
    pub operations: u64,
    /// Operations in 1000 that are writes behind the blocks that are kept, whatever else there is.
    pub bulk: u64,
    /// Bytes of an operation behind the blocks that are kept, at most.
    pub big: u64,
    /// Operations in 1000 whose future is dropped, and after how long at most.
    pub dropped: (u64, Duration),
    /// How often a task waits before its next operation, in 1000, and how long at most.
    pub pauses: (u64, Duration),
    /// Its window of commands.
    pub commands: u16,
    /// In 1000: its handles are dropped at the end, and nobody logs out.
    pub forgotten: u64,
}

/// How a server ends in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// With so much time for the initiators.
    Politely(Duration),
    /// At once: its value is dropped.
    Dropped,
}

/// All of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What work costs at the target.
    pub costs: Costs,
    /// The store; `None` is the RAM store of the product, whose memory is lent, with so many blocks.
    pub store: Option<StorePlan>,
    /// Blocks that the sessions know the content of.
    pub kept: u64,
    /// Blocks behind them, for big commands.
    pub room: u64,
    /// The server's workers, tasks of one thread.
    pub workers: usize,
    /// What a connection may move in one pass.
    pub bytes_per_wake: usize,
    /// Streams of the sessions.
    pub wire: WirePlan,
    /// In 1000: streams that are cut, and after how many bytes at most; the same for those that fall silent.
    pub cuts: (u64, u64),
    /// See [`cuts`](Self::cuts).
    pub deaths: (u64, u64),
    /// The sessions.
    pub sessions: Vec<SessionPlan>,
    /// Pairs of connections that measure how long one holds up the other.
    pub probes: u64,
    /// Questions of each.
    pub questions: u64,
    /// Connections that send what they like and go.
    pub rude: u64,
    /// Stops of the server: after how long, how, and how long it is away then.
    pub stops: Vec<(Duration, Stop, Duration)>,
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let rng = &mut Rng::new(seed, 1);
        // A machine on which each small piece takes its time, and much to write in such pieces.
        let in_pieces = rng.permille(250);
        // A machine of some years ago, or one that has other things to do.
        let costs = Costs {
            call: Duration::from_nanos(if in_pieces { 50_000 } else { rng.magnitude(2_000, 60_000) }),
            kib: Duration::from_nanos(rng.magnitude(100, 2_000)),
        };
        let kept = rng.between(16, 256);
        let in_memory = rng.permille(250);
        let room = if in_memory { rng.between(2048, 16384) } else { rng.between(8192, 262_144) };
        let is_late = !in_pieces && rng.permille(500);
        let store = StorePlan {
            kept,
            room,
            delay: if is_late {
                (rng.between(50, 1000), Duration::from_micros(rng.magnitude(100, 50_000)))
            } else {
                (0, Duration::ZERO)
            },
            slow: if !in_pieces && rng.permille(200) {
                (20, Duration::from_secs(rng.between(1, 40)))
            } else {
                (0, Duration::ZERO)
            },
        };
        let is_slow = !in_pieces && rng.permille(500);
        let stalls = !in_pieces && rng.permille(200);
        let wire = WirePlan {
            delay: if is_slow {
                (Duration::from_micros(rng.magnitude(10, 5_000)), Duration::from_micros(rng.magnitude(10, 20_000)))
            } else {
                (Duration::ZERO, Duration::ZERO)
            },
            stalls: if stalls { (20, Duration::from_millis(rng.magnitude(10, 8000))) } else { (0, Duration::ZERO) },
            capacity: if in_pieces { 1 << 20 } else { rng.magnitude(4 << 10, 1 << 20) as usize },
            // Many stalls, one after the other, are no stream any more.
            chunk: if in_pieces {
                rng.between(400, 2000) as usize
            } else {
                rng.magnitude(if stalls { 32 << 10 } else { 64 }, 256 << 10) as usize
            },
            cut_after: None,
            dead_after: None,
        };
        let stops = if rng.permille(300) { rng.between(1, 2) } else { 0 };
        let mut stop = |_| {
            let how = if rng.permille(500) {
                Stop::Dropped
            } else {
                Stop::Politely(Duration::from_millis(rng.magnitude(1, 20_000)))
            };
            (Duration::from_micros(rng.magnitude(100, 2_000_000)), how, Duration::from_millis(rng.magnitude(1, 3_000)))
        };
        let stops: Vec<_> = (0..stops).map(&mut stop).collect();
        let is_troubled = rng.permille(400);
        let most = if in_pieces || is_troubled || stalls { 512 << 10 } else { 8 << 20 };
        let session = |rng: &mut Rng| SessionPlan {
            tasks: rng.between(1, 6),
            operations: if in_pieces { rng.between(3, 8) } else { rng.between(4, 40) },
            bulk: if in_pieces { 600 } else { 0 },
            big: if in_memory { 256 << 10 } else { rng.magnitude(64 << 10, most) },
            dropped: if rng.permille(400) {
                (rng.between(10, 400), Duration::from_micros(rng.magnitude(10, 100_000)))
            } else {
                (0, Duration::ZERO)
            },
            pauses: if rng.permille(500) {
                (300, Duration::from_micros(rng.magnitude(100, 1_000_000)))
            } else {
                (0, Duration::ZERO)
            },
            commands: rng.magnitude(1, 64) as u16,
            forgotten: rng.pick(&[0, 500, 1000]),
        };
        let sessions = (0..rng.between(1, 3)).map(|_| session(rng)).collect();
        Self {
            costs,
            store: (!in_memory).then_some(store),
            kept,
            room,
            workers: rng.pick(&[1, 1, 1, 2, 3]),
            bytes_per_wake: rng.pick(&[1 << 20, 1 << 20, 64 << 10]),
            wire,
            cuts: if is_troubled { (rng.between(50, 500), 4 << 20) } else { (0, 1) },
            deaths: if is_troubled && rng.permille(300) { (100, 1 << 20) } else { (0, 1) },
            sessions,
            probes: u64::from(in_pieces || rng.permille(700)),
            questions: rng.between(8, 40),
            rude: if rng.permille(300) { rng.between(1, 6) } else { 0 },
            stops,
        }
    }
}
