//! The initiator's mover over a queue pair that a test moves by hand.

use iscsi_memory::{Payload, Region, RegionSlice};
use iscsi_proto::connection::QueueMover;
use iscsi_proto::datamover::{Datamover, MalformedPdu};
use iscsi_proto::parameters::Parameters;
use iscsi_proto::pdu::{BHS_LEN, NopOut, RESERVED_TAG, ScsiCommand};
use iscsi_proto::serial::Serial;
use iscsi_proto::tcp::Role;

use super::super::IserMoverConfig;
use super::super::scripted::{Refuses, Scripted, login_request, login_response};
use super::*;
use crate::header::HEADERS_LEN;
use crate::queue::{Completion, EndCause, Established, QueueLimits, RegisterReason, Work};

mod commands;
mod registering;

struct Sent {
    header: ControlHeader,
    bhs: Bhs,
    ahs: Vec<u8>,
    data: Vec<u8>,
}

struct Rig {
    mover: IserMover<Scripted>,
}

fn config() -> IserMoverConfig {
    IserMoverConfig { max_tasks: 8, receive_slack: 4, ..IserMoverConfig::new(Role::Initiator) }
}

fn parameters() -> Parameters {
    Parameters { rdma_extensions: true, ..Parameters::default() }
}

fn task(slot: u16) -> TaskHandle {
    TaskHandle { slot, generation: 3 }
}

fn pattern(len: usize) -> Buf {
    let mut buf = Buf::zeroed(len);
    buf.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n as u8).wrapping_mul(31));
    buf
}

fn lent(len: usize) -> RegionSlice {
    let region = Region::heap(len);
    region.reserve_for_write(0, len as u64).unwrap();
    region.write(0, &pattern(len));
    region.slice(0, len)
}

/// A command's header: it reads, it writes, and how many bytes.
fn header(slot: u16, read: bool, write: bool, len: usize) -> Bhs {
    ScsiCommand {
        is_final: false,
        read,
        write,
        lun: 7,
        itt: task(slot).to_itt(),
        expected_data_transfer_length: len as u32,
        cmd_sn: Serial(100 + u32::from(slot)),
        exp_stat_sn: Serial(9),
        cdb: [1; 16],
        ..ScsiCommand::default()
    }
    .emit()
}

fn response(slot: u16) -> ScsiResponse {
    ScsiResponse {
        itt: task(slot).to_itt(),
        stat_sn: Serial(9),
        exp_cmd_sn: Serial(1),
        max_cmd_sn: Serial(8),
        ..ScsiResponse::default()
    }
}

fn message(mut bhs: Bhs, data: &[u8]) -> Vec<u8> {
    bhs.set_data_segment_len(data.len() as u32);
    [&Header::Control(ControlHeader::default()).emit()[..], &bhs.0, data].concat()
}

impl Rig {
    fn connected(work: usize) -> Self {
        let limits = QueueLimits { work, receives: 64, transfer: 1 << 20 };
        let mut rig = Self { mover: IserMover::new(Scripted::new(limits), config()) };
        rig.tell(Completion::Established(Established { peer_private: Some(0x80), read_depth: 1, served_depth: 4 }));
        rig
    }

    /// An initiator whose login is over.
    fn with(parameters: &Parameters, work: usize) -> Self {
        let mut rig = Self::connected(work);
        rig.mover.notice_key_values(parameters);
        rig.mover.send_control(login_request(), b"x=y\0");
        assert_eq!(rig.sent().len(), 1);
        rig.come(&message(login_response(), b"x=y\0"), None);
        assert!(matches!(rig.poll(), Some(Notification::Control(_))));
        rig.mover.notice_key_values(parameters);
        rig.mover.enable_datamover();
        rig
    }

    fn new() -> Self {
        Self::with(&parameters(), 64)
    }

    fn tell(&mut self, completion: Completion) {
        self.mover.queue.completions.push_back(completion);
        assert!(self.mover.handle_completions());
    }

    fn poll(&mut self) -> Option<Notification> {
        self.mover.poll_notify()
    }

    fn come(&mut self, bytes: &[u8], invalidated: Option<Stag>) {
        let mut buf = self.mover.queue.receives.pop_front().expect("a receive is posted");
        buf[..bytes.len()].copy_from_slice(bytes);
        self.tell(Completion::Received { buf, len: bytes.len(), invalidated });
    }

    fn answer(&mut self, response: &ScsiResponse, data: &[u8], invalidated: Option<Stag>) {
        self.come(&message(response.emit(), data), invalidated);
    }

    /// The answer is told, and the task is over.
    fn over(&mut self, slot: u16) -> TaskBuffers {
        match self.poll() {
            Some(Notification::Control(bhs)) => assert_eq!(bhs.itt(), task(slot).to_itt()),
            other => panic!("the response is told, not {other:?}"),
        }
        self.mover.deallocate_task_resources(task(slot))
    }

