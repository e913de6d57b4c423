//! Stores with faults: slow, failing, full, behind each of the three doors, on virtual time, with a cache that a crash takes away.

mod current;
mod file;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use backstore::{
    Abilities, Backstore, FileMedium, Geometry, LbaStatus, StoreCompletion, StoreError, StoreOp, StoreQueue,
    StoreRequest,
};
use iscsi_memory::{Buf, Region};
use iscsi_proto::pdu::TaskAttribute;
use iscsi_proto::time::Instant;

use crate::rng::Rng;
use current::{Current, OpId};
use file::SimFile;

/// Bytes that a device registers at a time.
const PIECE: u64 = 1 << 20;

/// How the target reaches the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Futures.
    Easy,
    /// A queue of requests.
    Queue,
    /// Its memory is lent; what cannot be done in memory goes through the queue. There are no delays and no failures, but it may be full.
    Memory,
    /// A queue, behind which the file store's own medium is in a file of a simulated file system.
    File,
}

/// How a store behaves.
#[derive(Debug, Clone)]
pub struct StorePlan {
    /// The door.
    pub door: Door,
    /// Bytes of a block.
    pub block_size: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// Whether it can unmap.
    pub unmap: bool,
    /// Operations take up to so long.
    pub delay: Duration,
    /// So many operations in 1000 take up to the second value instead.
    pub slow: (u64, Duration),
    /// So many reads in 1000 fail.
    pub read_errors: u64,
    /// So many writes in 1000 fail; of their blocks any may be written.
    pub write_errors: u64,
    /// So many writes in 1000 find the store full. For [`Door::Memory`]: anything above zero gives it half the memory that its blocks need.
    pub full: u64,
    /// Of [`Door::File`]: so many flushes in 1000 fail, and drop what they were to make durable.
    pub sync_errors: u64,
    /// For [`Door::Memory`]: its memory is mapped, and so many in 1000 of its pieces of 1 MiB are written from the start.
    pub mapped: Option<u64>,
    /// The write of this number is acknowledged and never done: a broken store, to see whether the oracle catches it.
    pub lose_write: Option<u64>,
}

impl StorePlan {
    /// A disk of 128 KiB in blocks of 512 bytes, that can unmap, takes no time, and never fails.
    #[must_use]
    pub const fn sound(door: Door) -> Self {
        Self {
            door,
            block_size: 512,
            blocks: 256,
            unmap: true,
            delay: Duration::ZERO,
            slow: (0, Duration::ZERO),
            read_errors: 0,
            write_errors: 0,
            full: 0,
            sync_errors: 0,
            mapped: None,
            lose_write: None,
        }
    }
}

#[derive(Debug)]
enum Medium {
    Private(Vec<u8>),
    Lent(Arc<Region>),
    File(SimFile, Box<FileMedium<SimFile>>),
}

#[derive(Debug)]
struct State {
    plan: StorePlan,
    medium: Medium,
    now: Instant,
    rng: Rng,
    timers: Vec<(Instant, Waker)>,
    /// Writes of queues that are gone: a device does them all the same.
    orphans: Vec<(Instant, StoreOp, OpId)>,
    writes: u64,
    calm: bool,
    /// Operations under way.
    current: Current,
    geometry: Geometry,
    /// What a crash leaves at the least; nothing is told of a lent store's.
    durable: Vec<u8>,
    /// Changes that no flush has covered yet, by their number and the first byte.
    cached: VecDeque<(u64, usize, Vec<u8>)>,
    /// Changes so far.
    changes: u64,
}

/// A store on virtual time.
#[derive(Debug, Clone)]
pub struct SimStore(Arc<Mutex<State>>, Option<Arc<Region>>);

