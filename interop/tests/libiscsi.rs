//! libiscsi's tools against `ramdisk serve`: an initiator library that shares no code with ours and
//! that QEMU, VLC and backup programs build on.

use std::time::Duration;

use interop::process::{Finished, run};
use interop::programs::Ramdisk;
use interop::suite::Suite;
use interop::wire::Capture;
use interop::{Context, Result, packages, programs};

const LIMIT: Duration = Duration::from_secs(60);

fn tool(name: &str, arguments: &[&str]) -> Result<Finished> {
    let mut command = packages::command(name)?;
    command.args(arguments);
    run(&command, LIMIT)
}

#[test]
fn iscsi_ls_shows_every_target_and_lun() -> Result<()> {
    let second = "iqn.2026-01.org.example:second";
    let ramdisk = Ramdisk::serve([
        "--target",
        Ramdisk::TARGET,
        "--lun",
        "64M",
        "--lun",
        "1G",
        "--target",
        second,
        "--lun",
        "128M",
    ])?;
    let listed = tool("iscsi-ls", &["-s", &format!("iscsi://{}", ramdisk.portal())])?.success()?;
    let portal = format!("Portal:{},1", ramdisk.portal());
    let listed = listed.prints(&[
        &format!("Target:{} {portal}", Ramdisk::TARGET),
        &format!("Target:{second} {portal}"),
        "Lun:0    Type:DIRECT_ACCESS",
        "Lun:1    Type:DIRECT_ACCESS",
    ])?;
    assert_eq!(listed.output.matches("Type:DIRECT_ACCESS").count(), 3, "{}", listed.output);
    ramdisk.stop()?;
    Ok(())
}

#[test]
fn iscsi_inq_reads_every_vital_product_data_page() -> Result<()> {
    let ramdisk = Ramdisk::serve_one("64M")?;
    let url = ramdisk.url(0);
    tool("iscsi-inq", &[&url])?.success()?.prints(&["Peripheral Device Type:DIRECT_ACCESS", "Removable:0"])?;
    let page = |code: u8, texts: &[&str]| {
        tool("iscsi-inq", &["-e", "1", "-c", &code.to_string(), &url])?.success()?.prints(texts)
    };
    // Page 00 lists the others. The tool prints the names of the pages it knows.
    page(
        0x00,
        &[
            "UNIT_SERIAL_NUMBER",
            "DEVICE_IDENTIFICATION",
            "BLOCK_LIMITS",
            "BLOCK_DEVICE_CHARACTERISTICS",
            "LOGICAL_BLOCK_PROVISIONING",
        ],
    )?;
    let serial = page(0x80, &["Unit Serial Number:["])?;
    assert!(!serial.output.contains("Number:[]"), "an empty serial number: {}", serial.output);
    page(0x83, &["DEVICE DESIGNATOR #0", "NAA"])?;
    page(0xb0, &["maximum transfer length", "maximum unmap lba count"])?;
    page(0xb1, &["Medium Rotation Rate"])?;
    page(0xb2, &["lbpu:1", "lbprz:1"])?;
    // A page that nobody has is refused, not answered with noise.
    let absent = tool("iscsi-inq", &["-e", "1", "-c", "238", &url])?;
    assert!(!absent.status.success(), "page EE was answered: {}", absent.output);
    ramdisk.stop()?;
    Ok(())
}

#[test]
fn iscsi_readcapacity16_tells_size_and_provisioning() -> Result<()> {
    let ramdisk = Ramdisk::serve_one("64M")?;
    tool("iscsi-readcapacity16", &[&ramdisk.url(0)])?.success()?.prints(&[
        "RETURNED LOGICAL BLOCK ADDRESS:131071",
        "LOGICAL BLOCK LENGTH IN BYTES:512",
        "LBPME:1 LBPRZ:1",
        "Total size:67108864",
    ])?;
    ramdisk.stop()?;
    Ok(())
}

#[test]
fn iscsi_perf_reads_sequentially_and_at_random() -> Result<()> {
    let ramdisk = Ramdisk::serve_one("256M")?;
    let url = ramdisk.url(0);
    for arguments in [&["-t", "3", "-m", "64", "-b", "1"][..], &["-t", "3", "-m", "32", "-b", "128", "-r"]] {
        let finished = tool("iscsi-perf", &[arguments, &[&url]].concat())?.success()?;
        let finished = finished.prints(&["iops average", "finished."])?;
        let average = finished.output.rsplit("iops average ").next().unwrap_or_default();
        let average: u64 = average.split(' ').next().unwrap_or_default().parse().context(&finished.output)?;
        assert!(average > 0, "{}", finished.output);
    }
    ramdisk.stop()?;
    Ok(())
}

