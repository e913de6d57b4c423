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
        let mut reach = Self { units: units.clone(), registries: Vec::new() };
        for registry in units.iter().flat_map(|unit| unit.users().present()) {
            reach.add(registry);
        }
        reach
    }

    /// All of them.
    pub(super) fn registries(&self) -> &[Arc<Registry>] {
        &self.registries
    }

    /// The sessions of `registry` too, whether they use any of the units or not.
    pub(crate) fn and(mut self, registry: &Arc<Registry>) -> Self {
        self.add(registry.clone());
        self
    }

    /// The sessions of `registry`, and of all that it has ever met at a unit, whatever they share still: another server
    /// of a target node may have units that this one has no more.
    pub(crate) fn and_acquaintances(mut self, registry: &Arc<Registry>) -> Self {
        self.add(registry.clone());
        let mut at = 0;
        while let Some(known) = self.registries.get(at) {
            known.acquaintances().into_iter().for_each(|other| self.add(other));
            at += 1;
        }
        self
    }

    fn add(&mut self, registry: Arc<Registry>) {
        if self.registries.iter().all(|known| !Arc::ptr_eq(known, &registry)) {
            self.registries.push(registry);
        }
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

    /// The same for a reset of the target node `name`: its sessions abort all that they have, what came by a LUN that
    /// the node has no more as well; those of other nodes what they have on the units.
    pub(crate) fn abort_target(&self, except: NexusId, name: &str, barrier: &Arc<Barrier>) {
        for session in self.registries.iter().flat_map(|registry| registry.others(except)) {
            let own = session.target_name() == Some(name);
            let ticket = if own { barrier.ticket() } else { barrier.ticket_of(&self.units) };
            session.mailbox.post(SessionEvent::Abort { attention: None, ticket });
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
