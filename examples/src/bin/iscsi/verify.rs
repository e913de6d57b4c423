//! `iscsi verify`: writes a seeded pattern over the disk, reads it back and checks it, by one session or several paths.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use examples::ending::{Ending, Why, usage};
use examples::pattern;
use examples::progress::Progress;
use examples::say;
use futures::stream::{self, TryStreamExt};
use initiator_core::{Disk, Error, Multipath, MultipathConfig, Session};
use iscsi_memory::Buf;
use serde_json::json;

use crate::args::{Cli, VerifyArgs};
use crate::attach::{attach, ending, session_config};

/// The disk by one session or by several paths.
enum Way {
    One(Session, Disk),
    Many(Multipath),
}

impl Way {
    async fn open(cli: &Cli, args: &VerifyArgs) -> Result<Self, Ending> {
        if args.path.is_empty() {
            let (session, disk) = attach(cli, &args.url).await?;
            return Ok(Self::One(session, disk));
        }
        let mut ways = Vec::new();
        for url in std::iter::once(&args.url).chain(&args.path) {
            let (config, lun) = session_config(cli, url)?;
            ways.push((config, lun.unwrap_or(0)));
        }
        Ok(Self::Many(Multipath::open(ways, MultipathConfig::default()).await.map_err(ending)?))
    }

    fn size(&self) -> u64 {
        match self {
            Self::One(_, disk) => disk.size(),
            Self::Many(disk) => disk.size(),
        }
    }

    fn block_size(&self) -> u32 {
        match self {
            Self::One(_, disk) => disk.block_size(),
            Self::Many(disk) => disk.block_size(),
        }
    }

    async fn write(&self, offset: u64, buf: Buf) -> Result<(), Error> {
        match self {
            Self::One(_, disk) => disk.write_buf(offset, buf).await.1,
            Self::Many(disk) => disk.write_buf(offset, buf).await,
        }
    }

    async fn read(&self, offset: u64, mut buf: Buf) -> Result<Buf, Error> {
        match self {
            Self::One(_, disk) => {
                let (buf, result) = disk.read_buf(offset, buf).await;
                result.map(|()| buf)
            }
            Self::Many(disk) => disk.read(offset, &mut buf).await.map(|()| buf),
        }
    }

    async fn flush(&self) -> Result<(), Error> {
        match self {
            Self::One(_, disk) => disk.flush().await,
            Self::Many(disk) => disk.flush().await,
        }
    }

    /// Logs out. Gives how often a connection was lost.
    async fn close(self) -> Result<u64, Error> {
        match self {
            Self::One(session, _) => session.logout().await.map(|()| session.stats().reconnects),
            Self::Many(disk) => {
                let losses = disk.paths().iter().map(|path| path.losses).sum();
                disk.logout().await;
                Ok(losses)
            }
        }
    }
}

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

async fn write_all(disk: &Way, plan: &Plan, progress: &Progress) -> Result<(), Ending> {
    stream::iter(plan.pieces().map(Ok))
        .try_for_each_concurrent(plan.depth, |(offset, len)| async move {
            let mut buf = Buf::zeroed(len);
            pattern::fill(&mut buf, plan.seed, offset / pattern::SECTOR as u64, 1);
            let started = Instant::now();
            disk.write(offset, buf).await.map_err(ending)?;
            plan.longest.since(started);
            progress.add(len as u64);
            Ok(())
        })
        .await
}

async fn check_all(disk: &Way, plan: &Plan, progress: &Progress) -> Result<(), Ending> {
    stream::iter(plan.pieces().map(Ok))
        .try_for_each_concurrent(plan.depth, |(offset, len)| async move {
            let started = Instant::now();
            let buf = disk.read(offset, Buf::zeroed(len)).await.map_err(ending)?;
            plan.longest.since(started);
            pattern::check(&buf, plan.seed, offset / pattern::SECTOR as u64, 1)
                .map_err(|error| Ending::new(Why::Mismatch, error))?;
            progress.add(len as u64);
            Ok(())
        })
        .await
}

pub(crate) async fn run(cli: &Cli, args: &VerifyArgs) -> Result<(), Ending> {
    let size =
        |name: &str, text: &str| backstore::parse_size(text).map_err(|error| usage(format!("{name} {text}: {error}")));
    let request = size("--bs", &args.bs)?;
    let span = args.size.as_deref().map(|text| size("--size", text)).transpose()?;
    let disk = Way::open(cli, args).await?;
    let block = u64::from(disk.block_size()).max(pattern::SECTOR as u64);
    if request == 0 || !request.is_multiple_of(block) {
        return Err(usage(format!("--bs {} is no multiple of the disk's block size of {block} bytes", args.bs)));
    }
    let span = span.unwrap_or(u64::MAX).min(disk.size()) / block * block;
    let mut plan =
        Plan { longest: Longest::default(), seed: args.seed, request, span, depth: args.iodepth.clamp(1, 1024) };
    let started = Instant::now();
    for pass in 0..args.passes {
        plan.seed = args.seed.wrapping_add(pass.into());
        if !args.check_only {
            let progress = Progress::new("write", span, cli.json);
            write_all(&disk, &plan, &progress).await?;
            disk.flush().await.map_err(ending)?;
        }
        let progress = Progress::new("check", span, cli.json);
        check_all(&disk, &plan, &progress).await?;
    }
    let reconnects = disk.close().await.map_err(ending)?;
    let seconds = started.elapsed().as_secs_f64();
    if cli.json {
        let longest_ms = plan.longest.0.into_inner() as f64 / 1e3;
        say!(
            "{:#}",
            json!({
                "verified_bytes": span, "seconds": seconds, "reconnects": reconnects, "longest_ms": longest_ms
            })
        )?;
    } else {
        say!("{} verified in {seconds:.2} s, no difference", examples::report::bytes(span))?;
    }
    Ok(())
}
