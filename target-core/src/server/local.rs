//! A server without threads and listeners of its own.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use iscsi_driver::StreamSocket;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinSet, spawn_local};

use super::worker::{Incoming, Seats, Share, assign};
use super::{Crew, ServerBuilder};
use crate::registry::Endpoints;
use crate::session::Target;

impl ServerBuilder {
    /// Serves on the [`LocalSet`](tokio::task::LocalSet) that this is called in, without a thread and without a
    /// listener: connections are [handed](LocalServer::serve) to it. Stores are polled on its thread too. Portals are
    /// what sessions are told of, and nobody listens on them. [Workers](Self::workers) are tasks here.
    ///
    /// # Panics
    /// Outside of a `LocalSet`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use target_core::node::{TargetConfig, TargetNode};
    /// use target_core::registry::Endpoints;
    /// use target_core::server::Server;
    /// use tokio::net::UnixStream;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let node = TargetNode::builder().name("iqn.2026-11.example:one").portal("127.0.0.1:3260".parse()?).open();
    /// let config = TargetConfig::builder().node(node).build()?;
    /// tokio::task::LocalSet::new().run_until(async {
    ///     let server = Server::builder(config).workers(1).start_local();
    ///     let (ours, theirs) = UnixStream::pair()?;
    ///     let endpoints = Endpoints { local: "127.0.0.1:3260".parse()?, peer: "127.0.0.1:49152".parse()? };
    ///     assert!(server.serve(ours, endpoints));
    ///     drop(theirs);
    ///     server.stop(Duration::from_secs(1)).await;
    ///     Ok(())
    /// }).await
    /// # }
    /// ```
    #[must_use]
    pub fn start_local(self) -> LocalServer {
        let Crew { target, stop, seats, workers } = self.crew(
            #[cfg(all(feature = "verbs", target_os = "linux"))]
            Duration::ZERO,
        );
        let mut tasks = JoinSet::new();
        for (worker, inbox) in workers {
            tasks.spawn_local(worker.run(inbox, Share::default()));
        }
        let (told, ended) = oneshot::channel();
        spawn_local(look_after(tasks, stop.subscribe(), target.clone(), told));
        LocalServer { target, stop, seats, ended }
    }
}

/// Sees the workers to their end, and then to that of what stores have not given back.
async fn look_after(
    mut workers: JoinSet<()>,
    mut stop: watch::Receiver<Option<Duration>>,
    target: Arc<Target>,
    told: oneshot::Sender<()>,
) {
    tokio::select! {
        biased;
        () = async { while workers.join_next().await.is_some() {} } => {}
        // Nobody has the server any more.
        () = async { while stop.changed().await.is_ok() {} } => workers.shutdown().await,
    }
    drop(told);
    poll_fn(|cx| if target.registry().poll_unfinished(cx.waker()) == 0 { Poll::Ready(()) } else { Poll::Pending })
        .await;
}

/// A server on somebody else's thread. Dropping it ends its connections at once; [`stop`](Self::stop) does so politely.
///
/// What stores have not given back then is looked after by a task of the same `LocalSet`, and by the logical units when
/// that goes too: nobody writes where it writes until it has ended.
#[derive(Debug)]
pub struct LocalServer {
    target: Arc<Target>,
    stop: watch::Sender<Option<Duration>>,
    seats: Seats,
    /// Closed when the workers have ended.
    ended: oneshot::Receiver<()>,
}

impl LocalServer {
    /// The target behind it.
    #[must_use]
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// Serves a stream of plain iSCSI to its end. False, and the stream is closed, when there are too many connections
    /// or the server stops.
    pub fn serve(&self, stream: impl StreamSocket + Send + 'static, endpoints: Endpoints) -> bool {
        let Some(seat) = self.target.registry().seat(false) else { return false };
        assign(&self.seats, Incoming::Brought(Box::new(stream)), endpoints, seat)
    }

    /// Accepts nobody any more, asks the initiators to log out, and returns when all are gone: after `grace` and the
    /// time that connections may take to close ([`Limits::close_timeout`](crate::session::Limits::close_timeout)) at
    /// the latest.
    pub async fn stop(mut self, grace: Duration) {
        self.target.registry().stop(grace);
        let _ = self.stop.send(Some(grace + self.target.limits().close_timeout));
        let _ = (&mut self.ended).await;
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.target.registry().stop(Duration::ZERO);
    }
}
