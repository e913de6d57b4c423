//! Readiness, sense on request, and the commands that start and stop (SPC-5 6.39, 6.47; SBC-4 5.14, 5.31).

use scsi_proto::command::{RequestSense, StartStopUnit};
use scsi_proto::{AdditionalSense, Sense, SenseFormat, SenseKey};

use super::{Outcome, Plan, Request};
use crate::task::job::Job;

pub(super) fn test_unit_ready(request: &mut Request<'_>) -> Outcome {
    request.unit.refresh_geometry();
    Ok(Plan::Good)
}

/// Returns a pending unit attention and clears it; else says whether the unit is ready (SPC-5 6.39).
pub(super) fn request_sense(request: &mut Request<'_>) -> Outcome {
    let ask = RequestSense::parse(request.cdb);
    let sense = match request.attentions.take(request.unit.attentions()) {
        Some(attention) => Sense::unit_attention(attention.code()),
        None if request.unit.is_stopped() => {
            Sense::new(SenseKey::NotReady, AdditionalSense::NOT_READY_INITIALIZING_COMMAND_REQUIRED)
        }
        None => Sense::NONE,
    };
    let format = if ask.descriptor { SenseFormat::Descriptor } else { SenseFormat::Fixed };
    request.answer(&sense.to_bytes(format), ask.allocation_length.into())
}

pub(super) fn start_stop(request: &mut Request<'_>) -> Outcome {
    let ask = StartStopUnit::parse(request.cdb);
    if ask.power_condition != 0 {
        // There are no power conditions besides active and stopped.
        return Err(Sense::invalid_field_in_cdb(4));
    }
    if ask.load_eject {
        return Err(Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB).at_cdb_bit(4, 1));
    }
    // A nexus that may not write changes nothing that others see.
    if request.unit.attributes().stop_unit && !request.read_only {
        request.unit.set_stopped(!ask.start);
    }
    // SBC-4 5.31: a stop writes the caches first, unless NO_FLUSH.
    if !ask.start && !ask.no_flush && request.unit.abilities().volatile_cache {
        return Ok(Plan::Run(Job::flush()));
    }
    Ok(Plan::Good)
}

/// The medium cannot be removed: to prevent and to allow that changes nothing.
pub(super) fn prevent_allow(request: &mut Request<'_>) -> Outcome {
    match request.cdb.as_bytes().get(4) {
        Some(0 | 1) => Ok(Plan::Good),
        _ => Err(Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB).at_cdb_bit(4, 1)),
    }
}
