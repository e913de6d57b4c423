//! Step 12: the table. One LUN; two LUNs of a target; two portals with a LUN each; four targets with a LUN each.

use std::net::SocketAddr;
use std::sync::Arc;

use examples::ending::{Ending, failed};
use examples::load::{Accesses, Load, run as run_load};
use examples::report::{Measurement, table, thousands};
use target_core::node::TargetConfig;
use target_core::server::ServerHandle;
use target_core::store::{Backstore, RamStore};

use super::{Stage, attach, name, open_node, session_config, tell, verify};

/// Bytes of each LUN of the table.
const LUN_BYTES: u64 = 1 << 30;
/// Bytes of each LUN that are measured. All of them are written and compared before: the first touch of a page costs a page fault, which is the
/// price of memory that is allocated when it is written, not of the disk.
const MEASURED: u64 = 256 << 20;

/// A line of the table.
pub(super) struct Figures {
    layout: &'static str,
    luns: usize,
    reads: Measurement,
    writes: Measurement,
}

/// A LUN as an initiator knows it.
pub(super) struct Place {
    pub(super) portal: SocketAddr,
    pub(super) target: String,
    pub(super) lun: u16,
}

fn ram() -> Result<Arc<dyn Backstore>, Ending> {
    Ok(Arc::new(RamStore::new(LUN_BYTES).map_err(failed)?))
}

/// A server of targets given by how many LUNs each has, on one portal, or each on a portal of its own.
pub(super) fn serve(luns: &[u16], own_portal: bool) -> Result<(ServerHandle, Vec<Place>), Ending> {
    let mut config = TargetConfig::builder();
    for (n, count) in (0u8..).zip(luns) {
        let portal = SocketAddr::from(([127, 0, 0, if own_portal { 1 + n } else { 1 }], 0));
        let stores = (0..*count).map(|_| ram()).collect::<Result<Vec<_>, _>>()?;
        config = config.node(open_node(&name(n.into())?, portal, &stores)?);
    }
    let server = crate::serve::start(config.build().map_err(failed)?, 0)?;
    let mut places = Vec::new();
    for node in server.target().config().nodes() {
        let portal = node.portal_groups().iter().flat_map(|group| group.portals()).next();
        let portal = portal.ok_or_else(|| failed("a target has no portal"))?.bound_address();
        places.extend(node.luns().iter().map(|mapped| Place {
            portal,
            target: node.name().to_string(),
            lun: mapped.number,
        }));
    }
    Ok((server, places))
}

async fn measure(stage: &Stage, places: &[Place], read_percent: u8) -> Result<Measurement, Ending> {
    let runs = places.iter().enumerate().map(|(n, place)| {
        let mut config = session_config(place.portal, &place.target);
        config.limits.commands = config.limits.commands.max(stage.depth as u16);
        let load = Load {
            accesses: Accesses { random: true, read_percent },
            block_bytes: 512,
            depth: stage.depth,
            runtime: stage.args_runtime,
            most_requests: None,
            span: Some(MEASURED),
            seed: n as u64 + 1,
        };
        run_load(config, place.lun, load)
    });
    let mut total = Measurement::default();
    for result in futures::future::join_all(runs).await {
        total.add(&result.map_err(failed)?);
    }
    Ok(total)
}

pub(super) fn measure_all(stage: &Stage) -> Result<Vec<Figures>, Ending> {
    let layouts: [(&str, &[u16], bool); 4] = [
        ("1 LUN", &[1], false),
        ("1 target, 2 LUNs", &[2], false),
        ("2 portals, a LUN each", &[1, 1], true),
        ("4 targets, a LUN each", &[1, 1, 1, 1], false),
    ];
    let mut all = Vec::new();
    for (layout, luns, own_portal) in layouts {
        let (server, places) = serve(luns, own_portal)?;
        let figures = stage.runtime.block_on(async {
            for (n, place) in places.iter().enumerate() {
                let (session, disk) = attach(place.portal, &place.target, place.lun).await?;
                verify(&disk, MEASURED, n as u64).await?;
                session.logout().await.map_err(failed)?;
            }
            let reads = measure(stage, &places, 100).await?;
            let writes = measure(stage, &places, 0).await?;
            Ok(Figures { layout, luns: places.len(), reads, writes })
        });
        server.stop(crate::serve::GRACE);
        let figures: Figures = figures?;
        tell(format!(
            "{layout}: {} reads/s, {} writes/s",
            thousands(figures.reads.iops()),
            thousands(figures.writes.iops())
        ));
        all.push(figures);
    }
    Ok(all)
}

/// The table.
pub(super) fn render(all: &[Figures]) -> String {
    let header =
        ["512-byte random I/O over TCP", "LUNs", "read IOPS", "p50 us", "p99 us", "write IOPS", "p50 us", "p99 us"];
    let rows: Vec<_> = all
        .iter()
        .map(|figures| {
            let us = |duration: std::time::Duration| format!("{:.0}", duration.as_nanos() as f64 / 1e3);
            vec![
                figures.layout.to_owned(),
                figures.luns.to_string(),
                thousands(figures.reads.iops()),
                us(figures.reads.reads.percentile(50.0)),
                us(figures.reads.reads.percentile(99.0)),
                thousands(figures.writes.iops()),
                us(figures.writes.writes.percentile(50.0)),
                us(figures.writes.writes.percentile(99.0)),
            ]
        })
        .collect();
    table(&header, &rows)
}

/// The table's figures for scripts.
pub(super) fn as_json(all: &[Figures]) -> serde_json::Value {
    let rows: Vec<_> = all
        .iter()
        .map(|figures| {
            serde_json::json!({
                "layout": figures.layout, "luns": figures.luns, "transport": "tcp",
                "randread": figures.reads.figures().read, "randwrite": figures.writes.figures().write,
            })
        })
        .collect();
    serde_json::json!({ "layouts": rows })
}
