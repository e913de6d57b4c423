//! iSER on the user-space iWARP provider, between processes on this machine: no RDMA device, no kernel module, no root.

use std::time::Duration;

use interop::Result;
use interop::process::{Finished, run};
use interop::programs::{Ramdisk, iscsi};
use interop::wire::Capture;

const LIMIT: Duration = Duration::from_secs(120);

fn ours(arguments: &[&str]) -> Result<Finished> {
    run(&iscsi(arguments)?, LIMIT)?.success()
}

#[test]
fn tshark_finds_nothing_wrong_in_user_space_iwarp() -> Result<()> {
    let ramdisk = Ramdisk::serve_iser(["--target", Ramdisk::TARGET, "--lun", "64M"])?;
    let capture = Capture::start(ramdisk.port())?;
    let url = ramdisk.iser_url(0);
    ours(&["info", &url])?.prints(&["iwarp", "RDMA Read depth"])?;
    // Writes that ride in the Send, and writes that are fetched.
    ours(&["verify", &url, "--size", "1M", "--bs", "4K"])?;
    ours(&["verify", &url, "--size", "4M", "--bs", "256K", "--iodepth", "4"])?;
    let verdict = capture.judge_iwarp()?.sound()?;
    // RDMA Write, Read Request, Read Response and Send were among what it judged, and nothing was terminated.
    for opcode in [0, 1, 2, 3] {
        assert!(verdict.opcodes.contains_key(&opcode), "no RDMAP opcode {opcode}: {:?}", verdict.opcodes);
    }
    assert!(!verdict.opcodes.contains_key(&7), "a Terminate was sent: {:?}", verdict.opcodes);
    ramdisk.stop()?;
    Ok(())
}

/// One portal, one port, both transports, at the same time.
#[test]
fn one_port_takes_plain_iscsi_and_iser() -> Result<()> {
    let ramdisk = Ramdisk::serve_iser(["--target", Ramdisk::TARGET, "--lun", "64M"])?;
    ours(&["verify", &ramdisk.iser_url(0), "--size", "16M", "--seed", "3"])?;
    ours(&["verify", &ramdisk.url(0), "--size", "16M", "--seed", "3", "--check-only"])?;
    ours(&["verify", &ramdisk.url(0), "--size", "16M", "--seed", "4"])?;
    ours(&["verify", &ramdisk.iser_url(0), "--size", "16M", "--seed", "4", "--check-only"])?;
    ramdisk.stop()?;
    Ok(())
}
