//! An initiator's and a target's mover over two byte pipes: random commands, parameters and chunks end with equal bytes
//! and no buffer lost.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use iscsi_memory::{Buf, Payload, Region};
use iscsi_proto::connection::StreamMover;
use iscsi_proto::datamover::{
    Datamover, GetData, Notification, PutData, SendCommand, SequenceNumbers, Source, TaskBuffers, TaskHandle,
    TaskStatus,
};
use iscsi_proto::parameters::{Digest, Parameters};
use iscsi_proto::pdu::{
    Ahs, AhsIter, Bhs, Opcode, Residual, ScsiCommand, ScsiResponse, emit_bidirectional_read_length,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use proptest::prelude::*;

use crate::link::{command, login_request, login_response, mirrored, pattern, take};

/// One command of a run.
#[derive(Debug, Clone)]
struct Operation {
    write: usize,
    read: usize,
    /// Lent memory instead of buffers, on all sides.
    lent: bool,
    /// CHECK CONDITION with sense instead of GOOD.
    sense: bool,
    /// The read data in two `put_data` calls.
    twice: bool,
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

fn empty_sink(len: usize, lent: bool) -> Payload {
    if lent {
        let region = Region::heap(len);
        region.reserve_for_write(0, len as u64).unwrap();
        Payload::Region(region.slice(0, len))
    } else {
        Payload::Buf(Buf::zeroed(len))
    }
}

fn content(sink: &Payload) -> Vec<u8> {
    match sink {
        Payload::Buf(buf) => buf.to_vec(),
        Payload::Region(slice) => {
            let mut bytes = vec![0; slice.len()];
            slice.read(0, &mut bytes);
            bytes
        }
    }
}

/// Both ends and what is between them.
struct Pair {
    initiator: TcpMover,
    target: TcpMover,
    to_target: VecDeque<u8>,
    to_initiator: VecDeque<u8>,
    operations: Vec<Operation>,
    /// Read lengths of commands whose write data are under way.
    commands: HashMap<u16, (u32, usize)>,
    /// Buffers given to the movers and not come back.
    given: usize,
    completed: usize,
    numbers: SequenceNumbers,
    /// Whether the target takes data at hand without `get_data`, and how often it did.
    take_at_hand: bool,
    at_hand: usize,
    /// All that the target sent.
    sent: Vec<u8>,
}

impl Pair {
    /// Both in the Full Feature Phase; `parameters` as the initiator sees them.
    fn new(config: TcpMoverConfig, parameters: &Parameters, operations: Vec<Operation>) -> Self {
        let mut initiator = TcpMover::new(Role::Initiator, config);
        let mut target = TcpMover::new(Role::Target, config);
        crate::link::give(&mut target, &login_request().0);
        assert!(matches!(target.poll_notify(), Some(Notification::Control(_))));
        target.notice_key_values(&mirrored(parameters));
        target.send_control(login_response(), b"TargetPortalGroupTag=1\0");
        target.enable_datamover();
        let answer = take(&mut target, usize::MAX);
        crate::link::give(&mut initiator, &answer);
        assert!(matches!(initiator.poll_notify(), Some(Notification::Control(_))));
        assert_eq!(initiator.control_data(), b"TargetPortalGroupTag=1\0");
        initiator.notice_key_values(parameters);
        initiator.enable_datamover();
        Self {
            initiator,
            target,
            to_target: VecDeque::new(),
            to_initiator: VecDeque::new(),
            operations,
            commands: HashMap::new(),
            given: 0,
            completed: 0,
            numbers: SequenceNumbers::default(),
            take_at_hand: false,
            at_hand: 0,
            sent: Vec::new(),
        }
    }

    fn submit(&mut self, slot: u16) {
        let operation = self.operations[usize::from(slot)].clone();
        let task = TaskHandle { slot, generation: 7 };
        let (read, write) = (operation.read > 0, operation.write > 0);
        let length = if write { operation.write } else { operation.read };
        let bhs = command(task.to_itt(), true, read, write, length as u32);
        let mut ahs = Vec::new();
        if read && write {
            emit_bidirectional_read_length(&mut ahs, operation.read as u32);
        }
        let data = pattern(u32::from(slot), operation.write);
        let data_out = write.then(|| match operation.lent {
            true => Payload::Region(lent(&data).slice(0, data.len())),
            false => {
                self.given += 1;
                Payload::Buf(buffer(&data))
            }
        });
        let data_in = read.then(|| {
            self.given += usize::from(!operation.lent);
            empty_sink(operation.read, operation.lent)
        });
        self.initiator.send_command(SendCommand { task, bhs, ahs: &ahs, data_out, data_in });
    }

    /// What the target tells.
    fn target_drain(&mut self) {
        while let Some(notification) = self.target.poll_notify() {
            match notification {
                Notification::Control(bhs) => {
                    let command = ScsiCommand::parse(&bhs).unwrap();
                    let expected = command.expected_data_transfer_length as usize;
                    let bidirectional = AhsIter::new(self.target.control_ahs()).find_map(|ahs| match ahs {
                        Ok(Ahs::BidirectionalReadLength(len)) => Some(len as usize),
                        _ => None,
                    });
                    let read = bidirectional.unwrap_or(if command.read { expected } else { 0 });
                    let slot = command.itt as u16;
                    if command.write {
                        let at_hand = self.target.immediate_data();
                        if !at_hand.is_empty() {
                            assert_eq!(at_hand, pattern(u32::from(slot), self.operations[usize::from(slot)].write));
                            if self.take_at_hand {
                                self.at_hand += 1;
                                self.answer(slot, command.itt, read);
                                continue;
                            }
                        }
                        self.commands.insert(slot, (command.itt, read));
                        let lent = self.operations[usize::from(slot)].lent;
                        self.given += usize::from(!lent);
                        let task = TaskHandle { slot, generation: 3 };
                        let sink = empty_sink(expected, lent);
                        self.target.get_data(GetData { task, lun: command.lun, itt: command.itt, sink });
                    } else {
                        self.answer(slot, command.itt, read);
                    }
                }
                Notification::GetDataComplete { task, sink } => {
                    let operation = &self.operations[usize::from(task.slot)];
                    assert_eq!(content(&sink), pattern(u32::from(task.slot), operation.write));
                    self.given -= usize::from(matches!(sink, Payload::Buf(_)));
                    let (itt, read) = self.commands.remove(&task.slot).unwrap();
                    self.answer(task.slot, itt, read);
                }
                Notification::Released(_) => self.given -= 1,
                other => panic!("the target told {other:?}"),
            }
        }
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
        self.numbers.stat_sn = self.numbers.stat_sn.next();
        self.target.set_sequence(self.numbers);
    }

    /// What the initiator tells.
    fn initiator_drain(&mut self) {
        while let Some(notification) = self.initiator.poll_notify() {
            match notification {
                Notification::Control(bhs) => self.complete(&bhs),
                Notification::Released(_) => self.given -= 1,
                other => panic!("the initiator told {other:?}"),
            }
        }
    }

    fn complete(&mut self, bhs: &Bhs) {
        let task = TaskHandle::from_itt(bhs.itt());
        let operation = self.operations[usize::from(task.slot)].clone();
        if bhs.opcode() == Ok(Opcode::ScsiResponse) {
            let response = ScsiResponse::parse(bhs).unwrap();
            assert_eq!(response.status, if operation.sense { 2 } else { 0 });
            let sense: &[u8] = if operation.sense { &[0, 5, 0x70, 0, 5, 0, 0] } else { &[] };
            assert_eq!(self.initiator.control_data(), sense);
        } else {
            assert!(!operation.sense && operation.write == 0, "status may ride only with GOOD of a plain read");
        }
        let TaskBuffers { data_out, data_in, data_in_len, .. } = self.initiator.deallocate_task_resources(task);
        assert_eq!(data_in_len as usize, operation.read);
        self.given -= usize::from(matches!(data_out, Some(Payload::Buf(_))));
        if let Some(sink) = data_in {
            assert_eq!(content(&sink), pattern(!u32::from(task.slot), operation.read));
            self.given -= usize::from(matches!(sink, Payload::Buf(_)));
        }
        self.completed += 1;
    }

    /// Moves bytes in pieces of the given sizes, in turn, until nothing moves.
    fn run(&mut self, chunks: &[usize]) {
        let mut sizes = chunks.iter().copied().cycle();
        for slot in 0..self.operations.len() as u16 {
            self.submit(slot);
        }
        loop {
            let before = (self.to_target.len(), self.to_initiator.len());
            let mut moved = 0;
            for _ in 0..4 {
                let bytes = take(&mut self.initiator, sizes.next().unwrap());
                moved += bytes.len();
                self.to_target.extend(bytes);
                self.initiator_drain();
                let bytes = take(&mut self.target, sizes.next().unwrap());
                moved += bytes.len();
                self.sent.extend(&bytes);
                self.to_initiator.extend(bytes);
                self.target_drain();
            }
            moved += deliver(&mut self.target, &mut self.to_target, sizes.next().unwrap());
            self.target_drain();
            moved += deliver(&mut self.initiator, &mut self.to_initiator, sizes.next().unwrap());
            self.initiator_drain();
            if moved == 0 && before == (0, 0) {
                break;
            }
        }
        assert_eq!(self.completed, self.operations.len(), "all commands end");
        assert_eq!(self.given, 0, "all buffers come back");
    }
}

fn deliver(to: &mut TcpMover, pipe: &mut VecDeque<u8>, most: usize) -> usize {
    let n = most.min(pipe.len());
    let bytes: Vec<u8> = pipe.iter().take(n).copied().collect();
    let n = to.receive_window().fill(&bytes);
    to.handle_received(n);
    pipe.drain(..n);
    n
}

fn operation() -> impl Strategy<Value = Operation> {
    let length = || prop_oneof![Just(0usize), Just(512), 1usize..600, 1usize..40_000, Just(70_000)];
    (length(), length(), any::<[bool; 4]>()).prop_map(|(write, read, [lent, sense, twice, both])| {
        let (write, read) = if both || write == 0 || read == 0 { (write, read) } else { (write, 0) };
        Operation { write, read, lent, sense, twice }
    })
}

fn parameters() -> impl Strategy<Value = Parameters> {
    let segment = || prop_oneof![512u32..2000, Just(8192), Just(262_144)];
    let burst = prop_oneof![512u32..5000, Just(65_536), Just(262_144)];
    (segment(), segment(), burst, 0u32..=4, any::<[bool; 6]>(), 1u16..5).prop_map(
        |(receive, send, max_burst, first, [header, data, initial_r2t, immediate, pdus, sequences], r2ts)| {
            let digest = |on| if on { Digest::Crc32c } else { Digest::None };
            Parameters {
                header_digest: digest(header),
                data_digest: digest(data),
                initial_r2t,
                immediate_data: immediate,
                max_recv_data_segment_length: receive,
                peer_max_recv_data_segment_length: send,
                max_burst_length: max_burst,
                first_burst_length: (max_burst * (first + 1) / 5).max(512),
                max_outstanding_r2t: r2ts,
                data_pdu_in_order: pdus,
                data_sequence_in_order: sequences,
                ..Parameters::default()
            }
        },
    )
}

fn chunks() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![usize::MAX]),
        proptest::collection::vec(prop_oneof![1usize..60, 1usize..5000, Just(100_000)], 1..20)
    ]
}

