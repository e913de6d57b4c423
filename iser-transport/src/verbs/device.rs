//! Devices, protection domains and registrations.
//!
//! A [`Domain`] is a protection domain of a device. It lives as long as somebody uses it: a connection, or the
//! [`Verbs`](super::Verbs) whose connections share it. When the last one has gone, every registration in it is ended,
//! also those of buffers that lie idle in a pool.
#![allow(unsafe_code, reason = "calls of libibverbs and reads of its structures")]

use std::ffi::CStr;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use iscsi_memory::{
    Access, BudgetShare, Buf, DevicePiece, DomainId, Region, RegisterFailure, Registrar, Registration,
    RegistrationBudget,
};

use super::abi::{
    IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_READ, IBV_ACCESS_REMOTE_WRITE, IBV_TRANSPORT_IWARP, ibv_context,
    ibv_device_attr, ibv_mr, ibv_pd,
};
use super::error::VerbsError;
use super::library::Library;

/// The vendor that the kernel's soft iWARP says it is of.
const SOFT_IWARP: u32 = 0x0062_6d74;

/// Bytes of zeroes that a domain keeps for memory that was never written. A request may name them several times.
const ZEROES: usize = 64 << 10;

/// What a device can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The kernel's name of it, such as `rxe0`.
    pub name: String,
    /// Whether its network is iWARP; InfiniBand or RoCE otherwise.
    pub iwarp: bool,
    /// Whether it is the kernel's own iWARP, over TCP sockets (`siw`).
    pub soft_iwarp: bool,
    /// Longest queue of work requests.
    pub max_work: usize,
    /// Pieces of memory in one work request.
    pub max_pieces: usize,
    /// Pieces of memory in one RDMA Read.
    pub max_read_pieces: usize,
    /// Entries of a completion queue.
    pub max_completions: usize,
    /// RDMA Reads of a peer that it answers at a time.
    pub max_incoming_reads: u8,
    /// RDMA Reads of ours that it has in flight at a time.
    pub max_outgoing_reads: u8,
}

impl DeviceInfo {
    /// Whether the buffer that an RDMA Read lands in has to be one that the peer may write: iWARP cards place the
    /// answer like a Write (RFC 5040 5.2.1). The kernel's own iWARP does without.
    pub(super) fn read_sink_is_remote(&self) -> bool {
        self.iwarp && !self.soft_iwarp
    }

    /// Asks the device.
    ///
    /// # Safety
    /// `context` is open.
    unsafe fn query(library: &Library, context: NonNull<ibv_context>) -> Result<Self, VerbsError> {
        // SAFETY: all of its fields are integers, for which zero is a value.
        let mut attr: ibv_device_attr = unsafe { core::mem::zeroed() };
        // SAFETY: the context is open, and the structure is the caller's to fill.
        let error = unsafe { (library.verbs.ibv_query_device)(context.as_ptr(), &raw mut attr) };
        if error != 0 {
            return Err(VerbsError::Refused(
                "asking the RDMA device for its limits",
                io::Error::from_raw_os_error(error),
            ));
        }
        // SAFETY: an open context points to its device, whose name is a C string within its array.
        let (name, transport) = unsafe {
            let device = (*context.as_ptr()).device;
            (CStr::from_ptr((&raw const (*device).name).cast()), (*device).transport_type)
        };
        let count = |n: i32| usize::try_from(n).unwrap_or(0);
        let depth = |n: i32| u8::try_from(n.clamp(0, 255)).unwrap_or(0);
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            iwarp: transport == IBV_TRANSPORT_IWARP,
            soft_iwarp: attr.vendor_id == SOFT_IWARP,
            max_work: count(attr.max_qp_wr),
            max_pieces: count(attr.max_sge).max(1),
            max_read_pieces: count(if attr.max_sge_rd > 0 { attr.max_sge_rd } else { attr.max_sge }).max(1),
            max_completions: count(attr.max_cqe),
            max_incoming_reads: depth(attr.max_qp_rd_atom),
            max_outgoing_reads: depth(attr.max_qp_init_rd_atom),
        })
    }
}

