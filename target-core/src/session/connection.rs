//! One connection of an initiator: the phases it goes through, and the contract with its driver.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::mem;
use core::task::{Context, Waker};

use iscsi_memory::{ReceiveSlice, ReceiveWindow, SendList};
use iscsi_proto::connection::{Connection, QueueConnection, QueueMover, StreamConnection, StreamEnd, StreamMover};
use iscsi_proto::datamover::{Datamover, MoverError, Notification};
use iscsi_proto::pdu::AsyncEvent;
use iscsi_proto::time::Instant;

use super::control::Logout;
use super::full_feature::FullFeature;
use super::login::{LoggedIn, LoginPhase};
use super::{EndReason, Target};
use crate::registry::{Carrier, Departure, Endpoints, Seat, SessionEvent, Ticket, Tickets};
use crate::task::TaskExecutor;

/// A target's end of one connection. See the [module](super) for its phases; [`StreamConnection`] or [`QueueConnection`], as its mover allows, is how
/// it is driven.
///
/// The future or loop that drives it may drop it at any time. Its session leaves the registry when its last operation at a store has ended, and
/// sessions that wait for it go on then; see [`Registry::poll_unfinished`](crate::registry::Registry::poll_unfinished).
pub struct TargetConnection<M> {
    mover: M,
    phase: Phase,
    target: Arc<Target>,
    /// None once the connection is finished.
    seat: Option<Seat>,
    endpoints: Endpoints,
    waker: Waker,
    tickets: Tickets,
    reason: Option<EndReason>,
    /// Behind the mover, so that it is dropped after it.
    departure: Option<Departure>,
}

enum Phase {
    Login(Box<LoginPhase>),
    /// Login is granted; an old session of the same I_T nexus is still to end before the initiator hears of it.
    Reinstating(Box<LoggedIn>, Instant),
    FullFeature(Box<FullFeature>),
    Ending(Ending),
    Finished,
}

struct Ending {
    session: Option<Box<FullFeature>>,
    /// The initiator is to close the connection, until then.
    lingering: Option<Instant>,
    /// What is queued is still to be sent, until then.
    flushing: Option<Instant>,
    /// How long aborted store operations, and the transport with buffers of ours, may take.
    until: Instant,
}

impl<M> TargetConnection<M> {
    /// The connection is over. What it gives back to the registry is kept in `departure`, which goes with the connection, after its mover: until then a
    /// device may write into memory of a store.
    fn depart(&mut self) {
        let (entry, executor) = match mem::replace(&mut self.phase, Phase::Finished) {
            Phase::Ending(Ending { session: Some(session), .. }) | Phase::FullFeature(session) => {
                (Some(session.entry), session.executor)
            }
            Phase::Reinstating(logged_in, _) => (Some(logged_in.entry), None),
            Phase::Login(_) | Phase::Ending(_) => (None, None),
            Phase::Finished => return,
        };
        let (seat, tickets) = (self.seat.take(), mem::take(&mut self.tickets));
        self.departure = Some(Departure::new(self.target.registry.clone(), entry, executor, tickets, seat));
    }
}

