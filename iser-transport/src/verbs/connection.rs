//! The connection manager: event channels, identifiers, and what happens to connections.
#![allow(unsafe_code, reason = "calls of librdmacm and reads of its structures")]

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use libc::{AF_INET, AF_INET6, sockaddr_in, sockaddr_in6, sockaddr_storage};

use super::abi::{
    RDMA_CM_EVENT_ADDR_ERROR, RDMA_CM_EVENT_ADDR_RESOLVED, RDMA_CM_EVENT_CONNECT_ERROR, RDMA_CM_EVENT_CONNECT_REQUEST,
    RDMA_CM_EVENT_DEVICE_REMOVAL, RDMA_CM_EVENT_DISCONNECTED, RDMA_CM_EVENT_ESTABLISHED, RDMA_CM_EVENT_REJECTED,
    RDMA_CM_EVENT_ROUTE_ERROR, RDMA_CM_EVENT_ROUTE_RESOLVED, RDMA_CM_EVENT_UNREACHABLE, RDMA_OPTION_ID,
    RDMA_OPTION_ID_REUSEADDR, RDMA_PS_TCP, ibv_context, rdma_cm_event, rdma_cm_id, rdma_conn_param, rdma_event_channel,
};
use super::error::VerbsError;
use super::library::Library;

/// Most bytes of private data that are sent: what fits a request on InfiniBand.
const PRIVATE: usize = 56;

/// What happened to a connection.
#[derive(Debug)]
pub(super) enum Event {
    /// The peer's address has a device.
    AddressResolved,
    /// There is a way to the peer.
    RouteResolved,
    /// Neither, with the error number.
    Unresolved(i32),
    /// A peer wants to connect.
    Request(CmId, Parameters),
    /// The connection stands.
    Established(Parameters),
    /// The peer refused it.
    Rejected,
    /// It could not be made.
    Failed(i32),
    /// It is over.
    Disconnected,
    /// Its device goes.
    DeviceRemoval,
    /// Nothing that matters.
    Other,
}

/// What the peer says with a request or a reply. Depths are seen from this side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    /// First byte of the private data. Some networks pad them, so their length means nothing.
    pub(super) private: Option<u8>,
    /// RDMA Reads of the peer that it may have in flight.
    pub(super) incoming_reads: u8,
    /// RDMA Reads of ours that it takes at a time.
    pub(super) outgoing_reads: u8,
}

/// Where events come from: a file descriptor that never blocks.
#[derive(Debug)]
pub(super) struct EventChannel {
    library: &'static Library,
    raw: NonNull<rdma_event_channel>,
}

// SAFETY: librdmacm's objects may be used from any thread.
unsafe impl Send for EventChannel {}
// SAFETY: as above; taking events from two threads gives each event to one of them.
unsafe impl Sync for EventChannel {}

