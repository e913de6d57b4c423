//! iWARP in user space: MPA, DDP and RDMAP over an ordinary TCP socket (RFC 5044, 5041, 5040, 6581), for both ends.
//!
//! [`IwarpQueue`] is a queue pair that needs no RDMA hardware, no kernel module and no rights: bytes of the stream come
//! in through a [`ReceiveWindow`], and go out through a [`SendList`]. Between them stand
//!
//! - `mpa`: the startup frames of revisions 1 and 2 and what the two ends agree on;
//! - `header`, `fault`: headers of DDP and RDMAP, and the Terminate message with its codes;
//! - `staging`, `receive`: the one receive buffer, and framing: payload goes to where it belongs;
//! - `place`: what a segment is for, and whether it may be: buffers, sequence, order;
//! - `stags`: the table of advertised buffers;
//! - `work`, `pump`, `send`: posted work, how it becomes FPDUs, and the queue of what is to be sent.
//!
//! # Rules beyond those of [`crate::queue`]
//!
//! - Payload is received straight into its final memory and sent straight from it. What came together with headers is
//!   copied out of staging, and short Sends and Writes are copied into the send queue ([`IwarpConfig::copy_limit`]).
//!   Under the CRC, payload for *lent* memory is verified in staging before it is placed, and payload out of lent
//!   memory is copied before its CRC is made: such memory may change at any time. [`IwarpQueue::copied`] counts.
//! - Nothing allocates per FPDU once rings and buffers have their size.
//! - Markers are not supported: a peer that requires them is refused (RFC 5044 7.1.1 lets a receiver do without, and
//!   those of software do).
//! - A responder sends nothing before the initiator's first FPDU (RFC 5044 7.1.2), an initiator nothing before the
//!   reply.
//! - RDMA Read Responses for the peer and our own work take turns, message by message; the peer's reads under way are
//!   bounded by the IRD.
//! - [`QueuePair::disconnect`] sends Sends and Writes that are posted. RDMA Reads that have not got their data by then
//!   come back flushed, and with them all work behind them, sent as it may be.
//! - An initiator that was not answered yet can [`nudge`](QueuePair::nudge) the responder, with an empty RDMA Write.
//! - A peer that breaks a rule is told so with a Terminate, then the queue pair ends.
//!
//! The queue keeps no time: whoever drives it bounds how long the startup, and the end, may take, and calls
//! [`QueuePair::abort`].

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use iscsi_memory::{Buf, Payload, ReceiveSlice, ReceiveWindow, SendList};
use iscsi_proto::connection::StreamEnd;

use crate::queue::{
    Completion, EndCause, Established, Inline, QueueLimits, QueuePair, RegisterError, RemoteAccess, RemoteBuffer, Stag,
    StreamQueue, Work,
};
use crate::random::Random;

mod fault;
mod header;
mod mpa;
mod place;
mod pump;
mod receive;
mod send;
mod staging;
mod stags;
mod work;

#[cfg(test)]
mod tests;

pub use mpa::begins_mpa;

use fault::{Fault, Terminate};
use mpa::{Agreement, Answer, Frame};
use work::{Pending, Works};

/// EMSS that is taken when nothing is known of the connection: TCP over IPv4 over Ethernet.
const UNKNOWN_EMSS: u32 = 1460;

/// Upper bound of [`IwarpConfig::copy_limit`]: the send queue has room for several such payloads.
const MAX_COPY_LIMIT: usize = 16 << 10;

