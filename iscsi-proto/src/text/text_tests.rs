use alloc::string::ToString;
use alloc::vec;

use proptest::prelude::*;

use super::exchange::*;
use super::targets::*;
use super::value::*;
use super::*;
use crate::pdu::{RESERVED_TAG, TextRequest};
use crate::serial::Serial;

fn read(text: &[u8]) -> Result<Vec<Pair<'_>>, TextError> {
    Pairs::new(text).collect()
}

#[test]
fn pairs_are_key_equals_value_null() {
    let pair = |key, value| Pair { key, value };
    assert_eq!(read(b""), Ok(vec![]));
    assert_eq!(read(b"A=\0"), Ok(vec![pair("A", "")]));
    // A value is whatever follows the first "=".
    assert_eq!(read(b"A=b=c\0"), Ok(vec![pair("A", "b=c")]));
    assert_eq!(read("InitiatorAlias=Großer Rechner\0".as_bytes()).unwrap()[0].value, "Großer Rechner");
    for key in ["iSCSIProtocolLevel", "X#NodeArchitecture", "X-com.example.a+b@c_d", &"K".repeat(63)] {
        assert_eq!(read(alloc::format!("{key}=1\0").as_bytes()).unwrap()[0].key, key);
    }
    // Padding that was counted in.
    assert_eq!(read(b"A=1\0\0\0B=2\0\0"), Ok(vec![pair("A", "1"), pair("B", "2")]));
}

#[test]
fn malformed_pairs_are_told_with_their_place() {
    assert_eq!(read(b"A=1\0B"), Err(TextError::Unterminated { at: 4 }));
    assert_eq!(read(b"A=1\0B=2"), Err(TextError::Unterminated { at: 4 }));
    assert_eq!(read(b"A=1\0B\0"), Err(TextError::NoEquals { at: 4 }));
    assert_eq!(read(b"A=1\0B C\0"), Err(TextError::NoEquals { at: 4 }));
    for key in ["", "1A", "-A", "A B", "A/B", "Ä", &"K".repeat(64)] {
        let text = alloc::format!("A=1\0{key}=1\0");
        assert_eq!(read(text.as_bytes()), Err(TextError::KeyName { at: 4 }), "{key}");
    }
    assert_eq!(read(b"A=\xff\0"), Err(TextError::NotUtf8 { key: "A".into(), at: 0 }));
    let long = alloc::format!("A={}\0", "x".repeat(MAX_VALUE + 1));
    assert_eq!(read(long.as_bytes()), Err(TextError::ValueTooLong { key: "A".into(), at: 0, len: MAX_VALUE + 1 }));
    // After an error nothing more is read.
    assert_eq!(Pairs::new(b"A\0B=1\0").count(), 1);
}

#[test]
fn a_buffer_keeps_to_its_limits() {
    let mut buffer = TextBuffer::new(TextLimits { max_bytes: 8, max_pairs: 1 });
    buffer.push(b"A=1\0").unwrap();
    assert_eq!(buffer.push(b"B=23\0"), Err(TextError::TooLong { limit: 8 }));
    assert_eq!(buffer.as_bytes(), b"A=1\0");
    buffer.push(b"B=2\0").unwrap();
    assert_eq!(buffer.check(), Err(TextError::TooManyPairs { limit: 1 }));
    assert!(buffer.pairs().is_err());
    // RFC 7143 6.1: 64 KiB must be taken with authentication items.
    assert!(TextBuffer::default().push(&[b'a'; 65_536]).is_ok());
}

#[test]
fn a_writer_never_makes_two_pairs_of_one() {
    let mut writer = TextWriter::new();
    writer.push("TargetAlias", "x\0TargetName=evil");
    assert_eq!(read(writer.as_bytes()), Ok(vec![Pair { key: "TargetAlias", value: "x" }]));
}

#[test]
fn values_have_their_grammar() {
    assert_eq!((boolean("Yes"), boolean("No")), (Some(true), Some(false)));
    for wrong in ["", "yes", "NO", "Yes ", "Yess", "1"] {
        assert_eq!(boolean(wrong), None, "{wrong}");
    }
    for (text, expected) in [
        ("0", 0),
        ("65535", 65_535),
        ("18446744073709551615", u64::MAX),
        ("0x0", 0),
        ("0X1fF", 0x1ff),
        ("0x00000000000000000000001", 1),
        ("0xffffffffffffffff", u64::MAX),
    ] {
        assert_eq!(number(text), Some(expected), "{text}");
    }
    for wrong in
        ["", "01", "00", "-1", "+1", " 1", "1 ", "1k", "0x", "0xg", "18446744073709551616", "0x10000000000000000"]
    {
        assert_eq!(number(wrong), None, "{wrong}");
    }
    assert_eq!(range("1~0x10"), Some((1, 16)));
    assert_eq!(range("2~1"), None);
    assert_eq!(range("1~"), None);
    assert_eq!(list("CRC32C,None").collect::<Vec<_>>(), ["CRC32C", "None"]);
}

