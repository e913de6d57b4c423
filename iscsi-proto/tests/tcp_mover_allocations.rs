//! The mover allocates nothing per PDU in steady state, in either role, by copy or by reference, with and without
//! digests.

use std::sync::Arc;

use iscsi_memory::{Buf, BufPool, CountingAllocator, Payload, Region, SendList};
use iscsi_proto::connection::StreamMover;
use iscsi_proto::datamover::{Datamover, GetData, Notification, PutData, SendCommand, Source, TaskHandle, TaskStatus};
use iscsi_proto::parameters::{Digest, Parameters};
use iscsi_proto::pdu::{Bhs, LoginRequest, LoginResponse, Residual, ScsiCommand};
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const DEPTH: u16 = 32;

/// Moves all bytes that wait from one mover to the other, through memory that exists already.
fn carry(from: &mut TcpMover, to: &mut TcpMover, wire: &mut [u8]) {
    let mut list = SendList::default();
    from.fill_send_list(&mut list);
    let mut n = 0;
    for slice in list.as_slice() {
        let part = slice.len().min(wire.len() - n);
        if part < slice.len() {
            break;
        }
        slice.copy_to(&mut wire[n..n + part]);
        n += part;
    }
    from.handle_sent(n);
    let mut rest = &wire[..n];
    while !rest.is_empty() {
        let taken = to.receive_window().fill(rest);
        to.handle_received(taken);
        rest = &rest[taken..];
        assert!(taken > 0, "the window is closed");
        if to.role() == Role::Target {
            target_drain(to);
        } else {
            initiator_drain(to);
        }
    }
}

thread_local! {
    static REGION: Arc<Region> = Region::heap(1 << 20);
    static POOL: std::cell::RefCell<BufPool> = std::cell::RefCell::new(BufPool::new(64 << 20));
    static DONE: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

fn take(len: usize) -> Buf {
    POOL.with_borrow_mut(|pool| pool.take(len))
}

fn give(buf: Buf) {
    POOL.with_borrow_mut(|pool| pool.give(buf));
}

fn answer(target: &mut TcpMover, itt: u32, read: usize) {
    let status = Some(TaskStatus {
        status: 0,
        residual: Residual::None,
        bidirectional_read_residual: Residual::None,
        sense: &[],
    });
    // Odd slots answer out of a buffer, even ones out of lent memory.
    if itt & 1 == 0 {
        REGION.with(|region| {
            let data = if read == 0 { Source::None } else { Source::Region { region, offset: 512, len: read } };
            target.put_data(PutData { lun: 0, itt, buffer_offset: 0, data, status });
        });
    } else {
        let data = if read == 0 { Source::None } else { Source::Buf(take(read)) };
        target.put_data(PutData { lun: 0, itt, buffer_offset: 0, data, status });
    }
}

fn target_drain(target: &mut TcpMover) {
    while let Some(notification) = target.poll_notify() {
        match notification {
            Notification::Control(bhs) => {
                let command = ScsiCommand::parse(&bhs).unwrap();
                let len = command.expected_data_transfer_length as usize;
                if command.write {
                    let task = TaskHandle { slot: command.itt as u16, generation: 1 };
                    let sink = Payload::Buf(take(len));
                    target.get_data(GetData { task, lun: 0, itt: command.itt, sink });
                } else {
                    answer(target, command.itt, len);
                }
            }
            Notification::GetDataComplete { task, sink: Payload::Buf(buf) } => {
                give(buf);
                answer(target, TaskHandle { generation: 0, ..task }.to_itt(), 0);
            }
            Notification::Released(buf) => give(buf),
            other => panic!("the target told {other:?}"),
        }
    }
}

fn initiator_drain(initiator: &mut TcpMover) {
    while let Some(notification) = initiator.poll_notify() {
        match notification {
            Notification::Control(bhs) => {
                let buffers = initiator.deallocate_task_resources(TaskHandle::from_itt(bhs.itt()));
                if let Some(Payload::Buf(buf)) = buffers.data_in {
                    give(buf);
                }
                if let Some(Payload::Buf(buf)) = buffers.data_out {
                    give(buf);
                }
                DONE.set(DONE.get() + 1);
            }
            Notification::Released(buf) => give(buf),
            other => panic!("the initiator told {other:?}"),
        }
    }
}

fn submit(initiator: &mut TcpMover, slot: u16, write: bool, len: usize) {
    let task = TaskHandle { slot, generation: 0 };
    let command = ScsiCommand {
        read: !write,
        write,
        itt: task.to_itt(),
        expected_data_transfer_length: len as u32,
        ..ScsiCommand::default()
    };
    initiator.send_command(SendCommand {
        task,
        bhs: command.emit(),
        ahs: &[],
        data_out: write.then(|| Payload::Buf(take(len))),
        data_in: (!write).then(|| Payload::Buf(take(len))),
    });
}

fn login(parameters: &Parameters) -> (TcpMover, TcpMover) {
    let request = LoginRequest::straight_to_full_feature([0; 6], 0);
    let response = LoginResponse { tsih: 1, ..LoginResponse::granting(&request) };
    let enter = |role, Bhs(hello): Bhs| {
        let mut mover = TcpMover::new(role, TcpMoverConfig::default());
        let n = mover.receive_window().fill(&hello);
        mover.handle_received(n);
        assert!(matches!(mover.poll_notify(), Some(Notification::Control(_))));
        mover.notice_key_values(parameters);
        mover.enable_datamover();
        mover
    };
    (enter(Role::Initiator, response.emit()), enter(Role::Target, request.emit()))
}

#[test]
fn nothing_is_allocated_per_pdu() {
    let mut wire = vec![0; 64 << 20];
    for digest in [Digest::None, Digest::Crc32c] {
        for initial_r2t in [false, true] {
            let parameters = Parameters {
                header_digest: digest,
                data_digest: digest,
                initial_r2t,
                max_recv_data_segment_length: 32768,
                peer_max_recv_data_segment_length: 32768,
                max_outstanding_r2t: 2,
                ..Parameters::default()
            };
            let (mut initiator, mut target) = login(&parameters);
            let mut rounds = 0;
            let mut round = |len: usize, write: bool, initiator: &mut TcpMover, target: &mut TcpMover| {
                DONE.set(0);
                for slot in 0..DEPTH {
                    submit(initiator, slot, write, len);
                }
                while DONE.get() < DEPTH.into() {
                    carry(initiator, target, &mut wire);
                    carry(target, initiator, &mut wire);
                }
                rounds += 1;
            };
            for (len, write) in
                [(512, false), (512, true), (4096, true), (65_536, false), (65_536, true), (300_000, true)]
            {
                for _ in 0..2 {
                    round(len, write, &mut initiator, &mut target);
                }
                let before = CountingAllocator::allocations();
                for _ in 0..5 {
                    round(len, write, &mut initiator, &mut target);
                }
                let allocations = CountingAllocator::allocations() - before;
                assert_eq!(allocations, 0, "{len} bytes, write {write}, {digest:?}, InitialR2T {initial_r2t}");
            }
            assert_eq!(rounds, 42);
        }
    }
}
