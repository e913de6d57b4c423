//! The commands that are no medium access: one type each, parsed from a CDB and built into one.
//!
//! A type's `parse` is for a CDB whose operation code (and service action) the caller has found to be that command; it
//! reads fields and cannot fail. Fields that must be zero are not looked at: whether they are is for the device server
//! to check against its CDB usage data.
//!
//! ```
//! use scsi_proto::command::Inquiry;
//! use scsi_proto::vpd;
//! let ask = Inquiry { page: Some(vpd::BLOCK_LIMITS), allocation_length: 64 };
//! let cdb = ask.to_cdb();
//! assert_eq!(cdb.as_bytes(), [0x12, 1, 0xb0, 0, 64, 0]);
//! assert_eq!(Inquiry::parse(cdb.as_cdb()), ask);
//! ```

use super::cdb::{Cdb, CdbBuf};
use super::field::{be16, be32, be64, bit, flag, put, u8_at};
use super::{opcode, service_action};

/// TEST UNIT READY (SPC-5 6.47): no fields.
pub fn test_unit_ready() -> CdbBuf {
    CdbBuf::of([opcode::TEST_UNIT_READY, 0, 0, 0, 0, 0])
}

/// READ CAPACITY(10) (SBC-4 5.20): the answer has eight bytes.
pub fn read_capacity_10() -> CdbBuf {
    CdbBuf::of([opcode::READ_CAPACITY_10, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// INQUIRY (SPC-5 6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inquiry {
    /// The vital product data page asked for (EVPD one), or the standard data.
    pub page: Option<u8>,
    /// The most bytes to return.
    pub allocation_length: u16,
}

impl Inquiry {
    /// Reads the fields. With EVPD zero the PAGE CODE must be zero: see [`Inquiry::stray_page_code`].
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        Self { page: bit(bytes, 1, 0).then(|| u8_at(bytes, 2)), allocation_length: be16(bytes, 3) }
    }

    /// Whether a PAGE CODE came with EVPD zero, which is an INVALID FIELD IN CDB (SPC-5 6.6.1).
    pub fn stray_page_code(cdb: Cdb<'_>) -> bool {
        !bit(cdb.as_bytes(), 1, 0) && u8_at(cdb.as_bytes(), 2) != 0
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let [high, low] = self.allocation_length.to_be_bytes();
        let (evpd, page) = (flag(self.page.is_some(), 0), self.page.unwrap_or(0));
        CdbBuf::of([opcode::INQUIRY, evpd, page, high, low, 0])
    }
}

/// REPORT LUNS (SPC-5 6.33).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportLuns {
    /// SELECT REPORT: 0 all but well-known, 1 well-known only, 2 all.
    pub select_report: u8,
    /// The most bytes to return; at least 16.
    pub allocation_length: u32,
}

impl ReportLuns {
    /// Reads the fields.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        Self { select_report: u8_at(bytes, 2), allocation_length: be32(bytes, 6) }
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let mut cdb = [0; 12];
        cdb[0] = opcode::REPORT_LUNS;
        cdb[2] = self.select_report;
        put(&mut cdb, 6, &self.allocation_length.to_be_bytes());
        CdbBuf::of(cdb)
    }
}

/// READ CAPACITY(16) (SBC-4 5.21).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadCapacity16 {
    /// The most bytes to return.
    pub allocation_length: u32,
}

impl ReadCapacity16 {
    /// Reads the fields.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        Self { allocation_length: be32(cdb.as_bytes(), 10) }
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let mut cdb = [0; 16];
        cdb[0] = opcode::SERVICE_ACTION_IN_16;
        cdb[1] = service_action::READ_CAPACITY_16 as u8;
        put(&mut cdb, 10, &self.allocation_length.to_be_bytes());
        CdbBuf::of(cdb)
    }
}

/// GET LBA STATUS(16) (SBC-4 5.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GetLbaStatus {
    /// The first logical block to tell about.
    pub lba: u64,
    /// The most bytes to return.
    pub allocation_length: u32,
    /// REPORT TYPE: 0 for the provisioning status of all blocks.
    pub report_type: u8,
}