#[test]
fn target_addresses_read_in_all_forms() {
    // RFC 7143 13.8
    for (text, host, port, tag) in [
        ("10.0.0.1:5003,1", "10.0.0.1", 5003, Some(1)),
        ("[1080:0:0:0:8:800:200C:417A],65", "1080:0:0:0:8:800:200C:417A", 3260, Some(65)),
        ("[1080::8:800:200C:417A]:5003,1", "1080::8:800:200C:417A", 5003, Some(1)),
        ("computingcenter.example.com,23", "computingcenter.example.com", 3260, Some(23)),
        ("host", "host", 3260, None),
        ("[::1]", "::1", 3260, None),
        ("h:1,0x10", "h", 1, Some(16)),
    ] {
        let address: TargetAddress = text.parse().unwrap();
        assert_eq!((address.host.as_str(), address.port, address.group_tag), (host, port, tag), "{text}");
        assert_eq!(address.to_string().parse(), Ok(address));
    }
    for wrong in [
        "",
        ":3260",
        "h:",
        "h:0",
        "h:65536",
        "h,",
        "h,65536",
        "[::1",
        "::1]",
        "[::1]3260",
        "[]",
        "a b",
        "fe80::1:3260,1",
        "h:1:2",
    ] {
        assert!(wrong.parse::<TargetAddress>().is_err(), "{wrong}");
    }
}

#[test]
fn target_records_round_trip() {
    let records = vec![
        TargetRecord { name: "iqn.2024-01.com.example:a".into(), addresses: vec![] },
        TargetRecord {
            name: "iqn.2024-01.com.example:b".into(),
            addresses: vec!["10.0.0.1:3260,1".parse().unwrap(), "[::1]:3260,2".parse().unwrap()],
        },
    ];
    let mut out = TextWriter::new();
    records.iter().for_each(|record| record.write(&mut out));
    assert_eq!(TargetList::read(out.as_bytes()), TargetList { records, odd: Vec::new() });
    let parse = TargetList::read;
    assert_eq!(parse(b"TargetAddress=h,1\0").odd, [TargetsError::NoName]);
    assert!(matches!(parse(b"SendTargets=Reject\0").odd[..], [TargetsError::OtherKey { .. }]));
    let odd = parse(b"TargetName=a\0TargetAddress=\0TargetAddress=h:1,1\0TargetName=b\0");
    assert!(matches!(odd.odd[..], [TargetsError::Address(_)]));
    assert_eq!(odd.records.iter().map(|record| record.addresses.len()).collect::<Vec<_>>(), [1, 0]);
    // Whatever stands between two records costs itself, and the addresses of a name that cannot be read go with it.
    for between in [
        &b"rubbish\0"[..],
        b"=rubbish\0",
        b"My Key=1\0",
        b"\xff\xfe\0",
        b"TargetAlias=\xff\0",
        b"TargetName=\0TargetAddress=h:1,1\0",
        b"TargetName=what is this\0TargetAddress=h:1,1\0",
        b"TargetName=iqn.\xff\0TargetAddress=h:1,1\0",
        &[b"TargetAlias=".to_vec(), vec![b'x'; MAX_VALUE + 1], vec![0]].concat(),
        &[b"TargetName=".to_vec(), vec![b'x'; MAX_VALUE + 1], b"\0TargetAddress=h:1,1\0".to_vec()].concat(),
    ] {
        let answer = [b"TargetName=a\0TargetAddress=g:1,1\0", between, b"TargetName=b\0"].concat();
        let odd = TargetList::read(&answer);
        let found: Vec<_> = odd.records.iter().map(|record| (&record.name[..], record.addresses.len())).collect();
        assert_eq!((found, odd.odd.len()), (vec![("a", 1), ("b", 0)], 1), "{}", between.escape_ascii());
    }
    let cut = TargetList::read(b"TargetName=a\0TargetName=b\0TargetAddr");
    assert_eq!((cut.records.len(), cut.odd.len()), (2, 1));
    for value in ["All", "", "iqn.2024-01.com.example:a"] {
        assert_eq!(SendTargets::from_value(value).value(), value);
    }
}

fn writer_of(bytes: usize) -> TextWriter {
    let mut out = TextWriter::new();
    let mut number = 0;
    while out.as_bytes().len() < bytes {
        out.push("TargetName", &alloc::format!("iqn.2024-01.com.example:disk-{number}"));
        number += 1;
    }
    out
}

