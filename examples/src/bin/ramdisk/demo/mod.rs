//! `ramdisk demo`: the whole story of a remote RAM disk on this machine, told step by step as it happens.
//!
//! One process plays both machines: a server with its workers, and initiators that know nothing of it but its address.

mod iser;
mod layouts;
mod raid;
mod story;
mod table;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use backstore::{Backstore, RamStore, parse_size};
use examples::ending::{Ending, Why, failed, usage};
use examples::pattern;
use examples::report::bytes;
use examples::say;
use futures::stream::{self, TryStreamExt};
use initiator_core::{Disk, Portal, Rdma, Session, SessionConfig, Transport};
use iscsi_memory::Buf;
use target_core::node::{Portal as TargetPortal, PortalGroup, TargetConfig, TargetNode};
use target_core::server::IserConfig;

use crate::args::DemoArgs;
use crate::exports::{logical_unit, made_up_name};

/// What one step of the story needs to know of the machine.
struct Stage {
    runtime: tokio::runtime::Runtime,
    args_runtime: std::time::Duration,
    depth: usize,
}

/// Prints a numbered step.
fn step(number: u32, what: &str) -> Result<(), Ending> {
    say!("\n{number:>2}. {what}")
}

/// Prints a line of a step.
fn tell(text: impl std::fmt::Display) -> Result<(), Ending> {
    text.to_string().lines().try_for_each(|line| say!("    {line}"))
}

/// A node that anybody may write to, with its stores as LUN 0, 1, ….
fn open_node(
    name: &str,
    portal: SocketAddr,
    stores: &[Arc<dyn Backstore>],
) -> Result<target_core::node::TargetNodeBuilder, Ending> {
    let group = PortalGroup::new(1).portal(TargetPortal::new(portal).with_iser());
    let mut node = TargetNode::builder().name(name).open().portal_group(group);
    for (lun, store) in stores.iter().enumerate() {
        let unit = logical_unit(store.clone(), "RAM DISK", &format!("{name},{lun}"))?;
        node = node.lun(u16::try_from(lun).map_err(failed)?, Arc::new(unit));
    }
    Ok(node)
}

/// A session to a target by a transport. iSER is iWARP in user space here: it needs nothing of the machine.
fn session_config(portal: SocketAddr, target: &str, over: Transport) -> SessionConfig {
    let mut config = SessionConfig::new(Portal { host: portal.ip().to_string(), port: portal.port() }, target);
    config.transport = over;
    config.iser.rdma = Rdma::Iwarp;
    config
}

/// The name of a transport.
fn named(over: Transport) -> &'static str {
    match over {
        Transport::Tcp => "TCP",
        Transport::Iser => "iSER",
        Transport::Auto => "iSER or TCP",
    }
}

/// Requests of the verification. They are larger than what travels with a command, so that over iSER none of them is
/// copied.
const REQUEST: u64 = 64 << 10;

fn sector(offset: u64) -> u64 {
    offset / pattern::SECTOR as u64
}

/// Writes a seeded pattern over the disk's first `span` bytes.
async fn write_pattern(disk: &Disk, span: u64, seed: u64) -> Result<(), Ending> {
    stream::iter((0..span / REQUEST).map(|n| Ok(n * REQUEST)))
        .try_for_each_concurrent(16, |offset| async move {
            let mut buf = Buf::zeroed(REQUEST as usize);
            pattern::fill(&mut buf, seed, sector(offset), 1);
            disk.write_buf(offset, buf).await.1.map_err(failed)
        })
        .await
}

/// Reads the disk's first `span` bytes and compares them with the pattern.
async fn check_pattern(disk: &Disk, span: u64, seed: u64) -> Result<(), Ending> {
    stream::iter((0..span / REQUEST).map(|n| Ok(n * REQUEST)))
        .try_for_each_concurrent(16, |offset| async move {
            let (buf, result) = disk.read_buf(offset, Buf::zeroed(REQUEST as usize)).await;
            result.map_err(failed)?;
            pattern::check(&buf, seed, sector(offset), 1).map_err(|error| Ending::new(Why::Mismatch, error))
        })
        .await
}

pub(crate) fn run(args: &DemoArgs) -> Result<(), Ending> {
    if args.iodepth == 0 || args.iodepth > 4096 {
        return Err(usage("--iodepth is from 1 to 4096"));
    }
    let size = parse_size(&args.size).map_err(|error| usage(format!("--size {}: {error}", args.size)))?;
    let stage = Stage {
        runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?,
        args_runtime: std::time::Duration::from_secs(args.runtime),
        depth: args.iodepth,
    };
    say!("A remote RAM disk, whole, on this machine: first over TCP, then over iSER.")?;
    say!(
        "One process plays both sides, between them is 127.0.0.1. iSER runs over iWARP in user space: no RDMA device."
    )?;
    let started = Instant::now();

    step(1, "A RAM store")?;
    let before = Instant::now();
    let store = Arc::new(RamStore::new(size).map_err(failed)?);
    tell(format!(
        "{} in {:.2} ms; this process holds {} of memory",
        bytes(size),
        before.elapsed().as_secs_f64() * 1e3,
        resident()
    ))?;

    let scene = story::tell_all(&stage, store)?;
    let measured = |n: u32, over: Transport| {
        step(
            n,
            &format!(
                "Measured over {}: {} in flight on each LUN, {} s a figure",
                named(over),
                stage.depth,
                args.runtime
            ),
        )?;
        layouts::measure_all(&stage, over)
    };
    let tcp = measured(12, Transport::Tcp)?;
    iser::switch(&stage, scene)?;
    let iser = measured(17, Transport::Iser)?;
    step(18, "Four remote disks tied together, each over iSER")?;
    raid::tie(&stage, Transport::Iser)?;
    say!(
        "\nThe whole story took {:.1} s. Every byte read back was the byte written, over both transports.",
        started.elapsed().as_secs_f64()
    )?;
    say!("\n{}", table::render(&tcp, &iser))?;
    if args.json {
        say!("{:#}", table::as_json(&[tcp, iser]))?;
    }
    Ok(())
}

/// Resident memory of this process.
fn resident() -> String {
    let pages =
        std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.map_or_else(|| "an unknown amount".into(), |pages| bytes(pages * rustix::param::page_size() as u64))
}

/// A free port of the loopback address; 3260 if nobody has it.
fn portal() -> SocketAddr {
    let usual = SocketAddr::from(([127, 0, 0, 1], 3260));
    match std::net::TcpListener::bind(usual) {
        Ok(_) => usual,
        Err(_) => SocketAddr::from(([127, 0, 0, 1], 0)),
    }
}

/// A server of one configuration, and the address that its first portal got.
fn serve(config: TargetConfig) -> Result<(target_core::server::ServerHandle, SocketAddr), Ending> {
    let server = crate::serve::start(config, 0, Some(iser_config()))?;
    let address = *server.local_addrs().first().ok_or_else(|| failed("the server has no portal"))?;
    Ok((server, address))
}

/// iWARP in user space alone.
fn iser_config() -> IserConfig {
    IserConfig { verbs: false, ..IserConfig::default() }
}

/// Logs in and attaches LUN `lun`.
async fn attach(portal: SocketAddr, target: &str, lun: u16, over: Transport) -> Result<(Session, Disk), Ending> {
    let session = Session::connect(session_config(portal, target, over)).await.map_err(failed)?;
    let disk = session.disk(lun).await.map_err(failed)?;
    Ok((session, disk))
}

/// The demo's target names.
fn name(n: usize) -> Result<String, Ending> {
    made_up_name(n)
}
