//! Keeps a session connected: connects, runs the connection, and brings it back when it is lost.

use std::sync::Arc;
use std::time::Duration;

use iscsi_driver::Clock;
use iscsi_proto::datamover::MoverError;
use iscsi_proto::login::LoginError;
use iscsi_proto::pdu::LoginStatus;
use iscsi_proto::text::targets::TargetAddress;
use iscsi_proto::time::Instant;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::connector::{self, Connector};
use super::portals::Portals;
use super::transport::{self, Attempt, Carrier, Outcome, Way};
use crate::application::{Application, Event};
use crate::config::{IserConfig, ReconnectPolicy, Timeouts};
use crate::connection::ConnectionEnd;
use crate::engine::Engine;
use crate::error::Error;
use crate::login::LoginConfig;
use crate::recovery::{GivenUp, Recovery, may_heal};
use crate::url::{Portal, Transport};

/// The least time that an attempt has, however near the deadline is.
const SHORTEST: Duration = Duration::from_secs(1);
/// An iSER connection that is lost so soon after its login gives way to TCP, where that is allowed.
const SOON: Duration = Duration::from_secs(5);

/// What a session runs by.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) portal: Portal,
    /// Other portals of the target.
    pub(super) portals: Vec<Portal>,
    pub(super) login: LoginConfig,
    pub(super) timeouts: Timeouts,
    pub(super) reconnect: ReconnectPolicy,
    /// Commands under way at a time.
    pub(super) commands: u16,
    pub(super) transport: Transport,
    pub(super) iser: IserConfig,
    /// Spreads delays.
    pub(super) seed: u64,
}

impl Plan {
    fn target(&self) -> String {
        self.login.target_name.clone().unwrap_or_else(|| "discovery".into())
    }
}

/// Whether a login with CHAP ended as it does at targets that cannot deal with our list of algorithms. A wrong secret
/// is not among it.
fn chokes_on_chap(end: &ConnectionEnd) -> bool {
    match end {
        ConnectionEnd::Login(LoginError::Refused { status }) => *status == LoginStatus::INITIATOR_ERROR,
        ConnectionEnd::Lost(MoverError::EndOfStream | MoverError::Broken) => true,
        _ => false,
    }
}

/// What an end of a connection means to a person.
fn explain(plan: &Plan, portal: &Portal, end: &ConnectionEnd, logged_in: bool) -> Error {
    let name = portal.clone();
    match end {
        ConnectionEnd::LoggedOut | ConnectionEnd::LogoutTimeout => Error::LoggedOut,
        ConnectionEnd::Login(LoginError::Refused { status }) => {
            Error::LoginRefused { portal: name, target: plan.target(), status: *status }
        }
        ConnectionEnd::Login(error) => Error::Login { portal: name, target: plan.target(), source: error.clone() },
        ConnectionEnd::LoginTimeout => Error::Silent { portal: name, after: plan.timeouts.login },
        ConnectionEnd::NotEstablished => Error::NoIser { portal: name, source: Arc::new(end.clone()) },
        ConnectionEnd::Lost(MoverError::NotIscsi) => Error::NotIscsi { portal: name },
        // Before the first login response, what does not parse is no iSCSI.
        ConnectionEnd::BadPdu(_)
        | ConnectionEnd::Lost(MoverError::DataSegmentTooLong { .. } | MoverError::Protocol(_))
            if !logged_in =>
        {
            Error::NotIscsi { portal: name }
        }
        ConnectionEnd::Lost(_) if !logged_in => Error::ClosedInLogin { portal: name },
        other => Error::Broken { portal: name, source: other.clone() },
    }
}

/// Whether a target that ended a connection before login was done may still take one of another transport.
fn another_way(end: &ConnectionEnd) -> bool {
    may_heal(end) && !matches!(end, ConnectionEnd::Moved { .. })
}

/// How long to wait after an attempt that came to nothing: not at all while there are portals that have not failed. The
/// first connection is tried once at each portal.
fn after_failure(
    portals: &mut Portals,
    recovery: &mut Recovery,
    ever: bool,
    now: Instant,
) -> Result<Duration, GivenUp> {
    if portals.failed() && (!ever || !recovery.left(now).is_zero()) {
        return Ok(Duration::ZERO);
    }
    recovery.failed(now).filter(|_| ever).ok_or(GivenUp::Deadline)
}

/// What a session ends with that is not connected again.
fn last_error(plan: &Plan, given_up: GivenUp, ever: bool, last: Error) -> Error {
    match given_up {
        GivenUp::Time2Wait { asked, left } => Error::Time2Wait { asked, left, last: Arc::new(last) },
        GivenUp::Deadline if ever && !plan.reconnect.deadline.is_zero() => {
            Error::Lost { after: plan.reconnect.deadline, last: Arc::new(last) }
        }
        GivenUp::Deadline => last,
    }
}

