//! Logout, asked for by either side (RFC 7143 11.14, 11.15).

use core::time::Duration;

use iscsi_proto::datamover::Datamover;
use iscsi_proto::pdu::{AsyncEvent, Bhs, LogoutReason, LogoutRequest, LogoutResponse, LogoutResult, RejectReason};
use iscsi_proto::time::Instant;

use super::connection::Connection;
use super::session::Session;
use super::{EndReason, wire};

/// Where the end of the session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Logout {
    /// Nobody has asked for it.
    None,
    /// The initiator was asked to log out, and the connection is dropped at that time.
    Asked(Instant),
    /// The initiator wants it; the answer waits for operations of aborted tasks until that time.
    Draining { itt: u32, until: Instant },
    /// The answer is on its way.
    Answered,
}

impl Logout {
    /// When something is to be done whatever happens.
    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Asked(until) | Self::Draining { until, .. } => Some(until),
            Self::None | Self::Answered => None,
        }
    }
}

impl Session {
    /// RFC 7143 11.14.
    pub(super) fn logout_request<M: Datamover>(
        &mut self,
        connection: &mut Connection<M>,
        bhs: &Bhs,
    ) -> Result<(), EndReason> {
        let request = match LogoutRequest::parse(bhs) {
            Ok(request) => request,
            Err(error) => {
                connection.reject(&self.commands.window, bhs, wire::header(&error));
                return Ok(());
            }
        };
        let result = match request.reason {
            LogoutReason::CloseSession => None,
            // RFC 7143 4.3: a discovery session ends with "close the session" only.
            _ if self.is_discovery() => {
                connection.reject(&self.commands.window, bhs, RejectReason::ProtocolError);
                return Ok(());
            }
            LogoutReason::CloseConnection | LogoutReason::RemoveForRecovery if request.cid != connection.cid => {
                Some(LogoutResult::CidNotFound)
            }
            LogoutReason::CloseConnection => None,
            // RFC 7143 11.15.1: not at ErrorRecoveryLevel below 2.
            LogoutReason::RemoveForRecovery => Some(LogoutResult::RecoveryNotSupported),
        };
        if let Some(result) = result {
            self.answer_logout(connection, request.itt, result);
            return Ok(());
        }
        self.abort_all(connection);
        connection.keepalive.stop_asking();
        let limits = &self.target.limits;
        let until = connection.now + limits.logout_wait.min(limits.drain_timeout);
        connection.logout = Logout::Draining { itt: request.itt, until };
        Ok(())
    }

    fn answer_logout<M: Datamover>(&mut self, connection: &mut Connection<M>, itt: u32, response: LogoutResult) {
        let answer = LogoutResponse {
            response,
            itt,
            stat_sn: connection.take_stat_sn(),
            exp_cmd_sn: self.commands.window.expected(),
            max_cmd_sn: self.commands.window.max(),
            time2wait: self.parameters().default_time2wait,
            time2retain: 0,
        };
        connection.mover.send_control(answer.emit(), &[]);
    }

    /// Answers a logout once nothing is under way, or says after its limit that something is, and ends the connection
    /// behind it.
    pub(super) fn poll_logout<M: Datamover>(&mut self, connection: &mut Connection<M>) -> Result<(), EndReason> {
        let Logout::Draining { itt, until } = connection.logout else { return Ok(()) };
        let drained = self.is_drained(&connection.mover);
        if !drained && connection.now < until {
            return Ok(());
        }
        connection.logout = Logout::Answered;
        self.answer_logout(connection, itt, if drained { LogoutResult::Closed } else { LogoutResult::CleanupFailed });
        Err(EndReason::LoggedOut)
    }

    /// Asks the initiator to log out within `grace`.
    pub(super) fn ask_logout<M: Datamover>(&mut self, connection: &mut Connection<M>, grace: Duration) {
        if connection.logout != Logout::None {
            return;
        }
        connection.logout = Logout::Asked(connection.now + grace);
        // A discovery session has nothing to save, and is over soon anyway.
        if !self.is_discovery() {
            connection.send_async(&self.commands.window, AsyncEvent::LogoutRequest, 0, whole_seconds(grace));
        }
    }
}

/// Seconds, rounded up.
fn whole_seconds(time: Duration) -> u16 {
    u16::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u16::MAX)
}
