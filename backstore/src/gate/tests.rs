use alloc::sync::Arc;
use core::sync::atomic::{AtomicI64, AtomicUsize};

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Count(AtomicUsize);

impl alloc::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn enter(gate: &WriteGate, access: Access, lba: u64, blocks: u64) -> GatePlace {
    gate.enter(access, Blocks::new(lba, blocks), Waker::noop())
}

#[test]
fn ranges_name_their_stripes() {
    assert_eq!(stripes(0, 0), 0);
    assert_eq!(stripes(0, 1), 1);
    assert_eq!(stripes(63, 2), 3);
    assert_eq!(stripes(63 * 64, 65), 1 << 63 | 1);
    assert_eq!(stripes(5, 64 * 64), u64::MAX);
    assert_eq!(stripes(u64::MAX, u64::MAX), 1 << 63);
}

/// Blocks 0 and 1, and 4096, lie in one stripe.
#[test]
fn whoever_writes_elsewhere_waits_for_nobody() {
    let gate = WriteGate::new();
    let lasting = enter(&gate, Access::Shared, 0, 1);
    let alone = enter(&gate, Access::Alone, 0, 1);
    assert!(!gate.has_passed(&alone));
    let elsewhere = [enter(&gate, Access::Alone, 1, 1), enter(&gate, Access::Shared, 4096, 64)];
    assert!(elsewhere.iter().all(|place| gate.has_passed(place)));
    assert!(gate.is_open(2, 4094) && !gate.is_open(0, 1));
    assert_eq!(gate.briefly(2, 100, || ()), Some(()));
    let left_behind = gate.leave_behind(lasting);
    gate.leave(alone);
    let behind = enter(&gate, Access::Shared, 0, 1);
    assert!(!gate.has_passed(&behind) && gate.briefly(0, 1, || ()).is_none());
    let far = enter(&gate, Access::Alone, 8192, 1);
    assert!(gate.has_passed(&far));
    elsewhere.into_iter().chain([far, behind, left_behind]).for_each(|place| gate.leave(place));
    assert!(gate.is_idle());
}

#[test]
fn several_ranges_are_one_place() {
    let gate = WriteGate::new();
    let unmap = gate.enter(Access::Shared, [(0, 8), (100, 8), (8192, 1)].into_iter().collect(), Waker::noop());
    let between = enter(&gate, Access::Alone, 8, 92);
    let within = enter(&gate, Access::Alone, 107, 1);
    assert!(gate.has_passed(&between) && !gate.has_passed(&within));
    let unmap = gate.leave_behind(unmap);
    assert!(gate.briefly(8192, 1, || ()).is_none() && gate.briefly(8193, 1, || ()).is_some());
    gate.leave(unmap);
    assert!(gate.has_passed(&within));
    gate.leave(within);
    gate.leave(between);
    assert!(gate.is_idle());
}

#[test]
fn one_alone_gets_its_turn_under_writers_without_end() {
    let gate = WriteGate::new();
    let mut writers: Vec<GatePlace> = (0..8).map(|lba| enter(&gate, Access::Shared, lba * 1000, 8)).collect();
    let wide = enter(&gate, Access::Alone, 0, 8000);
    let mut behind = Vec::new();
    for (lba, writer) in (0..8).zip(writers.drain(..)) {
        assert!(!gate.has_passed(&wide));
        // The next one comes before this one goes.
        assert!(gate.briefly(lba * 1000, 8, || ()).is_none());
        let next = enter(&gate, Access::Shared, lba * 1000, 8);
        assert!(!gate.has_passed(&next));
        behind.push(next);
        gate.leave(writer);
    }
    assert!(gate.has_passed(&wide));
    // Nor do those that are alone, one after the other, keep a writer out.
    let again = enter(&gate, Access::Alone, 0, 8000);
    gate.leave(wide);
    assert!(behind.iter().all(|place| gate.has_passed(place)) && !gate.has_passed(&again));
    behind.into_iter().for_each(|place| gate.leave(place));
    assert!(gate.has_passed(&again));
    gate.leave(again);
    assert!(gate.is_idle());
}

#[test]
fn one_alone_waits_for_copies_that_are_under_way_and_for_no_later_ones() {
    let gate = WriteGate::new();
    let count = Arc::new(Count::default());
    let mut alone = None;
    gate.briefly(0, 1, || {
        let place = gate.enter(Access::Alone, Blocks::new(0, 1), &Waker::from(count.clone()));
        assert!(!gate.has_passed(&place));
        // In the same stripe, and while the first one goes on.
        gate.briefly(1, 1, || ()).unwrap();
        assert!(gate.briefly(0, 1, || ()).is_none() && !gate.has_passed(&place));
        alone = Some(place);
    });
    assert_eq!(count.0.load(SeqCst), 1);
    gate.briefly(1, 1, || assert!(gate.has_passed(alone.as_ref().unwrap()))).unwrap();
    gate.leave(alone.unwrap());
    assert!(gate.is_idle());
}

