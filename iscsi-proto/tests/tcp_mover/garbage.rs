//! Nothing a peer sends panics, and memory stays bounded.

use iscsi_memory::{Buf, Payload};
use iscsi_proto::connection::{StreamEnd, StreamMover};
use iscsi_proto::datamover::{Datamover, GetData, MalformedPdu, MoverError, Notification, SendCommand, TaskHandle};
use iscsi_proto::parameters::{Digest, Parameters};
use iscsi_proto::pdu::{Bhs, NopOut, Opcode, PduError, RESERVED_TAG};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use proptest::prelude::*;

use crate::link::{command, drain, give, give_until_told, logged_in, login_request, pdu};

fn config() -> TcpMoverConfig {
    TcpMoverConfig { staging_size: 16 << 10, max_tasks: 4, ..TcpMoverConfig::default() }
}

/// The last thing told, which must be the end.
fn end(mover: &mut TcpMover) -> MoverError {
    match drain(mover).pop() {
        Some(Notification::Terminated(error)) => {
            assert!(mover.is_closed() && mover.receive_window().is_empty() && mover.poll_notify().is_none());
            error
        }
        other => panic!("not an end: {other:?}"),
    }
}

#[test]
fn other_protocols_are_told_from_iscsi() {
    for hello in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01", b"SSH-2.0-x", b"\0"] {
        for role in [Role::Target, Role::Initiator] {
            let mut mover = TcpMover::new(role, config());
            give(&mut mover, hello);
            assert_eq!(end(&mut mover), MoverError::NotIscsi);
        }
    }
    let mut mover = TcpMover::new(Role::Target, config());
    give(&mut mover, b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n");
    assert_eq!(end(&mut mover), MoverError::NotIscsi);
}

#[test]
fn a_login_pdu_above_8192_bytes_ends_the_connection() {
    let mut mover = TcpMover::new(Role::Target, config());
    let told = give_until_told(&mut mover, &pdu(login_request(), &[0; 8193], &Parameters::default()));
    let limit = MoverError::DataSegmentTooLong { got: 8193, limit: 8192 };
    assert!(matches!(told, Some(Notification::Terminated(error)) if error == limit), "{told:?}");
    assert!(mover.is_closed() && mover.receive_window().is_empty());
    let mut mover = TcpMover::new(Role::Target, config());
    let told = give_until_told(&mut mover, &pdu(login_request(), &[7; 8192], &Parameters::default()));
    assert!(matches!(told, Some(Notification::Control(_))), "{told:?}");
    assert_eq!(mover.control_data(), [7; 8192]);
}

fn nop() -> Bhs {
    NopOut { immediate: true, lun: 0, itt: 1, ttt: RESERVED_TAG, cmd_sn: Serial(0), exp_stat_sn: Serial(0) }.emit()
}

#[test]
fn a_control_pdu_larger_than_staging_comes_whole() {
    let parameters = Parameters {
        max_recv_data_segment_length: 100_000,
        data_digest: Digest::Crc32c,
        header_digest: Digest::Crc32c,
        ..Parameters::default()
    };
    let mut mover = logged_in(Role::Target, config(), &parameters);
    let data = crate::link::pattern(1, 99_999);
    let mut bytes = pdu(nop(), b"before", &parameters);
    bytes.extend(pdu(nop(), &data, &parameters));
    let mut rest = &bytes[..];
    let mut told = 0;
    while !rest.is_empty() {
        let n = mover.receive_window().fill(rest);
        mover.handle_received(n);
        rest = &rest[n..];
        while let Some(notification) = mover.poll_notify() {
            assert!(matches!(notification, Notification::Control(_)));
            told += 1;
            assert_eq!(mover.control_data(), if told == 1 { b"before" } else { &data[..] });
        }
    }
    assert_eq!(told, 2);
}

#[test]
fn digest_errors_end_or_are_told() {
    let parameters = Parameters { data_digest: Digest::Crc32c, header_digest: Digest::Crc32c, ..Parameters::default() };
    let good = pdu(nop(), b"payload", &parameters);
    let mut mover = logged_in(Role::Target, config(), &parameters);
    let mut bad = good.clone();
    bad[50] ^= 1;
    give(&mut mover, &bad);
    assert_eq!(end(&mut mover), MoverError::HeaderDigest);
    // Data, padding and the digest itself.
    for at in [52, 59, 60] {
        let mut mover = logged_in(Role::Target, config(), &parameters);
        let mut bad = good.clone();
        bad[at] ^= 1;
        bad.extend(&good);
        give(&mut mover, &bad);
        let told = drain(&mut mover);
        assert!(matches!(
            told[..],
            [Notification::Malformed { error: MalformedPdu::DataDigest, .. }, Notification::Control(_)]
        ));
    }
}

#[test]
fn unknown_and_misplaced_opcodes_are_told_and_skipped() {
    let mut mover = logged_in(Role::Target, config(), &Parameters::default());
    let mut unknown = nop();
    unknown.0[0] = 0x1e;
    let mut bytes = pdu(unknown, &[1; 5], &Parameters::default());
    bytes.extend(pdu(Bhs::new(Opcode::DataIn), &[1; 6], &Parameters::default()));
    bytes.extend(pdu(nop(), &[1; 7], &Parameters::default()));
    give(&mut mover, &bytes);
    let told = drain(&mut mover);
    assert!(matches!(
        told[..],
        [
            Notification::Malformed { error: MalformedPdu::Header(PduError::UnknownOpcode(0x1e)), .. },
            Notification::Malformed { error: MalformedPdu::Protocol(_), .. },
            Notification::Control(_)
        ]
    ));
}

