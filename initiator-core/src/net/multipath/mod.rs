//! A disk by several paths: sessions through several portals or transports to one logical unit, without dm-multipath.

mod claims;
mod path;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use backstore::BlockRanges;
use iscsi_memory::Buf;
use iscsi_proto::isid::Isid;
use iscsi_proto::pdu::TaskFunction;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Disk, DiskInfo};
use crate::command::Failure;
use crate::config::{ReconnectPolicy, SessionConfig};
use crate::entropy;
use crate::error::{Error, words};
use crate::identity::Identity;
use crate::url::{Portal, Url};

use claims::{Claim, Claims};
pub use path::Access;
use path::{Up, connect, keep};

/// How commands are spread over the paths of the best access state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PathPolicy {
    /// Each in its turn.
    #[default]
    RoundRobin,
    /// The one with the fewest operations under way.
    LeastQueue,
}

/// How a [`Multipath`] deals with its paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultipathConfig {
    /// Which path is next. Default [`PathPolicy::RoundRobin`].
    pub policy: PathPolicy,
    /// How long an operation waits while no path is up, before it ends with [`Error::NoPath`]. Default 120 s.
    pub no_path: Duration,
    /// Between two attempts to bring a path up, and between two questions to a port that is not active. Default 1 s.
    pub retry: Duration,
    /// How long writes wait that overlap one which may still be under way on a lost path, before a LOGICAL UNIT RESET
    /// over another path ends it. A path that comes back ends it at once. Default 5 s.
    pub doubt: Duration,
}

impl Default for MultipathConfig {
    fn default() -> Self {
        Self {
            policy: PathPolicy::RoundRobin,
            no_path: Duration::from_secs(120),
            retry: Duration::from_secs(1),
            doubt: Duration::from_secs(5),
        }
    }
}

/// A path as it stands.
#[derive(Debug, Clone)]
pub struct PathInfo {
    /// The portal that it was configured with.
    pub portal: Portal,
    /// Whether it is up.
    pub up: bool,
    /// How the target's port stands, when the path is up.
    pub access: Access,
    /// Operations under way.
    pub under_way: usize,
    /// How often it was lost.
    pub losses: u64,
    /// What it was lost with, or what the last attempt to bring it up failed with.
    pub last_error: Option<Error>,
}

#[derive(Debug)]
struct State {
    disk: Option<Disk>,
    access: Access,
    losses: u64,
    last_error: Option<Error>,
    /// What was acknowledged and not flushed when the path was lost, and the number of flushes begun by then: lost, if
    /// the target tells of a power-on when it is back.
    suspect: Option<(u64, BlockRanges)>,
}

#[derive(Debug)]
struct Path {
    way: (SessionConfig, u16),
    state: Mutex<State>,
    under_way: AtomicUsize,
}

/// What was written and may be lost with the target's power, over all paths.
#[derive(Debug, Default)]
struct Durability {
    written: BlockRanges,
    /// What each flush that is under way covers, by its number.
    flushing: Vec<(u64, BlockRanges)>,
    lost: BlockRanges,
    flushes: u64,
    /// How often the target's power was seen to have been off.
    power_ons: u64,
}

/// What all handles and the keepers of the paths share.
#[derive(Debug)]
pub(super) struct Core {
    config: MultipathConfig,
    paths: Vec<Path>,
    /// What the first path that was up led to.
    identity: OnceLock<Identity>,
    info: Mutex<DiskInfo>,
    claims: Arc<Claims>,
    durability: Mutex<Durability>,
    turn: AtomicUsize,
    changed: Notify,
}

/// A path that an operation is under way on.
struct On<'a> {
    core: &'a Core,
    number: usize,
    disk: Disk,
}

