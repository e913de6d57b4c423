//! The dispatch table: every command of the device server, one entry each.

use scsi_proto::{AdditionalSense, Sense, opcode, service_action};

use super::{Outcome, Request, capacity, inquiry, medium, mode, power, provisioning, report};
use crate::lu::LogicalUnit;

/// What a command needs and does.
pub(crate) mod flags {
    /// Needs the medium: refused while the unit is stopped.
    pub(crate) const MEDIUM: u16 = 0x01;
    /// Changes the medium: refused while it is write protected.
    pub(crate) const WRITES: u16 = 0x02;
    /// Takes data from the initiator.
    pub(crate) const DATA_OUT: u16 = 0x04;
    /// Answered also while a unit attention is pending (SAM-5 5.14.1).
    pub(crate) const WITH_ATTENTION: u16 = 0x08;
    /// Answered also where no logical unit is (SPC-5 4.4).
    pub(crate) const WITHOUT_UNIT: u16 = 0x10;
    /// DPO and FUA are bits 4 and 3 of byte 1.
    pub(crate) const CACHE_BITS: u16 = 0x20;
    /// Only on stores that can unmap.
    pub(crate) const NEEDS_UNMAP: u16 = 0x40;
    /// Only where COMPARE AND WRITE is not limited to nothing.
    pub(crate) const NEEDS_COMPARE: u16 = 0x80;
    /// The flags that make the command's presence depend on the unit.
    pub(crate) const CONDITIONAL: u16 = NEEDS_UNMAP | NEEDS_COMPARE;
    /// DPO alone is bit 4 of byte 1.
    pub(crate) const DPO_ONLY: u16 = 0x100;
}

use flags::{CACHE_BITS, DATA_OUT, DPO_ONLY, MEDIUM, NEEDS_COMPARE, NEEDS_UNMAP, WITH_ATTENTION, WITHOUT_UNIT, WRITES};

const DPO: u8 = 0x10;
const FUA: u8 = 0x08;

/// One command.
pub(crate) struct Command {
    pub(crate) opcode: u8,
    pub(crate) action: Option<u8>,
    /// The standard's name.
    pub(crate) name: &'static str,
    /// CDB USAGE DATA as REPORT SUPPORTED OPERATION CODES returns it, without DPO and FUA (SPC-5 6.35.3).
    pub(crate) usage: &'static [u8],
    pub(crate) flags: u16,
    pub(crate) run: fn(&mut Request<'_>) -> Outcome,
    /// Bits of the first 16 bytes that mean nothing, first byte highest.
    stray: u128,
}

impl Command {
    const fn new(
        (opcode, action): (u8, Option<u16>),
        name: &'static str,
        usage: &'static [u8],
        flags: u16,
        run: fn(&mut Request<'_>) -> Outcome,
    ) -> Self {
        let mut bytes = [0u8; 16];
        let mut at = 1;
        while at < usage.len() {
            bytes[at] = !usage[at];
            at += 1;
        }
        let action = match action {
            Some(action) => {
                bytes[1] &= 0xe0;
                Some(action as u8)
            }
            None => None,
        };
        Self { opcode, action, name, usage, flags, run, stray: u128::from_be_bytes(bytes) }
    }

    /// The bits of the CDB that are set though they mean nothing.
    #[inline]
    pub(crate) fn stray_bits(&self, cdb: &[u8]) -> u128 {
        match cdb.first_chunk() {
            Some(first) => u128::from_be_bytes(*first) & self.stray,
            None => 0,
        }
    }

    /// Whether the unit has the command at all.
    pub(crate) fn is_supported(&self, unit: &LogicalUnit) -> bool {
        (self.flags & NEEDS_UNMAP == 0 || unit.abilities().unmap)
            && (self.flags & NEEDS_COMPARE == 0 || unit.limits().max_compare_and_write != 0)
    }

    /// Which of DPO and FUA mean something in byte 1: none without a volatile cache to pass by.
    pub(crate) fn cache_bits(&self, unit: &LogicalUnit) -> u8 {
        match self.flags & (CACHE_BITS | DPO_ONLY) {
            _ if !unit.abilities().volatile_cache => 0,
            CACHE_BITS => DPO | FUA,
            DPO_ONLY => DPO,
            _ => 0,
        }
    }
}

impl core::fmt::Debug for Command {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name)
    }
}

const fn op(opcode: u8) -> (u8, Option<u16>) {
    (opcode, None)
}

const fn act(opcode: u8, action: u16) -> (u8, Option<u16>) {
    (opcode, Some(action))
}

const READS: u16 = MEDIUM | CACHE_BITS;
const WRITE: u16 = MEDIUM | WRITES | DATA_OUT | CACHE_BITS;
const WRITE_VERIFY: u16 = MEDIUM | WRITES | DATA_OUT | DPO_ONLY;
const VERIFY: u16 = MEDIUM | DATA_OUT | DPO_ONLY;
const WRITE_SAME: u16 = MEDIUM | WRITES | DATA_OUT;

const SIA: u8 = opcode::SERVICE_ACTION_IN_16;
const MIN: u8 = opcode::MAINTENANCE_IN;

