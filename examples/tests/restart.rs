//! `iscsi copy` to a target that goes away in the middle, and to what comes in its place.
#![expect(dead_code, reason = "each test program uses a part of the module")]

mod program;
mod relay;

use std::fs::File;

use program::{Ended, ISCSI, Running, Serving, TARGET, TempFile, signal, start};
use relay::Relay;

const BYTES: usize = 16 << 20;

/// Bytes that are never zero, other ones for another seed.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(seed * 77) >> 13) as u8 | 1).collect()
}

/// A copy that stands still in the middle, its target, and what is between.
struct Halfway {
    copy: Running,
    server: Serving,
    relay: Relay,
}

fn serve(lun: &str) -> Serving {
    Serving::ramdisk(&format!("--target {TARGET} --lun {lun}"))
}

/// A copy of a file to a LUN, up to about its half.
fn halfway(source: &TempFile, lun: &str, more: &[&str]) -> Halfway {
    let server = serve(lun);
    let relay = Relay::start(&server.portal(), BYTES / 2);
    let url = format!("iscsi://{}/{TARGET}/0", relay.address());
    let args = [&["copy", source.path(), &url, "--bs", "256K"], more].concat();
    let copy = start(ISCSI, &args);
    relay.wait_for_the_middle();
    Halfway { copy, server, relay }
}

impl Halfway {
    /// The target is killed, and another one is in its place.
    fn replaced(self, lun: &str) -> Ended {
        self.replaced_after(|| (), lun)
    }

    /// The target is killed, something is done to what it served, and another one is in its place.
    ///
    /// What is done comes after the end of the first target, because that one may still be writing what it was sent.
    fn replaced_after(self, meanwhile: impl FnOnce(), lun: &str) -> Ended {
        let Self { copy, server, relay } = self;
        drop(server);
        meanwhile();
        let server = serve(lun);
        relay.lead_to(&server.portal());
        relay.cut();
        let ended = copy.end();
        drop(server);
        ended
    }
}

fn file_lun(file: &TempFile) -> String {
    format!("file:{}", file.path())
}

fn part_written(file: &TempFile) -> bool {
    let content = file.read();
    content.contains(&0) && content.iter().any(|byte| *byte != 0)
}

#[test]
fn a_file_that_is_served_again_has_all_in_the_end() {
    let (source, disk) =
        (TempFile::new("again-source", &noise(BYTES, 1)), TempFile::new("again-disk", &vec![0; BYTES]));
    let halfway = halfway(&source, &file_lun(&disk), &["--verify"]);
    assert!(part_written(&disk), "it is in the middle");
    let ended = halfway.replaced(&file_lun(&disk));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("16.0 MiB copied") && ended.stdout.contains("no difference"), "{ended:?}");
    assert!(disk.read() == source.read());
}

#[test]
fn memory_that_is_lost_ends_the_copy_with_the_reason() {
    let source = TempFile::new("ram-source", &noise(BYTES, 2));
    let ended = halfway(&source, "16M", &[]).replaced("16M");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("LUN 0 shows another disk than the one that was opened"), "{ended:?}");
}

#[test]
fn memory_that_keeps_its_name_is_filled_anew() {
    let source = TempFile::new("name-source", &noise(BYTES, 9));
    let lun = "16M --lasting-identity";
    let ended = halfway(&source, lun, &["--verify"]).replaced(lun);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("are copied again") && ended.stdout.contains("no difference"), "{ended:?}");
}

/// What a job over two paths comes to whose target is killed in the middle, and served anew.
fn restarted(lun: &str, args: impl Fn([&str; 2]) -> Vec<String>) -> Ended {
    let server = serve(lun);
    let relays = [(); 2].map(|()| Relay::start(&server.portal(), BYTES / 4));
    let urls = [0, 1].map(|path| format!("iscsi://{}/{TARGET}/0", relays[path].address()));
    let args = args([&urls[0], &urls[1]]);
    let job = start(ISCSI, &args.iter().map(String::as_str).collect::<Vec<_>>());
    relays.iter().for_each(Relay::wait_for_the_middle);
    drop(server);
    let server = serve(lun);
    for relay in &relays {
        relay.lead_to(&server.portal());
        relay.cut();
    }
    let ended = job.end();
    drop(server);
    ended
}

