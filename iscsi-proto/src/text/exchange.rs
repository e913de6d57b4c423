//! Text Requests and Responses in the Full Feature Phase (RFC 7143 6.4, 11.10, 11.11): one sans-IO machine for each
//! role.
//!
//! The machines leave CmdSN, StatSN and their kin zero: the session fills them in.

use alloc::vec::Vec;

use super::{TextBuffer, TextError, TextLimits, TextPieces, TextWriter};
use crate::misbehavior::Misbehavior;
use crate::pdu::{RESERVED_TAG, TextRequest, TextResponse};
use crate::serial::Serial;

/// Why a text exchange cannot go on. A target answers it with Reject, reason Protocol Error, and
/// [`TextResponder::reset`]s itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextExchangeError {
    /// The text is malformed or too long.
    #[error("the text is wrong: {0}")]
    Text(#[from] TextError),
    /// The Target Transfer Tag, or the task tag with it, names no exchange under way.
    #[error("the text request continues an exchange that is not under way (tag {0:#010x})")]
    StaleTag(u32),
    /// A rule of the exchange was broken.
    #[error("protocol error in a text exchange: {0}")]
    Protocol(#[from] Misbehavior),
    /// It does not end.
    #[error("the text exchange did not end within {0} PDUs")]
    TooManyPdus(u32),
}

/// What a [`TextResponder`] made of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponderStep {
    /// Send this response.
    Respond(TextResponse, Vec<u8>),
    /// The request's text is whole: read [`TextResponder::request`] and call [`TextResponder::answer`].
    Complete,
}

/// The target's side: gathers a question that comes in several requests, and hands a long answer out in several
/// responses.
///
/// One exchange is under way at a time, as RFC 7143 11.10 has it for a connection; a request without a Target Transfer
/// Tag begins anew.
#[derive(Debug)]
pub struct TextResponder {
    exchange: Option<Exchange>,
    request: TextBuffer,
    next_ttt: u32,
}

#[derive(Debug)]
struct Exchange {
    itt: u32,
    ttt: u32,
    is_final: bool,
    gathering: bool,
    pieces: TextPieces,
}

impl TextResponder {
    /// Nothing is under way. `limits` bound what a request may hold.
    #[must_use]
    pub const fn new(limits: TextLimits) -> Self {
        Self { exchange: None, request: TextBuffer::new(limits), next_ttt: 1 }
    }

    /// A Text Request came.
    ///
    /// # Errors
    /// [`TextExchangeError`]; the exchange is over.
    pub fn handle_request(&mut self, request: &TextRequest, data: &[u8]) -> Result<ResponderStep, TextExchangeError> {
        let step = self.take(request, data);
        if step.is_err() {
            self.reset();
        }
        step
    }

    fn take(&mut self, request: &TextRequest, data: &[u8]) -> Result<ResponderStep, TextExchangeError> {
        let mut exchange = match self.exchange.take() {
            // RFC 7143 11.10.4: the reserved tag begins anew.
            _ if request.ttt == RESERVED_TAG => {
                self.request.clear();
                Exchange {
                    itt: request.itt,
                    ttt: self.make_ttt(),
                    is_final: false,
                    gathering: false,
                    pieces: TextPieces::default(),
                }
            }
            Some(exchange) if exchange.ttt == request.ttt && exchange.itt == request.itt => exchange,
            _ => return Err(TextExchangeError::StaleTag(request.ttt)),
        };
        exchange.is_final = request.is_final;
        if exchange.pieces.has_more() {
            // RFC 7143 6.2: the answer to a C bit has no data.
            if !data.is_empty() || request.incomplete {
                return Err(TextExchangeError::Protocol(Misbehavior::TextWhileAnswerContinues));
            }
            let step = self.respond(exchange);
            return Ok(step);
        }
        if !exchange.gathering {
            self.request.clear();
        }
        self.request.push(data)?;
        exchange.gathering = request.incomplete;
        if request.incomplete {
            let (itt, ttt) = (exchange.itt, exchange.ttt);
            self.exchange = Some(exchange);
            return Ok(ResponderStep::Respond(response(itt, ttt, false, false), Vec::new()));
        }
        self.request.check()?;
        self.exchange = Some(exchange);
        Ok(ResponderStep::Complete)
    }

    /// The request's text, after [`ResponderStep::Complete`].
    #[must_use]
    pub const fn request(&self) -> &TextBuffer {
        &self.request
    }

    /// Answers the request, in pieces of `segment_limit` bytes (the initiator's MaxRecvDataSegmentLength). `None` when
    /// no request waits.
    pub fn answer(&mut self, answer: TextWriter, segment_limit: usize) -> Option<(TextResponse, Vec<u8>)> {
        let mut exchange =
            self.exchange.take().filter(|exchange| !exchange.gathering && !exchange.pieces.has_more())?;
        self.request.clear();
        exchange.pieces = answer.into_pieces(segment_limit);
        match self.respond(exchange) {
            ResponderStep::Respond(response, data) => Some((response, data)),
            ResponderStep::Complete => None,
        }
    }

    /// Forgets the exchange under way: after a Reject, a task management function, or long silence (RFC 7143 11.10.4).
    pub fn reset(&mut self) {
        self.exchange = None;
        self.request.clear();
    }

