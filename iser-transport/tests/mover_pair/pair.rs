//! Both ends, with what a session would do on each side.

use std::collections::HashMap;
use std::sync::Arc;

use iscsi_memory::{Buf, Region};
use iscsi_proto::datamover::{
    CommandData, Datamover, GetData, Notification, PutData, SendCommand, Sink, Source, TaskBuffers, TaskHandle,
    TaskStatus,
};
use iscsi_proto::parameters::Parameters;
use iscsi_proto::pdu::{
    Ahs, AhsIter, Bhs, LoginRequest, LoginResponse, LoginStatus, Opcode, Residual, ScsiCommand, ScsiResponse, Stage,
    TaskAttribute, emit_bidirectional_read_length,
};
use iscsi_proto::serial::Serial;
use iser_transport::mover::{IserCounters, IserMover};

use crate::link::{Ends, Link};

/// One command of a run.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) write: usize,
    pub(crate) read: usize,
    /// Lent memory instead of buffers, on all sides.
    pub(crate) lent: bool,
    /// CHECK CONDITION with sense instead of GOOD.
    pub(crate) sense: bool,
    /// The read data in two `put_data` calls.
    pub(crate) twice: bool,
}

/// Bytes that tell where they belong.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (seed.wrapping_mul(31) ^ at ^ (at >> 8).wrapping_mul(7)) as u8).collect()
}

fn lent(bytes: &[u8]) -> Arc<Region> {
    let region = Region::heap(bytes.len());
    region.reserve_for_write(0, bytes.len() as u64).unwrap();
    region.write(0, bytes);
    region
}

fn buffer(bytes: &[u8]) -> Buf {
    let mut buf = Buf::zeroed(bytes.len());
    buf.copy_from_slice(bytes);
    buf
}

fn empty_sink(len: usize, lent: bool) -> Sink {
    if lent {
        let region = Region::heap(len);
        region.reserve_for_write(0, len as u64).unwrap();
        Sink::Region(region.slice(0, len))
    } else {
        Sink::Buf(Buf::zeroed(len))
    }
}

fn content(sink: &Sink) -> Vec<u8> {
    let mut bytes = vec![0; sink.len()];
    match sink {
        Sink::Buf(buf) => bytes.copy_from_slice(buf),
        Sink::Region(slice) => slice.read(0, &mut bytes),
    }
    bytes
}

fn login_request() -> Bhs {
    LoginRequest {
        incomplete: false,
        csg: Stage::LoginOperationalNegotiation,
        nsg: Some(Stage::FullFeaturePhase),
        version_max: 0,
        version_min: 0,
        isid: [0x80, 1, 2, 3, 4, 5],
        tsih: 0,
        itt: 0,
        cid: 0,
        cmd_sn: Serial(1),
        exp_stat_sn: Serial(0),
    }
    .emit()
}

fn login_response() -> Bhs {
    LoginResponse {
        incomplete: false,
        csg: Stage::LoginOperationalNegotiation,
        nsg: Some(Stage::FullFeaturePhase),
        version_max: 0,
        version_active: 0,
        isid: [0x80, 1, 2, 3, 4, 5],
        tsih: 1,
        itt: 0,
        stat_sn: Serial(0),
        exp_cmd_sn: Serial(1),
        max_cmd_sn: Serial(8),
        status: LoginStatus::SUCCESS,
    }
    .emit()
}

/// The target's view of the initiator's parameters.
fn mirrored(parameters: &Parameters) -> Parameters {
    Parameters {
        max_recv_data_segment_length: parameters.peer_max_recv_data_segment_length,
        peer_max_recv_data_segment_length: parameters.max_recv_data_segment_length,
        ..parameters.clone()
    }
}

/// Both ends and what is between them. The connection may break at any time; each side then has its end told once.
pub(crate) struct Pair<L: Link> {
    initiator: IserMover<L::Queue>,
    target: IserMover<L::Queue>,
    link: L,
    parameters: Parameters,
    operations: Vec<Operation>,
    logged_in: [bool; 2],
    submitted: usize,
    /// Read lengths of commands whose write data are under way at the target.
    commands: HashMap<u16, (u32, usize)>,
    completed: Vec<bool>,
    /// Buffers given to the movers and not come back.
    given: usize,
    ended: [bool; 2],
}

impl<L: Link> Pair<L> {
    /// `parameters` as the initiator sees them.
    pub(crate) fn new((initiator, target, link): Ends<L>, parameters: &Parameters, operations: Vec<Operation>) -> Self {
        Self {
            initiator,
            target,
            link,
            parameters: parameters.clone(),
            completed: vec![false; operations.len()],
            operations,
            logged_in: [false; 2],
            submitted: 0,
            commands: HashMap::new(),
            given: 0,
            ended: [false; 2],
        }
    }

