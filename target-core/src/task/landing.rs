//! Bytes of a write that land in a unit's lent memory as they come: they pass the write gate piece by piece.

use alloc::sync::Arc;
use alloc::task::Wake;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Waker;

use iscsi_memory::{Landing, Lock};

use super::executor::Bell;
use crate::lu::LogicalUnit;
use backstore::{Access, Blocks, GatePlace};

/// One session's way through the gate of one unit. The gate is held only while bytes land, so that an initiator that
/// owes its data holds up nobody; SCSI makes no write of several blocks one step (SBC-4 4.6), only COMPARE AND WRITE
/// and ORWRITE.
pub(super) struct UnitLanding {
    unit: Arc<LogicalUnit>,
    bell: Arc<Bell>,
    /// Whether there is a turn.
    in_line: AtomicBool,
    turn: Lock<Option<Turn>>,
}

/// A place in line for bytes that have come and could not land, so that atomic commands one after the other do not keep
/// them out. It is of use as soon as it has passed.
struct Turn {
    place: GatePlace,
    blocks: (u64, u64),
    /// The session has been woken for it.
    is_told: bool,
}

impl UnitLanding {
    pub(super) fn new(unit: Arc<LogicalUnit>, bell: Arc<Bell>) -> Self {
        Self { unit, bell, in_line: AtomicBool::new(false), turn: Lock::new(None) }
    }

    fn blocks(&self, offset: u64, len: u64) -> (u64, u64) {
        if len == 0 {
            return (0, 0);
        }
        let shift = self.unit.block_shift();
        let first = offset >> shift;
        (first, (offset.saturating_add(len - 1) >> shift) - first + 1)
    }

    /// A turn that has passed is for the next time that the session looks at what came: whoever waits behind it waits for
    /// no peer. True if there is a turn still.
    pub(super) fn end_turn(&self) -> bool {
        let mut place = self.turn.lock();
        let Some(turn) = &mut *place else { return false };
        if !self.unit.gate().has_passed(&turn.place) {
            return true;
        }
        if !core::mem::replace(&mut turn.is_told, true) {
            self.bell.wake_by_ref();
            return true;
        }
        drop(place);
        self.give_up_turn();
        false
    }

    fn give_up_turn(&self) {
        self.in_line.store(false, Ordering::Release);
        if let Some(turn) = self.turn.lock().take() {
            self.unit.gate().leave(turn.place);
        }
    }

    #[cold]
    fn land_in_turn(&self, blocks: (u64, u64), copy: &mut dyn FnMut()) -> bool {
        let gate = self.unit.gate();
        // Other bytes than those that have the place are further back.
        if self.turn.lock().as_ref().is_some_and(|turn| turn.blocks != blocks) {
            self.give_up_turn();
        }
        let mut lock = self.turn.lock();
        let turn = lock.get_or_insert_with(|| {
            let place = gate.enter(Access::Shared, Blocks::new(blocks.0, blocks.1), &Waker::from(self.bell.clone()));
            Turn { place, blocks, is_told: false }
        });
        let passed = gate.has_passed(&turn.place);
        drop(lock);
        if passed {
            copy();
            self.give_up_turn();
        } else {
            self.in_line.store(true, Ordering::Release);
            self.bell.in_line.store(true, Ordering::Relaxed);
        }
        passed
    }
}

impl Drop for UnitLanding {
    fn drop(&mut self) {
        self.give_up_turn();
    }
}

impl fmt::Debug for UnitLanding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnitLanding").finish_non_exhaustive()
    }
}

impl Landing for UnitLanding {
    fn try_land(&self, offset: u64, len: u64, copy: &mut dyn FnMut()) -> bool {
        let blocks = self.blocks(offset, len);
        let in_line = self.in_line.load(Ordering::Acquire);
        (!in_line && self.unit.gate().briefly(blocks.0, blocks.1, &mut *copy).is_some())
            || self.land_in_turn(blocks, copy)
    }
}
