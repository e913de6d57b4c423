//! The file store: its threads, and a file that does its calls piece by piece and holds some of them back for long.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backstore::{
    Abilities, Backstore, BlockFile, FileMedium, FileStore, Geometry, StoreCompletion, StoreOp, StoreQueue,
    StoreRequest,
};
use iscsi_memory::{Buf, turns};

use super::{Bell, SharedModel, World, event, join, sleep, spawn, time};
use crate::driven::Fault;
use crate::model::{FlushId, ReadId, WriteId};
use crate::rng::Rng;
use crate::trace::Trace;
use crate::world::Report;

/// What an operation may take whose own queue has none that is held back: nothing else takes time here. The store lets
/// nobody wait for a call that is held back for longer than 200 ms, and a few such calls may come one after the other.
const ANSWERED_IN: Duration = Duration::from_secs(5);
/// How long a call is held back: longer than that.
const HELD_BACK: (u64, u64) = (10_000, 60_000);

/// A file in the page cache of a system like Linux with ext4: writes come one after the other, reads come between, and
/// each does its work piece by piece.
struct PiecewiseFile {
    bytes: Mutex<Vec<u8>>,
    /// Bytes of which no call does a part, and bytes of a piece.
    block: usize,
    piece: usize,
    /// A call that changes the file has it.
    changing: AtomicBool,
    /// Calls there are held back, as long as it is so.
    slow: Range<u64>,
    holds_back: AtomicBool,
    rng: Mutex<Rng>,
    calls: AtomicU64,
}

impl PiecewiseFile {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rng(&self) -> MutexGuard<'_, Rng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call comes: it may be held back, and does nothing meanwhile.
    fn comes(&self, offset: u64) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.slow.contains(&offset) && self.holds_back.load(Ordering::Relaxed) {
            let (from, to) = HELD_BACK;
            let wait = self.rng().between(from * 1000, to * 1000);
            sleep(Duration::from_micros(wait));
        }
        turns::point();
    }

    /// How much of `len` bytes is moved this time, in whole blocks.
    fn part(&self, len: usize) -> usize {
        let blocks = (len / self.block) as u64;
        let rng = &mut *self.rng();
        if blocks > 1 && rng.permille(100) { rng.between(1, blocks - 1) as usize * self.block } else { len }
    }

    fn change(&self, offset: u64, len: usize, put: impl Fn(usize, &mut [u8])) {
        let name = std::ptr::from_ref(&self.changing).addr();
        while self.changing.swap(true, Ordering::Relaxed) {
            turns::wait(name, None);
        }
        for at in (0..len).step_by(self.piece) {
            turns::point();
            let (start, end) = (offset as usize + at, offset as usize + (at + self.piece).min(len));
            put(at, &mut self.bytes()[start..end]);
        }
        self.changing.store(false, Ordering::Relaxed);
        turns::wake(name, true);
    }
}

impl BlockFile for PiecewiseFile {
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<usize> {
        self.comes(offset);
        let len = self.part(data.len());
        for (at, piece) in data[..len].chunks_mut(self.piece).enumerate() {
            turns::point();
            let start = offset as usize + at * self.piece;
            piece.copy_from_slice(&self.bytes()[start..start + piece.len()]);
        }
        Ok(len)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.comes(offset);
        let len = self.part(data.len());
        self.change(offset, len, |at, piece| piece.copy_from_slice(&data[at..at + piece.len()]));
        Ok(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        turns::point();
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.comes(offset);
        self.change(offset, len as usize, |_, piece| piece.fill(0));
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.size()?).then_some(offset))
    }

    fn next_hole(&self, _: u64) -> io::Result<u64> {
        self.size()
    }
}

/// One worker of a target: a queue of its own, and what it has under way.
struct Worker {
    number: u64,
    queue: Box<dyn StoreQueue>,
    bell: Arc<Bell>,
    model: SharedModel,
    rng: Rng,
    /// The blocks that it uses.
    blocks: Range<u64>,
    /// None of its calls is held back.
    is_quick: bool,
    under_way: BTreeMap<u64, (Kind, Duration)>,
    trace: Trace,
    fault: Fault,
}

#[derive(Clone, Copy)]
enum Kind {
    Read(ReadId),
    Write(WriteId),
    Flush(FlushId),
}

impl Worker {
    /// Does so many operations, some at a time.
    fn work(mut self, operations: u64, depth: usize) {
        let mut issued = 0;
        while issued < operations || !self.under_way.is_empty() {
            let mut batch = Vec::new();
            while issued < operations && self.under_way.len() < depth && (batch.is_empty() || self.rng.permille(800)) {
                issued += 1;
                batch.push(self.request(issued));
            }
            self.queue.submit(&mut batch);
            let mut done = Vec::new();
            self.queue.poll(&mut done);
            let idle = done.is_empty();
            for completion in done {
                self.completed(completion);
            }
            if self.fault.get().is_some() {
                // What is under way comes to its end in the store.
                return;
            }
            if idle && (issued == operations || self.under_way.len() == depth) {
                self.bell.wait(None);
            } else if self.rng.permille(100) {
                sleep(Duration::from_micros(self.rng.magnitude(1, 1_000_000)));
            } else {
                turns::point();
            }
        }
    }