impl<M: Datamover> TargetConnection<M> {
    /// A connection that has just been accepted. `None` when the target has as many as it takes, or stops: the transport is then to be closed.
    ///
    /// The mover is a new one in the target's role. `entropy` comes from a cryptographic random number generator and is used for this connection only
    /// (CHAP challenge, first StatSN).
    #[must_use]
    pub fn new(target: Arc<Target>, mover: M, endpoints: Endpoints, entropy: [u8; 64], now: Instant) -> Option<Self> {
        let seat = target.registry.seat()?;
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
            mover,
            phase: Phase::Login(Box::new(login)),
            target,
            seat: Some(seat),
            endpoints,
            waker: Waker::noop().clone(),
            tickets: Tickets::new(),
            reason: None,
            departure: None,
        }
    }

    /// Tells what carries the connection, for listings of sessions; without it they say TCP. It counts before login is done.
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
    fn pump(&mut self, now: Instant) {
        if let Phase::FullFeature(session) = &mut self.phase {
            match session.pump(&mut self.mover, now) {
                Ok(()) => return,
                Err(reason) => self.end(reason, now),
            }
        }
        self.pump_rarely(now);
    }

    #[cold]
    fn pump_rarely(&mut self, now: Instant) {
        loop {
            match &mut self.phase {
                Phase::Login(login) => match login.pump(&mut self.mover) {
                    Ok(None) => return,
                    Ok(Some(logged_in)) => {
                        let until = now + self.target.limits.drain_timeout;
                        self.phase = Phase::Reinstating(Box::new(logged_in), until);
                    }
                    Err(reason) => self.end(reason, now),
                },
                Phase::Reinstating(logged_in, until) => {
                    if !logged_in.may_go_on(&self.target.registry, &self.waker) {
                        if now >= *until {
                            // Time alone lets nobody in: an operation of the old session may still land.
                            logged_in.refuse(&mut self.mover);
                            self.end(EndReason::ReinstatementTimeout, now);
                            continue;
                        }
                        return;
                    }
                    let Phase::Reinstating(logged_in, _) = mem::replace(&mut self.phase, Phase::Finished) else {
                        return;
                    };
                    let start = logged_in.go_on(&mut self.mover, &self.target);
                    let session = FullFeature::new(start, &self.waker, now);
                    session.core.announce(&mut self.mover);
                    self.phase = Phase::FullFeature(Box::new(session));
                }
                Phase::FullFeature(session) => match session.pump(&mut self.mover, now) {
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
    fn end(&mut self, reason: EndReason, now: Instant) {
        let limits = &self.target.limits;
        let polite = matches!(
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
                session.abort_all(&mut self.mover);
                self.tickets.append(&mut session.tickets);
                Some(session)
            }
            Phase::Reinstating(logged_in, _) => {
                self.target.registry.leave(logged_in.entry.id);
                None
            }
            Phase::Ending(mut ending) => {
                if ending.lingering.take().is_some() {
                    self.mover.connection_terminate();
                }
                self.phase = Phase::Ending(ending);
                return;
            }
            Phase::Finished => return,
            Phase::Login(_) => None,
        };
        // RFC 7143 11.14: the target half-closes, and the initiator closes. RFC 7145 5.2.2 knows no half-close: initiators that get a disconnect
        // right behind the Logout Response take it for an error, or lose the response.
        let lingers = matches!(reason, EndReason::LoggedOut) && !self.mover.caps().half_closes;
        let lingering = lingers.then(|| now + limits.logout_linger);
        let closes = lingering.unwrap_or(now);
        let (flushing, until) = (Some(closes + limits.close_timeout), closes + limits.drain_timeout);
        self.phase = Phase::Ending(Ending { session, lingering, flushing, until });
        if lingers {
            // The initiator's turn.
        } else if polite {
            self.mover.connection_terminate();
        } else {
            self.mover.connection_abort();
        }
        self.reason.get_or_insert(reason);
    }

    #[cold]
    fn pump_ending(&mut self, now: Instant) {
        let Phase::Ending(ending) = &mut self.phase else { return };
        loop {
            while let Some(notification) = self.mover.poll_notify() {
                // Nobody is left to hear of anything else.
                if let Notification::Released(buf) = notification
                    && let Some(executor) = ending.session.as_mut().and_then(|session| session.executor.as_mut())
                {
                    executor.give(buf);
                }
            }
            if ending.lingering.is_some_and(|until| now >= until || self.mover.is_closed()) {
                ending.lingering = None;
                self.mover.connection_terminate();
                continue;
            }
            // What the transport itself has to say may come behind the last notification.
            if self.mover.is_closed() && self.mover.backlog() == 0 {
                ending.flushing = None;
            } else if ending.flushing.is_some_and(|until| now >= until) {
                ending.flushing = None;
                self.mover.connection_abort();
                continue;
            }
            break;
        }
        let drained = ending.session.as_mut().is_none_or(|session| {
            if let Some(executor) = &mut session.executor {
                executor.submit();
                while executor.poll().is_some() {}
            }
            if self.mover.is_drained() {
                // Who waits for one unit does not wait for another's store, nor for the rest of the connection's end.
                let left = |ticket: &Ticket| {
                    ticket.units().is_none()
                        || session.executor.as_ref().is_some_and(|left| left.busy_on(ticket.units()) != 0)
                };
                self.tickets.retain(left);
            }
            session.drained(&self.mover)
        });
        // Until the mover is closed, a device may write into buffers of ours.
        if ending.flushing.is_none() && (drained && self.mover.is_closed() || now >= ending.until) {
            self.depart();
            if self.mover.is_closed() {
                self.departure = None;
            }
        }
    }

    #[cold]
    fn event(&mut self, event: SessionEvent, now: Instant) {
        match event {
            SessionEvent::End { cause, ticket } => {
                self.tickets.push(ticket);
                self.end(EndReason::Told(cause), now);
            }
            SessionEvent::Abort { attention, ticket } => {
                if let Phase::FullFeature(session) = &mut self.phase {
                    session.now = now;
                    session.abort_units(&mut self.mover, attention, ticket);
                } else if matches!(self.phase, Phase::Ending(_)) {
                    // What it aborts is aborted already, and may still be under way.
                    self.tickets.push(ticket);
                }
            }
            SessionEvent::Displaced => {
                if matches!(self.phase, Phase::Login(_)) {
                    self.end(EndReason::Displaced, now);
                }
            }
            SessionEvent::Stop { grace } => match &mut self.phase {
                Phase::FullFeature(session) if session.executor.is_some() && !grace.is_zero() => {
                    session.ask_logout(&mut self.mover, grace);
                }
                _ => self.end(EndReason::Stopped, now),
            },
        }
    }
}

impl<M> Drop for TargetConnection<M> {
    fn drop(&mut self) {
        let session = match &mut self.phase {
            Phase::FullFeature(session) | Phase::Ending(Ending { session: Some(session), .. }) => Some(session),
            _ => None,
        };
        if let Some(session) = session {
            self.tickets.append(&mut session.tickets);
            if let Some(executor) = &mut session.executor {
                executor.abort_all();
            }
        }
        self.depart();
    }
}

impl<M: Datamover> Connection for TargetConnection<M> {
    fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Login(login) => Some(login.deadline),
            Phase::Reinstating(_, until) => Some(*until),
            Phase::FullFeature(session) => Some(session.deadline()),
            Phase::Ending(ending) => Some(ending.lingering.or(ending.flushing).unwrap_or(ending.until)),
            Phase::Finished => None,
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Login(login) if now >= login.deadline => self.end(EndReason::LoginTimeout, now),
            Phase::FullFeature(session) => {
                if session.held.deadline().is_some_and(|deadline| now >= deadline) {
                    self.end(EndReason::Gap, now);
                } else if let Logout::Asked(until) = session.logout
                    && now >= until
                {
                    // RFC 7143 11.9.1: tell it if possible, then drop the connection.
                    session.send_async(&mut self.mover, AsyncEvent::SessionDrop, 0, 0);
                    self.end(EndReason::Stopped, now);
                } else if let Err(reason) = session.watch(&mut self.mover, now) {
                    self.end(reason, now);
                }
            }
            _ => {}
        }
        self.pump(now);
        self.mover.ring();
    }

    fn handle_wake(&mut self, cx: &mut Context<'_>, now: Instant) {
        if !self.waker.will_wake(cx.waker()) {
            self.waker.clone_from(cx.waker());
            if let Some(seat) = &self.seat {
                seat.mailbox.set_waker(&self.waker);
            }
            if let Phase::FullFeature(session) = &mut self.phase {
                session.waker.clone_from(&self.waker);
            }
        }
        // A store's wake-up uses the waker up: it is given anew each time.
        if let Phase::FullFeature(session) | Phase::Ending(Ending { session: Some(session), .. }) = &mut self.phase
            && let Some(executor) = &mut session.executor
        {
            executor.set_waker(&self.waker);
        }
        while let Some(event) = self.seat.as_ref().and_then(|seat| seat.mailbox.take()) {
            self.event(event, now);
        }
        self.pump(now);
        self.mover.ring();
    }

    fn has_more_work(&self) -> bool {
        match &self.phase {
            Phase::FullFeature(session) | Phase::Ending(Ending { session: Some(session), .. }) => {
                session.executor.as_ref().is_some_and(TaskExecutor::has_more_work)
            }
            _ => false,
        }
    }

    fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Finished)
    }
}

