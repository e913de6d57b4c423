//! Jobs: commands as a sequence of store operations, one under way at a time, each on a bounded piece of the range.

use alloc::vec::Vec;

use iscsi_memory::{Buf, SessionBuffers};
use scsi_proto::Sense;
use scsi_proto::provisioning::Extent;

use super::progress::TURN;
use crate::device_server::fault;
use backstore::{Access, Blocks, LbaStatus, StoreCompletion, StoreOp};

/// Bytes of the medium that a job handles at a time, where the command does not itself move them.
pub(crate) const CHUNK: usize = 256 << 10;
/// Bytes of a command's data that a job moves at a time: a store that answers at once takes well under a millisecond.
pub(crate) const MOVED: usize = TURN;
/// Bytes of the medium that a job deallocates at a time: giving back as many pages takes about a quarter of a
/// millisecond, and zeroing them by hand, where they cannot be given back, less than one.
pub(crate) const UNMAP_PIECE: usize = 4 << 20;
/// Most descriptors of one GET LBA STATUS answer: a page full.
const MAX_STATUSES: u32 = 255;

#[derive(Debug)]
enum Kind {
    /// Blocks to the initiator.
    Read,
    /// The data to the medium, then perhaps read back, perhaps compared.
    Write {
        verify: Option<bool>,
        done: bool,
    },
    /// The medium can be read.
    Verify,
    /// The medium holds the data, or their one block over and over.
    Compare {
        same: bool,
    },
    /// The one block over and over to the medium.
    Fill,
    /// The range is deallocated if the block is zeros, else filled.
    FillOrUnmap,
    Unmap(Vec<Extent>),
    CompareAndWrite {
        writing: bool,
    },
    Or {
        writing: bool,
    },
    Flush,
    LbaStatus {
        descriptors: u32,
        data: Buf,
    },
}

/// A command under way at the store.
#[derive(Debug)]
pub(crate) struct Job {
    kind: Kind,
    /// Next block.
    lba: u64,
    /// Blocks left.
    left: u64,
    /// The data of the initiator.
    data: Option<Buf>,
    /// Where in the data the next block is.
    at: usize,
    flush: bool,
    /// Bytes of a block; known once the job starts.
    block_shift: u8,
    /// Allocation length of the answer.
    allocation: u32,
    /// Blocks that a read reads next.
    piece: u64,
}

/// What a job does next.
pub(crate) enum Next {
    Submit(StoreOp),
    /// A part of the data for the initiator; more follow.
    Send(Buf),
    /// It is over: with data for the initiator, or with sense data.
    Over(Result<Option<Buf>, Sense>),
}

impl Job {
    fn new(kind: Kind, lba: u64, left: u64) -> Self {
        Self { kind, lba, left, data: None, at: 0, flush: false, block_shift: 9, allocation: 0, piece: 0 }
    }

    pub(crate) fn read(lba: u64, blocks: u64) -> Self {
        Self::new(Kind::Read, lba, blocks)
    }

    pub(crate) fn write(lba: u64, flush: bool) -> Self {
        Self { flush, ..Self::new(Kind::Write { verify: None, done: false }, lba, 0) }
    }

    pub(crate) fn write_and_verify(lba: u64, compare: bool) -> Self {
        Self::new(Kind::Write { verify: Some(compare), done: false }, lba, 0)
    }

    pub(crate) fn verify(lba: u64, blocks: u64) -> Self {
        Self::new(Kind::Verify, lba, blocks)
    }

    pub(crate) fn compare(lba: u64) -> Self {
        Self::new(Kind::Compare { same: false }, lba, 0)
    }

    pub(crate) fn compare_same(lba: u64, blocks: u64) -> Self {
        Self::new(Kind::Compare { same: true }, lba, blocks)
    }

    /// Without data from the initiator the block is zeros.
    pub(crate) fn write_same(lba: u64, blocks: u64, deallocate: bool, block_size: u32) -> Self {
        let kind = if deallocate { Kind::FillOrUnmap } else { Kind::Fill };
        Self { block_shift: block_size.trailing_zeros() as u8, ..Self::new(kind, lba, blocks) }
    }

