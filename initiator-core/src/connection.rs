//! One connection of a session: login, then the [`Engine`] over a mover.

use alloc::boxed::Box;
use alloc::string::String;
use core::task::Context;
use core::time::Duration;

use iscsi_memory::{ReceiveWindow, SendList};
use iscsi_proto::connection::{Connection, QueueConnection, QueueMover, StreamConnection, StreamEnd, StreamMover};
use iscsi_proto::datamover::{Datamover, MalformedPdu, MoverError, MoverReport, Notification};
use iscsi_proto::login::{InitiatorLogin, InitiatorStep, LoginError};
use iscsi_proto::misbehavior::Misbehavior;
use iscsi_proto::parameters::Parameters;
use iscsi_proto::pdu::{Bhs, LoginRequest, LoginResponse, PduError, RejectReason, Stage};
use iscsi_proto::time::Instant;

use crate::application::{Application, Event};
use crate::engine::Engine;
use crate::login::{LoginConfig, begin_with};

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionEnd {
    /// Logged out at our wish.
    #[error("logged out")]
    LoggedOut,
    /// Our logout was not answered, or answered by hanging up.
    #[error("the target did not answer the logout")]
    LogoutTimeout,
    /// Logged out because the target asked for it (RFC 7143 11.9.1, event 1).
    #[error("the target asked for a logout")]
    LogoutAskedByTarget,
    /// The target announced that it drops the connection (RFC 7143 11.9.1, events 2 and 3).
    #[error("the target dropped the connection")]
    DroppedByTarget,
    /// Login failed.
    #[error(transparent)]
    Login(LoginError),
    /// The target serves at another address (RFC 7143 11.13.5, class 1).
    #[error("the target moved to {to}")]
    Moved {
        /// TargetAddress.
        to: String,
        /// Whether it moved for good (status 0102h).
        permanent: bool,
    },
    /// Login took too long.
    #[error("the target was silent during login")]
    LoginTimeout,
    /// The transport below did not come to stand in time.
    #[error("the target did not answer the RDMA connection request")]
    NotEstablished,
    /// The stream ended.
    #[error(transparent)]
    Lost(MoverError),
    /// The target did not answer a NOP-Out.
    #[error("the target did not answer a NOP-Out: it is gone, or the network is")]
    KeepaliveTimeout,
    /// A command is overdue, and neither aborting it nor resetting its logical unit helped.
    #[error("a command is overdue, and the target answers neither its abort nor a reset of the logical unit")]
    CommandStuck,
    /// A header from the target does not parse.
    #[error("the target sent a PDU that cannot be: {0}")]
    Malformed(PduError),
    /// The mover refused a PDU from the target.
    #[error("the target sent a bad PDU: {0}")]
    BadPdu(MalformedPdu),
    /// The target broke a rule.
    #[error("the target broke the protocol: {0}")]
    Protocol(Misbehavior),
    /// A status has a StatSN that leaves no way on at ErrorRecoveryLevel 0 (RFC 7143 4.2.2.2): one before it did not
    /// come, or it has the number of one that came before, and its task is open.
    #[error("the target's status has StatSN {got:#x} where {expected:#x} was expected")]
    StatSn {
        /// Its StatSN.
        got: u32,
        /// ExpStatSN.
        expected: u32,
    },
    /// The target rejected a PDU in a way that leaves no way on.
    #[error("the target rejected a PDU ({0:?})")]
    Rejected(RejectReason),
}

impl ConnectionEnd {
    /// Whether the session is over with it, as we wished.
    #[must_use]
    pub const fn is_logout(&self) -> bool {
        matches!(self, Self::LoggedOut | Self::LogoutTimeout)
    }

    /// Whether the peer is gone, or does not answer.
    const fn is_broken(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::KeepaliveTimeout | Self::NotEstablished)
    }
}

/// What login settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginSummary {
    /// The negotiated values.
    pub parameters: Parameters,
    /// TSIH; 0 from a target that tells none, against RFC 7143 11.13.3.
    pub tsih: u16,
    /// TargetPortalGroupTag.
    pub target_portal_group_tag: Option<u16>,
    /// TargetAlias.
    pub target_alias: Option<String>,
    /// What the mover says of itself at that time, if it moves data by RDMA.
    pub mover: Option<MoverReport>,
}

