//! Memory that is shared with the kernel and with devices.
//!
//! This crate is the one room of the house that holds `unsafe` for plain TCP: everything above it (`iscsi-proto`, the
//! target, the initiator) forbids unsafe code and handles payload only through these types.
//!
//! - [`Buf`] is an exclusive, page-aligned buffer that moves between layers; [`BufPool`] recycles buffers, so that no
//!   I/O allocates in steady state. [`WorkerPool`] is one that the sessions of a worker share, within the
//!   [`BufferBudget`] of all.
//! - [`Region`] is a store's own memory, lent to the wire: a TCP Data-In is a `writev` slice of it, an RDMA Write
//!   leaves straight from it. [`RegionSlice`] is a part of a region that keeps it alive.
//! - [`Payload`] is either of the two, owned. [`Lease`] is a part of one that moves into a work request of RDMA and
//!   comes back in its completion.
//! - [`Registration`]s are how RDMA devices come to reach memory: they are attached to the memory, bounded by a
//!   [`RegistrationBudget`], and end before the memory does. [`Advertised`] is memory that a peer may reach.
//! - [`SendList`], [`ReceiveWindow`] and, with the feature `std`, [`socket`] do vectored I/O over both kinds without
//!   copying.
//! - [`Lock`] is for what threads share, with and without `std`.
//! - `turns` (feature `simulated-threads`) is for simulators that say which of several threads goes on.
//! - `CountingAllocator` (feature `counting-allocator`) is for tests that assert that a path allocates nothing.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
mod advertised;
mod blocks;
mod budget;
mod buf;
#[cfg(feature = "std")]
mod chunks;
#[cfg(feature = "counting-allocator")]
mod counting;
#[cfg(feature = "std")]
mod heap;
mod lease;
mod lock;
mod payload;
#[cfg(feature = "std")]
mod pinned;
mod region;
mod registration;
mod session_buffers;
mod slice;
mod vectored;

#[cfg(feature = "std")]
pub mod socket;
#[cfg(feature = "simulated-threads")]
pub mod turns;

#[cfg(feature = "std")]
pub use advertised::Advertised;
pub use budget::{MemoryBudget, OutOfMemory};
pub use buf::{Buf, BufPool};
#[cfg(feature = "counting-allocator")]
pub use counting::CountingAllocator;
#[cfg(feature = "std")]
pub use heap::trim_heap;
pub use lease::Lease;
pub use lock::{Lock, LockGuard};
pub use payload::Payload;
pub use region::Region;
pub use registration::{
    Access, BudgetShare, DevicePiece, Direction, DomainId, PieceHold, RegisterFailure, Registrar, Registration,
    RegistrationBudget, WorkPiece,
};
pub use session_buffers::{BufferBudget, SessionBuffers, WorkerPool};
pub use slice::{Landing, RegionSlice};
pub use vectored::{BlocksPlace, HeldBytes, ReceiveSlice, ReceiveWindow, SendList, SendSlice};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
