//! The two ends of a copy: disks, files, pipes.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use examples::ending::{Ending, failed, usage};
use initiator_core::Error;
use iscsi_memory::Buf;
use scsi_proto::SenseKey;
use tokio::sync::Mutex;

use super::file::{NamedFile, Piece};
use super::pipe::{Input, Output};
use crate::args::{Cli, CopyArgs};
use crate::attach::ending;
use crate::open_disk::{OpenDisk, is_url};

pub(super) enum Source {
    Disk(OpenDisk),
    File(NamedFile, u64),
    Input(Mutex<Input>, Option<u64>),
}

/// A disk that is written.
pub(super) struct Target {
    disk: OpenDisk,
    /// It takes zeroes without their being sent.
    zeroes: AtomicBool,
}

pub(super) enum Destination {
    Disk(Target),
    /// With how much it holds, if that is fixed.
    File(NamedFile, Option<u64>),
    Output(Output),
}

/// What a write or a flush came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Kept,
    /// The disk lost its power, and what it had not made durable with it.
    Lost,
}

impl Done {
    fn of(result: Result<(), Error>) -> Result<Self, Ending> {
        match result {
            Ok(()) => Ok(Self::Kept),
            Err(Error::LostWrites { .. }) => Ok(Self::Lost),
            Err(error) => Err(ending(error)),
        }
    }
}

/// Paths are to disks of targets only.
fn no_paths(name: &str, option: &str, paths: &[String]) -> Result<(), Ending> {
    match paths {
        [] => Ok(()),
        _ => Err(usage(format!("{option} is another path to the disk of a URL, and {name} is none"))),
    }
}

impl Source {
    pub(super) async fn open(cli: &Cli, args: &CopyArgs, request: u64) -> Result<Self, Ending> {
        if !is_url(&args.from) {
            no_paths(&args.from, "--from-path", &args.from_path)?;
        }
        match args.from.as_str() {
            "-" => {
                let input = Input::open(request as usize, args.iodepth, args.raw)?;
                let size = input.size;
                Ok(Self::Input(Mutex::new(input), size))
            }
            url if is_url(url) => OpenDisk::open(cli, url, &args.from_path).await.map(Self::Disk),
            name => NamedFile::source(name, args.raw).map(|(file, size)| Self::File(file, size)),
        }
    }

    /// Its bytes, as far as is known.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::Disk(disk) => Some(disk.size()),
            Self::File(_, size) => Some(*size),
            Self::Input(_, size) => *size,
        }
    }

    /// Its block size, which requests have to keep to.
    pub(super) fn grain(&self) -> u64 {
        match self {
            Self::Disk(disk) => disk.block_size().into(),
            Self::File(..) | Self::Input(..) => 1,
        }
    }

    /// Reads a piece of one that can be read anywhere.
    pub(super) async fn read(&self, offset: u64, len: u64) -> Result<Piece, Ending> {
        let buf = Buf::zeroed(len as usize);
        match self {
            Self::Disk(disk) => read_disk(disk, offset, buf).await,
            Self::File(file, _) => file.read(offset, buf).await,
            Self::Input(..) => Err(failed("standard input can be read once only")),
        }
    }

    pub(super) async fn log_out(self) -> Result<(), Ending> {
        match self {
            Self::Disk(disk) => disk.log_out().await.map(drop),
            Self::File(..) | Self::Input(..) => Ok(()),
        }
    }
}

async fn read_disk(disk: &OpenDisk, offset: u64, buf: Buf) -> Result<Piece, Ending> {
    disk.read(offset, buf).await.map(Piece::Data).map_err(ending)
}

impl Destination {
    pub(super) async fn open(cli: &Cli, args: &CopyArgs) -> Result<Self, Ending> {
        if !is_url(&args.to) {
            no_paths(&args.to, "--to-path", &args.to_path)?;
        }
        match args.to.as_str() {
            "-" => Output::open().map(Self::Output),
            url if is_url(url) => {
                let disk = OpenDisk::open(cli, url, &args.to_path).await?;
                let info = disk.info();
                // Only where the blocks are known to read as zeroes after it: by WRITE SAME, whose data they then have
                // whatever becomes of them (SBC-4 5.49); UNMAP alone is advice.
                let zeroes = info.max_write_same_blocks > 0 || info.write_same_unmap && info.unmapped_reads_zero;
                Ok(Self::Disk(Target { disk, zeroes: AtomicBool::new(zeroes) }))
            }
            name => NamedFile::destination(name).map(|(file, holds)| Self::File(file, holds)),
        }
    }

