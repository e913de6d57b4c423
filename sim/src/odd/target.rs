//! The odd target's end of one connection: PDUs in, PDUs out, commands done when their time has come.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use iscsi_proto::pdu::{
    BHS_LEN, Bhs, DataIn, DataInStatus, DataOut, LoginRequest, LoginResponse, LoginStatus, LogoutRequest,
    LogoutResponse, LogoutResult, NopIn, NopOut, Opcode, R2t, RESERVED_TAG, Residual, ScsiCommand, ScsiResponse,
    TaskFunction, TaskManagementRequest, TextRequest, padding,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;
use scsi_proto::{AdditionalSense, CdbBuf, SenseFormat, opcode};

use super::arrivals::Arrivals;
use super::disk::{BLOCK, OddDisk};
use super::plan::{Farewell, Plan};
use super::unit::Answer;
use crate::by_hand::agreement;
use crate::rng::Rng;

/// Commands that the window has room for.
pub(super) const WINDOW: u32 = 24;
/// How long a response waits for one to overtake it, at most.
const OVERTAKEN: Duration = Duration::from_millis(20);
/// For how long what other commands have done excuses waiting, with the way of an ABORT TASK.
const EXCUSED: Duration = Duration::from_secs(12);
/// Data of one PDU at most: what an initiator takes that declares nothing.
const SEGMENT: usize = 8192;

#[derive(Debug)]
pub(super) struct Task {
    lun: u64,
    pub(super) cdb: CdbBuf,
    expected: usize,
    pub(super) data: Vec<u8>,
    /// When it is done; `None` while data are missing.
    at: Option<Instant>,
    /// Blocks that it really writes, if not all of them, and whether it says so.
    pub(super) takes: Option<(usize, bool)>,
    r2ts: u32,
    /// It is never done, and since when nothing before it is under way that would excuse waiting for it.
    lost: Option<Instant>,
    /// How many came before it.
    arrival: u64,
}

#[derive(Debug)]
pub(super) struct Connection {
    inbox: Vec<u8>,
    /// What the header that is looked at has of a longer CDB.
    extension: Vec<u8>,
    pub(super) outbox: VecDeque<u8>,
    /// A response that the next one overtakes, and until when it waits for that.
    overtaken: Option<(Vec<u8>, Instant)>,
    pub(super) stat_sn: Serial,
    pub(super) exp_cmd_sn: Serial,
    pub(super) max_cmd_sn: Serial,
    /// The window stays closed until then.
    pub(super) opens_at: Option<Instant>,
    pub(super) tasks: BTreeMap<u32, Task>,
    /// Commands that came.
    came: u64,
    arrivals: Arrivals,
    /// Requests that it turns to later.
    functions: Vec<(Instant, TaskManagementRequest)>,
    texts: Vec<(Instant, TextRequest)>,
    /// It is in the Full Feature Phase.
    pub(super) is_up: bool,
    /// Where it sends logins, and whether for good.
    pub(super) redirect: Option<(String, bool)>,
    /// Its login has been counted.
    pub(super) is_counted: bool,
    /// It has asked for the end of the connection.
    pub(super) has_parted: bool,
    /// It has answered with a StatSN that it had used before.
    pub(super) has_misnumbered: bool,
    /// Unit attentions that are to be told, one a command.
    pub(super) attentions: VecDeque<AdditionalSense>,
    /// The number of the target port group that it came in by, from 1.
    pub(super) group: usize,
    /// It was asked for a LOGICAL UNIT RESET, of which the others have to hear.
    pub(super) has_reset: bool,
    /// It answers nothing but the login.
    pub(super) is_silent: bool,
    /// The initiator goes on after its unit attention, and has therefore heard it.
    pub(super) has_told: bool,
    next_ttt: u32,
    /// It has said good-bye.
    pub(super) is_over: bool,
    pub(super) broken: Option<String>,
}

