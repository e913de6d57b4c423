//! What the session knows of its disks, and must be sure of before it sends them anything: that each is still the disk
//! that was opened, and still has what it acknowledged.
//!
//! A [`Guard`] stands before the commands that name it ([`Command::guard`](crate::command::Command::guard)). After each
//! new login they wait until the unit has told its names, its size and its block length anew (`probe`). A unit that is
//! another one gets none of them. A unit with a volatile cache that says that its power was off has lost what it
//! acknowledged and did not flush; they fail until somebody has taken note of it.
//!
//! A flush that fails has lost the same, or may have: an operating system below the unit may drop what it could not
//! write, and call the next flush good (Linux does: the pages are clean after the error, and `fsync` tells it once). So
//! no later flush is good until what may be lost is written anew, or somebody has taken note of it. Reads and writes go
//! on meanwhile. The same holds after a new login to a unit that tells everybody of a power-on or a reset, whether there
//! was one or not.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem::take;
use core::ops::Range;

use backstore::BlockRanges;
use scsi_proto::Lun;

use crate::command::Failure;
use crate::identity::Identity;

/// How a unit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is the one that was opened.
    Known,
    /// It is to be asked who it is, once a command waits for it.
    Unknown,
    /// It is being asked.
    Asking,
    /// It is another one.
    Other,
}

#[derive(Debug)]
pub(super) struct Guard {
    number: u32,
    pub(super) lun: Lun,
    /// What was opened.
    pub(super) expected: Identity,
    /// What the unit has told so far.
    pub(super) found: Identity,
    pub(super) standing: Standing,
    /// The unit has told of a change: it is asked though no command waits.
    changed: bool,
    users: u32,
    /// Whether what it acknowledges may be lost with its power.
    volatile: bool,
    /// What it acknowledged since the last flush was sent.
    written: BlockRanges,
    /// What it acknowledged before each flush that is under way, by the flush's issue number.
    flushing: VecDeque<(u64, BlockRanges)>,
    /// What it has lost.
    lost: BlockRanges,
    /// What it may have lost with a flush that failed, or with its power.
    unsure: BlockRanges,
    /// Commands that were handed over before this one may have been carried out before the last flush that failed.
    failed_at: u64,
}

/// How a flush ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    /// What it covers is durable.
    Good,
    /// It was not carried out.
    NotRun,
    /// The unit could not make durable what it covers.
    Failed,
}

/// All guards of a session. A number stands for one guard only: what is still said of one that is gone, by commands or
/// by what its application keeps of it, is not taken for another's.
#[derive(Debug, Default)]
pub(super) struct Guards {
    /// In the order of their numbers.
    list: Vec<Guard>,
    /// The number of the next guard, unless one that is still there has it.
    next: u32,
    /// Guards that let nothing pass, or not everything: none in most of a session's life.
    open: usize,
    /// Units that have told of a power-on or a reset when nothing was written yet.
    greeting: Vec<Lun>,
}

impl Guards {
    /// A handle on a unit, as it was found under a login. `current`: the connection is still that of this login.
    pub(super) fn add(&mut self, lun: Lun, identity: Identity, volatile: bool, current: bool) -> u32 {
        let same = |guard: &Guard| guard.lun == lun && guard.expected == identity && guard.standing != Standing::Other;
        if let Some((number, guard)) = self.iter_mut().find(|(_, guard)| same(guard)) {
            guard.users += 1;
            return number;
        }
        let standing = if current { Standing::Known } else { Standing::Unknown };
        let number = self.free_number();
        let guard = Guard {
            number,
            lun,
            expected: identity,
            found: Identity::default(),
            standing,
            changed: false,
            users: 1,
            volatile,
            written: BlockRanges::default(),
            flushing: VecDeque::new(),
            lost: BlockRanges::default(),
            unsure: BlockRanges::default(),
            failed_at: 0,
        };
        let place = self.list.partition_point(|other| other.number < number);
        self.list.insert(place, guard);
        self.count();
        number
    }

