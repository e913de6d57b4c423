//! The load generator: random or sequential requests of one size, a fixed number in flight, measured one by one.
//!
//! It is a [`Workload`] that the initiator's connection drives itself, so that no request pays for a hop between tasks.
//! `iscsi bench`, `ramdisk demo` and the benchmarks use this one.

use std::cell::RefCell;
use std::time::Duration;

use initiator_core::run_load;
use initiator_core::{BlockCompletion, BlockRequest, ConfigError, Direction, Next, Session, SessionEvent, Workload};
use initiator_core::{DiskInfo, Error, Multipath, SessionConfig};
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
    let generator = Generator::new(load, lun, &info)?;
    let (generator, result) = run_load(config, &[known], generator).await;
    result?;
    generator.finish()
}

/// The same over several paths to one LUN: what is measured of a request is what the caller of [`Multipath`] waits.
///
/// # Errors
/// As [`run`].
pub async fn run_over_paths(disk: &Multipath, load: Load) -> Result<Measurement, Error> {
    let course = Course::new(&load, disk.block_size(), disk.size())?;
    let (depth, len, most, runtime) = (load.depth, course.len, load.most_requests, load.runtime);
    let course = RefCell::new(course);
    let measurement = RefCell::new(Measurement::default());
    let started = std::time::Instant::now();
    let one_after_the_other = || async {
        let mut buf = Buf::zeroed(len);
        loop {
            if started.elapsed() >= runtime || most.is_some_and(|most| course.borrow().issued >= most) {
                return Ok::<(), Error>(());
            }
            let (direction, lba) = course.borrow_mut().next();
            let offset = lba * u64::from(disk.block_size());
            let begun = std::time::Instant::now();
            match direction {
                Direction::Read => disk.read(offset, &mut buf).await?,
                Direction::Write => {
                    let (back, result) = disk.write_buf(offset, std::mem::replace(&mut buf, Buf::zeroed(0))).await;
                    result?;
                    buf = back;
                }
            }
            side(&mut measurement.borrow_mut(), direction).record(len as u64, begun.elapsed());
        }
    };
    futures::future::try_join_all((0..depth).map(|_| one_after_the_other())).await?;
    let mut measurement = measurement.into_inner();
    measurement.elapsed = started.elapsed();
    Ok(measurement)
}

fn side(measurement: &mut Measurement, direction: Direction) -> &mut crate::report::Direction {
    match direction {
        Direction::Read => &mut measurement.reads,
        Direction::Write => &mut measurement.writes,
    }
}

/// Where the requests go, one after the other.
struct Course {
    accesses: Accesses,
    /// Bytes of one request.
    len: usize,
    /// Disk blocks of one request.
    blocks: u32,
    /// Places on the disk, each one request long.
    places: u64,
    next_place: u64,
    random: fastrand::Rng,
    issued: u64,
}

impl Course {
    fn new(load: &Load, block_size: u32, bytes: u64) -> Result<Self, Error> {
        let block_size = u64::from(block_size.max(1));
        let span = load.span.unwrap_or(u64::MAX).min(bytes);
        if load.block_bytes == 0 || !load.block_bytes.is_multiple_of(block_size) || load.block_bytes > span {
            let block_size = block_size as u32;
            let error = ConfigError::RequestSize { bytes: load.block_bytes, block_size, most: span };
            return Err(error.into());
        }
        Ok(Self {
            accesses: load.accesses,
            len: usize::try_from(load.block_bytes).unwrap_or(usize::MAX),
            blocks: (load.block_bytes / block_size) as u32,
            places: span / load.block_bytes,
            next_place: 0,
            random: fastrand::Rng::with_seed(load.seed),
            issued: 0,
        })
    }

    /// The next request: which way, and at which block.
    fn next(&mut self) -> (Direction, u64) {
        let direction = match self.accesses.read_percent {
            100.. => Direction::Read,
            0 => Direction::Write,
            percent if self.random.u8(0..100) < percent => Direction::Read,
            _ => Direction::Write,
        };
        let place = if self.accesses.random {
            self.random.u64(0..self.places)
        } else {
            let place = self.next_place;
            self.next_place = (place + 1) % self.places;
            place
        };
        self.issued += 1;
        (direction, place * u64::from(self.blocks))
    }
}

struct Generator {
    load: Load,
    course: Course,
    lun: u16,
    idle: Vec<(u32, Buf)>,
    directions: Vec<Direction>,
    started: Option<Instant>,
    last: Instant,
    measurement: Measurement,
    error: Option<Error>,
    watcher: Watcher,
}

impl Generator {
    fn new(load: Load, lun: u16, info: &DiskInfo) -> Result<Self, Error> {
        let course = Course::new(&load, info.block_size, info.size())?;
        Ok(Self {
            lun,
            idle: (0..load.depth as u32).map(|token| (token, Buf::zeroed(course.len))).collect(),
            course,
            directions: vec![Direction::Read; load.depth],
            started: None,
            last: Instant::ZERO,
            measurement: Measurement::default(),
            error: None,
            watcher: Watcher::default(),
            load,
        })
    }

    fn is_over(&self, now: Instant) -> bool {
        self.error.is_some()
            || self.load.most_requests.is_some_and(|most| self.course.issued >= most)
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
        let (direction, lba) = self.course.next();
        self.directions[token as usize] = direction;
        Next::Request(BlockRequest { token, lun: self.lun, lba, blocks: self.course.blocks, direction, buf })
    }

    fn event(&mut self, event: SessionEvent) {
        self.watcher.tell(&event);
    }

    fn complete(&mut self, completion: BlockCompletion, now: Instant) {
        let side = side(&mut self.measurement, self.directions[completion.token as usize]);
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
