//! A disk by several paths: sessions through several portals or transports to one logical unit, without dm-multipath.
//!
//! The decisions are [`crate::multipath`]'s; here is what carries them out.

mod change;
mod core;
mod path;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use iscsi_driver::Clock;
use iscsi_memory::Buf;
use iscsi_proto::isid::Isid;
use tokio::sync::Notify;

use super::DiskInfo;
use crate::config::{ReconnectPolicy, SessionConfig};
use crate::entropy;
use crate::error::{Error, words};
use crate::identity::Identity;
use crate::multipath::{Access, Action, Kind, MultipathConfig, Operation, Paths};
use crate::url::{Portal, Url};

use change::{Change, Request};
use core::{Core, Link, Turn};
use path::{Failed, Up, begin, connect, follow};

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

/// Ends what keeps the paths with the last handle.
#[derive(Debug)]
struct Keepers(Arc<Core>);

impl Drop for Keepers {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A disk by several paths: sessions through several portals, targets' ports or transports to one logical unit, known
/// by its names (VPD 83h) to be one. Clones share it; any number of operations may be under way.
///
/// Commands go over the paths whose target port groups are active/optimized, else over those that are
/// active/non-optimized (REPORT TARGET PORT GROUPS; SPC-5 5.15.2), by a [`PathPolicy`](crate::PathPolicy). What a lost path held is issued
/// anew on another one, and the caller notices the time that it took to find the path lost
/// ([`Timeouts::keepalive`](crate::Timeouts::keepalive) and the like), and no error while another is up. A path that
/// comes back is used again, once it is seen to lead to the same disk.
///
/// # Writes
///
/// Writes that overlap are sent one after the other, in the order of their calls. A write that was under way on a path
/// when it was lost may still be carried out by the target: it is sent anew by another path, and what overlaps it waits
/// until the target has ended the old one. That is certain once the path, or another one for it that leads to the same
/// portal group, has logged in with its ISID (RFC 7143 6.3.5). Where neither can, a LOGICAL UNIT RESET over another
/// path ends it after [`MultipathConfig::doubt`]: all that has reached the target by then; the lost connection was
/// reset, so that what could still come is only what routers held for longer than the path took to be found lost and
/// `doubt` together. See [`multipath`](crate::multipath). COMPARE AND WRITE is not sent anew after it may have been
/// carried out.
///
/// A write whose future is dropped is not sent if it had not been handed to a path; else it runs to its end, and what
/// overlaps it waits.
///
/// What the disk acknowledged and may hold in a volatile cache is remembered over all paths: a target that tells of a
/// power-on when a path comes back has lost what was not flushed, and every operation ends with [`Error::LostWrites`]
/// until [`take_lost_writes`](Self::take_lost_writes). After a flush that failed none is good by any path, until then
/// or until all that it covered is written anew. A path that was never up before and tells of a power-on (29h/01h)
/// while others are lost is believed, though some targets say so to each new nexus.
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
    _keepers: Arc<Keepers>,
}