#[test]
fn the_stream_ends_between_or_inside_pdus() {
    for (n, error) in [(0, MoverError::EndOfStream), (20, MoverError::Broken), (50, MoverError::Broken)] {
        let mut mover = logged_in(Role::Target, config(), &Parameters::default());
        let whole = pdu(nop(), &[1; 8], &Parameters::default());
        give(&mut mover, &whole);
        give(&mut mover, &whole[..n]);
        mover.handle_stream_end(StreamEnd::EndOfStream);
        assert!(matches!(mover.poll_notify(), Some(Notification::Control(_))));
        assert_eq!(end(&mut mover), error);
    }
}

#[test]
fn terminate_sends_what_is_queued_first() {
    let mut mover = logged_in(Role::Target, config(), &Parameters::default());
    mover.send_control(Bhs::new(Opcode::LogoutResponse), &[]);
    mover.connection_terminate();
    assert!(mover.poll_notify().is_none() && mover.receive_window().is_empty());
    assert_eq!(crate::link::take_all(&mut mover).len(), 48);
    assert_eq!(end(&mut mover), MoverError::Closed);
}

/// A stream of headers that are nearly right, so that all paths are met.
fn nearly_pdus() -> impl Strategy<Value = Vec<u8>> {
    let header = (
        proptest::sample::select(vec![0x00u8, 0x01, 0x05, 0x05, 0x05, 0x25, 0x25, 0x31, 0x21, 0x3f, 0x20, 0x17]),
        any::<u8>(),
        prop_oneof![Just(0u8), 0u8..3],
        0u32..700,
        proptest::array::uniform8(prop_oneof![
            Just(0u32),
            Just(512),
            Just(RESERVED_TAG),
            0u32..4,
            (0u32..4).prop_map(|n| n << 16),
            any::<u32>()
        ]),
    );
    proptest::collection::vec(header, 1..30).prop_map(|headers| {
        let mut bytes = Vec::new();
        for (opcode, flags, ahs, len, words) in headers {
            let mut bhs = Bhs([0; 48]);
            bhs.0[0] = opcode;
            bhs.0[1] = flags;
            for (place, word) in bhs.0[16..].chunks_exact_mut(4).zip(words) {
                place.copy_from_slice(&word.to_be_bytes());
            }
            bhs.set_ahs_len(usize::from(ahs) * 4);
            bhs.set_data_segment_len(len);
            bytes.extend(bhs.0);
            bytes.resize(bytes.len() + usize::from(ahs) * 4 + len.next_multiple_of(4) as usize, 0x5a);
        }
        bytes
    })
}

/// Runs a mover on bytes, with a session that asks for data as sessions do. Counts that every buffer comes back.
fn survive(role: Role, bytes: &[u8], chunk: usize, initial_r2t: bool) {
    let parameters =
        Parameters { initial_r2t, first_burst_length: 512, max_burst_length: 1024, ..Parameters::default() };
    let config = TcpMoverConfig { copy_limit: 64, ..config() };
    let mut mover = logged_in(role, config, &parameters);
    let mut given = 0usize;
    if role == Role::Initiator {
        for slot in 0..3 {
            let task = TaskHandle { slot, generation: 0 };
            given += 2;
            mover.send_command(SendCommand {
                task,
                bhs: command(task.to_itt(), true, slot == 0, true, 2000),
                ahs: &[],
                data_out: Some(Payload::Buf(Buf::zeroed(2000))),
                data_in: Some(Payload::Buf(Buf::zeroed(1500))),
            });
        }
    }
    let mut generation = 0;
    'stream: for chunk in bytes.chunks(chunk) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let n = mover.receive_window().fill(rest);
            if n == 0 {
                break 'stream;
            }
            mover.handle_received(n);
            rest = &rest[n..];
            while let Some(notification) = mover.poll_notify() {
                match notification {
                    Notification::Control(bhs) if bhs.opcode() == Ok(Opcode::ScsiCommand) && bhs.0[1] & 0x20 != 0 => {
                        generation += 1;
                        let task = TaskHandle { slot: bhs.itt() as u16 & 3, generation };
                        given += 1;
                        let sink = Payload::Buf(Buf::zeroed((bhs.itt() as usize % 3) * 700));
                        mover.get_data(GetData { task, lun: 0, itt: bhs.itt(), sink });
                    }
                    Notification::GetDataComplete { .. }
                    | Notification::GetDataFailed { .. }
                    | Notification::Released(_) => given -= 1,
                    _ => {}
                }
            }
            crate::link::take(&mut mover, 333);
        }
    }
    mover.handle_stream_end(StreamEnd::Broken);
    for notification in drain(&mut mover) {
        if let Notification::Released(_) | Notification::GetDataComplete { .. } | Notification::GetDataFailed { .. } =
            notification
        {
            given -= 1;
        }
    }
    assert!(mover.is_closed() && mover.backlog() == 0);
    for slot in 0..4 {
        for generation in 0..=generation {
            let buffers = mover.deallocate_task_resources(TaskHandle { slot, generation });
            given -= usize::from(buffers.data_in.is_some()) + usize::from(buffers.data_out.is_some());
        }
    }
    assert_eq!(given, 0, "all buffers come back");
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>, chunk in 1usize..200) {
        survive(Role::Target, &bytes, chunk, true);
        survive(Role::Initiator, &bytes, chunk, true);
    }

    #[test]
    fn nearly_right_pdus_are_survived(bytes in nearly_pdus(), chunk in 1usize..3000, initial_r2t: bool) {
        survive(Role::Target, &bytes, chunk, initial_r2t);
        survive(Role::Initiator, &bytes, chunk, initial_r2t);
    }
}
