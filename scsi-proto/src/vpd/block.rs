//! The pages of block devices: limits, characteristics, provisioning (SBC-4 6.6).

use alloc::vec::Vec;

use super::designation::{Designator, parse_all};
use crate::field::{be16, be32, be64, bit, flag, put, u8_at};

/// Block limits, page B0h (SBC-4 6.6.4). Lengths are in logical blocks; zero means not limited or not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockLimits {
    /// WSNZ: WRITE SAME of zero blocks is refused.
    pub write_same_non_zero: bool,
    /// MAXIMUM COMPARE AND WRITE LENGTH; zero means that the command is not supported.
    pub max_compare_and_write: u8,
    /// OPTIMAL TRANSFER LENGTH GRANULARITY.
    pub optimal_granularity: u16,
    /// MAXIMUM TRANSFER LENGTH.
    pub max_transfer: u32,
    /// OPTIMAL TRANSFER LENGTH.
    pub optimal_transfer: u32,
    /// MAXIMUM PREFETCH LENGTH.
    pub max_prefetch: u32,
    /// MAXIMUM UNMAP LBA COUNT; zero means that UNMAP is not supported, FFFF_FFFFh no limit.
    pub max_unmap_blocks: u32,
    /// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
    pub max_unmap_descriptors: u32,
    /// OPTIMAL UNMAP GRANULARITY.
    pub unmap_granularity: u32,
    /// UNMAP GRANULARITY ALIGNMENT, 31 bits, if valid (UGAVALID).
    pub unmap_alignment: Option<u32>,
    /// MAXIMUM WRITE SAME LENGTH.
    pub max_write_same: u64,
    /// MAXIMUM ATOMIC TRANSFER LENGTH; zero means no atomic writes.
    pub max_atomic: u32,
    /// ATOMIC ALIGNMENT.
    pub atomic_alignment: u32,
    /// ATOMIC TRANSFER LENGTH GRANULARITY.
    pub atomic_granularity: u32,
    /// MAXIMUM ATOMIC TRANSFER LENGTH WITH ATOMIC BOUNDARY.
    pub max_atomic_with_boundary: u32,
    /// MAXIMUM ATOMIC BOUNDARY SIZE.
    pub max_atomic_boundary: u32,
}

impl BlockLimits {
    /// Offsets count from byte 4 of the page.
    pub(super) fn to_body(self) -> [u8; 60] {
        let mut body = [0; 60];
        body[0] = flag(self.write_same_non_zero, 0);
        body[1] = self.max_compare_and_write;
        put(&mut body, 2, &self.optimal_granularity.to_be_bytes());
        let alignment = self.unmap_alignment.map_or(0, |alignment| 1 << 31 | alignment);
        for (at, value) in [
            (4, self.max_transfer),
            (8, self.optimal_transfer),
            (12, self.max_prefetch),
            (16, self.max_unmap_blocks),
            (20, self.max_unmap_descriptors),
            (24, self.unmap_granularity),
            (28, alignment),
            (40, self.max_atomic),
            (44, self.atomic_alignment),
            (48, self.atomic_granularity),
            (52, self.max_atomic_with_boundary),
            (56, self.max_atomic_boundary),
        ] {
            put(&mut body, at, &value.to_be_bytes());
        }
        put(&mut body, 32, &self.max_write_same.to_be_bytes());
        body
    }

    pub(super) fn from_body(body: &[u8]) -> Self {
        Self {
            write_same_non_zero: bit(body, 0, 0),
            max_compare_and_write: u8_at(body, 1),
            optimal_granularity: be16(body, 2),
            max_transfer: be32(body, 4),
            optimal_transfer: be32(body, 8),
            max_prefetch: be32(body, 12),
            max_unmap_blocks: be32(body, 16),
            max_unmap_descriptors: be32(body, 20),
            unmap_granularity: be32(body, 24),
            unmap_alignment: bit(body, 28, 7).then(|| be32(body, 28) & !(1 << 31)),
            max_write_same: be64(body, 32),
            max_atomic: be32(body, 40),
            atomic_alignment: be32(body, 44),
            atomic_granularity: be32(body, 48),
            max_atomic_with_boundary: be32(body, 52),
            max_atomic_boundary: be32(body, 56),
        }
    }
}

