//! What the device says, and what it means for the work that it had.

use std::sync::atomic::Ordering;

use super::super::connection::Parameters;
use super::super::jobs::{Outcome, Posted};
use super::super::port::{Operation, Port, PortEvent, WorkCompletion};
use super::super::status;
use super::{Phase, RECEIVE, State};
use crate::queue::{Completion, EndCause, Established};

/// Completions that are given before others have their turn: what they bring about takes a fraction of a millisecond.
const TURN: usize = 256;

impl<P: Port> State<P> {
    pub(in crate::verbs) fn poll(&mut self) -> Option<Completion> {
        if self.phase == Phase::Idle {
            self.ring();
        }
        loop {
            if self.given >= TURN {
                // A peer that always has more is not to hold up the other connections of the thread.
                self.given = 0;
                self.activity.gives_way.store(true, Ordering::Relaxed);
                return None;
            }
            if let Some(completion) = self.ready.pop_front() {
                self.given += 1;
                return Some(completion);
            }
            if !self.progress() {
                self.given = 0;
                return None;
            }
        }
    }

    /// Takes what the device has to say. Whether it had something.
    pub(in crate::verbs) fn progress(&mut self) -> bool {
        if matches!(self.phase, Phase::Idle | Phase::Ended) {
            return false;
        }
        let mut any = false;
        while let Some(event) = self.port.poll_event() {
            any = true;
            self.handle_event(event);
        }
        self.completions.clear();
        let mut completions = std::mem::take(&mut self.completions);
        if self.port.poll(&mut completions).is_err() {
            self.end(Some(EndCause::DeviceGone));
        }
        any |= !completions.is_empty();
        for completion in &completions {
            self.handle_completion(completion);
        }
        self.completions = completions;
        if any {
            self.activity.count.fetch_add(1, Ordering::Relaxed);
            self.issue();
        }
        if !any {
            self.has_registered.set(false);
        }
        self.move_on(any);
        any || self.has_ready()
    }

    fn handle_event(&mut self, event: PortEvent) {
        match event {
            PortEvent::Established(told) => self.stand(told),
            PortEvent::Rejected if self.phase == Phase::Connecting => self.end(Some(EndCause::Rejected)),
            // A passive end that leaves before it has heard that the connection stands takes back its reply (librdmacm
            // sends a REJ then), although both have sent and received: for the active end the peer has closed.
            PortEvent::Rejected => self.end(Some(EndCause::PeerClosed)),
            PortEvent::Failed => self.end(Some(EndCause::Broken)),
            PortEvent::Disconnected => self.end(Some(EndCause::PeerClosed)),
            PortEvent::DeviceGone => self.end(Some(EndCause::DeviceGone)),
            PortEvent::PeerProtocol(what) => self.end(Some(EndCause::PeerProtocol(what))),
            PortEvent::QueueFailed => self.end(Some(EndCause::WorkFailed("the queue pair failed"))),
        }
    }

    fn stand(&mut self, told: Parameters) {
        if self.phase == Phase::Connecting {
            self.phase = Phase::Established;
            self.read_depth = told.outgoing_reads.into();
            self.ready.push_back(Completion::Established(Established {
                peer_private: told.private,
                read_depth: told.outgoing_reads.into(),
                served_depth: told.incoming_reads.into(),
            }));
        }
    }

    fn handle_completion(&mut self, completion: &WorkCompletion) {
        if completion.id & RECEIVE != 0 {
            self.handle_receive(completion);
            return;
        }
        let Some(index) = completion.id.checked_sub(self.first_posted).map(|index| index as usize) else { return };
        if index >= self.posted.len() - self.refused {
            return;
        }
        // Unsignaled requests before it are done, unless they have told that they are not. Signaled ones may be under
        // way: soft iWARP tells that a Send has left before the Read ahead of it is answered.
        for posted in self.posted.range_mut(..index).filter(|posted| !posted.is_signaled) {
            if posted.outcome == Outcome::Open {
                posted.outcome = Outcome::Done;
            }
        }
        self.posted[index].outcome = if completion.status == 0 { Outcome::Done } else { Outcome::Failed };
        while let Some(posted) = self.posted.front().copied()
            && posted.outcome != Outcome::Open
            && self.posted.len() > self.refused
        {
            self.posted.pop_front();
            self.first_posted += 1;
            self.retire(posted, posted.outcome == Outcome::Failed);
        }
        if completion.status != 0 {
            self.end(status::of_work(completion.status));
        }
    }

    fn handle_receive(&mut self, completion: &WorkCompletion) {
        if completion.id & !RECEIVE != self.first_receive || self.receives.len() <= self.refused_receives {
            self.end(Some(EndCause::WorkFailed("the device mixed up its receives")));
            return;
        }
        if completion.status == 0
            && self.phase == Phase::Connecting
            && let Some(told) = self.port.told()
        {
            // The first message of the peer may overtake the event of the connection.
            self.stand(told);
        }
        let Some(buf) = self.receives.pop_front() else { return };
        self.first_receive += 1;
        if completion.status == 0 {
            let len = completion.len.min(buf.len());
            self.ready.push_back(Completion::Received { buf, len, invalidated: completion.invalidated });
        } else {
            self.ready.push_back(Completion::ReceiveFlushed(buf));
            self.end(status::of_receive(completion.status));
        }
    }

    fn retire(&mut self, posted: Posted, has_failed: bool) {
        let Some(job) = self.jobs.get_mut(posted.job) else { return };
        job.has_failed |= has_failed;
        let is_read = matches!(job.operation, Operation::Read(_));
        self.reads -= u16::from(is_read);
        if let Some(bounced) = posted.bounce {
            if is_read && !has_failed {
                self.bounce.empty(job, bounced);
            }
            self.bounce.give(bounced);
        }
        if posted.holds > 0 {
            self.holds.drain(..posted.holds);
            job.settle();
        }
        if posted.is_last {
            self.give_back(posted.job);
        }
    }

    /// Gives a job back, behind those that were posted before it.
    pub(super) fn give_back(&mut self, index: usize) {
        if !self.passed.contains(&index) {
            self.give_back_now(index);
            return;
        }
        if let Some(job) = self.jobs.get_mut(index) {
            job.is_over = true;
        }
        while let Some(first) = self.passed.pop_front_if(|first| self.jobs.is_over(*first)) {
            self.give_back_now(first);
        }
    }

    fn give_back_now(&mut self, index: usize) {
        if let Some(job) = self.jobs.remove(index) {
            let (id, has_failed) = (job.id, job.has_failed);
            let memory = job.into_memory();
            self.ready.push_back(if has_failed {
                Completion::Flushed { id, memory }
            } else {
                Completion::Done { id, memory }
            });
        }
    }
}
