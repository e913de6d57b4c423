//! `get_data`: a command's data from what came unasked and by RDMA Read (RFC 7145 7.3.4, 7.3.6).

use alloc::vec::Vec;

use iscsi_memory::{Lease, Payload};
use iscsi_proto::datamover::{DataError, GetData, MalformedPdu, MoverError, Notification, TaskBuffers, TaskHandle};
use iscsi_proto::pdu::DataOut;
use iscsi_proto::unsolicited::{UnsolicitedBurst, UnsolicitedRules};

use super::receive::Span;
use super::tags::Unsolicited;
use super::{IserMover, State};
use crate::queue::{QueuePair, RemoteBuffer};

/// One `get_data` under way: the unsolicited burst first (immediate data, and Data-Out without tag), then what is left,
/// in one RDMA Read after another where one is not enough.
#[derive(Debug, Default)]
struct Transfer {
    active: bool,
    generation: u16,
    itt: u32,
    /// Bytes wanted in all.
    wanted: u32,
    unsolicited: UnsolicitedBurst,
    /// Bytes in place.
    received: u32,
    data_sn: u32,
    /// Where the initiator has the rest, and which byte of the command's data its base offset is.
    write: Option<RemoteBuffer>,
    write_begins: u32,
    sink: Option<Payload>,
    read: Read,
    /// What the initiator did wrong: the transfer fails when its unsolicited data have ended.
    failed: Option<DataError>,
    /// Tells the reads of this slot apart. It runs on over the slot's uses.
    serial: u32,
}

/// Where a transfer's RDMA Read stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Read {
    #[default]
    None,
    /// It waits for a place in the queue pair.
    Queued,
    /// So many bytes are being read; the queue pair has the sink.
    Posted(u32),
}

#[derive(Debug, Default)]
pub(super) struct Transfers(Vec<Transfer>);

impl Transfers {
    /// Bytes of a transfer under way that are in place.
    pub(super) fn fetched(&self, task: TaskHandle) -> u32 {
        let transfer = self.0.get(usize::from(task.slot));
        transfer
            .filter(|transfer| transfer.active && transfer.generation == task.generation)
            .map_or(0, |it| it.received)
    }

    fn get(&mut self, slot: u16) -> Option<&mut Transfer> {
        self.0.get_mut(usize::from(slot))
    }
}

impl Transfer {
    /// Takes data that came in a message. Gives how many of them have a place.
    fn place(&mut self, at: u32, data: &[u8]) -> usize {
        let at = at as usize;
        let Some(sink) = &mut self.sink else { return 0 };
        let data = data.get(..sink.len().saturating_sub(at)).unwrap_or(data);
        match sink {
            Payload::Buf(buf) => {
                if let Some(to) = buf.get_mut(at..at + data.len()) {
                    to.copy_from_slice(data);
                }
            }
            Payload::Region(slice) if !data.is_empty() => slice.write(at, data),
            Payload::Region(_) => {}
        }
        data.len()
    }
}

impl<Q: QueuePair> IserMover<Q> {
    pub(super) fn get(&mut self, get: GetData) {
        let GetData { task, lun: _, itt, sink } = get;
        let slot = task.slot;
        let transfers = &mut self.target.transfers.0;
        if transfers.len() <= usize::from(slot) {
            transfers.resize_with(usize::from(slot) + 1, Transfer::default);
        }
        if self.target.transfers.get(slot).is_some_and(|transfer| transfer.active) {
            self.end_failed(slot, DataError::IncorrectAmountOfData);
        }
        let current = self.target.current.take_if(|current| current.names(itt));
        let tag = current.map(|current| current.tag).or_else(|| self.target.tags.get(itt).copied()).unwrap_or_default();
        // RFC 7145 6.9: the base offset is that of all the data where the initiator declared so. Those that declare
        // nothing advertise what is left behind the unsolicited data.
        let base_of_all = self.parameters.tagged_buffer_for_solicited_data_only == Some(false);
        let rules = UnsolicitedRules::of(&self.parameters);
        let unsolicited = rules.burst(tag.write_len, tag.immediate);
        let Some(transfer) = self.target.transfers.get(slot) else { return };
        *transfer = Transfer {
            active: true,
            generation: task.generation,
            itt,
            wanted: u32::try_from(sink.len()).unwrap_or(u32::MAX),
            unsolicited,
            write: tag.write,
            sink: Some(sink),
            serial: transfer.serial,
            ..Transfer::default()
        };
        let Some(current) = current else {
            // Its unsolicited data are gone: all of it is fetched, if all of it can be reached.
            if tag.lost && !base_of_all {
                self.fail_transfer(slot, DataError::IncorrectAmountOfData);
            } else {
                self.advance_transfer(slot);
            }
            return;
        };
        let mut tag = current.tag;
        if !current.is_final {
            tag.unsolicited = Unsolicited::Transfer(slot);
        }
        self.keep(tag);
        if let Err(error) = rules.check_command(&unsolicited, current.is_final) {
            return self.fail_transfer(slot, error);
        }
        self.take_in(slot, 0, current.data);
        if current.is_final {
            self.end_unsolicited(slot);
        }
    }

