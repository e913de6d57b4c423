//! SCSI Command and Response, Task Management Request and Response (RFC 7143 11.3 to 11.6, RFC 7144 5 and 6).

use super::offset::{
    ADDITIONAL_RESPONSE_INFORMATION, BIDIRECTIONAL_READ_RESIDUAL_COUNT, CDB, CMD_SN, EXP_CMD_SN, EXP_DATA_SN,
    EXP_STAT_SN, EXPECTED_DATA_TRANSFER_LENGTH, FLAGS, ITT, MAX_CMD_SN, REF_CMD_SN, REFERENCED_TASK_TAG,
    RESIDUAL_COUNT, SNACK_TAG, STAT_SN, STATUS_QUALIFIER,
};
use super::{Bhs, Opcode, PduError, RESERVED_TAG};
use crate::serial::Serial;

/// Task attribute of a command (RFC 7143 11.3.1, SAM-5 8.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum TaskAttribute {
    /// The initiator leaves it open: the target chooses the order, as for SIMPLE.
    #[default]
    Untagged = 0,
    /// SIMPLE.
    Simple = 1,
    /// ORDERED.
    Ordered = 2,
    /// HEAD OF QUEUE.
    HeadOfQueue = 3,
    /// ACA.
    Aca = 4,
}

/// SCSI Command (RFC 7143 11.3). The CDB's bytes beyond 16 and the bidirectional read length travel in [`super::Ahs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScsiCommand {
    /// I bit: immediate delivery, outside the CmdSN order.
    pub immediate: bool,
    /// F bit: no unsolicited Data-Out PDU follows.
    pub is_final: bool,
    /// R bit: the command is expected to input data.
    pub read: bool,
    /// W bit: the command is expected to output data.
    pub write: bool,
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// Command priority, 0 to 15; meaningful only with iSCSIProtocolLevel 2 (RFC 7144 5.1.1).
    pub priority: u8,
    /// Logical unit number, the eight bytes as a big-endian number.
    pub lun: u64,
    /// Initiator Task Tag.
    pub itt: u32,
    /// Expected Data Transfer Length in bytes.
    pub expected_data_transfer_length: u32,
    /// CmdSN.
    pub cmd_sn: Serial,
    /// ExpStatSN.
    pub exp_stat_sn: Serial,
    /// The CDB's first 16 bytes, zero-filled behind a shorter one.
    pub cdb: [u8; 16],
}

impl ScsiCommand {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for a reserved task attribute.
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::ScsiCommand)?;
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&bhs.0[32..48]);
        Ok(Self {
            immediate: bhs.immediate(),
            is_final: bhs.is_final(),
            read: bhs.0[FLAGS] & 0x40 != 0,
            write: bhs.0[FLAGS] & 0x20 != 0,
            attribute: match bhs.0[FLAGS] & 7 {
                0 => TaskAttribute::Untagged,
                1 => TaskAttribute::Simple,
                2 => TaskAttribute::Ordered,
                3 => TaskAttribute::HeadOfQueue,
                4 => TaskAttribute::Aca,
                value => {
                    return Err(PduError::InvalidField {
                        opcode: Opcode::ScsiCommand,
                        field: "ATTR",
                        value: value.into(),
                    });
                }
            },
            priority: bhs.0[2] >> 4,
            lun: bhs.lun(),
            itt: bhs.itt(),
            expected_data_transfer_length: bhs.u32_at::<EXPECTED_DATA_TRANSFER_LENGTH>(),
            cmd_sn: Serial(bhs.u32_at::<CMD_SN>()),
            exp_stat_sn: Serial(bhs.u32_at::<EXP_STAT_SN>()),
            cdb,
        })
    }

    /// Emits the header; the sender sets the data segment and AHS lengths.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::ScsiCommand);
        bhs.set_flag::<0>(0x40, self.immediate);
        bhs.set_flag::<FLAGS>(0x80, self.is_final);
        bhs.set_flag::<FLAGS>(0x40, self.read);
        bhs.set_flag::<FLAGS>(0x20, self.write);
        bhs.0[FLAGS] |= self.attribute as u8;
        bhs.0[2] = self.priority << 4;
        bhs.put_lun(self.lun);
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<EXPECTED_DATA_TRANSFER_LENGTH>(self.expected_data_transfer_length);
        bhs.put_u32::<CMD_SN>(self.cmd_sn.0);
        bhs.put_u32::<EXP_STAT_SN>(self.exp_stat_sn.0);
        bhs.put::<CDB, 16>(self.cdb);
        bhs
    }
}

