//! Data of the REPORT commands: LUNs, supported operation codes and task management functions, target port groups.

use alloc::vec::Vec;

use super::field::{array, be16, be32, bit, flag, put, u8_at};
use super::{DataError, Lun, LunError};

/// Builds REPORT LUNS data (SPC-5 6.33); the caller cuts it to the allocation length.
///
/// ```
/// use scsi_proto::{Lun, report};
/// let data = report::luns([Lun::ZERO, Lun::from(1)]);
/// assert_eq!(report::parse_luns(&data).unwrap(), [Ok(Lun::ZERO), Ok(Lun::from(1))]);
/// ```
#[must_use]
pub fn luns(luns: impl IntoIterator<Item = Lun>) -> Vec<u8> {
    let mut data = Vec::from([0; 8]);
    for lun in luns {
        data.extend_from_slice(&lun.to_bytes());
    }
    let length = u32::try_from(data.len() - 8).unwrap_or(u32::MAX);
    put(&mut data, 0, &length.to_be_bytes());
    data
}

/// Bytes that REPORT LUNS needs in all for the list whose start is `data`: ask again with this allocation length when
/// it is more than came.
#[must_use]
pub fn luns_length(data: &[u8]) -> u64 {
    u64::from(be32(data, 0)) + 8
}

/// Reads REPORT LUNS data, as far as it came; a LUN that a single level target does not have is an error in its place.
///
/// # Errors
/// [`DataError::TooShort`] below eight bytes.
pub fn parse_luns(data: &[u8]) -> Result<Vec<Result<Lun, LunError>>, DataError> {
    let Some(rest) = data.get(8..) else {
        return Err(DataError::TooShort { what: "REPORT LUNS data", need: 8, got: data.len() });
    };
    let length = (be32(data, 0) as usize).min(rest.len());
    let list = rest.get(..length).unwrap_or_default();
    Ok(list.chunks_exact(8).map(|entry| Lun::parse(array(entry, 0))).collect())
}

/// Timeouts of a command in seconds, zero for not given (SPC-5 6.35.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommandTimeouts {
    /// COMMAND SPECIFIC.
    pub specific: u8,
    /// NOMINAL COMMAND PROCESSING TIMEOUT.
    pub nominal: u32,
    /// RECOMMENDED COMMAND TIMEOUT.
    pub recommended: u32,
}

impl CommandTimeouts {
    const LEN: usize = 12;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[1] = 0x0a;
        bytes[3] = self.specific;
        put(&mut bytes, 4, &self.nominal.to_be_bytes());
        put(&mut bytes, 8, &self.recommended.to_be_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Self {
        Self { specific: u8_at(bytes, 3), nominal: be32(bytes, 4), recommended: be32(bytes, 8) }
    }
}

/// One command of the all_commands format (SPC-5 6.35.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SupportedCommand {
    /// OPERATION CODE.
    pub opcode: u8,
    /// SERVICE ACTION, if the operation code has any.
    pub service_action: Option<u16>,
    /// Bytes of the CDB.
    pub cdb_length: u16,
    /// The timeouts descriptor (CTDP).
    pub timeouts: Option<CommandTimeouts>,
}

/// Builds REPORT SUPPORTED OPERATION CODES data of all commands.
#[must_use]
pub fn all_commands(commands: impl IntoIterator<Item = SupportedCommand>) -> Vec<u8> {
    let mut data = Vec::from([0; 4]);
    for command in commands {
        let mut descriptor = [0; 8];
        descriptor[0] = command.opcode;
        put(&mut descriptor, 2, &command.service_action.unwrap_or(0).to_be_bytes());
        descriptor[5] = flag(command.timeouts.is_some(), 1) | flag(command.service_action.is_some(), 0);
        put(&mut descriptor, 6, &command.cdb_length.to_be_bytes());
        data.extend_from_slice(&descriptor);
        if let Some(timeouts) = command.timeouts {
            data.extend_from_slice(&timeouts.to_bytes());
        }
    }
    let length = u32::try_from(data.len() - 4).unwrap_or(u32::MAX);
    put(&mut data, 0, &length.to_be_bytes());
    data
}