impl GetLbaStatus {
    /// Reads the fields.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        Self { lba: be64(bytes, 2), allocation_length: be32(bytes, 10), report_type: u8_at(bytes, 14) }
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let mut cdb = [0; 16];
        cdb[0] = opcode::SERVICE_ACTION_IN_16;
        cdb[1] = service_action::GET_LBA_STATUS_16 as u8;
        put(&mut cdb, 2, &self.lba.to_be_bytes());
        put(&mut cdb, 10, &self.allocation_length.to_be_bytes());
        cdb[14] = self.report_type;
        CdbBuf::of(cdb)
    }
}

/// UNMAP (SBC-4 5.35); the blocks are in the parameter list, see [`provisioning`](super::provisioning).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unmap {
    /// Anchor the blocks instead of deallocating them.
    pub anchor: bool,
    /// The bytes of the parameter list.
    pub parameter_list_length: u16,
}

impl Unmap {
    /// Reads the fields.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        Self { anchor: bit(bytes, 1, 0), parameter_list_length: be16(bytes, 7) }
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let [high, low] = self.parameter_list_length.to_be_bytes();
        CdbBuf::of([opcode::UNMAP, flag(self.anchor, 0), 0, 0, 0, 0, 0, high, low, 0])
    }
}

/// Which values of a mode page are asked for (SPC-5 6.14.1, page control).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum PageControl {
    /// Those in use.
    #[default]
    Current = 0,
    /// A mask of those that MODE SELECT may change.
    Changeable = 1,
    /// Those of a new device.
    Default = 2,
    /// Those kept over a power loss.
    Saved = 3,
}

/// MODE SENSE(6) and (10) (SPC-5 6.14, 6.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeSense {
    /// The ten-byte form, with the eight-byte header.
    pub ten: bool,
    /// DBD: leave out block descriptors.
    pub disable_block_descriptors: bool,
    /// LLBAA: the long LBA block descriptor is welcome (ten-byte form only).
    pub long_lba_accepted: bool,
    /// Which values.
    pub control: PageControl,
    /// PAGE CODE, 0 to 3Fh; 3Fh for all pages.
    pub page: u8,
    /// SUBPAGE CODE; FFh for all subpages.
    pub subpage: u8,
    /// The most bytes to return; the six-byte form holds at most 255.
    pub allocation_length: u16,
}

impl ModeSense {
    /// Reads the fields of either form.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        let ten = cdb.opcode() == opcode::MODE_SENSE_10;
        Self {
            ten,
            disable_block_descriptors: bit(bytes, 1, 3),
            long_lba_accepted: ten && bit(bytes, 1, 4),
            control: match u8_at(bytes, 2) >> 6 {
                0 => PageControl::Current,
                1 => PageControl::Changeable,
                2 => PageControl::Default,
                _ => PageControl::Saved,
            },
            page: u8_at(bytes, 2) & 0x3f,
            subpage: u8_at(bytes, 3),
            allocation_length: if ten { be16(bytes, 7) } else { u8_at(bytes, 4).into() },
        }
    }

    /// Builds the CDB; in the six-byte form a longer allocation length becomes 255.
    pub fn to_cdb(self) -> CdbBuf {
        let flags = flag(self.disable_block_descriptors, 3);
        let page = (self.control as u8) << 6 | self.page & 0x3f;
        if self.ten {
            let [high, low] = self.allocation_length.to_be_bytes();
            let flags = flags | flag(self.long_lba_accepted, 4);
            CdbBuf::of([opcode::MODE_SENSE_10, flags, page, self.subpage, 0, 0, 0, high, low, 0])
        } else {
            let length = u8::try_from(self.allocation_length).unwrap_or(u8::MAX);
            CdbBuf::of([opcode::MODE_SENSE_6, flags, page, self.subpage, length, 0])
        }
    }
}

/// MODE SELECT(6) and (10) (SPC-5 6.12, 6.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeSelect {
    /// The ten-byte form, with the eight-byte header.
    pub ten: bool,
    /// PF: what follows the header is in page format.
    pub page_format: bool,
    /// RTD: revert all pages to their defaults.
    pub revert_to_defaults: bool,
    /// SP: keep the values over a power loss.
    pub save_pages: bool,
    /// The bytes of the parameter list; the six-byte form holds at most 255.
    pub parameter_list_length: u16,
}

