//! The load generator: random or sequential requests of one size, a fixed number in flight, measured one by one.
//!
//! It is a [`Workload`] that the initiator's connection drives itself, so that no request pays for a hop between tasks.
//! `iscsi bench`, `ramdisk demo` and the benchmarks use this one.

use std::time::Duration;

use initiator_core::run_load;
use initiator_core::{BlockCompletion, BlockRequest, ConfigError, Direction, Next, Session, SessionEvent, Workload};
use initiator_core::{Error, SessionConfig};
use iscsi_memory::Buf;
use iscsi_proto::time::Instant;

use crate::report::Measurement;
use crate::watch::Watcher;

/// The pattern of accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accesses {
    /// Random places instead of one behind the other.
    pub random: bool,
    /// Reads out of 100 requests.
    pub read_percent: u8,
}

/// A load.
#[derive(Debug, Clone)]
pub struct Load {
    /// The pattern.
    pub accesses: Accesses,
    /// Bytes of one request; a multiple of the disk's block size.
    pub block_bytes: u64,
    /// Requests in flight.
    pub depth: usize,
    /// How long to run.
    pub runtime: Duration,
    /// Most requests.
    pub most_requests: Option<u64>,
    /// Use only so many bytes of the disk.
    pub span: Option<u64>,
    /// Seed of the random places.
    pub seed: u64,
}

/// Runs a load on one LUN over a session of its own, and says what it measured. Writes put the buffer's leftovers on
/// the disk.
///
/// # Errors
/// What kept the session from being opened or the requests from being done, in a sentence.
pub async fn run(config: SessionConfig, lun: u16, load: Load) -> Result<Measurement, Error> {
    let session = Session::connect(config.clone()).await?;
    let disk = session.disk(lun).await?;
    let (info, known) = (disk.info(), disk.known());
    session.logout().await?;
    let generator = Generator::new(load, lun, info.block_size, info.blocks)?;
    let (generator, result) = run_load(config, &[known], generator).await;
    result?;
    generator.finish()
}

struct Generator {
    load: Load,
    lun: u16,
    /// Disk blocks of one request.
    blocks: u32,
    /// Places on the disk, each one request long.
    places: u64,
    next_place: u64,
    random: fastrand::Rng,
    idle: Vec<(u32, Buf)>,
    directions: Vec<Direction>,
    started: Option<Instant>,
    last: Instant,
    issued: u64,
    measurement: Measurement,
    error: Option<Error>,
    watcher: Watcher,
}

impl Generator {
    fn new(load: Load, lun: u16, block_size: u32, blocks: u64) -> Result<Self, Error> {
        let block_size = u64::from(block_size.max(1));
        let span = load.span.unwrap_or(u64::MAX).min(blocks.saturating_mul(block_size));
        if load.block_bytes == 0 || !load.block_bytes.is_multiple_of(block_size) || load.block_bytes > span {
            let block_size = block_size as u32;
            let error = ConfigError::RequestSize { bytes: load.block_bytes, block_size, most: span };
            return Err(error.into());
        }
        let len = usize::try_from(load.block_bytes).unwrap_or(usize::MAX);
        let idle = (0..load.depth as u32).map(|token| (token, Buf::zeroed(len))).collect();
        Ok(Self {
            lun,
            blocks: (load.block_bytes / block_size) as u32,
            places: span / load.block_bytes,
            next_place: 0,
            random: fastrand::Rng::with_seed(load.seed),
            idle,
            directions: vec![Direction::Read; load.depth],
            started: None,
            last: Instant::ZERO,
            issued: 0,
            measurement: Measurement::default(),
            error: None,
            watcher: Watcher::default(),
            load,
        })
    }

    fn is_over(&self, now: Instant) -> bool {
        self.error.is_some()
            || self.load.most_requests.is_some_and(|most| self.issued >= most)
            || self.started.is_some_and(|started| now - started >= self.load.runtime)
    }

    fn finish(mut self) -> Result<Measurement, Error> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.measurement.elapsed = self.last - self.started.unwrap_or(self.last);
        Ok(self.measurement)
    }
}

impl Workload for Generator {
    fn next(&mut self, now: Instant) -> Next {
        if self.started.is_none() {
            self.started = Some(now);
        }
        if self.is_over(now) {
            return if self.idle.len() == self.load.depth { Next::Finished } else { Next::Wait };
        }
        let Some((token, buf)) = self.idle.pop() else { return Next::Wait };
        let direction = match self.load.accesses.read_percent {
            100.. => Direction::Read,
            0 => Direction::Write,
            percent if self.random.u8(0..100) < percent => Direction::Read,
            _ => Direction::Write,
        };
        let place = if self.load.accesses.random {
            self.random.u64(0..self.places)
        } else {
            let place = self.next_place;
            self.next_place = (place + 1) % self.places;
            place
        };
        self.directions[token as usize] = direction;
        self.issued += 1;
        let lba = place * u64::from(self.blocks);
        Next::Request(BlockRequest { token, lun: self.lun, lba, blocks: self.blocks, direction, buf })
    }

    fn event(&mut self, event: SessionEvent) {
        self.watcher.tell(&event);
    }

    fn complete(&mut self, completion: BlockCompletion, now: Instant) {
        let side = match self.directions[completion.token as usize] {
            Direction::Read => &mut self.measurement.reads,
            Direction::Write => &mut self.measurement.writes,
        };
        match completion.result {
            Ok(()) => side.record(self.load.block_bytes, completion.latency),
            Err(error) => self.error = Some(self.error.take().unwrap_or(error)),
        }
        self.last = now;
        self.idle.push((completion.token, completion.buf));
    }
}

/// Processor time that this process has used so far, user and system.
#[must_use]
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
