//! Logout, requests and responses (RFC 7143 11.14, 11.15).

use super::offset::{CID, CMD_SN, EXP_CMD_SN, EXP_STAT_SN, FLAGS, ITT, MAX_CMD_SN, STAT_SN, TIME2RETAIN, TIME2WAIT};
use super::{Bhs, Opcode, PduError};
use crate::serial::Serial;

/// Why the initiator logs out (RFC 7143 11.14.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LogoutReason {
    /// Close the session.
    CloseSession = 0,
    /// Close the connection.
    CloseConnection = 1,
    /// Remove the connection for recovery.
    RemoveForRecovery = 2,
}

/// Logout Request (RFC 7143 11.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogoutRequest {
    /// I bit.
    pub immediate: bool,
    /// The reason.
    pub reason: LogoutReason,
    /// Initiator Task Tag.
    pub itt: u32,
    /// CID of the connection to close; reserved when the session is closed.
    pub cid: u16,
    /// CmdSN.
    pub cmd_sn: Serial,
    /// ExpStatSN.
    pub exp_stat_sn: Serial,
}

impl LogoutRequest {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for a reserved reason.
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::LogoutRequest)?;
        Ok(Self {
            immediate: bhs.immediate(),
            reason: match bhs.0[FLAGS] & 0x7f {
                0 => LogoutReason::CloseSession,
                1 => LogoutReason::CloseConnection,
                2 => LogoutReason::RemoveForRecovery,
                value => {
                    return Err(PduError::InvalidField {
                        opcode: Opcode::LogoutRequest,
                        field: "Reason Code",
                        value: value.into(),
                    });
                }
            },
            itt: bhs.itt(),
            cid: bhs.u16_at::<CID>(),
            cmd_sn: Serial(bhs.u32_at::<CMD_SN>()),
            exp_stat_sn: Serial(bhs.u32_at::<EXP_STAT_SN>()),
        })
    }

    /// Emits the header.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::LogoutRequest);
        bhs.set_flag::<0>(0x40, self.immediate);
        bhs.0[FLAGS] = 0x80 | self.reason as u8;
        bhs.put_u32::<ITT>(self.itt);
        bhs.put::<CID, 2>(self.cid.to_be_bytes());
        bhs.put_u32::<CMD_SN>(self.cmd_sn.0);
        bhs.put_u32::<EXP_STAT_SN>(self.exp_stat_sn.0);
        bhs
    }
}

/// Outcome of a logout (RFC 7143 11.15.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LogoutResult {
    /// Connection or session closed successfully.
    Closed = 0,
    /// CID not found.
    CidNotFound = 1,
    /// Connection recovery is not supported.
    RecoveryNotSupported = 2,
    /// Cleanup failed.
    CleanupFailed = 3,
}

/// Logout Response (RFC 7143 11.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogoutResponse {
    /// The outcome.
    pub response: LogoutResult,
    /// Initiator Task Tag, echoed.
    pub itt: u32,
    /// StatSN.
    pub stat_sn: Serial,
    /// ExpCmdSN.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN.
    pub max_cmd_sn: Serial,
    /// Time2Wait in seconds.
    pub time2wait: u16,
    /// Time2Retain in seconds.
    pub time2retain: u16,
}

impl LogoutResponse {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for a reserved response.
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::LogoutResponse)?;
        Ok(Self {
            response: match bhs.0[2] {
                0 => LogoutResult::Closed,
                1 => LogoutResult::CidNotFound,
                2 => LogoutResult::RecoveryNotSupported,
                3 => LogoutResult::CleanupFailed,
                value => {
                    return Err(PduError::InvalidField {
                        opcode: Opcode::LogoutResponse,
                        field: "Response",
                        value: value.into(),
                    });
                }
            },
            itt: bhs.itt(),
            stat_sn: Serial(bhs.u32_at::<STAT_SN>()),
            exp_cmd_sn: Serial(bhs.u32_at::<EXP_CMD_SN>()),
            max_cmd_sn: Serial(bhs.u32_at::<MAX_CMD_SN>()),
            time2wait: bhs.u16_at::<TIME2WAIT>(),
            time2retain: bhs.u16_at::<TIME2RETAIN>(),
        })
    }

    /// Emits the header.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::LogoutResponse);
        bhs.0[FLAGS] = 0x80;
        bhs.0[2] = self.response as u8;
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<STAT_SN>(self.stat_sn.0);
        bhs.put_u32::<EXP_CMD_SN>(self.exp_cmd_sn.0);
        bhs.put_u32::<MAX_CMD_SN>(self.max_cmd_sn.0);
        bhs.put::<TIME2WAIT, 2>(self.time2wait.to_be_bytes());
        bhs.put::<TIME2RETAIN, 2>(self.time2retain.to_be_bytes());
        bhs
    }
}
