//! Two queue pairs that are connected within one process: for tests and the simulator, hostile by seed.
//!
//! Nothing moves by itself. Whoever tests calls [`Fabric::step`], and each step does one of the things that may happen
//! next, chosen by the seed: a connection stands, a work request starts, a piece of data arrives, a completion shows.
//! So everything that the [contract](crate::queue) leaves open comes out differently from seed to seed: how receives
//! and other completions mix, how long each takes, when a Write is done against when its data arrive. On top of that
//! come [`Faults`], each with its chance. The same calls with the same seed give the same run.
//!
//! STags and offsets are random, offsets anywhere in 64 bits. Every access is checked against rule 7 of the contract,
//! and what breaks it ends the connection without a byte touched.
//!
//! As an instrument of tests it also judges its user: it panics when more is posted than the limits allow, or a
//! transfer is longer.
//!
//! ```
//! use iscsi_memory::{Buf, Lease, Payload};
//! use iser_transport::loopback::{LoopbackConfig, pair};
//! use iser_transport::queue::{Completion, QueuePair, Work};
//!
//! let (mut initiator, mut target, fabric) = pair(LoopbackConfig::default(), 7);
//! target.post_receive(Buf::zeroed(128));
//! target.ring();
//! initiator.post(Work::Send { id: 1, message: Lease::whole(Payload::Buf(Buf::zeroed(76))), invalidate: None });
//! initiator.ring();
//! fabric.run();
//! assert!(matches!(target.poll(), Some(Completion::Established(_))));
//! assert!(matches!(target.poll(), Some(Completion::Received { len: 76, .. })));
//! ```

mod config;
mod deliver;
mod fabric;
mod queue;
mod state;

#[cfg(test)]
mod tests;

pub use config::{End, EndConfig, Faults, LoopbackConfig, NoReceive};
pub use fabric::{Fabric, Step, pair};
pub use queue::LoopbackQueue;
