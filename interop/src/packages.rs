//! The programs of other people that the tests need, and the Debian packages they come from.
//!
//! `cargo xtask setup` installs from this table and the tests look programs up through it, so a
//! program cannot be used by a test and forgotten by the setup.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Context, Failure, Result};

/// How the presence of a package's content is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// A program in `PATH` or one of the system directories.
    Program(&'static str),
    /// A file below one of the library directories, named relative to them.
    Library(&'static str),
    /// The package manager says that the package is installed.
    Installed,
}

/// A Debian package and what the tests take from it.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    /// The package's name.
    pub name: &'static str,
    /// What must be there.
    pub probes: &'static [Probe],
    /// On Debian 12 it must come from backports: QEMU and its parts, all of one version.
    pub backports: bool,
    /// What it is for.
    pub purpose: &'static str,
}

use Probe::{Installed, Library, Program};

const fn package(name: &'static str, probes: &'static [Probe], purpose: &'static str) -> Package {
    Package { name, probes, backports: false, purpose }
}

const fn qemu(name: &'static str, probes: &'static [Probe], purpose: &'static str) -> Package {
    Package { name, probes, backports: true, purpose }
}

/// Every package, in the order of installation.
pub const PACKAGES: &[Package] = &[
    package("gcc", &[Program("cc")], "links Rust programs"),
    package("g++", &[Program("c++")], "builds libFuzzer"),
    qemu("qemu-system-x86", &[Program("qemu-system-x86_64")], "the virtual machine"),
    qemu("qemu-utils", &[Program("qemu-img"), Program("qemu-io")], "QEMU's disk tools"),
    qemu("qemu-block-extra", &[Library("qemu/block-iscsi.so")], "QEMU's iSCSI driver"),
    package("busybox-static", &[Program("busybox"), Installed], "the virtual machine's first steps"),
    package("kmod", &[Program("modprobe"), Program("depmod")], "the virtual machine's kernel modules"),
    package("make", &[Program("make")], "compiling the kernel's soft-iWARP for the virtual machine"),
    package("binutils", &[Program("strip")], "compiling the kernel's soft-iWARP for the virtual machine"),
    package("xz-utils", &[Program("xz")], "unpacking the kernel's source"),
    package("libibverbs1", &[Library("libibverbs.so.1")], "RDMA from user space"),
    package("librdmacm1", &[Library("librdmacm.so.1")], "RDMA connections from user space"),
    package("ibverbs-providers", &[Installed], "drivers for soft-RoCE and soft-iWARP in user space"),
    package("rdma-core", &[Installed], "configuration of the RDMA libraries"),
    package(
        "iproute2",
        &[Program("ip"), Program("ss"), Program("rdma")],
        "addresses, RDMA links, cutting a connection",
    ),
    package("nftables", &[Program("nft")], "silencing a connection"),
    package("procps", &[Program("pgrep")], "looking for what a job left behind"),
    package(
        "libiscsi-bin",
        &[
            Program("iscsi-ls"),
            Program("iscsi-inq"),
            Program("iscsi-readcapacity16"),
            Program("iscsi-perf"),
            Program("iscsi-test-cu"),
        ],
        "libiscsi's tools and its conformance suite",
    ),
    package("tgt", &[Program("tgtd"), Program("tgtadm")], "another target"),
    package("open-iscsi", &[Program("iscsid"), Program("iscsiadm")], "the kernel initiator's tools"),
    package("multipath-tools", &[Program("multipathd")], "the kernel's multipath, beside ours"),
    package("udev", &[Program("udevadm")], "devices that multipathd has to be told of"),
    package("mount", &[Program("losetup"), Program("mount")], "block devices for copies"),
    package("lsscsi", &[Program("lsscsi")], "listing the kernel's disks"),
    package("sg3-utils", &[Program("sg_inq")], "SCSI commands by hand"),
    package("fio", &[Program("fio")], "load with verification"),
    package("mdadm", &[Program("mdadm")], "RAID 0 over several LUNs"),
    package("dmsetup", &[Program("dmsetup")], "a linear disk over several LUNs"),
    package("e2fsprogs", &[Program("mkfs.ext4"), Program("fsck.ext4")], "a file system on a LUN"),
    package("tcpdump", &[Program("tcpdump")], "capturing loopback traffic"),
    package("tshark", &[Program("tshark")], "judging captured PDUs"),
    package("valgrind", &[Program("valgrind"), Program("callgrind_annotate")], "counting instructions"),
];