/// How an [`IwarpQueue`] is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IwarpConfig {
    /// Private data to send with the request or reply: at most 508 bytes. Default: none. iSER sends four (RFC 7145,
    /// appendix A).
    pub private_data: Vec<u8>,
    /// Whether the CRC is wanted. It is used when either end wants it (RFC 5044 7.1.1). Default: no.
    pub crc: bool,
    /// As initiator: ask by revision 2 of MPA (RFC 6581), which agrees on how many RDMA Reads may be under way. A peer
    /// without it closes the connection; [`IwarpQueue::wants_revision_one`] tells. A responder answers in the revision
    /// in which it is asked. Default: yes.
    pub revision_two: bool,
    /// As initiator, with revision 2: begin with an empty RDMA Write, so that the responder may send before we have
    /// anything to say (RFC 6581 9.2). An iSER initiator speaks first anyway. Default: no.
    pub peer_to_peer: bool,
    /// RDMA Reads that the peer may have under way (IRD): at most 16382; default 32.
    pub ird: u16,
    /// RDMA Reads of ours that may be under way at most (ORD): at most 16382; default 32. Revision 2 lowers it to what
    /// the peer takes.
    pub ord: u16,
    /// TCP's effective maximum segment size in bytes, as `TCP_MAXSEG` gives it: an FPDU fills a segment (RFC 5044 4.5).
    /// Default 1460.
    pub emss: u32,
    /// Bounds of what may be posted; default 256 receives, 512 other work, 4 GiB - 1 bytes of transfer. Rings are sized
    /// for them.
    pub limits: QueueLimits,
    /// Buffers that may be advertised at a time; default 256.
    pub advertisements: u16,
    /// Messages and Writes of at most so many bytes are copied next to their headers: that costs less than a piece of
    /// their own in a [`SendList`], which holds few. At most 16 KiB; zero: none are. Default 2 KiB.
    pub copy_limit: usize,
    /// Receive buffer in bytes, at least 4 KiB; default 128 KiB. Under the CRC it grows to what one FPDU takes.
    pub staging_size: usize,
    /// Where STags and offsets come from: different for each connection, and not to be foreseen by the peer.
    pub seed: u64,
}

impl Default for IwarpConfig {
    fn default() -> Self {
        Self {
            private_data: Vec::new(),
            crc: false,
            revision_two: true,
            peer_to_peer: false,
            ird: 32,
            ord: 32,
            emss: UNKNOWN_EMSS,
            limits: QueueLimits { work: 512, receives: 256, transfer: u32::MAX as usize },
            advertisements: 256,
            copy_limit: 2 << 10,
            staging_size: 128 << 10,
            seed: 0,
        }
    }
}

impl IwarpConfig {
    fn ird(&self) -> u16 {
        self.ird.min(mpa::MAX_DEPTH)
    }

    fn most_copied(&self) -> usize {
        self.copy_limit.min(MAX_COPY_LIMIT)
    }

    fn ord(&self) -> u16 {
        self.ord.min(mpa::MAX_DEPTH)
    }
}

/// Who opened the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Initiator,
    Responder,
}

/// Where the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Startup frames are under way.
    Startup,
    /// FPDUs come and go.
    Open,
    /// We asked for the end: what is posted is sent.
    Closing,
    /// A Terminate, or a rejecting reply, is the last thing to be sent; what comes is dropped.
    Last(EndCause),
    /// Nothing moves any more; what is posted is given back.
    Over(EndCause),
    /// The end was told.
    Ended,
}

/// A queue pair over a byte stream: iWARP in user space. See the [module](self).
///
/// ```
/// use iscsi_memory::{Buf, Lease, Payload};
/// use iser_transport::iwarp::{IwarpConfig, IwarpQueue};
/// use iser_transport::queue::{Completion, QueuePair, StreamQueue, Work};
///
/// let mut client = IwarpQueue::connect(IwarpConfig::default());
/// let mut server = IwarpQueue::accept(IwarpConfig::default());
/// server.post_receive(Buf::zeroed(512));
/// let message = Lease::part(Payload::Buf(Buf::zeroed(512)), 0, 48);
/// client.post(Work::Send { id: 7, message, invalidate: None });
/// client.ring();
///
/// // What a driver does with a socket:
/// fn carry(from: &mut IwarpQueue, to: &mut IwarpQueue) {
///     let mut list = Default::default();
///     from.fill_send_list(&mut list);
///     let mut sent = 0;
///     for piece in list.as_slice() {
///         let mut bytes = vec![0; piece.len()];
///         piece.copy_to(&mut bytes);
///         let n = to.receive_window().fill(&bytes);
///         to.handle_received(n);
///         sent += n;
///     }
///     from.handle_sent(sent);
/// }
/// carry(&mut client, &mut server); // the request
/// carry(&mut server, &mut client); // the reply
/// carry(&mut client, &mut server); // the message
/// assert!(matches!(server.poll(), Some(Completion::Established(_))));
/// assert!(matches!(server.poll(), Some(Completion::Received { len: 48, .. })));
/// assert!(matches!(client.poll(), Some(Completion::Established(_))));
/// assert!(matches!(client.poll(), Some(Completion::Done { id: 7, .. })));
/// ```
#[derive(Debug)]
pub struct IwarpQueue {
    role: Role,
    config: IwarpConfig,
    state: State,
    /// RDMA Reads of ours, and of the peer, that may be under way.
    ord: u16,
    ird: u16,
    crc: bool,
    /// Largest ULPDU that we send.
    mulpdu: usize,
    peer_private: Vec<u8>,
    wants_revision_one: bool,
    /// An FPDU of the peer has come.
    heard: bool,
    receive: receive::Receive,
    send: send::SendQueue,
    pump: pump::Pump,
    receives: VecDeque<Buf>,
    /// Receives that are posted and have no memory yet, and the bytes of each.
    spare: usize,
    receive_len: usize,
    works: Works,
    reads: VecDeque<Pending>,
    stags: stags::Stags,
    /// What was completed, apart from work, which its ring completes.
    events: VecDeque<Completion>,
    /// Payload bytes of Writes and Reads that were copied.
    copied: u64,
}

