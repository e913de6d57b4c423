//! One connection of an initiator: the phases it goes through. How it is driven is in the sibling `driving`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::mem;

use iscsi_proto::datamover::{Datamover, Notification};
use iscsi_proto::time::Instant;

use super::connection::Connection;
use super::login::{LoggedIn, LoginPhase};
use super::session::Session;
use super::{EndReason, Target};
use crate::registry::{Carrier, Departure, Endpoints, Seat, SessionEvent, Tickets};

/// A target's end of one connection. See the [module](super) for its phases;
/// [`StreamConnection`](iscsi_proto::connection::StreamConnection) or
/// [`QueueConnection`](iscsi_proto::connection::QueueConnection), as its mover allows, is how it is driven.
///
/// The future or loop that drives it may drop it at any time. Its session leaves the registry when its last operation
/// at a store has ended, and sessions that wait for it go on then; see
/// [`Registry::poll_unfinished`](crate::registry::Registry::poll_unfinished).
pub struct TargetConnection<M> {
    pub(super) connection: Connection<M>,
    pub(super) phase: Phase,
    target: Arc<Target>,
    /// None once the connection is finished.
    pub(super) seat: Option<Seat>,
    endpoints: Endpoints,
    reason: Option<EndReason>,
    /// Behind the mover, so that it is dropped after it.
    departure: Option<Box<Departure>>,
}

/// Where the connection is. The session is here because one connection carries it; what is the connection's own is
/// beside it.
pub(super) enum Phase {
    Login(Box<LoginPhase>),
    /// Login is granted; an old session of the same I_T nexus is still to end before the initiator hears of it.
    Reinstating(Box<LoggedIn>, Instant),
    FullFeature(Box<Session>),
    Ending(Ending),
    Finished,
}

pub(super) struct Ending {
    pub(super) session: Option<Box<Session>>,
    /// The initiator is to close the connection, until then.
    pub(super) lingering: Option<Instant>,
    /// What is queued is still to be sent, until then.
    pub(super) flushing: Option<Instant>,
    /// How long aborted store operations, and the transport with buffers of ours, may take.
    pub(super) until: Instant,
}

impl<M> TargetConnection<M> {
    /// The session that the connection carries, or carried until it began to end.
    pub(super) fn session(&mut self) -> Option<&mut Session> {
        match &mut self.phase {
            Phase::FullFeature(session) | Phase::Ending(Ending { session: Some(session), .. }) => Some(session),
            _ => None,
        }
    }

    /// The connection is over. What it gives back to the registry is kept in `departure`, which goes with the
    /// connection, after its mover: until then a device may write into memory of a store.
    fn depart(&mut self) {
        let (entry, executor, tickets) = match mem::replace(&mut self.phase, Phase::Finished) {
            Phase::Ending(Ending { session: Some(session), .. }) | Phase::FullFeature(session) => {
                let Session { entry, executor, tickets, .. } = *session;
                (Some(entry), executor, tickets)
            }
            Phase::Reinstating(logged_in, _) => (Some(logged_in.entry), None, Tickets::new()),
            Phase::Login(_) | Phase::Ending(_) => (None, None, Tickets::new()),
            Phase::Finished => return,
        };
        let registry = self.target.registry.clone();
        let seat = self.seat.take();
        self.departure = Some(Box::new(Departure::new(registry, entry, executor, tickets, seat)));
    }
}

impl<M: Datamover> TargetConnection<M> {
    /// A connection that has just been accepted. `None` when the target has as many as it takes, or stops: the
    /// transport is then to be closed.
    ///
    /// The mover is a new one in the target's role. `entropy` comes from a cryptographic random number generator and is
    /// used for this connection only (CHAP challenge, first StatSN).
    #[must_use]
    pub fn new(target: Arc<Target>, mover: M, endpoints: Endpoints, entropy: [u8; 64], now: Instant) -> Option<Self> {
        let seat = target.registry.seat(mover.caps().registered_memory)?;
        Some(Self::seated(target, seat, mover, endpoints, entropy, now))
    }

    /// A connection that has its seat already.
    pub(crate) fn seated(
        target: Arc<Target>,
        seat: Seat,
        mover: M,
        endpoints: Endpoints,
        entropy: [u8; 64],
        now: Instant,
    ) -> Self {
        let login = LoginPhase::new(&target, mover.caps(), endpoints, seat.mailbox.clone(), entropy, now);
        Self {
            connection: Connection::new(mover, &target.limits, now),
            phase: Phase::Login(Box::new(login)),
            target,
            seat: Some(seat),
            endpoints,
            reason: None,
            departure: None,
        }
    }

