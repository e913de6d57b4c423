//! What devices say outside of connections and completion queues: that a queue pair has failed, or the whole device.
//!
//! A device has one descriptor for it. Whoever is woken takes what there is, and leaves each event with the queue pair
//! that it is for.
#![allow(unsafe_code, reason = "calls of libibverbs and reads of its structures")]

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::abi::{
    IBV_EVENT_CQ_ERR, IBV_EVENT_DEVICE_FATAL, IBV_EVENT_QP_ACCESS_ERR, IBV_EVENT_QP_FATAL, IBV_EVENT_QP_REQ_ERR,
    ibv_async_event, ibv_context,
};
use super::library::Library;
use super::port::PortEvent;

const NOTHING: u8 = 0;
const FAILED: u8 = 1;
const BAD_REQUEST: u8 = 2;
const BAD_ACCESS: u8 = 3;
const DEVICE_GONE: u8 = 4;

struct Watched {
    context: usize,
    queue_pair: usize,
    completion_queue: usize,
    fault: Arc<AtomicU8>,
}

/// All queue pairs of the process. The lock is held while events are taken, so that whoever comes second finds its own.
static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

fn watched() -> MutexGuard<'static, Vec<Watched>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The watch over one queue pair. Dropped before the queue pair is destroyed.
#[derive(Debug)]
pub(super) struct Watch(Arc<AtomicU8>);

/// Watches a queue pair and its completion queue.
pub(super) fn watch(context: NonNull<ibv_context>, queue_pair: *mut c_void, completion_queue: *mut c_void) -> Watch {
    let fault = Arc::new(AtomicU8::new(NOTHING));
    watched().push(Watched {
        context: context.as_ptr() as usize,
        queue_pair: queue_pair as usize,
        completion_queue: completion_queue as usize,
        fault: fault.clone(),
    });
    Watch(fault)
}

impl Watch {
    /// What the device has said of the queue pair since the last call.
    pub(super) fn take(&self) -> Option<PortEvent> {
        match self.0.load(Ordering::Acquire) {
            NOTHING => None,
            _ => match self.0.swap(NOTHING, Ordering::AcqRel) {
                FAILED => Some(PortEvent::QueueFailed),
                BAD_REQUEST => Some(PortEvent::PeerProtocol("it asked for what no queue pair does")),
                BAD_ACCESS => Some(PortEvent::PeerProtocol("it named memory that it may not reach so")),
                DEVICE_GONE => Some(PortEvent::DeviceGone),
                _ => None,
            },
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        watched().retain(|watched| !Arc::ptr_eq(&watched.fault, &self.0));
    }
}

/// Takes the events of a device and leaves them with those whom they concern.
///
/// # Safety
/// `context` is open, and its descriptor for events does not block.
pub(super) unsafe fn take(library: &Library, context: NonNull<ibv_context>) {
    let watched = watched();
    loop {
        let mut event = ibv_async_event { element: core::ptr::null_mut(), event_type: 0 };
        // SAFETY: the context is open, and the place for the event is ours.
        if unsafe { (library.verbs.ibv_get_async_event)(context.as_ptr(), &raw mut event) } != 0 {
            return;
        }
        let element = event.element as usize;
        let fault = match event.event_type {
            IBV_EVENT_CQ_ERR | IBV_EVENT_QP_FATAL => FAILED,
            IBV_EVENT_QP_REQ_ERR => BAD_REQUEST,
            IBV_EVENT_QP_ACCESS_ERR => BAD_ACCESS,
            IBV_EVENT_DEVICE_FATAL => DEVICE_GONE,
            _ => NOTHING,
        };
        for watched in watched.iter().filter(|watched| watched.context == context.as_ptr() as usize) {
            let concerned = match event.event_type {
                IBV_EVENT_DEVICE_FATAL => true,
                IBV_EVENT_CQ_ERR => watched.completion_queue == element,
                _ => watched.queue_pair == element,
            };
            if concerned && fault != NOTHING {
                watched.fault.store(fault, Ordering::Release);
            }
        }
        // SAFETY: got above and not acknowledged yet.
        unsafe { (library.verbs.ibv_ack_async_event)(&raw mut event) };
    }
}
