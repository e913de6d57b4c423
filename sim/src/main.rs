//! Runs seeds of the simulator: `cargo run -p sim -- --seed N [--transport T] [--calm | --meeting] [--trace]`, or `--seeds A..B`. Calm:
//! without faults. Meeting: where rare things meet.
//! First: ends at the first seed that fails.

use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use sim::{Scenario, Transport};

const USAGE: &str =
    "usage: sim (--seed N | --seeds A..B) [--transport tcp|iwarp|loopback] [--calm | --meeting] [--first] [--trace]";

struct Arguments {
    seeds: Range<u64>,
    transport: Transport,
    calm: bool,
    meeting: bool,
    first: bool,
    trace: bool,
}

fn arguments() -> Option<Arguments> {
    let mut seeds = None;
    let (mut transport, mut calm, mut meeting, mut first, mut trace) = (Transport::Tcp, false, false, false, false);
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
            "--calm" => calm = true,
            "--meeting" => meeting = true,
            "--first" => first = true,
            "--trace" => trace = true,
            _ => return None,
        }
    }
    Some(Arguments { seeds: seeds?, transport, calm, meeting, first, trace })
}

fn main() -> ExitCode {
    let Some(Arguments { seeds, transport, calm, meeting, first, trace }) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let begun = Instant::now();
    let (mut total, mut failed, mut hash) = (sim::Report::default(), 0, 0);
    for seed in seeds.clone() {
        let scenario = if meeting { Scenario::meeting(seed, transport) } else { Scenario::over(seed, transport) };
        let scenario = if calm { scenario.calm() } else { scenario };
        match sim::run(&scenario, trace) {
            Ok(report) => {
                total.commands += report.commands;
                total.writes += report.writes;
                total.logins += report.logins;
                total.cuts += report.cuts;
                total.flips += report.flips;
                total.time += report.time;
                hash = report.hash;
            }
            Err(failure) => {
                failed += 1;
                eprintln!("{failure}{}", if meeting { " --meeting" } else { "" });
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
        "{count} seeds in {took:.1} s ({:.1} a second), {failed} failed: {} commands, {} acknowledged writes, {} logins, {} cuts, {} flipped bits, {:.0} s of virtual time; trace {hash:016x}",
        count as f64 / took,
        total.commands,
        total.writes,
        total.logins,
        total.cuts,
        total.flips,
        total.time.as_secs_f64(),
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