    pub(crate) fn unmap(extents: Vec<Extent>) -> Self {
        Self::new(Kind::Unmap(extents), 0, 0)
    }

    pub(crate) fn compare_and_write(lba: u64, blocks: u64, flush: bool) -> Self {
        Self { flush, ..Self::new(Kind::CompareAndWrite { writing: false }, lba, blocks) }
    }

    pub(crate) fn or_write(lba: u64, flush: bool) -> Self {
        Self { flush, ..Self::new(Kind::Or { writing: false }, lba, 0) }
    }

    pub(crate) fn flush() -> Self {
        Self::new(Kind::Flush, 0, 0)
    }

    pub(crate) fn lba_status(lba: u64, blocks: u64, allocation: u32) -> Self {
        let descriptors = (allocation.saturating_sub(8) / 16).clamp(1, MAX_STATUSES);
        Self { allocation, ..Self::new(Kind::LbaStatus { descriptors, data: Buf::zeroed(0) }, lba, blocks) }
    }

    /// Gives the job the initiator's data: whole blocks, except where the command counts otherwise.
    pub(crate) fn set_data(&mut self, data: Buf, block_shift: u8) {
        self.block_shift = block_shift;
        if matches!(self.kind, Kind::Write { .. } | Kind::Compare { same: false } | Kind::Or { .. }) {
            self.left = (data.len() >> block_shift) as u64;
        }
        self.data = Some(data);
    }

    /// Where the data go and what they are, if all there is to do is to write them, and they are not too many at a
    /// time.
    pub(crate) fn plain_write(&self) -> Option<(u64, &Buf)> {
        let plain = matches!(self.kind, Kind::Write { verify: None, done: false }) && !self.flush;
        self.data.as_ref().filter(|data| plain && data.len() <= MOVED).map(|data| (self.lba << self.block_shift, data))
    }

    pub(crate) fn set_block_shift(&mut self, block_shift: u8) {
        self.block_shift = block_shift;
    }

    /// Bytes of buffers that it holds.
    pub(crate) fn buffered(&self) -> usize {
        self.data.as_ref().map_or(0, Buf::capacity)
    }

    /// The data that the job still holds, when it is given up.
    pub(crate) fn take_buffers(&mut self) -> impl Iterator<Item = Buf> {
        let status = match &mut self.kind {
            Kind::LbaStatus { data, .. } if data.capacity() != 0 => Some(core::mem::replace(data, Buf::zeroed(0))),
            _ => None,
        };
        self.data.take().into_iter().chain(status)
    }

    /// Bytes of buffers that the job takes at a time, besides the initiator's data.
    pub(crate) fn room(&self) -> usize {
        match self.kind {
            Kind::Read => 0,
            Kind::Write { verify: None, .. } | Kind::Unmap(_) | Kind::Flush => 0,
            Kind::LbaStatus { descriptors, .. } => 8 + 16 * descriptors as usize,
            _ => CHUNK.min((self.left as usize).saturating_mul(1 << self.block_shift)),
        }
    }

    /// Bytes that it reads for the initiator with its next operation, if there is room for them; 0 for a job that does
    /// not.
    pub(crate) fn piece(&self) -> usize {
        match self.kind {
            Kind::Read => ((self.left as usize) << self.block_shift).min(MOVED.max(1 << self.block_shift)),
            _ => 0,
        }
    }

    /// Sets how many bytes it reads with its next operation. False if that is no whole block.
    pub(crate) fn set_piece(&mut self, len: usize) -> bool {
        self.piece = (len >> self.block_shift) as u64;
        self.piece != 0
    }

    /// How the job passes the write gate; `None` if it does not write.
    pub(crate) fn access(&self) -> Option<Access> {
        match self.kind {
            Kind::Write { .. } | Kind::Fill | Kind::FillOrUnmap | Kind::Unmap(_) => Some(Access::Shared),
            Kind::CompareAndWrite { .. } | Kind::Or { .. } => Some(Access::Alone),
            Kind::Read | Kind::Verify | Kind::Compare { .. } | Kind::Flush | Kind::LbaStatus { .. } => None,
        }
    }

