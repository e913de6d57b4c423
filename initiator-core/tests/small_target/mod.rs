//! A small target of the tests' own: one LUN of RAM over blocking sockets, a thread per connection. It is there so that the initiator is tested against
//! code that shares nothing with `target-core`.

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use initiator_core::{Portal, SessionConfig};
use iscsi_memory::{Buf, Payload, SendList, socket};
use iscsi_proto::connection::{StreamEnd, StreamMover};
use iscsi_proto::datamover::{
    Datamover, GetData, Notification, PutData, SequenceNumbers, Source, TaskHandle, TaskStatus,
};
use iscsi_proto::keys::{NegotiationPhase, Negotiator, NegotiatorConfig, Role as Side};
use iscsi_proto::login::Offer;
use iscsi_proto::parameters::{Parameters, SessionType};
use iscsi_proto::pdu::{
    LoginRequest, LoginResponse, LoginStatus, LogoutRequest, LogoutResponse, LogoutResult, NopIn, NopOut, Opcode,
    RESERVED_TAG, Residual, ScsiCommand, Stage,
};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::{Role, TcpMover, TcpMoverConfig};
use iscsi_proto::text::{Pairs, TextWriter};
use scsi_proto::capacity::ReadCapacity16;
use scsi_proto::{AdditionalSense, BlockIo, Cdb, Lun, Sense, SenseFormat, Status, opcode, report};

/// Its one target.
pub(crate) const NAME: &str = "iqn.2004-10.com.example:small";
/// Its size.
pub(crate) const BYTES: usize = 64 << 20;
const WINDOW: u32 = 256;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) blocks: Mutex<Vec<u8>>,
    /// Bytes at the end of each write that it does not take, and says so by a residual.
    pub(crate) untaken: AtomicU32,
    /// Whether it answers questions that need no answer, and badly.
    pub(crate) babbles: AtomicBool,
    /// Its serial number; none for 0.
    pub(crate) serial: AtomicU32,
    /// Its LUN as it spells it: other spellings are no LUN of its.
    pub(crate) lun: AtomicU64,
}

/// Starts it on a port of the system's choice.
pub(crate) fn start() -> (Portal, Arc<Disk>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let disk = Arc::new(Disk {
        blocks: Mutex::new(vec![0; BYTES]),
        untaken: AtomicU32::new(0),
        babbles: AtomicBool::new(false),
        serial: AtomicU32::new(0),
        lun: AtomicU64::new(0),
    });
    let shared = disk.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let disk = shared.clone();
            std::thread::spawn(move || Connection::new(disk).serve(stream));
        }
    });
    (Portal { host: "127.0.0.1".into(), port }, disk)
}

/// A session to it.
pub(crate) fn config(portal: &Portal) -> SessionConfig {
    SessionConfig::new(portal.clone(), NAME)
}

struct Connection {
    disk: Arc<Disk>,
    mover: TcpMover,
    stat_sn: Serial,
    exp_cmd_sn: Serial,
    writes: HashMap<TaskHandle, (ScsiCommand, BlockIo)>,
    next_slot: u16,
    generation: u16,
    /// The first command of a session meets a unit attention.
    attention: bool,
}

impl Connection {
    fn new(disk: Arc<Disk>) -> Self {
        let mover = TcpMover::new(Role::Target, TcpMoverConfig { max_tasks: 256, ..TcpMoverConfig::default() });
        Self {
            disk,
            mover,
            stat_sn: Serial(1),
            exp_cmd_sn: Serial(1),
            writes: HashMap::new(),
            next_slot: 0,
            generation: 0,
            attention: true,
        }
    }

    fn serve(mut self, stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        loop {
            loop {
                let mut list = SendList::default();
                self.mover.fill_send_list(&mut list);
                if list.is_empty() {
                    break;
                }
                let Ok(n) = socket::send(&stream, &list) else { return };
                self.mover.handle_sent(n);
            }
            if self.mover.is_closed() {
                return;
            }
            let mut window = self.mover.receive_window();
            if !window.is_empty() {
                match socket::receive(&stream, &mut window) {
                    Ok(0) | Err(_) => self.mover.handle_stream_end(StreamEnd::Broken),
                    Ok(n) => self.mover.handle_received(n),
                }
            }
            while let Some(notification) = self.mover.poll_notify() {
                self.handle(notification);
            }
        }
    }

    fn numbers(&mut self) -> (Serial, Serial, Serial) {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.next();
        (stat_sn, self.exp_cmd_sn, self.exp_cmd_sn.advance(WINDOW - 1))
    }

