//! A worker: one thread, one runtime, its share of the listeners and of the connections.

use std::future::Future;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use iscsi_driver::{Clock, drive_with};
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, timeout};

use super::OnEnd;
use crate::registry::Endpoints;
use crate::session::{Target, TargetConnection};

/// How long to wait after accepting failed, as it does when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection on its way to its worker.
pub(super) struct Arrival {
    stream: std::net::TcpStream,
    endpoints: Endpoints,
    load: Load,
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
        listeners: Vec<StdListener>,
    ) -> io::Result<JoinHandle<()>> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("iscsi-target-{number}")).spawn(move || {
            let local = LocalSet::new();
            runtime.block_on(local.run_until(self.run(inbox, listeners)));
        })
    }

    async fn run(self, mut inbox: mpsc::UnboundedReceiver<Arrival>, listeners: Vec<StdListener>) {
        let mut acceptors = JoinSet::new();
        for listener in listeners {
            // The runtime takes every listener that the system made.
            if let Ok(listener) = TcpListener::from_std(listener) {
                acceptors.spawn_local(accept(listener, self.target.clone(), self.seats.clone()));
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
        let Arrival { stream, endpoints, load } = arrival;
        let (target, mover, driver, on_end) = (self.target.clone(), self.mover, self.driver, self.on_end.clone());
        async move {
            let _load = load;
            let Ok(stream) = TcpStream::from_std(stream) else { return };
            // Without random numbers nobody can be told from anybody else.
            let Some(entropy) = entropy() else { return };
            let clock = Clock::process();
            let mover = TcpMover::new(Role::Target, mover);
            // Too many connections: closing the stream is all that can be said before login.
            let Some(mut connection) = TargetConnection::new(target, mover, endpoints, entropy, clock.now()) else {
                return;
            };
            let _ = drive_with(stream, &mut connection, clock, driver).await;
            if let (Some(on_end), Some(reason)) = (on_end, connection.end_reason()) {
                on_end(endpoints, reason);
            }
        }
    }
}

/// Random bytes of the system.
fn entropy() -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok()?;
    (got == bytes.len()).then_some(bytes)
}

/// Takes connections and gives each to the worker that has the fewest.
async fn accept(listener: TcpListener, target: Arc<Target>, seats: Seats) {
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
        let arrival = Arrival { stream, endpoints: Endpoints { local, peer }, load: Load(load.clone()) };
        if inbox.send(arrival).is_err() {
            return;
        }
    }
}