    /// Unsolicited data go to their place.
    fn take_in(&mut self, slot: u16, at: u32, data: Span) {
        let Some(transfer) = self.target.transfers.get(slot) else { return };
        transfer.received += data.len as u32;
        self.counters.copied += transfer.place(at, self.receive.span(data)) as u64;
    }

    /// The unsolicited data are all there: what is left is fetched.
    fn end_unsolicited(&mut self, slot: u16) {
        if let Some(transfer) = self.target.transfers.get(slot)
            && self.parameters.tagged_buffer_for_solicited_data_only != Some(false)
        {
            transfer.write_begins = transfer.received;
        }
        self.advance_transfer(slot);
    }

    /// The transfer is complete, or its next RDMA Read is due.
    fn advance_transfer(&mut self, slot: u16) {
        let Some(transfer) = self.target.transfers.get(slot) else { return };
        if transfer.received >= transfer.wanted {
            transfer.active = false;
            let task = TaskHandle { slot, generation: transfer.generation };
            if let Some(sink) = transfer.sink.take() {
                self.events.push_back(Notification::GetDataComplete { task, sink });
            }
            return;
        }
        if transfer.write.is_none() {
            return self.fail_transfer(slot, DataError::IncorrectAmountOfData);
        }
        if !matches!(self.state, State::Open) {
            return;
        }
        if self.send.established && self.send.read_depth == 0 {
            // RFC 7145 7.3.6.
            return self.fail(MoverError::Rdma("the initiator serves no RDMA Read, and a write needs one"));
        }
        transfer.serial = transfer.serial.wrapping_add(1);
        transfer.read = Read::Queued;
        let serial = transfer.serial;
        self.send.queue_read(slot, serial);
        self.pump();
    }

    /// The next RDMA Read of a transfer, of at most `most` bytes.
    pub(super) fn take_read(&mut self, slot: u16, serial: u32, most: usize) -> Option<(Lease, RemoteBuffer)> {
        let transfer = self.target.transfers.get(slot)?;
        if transfer.serial != serial || transfer.read != Read::Queued {
            return None;
        }
        let write = transfer.write?;
        let sink = transfer.sink.take()?;
        let len = (transfer.wanted - transfer.received).min(u32::try_from(most.max(1)).unwrap_or(u32::MAX));
        transfer.read = Read::Posted(len);
        let behind = transfer.received - transfer.write_begins.min(transfer.received);
        let from = RemoteBuffer { offset: write.offset.wrapping_add(u64::from(behind)), ..write };
        Some((Lease::part(sink, transfer.received as usize, len as usize), from))
    }

    /// An RDMA Read is done, or was flushed.
    pub(super) fn read_done(&mut self, slot: u16, serial: u32, memory: Payload, done: bool) {
        match self.target.transfers.get(slot) {
            Some(transfer) if transfer.serial == serial && matches!(transfer.read, Read::Posted(_)) => {
                if let Read::Posted(len) = transfer.read
                    && done
                {
                    transfer.received += len;
                }
                transfer.read = Read::None;
                transfer.sink = Some(memory);
                if done {
                    self.advance_transfer(slot);
                }
            }
            _ => {
                self.send.orphans = self.send.orphans.saturating_sub(1);
                if let Payload::Region(slice) = &memory {
                    // What has landed is there, also where the store gave the pages up meanwhile: they count again, as
                    // far as there is room.
                    let _ = slice.reserve_for_write();
                }
                self.release(memory);
            }
        }
    }

