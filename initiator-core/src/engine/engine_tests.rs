//! The rules of a session, each against a scripted target that speaks PDUs over memory.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::{Context, Waker};
use core::time::Duration;

use iscsi_memory::{Buf, Payload, SendList};
use iscsi_proto::connection::{Connection as _, StreamConnection, StreamEnd, StreamMover};
use iscsi_proto::datamover::{Datamover, GetData, Notification, PutData, Source, TaskHandle, TaskStatus};
use iscsi_proto::parameters::{Digest, Parameters};
use iscsi_proto::pdu::{
    AsyncEvent, AsyncMessage, Bhs, LoginRequest, LoginResponse, LogoutRequest, LogoutResponse, LogoutResult, NopIn,
    NopOut, Opcode, RESERVED_TAG, Reject, RejectReason, Residual, ResponseCode, ScsiCommand, ScsiResponse,
    TaskFunction, TaskManagementRequest, TaskManagementResponse, TaskResponse, TextRequest, TextResponse,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::time::Instant;
use scsi_proto::{AdditionalSense, BlockIo, CdbBuf, Lun, Sense, SenseFormat, SenseKey, Status, opcode};

use super::{Engine, StartNumbers};
use crate::application::{Application, Control, ControlAnswer};
use crate::command::{Command, Completion, Failure, Outcome};
use crate::config::{Limits, Timeouts};
use crate::connection::{ConnectionEnd, InitiatorConnection, LoginSummary};

#[path = "digest_tests.rs"]
mod digests;
#[path = "escalation_tests.rs"]
mod escalation;
#[path = "given_up_tests.rs"]
mod given_up;
#[path = "guard_tests.rs"]
mod guards;
#[path = "logout_tests.rs"]
mod logout;
#[path = "slow_tests.rs"]
mod slow;
#[path = "start_tests.rs"]
mod start;
#[path = "statuses_tests.rs"]
mod statuses;
#[path = "unexpected_tests.rs"]
mod unexpected;
#[path = "waiting_tests.rs"]
mod waiting;

#[derive(Debug, Default)]
struct Script {
    commands: VecDeque<Command>,
    controls: VecDeque<Control>,
    abandoned: Vec<u64>,
    done: Vec<Completion>,
    answers: Vec<(u32, ControlAnswer)>,
    /// Sizes that disks were told to have grown to.
    sizes: Vec<u64>,
}

impl Application for Script {
    fn register(&mut self, _waker: &Waker) {}
    fn next_command(&mut self, _now: Instant) -> Option<Command> {
        self.commands.pop_front()
    }
    fn next_control(&mut self) -> Option<Control> {
        self.controls.pop_front()
    }
    fn next_abandoned(&mut self) -> Option<u64> {
        self.abandoned.pop()
    }
    fn complete(&mut self, completion: Completion, _now: Instant) {
        self.done.push(completion);
    }
    fn control_complete(&mut self, id: u32, answer: ControlAnswer) {
        self.answers.push((id, answer));
    }
    fn event(&mut self, event: crate::application::Event<'_>) {
        if let crate::application::Event::Resized { blocks, .. } = event {
            self.sizes.push(blocks);
        }
    }
}

type Connection = InitiatorConnection<TcpMover, Script>;

/// Both ends, and the time.
struct Net {
    /// `None` between two connections.
    initiator: Option<Connection>,
    target: TcpMover,
    now: Instant,
    stat_sn: Serial,
    exp_cmd_sn: Serial,
    /// The CmdSN that a session begins with.
    first: Serial,
    window: u32,
    /// What the target received.
    got: VecDeque<(Bhs, Vec<u8>)>,
    /// Write data that came whole.
    written: Vec<Vec<u8>>,
    tasks: u16,
    /// MaxOutstandingUnexpectedPDUs of the target.
    unexpected: u32,
    /// DataDigest of the next connection.
    data_digest: Digest,
    /// The last bit of what the target sends next flips.
    spoil: bool,
}

const INFINITE: u32 = 1000;

fn parameters() -> Parameters {
    Parameters { immediate_data: true, initial_r2t: true, first_burst_length: 512, ..Parameters::default() }
}

impl Net {
    fn new(window: u32) -> Self {
        let timeouts = Timeouts { keepalive_interval: Duration::ZERO, ..Timeouts::default() };
        Self::with(window, timeouts, Limits { commands: 16, ..Limits::default() })
    }

    fn with(window: u32, timeouts: Timeouts, limits: Limits) -> Self {
        Self::with_unexpected(window, timeouts, limits, 0)
    }

    fn with_unexpected(window: u32, timeouts: Timeouts, limits: Limits, unexpected: u32) -> Self {
        let engine = Engine::new(Script::default(), timeouts, limits, 1);
        let mut net = Self {
            initiator: None,
            target: TcpMover::new(Role::Target, TcpMoverConfig::default()),
            now: Instant::from_nanos(1_000_000_000),
            stat_sn: Serial(100),
            exp_cmd_sn: Serial(1),
            first: Serial(1),
            window,
            got: VecDeque::new(),
            written: Vec::new(),
            tasks: 0,
            unexpected,
            data_digest: Digest::None,
            spoil: false,
        };
        net.connect(engine);
        net
    }

    fn connect(&mut self, engine: Engine<Script>) {
        let numbers = StartNumbers {
            cmd_sn: self.first,
            exp_cmd_sn: self.first,
            max_cmd_sn: self.first.advance(self.window.wrapping_sub(1)),
            exp_stat_sn: Serial(100),
            unexpected: self.unexpected,
        };
        let parameters = Parameters { data_digest: self.data_digest, ..parameters() };
        self.target = TcpMover::new(Role::Target, TcpMoverConfig::default());
        let mut mover = TcpMover::new(Role::Initiator, TcpMoverConfig::default());
        greet(&mut mover, &mut self.target);
        self.target.notice_key_values(&parameters);
        self.target.enable_datamover();
        (self.stat_sn, self.exp_cmd_sn, self.tasks) = (Serial(100), self.first, 0);
        self.got.clear();
        let summary =
            LoginSummary { parameters, tsih: 1, target_portal_group_tag: Some(1), target_alias: None, mover: None };
        self.initiator = Some(Connection::logged_in(mover, engine, &summary, numbers, self.now));
    }

    fn app(&mut self) -> &mut Script {
        self.initiator.as_mut().unwrap().app()
    }

    /// Moves bytes both ways until nothing moves.
    fn run(&mut self) {
        let initiator = self.initiator.as_mut().unwrap();
        initiator.handle_wake(&mut Context::from_waker(Waker::noop()), self.now);
        loop {
            let initiator = self.initiator.as_mut().unwrap();
            let mut wire = Vec::new();
            copy(|list| initiator.fill_send_list(list), &mut wire);
            let sent = wire.len();
            if sent > 0 {
                initiator.handle_sent(sent, self.now);
            }
            let mut rest = &wire[..];
            while !rest.is_empty() {
                let n = self.target.receive_window().fill(rest);
                assert!(n > 0, "the target's window is empty");
                self.target.handle_received(n);
                rest = &rest[n..];
                self.notified();
            }
            let mut back = Vec::new();
            copy(|list| self.target.fill_send_list(list), &mut back);
            if !back.is_empty() {
                self.target.handle_sent(back.len());
                self.notified();
                if core::mem::take(&mut self.spoil) {
                    *back.last_mut().unwrap() ^= 1;
                }
            }
            let initiator = self.initiator.as_mut().unwrap();
            let mut rest = &back[..];
            while !rest.is_empty() && !initiator.is_finished() {
                let n = initiator.receive_window().fill(rest);
                if n == 0 {
                    break;
                }
                initiator.handle_received(n, self.now);
                rest = &rest[n..];
            }
            if sent == 0 && back.is_empty() {
                return;
            }
        }
    }

    fn notified(&mut self) {
        while let Some(notification) = self.target.poll_notify() {
            match notification {
                Notification::Control(bhs) => {
                    let data = self.target.control_data().to_vec();
                    if !bhs.immediate() {
                        self.exp_cmd_sn = self.exp_cmd_sn.next();
                    }
                    if let Ok(command) = ScsiCommand::parse(&bhs)
                        && command.write
                    {
                        let task = TaskHandle { slot: self.tasks, generation: 0 };
                        self.tasks += 1;
                        let sink = Payload::Buf(Buf::zeroed(command.expected_data_transfer_length as usize));
                        self.target.get_data(GetData { task, lun: command.lun, itt: command.itt, sink });
                    }
                    self.got.push_back((bhs, data));
                }
                Notification::GetDataComplete { sink: Payload::Buf(buf), .. } => self.written.push(buf.to_vec()),
                _ => {}
            }
        }
    }

    fn numbers(&mut self) -> (Serial, Serial, Serial) {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.next();
        (stat_sn, self.exp_cmd_sn, self.exp_cmd_sn.advance(self.window.wrapping_sub(1)))
    }

    /// The next PDU that the target received, of this opcode.
    fn expect(&mut self, opcode: Opcode) -> (Bhs, Vec<u8>) {
        let (bhs, data) = self.got.pop_front().expect("the initiator sent nothing");
        assert_eq!(bhs.opcode(), Ok(opcode));
        (bhs, data)
    }

    fn expect_command(&mut self) -> ScsiCommand {
        ScsiCommand::parse(&self.expect(Opcode::ScsiCommand).0).unwrap()
    }

    fn respond(&mut self, command: &ScsiCommand, data: &[u8], status: Status, sense: &[u8]) {
        let (stat_sn, exp_cmd_sn, max_cmd_sn) = self.numbers();
        self.target.set_sequence(iscsi_proto::datamover::SequenceNumbers {
            stat_sn,
            exp_cmd_sn,
            max_cmd_sn,
            ..Default::default()
        });
        let residual = Residual::between(
            command.expected_data_transfer_length,
            if command.write { command.expected_data_transfer_length.into() } else { data.len() as u64 },
        );
        self.target.put_data(PutData {
            lun: command.lun,
            itt: command.itt,
            buffer_offset: 0,
            data: if data.is_empty() { Source::None } else { Source::Copy(data) },
            status: Some(TaskStatus {
                status: status.to_byte(),
                residual,
                bidirectional_read_residual: Residual::None,
                sense,
            }),
        });
        self.run();
    }

    fn good(&mut self, command: &ScsiCommand) {
        let data = alloc::vec![7; if command.read { command.expected_data_transfer_length as usize } else { 0 }];
        self.respond(command, &data, Status::Good, &[]);
    }

    fn send(&mut self, bhs: Bhs, data: &[u8]) {
        self.target.send_control(bhs, data);
        self.run();
    }

    fn answer_function(&mut self, request: &TaskManagementRequest, response: TaskResponse) {
        let (stat_sn, exp_cmd_sn, max_cmd_sn) = self.numbers();
        let itt = request.itt;
        self.send(TaskManagementResponse { response, additional: 0, itt, stat_sn, exp_cmd_sn, max_cmd_sn }.emit(), &[]);
    }

    fn expect_function(&mut self) -> TaskManagementRequest {
        TaskManagementRequest::parse(&self.expect(Opcode::TaskManagementRequest).0).unwrap()
    }

    /// Lets time pass to the next deadline.
    fn tick(&mut self) {
        let initiator = self.initiator.as_mut().unwrap();
        let at = initiator.poll_timeout().expect("something is waited for");
        assert!(at >= self.now);
        self.now = at;
        initiator.handle_timeout(at);
        self.run();
    }

    fn end(&mut self) -> (Engine<Script>, ConnectionEnd, Option<Duration>) {
        let initiator = self.initiator.take().unwrap();
        assert!(initiator.is_finished() || initiator.poll_timeout().is_some());
        initiator.into_parts(self.now)
    }

    fn cut(&mut self) -> Engine<Script> {
        self.initiator.as_mut().unwrap().handle_stream_end(StreamEnd::Broken, self.now);
        let (engine, end, _) = self.end();
        assert!(matches!(end, ConnectionEnd::Lost(_)), "{end:?}");
        engine
    }

    fn result(&mut self, token: u64) -> Result<Outcome, Failure> {
        let done = &mut self.app().done;
        let at = done.iter().position(|completion| completion.token == token).expect("the command is not done");
        done.remove(at).result
    }
}

/// A stream begins with a login PDU each way.
fn greet(initiator: &mut TcpMover, target: &mut TcpMover) {
    let request = LoginRequest::straight_to_full_feature([0x80, 0, 0, 0, 0, 0], 1);
    let response = LoginResponse { tsih: 1, stat_sn: Serial(99), ..LoginResponse::granting(&request) };
    carry(initiator, target, request.emit());
    carry(target, initiator, response.emit());
}

fn carry(from: &mut TcpMover, to: &mut TcpMover, bhs: Bhs) {
    from.send_control(bhs, &[]);
    let mut wire = Vec::new();
    copy(|list| from.fill_send_list(list), &mut wire);
    from.handle_sent(wire.len());
    let n = to.receive_window().fill(&wire);
    to.handle_received(n);
    assert!(matches!(to.poll_notify(), Some(Notification::Control(_))));
    assert!(to.poll_notify().is_none());
}

fn copy<'a>(fill: impl FnOnce(&mut SendList<'a>), out: &mut Vec<u8>) {
    let mut list = SendList::default();
    fill(&mut list);
    for slice in list.as_slice() {
        let at = out.len();
        out.resize(at + slice.len(), 0);
        slice.copy_to(&mut out[at..]);
    }
}

