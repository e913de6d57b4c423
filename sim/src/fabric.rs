//! The network between two queue pairs, of the loopback or of verbs over simulated devices, on virtual time.

use std::time::Duration;

use iscsi_proto::time::Instant;
use iser_transport::loopback::{End, Fabric, Step};
use iser_transport::verbs::simulated::{SimulatedFabric, Step as DeviceStep};

use crate::link::Side;
use crate::rng::Rng;
use crate::trace::Trace;

/// How fast a fabric is, and what happens to it.
#[derive(Debug, Clone)]
pub struct FabricPlan {
    /// Time from one burst of steps to the next, at most.
    pub pace: Duration,
    /// Steps at a time, at most.
    pub burst: u64,
    /// How many bursts in 1000 stall, and for how long at most.
    pub stalls: (u64, Duration),
    /// Steps after which the connection is cut.
    pub cut_after: Option<u64>,
    /// Which sides hear of a cut by themselves.
    pub notice: [bool; 2],
}

impl FabricPlan {
    /// A fast one without faults.
    #[must_use]
    pub const fn calm() -> Self {
        Self {
            pace: Duration::from_micros(50),
            burst: 32,
            stalls: (0, Duration::ZERO),
            cut_after: None,
            notice: [true; 2],
        }
    }
}

/// How often a queue pair of verbs that is ending is looked at, as by its driver.
const ENDING: Duration = Duration::from_millis(5);

/// What moves two queue pairs.
#[derive(Debug, Clone)]
pub enum Mover {
    /// Of the loopback.
    Loopback(Fabric),
    /// Of verbs.
    Verbs(SimulatedFabric),
}

impl From<Fabric> for Mover {
    fn from(fabric: Fabric) -> Self {
        Self::Loopback(fabric)
    }
}

impl From<SimulatedFabric> for Mover {
    fn from(fabric: SimulatedFabric) -> Self {
        Self::Verbs(fabric)
    }
}

/// What a step did.
enum Moved {
    Nothing,
    Something,
    /// It has gone wrong by itself, in this way.
    Wrong(String),
}

impl Mover {
    fn step(&self) -> Moved {
        match self {
            Self::Loopback(fabric) => match fabric.step() {
                Some(fault @ (Step::Cut | Step::DeviceGone(_) | Step::Muted(_))) => Moved::Wrong(format!("{fault:?}")),
                Some(_) => Moved::Something,
                None => Moved::Nothing,
            },
            Self::Verbs(fabric) => match fabric.step() {
                Some(fault @ (DeviceStep::Cut | DeviceStep::DeviceGone(_) | DeviceStep::Muted(_))) => {
                    Moved::Wrong(format!("{fault:?}"))
                }
                Some(_) => Moved::Something,
                None => Moved::Nothing,
            },
        }
    }

    fn is_flushing(&self) -> bool {
        match self {
            Self::Loopback(fabric) => fabric.is_flushing(),
            Self::Verbs(fabric) => fabric.is_flushing(),
        }
    }

    fn cut(&self) {
        match self {
            Self::Loopback(fabric) => fabric.cut(),
            Self::Verbs(fabric) => fabric.cut(),
        }
    }

    fn cut_end(&self, end: End) {
        match self {
            Self::Loopback(fabric) => fabric.cut_end(end),
            Self::Verbs(fabric) => fabric.cut_end(end),
        }
    }

    fn mute(&self, end: End) {
        match self {
            Self::Loopback(fabric) => fabric.mute(end),
            Self::Verbs(fabric) => fabric.mute(end),
        }
    }

    fn withhold_reads(&self, end: End) {
        match self {
            Self::Loopback(fabric) => fabric.withhold_reads(end),
            Self::Verbs(fabric) => fabric.withhold_reads(end),
        }
    }

    fn calm(&self) {
        match self {
            Self::Loopback(fabric) => fabric.calm(),
            Self::Verbs(fabric) => fabric.calm(),
        }
    }

    fn held(&self, end: End) -> (usize, usize, usize) {
        match self {
            Self::Loopback(fabric) => fabric.held(end),
            Self::Verbs(fabric) => fabric.held(end),
        }
    }
}

/// A fabric that moves as time passes.
#[derive(Debug)]
pub struct FabricLink {
    fabric: Mover,
    plan: FabricPlan,
    rng: Rng,
    /// When it moves next; `None` while nothing can.
    due: Option<Instant>,
    steps: u64,
    cut: bool,
    /// Where its faults are written, and its number there.
    trace: Option<(Trace, usize)>,
}

const fn end(side: Side) -> End {
    match side {
        Side::Initiator => End::Active,
        Side::Target => End::Passive,
    }
}

impl FabricLink {
    /// A fabric that behaves as planned.
    #[must_use]
    pub fn new(fabric: impl Into<Mover>, plan: FabricPlan, rng: Rng, now: Instant) -> Self {
        Self { fabric: fabric.into(), plan, rng, due: Some(now), steps: 0, cut: false, trace: None }
    }

    /// Its faults are written into a trace, under a number.
    #[must_use]
    pub fn traced(mut self, trace: Trace, number: usize) -> Self {
        self.trace = Some((trace, number));
        self
    }

    fn event(&self, what: std::fmt::Arguments<'_>) {
        if let Some((trace, number)) = &self.trace {
            trace.event(format_args!("link {number}: {what}"));
        }
    }

