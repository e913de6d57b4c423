//! Sessions as an application holds them.

use iscsi_proto::pdu::{Residual, TaskFunction, TaskResponse};
use iscsi_proto::scsi::Sense;

use super::{DiscoveredTarget, Disk, SessionInfo, SessionStats};
use crate::config::{DiscoveryConfig, SessionConfig};
use crate::error::Error;
use crate::url::{Portal, Url};

/// Asks a portal for its targets: a discovery session with SendTargets=All (RFC 7143 appendix C).
///
/// # Errors
/// Connection, login and protocol errors of [`Error`]; nothing is repeated.
pub async fn discover(portal: &Portal, config: &DiscoveryConfig) -> Result<Vec<DiscoveredTarget>, Error> {
    let _ = (portal, config);
    Err(Error::LoggedOut)
}

/// A session to one target: clones share it. It lives in a task of the runtime that [`Session::connect`] was called on.
#[derive(Debug, Clone)]
pub struct Session {}

/// The data of a raw command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer<'a> {
    /// None.
    None,
    /// These bytes go to the target.
    Out(&'a [u8]),
    /// At most so many bytes come from the target.
    In(usize),
}

/// The answer to a raw command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// SCSI status code.
    pub status: u8,
    /// Sense data.
    pub sense: Option<Sense>,
    /// Residual.
    pub residual: Residual,
    /// The data that came.
    pub data: Vec<u8>,
}

impl Session {
    /// Connects and logs in.
    ///
    /// # Errors
    /// Connection and login errors of [`Error`]. The first connection is tried once.
    pub async fn connect(config: SessionConfig) -> Result<Self, Error> {
        let _ = config;
        Err(Error::LoggedOut)
    }

    /// Connects to the target of a URL with all else by default.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub async fn from_url(url: &Url) -> Result<Self, Error> {
        Self::connect(SessionConfig::from_url(url)).await
    }

    /// The session as it stands after its last login.
    #[must_use]
    pub fn info(&self) -> SessionInfo {
        unreachable!()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> SessionStats {
        SessionStats::default()
    }

    /// The LUNs that the target has for us (REPORT LUNS), ascending.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn luns(&self) -> Result<Vec<u16>, Error> {
        Err(Error::LoggedOut)
    }

    /// The disk at a LUN.
    ///
    /// # Errors
    /// [`Error::NoSuchLun`], [`Error::NotADisk`], and what its inquiry fails with.
    pub async fn disk(&self, lun: u16) -> Result<Disk, Error> {
        let _ = lun;
        Err(Error::LoggedOut)
    }

    /// Sends any CDB. The answer is reported as it comes, unit attentions included; nothing but what never ran is sent twice.
    ///
    /// # Errors
    /// [`Error::Command`] when no status came.
    pub async fn command(&self, lun: u16, cdb: &[u8], transfer: Transfer<'_>) -> Result<Answer, Error> {
        let _ = (lun, cdb, transfer);
        Err(Error::LoggedOut)
    }

    /// Sends a task management function for a LUN: ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET WARM RESET, ... Our own commands
    /// that it ends are sent again if they may be.
    ///
    /// # Errors
    /// [`Error::Declined`] when no answer came.
    pub async fn task_management(&self, function: TaskFunction, lun: u16) -> Result<TaskResponse, Error> {
        let _ = (function, lun);
        Err(Error::LoggedOut)
    }

    /// The addresses of this session's target (SendTargets with an empty value, RFC 7143 appendix C).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send_targets(&self) -> Result<Vec<DiscoveredTarget>, Error> {
        Err(Error::LoggedOut)
    }

    /// Waits for commands under way, logs out and closes the connection. Later use of any clone gives [`Error::LoggedOut`].
    ///
    /// # Errors
    /// When the target did not answer the logout; the connection is closed all the same.
    pub async fn logout(&self) -> Result<(), Error> {
        Err(Error::LoggedOut)
    }
}