impl SimStore {
    /// A store of zeroes that behaves as planned.
    ///
    /// # Panics
    /// If the machine has no address space for a lent store.
    #[must_use]
    pub fn new(plan: StorePlan, mut rng: Rng) -> Self {
        let geometry =
            Geometry { block_size: plan.block_size, blocks: plan.blocks, physical_exponent: 0, optimal_transfer: 0 };
        let bytes = geometry.bytes();
        let medium = match plan.door {
            Door::Memory if plan.full > 0 => {
                Medium::Lent(Region::mapped(bytes, bytes / 2).expect("address space for a small store"))
            }
            Door::Memory if plan.mapped.is_some() => {
                Medium::Lent(Region::mapped(bytes, u64::MAX).expect("address space for a small store"))
            }
            Door::Memory => Medium::Lent(Region::heap(bytes as usize)),
            Door::File => {
                let rng = Rng::new(rng.u64(), 0);
                let file = SimFile::new(bytes as usize, plan.block_size as usize, plan.sync_errors, rng);
                Medium::File(file.clone(), Box::new(opened(file, geometry, plan.unmap)))
            }
            _ => Medium::Private(vec![0; bytes as usize]),
        };
        let region = if let Medium::Lent(region) = &medium { Some(region.clone()) } else { None };
        let durable = if let Medium::Private(bytes) = &medium { bytes.clone() } else { Vec::new() };
        let state = State {
            plan,
            medium,
            durable,
            cached: VecDeque::new(),
            changes: 0,
            now: Instant::ZERO,
            rng,
            timers: Vec::new(),
            orphans: Vec::new(),
            writes: 0,
            calm: false,
            current: Current::default(),
            geometry,
        };
        Self(Arc::new(Mutex::new(state)), region)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it neither fails nor dallies.
    pub fn calm(&self) {
        let state = &mut *self.state();
        state.calm = true;
        if let Medium::File(file, _) = &state.medium {
            file.calm();
        }
    }

    /// Flushes that failed and dropped what they were to make durable, and whether something is dropped now.
    #[must_use]
    pub fn dropped(&self) -> (u64, bool) {
        match &self.state().medium {
            Medium::File(file, _) => file.failed(),
            Medium::Private(_) | Medium::Lent(_) => (0, false),
        }
    }

    /// It is `now`: does what is due, wakes who waits for it.
    pub fn advance(&self, now: Instant) {
        let mut state = self.state();
        state.now = now;
        let orphans = std::mem::take(&mut state.orphans);
        for (due, op, id) in orphans {
            if due <= now {
                state.apply(op, id);
            } else {
                state.orphans.push((due, op, id));
            }
        }
        let mut due = Vec::new();
        state.timers.retain(|(at, waker)| {
            if *at <= now {
                due.push(waker.clone());
            }
            *at > now
        });
        drop(state);
        for waker in due {
            waker.wake();
        }
    }

    /// When something is due next.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let state = self.state();
        state.timers.iter().map(|(at, _)| *at).chain(state.orphans.iter().map(|(at, ..)| *at)).min()
    }

    /// Operations under way now, and the most there ever were.
    #[must_use]
    pub fn under_way(&self) -> (usize, usize) {
        self.state().current.count()
    }

    /// A write or an unmapping that came before `since` and has not ended, if there is one.
    #[must_use]
    pub fn older(&self, since: Instant) -> Option<String> {
        self.state().current.older(since)
    }

    /// The same of one session's commands, by [`crate::model::session_of`].
    #[must_use]
    pub fn older_of(&self, session: u64, since: Instant) -> Option<String> {
        self.state().current.older_of(session, since)
    }

    /// An operation of a command under way, by [`crate::model::command_of`], if there is one.
    #[must_use]
    pub fn of_command(&self, command: u64) -> Option<String> {
        self.state().current.of_command(command)
    }

    /// See [`Disk::aborted`](crate::disk::Disk::aborted).
    pub fn aborted(&self, session: Option<u64>, since: Instant) {
        self.state().current.abort(session, since);
    }

    /// See [`Disk::was_busy`](crate::disk::Disk::was_busy).
    #[must_use]
    pub fn was_busy(&self, since: Instant, now: Instant) -> bool {
        self.state().current.was_busy(since, now)
    }

    /// See [`Disk::holders`](crate::disk::Disk::holders).
    #[must_use]
    pub fn holders(&self, since: Instant) -> Vec<(u64, Instant)> {
        self.state().current.holders(since)
    }

    /// See [`Disk::ended_since`](crate::disk::Disk::ended_since).
    #[must_use]
    pub fn ended_since(&self, since: Instant) -> Vec<(u64, Instant)> {
        self.state().current.ended_since(since)
    }