impl Default for ScsiCommand {
    /// A simple task of TEST UNIT READY to LUN 0, which moves no data; to be filled in.
    fn default() -> Self {
        Self {
            immediate: false,
            is_final: true,
            read: false,
            write: false,
            attribute: TaskAttribute::Simple,
            priority: 0,
            lun: 0,
            itt: 0,
            expected_data_transfer_length: 0,
            cmd_sn: Serial(0),
            exp_stat_sn: Serial(0),
            cdb: [0; 16],
        }
    }
}

/// The difference between what the command moved and what the initiator expected (RFC 7143 11.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Residual {
    /// As expected.
    #[default]
    None,
    /// That many bytes fewer were moved.
    Underflow(u32),
    /// That many bytes more would have been moved.
    Overflow(u32),
}

impl Residual {
    /// The residual of a transfer of `actual` bytes (what the device server wanted to move) where the initiator
    /// expected `expected`.
    #[must_use]
    pub const fn between(expected: u32, actual: u64) -> Self {
        let expected_wide = expected as u64;
        if actual < expected_wide {
            Self::Underflow(expected - actual as u32)
        } else if actual > expected_wide {
            let over = actual - expected_wide;
            Self::Overflow(if over > u32::MAX as u64 { u32::MAX } else { over as u32 })
        } else {
            Self::None
        }
    }

    pub(crate) const fn count(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Underflow(n) | Self::Overflow(n) => n,
        }
    }

    pub(crate) const fn flags(self, overflow: u8, underflow: u8) -> u8 {
        match self {
            Self::None => 0,
            Self::Underflow(_) => underflow,
            Self::Overflow(_) => overflow,
        }
    }

    pub(crate) const fn from_flags(overflow: bool, underflow: bool, count: u32) -> Option<Self> {
        match (overflow, underflow) {
            (false, false) => Some(Self::None),
            (true, false) => Some(Self::Overflow(count)),
            (false, true) => Some(Self::Underflow(count)),
            (true, true) => None,
        }
    }
}

/// iSCSI service response (RFC 7143 11.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseCode {
    /// Command completed at the target: the status is valid.
    Completed,
    /// Target failure: no status.
    TargetFailure,
    /// Vendor specific, 0x80 to 0xff.
    Vendor(u8),
}

/// SCSI Response (RFC 7143 11.4). Sense data travel in the data segment behind a two-byte length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScsiResponse {
    /// Residual of a bidirectional command's read part.
    pub bidirectional_read_residual: Residual,
    /// Residual of the transfer (the write part of a bidirectional command).
    pub residual: Residual,
    /// Service response.
    pub response: ResponseCode,
    /// SCSI status (SAM-5 5.3.1).
    pub status: u8,
    /// Status qualifier; zero unless iSCSIProtocolLevel 2 (RFC 7144 5.2.1).
    pub status_qualifier: u16,
    /// Initiator Task Tag.
    pub itt: u32,
    /// SNACK Tag, zero where unused.
    pub snack_tag: u32,
    /// StatSN.
    pub stat_sn: Serial,
    /// ExpCmdSN.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN.
    pub max_cmd_sn: Serial,
    /// Number of R2T and Data-In PDUs that the target sent for the command.
    pub exp_data_sn: u32,
}

