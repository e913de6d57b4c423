//! Condition variables, threads and the time, as a file store uses them: the system's. With the feature
//! `simulated-threads` a simulator may have the threads take turns.
//!
//! A mutex is named beside its guard, which is how the simulator takes it again.

#[cfg(feature = "simulated-threads")]
pub(super) use iscsi_memory::turns::{Condvar, JoinHandle, now, spawn};
#[cfg(not(feature = "simulated-threads"))]
pub(super) use of_the_system::{Condvar, JoinHandle, now, spawn};

#[cfg(not(feature = "simulated-threads"))]
mod of_the_system {
    use std::io;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::thread::Builder;
    use std::time::{Duration, Instant};

    /// [`std::sync::Condvar`]; what a panic has left under the lock is taken as it is.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar(std::sync::Condvar);

    impl Condvar {
        pub(crate) fn wait<'a, T>(&self, _: &'a Mutex<T>, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn wait_timeout<'a, T>(
            &self,
            _: &'a Mutex<T>,
            guard: MutexGuard<'a, T>,
            timeout: Duration,
        ) -> MutexGuard<'a, T> {
            self.0.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    #[derive(Debug)]
    pub(crate) struct JoinHandle(std::thread::JoinHandle<()>);

    impl JoinHandle {
        /// Waits for its end, and whether it has come well.
        pub(crate) fn join(self) -> bool {
            self.0.join().is_ok()
        }
    }

    pub(crate) fn spawn(name: &str, deed: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle> {
        Builder::new().name(name.into()).spawn(deed).map(JoinHandle)
    }

    pub(crate) fn now() -> Instant {
        Instant::now()
    }
}
