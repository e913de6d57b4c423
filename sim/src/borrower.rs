//! Initiators that need buffers of a target that has few. Each does one thing, and knows what it may be answered: buffers
//! that are a session's own it gets at once, more of them in its turn among all sessions, and whoever lets the others wait
//! does not wait with them.

use std::collections::VecDeque;
use std::time::Duration;

use iscsi_proto::pdu::{Bhs, DataIn, Opcode, R2t, ScsiResponse};
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;
use scsi_proto::opcode;

use crate::link::{Link, Side};
use crate::network::Network;
use crate::peer::Peer;
use crate::rng::Rng;
use crate::trace::Trace;
use crate::workload::Verdict;

/// Bytes of a block.
pub const BLOCK: u32 = 512;
/// Blocks that are a borrower's own.
pub const BLOCKS: u64 = 1024;
/// Blocks of its small writes: all of them together are within what every session has for itself.
const FEW: u32 = 4;
/// What needs nothing of anybody else is answered within this, over a link that takes microseconds.
const AT_ONCE: Duration = Duration::from_millis(500);

/// What a borrower does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Asks for the data of big writes, and never sends them. After that it is not to wait in line for a while: it is
    /// answered at once.
    Silent,
    /// Sends the data of small writes one after the other, slowly. None of them is given up.
    Steady,
    /// Has a small write under way, and a big one, whose data it sends as soon as they are asked for: it gets its turn.
    Patient,
    /// Reads much and takes it late.
    Late,
}

impl Habit {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Silent, Self::Steady, Self::Patient, Self::Late];
}

/// What it knows of the target.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// How long data are waited for.
    pub data: Duration,
    /// The same, where others wait for the buffers that they are for.
    pub owed: Duration,
    /// How long somebody who waits in line waits at most.
    pub turn: Duration,
}

/// A command under way.
#[derive(Debug)]
struct Task {
    itt: u32,
    is_big: bool,
    since: Instant,
    /// It is to be answered by then, or its data asked for.
    by: Option<Instant>,
    asked: VecDeque<R2t>,
}

/// The initiator.
#[derive(Debug)]
pub struct Borrower {
    peer: Peer,
    number: u64,
    habit: Habit,
    waits: Waits,
    trace: Trace,
    verdict: Verdict,
    rng: Rng,
    /// The most blocks of a big command.
    big: u32,
    tasks: Vec<Task>,
    next_at: Instant,
    /// No big command before then.
    pause: Instant,
    /// When it last sent data slowly.
    sent_at: Instant,
    /// It has let others wait, and the target knows until then at the least.
    late_until: Option<Instant>,
    /// When it was told to come again, and has not had a good write since.
    refused_at: Option<Instant>,
    /// It takes nothing until then.
    deaf_until: Option<Instant>,
    over: bool,
}

impl Borrower {
    /// An initiator that has just connected, and logs in.
    pub fn new(
        (link, number): (usize, u64),
        (name, target): (&str, &str),
        (habit, waits): (Habit, Waits),
        mut rng: Rng,
        (trace, verdict): (Trace, Verdict),
        now: Instant,
    ) -> Self {
        Self {
            peer: Peer::new(link, [0x80, 0, 0, 0, 2, number as u8], (name, target)),
            number,
            habit,
            waits,
            trace,
            verdict,
            big: rng.between(128, BLOCKS) as u32,
            rng,
            tasks: Vec::new(),
            next_at: now,
            pause: now,
            sent_at: now,
            late_until: None,
            refused_at: None,
            deaf_until: None,
            over: false,
        }
    }

