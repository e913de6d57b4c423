//! Registrations against a device that touches its memory whenever one ends: a use after free would be seen by AddressSanitizer.

#![cfg(target_os = "linux")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use iscsi_memory::{
    Access, Advertised, BudgetShare, Buf, BufPool, DevicePiece, Direction, DomainId, Lease, Payload, Region,
    RegisterFailure, Registrar, Registration, RegistrationBudget, WorkPiece,
};

const MIB: u64 = 1 << 20;
const CHUNK: u64 = MIB;

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
    /// It has no time to register anything.
    is_busy: AtomicBool,
    zeroes: Mutex<Option<Buf>>,
    /// Whose chunks make room.
    region: Mutex<Option<Arc<Region>>>,
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
            is_busy: AtomicBool::new(false),
            zeroes: Mutex::default(),
            region: Mutex::default(),
        }
    }

    fn with_zeroes(limit: u64) -> Self {
        let device = Self::new(limit);
        *device.zeroes.lock().unwrap() = Some(Buf::zeroed(65_536));
        device
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
    fn has_time_for(&self, _: usize) -> bool {
        !self.is_busy.load(Ordering::Relaxed)
    }
    fn zeroes(&self) -> Option<DevicePiece> {
        let mut zeroes = self.zeroes.lock().unwrap();
        let buf = zeroes.as_mut()?;
        buf.device_piece(self, 0, buf.len()).ok()
    }
    fn make_room(&self, len: usize) -> bool {
        let region = self.region.lock().unwrap();
        region.as_ref().is_some_and(|region| region.shed(self.domain, len as u64) > 0)
    }
}

/// What a work request that sends the bytes names.
fn out(region: &Arc<Region>, device: &Device, offset: u64, len: usize) -> Option<WorkPiece> {
    region.slice(offset, len).device_piece(device, 0, len, Direction::Out).unwrap()
}

/// A region of which `chunks` were written, each byte with the chunk's number and one.
fn written(len: u64, chunks: std::ops::Range<u64>) -> Arc<Region> {
    let region = Region::mapped(len, u64::MAX).unwrap();
    for chunk in chunks {
        region.reserve_for_write(chunk * CHUNK, CHUNK).unwrap();
        region.write(chunk * CHUNK, &vec![chunk as u8 + 1; CHUNK as usize]);
    }
    region
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
    let mut memory = Payload::Buf(Buf::zeroed(5000));
    memory.device_piece(&one, 0, 1, Direction::In).unwrap();
    memory.device_piece(&other, 0, 5000, Direction::Out).unwrap();
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
    let region = Region::heap((3 * CHUNK + 5000) as usize);
    let mut memory = Payload::Region(region.slice(CHUNK - 100, 300));
    let mut piece = |start, len| memory.device_piece(&device, start, len, Direction::In).unwrap().unwrap().piece;
    let first = piece(0, 300);
    assert_eq!((first.len, region.registered()), (100, CHUNK));
    let second = piece(100, 200);
    assert_eq!((second.len, second.address, second.key), (200, first.address + 100, first.key + 1));
    assert_eq!(piece(299, 1).key, second.key);
    let last = region.slice(3 * CHUNK + 4999, 1).device_piece(&device, 0, 1, Direction::In).unwrap().unwrap();
    assert_eq!((last.piece.len, region.registered(), device.made()), (1, 2 * CHUNK + 5000, 3));
    drop((region, last));
    assert_eq!(device.live(), 3, "the slice keeps the region and its registrations");
    drop(memory);
    assert_eq!((device.live(), device.budget.used()), (0, 0));
}

#[test]
fn what_was_never_written_is_sent_from_zeroes_and_registers_nothing() {
    let device = Device::with_zeroes(1 << 30);
    let region = written(8 * CHUNK, 1..2);
    let zeroes = device.zeroes().unwrap();
    let first = out(&region, &device, 0, 4096).unwrap();
    assert_eq!((first.piece, first.hold.is_none()), (DevicePiece { len: 4096, ..zeroes }, true));
    // As much of it as there are zeroes, and not into what was written.
    assert_eq!(out(&region, &device, 0, CHUNK as usize).unwrap().piece, zeroes);
    let near = out(&region, &device, CHUNK - 20_480, 65_536).unwrap().piece;
    assert_eq!(near, DevicePiece { len: 20_480, ..zeroes });
    region.reserve_for_write(3 * CHUNK + 8192, 1).unwrap();
    assert!(out(&region, &device, 3 * CHUNK, 65_536).is_none(), "little, and more behind it: all of it is copied");
    let (made, second) = (device.made(), out(&region, &device, CHUNK, 1).unwrap().piece.address);
    assert_eq!((region.registered(), device.made()), (CHUNK, made + 1), "what was written is registered");
    assert_eq!(resident(second - CHUNK, CHUNK), 0, "what was not is not there");
    // A device that writes is given no zeroes, and a device without zeroes has such memory copied.
    assert!(region.slice(0, 512).device_piece(&device, 0, 512, Direction::In).unwrap().is_none());
    assert!(out(&region, &Device::new(1 << 30), 0, 512).is_none());
}