impl EventChannel {
    pub(super) fn new(library: &'static Library) -> Result<Self, VerbsError> {
        // SAFETY: no precondition.
        let raw = unsafe { (library.cm.rdma_create_event_channel)() };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::NoRdma(io::Error::last_os_error()))?;
        let channel = Self { library, raw };
        set_nonblocking(channel.as_fd())?;
        Ok(channel)
    }

    /// The next event, if one has come. An error means that the channel is of no use any more.
    pub(super) fn poll(&self) -> io::Result<Option<Event>> {
        let mut raw: *mut rdma_cm_event = core::ptr::null_mut();
        // SAFETY: the channel is alive, and the place for the event is ours.
        if unsafe { (self.library.cm.rdma_get_cm_event)(self.raw.as_ptr(), &raw mut raw) } != 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: an event that was got is readable until it is acknowledged, which happens below.
        let event = unsafe { &*raw };
        // SAFETY: of the union, this kind of event has the arm that `parameters` reads.
        let parameters = || unsafe { parameters(&event.conn) };
        let status = event.status.abs();
        let event = match event.event {
            RDMA_CM_EVENT_ADDR_RESOLVED => Event::AddressResolved,
            RDMA_CM_EVENT_ROUTE_RESOLVED => Event::RouteResolved,
            RDMA_CM_EVENT_ADDR_ERROR | RDMA_CM_EVENT_ROUTE_ERROR => Event::Unresolved(status),
            RDMA_CM_EVENT_CONNECT_REQUEST => match NonNull::new(event.id) {
                Some(raw) => Event::Request(CmId { library: self.library, raw }, parameters()),
                None => Event::Other,
            },
            RDMA_CM_EVENT_ESTABLISHED => Event::Established(parameters()),
            RDMA_CM_EVENT_REJECTED => Event::Rejected,
            RDMA_CM_EVENT_CONNECT_ERROR | RDMA_CM_EVENT_UNREACHABLE => Event::Failed(status),
            RDMA_CM_EVENT_DISCONNECTED => Event::Disconnected,
            RDMA_CM_EVENT_DEVICE_REMOVAL => Event::DeviceRemoval,
            _ => Event::Other,
        };
        // SAFETY: got above and not acknowledged yet; what was needed of it has been copied.
        unsafe { (self.library.cm.rdma_ack_cm_event)(raw) };
        Ok(Some(event))
    }
}

/// # Safety
/// The private data, where there are any, are readable.
unsafe fn parameters(conn: &rdma_conn_param) -> Parameters {
    let has_private = !conn.private_data.is_null() && conn.private_data_len > 0;
    // SAFETY: at least one byte, as the caller promises.
    let private = has_private.then(|| unsafe { *conn.private_data.cast::<u8>() });
    Parameters { private, incoming_reads: conn.responder_resources, outgoing_reads: conn.initiator_depth }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel keeps its descriptor open until it is dropped.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).fd) }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: alive until now; identifiers on it were dropped before, and every event was acknowledged.
        unsafe { (self.library.cm.rdma_destroy_event_channel)(self.raw.as_ptr()) }
    }
}

/// Lets reads of a descriptor return at once.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), VerbsError> {
    let flags = rustix::fs::fcntl_getfl(fd).map(|flags| flags | rustix::fs::OFlags::NONBLOCK);
    flags
        .and_then(|flags| rustix::fs::fcntl_setfl(fd, flags))
        .map_err(|error| VerbsError::Refused("setting up an event channel", error.into()))
}

/// An identifier of the connection manager: a listener, or one end of a connection. Dropped before its event channel.
#[derive(Debug)]
pub(super) struct CmId {
    library: &'static Library,
    raw: NonNull<rdma_cm_id>,
}

// SAFETY: librdmacm's objects may be used from any thread.
unsafe impl Send for CmId {}
// SAFETY: as above; shared use is of functions that lock.
unsafe impl Sync for CmId {}

impl CmId {
    pub(super) fn new(library: &'static Library, channel: &EventChannel) -> Result<Self, VerbsError> {
        let mut raw = core::ptr::null_mut();
        // SAFETY: the channel is alive and outlives the identifier, as this type's owners see to.
        let error = unsafe {
            (library.cm.rdma_create_id)(channel.raw.as_ptr(), &raw mut raw, core::ptr::null_mut(), RDMA_PS_TCP)
        };
        let raw =
            NonNull::new(raw).filter(|_| error == 0).ok_or_else(|| VerbsError::last("making an RDMA endpoint"))?;
        Ok(Self { library, raw })
    }

    pub(super) fn raw(&self) -> NonNull<rdma_cm_id> {
        self.raw
    }

    /// The device that it is bound to, if it is.
    pub(super) fn context(&self) -> Option<NonNull<ibv_context>> {
        // SAFETY: the identifier is alive.
        NonNull::new(unsafe { (*self.raw.as_ptr()).verbs })
    }

