//! What can go wrong between an application and a remote disk, each with a sentence that says what to do.

#[cfg(feature = "tokio")]
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::error::Error as StdError;
use core::time::Duration;

use iscsi_proto::login::LoginError;
use iscsi_proto::name::NameError;
use iscsi_proto::pdu::{LoginStatus, TaskFunction};
use scsi_proto::{CdbError, Sense, opcode};

use crate::command::{Failure, Outcome, Short};
use crate::connection::ConnectionEnd;
use crate::identity::Difference;
use crate::url::{Portal, UrlError};

/// What an error came of, where that has a type of its own: `downcast_ref` gives it back.
///
/// ```
/// # #[cfg(feature = "std")] {
/// use initiator_core::{Cause, Error, Portal};
/// let source: Cause = std::sync::Arc::new(std::io::Error::from(std::io::ErrorKind::NetworkUnreachable));
/// let portal = Portal { host: "192.0.2.1".into(), port: 3260 };
/// let error = Error::Unreachable { portal, source };
/// if let Error::Unreachable { source, .. } = &error {
///     let system = source.downcast_ref::<std::io::Error>().unwrap();
///     assert_eq!(system.kind(), std::io::ErrorKind::NetworkUnreachable);
/// }
/// assert!(error.is_transport());
/// # }
/// ```
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// A cause that has words only.
#[cfg(feature = "tokio")]
pub(crate) fn words(words: impl Into<String>) -> Cause {
    Arc::from(Box::<dyn StdError + Send + Sync>::from(words.into()))
}

/// What was asked for and cannot be.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The initiator's name is none (RFC 7143 4.2.7).
    #[error("the initiator's name: {0}")]
    InitiatorName(#[source] NameError),
    /// The target's name is none (RFC 7143 4.2.7).
    #[error("the target's name: {0}")]
    TargetName(#[source] NameError),
    /// The target's secret is given, and none of our own.
    #[error("mutual CHAP needs both sides' secrets, and there is no user and secret of our own")]
    NoOwnSecret,
    /// A LUN above 16383.
    #[error("{0} is no LUN: it has to be a number from 0 to 16383")]
    Lun(u16),
    /// The bytes are no CDB.
    #[error(transparent)]
    Cdb(#[from] CdbError),
    /// A task management function for a single task.
    #[error("{0:?} names a single task: drop its future to let go of it")]
    SingleTask(TaskFunction),
    /// A request of a workload that its disk cannot take.
    #[error(
        "a request of {bytes} bytes does not fit the disk: use a multiple of its block size of {block_size} bytes, at \
         most {most}"
    )]
    RequestSize {
        /// Bytes of the request.
        bytes: u64,
        /// The disk's block length in bytes.
        block_size: u32,
        /// Bytes that it may have at most.
        most: u64,
    },
}