#[test]
fn a_chunk_of_which_little_was_written_is_copied() {
    let device = Device::new(1 << 30);
    let region = Region::mapped(2 * CHUNK, u64::MAX).unwrap();
    region.reserve_for_write(0, CHUNK / 8 * 7 - 4096).unwrap();
    assert!(out(&region, &device, 0, 4096).is_none());
    region.reserve_for_write(CHUNK - 1, 1).unwrap();
    assert_eq!(out(&region, &device, 0, 4096).unwrap().piece.len, 4096);
    // The last one is shorter.
    let short = Region::mapped(CHUNK + 16384, u64::MAX).unwrap();
    short.reserve_for_write(CHUNK, 12_288).unwrap();
    assert!(out(&short, &device, CHUNK, 4096).is_none());
    short.reserve_for_write(CHUNK, 16_384).unwrap();
    assert_eq!(out(&short, &device, CHUNK, 16_384).unwrap().piece.len, 16_384);
}

#[test]
fn a_device_that_has_no_time_has_memory_copied_until_it_has() {
    let device = Device::new(1 << 30);
    let region = written(2 * CHUNK, 0..2);
    let first = out(&region, &device, 0, 512).unwrap();
    device.is_busy.store(true, Ordering::Relaxed);
    assert!(out(&region, &device, CHUNK, 512).is_none());
    assert_eq!(out(&region, &device, 0, 512).unwrap().piece.key, first.piece.key, "what is registered costs no time");
    let mut fresh = Payload::Buf(Buf::zeroed(4096));
    assert!(fresh.device_piece(&device, 0, 1, Direction::Out).unwrap().is_none());
    device.is_busy.store(false, Ordering::Relaxed);
    assert!(out(&region, &device, CHUNK, 512).is_some());
    assert!(fresh.device_piece(&device, 0, 1, Direction::Out).unwrap().is_some());
}

#[test]
fn unmapping_a_registered_chunk_gives_its_memory_back() {
    let device = Device::new(1 << 30);
    let region = written(3 * CHUNK, 0..3);
    let address = out(&region, &device, 0, 1).unwrap().piece.address;
    out(&region, &device, 2 * CHUNK, 1).unwrap();
    // A fourth of it: the device keeps what it knows, and the rest of the chunk is worth it.
    region.discard(0, CHUNK / 4);
    assert_eq!((resident(address, CHUNK), device.live()), (256, 2));
    region.discard(CHUNK / 4, 4096);
    assert_eq!((resident(address, CHUNK), device.live()), (191, 1));
    region.discard(CHUNK / 2, 3 * CHUNK - CHUNK / 2);
    assert_eq!((resident(address, 3 * CHUNK), device.live(), device.budget.used()), (63, 0, 0));
    let mut back = vec![9; 3 * CHUNK as usize];
    region.read(0, &mut back);
    let kept = (CHUNK / 4 + 4096) as usize..CHUNK as usize / 2;
    assert!(back.iter().enumerate().all(|(at, byte)| *byte == u8::from(kept.contains(&at))));
}

#[test]
fn a_chunk_in_use_is_zeroed_by_hand_and_goes_back_after_that() {
    let device = Device::new(1 << 30);
    let region = written(2 * CHUNK, 0..1);
    let WorkPiece { piece, hold } = out(&region, &device, 0, 512).unwrap();
    region.discard(0, CHUNK);
    assert_eq!((resident(piece.address, CHUNK), device.live(), region.allocated()), (256, 1, 0));
    // The device reads the memory itself, not what the marks say of it.
    // SAFETY: inside the region, which is alive; nobody writes.
    let raw = unsafe { *std::ptr::with_exposed_provenance::<[u8; CHUNK as usize]>(piece.address as usize) };
    assert!(raw == [0; CHUNK as usize]);
    region.settle();
    assert_eq!(device.live(), 1, "still in use");
    // Another one uses it meanwhile.
    let other = out(&region, &device, 0, 512).unwrap();
    drop(hold);
    region.settle();
    assert_eq!(device.live(), 1);
    drop(other);
    region.settle();
    assert_eq!((resident(piece.address, CHUNK), device.live(), device.budget.used()), (0, 0, 0));
}

#[test]
fn a_chunk_that_is_written_again_before_it_could_go_back_stays() {
    let device = Device::new(1 << 30);
    let region = written(CHUNK, 0..1);
    let used = out(&region, &device, 0, 512).unwrap();
    region.discard(0, CHUNK);
    region.reserve_for_write(0, CHUNK).unwrap();
    region.write(0, &[7; 512]);
    drop(used);
    region.settle();
    assert_eq!(device.live(), 1);
    let mut back = [0; 512];
    region.read(0, &mut back);
    assert_eq!(back, [7; 512]);
    region.discard(0, CHUNK);
    assert_eq!(device.live(), 0);
}

