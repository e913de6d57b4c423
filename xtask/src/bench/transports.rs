//! Our target over TCP and over iSER, the latter by iWARP in user space, on one portal: what the transport costs, and
//! what it saves.

use interop::Result;
use interop::programs::{Ramdisk, free_port};

use super::{Arguments, Contender, Load, compare, fill};

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let portal = format!("127.0.0.1:{}", free_port()?);
    let with_iser = format!("{portal},iser");
    let serve =
        ["--workers", "1", "--portal", &with_iser, "--rdma", "iwarp", "--target", Ramdisk::TARGET, "--lun", "1G"];
    let ours = Ramdisk::serve(serve)?;
    let contender =
        |name, scheme| Contender { name, url: format!("{scheme}://{portal}/{}/0", Ramdisk::TARGET), pid: ours.pid() };
    let contenders = [contender("TCP", "iscsi"), contender("iSER", "iser")];
    println!(
        "ours over TCP and over iSER (iWARP in user space), {} rounds of {} s, one thread each side:",
        arguments.rounds, arguments.runtime
    );
    println!(
        "  {:<26} {:>12} {:>12} {:>10} {:>15} {:>15}",
        "load", "TCP", "iSER", "iSER/TCP", "CPU s/M TCP", "CPU s/M iSER"
    );
    fill(&contenders[0])?;
    let loads = [
        ("randread", arguments.bs.as_str(), arguments.iodepth),
        ("randwrite", arguments.bs.as_str(), arguments.iodepth),
        ("read", "64K", 32),
        ("write", "64K", 32),
        ("read", "1M", 8),
        ("write", "1M", 8),
    ];
    for (rw, bs, iodepth) in loads {
        let load = Load { rw, bs, iodepth, runtime: arguments.runtime };
        let medians = compare(&contenders, &load, arguments.rounds)?;
        let figure = |at: usize| match rw {
            "read" | "write" => format!("{:.0} MiB/s", medians[at].bytes_per_second / f64::from(1 << 20)),
            _ => format!("{:.0} IOPS", medians[at].iops),
        };
        println!(
            "  {:<26} {:>12} {:>12} {:>10.2} {:>15.2} {:>15.2}",
            format!("{rw} {bs}, {iodepth} in flight"),
            figure(0),
            figure(1),
            medians[1].iops / medians[0].iops,
            medians[0].cpu_per_million,
            medians[1].cpu_per_million
        );
    }
    ours.stop()?;
    Ok(())
}
