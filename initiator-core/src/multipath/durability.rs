//! What the disk acknowledged and may lose, over all paths.
//!
//! No session sees it whole: what was acknowledged by one may be flushed by another, and a power-on may be told by one
//! before the others are found dead. What was acknowledged is kept by the session that brought the acknowledgement, and
//! by none once that has ended (an orphan).
//!
//! A power-on that a path tells when it logs in came before that login, and ended all sessions of the target. What has
//! no session any more is lost. A session that seems to be up may have ended with the power too: until it has proved
//! that it answers, nothing is read, written or flushed, for nobody knows whether what it acknowledged is there. If it
//! answers, it began after the power-on, or belongs to a controller that kept its power; if it is lost, what it
//! acknowledged is too.
//!
//! A flush that fails may have lost what it covers (see the session's `guard`): none is good by any path until all that
//! is written anew, or somebody has taken note of it.

use alloc::vec::Vec;
use core::mem::take;
use core::ops::Range;

use backstore::BlockRanges;

/// A session of a path: the path, and how often that had been up before.
pub(super) type Session = (usize, u64);

#[derive(Debug, Default)]
struct Kept {
    /// How often the path has been up.
    epoch: u64,
    up: bool,
    written: BlockRanges,
    /// A power-on was told by another path since it last proved that it answers.
    unproven: bool,
}

#[derive(Debug)]
struct Flush {
    number: u64,
    covers: Vec<(Option<Session>, BlockRanges)>,
}

#[derive(Debug, Default)]
pub(super) struct Durability {
    paths: Vec<Kept>,
    orphans: BlockRanges,
    flushing: Vec<Flush>,
    lost: BlockRanges,
    /// What may be lost with a flush that failed.
    unsure: BlockRanges,
    /// Operations with a smaller number may have been carried out before the last flush that failed.
    failed_at: u64,
}

impl Durability {
    pub(super) fn new(paths: usize) -> Self {
        Self { paths: (0..paths).map(|_| Kept::default()).collect(), ..Self::default() }
    }

    /// A path is up.
    pub(super) fn up(&mut self, path: usize, epoch: u64) {
        self.paths[path] = Kept { epoch, up: true, ..Kept::default() };
    }

    /// A path is lost.
    pub(super) fn down(&mut self, path: usize) {
        let Kept { epoch, written, unproven, .. } = take(&mut self.paths[path]);
        self.paths[path].epoch = epoch;
        if !unproven {
            return self.orphans.extend(written);
        }
        self.lost.extend(written);
        self.lose_covered(|session| session == Some((path, epoch)));
    }

    fn lose_covered(&mut self, is: impl Fn(Option<Session>) -> bool) {
        for (session, ranges) in self.flushing.iter_mut().flat_map(|flush| &mut flush.covers) {
            if is(*session) {
                self.lost.extend(take(ranges));
            }
        }
    }

    /// Whether a session is up.
    fn is_current(&self, (path, epoch): Session) -> bool {
        self.paths[path].up && self.paths[path].epoch == epoch
    }

    /// The power was off before the session of a path began, or (`within`) during it.
    pub(super) fn power_was_off(&mut self, path: usize, within: bool) {
        self.lost.extend(take(&mut self.orphans));
        let up = (0..).zip(&self.paths).filter(|(_, kept)| kept.up);
        let up: Vec<Session> = up.map(|(path, kept)| (path, kept.epoch)).collect();
        self.lose_covered(|session| session.is_none_or(|session| !up.contains(&session)));
        if within {
            self.lost.extend(take(&mut self.paths[path].written));
            let own = (path, self.paths[path].epoch);
            self.lose_covered(|session| session == Some(own));
        }
        for other in (0..self.paths.len()).filter(|other| *other != path) {
            self.paths[other].unproven |= self.holds(other);
        }
    }

    /// Whether a session that is up brought acknowledgements of what is not flushed.
    fn holds(&self, path: usize) -> bool {
        let own = Some((path, self.paths[path].epoch));
        let covered =
            |flush: &Flush| flush.covers.iter().any(|(session, ranges)| *session == own && !ranges.is_empty());
        !self.paths[path].written.is_empty() || self.flushing.iter().any(covered)
    }

    /// The session of a path has answered since the power-on was told.
    pub(super) fn proved(&mut self, path: usize) {
        self.paths[path].unproven = false;
    }

    pub(super) fn is_unproven(&self, path: usize) -> bool {
        self.paths[path].unproven
    }

    /// Whether a path has to prove that it answers before anything goes on.
    pub(super) fn is_unsure_of_a_path(&self) -> bool {
        self.paths.iter().any(|kept| kept.unproven)
    }

    pub(super) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Blocks were acknowledged by a path, for an operation of this number.
    pub(super) fn acknowledged(&mut self, session: Session, blocks: Range<u64>, number: u64) {
        if number < self.failed_at {
            return self.unsure.add(blocks);
        }
        self.unsure.remove(&blocks);
        if self.is_current(session) {
            self.paths[session.0].written.add(blocks);
        } else {
            self.orphans.add(blocks);
        }
    }

    /// A flush is sent: it covers what was acknowledged before.
    pub(super) fn flush_sent(&mut self, number: u64) {
        let mut covers: Vec<_> = (0..)
            .zip(&mut self.paths)
            .map(|(path, kept)| (Some((path, kept.epoch)), take(&mut kept.written)))
            .filter(|(_, ranges)| !ranges.is_empty())
            .collect();
        covers.push((None, take(&mut self.orphans)));
        self.flushing.push(Flush { number, covers });
    }

