//! iSER at the server's portals: how it is offered, and telling an iWARP connection from a plain one.

use std::future::poll_fn;
#[cfg(all(feature = "verbs", target_os = "linux"))]
use std::net::{SocketAddr, TcpListener};
#[cfg(all(feature = "verbs", target_os = "linux"))]
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

#[cfg(all(feature = "verbs", target_os = "linux"))]
use iscsi_memory::RegistrationBudget;
use iscsi_proto::tcp::Role;
use iser_transport::header::PrivateData;
use iser_transport::iwarp::{IwarpConfig, IwarpQueue, begins_mpa};
use iser_transport::mover::{IserMover, IserMoverConfig};
use iser_transport::queue::QueueLimits;
#[cfg(all(feature = "verbs", target_os = "linux"))]
use iser_transport::verbs::{Verbs, VerbsConfig, VerbsError, VerbsListener};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::timeout;

#[cfg(all(feature = "verbs", target_os = "linux"))]
use super::ServerError;
use crate::registry::Seat;
use crate::session::Limits;

/// How portals that offer iSER ([`Portal::with_iser`](crate::node::Portal::with_iser)) do so.
///
/// What login declares (TargetRecvDataSegmentLength and the like) is in
/// [`Limits::offer`](crate::session::Limits::offer).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IserConfig {
    /// iWARP in user space, on the very port of plain iSCSI. Default true.
    pub iwarp: bool,
    /// The RDMA devices of the machine, at the same address and port in the port space of RDMA. Default false.
    ///
    /// iWARP devices have no port space of their own: where the kernel lets only one have the port, the sockets keep it
    /// if [`iwarp`](Self::iwarp) is true, since user space then serves the same peers; else the device gets it, and the
    /// portal takes no plain iSCSI. A second portal can.
    pub verbs: bool,
    /// iWARP in user space: whether to ask for the CRC of MPA (RFC 5044 4.4). TCP has a checksum of its own. Default
    /// false; an initiator that wants it gets it.
    pub crc: bool,
    /// RDMA Reads in flight at a time on one connection, 1 to 255; default 32. The initiator may allow fewer.
    pub read_depth: u16,
    /// Idle memory that one connection keeps for messages in bytes; default 4 MiB.
    pub send_memory: usize,
    /// Verbs: bytes of memory that may be registered with RDMA devices at a time; default 1 GiB. Stores that lend their
    /// memory are registered as it is used. `ulimit -l` bounds it too.
    pub registered_memory: u64,
}

impl Default for IserConfig {
    fn default() -> Self {
        let mover = IserMoverConfig::new(Role::Target);
        Self {
            iwarp: true,
            verbs: false,
            crc: false,
            read_depth: mover.read_depth,
            send_memory: mover.send_memory,
            registered_memory: 1 << 30,
        }
    }
}

impl IserConfig {
    /// The mover's sizes under the target's limits.
    pub(super) fn mover(&self, limits: &Limits) -> IserMoverConfig {
        let segment = limits.offer.target_recv_data_segment_length;
        let mut mover = IserMoverConfig {
            max_tasks: limits.command_window.saturating_add(limits.immediate_commands),
            send_memory: self.send_memory,
            read_depth: self.read_depth.clamp(1, 255),
            ..IserMoverConfig::new(Role::Target)
        };
        // A receive for each request that may come: the command window bounds them.
        mover.receive_memory = mover.receives() * (segment.max(8192) as usize + 2048);
        mover
    }

    /// RDMA devices for connections under the target's limits.
    ///
    /// # Errors
    /// There are none, or their libraries are not installed.
    #[cfg(all(feature = "verbs", target_os = "linux"))]
    pub(super) fn open_verbs(&self, limits: &Limits) -> Result<Arc<Verbs>, VerbsError> {
        let mover = self.mover(limits);
        Verbs::open(VerbsConfig {
            work: mover.work(),
            receives: mover.receives(),
            read_depth: mover.read_depth as u8,
            budget: RegistrationBudget::new(self.registered_memory),
            // What a target says here is of its own Sends: ib_iser ends a connection on which it was not told to expect
            // invalidation.
            private: PrivateData { zero_based: false, send_with_invalidate: true }.emit().to_vec(),
            ..VerbsConfig::default()
        })
    }

    /// A mover over iWARP in user space on a connection that begins as one.
    pub(super) fn over_iwarp(&self, stream: &TcpStream, limits: &Limits, seed: u64) -> IserMover<IwarpQueue> {
        let mover = self.mover(limits);
        let defaults = IwarpConfig::default();
        let queue = IwarpQueue::accept(IwarpConfig {
            private_data: PrivateData { zero_based: false, send_with_invalidate: true }.emit().to_vec(),
            crc: self.crc,
            ord: mover.read_depth,
            emss: iscsi_memory::socket::segment_size(stream).unwrap_or(defaults.emss),
            limits: QueueLimits { work: mover.work(), receives: mover.receives(), ..defaults.limits },
            // A target advertises nothing.
            advertisements: 0,
            seed,
            ..defaults
        });
        IserMover::new(queue, mover)
    }
}

/// Listens for RDMA connections at an address where TCP is listened on already. Gives what of both can be: see
/// [`IserConfig::verbs`].
#[cfg(all(feature = "verbs", target_os = "linux"))]
pub(super) fn listen_by_verbs(
    devices: &Arc<Verbs>,
    address: SocketAddr,
    tcp: Option<TcpListener>,
    iwarp: bool,
) -> Result<(Option<TcpListener>, Option<VerbsListener>), ServerError> {
    let listen = || VerbsListener::bind(Arc::clone(devices), address);
    let refused = |error: VerbsError| ServerError::Rdma { address, reason: error.to_string() };
    match listen() {
        Ok(listener) => return Ok((tcp, Some(listener))),
        Err(VerbsError::InUse(_)) => drop(tcp),
        Err(error) => return Err(refused(error)),
    }
    // Still in use without our own socket: another program has it.
    let alone = listen().map_err(refused)?;
    if !iwarp {
        return Ok((None, Some(alone)));
    }
    drop(alone);
    let again = TcpListener::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    Ok((Some(again.map_err(|error| ServerError::listen(address, error))?), None))
}

/// Whether a connection begins as one of iWARP, which its first byte tells: no iSCSI login begins with the one of
/// MPA's. Nothing is taken from the stream.
///
/// A connection that stays silent for the time of a login, ends, or is told to end, is none: what becomes of it is the
/// session's business.
pub(super) async fn is_iwarp(stream: &TcpStream, seat: &Seat, patience: Duration) -> bool {
    let first = poll_fn(|cx| {
        seat.mailbox.set_waker(cx.waker());
        if seat.mailbox.has_event() {
            return Poll::Ready(false);
        }
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        stream.poll_peek(cx, &mut byte).map(|peeked| match peeked {
            Ok(1..) => begins_mpa(byte.filled()) != Some(false),
            Ok(0) | Err(_) => false,
        })
    });
    timeout(patience, first).await.unwrap_or(false)
}