impl IwarpQueue {
    /// The end that opened the TCP connection: it sends the MPA request at once.
    ///
    /// # Panics
    /// If there are more than 508 bytes of private data.
    #[must_use]
    pub fn connect(config: IwarpConfig) -> Self {
        let mut queue = Self::new(Role::Initiator, config);
        let request = mpa::request(&queue.config).emit();
        queue.send.grab(request.len()).copy_from_slice(&request);
        queue
    }

    /// The end that accepted the TCP connection: it waits for the MPA request, and accepts it.
    ///
    /// # Panics
    /// If there are more than 508 bytes of private data.
    #[must_use]
    pub fn accept(config: IwarpConfig) -> Self {
        Self::new(Role::Responder, config)
    }

    fn new(role: Role, config: IwarpConfig) -> Self {
        assert!(
            config.private_data.len() <= mpa::MAX_PRIVATE - mpa::ENHANCED,
            "an MPA startup frame holds at most 508 bytes of private data"
        );
        let random = Random::new(config.seed);
        Self {
            role,
            state: State::Startup,
            ord: 0,
            ird: 0,
            crc: false,
            mulpdu: mulpdu(config.emss),
            peer_private: Vec::new(),
            wants_revision_one: false,
            heard: false,
            receive: receive::Receive::new(config.staging_size),
            send: send::SendQueue::new(),
            pump: pump::Pump::new(),
            receives: VecDeque::new(),
            spare: 0,
            receive_len: 0,
            works: Works::default(),
            reads: VecDeque::new(),
            stags: stags::Stags::new(config.advertisements, random),
            events: VecDeque::new(),
            copied: 0,
            config,
        }
    }

    /// TCP's effective maximum segment size is this now, in bytes. FPDUs from here on fit it.
    pub fn set_emss(&mut self, emss: u32) {
        self.mulpdu = mulpdu(emss);
    }

    /// The private data that the peer sent with its request or reply; empty before it came.
    #[must_use]
    pub fn peer_private_data(&self) -> &[u8] {
        &self.peer_private
    }

    /// After the end: the peer seems to know only revision 1 of MPA. A new connection with
    /// [`IwarpConfig::revision_two`] off may do (RFC 6581 10).
    #[must_use]
    pub fn wants_revision_one(&self) -> bool {
        self.wants_revision_one
    }

    /// Whether FPDUs carry a CRC. Known from [`Completion::Established`] on.
    #[must_use]
    pub fn uses_crc(&self) -> bool {
        self.crc
    }

