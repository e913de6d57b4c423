//! NOP-Out, NOP-In, Asynchronous Message and Reject (RFC 7143 11.9, 11.17 to 11.19).

use super::offset::{
    ASYNC_EVENT, CMD_SN, DATA_SN, EXP_CMD_SN, EXP_STAT_SN, FLAGS, ITT, MAX_CMD_SN, PARAMETER1, PARAMETER2, PARAMETER3,
    STAT_SN, TTT,
};
use super::{Bhs, Opcode, PduError, RESERVED_TAG};
use crate::serial::Serial;

/// NOP-Out (RFC 7143 11.18). Ping data travel in the data segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NopOut {
    /// I bit.
    pub immediate: bool,
    /// LUN of the NOP-In that this answers, else zero.
    pub lun: u64,
    /// Initiator Task Tag, or [`RESERVED_TAG`] when no answer is wanted.
    pub itt: u32,
    /// Target Transfer Tag of the NOP-In that this answers, else [`RESERVED_TAG`].
    pub ttt: u32,
    /// CmdSN.
    pub cmd_sn: Serial,
    /// ExpStatSN.
    pub exp_stat_sn: Serial,
}

impl NopOut {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`].
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::NopOut)?;
        Ok(Self {
            immediate: bhs.immediate(),
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.u32_at::<TTT>(),
            cmd_sn: Serial(bhs.u32_at::<CMD_SN>()),
            exp_stat_sn: Serial(bhs.u32_at::<EXP_STAT_SN>()),
        })
    }

    /// Emits the header; the sender sets the data segment length.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::NopOut);
        bhs.set_flag::<0>(0x40, self.immediate);
        bhs.0[FLAGS] = 0x80;
        bhs.put_lun(self.lun);
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<TTT>(self.ttt);
        bhs.put_u32::<CMD_SN>(self.cmd_sn.0);
        bhs.put_u32::<EXP_STAT_SN>(self.exp_stat_sn.0);
        bhs
    }
}

/// NOP-In (RFC 7143 11.19). Echoed ping data travel in the data segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NopIn {
    /// LUN, when the TTT is not reserved.
    pub lun: u64,
    /// Initiator Task Tag of the NOP-Out that this answers, else [`RESERVED_TAG`].
    pub itt: u32,
    /// Target Transfer Tag when an answer is wanted, else [`RESERVED_TAG`].
    pub ttt: u32,
    /// StatSN; taken only by an answer to a NOP-Out (11.19.2).
    pub stat_sn: Serial,
    /// ExpCmdSN.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN.
    pub max_cmd_sn: Serial,
}

impl NopIn {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`].
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::NopIn)?;
        Ok(Self {
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.u32_at::<TTT>(),
            stat_sn: Serial(bhs.u32_at::<STAT_SN>()),
            exp_cmd_sn: Serial(bhs.u32_at::<EXP_CMD_SN>()),
            max_cmd_sn: Serial(bhs.u32_at::<MAX_CMD_SN>()),
        })
    }

    /// Emits the header; the sender sets the data segment length.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::NopIn);
        bhs.0[FLAGS] = 0x80;
        bhs.put_lun(self.lun);
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<TTT>(self.ttt);
        bhs.put_u32::<STAT_SN>(self.stat_sn.0);
        bhs.put_u32::<EXP_CMD_SN>(self.exp_cmd_sn.0);
        bhs.put_u32::<MAX_CMD_SN>(self.max_cmd_sn.0);
        bhs
    }
}

/// The event of an Asynchronous Message (RFC 7143 11.9.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AsyncEvent {
    /// 0: a SCSI asynchronous event; sense data follow in the data segment.
    ScsiEvent,
    /// 1: the target asks for a logout within `parameter3` seconds.
    LogoutRequest,
    /// 2: the target will drop the connection `parameter1` (CID).
    ConnectionDrop,
    /// 3: the target will drop all connections of the session.
    SessionDrop,
    /// 4: the target asks for a parameter negotiation.
    NegotiationRequest,
    /// 5: all active tasks for the LU with matching LUN field were terminated.
    TasksTerminated,
    /// 248 to 255: vendor specific, with its AsyncVCode. It is emitted as 255.
    Vendor(u8),
}

/// Asynchronous Message (RFC 7143 11.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsyncMessage {
    /// The event.
    pub event: AsyncEvent,
    /// LUN, for SCSI events and terminated tasks.
    pub lun: u64,
    /// StatSN.
    pub stat_sn: Serial,
    /// ExpCmdSN.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN.
    pub max_cmd_sn: Serial,
    /// Parameter1: the CID of a dropped connection.
    pub parameter1: u16,
    /// Parameter2: Time2Wait in seconds.
    pub parameter2: u16,
    /// Parameter3: seconds to log out in, or Time2Retain.
    pub parameter3: u16,
}

