//! The server: portals on TCP sockets, and one worker thread per core (feature `tokio`).
//!
//! A portal that offers iSER (feature `iser`) serves it on the same port: an iWARP connection begins otherwise than a
//! login does.
//!
//! Each worker is a thread with a single-threaded runtime of its own, so a server runs inside any program, with or
//! without a runtime. A connection is given to the worker with the fewest when it is accepted, and stays there.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//! use target_core::lu::{Identity, LogicalUnit};
//! use target_core::node::{TargetConfig, TargetNode};
//! use target_core::server::Server;
//! # use backstore::{Backstore, Geometry, StoreError};
//! # struct Ram(Mutex<Vec<u8>>);
//! # #[async_trait::async_trait]
//! # impl Backstore for Ram {
//! #     fn geometry(&self) -> Geometry { Geometry::of_bytes(self.0.lock().unwrap().len() as u64) }
//! #     async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
//! #         let at = lba as usize * 512;
//! #         data.copy_from_slice(&self.0.lock().unwrap()[at..at + data.len()]);
//! #         Ok(())
//! #     }
//! #     async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
//! #         let at = lba as usize * 512;
//! #         self.0.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
//! #         Ok(())
//! #     }
//! # }
//!
//! let disk = LogicalUnit::new(Arc::new(Ram(Mutex::new(vec![0; 1 << 20]))), Identity::from_seed("example"))?;
//! let node = TargetNode::builder()
//!     .name("iqn.2026-11.example.ramdisk:one")
//!     .lun(0, Arc::new(disk))
//!     .portal("127.0.0.1:0".parse()?)
//!     .open();
//! let config = TargetConfig::builder().node(node).build()?;
//! let server = Server::builder(config).workers(1).start()?;
//! println!("{}listening on {:?}", server.target().config(), server.local_addrs());
//! server.stop(Duration::from_secs(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(feature = "iser")]
mod iser;
pub(crate) mod left;
mod local;
mod worker;

#[cfg(test)]
mod server_tests;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::Duration;

use iscsi_proto::datamover::MoverReport;
use iscsi_proto::tcp::TcpMoverConfig;
#[cfg(all(feature = "verbs", target_os = "linux"))]
use iser_transport::verbs::{Verbs, VerbsError};
use tokio::sync::{mpsc, watch};

use crate::node::{Service, TargetConfig};
use crate::registry::{Endpoints, Event, SessionInfo};
use crate::session::{EndReason, Limits, Target};
use crate::stats::SessionStatistics;
#[cfg(feature = "iser")]
pub use iser::IserConfig;
pub use local::LocalServer;
use worker::{Arrival, Listening, Seats, Share, Worker};

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is in use.
    #[error(
        "cannot listen on {0}: the port is taken, by another program or by another portal of this one; stop that \
         program or choose another port"
    )]
    PortTaken(SocketAddr),
    /// The address is none of this machine's.
    #[error("cannot listen on {0}: this machine has no such address; use one that it has, or 0.0.0.0 for all of them")]
    NoSuchAddress(SocketAddr),
    /// The port needs rights that the program has not.
    #[error("cannot listen on {0}: this user may not use the port; choose one from 1024 on")]
    NotAllowed(SocketAddr),
    /// Something else with the socket.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The portal.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// The portal is to offer iSER, and iSER is not built in.
    #[error("cannot offer iSER on {0}: this program is built without it (feature `iser`)")]
    NoIser(SocketAddr),
    /// The portal is to offer iSER over RDMA devices, and they cannot be used.
    #[error("cannot listen on {address} for RDMA: {reason}")]
    Rdma {
        /// The portal.
        address: SocketAddr,
        /// What is missing, or the system's error.
        reason: String,
    },
    /// A worker thread or its runtime did not start.
    #[error("cannot start a worker thread: {0}")]
    Worker(io::Error),
}

impl ServerError {
    fn listen(address: SocketAddr, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::PortTaken(address),
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress(address),
            io::ErrorKind::PermissionDenied => Self::NotAllowed(address),
            _ => Self::Listen { address, error },
        }
    }
}

/// Who hears of ended connections.
type OnEnd = Arc<dyn Fn(Endpoints, &EndReason) + Send + Sync>;