/// Block device characteristics, page B1h (SBC-4 6.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockCharacteristics {
    /// MEDIUM ROTATION RATE: 0 not told, 1 not rotating, else turns per minute.
    pub rotation_rate: u16,
    /// PRODUCT TYPE.
    pub product_type: u8,
    /// WABEREQ and WACEREQ, bits 7 to 4 in place: what a read of written or failed blocks after a sanitize does.
    pub sanitize_reads: u8,
    /// NOMINAL FORM FACTOR, 0 to 15; 0 not told.
    pub form_factor: u8,
    /// FUAB: SYNCHRONIZE CACHE and FUA act on the medium, not on a non-volatile cache.
    pub fua_on_medium: bool,
    /// VBULS: VERIFY with BYTCHK of unmapped blocks is supported.
    pub verify_unmapped: bool,
}

impl BlockCharacteristics {
    /// A medium that does not rotate: memory or flash.
    pub const SOLID_STATE: Self = Self {
        rotation_rate: 1,
        product_type: 0,
        sanitize_reads: 0,
        form_factor: 0,
        fua_on_medium: false,
        verify_unmapped: false,
    };

    pub(super) fn to_body(self) -> [u8; 60] {
        let mut body = [0; 60];
        put(&mut body, 0, &self.rotation_rate.to_be_bytes());
        body[2] = self.product_type;
        body[3] = self.sanitize_reads & 0xf0 | self.form_factor & 0x0f;
        body[4] = flag(self.fua_on_medium, 1) | flag(self.verify_unmapped, 0);
        body
    }

    pub(super) fn from_body(body: &[u8]) -> Self {
        Self {
            rotation_rate: be16(body, 0),
            product_type: u8_at(body, 2),
            sanitize_reads: u8_at(body, 3) & 0xf0,
            form_factor: u8_at(body, 3) & 0x0f,
            fua_on_medium: bit(body, 4, 1),
            verify_unmapped: bit(body, 4, 0),
        }
    }
}

/// Logical block provisioning, page B2h (SBC-4 6.6.5).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockProvisioning {
    /// THRESHOLD EXPONENT; 0 for no thresholds.
    pub threshold_exponent: u8,
    /// LBPU: UNMAP deallocates.
    pub unmap: bool,
    /// LBPWS: WRITE SAME(16) with UNMAP deallocates.
    pub write_same_16: bool,
    /// LBPWS10: WRITE SAME(10) with UNMAP deallocates.
    pub write_same_10: bool,
    /// LBPRZ: 0 unmapped blocks read as anything, 1 as zeros, 2 as the provisioning initialization pattern.
    pub reads_zero: u8,
    /// ANC_SUP: blocks can be anchored.
    pub anchor: bool,
    /// MINIMUM PERCENTAGE, 0 to 31.
    pub minimum_percentage: u8,
    /// PROVISIONING TYPE: 0 not told or full, 1 resource provisioned, 2 thin provisioned.
    pub provisioning_type: u8,
    /// THRESHOLD PERCENTAGE.
    pub threshold_percentage: u8,
    /// PROVISIONING GROUP DESCRIPTOR (DP): the group whose resources are shared.
    pub group: Option<Designator>,
}

impl BlockProvisioning {
    pub(super) fn to_body(&self) -> Vec<u8> {
        let mut body = Vec::from([
            self.threshold_exponent,
            flag(self.unmap, 7)
                | flag(self.write_same_16, 6)
                | flag(self.write_same_10, 5)
                | (self.reads_zero & 0x07) << 2
                | flag(self.anchor, 1)
                | flag(self.group.is_some(), 0),
            self.minimum_percentage << 3 | self.provisioning_type & 0x07,
            self.threshold_percentage,
        ]);
        if let Some(group) = &self.group {
            group.emit(&mut body);
        }
        body
    }

    pub(super) fn from_body(body: &[u8]) -> Self {
        let group =
            bit(body, 1, 0).then(|| body.get(4..)).flatten().and_then(|rest| parse_all(rest).into_iter().next());
        Self {
            threshold_exponent: u8_at(body, 0),
            unmap: bit(body, 1, 7),
            write_same_16: bit(body, 1, 6),
            write_same_10: bit(body, 1, 5),
            reads_zero: (u8_at(body, 1) >> 2) & 0x07,
            anchor: bit(body, 1, 1),
            minimum_percentage: u8_at(body, 2) >> 3,
            provisioning_type: u8_at(body, 2) & 0x07,
            threshold_percentage: u8_at(body, 3),
            group,
        }
    }
}
