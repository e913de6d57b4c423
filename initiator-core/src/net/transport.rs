//! The ways to a portal, and one connection of a session by one of them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iscsi_driver::{Clock, Limits as DriverLimits, StreamSocket, drive_with};
use iscsi_proto::connection::StreamMover;
use iscsi_proto::datamover::Datamover;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use tokio::time::timeout;

use super::connector::{Connected, Connector};
use super::runner::Plan;
use crate::application::Application;
use crate::connection::{ConnectionEnd, InitiatorConnection};
use crate::engine::Engine;
use crate::error::{Cause, Error, words};
use crate::login::LoginConfig;
use crate::url::{Portal, Rdma, Transport};

/// A closed connection waits this long for the target to close its side.
const LINGER: Duration = Duration::from_millis(200);
/// The same where another way is to be tried, and a silent peer is not to hold it up: with [`Transport::Auto`] the next
/// one begins within a second.
const LINGER_BEFORE_MORE: Duration = Duration::from_millis(50);

/// The most time that a connection is given to stand: longer ones overflow the clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// One way to a portal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Plain iSCSI.
    Tcp,
    /// iSER over iWARP in user space.
    Iwarp,
    /// iSER over an RDMA device.
    Verbs,
}

/// The ways to try, the best first; never none.
pub(super) fn ways(plan: &Plan, avoid_iser: bool) -> Vec<Way> {
    if plan.transport == Transport::Tcp || plan.transport == Transport::Auto && avoid_iser {
        return vec![Way::Tcp];
    }
    let mut ways = match plan.iser.rdma {
        Rdma::Auto => vec![Way::Verbs, Way::Iwarp],
        Rdma::Iwarp => vec![Way::Iwarp],
        Rdma::Verbs => vec![Way::Verbs],
    };
    if plan.transport == Transport::Auto {
        ways.push(Way::Tcp);
    }
    ways
}

/// What carries a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Carrier {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) transport: &'static str,
    pub(super) provider: &'static str,
    pub(super) device: Option<String>,
}

/// One connection to be made.
pub(super) struct Attempt<'a> {
    pub(super) plan: &'a Plan,
    pub(super) portal: &'a Portal,
    pub(super) way: Way,
    /// Another way is there if this one leads nowhere.
    pub(super) more: bool,
    /// Ask by revision 2 of MPA.
    #[cfg_attr(not(feature = "iser"), expect(dead_code))]
    pub(super) revision_two: bool,
    pub(super) login: LoginConfig,
    /// The time that is left for it.
    pub(super) within: Duration,
}

impl Attempt<'_> {
    /// How long the transport may take to stand. With [`Transport::Auto`] all ways before TCP have the time of the
    /// probe together, and a half.
    pub(super) fn patience(&self) -> Duration {
        let plan = self.plan;
        match (self.more, plan.transport, self.way) {
            (false, ..) => plan.timeouts.login,
            (true, Transport::Auto, Way::Verbs) => plan.iser.probe / 2,
            (true, Transport::Auto, _) => plan.iser.probe,
            (true, ..) => plan.timeouts.login.min(plan.iser.probe * 4),
        }
    }
}

/// What came of it.
pub(super) enum Outcome {
    /// There was no connection.
    Unreached(Error),
    /// There was one.
    Ended(Ended),
}

/// How a connection ended.
pub(super) struct Ended {
    pub(super) end: ConnectionEnd,
    pub(super) logged_in_at: Option<Instant>,
    pub(super) time2wait: Option<Duration>,
    /// The transport came to stand.
    pub(super) established: bool,
    /// The target seems to know only revision 1 of MPA.
    pub(super) wants_revision_one: bool,
}