/// Byte-wise usage data: an LBA or a length field.
const F: u8 = 0xff;
/// GROUP NUMBER.
const G: u8 = 0x3f;

/// Every command, sorted by operation code and service action.
#[rustfmt::skip]
pub(crate) static COMMANDS: &[Command] = &[
    Command::new(op(opcode::TEST_UNIT_READY), "TEST UNIT READY",
        &[0x00, 0, 0, 0, 0, 0], MEDIUM, power::test_unit_ready),
    Command::new(op(opcode::REQUEST_SENSE), "REQUEST SENSE",
        &[0x03, 0x01, 0, 0, F, 0], WITH_ATTENTION | WITHOUT_UNIT, power::request_sense),
    Command::new(op(opcode::READ_6), "READ(6)", &[0x08, 0x1f, F, F, F, 0], MEDIUM, medium::read),
    Command::new(op(opcode::WRITE_6), "WRITE(6)", &[0x0a, 0x1f, F, F, F, 0], MEDIUM | WRITES | DATA_OUT, medium::write),
    Command::new(op(opcode::INQUIRY), "INQUIRY",
        &[0x12, 0x01, F, F, F, 0], WITH_ATTENTION | WITHOUT_UNIT, inquiry::inquiry),
    Command::new(op(opcode::MODE_SELECT_6), "MODE SELECT(6)", &[0x15, 0x13, 0, 0, F, 0], DATA_OUT, mode::select),
    Command::new(op(opcode::MODE_SENSE_6), "MODE SENSE(6)", &[0x1a, 0x08, F, F, F, 0], 0, mode::sense),
    Command::new(op(opcode::START_STOP_UNIT), "START STOP UNIT", &[0x1b, 0x01, 0, 0x0f, 0xf7, 0], 0, power::start_stop),
    Command::new(op(opcode::PREVENT_ALLOW_MEDIUM_REMOVAL), "PREVENT ALLOW MEDIUM REMOVAL",
        &[0x1e, 0, 0, 0, 0x03, 0], 0, power::prevent_allow),
    Command::new(op(opcode::READ_CAPACITY_10), "READ CAPACITY(10)",
        &[0x25, 0, F, F, F, F, 0, 0, 0x01, 0], MEDIUM, capacity::read_capacity_10),
    Command::new(op(opcode::READ_10), "READ(10)", &[0x28, 0, F, F, F, F, G, F, F, 0], READS, medium::read),
    Command::new(op(opcode::WRITE_10), "WRITE(10)", &[0x2a, 0, F, F, F, F, G, F, F, 0], WRITE, medium::write),
    Command::new(op(opcode::WRITE_AND_VERIFY_10), "WRITE AND VERIFY(10)",
        &[0x2e, 0x06, F, F, F, F, G, F, F, 0], WRITE_VERIFY, medium::write_and_verify),
    Command::new(op(opcode::VERIFY_10), "VERIFY(10)", &[0x2f, 0x06, F, F, F, F, G, F, F, 0], VERIFY, medium::verify),
    Command::new(op(opcode::PRE_FETCH_10), "PRE-FETCH(10)",
        &[0x34, 0x02, F, F, F, F, G, F, F, 0], MEDIUM, medium::pre_fetch),
    Command::new(op(opcode::SYNCHRONIZE_CACHE_10), "SYNCHRONIZE CACHE(10)",
        &[0x35, 0x02, F, F, F, F, G, F, F, 0], MEDIUM, medium::synchronize_cache),
    Command::new(op(opcode::WRITE_SAME_10), "WRITE SAME(10)",
        &[0x41, 0x18, F, F, F, F, G, F, F, 0], WRITE_SAME, provisioning::write_same),
    Command::new(op(opcode::UNMAP), "UNMAP",
        &[0x42, 0x01, 0, 0, 0, 0, G, F, F, 0], MEDIUM | WRITES | DATA_OUT | NEEDS_UNMAP, provisioning::unmap),
    Command::new(op(opcode::MODE_SELECT_10), "MODE SELECT(10)",
        &[0x55, 0x13, 0, 0, 0, 0, 0, F, F, 0], DATA_OUT, mode::select),
    Command::new(op(opcode::MODE_SENSE_10), "MODE SENSE(10)", &[0x5a, 0x18, F, F, 0, 0, 0, F, F, 0], 0, mode::sense),
    Command::new(op(opcode::READ_16), "READ(16)",
        &[0x88, 0, F, F, F, F, F, F, F, F, F, F, F, F, G, 0], READS, medium::read),
    Command::new(op(opcode::COMPARE_AND_WRITE), "COMPARE AND WRITE",
        &[0x89, 0, F, F, F, F, F, F, F, F, 0, 0, 0, F, G, 0], WRITE | NEEDS_COMPARE, medium::compare_and_write),
    Command::new(op(opcode::WRITE_16), "WRITE(16)",
        &[0x8a, 0, F, F, F, F, F, F, F, F, F, F, F, F, G, 0], WRITE, medium::write),
    Command::new(op(opcode::ORWRITE_16), "ORWRITE(16)",
        &[0x8b, 0, F, F, F, F, F, F, F, F, F, F, F, F, G, 0], WRITE, medium::or_write),
    Command::new(op(opcode::WRITE_AND_VERIFY_16), "WRITE AND VERIFY(16)",
        &[0x8e, 0x06, F, F, F, F, F, F, F, F, F, F, F, F, G, 0], WRITE_VERIFY, medium::write_and_verify),
    Command::new(op(opcode::VERIFY_16), "VERIFY(16)",
        &[0x8f, 0x06, F, F, F, F, F, F, F, F, F, F, F, F, G, 0], VERIFY, medium::verify),
    Command::new(op(opcode::PRE_FETCH_16), "PRE-FETCH(16)",
        &[0x90, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, G, 0], MEDIUM, medium::pre_fetch),
    Command::new(op(opcode::SYNCHRONIZE_CACHE_16), "SYNCHRONIZE CACHE(16)",
        &[0x91, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, G, 0], MEDIUM, medium::synchronize_cache),
    Command::new(op(opcode::WRITE_SAME_16), "WRITE SAME(16)",
        &[0x93, 0x19, F, F, F, F, F, F, F, F, F, F, F, F, G, 0], WRITE_SAME, provisioning::write_same),
    Command::new(act(SIA, service_action::READ_CAPACITY_16), "READ CAPACITY(16)",
        &[0x9e, 0x10, F, F, F, F, F, F, F, F, F, F, F, F, 0x01, 0], MEDIUM, capacity::read_capacity_16),
    Command::new(act(SIA, service_action::GET_LBA_STATUS_16), "GET LBA STATUS(16)",
        &[0x9e, 0x12, F, F, F, F, F, F, F, F, F, F, F, F, F, 0], MEDIUM, provisioning::get_lba_status),
    Command::new(op(opcode::REPORT_LUNS), "REPORT LUNS",
        &[0xa0, 0, F, 0, 0, 0, F, F, F, F, 0, 0], WITH_ATTENTION | WITHOUT_UNIT, report::luns),
    Command::new(act(MIN, service_action::REPORT_TARGET_PORT_GROUPS), "REPORT TARGET PORT GROUPS",
        &[0xa3, 0xea, 0, 0, 0, 0, F, F, F, F, 0, 0], 0, report::target_port_groups),
    Command::new(act(MIN, service_action::REPORT_SUPPORTED_OPERATION_CODES), "REPORT SUPPORTED OPERATION CODES",
        &[0xa3, 0x0c, 0x87, F, F, F, F, F, F, F, 0, 0], 0, report::operation_codes),
    Command::new(act(MIN, service_action::REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS),
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        &[0xa3, 0x0d, 0x80, 0, 0, 0, F, F, F, F, 0, 0], 0, report::task_management_functions),
    Command::new(op(opcode::READ_12), "READ(12)", &[0xa8, 0, F, F, F, F, F, F, F, F, G, 0], READS, medium::read),
    Command::new(op(opcode::WRITE_12), "WRITE(12)", &[0xaa, 0, F, F, F, F, F, F, F, F, G, 0], WRITE, medium::write),
    Command::new(op(opcode::WRITE_AND_VERIFY_12), "WRITE AND VERIFY(12)",
        &[0xae, 0x06, F, F, F, F, F, F, F, F, G, 0], WRITE_VERIFY, medium::write_and_verify),
    Command::new(op(opcode::VERIFY_12), "VERIFY(12)",
        &[0xaf, 0x06, F, F, F, F, F, F, F, F, G, 0], VERIFY, medium::verify),
];

