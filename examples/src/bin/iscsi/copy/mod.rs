//! `iscsi copy`: a disk, a file or a pipe onto another, several requests in flight.

mod file;
mod pipe;
mod side;
mod zeroes;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use backstore::BlockRanges;
use examples::ending::{Ending, Why, failed, usage};
use examples::progress::Progress;
use examples::report::bytes;
use examples::{say, tell};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use serde_json::json;

use crate::args::{Cli, CopyArgs};
use file::Piece;
use side::{Destination, Done, Source};

/// A copy under way.
struct Copying<'a> {
    from: &'a Source,
    to: &'a Destination,
    /// Bytes of one request.
    request: u64,
    depth: usize,
    /// Zeroes that were not sent.
    zeroes: AtomicU64,
}

impl Copying<'_> {
    /// The requests that cover these parts of a source of `size` bytes.
    fn requests<'p>(&self, parts: &'p [Range<u64>], size: u64) -> impl Iterator<Item = (u64, u64)> + use<'p> {
        let request = self.request;
        let firsts = parts.iter().flat_map(move |part| part.start / request..part.end.div_ceil(request));
        firsts.map(move |n| (n * request, request.min(size - n * request)))
    }

    /// Writes a piece, its zeroes as such where the destination takes them so.
    async fn write(&self, offset: u64, piece: Piece) -> Result<Done, Ending> {
        let buf = match piece {
            Piece::Hole(len) => match self.to.write_zeroes(offset, len as u64).await? {
                Some(done) => {
                    self.zeroes.fetch_add(len as u64, Ordering::Relaxed);
                    return Ok(done);
                }
                None => iscsi_memory::Buf::zeroed(len),
            },
            Piece::Data(buf) => buf,
        };
        let runs = if self.to.is_stream() { vec![(0..buf.len(), false)] } else { zeroes::runs(&buf) };
        let (mut buf, mut all) = (buf, Done::Kept);
        for (run, zero) in runs {
            let (at, len) = (offset + run.start as u64, run.len() as u64);
            let done = match if zero { self.to.write_zeroes(at, len).await? } else { None } {
                Some(done) => {
                    self.zeroes.fetch_add(len, Ordering::Relaxed);
                    done
                }
                None => {
                    let (back, done) = self.to.write(at, buf, run).await?;
                    buf = back;
                    done
                }
            };
            if done == Done::Lost {
                all = done;
            }
        }
        Ok(all)
    }

    /// Copies these parts. Gives those that the disk lost at once.
    async fn parts(
        &self,
        parts: &[Range<u64>],
        size: u64,
        progress: Option<&Progress>,
    ) -> Result<Vec<Range<u64>>, Ending> {
        let lost = Mutex::new(Vec::new());
        let write = |(offset, len, piece)| {
            let lost = &lost;
            async move {
                match self.write(offset, piece).await? {
                    Done::Lost => lost.lock().unwrap_or_else(PoisonError::into_inner).push(offset..offset + len),
                    Done::Kept => progress.iter().for_each(|progress| progress.add(len)),
                }
                Ok::<_, Ending>(())
            }
        };
        let read = |(offset, len)| async move { Ok((offset, len, self.from.read(offset, len).await?)) };
        let requests = stream::iter(self.requests(parts, size));
        if self.to.is_stream() {
            // One after the other, while the next are read.
            requests.map(read).buffered(self.depth).try_for_each(write).await?;
        } else {
            let copy = |request| async move { write(read(request).await?).await };
            requests.map(Ok).try_for_each_concurrent(self.depth, copy).await?;
        }
        Ok(lost.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Copies all of a source that can be read anywhere, until it is durable. What the disk loses meanwhile is copied
    /// again: its source is still there.
    async fn run(&self, size: u64, progress: &Progress) -> Result<u64, Ending> {
        let whole = 0..size;
        let mut lost = self.parts(std::slice::from_ref(&whole), size, Some(progress)).await?;
        loop {
            if lost.is_empty() && self.to.flush().await? == Done::Kept {
                if !self.to.power_was_off() {
                    return Ok(size);
                }
                lost.push(0..size);
            } else {
                lost.extend(self.to.lost().await?.into_iter().map(|part| part.start..part.end.min(size)));
                // It is known what it has lost.
                self.to.power_was_off();
            }
            // What was never written for the loss is among what was written and lost.
            let mut parts = BlockRanges::default();
            lost.into_iter().for_each(|part| parts.add(part));
            let parts = parts.into_vec();
            let again = bytes(parts.iter().map(|part| part.end - part.start).sum());
            tell!("iscsi: the disk lost what it had not made durable, or may have: {again} are copied again");
            lost = self.parts(&parts, size, None).await?;
        }
    }

    /// Copies a source that can be read once. Gives its length.
    async fn stream(&self, input: &tokio::sync::Mutex<pipe::Input>, progress: &Progress) -> Result<u64, Ending> {
        let (holds, grain) = (self.to.holds(), self.to.grain());
        let pieces: BoxStream<'_, Result<(u64, iscsi_memory::Buf), Ending>> = stream::try_unfold(0, |at| async move {
            let Some(buf) = input.lock().await.next().await? else { return Ok(None) };
            let end = at + buf.len() as u64;
            if let Some(holds) = holds
                && end > holds
            {
                return Err(failed(format!(
                    "standard input has more than the {} that the destination holds: it has the first {} of it",
                    bytes(holds),
                    bytes(at)
                )));
            }
            if !end.is_multiple_of(grain) {
                return Err(failed(format!(
                    "standard input ended after {end} bytes, which is no whole number of blocks of {grain} bytes: the \
                     last {} are not on the disk",
                    bytes(buf.len() as u64)
                )));
            }
            Ok(Some(((at, buf), end)))
        })
        .boxed();
        let size = AtomicU64::new(0);
        let write = |(offset, buf): (u64, iscsi_memory::Buf)| {
            let size = &size;
            async move {
                let len = buf.len() as u64;
                match self.write(offset, Piece::Data(buf)).await? {
                    Done::Lost => return Err(not_again()),
                    Done::Kept => progress.add(len),
                }
                size.fetch_max(offset + len, Ordering::Relaxed);
                Ok(())
            }
        };
        if self.to.is_stream() {
            pieces.try_for_each(write).await?;
        } else {
            pieces.try_for_each_concurrent(self.depth, write).await?;
        }
        let size = size.into_inner();
        if let Some(all) = self.from.size().filter(|all| *all > size) {
            let (size, all) = (bytes(size), bytes(all));
            return Err(failed(format!("standard input has become shorter: {size} of its {all} came")));
        }
        self.to.set_len(size)?;
        if self.to.flush().await? == Done::Lost || self.to.power_was_off() { Err(not_again()) } else { Ok(size) }
    }

    /// Compares what was written with its source.
    async fn verify(&self, size: u64, progress: &Progress, args: &CopyArgs) -> Result<(), Ending> {
        let whole = 0..size;
        stream::iter(self.requests(std::slice::from_ref(&whole), size).map(Ok))
            .try_for_each_concurrent(self.depth, |(offset, len)| async move {
                let (from, to) = futures::try_join!(self.from.read(offset, len), self.to.read(offset, len))?;
                if let Some(at) = difference(&from, &to) {
                    let sentence = format!("{} differs from {} at byte {}", args.to, args.from, offset + at as u64);
                    return Err(Ending::new(Why::Mismatch, sentence));
                }
                progress.add(len);
                Ok(())
            })
            .await
    }
}

