//! A connection: its mover, and what RFC 7143 counts, negotiates and watches by connection, whichever session it
//! belongs to.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::task::Waker;
use core::time::Duration;

use iscsi_proto::datamover::{Datamover, Notification, PutData, SequenceNumbers, Source, TaskStatus};
use iscsi_proto::keys::Negotiator;
use iscsi_proto::parameters::{Digest, Parameters};
use iscsi_proto::pdu::{AsyncEvent, AsyncMessage, Bhs, Opcode, RESERVED_TAG, Reject, RejectReason};
use iscsi_proto::serial::Serial;
use iscsi_proto::text::TextLimits;
use iscsi_proto::text::exchange::TextResponder;
use iscsi_proto::time::Instant;
use iscsi_proto::unexpected::UnexpectedPdus;

use super::Limits;
use super::command_window::CommandWindow;
use super::keepalive::Keepalive;
use super::logout::Logout;

/// Whether a connection is silent is not looked at more often.
const SHORTEST_SILENCE: Duration = Duration::from_millis(10);
/// Bytes that may wait to be sent whatever other sessions have.
const LITTLE: usize = 64 << 10;

/// A connection. What is not its mover's means something from [`open`](Self::open) on: before that, the login has
/// numbers of its own.
pub(super) struct Connection<M> {
    pub(super) mover: M,
    /// CID, as its login told it.
    pub(super) cid: u16,
    pub(super) stat_sn: Serial,
    /// Asynchronous Messages and Rejects that the initiator does not wait for and has not acknowledged.
    pub(super) unexpected: UnexpectedPdus,
    /// What its login settled on, and Text Requests since.
    pub(super) parameters: Parameters,
    pub(super) text: TextResponder,
    /// The negotiation of the text exchange under way: nothing of it holds before its end.
    pub(super) negotiation: Option<Box<Negotiator>>,
    pub(super) keepalive: Keepalive,
    pub(super) logout: Logout,
    /// Data of the request at hand, when the mover is needed to answer it.
    pub(super) scratch: Vec<u8>,
    /// When data that the peer owes to aborted tasks must have come, while somebody waits for them.
    pub(super) owed_until: Option<Instant>,
    /// What was said last is to be sent before the connection ends, whatever for.
    pub(super) has_last_words: bool,
    /// When to look again whether data that commands wait for get on; none when no task is there.
    pub(super) data_check: Option<Instant>,
    /// The ExpStatSN that acknowledges what was told last of a flush that failed; none when all of it is acknowledged.
    pub(super) flush_told: Option<Serial>,
    /// Until when the session is known for data that did not come in time.
    pub(super) late_until: Instant,
    /// How much had been sent when somebody looked last, and since when it is so much.
    pub(super) data_sent: (u64, Instant),
    /// When data of some command were last seen to have come.
    pub(super) data_moved: Instant,
    /// How often sessions had been told to wait for buffers at the last look.
    pub(super) refusals: usize,
    /// When to look whether all is silent, so that memory is given back; none when that is done.
    pub(super) silence_at: Option<Instant>,
    /// Wakes whoever drives it.
    pub(super) waker: Waker,
    /// When its driver last had something to say.
    pub(super) now: Instant,
    idle_after: Duration,
    send_backlog: usize,
    stalled: bool,
}

impl<M> Connection<M> {
    /// A connection that has just been accepted.
    pub(super) fn new(mover: M, limits: &Limits, now: Instant) -> Self {
        Self {
            mover,
            cid: 0,
            stat_sn: Serial(0),
            unexpected: UnexpectedPdus::new(0),
            parameters: Parameters::default(),
            text: TextResponder::new(TextLimits::default()),
            negotiation: None,
            keepalive: Keepalive::new(limits, false, now),
            logout: Logout::None,
            scratch: Vec::new(),
            owed_until: None,
            has_last_words: false,
            data_check: None,
            flush_told: None,
            late_until: Instant::ZERO,
            data_sent: (0, Instant::ZERO),
            data_moved: Instant::ZERO,
            refusals: 0,
            silence_at: None,
            waker: Waker::noop().clone(),
            now,
            idle_after: limits.idle_after.max(SHORTEST_SILENCE),
            send_backlog: limits.send_backlog.max(1),
            stalled: false,
        }
    }

    /// The next StatSN, taken.
    #[inline]
    pub(super) fn take_stat_sn(&mut self) -> Serial {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.next();
        stat_sn
    }

    /// Whether data may land in a store's memory as they come: not where a digest may still refuse them.
    #[inline]
    pub(super) fn places_directly(&self) -> bool {
        self.parameters.data_digest == Digest::None
    }

    /// Whether requests wait until the initiator has taken what is sent to it.
    #[inline]
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// The stream has ended: what is left is worked off whatever waits to be sent.
    pub(super) fn unstall(&mut self) {
        self.send_backlog = usize::MAX;
    }

    /// When something is to be done even if nothing happens.
    pub(super) fn deadline(&self) -> Instant {
        let logout = self.logout.deadline();
        let others = [self.owed_until, self.data_check, self.silence_at, logout].into_iter().flatten();
        others.fold(self.keepalive.check_at(), Instant::min)
    }

