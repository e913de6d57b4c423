//! The one driver of connections over RDMA devices, and the async ways to get their queue pairs. For tokio.
//!
//! # One wake
//!
//! Whatever woke the future (the device, a timer, a store, an application), a pass does the same things in the same
//! order: [`handle_wake`](iscsi_proto::connection::Connection::handle_wake),
//! [`handle_timeout`](iscsi_proto::connection::Connection::handle_timeout) if it is due,
//! [`handle_completions`](QueueConnection::handle_completions). A pass that found completions is followed by another,
//! since their answers are often already on the way.
//!
//! # Waiting
//!
//! A device tells of one completion, once, after it was asked to. So the order is: find nothing, ask, look again, and
//! only then sleep; on waking, take all wake-ups back, look again. Nothing that completes in between is missed.
//!
//! Soft RDMA needs the same processors as we do. An idle connection therefore looks a while by itself
//! ([`VerbsConfig::spin`]), giving way to other tasks and threads each time, and then sleeps. It does so only as long
//! as it pays: looking in vain halves the time, being woken soon after falling asleep doubles it again.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant as StdInstant};

use iscsi_driver::Clock;
use iscsi_proto::connection::QueueConnection;
use iscsi_proto::time::Instant;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Sleep, sleep, timeout};

use super::config::VerbsConfig;
use super::error::VerbsError;
use super::events::VerbsEvents;
use super::listener::{Connecting, Verbs, VerbsListener};
use super::queue::VerbsQueue;
use crate::queue::EndCause;

/// Tokio's timer does not tell apart what is closer together.
const TIMER_GRAIN: Duration = Duration::from_millis(1);

/// How often a connection that is ending is looked at, whatever its device says.
const ENDING: Duration = Duration::from_millis(5);

/// Passes in a row before other tasks of the thread get their turn.
const PASSES: usize = 8;

/// The same in time.
const TURN: Duration = Duration::from_millis(1);

/// Runs `connection` over its queue pair until it [`is_finished`](iscsi_proto::connection::Connection::is_finished).
///
/// `events` come from the queue pair ([`VerbsQueue::events`]) before it goes into the connection. The future belongs to
/// whoever awaits it; it needs a tokio runtime with I/O and time enabled.
///
/// # Errors
/// When the process has no descriptor left to wait with. The connection is to be dropped then.
pub async fn drive_queue<C>(connection: &mut C, events: &VerbsEvents, spin: Duration, clock: Clock) -> io::Result<()>
where
    C: QueueConnection + ?Sized,
{
    let mut sources = Vec::new();
    for descriptor in events.descriptors()?.into_iter().flatten() {
        sources.push(readable(descriptor)?);
    }
    let mut timer = pin!(sleep(Duration::ZERO));
    let mut pass =
        Pass { events, sources, clock, armed: None, not_before: Instant::ZERO, spinning: Spinning::new(spin) };
    poll_fn(|cx| pass.poll(cx, connection, timer.as_mut())).await;
    Ok(())
}

#[allow(unsafe_code, reason = "a type may lie about its descriptor; this one does not")]
fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open, and the same, until it is dropped; here the registration owns it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// How long it pays to look for completions before sleeping.
#[derive(Debug)]
struct Spinning {
    longest: Duration,
    now: Duration,
    /// Since when nothing has happened.
    idle_since: Option<StdInstant>,
    /// When the connection fell asleep.
    asleep_since: Option<StdInstant>,
}

impl Spinning {
    /// Below this, spinning is over at once.
    const SHORTEST: Duration = Duration::from_micros(10);

    fn new(longest: Duration) -> Self {
        Self { longest, now: longest, idle_since: None, asleep_since: None }
    }

    /// Something happened.
    fn busy(&mut self) {
        self.idle_since = None;
        if let Some(asleep) = self.asleep_since.take()
            && asleep.elapsed() < self.longest
        {
            self.now = (self.now * 2).clamp(Self::SHORTEST, self.longest).min(self.longest);
        }
    }

    /// Nothing happened: whether to look again at once.
    fn goes_on(&mut self) -> bool {
        if self.asleep_since.is_some() || self.now < Self::SHORTEST {
            return false;
        }
        let since = *self.idle_since.get_or_insert_with(StdInstant::now);
        if since.elapsed() < self.now {
            return true;
        }
        self.now /= 2;
        false
    }