fn not_again() -> Ending {
    failed(
        "the disk lost writes that it had acknowledged, and standard input cannot be read again: nothing can be relied \
         on that was copied",
    )
}

/// The first byte in which two pieces differ.
fn difference(one: &Piece, other: &Piece) -> Option<usize> {
    let not_zero = |data: &[u8]| data.iter().position(|byte| *byte != 0);
    match (one, other) {
        (Piece::Hole(_), Piece::Hole(_)) => None,
        (Piece::Data(data), Piece::Hole(_)) | (Piece::Hole(_), Piece::Data(data)) => not_zero(data),
        (Piece::Data(one), Piece::Data(other)) if one[..] == other[..] => None,
        (Piece::Data(one), Piece::Data(other)) => {
            let same = one.iter().zip(other.iter()).position(|(one, other)| one != other);
            Some(same.unwrap_or(one.len().min(other.len())))
        }
    }
}

/// What is wrong with the two ends, before anything is written.
fn check(args: &CopyArgs, from: &Source, to: &Destination, request: u64) -> Result<(), Ending> {
    if to.is(from) {
        return Err(usage(format!("{} and {} are the same: there is nothing to copy", args.from, args.to)));
    }
    if args.verify && (matches!(from, Source::Input(..)) || to.is_stream()) {
        return Err(usage("--verify reads both ends again, which a pipe does not allow"));
    }
    let grain = from.grain().max(to.grain());
    if request == 0 || !request.is_multiple_of(grain) {
        return Err(usage(format!("--bs {} is no multiple of the block size of {grain} bytes", args.bs)));
    }
    let Some(size) = from.size() else { return Ok(()) };
    if let Some(holds) = to.holds()
        && holds < size
    {
        return Err(failed(format!(
            "{} holds {}, which is less than the {} to copy: take a larger destination",
            args.to,
            bytes(holds),
            bytes(size)
        )));
    }
    if !size.is_multiple_of(to.grain()) {
        return Err(failed(format!(
            "{} has {size} bytes, which is no whole number of blocks of {} bytes: make it longer with `truncate -s`",
            args.from,
            to.grain()
        )));
    }
    Ok(())
}

