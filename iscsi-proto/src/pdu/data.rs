//! SCSI Data-Out, Data-In, Ready To Transfer and SNACK (RFC 7143 11.7, 11.8, 11.16).

use super::offset::{
    BEG_RUN, BUFFER_OFFSET, DATA_SN, DESIRED_DATA_TRANSFER_LENGTH, EXP_CMD_SN, EXP_STAT_SN, FLAGS, ITT, MAX_CMD_SN,
    R2T_SN, RESIDUAL_COUNT, RUN_LENGTH, STAT_SN, TTT,
};
use super::{Bhs, Opcode, PduError, Residual};
use crate::serial::Serial;

/// SCSI Data-Out (RFC 7143 11.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataOut {
    /// F bit: the last PDU of this sequence, unsolicited or asked for by one R2T.
    pub is_final: bool,
    /// LUN, only where the TTT is not reserved.
    pub lun: u64,
    /// Initiator Task Tag.
    pub itt: u32,
    /// Target Transfer Tag of the R2T, or [`super::RESERVED_TAG`] for unsolicited data.
    pub ttt: u32,
    /// ExpStatSN.
    pub exp_stat_sn: Serial,
    /// DataSN: counts from zero in each sequence.
    pub data_sn: u32,
    /// Offset of the payload in the command's data in bytes.
    pub buffer_offset: u32,
}

