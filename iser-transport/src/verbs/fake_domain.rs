//! Registrations of a device in this process, and what it does with them: real reads and writes through addresses and
//! keys, so that AddressSanitizer sees a use of memory that was given back too early.
#![allow(unsafe_code, reason = "a device reads and writes memory by its address")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use iscsi_memory::{
    Access, BudgetShare, Buf, DevicePiece, DomainId, RegisterFailure, Registrar, Registration, RegistrationBudget,
};

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
    /// Whether bytes may be reached in that way.
    pub(super) fn allows(&self, domain: DomainId, key: u32, at: u64, len: usize, remote: Option<Access>) -> bool {
        self.0.lock().unwrap().iter().any(|range| {
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
        Self { domain: DomainId::unique(), table: table.clone(), budget, zeroes: Mutex::default() }
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
        self.table.0.lock().unwrap().retain(|range| range.key != self.key);
        *self.share.lock().unwrap() = None;
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
        let share = self.budget.take(len)?;
        let key = KEYS.fetch_add(0x100, Ordering::Relaxed);
        let at = at.expose_provenance() as u64;
        self.table.0.lock().unwrap().push(Range { domain: self.domain, key, at, len, access });
        Ok(Arc::new(FakeMr { domain: self.domain, key, table: self.table.clone(), share: Mutex::new(Some(share)) }))
    }
    fn zeroes(&self) -> Option<DevicePiece> {
        let mut zeroes = self.zeroes.lock().unwrap();
        let buf = zeroes.get_or_insert_with(|| Buf::zeroed(ZEROES));
        buf.device_piece(self, 0, ZEROES).ok()
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
