//! Standard INQUIRY data (SPC-5 6.6.2).

use alloc::vec::Vec;

use super::field::{be16, bit, flag, put, u8_at};
use super::{Ascii, DataError};

/// PERIPHERAL QUALIFIER and PERIPHERAL DEVICE TYPE, the first byte of INQUIRY data and of every VPD page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peripheral(pub u8);

impl Peripheral {
    /// A direct access block device that is there.
    pub const DISK: Self = Self(0x00);
    /// No logical unit at this LUN: qualifier 011b, type 1Fh, for an INQUIRY to a LUN that has none (SPC-5 6.6.1).
    pub const NONE: Self = Self(0x7f);
    /// A well-known logical unit.
    pub const WELL_KNOWN: Self = Self(0x1e);

    /// PERIPHERAL QUALIFIER: 0 connected, 1 not connected, 3 no logical unit possible here.
    #[must_use]
    pub const fn qualifier(self) -> u8 {
        self.0 >> 5
    }

    /// PERIPHERAL DEVICE TYPE: 00h a disk, 05h a CD or DVD drive, 0Ch a controller, 1Fh unknown or none.
    #[must_use]
    pub const fn device_type(self) -> u8 {
        self.0 & 0x1f
    }
}

/// Version descriptors (SPC-5 6.6.2, annex C) of the standards that this stack follows.
pub mod version_descriptor {
    /// SAM-5, no version claimed.
    pub const SAM_5: u16 = 0x00a0;
    /// SPC-4, no version claimed.
    pub const SPC_4: u16 = 0x0460;
    /// SBC-3, no version claimed.
    pub const SBC_3: u16 = 0x04c0;
    /// iSCSI, no version claimed.
    pub const ISCSI: u16 = 0x0960;
}

/// What a logical unit is, in 96 bytes.
///
/// ```
/// use scsi_proto::{Ascii, inquiry::StandardInquiry};
/// let data = StandardInquiry {
///     vendor: Ascii::new("EXAMPLE"),
///     product: Ascii::new("RAM disk"),
///     revision: Ascii::new("0.1"),
///     ..StandardInquiry::default()
/// };
/// assert_eq!(StandardInquiry::parse(&data.to_bytes()), Ok(data));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandardInquiry {
    /// Qualifier and device type.
    pub peripheral: Peripheral,
    /// RMB: the medium can be removed.
    pub removable: bool,
    /// VERSION: 06h is SPC-4, 07h is SPC-5.
    pub version: u8,
    /// NORMACA: NACA in a CDB is understood.
    pub normal_aca: bool,
    /// HISUP: LUNs are assigned by the hierarchical model.
    pub hierarchical: bool,
    /// TPGS: 0 no asymmetric access, 1 implicit, 2 explicit, 3 both.
    pub target_port_groups: u8,
    /// 3PC: third-party copy commands are understood.
    pub third_party_copy: bool,
    /// PROTECT: protection information is understood.
    pub protect: bool,
    /// MULTIP: the target has more than one port.
    pub multi_port: bool,
    /// CMDQUE: the task management model of SAM, that is, many commands at once.
    pub command_queuing: bool,
    /// T10 VENDOR IDENTIFICATION.
    pub vendor: Ascii<8>,
    /// PRODUCT IDENTIFICATION.
    pub product: Ascii<16>,
    /// PRODUCT REVISION LEVEL.
    pub revision: Ascii<4>,
    /// Version descriptors; zero for none.
    pub versions: [u16; 8],
}

impl Default for StandardInquiry {
    /// A disk by SPC-4 with many commands at once, without names.
    fn default() -> Self {
        use version_descriptor::{ISCSI, SAM_5, SBC_3, SPC_4};
        Self {
            peripheral: Peripheral::DISK,
            removable: false,
            version: 0x06,
            normal_aca: false,
            hierarchical: true,
            target_port_groups: 0,
            third_party_copy: false,
            protect: false,
            multi_port: false,
            command_queuing: true,
            vendor: Ascii::default(),
            product: Ascii::default(),
            revision: Ascii::default(),
            versions: [SAM_5, ISCSI, SPC_4, SBC_3, 0, 0, 0, 0],
        }
    }
}

