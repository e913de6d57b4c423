//! Why RDMA cannot be used, or not with that peer.

use std::io;
use std::net::SocketAddr;

use iscsi_memory::RegisterFailure;

use super::library::LibraryError;

/// What can go wrong before a queue pair is there. Later errors are an [`EndCause`](crate::queue::EndCause).
#[derive(Debug, thiserror::Error)]
pub enum VerbsError {
    /// The libraries are absent.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The kernel has no connection manager for RDMA.
    #[error("this machine has no RDMA device, or the modules rdma_ucm and ib_uverbs are not loaded ({why})",
        why = spoken(.0))]
    NoRdma(io::Error),
    /// There may be RDMA devices, but none at that address, or on the way to it.
    #[error("no RDMA device for the address {0}: `rdma link` shows the devices and their interfaces")]
    NoDevice(SocketAddr),
    /// The address is taken.
    #[error("another program listens for RDMA connections at {0}")]
    InUse(SocketAddr),
    /// There is no way to the peer.
    #[error("{0} cannot be reached by RDMA: {1}")]
    Unreachable(SocketAddr, io::Error),
    /// The peer serves nothing there.
    #[error("{0} refused the RDMA connection: it serves no iSER there")]
    Rejected(SocketAddr),
    /// The peer did not answer in time.
    #[error("{0} did not answer by RDMA in time")]
    TimedOut(SocketAddr),
    /// The connection ended before it stood.
    #[error("the RDMA connection to {0} ended before it stood: {1}")]
    Ended(SocketAddr, crate::queue::EndCause),
    /// The buffers of a connection cannot be registered.
    #[error("memory for an RDMA connection: {0}")]
    Register(RegisterFailure),
    /// The device or the kernel refused something.
    #[error("{0}: {1}")]
    Refused(&'static str, io::Error),
}

/// What the system says, without its number.
fn spoken(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

impl VerbsError {
    /// The last error of the C library, with what was tried.
    pub(super) fn last(what: &'static str) -> Self {
        Self::Refused(what, io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_in_words() {
        let text = VerbsError::NoRdma(io::Error::from_raw_os_error(libc::ENODEV)).to_string();
        assert!(text.ends_with("are not loaded (No such device)"), "{text}");
    }
}
