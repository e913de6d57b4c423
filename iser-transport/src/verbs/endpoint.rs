//! A queue pair of a device, with its completion queue and its connection.
#![allow(unsafe_code, reason = "calls of libibverbs and reads of its structures")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::time::Instant as StdInstant;

use iscsi_memory::{DevicePiece, Registrar};
use iscsi_proto::time::Instant;

use super::abi::{
    IBV_QP_STATE, IBV_QPS_ERR, IBV_QPT_RC, IBV_SEND_INLINE, IBV_SEND_SIGNALED, IBV_WC_WITH_INV, IBV_WR_RDMA_READ,
    IBV_WR_RDMA_WRITE, IBV_WR_SEND, IBV_WR_SEND_WITH_INV, ibv_comp_channel, ibv_context, ibv_cq, ibv_qp, ibv_qp_attr,
    ibv_qp_cap, ibv_qp_init_attr, ibv_recv_wr, ibv_send_wr, ibv_sge, ibv_wc,
};
use super::config::VerbsConfig;
use super::connection::{CmId, Event, Link, Parameters, set_nonblocking};
use super::device::DomainUse;
use super::device_events::{self, Watch};
use super::error::VerbsError;
use super::library::Library;
use super::port::{Batch, Capacity, Operation, Port, PortEvent, Refused, WorkCompletion};
use crate::queue::{EndCause, Stag};

/// Bytes that a Send may have to be copied into the request: an iSER header with a BHS, and some. Devices that hold
/// less are asked for less.
const INLINE: [u32; 4] = [96, 64, 32, 0];

/// Bytes of an unsignaled Write from which on soft iWARP hands the memory itself to TCP, which reads it when it sends:
/// maybe long after the Send behind the Write has completed. It is the size of a page, which is no less than this.
const PAGE: usize = 4096;

/// Completions taken in one call.
const POLLED: usize = 32;

/// All of an endpoint but the queue pair, in the order in which it is taken down.
#[derive(Debug)]
pub(super) struct Parts {
    library: &'static Library,
    cq: NonNull<ibv_cq>,
    completions: NonNull<ibv_comp_channel>,
    context: NonNull<ibv_context>,
    domain: Option<DomainUse>,
    link: Link,
}

// SAFETY: objects of libibverbs may be used from any thread.
unsafe impl Send for Parts {}
// SAFETY: as above; what is called through a shared reference locks.
unsafe impl Sync for Parts {}

impl Parts {
    /// Makes the device wake the completion channel at the next completion.
    pub(super) fn arm(&self) {
        // SAFETY: the completion queue is alive, and its context has the table of functions that the header calls
        // through.
        unsafe {
            if let Some(notify) = (*self.context.as_ptr()).ops.req_notify_cq {
                notify(self.cq.as_ptr(), 0);
            }
        }
    }

    /// Takes the wake-ups that the completion channel has given, and what the device itself has to say.
    pub(super) fn take_wakes(&self) {
        let mut taken = 0;
        let (mut cq, mut cookie) = (null_mut(), null_mut());
        // SAFETY: the channel is alive and does not block; both places are ours.
        while unsafe { (self.library.verbs.ibv_get_cq_event)(self.completions.as_ptr(), &raw mut cq, &raw mut cookie) }
            == 0
        {
            taken += 1;
        }
        if taken > 0 {
            // SAFETY: so many events of this completion queue, the only one on the channel, were taken and not
            // acknowledged.
            unsafe { (self.library.verbs.ibv_ack_cq_events)(self.cq.as_ptr(), taken) };
        }
        // SAFETY: the context is open while the identifier lives.
        unsafe { device_events::take(self.library, self.context) };
    }

