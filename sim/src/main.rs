//! Runs seeds of the simulator: `cargo run -p sim -- --seed N [--transport T] [KIND] [--trace]`, or `--seeds A..B`.
//!
//! Kinds, beside the plain one: `--calm`, without faults; `--meeting`, where rare things meet; `--silence`, with
//! initiators that owe what they never send; `--odd`, an initiator against a target that is odd; `--library`, the
//! library's session and disk over the tokio driver, against the same; `--paths`, a disk by several paths; `--sharing`,
//! where several servers share their disks; `--scarce`, where buffers are; `--driven`, the real drivers over tokio;
//! `--threads`, threads that take turns. `--first` ends at the first seed that fails.

use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use sim::{Kind, Transport};

const USAGE: &str = "usage: sim (--seed N | --seeds A..B) [--transport tcp|iwarp|loopback|verbs] \
                     [--calm | --meeting | --silence | --odd | --library | --paths | --sharing | --scarce | --driven | \
                     --threads] \
                     [--first] [--trace]";

struct Arguments {
    seeds: Range<u64>,
    transport: Transport,
    kind: Kind,
    first: bool,
    trace: bool,
}

fn arguments() -> Option<Arguments> {
    let mut seeds = None;
    let (mut transport, mut kind, mut first, mut trace) = (Transport::Tcp, Kind::Plain, false, false);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seed" => {
                let seed = words.next()?.parse().ok()?;
                seeds = Some(seed..seed + 1);
            }
            "--seeds" => {
                let range = words.next()?;
                let (from, to) = range.split_once("..")?;
                seeds = Some(from.parse().ok()?..to.parse().ok()?);
            }
            "--transport" => {
                let name = words.next()?;
                transport = Transport::ALL.into_iter().find(|transport| transport.name() == name)?;
            }
            "--first" => first = true,
            "--trace" => trace = true,
            word => kind = Kind::ALL.into_iter().find(|kind| kind.argument() == Some(word))?,
        }
    }
    Some(Arguments { seeds: seeds?, transport, kind, first, trace })
}

fn main() -> ExitCode {
    let Some(Arguments { seeds, transport, kind, first, trace }) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let begun = Instant::now();
    let (mut total, mut failed, mut hash) = (sim::Report::default(), 0, 0);
    for seed in seeds.clone() {
        match sim::run(&kind.of(seed, transport), trace) {
            Ok(report) => {
                total.commands += report.commands;
                total.writes += report.writes;
                total.logins += report.logins;
                total.cuts += report.cuts;
                total.flips += report.flips;
                total.crashes += report.crashes;
                total.changes += report.changes;
                total.deaf += report.deaf;
                total.time += report.time;
                hash = report.hash;
            }
            Err(failure) => {
                failed += 1;
                eprintln!("{failure}");
                if first {
                    println!("failed at seed {seed}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    let count = seeds.end.saturating_sub(seeds.start);
    let took = begun.elapsed().as_secs_f64();
    println!(
        "{count} seeds in {took:.1} s ({:.1} a second), {failed} failed: {} commands, {} acknowledged writes, {} logins, {} cuts, {} flipped bits, {} crashes, {} changes of LUNs, {} deaf links, {:.0} s of virtual time; trace {hash:016x}",
        count as f64 / took,
        total.commands,
        total.writes,
        total.logins,
        total.cuts,
        total.flips,
        total.crashes,
        total.changes,
        total.deaf,
        total.time.as_secs_f64(),
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