    /// Takes a startup frame in, if it is whole.
    fn start_up(&mut self) {
        let reply = self.role == Role::Initiator;
        let frame = match Frame::parse(self.receive.staging.unread(), reply) {
            Ok(None) => return self.receive.staging.make_room(mpa::LONGEST),
            Err(text) => return self.end(EndCause::PeerProtocol(text)),
            Ok(Some(frame)) => frame,
        };
        let (frame, len) = frame;
        self.peer_private.clear();
        self.peer_private.extend_from_slice(frame.private);
        match self.role {
            Role::Responder => {
                let (answer, agreement) = mpa::answer(&self.config, &frame);
                let bytes = answer.emit();
                self.receive.staging.consume(len);
                if self.receive.staging.len() > 0 {
                    // RFC 5044 7.1.2: what it is to send is known only from our reply.
                    return self
                        .end(EndCause::PeerProtocol("bytes came behind the MPA request before it was answered"));
                }
                self.send.grab(bytes.len()).copy_from_slice(&bytes);
                match agreement {
                    Some(agreement) => self.establish(agreement),
                    None => {
                        let text = "the peer wants MPA markers, which are not supported";
                        self.state = State::Last(EndCause::PeerProtocol(text));
                    }
                }
            }
            Role::Initiator => {
                let (unenhanced, crc) = (self.config.revision_two && frame.enhanced.is_none(), frame.crc);
                let answer = mpa::conclude(&self.config, &frame);
                self.receive.staging.consume(len);
                match answer {
                    Answer::Accepted(agreement) => self.establish(agreement),
                    Answer::Rejected => {
                        self.wants_revision_one = unenhanced;
                        self.end(EndCause::Rejected);
                    }
                    Answer::Malformed(text) => {
                        self.wants_revision_one = unenhanced;
                        self.end(EndCause::PeerProtocol(text));
                    }
                    Answer::Refused(fault) => {
                        self.crc = self.config.crc || crc;
                        self.terminate(fault, &Terminate::new(fault, &[]));
                    }
                }
            }
        }
    }

    fn establish(&mut self, agreement: Agreement) {
        self.ord = agreement.ord;
        self.ird = agreement.ird;
        self.crc = agreement.crc;
        self.state = State::Open;
        self.events.push_back(Completion::Established(Established {
            peer_private: self.peer_private.first().copied(),
            read_depth: agreement.ord,
            served_depth: agreement.ird,
        }));
        if agreement.empty_write {
            self.emit_empty_write();
        }
    }

    /// The peer broke a rule: it is told, and nothing of it is taken any more.
    #[cold]
    fn terminate(&mut self, fault: Fault, message: &Terminate) {
        self.emit_terminate(message);
        self.state = State::Last(EndCause::PeerProtocol(fault.text));
        self.pump.forget_responses();
    }

    /// The end, at once.
    fn end(&mut self, cause: EndCause) {
        if matches!(self.state, State::Over(_) | State::Ended) {
            return;
        }
        self.state = State::Over(cause);
        self.send.clear();
        self.reads.clear();
        self.pump.forget();
        self.receive.staging.clear();
    }

    /// Whether there is anything left to do before the end.
    fn settle(&mut self) {
        match self.state {
            State::Last(cause) if self.send.is_empty() => self.end(cause),
            State::Closing if self.send.is_empty() && self.pump.is_idle() && self.works.peek().is_none() => {
                self.end(EndCause::Closed);
            }
            _ => {}
        }
    }

    /// Whether FPDUs are taken in.
    #[inline]
    fn takes_in(&self) -> bool {
        matches!(self.state, State::Open | State::Closing)
    }

    /// Sends what may be sent, as far as the queue of it has room.
    fn advance(&mut self) {
        if self.takes_in() && (self.role == Role::Initiator || self.heard) {
            self.pump();
        }
        self.settle();
    }
}

/// The largest ULPDU whose FPDU fits a TCP segment, without markers (RFC 5044 4.5), and such that a message's segments
/// before the last need no padding.
fn mulpdu(emss: u32) -> usize {
    let emss = (emss & !3) as usize;
    // RFC 5044 4.1: between 128 and 64768 octets.
    emss.saturating_sub(header::LENGTH + header::CRC).clamp(130, 64766)
}

impl QueuePair for IwarpQueue {
    fn limits(&self) -> QueueLimits {
        self.config.limits
    }

    fn post_receive(&mut self, buf: Buf) {
        self.receives.push_back(buf);
    }

    /// They have memory when messages come.
    fn post_receives(&mut self, count: usize, len: usize) {
        self.receive_len = len;
        self.spare += count;
        self.receive.staging.set_small(false);
        self.send.set_small(false);
    }

    fn post_single(&mut self, len: usize) {
        self.receive_len = len;
        self.spare += 1;
        self.receive.staging.set_small(true);
        self.send.set_small(true);
    }

    fn trim(&mut self) {
        self.receive.staging.trim();
        self.send.trim();
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
        if self.receive_len != 0 && self.receive.is_between() && self.receive.message.0 == 0 {
            let posted = self.receives.len();
            self.receives.retain(|buf| buf.len() < self.receive_len);
            self.spare += posted - self.receives.len();
            self.receives.shrink_to_fit();
        }
    }

    fn post(&mut self, work: Work) {
        if let Err(text) = self.works.post(work) {
            self.end(EndCause::WorkFailed(text));
        }
    }

