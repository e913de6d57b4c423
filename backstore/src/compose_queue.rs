//! The fast door of composed stores: one queue made of the stores' queues.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iscsi_memory::{Buf, BufPool};

use super::compose::{join, outward};
use super::layout::{Layout, pieces};
use super::{Geometry, LbaStatus, StoreCompletion, StoreError, StoreOp, StoreQueue, StoreRequest};

/// Bytes of idle buffers kept for split requests.
const IDLE_BUFFERS: usize = 4 << 20;

/// What a split or handed-on request was.
#[derive(Clone, Copy)]
enum Kind {
    /// The only part holds the request's own buffer.
    Whole,
    /// Parts hold buffers of ours; on completion they are copied into the request's.
    SplitRead { lba: u64 },
    /// Parts hold buffers of ours.
    SplitWrite,
    /// A status run that is cut where the store's run ends.
    Status { run: u64 },
}

/// A request under way.
struct Parent {
    token: u64,
    kind: Kind,
    buf: Option<Buf>,
    lba_status: Option<LbaStatus>,
    parts: usize,
    result: Result<(), StoreError>,
}

struct Child {
    queue: Box<dyn StoreQueue>,
    batch: Vec<StoreRequest>,
}

/// Splits requests into the stores' queues and joins their completions. A part's token is its parent's place in the
/// table. The table and the buffers are bounded by what the submitter has in flight, and reused.
pub(super) struct ComposedQueue<L> {
    layout: L,
    block_size: u64,
    unmap: bool,
    children: Vec<Child>,
    parents: Vec<Option<Parent>>,
    free: Vec<usize>,
    buffers: BufPool,
    arrived: Vec<StoreCompletion>,
    done: Vec<StoreCompletion>,
}

impl<L: Layout> ComposedQueue<L> {
    pub(super) fn new(layout: L, geometry: Geometry, unmap: bool, queues: Vec<Box<dyn StoreQueue>>) -> Self {
        Self {
            layout,
            block_size: geometry.block_size.into(),
            unmap,
            children: queues.into_iter().map(|queue| Child { queue, batch: Vec::new() }).collect(),
            parents: Vec::new(),
            free: Vec::new(),
            buffers: BufPool::new(IDLE_BUFFERS),
            arrived: Vec::new(),
            done: Vec::new(),
        }
    }

    fn bytes_of(&self, blocks: u64) -> usize {
        (blocks * self.block_size) as usize
    }

    /// The range of store `child` that `blocks` from `lba` on touch: first block and number.
    fn range(&self, child: usize, lba: u64, blocks: u64) -> (u64, u64) {
        let first = self.layout.before(child, lba);
        (first, self.layout.before(child, lba + blocks) - first)
    }

    fn open(&mut self, parent: Parent) -> usize {
        match self.free.pop() {
            Some(slot) => {
                self.parents[slot] = Some(parent);
                slot
            }
            None => {
                self.parents.push(Some(parent));
                self.parents.len() - 1
            }
        }
    }

    fn hand_on(&mut self, child: usize, slot: usize, op: StoreOp) {
        self.children[child].batch.push(StoreRequest { token: slot as u64, op });
    }

    fn take(&mut self, StoreRequest { token, op }: StoreRequest) {
        let parent = |kind| Parent { token, kind, buf: None, lba_status: None, parts: 1, result: Ok(()) };
        match op {
            StoreOp::Read { lba, buf } => self.transfer(token, lba, buf, true),
            StoreOp::Write { lba, buf } => self.transfer(token, lba, buf, false),
            StoreOp::Flush => {
                let slot = self.open(Parent { parts: self.children.len(), ..parent(Kind::Whole) });
                for child in 0..self.children.len() {
                    self.hand_on(child, slot, StoreOp::Flush);
                }
            }
            StoreOp::Unmap { lba, blocks } => {
                if blocks == 0 || !self.unmap {
                    let result = if self.unmap { Ok(()) } else { Err(StoreError::Unsupported) };
                    self.done.push(StoreCompletion { token, buf: None, lba_status: None, result });
                    return;
                }
                let slot = self.open(Parent { parts: 0, ..parent(Kind::Whole) });
                self.each_part(slot, lba, blocks, |_, lba, blocks| StoreOp::Unmap { lba, blocks });
            }
            StoreOp::LbaStatus { lba } => {
                let place = self.layout.place(lba);
                let slot = self.open(parent(Kind::Status { run: place.run }));
                self.hand_on(place.child, slot, StoreOp::LbaStatus { lba: place.lba });
            }
        }
    }

    /// Hands each store its range, and counts the parts.
    fn each_part(&mut self, slot: usize, lba: u64, blocks: u64, mut op: impl FnMut(&mut Self, u64, u64) -> StoreOp) {
        for child in 0..self.children.len() {
            let (first, count) = self.range(child, lba, blocks);
            if count > 0 {
                let op = op(self, first, count);
                self.hand_on(child, slot, op);
                if let Some(parent) = &mut self.parents[slot] {
                    parent.parts += 1;
                }
            }
        }
    }

