//! A disk as a stream of bytes: tokio's `AsyncRead`, `AsyncWrite` and `AsyncSeek`, with bounded read-ahead and
//! write-behind.

use std::collections::VecDeque;
use std::fmt;
use std::io::{Error as IoError, ErrorKind, Result as IoResult, SeekFrom};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use iscsi_memory::Buf;
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use super::{Disk, Multipath};
use crate::error::Error;

/// Bytes that a [`DiskIo`] moves with a command, and keeps in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskIoOptions {
    /// Bytes of one read or write; rounded up to whole blocks. Default 256 KiB.
    pub piece: usize,
    /// Bytes that are read before they are asked for, once reads follow one another. Default 1 MiB; 0 reads none ahead.
    pub read_ahead: usize,
    /// Bytes of writes that may be under way when a write says that it is done; one piece at least. Default 1 MiB.
    pub write_behind: usize,
}

impl Default for DiskIoOptions {
    fn default() -> Self {
        Self { piece: 256 << 10, read_ahead: 1 << 20, write_behind: 1 << 20 }
    }
}

#[derive(Debug, Clone)]
enum Under {
    Disk(Disk),
    Multipath(Multipath),
}

impl Under {
    fn size(&self) -> u64 {
        match self {
            Self::Disk(disk) => disk.size(),
            Self::Multipath(disk) => disk.size(),
        }
    }

    fn block_size(&self) -> u32 {
        match self {
            Self::Disk(disk) => disk.block_size(),
            Self::Multipath(disk) => disk.block_size(),
        }
    }

    async fn read(&self, offset: u64, mut buf: Buf) -> Result<Buf, Error> {
        match self {
            Self::Disk(disk) => {
                let (buf, result) = disk.read_buf(offset, buf).await;
                result.map(|()| buf)
            }
            Self::Multipath(disk) => disk.read(offset, &mut buf).await.map(|()| buf),
        }
    }

    async fn write(&self, offset: u64, buf: Buf) -> Result<(), Error> {
        match self {
            Self::Disk(disk) => disk.write_buf(offset, buf).await.1,
            Self::Multipath(disk) => disk.write_buf(offset, buf).await.1,
        }
    }

    async fn flush(&self) -> Result<(), Error> {
        match self {
            Self::Disk(disk) => disk.flush().await,
            Self::Multipath(disk) => disk.flush().await,
        }
    }
}

impl From<Disk> for Under {
    fn from(disk: Disk) -> Self {
        Self::Disk(disk)
    }
}

impl From<Multipath> for Under {
    fn from(disk: Multipath) -> Self {
        Self::Multipath(disk)
    }
}

/// Bytes that were given to be written: `bytes` of a buffer that begins at a whole block.
struct Piece {
    /// First byte of the buffer on the disk.
    at: u64,
    buf: Buf,
    bytes: Range<usize>,
}

impl Piece {
    /// Whole blocks that it touches, in bytes of the disk.
    fn blocks(&self, block: usize) -> Range<u64> {
        let (start, end) = (self.bytes.start / block * block, self.bytes.end.next_multiple_of(block));
        self.at + start as u64..self.at + end as u64
    }

    /// Writes it. Blocks that it holds a part of are read first.
    async fn write(self, under: Under, block: usize) -> Written {
        let blocks = self.blocks(block);
        let result = self.write_whole(&under, block, &blocks).await;
        (blocks, result)
    }

