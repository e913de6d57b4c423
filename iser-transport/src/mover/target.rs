//! The target's side: commands with their STags, RDMA Write and SCSI Response.

use iscsi_memory::{Lease, Memory};
use iscsi_proto::datamover::{GetData, Notification, PutData, Source, TaskBuffers, TaskHandle};
use iscsi_proto::pdu::{Bhs, Opcode};

use super::IserMover;
use super::receive::Span;
use crate::header::{ControlHeader, Hello};
use crate::queue::{QueuePair, RemoteBuffer, Stag};

#[derive(Debug)]
pub(super) struct TargetSide;

impl TargetSide {
    pub(super) fn new(_tasks: usize) -> Self {
        Self
    }
}

impl<Q: QueuePair> IserMover<Q> {
    pub(super) fn open_target(&mut self) {
        self.open_segment();
    }

    pub(super) fn settle_command(&mut self) {}

    pub(super) fn hello(&mut self, _hello: Hello) -> Option<Notification> {
        self.broken("a Hello came where none was wanted")
    }

    pub(super) fn request(&mut self, _: Opcode, _: ControlHeader, bhs: &Bhs, data: Span) -> Option<Notification> {
        self.show_data(data);
        Some(Notification::Control(*bhs))
    }

    pub(super) fn control_leaves(&mut self, _bhs: &Bhs, _data: &[u8]) -> Option<Stag> {
        None
    }

    pub(super) fn put(&mut self, put: PutData<'_>) {
        if let Source::Buf(buf) = put.data {
            self.release(Memory::Buf(buf));
        }
    }

    pub(super) fn get(&mut self, get: GetData) {
        let GetData { task, sink, .. } = get;
        let error = iscsi_proto::datamover::DataError::IncorrectAmountOfData;
        self.events.push_back(Notification::GetDataFailed { task, sink, error });
    }

    pub(super) fn at_hand(&self) -> &[u8] {
        &[]
    }

    pub(super) fn take_read(&mut self, _slot: u16, _serial: u32, _most: usize) -> Option<(Lease, RemoteBuffer)> {
        None
    }

    pub(super) fn read_done(&mut self, _slot: u16, _serial: u32, memory: Memory, _done: bool) {
        self.release(memory);
    }

    pub(super) fn deallocate_transfer(&mut self, _task: TaskHandle) -> TaskBuffers {
        TaskBuffers::default()
    }
}
