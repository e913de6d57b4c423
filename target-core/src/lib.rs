//! A generic iSCSI target to embed: portals, target nodes, sessions, task sets, the SCSI device server, and the stores behind it.
//!
//! The core does no I/O: a connection takes bytes, store completions and time, and gives bytes and store requests. The features connect it to the world:
//! `std` adds the stores that need an operating system, `tokio` adds the server.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod device_server;
#[allow(dead_code, reason = "the registry and the logical units come to use it")]
mod lock;
pub mod lu;
#[allow(dead_code, reason = "logins come to use it")]
pub mod node;
#[allow(dead_code, reason = "the session comes to use it")]
pub mod stats;
pub mod store;
pub mod task;
