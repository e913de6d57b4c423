//! Sessions whose connection has gone before their operations at the store have ended.
//!
//! An operation at a store cannot be called back, and may still land. Its session therefore stays in the [`Registry`],
//! and here is who waits for the operation: no new session of the same I_T nexus is let in, no reset is answered
//! "Function Complete", and nobody writes to the same blocks until then.

use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::task::Waker;

use super::{Event, Registry, Seat, SessionEntry, SessionEvent, Tickets};
use crate::lu::LogicalUnit;
use crate::task::TaskExecutor;
use iscsi_memory::Lock;

/// A connection's way out of the registry: taken when it is dropped, which its owner does when no device can touch
/// memory for it any more.
#[derive(Debug)]
pub(crate) struct Departure {
    registry: Arc<Registry>,
    /// None before a session was entered.
    entry: Option<Arc<SessionEntry>>,
    executor: Option<TaskExecutor>,
    tickets: Tickets,
    seat: Option<Seat>,
}

impl Departure {
    pub(crate) fn new(
        registry: Arc<Registry>,
        entry: Option<Arc<SessionEntry>>,
        executor: Option<TaskExecutor>,
        tickets: Tickets,
        seat: Option<Seat>,
    ) -> Self {
        Self { registry, entry, executor, tickets, seat }
    }
}

impl Drop for Departure {
    /// The session leaves too, unless a store has not given back an operation.
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        match self.executor.take().filter(|executor| executor.busy(None) != 0) {
            Some(executor) => {
                let session = Unfinished { entry, executor, tickets: core::mem::take(&mut self.tickets) };
                self.registry.look_after(session, self.seat.take());
            }
            None => self.registry.leave(entry.id),
        }
    }
}

/// What is left of a session: operations of aborted tasks, and who waits until they have ended.
#[derive(Debug)]
pub(crate) struct Unfinished {
    entry: Arc<SessionEntry>,
    executor: TaskExecutor,
    tickets: Tickets,
}

impl Unfinished {
    pub(super) fn entry(&self) -> &Arc<SessionEntry> {
        &self.entry
    }

    /// The logical units on which operations are under way.
    pub(super) fn units(&self) -> Arc<[Arc<LogicalUnit>]> {
        self.executor.busy_units()
    }

    /// Operations under way.
    pub(super) fn operations(&self) -> usize {
        self.executor.busy(None)
    }

    /// Takes what the stores have to say. True when nothing is under way any more.
    fn poll(&mut self, waker: &Waker) -> bool {
        self.executor.set_waker(waker);
        self.entry.mailbox.set_waker(waker);
        self.executor.submit();
        while self.executor.poll().is_some() {}
        self.executor.end_turns();
        if self.executor.has_more_work() {
            waker.wake_by_ref();
        }
        while let Some(event) = self.entry.mailbox.take() {
            if let SessionEvent::End { ticket, .. } | SessionEvent::Abort { ticket, .. } = event {
                self.tickets.push(ticket);
            }
        }
        // Who waits for one unit does not wait for another's store.
        self.tickets.retain(|ticket| self.executor.busy_on(ticket.units(), ticket.last()) != 0);
        self.operations() == 0
    }

    /// Lets go on who waits.
    fn end(self, registry: &Registry) {
        let Self { entry, executor, tickets } = self;
        drop(executor);
        registry.leave(entry.id);
        registry.observer.tell(&Event::OperationsEnded {
            initiator_name: entry.session.initiator.as_str().into(),
            target_name: entry.target_name().unwrap_or_default().into(),
        });
        // A ticket may have come since the last look.
        entry.mailbox.close();
        drop(tickets);
    }
}

/// What a registry that is gone has left to logical units that nobody serves: whoever serves one of them next takes it
/// over.
#[derive(Debug)]
pub(crate) struct Estate(Lock<Option<Unfinished>>);

impl Estate {
    pub(super) fn new(session: Unfinished) -> Arc<Self> {
        Arc::new(Self(Lock::new(Some(session))))
    }

    /// What is left, for the first who asks.
    fn take(&self) -> Option<Unfinished> {
        self.0.with(Option::take)
    }
}

impl Registry {
    /// Takes over what others that are gone have left to a unit.
    pub(crate) fn inherit(&self, unit: &LogicalUnit) {
        for session in unit.users().estates().iter().filter_map(|estate| estate.take()) {
            self.adopt(session);
        }
    }
}

/// Who is to be woken when a store has something to say to any of them.
#[derive(Debug, Default)]
struct Alarm(Lock<Vec<Waker>>);

impl Alarm {
    fn add(&self, waker: &Waker) {
        self.0.with(|wakers| {
            if !wakers.iter().any(|other| other.will_wake(waker)) {
                wakers.push(waker.clone());
            }
        });
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let wakers = self.0.with(core::mem::take);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// All of them. They are bounded by the sessions that a target takes.
#[derive(Debug, Default)]
pub(super) struct UnfinishedSessions {
    kept: Lock<Kept>,
    alarm: Arc<Alarm>,
}

#[derive(Debug, Default)]
struct Kept {
    sessions: Vec<Unfinished>,
    /// Somebody has taken so many out to poll them.
    polled: Option<usize>,
    /// Somebody else would have liked to meanwhile: what woke him may have been seen by nobody.
    missed: bool,
}

impl UnfinishedSessions {
    pub(super) fn add(&self, session: Unfinished) {
        self.kept.with(|kept| kept.sessions.push(session));
        self.alarm.clone().wake();
    }

    /// All of them: nobody polls them any more.
    pub(super) fn take(&self) -> Vec<Unfinished> {
        self.kept.with(|kept| core::mem::take(&mut kept.sessions))
    }

    /// Polls each, and tells how many are left.
    pub(super) fn poll(&self, registry: &Registry, waker: &Waker) -> usize {
        self.alarm.add(waker);
        // Stores wake and tickets wake: not under the lock.
        let taken = self.kept.with(|kept| {
            if let Some(polled) = kept.polled {
                kept.missed = true;
                return Err(polled + kept.sessions.len());
            }
            kept.polled = Some(kept.sessions.len());
            Ok(core::mem::take(&mut kept.sessions))
        });
        let mut sessions = match taken {
            Ok(sessions) => sessions,
            Err(left) => return left,
        };
        let shared = Waker::from(self.alarm.clone());
        let mut at = 0;
        while let Some(session) = sessions.get_mut(at) {
            if session.poll(&shared) { sessions.swap_remove(at).end(registry) } else { at += 1 }
        }
        let (left, missed) = self.kept.with(|kept| {
            kept.sessions.append(&mut sessions);
            kept.polled = None;
            (kept.sessions.len(), core::mem::take(&mut kept.missed))
        });
        if missed {
            self.alarm.clone().wake();
        }
        left
    }
}