    /// What becomes readable when the connection changes.
    pub(super) fn connection_fd(&self) -> BorrowedFd<'_> {
        self.link.channel.as_fd()
    }

    /// What becomes readable when work completes.
    pub(super) fn completion_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel keeps its descriptor open until it is destroyed.
        unsafe { BorrowedFd::borrow_raw((*self.completions.as_ptr()).fd) }
    }

    /// What becomes readable when the device has something to say.
    pub(super) fn device_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: an open context keeps its descriptor open.
        unsafe { BorrowedFd::borrow_raw((*self.context.as_ptr()).async_fd) }
    }

    fn poll_cq(&self, into: &mut [ibv_wc]) -> Result<usize, ()> {
        // SAFETY: the completion queue is alive, the table is the context's, and the array has the length that is
        // given.
        let polled = unsafe {
            let poll = (*self.context.as_ptr()).ops.poll_cq.ok_or(())?;
            poll(self.cq.as_ptr(), into.len() as i32, into.as_mut_ptr())
        };
        usize::try_from(polled).map_err(|_| ())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // SAFETY: the queue pair on it was destroyed before, and every event was acknowledged; the channel has no other
        // completion queue. What refuses stays behind.
        unsafe {
            (self.library.verbs.ibv_destroy_cq)(self.cq.as_ptr());
            (self.library.verbs.ibv_destroy_comp_channel)(self.completions.as_ptr());
        }
        // The domain needs the context, which the identifier keeps.
        self.domain = None;
    }
}

/// Who begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// We connect.
    Active,
    /// We accept, a request with these parameters.
    Passive(Parameters),
}

/// The [`Port`] of a real device.
#[derive(Debug)]
pub(super) struct DevicePort {
    library: &'static Library,
    /// Its time begins here.
    begun: StdInstant,
    parts: Option<Arc<Parts>>,
    qp: Option<NonNull<ibv_qp>>,
    watch: Option<Watch>,
    side: Side,
    /// Whether the peer was asked, or answered.
    has_begun: bool,
    depths: Parameters,
    private: Vec<u8>,
    capacity: Capacity,
    /// Room for one list, kept from call to call.
    requests: Vec<ibv_send_wr>,
    receives: Vec<ibv_recv_wr>,
    pieces: Vec<ibv_sge>,
    polled: Box<[ibv_wc; POLLED]>,
}

// SAFETY: objects of libibverbs may be used from any thread; the scratch lists hold no pointer that is used again.
unsafe impl Send for DevicePort {}

impl DevicePort {
    /// An endpoint for an identifier that knows its device.
    pub(super) fn new(
        library: &'static Library,
        link: Link,
        domain: DomainUse,
        side: Side,
        config: &VerbsConfig,
    ) -> Result<Self, VerbsError> {
        let context = link.id.context().ok_or_else(|| VerbsError::last("finding the device of a connection"))?;
        let info = domain.info().clone();
        // One entry of a completion queue for each request and receive: it cannot overrun.
        let half = info.max_completions.saturating_sub(1) / 2;
        let work = config.work.min(info.max_work).min(half).max(1);
        let receives = config.receives.min(info.max_work).min(half).max(1);
        // SAFETY: the context is open while the identifier lives.
        let completions = NonNull::new(unsafe { (library.verbs.ibv_create_comp_channel)(context.as_ptr()) })
            .ok_or_else(|| VerbsError::last("making a completion channel"))?;
        let entries = i32::try_from(work + receives + 1).unwrap_or(i32::MAX);
        // SAFETY: the context is open and the channel is its own.
        let cq = NonNull::new(unsafe {
            (library.verbs.ibv_create_cq)(context.as_ptr(), entries, null_mut(), completions.as_ptr(), 0)
        });
        let Some(cq) = cq else {
            let error = VerbsError::last("making a completion queue");
            // SAFETY: just made, and nothing uses it.
            unsafe { (library.verbs.ibv_destroy_comp_channel)(completions.as_ptr()) };
            return Err(error);
        };
        let depths = Parameters {
            private: None,
            incoming_reads: config.read_depth.min(info.max_incoming_reads),
            outgoing_reads: config.read_depth.min(info.max_outgoing_reads),
        };
        let depths = match side {
            Side::Active => depths,
            // A request's depths are seen from this side already: they are clamped, not swapped.
            Side::Passive(asked) => Parameters {
                incoming_reads: depths.incoming_reads.min(asked.incoming_reads),
                outgoing_reads: depths.outgoing_reads.min(asked.outgoing_reads),
                ..depths
            },
        };
        let parts = Parts { library, cq, completions, context, domain: Some(domain), link };
        set_nonblocking(parts.completion_fd())?;
        set_nonblocking(parts.device_fd())?;
        let wanted = ibv_qp_cap {
            max_send_wr: work as u32,
            max_recv_wr: receives as u32,
            max_send_sge: info.max_pieces.min(4) as u32,
            max_recv_sge: 1,
            max_inline_data: 0,
        };
        let (qp, given) = create_qp(library, &parts, wanted)?;
        let watch = device_events::watch(context, qp.as_ptr().cast(), cq.as_ptr().cast());
        let capacity = Capacity {
            work: (given.max_send_wr as usize).clamp(1, work),
            receives: (given.max_recv_wr as usize).clamp(1, receives),
            pieces: (wanted.max_send_sge as usize).max(1),
            read_pieces: info.max_read_pieces.min(wanted.max_send_sge as usize).max(1),
            inline: given.max_inline_data as usize,
            read_sink_is_remote: info.read_sink_is_remote(),
            lends_unsignaled: if info.soft_iwarp { PAGE } else { usize::MAX },
        };
        Ok(Self {
            library,
            begun: StdInstant::now(),
            parts: Some(Arc::new(parts)),
            qp: Some(qp),
            watch: Some(watch),
            side,
            has_begun: false,
            depths,
            private: config.private.clone(),
            capacity,
            requests: Vec::with_capacity(work),
            receives: Vec::with_capacity(receives),
            pieces: Vec::with_capacity(work.max(receives)),
            polled: Box::new([ibv_wc::default(); POLLED]),
        })
    }

