//! Reads and writes of a file that are under way: what keeps a logical block whole for those who read it.
//!
//! POSIX has reads and writes of a regular file be one step each, but not all systems keep to it: ext4 reads a page of
//! its cache while another thread writes it, and so do block devices. Two writes are not mixed within a block: file
//! systems have one after the other, block devices page by page. So here reads and writes of the same blocks wait for
//! each other, in the order in which they came.
//!
//! No call is waited for longer than [`PATIENCE`]: a file that holds back a write must not hold back those who read.
//! While a call is held back, it copies nothing.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::threads::{Condvar, now};

/// How long one call is waited for: the system copies a block in a thousandth of that, or holds the call back.
const PATIENCE: Duration = Duration::from_millis(200);

/// What a call does to its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

#[derive(Debug)]
struct Call {
    number: u64,
    access: Access,
    blocks: Range<u64>,
}

impl Call {
    fn conflicts_with(&self, access: Access, blocks: &Range<u64>) -> bool {
        self.access != access && self.blocks.start < blocks.end && blocks.start < self.blocks.end
    }
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    /// Those that wait and those that run, in the order in which they came: as many as there are threads.
    calls: Vec<Call>,
    /// Calls that wait for others.
    waiting: usize,
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct UnderWay {
    state: Mutex<State>,
    ended: Condvar,
    patience: Duration,
}

impl Default for UnderWay {
    fn default() -> Self {
        Self { state: Mutex::default(), ended: Condvar::default(), patience: PATIENCE }
    }
}

impl UnderWay {
    /// One with another patience.
    #[cfg(test)]
    pub(super) fn with_patience(patience: Duration) -> Self {
        Self { patience, ..Self::default() }
    }

    /// Calls that wait for others now.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Nothing under the lock panics half-way, so a poisoned lock holds sound data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `call`, which reads or writes these blocks, when no older call of the other kind has any of them.
    pub(super) fn during<T>(&self, access: Access, blocks: Range<u64>, call: impl FnOnce() -> T) -> T {
        let _place = self.enter(access, blocks);
        call()
    }

    fn enter(&self, access: Access, blocks: Range<u64>) -> Place<'_> {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        let older = |calls: &[Call]| {
            let mut before = calls.iter().take_while(|call| call.number < number);
            before.any(|call| call.conflicts_with(access, &blocks))
        };
        if older(&state.calls) {
            state.calls.push(Call { number, access, blocks: blocks.clone() });
            state.waiting += 1;
            let until = now() + self.patience;
            while older(&state.calls) {
                let left = until.saturating_duration_since(now());
                if left.is_zero() {
                    break;
                }
                state = self.ended.wait_timeout(&self.state, state, left);
            }
            state.waiting -= 1;
        } else {
            state.calls.push(Call { number, access, blocks });
        }
        Place { all: self, number }
    }
}

/// A call's place among those under way, given back when dropped.
struct Place<'a> {
    all: &'a UnderWay,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        state.calls.retain(|call| call.number != self.number);
        if state.waiting != 0 {
            self.all.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    /// Has a read, a write and a read of one block come behind a call of `first`, and gives the order in which they
    /// ran.
    fn order_behind(first: Access) -> Vec<u8> {
        let all = Arc::new(UnderWay::with_patience(Duration::from_secs(3600)));
        let order = Arc::new(Mutex::new(Vec::new()));
        let place = all.enter(first, 8..16);
        let mut threads = Vec::new();
        for (name, access, blocks) in
            [(b'r', Access::Read, 8..17), (b'w', Access::Write, 0..9), (b'R', Access::Read, 0..100)]
        {
            let waiting = all.waiting();
            let thread = {
                let (all, order) = (all.clone(), order.clone());
                thread::spawn(move || all.during(access, blocks, || order.lock().unwrap().push(name)))
            };
            while all.waiting() == waiting && !thread.is_finished() {
                thread::yield_now();
            }
            threads.push(thread);
        }
        drop(place);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        Arc::try_unwrap(order).unwrap().into_inner().unwrap()
    }

    #[test]
    fn reads_and_writes_of_a_block_run_in_the_order_in_which_they_came() {
        assert_eq!(order_behind(Access::Write), b"rwR");
        assert_eq!(order_behind(Access::Read), b"rwR");
    }

    #[test]
    fn calls_of_one_kind_and_of_other_blocks_wait_for_nobody() {
        let all = UnderWay::with_patience(Duration::from_secs(3600));
        for access in [Access::Read, Access::Write] {
            let _place = all.enter(access, 8..16);
            all.during(access, 8..16, || ());
            all.during(Access::Read, 16..24, || ());
            all.during(Access::Write, 0..8, || ());
        }
    }

    #[test]
    fn a_call_that_is_held_back_is_not_waited_for() {
        let all = UnderWay::with_patience(Duration::ZERO);
        let _place = all.enter(Access::Write, 8..16);
        all.during(Access::Read, 8..16, || ());
        assert_eq!(all.waiting(), 0);
    }
}
