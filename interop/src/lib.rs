//! The judges that other people wrote, and the means to put our programs before them.
//!
//! A protocol stack that is only tested against itself agrees with itself. This crate starts the
//! workspace's own programs (`ramdisk`, `iscsi`), starts other people's (libiscsi's tools, QEMU,
//! tgt, tshark), and boots a virtual machine whose Linux kernel brings an initiator (open-iscsi) and
//! a target (LIO) that the machine at hand may lack. The tests proper are in `tests/`; what the
//! virtual machine is told to do is in `jobs/`.
//!
//! - [`packages`]: which program comes from which Debian package. A missing program is a failure that
//!   names the package, never a skipped test.
//! - [`process`]: child processes that cannot outlive their test.
//! - [`programs`]: the workspace's own programs, built once.
//! - [`cutter`]: a relay between two programs that cuts their connections.
//! - [`tgt`]: the user-space target tgt, as another target for our initiator.
//! - [`vm`]: the virtual machine.
//! - [`suite`]: libiscsi's conformance suite, one test a process, held against an expectation list.
//! - [`wire`]: tshark's dissector as a second opinion on every PDU that passes.
//!
//! It is a test crate: Linux only, std, unpublished, and its errors are sentences ([`Failure`]).

pub mod cutter;
pub mod failure;
pub mod packages;
pub mod process;
pub mod programs;
pub mod suite;
pub mod tgt;
pub mod vm;
pub mod wire;

pub use failure::{Context, Failure, Result};
