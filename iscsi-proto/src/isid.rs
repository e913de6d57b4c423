//! The initiator's part of the session identifier (RFC 7143 11.12.5).

use core::fmt;

/// An ISID: six bytes by which an initiator tells its ports apart. With the InitiatorName it is the SCSI initiator
/// port's name, so reservations and session reinstatement follow it: keep it for as long as the port is the same (RFC
/// 7143 10.1.1).
///
/// ```
/// use iscsi_proto::isid::{Isid, IsidKind};
/// let isid = Isid::random([0x12, 0x34, 0x56], 7);
/// assert_eq!(isid.to_bytes(), [0x80, 0x12, 0x34, 0x56, 0, 7]);
/// assert_eq!(isid.kind(), IsidKind::Random { random: 0x12_3456, qualifier: 7 });
/// assert_eq!(isid.to_string(), "0x801234560007");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Isid([u8; 6]);

/// The four formats, told apart by the T field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IsidKind {
    /// 00b: the vendor is named by its OUI.
    Oui {
        /// The 22 bits of the OUI, without its I/G and U/L bits.
        oui: u32,
        /// 24 bits of the vendor's choice.
        qualifier: u32,
    },
    /// 01b: the vendor is named by its IANA enterprise number.
    EnterpriseNumber {
        /// 24 bits.
        number: u32,
        /// 16 bits of the vendor's choice.
        qualifier: u16,
    },
    /// 10b: nobody is named.
    Random {
        /// 24 random bits.
        random: u32,
        /// 16 bits of the initiator's choice.
        qualifier: u16,
    },
    /// 11b: reserved; a target takes it as it is.
    Reserved,
}

impl Isid {
    /// An ISID as it came; every six bytes are one.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The bytes for the wire.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 6] {
        self.0
    }

    /// An ISID of the random format. `random` comes from a random number generator or a seed that lasts, `qualifier`
    /// tells the ports of one initiator apart.
    #[must_use]
    pub const fn random(random: [u8; 3], qualifier: u16) -> Self {
        let ([a, b, c], [high, low]) = (random, qualifier.to_be_bytes());
        Self([0x80, a, b, c, high, low])
    }

    /// An ISID of the OUI format; `oui` is the OUI of three bytes as IEEE assigns it, whose I/G and U/L bits are left
    /// out.
    #[must_use]
    pub const fn oui(oui: [u8; 3], qualifier: u32) -> Self {
        let ([a, b, c], [_, d, e, f]) = (oui, qualifier.to_be_bytes());
        // The I/G and U/L bits are the two lowest ones of the first byte.
        Self([a >> 2, b, c, d, e, f])
    }

    /// An ISID of the enterprise number format; `None` above 24 bits.
    #[must_use]
    pub const fn enterprise_number(number: u32, qualifier: u16) -> Option<Self> {
        let ([zero, a, b, c], [high, low]) = (number.to_be_bytes(), qualifier.to_be_bytes());
        if zero == 0 { Some(Self([0x40, a, b, c, high, low])) } else { None }
    }

    /// What the bytes mean.
    #[must_use]
    pub const fn kind(self) -> IsidKind {
        let [a, b, c, d, e, f] = self.0;
        match a >> 6 {
            0 => IsidKind::Oui {
                oui: u32::from_be_bytes([0, a & 0x3f, b, c]),
                qualifier: u32::from_be_bytes([0, d, e, f]),
            },
            1 => IsidKind::EnterpriseNumber {
                number: u32::from_be_bytes([0, b, c, d]),
                qualifier: u16::from_be_bytes([e, f]),
            },
            2 => IsidKind::Random { random: u32::from_be_bytes([0, b, c, d]), qualifier: u16::from_be_bytes([e, f]) },
            _ => IsidKind::Reserved,
        }
    }
}

impl From<[u8; 6]> for Isid {
    fn from(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }
}

impl From<Isid> for [u8; 6] {
    fn from(isid: Isid) -> Self {
        isid.0
    }
}

impl fmt::Display for Isid {
    /// As a hex-constant of twelve digits: the form in the SCSI initiator port name (RFC 7143 4.4.3).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Isid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Isid({self} {:?})", self.kind())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_format_stands_as_drawn() {
        let isid = Isid::oui([0x03 | 0xa4, 0xbb, 0xcc], 0x01_0203);
        assert_eq!(isid.to_bytes(), [0x29, 0xbb, 0xcc, 1, 2, 3]);
        assert_eq!(isid.kind(), IsidKind::Oui { oui: 0x29_bbcc, qualifier: 0x01_0203 });
        let isid = Isid::enterprise_number(0x0a_0b0c, 0x1234).unwrap();
        assert_eq!(isid.to_bytes(), [0x40, 0x0a, 0x0b, 0x0c, 0x12, 0x34]);
        assert_eq!(Isid::enterprise_number(1 << 24, 0), None);
        assert_eq!(Isid::from([0xc0, 0, 0, 0, 0, 0]).kind(), IsidKind::Reserved);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_isid(bytes: [u8; 6]) {
            let isid = Isid::from(bytes);
            prop_assert_eq!(<[u8; 6]>::from(isid), bytes);
            let rebuilt = match isid.kind() {
                IsidKind::Oui { oui, qualifier } => {
                    let [_, a, b, c] = oui.to_be_bytes();
                    Isid::oui([a << 2, b, c], qualifier)
                }
                IsidKind::EnterpriseNumber { number, qualifier } => Isid::enterprise_number(number, qualifier).unwrap(),
                IsidKind::Random { random, qualifier } => {
                    let [_, a, b, c] = random.to_be_bytes();
                    Isid::random([a, b, c], qualifier)
                }
                IsidKind::Reserved => isid,
            };
            // The A field of the EN and the random format is reserved.
            let mut expected = bytes;
            if matches!(isid.kind(), IsidKind::EnterpriseNumber { .. } | IsidKind::Random { .. }) {
                expected[0] &= 0xc0;
            }
            prop_assert_eq!(rebuilt.to_bytes(), expected);
        }
    }
}
