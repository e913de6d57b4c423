//! Writes that are kept until they are durable, to be written anew when the disk has lost them.
//!
//! A copy of what was written is kept from its answer on until a flush that was sent after that is good. When the disk
//! tells that it has lost what it acknowledged, what is kept of that is written anew, in order, and the operations that
//! met the loss go on as if it had not been. That is done alone: operations that are under way end first, others wait.
//! The commands that do it pass the guard (`engine/guard.rs`), which holds up everybody else's, and each that is
//! acknowledged takes its blocks from what is lost. Blocks that are lost and that nobody has kept stay lost: operations
//! fail as they do without a replay.
//!
//! What is kept is bounded: a write for which there is no room has the disk flushed first.

use iscsi_memory::Payload;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backstore::BlockRanges;
use scsi_proto::{BlockIo, CdbBuf, opcode};
use tokio::sync::{Notify, RwLock};

use super::Disk;
use crate::application::{Control, ControlAnswer};
use crate::command::{Command, Completion, Failure, Outcome};
use crate::error::Error;

/// What is kept of one write beside its data, in bytes.
const OVERHEAD: usize = 128;
/// How often what is kept is written anew for one operation: the disk may lose it again meanwhile.
const ATTEMPTS: usize = 8;

/// A command that changed blocks, and its data.
#[derive(Debug, Clone)]
struct Kept {
    cdb: CdbBuf,
    blocks: Range<u64>,
    /// Its CDB does not say which blocks.
    says_not: bool,
    data: Arc<[u8]>,
}

#[derive(Debug, Default)]
struct State {
    /// In the order of their answers.
    kept: VecDeque<Kept>,
    /// How many were kept and forgotten before the first of these.
    forgotten: u64,
    /// Bytes that are kept, and those for which commands under way have reserved room.
    bytes: usize,
}

/// What the clones of a handle have written and not flushed.
#[derive(Debug)]
pub(super) struct Replay {
    limit: usize,
    state: Mutex<State>,
    /// There is more room, or more that a flush could make durable.
    changed: Notify,
    /// Held together by operations under way, alone by whoever writes anew.
    running: RwLock<()>,
    /// One at a time makes room.
    flushing: tokio::sync::Mutex<()>,
}

/// Room for what a command under way has written.
struct Reserved<'a> {
    replay: &'a Replay,
    bytes: usize,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.replay.lock().bytes -= self.bytes;
        self.replay.changed.notify_waiters();
    }
}

impl Disk {
    /// A handle on the same disk that keeps what it has written until that is durable. When the disk loses what it
    /// acknowledged, with its power or in a flush that failed, that is written anew, and no operation hears of
    /// [`Error::LostWrites`] unless something is lost that is not kept: what other handles have written, or what was
    /// given up. Other handles than the clones of this one are not to write to the disk, for what they write may be
    /// written over.
    ///
    /// At most `bytes` are kept (and at least what one command moves, 4 MiB at most), beside 128 bytes for each write.
    /// A write for which there is no room waits until the disk has made durable what is kept: the smaller `bytes`, the
    /// more flushes. Each write is copied once.
    ///
    /// ```no_run
    /// # async fn example(session: initiator_core::Session) -> Result<(), initiator_core::Error> {
    /// let disk = session.disk(0).await?.with_replay(64 << 20);
    /// disk.write(0, &[7; 4096]).await?;
    /// // The target may start anew here, without what it had in its memory.
    /// disk.flush().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_replay(&self, bytes: usize) -> Self {
        let least = self.most_blocks as usize * self.block_size as usize + OVERHEAD;
        let replay = Replay {
            limit: bytes.max(least),
            state: Mutex::default(),
            changed: Notify::new(),
            running: RwLock::new(()),
            flushing: tokio::sync::Mutex::new(()),
        };
        Self { replay: Some(Arc::new(replay)), ..self.clone() }
    }
}

impl Replay {
    /// Nothing under the lock panics half-way, so a poisoned lock holds sound data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a command done.
    pub(super) async fn perform(&self, disk: &Disk, mut command: Command) -> Result<Completion, Error> {
        let (cdb, blocks) = (command.cdb, command.blocks.clone());
        let reserved = match &command.data_out {
            Some(data) => Some(self.reserve(disk, data.len() + OVERHEAD).await?),
            None => None,
        };
        let mut attempts = ATTEMPTS;
        loop {
            let running = self.running.read().await;
            let before = self.count();
            let completion = disk.session.execute(command).await;
            if completion.result != Err(Failure::LostWrites) {
                if completion.result.as_ref().is_ok_and(Outcome::is_good) {
                    match (&reserved, &completion.data_out) {
                        (Some(_), Some(Payload::Buf(data))) => self.keep(cdb, blocks, data),
                        _ if is_flush(&cdb) => self.forget(before),
                        _ => {}
                    }
                }
                return Ok(completion);
            }
            drop(running);
            attempts -= 1;
            if attempts == 0 || !self.write_anew(disk).await? {
                return Ok(completion);
            }
            let Completion { data_out, data_in, .. } = completion;
            command = Command { data_out, data_in, blocks: blocks.clone(), ..disk.guarded(cdb) };
        }
    }

