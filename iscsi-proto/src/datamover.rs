//! RFC 5047's Datamover: the interface between the iSCSI layer and a transport that moves its data.
//!
//! The seam is data movement, not a byte stream: the iSCSI layer says *send this control PDU*, *put this task's data*,
//! *get this task's data*; the mover says *a control PDU came*, *that data is done*, *the connection ended*. TCP turns
//! put and get into Data-In and R2T with Data-Out; iSER turns them into RDMA Write and RDMA Read. What differs between
//! movers is data ([`Caps`]), never an `if rdma` above the seam.
//!
//! The names are RFC 5047's. Rules beyond the driving contract (see the crate's page):
//!
//! - Buffers move into the mover and come back: in a [`Notification`], or from
//!   [`Datamover::deallocate_task_resources`]. A buffer is never lost, also not when the connection ends:
//!   [`Datamover::deallocate_task_resources`] works after [`Notification::Terminated`].
//! - A notification is delivered once. [`Datamover::control_ahs`] and [`Datamover::control_data`] belong to the last
//!   control notification and are valid until the next call of [`Datamover::poll_notify`].
//! - At the target, [`Datamover::get_data`] for a command with the W bit is called before the next `poll_notify`, or
//!   the data that come unasked are received and dropped. Memory then stays bounded whatever the peer sends.

use alloc::sync::Arc;

use iscsi_memory::{Buf, Payload, Region, SessionBuffers};

use crate::misbehavior::Misbehavior;
use crate::parameters::Parameters;
use crate::pdu::{Bhs, PduError, Residual};
use crate::serial::Serial;

/// Names a task to the mover: a slot of the owner's task table and the generation of its use, so that a stale handle
/// never hits a new task.
///
/// An initiator uses [`TaskHandle::to_itt`] as Initiator Task Tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TaskHandle {
    /// Index into the owner's task table.
    pub slot: u16,
    /// Grows each time the slot is used.
    pub generation: u16,
}

impl TaskHandle {
    /// The handle as a 32-bit tag, generation in the high half. Never the reserved tag as long as slots are below
    /// 0xffff.
    #[must_use]
    pub const fn to_itt(self) -> u32 {
        (self.generation as u32) << 16 | self.slot as u32
    }

    /// The handle behind a tag made by [`to_itt`](Self::to_itt).
    #[must_use]
    pub const fn from_itt(itt: u32) -> Self {
        Self { slot: itt as u16, generation: (itt >> 16) as u16 }
    }
}

/// What a mover can do: read by login and by buffer allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Whether HeaderDigest and DataDigest mean anything (iSER has none, RFC 7145 6.1).
    pub digests: bool,
    /// Whether buffers must lie in memory registered with the mover.
    pub registered_memory: bool,
    /// Payloads up to this many bytes are copied; larger ones move from and to their final place.
    pub copy_limit: usize,
    /// The transport's name as SendTargets and session listings give it: `tcp` or `iser`.
    pub transport: &'static str,
    /// Whether a normal session over this mover is an iSER session: login then negotiates RDMAExtensions=Yes and its
    /// keys (RFC 7145 6.3), and fails without.
    pub rdma_extensions: bool,
    /// Whether the end of one direction leaves the other open, as a TCP FIN does. An RDMA connection ends in both at
    /// once.
    pub half_closes: bool,
}

/// The sequence numbers that the mover writes into PDUs it makes itself (Data-In, R2T, Data-Out). The session keeps
/// them current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SequenceNumbers {
    /// Target: the next StatSN.
    pub stat_sn: Serial,
    /// Target: ExpCmdSN.
    pub exp_cmd_sn: Serial,
    /// Target: MaxCmdSN.
    pub max_cmd_sn: Serial,
    /// Initiator: ExpStatSN.
    pub exp_stat_sn: Serial,
}