#[test]
fn a_forgotten_domain_gives_back_what_nobody_wrote() {
    let (one, other) = (Device::new(1 << 30), Device::new(1 << 30));
    let region = written(CHUNK, 0..1);
    let piece = out(&region, &one, 0, 4096).unwrap().piece;
    out(&region, &other, 0, 4096).unwrap();
    region.discard(0, CHUNK / 8);
    region.forget(one.domain);
    assert_eq!((one.live(), other.live(), region.registered()), (0, 1, CHUNK));
    assert_eq!(resident(piece.address, CHUNK), 256, "the other device still knows them");
    region.forget(other.domain);
    assert_eq!((other.live(), region.registered()), (0, 0));
    assert_eq!(resident(piece.address, CHUNK), 224);
    let mut back = [0; 4096];
    region.read(CHUNK - 4096, &mut back);
    assert_eq!(back, [1; 4096]);
}

#[test]
fn what_cannot_do_without_gets_the_room_of_chunks_that_nobody_uses() {
    let device = Device::new(3 * CHUNK);
    let region = written(4 * CHUNK, 0..4);
    *device.region.lock().unwrap() = Some(region.clone());
    let used = out(&region, &device, 0, 512).unwrap();
    out(&region, &device, CHUNK, 512).unwrap();
    out(&region, &device, 2 * CHUNK, 512).unwrap();
    let full = Err(RegisterFailure::Budget(3 * CHUNK));
    let slice = region.slice(3 * CHUNK, 512);
    assert_eq!(slice.device_piece(&device, 0, 1, Direction::Out).map(drop), full, "a chunk can be copied");
    let mut buf = Buf::zeroed(4096);
    buf.device_piece(&device, 0, 1).unwrap();
    assert_eq!((region.registered(), device.live()), (2 * CHUNK, 3));
    let advertised = Payload::Buf(Buf::zeroed(2 * CHUNK as usize - 4096));
    let advertised = Advertised::new(advertised, 0, 1 << 20, &device, Access::RemoteRead).unwrap();
    assert_eq!((region.registered(), device.live()), (CHUNK, 3));
    assert_eq!(Buf::zeroed(2 * CHUNK as usize).device_piece(&device, 0, 1), full.map(|()| used.piece));
    assert_eq!(region.registered(), CHUNK, "what is in use stays");
    drop((advertised, used));
}

#[test]
fn pages_may_be_taken_written_discarded_and_forgotten_at_once() {
    let device = Device::new(1 << 30);
    let region = Region::mapped(16 * CHUNK, u64::MAX).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (region, device) = (&region, &device);
            scope.spawn(move || {
                for round in 0..400 {
                    let at = (round * 2 + thread) * 8192;
                    region.reserve_for_write(at, 8192).unwrap();
                    region.write(at, &[round as u8 | 1; 8192]);
                    out(region, device, at, 1);
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
    let advertised = Advertised::new(Payload::Region(slice), 4000, 200, &device, Access::RemoteWrite).unwrap();
    assert_eq!(*device.last.lock().unwrap(), Some((200, Access::RemoteWrite)));
    assert_eq!(advertised.remote_key(), advertised.local_key() | 1 << 31);
    region.write(CHUNK - 4096, &[3; 8192]);
    region.discard(CHUNK - 4096, 8192);
    let page = advertised.address() / 4096 * 4096;
    assert_eq!(resident(page, 8192), 2, "both chunks are pinned");
    let memory = advertised.end().unwrap();
    assert_eq!((memory.len(), device.live()), (8192, 0));
    assert_eq!(resident(page, 8192), 0, "they go back with the last of it");

    let buf = Lease::whole(Payload::Buf(Buf::zeroed(100))).memory;
    drop(Advertised::new(buf, 0, 100, &device, Access::RemoteRead).unwrap());
    assert_eq!(device.live(), 0);
}

#[test]
fn refused_memory_comes_back_and_is_not_pinned() {
    let device = Device::new(0);
    let region = Region::mapped(CHUNK, u64::MAX).unwrap();
    region.write(0, &[1; 4096]);
    let memory = Payload::Region(region.slice(0, 4096));
    let (memory, failure) = Advertised::new(memory, 0, 4096, &device, Access::RemoteRead).unwrap_err();
    assert_eq!((memory.len(), failure), (4096, RegisterFailure::Budget(0)));
    drop(memory);
    let generous = Device::new(1 << 30);
    region.reserve_for_write(0, CHUNK).unwrap();
    let address = out(&region, &generous, 0, 1).unwrap().piece.address;
    region.discard(0, CHUNK);
    assert_eq!(resident(address, 4096), 0, "nobody pins the page");
}

#[test]
fn memory_that_a_device_keeps_is_never_freed() {
    let device = Device::new(1 << 30);
    let mut buf = Buf::zeroed(64);
    let address = buf.device_piece(&device, 0, 64).unwrap().address;
    let region = Region::heap(64);
    let piece = out(&region, &device, 0, 64).unwrap().piece;
    let advertised = Advertised::new(Payload::Buf(Buf::zeroed(64)), 0, 64, &device, Access::RemoteRead).unwrap();
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
