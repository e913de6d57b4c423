//! The target's mover over a queue pair that a test moves by hand.

use iscsi_memory::{Buf, Lease, Payload};
use iscsi_proto::connection::QueueMover;
use iscsi_proto::datamover::{Datamover, GetData, MoverError, Notification, PutData, Source, TaskHandle, TaskStatus};
use iscsi_proto::parameters::Parameters;
use iscsi_proto::pdu::{BHS_LEN, Bhs, DataOut, Opcode, RESERVED_TAG, Residual, ScsiCommand};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::Role;

use super::scripted::{Scripted, login_request, login_response};
use super::{IserMover, IserMoverConfig};
use crate::header::{ControlHeader, HEADER_LEN, HEADERS_LEN, Header};
use crate::queue::{Completion, EndCause, Established, QueueLimits, RemoteBuffer, Stag, Work};

mod control;
mod ending;
mod hello;
mod hostile;
mod login;
mod read;
mod write;

const READ: RemoteBuffer = RemoteBuffer { stag: Stag(0x7ead), offset: 0x1_0000_0000 };
const WRITE: RemoteBuffer = RemoteBuffer { stag: Stag(0x3417e), offset: 0x2_0000_0000 };
const GOOD: TaskStatus<'static> =
    TaskStatus { status: 0, residual: Residual::None, bidirectional_read_residual: Residual::None, sense: &[] };

struct Rig {
    mover: IserMover<Scripted>,
}

/// What of a test's command differs from the next one's.
#[derive(Clone, Copy)]
struct Command<'a> {
    itt: u32,
    read: bool,
    write: bool,
    is_final: bool,
    len: u32,
    data: &'a [u8],
    ahs: &'a [u8],
}

const COMMAND: Command<'static> =
    Command { itt: 1, read: false, write: false, is_final: true, len: 0, data: &[], ahs: &[] };

fn message(header: ControlHeader, mut bhs: Bhs, ahs: &[u8], data: &[u8]) -> Vec<u8> {
    bhs.set_ahs_len(ahs.len());
    bhs.set_data_segment_len(data.len() as u32);
    [&Header::Control(header).emit()[..], &bhs.0, ahs, data].concat()
}

fn scsi_command(command: Command<'_>) -> Bhs {
    ScsiCommand {
        is_final: command.is_final,
        read: command.read,
        write: command.write,
        itt: command.itt,
        expected_data_transfer_length: command.len,
        cmd_sn: Serial(1),
        exp_stat_sn: Serial(1),
        ..ScsiCommand::default()
    }
    .emit()
}

fn data_out(itt: u32, data_sn: u32, buffer_offset: u32, is_final: bool) -> Bhs {
    DataOut { is_final, lun: 0, itt, ttt: RESERVED_TAG, exp_stat_sn: Serial(1), data_sn, buffer_offset }.emit()
}

fn parameters() -> Parameters {
    Parameters { initial_r2t: false, rdma_extensions: true, ..Parameters::default() }
}