    /// An end was used: something may move from now on.
    pub fn stir(&mut self, now: Instant) {
        if self.due.is_none() {
            self.due = Some(self.later(now));
        }
    }

    fn later(&mut self, now: Instant) -> Instant {
        let mut wait = self.plan.pace.mul_f64(self.rng.below(1000) as f64 / 1000.0);
        // What a queue pair that has ended still gives back, it gives back by itself: the network's stalls are not its own.
        if self.rng.permille(self.plan.stalls.0) && !self.fabric.is_flushing() {
            wait += self.plan.stalls.1.mul_f64(self.rng.below(1000) as f64 / 1000.0);
        }
        now + wait + Duration::from_nanos(1)
    }

    /// Moves on, if it is time. Returns whether anything moved.
    pub fn advance(&mut self, now: Instant) -> bool {
        if let Mover::Verbs(fabric) = &self.fabric {
            fabric.set_time(now);
        }
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        let burst = self.rng.between(1, self.plan.burst);
        for step in 0..burst {
            self.steps += 1;
            if self.plan.cut_after.is_some_and(|limit| self.steps > limit) && !self.cut {
                self.cut();
            }
            match self.fabric.step() {
                Moved::Wrong(fault) => {
                    self.event(format_args!("{fault}"));
                    self.cut = true;
                }
                Moved::Something => {}
                Moved::Nothing => {
                    self.due = None;
                    return step > 0;
                }
            }
        }
        self.due = Some(self.later(now));
        true
    }

    fn cut(&mut self) {
        self.event(format_args!("cut, heard of by {:?}", self.plan.notice));
        self.cut = true;
        for (side, hears) in [Side::Initiator, Side::Target].into_iter().zip(self.plan.notice) {
            if !hears {
                self.fabric.mute(end(side));
            }
        }
        if self.plan.notice[0] && self.plan.notice[1] {
            self.fabric.cut();
        } else {
            // Who hears of it does so by what the silent one's network says.
            for (side, hears) in [Side::Initiator, Side::Target].into_iter().zip(self.plan.notice) {
                if hears {
                    self.fabric.cut_end(end(side));
                }
            }
        }
    }

    /// Cuts it, whatever its plan says.
    pub fn cut_now(&mut self, now: Instant) {
        if !self.cut {
            self.cut();
            self.stir(now);
        }
    }

    /// `side` hears nothing any more.
    pub fn deafen(&mut self, side: Side, now: Instant) {
        self.fabric.mute(end(side));
        self.stir(now);
    }

    /// `side` sends nothing any more of what RDMA Reads ask it for.
    pub fn withhold_reads(&self, side: Side) {
        self.fabric.withhold_reads(end(side));
    }

    /// `side` hears that the connection, which was cut, is gone.
    pub fn tell_of_cut(&mut self, side: Side, now: Instant) {
        self.fabric.cut_end(end(side));
        self.stir(now);
    }

    /// Whether a side has something to poll, for all that is known: a queue pair of verbs tells only when it is polled.
    #[must_use]
    pub fn is_ready(&self, side: Side) -> bool {
        match &self.fabric {
            Mover::Loopback(fabric) => fabric.is_ready(end(side)),
            Mover::Verbs(_) => false,
        }
    }

    /// Whether a side's device has work of it. Of the loopback nothing is known.
    #[must_use]
    pub fn has_work(&self, side: Side) -> bool {
        match &self.fabric {
            Mover::Loopback(_) => false,
            Mover::Verbs(fabric) => fabric.has_work(end(side)),
        }
    }

    /// Whether a side has done enough for a while. Asking takes it back.
    #[must_use]
    pub fn gives_way(&self, side: Side) -> bool {
        match &self.fabric {
            Mover::Loopback(_) => false,
            Mover::Verbs(fabric) => fabric.gives_way(end(side)),
        }
    }

    /// What the queue pair of a side has not given back, if anything.
    #[must_use]
    pub fn held(&self, side: Side) -> Option<String> {
        let (work, receives, advertised) = self.fabric.held(end(side));
        (work + receives + advertised > 0)
            .then(|| format!("{work} work requests, {receives} receives and {advertised} advertised buffers"))
    }

    /// Work requests of a side that its queue pair has not given back.
    #[must_use]
    pub fn work(&self, side: Side) -> usize {
        self.fabric.held(end(side)).0
    }

    /// Moves on if a queue pair has told its device something by itself, as verbs do between two requests of one
    /// transfer and while they end. The loopback does nothing by itself.
    pub fn stir_if_used(&mut self, now: Instant) {
        if let Mover::Verbs(fabric) = &self.fabric
            && fabric.was_used()
        {
            self.stir(now);
        }
    }

    /// When it moves next.
    #[must_use]
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let ending = match &self.fabric {
            Mover::Loopback(_) => false,
            Mover::Verbs(fabric) => End::BOTH.into_iter().any(|end| fabric.is_ending(end)),
        };
        let ending = ending.then(|| now + ENDING);
        [self.due.map(|due| due.max(now)), ending].into_iter().flatten().min()
    }

    /// No faults from now on; what is cut stays so.
    pub fn calm(&mut self) {
        self.plan = FabricPlan::calm();
        self.fabric.calm();
    }

    /// Whether it was cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut
    }
}
