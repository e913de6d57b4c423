//! The odd target's end of one connection: PDUs in, PDUs out, commands done when their time has come.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use iscsi_proto::pdu::{
    BHS_LEN, Bhs, DataIn, DataInStatus, DataOut, LoginRequest, LoginResponse, LogoutRequest, LogoutResponse,
    LogoutResult, NopIn, NopOut, Opcode, R2t, RESERVED_TAG, Residual, ScsiCommand, ScsiResponse, TaskFunction,
    TaskManagementRequest, TaskManagementResponse, TaskResponse, padding,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::time::Instant;
use scsi_proto::capacity::ReadCapacity16;
use scsi_proto::inquiry::Peripheral;
use scsi_proto::report::{self, TargetPortGroup};
use scsi_proto::vpd::{self, Designator, DesignatorId, VpdPage};
use scsi_proto::{AdditionalSense, BlockIo, Cdb, Sense, SenseFormat, SenseKey, opcode};

use super::disk::{BLOCK, OddDisk};
use super::plan::Plan;
use crate::by_hand::agreement;
use crate::rng::Rng;

/// Commands that the window has room for.
const WINDOW: u32 = 24;
/// How long a response waits for one to overtake it, at most.
const OVERTAKEN: Duration = Duration::from_millis(20);
/// Data of one PDU at most: what an initiator takes that declares nothing.
const SEGMENT: usize = 8192;

#[derive(Debug)]
struct Task {
    lun: u64,
    cdb: [u8; 16],
    expected: usize,
    data: Vec<u8>,
    /// When it is done; `None` while data are missing.
    at: Option<Instant>,
    /// Blocks that it really writes, if not all of them, and whether it says so.
    takes: Option<(usize, bool)>,
    r2ts: u32,
}

/// What a command comes to.
struct Answer {
    status: u8,
    sense: Option<Sense>,
    residual: Residual,
    data: Vec<u8>,
}

impl Answer {
    fn good(data: Vec<u8>) -> Self {
        Self { status: 0, sense: None, residual: Residual::None, data }
    }