#[derive(Debug)]
enum Phase {
    Login {
        login: Box<InitiatorLogin>,
        deadline: Instant,
        /// When the transport has to stand.
        established_by: Instant,
        /// When a target that is silent until then is nudged.
        nudge_at: Instant,
    },
    FullFeature,
    /// The reason is known; what is queued is sent as far as the peer takes it.
    Closing {
        deadline: Instant,
    },
    /// Nothing is sent any more; the transport still holds buffers.
    Aborting {
        deadline: Instant,
    },
    Closed,
}

/// How long a target may be silent during login before it is [nudged](Datamover::nudge), each time.
const NUDGE: Duration = Duration::from_millis(500);
/// How long a connection that is ending waits for its last bytes to be sent.
const CLOSING: Duration = Duration::from_millis(500);
/// How long a transport may take to give its buffers back. What a device has not let go of by then is never used again.
const ABORTING: Duration = Duration::from_secs(10);

/// A connection over a mover `M` that carries the session of an application `A`.
///
/// It starts with login. When it is over ([`Connection::is_finished`]), [`into_parts`](Self::into_parts) gives the
/// engine back for the next one.
#[derive(Debug)]
pub struct InitiatorConnection<M, A> {
    mover: M,
    engine: Engine<A>,
    phase: Phase,
    end: Option<ConnectionEnd>,
    logged_in_at: Option<Instant>,
    time2wait: Option<Duration>,
}

impl<M: Datamover, A: Application> InitiatorConnection<M, A> {
    /// Begins a login.
    pub fn new(mut mover: M, engine: Engine<A>, config: LoginConfig, timeout: Duration, now: Instant) -> Self {
        let mut login = config.into_machine(&mover.caps());
        let (request, text) = login.first_request();
        ask(&mut mover, &login, &request, &text);
        mover.ring();
        let deadline = now + timeout;
        let phase = Phase::Login { login: Box::new(login), deadline, established_by: deadline, nudge_at: now + NUDGE };
        Self { mover, engine, phase, end: None, logged_in_at: None, time2wait: None }
    }

    /// A connection that has its login behind it.
    #[cfg(test)]
    pub(crate) fn logged_in(
        mut mover: M,
        mut engine: Engine<A>,
        summary: &LoginSummary,
        numbers: crate::engine::StartNumbers,
        now: Instant,
    ) -> Self {
        mover.notice_key_values(&summary.parameters);
        mover.enable_datamover();
        engine.start(&mut mover, numbers, now);
        engine.app().event(Event::LoggedIn(summary));
        let time2wait = Some(Duration::from_secs(summary.parameters.default_time2wait.into()));
        Self { mover, engine, phase: Phase::FullFeature, end: None, logged_in_at: Some(now), time2wait }
    }

    /// Gives the transport below less time to stand than the whole login has: for whoever would then try another one.
    #[must_use]
    pub fn establish_within(mut self, time: Duration, now: Instant) -> Self {
        if let Phase::Login { established_by, .. } = &mut self.phase {
            *established_by = (now + time).min(*established_by);
        }
        self
    }

    /// Its mover.
    #[must_use]
    pub const fn mover(&self) -> &M {
        &self.mover
    }

    /// When login was done.
    #[must_use]
    pub const fn logged_in_at(&self) -> Option<Instant> {
        self.logged_in_at
    }

    /// What uses the session.
    pub fn app(&mut self) -> &mut A {
        self.engine.app()
    }

    /// Gives back the session, how the connection ended, and how long to wait before the next one: what the target said
    /// at its end, else the DefaultTime2Wait of the negotiation. What was under way is ready to be sent again, or has
    /// completed.
    ///
    /// A connection that has not finished is cut off; a command with a buffer that a device still holds then fails.
    pub fn into_parts(mut self, now: Instant) -> (Engine<A>, ConnectionEnd, Option<Duration>) {
        self.close(ConnectionEnd::Lost(MoverError::Broken), now);
        self.abort(now);
        self.closed(now);
        let end = self.end.unwrap_or(ConnectionEnd::Lost(MoverError::Broken));
        let time2wait = self.engine.take_time2wait().or(self.time2wait);
        (self.engine, end, time2wait)
    }