impl ScsiResponse {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for a reserved response code or for overflow and underflow
    /// at once (11.4.1).
    #[inline]
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::ScsiResponse)?;
        let invalid =
            |field, value: u8| PduError::InvalidField { opcode: Opcode::ScsiResponse, field, value: value.into() };
        let flags = bhs.0[FLAGS];
        Ok(Self {
            bidirectional_read_residual: Residual::from_flags(
                flags & 0x10 != 0,
                flags & 0x08 != 0,
                bhs.u32_at::<BIDIRECTIONAL_READ_RESIDUAL_COUNT>(),
            )
            .ok_or(invalid("flags o and u", flags))?,
            residual: Residual::from_flags(flags & 0x04 != 0, flags & 0x02 != 0, bhs.u32_at::<RESIDUAL_COUNT>())
                .ok_or(invalid("flags O and U", flags))?,
            response: match bhs.0[2] {
                0 => ResponseCode::Completed,
                1 => ResponseCode::TargetFailure,
                code @ 0x80.. => ResponseCode::Vendor(code),
                code => return Err(invalid("Response", code)),
            },
            status: bhs.0[3],
            status_qualifier: bhs.u16_at::<STATUS_QUALIFIER>(),
            itt: bhs.itt(),
            snack_tag: bhs.u32_at::<SNACK_TAG>(),
            stat_sn: Serial(bhs.u32_at::<STAT_SN>()),
            exp_cmd_sn: Serial(bhs.u32_at::<EXP_CMD_SN>()),
            max_cmd_sn: Serial(bhs.u32_at::<MAX_CMD_SN>()),
            exp_data_sn: bhs.u32_at::<EXP_DATA_SN>(),
        })
    }

    /// Emits the header; the sender sets the data segment length.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::ScsiResponse);
        bhs.0[FLAGS] = 0x80 | self.bidirectional_read_residual.flags(0x10, 0x08) | self.residual.flags(0x04, 0x02);
        bhs.0[2] = match self.response {
            ResponseCode::Completed => 0,
            ResponseCode::TargetFailure => 1,
            ResponseCode::Vendor(code) => code,
        };
        bhs.0[3] = self.status;
        bhs.put::<STATUS_QUALIFIER, 2>(self.status_qualifier.to_be_bytes());
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<SNACK_TAG>(self.snack_tag);
        bhs.put_u32::<STAT_SN>(self.stat_sn.0);
        bhs.put_u32::<EXP_CMD_SN>(self.exp_cmd_sn.0);
        bhs.put_u32::<MAX_CMD_SN>(self.max_cmd_sn.0);
        bhs.put_u32::<EXP_DATA_SN>(self.exp_data_sn);
        bhs.put_u32::<BIDIRECTIONAL_READ_RESIDUAL_COUNT>(self.bidirectional_read_residual.count());
        bhs.put_u32::<RESIDUAL_COUNT>(self.residual.count());
        bhs
    }
}

impl Default for ScsiResponse {
    /// Completed with GOOD, without a residual; to be filled in.
    fn default() -> Self {
        Self {
            bidirectional_read_residual: Residual::None,
            residual: Residual::None,
            response: ResponseCode::Completed,
            status: 0,
            status_qualifier: 0,
            itt: 0,
            snack_tag: 0,
            stat_sn: Serial(0),
            exp_cmd_sn: Serial(0),
            max_cmd_sn: Serial(0),
            exp_data_sn: 0,
        }
    }
}

