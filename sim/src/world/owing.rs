//! Initiators that send nothing of what RDMA Reads ask them for, and hear and say all else: nobody's silence leaves a
//! function without an answer, its own neither.

use std::time::Duration;

use iscsi_proto::pdu::TaskFunction;
use iscsi_proto::time::Instant;
use target_core::session::EndReason;

/// What a function takes at most from its initiator to the session, over a network that is calm.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// A connection whose initiator owes.
#[derive(Debug)]
pub(super) struct Owing {
    pub(super) link: usize,
    /// Functions that it asked for, and when, whose answers it did not get.
    pub(super) unanswered: Vec<(TaskFunction, Instant)>,
    /// When the target ended the connection for what is owed.
    ended: Option<Instant>,
    has_ended: bool,
}

impl Owing {
    pub(super) const fn over(link: usize) -> Self {
        Self { link, unanswered: Vec::new(), ended: None, has_ended: false }
    }

    /// The target has looked at its end. A queue pair that is full can say nothing more: what it has done comes behind
    /// the Read that is not answered.
    pub(super) fn ends<'a>(&mut self, why: impl FnOnce() -> Option<&'a EndReason>, has_room: bool, now: Instant) {
        if !self.has_ended
            && let Some(reason) = why()
        {
            self.has_ended = true;
            self.ended = (has_room && *reason == EndReason::DataOwed).then_some(now);
        }
    }

    /// A session that ends because nothing else ends what an aborted task is owed has answered each function that
    /// waited for that: its end makes sure that nothing can land any more.
    pub(super) fn check(&self) -> Result<(), String> {
        let Some(ended) = self.ended else { return Ok(()) };
        match self.unanswered.iter().find(|(_, asked)| *asked + UNDER_WAY < ended) {
            Some((function, asked)) => Err(format!(
                "{function:?} of link {}, whose initiator owes data and hears, was not answered in {:?}",
                self.link,
                ended - *asked
            )),
            None => Ok(()),
        }
    }
}
