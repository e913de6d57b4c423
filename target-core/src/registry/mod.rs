//! Who is logged in: the one place that all workers share besides the configuration and the logical units.
//!
//! It is locked at accept, login, logout, shutdown and by task management that reaches beyond one session. Sessions
//! reach each other only through it, by events in their mailboxes; those of several servers of a process through the
//! logical units that they share or have shared (`reach`).

mod event;
mod mailbox;
mod reach;
mod session_entry;
mod unfinished;

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::task::Waker;
use core::time::Duration;

use iscsi_memory::BufferBudget;
use iscsi_proto::pdu::LoginStatus;

use crate::lu::NexusId;
use iscsi_memory::Lock;

pub use event::Event;
pub use mailbox::EndCause;
pub(crate) use mailbox::{Barrier, Mailbox, SessionEvent, Ticket, Tickets};
pub(crate) use reach::Reach;
pub(crate) use session_entry::NewSession;
pub use session_entry::{Carrier, SessionEntry, SessionInfo};
pub(crate) use unfinished::Departure;

use event::Observer;
pub(crate) use unfinished::Estate;
use unfinished::{Unfinished, UnfinishedSessions};

/// The connections and sessions of one target.
#[derive(Debug)]
pub struct Registry {
    inner: Lock<Inner>,
    unfinished: UnfinishedSessions,
    /// Those that it has met at a logical unit. Servers of one target node are found by it, when no unit is left that
    /// they share.
    acquaintances: Lock<Vec<Weak<Registry>>>,
    observer: Observer,
    max_connections: usize,
    max_logins: usize,
    max_sessions: usize,
}

#[derive(Debug, Default)]
struct Inner {
    /// In the order in which they came.
    connections: Vec<Accepted>,
    sessions: Vec<Member>,
    last_tsih: u16,
    stopping: Option<Duration>,
    /// Connections that have given way since fewer than half of the bound were logging in.
    displaced: u64,
}

/// A connection that has its seat.
#[derive(Debug)]
struct Accepted {
    mailbox: Arc<Mailbox>,
    standing: Standing,
    /// A device may hold memory for it when it is told to end: it keeps its place until it has gone.
    outlasts: bool,
}

/// What a connection has shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It has still to log in.
    Unproved,
    /// Its login was granted.
    Proved,
    /// It was told to end before that, for the sake of a later one, and goes with its next turn, unless it
    /// [outlasts](Accepted::outlasts) that.
    Displaced,
}

impl Accepted {
    /// Whether it counts among the connections.
    fn has_place(&self) -> bool {
        self.outlasts || self.standing != Standing::Displaced
    }
}

impl Inner {
    fn count(&self, standing: Standing) -> usize {
        self.connections.iter().filter(|connection| connection.standing == standing).count()
    }
}

/// A session from the grant of its login until the last operation begun under it has ended, in the store and in RDMA,
/// whatever became of its connection: as long as it is here, no session of its I_T nexus is let in (RFC 7143 6.3.5).
#[derive(Debug)]
struct Member {
    entry: Arc<SessionEntry>,
    /// A later login of the same nexus has told it to end.
    replaced: bool,
}

/// A connection's place in the registry, given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    registry: Arc<Registry>,
    pub(crate) mailbox: Arc<Mailbox>,
    /// The session is to be told of events still, when the connection has gone.
    session_stays: bool,
}

impl Seat {
    /// Gives the place back, and leaves the mailbox open for what is left of the session.
    fn vacate(mut self) {
        self.session_stays = true;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.registry
            .inner
            .with(|inner| inner.connections.retain(|connection| !Arc::ptr_eq(&connection.mailbox, &self.mailbox)));
        if !self.session_stays {
            self.mailbox.close();
        }
    }
}

impl Registry {
    pub(crate) fn new(max_connections: usize, max_logins: usize, max_sessions: usize) -> Self {
        Self {
            inner: Lock::default(),
            unfinished: UnfinishedSessions::default(),
            acquaintances: Lock::default(),
            observer: Observer::default(),
            max_connections,
            max_logins: max_logins.max(1),
            max_sessions: max_sessions.min(usize::from(u16::MAX)),
        }
    }

