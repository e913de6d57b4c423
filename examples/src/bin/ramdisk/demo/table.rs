//! The table at the end: both transports side by side.

use examples::report::{Direction, Measurement, table, thousands};
use initiator_core::Transport;
use serde_json::{Value, json};

use super::layouts::{Both, LARGE, LARGE_DEPTH, Series, rate};

/// One measurement's cells: the figure, and the latency that half and nearly all of the requests stayed within.
fn cells(measurement: &Measurement, direction: &Direction, large: bool) -> [String; 3] {
    let us = |percent: f64| format!("{:.0}", direction.percentile(percent).as_nanos() as f64 / 1e3);
    let figure = if large { rate(measurement) } else { thousands(measurement.iops()) };
    [figure, us(50.0), us(99.0)]
}

/// The rows of one layout: reads and writes, TCP's cells and then iSER's.
fn rows(what: &str, tcp: &Both, iser: &Both, large: bool) -> [Vec<String>; 2] {
    let row = |access: &str, tcp: (&Measurement, &Direction), iser: (&Measurement, &Direction)| {
        let mut row = vec![format!("{what}: {access}")];
        row.extend(cells(tcp.0, tcp.1, large));
        row.extend(cells(iser.0, iser.1, large));
        row.push(format!("{:.2}", iser.0.iops() / tcp.0.iops().max(1e-9)));
        row
    };
    [
        row("read", (&tcp.reads, &tcp.reads.reads), (&iser.reads, &iser.reads.reads)),
        row("write", (&tcp.writes, &tcp.writes.writes), (&iser.writes, &iser.writes.writes)),
    ]
}

/// The table.
pub(super) fn render(tcp: &Series, iser: &Series) -> String {
    let pairs = || tcp.layouts.iter().zip(&iser.layouts);
    let header = ["512 B random, IOPS", "TCP", "p50 us", "p99 us", "iSER", "p50 us", "p99 us", "iSER/TCP"];
    let random: Vec<_> = pairs().flat_map(|(tcp, iser)| rows(tcp.layout, &tcp.random, &iser.random, false)).collect();
    let first = format!("{} KiB sequential, depth {LARGE_DEPTH}", LARGE >> 10);
    let large: Vec<_> = pairs()
        .filter_map(|(tcp, iser)| Some(rows(tcp.layout, tcp.large.as_ref()?, iser.large.as_ref()?, true)))
        .flatten()
        .collect();
    let mut second = header;
    second[0] = &first;
    format!("{}\n{}", table(&header, &random), table(&second, &large))
}

/// The figures for scripts: one entry for each layout and transport.
pub(super) fn as_json(all: &[Series]) -> Value {
    let entries = all.iter().flat_map(|series| {
        let transport = if series.over == Transport::Iser { "iser" } else { "tcp" };
        series.layouts.iter().map(move |figures| {
            let mut entry = json!({
                "layout": figures.layout, "luns": figures.luns, "transport": transport,
                "randread": figures.random.reads.figures().read, "randwrite": figures.random.writes.figures().write,
            });
            if let Some(large) = &figures.large {
                entry["read"] = json!(large.reads.figures().read);
                entry["write"] = json!(large.writes.figures().write);
                entry["sequential_bytes"] = json!(LARGE);
            }
            entry
        })
    });
    json!({ "layouts": entries.collect::<Vec<_>>() })
}
