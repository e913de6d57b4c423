//! User instructions per request of our target and of our initiator, counted by callgrind: of this build, and beside it
//! of another one.
//!
//! Two runs that differ only in the number of requests cancel out start, login and end. The side that is not counted is
//! always this build's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use interop::process::{Running, run as run_command};
use interop::programs::{Programs, Ramdisk, free_port, programs, wait_for_listener};
use interop::{Context, Failure, Result};

/// Requests of the short and of the long run.
const SHORT: u64 = 20_000;
const LONG: u64 = 120_000;

/// Whose instructions are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Target,
    Initiator,
}

/// One figure to be found.
struct Figure<'a> {
    role: Role,
    /// The program of that role.
    counted: &'a Path,
    /// The scheme of the URL: the transport.
    scheme: &'a str,
    rw: &'a str,
}

impl Figure<'_> {
    /// The command that runs one side's program, under callgrind if it is the one that is counted.
    fn command(&self, role: Role, of_this_build: &Path, out: &Path) -> Command {
        if role != self.role {
            return Command::new(of_this_build);
        }
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.display())]);
        command.arg(self.counted);
        command
    }

    /// Instructions of one process over `requests` requests.
    fn count(&self, requests: u64) -> Result<u64> {
        let Programs { ramdisk, iscsi } = programs()?;
        let port = free_port()?;
        let name = format!("callgrind-{}-{:?}-{}-{}-{requests}", std::process::id(), self.role, self.scheme, self.rw);
        let out = std::env::temp_dir().join(name);
        let mut command = self.command(Role::Target, &ramdisk, &out);
        command.args(["serve", "--workers", "1", "--portal", &format!("127.0.0.1:{port},iser"), "--rdma", "iwarp"]);
        command.args(["--target", Ramdisk::TARGET, "--lun", "64M"]);
        let mut target = Running::start(&command)?;
        wait_for_listener(port, &mut target, Duration::from_secs(60))?;
        let url = format!("{}://127.0.0.1:{port}/{}/0", self.scheme, Ramdisk::TARGET);
        let mut load = self.command(Role::Initiator, &iscsi, &out);
        load.args(["--json", "bench", &url, "--rw", self.rw, "--bs", "512", "--iodepth", "128", "--runtime", "600"]);
        load.args(["--number-ios", &requests.to_string()]);
        run_command(&load, Duration::from_secs(300))?.success()?;
        target.interrupt(Duration::from_secs(60))?;
        let text = std::fs::read_to_string(&out).context(format!("reading {}", out.display()))?;
        // The file is valgrind's and of no further use; one that cannot be removed harms nobody.
        let _ = std::fs::remove_file(&out);
        let total =
            text.lines().find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
        total
            .and_then(|total| total.trim().parse().ok())
            .ok_or_else(|| Failure::new(format!("{} holds no total: did valgrind run to its end?", out.display())))
    }

    /// Instructions per request.
    fn per_request(&self) -> Result<f64> {
        let (short, long) = (self.count(SHORT)?, self.count(LONG)?);
        Ok((long as f64 - short as f64) / (LONG - SHORT) as f64)
    }
}

/// A program of another build.
fn other(directory: &Path, name: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    if path.is_file() { Ok(path) } else { Err(Failure::new(format!("there is no program {}", path.display()))) }
}

/// Prints both roles' figures; with `against`, a directory with `ramdisk` and `iscsi` of another build, that build's
/// beside them.
pub(super) fn run(against: Option<&Path>) -> Result<bool> {
    let Programs { ramdisk, iscsi } = programs()?;
    println!("user instructions for one 512-byte request, 128 in flight (iSER: iWARP in user space):");
    if against.is_none() {
        println!("  {:<10} {:<10} {:>7} {:>7} {:>10}", "role", "load", "TCP", "iSER", "iSER/TCP");
    } else {
        println!(
            "  {:<10} {:<10} {:>9} {:>7} {:>7} {:>10}",
            "role", "load", "transport", "this", "other", "this/other"
        );
    }
    for (role, name, program) in [(Role::Target, "ramdisk", &ramdisk), (Role::Initiator, "iscsi", &iscsi)] {
        let role_name = if role == Role::Target { "target" } else { "initiator" };
        for rw in ["randread", "randwrite"] {
            let figure = |counted, scheme| Figure { role, counted, scheme, rw }.per_request();
            let Some(directory) = against else {
                let (tcp, iser) = (figure(program, "iscsi")?, figure(program, "iser")?);
                println!("  {role_name:<10} {rw:<10} {tcp:>7.0} {iser:>7.0} {:>10.2}", iser / tcp);
                continue;
            };
            let other = other(directory, name)?;
            for (transport, scheme) in [("TCP", "iscsi"), ("iSER", "iser")] {
                let (this, other) = (figure(program, scheme)?, figure(&other, scheme)?);
                println!("  {role_name:<10} {rw:<10} {transport:>9} {this:>7.0} {other:>7.0} {:>10.2}", this / other);
            }
        }
    }
    Ok(true)
}