    fn transfer(&mut self, token: u64, lba: u64, buf: Buf, read: bool) {
        let blocks = buf.len() as u64 / self.block_size;
        if blocks == 0 {
            self.done.push(StoreCompletion { token, buf: Some(buf), lba_status: None, result: Ok(()) });
            return;
        }
        let place = self.layout.place(lba);
        let mut parent = Parent { token, kind: Kind::Whole, buf: None, lba_status: None, parts: 1, result: Ok(()) };
        if blocks <= place.run {
            let slot = self.open(parent);
            let lba = place.lba;
            self.hand_on(
                place.child,
                slot,
                if read { StoreOp::Read { lba, buf } } else { StoreOp::Write { lba, buf } },
            );
            return;
        }
        // A store's parts of the range follow each other there: one request per store, gathered or scattered by
        // copying.
        parent.parts = 0;
        if read {
            parent.kind = Kind::SplitRead { lba };
            parent.buf = Some(buf);
            let slot = self.open(parent);
            self.each_part(slot, lba, blocks, |queue, lba, blocks| StoreOp::Read {
                lba,
                buf: queue.buffers.take(queue.bytes_of(blocks)),
            });
            return;
        }
        parent.kind = Kind::SplitWrite;
        let slot = self.open(parent);
        for child in 0..self.children.len() {
            let (first, count) = self.range(child, lba, blocks);
            if count == 0 {
                continue;
            }
            let mut part = self.buffers.take(self.bytes_of(count));
            for piece in pieces(&self.layout, lba, blocks).filter(|piece| piece.child == child) {
                let len = self.bytes_of(piece.blocks);
                let (to, from) = (self.bytes_of(piece.lba - first), self.bytes_of(piece.offset));
                part[to..to + len].copy_from_slice(&buf[from..from + len]);
            }
            self.hand_on(child, slot, StoreOp::Write { lba: first, buf: part });
            if let Some(parent) = &mut self.parents[slot] {
                parent.parts += 1;
            }
        }
        if let Some(parent) = &mut self.parents[slot] {
            parent.buf = Some(buf);
        }
    }

    /// Joins one part's completion to its parent.
    fn joined(&mut self, child: usize, completion: StoreCompletion) {
        let slot = completion.token as usize;
        // A store that answers what it was not asked is not heard.
        let Some(Some(parent)) = self.parents.get_mut(slot) else { return };
        let result = completion.result.map_err(|error| outward(&self.layout, child, error));
        parent.result = join(parent.result, result);
        match parent.kind {
            Kind::Whole => {
                if completion.buf.is_some() {
                    parent.buf = completion.buf;
                }
            }
            Kind::SplitRead { lba } => {
                if let Some(part) = completion.buf {
                    if result.is_ok()
                        && let Some(buf) = &mut parent.buf
                    {
                        let first = self.layout.before(child, lba);
                        let blocks = buf.len() as u64 / self.block_size;
                        for piece in pieces(&self.layout, lba, blocks).filter(|piece| piece.child == child) {
                            let len = (piece.blocks * self.block_size) as usize;
                            let from = ((piece.lba - first) * self.block_size) as usize;
                            let to = (piece.offset * self.block_size) as usize;
                            buf[to..to + len].copy_from_slice(&part[from..from + len]);
                        }
                    }
                    self.buffers.give(part);
                }
            }
            Kind::SplitWrite => {
                if let Some(part) = completion.buf {
                    self.buffers.give(part);
                }
            }
            Kind::Status { run } => {
                parent.lba_status =
                    completion.lba_status.map(|status| LbaStatus { blocks: status.blocks.min(run), ..status });
            }
        }
        parent.parts -= 1;
        if parent.parts == 0
            && let Some(Parent { token, buf, lba_status, result, .. }) = self.parents[slot].take()
        {
            self.free.push(slot);
            self.done.push(StoreCompletion { token, buf, lba_status, result });
        }
    }
}

impl<L: Layout> StoreQueue for ComposedQueue<L> {
    fn submit(&mut self, batch: &mut Vec<StoreRequest>) {
        for request in batch.drain(..) {
            self.take(request);
        }
        for child in &mut self.children {
            if !child.batch.is_empty() {
                child.queue.submit(&mut child.batch);
            }
        }
    }

    fn poll(&mut self, completions: &mut Vec<StoreCompletion>) {
        let mut arrived = core::mem::take(&mut self.arrived);
        for child in 0..self.children.len() {
            self.children[child].queue.poll(&mut arrived);
            for completion in arrived.drain(..) {
                self.joined(child, completion);
            }
        }
        self.arrived = arrived;
        completions.append(&mut self.done);
    }
}
