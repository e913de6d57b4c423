//! A disk by two paths, in the virtual machine: our multipath against LIO and against our target, beside the kernel's.

use std::time::Duration;

use interop::Result;
use interop::vm::{Guest, Job};

fn run(job: &str, checks: &[&str]) -> Result<()> {
    let job = Job::named(job).with_programs()?.limit(Duration::from_secs(600));
    let report = Guest::made()?.run(&job)?.passed(checks)?;
    report.output.lines().filter(|line| line.starts_with("note:")).for_each(|line| println!("{line}"));
    Ok(())
}

#[test]
fn six_flaps_cost_no_error() -> Result<()> {
    let mut checks = vec!["dm-multipath to LIO: 6 flaps".to_owned()];
    for name in ["ours to LIO", "ours to ours", "dm-multipath to LIO"] {
        checks.extend(["no error and no difference", "each cut was noticed"].map(|check| format!("{name}: {check}")));
    }
    let fixed = ["logout", "target ends at Ctrl-C", "no error in the kernel log"];
    run("multipath.sh", &checks.iter().map(String::as_str).chain(fixed).collect::<Vec<_>>())
}

#[test]
fn io_follows_the_states_of_target_port_groups() -> Result<()> {
    const CHECKS: &[&str] = &[
        "the optimized path is used",
        "I/O follows the optimized state",
        "alike paths share the I/O",
        "and leave it to a better one",
        "a path that becomes as good is used, too",
        "not by a port in standby",
        "back when that changes",
        "not by an unavailable port",
        "where all stand by, I/O waits",
        "and goes on",
        "not by a port that is offline",
        "but when it is back",
        "a transition is lived through",
        "no error and no difference",
        "no path was lost",
        "no error in the kernel log",
    ];
    run("alua.sh", CHECKS)
}
