//! What a file store knows of the data that it has not made durable: a flush that fails is not forgotten.
//!
//! Linux tells an error of writing back once, to the next `fsync` (2), and the pages are clean after it: a later
//! `fsync` is good though the data never reached the medium, and what is read may be the new data, as long as the page
//! stays in memory, or the old ones after that ("Can Applications Recover from fsync Failures?", Rebello and others,
//! USENIX ATC 2020: ext4 and XFS leave the new data in the cache, Btrfs the old ones). So nothing that was written
//! since the last good flush can be relied on after one that failed, and nothing brings it back but to write it again:
//! the blocks are *lost*. Reading them is an error until somebody has written or unmapped them anew. The failure is
//! counted, so that whoever serves the store tells it to everyone who may have written there.
//!
//! This knowledge ends with the process. Whoever starts it anew reads what the medium has, as after a power failure.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::threads::Condvar;
use crate::BlockRanges;

/// Why a flush is not good.
#[derive(Debug)]
pub(super) enum NotDurable {
    /// The system says so.
    Error(io::Error),
    /// One at the same time had the error, which the system tells once.
    Lost,
}

#[derive(Debug, Default)]
struct State {
    /// Flushes of the file begun and ended. One at a time, so that a failure is known before the next one can be good.
    begun: u64,
    ended: u64,
    running: bool,
    /// Calls that wait for the flush under way.
    waiting: usize,
    /// Flushes that failed.
    failed: u64,
    /// Written since the last flush began.
    written: BlockRanges,
    /// Covered by the flush under way.
    flushing: BlockRanges,
    /// What flushes that failed may have lost.
    lost: BlockRanges,
}

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Durability {
    state: Mutex<State>,
    ended: Condvar,
}

impl Durability {
    /// Nothing under the lock panics half-way, so a poisoned lock holds sound data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flushes that failed so far.
    pub(super) fn failed(&self) -> u64 {
        self.lock().failed
    }

    /// Calls that wait for the flush under way.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// The first of these blocks that is lost.
    pub(super) fn first_lost(&self, blocks: &Range<u64>) -> Option<u64> {
        self.lock().lost.first_in(blocks)
    }

    /// Has blocks changed by `change`.
    pub(super) fn change<T>(&self, blocks: Range<u64>, change: impl FnOnce() -> Result<T, T>) -> T {
        let before = self.failed();
        let result = change();
        let state = &mut *self.lock();
        let (done, result) = match result {
            Ok(result) => (true, result),
            Err(result) => (false, result),
        };
        if state.failed != before {
            // It may have gone with the rest.
            state.lost.add(blocks);
        } else {
            // What was written in part is not what was lost, nor is it whole.
            if done {
                state.lost.remove(&blocks);
            }
            state.written.add(blocks);
        }
        result
    }

    /// Makes durable by `sync` what was changed before. Of those that wait at the same time one does it for all.
    pub(super) fn flush(&self, sync: impl FnOnce() -> io::Result<()>) -> Result<(), NotDurable> {
        let mut state = self.lock();
        let (before, wanted) = (state.failed, state.begun + 1);
        while state.running && state.ended < wanted {
            state.waiting += 1;
            state = self.ended.wait(&self.state, state);
            state.waiting -= 1;
        }
        let mut result = Ok(());
        if state.ended < wanted {
            state.begun += 1;
            state.running = true;
            state.flushing = std::mem::take(&mut state.written);
            drop(state);
            result = sync();
            state = self.lock();
            state.running = false;
            state.ended = state.begun;
            let flushing = std::mem::take(&mut state.flushing);
            if result.is_err() {
                state.failed += 1;
                let written = std::mem::take(&mut state.written);
                state.lost.extend(flushing);
                state.lost.extend(written);
            }
            self.ended.notify_all();
        }
        match result {
            Err(error) => Err(NotDurable::Error(error)),
            Ok(()) if state.failed != before => Err(NotDurable::Lost),
            Ok(()) => Ok(()),
        }
    }
}
