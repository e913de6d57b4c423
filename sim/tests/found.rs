//! What the simulator has found, each as a scenario of its own.

use std::time::Duration;

use sim::store::Door;
use sim::{Scenario, Transport, run};

/// A calm world with one session that has one operation under way at a time.
fn quiet() -> Scenario {
    let mut scenario = Scenario::new(1);
    scenario.weather.cuts = 0;
    scenario.weather.flips = 0;
    scenario.weather.refused = 0;
    scenario.weather.stalls = (0, Duration::ZERO);
    scenario.mangled = None;
    scenario.hostile = 0;
    scenario.limits.nop_in_idle = None;
    scenario.sessions.truncate(1);
    let session = &mut scenario.sessions[0];
    session.timeouts.keepalive_interval = Duration::ZERO;
    session.timeouts.command = Duration::from_secs(60);
    session.work.depth = 1;
    session.work.operations = 30;
    session.work.think = Duration::ZERO;
    session.work.functions = 0;
    session.work.abandons = 0;
    scenario
}

/// A store's completion wakes the connection each time, also when nothing else has woken it since the last.
#[test]
fn a_slow_store_is_heard_each_time() {
    for door in [Door::Queue, Door::Easy] {
        let mut scenario = quiet();
        scenario.store.door = door;
        scenario.store.slow = (1000, Duration::from_secs(3));
        let report = run(&scenario, false).unwrap_or_else(|failure| panic!("{failure}"));
        // Thirty operations of at most two steps, and the time that login and logout take.
        assert!(report.time < Duration::from_secs(30 * 6 + 60), "{:?}", report.time);
    }
}

/// Writes that wait for an atomic command, which waits for a slow write, wait without spinning.
#[test]
fn writes_behind_a_compare_and_write_rest() {
    for seed in 1..30 {
        let mut scenario = quiet();
        scenario.seed = seed;
        scenario.limits.command_window = 64;
        scenario.store.door = Door::Queue;
        scenario.store.blocks = 64;
        scenario.store.slow = (200, Duration::from_secs(3));
        let session = &mut scenario.sessions[0];
        session.limits.commands = 64;
        session.work.depth = 16;
        session.work.most_blocks = 8;
        session.work.others = 600;
        session.work.reads = 0;
        run(&scenario, false).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

/// A store that takes longer than every time limit, and one session that loses its connection again and again, also while it logs in: the old sessions'
/// writes are over before the last of the logins is let in, or it is not.
#[test]
fn no_login_passes_an_old_write_however_many_there_are() {
    for seed in 0..40 {
        let mut scenario = quiet();
        scenario.seed = seed;
        scenario.store.door = if seed % 2 == 0 { Door::Queue } else { Door::Easy };
        scenario.store.blocks = 16;
        scenario.store.slow = (500, Duration::from_secs(90));
        scenario.weather.cut_within = (900, Duration::from_secs(20));
        let session = &mut scenario.sessions[0];
        session.timeouts.command = Duration::from_secs(20);
        session.work.depth = 4;
        session.work.most_blocks = 4;
        session.work.reads = 300;
        run(&scenario, false).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

/// A connection that is silent from before the calm on is found out by keepalive, and what was asked on it is asked again on the next one. Commands
/// that are given less time than keepalive takes fail with it; the last reads are given more.
#[test]
fn what_fell_silent_before_the_calm_is_found_out() {
    for seed in 0..40 {
        let mut scenario = Scenario::over(seed, Transport::Loopback).calm();
        scenario.iser.loopback.faults.mute = 20_000;
        for session in &mut scenario.sessions {
            session.timeouts.command = Duration::from_secs(2);
            session.timeouts.keepalive_interval = Duration::from_secs(5);
            session.timeouts.keepalive = Duration::from_secs(5);
            session.work.operations = 20;
        }
        run(&scenario, false).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

/// Commands are answered on connections that do not stand for long: the session is not given up for the time that this
/// has gone on, and does all that it has to do.
#[test]
fn a_session_with_short_lived_connections_is_not_given_up() {
    for (seed, transport) in [(16802, Transport::Tcp), (27059, Transport::Loopback)] {
        run(&Scenario::over(seed, transport), false).unwrap_or_else(|failure| panic!("{failure}"));
    }
    for transport in [Transport::Tcp, Transport::Loopback] {
        for seed in 0..5 {
            let mut scenario = quiet();
            (scenario.seed, scenario.transport) = (seed, transport);
            scenario.store.door = Door::Queue;
            scenario.weather.half_open = 0;
            scenario.weather.cut_within = (1000, Duration::from_secs(4));
            let session = &mut scenario.sessions[0];
            session.offer = if transport == Transport::Tcp {
                session.offer.clone()
            } else {
                scenario.limits.offer = scenario.iser.target.offer.put_in(scenario.limits.offer);
                session.iser.offer.put_in(session.offer.clone())
            };
            session.reconnect.longest_delay = Duration::from_secs(5);
            session.reconnect.deadline = Duration::from_secs(20);
            session.work.operations = 60;
            session.work.think = Duration::from_secs(4);
            let report = run(&scenario, false).unwrap_or_else(|failure| panic!("{failure}"));
            assert!(report.time > Duration::from_secs(2 * 20), "{report:?}");
            assert!(report.commands >= 60, "{report:?}");
        }
    }
}