fn read(token: u64) -> Command {
    let mut command = Command::new(token, Lun::ZERO, BlockIo::new(token, 1).read());
    command.data_in = Some(Payload::Buf(Buf::zeroed(512)));
    command
}

fn write(token: u64, cdb: CdbBuf, len: usize) -> Command {
    let mut buf = Buf::zeroed(len);
    buf.fill(token as u8);
    Command { data_out: Some(Payload::Buf(buf)), ..Command::new(token, Lun::ZERO, cdb) }
}

fn sense(key: SenseKey, code: AdditionalSense) -> Vec<u8> {
    Sense::new(key, code).to_bytes(SenseFormat::Fixed).to_vec()
}

#[test]
fn commands_wait_for_the_window() {
    let mut net = Net::new(2);
    net.app().commands.extend((0..4).map(read));
    net.run();
    let first = net.expect_command();
    assert_eq!(first.cmd_sn, Serial(1));
    assert_eq!(net.expect_command().cmd_sn, Serial(2));
    assert!(net.got.is_empty());
    // Both are received, so the window moves by two with the first answer.
    net.good(&first);
    assert_eq!(net.result(0).map(|outcome| outcome.status), Ok(0));
    assert_eq!(net.expect_command().cmd_sn, Serial(3));
    assert_eq!(net.expect_command().cmd_sn, Serial(4));
}

