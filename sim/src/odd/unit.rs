//! What commands come to at the odd target's disk.

use iscsi_proto::pdu::Residual;
use scsi_proto::capacity::ReadCapacity16;
use scsi_proto::inquiry::{Peripheral, StandardInquiry};
use scsi_proto::report::{self, TargetPortGroup};
use scsi_proto::vpd::{self, Designator, DesignatorId, VpdPage};
use scsi_proto::{AdditionalSense, BlockIo, Cdb, Sense, SenseKey, opcode};

use super::disk::{BLOCK, OddDisk};
use super::plan::Plan;
use super::target::{Connection, Task};
use crate::rng::Rng;

/// What a command comes to.
pub(super) struct Answer {
    pub(super) status: u8,
    pub(super) sense: Option<Sense>,
    pub(super) residual: Residual,
    pub(super) data: Vec<u8>,
}

impl Answer {
    pub(super) fn good(data: Vec<u8>) -> Self {
        Self { status: 0, sense: None, residual: Residual::None, data }
    }

    pub(super) fn check_condition(sense: Sense) -> Self {
        Self { status: 2, sense: Some(sense), residual: Residual::None, data: Vec::new() }
    }
}

impl Connection {
    pub(super) fn carry_out(&mut self, task: &Task, disk: &mut OddDisk, plan: &Plan, rng: &mut Rng) -> Answer {
        let code = task.cdb.as_bytes()[0];
        if code == opcode::INQUIRY {
            let cdb = task.cdb.as_bytes();
            let page = if cdb[1] & 1 == 0 { None } else { Some(cdb[2]) };
            return match page {
                None => Answer::good(StandardInquiry::default().to_bytes()),
                Some(vpd::SUPPORTED_PAGES) => {
                    let mut pages = vec![vpd::SUPPORTED_PAGES, vpd::UNIT_SERIAL_NUMBER, vpd::DEVICE_IDENTIFICATION];
                    pages.extend([vpd::BLOCK_LIMITS, vpd::BLOCK_PROVISIONING].iter().filter(|_| plan.senseless));
                    Answer::good(VpdPage::SupportedPages(pages).to_bytes(Peripheral(0)))
                }
                Some(vpd::BLOCK_LIMITS | vpd::BLOCK_PROVISIONING) if plan.senseless => Answer::good(vec![0xff; 3]),
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
        if matches!(code, opcode::MODE_SENSE_6 | opcode::MODE_SENSE_10) && plan.senseless {
            return Answer::good(vec![0xff; 2]);
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
        if code == opcode::START_STOP_UNIT {
            disk.starts += 1;
            disk.is_stopped &= !plan.stops.is_some_and(|(_, starts)| starts);
            return Answer::good(Vec::new());
        }
        if disk.is_stopped {
            let sense = Sense::new(SenseKey::NotReady, AdditionalSense::NOT_READY_INITIALIZING_COMMAND_REQUIRED);
            return Answer::check_condition(sense);
        }
        if plan.late_errors > 0
            && code != opcode::SERVICE_ACTION_IN_16
            && rng.permille(plan.late_errors)
            && disk.drops()
        {
            let sense = Sense::new(SenseKey::MediumError, AdditionalSense::WRITE_ERROR);
            return Answer::check_condition(Sense { deferred: true, ..sense });
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
        let io = Cdb::new(task.cdb.as_bytes()).ok().and_then(BlockIo::parse).unwrap_or_else(|| BlockIo::new(0, 0));
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
            opcode::VARIABLE_LENGTH => {
                // It may have said that it is done before its block has come.
                let block = task.data.get(..BLOCK).unwrap_or_default();
                (io.lba..io.lba + u64::from(io.blocks)).for_each(|lba| disk.write(lba, block));
                Answer::good(Vec::new())
            }
            opcode::COMPARE_AND_WRITE => {
                let (expected, new) = task.data.split_at(len);
                if disk.content[start..start + len] != *expected {
                    let code = AdditionalSense::MISCOMPARE_DURING_VERIFY_OPERATION;
                    return Answer::check_condition(Sense::new(SenseKey::Miscompare, code));
                }
                disk.write(io.lba, new);
                Answer::good(Vec::new())
            }
            opcode::SYNCHRONIZE_CACHE_10 | opcode::SYNCHRONIZE_CACHE_16 => {
                if plan.failed_flushes > 0 && rng.permille(plan.failed_flushes) && disk.drops() {
                    return Answer::check_condition(Sense::new(SenseKey::MediumError, AdditionalSense::WRITE_ERROR));
                }
                disk.flush();
                Answer::good(Vec::new())
            }
            _ => Answer::check_condition(Sense::illegal_request(AdditionalSense::INVALID_COMMAND_OPERATION_CODE)),
        }
    }
}