fn task(slot: u16) -> TaskHandle {
    TaskHandle { slot, generation: 1 }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

impl Rig {
    fn unconnected(config: IserMoverConfig, limits: QueueLimits) -> Self {
        Self { mover: IserMover::new(Scripted::new(limits), config) }
    }

    fn connected(config: IserMoverConfig, limits: QueueLimits, established: Established) -> Self {
        let mut rig = Self::unconnected(config, limits);
        rig.tell(Completion::Established(established));
        rig
    }

    /// A target whose login is over, with 8 tasks.
    fn with(parameters: &Parameters, limits: QueueLimits, established: Established) -> Self {
        let mut rig = Self::connected(config(), limits, established);
        rig.come(&message(ControlHeader::default(), login_request(), &[], b"x=y\0"));
        assert!(matches!(rig.poll(), Some(Notification::Control(_))));
        rig.mover.notice_key_values(parameters);
        rig.mover.send_control(login_response(), b"x=y\0");
        rig.mover.enable_datamover();
        assert!(rig.poll().is_none());
        assert_eq!(rig.sent().len(), 1);
        rig
    }

    fn new() -> Self {
        Self::with(&parameters(), LIMITS, ESTABLISHED)
    }

    fn tell(&mut self, completion: Completion) {
        self.mover.queue.completions.push_back(completion);
        assert!(self.mover.handle_completions());
    }

    fn poll(&mut self) -> Option<Notification> {
        self.mover.poll_notify()
    }

    /// A message comes in the next receive.
    fn come(&mut self, bytes: &[u8]) {
        let mut buf = self.mover.queue.receives.pop_front().expect("a receive is posted");
        buf[..bytes.len()].copy_from_slice(bytes);
        self.tell(Completion::Received { buf, len: bytes.len(), invalidated: None });
    }

    fn command(&mut self, header: ControlHeader, command: Command<'_>) -> Bhs {
        self.come(&message(header, scsi_command(command), command.ahs, command.data));
        match self.poll() {
            Some(Notification::Control(bhs)) => bhs,
            other => panic!("a command is notified, not {other:?}"),
        }
    }

    fn work(&mut self) -> Option<Work> {
        self.mover.queue.take_work()
    }

    fn done(&mut self, id: u64, memory: Payload) {
        let done = self.mover.queue.done(id, memory);
        self.tell(done);
    }

    /// All the messages that are posted, done at once: header, BHS, data, and the STag that each invalidates.
    fn sent(&mut self) -> Vec<(ControlHeader, Bhs, Vec<u8>, Option<Stag>)> {
        let mut sent = Vec::new();
        while let Some(work) = self.work() {
            let Work::Send { id, message, invalidate } = work else { panic!("{work:?} is no Send") };
            let bytes = bytes_of(&message);
            let Ok(Header::Control(header)) = Header::parse(&bytes) else { panic!("a control-type PDU") };
            let bhs = Bhs(*bytes[HEADER_LEN..].first_chunk::<BHS_LEN>().unwrap());
            let data = bytes[HEADERS_LEN..][..bhs.data_segment_len() as usize].to_vec();
            assert_eq!(bytes.len(), (HEADERS_LEN + data.len()).next_multiple_of(4));
            sent.push((header, bhs, data, invalidate));
            self.done(id, message.memory);
        }
        sent
    }

    /// The next work is an RDMA Read.
    fn read(&mut self) -> (u64, Lease, RemoteBuffer) {
        match self.work() {
            Some(Work::Read { id, into, from }) => (id, into, from),
            other => panic!("an RDMA Read, not {other:?}"),
        }
    }

    /// The next work is an RDMA Read, which brings `data`.
    fn serve_read(&mut self, data: &[u8]) -> RemoteBuffer {
        let (id, mut into, from) = self.read();
        assert_eq!(into.len, data.len());
        into.memory.write(into.start, data);
        self.done(id, into.memory);
        from
    }

    /// The next work is an RDMA Write; it is done.
    fn write(&mut self) -> (Vec<u8>, RemoteBuffer) {
        match self.work() {
            Some(Work::Write { id, from, to }) => {
                let bytes = bytes_of(&from);
                self.done(id, from.memory);
                (bytes, to)
            }
            other => panic!("an RDMA Write, not {other:?}"),
        }
    }

    fn put(&mut self, itt: u32, data: Source<'_>, status: Option<TaskStatus<'_>>) {
        self.mover.put_data(PutData { lun: 0, itt, buffer_offset: 0, data, status });
    }

    fn get(&mut self, slot: u16, itt: u32, sink: Payload) {
        self.mover.get_data(GetData { task: task(slot), lun: 0, itt, sink });
    }

    /// The queue pair gives everything back, and ends.
    fn end(&mut self, cause: EndCause) {
        self.mover.queue.flushed().into_iter().for_each(|completion| self.tell(completion));
        self.tell(Completion::Ended(cause));
    }

    /// The connection ends because of what the peer did; this is why.
    fn terminated(&mut self) -> MoverError {
        assert!(self.poll().is_none(), "nothing is told before the queue pair has ended");
        assert!(self.mover.queue.aborted);
        self.end(EndCause::Closed);
        match self.poll() {
            Some(Notification::Terminated(error)) => {
                assert!(self.poll().is_none());
                assert!(self.mover.is_closed());
                error
            }
            other => panic!("the end, not {other:?}"),
        }
    }
}

fn bytes_of(lease: &Lease) -> Vec<u8> {
    let mut bytes = vec![0; lease.len];
    lease.memory.read(lease.start, &mut bytes);
    bytes
}

fn config() -> IserMoverConfig {
    IserMoverConfig { max_tasks: 8, receive_slack: 4, ..IserMoverConfig::new(Role::Target) }
}

const LIMITS: QueueLimits = QueueLimits { work: 64, receives: 64, transfer: 1 << 20 };
const ESTABLISHED: Established = Established { peer_private: Some(0x80), read_depth: 8, served_depth: 0 };

fn reads(read: RemoteBuffer) -> ControlHeader {
    ControlHeader { read: Some(read), write: None }
}

fn writes(write: RemoteBuffer) -> ControlHeader {
    ControlHeader { read: None, write: Some(write) }
}

const NONE: ControlHeader = ControlHeader { read: None, write: None };