const NONE: u8 = u8::MAX;

/// Position of an operation code's first command in [`COMMANDS`].
static FIRST: [u8; 256] = {
    let mut first = [NONE; 256];
    let mut at = COMMANDS.len();
    while at > 0 {
        at -= 1;
        first[COMMANDS[at].opcode as usize] = at as u8;
    }
    first
};

/// The commands of one operation code.
pub(crate) fn of_opcode(opcode: u8) -> impl Iterator<Item = &'static Command> {
    let first = FIRST[usize::from(opcode)];
    COMMANDS.get(first.into()..).unwrap_or_default().iter().take_while(move |command| command.opcode == opcode)
}

/// The command that a CDB asks for.
#[inline]
pub(crate) fn find(cdb: &[u8]) -> Result<&'static Command, Sense> {
    let [opcode, second, ..] = *cdb else {
        return Err(Sense::illegal_request(AdditionalSense::INVALID_COMMAND_OPERATION_CODE));
    };
    let first = FIRST[usize::from(opcode)];
    match COMMANDS.get(usize::from(first)) {
        Some(command) if command.action.is_none() => Ok(command),
        Some(_) => of_opcode(opcode)
            .find(|command| command.action == Some(second & 0x1f))
            // SPC-5 4.2.5.2: an unknown service action is an invalid field, not an invalid operation code.
            .ok_or(Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB).at_cdb_bit(1, 4)),
        None => Err(Sense::illegal_request(AdditionalSense::INVALID_COMMAND_OPERATION_CODE)),
    }
}