impl<M: StreamMover> StreamConnection for TargetConnection<M> {
    fn receive_window(&mut self) -> ReceiveWindow<'_> {
        let closed = match &self.phase {
            Phase::FullFeature(session) => session.is_stalled() && self.mover.is_sending(),
            Phase::Login(_) | Phase::Ending(Ending { flushing: Some(_), .. }) => false,
            Phase::Reinstating(..) | Phase::Ending(_) | Phase::Finished => true,
        };
        if closed {
            return ReceiveWindow { payload: ReceiveSlice::Private(&mut []), staging: &mut [] };
        }
        self.mover.receive_window()
    }

    fn handle_received(&mut self, n: usize, now: Instant) {
        self.mover.handle_received(n);
        if let Phase::FullFeature(session) = &mut self.phase {
            session.keepalive.heard(now);
        }
        self.pump(now);
        self.mover.ring();
    }

    fn handle_stream_end(&mut self, end: StreamEnd, now: Instant) {
        self.mover.handle_stream_end(end);
        match &mut self.phase {
            Phase::FullFeature(session) => session.unstall(),
            Phase::Reinstating(..) if end == StreamEnd::Broken => {
                self.end(EndReason::Transport(MoverError::Broken), now);
            }
            _ => {}
        }
        self.pump(now);
        if end == StreamEnd::Broken
            && let Phase::Ending(ending) = &mut self.phase
        {
            // Nothing can be sent any more.
            ending.flushing = None;
            self.mover.connection_abort();
            self.pump_ending(now);
        }
        self.mover.ring();
    }

    fn fill_send_list<'a>(&'a mut self, list: &mut SendList<'a>) {
        match &self.phase {
            Phase::Finished | Phase::Ending(Ending { flushing: None, .. }) => {}
            _ => self.mover.fill_send_list(list),
        }
    }

    fn handle_sent(&mut self, n: usize, now: Instant) {
        self.mover.handle_sent(n);
        match &mut self.phase {
            Phase::FullFeature(session) => {
                session.keepalive.sent(now);
                if session.awaits_sends() {
                    self.pump(now);
                }
            }
            _ => self.pump_rarely(now),
        }
        self.mover.ring();
    }
}

impl<M: QueueMover> QueueConnection for TargetConnection<M> {
    fn handle_completions(&mut self, now: Instant) -> bool {
        let any = self.mover.handle_completions();
        if any {
            // Reliable transports complete what is sent when the peer has it: both directions are alive.
            if let Phase::FullFeature(session) = &mut self.phase {
                session.keepalive.heard(now);
                session.keepalive.sent(now);
            }
            self.pump(now);
            self.mover.ring();
        }
        any
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
            mover: LastLook(world.target.clone(), Arc::clone(&seen)),
            phase: mem::replace(&mut logged_in.phase, Phase::Finished),
            target: world.target.clone(),
            seat: logged_in.seat.take(),
            endpoints: logged_in.endpoints,
            waker: Waker::noop().clone(),
            tickets: Tickets::new(),
            reason: None,
            departure: None,
        };
        drop(connection);
        assert_eq!(seen.load(core::sync::atomic::Ordering::SeqCst), 1);
        assert!(world.target.registry.sessions().is_empty());
    }
}