    /// A rule of the task set that the operations so far have broken.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        self.state().current.broken()
    }

    /// A command, by [`crate::model::command_of`], is to be sent with this attribute.
    pub fn announce(&self, command: u64, attribute: TaskAttribute) {
        self.state().current.announce(command, attribute);
    }

    /// A turn of a worker begins: what one command has done in it is counted from here on.
    pub fn begin_turn(&self) {
        self.state().current.begin_turn();
    }

    /// It has so many more blocks from now on. Only of stores that are neither lent nor in a file.
    pub fn grow(&self, blocks: u64) {
        let state = &mut *self.state();
        state.geometry.blocks += blocks;
        state.plan.blocks += blocks;
        let bytes = state.geometry.bytes() as usize;
        if let Medium::Private(medium) = &mut state.medium {
            medium.resize(bytes, 0);
            state.durable.resize(bytes, 0);
        }
    }

    /// The process and its system die, and come up again. Operations under way are done or not; of changes that no flush has covered any may be left.
    /// Nobody may use a queue of it any more.
    pub fn crash(&self) {
        let state = &mut *self.state();
        for (_, op, id) in std::mem::take(&mut state.orphans) {
            if state.rng.permille(500) {
                state.apply(op, id);
            } else {
                state.end(id);
            }
        }
        // What a server has left to a unit that nobody has served since is gone with the process.
        state.current.forget();
        state.timers.clear();
        while let Some((_, at, data)) = state.cached.pop_front() {
            if state.rng.permille(500) {
                state.durable[at..at + data.len()].copy_from_slice(&data);
            }
        }
        match &mut state.medium {
            Medium::Private(bytes) => bytes.clone_from(&state.durable),
            Medium::File(file, medium) => {
                file.crash();
                **medium = opened(file.clone(), state.geometry, state.plan.unmap);
            }
            Medium::Lent(_) => {}
        }
    }

    /// The first byte of a piece of 1 MiB that devices have registered, although less than three quarters of it are
    /// written, and how much is: of a store whose memory is mapped.
    #[must_use]
    pub fn pinned(&self) -> Option<(u64, u64)> {
        let mapped = self.state().plan.mapped.is_some();
        let region = self.1.as_ref().filter(|_| mapped)?;
        let pieces = (0..region.len()).step_by(PIECE as usize).filter(|start| region.is_registered(*start));
        pieces.map(|start| (start, written(region, start))).find(|(start, written)| {
            let len = PIECE.min(region.len() - start);
            written * 4 < len * 3
        })
    }

    /// Something is on the medium from the start.
    ///
    /// # Panics
    /// If it has no room for it.
    pub fn preset(&self, lba: u64, data: &[u8]) {
        self.state().write(lba, data).expect("room for what is there from the start");
    }

    /// What lies on the medium.
    pub fn peek(&self, lba: u64, data: &mut [u8]) {
        self.state().read(lba, data);
    }

    /// What a crash would leave now: only what a flush has covered. None for a lent store.
    #[must_use]
    pub fn after_crash(&self) -> Option<Vec<u8>> {
        let state = self.state();
        match &state.medium {
            Medium::Private(_) => Some(state.durable.clone()),
            Medium::File(file, _) => Some(file.durable()),
            Medium::Lent(_) => None,
        }
    }

    /// A calm store of the same shape that holds this.
    #[must_use]
    pub fn of_content(&self, content: Vec<u8>) -> Self {
        let plan = StorePlan { door: Door::Easy, ..self.state().plan.clone() };
        let store = Self::new(plan, Rng::new(0, 0));
        let state = &mut *store.state();
        state.medium = Medium::Private(content);
        state.calm = true;
        store.clone()
    }

    /// Begins an operation of the easy door: `data` are what it writes, in so many blocks.
    fn wait(&self, changes: bool, lba: u64, data: Option<&[u8]>) -> Wait {
        let mut state = self.state();
        let due = state.due();
        let (now, at) = (state.now, state.at(lba) as u64);
        let id = state.current.begin(now, changes, at, data);
        Wait { store: self.clone(), due, id }
    }
}

impl State {
    fn due(&mut self) -> Instant {
        if self.calm || self.plan.door == Door::Memory {
            return self.now;
        }
        let most = if self.rng.permille(self.plan.slow.0) { self.plan.slow.1 } else { self.plan.delay };
        self.now + most.mul_f64(self.rng.below(1000) as f64 / 1000.0)
    }

    fn end(&mut self, id: OpId) {
        self.current.end(id, self.now);
    }

    fn at(&self, lba: u64) -> usize {
        (lba * u64::from(self.plan.block_size)) as usize
    }

