//! iSCSI Extensions for RDMA (RFC 7145): the iSER mover and the RDMA providers that carry it.
//!
//! The mover stands behind the very same [`Datamover`](iscsi_proto::datamover::Datamover) as the TCP mover does, for
//! both roles: nothing above the seam asks which one it has. It speaks to RDMA through one trait, [`queue::QueuePair`].
//!
//! | provider | what it is |
//! |---|---|
//! | `loopback` | in process, for tests and the simulator, with faults by seed |
//! | `iwarp` | MPA, DDP and RDMAP over an ordinary TCP socket, in user space: a sans-IO byte-stream machine |
//! | `verbs` | rdma_cm and ibverbs, loaded when they are needed |
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod header;
pub mod iwarp;
pub mod loopback;
pub mod mover;
pub mod queue;
mod random;
#[cfg(all(feature = "verbs", target_os = "linux"))]
pub mod verbs;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
