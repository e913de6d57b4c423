//! Tasks: from a SCSI command that came to the step that its session takes next.
//!
//! A session has one [`TaskExecutor`]. It stands between the session, which knows PDUs, and the device server, which
//! knows commands: it keeps the order that task attributes ask for, fetches data, runs the store's operations, and ends
//! each task exactly once.

use alloc::string::String;
use alloc::sync::Arc;
use iscsi_memory::Payload;

use iscsi_proto::datamover::{Source, TaskHandle, TaskStatus};
pub use iscsi_proto::pdu::TaskAttribute;

use crate::lu::NexusId;

mod begin;
mod executor;
pub(crate) mod job;
mod landing;
mod lun;
mod progress;
mod short;
mod slot;
mod table;

pub use executor::TaskExecutor;

/// A SCSI target port: what a portal group is to SCSI (RFC 7143 4.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetPort {
    /// Target portal group tag.
    pub portal_group_tag: u16,
    /// RELATIVE TARGET PORT IDENTIFIER (SPC-5 7.7.6.7), not 0.
    pub relative: u16,
    /// Target port group (SPC-5 5.17.2).
    pub group: u16,
}

/// Programs that are told of a power on as 29h/00h, POWER ON, RESET, OR BUS DEVICE RESET OCCURRED, known by the
/// initiator name that they have unless told otherwise. `iscsi-ls` of libiscsi sends its TEST UNIT READY again after
/// 29h/00h alone, and ends with an error after 29h/01h, which the library itself takes (`show_lun` in
/// utils/iscsi-ls.c).
const WITHOUT_POWER_ON: [&str; 1] = ["iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-ls"];

/// The I_T nexus that a session is.
#[derive(Debug, Clone)]
pub struct Nexus {
    /// Another one for each session of the server.
    pub id: NexusId,
    /// The initiator's iSCSI name.
    pub initiator_name: String,
    /// ISID, which with the name makes the initiator port.
    pub isid: [u8; 6],
    /// The target's iSCSI name.
    pub target_name: String,
    /// Target portal group tag, which with the name makes the target port (RFC 7143 4.4.1).
    pub portal_group_tag: u16,
    /// All ports of the target, the nexus's own among them.
    pub ports: Arc<[TargetPort]>,
    /// iSCSIProtocolLevel as negotiated (RFC 7144 7.1.1); 1 without a negotiation.
    pub protocol_level: u32,
}

impl Nexus {
    /// The port by which the initiator came in.
    pub(crate) fn port(&self) -> TargetPort {
        let own = self.ports.iter().find(|port| port.portal_group_tag == self.portal_group_tag);
        own.copied().unwrap_or(TargetPort { portal_group_tag: self.portal_group_tag, relative: 1, group: 1 })
    }

    /// Whether the initiator is one of [`WITHOUT_POWER_ON`].
    pub(crate) fn knows_no_power_on(&self) -> bool {
        WITHOUT_POWER_ON.contains(&self.initiator_name.as_str())
    }

    /// A number made of what names the I_T nexus over logins (RFC 7143 4.4.1): initiator name and ISID, target name and
    /// portal group tag. Two nexuses that happen to share one would only be told of a loss where it was a power on.
    pub(crate) fn port_key(&self) -> u64 {
        // FNV-1a.
        let mut key = 0xcbf2_9ce4_8422_2325u64;
        let tag = self.portal_group_tag.to_be_bytes();
        for part in [self.initiator_name.as_bytes(), &self.isid, self.target_name.as_bytes(), &tag] {
            for byte in part.iter().chain(&[0xff]) {
                key = (key ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        // The low bits tell LUNs apart.
        key << 14
    }
}

/// The bounds of a [`TaskExecutor`].
#[derive(Debug, Clone, Copy)]
pub struct ExecutorConfig {
    /// Tasks at a time: the command window, and room for immediate commands. Handles have slots below it. 128 by
    /// default.
    pub slots: u16,
    /// Bytes of buffers that hold data between wire and store, or wait to be sent; a command that would go beyond gets
    /// TASK SET FULL. 64 MiB by default. All sessions of a target have a bound together besides
    /// ([`Limits::buffered`](crate::session::Limits::buffered)).
    pub max_buffered: usize,
    /// Bytes of buffers kept for reuse where they do not come from a worker's pool. 16 MiB by default.
    pub max_idle: usize,
}

impl Default for ExecutorConfig {
    fn default() -> Self {
        Self { slots: 128, max_buffered: 64 << 20, max_idle: 16 << 20 }
    }
}

/// A SCSI command as the session received it.
#[derive(Debug, Clone, Copy)]
pub struct NewTask<'a> {
    /// The session's name for it. A slot is used by one task at a time.
    pub task: TaskHandle,
    /// LUN, the eight bytes as a big-endian number.
    pub lun: u64,
    /// Initiator Task Tag.
    pub itt: u32,
    /// The CDB with its extension: 16 to 260 bytes, zero-filled behind a shorter one.
    pub cdb: &'a [u8],
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// R bit.
    pub read: bool,
    /// W bit.
    pub write: bool,
    /// Data came with the command.
    pub immediate: bool,
    /// Data are coming unasked in PDUs of their own: the F bit is clear.
    pub unsolicited: bool,
    /// Expected Data Transfer Length in bytes.
    pub expected_data_transfer_length: u32,
    /// Bytes of the read part when both bits are set (RFC 7143 11.2.2.4).
    pub bidirectional_read_length: Option<u32>,
    /// Whether data may land in the store's own memory before they are known to be whole: not with DataDigest.
    pub direct_placement: bool,
}

/// The answer to a command that was done at once.
#[derive(Debug)]
pub struct AtOnce<'a> {
    /// Bytes of the command's data that were written.
    pub written: u32,
    /// Data-In.
    pub data: Source<'a>,
    /// Status, residual and sense data.
    pub status: TaskStatus<'a>,
}

/// What the session does next for a task.
#[derive(Debug)]
pub enum Step<'a> {
    /// Nothing yet: [`TaskExecutor::poll`] tells later.
    Pending,
    /// Fetch the data, then [`TaskExecutor::data_arrived`] or [`TaskExecutor::data_failed`]. The sink is not longer
    /// than the Expected Data Transfer Length.
    GetData {
        /// Where they land.
        sink: Payload,
    },
    /// Send a part of the data; more follow, and the status with the last of them.
    Send {
        /// Data-In.
        data: Source<'a>,
        /// Which byte of the command's data is the first of them.
        offset: u32,
    },
    /// The task is over, and forgotten here: send the data and the status.
    Respond {
        /// Data-In, the last.
        data: Source<'a>,
        /// Which byte of the command's data is the first of them.
        offset: u32,
        /// Status, residual and sense data.
        status: TaskStatus<'a>,
    },
}