/// Data to send.
#[derive(Debug)]
pub enum Source<'a> {
    /// Nothing.
    None,
    /// Bytes that the mover copies before it returns.
    Copy(&'a [u8]),
    /// A store's lent memory, from `offset` on for `len` bytes; copied when small, else kept alive until it is sent.
    Region {
        /// The memory.
        region: &'a Arc<Region>,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// A buffer that comes back when it is sent ([`Notification::Released`]).
    Buf(Buf),
}

impl Source<'_> {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Copy(bytes) => bytes.len(),
            Self::Region { len, .. } => *len,
            Self::Buf(buf) => buf.len(),
        }
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The response of a command as the target's session hands it to [`Datamover::put_data`].
#[derive(Debug, Clone, Copy)]
pub struct TaskStatus<'a> {
    /// SCSI status.
    pub status: u8,
    /// Residual.
    pub residual: Residual,
    /// Residual of a bidirectional command's read part.
    pub bidirectional_read_residual: Residual,
    /// Sense data without their two-byte length; empty unless the status has some.
    pub sense: &'a [u8],
}

/// [`Datamover::put_data`]: data of a task for the initiator, and the task's response behind them.
#[derive(Debug)]
pub struct PutData<'a> {
    /// LUN of the command.
    pub lun: u64,
    /// Initiator Task Tag of the command.
    pub itt: u32,
    /// Offset of the data in the command's data in bytes.
    pub buffer_offset: u32,
    /// The data.
    pub data: Source<'a>,
    /// The task's response, which takes one StatSN: on TCP it rides in the last Data-In where the status allows it (RFC
    /// 7143 11.7.3), on iSER it is chained behind the RDMA Write. `None` when more data follow or the task is not done.
    pub status: Option<TaskStatus<'a>>,
}

/// [`Datamover::get_data`]: fetch a command's data from the initiator.
#[derive(Debug)]
pub struct GetData {
    /// The task, for the completion.
    pub task: TaskHandle,
    /// LUN of the command.
    pub lun: u64,
    /// Initiator Task Tag of the command.
    pub itt: u32,
    /// Where the data land, from offset 0 of the command's data on. Its length is what is wanted: at most the Expected
    /// Data Transfer Length. With data digests it must be a buffer, because data that a digest may still refuse are
    /// never placed in a store's lent memory.
    pub sink: Payload,
}

/// [`Datamover::send_command`]: a SCSI Command with its buffers, at the initiator.
#[derive(Debug)]
pub struct SendCommand<'a> {
    /// The task; its [`TaskHandle::to_itt`] is in the header.
    pub task: TaskHandle,
    /// The command's header. The mover sets the F bit and the data segment length.
    pub bhs: Bhs,
    /// AHS area, padded; empty for most commands.
    pub ahs: &'a [u8],
    /// Data that the target may fetch (W bit), kept until [`Datamover::deallocate_task_resources`].
    pub data_out: Option<Payload>,
    /// Where Data-In land (R bit).
    pub data_in: Option<Payload>,
}

/// Buffers that a task had given to the mover.
#[derive(Debug, Default)]
pub struct TaskBuffers {
    /// Initiator: data out. Target: none.
    pub data_out: Option<Payload>,
    /// Initiator: the Data-In buffer. Target: the sink of an unfinished [`Datamover::get_data`].
    pub data_in: Option<Payload>,
    /// Initiator: bytes that came as Data-In.
    pub data_in_len: u32,
    /// Initiator: bytes of the data out that the target can have, at most: what it never asked for, and what has not
    /// been sent, is not among them. A mover whose data are fetched by a device cannot tell, and counts them all.
    pub data_out_len: u32,
}