    /// A connection came: its mailbox, unless too many are logged in, or the target stops. Where too many are not, the
    /// one that has been at it for the longest is told to end: those that prove nothing take no place from those that
    /// do. `outlasts`: a device may hold memory for the connection after it was told to end. The place of such a one is
    /// free when it has gone, and not before: rather one of the others is told to end, and where there is none, this one
    /// is not let in.
    pub(crate) fn seat(self: &Arc<Self>, outlasts: bool) -> Option<Seat> {
        let mailbox = Arc::new(Mailbox::default());
        let (seated, displaced) = self.inner.with(|inner| {
            let (proved, unproved) = (inner.count(Standing::Proved), inner.count(Standing::Unproved));
            if inner.stopping.is_some() || proved >= self.max_connections {
                return (false, None);
            }
            let places = inner.connections.iter().filter(|connection| connection.has_place()).count();
            let mut is_full = places >= self.max_connections;
            let mut displaced = None;
            if is_full || unproved >= self.max_logins {
                let connections = &mut inner.connections;
                let oldest = |likes: fn(&Accepted) -> bool| {
                    let mut unproved = connections.iter().enumerate();
                    let found = unproved.find(|(_, other)| other.standing == Standing::Unproved && likes(other));
                    found.map(|(at, _)| at)
                };
                let at_once = if is_full { oldest(|other| !other.outlasts) } else { None };
                if let Some(connection) = at_once.or_else(|| oldest(|_| true)).and_then(|at| connections.get_mut(at)) {
                    connection.standing = Standing::Displaced;
                    is_full &= connection.has_place();
                    displaced = Some(connection.mailbox.clone());
                }
            }
            if !is_full {
                let connection = Accepted { mailbox: mailbox.clone(), standing: Standing::Unproved, outlasts };
                inner.connections.push(connection);
            }
            if unproved < self.max_logins / 2 {
                inner.displaced = 0;
            }
            inner.displaced += u64::from(displaced.is_some());
            (!is_full, displaced.map(|displaced| (displaced, inner.displaced)))
        });
        if let Some((oldest, displaced)) = displaced {
            oldest.post(SessionEvent::Displaced);
            if displaced.is_power_of_two() {
                self.observer.tell(&Event::LoginsDisplaced { logins: self.max_logins, displaced });
            }
        }
        seated.then(|| Seat { registry: self.clone(), mailbox, session_stays: false })
    }

