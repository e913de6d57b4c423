//! A generic iSCSI target to embed: portals, target nodes, sessions, task sets, the SCSI device server, and the stores
//! behind it.
//!
//! The core does no I/O: a connection takes bytes, store completions and time, and gives bytes and store requests. The
//! features connect it to the world: `std` adds the stores that need an operating system, `tokio` adds the server.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod device_server;
pub mod lu;
pub mod node;
pub mod registry;
#[cfg(feature = "tokio")]
pub mod server;
pub mod session;
pub mod stats;
pub mod task;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
