//! `iscsi copy`: a disk or a file onto another, several requests in flight.

use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::Arc;

use examples::ending::{Ending, failed, no_file, usage};
use examples::progress::Progress;
use examples::report::bytes;
use futures::stream::{self, TryStreamExt};
use initiator_core::{Disk, Session};
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
        let file = File::options().write(true).create(true).truncate(false).open(text).map_err(fail)?;
        if !file.metadata().map_err(fail)?.file_type().is_block_device() {
            file.set_len(size).map_err(fail)?;
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

    async fn write(&self, offset: u64, buf: Buf) -> Result<Buf, Ending> {
        match self {
            Self::Disk(_, disk) => {
                let (buf, result) = disk.write_buf(offset, buf).await;
                result.map_err(ending)?;
                Ok(buf)
            }
            Self::File(file, name) => on_file(file, name, buf, move |file, buf| file.write_all_at(buf, offset)).await,
        }
    }

    async fn finish(self) -> Result<(), Ending> {
        match self {
            Self::Disk(session, disk) => {
                disk.flush().await.map_err(ending)?;
                session.logout().await.map_err(ending)
            }
            Self::File(file, name) => match file.sync_all() {
                // A file opened for reading, or a pipe, has nothing to make durable.
                Err(error) if error.kind() != std::io::ErrorKind::InvalidInput => Err(no_file(name, &error)),
                _ => Ok(()),
            },
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
    stream::iter((0..size.div_ceil(request)).map(Ok))
        .try_for_each_concurrent(args.iodepth.clamp(1, 1024), |n| {
            let (from, to, progress) = (&from, &to, &progress);
            async move {
                let offset = n * request;
                let len = request.min(size - offset) as usize;
                let buf = from.read(offset, Buf::zeroed(len)).await?;
                to.write(offset, buf).await?;
                progress.add(len as u64);
                Ok(())
            }
        })
        .await?;
    from.finish().await?;
    to.finish().await?;
    drop(progress);
    let seconds = started.elapsed().as_secs_f64();
    if cli.json {
        println!("{:#}", json!({ "bytes": size, "seconds": seconds }));
    } else {
        println!("{} copied in {seconds:.2} s, {}/s", bytes(size), bytes((size as f64 / seconds.max(1e-9)) as u64));
    }
    Ok(())
}