fn exchange(
    question: TextWriter,
    answer: TextWriter,
    to_target: usize,
    to_initiator: usize,
) -> (Vec<u8>, Vec<u8>, u32) {
    let limits = TextLimits { max_bytes: 1 << 20, max_pairs: 1 << 16 };
    let mut responder = TextResponder::new(limits);
    let (mut asker, mut request, mut data) = TextAsker::ask(9, question, to_target, limits);
    let mut heard = Vec::new();
    let mut rounds = 0;
    loop {
        rounds += 1;
        assert!(data.len() <= to_target);
        let parsed = TextRequest::parse(&request.emit()).unwrap();
        let (response, reply) = match responder.handle_request(&parsed, &data).unwrap() {
            ResponderStep::Respond(response, reply) => (response, reply),
            ResponderStep::Complete => {
                heard = responder.request().as_bytes().to_vec();
                responder.answer(answer.clone(), to_initiator).unwrap()
            }
        };
        assert!(reply.len() <= to_initiator);
        // RFC 7143 11.11.1, 11.11.2
        assert_eq!(response.is_final, response.ttt == RESERVED_TAG);
        assert!(!(response.is_final && response.incomplete));
        match asker.handle_response(&response, &reply).unwrap() {
            AskerStep::Send(next, bytes) => (request, data) = (next, bytes),
            AskerStep::Done => return (heard, asker.answer().as_bytes().to_vec(), rounds),
        }
    }
}

#[test]
fn long_texts_travel_in_pieces_both_ways() {
    let (question, answer) = (writer_of(3000), writer_of(100_000));
    let (heard, told, rounds) = exchange(question.clone(), answer.clone(), 512, 8192);
    assert_eq!((heard.as_slice(), told.as_slice()), (question.as_bytes(), answer.as_bytes()));
    // Five requests before the whole question answered, one shared with the first of thirteen responses.
    assert_eq!(
        rounds,
        question.as_bytes().len().div_ceil(512) as u32 - 1 + answer.as_bytes().len().div_ceil(8192) as u32
    );
    let (_, told, rounds) = exchange(writer_of(1), TextWriter::new(), 8192, 8192);
    assert_eq!((told.as_slice(), rounds), (b"".as_slice(), 1));
}

fn request(itt: u32, ttt: u32, is_final: bool, incomplete: bool) -> TextRequest {
    TextRequest { immediate: true, is_final, incomplete, lun: 0, itt, ttt, cmd_sn: Serial(1), exp_stat_sn: Serial(1) }
}

#[test]
fn a_responder_starts_anew_on_the_reserved_tag_only() {
    let mut responder = TextResponder::new(TextLimits::default());
    let fresh = request(1, RESERVED_TAG, true, false);
    assert_eq!(responder.handle_request(&fresh, b"SendTargets=All\0"), Ok(ResponderStep::Complete));
    let (first, _) = responder.answer(writer_of(2000), 1000).unwrap();
    assert!(first.incomplete);

    // The answer under way is given up for a new question.
    assert_eq!(responder.handle_request(&request(2, RESERVED_TAG, true, false), b"A=1\0"), Ok(ResponderStep::Complete));
    let stale = Err(TextExchangeError::StaleTag(first.ttt));
    assert_eq!(responder.handle_request(&request(1, first.ttt, true, false), b""), stale);
    // And a stale tag ends that one too.
    assert!(responder.answer(TextWriter::new(), 512).is_none());

    responder.handle_request(&fresh, b"SendTargets=All\0").unwrap();
    let (first, _) = responder.answer(writer_of(2000), 1000).unwrap();
    // RFC 7143 6.2: no data in answer to a C bit.
    let error = responder.handle_request(&request(1, first.ttt, true, false), b"A=1\0");
    assert!(matches!(error, Err(TextExchangeError::Protocol(_))));
    assert!(matches!(
        responder.handle_request(&request(1, first.ttt, true, false), b""),
        Err(TextExchangeError::StaleTag(_))
    ));
    assert!(responder.answer(TextWriter::new(), 512).is_none());
}

#[test]
fn a_negotiation_without_f_stays_open() {
    let mut responder = TextResponder::new(TextLimits::default());
    responder.handle_request(&request(1, RESERVED_TAG, false, false), b"A=1\0").unwrap();
    let (response, _) = responder.answer(writer_of(1), 8192).unwrap();
    // RFC 7143 11.11.1: no F in answer to no F, and then a tag.
    assert!(!response.is_final && response.ttt != RESERVED_TAG);
    assert_eq!(responder.handle_request(&request(1, response.ttt, true, false), b"B=1\0"), Ok(ResponderStep::Complete));
    assert_eq!(responder.request().as_bytes(), b"B=1\0");
    assert!(responder.answer(TextWriter::new(), 8192).unwrap().0.is_final);
}

