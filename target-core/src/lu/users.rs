//! Whose sessions use a logical unit. One unit may be in several servers of a process: what a reset of it aborts is
//! found through the unit.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use crate::lock::Lock;
use crate::registry::Registry;

/// The registries whose sessions see a unit, or have seen it: an operation may outlast the LUN that it came by. They
/// are as many as servers have been given the unit.
#[derive(Debug, Default)]
pub(crate) struct Users(Lock<Vec<Weak<Registry>>>);

impl Users {
    /// Adds a registry. False when it is there already.
    pub(crate) fn add(&self, registry: &Arc<Registry>) -> bool {
        self.0.with(|users| {
            let new = users.iter().all(|user| user.as_ptr() != Arc::as_ptr(registry));
            if new {
                users.retain(|user| user.strong_count() != 0);
                users.push(Arc::downgrade(registry));
            }
            new
        })
    }

    /// Those that are still there.
    pub(crate) fn present(&self) -> Vec<Arc<Registry>> {
        self.0.with(|users| users.iter().filter_map(Weak::upgrade).collect())
    }
}