    fn read(&self, lba: u64, data: &mut [u8]) {
        let at = self.at(lba);
        match &self.medium {
            Medium::Private(bytes) => data.copy_from_slice(&bytes[at..at + data.len()]),
            Medium::Lent(region) => region.read(at as u64, data),
            Medium::File(file, _) => file.peek(at, data),
        }
    }

    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        let at = self.at(lba);
        match &mut self.medium {
            Medium::Private(bytes) => {
                bytes[at..at + data.len()].copy_from_slice(data);
                self.changes += 1;
                self.cached.push_back((self.changes, at, data.to_vec()));
            }
            Medium::Lent(region) => {
                region.reserve_for_write(at as u64, data.len() as u64).map_err(|_| StoreError::NoSpace)?;
                region.write(at as u64, data);
            }
            Medium::File(_, medium) => return medium.perform(0, StoreOp::Write { lba, buf: buf_of(data) }).result,
        }
        Ok(())
    }

    fn try_read(&mut self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        if let Medium::File(_, medium) = &self.medium {
            let done = medium.perform(0, StoreOp::Read { lba, buf: Buf::zeroed(data.len()) });
            done.result?;
            done.buf.iter().for_each(|buf| data.copy_from_slice(buf));
        } else {
            self.read(lba, data);
        }
        if !self.calm && self.plan.door != Door::Memory && self.rng.permille(self.plan.read_errors) {
            self.rng.fill(data);
            return Err(self.rng.pick(&[
                StoreError::Read(Some(lba)),
                StoreError::Read(None),
                StoreError::NotReady,
                StoreError::Failed,
            ]));
        }
        Ok(())
    }

    fn try_write(&mut self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        self.writes += 1;
        if self.plan.lose_write == Some(self.writes) {
            return Ok(());
        }
        if !self.calm && self.plan.door != Door::Memory {
            if self.rng.permille(self.plan.full) {
                return Err(StoreError::NoSpace);
            }
            if self.rng.permille(self.plan.write_errors) {
                for (lba, block) in (lba..).zip(data.chunks(self.plan.block_size as usize)) {
                    if self.rng.permille(500) {
                        self.write(lba, block)?;
                    }
                }
                return Err(self.rng.pick(&[
                    StoreError::Write(Some(lba)),
                    StoreError::Write(None),
                    StoreError::Failed,
                ]));
            }
        }
        self.write(lba, data)
    }

    fn unmap(&mut self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        let (at, len) = (self.at(lba), self.at(blocks));
        match &mut self.medium {
            Medium::Private(bytes) => {
                bytes[at..at + len].fill(0);
                self.changes += 1;
                self.cached.push_back((self.changes, at, vec![0; len]));
            }
            Medium::Lent(region) => region.discard(at as u64, len as u64),
            Medium::File(_, medium) => return medium.perform(0, StoreOp::Unmap { lba, blocks }).result,
        }
        Ok(())
    }

    fn lba_status(&self, lba: u64) -> LbaStatus {
        LbaStatus { blocks: self.plan.blocks - lba, mapped: true }
    }

    /// A flush that was handed in after so many changes is done: those are durable.
    fn flush(&mut self, changes: u64) -> Result<(), StoreError> {
        if let Medium::File(_, medium) = &self.medium {
            return medium.perform(0, StoreOp::Flush).result;
        }
        while let Some((_, at, data)) = self.cached.pop_front_if(|(change, ..)| *change <= changes) {
            self.durable[at..at + data.len()].copy_from_slice(&data);
        }
        Ok(())
    }

    fn apply(&mut self, op: StoreOp, id: OpId) {
        self.end(id);
        let _ = match op {
            StoreOp::Write { lba, buf } => self.try_write(lba, &buf),
            StoreOp::Unmap { lba, blocks } => self.unmap(lba, blocks),
            _ => Ok(()),
        };
    }

    fn complete(&mut self, request: StoreRequest, changes: u64, id: OpId) -> StoreCompletion {
        self.end(id);
        let mut completion = StoreCompletion { token: request.token, buf: None, lba_status: None, result: Ok(()) };
        match request.op {
            StoreOp::Read { lba, mut buf } => {
                completion.result = self.try_read(lba, &mut buf);
                completion.buf = Some(buf);
            }
            StoreOp::Write { lba, buf } => {
                completion.result = self.try_write(lba, &buf);
                completion.buf = Some(buf);
            }
            StoreOp::Flush => completion.result = self.flush(changes),
            StoreOp::Unmap { lba, blocks } => completion.result = self.unmap(lba, blocks),
            StoreOp::LbaStatus { lba } => completion.lba_status = Some(self.lba_status(lba)),
        }
        completion
    }
}

/// The medium of a file that a process has just opened.
fn opened(file: SimFile, geometry: Geometry, unmap: bool) -> FileMedium<SimFile> {
    FileMedium::new(file, geometry, Abilities { unmap, unmapped_reads_zero: unmap, ..Abilities::default() })
}

