//! NOP in both directions, logout, Reject and asynchronous messages (RFC 7143 11.9, 11.14 to 11.19).

use core::time::Duration;

use iscsi_proto::datamover::Datamover;
use iscsi_proto::pdu::{
    AsyncEvent, AsyncMessage, Bhs, LogoutReason, LogoutRequest, LogoutResponse, LogoutResult, NopIn, NopOut, Opcode,
    RESERVED_TAG, Reject, RejectReason,
};
use iscsi_proto::time::Instant;

use super::full_feature::FullFeature;
use super::{EndReason, Limits, wire};

/// Watches over an initiator that says nothing, or takes nothing.
///
/// Its timer stands still while things go well: it is set anew only when it fires, so that traffic costs no timer.
#[derive(Debug)]
pub(super) struct Keepalive {
    idle: Option<Duration>,
    answer: Duration,
    send: Duration,
    heard: Instant,
    sent: Instant,
    /// Bytes went that had to wait: the peer takes what it is sent.
    taken: Instant,
    asked: Option<Asked>,
    check_at: Instant,
    last_ttt: u32,
}

/// A NOP-In that waits for its answer.
#[derive(Debug, Clone, Copy)]
struct Asked {
    ttt: u32,
    at: Instant,
    /// How much must have been sent until it has left: what is queued before it may take long on a slow link.
    leaves: u64,
}

/// What the watch finds.
enum Finding {
    Well,
    AskNow(u32),
    Gone(EndReason),
}

impl Keepalive {
    pub(super) fn new(limits: &Limits, nop_in: bool, now: Instant) -> Self {
        let idle = limits.nop_in_idle.filter(|_| nop_in);
        let first = idle.unwrap_or(limits.send_timeout).min(limits.send_timeout);
        Self {
            idle,
            answer: limits.nop_in_timeout,
            send: limits.send_timeout,
            heard: now,
            sent: now,
            taken: now,
            asked: None,
            check_at: now + first,
            last_ttt: 0,
        }
    }

    /// Bytes came.
    #[inline]
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Bytes went.
    #[inline]
    pub(super) fn sent(&mut self, now: Instant) {
        self.sent = now;
        self.taken = now;
    }

    /// When the peer last took bytes that had to wait.
    pub(super) fn taken(&self) -> Instant {
        self.taken
    }

    /// Asks nothing more: the session is about to end.
    fn stop_asking(&mut self) {
        self.idle = None;
        self.asked = None;
    }

    pub(super) fn check_at(&self) -> Instant {
        self.check_at
    }

    fn check(&mut self, sent: u64, backlog: usize, now: Instant) -> Finding {
        if backlog == 0 {
            self.sent = now;
        } else if now >= self.sent + self.send {
            return Finding::Gone(EndReason::SendTimeout);
        }
        let mut next = self.sent + self.send;
        let mut finding = Finding::Well;
        if let Some(asked) = self.asked {
            // Whoever takes bytes, or sends some, is there, though the question may still be on its way.
            let life = asked.at.max(self.taken).max(self.heard);
            let left = sent >= asked.leaves || backlog == 0;
            if left && now >= life + self.answer {
                return Finding::Gone(EndReason::NopTimeout);
            }
            next = next.min(if left { life } else { now } + self.answer);
        } else if let Some(idle) = self.idle {
            if now >= self.heard + idle {
                self.last_ttt = if self.last_ttt >= RESERVED_TAG - 1 { 1 } else { self.last_ttt + 1 };
                self.asked = Some(Asked { ttt: self.last_ttt, at: now, leaves: u64::MAX });
                next = next.min(now + self.answer);
                finding = Finding::AskNow(self.last_ttt);
            } else {
                next = next.min(self.heard + idle);
            }
        }
        self.check_at = next;
        finding
    }

    fn answered(&mut self, ttt: u32) -> bool {
        let answers = self.asked.is_some_and(|asked| asked.ttt == ttt);
        if answers {
            self.asked = None;
        }
        answers
    }
}

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

