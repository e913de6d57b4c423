//! The lock around what workers share: taken at login, logout, task management and configuration change, never per
//! command.
//!
//! With `std` it is the system's mutex. Without, it spins: no holder waits for anything inside.

#[cfg(feature = "std")]
type Mutex<T> = std::sync::Mutex<T>;
#[cfg(feature = "std")]
pub(crate) type Guard<'a, T> = std::sync::MutexGuard<'a, T>;
#[cfg(not(feature = "std"))]
type Mutex<T> = spin::Mutex<T>;
#[cfg(not(feature = "std"))]
pub(crate) type Guard<'a, T> = spin::MutexGuard<'a, T>;

/// A value that one thread at a time may change.
#[derive(Debug, Default)]
pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits for the lock. A holder that panicked leaves the value as it was: every holder of this crate keeps it whole
    /// at each step.
    #[cfg(feature = "std")]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits for the lock.
    #[cfg(not(feature = "std"))]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        self.0.lock()
    }

    /// Runs `f` on the value under the lock.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.lock())
    }
}