    pub(crate) fn counters(&self) -> (IserCounters, IserCounters) {
        (self.initiator.counters(), self.target.counters())
    }

    /// Commands that are not answered.
    pub(crate) fn left(&self) -> usize {
        self.completed.iter().filter(|done| !**done).count()
    }

    /// Logs in, and runs until all commands are answered, the connection has ended, or nothing moves.
    pub(crate) fn run(&mut self) {
        self.initiator.notice_key_values(&self.parameters);
        self.initiator.send_control(login_request(), b"InitiatorName=iqn.2026-01.example:i\0");
        loop {
            let moved = self.link.step(&mut self.initiator, &mut self.target);
            let told = self.drain();
            if !moved && !told {
                break;
            }
        }
    }

    /// Ends the connection if it stands, and sees to it that everything comes back.
    pub(crate) fn finish(&mut self) {
        let whole = self.left() == 0;
        self.initiator.connection_terminate();
        self.run_out();
        if self.ended != [true; 2] {
            assert!(!whole || self.ended == [true; 2], "an orderly end reaches both sides");
            self.link.cut(&mut self.initiator, &mut self.target);
            self.run_out();
        }
        assert_eq!(self.ended, [true; 2], "both ends are told");
        for slot in 0..self.operations.len() as u16 {
            let TaskBuffers { data_out, data_in, .. } =
                self.initiator.deallocate_task_resources(TaskHandle { slot, generation: 7 });
            self.given -= usize::from(matches!(data_out, Some(CommandData::Buf(_))));
            self.given -= usize::from(matches!(data_in, Some(Sink::Buf(_))));
            let sink = self.target.deallocate_task_resources(TaskHandle { slot, generation: 3 }).data_in;
            self.given -= usize::from(matches!(sink, Some(Sink::Buf(_))));
        }
        assert_eq!(self.given, 0, "all buffers come back");
        assert_eq!((self.initiator.backlog(), self.target.backlog()), (0, 0));
    }

    fn run_out(&mut self) {
        loop {
            let moved = self.link.step(&mut self.initiator, &mut self.target);
            let told = self.drain();
            if !moved && !told {
                break;
            }
        }
    }

    fn drain(&mut self) -> bool {
        let mut any = false;
        while let Some(notification) = self.target.poll_notify() {
            assert!(!self.ended[1], "nothing is told after the end");
            self.target_told(notification);
            any = true;
        }
        while let Some(notification) = self.initiator.poll_notify() {
            assert!(!self.ended[0], "nothing is told after the end");
            self.initiator_told(notification);
            any = true;
        }
        any
    }

    fn target_told(&mut self, notification: Notification) {
        match notification {
            Notification::Control(_) if !self.logged_in[1] => {
                self.logged_in[1] = true;
                self.target.notice_key_values(&mirrored(&self.parameters));
                self.target.send_control(login_response(), b"TargetPortalGroupTag=1\0");
                self.target.enable_datamover();
            }
            Notification::Control(bhs) => self.command_came(&bhs),
            Notification::GetDataComplete { task, sink } => {
                let operation = &self.operations[usize::from(task.slot)];
                assert_eq!(content(&sink), pattern(u32::from(task.slot), operation.write));
                self.given -= usize::from(matches!(sink, Sink::Buf(_)));
                let (itt, read) = self.commands.remove(&task.slot).unwrap();
                self.answer(task.slot, itt, read);
            }
            Notification::Released(_) => self.given -= 1,
            Notification::Terminated(_) => self.ended[1] = true,
            other => panic!("the target told {other:?}"),
        }
    }

    fn command_came(&mut self, bhs: &Bhs) {
        let command = ScsiCommand::parse(bhs).unwrap();
        let expected = command.expected_data_transfer_length as usize;
        let bidirectional = AhsIter::new(self.target.control_ahs()).find_map(|ahs| match ahs {
            Ok(Ahs::BidirectionalReadLength(len)) => Some(len as usize),
            _ => None,
        });
        let read = bidirectional.unwrap_or(if command.read { expected } else { 0 });
        let slot = command.itt as u16;
        if !command.write {
            return self.answer(slot, command.itt, read);
        }
        let at_hand = self.target.immediate_data();
        if !at_hand.is_empty() {
            assert_eq!(at_hand, pattern(u32::from(slot), self.operations[usize::from(slot)].write));
            if slot.is_multiple_of(2) {
                return self.answer(slot, command.itt, read);
            }
        }
        self.commands.insert(slot, (command.itt, read));
        let lent = self.operations[usize::from(slot)].lent;
        self.given += usize::from(!lent);
        let task = TaskHandle { slot, generation: 3 };
        let sink = empty_sink(expected, lent);
        self.target.get_data(GetData { task, lun: command.lun, itt: command.itt, sink });
    }

