//! The binary interface of libibverbs and librdmacm, as far as this provider uses it.
//!
//! Written against rdma-core's public headers (`infiniband/verbs.h`, `rdma/rdma_cma.h`), whose symbols carry the
//! versions `IBVERBS_1.1` and `RDMACM_1.0`: the layouts below have not changed since. What is not used is left out or
//! named `_rest`. Sizes and offsets are asserted at the end, and with the feature `ibverbs` compared with those that
//! bindgen finds.
#![allow(non_camel_case_types)]

use core::ffi::{c_char, c_int, c_uint, c_void};

use libc::{sockaddr, sockaddr_storage};

#[repr(C)]
pub(super) struct ibv_device {
    pub(super) _ops: [*mut c_void; 2],
    pub(super) node_type: c_int,
    pub(super) transport_type: c_int,
    pub(super) name: [c_char; 64],
    pub(super) _rest: [u8; 576],
}

pub(super) const IBV_TRANSPORT_IWARP: c_int = 1;

/// Of the table of functions only those that the headers call through it.
#[repr(C)]
pub(super) struct ibv_context_ops {
    pub(super) _before_poll: [*mut c_void; 11],
    pub(super) poll_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int>,
    pub(super) req_notify_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int>,
    pub(super) _before_post: [*mut c_void; 12],
    pub(super) post_send: Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int>,
    pub(super) post_recv: Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int>,
    pub(super) _rest: [*mut c_void; 5],
}

/// A device that is open. Ends in fields that are not used.
#[repr(C)]
pub(super) struct ibv_context {
    pub(super) device: *mut ibv_device,
    pub(super) ops: ibv_context_ops,
    pub(super) cmd_fd: c_int,
    pub(super) async_fd: c_int,
}

#[repr(C)]
pub(super) struct ibv_pd {
    pub(super) context: *mut ibv_context,
    pub(super) handle: u32,
}

#[repr(C)]
pub(super) struct ibv_mr {
    pub(super) context: *mut ibv_context,
    pub(super) pd: *mut ibv_pd,
    pub(super) addr: *mut c_void,
    pub(super) length: usize,
    pub(super) handle: u32,
    pub(super) lkey: u32,
    pub(super) rkey: u32,
}

pub(super) const IBV_ACCESS_LOCAL_WRITE: c_int = 1;
pub(super) const IBV_ACCESS_REMOTE_WRITE: c_int = 2;
pub(super) const IBV_ACCESS_REMOTE_READ: c_int = 4;

#[repr(C)]
pub(super) struct ibv_comp_channel {
    pub(super) context: *mut ibv_context,
    pub(super) fd: c_int,
    pub(super) refcnt: c_int,
}

/// A completion queue. Ends in fields that are not used.
#[repr(C)]
pub(super) struct ibv_cq {
    pub(super) context: *mut ibv_context,
    pub(super) channel: *mut ibv_comp_channel,
    pub(super) cq_context: *mut c_void,
    pub(super) handle: u32,
    pub(super) cqe: c_int,
}

/// A queue pair. Ends in fields that are not used.
#[repr(C)]
pub(super) struct ibv_qp {
    pub(super) context: *mut ibv_context,
    pub(super) qp_context: *mut c_void,
    pub(super) pd: *mut ibv_pd,
    pub(super) send_cq: *mut ibv_cq,
    pub(super) recv_cq: *mut ibv_cq,
    pub(super) srq: *mut c_void,
    pub(super) handle: u32,
    pub(super) qp_num: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ibv_qp_cap {
    pub(super) max_send_wr: u32,
    pub(super) max_recv_wr: u32,
    pub(super) max_send_sge: u32,
    pub(super) max_recv_sge: u32,
    pub(super) max_inline_data: u32,
}

#[repr(C)]
pub(super) struct ibv_qp_init_attr {
    pub(super) qp_context: *mut c_void,
    pub(super) send_cq: *mut ibv_cq,
    pub(super) recv_cq: *mut ibv_cq,
    pub(super) srq: *mut c_void,
    pub(super) cap: ibv_qp_cap,
    pub(super) qp_type: c_int,
    pub(super) sq_sig_all: c_int,
}

pub(super) const IBV_QPT_RC: c_int = 2;

#[repr(C)]
pub(super) struct ibv_qp_attr {
    pub(super) qp_state: c_int,
    pub(super) _rest: [u32; 35],
}

pub(super) const IBV_QP_STATE: c_int = 1;
pub(super) const IBV_QPS_ERR: c_int = 6;

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ibv_sge {
    pub(super) addr: u64,
    pub(super) length: u32,
    pub(super) lkey: u32,
}

/// A work request. Its `rdma` arm is the one that is used of the unions.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct ibv_send_wr {
    pub(super) wr_id: u64,
    pub(super) next: *mut ibv_send_wr,
    pub(super) sg_list: *mut ibv_sge,
    pub(super) num_sge: c_int,
    pub(super) opcode: c_int,
    pub(super) send_flags: c_uint,
    pub(super) invalidate_rkey: u32,
    pub(super) remote_addr: u64,
    pub(super) rkey: u32,
    pub(super) _rest: [u32; 19],
}

