use alloc::vec;
use alloc::vec::Vec;

use super::*;

const CHANGE: Kind = Kind::Change { repeatable: true };
const COMPARE: Kind = Kind::Change { repeatable: false };

struct Rig {
    paths: Paths,
    now: Instant,
}

impl Rig {
    /// Paths that are up, to these portal groups.
    fn new(policy: PathPolicy, groups: &[u32]) -> Self {
        let config = MultipathConfig { policy, ..MultipathConfig::default() };
        let mut rig = Self { paths: Paths::new(config, groups.len(), Instant::ZERO), now: Instant::ZERO };
        rig.after(Duration::ZERO);
        for (path, group) in groups.iter().enumerate() {
            rig.opened(path, *group, Power::On);
        }
        rig
    }

    fn opened(&mut self, path: usize, group: u32, power: Power) -> Vec<Action> {
        let identity = Identity { serial: Some("A1".into()), block_size: 512, blocks: 1024, ..Identity::default() };
        let found = Found { identity, access: Access::Optimized, group: Some(group), power, volatile: true };
        self.paths.opened(path, found, self.now).unwrap();
        self.actions()
    }

    fn actions(&mut self) -> Vec<Action> {
        core::iter::from_fn(|| self.paths.poll()).collect()
    }

    fn after(&mut self, wait: Duration) -> Vec<Action> {
        self.now = self.now + wait;
        self.paths.handle_timeout(self.now);
        self.actions()
    }

    fn submit(&mut self, kind: Kind, blocks: Range<u64>) -> (u64, Vec<Action>) {
        let number = self.paths.submit(Operation { kind, blocks }, self.now);
        (number, self.actions())
    }

    /// Submits what goes by some path at once.
    fn by(&mut self, kind: Kind, blocks: Range<u64>) -> (u64, usize) {
        let (number, actions) = self.submit(kind, blocks);
        match actions[..] {
            [Action::Send { operation, path }] if operation == number => (number, path),
            _ => panic!("{actions:?}"),
        }
    }

    fn ended(&mut self, number: u64, outcome: Outcome) -> Vec<Action> {
        self.paths.ended(number, outcome, self.now);
        self.actions()
    }

    fn lost(&mut self, path: usize) -> Vec<Action> {
        self.paths.lost(path, self.now);
        self.actions()
    }
}

fn done(operation: u64) -> Action {
    Action::End { operation, verdict: Verdict::Done }
}

#[test]
fn ports_that_are_active_optimized_are_used_and_used_again_when_they_are_that_again() {
    let mut rig = Rig::new(PathPolicy::RoundRobin, &[1, 2]);
    rig.paths.told(1, Some(Access::NonOptimized), rig.now);
    for _ in 0..4 {
        let (read, path) = rig.by(Kind::Read, 0..8);
        assert_eq!((path, rig.ended(read, Outcome::Done)), (0, vec![done(read)]));
    }
    let (read, _) = rig.by(Kind::Read, 0..8);
    let again = rig.ended(read, Outcome::NotActive(Access::Standby));
    assert_eq!(again, [Action::Send { operation: read, path: 1 }], "no error while another port takes it");
    assert!(rig.after(Duration::from_secs(1)).contains(&Action::AskAccess { path: 0 }));
    rig.paths.told(0, Some(Access::Optimized), rig.now);
    assert_eq!(rig.by(Kind::Read, 0..8).1, 0);
    rig.paths.attention(0, AdditionalSense::ASYMMETRIC_ACCESS_STATE_CHANGED, rig.now);
    assert_eq!(rig.actions(), [Action::AskAccess { path: 0 }]);
}

#[test]
fn operations_are_spread_in_turn_or_by_what_is_under_way() {
    let mut rig = Rig::new(PathPolicy::RoundRobin, &[1, 2, 3]);
    let mut paths: Vec<usize> = (0..6).map(|_| rig.by(Kind::Read, 0..1).1).collect();
    paths.sort_unstable();
    assert_eq!(paths, [0, 0, 1, 1, 2, 2]);
    let mut rig = Rig::new(PathPolicy::LeastQueue, &[1, 2]);
    let (first, slow) = rig.by(Kind::Read, 0..1);
    for _ in 0..4 {
        let (read, path) = rig.by(Kind::Read, 0..1);
        assert_ne!(path, slow);
        rig.ended(read, Outcome::Done);
    }
    rig.ended(first, Outcome::Done);
    assert_eq!((rig.paths.under_way(0), rig.paths.under_way(1)), (0, 0));
}

#[test]
fn what_overlaps_a_write_on_a_lost_path_waits_for_a_login_with_its_isid() {
    let mut rig = Rig::new(PathPolicy::RoundRobin, &[1, 1]);
    let (write, path) = rig.by(CHANGE, 0..8);
    rig.lost(path);
    assert_eq!(rig.ended(write, Outcome::PathLost), [Action::Send { operation: write, path: 1 - path }]);
    assert_eq!(rig.ended(write, Outcome::Done), [done(write)]);
    let (later, nothing) = rig.submit(CHANGE, 7..9);
    assert_eq!(nothing, [], "the old one may land on it");
    let (beside, _) = rig.by(CHANGE, 9..10);
    rig.ended(beside, Outcome::Done);
    rig.after(Duration::from_millis(100));
    rig.paths.not_opened(path, Power::On, rig.now);
    let ended = rig.after(MultipathConfig::default().doubt);
    assert_eq!(ended, [Action::Reinstate { path, over: 1 - path }], "and no login of its own meanwhile");
    rig.paths.reinstated(path, true, rig.now);
    assert_eq!(rig.actions(), [Action::Send { operation: later, path: 1 - path }]);
}

