//! A virtual machine with a current Debian kernel: the Linux initiator, and LIO as a target.
//!
//! The machine at hand may have no iSCSI in its kernel and may not let us load modules, so the kernel
//! under test is booted by QEMU, in software emulation (no KVM needed; some 10 to 20 times slower than
//! the host, so it judges correctness, never speed). The guest has no disk image: it mounts the host's
//! `/` read-only over 9p, under a tmpfs overlay. Every program that is installed or built on the host
//! runs in it, and what it writes is gone when it powers off.
//!
//! A *job* is a bash script from `interop/jobs`. The host hands it over in a *run directory*, which
//! the guest mounts read-write as `/interop`; the job's output comes back as a file there. [`Guest::made`]
//! makes the guest once (kernel, modules, initrd) below `target/vm`, [`Guest::run`] boots it, runs one
//! job and powers off. A boot takes about ten seconds, so a job does many checks. A job that needs the
//! kernel's soft-iWARP says so in a line of its own, `# needs: siw`, and finds the module's path in `SIW`.

mod boot;
mod image;
mod soft_iwarp;

use std::path::PathBuf;

pub use boot::{Job, Report};

use crate::programs;

/// A guest that is made and can be booted.
#[derive(Debug, Clone)]
pub struct Guest {
    directory: PathBuf,
    kernel: PathBuf,
    modules: PathBuf,
    release: String,
    initrd: PathBuf,
}

/// Where the guest and its runs are: the environment variable `INTEROP_VM_DIR`, or `target/vm` of the checkout.
pub fn directory() -> PathBuf {
    std::env::var_os("INTEROP_VM_DIR").map_or_else(|| programs::checkout().join("target/vm"), PathBuf::from)
}
