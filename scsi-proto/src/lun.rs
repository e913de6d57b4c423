//! Logical unit numbers (SAM-5 4.7).

use core::fmt;

/// A logical unit number of the single level structure: one of 16384 logical units, or a well-known one.
///
/// On the wire a LUN is eight bytes (SAM-5 4.7). This stack serves single level targets, so the peripheral device
/// addressing method and the flat space addressing method are read alike, with all 14 bits for the number. One that was
/// read is written as it was spelled; one that was made of a number is written peripheral up to 255, flat above. Two
/// spellings of one number are equal.
///
/// ```
/// use scsi_proto::Lun;
/// let lun = Lun::new(300).unwrap();
/// assert_eq!(lun.to_bytes(), [0x41, 0x2c, 0, 0, 0, 0, 0, 0]);
/// let peripheral = Lun::parse([0x01, 0x2c, 0, 0, 0, 0, 0, 0]).unwrap();
/// assert_eq!(peripheral, lun);
/// assert_eq!(peripheral.to_bytes(), [0x01, 0x2c, 0, 0, 0, 0, 0, 0]);
/// ```
#[derive(Clone, Copy, Default)]
pub struct Lun {
    number: u16,
    spelling: Spelling,
}

/// The addressing method of an ordinary LUN (SAM-5 4.7.6).
#[derive(Clone, Copy, Default)]
enum Spelling {
    /// Peripheral device up to 255, flat space above.
    #[default]
    ByNumber,
    /// Peripheral device, with the high bits where bus identifiers have their place.
    Peripheral,
    /// Flat space.
    Flat,
}

impl PartialEq for Lun {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Lun {}

impl core::hash::Hash for Lun {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

impl PartialOrd for Lun {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Lun {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.number.cmp(&other.number)
    }
}

/// An eight-byte LUN that addresses nothing on a single level target.
///
/// A device server answers a command for such a LUN like one for any LUN without a logical unit
/// (LOGICAL UNIT NOT SUPPORTED).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LunError {
    /// Bytes 2 to 7 are not zero: the LUN names a unit behind another level, and there is none.
    #[error("LUN {0:02x?} addresses a second level; only single level LUNs are served")]
    SecondLevel([u8; 8]),
    /// An addressing method that is neither peripheral, flat nor well known.
    #[error("LUN {0:02x?} uses an addressing method that is not served; use peripheral or flat addressing")]
    Method([u8; 8]),
}

/// The first byte of a well-known LUN: extended addressing, length 2, method well known (SAM-5 4.7.7.5).
const WELL_KNOWN: u16 = 0xc100;

impl Lun {
    /// Logical unit 0, which every target answers for, be it with an empty place (SAM-5 4.7.3).
    pub const ZERO: Self = Self::of(0);
    /// The largest logical unit number of the flat space addressing method.
    pub const MAX: Self = Self::of(0x3fff);
    /// The REPORT LUNS well-known logical unit.
    pub const REPORT_LUNS: Self = Self::of(WELL_KNOWN | 0x01);

    const fn of(number: u16) -> Self {
        Self { number, spelling: Spelling::ByNumber }
    }

    /// Logical unit `number`, if it is at most 16383.
    pub const fn new(number: u16) -> Option<Self> {
        if number <= Self::MAX.number { Some(Self::of(number)) } else { None }
    }

    /// The number of an ordinary logical unit; `None` for a well-known one.
    pub const fn number(self) -> Option<u16> {
        if self.is_well_known() { None } else { Some(self.number) }
    }

    /// Whether this is a well-known logical unit (W-LUN).
    pub const fn is_well_known(self) -> bool {
        self.number > Self::MAX.number
    }