    fn write(&mut self, slot: u16, len: usize) {
        self.write_of(slot, Payload::Buf(pattern(len)), len);
    }

    fn write_of(&mut self, slot: u16, data: Payload, len: usize) {
        let bhs = header(slot, false, true, len);
        self.mover.send_command(SendCommand { task: task(slot), bhs, ahs: &[], data_out: Some(data), data_in: None });
    }

    fn read(&mut self, slot: u16, len: usize) {
        self.read_into(slot, Payload::Buf(Buf::zeroed(len)), len);
    }

    fn read_into(&mut self, slot: u16, sink: Payload, len: usize) {
        let bhs = header(slot, true, false, len);
        self.mover.send_command(SendCommand { task: task(slot), bhs, ahs: &[], data_out: None, data_in: Some(sink) });
    }

    /// All that is posted, done at once.
    fn sent(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        while let Some(work) = self.mover.queue.take_work() {
            let Work::Send { id, message, invalidate: None } = work else {
                panic!("an initiator only sends: {work:?}")
            };
            let mut bytes = vec![0; message.len];
            message.memory.read(message.start, &mut bytes);
            let Ok(Header::Control(header)) = Header::parse(&bytes) else { panic!("a control-type PDU") };
            let bhs = Bhs(*bytes[HEADER_LEN..].first_chunk::<BHS_LEN>().unwrap());
            let (ahs, data) = bytes[HEADERS_LEN..].split_at(bhs.ahs_len());
            let data = data[..bhs.data_segment_len() as usize].to_vec();
            assert_eq!(bytes.len(), (HEADERS_LEN + ahs.len() + data.len()).next_multiple_of(4));
            sent.push(Sent { header, bhs, ahs: ahs.to_vec(), data });
            let done = self.mover.queue.done(id, message.memory);
            self.tell(done);
        }
        sent
    }

    fn one(&mut self) -> Sent {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1);
        sent.remove(0)
    }

    /// The queue pair gives everything back, and ends.
    fn end(&mut self, cause: EndCause) {
        self.mover.queue.flushed().into_iter().for_each(|completion| self.tell(completion));
        self.tell(Completion::Ended(cause));
    }

    /// The mover ends the connection without a word to the session; this is why.
    fn terminated(&mut self) -> MoverError {
        assert!(self.poll().is_none());
        assert!(self.mover.queue.aborted);
        self.end(EndCause::Closed);
        match self.poll() {
            Some(Notification::Terminated(error)) => {
                assert!(self.poll().is_none() && self.mover.is_closed());
                error
            }
            other => panic!("the end, not {other:?}"),
        }
    }
}

fn buf_of_data(data: Option<Payload>) -> Buf {
    match data {
        Some(Payload::Buf(buf)) => buf,
        other => panic!("a buffer, not {other:?}"),
    }
}

fn buf_of_sink(sink: Option<Payload>) -> Buf {
    match sink {
        Some(Payload::Buf(buf)) => buf,
        other => panic!("a buffer, not {other:?}"),
    }
}

// RFC 7145 5.1.1, 8.1: the answer to that request begins the Full Feature Phase, and iWARP takes no message without a
// receive.
#[test]
fn receives_stand_before_the_request_for_full_feature_leaves() {
    let mut rig = Rig::connected(64);
    assert_eq!(rig.mover.queue.receives.len(), 1);
    let most = Parameters { max_recv_data_segment_length: 16_384, ..parameters() };
    rig.mover.notice_key_values(&most);
    rig.mover.send_control(login_request(), b"x=y\0");
    let Some(&posted) = rig.mover.queue.receives_before.front() else { panic!("it is posted") };
    assert_eq!(posted, config().receives());
    // The first one takes the login response; the others take what was declared.
    assert!(rig.mover.queue.receives.iter().skip(1).all(|buf| buf.len() >= HEADERS_LEN + 16_384));
    assert_eq!(rig.sent().len(), 1);
    // What comes behind the response before it is looked at has its place.
    rig.come(&message(login_response(), b"x=y\0"), None);
    let nop = Bhs::new(Opcode::NopIn);
    rig.come(&message(nop, &[5; 300]), None);
    assert!(matches!(rig.poll(), Some(Notification::Control(bhs)) if bhs.opcode() == Ok(Opcode::LoginResponse)));
    rig.mover.notice_key_values(&parameters());
    rig.mover.enable_datamover();
    assert!(matches!(rig.poll(), Some(Notification::Control(bhs)) if bhs.opcode() == Ok(Opcode::NopIn)));
    assert_eq!(rig.mover.control_data(), [5; 300]);
}