#[test]
fn numbers_go_on_past_the_largest() {
    let mut net = Net::new(2);
    let mut engine = net.cut();
    engine.app().commands.extend((1..=8).map(read));
    net.first = Serial(u32::MAX - 2);
    net.connect(engine);
    for at in 0..8 {
        net.run();
        let command = net.expect_command();
        assert_eq!(command.cmd_sn, net.first.advance(at));
        net.good(&command);
        assert!(net.result(u64::from(at) + 1).is_ok());
    }
}

#[test]
fn data_and_residuals_come_back() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    net.respond(&command, &[9; 100], Status::Good, &[]);
    let completion = net.app().done.pop().unwrap();
    assert_eq!(completion.result.unwrap().residual, Residual::Underflow(412));
    assert_eq!(completion.data_in_len, 100);
    let Some(Payload::Buf(buf)) = completion.data_in else { panic!() };
    assert_eq!((&buf[..100], buf[100]), (&[9; 100][..], 0));
}

#[test]
fn writes_are_fetched_by_r2t_and_their_buffers_come_back() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(write(5, BlockIo::new(0, 64).write(), 32768));
    net.run();
    let command = net.expect_command();
    assert!(net.written == [alloc::vec![5; 32768]]);
    net.good(&command);
    let completion = net.app().done.pop().unwrap();
    assert!(completion.result.unwrap().is_good());
    let Some(Payload::Buf(buf)) = completion.data_out else { panic!() };
    assert_eq!(buf.len(), 32768);
}