/// Keeps libsiw from a key that it takes for a failure.
///
/// The library maps each queue at a key that the kernel chooses: the first free offset of the device's file. One of
/// them, 0x90000, it takes for "no key" (`SIW_INVAL_UOBJ_KEY`), so that the queue that happens to get it cannot be
/// made; with queues of the usual sizes that is the seventh connection. A completion queue that is made first, lies
/// across that offset, and is never used takes it out of the way.
///
/// # Safety
/// `context` is open.
unsafe fn occupy_key_of_siw(library: &Library, context: NonNull<ibv_context>) {
    const KEY: i32 = 0x90000;
    const ENTRY: i32 = 32;
    /// Contexts, and the completion queue that lies there in each.
    static DONE: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let address = context.as_ptr() as usize;
    if done.iter().all(|(other, _)| *other != address) {
        let null = core::ptr::null_mut();
        // SAFETY: the context is open; without a channel. If it fails, one connection of many will; it stays until the
        // process ends.
        let cq = unsafe { (library.verbs.ibv_create_cq)(context.as_ptr(), KEY / ENTRY + 128, null, null.cast(), 0) };
        done.push((address, cq as usize));
    }
}

/// A protection domain.
#[derive(Debug)]
pub(super) struct Domain {
    library: &'static Library,
    id: DomainId,
    context: NonNull<ibv_context>,
    pd: NonNull<ibv_pd>,
    info: DeviceInfo,
    budget: Arc<RegistrationBudget>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Its uses. At zero it is over.
    users: usize,
    registrations: Vec<Weak<Mr>>,
    free: Vec<usize>,
    regions: Vec<Weak<Region>>,
    /// What is sent in place of memory that was never written; made when it is first needed.
    zeroes: Option<(Buf, DevicePiece)>,
}

// SAFETY: libibverbs's objects may be used from any thread, and the context outlives the domain's last user.
unsafe impl Send for Domain {}
// SAFETY: as above; its functions lock what they share.
unsafe impl Sync for Domain {}

impl Domain {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A use of a [`Domain`].
#[derive(Debug)]
pub(super) struct DomainUse(Arc<Domain>);

impl DomainUse {
    /// A new domain on the device of an open context.
    ///
    /// # Safety
    /// `context` stays open until the last use of the domain is dropped.
    pub(super) unsafe fn new(
        library: &'static Library,
        context: NonNull<ibv_context>,
        budget: Arc<RegistrationBudget>,
    ) -> Result<Self, VerbsError> {
        // SAFETY: the context is open.
        let info = unsafe { DeviceInfo::query(library, context) }?;
        if info.soft_iwarp {
            // SAFETY: as above.
            unsafe { occupy_key_of_siw(library, context) };
        }
        // SAFETY: as above.
        let pd = NonNull::new(unsafe { (library.verbs.ibv_alloc_pd)(context.as_ptr()) })
            .ok_or_else(|| VerbsError::last("making a protection domain"))?;
        let state = Mutex::new(State { users: 1, ..State::default() });
        Ok(Self(Arc::new(Domain { library, id: DomainId::unique(), context, pd, info, budget, state })))
    }

    /// One more use of the domain, if it is on this context.
    pub(super) fn share(&self, context: NonNull<ibv_context>) -> Option<Self> {
        let domain = (self.0.context == context).then(|| self.0.clone())?;
        domain.state().users += 1;
        Some(Self(domain))
    }

    pub(super) fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    pub(super) fn pd(&self) -> NonNull<ibv_pd> {
        self.0.pd
    }
}

impl Drop for DomainUse {
    fn drop(&mut self) {
        let domain = &self.0;
        let mut state = domain.state();
        state.users -= 1;
        if state.users > 0 {
            return;
        }
        let registrations = std::mem::take(&mut state.registrations);
        let regions = std::mem::take(&mut state.regions);
        let zeroes = state.zeroes.take();
        drop(state);
        drop(zeroes);
        regions.iter().filter_map(Weak::upgrade).for_each(|region| region.forget(domain.id));
        for registration in registrations.iter().filter_map(Weak::upgrade) {
            if !registration.release() {
                registration.abandon();
            }
        }
        // SAFETY: nobody uses the domain any more: queue pairs hold a use until they are destroyed. What is still
        // registered makes it refuse, harmlessly.
        unsafe { (domain.library.verbs.ibv_dealloc_pd)(domain.pd.as_ptr()) };
    }
}

// SAFETY: `ibv_reg_mr` registers exactly the range, in the protection domain that `id` names.
unsafe impl Registrar for DomainUse {
    fn domain(&self) -> DomainId {
        self.0.id
    }

