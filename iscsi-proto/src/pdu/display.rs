//! A PDU's header as one line that people read: in logs, in the traces of the simulator, in bug reports.
//!
//! The fields have the names of RFC 7143 section 11 and stand in the order in which one reads a trace: what it is, its
//! flags, what it belongs to, what it is about, the sequence numbers, its data. What a header leaves unset (a reserved
//! tag, a residual of none) is left out. A header holds no secrets; data are told by their length alone.

use core::fmt::{self, Display, Formatter};

use crate::isid::Isid;
use crate::serial::Serial;

use super::{
    AsyncMessage, Bhs, DataIn, DataOut, LoginRequest, LoginResponse, LogoutRequest, LogoutResponse, NopIn, NopOut,
    Opcode, PduError, R2t, RESERVED_TAG, Reject, Residual, ScsiCommand, ScsiResponse, SnackRequest, Stage,
    TaskManagementRequest, TaskManagementResponse, TextRequest, TextResponse,
};

impl Display for Opcode {
    /// The PDU's name in RFC 7143 section 11.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NopOut => "NOP-Out",
            Self::ScsiCommand => "SCSI Command",
            Self::TaskManagementRequest => "Task Management Request",
            Self::LoginRequest => "Login Request",
            Self::TextRequest => "Text Request",
            Self::DataOut => "SCSI Data-Out",
            Self::LogoutRequest => "Logout Request",
            Self::SnackRequest => "SNACK Request",
            Self::NopIn => "NOP-In",
            Self::ScsiResponse => "SCSI Response",
            Self::TaskManagementResponse => "Task Management Response",
            Self::LoginResponse => "Login Response",
            Self::TextResponse => "Text Response",
            Self::DataIn => "SCSI Data-In",
            Self::LogoutResponse => "Logout Response",
            Self::R2t => "R2T",
            Self::AsyncMessage => "Asynchronous Message",
            Self::Reject => "Reject",
        })
    }
}

impl Display for Bhs {
    /// One line with the fields of this PDU; where the header is malformed, what is wrong with it and its bytes.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match fields(self, f) {
            Ok(written) => written?,
            Err(error) => {
                write!(f, "malformed PDU: {error}; its header is")?;
                self.0.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
            }
        }
        if self.ahs_len() != 0 {
            write!(f, ", {} bytes of AHS", self.ahs_len())?;
        }
        if self.data_segment_len() != 0 {
            write!(f, ", {} bytes of data", self.data_segment_len())?;
        }
        Ok(())
    }
}

/// A line that grows by fields.
struct FieldWriter<'a, 'f> {
    to: &'a mut Formatter<'f>,
    written: fmt::Result,
}

impl FieldWriter<'_, '_> {
    fn text(&mut self, text: fmt::Arguments<'_>) -> &mut Self {
        if self.written.is_ok() {
            self.written = self.to.write_fmt(text);
        }
        self
    }

    /// Single letters and words, each where its flag is set.
    fn flags(&mut self, flags: &[(bool, &str)]) -> &mut Self {
        for (_, name) in flags.iter().filter(|(set, _)| *set) {
            self.text(format_args!(" {name}"));
        }
        self
    }

    fn field(&mut self, name: &str, value: impl Display) -> &mut Self {
        self.text(format_args!(", {name} {value}"))
    }

    fn field_unless_zero(&mut self, name: &str, value: u32) -> &mut Self {
        if value == 0 { self } else { self.field(name, value) }
    }

    fn tag(&mut self, name: &str, tag: u32) -> &mut Self {
        if tag == RESERVED_TAG { self } else { self.text(format_args!(", {name} {tag:#x}")) }
    }

    fn lun(&mut self, lun: u64) -> &mut Self {
        self.text(format_args!(", LUN {lun:#018x}"))
    }

    fn request_numbers(&mut self, cmd_sn: Serial, exp_stat_sn: Serial) -> &mut Self {
        self.field("CmdSN", cmd_sn).field("ExpStatSN", exp_stat_sn)
    }

    fn window(&mut self, exp_cmd_sn: Serial, max_cmd_sn: Serial) -> &mut Self {
        self.field("ExpCmdSN", exp_cmd_sn).field("MaxCmdSN", max_cmd_sn)
    }

