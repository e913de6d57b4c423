//! An initiator that keeps to the protocol and does what few do: it owes data and sends them late, leaves gaps in its
//! numbers, aborts what it has just begun, and has every command delivered at once. What it is answered it checks by
//! itself.

mod steps;
mod writes;

use std::collections::BTreeMap;
use std::time::Duration;

use iscsi_proto::pdu::{
    BHS_LEN, Bhs, Opcode, R2t, RESERVED_TAG, RejectReason, ScsiResponse, TaskFunction, TaskManagementResponse,
    TaskResponse,
};
use iscsi_proto::time::Instant;
use scsi_proto::Lun;

pub use writes::CarelessWrites;

use crate::disk::SharedDisk;
use crate::link::{Link, Side};
use crate::model::{Value, WriteId};
use crate::network::Network;
use crate::peer::Peer;
use crate::rng::Rng;
use crate::trace::Trace;
use crate::workload::Verdict;

/// What a command without a store operation, or a function on memory, takes at most where nothing is slow but the
/// initiator.
const ANSWERED_IN: Duration = Duration::from_secs(5);
#[derive(Debug)]
enum What {
    Test,
    /// Its write in the model, what it writes where, and the R2Ts that are still to be answered.
    Write {
        write: WriteId,
        first: Value,
        lba: u64,
        blocks: u64,
        disk: usize,
        owed: Vec<R2t>,
    },
}

#[derive(Debug)]
struct Sent {
    what: What,
    lun: u64,
    immediate: bool,
    cmd_sn: u32,
    at: Instant,
    /// Some of its data were sent with the LUN of others.
    astray: bool,
}

#[derive(Debug)]
struct Asked {
    function: TaskFunction,
    disk: usize,
    referenced: u32,
    at: Instant,
}

/// Data that were owed to a task that is gone.
#[derive(Debug)]
struct Late {
    r2t: R2t,
    first: Value,
    disk: usize,
}

/// Something that the world is to do for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The first LUN of the disk goes, at its server, for a while.
    Remove(usize),
}

/// The initiator.
#[derive(Debug)]
pub struct Careless {
    /// Its end of the session.
    peer: Peer,
    /// Its server.
    pub server: usize,
    number: u64,
    disks: Vec<SharedDisk>,
    trace: Trace,
    verdict: Verdict,
    rng: Rng,
    next_at: Instant,
    steps: u64,
    /// How long its target waits for data that it owes to aborted tasks.
    owed_wait: Duration,
    /// CmdSN that it has left out.
    gap: Option<u32>,
    sent: BTreeMap<u32, Sent>,
    asked: BTreeMap<u32, Asked>,
    late: Vec<Late>,
    over: bool,
    wish: Option<Wish>,
    /// The disk that it resets next.
    resets: Option<usize>,
}

impl Careless {
    /// An initiator that has just connected, and logs in.
    pub fn new(
        (link, server, number): (usize, usize, u64),
        (name, target): (&str, &str),
        (disks, owed_wait): (Vec<SharedDisk>, Duration),
        mut rng: Rng,
        (trace, verdict): (Trace, Verdict),
        now: Instant,
    ) -> Self {
        let steps = rng.between(50, 400);
        let isid = [0x80, 0, 0, 0, 1, number as u8];
        Self {
            peer: Peer::new(link, isid, (name, target)),
            server,
            number,
            disks,
            trace,
            verdict,
            rng,
            next_at: now,
            steps,
            owed_wait,
            gap: None,
            sent: BTreeMap::new(),
            asked: BTreeMap::new(),
            late: Vec::new(),
            over: false,
            wish: None,
            resets: None,
        }
    }

    /// The link's number.
    #[must_use]
    pub fn link(&self) -> usize {
        self.peer.link
    }

    fn broken(&self, what: &str) {
        self.verdict.broken(format!("careless {}: {what}", self.number));
    }