    /// Tells what carries the connection, for listings of sessions; without it they say TCP. It counts before login is
    /// done.
    #[must_use]
    pub fn carried_by(mut self, carrier: Carrier) -> Self {
        if let Phase::Login(login) = &mut self.phase {
            login.set_carrier(carrier);
        }
        self
    }

    /// Both ends.
    #[must_use]
    pub const fn endpoints(&self) -> Endpoints {
        self.endpoints
    }

    /// Why the connection ended, once it is ending.
    #[must_use]
    pub const fn end_reason(&self) -> Option<&EndReason> {
        self.reason.as_ref()
    }

    /// Does all there is to do now.
    #[inline]
    pub(super) fn pump(&mut self, now: Instant) {
        if let Phase::FullFeature(session) = &mut self.phase {
            match session.pump(&mut self.connection, now) {
                Ok(()) => return,
                Err(reason) => self.end(reason, now),
            }
        }
        self.pump_rarely(now);
    }

    #[cold]
    pub(super) fn pump_rarely(&mut self, now: Instant) {
        loop {
            match &mut self.phase {
                Phase::Login(login) => match login.pump(&mut self.connection.mover) {
                    Ok(None) => return,
                    Ok(Some(logged_in)) => {
                        let until = now + self.target.limits.drain_timeout;
                        self.phase = Phase::Reinstating(Box::new(logged_in), until);
                    }
                    Err(reason) => self.end(reason, now),
                },
                Phase::Reinstating(logged_in, until) => {
                    if !logged_in.may_go_on(&self.target.registry, &self.connection.waker) {
                        if now >= *until {
                            // Time alone lets nobody in: an operation of the old session may still land.
                            logged_in.refuse(&mut self.connection.mover);
                            self.end(EndReason::ReinstatementTimeout, now);
                            continue;
                        }
                        return;
                    }
                    let Phase::Reinstating(logged_in, _) = mem::replace(&mut self.phase, Phase::Finished) else {
                        return;
                    };
                    self.phase = Phase::FullFeature(logged_in.go_on(&mut self.connection, &self.target, now));
                }
                Phase::FullFeature(session) => match session.pump(&mut self.connection, now) {
                    Ok(()) => return,
                    Err(reason) => self.end(reason, now),
                },
                Phase::Ending(_) => return self.pump_ending(now),
                Phase::Finished => return,
            }
        }
    }

    /// The connection is to end. Some reasons let what is queued be sent.
    #[cold]
    pub(super) fn end(&mut self, reason: EndReason, now: Instant) {
        let limits = &self.target.limits;
        let polite = self.connection.has_last_words
            || matches!(
                reason,
                EndReason::LoggedOut
                    | EndReason::Login(_)
                    | EndReason::ReinstatementTimeout
                    | EndReason::ColdReset
                    | EndReason::NexusReset
                    | EndReason::Stopped
                    | EndReason::Gap
                    | EndReason::Protocol(_)
            );
        let session = match mem::replace(&mut self.phase, Phase::Finished) {
            Phase::FullFeature(mut session) => {
                session.abort_all(&mut self.connection);
                Some(session)
            }
            Phase::Reinstating(logged_in, _) => {
                self.target.registry.leave(logged_in.entry.id);
                None
            }
            Phase::Ending(mut ending) => {
                if ending.lingering.take().is_some() {
                    self.connection.mover.connection_terminate();
                }
                self.phase = Phase::Ending(ending);
                return;
            }
            Phase::Finished => return,
            Phase::Login(_) => None,
        };
        // RFC 7143 11.14: the target half-closes, and the initiator closes. RFC 7145 5.2.2 knows no half-close:
        // initiators that get a disconnect right behind the Logout Response take it for an error, or lose the response.
        let lingers = matches!(reason, EndReason::LoggedOut) && !self.connection.mover.caps().half_closes;
        let lingering = lingers.then(|| now + limits.logout_linger);
        let closes = lingering.unwrap_or(now);
        // A connection that is cut off at the end of its flush still has some time to give its buffers back.
        let drains = limits.drain_timeout.max(limits.close_timeout * 2);
        // Others wait for the end of a session whose initiator owes data: its last words take no longer than the data
        // may.
        let flush = if self.connection.has_last_words {
            limits.owed_data_wait.min(limits.close_timeout)
        } else {
            limits.close_timeout
        };
        let (flushing, until) = (Some(closes + flush), closes + drains);
        self.phase = Phase::Ending(Ending { session, lingering, flushing, until });
        if lingers {
            // The initiator's turn.
        } else if polite {
            self.connection.mover.connection_terminate();
        } else {
            self.connection.mover.connection_abort();
        }
        self.reason.get_or_insert(reason);
    }