    unsafe fn register(
        &self,
        at: *mut u8,
        len: usize,
        access: Access,
    ) -> Result<Arc<dyn Registration>, RegisterFailure> {
        let domain = &self.0;
        let share = domain.budget.take(len)?;
        // Local writes are always allowed: that makes the kernel pin pages of the process's own, not the shared page of
        // zeroes.
        let access = IBV_ACCESS_LOCAL_WRITE
            | match access {
                Access::Local => 0,
                Access::RemoteRead => IBV_ACCESS_REMOTE_READ,
                Access::RemoteWrite => IBV_ACCESS_REMOTE_WRITE,
            };
        // SAFETY: this use keeps the protection domain; the caller keeps the memory.
        let mr = unsafe { (domain.library.verbs.ibv_reg_mr)(domain.pd.as_ptr(), at.cast(), len, access) };
        let Some(mr) = NonNull::new(mr) else {
            let error = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            // `ulimit -l` shows as ENOMEM; older kernels gave EPERM where nothing may be locked at all.
            let locked = matches!(error, libc::ENOMEM | libc::EPERM);
            return Err(if locked { share.refused() } else { RegisterFailure::Device(error) });
        };
        // SAFETY: the library has filled in the structure.
        let (lkey, rkey) = unsafe { ((*mr.as_ptr()).lkey, (*mr.as_ptr()).rkey) };
        let mut state = domain.state();
        let index = state.free.pop().unwrap_or(state.registrations.len());
        let hold = Mutex::new(Hold::Live(Live { mr, _share: share }));
        let registration = Arc::new(Mr { domain: domain.clone(), index, lkey, rkey, hold });
        let place = Arc::downgrade(&registration);
        match state.registrations.get_mut(index) {
            Some(free) => *free = place,
            None => state.registrations.push(place),
        }
        Ok(registration)
    }

    fn zeroes(&self) -> Option<DevicePiece> {
        if let Some((_, piece)) = &self.0.state().zeroes {
            return Some(*piece);
        }
        let mut buf = Buf::zeroed(ZEROES);
        let piece = buf.device_piece(self, 0, ZEROES).ok()?;
        // Somebody else may have made one meanwhile: one of the two goes, after the lock.
        let mut state = self.0.state();
        if let Some((_, piece)) = &state.zeroes {
            let piece = *piece;
            drop(state);
            return Some(piece);
        }
        state.zeroes = Some((buf, piece));
        Some(piece)
    }

    fn make_room(&self, len: usize) -> bool {
        let regions: Vec<_> = self.0.state().regions.iter().filter_map(Weak::upgrade).collect();
        let mut ended = 0;
        for region in regions {
            if ended >= len as u64 {
                break;
            }
            ended += region.shed(self.0.id, len as u64 - ended);
        }
        ended > 0
    }

    fn has_registered(&self, region: &Arc<Region>) {
        let mut state = self.0.state();
        let known = Arc::downgrade(region);
        if !state.regions.iter().any(|other| other.ptr_eq(&known)) {
            state.regions.retain(|other| other.strong_count() > 0);
            state.regions.push(known);
        }
    }
}

/// A registration.
#[derive(Debug)]
struct Mr {
    domain: Arc<Domain>,
    index: usize,
    lkey: u32,
    rkey: u32,
    hold: Mutex<Hold>,
}

#[derive(Debug)]
enum Hold {
    Live(Live),
    Ended,
    /// The device would not let go, and is asked no more: the memory is never freed.
    Abandoned,
}

impl Mr {
    fn hold(&self) -> MutexGuard<'_, Hold> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The domain ends with the registration in place.
    fn abandon(&self) {
        *self.hold() = Hold::Abandoned;
    }
}

#[derive(Debug)]
struct Live {
    mr: NonNull<ibv_mr>,
    /// Given back with it.
    _share: BudgetShare,
}

// SAFETY: a memory region may be ended by any thread; the lock lets one do it.
unsafe impl Send for Live {}

// SAFETY: `release` returns true only when `ibv_dereg_mr` has succeeded, after which the device has dropped its keys
// and its pages.
unsafe impl Registration for Mr {
    fn domain(&self) -> DomainId {
        self.domain.id
    }

    fn local_key(&self) -> u32 {
        self.lkey
    }

    fn remote_key(&self) -> u32 {
        self.rkey
    }

    fn release(&self) -> bool {
        let mut hold = self.hold();
        let live = match &*hold {
            Hold::Live(live) => live,
            Hold::Ended => return true,
            Hold::Abandoned => return false,
        };
        // SAFETY: it is registered, and this lock lets one caller end it once.
        if unsafe { (self.domain.library.verbs.ibv_dereg_mr)(live.mr.as_ptr()) } != 0 {
            return false;
        }
        *hold = Hold::Ended;
        drop(hold);
        let mut state = self.domain.state();
        if let Some(place) = state.registrations.get_mut(self.index) {
            *place = Weak::new();
            state.free.push(self.index);
        }
        true
    }
}