#[test]
fn where_no_other_path_leads_to_the_portal_group_a_reset_ends_what_may_still_land() {
    let mut rig = Rig::new(PathPolicy::RoundRobin, &[1, 2, 3]);
    let (write, path) = rig.by(CHANGE, 0..8);
    let (_, idle) = rig.by(Kind::Read, 100..101);
    let (read, busy) = rig.by(Kind::Read, 100..101);
    assert_eq!((path, idle, busy), (0, 1, 2));
    rig.lost(path);
    rig.ended(write, Outcome::PathLost);
    rig.ended(write, Outcome::Done);
    let (later, nothing) = rig.submit(CHANGE, 0..8);
    assert_eq!(nothing, []);
    // It would end what is under way on others, too: that is waited for, and nothing new goes by them.
    let due = rig.after(MultipathConfig::default().doubt);
    assert!(!due.iter().any(|action| matches!(action, Action::Reset { .. })), "{due:?}");
    assert_eq!([rig.by(Kind::Read, 200..201).1, rig.by(Kind::Read, 200..201).1], [1, 1]);
    assert_eq!(rig.ended(read, Outcome::Done), [done(read), Action::Reset { over: 1 }]);
    rig.paths.reset_done(false, rig.now);
    assert!(!rig.actions().iter().any(|action| matches!(action, Action::Send { .. })), "it did not help");
    let due = rig.after(MultipathConfig::default().doubt);
    assert!(due.iter().any(|action| matches!(action, Action::Reset { .. })), "{due:?}");
    rig.paths.reset_done(true, rig.now);
    assert!(rig.actions().iter().any(|action| matches!(action, Action::Send { operation, .. } if *operation == later)));
}

#[test]
fn what_must_not_be_done_twice_is_not_sent_anew_and_holds_up_what_overlaps() {
    for outcome in [Outcome::PathLost, Outcome::NoAnswer { may_have_run: true }] {
        let mut rig = Rig::new(PathPolicy::RoundRobin, &[1, 2]);
        let (compare, _) = rig.by(COMPARE, 0..1);
        let told = Action::End { operation: compare, verdict: Verdict::AsTold };
        assert_eq!(rig.ended(compare, outcome), [told]);
        let (_, later) = rig.submit(CHANGE, 0..1);
        assert_eq!(later.is_empty(), outcome == Outcome::PathLost, "{later:?}");
        let mut rig = Rig::new(PathPolicy::RoundRobin, &[1, 2]);
        let (compare, path) = rig.by(COMPARE, 0..1);
        let again = rig.ended(compare, Outcome::NoAnswer { may_have_run: false });
        assert_eq!(again, [Action::Send { operation: compare, path: 1 - path }]);
        assert_eq!(rig.ended(compare, Outcome::NoAnswer { may_have_run: false }), [told], "no path is left");
    }
}

#[test]
fn what_one_path_acknowledged_and_another_tells_the_loss_of_is_lost() {
    let mut rig = Rig::new(PathPolicy::RoundRobin, &[1, 2]);
    let (write, path) = rig.by(CHANGE, 0..8);
    rig.ended(write, Outcome::Done);
    rig.lost(1 - path);
    let back = rig.opened(1 - path, 9, Power::WasOff);
    assert_eq!(back, [Action::Prove { path }]);
    let (read, nothing) = rig.submit(Kind::Read, 0..8);
    assert_eq!(nothing, [], "nobody knows whether it is there");
    let told = rig.lost(path);
    assert_eq!(told, [Action::End { operation: read, verdict: Verdict::LostWrites }]);
    assert_eq!((rig.paths.take_lost(rig.now), rig.paths.power_ons()), (vec![0..8; 1], 1));
    assert_eq!(rig.by(Kind::Read, 0..8).1, 1 - path);
}

#[test]
fn a_flush_after_one_that_failed_by_another_path_is_not_good() {
    let mut rig = Rig::new(PathPolicy::RoundRobin, &[1, 2]);
    let (write, _) = rig.by(CHANGE, 0..8);
    rig.ended(write, Outcome::Done);
    let (flush, path) = rig.by(Kind::Flush, 0..0);
    let failed = rig.ended(flush, Outcome::Failed { may_have_run: true });
    assert_eq!(failed, [Action::Clear { path }, Action::End { operation: flush, verdict: Verdict::AsTold }]);
    let (flush, other) = rig.by(Kind::Flush, 0..0);
    assert_eq!(other, 1 - path);
    let lost = Action::End { operation: flush, verdict: Verdict::LostWrites };
    assert_eq!(rig.ended(flush, Outcome::Done), [lost]);
    assert_eq!(rig.paths.take_lost(rig.now), vec![0..8; 1]);
}

#[test]
fn an_operation_ends_where_no_path_takes_it() {
    let mut rig = Rig::new(PathPolicy::RoundRobin, &[1]);
    let (read, _) = rig.by(Kind::Read, 0..8);
    // What the port tells of itself and what it does are two things.
    let limit = MultipathConfig::default().no_path;
    let begun = rig.now;
    loop {
        let actions = rig.ended(read, Outcome::NotActive(Access::Standby));
        assert_eq!(actions, []);
        let actions = rig.after(Duration::from_secs(1));
        let over = rig.now - begun >= limit;
        if actions.contains(&Action::End { operation: read, verdict: Verdict::NoPath }) {
            assert!(over);
            break;
        }
        assert!(!over && actions.contains(&Action::AskAccess { path: 0 }), "{actions:?}");
        rig.paths.told(0, Some(Access::Optimized), rig.now);
        assert_eq!(rig.actions(), [Action::Send { operation: read, path: 0 }]);
    }
}