impl Connection {
    pub(super) fn new(attention: Option<AdditionalSense>) -> Self {
        Self {
            inbox: Vec::new(),
            extension: Vec::new(),
            outbox: VecDeque::new(),
            overtaken: None,
            stat_sn: Serial(100),
            exp_cmd_sn: Serial(0),
            max_cmd_sn: Serial(0),
            opens_at: None,
            tasks: BTreeMap::new(),
            came: 0,
            arrivals: Arrivals::default(),
            functions: Vec::new(),
            texts: Vec::new(),
            is_up: false,
            redirect: None,
            is_counted: false,
            has_parted: false,
            has_misnumbered: false,
            attentions: attention.into_iter().collect(),
            group: 1,
            has_reset: false,
            is_silent: false,
            has_told: false,
            next_ttt: 0,
            is_over: false,
            broken: None,
        }
    }

    /// All that the window allows has come.
    pub(super) fn is_shut(&self) -> bool {
        self.is_up && self.exp_cmd_sn.distance(self.max_cmd_sn) < 0
    }

    /// The numbers of the writes that have come since this was last asked.
    pub(super) fn take_commands(&mut self) -> Vec<u64> {
        self.arrivals.take_commands()
    }

    /// Another session has reset the unit: all tasks are gone, and the next command hears of it.
    pub(super) fn reset_by_another(&mut self) {
        self.tasks.clear();
        self.tell(AdditionalSense::BUS_DEVICE_RESET_FUNCTION_OCCURRED);
    }

    /// A command hears of this, after what was to be told before.
    pub(super) fn tell(&mut self, attention: AdditionalSense) {
        if !self.attentions.contains(&attention) {
            self.attentions.push_back(attention);
        }
    }

    /// When it has something to do by itself.
    pub(super) fn next(&self) -> Option<Instant> {
        let tasks = self.tasks.values().filter_map(|task| task.at);
        let requests = self.functions.iter().map(|(at, _)| *at).chain(self.texts.iter().map(|(at, _)| *at));
        tasks.chain(requests).chain(self.overtaken.iter().map(|(_, until)| *until)).chain(self.opens_at).min()
    }

    /// Bytes came.
    pub(super) fn receive(&mut self, bytes: &[u8], disk: &OddDisk, plan: &Plan, rng: &mut Rng, now: Instant) {
        self.inbox.extend_from_slice(bytes);
        while let Some(bhs) = self.inbox.first_chunk::<BHS_LEN>().map(|bhs| Bhs(*bhs)) {
            let (start, len) = (BHS_LEN + bhs.ahs_len(), bhs.data_segment_len() as usize);
            let end = start + len + padding(len as u32) as usize;
            if self.inbox.len() < end {
                return;
            }
            let data = self.inbox[start..start + len].to_vec();
            // A CDB that is longer goes on in the additional header segment (RFC 7143 11.2.2.3), behind its own header.
            self.extension = self.inbox.get(BHS_LEN + 4..start).unwrap_or_default().to_vec();
            self.inbox.drain(..end);
            if let Err(what) = self.take(&bhs, data, disk, plan, rng, now) {
                self.broken.get_or_insert(what);
            }
        }
    }

