//! INQUIRY and the vital product data pages (SPC-5 6.6, 7.7; SBC-4 6.6).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use scsi_proto::Sense;
use scsi_proto::command::Inquiry;
use scsi_proto::inquiry::{Peripheral, StandardInquiry};
use scsi_proto::vpd::{
    self, BlockCharacteristics, BlockLimits, BlockProvisioning, Designator, DesignatorId, ExtendedInquiry, VpdPage,
};

use super::{Outcome, Request};
use crate::lu::LogicalUnit;

/// TPGS: implicit asymmetric access, with all groups in one state.
const TPGS_IMPLICIT: u8 = 1;

pub(super) fn inquiry(request: &mut Request<'_>) -> Outcome {
    let Inquiry { page, allocation_length } = Inquiry::parse(request.cdb);
    if Inquiry::stray_page_code(request.cdb) {
        return Err(Sense::invalid_field_in_cdb(2));
    }
    let data = match page {
        None => standard(request.unit).to_bytes(),
        Some(code) => page_data(request, code).ok_or(Sense::invalid_field_in_cdb(2))?.to_bytes(Peripheral::DISK),
    };
    request.answer(&data, allocation_length.into())
}

fn standard(unit: &LogicalUnit) -> StandardInquiry {
    let identity = unit.identity();
    StandardInquiry {
        target_port_groups: TPGS_IMPLICIT,
        vendor: *identity.vendor(),
        product: *identity.product(),
        revision: *identity.revision(),
        ..StandardInquiry::default()
    }
}

fn page_data(request: &Request<'_>, code: u8) -> Option<VpdPage> {
    let unit = request.unit;
    Some(match code {
        vpd::SUPPORTED_PAGES => VpdPage::SupportedPages(Vec::from([
            vpd::SUPPORTED_PAGES,
            vpd::UNIT_SERIAL_NUMBER,
            vpd::DEVICE_IDENTIFICATION,
            vpd::EXTENDED_INQUIRY,
            vpd::BLOCK_LIMITS,
            vpd::BLOCK_CHARACTERISTICS,
            vpd::BLOCK_PROVISIONING,
        ])),
        vpd::UNIT_SERIAL_NUMBER => VpdPage::UnitSerialNumber(unit.identity().serial().into()),
        vpd::DEVICE_IDENTIFICATION => VpdPage::DeviceIdentification(designators(request)),
        vpd::EXTENDED_INQUIRY => VpdPage::ExtendedInquiry(ExtendedInquiry {
            volatile_cache: unit.abilities().volatile_cache,
            max_sense_length: scsi_proto::SenseBytes::MAX as u8,
            ..ExtendedInquiry::TASK_ATTRIBUTES
        }),
        vpd::BLOCK_LIMITS => VpdPage::BlockLimits(block_limits(unit)),
        vpd::BLOCK_CHARACTERISTICS => VpdPage::BlockCharacteristics(if unit.abilities().solid_state {
            BlockCharacteristics::SOLID_STATE
        } else {
            BlockCharacteristics::default()
        }),
        vpd::BLOCK_PROVISIONING => VpdPage::BlockProvisioning(provisioning(unit)),
        _ => return None,
    })
}

/// The names of the unit, then of the port, then of the device (SPC-5 7.7.6).
fn designators(request: &Request<'_>) -> Vec<Designator> {
    let identity = request.unit.identity();
    let target = &request.nexus.target_name;
    let mut id: String = identity.product().to_string();
    id.push(' ');
    id.push_str(identity.serial());
    // RFC 7143 4.4.1: a target port's name is the target's name with `,t,` and the portal group tag.
    let own = request.nexus.port();
    let port = format!("{target},t,{:#06x}", request.nexus.portal_group_tag);
    Vec::from([
        Designator::of_unit(DesignatorId::Naa16(*identity.naa())),
        Designator::of_unit(DesignatorId::T10Vendor { vendor: *identity.vendor(), id }),
        Designator::of_port(DesignatorId::RelativeTargetPort(own.relative)),
        Designator::of_port(DesignatorId::TargetPortGroup(own.group)),
        Designator::of_port(DesignatorId::ScsiName(port)),
        Designator::of_device(DesignatorId::ScsiName(target.clone())),
    ])
}

fn block_limits(unit: &LogicalUnit) -> BlockLimits {
    let (limits, abilities, shape) = (unit.limits(), unit.abilities(), unit.geometry());
    BlockLimits {
        max_compare_and_write: limits.max_compare_and_write,
        optimal_granularity: 1 << shape.physical_exponent.min(15),
        max_transfer: unit.max_transfer_blocks(),
        optimal_transfer: shape.optimal_transfer,
        max_unmap_blocks: if abilities.unmap { limits.max_unmap_blocks } else { 0 },
        max_unmap_descriptors: if abilities.unmap { limits.max_unmap_descriptors.into() } else { 0 },
        unmap_granularity: unit.unmap_granularity(),
        unmap_alignment: (unit.unmap_granularity() != 0).then_some(0),
        max_write_same: limits.max_write_same.into(),
        ..BlockLimits::default()
    }
}

fn provisioning(unit: &LogicalUnit) -> BlockProvisioning {
    let abilities = unit.abilities();
    BlockProvisioning {
        unmap: abilities.unmap,
        write_same_16: abilities.unmap,
        write_same_10: abilities.unmap,
        reads_zero: u8::from(abilities.unmap && abilities.unmapped_reads_zero),
        provisioning_type: if abilities.unmap { 2 } else { 0 },
        ..BlockProvisioning::default()
    }
}
