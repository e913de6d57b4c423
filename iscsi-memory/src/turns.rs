//! Threads that take turns: where the code of several threads meets, a simulator says which of them goes on.
//!
//! Only with the feature `simulated-threads`. A thread that was [spawned](spawn) by a simulated one, or that
//! [takes part](take_part), runs only while it has the turn. It passes the turn at [points](point) and where it waits, and
//! at no other place: no lock may be held there, and none is ever contended. The same choices so give the same run.
//! Threads that take no part are the system's, and all of this does for them what the standard library does.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use iscsi_memory::turns::{self, Thread, Turns};
//!
//! /// One thread alone has every turn.
//! struct Alone;
//! impl Turns for Alone {
//!     fn point(&self, _: Thread) {}
//!     fn wait(&self, _: Thread, _: usize, _: Option<Duration>) {}
//!     fn wake(&self, _: usize, _: bool) {}
//!     fn now(&self) -> Duration {
//!         Duration::from_secs(7)
//!     }
//!     fn add(&self) -> Thread {
//!         Thread(1)
//!     }
//!     fn begin(&self, _: Thread) {}
//!     fn end(&self, _: Thread) {}
//!     fn join(&self, _: Thread, _: Thread) -> bool {
//!         true
//!     }
//! }
//! assert!(turns::time().is_none(), "no part, no simulated time");
//! turns::take_part(Arc::new(Alone), Thread(0), || {
//!     turns::point();
//!     assert_eq!(turns::time(), Some(Duration::from_secs(7)));
//! });
//! ```

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Names a thread among those that take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread(pub usize);

/// Who says whose turn it is. Each call but [`add`](Self::add), [`wake`](Self::wake) and [`now`](Self::now) returns
/// when the thread that called has the turn, and [`end`](Self::end) at once.
pub trait Turns: Send + Sync {
    /// Others may go on.
    fn point(&self, me: Thread);

    /// Others go on until this is woken by `what`, or the time comes.
    fn wait(&self, me: Thread, what: usize, until: Option<Duration>);

    /// Wakes one that waits for `what`, or all.
    fn wake(&self, what: usize, all: bool);

    /// The time, since the beginning.
    fn now(&self) -> Duration;

    /// There is one more thread, which is to begin.
    fn add(&self) -> Thread;

    /// It begins.
    fn begin(&self, me: Thread);

    /// It ends.
    fn end(&self, me: Thread);

    /// Others go on until `other` has ended. False where it never will.
    fn join(&self, me: Thread, other: Thread) -> bool;
}

type Part = (Arc<dyn Turns>, Thread);

thread_local! {
    static PART: RefCell<Option<Part>> = const { RefCell::new(None) };
}

fn part() -> Option<Part> {
    PART.with_borrow(Option::clone)
}

/// What a thread does while it takes part in turns.
pub fn take_part<T>(turns: Arc<dyn Turns>, me: Thread, deed: impl FnOnce() -> T) -> T {
    /// Back to what was before, whatever the deed does.
    struct Before(Option<Part>);
    impl Drop for Before {
        fn drop(&mut self) {
            let before = self.0.take();
            PART.set(before);
        }
    }
    let _before = Before(PART.replace(Some((turns, me))));
    deed()
}

/// A place where threads meet: others may go on here. Without a lock.
pub fn point() {
    if let Some((turns, me)) = part() {
        turns.point(me);
    }
}

/// Waits for `what` to be [woken](wake), or the time to come. Does nothing for threads that take no part.
pub fn wait(what: usize, until: Option<Duration>) {
    if let Some((turns, me)) = part() {
        turns.wait(me, what, until);
    }
}

/// Wakes one that [waits](wait) for `what`, or all.
pub fn wake(what: usize, all: bool) {
    if let Some((turns, _)) = part() {
        turns.wake(what, all);
    }
}

/// The time since the beginning, for those that take part.
#[must_use]
pub fn time() -> Option<Duration> {
    part().map(|(turns, _)| turns.now())
}

/// What [`Instant::now`] is to threads that take part; to others it is that.
#[must_use]
pub fn now() -> Instant {
    static BEGINNING: OnceLock<Instant> = OnceLock::new();
    match time() {
        Some(time) => *BEGINNING.get_or_init(Instant::now) + time,
        None => Instant::now(),
    }
}

/// A condition variable: [`std::sync::Condvar`], whose mutex is named beside its guard.
#[derive(Debug, Default)]
pub struct Condvar(std::sync::Condvar);

impl Condvar {
    fn name(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// [`std::sync::Condvar::wait`]; what a panic has left under the lock is taken as it is.
    pub fn wait<'a, T>(&self, mutex: &'a Mutex<T>, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let Some((turns, me)) = part() else {
            return self.0.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        drop(guard);
        turns.wait(me, self.name(), None);
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`std::sync::Condvar::wait_timeout`]; what a panic has left under the lock is taken as it is.
    pub fn wait_timeout<'a, T>(
        &self,
        mutex: &'a Mutex<T>,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> MutexGuard<'a, T> {
        let Some((turns, me)) = part() else {
            return self.0.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(guard);
        turns.wait(me, self.name(), Some(turns.now() + timeout));
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`std::sync::Condvar::notify_one`].
    pub fn notify_one(&self) {
        match part() {
            Some((turns, _)) => turns.wake(self.name(), false),
            None => self.0.notify_one(),
        }
    }

    /// [`std::sync::Condvar::notify_all`].
    pub fn notify_all(&self) {
        match part() {
            Some((turns, _)) => turns.wake(self.name(), true),
            None => self.0.notify_all(),
        }
    }
}

/// A thread that was spawned.
#[derive(Debug)]
pub struct JoinHandle {
    thread: std::thread::JoinHandle<()>,
    simulated: Option<Thread>,
}

impl JoinHandle {
    /// Waits for its end, and whether it has come well. Of a simulated one that never will end it is false at once.
    #[must_use]
    pub fn join(self) -> bool {
        let ends = match (self.simulated, part()) {
            (Some(other), Some((turns, me))) => turns.join(me, other),
            _ => true,
        };
        ends && self.thread.join().is_ok()
    }
}

/// Spawns a thread of this name, which takes part where its parent does.
///
/// # Errors
/// What the system says.
pub fn spawn(name: &str, deed: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle> {
    /// It ends, also by a panic.
    struct End(Arc<dyn Turns>, Thread);
    impl Drop for End {
        fn drop(&mut self) {
            self.0.end(self.1);
        }
    }
    let builder = std::thread::Builder::new().name(name.into());
    let Some((turns, _)) = part() else {
        return Ok(JoinHandle { thread: builder.spawn(deed)?, simulated: None });
    };
    let me = turns.add();
    let run = move || {
        let _end = End(turns.clone(), me);
        take_part(turns.clone(), me, || {
            turns.begin(me);
            deed();
        });
    };
    Ok(JoinHandle { thread: builder.spawn(run)?, simulated: Some(me) })
}