impl DataOut {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`].
    #[inline]
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::DataOut)?;
        Ok(Self {
            is_final: bhs.is_final(),
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.u32_at::<TTT>(),
            exp_stat_sn: Serial(bhs.u32_at::<EXP_STAT_SN>()),
            data_sn: bhs.u32_at::<DATA_SN>(),
            buffer_offset: bhs.u32_at::<BUFFER_OFFSET>(),
        })
    }

    /// Emits the header; the sender sets the data segment length.
    #[inline]
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::DataOut);
        bhs.set_flag::<FLAGS>(0x80, self.is_final);
        bhs.put_lun(self.lun);
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<TTT>(self.ttt);
        bhs.put_u32::<EXP_STAT_SN>(self.exp_stat_sn.0);
        bhs.put_u32::<DATA_SN>(self.data_sn);
        bhs.put_u32::<BUFFER_OFFSET>(self.buffer_offset);
        bhs
    }
}

/// The status that a command's last Data-In carries (S bit, RFC 7143 11.7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataInStatus {
    /// SCSI status: one that comes without sense data.
    pub status: u8,
    /// StatSN.
    pub stat_sn: Serial,
    /// Residual.
    pub residual: Residual,
}

/// SCSI Data-In (RFC 7143 11.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataIn {
    /// F bit: the last PDU of this sequence.
    pub is_final: bool,
    /// A bit: the target asks for a DataACK SNACK (ErrorRecoveryLevel above 0 only).
    pub acknowledge: bool,
    /// Status, when the S bit is set.
    pub status: Option<DataInStatus>,
    /// LUN, only where the TTT is not reserved.
    pub lun: u64,
    /// Initiator Task Tag.
    pub itt: u32,
    /// Target Transfer Tag, [`super::RESERVED_TAG`] unless the A bit is set.
    pub ttt: u32,
    /// ExpCmdSN.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN.
    pub max_cmd_sn: Serial,
    /// DataSN: counts from zero in each command.
    pub data_sn: u32,
    /// Offset of the payload in the command's data in bytes.
    pub buffer_offset: u32,
}

impl DataIn {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for status without the F bit (11.7.1) or for overflow and
    /// underflow at once.
    #[inline]
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::DataIn)?;
        let flags = bhs.0[FLAGS];
        let invalid = |field| PduError::InvalidField { opcode: Opcode::DataIn, field, value: flags.into() };
        let status = if flags & 0x01 != 0 {
            if flags & 0x80 == 0 {
                return Err(invalid("S without F"));
            }
            Some(DataInStatus {
                status: bhs.0[3],
                stat_sn: Serial(bhs.u32_at::<STAT_SN>()),
                residual: Residual::from_flags(flags & 0x04 != 0, flags & 0x02 != 0, bhs.u32_at::<RESIDUAL_COUNT>())
                    .ok_or(invalid("O and U"))?,
            })
        } else {
            None
        };
        Ok(Self {
            is_final: flags & 0x80 != 0,
            acknowledge: flags & 0x40 != 0,
            status,
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.u32_at::<TTT>(),
            exp_cmd_sn: Serial(bhs.u32_at::<EXP_CMD_SN>()),
            max_cmd_sn: Serial(bhs.u32_at::<MAX_CMD_SN>()),
            data_sn: bhs.u32_at::<DATA_SN>(),
            buffer_offset: bhs.u32_at::<BUFFER_OFFSET>(),
        })
    }

    /// Emits the header; the sender sets the data segment length.
    #[inline]
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::DataIn);
        bhs.set_flag::<FLAGS>(0x80, self.is_final);
        bhs.set_flag::<FLAGS>(0x40, self.acknowledge);
        if let Some(status) = self.status {
            bhs.0[FLAGS] |= 0x01 | status.residual.flags(0x04, 0x02);
            bhs.0[3] = status.status;
            bhs.put_u32::<STAT_SN>(status.stat_sn.0);
            bhs.put_u32::<RESIDUAL_COUNT>(status.residual.count());
        }
        bhs.put_lun(self.lun);
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<TTT>(self.ttt);
        bhs.put_u32::<EXP_CMD_SN>(self.exp_cmd_sn.0);
        bhs.put_u32::<MAX_CMD_SN>(self.max_cmd_sn.0);
        bhs.put_u32::<DATA_SN>(self.data_sn);
        bhs.put_u32::<BUFFER_OFFSET>(self.buffer_offset);
        bhs
    }
}

/// Ready To Transfer (RFC 7143 11.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct R2t {
    /// LUN of the command.
    pub lun: u64,
    /// Initiator Task Tag.
    pub itt: u32,
    /// Target Transfer Tag that the Data-Out PDUs are to carry.
    pub ttt: u32,
    /// StatSN: the next one, not taken by this PDU.
    pub stat_sn: Serial,
    /// ExpCmdSN.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN.
    pub max_cmd_sn: Serial,
    /// R2TSN: counts from zero in each command.
    pub r2t_sn: u32,
    /// Offset of the wanted data in the command's data in bytes.
    pub buffer_offset: u32,
    /// Bytes wanted: 1 to MaxBurstLength.
    pub desired_data_transfer_length: u32,
}

impl R2t {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for a desired length of zero (11.8.4).
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::R2t)?;
        let desired_data_transfer_length = bhs.u32_at::<DESIRED_DATA_TRANSFER_LENGTH>();
        if desired_data_transfer_length == 0 {
            return Err(PduError::InvalidField {
                opcode: Opcode::R2t,
                field: "Desired Data Transfer Length",
                value: 0,
            });
        }
        Ok(Self {
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt: bhs.u32_at::<TTT>(),
            stat_sn: Serial(bhs.u32_at::<STAT_SN>()),
            exp_cmd_sn: Serial(bhs.u32_at::<EXP_CMD_SN>()),
            max_cmd_sn: Serial(bhs.u32_at::<MAX_CMD_SN>()),
            r2t_sn: bhs.u32_at::<R2T_SN>(),
            buffer_offset: bhs.u32_at::<BUFFER_OFFSET>(),
            desired_data_transfer_length,
        })
    }

    /// Emits the header.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::R2t);
        bhs.0[FLAGS] = 0x80;
        bhs.put_lun(self.lun);
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<TTT>(self.ttt);
        bhs.put_u32::<STAT_SN>(self.stat_sn.0);
        bhs.put_u32::<EXP_CMD_SN>(self.exp_cmd_sn.0);
        bhs.put_u32::<MAX_CMD_SN>(self.max_cmd_sn.0);
        bhs.put_u32::<R2T_SN>(self.r2t_sn);
        bhs.put_u32::<BUFFER_OFFSET>(self.buffer_offset);
        bhs.put_u32::<DESIRED_DATA_TRANSFER_LENGTH>(self.desired_data_transfer_length);
        bhs
    }
}

/// What a SNACK asks for (RFC 7143 11.16.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SnackType {
    /// Data or R2T SNACK.
    DataOrR2t = 0,
    /// Status SNACK.
    Status = 1,
    /// DataACK.
    DataAck = 2,
    /// R-Data SNACK.
    RData = 3,
}

/// SNACK Request (RFC 7143 11.16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnackRequest {
    /// The kind.
    pub kind: SnackType,
    /// LUN, for DataACK.
    pub lun: u64,
    /// Initiator Task Tag, or [`super::RESERVED_TAG`] for status and DataACK.
    pub itt: u32,
    /// Target Transfer Tag, SNACK Tag, or [`super::RESERVED_TAG`].
    pub ttt_or_snack_tag: u32,
    /// ExpStatSN.
    pub exp_stat_sn: Serial,
    /// First number asked for.
    pub beg_run: u32,
    /// How many; zero for all from the first on.
    pub run_length: u32,
}

impl SnackRequest {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for a reserved type.
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::SnackRequest)?;
        Ok(Self {
            kind: match bhs.0[FLAGS] & 0x0f {
                0 => SnackType::DataOrR2t,
                1 => SnackType::Status,
                2 => SnackType::DataAck,
                3 => SnackType::RData,
                value => {
                    return Err(PduError::InvalidField {
                        opcode: Opcode::SnackRequest,
                        field: "Type",
                        value: value.into(),
                    });
                }
            },
            lun: bhs.lun(),
            itt: bhs.itt(),
            ttt_or_snack_tag: bhs.u32_at::<TTT>(),
            exp_stat_sn: Serial(bhs.u32_at::<EXP_STAT_SN>()),
            beg_run: bhs.u32_at::<BEG_RUN>(),
            run_length: bhs.u32_at::<RUN_LENGTH>(),
        })
    }

    /// Emits the header.
    #[must_use]
    pub fn emit(&self) -> Bhs {
        let mut bhs = Bhs::new(Opcode::SnackRequest);
        bhs.0[FLAGS] = 0x80 | self.kind as u8;
        bhs.put_lun(self.lun);
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<TTT>(self.ttt_or_snack_tag);
        bhs.put_u32::<EXP_STAT_SN>(self.exp_stat_sn.0);
        bhs.put_u32::<BEG_RUN>(self.beg_run);
        bhs.put_u32::<RUN_LENGTH>(self.run_length);
        bhs
    }
}
