//! Bytes of a write that land in a unit's lent memory as they come: they pass the write gate piece by piece.

use alloc::sync::Arc;
use core::fmt;
use core::task::Waker;

use iscsi_memory::Landing;

use crate::lu::LogicalUnit;
use backstore::{Stripes, WriteGate};

/// One session's way through the gate of one unit. The gate is held only while bytes land, so that an initiator that
/// owes its data holds up nobody; SCSI makes no write of several blocks one step (SBC-4 4.6), only COMPARE AND WRITE
/// and ORWRITE.
pub(super) struct UnitLanding {
    unit: Arc<LogicalUnit>,
    waker: Waker,
}

impl UnitLanding {
    pub(super) fn new(unit: Arc<LogicalUnit>, waker: Waker) -> Self {
        Self { unit, waker }
    }

    fn stripes(&self, offset: u64, len: u64) -> Stripes {
        if len == 0 {
            return 0;
        }
        let shift = self.unit.block_shift();
        let first = offset >> shift;
        WriteGate::stripes(first, (offset.saturating_add(len - 1) >> shift) - first + 1)
    }
}

impl fmt::Debug for UnitLanding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnitLanding").finish_non_exhaustive()
    }
}

impl Landing for UnitLanding {
    fn try_begin(&self, offset: u64, len: u64) -> bool {
        let (gate, stripes) = (self.unit.gate(), self.stripes(offset, len));
        // Whoever lets go between the first try and the wait is seen by the second try.
        gate.try_shared(stripes) || {
            gate.wait(&self.waker);
            gate.try_shared(stripes)
        }
    }

    fn end(&self, offset: u64, len: u64) {
        self.unit.gate().release_shared(self.stripes(offset, len));
    }
}
