//! A worker: one thread, one runtime, its share of the listeners and of the connections.

use std::future::{Future, poll_fn};
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use iscsi_driver::{Clock, StreamSocket, drive_with};
use iscsi_memory::WorkerPool;
use iscsi_proto::connection::StreamMover;
use iscsi_proto::datamover::Datamover;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, timeout};

#[cfg(feature = "iser")]
use super::IserConfig;
use super::{OnEnd, RandomBytes};
use crate::registry::{Carrier, Endpoints, Seat};
use crate::session::{Target, TargetConnection};

/// How long to wait after accepting failed, as it does when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection on its way to its worker.
pub(super) struct Arrival {
    incoming: Incoming,
    endpoints: Endpoints,
    seat: Seat,
    load: Load,
}

/// What a connection came in by.
pub(super) enum Incoming {
    /// A TCP connection, and whether its portal offers iSER on its TCP port.
    Tcp(std::net::TcpStream, bool),
    /// A stream that the program has brought, of plain iSCSI.
    Brought(Box<dyn StreamSocket + Send>),
    /// A queue pair of an RDMA device that has not been answered.
    #[cfg(all(feature = "verbs", target_os = "linux"))]
    Verbs(Box<iser_transport::verbs::VerbsQueue>),
}

/// A listener on its way to its worker.
pub(super) struct Listening {
    pub(super) socket: StdListener,
    /// It offers iSER on its TCP port.
    pub(super) iser: bool,
}

/// The listeners of one worker.
#[derive(Default)]
pub(super) struct Share {
    pub(super) tcp: Vec<Listening>,
    #[cfg(all(feature = "verbs", target_os = "linux"))]
    pub(super) verbs: Vec<iser_transport::verbs::VerbsListener>,
}

/// Every worker's inbox, and how many connections it has.
pub(super) type Seats = Arc<[(mpsc::UnboundedSender<Arrival>, Arc<AtomicUsize>)]>;

/// One connection in a worker's count.
struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) struct Worker {
    pub(super) target: Arc<Target>,
    pub(super) mover: TcpMoverConfig,
    pub(super) pool: WorkerPool,
    #[cfg(feature = "iser")]
    pub(super) iser: IserConfig,
    #[cfg(all(feature = "verbs", target_os = "linux"))]
    pub(super) spin: Duration,
    pub(super) driver: iscsi_driver::Limits,
    pub(super) on_end: Option<OnEnd>,
    pub(super) random: RandomBytes,
    #[cfg(all(feature = "verbs", target_os = "linux"))]
    pub(super) on_refused: Option<super::OnRefused>,
    pub(super) seats: Seats,
    pub(super) stopped: watch::Receiver<Option<Duration>>,
}