    /// The link's number.
    #[must_use]
    pub fn link(&self) -> usize {
        self.peer.link
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// It goes.
    pub fn leave(&mut self, link: &mut Link, now: Instant) {
        self.over = true;
        link.close(Side::Initiator, now);
    }

    /// When it has something to do next.
    #[must_use]
    pub fn next(&self, network: &Network, now: Instant) -> Option<Instant> {
        if let Some(until) = self.deaf_until {
            return Some(until.max(now));
        }
        let step = self.peer.logged_in.then_some(self.next_at.max(now));
        [step, network.next(Side::Initiator, now)].into_iter().flatten().min()
    }

    fn broken(&self, what: &str) {
        self.verdict.broken(format!("borrower {}, {:?}: {what}", self.number, self.habit));
    }

    fn event(&self, what: std::fmt::Arguments<'_>) {
        self.trace.event(format_args!("borrower {}, {:?}: {what}", self.number, self.habit));
    }

    /// Takes what came, and does its next step if it is time. Returns whether anything was done.
    pub fn run(&mut self, link: &mut Link, now: Instant) -> bool {
        if self.deaf_until.is_some_and(|until| now < until) {
            return false;
        }
        let mut any = self.deaf_until.take().is_some() | self.peer.take(link, now);
        while let Some((bhs, data)) = self.peer.pdu() {
            self.heard(&bhs, &data, now);
        }
        if let Some(end) = link.end(Side::Initiator, now) {
            self.broken(&format!("its session is ended: {end:?}"));
            self.leave(link, now);
            return true;
        }
        if self.peer.logged_in && self.next_at <= now {
            self.next_at = now + Duration::from_micros(self.rng.magnitude(1000, 100_000));
            self.step(now);
            any = true;
        }
        any | self.peer.give(link, now)
    }

    fn heard(&mut self, bhs: &Bhs, data: &[u8], now: Instant) {
        if self.peer.hear(bhs, data).is_some() {
            if !self.peer.logged_in {
                self.broken("it is not let in");
            }
            // The first command of a session may be told what happened before.
            self.peer.command(0, false, [0; 16], (0, 0));
            return;
        }
        match bhs.opcode() {
            Ok(Opcode::R2t) => {
                let Ok(r2t) = R2t::parse(bhs) else { return };
                self.peer.count(r2t.max_cmd_sn, None);
                self.asked(r2t, now);
            }
            Ok(Opcode::ScsiResponse) => {
                let Ok(response) = ScsiResponse::parse(bhs) else { return };
                self.count(response.max_cmd_sn, response.stat_sn);
                self.answered(response.itt, response.status, now);
            }
            Ok(Opcode::DataIn) => {
                let Ok(data) = DataIn::parse(bhs) else { return };
                let Some(status) = data.status else { return self.peer.count(data.max_cmd_sn, None) };
                self.count(data.max_cmd_sn, status.stat_sn);
                self.answered(data.itt, status.status, now);
            }
            _ => {}
        }
    }

    fn count(&mut self, max: Serial, stat_sn: Serial) {
        self.peer.count(max, Some(stat_sn));
    }

    fn asked(&mut self, r2t: R2t, now: Instant) {
        let Some(at) = self.tasks.iter().position(|task| task.itt == r2t.itt) else { return };
        let waited = now - self.tasks[at].since;
        self.tasks[at].by = None;
        self.tasks[at].asked.push_back(r2t);
        if self.habit != Habit::Patient || !self.tasks[at].is_big {
            return;
        }
        self.event(format_args!("has its turn after {waited:?}"));
        // It holds more than its own from here on, and owes nothing longer than it must.
        for task in 0..self.tasks.len() {
            while self.send(task) {}
        }
    }

    /// Sends what is asked for next. Returns whether there was anything.
    fn send(&mut self, task: usize) -> bool {
        let Some(r2t) = self.tasks.get_mut(task).and_then(|task| task.asked.pop_front()) else { return false };
        self.event(format_args!("sends {} bytes of {}", r2t.desired_data_transfer_length, r2t.itt));
        self.peer.answer(&r2t, &vec![self.number as u8; r2t.desired_data_transfer_length as usize]);
        true
    }

    fn answered(&mut self, itt: u32, status: u8, now: Instant) {
        let Some(at) = self.tasks.iter().position(|task| task.itt == itt) else { return };
        let task = self.tasks.remove(at);
        self.event(format_args!("{itt} is answered {status:#x}"));
        let is_refused = matches!(status, 0x08 | 0x28);
        match self.habit {
            Habit::Silent if !is_refused => {
                self.event(format_args!("has let others wait: {status:#x}"));
                self.late_until = Some(now + self.waits.data / 2);
            }
            Habit::Silent => self.pause = now + Duration::from_micros(self.rng.magnitude(1000, 500_000)),
            // What its connection has for bulk, after much that came, is more than its own: that gives way, once.
            Habit::Steady | Habit::Patient if is_refused && self.refused_at.is_none_or(|at| task.since <= at) => {
                self.refused_at.get_or_insert(now);
                self.pause = now + AT_ONCE;
            }
            Habit::Steady | Habit::Patient if status != 0 => {
                let size = if task.is_big { "big" } else { "small" };
                self.broken(&format!("its {size} write, begun at {:?}, is answered {status:#x}", task.since));
            }
            _ => {
                if task.is_big || self.habit == Habit::Steady {
                    self.refused_at = None;
                }
                self.pause = now + Duration::from_micros(self.rng.magnitude(100, 2_000_000));
            }
        }
    }

    fn step(&mut self, now: Instant) {
        if let Some(task) = self.tasks.iter().find(|task| task.by.is_some_and(|by| by < now)) {
            self.broken(&format!("its command of {:?} is neither answered nor are its data asked for", task.since));
        }
        if !self.peer.has_window() {
            return;
        }
        let under_way = self.tasks.len();
        match self.habit {
            Habit::Silent if under_way == 0 && self.pause <= now => {
                let is_late = self.late_until.is_some_and(|until| now < until);
                self.write(self.big, is_late.then_some(AT_ONCE), now);
            }
            Habit::Steady if under_way == 0 && self.pause <= now => {
                for _ in 0..4 {
                    let blocks = self.rng.between(1, FEW.into()) as u32;
                    self.write(blocks, Some(AT_ONCE), now);
                }
                self.sent_at = now;
            }
            // Data come for some of them in each of the times that the target waits.
            Habit::Steady => self.send_slowly(now),
            Habit::Patient => self.step_of_patient(now),
            Habit::Late if under_way == 0 && self.pause <= now => {
                for _ in 0..self.rng.between(1, 4) {
                    self.read(now);
                }
                let most = Duration::from_secs(20);
                self.deaf_until = Some(now + most.mul_f64(self.rng.below(1000) as f64 / 1000.0));
            }
            _ => {}
        }
    }

    fn send_slowly(&mut self, now: Instant) {
        if now - self.sent_at >= self.waits.data * 5 / 8 && self.send(0) {
            self.sent_at = now;
        }
    }

    fn step_of_patient(&mut self, now: Instant) {
        let small = self.tasks.iter().position(|task| !task.is_big);
        let Some(at) = small else {
            if self.tasks.is_empty() {
                self.write(1, Some(AT_ONCE), now);
            }
            return;
        };
        // Whoever holds more than its own owes nothing longer than this, and it may have its turn at any time.
        if now - self.tasks[at].since >= self.waits.owed / 2 {
            self.send(at);
        } else if !self.tasks[at].asked.is_empty() && self.tasks.len() == 1 && self.pause <= now {
            self.write(self.big, Some(self.waits.turn), now);
        }
    }

    fn place(&mut self, blocks: u32) -> u32 {
        (self.number * BLOCKS) as u32 + self.rng.below(BLOCKS - u64::from(blocks) + 1) as u32
    }

    fn write(&mut self, blocks: u32, within: Option<Duration>, now: Instant) {
        let cdb = with_blocks(opcode::WRITE_10, self.place(blocks), blocks);
        let itt = self.peer.command(0, false, cdb, (0, blocks * BLOCK));
        let by = within.map(|within| now + within);
        self.tasks.push(Task { itt, is_big: blocks > FEW, since: now, by, asked: VecDeque::new() });
    }

    fn read(&mut self, now: Instant) {
        let cdb = with_blocks(opcode::READ_10, self.place(self.big), self.big);
        let itt = self.peer.command(0, false, cdb, (self.big * BLOCK, 0));
        self.tasks.push(Task { itt, is_big: true, since: now, by: None, asked: VecDeque::new() });
    }
}

/// READ (10) or WRITE (10), SBC-3 5.8 and 5.32.
fn with_blocks(opcode: u8, lba: u32, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&(blocks as u16).to_be_bytes());
    cdb
}
