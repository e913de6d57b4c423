//! Designation descriptors of the device identification page (SPC-5 7.7.6).

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::Ascii;
use crate::field::{array, be16, bit, flag, put, u8_at};

/// PROTOCOL IDENTIFIER of iSCSI (SPC-5 7.6.1).
pub const PROTOCOL_ISCSI: u8 = 0x05;

/// The company identifier of made-up NAA designators: locally administered, so that it belongs to no vendor (the U/L
/// bit is set).
pub const LOCAL_COMPANY_ID: u32 = 0x02_0000;

/// What a designator designates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Association {
    /// The logical unit.
    LogicalUnit = 0,
    /// The target port that the command came by.
    TargetPort = 1,
    /// The SCSI target device.
    TargetDevice = 2,
    /// The reserved value.
    Reserved = 3,
}

/// CODE SET of a designator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeSet {
    /// 1h.
    Binary,
    /// 2h.
    Ascii,
    /// 3h.
    Utf8,
    /// Another value.
    Other(u8),
}

impl CodeSet {
    const fn from_bits(bits: u8) -> Self {
        match bits & 0x0f {
            1 => Self::Binary,
            2 => Self::Ascii,
            3 => Self::Utf8,
            other => Self::Other(other),
        }
    }

    const fn to_bits(self) -> u8 {
        match self {
            Self::Binary => 1,
            Self::Ascii => 2,
            Self::Utf8 => 3,
            Self::Other(other) => other & 0x0f,
        }
    }
}

/// A name for the logical unit, the port or the device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Designator {
    /// What is designated.
    pub association: Association,
    /// The transport protocol that the designator belongs to (PIV), such as [`PROTOCOL_ISCSI`]; only with a port or a
    /// device.
    pub protocol: Option<u8>,
    /// The name itself.
    pub id: DesignatorId,
}

/// A designator by its type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DesignatorId {
    /// 1h: a vendor's name and what the vendor makes unique.
    T10Vendor {
        /// T10 VENDOR IDENTIFICATION.
        vendor: Ascii<8>,
        /// VENDOR SPECIFIC IDENTIFIER.
        id: String,
    },
    /// 3h: a network address authority designator of 8 bytes (NAA 2, 3 or 5).
    Naa8([u8; 8]),
    /// 3h: a network address authority designator of 16 bytes (NAA 6).
    Naa16([u8; 16]),
    /// 4h: RELATIVE TARGET PORT IDENTIFIER, from 1.
    RelativeTargetPort(u16),
    /// 5h: TARGET PORT GROUP.
    TargetPortGroup(u16),
    /// 8h: a SCSI name string, such as `iqn.2026-11.example:disk,t,0x0001` of a target port.
    ScsiName(String),
    /// Any other one, as it came.
    Other {
        /// CODE SET.
        code_set: CodeSet,
        /// DESIGNATOR TYPE, 0 to 15.
        kind: u8,
        /// DESIGNATOR, at most 255 bytes.
        bytes: Vec<u8>,
    },
}

/// The customary text: `naa.6001…`, `eui.…`, `t10.VENDOR id`, or the name itself.
///
/// ```
/// use scsi_proto::vpd::DesignatorId;
/// assert_eq!(DesignatorId::Naa8([0x52, 0, 0, 0, 0, 0, 0, 1]).to_string(), "naa.5200000000000001");
/// ```
impl fmt::Display for DesignatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hex = |prefix, bytes: &[u8]| {
            f.write_str(prefix)?;
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        match self {
            Self::T10Vendor { vendor, id } => write!(f, "t10.{vendor} {}", id.trim_end()),
            Self::Naa8(bytes) => hex("naa.", bytes),
            Self::Naa16(bytes) => hex("naa.", bytes),
            Self::RelativeTargetPort(port) => write!(f, "port {port}"),
            Self::TargetPortGroup(group) => write!(f, "port group {group}"),
            Self::ScsiName(name) => f.write_str(name),
            Self::Other { kind: 2, bytes, .. } => hex("eui.", bytes),
            Self::Other { bytes, .. } => hex("", bytes),
        }
    }
}

impl Designator {
    /// A name of the logical unit.
    #[must_use]
    pub const fn of_unit(id: DesignatorId) -> Self {
        Self { association: Association::LogicalUnit, protocol: None, id }
    }

    /// A name of the target port, in iSCSI.
    #[must_use]
    pub const fn of_port(id: DesignatorId) -> Self {
        Self { association: Association::TargetPort, protocol: Some(PROTOCOL_ISCSI), id }
    }

    /// A name of the target device, in iSCSI.
    #[must_use]
    pub const fn of_device(id: DesignatorId) -> Self {
        Self { association: Association::TargetDevice, protocol: Some(PROTOCOL_ISCSI), id }
    }

