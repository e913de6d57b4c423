//! A SCSI command on its way through the initiator, and what comes back.

use core::fmt;
use core::ops::Range;
use core::time::Duration;
use iscsi_memory::Payload;

use iscsi_proto::pdu::{RejectReason, Residual, TaskAttribute};
use scsi_proto::{AdditionalSense, CdbBuf, Lun, Sense, SenseKey, Status, opcode};

/// Whether a command may be sent again when nobody knows what became of it: its connection was lost, or the target lost
/// it, before its status came.
///
/// The policy by operation code ([`Repeat::ByOpcode`]) is: what only reads, and what has the same outcome done once or
/// twice, is repeated (READ, WRITE, WRITE AND VERIFY, VERIFY, PRE-FETCH, SYNCHRONIZE CACHE, UNMAP, WRITE SAME, INQUIRY,
/// REPORT LUNS, READ CAPACITY, GET LBA STATUS, MODE SENSE, MODE SELECT, LOG SENSE, TEST UNIT READY, REQUEST SENSE,
/// START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, MAINTENANCE IN, PERSISTENT RESERVE IN, READ BUFFER, READ DEFECT DATA,
/// RECEIVE DIAGNOSTIC RESULTS). Everything else is not: COMPARE AND WRITE would miscompare against its own first run,
/// PERSISTENT RESERVE OUT and RESERVE change what others may do, ORWRITE, XDWRITEREAD, FORMAT UNIT, SEND DIAGNOSTIC,
/// third-party copies, pass-through and codes that are not known here may do anything. A command that certainly never
/// ran (BUSY, TASK SET FULL, a unit attention, not yet sent) is always sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Repeat {
    /// By the operation code, as above.
    #[default]
    ByOpcode,
    /// The caller knows that it may be repeated.
    Always,
    /// The caller knows that it must not be.
    Never,
}

impl Repeat {
    /// Whether this command may be repeated.
    #[must_use]
    pub fn allows(self, cdb: &CdbBuf) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::ByOpcode => is_repeatable(cdb),
        }
    }
}

fn is_repeatable(cdb: &CdbBuf) -> bool {
    use scsi_proto::service_action::{READ_32, VERIFY_32, WRITE_32, WRITE_AND_VERIFY_32, WRITE_SAME_32};
    let cdb = cdb.as_cdb();
    match cdb.opcode() {
        opcode::TEST_UNIT_READY
        | opcode::REQUEST_SENSE
        | opcode::READ_6
        | opcode::READ_10
        | opcode::READ_12
        | opcode::READ_16
        | opcode::WRITE_6
        | opcode::WRITE_10
        | opcode::WRITE_12
        | opcode::WRITE_16
        | opcode::WRITE_AND_VERIFY_10
        | opcode::WRITE_AND_VERIFY_12
        | opcode::WRITE_AND_VERIFY_16
        | opcode::WRITE_SAME_10
        | opcode::WRITE_SAME_16
        | opcode::VERIFY_10
        | opcode::VERIFY_12
        | opcode::VERIFY_16
        | opcode::PRE_FETCH_10
        | opcode::PRE_FETCH_16
        | opcode::SYNCHRONIZE_CACHE_10
        | opcode::SYNCHRONIZE_CACHE_16
        | opcode::UNMAP
        | opcode::INQUIRY
        | opcode::REPORT_LUNS
        | opcode::READ_CAPACITY_10
        | opcode::SERVICE_ACTION_IN_16
        | opcode::MODE_SENSE_6
        | opcode::MODE_SENSE_10
        | opcode::MODE_SELECT_6
        | opcode::MODE_SELECT_10
        | opcode::LOG_SENSE
        | opcode::START_STOP_UNIT
        | opcode::PREVENT_ALLOW_MEDIUM_REMOVAL
        | opcode::MAINTENANCE_IN
        | opcode::PERSISTENT_RESERVE_IN
        | opcode::READ_BUFFER_10
        | opcode::READ_DEFECT_DATA_10
        | opcode::READ_DEFECT_DATA_12
        | opcode::RECEIVE_DIAGNOSTIC_RESULTS => true,
        opcode::VARIABLE_LENGTH => {
            matches!(cdb.service_action(), Some(READ_32 | VERIFY_32 | WRITE_32 | WRITE_AND_VERIFY_32 | WRITE_SAME_32))
        }
        _ => false,
    }
}

