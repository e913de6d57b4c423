//! A disk with a volatile cache, which knows what it is called.

use initiator_core::{Identity, KnownDisk};
use scsi_proto::vpd::{Designator, DesignatorId};
use scsi_proto::{Ascii, Lun};

use super::plan::Comeback;

/// Bytes of a block that sessions write.
pub(super) const BLOCK: usize = 512;

#[derive(Debug)]
pub(super) struct OddDisk {
    /// What it holds, and what it will hold when its power was off.
    pub(super) content: Vec<u8>,
    pub(super) durable: Vec<u8>,
    volatile: bool,
    /// Blocks that are on their way to what is durable.
    dirty: Vec<bool>,
    /// START STOP UNIT is wanted.
    pub(super) is_stopped: bool,
    /// How often it was asked to start.
    pub(super) starts: u64,
    /// It tells also what its vendor calls all of this kind.
    pub(super) has_vendors_name: bool,
    /// Blocks that it had at first.
    opened: u64,
    name: u8,
    serial: u8,
    /// What it tells; blocks of another size are never read nor written.
    pub(super) block_size: u32,
    /// It is not the disk that was opened.
    pub(super) is_other: bool,
    /// ASYMMETRIC ACCESS STATE of each target port group, the first of which has the number 1; none where it tells of
    /// none.
    pub(super) groups: Vec<u8>,
}

impl OddDisk {
    pub(super) fn new(blocks: u64, volatile: bool) -> Self {
        let content = vec![0; blocks as usize * BLOCK];
        let (name, serial) = (1, b'1');
        Self {
            durable: content.clone(),
            content,
            volatile,
            dirty: vec![false; blocks as usize],
            is_stopped: false,
            starts: 0,
            has_vendors_name: false,
            opened: blocks,
            name,
            serial,
            block_size: BLOCK as u32,
            is_other: false,
            groups: Vec::new(),
        }
    }

    pub(super) fn blocks(&self) -> u64 {
        (self.content.len() / BLOCK) as u64
    }

    pub(super) fn names(&self) -> Vec<Designator> {
        let mut names = vec![Designator::of_unit(DesignatorId::Naa16([0x60 | self.name; 16]))];
        if self.has_vendors_name {
            let id = DesignatorId::T10Vendor { vendor: Ascii::new("ODD"), id: "disk".into() };
            names.push(Designator::of_unit(id));
        }
        names
    }

    pub(super) fn serial(&self) -> String {
        char::from(self.serial).to_string()
    }

    pub(super) fn known(&self) -> KnownDisk {
        let identity = Identity {
            names: self.names(),
            serial: Some(self.serial()),
            block_size: self.block_size,
            blocks: self.blocks(),
        };
        KnownDisk { lun: Lun::ZERO, identity, volatile: self.volatile }
    }

    pub(super) fn write(&mut self, lba: u64, data: &[u8]) {
        let start = lba as usize * BLOCK;
        self.content[start..start + data.len()].copy_from_slice(data);
        self.dirty[lba as usize..lba as usize + data.len() / BLOCK].fill(true);
        if !self.volatile {
            self.durable[start..start + data.len()].copy_from_slice(data);
        }
    }

    pub(super) fn flush(&mut self) {
        for at in 0..self.dirty.len() {
            if std::mem::take(&mut self.dirty[at]) {
                self.durable[at * BLOCK..][..BLOCK].copy_from_slice(&self.content[at * BLOCK..][..BLOCK]);
            }
        }
    }

    /// What is not durable yet will never be, though it is still there: so does an operating system below that could
    /// not write it. Returns whether there was any such block.
    pub(super) fn drops(&mut self) -> bool {
        let any = self.volatile && self.dirty.contains(&true);
        if any {
            self.dirty.fill(false);
        }
        any
    }

    /// A block of which nobody has known whether it will ever be durable: it is, or is gone from the cache too.
    pub(super) fn evict(&mut self, lba: u64) {
        let start = lba as usize * BLOCK;
        let (cached, durable) = (&mut self.content[start..start + BLOCK], &mut self.durable[start..start + BLOCK]);
        if std::mem::take(&mut self.dirty[lba as usize]) {
            durable.copy_from_slice(cached);
        } else {
            cached.copy_from_slice(durable);
        }
    }

    pub(super) fn comes_back(&mut self, how: Comeback) {
        self.is_other |= how.is_other();
        match how {
            Comeback::Same | Comeback::Silent => {}
            Comeback::Forgetful => {
                self.content.clone_from(&self.durable);
                self.dirty.fill(false);
            }
            Comeback::OtherNames => self.name += 1,
            Comeback::OtherSerial => self.serial += 1,
            Comeback::OtherBlockSize => self.block_size = 4096,
            Comeback::Smaller => self.content.truncate((self.opened as usize - 1) * BLOCK),
            Comeback::Larger => {
                let len = self.content.len() + 16 * BLOCK;
                self.content.resize(len, 0);
                self.durable.resize(len, 0);
                self.dirty.resize(len / BLOCK, false);
            }
        }
    }
}