/// What the mover tells the iSCSI layer.
#[derive(Debug)]
pub enum Notification {
    /// Control_Notify: a PDU came that is not plain data movement. An initiator also gets each Data-In that carries
    /// status.
    Control(Bhs),
    /// Data_Completion_Notify: the data of [`Datamover::get_data`] are all in place. The sink comes back.
    GetDataComplete {
        /// The task.
        task: TaskHandle,
        /// Its data.
        sink: Payload,
    },
    /// The data of [`Datamover::get_data`] cannot come in whole: the initiator broke a rule of this one task. The
    /// connection stays usable. The sink comes back with unspecified content.
    GetDataFailed {
        /// The task.
        task: TaskHandle,
        /// Its sink.
        sink: Payload,
        /// What happened.
        error: DataError,
    },
    /// A [`Source::Buf`] has been sent and comes back.
    Released(Buf),
    /// A PDU came that the iSCSI layer is to answer with Reject (target) or take for a protocol error (initiator). The
    /// header is the offending one.
    Malformed {
        /// The offending header.
        bhs: Bhs,
        /// What is wrong.
        error: MalformedPdu,
    },
    /// Connection_Terminate_Notify: no more notifications follow.
    Terminated(MoverError),
}

/// Why a command's data did not come in whole (RFC 7143 11.4.7.2 gives each its sense data).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// Unsolicited data where InitialR2T or FirstBurstLength forbid them.
    #[error("the initiator sent unsolicited data that the negotiated keys forbid")]
    UnexpectedUnsolicitedData,
    /// The sequence ended before, or went beyond, the length it was to have.
    #[error("the initiator sent another amount of data than it was to send")]
    IncorrectAmountOfData,
    /// A payload failed its digest.
    #[error("a data payload failed its CRC32C digest")]
    DigestError,
    /// A DataSN or buffer offset was out of order.
    #[error("the initiator sent a Data-Out out of sequence")]
    OutOfSequence,
}

/// What is wrong with a PDU that was received whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedPdu {
    /// The header does not parse.
    #[error(transparent)]
    Header(#[from] PduError),
    /// The payload failed its digest.
    #[error("the payload failed its CRC32C digest")]
    DataDigest,
    /// A Data-Out or Data-In names no transfer under way.
    #[error("the data PDU names no task that waits for data")]
    UnknownTask,
    /// A Data-Out with a Target Transfer Tag names another LUN than its command (RFC 7143 11.7.4).
    #[error("the Data-Out names another LUN than its command")]
    WrongLun,
    /// The PDU breaks a rule of the protocol.
    #[error("protocol error: {0}")]
    Protocol(#[from] Misbehavior),
}

/// Why the connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MoverError {
    /// We asked for it, and everything queued before was sent.
    #[error("the connection was closed on our request")]
    Closed,
    /// The peer closed the stream between two PDUs.
    #[error("the peer closed the connection")]
    EndOfStream,
    /// The stream broke: in the middle of a PDU, or with an error of the transport.
    #[error("the connection broke")]
    Broken,
    /// A header failed its digest: the stream's PDU boundaries are lost (RFC 7143 7.7).
    #[error("a header failed its CRC32C digest")]
    HeaderDigest,
    /// A payload failed its digest where ErrorRecoveryLevel 0 has no way on.
    #[error("a payload failed its CRC32C digest")]
    DataDigest,
    /// A data segment longer than the MaxRecvDataSegmentLength that we declared.
    #[error("a data segment of {got} bytes is above the declared MaxRecvDataSegmentLength of {limit}")]
    DataSegmentTooLong {
        /// Its length in bytes.
        got: u32,
        /// What we declared.
        limit: u32,
    },
    /// The first bytes are not iSCSI at all.
    #[error("the peer does not speak iSCSI")]
    NotIscsi,
    /// A rule whose breach leaves no way on.
    #[error("protocol error: {0}")]
    Protocol(#[from] Misbehavior),
    /// RDMA below the mover failed, or the peer refused or ended it with an error.
    #[error("the RDMA connection failed: {0}")]
    Rdma(&'static str),
}

/// What a mover that moves data by RDMA tells people. Totals since the connection began, where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MoverReport {
    /// RDMA Reads that the target may have in flight, as negotiated: the target's ORD, the initiator's IRD.
    pub read_depth: u16,
    /// Payload bytes that the CPU copied.
    pub copied: u64,
    /// Payload bytes that were written into the peer's memory (RDMA Write).
    pub written: u64,
    /// Payload bytes that were read from the peer's memory (RDMA Read).
    pub read: u64,
    /// Bytes of memory that the transport holds for this connection now: receives, messages, and what is advertised.
    pub registered: u64,
}

impl MoverReport {
    /// The sum of both; the depth is the larger one.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            read_depth: if self.read_depth > other.read_depth { self.read_depth } else { other.read_depth },
            copied: self.copied + other.copied,
            written: self.written + other.written,
            read: self.read + other.read,
            registered: self.registered + other.registered,
        }
    }
}

