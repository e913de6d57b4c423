//! One pass over a connection per wake, and what is remembered between passes.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use iscsi_memory::SendList;
use iscsi_proto::connection::{StreamConnection, StreamEnd};
use iscsi_proto::time::Instant;
use tokio::time::Sleep;

use crate::{Clock, Limits, StreamSocket};

/// Tokio's timer does not tell apart what is closer together.
const TIMER_GRAIN: Duration = Duration::from_millis(1);

/// The most bytes of a PDU without data: the acknowledgement of a NOP-Out says no more than that the machine is there.
const MOST_OF_A_PDU: u64 = 128;

/// Bytes that are read before what answers them is sent: each send may wake the peer, which then works on a few answers
/// at a time.
const GATHERED: usize = 512 << 10;

/// Result of one read.
enum Received {
    /// So many bytes came.
    Bytes(usize),
    /// Nothing has come; the task is woken when something does.
    Nothing,
    /// The connection takes nothing before it has sent something.
    NoRoom,
    /// The receiving side is closed.
    Closed,
}

/// The state of a driven connection between passes.
pub(crate) struct Pass {
    clock: Clock,
    limits: Limits,
    /// The peer has closed its sending side.
    peer_closed: bool,
    /// Why the stream broke, once the connection has been told.
    broken: Option<io::Error>,
    /// When the timer fires: never later than the connection's timeout.
    armed: Option<Instant>,
    /// Bytes that the socket took, and those of them that the peer was known to have acknowledged.
    sent: u64,
    acknowledged: u64,
    /// The timer is not armed before this: a timeout that stays in the past does not spin.
    not_before: Instant,
}

impl Pass {
    pub(crate) fn new(clock: Clock, limits: Limits) -> Self {
        Self {
            clock,
            limits,
            peer_closed: false,
            broken: None,
            armed: None,
            sent: 0,
            acknowledged: 0,
            not_before: Instant::ZERO,
        }
    }