impl Drop for On<'_> {
    fn drop(&mut self) {
        self.core.paths[self.number].under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    fn way(&self, number: usize) -> &(SessionConfig, u16) {
        &self.paths[number].way
    }

    fn state(&self, number: usize) -> MutexGuard<'_, State> {
        lock(&self.paths[number].state)
    }

    /// Whether a path leads to the disk that was opened.
    fn is_the_same(&self, disk: &Disk) -> Result<(), Error> {
        let found = disk.known().identity;
        match self.identity.get_or_init(|| found.clone()).differs(&found) {
            Some(difference) => Err(Error::OtherDisk { lun: disk.lun(), difference }),
            None => Ok(()),
        }
    }

    fn not_up(&self, number: usize, error: Error) {
        self.state(number).last_error = Some(error);
    }

    fn up(&self, number: usize, disk: &Disk, access: Access, power_was_off: bool) {
        if power_was_off {
            self.power_was_off();
        }
        let mut state = self.state(number);
        // The login with the same ISID has ended what was under way before it (RFC 7143 6.3.5).
        self.claims.resolve(number);
        state.suspect = None;
        state.access = access;
        state.disk = Some(disk.clone());
        drop(state);
        let mut info = lock(&self.info);
        info.blocks = info.blocks.max(disk.info().blocks);
        drop(info);
        self.changed.notify_waiters();
    }

    fn down(&self, number: usize, reason: Error) {
        self.take_down(self.state(number), reason);
    }

    fn take_down(&self, mut state: MutexGuard<'_, State>, reason: Error) {
        state.last_error = Some(reason);
        if state.disk.take().is_some() {
            state.losses += 1;
            let durability = lock(&self.durability);
            let mut suspect = durability.written.clone();
            durability.flushing.iter().for_each(|(_, ranges)| suspect.extend(ranges.clone()));
            state.suspect = Some((durability.flushes, suspect));
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn set_access(&self, number: usize, access: Access) {
        self.state(number).access = access;
        self.changed.notify_waiters();
    }

    fn is_active(&self, number: usize) -> bool {
        self.state(number).access.is_active()
    }

    /// The target's power was off: what was acknowledged when paths were lost, and not flushed since, is gone.
    fn power_was_off(&self) {
        let suspects: Vec<_> = (0..self.paths.len()).filter_map(|number| self.state(number).suspect.take()).collect();
        let mut durability = lock(&self.durability);
        durability.power_ons += 1;
        for (_, ranges) in suspects {
            durability.lost.extend(ranges);
        }
    }

    /// Each path that is up and active, the best state only, the next one by the policy.
    fn pick(&self) -> Option<On<'_>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.paths.len();
        let mut best: Option<(Access, usize, usize)> = None;
        for step in 0..count {
            let number = (turn + step) % count;
            let state = self.state(number);
            if state.disk.is_none() || !state.access.is_active() {
                continue;
            }
            let under_way = match self.config.policy {
                PathPolicy::RoundRobin => 0,
                PathPolicy::LeastQueue => self.paths[number].under_way.load(Ordering::Relaxed),
            };
            if best.is_none_or(|(access, queue, _)| (state.access, under_way) < (access, queue)) {
                best = Some((state.access, under_way, number));
            }
        }
        let (_, _, number) = best?;
        let disk = self.state(number).disk.clone()?;
        self.paths[number].under_way.fetch_add(1, Ordering::Relaxed);
        Some(On { core: self, number, disk })
    }

    /// A path, as soon as there is one.
    async fn path(&self) -> Result<On<'_>, Error> {
        let deadline = Instant::now() + self.config.no_path;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !lock(&self.durability).lost.is_empty() {
                return Err(Error::LostWrites { lun: self.way(0).1 });
            }
            if let Some(on) = self.pick() {
                return Ok(on);
            }
            if timeout_at(deadline, changed).await.is_err() {
                let last = (0..self.paths.len()).find_map(|number| self.state(number).last_error.clone());
                return Err(Error::NoPath {
                    after: self.config.no_path,
                    last: Arc::new(last.unwrap_or(Error::LoggedOut)),
                });
            }
        }
    }

    /// What an operation that failed on a path comes to: `Ok` is to try again. `tries` counts those that a path has
    /// failed without being lost.
    async fn judge(&self, on: On<'_>, error: Error, claim: Option<&Claim>, tries: &mut usize) -> Result<(), Error> {
        let number = on.number;
        if let Some(access) = error.sense().and_then(|sense| Access::of_sense(sense.code)) {
            self.set_access(number, access);
            return Ok(());
        }
        let session = on.disk.session().clone();
        let over = session.has_ended();
        drop(on);
        match &error {
            // It must not be done twice, and may have been done.
            Error::Command { failure: Failure::NotRepeatable, .. } => return Err(error),
            Error::Command { failure: Failure::TimedOut | Failure::NotSent(_), .. } if !over => {
                *tries += 1;
                return if *tries < self.paths.len() { Ok(()) } else { Err(error) };
            }
            // The list of all paths knows what is lost.
            Error::LostWrites { .. } => {
                *tries += 1;
                sleep(Duration::from_millis(10)).await;
                return if *tries < 100 { Ok(()) } else { Err(error) };
            }
            _ if over => {}
            _ => return Err(error),
        }
        let state = self.state(number);
        // Where the path is back already, its login has ended what was under way.
        if state.disk.as_ref().is_some_and(|disk| !disk.session().is_same(&session)) {
            return Ok(());
        }
        if let Some(claim) = claim {
            claim.doubt(number);
        }
        self.take_down(state, error);
        Ok(())
    }
}

