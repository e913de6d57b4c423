//! What a measurement says: counts, bandwidth and latency percentiles, as text in fio's manner and as JSON.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The percentiles that reports show.
pub const PERCENTILES: [f64; 9] = [1.0, 5.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9];

/// One direction of a measurement: reads or writes.
#[derive(Debug, Clone)]
pub struct Direction {
    /// Requests done.
    pub ios: u64,
    /// Bytes moved.
    pub bytes: u64,
    latency: Histogram<u64>,
}

impl Default for Direction {
    fn default() -> Self {
        // 1 ns to 100 s at 3 digits: anything slower has timed out before.
        let latency = Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("the bounds are in order");
        Self { ios: 0, bytes: 0, latency }
    }
}

impl Direction {
    /// Counts a request of `bytes` that took `latency`.
    pub fn record(&mut self, bytes: u64, latency: Duration) {
        self.ios += 1;
        self.bytes += bytes;
        self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds another measurement's counts.
    pub fn add(&mut self, other: &Self) {
        self.ios += other.ios;
        self.bytes += other.bytes;
        self.latency.add(&other.latency).expect("all histograms have the same bounds");
    }

    /// The latency that `percent` per cent of the requests stayed within.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        Duration::from_nanos(self.latency.value_at_quantile(percent / 100.0))
    }
}

/// A whole measurement.
#[derive(Debug, Clone, Default)]
pub struct Measurement {
    /// Reads.
    pub reads: Direction,
    /// Writes.
    pub writes: Direction,
    /// How long it ran.
    pub elapsed: Duration,
    /// Processor time that this process spent in it, user and system.
    pub cpu: Duration,
}

impl Measurement {
    /// Adds a measurement that ran at the same time.
    pub fn add(&mut self, other: &Self) {
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    /// Requests per second, both directions.
    #[must_use]
    pub fn iops(&self) -> f64 {
        (self.reads.ios + self.writes.ios) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Bytes per second, both directions.
    #[must_use]
    pub fn bytes_per_second(&self) -> f64 {
        (self.reads.bytes + self.writes.bytes) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The figures for JSON.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let side = |direction: &Direction| DirectionFigures {
            ios: direction.ios,
            iops: direction.ios as f64 / self.elapsed.as_secs_f64().max(1e-9),
            bytes_per_second: direction.bytes as f64 / self.elapsed.as_secs_f64().max(1e-9),
            latency_us: PERCENTILES
                .iter()
                .map(|&percent| (format!("p{percent}"), direction.percentile(percent).as_nanos() as f64 / 1e3))
                .collect(),
        };
        Figures {
            elapsed_seconds: self.elapsed.as_secs_f64(),
            cpu_seconds: self.cpu.as_secs_f64(),
            read: side(&self.reads),
            write: side(&self.writes),
        }
    }
}

/// A [`Measurement`]'s figures.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// How long it ran.
    pub elapsed_seconds: f64,
    /// Processor time of this process.
    pub cpu_seconds: f64,
    /// Reads.
    pub read: DirectionFigures,
    /// Writes.
    pub write: DirectionFigures,
}

/// A [`Direction`]'s figures.
#[derive(Debug, Clone, Serialize)]
pub struct DirectionFigures {
    /// Requests done.
    pub ios: u64,
    /// Requests per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Latency percentiles in microseconds.
    pub latency_us: std::collections::BTreeMap<String, f64>,
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, direction) in [("read", &self.reads), ("write", &self.writes)] {
            if direction.ios == 0 {
                continue;
            }
            let seconds = self.elapsed.as_secs_f64().max(1e-9);
            writeln!(
                f,
                "  {name}: IOPS={}, BW={}/s ({} requests in {:.2} s)",
                thousands(direction.ios as f64 / seconds),
                bytes((direction.bytes as f64 / seconds) as u64),
                direction.ios,
                seconds
            )?;
            write!(f, "    latency (us):")?;
            for percent in PERCENTILES {
                write!(f, " {percent}%={:.0}", direction.percentile(percent).as_nanos() as f64 / 1e3)?;
            }
            writeln!(f)?;
        }
        write!(f, "  cpu of this process: {:.2} s", self.cpu.as_secs_f64())
    }
}

/// What a peer said, for a terminal: control characters show as dots, for they could paint over what else stands there.
///
/// ```
/// assert_eq!(examples::report::plain("disk\x1b[2J"), "disk.[2J");
/// ```
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '.' } else { c }).collect()
}

/// A count as fio writes it: `312k`, `1.25M`.
#[must_use]
pub fn thousands(count: f64) -> String {
    match count {
        c if c >= 1e7 => format!("{:.1}M", c / 1e6),
        c if c >= 1e6 => format!("{:.2}M", c / 1e6),
        c if c >= 1e4 => format!("{:.0}k", c / 1e3),
        c if c >= 1e3 => format!("{:.2}k", c / 1e3),
        c => format!("{c:.0}"),
    }
}

/// Bytes in binary units: `50.0 GiB`, `512 B`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// A table with a header, columns as wide as they need to be, numbers to the right.
#[must_use]
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::from(" ");
        for (n, (cell, width)) in cells.zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            text += &if n == 0 { format!(" {cell}{pad}") } else { format!("  {pad}{cell}") };
        }
        text.trim_end().to_owned() + "\n"
    };
    let rule: usize = widths.iter().map(|width| width + 2).sum();
    let mut text = line(&mut header.iter().copied());
    text += &format!("  {}\n", "-".repeat(rule.saturating_sub(2)));
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_the_recorded_latencies() {
        let mut direction = Direction::default();
        for us in 1..=1000 {
            direction.record(512, Duration::from_micros(us));
        }
        assert_eq!((direction.ios, direction.bytes), (1000, 512_000));
        assert!((direction.percentile(50.0).as_micros() as i64 - 500).abs() <= 1);
    }

    #[test]
    fn counts_and_sizes_read_like_fio() {
        assert_eq!(thousands(312_400.0), "312k");
        assert_eq!(thousands(1_250_000.0), "1.25M");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(50 << 30), "50.0 GiB");
    }

    #[test]
    fn tables_align() {
        let text =
            table(&["what", "IOPS"], &[vec!["1 LUN".into(), "9".into()], vec!["4 targets".into(), "1000".into()]]);
        assert_eq!(text, "  what       IOPS\n  ---------------\n  1 LUN         9\n  4 targets  1000\n");
    }
}
