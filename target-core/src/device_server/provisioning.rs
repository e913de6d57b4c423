//! UNMAP, WRITE SAME and GET LBA STATUS (SBC-4 5.35, 5.49, 5.9).

use scsi_proto::command::{GetLbaStatus, Unmap};
use scsi_proto::provisioning::UnmapList;
use scsi_proto::{AdditionalSense, Sense, opcode};

use super::medium::{check_range, fields, length_field};
use super::{Outcome, Plan, Request, Then, fault};
use crate::task::job::Job;

pub(super) fn unmap(request: &mut Request<'_>) -> Outcome {
    let ask = Unmap::parse(request.cdb);
    if ask.anchor {
        // ANC_SUP is zero.
        return Err(Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB).at_cdb_bit(1, 0));
    }
    if ask.parameter_list_length == 0 {
        return Ok(Plan::Good);
    }
    Ok(Plan::Receive { len: ask.parameter_list_length.into(), exact: None, then: Then::Parameters(unmap_list) })
}

fn unmap_list(request: &mut Request<'_>, list: &[u8]) -> Outcome {
    let error = Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
    if list.len() < Unmap::parse(request.cdb).parameter_list_length.into() {
        return Err(error);
    }
    let extents = UnmapList::parse(list).map_err(|_| error)?;
    let limits = request.unit.limits();
    // UNMAP BLOCK DESCRIPTOR DATA LENGTH is at byte 2 of the list.
    if extents.len() > limits.max_unmap_descriptors.into() {
        return Err(Sense::invalid_field_in_parameter_list(2));
    }
    let mut total = 0u64;
    for (index, extent) in extents.clone().enumerate() {
        check_range(request.unit, extent.lba, extent.blocks.into())?;
        total += u64::from(extent.blocks);
        if total > limits.max_unmap_blocks.into() {
            let at = UnmapList::HEADER + index * UnmapList::DESCRIPTOR + 8;
            return Err(Sense::invalid_field_in_parameter_list(at as u16));
        }
    }
    if total == 0 {
        return Ok(Plan::Good);
    }
    Ok(Plan::Run(Job::unmap(extents.filter(|extent| extent.blocks != 0).collect())))
}

pub(super) fn write_same(request: &mut Request<'_>) -> Outcome {
    let io = fields(request.cdb)?;
    let unit = request.unit;
    let bit = |bit| Err(Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB).at_cdb_bit(1, bit));
    if io.anchor() {
        return bit(4);
    }
    let can_unmap = unit.abilities().unmap;
    if io.unmap() && !can_unmap {
        return bit(3);
    }
    // A count of zero goes up to the last block; WSNZ is zero (SBC-4 5.49).
    let blocks = if io.blocks == 0 { unit.blocks().saturating_sub(io.lba) } else { io.blocks.into() };
    check_range(unit, io.lba, blocks)?;
    if blocks > unit.limits().max_write_same.into() {
        return Err(Sense::invalid_field_in_cdb(length_field(request.cdb)));
    }
    let sixteen = request.cdb.opcode() == opcode::WRITE_SAME_16;
    let no_data = sixteen && io.ndob();
    // Deallocated blocks must read as the data say: as zeros, if the store promises so; without the promise they are
    // written. A store in memory gives its pages back for zeros that are to be written, too: a write to them later
    // takes new ones, as a write to any block may.
    let deallocate = (io.unmap() || (can_unmap && unit.region().is_some())) && unit.abilities().unmapped_reads_zero;
    let job = Job::write_same(io.lba, blocks, deallocate, 1 << unit.block_shift());
    // Initiators are met that send WRITE SAME(16) with UNMAP and no data instead of setting NDOB; it means zeros as
    // well.
    if no_data || (sixteen && io.unmap() && request.data_out == 0) {
        return Ok(if blocks == 0 { Plan::Good } else { Plan::Run(job) });
    }
    let exact = Some(length_field(request.cdb));
    Ok(Plan::Receive { len: 1 << unit.block_shift(), exact, then: Then::Run(job) })
}

pub(super) fn get_lba_status(request: &mut Request<'_>) -> Outcome {
    let ask = GetLbaStatus::parse(request.cdb);
    if ask.report_type != 0 {
        return Err(Sense::invalid_field_in_cdb(14));
    }
    check_range(request.unit, ask.lba, 1)?;
    // Asked once more: the unit may have shrunk since the check.
    match request.unit.blocks().saturating_sub(ask.lba) {
        0 => Err(fault::out_of_range(ask.lba)),
        left => Ok(Plan::Run(Job::lba_status(ask.lba, left, ask.allocation_length))),
    }
}
