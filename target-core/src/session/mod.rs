//! Connections and sessions: from the first login request to the last answer.
//!
//! A [`TargetConnection`] is one connection of an initiator, sans-IO: it goes through the phases below and is what a
//! driver drives. Two things are in it, with a wall between them:
//!
//! - the **session** (`session`, `requests`, `functions`, `scope`, `aborts`, `owed`, `text`, `logout`): CmdSN window,
//!   tasks and their executor, task management functions, requests that came ahead of their turn, and who waits for it.
//!   It stays entered in the [`Registry`] until the last operation begun under it has ended, whatever became of its
//!   connection.
//! - the **connection** (`connection`, `login`, `keepalive`): mover, StatSN, unexpected PDUs, digests and segment
//!   lengths, its text negotiation, NOP, its logout.
//!
//! The session owns no connection: a method of it that needs one is given the one that it is about. One connection is
//! all that a session is given today (MaxConnections=1, ErrorRecoveryLevel=0). What sessions share with each other is
//! in [`Target`]: configuration, limits and the [`Registry`].
//!
//! ```text
//! Login ──> Reinstating ──> Full Feature Phase ──> Ending ──> finished
//!   └───────────┴──────────────────────────────────────┘
//! ```
//!
//! *Reinstating* waits until an old session of the same I_T nexus is gone (RFC 7143 6.3.5); *Ending* sends what is left
//! and waits until no store operation of an aborted task is under way.

mod aborts;
mod command_window;
mod connection;
mod driving;
mod functions;
mod held;
mod keepalive;
mod limits;
mod login;
mod logout;
mod owed;
mod requests;
mod scope;
#[expect(clippy::module_inception, reason = "a session is what this module is about, and what the file holds")]
mod session;
mod target_connection;
mod task_table;
mod text;
mod wire;

#[cfg(test)]
mod tests;

use alloc::sync::Arc;

use iscsi_memory::{BufferBudget, WorkerPool};
use iscsi_proto::datamover::MoverError;
use iscsi_proto::login::LoginError;
use iscsi_proto::misbehavior::Misbehavior;

pub use limits::Limits;
pub use target_connection::TargetConnection;

use crate::node::TargetConfig;
use crate::registry::{EndCause, Registry};

/// A target: what all its connections share.
#[derive(Debug)]
pub struct Target {
    pub(crate) config: TargetConfig,
    pub(crate) limits: Limits,
    pub(crate) registry: Arc<Registry>,
    buffers: Arc<BufferBudget>,
    /// For connections whose mover has none of its worker.
    pub(crate) pool: WorkerPool,
}

impl Target {
    /// A target of this configuration. Connections are given to it by [`TargetConnection::new`].
    #[must_use]
    pub fn new(config: TargetConfig, mut limits: Limits) -> Arc<Self> {
        limits.offer.max_connections = 1;
        limits.offer.error_recovery_level = 0;
        let registry = Arc::new(Registry::new(limits.connections, limits.logins, limits.sessions));
        let buffers = Arc::new(BufferBudget::new(limits.buffered, limits.sessions));
        let pool = WorkerPool::new(limits.idle_buffers, Some(buffers.clone()));
        Arc::new(Self { config, limits, registry, buffers, pool })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &TargetConfig {
        &self.config
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A pool for one of so many workers, which share [`Limits::idle_buffers`]. Movers are made with buffers out of it.
    #[must_use]
    pub fn worker_pool(&self, workers: usize) -> WorkerPool {
        WorkerPool::new(self.limits.idle_buffers / workers.max(1), Some(self.buffers.clone()))
    }

    /// What the buffers of all sessions take.
    #[must_use]
    pub fn buffers(&self) -> &BufferBudget {
        &self.buffers
    }

    /// Who is logged in.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// The initiator logged out.
    #[error("the initiator logged out")]
    LoggedOut,
    /// The stream ended or broke, or its bytes are no iSCSI.
    #[error(transparent)]
    Transport(MoverError),
    /// Login failed; the initiator was told by a Login Response.
    #[error("login failed: {0}")]
    Login(LoginError),
    /// Login took too long.
    #[error("the initiator did not log in in time")]
    LoginTimeout,
    /// Its login took longer than those of as many later connections as may log in at a time ([`Limits::logins`]).
    #[error("too many connections that came later were logging in too")]
    Displaced,
    /// An old session of the same I_T nexus does not end.
    #[error("the session that was to be replaced did not end in time")]
    ReinstatementTimeout,
    /// No answer to a NOP-In.
    #[error("the initiator did not answer a NOP-In in time")]
    NopTimeout,
    /// The initiator takes nothing of what is sent to it.
    #[error("the initiator does not receive what is sent to it")]
    SendTimeout,
    /// Data of an aborted task that the initiator owes, and that others wait for.
    #[error("the initiator did not send the data that it owed to an aborted task in time")]
    DataOwed,
    /// Data of a command that do not come over RDMA.
    #[error("the initiator did not answer an RDMA Read in time")]
    DataTimeout,
    /// A CmdSN that does not come.
    #[error("a CmdSN is missing and did not come in time")]
    Gap,
    /// The initiator breaks the protocol in a way that leaves no way on.
    #[error("protocol error: {0}")]
    Protocol(Misbehavior),
    /// Another session told it to.
    #[error("the session was ended: {0:?}")]
    Told(EndCause),
    /// Its own TARGET COLD RESET.
    #[error("the session ended with a TARGET COLD RESET")]
    ColdReset,
    /// Its own I_T NEXUS RESET.
    #[error("the session ended with an I_T NEXUS RESET")]
    NexusReset,
    /// The target stops.
    #[error("the target stops")]
    Stopped,
}
