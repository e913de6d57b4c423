//! The commands that read, write and compare blocks (SBC-4 5).

use scsi_proto::{AdditionalSense, BlockIo, Cdb, Sense};

use super::{Outcome, Plan, Request, Then, fault};
use crate::lu::LogicalUnit;
use crate::task::job::Job;

/// The fields of a command of the family. The table sends no other here.
#[inline]
pub(super) fn fields(cdb: Cdb<'_>) -> Result<BlockIo, Sense> {
    BlockIo::parse(cdb).ok_or(Sense::illegal_request(AdditionalSense::INVALID_COMMAND_OPERATION_CODE))
}

/// First byte of the TRANSFER LENGTH.
pub(super) fn length_field(cdb: Cdb<'_>) -> u16 {
    match cdb.as_bytes().len() {
        6 => 4,
        10 => 7,
        12 => 6,
        _ => 10,
    }
}

/// Whether the blocks exist (SBC-4 4.5).
#[inline]
pub(super) fn check_range(unit: &LogicalUnit, lba: u64, blocks: u64) -> Result<(), Sense> {
    match lba.checked_add(blocks) {
        Some(end) if end <= unit.blocks() => Ok(()),
        end => check_grown(unit, lba, end),
    }
}

/// A store may have grown since it was last asked.
#[cold]
fn check_grown(unit: &LogicalUnit, lba: u64, end: Option<u64>) -> Result<(), Sense> {
    unit.refresh_geometry();
    let blocks = unit.blocks();
    match end {
        Some(end) if end <= blocks => Ok(()),
        _ => Err(fault::out_of_range(lba.max(blocks))),
    }
}

/// Whether the transfer is not longer than MAXIMUM TRANSFER LENGTH of the Block Limits page, and inside the medium.
#[inline]
fn check_transfer(request: &Request<'_>, io: BlockIo) -> Result<(), Sense> {
    if io.blocks > request.unit.max_transfer_blocks() {
        return Err(Sense::invalid_field_in_cdb(length_field(request.cdb)));
    }
    check_range(request.unit, io.lba, io.blocks.into())
}

#[inline]
pub(super) fn read(request: &mut Request<'_>) -> Outcome {
    let io = fields(request.cdb)?;
    check_transfer(request, io)?;
    Ok(Plan::Read { lba: io.lba, blocks: io.blocks })
}

/// Whether FUA asks for a flush: it passed the table, so there is a volatile cache.
fn wants_flush(io: BlockIo) -> bool {
    io.fua()
}

#[inline]
pub(super) fn write(request: &mut Request<'_>) -> Outcome {
    let io = fields(request.cdb)?;
    check_transfer(request, io)?;
    Ok(Plan::Receive {
        len: u64::from(io.blocks) << request.unit.block_shift(),
        exact: None,
        then: Then::Write { lba: io.lba, flush: wants_flush(io) },
    })
}

pub(super) fn write_and_verify(request: &mut Request<'_>) -> Outcome {
    let io = fields(request.cdb)?;
    check_transfer(request, io)?;
    if io.bytchk() > 1 {
        return Err(bad_bytchk());
    }
    Ok(Plan::Receive {
        len: u64::from(io.blocks) << request.unit.block_shift(),
        exact: None,
        then: Then::Run(Job::write_and_verify(io.lba, io.bytchk() == 1)),
    })
}

fn bad_bytchk() -> Sense {
    Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB).at_cdb_bit(1, 2)
}

pub(super) fn verify(request: &mut Request<'_>) -> Outcome {
    let io = fields(request.cdb)?;
    let shift = request.unit.block_shift();
    match io.bytchk() {
        // The medium only: nothing is transferred, so MAXIMUM TRANSFER LENGTH does not matter.
        0 => {
            check_range(request.unit, io.lba, io.blocks.into())?;
            Ok(if io.blocks == 0 { Plan::Good } else { Plan::Run(Job::verify(io.lba, io.blocks.into())) })
        }
        1 => {
            check_transfer(request, io)?;
            let len = u64::from(io.blocks) << shift;
            Ok(Plan::Receive { len, exact: None, then: Then::Run(Job::compare(io.lba)) })
        }
        // One block, compared with each block of the range (SBC-4 5.36).
        3 => {
            check_range(request.unit, io.lba, io.blocks.into())?;
            let len = if io.blocks == 0 { 0 } else { 1u64 << shift };
            Ok(Plan::Receive { len, exact: None, then: Then::Run(Job::compare_same(io.lba, io.blocks.into())) })
        }
        _ => Err(bad_bytchk()),
    }
}

pub(super) fn pre_fetch(request: &mut Request<'_>) -> Outcome {
    let io = fields(request.cdb)?;
    let blocks = request.unit.blocks();
    // A count of zero means up to the last block (SBC-4 5.12). Nothing is fetched ahead, so the status is GOOD, not
    // CONDITION MET.
    let count = if io.blocks == 0 { blocks.saturating_sub(io.lba) } else { io.blocks.into() };
    check_range(request.unit, io.lba, count)?;
    Ok(Plan::Good)
}

pub(super) fn synchronize_cache(request: &mut Request<'_>) -> Outcome {
    let io = fields(request.cdb)?;
    check_range(request.unit, io.lba, io.blocks.into())?;
    // A store may have something to do even if it calls its cache non-volatile. IMMED may be taken for zero (SBC-4
    // 5.33).
    Ok(Plan::Run(Job::flush()))
}

pub(super) fn or_write(request: &mut Request<'_>) -> Outcome {
    let io = fields(request.cdb)?;
    check_transfer(request, io)?;
    Ok(Plan::Receive {
        len: u64::from(io.blocks) << request.unit.block_shift(),
        exact: None,
        then: Then::Run(Job::or_write(io.lba, wants_flush(io))),
    })
}

pub(super) fn compare_and_write(request: &mut Request<'_>) -> Outcome {
    let io = fields(request.cdb)?;
    // SBC-4 5.3: NUMBER OF LOGICAL BLOCKS is byte 13.
    const COUNT: u16 = 13;
    if io.blocks > request.unit.limits().max_compare_and_write.into() {
        return Err(Sense::invalid_field_in_cdb(COUNT));
    }
    check_range(request.unit, io.lba, io.blocks.into())?;
    let len = (2 * u64::from(io.blocks)) << request.unit.block_shift();
    let job = Job::compare_and_write(io.lba, io.blocks.into(), wants_flush(io));
    // Half of the data compare, half are written: another amount has no such halves.
    Ok(Plan::Receive { len, exact: Some(COUNT), then: Then::Run(job) })
}
