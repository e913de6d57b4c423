//! Vectored socket I/O over private and lent memory.
//!
//! The kernel reads and writes lent memory through its own pointers, so no Rust reference to it is ever formed.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use crate::{ReceiveSlice, ReceiveWindow, SendList, SendSlice};

fn iovec(ptr: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: ptr.cast(), iov_len: len }
}

fn checked(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Sends the list's pieces in order and returns how many bytes the kernel took. A closed peer gives an error, never a
/// signal.
///
/// Whoever shares the lent bytes with writers [holds](SendList::hold) them meanwhile.
///
/// # Errors
/// The errno of `sendmsg`, [`io::ErrorKind::WouldBlock`] on a full non-blocking socket.
pub fn send(socket: impl AsFd, list: &SendList<'_>) -> io::Result<usize> {
    let mut vecs = [const { MaybeUninit::<libc::iovec>::uninit() }; SendList::CAPACITY];
    for (slot, slice) in vecs.iter_mut().zip(list.as_slice()) {
        slot.write(match slice {
            SendSlice::Private(bytes) => iovec(bytes.as_ptr().cast_mut(), bytes.len()),
            SendSlice::Lent(slice, start, end) => {
                assert!(start <= end && *end <= slice.len(), "send outside a lent slice");
                iovec(slice.as_ptr(*start), end - start)
            }
        });
    }
    // SAFETY: zero is a valid msghdr: no name, no control data.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = vecs.as_mut_ptr().cast();
    message.msg_iovlen = list.as_slice().len() as _;
    // SAFETY: the first `msg_iovlen` entries are initialised above and point to memory that `list` borrows until the
    // call returns.
    checked(unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &message, libc::MSG_NOSIGNAL) })
}

/// Receives into the window, payload place first, and returns how many bytes came; zero is the end of the stream. So it
/// is of a window that [is empty](ReceiveWindow::is_empty), though the stream goes on: nothing is to be received then.
///
/// # Errors
/// The errno of `readv`, [`io::ErrorKind::WouldBlock`] when nothing has come on a non-blocking socket.
pub fn receive(socket: impl AsFd, window: &mut ReceiveWindow<'_>) -> io::Result<usize> {
    let payload = match &mut window.payload {
        ReceiveSlice::Private(bytes) => iovec(bytes.as_mut_ptr(), bytes.len()),
        ReceiveSlice::Lent(slice, start, end) => {
            assert!(start <= end && *end <= slice.len(), "receive outside a lent slice");
            iovec(slice.as_ptr(*start), *end - *start)
        }
    };
    let staging = iovec(window.staging.as_mut_ptr(), window.staging.len());
    let vecs = [payload, staging];
    let from = usize::from(vecs[0].iov_len == 0);
    // SAFETY: both entries point to memory that `window` holds exclusively (private) or keeps alive (lent) until the
    // call returns.
    checked(unsafe { libc::readv(socket.as_fd().as_raw_fd(), vecs[from..].as_ptr(), (2 - from) as _) })
}

/// TCP's maximum segment size on a connected socket, in bytes: what one segment holds of the stream now (`TCP_MAXSEG`).
///
/// # Errors
/// The errno of `getsockopt`; the socket is none of TCP, for instance.
pub fn segment_size(socket: impl AsFd) -> io::Result<u32> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which `value` has, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MAXSEG,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    checked(result as isize)?;
    u32::try_from(value).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Bytes that were sent and that the peer's TCP has not acknowledged yet (`SIOCOUTQ` of tcp(7)).
///
/// # Errors
/// The errno of `ioctl`.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    // SAFETY: the request writes one int, which `value` is, and which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut value) };
    checked(result as isize)?;
    usize::try_from(value).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_over_loopback_has_large_segments() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let segment = super::segment_size(&stream).unwrap();
        assert!((500..=65_535).contains(&segment), "{segment}");
    }

    #[test]
    fn what_a_peer_has_not_taken_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        assert_eq!(super::unacknowledged(&stream).unwrap(), 0);
        stream.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(n) = stream.write(&[0; 65536]) {
            sent += n;
        }
        let waits = super::unacknowledged(&stream).unwrap();
        assert!(waits > 0 && waits < sent, "{waits} of {sent}");
        // The peer takes it all, and its TCP says so.
        peer.read_exact(&mut vec![0; sent]).unwrap();
        while super::unacknowledged(&stream).unwrap() > 0 {
            std::thread::yield_now();
        }
    }
}
