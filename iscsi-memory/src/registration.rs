//! Memory that RDMA devices reach: who registers it, how much of it may be registered, and what a registration is.
//!
//! A registration pins the pages under it and gives the device keys to them. It belongs to the memory: it is attached
//! to the [`Buf`](crate::Buf) or the [`Region`](crate::Region) that it covers, is made when the memory is first used
//! with a protection domain, and ends before the memory is freed. Pooled buffers are therefore registered once, and so
//! is a store.

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::Ordering;

use portable_atomic::AtomicU64;

/// Names one protection domain of one device, uniquely for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DomainId(u64);

impl DomainId {
    /// A name that no other domain has.
    #[must_use]
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Who may reach registered memory besides the local queue pairs of its domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody: the local device only, for sending, receiving, and both ends of its own RDMA operations.
    Local,
    /// Peers may read.
    RemoteRead,
    /// Peers may write.
    RemoteWrite,
}

/// Why memory cannot be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterFailure {
    /// The configured budget, in bytes, is used up.
    Budget(u64),
    /// The process may not lock more memory.
    MemoryLock,
    /// Another refusal of the device, with its error number.
    Device(i32),
}

impl fmt::Display for RegisterFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Budget(limit) => {
                write!(f, "the limit of registered memory ({limit} bytes) is reached: raise it in the configuration")
            }
            Self::MemoryLock => f.write_str(
                "the process may not lock more memory (`ulimit -l`): raise the memlock limit, or lower the limit of \
                 registered memory",
            ),
            Self::Device(error) => write!(f, "the RDMA device refused to register memory (error {error})"),
        }
    }
}

impl core::error::Error for RegisterFailure {}

/// One registration of one range of memory.
///
/// # Safety
/// After [`release`](Self::release) has returned true, the device accesses the memory no more.
pub unsafe trait Registration: Send + Sync + fmt::Debug {
    /// The domain whose queue pairs may use it.
    fn domain(&self) -> DomainId;

    /// What local work requests name the memory by.
    fn local_key(&self) -> u32;

    /// What a peer names it by.
    fn remote_key(&self) -> u32;

    /// Ends the registration, if it has not ended already, and tells whether it has. Where it cannot be ended the
    /// memory must never be freed.
    fn release(&self) -> bool;
}

/// What registers memory: a protection domain of a device.
///
/// # Safety
/// What [`register`](Self::register) returns covers the range that was asked for, in the domain that
/// [`domain`](Self::domain) names.
pub unsafe trait Registrar {
    /// Its name.
    fn domain(&self) -> DomainId;

    /// Registers `len` bytes, which are not zero, from `at` on.
    ///
    /// # Errors
    /// When a limit is reached or the device refuses.
    ///
    /// # Safety
    /// The memory stays allocated, at pages that do not change, until [`Registration::release`] has returned true.
    unsafe fn register(
        &self,
        at: *mut u8,
        len: usize,
        access: Access,
    ) -> Result<Arc<dyn Registration>, RegisterFailure>;

    /// Whether there is time to register `len` bytes now. Where there is not, they are copied. Default true: whoever
    /// works for many at a time lets others have their turn after each registration, since it takes a device long.
    fn has_time_for(&self, len: usize) -> bool {
        let _ = len;
        true
    }

    /// Registered bytes that are zero and that nobody writes, to be sent in place of memory that was never written.
    /// Default `None`: such memory is copied.
    fn zeroes(&self) -> Option<DevicePiece> {
        None
    }

    /// Ends registrations of the domain that can be made again, so that `len` bytes can be registered that cannot do
    /// without. Whether any ended. Default false.
    fn make_room(&self, len: usize) -> bool {
        let _ = len;
        false
    }

    /// A chunk of a region was registered: [`Region::forget`](crate::Region::forget) is to be called when the domain
    /// ends before the region.
    #[cfg(feature = "std")]
    fn has_registered(&self, region: &Arc<crate::Region>) {
        let _ = region;
    }
}