/// Where random bytes come from.
type RandomBytes = Arc<dyn Fn(&mut [u8]) -> io::Result<()> + Send + Sync>;

/// Who hears of what an operator is to know.
type OnEvent = Box<dyn Fn(&Event) + Send + Sync>;

/// Who hears of peers that could not be taken.
#[cfg(all(feature = "verbs", target_os = "linux"))]
pub(crate) type OnRefused = Arc<dyn Fn(&VerbsError) + Send + Sync>;

/// Starts servers. See the [module](self) for an example.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// A builder for a server of this configuration.
    #[must_use]
    pub fn builder(config: TargetConfig) -> ServerBuilder {
        ServerBuilder {
            config,
            limits: Limits::default(),
            driver: iscsi_driver::Limits::default(),
            mover: TcpMoverConfig::default(),
            #[cfg(feature = "iser")]
            iser: IserConfig::default(),
            workers: None,
            on_end: None,
            on_event: None,
            random: Arc::new(worker::random_of_the_system),
            #[cfg(all(feature = "verbs", target_os = "linux"))]
            on_refused: None,
        }
    }
}

/// Describes a server.
pub struct ServerBuilder {
    config: TargetConfig,
    limits: Limits,
    driver: iscsi_driver::Limits,
    mover: TcpMoverConfig,
    #[cfg(feature = "iser")]
    iser: IserConfig,
    workers: Option<usize>,
    on_end: Option<OnEnd>,
    on_event: Option<OnEvent>,
    random: RandomBytes,
    #[cfg(all(feature = "verbs", target_os = "linux"))]
    on_refused: Option<OnRefused>,
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl ServerBuilder {
    /// Bounds of connections and sessions.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How connections share their worker.
    #[must_use]
    pub fn driver_limits(mut self, limits: iscsi_driver::Limits) -> Self {
        self.driver = limits;
        self
    }

    /// Sizes of each connection's buffers. `max_tasks` follows from the command window.
    #[must_use]
    pub fn mover(mut self, mover: TcpMoverConfig) -> Self {
        self.mover = mover;
        self
    }

    /// How portals that offer iSER do so.
    #[cfg(feature = "iser")]
    #[must_use]
    pub fn iser(mut self, iser: IserConfig) -> Self {
        self.iser = iser;
        self
    }

    /// Worker threads, 1 to 256. By default as many as the machine has cores for this process.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Has `on_end` called, on a worker's thread, when a connection has ended, with the reason. It must not block.
    #[must_use]
    pub fn on_end(mut self, on_end: impl Fn(Endpoints, &EndReason) + Send + Sync + 'static) -> Self {
        self.on_end = Some(Arc::new(on_end));
        self
    }

    /// Has `on_event` called, on a worker's thread, when something happens that an operator is to hear of. It must not
    /// block.
    #[must_use]
    pub fn on_event(mut self, on_event: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.on_event = Some(Box::new(on_event));
        self
    }

    /// Has the random bytes of logins come from `random`, which fills what it is given, on a worker's thread. A
    /// connection that it has none for is closed. By default the system's cryptographic generator; whoever can guess
    /// what comes instead passes CHAP without the secret.
    #[must_use]
    pub fn random(mut self, random: impl Fn(&mut [u8]) -> io::Result<()> + Send + Sync + 'static) -> Self {
        self.random = Arc::new(random);
        self
    }

    /// Has `on_refused` called, on a worker's thread, when a peer that wants to connect over an RDMA device is turned
    /// away because of this side: the process may not lock enough memory, say. It must not block.
    #[cfg(all(feature = "verbs", target_os = "linux"))]
    #[must_use]
    pub fn on_refused(mut self, on_refused: impl Fn(&VerbsError) + Send + Sync + 'static) -> Self {
        self.on_refused = Some(Arc::new(on_refused));
        self
    }

    /// Listens on every portal and starts the workers.
    ///
    /// # Errors
    /// [`ServerError`], one sentence that names the address; nothing runs then.
    pub fn start(self) -> Result<ServerHandle, ServerError> {
        let mut listeners = Vec::new();
        let mut local_addrs = Vec::new();
        #[cfg(all(feature = "verbs", target_os = "linux"))]
        let (mut verbs, mut verbs_listeners) = (None, Vec::new());
        for address in self.config.addresses() {
            let listener = TcpListener::bind(address).map_err(|error| ServerError::listen(address, error))?;
            let ready = listener.set_nonblocking(true).and_then(|()| listener.local_addr());
            let bound = ready.map_err(|error| ServerError::listen(address, error))?;
            #[cfg_attr(not(all(feature = "verbs", target_os = "linux")), expect(unused_mut))]
            let (mut listener, mut by_verbs) = (Some(listener), false);
            let mut iser = false;
            for portal in self.config.portals().filter(|portal| portal.address() == address) {
                portal.set_bound_port(bound.port());
                iser |= portal.iser();
            }
            #[cfg(feature = "iser")]
            if iser && self.iser.verbs {
                #[cfg(all(feature = "verbs", target_os = "linux"))]
                {
                    let refused = |error: VerbsError| ServerError::Rdma { address: bound, reason: error.to_string() };
                    let devices = match &verbs {
                        Some(devices) => Arc::clone(devices),
                        None => self.iser.open_verbs(&self.limits).map_err(refused)?,
                    };
                    let (tcp, rdma) = iser::listen_by_verbs(&devices, bound, listener, self.iser.iwarp)?;
                    (listener, by_verbs) = (tcp, rdma.is_some());
                    verbs_listeners.extend(rdma);
                    verbs = Some(devices);
                }
                #[cfg(not(all(feature = "verbs", target_os = "linux")))]
                return Err(ServerError::Rdma { address: bound, reason: "this program is built without verbs".into() });
            }
            #[cfg(feature = "iser")]
            {
                iser &= self.iser.iwarp;
            }
            if iser && cfg!(not(feature = "iser")) {
                return Err(ServerError::NoIser(address));
            }
            for portal in self.config.portals().filter(|portal| portal.address() == address) {
                // Nodes share addresses, and a login over iSER is refused where its node does not offer it.
                let (iwarp, verbs) = (iser && portal.iser(), by_verbs && portal.iser());
                portal.set_service(Service { tcp: listener.is_some(), iwarp, verbs });
            }
            local_addrs.push(bound);
            listeners.extend(listener.map(|socket| Listening { socket, iser }));
        }
        #[cfg(all(feature = "verbs", target_os = "linux"))]
        let spin = verbs.as_ref().map_or(Duration::ZERO, |verbs| verbs.spin());
        let Crew { target, stop, seats: _, workers } = self.crew(
            #[cfg(all(feature = "verbs", target_os = "linux"))]
            spin,
        );
        let count = workers.len();
        let mut shares: Vec<Share> = (0..count).map(|_| Share::default()).collect();
        for (at, listener) in listeners.into_iter().enumerate() {
            if let Some(share) = shares.get_mut(at % count) {
                share.tcp.push(listener);
            }
        }
        #[cfg(all(feature = "verbs", target_os = "linux"))]
        for (at, listener) in verbs_listeners.into_iter().enumerate() {
            if let Some(share) = shares.get_mut(at % count) {
                share.verbs.push(listener);
            }
        }
        let mut handle = ServerHandle {
            hard_stop: target.limits().close_timeout,
            target,
            local_addrs,
            stop,
            threads: Vec::new(),
            #[cfg(all(feature = "verbs", target_os = "linux"))]
            verbs,
        };
        for (at, ((worker, inbox), share)) in workers.into_iter().zip(shares).enumerate() {
            // When one does not start, dropping the handle stops those that did.
            handle.threads.push(worker.start(at, inbox, share).map_err(ServerError::Worker)?);
        }
        Ok(handle)
    }

    /// The target and its workers, which nothing runs yet.
    fn crew(self, #[cfg(all(feature = "verbs", target_os = "linux"))] spin: Duration) -> Crew {
        let cores = || std::thread::available_parallelism().map_or(1, Into::into);
        let count = self.workers.unwrap_or_else(cores).clamp(1, 256);
        let slots = self.limits.command_window.saturating_add(self.limits.immediate_commands);
        let mover = TcpMoverConfig { max_tasks: slots, ..self.mover };
        let target = Target::new(self.config, self.limits);
        if let Some(on_event) = self.on_event {
            target.registry().set_on_event(on_event);
        }
        let (stop, stopped) = watch::channel(None);
        let mut seats = Vec::new();
        let mut inboxes = Vec::new();
        for _ in 0..count {
            let (sender, inbox) = mpsc::unbounded_channel();
            seats.push((sender, Arc::new(AtomicUsize::new(0))));
            inboxes.push(inbox);
        }
        let seats: Seats = seats.into();
        let worker = |inbox| {
            let worker = Worker {
                target: target.clone(),
                mover,
                pool: target.worker_pool(count),
                #[cfg(feature = "iser")]
                iser: self.iser,
                #[cfg(all(feature = "verbs", target_os = "linux"))]
                spin,
                driver: self.driver,
                on_end: self.on_end.clone(),
                random: self.random.clone(),
                #[cfg(all(feature = "verbs", target_os = "linux"))]
                on_refused: self.on_refused.clone(),
                seats: seats.clone(),
                stopped: stopped.clone(),
            };
            (worker, inbox)
        };
        let workers = inboxes.into_iter().map(worker).collect();
        Crew { target, stop, seats, workers }
    }
}

/// A target and its workers.
struct Crew {
    target: Arc<Target>,
    stop: watch::Sender<Option<Duration>>,
    seats: Seats,
    workers: Vec<(Worker, mpsc::UnboundedReceiver<Arrival>)>,
}

/// A running server. Dropping it stops it at once; [`stop`](Self::stop) does so politely.
#[derive(Debug)]
pub struct ServerHandle {
    target: Arc<Target>,
    local_addrs: Vec<SocketAddr>,
    /// When every connection must be gone, once the server is to stop.
    stop: watch::Sender<Option<Duration>>,
    threads: Vec<JoinHandle<()>>,
    hard_stop: Duration,
    #[cfg(all(feature = "verbs", target_os = "linux"))]
    verbs: Option<Arc<Verbs>>,
}

/// Memory that is registered with RDMA devices, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisteredMemory {
    /// Now.
    pub now: u64,
    /// The most that it was.
    pub peak: u64,
    /// The most that it may be.
    pub limit: u64,
}

