//! How far a task management function reaches: every session in the process that may have something under way on a
//! logical unit, of whichever server.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::Waker;

use super::{Barrier, EndCause, Registry, SessionEvent};
use crate::lu::{LogicalUnit, NexusId, UnitAttention};

/// The registries that meet at some logical units.
#[derive(Debug)]
pub(crate) struct Reach {
    units: Arc<[Arc<LogicalUnit>]>,
    registries: Vec<Arc<Registry>>,
}

impl Reach {
    /// All registries whose sessions use any of the units.
    pub(crate) fn of(units: Arc<[Arc<LogicalUnit>]>) -> Self {
        let mut registries: Vec<Arc<Registry>> = Vec::new();
        for registry in units.iter().flat_map(|unit| unit.users().present()) {
            if registries.iter().all(|known| !Arc::ptr_eq(known, &registry)) {
                registries.push(registry);
            }
        }
        Self { units, registries }
    }

    /// One of them, if there is any.
    pub(super) fn any(&self) -> Option<&Arc<Registry>> {
        self.registries.first()
    }

    /// Has every session but `except` abort its tasks on the units, those too that are ending or replaced; `barrier`
    /// opens when nothing of them can change the units any more. The initiators whose tasks are aborted hear of
    /// `attention`.
    pub(crate) fn abort(&self, except: NexusId, attention: Option<UnitAttention>, barrier: &Arc<Barrier>) {
        // Whether a session has tasks there it knows itself: its LUN map may have changed since they came.
        for session in self.registries.iter().flat_map(|registry| registry.others(except)) {
            session.mailbox.post(SessionEvent::Abort { attention, ticket: barrier.ticket_of(&self.units) });
        }
    }

    /// Ends every session with the target node `name`, but `except`.
    pub(crate) fn end_all(&self, except: NexusId, name: &str, cause: EndCause, barrier: &Arc<Barrier>) {
        let sessions = self.registries.iter().flat_map(|registry| registry.others(except));
        for session in sessions.filter(|session| session.target_name() == Some(name)) {
            session.mailbox.post(SessionEvent::End { cause, ticket: barrier.ticket() });
        }
    }

    /// Has every session but `except` tell the operator of operations that its store does not give back. Those without
    /// a connection have told it.
    pub(crate) fn tell_overdue(&self, except: NexusId) {
        for session in self.registries.iter().flat_map(|registry| registry.others(except)) {
            session.mailbox.post(SessionEvent::Overdue { units: self.units.clone() });
        }
    }

    /// See [`Registry::poll_unfinished`].
    pub(crate) fn poll_unfinished(&self, waker: &Waker) {
        for registry in &self.registries {
            registry.poll_unfinished(waker);
        }
    }
}