/// A mover: one connection's data movement, for both roles. Sans-IO; see the module's page for the rules.
pub trait Datamover {
    /// What this mover can do.
    fn caps(&self) -> Caps;

    /// Keeps the numbers current that the mover writes into its own PDUs. Called whenever one of them changes.
    fn set_sequence(&mut self, numbers: SequenceNumbers);

    /// Send_Control: a control PDU with its data segment, which is copied. The mover sets the data segment length.
    fn send_control(&mut self, bhs: Bhs, data: &[u8]);

    /// Put_Data (target): sends a task's data, and its response. The order of calls is the order on the wire.
    fn put_data(&mut self, put: PutData<'_>);

    /// Get_Data (target): fetches a command's data: what comes unasked (immediate, unsolicited) and then by R2T (or
    /// RDMA Read). Ends with [`Notification::GetDataComplete`] or [`Notification::GetDataFailed`], exactly once, unless
    /// the task's resources are deallocated first.
    fn get_data(&mut self, get: GetData);

    /// Target: the data of the SCSI Command notified last, if all that it has came with it and
    /// [`get_data`](Self::get_data) would only copy them; else nothing. Who takes them from here has no need of
    /// `get_data`. Valid until the next call of `get_data` or [`poll_notify`](Self::poll_notify).
    fn immediate_data(&self) -> &[u8] {
        &[]
    }

    /// Send_Control of a SCSI Command (initiator). Its Data-Out and Data-In are the mover's business from here on.
    fn send_command(&mut self, command: SendCommand<'_>);

    /// Allocate_Connection_Resources (target), as a question before login is granted: whether there is memory for the
    /// Full Feature Phase with these keys. Where there is not, the initiator is told so (RFC 7145 10.1.3.1); a mover
    /// that is made to go on all the same ends the connection.
    fn has_resources_for(&self, _parameters: &Parameters) -> bool {
        true
    }

    /// Notice_Key_Values: the keys as negotiated, before the Full Feature Phase begins.
    ///
    /// An initiator calls it before the login request that asks for the Full Feature Phase too, with the largest values
    /// that can come out: the answer already begins that phase, and what the target sends behind it needs its receive
    /// buffers (RFC 7145 5.1.1).
    fn notice_key_values(&mut self, parameters: &Parameters);

    /// Enable_Datamover: the final login response has been sent or received; digests, sizes and the Full Feature Phase
    /// hold from the next PDU on.
    fn enable_datamover(&mut self);

    /// Deallocate_Task_Resources: the task is over or aborted. Its buffers come back; data still to come for it are
    /// dropped. An unknown handle gives nothing.
    fn deallocate_task_resources(&mut self, task: TaskHandle) -> TaskBuffers;

    /// Target: a command ends without a response (RFC 7145 3.1.9). What the mover keeps of it by its tag is not needed
    /// any more, whether [`get_data`](Self::get_data) was called for it or not.
    fn forget_command(&mut self, _itt: u32) {}

    /// Initiator: the target is silent though it was asked something. A mover on whose transport a message may lie
    /// unread at the peer until another one comes sends one that means nothing; any other does nothing.
    fn nudge(&mut self) {}

    /// Target: the request notified last is dropped, where its Reject may not be sent (RFC 7145 8.1.2). The mover does
    /// with it what it does when a Reject for it passes through [`send_control`](Self::send_control).
    fn drop_request(&mut self, _bhs: &Bhs) {}

    /// Nothing has come or gone for a while: gives back memory that is for bulk. It is taken again when it is needed.
    fn trim(&mut self) {}

    /// Buffers are short: gives memory that is for bulk back, and takes none until the next [`trim`](Self::trim).
    fn spare(&mut self) {
        self.trim();
    }

    /// Target: the buffers of its worker that the mover was made with, for the session to take those of its tasks from.
    fn buffers(&self) -> Option<&SessionBuffers> {
        None
    }

    /// Connection_Terminate: sends what is queued, then ends ([`Notification::Terminated`] with
    /// [`MoverError::Closed`]). Nothing more is received.
    fn connection_terminate(&mut self);

    /// Ends the connection at once: what is queued is dropped. [`Notification::Released`] gives buffers back, then
    /// comes [`Notification::Terminated`], once no buffer is in the transport's hands any more. Idempotent.
    fn connection_abort(&mut self);

    /// The next notification.
    fn poll_notify(&mut self) -> Option<Notification>;

    /// AHS area of the last control notification.
    fn control_ahs(&self) -> &[u8];

    /// Data segment of the last control notification, without padding. Empty for a SCSI Command: its immediate data go
    /// where [`Datamover::get_data`] says. For a SCSI Response: the sense and response data.
    fn control_data(&self) -> &[u8];

    /// Bytes that were queued to be sent and have left since the connection began: the peer's transport, or the
    /// machine's, has them, and memory that they were sent from is not looked at any more. What is queued now has left
    /// when this has grown by [`backlog`](Self::backlog).
    fn sent(&self) -> u64;

    /// Target: whether only whole logical blocks ([`Region::block_size`](iscsi_memory::Region::block_size)) land in a
    /// [`Payload::Region`], each after it was asked whether it may
    /// ([`RegionSlice::try_write`](iscsi_memory::RegionSlice::try_write)). A transport that places data by itself
    /// cannot: such sinks are not for it. Asked once the keys are [known](Self::notice_key_values).
    fn asks_to_land(&self) -> bool {
        false
    }

    /// Target: bytes of a [`get_data`](Self::get_data) under way that have come. Zero for an unknown handle.
    fn fetched(&self, task: TaskHandle) -> u32;

    /// Initiator: bytes of a command under way that have come or gone, as far as the mover can tell: none where a
    /// transport places data by itself, nor for an unknown handle. It grows as long as the command gets on.
    fn moved(&self, _task: TaskHandle) -> u64 {
        0
    }

    /// Bytes queued to be sent: what back-pressure is measured by. Bytes that are still to be fetched are none of them.
    fn backlog(&self) -> usize;

    /// Starts what was asked for since the last call, as one batch. The owner calls it at the end of whatever it does
    /// with the mover; a transport that needs no doorbell has nothing to do here.
    fn ring(&mut self) {}

    /// Whether nothing is under way any more for tasks that were deallocated. Until then a transport that places data
    /// by itself may still write into the memory that one of them had lent: what aborted it is not over.
    fn is_drained(&self) -> bool {
        true
    }

    /// Whether [`Notification::Terminated`] was delivered: no buffer is in the transport's hands any more. A mover may
    /// still have bytes of its own to send then ([`backlog`](Self::backlog)), such as the reason that the peer is told.
    fn is_closed(&self) -> bool;

    /// Whether the transport below stands. A byte stream does from the start; an RDMA connection has a handshake of its
    /// own, in which the peer may turn out to know nothing of RDMA. Once true it stays so.
    fn is_established(&self) -> bool {
        true
    }

    /// Figures for people; `None` for a mover that does not move data by RDMA.
    fn report(&self) -> Option<MoverReport> {
        None
    }
}
