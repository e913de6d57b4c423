//! Registrations against a device that touches its memory whenever one ends: a use after free would be seen by AddressSanitizer.

#![cfg(target_os = "linux")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use iscsi_memory::{
    Access, Advertised, BudgetShare, Buf, BufPool, DomainId, Lease, Memory, Region, RegisterFailure, Registrar,
    Registration, RegistrationBudget,
};

const MIB: u64 = 1 << 20;
const CHUNK: u64 = 16 * MIB;

/// Addresses that a device never let go of.
static STUCK: Mutex<Vec<usize>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Device {
    domain: DomainId,
    budget: Arc<RegistrationBudget>,
    made: AtomicUsize,
    live: Arc<AtomicUsize>,
    lets_go: Arc<AtomicBool>,
    last: Mutex<Option<(usize, Access)>>,
}

impl Device {
    fn new(limit: u64) -> Self {
        Self {
            domain: DomainId::unique(),
            budget: RegistrationBudget::new(limit),
            made: AtomicUsize::new(0),
            live: Arc::default(),
            lets_go: Arc::new(AtomicBool::new(true)),
            last: Mutex::default(),
        }
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Held {
    domain: DomainId,
    key: u32,
    at: usize,
    len: usize,
    live: Arc<AtomicUsize>,
    lets_go: Arc<AtomicBool>,
    share: Mutex<Option<BudgetShare>>,
}

// SAFETY: it touches the memory in `release` alone, before it returns.
unsafe impl Registration for Held {
    fn domain(&self) -> DomainId {
        self.domain
    }
    fn local_key(&self) -> u32 {
        self.key
    }
    fn remote_key(&self) -> u32 {
        self.key | 1 << 31
    }
    fn release(&self) -> bool {
        let mut share = self.share.lock().unwrap();
        if share.is_none() {
            return true;
        }
        // SAFETY: the registrar's caller keeps the memory until here.
        unsafe {
            let at: *mut u8 = std::ptr::with_exposed_provenance_mut(self.at);
            at.write_volatile(at.read_volatile());
            let last = at.add(self.len - 1);
            last.write_volatile(last.read_volatile());
        }
        if !self.lets_go.load(Ordering::Relaxed) {
            STUCK.lock().unwrap().push(self.at);
            return false;
        }
        self.live.fetch_sub(1, Ordering::Relaxed);
        *share = None;
        true
    }
}

// SAFETY: a registration names the range it was asked for.
unsafe impl Registrar for Device {
    fn domain(&self) -> DomainId {
        self.domain
    }
    unsafe fn register(
        &self,
        at: *mut u8,
        len: usize,
        access: Access,
    ) -> Result<Arc<dyn Registration>, RegisterFailure> {
        let share = self.budget.take(len)?;
        self.live.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap() = Some((len, access));
        Ok(Arc::new(Held {
            domain: self.domain,
            key: self.made.fetch_add(1, Ordering::Relaxed) as u32,
            at: at.expose_provenance(),
            len,
            live: self.live.clone(),
            lets_go: self.lets_go.clone(),
            share: Mutex::new(Some(share)),
        }))
    }
}

/// How many pages of `len` bytes at `address` are in memory now.
fn resident(address: u64, len: u64) -> usize {
    use std::os::unix::fs::FileExt;
    let mut entries = vec![0; (len / 4096 * 8) as usize];
    std::fs::File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entries, address / 4096 * 8).unwrap();
    entries.chunks(8).filter(|entry| entry[7] & 0x80 != 0).count()
}

#[test]
fn a_pooled_buffer_is_registered_once_and_freed_after_its_registration() {
    let (device, mut pool) = (Device::new(MIB), BufPool::new(1 << 20));
    for _ in 0..3 {
        let mut buf = pool.take(100);
        let piece = buf.device_piece(&device, 10, 90).unwrap();
        assert_eq!((piece.address, piece.len, piece.key), (buf.as_ptr() as u64 + 10, 90, 0));
        pool.give(buf);
    }
    assert_eq!((device.made(), device.live(), device.budget.used()), (1, 1, 4096));
    drop(pool);
    assert_eq!((device.live(), device.budget.used(), device.budget.peak()), (0, 0, 4096));
}

#[test]
fn a_buffer_that_meets_another_domain_leaves_the_first() {
    let (one, other) = (Device::new(MIB), Device::new(MIB));
    let mut memory = Memory::Buf(Buf::zeroed(5000));
    memory.device_piece(&one, 0, 1).unwrap();
    memory.device_piece(&other, 0, 5000).unwrap();
    assert_eq!((one.live(), other.live()), (0, 1));
    assert_eq!(*other.last.lock().unwrap(), Some((5000, Access::Local)));
}

#[test]
fn what_the_budget_does_not_hold_is_refused_and_stays_usable() {
    let device = Device::new(8192);
    let mut small = Buf::zeroed(4097);
    small.device_piece(&device, 0, 1).unwrap();
    let mut more = Buf::zeroed(1);
    assert_eq!(more.device_piece(&device, 0, 1), Err(RegisterFailure::Budget(8192)));
    drop(small);
    assert_eq!(device.budget.used(), 0);
    more.device_piece(&device, 0, 1).unwrap();
}

#[test]
fn what_the_kernel_refused_is_not_asked_for_again() {
    let budget = RegistrationBudget::new(u64::MAX);
    let first = budget.take(4096).unwrap();
    assert_eq!(budget.take(8192).unwrap().refused(), RegisterFailure::MemoryLock);
    assert_eq!(budget.take(8192).unwrap_err(), RegisterFailure::MemoryLock);
    assert!(RegisterFailure::MemoryLock.to_string().contains("ulimit -l"));
    budget.take(4096).unwrap();
    drop(first);
    budget.take(8192).unwrap();
}

#[test]
fn the_kernel_is_asked_again_once_everything_was_given_back() {
    let budget = RegistrationBudget::new(u64::MAX);
    let first = budget.take(4096).unwrap();
    assert_eq!(budget.take(8192).unwrap().refused(), RegisterFailure::MemoryLock);
    let second = budget.take(4096).unwrap();
    drop(first);
    assert_eq!(budget.take(8192).unwrap_err(), RegisterFailure::MemoryLock);
    // It may be that somebody has raised the limit, or that memory was short for a moment.
    drop(second);
    budget.take(1 << 20).unwrap();
}

#[test]
fn who_asks_for_too_much_takes_nothing_from_the_others() {
    let budget = RegistrationBudget::new(1 << 20);
    budget.take(4096).unwrap();
    std::thread::scope(|scope| {
        let greedy = scope.spawn(|| {
            for _ in 0..200_000 {
                assert_eq!(budget.take(2 << 20).unwrap_err(), RegisterFailure::Budget(1 << 20));
            }
        });
        while !greedy.is_finished() {
            budget.take(4096).expect("what is refused is not counted, not even for a moment");
        }
    });
    assert_eq!((budget.used(), budget.peak()), (0, 4096));
    // Its whole pages are more than a number holds.
    assert!(budget.take(usize::MAX).is_err());
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_region_registers_the_chunks_that_are_used_and_splits_work_between_them() {
    let device = Device::new(1 << 30);
    let region = Region::mapped(3 * CHUNK + 5000, u64::MAX).unwrap();
    let mut memory = Memory::Region(region.slice(CHUNK - 100, 300));
    let first = memory.device_piece(&device, 0, 300).unwrap();
    assert_eq!((first.len, region.registered()), (100, CHUNK));
    let second = memory.device_piece(&device, 100, 200).unwrap();
    assert_eq!((second.len, second.address, second.key), (200, first.address + 100, first.key + 1));
    assert_eq!(memory.device_piece(&device, 299, 1).unwrap().key, second.key);
    let last = region.slice(3 * CHUNK + 4999, 1).device_piece(&device, 0, 1).unwrap();
    assert_eq!((last.len, region.registered(), device.made()), (1, 2 * CHUNK + 5000, 3));
    drop(region);
    assert_eq!(device.live(), 3, "the slice keeps the region and its registrations");
    drop(memory);
    assert_eq!((device.live(), device.budget.used()), (0, 0));
}

#[test]
fn pages_of_a_registered_chunk_stay_and_read_as_zero_after_discard() {
    let device = Device::new(1 << 30);
    let region = Region::mapped(2 * CHUNK, u64::MAX).unwrap();
    let piece = region.slice(0, 1).device_piece(&device, 0, 1).unwrap();
    for at in [0, CHUNK] {
        region.reserve_for_write(at, 8192).unwrap();
        region.write(at, &[7; 8192]);
    }
    assert_eq!(resident(piece.address, 8192), 2);
    assert_eq!(resident(piece.address + CHUNK, 8192), 2);
    region.discard(0, 2 * CHUNK);
    assert_eq!(region.allocated(), 0);
    assert_eq!(resident(piece.address, CHUNK), 4096, "the device knows these pages");
    assert_eq!(resident(piece.address + CHUNK, CHUNK), 0);
    // The device reads the memory itself, not what the bitmap says of it.
    // SAFETY: inside the region, which is alive; nobody writes.
    let raw = unsafe { *std::ptr::with_exposed_provenance::<[u8; 8192]>(piece.address as usize) };
    assert_eq!(raw, [0; 8192]);
}

#[test]
fn a_forgotten_domain_gives_back_what_nobody_wrote() {
    let (one, other) = (Device::new(1 << 30), Device::new(1 << 30));
    let region = Region::mapped(CHUNK, u64::MAX).unwrap();
    let slice = region.slice(0, 4096);
    let piece = slice.device_piece(&one, 0, 1).unwrap();
    slice.device_piece(&other, 0, 1).unwrap();
    // As a device does when it pins them.
    region.write(0, &vec![0; CHUNK as usize]);
    region.reserve_for_write(CHUNK - 4096, 4096).unwrap();
    region.write(CHUNK - 4096, &[5; 4096]);
    region.forget(one.domain);
    assert_eq!((one.live(), other.live(), region.registered()), (0, 1, CHUNK));
    assert_eq!(resident(piece.address, CHUNK), 4096, "the other device still knows them");
    region.forget(other.domain);
    assert_eq!((other.live(), region.registered()), (0, 0));
    assert_eq!(resident(piece.address, CHUNK), 1);
    let mut back = [0; 4096];
    region.read(CHUNK - 4096, &mut back);
    assert_eq!(back, [5; 4096]);
}

#[test]
fn pages_may_be_taken_written_discarded_and_forgotten_at_once() {
    let device = Device::new(1 << 30);
    let region = Region::mapped(CHUNK, u64::MAX).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (region, device) = (&region, &device);
            scope.spawn(move || {
                for round in 0..400 {
                    let at = (round * 2 + thread) * 8192;
                    region.reserve_for_write(at, 8192).unwrap();
                    region.write(at, &[round as u8 | 1; 8192]);
                    region.slice(at, 1).device_piece(device, 0, 1).unwrap();
                    if round % 8 == 0 {
                        region.forget(device.domain);
                    }
                    let mut back = [0; 8192];
                    region.read(at, &mut back);
                    assert_eq!(back, [round as u8 | 1; 8192], "a page went while it was being taken");
                }
            });
        }
    });
}