    fn take_flush(&mut self, number: u64) -> Vec<(Option<Session>, BlockRanges)> {
        let at = self.flushing.iter().position(|flush| flush.number == number);
        at.map(|at| self.flushing.remove(at).covers).unwrap_or_default()
    }

    fn give_back(&mut self, session: Option<Session>, ranges: BlockRanges) {
        match session {
            Some(session) if self.is_current(session) => self.paths[session.0].written.extend(ranges),
            _ => self.orphans.extend(ranges),
        }
    }

    /// A flush was answered well by a path. False when it does not cover all that it was to: it is to be sent again.
    pub(super) fn flushed(&mut self, number: u64, by: usize) -> bool {
        let mut whole = true;
        for (session, ranges) in self.take_flush(number) {
            // What a session acknowledged that may have ended with the power was not there any more, perhaps.
            if let Some((path, epoch)) = session
                && path != by
                && self.is_current((path, epoch))
                && self.paths[path].unproven
                && !ranges.is_empty()
            {
                whole = false;
                self.paths[path].written.extend(ranges);
            }
        }
        whole
    }

    /// A flush was not carried out: what it was to cover is as it was before.
    pub(super) fn not_flushed(&mut self, number: u64) {
        for (session, ranges) in self.take_flush(number) {
            self.give_back(session, ranges);
        }
    }

    /// A flush failed; `next` is the number of the next operation. An error may be told to one of several flushes only,
    /// and what was written while it was under way may have gone with the rest.
    pub(super) fn flush_failed(&mut self, next: u64) {
        for (_, ranges) in self.flushing.iter_mut().flat_map(|flush| &mut flush.covers) {
            self.unsure.extend(take(ranges));
        }
        self.unsure.extend(take(&mut self.orphans));
        for kept in &mut self.paths {
            self.unsure.extend(take(&mut kept.written));
        }
        self.failed_at = next;
    }

    /// Whether a flush that was good may be called so.
    pub(super) fn may_call_flushed(&self) -> bool {
        self.lost.is_empty() && self.unsure.is_empty()
    }

    /// What is lost, as ranges of blocks: whoever asks takes note of it.
    pub(super) fn take_lost(&mut self) -> Vec<Range<u64>> {
        let mut lost = take(&mut self.lost);
        lost.extend(take(&mut self.unsure));
        lost.into_vec()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn two_up() -> Durability {
        let mut durability = Durability::new(2);
        durability.up(0, 1);
        durability.up(1, 1);
        durability
    }

    #[test]
    fn a_power_on_loses_what_has_no_session_any_more_and_what_a_dead_one_acknowledged() {
        let mut durability = two_up();
        durability.acknowledged((0, 1), 0..4, 0);
        durability.acknowledged((1, 1), 8..9, 1);
        durability.down(0);
        durability.up(0, 2);
        durability.power_was_off(0, false);
        assert!(durability.has_lost() && durability.is_unproven(1));
        assert_eq!(durability.take_lost(), vec![0..4; 1]);
        durability.flush_sent(2);
        assert!(!durability.flushed(2, 0), "the other path may have ended with the power");
        durability.down(1);
        assert_eq!(durability.take_lost(), vec![8..9; 1]);
    }

    #[test]
    fn a_path_that_answers_has_kept_what_it_acknowledged() {
        let mut durability = two_up();
        durability.acknowledged((1, 1), 8..9, 1);
        durability.power_was_off(0, false);
        assert!(durability.is_unsure_of_a_path());
        durability.proved(1);
        durability.down(1);
        assert!(!durability.has_lost() && !durability.is_unsure_of_a_path());
        durability.power_was_off(0, false);
        assert_eq!(durability.take_lost(), vec![8..9; 1], "nobody can prove anything of it any more");
    }

    #[test]
    fn a_flush_by_one_path_covers_what_all_acknowledged_before_it() {
        let mut durability = two_up();
        durability.acknowledged((0, 1), 0..4, 0);
        durability.down(0);
        durability.acknowledged((1, 1), 8..9, 1);
        durability.flush_sent(2);
        durability.acknowledged((1, 1), 20..21, 3);
        assert!(durability.flushed(2, 1));
        durability.power_was_off(1, true);
        assert_eq!(durability.take_lost(), vec![20..21; 1]);
        durability.acknowledged((1, 1), 5..6, 4);
        durability.flush_sent(5);
        durability.not_flushed(5);
        durability.power_was_off(1, true);
        assert_eq!(durability.take_lost(), vec![5..6; 1]);
    }

    #[test]
    fn no_flush_is_good_by_any_path_after_one_that_failed() {
        let mut durability = two_up();
        durability.acknowledged((0, 1), 0..4, 0);
        durability.flush_sent(1);
        durability.flush_failed(2);
        durability.not_flushed(1);
        durability.flush_sent(2);
        assert!(durability.flushed(2, 1) && !durability.may_call_flushed());
        durability.acknowledged((1, 1), 0..4, 1);
        assert!(!durability.may_call_flushed(), "it may have been carried out before");
        durability.acknowledged((1, 1), 0..4, 3);
        assert!(durability.may_call_flushed());
    }
}
