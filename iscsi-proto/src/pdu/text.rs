//! Text, requests and responses (RFC 7143 11.10, 11.11). Their key=value text travels in the data segment.

use super::offset::{CMD_SN, EXP_CMD_SN, EXP_STAT_SN, FLAGS, ITT, MAX_CMD_SN, STAT_SN, TTT};
use super::{Bhs, Opcode, PduError};
use crate::serial::Serial;

/// Text Request (RFC 7143 11.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextRequest {
    /// I bit.
    pub immediate: bool,
    /// F bit: the initiator has nothing more to say.
    pub is_final: bool,
    /// C bit: the text continues in the next request.
    pub incomplete: bool,
    /// LUN, as in the response that it follows.
    pub lun: u64,
    /// Initiator Task Tag.
    pub itt: u32,
    /// Target Transfer Tag of the response that it follows, or [`super::RESERVED_TAG`] for a new exchange.
    pub ttt: u32,
    /// CmdSN.
    pub cmd_sn: Serial,
    /// ExpStatSN.
    pub exp_stat_sn: Serial,
}

impl TextRequest {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for F and C together (11.10.2).
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::TextRequest)?;
        let (is_final, incomplete) = parse_text_flags(bhs, Opcode::TextRequest)?;
        Ok(Self {
            immediate: bhs.immediate(),
            is_final,
            incomplete,
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
        let mut bhs = Bhs::new(Opcode::TextRequest);
        bhs.set_flag::<0>(0x40, self.immediate);
        bhs.set_flag::<FLAGS>(0x80, self.is_final);
        bhs.set_flag::<FLAGS>(0x40, self.incomplete);
        bhs.put_lun(self.lun);
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<TTT>(self.ttt);
        bhs.put_u32::<CMD_SN>(self.cmd_sn.0);
        bhs.put_u32::<EXP_STAT_SN>(self.exp_stat_sn.0);
        bhs
    }
}

fn parse_text_flags(bhs: &Bhs, opcode: Opcode) -> Result<(bool, bool), PduError> {
    let (is_final, incomplete) = (bhs.is_final(), bhs.0[FLAGS] & 0x40 != 0);
    if is_final && incomplete {
        return Err(PduError::InvalidField { opcode, field: "F with C", value: bhs.0[FLAGS].into() });
    }
    Ok((is_final, incomplete))
}

/// Text Response (RFC 7143 11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextResponse {
    /// F bit: the target has nothing more to say.
    pub is_final: bool,
    /// C bit: the text continues in the next response.
    pub incomplete: bool,
    /// LUN, together with the TTT.
    pub lun: u64,
    /// Initiator Task Tag, echoed.
    pub itt: u32,
    /// Target Transfer Tag, [`super::RESERVED_TAG`] with the F bit.
    pub ttt: u32,
    /// StatSN.
    pub stat_sn: Serial,
    /// ExpCmdSN.
    pub exp_cmd_sn: Serial,
    /// MaxCmdSN.
    pub max_cmd_sn: Serial,
}

impl TextResponse {
    /// Parses the header.
    ///
    /// # Errors
    /// [`PduError::WrongOpcode`]; [`PduError::InvalidField`] for F and C together (11.11.2).
    pub fn parse(bhs: &Bhs) -> Result<Self, PduError> {
        bhs.expect(Opcode::TextResponse)?;
        let (is_final, incomplete) = parse_text_flags(bhs, Opcode::TextResponse)?;
        Ok(Self {
            is_final,
            incomplete,
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
        let mut bhs = Bhs::new(Opcode::TextResponse);
        bhs.set_flag::<FLAGS>(0x80, self.is_final);
        bhs.set_flag::<FLAGS>(0x40, self.incomplete);
        bhs.put_lun(self.lun);
        bhs.put_u32::<ITT>(self.itt);
        bhs.put_u32::<TTT>(self.ttt);
        bhs.put_u32::<STAT_SN>(self.stat_sn.0);
        bhs.put_u32::<EXP_CMD_SN>(self.exp_cmd_sn.0);
        bhs.put_u32::<MAX_CMD_SN>(self.max_cmd_sn.0);
        bhs
    }
}