    /// Appends the descriptor.
    pub(super) fn emit(&self, out: &mut Vec<u8>) {
        let (code_set, kind, mut bytes) = match &self.id {
            DesignatorId::T10Vendor { vendor, id } => {
                let mut bytes = vendor.as_bytes().to_vec();
                bytes.extend_from_slice(id.as_bytes());
                (CodeSet::Ascii, 1, bytes)
            }
            DesignatorId::Naa8(bytes) => (CodeSet::Binary, 3, bytes.to_vec()),
            DesignatorId::Naa16(bytes) => (CodeSet::Binary, 3, bytes.to_vec()),
            DesignatorId::RelativeTargetPort(port) => (CodeSet::Binary, 4, number(*port)),
            DesignatorId::TargetPortGroup(group) => (CodeSet::Binary, 5, number(*group)),
            DesignatorId::ScsiName(name) => {
                // Null terminated and padded to a multiple of four (SPC-5 7.7.6.11).
                let mut bytes = name.as_bytes().to_vec();
                bytes.truncate(251);
                bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
                (CodeSet::Utf8, 8, bytes)
            }
            DesignatorId::Other { code_set, kind, bytes } => (*code_set, kind & 0x0f, bytes.clone()),
        };
        bytes.truncate(u8::MAX.into());
        out.extend_from_slice(&[
            self.protocol.unwrap_or(0) << 4 | code_set.to_bits(),
            flag(self.protocol.is_some(), 7) | (self.association as u8) << 4 | kind,
            0,
            bytes.len() as u8,
        ]);
        out.append(&mut bytes);
    }

    fn parse(head: &[u8], bytes: &[u8]) -> Self {
        let code_set = CodeSet::from_bits(u8_at(head, 0));
        let kind = u8_at(head, 1) & 0x0f;
        Self {
            association: match (u8_at(head, 1) >> 4) & 0x03 {
                0 => Association::LogicalUnit,
                1 => Association::TargetPort,
                2 => Association::TargetDevice,
                _ => Association::Reserved,
            },
            protocol: bit(head, 1, 7).then(|| u8_at(head, 0) >> 4),
            id: DesignatorId::parse(code_set, kind, bytes),
        }
    }
}

impl DesignatorId {
    /// A designator whose bytes are not what its type says stays [`DesignatorId::Other`].
    fn parse(code_set: CodeSet, kind: u8, bytes: &[u8]) -> Self {
        let text = || core::str::from_utf8(bytes).ok().map(ToString::to_string);
        let known = match (kind, code_set, bytes.len()) {
            (1, CodeSet::Ascii, 8..) => {
                let vendor = Ascii::from_bytes(array(bytes, 0));
                let id = bytes.get(8..).and_then(|id| core::str::from_utf8(id).ok());
                id.map(|id| Self::T10Vendor { vendor, id: id.to_string() })
            }
            (3, CodeSet::Binary, 8) => Some(Self::Naa8(array(bytes, 0))),
            (3, CodeSet::Binary, 16) => Some(Self::Naa16(array(bytes, 0))),
            (4, CodeSet::Binary, 4) => Some(Self::RelativeTargetPort(be16(bytes, 2))),
            (5, CodeSet::Binary, 4) => Some(Self::TargetPortGroup(be16(bytes, 2))),
            (8, CodeSet::Utf8, _) => text().map(|name| Self::ScsiName(name.trim_end_matches('\0').to_string())),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Other { code_set, kind, bytes: bytes.to_vec() })
    }
}

/// A 16-bit number in a designator of four bytes.
fn number(value: u16) -> Vec<u8> {
    let [high, low] = value.to_be_bytes();
    Vec::from([0, 0, high, low])
}

/// Reads all descriptors; one that the data cut off is left out.
pub(super) fn parse_all(mut body: &[u8]) -> Vec<Designator> {
    let mut designators = Vec::new();
    while let Some((head, rest)) = body.split_at_checked(4) {
        let Some((bytes, rest)) = rest.split_at_checked(u8_at(head, 3).into()) else { break };
        designators.push(Designator::parse(head, bytes));
        body = rest;
    }
    designators
}

/// An NAA 6 designator (IEEE registered extended, SPC-5 7.7.6.6.5) of a company identifier of 24 bits, 36 bits of the
/// vendor's and an extension of 64 bits.
#[must_use]
pub fn naa_6(company_id: u32, vendor_id: u64, extension: u64) -> [u8; 16] {
    let high = 0x6 << 60 | u64::from(company_id & 0xff_ffff) << 36 | vendor_id & 0xf_ffff_ffff;
    let mut bytes = [0; 16];
    put(&mut bytes, 0, &high.to_be_bytes());
    put(&mut bytes, 8, &extension.to_be_bytes());
    bytes
}

/// A made-up NAA 6 designator: always the same for the same seed, and for different seeds different for all practical
/// purposes (100 bits of SHA-256).
///
/// The seed should last as long as the logical unit does and be its own, such as its serial number with the target's
/// name.
///
/// ```
/// use scsi_proto::vpd::naa_6_from_seed;
/// let id = naa_6_from_seed(b"iqn.2026-11.example.ramdisk:a/0");
/// assert_eq!(id[0] >> 4, 6);
/// assert_eq!(id, naa_6_from_seed(b"iqn.2026-11.example.ramdisk:a/0"));
/// ```
#[must_use]
pub fn naa_6_from_seed(seed: &[u8]) -> [u8; 16] {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(seed);
    let wide = |skip| digest.iter().skip(skip).take(8).fold(0, |all, byte| all << 8 | u64::from(*byte));
    naa_6(LOCAL_COMPANY_ID, wide(0), wide(8))
}
