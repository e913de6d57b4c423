//! `iscsi copy`: a disk or a file onto another, several requests in flight.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::{Arc, Mutex, PoisonError};

use examples::ending::{Ending, failed, no_file, usage};
use examples::progress::Progress;
use examples::report::bytes;
use futures::stream::{self, TryStreamExt};
use initiator_core::{Disk, Error, Session};
use iscsi_memory::Buf;
use serde_json::json;

use crate::args::{Cli, CopyArgs};
use crate::attach::{attach, ending};

enum Side {
    Disk(Session, Disk),
    File(Arc<File>, String),
}

fn is_url(text: &str) -> bool {
    text.contains("://")
}

impl Side {
    async fn source(cli: &Cli, text: &str) -> Result<(Self, u64), Ending> {
        if is_url(text) {
            let (session, disk) = attach(cli, text).await?;
            let size = disk.size();
            return Ok((Self::Disk(session, disk), size));
        }
        let mut file = File::open(text).map_err(|error| no_file(text, &error))?;
        let kind = file.metadata().map_err(|error| no_file(text, &error))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(failed(format!(
                "{text} has no size, so it cannot be copied: give a regular file, a block device, or a URL"
            )));
        }
        // A block device says its size only by seeking.
        let size = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(|error| no_file(text, &error))?;
        Ok((Self::File(Arc::new(file), text.to_owned()), size))
    }

    async fn destination(cli: &Cli, text: &str, size: u64) -> Result<Self, Ending> {
        if is_url(text) {
            let (session, disk) = attach(cli, text).await?;
            if disk.size() < size {
                let (has, needs) = (bytes(disk.size()), bytes(size));
                let _ = session.logout().await;
                return Err(failed(format!(
                    "{text} holds {has}, which is less than the {needs} to copy: take a larger LUN"
                )));
            }
            return Ok(Self::Disk(session, disk));
        }
        let fail = |error| no_file(text, &error);
        let mut file = File::options().write(true).create(true).truncate(false).open(text).map_err(fail)?;
        let kind = file.metadata().map_err(fail)?.file_type();
        if kind.is_file() {
            file.set_len(size).map_err(fail)?;
        } else if kind.is_block_device() {
            let has = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(fail)?;
            if has < size {
                let (has, needs) = (bytes(has), bytes(size));
                return Err(failed(format!("{text} holds {has}, which is less than the {needs} to copy")));
            }
        } else {
            return Err(failed(format!(
                "{text} has no size, so nothing can be copied to it: give a regular file, a block device, or a URL"
            )));
        }
        Ok(Self::File(Arc::new(file), text.to_owned()))
    }

    /// The block size that requests have to keep to.
    fn grain(&self) -> u64 {
        match self {
            Self::Disk(_, disk) => disk.block_size().into(),
            Self::File(..) => 1,
        }
    }

    async fn read(&self, offset: u64, buf: Buf) -> Result<Buf, Ending> {
        match self {
            Self::Disk(_, disk) => {
                let (buf, result) = disk.read_buf(offset, buf).await;
                result.map_err(ending)?;
                Ok(buf)
            }
            Self::File(file, name) => on_file(file, name, buf, move |file, buf| file.read_exact_at(buf, offset)).await,
        }
    }

    async fn write(&self, offset: u64, buf: Buf) -> Result<Done, Ending> {
        match self {
            Self::Disk(_, disk) => Done::of(disk.write_buf(offset, buf).await.1),
            Self::File(file, name) => {
                on_file(file, name, buf, move |file, buf| file.write_all_at(buf, offset)).await.map(|_| Done::Kept)
            }
        }
    }

    /// Makes durable what was written.
    async fn flush(&self) -> Result<Done, Ending> {
        match self {
            Self::Disk(_, disk) => Done::of(disk.flush().await),
            Self::File(file, name) => match file.sync_all() {
                // A file opened for reading, or a pipe, has nothing to make durable.
                Err(error) if error.kind() != std::io::ErrorKind::InvalidInput => Err(no_file(name, &error)),
                _ => Ok(Done::Kept),
            },
        }
    }

    /// What the disk has lost of what was written before.
    async fn lost(&self) -> Result<Vec<Range<u64>>, Ending> {
        match self {
            Self::Disk(_, disk) => disk.take_lost_writes().await.map_err(ending),
            Self::File(..) => Ok(Vec::new()),
        }
    }

    async fn log_out(self) -> Result<(), Ending> {
        match self {
            Self::Disk(session, _) => session.logout().await.map_err(ending),
            Self::File(..) => Ok(()),
        }
    }
}

