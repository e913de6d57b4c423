//! The end of a connection.
//!
//! Whatever brings it (a status, an event, a call), it goes the same way once: tell the peer, stop the queue pair, take
//! what still completes, destroy the queue pair, give everything back, [`Completion::Ended`]. Memory is given back only
//! after the queue pair is destroyed; if that fails, the memory is lost on purpose.

use std::sync::atomic::Ordering;

use super::super::jobs;
use super::super::port::Port;
use super::{Phase, State};
use crate::queue::{Completion, EndCause};

impl<P: Port> State<P> {
    /// The connection is over, for this reason if none is known yet.
    pub(super) fn end(&mut self, cause: Option<EndCause>) {
        match self.phase {
            Phase::Ended => return,
            Phase::Draining => {
                self.cause = self.cause.or(cause);
                return;
            }
            // We asked for it: what follows is the answer.
            Phase::Closing | Phase::Parting => self.cause = Some(EndCause::Closed),
            Phase::Idle | Phase::Connecting | Phase::Established => self.cause = self.cause.or(cause),
        }
        let stood = !matches!(self.phase, Phase::Idle | Phase::Connecting);
        if stood {
            self.port.disconnect();
        }
        self.port.fail();
        self.phase = Phase::Draining;
        self.deadline = Some(self.port.now() + self.linger / 2);
        self.activity.is_ending.store(true, Ordering::Relaxed);
        if !stood {
            // Nothing was ever started on this queue pair.
            self.finish();
        }
    }

    /// The last messages do not wait behind Reads that the device has no place for: a Read takes several requests, and
    /// its peer may never answer the first of them. All of them come back in the order in which they were posted.
    pub(super) fn put_reads_last(&mut self) {
        let Self { jobs, pending, passed, .. } = self;
        if pending.iter().is_sorted_by_key(|job| jobs.is_read(*job)) {
            return;
        }
        for job in pending.iter() {
            if !passed.contains(job) {
                passed.push_back(*job);
            }
        }
        pending.make_contiguous().sort_by_key(|job| jobs.is_read(*job));
    }

    /// Goes on with an end that is under way. `any`: whether something happened just now.
    pub(super) fn move_on(&mut self, any: bool) {
        let is_late = self.deadline.is_some_and(|deadline| self.port.now() >= deadline);
        let has_work = self.posted.len() > self.refused;
        match self.phase {
            Phase::Closing if is_late => self.end(Some(EndCause::Closed)),
            Phase::Closing if !has_work && self.pending.is_empty() => {
                self.port.disconnect();
                self.phase = Phase::Parting;
                self.deadline = Some(self.port.now() + self.linger);
                self.activity.is_ending.store(true, Ordering::Relaxed);
            }
            // The peer has not answered.
            Phase::Parting if is_late => self.end(Some(EndCause::Closed)),
            Phase::Draining => {
                let is_empty = !has_work && self.receives.len() <= self.refused_receives;
                // Why the queue pair failed may be told a little later than that it did.
                if !any && ((is_empty && self.cause.is_some()) || is_late) {
                    self.finish();
                }
            }
            _ => {}
        }
    }

    /// Destroys the queue pair and gives everything back.
    fn finish(&mut self) {
        self.phase = Phase::Ended;
        self.deadline = None;
        self.activity.is_ending.store(false, Ordering::Relaxed);
        self.activity.count.fetch_add(1, Ordering::Relaxed);
        if self.port.destroy() {
            self.let_go();
            let receives = self.receives.drain(..).chain(self.staged_receives.drain(..));
            self.ready.extend(receives.map(Completion::ReceiveFlushed));
            while let Some(posted) = self.posted.pop_front() {
                if let Some(job) = self.jobs.get_mut(posted.job) {
                    job.has_failed = true;
                }
                if posted.is_last {
                    self.give_back(posted.job);
                }
            }
            while let Some(index) = self.pending.pop_front() {
                if let Some(job) = self.jobs.get_mut(index) {
                    job.has_failed = true;
                }
                self.give_back(index);
            }
        } else {
            self.lose();
        }
        self.ready.push_back(Completion::Ended(self.cause.unwrap_or(EndCause::Broken)));
    }

    /// The device uses no registration any more.
    pub(super) fn let_go(&mut self) {
        self.holds.clear();
        self.jobs.settle();
    }

    /// The device may use the memory for ever.
    pub(super) fn lose(&mut self) {
        self.receives.drain(..).for_each(jobs::lose);
        self.holds.drain(..).for_each(jobs::lose);
        self.jobs.lose();
        self.bounce.lose();
        self.posted.clear();
        self.pending.clear();
        self.passed.clear();
    }
}