impl Multipath {
    /// Opens the disk that all ways lead to: sessions to be, and the LUN in each. What the configurations say of
    /// reconnecting does not hold: a lost session ends at once, and its path is brought up anew for as long as there is
    /// a handle.
    ///
    /// # Errors
    /// [`Error::OtherDisk`] if two ways lead to disks without a common name; [`Error::NoPath`] if none leads anywhere.
    pub async fn open(ways: Vec<(SessionConfig, u16)>, config: MultipathConfig) -> Result<Self, Error> {
        let mut links = Vec::with_capacity(ways.len());
        for (mut session, lun) in ways {
            // The same ISID each time: a login with it ends what was under way before.
            let [a, b, c, d, e] = entropy::bytes()?;
            session.isid.get_or_insert(Isid::random([a, b, c], u16::from_be_bytes([d, e])).to_bytes());
            session.reconnect = ReconnectPolicy { deadline: Duration::ZERO, ..session.reconnect };
            let prove = Arc::new(Notify::new());
            links.push(Link { way: (session, lun), disk: None, last_error: None, prove });
        }
        let now = Clock::process().now();
        let mut paths = Paths::new(config, links.len(), now);
        paths.handle_timeout(now);
        let mut attempts = Vec::with_capacity(links.len());
        while let Some(action) = paths.poll() {
            if let Action::Connect { path } = action {
                attempts.push(connect(&links[path].way));
            }
        }
        let found: Vec<Result<Up, Failed>> = futures::future::join_all(attempts).await;
        let Some(first) = found.iter().flatten().next() else {
            let last = found.into_iter().find_map(Result::err).map_or(Error::LoggedOut, |failed| failed.error);
            return Err(Error::NoPath { after: Duration::ZERO, last: Arc::new(last) });
        };
        let identity = first.disk.known().identity;
        if links.len() > 1 && identity.names.is_empty() && identity.serial.is_none() {
            let source = words("the disk has no name by which several paths could be known to lead to it");
            return Err(Error::BadAnswer { command: "INQUIRY", source });
        }
        for up in found.iter().flatten() {
            if let Some(difference) = identity.differs(&up.disk.known().identity) {
                return Err(Error::OtherDisk { lun: up.disk.lun(), difference });
            }
        }
        let core = Core::new(paths, links, first.disk.info());
        for (path, up) in found.into_iter().enumerate() {
            match up {
                Ok(up) => {
                    let used = begin(&core, path, &up);
                    core.spawn(follow(core.clone(), path, up, used));
                }
                Err(Failed { error, power }) => core.with(|inner, now| {
                    inner.links[path].last_error = Some(error);
                    inner.paths.not_opened(path, power, now);
                }),
            }
        }
        Ok(Self { _keepers: Arc::new(Keepers(core.clone())), core })
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
        self.core.look(|inner| {
            let info = |(path, link): (usize, &Link)| PathInfo {
                portal: link.way.0.portal.clone(),
                up: inner.paths.is_up(path),
                access: inner.paths.access(path),
                under_way: inner.paths.under_way(path),
                losses: inner.paths.losses(path),
                last_error: link.last_error.clone(),
            };
            inner.links.iter().enumerate().map(info).collect()
        })
    }