#[test]
fn sense_data_are_parsed() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    let sense = sense(SenseKey::MediumError, AdditionalSense::new(0x11, 0));
    net.respond(&command, &[], Status::CheckCondition, &sense);
    let outcome = net.result(1).unwrap();
    assert_eq!(outcome.sense.unwrap().key, SenseKey::MediumError);
}

#[test]
fn a_ping_of_the_target_is_answered() {
    let mut net = Net::new(INFINITE);
    // RFC 7143 11.19: an unsolicited NOP-In shows the next StatSN and takes none.
    let nop = NopIn {
        lun: 3,
        itt: RESERVED_TAG,
        ttt: 77,
        stat_sn: Serial(100),
        exp_cmd_sn: Serial(1),
        max_cmd_sn: Serial(10),
    };
    net.send(nop.emit(), &[]);
    let answer = NopOut::parse(&net.expect(Opcode::NopOut).0).unwrap();
    assert_eq!((answer.ttt, answer.itt, answer.lun, answer.immediate), (77, RESERVED_TAG, 3, true));
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    net.good(&command);
    assert!(net.result(1).is_ok());
}

#[test]
fn a_silent_target_is_pinged_and_then_given_up() {
    let timeouts = Timeouts::default();
    let mut net = Net::with(INFINITE, timeouts, Limits::default());
    net.tick();
    let ping = NopOut::parse(&net.expect(Opcode::NopOut).0).unwrap();
    let (stat_sn, exp_cmd_sn, max_cmd_sn) = net.numbers();
    let pong = NopIn { lun: 0, itt: ping.itt, ttt: RESERVED_TAG, stat_sn, exp_cmd_sn, max_cmd_sn };
    net.send(pong.emit(), &[]);
    net.tick();
    net.expect(Opcode::NopOut);
    while !net.initiator.as_ref().unwrap().is_finished() {
        net.tick();
    }
    assert_eq!(net.end().1, ConnectionEnd::KeepaliveTimeout);
    assert_eq!(net.now - Instant::from_nanos(1_000_000_000), Duration::from_secs(15));
}

#[test]
fn an_overdue_command_is_aborted() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    net.tick();
    let abort = net.expect_function();
    assert_eq!(abort.function, Ok(TaskFunction::AbortTask));
    assert_eq!((abort.referenced_task_tag, abort.ref_cmd_sn), (command.itt, command.cmd_sn));
    net.answer_function(&abort, TaskResponse::Complete);
    assert!(net.app().done[0].data_in.is_some(), "the mover has given its buffer back");
    assert_eq!(net.result(1), Err(Failure::TimedOut));
    // What still comes for it is nobody's.
    net.good(&command);
    assert!(net.app().done.is_empty());
}

