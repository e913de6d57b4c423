//! iSER in the virtual machine, over soft RDMA: the kernel's ib_iser against `ramdisk serve` on each provider, our
//! initiator against LIO's isert and tgt, libiscsi's iSER client against ours.

use std::time::Duration;

use interop::Result;
use interop::programs::verbs_conformance;
use interop::vm::{Guest, Job};

const LIMIT: Duration = Duration::from_secs(600);

/// What `jobs/iser.sh` checks whatever the fabric.
const STORY: &[&str] = &[
    "RDMA devices",
    "serve",
    "discovery over TCP",
    "record switched to iSER",
    "login",
    "session: target",
    "session: portal",
    "session: iSER",
    "session: logged in",
    "session: disk",
    "ext4 made",
    "ext4 mounted",
    "ext4 filled",
    "ext4 checked",
    "ext4 unchanged",
    "fio randrw verify",
    "512 bytes at depth 128",
    "large and sequential",
    "large and sequential, back",
    "logout",
    "ten logins",
    "no error in the kernel log",
    "writes flow",
    "the cut stops the writes",
    "writes resume",
    "session is back",
    "the cut was noticed",
    "every acknowledged write is there",
    "no I/O error reached the disk",
    "logout at last",
    "target ends at Ctrl-C",
];

/// What `initiator_of_ours` of `jobs/rdma.sh` and `libiscsi` of `jobs/iser-peers.sh` check under a name.
const OURS: &[&str] = &["info", "verify", "verify in large requests", "bench"];
const LIBISCSI: &[&str] =
    &["inquiry", "capacity", "small random reads", "large sequential reads", "QEMU, 512 bytes", "QEMU, 256 KiB"];

fn named(name: &str, steps: &[&str]) -> Vec<String> {
    steps.iter().map(|step| format!("{name}: {step}")).collect()
}

fn run(job: Job, checks: &[&str], more: &[String]) -> Result<()> {
    let more = more.iter().map(String::as_str);
    let checks: Vec<&str> = checks.iter().copied().chain(more).collect();
    let report = Guest::made()?.run(&job.with_programs()?.limit(LIMIT))?.passed(&checks)?;
    report.output.lines().filter(|line| line.starts_with("note:")).for_each(|line| println!("{line}"));
    Ok(())
}

fn story(fabric: &str, provider: &str, more: &[String]) -> Result<()> {
    run(Job::named("iser.sh").with("FABRIC", fabric).with("PROVIDER", provider), STORY, more)
}

#[test]
fn ib_iser_over_soft_roce_uses_our_verbs_target() -> Result<()> {
    story("rxe", "verbs", &[])
}

#[test]
fn ib_iser_over_soft_iwarp_uses_our_user_space_iwarp_target() -> Result<()> {
    let mut more = named("our verbs to our iwarp", OURS);
    more.push("writes resume after a reset".to_owned());
    story("siw", "iwarp", &more)
}

/// With our user-space iWARP initiator against the same target.
#[test]
fn ib_iser_over_soft_iwarp_uses_our_verbs_target() -> Result<()> {
    let mut more = named("our iwarp to our verbs", OURS);
    more.push("writes resume after a reset".to_owned());
    story("siw", "verbs", &more)
}

#[test]
fn lio_tgt_and_libiscsi_understand_us_over_soft_roce() -> Result<()> {
    let mut checks = named("libiscsi to ours", LIBISCSI);
    for name in ["ours to LIO", "ours to tgt", "ours to ours"] {
        checks.extend(named(name, OURS));
    }
    let fixed = ["LIO serves iSER", "tgt serves iSER", "target ends at Ctrl-C", "no error in the kernel log"];
    run(Job::named("iser-peers.sh"), &fixed, &checks)
}

#[test]
fn no_session_is_lost_to_responses_that_isert_swaps() -> Result<()> {
    const CHECKS: &[&str] = &["LIO serves iSER", "fault-free runs", "no reconnect", "LIO's kernel lives"];
    run(Job::named("isert.sh").with("RUNS", "8"), CHECKS, &[])
}

#[test]
fn a_small_memlock_limit_is_named_at_either_end() -> Result<()> {
    const CHECKS: &[&str] = &[
        "enough at both ends",
        "the initiator names ulimit -l",
        "registered memory is shown",
        "what a session had is given back at logout",
        "what the store has stays registered",
        "it is not more with each session",
        "target ends at Ctrl-C",
        "no session at a target that may lock too little",
        "the target names ulimit -l",
        "it still ends at Ctrl-C",
    ];
    run(Job::named("memlock.sh"), CHECKS, &[])
}

#[test]
fn long_commands_and_first_touches_hold_up_nobody() -> Result<()> {
    const CHECKS: &[&str] = &[
        "a whole disk is zeroed",
        "zeroing: no ping timeout",
        "zeroing: still logged in",
        "zeroes take no memory",
        "128 random reads",
        "reads take no memory",
        "what was written here and there bounds the memory",
        "what was written bounds the memory",
        "discarding gives the memory back",
        "reads: no ping timeout",
        "reads: still logged in",
        "target ends at Ctrl-C",
    ];
    run(Job::named("long-commands.sh").memory(2048), CHECKS, &[])
}

#[test]
fn the_verbs_provider_passes_the_cases_of_queue_pairs() -> Result<()> {
    let program = verbs_conformance()?.display().to_string();
    let job = Job::named("verbs.sh").with("CONFORMANCE", program).limit(LIMIT);
    let mut checks = vec!["every case passes", "both devices were judged", "no error in the kernel log"];
    // The name of one case of each kind: a list that is never printed is noticed.
    checks.extend(["soft-RoCE: messages_arrive_in_order", "soft-iWARP: disconnect_at_every_step"]);
    Guest::made()?.run(&job)?.passed(&checks).map(drop)
}
