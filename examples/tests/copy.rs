//! `iscsi copy` between files, disks and pipes: what it writes, what it leaves out, and what it refuses before it
//! writes anything.
#![expect(dead_code, reason = "each test program uses a part of the module")]

mod program;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use program::{ISCSI, Input, Serving, TARGET, TempFile, iscsi, run_with};

/// Bytes that differ everywhere, also from one seed to the other, and are never zero.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(seed * 77) >> 13) as u8 | 1).collect()
}

/// A file of `len` bytes of which only a few have data.
fn sparse(name: &str, len: u64) -> TempFile {
    let file = TempFile::new(name, b"");
    let inner = File::options().write(true).open(file.path()).unwrap();
    inner.set_len(len).unwrap();
    for at in [0, len / 2 + 4096, len - 512] {
        inner.write_all_at(&noise(512, at as u32), at).unwrap();
    }
    file
}

#[test]
fn pipes_are_read_and_written_in_order() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 4M --lun 8M"));
    let content = noise(4 << 20, 1);
    let told = run_with(ISCSI, &["copy", "-", &server.url(0), "--bs", "64K"], Input::Bytes(content.clone()));
    assert!(told.text().ok().contains("4.0 MiB copied"));
    let back = run_with(ISCSI, &["copy", &server.url(0), "-", "--bs", "64K", "--iodepth", "8"], Input::None);
    assert_eq!(back.code, Some(0), "{}", back.stderr);
    assert!(back.stdout == content);
    assert!(back.stderr.contains("4.0 MiB copied"), "the output is the copy: {}", back.stderr);
    // From one to the other, by way of a pipe.
    let through = run_with(ISCSI, &["copy", "-", "-"], Input::Bytes(content.clone()));
    assert!(through.stdout == content);
    // The rest of a larger disk stays as it is.
    let short = run_with(ISCSI, &["copy", "-", &server.url(1)], Input::Bytes(content[..1 << 20].to_vec()));
    assert_eq!(short.code, Some(0), "{}", short.stderr);
    let long = TempFile::new("longer-before", &noise(3 << 20, 9));
    let file = run_with(ISCSI, &["copy", "-", long.path()], Input::Bytes(content[..1000].to_vec()));
    assert_eq!(file.code, Some(0), "{}", file.stderr);
    assert!(long.read() == content[..1000]);
}

#[test]
fn what_a_pipe_cannot_do_is_said() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M"));
    let url = server.url(0);
    let send = |bytes: Vec<u8>, more: &[&str]| {
        run_with(ISCSI, &[&["copy", "-", &url], more].concat(), Input::Bytes(bytes)).text()
    };
    send(noise(1 << 20, 1), &["--verify"]).fails(2, "--verify reads both ends again");
    send(noise(3 << 19, 1), &["--bs", "256K"]).fails(1, "more than the 1.0 MiB that the destination holds");
    send(noise(1000, 1), &[]).fails(1, "ended after 1000 bytes, which is no whole number of blocks");
    // Of a file that is standard input the size is known: nothing is written.
    let before = TempFile::new("pipe-before", b"");
    iscsi(&format!("copy {url} {}", before.path())).ok();
    let large = TempFile::new("pipe-large", &noise(2 << 20, 5));
    let ended = run_with(ISCSI, &["copy", "-", &url], Input::File(File::open(large.path()).unwrap()));
    ended.text().fails(1, "holds 1.0 MiB, which is less than the 2.0 MiB to copy");
    let after = TempFile::new("pipe-after", b"");
    iscsi(&format!("copy {url} {}", after.path())).ok();
    assert!(before.read() == after.read());
    let closed = format!("exec {ISCSI} copy - {url} <&-");
    run_with("sh", &["-c", &closed], Input::None).text().fails(1, "standard input is closed");
}

#[test]
fn zeroes_are_not_sent_and_replace_what_was_there() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 16M"));
    let old = TempFile::new("zero-old", &noise(16 << 20, 3));
    iscsi(&format!("copy {} {} --verify", old.path(), server.url(0))).ok();
    let image = sparse("zero-image", 16 << 20);
    let told = iscsi(&format!("copy {} {} --verify --json", image.path(), server.url(0))).json();
    assert_eq!((told["bytes"].as_u64(), told["verified"].as_bool()), (Some(16 << 20), Some(true)));
    // Three runs of 64 KiB have data.
    assert_eq!(told["zeroes"].as_u64(), Some((16 << 20) - 3 * (64 << 10)));
    // Back into a file that has data everywhere: holes are made again.
    let back = TempFile::new("zero-back", &noise(20 << 20, 4));
    let told = iscsi(&format!("copy {} {} --verify --json", server.url(0), back.path())).json();
    assert!(told["zeroes"].as_u64().is_some_and(|zeroes| zeroes > 15 << 20), "{told}");
    assert!(back.read() == image.read());
    let taken = |file: &TempFile| std::fs::metadata(file.path()).unwrap().blocks() * 512;
    assert!(taken(&back) <= 1 << 20, "{} bytes are allocated", taken(&back));
    // A disk that does not take zeroes unsent gets them sent: here by a store without WRITE SAME's UNMAP.
    let file = TempFile::new("zero-file", b"");
    iscsi(&format!("copy {} {} --verify", image.path(), file.path())).ok();
    assert!(file.read() == image.read());
}