pub(super) const IBV_WR_RDMA_WRITE: c_int = 0;
pub(super) const IBV_WR_SEND: c_int = 2;
pub(super) const IBV_WR_RDMA_READ: c_int = 4;
pub(super) const IBV_WR_SEND_WITH_INV: c_int = 9;

pub(super) const IBV_SEND_SIGNALED: c_uint = 1 << 1;
pub(super) const IBV_SEND_INLINE: c_uint = 1 << 3;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct ibv_recv_wr {
    pub(super) wr_id: u64,
    pub(super) next: *mut ibv_recv_wr,
    pub(super) sg_list: *mut ibv_sge,
    pub(super) num_sge: c_int,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ibv_wc {
    pub(super) wr_id: u64,
    pub(super) status: c_int,
    pub(super) opcode: c_int,
    pub(super) vendor_err: u32,
    pub(super) byte_len: u32,
    pub(super) invalidated_rkey: u32,
    pub(super) qp_num: u32,
    pub(super) src_qp: u32,
    pub(super) wc_flags: c_uint,
    pub(super) _rest: [u32; 2],
}

pub(super) const IBV_WC_WITH_INV: c_uint = 1 << 3;

#[repr(C)]
pub(super) struct ibv_device_attr {
    pub(super) _before_vendor: [u64; 12],
    pub(super) vendor_id: c_uint,
    pub(super) _before_qp: [c_uint; 3],
    pub(super) max_qp_wr: c_int,
    pub(super) device_cap_flags: c_uint,
    pub(super) max_sge: c_int,
    pub(super) max_sge_rd: c_int,
    pub(super) max_cq: c_int,
    pub(super) max_cqe: c_int,
    pub(super) max_mr: c_int,
    pub(super) max_pd: c_int,
    pub(super) max_qp_rd_atom: c_int,
    pub(super) max_ee_rd_atom: c_int,
    pub(super) max_res_rd_atom: c_int,
    pub(super) max_qp_init_rd_atom: c_int,
    pub(super) _rest: [u32; 18],
}

#[repr(C)]
pub(super) struct ibv_async_event {
    /// A queue pair, a completion queue, or a port, as the type says.
    pub(super) element: *mut c_void,
    pub(super) event_type: c_int,
}

pub(super) const IBV_EVENT_CQ_ERR: c_int = 0;
pub(super) const IBV_EVENT_QP_FATAL: c_int = 1;
pub(super) const IBV_EVENT_QP_REQ_ERR: c_int = 2;
pub(super) const IBV_EVENT_QP_ACCESS_ERR: c_int = 3;
pub(super) const IBV_EVENT_DEVICE_FATAL: c_int = 8;

#[repr(C)]
pub(super) struct rdma_event_channel {
    pub(super) fd: c_int,
}

#[repr(C)]
pub(super) struct rdma_cm_id {
    pub(super) verbs: *mut ibv_context,
    pub(super) channel: *mut rdma_event_channel,
    pub(super) context: *mut c_void,
    pub(super) qp: *mut ibv_qp,
    pub(super) src_addr: sockaddr_storage,
    pub(super) dst_addr: sockaddr_storage,
    pub(super) _rest: [u64; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct rdma_conn_param {
    pub(super) private_data: *const c_void,
    pub(super) private_data_len: u8,
    pub(super) responder_resources: u8,
    pub(super) initiator_depth: u8,
    pub(super) flow_control: u8,
    pub(super) retry_count: u8,
    pub(super) rnr_retry_count: u8,
    pub(super) srq: u8,
    pub(super) qp_num: u32,
}

#[repr(C)]
pub(super) struct rdma_cm_event {
    pub(super) id: *mut rdma_cm_id,
    pub(super) listen_id: *mut rdma_cm_id,
    pub(super) event: c_int,
    pub(super) status: c_int,
    pub(super) conn: rdma_conn_param,
    pub(super) _rest: [u64; 4],
}

pub(super) const RDMA_CM_EVENT_ADDR_RESOLVED: c_int = 0;
pub(super) const RDMA_CM_EVENT_ADDR_ERROR: c_int = 1;
pub(super) const RDMA_CM_EVENT_ROUTE_RESOLVED: c_int = 2;
pub(super) const RDMA_CM_EVENT_ROUTE_ERROR: c_int = 3;
pub(super) const RDMA_CM_EVENT_CONNECT_REQUEST: c_int = 4;
pub(super) const RDMA_CM_EVENT_CONNECT_ERROR: c_int = 6;
pub(super) const RDMA_CM_EVENT_UNREACHABLE: c_int = 7;
pub(super) const RDMA_CM_EVENT_REJECTED: c_int = 8;
pub(super) const RDMA_CM_EVENT_ESTABLISHED: c_int = 9;
pub(super) const RDMA_CM_EVENT_DISCONNECTED: c_int = 10;
pub(super) const RDMA_CM_EVENT_DEVICE_REMOVAL: c_int = 11;

pub(super) const RDMA_PS_TCP: c_int = 0x0106;
pub(super) const RDMA_OPTION_ID: c_int = 0;
pub(super) const RDMA_OPTION_ID_REUSEADDR: c_int = 1;

/// Declares the functions of one library: the table that dlopen fills.
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident { $($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)* }) => {
        $(#[$doc])*
        pub(super) struct $table {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl $table {
            /// The names of the functions.
            pub(super) const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Looks up each function by its name.
            ///
            /// # Safety
            /// What `find` returns for a name is the function of that name and of the type that is declared here.
            #[allow(unsafe_code, reason = "a pointer becomes a function of the type that the headers give it")]
            pub(super) unsafe fn load<E>(mut find: impl FnMut(&'static str) -> Result<*mut c_void, E>) -> Result<Self,
                E> {
                Ok(Self { $(
                    $name: {
                        let symbol = find(stringify!($name))?;
                        // SAFETY: the caller vouches for the type; both are pointers, and `find` returns none that is
                        // null.
                        unsafe {
                            core::mem::transmute::<*mut c_void,
                                unsafe extern "C" fn($($argument),*) $(-> $result)?>(symbol)
                        }
                    },
                )* })
            }
        }
    };
}

functions! {
    /// Of libibverbs.
    Ibverbs {
        ibv_query_device: fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
        ibv_alloc_pd: fn(*mut ibv_context) -> *mut ibv_pd;
        ibv_dealloc_pd: fn(*mut ibv_pd) -> c_int;
        ibv_reg_mr: fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
        ibv_dereg_mr: fn(*mut ibv_mr) -> c_int;
        ibv_create_comp_channel: fn(*mut ibv_context) -> *mut ibv_comp_channel;
        ibv_destroy_comp_channel: fn(*mut ibv_comp_channel) -> c_int;
        ibv_create_cq: fn(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
        ibv_destroy_cq: fn(*mut ibv_cq) -> c_int;
        ibv_get_cq_event: fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
        ibv_ack_cq_events: fn(*mut ibv_cq, c_uint);
        ibv_modify_qp: fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
        ibv_destroy_qp: fn(*mut ibv_qp) -> c_int;
        ibv_get_async_event: fn(*mut ibv_context, *mut ibv_async_event) -> c_int;
        ibv_ack_async_event: fn(*mut ibv_async_event);
    }
}

functions! {
    /// Of librdmacm.
    Rdmacm {
        rdma_create_event_channel: fn() -> *mut rdma_event_channel;
        rdma_destroy_event_channel: fn(*mut rdma_event_channel);
        rdma_create_id: fn(*mut rdma_event_channel, *mut *mut rdma_cm_id, *mut c_void, c_int) -> c_int;
        rdma_destroy_id: fn(*mut rdma_cm_id) -> c_int;
        rdma_set_option: fn(*mut rdma_cm_id, c_int, c_int, *mut c_void, usize) -> c_int;
        rdma_bind_addr: fn(*mut rdma_cm_id, *mut sockaddr) -> c_int;
        rdma_listen: fn(*mut rdma_cm_id, c_int) -> c_int;
        rdma_resolve_addr: fn(*mut rdma_cm_id, *mut sockaddr, *mut sockaddr, c_int) -> c_int;
        rdma_resolve_route: fn(*mut rdma_cm_id, c_int) -> c_int;
        rdma_create_qp: fn(*mut rdma_cm_id, *mut ibv_pd, *mut ibv_qp_init_attr) -> c_int;
        rdma_connect: fn(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
        rdma_accept: fn(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
        rdma_reject: fn(*mut rdma_cm_id, *const c_void, u8) -> c_int;
        rdma_disconnect: fn(*mut rdma_cm_id) -> c_int;
        rdma_migrate_id: fn(*mut rdma_cm_id, *mut rdma_event_channel) -> c_int;
        rdma_get_cm_event: fn(*mut rdma_event_channel, *mut *mut rdma_cm_event) -> c_int;
        rdma_ack_cm_event: fn(*mut rdma_cm_event) -> c_int;
    }
}

/// The layouts that rdma-core's headers give on 64-bit machines.
#[cfg(target_pointer_width = "64")]
const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<ibv_device>() == 664 && offset_of!(ibv_device, name) == 24);
    assert!(size_of::<ibv_context_ops>() == 256);
    assert!(offset_of!(ibv_context_ops, poll_cq) == 88 && offset_of!(ibv_context_ops, req_notify_cq) == 96);
    assert!(offset_of!(ibv_context_ops, post_send) == 200 && offset_of!(ibv_context_ops, post_recv) == 208);
    assert!(offset_of!(ibv_context, ops) == 8 && offset_of!(ibv_context, async_fd) == 268);
    assert!(size_of::<ibv_pd>() == 16 && size_of::<ibv_comp_channel>() == 16);
    assert!(size_of::<ibv_mr>() == 48 && offset_of!(ibv_mr, lkey) == 36 && offset_of!(ibv_mr, rkey) == 40);
    assert!(offset_of!(ibv_cq, cqe) == 28 && offset_of!(ibv_qp, send_cq) == 24 && offset_of!(ibv_qp, qp_num) == 52);
    assert!(size_of::<ibv_qp_cap>() == 20 && size_of::<ibv_qp_init_attr>() == 64);
    assert!(offset_of!(ibv_qp_init_attr, cap) == 32 && offset_of!(ibv_qp_init_attr, qp_type) == 52);
    assert!(size_of::<ibv_qp_attr>() == 144 && size_of::<ibv_sge>() == 16);
    assert!(size_of::<ibv_send_wr>() == 128 && offset_of!(ibv_send_wr, send_flags) == 32);
    assert!(offset_of!(ibv_send_wr, invalidate_rkey) == 36 && offset_of!(ibv_send_wr, rkey) == 48);
    assert!(size_of::<ibv_recv_wr>() == 32 && offset_of!(ibv_recv_wr, num_sge) == 24);
    assert!(size_of::<ibv_wc>() == 48 && offset_of!(ibv_wc, invalidated_rkey) == 24);
    assert!(offset_of!(ibv_wc, wc_flags) == 36);
    assert!(size_of::<ibv_device_attr>() == 232 && offset_of!(ibv_device_attr, max_qp_wr) == 112);
    assert!(offset_of!(ibv_device_attr, max_cqe) == 132 && offset_of!(ibv_device_attr, max_qp_init_rd_atom) == 156);
    assert!(size_of::<ibv_async_event>() == 16 && offset_of!(ibv_async_event, event_type) == 8);
    assert!(size_of::<rdma_cm_id>() == 416 && offset_of!(rdma_cm_id, src_addr) == 32);
    assert!(offset_of!(rdma_cm_id, dst_addr) == 160);
    assert!(size_of::<rdma_conn_param>() == 24 && offset_of!(rdma_conn_param, qp_num) == 16);
    assert!(size_of::<rdma_cm_event>() == 80 && offset_of!(rdma_cm_event, conn) == 24);
};