    async fn write_whole(mut self, under: &Under, block: usize, blocks: &Range<u64>) -> Result<(), Error> {
        let base = (blocks.start - self.at) as usize;
        let len = (blocks.end - blocks.start) as usize;
        let (head, tail) = (self.bytes.start - base, base + len - self.bytes.end);
        if head > 0 {
            let old = under.read(blocks.start, Buf::zeroed(block)).await?;
            self.buf[base..base + head].copy_from_slice(&old[..head]);
        }
        if tail > 0 {
            let old = under.read(blocks.end - block as u64, Buf::zeroed(block)).await?;
            self.buf[base + len - tail..base + len].copy_from_slice(&old[block - tail..]);
        }
        if base == 0 {
            self.buf.set_len(len);
            return under.write(blocks.start, self.buf).await;
        }
        let mut rest = Buf::zeroed(len);
        rest.copy_from_slice(&self.buf[base..base + len]);
        under.write(blocks.start, rest).await
    }
}

/// The blocks of a write, in bytes, and how it went.
type Written = (Range<u64>, Result<(), Error>);

enum Reading {
    UnderWay(BoxFuture<'static, Result<Buf, Error>>),
    There(Result<Buf, Error>),
}

/// A piece that was asked for.
struct Ahead {
    at: u64,
    len: usize,
    reading: Reading,
}

/// A disk as a stream of bytes with a position: [`AsyncRead`], [`AsyncWrite`] and [`AsyncSeek`] of tokio. Bytes need
/// not be whole blocks: of a block of which only a part is written, the rest is read first.
///
/// # Reads
///
/// Pieces are read ahead, one at first and more with each piece that is used up, up to
/// [`DiskIoOptions::read_ahead`]. The stream ends at the disk's size. What this stream has written it reads; what
/// others write may be hidden by what was read ahead.
///
/// # Writes
///
/// A write is done when its bytes are in memory; at most [`DiskIoOptions::write_behind`] bytes are under way then. What
/// fails of them is told by every write, flush and shutdown from then on, so that it is never lost: what is then on the
/// disk is not known. `flush` and `shutdown` are done when all that was written is durable (SYNCHRONIZE CACHE).
/// Dropping the stream without one of them drops what is in memory. A write at the disk's end fails with
/// [`ErrorKind::StorageFull`].
///
/// Errors are `std::io::Error` with the [`Error`] inside.
///
/// ```no_run
/// # async fn example(disk: initiator_core::Disk) -> std::io::Result<()> {
/// use initiator_core::{DiskIo, DiskIoOptions};
/// use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
/// let mut io = DiskIo::new(disk, DiskIoOptions::default());
/// io.write_all(b"hello").await?;
/// io.flush().await?;
/// io.rewind().await?;
/// let mut back = [0; 5];
/// io.read_exact(&mut back).await?;
/// # Ok(())
/// # }
/// ```
pub struct DiskIo {
    under: Under,
    block: usize,
    piece: usize,
    options: DiskIoOptions,
    position: u64,
    /// Pieces from the position on, in order.
    ahead: VecDeque<Ahead>,
    /// Bytes that may be read ahead now.
    window: usize,
    /// The piece that is being filled.
    filling: Option<Piece>,
    /// Pieces that wait for others that overlap them.
    waiting: VecDeque<Piece>,
    /// Writes under way, and the blocks of each.
    behind: FuturesUnordered<BoxFuture<'static, Written>>,
    claimed: Vec<Range<u64>>,
    flushing: Option<BoxFuture<'static, Result<(), Error>>>,
    /// Bytes were given since the flush began.
    given_since: bool,
    failed: Option<Error>,
}

impl fmt::Debug for DiskIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskIo").field("position", &self.position).field("failed", &self.failed).finish_non_exhaustive()
    }
}

fn io_error(error: Error) -> IoError {
    let kind = match &error {
        Error::NoSuchLun { .. } => ErrorKind::NotFound,
        Error::OtherDisk { .. } | Error::LostWrites { .. } => ErrorKind::InvalidData,
        error if error.is_timeout() => ErrorKind::TimedOut,
        error if error.is_transport() => ErrorKind::ConnectionAborted,
        _ => ErrorKind::Other,
    };
    IoError::new(kind, error)
}

impl DiskIo {
    /// A stream over a [`Disk`], from its first byte on.
    #[must_use]
    pub fn new(disk: Disk, options: DiskIoOptions) -> Self {
        Self::over(disk.into(), options)
    }