    /// Bytes came.
    #[inline]
    pub(super) fn heard(&mut self, now: Instant) {
        self.keepalive.heard(now);
        if self.silence_at.is_none() {
            self.silence_at = Some(now + self.idle_after);
        }
    }

    /// Forgets the text exchange under way, and what was negotiated in it.
    pub(super) fn reset_text(&mut self) {
        self.text.reset();
        self.negotiation = None;
    }

    /// Whether the initiator has a receive for a Reject or an Asynchronous Message that it does not wait for. The last
    /// one is for a NOP-In that asks: its answer brings the ExpStatSN that retires the others (RFC 7145 8.1.2), and
    /// only one is under way at a time.
    fn may_surprise(&self) -> bool {
        self.unexpected.room() > 1
    }
}

impl<M: Datamover> Connection<M> {
    /// The Full Feature Phase begins: `stat_sn` is the one behind the last login response.
    pub(super) fn open(
        &mut self,
        (cid, parameters, stat_sn): (u16, Parameters, Serial),
        window: &CommandWindow,
        keepalive: Keepalive,
        now: Instant,
    ) {
        self.cid = cid;
        self.stat_sn = stat_sn;
        self.unexpected = UnexpectedPdus::new(parameters.peer_max_outstanding_unexpected_pdus);
        self.parameters = parameters;
        self.keepalive = keepalive;
        self.now = now;
        self.announce(window);
    }

    /// What the mover has to tell, unless too much waits to be sent.
    #[inline]
    pub(super) fn poll_notify(&mut self) -> Option<Notification> {
        let backlog = self.mover.backlog();
        self.stalled = backlog >= self.send_backlog || (backlog >= LITTLE && self.is_short(LITTLE));
        if self.stalled { None } else { self.mover.poll_notify() }
    }

    /// Whether the session has more buffers than its own, and is to give some back before it takes so many bytes more.
    #[cold]
    fn is_short(&self, len: usize) -> bool {
        // At the end of the stream nobody waits.
        self.send_backlog != usize::MAX && self.mover.buffers().is_some_and(|buffers| buffers.room(len) < len)
    }

    /// Looks whether the connection has been silent for so long that memory is to be given back, and sets when it is
    /// looked at again.
    pub(super) fn is_silent(&mut self, now: Instant) -> bool {
        let since = self.keepalive.heard_at() + self.idle_after;
        let silent = now >= since;
        self.silence_at = Some(if silent { now + self.idle_after } else { since });
        silent
    }

    /// Tells the mover the numbers as they are.
    #[inline]
    pub(super) fn announce(&mut self, window: &CommandWindow) {
        self.mover.set_sequence(SequenceNumbers {
            stat_sn: self.stat_sn,
            exp_cmd_sn: window.expected(),
            max_cmd_sn: window.max(),
            exp_stat_sn: Serial(0),
        });
    }

    /// Sends a part of a command's data, behind which others follow.
    pub(super) fn put_part(
        &mut self,
        window: &CommandWindow,
        (lun, itt): (u64, u32),
        data: Source<'_>,
        buffer_offset: u32,
    ) {
        self.announce(window);
        self.mover.put_data(PutData { lun, itt, buffer_offset, data, status: None });
    }

    /// Sends a command's data, or the last of them, and its status, which takes a StatSN.
    #[inline]
    pub(super) fn put_data(
        &mut self,
        window: &CommandWindow,
        (lun, itt): (u64, u32),
        (data, buffer_offset): (Source<'_>, u32),
        status: TaskStatus<'_>,
    ) {
        self.announce(window);
        self.mover.put_data(PutData { lun, itt, buffer_offset, data, status: Some(status) });
        self.stat_sn = self.stat_sn.next();
        self.announce(window);
    }

    /// Answers a request that cannot be done; its header goes back with the reason (RFC 7143 11.17).
    ///
    /// RFC 7145 8.1.2: without a word where the initiator is not known to have a receive for it.
    #[cold]
    pub(super) fn reject(&mut self, window: &CommandWindow, bhs: &Bhs, reason: RejectReason) {
        // RFC 7145 8.1.1: an initiator keeps a receive for the answer to a request, be it a Reject, but one for each.
        let awaited = awaits_answer(bhs) && reason != RejectReason::TaskInProgress;
        if !awaited && !self.may_surprise() {
            return self.mover.drop_request(bhs);
        }
        let stat_sn = self.take_stat_sn();
        if !awaited {
            self.unexpected.sent(stat_sn);
        }
        let reject = Reject { reason, stat_sn, exp_cmd_sn: window.expected(), max_cmd_sn: window.max(), data_sn: 0 };
        self.mover.send_control(reject.emit(), &bhs.0);
        self.announce(window);
    }

    /// Tells the initiator something (RFC 7143 11.9), unless it has no receive for it.
    pub(super) fn send_async(&mut self, window: &CommandWindow, event: AsyncEvent, lun: u64, parameter3: u16) {
        if !self.may_surprise() {
            return;
        }
        let stat_sn = self.take_stat_sn();
        self.unexpected.sent(stat_sn);
        let message = AsyncMessage {
            event,
            lun,
            stat_sn,
            exp_cmd_sn: window.expected(),
            max_cmd_sn: window.max(),
            parameter1: 0,
            parameter2: 0,
            parameter3,
        };
        self.mover.send_control(message.emit(), &[]);
        self.announce(window);
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
