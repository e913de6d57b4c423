//! The iSER mover allocates nothing per PDU in steady state, in either role, with iWARP below it.

use std::sync::Arc;

use iscsi_memory::{BufPool, CountingAllocator, Payload, Region, SendList};
use iscsi_proto::connection::StreamMover;
use iscsi_proto::datamover::{Datamover, GetData, Notification, PutData, SendCommand, Source, TaskHandle, TaskStatus};
use iscsi_proto::parameters::Parameters;
use iscsi_proto::pdu::{LoginRequest, LoginResponse, Opcode, Residual, ScsiCommand};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::Role;
use iser_transport::iwarp::{IwarpConfig, IwarpQueue};
use iser_transport::mover::{IserMover, IserMoverConfig};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

type Mover = IserMover<IwarpQueue>;

const DEPTH: u16 = 16;
const GOOD: TaskStatus<'static> =
    TaskStatus { status: 0, residual: Residual::None, bidirectional_read_residual: Residual::None, sense: &[] };

/// What the two sessions have.
struct Memory {
    region: Arc<Region>,
    pool: BufPool,
    done: u32,
}

impl Memory {
    /// Odd slots work with buffers, even ones with lent memory.
    fn sink(&mut self, slot: u16, len: usize) -> Payload {
        if slot.is_multiple_of(2) {
            Payload::Region(self.region.slice(0, len))
        } else {
            Payload::Buf(self.pool.take(len))
        }
    }

    fn give(&mut self, sink: Payload) {
        if let Payload::Buf(buf) = sink {
            self.pool.give(buf);
        }
    }

    fn answer(&mut self, target: &mut Mover, itt: u32, read: usize) {
        let data = match (read, itt & 1) {
            (0, _) => Source::None,
            (len, 0) => Source::Region { region: &self.region, offset: 0, len },
            (len, _) => Source::Buf(self.pool.take(len)),
        };
        target.put_data(PutData { lun: 0, itt, buffer_offset: 0, data, status: Some(GOOD) });
    }

    fn target_drain(&mut self, target: &mut Mover) {
        while let Some(notification) = target.poll_notify() {
            match notification {
                Notification::Control(bhs) if bhs.opcode() == Ok(Opcode::LoginRequest) => {
                    target.notice_key_values(&Parameters::default());
                    let response = LoginResponse { tsih: 1, max_cmd_sn: Serial(16), ..LoginResponse::granting(&LOGIN) };
                    target.send_control(response.emit(), &[]);
                    target.enable_datamover();
                }
                Notification::Control(bhs) => {
                    let command = ScsiCommand::parse(&bhs).unwrap();
                    let len = command.expected_data_transfer_length as usize;
                    let (slot, itt) = (command.itt as u16, command.itt);
                    if command.write {
                        let sink = self.sink(slot, len);
                        target.get_data(GetData { task: TaskHandle { slot, generation: 1 }, lun: 0, itt, sink });
                    } else {
                        self.answer(target, itt, len);
                    }
                }
                Notification::GetDataComplete { task, sink } => {
                    self.give(sink);
                    self.answer(target, u32::from(task.slot), 0);
                }
                Notification::Released(buf) => self.pool.give(buf),
                other => panic!("the target told {other:?}"),
            }
        }
        target.ring();
    }

    fn initiator_drain(&mut self, initiator: &mut Mover) {
        while let Some(notification) = initiator.poll_notify() {
            match notification {
                Notification::Control(bhs) if bhs.opcode() == Ok(Opcode::LoginResponse) => {
                    initiator.notice_key_values(&Parameters::default());
                    initiator.enable_datamover();
                }
                Notification::Control(bhs) => {
                    let buffers = initiator.deallocate_task_resources(TaskHandle::from_itt(bhs.itt()));
                    if let Some(Payload::Buf(buf)) = buffers.data_out {
                        self.pool.give(buf);
                    }
                    if let Some(sink) = buffers.data_in {
                        self.give(sink);
                    }
                    self.done += 1;
                }
                Notification::Released(buf) => self.pool.give(buf),
                other => panic!("the initiator told {other:?}"),
            }
        }
        initiator.ring();
    }