/// Bytes of a piece that were written.
fn written(region: &Region, start: u64) -> u64 {
    let end = (start + PIECE).min(region.len());
    let (mut at, mut bytes) = (start, 0);
    while at < end {
        let (is_written, next) = region.extent(at);
        let next = next.min(end);
        bytes += if is_written { next - at } else { 0 };
        at = next;
    }
    bytes
}

fn buf_of(data: &[u8]) -> Buf {
    let mut buf = Buf::zeroed(data.len());
    buf.copy_from_slice(data);
    buf
}

/// An operation of the easy door, until it is due. A dropped one was never done.
struct Wait {
    store: SimStore,
    due: Instant,
    id: OpId,
}

impl Future for Wait {
    type Output = ();

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<()> {
        let mut state = self.store.state();
        if state.now >= self.due {
            return Poll::Ready(());
        }
        let due = self.due;
        state.timers.push((due, cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.store.state().end(self.id);
    }
}

#[async_trait]
impl Backstore for SimStore {
    fn geometry(&self) -> Geometry {
        self.state().geometry
    }

    fn abilities(&self) -> Abilities {
        let unmap = self.state().plan.unmap;
        Abilities { unmap, unmapped_reads_zero: unmap, volatile_cache: true, solid_state: true, ..Abilities::default() }
    }

    async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), StoreError> {
        self.state().current.moves(data.len());
        self.wait(false, lba, None).await;
        self.state().try_read(lba, data)
    }

    async fn write(&self, lba: u64, data: &[u8]) -> Result<(), StoreError> {
        self.wait(true, lba, Some(data)).await;
        self.state().try_write(lba, data)
    }

    async fn flush(&self) -> Result<(), StoreError> {
        let changes = self.state().changes;
        self.wait(false, 0, None).await;
        self.state().flush(changes)
    }

    fn failed_flushes(&self) -> Option<u64> {
        match &self.state().medium {
            Medium::File(_, medium) => Some(medium.failed_flushes()),
            Medium::Private(_) | Medium::Lent(_) => Some(0),
        }
    }

    async fn unmap(&self, lba: u64, blocks: u64) -> Result<(), StoreError> {
        self.wait(true, lba, None).await;
        self.state().unmap(lba, blocks)
    }

    async fn lba_status(&self, lba: u64) -> Result<LbaStatus, StoreError> {
        self.wait(false, lba, None).await;
        Ok(self.state().lba_status(lba))
    }

    fn open_queue(self: Arc<Self>, waker: Waker) -> Option<Box<dyn StoreQueue>> {
        let easy = self.state().plan.door == Door::Easy;
        (!easy)
            .then(|| Box::new(SimQueue { store: (*self).clone(), waker, requests: Vec::new() }) as Box<dyn StoreQueue>)
    }

    fn memory(&self) -> Option<&Arc<Region>> {
        self.1.as_ref()
    }
}

/// One worker's queue; completes in any order.
struct SimQueue {
    store: SimStore,
    waker: Waker,
    /// When each is due, and how many changes there had been when it came.
    requests: Vec<(Instant, StoreRequest, u64, OpId)>,
}

impl StoreQueue for SimQueue {
    fn submit(&mut self, batch: &mut Vec<StoreRequest>) {
        let mut state = self.store.state();
        for request in batch.drain(..) {
            let due = state.due();
            let now = state.now;
            if let StoreOp::Read { buf, .. } = &request.op {
                state.current.moves(buf.len());
            }
            let id = match &request.op {
                StoreOp::Write { lba, buf } => {
                    let at = state.at(*lba) as u64;
                    state.current.begin(now, true, at, Some(buf))
                }
                StoreOp::Unmap { .. } => state.current.begin(now, true, 0, None),
                _ => state.current.begin(now, false, 0, None),
            };
            if due > state.now {
                state.timers.push((due, self.waker.clone()));
            }
            self.requests.push((due, request, state.changes, id));
        }
    }

    fn poll(&mut self, completions: &mut Vec<StoreCompletion>) {
        let mut state = self.store.state();
        let now = state.now;
        let mut due: Vec<_> = self.requests.extract_if(.., |(at, ..)| *at <= now).collect();
        while !due.is_empty() {
            let next = state.rng.below(due.len() as u64) as usize;
            let (_, request, changes, id) = due.swap_remove(next);
            completions.push(state.complete(request, changes, id));
        }
    }
}

impl Drop for SimQueue {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for (due, request, _, id) in self.requests.drain(..) {
            state.orphans.push((due, request.op, id));
        }
    }
}
