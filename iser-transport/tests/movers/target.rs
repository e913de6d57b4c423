//! A target's session of sorts.

use iscsi_memory::{Buf, Payload};
use iscsi_proto::connection::QueueMover;
use iscsi_proto::datamover::{Datamover, GetData, Notification, PutData, Source, TaskHandle, TaskStatus};
use iscsi_proto::parameters::Parameters;
use iscsi_proto::pdu::{
    Bhs, LoginRequest, LoginResponse, NopIn, NopOut, Opcode, RESERVED_TAG, Residual, ScsiCommand,
    TaskManagementRequest, TaskManagementResponse, TaskResponse,
};
use iscsi_proto::serial::Serial;
use iser_transport::mover::{IserCounters, IserMover, IserMoverConfig};
use iser_transport::queue::QueuePair;

use super::{Ledger, Order, Rng, SENSE, TASKS, buf, region};

struct Task {
    itt: u32,
    order: Order,
    generation: u16,
}

pub(super) struct Target<Q> {
    pub(super) mover: IserMover<Q>,
    parameters: Parameters,
    ledger: Ledger,
    /// Tasks that fetch their data, and those that are never answered.
    tasks: Vec<Option<Task>>,
    generation: u16,
    over: bool,
}

fn residual(actual: u32, expected: u32) -> Residual {
    match actual.cmp(&expected) {
        std::cmp::Ordering::Less => Residual::Underflow(expected - actual),
        std::cmp::Ordering::Equal => Residual::None,
        std::cmp::Ordering::Greater => Residual::Overflow(actual - expected),
    }
}

impl<Q: QueuePair> std::fmt::Display for Target<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let orders = self.tasks.iter().flatten().map(|task| (task.itt >> 16, task.order)).collect::<Vec<_>>();
        write!(f, "target: over {}, {orders:?}, backlog {}", self.over, self.mover.backlog())
    }
}

