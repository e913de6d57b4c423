//! `iscsi verify`: writes a seeded pattern over the disk, reads it back and checks it.

use examples::ending::{Ending, Why, usage};
use examples::pattern;
use examples::progress::Progress;
use examples::say;
use futures::stream::{self, TryStreamExt};
use initiator_core::Disk;
use iscsi_memory::Buf;
use serde_json::json;

use crate::args::{Cli, VerifyArgs};
use crate::attach::{attach, ending};

struct Plan {
    seed: u64,
    request: u64,
    span: u64,
    depth: usize,
}

impl Plan {
    fn pieces(&self) -> impl Iterator<Item = (u64, usize)> + use<> {
        let (request, span) = (self.request, self.span);
        (0..span.div_ceil(request)).map(move |n| (n * request, request.min(span - n * request) as usize))
    }
}

async fn write_all(disk: &Disk, plan: &Plan, progress: &Progress) -> Result<(), Ending> {
    stream::iter(plan.pieces().map(Ok))
        .try_for_each_concurrent(plan.depth, |(offset, len)| async move {
            let mut buf = Buf::zeroed(len);
            pattern::fill(&mut buf, plan.seed, offset / pattern::SECTOR as u64, 1);
            disk.write_buf(offset, buf).await.1.map_err(ending)?;
            progress.add(len as u64);
            Ok(())
        })
        .await
}

async fn check_all(disk: &Disk, plan: &Plan, progress: &Progress) -> Result<(), Ending> {
    stream::iter(plan.pieces().map(Ok))
        .try_for_each_concurrent(plan.depth, |(offset, len)| async move {
            let (buf, result) = disk.read_buf(offset, Buf::zeroed(len)).await;
            result.map_err(ending)?;
            pattern::check(&buf, plan.seed, offset / pattern::SECTOR as u64, 1)
                .map_err(|error| Ending::new(Why::Mismatch, error))?;
            progress.add(len as u64);
            Ok(())
        })
        .await
}

pub(crate) async fn run(cli: &Cli, args: &VerifyArgs) -> Result<(), Ending> {
    let size = |name: &str, text: &str| {
        target_core::store::parse_size(text).map_err(|error| usage(format!("{name} {text}: {error}")))
    };
    let request = size("--bs", &args.bs)?;
    let span = args.size.as_deref().map(|text| size("--size", text)).transpose()?;
    let (session, disk) = attach(cli, &args.url).await?;
    let block = u64::from(disk.block_size()).max(pattern::SECTOR as u64);
    if request == 0 || !request.is_multiple_of(block) {
        return Err(usage(format!("--bs {} is no multiple of the disk's block size of {block} bytes", args.bs)));
    }
    let span = span.unwrap_or(u64::MAX).min(disk.size()) / block * block;
    let plan = Plan { seed: args.seed, request, span, depth: args.iodepth.clamp(1, 1024) };
    let started = std::time::Instant::now();
    if !args.check_only {
        let progress = Progress::new("write", span, cli.json);
        write_all(&disk, &plan, &progress).await?;
        disk.flush().await.map_err(ending)?;
    }
    let progress = Progress::new("check", span, cli.json);
    check_all(&disk, &plan, &progress).await?;
    drop(progress);
    session.logout().await.map_err(ending)?;
    let seconds = started.elapsed().as_secs_f64();
    if cli.json {
        say!("{:#}", json!({ "verified_bytes": span, "seconds": seconds, "reconnects": session.stats().reconnects }))?;
    } else {
        say!("{} verified in {seconds:.2} s, no difference", examples::report::bytes(span))?;
    }
    Ok(())
}