    /// What a job that writes has still to write.
    pub(crate) fn written(&self) -> Blocks {
        match &self.kind {
            Kind::Unmap(extents) => extents.iter().map(|extent| (extent.lba, extent.blocks.into())).collect(),
            _ => Blocks::new(self.lba, self.left),
        }
    }

    fn chunk_blocks(&self) -> u64 {
        self.left.min((CHUNK >> self.block_shift) as u64)
    }

    fn read_chunk(&self, buffers: &SessionBuffers, blocks: u64) -> Next {
        Next::Submit(StoreOp::Read { lba: self.lba, buf: buffers.take((blocks as usize) << self.block_shift) })
    }

    fn advance(&mut self, blocks: u64) {
        self.lba += blocks;
        self.left = self.left.saturating_sub(blocks);
    }

    /// Whether its operation under way is a flush.
    pub(crate) fn is_flushing(&self) -> bool {
        matches!(self.kind, Kind::Flush)
    }

    /// The end of the work: a flush first, if one is asked for.
    fn end(&mut self, buffers: &SessionBuffers) -> Next {
        if let Some(data) = self.data.take() {
            buffers.give(data);
        }
        if core::mem::take(&mut self.flush) {
            self.kind = Kind::Flush;
            return Next::Submit(StoreOp::Flush);
        }
        Next::Over(Ok(None))
    }

    fn fail(&mut self, buffers: &SessionBuffers, sense: Sense) -> Next {
        for buf in self.take_buffers() {
            buffers.give(buf);
        }
        Next::Over(Err(sense))
    }

    /// The first operation.
    pub(crate) fn begin(&mut self, buffers: &SessionBuffers) -> Next {
        match &mut self.kind {
            Kind::Read => self.read_chunk(buffers, self.piece.clamp(1, self.left.max(1))),
            Kind::Write { .. } => match self.data.take() {
                Some(mut buf) => {
                    buf.set_len(buf.len().min(MOVED));
                    Next::Submit(StoreOp::Write { lba: self.lba, buf })
                }
                None => self.end(buffers),
            },
            Kind::FillOrUnmap => {
                let zeros = self.data.as_ref().is_none_or(|data| data.iter().all(|byte| *byte == 0));
                if zeros {
                    let extent = Extent { lba: self.lba, blocks: u32::try_from(self.left).unwrap_or(u32::MAX) };
                    self.kind = Kind::Unmap(Vec::from([extent]));
                } else {
                    self.kind = Kind::Fill;
                }
                self.begin(buffers)
            }
            Kind::Fill => {
                let blocks = self.chunk_blocks();
                let size = 1 << self.block_shift;
                let mut buf = buffers.take((blocks as usize) << self.block_shift);
                match &self.data {
                    Some(data) => buf.chunks_mut(size).for_each(|block| {
                        for (to, from) in block.iter_mut().zip(data.iter()) {
                            *to = *from;
                        }
                    }),
                    None => buf.fill(0),
                }
                Next::Submit(StoreOp::Write { lba: self.lba, buf })
            }
            Kind::Unmap(extents) => match extents.last_mut() {
                Some(extent) => {
                    let (lba, blocks) = (extent.lba, extent.blocks.min((UNMAP_PIECE >> self.block_shift) as u32));
                    extent.lba += u64::from(blocks);
                    extent.blocks -= blocks;
                    if extent.blocks == 0 {
                        extents.pop();
                    }
                    Next::Submit(StoreOp::Unmap { lba, blocks: blocks.into() })
                }
                None => self.end(buffers),
            },
            Kind::Verify | Kind::Compare { .. } | Kind::Or { .. } if self.left == 0 => self.end(buffers),
            Kind::Verify | Kind::Compare { .. } | Kind::Or { .. } => self.read_chunk(buffers, self.chunk_blocks()),
            Kind::CompareAndWrite { .. } if self.left == 0 => self.end(buffers),
            Kind::CompareAndWrite { .. } => self.read_chunk(buffers, self.left),
            Kind::Flush => Next::Submit(StoreOp::Flush),
            Kind::LbaStatus { descriptors, data } => {
                let mut buf = buffers.take(8 + 16 * *descriptors as usize);
                buf.set_len(8);
                *data = buf;
                Next::Submit(StoreOp::LbaStatus { lba: self.lba })
            }
        }
    }

