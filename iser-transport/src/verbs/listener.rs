//! How queue pairs come to be: by request of a peer, or by connecting to one. Neither waits here; see `driver` for
//! waiting.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::VerbsConfig;
use super::connection::{CmId, Event, EventChannel, Link, Parameters};
use super::device::DomainUse;
use super::endpoint::{DevicePort, Side};
use super::error::VerbsError;
use super::library::Library;
use super::queue::VerbsQueue;

/// RDMA on this machine: the libraries, the configuration, and the protection domains that connections share.
#[derive(Debug)]
pub struct Verbs {
    pub(super) library: &'static Library,
    pub(super) config: VerbsConfig,
    shared: Mutex<Vec<Shared>>,
}

/// A protection domain that connections share. It stays when the last of them has gone, so that the next one finds
/// stores and pooled buffers registered.
#[derive(Debug)]
struct Shared {
    // In this order: the domain goes before what keeps its device open.
    domain: DomainUse,
    anchor: Link,
}

impl Shared {
    /// Whether its device is gone.
    fn is_gone(&self) -> bool {
        std::iter::from_fn(|| self.anchor.channel.poll().transpose())
            .any(|event| matches!(event, Ok(Event::DeviceRemoval) | Err(_)))
    }
}

impl Verbs {
    /// Loads the libraries.
    ///
    /// # Errors
    /// [`VerbsError::Library`] where they are not installed, [`VerbsError::NoRdma`] where the kernel has no RDMA.
    pub fn open(config: VerbsConfig) -> Result<Arc<Self>, VerbsError> {
        let library = Library::get()?;
        EventChannel::new(library)?;
        Ok(Arc::new(Self { library, config, shared: Mutex::default() }))
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &VerbsConfig {
        &self.config
    }

    /// Bytes of memory that are registered with devices now.
    #[must_use]
    pub fn registered(&self) -> u64 {
        self.config.budget.used()
    }

    /// A protection domain for a connection that is accepted: one for all on a device, so that a store is registered
    /// once. They advertise nothing, so none can reach what is another's.
    fn shared_domain(&self, id: &CmId) -> Result<DomainUse, VerbsError> {
        if !self.config.shares_domain {
            return self.own_domain(id);
        }
        let context = id.context().ok_or_else(|| VerbsError::last("finding the device of a connection"))?;
        let mut shared = self.shared();
        shared.retain(|shared| !shared.is_gone());
        if let Some(domain) = shared.iter().find_map(|shared| shared.domain.share(context)) {
            return Ok(domain);
        }
        let domain = self.own_domain(id)?;
        // What is bound to the same address is bound to the same device.
        let anchor = Link::new(self.library).ok().filter(|anchor| {
            let address = id.local().map(|local| SocketAddr::new(local.ip(), 0));
            address.is_some_and(|address| anchor.id.bind(address).is_ok()) && anchor.id.context() == Some(context)
        });
        if let Some((anchor, domain)) = anchor.zip(domain.share(context)) {
            shared.push(Shared { domain, anchor });
        }
        Ok(domain)
    }

    fn shared(&self) -> MutexGuard<'_, Vec<Shared>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A protection domain of its own: what is advertised is for this connection's peer alone.
    #[allow(unsafe_code, reason = "the device has to stay open, which no type says")]
    fn own_domain(&self, id: &CmId) -> Result<DomainUse, VerbsError> {
        let context = id.context().ok_or_else(|| VerbsError::last("finding the device of a connection"))?;
        // SAFETY: librdmacm keeps a device open while an identifier is bound to it, and each endpoint, and each
        // `Shared`, gives up its use of the domain before its identifier.
        unsafe { DomainUse::new(self.library, context, self.config.budget.clone()) }
    }

    fn queue(&self, link: Link, domain: DomainUse, side: Side) -> Result<VerbsQueue, VerbsError> {
        let info = domain.info().clone();
        let port = DevicePort::new(self.library, link, domain, side, &self.config)?;
        VerbsQueue::new(port, info, &self.config)
    }
}

/// Waits for peers that want to connect.
#[derive(Debug)]
pub struct VerbsListener {
    verbs: Arc<Verbs>,
    link: Link,
}

impl VerbsListener {
    /// Listens at an address of RDMA's own port space: a TCP listener may have the same. An unspecified address listens
    /// on all devices.
    ///
    /// # Errors
    /// [`VerbsError::NoDevice`] when the address belongs to no device, [`VerbsError::InUse`] when another listens
    /// there.
    pub fn bind(verbs: Arc<Verbs>, address: SocketAddr) -> Result<Self, VerbsError> {
        let link = Link::new(verbs.library)?;
        link.id.listen(address, verbs.config.backlog)?;
        Ok(Self { verbs, link })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.link.id.local()
    }