    fn handle(&mut self, notification: Notification) {
        match notification {
            Notification::Control(bhs) => match bhs.opcode().unwrap() {
                Opcode::LoginRequest => self.log_in(&LoginRequest::parse(&bhs).unwrap()),
                Opcode::ScsiCommand => self.command(&ScsiCommand::parse(&bhs).unwrap()),
                Opcode::NopOut => {
                    let nop = NopOut::parse(&bhs).unwrap();
                    let (stat_sn, exp_cmd_sn, max_cmd_sn) = self.numbers();
                    let answer = NopIn { lun: 0, itt: nop.itt, ttt: RESERVED_TAG, stat_sn, exp_cmd_sn, max_cmd_sn };
                    self.mover.send_control(answer.emit(), &[]);
                }
                Opcode::LogoutRequest => {
                    let request = LogoutRequest::parse(&bhs).unwrap();
                    let (stat_sn, exp_cmd_sn, max_cmd_sn) = self.numbers();
                    let answer = LogoutResponse {
                        response: LogoutResult::Closed,
                        itt: request.itt,
                        stat_sn,
                        exp_cmd_sn,
                        max_cmd_sn,
                        time2wait: 0,
                        time2retain: 0,
                    };
                    self.mover.send_control(answer.emit(), &[]);
                    self.mover.connection_terminate();
                }
                other => panic!("the initiator sent {other:?}"),
            },
            Notification::GetDataComplete { task, sink: Payload::Buf(buf) } => {
                let (command, io) = self.writes.remove(&task).unwrap();
                self.mover.deallocate_task_resources(task);
                let (at, len) = (
                    io.lba as usize * 512,
                    buf.len() - (self.disk.untaken.load(Ordering::Relaxed) as usize).min(buf.len()),
                );
                self.disk.blocks.lock().unwrap()[at..at + len].copy_from_slice(&buf[..len]);
                self.answer(&command, &[], Status::Good, &[]);
            }
            Notification::Malformed { error, .. } => panic!("the initiator sent a bad PDU: {error}"),
            _ => {}
        }
    }

    fn log_in(&mut self, request: &LoginRequest) {
        let own = ["InitiatorName", "TargetName", "SessionType", "InitiatorAlias", "AuthMethod"];
        let mut negotiator = Negotiator::new(NegotiatorConfig {
            role: Side::Target,
            phase: NegotiationPhase::Login,
            session_type: SessionType::Normal,
            leading: true,
            offer: Offer { default_time2wait: 0, max_outstanding_r2t: 4, ..Offer::default() },
            before: Parameters::default(),
        });
        let mut text = TextWriter::new();
        text.push("TargetPortalGroupTag", "1");
        let data = self.mover.control_data().to_vec();
        let pairs = Pairs::new(&data).flatten().filter(|pair| !own.contains(&pair.key));
        negotiator.receive(pairs, &mut text).unwrap();
        negotiator.propose(&mut text);
        let (stat_sn, exp_cmd_sn, max_cmd_sn) = self.numbers();
        let answer = LoginResponse {
            incomplete: false,
            csg: request.csg,
            nsg: Some(Stage::FullFeaturePhase),
            version_max: 0,
            version_active: 0,
            isid: request.isid,
            tsih: 1,
            itt: request.itt,
            stat_sn,
            exp_cmd_sn,
            max_cmd_sn,
            status: LoginStatus::SUCCESS,
        };
        self.mover.send_control(answer.emit(), text.as_bytes());
        self.mover.notice_key_values(&negotiator.finish().unwrap());
        self.mover.enable_datamover();
    }