/// Task management function (RFC 7143 11.5.1, RFC 7144 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TaskFunction {
    /// ABORT TASK.
    AbortTask = 1,
    /// ABORT TASK SET.
    AbortTaskSet = 2,
    /// CLEAR ACA.
    ClearAca = 3,
    /// CLEAR TASK SET.
    ClearTaskSet = 4,
    /// LOGICAL UNIT RESET.
    LogicalUnitReset = 5,
    /// TARGET WARM RESET.
    TargetWarmReset = 6,
    /// TARGET COLD RESET.
    TargetColdReset = 7,
    /// TASK REASSIGN.
    TaskReassign = 8,
    /// QUERY TASK (iSCSIProtocolLevel 2).
    QueryTask = 9,
    /// QUERY TASK SET (iSCSIProtocolLevel 2).
    QueryTaskSet = 10,
    /// I_T NEXUS RESET (iSCSIProtocolLevel 2).
    ITNexusReset = 11,
    /// QUERY ASYNCHRONOUS EVENT (iSCSIProtocolLevel 2).
    QueryAsynchronousEvent = 12,
}

impl TaskFunction {
    const fn from_u8(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::AbortTask,
            2 => Self::AbortTaskSet,
            3 => Self::ClearAca,
            4 => Self::ClearTaskSet,
            5 => Self::LogicalUnitReset,
            6 => Self::TargetWarmReset,
            7 => Self::TargetColdReset,
            8 => Self::TaskReassign,
            9 => Self::QueryTask,
            10 => Self::QueryTaskSet,
            11 => Self::ITNexusReset,
            12 => Self::QueryAsynchronousEvent,
            _ => return None,
        })
    }
}

/// Task Management Function Request (RFC 7143 11.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskManagementRequest {
    /// I bit.
    pub immediate: bool,
    /// The function; `Err` holds a code that no RFC defines, which is answered "function not supported", not rejected.
    pub function: Result<TaskFunction, u8>,
    /// Logical unit number.
    pub lun: u64,
    /// Initiator Task Tag of this request.
    pub itt: u32,
    /// Referenced Task Tag, or [`RESERVED_TAG`].
    pub referenced_task_tag: u32,
    /// CmdSN.
    pub cmd_sn: Serial,
    /// ExpStatSN.
    pub exp_stat_sn: Serial,
    /// CmdSN of the referenced task (ABORT TASK).
    pub ref_cmd_sn: Serial,
    /// Next expected DataSN (TASK REASSIGN).
    pub exp_data_sn: u32,
}

