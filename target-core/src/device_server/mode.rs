//! MODE SENSE and MODE SELECT (SPC-5 6.12 to 6.15, 7.5; SBC-4 6.5).

use alloc::vec::Vec;

use scsi_proto::command::{ModeSelect, ModeSense, PageControl};
use scsi_proto::mode::{
    BlockDescriptor, Caching, Control, ControlExtension, InformationalExceptions, ModeData, ModeHeader, ModePage,
    ReadWriteErrorRecovery, page_code,
};
use scsi_proto::{AdditionalSense, Sense, SenseBytes};

use super::{Outcome, Plan, Request, Then};
use crate::lu::mode_bits;

/// The pages with the values now or by default, or, for [`PageControl::Changeable`], with ones in what this nexus can
/// change: nothing if it may not write, because others would see it.
fn pages(request: &Request<'_>, control: PageControl) -> [ModePage; 5] {
    let unit = request.unit;
    let mask = control == PageControl::Changeable;
    let bits = match control {
        PageControl::Current => unit.mode(),
        PageControl::Changeable if unit.attributes().mode_select && !request.read_only => u8::MAX,
        PageControl::Changeable => 0,
        PageControl::Default | PageControl::Saved => 0,
    };
    let base = |value: u8| if mask { 0 } else { value };
    [
        ModePage::ReadWriteErrorRecovery(ReadWriteErrorRecovery {
            write_reallocation: !mask,
            read_reallocation: !mask,
            ..ReadWriteErrorRecovery::default()
        }),
        ModePage::Caching(Caching { write_cache: !mask && unit.abilities().volatile_cache, ..Caching::default() }),
        ModePage::Control(Control {
            descriptor_sense: bits & mode_bits::D_SENSE != 0,
            software_write_protect: bits & mode_bits::SWP != 0,
            // Commands may be reordered, as far as task attributes allow (SPC-5 7.5.10); one task set for all I_T
            // nexuses.
            queue_algorithm: base(1),
            task_aborted_status: !mask && unit.attributes().emulate_tas,
            ..Control::default()
        }),
        ModePage::ControlExtension(ControlExtension {
            max_sense_length: base(SenseBytes::MAX as u8),
            ..ControlExtension::default()
        }),
        ModePage::InformationalExceptions(InformationalExceptions {
            flags: base(InformationalExceptions::DISABLED),
            ..InformationalExceptions::default()
        }),
    ]
}

pub(super) fn sense(request: &mut Request<'_>) -> Outcome {
    let ask = ModeSense::parse(request.cdb);
    if ask.control == PageControl::Saved {
        return Err(Sense::illegal_request(AdditionalSense::SAVING_PARAMETERS_NOT_SUPPORTED).at_cdb_bit(2, 7));
    }
    let unit = request.unit;
    let all = ask.page == page_code::ALL;
    if all && !matches!(ask.subpage, 0 | page_code::ALL_SUBPAGES) {
        return Err(Sense::invalid_field_in_cdb(3));
    }
    let wanted: Vec<ModePage> = pages(request, ask.control)
        .into_iter()
        .filter(|page| all || page.code() == ask.page)
        .filter(|page| ask.subpage == page_code::ALL_SUBPAGES || page.subpage() == ask.subpage)
        .collect();
    if wanted.is_empty() {
        let known = pages(request, ask.control).iter().any(|page| page.code() == ask.page);
        return Err(if known {
            Sense::invalid_field_in_cdb(3)
        } else {
            Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB).at_cdb_bit(2, 5)
        });
    }
    let shape = unit.geometry();
    let block = (!ask.disable_block_descriptors).then(|| match u32::try_from(shape.blocks) {
        Err(_) if ask.long_lba_accepted => {
            BlockDescriptor::Long { blocks: shape.blocks, block_length: shape.block_size }
        }
        blocks => BlockDescriptor::Short { blocks: blocks.unwrap_or(u32::MAX), block_length: shape.block_size },
    });
    let header = ModeHeader {
        medium_type: 0,
        write_protected: request.write_protected(),
        dpo_fua: unit.abilities().volatile_cache,
        block,
    };
    let data = ModeData { header, pages: wanted }.to_bytes(ask.ten);
    request.answer(&data, ask.allocation_length.into())
}