    /// A stream over a [`Multipath`], from its first byte on.
    #[must_use]
    pub fn multipath(disk: Multipath, options: DiskIoOptions) -> Self {
        Self::over(disk.into(), options)
    }

    fn over(under: Under, options: DiskIoOptions) -> Self {
        let block = under.block_size() as usize;
        let piece = options.piece.max(1).next_multiple_of(block);
        Self {
            under,
            block,
            piece,
            options,
            position: 0,
            ahead: VecDeque::new(),
            window: 0,
            filling: None,
            waiting: VecDeque::new(),
            behind: FuturesUnordered::new(),
            claimed: Vec::new(),
            flushing: None,
            given_since: false,
            failed: None,
        }
    }

    /// What a write-behind failed with.
    fn check(&self) -> IoResult<()> {
        self.failed.clone().map_or(Ok(()), |error| Err(io_error(error)))
    }

    /// Takes note of writes that have ended; ready when at most `most` bytes are under way, and nothing waits.
    fn poll_behind(&mut self, cx: &mut Context<'_>, most: u64) -> Poll<()> {
        loop {
            while let Some(piece) = self.waiting.front() {
                let blocks = piece.blocks(self.block);
                if self.claimed.iter().any(|other| other.start < blocks.end && blocks.start < other.end) {
                    break;
                }
                let Some(piece) = self.waiting.pop_front() else { break };
                self.claimed.push(blocks);
                self.behind.push(Box::pin(piece.write(self.under.clone(), self.block)));
            }
            match self.behind.poll_next_unpin(cx) {
                Poll::Ready(Some((blocks, result))) => {
                    if let Some(at) = self.claimed.iter().position(|other| *other == blocks) {
                        self.claimed.swap_remove(at);
                    }
                    if let Err(error) = result {
                        self.failed.get_or_insert(error);
                    }
                }
                Poll::Ready(None) if self.waiting.is_empty() => return Poll::Ready(()),
                Poll::Ready(None) => {}
                Poll::Pending => {
                    let under_way: u64 = self.claimed.iter().map(|blocks| blocks.end - blocks.start).sum();
                    let done = self.waiting.is_empty() && under_way <= most;
                    return if done { Poll::Ready(()) } else { Poll::Pending };
                }
            }
        }
    }

    fn hand_over(&mut self) {
        self.waiting.extend(self.filling.take());
    }

    /// Ready when all that was given is written, or has failed.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<IoResult<()>> {
        self.hand_over();
        ready!(self.poll_behind(cx, 0));
        Poll::Ready(self.check())
    }

    /// Asks for pieces as far as the window goes, and has all of them go on.
    fn read_on(&mut self, cx: &mut Context<'_>) {
        let size = self.under.size();
        let (piece, block) = (self.piece as u64, self.block as u64);
        loop {
            let there: usize = self.ahead.iter().map(|ahead| ahead.len).sum();
            let next = self.ahead.back().map_or(self.position / block * block, |last| last.at + last.len as u64);
            if next >= size || (!self.ahead.is_empty() && there >= self.piece + self.window) {
                break;
            }
            let len = piece.min(size - next) as usize;
            let under = self.under.clone();
            let reading = Box::pin(async move { under.read(next, Buf::zeroed(len)).await });
            self.ahead.push_back(Ahead { at: next, len, reading: Reading::UnderWay(reading) });
        }
        // All but the first: that one is for whoever waits for it.
        for ahead in self.ahead.iter_mut().skip(1) {
            if let Reading::UnderWay(reading) = &mut ahead.reading
                && let Poll::Ready(result) = reading.as_mut().poll(cx)
            {
                ahead.reading = Reading::There(result);
            }
        }
    }

    /// The position is elsewhere: what is read ahead is of no use any more.
    fn forget_ahead(&mut self) {
        self.ahead.clear();
        self.window = 0;
    }
}

