//! What can go wrong between an application and a remote disk, each with a sentence that says what to do.

use alloc::string::String;
use alloc::sync::Arc;
use core::time::Duration;

use iscsi_proto::pdu::LoginStatus;

use crate::command::{Failure, Outcome, Short};
use crate::identity::Difference;
use crate::url::UrlError;

/// What a session, a discovery or a disk operation failed with.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL or the portal's address cannot be used.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// What was asked for cannot be: a name, a secret or a size that no target takes.
    #[error("{0}")]
    Config(String),
    /// The system gives no random bytes, and without them there is no login: names of sessions and the challenges of
    /// CHAP are made of them.
    #[error("the system gives no random bytes, and without them there is no login: {0}")]
    NoRandomness(String),
    /// The host's name has no address.
    #[error("the host \"{host}\" has no address ({reason}): check its spelling and the name service")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// Nobody listens there.
    #[error("{portal} refuses the connection: check that the target runs, and that address and port are right")]
    Refused {
        /// The portal.
        portal: String,
    },
    /// The connection could not be made.
    #[error("{portal} cannot be reached ({reason}): check the address, the network and the firewall between")]
    Unreachable {
        /// The portal.
        portal: String,
        /// What the system said.
        reason: String,
    },
    /// No connection in time.
    #[error(
        "{portal} did not answer the connection within {after:?}: check the address, and that no firewall drops the \
         packets"
    )]
    ConnectTimeout {
        /// The portal.
        portal: String,
        /// The timeout.
        after: Duration,
    },
    /// What listens there is something else.
    #[error("what answers at {portal} does not speak iSCSI: check the port, which is usually 3260")]
    NotIscsi {
        /// The portal.
        portal: String,
    },
    /// The peer took the connection and then said nothing, or stopped in the middle of login.
    #[error(
        "{portal} took the connection but was silent for {after:?} during login: the target is stuck or overloaded, or \
         something else listens there"
    )]
    Silent {
        /// The portal.
        portal: String,
        /// The login timeout.
        after: Duration,
    },
    /// The peer hung up during login.
    #[error(
        "{portal} closed the connection during login: look into the target's log; it may not speak iSCSI, or refuse \
         this address"
    )]
    ClosedInLogin {
        /// The portal.
        portal: String,
    },
    /// The target has no iSER, and nothing else was asked for.
    #[error(
        "{portal} offers no iSER ({reason}): check that the target serves it there, or use iscsi:// for TCP, or \
         transport=auto for whichever there is"
    )]
    NoIser {
        /// The portal.
        portal: String,
        /// How it shows.
        reason: String,
    },
    /// This machine has no RDMA device on the way to the target, and nothing else was asked for.
    #[error("no iSER over an RDMA device to {portal}: {reason}; rdma=iwarp needs none")]
    NoRdma {
        /// The portal.
        portal: String,
        /// What is missing.
        reason: String,
    },
    /// There is an RDMA device on the way to the target, and this process cannot use it: it may not lock enough memory,
    /// say.
    #[error("the RDMA device that leads to {portal} cannot be used: {reason}; rdma=iwarp needs none")]
    RdmaUnusable {
        /// The portal.
        portal: String,
        /// What is in the way.
        reason: String,
    },
    /// Login failed.
    #[error("{portal}, {target}: {reason}")]
    Login {
        /// The portal.
        portal: String,
        /// The target's name, or `discovery`.
        target: String,
        /// The status of the login response, or the one that fits our own finding.
        status: LoginStatus,
        /// Why, and what to do.
        reason: String,
    },
    /// The session was lost, and every attempt to build it anew within the deadline failed.
    #[error("the session was lost and could not be built anew within {after:?}; the last attempt: {last}")]
    Lost {
        /// The deadline.
        after: Duration,
        /// The last attempt's error.
        last: Arc<Error>,
    },
    /// The session was lost, and the target asked to be left alone (Time2Wait, RFC 7143 7.5) for longer than attempts
    /// to build it anew would have gone on.
    #[error(
        "the session is lost: the target wants no new login for {asked:?}, and attempts end after {left:?}; it was \
         lost because: {last}"
    )]
    Time2Wait {
        /// What the target asked for.
        asked: Duration,
        /// What was left of the deadline.
        left: Duration,
        /// How the connection ended.
        last: Arc<Error>,
    },
    /// The connection broke where nothing is repeated (discovery, logout).
    #[error("the connection to {portal} broke: {reason}")]
    Broken {
        /// The portal.
        portal: String,
        /// How.
        reason: String,
    },
    /// The session has been logged out, by us or at the target's wish.
    #[error("the session is over: it has been logged out; connect anew")]
    LoggedOut,
    /// The session's task went away with the runtime that it was connected on.
    #[error("the session is over: the runtime on which it was connected has ended; connect on one that lives as long")]
    RuntimeGone,
    /// The target has no such LUN.
    #[error(
        "target {target} has no LUN {lun} for this initiator: `iscsi luns` lists those that there are; the target's \
         access list may mask it"
    )]
    NoSuchLun {
        /// The target's name.
        target: String,
        /// The LUN.
        lun: u16,
    },
    /// The LUN is no disk.
    #[error("LUN {lun} is no disk: its peripheral device type is {device_type:#04x}")]
    NotADisk {
        /// The LUN.
        lun: u16,
        /// PERIPHERAL DEVICE TYPE (SPC-5 6.6.2).
        device_type: u8,
    },
    /// The device server answered with a status other than GOOD.
    #[error("{command} on LUN {lun} ended with {outcome}")]
    Scsi {
        /// The command's name.
        command: String,
        /// The LUN.
        lun: u16,
        /// Status and sense data.
        outcome: Outcome,
    },
    /// The device server says that the command is done, and has moved less than it was to.
    #[error("{command} on LUN {lun}: {short}")]
    Short {
        /// The command's name.
        command: String,
        /// The LUN.
        lun: u16,
        /// How many bytes of how many.
        short: Short,
    },
    /// Behind the LUN is another disk than the one that was opened. Nothing of this handle reaches it: open it anew, if
    /// it is the one that is wanted.
    #[error("LUN {lun} shows another disk than the one that was opened: {difference}; nothing was sent to it")]
    OtherDisk {
        /// The LUN.
        lun: u16,
        /// How it shows.
        difference: Difference,
    },
    /// Writes that the disk had acknowledged, and that no flush had made durable, are lost: its power was off, or its
    /// memory is gone, or a flush failed.
    #[error(
        "the disk at LUN {lun} lost writes that it had acknowledged, with its power or in a flush that failed: write \
         them again, or give up"
    )]
    LostWrites {
        /// The LUN.
        lun: u16,
    },
    /// The command has no status.
    #[error("{command} on LUN {lun}: {failure}")]
    Command {
        /// The command's name.
        command: String,
        /// The LUN.
        lun: u16,
        /// Why.
        failure: Failure,
    },
    /// The operation was not done within the limit that its handle has; it is given up. A write may have been done, or
    /// be done still, but never after a later one to the same blocks.
    #[error("the operation on LUN {lun} was not done within {after:?}, so it was given up")]
    TimedOut {
        /// The LUN.
        lun: u16,
        /// The limit.
        after: Duration,
    },
    /// COMPARE AND WRITE found other data than expected; nothing was written.
    #[error("the blocks hold other data than expected, the first difference being at byte {0}; nothing was written")]
    Miscompare(u64),
    /// The range is not on the disk, or not whole blocks.
    #[error(
        "bytes {offset}+{len} cannot be accessed: the disk has {size} bytes in blocks of {block_size}, and only whole \
         blocks can be accessed"
    )]
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The disk's bytes.
        size: u64,
        /// The disk's block length in bytes.
        block_size: u32,
    },
    /// The disk cannot do this.
    #[error("the disk does not support {0}")]
    Unsupported(&'static str),
    /// The target's answer makes no sense.
    #[error("the target's answer to {command} makes no sense: {reason}")]
    BadAnswer {
        /// The command's name.
        command: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The target refused a request that is no command.
    #[error("the target refused {what}: {reason}")]
    Declined {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        reason: String,
    },
}
