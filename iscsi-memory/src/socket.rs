//! Vectored socket I/O over private and lent memory.
//!
//! The kernel reads and writes lent memory through its own pointers, so no Rust reference to it is ever formed.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use crate::{BlocksPlace, ReceiveSlice, ReceiveWindow, SendList, SendSlice};

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
/// Of [`ReceiveSlice::Blocks`] only what was asked for stays in the window: where fewer bytes came, the socket is empty.
///
/// # Errors
/// The errno of `readv`, [`io::ErrorKind::WouldBlock`] when nothing has come on a non-blocking socket.
pub fn receive(socket: impl AsFd, window: &mut ReceiveWindow<'_>) -> io::Result<usize> {
    let payload = match &mut window.payload {
        ReceiveSlice::Blocks(place) => return receive_blocks(&socket, place, window.staging),
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

/// Receives as many whole blocks as have come straight into their place, and what is behind them into staging; all of it
/// into staging where none has come whole, or where none may land now. Nobody is waited for while blocks land: what
/// they are made of has come before.
fn receive_blocks(socket: impl AsFd, place: &mut BlocksPlace<'_>, staging: &mut [u8]) -> io::Result<usize> {
    let whole = place.whole(waiting(&socket)?);
    let received = place.try_fill(whole, |to, wanted| receive_whole(&socket, (to, wanted), staging));
    received.unwrap_or_else(|| receive_at(&socket, (core::ptr::dangling_mut(), 0), staging, 0))
}

/// Fills `wanted` bytes at `to`, which have all come, and staging with what is there of the bytes behind them. Gives how
/// many bytes came.
fn receive_whole(socket: impl AsFd, (to, wanted): (*mut u8, usize), staging: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    // Linux stops short before a byte that the peer has marked as urgent, and goes on behind it.
    while got < wanted {
        // SAFETY: the caller has `wanted` bytes at `to` alone.
        let rest = unsafe { to.add(got) };
        match receive_at(&socket, (rest, wanted - got), staging, libc::MSG_DONTWAIT) {
            // Nobody else reads from the socket, and the system keeps what it has counted.
            Ok(0) => return Err(io::Error::other("the socket had fewer bytes than it had told")),
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    Ok(got)
}

/// Receives `len` bytes at `to`, which the caller has alone, and what is behind them into staging, as far as they are
/// there.
fn receive_at(
    socket: impl AsFd,
    (to, len): (*mut u8, usize),
    staging: &mut [u8],
    flags: libc::c_int,
) -> io::Result<usize> {
    let mut vecs = [iovec(to, len), iovec(staging.as_mut_ptr(), staging.len())];
    let from = usize::from(len == 0);
    // SAFETY: zero is a valid msghdr: no name, no control data.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = vecs[from..].as_mut_ptr();
    message.msg_iovlen = (2 - from) as _;
    // SAFETY: the caller has `len` bytes at `to` alone, and `staging` is borrowed, until the call returns.
    checked(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) })
}

/// Bytes that have come and wait to be received (`SIOCINQ` of tcp(7)).
fn waiting(socket: impl AsFd) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    // SAFETY: the request writes one int, which `value` is, and which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut value) };
    checked(result as isize)?;
    usize::try_from(value).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Has a byte that the peer marks as urgent come in its place in the stream, as TCP's users without urgent data have it
/// (`SO_OOBINLINE` of socket(7), RFC 6093 section 6).
///
/// # Errors
/// The errno of `setsockopt`.
pub fn keep_urgent_in_line(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int, which `on` is, and which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_OOBINLINE,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    checked(result as isize).map(drop)
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