    /// What the disk told about itself when it was opened.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        DiskInfo { blocks: self.blocks(), ..self.core.info.clone() }
    }

    fn blocks(&self) -> u64 {
        let told = self.core.look(|inner| inner.paths.identity().map(|identity| identity.blocks));
        told.unwrap_or(self.core.info.blocks)
    }

    /// Size in bytes: the largest that any path has told.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blocks() * u64::from(self.block_size())
    }

    /// Logical block length in bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.core.info.block_size
    }

    /// Which disk it is: what the first path that was up led to, with the most blocks that any path has told.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.core.look(|inner| inner.paths.identity().cloned()).unwrap_or_default()
    }

    /// How often the target's power was seen to have been off while the disk was open. A target without a volatile
    /// cache is to have kept what it acknowledged all the same; one that serves memory has not.
    #[must_use]
    pub fn power_ons(&self) -> u64 {
        self.core.look(|inner| inner.paths.power_ons())
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

    /// The blocks of a range.
    fn range(&self, offset: u64, len: u64) -> Result<Range<u64>, Error> {
        let (size, block_size) = (self.size(), self.block_size());
        let block = u64::from(block_size);
        let whole = offset.is_multiple_of(block) && len.is_multiple_of(block);
        match offset.checked_add(len) {
            Some(end) if whole && end <= size => Ok(offset / block..end / block),
            _ => Err(Error::Range { offset, len, size, block_size }),
        }
    }

    /// Reads whole blocks.
    ///
    /// # Errors
    /// As [`Disk::read`](crate::Disk::read), [`Error::NoPath`], [`Error::LostWrites`].
    pub async fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let blocks = self.range(offset, data.len() as u64)?;
        let turn = self.core.submit(Operation { kind: Kind::Read, blocks });
        turn.run(&mut Request::Read { offset, data }).await
    }

    /// Writes whole blocks.
    ///
    /// # Errors
    /// As [`Disk::write`](crate::Disk::write), [`Error::NoPath`], [`Error::LostWrites`].
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

    /// Gives the blocks' space back; see [`Disk::unmap`](crate::Disk::unmap).
    ///
    /// # Errors
    /// As [`Disk::unmap`](crate::Disk::unmap) and [`Multipath::write`].
    pub async fn unmap(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.change(Change::Unmap { offset, len }).await.1
    }

    /// Writes one block's content over a range; see [`Disk::write_same`](crate::Disk::write_same).
    ///
    /// # Errors
    /// As [`Disk::write_same`](crate::Disk::write_same) and [`Multipath::write`].
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

    /// Writes `new` if the blocks hold `expected`, in one step; see [`Disk::compare_and_write`](crate::Disk::compare_and_write).
    ///
    /// # Errors
    /// As [`Disk::compare_and_write`](crate::Disk::compare_and_write) and [`Multipath::write`]. With [`Failure::NotRepeatable`](crate::command::Failure::NotRepeatable) the outcome is unknown:
    /// a path was lost while it was under way.
    pub async fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<(), Error> {
        self.change(Change::Compare { offset, expected: expected.to_vec(), new: new.to_vec() }).await.1
    }

    /// Makes durable what was written before, by whichever path.
    ///
    /// # Errors
    /// As [`Multipath::write`].
    pub async fn flush(&self) -> Result<(), Error> {
        let turn = self.core.submit(Operation { kind: Kind::Flush, blocks: 0..0 });
        turn.run(&mut Request::Flush).await
    }

    /// Takes note of what the disk has lost ([`Error::LostWrites`]), as ranges of bytes: write it again, or give up.
    /// Operations go on.
    #[must_use]
    pub fn take_lost_writes(&self) -> Vec<Range<u64>> {
        let block = u64::from(self.block_size());
        let lost = self.core.with(|inner, now| inner.paths.take_lost(now));
        lost.into_iter().map(|range| range.start * block..range.end * block).collect()
    }

    /// Logs out of all paths. Operations of clones then end with [`Error::LoggedOut`].
    pub async fn logout(self) {
        self.core.close();
        let disks = self.core.with(|inner, _| inner.log_out());
        for disk in disks {
            // A session that had ended before is as gone as one that logs out.
            let _ = disk.session().logout().await;
        }
    }

    /// Carries out a change, and gives it back where the runtime is still there.
    async fn change(&self, change: Change) -> (Option<Change>, Result<(), Error>) {
        let (offset, len) = change.bytes();
        let blocks = match self.range(offset, len) {
            Ok(blocks) => blocks,
            Err(error) => return (Some(change), Err(error)),
        };
        let kind = Kind::Change { repeatable: change.is_repeatable() };
        let turn = self.core.submit(Operation { kind, blocks });
        let waits = Waits { core: self.core.clone(), number: turn.number };
        // What was handed to a path runs to its end, whoever waits for it: until then its blocks are claimed.
        let running = tokio::spawn(run(turn, change, self.clone()));
        let result = running.await;
        drop(waits);
        result.map_or((None, Err(Error::RuntimeGone)), |(change, result)| (Some(change), result))
    }
}

/// Somebody waits for a change.
struct Waits {
    core: Arc<Core>,
    number: u64,
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.core.with(|inner, now| inner.paths.abandon(self.number, now));
    }
}

/// Runs a change to its end. The paths are kept up until then.
async fn run(turn: Turn, change: Change, _handle: Multipath) -> (Change, Result<(), Error>) {
    let mut request = Request::Change(change);
    let result = turn.run(&mut request).await;
    let Request::Change(change) = request else { unreachable!("it is a change") };
    (change, result)
}
