//! The iSCSI protocol without I/O: bytes, completions and time go in, work comes out.
//!
//! The crate holds what both roles share: the PDU codecs ([`pdu`]), the text grammar and the negotiation of its keys,
//! the login machines, CHAP, names, serial-number arithmetic, the [`datamover`] seam of RFC 5047 and the TCP mover
//! behind it. SCSI, which travels in the PDUs, is in the crate `scsi-proto`. It opens no socket, reads no clock and
//! starts no thread; it builds without `std`.
//!
//! # The driving contract
//!
//! Every sans-IO machine of this project keeps these rules, and every driver (tokio, simulator, fuzzer) relies on them:
//!
//! 1. Inputs are `handle_*`, outputs are `poll_*` (or a list that the driver fills a socket from), ownership is handed
//!    over by `take_*`/`give_*`.
//! 2. Time is an argument ([`time::Instant`]), randomness is a seed or bytes given by the caller. Two runs with equal
//!    inputs give equal outputs.
//! 3. After any input, every output is drained before the next input.
//! 4. `poll_timeout` is never in the past once the outputs are drained.
//! 5. Every accepted request completes exactly once, also when it is aborted and when the connection ends.
//! 6. No input from a peer panics, and none makes memory grow beyond the configured limits.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used))]

extern crate alloc;

pub mod chap;
pub mod connection;
pub mod datamover;
pub mod digest;
pub mod isid;
pub mod keys;
pub mod login;
pub mod misbehavior;
pub mod name;
pub mod parameters;
pub mod pdu;
pub mod serial;
pub mod tcp;
pub mod text;
pub mod time;
pub mod unexpected;
pub mod unsolicited;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
