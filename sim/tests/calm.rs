//! Where nothing goes wrong, nothing does: over each transport, each session is logged in once.

use sim::{Scenario, Transport, run};

fn is_undisturbed(transport: Transport) {
    for seed in 0..60 {
        let scenario = Scenario::over(seed, transport).calm();
        let report = run(&scenario, false).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(report.logins, scenario.sessions.len() as u64, "seed {seed}: a session was disturbed");
    }
}

#[test]
fn over_tcp() {
    is_undisturbed(Transport::Tcp);
}

#[test]
fn over_iwarp() {
    is_undisturbed(Transport::Iwarp);
}

#[test]
fn over_verbs() {
    is_undisturbed(Transport::Verbs);
}

#[test]
fn over_loopback() {
    is_undisturbed(Transport::Loopback);
}