    fn event(&self, what: std::fmt::Arguments<'_>) {
        self.trace.event(format_args!("careless {}: {what}", self.number));
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// What the world is to do.
    pub fn take_wish(&mut self) -> Option<Wish> {
        self.wish.take()
    }

    /// With its next step it resets a disk.
    pub fn have_reset(&mut self, disk: usize) {
        self.resets = Some(disk);
    }

    /// Says good-bye.
    pub fn leave(&mut self) {
        self.steps = 0;
    }

    /// When it has something to do next.
    #[must_use]
    pub fn next(&self, network: &Network, now: Instant) -> Option<Instant> {
        let step = (self.peer.logged_in && !self.over).then_some(self.next_at.max(now));
        [step, network.next(Side::Initiator, now)].into_iter().flatten().min()
    }

    /// Takes what came, and does its next step if it is time. Returns whether anything was done.
    pub fn run(&mut self, link: &mut Link, now: Instant) -> bool {
        let mut any = self.peer.take(link, now);
        while let Some((bhs, data)) = self.peer.pdu() {
            self.heard(&bhs, &data, now);
        }
        if link.end(Side::Initiator, now).is_some() && !self.over {
            self.over = true;
            link.close(Side::Initiator, now);
            return true;
        }
        if self.peer.logged_in && self.next_at <= now && !self.over {
            self.next_at = now + Duration::from_micros(self.rng.magnitude(50, 100_000));
            self.step(now);
            any = true;
        }
        any | self.peer.give(link, now)
    }

    fn heard(&mut self, bhs: &Bhs, data: &[u8], now: Instant) {
        if let Some(status) = self.peer.hear(bhs, data) {
            self.over |= !self.peer.logged_in;
            self.next_at = now;
            return self.event(format_args!("logs in over link {}: {status:?}", self.peer.link));
        }
        match bhs.opcode() {
            Ok(Opcode::ScsiResponse) => {
                let Ok(response) = ScsiResponse::parse(bhs) else { return };
                self.peer.count(response.max_cmd_sn, Some(response.stat_sn));
                self.answered(response.itt, response.status == 0);
                self.check_window();
            }
            Ok(Opcode::R2t) => {
                let Ok(r2t) = R2t::parse(bhs) else { return };
                self.peer.count(r2t.max_cmd_sn, None);
                if let Some(Sent { what: What::Write { owed, first, lba, blocks, disk, .. }, .. }) =
                    self.sent.get_mut(&r2t.itt)
                {
                    // From here on it is certain that the target has it.
                    let values = (*first..*first + *blocks).collect();
                    self.disks[*disk].careless.begin(now, *lba, values);
                    owed.push(r2t);
                }
            }
            Ok(Opcode::TaskManagementResponse) => {
                let Ok(response) = TaskManagementResponse::parse(bhs) else { return };
                self.peer.count(response.max_cmd_sn, Some(response.stat_sn));
                self.function_answered(response.itt, response.response, now);
                self.check_window();
            }
            Ok(Opcode::Reject) => {
                let reason = bhs.0[2];
                let of = data.first_chunk::<BHS_LEN>().map(|bytes| Bhs(*bytes));
                let itt = of.as_ref().map_or(RESERVED_TAG, Bhs::itt);
                if reason == RejectReason::TooManyImmediateCommands as u8 && self.sent.contains_key(&itt) {
                    self.broken("one immediate command at a time is one too many");
                }
            }
            Ok(Opcode::LogoutResponse) => self.over = true,
            // The target stops, or tells of tasks that others have ended.
            _ => {}
        }
    }

    /// Where no numbered request is under way, the next one may come (RFC 7143 4.2.2.1).
    fn check_window(&self) {
        let is_idle = self.gap.is_none() && self.sent.values().all(|sent| sent.immediate);
        if is_idle && !self.peer.has_window() {
            self.broken(&format!(
                "nothing of it is under way, and {} does not fit: MaxCmdSN is {}",
                self.peer.cmd_sn, self.peer.max_cmd_sn
            ));
        }
    }

    /// A command is over.
    fn answered(&mut self, itt: u32, good: bool) {
        let Some(Sent { what, astray, .. }) = self.sent.remove(&itt) else { return };
        if let What::Write { write, first, disk, .. } = what {
            if good && astray {
                self.broken(&format!("a write of {first:#x} is good, and its data were for another LUN"));
            }
            let disk = &self.disks[disk];
            disk.careless.answered(first);
            let model = &mut *disk.model.borrow_mut();
            if good { model.acknowledge(write) } else { model.fail(write) }
        }
    }

    /// A command was ended without an answer.
    fn ended(&mut self, itt: u32) {
        let Some(Sent { what, .. }) = self.sent.remove(&itt) else { return };
        if let What::Write { write, first, lba, blocks, disk: at, owed } = what {
            let disk = &self.disks[at];
            disk.careless.answered(first);
            let values: Vec<_> = (first..first + blocks).collect();
            disk.careless.end_one(disk, lba, &values);
            disk.model.borrow_mut().fail(write);
            self.late.extend(owed.into_iter().map(|r2t| Late { r2t, first, disk: at }));
        }
    }

    fn function_answered(&mut self, itt: u32, response: TaskResponse, now: Instant) {
        let Some(Asked { function, disk, referenced, at }) = self.asked.remove(&itt) else { return };
        self.event(format_args!("{function:?}: {response:?}"));
        let is_fast = self.disks[disk].plan.store.slow.0 == 0;
        if is_fast && now - at > ANSWERED_IN + self.owed_wait && function != TaskFunction::TargetWarmReset {
            self.broken(&format!("{function:?} of a disk that is never slow took {:?}", now - at));
        }
        if response != TaskResponse::Complete {
            return;
        }
        match function {
            TaskFunction::AbortTask => self.ended(referenced),
            TaskFunction::AbortTaskSet | TaskFunction::LogicalUnitReset | TaskFunction::TargetWarmReset => {
                let all = function == TaskFunction::TargetWarmReset;
                let covered: Vec<u32> = self
                    .sent
                    .iter()
                    .filter(|(_, sent)| sent.at < at && (all || self.disk_of(sent.lun) == Some(disk)))
                    .map(|(itt, _)| *itt)
                    .collect();
                covered.into_iter().for_each(|itt| self.ended(itt));
                if function == TaskFunction::LogicalUnitReset {
                    let disk = &self.disks[disk];
                    disk.careless.end(disk, None, at);
                }
                if all {
                    self.gap = None;
                }
            }
            _ => {}
        }
    }

    fn disk_of(&self, lun: u64) -> Option<usize> {
        let number = Lun::parse(lun.to_be_bytes()).ok()?.number()?;
        self.disks.iter().position(|disk| disk.number == number || disk.second_lun == Some(number))
    }
}