/// Makes a connection, and runs the session over it until it ends.
pub(super) async fn connection<A: Application>(
    attempt: Attempt<'_>,
    connector: &impl Connector,
    mut engine: Engine<A>,
    connected: &mut impl FnMut(&mut A, Carrier),
) -> (Engine<A>, Outcome) {
    match attempt.way {
        Way::Tcp => {
            let (stream, carrier) = match connect(&attempt, connector, "tcp", "tcp").await {
                Ok(connected) => connected,
                Err(error) => return (engine, Outcome::Unreached(error)),
            };
            connected(engine.app(), carrier);
            let config = TcpMoverConfig { max_tasks: attempt.plan.commands, ..TcpMoverConfig::default() };
            let mover = TcpMover::new(Role::Initiator, config);
            over_stream(attempt, stream, mover, engine, |_| false).await
        }
        #[cfg(feature = "iser")]
        Way::Iwarp => {
            let (stream, carrier) = match connect(&attempt, connector, "iser", "iwarp").await {
                Ok(connected) => connected,
                Err(error) => return (engine, Outcome::Unreached(error)),
            };
            connected(engine.app(), carrier);
            let mover = match super::iser::over_iwarp(&attempt, connector, stream.segment_size()) {
                Ok(mover) => mover,
                Err(error) => return (engine, Outcome::Unreached(error)),
            };
            over_stream(attempt, stream, mover, engine, |mover| mover.queue().wants_revision_one()).await
        }
        #[cfg(all(feature = "verbs", target_os = "linux"))]
        Way::Verbs => {
            let (verbs, queue, carrier) = match super::iser::verbs_queue(&attempt).await {
                Ok(connected) => connected,
                Err(error) => return (engine, Outcome::Unreached(error)),
            };
            connected(engine.app(), carrier);
            let events = queue.events();
            let mover = super::iser::over_verbs(&attempt, queue);
            let clock = Clock::process();
            let mut connection = begin(attempt, mover, engine, clock);
            // As with sockets: the connection knows how it ended.
            let _ = iser_transport::verbs::drive_queue(&mut connection, &events, verbs.spin(), clock).await;
            end(connection, |_| false, clock)
        }
        #[cfg(not(all(feature = "verbs", target_os = "linux")))]
        _ => {
            let source = words("it is not built into this program");
            (engine, Outcome::Unreached(Error::NoIser { portal: attempt.portal.clone(), source }))
        }
    }
}

/// Runs a session over a byte stream.
async fn over_stream<M: StreamMover, A: Application>(
    attempt: Attempt<'_>,
    stream: impl StreamSocket,
    mover: M,
    engine: Engine<A>,
    wants_revision_one: impl FnOnce(&M) -> bool,
) -> (Engine<A>, Outcome) {
    let clock = Clock::process();
    let linger = if attempt.more { LINGER_BEFORE_MORE } else { LINGER };
    let mut connection = begin(attempt, mover, engine, clock);
    let limits = DriverLimits { linger, ..DriverLimits::default() };
    // The connection knows how its stream ended; the socket's error adds nothing that it could act on.
    let _ = drive_with(stream, &mut connection, clock, limits).await;
    end(connection, wants_revision_one, clock)
}

fn begin<M: Datamover, A: Application>(
    attempt: Attempt<'_>,
    mover: M,
    engine: Engine<A>,
    clock: Clock,
) -> InitiatorConnection<M, A> {
    let now = clock.now();
    let patience = attempt.patience();
    let login = attempt.plan.timeouts.login.min(attempt.within);
    InitiatorConnection::new(mover, engine, attempt.login, login, now).establish_within(patience, now)
}

fn end<M: Datamover, A: Application>(
    connection: InitiatorConnection<M, A>,
    wants_revision_one: impl FnOnce(&M) -> bool,
    clock: Clock,
) -> (Engine<A>, Outcome) {
    let established = connection.mover().is_established();
    let wants_revision_one = wants_revision_one(connection.mover());
    let logged_in_at = connection.logged_in_at();
    let (engine, end, time2wait) = connection.into_parts(clock.now());
    (engine, Outcome::Ended(Ended { end, logged_in_at, time2wait, established, wants_revision_one }))
}

/// Resolves and connects within the timeout; tries each address of a name in turn.
async fn connect<C: Connector>(
    attempt: &Attempt<'_>,
    connector: &C,
    transport: &'static str,
    provider: &'static str,
) -> Result<(C::Stream, Carrier), Error> {
    let after = attempt.plan.timeouts.connect.min(attempt.within).min(LONGEST);
    let portal = attempt.portal;
    let end = tokio::time::Instant::now() + after;
    let addresses = resolve(attempt.portal, after).await?;
    let mut last = Error::Resolve { host: attempt.portal.host.clone(), source: words("no address") };
    for (left, address) in (1..=addresses.len() as u32).rev().zip(addresses) {
        // An address that is silent leaves the others their share of the time.
        let share = end.saturating_duration_since(tokio::time::Instant::now()) / left;
        last = match timeout(share, connector.connect(address)).await {
            Ok(Ok(Connected { stream, local, peer })) => {
                return Ok((stream, Carrier { local, peer, transport, provider, device: None }));
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Error::Refused { portal: portal.clone() }
            }
            Ok(Err(error)) => Error::Unreachable { portal: portal.clone(), source: Arc::new(error) },
            Err(_) => Error::ConnectTimeout { portal: portal.clone(), after },
        };
    }
    Err(last)
}

/// The addresses of a portal's host.
pub(super) async fn resolve(portal: &Portal, within: Duration) -> Result<Vec<SocketAddr>, Error> {
    let failed = |source: Cause| Error::Resolve { host: portal.host.clone(), source };
    match timeout(within, tokio::net::lookup_host((portal.host.as_str(), portal.port))).await {
        Ok(Ok(found)) => Ok(found.collect()),
        Ok(Err(error)) => Err(failed(Arc::new(error))),
        Err(_) => Err(failed(words(format!("no answer within {within:?}")))),
    }
}