#[test]
fn chap_lets_the_right_secret_in_and_no_other() -> Result<()> {
    let ramdisk = Ramdisk::serve(["--target", Ramdisk::TARGET, "--lun", "64M", "--chap", "alice:alice-secret-1234"])?;
    tool("iscsi-inq", &[&ramdisk.url_as("alice", "alice-secret-1234", 0)])?.success()?;
    let portal = ramdisk.portal();
    tool("iscsi-ls", &[&format!("iscsi://alice%alice-secret-1234@{portal}")])?.success()?.prints(&[Ramdisk::TARGET])?;
    let listed = tool("iscsi-ls", &[&format!("iscsi://{portal}")])?;
    assert!(!listed.status.success(), "discovery without an account: {}", listed.output);
    for url in
        [ramdisk.url(0), ramdisk.url_as("alice", "wrong-secret-0000", 0), ramdisk.url_as("bob", "alice-secret-1234", 0)]
    {
        let refused = tool("iscsi-inq", &[&url])?;
        assert!(!refused.status.success(), "{url} was let in: {}", refused.output);
    }
    ramdisk.stop()?;
    Ok(())
}

#[test]
fn tshark_finds_nothing_wrong_on_the_wire() -> Result<()> {
    let ramdisk = Ramdisk::serve(["--target", Ramdisk::TARGET, "--lun", "64M", "--chap", "alice:alice-secret-1234"])?;
    let capture = Capture::start(ramdisk.port())?;
    let url = ramdisk.url_as("alice", "alice-secret-1234", 0);
    // Discovery asks for the same account.
    let list = format!("iscsi://alice%alice-secret-1234@{}", ramdisk.portal());
    tool("iscsi-ls", &[&list])?.success()?.prints(&[Ramdisk::TARGET])?;
    tool("iscsi-inq", &[&url])?.success()?;
    // libiscsi's tools offer "None,CRC32C" whatever they are told; QEMU, through the same library, does not.
    let digests = format!(
        "driver=iscsi,transport=tcp,portal={},target={},lun=0,user=alice,password-secret=secret,header-digest=crc32c",
        ramdisk.portal(),
        Ramdisk::TARGET
    );
    tool("qemu-img", &["info", "--object", "secret,id=secret,data=alice-secret-1234", "--image-opts", &digests])?
        .success()?;
    tool("iscsi-readcapacity16", &[&url])?.success()?;
    for test in
        ["SCSI.Read10.Simple", "SCSI.Write16.Simple", "SCSI.Inquiry.Standard", "iSCSI.iSCSIResiduals.Read10Residuals"]
    {
        tool("iscsi-test-cu", &["--dataloss", "--test", test, &url])?;
    }
    let refused = tool("iscsi-inq", &[&ramdisk.url_as("alice", "wrong-secret-0000", 0)])?;
    assert!(!refused.status.success());
    let verdict = capture.judge()?.sound()?;
    // Login, text, command, Data-In and logout, requests and responses, were among what it judged.
    for opcode in [0x01, 0x03, 0x06, 0x21, 0x23, 0x25, 0x26] {
        assert!(verdict.opcodes.contains_key(&opcode), "no PDU with opcode {opcode:#04x}: {:?}", verdict.opcodes);
    }
    assert!(verdict.good_digests > 0, "no digest was checked: {verdict:?}");
    ramdisk.stop()?;
    Ok(())
}

/// With `INTEROP_LIST=write` in the environment the list is written anew from what passes, for review.
#[test]
fn the_conformance_suite_passes_what_it_must() -> Result<()> {
    let list = programs::checkout().join("interop/expect/libiscsi-suite.txt");
    let read_only = "iqn.2026-01.org.example:read-only";
    let ramdisk = Ramdisk::serve(["--target", Ramdisk::TARGET, "--lun", "100M"])?;
    let guarded = Ramdisk::serve(["--target", read_only, "--lun", "100M", "--read-only"])?;
    let report =
        Suite::new(ramdisk.url(0)).read_only(format!("iscsi://{}/{read_only}/0", guarded.portal())).run(|_| true)?;
    println!("{report}");
    if std::env::var_os("INTEROP_LIST").is_some_and(|value| value == "write") {
        let head = "# Tests of libiscsi's iscsi-test-cu that must pass against `ramdisk serve`.\n";
        std::fs::write(&list, format!("{head}{}", report.passed())).context("writing the list")?;
    }
    report.expect(&std::fs::read_to_string(&list).context(format!("reading {}", list.display()))?)?;
    guarded.stop()?;
    ramdisk.stop()?;
    Ok(())
}
