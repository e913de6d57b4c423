//! What the driver asks of a socket.

use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll};

use iscsi_memory::{ReceiveWindow, SendList, socket};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};

/// A connected byte stream with readiness: TCP, Unix sockets, and whatever else somebody brings, a stream in memory for
/// instance.
///
/// Reads and writes are vectored, over private and lent memory, and never wait. `AsyncRead` and `AsyncWrite` are used
/// at the end of the connection only.
pub trait StreamSocket: AsyncRead + AsyncWrite + Unpin {
    /// Waits for bytes, or for the end of the stream.
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Waits for room to send.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Fills the window with what has come, once, and tells how many bytes that were; 0 is the end of the stream. After
    /// a short read [`poll_read_ready`](Self::poll_read_ready) waits for what has not come yet.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing has come; what broke the stream.
    fn receive(&self, window: &mut ReceiveWindow<'_>) -> io::Result<usize>;

    /// Sends the list's pieces in order, once, and tells how many bytes were taken. When those are not all,
    /// [`poll_write_ready`](Self::poll_write_ready) waits for room.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is no room; what broke the stream.
    fn send(&self, list: &SendList<'_>) -> io::Result<usize>;

    /// Bytes that were sent and that the peer's transport has not acknowledged, where the system tells.
    fn unacknowledged(&self) -> Option<usize> {
        None
    }

    /// What the system still holds is not sent when the socket is closed, where the system can be told so.
    fn reset_when_closed(&self) {}

    /// The bytes that one segment of the transport holds, where it has segments.
    fn segment_size(&self) -> Option<u32> {
        None
    }

    /// Sets the socket's options for request and response traffic, once, before the first byte.
    ///
    /// # Errors
    /// What the system says.
    fn set_up(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Receives by `receive`, which fills a window and tells how many bytes came and whether it was asked for more, on a
/// socket whose readiness tokio keeps.
///
/// A short read has emptied the socket: taking the readiness back here saves the read that would only say so.
fn receive(
    try_io: impl FnOnce(&mut dyn FnMut() -> io::Result<()>) -> io::Result<()>,
    mut receive: impl FnMut() -> io::Result<(usize, bool)>,
) -> io::Result<usize> {
    let mut received = None;
    let result = try_io(&mut || {
        let (n, short) = receive()?;
        received = Some(n);
        if n > 0 && short { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match (received, result) {
        (Some(n), _) => Ok(n),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Fills the window once: how many bytes came, and whether there was room for more.
fn fill(socket: impl AsFd, window: &mut ReceiveWindow<'_>) -> io::Result<(usize, bool)> {
    let n = socket::receive(socket, window)?;
    Ok((n, n < window.len()))
}

/// Sends by `send` on a socket whose readiness tokio keeps: what is not taken has filled the socket.
fn send(
    waiting: usize,
    try_io: impl FnOnce(&mut dyn FnMut() -> io::Result<()>) -> io::Result<()>,
    mut send: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    let mut sent = 0;
    let result = try_io(&mut || {
        sent = send()?;
        if sent < waiting { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    if sent > 0 { Ok(sent) } else { result.map(|()| sent) }
}

impl StreamSocket for TcpStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_read_ready(self, cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }

    fn receive(&self, window: &mut ReceiveWindow<'_>) -> io::Result<usize> {
        receive(|io| self.try_io(Interest::READABLE, io), || fill(self, window))
    }

    fn send(&self, list: &SendList<'_>) -> io::Result<usize> {
        send(list.len(), |io| self.try_io(Interest::WRITABLE, io), || socket::send(self, list))
    }

    fn unacknowledged(&self) -> Option<usize> {
        socket::unacknowledged(self).ok()
    }

    fn reset_when_closed(&self) {
        // A socket that does not take the option is dead already.
        let _ = self.set_zero_linger();
    }

    fn segment_size(&self) -> Option<u32> {
        socket::segment_size(self).ok()
    }

    /// The driver gathers what belongs together by itself, so Nagle's algorithm would only delay it. What a peer marks as
    /// urgent is a part of the stream.
    fn set_up(&self) -> io::Result<()> {
        socket::keep_urgent_in_line(self)?;
        self.set_nodelay(true)
    }
}

impl StreamSocket for UnixStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_read_ready(self, cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }

    fn receive(&self, window: &mut ReceiveWindow<'_>) -> io::Result<usize> {
        receive(|io| self.try_io(Interest::READABLE, io), || fill(self, window))
    }

    fn send(&self, list: &SendList<'_>) -> io::Result<usize> {
        send(list.len(), |io| self.try_io(Interest::WRITABLE, io), || socket::send(self, list))
    }
}

impl<S: StreamSocket + ?Sized> StreamSocket for Box<S> {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        (**self).poll_read_ready(cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        (**self).poll_write_ready(cx)
    }

    fn receive(&self, window: &mut ReceiveWindow<'_>) -> io::Result<usize> {
        (**self).receive(window)
    }

    fn send(&self, list: &SendList<'_>) -> io::Result<usize> {
        (**self).send(list)
    }

    fn unacknowledged(&self) -> Option<usize> {
        (**self).unacknowledged()
    }

    fn reset_when_closed(&self) {
        (**self).reset_when_closed();
    }

    fn segment_size(&self) -> Option<u32> {
        (**self).segment_size()
    }

    fn set_up(&self) -> io::Result<()> {
        (**self).set_up()
    }
}