#[test]
fn a_command_that_the_target_lost_is_sent_again() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let first = net.expect_command();
    net.tick();
    let abort = net.expect_function();
    net.answer_function(&abort, TaskResponse::TaskDoesNotExist);
    let again = net.expect_command();
    assert_ne!(again.itt, first.itt);
    net.good(&again);
    assert!(net.result(1).is_ok());
}

#[test]
fn an_abort_that_fails_becomes_a_reset_and_then_a_new_connection() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    net.expect_command();
    net.tick();
    // Sent after the first, and not overdue: the reset ends it too, and it is sent again.
    net.app().commands.push_back(read(2));
    net.run();
    net.expect_function();
    net.expect_command();
    net.tick();
    let reset = net.expect_function();
    assert_eq!(reset.function, Ok(TaskFunction::LogicalUnitReset));
    net.answer_function(&reset, TaskResponse::Complete);
    assert_eq!(net.result(1), Err(Failure::TimedOut));
    let again = net.expect_command();
    net.good(&again);
    assert!(net.result(2).is_ok());

    net.app().commands.push_back(read(3));
    net.run();
    while !net.initiator.as_ref().unwrap().is_finished() {
        net.tick();
    }
    let (mut engine, end, _) = net.end();
    assert_eq!(end, ConnectionEnd::CommandStuck);
    assert_eq!(engine.app().done.pop().unwrap().result, Err(Failure::TimedOut));
}

#[test]
fn after_a_cut_what_may_be_repeated_is_sent_again_in_order() {
    let mut net = Net::new(INFINITE);
    let compare = BlockIo::new(9, 1).to_cdb(opcode::COMPARE_AND_WRITE).unwrap();
    net.app().commands.extend([
        read(1),
        write(2, BlockIo::new(2, 1).write(), 512),
        write(3, compare, 1024),
        write(4, BlockIo::new(4, 128).write(), 65536),
        read(5),
    ]);
    net.run();
    let commands: Vec<_> = (0..5).map(|_| net.expect_command()).collect();
    net.good(&commands[4]);
    assert!(net.result(5).is_ok());
    let mut engine = net.cut();
    let done: Vec<_> = engine.app().done.drain(..).map(|completion| (completion.token, completion.result)).collect();
    assert_eq!(done, [(3, Err(Failure::NotRepeatable))]);
    engine.app().commands.push_back(read(6));
    net.written.clear();
    net.connect(engine);
    net.run();
    let again: Vec<_> = (0..4).map(|_| net.expect_command()).collect();
    let lbas: Vec<_> = again.iter().map(|command| command.cdb[5]).collect();
    assert_eq!(lbas, [1, 2, 4, 6]);
    assert!(net.written == [alloc::vec![2; 512], alloc::vec![4; 65536]]);
    for command in &again {
        net.good(command);
    }
    for token in [1, 2, 4, 6] {
        assert!(net.result(token).is_ok());
    }
    assert_eq!(net.initiator.take().unwrap().into_parts(net.now).0.counters().repeated, 3);
}

/// Places in the table are used again: their order is not that of the commands.
#[test]
fn after_a_cut_commands_go_in_the_order_of_issue_not_of_their_places() {
    let mut net = Net::new(INFINITE);
    net.app().commands.extend([read(1), read(2), read(3)]);
    net.run();
    let commands: Vec<_> = (0..3).map(|_| net.expect_command()).collect();
    net.good(&commands[0]);
    assert!(net.result(1).is_ok());
    net.app().commands.push_back(read(4));
    net.run();
    net.expect_command();
    let engine = net.cut();
    net.connect(engine);
    net.run();
    let again: Vec<_> = (0..3).map(|_| net.expect_command().cdb[5]).collect();
    assert_eq!(again, [2, 3, 4]);
}

#[test]
fn a_cut_in_the_middle_of_sending_keeps_the_data() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(write(4, BlockIo::new(4, 128).write(), 65536));
    let initiator = net.initiator.as_mut().unwrap();
    initiator.handle_wake(&mut Context::from_waker(Waker::noop()), net.now);
    // Nothing of it reaches the wire: the mover still holds the data when the connection breaks.
    let mut engine = net.cut();
    assert!(engine.app().done.is_empty());
    net.connect(engine);
    net.run();
    assert!(net.written == [alloc::vec![4; 65536]]);
}