    fn check_condition(sense: Sense) -> Self {
        Self { status: 2, sense: Some(sense), residual: Residual::None, data: Vec::new() }
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    inbox: Vec<u8>,
    pub(super) outbox: VecDeque<u8>,
    /// A response that the next one overtakes, and until when it waits for that.
    overtaken: Option<(Vec<u8>, Instant)>,
    stat_sn: Serial,
    exp_cmd_sn: Serial,
    max_cmd_sn: Serial,
    tasks: BTreeMap<u32, Task>,
    /// Unit attentions that are to be told, one a command.
    attentions: VecDeque<AdditionalSense>,
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
            outbox: VecDeque::new(),
            overtaken: None,
            stat_sn: Serial(100),
            exp_cmd_sn: Serial(0),
            max_cmd_sn: Serial(0),
            tasks: BTreeMap::new(),
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
        tasks.chain(self.overtaken.iter().map(|(_, until)| *until)).min()
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
            Opcode::LoginRequest => self.log_in(&LoginRequest::parse(bhs).map_err(cannot)?, &data),
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
                    let answer = NopIn {
                        lun: 0,
                        itt: ping.itt,
                        ttt: RESERVED_TAG,
                        stat_sn: self.status_number(),
                        exp_cmd_sn: self.exp_cmd_sn,
                        max_cmd_sn: self.max_cmd_sn,
                    };
                    self.say(answer.emit(), &data);
                }
            }
            Opcode::TaskManagementRequest => {
                let request = TaskManagementRequest::parse(bhs).map_err(cannot)?;
                self.number(request.cmd_sn, request.immediate, plan, now)?;
                self.manage(&request);
            }
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

    fn log_in(&mut self, request: &LoginRequest, text: &[u8]) {
        self.exp_cmd_sn = request.cmd_sn;
        self.max_cmd_sn = request.cmd_sn.advance(WINDOW - 1);
        let response = LoginResponse {
            tsih: 1,
            stat_sn: self.status_number(),
            max_cmd_sn: self.max_cmd_sn,
            ..LoginResponse::granting(request)
        };
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
        if plan.closes_window.is_none_or(|at| now < Instant::ZERO + at) {
            self.max_cmd_sn = self.exp_cmd_sn.advance(WINDOW - 1);
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
                | opcode::SYNCHRONIZE_CACHE_10
                | opcode::SYNCHRONIZE_CACHE_16
        );
        if medium && disk.is_other {
            return Err(format!("operation {:#04x} reached another disk", command.cdb[0]));
        }
        let mut task = Task {
            lun: command.lun,
            cdb: command.cdb,
            expected: if command.read { command.expected_data_transfer_length as usize } else { expected },
            data,
            at: None,
            takes: None,
            r2ts: 0,
        };
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
            task.at = Some(due(plan, rng, now));
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
        let expected = task.expected;
        if out.is_final {
            self.go_on(out.itt, expected, plan, rng, now);
        }
        Ok(())
    }

    fn manage(&mut self, request: &TaskManagementRequest) {
        let response = match request.function {
            Ok(TaskFunction::AbortTask) => match self.tasks.remove(&request.referenced_task_tag) {
                Some(_) => TaskResponse::Complete,
                None => TaskResponse::TaskDoesNotExist,
            },
            _ => {
                self.tasks.clear();
                self.has_reset = true;
                TaskResponse::Complete
            }
        };
        let answer = TaskManagementResponse {
            response,
            additional: 0,
            itt: request.itt,
            stat_sn: self.status_number(),
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.max_cmd_sn,
        };
        self.say(answer.emit(), &[]);
    }

    /// Does what is due.
    pub(super) fn advance(&mut self, disk: &mut OddDisk, plan: &Plan, rng: &mut Rng, now: Instant) -> bool {
        let mut any = false;
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
                self.carry_out(&task, disk)
            };
            self.answer(itt, &task, answer, plan, rng, now);
        }
        any
    }

    fn carry_out(&mut self, task: &Task, disk: &mut OddDisk) -> Answer {
        let code = task.cdb[0];
        if code == opcode::INQUIRY {
            let page = if task.cdb[1] & 1 == 0 { None } else { Some(task.cdb[2]) };
            return match page {
                Some(vpd::DEVICE_IDENTIFICATION) => {
                    let mut names = disk.names();
                    if !disk.groups.is_empty() {
                        names.push(Designator::of_port(DesignatorId::TargetPortGroup(self.group as u16)));
                    }
                    Answer::good(VpdPage::DeviceIdentification(names).to_bytes(Peripheral(0)))
                }
                Some(vpd::UNIT_SERIAL_NUMBER) => {
                    Answer::good(VpdPage::UnitSerialNumber(disk.serial()).to_bytes(Peripheral(0)))
                }
                _ => Answer::check_condition(Sense::invalid_field_in_cdb(2)),
            };
        }
        if let Some(attention) = self.attentions.pop_front() {
            return Answer::check_condition(Sense::unit_attention(attention));
        }
        self.has_told = true;
        if code == opcode::MAINTENANCE_IN && !disk.groups.is_empty() {
            let group = |(number, state): (u16, &u8)| TargetPortGroup {
                group: number,
                state: *state,
                preferred: false,
                supported: 0x8f,
                status_code: 0,
                ports: [number].into(),
            };
            let groups: Vec<_> = (1..).zip(&disk.groups).map(group).collect();
            return Answer::good(report::target_port_groups(&groups, None));
        }
        if code != opcode::SERVICE_ACTION_IN_16
            && let Some(state) = disk.groups.get(self.group - 1).filter(|state| **state > 1)
        {
            let code = match state {
                2 => AdditionalSense::TARGET_PORT_IN_STANDBY,
                0x0f => AdditionalSense::ASYMMETRIC_ACCESS_TRANSITION,
                _ => AdditionalSense::TARGET_PORT_UNAVAILABLE,
            };
            return Answer::check_condition(Sense { key: SenseKey::NotReady, ..Sense::unit_attention(code) });
        }
        let io = Cdb::new(&task.cdb).ok().and_then(BlockIo::parse).unwrap_or_else(|| BlockIo::new(0, 0));
        let (start, len) = (io.lba as usize * BLOCK, io.blocks as usize * BLOCK);
        match code {
            opcode::TEST_UNIT_READY => Answer::good(Vec::new()),
            opcode::SERVICE_ACTION_IN_16 => {
                let told = ReadCapacity16 {
                    last_lba: disk.blocks() - 1,
                    block_length: disk.block_size,
                    ..ReadCapacity16::default()
                };
                Answer::good(told.to_bytes().to_vec())
            }
            opcode::READ_10 | opcode::READ_16 => Answer::good(disk.content[start..start + len].to_vec()),
            opcode::WRITE_10 | opcode::WRITE_16 => {
                let (blocks, says) = task.takes.unwrap_or((len / BLOCK, true));
                let taken = (blocks * BLOCK).min(task.data.len());
                disk.write(io.lba, &task.data[..taken]);
                if io.fua() {
                    disk.flush();
                }
                let residual = match len - taken {
                    less if less > 0 && says => Residual::Underflow(less as u32),
                    _ => Residual::None,
                };
                Answer { residual, ..Answer::good(Vec::new()) }
            }
            opcode::SYNCHRONIZE_CACHE_10 | opcode::SYNCHRONIZE_CACHE_16 => {
                disk.flush();
                Answer::good(Vec::new())
            }
            _ => Answer::check_condition(Sense::illegal_request(AdditionalSense::INVALID_COMMAND_OPERATION_CODE)),
        }
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

    fn status_number(&mut self) -> Serial {
        let number = self.stat_sn;
        self.stat_sn = number.next();
        number
    }

    fn say(&mut self, bhs: Bhs, data: &[u8]) {
        self.outbox.extend(composed(bhs, data));
    }
}

/// When a command is done that has all its data now.
fn due(plan: &Plan, rng: &mut Rng, now: Instant) -> Instant {
    let most = if rng.permille(plan.late.0) { plan.late.1 } else { plan.latency };
    now + most.mul_f64(rng.below(1000) as f64 / 1000.0)
}

/// A PDU with its data.
fn composed(mut bhs: Bhs, data: &[u8]) -> Vec<u8> {
    bhs.set_data_segment_len(data.len() as u32);
    let padding = padding(data.len() as u32) as usize;
    [&bhs.0[..], data, &[0; 3][..padding]].concat()
}
