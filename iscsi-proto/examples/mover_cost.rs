//! What a target's mover costs per 512-byte read and per write with immediate data, for callgrind:
//!
//! ```text
//! cargo build --release -p iscsi-proto --example mover_cost
//! valgrind --tool=callgrind --toggle-collect='*measured*' target/release/examples/mover_cost read 100
//! ```
//!
//! Divide the collected instructions by the rounds and by 128, the commands per round. Without callgrind it prints
//! nanoseconds.

use std::hint::black_box;
use std::time::Instant;

use iscsi_memory::{Buf, Payload, Region, SendList};
use iscsi_proto::connection::StreamMover;
use iscsi_proto::datamover::{
    Datamover, GetData, Notification, PutData, SequenceNumbers, Source, TaskHandle, TaskStatus,
};
use iscsi_proto::digest::crc32c;
use iscsi_proto::parameters::{Digest, Parameters};
use iscsi_proto::pdu::{LoginRequest, Residual, ScsiCommand};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};

const DEPTH: u32 = 128;

/// One wake of a target behind the kernel's copy: a batch of commands in, their answers out.
#[inline(never)]
fn measured(mover: &mut TcpMover, received: usize, region: &std::sync::Arc<Region>, sink: &mut Option<Buf>) -> usize {
    mover.handle_received(received);
    let mut numbers = SequenceNumbers::default();
    let status = Some(TaskStatus {
        status: 0,
        residual: Residual::None,
        bidirectional_read_residual: Residual::None,
        sense: &[],
    });
    while let Some(notification) = mover.poll_notify() {
        match notification {
            Notification::Control(bhs) if bhs.0[1] & 0x20 == 0 => {
                let data = Source::Region { region, offset: u64::from(bhs.itt()) * 512, len: 512 };
                mover.put_data(PutData { lun: 0, itt: bhs.itt(), buffer_offset: 0, data, status });
                numbers.stat_sn = numbers.stat_sn.next();
                mover.set_sequence(numbers);
            }
            Notification::Control(bhs) if !mover.immediate_data().is_empty() => {
                region.write(u64::from(bhs.itt()) * 512, mover.immediate_data());
                mover.put_data(PutData { lun: 0, itt: bhs.itt(), buffer_offset: 0, data: Source::None, status });
                numbers.stat_sn = numbers.stat_sn.next();
                mover.set_sequence(numbers);
            }
            Notification::Control(bhs) => {
                if let Some(buf) = sink.take() {
                    let task = TaskHandle { slot: bhs.itt() as u16, generation: 0 };
                    mover.get_data(GetData { task, lun: 0, itt: bhs.itt(), sink: Payload::Buf(buf) });
                }
            }
            Notification::GetDataComplete { task, sink: Payload::Buf(buf) } => {
                *sink = Some(buf);
                let itt = u32::from(task.slot);
                mover.put_data(PutData { lun: 0, itt, buffer_offset: 0, data: Source::None, status });
                numbers.stat_sn = numbers.stat_sn.next();
                mover.set_sequence(numbers);
            }
            _ => {}
        }
    }
    let mut list = SendList::default();
    mover.fill_send_list(&mut list);
    let n = black_box(&list).len();
    mover.handle_sent(n);
    n
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().unwrap_or_else(|| "read".into());
    let rounds: u32 = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let digest = if arguments.next().is_some() { Digest::Crc32c } else { Digest::None };
    let write = kind == "write";

    let login = LoginRequest::straight_to_full_feature([0; 6], 0);
    let mut mover = TcpMover::new(Role::Target, TcpMoverConfig::default());
    let n = mover.receive_window().fill(&login.emit().0);
    mover.handle_received(n);
    while mover.poll_notify().is_some() {}
    mover.notice_key_values(&Parameters { header_digest: digest, data_digest: digest, ..Parameters::default() });
    mover.enable_datamover();

    let mut wire = Vec::new();
    for itt in 0..DEPTH {
        let mut bhs = ScsiCommand {
            read: !write,
            write,
            itt,
            expected_data_transfer_length: 512,
            cmd_sn: Serial(itt),
            ..ScsiCommand::default()
        }
        .emit();
        bhs.set_data_segment_len(if write { 512 } else { 0 });
        wire.extend(bhs.0);
        if digest == Digest::Crc32c {
            wire.extend(crc32c(&bhs.0));
        }
        if write {
            wire.extend([7; 512]);
            if digest == Digest::Crc32c {
                wire.extend(crc32c(&[7; 512]));
            }
        }
    }
    let region = Region::heap(1 << 20);
    let _ = region.reserve_for_write(0, 1 << 20);
    let mut sink = Some(Buf::zeroed(512));
    let start = Instant::now();
    let mut sent = 0;
    for _ in 0..rounds {
        let received = mover.receive_window().fill(&wire);
        sent += measured(&mut mover, received, &region, &mut sink);
    }
    let each = start.elapsed().as_nanos() as f64 / f64::from(rounds) / f64::from(DEPTH);
    println!("{kind}: {each:.1} ns per command, {} bytes sent per command", sent / (rounds * DEPTH) as usize);
}
