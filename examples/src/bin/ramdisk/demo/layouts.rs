//! Steps 12 and 17: what is measured, over one transport. One LUN; two LUNs of a target; two portals with a LUN each;
//! four targets with a LUN each.

use std::net::SocketAddr;
use std::sync::Arc;

use backstore::{Backstore, RamStore};
use examples::ending::{Ending, failed};
use examples::load::{Accesses, Load, run as run_load};
use examples::report::{Measurement, bytes, thousands};
use initiator_core::Transport;
use target_core::node::TargetConfig;
use target_core::server::ServerHandle;

use super::{Stage, attach, check_pattern, iser_config, name, open_node, session_config, tell, write_pattern};

/// Bytes of each LUN of the table.
const LUN_BYTES: u64 = 1 << 30;
/// Bytes of each LUN that are measured. All of them are written and compared before: the first touch of a page costs a
/// page fault, which is the price of memory that is allocated when it is written, not of the disk.
const MEASURED: u64 = 128 << 20;
/// Bytes of the large requests, and how many are in flight.
pub(super) const LARGE: u64 = 256 << 10;
pub(super) const LARGE_DEPTH: usize = 16;

/// Reads, and then writes, of one kind.
pub(super) struct Both {
    pub(super) reads: Measurement,
    pub(super) writes: Measurement,
}

/// What was measured of a layout.
pub(super) struct Figures {
    pub(super) layout: &'static str,
    pub(super) luns: usize,
    /// 512 bytes at random places.
    pub(super) random: Both,
    /// [`LARGE`] bytes one behind the other, on one LUN.
    pub(super) large: Option<Both>,
}

/// All layouts over one transport.
pub(super) struct Series {
    pub(super) over: Transport,
    pub(super) layouts: Vec<Figures>,
}

/// A LUN as an initiator knows it.
pub(super) struct LunAddress {
    pub(super) portal: SocketAddr,
    pub(super) target: String,
    pub(super) lun: u16,
}

fn ram() -> Result<Arc<dyn Backstore>, Ending> {
    Ok(Arc::new(RamStore::new(LUN_BYTES).map_err(failed)?))
}

/// A server of targets given by how many LUNs each has, on one portal, or each on a portal of its own.
pub(super) fn serve(luns: &[u16], own_portal: bool) -> Result<(ServerHandle, Vec<LunAddress>), Ending> {
    let mut config = TargetConfig::builder();
    for (n, count) in (0u8..).zip(luns) {
        let portal = SocketAddr::from(([127, 0, 0, if own_portal { 1 + n } else { 1 }], 0));
        let stores = (0..*count).map(|_| ram()).collect::<Result<Vec<_>, _>>()?;
        config = config.node(open_node(&name(n.into())?, portal, &stores)?);
    }
    let server = crate::serve::start(config.build().map_err(failed)?, 0, Some(iser_config()))?;
    let mut luns = Vec::new();
    for node in server.target().config().nodes() {
        let portal = node.portal_groups().iter().flat_map(|group| group.portals()).next();
        let portal = portal.ok_or_else(|| failed("a target has no portal"))?.bound_address();
        luns.extend(node.luns().iter().map(|mapped| LunAddress {
            portal,
            target: node.name().to_string(),
            lun: mapped.number,
        }));
    }
    Ok((server, luns))
}

async fn measure(stage: &Stage, luns: &[LunAddress], over: Transport, load: &Load) -> Result<Measurement, Ending> {
    let runs = luns.iter().enumerate().map(|(n, lun)| {
        let mut config = session_config(lun.portal, &lun.target, over);
        config.limits.commands = config.limits.commands.max(stage.depth as u16);
        run_load(config, lun.lun, Load { seed: n as u64 + 1, ..load.clone() })
    });
    let mut total = Measurement::default();
    for result in futures::future::join_all(runs).await {
        total.add(&result.map_err(failed)?);
    }
    Ok(total)
}

/// Reads and writes, after each other.
async fn measure_both(stage: &Stage, luns: &[LunAddress], over: Transport, large: bool) -> Result<Both, Ending> {
    let load = |read_percent: u8| Load {
        accesses: Accesses { random: !large, read_percent },
        block_bytes: if large { LARGE } else { 512 },
        depth: if large { LARGE_DEPTH } else { stage.depth },
        runtime: stage.args_runtime,
        most_requests: None,
        span: Some(MEASURED),
        seed: 1,
    };
    let reads = measure(stage, luns, over, &load(100)).await?;
    let writes = measure(stage, luns, over, &load(0)).await?;
    Ok(Both { reads, writes })
}

/// Bytes per second of both directions together, in words.
pub(super) fn rate(measurement: &Measurement) -> String {
    format!("{}/s", bytes(measurement.bytes_per_second() as u64))
}

pub(super) fn measure_all(stage: &Stage, over: Transport) -> Result<Series, Ending> {
    let layouts: [(&str, &[u16], bool); 4] = [
        ("1 LUN", &[1], false),
        ("1 target, 2 LUNs", &[2], false),
        ("2 portals, a LUN each", &[1, 1], true),
        ("4 targets, a LUN each", &[1, 1, 1, 1], false),
    ];
    let mut all = Vec::new();
    for (layout, luns, own_portal) in layouts {
        let (server, luns) = serve(luns, own_portal)?;
        let figures = stage.runtime.block_on(async {
            for (n, lun) in luns.iter().enumerate() {
                let (session, disk) = attach(lun.portal, &lun.target, lun.lun, over).await?;
                write_pattern(&disk, MEASURED, n as u64).await?;
                check_pattern(&disk, MEASURED, n as u64).await?;
                session.logout().await.map_err(failed)?;
            }
            let random = measure_both(stage, &luns, over, false).await?;
            let large = match luns.len() {
                1 => Some(measure_both(stage, &luns, over, true).await?),
                _ => None,
            };
            Ok(Figures { layout, luns: luns.len(), random, large })
        });
        server.stop(crate::serve::GRACE);
        let figures: Figures = figures?;
        let Both { reads, writes } = &figures.random;
        tell(format!(
            "{layout}: 512 B random, {} reads/s, {} writes/s",
            thousands(reads.iops()),
            thousands(writes.iops())
        ))?;
        if let Some(Both { reads, writes }) = &figures.large {
            tell(format!("{layout}: {} KiB sequential, read {}, write {}", LARGE >> 10, rate(reads), rate(writes)))?;
        }
        all.push(figures);
    }
    Ok(Series { over, layouts: all })
}
