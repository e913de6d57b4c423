//! A byte link between two connections: delay, any chunk size, stalls, bit flips, cuts that each side notices in its own time, or never.

use std::collections::VecDeque;
use std::time::Duration;

use iscsi_proto::connection::StreamEnd;
use iscsi_proto::time::Instant;

use crate::rng::Rng;

/// The two sides of a link; also the two directions, by who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that connected.
    Initiator,
    /// The one that accepted.
    Target,
}

impl Side {
    /// The other side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Target,
            Self::Target => Self::Initiator,
        }
    }
}

/// How a link behaves.
#[derive(Debug, Clone)]
pub struct LinkPlan {
    /// Delay of every byte, at least.
    pub delay: Duration,
    /// Further delay, up to this much.
    pub jitter: Duration,
    /// Bytes under way in one direction at most.
    pub capacity: usize,
    /// Most bytes taken or given at a time.
    pub chunk: usize,
    /// How many sends in 1000 stall, and for how long at most.
    pub stalls: (u64, Duration),
    /// Bytes sent by both sides together after which the link is cut.
    pub cut_after: Option<u64>,
    /// How long after a cut each side notices; `None` never.
    pub notice: [Option<Duration>; 2],
    /// The direction's byte, counted from login on, in which one bit flips.
    pub flip: Option<(Side, u64)>,
    /// Only a data digest guards: of the bytes only those of data segments count, and flip.
    pub flips_data: bool,
    /// How many sent pieces in 1000 are mangled: bits flipped, bytes lost or doubled. No TCP does that; a bad peer does.
    pub mangle: u64,
}

impl LinkPlan {
    /// A link without faults and without delay.
    #[must_use]
    pub const fn calm() -> Self {
        Self {
            delay: Duration::from_micros(50),
            jitter: Duration::ZERO,
            capacity: 256 << 10,
            chunk: 64 << 10,
            stalls: (0, Duration::ZERO),
            cut_after: None,
            notice: [None, None],
            flip: None,
            flips_data: false,
            mangle: 0,
        }
    }
}

/// Bytes of a header without additional segments.
const BHS: usize = 48;

/// Tells data segments apart from headers, in a stream of PDUs without header digests.
#[derive(Debug, Default)]
struct Framing {
    header: Vec<u8>,
    /// Bytes of additional headers to come, and of the data segment with its padding and digest.
    left: (usize, usize),
}

impl Framing {
    /// Takes the next bytes, and gives the places among them that a data digest guards.
    fn guarded(&mut self, bytes: &[u8]) -> Vec<usize> {
        let (mut at, mut places) = (0, Vec::new());
        while at < bytes.len() {
            let rest = bytes.len() - at;
            if self.left.0 > 0 {
                let len = rest.min(self.left.0);
                self.left.0 -= len;
                at += len;
            } else if self.left.1 > 0 {
                let len = rest.min(self.left.1);
                // Logins have no digests.
                if !matches!(self.header[0] & 0x3f, 0x03 | 0x23) {
                    places.extend(at..at + len);
                }
                self.left.1 -= len;
                at += len;
            } else {
                if self.header.len() == BHS {
                    self.header.clear();
                }
                let len = rest.min(BHS - self.header.len());
                self.header.extend_from_slice(&bytes[at..at + len]);
                at += len;
                if self.header.len() == BHS {
                    let data = u32::from_be_bytes([0, self.header[5], self.header[6], self.header[7]]) as usize;
                    let is_login = matches!(self.header[0] & 0x3f, 0x03 | 0x23);
                    let digest = if data > 0 && !is_login { 4 } else { 0 };
                    self.left = (usize::from(self.header[4]) * 4, data.next_multiple_of(4) + digest);
                }
            }
        }
        places
    }
}

#[derive(Debug, Default)]
struct Direction {
    framing: Framing,
    under_way: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    arrived: VecDeque<u8>,
    /// The end of the sending side is under way, or has come.
    fin: Option<Instant>,
    /// Bytes sent in this direction since the login, for the flip.
    sent: u64,
    last: Instant,
}

/// A link with its two directions.
#[derive(Debug)]
pub struct Link {
    plan: LinkPlan,
    rng: Rng,
    directions: [Direction; 2],
    /// When each side hears that the link broke.
    breaks: [Option<Instant>; 2],
    total: u64,
    cut: bool,
    /// Bits may flip from now on.
    guarded: bool,
    flipped: bool,
    /// A side that takes what comes, and hears nothing of it.
    deaf: Option<Side>,
}