    fn respond(&mut self, mut exchange: Exchange) -> ResponderStep {
        let (piece, more) = exchange.pieces.next_piece();
        let data = piece.to_vec();
        // RFC 7143 11.11.1: F only in answer to F, and never with more to come.
        let is_final = exchange.is_final && !more;
        let (itt, ttt) = (exchange.itt, if is_final { RESERVED_TAG } else { exchange.ttt });
        if !is_final {
            if !more {
                exchange.pieces = TextPieces::default();
            }
            self.exchange = Some(exchange);
        }
        ResponderStep::Respond(response(itt, ttt, is_final, more), data)
    }

    const fn make_ttt(&mut self) -> u32 {
        let ttt = self.next_ttt;
        self.next_ttt = if ttt >= RESERVED_TAG - 1 { 1 } else { ttt + 1 };
        ttt
    }
}

const fn response(itt: u32, ttt: u32, is_final: bool, incomplete: bool) -> TextResponse {
    TextResponse {
        is_final,
        incomplete,
        lun: 0,
        itt,
        ttt,
        stat_sn: Serial(0),
        exp_cmd_sn: Serial(0),
        max_cmd_sn: Serial(0),
    }
}

/// What a [`TextAsker`] made of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskerStep {
    /// Send this request.
    Send(TextRequest, Vec<u8>),
    /// The answer is whole: read it with [`TextAsker::answer`].
    Done,
}

/// The initiator's side: one question, and its answer gathered from as many responses as it takes.
///
/// ```
/// use iscsi_proto::text::exchange::{AskerStep, ResponderStep, TextAsker, TextResponder};
/// use iscsi_proto::text::{TextLimits, TextWriter};
///
/// let mut question = TextWriter::new();
/// question.push("SendTargets", "All");
/// let (mut asker, request, data) = TextAsker::ask(7, question, 8192, TextLimits::default());
///
/// let mut responder = TextResponder::new(TextLimits::default());
/// assert_eq!(responder.handle_request(&request, &data), Ok(ResponderStep::Complete));
/// let mut answer = TextWriter::new();
/// answer.push("TargetName", "iqn.2024-01.com.example:disk");
/// let (response, data) = responder.answer(answer, 8192).unwrap();
///
/// assert_eq!(asker.handle_response(&response, &data), Ok(AskerStep::Done));
/// assert_eq!(asker.answer().pairs().unwrap().count(), 1);
/// ```
#[derive(Debug)]
pub struct TextAsker {
    itt: u32,
    pieces: TextPieces,
    answer: TextBuffer,
    responses: u32,
    done: bool,
}

impl TextAsker {
    /// The most responses of one exchange.
    pub const MAX_RESPONSES: u32 = 4096;

    /// Asks `question`, in pieces of `segment_limit` bytes (the target's MaxRecvDataSegmentLength). `limits` bound the
    /// answer. Returns the first request too.
    #[must_use]
    pub fn ask(
        itt: u32,
        question: TextWriter,
        segment_limit: usize,
        limits: TextLimits,
    ) -> (Self, TextRequest, Vec<u8>) {
        let pieces = question.into_pieces(segment_limit);
        let mut asker = Self { itt, pieces, answer: TextBuffer::new(limits), responses: 0, done: false };
        let (request, data) = asker.next_request(RESERVED_TAG, 0);
        (asker, request, data)
    }

    /// A Text Response came.
    ///
    /// # Errors
    /// [`TextExchangeError`]; the exchange is to be given up, by a new request with the same task tag or by closing the
    /// connection.
    pub fn handle_response(&mut self, response: &TextResponse, data: &[u8]) -> Result<AskerStep, TextExchangeError> {
        let protocol = |what| Err(TextExchangeError::Protocol(what));
        if self.done {
            return protocol(Misbehavior::TextAfterTheLast);
        }
        if response.itt != self.itt {
            return protocol(Misbehavior::TextOfOtherTask { got: response.itt, expected: self.itt });
        }
        // RFC 7143 11.11.1, 11.11.2.
        if !response.is_final && response.ttt == RESERVED_TAG {
            return protocol(Misbehavior::TextWithoutTransferTag);
        }
        self.responses += 1;
        if self.responses > Self::MAX_RESPONSES {
            return Err(TextExchangeError::TooManyPdus(Self::MAX_RESPONSES));
        }
        if self.pieces.has_more() {
            if response.is_final || response.incomplete || !data.is_empty() {
                return protocol(Misbehavior::AnswerBeforeRequestIsWhole);
            }
        } else {
            self.answer.push(data)?;
            if response.is_final {
                self.done = true;
                self.answer.check()?;
                return Ok(AskerStep::Done);
            }
        }
        let (request, data) = self.next_request(response.ttt, response.lun);
        Ok(AskerStep::Send(request, data))
    }

    /// The answer's text, whole after [`AskerStep::Done`].
    #[must_use]
    pub const fn answer(&self) -> &TextBuffer {
        &self.answer
    }

    fn next_request(&mut self, ttt: u32, lun: u64) -> (TextRequest, Vec<u8>) {
        let (piece, more) = self.pieces.next_piece();
        let request = TextRequest {
            immediate: false,
            is_final: !more,
            incomplete: more,
            lun,
            itt: self.itt,
            ttt,
            cmd_sn: Serial(0),
            exp_stat_sn: Serial(0),
        };
        (request, piece.to_vec())
    }
}