/// Directories searched after `PATH`: an ordinary user's `PATH` lacks the `sbin` ones.
const SYSTEM_DIRECTORIES: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];

/// Directories that hold multi-arch libraries and plug-ins.
const LIBRARY_DIRECTORIES: [&str; 3] = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"];

impl Package {
    /// Whether everything the tests take from the package is there.
    pub fn is_present(&self) -> bool {
        self.missing().is_none()
    }

    /// The first thing of this package that is not there, in words.
    pub fn missing(&self) -> Option<String> {
        self.probes.iter().find_map(|probe| match probe {
            Program(name) => find_program(name).is_none().then(|| format!("the program {name}")),
            Library(name) => find_library(name).is_none().then(|| format!("the file {name}")),
            Installed => (!is_installed(self.name)).then(|| format!("the package {}", self.name)),
        })
    }
}

/// The path of a program.
///
/// # Errors
/// When the program is missing: a sentence that names the package that brings it, and the command
/// that installs it.
pub fn program(name: &str) -> Result<PathBuf> {
    find_program(name).ok_or_else(|| absent(&format!("the program {name}"), &Program("").package_of(name)))
}

/// The path of a plug-in or library file, named relative to the library directories.
///
/// # Errors
/// As for [`program`].
pub fn library(name: &str) -> Result<PathBuf> {
    find_library(name).ok_or_else(|| absent(&format!("the file {name}"), &Library("").package_of(name)))
}

/// A command that runs the named program.
///
/// # Errors
/// As for [`program`].
pub fn command(name: &str) -> Result<Command> {
    Ok(Command::new(program(name)?))
}

impl Probe {
    /// The package whose table row has `name` under a probe of this kind.
    fn package_of(&self, name: &str) -> Option<&'static Package> {
        PACKAGES.iter().find(|package| {
            package.probes.iter().any(|probe| match (self, probe) {
                (Program(_), Program(it)) | (Library(_), Library(it)) => *it == name,
                _ => false,
            })
        })
    }
}

fn absent(what: &str, package: &Option<&'static Package>) -> Failure {
    Failure::new(match package {
        Some(package) => format!(
            "{what} is missing, it comes with the Debian package {}: run `cargo xtask setup` (or `apt-get install {}`)",
            package.name, package.name
        ),
        None => format!("{what} is missing: install it, and name its package in interop/src/packages.rs"),
    })
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

fn find_library(name: &str) -> Option<PathBuf> {
    LIBRARY_DIRECTORIES.iter().map(|directory| Path::new(directory).join(name)).find(|candidate| candidate.exists())
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Abbrev}", package])
        .output()
        .context("dpkg-query")
        .is_ok_and(|output| output.stdout.starts_with(b"ii"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package_and_the_command_that_installs_it() {
        let sentence = absent("the program iscsi-ls", &Program("").package_of("iscsi-ls")).to_string();
        assert!(sentence.contains("libiscsi-bin"), "{sentence}");
        assert!(sentence.contains("cargo xtask setup"), "{sentence}");
    }

    #[test]
    fn a_program_outside_the_table_is_told_apart() {
        let sentence = program("no-such-program-anywhere").unwrap_err().to_string();
        assert!(sentence.contains("packages.rs"), "{sentence}");
    }

    #[test]
    fn no_program_stands_in_two_packages() {
        let mut names: Vec<_> = PACKAGES
            .iter()
            .flat_map(|package| package.probes)
            .filter_map(|probe| match probe {
                Program(name) | Library(name) => Some(*name),
                Installed => None,
            })
            .collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