// RFC 7145 10.1.3.1: nothing leaves that would let the target send, and the session hears why.
#[test]
fn receives_beyond_the_configured_memory_end_the_connection() {
    let mut rig = Rig::connected(64);
    rig.mover.notice_key_values(&Parameters { max_recv_data_segment_length: 0x00ff_ffff, ..parameters() });
    rig.mover.send_control(login_request(), b"x=y\0");
    assert!(rig.mover.queue.work.is_empty());
    assert!(matches!(rig.terminated(), MoverError::Rdma(_)));
}

#[test]
fn every_receive_is_posted_again() {
    let mut rig = Rig::new();
    for round in 0..40 {
        rig.read(0, 512);
        assert_eq!(rig.sent().len(), 1);
        rig.answer(&response(0), &[], None);
        assert_eq!(rig.over(0).data_in_len, 512, "round {round}");
        assert!(rig.poll().is_none());
        assert_eq!(rig.mover.queue.receives.len(), config().receives());
    }
}

// RFC 7145 5.1.3.
#[test]
fn the_hello_comes_first_and_all_else_waits_for_its_reply() {
    let hello = Parameters { iser_hello_required: true, ..parameters() };
    let mut rig = Rig::with(&hello, 64);
    rig.read(0, 512);
    rig.mover.send_control(Bhs::new(Opcode::NopOut), &[]);
    let Some(Work::Send { id, message: sent, .. }) = rig.mover.queue.work.pop_front() else { panic!("a Hello") };
    rig.mover.queue.receives_before.pop_front();
    let mut bytes = [0; HEADER_LEN];
    assert_eq!(sent.len, HEADER_LEN);
    sent.memory.read(sent.start, &mut bytes);
    let Ok(Header::Hello(Hello { max_version, min_version, ird })) = Header::parse(&bytes) else { panic!("a Hello") };
    assert_eq!((max_version, min_version, ird), (VERSION, VERSION, config().read_depth));
    rig.tell(Completion::Done { id, memory: sent.memory });
    assert!(rig.mover.queue.work.is_empty(), "nothing goes out before the HelloReply");
    let served = |rig: &Rig| rig.mover.report().map(|report| report.read_depth);
    assert_eq!(served(&rig), Some(4));
    let reply = HelloReply { rejected: false, max_version: VERSION, current_version: VERSION, ord: 3 };
    rig.come(&Header::HelloReply(reply).emit(), None);
    assert!(rig.poll().is_none());
    assert_eq!(served(&rig), Some(3), "what the target asks for at a time");
    let sent = rig.sent();
    assert_eq!(sent.len(), 2);
    assert!(sent[0].header.read.is_some());
    // There is one, and no more.
    rig.come(&Header::HelloReply(reply).emit(), None);
    assert!(matches!(rig.terminated(), MoverError::Protocol(_)));
}

// RFC 7145 10.1.3.2, 10.1.3.4.
#[test]
fn a_hello_that_is_rejected_or_not_answered_ends_the_connection() {
    let hello = Parameters { iser_hello_required: true, ..parameters() };
    let good = HelloReply { rejected: false, max_version: VERSION, current_version: VERSION, ord: 4 };
    for reply in [HelloReply { rejected: true, ..good }, HelloReply { current_version: 9, ..good }] {
        let mut rig = Rig::with(&hello, 64);
        rig.mover.queue.work.clear();
        rig.come(&Header::HelloReply(reply).emit(), None);
        assert!(matches!(rig.terminated(), MoverError::Rdma(why) if why.contains("rejected")));
    }
    let mut rig = Rig::with(&hello, 64);
    rig.mover.queue.work.clear();
    rig.come(&message(Bhs::new(Opcode::NopIn), &[]), None);
    assert!(matches!(rig.terminated(), MoverError::Protocol(Misbehavior::HelloReplyMissing)));
}

#[test]
fn what_the_target_says_unasked_is_told_with_its_data() {
    let mut rig = Rig::new();
    for opcode in [
        Opcode::NopIn,
        Opcode::AsyncMessage,
        Opcode::Reject,
        Opcode::TextResponse,
        Opcode::TaskManagementResponse,
        Opcode::LogoutResponse,
    ] {
        rig.come(&message(Bhs::new(opcode), &[opcode as u8; 48]), None);
        assert!(matches!(rig.poll(), Some(Notification::Control(bhs)) if bhs.opcode() == Ok(opcode)));
        assert_eq!(rig.mover.control_data(), [opcode as u8; 48]);
    }
}