    #[cold]
    pub(super) fn pump_ending(&mut self, now: Instant) {
        let Phase::Ending(ending) = &mut self.phase else { return };
        loop {
            while let Some(notification) = self.connection.mover.poll_notify() {
                // Nobody is left to hear of anything else.
                if let Notification::Released(buf) = notification
                    && let Some(executor) = ending.session.as_mut().and_then(|session| session.executor.as_mut())
                {
                    executor.give(buf);
                }
            }
            if ending.lingering.is_some_and(|until| now >= until || self.connection.mover.is_closed()) {
                ending.lingering = None;
                self.connection.mover.connection_terminate();
                continue;
            }
            // What the transport itself has to say may come behind the last notification.
            if self.connection.mover.is_closed() && self.connection.mover.backlog() == 0 {
                ending.flushing = None;
            } else if ending.flushing.is_some_and(|until| now >= until) {
                ending.flushing = None;
                self.connection.mover.connection_abort();
                continue;
            }
            break;
        }
        let drained = ending.session.as_mut().is_none_or(|session| session.wind_up(&self.connection.mover));
        // Until the mover is closed, a device may write into buffers of ours.
        if ending.flushing.is_none() && (drained && self.connection.mover.is_closed() || now >= ending.until) {
            self.depart();
            if self.connection.mover.is_closed() {
                self.departure = None;
            }
        }
    }

    #[cold]
    pub(super) fn event(&mut self, event: SessionEvent, now: Instant) {
        match event {
            SessionEvent::End { cause, ticket } => {
                // A session that has not begun has begun nothing that could be waited for.
                let ended = match self.session() {
                    Some(session) => {
                        session.tickets.push(ticket);
                        None
                    }
                    None => Some(ticket),
                };
                self.end(EndReason::Told(cause), now);
                drop(ended);
            }
            SessionEvent::Abort { attention, ticket } => {
                if let Phase::FullFeature(session) = &mut self.phase {
                    self.connection.now = now;
                    session.abort_units(&mut self.connection, attention, ticket);
                } else if let Some(session) = self.session() {
                    // What it aborts is aborted already, and may still be under way.
                    session.tickets.push(ticket);
                }
            }
            SessionEvent::Overdue { units } => {
                if let Some(session) = self.session() {
                    session.tell_overdue(&units);
                }
            }
            SessionEvent::Displaced => {
                if matches!(self.phase, Phase::Login(_)) {
                    self.end(EndReason::Displaced, now);
                }
            }
            SessionEvent::Stop { grace } => match &mut self.phase {
                Phase::FullFeature(session) if !session.is_discovery() && !grace.is_zero() => {
                    session.ask_logout(&mut self.connection, grace);
                }
                _ => self.end(EndReason::Stopped, now),
            },
        }
    }
}

impl<M> Drop for TargetConnection<M> {
    fn drop(&mut self) {
        if let Some(executor) = self.session().and_then(|session| session.executor.as_mut()) {
            executor.abort_all();
        }
        self.depart();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::{ME, World};

    /// Looks at the registry when it is dropped.
    struct LastLook(Arc<Target>, Arc<core::sync::atomic::AtomicUsize>);

    impl Drop for LastLook {
        fn drop(&mut self) {
            self.1.store(self.0.registry.sessions().len(), core::sync::atomic::Ordering::SeqCst);
        }
    }

    #[test]
    fn a_session_is_known_as_long_as_its_mover_is_there() {
        let world = World::new();
        let mut peer = world.logged_in(ME);
        let logged_in = &mut peer.connection;
        let seen = Arc::default();
        let connection = TargetConnection {
            connection: Connection::new(
                LastLook(world.target.clone(), Arc::clone(&seen)),
                &world.target.limits,
                Instant::from_nanos(1),
            ),
            phase: mem::replace(&mut logged_in.phase, Phase::Finished),
            target: world.target.clone(),
            seat: logged_in.seat.take(),
            endpoints: logged_in.endpoints,
            reason: None,
            departure: None,
        };
        drop(connection);
        assert_eq!(seen.load(core::sync::atomic::Ordering::SeqCst), 1);
        assert!(world.target.registry.sessions().is_empty());
    }
}
