//! What a disk tells about itself.

use std::sync::Arc;

use scsi_proto::capacity::{ReadCapacity10, ReadCapacity16};
use scsi_proto::command::{Inquiry, ModeSense, PageControl, ReadCapacity16 as AskCapacity16, read_capacity_10};
use scsi_proto::inquiry::StandardInquiry;
use scsi_proto::mode::{ModeData, ModePage, page_code};
use scsi_proto::vpd::{self, DesignatorId, VpdPage};
use scsi_proto::{AdditionalSense, CdbBuf, DataError, Lun, SenseKey};

use super::super::{DiskInfo, Session};
use crate::command::Failure;
use crate::error::{Error, words};
use crate::identity::Identity;

fn bad(command: &'static str) -> impl Fn(DataError) -> Error {
    move |error| Error::BadAnswer { command, source: Arc::new(error) }
}

/// Whether the device server says that it does not know the command or the page.
fn is_refused(error: &Error) -> bool {
    error.sense().is_some_and(|sense| sense.key == SenseKey::IllegalRequest)
}

/// The answer to a question that a device may refuse, or answer badly: that costs what it would have told, and no more.
enum Told<T> {
    This(T),
    /// The device does not know the question.
    Refused,
    /// The answer makes no sense, or there is none; listeners have been told.
    Odd,
}

impl<T> Told<T> {
    fn into_option(self) -> Option<T> {
        match self {
            Self::This(told) => Some(told),
            Self::Refused | Self::Odd => None,
        }
    }
}

/// Asks what a disk can do without. Only the session's end is an error.
async fn ask<T>(
    session: &Session,
    lun: Lun,
    (what, cdb, room): (&str, CdbBuf, usize),
    parse: impl FnOnce(&[u8]) -> Result<T, DataError>,
) -> Result<Told<T>, Error> {
    let reason = match session.query(lun, cdb, room).await {
        Ok(answer) => match parse(&answer) {
            Ok(told) => return Ok(Told::This(told)),
            Err(error) => error.to_string(),
        },
        Err(error) if is_refused(&error) => return Ok(Told::Refused),
        Err(
            error @ (Error::Scsi { .. }
            | Error::Short { .. }
            | Error::Command {
                failure: Failure::TimedOut | Failure::Rejected(_) | Failure::TargetFailure(_),
                ..
            }),
        ) => error.to_string(),
        Err(error) => return Err(error),
    };
    session.shared().odd(what, format!("{reason}; what it would have told of LUN {} is not known", number(lun)));
    Ok(Told::Odd)
}

fn number(lun: Lun) -> u16 {
    lun.number().unwrap_or_default()
}

pub(super) async fn identify(session: &Session, lun: Lun) -> Result<(DiskInfo, Identity), Error> {
    let mut info = DiskInfo { lun: lun.number().unwrap_or_default(), ..DiskInfo::default() };
    inquire(session, lun, &mut info).await?;
    let mut identity = Identity::default();
    read_vpd(session, lun, &mut info, &mut identity).await?;
    read_capacity(session, lun, &mut info).await?;
    read_modes(session, lun, &mut info).await?;
    (identity.blocks, identity.block_size) = (info.blocks, info.block_size);
    Ok((info, identity))
}

async fn inquire(session: &Session, lun: Lun, info: &mut DiskInfo) -> Result<(), Error> {
    let absent = || Error::NoSuchLun { target: session.target_name().to_owned(), lun: info.lun };
    let cdb = Inquiry { page: None, allocation_length: 96 }.to_cdb();
    let answer = session.query(lun, cdb, 96).await.map_err(|error| match &error {
        Error::Scsi { outcome, .. }
            if outcome.sense.is_some_and(|sense| sense.code == AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED) =>
        {
            absent()
        }
        _ => error,
    })?;
    let inquiry = StandardInquiry::parse(&answer).map_err(bad("INQUIRY"))?;
    // SPC-5 6.6.2: a PERIPHERAL QUALIFIER other than 0 means that no device is there.
    if inquiry.peripheral.qualifier() != 0 {
        return Err(absent());
    }
    info.device_type = inquiry.peripheral.device_type();
    info.vendor = inquiry.vendor.to_string();
    info.product = inquiry.product.to_string();
    info.revision = inquiry.revision.to_string();
    info.version = inquiry.version;
    if info.device_type != 0 {
        return Err(Error::NotADisk { lun: info.lun, device_type: info.device_type });
    }
    Ok(())
}

async fn page(session: &Session, lun: Lun, code: u8) -> Result<Told<VpdPage>, Error> {
    let cdb = Inquiry { page: Some(code), allocation_length: 1024 }.to_cdb();
    let what = format!("INQUIRY, VPD page {code:02x}h");
    ask(session, lun, (&what, cdb, 1024), |answer| VpdPage::parse_expected(answer, code)).await
}

/// The pages that are of use here.
const WANTED: [u8; 5] = [
    vpd::UNIT_SERIAL_NUMBER,
    vpd::DEVICE_IDENTIFICATION,
    vpd::BLOCK_LIMITS,
    vpd::BLOCK_CHARACTERISTICS,
    vpd::BLOCK_PROVISIONING,
];

