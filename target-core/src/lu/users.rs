//! Whose sessions use a logical unit. One unit may be in several servers of a process: what a reset of it aborts is
//! found through the unit.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use crate::registry::{Estate, Registry};
use iscsi_memory::Lock;

/// The registries whose sessions see a unit, or have seen it: an operation may outlast the LUN that it came by. They
/// are as many as servers have been given the unit.
#[derive(Debug, Default)]
pub(crate) struct Users {
    registries: Lock<Vec<Weak<Registry>>>,
    /// What the last of them has left behind. It keeps the unit as long as it is here.
    estates: Lock<Vec<Arc<Estate>>>,
}

impl Users {
    /// Adds a registry that has been given the unit, which meets all others here.
    pub(crate) fn gather(&self, registry: &Arc<Registry>) {
        if self.add(registry) {
            let present = self.present();
            let others = present.iter().filter(|other| !Arc::ptr_eq(other, registry));
            others.for_each(|other| registry.meet(other));
        }
    }

    /// Adds a registry. False when it is there already.
    pub(crate) fn add(&self, registry: &Arc<Registry>) -> bool {
        self.registries.with(|users| {
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
        self.registries.with(|users| users.iter().filter_map(Weak::upgrade).collect())
    }

    /// Keeps what a registry has left that is gone.
    pub(crate) fn leave(&self, estate: &Arc<Estate>) {
        self.estates.with(|estates| estates.push(estate.clone()));
    }

    /// What is left, for one who looks after it.
    pub(crate) fn estates(&self) -> Vec<Arc<Estate>> {
        self.estates.with(core::mem::take)
    }
}