    /// Ends a transfer. Gives its sink, unless the queue pair works with it.
    fn end_transfer(&mut self, slot: u16) -> Option<Payload> {
        let transfer = self.target.transfers.get(slot)?;
        transfer.active = false;
        let (itt, serial, read) = (transfer.itt, transfer.serial, transfer.read);
        transfer.read = Read::None;
        let sink = transfer.sink.take();
        match read {
            Read::None => {}
            Read::Queued => self.send.forget_read(slot, serial),
            Read::Posted(_) => self.send.orphans += 1,
        }
        if let Some(tag) = self.target.tags.get_mut(itt)
            && tag.unsolicited == Unsolicited::Transfer(slot)
        {
            tag.unsolicited = Unsolicited::Dropped;
        }
        sink
    }

    /// The initiator broke a rule of this one transfer. That is told when the last of its unsolicited data has come
    /// (RFC 7143 11.4.2, 11.17.1).
    #[cold]
    fn fail_transfer(&mut self, slot: u16, error: DataError) {
        let Some(transfer) = self.target.transfers.get(slot) else { return };
        let error = *transfer.failed.get_or_insert(error);
        let itt = transfer.itt;
        let owed = self.target.tags.get(itt).is_some_and(|tag| tag.unsolicited == Unsolicited::Transfer(slot));
        if !owed {
            self.end_failed(slot, error);
        }
    }

    fn end_failed(&mut self, slot: u16, error: DataError) {
        let Some(transfer) = self.target.transfers.get(slot) else { return };
        let task = TaskHandle { slot, generation: transfer.generation };
        if let Some(sink) = self.end_transfer(slot) {
            self.events.push_back(Notification::GetDataFailed { task, sink, error });
        }
    }

    pub(super) fn deallocate_transfer(&mut self, task: TaskHandle) -> TaskBuffers {
        let Some(transfer) = self.target.transfers.get(task.slot) else { return TaskBuffers::default() };
        if !transfer.active || transfer.generation != task.generation {
            return TaskBuffers::default();
        }
        let itt = transfer.itt;
        let data_in = self.end_transfer(task.slot);
        // RFC 7145 3.1.9.
        self.forget_tag(itt);
        TaskBuffers { data_in, ..TaskBuffers::default() }
    }

    /// An unsolicited Data-Out came.
    pub(super) fn data_out(&mut self, pdu: &DataOut, data: Span) -> Result<(), MalformedPdu> {
        let mut tag = *self.target.tags.get(pdu.itt).ok_or(MalformedPdu::UnknownTask)?;
        let slot = match tag.unsolicited {
            Unsolicited::None => return Err(MalformedPdu::UnknownTask),
            Unsolicited::Dropped => None,
            Unsolicited::Transfer(slot) => Some(slot),
        };
        if pdu.is_final {
            tag.unsolicited = Unsolicited::None;
            self.keep(tag);
        }
        let in_order = self.parameters.data_pdu_in_order;
        let Some(slot) = slot else { return Ok(()) };
        let Some(transfer) = self.target.transfers.get(slot) else { return Ok(()) };
        let checked = match transfer.failed {
            Some(error) => Err(error),
            None => transfer.unsolicited.check(pdu, data.len as u32, transfer.received, transfer.data_sn, in_order),
        };
        if let Err(error) = checked {
            // What is dropped is progress all the same.
            transfer.received = transfer.received.saturating_add(data.len as u32);
            self.fail_transfer(slot, error);
            return Ok(());
        }
        transfer.data_sn = transfer.data_sn.wrapping_add(1);
        self.counters.immediate += data.len as u64;
        self.take_in(slot, pdu.buffer_offset, data);
        if pdu.is_final {
            self.end_unsolicited(slot);
        }
        Ok(())
    }
}