/// Ends what may be under way on lost paths that do not come back.
async fn settle_doubts(core: Arc<Core>) {
    loop {
        sleep(core.config.doubt).await;
        for number in 0..core.paths.len() {
            if core.state(number).disk.is_some() || !core.claims.is_in_doubt(number) {
                continue;
            }
            let Some(on) = core.pick() else { continue };
            let reset = on.disk.session().task_management(TaskFunction::LogicalUnitReset, on.disk.lun()).await;
            if matches!(reset, Ok(iscsi_proto::pdu::TaskResponse::Complete)) {
                core.claims.resolve(number);
            }
        }
    }
}

/// A flush that is under way.
struct Flush<'a> {
    core: &'a Core,
    number: u64,
}

impl Flush<'_> {
    fn take(&self) -> BlockRanges {
        let mut durability = lock(&self.core.durability);
        match durability.flushing.iter().position(|(number, _)| *number == self.number) {
            Some(at) => durability.flushing.swap_remove(at).1,
            None => BlockRanges::default(),
        }
    }

    /// What it covers is durable.
    fn done(self) {
        self.take();
        for path in 0..self.core.paths.len() {
            let mut state = self.core.state(path);
            // What was acknowledged after the flush was sent is not covered by it.
            if state.suspect.as_ref().is_some_and(|(begun, _)| *begun < self.number) {
                state.suspect = None;
            }
        }
    }
}

impl Drop for Flush<'_> {
    fn drop(&mut self) {
        let covered = self.take();
        lock(&self.core.durability).written.extend(covered);
    }
}

/// The tasks that keep the paths; they end with the last handle.
#[derive(Debug)]
struct Keepers(Vec<AbortHandle>);

impl Drop for Keepers {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// A disk by several paths: sessions through several portals, targets' ports or transports to one logical unit, known
/// by its names (VPD 83h) to be one. Clones share it; any number of operations may be under way.
///
/// Commands go over the paths whose target port groups are active/optimized, else over those that are
/// active/non-optimized (REPORT TARGET PORT GROUPS; SPC-5 5.15.2), by a [`PathPolicy`]. What a lost path held is issued
/// anew on another one, and the caller notices the time that it took to find the path lost
/// ([`Timeouts::keepalive`](crate::Timeouts::keepalive) and the like), and no error while another is up. A path that
/// comes back is used again, once it is seen to lead to the same disk.
///
/// # Writes
///
/// Writes that overlap are sent one after the other, in the order of their calls. A write that was under way on a path
/// when it was lost may still be carried out by the target: it is issued anew elsewhere, and what overlaps it waits
/// until the target has ended the old one, because the path has logged in again with its ISID (RFC 7143 6.3.5), or
/// because of a LOGICAL UNIT RESET over another path ([`MultipathConfig::doubt`]). COMPARE AND WRITE is not issued anew
/// after it may have been carried out.
///
/// A write whose future is dropped is not sent if it had not been handed to a path; else it runs to its end, and what
/// overlaps it waits.
///
/// What the disk acknowledged and may hold in a volatile cache is remembered over all paths: a target that tells of a
/// power-on when a path comes back has lost what was not flushed, and every operation ends with [`Error::LostWrites`]
/// until [`take_lost_writes`](Self::take_lost_writes).
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use initiator_core::{Multipath, MultipathConfig, Url};
/// let urls: [Url; 2] = [
///     "iscsi://192.0.2.1/iqn.2004-10.com.example:disk/0".parse()?,
///     "iscsi://198.51.100.1/iqn.2004-10.com.example:disk/0".parse()?,
/// ];
/// let disk = Multipath::from_urls(&urls, MultipathConfig::default()).await?;
/// disk.write(0, &[7; 4096]).await?;
/// disk.flush().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Multipath {
    core: Arc<Core>,
    keepers: Arc<Keepers>,
}