impl ServerHandle {
    /// The addresses that it listens on, in the order of [`TargetConfig::addresses`], with the ports that port 0
    /// became.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// The target behind it.
    #[must_use]
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// The sessions now.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.target.registry().sessions()
    }

    /// The sum over the sessions now.
    #[must_use]
    pub fn statistics(&self) -> SessionStatistics {
        self.sessions().iter().fold(SessionStatistics::default(), |sum, session| sum.plus(&session.statistics))
    }

    /// What the movers of the sessions now have done by RDMA, and hold; `None` when no session is over iSER.
    #[must_use]
    pub fn movers(&self) -> Option<MoverReport> {
        self.sessions().iter().filter_map(|session| session.mover).reduce(|sum, mover| sum.plus(&mover))
    }

    /// Memory registered with RDMA devices; `None` for a server that uses none.
    #[must_use]
    pub fn registered_memory(&self) -> Option<RegisteredMemory> {
        #[cfg(all(feature = "verbs", target_os = "linux"))]
        if let Some(verbs) = &self.verbs {
            let budget = &verbs.config().budget;
            return Some(RegisteredMemory { now: budget.used(), peak: budget.peak(), limit: budget.limit() });
        }
        None
    }

    /// Accepts nobody any more, asks the initiators to log out, and returns when all are gone: after `grace` and the
    /// time that connections may take to close ([`Limits::close_timeout`]) at the latest. All workers have ended then.
    /// Where a store has not given back an operation, a thread waits for it: nobody writes where it writes until then.
    pub fn stop(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        let ran = !self.threads.is_empty();
        self.target.registry().stop(grace);
        let _ = self.stop.send(Some(grace + self.hard_stop));
        for thread in self.threads.drain(..) {
            // A worker that panicked has ended too.
            let _ = thread.join();
        }
        if ran {
            left::look_after(&self.target);
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}