impl ModeSelect {
    /// Reads the fields of either form.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        let ten = cdb.opcode() == opcode::MODE_SELECT_10;
        Self {
            ten,
            page_format: bit(bytes, 1, 4),
            revert_to_defaults: bit(bytes, 1, 1),
            save_pages: bit(bytes, 1, 0),
            parameter_list_length: if ten { be16(bytes, 7) } else { u8_at(bytes, 4).into() },
        }
    }

    /// Builds the CDB; `None` when the six-byte form cannot hold the length.
    pub fn to_cdb(self) -> Option<CdbBuf> {
        let flags = flag(self.page_format, 4) | flag(self.revert_to_defaults, 1) | flag(self.save_pages, 0);
        Some(if self.ten {
            let [high, low] = self.parameter_list_length.to_be_bytes();
            CdbBuf::of([opcode::MODE_SELECT_10, flags, 0, 0, 0, 0, 0, high, low, 0])
        } else {
            let length = u8::try_from(self.parameter_list_length).ok()?;
            CdbBuf::of([opcode::MODE_SELECT_6, flags, 0, 0, length, 0])
        })
    }
}

/// REQUEST SENSE (SPC-5 6.39).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestSense {
    /// DESC: descriptor format is asked for.
    pub descriptor: bool,
    /// The most bytes to return.
    pub allocation_length: u8,
}

impl RequestSense {
    /// Reads the fields.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        Self { descriptor: bit(bytes, 1, 0), allocation_length: u8_at(bytes, 4) }
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let desc = flag(self.descriptor, 0);
        CdbBuf::of([opcode::REQUEST_SENSE, desc, 0, 0, self.allocation_length, 0])
    }
}

/// What REPORT SUPPORTED OPERATION CODES is asked about (SPC-5 6.35, REPORTING OPTIONS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportingOptions {
    /// 000b: all commands.
    All,
    /// 001b: one operation code that has no service actions.
    Opcode(u8),
    /// 010b: one operation code and service action.
    ServiceAction(u8, u16),
    /// 011b: one operation code, with the service action if the operation code has any.
    Either(u8, u16),
    /// 100b to 111b, reserved.
    Reserved(u8),
}

/// REPORT SUPPORTED OPERATION CODES (SPC-5 6.35).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportSupportedOpcodes {
    /// RCTD: add command timeouts descriptors.
    pub timeouts: bool,
    /// What is asked about.
    pub options: ReportingOptions,
    /// The most bytes to return.
    pub allocation_length: u32,
}

impl ReportSupportedOpcodes {
    /// Reads the fields.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        let (code, action) = (u8_at(bytes, 3), be16(bytes, 4));
        Self {
            timeouts: bit(bytes, 2, 7),
            options: match u8_at(bytes, 2) & 0x07 {
                0 => ReportingOptions::All,
                1 => ReportingOptions::Opcode(code),
                2 => ReportingOptions::ServiceAction(code, action),
                3 => ReportingOptions::Either(code, action),
                other => ReportingOptions::Reserved(other),
            },
            allocation_length: be32(bytes, 6),
        }
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let (options, code, action) = match self.options {
            ReportingOptions::All => (0, 0, 0),
            ReportingOptions::Opcode(code) => (1, code, 0),
            ReportingOptions::ServiceAction(code, action) => (2, code, action),
            ReportingOptions::Either(code, action) => (3, code, action),
            ReportingOptions::Reserved(other) => (other & 0x07, 0, 0),
        };
        let mut cdb = [0; 12];
        cdb[0] = opcode::MAINTENANCE_IN;
        cdb[1] = service_action::REPORT_SUPPORTED_OPERATION_CODES as u8;
        cdb[2] = flag(self.timeouts, 7) | options;
        cdb[3] = code;
        put(&mut cdb, 4, &action.to_be_bytes());
        put(&mut cdb, 6, &self.allocation_length.to_be_bytes());
        CdbBuf::of(cdb)
    }
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-5 6.36).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportSupportedTmfs {
    /// REPD: the extended, 16-byte answer is asked for.
    pub extended: bool,
    /// The most bytes to return; at least 4.
    pub allocation_length: u32,
}

impl ReportSupportedTmfs {
    /// Reads the fields.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        Self { extended: bit(bytes, 2, 7), allocation_length: be32(bytes, 6) }
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let mut cdb = [0; 12];
        cdb[0] = opcode::MAINTENANCE_IN;
        cdb[1] = service_action::REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS as u8;
        cdb[2] = flag(self.extended, 7);
        put(&mut cdb, 6, &self.allocation_length.to_be_bytes());
        CdbBuf::of(cdb)
    }
}