/// An operation that changes blocks.
enum Change {
    Data { offset: u64, buf: Buf },
    Unmap { offset: u64, len: u64 },
    Same { offset: u64, len: u64, block: Vec<u8> },
    Compare { offset: u64, expected: Vec<u8>, new: Vec<u8> },
}

impl Change {
    fn bytes(&self) -> (u64, u64) {
        match self {
            Self::Data { offset, buf } => (*offset, buf.len() as u64),
            Self::Unmap { offset, len } | Self::Same { offset, len, .. } => (*offset, *len),
            Self::Compare { offset, new, .. } => (*offset, new.len() as u64),
        }
    }

    async fn send(&mut self, disk: &Disk) -> Result<(), Error> {
        match self {
            Self::Data { offset, buf } => {
                let len = buf.len();
                let (back, result) = disk.write_buf(*offset, std::mem::replace(buf, Buf::zeroed(0))).await;
                *buf = back;
                // The runtime of the session is gone, and the data with it.
                if result.is_err() && buf.len() != len { Err(Error::RuntimeGone) } else { result }
            }
            Self::Unmap { offset, len } => disk.unmap(*offset, *len).await,
            Self::Same { offset, len, block } => disk.write_same(*offset, *len, block).await,
            Self::Compare { offset, expected, new } => disk.compare_and_write(*offset, expected, new).await,
        }
    }
}

impl Multipath {
    /// Opens the disk that all ways lead to: sessions to be, and the LUN in each. What the configurations say of
    /// reconnecting does not hold: a lost session ends at once, and its path is brought up anew for as long as there is
    /// a handle.
    ///
    /// # Errors
    /// [`Error::OtherDisk`] if two ways lead to disks without a common name; [`Error::NoPath`] if none leads anywhere.
    pub async fn open(ways: Vec<(SessionConfig, u16)>, config: MultipathConfig) -> Result<Self, Error> {
        let mut paths = Vec::with_capacity(ways.len());
        for (mut session, lun) in ways {
            // The same ISID each time: a login with it ends what was under way before.
            let [a, b, c, d, e] = entropy::bytes()?;
            session.isid.get_or_insert(Isid::random([a, b, c], u16::from_be_bytes([d, e])).to_bytes());
            session.reconnect = ReconnectPolicy { deadline: Duration::ZERO, ..session.reconnect };
            let state = State { disk: None, access: Access::Optimized, losses: 0, last_error: None, suspect: None };
            paths.push(Path { way: (session, lun), state: Mutex::new(state), under_way: AtomicUsize::new(0) });
        }
        let mut core = Core {
            config,
            paths,
            identity: OnceLock::new(),
            info: Mutex::new(DiskInfo::default()),
            claims: Arc::default(),
            durability: Mutex::new(Durability::default()),
            turn: AtomicUsize::new(0),
            changed: Notify::new(),
        };
        let attempts = (0..core.paths.len()).map(|number| connect(&core, number));
        let found: Vec<Result<Up, Error>> = futures::future::join_all(attempts).await;
        let Some(first) = found.iter().flatten().next() else {
            let last = found.into_iter().find_map(Result::err).unwrap_or(Error::LoggedOut);
            return Err(Error::NoPath { after: Duration::ZERO, last: Arc::new(last) });
        };
        let identity = first.disk.known().identity;
        core.info = Mutex::new(first.disk.info());
        if core.paths.len() > 1 && identity.names.is_empty() && identity.serial.is_none() {
            let source = words("the disk has no name by which several paths could be known to lead to it");
            return Err(Error::BadAnswer { command: "INQUIRY", source });
        }
        if let Some(Err(error)) = found.iter().find(|up| matches!(up, Err(Error::OtherDisk { .. }))) {
            return Err(error.clone());
        }
        let core = Arc::new(core);
        let mut keepers = Vec::with_capacity(core.paths.len() + 1);
        for (number, up) in found.into_iter().enumerate() {
            let first = match up {
                Ok(up) => {
                    core.up(number, &up.disk, up.access, false);
                    Some(up)
                }
                Err(error) => {
                    core.not_up(number, error);
                    None
                }
            };
            keepers.push(tokio::spawn(keep(core.clone(), number, first)).abort_handle());
        }
        keepers.push(tokio::spawn(settle_doubts(core.clone())).abort_handle());
        Ok(Self { core, keepers: Arc::new(Keepers(keepers)) })
    }