#[test]
fn busy_and_unit_attentions_are_dealt_with_unless_the_caller_wants_to_see_them() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    net.respond(&command, &[], Status::Busy, &[]);
    assert!(net.got.is_empty(), "a busy target is left alone for a while");
    net.tick();
    let command = net.expect_command();
    let attention = sense(SenseKey::UnitAttention, AdditionalSense::POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED);
    net.respond(&command, &[], Status::CheckCondition, &attention);
    let command = net.expect_command();
    net.good(&command);
    assert!(net.result(1).unwrap().is_good());

    net.app().commands.push_back(Command { retry: false, ..read(2) });
    net.run();
    let command = net.expect_command();
    net.respond(&command, &[], Status::CheckCondition, &attention);
    assert_eq!(net.result(2).unwrap().sense.unwrap().key, SenseKey::UnitAttention);
}

#[test]
fn a_target_that_stays_busy_is_given_up_after_the_limit() {
    let timeouts = Timeouts { keepalive_interval: Duration::ZERO, ..Timeouts::default() };
    let mut net = Net::with(INFINITE, timeouts, Limits { retries: 3, ..Limits::default() });
    net.app().commands.push_back(read(1));
    net.run();
    for round in 0..4 {
        let command = net.expect_command();
        net.respond(&command, &[], Status::TaskSetFull, &[]);
        if round < 3 {
            net.tick();
        }
    }
    assert_eq!(net.result(1).unwrap().status, Status::TaskSetFull.to_byte());
}

fn asynchronous(net: &mut Net, event: AsyncEvent, parameters: [u16; 3]) -> Bhs {
    let (stat_sn, exp_cmd_sn, max_cmd_sn) = net.numbers();
    let [parameter1, parameter2, parameter3] = parameters;
    AsyncMessage { event, lun: 0, stat_sn, exp_cmd_sn, max_cmd_sn, parameter1, parameter2, parameter3 }.emit()
}

fn answer_logout(net: &mut Net) {
    let request = LogoutRequest::parse(&net.expect(Opcode::LogoutRequest).0).unwrap();
    let (stat_sn, exp_cmd_sn, max_cmd_sn) = net.numbers();
    let response = LogoutResponse {
        response: LogoutResult::Closed,
        itt: request.itt,
        stat_sn,
        exp_cmd_sn,
        max_cmd_sn,
        time2wait: 4,
        time2retain: 0,
    };
    net.send(response.emit(), &[]);
}

#[test]
fn a_wish_of_the_target_for_logout_is_honoured_once_commands_are_done() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    let message = asynchronous(&mut net, AsyncEvent::LogoutRequest, [0, 0, 10]);
    net.send(message, &[]);
    net.app().commands.push_back(read(2));
    net.run();
    assert!(net.got.is_empty());
    net.good(&command);
    answer_logout(&mut net);
    let (mut engine, end, time2wait) = net.end();
    assert_eq!((end, time2wait), (ConnectionEnd::LogoutAskedByTarget, Some(Duration::from_secs(4))));
    assert_eq!(engine.app().done.len(), 1);
}

#[test]
fn an_announced_drop_gives_its_time2wait() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let message = asynchronous(&mut net, AsyncEvent::ConnectionDrop, [0, 7, 0]);
    net.send(message, &[]);
    let (mut engine, end, time2wait) = net.end();
    assert_eq!((end, time2wait), (ConnectionEnd::DroppedByTarget, Some(Duration::from_secs(7))));
    assert!(engine.app().done.is_empty(), "a read waits for the next connection");
}

#[test]
fn a_logout_waits_for_commands_and_takes_no_new_ones() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.app().controls.push_back(Control::Logout);
    net.run();
    let command = net.expect_command();
    assert!(net.got.is_empty());
    let text = || Control::Text { id: 9, text: b"SendTargets=All\0".to_vec() };
    net.app().commands.push_back(read(2));
    net.run();
    assert!(net.got.is_empty(), "it is on its way out");
    net.good(&command);
    assert!(net.result(1).is_ok());
    // RFC 7143 11.14: behind the Logout Request there is nothing.
    net.app().commands.push_back(read(3));
    net.app().controls.push_back(text());
    net.run();
    let logout = net.got.pop_front().unwrap();
    assert_eq!(logout.0.opcode(), Ok(Opcode::LogoutRequest));
    assert!(net.got.is_empty(), "{:?}", net.got);
    net.got.push_back(logout);
    answer_logout(&mut net);
    assert!(net.got.is_empty(), "{:?}", net.got);
    assert_eq!(net.end().1, ConnectionEnd::LoggedOut);
}

#[test]
fn a_logout_without_answer_ends_after_its_time() {
    let mut net = Net::new(INFINITE);
    net.app().controls.push_back(Control::Logout);
    net.run();
    net.expect(Opcode::LogoutRequest);
    net.tick();
    assert_eq!(net.end().1, ConnectionEnd::LogoutTimeout);
}

