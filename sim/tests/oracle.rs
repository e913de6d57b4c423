//! The simulator can fail, and a seed is a whole run.

use sim::store::Door;
use sim::{Scenario, Transport, run, run_seed};

/// A scenario of a calm world, in which nothing goes wrong by itself.
fn calm(seed: u64) -> Scenario {
    let mut scenario = Scenario::new(seed);
    scenario.weather.cuts = 0;
    scenario.weather.flips = 0;
    scenario.weather.refused = 0;
    scenario.store.door = Door::Queue;
    scenario.mangled = None;
    scenario.hostile = 0;
    for session in &mut scenario.sessions {
        session.work.operations = 60;
        session.work.functions = 0;
        session.work.reads = 500;
    }
    scenario
}

#[test]
fn one_seed_is_one_run() {
    for seed in [1, 2, 3, 17, 42, 99] {
        let (first, second) =
            (run_seed(seed, Transport::Tcp, false).unwrap(), run_seed(seed, Transport::Tcp, false).unwrap());
        assert!(first.events > 0);
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed}");
    }
    assert_ne!(run_seed(1, Transport::Tcp, false).unwrap().hash, run_seed(2, Transport::Tcp, false).unwrap().hash);
}

/// The scenario over each transport, with the names of those.
fn over_all(seed: u64) -> [Scenario; 4] {
    Transport::ALL.map(|transport| {
        let mut scenario = Scenario::over(seed, transport).calm();
        scenario.store.door = Door::Queue;
        for session in &mut scenario.sessions {
            session.work.operations = 60;
            session.work.reads = 500;
        }
        scenario
    })
}

#[test]
fn one_seed_is_one_run_over_iser() {
    for transport in [Transport::Iwarp, Transport::Loopback, Transport::Verbs] {
        for seed in [1, 2, 3, 17] {
            let (first, second) =
                (run_seed(seed, transport, false).unwrap(), run_seed(seed, transport, false).unwrap());
            assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed} over {transport:?}");
        }
    }
}

#[test]
fn lost_writes_are_caught_over_iser() {
    let mut caught = [0; 4];
    for seed in 0..10 {
        for (mut scenario, caught) in over_all(seed).into_iter().zip(&mut caught) {
            scenario.store.lose_write = Some(20);
            *caught += u32::from(run(&scenario, false).is_err_and(|failure| failure.what.contains("block")));
        }
    }
    assert!(caught.iter().all(|caught| *caught >= 5), "{caught:?} of 10 lost writes were caught");
}

#[test]
fn a_byte_that_changes_on_its_way_by_rdma_is_caught() {
    let (mut changed, mut caught) = (0, 0);
    for seed in 0..10 {
        let [_, _, loopback, verbs] = over_all(seed);
        for mut scenario in [loopback, verbs] {
            scenario.iser.loopback.faults.corrupt = 20_000;
            changed += 1;
            caught += u32::from(run(&scenario, false).is_err());
        }
    }
    assert!(caught * 2 >= changed, "{caught} of {changed} worlds with changed bytes were caught");
}

#[test]
fn a_store_that_loses_an_acknowledged_write_is_caught() {
    let mut caught = 0;
    for seed in 0..20 {
        let mut scenario = calm(seed);
        run(&scenario, false).unwrap();
        scenario.store.lose_write = Some(20);
        // A lost write that is overwritten before anybody reads it leaves no trace.
        if let Err(failure) = run(&scenario, false) {
            assert!(failure.what.contains("block"), "{failure}");
            caught += 1;
        }
    }
    assert!(caught >= 12, "{caught} of 20 lost writes were caught");
}

#[test]
fn a_bit_that_flips_without_digests_is_caught() {
    let (mut flipped, mut caught) = (0, 0);
    for seed in 0..40 {
        let mut scenario = calm(seed);
        for session in &mut scenario.sessions {
            session.offer.header_digest = vec![iscsi_proto::parameters::Digest::None];
            session.offer.data_digest = vec![iscsi_proto::parameters::Digest::None];
        }
        scenario.limits.offer.header_digest = vec![iscsi_proto::parameters::Digest::None];
        scenario.limits.offer.data_digest = vec![iscsi_proto::parameters::Digest::None];
        scenario.weather.flips = 1000;
        scenario.weather.cut_after = 100_000;
        flipped += 1;
        caught += u32::from(run(&scenario, false).is_err());
    }
    assert!(caught * 4 >= flipped, "{caught} of {flipped} flips were caught");
}
