//! Who is logged in: the one place that all workers share besides the configuration and the logical units.
//!
//! It is locked at accept, login, logout, shutdown and by task management that reaches beyond one session. Sessions reach each other only through it,
//! by events in their mailboxes.

mod mailbox;
mod session_entry;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use iscsi_proto::pdu::LoginStatus;

use crate::lock::Lock;
use crate::lu::{LogicalUnit, NexusId};

pub use mailbox::EndCause;
pub(crate) use mailbox::{Barrier, Mailbox, SessionEvent, Ticket, Tickets};
pub(crate) use session_entry::NewSession;
pub use session_entry::{Carrier, SessionEntry, SessionInfo};

/// The connections and sessions of one target.
#[derive(Debug)]
pub struct Registry {
    inner: Lock<Inner>,
    max_connections: usize,
    max_sessions: usize,
}

#[derive(Debug, Default)]
struct Inner {
    connections: Vec<Arc<Mailbox>>,
    sessions: Vec<Arc<SessionEntry>>,
    last_nexus: u64,
    last_tsih: u16,
    stopping: Option<Duration>,
}

/// A connection's place in the registry, given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    registry: Arc<Registry>,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.registry.inner.with(|inner| inner.connections.retain(|other| !Arc::ptr_eq(other, &self.mailbox)));
        self.mailbox.close();
    }
}

impl Registry {
    pub(crate) fn new(max_connections: usize, max_sessions: usize) -> Self {
        Self { inner: Lock::default(), max_connections, max_sessions: max_sessions.min(usize::from(u16::MAX)) }
    }

    /// A connection came: its mailbox, unless there are too many, or the target stops.
    pub(crate) fn seat(self: &Arc<Self>) -> Option<Seat> {
        let mailbox = Arc::new(Mailbox::default());
        self.inner.with(|inner| {
            if inner.stopping.is_some() || inner.connections.len() >= self.max_connections {
                return None;
            }
            inner.connections.push(mailbox.clone());
            Some(Seat { registry: self.clone(), mailbox })
        })
    }

    /// Connections now, logged in or not.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner.with(|inner| inner.connections.len())
    }

    /// The session of a TSIH, for logins that mean to join it.
    pub(crate) fn by_tsih(&self, tsih: u16) -> Option<Arc<SessionEntry>> {
        self.inner.with(|inner| inner.sessions.iter().find(|session| session.tsih == tsih).cloned())
    }

    /// Enters a new session. An old one of the same I_T nexus is told to end, and `barrier` opens when nothing of it is left (RFC 7143 6.3.5).
    ///
    /// # Errors
    /// The status to refuse the login with.
    pub(crate) fn enter(&self, new: NewSession, barrier: &Arc<Barrier>) -> Result<Arc<SessionEntry>, LoginStatus> {
        let mut inner = self.inner.lock();
        if inner.stopping.is_some() {
            return Err(LoginStatus::SERVICE_UNAVAILABLE);
        }
        let old = inner.sessions.iter().position(|session| session.is_nexus_of(&new));
        if old.is_none() && inner.sessions.len() >= self.max_sessions {
            return Err(LoginStatus::OUT_OF_RESOURCES);
        }
        let tsih = loop {
            inner.last_tsih = inner.last_tsih.wrapping_add(1);
            let tsih = inner.last_tsih;
            // Fewer sessions than numbers: the search ends. Zero means "no session" (RFC 7143 11.12.6).
            if tsih != 0 && inner.sessions.iter().all(|session| session.tsih != tsih) {
                break tsih;
            }
        };
        inner.last_nexus += 1;
        let entry = Arc::new(SessionEntry::new(NexusId(inner.last_nexus), tsih, new));
        let old = old.map(|at| inner.sessions.swap_remove(at));
        inner.sessions.push(entry.clone());
        drop(inner);
        if let Some(old) = old {
            old.mailbox.post(SessionEvent::End { cause: EndCause::Reinstated, ticket: barrier.ticket() });
        }
        Ok(entry)
    }

    /// A session is over.
    pub(crate) fn leave(&self, id: NexusId) {
        let gone = self.inner.with(|inner| {
            let at = inner.sessions.iter().position(|session| session.id == id)?;
            Some(inner.sessions.swap_remove(at))
        });
        drop(gone);
    }

    /// Has every session but `except` that sees one of `units` abort its tasks there; `barrier` opens when all have.
    pub(crate) fn abort(&self, except: NexusId, units: &Arc<[Arc<LogicalUnit>]>, barrier: &Arc<Barrier>) {
        for session in self.affected(except, units) {
            session.mailbox.post(SessionEvent::Abort { units: units.clone(), ticket: barrier.ticket() });
        }
    }

    fn affected(&self, except: NexusId, units: &[Arc<LogicalUnit>]) -> Vec<Arc<SessionEntry>> {
        let mut sessions = self.inner.with(|inner| inner.sessions.clone());
        sessions.retain(|session| session.id != except && session.sees(units));
        sessions
    }

    /// Ends every session with the target node `name`, but `except`.
    pub(crate) fn end_all(&self, except: NexusId, name: &str, cause: EndCause, barrier: &Arc<Barrier>) {
        let mut sessions = self.inner.with(|inner| inner.sessions.clone());
        sessions.retain(|session| session.id != except && session.target_name() == Some(name));
        for session in sessions {
            session.mailbox.post(SessionEvent::End { cause, ticket: barrier.ticket() });
        }
    }

    /// Lets nobody in any more, asks those who are in to log out, and has them end after `grace` at the latest.
    pub fn stop(&self, grace: Duration) {
        let connections = self.inner.with(|inner| {
            inner.stopping = Some(grace);
            inner.connections.clone()
        });
        for mailbox in connections {
            mailbox.post(SessionEvent::Stop { grace });
        }
    }

    /// The sessions now, in the order of their logins.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionInfo> {
        let mut sessions = self.inner.with(|inner| inner.sessions.clone());
        sessions.sort_by_key(|session| session.id);
        sessions.iter().map(|session| session.info()).collect()
    }

    /// Ends a session as if its connection broke. Returns false when there is none of that TSIH.
    pub fn end_session(&self, tsih: u16) -> bool {
        let Some(session) = self.by_tsih(tsih) else { return false };
        let barrier = Barrier::new(session.mailbox.clone());
        session.mailbox.post(SessionEvent::End { cause: EndCause::Requested, ticket: barrier.ticket() });
        true
    }
}

/// Where a connection comes from and where it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoints {
    /// Our address.
    pub local: SocketAddr,
    /// The initiator's address.
    pub peer: SocketAddr,
}