    fn sleeps(&mut self) {
        self.asleep_since.get_or_insert_with(StdInstant::now);
    }
}

struct Pass<'a> {
    events: &'a VerbsEvents,
    sources: Vec<AsyncFd<OwnedFd>>,
    clock: Clock,
    /// When the timer fires: never later than the connection's timeout.
    armed: Option<Instant>,
    /// The timer is not armed before this: a timeout that stays in the past does not spin.
    not_before: Instant,
    spinning: Spinning,
}

impl Pass<'_> {
    fn poll<C>(&mut self, cx: &mut Context<'_>, connection: &mut C, mut timer: Pin<&mut Sleep>) -> Poll<()>
    where
        C: QueueConnection + ?Sized,
    {
        let begun = self.clock.now();
        for _ in 0..PASSES {
            let now = self.clock.now();
            if now.saturating_since(begun) >= TURN {
                break;
            }
            connection.handle_wake(cx, now);
            if connection.poll_timeout().is_some_and(|due| due <= now) {
                connection.handle_timeout(now);
                self.not_before = now + TIMER_GRAIN;
            }
            if connection.is_finished() {
                return Poll::Ready(());
            }
            if connection.handle_completions(now) {
                self.spinning.busy();
                if self.gives_way(connection) {
                    break;
                }
                continue;
            }
            if connection.is_finished() {
                return Poll::Ready(());
            }
            if self.gives_way(connection) {
                break;
            }
            if self.spinning.goes_on() {
                std::thread::yield_now();
                break;
            }
            self.events.arm();
            if connection.handle_completions(now) {
                self.spinning.busy();
                if self.gives_way(connection) {
                    break;
                }
                continue;
            }
            if connection.is_finished() {
                return Poll::Ready(());
            }
            if self.poll_sources(cx) {
                self.events.take();
                continue;
            }
            let mut due = connection.poll_timeout();
            if self.events.is_ending() {
                due = Some(due.map_or(now + ENDING, |due| due.min(now + ENDING)));
            }
            if self.poll_timer(cx, due, timer.as_mut()).is_ready() {
                continue;
            }
            self.spinning.sleeps();
            return Poll::Pending;
        }
        // Tokio puts a yielding task behind the others and looks at its sockets and timers before it comes back.
        if pin!(tokio::task::yield_now()).poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Whether the other tasks of the thread are to have their turn before the next pass.
    fn gives_way<C: QueueConnection + ?Sized>(&self, connection: &C) -> bool {
        self.events.gives_way() | connection.has_more_work()
    }

    /// Whether a descriptor has become readable. Where none has, the task is woken when one does.
    fn poll_sources(&self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        for source in &self.sources {
            // An error is a descriptor that has gone: the queue pair tells why.
            if let Poll::Ready(Ok(mut guard)) = source.poll_read_ready(cx) {
                guard.clear_ready();
                any = true;
            }
        }
        any
    }

    /// Ready when `due` has come. A timeout that only moves away leaves the timer where it is: most of them move with
    /// each PDU.
    fn poll_timer(&mut self, cx: &mut Context<'_>, due: Option<Instant>, mut timer: Pin<&mut Sleep>) -> Poll<()> {
        let Some(due) = due else { return Poll::Pending };
        let due = due.max(self.not_before);
        loop {
            if self.armed.is_none_or(|armed| due < armed) {
                timer.as_mut().reset(self.clock.std_instant(due).into());
                self.armed = Some(due);
            }
            ready!(timer.as_mut().poll(cx));
            self.armed = None;
            if due <= self.clock.now() {
                return Poll::Ready(());
            }
        }
    }
}

/// A [`VerbsListener`] that waits.
#[derive(Debug)]
pub struct VerbsAcceptor {
    listener: VerbsListener,
    ready: AsyncFd<OwnedFd>,
}

impl VerbsAcceptor {
    /// Listens; see [`VerbsListener::bind`].
    ///
    /// # Errors
    /// As there, and when the process has no descriptor left.
    pub fn bind(verbs: Arc<Verbs>, address: SocketAddr) -> Result<Self, VerbsError> {
        Self::new(VerbsListener::bind(verbs, address)?)
    }

    /// Waits at a listener.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(listener: VerbsListener) -> Result<Self, VerbsError> {
        let ready = listener.descriptor().try_clone_to_owned().and_then(readable);
        let ready = ready.map_err(|error| VerbsError::Refused("waiting for RDMA connections", error))?;
        Ok(Self { listener, ready })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.listener.local_address()
    }

    /// The next peer that wants to connect, not answered yet. Dropping the future loses no peer.
    ///
    /// # Errors
    /// As [`VerbsListener::poll_request`]: after any error but [`VerbsError::NoRdma`] the next call goes on.
    pub async fn accept(&self) -> Result<VerbsQueue, VerbsError> {
        loop {
            let waiting = self.ready.readable().await;
            let mut guard = waiting.map_err(|error| VerbsError::Refused("waiting for RDMA connections", error))?;
            match self.listener.poll_request()? {
                Some(queue) => return Ok(queue),
                None => guard.clear_ready(),
            }
        }
    }
}

