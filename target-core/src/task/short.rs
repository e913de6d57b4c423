//! The short ways: plain READ and WRITE of memory that a store lends, the commands that a session has most of.
//!
//! They decide nothing that the [dispatch table](crate::device_server) does not: whatever is not plain (a flag in the
//! CDB, a pending unit attention, an odd length, another task in the way) goes the long way through the table, with the
//! same result. A test compares the two.

use iscsi_memory::Payload;
use iscsi_proto::datamover::{Source, TaskHandle, TaskStatus};
use iscsi_proto::pdu::{Residual, TaskAttribute};
use scsi_proto::{Status, opcode};

use super::NewTask;
use super::executor::TaskExecutor;
use super::slot::{State, Transfer};

/// Blocks of a store's memory.
#[derive(Clone, Copy)]
pub(super) struct Short {
    lun: u16,
    lba: u64,
    blocks: u64,
}

/// Whether the CDB is a plain one of a family that comes in 10 and 16 bytes, and its first block and number of blocks.
#[inline]
fn plain(cdb: &[u8], ten: u8, sixteen: u8) -> Option<(u64, u64)> {
    let cdb: &[u8; 16] = cdb.first_chunk()?;
    // No flags, no group number, no CONTROL.
    match *cdb {
        [code, 0, a, b, c, d, 0, high, low, 0, ..] if code == ten => {
            Some((u32::from_be_bytes([a, b, c, d]).into(), u16::from_be_bytes([high, low]).into()))
        }
        [code, 0, a, b, c, d, e, f, g, h, i, j, k, l, 0, 0] if code == sixteen => {
            Some((u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes([i, j, k, l]).into()))
        }
        _ => None,
    }
}

impl TaskExecutor {
    /// What is common to both ways.
    #[inline]
    fn short(&self, new: &NewTask<'_>, (lba, blocks): (u64, u64)) -> Option<Short> {
        if !self.luns.is_fresh(&self.map) || !matches!(new.attribute, TaskAttribute::Simple | TaskAttribute::Untagged) {
            return None;
        }
        let position = self.luns.find(new.lun)?;
        let lun = self.luns.get(position)?;
        let unit = &lun.unit;
        let len = blocks << unit.block_shift();
        let usual = lun.barriers == 0
            && lun.attentions.is_clear(unit.attentions())
            && !unit.is_stopped()
            && unit.region().is_some()
            && len == u64::from(new.expected_data_transfer_length)
            && blocks != 0
            && len <= u64::from(unit.limits().max_transfer)
            && lba.checked_add(blocks)? <= unit.blocks()
            && self.slots.get(usize::from(new.task.slot))?.is_free();
        usual.then_some(Short { lun: position, lba, blocks })
    }

    /// A read that is answered at once.
    #[inline]
    pub(super) fn short_read(&self, new: &NewTask<'_>) -> Option<Short> {
        if !new.read || new.write {
            return None;
        }
        self.short(new, plain(new.cdb, opcode::READ_10, opcode::READ_16)?)
    }

    /// The data of a short read.
    #[inline]
    pub(super) fn source(&self, short: Short) -> Source<'_> {
        let unit = self.luns.get(short.lun).map(|lun| &lun.unit);
        match unit.and_then(|unit| Some((unit.region()?, unit.block_shift()))) {
            Some((region, shift)) => {
                Source::Region { region, offset: short.lba << shift, len: (short.blocks << shift) as usize }
            }
            None => Source::None,
        }
    }

    /// A write whose data are all there: they go to the store's memory. False if it is to go another way, and nothing
    /// has happened.
    #[inline]
    pub(super) fn write_short(&self, new: &NewTask<'_>, data: &[u8]) -> bool {
        self.try_write_short(new, data).is_some()
    }

    #[inline]
    fn try_write_short(&self, new: &NewTask<'_>, data: &[u8]) -> Option<()> {
        if !new.write || new.read || data.len() as u64 != u64::from(new.expected_data_transfer_length) {
            return None;
        }
        let short = self.short(new, plain(new.cdb, opcode::WRITE_10, opcode::WRITE_16)?)?;
        let lun = self.luns.get(short.lun)?;
        let unit = &lun.unit;
        let region = unit.region()?;
        if lun.read_only || unit.is_write_protected() {
            return None;
        }
        let offset = short.lba << unit.block_shift();
        unit.gate().briefly(short.lba, short.blocks, || region.take_and_write(offset, data))?.ok()
    }

    /// A write whose data land in the store's memory.
    #[inline]
    pub(super) fn short_write(&mut self, new: &NewTask<'_>) -> Option<Payload> {
        if !new.write || new.read || !new.direct_placement || !self.asks_to_land {
            return None;
        }
        let short = self.short(new, plain(new.cdb, opcode::WRITE_10, opcode::WRITE_16)?)?;
        let lun = self.luns.get_mut(short.lun)?;
        let unit = &lun.unit;
        let region = unit.region()?;
        if lun.read_only || unit.is_write_protected() {
            return None;
        }
        let (offset, len) = (short.lba << unit.block_shift(), short.blocks << unit.block_shift());
        region.reserve_for_write(offset, len).ok()?;
        let slot = self.slots.get_mut(usize::from(new.task.slot))?;
        if !unit.gate().is_open(short.lba, short.blocks) {
            return None;
        }
        let slice = lun.land(region.slice(offset, len as usize), &self.bell);
        lun.active += 1;
        self.sequence += 1;
        slot.generation = new.task.generation;
        slot.lun = short.lun;
        slot.attribute = new.attribute;
        slot.transfer = Transfer::of(new);
        slot.state = State::Placing;
        slot.sequence = self.sequence;
        slot.wanted_out = len;
        Some(Payload::Region(slice))
    }

    /// The data of a short write are in place. False if the task is none of these.
    #[inline]
    pub(super) fn short_arrived(&mut self, task: TaskHandle) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(task.slot)) else { return false };
        if slot.generation != task.generation || !matches!(slot.state, State::Placing) {
            return false;
        }
        slot.state = State::Free;
        if let Some(lun) = self.luns.get_mut(slot.lun) {
            lun.active -= 1;
            self.unblock |= lun.waiting != 0;
        }
        true
    }
}

/// All went as the initiator expected.
pub(super) const GOOD: TaskStatus<'static> = TaskStatus {
    status: Status::Good as u8,
    residual: Residual::None,
    bidirectional_read_residual: Residual::None,
    sense: &[],
};
