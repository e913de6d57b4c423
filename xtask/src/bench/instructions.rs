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

/// Instructions of one target process that serves `requests` requests over the transport of a URL scheme.
fn count(scheme: &str, rw: &str, requests: u64) -> Result<u64> {
    let port = free_port()?;
    let out = std::env::temp_dir().join(format!("callgrind-{}-{scheme}-{rw}-{requests}", std::process::id()));
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.display())]);
    command.arg(programs()?.ramdisk).args(["serve", "--workers", "1", "--portal", &format!("127.0.0.1:{port},iser")]);
    command.args(["--rdma", "iwarp", "--target", Ramdisk::TARGET, "--lun", "64M"]);
    let mut target = Running::start(&command)?;
    wait_for_listener(port, &mut target, Duration::from_secs(60))?;
    let url = format!("{scheme}://127.0.0.1:{port}/{}/0", Ramdisk::TARGET);
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

/// Instructions per request.
fn per_request(scheme: &str, rw: &str) -> Result<f64> {
    let (short, long) = (count(scheme, rw, SHORT)?, count(scheme, rw, LONG)?);
    Ok((long as f64 - short as f64) / (LONG - SHORT) as f64)
}

pub(super) fn run() -> Result<bool> {
    println!("user instructions of the target for one 512-byte request, 128 in flight (iSER: iWARP in user space):");
    println!("  {:<10} {:>7} {:>7} {:>10}", "load", "TCP", "iSER", "iSER/TCP");
    for rw in ["randread", "randwrite"] {
        let (tcp, iser) = (per_request("iscsi", rw)?, per_request("iser", rw)?);
        println!("  {rw:<10} {tcp:>7.0} {iser:>7.0} {:>10.2}", iser / tcp);
    }
    Ok(true)
}
