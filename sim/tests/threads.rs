//! Threads that take turns: one seed is one run.

use sim::threads::run;

#[test]
fn a_seed_is_one_run() {
    for seed in 0..24 {
        let (first, again) = (run(seed, false), run(seed, false));
        let (first, again) = (first.expect("it passes"), again.expect("it passes"));
        assert_eq!((first.hash, first.events), (again.hash, again.events), "seed {seed}");
        assert!(first.events > 10, "seed {seed} does something");
    }
}

#[test]
fn seeds_differ() {
    let hashes: std::collections::BTreeSet<u64> =
        (0..24).map(|seed| run(seed, false).expect("it passes").hash).collect();
    assert_eq!(hashes.len(), 24);
}
