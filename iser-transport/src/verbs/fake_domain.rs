//! Registrations of a device in this process, and what it does with them: real reads and writes through addresses and
//! keys, so that AddressSanitizer sees a use of memory that was given back too early.
#![allow(unsafe_code, reason = "a device reads and writes memory by its address")]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use iscsi_memory::{
    Access, BudgetShare, Buf, DevicePiece, DomainId, Region, RegisterFailure, Registrar, Registration,
    RegistrationBudget,
};
use portable_atomic::AtomicU64;

use crate::random::Random;

/// Bytes from which on a registration may be refused: longer than any message.
const MUCH: usize = 128 << 10;

/// Bytes of zeroes that a domain keeps.
const ZEROES: usize = 8192;

#[derive(Debug)]
struct Range {
    domain: DomainId,
    key: u32,
    at: u64,
    len: usize,
    access: Access,
}

/// The registrations of all domains: a real device has one table, too.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<Vec<Range>>);

impl Table {
    fn ranges(&self) -> MutexGuard<'_, Vec<Range>> {
        lock(&self.0)
    }

    /// Whether bytes may be reached in that way.
    pub(super) fn allows(&self, domain: DomainId, key: u32, at: u64, len: usize, remote: Option<Access>) -> bool {
        self.ranges().iter().any(|range| {
            let inside =
                at >= range.at && (at - range.at).checked_add(len as u64).is_some_and(|end| end <= range.len as u64);
            range.domain == domain && range.key == key && inside && remote.is_none_or(|access| range.access == access)
        })
    }
}

#[derive(Debug)]
pub(super) struct FakeDomain {
    pub(super) domain: DomainId,
    table: Arc<Table>,
    pub(super) budget: Arc<RegistrationBudget>,
    zeroes: Mutex<Option<Buf>>,
    regions: Mutex<Vec<Weak<Region>>>,
    /// Chunks of regions that were registered.
    chunks: AtomicU64,
    /// The key that was given last.
    last: AtomicU32,
    /// How many in 1000 registrations of much memory are refused.
    refusals: u64,
    may_refuse: AtomicBool,
    random: Mutex<Random>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct FakeMr {
    domain: DomainId,
    key: u32,
    table: Arc<Table>,
    share: Mutex<Option<BudgetShare>>,
}

impl FakeDomain {
    /// A domain of its own, in which so many bytes may be registered.
    pub(super) fn new(table: &Arc<Table>, budget: u64) -> Self {
        let budget = RegistrationBudget::new(budget);
        Self {
            domain: DomainId::unique(),
            table: table.clone(),
            budget,
            zeroes: Mutex::default(),
            regions: Mutex::default(),
            chunks: AtomicU64::new(0),
            last: AtomicU32::new(0),
            refusals: 0,
            may_refuse: AtomicBool::new(true),
            random: Mutex::new(Random::new(0)),
        }
    }
}

#[cfg(any(test, feature = "simulated-device"))]
impl FakeDomain {
    /// Chunks of regions that were registered so far.
    pub(super) fn chunks(&self) -> u64 {
        self.chunks.load(Ordering::Relaxed)
    }

    /// So many in 1000 registrations of much memory are refused from here on, by a seed.
    pub(super) fn refuse(&mut self, refusals: u32, seed: u64) {
        self.refusals = refusals.into();
        self.random = Mutex::new(Random::new(seed));
    }

    /// Whether it refuses anything, for the time being.
    pub(super) fn let_refuse(&self, may: bool) {
        self.may_refuse.store(may, Ordering::Relaxed);
    }

    /// The key of what was registered last.
    pub(super) fn last_key(&self) -> u32 {
        self.last.load(Ordering::Relaxed)
    }

    /// Whether bytes may be reached in that way.
    pub(super) fn allows(&self, key: u32, at: u64, len: usize, remote: Option<Access>) -> bool {
        self.table.allows(self.domain, key, at, len, remote)
    }
}

impl Drop for FakeDomain {
    fn drop(&mut self) {
        *lock(&self.zeroes) = None;
        let regions = std::mem::take(&mut *lock(&self.regions));
        regions.iter().filter_map(Weak::upgrade).for_each(|region| region.forget(self.domain));
    }
}

// SAFETY: the device looks up every access in the table, which names the range no more.
unsafe impl Registration for FakeMr {
    fn domain(&self) -> DomainId {
        self.domain
    }
    fn local_key(&self) -> u32 {
        self.key
    }
    fn remote_key(&self) -> u32 {
        self.key
    }
    fn release(&self) -> bool {
        self.table.ranges().retain(|range| range.key != self.key);
        *lock(&self.share) = None;
        true
    }
}

// SAFETY: the table has exactly the range.
unsafe impl Registrar for FakeDomain {
    fn domain(&self) -> DomainId {
        self.domain
    }
    unsafe fn register(
        &self,
        at: *mut u8,
        len: usize,
        access: Access,
    ) -> Result<Arc<dyn Registration>, RegisterFailure> {
        static KEYS: AtomicU32 = AtomicU32::new(0x1000);
        if len >= MUCH && access == Access::Local && self.may_refuse.load(Ordering::Relaxed) && self.refusals > 0 {
            let refused = lock(&self.random).below(1000) < self.refusals;
            if refused {
                return Err(RegisterFailure::MemoryLock);
            }
        }
        let share = self.budget.take(len)?;
        let key = KEYS.fetch_add(0x10, Ordering::Relaxed);
        self.last.store(key, Ordering::Relaxed);
        let at = at.expose_provenance() as u64;
        self.table.ranges().push(Range { domain: self.domain, key, at, len, access });
        Ok(Arc::new(FakeMr { domain: self.domain, key, table: self.table.clone(), share: Mutex::new(Some(share)) }))
    }
    fn zeroes(&self) -> Option<DevicePiece> {
        let mut zeroes = lock(&self.zeroes);
        let buf = zeroes.get_or_insert_with(|| Buf::zeroed(ZEROES));
        buf.device_piece(self, 0, ZEROES).ok()
    }
    fn make_room(&self, len: usize) -> bool {
        let regions: Vec<_> = lock(&self.regions).iter().filter_map(Weak::upgrade).collect();
        let mut ended = 0;
        for region in regions {
            if ended >= len as u64 {
                break;
            }
            ended += region.shed(self.domain, len as u64 - ended);
        }
        ended > 0
    }
    fn has_registered(&self, region: &Arc<Region>) {
        self.chunks.fetch_add(1, Ordering::Relaxed);
        let known = Arc::downgrade(region);
        let mut regions = lock(&self.regions);
        if !regions.iter().any(|other| other.ptr_eq(&known)) {
            regions.push(known);
        }
    }
}

/// # Safety
/// The bytes are registered.
pub(super) unsafe fn read(at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: as the caller says; the destination is our own.
    unsafe {
        std::ptr::with_exposed_provenance::<u8>(at as usize).copy_to_nonoverlapping(bytes.as_mut_ptr(), len);
    }
    bytes
}

/// # Safety
/// The bytes are registered.
pub(super) unsafe fn write(at: u64, bytes: &[u8]) {
    // SAFETY: as the caller says; the source is private.
    unsafe {
        std::ptr::with_exposed_provenance_mut::<u8>(at as usize).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
    }
}
