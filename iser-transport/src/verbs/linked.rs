//! libibverbs as the crate `ibverbs-sys` links it, and a comparison of our layouts with those that bindgen finds in the
//! headers.
#![allow(unsafe_code, reason = "functions of a library that is linked")]

use core::convert::Infallible;
use core::ffi::c_void;
use core::mem::{offset_of, size_of};

use ibverbs_sys as sys;

use super::abi::{self, Ibverbs};

/// Sizes, and the offsets of fields, of both sides.
macro_rules! same {
    ($($name:ident { $($field:ident),* })*) => { $(
        const _: () = {
            assert!(size_of::<abi::$name>() == size_of::<sys::$name>());
            $(assert!(offset_of!(abi::$name, $field) == offset_of!(sys::$name, $field));)*
        };
    )* };
}

/// Offsets alone: of these we know the first fields only.
macro_rules! begin_alike {
    ($($name:ident { $($field:ident),* })*) => { $(
        const _: () = {
            assert!(size_of::<abi::$name>() <= size_of::<sys::$name>());
            $(assert!(offset_of!(abi::$name, $field) == offset_of!(sys::$name, $field));)*
        };
    )* };
}

same! {
    ibv_device { node_type, transport_type, name }
    ibv_context_ops { poll_cq, req_notify_cq, post_send, post_recv }
    ibv_pd { context, handle }
    ibv_mr { context, pd, addr, length, handle, lkey, rkey }
    ibv_comp_channel { context, fd, refcnt }
    ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
    ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
    ibv_qp_attr { qp_state }
    ibv_sge { addr, length, lkey }
    ibv_send_wr { wr_id, next, sg_list, num_sge, opcode, send_flags }
    ibv_recv_wr { wr_id, next, sg_list, num_sge }
    ibv_wc { qp_num, src_qp, wc_flags }
    ibv_device_attr {
        vendor_id, max_qp_wr, device_cap_flags, max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom,
            max_ee_rd_atom,
        max_res_rd_atom, max_qp_init_rd_atom
    }
    ibv_async_event { element, event_type }
}

begin_alike! {
    ibv_context { device, ops, cmd_fd, async_fd }
    ibv_cq { context, channel, cq_context, handle, cqe }
    ibv_qp { context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num }
}

/// The functions.
pub(super) fn functions() -> Ibverbs {
    macro_rules! find {
        ($name:expr; $($function:ident)*) => {
            match $name {
                $(stringify!($function) => sys::$function as *mut c_void,)*
                other => unreachable!("{other} is not among the functions of libibverbs"),
            }
        };
    }
    // SAFETY: the functions are those of the headers, which `abi` repeats.
    let loaded = unsafe {
        Ibverbs::load::<Infallible>(|name| {
            Ok(find!(name; ibv_query_device ibv_alloc_pd ibv_dealloc_pd ibv_reg_mr ibv_dereg_mr ibv_create_comp_channel
                ibv_destroy_comp_channel ibv_create_cq ibv_destroy_cq ibv_get_cq_event ibv_ack_cq_events ibv_modify_qp
                ibv_destroy_qp ibv_get_async_event ibv_ack_async_event))
        })
    };
    match loaded {
        Ok(functions) => functions,
        Err(never) => match never {},
    }
}
