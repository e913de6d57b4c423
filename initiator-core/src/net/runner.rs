//! Keeps a session connected: connects, runs the connection, and brings it back when it is lost.

use std::sync::Arc;
use std::time::Duration;

use iscsi_driver::Clock;
use iscsi_proto::chap::ChapError;
use iscsi_proto::datamover::MoverError;
use iscsi_proto::login::LoginError;
use iscsi_proto::pdu::LoginStatus;
use iscsi_proto::text::targets::TargetAddress;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::transport::{self, Attempt, Carrier, Outcome, Way};
use crate::application::{Application, Event};
use crate::config::{IserConfig, ReconnectPolicy, Timeouts};
use crate::connection::ConnectionEnd;
use crate::engine::Engine;
use crate::error::Error;
use crate::login::LoginConfig;
use crate::recovery::{Recovery, may_heal};
use crate::url::{Portal, Transport};

/// Redirections followed in one attempt.
const REDIRECTIONS: usize = 4;
/// An iSER connection that is lost so soon after its login gives way to TCP, where that is allowed.
const SOON: Duration = Duration::from_secs(5);

/// What a session runs by.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) portal: Portal,
    pub(super) login: LoginConfig,
    pub(super) timeouts: Timeouts,
    pub(super) reconnect: ReconnectPolicy,
    /// Commands under way at a time.
    pub(super) commands: u16,
    pub(super) transport: Transport,
    pub(super) iser: IserConfig,
}

impl Plan {
    fn target(&self) -> String {
        self.login.target_name.clone().unwrap_or_else(|| "discovery".into())
    }
}

pub(super) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(Clock::process().now().as_nanos())
}

/// Bytes from the system's cryptographic random number generator.
pub(super) fn random() -> Result<[u8; 64], Error> {
    use std::io::Read;
    let mut bytes = [0; 64];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|error| Error::Config(format!("the system gives no random bytes for CHAP: {error}")))?;
    Ok(bytes)
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
    let name = portal.to_string();
    match end {
        ConnectionEnd::LoggedOut | ConnectionEnd::LogoutTimeout => Error::LoggedOut,
        ConnectionEnd::Login(error) => {
            let reason = match error {
                // Our own machine found it, so it is the target's proof that is wrong.
                LoginError::Chap(chap @ (ChapError::Failed { .. } | ChapError::TargetName(_))) => {
                    format!(
                        "the target did not prove who it is ({chap}): check the target's CHAP name and secret on both \
                         sides"
                    )
                }
                _ => error.to_string(),
            };
            Error::Login { portal: name, target: plan.target(), status: error.status(), reason }
        }
        ConnectionEnd::LoginTimeout => Error::Silent { portal: name, after: plan.timeouts.login },
        ConnectionEnd::NotEstablished => Error::NoIser { portal: name, reason: end.to_string() },
        ConnectionEnd::Lost(MoverError::NotIscsi) => Error::NotIscsi { portal: name },
        // Before the first login response, what does not parse is no iSCSI.
        ConnectionEnd::BadPdu(_)
        | ConnectionEnd::Lost(MoverError::DataSegmentTooLong { .. } | MoverError::Protocol(_))
            if !logged_in =>
        {
            Error::NotIscsi { portal: name }
        }
        ConnectionEnd::Lost(_) if !logged_in => Error::ClosedInLogin { portal: name },
        other => Error::Broken { portal: name, reason: other.to_string() },
    }
}

/// Whether a target that ended a connection before login was done may still take one of another transport.
fn another_way(end: &ConnectionEnd) -> bool {
    may_heal(end) && !matches!(end, ConnectionEnd::Moved { .. })
}

/// Runs a session to its end: until it is logged out, or lost for good. `connected` is told what carries each
/// connection; `ending` is notified when the session shall end though it has no connection.
pub(super) async fn run<A: Application>(
    plan: &Plan,
    mut engine: Engine<A>,
    ending: Option<&Notify>,
    mut connected: impl FnMut(&mut A, Carrier),
) -> (Engine<A>, Result<(), Error>) {
    let clock = Clock::process();
    let mut recovery = Recovery::new(plan.reconnect, random_seed());
    let mut ever = false;
    let mut portal = plan.portal.clone();
    let mut redirections = 0;
    let mut md5_only = plan.login.md5_only;
    let mut revision_two = true;
    let mut avoid_iser = false;
    'attempts: loop {
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
            if let Ok(fresh) = random() {
                login.random = fresh;
            }
            let attempt = Attempt { plan, portal: &portal, way, more: left > 0, revision_two, login };
            let outcome;
            (engine, outcome) = transport::connection(attempt, engine, &mut connected).await;
            let ended = match outcome {
                // What a socket cannot reach, another socket cannot either.
                Outcome::Unreached(error) if left > 0 && way == Way::Verbs => {
                    unusable = Some(error).filter(|error| matches!(error, Error::RdmaUnusable { .. }));
                    continue;
                }
                Outcome::Unreached(error) => {
                    portal = plan.portal.clone();
                    break (recovery.failed(clock.now()).filter(|_| ever), unusable.unwrap_or(error));
                }
                Outcome::Ended(ended) => ended,
            };
            let end = ended.end;
            let logged_in = ended.logged_in_at.is_some();
            if let ConnectionEnd::Moved { to, permanent } = &end
                && let Ok(next) = to.parse::<TargetAddress>()
                && redirections < REDIRECTIONS
            {
                redirections += 1;
                portal = Portal { host: next.host, port: next.port };
                engine.app().event(Event::Redirected { to: &portal, permanent: *permanent });
                continue 'attempts;
            }
            if ended.wants_revision_one && revision_two {
                revision_two = false;
                continue 'attempts;
            }
            if !md5_only && !logged_in && ended.established && plan.login.credentials.is_some() && chokes_on_chap(&end)
            {
                md5_only = true;
                continue 'attempts;
            }
            if !logged_in && left > 0 && another_way(&end) {
                continue;
            }
            redirections = 0;
            let error = if ended.established {
                explain(plan, &portal, &end, logged_in)
            } else {
                unusable.unwrap_or_else(|| Error::NoIser { portal: portal.to_string(), reason: end.to_string() })
            };
            portal = plan.portal.clone();
            let now = clock.now();
            if end.is_logout() {
                return (engine, Ok(()));
            }
            let wait = if let Some(at) = ended.logged_in_at {
                ever = true;
                had = true;
                avoid_iser = way != Way::Tcp && now - at < SOON;
                recovery.connected(at);
                recovery.lost(ended.time2wait, engine.counters().answered, now)
            } else {
                recovery.failed(now).filter(|_| ever && may_heal(&end))
            };
            break (wait, error);
        };
        let Some(wait) = wait else {
            let gave_up = ever && !plan.reconnect.deadline.is_zero();
            let error =
                if gave_up { Error::Lost { after: plan.reconnect.deadline, last: Arc::new(error) } } else { error };
            return (engine, Err(error));
        };
        let tried_for = recovery.left(clock.now());
        engine.app().event(if had {
            Event::Lost { reason: &error, next_in: wait, tried_for }
        } else {
            Event::AttemptFailed { reason: &error, next_in: wait, tried_for }
        });
        match ending {
            None => sleep(wait).await,
            Some(ending) => tokio::select! {
                () = sleep(wait) => {}
                () = ending.notified() => return (engine, Ok(())),
            },
        }
    }
}