    /// Runs one pass. Ready when the connection is finished: whether the peer has closed its side.
    pub(crate) fn poll<S, C>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &S,
        connection: &mut C,
        timer: Pin<&mut Sleep>,
    ) -> Poll<io::Result<bool>>
    where
        S: StreamSocket,
        C: StreamConnection + ?Sized,
    {
        let now = self.clock.now();
        connection.handle_wake(cx, now);
        if connection.poll_timeout().is_some_and(|due| due <= now) {
            self.tell_acknowledged(socket, connection, now);
            connection.handle_timeout(now);
            self.not_before = now + TIMER_GRAIN;
        }
        let exhausted = self.transfer(cx, socket, connection);
        if connection.is_finished() {
            return Poll::Ready(match self.broken.take() {
                Some(error) => Err(error),
                None => Ok(self.peer_closed),
            });
        }
        // The timer is polled in any case: it is what wakes the task when nothing else does.
        let due = self.poll_timer(cx, connection.poll_timeout(), timer).is_ready();
        if exhausted || due || connection.has_more_work() {
            // Tokio puts a yielding task behind the others and looks at its sockets and timers before it comes back.
            if pin!(tokio::task::yield_now()).poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    /// Tells the connection whether the peer has acknowledged data since the last look.
    fn tell_acknowledged<S, C>(&mut self, socket: &S, connection: &mut C, now: Instant)
    where
        S: StreamSocket,
        C: StreamConnection + ?Sized,
    {
        let Some(waits) = socket.unacknowledged() else { return };
        let acknowledged = self.sent.saturating_sub(waits as u64);
        if acknowledged - self.acknowledged.min(acknowledged) > MOST_OF_A_PDU {
            connection.peer_acknowledged(now);
        }
        self.acknowledged = acknowledged;
    }

    /// Reads and sends until the socket gives no more. Returns true when the budget ended it instead.
    fn transfer<S, C>(&mut self, cx: &mut Context<'_>, socket: &S, connection: &mut C) -> bool
    where
        S: StreamSocket,
        C: StreamConnection + ?Sized,
    {
        let mut budget = self.limits.bytes_per_wake;
        let mut until = None;
        while self.broken.is_none() && !connection.is_finished() {
            // A pass may be long: with one time for all of it, what is asked and answered within it would seem to take
            // none.
            let mut now = self.clock.now();
            if until.is_some_and(|until| now >= until) {
                return true;
            }
            let until = *until.get_or_insert(now + self.limits.time_per_wake);
            let (gathered, received) = match self.gather(cx, socket, connection, &mut now, (budget, until)) {
                Ok(received) => received,
                Err(error) => {
                    self.break_off(error, connection, now);
                    break;
                }
            };
            let mut unsent = budget;
            if let Err(error) = send(cx, socket, connection, now, (&mut unsent, &mut self.sent)) {
                self.receive_rest(cx, socket, connection, now);
                self.break_off(error, connection, now);
                break;
            }
            let sent = budget - unsent;
            budget = unsent.saturating_sub(gathered);
            match received {
                Received::Bytes(_) => {}
                Received::NoRoom if sent > 0 => {}
                // What is left to send has found a full socket or an empty budget.
                _ => return budget == 0,
            }
            if budget == 0 {
                return true;
            }
        }
        false
    }

    /// Reads what has come, up to about [`GATHERED`] bytes or the budget, or until it is time to yield, so that what
    /// answers it goes out together: how many bytes came, and the result of the last read.
    fn gather<S, C>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &S,
        connection: &mut C,
        now: &mut Instant,
        (budget, until): (usize, Instant),
    ) -> io::Result<(usize, Received)>
    where
        S: StreamSocket,
        C: StreamConnection + ?Sized,
    {
        let most = budget.min(GATHERED);
        let mut gathered = 0;
        loop {
            let received = self.receive(cx, socket, connection, *now)?;
            let Received::Bytes(n) = received else { return Ok((gathered, received)) };
            gathered += n;
            if gathered >= most || connection.is_finished() {
                return Ok((gathered, received));
            }
            *now = self.clock.now();
            if *now >= until {
                return Ok((gathered, received));
            }
        }
    }

    /// Reads once.
    fn receive<S, C>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &S,
        connection: &mut C,
        now: Instant,
    ) -> io::Result<Received>
    where
        S: StreamSocket,
        C: StreamConnection + ?Sized,
    {
        if self.peer_closed {
            return Ok(Received::Closed);
        }
        loop {
            let mut window = connection.receive_window();
            if window.is_empty() {
                return Ok(Received::NoRoom);
            }
            if socket.poll_read_ready(cx)?.is_pending() {
                return Ok(Received::Nothing);
            }
            match socket.receive(&mut window) {
                Ok(0) => {
                    self.peer_closed = true;
                    connection.handle_stream_end(StreamEnd::EndOfStream, now);
                    return Ok(Received::Closed);
                }
                Ok(n) => {
                    connection.handle_received(n, now);
                    return Ok(Received::Bytes(n));
                }
                Err(error) if !is_transient(&error) => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Hands over what came before the sending side broke: a peer that closes may have said why.
    fn receive_rest<S, C>(&mut self, cx: &mut Context<'_>, socket: &S, connection: &mut C, now: Instant)
    where
        S: StreamSocket,
        C: StreamConnection + ?Sized,
    {
        let mut budget = self.limits.bytes_per_wake;
        while budget > 0
            && let Ok(Received::Bytes(n)) = self.receive(cx, socket, connection, now)
        {
            budget = budget.saturating_sub(n);
        }
    }

    fn break_off<C: StreamConnection + ?Sized>(&mut self, error: io::Error, connection: &mut C, now: Instant) {
        self.broken = Some(error);
        connection.handle_stream_end(StreamEnd::Broken, now);
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

/// Sends until nothing is left, the socket is full, or `budget` bytes are used up. `total` counts what was sent.
fn send<S, C>(
    cx: &mut Context<'_>,
    socket: &S,
    connection: &mut C,
    now: Instant,
    (budget, total): (&mut usize, &mut u64),
) -> io::Result<()>
where
    S: StreamSocket,
    C: StreamConnection + ?Sized,
{
    while *budget > 0 {
        let mut list = SendList::default();
        connection.fill_send_list(&mut list);
        if list.is_empty() {
            return Ok(());
        }
        let held = list.hold();
        let waiting = list.len();
        let result = socket.send(&list);
        if let Ok(sent) = result {
            connection.take_sent(sent);
        }
        // Before the connection goes on: it may write to a store what it sends now.
        drop(held);
        match result {
            Ok(sent) => {
                connection.go_on(now);
                *budget = budget.saturating_sub(sent);
                *total += sent as u64;
                if sent == waiting {
                    continue;
                }
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
        // A part of it has filled the socket, as with a short read.
        if *budget > 0 && socket.poll_write_ready(cx)?.is_pending() {
            return Ok(());
        }
    }
    Ok(())
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