#[test]
fn a_request_is_bounded_over_all_its_pdus() {
    let mut responder = TextResponder::new(TextLimits { max_bytes: 1000, max_pairs: 10 });
    let mut ttt = RESERVED_TAG;
    for _ in 0..2 {
        match responder.handle_request(&request(1, ttt, false, true), &[b'a'; 400]).unwrap() {
            ResponderStep::Respond(response, data) => {
                assert!(data.is_empty());
                ttt = response.ttt;
            }
            ResponderStep::Complete => panic!(),
        }
    }
    let error = responder.handle_request(&request(1, ttt, false, true), &[b'a'; 400]);
    assert_eq!(error, Err(TextExchangeError::Text(TextError::TooLong { limit: 1000 })));
}

#[test]
fn an_asker_refuses_a_target_that_never_ends() {
    let (mut asker, first, _) = TextAsker::ask(3, writer_of(1), 8192, TextLimits::default());
    let open = |itt, ttt| crate::pdu::TextResponse {
        is_final: false,
        incomplete: false,
        lun: 5,
        itt,
        ttt,
        stat_sn: Serial(0),
        exp_cmd_sn: Serial(0),
        max_cmd_sn: Serial(0),
    };
    assert_eq!(first.ttt, RESERVED_TAG);
    assert!(asker.handle_response(&open(4, 7), b"").is_err());
    assert!(asker.handle_response(&open(3, RESERVED_TAG), b"").is_err());
    let mut count = 0;
    let error = loop {
        match asker.handle_response(&open(3, 7), b"") {
            // RFC 7143 11.11.4: tag and LUN MUST be copied.
            Ok(AskerStep::Send(request, data)) => assert!(request.ttt == 7 && request.lun == 5 && data.is_empty()),
            Ok(AskerStep::Done) => panic!(),
            Err(error) => break error,
        }
        count += 1;
    };
    assert_eq!(error, TextExchangeError::TooManyPdus(TextAsker::MAX_RESPONSES));
    assert_eq!(count, TextAsker::MAX_RESPONSES);
}

proptest! {
    #[test]
    fn any_bytes_read_or_not(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut pairs = 0;
        for pair in Pairs::new(&text) {
            pairs += 1;
            let Ok(pair) = pair else { break };
            prop_assert!(!pair.key.is_empty() && pair.key.len() <= MAX_KEY && !pair.value.contains('\0'));
        }
        prop_assert!(pairs <= text.len());
    }

    #[test]
    fn what_is_written_is_read(pairs in proptest::collection::vec(("[A-Za-z][A-Za-z0-9.+@_#-]{0,62}", "[^\0]{0,40}"),
        0..20), limit in 1usize..64) {
        let mut writer = TextWriter::new();
        for (key, value) in &pairs {
            writer.push(key, value);
        }
        let mut pieces = writer.into_pieces(limit);
        let mut buffer = TextBuffer::default();
        loop {
            let (piece, more) = pieces.next_piece();
            prop_assert!(piece.len() <= limit);
            buffer.push(piece).unwrap();
            if !more { break }
        }
        let read: Vec<_> = buffer.pairs().unwrap().map(|pair| (pair.key.to_string(), pair.value.to_string())).collect();
        prop_assert_eq!(read, pairs);
    }

    #[test]
    fn any_value_parses_or_not(text in ".{0,40}") {
        let _ = (boolean(&text), number(&text), range(&text), text.parse::<TargetAddress>());
    }

    #[test]
    fn no_request_panics_a_responder(requests in proptest::collection::vec((0u32..3, prop_oneof![Just(RESERVED_TAG),
        0u32..6], any::<bool>(), any::<bool>(), proptest::collection::vec(prop_oneof![Just(0u8), Just(b'='),
            Just(b'A')], 0..12), 0usize..40), 0..40)) {
        let mut responder = TextResponder::new(TextLimits { max_bytes: 64, max_pairs: 4 });
        for (itt, ttt, is_final, incomplete, data, answer) in requests {
            let request = request(itt, ttt, is_final && !incomplete, incomplete);
            if let Ok(ResponderStep::Complete) = responder.handle_request(&request, &data) {
                prop_assert!(responder.request().as_bytes().len() <= 64);
                prop_assert!(responder.answer(writer_of(answer), 16).is_some());
            }
        }
    }
}