impl Worker {
    pub(super) fn start(
        self,
        number: usize,
        inbox: mpsc::UnboundedReceiver<Arrival>,
        share: Share,
    ) -> io::Result<JoinHandle<()>> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("iscsi-target-{number}")).spawn(move || {
            let local = LocalSet::new();
            runtime.block_on(local.run_until(self.run(inbox, share)));
        })
    }

    /// Serves what comes until the server stops, on the [`LocalSet`] that it is polled in.
    pub(super) async fn run(self, mut inbox: mpsc::UnboundedReceiver<Arrival>, share: Share) {
        let mut acceptors = JoinSet::new();
        #[cfg(all(feature = "verbs", target_os = "linux"))]
        for listener in share.verbs {
            // The runtime takes every listener that the system made.
            if let Ok(acceptor) = iser_transport::verbs::VerbsAcceptor::new(listener) {
                let on_refused = self.on_refused.clone();
                acceptors.spawn_local(accept_verbs(acceptor, self.target.clone(), self.seats.clone(), on_refused));
            }
        }
        for Listening { socket, iser } in share.tcp {
            // The runtime takes every listener that the system made.
            if let Ok(listener) = TcpListener::from_std(socket) {
                acceptors.spawn_local(accept(listener, iser, self.target.clone(), self.seats.clone()));
            }
        }
        // Ended as late as the connections: these sessions too may be asked to end in time.
        let mut attendant = JoinSet::new();
        let target = self.target.clone();
        attendant.spawn_local(poll_fn(move |cx| {
            target.registry().poll_unfinished(cx.waker());
            Poll::<()>::Pending
        }));
        let mut connections = JoinSet::new();
        let mut stopped = self.stopped.clone();
        loop {
            // In this order: who has ended makes room for who comes, and nobody comes to a server that stops.
            tokio::select! {
                biased;
                _ = stopped.wait_for(Option::is_some) => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                Some(arrival) = inbox.recv() => {
                    connections.spawn_local(self.serve(arrival));
                }
            }
        }
        drop(acceptors);
        inbox.close();
        while let Ok(arrival) = inbox.try_recv() {
            drop(arrival);
        }
        let rest = self.stopped.borrow().unwrap_or_default() + self.driver.linger;
        // What is not gone by then is dropped with the set, and its sockets with it.
        let _ = timeout(rest, async { while connections.join_next().await.is_some() {} }).await;
    }

    pub(super) fn serve(&self, arrival: Arrival) -> impl Future<Output = ()> + use<> {
        let service = Service {
            target: self.target.clone(),
            driver: self.driver,
            on_end: self.on_end.clone(),
            random: self.random.clone(),
        };
        let (tcp, buffers) = (self.mover, self.pool.session());
        #[cfg(feature = "iser")]
        let iser = self.iser;
        #[cfg(all(feature = "verbs", target_os = "linux"))]
        let spin = self.spin;
        async move {
            let Arrival { incoming, endpoints, seat, load: _load } = arrival;
            let since = Clock::process().now();
            let admitted = Admitted { seat, endpoints, since, carrier: Carrier::default() };
            match incoming {
                Incoming::Tcp(stream, offers_iser) => {
                    let Ok(stream) = TcpStream::from_std(stream) else { return };
                    #[cfg(not(feature = "iser"))]
                    let _ = offers_iser;
                    #[cfg(feature = "iser")]
                    if offers_iser
                        && super::iser::is_iwarp(&stream, &admitted.seat, service.target.limits().login_timeout).await
                    {
                        let Some(seed) = service.random() else { return };
                        let mover = iser.over_iwarp(&stream, service.target.limits(), u64::from_ne_bytes(seed));
                        let admitted = Admitted { carrier: Carrier { provider: "iwarp", device: None }, ..admitted };
                        return service.serve_over(stream, mover, admitted).await;
                    }
                    service.serve_over(stream, TcpMover::with_buffers(Role::Target, tcp, buffers), admitted).await;
                }
                Incoming::Brought(stream) => {
                    service.serve_over(stream, TcpMover::with_buffers(Role::Target, tcp, buffers), admitted).await;
                }
                #[cfg(all(feature = "verbs", target_os = "linux"))]
                Incoming::Verbs(queue) => {
                    let device = Some(queue.device().name.as_str().into());
                    let admitted = Admitted { carrier: Carrier { provider: "verbs", device }, ..admitted };
                    let events = queue.events();
                    let mover = iser_transport::mover::IserMover::new(*queue, iser.mover(service.target.limits()));
                    service.serve_queue(&events, spin, mover, admitted).await;
                }
            }
        }
    }
}

/// A connection that has its seat.
struct Admitted {
    seat: Seat,
    endpoints: Endpoints,
    /// When it came.
    since: Instant,
    carrier: Carrier,
}

/// What connections are served by.
struct Service {
    target: Arc<Target>,
    driver: iscsi_driver::Limits,
    on_end: Option<OnEnd>,
    random: RandomBytes,
}

