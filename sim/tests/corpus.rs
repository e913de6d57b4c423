//! The fuzz targets' harnesses on stable Rust: over the checked-in corpora, and over random bytes.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use sim::fuzzed::ALL;
use sim::rng::Rng;

fn corpus(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name)
}

#[test]
fn every_corpus_passes() {
    for (name, harness) in ALL {
        let mut files: Vec<_> =
            fs::read_dir(corpus(name)).expect("each target has a corpus").map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "the corpus of {name} is empty");
        for file in files {
            let data = fs::read(&file).unwrap();
            assert!(catch_unwind(|| harness(&data)).is_ok(), "{} fails", file.display());
        }
    }
}

#[test]
fn random_bytes_pass() {
    for (name, harness) in ALL {
        for seed in 0..500 {
            let mut rng = Rng::new(seed, 0);
            let mut data = vec![0; rng.magnitude(1, 2000) as usize];
            rng.fill(&mut data);
            assert!(catch_unwind(|| harness(&data)).is_ok(), "{name} fails on the bytes of seed {seed}");
        }
    }
}

/// The seeds made by hand, by target. With `WRITE_CORPUS=1` the test below writes them.
fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let mut rng = Rng::new(7, 7);
    let mut cmd_sn = 1;
    let mut requests = Vec::new();
    for _ in 0..12 {
        let pdu = sim::hostile::any_request(&mut rng, &mut cmd_sn);
        requests.extend_from_slice(&pdu[..pdu.len().min(48)]);
    }
    let command = |slot: u8, lun: u8, flags: u8, cdb: &[u8]| {
        let mut operation = vec![0, flags, slot, lun, 2, cdb.len() as u8];
        operation.extend_from_slice(cdb);
        operation
    };
    let mut disk = command(0, 0, 1, &[0x12, 1, 0x83, 0, 255, 0]);
    disk.extend(command(1, 1, 1, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]));
    disk.extend(command(2, 2, 2, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0]));
    disk.extend(command(3, 0, 2, &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]));
    disk.extend([4, 1, 0, 3, 1, 2, 3, 6, 1, 0, 4, 0x11, 0, 1, 9, 7, 5, 2, 6, 255, 255]);
    let sense = vec![0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xc0, 0, 2];
    let pairs = b"\0InitiatorName=iqn.2026-11.example:a\0TargetAddress=[::1]:3260,1\0X-any=0x1f\0".to_vec();
    let mut exchange = vec![2, 1, 0, 16];
    exchange.extend_from_slice(b"SendTargets=All\0");
    exchange.extend([9, 4]);
    // Receives, buffers, then a peer that sends, writes and reads within its bounds, and takes what is sent.
    let peer = [
        &[0, 4, 0, 0, 4, 0, 3, 1, 1, 8, 0, 3, 0, 0, 4, 0, 2][..],
        &[6, 0, 1, 0, 0, 0, 0, 40, 0, 5, 0, 1, 0, 0, 0, 4, 0, 0, 7, 1, 0, 2, 0, 0, 0, 0, 11],
        &[1, 3, 0, 0, 76, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 200, 0, 0, 0, 7, 0, 0, 0, 1, 2, 11],
        &[5, 1, 1, 0, 0, 0, 0, 200, 0, 13, 5, 0, 1, 0, 4, 1, 0, 9, 0, 11, 12, 0, 11],
    ]
    .concat();
    let with = |flags: &[u8]| [flags, &peer].concat();
    let request =
        [&[8, 0x80, 8, 0, 24][..], b"MPA ID Req Frame\x10\x02\0\x04\0\x07\0\x09", &[11, 9, 0, 2, 1, 2, 0]].concat();
    let reply = [&[8, 0x80, 11, 8, 0, 24][..], b"MPA ID Rep Frame\x30\x02\0\x04\0\x07\0\x09", &[11]].concat();
    // Buffers of both kinds, a read, a write, one that is all immediate, one beside its buffer.
    let commands = [
        &[0, 1, 0x20, 0, 0, 0, 0x20, 0][..],
        &[2, 0x10, 1, 0, 8, 0, 0, 3, 0x11, 2, 8, 8, 1, 0, 3, 0x51, 3, 0, 1, 2, 0, 8, 2, 0],
        &[2, 0x1e, 4, 0, 4, 0, 0, 1, 0, 2, 0, 8, 255, 255, 1, 1, 2, 0x10, 5, 0, 8, 0, 0xd0, 9, 2, 3, 4, 8, 0, 9],
    ]
    .concat();
    let under = |flags: &[u8]| [flags, &commands].concat();
    // Time for commands to come, their data and statuses, then what is beside them.
    let answers = [
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 5, 0, 0, 20, 0, 1, 1, 3, 2, 2, 1, 0, 8, 0, 0][..],
        &[5, 0, 0, 20, 2, 0, 1, 2, 0, 1, 0, 1, 2, 0, 0, 0, 0, 0, 100, 0],
    ]
    .concat();
    let answered = |flags: &[u8]| [flags, &answers].concat();
    // Receives, a connection that stands, a Write, a Send and a Read that complete, a message that comes, an UNMAP, an end.
    let life = [
        &[0, 0, 128, 1, 0, 64, 5, 9, 16, 0, 0, 6, 2, 7, 0, 0, 1, 1, 0, 1, 0, 0, 3, 7, 0, 0, 0, 0, 100, 0][..],
        &[4, 7, 0, 0, 2, 1, 0, 1, 0, 1, 5, 7, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0],
        &[7, 1, 0, 0, 0, 0, 64, 6, 6, 6, 6, 10, 0, 0, 255, 255, 11, 0, 1, 0, 1, 0, 9, 12, 13, 255, 0, 6],
    ]
    .concat();
    let on_device = |make: &[u8]| [make, &life].concat();
    // Two initiators, one unit: each logs in, hears its unit attention, and writes and reads what the other one writes.
    let connect = |place: u8, nexus: u8| vec![0, place, nexus, 0, 4, place];
    let first_read = |place: u8| vec![1, place, 0, 0, 0, 4, place, 8, 0, 4, 0];
    let write = |place: u8, immediate: u8, lba: u8| vec![1, place, 1 | immediate << 1, lba, 7, 4, place];
    let pay = |place: u8| vec![10, place, 4, place];
    let read = |place: u8| vec![1, place, 0, 0, 11, 4, place];
    let wait = |seconds: u8| vec![9, 0, seconds];
    let reset = |place: u8, kind: u8| vec![11, place, 4, place, 7, place, kind, 4, place];
    let two = [connect(0, 0), connect(1, 2), first_read(0), first_read(1)].concat();
    let meet = [write(0, 1, 0), write(1, 0, 4), pay(1), read(0), wait(3), read(1), read(0), wait(3)].concat();
    let replaced = [write(0, 1, 0), write(0, 0, 2), vec![12, 0, 2], connect(0, 0), write(1, 1, 0), wait(3)].concat();
    let ended =
        [write(0, 1, 0), write(1, 0, 3), reset(0, 0), write(0, 1, 2), wait(3), read(0), read(1), wait(3)].concat();
    let slowly = [vec![6, 0, 100, 6, 1, 30, 6, 0, 200, 12, 1, 1], wait(60), vec![13, 0, 4, 0]].concat();
    let sessions = |flags: u8, parts: &[&Vec<u8>]| {
        [&[flags][..], &two, &parts.iter().copied().flatten().copied().collect::<Vec<_>>()].concat()
    };
    vec![
        ("target_sessions", "meet", sessions(0, &[&meet, &slowly])),
        ("target_sessions", "lent", sessions(4, &[&meet, &replaced, &meet])),
        ("target_sessions", "replaced", sessions(2, &[&replaced, &read(0), &read(1), &wait(3)])),
        ("target_sessions", "ended", sessions(3, &[&ended, &wait(3), &meet])),
        (
            "target_sessions",
            "hostile",
            sessions(1, &[&meet, &vec![15, 2, 0, 7, 0, 2, 1, 7, 4, 2, 15, 2, 0, 9, 4, 2], &ended]),
        ),
        #[cfg(target_os = "linux")]
        ("verbs_queue", "life", on_device(&[0, 23, 23, 3, 1, 0, 16])),
        #[cfg(target_os = "linux")]
        ("verbs_queue", "scarce", on_device(&[0x0f, 3, 3, 0, 0, 2, 1])),
        ("iser_target", "commands", under(&[0, 0])),
        ("iser_target", "lent", under(&[4, 0x20])),
        ("iser_target", "hello", under(&[0x0a, 0x45])),
        ("iser_target", "scarce", under(&[2, 0x6c])),
        ("iser_target", "no_login", vec![1, 0x80, 9, 0, 0, 4, 0x10, 0, 0, 0]),
        ("iser_initiator", "answers", answered(&[0, 0])),
        ("iser_initiator", "hello", answered(&[8, 0x43])),
        ("iser_initiator", "scarce", answered(&[2, 0x8c])),
        ("iser_initiator", "no_login", vec![1, 0xa0, 4, 0, 0, 0, 4, 0x10, 0, 0, 0]),
        ("iwarp_accept", "peer", with(&[0, 0])),
        ("iwarp_accept", "peer_crc", with(&[0x35, 2])),
        ("iwarp_accept", "startup", request),
        ("iwarp_connect", "peer", with(&[4, 0])),
        ("iwarp_connect", "peer_crc", with(&[0x3b, 0])),
        ("iwarp_connect", "startup", reply),
        ("pdu", "requests", requests),
        ("pdu", "extended_cdb", [&[0; 48][..], &[0, 5, 1, 0, 1, 2, 3, 4, 0, 5, 2, 0, 0, 0, 16, 0]].concat()),
        ("scsi", "sense", sense),
        ("scsi", "identification", vec![0, 0x83, 0, 12, 1, 3, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7]),
        (
            "scsi",
            "unmap",
            [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0, 0, 0]].concat(),
        ),
        ("text", "pairs", pairs),
        ("text", "exchange", exchange),
        (
            "text",
            "negotiation",
            [&[1, 10, 1, 1, 4, 0, 2, 0, 1, 0, 4, 0, 0, 0, 0, 15][..], b"InitialR2T=No\0\0"].concat(),
        ),
        ("url", "whole", b"iser://joe%s3cret@[::1]:3261/iqn.a:b/2?header-digest=crc32c,none&rdma=iwarp".to_vec()),
        ("url", "options", b"iscsi://h/t?target_user=t&target_password=u%26v&transport=auto&initiator=iqn.c".to_vec()),
        ("cdb", "disk", disk),
        ("login_target", "straight", vec![0, 0, 1, 2, 0]),
        ("login_target", "chap", vec![3, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4]),
        ("login_initiator", "straight", vec![0, 6, 6, 14, 7]),
        ("login_initiator", "chap", vec![2, 2, 0, 2, 2, 0, 5]),
        ("target_connection", "commands", vec![0, 1, 0, 1, 1, 0, 2, 4, 0, 10, 2, 0, 3, 1, 0, 9, 4, 255, 255]),
        ("target_connection", "garbage", vec![1, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 4, 255, 255]),
        (
            "initiator_connection",
            "answers",
            vec![0, 5, 0, 10, 3, 3, 0, 0, 4, 0, 1, 0, 2, 0, 2, 1, 0x80, 0, 0, 1, 0, 0, 5, 255, 255],
        ),
    ]
}

/// Each seed is in its corpus as it stands here. `WRITE_CORPUS=1 cargo test -p sim --test corpus` puts it there first.
#[test]
fn the_seeds_made_by_hand_are_in_the_corpora() {
    for (target, name, data) in seeds() {
        let file = corpus(target).join(name);
        if std::env::var_os("WRITE_CORPUS").is_some() {
            fs::create_dir_all(corpus(target)).unwrap();
            fs::write(&file, &data).unwrap();
        }
        assert!(fs::read(&file).is_ok_and(|there| there == data), "{}: run with WRITE_CORPUS=1", file.display());
    }
}