impl Verbs {
    /// Finds the device and the way to an address, within a time. The peer is asked when receives are posted and the
    /// doorbell rings, or by [`VerbsQueue::established`].
    ///
    /// # Errors
    /// [`VerbsError::NoDevice`] when no RDMA device leads there, [`VerbsError::TimedOut`].
    pub async fn connect(self: &Arc<Self>, address: SocketAddr, within: Duration) -> Result<VerbsQueue, VerbsError> {
        let milliseconds = i32::try_from(within.as_millis()).unwrap_or(i32::MAX).max(1);
        let mut connecting = Connecting::start(self.clone(), address, milliseconds)?;
        let ready = match connecting.descriptor() {
            Some(descriptor) => descriptor.try_clone_to_owned().and_then(readable),
            None => return Err(VerbsError::TimedOut(address)),
        };
        let ready = ready.map_err(|error| VerbsError::Refused("waiting for an RDMA connection", error))?;
        let resolving = async {
            loop {
                let waiting = ready.readable().await;
                let mut guard =
                    waiting.map_err(|error| VerbsError::Refused("waiting for an RDMA connection", error))?;
                match connecting.poll()? {
                    Some(queue) => return Ok(queue),
                    None => guard.clear_ready(),
                }
            }
        };
        timeout(within, resolving).await.unwrap_or(Err(VerbsError::TimedOut(address)))
    }

    /// How long a connection looks for completions by itself: what [`drive_queue`] is told.
    #[must_use]
    pub fn spin(&self) -> Duration {
        let VerbsConfig { spin, .. } = self.config();
        *spin
    }
}

impl VerbsQueue {
    /// Asks or answers the peer, and waits until the connection stands. Its completions,
    /// [`Established`](crate::queue::Completion::Established) first, are left for
    /// [`poll`](crate::queue::QueuePair::poll). Receives that the peer's first message may need are posted before.
    ///
    /// # Errors
    /// [`VerbsError::Rejected`], [`VerbsError::TimedOut`], [`VerbsError::Ended`]. The queue pair is to be dropped then.
    pub async fn established(&mut self, within: Duration) -> Result<(), VerbsError> {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = self.peer_address().unwrap_or(nowhere);
        let events = self.events();
        let mut sources = Vec::new();
        let refused = |error| VerbsError::Refused("waiting for an RDMA connection", error);
        for descriptor in events.descriptors().map_err(refused)?.into_iter().flatten() {
            sources.push(readable(descriptor).map_err(refused)?);
        }
        let standing = poll_fn(|cx| {
            loop {
                while self.progress() && !self.is_decided() {}
                events.arm();
                self.progress();
                if self.is_decided() {
                    return Poll::Ready(());
                }
                let mut any = false;
                for source in &sources {
                    if let Poll::Ready(Ok(mut guard)) = source.poll_read_ready(cx) {
                        guard.clear_ready();
                        any = true;
                    }
                }
                if !any {
                    return Poll::Pending;
                }
                events.take();
            }
        });
        if timeout(within, standing).await.is_err() {
            return Err(VerbsError::TimedOut(address));
        }
        match self.end_cause() {
            None => Ok(()),
            Some(EndCause::Rejected) => Err(VerbsError::Rejected(address)),
            Some(cause) => Err(VerbsError::Ended(address, cause)),
        }
    }
}
