//! QEMU's block driver against `ramdisk serve`: whole images in and out, discard, write zeroes.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use interop::process::{Finished, run};
use interop::programs::Ramdisk;
use interop::{Context, Result, packages};

const LIMIT: Duration = Duration::from_secs(300);

fn tool(name: &str, arguments: &[&str]) -> Result<Finished> {
    // QEMU's iSCSI driver is a plug-in of a package of its own.
    packages::library("qemu/block-iscsi.so")?;
    let mut command = packages::command(name)?;
    command.args(arguments);
    run(&command, LIMIT)
}

/// A directory that is gone after the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("interop-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).context(format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A file of random bytes (xorshift64*: fast, seeded, no zero run that a sparse copy would skip).
fn random_file(path: &Path, mebibytes: usize, seed: u64) -> Result<()> {
    let mut file = File::create(path).context(format!("making {}", path.display()))?;
    let mut state = seed | 1;
    let mut block = vec![0; 1 << 20];
    for _ in 0..mebibytes {
        for word in block.chunks_exact_mut(8) {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            word.copy_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        file.write_all(&block).context(format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn assert_equal(one: &Path, other: &Path) -> Result<()> {
    let open = |path: &Path| File::open(path).context(format!("opening {}", path.display()));
    let (mut left, mut right) = (BufReader::new(open(one)?), BufReader::new(open(other)?));
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0_u64;
    let size = left.get_ref().metadata().context("its size")?.len();
    assert_eq!(size, right.get_ref().metadata().context("its size")?.len(), "the sizes differ");
    while offset < size {
        left.read_exact(&mut a).context("reading")?;
        right.read_exact(&mut b).context("reading")?;
        assert!(a == b, "the files differ in the MiB at {offset}");
        offset += 1 << 20;
    }
    Ok(())
}

#[test]
fn an_image_of_one_gibibyte_goes_in_and_comes_back_equal() -> Result<()> {
    let scratch = Scratch::new("convert")?;
    let (image, back) = (scratch.0.join("image"), scratch.0.join("back"));
    random_file(&image, 1024, 0x5eed)?;
    let ramdisk = Ramdisk::serve_one("1G")?;
    let (image_name, back_name, url) = (image.to_string_lossy(), back.to_string_lossy(), ramdisk.url(0));
    // -n: the LUN is there already.
    tool("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image_name, &url])?.success()?;
    tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image_name, &url])?
        .success()?
        .prints(&["Images are identical"])?;
    tool("qemu-img", &["convert", "-f", "raw", "-O", "raw", &url, &back_name])?.success()?;
    assert_equal(&image, &back)?;
    ramdisk.stop()?;
    Ok(())
}

fn qemu_io(url: &str, commands: &[&str]) -> Result<Finished> {
    let mut arguments = vec!["-f", "raw", "-d", "unmap", "-t", "none"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(url);
    let finished = tool("qemu-io", &arguments)?.success()?;
    assert!(!finished.output.contains("failed"), "{}", finished.output);
    Ok(finished)
}

#[test]
fn discard_and_write_zeroes_leave_zeroes_and_nothing_else() -> Result<()> {
    let ramdisk = Ramdisk::serve_one("64M")?;
    let url = ramdisk.url(0);
    qemu_io(&url, &["write -P 0xa5 0 32M", "read -P 0xa5 0 32M"])?;
    qemu_io(
        &url,
        &[
            "discard 4M 4M",
            "read -P 0xa5 0 4M",
            "read -P 0 4M 4M",
            "read -P 0xa5 8M 24M",
            "write -P 0x5a 5M 64k",
            "read -P 0x5a 5M 64k",
        ],
    )?;
    // -z alone may write; -u lets it unmap. Both must read as zeroes, and only there.
    qemu_io(
        &url,
        &[
            "write -z 16M 1M",
            "write -z -u 18M 1M",
            "read -P 0 16M 1M",
            "read -P 0xa5 17M 1M",
            "read -P 0 18M 1M",
            "read -P 0xa5 19M 13M",
        ],
    )?;
    // Unaligned ends, one sector at a time.
    qemu_io(
        &url,
        &[
            "write -P 0x11 20971008 1536",
            "write -z 20971520 512",
            "read -P 0x11 20971008 512",
            "read -P 0 20971520 512",
            "read -P 0x11 20972032 512",
            "flush",
        ],
    )?;
    ramdisk.stop()?;
    Ok(())
}

/// With its cache on, QEMU keeps a map of what is allocated if the target tells an unmap granularity of 4096 bytes or
/// more, and a stale "deallocated" in it makes a read give zeroes where data were just written.
#[test]
fn what_was_written_after_a_discard_is_read_with_qemus_cache_on() -> Result<()> {
    let ramdisk = Ramdisk::serve_one("64M")?;
    let url = ramdisk.url(0);
    for _ in 0..20 {
        let mut arguments = vec!["-f", "raw", "-d", "unmap", "-t", "writeback"];
        for command in
            ["discard 0 8M", "aio_read 0 1M", "aio_write -P 5 2M 64k", "aio_flush", "read -P 5 2M 64k", "discard 0 8M"]
        {
            arguments.extend(["-c", command]);
        }
        arguments.push(&url);
        let finished = tool("qemu-io", &arguments)?.success()?;
        assert!(!finished.output.contains("failed"), "{}", finished.output);
    }
    ramdisk.stop()?;
    Ok(())
}

#[test]
fn what_was_discarded_shows_as_a_hole() -> Result<()> {
    let ramdisk = Ramdisk::serve_one("64M")?;
    let url = ramdisk.url(0);
    qemu_io(&url, &["write -P 0x77 0 8M", "discard 0 4M"])?;
    // GET LBA STATUS: 4 MiB of hole, 4 MiB of data, the rest a hole.
    let map = tool("qemu-img", &["map", "-f", "raw", "--output=json", &url])?.success()?;
    let extents: serde_json::Value = serde_json::from_str(&map.stdout).context(&map.output)?;
    let data: u64 = extents
        .as_array()
        .into_iter()
        .flatten()
        .filter(|it| it["data"] == true)
        .filter_map(|it| it["length"].as_u64())
        .sum();
    assert_eq!(data, 4 << 20, "{}", map.output);
    ramdisk.stop()?;
    Ok(())
}

#[test]
fn qemu_refuses_to_write_to_a_read_only_lun() -> Result<()> {
    let ramdisk = Ramdisk::serve(["--target", Ramdisk::TARGET, "--lun", "64M", "--read-only"])?;
    let url = ramdisk.url(0);
    let refused = tool("qemu-io", &["-f", "raw", "-c", "write -P 1 0 4k", &url])?;
    assert!(!refused.status.success(), "{}", refused.output);
    tool("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 0 4k", &url])?.success()?;
    ramdisk.stop()?;
    Ok(())
}