/// What a session, a discovery or a disk operation failed with.
///
/// ```
/// use initiator_core::Error;
/// fn advice(error: &Error) -> &'static str {
///     match error {
///         Error::LoginRefused { status, .. } if status.class() == 3 => "try again later",
///         Error::LoginRefused { .. } => "mend the configuration",
///         error if error.sense().is_some_and(|sense| sense.information.is_some()) => "look at that block",
///         error if error.is_timeout() => "look at the load",
///         error if error.is_transport() => "look at the network",
///         _ => "read the sentence",
///     }
/// }
/// assert_eq!(advice(&Error::LoggedOut), "read the sentence");
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL or the portal's address cannot be used.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// What was asked for cannot be: a name, a secret or a size that no target takes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system gives no random bytes, and without them there is no login: names of sessions and the challenges of
    /// CHAP are made of them.
    #[error("the system gives no random bytes, and without them there is no login: {0}")]
    NoRandomness(#[source] Cause),
    /// The host's name has no address.
    #[error("the host \"{host}\" has no address ({source}): check its spelling and the name service")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said: a `std::io::Error`, or words.
        source: Cause,
    },
    /// Nobody listens there.
    #[error("{portal} refuses the connection: check that the target runs, and that address and port are right")]
    Refused {
        /// The portal.
        portal: Portal,
    },
    /// The connection could not be made.
    #[error("{portal} cannot be reached ({source}): check the address, the network and the firewall between")]
    Unreachable {
        /// The portal.
        portal: Portal,
        /// What the system said: a `std::io::Error`.
        source: Cause,
    },
    /// No connection in time.
    #[error(
        "{portal} did not answer the connection within {after:?}: check the address, and that no firewall drops the \
         packets"
    )]
    ConnectTimeout {
        /// The portal.
        portal: Portal,
        /// The timeout.
        after: Duration,
    },
    /// What listens there is something else.
    #[error("what answers at {portal} does not speak iSCSI: check the port, which is usually 3260")]
    NotIscsi {
        /// The portal.
        portal: Portal,
    },
    /// The peer took the connection and then said nothing, or stopped in the middle of login.
    #[error(
        "{portal} took the connection but was silent for {after:?} during login: the target is stuck or overloaded, or \
         something else listens there"
    )]
    Silent {
        /// The portal.
        portal: Portal,
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
        portal: Portal,
    },
    /// The target has no iSER, and nothing else was asked for.
    #[error(
        "{portal} offers no iSER ({source}): check that the target serves it there, or use iscsi:// for TCP, or \
         transport=auto for whichever there is"
    )]
    NoIser {
        /// The portal.
        portal: Portal,
        /// How it shows.
        source: Cause,
    },
    /// This machine has no RDMA device on the way to the target, and nothing else was asked for.
    #[error("no iSER over an RDMA device to {portal}: {source}; rdma=iwarp needs none")]
    NoRdma {
        /// The portal.
        portal: Portal,
        /// What is missing.
        source: Cause,
    },
    /// There is an RDMA device on the way to the target, and this process cannot use it: it may not lock enough memory,
    /// say.
    #[error("the RDMA device that leads to {portal} cannot be used: {source}; rdma=iwarp needs none")]
    RdmaUnusable {
        /// The portal.
        portal: Portal,
        /// What is in the way.
        source: Cause,
    },
    /// The target refused the login.
    #[error("{portal}, {target}: login refused: {}", status.advice())]
    LoginRefused {
        /// The portal.
        portal: Portal,
        /// The target's name, or `discovery`.
        target: String,
        /// Status-Class and Status-Detail (RFC 7143 11.13.5).
        status: LoginStatus,
    },
    /// Login failed by what this side found.
    #[error("{portal}, {target}: {}{source}", proof(source))]
    Login {
        /// The portal.
        portal: Portal,
        /// The target's name, or `discovery`.
        target: String,
        /// What is wrong.
        source: LoginError,
    },
    /// The session was lost, and every attempt to build it anew within the deadline failed.
    #[error("the session was lost and could not be built anew within {after:?}; the last attempt: {last}")]
    Lost {
        /// The deadline.
        after: Duration,
        /// The last attempt's error.
        #[source]
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
        #[source]
        last: Arc<Error>,
    },
    /// No path to a disk was up for as long as an operation may wait for one.
    #[error("no path to the disk was up within {after:?}; a last attempt: {last}")]
    NoPath {
        /// How long it waited.
        after: Duration,
        /// What a path was lost with, or could not be brought up with.
        #[source]
        last: Arc<Error>,
    },
    /// The connection broke where nothing is repeated (discovery, logout).
    #[error("the connection to {portal} broke: {source}")]
    Broken {
        /// The portal.
        portal: Portal,
        /// How.
        source: ConnectionEnd,
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
    #[error("{} on LUN {lun} ended with {outcome}", opcode::name(*opcode))]
    Scsi {
        /// The command's OPERATION CODE; [`opcode::name`] has its name.
        opcode: u8,
        /// The LUN.
        lun: u16,
        /// Status and sense data.
        outcome: Outcome,
    },
    /// The device server says that the command is done, and has moved less than it was to.
    #[error("{} on LUN {lun}: {short}", opcode::name(*opcode))]
    Short {
        /// The command's OPERATION CODE; [`opcode::name`] has its name.
        opcode: u8,
        /// The LUN.
        lun: u16,
        /// How many bytes of how many.
        #[source]
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
    #[error("{} on LUN {lun}: {failure}", opcode::name(*opcode))]
    Command {
        /// The command's OPERATION CODE; [`opcode::name`] has its name.
        opcode: u8,
        /// The LUN.
        lun: u16,
        /// Why.
        #[source]
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
    #[error("the target's answer to {command} makes no sense: {source}")]
    BadAnswer {
        /// The command's name.
        command: &'static str,
        /// What is wrong with it: the error of the parser, or words.
        source: Cause,
    },
    /// A request that is no command has no answer.
    #[error("{what} has no answer: {failure}")]
    Declined {
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        failure: Failure,
    },
}

/// Where our own machine found that the target's proof is wrong.
fn proof(error: &LoginError) -> &'static str {
    use iscsi_proto::chap::ChapError;
    match error {
        LoginError::Chap(ChapError::Failed { .. } | ChapError::TargetName(_)) => {
            "the target did not prove who it is; check the target's CHAP name and secret on both sides: "
        }
        _ => "",
    }
}

impl Error {
    /// Sense data, where the device server gave some: sense key, ASC and ASCQ with their words, INFORMATION.
    #[must_use]
    pub const fn sense(&self) -> Option<&Sense> {
        match self {
            Self::Scsi { outcome: Outcome { sense: Some(sense), .. }, .. } => Some(sense),
            _ => None,
        }
    }

    /// The status that a login ended with (RFC 7143 11.13.5): the target's, or the one that fits our own finding.
    #[must_use]
    pub fn login_status(&self) -> Option<LoginStatus> {
        match self {
            Self::LoginRefused { status, .. } => Some(*status),
            Self::Login { source, .. } => Some(source.status()),
            Self::Lost { last, .. } => last.login_status(),
            _ => None,
        }
    }

    /// Whether something took longer than its limit.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::ConnectTimeout { .. } | Self::Silent { .. } | Self::TimedOut { .. } => true,
            Self::Command { failure, .. } | Self::Declined { failure, .. } => *failure == Failure::TimedOut,
            Self::Broken { source, .. } => {
                matches!(source, ConnectionEnd::KeepaliveTimeout | ConnectionEnd::CommandStuck)
            }
            Self::Lost { last, .. } => last.is_timeout(),
            _ => false,
        }
    }

    /// Whether the way to the target is at fault, or the target as a whole: another way may lead to the same disk.
    #[must_use]
    pub const fn is_transport(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::ConnectTimeout { .. }
            | Self::NotIscsi { .. }
            | Self::Silent { .. }
            | Self::ClosedInLogin { .. }
            | Self::NoIser { .. }
            | Self::NoRdma { .. }
            | Self::RdmaUnusable { .. }
            | Self::Lost { .. }
            | Self::Time2Wait { .. }
            | Self::NoPath { .. }
            | Self::Broken { .. }
            | Self::RuntimeGone => true,
            Self::Command { failure, .. } | Self::Declined { failure, .. } => matches!(
                failure,
                Failure::NotRepeatable | Failure::ConnectionLost | Failure::SessionEnded | Failure::TimedOut
            ),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use core::error::Error as _;

    use iscsi_proto::pdu::Residual;
    use scsi_proto::{AdditionalSense, SenseKey, Status};

    use super::*;

    fn portal() -> Portal {
        Portal { host: "h".into(), port: 1 }
    }

    #[test]
    fn sense_data_come_decoded_and_commands_have_names() {
        let code = AdditionalSense::new(0x11, 0);
        let sense = Sense { information: Some(17), ..Sense::new(SenseKey::MediumError, code) };
        let status = Status::CheckCondition.to_byte();
        let outcome = Outcome { status, sense: Some(sense), residual: Residual::None };
        let error = Error::Scsi { opcode: opcode::READ_10, lun: 3, outcome };
        let found = error.sense().unwrap();
        assert_eq!((found.key, found.code, found.information), (SenseKey::MediumError, code, Some(17)));
        assert!(error.to_string().starts_with("READ(10) on LUN 3 ended with CHECK CONDITION, "), "{error}");
        assert!(!error.is_transport() && !error.is_timeout());
    }

    #[test]
    fn an_error_is_of_its_kind_also_where_it_is_the_last_of_many() {
        let refused = Error::LoginRefused {
            portal: portal(),
            target: "iqn.a".into(),
            status: LoginStatus::AUTHENTICATION_FAILURE,
        };
        assert!(refused.to_string().contains("check the CHAP user and secret"), "{refused}");
        let lost = Error::Lost { after: Duration::from_secs(1), last: Arc::new(refused) };
        assert_eq!(lost.login_status().map(|status| (status.class(), status.detail())), Some((2, 1)));
        assert!(lost.is_transport() && !lost.is_timeout() && lost.source().is_some());
        let broken = Error::Broken { portal: portal(), source: ConnectionEnd::KeepaliveTimeout };
        assert!(broken.is_transport() && broken.is_timeout() && broken.source().is_some());
    }
}
