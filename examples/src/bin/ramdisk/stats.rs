//! `ramdisk serve --stats`: IOPS, throughput and latency of each session, live, and what RDMA moved for those over
//! iSER.

use std::collections::HashMap;
use std::time::Instant;

use examples::carrier::carrier;
use examples::ending::Ending;
use examples::output::print;
use examples::report::{bytes, table, thousands};
use target_core::registry::SessionInfo;
use target_core::server::ServerHandle;
use target_core::stats::SessionStatistics;

/// Remembers the counts of the last second to show what has come since.
pub(crate) struct StatsView {
    redraw: bool,
    drawn: usize,
    last: HashMap<u16, SessionStatistics>,
    at: Instant,
}

impl StatsView {
    /// On a terminal each view is drawn over the last one; else they follow each other.
    pub(crate) fn new(redraw: bool) -> Self {
        Self { redraw, drawn: 0, last: HashMap::new(), at: Instant::now() }
    }

    /// Prints what each session did since the last call.
    ///
    /// # Errors
    /// The output cannot be written.
    pub(crate) fn show(&mut self, server: &ServerHandle) -> Result<(), Ending> {
        let seconds = self.at.elapsed().as_secs_f64().max(1e-3);
        self.at = Instant::now();
        let sessions = server.sessions();
        let mut rows = Vec::new();
        let mut seen = HashMap::new();
        for session in &sessions {
            let now = session.statistics;
            let since = now.since(&self.last.get(&session.tsih).copied().unwrap_or_default());
            seen.insert(session.tsih, now);
            rows.push(vec![
                session.initiator_name.clone(),
                session.target_name.clone().unwrap_or_else(|| "discovery".into()),
                session.transport.to_owned(),
                thousands(since.reads as f64 / seconds),
                thousands(since.writes as f64 / seconds),
                format!("{}/s", bytes((since.read_bytes as f64 / seconds) as u64)),
                format!("{}/s", bytes((since.written_bytes as f64 / seconds) as u64)),
                format!("{:.0}", since.mean_latency().as_nanos() as f64 / 1e3),
                since.errors.to_string(),
            ]);
        }
        self.last = seen;
        let mut view = if rows.is_empty() {
            "  no sessions\n".to_owned()
        } else {
            let header =
                ["initiator", "target", "over", "read IOPS", "write IOPS", "read", "written", "mean us", "errors"];
            table(&header, &rows)
        };
        if let Some(moved) = moved(&sessions) {
            view += "\n";
            view += &moved;
        }
        if let Some(memory) = server.registered_memory() {
            let [now, peak, limit] = [memory.now, memory.peak, memory.limit].map(bytes);
            view += &format!("  registered with RDMA devices: {now}, {peak} at most so far, limit {limit}\n");
        }
        if self.redraw && self.drawn > 0 {
            // Up by the lines of the last view, and clear from there on.
            print(format_args!("\x1b[{}A\x1b[J", self.drawn))?;
        }
        self.drawn = view.lines().count() + 1;
        print(format_args!("{view}\n"))
    }
}

/// What RDMA moved for each session over iSER since its login, and what it holds now; `None` if there is no such
/// session.
fn moved(sessions: &[SessionInfo]) -> Option<String> {
    let rows: Vec<_> = sessions
        .iter()
        .filter_map(|session| {
            let mover = session.mover?;
            Some(vec![
                session.initiator_name.clone(),
                carrier(session.transport, session.carrier.provider, session.carrier.device.as_deref()),
                bytes(mover.written),
                bytes(mover.read),
                bytes(mover.copied),
                bytes(mover.registered),
            ])
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    let header = ["initiator", "carried by", "RDMA-written", "RDMA-read", "copied by CPU", "transport memory"];
    Some(table(&header, &rows))
}
