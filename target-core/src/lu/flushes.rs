//! Flushes that failed, and who has heard of them.
//!
//! A flush that fails may have lost what any I_T nexus had written, and the system below the store may call the next one
//! good. So each nexus is told once of each failure (of several at once, once), with the next flush or write with FUA
//! that it asks for, and those under way: MEDIUM ERROR, WRITE ERROR. It has heard of it when it has acknowledged the status by its ExpStatSN;
//! a nexus that loses its connection before that is told again after its next login.

use super::LogicalUnit;
use crate::store::StoreError;

/// What one I_T nexus knows of the failures of one unit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlushesHeard {
    /// What names the nexus and the LUN, over logins.
    key: u64,
    /// Failures of which it was told.
    told: u64,
}

impl FlushesHeard {
    /// A session begins. A nexus that is new has written nothing that an older flush could have lost.
    pub(crate) fn of_nexus(unit: &LogicalUnit, key: u64) -> Self {
        Self { key, told: unit.attentions().flushes_heard(key, unit.failed_flushes()) }
    }

    /// Failures of which it was told so far.
    #[inline]
    pub(crate) fn told(&self) -> u64 {
        self.told
    }

    /// A flush that this nexus asked for has ended at the store: what it is to be told. `before`: what
    /// [`told`](Self::told) was when the command came. What a command has written, or was to make durable, may have gone
    /// with any flush that failed since.
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
    pub(crate) fn heard(&self, unit: &LogicalUnit) {
        unit.attentions().set_flushes_heard(self.key, self.told);
    }
}