    fn take(
        &mut self,
        bhs: &Bhs,
        data: Vec<u8>,
        disk: &OddDisk,
        plan: &Plan,
        rng: &mut Rng,
        now: Instant,
    ) -> Result<(), String> {
        let cannot = |error| format!("the initiator sent what cannot be: {error}");
        match bhs.opcode().map_err(cannot)? {
            opcode if self.is_silent && opcode != Opcode::LoginRequest => {}
            Opcode::LoginRequest => self.log_in(&LoginRequest::parse(bhs).map_err(cannot)?, &data, plan, now),
            Opcode::ScsiCommand => {
                let command = ScsiCommand::parse(bhs).map_err(cannot)?;
                self.number(command.cmd_sn, command.immediate, plan, now)?;
                self.begin(&command, data, disk, plan, rng, now)?;
            }
            Opcode::DataOut => self.more(&DataOut::parse(bhs).map_err(cannot)?, &data, plan, rng, now)?,
            Opcode::NopOut => {
                let ping = NopOut::parse(bhs).map_err(cannot)?;
                self.number(ping.cmd_sn, ping.immediate, plan, now)?;
                if ping.itt != RESERVED_TAG {
                    let is_old = plan.old_pongs > 0 && rng.permille(plan.old_pongs);
                    self.has_misnumbered |= is_old;
                    let stat_sn = if is_old { self.stat_sn.advance(u32::MAX) } else { self.status_number() };
                    let answer = NopIn {
                        lun: 0,
                        itt: ping.itt,
                        ttt: RESERVED_TAG,
                        stat_sn,
                        exp_cmd_sn: self.exp_cmd_sn,
                        max_cmd_sn: self.max_cmd_sn,
                    };
                    self.say(answer.emit(), &data);
                }
            }
            Opcode::TaskManagementRequest => {
                let request = TaskManagementRequest::parse(bhs).map_err(cannot)?;
                self.number(request.cmd_sn, request.immediate, plan, now)?;
                let late = request.function == Ok(TaskFunction::AbortTask)
                    && plan.slow_aborts.0 > 0
                    && rng.permille(plan.slow_aborts.0);
                if late {
                    self.functions.push((now + part(plan.slow_aborts.1, rng), request));
                } else {
                    self.manage(&request);
                }
            }
            Opcode::TextRequest => {
                let request = TextRequest::parse(bhs).map_err(cannot)?;
                self.number(request.cmd_sn, request.immediate, plan, now)?;
                self.texts.push((now + part(plan.slow_texts, rng), request));
            }
            Opcode::LogoutRequest if plan.farewell.as_ref().is_some_and(Farewell::is_mute) => {}
            Opcode::LogoutRequest => {
                let request = LogoutRequest::parse(bhs).map_err(cannot)?;
                let answer = LogoutResponse {
                    response: LogoutResult::Closed,
                    itt: request.itt,
                    stat_sn: self.status_number(),
                    exp_cmd_sn: self.exp_cmd_sn,
                    max_cmd_sn: self.max_cmd_sn,
                    time2wait: 0,
                    time2retain: 0,
                };
                self.say(answer.emit(), &[]);
                self.is_over = true;
            }
            other => return Err(format!("the initiator sent {other:?}")),
        }
        Ok(())
    }

    fn log_in(&mut self, request: &LoginRequest, text: &[u8], plan: &Plan, now: Instant) {
        if let Some((to, permanent)) = &self.redirect {
            let permanently = LoginStatus::TARGET_MOVED_PERMANENTLY;
            let status = if *permanent { permanently } else { LoginStatus::TARGET_MOVED_TEMPORARILY };
            let text = format!("TargetAddress={to}\0");
            let response = LoginResponse { status, nsg: None, ..LoginResponse::granting(request) };
            self.say(response.emit(), text.as_bytes());
            self.is_over = true;
            return;
        }
        self.stat_sn = plan.stat_sn;
        self.exp_cmd_sn = request.cmd_sn;
        self.max_cmd_sn = request.cmd_sn.advance(WINDOW - 1);
        if !plan.opens_late.is_zero() {
            self.max_cmd_sn = request.cmd_sn.advance(u32::MAX);
            self.opens_at = Some(now + plan.opens_late);
        }
        self.is_up = true;
        let stat_sn = if plan.repeats_login_number { self.stat_sn } else { self.status_number() };
        let response =
            LoginResponse { tsih: 1, stat_sn, max_cmd_sn: self.max_cmd_sn, ..LoginResponse::granting(request) };
        self.say(response.emit(), &agreement(text));
    }

    /// Takes a CmdSN: they come in their order, and none outside of the window.
    fn number(&mut self, cmd_sn: Serial, immediate: bool, plan: &Plan, now: Instant) -> Result<(), String> {
        if immediate {
            return Ok(());
        }
        if cmd_sn != self.exp_cmd_sn || cmd_sn.distance(self.max_cmd_sn) < 0 {
            return Err(format!(
                "CmdSN {cmd_sn:?} came, from {:?} to {:?} are in order",
                self.exp_cmd_sn, self.max_cmd_sn
            ));
        }
        self.exp_cmd_sn = self.exp_cmd_sn.next();
        let closes = plan.closes_window.is_some_and(|at| now >= Instant::ZERO + at);
        match plan.reopens.map(|at| Instant::ZERO + at) {
            Some(at) if closes && now < at => self.opens_at = Some(at),
            None if closes => {}
            _ => self.max_cmd_sn = self.exp_cmd_sn.advance(WINDOW - 1),
        }
        Ok(())
    }