    /// The operation under way is done.
    pub(crate) fn go_on(&mut self, buffers: &SessionBuffers, done: StoreCompletion) -> Next {
        let StoreCompletion { buf, lba_status, result, .. } = done;
        if let Err(error) = result {
            if let Some(buf) = buf {
                buffers.give(buf);
            }
            return self.fail(buffers, fault::of_store(error));
        }
        match &mut self.kind {
            Kind::Read => {
                self.advance(buf.as_ref().map_or(self.left, |buf| (buf.len() >> self.block_shift) as u64));
                match buf {
                    Some(buf) if self.left != 0 => Next::Send(buf),
                    buf => Next::Over(Ok(buf)),
                }
            }
            Kind::Flush => Next::Over(Ok(None)),
            Kind::Unmap(_) => self.begin(buffers),
            Kind::LbaStatus { .. } => self.add_status(buffers, lba_status),
            Kind::Write { done: false, .. } => {
                self.data = match buf.map(|buf| self.moved(buf)) {
                    Some((buf, true)) => return Next::Submit(StoreOp::Write { lba: self.lba, buf }),
                    whole => whole.map(|(buf, _)| buf),
                };
                let Kind::Write { verify, done } = &mut self.kind else { return self.end(buffers) };
                *done = true;
                let verify = *verify;
                // What follows looks at all of it.
                let blocks = (core::mem::take(&mut self.at) >> self.block_shift) as u64;
                (self.lba, self.left) = (self.lba - blocks, blocks);
                match verify {
                    None => self.end(buffers),
                    Some(compare) => {
                        // What was written is to be read from the medium, not from a cache on the way.
                        self.kind = if compare { Kind::Compare { same: false } } else { Kind::Verify };
                        self.begin(buffers)
                    }
                }
            }
            Kind::Write { .. } => self.end(buffers),
            Kind::Fill | Kind::FillOrUnmap => self.filled(buffers, buf),
            Kind::Verify | Kind::Compare { .. } => self.verified(buffers, buf),
            Kind::CompareAndWrite { .. } => self.compared(buffers, buf),
            Kind::Or { .. } => self.ored(buffers, buf),
        }
    }

    /// A piece of a command's data has been moved: the buffer with the next piece, and true, or with all of them.
    fn moved(&mut self, mut buf: Buf) -> (Buf, bool) {
        let len = buf.len();
        self.at += len;
        self.advance((len >> self.block_shift) as u64);
        if self.left == 0 {
            buf.set_len(self.at);
            return (buf, false);
        }
        buf.set_window(self.at, ((self.left as usize) << self.block_shift).min(MOVED));
        (buf, true)
    }

    fn filled(&mut self, buffers: &SessionBuffers, buf: Option<Buf>) -> Next {
        let blocks = self.chunk_blocks();
        self.advance(blocks);
        match buf {
            Some(mut buf) if self.left != 0 => {
                // The same bytes go again, perhaps fewer.
                let len = ((self.chunk_blocks() as usize) << self.block_shift).min(buf.len());
                buf.set_len(len);
                Next::Submit(StoreOp::Write { lba: self.lba, buf })
            }
            buf => {
                buf.into_iter().for_each(|buf| buffers.give(buf));
                self.end(buffers)
            }
        }
    }

    fn verified(&mut self, buffers: &SessionBuffers, buf: Option<Buf>) -> Next {
        let Some(buf) = buf else { return self.end(buffers) };
        let same = matches!(self.kind, Kind::Compare { same: true });
        let difference = match (&self.kind, &self.data) {
            (Kind::Compare { .. }, Some(data)) if same => {
                let size = data.len().max(1);
                buf.chunks(size).find_map(|block| mismatch(block, data))
            }
            (Kind::Compare { .. }, Some(data)) => {
                mismatch(&buf, data.get(self.at..).unwrap_or_default()).map(|at| at + self.at)
            }
            _ => None,
        };
        let len = buf.len();
        buffers.give(buf);
        if let Some(offset) = difference {
            return self.fail(buffers, fault::miscompare(offset as u64));
        }
        self.at += len;
        self.advance((len >> self.block_shift) as u64);
        if self.left == 0 { self.end(buffers) } else { self.read_chunk(buffers, self.chunk_blocks()) }
    }