    /// Opens the disk that all URLs lead to; a URL without a LUN means LUN 0.
    ///
    /// # Errors
    /// As [`Multipath::open`].
    pub async fn from_urls(urls: &[Url], config: MultipathConfig) -> Result<Self, Error> {
        let ways = urls.iter().map(|url| (SessionConfig::from_url(url), url.lun.unwrap_or(0)));
        Self::open(ways.collect(), config).await
    }

    /// How the paths stand, in the order in which they were given.
    #[must_use]
    pub fn paths(&self) -> Vec<PathInfo> {
        let info = |path: &Path| {
            let state = lock(&path.state);
            PathInfo {
                portal: path.way.0.portal.clone(),
                up: state.disk.is_some(),
                access: state.access,
                under_way: path.under_way.load(Ordering::Relaxed),
                losses: state.losses,
                last_error: state.last_error.clone(),
            }
        };
        self.core.paths.iter().map(info).collect()
    }

    /// What the disk told about itself when it was opened.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        lock(&self.core.info).clone()
    }

    /// Size in bytes: the largest that any path has told.
    #[must_use]
    pub fn size(&self) -> u64 {
        let block = u64::from(self.block_size());
        let told = (0..self.core.paths.len())
            .filter_map(|number| self.core.state(number).disk.as_ref().map(|disk| disk.size() / block))
            .max();
        let mut info = lock(&self.core.info);
        info.blocks = info.blocks.max(told.unwrap_or(0));
        info.size()
    }

    /// Logical block length in bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        lock(&self.core.info).block_size
    }

    /// Which disk it is: what the first path that was up led to.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.core.identity.get().cloned().unwrap_or_default()
    }

    /// How often the target's power was seen to have been off while the disk was open. A target without a volatile
    /// cache is to have kept what it acknowledged all the same; one that serves memory has not.
    #[must_use]
    pub fn power_ons(&self) -> u64 {
        lock(&self.core.durability).power_ons
    }

    /// Ends when a path is lost or is back, or when its port stands otherwise; [`paths`](Self::paths) tells which. What
    /// happens from the call on is not missed, however late the future is polled.
    ///
    /// ```no_run
    /// # async fn example(disk: initiator_core::Multipath) {
    /// loop {
    ///     let changed = disk.changed();
    ///     for path in disk.paths() {
    ///         println!("{}:{} is {}", path.portal.host, path.portal.port, if path.up { "up" } else { "down" });
    ///     }
    ///     changed.await;
    /// }
    /// # }
    /// ```
    pub fn changed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.core.changed.notified()
    }

    /// Reads whole blocks.
    ///
    /// # Errors
    /// As [`Disk::read`], [`Error::NoPath`], [`Error::LostWrites`].
    pub async fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let mut tries = 0;
        loop {
            let on = self.core.path().await?;
            match on.disk.read(offset, data).await {
                Ok(()) => return Ok(()),
                Err(error) => self.core.judge(on, error, None, &mut tries).await?,
            }
        }
    }

    /// Writes whole blocks.
    ///
    /// # Errors
    /// As [`Disk::write`], [`Error::NoPath`], [`Error::LostWrites`].
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let mut buf = Buf::zeroed(data.len());
        buf.copy_from_slice(data);
        self.write_buf(offset, buf).await.1
    }

    /// Writes whole blocks from an own buffer, which nobody copies, and gives it back; an empty one where the runtime
    /// has gone away.
    ///
    /// # Errors
    /// As [`Multipath::write`].
    pub async fn write_buf(&self, offset: u64, buf: Buf) -> (Buf, Result<(), Error>) {
        match self.change(Change::Data { offset, buf }).await {
            (Some(Change::Data { buf, .. }), result) => (buf, result),
            (_, result) => (Buf::zeroed(0), result),
        }
    }

    /// Gives the blocks' space back; see [`Disk::unmap`].
    ///
    /// # Errors
    /// As [`Disk::unmap`] and [`Multipath::write`].
    pub async fn unmap(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.change(Change::Unmap { offset, len }).await.1
    }

    /// Writes one block's content over a range; see [`Disk::write_same`].
    ///
    /// # Errors
    /// As [`Disk::write_same`] and [`Multipath::write`].
    pub async fn write_same(&self, offset: u64, len: u64, block: &[u8]) -> Result<(), Error> {
        self.change(Change::Same { offset, len, block: block.to_vec() }).await.1
    }

    /// Writes zeros over a range, without sending them.
    ///
    /// # Errors
    /// As [`Multipath::write_same`].
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.write_same(offset, len, &vec![0; self.block_size() as usize]).await
    }

    /// Writes `new` if the blocks hold `expected`, in one step; see [`Disk::compare_and_write`].
    ///
    /// # Errors
    /// As [`Disk::compare_and_write`] and [`Multipath::write`]. With [`Failure::NotRepeatable`] the outcome is unknown:
    /// a path was lost while it was under way.
    pub async fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<(), Error> {
        self.change(Change::Compare { offset, expected: expected.to_vec(), new: new.to_vec() }).await.1
    }

    /// Makes durable what was written before, by whichever path.
    ///
    /// # Errors
    /// As [`Multipath::write`].
    pub async fn flush(&self) -> Result<(), Error> {
        let number = {
            let mut durability = lock(&self.core.durability);
            durability.flushes += 1;
            let (number, written) = (durability.flushes, std::mem::take(&mut durability.written));
            durability.flushing.push((number, written));
            number
        };
        // Also where this future is dropped: what was not seen to be flushed is not.
        let flush = Flush { core: &self.core, number };
        let mut tries = 0;
        let result = loop {
            let on = match self.core.path().await {
                Ok(on) => on,
                Err(error) => break Err(error),
            };
            match on.disk.flush().await {
                Ok(()) => break Ok(()),
                Err(error) => {
                    if let Err(error) = self.core.judge(on, error, None, &mut tries).await {
                        break Err(error);
                    }
                }
            }
        };
        if result.is_ok() {
            flush.done();
        }
        result
    }

    /// Takes note of what the disk has lost ([`Error::LostWrites`]), as ranges of bytes: write it again, or give up.
    /// Operations go on.
    #[must_use]
    pub fn take_lost_writes(&self) -> Vec<Range<u64>> {
        let block = u64::from(self.block_size());
        let lost = std::mem::take(&mut lock(&self.core.durability).lost);
        lost.into_vec().into_iter().map(|range| range.start * block..range.end * block).collect()
    }

    /// Logs out of all paths. Operations of clones then end with [`Error::NoPath`], after the time that it takes.
    pub async fn logout(self) {
        self.keepers.0.iter().for_each(AbortHandle::abort);
        for number in 0..self.core.paths.len() {
            let disk = self.core.state(number).disk.take();
            if let Some(disk) = disk {
                // A session that had ended before is as gone as one that logs out.
                let _ = disk.session().logout().await;
            }
        }
    }

    /// Carries out a change, and gives it back where the runtime is still there.
    async fn change(&self, mut change: Change) -> (Option<Change>, Result<(), Error>) {
        let (offset, len) = change.bytes();
        let block = u64::from(self.block_size());
        let blocks = offset / block..offset.saturating_add(len).div_ceil(block);
        let volatile = lock(&self.core.info).write_cache.unwrap_or(true);
        let multipath = self.clone();
        let claim = self.core.claims.enter(blocks.clone());
        let waits = Arc::new(());
        let waited_for = Arc::downgrade(&waits);
        // What was handed to a path runs to its end, whoever waits for it: until then its blocks are claimed.
        let running = tokio::spawn(async move {
            let core = &multipath.core;
            claim.granted().await;
            let mut tries = 0;
            let result = loop {
                if waited_for.strong_count() == 0 {
                    break Err(Error::LoggedOut);
                }
                let on = match core.path().await {
                    Ok(on) => on,
                    Err(error) => break Err(error),
                };
                match change.send(&on.disk).await {
                    Ok(()) => {
                        if volatile {
                            lock(&core.durability).written.add(blocks);
                        }
                        break Ok(());
                    }
                    Err(error) => {
                        if let Err(error) = core.judge(on, error, Some(&claim), &mut tries).await {
                            break Err(error);
                        }
                    }
                }
            };
            (change, result)
        });
        let result = running.await;
        drop(waits);
        result.map_or((None, Err(Error::RuntimeGone)), |(change, result)| (Some(change), result))
    }
}