    fn residual(&mut self, of: &str, residual: Residual) -> &mut Self {
        match residual {
            Residual::None => self,
            Residual::Underflow(bytes) => self.text(format_args!(", {of}underflow of {bytes}")),
            Residual::Overflow(bytes) => self.text(format_args!(", {of}overflow of {bytes}")),
        }
    }

    fn stages(&mut self, csg: Stage, nsg: Option<Stage>) -> &mut Self {
        self.field("CSG", csg as u8);
        match nsg {
            Some(nsg) => self.field("NSG", nsg as u8),
            None => self,
        }
    }
}

fn fields(bhs: &Bhs, f: &mut Formatter<'_>) -> Result<fmt::Result, PduError> {
    let opcode = bhs.opcode()?;
    let mut line = FieldWriter { to: f, written: Ok(()) };
    macro_rules! parse {
        ($kind:ident) => {{
            let pdu = $kind::parse(bhs)?;
            line.text(format_args!("{opcode}"));
            pdu
        }};
    }
    match opcode {
        Opcode::NopOut => {
            let pdu = parse!(NopOut);
            line.flags(&[(pdu.immediate, "I")]).tag("ITT", pdu.itt).tag("TTT", pdu.ttt);
            line.request_numbers(pdu.cmd_sn, pdu.exp_stat_sn)
        }
        Opcode::ScsiCommand => {
            let pdu = parse!(ScsiCommand);
            line.flags(&[(pdu.immediate, "I"), (pdu.is_final, "F"), (pdu.read, "R"), (pdu.write, "W")]);
            line.text(format_args!(", {:?}", pdu.attribute)).lun(pdu.lun).tag("ITT", pdu.itt);
            line.field_unless_zero("Expected Data Transfer Length", pdu.expected_data_transfer_length);
            line.text(format_args!(", CDB"));
            for byte in pdu.cdb {
                line.text(format_args!(" {byte:02x}"));
            }
            line.request_numbers(pdu.cmd_sn, pdu.exp_stat_sn)
        }
        Opcode::TaskManagementRequest => {
            let pdu = parse!(TaskManagementRequest);
            line.flags(&[(pdu.immediate, "I")]);
            match pdu.function {
                Ok(function) => line.text(format_args!(", {function:?}")),
                Err(code) => line.field("function", code),
            };
            line.lun(pdu.lun).tag("ITT", pdu.itt).tag("Referenced Task Tag", pdu.referenced_task_tag);
            line.field("RefCmdSN", pdu.ref_cmd_sn).request_numbers(pdu.cmd_sn, pdu.exp_stat_sn)
        }
        Opcode::LoginRequest => {
            let pdu = parse!(LoginRequest);
            line.flags(&[(pdu.nsg.is_some(), "T"), (pdu.incomplete, "C")]).stages(pdu.csg, pdu.nsg);
            line.field("ISID", Isid::from(pdu.isid)).field("TSIH", pdu.tsih).field("CID", pdu.cid).tag("ITT", pdu.itt);
            line.request_numbers(pdu.cmd_sn, pdu.exp_stat_sn)
        }
        Opcode::TextRequest => {
            let pdu = parse!(TextRequest);
            line.flags(&[(pdu.immediate, "I"), (pdu.is_final, "F"), (pdu.incomplete, "C")]);
            line.tag("ITT", pdu.itt).tag("TTT", pdu.ttt).request_numbers(pdu.cmd_sn, pdu.exp_stat_sn)
        }
        Opcode::DataOut => {
            let pdu = parse!(DataOut);
            line.flags(&[(pdu.is_final, "F")]).lun(pdu.lun).tag("ITT", pdu.itt).tag("TTT", pdu.ttt);
            line.field("DataSN", pdu.data_sn).field("Buffer Offset", pdu.buffer_offset);
            line.field("ExpStatSN", pdu.exp_stat_sn)
        }
        Opcode::LogoutRequest => {
            let pdu = parse!(LogoutRequest);
            line.flags(&[(pdu.immediate, "I")]).text(format_args!(", {:?}", pdu.reason)).field("CID", pdu.cid);
            line.tag("ITT", pdu.itt).request_numbers(pdu.cmd_sn, pdu.exp_stat_sn)
        }
        Opcode::SnackRequest => {
            let pdu = parse!(SnackRequest);
            line.text(format_args!(", {:?}", pdu.kind)).lun(pdu.lun).tag("ITT", pdu.itt);
            line.tag("TTT or SNACK Tag", pdu.ttt_or_snack_tag).field("BegRun", pdu.beg_run);
            line.field("RunLength", pdu.run_length).field("ExpStatSN", pdu.exp_stat_sn)
        }
        Opcode::NopIn => {
            let pdu = parse!(NopIn);
            line.tag("ITT", pdu.itt).tag("TTT", pdu.ttt).field("StatSN", pdu.stat_sn);
            line.window(pdu.exp_cmd_sn, pdu.max_cmd_sn)
        }
        Opcode::ScsiResponse => {
            let pdu = parse!(ScsiResponse);
            line.text(format_args!(", {:?}, status {:#04x}", pdu.response, pdu.status)).tag("ITT", pdu.itt);
            line.residual("", pdu.residual).residual("bidirectional read ", pdu.bidirectional_read_residual);
            line.field_unless_zero("ExpDataSN", pdu.exp_data_sn).field("StatSN", pdu.stat_sn);
            line.window(pdu.exp_cmd_sn, pdu.max_cmd_sn)
        }
        Opcode::TaskManagementResponse => {
            let pdu = parse!(TaskManagementResponse);
            line.text(format_args!(", {:?}", pdu.response)).tag("ITT", pdu.itt).field("StatSN", pdu.stat_sn);
            line.window(pdu.exp_cmd_sn, pdu.max_cmd_sn)
        }
        Opcode::LoginResponse => {
            let pdu = parse!(LoginResponse);
            line.flags(&[(pdu.nsg.is_some(), "T"), (pdu.incomplete, "C")]).stages(pdu.csg, pdu.nsg);
            line.text(format_args!(", status {:04x}h", pdu.status.0)).field("ISID", Isid::from(pdu.isid));
            line.field("TSIH", pdu.tsih).tag("ITT", pdu.itt).field("StatSN", pdu.stat_sn);
            line.window(pdu.exp_cmd_sn, pdu.max_cmd_sn)
        }
        Opcode::TextResponse => {
            let pdu = parse!(TextResponse);
            line.flags(&[(pdu.is_final, "F"), (pdu.incomplete, "C")]).tag("ITT", pdu.itt).tag("TTT", pdu.ttt);
            line.field("StatSN", pdu.stat_sn).window(pdu.exp_cmd_sn, pdu.max_cmd_sn)
        }
        Opcode::DataIn => {
            let pdu = parse!(DataIn);
            line.flags(&[(pdu.is_final, "F"), (pdu.acknowledge, "A"), (pdu.status.is_some(), "S")]);
            line.tag("ITT", pdu.itt).tag("TTT", pdu.ttt);
            line.field("DataSN", pdu.data_sn).field("Buffer Offset", pdu.buffer_offset);
            if let Some(end) = pdu.status {
                line.text(format_args!(", status {:#04x}", end.status)).residual("", end.residual);
                line.field("StatSN", end.stat_sn);
            }
            line.window(pdu.exp_cmd_sn, pdu.max_cmd_sn)
        }
        Opcode::LogoutResponse => {
            let pdu = parse!(LogoutResponse);
            line.text(format_args!(", {:?}", pdu.response)).tag("ITT", pdu.itt);
            line.field("Time2Wait", pdu.time2wait).field("Time2Retain", pdu.time2retain);
            line.field("StatSN", pdu.stat_sn).window(pdu.exp_cmd_sn, pdu.max_cmd_sn)
        }
        Opcode::R2t => {
            let pdu = parse!(R2t);
            line.lun(pdu.lun).tag("ITT", pdu.itt).tag("TTT", pdu.ttt).field("R2TSN", pdu.r2t_sn);
            line.field("Buffer Offset", pdu.buffer_offset);
            line.field("Desired Data Transfer Length", pdu.desired_data_transfer_length);
            line.field("StatSN", pdu.stat_sn).window(pdu.exp_cmd_sn, pdu.max_cmd_sn)
        }
        Opcode::AsyncMessage => {
            let pdu = parse!(AsyncMessage);
            line.text(format_args!(", {:?}", pdu.event)).lun(pdu.lun);
            line.field("parameters", format_args!("{} {} {}", pdu.parameter1, pdu.parameter2, pdu.parameter3));
            line.field("StatSN", pdu.stat_sn).window(pdu.exp_cmd_sn, pdu.max_cmd_sn)
        }
        Opcode::Reject => {
            let pdu = parse!(Reject);
            line.text(format_args!(", {:?}", pdu.reason)).field_unless_zero("DataSN", pdu.data_sn);
            line.field("StatSN", pdu.stat_sn).window(pdu.exp_cmd_sn, pdu.max_cmd_sn)
        }
    };
    Ok(line.written)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::pdu::{DataInStatus, TaskAttribute};

    #[test]
    fn a_command_and_its_data_read_as_one_line_each() {
        let mut cdb = [0; 16];
        cdb[..10].copy_from_slice(&[0x2a, 0, 0, 0, 0x12, 0x34, 0, 0, 8, 0]);
        let command = ScsiCommand {
            write: true,
            attribute: TaskAttribute::Ordered,
            lun: 1 << 48,
            itt: 0x1f,
            expected_data_transfer_length: 4096,
            cmd_sn: Serial(7),
            exp_stat_sn: Serial(9),
            cdb,
            ..ScsiCommand::default()
        };
        let mut bhs = command.emit();
        bhs.set_data_segment_len(512);
        assert_eq!(
            bhs.to_string(),
            "SCSI Command F W, Ordered, LUN 0x0001000000000000, ITT 0x1f, Expected Data Transfer Length 4096, \
             CDB 2a 00 00 00 12 34 00 00 08 00 00 00 00 00 00 00, CmdSN 7, ExpStatSN 9, 512 bytes of data"
        );
        let data = DataIn {
            is_final: true,
            acknowledge: false,
            status: Some(DataInStatus { status: 0, stat_sn: Serial(4), residual: Residual::Underflow(3) }),
            lun: 0,
            itt: 2,
            ttt: RESERVED_TAG,
            exp_cmd_sn: Serial(5),
            max_cmd_sn: Serial(6),
            data_sn: 1,
            buffer_offset: 8192,
        };
        assert_eq!(
            data.emit().to_string(),
            "SCSI Data-In F S, ITT 0x2, DataSN 1, Buffer Offset 8192, status 0x00, underflow of 3, StatSN 4, \
             ExpCmdSN 5, MaxCmdSN 6"
        );
    }

    #[test]
    fn every_opcode_reads_as_a_line_that_begins_with_its_name() {
        for code in 0..=0x3f {
            let Some(opcode) = Opcode::from_u8(code) else {
                let line = Bhs([code; 48]).to_string();
                assert!(line.starts_with("malformed PDU: opcode"), "{line}");
                continue;
            };
            let mut bhs = Bhs::new(opcode);
            // What some parsers ask for: a stage to go to, a length, a function or a reason that exists.
            bhs.0[1] = if matches!(opcode, Opcode::LoginRequest | Opcode::LoginResponse) { 0x81 } else { 0x80 };
            bhs.0[2] = if opcode == Opcode::Reject { 4 } else { 0 };
            bhs.0[47] = u8::from(opcode == Opcode::R2t);
            let line = bhs.to_string();
            assert!(line.starts_with(&opcode.to_string()), "{code:#04x}: {line}");
            assert!(!line.contains('\n'));
        }
    }

    #[test]
    fn a_malformed_header_is_told_with_its_bytes() {
        let mut bhs = Bhs::new(Opcode::ScsiCommand);
        bhs.0[1] = 7;
        let line = bhs.to_string();
        assert!(line.starts_with("malformed PDU: field ATTR") && line.contains("its header is 01 07 00"), "{line}");
    }
}