#[test]
fn advertised_memory_has_a_registration_of_its_own() {
    let device = Device::new(1 << 30);
    let region = Region::mapped(2 * CHUNK, u64::MAX).unwrap();
    let slice = region.slice(CHUNK - 4096, 8192);
    let advertised = Advertised::new(Memory::Region(slice), 4000, 200, &device, Access::RemoteWrite).unwrap();
    assert_eq!(*device.last.lock().unwrap(), Some((200, Access::RemoteWrite)));
    assert_eq!(advertised.remote_key(), advertised.local_key() | 1 << 31);
    region.write(CHUNK - 4096, &[3; 8192]);
    region.discard(CHUNK - 4096, 8192);
    let page = advertised.address() / 4096 * 4096;
    assert_eq!(resident(page, 8192), 2, "both chunks are pinned");
    let memory = advertised.end().unwrap();
    assert_eq!((memory.len(), device.live()), (8192, 0));
    region.discard(CHUNK - 4096, 8192);
    assert_eq!(resident(page, 8192), 0);

    let buf = Lease::whole(Memory::Buf(Buf::zeroed(100))).memory;
    drop(Advertised::new(buf, 0, 100, &device, Access::RemoteRead).unwrap());
    assert_eq!(device.live(), 0);
}

#[test]
fn refused_memory_comes_back_and_is_not_pinned() {
    let device = Device::new(0);
    let region = Region::mapped(CHUNK, u64::MAX).unwrap();
    region.write(0, &[1; 4096]);
    let memory = Memory::Region(region.slice(0, 4096));
    let (memory, failure) = Advertised::new(memory, 0, 4096, &device, Access::RemoteRead).unwrap_err();
    assert_eq!((memory.len(), failure), (4096, RegisterFailure::Budget(0)));
    drop(memory);
    region.forget(device.domain);
    let generous = Device::new(1 << 30);
    let address = region.slice(0, 1).device_piece(&generous, 0, 1).unwrap().address;
    region.forget(generous.domain);
    assert_eq!(resident(address, 4096), 0, "nobody took the page");
}

#[test]
fn memory_that_a_device_keeps_is_never_freed() {
    let device = Device::new(1 << 30);
    let mut buf = Buf::zeroed(64);
    let address = buf.device_piece(&device, 0, 64).unwrap().address;
    let region = Region::heap(64);
    let piece = region.slice(0, 64).device_piece(&device, 0, 64).unwrap();
    let advertised = Advertised::new(Memory::Buf(Buf::zeroed(64)), 0, 64, &device, Access::RemoteRead).unwrap();
    let third = advertised.address();
    device.lets_go.store(false, Ordering::Relaxed);
    let other = Device::new(MIB);
    assert_eq!(buf.device_piece(&other, 0, 1), Err(RegisterFailure::Device(0)), "the old one does not end");
    drop(buf);
    drop(region);
    assert!(advertised.end().is_none());
    for address in [address, piece.address, third] {
        // SAFETY: leaked on purpose, and therefore alive; AddressSanitizer would tell otherwise.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(address as usize).write_volatile(1) };
    }
}