/// Reads REPORT SUPPORTED OPERATION CODES data of all commands, as far as it came.
///
/// # Errors
/// [`DataError::TooShort`] below four bytes.
pub fn parse_all_commands(data: &[u8]) -> Result<Vec<SupportedCommand>, DataError> {
    let Some(rest) = data.get(4..) else {
        let what = "REPORT SUPPORTED OPERATION CODES data";
        return Err(DataError::TooShort { what, need: 4, got: data.len() });
    };
    let length = (be32(data, 0) as usize).min(rest.len());
    let mut rest = rest.get(..length).unwrap_or_default();
    let mut commands = Vec::new();
    while let Some((descriptor, next)) = rest.split_at_checked(8) {
        rest = next;
        let mut timeouts = None;
        if bit(descriptor, 5, 1) {
            let Some((bytes, next)) = rest.split_at_checked(CommandTimeouts::LEN) else { break };
            timeouts = Some(CommandTimeouts::parse(bytes));
            rest = next;
        }
        commands.push(SupportedCommand {
            opcode: u8_at(descriptor, 0),
            service_action: bit(descriptor, 5, 0).then(|| be16(descriptor, 2)),
            cdb_length: be16(descriptor, 6),
            timeouts,
        });
    }
    Ok(commands)
}

/// SUPPORT of the one_command format (SPC-5 6.35.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// 000b: not known now.
    Unknown,
    /// 001b: not supported.
    No,
    /// 011b: supported as the standard says.
    Standard,
    /// 101b: supported in a vendor's way.
    Vendor,
    /// A reserved value.
    Other(u8),
}

impl Support {
    const fn from_bits(bits: u8) -> Self {
        match bits & 0x07 {
            0 => Self::Unknown,
            1 => Self::No,
            3 => Self::Standard,
            5 => Self::Vendor,
            other => Self::Other(other),
        }
    }

    const fn to_bits(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::No => 1,
            Self::Standard => 3,
            Self::Vendor => 5,
            Self::Other(other) => other & 0x07,
        }
    }
}

/// The one_command format (SPC-5 6.35.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneCommand {
    /// Whether the command is supported.
    pub support: Support,
    /// CDB USAGE DATA: the operation code, the service action in its place, and a one in every bit that is looked at;
    /// empty for a command that is not supported.
    pub usage: Vec<u8>,
    /// The timeouts descriptor (CTDP).
    pub timeouts: Option<CommandTimeouts>,
}

impl OneCommand {
    /// The answer for a command that is not supported.
    pub const NOT_SUPPORTED: Self = Self { support: Support::No, usage: Vec::new(), timeouts: None };

    /// Builds the data; usage data beyond 65535 bytes is left out.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let size = u16::try_from(self.usage.len()).unwrap_or(u16::MAX);
        let mut data = Vec::with_capacity(4 + usize::from(size) + CommandTimeouts::LEN);
        data.extend_from_slice(&[0, flag(self.timeouts.is_some(), 7) | self.support.to_bits()]);
        data.extend_from_slice(&size.to_be_bytes());
        data.extend(self.usage.iter().take(size.into()));
        if let Some(timeouts) = self.timeouts {
            data.extend_from_slice(&timeouts.to_bytes());
        }
        data
    }

    /// Reads the data, as far as it came.
    ///
    /// # Errors
    /// [`DataError::TooShort`] below four bytes.
    pub fn parse(data: &[u8]) -> Result<Self, DataError> {
        let Some(rest) = data.get(4..) else {
            let what = "REPORT SUPPORTED OPERATION CODES data";
            return Err(DataError::TooShort { what, need: 4, got: data.len() });
        };
        let size = usize::from(be16(data, 2)).min(rest.len());
        let (usage, rest) = rest.split_at_checked(size).unwrap_or((rest, &[]));
        let timeouts = (bit(data, 1, 7) && rest.len() >= CommandTimeouts::LEN).then(|| CommandTimeouts::parse(rest));
        Ok(Self { support: Support::from_bits(u8_at(data, 1)), usage: usage.to_vec(), timeouts })
    }
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS data, basic form (SPC-5 6.36).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SupportedTmfs {
    /// ATS: ABORT TASK.
    pub abort_task: bool,
    /// ATSS: ABORT TASK SET.
    pub abort_task_set: bool,
    /// CACAS: CLEAR ACA.
    pub clear_aca: bool,
    /// CTSS: CLEAR TASK SET.
    pub clear_task_set: bool,
    /// LURS: LOGICAL UNIT RESET.
    pub logical_unit_reset: bool,
    /// QTS: QUERY TASK.
    pub query_task: bool,
    /// QAES: QUERY ASYNCHRONOUS EVENT.
    pub query_asynchronous_event: bool,
    /// QTSS: QUERY TASK SET.
    pub query_task_set: bool,
    /// ITNRS: I_T NEXUS RESET.
    pub i_t_nexus_reset: bool,
}