impl Link {
    /// A link that behaves as planned.
    #[must_use]
    pub fn new(plan: LinkPlan, rng: Rng) -> Self {
        Self {
            plan,
            rng,
            directions: Default::default(),
            breaks: [None, None],
            total: 0,
            cut: false,
            guarded: false,
            flipped: false,
            deaf: None,
        }
    }

    /// Both sides have their digests on from now on: the planned bit may flip.
    pub fn guard(&mut self) {
        self.guarded = true;
    }

    /// No faults from now on; a cut link stays cut.
    pub fn calm(&mut self) {
        let calm = LinkPlan::calm();
        self.plan = LinkPlan { capacity: self.plan.capacity.max(calm.capacity), notice: self.plan.notice, ..calm };
    }

    /// Whether the link was cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Whether the planned bit has flipped.
    #[must_use]
    pub fn has_flipped(&self) -> bool {
        self.flipped
    }

    /// Most bytes that `side` can hand over now.
    #[must_use]
    pub fn room(&self, side: Side) -> usize {
        let direction = &self.directions[side as usize];
        self.plan.capacity.saturating_sub(direction.bytes + direction.arrived.len())
    }

    /// How many of `most` bytes are taken or given in one go.
    pub fn chunk(&mut self, most: usize) -> usize {
        // Now and then a larger piece, or single bytes would make every run long.
        let limit = if self.rng.permille(250) { self.plan.chunk.max(1460) } else { self.plan.chunk };
        let most = most.min(limit);
        if most < 2 || self.rng.permille(300) { most } else { self.rng.between(1, most as u64) as usize }
    }

    /// Nothing of what is under way, or is sent until then, arrives before `until`, in either direction.
    pub fn hold(&mut self, until: Instant) {
        for direction in &mut self.directions {
            direction.last = direction.last.max(until);
            for (at, _) in &mut direction.under_way {
                *at = (*at).max(until);
            }
        }
    }

    /// What `side` has sent and has not arrived yet never does.
    pub fn drop_sent(&mut self, side: Side) {
        let direction = &mut self.directions[side as usize];
        direction.under_way.clear();
        direction.bytes = 0;
    }

    /// `side` hears nothing any more: its system takes what comes.
    pub fn deafen(&mut self, side: Side) {
        self.deaf = Some(side);
        let direction = &mut self.directions[side.other() as usize];
        direction.under_way.clear();
        direction.arrived.clear();
        direction.bytes = 0;
    }

    /// `side` sends; the bytes fit into [`room`](Self::room).
    pub fn send(&mut self, side: Side, mut bytes: Vec<u8>, now: Instant) {
        if bytes.is_empty() {
            return;
        }
        let before = self.total;
        self.total += bytes.len() as u64;
        if let Some(limit) = self.plan.cut_after.filter(|limit| !self.cut && self.total > *limit) {
            bytes.truncate(limit.saturating_sub(before) as usize);
            self.deliver(side, bytes, now);
            self.cut(now);
            return;
        }
        self.deliver(side, bytes, now);
    }

    fn deliver(&mut self, side: Side, mut bytes: Vec<u8>, now: Instant) {
        let Self { plan, rng, .. } = self;
        let direction = &mut self.directions[side as usize];
        if plan.flips_data {
            let places = direction.framing.guarded(&bytes);
            let first = direction.sent;
            direction.sent += places.len() as u64;
            if let Some((to_flip, at)) = plan.flip
                && to_flip == side
                && (first..direction.sent).contains(&at)
            {
                bytes[places[(at - first) as usize]] ^= 1 << rng.below(8);
                self.flipped = true;
            }
        } else if self.guarded {
            let first = direction.sent;
            direction.sent += bytes.len() as u64;
            if let Some((to_flip, at)) = plan.flip
                && to_flip == side
                && (first..direction.sent).contains(&at)
            {
                bytes[(at - first) as usize] ^= 1 << rng.below(8);
                self.flipped = true;
            }
        }
        if plan.mangle > 0 && rng.permille(plan.mangle) && !bytes.is_empty() {
            mangle(&mut bytes, rng);
        }
        let mut wait = plan.delay + plan.jitter.mul_f64(rng.below(1000) as f64 / 1000.0);
        if rng.permille(plan.stalls.0) {
            wait += plan.stalls.1.mul_f64(rng.below(1000) as f64 / 1000.0);
        }
        if self.deaf == Some(side.other()) {
            return;
        }
        // A byte stream keeps its order.
        let at = (now + wait).max(direction.last);
        direction.last = at;
        // A cut link still takes bytes until its buffer is full; they go nowhere.
        direction.bytes += bytes.len();
        if !self.cut {
            direction.under_way.push_back((at, bytes));
        }
    }

