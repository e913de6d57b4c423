//! User instructions per request of our target, counted by callgrind.
//!
//! Two runs that differ only in the number of requests cancel out start, login and end.

use std::process::Command;
use std::time::Duration;

use interop::process::{Running, run as run_command};
use interop::programs::{Ramdisk, free_port, iscsi, programs, wait_for_listener};
use interop::{Context, Failure, Result};

/// Requests of the short and of the long run.
const SHORT: u64 = 20_000;
const LONG: u64 = 120_000;

/// Instructions of one target process that serves `requests` requests.
fn count(rw: &str, requests: u64) -> Result<u64> {
    let port = free_port()?;
    let out = std::env::temp_dir().join(format!("callgrind-{}-{rw}-{requests}", std::process::id()));
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.display())]);
    command.arg(programs()?.ramdisk).args(["serve", "--workers", "1", "--portal", &format!("127.0.0.1:{port}")]);
    command.args(["--target", Ramdisk::TARGET, "--lun", "64M"]);
    let mut target = Running::start(&command)?;
    wait_for_listener(port, &mut target, Duration::from_secs(60))?;
    let url = format!("iscsi://127.0.0.1:{port}/{}/0", Ramdisk::TARGET);
    let mut load = iscsi(["--json", "bench", &url, "--rw", rw, "--bs", "512", "--iodepth", "128", "--runtime", "600"])?;
    load.args(["--number-ios", &requests.to_string()]);
    run_command(&load, Duration::from_secs(300))?.success()?;
    target.interrupt(Duration::from_secs(60))?;
    let text = std::fs::read_to_string(&out).context(format!("reading {}", out.display()))?;
    // The file is valgrind's and of no further use; one that cannot be removed harms nobody.
    let _ = std::fs::remove_file(&out);
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    total
        .and_then(|total| total.trim().parse().ok())
        .ok_or_else(|| Failure::new(format!("{} holds no total: did valgrind run to its end?", out.display())))
}

pub(super) fn run() -> Result<bool> {
    println!("user instructions of the target for one 512-byte request, 128 in flight:");
    for rw in ["randread", "randwrite"] {
        let (short, long) = (count(rw, SHORT)?, count(rw, LONG)?);
        println!("  {rw:<10} {:>7.0}", (long as f64 - short as f64) / (LONG - SHORT) as f64);
    }
    Ok(true)
}