impl StandardInquiry {
    /// The fewest bytes that every device returns.
    pub const MIN: usize = 36;
    /// The bytes that [`StandardInquiry::to_bytes`] makes.
    pub const LEN: usize = 96;

    /// Reads the data that a device returned, short or long.
    ///
    /// # Errors
    /// [`DataError::TooShort`] below 36 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, DataError> {
        if bytes.len() < Self::MIN {
            return Err(DataError::TooShort { what: "standard INQUIRY data", need: Self::MIN, got: bytes.len() });
        }
        let mut versions = [0; 8];
        for (index, version) in versions.iter_mut().enumerate() {
            *version = be16(bytes, 58 + 2 * index);
        }
        Ok(Self {
            peripheral: Peripheral(u8_at(bytes, 0)),
            removable: bit(bytes, 1, 7),
            version: u8_at(bytes, 2),
            normal_aca: bit(bytes, 3, 5),
            hierarchical: bit(bytes, 3, 4),
            target_port_groups: (u8_at(bytes, 5) >> 4) & 0x03,
            third_party_copy: bit(bytes, 5, 3),
            protect: bit(bytes, 5, 0),
            multi_port: bit(bytes, 6, 4),
            command_queuing: bit(bytes, 7, 1),
            vendor: Ascii::from_bytes(super::field::array(bytes, 8)),
            product: Ascii::from_bytes(super::field::array(bytes, 16)),
            revision: Ascii::from_bytes(super::field::array(bytes, 32)),
            versions,
        })
    }

    /// The 96 bytes, RESPONSE DATA FORMAT 2.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.peripheral.0;
        bytes[1] = flag(self.removable, 7);
        bytes[2] = self.version;
        bytes[3] = flag(self.normal_aca, 5) | flag(self.hierarchical, 4) | 0x02;
        bytes[4] = (Self::LEN - 5) as u8;
        bytes[5] = (self.target_port_groups & 0x03) << 4 | flag(self.third_party_copy, 3) | flag(self.protect, 0);
        bytes[6] = flag(self.multi_port, 4);
        bytes[7] = flag(self.command_queuing, 1);
        put(&mut bytes, 8, self.vendor.as_bytes());
        put(&mut bytes, 16, self.product.as_bytes());
        put(&mut bytes, 32, self.revision.as_bytes());
        for (index, version) in self.versions.iter().enumerate() {
            put(&mut bytes, 58 + 2 * index, &version.to_be_bytes());
        }
        bytes.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_disk_looks_like_one() {
        let data = StandardInquiry { vendor: Ascii::new("EXAMPLE"), ..StandardInquiry::default() };
        let bytes = data.to_bytes();
        assert_eq!(bytes[..8], [0, 0, 6, 0x12, 91, 0, 0, 2]);
        assert_eq!(&bytes[8..16], b"EXAMPLE ");
        assert!(matches!(StandardInquiry::parse(&bytes[..35]), Err(DataError::TooShort { .. })));
        assert_eq!(StandardInquiry::parse(&bytes[..36]).unwrap().vendor, data.vendor);
        assert_eq!(Peripheral::NONE.qualifier(), 3);
        assert_eq!(Peripheral::NONE.device_type(), 0x1f);
    }

    proptest! {
        #[test]
        fn what_is_parsed_is_emitted_alike(bytes: Vec<u8>, more in proptest::collection::vec(any::<u8>(), 36..120)) {
            let _ = StandardInquiry::parse(&bytes);
            let data = StandardInquiry::parse(&more).unwrap();
            prop_assert_eq!(StandardInquiry::parse(&data.to_bytes()), Ok(data));
        }
    }
}
