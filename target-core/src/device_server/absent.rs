//! Commands to a LUN that has no logical unit (SPC-5 4.4, SAM-5 4.7.3).

use alloc::vec::Vec;

use scsi_proto::command::RequestSense;
use scsi_proto::inquiry::{Peripheral, StandardInquiry};
use scsi_proto::{AdditionalSense, Cdb, Sense, SenseFormat, opcode};

use super::report;
use crate::lu::LunMap;

/// Answers the three commands that need no logical unit, and refuses all others.
pub(crate) fn run(cdb: Cdb<'_>, luns: &LunMap, out: &mut Vec<u8>) -> Result<(), Sense> {
    match cdb.opcode() {
        opcode::INQUIRY => {
            // No page exists here, and none can: the peripheral qualifier is 3.
            if cdb.as_bytes().get(1..3) != Some(&[0, 0]) {
                return Err(Sense::invalid_field_in_cdb(1));
            }
            let data = StandardInquiry { peripheral: Peripheral::NONE, ..StandardInquiry::default() };
            out.extend_from_slice(&data.to_bytes());
        }
        opcode::REPORT_LUNS => out.extend_from_slice(&report::luns_data(cdb, luns)?),
        opcode::REQUEST_SENSE => {
            let format = match RequestSense::parse(cdb).descriptor {
                true => SenseFormat::Descriptor,
                false => SenseFormat::Fixed,
            };
            let sense = Sense::illegal_request(AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED);
            out.extend_from_slice(&sense.to_bytes(format));
        }
        _ => return Err(Sense::illegal_request(AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED)),
    }
    out.truncate(cdb.allocation_length().unwrap_or(0) as usize);
    Ok(())
}