/// Registers memory that cannot do without: other registrations of the domain end for it where the limit is reached.
///
/// # Safety
/// As [`Registrar::register`].
pub(crate) unsafe fn register_by_all_means(
    registrar: &dyn Registrar,
    at: *mut u8,
    len: usize,
    access: Access,
) -> Result<Arc<dyn Registration>, RegisterFailure> {
    // SAFETY: as the caller says.
    match unsafe { registrar.register(at, len, access) } {
        Err(RegisterFailure::Budget(_) | RegisterFailure::MemoryLock) if registrar.make_room(len) => {
            // SAFETY: as before.
            unsafe { registrar.register(at, len, access) }
        }
        registered => registered,
    }
}

/// A part of memory as a work request names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DevicePiece {
    /// Virtual address of the first byte.
    pub address: u64,
    /// Bytes.
    pub len: usize,
    /// The registration's local key.
    pub key: u32,
}

/// What a device does with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It reads the bytes, to send them.
    Out,
    /// It writes them.
    In,
}

/// Keeps the registration of a part of a region until it is dropped: [`Region::settle`](crate::Region::settle) is to be
/// called then.
#[derive(Debug, Clone)]
pub struct PieceHold(#[allow(dead_code, reason = "it is there to be counted")] pub(crate) Arc<dyn Registration>);

/// A part of memory that a work request may name until its hold is dropped.
#[derive(Debug)]
pub struct WorkPiece {
    /// Where it is.
    pub piece: DevicePiece,
    /// To be kept until the work request has completed. Memory that is nobody else's, such as a buffer, needs none.
    pub hold: Option<PieceHold>,
}

/// How many bytes may be registered, and how many are. One is shared by all devices and connections of a process, or as
/// its owner likes.
///
/// ```
/// use iscsi_memory::{RegisterFailure, RegistrationBudget};
/// let budget = RegistrationBudget::new(8192);
/// let share = budget.take(5000)?;
/// assert_eq!(budget.used(), 8192, "whole pages are pinned");
/// assert_eq!(budget.take(1).unwrap_err(), RegisterFailure::Budget(8192));
/// drop(share);
/// assert_eq!(budget.used(), 0);
/// # Ok::<(), RegisterFailure>(())
/// ```
#[derive(Debug)]
pub struct RegistrationBudget {
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
    /// The least that was too much for the kernel: it is not asked again for as much, since each refusal pins and
    /// unpins pages first, until everything has been given back. Memory may have been short for a moment, and
    /// `ulimit -l` can be raised for a process that runs.
    refused: AtomicU64,
}

impl RegistrationBudget {
    /// Bytes that a budget allows unless it is configured: 4 GiB.
    pub const DEFAULT_LIMIT: u64 = 4 << 30;

    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0), peak: AtomicU64::new(0), refused: AtomicU64::new(u64::MAX) })
    }

    /// Bytes that may be registered.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that are registered now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Most bytes that were registered at a time.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Takes the whole pages of `len` bytes out of the budget, until the share is dropped.
    ///
    /// # Errors
    /// [`RegisterFailure::Budget`], or [`RegisterFailure::MemoryLock`] where the kernel has refused as much since
    /// nothing was registered.
    pub fn take(self: &Arc<Self>, len: usize) -> Result<BudgetShare, RegisterFailure> {
        let bytes = (len as u64).checked_next_multiple_of(4096).ok_or(RegisterFailure::Budget(self.limit))?;
        let refused = self.refused.load(Ordering::Relaxed);
        // What is refused is never counted, not even for a moment: others would be refused for it.
        let with_ours = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        let before = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| with_ours(used).filter(|used| *used < refused));
        match before {
            Ok(before) => {
                self.peak.fetch_max(before + bytes, Ordering::Relaxed);
                Ok(BudgetShare { budget: self.clone(), bytes })
            }
            Err(used) if with_ours(used).is_some() => Err(RegisterFailure::MemoryLock),
            Err(_) => Err(RegisterFailure::Budget(self.limit)),
        }
    }
}

/// Bytes taken out of a [`RegistrationBudget`].
#[derive(Debug)]
pub struct BudgetShare {
    budget: Arc<RegistrationBudget>,
    bytes: u64,
}

impl BudgetShare {
    /// The kernel did not let these bytes be locked.
    #[must_use]
    pub fn refused(self) -> RegisterFailure {
        self.budget.refused.fetch_min(self.budget.used(), Ordering::Relaxed);
        RegisterFailure::MemoryLock
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        if self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed) == self.bytes {
            self.budget.refused.store(u64::MAX, Ordering::Relaxed);
        }
    }
}
