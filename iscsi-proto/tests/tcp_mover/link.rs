//! Byte pipes, logged-in movers, and PDUs made by hand.

use iscsi_memory::SendList;
use iscsi_proto::connection::StreamMover;
use iscsi_proto::datamover::{Datamover, Notification};
use iscsi_proto::digest::crc32c;
use iscsi_proto::parameters::{Digest, Parameters};
use iscsi_proto::pdu::{Bhs, LoginRequest, LoginResponse, Opcode, ScsiCommand, padding};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};

/// Takes up to `most` bytes from what the mover sends.
pub(crate) fn take(mover: &mut TcpMover, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut list = SendList::default();
    mover.fill_send_list(&mut list);
    for slice in list.as_slice() {
        let at = bytes.len();
        bytes.resize(at + slice.len(), 0);
        slice.copy_to(&mut bytes[at..]);
    }
    bytes.truncate(most);
    mover.handle_sent(bytes.len());
    bytes
}

/// Takes all that the mover sends.
pub(crate) fn take_all(mover: &mut TcpMover) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let more = take(mover, usize::MAX);
        if more.is_empty() {
            return bytes;
        }
        bytes.extend(more);
    }
}

/// Gives bytes to a mover whose window takes them all, without looking at what it tells.
pub(crate) fn give(mover: &mut TcpMover, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let n = mover.receive_window().fill(bytes);
        assert!(n > 0, "the window is closed");
        mover.handle_received(n);
        bytes = &bytes[n..];
    }
}

/// Gives bytes to a mover, as its window takes them, until it tells something.
pub(crate) fn give_until_told(mover: &mut TcpMover, mut bytes: &[u8]) -> Option<Notification> {
    loop {
        if let Some(told) = mover.poll_notify() {
            return Some(told);
        }
        if bytes.is_empty() {
            return None;
        }
        let n = mover.receive_window().fill(bytes);
        assert!(n > 0, "the window is closed");
        mover.handle_received(n);
        bytes = &bytes[n..];
    }
}

/// All that the mover tells now.
pub(crate) fn drain(mover: &mut TcpMover) -> Vec<Notification> {
    core::iter::from_fn(|| mover.poll_notify()).collect()
}

const LOGIN: LoginRequest = LoginRequest::straight_to_full_feature([0x80, 1, 2, 3, 4, 5], 0);

pub(crate) fn login_request() -> Bhs {
    LOGIN.emit()
}

pub(crate) fn login_response() -> Bhs {
    let mut bhs = LoginResponse { tsih: 1, max_cmd_sn: Serial(100), ..LoginResponse::granting(&LOGIN) }.emit();
    bhs.set_data_segment_len(0);
    bhs
}

/// The other end's view of the parameters.
pub(crate) fn mirrored(parameters: &Parameters) -> Parameters {
    Parameters {
        max_recv_data_segment_length: parameters.peer_max_recv_data_segment_length,
        peer_max_recv_data_segment_length: parameters.max_recv_data_segment_length,
        ..parameters.clone()
    }
}

/// A mover in the Full Feature Phase; `parameters` as it sees them itself.
pub(crate) fn logged_in(role: Role, config: TcpMoverConfig, parameters: &Parameters) -> TcpMover {
    let mut mover = TcpMover::new(role, config);
    let hello = match role {
        Role::Target => login_request(),
        Role::Initiator => login_response(),
    };
    give(&mut mover, &hello.0);
    assert!(matches!(drain(&mut mover)[..], [Notification::Control(_)]));
    mover.notice_key_values(parameters);
    mover.enable_datamover();
    mover
}

/// A whole PDU as the wire has it, with the digests that the parameters ask for.
pub(crate) fn pdu(mut bhs: Bhs, data: &[u8], parameters: &Parameters) -> Vec<u8> {
    bhs.set_data_segment_len(data.len() as u32);
    let mut bytes = bhs.0.to_vec();
    if parameters.header_digest == Digest::Crc32c {
        bytes.extend(crc32c(&bhs.0));
    }
    if !data.is_empty() {
        let mut padded = data.to_vec();
        padded.resize(data.len() + padding(data.len() as u32) as usize, 0);
        bytes.extend(&padded);
        if parameters.data_digest == Digest::Crc32c {
            bytes.extend(crc32c(&padded));
        }
    }
    bytes
}

/// Splits a stream without digests into its PDUs.
pub(crate) fn split(mut bytes: &[u8]) -> Vec<(Bhs, Vec<u8>)> {
    let mut pdus = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<48>() {
        let bhs = Bhs(*header);
        let len = bhs.data_segment_len();
        let rest = &rest[bhs.ahs_len()..];
        pdus.push((bhs, rest[..len as usize].to_vec()));
        bytes = &rest[(len + padding(len)) as usize..];
    }
    assert!(bytes.is_empty(), "half a PDU");
    pdus
}

pub(crate) fn command(itt: u32, is_final: bool, read: bool, write: bool, length: u32) -> Bhs {
    let command = ScsiCommand {
        is_final,
        read,
        write,
        lun: 0x0001_0000_0000_0000,
        itt,
        expected_data_transfer_length: length,
        cmd_sn: Serial(1),
        exp_stat_sn: Serial(1),
        ..ScsiCommand::default()
    };
    let bhs = command.emit();
    assert_eq!(bhs.opcode(), Ok(Opcode::ScsiCommand));
    bhs
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (seed.wrapping_mul(31) ^ at ^ (at >> 8).wrapping_mul(7)) as u8).collect()
}
