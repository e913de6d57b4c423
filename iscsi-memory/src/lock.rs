//! The lock around what threads share: taken when something changes hands, never per command.
//!
//! With `std` it is the system's mutex. Without, it spins: no holder waits for anything inside.

#[cfg(feature = "std")]
type Mutex<T> = std::sync::Mutex<T>;
#[cfg(not(feature = "std"))]
type Mutex<T> = spin::Mutex<T>;

/// What [`Lock::lock`] gives: the value, until it is dropped.
#[cfg(feature = "std")]
pub type LockGuard<'a, T> = std::sync::MutexGuard<'a, T>;
/// What [`Lock::lock`] gives: the value, until it is dropped.
#[cfg(not(feature = "std"))]
pub type LockGuard<'a, T> = spin::MutexGuard<'a, T>;

/// A value that one thread at a time may change.
///
/// ```
/// use iscsi_memory::Lock;
/// let names = Lock::new(vec!["a"]);
/// names.lock().push("b");
/// assert_eq!(names.with(|names| names.len()), 2);
/// ```
#[derive(Debug, Default)]
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// A lock around `value`, which nobody holds.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits for the lock. A holder that panicked leaves the value as it was at that point: whoever uses this lock
    /// keeps the value whole at each step.
    #[cfg(feature = "std")]
    pub fn lock(&self) -> LockGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits for the lock, spinning.
    #[cfg(not(feature = "std"))]
    pub fn lock(&self) -> LockGuard<'_, T> {
        self.0.lock()
    }

    /// Runs `f` on the value under the lock.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.lock())
    }
}
