//! An initiator's session of sorts.

use std::sync::Arc;

use iscsi_memory::{Payload, Region};
use iscsi_proto::connection::QueueMover;
use iscsi_proto::datamover::{Datamover, Notification, SendCommand, TaskHandle};
use iscsi_proto::parameters::Parameters;
use iscsi_proto::pdu::{
    Bhs, LoginRequest, Opcode, ScsiCommand, ScsiResponse, TaskFunction, TaskManagementRequest, TaskManagementResponse,
    TaskResponse, emit_bidirectional_read_length,
};
use iscsi_proto::serial::Serial;
use iser_transport::mover::{IserCounters, IserMover, IserMoverConfig};
use iser_transport::queue::QueuePair;

use super::{Ledger, Order, Rng, SENSE, TASKS, buf, region};

/// Task management functions at a time.
const FUNCTIONS: usize = 8;

struct Command {
    order: Order,
    generation: u16,
    aborting: bool,
    /// Where its data lie, if they are lent.
    source: Option<Arc<Region>>,
    sink: Option<Arc<Region>>,
}

pub(super) struct Initiator<Q> {
    pub(super) mover: IserMover<Q>,
    parameters: Parameters,
    ledger: Ledger,
    commands: Vec<Option<Command>>,
    generation: u16,
    functions: Vec<u32>,
    cmd_sn: u32,
    open: bool,
    over: bool,
    answered: u64,
}

impl<Q: QueuePair> std::fmt::Display for Initiator<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let orders =
            self.commands.iter().flatten().map(|command| (command.generation, command.aborting, command.order));
        write!(f, "initiator: open {}, over {}, {:?}, ", self.open, self.over, orders.collect::<Vec<_>>())?;
        write!(f, "functions {:x?}, backlog {}", self.functions, self.mover.backlog())
    }
}