    /// The private data to connect or accept with.
    pub(super) fn set_private(&mut self, private: &[u8]) {
        self.private.clear();
        self.private.extend_from_slice(private);
    }

    pub(super) fn parts(&self) -> Option<&Arc<Parts>> {
        self.parts.as_ref()
    }

    pub(super) fn id(&self) -> Option<&CmId> {
        self.parts.as_ref().map(|parts| &parts.link.id)
    }

    pub(super) fn domain(&self) -> Option<&DomainUse> {
        self.parts.as_ref().and_then(|parts| parts.domain.as_ref())
    }
}

/// With as much inline room as the device has.
fn create_qp(
    library: &'static Library,
    parts: &Parts,
    wanted: ibv_qp_cap,
) -> Result<(NonNull<ibv_qp>, ibv_qp_cap), VerbsError> {
    let Some(domain) = &parts.domain else { return Err(VerbsError::last("making a queue pair")) };
    let id = &parts.link.id;
    for inline in INLINE {
        let mut attr = ibv_qp_init_attr {
            qp_context: null_mut(),
            send_cq: parts.cq.as_ptr(),
            recv_cq: parts.cq.as_ptr(),
            srq: null_mut(),
            cap: ibv_qp_cap { max_inline_data: inline, ..wanted },
            qp_type: IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: identifier, protection domain and completion queue are of one device and alive.
        let created = unsafe { (library.cm.rdma_create_qp)(id.raw().as_ptr(), domain.pd().as_ptr(), &raw mut attr) };
        if created == 0 {
            // SAFETY: the call has stored the queue pair in the identifier.
            let qp = NonNull::new(unsafe { (*id.raw().as_ptr()).qp });
            // Devices round up what they give, and some forget to say what that is.
            let cap = ibv_qp_cap { max_inline_data: attr.cap.max_inline_data.max(inline), ..attr.cap };
            return qp.map(|qp| (qp, cap)).ok_or_else(|| VerbsError::last("making a queue pair"));
        }
        if io::Error::last_os_error().raw_os_error() == Some(libc::ENOMEM) {
            break;
        }
    }
    Err(VerbsError::last("making a queue pair"))
}

fn opcode(operation: Operation) -> (i32, u32, u64, u32) {
    match operation {
        Operation::Send(None) => (IBV_WR_SEND, 0, 0, 0),
        // Most providers read the key from the field of that name, the soft iWARP one from the field of the remote key.
        Operation::Send(Some(Stag(key))) => (IBV_WR_SEND_WITH_INV, key, 0, key),
        Operation::Write(to) => (IBV_WR_RDMA_WRITE, 0, to.offset, to.stag.0),
        Operation::Read(from) => (IBV_WR_RDMA_READ, 0, from.offset, from.stag.0),
    }
}

fn sge(piece: &DevicePiece) -> ibv_sge {
    // A piece is at most as long as a transfer, which the configuration bounds.
    ibv_sge { addr: piece.address, length: piece.len as u32, lkey: piece.key }
}

impl Port for DevicePort {
    fn now(&self) -> Instant {
        Instant::ZERO + self.begun.elapsed()
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn told(&self) -> Option<Parameters> {
        match self.side {
            Side::Active => None,
            Side::Passive(asked) => Some(Parameters { private: asked.private, ..self.depths }),
        }
    }

    fn registrar(&self) -> Option<&dyn Registrar> {
        self.domain().map(|domain| domain as &dyn Registrar)
    }

    fn establish(&mut self) -> Result<(), EndCause> {
        let id = self.id().ok_or(EndCause::DeviceGone)?;
        let begun = match self.side {
            Side::Active => id.connect(&self.private, self.depths),
            Side::Passive(_) => id.accept(&self.private, self.depths),
        };
        self.has_begun = true;
        begun.map_err(|error| match error.raw_os_error() {
            // Soft iWARP connects during the call.
            Some(libc::ECONNREFUSED) => EndCause::Rejected,
            Some(libc::ENODEV) => EndCause::DeviceGone,
            _ => EndCause::Broken,
        })
    }

    unsafe fn post(&mut self, batch: &Batch) -> Result<(), Refused> {
        let Some(qp) = self.qp else { return Err(Refused { taken: 0 }) };
        self.pieces.clear();
        self.pieces.extend(batch.pieces.iter().map(sge));
        self.requests.clear();
        let mut first = self.pieces.as_mut_ptr();
        for request in &batch.requests {
            let (opcode, invalidate_rkey, remote_addr, rkey) = opcode(request.operation);
            let signaled = if request.is_signaled { IBV_SEND_SIGNALED } else { 0 };
            let inline = if request.is_inline { IBV_SEND_INLINE } else { 0 };
            self.requests.push(ibv_send_wr {
                wr_id: request.id,
                next: null_mut(),
                sg_list: first,
                num_sge: request.pieces as i32,
                opcode,
                send_flags: signaled | inline,
                invalidate_rkey,
                remote_addr,
                rkey,
                _rest: [0; 19],
            });
            first = first.wrapping_add(request.pieces);
        }
        let base = self.requests.as_mut_ptr();
        for index in 1..self.requests.len() {
            self.requests[index - 1].next = base.wrapping_add(index);
        }
        if self.requests.is_empty() {
            return Ok(());
        }
        let mut bad: *mut ibv_send_wr = null_mut();
        // SAFETY: the queue pair is alive; the list is linked through its own vector, which does not move, and ends in
        // null; each request names pieces of the other vector. Both are read during the call only. The caller keeps the
        // memory that the pieces name.
        let error = unsafe {
            match (*(*qp.as_ptr()).context).ops.post_send {
                Some(post) => post(qp.as_ptr(), base, &raw mut bad),
                None => libc::ENOSYS,
            }
        };
        match error {
            0 => Ok(()),
            _ => Err(Refused { taken: position(base, bad, self.requests.len()) }),
        }
    }

    unsafe fn post_receives(&mut self, receives: &[(u64, Option<DevicePiece>)]) -> Result<(), Refused> {
        let Some(qp) = self.qp else { return Err(Refused { taken: 0 }) };
        self.pieces.clear();
        self.pieces.extend(receives.iter().filter_map(|(_, piece)| piece.as_ref()).map(sge));
        self.receives.clear();
        let mut first = self.pieces.as_mut_ptr();
        for (id, piece) in receives {
            let num_sge = i32::from(piece.is_some());
            self.receives.push(ibv_recv_wr { wr_id: *id, next: null_mut(), sg_list: first, num_sge });
            first = first.wrapping_add(num_sge as usize);
        }
        let base = self.receives.as_mut_ptr();
        for index in 1..self.receives.len() {
            self.receives[index - 1].next = base.wrapping_add(index);
        }
        if self.receives.is_empty() {
            return Ok(());
        }
        let mut bad: *mut ibv_recv_wr = null_mut();
        // SAFETY: as in `post`.
        let error = unsafe {
            match (*(*qp.as_ptr()).context).ops.post_recv {
                Some(post) => post(qp.as_ptr(), base, &raw mut bad),
                None => libc::ENOSYS,
            }
        };
        match error {
            0 => Ok(()),
            _ => Err(Refused { taken: position(base, bad, self.receives.len()) }),
        }
    }

    fn poll(&mut self, completions: &mut Vec<WorkCompletion>) -> Result<(), ()> {
        let Some(parts) = &self.parts else { return Ok(()) };
        let polled = parts.poll_cq(&mut self.polled[..])?;
        completions.extend(self.polled[..polled.min(POLLED)].iter().map(|wc| WorkCompletion {
            id: wc.wr_id,
            status: wc.status,
            len: wc.byte_len as usize,
            invalidated: (wc.wc_flags & IBV_WC_WITH_INV != 0).then_some(Stag(wc.invalidated_rkey)),
        }));
        Ok(())
    }

    fn poll_event(&mut self) -> Option<PortEvent> {
        if let Some(event) = self.watch.as_ref().and_then(Watch::take) {
            return Some(event);
        }
        let parts = self.parts.as_ref()?;
        loop {
            return Some(match parts.link.channel.poll() {
                Ok(None) => return None,
                Ok(Some(Event::Established(told))) => {
                    PortEvent::Established(match self.side {
                        Side::Active => Parameters {
                            private: told.private,
                            incoming_reads: told.incoming_reads.min(self.depths.incoming_reads),
                            outgoing_reads: told.outgoing_reads.min(self.depths.outgoing_reads),
                        },
                        // What the peer had to say came with its request.
                        Side::Passive(asked) => Parameters { private: asked.private, ..self.depths },
                    })
                }
                Ok(Some(Event::Rejected)) => PortEvent::Rejected,
                Ok(Some(Event::Failed(_) | Event::Unresolved(_))) => PortEvent::Failed,
                Ok(Some(Event::Disconnected)) => PortEvent::Disconnected,
                Ok(Some(Event::DeviceRemoval)) | Err(_) => PortEvent::DeviceGone,
                Ok(Some(Event::AddressResolved | Event::RouteResolved | Event::Request(..) | Event::Other)) => continue,
            });
        }
    }

    fn disconnect(&mut self) {
        if let Some(id) = self.id() {
            id.disconnect();
        }
    }

    fn fail(&mut self) {
        let Some(qp) = self.qp else { return };
        let mut attr = ibv_qp_attr { qp_state: IBV_QPS_ERR, _rest: [0; 35] };
        // SAFETY: the queue pair is alive; the mask names the one field that is read. An error means that it is in that
        // state, or never left the first.
        unsafe { (self.library.verbs.ibv_modify_qp)(qp.as_ptr(), &raw mut attr, IBV_QP_STATE) };
    }

    fn destroy(&mut self) -> bool {
        let Some(qp) = self.qp else { return true };
        self.watch = None;
        // SAFETY: the queue pair is alive and used by nobody else.
        if unsafe { (self.library.verbs.ibv_destroy_qp)(qp.as_ptr()) } != 0 {
            // What belongs to it has to stay, too.
            std::mem::forget(self.parts.take());
            self.qp = None;
            return false;
        }
        self.qp = None;
        if let Some(id) = self.id() {
            if matches!(self.side, Side::Passive(_)) && !self.has_begun {
                id.reject();
            }
            // SAFETY: the identifier is alive. It must not name a queue pair that is gone.
            unsafe { (*id.raw().as_ptr()).qp = null_mut() };
        }
        self.parts = None;
        true
    }
}

/// How many requests of a list stand before the one that was refused.
fn position<T>(base: *const T, bad: *const T, len: usize) -> usize {
    let bytes = (bad as usize).wrapping_sub(base as usize);
    if bad.is_null() { 0 } else { (bytes / size_of::<T>()).min(len) }
}

impl Drop for DevicePort {
    fn drop(&mut self) {
        self.destroy();
    }
}