    /// Connections now, logged in or not, also those that are told to end.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner.with(|inner| inner.connections.len())
    }

    /// The session of a TSIH, for logins that mean to join it.
    pub(crate) fn by_tsih(&self, tsih: u16) -> Option<Arc<SessionEntry>> {
        self.inner.with(|inner| {
            let mut present = inner.sessions.iter().filter(|member| !member.replaced);
            present.find(|member| member.entry.tsih == tsih).map(|member| member.entry.clone())
        })
    }

    /// Enters a new session. All older ones of the same I_T nexus are told to end, those too that are ending already,
    /// and `barrier` opens when nothing of them is left (RFC 7143 6.3.5).
    ///
    /// # Errors
    /// The status to refuse the login with.
    pub(crate) fn enter(
        self: &Arc<Self>,
        new: NewSession,
        barrier: &Arc<Barrier>,
    ) -> Result<Arc<SessionEntry>, LoginStatus> {
        // Before its first task, and before it is looked who else is of its nexus.
        if let Some((node, ..)) = &new.normal {
            node.join(self);
        }
        let mut inner = self.inner.lock();
        if inner.stopping.is_some() {
            return Err(LoginStatus::SERVICE_UNAVAILABLE);
        }
        // A login that is granted in the very moment in which its connection is displaced.
        let is_displaced = |connection: &Accepted| {
            connection.standing == Standing::Displaced && Arc::ptr_eq(&connection.mailbox, &new.mailbox)
        };
        if inner.connections.iter().any(is_displaced) {
            return Err(LoginStatus::OUT_OF_RESOURCES);
        }
        let replaces = inner.sessions.iter().any(|member| !member.replaced && member.entry.is_nexus_of(&new));
        if !replaces && inner.sessions.len() >= self.max_sessions {
            return Err(LoginStatus::OUT_OF_RESOURCES);
        }
        let mut older = Vec::new();
        for member in inner.sessions.iter_mut().filter(|member| member.entry.is_nexus_of(&new)) {
            member.replaced = true;
            older.push(member.entry.clone());
        }
        let tsih = loop {
            inner.last_tsih = inner.last_tsih.wrapping_add(1);
            let tsih = inner.last_tsih;
            // Fewer sessions than numbers: the search ends. Zero means "no session" (RFC 7143 11.12.6).
            if tsih != 0 && inner.sessions.iter().all(|member| member.entry.tsih != tsih) {
                break tsih;
            }
        };
        if let Some(connection) =
            inner.connections.iter_mut().find(|connection| Arc::ptr_eq(&connection.mailbox, &new.mailbox))
        {
            connection.standing = Standing::Proved;
        }
        let entry = Arc::new(SessionEntry::new(NexusId::unique(), tsih, new));
        inner.sessions.push(Member { entry: entry.clone(), replaced: false });
        drop(inner);
        // One target port may be served by several servers of the process, and its nexuses are the same in each. Of two
        // that log in at the same time the later one stays, by its number.
        for other in entry.reach().and_acquaintances(self).registries().iter().filter(|other| !Arc::ptr_eq(other, self))
        {
            older.extend(other.replace(&entry));
        }
        for old in older {
            old.mailbox.post(SessionEvent::End { cause: EndCause::Reinstated, ticket: barrier.ticket() });
        }
        Ok(entry)
    }

    /// Marks those of the nexus of `new` that were entered before it.
    fn replace(&self, new: &SessionEntry) -> Vec<Arc<SessionEntry>> {
        self.inner.with(|inner| {
            let older = |member: &&mut Member| member.entry.id < new.id && member.entry.is_nexus_of(&new.session);
            let older = inner.sessions.iter_mut().filter(older);
            older
                .map(|member| {
                    member.replaced = true;
                    member.entry.clone()
                })
                .collect()
        })
    }

    /// Both have the same logical unit, and know each other from then on.
    pub(crate) fn meet(self: &Arc<Self>, other: &Arc<Self>) {
        for (one, other) in [(self, other), (other, self)] {
            one.acquaintances.with(|known| {
                if known.iter().all(|known| known.as_ptr() != Arc::as_ptr(other)) {
                    known.retain(|known| known.strong_count() != 0);
                    known.push(Arc::downgrade(other));
                }
            });
        }
    }

    /// Those that it has met, and that are still there.
    fn acquaintances(&self) -> Vec<Arc<Self>> {
        self.acquaintances.with(|known| known.iter().filter_map(Weak::upgrade).collect())
    }

    /// Takes over what is left of a session of a registry that is gone.
    pub(crate) fn adopt(&self, session: Unfinished) {
        let member = Member { entry: session.entry().clone(), replaced: true };
        self.inner.with(|inner| inner.sessions.push(member));
        self.unfinished.add(session);
    }

    /// Nothing of a session is left.
    pub(crate) fn leave(&self, id: NexusId) {
        let gone = self.inner.with(|inner| {
            let at = inner.sessions.iter().position(|member| member.entry.id == id)?;
            Some(inner.sessions.swap_remove(at))
        });
        drop(gone);
    }

    /// Has `on_event` called when something happens that an operator is to hear of; it replaces who was called before.
    /// It is called on the thread that drives a connection, and must not block.
    pub fn set_on_event(&self, on_event: impl Fn(&Event) + Send + Sync + 'static) {
        self.observer.set(Arc::new(on_event));
    }

    /// Tells that sessions wait for buffers.
    pub(crate) fn buffers_short(&self, budget: &BufferBudget) {
        self.observer.tell(&Event::BuffersShort { out: budget.out(), total: budget.total() });
    }

    /// Tells that the store of a session holds operations back.
    pub(crate) fn overdue(&self, session: &SessionEntry, operations: usize, connection_ended: bool) {
        self.observer.tell(&Event::OperationsOverdue {
            initiator_name: session.session.initiator.as_str().into(),
            target_name: session.target_name().unwrap_or_default().into(),
            operations,
            connection_ended,
        });
    }

    /// Looks after a session whose connection has gone before its operations at the store have ended. It stays entered
    /// until they have.
    fn look_after(&self, session: Unfinished, seat: Option<Seat>) {
        if let Some(seat) = seat {
            seat.vacate();
        }
        self.overdue(session.entry(), session.operations(), true);
        self.unfinished.add(session);
    }

    /// Goes on with sessions whose connection has gone before their operations at the store have ended, and tells how
    /// many are left. `waker` is woken when there is more to do.
    ///
    /// The server does this by itself. Whoever drives [`TargetConnection`](crate::session::TargetConnection)s himself
    /// calls it at the start and after each wake; without it, such a session ends only when a login or a task
    /// management function that waits for it looks.
    pub fn poll_unfinished(&self, waker: &Waker) -> usize {
        self.unfinished.poll(self, waker)
    }

    /// Sessions but `except`, those too that are ending or replaced.
    fn others(&self, except: NexusId) -> Vec<Arc<SessionEntry>> {
        self.inner.with(|inner| {
            let others = inner.sessions.iter().filter(|member| member.entry.id != except);
            others.map(|member| member.entry.clone()).collect()
        })
    }

    /// Lets nobody in any more, asks those who are in to log out, and has them end after `grace` at the latest.
    pub fn stop(&self, grace: Duration) {
        let connections = self.inner.with(|inner| {
            inner.stopping = Some(grace);
            inner.connections.iter().map(|connection| connection.mailbox.clone()).collect::<Vec<_>>()
        });
        for mailbox in connections {
            mailbox.post(SessionEvent::Stop { grace });
        }
    }

    /// The sessions now, in the order of their logins.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionInfo> {
        let mut sessions: Vec<_> = self.inner.with(|inner| {
            let present = inner.sessions.iter().filter(|member| !member.replaced);
            present.map(|member| member.entry.clone()).collect()
        });
        sessions.sort_by_key(|session| session.id);
        sessions.iter().map(|session| session.info()).collect()
    }

    /// Sessions that are entered: those that [`sessions`](Self::sessions) lists, those that a later login has replaced
    /// and that still end, and those without a connection of which operations at a store are left.
    #[must_use]
    pub fn entered(&self) -> usize {
        self.inner.with(|inner| inner.sessions.len())
    }

    /// Ends a session as if its connection broke. Returns false when there is none of that TSIH.
    pub fn end_session(&self, tsih: u16) -> bool {
        let Some(session) = self.by_tsih(tsih) else { return false };
        let barrier = Barrier::new(session.mailbox.clone());
        session.mailbox.post(SessionEvent::End { cause: EndCause::Requested, ticket: barrier.ticket() });
        true
    }
}

