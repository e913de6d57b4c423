//! `iscsi bench`: fio's words, fio-like figures.

use std::time::Duration;

use examples::ending::{Ending, failed, usage};
use examples::load::{Accesses, Load, cpu_time, run as run_load};
use examples::report::Measurement;
use examples::say;
use initiator_core::Error;

use crate::args::{BenchArgs, Cli, Rw};
use crate::attach::{ending, session_config};

fn size(name: &str, text: &str) -> Result<u64, Ending> {
    backstore::parse_size(text).map_err(|error| usage(format!("{name} {text}: {error}")))
}

fn load(args: &BenchArgs) -> Result<Load, Ending> {
    if args.iodepth == 0 || args.iodepth > 65_000 {
        return Err(usage("--iodepth is from 1 to 65000"));
    }
    let (random, read_percent) = match args.rw {
        Rw::Read => (false, 100),
        Rw::Write => (false, 0),
        Rw::Randread => (true, 100),
        Rw::Randwrite => (true, 0),
        Rw::Randrw => (true, 50),
    };
    Ok(Load {
        accesses: Accesses { random, read_percent },
        block_bytes: size("--bs", &args.bs)?,
        depth: args.iodepth,
        runtime: Duration::from_secs(args.runtime),
        most_requests: args.number_ios,
        span: args.size.as_deref().map(|text| size("--size", text)).transpose()?,
        seed: args.seed,
    })
}

pub(crate) fn run(cli: &Cli, args: &BenchArgs) -> Result<(), Ending> {
    let load = load(args)?;
    let mut sessions = Vec::new();
    for (n, url) in args.url.iter().enumerate() {
        let (mut config, lun) = session_config(cli, url)?;
        config.limits.commands = config.limits.commands.max(args.iodepth.try_into().unwrap_or(u16::MAX));
        sessions.push((config, lun.unwrap_or(0), Load { seed: load.seed.wrapping_add(n as u64), ..load.clone() }));
    }
    let threads = args.threads.clamp(1, sessions.len());
    let mut shares: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
    for (n, session) in sessions.into_iter().enumerate() {
        shares[n % threads].push(session);
    }
    let cpu = cpu_time();
    let results: Vec<Result<Measurement, Error>> = std::thread::scope(|scope| {
        let workers: Vec<_> = shares
            .into_iter()
            .map(|share| {
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                    let runs = share.into_iter().map(|(config, lun, load)| run_load(config, lun, load));
                    Ok::<_, std::io::Error>(runtime.block_on(futures::future::join_all(runs)))
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| failed("a worker thread ended in a panic"))?.map_err(failed))
            .collect::<Result<Vec<_>, Ending>>()
            .map(|lists| lists.into_iter().flatten().collect())
    })?;
    let mut total = Measurement::default();
    for result in results {
        total.add(&result.map_err(ending)?);
    }
    total.cpu = cpu_time() - cpu;
    if cli.json {
        say!("{}", serde_json::to_string_pretty(&total.figures()).map_err(failed)?)?;
    } else {
        let rw =
            clap::ValueEnum::to_possible_value(&args.rw).map_or_else(String::new, |value| value.get_name().to_owned());
        say!("bench: rw={rw}, bs={}, iodepth={}, luns={}, threads={threads}", args.bs, args.iodepth, args.url.len())?;
        say!("{total}")?;
    }
    Ok(())
}