impl<Q: QueuePair> Target<Q> {
    pub(super) fn new(queue: Q, config: IserMoverConfig, parameters: &Parameters) -> Self {
        Self {
            mover: IserMover::new(queue, config),
            parameters: parameters.clone(),
            ledger: Ledger::default(),
            tasks: (0..TASKS).map(|_| None).collect(),
            generation: 0,
            over: false,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn counters(&self) -> IserCounters {
        self.mover.counters()
    }

    pub(super) fn terminate(&mut self) {
        self.mover.connection_terminate();
        self.mover.ring();
    }

    pub(super) fn abort(&mut self) {
        self.mover.connection_abort();
        self.mover.ring();
    }

    pub(super) fn run(&mut self, rng: &mut Rng) {
        self.mover.handle_completions();
        while let Some(notification) = self.mover.poll_notify() {
            match notification {
                Notification::Control(bhs) => self.control(&bhs, rng),
                Notification::GetDataComplete { task, sink } => {
                    let Some(Task { itt, order, .. }) = self.tasks[usize::from(task.slot)].take() else {
                        panic!("data of no task came")
                    };
                    let mut data = vec![0; order.out as usize];
                    match sink {
                        Payload::Buf(buf) => {
                            self.ledger.take(&buf);
                            data.copy_from_slice(&buf);
                        }
                        Payload::Region(slice) => slice.read(0, &mut data),
                    }
                    assert!(data == order.pattern(order.out), "{order:?}");
                    self.mover.deallocate_task_resources(task);
                    self.answer(itt, order);
                }
                Notification::Released(buf) => self.ledger.take(&buf),
                Notification::Terminated(_) => {
                    assert!(!self.over, "the end is told once");
                    self.over = true;
                }
                other => panic!("a target is not told {other:?}"),
            }
        }
        self.mover.ring();
    }

    fn control(&mut self, bhs: &Bhs, rng: &mut Rng) {
        match bhs.opcode().unwrap() {
            Opcode::LoginRequest => {
                let response = LoginResponse {
                    tsih: 1,
                    max_cmd_sn: Serial(TASKS.into()),
                    ..LoginResponse::granting(&LoginRequest::parse(bhs).unwrap())
                };
                let parameters = self.parameters.clone();
                self.mover.notice_key_values(&parameters);
                self.mover.send_control(response.emit(), b"RDMAExtensions=Yes\0");
                self.mover.enable_datamover();
            }
            Opcode::ScsiCommand => self.command(bhs, rng),
            Opcode::TaskManagementRequest => {
                let request = TaskManagementRequest::parse(bhs).unwrap();
                let known = self.give_up(request.referenced_task_tag);
                let response = TaskManagementResponse {
                    response: if known { TaskResponse::Complete } else { TaskResponse::TaskDoesNotExist },
                    additional: 0,
                    itt: request.itt,
                    stat_sn: Serial(0),
                    exp_cmd_sn: Serial(1),
                    max_cmd_sn: Serial(TASKS.into()),
                };
                self.mover.send_control(response.emit(), &[]);
            }
            Opcode::NopOut => {
                let ping = NopOut::parse(bhs).unwrap();
                let pong = NopIn {
                    lun: 0,
                    itt: ping.itt,
                    ttt: RESERVED_TAG,
                    stat_sn: Serial(0),
                    exp_cmd_sn: Serial(1),
                    max_cmd_sn: Serial(TASKS.into()),
                };
                self.mover.send_control(pong.emit(), &[]);
            }
            other => panic!("{other:?}"),
        }
    }

    fn command(&mut self, bhs: &Bhs, rng: &mut Rng) {
        let command = ScsiCommand::parse(bhs).unwrap();
        let order = Order::from_cdb(command.cdb);
        let itt = command.itt;
        if order.out == 0 && !order.silent {
            return self.answer(itt, order);
        }
        let at_hand = self.mover.immediate_data();
        if !order.silent && !at_hand.is_empty() && rng.below(2) == 0 {
            assert!(at_hand == order.pattern(order.out));
            return self.answer(itt, order);
        }
        let slot = self.tasks.iter().position(Option::is_none).expect("the command window");
        self.generation = self.generation.wrapping_add(1);
        let task = TaskHandle { slot: slot as u16, generation: self.generation };
        self.tasks[slot] = Some(Task { itt, order, generation: task.generation });
        if order.silent {
            return;
        }
        let sink = if order.memory & 1 == 0 {
            Payload::Buf(self.ledger.give(Buf::zeroed(order.out as usize)))
        } else {
            Payload::Region(region(&vec![0; order.out as usize]).slice(0, order.out as usize))
        };
        self.mover.get_data(GetData { task, lun: 0, itt, sink });
    }

    /// A task is aborted; whether there is one.
    fn give_up(&mut self, itt: u32) -> bool {
        let found = |task: &Option<Task>| task.as_ref().is_some_and(|task| task.itt == itt);
        let Some(slot) = self.tasks.iter().position(found) else { return false };
        let Some(task) = self.tasks[slot].take() else { return false };
        let handle = TaskHandle { slot: slot as u16, generation: task.generation };
        // What the queue pair works with comes back by Released.
        if let Some(Payload::Buf(buf)) = self.mover.deallocate_task_resources(handle).data_in {
            self.ledger.take(&buf);
        }
        self.mover.forget_command(itt);
        true
    }

    fn answer(&mut self, itt: u32, order: Order) {
        let read = residual(order.actual, order.room);
        let both = order.out > 0 && order.room > 0;
        let status = TaskStatus {
            status: if order.sense { 2 } else { 0 },
            residual: if order.out > 0 { Residual::None } else { read },
            bidirectional_read_residual: if both { read } else { Residual::None },
            sense: if order.sense { SENSE } else { &[] },
        };
        let data = order.pattern(order.actual.min(order.room));
        let (first, last) = if order.memory == 3 { data.split_at(data.len() / 2) } else { ([].as_slice(), &data[..]) };
        if !first.is_empty() {
            let source = Source::Copy(first);
            self.mover.put_data(PutData { lun: 0, itt, buffer_offset: 0, data: source, status: None });
        }
        let lent = region(last);
        let source = match order.memory {
            _ if last.is_empty() => Source::None,
            0 => Source::Copy(last),
            1 => Source::Buf(self.ledger.give(buf(last))),
            _ => Source::Region { region: &lent, offset: 0, len: last.len() },
        };
        let buffer_offset = first.len() as u32;
        self.mover.put_data(PutData { lun: 0, itt, buffer_offset, data: source, status: Some(status) });
    }

    /// Everything is back once the tasks are given up. Returns zero.
    pub(super) fn finish(mut self) -> u64 {
        for slot in 0..self.tasks.len() {
            if let Some(task) = &self.tasks[slot] {
                self.give_up(task.itt);
            }
        }
        assert!(self.ledger.0.is_empty(), "{} buffers are lost", self.ledger.0.len());
        0
    }
}
