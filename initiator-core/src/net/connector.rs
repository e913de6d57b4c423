//! What a session takes from outside: connections and random bytes.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use iscsi_driver::StreamSocket;
use tokio::net::TcpStream;

use crate::entropy;
use crate::error::Error;

/// A byte stream to a portal.
#[derive(Debug)]
pub struct Connected<S> {
    /// The stream.
    pub stream: S,
    /// The address of this side.
    pub local: SocketAddr,
    /// The address of the portal.
    pub peer: SocketAddr,
}

/// Brings a session ([`Session::connect_by`](crate::Session::connect_by)) its connections: through a tunnel, a proxy,
/// or memory, as a test may want it.
///
/// ```
/// use std::io;
/// use std::net::SocketAddr;
/// use initiator_core::{Connected, Connector};
/// use tokio::net::TcpStream;
///
/// #[derive(Debug)]
/// struct FromPort(u16);
///
/// impl Connector for FromPort {
///     type Stream = TcpStream;
///
///     async fn connect(&self, address: SocketAddr) -> io::Result<Connected<TcpStream>> {
///         let socket = tokio::net::TcpSocket::new_v4()?;
///         socket.bind(([0, 0, 0, 0], self.0).into())?;
///         let stream = socket.connect(address).await?;
///         Ok(Connected { local: stream.local_addr()?, peer: stream.peer_addr()?, stream })
///     }
/// }
/// ```
pub trait Connector: fmt::Debug + Send + Sync + 'static {
    /// Its byte streams.
    type Stream: StreamSocket + Send + Sync;

    /// A connection to an address of a portal. The caller limits the time that this takes, by dropping the future.
    fn connect(&self, address: SocketAddr) -> impl Future<Output = io::Result<Connected<Self::Stream>>> + Send;

    /// Fills `bytes` with random ones; a session fails where there are none. By default the system's cryptographic
    /// generator; whoever can guess what comes instead passes mutual CHAP without the secret.
    ///
    /// # Errors
    /// There are none to be had.
    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        entropy::fill(bytes).map_err(io::Error::other)
    }
}

/// TCP of the system.
#[derive(Debug, Clone, Copy)]
pub(super) struct System;

impl Connector for System {
    type Stream = TcpStream;

    async fn connect(&self, address: SocketAddr) -> io::Result<Connected<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        Ok(Connected { local: stream.local_addr()?, peer: stream.peer_addr()?, stream })
    }
}

/// So many random bytes.
pub(super) fn random<const N: usize>(connector: &impl Connector) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    connector.random(&mut bytes).map_err(|error| Error::NoRandomness(Arc::new(error)))?;
    Ok(bytes)
}