    /// What becomes readable when a peer wants to connect.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.link.channel.as_fd()
    }

    /// The next request of a peer, as a queue pair that has not answered yet. `None` when there is none now.
    ///
    /// # Errors
    /// [`VerbsError::NoRdma`] when the listener itself has ended: its device is gone. Any other error is of this one
    /// request, which has been refused; the listener goes on.
    pub fn poll_request(&self) -> Result<Option<VerbsQueue>, VerbsError> {
        loop {
            match self.link.channel.poll() {
                Ok(None) => return Ok(None),
                Ok(Some(Event::Request(id, asked))) => return self.take(id, asked).map(Some),
                Ok(Some(Event::DeviceRemoval)) => {
                    self.verbs.shared().retain(|shared| !shared.is_gone());
                    return Err(VerbsError::NoRdma(io::Error::from_raw_os_error(libc::ENODEV)));
                }
                Ok(Some(_)) => {}
                Err(error) => return Err(VerbsError::NoRdma(error)),
            }
        }
    }

    fn take(&self, id: CmId, asked: Parameters) -> Result<VerbsQueue, VerbsError> {
        let link = Link::take(id)?;
        match self.verbs.shared_domain(&link.id) {
            Ok(domain) => self.verbs.queue(link, domain, Side::Passive(asked)),
            Err(error) => {
                link.id.reject();
                Err(error)
            }
        }
    }
}

/// How far a [`Connecting`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leg {
    Address,
    Route,
    Done,
}

/// A way to a peer that is being looked for.
#[derive(Debug)]
pub struct Connecting {
    verbs: Arc<Verbs>,
    address: SocketAddr,
    milliseconds: i32,
    leg: Leg,
    link: Option<Link>,
}

impl Connecting {
    /// Starts to look for the device and the way to an address. Each takes at most so many milliseconds.
    ///
    /// # Errors
    /// [`VerbsError::NoDevice`] when no device leads there.
    pub fn start(verbs: Arc<Verbs>, address: SocketAddr, milliseconds: i32) -> Result<Self, VerbsError> {
        let link = Link::new(verbs.library)?;
        link.id.resolve_address(address, milliseconds).map_err(|error| unresolved(address, error))?;
        Ok(Self { verbs, address, milliseconds, leg: Leg::Address, link: Some(link) })
    }

    /// What becomes readable when there is news.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(|link| link.channel.as_fd())
    }

    /// The queue pair, when the way is found. It has not asked the peer yet.
    ///
    /// # Errors
    /// [`VerbsError::NoDevice`], [`VerbsError::Unreachable`], or what the device refused.
    pub fn poll(&mut self) -> Result<Option<VerbsQueue>, VerbsError> {
        loop {
            let Some(link) = &self.link else { return Err(VerbsError::TimedOut(self.address)) };
            match (link.channel.poll(), self.leg) {
                (Ok(None), _) => return Ok(None),
                (Ok(Some(Event::AddressResolved)), Leg::Address) => {
                    self.leg = Leg::Route;
                    link.id.resolve_route(self.milliseconds).map_err(|error| unresolved(self.address, error))?;
                }
                (Ok(Some(Event::RouteResolved)), Leg::Route) => break,
                (Ok(Some(Event::Unresolved(error) | Event::Failed(error))), _) => {
                    return Err(unresolved(self.address, io::Error::from_raw_os_error(error)));
                }
                (Ok(Some(_)), _) => {}
                (Err(error), _) => return Err(VerbsError::NoRdma(error)),
            }
        }
        self.leg = Leg::Done;
        let Some(link) = self.link.take() else { return Err(VerbsError::TimedOut(self.address)) };
        let domain = self.verbs.own_domain(&link.id)?;
        self.verbs.queue(link, domain, Side::Active).map(Some)
    }
}

fn unresolved(address: SocketAddr, error: io::Error) -> VerbsError {
    match error.raw_os_error() {
        // EINVAL is what the kernel says of its own addresses when every device is iWARP.
        Some(libc::ENODEV | libc::EADDRNOTAVAIL | libc::EINVAL) => VerbsError::NoDevice(address),
        Some(libc::ETIMEDOUT) => VerbsError::TimedOut(address),
        _ => VerbsError::Unreachable(address, error),
    }
}
