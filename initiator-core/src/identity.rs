//! Which disk it is: what a handle remembers of the logical unit that it was opened on, and holds against what answers
//! after a new login.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use scsi_proto::Lun;
use scsi_proto::vpd::{Association, Designator, DesignatorId, VpdPage};

/// The names, the size and the block length of a logical unit.
///
/// ```
/// use initiator_core::Identity;
/// let opened = Identity { serial: Some("A1".into()), block_size: 512, blocks: 2048, ..Identity::default() };
/// let larger = Identity { blocks: 4096, ..opened.clone() };
/// assert!(opened.differs(&larger).is_none(), "a disk may grow");
/// let other = Identity { serial: Some("B2".into()), ..opened.clone() };
/// assert!(opened.differs(&other).unwrap().to_string().contains("B2"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// Designators of the logical unit (VPD page 83h, SPC-5 7.7.6). Those of ports and of the device are left out: they
    /// depend on the way to the unit.
    pub names: Vec<Designator>,
    /// Unit serial number (VPD page 80h, SPC-5 7.7.19), without the spaces around it.
    pub serial: Option<String>,
    /// Logical block length in bytes.
    pub block_size: u32,
    /// Number of logical blocks.
    pub blocks: u64,
}

/// A disk that was opened, as another session may hold it against what it finds: [`Disk::known`](crate::Disk::known)
/// gives it, [`run_load`](crate::run_load) takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownDisk {
    /// The logical unit.
    pub lun: Lun,
    /// What it is.
    pub identity: Identity,
    /// Whether it may lose with its power what it acknowledged and did not flush.
    pub volatile: bool,
}

/// What tells one disk from another.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// No designator of the unit is one of those that it had.
    Names {
        /// What it was called.
        was: Vec<Designator>,
        /// What it is called.
        is: Vec<Designator>,
    },
    /// The serial number is another.
    Serial {
        /// What it was.
        was: String,
        /// What it is.
        is: String,
    },
    /// The block length is another.
    BlockSize {
        /// Bytes that it was.
        was: u32,
        /// Bytes that it is.
        is: u32,
    },
    /// The disk is smaller.
    Smaller {
        /// Blocks that it had.
        was: u64,
        /// Blocks that it has.
        is: u64,
    },
}

/// The least rank of a designator.
const LEAST_RANK: u8 = 2;

/// How well a kind of designator names a unit, 0 best: by an authority that gives each name once; by a vendor; by
/// whatever somebody likes (SPC-5 7.7.6).
const fn rank(id: &DesignatorId) -> u8 {
    match id {
        DesignatorId::Naa8(_) | DesignatorId::Naa16(_) | DesignatorId::ScsiName(_) => 0,
        // EUI-64 and UUID.
        DesignatorId::Other { kind: 2 | 0x0a, .. } => 0,
        DesignatorId::T10Vendor { .. } => 1,
        DesignatorId::Other { .. } | DesignatorId::RelativeTargetPort(_) | DesignatorId::TargetPortGroup(_) => {
            LEAST_RANK
        }
    }
}

struct Names<'a>(&'a [Designator]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.first() {
            Some(first) => write!(f, "{}", first.id),
            None => f.write_str("nothing"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Names { was, is } => write!(f, "it was called {} and is called {}", Names(was), Names(is)),
            Self::Serial { was, is } => write!(f, "its serial number was {was:?} and is {is:?}"),
            Self::BlockSize { was, is } => write!(f, "its blocks had {was} bytes and have {is}"),
            Self::Smaller { was, is } => write!(f, "it had {was} blocks and has {is}"),
        }
    }
}

impl Identity {
    /// Takes the names out of a device identification page.
    pub fn set_names(&mut self, page: &VpdPage) {
        if let VpdPage::DeviceIdentification(designators) = page {
            let of_unit = |designator: &&Designator| designator.association == Association::LogicalUnit;
            self.names = designators.iter().filter(of_unit).cloned().collect();
        }
    }

    /// Takes the serial number out of its page.
    pub fn set_serial(&mut self, page: &VpdPage) {
        if let VpdPage::UnitSerialNumber(serial) = page {
            self.serial = Some(serial.trim().into()).filter(|serial: &String| !serial.is_empty());
        }
    }

    fn shares_a_name(&self, other: &Self) -> bool {
        other.names.iter().any(|name| self.names.contains(name))
    }

    /// Whether the names are those of one unit: of the best kind that both have, one is the same. A name of a lesser
    /// kind may be that of all units of its vendor.
    fn has_the_names_of(&self, other: &Self) -> bool {
        let of = |names: &[Designator], kind: u8| names.iter().any(|name| rank(&name.id) == kind);
        match (0..=LEAST_RANK).find(|kind| of(&self.names, *kind) && of(&other.names, *kind)) {
            Some(kind) => other.names.iter().any(|name| rank(&name.id) == kind && self.names.contains(name)),
            None => false,
        }
    }