#[test]
fn images_of_qcow2_are_not_taken_for_disks() {
    let mut image = b"QFI\xfb\0\0\0\x03".to_vec();
    image.resize(1 << 20, 7);
    let file = TempFile::new("qcow", &image);
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M"));
    iscsi(&format!("copy {} {}", file.path(), server.url(0))).fails(1, "is a qcow2 image");
    run_with(ISCSI, &["copy", "-", &server.url(0)], Input::Bytes(image.clone()))
        .text()
        .fails(1, "qemu-img convert -O raw");
    let empty = TempFile::new("qcow-back", b"");
    iscsi(&format!("copy {} {}", server.url(0), empty.path())).ok();
    assert!(empty.read().iter().all(|byte| *byte == 0), "nothing was written");
    iscsi(&format!("copy {} {} --raw --verify", file.path(), server.url(0))).ok();
}

#[test]
fn what_cannot_be_copied_is_refused_before_the_destination_is_touched() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M"));
    let url = server.url(0);
    let kept = TempFile::new("kept", &noise(4096, 6));
    let directory = std::env::temp_dir();
    let directory = directory.to_str().unwrap();
    let fifo = format!("{}/copy-fifo-{}", directory, std::process::id());
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    for odd in ["/dev/zero", directory, &fifo] {
        iscsi(&format!("copy {odd} {}", kept.path())).fails(1, "has no size, so it cannot be copied");
    }
    iscsi(&format!("copy {url} {directory}")).fails(2, "is a directory");
    iscsi(&format!("copy {url} {fifo}")).fails(1, "has no size, so nothing can be copied to it");
    std::fs::remove_file(&fifo).unwrap();
    iscsi(&format!("copy {0} {0}", kept.path())).fails(2, "are the same: there is nothing to copy");
    iscsi(&format!("copy {url} {url}")).fails(2, "are the same: there is nothing to copy");
    iscsi(&format!("copy /no/such/file {}", kept.path())).fails(1, "there is no /no/such/file");
    iscsi(&format!("copy {url} {} --bs 100", kept.path())).fails(2, "is no multiple of the block size");
    assert!(kept.read() == noise(4096, 6));
    // A source that is too large, for a disk and for nothing else.
    let large = TempFile::new("kept-large", &noise(2 << 20, 1));
    iscsi(&format!("copy {} {url}", large.path())).fails(1, "holds 1.0 MiB, which is less than the 2.0 MiB to copy");
    let back = TempFile::new("kept-back", b"");
    iscsi(&format!("copy {url} {}", back.path())).ok();
    assert!(back.read().iter().all(|byte| *byte == 0), "not one byte was written");
}

#[test]
fn a_difference_is_found_at_the_end() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun null:1M"));
    let file = TempFile::new("differs", &noise(1 << 20, 2));
    iscsi(&format!("copy {} {}", file.path(), server.url(0))).ok();
    iscsi(&format!("copy {} {} --verify", file.path(), server.url(0))).fails(5, "differs from");
}

#[test]
fn an_output_that_is_full_or_that_nobody_reads_ends_the_program_with_a_sentence() {
    let mut server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M"));
    let (url, portal) = (server.url(0), server.portal());
    let jobs: [&[&str]; 7] = [
        &["discover", &portal],
        &["luns", &url],
        &["info", &url],
        &["login-test", &url, "--json"],
        &["bench", &url, "--number-ios", "10"],
        &["verify", &url],
        &["copy", &url, "-"],
    ];
    for job in jobs {
        run_with(ISCSI, job, Input::Full).text().fails(1, "the output finds no space left");
        run_with(ISCSI, job, Input::Unread).text().fails(141, "whoever reads the output has gone away");
    }
    run_with(program::RAMDISK, &["demo", "--size", "1M"], Input::Full).text().fails(1, "no space left");
    // A server's work is serving.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut mute = Serving::mute(full, &format!("--stats --target {TARGET} --lun 1M"));
    let told = mute.complains("the disks are served all the same");
    assert!(told.contains("no space left"), "{told}");
    assert!(mute.is_running() && server.is_running());
}
