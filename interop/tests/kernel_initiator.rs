//! The Linux kernel's open-iscsi, in the virtual machine, against `ramdisk serve`.

use std::time::Duration;

use interop::Result;
use interop::vm::{Guest, Job, Report};

/// What `jobs/attach.sh` checks in every mode.
const ATTACH: &[&str] = &[
    "serve",
    "discovery",
    "login",
    "four disks",
    "kernel log: direct access",
    "kernel log: size",
    "kernel log: write protect off",
    "kernel log: caches",
    "kernel log: attached",
    "session: target",
    "session: portal",
    "session: transport",
    "session: initiator",
    "session: logged in",
    "session: disks",
    "ext4 made",
    "ext4 mounted",
    "ext4 filled",
    "ext4 checked",
    "ext4 unchanged",
    "fstrim",
    "fio randrw verify",
    "RAID 0 over four LUNs",
    "RAID 0 verified",
    "RAID 0 stopped",
    "RAID 0 comes back",
    "dm-linear over four LUNs",
    "dm-linear size",
    "dm-linear across the seams",
    "dm-linear removed",
    "logout",
    "no disk left",
    "no error in the kernel log",
    "target ends at Ctrl-C",
];

fn attach(mode: &str, more: &[&str]) -> Result<Report> {
    let job = Job::named("attach.sh").with("MODE", mode).with_programs()?.limit(Duration::from_secs(400));
    Guest::made()?.run(&job)?.passed(&[ATTACH, more].concat())
}

#[test]
fn attaches_and_uses_four_disks() -> Result<()> {
    attach("plain", &["session: negotiated"]).map(drop)
}

#[test]
fn attaches_with_chap_both_ways() -> Result<()> {
    let checks = [
        "discovery without a secret is refused",
        "a wrong secret is refused",
        "a target with a wrong secret is refused",
        "session: CHAP both ways",
    ];
    attach("chap", &checks).map(drop)
}

#[test]
fn attaches_with_header_and_data_digests() -> Result<()> {
    let report = attach("digests", &["session: digests", "capture kept"])?;
    let wire = interop::wire::judge(&report.directory.join("wire.pcap"), 3260)?.sound()?;
    assert!(wire.good_digests > 100, "tshark checked {} digests only", wire.good_digests);
    // Data-Out, Data-In and R2T were among what it judged.
    for opcode in [0x05, 0x25, 0x31] {
        assert!(wire.opcodes.contains_key(&opcode), "no PDU with opcode {opcode:#04x}: {:?}", wire.opcodes);
    }
    Ok(())
}

#[test]
fn a_cut_connection_loses_no_acknowledged_write() -> Result<()> {
    let job = Job::named("cut.sh").with_programs()?.limit(Duration::from_secs(400));
    let report = Guest::made()?.run(&job)?.passed(&[
        "login",
        "writes flow",
        "reset 1: I/O resumes",
        "reset 2: I/O resumes",
        "reset 3: I/O resumes",
        "resets were noticed",
        "silence begins",
        "silence stops the writes",
        "silence ends",
        "silence: I/O resumes",
        "session is back",
        "every acknowledged write is there",
        "no I/O error reached the disk",
        "logout",
        "target ends at Ctrl-C",
    ])?;
    report.output.lines().filter(|line| line.starts_with("note:")).for_each(|line| println!("{line}"));
    Ok(())
}

/// `iscsi copy` between the kernel's block devices and LUNs.
#[test]
fn block_devices_are_copied_to_and_from() -> Result<()> {
    let checks = [
        "a device onto a disk",
        "the device has all of it",
        "that one has it, too",
        "and behind it what it had",
        "which has all of it",
        "a pipe onto a device",
        "a device onto a pipe",
        "a device onto a file",
        "a device that is too small: nothing is written",
        "a device onto itself: nothing is written",
        "a device onto itself by another name: nothing is written",
        "a mounted device: nothing is written",
        "a device that can only be read: nothing is written",
        "the target has it",
        "the kernel's disk onto a file",
        "no I/O error reached a device",
        "target ends at Ctrl-C",
    ];
    let job = Job::named("devices.sh").with_programs()?.limit(Duration::from_secs(400));
    Guest::made()?.run(&job)?.passed(&checks).map(drop)
}