/// A SCSI command to send.
#[derive(Debug)]
pub struct Command {
    /// The application's name for it; comes back in the [`Completion`].
    pub token: u64,
    /// Logical unit.
    pub lun: Lun,
    /// The CDB.
    pub cdb: CdbBuf,
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// Data for the target: the Expected Data Transfer Length of a write.
    pub data_out: Option<Payload>,
    /// Where data from the target land: the Expected Data Transfer Length of a read.
    pub data_in: Option<Payload>,
    /// Whether it may be sent again when its fate is not known.
    pub repeat: Repeat,
    /// Whether unit attentions, BUSY, TASK SET FULL and NOT READY are dealt with: by sending it again, after a while
    /// where that is due, and once by START STOP UNIT where the unit asks for that (04h/02h). Else they are reported as
    /// they come.
    pub retry: bool,
    /// Time for the answer, from its sending on, however its data move; `None` takes the session's
    /// ([`Timeouts::command`](crate::Timeouts::command)).
    pub timeout: Option<Duration>,
    /// The blocks that it changes, where its CDB does not say: those of the parameter list of an UNMAP.
    pub blocks: Option<Range<u64>>,
    /// The guard that it stands behind ([`Control::Guard`](crate::application::Control::Guard)): it is sent only to the
    /// disk that the guard was made for.
    pub guard: Option<u32>,
    /// It writes anew what the disk has lost: it passes its guard, which holds others back meanwhile, and when it is
    /// acknowledged its blocks are not lost any more.
    pub replay: bool,
}

impl Command {
    /// A command without data, SIMPLE, retried by policy.
    #[must_use]
    pub const fn new(token: u64, lun: Lun, cdb: CdbBuf) -> Self {
        Self {
            token,
            lun,
            cdb,
            attribute: TaskAttribute::Simple,
            data_out: None,
            data_in: None,
            repeat: Repeat::ByOpcode,
            retry: true,
            timeout: None,
            blocks: None,
            guard: None,
            replay: false,
        }
    }
}

/// The target's answer to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// SCSI status code.
    pub status: u8,
    /// Sense data of a CHECK CONDITION.
    pub sense: Option<Sense>,
    /// How far the transfer differs from what was expected.
    pub residual: Residual,
}

impl Outcome {
    /// Whether the command is done: GOOD, CONDITION MET, or CHECK CONDITION with the sense key RECOVERED ERROR, which
    /// tells of a command that was completed with some recovery action (SPC-4 4.5.6, table 48). A deferred one tells of
    /// an earlier command, and this one did not run (SPC-4 4.5.5). Whether it moved all its data is another question:
    /// [`Completion::short_out`].
    #[must_use]
    pub fn is_good(&self) -> bool {
        match Status::from_byte(self.status) {
            Some(Status::Good | Status::ConditionMet) => true,
            Some(Status::CheckCondition) => {
                self.sense.is_some_and(|sense| sense.key == SenseKey::RecoveredError && !sense.deferred)
            }
            _ => false,
        }
    }
}

impl Outcome {
    /// Whether a command with this status may have done something, be it in part: not where the device server did not
    /// begin with it (SAM-5 5.3.1, 5.14), or does not know it.
    pub(crate) fn may_have_run(&self) -> bool {
        match (Status::from_byte(self.status), self.sense) {
            (Some(Status::CheckCondition), Some(Sense { key, code, .. })) => match key {
                SenseKey::UnitAttention | SenseKey::NotReady => false,
                // LIO tells of a failed flush with a code of its own under this key.
                SenseKey::IllegalRequest => !matches!(
                    code,
                    AdditionalSense::INVALID_COMMAND_OPERATION_CODE
                        | AdditionalSense::INVALID_FIELD_IN_CDB
                        | AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED
                ),
                _ => true,
            },
            (Some(status), _) => !matches!(
                status,
                Status::Busy | Status::TaskSetFull | Status::TaskAborted | Status::ReservationConflict
            ),
            (None, _) => true,
        }
    }

    /// Whether the device server had no room for the command, and did not begin with it (SAM-5 5.3.1).
    pub(crate) fn is_busy(&self) -> bool {
        matches!(Status::from_byte(self.status), Some(Status::Busy | Status::TaskSetFull))
    }

    /// What a device server says of a LUN behind which no unit is (SPC-5 6.6.2, SAM-5 5.11.4).
    pub(crate) const fn no_unit() -> Self {
        let sense = Sense::illegal_request(AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED);
        Self { status: Status::CheckCondition.to_byte(), sense: Some(sense), residual: Residual::None }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Status::from_byte(self.status) {
            Some(status) => write!(f, "{status}")?,
            None => write!(f, "status {:#04x}", self.status)?,
        }
        if let Some(sense) = &self.sense {
            write!(f, ", {sense}")?;
        }
        Ok(())
    }
}

/// A command that ended well by its status, and moved fewer bytes than it was to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the target says that it is done, but moved only {moved} of {of} bytes")]
pub struct Short {
    /// Bytes that moved.
    pub moved: u32,
    /// Bytes that were to move.
    pub of: usize,
}