impl AsyncMessage {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for a reserved event.
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::AsyncMessage)?;
        Ok(Self {
            event: match bhs.0[36] {
                0 => AsyncEvent::ScsiEvent,
                1 => AsyncEvent::LogoutRequest,
                2 => AsyncEvent::ConnectionDrop,
                3 => AsyncEvent::SessionDrop,
                4 => AsyncEvent::NegotiationRequest,
                5 => AsyncEvent::TasksTerminated,
                248..=255 => AsyncEvent::Vendor(bhs.0[37]),
                value => {
                    return Err(PduError::InvalidField {
                        opcode: Opcode::AsyncMessage,
                        field: "AsyncEvent",
                        value: value.into(),
                    });
                }
            },
            lun: bhs.lun(),
            stat_sn: Serial(bhs.u32_at::<STAT_SN>()),
            exp_cmd_sn: Serial(bhs.u32_at::<EXP_CMD_SN>()),
            max_cmd_sn: Serial(bhs.u32_at::<MAX_CMD_SN>()),
            parameter1: bhs.u16_at::<PARAMETER1>(),
            parameter2: bhs.u16_at::<PARAMETER2>(),
            parameter3: bhs.u16_at::<PARAMETER3>(),
        })
    }

    /// Emits the header; the sender sets the data segment length.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::AsyncMessage);
        bhs.0[FLAGS] = 0x80;
        bhs.put_lun(self.lun);
        bhs.put_u32::<ITT>(RESERVED_TAG);
        bhs.put_u32::<STAT_SN>(self.stat_sn.0);
        bhs.put_u32::<EXP_CMD_SN>(self.exp_cmd_sn.0);
        bhs.put_u32::<MAX_CMD_SN>(self.max_cmd_sn.0);
        let (event, vendor) = match self.event {
            AsyncEvent::ScsiEvent => (0, 0),
            AsyncEvent::LogoutRequest => (1, 0),
            AsyncEvent::ConnectionDrop => (2, 0),
            AsyncEvent::SessionDrop => (3, 0),
            AsyncEvent::NegotiationRequest => (4, 0),
            AsyncEvent::TasksTerminated => (5, 0),
            AsyncEvent::Vendor(code) => (255, code),
        };
        bhs.put::<ASYNC_EVENT, 2>([event, vendor]);
        bhs.put::<PARAMETER1, 2>(self.parameter1.to_be_bytes());
        bhs.put::<PARAMETER2, 2>(self.parameter2.to_be_bytes());
        bhs.put::<PARAMETER3, 2>(self.parameter3.to_be_bytes());
        bhs
    }
}

/// Why a PDU is rejected (RFC 7143 11.17.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RejectReason {
    /// Data (payload) digest error.
    DataDigestError = 0x02,
    /// SNACK reject.
    SnackReject = 0x03,
    /// Protocol error.
    ProtocolError = 0x04,
    /// Command not supported.
    CommandNotSupported = 0x05,
    /// Immediate command reject: too many immediate commands.
    TooManyImmediateCommands = 0x06,
    /// Task in progress.
    TaskInProgress = 0x07,
    /// Invalid data ACK.
    InvalidDataAck = 0x08,
    /// Invalid PDU field.
    InvalidPduField = 0x09,
    /// Long operation reject: no Target Transfer Tag can be generated.
    LongOperationReject = 0x0a,
    /// Deprecated negotiation reset: received as a negotiation failure, never sent.
    NegotiationReset = 0x0b,
    /// Waiting for logout.
    WaitingForLogout = 0x0c,
}

/// Reject (RFC 7143 11.17). The header of the rejected PDU travels in the data segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reject {
    /// The reason.
    pub reason: RejectReason,
    /// StatSN.
    pub stat_sn: Serial,
    /// ExpCmdSN.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN.
    pub max_cmd_sn: Serial,
    /// DataSN or R2TSN of the first missing PDU, for a rejected data SNACK.
    pub data_sn: u32,
}

impl Reject {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for a reserved reason.
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::Reject)?;
        Ok(Self {
            reason: match bhs.0[2] {
                0x02 => RejectReason::DataDigestError,
                0x03 => RejectReason::SnackReject,
                0x04 => RejectReason::ProtocolError,
                0x05 => RejectReason::CommandNotSupported,
                0x06 => RejectReason::TooManyImmediateCommands,
                0x07 => RejectReason::TaskInProgress,
                0x08 => RejectReason::InvalidDataAck,
                0x09 => RejectReason::InvalidPduField,
                0x0a => RejectReason::LongOperationReject,
                0x0b => RejectReason::NegotiationReset,
                0x0c => RejectReason::WaitingForLogout,
                value => {
                    return Err(PduError::InvalidField {
                        opcode: Opcode::Reject,
                        field: "Reason",
                        value: value.into(),
                    });
                }
            },
            stat_sn: Serial(bhs.u32_at::<STAT_SN>()),
            exp_cmd_sn: Serial(bhs.u32_at::<EXP_CMD_SN>()),
            max_cmd_sn: Serial(bhs.u32_at::<MAX_CMD_SN>()),
            data_sn: bhs.u32_at::<DATA_SN>(),
        })
    }

    /// Emits the header; the sender sets the data segment length.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::Reject);
        bhs.0[FLAGS] = 0x80;
        bhs.0[2] = self.reason as u8;
        bhs.put_u32::<ITT>(RESERVED_TAG);
        bhs.put_u32::<STAT_SN>(self.stat_sn.0);
        bhs.put_u32::<EXP_CMD_SN>(self.exp_cmd_sn.0);
        bhs.put_u32::<MAX_CMD_SN>(self.max_cmd_sn.0);
        bhs.put_u32::<DATA_SN>(self.data_sn);
        bhs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_their_codes_and_reserved_ones_are_refused() {
        let known = [
            AsyncEvent::ScsiEvent,
            AsyncEvent::LogoutRequest,
            AsyncEvent::ConnectionDrop,
            AsyncEvent::SessionDrop,
            AsyncEvent::NegotiationRequest,
            AsyncEvent::TasksTerminated,
        ];
        let mut bhs = Bhs::new(Opcode::AsyncMessage);
        bhs.0[37] = 9;
        for event in 0..=255 {
            bhs.0[36] = event;
            let parsed = AsyncMessage::parse(&bhs).map(|message| message.event);
            let vendor = (event >= 248).then_some(AsyncEvent::Vendor(9));
            assert_eq!(parsed.ok(), known.get(usize::from(event)).copied().or(vendor), "{event}");
            if let Ok(message) = AsyncMessage::parse(&bhs) {
                assert_eq!(message.emit().0[36], if event >= 248 { 255 } else { event });
            }
        }
    }
}