    fn drain(&mut self, now: Instant) {
        while let Some(notification) = self.mover.poll_notify() {
            match (&self.phase, notification) {
                (_, Notification::Released(buf)) => self.engine.released(buf, now),
                (Phase::Login { .. }, notification) => self.handle_login(notification, now),
                (Phase::FullFeature, notification) => {
                    self.engine.handle(&mut self.mover, notification, now);
                    self.check_end(now);
                }
                (Phase::Closing { .. } | Phase::Aborting { .. } | Phase::Closed, _) => {}
            }
        }
        // What the transport itself has to say may come behind the last notification.
        let over = match self.phase {
            Phase::Closing { .. } => self.mover.is_closed() && self.mover.backlog() == 0,
            Phase::Aborting { .. } => self.mover.is_closed(),
            _ => false,
        };
        if over {
            self.closed(now);
        }
    }

    fn handle_login(&mut self, notification: Notification, now: Instant) {
        let Phase::Login { login, .. } = &mut self.phase else { return };
        let bhs = match notification {
            Notification::Control(bhs) => bhs,
            Notification::Terminated(error) => return self.close(ConnectionEnd::Lost(error), now),
            Notification::Malformed { error, .. } => return self.close(ConnectionEnd::BadPdu(error), now),
            _ => return,
        };
        match answer_login(login, &bhs, self.mover.control_data()) {
            Ok(InitiatorStep::Send(request, text)) => ask(&mut self.mover, login, &request, &text),
            Ok(InitiatorStep::Established(grant)) => {
                let (summary, numbers) = begin_with(*grant, self.mover.report());
                self.mover.notice_key_values(&summary.parameters);
                self.mover.enable_datamover();
                self.phase = Phase::FullFeature;
                self.engine.start(&mut self.mover, numbers, now);
                self.engine.app().event(Event::LoggedIn(&summary));
                self.logged_in_at = Some(now);
                self.time2wait = Some(Duration::from_secs(summary.parameters.default_time2wait.into()));
            }
            Ok(InitiatorStep::Redirected { address, permanent }) => {
                self.close(ConnectionEnd::Moved { to: address, permanent }, now);
            }
            Err(error) => self.close(ConnectionEnd::Login(error), now),
        }
    }

    fn check_end(&mut self, now: Instant) {
        if let Some(end) = self.engine.take_end() {
            self.close(end, now);
        }
    }

    /// The connection is to end; the first reason counts.
    fn close(&mut self, end: ConnectionEnd, now: Instant) {
        if self.end.is_some() {
            return;
        }
        let broken = end.is_broken();
        self.end = Some(end);
        if broken {
            self.mover.connection_abort();
        } else {
            self.mover.connection_terminate();
        }
        self.phase = Phase::Closing { deadline: now + CLOSING };
    }

    /// The connection ends at once, as soon as its buffers are free.
    fn abort(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Closed) {
            self.mover.connection_abort();
            self.phase = Phase::Aborting { deadline: now + ABORTING };
            self.drain(now);
        }
    }

    /// The connection has ended: every buffer leaves the mover, and the session goes on without it.
    fn closed(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        self.phase = Phase::Closed;
        self.engine.connection_lost(&mut self.mover, now);
        if let Some(end) = &self.end {
            self.engine.app().event(Event::Disconnected(end));
        }
        self.engine.flush(None);
    }

    /// Sends what can be sent, and tells the application what happened.
    fn pump(&mut self, now: Instant) {
        if matches!(self.phase, Phase::FullFeature) {
            self.engine.pump(&mut self.mover, now);
            self.engine.flush(self.mover.report());
            self.check_end(now);
        }
        self.drain(now);
    }
}