impl FullFeature {
    /// RFC 7143 11.18.
    pub(super) fn nop_out<M: Datamover>(&mut self, mover: &mut M, bhs: &Bhs) {
        let Ok(nop) = NopOut::parse(bhs) else { return };
        if self.executor.is_none() {
            // RFC 7143 4.3: a discovery session takes Text and Logout only.
            return self.reject(mover, bhs, RejectReason::CommandNotSupported);
        }
        if nop.ttt != RESERVED_TAG {
            if !self.keepalive.answered(nop.ttt) {
                self.reject(mover, bhs, RejectReason::InvalidPduField);
            }
            return;
        }
        if nop.itt == RESERVED_TAG {
            return;
        }
        // RFC 7143 11.18.5: the data come back, as far as the initiator can take them.
        let most = self.parameters.peer_max_recv_data_segment_length as usize;
        let data = self.scratch.get(..most).unwrap_or(&self.scratch);
        let answer = NopIn {
            lun: 0,
            itt: nop.itt,
            ttt: RESERVED_TAG,
            stat_sn: self.core.take_stat_sn(),
            exp_cmd_sn: self.core.window.expected(),
            max_cmd_sn: self.core.window.max(),
        };
        mover.send_control(answer.emit(), data);
    }

    /// The watch's time has come.
    pub(super) fn watch<M: Datamover>(&mut self, mover: &mut M, now: Instant) -> Result<(), EndReason> {
        if now < self.keepalive.check_at() {
            return Ok(());
        }
        match self.keepalive.check(mover.sent(), mover.backlog(), now) {
            Finding::Well => Ok(()),
            Finding::Gone(reason) => Err(reason),
            Finding::AskNow(ttt) => {
                mover.trim();
                if let Some(executor) = &mut self.executor {
                    executor.trim();
                }
                // RFC 7143 11.19.2: a NOP-In that asks tells the next StatSN and does not take it.
                let ask = NopIn {
                    lun: 0,
                    itt: RESERVED_TAG,
                    ttt,
                    stat_sn: self.core.stat_sn,
                    exp_cmd_sn: self.core.window.expected(),
                    max_cmd_sn: self.core.window.max(),
                };
                mover.send_control(ask.emit(), &[]);
                if let Some(asked) = &mut self.keepalive.asked {
                    asked.leaves = mover.sent() + mover.backlog() as u64;
                }
                Ok(())
            }
        }
    }

    /// Answers a request that cannot be done; its header goes back with the reason (RFC 7143 11.17).
    ///
    /// RFC 7145 8.1.2: without a word where the initiator is not known to have a receive for it.
    #[cold]
    pub(super) fn reject<M: Datamover>(&mut self, mover: &mut M, bhs: &Bhs, reason: RejectReason) {
        // RFC 7145 8.1.1: an initiator keeps a receive for the answer to a request, be it a Reject, but one for each.
        let awaited = awaits_answer(bhs) && reason != RejectReason::TaskInProgress;
        if !awaited && !self.may_surprise() {
            return mover.drop_request(bhs);
        }
        let stat_sn = self.core.take_stat_sn();
        if !awaited {
            self.core.unexpected.sent(stat_sn);
        }
        let reject = Reject {
            reason,
            stat_sn,
            exp_cmd_sn: self.core.window.expected(),
            max_cmd_sn: self.core.window.max(),
            data_sn: 0,
        };
        mover.send_control(reject.emit(), &bhs.0);
        self.core.announce(mover);
    }