    fn compared(&mut self, buffers: &SessionBuffers, buf: Option<Buf>) -> Next {
        let Some(mut buf) = buf else { return self.end(buffers) };
        if matches!(self.kind, Kind::CompareAndWrite { writing: true }) {
            buffers.give(buf);
            return self.end(buffers);
        }
        let half = buf.len();
        let (expected, new) = match &self.data {
            Some(data) => data.split_at(half.min(data.len())),
            None => (&[][..], &[][..]),
        };
        if let Some(offset) = mismatch(&buf, expected) {
            buffers.give(buf);
            return self.fail(buffers, fault::miscompare(offset as u64));
        }
        for (to, from) in buf.iter_mut().zip(new) {
            *to = *from;
        }
        self.kind = Kind::CompareAndWrite { writing: true };
        Next::Submit(StoreOp::Write { lba: self.lba, buf })
    }

    fn ored(&mut self, buffers: &SessionBuffers, buf: Option<Buf>) -> Next {
        let Some(mut buf) = buf else { return self.end(buffers) };
        if matches!(self.kind, Kind::Or { writing: true }) {
            let len = buf.len();
            buffers.give(buf);
            self.kind = Kind::Or { writing: false };
            self.at += len;
            self.advance((len >> self.block_shift) as u64);
            return if self.left == 0 { self.end(buffers) } else { self.read_chunk(buffers, self.chunk_blocks()) };
        }
        let data = self.data.as_ref().and_then(|data| data.get(self.at..)).unwrap_or_default();
        for (to, from) in buf.iter_mut().zip(data) {
            *to |= *from;
        }
        self.kind = Kind::Or { writing: true };
        Next::Submit(StoreOp::Write { lba: self.lba, buf })
    }

    /// Adds a descriptor (SBC-4 5.9.2), and asks on while the answer has room.
    fn add_status(&mut self, buffers: &SessionBuffers, status: Option<LbaStatus>) -> Next {
        let Kind::LbaStatus { descriptors, data } = &mut self.kind else { return self.end(buffers) };
        let LbaStatus { blocks, mapped } = status.unwrap_or(LbaStatus { blocks: self.left, mapped: true });
        let blocks = blocks.clamp(1, self.left.max(1)).min(u32::MAX.into());
        let at = data.len();
        data.set_len((at + 16).min(data.capacity()));
        let fields = [&self.lba.to_be_bytes()[..], &(blocks as u32).to_be_bytes(), &[u8::from(!mapped), 0, 0, 0]];
        let place = data.iter_mut().skip(at);
        for (to, from) in place.zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        *descriptors -= 1;
        let more = *descriptors != 0;
        self.advance(blocks);
        if more && self.left != 0 {
            return Next::Submit(StoreOp::LbaStatus { lba: self.lba });
        }
        let Kind::LbaStatus { data, .. } = &mut self.kind else { return self.end(buffers) };
        let mut data = core::mem::replace(data, Buf::zeroed(0));
        let length = (data.len() as u32).saturating_sub(4);
        if let Some((head, _)) = data.split_first_chunk_mut::<8>() {
            let [a, b, c, d] = length.to_be_bytes();
            *head = [a, b, c, d, 0, 0, 0, 0];
        }
        data.set_len(data.len().min(self.allocation as usize));
        Next::Over(Ok(Some(data)))
    }
}

/// Offset of the first byte that differs; what one of them lacks does not count.
fn mismatch(medium: &[u8], data: &[u8]) -> Option<usize> {
    let len = medium.len().min(data.len());
    let (medium, data) = (medium.get(..len)?, data.get(..len)?);
    if medium == data {
        return None;
    }
    medium.iter().zip(data).position(|(a, b)| a != b)
}