/// REPORT TARGET PORT GROUPS (SPC-5 6.37).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportTargetPortGroups {
    /// The extended header format is asked for (PARAMETER DATA FORMAT 001b).
    pub extended: bool,
    /// The most bytes to return.
    pub allocation_length: u32,
}

impl ReportTargetPortGroups {
    /// Reads the fields.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        Self { extended: u8_at(bytes, 1) >> 5 == 1, allocation_length: be32(bytes, 6) }
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let mut cdb = [0; 12];
        cdb[0] = opcode::MAINTENANCE_IN;
        cdb[1] = flag(self.extended, 5) | service_action::REPORT_TARGET_PORT_GROUPS as u8;
        put(&mut cdb, 6, &self.allocation_length.to_be_bytes());
        CdbBuf::of(cdb)
    }
}

/// START STOP UNIT (SBC-4 5.31).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StartStopUnit {
    /// IMMED: status may come before the work is done.
    pub immed: bool,
    /// POWER CONDITION, 0 when START and LOEJ say what to do.
    pub power_condition: u8,
    /// NO_FLUSH: caches need not be written first.
    pub no_flush: bool,
    /// LOEJ: load or eject the medium.
    pub load_eject: bool,
    /// START: go to the active power condition; stopped otherwise.
    pub start: bool,
}

impl StartStopUnit {
    /// Reads the fields.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        Self {
            immed: bit(bytes, 1, 0),
            power_condition: u8_at(bytes, 4) >> 4,
            no_flush: bit(bytes, 4, 2),
            load_eject: bit(bytes, 4, 1),
            start: bit(bytes, 4, 0),
        }
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let how = self.power_condition << 4 | flag(self.no_flush, 2) | flag(self.load_eject, 1) | flag(self.start, 0);
        CdbBuf::of([opcode::START_STOP_UNIT, flag(self.immed, 0), 0, 0, how, 0])
    }
}

/// PREVENT ALLOW MEDIUM REMOVAL (SBC-4 5.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreventAllow {
    /// PREVENT: 0 allows removal, 1 prevents it; 2 and 3 are obsolete.
    pub prevent: u8,
}

impl PreventAllow {
    /// Reads the fields.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        Self { prevent: u8_at(cdb.as_bytes(), 4) & 0x03 }
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let code = opcode::PREVENT_ALLOW_MEDIUM_REMOVAL;
        CdbBuf::of([code, 0, 0, 0, self.prevent & 0x03, 0])
    }
}

/// PERSISTENT RESERVE IN (SPC-5 6.16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PersistentReserveIn {
    /// The service action, such as [`service_action::READ_KEYS`].
    pub action: u8,
    /// The most bytes to return.
    pub allocation_length: u16,
}

impl PersistentReserveIn {
    /// Reads the fields.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        Self { action: u8_at(bytes, 1) & 0x1f, allocation_length: be16(bytes, 7) }
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let [high, low] = self.allocation_length.to_be_bytes();
        let code = opcode::PERSISTENT_RESERVE_IN;
        CdbBuf::of([code, self.action & 0x1f, 0, 0, 0, 0, 0, high, low, 0])
    }
}

/// PERSISTENT RESERVE OUT (SPC-5 6.17).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PersistentReserveOut {
    /// The service action, such as [`service_action::REGISTER`].
    pub action: u8,
    /// SCOPE: 0 for the logical unit.
    pub scope: u8,
    /// TYPE of the reservation, such as 1 for write exclusive, 3 for exclusive access.
    pub kind: u8,
    /// The bytes of the parameter list, 24 for all actions without extra data.
    pub parameter_list_length: u32,
}

impl PersistentReserveOut {
    /// Reads the fields.
    pub fn parse(cdb: Cdb<'_>) -> Self {
        let bytes = cdb.as_bytes();
        Self {
            action: u8_at(bytes, 1) & 0x1f,
            scope: u8_at(bytes, 2) >> 4,
            kind: u8_at(bytes, 2) & 0x0f,
            parameter_list_length: be32(bytes, 5),
        }
    }

    /// Builds the CDB.
    pub fn to_cdb(self) -> CdbBuf {
        let mut cdb = [0; 10];
        cdb[0] = opcode::PERSISTENT_RESERVE_OUT;
        cdb[1] = self.action & 0x1f;
        cdb[2] = self.scope << 4 | self.kind & 0x0f;
        put(&mut cdb, 5, &self.parameter_list_length.to_be_bytes());
        CdbBuf::of(cdb)
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