/// Why a command has no status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The connection was lost while the command was under way, and it is not one to be repeated.
    #[error(
        "the connection was lost while the command was under way, and sending it again could do its work twice: find \
         out what it did, then decide"
    )]
    NotRepeatable,
    /// No answer came in time; the command has been aborted.
    #[error(
        "the target did not answer the command in time, so it was aborted: the logical unit may be overloaded or stuck"
    )]
    TimedOut,
    /// It waited to be sent, and the session stood still for [`Timeouts::standstill`](crate::Timeouts::standstill). It
    /// never reached the target.
    #[error("it was never sent: {0}")]
    NotSent(WaitsFor),
    /// It was aborted, by a task management function or by the application.
    #[error("the command was aborted")]
    Aborted,
    /// The target rejected the PDU.
    #[error("the target rejected the command's PDU ({0:?})")]
    Rejected(RejectReason),
    /// The target gave a service response other than "completed at target".
    #[error("the target failed to carry the command out (iSCSI response {0:#04x})")]
    TargetFailure(u8),
    /// The connection was lost before the target answered a request that is no command.
    #[error("the connection was lost before the target answered: ask again")]
    ConnectionLost,
    /// The session ended before it could be done.
    #[error("the session ended before the command was done")]
    SessionEnded,
    /// Behind its LUN is another disk than the one that was opened; it was not sent to it.
    #[error("the LUN shows another disk than the one that was opened, and the command was not sent to it")]
    OtherDisk,
    /// The disk has lost writes that it had acknowledged, and nobody has taken note of it.
    #[error("the disk has lost writes that it had acknowledged: take note of them first")]
    LostWrites,
    /// The command contradicts itself or the session's limits.
    #[error("the command cannot be sent: {0}")]
    Invalid(&'static str),
}

/// What something that is to be sent waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitsFor {
    /// The target takes no more commands: CmdSN has reached MaxCmdSN (RFC 7143 4.2.2.1).
    #[error("the target keeps its command window closed")]
    Window,
    /// The transport takes no more data.
    #[error("the connection takes no more data")]
    Transport,
    /// A command to the same blocks has to end first, or the unit has to tell who it is.
    #[error("what has to be done before it does not come to an end")]
    Order,
    /// Every place for commands or requests of the session is taken.
    #[error("every place for it in the session is taken, and none becomes free")]
    Place,
}

/// A finished command. Its buffers come back.
#[derive(Debug)]
pub struct Completion {
    /// The command's token.
    pub token: u64,
    /// The answer, or why there is none.
    pub result: Result<Outcome, Failure>,
    /// The data that were for the target.
    pub data_out: Option<Payload>,
    /// The sink with the data that came.
    pub data_in: Option<Payload>,
    /// How many bytes came.
    pub data_in_len: u32,
    /// How many bytes of the data the target can have taken: all, less what it says that it did not process (RFC 7143
    /// 11.4.5.1), and less what it never asked for or what was not sent yet when it answered.
    pub data_out_len: u32,
}

impl Completion {
    /// A completion without an answer, which moved nothing.
    #[must_use]
    pub const fn failed(token: u64, failure: Failure, data_out: Option<Payload>, data_in: Option<Payload>) -> Self {
        Self { token, result: Err(failure), data_out, data_in, data_in_len: 0, data_out_len: 0 }
    }

    fn is_good(&self) -> bool {
        self.result.as_ref().is_ok_and(Outcome::is_good)
    }

    /// Data for the target that it says are dealt with, and cannot have taken whole: a good status with a residual, or
    /// before all was asked for or sent.
    #[must_use]
    pub fn short_out(&self) -> Option<Short> {
        let of = self.data_out.as_ref().map_or(0, Payload::len);
        (self.is_good() && (self.data_out_len as usize) < of).then_some(Short { moved: self.data_out_len, of })
    }

    /// Data from the target that do not fill their place though the status is good: an error where the command moves
    /// whole blocks.
    #[must_use]
    pub fn short_in(&self) -> Option<Short> {
        let of = self.data_in.as_ref().map_or(0, Payload::len);
        (self.is_good() && self.data_in_len as usize != of).then_some(Short { moved: self.data_in_len, of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scsi_proto::BlockIo;

    #[test]
    fn what_must_not_be_done_twice_is_not_repeated() {
        let caw = BlockIo::new(0, 1).to_cdb(opcode::COMPARE_AND_WRITE).unwrap();
        assert!(!Repeat::ByOpcode.allows(&caw));
        assert!(Repeat::Always.allows(&caw));
        assert!(Repeat::ByOpcode.allows(&BlockIo::new(0, 1).write()));
        assert!(!Repeat::Never.allows(&BlockIo::new(0, 1).write()));
        assert!(!Repeat::ByOpcode.allows(&CdbBuf::new(&[0xc1; 16]).unwrap()));
        assert!(!Repeat::ByOpcode.allows(&CdbBuf::new(&[opcode::PERSISTENT_RESERVE_OUT; 10]).unwrap()));
    }
}