async fn read_vpd(session: &Session, lun: Lun, info: &mut DiskInfo, identity: &mut Identity) -> Result<(), Error> {
    let pages = match page(session, lun, vpd::SUPPORTED_PAGES).await? {
        Told::This(VpdPage::SupportedPages(pages)) => pages,
        Told::Refused => return Ok(()),
        // Who cannot list its pages may have them.
        Told::This(_) | Told::Odd => WANTED.to_vec(),
    };
    for code in &pages {
        if !WANTED.contains(code) {
            continue;
        }
        let page = page(session, lun, *code).await?.into_option();
        page.iter().for_each(|page| {
            identity.set_names(page);
            identity.set_serial(page);
        });
        match page {
            Some(VpdPage::UnitSerialNumber(serial)) => info.serial = Some(serial.trim().to_owned()),
            Some(VpdPage::DeviceIdentification(designators)) => {
                info.designators = designators.iter().filter_map(|designator| designation(&designator.id)).collect();
            }
            Some(VpdPage::BlockLimits(limits)) => {
                info.max_transfer_blocks = limits.max_transfer;
                info.optimal_transfer_blocks = limits.optimal_transfer;
                info.max_unmap_blocks = limits.max_unmap_blocks;
                info.max_unmap_descriptors = limits.max_unmap_descriptors;
                info.unmap_granularity = limits.unmap_granularity;
                info.max_write_same_blocks = limits.max_write_same;
                info.max_compare_and_write_blocks = limits.max_compare_and_write;
            }
            Some(VpdPage::BlockCharacteristics(characteristics)) => {
                info.rotation = Some(characteristics.rotation_rate).filter(|rate| *rate != 0);
            }
            Some(VpdPage::BlockProvisioning(provisioning)) => {
                info.unmap = provisioning.unmap;
                info.write_same_unmap = provisioning.write_same_16;
                info.unmapped_reads_zero = provisioning.reads_zero & 1 != 0;
            }
            _ => {}
        }
    }
    info.vpd_pages = pages;
    Ok(())
}

/// A designator as text, if it names something that a person looks for.
fn designation(id: &DesignatorId) -> Option<String> {
    match id {
        DesignatorId::RelativeTargetPort(_) | DesignatorId::TargetPortGroup(_) => None,
        DesignatorId::Other { kind, .. } if *kind != 2 => None,
        id => Some(id.to_string()),
    }
}

async fn read_capacity(session: &Session, lun: Lun, info: &mut DiskInfo) -> Result<(), Error> {
    let cdb = AskCapacity16 { allocation_length: 32 }.to_cdb();
    let told = match session.query(lun, cdb, 32).await {
        Ok(answer) => match ReadCapacity16::parse(&answer) {
            Ok(capacity) => Some(capacity),
            Err(error) => {
                session.shared().odd("READ CAPACITY(16)", format!("{error}; READ CAPACITY(10) is asked instead"));
                None
            }
        },
        Err(error) if is_refused(&error) => None,
        Err(error) => return Err(error),
    };
    if let Some(capacity) = told {
        info.blocks = capacity.blocks().ok_or_else(|| Error::BadAnswer {
            command: "READ CAPACITY(16)",
            source: words("the disk has more than 2^64 - 1 blocks"),
        })?;
        info.block_size = capacity.block_length;
        info.physical_block_size =
            capacity.block_length.checked_shl(capacity.physical_block_exponent.into()).unwrap_or(0);
        info.thin = capacity.thin;
        info.unmapped_reads_zero |= capacity.unmapped_reads_zero;
    } else {
        let answer = session.query(lun, read_capacity_10(), 8).await?;
        let capacity = ReadCapacity10::parse(&answer).map_err(bad("READ CAPACITY(10)"))?;
        // SBC-4 5.20.2: READ CAPACITY(16) would tell.
        if capacity.last_lba == u32::MAX {
            let source = words("the disk has more blocks than it can tell");
            return Err(Error::BadAnswer { command: "READ CAPACITY(10)", source });
        }
        info.blocks = u64::from(capacity.last_lba) + 1;
        info.block_size = capacity.block_length;
        info.physical_block_size = capacity.block_length;
    }
    if !info.block_size.is_power_of_two() || !(256..=1 << 16).contains(&info.block_size) {
        let source = words(format!("a logical block length of {} bytes", info.block_size));
        return Err(Error::BadAnswer { command: "READ CAPACITY", source });
    }
    Ok(())
}

async fn read_modes(session: &Session, lun: Lun, info: &mut DiskInfo) -> Result<(), Error> {
    let mode = |ten, page| ModeSense {
        ten,
        disable_block_descriptors: true,
        long_lba_accepted: false,
        control: PageControl::Current,
        page,
        subpage: 0,
        allocation_length: 255,
    };
    // A device without the caching page may still tell of write protection with all its pages, or in the short form
    // only.
    for (ten, page) in [(false, page_code::CACHING), (true, page_code::CACHING), (false, page_code::ALL)] {
        let question = ("MODE SENSE", mode(ten, page).to_cdb(), 255);
        let Told::This(answer) =
            ask(session, lun, question, |answer| ModeData::parse_cut(answer, ten).map(|_| answer.to_vec())).await?
        else {
            continue;
        };
        let Ok(data) = ModeData::parse_cut(&answer, ten) else { continue };
        info.write_protected = data.header.write_protected;
        info.dpo_fua = data.header.dpo_fua;
        if let Some(ModePage::Caching(caching)) = data.page(page_code::CACHING, 0) {
            info.write_cache = Some(caching.write_cache);
            info.read_cache = Some(!caching.read_cache_disabled);
        }
        break;
    }
    Ok(())
}
