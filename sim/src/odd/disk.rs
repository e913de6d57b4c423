//! A disk with a volatile cache, which knows what it is called.

use initiator_core::{Identity, KnownDisk};
use scsi_proto::Lun;
use scsi_proto::vpd::{Designator, DesignatorId};

use super::plan::Comeback;

/// Bytes of a block that sessions write.
pub(super) const BLOCK: usize = 512;

#[derive(Debug)]
pub(super) struct OddDisk {
    /// What it holds, and what it will hold when its power was off.
    pub(super) content: Vec<u8>,
    pub(super) durable: Vec<u8>,
    volatile: bool,
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
        [Designator::of_unit(DesignatorId::Naa16([0x60 | self.name; 16]))].into()
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
        if !self.volatile {
            self.durable[start..start + data.len()].copy_from_slice(data);
        }
    }

    pub(super) fn flush(&mut self) {
        self.durable.clone_from(&self.content);
    }

    pub(super) fn comes_back(&mut self, how: Comeback) {
        self.is_other |= how.is_other();
        match how {
            Comeback::Same | Comeback::Silent => {}
            Comeback::Forgetful => self.content.clone_from(&self.durable),
            Comeback::OtherNames => self.name += 1,
            Comeback::OtherSerial => self.serial += 1,
            Comeback::OtherBlockSize => self.block_size = 4096,
            Comeback::Smaller => self.content.truncate((self.opened as usize - 1) * BLOCK),
            Comeback::Larger => {
                let len = self.content.len() + 16 * BLOCK;
                self.content.resize(len, 0);
                self.durable.resize(len, 0);
            }
        }
    }
}
