//! READ CAPACITY (SBC-4 5.20, 5.21).

use scsi_proto::Sense;
use scsi_proto::capacity::{ReadCapacity10, ReadCapacity16};
use scsi_proto::command;

use super::{Outcome, Request};

pub(super) fn read_capacity_10(request: &mut Request<'_>) -> Outcome {
    let cdb = request.cdb.as_bytes();
    // SBC-4 5.20: without PMI, which is obsolete, the LOGICAL BLOCK ADDRESS is zero.
    if cdb.get(2..6).is_some_and(|lba| lba != [0; 4]) && cdb.get(8).is_some_and(|pmi| pmi & 1 == 0) {
        return Err(Sense::invalid_field_in_cdb(2));
    }
    request.unit.refresh_geometry();
    let shape = request.unit.geometry();
    let data = ReadCapacity10::new(shape.blocks - 1, shape.block_size).to_bytes();
    request.answer(&data, u32::MAX)
}

pub(super) fn read_capacity_16(request: &mut Request<'_>) -> Outcome {
    let allocation = command::ReadCapacity16::parse(request.cdb).allocation_length;
    request.unit.refresh_geometry();
    let (shape, abilities) = (request.unit.geometry(), request.unit.abilities());
    let data = ReadCapacity16 {
        last_lba: shape.blocks - 1,
        block_length: shape.block_size,
        protection: None,
        protection_interval_exponent: 0,
        physical_block_exponent: shape.physical_exponent.min(15),
        thin: abilities.unmap,
        unmapped_reads_zero: abilities.unmap && abilities.unmapped_reads_zero,
        lowest_aligned_lba: 0,
    };
    request.answer(&data.to_bytes(), allocation)
}