    #[inline]
    fn post_inline(&mut self, kind: Inline, len: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool {
        self.send_inline(kind, len, fill)
    }

    fn ring(&mut self) {
        self.advance();
    }

    fn advertise(&mut self, memory: Payload, access: RemoteAccess) -> Result<RemoteBuffer, RegisterError> {
        self.stags.advertise(memory, access)
    }

    fn withdraw(&mut self, stag: Stag) -> Option<Payload> {
        let (slot, memory) = self.stags.withdraw(stag.0)?;
        self.send.detach(slot, &memory);
        if self.takes_in() && self.receive.is_filling(slot) {
            let fault = fault::TAGGED_STAG;
            self.terminate(fault, &Terminate::new(fault, &[]));
        }
        Some(memory)
    }

    fn poll(&mut self) -> Option<Completion> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        let over = matches!(self.state, State::Over(_) | State::Ended);
        if let Some(completion) = self.works.poll(self.send.sent_up_to(), over) {
            return Some(completion);
        }
        if !over {
            return None;
        }
        if let Some(buf) = self.receives.pop_front() {
            return Some(Completion::ReceiveFlushed(buf));
        }
        if self.spare > 0 {
            self.spare -= 1;
            return Some(Completion::ReceiveFlushed(Buf::zeroed(0)));
        }
        let State::Over(cause) = self.state else { return None };
        self.state = State::Ended;
        Some(Completion::Ended(cause))
    }

    fn nudge(&mut self) {
        // Linux's soft iWARP answers the MPA request before it looks for FPDUs: one that comes in between is not looked
        // at until another one comes.
        let may_be_overlooked = self.role == Role::Initiator && self.state == State::Open && !self.heard;
        if may_be_overlooked && self.send.is_empty() && self.pump.is_idle() {
            self.emit_empty_write();
        }
    }

    fn disconnect(&mut self) {
        match self.state {
            State::Open => {
                self.state = State::Closing;
                self.pump.forget_responses();
                self.advance();
            }
            State::Startup => self.end(EndCause::Closed),
            State::Closing | State::Last(_) | State::Over(_) | State::Ended => {}
        }
    }

    fn abort(&mut self) {
        match self.state {
            State::Last(cause) => self.end(cause),
            _ => self.end(EndCause::Closed),
        }
    }

    /// Those of RDMA Writes and Reads that were not received into, or sent from, their own memory. Messages are not
    /// counted: they are headers, and data whose way to their place is not known here.
    fn copied(&self) -> u64 {
        self.copied
    }
}

impl StreamQueue for IwarpQueue {
    fn receive_window(&mut self) -> ReceiveWindow<'_> {
        if matches!(self.state, State::Over(_) | State::Ended) {
            return ReceiveWindow { payload: ReceiveSlice::Private(&mut []), staging: &mut [] };
        }
        self.window()
    }

    fn handle_received(&mut self, n: usize) {
        self.received(n);
        if self.state == State::Startup {
            self.start_up();
        }
        if self.takes_in() {
            self.parse();
        }
        if matches!(self.state, State::Last(_)) {
            self.receive.staging.clear();
        }
        self.advance();
    }

    fn handle_stream_end(&mut self, end: StreamEnd) {
        let cause = match (self.state, end) {
            (State::Last(cause), _) => cause,
            (State::Closing, StreamEnd::EndOfStream) => EndCause::Closed,
            (State::Startup, StreamEnd::EndOfStream) if self.role == Role::Initiator => {
                // RFC 6581 10: who does not know revision 2 closes the connection.
                self.wants_revision_one = self.config.revision_two && self.receive.staging.len() == 0;
                EndCause::Rejected
            }
            (_, StreamEnd::EndOfStream) if self.receive.is_between() => EndCause::PeerClosed,
            _ => EndCause::Broken,
        };
        self.end(cause);
    }

    fn fill_send_list<'a>(&'a self, list: &mut SendList<'a>) {
        self.send.fill(&self.works, &self.stags, list);
    }

    fn handle_sent(&mut self, n: usize) {
        self.send.sent(n);
        self.advance();
    }

    fn is_sending(&self) -> bool {
        !self.send.is_empty()
    }

    fn backlog(&self) -> usize {
        self.send.len().saturating_add(self.works.waiting()).saturating_add(self.pump.waiting())
    }
}
