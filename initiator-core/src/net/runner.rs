//! Keeps a session connected: connects, runs the connection, and brings it back when it is lost.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iscsi_driver::{Clock, Limits as DriverLimits, drive_with};
use iscsi_proto::chap::ChapError;
use iscsi_proto::datamover::MoverError;
use iscsi_proto::login::LoginError;
use iscsi_proto::pdu::LoginStatus;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::text::targets::TargetAddress;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::application::Application;
use crate::config::{ReconnectPolicy, Timeouts};
use crate::connection::{ConnectionEnd, InitiatorConnection};
use crate::engine::Engine;
use crate::error::Error;
use crate::login::LoginConfig;
use crate::recovery::{Recovery, may_heal};
use crate::url::Portal;

/// A closed connection waits this long for the target to close its side.
const LINGER: Duration = Duration::from_millis(200);
/// Redirections followed in one attempt.
const REDIRECTIONS: usize = 4;

/// What a session runs by.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) portal: Portal,
    pub(super) login: LoginConfig,
    pub(super) timeouts: Timeouts,
    pub(super) reconnect: ReconnectPolicy,
    /// Commands under way at a time.
    pub(super) commands: u16,
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

/// Resolves and connects within the timeout; tries each address of a name in turn.
pub(super) async fn connect(portal: &Portal, after: Duration) -> Result<TcpStream, Error> {
    let name = portal.to_string();
    let attempt = async {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((portal.host.as_str(), portal.port))
            .await
            .map_err(|error| Error::Resolve { host: portal.host.clone(), reason: error.to_string() })?
            .collect();
        let mut last = Error::Resolve { host: portal.host.clone(), reason: "no address".into() };
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    last = Error::Refused { portal: name.clone() };
                }
                Err(error) => last = Error::Unreachable { portal: name.clone(), reason: error.to_string() },
            }
        }
        Err(last)
    };
    match timeout(after, attempt).await {
        Ok(result) => result,
        Err(_) => Err(Error::ConnectTimeout { portal: name.clone(), after }),
    }
}

/// Whether a login with CHAP ended as it does at targets that cannot deal with our list of algorithms. A wrong secret is not among it.
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
                        "the target did not prove who it is ({chap}): check the target's CHAP name and secret on both sides"
                    )
                }
                _ => error.to_string(),
            };
            Error::Login { portal: name, target: plan.target(), status: error.status(), reason }
        }
        ConnectionEnd::LoginTimeout => Error::Silent { portal: name, after: plan.timeouts.login },
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

/// Runs a session to its end: until it is logged out, or lost for good. `connected` is told each TCP connection's two ends; `ending` is notified when
/// the session shall end though it has no connection.
pub(super) async fn run<A: Application>(
    plan: &Plan,
    mut engine: Engine<A>,
    ending: Option<&Notify>,
    mut connected: impl FnMut(&mut A, SocketAddr, SocketAddr),
) -> (Engine<A>, Result<(), Error>) {
    let clock = Clock::process();
    let limits = DriverLimits { linger: LINGER, ..DriverLimits::default() };
    let mut recovery = Recovery::new(plan.reconnect, random_seed());
    let mut ever = false;
    let mut portal = plan.portal.clone();
    let mut redirections = 0;
    let mut md5_only = plan.login.md5_only;
    loop {
        let (wait, error) = match connect(&portal, plan.timeouts.connect).await {
            Err(error) => {
                portal = plan.portal.clone();
                (recovery.failed(clock.now()).filter(|_| ever), error)
            }
            Ok(stream) => {
                if let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) {
                    connected(engine.app(), local, peer);
                }
                let mover = TcpMover::new(
                    Role::Initiator,
                    TcpMoverConfig { max_tasks: plan.commands, ..TcpMoverConfig::default() },
                );
                let mut login = plan.login.clone();
                login.md5_only = md5_only;
                if let Ok(fresh) = random() {
                    login.random = fresh;
                }
                let mut connection = InitiatorConnection::new(mover, engine, login, plan.timeouts.login, clock.now());
                // The connection knows how its stream ended; the socket's error adds nothing that it could act on.
                let _ = drive_with(stream, &mut connection, clock, limits).await;
                let logged_in_at = connection.logged_in_at();
                let (back, end, time2wait) = connection.into_parts(clock.now());
                engine = back;
                if let ConnectionEnd::Moved(address) = &end
                    && let Ok(next) = address.parse::<TargetAddress>()
                    && redirections < REDIRECTIONS
                {
                    redirections += 1;
                    portal = Portal { host: next.host, port: next.port };
                    continue;
                }
                if !md5_only && logged_in_at.is_none() && plan.login.credentials.is_some() && chokes_on_chap(&end) {
                    md5_only = true;
                    continue;
                }
                redirections = 0;
                let error = explain(plan, &portal, &end, logged_in_at.is_some());
                portal = plan.portal.clone();
                let now = clock.now();
                if end.is_logout() {
                    return (engine, Ok(()));
                }
                let wait = if let Some(at) = logged_in_at {
                    ever = true;
                    recovery.connected(at);
                    recovery.lost(time2wait, now)
                } else {
                    recovery.failed(now).filter(|_| ever && may_heal(&end))
                };
                (wait, error)
            }
        };
        let Some(wait) = wait else {
            let gave_up = ever && !plan.reconnect.deadline.is_zero();
            let error =
                if gave_up { Error::Lost { after: plan.reconnect.deadline, last: Arc::new(error) } } else { error };
            return (engine, Err(error));
        };
        match ending {
            None => sleep(wait).await,
            Some(ending) => tokio::select! {
                () = sleep(wait) => {}
                () = ending.notified() => return (engine, Ok(())),
            },
        }
    }
}