pub(super) fn select(request: &mut Request<'_>) -> Outcome {
    let ask = ModeSelect::parse(request.cdb);
    let bit = |bit| Err(Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB).at_cdb_bit(1, bit));
    if ask.save_pages {
        return bit(0);
    }
    if ask.revert_to_defaults {
        return bit(1);
    }
    if ask.parameter_list_length == 0 {
        return Ok(Plan::Good);
    }
    if !ask.page_format {
        return bit(4);
    }
    Ok(Plan::Receive { len: ask.parameter_list_length.into(), exact: None, then: Then::Parameters(select_list) })
}

/// Bytes of a page, for comparison.
fn bytes(page: &ModePage) -> Vec<u8> {
    let mut out = Vec::new();
    page.emit(&mut out);
    if let Some(first) = out.first_mut() {
        *first &= 0x7f;
    }
    out
}

fn select_list(request: &mut Request<'_>, list: &[u8]) -> Outcome {
    let ask = ModeSelect::parse(request.cdb);
    let length_error = Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
    if list.len() < ask.parameter_list_length.into() {
        return Err(length_error);
    }
    let data = ModeData::parse(list, ask.ten).map_err(|_| length_error)?;
    let unit = request.unit;
    let shape = unit.geometry();
    let (head, descriptor) = if ask.ten { (8, 8) } else { (4, 4) };
    // The block descriptor cannot be changed: it says what is, or zeros (SBC-4 6.5.2).
    if let Some(block) = data.header.block {
        let (blocks, length) = match block {
            BlockDescriptor::Short { blocks, block_length } => (u64::from(blocks), block_length),
            BlockDescriptor::Long { blocks, block_length } => (blocks, block_length),
        };
        let same_size =
            blocks == 0 || blocks == shape.blocks || (blocks == u64::from(u32::MAX) && shape.blocks > blocks);
        if !same_size || length != shape.block_size {
            return Err(Sense::invalid_field_in_parameter_list(descriptor));
        }
    }
    let descriptor_length = match data.header.block {
        None => 0,
        Some(BlockDescriptor::Short { .. }) => 8,
        Some(BlockDescriptor::Long { .. }) => 16,
    };
    let mut at = head + descriptor_length;
    let current = pages(request, PageControl::Current);
    let changeable = pages(request, PageControl::Changeable);
    let mut mode = unit.mode();
    for page in &data.pages {
        let sent = bytes(page);
        let known = |other: &&ModePage| (other.code(), other.subpage()) == (page.code(), page.subpage());
        let (Some(now), Some(mask)) = (current.iter().find(known), changeable.iter().find(known)) else {
            return Err(Sense::invalid_field_in_parameter_list(at as u16));
        };
        let (now, mask) = (bytes(now), bytes(mask));
        if sent.len() != now.len() {
            return Err(Sense::invalid_field_in_parameter_list(at as u16 + 1));
        }
        // SPC-5 6.12: a change to what cannot be changed ends the command before anything is changed.
        let header = if sent.first().is_some_and(|first| first & 0x40 != 0) { 4 } else { 2 };
        for (offset, ((sent, now), mask)) in sent.iter().zip(&now).zip(&mask).enumerate().skip(header) {
            if (sent ^ now) & !mask != 0 {
                return Err(Sense::invalid_field_in_parameter_list((at + offset) as u16));
            }
        }
        if let ModePage::Control(control) = page {
            mode = if control.descriptor_sense { mode_bits::D_SENSE } else { 0 }
                | if control.software_write_protect { mode_bits::SWP } else { 0 };
        }
        at += sent.len();
    }
    unit.set_mode(request.nexus.id, mode);
    Ok(Plan::Good)
}