pub(crate) async fn run(cli: &Cli, args: &CopyArgs) -> Result<(), Ending> {
    let request = backstore::parse_size(&args.bs).map_err(|error| usage(format!("--bs {}: {error}", args.bs)))?;
    if !(1..=MOST_REQUEST).contains(&request) {
        return Err(usage(format!("--bs is from 512 bytes to {}", bytes(MOST_REQUEST))));
    }
    let from = Source::open(cli, args, request).await?;
    let to = Destination::open(cli, args).await?;
    check(args, &from, &to, request)?;
    if let Some(size) = from.size() {
        to.set_len(size)?;
    }
    let started = std::time::Instant::now();
    let depth = args.iodepth.clamp(1, 1024);
    let copying = Copying { from: &from, to: &to, request, depth, zeroes: AtomicU64::new(0) };
    let progress = Progress::new("copy", from.size().unwrap_or(0), cli.json || from.size().is_none());
    let size = match &from {
        Source::Input(input, _) => copying.stream(input, &progress).await?,
        Source::Disk(_) | Source::File(..) => copying.run(from.size().unwrap_or(0), &progress).await?,
    };
    drop(progress);
    if args.verify {
        let progress = Progress::new("verify", size, cli.json);
        copying.verify(size, &progress, args).await?;
    }
    let zeroes = copying.zeroes.into_inner();
    let is_stream = to.is_stream();
    from.log_out().await?;
    to.log_out().await?;
    let seconds = started.elapsed().as_secs_f64();
    let told = if cli.json {
        format!("{:#}", json!({ "bytes": size, "zeroes": zeroes, "seconds": seconds, "verified": args.verify }))
    } else {
        let rate = bytes((size as f64 / seconds.max(1e-9)) as u64);
        let not_sent = if zeroes == 0 { String::new() } else { format!(", {} of it zeroes", bytes(zeroes)) };
        let verified = if args.verify { ", no difference" } else { "" };
        format!("{} copied in {seconds:.2} s, {rate}/s{not_sent}{verified}", bytes(size))
    };
    if is_stream {
        // The output is the copy.
        tell!("{told}");
        Ok(())
    } else {
        say!("{told}")
    }
}

/// Bytes of one request at most.
const MOST_REQUEST: u64 = 256 << 20;