    fn request(&mut self, token: u64) -> StoreRequest {
        let blocks = self.rng.between(1, 4);
        let end = self.blocks.end - blocks;
        // Half of them meet in the first blocks.
        let last = if self.rng.permille(500) { end.min(self.blocks.start + 3) } else { end };
        let lba = self.rng.between(self.blocks.start, last);
        let size = self.model.block_size;
        let (kind, op) = match self.rng.below(20) {
            0..9 => {
                let buf = Buf::zeroed(blocks as usize * size);
                (Kind::Read(self.model.begin_read(lba, blocks)), StoreOp::Read { lba, buf })
            }
            9..17 => {
                let (write, data) = self.model.begin_write((lba, blocks), self.number, token);
                let mut buf = Buf::zeroed(data.len());
                buf.copy_from_slice(&data);
                (Kind::Write(write), StoreOp::Write { lba, buf })
            }
            17 | 18 => (Kind::Write(self.model.begin_zero((lba, blocks))), StoreOp::Unmap { lba, blocks }),
            _ => (Kind::Flush(self.model.with(|model| model.begin_flush())), StoreOp::Flush),
        };
        event(&self.trace, format_args!("worker {} submits {token}: {op:?}", self.number));
        self.under_way.insert(token, (kind, time()));
        StoreRequest { token, op }
    }

    fn completed(&mut self, completion: StoreCompletion) {
        let StoreCompletion { token, buf, result, .. } = completion;
        let number = self.number;
        event(&self.trace, format_args!("worker {number} completes {token}: {result:?}"));
        let Some((kind, at)) = self.under_way.remove(&token) else {
            return self.fault.found(format!("operation {token} of worker {number} completed twice"));
        };
        if let Err(error) = result {
            return self.fault.found(format!("operation {token} of worker {number} failed: {error}"));
        }
        let took = time() - at;
        if self.is_quick && took > ANSWERED_IN {
            self.fault.found(format!(
                "operation {token} of worker {number} took {took:?}, while those of another were held back"
            ));
        }
        match kind {
            Kind::Read(read) => {
                if let Err(wrong) = self.model.end_read(read, &buf.expect("the buffer of a read")) {
                    self.fault.found(format!("read {token} of worker {number} from a file: {wrong}"));
                }
            }
            Kind::Write(write) => self.model.end_write(write),
            Kind::Flush(flush) => self.model.with(|model| model.end_flush(flush)),
        }
    }
}

pub(super) fn live(world: &mut World) -> Report {
    let rng = &mut world.rng;
    let block = rng.pick(&[512, 1024, 4096]);
    let (quick, held) = (rng.between(8, 24), 16);
    let blocks = quick + held;
    let (threads, workers) = (rng.between(1, 4), rng.between(2, 4));
    // The last of the workers has all the calls that are held back, if there are any.
    let holds_back = rng.permille(500);
    event(
        &world.trace,
        format_args!("a file with blocks of {block}, {threads} threads, {workers} workers, held back: {holds_back}"),
    );
    let file = PiecewiseFile {
        bytes: Mutex::new(vec![0; blocks as usize * block]),
        block,
        piece: block / 4,
        changing: AtomicBool::new(false),
        slow: quick * block as u64..blocks * block as u64,
        holds_back: AtomicBool::new(holds_back),
        rng: Mutex::new(Rng::new(rng.u64(), 0)),
        calls: AtomicU64::new(0),
    };
    let geometry = Geometry { block_size: block as u32, blocks, ..Geometry::of_bytes(blocks * block as u64) };
    let abilities = Abilities { unmap: true, unmapped_reads_zero: true, volatile_cache: true, ..Abilities::default() };
    let medium = FileMedium::new(file, geometry, abilities);
    let store = Arc::new(FileStore::over("simulated", medium, threads as usize).expect("threads"));
    let model = SharedModel::new(blocks, block);
    let (mut running, mut commands) = (Vec::new(), 0);
    for number in 0..workers {
        let bell = Arc::new(Bell::default());
        let queue = store.clone().open_queue(bell.waker()).expect("a file store has queues");
        let is_slow = holds_back && number == workers - 1;
        let worker = Worker {
            number,
            queue,
            bell,
            model: model.clone(),
            rng: Rng::new(rng.u64(), number),
            blocks: if is_slow { quick..blocks } else { 0..quick },
            is_quick: !is_slow,
            under_way: BTreeMap::new(),
            trace: world.trace.clone(),
            fault: world.fault.clone(),
        };
        let (operations, depth) = (rng.between(5, 40), rng.between(1, 12) as usize);
        commands += operations;
        running.push(spawn("worker", move || worker.work(operations, depth)));
    }
    join(running, &world.fault);
    drop(store);
    Report { commands, time: time(), ..Report::default() }
}