impl Drop for Registry {
    /// The server is gone, and operations that it began may still land: who shares the logical units with it looks
    /// after them from now on, or the next one who is given them. Until then nobody writes where they write.
    fn drop(&mut self) {
        for session in self.unfinished.take() {
            let units = session.units();
            match Reach::of(units.clone()).registries().first() {
                Some(heir) => heir.adopt(session),
                None => {
                    let estate = Estate::new(session);
                    units.iter().for_each(|unit| unit.users().leave(&estate));
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn is_told(seat: &Seat) -> bool {
        matches!(seat.mailbox.take(), Some(SessionEvent::Displaced))
    }

    #[test]
    fn what_a_device_holds_keeps_its_place_until_it_has_gone() {
        let registry = Arc::new(Registry::new(2, 256, 10));
        let (first, second) = (registry.seat(true).unwrap(), registry.seat(true).unwrap());
        assert!(registry.seat(false).is_none(), "nobody's place is free yet");
        assert!(is_told(&first) && !is_told(&second));
        assert_eq!(registry.connections(), 2);
        drop(first);
        let third = registry.seat(false).unwrap();
        let fourth = registry.seat(true).unwrap();
        assert!(is_told(&third) && !is_told(&second), "one that goes at once gives way before the oldest");
        drop((second, third, fourth));
        assert_eq!(registry.connections(), 0);
    }
}