    pub(super) fn local(&self) -> Option<SocketAddr> {
        // SAFETY: the identifier is alive, and nothing writes its addresses while no call of it is under way.
        unsafe { socket_address(&raw const (*self.raw.as_ptr()).src_addr) }
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        // SAFETY: as above.
        unsafe { socket_address(&raw const (*self.raw.as_ptr()).dst_addr) }
    }

    /// Waits for connections at an address.
    pub(super) fn listen(&self, address: SocketAddr, backlog: u16) -> Result<(), VerbsError> {
        let mut yes: libc::c_int = 1;
        // SAFETY: the option is an int, and is read during the call only.
        unsafe {
            (self.library.cm.rdma_set_option)(
                self.raw.as_ptr(),
                RDMA_OPTION_ID,
                RDMA_OPTION_ID_REUSEADDR,
                (&raw mut yes).cast(),
                size_of::<libc::c_int>(),
            );
        }
        self.bind(address)?;
        // SAFETY: the identifier is alive and bound.
        if unsafe { (self.library.cm.rdma_listen)(self.raw.as_ptr(), backlog.into()) } != 0 {
            return Err(bind_error(address));
        }
        Ok(())
    }

    /// Binds it to an address of ours, and to the device that has it.
    pub(super) fn bind(&self, address: SocketAddr) -> Result<(), VerbsError> {
        let mut storage = storage(address);
        // SAFETY: a socket address of its family's length, read during the call only.
        match unsafe { (self.library.cm.rdma_bind_addr)(self.raw.as_ptr(), (&raw mut storage).cast()) } {
            0 => Ok(()),
            _ => Err(bind_error(address)),
        }
    }

    /// Starts looking for the device that reaches an address.
    pub(super) fn resolve_address(&self, to: SocketAddr, milliseconds: i32) -> io::Result<()> {
        let mut to = storage(to);
        // SAFETY: a socket address of its family's length, read during the call only; no source address is given.
        result(unsafe {
            (self.library.cm.rdma_resolve_addr)(
                self.raw.as_ptr(),
                core::ptr::null_mut(),
                (&raw mut to).cast(),
                milliseconds,
            )
        })
    }

    /// Starts looking for the way to it.
    pub(super) fn resolve_route(&self, milliseconds: i32) -> io::Result<()> {
        // SAFETY: the identifier is alive.
        result(unsafe { (self.library.cm.rdma_resolve_route)(self.raw.as_ptr(), milliseconds) })
    }

    /// Moves its events to another channel, which outlives it.
    pub(super) fn migrate(&self, to: &EventChannel) -> Result<(), VerbsError> {
        // SAFETY: both are alive; events that were got are acknowledged.
        result(unsafe { (self.library.cm.rdma_migrate_id)(self.raw.as_ptr(), to.raw.as_ptr()) })
            .map_err(|error| VerbsError::Refused("taking over an RDMA connection", error))
    }

    /// Asks the peer to connect.
    pub(super) fn connect(&self, private: &[u8], depths: Parameters) -> io::Result<()> {
        let mut param = connection(private, depths);
        // SAFETY: the identifier has a route and a queue pair; parameters and private data are read during the call
        // only.
        result(unsafe { (self.library.cm.rdma_connect)(self.raw.as_ptr(), &raw mut param) })
    }

    /// Accepts a request.
    pub(super) fn accept(&self, private: &[u8], depths: Parameters) -> io::Result<()> {
        let mut param = connection(private, depths);
        // SAFETY: the identifier came with a request and has a queue pair; as above.
        result(unsafe { (self.library.cm.rdma_accept)(self.raw.as_ptr(), &raw mut param) })
    }

    /// Refuses a request.
    pub(super) fn reject(&self) {
        // SAFETY: the identifier came with a request; no private data. An error means that the request is gone.
        unsafe { (self.library.cm.rdma_reject)(self.raw.as_ptr(), core::ptr::null(), 0) };
    }