/// What a write or a flush came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
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

/// A copy under way.
struct Copying<'a> {
    from: &'a Side,
    to: &'a Side,
    size: u64,
    /// Bytes of one request.
    request: u64,
    depth: usize,
}

impl Copying<'_> {
    /// Copies these parts. Gives those that the disk lost at once.
    async fn parts(&self, parts: &[Range<u64>], progress: Option<&Progress>) -> Result<Vec<Range<u64>>, Ending> {
        let lost = Mutex::new(Vec::new());
        let pieces = parts.iter().flat_map(|part| {
            let (first, last) = (part.start / self.request, part.end.div_ceil(self.request));
            (first..last).map(|n| n * self.request)
        });
        stream::iter(pieces.map(Ok))
            .try_for_each_concurrent(self.depth, |offset| {
                let lost = &lost;
                async move {
                    let len = self.request.min(self.size - offset);
                    let buf = self.from.read(offset, Buf::zeroed(len as usize)).await?;
                    match self.to.write(offset, buf).await? {
                        Done::Lost => lost.lock().unwrap_or_else(PoisonError::into_inner).push(offset..offset + len),
                        Done::Kept => progress.iter().for_each(|progress| progress.add(len)),
                    }
                    Ok(())
                }
            })
            .await?;
        Ok(lost.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Copies all, until it is durable. What the disk loses meanwhile is copied again: its source is still there.
    async fn run(&self, progress: &Progress) -> Result<(), Ending> {
        let whole = 0..self.size;
        let mut lost = self.parts(std::slice::from_ref(&whole), Some(progress)).await?;
        loop {
            if lost.is_empty() && self.to.flush().await? == Done::Kept {
                return Ok(());
            }
            lost.extend(self.to.lost().await?.into_iter().map(|part| part.start..part.end.min(self.size)));
            lost.retain(|part| !part.is_empty());
            let again = bytes(lost.iter().map(|part| part.end - part.start).sum());
            eprintln!("iscsi: the disk lost its power and what it had not made durable: {again} are copied again");
            lost = self.parts(&lost, None).await?;
        }
    }
}

/// File I/O blocks, so it runs beside the session's thread.
async fn on_file(
    file: &Arc<File>,
    name: &str,
    mut buf: Buf,
    work: impl FnOnce(&File, &mut Buf) -> std::io::Result<()> + Send + 'static,
) -> Result<Buf, Ending> {
    let file = file.clone();
    tokio::task::spawn_blocking(move || work(&file, &mut buf).map(|()| buf))
        .await
        .map_err(failed)?
        .map_err(|error| no_file(name, &error))
}

pub(crate) async fn run(cli: &Cli, args: &CopyArgs) -> Result<(), Ending> {
    let request =
        target_core::store::parse_size(&args.bs).map_err(|error| usage(format!("--bs {}: {error}", args.bs)))?;
    let (from, size) = Side::source(cli, &args.from).await?;
    let to = Side::destination(cli, &args.to, size).await?;
    let grain = from.grain().max(to.grain());
    if request == 0 || !request.is_multiple_of(grain) {
        return Err(usage(format!("--bs {} is no multiple of the block size of {grain} bytes", args.bs)));
    }
    if !size.is_multiple_of(to.grain()) {
        return Err(failed(format!(
            "{} has {size} bytes, which is no whole number of blocks of {} bytes: make it longer with `truncate -s`",
            args.from,
            to.grain()
        )));
    }
    let started = std::time::Instant::now();
    let progress = Progress::new("copy", size, cli.json);
    let copying = Copying { from: &from, to: &to, size, request, depth: args.iodepth.clamp(1, 1024) };
    copying.run(&progress).await?;
    from.log_out().await?;
    to.log_out().await?;
    drop(progress);
    let seconds = started.elapsed().as_secs_f64();
    if cli.json {
        println!("{:#}", json!({ "bytes": size, "seconds": seconds }));
    } else {
        println!("{} copied in {seconds:.2} s, {}/s", bytes(size), bytes((size as f64 / seconds.max(1e-9)) as u64));
    }
    Ok(())
}
