//! What happens in a session, for those who want to know: a bounded queue for each listener.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::task::AtomicWaker;
use iscsi_driver::Clock;
use iscsi_proto::time::Instant;
use scsi_proto::{AdditionalSense, Lun};

use super::transport::Carrier;
use crate::application::Event;
use crate::error::Error;
use crate::identity::Difference;
use crate::url::Portal;

/// Events that wait for one listener at most.
const MOST_WAITING: usize = 128;

/// Something that happened in a session: [`Session::events`](crate::Session::events) tells it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SessionEvent {
    /// A connection is logged in.
    LoggedIn {
        /// The portal at its other end.
        portal: SocketAddr,
        /// `tcp` or `iser`.
        transport: &'static str,
        /// How often the session had logged in before: 0 for its first connection.
        before: u64,
    },
    /// The connection is lost. What is under way waits for the next one.
    Lost {
        /// Why.
        reason: Error,
        /// How long from then on until the first attempt to connect again.
        next_in: Duration,
        /// How long attempts go on from then on, before the session ends with [`Error::Lost`].
        tried_for: Duration,
    },
    /// An attempt to connect again came to nothing.
    AttemptFailed {
        /// Why.
        reason: Error,
        /// How long from then on until the next attempt.
        next_in: Duration,
        /// How long attempts go on from then on, before the session ends with [`Error::Lost`].
        tried_for: Duration,
    },
    /// A logical unit reported a unit attention condition (SAM-5 5.14). It has been dealt with.
    UnitAttention {
        /// The logical unit.
        lun: Lun,
        /// What it is about: ASC and ASCQ, and their words.
        code: AdditionalSense,
    },
    /// The target has other LUNs than before: told besides the unit attention 3Fh/0Eh that says so.
    LunsChanged,
    /// An open disk is larger than it was; [`Disk::size`](crate::Disk::size) follows.
    Resized {
        /// The logical unit.
        lun: Lun,
        /// Blocks that it has.
        blocks: u64,
        /// Bytes of a block.
        block_size: u32,
    },
    /// A LUN shows another disk than the one that was opened: the operations of its handles end with
    /// [`Error::OtherDisk`].
    OtherDisk {
        /// The logical unit.
        lun: Lun,
        /// How it shows.
        difference: Difference,
    },
    /// A disk lost writes that it had acknowledged: the operations of its handles end with [`Error::LostWrites`] until
    /// [`Disk::take_lost_writes`](crate::Disk::take_lost_writes). Where it may have lost them (see
    /// [`Disk`](crate::Disk#what-a-handle-believes)) only flushes do.
    LostWrites {
        /// The logical unit.
        lun: Lun,
    },
    /// The target sent the login elsewhere (RFC 7143 11.13.5, status class 1).
    Redirected {
        /// Where to.
        to: Portal,
        /// Whether it moved for good (status 0102h).
        permanent: bool,
    },
    /// The target asked for a logout (RFC 7143 11.9.1, event 1). The session logs out and connects again.
    LogoutAsked {
        /// How long the target waits for it.
        within: Duration,
    },
    /// An answer of the target breaks the rules in a way that can be lived with.
    OddAnswer {
        /// What was asked.
        command: String,
        /// What is wrong with the answer, and what that costs.
        reason: String,
    },
    /// This listener was slow: so many events that came here are not told. They are the oldest of those that waited.
    Missed(u64),
    /// The session is over, for this reason; [`Error::LoggedOut`] after a logout. The last event.
    Ended(Error),
}

impl SessionEvent {
    /// The event as it is to be told some time after it happened.
    fn later(self, by: Duration) -> Self {
        match self {
            Self::Lost { reason, next_in, tried_for } => {
                Self::Lost { reason, next_in: next_in.saturating_sub(by), tried_for: tried_for.saturating_sub(by) }
            }
            Self::AttemptFailed { reason, next_in, tried_for } => Self::AttemptFailed {
                reason,
                next_in: next_in.saturating_sub(by),
                tried_for: tried_for.saturating_sub(by),
            },
            other => other,
        }
    }

    /// Whether it tells how the session stands.
    const fn is_standing(&self) -> bool {
        matches!(self, Self::LoggedIn { .. } | Self::Lost { .. } | Self::AttemptFailed { .. } | Self::Ended(_))
    }
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<SessionEvent>,
    missed: u64,
    over: bool,
}

