//! What a driver runs: a connection of either role, over a byte stream ([`StreamConnection`]) or over a queue pair
//! ([`QueueConnection`]).
//!
//! There is one driver for sockets (crate `iscsi-driver`) and one for RDMA devices (crate `iser-transport`); the
//! simulator and the fuzzers drive the same traits by hand.

use core::task::Context;

use iscsi_memory::{ReceiveWindow, SendList};

use crate::datamover::Datamover;
use crate::time::Instant;

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// The peer closed it in order.
    EndOfStream,
    /// It broke: reset, timeout, error of the transport.
    Broken,
}

/// What all sans-IO connections have, a target's or an initiator's, mover and session together: time, wake-ups, and an
/// end.
pub trait Connection {
    /// When [`handle_timeout`](Self::handle_timeout) is due, if ever.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Time has passed.
    fn handle_timeout(&mut self, now: Instant);

    /// Something outside the transport may have happened: a store completed, an application submitted, another session
    /// sent an event. The waker of `cx` is kept to be woken for the next such event. Called once before anything else,
    /// and after each wake.
    fn handle_wake(&mut self, cx: &mut Context<'_>, now: Instant);

    /// There is work left that needs nothing from outside: [`handle_wake`](Self::handle_wake) is to be called again
    /// once the other tasks of the thread have had their turn and its sockets and timers have been looked at. A
    /// connection that answers true has not woken itself.
    fn has_more_work(&self) -> bool {
        false
    }

    /// Nothing is left to send or to wait for: the transport is to be closed.
    fn is_finished(&self) -> bool;

    /// It is finished because its peer does not answer, and others will do what was asked of that: nothing that the
    /// transport still holds is to reach the peer, so that a stream is to be reset, not closed in order.
    fn is_given_up(&self) -> bool {
        false
    }
}

/// A connection over a byte stream.
///
/// The driver's loop: [`handle_wake`](Connection::handle_wake); receive into [`receive_window`](Self::receive_window)
/// and tell [`handle_received`](Self::handle_received); send from [`fill_send_list`](Self::fill_send_list) and tell
/// [`handle_sent`](Self::handle_sent); [`handle_timeout`](Connection::handle_timeout) when
/// [`poll_timeout`](Connection::poll_timeout) has passed; close the stream when
/// [`is_finished`](Connection::is_finished).
pub trait StreamConnection: Connection {
    /// Where the next bytes go. An empty window means: drain the output first.
    fn receive_window(&mut self) -> ReceiveWindow<'_>;

    /// The window's first `n` bytes are filled.
    fn handle_received(&mut self, n: usize, now: Instant);

    /// The stream ended.
    fn handle_stream_end(&mut self, end: StreamEnd, now: Instant);

    /// Adds what is to be sent, in order; an empty list when there is nothing.
    fn fill_send_list<'a>(&'a mut self, list: &mut SendList<'a>);

    /// The first `n` bytes of the last list were sent. What it lends may still be [held](SendList::hold) for it: the
    /// connection takes note, writes to no store, and leaves all else to [`go_on`](Self::go_on), which follows once
    /// that is let go.
    fn take_sent(&mut self, n: usize);

    /// The peer's transport has acknowledged data since this was called last, more of them than a PDU without data has.
    /// Told before [`handle_timeout`](Connection::handle_timeout), where the socket knows: between two times at which
    /// it takes more there may be megabytes.
    fn peer_acknowledged(&mut self, now: Instant) {
        let _ = now;
    }

    /// Goes on with what bytes that were sent make possible.
    fn go_on(&mut self, now: Instant);

    /// [`take_sent`](Self::take_sent) and [`go_on`](Self::go_on) in one, where nothing is held.
    fn handle_sent(&mut self, n: usize, now: Instant) {
        self.take_sent(n);
        self.go_on(now);
    }
}

/// A connection over a queue pair, which tells of completions.
///
/// The driver's loop: [`handle_wake`](Connection::handle_wake); [`handle_completions`](Self::handle_completions)
/// whenever the queue pair may have some, its end among them; [`handle_timeout`](Connection::handle_timeout) when
/// [`poll_timeout`](Connection::poll_timeout) has passed; let go of the connection when
/// [`is_finished`](Connection::is_finished). What a call has posted is started before the call returns.
pub trait QueueConnection: Connection {
    /// Something may have completed, or the queue pair may have ended. Returns whether anything did.
    fn handle_completions(&mut self, now: Instant) -> bool;
}

/// A [`Datamover`] that runs over a byte stream: what lets a session implement [`StreamConnection`] over any such
/// mover.
///
/// After [`handle_received`](Self::handle_received) and [`handle_stream_end`](Self::handle_stream_end) the owner drains
/// [`Datamover::poll_notify`] until it gives nothing.
pub trait StreamMover: Datamover {
    /// Where the next bytes of the stream go. Empty while too much is [being sent](Self::is_sending), and once the
    /// connection is ending.
    ///
    /// It ends the validity of [`Datamover::control_ahs`] and [`Datamover::control_data`].
    fn receive_window(&mut self) -> ReceiveWindow<'_>;

    /// The first `n` bytes of the last window are filled.
    ///
    /// # Panics
    /// If `n` is above the window's length.
    fn handle_received(&mut self, n: usize);

    /// The stream ended. What came whole before is still notified, then
    /// [`Notification::Terminated`](crate::datamover::Notification::Terminated).
    fn handle_stream_end(&mut self, end: StreamEnd);

    /// Adds what is to be sent, in order, as far as the list has room: what was asked for before the last
    /// [`Datamover::ring`].
    fn fill_send_list<'a>(&'a self, list: &mut SendList<'a>);

    /// Whether [`fill_send_list`](Self::fill_send_list) has anything to add. Not so while all that waits to be sent,
    /// waits for something to be received: who receives nothing until less waits must not do it then.
    fn is_sending(&self) -> bool;

    /// The first `n` bytes of what [`fill_send_list`](Self::fill_send_list) gave were sent.
    ///
    /// # Panics
    /// If `n` is above [`Datamover::backlog`].
    fn handle_sent(&mut self, n: usize);
}

/// A [`Datamover`] over a queue pair that tells of completions: what lets a session run over a transport that is no
/// byte stream.
///
/// After [`handle_completions`](Self::handle_completions) the owner drains [`Datamover::poll_notify`] until it gives
/// nothing, then calls [`Datamover::ring`].
pub trait QueueMover: Datamover {
    /// Takes what has completed since the last call. Returns whether anything had.
    fn handle_completions(&mut self) -> bool;
}
