//! Who a logical unit says it is: the names that INQUIRY and its VPD pages carry.

use alloc::string::String;
use core::fmt::Write;

use scsi_proto::Ascii;
use scsi_proto::vpd::naa_6_from_seed;

/// The lasting names of a logical unit. Two logical units that an initiator can see must not share one, nor must one
/// change while in use: multipath software and operating systems know the disk by it.
///
/// ```
/// use target_core::lu::Identity;
/// let identity = Identity::from_seed("iqn.2026-01.org.example:disk,0").with_product("RAM DISK");
/// assert_eq!(identity.serial().len(), 16);
/// assert_eq!(identity.naa()[0] >> 4, 6);
/// assert_eq!(identity, Identity::from_seed("iqn.2026-01.org.example:disk,0").with_product("RAM DISK"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    vendor: Ascii<8>,
    product: Ascii<16>,
    revision: Ascii<4>,
    serial: String,
    naa: [u8; 16],
}

/// Longest unit serial number in bytes.
pub const MAX_SERIAL: usize = 64;

impl Identity {
    /// Serial number and NAA designator made from `seed`, for instance the target's name and the LUN: the same seed
    /// gives the same identity. A disk that forgets its data with each start of the program can have another identity
    /// each time by a seed with a number of that start.
    ///
    /// The designator is of the format IEEE Registered Extended (NAA 6h, SPC-5 7.7.6.6.5). Its company identifier is a
    /// locally administered one, because an embedded stack has none of its own.
    #[must_use]
    pub fn from_seed(seed: &str) -> Self {
        let naa = naa_6_from_seed(seed.as_bytes());
        let mut serial = String::new();
        for byte in naa.iter().skip(8) {
            // Writing to a String cannot fail.
            let _ = write!(serial, "{byte:02x}");
        }
        Self {
            vendor: Ascii::new("ISCSI-RS"),
            product: Ascii::new("VIRTUAL DISK"),
            revision: Ascii::new(concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"))),
            serial,
            naa,
        }
    }

    /// T10 VENDOR IDENTIFICATION: at most 8 printable ASCII characters.
    #[must_use]
    pub fn with_vendor(mut self, vendor: &str) -> Self {
        self.vendor = Ascii::new(vendor);
        self
    }

    /// PRODUCT IDENTIFICATION: at most 16 printable ASCII characters.
    #[must_use]
    pub fn with_product(mut self, product: &str) -> Self {
        self.product = Ascii::new(product);
        self
    }

    /// PRODUCT REVISION LEVEL: at most 4 printable ASCII characters.
    #[must_use]
    pub fn with_revision(mut self, revision: &str) -> Self {
        self.revision = Ascii::new(revision);
        self
    }

    /// PRODUCT SERIAL NUMBER: at most [`MAX_SERIAL`] characters; others than printable ASCII become question marks.
    #[must_use]
    pub fn with_serial(mut self, serial: &str) -> Self {
        self.serial = serial.chars().take(MAX_SERIAL).map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
        self
    }

    /// The 16 bytes of a NAA designator of another's making. A first half-byte other than 6 is set to 6.
    #[must_use]
    pub fn with_naa(mut self, naa: [u8; 16]) -> Self {
        self.naa = naa;
        self.naa[0] = 0x60 | naa[0] & 0x0f;
        self
    }

    /// T10 VENDOR IDENTIFICATION.
    #[must_use]
    pub fn vendor(&self) -> &Ascii<8> {
        &self.vendor
    }

    /// PRODUCT IDENTIFICATION.
    #[must_use]
    pub fn product(&self) -> &Ascii<16> {
        &self.product
    }

    /// PRODUCT REVISION LEVEL.
    #[must_use]
    pub fn revision(&self) -> &Ascii<4> {
        &self.revision
    }

    /// PRODUCT SERIAL NUMBER.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The NAA designator of the logical unit.
    #[must_use]
    pub fn naa(&self) -> &[u8; 16] {
        &self.naa
    }
}
