//! What there is: logical units, commands, task management functions, target port groups (SPC-5 6.33 to 6.37).

use alloc::vec::Vec;

use scsi_proto::command::{
    ReportLuns, ReportSupportedOpcodes, ReportSupportedTmfs, ReportTargetPortGroups, ReportingOptions,
};
use scsi_proto::report::{
    CommandTimeouts, OneCommand, Support, SupportedCommand, SupportedTmfs, TargetPortGroup, all_commands,
    luns as emit_luns, target_port_groups as emit_groups,
};
use scsi_proto::{AdditionalSense, Cdb, Lun, Sense};

use super::table::{self, COMMANDS, Command};
use super::{Outcome, Request};
use crate::lu::{LogicalUnit, LunMap};

pub(super) fn luns(request: &mut Request<'_>) -> Outcome {
    let data = luns_data(request.cdb, request.luns)?;
    let allocation = ReportLuns::parse(request.cdb).allocation_length;
    request.answer(&data, allocation)
}

/// The inventory, in the order of the LUNs.
pub(super) fn luns_data(cdb: Cdb<'_>, luns: &LunMap) -> Result<Vec<u8>, Sense> {
    let ask = ReportLuns::parse(cdb);
    // SPC-5 6.33: an allocation length below 16 is refused.
    if ask.allocation_length < 16 {
        return Err(Sense::invalid_field_in_cdb(6));
    }
    match ask.select_report {
        0x00 | 0x02 => Ok(emit_luns(luns.iter().filter_map(|lun| Lun::new(lun.number)))),
        // Well-known logical units, administrative ones: there are none.
        0x01 | 0x10..=0x12 => Ok(emit_luns([])),
        _ => Err(Sense::invalid_field_in_cdb(2)),
    }
}

fn usage(command: &Command, unit: &LogicalUnit) -> Vec<u8> {
    let mut usage = command.usage.to_vec();
    if let Some(second) = usage.get_mut(1) {
        *second |= command.cache_bits(unit);
    }
    usage
}

pub(super) fn operation_codes(request: &mut Request<'_>) -> Outcome {
    let ask = ReportSupportedOpcodes::parse(request.cdb);
    // No command has a time to tell: both times are zero, which says so (SPC-5 6.35.4).
    let timeouts = ask.timeouts.then_some(CommandTimeouts { specific: 0, nominal: 0, recommended: 0 });
    let unit = request.unit;
    let one = |command: Option<&Command>| match command.filter(|command| command.is_supported(unit)) {
        Some(command) => OneCommand { support: Support::Standard, usage: usage(command, unit), timeouts }.to_bytes(),
        None => OneCommand::NOT_SUPPORTED.to_bytes(),
    };
    let mismatch = Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB);
    let find = |code, action: u16| {
        let with_actions = table::of_opcode(code).any(|command| command.action.is_some());
        (with_actions, table::of_opcode(code).find(|command| command.action.is_none_or(|own| u16::from(own) == action)))
    };
    let data = match ask.options {
        ReportingOptions::All => {
            all_commands(COMMANDS.iter().filter(|command| command.is_supported(unit)).map(|command| SupportedCommand {
                opcode: command.opcode,
                service_action: command.action.map(u16::from),
                cdb_length: command.usage.len() as u16,
                timeouts,
            }))
        }
        ReportingOptions::Opcode(code) => match find(code, 0) {
            (true, _) => return Err(mismatch.at_cdb_bit(2, 2)),
            (false, command) => one(command),
        },
        ReportingOptions::ServiceAction(code, action) => match find(code, action) {
            (false, Some(_)) => return Err(mismatch.at_cdb_bit(2, 2)),
            (_, command) => one(command),
        },
        ReportingOptions::Either(code, action) => match find(code, action) {
            // SPC-5 6.35.1: an operation code without service actions is reported only for service action zero.
            (false, _) if action != 0 => one(None),
            (_, command) => one(command),
        },
        ReportingOptions::Reserved(_) => return Err(mismatch.at_cdb_bit(2, 2)),
    };
    request.answer(&data, ask.allocation_length)
}

pub(super) fn task_management_functions(request: &mut Request<'_>) -> Outcome {
    let ask = ReportSupportedTmfs::parse(request.cdb);
    // SPC-5 6.36: an allocation length below 4 is refused.
    if ask.allocation_length < 4 {
        return Err(Sense::invalid_field_in_cdb(6));
    }
    // RFC 7144 6.3: these need iSCSIProtocolLevel 2.
    let level2 = request.nexus.protocol_level >= 2;
    let supported = SupportedTmfs {
        abort_task: true,
        abort_task_set: true,
        clear_task_set: true,
        logical_unit_reset: true,
        query_task: level2,
        query_task_set: level2,
        i_t_nexus_reset: level2,
        ..SupportedTmfs::default()
    };
    request.answer(&supported.to_bytes(ask.extended), ask.allocation_length)
}

/// The groups of the configuration, all active/optimized: every path is as good as any other.
pub(super) fn target_port_groups(request: &mut Request<'_>) -> Outcome {
    let ask = ReportTargetPortGroups::parse(request.cdb);
    if request.cdb.as_bytes().get(1).is_some_and(|byte| byte >> 5 > 1) {
        return Err(Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB).at_cdb_bit(1, 7));
    }
    let mut groups: Vec<TargetPortGroup> = Vec::new();
    for port in request.nexus.ports.iter() {
        match groups.iter_mut().find(|group| group.group == port.group) {
            Some(group) => group.ports.push(port.relative),
            None => groups.push(TargetPortGroup {
                group: port.group,
                state: 0,
                preferred: false,
                supported: 0x01,
                status_code: 0,
                ports: Vec::from([port.relative]),
            }),
        }
    }
    let data = emit_groups(&groups, ask.extended.then_some(0));
    request.answer(&data, ask.allocation_length)
}