    /// RFC 7143 11.14.
    pub(super) fn logout_request<M: Datamover>(&mut self, mover: &mut M, bhs: &Bhs) -> Result<(), EndReason> {
        let request = match LogoutRequest::parse(bhs) {
            Ok(request) => request,
            Err(error) => {
                self.reject(mover, bhs, wire::header(&error));
                return Ok(());
            }
        };
        let result = match request.reason {
            LogoutReason::CloseSession => None,
            // RFC 7143 4.3: a discovery session ends with "close the session" only.
            _ if self.executor.is_none() => {
                self.reject(mover, bhs, RejectReason::ProtocolError);
                return Ok(());
            }
            LogoutReason::CloseConnection | LogoutReason::RemoveForRecovery
                if request.cid != self.entry.session.cid =>
            {
                Some(LogoutResult::CidNotFound)
            }
            LogoutReason::CloseConnection => None,
            // RFC 7143 11.15.1: not at ErrorRecoveryLevel below 2.
            LogoutReason::RemoveForRecovery => Some(LogoutResult::RecoveryNotSupported),
        };
        if let Some(result) = result {
            self.answer_logout(mover, request.itt, result);
            return Ok(());
        }
        self.abort_all(mover);
        self.keepalive.stop_asking();
        let until = self.now + self.target.limits.drain_timeout;
        self.logout = Logout::Draining { itt: request.itt, until };
        Ok(())
    }

    fn answer_logout<M: Datamover>(&mut self, mover: &mut M, itt: u32, response: LogoutResult) {
        let answer = LogoutResponse {
            response,
            itt,
            stat_sn: self.core.take_stat_sn(),
            exp_cmd_sn: self.core.window.expected(),
            max_cmd_sn: self.core.window.max(),
            time2wait: self.parameters.default_time2wait,
            time2retain: 0,
        };
        mover.send_control(answer.emit(), &[]);
    }

    /// Answers a logout once nothing is under way, and ends the connection behind it.
    pub(super) fn poll_logout<M: Datamover>(&mut self, mover: &mut M) -> Result<(), EndReason> {
        let Logout::Draining { itt, until } = self.logout else { return Ok(()) };
        let drained = self.drained(mover);
        if !drained && self.now < until {
            return Ok(());
        }
        self.logout = Logout::Answered;
        self.answer_logout(mover, itt, if drained { LogoutResult::Closed } else { LogoutResult::CleanupFailed });
        Err(EndReason::LoggedOut)
    }

    /// Asks the initiator to log out within `grace`.
    pub(super) fn ask_logout<M: Datamover>(&mut self, mover: &mut M, grace: Duration) {
        if self.logout != Logout::None {
            return;
        }
        self.logout = Logout::Asked(self.now + grace);
        // A discovery session has nothing to save, and is over soon anyway.
        if self.executor.is_some() {
            self.send_async(mover, AsyncEvent::LogoutRequest, 0, whole_seconds(grace));
        }
    }

    /// Whether the initiator has a receive for a Reject or an Asynchronous Message that it does not wait for. The last one is for a NOP-In that asks:
    /// its answer brings the ExpStatSN that retires the others (RFC 7145 8.1.2), and only one is under way at a time.
    fn may_surprise(&self) -> bool {
        self.core.unexpected.room() > 1
    }

    /// Tells the initiator something, unless it has no receive for it.
    pub(super) fn send_async<M: Datamover>(&mut self, mover: &mut M, event: AsyncEvent, lun: u64, parameter3: u16) {
        if !self.may_surprise() {
            return;
        }
        let stat_sn = self.core.take_stat_sn();
        self.core.unexpected.sent(stat_sn);
        let message = AsyncMessage {
            event,
            lun,
            stat_sn,
            exp_cmd_sn: self.core.window.expected(),
            max_cmd_sn: self.core.window.max(),
            parameter1: 0,
            parameter2: 0,
            parameter3,
        };
        mover.send_control(message.emit(), &[]);
        self.core.announce(mover);
    }
}

/// Whether a request has an answer other than a Reject.
fn awaits_answer(bhs: &Bhs) -> bool {
    let opcodes = [
        Opcode::ScsiCommand,
        Opcode::TaskManagementRequest,
        Opcode::TextRequest,
        Opcode::LogoutRequest,
        Opcode::NopOut,
    ];
    bhs.itt() != RESERVED_TAG && bhs.opcode().is_ok_and(|opcode| opcodes.contains(&opcode))
}

/// Seconds, rounded up.
fn whole_seconds(time: Duration) -> u16 {
    u16::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u16::MAX)
}