fn small() -> TcpMoverConfig {
    TcpMoverConfig { staging_size: 16 << 10, max_tasks: 4, ..TcpMoverConfig::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn commands_move_their_bytes(
        parameters in parameters(),
        operations in proptest::collection::vec(operation(), 1..8),
        chunks in chunks(),
        copy_limit in prop_oneof![Just(0usize), Just(512), Just(8192)],
        high_water in prop_oneof![Just(0usize), Just(4096), Just(4 << 20)],
        take_at_hand: bool,
    ) {
        let config = TcpMoverConfig { copy_limit, send_high_water: high_water, ..small() };
        let mut pair = Pair::new(config, &parameters, operations);
        pair.take_at_hand = take_at_hand;
        pair.run(&chunks);
    }
}

/// Data that came whole with their command are the same to the initiator whether the session takes them from staging or
/// has them put into a sink.
#[test]
fn data_at_hand_and_get_data_give_the_same() {
    let operation = |write, sense| Operation { write, read: 0, lent: true, sense, twice: false };
    let lengths = [512, 511, 1, 4096, 9000, 70_000];
    let operations: Vec<_> =
        lengths.into_iter().flat_map(|len| [operation(len, false), operation(len, true)]).collect();
    for chunks in [vec![usize::MAX], vec![700], vec![5000, 17]] {
        let mut sent = Vec::new();
        for take_at_hand in [false, true] {
            let config = TcpMoverConfig { max_tasks: 16, ..small() };
            let mut pair = Pair::new(config, &Parameters::default(), operations.clone());
            pair.take_at_hand = take_at_hand;
            pair.run(&chunks);
            assert_eq!(pair.at_hand > 0, take_at_hand, "{chunks:?}");
            sent.push(pair.sent);
        }
        assert!(sent[0] == sent[1], "{chunks:?}");
    }
}

#[test]
fn one_byte_at_a_time() {
    let operation = |write, read| Operation { write, read, lent: false, sense: false, twice: false };
    let parameters = Parameters {
        header_digest: Digest::Crc32c,
        data_digest: Digest::Crc32c,
        initial_r2t: false,
        first_burst_length: 1000,
        max_burst_length: 1500,
        max_recv_data_segment_length: 700,
        peer_max_recv_data_segment_length: 600,
        ..Parameters::default()
    };
    Pair::new(small(), &parameters, vec![operation(4001, 0), operation(0, 3999), operation(513, 515)]).run(&[1]);
}

#[test]
fn numbers_are_what_the_session_set() {
    let operation = Operation { write: 0, read: 512, lent: false, sense: false, twice: false };
    let mut pair = Pair::new(small(), &Parameters::default(), vec![operation]);
    pair.numbers =
        SequenceNumbers { stat_sn: Serial(7), exp_cmd_sn: Serial(8), max_cmd_sn: Serial(9), exp_stat_sn: Serial(0) };
    pair.target.set_sequence(pair.numbers);
    pair.submit(0);
    let bytes = take(&mut pair.initiator, usize::MAX);
    crate::link::give(&mut pair.target, &bytes);
    pair.target_drain();
    let pdus = crate::link::split(&take(&mut pair.target, usize::MAX));
    let data_in = iscsi_proto::pdu::DataIn::parse(&pdus[0].0).unwrap();
    assert_eq!((data_in.exp_cmd_sn, data_in.max_cmd_sn), (Serial(8), Serial(9)));
    assert_eq!(data_in.status.unwrap().stat_sn, Serial(7));
}