impl<Q: QueuePair> Initiator<Q> {
    pub(super) fn new(queue: Q, config: IserMoverConfig, parameters: &Parameters) -> Self {
        let mut mover = IserMover::new(queue, config);
        mover.notice_key_values(parameters);
        let login = LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 0, 1], 1);
        mover.send_control(login.emit(), b"RDMAExtensions=Yes\0");
        mover.ring();
        Self {
            mover,
            parameters: parameters.clone(),
            ledger: Ledger::default(),
            commands: (0..TASKS).map(|_| None).collect(),
            generation: 0,
            functions: Vec::new(),
            cmd_sn: 1,
            open: false,
            over: false,
            answered: 0,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn is_idle(&self) -> bool {
        self.open && self.left() == 0
    }

    pub(super) fn left(&self) -> usize {
        self.commands.iter().flatten().count()
    }

    pub(super) fn counters(&self) -> IserCounters {
        self.mover.counters()
    }

    pub(super) fn may_submit(&self) -> bool {
        self.open && !self.over && self.commands.iter().any(Option::is_none)
    }

    pub(super) fn submit(&mut self, order: Order, rng: &mut Rng) {
        let slot = self.commands.iter().position(Option::is_none).unwrap();
        self.generation = self.generation.wrapping_add(1);
        let task = TaskHandle { slot: slot as u16, generation: self.generation };
        let (mut source, mut sink) = (None, None);
        let bytes = order.pattern(order.out);
        let data_out = (order.out > 0).then(|| {
            if rng.below(2) == 0 {
                Payload::Buf(self.ledger.give(buf(&bytes)))
            } else {
                let region = source.insert(region(&bytes));
                Payload::Region(region.slice(0, bytes.len()))
            }
        });
        let data_in = (order.room > 0).then(|| {
            let room = vec![0xee; order.room as usize];
            if rng.below(2) == 0 {
                Payload::Buf(self.ledger.give(buf(&room)))
            } else {
                let region = sink.insert(region(&room));
                Payload::Region(region.slice(0, room.len()))
            }
        });
        let (read, write) = (order.room > 0, order.out > 0);
        let mut ahs = Vec::new();
        if read && write {
            emit_bidirectional_read_length(&mut ahs, order.room);
        }
        let bhs = ScsiCommand {
            read,
            write,
            itt: task.to_itt(),
            expected_data_transfer_length: if write { order.out } else { order.room },
            cmd_sn: Serial(self.cmd_sn),
            exp_stat_sn: Serial(1),
            cdb: order.cdb(),
            ..ScsiCommand::default()
        };
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.commands[slot] = Some(Command { order, generation: task.generation, aborting: false, source, sink });
        self.mover.send_command(SendCommand { task, bhs: bhs.emit(), ahs: &ahs, data_out, data_in });
        self.mover.ring();
    }

    pub(super) fn abort_a_task(&mut self, rng: &mut Rng) {
        if self.functions.len() < 2 {
            self.abort_task(rng.below(TASKS.into()) as usize);
        }
        self.mover.ring();
    }

    pub(super) fn abort_all(&mut self) {
        let mut slots: Vec<_> = (0..usize::from(TASKS)).filter(|slot| self.commands[*slot].is_some()).collect();
        // What was sent comes before what waits.
        slots.sort_by_key(|slot| self.commands[*slot].as_ref().map(|command| command.generation));
        slots.into_iter().for_each(|slot| self.abort_task(slot));
        self.mover.ring();
    }

    fn abort_task(&mut self, slot: usize) {
        let Some(command) = self.commands[slot].as_mut().filter(|command| !command.aborting) else { return };
        if self.functions.len() >= FUNCTIONS || self.over {
            return;
        }
        command.aborting = true;
        let itt = TaskHandle { slot: slot as u16, generation: command.generation }.to_itt();
        let request = TaskManagementRequest {
            immediate: true,
            function: Ok(TaskFunction::AbortTask),
            lun: 0,
            itt: itt ^ 0x8000,
            referenced_task_tag: itt,
            cmd_sn: Serial(self.cmd_sn),
            exp_stat_sn: Serial(1),
            ref_cmd_sn: Serial(0),
            exp_data_sn: 0,
        };
        self.functions.push(itt);
        self.mover.send_control(request.emit(), &[]);
    }

    pub(super) fn terminate(&mut self) {
        self.open = false;
        self.mover.connection_terminate();
        self.mover.ring();
    }

    pub(super) fn abort(&mut self) {
        self.open = false;
        self.mover.connection_abort();
        self.mover.ring();
    }

    pub(super) fn run(&mut self) {
        self.mover.handle_completions();
        while let Some(notification) = self.mover.poll_notify() {
            match notification {
                Notification::Control(bhs) => self.control(&bhs),
                Notification::Released(buf) => self.ledger.take(&buf),
                Notification::Terminated(_) => {
                    assert!(!self.over, "the end is told once");
                    (self.open, self.over) = (false, true);
                }
                other => panic!("an initiator is not told {other:?}"),
            }
        }
        self.mover.ring();
    }

    fn control(&mut self, bhs: &Bhs) {
        match bhs.opcode().unwrap() {
            Opcode::LoginResponse => {
                let parameters = self.parameters.clone();
                self.mover.notice_key_values(&parameters);
                self.mover.enable_datamover();
                self.open = true;
            }
            Opcode::ScsiResponse => {
                self.answered += 1;
                let response = ScsiResponse::parse(bhs).unwrap();
                let sense: &[u8] = if response.status == 0 { &[] } else { &[0, SENSE.len() as u8] };
                let (length, sense_data) = self.mover.control_data().split_at(sense.len());
                assert_eq!((length, sense_data), (sense, if sense.is_empty() { &[] } else { SENSE }));
                let task = TaskHandle::from_itt(bhs.itt());
                let of_task = |command: &&Command| command.generation == task.generation;
                if let Some(command) = self.commands[usize::from(task.slot)].as_ref().filter(of_task) {
                    assert_eq!(response.status, if command.order.sense { 2 } else { 0 });
                }
                self.give_back(task, true);
            }
            Opcode::TaskManagementResponse => {
                let pdu = TaskManagementResponse::parse(bhs).unwrap();
                let at = self.functions.iter().position(|itt| pdu.itt == itt ^ 0x8000).unwrap();
                let itt = self.functions.swap_remove(at);
                let done = self.give_back(TaskHandle::from_itt(itt), false);
                // A response comes before the answer to the abort that it made needless.
                assert!(!done || pdu.response == TaskResponse::Complete);
            }
            Opcode::NopIn => {}
            other => panic!("{other:?}"),
        }
    }

    /// A task is over; whether it was not before.
    fn give_back(&mut self, task: TaskHandle, answered: bool) -> bool {
        let Some(place) = self.commands.get_mut(usize::from(task.slot)) else { return false };
        let Some(command) = place.take_if(|command| command.generation == task.generation) else { return false };
        let buffers = self.mover.deallocate_task_resources(task);
        let order = command.order;
        assert_eq!((buffers.data_out.is_some(), buffers.data_in.is_some()), (order.out > 0, order.room > 0));
        let bytes = order.pattern(order.out);
        match buffers.data_out {
            Some(Payload::Buf(buf)) => {
                self.ledger.take(&buf);
                assert!(buf[..] == bytes[..]);
            }
            Some(Payload::Region(slice)) => assert_eq!(slice.len(), bytes.len()),
            None => {}
        }
        let came = order.actual.min(order.room);
        if answered && !order.sense {
            assert_eq!(buffers.data_in_len, came, "{order:?}");
        }
        let mut room = vec![0; order.room as usize];
        match buffers.data_in {
            Some(Payload::Buf(buf)) => {
                self.ledger.take(&buf);
                room.copy_from_slice(&buf);
            }
            Some(Payload::Region(slice)) => slice.read(0, &mut room),
            None => {}
        }
        if answered {
            let (data, rest) = room.split_at(came as usize);
            assert!(data == order.pattern(came), "{order:?}");
            assert!(rest.iter().all(|byte| *byte == 0xee), "{order:?}");
        }
        // Lent memory is let go.
        for region in [command.source, command.sink].into_iter().flatten() {
            assert_eq!(Arc::strong_count(&region), 1);
        }
        true
    }

    /// Everything is back once the tasks are given up. Returns how many commands were answered.
    pub(super) fn finish(mut self) -> u64 {
        for slot in 0..TASKS {
            if let Some(command) = &self.commands[usize::from(slot)] {
                self.give_back(TaskHandle { slot, generation: command.generation }, false);
            }
        }
        assert!(self.ledger.0.is_empty(), "{} buffers are lost", self.ledger.0.len());
        self.answered
    }
}