/// Sends a login request. The answer to the last one may begin the Full Feature Phase, and the mover is to be ready for
/// it.
fn ask<M: Datamover>(mover: &mut M, login: &InitiatorLogin, request: &LoginRequest, text: &[u8]) {
    if request.nsg == Some(Stage::FullFeaturePhase) {
        mover.notice_key_values(&login.at_most());
    }
    mover.send_control(request.emit(), text);
}

/// Gives the login machine what came from the target.
fn answer_login(login: &mut InitiatorLogin, bhs: &Bhs, data: &[u8]) -> Result<InitiatorStep, LoginError> {
    let response = LoginResponse::parse(bhs).map_err(|_| LoginError::NotALogin)?;
    login.handle_response(&response, data)
}

impl<M: Datamover, A: Application> Connection for InitiatorConnection<M, A> {
    fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Login { established_by, .. } if !self.mover.is_established() => Some(*established_by),
            Phase::Login { deadline, nudge_at, .. } => Some(*deadline.min(nudge_at)),
            Phase::Closing { deadline } | Phase::Aborting { deadline } => Some(*deadline),
            Phase::FullFeature => self.engine.poll_timeout(),
            Phase::Closed => None,
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Login { established_by, .. } if !self.mover.is_established() && *established_by <= now => {
                self.close(ConnectionEnd::NotEstablished, now);
                self.drain(now);
            }
            Phase::Login { deadline, .. } if *deadline <= now => {
                self.close(ConnectionEnd::LoginTimeout, now);
                self.drain(now);
            }
            Phase::Login { nudge_at, .. } if *nudge_at <= now && self.mover.is_established() => {
                *nudge_at = now + NUDGE;
                self.mover.nudge();
            }
            Phase::Closing { deadline } if *deadline <= now => self.abort(now),
            Phase::Aborting { deadline } if *deadline <= now => self.closed(now),
            Phase::FullFeature => {
                self.engine.handle_timeout(&mut self.mover, now);
                self.check_end(now);
                self.pump(now);
            }
            _ => {}
        }
        self.mover.ring();
    }

    fn handle_wake(&mut self, cx: &mut Context<'_>, now: Instant) {
        self.engine.app().register(cx.waker());
        self.pump(now);
        self.mover.ring();
    }

    fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    fn is_given_up(&self) -> bool {
        self.end.as_ref().is_some_and(ConnectionEnd::is_broken)
    }
}

impl<M: StreamMover, A: Application> StreamConnection for InitiatorConnection<M, A> {
    fn receive_window(&mut self) -> ReceiveWindow<'_> {
        self.mover.receive_window()
    }

    fn handle_received(&mut self, n: usize, now: Instant) {
        self.mover.handle_received(n);
        self.engine.sign_of_life(now);
        self.drain(now);
        self.pump(now);
        self.mover.ring();
    }

    fn handle_stream_end(&mut self, end: StreamEnd, now: Instant) {
        self.mover.handle_stream_end(end);
        self.drain(now);
        if !matches!(self.phase, Phase::Closed) {
            let error = if end == StreamEnd::EndOfStream { MoverError::EndOfStream } else { MoverError::Broken };
            self.close(ConnectionEnd::Lost(error), now);
            self.abort(now);
        }
        self.mover.ring();
    }

    fn fill_send_list<'a>(&'a mut self, list: &mut SendList<'a>) {
        self.mover.fill_send_list(list);
    }

    fn take_sent(&mut self, n: usize) {
        self.mover.handle_sent(n);
    }

    fn peer_acknowledged(&mut self, now: Instant) {
        self.engine.acknowledged(now);
    }

    fn go_on(&mut self, now: Instant) {
        // The socket is full and took some all the same: the peer acknowledges.
        if self.mover.backlog() > 0 {
            self.engine.sign_of_life(now);
        }
        self.drain(now);
        self.pump(now);
        self.mover.ring();
    }
}

impl<M: QueueMover, A: Application> QueueConnection for InitiatorConnection<M, A> {
    fn handle_completions(&mut self, now: Instant) -> bool {
        let any = self.mover.handle_completions();
        if any {
            self.engine.sign_of_life(now);
            self.drain(now);
            self.pump(now);
            self.mover.ring();
        }
        any
    }
}
