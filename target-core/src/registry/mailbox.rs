//! Mailboxes: how connections on different workers talk to each other. Used at login, logout, shutdown and by task
//! management, never per command.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::task::Waker;
use core::time::Duration;

use crate::lu::{LogicalUnit, UnitAttention};
use iscsi_memory::Lock;

/// Why a session is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// The initiator logged in anew with the same ISID (RFC 7143 6.3.5).
    Reinstated,
    /// TARGET COLD RESET (RFC 7143 11.5.1).
    ColdReset,
    /// The application asked for it.
    Requested,
}

/// A message to a connection.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// End now, without further word; the ticket is dropped when nothing of the session is left.
    End { cause: EndCause, ticket: Ticket },
    /// Abort the tasks on the ticket's units; it is dropped when they have left them. If there are any, the initiator
    /// hears of `attention`.
    Abort { attention: Option<UnitAttention>, ticket: Ticket },
    /// A function has waited in vain for what aborted tasks have on these units: the operator is to hear of it.
    Overdue { units: Arc<[Arc<LogicalUnit>]> },
    /// The target stops: ask the initiator to log out, and end after `grace` at the latest.
    Stop { grace: Duration },
    /// The connection has not logged in, and a later one needs its place.
    Displaced,
}

/// Where events for one connection gather. Bounded by who may post: each session has at most
/// [`crate::session::Limits::task_management_functions`] functions in progress, which post twice each, and ends and
/// stops come once.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    inner: Lock<Inner>,
    waiting: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<SessionEvent>,
    waker: Option<Waker>,
    closed: bool,
}

impl Mailbox {
    /// Posts an event. At a closed mailbox the event is dropped, and its ticket with it.
    pub(crate) fn post(&self, event: SessionEvent) {
        let (dropped, waker) = self.inner.with(|inner| {
            if inner.closed {
                return (Some(event), None);
            }
            inner.events.push_back(event);
            self.waiting.store(true, Ordering::Release);
            (None, inner.waker.clone())
        });
        drop(dropped);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes the owner without an event.
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.inner.with(|inner| inner.waker.clone()) {
            waker.wake();
        }
    }

    /// Keeps the waker to be woken for the next event.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        self.inner.with(|inner| match &mut inner.waker {
            Some(kept) => kept.clone_from(waker),
            none => *none = Some(waker.clone()),
        });
    }

    /// Whether an event waits.
    #[cfg(feature = "iser")]
    pub(crate) fn has_event(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// The next event; one load when there is none.
    #[inline]
    pub(crate) fn take(&self) -> Option<SessionEvent> {
        if !self.waiting.load(Ordering::Acquire) {
            return None;
        }
        self.inner.with(|inner| {
            let event = inner.events.pop_front();
            self.waiting.store(!inner.events.is_empty(), Ordering::Release);
            event
        })
    }

    /// Takes no more events, and drops those that wait.
    pub(crate) fn close(&self) {
        let (events, waker) = self.inner.with(|inner| {
            inner.closed = true;
            self.waiting.store(false, Ordering::Release);
            (core::mem::take(&mut inner.events), inner.waker.take())
        });
        drop((events, waker));
    }
}

/// Opens when all its tickets are dropped, and then wakes who waits.
#[derive(Debug)]
pub(crate) struct Barrier {
    tickets: AtomicUsize,
    owner: Arc<Mailbox>,
}

impl Barrier {
    /// An open barrier that the owner of the mailbox waits at.
    pub(crate) fn new(owner: Arc<Mailbox>) -> Arc<Self> {
        Arc::new(Self { tickets: AtomicUsize::new(0), owner })
    }

    /// Closes the barrier until the ticket is dropped: when nothing of the session that holds it is left.
    pub(crate) fn ticket(self: &Arc<Self>) -> Ticket {
        self.ticket_for(None)
    }

    /// The same, where only what is left on these units matters.
    pub(crate) fn ticket_of(self: &Arc<Self>, units: &Arc<[Arc<LogicalUnit>]>) -> Ticket {
        self.ticket_for(Some(units.clone()))
    }

    fn ticket_for(self: &Arc<Self>, units: Option<Arc<[Arc<LogicalUnit>]>>) -> Ticket {
        self.tickets.fetch_add(1, Ordering::AcqRel);
        Ticket { barrier: self.clone(), units, last: u64::MAX }
    }

    /// Whether every ticket is dropped.
    pub(crate) fn is_open(&self) -> bool {
        self.tickets.load(Ordering::Acquire) == 0
    }
}

/// Holds a [`Barrier`] closed.
#[derive(Debug)]
pub(crate) struct Ticket {
    barrier: Arc<Barrier>,
    units: Option<Arc<[Arc<LogicalUnit>]>>,
    /// The last of the session's operations that matter to who waits.
    last: u64,
}

impl Ticket {
    /// The same, where what begins after the operation `last` does not matter.
    pub(crate) fn up_to(mut self, last: u64) -> Self {
        self.last = last;
        self
    }

    /// See [`up_to`](Self::up_to).
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The units that matter to who waits; none where the whole session does.
    pub(crate) fn units(&self) -> Option<&[Arc<LogicalUnit>]> {
        self.units.as_deref()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.barrier.tickets.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.barrier.owner.wake();
        }
    }
}

/// Tickets to drop when a session has nothing left under way.
pub(crate) type Tickets = Vec<Ticket>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_opens_with_the_last_ticket_also_at_closed_mailboxes() {
        let mailbox = Arc::new(Mailbox::default());
        let barrier = Barrier::new(mailbox.clone());
        assert!(barrier.is_open());
        mailbox.post(SessionEvent::End { cause: EndCause::Requested, ticket: barrier.ticket() });
        let second = barrier.ticket();
        let event = mailbox.take().unwrap();
        assert!(mailbox.take().is_none());
        drop(event);
        assert!(!barrier.is_open());
        drop(second);
        assert!(barrier.is_open());
        mailbox.close();
        mailbox.post(SessionEvent::End { cause: EndCause::Requested, ticket: barrier.ticket() });
        assert!(barrier.is_open());
    }
}