    fn submit(&mut self, initiator: &mut Mover, slot: u16, write: bool, len: usize) {
        let task = TaskHandle { slot, generation: 0 };
        let bhs = ScsiCommand {
            read: !write,
            write,
            itt: task.to_itt(),
            expected_data_transfer_length: len as u32,
            cmd_sn: Serial(1),
            exp_stat_sn: Serial(1),
            ..ScsiCommand::default()
        }
        .emit();
        let data_out = write.then(|| match self.sink(slot, len) {
            Payload::Buf(buf) => Payload::Buf(buf),
            Payload::Region(slice) => Payload::Region(slice),
        });
        let data_in = (!write).then(|| self.sink(slot, len));
        initiator.send_command(SendCommand { task, bhs, ahs: &[], data_out, data_in });
    }
}

const LOGIN: LoginRequest = LoginRequest::straight_to_full_feature([0x80, 1, 2, 3, 4, 5], 0);

/// Moves bytes that wait from one mover to the other, through memory that exists already. Says how many.
fn carry(from: &mut Mover, to: &mut Mover, wire: &mut [u8]) -> usize {
    let mut list = SendList::default();
    from.fill_send_list(&mut list);
    let mut n = 0;
    for slice in list.as_slice() {
        if slice.len() > wire.len() - n {
            break;
        }
        slice.copy_to(&mut wire[n..n + slice.len()]);
        n += slice.len();
    }
    from.handle_sent(n);
    let mut rest = &wire[..n];
    while !rest.is_empty() {
        let taken = to.receive_window().fill(rest);
        assert!(taken > 0, "the window is open");
        to.handle_received(taken);
        rest = &rest[taken..];
    }
    n
}

fn run(initiator: &mut Mover, target: &mut Mover, memory: &mut Memory, wire: &mut [u8]) {
    loop {
        initiator.ring();
        let mut moved = carry(initiator, target, wire);
        memory.target_drain(target);
        moved += carry(target, initiator, wire);
        memory.initiator_drain(initiator);
        if moved == 0 {
            break;
        }
    }
}

fn assert_no_allocation(write: bool, len: usize) {
    let config = |role| IserMoverConfig { max_tasks: DEPTH, ..IserMoverConfig::new(role) };
    let mut initiator = IserMover::new(IwarpQueue::connect(IwarpConfig::default()), config(Role::Initiator));
    let mut target = IserMover::new(IwarpQueue::accept(IwarpConfig::default()), config(Role::Target));
    let region = Region::heap(1 << 20);
    region.reserve_for_write(0, 1 << 20).unwrap();
    let mut memory = Memory { region, pool: BufPool::new(64 << 20), done: 0 };
    let mut wire = vec![0; 4 << 20];
    initiator.notice_key_values(&Parameters::default());
    initiator.send_control(LOGIN.emit(), &[]);
    run(&mut initiator, &mut target, &mut memory, &mut wire);
    let mut before = 0;
    for round in 0..12 {
        if round == 6 {
            before = CountingAllocator::allocations();
        }
        for slot in 0..DEPTH {
            memory.submit(&mut initiator, slot, write, len);
        }
        run(&mut initiator, &mut target, &mut memory, &mut wire);
    }
    assert_eq!(memory.done, 12 * u32::from(DEPTH));
    assert_eq!(CountingAllocator::allocations() - before, 0, "write {write}, {len} bytes");
}

// One test, since the counter is that of the whole process.
#[test]
fn nothing_is_allocated_per_command() {
    for write in [false, true] {
        for len in [512, 8192, 65536] {
            assert_no_allocation(write, len);
        }
    }
}
