//! The one byte-stream driver: runs a sans-IO iSCSI connection of either role over a tokio socket.
//!
//! Target and initiator hand their [`StreamConnection`] to [`drive`]. It stands between `iscsi-proto`, which knows no
//! socket, and tokio: one future, one loop, no task and no channel per PDU, no allocation per wake.
//!
//! # One wake
//!
//! Whatever woke the future (bytes, room to send, a timer, a store, an application), one pass does the same things in
//! the same order: [`handle_wake`](iscsi_proto::connection::Connection::handle_wake),
//! [`handle_timeout`](iscsi_proto::connection::Connection::handle_timeout) if it is due, then reads of what has come,
//! up to 512 KiB of it before each send, and sends of everything that waits, until the socket gives no more or
//! [`Limits::bytes_per_wake`] or [`Limits::time_per_wake`] is used up. Commands that came together are read together
//! and answered together: parking between passes is what lets them gather, so a short read ends the pass instead of
//! asking the kernel again for what has not come yet.
//!
//! # Sharing a thread
//!
//! A pass that uses up its budget yields to the runtime, which polls other sockets before it comes back. A connection
//! that waits holds no readiness that it does not use, so nothing spins: with a full socket it waits for room, with an
//! empty [`receive_window`](StreamConnection::receive_window) it does not ask for bytes.
//!
//! # The end of a connection
//!
//! | what happens | what the driver does |
//! |---|---|
//! | the peer closes in order | `handle_stream_end(EndOfStream)`, then sends what is left until `is_finished` |
//! | the socket breaks | what had already come is handed over, `handle_stream_end(Broken)`, nothing is sent any more;
//! after `is_finished` the error is returned |
//! | `is_given_up` | resets the stream: the system sends nothing of it any more |
//! | `is_finished` | closes the sending side, reads until the peer has closed too (at most [`Limits::linger`]), so that
//! a reset cannot overtake the last PDU |
//!
//! A connection may thus hear of two ends: `EndOfStream`, and then `Broken` when what it still had to say cannot be
//! sent.
#![forbid(unsafe_code)]

mod clock;
mod pass;
mod socket;

#[cfg(test)]
mod drive_tests;
#[cfg(test)]
mod held_tests;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use iscsi_proto::connection::StreamConnection;
use tokio::io::ReadBuf;
use tokio::time::{sleep, timeout};

pub use clock::Clock;
pub use socket::StreamSocket;

use pass::Pass;

/// What one connection may use before others get their turn, and how long it may take to close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes received and sent in one pass before the driver yields to other tasks of the thread. Default 1 MiB; at
    /// least one read and one send happen.
    pub bytes_per_wake: usize,
    /// How long a pass may last before it yields, which is looked at after each read and each send. Small requests
    /// take long for their bytes. Default 1 ms; at least one read and one send happen.
    pub time_per_wake: Duration,
    /// How long a finished connection waits for the peer to close its side too. Default 1 second.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_per_wake: 1 << 20, time_per_wake: Duration::from_millis(1), linger: Duration::from_secs(1) }
    }
}

/// Runs `connection` over `socket` until it [`is_finished`](iscsi_proto::connection::Connection::is_finished), with the
/// default [`Limits`].
///
/// The future belongs to whoever awaits it: dropping it closes the socket at once. It needs a tokio runtime with I/O
/// and time enabled.
///
/// # Errors
/// The socket's error if the stream broke before the connection was finished. The connection has been told by then; the
/// error is for the log.
///
/// ```
/// # use std::task::Context;
/// # use iscsi_memory::{ReceiveSlice, ReceiveWindow, SendList};
/// # use iscsi_proto::connection::{Connection, StreamConnection, StreamEnd};
/// # use iscsi_proto::time::Instant;
/// use iscsi_driver::{Clock, drive};
/// # struct Done;
/// # impl StreamConnection for Done {
/// #     fn receive_window(&mut self) -> ReceiveWindow<'_> {
/// #         ReceiveWindow { payload: ReceiveSlice::Private(&mut []), staging: &mut [] }
/// #     }
/// #     fn handle_received(&mut self, _: usize, _: Instant) {}
/// #     fn handle_stream_end(&mut self, _: StreamEnd, _: Instant) {}
/// #     fn fill_send_list<'a>(&'a mut self, _: &mut SendList<'a>) {}
/// #     fn take_sent(&mut self, _: usize) {}
/// #     fn go_on(&mut self, _: Instant) {}
/// # }
/// # impl Connection for Done {
/// #     fn poll_timeout(&self) -> Option<Instant> { None }
/// #     fn handle_timeout(&mut self, _: Instant) {}
/// #     fn handle_wake(&mut self, _: &mut Context<'_>, _: Instant) {}
/// #     fn is_finished(&self) -> bool { true }
/// # }
/// # fn login() -> Done { Done }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// let peer = tokio::net::TcpStream::connect(listener.local_addr()?).await?;
/// let (socket, _) = listener.accept().await?;
/// # drop(peer);
/// let mut connection = login();
/// drive(socket, &mut connection, Clock::process()).await?;
/// # Ok(())
/// # }
/// ```
pub async fn drive<S, C>(socket: S, connection: &mut C, clock: Clock) -> io::Result<()>
where
    S: StreamSocket,
    C: StreamConnection + ?Sized,
{
    drive_with(socket, connection, clock, Limits::default()).await
}

/// [`drive`] with limits of one's own.
///
/// # Errors
/// As [`drive`].
pub async fn drive_with<S, C>(mut socket: S, connection: &mut C, clock: Clock, limits: Limits) -> io::Result<()>
where
    S: StreamSocket,
    C: StreamConnection + ?Sized,
{
    // A socket that refuses its options is about to fail its first read, which tells the connection.
    let _ = socket.set_up();
    let peer_closed = {
        let mut timer = pin!(sleep(Duration::ZERO));
        let mut pass = Pass::new(clock, limits);
        poll_fn(|cx| pass.poll(cx, &socket, connection, timer.as_mut())).await?
    };
    if connection.is_given_up() {
        socket.reset_when_closed();
        return Ok(());
    }
    // From here on, neither a peer that keeps silent nor one that resets takes anything from us: all has been sent.
    let _ = poll_fn(|cx| Pin::new(&mut socket).poll_shutdown(cx)).await;
    if !peer_closed {
        let _ = timeout(limits.linger, read_to_end(&mut socket)).await;
    }
    Ok(())
}

/// Reads and drops bytes until the peer has closed its side.
async fn read_to_end<S: StreamSocket>(socket: &mut S) -> io::Result<()> {
    poll_fn(|cx| {
        loop {
            let mut dropped = [0; 4096];
            let mut dropped = ReadBuf::new(&mut dropped);
            match Pin::new(&mut *socket).poll_read(cx, &mut dropped) {
                Poll::Ready(Ok(())) if !dropped.filled().is_empty() => {}
                end => return end,
            }
        }
    })
    .await
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
