//! Flushes that failed, and who has heard of them.
//!
//! A flush that fails may have lost what any I_T nexus had written, and the system below the store may call the next
//! one good. So no flush, and no write with FUA, is good for a nexus before it has heard of every failure: MEDIUM
//! ERROR, WRITE ERROR. It has heard when it has acknowledged the status by its ExpStatSN: what it sent before that gets
//! the same answer, for it cannot know better, and so does what it sends after a new login, if its connection was lost
//! in between.

use super::LogicalUnit;
use backstore::StoreError;

/// What one I_T nexus knows of the failures of one unit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlushesHeard {
    /// What names the nexus and the LUN, over logins.
    key: u64,
    /// Failures of which it was told.
    told: u64,
    /// Of these, those of which it has acknowledged to have heard.
    heard: u64,
}

impl FlushesHeard {
    /// A session begins. A nexus that is new has written nothing that an older flush could have lost.
    pub(crate) fn of_nexus(unit: &LogicalUnit, key: u64) -> Self {
        let heard = unit.attentions().flushes_heard(key, unit.failed_flushes());
        Self { key, told: heard, heard }
    }

    /// Failures of which it has heard so far.
    #[inline]
    pub(crate) fn count(&self) -> u64 {
        self.heard
    }

    /// A flush that this nexus asked for has ended at the store: what it is to be told. `before`: what
    /// [`count`](Self::count) was when the command came. What a command has written, or was to make durable, may have
    /// gone with any flush that failed since.
    pub(crate) fn ended(
        &mut self,
        unit: &LogicalUnit,
        before: u64,
        result: Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.told = unit.flush_ended(result.is_err());
        if self.told == before { result } else { result.and(Err(StoreError::Write(None))) }
    }

    /// The nexus has acknowledged what it was told so far.
    pub(crate) fn acknowledged(&mut self, unit: &LogicalUnit) {
        if core::mem::replace(&mut self.heard, self.told) != self.told {
            unit.attentions().set_flushes_heard(self.key, self.told);
        }
    }
}
