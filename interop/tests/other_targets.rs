//! Our `iscsi` program against other people's targets: tgt on this machine, LIO in the virtual machine.

use std::time::{Duration, Instant};

use interop::Result;
use interop::cutter::Cutter;
use interop::process::{Finished, Running, run};
use interop::programs::iscsi;
use interop::tgt::Tgt;
use interop::vm::{Guest, Job};
use interop::wire::Capture;

const LIMIT: Duration = Duration::from_secs(120);

fn ours(arguments: &[&str]) -> Result<Finished> {
    run(&iscsi(arguments)?, LIMIT)
}

/// Every command once; the disks are LUN 1 and LUN 2.
fn whole_story(tgt: &Tgt, url: impl Fn(u32) -> String) -> Result<()> {
    ours(&["discover", &tgt.portal()])?.success()?.prints(&[Tgt::TARGET, &tgt.portal()])?;
    ours(&["login-test", &url(1)])?.success()?;
    // Steps 9 and 10 of the story: the disk, then the session and what it negotiated.
    ours(&["info", &url(1)])?.success()?.prints(&[
        "IET",
        "VIRTUAL-DISK",
        "0001",
        Tgt::TARGET,
        &tgt.portal(),
        "MaxRecvDataSegmentLength",
    ])?;
    ours(&["luns", &url(1)])?.success()?.prints(&["1", "2"])?;
    ours(&["verify", &url(1)])?.success()?;
    for (pattern, block) in
        [("randread", "512"), ("randwrite", "4096"), ("randrw", "512"), ("read", "65536"), ("write", "262144")]
    {
        let arguments = ["bench", &url(1), "--rw", pattern, "--bs", block, "--iodepth", "128", "--runtime", "1"];
        ours(&arguments)?.success()?.prints(&["IOPS"])?;
    }
    let (first, second) = (url(1), url(2));
    ours(&["bench", &first, &second, "--rw", "randread", "--bs", "512", "--iodepth", "64", "--runtime", "1"])?
        .success()?
        .prints(&["IOPS"])?;
    Ok(())
}

/// The program fails with a sentence: some exit code of its own, no panic, no silence.
fn refused(arguments: &[&str]) -> Result<()> {
    let finished = ours(arguments)?;
    assert!(
        matches!(finished.code(), Some(1..=99)),
        "`{}`: {}: {}",
        finished.command,
        finished.status,
        finished.output
    );
    assert!(!finished.output.trim().is_empty(), "`{}` failed without a word", finished.command);
    assert!(!finished.output.contains("panicked at"), "{}", finished.output);
    Ok(())
}

#[test]
fn tgt_without_chap() -> Result<()> {
    let tgt = Tgt::start(2, 64)?;
    whole_story(&tgt, |lun| tgt.url(lun))
}

#[test]
fn tgt_with_chap() -> Result<()> {
    let mut tgt = Tgt::start(2, 64)?;
    tgt.demand_chap("alice", "alice-secret-1234")?;
    whole_story(&tgt, |lun| tgt.url_as("alice", "alice-secret-1234", lun))?;
    refused(&["info", &tgt.url(1)])?;
    refused(&["info", &tgt.url_as("alice", "wrong-secret-0000", 1)])?;
    refused(&["info", &tgt.url_as("bob", "alice-secret-1234", 1)])
}

#[test]
fn tgt_with_a_lun_or_target_that_is_not_there() -> Result<()> {
    let tgt = Tgt::start(1, 64)?;
    refused(&["info", &tgt.url(7)])?;
    refused(&["info", &format!("iscsi://{}/iqn.2026-01.org.example:nobody/1", tgt.portal())])
}

#[test]
fn tshark_finds_nothing_wrong_in_what_our_initiator_sends() -> Result<()> {
    let mut tgt = Tgt::start(1, 16)?;
    tgt.demand_chap("alice", "alice-secret-1234")?;
    let capture = Capture::start(tgt.port())?;
    let url = tgt.url_as("alice", "alice-secret-1234", 1);
    ours(&["discover", &tgt.portal()])?.success()?;
    ours(&["info", &url])?.success()?;
    ours(&["verify", &url])?.success()?;
    let verdict = capture.judge()?.sound()?;
    // Command, login, text, Data-Out and logout of ours were among what it judged.
    for opcode in [0x01, 0x03, 0x04, 0x05, 0x06] {
        assert!(verdict.opcodes.contains_key(&opcode), "no PDU with opcode {opcode:#04x}: {:?}", verdict.opcodes);
    }
    Ok(())
}

#[test]
fn lio_with_and_without_chap() -> Result<()> {
    let job = Job::named("lio.sh").with_programs()?.limit(Duration::from_secs(400));
    let mut checks = vec!["LIO serves".to_owned(), "LIO serves with CHAP".to_owned()];
    for name in ["plain", "chap"] {
        for step in ["discover", "info", "luns", "verify", "bench", "bench over two LUNs"] {
            checks.push(format!("{name}: {step}"));
        }
    }
    checks.extend(["chap: no secret is refused", "chap: a wrong secret is refused"].map(str::to_owned));
    let checks: Vec<&str> = checks.iter().map(String::as_str).collect();
    Guest::made()?.run(&job)?.passed(&checks).map(drop)
}

/// The initiator's half of a cut connection: `iscsi verify` writes a pattern and reads it back, so a
/// write that was acknowledged and lost, or done twice out of order, shows.
#[test]
fn a_cut_connection_loses_no_write_of_our_initiator() -> Result<()> {
    let tgt = Tgt::start(1, 1024)?;
    let cutter = Cutter::start(tgt.port())?;
    let url = format!("iscsi://127.0.0.1:{}/{}/1", cutter.port(), Tgt::TARGET);
    let mut running = Running::start(&iscsi(["verify", &url])?)?;
    let (begin, mut cuts) = (Instant::now(), 0);
    while running.is_running() && begin.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(700));
        cuts += if cuts < 5 { cutter.cut() } else { 0 };
    }
    let finished = running.wait(LIMIT)?.success()?;
    assert!(cuts > 0, "it ended before the first cut, so nothing was tested: {}", finished.output);
    println!("{cuts} cuts, done in {:?}", begin.elapsed());
    Ok(())
}
