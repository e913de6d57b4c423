//! The order of writes that overlap, over all paths.
//!
//! A write waits for those before it that overlap it, and for what may still land of such that have ended for their
//! callers.

use alloc::vec::Vec;
use core::ops::Range;

use super::durability::Session;

/// What holds a write up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeldUp {
    /// An older write that is not done: it has limits of its own.
    Older,
    /// What may still land on a lost path.
    Doubt,
}

#[derive(Debug)]
struct Claim {
    number: u64,
    blocks: Range<u64>,
    /// Sessions, all of them lost, in which it may still be under way at the target.
    doubts: Vec<Session>,
    /// Its caller has its answer.
    over: bool,
}

/// What is being written, and what may still be, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Claims {
    list: Vec<Claim>,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Claims {
    /// A write in its turn; numbers grow.
    pub(super) fn enter(&mut self, number: u64, blocks: Range<u64>) {
        self.list.push(Claim { number, blocks, doubts: Vec::new(), over: false });
    }

    /// What holds a write up, if anything does.
    pub(super) fn holds_up(&self, number: u64) -> Option<HeldUp> {
        let at = self.list.iter().position(|claim| claim.number == number)?;
        let own = &self.list[at].blocks;
        let mut older = self.list[..at].iter().filter(|claim| overlap(&claim.blocks, own));
        let first = older.next()?;
        let doubtful = |claim: &Claim| !claim.doubts.is_empty();
        Some(if doubtful(first) || older.any(doubtful) { HeldUp::Doubt } else { HeldUp::Older })
    }

    /// A write was under way in a session that is lost.
    pub(super) fn doubt(&mut self, number: u64, session: Session) {
        if let Some(claim) = self.list.iter_mut().find(|claim| claim.number == number)
            && !claim.doubts.contains(&session)
        {
            claim.doubts.push(session);
        }
    }

    /// The target had answered a write before its session was lost.
    pub(super) fn settled(&mut self, number: u64, session: Session) {
        if let Some(claim) = self.list.iter_mut().find(|claim| claim.number == number) {
            claim.doubts.retain(|other| *other != session);
        }
    }

    /// The target has ended what was under way in all sessions of a path that are lost.
    pub(super) fn resolve(&mut self, path: usize) {
        self.list.iter_mut().for_each(|claim| claim.doubts.retain(|(other, _)| *other != path));
        self.list.retain(|claim| !claim.over || !claim.doubts.is_empty());
    }

    /// Whether something may still be under way on a path.
    pub(super) fn is_in_doubt(&self, path: usize) -> bool {
        self.list.iter().any(|claim| claim.doubts.iter().any(|(other, _)| *other == path))
    }

    /// A write has ended for its caller.
    pub(super) fn leave(&mut self, number: u64) {
        let Some(at) = self.list.iter().position(|claim| claim.number == number) else { return };
        if self.list[at].doubts.is_empty() {
            self.list.remove(at);
        } else {
            self.list[at].over = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_waits_for_what_came_before_and_for_what_may_still_be_carried_out() {
        let mut claims = Claims::default();
        claims.enter(0, 0..8);
        claims.enter(1, 7..9);
        claims.enter(2, 9..10);
        assert_eq!([0, 1, 2].map(|number| claims.holds_up(number)), [None, Some(HeldUp::Older), None]);
        claims.doubt(0, (1, 1));
        claims.leave(0);
        assert!(claims.is_in_doubt(1) && claims.holds_up(1) == Some(HeldUp::Doubt), "the target may still write it");
        claims.resolve(0);
        assert_eq!(claims.holds_up(1), Some(HeldUp::Doubt), "that was another path");
        claims.resolve(1);
        assert!(claims.holds_up(1).is_none() && !claims.is_in_doubt(1));
        claims.leave(1);
        claims.leave(2);
        assert!(claims.list.is_empty());
    }

    #[test]
    fn an_answer_by_the_path_that_was_lost_ends_the_doubt() {
        let mut claims = Claims::default();
        claims.enter(3, 0..8);
        claims.doubt(3, (0, 1));
        claims.settled(3, (0, 1));
        claims.leave(3);
        claims.enter(4, 0..1);
        assert!(claims.holds_up(4).is_none());
    }
}