#[test]
fn a_long_text_answer_is_gathered_and_bounded() {
    let timeouts = Timeouts { keepalive_interval: Duration::ZERO, ..Timeouts::default() };
    let mut net = Net::with(INFINITE, timeouts, Limits { text_bytes: 12, ..Limits::default() });
    for round in 0..2 {
        net.app().controls.push_back(Control::Text { id: round, text: b"SendTargets=All\0".to_vec() });
        net.run();
        let (bhs, text) = net.expect(Opcode::TextRequest);
        assert_eq!(text, b"SendTargets=All\0");
        let itt = TextRequest::parse(&bhs).unwrap().itt;
        for (is_final, ttt, data) in [(false, 5, &b"first,"[..]), (true, RESERVED_TAG, b"second")] {
            let (stat_sn, exp_cmd_sn, max_cmd_sn) = net.numbers();
            let response =
                TextResponse { is_final, incomplete: !is_final, lun: 0, itt, ttt, stat_sn, exp_cmd_sn, max_cmd_sn };
            net.send(response.emit(), if round == 0 || !is_final { data } else { b"seconds" });
            if !is_final {
                let (bhs, text) = net.expect(Opcode::TextRequest);
                assert_eq!((TextRequest::parse(&bhs).unwrap().ttt, text.len()), (5, 0));
            }
        }
        if round == 0 {
            assert_eq!(net.app().answers.pop(), Some((0, ControlAnswer::Text(b"first,second".to_vec()))));
        }
    }
    assert!(matches!(net.end().1, ConnectionEnd::Protocol(_)));
}

#[test]
fn task_management_ends_what_it_says() {
    let mut net = Net::new(INFINITE);
    for (function, repeated) in [(TaskFunction::AbortTaskSet, false), (TaskFunction::LogicalUnitReset, true)] {
        net.app().commands.push_back(read(1));
        net.run();
        net.expect_command();
        net.app().controls.push_back(Control::TaskManagement { id: 1, function, lun: Lun::ZERO });
        net.run();
        let request = net.expect_function();
        assert_eq!(request.function, Ok(function));
        net.answer_function(&request, TaskResponse::Complete);
        assert_eq!(net.app().answers.pop(), Some((1, ControlAnswer::TaskManagement(TaskResponse::Complete))));
        if repeated {
            let again = net.expect_command();
            net.good(&again);
            assert!(net.result(1).is_ok());
        } else {
            assert_eq!(net.result(1), Err(Failure::Aborted));
        }
    }
}

#[test]
fn what_a_function_ends_has_ended_however_late_it_is_answered() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    net.expect_command();
    let function = TaskFunction::AbortTaskSet;
    net.app().controls.push_back(Control::TaskManagement { id: 1, function, lun: Lun::ZERO });
    net.run();
    let request = net.expect_function();
    net.tick();
    assert_eq!(net.app().answers.pop(), Some((1, ControlAnswer::Failed(Failure::TimedOut))));
    net.answer_function(&request, TaskResponse::Complete);
    assert_eq!(net.result(1), Err(Failure::Aborted));
    assert_eq!(net.app().answers.pop(), None, "who asked is told once");
}

fn reject(net: &mut Net, reason: RejectReason) -> Bhs {
    let (stat_sn, exp_cmd_sn, max_cmd_sn) = net.numbers();
    Reject { reason, stat_sn, exp_cmd_sn, max_cmd_sn, data_sn: 0 }.emit()
}

#[test]
fn a_rejected_command_fails_and_a_lost_one_brings_a_new_connection() {
    let mut net = Net::new(INFINITE);
    net.app().commands.extend([read(1), read(2)]);
    net.run();
    let (first, _) = net.expect(Opcode::ScsiCommand);
    let pdu = reject(&mut net, RejectReason::InvalidPduField);
    net.send(pdu, &first.0);
    assert_eq!(net.result(1), Err(Failure::Rejected(RejectReason::InvalidPduField)));
    let (second, _) = net.expect(Opcode::ScsiCommand);
    let pdu = reject(&mut net, RejectReason::DataDigestError);
    net.send(pdu, &second.0);
    let (mut engine, end, _) = net.end();
    assert_eq!(end, ConnectionEnd::Rejected(RejectReason::DataDigestError));
    assert!(engine.app().done.is_empty());
}

#[test]
fn an_abandoned_command_is_not_repeated() {
    let mut net = Net::new(1);
    net.app().commands.extend([write(1, BlockIo::new(0, 1).write(), 512), read(2), read(3)]);
    net.run();
    net.expect_command();
    net.app().abandoned.extend([1]);
    net.run();
    let mut engine = net.cut();
    let done: Vec<_> = engine.app().done.drain(..).map(|completion| (completion.token, completion.result)).collect();
    assert_eq!(done, [(1, Err(Failure::Aborted))]);
    net.connect(engine);
    net.run();
    assert!(net.expect_command().read);
}

