//! Queue pairs of RDMA devices: cards, and the kernel's soft RoCE and soft iWARP.
//!
//! Connections are made by librdmacm, work is done by libibverbs; both are loaded when [`Verbs::open`] asks for them,
//! so that one binary runs with and without RDMA. From the bottom up:
//!
//! | module | |
//! |---|---|
//! | `abi`, `library` | the C structures and functions |
//! | `device`, `device_events` | protection domains and registrations; what a device says of itself |
//! | `connection` | the connection manager |
//! | `endpoint` | a queue pair with all that belongs to it, as a `port` |
//! | `state`, `jobs`, `status` | the logic of a queue pair, over any port |
//! | `queue`, `listener`, `events` | what users see |
//! | `driver` (feature `tokio`) | the one driver of connections over queue pairs |
//! | `simulated` (feature `simulated-device`) | queue pairs over devices in this process, moved step by step |
//!
//! # Memory
//!
//! A buffer or region is registered with the connection's protection domain when it is first used, and stays so: see
//! [`iscsi_memory::Registration`]. All of it counts in one budget ([`VerbsConfig::budget`]). What the budget or the
//! kernel does not let be registered is copied through buffers that each connection has registered beforehand;
//! [`QueuePair::copied`](crate::queue::QueuePair::copied) counts that. Registering takes a device long: one piece of
//! memory, of a few MiB at most, is registered before the driver lets others have their turn, and what else is needed
//! meanwhile is copied.
//!
//! Connections that are accepted share one domain for each device, which stays for the next ones: what is registered is
//! kept over logouts. A connection that is made has its own domain, which ends with it, since it advertises memory,
//! which is for its peer alone. What is advertised is registered for that one purpose, with the bounds and the
//! direction that were asked for, until it is withdrawn. Memory registered by a program cannot be invalidated from
//! afar, so peers are told not to try.

mod abi;
mod config;
mod connection;
mod device;
mod device_events;
#[cfg(feature = "tokio")]
mod driver;
mod endpoint;
mod error;
mod events;
#[cfg(test)]
mod fake;
#[cfg(any(test, feature = "hostile-device", feature = "simulated-device"))]
mod fake_domain;
#[cfg(any(test, feature = "hostile-device"))]
mod hostile;
mod jobs;
mod library;
#[cfg(feature = "ibverbs")]
mod linked;
mod listener;
mod port;
mod queue;
#[cfg(any(test, feature = "simulated-device"))]
pub mod simulated;
mod state;
#[cfg(test)]
mod state_tests;
mod status;

pub use config::VerbsConfig;
pub use device::DeviceInfo;
#[cfg(feature = "tokio")]
pub use driver::{VerbsAcceptor, drive_queue};
pub use error::VerbsError;
pub use events::VerbsEvents;
#[cfg(any(test, feature = "hostile-device"))]
pub use hostile::hostile_device;
pub use library::LibraryError;
pub use listener::{Connecting, Verbs, VerbsListener};
pub use queue::VerbsQueue;
