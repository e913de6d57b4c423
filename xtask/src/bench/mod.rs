//! `cargo xtask bench`: our target beside tgt and beside a bare iSCSI echo, and our iSER beside our TCP, with one load
//! generator, in turn, in one run.
//!
//! Machines are noisy, so only the ratios mean something: each round measures all contenders one behind the other, and
//! the tables give the median of the rounds. iSER is iWARP in user space here; iSER with Linux's initiator and RDMA
//! devices, beside LIO, is measured in the virtual machine (`--layouts`, or `cargo xtask vm layouts`). `--instructions`
//! counts user instructions per request of both roles under callgrind instead, which does not depend on what else the
//! machine does; `--against DIR` counts another build's beside them, turn by turn.

mod echo;
mod instructions;
mod layouts;
mod transports;

use std::process::Command;
use std::time::Duration;

use interop::process::{Running, run as run_command};
use interop::programs::{Ramdisk, free_port, iscsi, wait_for_listener};
use interop::tgt::Tgt;
use interop::{Context, Failure, Result};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    runtime: u64,
    /// Rounds; the table gives the medians
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Bytes of one request
    #[arg(long, default_value = "512")]
    bs: String,
    /// Requests in flight
    #[arg(long, default_value_t = 128)]
    iodepth: usize,
    /// Measure only our TCP and our iSER, not other targets
    #[arg(long)]
    transports: bool,
    /// Measure only the layouts in the virtual machine: Linux's ib_iser on LIO's RAM disk and on ours
    #[arg(long)]
    layouts: bool,
    /// Count user instructions per request of our target and of our initiator under callgrind (needs valgrind)
    #[arg(long)]
    instructions: bool,
    /// With --instructions: count another build beside this one, whose `ramdisk` and `iscsi` are in this directory
    #[arg(long, value_name = "DIR", requires = "instructions")]
    against: Option<std::path::PathBuf>,
    /// Only be the echo, on this address
    #[arg(long, value_name = "ADDR:PORT", hide = true)]
    echo: Option<std::net::SocketAddr>,
}

/// The part of each disk that is measured. It is written once before: neither a page fault nor a hole in a file is what
/// the figures are about.
const SPAN: &str = "256M";

/// One target under test.
struct Contender {
    name: &'static str,
    url: String,
    pid: u32,
}

/// What it is measured with, in the words of `iscsi bench`.
struct Load<'a> {
    rw: &'a str,
    bs: &'a str,
    iodepth: usize,
    runtime: u64,
}

/// What one measurement gave.
#[derive(Clone, Copy)]
struct Sample {
    iops: f64,
    bytes_per_second: f64,
    /// Processor seconds of the target for a million requests.
    cpu_per_million: f64,
}

/// Processor time that a process has used so far, in seconds, user and system, all threads.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).context(format!("reading the times of process {pid}"))?;
    // The name in parentheses may hold anything: the fields begin behind its end.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64)
}

fn measure(contender: &Contender, load: &Load<'_>) -> Result<Sample> {
    let before = cpu_seconds(contender.pid)?;
    let mut command = iscsi(["--json", "bench", &contender.url, "--size", SPAN, "--rw", load.rw, "--bs", load.bs])?;
    command.args(["--iodepth", &load.iodepth.to_string(), "--runtime", &load.runtime.to_string()]);
    let finished = run_command(&command, Duration::from_secs(load.runtime + 30))?.success()?;
    let cpu = cpu_seconds(contender.pid)? - before;
    let figures: serde_json::Value =
        serde_json::from_str(&finished.stdout).context("reading the figures of iscsi bench")?;
    let side = &figures[if load.rw.ends_with("write") { "write" } else { "read" }];
    let number = |name: &str| side[name].as_f64().ok_or_else(|| Failure::new(format!("iscsi bench gave no {name}")));
    Ok(Sample {
        iops: number("iops")?,
        bytes_per_second: number("bytes_per_second")?,
        cpu_per_million: cpu / number("ios")? * 1e6,
    })
}

/// Measures all contenders in turn, round by round, and gives each one's medians.
fn compare(contenders: &[Contender], load: &Load<'_>, rounds: usize) -> Result<Vec<Sample>> {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); contenders.len()];
    for _ in 0..rounds.max(1) {
        for (contender, samples) in contenders.iter().zip(&mut samples) {
            samples.push(measure(contender, load)?);
        }
    }
    let of = |samples: &[Sample], value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
    let medians = samples.iter().map(|samples| Sample {
        iops: of(samples, |sample| sample.iops),
        bytes_per_second: of(samples, |sample| sample.bytes_per_second),
        cpu_per_million: of(samples, |sample| sample.cpu_per_million),
    });
    Ok(medians.collect())
}

/// Writes the span of a disk once.
fn fill(contender: &Contender) -> Result<()> {
    run_command(&iscsi(["verify", &contender.url, "--size", SPAN])?, Duration::from_secs(120))?.success()?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    if let Some(address) = arguments.echo {
        echo::serve(address).context(format!("the echo on {address}"))?;
        return Ok(true);
    }
    if arguments.instructions {
        return instructions::run(arguments.against.as_deref());
    }
    if arguments.layouts {
        return layouts::run(arguments);
    }
    if !arguments.transports {
        against_others(arguments)?;
        println!();
    }
    transports::run(arguments)?;
    println!(
        "iSER with Linux's initiator and RDMA devices, ours beside LIO, in the virtual machine: \
         cargo xtask bench --layouts"
    );
    Ok(true)
}

/// Our target, tgt and the echo, over TCP.
fn against_others(arguments: &Arguments) -> Result<()> {
    // One worker: all three then run on one thread.
    let ours = Ramdisk::serve(["--workers", "1", "--target", Ramdisk::TARGET, "--lun", "1G"])?;
    let tgt = Tgt::start(1, 1024)?;
    let port = free_port()?;
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.args(["bench", "--echo", &format!("127.0.0.1:{port}")]);
    let mut echo = Running::start(&command)?;
    wait_for_listener(port, &mut echo, Duration::from_secs(10))?;
    let contenders = [
        Contender { name: "ours", url: ours.url(0), pid: ours.pid() },
        Contender { name: "tgt", url: tgt.url(1), pid: tgt.pid() },
        Contender {
            name: "bare echo",
            url: format!("iscsi://127.0.0.1:{port}/iqn.2026-11.example.echo:bare/0"),
            pid: echo.pid(),
        },
    ];
    println!(
        "{} bytes, {} in flight, {} rounds of {} s, one thread each:",
        arguments.bs, arguments.iodepth, arguments.rounds, arguments.runtime
    );
    println!(
        "  {:<10} {:<10} {:>10} {:>16} {:>12} {:>12}",
        "load", "target", "IOPS", "CPU s / million", "ours / it", "CPU it/ours"
    );
    for disk in &contenders[..2] {
        fill(disk)?;
    }
    for rw in ["randread", "randwrite"] {
        let load = Load { rw, bs: &arguments.bs, iodepth: arguments.iodepth, runtime: arguments.runtime };
        let medians = compare(&contenders, &load, arguments.rounds)?;
        for (contender, median) in contenders.iter().zip(&medians) {
            println!(
                "  {rw:<10} {:<10} {:>10.0} {:>16.2} {:>12.2} {:>12.2}",
                contender.name,
                median.iops,
                median.cpu_per_million,
                medians[0].iops / median.iops,
                median.cpu_per_million / medians[0].cpu_per_million
            );
        }
    }
    ours.stop()?;
    Ok(())
}