impl SupportedTmfs {
    /// Builds the data of four bytes; the extended form of 16 has zeros after them, and its length in byte 3.
    #[must_use]
    pub fn to_bytes(self, extended: bool) -> Vec<u8> {
        let mut data = Vec::from([
            flag(self.abort_task, 7)
                | flag(self.abort_task_set, 6)
                | flag(self.clear_aca, 5)
                | flag(self.clear_task_set, 4)
                | flag(self.logical_unit_reset, 3)
                | flag(self.query_task, 2),
            flag(self.query_asynchronous_event, 2) | flag(self.query_task_set, 1) | flag(self.i_t_nexus_reset, 0),
            0,
            0,
        ]);
        if extended {
            data.resize(16, 0);
            put(&mut data, 3, &[0x0c]);
        }
        data
    }

    /// Reads the data.
    ///
    /// # Errors
    /// [`DataError::TooShort`] below four bytes.
    pub fn parse(data: &[u8]) -> Result<Self, DataError> {
        if data.len() < 4 {
            let what = "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS data";
            return Err(DataError::TooShort { what, need: 4, got: data.len() });
        }
        Ok(Self {
            abort_task: bit(data, 0, 7),
            abort_task_set: bit(data, 0, 6),
            clear_aca: bit(data, 0, 5),
            clear_task_set: bit(data, 0, 4),
            logical_unit_reset: bit(data, 0, 3),
            query_task: bit(data, 0, 2),
            query_asynchronous_event: bit(data, 1, 2),
            query_task_set: bit(data, 1, 1),
            i_t_nexus_reset: bit(data, 1, 0),
        })
    }
}

/// One group of REPORT TARGET PORT GROUPS data (SPC-5 6.37).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPortGroup {
    /// TARGET PORT GROUP.
    pub group: u16,
    /// ASYMMETRIC ACCESS STATE: 0 active/optimized, 1 active/non-optimized, 2 standby, 3 unavailable, Eh offline, Fh in
    /// transition.
    pub state: u8,
    /// PREF: the preferred group.
    pub preferred: bool,
    /// The byte of flags of supported states: bit 0 active/optimized, 1 active/non-optimized, 2 standby, 3 unavailable,
    /// 6 offline, 7 transitioning.
    pub supported: u8,
    /// STATUS CODE: why the state is what it is, 0 for none.
    pub status_code: u8,
    /// Relative target port identifiers, at most 255.
    pub ports: Vec<u16>,
}

/// Builds REPORT TARGET PORT GROUPS data; `transition_time` in seconds asks for the extended header.
#[must_use]
pub fn target_port_groups(groups: &[TargetPortGroup], transition_time: Option<u8>) -> Vec<u8> {
    let mut data = Vec::from([0; 4]);
    if let Some(seconds) = transition_time {
        data.extend_from_slice(&[0x10, seconds, 0, 0]);
    }
    for group in groups {
        let [high, low] = group.group.to_be_bytes();
        let ports = group.ports.get(..255).unwrap_or(&group.ports);
        let state = flag(group.preferred, 7) | group.state & 0x0f;
        data.extend_from_slice(&[state, group.supported, high, low, 0, group.status_code, 0, ports.len() as u8]);
        for port in ports {
            let [high, low] = port.to_be_bytes();
            data.extend_from_slice(&[0, 0, high, low]);
        }
    }
    let length = u32::try_from(data.len() - 4).unwrap_or(u32::MAX);
    put(&mut data, 0, &length.to_be_bytes());
    data
}

/// Reads REPORT TARGET PORT GROUPS data with either header, as far as it came.
///
/// # Errors
/// [`DataError::TooShort`] below four bytes.
pub fn parse_target_port_groups(data: &[u8], extended: bool) -> Result<Vec<TargetPortGroup>, DataError> {
    let Some(rest) = data.get(4..) else {
        return Err(DataError::TooShort { what: "REPORT TARGET PORT GROUPS data", need: 4, got: data.len() });
    };
    let length = (be32(data, 0) as usize).min(rest.len());
    let mut rest = rest.get(if extended { 4 } else { 0 }..length).unwrap_or_default();
    let mut groups = Vec::new();
    while let Some((head, next)) = rest.split_at_checked(8) {
        let Some((ports, next)) = next.split_at_checked(4 * usize::from(u8_at(head, 7))) else { break };
        rest = next;
        groups.push(TargetPortGroup {
            group: be16(head, 2),
            state: u8_at(head, 0) & 0x0f,
            preferred: bit(head, 0, 7),
            supported: u8_at(head, 1),
            status_code: u8_at(head, 5),
            ports: ports.chunks_exact(4).map(|port| be16(port, 2)).collect(),
        });
    }
    Ok(groups)
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
