//! `iscsi bench`: fio's words, fio-like figures.

use std::time::Duration;

use examples::ending::{Ending, failed, usage};
use examples::load::{Accesses, Load, cpu_time, run as run_load, run_over_paths};
use examples::report::Measurement;
use examples::say;
use examples::watch::watch_paths;
use initiator_core::{Error, Multipath, MultipathConfig, SessionConfig};

use crate::args::{BenchArgs, Cli, Rw};
use crate::attach::ending;
use crate::open_disk::{multipath_config, ways};

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

/// Runs the load on one LUN: over its session, or over all its paths.
async fn on_one_lun(
    mut ways: Vec<(SessionConfig, u16)>,
    paths: MultipathConfig,
    load: Load,
) -> Result<Measurement, Error> {
    if let [_] = ways[..] {
        let (config, lun) = ways.remove(0);
        return run_load(config, lun, load).await;
    }
    let disk = Multipath::open(ways, paths).await?;
    watch_paths(&disk);
    let measurement = run_over_paths(&disk, load).await;
    disk.logout().await;
    measurement
}

pub(crate) fn run(cli: &Cli, args: &BenchArgs) -> Result<(), Ending> {
    let load = load(args)?;
    if !args.path.is_empty() && args.url.len() > 1 {
        return Err(usage("--path is another path to the one LUN: give one, and its paths"));
    }
    let mut luns = Vec::new();
    for (n, url) in args.url.iter().enumerate() {
        let ways = ways(cli, url, &args.path, |config| {
            config.limits.commands = config.limits.commands.max(args.iodepth.try_into().unwrap_or(u16::MAX));
        })?;
        luns.push((ways, Load { seed: load.seed.wrapping_add(n as u64), ..load.clone() }));
    }
    let threads = args.threads.clamp(1, luns.len());
    let mut shares: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
    for (n, lun) in luns.into_iter().enumerate() {
        shares[n % threads].push(lun);
    }
    let paths = multipath_config(cli);
    let cpu = cpu_time();
    let results: Vec<Result<Measurement, Error>> = std::thread::scope(|scope| {
        let workers: Vec<_> = shares
            .into_iter()
            .map(|share| {
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                    let runs = share.into_iter().map(|(ways, load)| on_one_lun(ways, paths, load));
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