    /// What tells `now` from this disk; `None` when it is the same, be it larger than it was.
    #[must_use]
    pub fn differs(&self, now: &Self) -> Option<Difference> {
        let same_serial = match (&self.serial, &now.serial) {
            (Some(was), Some(is)) if was != is => {
                return Some(Difference::Serial { was: was.clone(), is: is.clone() });
            }
            (was, is) => was.is_some() && was == is,
        };
        // A unit that tells no names now is known by its serial number, where it has one.
        let told_nothing = now.names.is_empty() && same_serial;
        let known = !self.names.is_empty() || self.serial.is_some();
        let nothing_in_common = known && !same_serial && !self.shares_a_name(now);
        if let Some(was) = self.serial.as_ref().filter(|_| nothing_in_common && self.names.is_empty()) {
            return Some(Difference::Serial { was: was.clone(), is: String::new() });
        }
        if nothing_in_common || !self.names.is_empty() && !told_nothing && !self.has_the_names_of(now) {
            return Some(Difference::Names { was: self.names.clone(), is: now.names.clone() });
        }
        if self.block_size != now.block_size {
            return Some(Difference::BlockSize { was: self.block_size, is: now.block_size });
        }
        (now.blocks < self.blocks).then_some(Difference::Smaller { was: self.blocks, is: now.blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use scsi_proto::Ascii;

    fn disk(name: u8) -> Identity {
        let names = [Designator::of_unit(DesignatorId::Naa16([name; 16]))].into();
        Identity { names, serial: Some("1".into()), block_size: 512, blocks: 100 }
    }

    #[test]
    fn a_disk_is_known_by_its_names_and_its_size() {
        assert_eq!(disk(0x61).differs(&disk(0x61)), None);
        assert!(matches!(disk(0x61).differs(&disk(0x62)), Some(Difference::Names { .. })));
        assert!(matches!(
            disk(0x61).differs(&Identity { block_size: 4096, ..disk(0x61) }),
            Some(Difference::BlockSize { .. })
        ));
        assert!(matches!(disk(0x61).differs(&Identity { blocks: 99, ..disk(0x61) }), Some(Difference::Smaller { .. })));
        assert_eq!(disk(0x61).differs(&Identity { blocks: 101, ..disk(0x61) }), None);
        // One name of all disks of a vendor says nothing beside their own.
        let of_vendor = Designator::of_unit(DesignatorId::T10Vendor { vendor: Ascii::new("ACME"), id: "disk".into() });
        let with = |mut of: Identity| {
            of.names.push(of_vendor.clone());
            of
        };
        assert_eq!(with(disk(0x61)).differs(&with(disk(0x61))), None);
        assert!(matches!(with(disk(0x61)).differs(&with(disk(0x62))), Some(Difference::Names { .. })));
        let vendors_only = Identity { names: [of_vendor.clone()].into(), ..disk(0x61) };
        assert_eq!(with(disk(0x61)).differs(&vendors_only), None, "it may tell less than it did");
        // More names, or another order, make no other disk.
        let mut more = disk(0x62);
        more.names.extend(disk(0x61).names);
        assert_eq!(disk(0x61).differs(&more), None);
    }

    #[test]
    fn the_serial_number_counts_where_names_do_not() {
        let nameless = Identity { names: Vec::new(), ..disk(0x61) };
        assert_eq!(disk(0x61).differs(&nameless), None, "the serial number is the same");
        let bare = Identity { serial: None, ..nameless.clone() };
        assert!(disk(0x61).differs(&bare).unwrap().to_string().contains("nothing"));
        assert!(matches!(
            nameless.differs(&Identity { serial: Some("2".into()), ..nameless.clone() }),
            Some(Difference::Serial { .. })
        ));
        assert_eq!(bare.differs(&disk(0x61)), None, "what was not known cannot differ");
        let named = Identity { serial: None, ..disk(0x61) };
        assert!(
            nameless.differs(&named).is_some() && named.differs(&nameless).is_some(),
            "nothing shows that it is one"
        );
        assert!(nameless.differs(&bare).is_some());
    }

    #[test]
    fn names_of_ports_are_no_names_of_the_disk() {
        let mut found = Identity::default();
        let port = Designator::of_port(DesignatorId::RelativeTargetPort(1));
        found.set_names(&VpdPage::DeviceIdentification([port, disk(0x61).names[0].clone()].into()));
        assert_eq!(found.names, disk(0x61).names);
    }
}