impl Service {
    /// Random bytes, if there are any to be had.
    fn random<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.random)(&mut bytes).ok().map(|()| bytes)
    }

    /// Serves a connection over a byte stream to its end. Its future has no place for a mover: what waits for the first
    /// byte of a connection is as large as the largest that may follow.
    fn serve_over<M: StreamMover>(
        self,
        stream: impl StreamSocket,
        mover: M,
        admitted: Admitted,
    ) -> impl Future<Output = ()> {
        let begun = self.begin(mover, admitted);
        async move {
            let Some((mut connection, service)) = begun else { return };
            let _ = drive_with(stream, &mut *connection, Clock::process(), service.driver).await;
            service.ended(&connection);
        }
    }

    /// Serves a connection over an RDMA device to its end.
    #[cfg(all(feature = "verbs", target_os = "linux"))]
    fn serve_queue<M: iscsi_proto::connection::QueueMover>(
        self,
        events: &iser_transport::verbs::VerbsEvents,
        spin: Duration,
        mover: M,
        admitted: Admitted,
    ) -> impl Future<Output = ()> {
        let begun = self.begin(mover, admitted);
        async move {
            let Some((mut connection, service)) = begun else { return };
            let _ = iser_transport::verbs::drive_queue(&mut *connection, events, spin, Clock::process()).await;
            service.ended(&connection);
        }
    }

    fn begin<M: Datamover>(self, mover: M, admitted: Admitted) -> Option<(Box<TargetConnection<M>>, Self)> {
        // Without random numbers nobody can be told from anybody else.
        let entropy = self.random()?;
        let Admitted { seat, endpoints, since, carrier } = admitted;
        let connection = TargetConnection::seated(self.target.clone(), seat, mover, endpoints, entropy, since);
        Some((Box::new(connection.carried_by(carrier)), self))
    }

    fn ended<M: Datamover>(self, connection: &TargetConnection<M>) {
        if let (Some(on_end), Some(reason)) = (self.on_end, connection.end_reason()) {
            on_end(connection.endpoints(), reason);
        }
    }
}

/// Fills `bytes` from the system's generator.
pub(super) fn random_of_the_system(bytes: &mut [u8]) -> io::Result<()> {
    let got = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty())?;
    if got == bytes.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Takes connections and gives each to the worker that has the fewest.
async fn accept(listener: TcpListener, iser: bool, target: Arc<Target>, seats: Seats) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(local) = stream.local_addr() else { continue };
        // Too many connections: closing the transport is all that can be said before login.
        let Some(seat) = target.registry().seat(false) else { continue };
        let Ok(stream) = stream.into_std() else { continue };
        if !assign(&seats, Incoming::Tcp(stream, iser), Endpoints { local, peer }, seat) {
            return;
        }
    }
}

/// Gives a connection to the worker that has the fewest. False when the workers have ended.
pub(super) fn assign(seats: &Seats, incoming: Incoming, endpoints: Endpoints, seat: Seat) -> bool {
    let Some((inbox, load)) = seats.iter().min_by_key(|(_, load)| load.load(Ordering::Relaxed)) else { return false };
    load.fetch_add(1, Ordering::Relaxed);
    inbox.send(Arrival { incoming, endpoints, seat, load: Load(load.clone()) }).is_ok()
}

/// Takes connections of RDMA devices. Each is answered by its worker.
#[cfg(all(feature = "verbs", target_os = "linux"))]
async fn accept_verbs(
    acceptor: iser_transport::verbs::VerbsAcceptor,
    target: Arc<Target>,
    seats: Seats,
    on_refused: Option<super::OnRefused>,
) {
    use iser_transport::verbs::VerbsError;
    loop {
        let queue = match acceptor.accept().await {
            Ok(queue) => queue,
            // The device is gone. The TCP portal stays.
            Err(VerbsError::NoRdma(_)) => return,
            Err(error) => {
                if let Some(on_refused) = &on_refused {
                    on_refused(&error);
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(seat) = target.registry().seat(true) else { continue };
        let (Some(local), Some(peer)) = (queue.local_address(), queue.peer_address()) else { continue };
        if !assign(&seats, Incoming::Verbs(Box::new(queue)), Endpoints { local, peer }, seat) {
            return;
        }
    }
}