    fn begin(
        &mut self,
        command: &ScsiCommand,
        data: Vec<u8>,
        disk: &OddDisk,
        plan: &Plan,
        rng: &mut Rng,
        now: Instant,
    ) -> Result<(), String> {
        let expected = if command.write { command.expected_data_transfer_length as usize } else { 0 };
        let medium = matches!(
            command.cdb[0],
            opcode::READ_10
                | opcode::READ_16
                | opcode::WRITE_10
                | opcode::WRITE_16
                | opcode::COMPARE_AND_WRITE
                | opcode::VARIABLE_LENGTH
                | opcode::SYNCHRONIZE_CACHE_10
                | opcode::SYNCHRONIZE_CACHE_16
        );
        if medium && disk.is_other {
            return Err(format!("operation {:#04x} reached another disk", command.cdb[0]));
        }
        let mut task = Task {
            lun: command.lun,
            cdb: CdbBuf::from_parts(&command.cdb, &self.extension).map_err(|error| error.to_string())?,
            expected: if command.read { command.expected_data_transfer_length as usize } else { expected },
            data,
            at: None,
            takes: None,
            r2ts: 0,
            lost: (medium && plan.lost > 0 && rng.permille(plan.lost)).then_some(now),
            arrival: self.came,
        };
        self.came += 1;
        if command.write && medium && command.cdb[0] != opcode::COMPARE_AND_WRITE {
            self.arrivals.came(command.itt, task.cdb);
            self.arrivals.carries(command.itt, &task.data, plan.numbered)?;
        }
        let short = command.write && expected > 0 && rng.permille(plan.short);
        if short && rng.permille(500) {
            // It takes everything, and tells how much of it it has not processed.
            task.takes = Some((rng.below((expected / BLOCK) as u64) as usize, true));
        } else if short && command.is_final && task.data.len() < expected {
            // It says GOOD without having asked for the rest.
            task.takes = Some((task.data.len() / BLOCK, false));
            task.at = Some(due(plan, rng, now));
        }
        self.tasks.insert(command.itt, task);
        if command.is_final || !command.write {
            self.go_on(command.itt, expected, plan, rng, now);
        }
        Ok(())
    }

    /// A burst has ended: the next one is asked for, or the command is done in its time.
    fn go_on(&mut self, itt: u32, expected: usize, plan: &Plan, rng: &mut Rng, now: Instant) {
        let Some(task) = self.tasks.get_mut(&itt).filter(|task| task.at.is_none()) else { return };
        if task.data.len() >= expected {
            match &mut task.lost {
                Some(since) => *since = now,
                None => task.at = Some(due(plan, rng, now)),
            }
            return;
        }
        let desired = (expected - task.data.len()).min(rng.pick(&[1536, 8192, 65536]));
        self.next_ttt += 1;
        let r2t = R2t {
            lun: task.lun,
            itt,
            ttt: self.next_ttt,
            stat_sn: self.stat_sn,
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.max_cmd_sn,
            r2t_sn: task.r2ts,
            buffer_offset: task.data.len() as u32,
            desired_data_transfer_length: desired as u32,
        };
        task.r2ts += 1;
        self.say(r2t.emit(), &[]);
    }

    fn more(&mut self, out: &DataOut, data: &[u8], plan: &Plan, rng: &mut Rng, now: Instant) -> Result<(), String> {
        // What was aborted, or answered early, still gets what was under way.
        let Some(task) = self.tasks.get_mut(&out.itt) else { return Ok(()) };
        if out.buffer_offset as usize != task.data.len() {
            return Err(format!("data at {} came, those at {} are next", out.buffer_offset, task.data.len()));
        }
        task.data.extend_from_slice(data);
        self.arrivals.carries(out.itt, &task.data, plan.numbered)?;
        let expected = task.expected;
        if out.is_final {
            self.go_on(out.itt, expected, plan, rng, now);
        }
        Ok(())
    }

    /// A command that was lost is not waited for longer than it may be.
    fn look_at_lost(&mut self, plan: &Plan, now: Instant) {
        let others: Vec<u64> =
            self.tasks.values().filter(|task| task.lost.is_none()).map(|task| task.arrival).collect();
        for task in self.tasks.values_mut() {
            let Some(since) = &mut task.lost else { continue };
            if others.iter().any(|other| *other < task.arrival) {
                *since = now;
            } else if now - *since > plan.timeouts.command * 2 + EXCUSED {
                self.broken.get_or_insert(format!("a command is waited for that was lost at {since:?}"));
            }
        }
    }