/// Runs a session to its end: until it is logged out, or lost for good. `connected` is told what carries each
/// connection; `ending` is notified when the session shall end though it has no connection.
pub(super) async fn run<A: Application>(
    plan: &Plan,
    connector: &impl Connector,
    mut engine: Engine<A>,
    ending: Option<&Notify>,
    mut connected: impl FnMut(&mut A, Carrier),
) -> (Engine<A>, Result<(), Error>) {
    let clock = Clock::process();
    let mut recovery = Recovery::new(plan.reconnect, plan.seed);
    let mut ever = false;
    let mut portals = Portals::new(&plan.portal, &plan.portals);
    let mut md5_only = plan.login.md5_only;
    let mut revision_two = true;
    let mut avoid_iser = false;
    'attempts: loop {
        let portal = portals.current().clone();
        let ways = transport::ways(plan, avoid_iser);
        let mut left = ways.len();
        let mut ways = ways.into_iter();
        let mut unusable = None;
        let mut had = false;
        let (wait, error) = loop {
            // There is always at least one.
            let way = ways.next().unwrap_or(Way::Tcp);
            left = left.saturating_sub(1);
            let mut login = plan.login.clone();
            login.md5_only = md5_only;
            login.random = match connector::random(connector) {
                Ok(fresh) => fresh,
                Err(error) => return (engine, Err(error)),
            };
            let within = if ever { recovery.left(clock.now()).max(SHORTEST) } else { Duration::MAX };
            let attempt = Attempt { plan, portal: &portal, way, more: left > 0, revision_two, login, within };
            let outcome;
            (engine, outcome) = transport::connection(attempt, connector, engine, &mut connected).await;
            let ended = match outcome {
                // What a socket cannot reach, another socket cannot either.
                Outcome::Unreached(error) if left > 0 && way == Way::Verbs => {
                    unusable = Some(error).filter(|error| matches!(error, Error::RdmaUnusable { .. }));
                    continue;
                }
                Outcome::Unreached(error) => {
                    let wait = after_failure(&mut portals, &mut recovery, ever, clock.now());
                    break (wait, unusable.unwrap_or(error));
                }
                Outcome::Ended(ended) => ended,
            };
            let end = ended.end;
            let logged_in = ended.logged_in_at.is_some();
            if let ConnectionEnd::Moved { to, permanent } = &end
                && let Ok(TargetAddress { host, port, .. }) = to.parse()
                && portals.redirected(Portal { host, port }, *permanent)
            {
                engine.app().event(Event::Redirected { to: portals.current(), permanent: *permanent });
                continue 'attempts;
            }
            if ended.wants_revision_one && revision_two {
                revision_two = false;
                continue 'attempts;
            }
            if !md5_only
                && plan.login.auth.is_none()
                && !logged_in
                && ended.established
                && plan.login.credentials.is_some()
                && chokes_on_chap(&end)
            {
                md5_only = true;
                continue 'attempts;
            }
            if !logged_in && left > 0 && another_way(&end) {
                continue;
            }
            let error = if ended.established {
                explain(plan, &portal, &end, logged_in)
            } else {
                unusable.unwrap_or_else(|| Error::NoIser { portal: portal.clone(), source: Arc::new(end.clone()) })
            };
            let now = clock.now();
            if end.is_logout() {
                return (engine, Ok(()));
            }
            let wait = if let Some(at) = ended.logged_in_at {
                ever = true;
                had = true;
                portals.logged_in();
                avoid_iser = way != Way::Tcp && now - at < SOON;
                recovery.connected(at);
                recovery.lost(ended.time2wait, engine.service(), now)
            } else if may_heal(&end) {
                after_failure(&mut portals, &mut recovery, ever, now)
            } else {
                Err(GivenUp::Deadline)
            };
            break (wait, error);
        };
        let wait = match wait {
            Ok(wait) => wait,
            Err(given_up) => return (engine, Err(last_error(plan, given_up, ever, error))),
        };
        let tried_for = recovery.left(clock.now());
        if had {
            engine.app().event(Event::Lost { reason: &error, next_in: wait, tried_for });
        } else if ever {
            engine.app().event(Event::AttemptFailed { reason: &error, next_in: wait, tried_for });
        }
        match ending {
            None => sleep(wait).await,
            Some(ending) => tokio::select! {
                biased;
                () = ending.notified() => return (engine, Ok(())),
                () = sleep(wait) => {}
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::SocketAddr;

    use super::super::connector::{Connected, System};
    use super::super::session::plan;
    use super::*;
    use crate::config::SessionConfig;

    struct Nothing;

    impl Application for Nothing {
        fn register(&mut self, _waker: &std::task::Waker) {}
        fn next_command(&mut self, _now: Instant) -> Option<crate::command::Command> {
            None
        }
        fn complete(&mut self, _completion: crate::command::Completion, _now: Instant) {}
    }

    #[derive(Debug)]
    struct NoRandom;

    impl Connector for NoRandom {
        type Stream = tokio::net::TcpStream;

        async fn connect(&self, address: SocketAddr) -> io::Result<Connected<Self::Stream>> {
            System.connect(address).await
        }

        fn random(&self, _: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    #[tokio::test]
    async fn without_random_bytes_there_is_no_login() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let portal = Portal { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
        let config = SessionConfig::new(portal, "iqn.2004-10.com.example:disk");
        let plan = plan(&config, &System).unwrap();
        let engine = Engine::new(Nothing, config.timeouts, config.limits, plan.seed);
        let (_, result) = run(&plan, &NoRandom, engine, None, |_, _| ()).await;
        assert!(matches!(result, Err(Error::NoRandomness(_))), "{result:?}");
        let visit = tokio::time::timeout(Duration::from_millis(1), listener.accept()).await;
        assert!(visit.is_err(), "nobody was asked");
    }

    #[test]
    fn each_plan_has_a_name_of_its_own() {
        let config = SessionConfig::new(Portal { host: "a".into(), port: 1 }, "iqn.2004-10.com.example:disk");
        let (first, second) = (plan(&config, &System).unwrap(), plan(&config, &System).unwrap());
        assert_ne!(first.login.isid, second.login.isid);
        assert_eq!(first.login.initiator_name, second.login.initiator_name);
        assert_ne!(connector::random::<64>(&System).unwrap(), connector::random(&System).unwrap());
    }
}