/// What waits for one listener.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    waker: AtomicWaker,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: SessionEvent) {
        let mut waiting = self.lock();
        if waiting.events.len() == MOST_WAITING {
            waiting.events.pop_front();
            waiting.missed += 1;
        }
        waiting.over |= matches!(event, SessionEvent::Ended(_));
        waiting.events.push_back(event);
        drop(waiting);
        self.waker.wake();
    }
}

/// The events of a session, from the moment of the call of [`Session::events`](crate::Session::events) on. It does not
/// keep the session alive.
///
/// At most 128 events wait for a listener. One that is slower loses the oldest of them, and hears of it by
/// [`SessionEvent::Missed`]; neither the session nor other listeners wait for it.
///
/// ```no_run
/// # async fn example(session: initiator_core::Session) {
/// use initiator_core::SessionEvent;
/// let mut events = session.events();
/// while let Some(event) = events.next().await {
///     match event {
///         SessionEvent::Lost { reason, tried_for, .. } => {
///             eprintln!("{reason}; trying again for {} s", tried_for.as_secs());
///         }
///         SessionEvent::UnitAttention { lun, code } => eprintln!("LUN {lun}: {code}"),
///         other => eprintln!("{other:?}"),
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Events {
    queue: Arc<Queue>,
}

impl Events {
    /// The next event; `None` after [`SessionEvent::Ended`].
    pub async fn next(&mut self) -> Option<SessionEvent> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// An event that waits.
    pub(super) fn at_hand(&self) -> Option<SessionEvent> {
        match self.poll_event(&Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(event) => event,
            Poll::Pending => None,
        }
    }

    fn poll_event(&self, cx: &Context<'_>) -> Poll<Option<SessionEvent>> {
        self.queue.waker.register(cx.waker());
        let mut waiting = self.queue.lock();
        match std::mem::take(&mut waiting.missed) {
            0 => match waiting.events.pop_front() {
                Some(event) => Poll::Ready(Some(event)),
                None if waiting.over => Poll::Ready(None),
                None => Poll::Pending,
            },
            missed => Poll::Ready(Some(SessionEvent::Missed(missed))),
        }
    }
}

impl Stream for Events {
    type Item = SessionEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SessionEvent>> {
        self.poll_event(cx)
    }
}

#[derive(Debug, Default)]
struct Audience {
    listeners: Vec<Arc<Queue>>,
    /// How the session stands, and since when.
    standing: Option<(Instant, SessionEvent)>,
}

/// All who listen to a session.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    audience: Mutex<Audience>,
}

impl Listeners {
    fn lock(&self) -> MutexGuard<'_, Audience> {
        let mut audience = self.audience.lock().unwrap_or_else(PoisonError::into_inner);
        audience.listeners.retain(|queue| Arc::strong_count(queue) > 1);
        audience
    }

    /// One more, who hears first how the session stands.
    pub(super) fn add(&self) -> Events {
        let queue = Arc::new(Queue::default());
        let mut audience = self.lock();
        if let Some((since, event)) = &audience.standing {
            queue.push(event.clone().later(Clock::process().now() - *since));
        }
        audience.listeners.push(queue.clone());
        Events { queue }
    }

    /// Tells everybody. Nothing follows the end.
    pub(super) fn tell(&self, event: SessionEvent) {
        let mut audience = self.lock();
        if matches!(audience.standing, Some((_, SessionEvent::Ended(_)))) {
            return;
        }
        for queue in &audience.listeners {
            queue.push(event.clone());
        }
        if event.is_standing() {
            audience.standing = Some((Clock::process().now(), event));
        }
    }
}

/// Puts what the engine and the runner tell into a listener's words.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    carrier: Option<(SocketAddr, &'static str)>,
    logins: u64,
    /// Blocks that were told last, by LUN: several handles may have looked at different times.
    sizes: Vec<(Lun, u64)>,
}

impl Reporter {
    /// What carries the next connection.
    pub(super) fn carried_by(&mut self, carrier: &Carrier) {
        self.carrier = Some((carrier.peer, carrier.transport));
    }

