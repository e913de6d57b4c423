//! A peer made by hand: bytes as the standards draw them, by other code than the queue's own.

use alloc::vec::Vec;

use iscsi_proto::digest::crc32c;

use super::super::{IwarpConfig, IwarpQueue};
use super::wire::{Short, drain, feed, poll_all};
use crate::queue::EndCause;

/// A frame of MPA's startup.
pub(super) fn mpa(key: &[u8; 16], flags: u8, revision: u8, private: &[u8]) -> Vec<u8> {
    let mut bytes = key.to_vec();
    bytes.extend([flags, revision]);
    bytes.extend((private.len() as u16).to_be_bytes());
    bytes.extend(private);
    bytes
}

pub(super) const REQUEST: &[u8; 16] = b"MPA ID Req Frame";
pub(super) const REPLY: &[u8; 16] = b"MPA ID Rep Frame";

/// An FPDU around a ULPDU.
pub(super) fn fpdu(ulpdu: &[u8], crc: bool) -> Vec<u8> {
    let mut bytes = (ulpdu.len() as u16).to_be_bytes().to_vec();
    bytes.extend(ulpdu);
    while !bytes.len().is_multiple_of(4) {
        bytes.push(0);
    }
    let field = if crc { crc32c(&bytes) } else { [0x5a; 4] };
    bytes.extend(field);
    bytes
}

pub(super) fn tagged(opcode: u8, last: bool, stag: u32, to: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = alloc::vec![if last { 0xc1 } else { 0x81 }, 0x40 | opcode];
    bytes.extend(stag.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub(super) fn untagged(opcode: u8, last: bool, numbers: [u32; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = alloc::vec![if last { 0x41 } else { 0x01 }, 0x40 | opcode];
    for number in numbers {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// A whole Send of one segment.
pub(super) fn send(msn: u32, payload: &[u8]) -> Vec<u8> {
    untagged(3, true, [0, 0, msn, 0], payload)
}

pub(super) fn read_request(msn: u32, len: u32, stag: u32, to: u64) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(0x0a0b_0c0du32.to_be_bytes());
    body.extend(0x77u64.to_be_bytes());
    body.extend(len.to_be_bytes());
    body.extend(stag.to_be_bytes());
    body.extend(to.to_be_bytes());
    untagged(1, true, [0, 1, msn, 0], &body)
}

/// A queue and its hand-made peer, in full operation.
pub(super) struct Raw {
    pub(super) queue: IwarpQueue,
    pub(super) crc: bool,
}

impl Raw {
    /// The queue is the responder.
    pub(super) fn accepted(config: IwarpConfig) -> Self {
        let crc = config.crc;
        let mut queue = IwarpQueue::accept(config);
        feed(&mut queue, &mpa(REQUEST, 0x10, 2, &[0, 16, 0, 16]));
        assert_eq!(drain(&mut queue)[..16], *REPLY);
        assert!(matches!(poll_all(&mut queue)[..], [Short::Established(_)]));
        Self { queue, crc }
    }

    /// The queue is the initiator.
    pub(super) fn connected(config: IwarpConfig) -> Self {
        let crc = config.crc;
        let mut queue = IwarpQueue::connect(config);
        assert_eq!(drain(&mut queue)[..16], *REQUEST);
        feed(&mut queue, &mpa(REPLY, 0x10, 2, &[0, 16, 0, 0]));
        assert!(matches!(poll_all(&mut queue)[..], [Short::Established(_)]));
        Self { queue, crc }
    }

    pub(super) fn say(&mut self, ulpdu: &[u8]) {
        let bytes = fpdu(ulpdu, self.crc);
        assert_eq!(feed(&mut self.queue, &bytes), bytes.len());
    }

    /// The ULPDUs that the queue sends, their framing checked.
    pub(super) fn hear(&mut self) -> Vec<Vec<u8>> {
        let all = drain(&mut self.queue);
        let mut rest = &all[..];
        let mut ulpdus = Vec::new();
        while let Some((head, _)) = rest.split_first_chunk::<2>() {
            let len = usize::from(u16::from_be_bytes(*head));
            let covered = (2 + len).next_multiple_of(4);
            assert!(rest[2 + len..covered].iter().all(|byte| *byte == 0), "padding is zero");
            let field = if self.crc { crc32c(&rest[..covered]) } else { [0; 4] };
            assert_eq!(rest[covered..covered + 4], field);
            ulpdus.push(rest[2..2 + len].to_vec());
            rest = &rest[covered + 4..];
        }
        ulpdus
    }

    /// The queue answers the FPDU with a Terminate of this code, naming `headers` of it, and ends.
    pub(super) fn is_told_off(&mut self, code: u16, headers: usize, ulpdu: &[u8]) -> EndCause {
        self.say(ulpdu);
        let ulpdus = self.hear();
        let terminate = ulpdus.last().expect("a Terminate is sent");
        let mut expected = untagged(7, true, [0, 2, 1, 0], &code.to_be_bytes());
        let flags = match headers {
            0 => 0,
            42.. => 0xe0,
            _ => 0xc0,
        };
        expected.extend([flags, 0]);
        if headers > 0 {
            expected.extend((ulpdu.len() as u16).to_be_bytes());
            expected.extend(&ulpdu[..headers]);
        }
        assert_eq!(*terminate, expected);
        match poll_all(&mut self.queue).pop() {
            Some(Short::Ended(cause @ EndCause::PeerProtocol(_))) => cause,
            other => panic!("no end for a breach but {other:?}"),
        }
    }
}