    fn answer(&mut self, slot: u16, itt: u32, read: usize) {
        let operation = self.operations[usize::from(slot)].clone();
        let bytes = pattern(!u32::from(slot), read);
        let middle = if operation.twice { read / 2 } else { 0 };
        let region = lent(&bytes);
        for (part, last) in [(0..middle, false), (middle..read, true)] {
            if part.is_empty() && !last {
                continue;
            }
            let status = last.then_some(TaskStatus {
                status: if operation.sense { 2 } else { 0 },
                residual: Residual::None,
                bidirectional_read_residual: Residual::None,
                sense: if operation.sense { &[0x70, 0, 5, 0, 0] } else { &[] },
            });
            let data = if part.is_empty() {
                Source::None
            } else if operation.lent {
                Source::Region { region: &region, offset: part.start as u64, len: part.len() }
            } else if slot.is_multiple_of(2) {
                Source::Copy(&bytes[part.clone()])
            } else {
                self.given += 1;
                Source::Buf(buffer(&bytes[part.clone()]))
            };
            let buffer_offset = part.start as u32;
            self.target.put_data(PutData { lun: 0, itt, buffer_offset, data, status });
        }
    }

    fn initiator_told(&mut self, notification: Notification) {
        match notification {
            Notification::Control(_) if !self.logged_in[0] => {
                self.logged_in[0] = true;
                assert_eq!(self.initiator.control_data(), b"TargetPortalGroupTag=1\0");
                self.initiator.notice_key_values(&self.parameters);
                self.initiator.enable_datamover();
                for slot in 0..self.operations.len() as u16 {
                    self.submit(slot);
                }
            }
            Notification::Control(bhs) => self.complete(&bhs),
            Notification::Released(_) => self.given -= 1,
            Notification::Terminated(_) => self.ended[0] = true,
            other => panic!("the initiator told {other:?}"),
        }
    }

    fn submit(&mut self, slot: u16) {
        self.submitted += 1;
        let operation = self.operations[usize::from(slot)].clone();
        let task = TaskHandle { slot, generation: 7 };
        let (read, write) = (operation.read > 0, operation.write > 0);
        let bhs = ScsiCommand {
            immediate: false,
            is_final: true,
            read,
            write,
            attribute: TaskAttribute::Simple,
            priority: 0,
            lun: 0,
            itt: task.to_itt(),
            expected_data_transfer_length: if write { operation.write } else { operation.read } as u32,
            cmd_sn: Serial(1),
            exp_stat_sn: Serial(1),
            cdb: [0; 16],
        }
        .emit();
        let mut ahs = Vec::new();
        if read && write {
            emit_bidirectional_read_length(&mut ahs, operation.read as u32);
        }
        let data = pattern(u32::from(slot), operation.write);
        let data_out = write.then(|| {
            if operation.lent {
                CommandData::Region(lent(&data).slice(0, data.len()))
            } else {
                self.given += 1;
                CommandData::Buf(buffer(&data))
            }
        });
        let data_in = read.then(|| {
            self.given += usize::from(!operation.lent);
            empty_sink(operation.read, operation.lent)
        });
        self.initiator.send_command(SendCommand { task, bhs, ahs: &ahs, data_out, data_in });
    }

    fn complete(&mut self, bhs: &Bhs) {
        let task = TaskHandle::from_itt(bhs.itt());
        let operation = self.operations[usize::from(task.slot)].clone();
        assert_eq!(bhs.opcode(), Ok(Opcode::ScsiResponse), "status has a PDU of its own (RFC 7145 7.3.5)");
        let response = ScsiResponse::parse(bhs).unwrap();
        assert_eq!(response.status, if operation.sense { 2 } else { 0 });
        let sense: &[u8] = if operation.sense { &[0, 5, 0x70, 0, 5, 0, 0] } else { &[] };
        assert_eq!(self.initiator.control_data(), sense);
        let TaskBuffers { data_out, data_in, data_in_len } = self.initiator.deallocate_task_resources(task);
        if !operation.sense {
            assert_eq!(data_in_len as usize, operation.read);
        }
        self.given -= usize::from(matches!(data_out, Some(CommandData::Buf(_))));
        if let Some(sink) = data_in {
            assert_eq!(content(&sink), pattern(!u32::from(task.slot), operation.read));
            self.given -= usize::from(matches!(sink, Sink::Buf(_)));
        }
        self.completed[usize::from(task.slot)] = true;
    }
}