    /// How many writes were kept so far.
    fn count(&self) -> u64 {
        let state = self.lock();
        state.forgotten + state.kept.len() as u64
    }

    /// A command has changed blocks.
    fn keep(&self, cdb: CdbBuf, blocks: Option<Range<u64>>, data: &[u8]) {
        let says_not = blocks.is_some();
        let io = BlockIo::parse(cdb.as_cdb());
        let Some(blocks) = blocks.or_else(|| io.map(|io| io.lba..io.lba.saturating_add(io.blocks.into()))) else {
            return;
        };
        // What is compared was there; what stands behind it is written.
        let (cdb, data) = match (cdb.as_cdb().opcode(), io) {
            (opcode::COMPARE_AND_WRITE, Some(io)) => {
                (BlockIo::new(io.lba, io.blocks).write(), data.get(data.len() / 2..).unwrap_or_default())
            }
            _ => (cdb, data),
        };
        let state = &mut *self.lock();
        state.bytes += data.len() + OVERHEAD;
        state.kept.push_back(Kept { cdb, blocks, says_not, data: data.into() });
    }

    /// What was kept before so many others is durable.
    fn forget(&self, before: u64) {
        let state = &mut *self.lock();
        while state.forgotten < before
            && let Some(kept) = state.kept.pop_front()
        {
            state.bytes -= kept.data.len() + OVERHEAD;
            state.forgotten += 1;
        }
        self.changed.notify_waiters();
    }

    /// Finds room for so many bytes, by a flush if there is none.
    async fn reserve(&self, disk: &Disk, bytes: usize) -> Result<Reserved<'_>, Error> {
        loop {
            if let Some(reserved) = self.try_reserve(bytes) {
                return Ok(reserved);
            }
            let _alone = self.flushing.lock().await;
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(reserved) = self.try_reserve(bytes) {
                return Ok(reserved);
            }
            if self.lock().kept.is_empty() {
                // All of it is reserved by what is under way.
                changed.await;
                continue;
            }
            let cdb = BlockIo::new(0, 0).synchronize_cache();
            let completion = Box::pin(self.perform(disk, disk.guarded(cdb))).await?;
            let flushed = disk.session.good(&cdb, disk.lun, &completion);
            flushed.map_err(|error| disk.explain(error))?;
        }
    }

    fn try_reserve(&self, bytes: usize) -> Option<Reserved<'_>> {
        let mut state = self.lock();
        if state.bytes + bytes > self.limit && state.bytes > 0 {
            return None;
        }
        state.bytes += bytes;
        drop(state);
        Some(Reserved { replay: self, bytes })
    }

    /// Writes anew what is kept of what the disk has lost. False where that does not bring all of it back.
    async fn write_anew(&self, disk: &Disk) -> Result<bool, Error> {
        let _alone = self.running.write().await;
        for _ in 0..ATTEMPTS {
            let lost = lost(disk).await?;
            if lost.is_empty() {
                return Ok(true);
            }
            let mut touched = BlockRanges::default();
            lost.into_iter().for_each(|range| touched.add(range));
            let mut works = Vec::new();
            for kept in &self.lock().kept {
                // What was written later over what is written anew is written anew as well.
                if touched.first_in(&kept.blocks).is_some() {
                    touched.add(kept.blocks.clone());
                    works.push(kept.clone());
                }
            }
            if works.is_empty() {
                return Ok(false);
            }
            for Kept { cdb, blocks, says_not, data } in works {
                let mut buf = disk.session.shared().take_buf(data.len());
                buf.copy_from_slice(&data);
                let completion = disk
                    .session
                    .execute(Command {
                        data_out: Some(Payload::Buf(buf)),
                        blocks: Some(blocks).filter(|_| says_not),
                        replay: true,
                        ..disk.guarded(cdb)
                    })
                    .await;
                let (done, short) = (completion.result, completion.short_out().is_some());
                disk.session.shared().give_back(completion);
                match done {
                    // It was lost again.
                    Err(Failure::LostWrites) => break,
                    Ok(outcome) if outcome.is_good() && !short => {}
                    _ => return Ok(false),
                }
            }
        }
        Ok(false)
    }
}

/// The blocks that the disk has lost.
async fn lost(disk: &Disk) -> Result<Vec<Range<u64>>, Error> {
    let guard = disk.guard.number;
    match disk.session.shared().ask(|id| Control::AskLost { id, guard }).await? {
        ControlAnswer::Lost(lost) => Ok(lost),
        other => Err(super::declined("the list of lost writes", &other)),
    }
}

fn is_flush(cdb: &CdbBuf) -> bool {
    matches!(cdb.as_cdb().opcode(), opcode::SYNCHRONIZE_CACHE_10 | opcode::SYNCHRONIZE_CACHE_16)
}
