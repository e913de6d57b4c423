//! An initiator that keeps to the protocol and does what few do: it owes data and sends them late, leaves gaps in its
//! numbers, aborts what it has just begun, and has every command delivered at once. What it is answered it checks by
//! itself.

mod steps;
mod writes;

use std::collections::BTreeMap;
use std::time::Duration;

use iscsi_proto::pdu::{
    BHS_LEN, Bhs, LoginRequest, LoginResponse, LoginStatus, NopIn, NopOut, Opcode, R2t, RESERVED_TAG, RejectReason,
    ScsiResponse, TaskFunction, TaskManagementResponse, TaskResponse, padding,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;
use scsi_proto::Lun;

pub use writes::CarelessWrites;

use crate::disk::SharedDisk;
use crate::hostile::{login, wire};
use crate::link::{Link, Side};
use crate::model::{Value, WriteId};
use crate::network::Network;
use crate::rng::Rng;
use crate::trace::Trace;
use crate::workload::Verdict;

/// What a command without a store operation, or a function on memory, takes at most where nothing is slow but the
/// initiator.
const ANSWERED_IN: Duration = Duration::from_secs(5);
/// What it offers in login.
const OURS: &str =
    "HeaderDigest=None\0DataDigest=None\0InitialR2T=Yes\0ImmediateData=No\0MaxRecvDataSegmentLength=8192\0";

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
    /// The link's number.
    pub link: usize,
    /// Its server.
    pub server: usize,
    number: u64,
    disks: Vec<SharedDisk>,
    trace: Trace,
    verdict: Verdict,
    rng: Rng,
    out: Vec<u8>,
    /// Bytes that a Data-Out may bring.
    segment: usize,
    arrived: Vec<u8>,
    next_at: Instant,
    steps: u64,
    /// How long its target waits for data that it owes to aborted tasks.
    owed_wait: Duration,
    logged_in: bool,
    cmd_sn: u32,
    max_cmd_sn: u32,
    exp_stat_sn: u32,
    next_itt: u32,
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
        let mut new = Self {
            link,
            server,
            number,
            disks,
            trace,
            verdict,
            rng,
            out: Vec::new(),
            segment: 8192,
            arrived: Vec::new(),
            next_at: now,
            steps,
            owed_wait,
            logged_in: false,
            cmd_sn: 1,
            max_cmd_sn: 1,
            exp_stat_sn: 0,
            next_itt: 1,
            gap: None,
            sent: BTreeMap::new(),
            asked: BTreeMap::new(),
            late: Vec::new(),
            over: false,
            wish: None,
            resets: None,
        };
        new.out = login(target, name, new.isid(), OURS);
        new
    }

    const fn isid(&self) -> [u8; 6] {
        [0x80, 0, 0, 0, 1, self.number as u8]
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
        let step = (self.logged_in && !self.over).then_some(self.next_at.max(now));
        [step, network.next(Side::Initiator, now)].into_iter().flatten().min()
    }

    /// Takes what came, and does its next step if it is time. Returns whether anything was done.
    pub fn run(&mut self, link: &mut Link, now: Instant) -> bool {
        let mut any = false;
        let bytes = link.arrived(Side::Initiator, now);
        if !bytes.is_empty() {
            self.arrived.extend(bytes.drain(..));
            any = true;
        }
        while let Some((bhs, data)) = self.pdu() {
            self.heard(&bhs, &data, now);
        }
        if link.end(Side::Initiator, now).is_some() && !self.over {
            self.over = true;
            link.close(Side::Initiator, now);
            return true;
        }
        if self.logged_in && self.next_at <= now && !self.over {
            self.next_at = now + Duration::from_micros(self.rng.magnitude(50, 100_000));
            self.step(now);
            any = true;
        }
        let n = self.out.len().min(link.room(Side::Initiator));
        if n > 0 {
            link.send(Side::Initiator, self.out.drain(..n).collect(), now);
            any = true;
        }
        any
    }

    fn pdu(&mut self) -> Option<(Bhs, Vec<u8>)> {
        let bhs = Bhs(*self.arrived.first_chunk::<BHS_LEN>()?);
        let (from, len) = (BHS_LEN + bhs.ahs_len(), bhs.data_segment_len());
        let all = from + len as usize + padding(len) as usize;
        if self.arrived.len() < all {
            return None;
        }
        let pdu: Vec<u8> = self.arrived.drain(..all).collect();
        Some((bhs, pdu[from..from + len as usize].to_vec()))
    }

    /// What it says to the target's keys: all is as the target wants it.
    fn agree(&mut self, text: &[u8]) -> String {
        let mut answer = String::new();
        for pair in String::from_utf8_lossy(text).split_terminator('\0') {
            match pair.split_once('=') {
                Some(("MaxRecvDataSegmentLength", most)) => self.segment = most.parse().unwrap_or(512),
                Some(("TargetPortalGroupTag" | "TargetAlias" | "TargetAddress", _)) | None => {}
                Some(_) if self.answered_in_login(pair) => {}
                Some(_) => {
                    answer.push_str(pair);
                    answer.push('\0');
                }
            }
        }
        answer
    }

    /// Whether a key is the target's answer to one of ours.
    fn answered_in_login(&self, pair: &str) -> bool {
        OURS.split_terminator('\0')
            .any(|own| own.split_once('=').map(|own| own.0) == pair.split_once('=').map(|of| of.0))
    }

    fn window(&mut self, max: Serial, stat_sn: Option<Serial>) {
        if Serial(self.max_cmd_sn) < max {
            self.max_cmd_sn = max.0;
        }
        if let Some(stat_sn) = stat_sn {
            self.exp_stat_sn = stat_sn.0.wrapping_add(1);
        }
    }

    fn heard(&mut self, bhs: &Bhs, data: &[u8], now: Instant) {
        match bhs.opcode() {
            Ok(Opcode::LoginResponse) => {
                let Ok(response) = LoginResponse::parse(bhs) else { return };
                self.window(response.max_cmd_sn, Some(response.stat_sn));
                if response.status == LoginStatus::SUCCESS && response.nsg.is_none() {
                    let answer = self.agree(data);
                    let exp_stat_sn = Serial(self.exp_stat_sn);
                    let again = LoginRequest { exp_stat_sn, ..LoginRequest::straight_to_full_feature(self.isid(), 1) };
                    return self.out.extend(wire(again.emit(), answer.as_bytes()));
                }
                self.logged_in = response.status == LoginStatus::SUCCESS;
                self.over |= !self.logged_in;
                self.next_at = now;
                self.event(format_args!("logs in over link {}: {:?}", self.link, response.status));
            }
            Ok(Opcode::ScsiResponse) => {
                let Ok(response) = ScsiResponse::parse(bhs) else { return };
                self.window(response.max_cmd_sn, Some(response.stat_sn));
                self.answered(response.itt, response.status == 0);
                self.check_window();
            }
            Ok(Opcode::R2t) => {
                let Ok(r2t) = R2t::parse(bhs) else { return };
                self.window(r2t.max_cmd_sn, None);
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
                self.window(response.max_cmd_sn, Some(response.stat_sn));
                self.function_answered(response.itt, response.response, now);
                self.check_window();
            }
            Ok(Opcode::NopIn) => {
                let Ok(nop) = NopIn::parse(bhs) else { return };
                self.window(nop.max_cmd_sn, None);
                if nop.ttt != RESERVED_TAG {
                    let answer = NopOut {
                        immediate: true,
                        lun: nop.lun,
                        itt: RESERVED_TAG,
                        ttt: nop.ttt,
                        cmd_sn: Serial(self.cmd_sn),
                        exp_stat_sn: Serial(self.exp_stat_sn),
                    };
                    self.out.extend(wire(answer.emit(), &[]));
                }
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
        if is_idle && !self.has_window() {
            self.broken(&format!(
                "nothing of it is under way, and {} does not fit: MaxCmdSN is {}",
                self.cmd_sn, self.max_cmd_sn
            ));
        }
    }

    /// A command is over.
    fn answered(&mut self, itt: u32, good: bool) {
        let Some(Sent { what, .. }) = self.sent.remove(&itt) else { return };
        if let What::Write { write, first, disk, .. } = what {
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
