//! Where the fields of a Basic Header Segment begin, in bytes (RFC 7143 section 11). One list for all who read or write
//! a header: a field that several PDUs have is in the same place in each.

/// Flags that depend on the PDU; the highest bit is F where there is one (11.2.1.3).
pub(crate) const FLAGS: usize = 1;
/// Logical Unit Number (11.2.1.7), eight bytes.
pub(crate) const LUN: usize = 8;
/// Initiator session identifier of a login (11.12.5), six bytes, in the place of the LUN.
pub(crate) const ISID: usize = 8;
/// Status Qualifier of a SCSI Response (RFC 7144 5.2.1), two bytes.
pub(crate) const STATUS_QUALIFIER: usize = 8;
/// Additional Response Information of a Task Management Function Response (RFC 7144 6.4.1), three bytes.
pub(crate) const ADDITIONAL_RESPONSE_INFORMATION: usize = 8;
/// Target session identifying handle of a login (11.12.6), two bytes.
pub(crate) const TSIH: usize = 14;
/// Initiator Task Tag (11.2.1.8).
pub(crate) const ITT: usize = 16;
/// Target Transfer Tag (11.7.4).
pub(crate) const TTT: usize = 20;
/// SNACK Tag of a SCSI Response and of an R-Data SNACK (11.4.4, 11.16.5).
pub(crate) const SNACK_TAG: usize = 20;
/// Referenced Task Tag of a Task Management Function Request (11.5.4).
pub(crate) const REFERENCED_TASK_TAG: usize = 20;
/// Expected Data Transfer Length of a SCSI Command (11.3.4).
pub(crate) const EXPECTED_DATA_TRANSFER_LENGTH: usize = 20;
/// Connection ID of a Login or Logout Request (11.12.7), two bytes.
pub(crate) const CID: usize = 20;
/// CmdSN of a request (11.3.2).
pub(crate) const CMD_SN: usize = 24;
/// StatSN of a response (11.4.9).
pub(crate) const STAT_SN: usize = 24;
/// ExpStatSN of a request (11.3.3).
pub(crate) const EXP_STAT_SN: usize = 28;
/// ExpCmdSN of a response (11.4.10).
pub(crate) const EXP_CMD_SN: usize = 28;
/// MaxCmdSN of a response (11.4.11).
pub(crate) const MAX_CMD_SN: usize = 32;
/// RefCmdSN of a Task Management Function Request (11.5.5).
pub(crate) const REF_CMD_SN: usize = 32;
/// The CDB of a SCSI Command (11.3.5), sixteen bytes.
pub(crate) const CDB: usize = 32;
/// DataSN of SCSI Data and of a Reject (11.7.5).
pub(crate) const DATA_SN: usize = 36;
/// R2TSN of an R2T (11.8.2).
pub(crate) const R2T_SN: usize = 36;
/// ExpDataSN of a SCSI Response and of a Task Management Function Request (11.4.8, 11.5.6).
pub(crate) const EXP_DATA_SN: usize = 36;
/// Status-Class and Status-Detail of a Login Response (11.13.5), two bytes.
pub(crate) const LOGIN_STATUS: usize = 36;
/// AsyncEvent and AsyncVCode of an Asynchronous Message (11.9.1, 11.9.2), two bytes.
pub(crate) const ASYNC_EVENT: usize = 36;
/// Parameter1 of an Asynchronous Message (11.9), two bytes.
pub(crate) const PARAMETER1: usize = 38;
/// Parameter2 of an Asynchronous Message (11.9), two bytes.
pub(crate) const PARAMETER2: usize = 40;
/// Parameter3 of an Asynchronous Message (11.9), two bytes.
pub(crate) const PARAMETER3: usize = 42;
/// Buffer Offset of SCSI Data and of an R2T (11.7.6).
pub(crate) const BUFFER_OFFSET: usize = 40;
/// BegRun of a SNACK Request (11.16.6).
pub(crate) const BEG_RUN: usize = 40;
/// Bidirectional Read Residual Count of a SCSI Response (11.4.6).
pub(crate) const BIDIRECTIONAL_READ_RESIDUAL_COUNT: usize = 40;
/// Time2Wait of a Logout Response (11.15.3), two bytes.
pub(crate) const TIME2WAIT: usize = 40;
/// Time2Retain of a Logout Response (11.15.4), two bytes.
pub(crate) const TIME2RETAIN: usize = 42;
/// Residual Count of a SCSI Response and of a Data-In (11.4.5).
pub(crate) const RESIDUAL_COUNT: usize = 44;
/// Desired Data Transfer Length of an R2T (11.8.4).
pub(crate) const DESIRED_DATA_TRANSFER_LENGTH: usize = 44;
/// RunLength of a SNACK Request (11.16.7).
pub(crate) const RUN_LENGTH: usize = 44;
