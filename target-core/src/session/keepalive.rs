//! NOP in both directions, and the watch over an initiator that says nothing or takes nothing (RFC 7143 11.18, 11.19).

use core::time::Duration;

use iscsi_proto::datamover::Datamover;
use iscsi_proto::pdu::{Bhs, NopIn, NopOut, RESERVED_TAG, RejectReason};
use iscsi_proto::time::Instant;

use super::command_window::CommandWindow;
use super::connection::Connection;
use super::{EndReason, Limits};

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

    /// When bytes last came.
    pub(super) fn heard_at(&self) -> Instant {
        self.heard
    }

    /// Asks nothing more: the session is about to end.
    pub(super) fn stop_asking(&mut self) {
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

impl<M: Datamover> Connection<M> {
    /// RFC 7143 11.18.
    pub(super) fn nop_out(&mut self, window: &CommandWindow, bhs: &Bhs) {
        let Ok(nop) = NopOut::parse(bhs) else { return };
        if nop.ttt != RESERVED_TAG {
            if !self.keepalive.answered(nop.ttt) {
                self.reject(window, bhs, RejectReason::InvalidPduField);
            }
            return;
        }
        if nop.itt == RESERVED_TAG {
            return;
        }
        let answer = NopIn {
            lun: 0,
            itt: nop.itt,
            ttt: RESERVED_TAG,
            stat_sn: self.take_stat_sn(),
            exp_cmd_sn: window.expected(),
            max_cmd_sn: window.max(),
        };
        // RFC 7143 11.18.5: the data come back, as far as the initiator can take them.
        let most = self.parameters.peer_max_recv_data_segment_length as usize;
        self.mover.send_control(answer.emit(), self.scratch.get(..most).unwrap_or(&self.scratch));
    }

    /// The watch's time may have come.
    pub(super) fn watch(&mut self, window: &CommandWindow, now: Instant) -> Result<(), EndReason> {
        if now < self.keepalive.check_at() {
            return Ok(());
        }
        match self.keepalive.check(self.mover.sent(), self.mover.backlog(), now) {
            Finding::Well => Ok(()),
            Finding::Gone(reason) => Err(reason),
            Finding::AskNow(ttt) => {
                // RFC 7143 11.19.2: a NOP-In that asks tells the next StatSN and does not take it.
                let ask = NopIn {
                    lun: 0,
                    itt: RESERVED_TAG,
                    ttt,
                    stat_sn: self.stat_sn,
                    exp_cmd_sn: window.expected(),
                    max_cmd_sn: window.max(),
                };
                self.mover.send_control(ask.emit(), &[]);
                if let Some(asked) = &mut self.keepalive.asked {
                    asked.leaves = self.mover.sent() + self.mover.backlog() as u64;
                }
                Ok(())
            }
        }
    }
}
