//! What the driver asks of a socket.

use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll};

use iscsi_memory::socket;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};

/// A connected stream socket whose readiness tokio watches: TCP, and Unix sockets for tests and for peers on the same
/// machine.
///
/// The methods are tokio's own of the same names. Data travel through the file descriptor, in vectored calls over
/// private and lent memory.
pub trait StreamSocket: AsFd + AsyncRead + AsyncWrite + Unpin {
    /// Waits for bytes, or for the end of the stream.
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Waits for room to send.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Runs `io` if the socket may be ready; [`io::ErrorKind::WouldBlock`] from it takes the readiness back.
    ///
    /// # Errors
    /// The error of `io`, or `WouldBlock` when the socket is not ready.
    fn try_io(&self, interest: Interest, io: impl FnMut() -> io::Result<()>) -> io::Result<()>;

    /// Bytes that were sent and that the peer's transport has not acknowledged, where the system tells.
    fn unacknowledged(&self) -> Option<usize> {
        None
    }

    /// What the system still holds is not sent when the socket is closed, where the system can be told so.
    fn reset_when_closed(&self) {}

    /// Sets the socket's options for request and response traffic, once, before the first byte.
    ///
    /// # Errors
    /// What the system says.
    fn set_up(&self) -> io::Result<()> {
        Ok(())
    }
}

impl StreamSocket for TcpStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_read_ready(self, cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }

    fn try_io(&self, interest: Interest, io: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        Self::try_io(self, interest, io)
    }

    fn unacknowledged(&self) -> Option<usize> {
        socket::unacknowledged(self).ok()
    }

    fn reset_when_closed(&self) {
        // A socket that does not take the option is dead already.
        let _ = self.set_zero_linger();
    }

    /// The driver gathers what belongs together by itself, so Nagle's algorithm would only delay it.
    fn set_up(&self) -> io::Result<()> {
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

    fn try_io(&self, interest: Interest, io: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        Self::try_io(self, interest, io)
    }
}