#[test]
fn over_several_paths_what_is_lost_is_told_too() {
    let verify = |more: &'static str| {
        move |[first, second]: [&str; 2]| {
            let words = format!("verify {first} --path {second} --bs 256K {more}");
            words.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
        }
    };
    let kept_name = "16M --lasting-identity";
    let ended = restarted(kept_name, verify(""));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("lost writes that it had acknowledged"), "{ended:?}");
    let ended = restarted("16M", verify("--retry 2"));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("shows another disk than the one that was opened"), "{ended:?}");
    // A copy has its source still, and fills the disk anew.
    let source = TempFile::new("paths-source", &noise(BYTES, 10));
    let copy = |[first, second]: [&str; 2]| {
        let words = format!("copy {} {first} --to-path {second} --bs 256K --verify", source.path());
        words.split(' ').map(str::to_owned).collect()
    };
    let ended = restarted(kept_name, copy);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("are copied again") && ended.stdout.contains("no difference"), "{ended:?}");
}

#[test]
fn another_disk_gets_not_one_byte() {
    let source = TempFile::new("other-source", &noise(BYTES, 3));
    let disk = TempFile::new("other-first", &vec![0; BYTES]);
    let other = TempFile::new("other-second", &noise(BYTES, 4));
    let ended = halfway(&source, &file_lun(&disk), &[]).replaced(&file_lun(&other));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("shows another disk than the one that was opened: its serial number was"),
        "{ended:?}"
    );
    assert!(other.read() == noise(BYTES, 4));
    // Nor one that has taken its name.
    let third = TempFile::new("other-third", &noise(BYTES, 5));
    let halfway = halfway(&source, &file_lun(&disk), &[]);
    let ended = halfway.replaced_after(|| std::fs::rename(third.path(), disk.path()).unwrap(), &file_lun(&disk));
    assert!(ended.code == Some(1) && ended.stderr.contains("shows another disk"), "{ended:?}");
    assert!(disk.read() == noise(BYTES, 5));
}

#[test]
fn a_disk_that_is_smaller_now_gets_not_one_byte() {
    let source = TempFile::new("smaller-source", &noise(BYTES, 6));
    let disk = TempFile::new("smaller-disk", &vec![0; BYTES]);
    let halfway = halfway(&source, &file_lun(&disk), &[]);
    let mut before = Vec::new();
    let cut_short = || {
        File::options().write(true).open(disk.path()).unwrap().set_len(BYTES as u64 - 512).unwrap();
        before = disk.read();
    };
    let ended = halfway.replaced_after(cut_short, &file_lun(&disk));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("it had 32768 blocks and has 32767; nothing was sent to it"), "{ended:?}");
    assert!(disk.read() == before);
}

#[test]
fn a_target_that_stands_still_for_a_while_is_waited_for() {
    let (source, disk) =
        (TempFile::new("still-source", &noise(BYTES, 7)), TempFile::new("still-disk", &vec![0; BYTES]));
    let Halfway { copy, server, relay } = halfway(&source, &file_lun(&disk), &[]);
    signal(server.pid(), "STOP");
    relay.go_on();
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal(server.pid(), "CONT");
    let ended = copy.end();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert!(disk.read() == source.read());
}

#[test]
fn a_target_that_is_gone_for_good_ends_the_copy_at_its_limit() {
    let source = TempFile::new("gone-source", &noise(BYTES, 8));
    let Halfway { copy, server, relay } = halfway(&source, "16M", &["--retry", "2"]);
    drop(server);
    relay.cut();
    let ended = copy.end();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("could not be built anew within 2s"), "{ended:?}");
}
