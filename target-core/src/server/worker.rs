//! A worker: one thread, one runtime, its share of the listeners and of the connections.

use std::future::Future;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use iscsi_driver::{Clock, drive_with};
use iscsi_proto::connection::StreamMover;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, timeout};

#[cfg(feature = "iser")]
use super::IserConfig;
use super::OnEnd;
use crate::registry::{Carrier, Endpoints, Seat};
use crate::session::{Target, TargetConnection};

/// How long to wait after accepting failed, as it does when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection on its way to its worker.
pub(super) struct Arrival {
    stream: std::net::TcpStream,
    endpoints: Endpoints,
    /// It came in at a portal that offers iSER on its TCP port.
    #[cfg_attr(not(feature = "iser"), expect(dead_code))]
    iser: bool,
    load: Load,
}

/// A listener on its way to its worker.
pub(super) struct Listening {
    pub(super) socket: StdListener,
    /// It offers iSER on its TCP port.
    pub(super) iser: bool,
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
    #[cfg(feature = "iser")]
    pub(super) iser: IserConfig,
    pub(super) driver: iscsi_driver::Limits,
    pub(super) on_end: Option<OnEnd>,
    pub(super) seats: Seats,
    pub(super) stopped: watch::Receiver<Option<Duration>>,
}

impl Worker {
    pub(super) fn start(
        self,
        number: usize,
        inbox: mpsc::UnboundedReceiver<Arrival>,
        listeners: Vec<Listening>,
    ) -> io::Result<JoinHandle<()>> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("iscsi-target-{number}")).spawn(move || {
            let local = LocalSet::new();
            runtime.block_on(local.run_until(self.run(inbox, listeners)));
        })
    }

    async fn run(self, mut inbox: mpsc::UnboundedReceiver<Arrival>, listeners: Vec<Listening>) {
        let mut acceptors = JoinSet::new();
        for Listening { socket, iser } in listeners {
            // The runtime takes every listener that the system made.
            if let Ok(listener) = TcpListener::from_std(socket) {
                acceptors.spawn_local(accept(listener, iser, self.target.clone(), self.seats.clone()));
            }
        }
        let mut connections = JoinSet::new();
        let mut stopped = self.stopped.clone();
        loop {
            tokio::select! {
                Some(arrival) = inbox.recv() => {
                    connections.spawn_local(self.serve(arrival));
                }
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                _ = stopped.wait_for(Option::is_some) => break,
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

    fn serve(&self, arrival: Arrival) -> impl Future<Output = ()> + use<> {
        let host = Host { target: self.target.clone(), driver: self.driver, on_end: self.on_end.clone() };
        let tcp = self.mover;
        #[cfg(feature = "iser")]
        let iser = self.iser;
        async move {
            let _load = arrival.load;
            let Ok(stream) = TcpStream::from_std(arrival.stream) else { return };
            let since = Clock::process().now();
            // Too many connections: closing the stream is all that can be said before login.
            let Some(seat) = host.target.registry().seat() else { return };
            let guest = Guest { seat, endpoints: arrival.endpoints, since, carrier: Carrier::default() };
            #[cfg(feature = "iser")]
            if arrival.iser && super::iser::is_iwarp(&stream, &guest.seat, host.target.limits().login_timeout).await {
                let Some(seed) = random() else { return };
                let mover = iser.over_iwarp(&stream, host.target.limits(), u64::from_ne_bytes(seed));
                let guest = Guest { carrier: Carrier { provider: "iwarp", device: None }, ..guest };
                return host.serve_over(stream, mover, guest).await;
            }
            host.serve_over(stream, TcpMover::new(Role::Target, tcp), guest).await;
        }
    }
}

/// A connection that has its seat.
struct Guest {
    seat: Seat,
    endpoints: Endpoints,
    /// When it came.
    since: Instant,
    carrier: Carrier,
}

/// What connections are served by.
struct Host {
    target: Arc<Target>,
    driver: iscsi_driver::Limits,
    on_end: Option<OnEnd>,
}

impl Host {
    /// Serves a connection over a byte stream to its end.
    async fn serve_over<M: StreamMover>(self, stream: TcpStream, mover: M, guest: Guest) {
        // Without random numbers nobody can be told from anybody else.
        let Some(entropy) = random() else { return };
        let Guest { seat, endpoints, since, carrier } = guest;
        let connection = TargetConnection::seated(self.target, seat, mover, endpoints, entropy, since);
        let mut connection = connection.carried_by(carrier);
        let _ = drive_with(stream, &mut connection, Clock::process(), self.driver).await;
        if let (Some(on_end), Some(reason)) = (self.on_end, connection.end_reason()) {
            on_end(endpoints, reason);
        }
    }
}

/// Random bytes of the system.
fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok()?;
    (got == bytes.len()).then_some(bytes)
}

/// Takes connections and gives each to the worker that has the fewest.
async fn accept(listener: TcpListener, iser: bool, target: Arc<Target>, seats: Seats) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(local) = stream.local_addr() else { continue };
        // A flood is turned away here, before it fills an inbox.
        if target.registry().connections() >= target.limits().connections {
            continue;
        }
        let Ok(stream) = stream.into_std() else { continue };
        let Some((inbox, load)) = seats.iter().min_by_key(|(_, load)| load.load(Ordering::Relaxed)) else { return };
        load.fetch_add(1, Ordering::Relaxed);
        let arrival = Arrival { stream, endpoints: Endpoints { local, peer }, iser, load: Load(load.clone()) };
        if inbox.send(arrival).is_err() {
            return;
        }
    }
}