    /// Ends the connection in order.
    pub(super) fn disconnect(&self) {
        // SAFETY: the identifier is alive. An error means that there is no connection any more.
        unsafe { (self.library.cm.rdma_disconnect)(self.raw.as_ptr()) };
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        // SAFETY: alive until now; its queue pair was destroyed before, and all of its events are acknowledged.
        unsafe { (self.library.cm.rdma_destroy_id)(self.raw.as_ptr()) };
    }
}

/// An identifier with the channel of its own that its events come on.
#[derive(Debug)]
pub(super) struct Link {
    // In this order: the identifier goes before its channel.
    pub(super) id: CmId,
    pub(super) channel: EventChannel,
}

impl Link {
    /// A new identifier.
    pub(super) fn new(library: &'static Library) -> Result<Self, VerbsError> {
        let channel = EventChannel::new(library)?;
        let id = CmId::new(library, &channel)?;
        Ok(Self { id, channel })
    }

    /// An identifier that came with a request, on the listener's channel. Refuses the request if it cannot be taken
    /// over.
    pub(super) fn take(id: CmId) -> Result<Self, VerbsError> {
        let channel = EventChannel::new(id.library).and_then(|channel| id.migrate(&channel).map(|()| channel));
        match channel {
            Ok(channel) => Ok(Self { id, channel }),
            Err(error) => {
                id.reject();
                Err(error)
            }
        }
    }
}

fn result(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind_error(address: SocketAddr) -> VerbsError {
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => VerbsError::InUse(address),
        Some(libc::ENODEV | libc::EADDRNOTAVAIL) => VerbsError::NoDevice(address),
        _ => VerbsError::Refused("listening for RDMA connections", error),
    }
}

fn connection(private: &[u8], depths: Parameters) -> rdma_conn_param {
    let private = &private[..private.len().min(PRIVATE)];
    rdma_conn_param {
        private_data: private.as_ptr().cast(),
        private_data_len: private.len() as u8,
        responder_resources: depths.incoming_reads,
        initiator_depth: depths.outgoing_reads,
        flow_control: 1,
        retry_count: 7,
        // Seven means without end: a peer that is slow to post receives is waited for (InfiniBand and RoCE; iWARP has
        // no such net).
        rnr_retry_count: 7,
        srq: 0,
        qp_num: 0,
    }
}

fn storage(address: SocketAddr) -> sockaddr_storage {
    // SAFETY: all of its fields are integers, for which zero is a value.
    let mut storage: sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
    let place = &raw mut storage;
    match address {
        SocketAddr::V4(v4) => {
            let addr = libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) };
            let value =
                sockaddr_in { sin_family: AF_INET as _, sin_port: v4.port().to_be(), sin_addr: addr, sin_zero: [0; 8] };
            // SAFETY: storage holds, and is aligned for, an address of any family.
            unsafe { place.cast::<sockaddr_in>().write(value) }
        }
        SocketAddr::V6(v6) => {
            let value = sockaddr_in6 {
                sin6_family: AF_INET6 as _,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { place.cast::<sockaddr_in6>().write(value) }
        }
    }
    storage
}

/// # Safety
/// `storage` is readable.
unsafe fn socket_address(storage: *const sockaddr_storage) -> Option<SocketAddr> {
    // SAFETY: the family says which of the structures the storage holds, and it holds and is aligned for either.
    unsafe {
        match i32::from((*storage).ss_family) {
            AF_INET => {
                let v4 = &*storage.cast::<sockaddr_in>();
                let ip = IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::new(ip, u16::from_be(v4.sin_port)))
            }
            AF_INET6 => {
                let v6 = &*storage.cast::<sockaddr_in6>();
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_go_there_and_back() {
        for text in ["10.1.2.3:3260", "[fe80::1]:860", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().unwrap();
            let storage = storage(address);
            // SAFETY: a local value.
            assert_eq!(unsafe { socket_address(&raw const storage) }, Some(address));
        }
        // SAFETY: zero is a value, and names no family.
        let none: sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: a local value.
        assert_eq!(unsafe { socket_address(&raw const none) }, None);
    }
}
