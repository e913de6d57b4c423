//! The text grammar, its buffers and pieces, values, addresses, both ends of a text exchange, and the negotiation of keys.

use iscsi_proto::keys::{Key, NegotiationPhase, Negotiator, NegotiatorConfig, Role};
use iscsi_proto::login::Offer;
use iscsi_proto::name::IscsiName;
use iscsi_proto::parameters::{Parameters, SessionType};
use iscsi_proto::pdu::{RESERVED_TAG, TextRequest, TextResponse};
use iscsi_proto::serial::Serial;
use iscsi_proto::text::exchange::{AskerStep, ResponderStep, TextAsker, TextResponder};
use iscsi_proto::text::targets::{SendTargets, TargetAddress, TargetList};
use iscsi_proto::text::{Pairs, TextBuffer, TextLimits, TextWriter, value};

use crate::input::Input;

const LIMITS: TextLimits = TextLimits { max_bytes: 8192, max_pairs: 64 };

/// The first byte chooses what reads the rest.
pub fn text(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(4) {
        0 => grammar(input.rest()),
        1 => negotiate(&mut input),
        2 => responder(&mut input),
        _ => asker(&mut input),
    }
}

fn grammar(text: &[u8]) {
    let mut written = TextWriter::new();
    for pair in Pairs::new(text) {
        let Ok(pair) = pair else { break };
        assert!(!pair.key.is_empty() && !pair.value.contains('\0'));
        written.push(pair.key, pair.value);
        let value = pair.value;
        let _ = (value::boolean(value), value::number(value), value::range(value), value::list(value).count());
        let _ = (SendTargets::from_value(value), IscsiName::new(value).map(|name| name.to_string()));
        if let Ok(address) = value.parse::<TargetAddress>() {
            assert_eq!(address.to_string().parse(), Ok(address));
        }
        if let Some(key) = Key::from_name(pair.key) {
            assert_eq!(Key::from_name(key.name()), Some(key));
        }
    }
    let again: Vec<_> = Pairs::new(written.as_bytes()).map(|pair| pair.expect("what is written can be read")).collect();
    assert!(again.iter().copied().map(Ok).eq(Pairs::new(text).take(again.len())));
    // In pieces of any size the text is the same.
    for limit in [1, 3, 512] {
        let mut pieces = written.clone().into_pieces(limit);
        let mut buffer = TextBuffer::new(LIMITS);
        loop {
            let (piece, more) = pieces.next_piece();
            assert!(piece.len() <= limit);
            if buffer.push(piece).is_err() {
                break;
            }
            if !more {
                assert_eq!(buffer.as_bytes(), written.as_bytes());
                break;
            }
        }
    }
    let _ = TargetList::read(text);
    let mut buffer = TextBuffer::new(LIMITS);
    if buffer.push(text).is_ok()
        && let Ok(pairs) = buffer.pairs()
    {
        assert!(pairs.clone().count() <= LIMITS.max_pairs);
    }
    assert!(buffer.as_bytes().len() <= LIMITS.max_bytes);
}

/// Offers of both sides that are not the defaults.
fn offer(input: &mut Input<'_>) -> Offer {
    let max_burst_length = 512 + u32::from(input.u16());
    Offer {
        initial_r2t: input.flag(),
        immediate_data: input.flag(),
        max_recv_data_segment_length: 512 + u32::from(input.u16()),
        max_burst_length,
        first_burst_length: 512 + u32::from(input.u16()) % (max_burst_length - 511),
        max_outstanding_r2t: 1 + u16::from(input.u8()),
        data_pdu_in_order: input.flag(),
        data_sequence_in_order: input.flag(),
        rdma_extensions: input.flag(),
        ..Offer::default()
    }
}