    /// How much it holds, if that is fixed.
    pub(super) fn holds(&self) -> Option<u64> {
        match self {
            Self::Disk(Target { disk, .. }) => Some(disk.size()),
            Self::File(_, holds) => *holds,
            Self::Output(_) => None,
        }
    }

    pub(super) fn grain(&self) -> u64 {
        match self {
            Self::Disk(Target { disk, .. }) => disk.block_size().into(),
            Self::File(..) | Self::Output(_) => 1,
        }
    }

    /// Whether it is the source itself.
    pub(super) fn is(&self, source: &Source) -> bool {
        match (self, source) {
            (Self::File(to, _), Source::File(from, _)) => to.is(from),
            (Self::Disk(Target { disk, .. }), Source::Disk(from)) => disk.is(from),
            _ => false,
        }
    }

    /// What is written is in order, with nothing left out.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Output(_))
    }

    /// A file gets the length of what is copied.
    pub(super) fn set_len(&self, size: u64) -> Result<(), Ending> {
        match self {
            Self::File(file, _) => file.set_len(size),
            Self::Disk(..) | Self::Output(_) => Ok(()),
        }
    }

    /// Writes a part of a buffer, and gives the buffer back.
    pub(super) async fn write(&self, offset: u64, buf: Buf, part: Range<usize>) -> Result<(Buf, Done), Ending> {
        match self {
            Self::Disk(Target { disk, .. }) if part == (0..buf.len()) => {
                let (buf, result) = disk.write_buf(offset, buf).await;
                Done::of(result).map(|done| (buf, done))
            }
            Self::Disk(Target { disk, .. }) => {
                let done = Done::of(disk.write(offset, &buf[part]).await)?;
                Ok((buf, done))
            }
            Self::File(file, _) => file.write(offset, buf, part).await.map(|buf| (buf, Done::Kept)),
            Self::Output(output) => output.write(buf).await.map(|buf| (buf, Done::Kept)),
        }
    }

    /// Writes zeroes without sending them; `None` where it does not take them so.
    pub(super) async fn write_zeroes(&self, offset: u64, len: u64) -> Result<Option<Done>, Ending> {
        match self {
            Self::Disk(Target { disk, zeroes, .. }) => {
                if !zeroes.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                match disk.write_zeroes(offset, len).await {
                    Err(Error::Scsi { outcome, .. })
                        if outcome.sense.is_some_and(|sense| sense.key == SenseKey::IllegalRequest) =>
                    {
                        zeroes.store(false, Ordering::Relaxed);
                        Ok(None)
                    }
                    result => Done::of(result).map(Some),
                }
            }
            Self::File(file, _) => file.write_zeroes(offset, len).await.map(|()| Some(Done::Kept)),
            Self::Output(_) => Ok(None),
        }
    }

    /// Reads what was written.
    pub(super) async fn read(&self, offset: u64, len: u64) -> Result<Piece, Ending> {
        let buf = Buf::zeroed(len as usize);
        match self {
            Self::Disk(Target { disk, .. }) => read_disk(disk, offset, buf).await,
            Self::File(file, _) => file.read(offset, buf).await,
            Self::Output(_) => Err(failed("standard output cannot be read")),
        }
    }

    /// Makes durable what was written.
    pub(super) async fn flush(&self) -> Result<Done, Ending> {
        match self {
            Self::Disk(Target { disk, .. }) => Done::of(disk.flush().await),
            Self::File(file, _) => file.flush().await.map(|()| Done::Kept),
            Self::Output(output) => output.flush().await.map(|()| Done::Kept),
        }
    }

    /// Whether the disk's power was off since this was last asked.
    pub(super) fn power_was_off(&self) -> bool {
        match self {
            Self::Disk(Target { disk, .. }) => disk.power_was_off(),
            Self::File(..) | Self::Output(_) => false,
        }
    }

    /// What the disk has lost of what was written before.
    pub(super) async fn lost(&self) -> Result<Vec<Range<u64>>, Ending> {
        match self {
            Self::Disk(Target { disk, .. }) => disk.take_lost_writes().await.map_err(ending),
            Self::File(..) | Self::Output(_) => Ok(Vec::new()),
        }
    }

    pub(super) async fn log_out(self) -> Result<(), Ending> {
        match self {
            Self::Disk(Target { disk, .. }) => disk.log_out().await.map(drop),
            Self::File(..) | Self::Output(_) => Ok(()),
        }
    }
}