    /// A number that no guard has, and none had for the longest time.
    fn free_number(&mut self) -> u32 {
        loop {
            let number = self.next;
            self.next = number.wrapping_add(1);
            if self.place(number).is_none() {
                return number;
            }
        }
    }

    #[inline]
    fn place(&self, number: u32) -> Option<usize> {
        self.list.binary_search_by_key(&number, |guard| guard.number).ok()
    }

    /// A handle is gone.
    pub(super) fn remove(&mut self, number: u32) {
        let Some(place) = self.place(number) else { return };
        self.list[place].users -= 1;
        if self.list[place].users == 0 {
            self.list.remove(place);
        }
        self.count();
    }

    fn count(&mut self) {
        let open = |guard: &Guard| guard.standing != Standing::Known || !guard.lost.is_empty();
        self.open = self.list.iter().filter(|guard| open(guard)).count();
    }

    pub(super) fn get(&self, number: u32) -> Option<&Guard> {
        self.place(number).map(|place| &self.list[place])
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Guard> {
        let place = self.place(number)?;
        self.list.get_mut(place)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Guard)> {
        self.list.iter_mut().map(|guard| (guard.number, guard))
    }

    /// Whether every guard lets everything pass.
    #[inline]
    pub(super) fn are_content(&self) -> bool {
        self.open == 0
    }

    /// Whether a unit is being asked.
    pub(super) fn are_asked(&self) -> bool {
        self.list.iter().any(|guard| guard.standing == Standing::Asking)
    }

    /// Whether a command may be sent now, as far as its guard goes.
    #[inline]
    pub(super) fn lets_pass(&self, guard: Option<u32>) -> bool {
        self.open == 0
            || guard.and_then(|number| self.get(number)).is_none_or(|guard| guard.standing == Standing::Known)
    }

    /// Why a command is not to be sent at all.
    pub(super) fn refuses(&self, guard: Option<u32>, replay: bool) -> Option<Failure> {
        let guard = guard.filter(|_| self.open > 0).and_then(|number| self.get(number))?;
        if guard.standing == Standing::Other {
            return Some(Failure::OtherDisk);
        }
        (!guard.lost.is_empty() && !replay).then_some(Failure::LostWrites)
    }

    pub(super) fn set(&mut self, number: u32, standing: Standing) {
        if let Some(guard) = self.get_mut(number) {
            guard.changed &= standing == Standing::Unknown;
            guard.standing = standing;
        }
        self.count();
    }

    /// A new connection stands: nothing is known of any unit. One that was another one stays that.
    pub(super) fn reconnected(&mut self) {
        self.doubt(None);
    }

    /// A unit (all of them, for `None`) says that it may not be what it was.
    pub(super) fn doubt(&mut self, lun: Option<Lun>) {
        for guard in &mut self.list {
            if lun.is_none_or(|lun| lun == guard.lun) && guard.standing == Standing::Known {
                guard.standing = Standing::Unknown;
            }
        }
        self.count();
    }

    /// A unit (any of them, for `None`) tells that it has changed.
    pub(super) fn changed(&mut self, lun: Option<Lun>) {
        self.doubt(lun);
        for guard in &mut self.list {
            guard.changed |= lun.is_none_or(|lun| lun == guard.lun) && guard.standing == Standing::Unknown;
        }
    }

    /// A unit that is to be asked because it told of a change.
    pub(super) fn to_ask(&self) -> Option<u32> {
        let is_next = |guard: &Guard| guard.changed && guard.standing == Standing::Unknown;
        self.list.iter().find(|guard| is_next(guard)).map(|guard| guard.number)
    }

    /// The questions under way were lost with their connection.
    pub(super) fn disconnected(&mut self) {
        for guard in &mut self.list {
            if guard.standing == Standing::Asking {
                guard.standing = Standing::Unknown;
            }
        }
        self.count();
    }

    /// The unit acknowledged blocks that it may hold in a volatile cache, with a command of this issue number.
    #[inline]
    pub(super) fn acknowledged(&mut self, guard: u32, blocks: Range<u64>, issue: u64) {
        let Some(guard) = self.get_mut(guard).filter(|guard| guard.volatile) else { return };
        if issue < guard.failed_at {
            guard.unsure.add(blocks);
        } else {
            guard.unsure.remove(&blocks);
            guard.written.add(blocks);
        }
    }

    /// A flush of the whole unit is sent: it covers what was acknowledged before.
    pub(super) fn flush_sent(&mut self, guard: Option<u32>, issue: u64) {
        let Some(guard) = guard.and_then(|number| self.get_mut(number)) else { return };
        let written = take(&mut guard.written);
        match guard.flushing.iter_mut().find(|(other, _)| *other == issue) {
            // It is sent again.
            Some((_, ranges)) => ranges.extend(written),
            None => guard.flushing.push_back((issue, written)),
        }
    }

    /// A flush has ended: what it covers is durable, or as it was before, or may be lost. `issued`: the number of the
    /// next command. False when it says good for what is lost.
    pub(super) fn flush_done(&mut self, guard: u32, issue: u64, end: Flushed, issued: u64) -> bool {
        let Some(guard) = self.get_mut(guard) else { return true };
        let at = guard.flushing.iter().position(|(other, _)| *other == issue);
        match (end, at) {
            // What flushes that were sent before it cover, it covers too.
            (Flushed::Good, Some(at)) => {
                guard.flushing.iter_mut().take(at).for_each(|(_, ranges)| drop(take(ranges)));
                guard.flushing.remove(at);
            }
            // All that it covers is lost, or may be, since it was sent.
            (Flushed::Good, None) => return false,
            (Flushed::NotRun, Some(at)) => {
                if let Some((_, ranges)) = guard.flushing.remove(at) {
                    match guard.flushing.get_mut(at) {
                        Some((_, next)) => next.extend(ranges),
                        None => guard.written.extend(ranges),
                    }
                }
            }
            (Flushed::NotRun, None) => {}
            // An error may be told to one of several flushes only, and what was written while it was under way may
            // have gone with the rest.
            (Flushed::Failed, _) => {
                guard.flushing.drain(..).for_each(|(_, ranges)| guard.unsure.extend(ranges));
                guard.unsure.extend(take(&mut guard.written));
                guard.failed_at = issued;
            }
        }
        guard.unsure.is_empty()
    }

    /// Whether a unit that tells of a power-on or a reset (29h/00h) does so whenever somebody logs in: it has done so
    /// before, when this session had written nothing that could be lost.
    pub(super) fn is_greeting(&mut self, lun: Lun) -> bool {
        if self.greeting.contains(&lun) {
            return true;
        }
        let holds = |guard: &Guard| guard.lun == lun && (!guard.written.is_empty() || !guard.flushing.is_empty());
        let greets = !self.list.iter().any(holds);
        if greets {
            self.greeting.push(lun);
        }
        greets
    }

    /// A unit tells that it could not keep something that it acknowledged. `issued`: the number of the next command.
    /// Gives the guards that may have lost something.
    pub(super) fn writes_failed(&mut self, lun: Lun, issued: u64) -> Vec<u32> {
        let losing = self.power_may_have_been_off(lun);
        for number in &losing {
            if let Some(guard) = self.get_mut(*number) {
                guard.failed_at = issued;
            }
        }
        losing
    }

    /// A unit's power may have been off. Gives the guards that may have lost something.
    pub(super) fn power_may_have_been_off(&mut self, lun: Lun) -> Vec<u32> {
        let mut losing = Vec::new();
        for (number, guard) in self.iter_mut().filter(|(_, guard)| guard.lun == lun) {
            let mut doubtful = take(&mut guard.written);
            guard.flushing.drain(..).for_each(|(_, ranges)| doubtful.extend(ranges));
            if !doubtful.is_empty() {
                guard.unsure.extend(doubtful);
                losing.push(number);
            }
        }
        losing
    }

    /// A unit's power was off. Gives the guards that have lost something.
    pub(super) fn power_was_off(&mut self, lun: Lun) -> Vec<u32> {
        let mut losing = Vec::new();
        for (number, guard) in self.iter_mut().filter(|(_, guard)| guard.lun == lun) {
            let mut lost = take(&mut guard.written);
            guard.flushing.drain(..).for_each(|(_, ranges)| lost.extend(ranges));
            if !lost.is_empty() {
                guard.lost.extend(lost);
                losing.push(number);
            }
        }
        self.count();
        losing
    }

    /// Blocks were written anew that the unit had lost.
    pub(super) fn replayed(&mut self, guard: u32, blocks: &Range<u64>) {
        if let Some(guard) = self.get_mut(guard) {
            guard.lost.remove(blocks);
        }
        self.count();
    }

    /// What a unit has lost, as ranges of blocks.
    pub(super) fn lost(&self, number: u32) -> Vec<Range<u64>> {
        let Some(guard) = self.get(number) else { return Vec::new() };
        let mut lost = guard.lost.clone();
        lost.extend(guard.unsure.clone());
        lost.into_vec()
    }

    /// What a unit has lost, as ranges of blocks: whoever asks takes note of it, and commands pass again.
    pub(super) fn take_lost(&mut self, number: u32) -> Vec<Range<u64>> {
        let lost = self.get_mut(number).map(|guard| {
            let mut lost = take(&mut guard.lost);
            lost.extend(take(&mut guard.unsure));
            lost.into_vec()
        });
        self.count();
        lost.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn guards() -> Guards {
        let mut guards = Guards::default();
        assert_eq!(guards.add(Lun::ZERO, Identity::default(), true, true), 0);
        guards
    }

    fn lost(guards: &mut Guards) -> Vec<Range<u64>> {
        guards.power_was_off(Lun::ZERO);
        guards.take_lost(0)
    }

    #[test]
    fn a_flush_covers_what_was_acknowledged_before_it_was_sent() {
        let mut guards = guards();
        guards.acknowledged(0, 0..4, 6);
        guards.flush_sent(Some(0), 7);
        guards.acknowledged(0, 8..9, 8);
        assert!(guards.flush_done(0, 7, Flushed::Good, 9));
        assert_eq!(lost(&mut guards), vec![8..9; 1]);
    }

    #[test]
    fn flushes_are_good_in_whatever_order_they_end() {
        let mut guards = guards();
        guards.acknowledged(0, 0..4, 6);
        guards.flush_sent(Some(0), 7);
        guards.acknowledged(0, 8..9, 8);
        guards.flush_sent(Some(0), 9);
        assert!(guards.flush_done(0, 9, Flushed::Good, 10));
        assert!(guards.flush_done(0, 7, Flushed::Good, 10));
        assert!(lost(&mut guards).is_empty());
    }

    #[test]
    fn a_flush_that_was_not_carried_out_covers_nothing_and_a_later_one_its_part_too() {
        let mut guards = guards();
        guards.acknowledged(0, 0..4, 0);
        guards.flush_sent(Some(0), 1);
        guards.acknowledged(0, 8..9, 1);
        guards.flush_sent(Some(0), 2);
        guards.flush_done(0, 1, Flushed::NotRun, 3);
        guards.power_was_off(Lun::ZERO);
        assert_eq!(guards.refuses(Some(0), false), Some(Failure::LostWrites));
        assert_eq!(guards.take_lost(0), [0..4, 8..9]);
        assert_eq!(guards.refuses(Some(0), false), None);
        assert!(!guards.flush_done(0, 2, Flushed::Good, 3), "what it covers was lost meanwhile");

        guards.acknowledged(0, 0..4, 2);
        guards.flush_sent(Some(0), 3);
        guards.flush_sent(Some(0), 4);
        guards.flush_done(0, 3, Flushed::NotRun, 5);
        assert!(guards.flush_done(0, 4, Flushed::Good, 5));
        assert_eq!(lost(&mut guards), []);
        guards.acknowledged(0, 0..4, 4);
        guards.flush_sent(Some(0), 5);
        guards.flush_done(0, 5, Flushed::NotRun, 6);
        assert_eq!(lost(&mut guards), vec![0..4; 1]);
    }

    #[test]
    fn no_flush_is_good_after_one_that_failed_until_all_is_written_anew_or_taken_note_of() {
        let mut guards = guards();
        let flush = |guards: &mut Guards, issue, end| {
            guards.flush_sent(Some(0), issue);
            guards.flush_done(0, issue, end, issue + 1)
        };
        guards.acknowledged(0, 0..4, 0);
        // One that is under way meanwhile may be told nothing of the error.
        guards.flush_sent(Some(0), 2);
        assert!(!flush(&mut guards, 4, Flushed::Failed));
        assert!(!guards.flush_done(0, 2, Flushed::Good, 5));
        // It was handed over before the failure was known: nobody knows when it was carried out.
        guards.acknowledged(0, 8..10, 3);
        assert_eq!(guards.refuses(Some(0), false), None, "reads and writes go on");
        guards.acknowledged(0, 0..3, 5);
        guards.acknowledged(0, 8..10, 6);
        assert!(!flush(&mut guards, 7, Flushed::Good), "block 3 was not written anew");
        guards.acknowledged(0, 2..5, 8);
        assert!(flush(&mut guards, 9, Flushed::Good));
        guards.acknowledged(0, 20..22, 10);
        assert!(!flush(&mut guards, 11, Flushed::Failed));
        assert_eq!(guards.take_lost(0), vec![20..22; 1]);
        assert!(flush(&mut guards, 12, Flushed::Good));
    }

    #[test]
    fn what_is_written_anew_passes_and_is_lost_no_more() {
        let mut guards = guards();
        guards.acknowledged(0, 0..8, 0);
        guards.power_was_off(Lun::ZERO);
        assert_eq!(guards.refuses(Some(0), false), Some(Failure::LostWrites));
        assert_eq!(guards.refuses(Some(0), true), None);
        assert_eq!(guards.lost(0), vec![0..8; 1]);
        guards.replayed(0, &(0..6));
        assert_eq!((guards.lost(0), guards.refuses(Some(0), false)), (vec![6..8; 1], Some(Failure::LostWrites)));
        guards.replayed(0, &(6..8));
        assert!(guards.refuses(Some(0), false).is_none() && guards.are_content());
        guards.set(0, Standing::Other);
        assert_eq!(guards.refuses(Some(0), true), Some(Failure::OtherDisk));
    }

    #[test]
    fn handles_of_one_disk_share_a_guard_and_another_disk_gets_its_own() {
        let mut guards = guards();
        assert_eq!(guards.add(Lun::ZERO, Identity::default(), true, true), 0);
        let larger = Identity { blocks: 9, ..Identity::default() };
        assert_eq!(guards.add(Lun::ZERO, larger, true, true), 1);
        guards.set(0, Standing::Other);
        assert_eq!(guards.refuses(Some(0), false), Some(Failure::OtherDisk));
        assert_eq!(guards.refuses(Some(1), false), None);
        guards.remove(0);
        guards.remove(0);
        assert!(guards.are_content() && guards.get(0).is_none());
        assert_eq!(guards.add(Lun::ZERO, Identity::default(), true, false), 2, "nobody had this number");
        assert!(!guards.lets_pass(Some(2)) && guards.lets_pass(Some(1)) && guards.lets_pass(None));
        // What comes for the one that is gone is nobody's.
        guards.acknowledged(0, 0..8, 0);
        assert!(guards.flush_done(0, 1, Flushed::Failed, 2));
        assert_eq!(guards.power_was_off(Lun::ZERO), []);
    }

    #[test]
    fn numbers_begin_again_only_after_the_largest_and_pass_those_that_are_taken() {
        let mut guards = guards();
        guards.next = u32::MAX;
        let of = |blocks| Identity { blocks, ..Identity::default() };
        let numbers = [1, 2, 3].map(|blocks| guards.add(Lun::ZERO, of(blocks), true, true));
        assert_eq!(numbers, [u32::MAX, 1, 2]);
        let blocks = |number| guards.get(number).map(|guard| guard.expected.blocks);
        assert_eq!([0, u32::MAX, 1, 2].map(blocks), [Some(0), Some(1), Some(2), Some(3)]);
    }
}