impl AsyncRead for DiskIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<IoResult<()>> {
        let io = &mut *self;
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // What this stream has written is what it reads.
        ready!(io.poll_written(cx))?;
        io.read_on(cx);
        let Some(first) = io.ahead.front_mut() else { return Poll::Ready(Ok(())) };
        if let Reading::UnderWay(reading) = &mut first.reading {
            let result = ready!(reading.as_mut().poll(cx));
            first.reading = Reading::There(result);
        }
        let Reading::There(result) = &first.reading else { return Poll::Pending };
        let buf = match result {
            Ok(buf) => buf,
            Err(error) => {
                let error = io_error(error.clone());
                io.forget_ahead();
                return Poll::Ready(Err(error));
            }
        };
        let bytes = &buf[(io.position - first.at) as usize..];
        let n = bytes.len().min(into.remaining());
        into.put_slice(&bytes[..n]);
        let used_up = n == bytes.len();
        io.position += n as u64;
        if used_up {
            io.ahead.pop_front();
            io.window = (io.window * 2).max(io.piece).min(io.options.read_ahead);
            io.read_on(cx);
            if let Some(Ahead { reading, .. }) = io.ahead.front_mut()
                && let Reading::UnderWay(under_way) = reading
                && let Poll::Ready(result) = under_way.as_mut().poll(cx)
            {
                *reading = Reading::There(result);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for DiskIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<IoResult<usize>> {
        let io = &mut *self;
        io.check()?;
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        io.forget_ahead();
        let most = (io.options.write_behind as u64).saturating_sub(io.piece as u64);
        ready!(io.poll_behind(cx, most));
        io.check()?;
        let left = io.under.size().saturating_sub(io.position);
        if left == 0 {
            return Poll::Ready(Err(ErrorKind::StorageFull.into()));
        }
        let (position, block, piece) = (io.position, io.block as u64, io.piece);
        let filling = io.filling.get_or_insert_with(|| {
            let at = position / block * block;
            let start = (position - at) as usize;
            Piece { at, buf: Buf::zeroed(piece), bytes: start..start }
        });
        let room = &mut filling.buf[filling.bytes.end..];
        let n = data.len().min(room.len()).min(usize::try_from(left).unwrap_or(usize::MAX));
        room[..n].copy_from_slice(&data[..n]);
        filling.bytes.end += n;
        io.position += n as u64;
        io.given_since = true;
        if filling.bytes.end == piece {
            io.hand_over();
            // It is sent now; what becomes of it is heard later.
            let _ = io.poll_behind(cx, u64::MAX);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoResult<()>> {
        let io = &mut *self;
        loop {
            if io.flushing.is_none() {
                ready!(io.poll_written(cx))?;
                let under = io.under.clone();
                io.given_since = false;
                io.flushing = Some(Box::pin(async move { under.flush().await }));
            }
            if let Some(flushing) = &mut io.flushing {
                let result = ready!(flushing.as_mut().poll(cx));
                io.flushing = None;
                if let Err(error) = result {
                    io.failed.get_or_insert(error);
                }
            }
            // It may have been begun for somebody who has gone away, before the last bytes were given.
            if !io.given_since || io.failed.is_some() {
                return Poll::Ready(io.check());
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoResult<()>> {
        self.poll_flush(cx)
    }
}

impl AsyncSeek for DiskIo {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> IoResult<()> {
        let io = &mut *self;
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => io.position.checked_add_signed(by),
            SeekFrom::End(by) => io.under.size().checked_add_signed(by),
        };
        let Some(target) = target else { return Err(ErrorKind::InvalidInput.into()) };
        if target != io.position {
            io.hand_over();
            io.forget_ahead();
            io.position = target;
        }
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<IoResult<u64>> {
        Poll::Ready(Ok(self.position))
    }
}