fn negotiate(input: &mut Input<'_>) {
    let flags = input.u8();
    let session_type = if flags & 1 != 0 { SessionType::Discovery } else { SessionType::Normal };
    let config = NegotiatorConfig {
        role: if flags & 2 != 0 { Role::Target } else { Role::Initiator },
        phase: if flags & 4 != 0 { NegotiationPhase::FullFeature } else { NegotiationPhase::Login },
        session_type,
        leading: flags & 8 != 0,
        offer: offer(input),
        before: Parameters::default(),
    };
    let mut negotiator = Negotiator::new(config);
    let mut out = TextWriter::new();
    if flags & 2 == 0 {
        negotiator.offer(&mut out);
    }
    let mut first = true;
    while !input.is_empty() {
        let mut text = TextBuffer::new(LIMITS);
        let Ok(()) = text.push(input.chunk()) else { return };
        let Ok(pairs) = text.pairs() else { return };
        let mut answer = TextWriter::new();
        if negotiator.receive(pairs, &mut answer).is_err() {
            return;
        }
        if core::mem::take(&mut first) && flags & 2 != 0 {
            negotiator.propose(&mut answer);
        }
        assert!(Pairs::new(answer.as_bytes()).all(|pair| pair.is_ok()), "our own text can be read");
        let _ = negotiator.unanswered();
    }
    if let Ok(parameters) = negotiator.finish() {
        assert!(parameters.max_burst_length >= 512 && parameters.max_outstanding_r2t >= 1);
        assert!(parameters.max_recv_data_segment_length >= 512 && parameters.peer_max_recv_data_segment_length >= 512);
    }
}

fn responder(input: &mut Input<'_>) {
    let mut responder = TextResponder::new(LIMITS);
    let mut ttt = RESERVED_TAG;
    while !input.is_empty() {
        let flags = input.u8();
        let request = TextRequest {
            immediate: false,
            is_final: flags & 1 != 0,
            incomplete: flags & 2 != 0,
            lun: 0,
            itt: u32::from(flags >> 6),
            ttt: if flags & 4 != 0 {
                ttt
            } else if flags & 8 != 0 {
                input.u32()
            } else {
                RESERVED_TAG
            },
            cmd_sn: Serial(0),
            exp_stat_sn: Serial(0),
        };
        let answer = match responder.handle_request(&request, input.chunk()) {
            Ok(ResponderStep::Respond(response, data)) => Some((response, data)),
            Ok(ResponderStep::Complete) => {
                assert!(responder.request().as_bytes().len() <= LIMITS.max_bytes);
                let mut answer = TextWriter::new();
                for at in 0..input.u8() {
                    answer.push("TargetName", &format!("iqn.2026-11.example:{at}"));
                }
                responder.answer(answer, 1 + usize::from(input.u8()) * 4)
            }
            Err(_) => None,
        };
        if let Some((response, data)) = answer {
            assert!(data.len() <= 1 + 255 * 4);
            ttt = response.ttt;
        }
        if flags & 0x10 != 0 {
            responder.reset();
        }
    }
}

fn asker(input: &mut Input<'_>) {
    let mut question = TextWriter::new();
    question.push("SendTargets", "All");
    let segment = 1 + usize::from(input.u8());
    let (mut asker, mut request, _) = TextAsker::ask(7, question, segment, LIMITS);
    while !input.is_empty() {
        let flags = input.u8();
        let response = TextResponse {
            is_final: flags & 1 != 0,
            incomplete: flags & 2 != 0,
            lun: 0,
            itt: if flags & 4 != 0 { 8 } else { 7 },
            ttt: if flags & 8 != 0 { RESERVED_TAG } else { 5 },
            stat_sn: Serial(0),
            exp_cmd_sn: Serial(0),
            max_cmd_sn: Serial(0),
        };
        match asker.handle_response(&response, input.chunk()) {
            Ok(AskerStep::Send(next, data)) => {
                assert!(data.len() <= segment);
                request = next;
            }
            Ok(AskerStep::Done) => {
                let _ = TargetList::read(asker.answer().as_bytes());
            }
            Err(_) => break,
        }
        assert_eq!(request.itt, 7);
        assert!(asker.answer().as_bytes().len() <= LIMITS.max_bytes);
    }
}
