//! A disk by one session, or by several paths: what every job that reads and writes works on.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use examples::ending::Ending;
use examples::watch::watch_paths;
use futures::FutureExt;
use initiator_core::{Disk, DiskInfo, Error, Events, Identity, Multipath, MultipathConfig, Session};
use initiator_core::{SessionConfig, SessionEvent};
use iscsi_memory::Buf;
use scsi_proto::AdditionalSense;

use crate::args::Cli;
use crate::attach::{attach, ending, session_config};

/// A disk that is open.
pub(crate) enum OpenDisk {
    /// By one session, with what has happened in it since.
    One { session: Session, disk: Disk, events: Mutex<Events> },
    /// By several paths, with how often its power was seen to have been off.
    Many { disk: Multipath, targets: Vec<(String, u16)>, power_ons: Mutex<u64> },
}

/// Whether an end of a job is named by a URL.
pub(crate) fn is_url(text: &str) -> bool {
    text.contains("://")
}

impl OpenDisk {
    /// Opens the disk that a URL leads to, and all of `more` as well: those are further paths to it.
    pub(crate) async fn open(cli: &Cli, url: &str, more: &[String]) -> Result<Self, Ending> {
        if more.is_empty() {
            let (session, disk) = attach(cli, url).await?;
            let events = session.events().into();
            return Ok(Self::One { session, disk, events });
        }
        let ways = ways(cli, url, more, |_| {})?;
        let targets = ways.iter().map(|(config, lun)| (config.target_name.clone(), *lun)).collect();
        let disk = Multipath::open(ways, multipath_config(cli)).await.map_err(ending)?;
        watch_paths(&disk);
        let power_ons = disk.power_ons().into();
        Ok(Self::Many { disk, targets, power_ons })
    }

    pub(crate) fn info(&self) -> DiskInfo {
        match self {
            Self::One { disk, .. } => disk.info(),
            Self::Many { disk, .. } => disk.info(),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::One { disk, .. } => disk.size(),
            Self::Many { disk, .. } => disk.size(),
        }
    }

    pub(crate) fn block_size(&self) -> u32 {
        match self {
            Self::One { disk, .. } => disk.block_size(),
            Self::Many { disk, .. } => disk.block_size(),
        }
    }

    fn identity(&self) -> Identity {
        match self {
            Self::One { disk, .. } => disk.known().identity,
            Self::Many { disk, .. } => disk.identity(),
        }
    }

    /// The targets and their LUNs.
    fn targets(&self) -> Vec<(String, u16)> {
        match self {
            Self::One { session, disk, .. } => vec![(session.info().target_name, disk.lun())],
            Self::Many { targets, .. } => targets.clone(),
        }
    }

    /// Whether both are one disk.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let others = other.targets();
        self.targets().iter().any(|target| others.contains(target)) && self.identity() == other.identity()
    }

    pub(crate) async fn read(&self, offset: u64, mut buf: Buf) -> Result<Buf, Error> {
        match self {
            Self::One { disk, .. } => {
                let (buf, result) = disk.read_buf(offset, buf).await;
                result.map(|()| buf)
            }
            Self::Many { disk, .. } => disk.read(offset, &mut buf).await.map(|()| buf),
        }
    }

    /// Writes a buffer, and gives it back.
    pub(crate) async fn write_buf(&self, offset: u64, buf: Buf) -> (Buf, Result<(), Error>) {
        match self {
            Self::One { disk, .. } => disk.write_buf(offset, buf).await,
            Self::Many { disk, .. } => disk.write_buf(offset, buf).await,
        }
    }

    pub(crate) async fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        match self {
            Self::One { disk, .. } => disk.write(offset, data).await,
            Self::Many { disk, .. } => disk.write(offset, data).await,
        }
    }

    pub(crate) async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Error> {
        match self {
            Self::One { disk, .. } => disk.write_zeroes(offset, len).await,
            Self::Many { disk, .. } => disk.write_zeroes(offset, len).await,
        }
    }

    pub(crate) async fn flush(&self) -> Result<(), Error> {
        match self {
            Self::One { disk, .. } => disk.flush().await,
            Self::Many { disk, .. } => disk.flush().await,
        }
    }

    /// Makes durable what was written. False where the disk has lost some of it, or may have: it does not tell whether
    /// it was switched off, and a check of all of it does.
    pub(crate) async fn flush_before_check(&self) -> Result<bool, Error> {
        match (self.flush().await, self) {
            (Err(Error::LostWrites { .. }), Self::One { .. }) => {
                self.take_lost_writes().await?;
                self.flush().await.map(|()| false)
            }
            (result, _) => result.map(|()| true),
        }
    }

    /// What the disk has lost of what it had acknowledged, as ranges of bytes.
    pub(crate) async fn take_lost_writes(&self) -> Result<Vec<Range<u64>>, Error> {
        match self {
            Self::One { disk, .. } => disk.take_lost_writes().await,
            Self::Many { disk, .. } => Ok(disk.take_lost_writes()),
        }
    }

    /// Whether the disk's power was off since this was last asked. One without a volatile cache is to have kept what it
    /// acknowledged; if it is memory, it has not.
    pub(crate) fn power_was_off(&self) -> bool {
        let (disk, events) = match self {
            Self::One { disk, events, .. } => (disk, events),
            Self::Many { disk, power_ons, .. } => {
                let mut seen = power_ons.lock().unwrap_or_else(PoisonError::into_inner);
                let now = disk.power_ons();
                return std::mem::replace(&mut *seen, now) != now;
            }
        };
        let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
        let mut off = false;
        while let Some(Some(event)) = events.next().now_or_never() {
            off |= match event {
                SessionEvent::UnitAttention { lun, code } => {
                    let of_power = [AdditionalSense::POWER_ON_OCCURRED, AdditionalSense::DEVICE_INTERNAL_RESET];
                    of_power.contains(&code) && lun.number() == Some(disk.lun())
                }
                // It may have been among them.
                SessionEvent::Missed(_) => true,
                _ => false,
            };
        }
        off
    }

    /// Logs out. Gives how often a connection was lost.
    pub(crate) async fn log_out(self) -> Result<u64, Ending> {
        match self {
            Self::One { session, .. } => {
                session.logout().await.map_err(ending)?;
                Ok(session.stats().reconnects)
            }
            Self::Many { disk, .. } => {
                let losses = disk.paths().iter().map(|path| path.losses).sum();
                disk.logout().await;
                Ok(losses)
            }
        }
    }
}

/// The sessions that several URLs describe, each as `alter` has it, with their LUNs.
pub(crate) fn ways(
    cli: &Cli,
    url: &str,
    paths: &[String],
    alter: impl Fn(&mut SessionConfig),
) -> Result<Vec<(SessionConfig, u16)>, Ending> {
    let each = |url: &str| {
        let (mut config, lun) = session_config(cli, url)?;
        alter(&mut config);
        Ok((config, lun.unwrap_or(0)))
    };
    std::iter::once(url).chain(paths.iter().map(String::as_str)).map(each).collect()
}

/// What the global options say of several paths.
pub(crate) fn multipath_config(cli: &Cli) -> MultipathConfig {
    MultipathConfig { no_path: Duration::from_secs(cli.retry), ..MultipathConfig::default() }
}