    /// Does what is due.
    pub(super) fn advance(&mut self, disk: &mut OddDisk, plan: &Plan, rng: &mut Rng, now: Instant) -> bool {
        let mut any = false;
        if self.opens_at.is_some_and(|at| at <= now) {
            self.open();
            any = true;
        }
        for (_, request) in self.functions.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.manage(&request);
            any = true;
        }
        for (_, request) in self.texts.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.answer_text(&request);
            any = true;
        }
        if plan.lost > 0 {
            self.look_at_lost(plan, now);
        }
        if self.overtaken.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.let_go();
            any = true;
        }
        let due: Vec<u32> =
            self.tasks.iter().filter(|(_, task)| task.at.is_some_and(|at| at <= now)).map(|(itt, _)| *itt).collect();
        for itt in due {
            any = true;
            let Some(task) = self.tasks.remove(&itt) else { continue };
            let answer = if plan.busy > 0 && rng.permille(plan.busy) {
                Answer { status: 8, ..Answer::good(Vec::new()) }
            } else {
                self.carry_out(&task, disk, plan, rng)
            };
            self.answer(itt, &task, answer, plan, rng, now);
        }
        any
    }

    fn answer(&mut self, itt: u32, task: &Task, answer: Answer, plan: &Plan, rng: &mut Rng, now: Instant) {
        let Answer { status, sense, mut residual, mut data } = answer;
        if !data.is_empty() && data.len() < task.expected {
            residual = Residual::Underflow((task.expected - data.len()) as u32);
        }
        data.truncate(task.expected);
        let pieces = data.chunks(SEGMENT).count();
        let with_status = sense.is_none() && rng.permille(500);
        for (at, piece) in data.chunks(SEGMENT).enumerate() {
            let last = at + 1 == pieces;
            let status =
                (last && with_status).then(|| DataInStatus { status, stat_sn: self.status_number(), residual });
            let data_in = DataIn {
                is_final: last,
                acknowledge: false,
                status,
                lun: 0,
                itt,
                ttt: RESERVED_TAG,
                exp_cmd_sn: self.exp_cmd_sn,
                max_cmd_sn: self.max_cmd_sn,
                data_sn: at as u32,
                buffer_offset: (at * SEGMENT) as u32,
            };
            self.say(data_in.emit(), piece);
        }
        if with_status && pieces > 0 {
            return;
        }
        let response = ScsiResponse {
            residual,
            status,
            itt,
            stat_sn: self.status_number(),
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.max_cmd_sn,
            exp_data_sn: pieces as u32 + task.r2ts,
            ..ScsiResponse::default()
        };
        let sense = sense.map(|sense| {
            let bytes = sense.to_bytes(SenseFormat::Fixed);
            [&(bytes.len() as u16).to_be_bytes()[..], &bytes[..]].concat()
        });
        let pdu = composed(response.emit(), &sense.unwrap_or_default());
        if self.overtaken.is_none() && rng.permille(plan.swaps) {
            self.overtaken = Some((pdu, now + OVERTAKEN));
            return;
        }
        self.outbox.extend(pdu);
        self.let_go();
    }

    /// A response that was overtaken goes out.
    fn let_go(&mut self) {
        if let Some((pdu, _)) = self.overtaken.take() {
            self.outbox.extend(pdu);
        }
    }

    pub(super) fn status_number(&mut self) -> Serial {
        let number = self.stat_sn;
        self.stat_sn = number.next();
        number
    }

    pub(super) fn say(&mut self, bhs: Bhs, data: &[u8]) {
        self.outbox.extend(composed(bhs, data));
    }
}

/// When a command is done that has all its data now.
fn due(plan: &Plan, rng: &mut Rng, now: Instant) -> Instant {
    let most = if rng.permille(plan.late.0) { plan.late.1 } else { plan.latency };
    now + part(most, rng)
}

/// Some part of a time.
fn part(most: Duration, rng: &mut Rng) -> Duration {
    most.mul_f64(rng.below(1000) as f64 / 1000.0)
}

/// A PDU with its data.
fn composed(mut bhs: Bhs, data: &[u8]) -> Vec<u8> {
    bhs.set_data_segment_len(data.len() as u32);
    let padding = padding(data.len() as u32) as usize;
    [&bhs.0[..], data, &[0; 3][..padding]].concat()
}