    /// Gives `each` what is to be told.
    pub(super) fn report(&mut self, event: &Event<'_>, mut each: impl FnMut(SessionEvent)) {
        let event = match *event {
            Event::LoggedIn(_) => {
                let Some((portal, transport)) = self.carrier else { return };
                let before = self.logins;
                self.logins += 1;
                SessionEvent::LoggedIn { portal, transport, before }
            }
            // The runner tells of it when it knows what comes next.
            Event::Disconnected(_) => return,
            Event::Lost { reason, next_in, tried_for } => {
                SessionEvent::Lost { reason: reason.clone(), next_in, tried_for }
            }
            Event::AttemptFailed { reason, next_in, tried_for } => {
                SessionEvent::AttemptFailed { reason: reason.clone(), next_in, tried_for }
            }
            Event::UnitAttention(lun, code) => {
                each(SessionEvent::UnitAttention { lun, code });
                if code != AdditionalSense::REPORTED_LUNS_DATA_HAS_CHANGED {
                    return;
                }
                SessionEvent::LunsChanged
            }
            Event::Resized { lun, blocks, block_size, .. } => {
                match self.sizes.iter_mut().find(|(other, _)| *other == lun) {
                    Some((_, told)) if *told == blocks => return,
                    Some((_, told)) => *told = blocks,
                    None => self.sizes.push((lun, blocks)),
                }
                SessionEvent::Resized { lun, blocks, block_size }
            }
            Event::OtherDisk { lun, difference, .. } => SessionEvent::OtherDisk { lun, difference: difference.clone() },
            Event::LostWrites { lun, .. } => SessionEvent::LostWrites { lun },
            Event::Redirected { to, permanent } => SessionEvent::Redirected { to: to.clone(), permanent },
            Event::LogoutAsked { within } => SessionEvent::LogoutAsked { within },
            Event::OddAnswer { command, reason } => {
                SessionEvent::OddAnswer { command: command.to_owned(), reason: reason.to_owned() }
            }
        };
        each(event);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn next(events: &Events) -> Option<SessionEvent> {
        match events.poll_event(&Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => event,
            Poll::Pending => panic!("nothing waits"),
        }
    }

    fn attention(n: u8) -> SessionEvent {
        SessionEvent::UnitAttention { lun: Lun::ZERO, code: AdditionalSense::new(0x80, n) }
    }

    #[test]
    fn a_slow_listener_loses_the_oldest_and_nobody_waits_for_it() {
        let listeners = Listeners::default();
        let (slow, quick) = (listeners.add(), listeners.add());
        for n in 0..200 {
            listeners.tell(attention(n));
            assert!(matches!(next(&quick), Some(SessionEvent::UnitAttention { code, .. }) if code.ascq == n));
        }
        assert!(matches!(next(&slow), Some(SessionEvent::Missed(72))));
        for n in 72..200 {
            assert!(matches!(next(&slow), Some(SessionEvent::UnitAttention { code, .. }) if code.ascq == n), "{n}");
        }
        listeners.tell(SessionEvent::Ended(Error::LoggedOut));
        listeners.tell(attention(0));
        assert!(matches!(next(&slow), Some(SessionEvent::Ended(_))));
        assert!(next(&slow).is_none(), "nothing follows the end");
    }

    #[test]
    fn who_comes_late_hears_how_the_session_stands() {
        let listeners = Listeners::default();
        let second = Duration::from_secs(1);
        listeners.tell(SessionEvent::Lost { reason: Error::LoggedOut, next_in: second, tried_for: second * 9 });
        listeners.tell(attention(1));
        let late = listeners.add();
        assert!(matches!(next(&late), Some(SessionEvent::Lost { tried_for, .. }) if tried_for <= second * 9));
        listeners.tell(SessionEvent::Ended(Error::LoggedOut));
        let last = listeners.add();
        assert!(matches!(next(&last), Some(SessionEvent::Ended(_))));
        assert!(next(&last).is_none());
    }

    #[test]
    fn a_listener_that_went_away_leaves_nothing() {
        let listeners = Listeners::default();
        for _ in 0..3 {
            drop(listeners.add());
        }
        let kept = listeners.add();
        assert_eq!(listeners.lock().listeners.len(), 1);
        drop(kept);
        assert!(listeners.lock().listeners.is_empty());
    }

    #[test]
    fn a_size_is_told_once_however_many_handles_there_are() {
        let mut reporter = Reporter::default();
        let mut told = Vec::new();
        for (guard, blocks) in [(0, 10), (1, 10), (0, 20)] {
            let event = Event::Resized { guard, lun: Lun::ZERO, blocks, block_size: 512 };
            reporter.report(&event, |event| told.push(event));
        }
        assert!(
            matches!(told[..], [SessionEvent::Resized { blocks: 10, .. }, SessionEvent::Resized { blocks: 20, .. }]),
            "{told:?}"
        );
    }
}
