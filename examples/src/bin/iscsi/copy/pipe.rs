//! Standard input and output as the ends of a copy.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::sync::Arc;

use examples::ending::{Ending, failed, usage};
use examples::output::unprinted;
use iscsi_memory::Buf;
use rustix::fs::{OFlags, fcntl_getfl};
use tokio::sync::mpsc;

use super::file::refuse_images;

const STDIN: &str = "standard input";

fn of(stream: impl AsFd) -> Result<File, Ending> {
    stream.as_fd().try_clone_to_owned().map(File::from).map_err(failed)
}

/// Whether a stream was closed when the program began: the runtime library opens the null device in its place, for
/// reading and writing, so that no file that is opened later takes its number.
fn was_closed(stream: &File, metadata: &std::fs::Metadata) -> bool {
    let is_null = metadata.file_type().is_char_device() && metadata.rdev() == rustix::fs::makedev(1, 3);
    is_null && fcntl_getfl(stream).is_ok_and(|flags| flags.contains(OFlags::RDWR))
}

/// Standard input: pieces in order, read ahead by a thread of its own, so that a writer that never ends keeps nobody
/// from ending.
pub(super) struct Input {
    pieces: mpsc::Receiver<io::Result<Buf>>,
    /// Nothing has been taken yet, and what comes is to be a disk block by block.
    unseen: bool,
    /// What is left of a regular file; `None` where nobody knows.
    pub(super) size: Option<u64>,
}

impl Input {
    /// Reads pieces of `request` bytes, of which `ahead` wait at most; the last one may be shorter.
    pub(super) fn open(request: usize, ahead: usize, raw: bool) -> Result<Self, Ending> {
        if io::stdin().is_terminal() {
            return Err(usage(
                "standard input is a terminal: send something into it, as in `zcat disk.img.gz | iscsi copy - URL`",
            ));
        }
        let mut file = of(io::stdin())?;
        let metadata = file.metadata().map_err(failed)?;
        if was_closed(&file, &metadata) {
            return Err(failed("standard input is closed: send what is to be copied into it"));
        }
        let at = || rustix::fs::tell(&file).ok();
        let mut size = None;
        if let Some(at) = metadata.is_file().then(at).flatten() {
            size = Some(metadata.len().saturating_sub(at));
            // A pipe is looked at when something comes.
            let mut first = [0; 4];
            let n = file.read_at(&mut first, at).map_err(|error| unreadable(&error))?;
            refuse_images(STDIN, &first[..n], raw)?;
        }
        let (sender, pieces) = mpsc::channel(ahead.max(1));
        std::thread::spawn(move || {
            loop {
                let piece = read(&mut file, request);
                let is_empty = piece.as_ref().is_ok_and(|piece| piece.is_empty());
                let is_last = piece.as_ref().map_or(true, |piece| piece.len() < request);
                // An empty piece is the end. Who has dropped the receiver wants no more.
                if is_empty || sender.blocking_send(piece).is_err() || is_last {
                    return;
                }
            }
        });
        Ok(Self { pieces, unseen: !raw, size })
    }

    pub(super) async fn next(&mut self) -> Result<Option<Buf>, Ending> {
        let piece = self.pieces.recv().await.transpose().map_err(|error| unreadable(&error))?;
        if std::mem::take(&mut self.unseen)
            && let Some(first) = &piece
        {
            refuse_images(STDIN, first, false)?;
        }
        Ok(piece)
    }
}

fn unreadable(error: &io::Error) -> Ending {
    failed(format!("standard input cannot be read: {error}"))
}

/// As much as fits, or up to the end.
fn read(file: &mut File, request: usize) -> io::Result<Buf> {
    let mut buf = Buf::zeroed(request);
    let mut at = 0;
    while at < request {
        match file.read(&mut buf[at..]) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buf.set_len(at);
    Ok(buf)
}

/// Standard output: pieces in order.
#[derive(Debug, Clone)]
pub(super) struct Output(Arc<File>);

impl Output {
    pub(super) fn open() -> Result<Self, Ending> {
        if io::stdout().is_terminal() {
            return Err(usage("standard output is a terminal: send it to a file or a program"));
        }
        let file = of(io::stdout())?;
        let metadata = file.metadata().map_err(failed)?;
        if was_closed(&file, &metadata) {
            return Err(failed("standard output is closed: send it to a file or a program"));
        }
        Ok(Self(Arc::new(file)))
    }

    pub(super) async fn write(&self, buf: Buf) -> Result<Buf, Ending> {
        let file = self.0.clone();
        let work = move || (&*file).write_all(&buf).map(|()| buf);
        tokio::task::spawn_blocking(work).await.map_err(failed)?.map_err(|error| unprinted(&error))
    }

    /// Makes durable what was written, where it is a file.
    pub(super) async fn flush(&self) -> Result<(), Ending> {
        let file = self.0.clone();
        match tokio::task::spawn_blocking(move || file.sync_all()).await.map_err(failed)? {
            // A pipe has nothing to make durable.
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(unprinted(&error)),
            _ => Ok(()),
        }
    }
}