#[test]
fn the_end_of_the_session_completes_everything_once() {
    let mut net = Net::new(1);
    net.app().commands.extend((0..40).map(read));
    net.run();
    let mut engine = net.cut();
    engine.fail_all(Failure::SessionEnded, net.now);
    let app = engine.into_app(net.now);
    let mut tokens: Vec<_> = app.done.iter().map(|completion| completion.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..40).collect::<Vec<_>>());
    assert!(app.done.iter().all(|completion| completion.data_in.is_some()), "every buffer comes back");
}

#[test]
fn requests_outside_the_order_carry_the_next_cmd_sn_and_take_none() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    net.good(&command);
    let function = TaskFunction::LogicalUnitReset;
    net.app().controls.push_back(Control::TaskManagement { id: 1, function, lun: Lun::ZERO });
    net.app().controls.push_back(Control::Text { id: 2, text: Vec::new() });
    net.run();
    let next = command.cmd_sn.next();
    let request = net.expect_function();
    assert_eq!((request.immediate, request.cmd_sn, request.exp_stat_sn), (true, next, Serial(101)));
    assert_eq!(request.referenced_task_tag, RESERVED_TAG);
    let text = TextRequest::parse(&net.expect(Opcode::TextRequest).0).unwrap();
    assert_eq!((text.immediate, text.cmd_sn, text.exp_stat_sn), (true, next, Serial(101)));
    net.app().commands.push_back(read(3));
    net.run();
    assert_eq!(net.expect_command().cmd_sn, next);
}

#[test]
fn the_window_only_moves_forward() {
    let mut net = Net::new(2);
    let nop = |exp, max| {
        let (exp_cmd_sn, max_cmd_sn) = (Serial(exp), Serial(max));
        NopIn { lun: 0, itt: RESERVED_TAG, ttt: RESERVED_TAG, stat_sn: Serial(100), exp_cmd_sn, max_cmd_sn }.emit()
    };
    net.app().commands.extend((0..3).map(read));
    net.run();
    net.expect_command();
    net.expect_command();
    // RFC 7143 4.2.2.1: MaxCmdSN is behind ExpCmdSN - 1, so neither counts.
    net.send(nop(10, 8), &[]);
    assert!(net.got.is_empty());
    net.send(nop(3, 4), &[]);
    assert_eq!(net.expect_command().cmd_sn, Serial(3));
    net.send(nop(1, 2), &[]);
    net.app().commands.extend((3..5).map(read));
    net.run();
    assert_eq!(net.expect_command().cmd_sn, Serial(4));
    assert!(net.got.is_empty());
}

#[test]
fn terminated_tasks_are_acknowledged() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let first = net.expect_command();
    let message = asynchronous(&mut net, AsyncEvent::TasksTerminated, [0; 3]);
    net.send(message, &[]);
    let nop = NopOut::parse(&net.expect(Opcode::NopOut).0).unwrap();
    assert_eq!((nop.itt, nop.ttt, nop.exp_stat_sn), (RESERVED_TAG, RESERVED_TAG, Serial(101)));
    let again = net.expect_command();
    assert_ne!(again.itt, first.itt);
    net.good(&again);
    assert!(net.result(1).is_ok());
}

#[test]
fn a_wish_for_negotiation_is_answered_with_a_text() {
    let mut net = Net::new(INFINITE);
    let message = asynchronous(&mut net, AsyncEvent::NegotiationRequest, [0, 0, 10]);
    net.send(message, &[]);
    let (_, text) = net.expect(Opcode::TextRequest);
    assert!(text.is_empty());
}

#[test]
fn a_rejected_text_fails_and_makes_room_for_the_next() {
    let mut net = Net::new(INFINITE);
    for id in 0..2 {
        net.app().controls.push_back(Control::Text { id, text: b"SendTargets=All\0".to_vec() });
        net.run();
        let (bhs, _) = net.expect(Opcode::TextRequest);
        let pdu = reject(&mut net, RejectReason::ProtocolError);
        net.send(pdu, &bhs.0);
        let failed = ControlAnswer::Failed(Failure::Rejected(RejectReason::ProtocolError));
        assert_eq!(net.app().answers.pop(), Some((id, failed)));
    }
}

#[test]
fn a_target_failure_has_no_status() {
    let mut net = Net::new(INFINITE);
    net.app().commands.push_back(read(1));
    net.run();
    let command = net.expect_command();
    let (stat_sn, exp_cmd_sn, max_cmd_sn) = net.numbers();
    let response = ScsiResponse {
        residual: Residual::Underflow(7),
        response: ResponseCode::TargetFailure,
        status: Status::Good.to_byte(),
        itt: command.itt,
        stat_sn,
        exp_cmd_sn,
        max_cmd_sn,
        ..ScsiResponse::default()
    };
    net.send(response.emit(), &[]);
    assert_eq!(net.result(1), Err(Failure::TargetFailure(1)));
}