    fn command(&mut self, command: &ScsiCommand) {
        assert_eq!(command.cmd_sn, self.exp_cmd_sn, "one connection delivers in order");
        self.exp_cmd_sn = self.exp_cmd_sn.next();
        let refused = |code| Sense::illegal_request(code).to_bytes(SenseFormat::Fixed);
        let cdb = Cdb::new(&command.cdb).unwrap();
        if std::mem::replace(&mut self.attention, false) && cdb.opcode() != opcode::INQUIRY && !command.write {
            let sense = Sense::unit_attention(AdditionalSense::I_T_NEXUS_LOSS_OCCURRED).to_bytes(SenseFormat::Fixed);
            return self.answer(command, &[], Status::CheckCondition, &sense);
        }
        match cdb.opcode() {
            opcode::INQUIRY if command.cdb[1] == 0 => {
                let mut data = [b' '; 36];
                let present = command.lun == self.disk.lun.load(Ordering::Relaxed);
                data[..8].copy_from_slice(&[if present { 0 } else { 0x7f }, 0, 6, 2, 31, 0, 0, 2]);
                self.answer(command, &data, Status::Good, &[]);
            }
            opcode::INQUIRY if self.disk.serial.load(Ordering::Relaxed) != 0 && matches!(command.cdb[2], 0 | 0x80) => {
                let serial = format!("{:04}", self.disk.serial.load(Ordering::Relaxed));
                let page: &[u8] = if command.cdb[2] == 0 { &[0, 0x80] } else { serial.as_bytes() };
                let data = [&[0, command.cdb[2], 0, page.len() as u8], page].concat();
                self.answer(command, &data, Status::Good, &[]);
            }
            opcode::INQUIRY if self.disk.babbles.load(Ordering::Relaxed) => match command.cdb[2] {
                0 => self.answer(command, &[0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2], Status::Good, &[]),
                // Shorter than it says, and of another page.
                code => self.answer(command, &[0, !code, 0, 60, 1, 2], Status::Good, &[]),
            },
            opcode::MODE_SENSE_6 | opcode::MODE_SENSE_10 if self.disk.babbles.load(Ordering::Relaxed) => {
                self.answer(command, &[200, 0], Status::Good, &[]);
            }
            opcode::REPORT_LUNS => {
                let own = Lun::parse(self.disk.lun.load(Ordering::Relaxed).to_be_bytes()).unwrap();
                self.answer(command, &report::luns([own]), Status::Good, &[]);
            }
            _ if command.lun != self.disk.lun.load(Ordering::Relaxed) => {
                let sense = refused(AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED);
                self.answer(command, &[], Status::CheckCondition, &sense);
            }
            opcode::SERVICE_ACTION_IN_16 => {
                let capacity = ReadCapacity16 {
                    last_lba: BYTES as u64 / 512 - 1,
                    block_length: 512,
                    protection: None,
                    protection_interval_exponent: 0,
                    physical_block_exponent: 3,
                    thin: false,
                    unmapped_reads_zero: false,
                    lowest_aligned_lba: 0,
                };
                self.answer(command, &capacity.to_bytes(), Status::Good, &[]);
            }
            opcode::SYNCHRONIZE_CACHE_10 => self.answer(command, &[], Status::Good, &[]),
            opcode::READ_10 | opcode::READ_16 => {
                let io = BlockIo::parse(cdb).unwrap();
                let at = io.lba as usize * 512;
                let disk = self.disk.clone();
                let blocks = disk.blocks.lock().unwrap();
                self.answer(command, &blocks[at..at + io.blocks as usize * 512], Status::Good, &[]);
            }
            opcode::WRITE_10 | opcode::WRITE_16 => {
                let io = BlockIo::parse(cdb).unwrap();
                let mut task = TaskHandle { slot: self.next_slot, generation: self.generation };
                while self.writes.keys().any(|other| other.slot == task.slot) {
                    task.slot = (task.slot + 1) % 512;
                }
                self.next_slot = (task.slot + 1) % 512;
                self.generation = self.generation.wrapping_add(1);
                self.writes.insert(task, (*command, io));
                let sink = Payload::Buf(Buf::zeroed(io.blocks as usize * 512));
                self.mover.set_sequence(SequenceNumbers {
                    stat_sn: self.stat_sn,
                    exp_cmd_sn: self.exp_cmd_sn,
                    max_cmd_sn: self.exp_cmd_sn.advance(WINDOW - 1),
                    ..SequenceNumbers::default()
                });
                self.mover.get_data(GetData { task, lun: command.lun, itt: command.itt, sink });
            }
            _ => {
                let sense = refused(AdditionalSense::INVALID_COMMAND_OPERATION_CODE);
                self.answer(command, &[], Status::CheckCondition, &sense);
            }
        }
    }

    fn answer(&mut self, command: &ScsiCommand, data: &[u8], status: Status, sense: &[u8]) {
        let (stat_sn, exp_cmd_sn, max_cmd_sn) = self.numbers();
        self.mover.set_sequence(SequenceNumbers { stat_sn, exp_cmd_sn, max_cmd_sn, ..SequenceNumbers::default() });
        let expected = command.expected_data_transfer_length;
        let data = &data[..data.len().min(expected as usize)];
        let untaken = self.disk.untaken.load(Ordering::Relaxed).into();
        let moved = if command.write { u64::from(expected).saturating_sub(untaken) } else { data.len() as u64 };
        self.mover.put_data(PutData {
            lun: command.lun,
            itt: command.itt,
            buffer_offset: 0,
            data: if data.is_empty() { Source::None } else { Source::Copy(data) },
            status: Some(TaskStatus {
                status: status.to_byte(),
                residual: Residual::between(expected, moved),
                bidirectional_read_residual: Residual::None,
                sense,
            }),
        });
    }
}