// RFC 7145 7.3.3 to 7.3.13, 9.1: one Send each, behind an iSER header that advertises nothing.
#[test]
fn all_requests_are_one_send_each() {
    let mut rig = Rig::new();
    let opcodes = [Opcode::NopOut, Opcode::TaskManagementRequest, Opcode::TextRequest, Opcode::LogoutRequest];
    for opcode in opcodes {
        rig.mover.send_control(Bhs::new(opcode), &[opcode as u8; 50]);
    }
    let sent = rig.sent();
    assert_eq!(sent.len(), opcodes.len());
    for (sent, opcode) in sent.into_iter().zip(opcodes) {
        assert_eq!((sent.header, sent.bhs.opcode()), (ControlHeader::default(), Ok(opcode)));
        assert_eq!(sent.data, [opcode as u8; 50]);
    }
}

// RFC 7145 7.3.5, 7.3.6: the PDUs themselves never cross.
#[test]
fn data_in_and_r2t_are_protocol_errors() {
    for opcode in [Opcode::DataIn, Opcode::R2t, Opcode::NopOut, Opcode::ScsiCommand] {
        let mut rig = Rig::new();
        rig.come(&message(Bhs::new(opcode), &[]), None);
        assert!(matches!(rig.poll(), Some(Notification::Malformed { error: MalformedPdu::Protocol(_), .. })));
    }
}

#[test]
fn sends_wait_for_room_in_the_queue_pair() {
    let mut rig = Rig::with(&parameters(), 2);
    for slot in 0..6 {
        rig.write(slot, 512);
    }
    rig.mover.send_control(Bhs::new(Opcode::NopOut), &[]);
    assert_eq!(rig.mover.queue.work.len(), 2);
    assert_eq!(rig.mover.backlog(), 6 * (HEADERS_LEN + 512) + HEADERS_LEN);
    let sent = rig.sent();
    let order: Vec<_> = sent.iter().take(6).map(|sent| sent.bhs.itt()).collect();
    assert_eq!(order, (0..6).map(|slot| task(slot).to_itt()).collect::<Vec<_>>());
    assert_eq!((sent.len(), rig.mover.backlog()), (7, 0));
}

// At every step at which a connection can end, each buffer comes back, and once.
#[test]
fn an_end_at_any_step_gives_every_buffer_back() {
    for step in 0..6 {
        for abort in [false, true] {
            let mut rig = Rig::with(&parameters(), 2);
            rig.mover.queue.room = 3;
            rig.write(0, 100_000);
            rig.read(1, 4096);
            rig.write(2, 512);
            rig.read(3, 512);
            // Waits for an STag.
            rig.read(4, 512);
            let mut left = 5;
            if step >= 1 {
                rig.sent();
            }
            if step >= 2 {
                rig.answer(&response(1), &[], None);
            }
            if step >= 3 {
                assert_eq!(buf_of_sink(rig.over(1).data_in).len(), 4096);
                left -= 1;
            }
            if step == 4 {
                assert!(rig.mover.deallocate_task_resources(task(0)).data_out.is_some());
                left -= 1;
            }
            if step == 5 {
                rig.mover.connection_terminate();
            }
            if abort {
                rig.mover.connection_abort();
                rig.mover.connection_abort();
                assert!(rig.mover.queue.aborted);
            }
            if abort && step % 2 == 0 {
                // Before the queue pair has ended, or after it: both give them back.
                for slot in [0, 2] {
                    left -= usize::from(rig.mover.deallocate_task_resources(task(slot)).data_out.is_some());
                }
            }
            rig.end(if abort { EndCause::Closed } else { EndCause::Broken });
            let mut told = Vec::new();
            while let Some(notification) = rig.poll() {
                told.push(notification);
            }
            assert!(matches!(told.last(), Some(Notification::Terminated(_))), "{step} {abort} {told:?}");
            assert!(!told.iter().any(|told| matches!(told, Notification::Released(_))), "messages are the mover's own");
            assert!(rig.mover.queue.advertised.is_empty(), "{step} {abort}");
            for slot in 0..5 {
                let buffers = rig.mover.deallocate_task_resources(task(slot));
                left -= usize::from(buffers.data_out.is_some()) + usize::from(buffers.data_in.is_some());
                let again = rig.mover.deallocate_task_resources(task(slot));
                assert!(again.data_out.is_none() && again.data_in.is_none());
            }
            assert_eq!(left, 0, "{step} {abort}");
            assert_eq!(rig.mover.backlog_of_messages(), 0);
        }
    }
}

#[test]
fn commands_after_the_end_keep_their_buffers() {
    let mut rig = Rig::new();
    rig.end(EndCause::Broken);
    assert!(matches!(rig.poll(), Some(Notification::Terminated(MoverError::Broken))));
    rig.write(0, 100_000);
    assert!(rig.mover.queue.work.is_empty());
    assert_eq!(buf_of_data(rig.mover.deallocate_task_resources(task(0)).data_out).len(), 100_000);
}

impl IserMover<Scripted> {
    fn backlog_of_messages(&self) -> usize {
        self.send.backlog() + self.initiator.backlog()
    }
}