    /// Cuts the link: of what is under way, a part still arrives.
    pub fn cut(&mut self, now: Instant) {
        if self.cut {
            return;
        }
        self.cut = true;
        for (direction, side) in self.directions.iter_mut().zip([Side::Initiator, Side::Target]) {
            let keep = self.rng.below(direction.under_way.len() as u64 + 1) as usize;
            direction.under_way.truncate(keep);
            if let Some((_, bytes)) = direction.under_way.back_mut() {
                let keep = self.rng.below(bytes.len() as u64 + 1) as usize;
                bytes.truncate(keep);
            }
            if direction.fin.is_some_and(|at| at > now) {
                direction.fin = None;
            }
            self.breaks[side as usize] = self.plan.notice[side as usize].map(|wait| now + wait);
        }
    }

    /// `side` hears that the link, which was cut, is gone.
    pub fn tell_of_cut(&mut self, side: Side, now: Instant) {
        // What is due now has been looked at.
        self.breaks[side as usize].get_or_insert(now + Duration::from_nanos(1));
    }

    /// `side` closes its stream.
    pub fn close(&mut self, side: Side, now: Instant) {
        let direction = &mut self.directions[side as usize];
        if !self.cut && direction.fin.is_none() {
            direction.fin = Some((now + self.plan.delay).max(direction.last));
        }
        self.breaks[side as usize] = None;
    }

    /// `side` gives the socket up: what comes for it is answered by a reset.
    pub fn abandon(&mut self, side: Side, now: Instant) {
        self.close(side, now);
        let direction = &mut self.directions[side.other() as usize];
        direction.arrived.clear();
        if !self.cut && !direction.under_way.is_empty() {
            self.breaks[side.other() as usize].get_or_insert(now + self.plan.delay);
        }
        self.directions[side.other() as usize].under_way.clear();
        self.directions[side.other() as usize].bytes = 0;
    }

    /// What has arrived for `side` by `now`, in order.
    pub fn arrived(&mut self, side: Side, now: Instant) -> &mut VecDeque<u8> {
        let direction = &mut self.directions[side.other() as usize];
        while let Some((_, bytes)) = direction.under_way.pop_front_if(|(at, _)| *at <= now) {
            direction.bytes -= bytes.len();
            direction.arrived.extend(bytes);
        }
        &mut direction.arrived
    }

    /// The end that `side` can see now: only once everything before it was taken, unless the link broke.
    pub fn end(&mut self, side: Side, now: Instant) -> Option<StreamEnd> {
        if self.breaks[side as usize].is_some_and(|at| at <= now) {
            return Some(StreamEnd::Broken);
        }
        let direction = &self.directions[side.other() as usize];
        let closed = direction.fin.is_some_and(|at| at <= now);
        (closed && direction.under_way.is_empty() && direction.arrived.is_empty()).then_some(StreamEnd::EndOfStream)
    }

    /// When something will next arrive at `side` that has not yet.
    #[must_use]
    pub fn next(&self, side: Side, now: Instant) -> Option<Instant> {
        let direction = &self.directions[side.other() as usize];
        let bytes = direction.under_way.front().map(|(at, _)| *at);
        let ends = [direction.fin, self.breaks[side as usize]].into_iter().flatten().filter(|at| *at > now).min();
        [bytes, ends].into_iter().flatten().min()
    }
}

fn mangle(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let at = rng.below(bytes.len() as u64) as usize;
    match rng.below(4) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.u64() as u8,
        2 => {
            let to = (at + rng.between(1, 64) as usize).min(bytes.len());
            bytes.drain(at..to);
        }
        _ => {
            let to = (at + rng.between(1, 64) as usize).min(bytes.len());
            let doubled = bytes[at..to].to_vec();
            bytes.splice(at..at, doubled);
        }
    }
}