    /// Reads the eight bytes of a PDU's LUN field or of a REPORT LUNS entry.
    ///
    /// # Errors
    /// [`LunError`] for a LUN that a single level target does not have.
    pub const fn parse(bytes: [u8; 8]) -> Result<Self, LunError> {
        let [first, second, rest @ ..] = bytes;
        if !matches!(rest, [0, 0, 0, 0, 0, 0]) {
            return Err(LunError::SecondLevel(bytes));
        }
        match first {
            0x00 => Ok(Self::of(second as u16)),
            // Bus identifiers, where a target has no buses, are taken for the high part of the number: initiators write
            // LUN 256 as 01 00, as if it were flat.
            0x01..=0x3f => Ok(Self { number: (first as u16) << 8 | second as u16, spelling: Spelling::Peripheral }),
            0x40..=0x7f => Ok(Self { number: ((first & 0x3f) as u16) << 8 | second as u16, spelling: Spelling::Flat }),
            0xc1 => Ok(Self::of(WELL_KNOWN | second as u16)),
            _ => Err(LunError::Method(bytes)),
        }
    }

    /// Whether two LUNs that may be of one number are the same eight bytes on the wire.
    pub fn is_spelled_as(self, other: Self) -> bool {
        self.to_bytes() == other.to_bytes()
    }

    /// The eight bytes for the wire: as it was read, else peripheral addressing up to 255, flat space addressing above.
    pub const fn to_bytes(self) -> [u8; 8] {
        let flat = match self.spelling {
            Spelling::ByNumber => self.number > 0xff && !self.is_well_known(),
            Spelling::Peripheral => false,
            Spelling::Flat => true,
        };
        let [high, low] = if flat { (0x4000 | self.number).to_be_bytes() } else { self.number.to_be_bytes() };
        [high, low, 0, 0, 0, 0, 0, 0]
    }
}

impl From<u8> for Lun {
    fn from(number: u8) -> Self {
        Self::of(number.into())
    }
}

impl fmt::Display for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number() {
            Some(number) => number.fmt(f),
            None => write!(f, "W-LUN {:02x}h", self.number & 0xff),
        }
    }
}

impl fmt::Debug for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lun({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_lun_round_trips() {
        for number in 0..=0x3fff {
            let lun = Lun::new(number).unwrap();
            assert_eq!(Lun::parse(lun.to_bytes()), Ok(lun));
            assert_eq!(lun.number(), Some(number));
        }
        assert_eq!(Lun::new(0x4000), None);
        assert_eq!(Lun::parse(Lun::REPORT_LUNS.to_bytes()), Ok(Lun::REPORT_LUNS));
        assert_eq!(Lun::REPORT_LUNS.to_bytes(), [0xc1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Lun::REPORT_LUNS.number(), None);
    }

    #[test]
    fn flat_and_peripheral_name_the_same_unit() {
        assert_eq!(Lun::parse([0x40, 7, 0, 0, 0, 0, 0, 0]), Ok(Lun::from(7)));
        assert_eq!(Lun::parse([0, 7, 0, 0, 0, 0, 0, 0]), Ok(Lun::from(7)));
        // What peripheral addressing calls bus 1 is the 256s' digit of a number.
        assert_eq!(Lun::parse([1, 0, 0, 0, 0, 0, 0, 0]), Ok(Lun::new(256).unwrap()));
        assert_eq!(Lun::parse([0x3f, 0xff, 0, 0, 0, 0, 0, 0]), Ok(Lun::MAX));
        assert_eq!(Lun::from(255).to_bytes(), [0, 255, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Lun::new(256).unwrap().to_bytes(), [0x41, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn other_levels_and_methods_are_refused() {
        assert!(matches!(Lun::parse([0, 1, 0, 2, 0, 0, 0, 0]), Err(LunError::SecondLevel(_))));
        assert!(matches!(Lun::parse([0x80, 1, 0, 0, 0, 0, 0, 0]), Err(LunError::Method(_))));
        assert!(matches!(Lun::parse([0xd2, 1, 0, 0, 0, 0, 0, 0]), Err(LunError::Method(_))));
    }

    proptest! {
        #[test]
        fn what_parses_is_written_as_it_was_read(bytes: [u8; 8]) {
            if let Ok(lun) = Lun::parse(bytes) {
                prop_assert_eq!(lun.to_bytes(), bytes);
            }
        }
    }
}
