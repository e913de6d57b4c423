//! `iscsi verify`: writes a seeded pattern over the disk, reads it back and checks it, by one session or several paths.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use examples::ending::{Ending, Why, usage};
use examples::pattern;
use examples::progress::Progress;
use examples::say;
use futures::stream::{self, TryStreamExt};
use iscsi_memory::Buf;
use serde_json::json;

use crate::args::{Cli, VerifyArgs};
use crate::attach::ending;
use crate::open_disk::OpenDisk;

/// The longest time that one request took.
#[derive(Debug, Default)]
struct Longest(AtomicU64);

impl Longest {
    fn since(&self, started: Instant) {
        self.0.fetch_max(started.elapsed().as_micros() as u64, Ordering::Relaxed);
    }
}

struct Plan {
    longest: Longest,
    /// Nothing more is written.
    stop: Arc<AtomicBool>,
    seed: u64,
    request: u64,
    span: u64,
    depth: usize,
}

impl Plan {
    fn pieces(&self, span: u64) -> impl Iterator<Item = (u64, usize)> + use<> {
        let request = self.request;
        (0..span.div_ceil(request)).map(move |n| (n * request, request.min(span - n * request) as usize))
    }
}

/// Writes the pattern until it is told to stop. Gives how many bytes it has written, from the first on.
async fn write_all(disk: &OpenDisk, plan: &Plan, progress: &Progress) -> Result<u64, Ending> {
    let written = AtomicU64::new(0);
    let pieces = plan.pieces(plan.span).take_while(|_| !plan.stop.load(Ordering::Relaxed)).map(Ok);
    stream::iter(pieces)
        .try_for_each_concurrent(plan.depth, |(offset, len)| {
            let written = &written;
            async move {
                let mut buf = Buf::zeroed(len);
                pattern::fill(&mut buf, plan.seed, offset / pattern::SECTOR as u64, 1);
                let started = Instant::now();
                disk.write_buf(offset, buf).await.1.map_err(ending)?;
                plan.longest.since(started);
                progress.add(len as u64);
                written.fetch_max(offset + len as u64, Ordering::Relaxed);
                Ok(())
            }
        })
        .await
        .map(|()| written.into_inner())
}

/// Checks the pattern from the first byte on. Gives how many bytes it has checked: all, but where nothing was written
/// and it is told to stop.
async fn check_all(disk: &OpenDisk, plan: &Plan, written: Option<u64>, progress: &Progress) -> Result<u64, Ending> {
    let checked = AtomicU64::new(0);
    let stopped = || written.is_none() && plan.stop.load(Ordering::Relaxed);
    let pieces = plan.pieces(written.unwrap_or(plan.span)).take_while(|_| !stopped()).map(Ok);
    stream::iter(pieces)
        .try_for_each_concurrent(plan.depth, |(offset, len)| {
            let checked = &checked;
            async move {
                let started = Instant::now();
                let buf = disk.read(offset, Buf::zeroed(len)).await.map_err(ending)?;
                plan.longest.since(started);
                pattern::check(&buf, plan.seed, offset / pattern::SECTOR as u64, 1)
                    .map_err(|error| Ending::new(Why::Mismatch, error))?;
                progress.add(len as u64);
                checked.fetch_max(offset + len as u64, Ordering::Relaxed);
                Ok(())
            }
        })
        .await
        .map(|()| checked.into_inner())
}

/// Writes and checks, pass after pass. Gives the passes, and the bytes of the last one.
async fn passes(cli: &Cli, args: &VerifyArgs, disk: &OpenDisk, plan: &mut Plan) -> Result<(u32, u64), Ending> {
    let (mut pass, mut span) = (0, 0);
    while pass < args.passes && !plan.stop.load(Ordering::Relaxed) {
        plan.seed = args.seed.wrapping_add(pass.into());
        let (mut written, mut kept) = (None, true);
        if !args.check_only {
            let progress = Progress::new("write", plan.span, cli.json);
            written = Some(write_all(disk, plan, &progress).await?);
            kept = disk.flush_before_check().await.map_err(ending)?;
        }
        let progress = Progress::new("check", written.unwrap_or(plan.span), cli.json);
        span = match check_all(disk, plan, written, &progress).await {
            // Its memory may be gone, though it tells of no volatile cache.
            Err(ending) if ending.why() == Why::Mismatch && (!kept || disk.power_was_off()) => {
                let sentence = format!("the disk lost writes that it had acknowledged: {ending}");
                return Err(Ending::new(Why::Failed, sentence));
            }
            result => result?,
        };
        pass += 1;
    }
    Ok((pass, span))
}

pub(crate) async fn run(cli: &Cli, args: &VerifyArgs) -> Result<(), Ending> {
    let size =
        |name: &str, text: &str| backstore::parse_size(text).map_err(|error| usage(format!("{name} {text}: {error}")));
    let request = size("--bs", &args.bs)?;
    let span = args.size.as_deref().map(|text| size("--size", text)).transpose()?;
    let disk = OpenDisk::open(cli, &args.url, &args.path).await?;
    let block = u64::from(disk.block_size()).max(pattern::SECTOR as u64);
    if request == 0 || !request.is_multiple_of(block) {
        return Err(usage(format!("--bs {} is no multiple of the disk's block size of {block} bytes", args.bs)));
    }
    let span = span.unwrap_or(u64::MAX).min(disk.size()) / block * block;
    let (depth, stop) = (args.iodepth.clamp(1, 1024), Arc::<AtomicBool>::default());
    let mut plan = Plan { longest: Longest::default(), stop, seed: args.seed, request, span, depth };
    stop_at_ctrl_c(plan.stop.clone());
    let started = Instant::now();
    let (passes, span) = passes(cli, args, &disk, &mut plan).await?;
    let reconnects = disk.log_out().await?;
    let seconds = started.elapsed().as_secs_f64();
    if cli.json {
        let longest_ms = plan.longest.0.into_inner() as f64 / 1e3;
        say!(
            "{:#}",
            json!({
                "verified_bytes": span, "passes": passes, "seconds": seconds, "reconnects": reconnects,
                "longest_ms": longest_ms
            })
        )?;
    } else {
        say!("{} verified in {seconds:.2} s, no difference", examples::report::bytes(span))?;
    }
    Ok(())
}

/// The first Ctrl-C ends the writing; what was written is still checked. The second one ends the program.
fn stop_at_ctrl_c(stop: Arc<AtomicBool>) {
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            if stop.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        }
    });
}