impl TaskManagementRequest {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`].
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::TaskManagementRequest)?;
        let code = bhs.0[FLAGS] & 0x7f;
        Ok(Self {
            immediate: bhs.immediate(),
            function: TaskFunction::from_u8(code).ok_or(code),
            lun: bhs.lun(),
            itt: bhs.itt(),
            referenced_task_tag: bhs.u32_at::<REFERENCED_TASK_TAG>(),
            cmd_sn: Serial(bhs.u32_at::<CMD_SN>()),
            exp_stat_sn: Serial(bhs.u32_at::<EXP_STAT_SN>()),
            ref_cmd_sn: Serial(bhs.u32_at::<REF_CMD_SN>()),
            exp_data_sn: bhs.u32_at::<EXP_DATA_SN>(),
        })
    }

    /// Emits the header.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::TaskManagementRequest);
        bhs.set_flag::<0>(0x40, self.immediate);
        bhs.0[FLAGS] = 0x80 | self.function.map_or_else(|code| code & 0x7f, |function| function as u8);
        bhs.put_lun(self.lun);
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<REFERENCED_TASK_TAG>(self.referenced_task_tag);
        bhs.put_u32::<CMD_SN>(self.cmd_sn.0);
        bhs.put_u32::<EXP_STAT_SN>(self.exp_stat_sn.0);
        bhs.put_u32::<REF_CMD_SN>(self.ref_cmd_sn.0);
        bhs.put_u32::<EXP_DATA_SN>(self.exp_data_sn);
        bhs
    }
}

impl Default for TaskManagementRequest {
    /// An immediate ABORT TASK of no task, to be filled in.
    fn default() -> Self {
        Self {
            immediate: true,
            function: Ok(TaskFunction::AbortTask),
            lun: 0,
            itt: RESERVED_TAG,
            referenced_task_tag: RESERVED_TAG,
            cmd_sn: Serial(0),
            exp_stat_sn: Serial(0),
            ref_cmd_sn: Serial(0),
            exp_data_sn: 0,
        }
    }
}

/// Response of a task management function (RFC 7143 11.6.1, RFC 7144 6.4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TaskResponse {
    /// Function complete.
    Complete = 0,
    /// Task does not exist.
    TaskDoesNotExist = 1,
    /// LUN does not exist.
    LunDoesNotExist = 2,
    /// Task still allegiant.
    TaskStillAllegiant = 3,
    /// Task allegiance reassignment not supported.
    ReassignmentNotSupported = 4,
    /// Task management function not supported.
    NotSupported = 5,
    /// Function authorization failed.
    AuthorizationFailed = 6,
    /// Function succeeded (RFC 7144).
    Succeeded = 7,
    /// Function rejected.
    Rejected = 255,
}

/// Task Management Function Response (RFC 7143 11.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskManagementResponse {
    /// The outcome.
    pub response: TaskResponse,
    /// Additional response information of the query functions (RFC 7144 6.4.1), three bytes as a number; else zero.
    pub additional: u32,
    /// Initiator Task Tag of the request.
    pub itt: u32,
    /// StatSN.
    pub stat_sn: Serial,
    /// ExpCmdSN.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN.
    pub max_cmd_sn: Serial,
}

impl TaskManagementResponse {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for a reserved response.
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::TaskManagementResponse)?;
        Ok(Self {
            response: match bhs.0[2] {
                0 => TaskResponse::Complete,
                1 => TaskResponse::TaskDoesNotExist,
                2 => TaskResponse::LunDoesNotExist,
                3 => TaskResponse::TaskStillAllegiant,
                4 => TaskResponse::ReassignmentNotSupported,
                5 => TaskResponse::NotSupported,
                6 => TaskResponse::AuthorizationFailed,
                7 => TaskResponse::Succeeded,
                255 => TaskResponse::Rejected,
                value => {
                    return Err(PduError::InvalidField {
                        opcode: Opcode::TaskManagementResponse,
                        field: "Response",
                        value: value.into(),
                    });
                }
            },
            additional: bhs.u32_at::<ADDITIONAL_RESPONSE_INFORMATION>() >> 8,
            itt: bhs.itt(),
            stat_sn: Serial(bhs.u32_at::<STAT_SN>()),
            exp_cmd_sn: Serial(bhs.u32_at::<EXP_CMD_SN>()),
            max_cmd_sn: Serial(bhs.u32_at::<MAX_CMD_SN>()),
        })
    }

    /// Emits the header.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::TaskManagementResponse);
        bhs.0[FLAGS] = 0x80;
        bhs.0[2] = self.response as u8;
        bhs.put_u32::<ADDITIONAL_RESPONSE_INFORMATION>(self.additional << 8);
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<STAT_SN>(self.stat_sn.0);
        bhs.put_u32::<EXP_CMD_SN>(self.exp_cmd_sn.0);
        bhs.put_u32::<MAX_CMD_SN>(self.max_cmd_sn.0);
        bhs
    }
}

#[cfg(test)]
mod attribute_tests {
    use super::*;

    #[test]
    fn task_attributes_have_their_codes_and_reserved_ones_are_refused() {
        use TaskAttribute::{Aca, HeadOfQueue, Ordered, Simple, Untagged};
        let known = [Untagged, Simple, Ordered, HeadOfQueue, Aca];
        for code in 0..8 {
            let mut bhs = ScsiCommand::default().emit();
            bhs.0[FLAGS] = bhs.0[FLAGS] & !7 | code;
            let parsed = ScsiCommand::parse(&bhs).ok();
            assert_eq!(parsed.map(|command| command.attribute), known.get(usize::from(code)).copied(), "{code}");
            if let Some(command) = parsed {
                assert_eq!(command.emit().0[1] & 7, code);
            }
        }
    }
}