#[test]
fn only_who_may_go_on_is_woken_and_once() {
    let gate = WriteGate::new();
    let (one, two) = (Arc::new(Count::default()), Arc::new(Count::default()));
    let writers = [enter(&gate, Access::Shared, 0, 1), enter(&gate, Access::Shared, 1, 1)];
    let first = gate.enter(Access::Alone, Blocks::new(0, 2), &Waker::from(one.clone()));
    let second = gate.enter(Access::Alone, Blocks::new(1, 2), &Waker::from(two.clone()));
    let woken = || (one.0.load(SeqCst), two.0.load(SeqCst));
    let mut seen = Vec::new();
    for place in writers.into_iter().chain([first, second]) {
        gate.leave(place);
        seen.push(woken());
    }
    assert_eq!(seen, [(0, 0), (1, 0), (1, 1), (1, 1)]);
}

/// What a model knows of a place.
struct Model {
    place: Option<GatePlace>,
    access: Access,
    lba: u64,
    blocks: u64,
    left_behind: bool,
}

impl Model {
    fn conflicts(&self, other: &Self) -> bool {
        let apart = self.lba + self.blocks <= other.lba || other.lba + other.blocks <= self.lba;
        !apart && (self.access == Access::Alone || other.access == Access::Alone || self.left_behind)
    }
}

proptest! {
    /// Whatever comes, passes and goes: who has passed is as an order of arrival has it.
    #[test]
    fn the_gate_is_what_its_rules_say(
        steps in prop::collection::vec((0u8..8, 0u64..10, 1u64..5, any::<prop::sample::Index>()), 1..80),
    ) {
        let gate = WriteGate::new();
        // In the order of arrival; who has passed never waits again.
        let mut there: Vec<(Model, bool)> = Vec::new();
        for (step, lba, blocks, which) in steps {
            // Some far off, in the same stripe.
            let lba = if lba > 7 { lba + 4096 } else { lba };
            match step {
                0..4 => {
                    let access = if step == 0 { Access::Alone } else { Access::Shared };
                    let place = Some(enter(&gate, access, lba, blocks));
                    there.push((Model { place, access, lba, blocks, left_behind: false }, false));
                }
                4 if !there.is_empty() => {
                    let at = which.index(there.len());
                    let (model, passed) = &mut there[at];
                    if *passed {
                        model.place = model.place.take().map(|place| gate.leave_behind(place));
                        model.left_behind = true;
                    }
                }
                5 => {
                    let open = !there.iter().any(|(other, _)| {
                        let apart = other.lba + other.blocks <= lba || lba + blocks <= other.lba;
                        !apart && (other.access == Access::Alone || other.left_behind)
                    });
                    prop_assert_eq!(gate.is_open(lba, blocks), open);
                    prop_assert_eq!(gate.briefly(lba, blocks, || ()).is_some(), open);
                }
                _ if !there.is_empty() => {
                    let at = which.index(there.len());
                    let (model, _) = there.remove(at);
                    gate.leave(model.place.unwrap());
                }
                _ => {}
            }
            for at in 0..there.len() {
                let waits = !there[at].1
                    && there.iter().enumerate().any(|(other_at, (other, passed))| {
                        other_at != at
                            && other.conflicts(&there[at].0)
                            && (other_at < at || *passed && other.left_behind)
                    });
                prop_assert_eq!(gate.has_passed(there[at].0.place.as_ref().unwrap()), !waits);
                there[at].1 |= !waits;
            }
        }
        there.into_iter().for_each(|(model, _)| gate.leave(model.place.unwrap()));
        prop_assert!(gate.is_idle());
    }
}

/// Threads that write, copy and are alone at 8 blocks and at 8 others of the same stripes: nobody is where another is
/// alone, everybody gets his turn, and nothing is left.
#[test]
fn nobody_is_where_another_thread_is_alone() {
    let gate = WriteGate::new();
    let blocks: Vec<AtomicI64> = (0..16).map(|_| AtomicI64::new(0)).collect();
    let at = |block: usize| if block < 8 { block as u64 } else { 4096 + block as u64 - 8 };
    let work = |thread: usize| {
        let mut seed = thread as u64 + 1;
        for _ in 0..3000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let first = (seed >> 33) as usize % 14;
            let len = if first < 8 { 2.min(8 - first) } else { 2 };
            let held = &blocks[first..first + len];
            let shared = || {
                for block in held {
                    assert!(block.fetch_add(1, SeqCst) >= 0, "somebody is alone here");
                }
                std::thread::yield_now();
                held.iter().for_each(|block| _ = block.fetch_sub(1, SeqCst));
            };
            match (seed >> 40) % 4 {
                0 => {
                    let place = enter(&gate, Access::Alone, at(first), len as u64);
                    while !gate.has_passed(&place) {
                        std::thread::yield_now();
                    }
                    for block in held {
                        assert_eq!(block.fetch_sub(1 << 32, SeqCst), 0, "somebody is here");
                    }
                    std::thread::yield_now();
                    held.iter().for_each(|block| _ = block.fetch_add(1 << 32, SeqCst));
                    gate.leave(place);
                }
                1 => {
                    let place = enter(&gate, Access::Shared, at(first), len as u64);
                    while !gate.has_passed(&place) {
                        std::thread::yield_now();
                    }
                    shared();
                    let place = if seed >> 62 == 0 { gate.leave_behind(place) } else { place };
                    gate.leave(place);
                }
                _ => _ = gate.briefly(at(first), len as u64, shared),
            }
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let work = &work;
            scope.spawn(move || work(thread));
        }
    });
    assert!(gate.is_idle());
}
