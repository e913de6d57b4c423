//! Vital product data pages (SPC-5 7.7, SBC-4 6.6).

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::DataError;
use super::field::{be16, u8_at};
use super::inquiry::Peripheral;

mod block;
mod designation;
mod extended;

pub use block::{BlockCharacteristics, BlockLimits, BlockProvisioning};
pub use designation::{
    Association, CodeSet, Designator, DesignatorId, LOCAL_COMPANY_ID, PROTOCOL_ISCSI, naa_6, naa_6_from_seed,
};
pub use extended::ExtendedInquiry;

/// Supported VPD pages.
pub const SUPPORTED_PAGES: u8 = 0x00;
/// Unit serial number.
pub const UNIT_SERIAL_NUMBER: u8 = 0x80;
/// Device identification.
pub const DEVICE_IDENTIFICATION: u8 = 0x83;
/// Extended INQUIRY data.
pub const EXTENDED_INQUIRY: u8 = 0x86;
/// Block limits.
pub const BLOCK_LIMITS: u8 = 0xb0;
/// Block device characteristics.
pub const BLOCK_CHARACTERISTICS: u8 = 0xb1;
/// Logical block provisioning.
pub const BLOCK_PROVISIONING: u8 = 0xb2;

/// One page.
///
/// ```
/// use scsi_proto::inquiry::Peripheral;
/// use scsi_proto::vpd::{self, VpdPage};
/// let page = VpdPage::SupportedPages(vec![0x00, 0x80, 0x83]);
/// let bytes = page.to_bytes(Peripheral::DISK);
/// assert_eq!(bytes, [0x00, 0x00, 0, 3, 0x00, 0x80, 0x83]);
/// assert_eq!(VpdPage::parse(&bytes), Ok(page));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VpdPage {
    /// 00h: the pages there are, in ascending order.
    SupportedPages(Vec<u8>),
    /// 80h: the serial number.
    UnitSerialNumber(String),
    /// 83h: what the logical unit, its ports and its device are called.
    DeviceIdentification(Vec<Designator>),
    /// 86h: which abilities of SPC there are.
    ExtendedInquiry(ExtendedInquiry),
    /// B0h: how much one command may ask for.
    BlockLimits(BlockLimits),
    /// B1h: what the medium is.
    BlockCharacteristics(BlockCharacteristics),
    /// B2h: how blocks are provisioned.
    BlockProvisioning(BlockProvisioning),
    /// Any other page, as it came.
    Other {
        /// PAGE CODE.
        code: u8,
        /// What follows the four bytes of the header.
        body: Vec<u8>,
    },
}

impl VpdPage {
    /// PAGE CODE.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::SupportedPages(_) => SUPPORTED_PAGES,
            Self::UnitSerialNumber(_) => UNIT_SERIAL_NUMBER,
            Self::DeviceIdentification(_) => DEVICE_IDENTIFICATION,
            Self::ExtendedInquiry(_) => EXTENDED_INQUIRY,
            Self::BlockLimits(_) => BLOCK_LIMITS,
            Self::BlockCharacteristics(_) => BLOCK_CHARACTERISTICS,
            Self::BlockProvisioning(_) => BLOCK_PROVISIONING,
            Self::Other { code, .. } => *code,
        }
    }

    /// The whole page for the wire; the caller cuts it to the allocation length. A body beyond 65535 bytes is cut.
    #[must_use]
    pub fn to_bytes(&self, peripheral: Peripheral) -> Vec<u8> {
        let mut body = match self {
            Self::SupportedPages(pages) => pages.clone(),
            Self::UnitSerialNumber(serial) => serial.as_bytes().to_vec(),
            Self::DeviceIdentification(designators) => {
                let mut body = Vec::new();
                for designator in designators {
                    designator.emit(&mut body);
                }
                body
            }
            Self::ExtendedInquiry(page) => page.to_body().to_vec(),
            Self::BlockLimits(page) => page.to_body().to_vec(),
            Self::BlockCharacteristics(page) => page.to_body().to_vec(),
            Self::BlockProvisioning(page) => page.to_body(),
            Self::Other { body, .. } => body.clone(),
        };
        body.truncate(u16::MAX.into());
        let [high, low] = (body.len() as u16).to_be_bytes();
        let mut page = Vec::with_capacity(4 + body.len());
        page.extend_from_slice(&[peripheral.0, self.code(), high, low]);
        page.append(&mut body);
        page
    }

    /// Reads a page, as far as it came.
    ///
    /// # Errors
    /// [`DataError::TooShort`] below the four bytes of the header.
    pub fn parse(bytes: &[u8]) -> Result<Self, DataError> {
        let Some(rest) = bytes.get(4..) else {
            return Err(DataError::TooShort { what: "a VPD page", need: 4, got: bytes.len() });
        };
        let length = usize::from(be16(bytes, 2)).min(rest.len());
        let body = rest.get(..length).unwrap_or_default();
        Ok(match u8_at(bytes, 1) {
            SUPPORTED_PAGES => Self::SupportedPages(body.to_vec()),
            UNIT_SERIAL_NUMBER => Self::UnitSerialNumber(String::from_utf8_lossy(body).to_string()),
            DEVICE_IDENTIFICATION => Self::DeviceIdentification(designation::parse_all(body)),
            EXTENDED_INQUIRY => Self::ExtendedInquiry(ExtendedInquiry::from_body(body)),
            BLOCK_LIMITS => Self::BlockLimits(BlockLimits::from_body(body)),
            BLOCK_CHARACTERISTICS => Self::BlockCharacteristics(BlockCharacteristics::from_body(body)),
            BLOCK_PROVISIONING => Self::BlockProvisioning(BlockProvisioning::from_body(body)),
            code => Self::Other { code, body: body.to_vec() },
        })
    }

    /// Reads a page that was asked for by its code.
    ///
    /// # Errors
    /// As [`VpdPage::parse`], and [`DataError::Unexpected`] when the device returned another page.
    pub fn parse_expected(bytes: &[u8], code: u8) -> Result<Self, DataError> {
        let page = Self::parse(bytes)?;
        if page.code() != code {
            return Err(DataError::Unexpected {
                what: "a VPD page",
                field: "PAGE CODE",
                expected: code,
                found: page.code(),
            });
        }
        Ok(page)
    }
}

#[cfg(test)]
#[path = "vpd_tests.rs"]
mod tests;
