//! Each mistake of a person, and each peer that is no target, gets one sentence that says what to do, and its exit
//! code.
#![expect(dead_code, reason = "each test program uses a part of the module")]

mod program;

use std::io::{Read, Write};
use std::time::Instant;

use program::{Serving, TARGET, TempFile, iscsi, listener, ramdisk};

#[test]
fn the_port_is_taken() {
    let (_listener, address) = listener();
    let ended = ramdisk(&format!("serve --portal {address}"));
    ended.fails(1, &format!("cannot listen on {address}: the port is taken, by another program"));
}

#[test]
fn names_that_are_none() {
    ramdisk("serve --portal 127.0.0.1:0 --target disk").fails(2, "it must start with iqn., eui. or naa.");
    ramdisk("serve --portal 127.0.0.1:0 --target iqn.disk").fails(2, "a right name starts like iqn.2026-11.");
    ramdisk("serve --portal 127.0.0.1:0 --target iqn.2026-11.example:a_b")
        .fails(2, "'_' cannot stand in an iSCSI name");
    ramdisk("serve --portal 127.0.0.1:0 --initiator me").fails(2, "the initiator name \"me\" in an ACL cannot be used");
    iscsi(&format!("info iscsi://127.0.0.1:1/{TARGET}/0 --initiator me"))
        .fails(2, "the initiator's name: \"me\" is no");
}

#[test]
fn portals_that_are_none() {
    ramdisk("serve --portal nonsense").fails(2, "write ADDR:PORT, such as 127.0.0.1:3260");
    ramdisk("serve --portal 127.0.0.1:0,rdma").fails(2, "write 127.0.0.1:0, or 127.0.0.1:0,iser for iSER beside TCP");
    // RFC 5737: nobody has an address for documentation.
    ramdisk("serve --portal 192.0.2.1:3260").fails(1, "this machine has no such address");
}

#[test]
fn sizes_that_are_none() {
    ramdisk("serve --portal 127.0.0.1:0 --lun 12Q")
        .fails(2, "'Q' in the size '12Q' is not a unit: use K, M, G, T or P");
    ramdisk("serve --portal 127.0.0.1:0 --lun big").fails(2, "give SIZE, file:PATH or null:SIZE");
    ramdisk("serve --portal 127.0.0.1:0 --lun 100").fails(2, "not a whole number of blocks of 512 bytes");
    ramdisk("serve --portal 127.0.0.1:0 --lun 8191P")
        .fails(2, "a RAM store of 7.9 EiB is more than this machine can ever hold");
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M"));
    iscsi(&format!("verify {} --size 1X", server.url(0))).fails(2, "--size 1X: 'X' in the size '1X' is not a unit");
    iscsi(&format!("verify {} --bs 100", server.url(0))).fails(2, "--bs 100 is no multiple of the disk's block size");
    iscsi(&format!("bench {} --bs 100", server.url(0))).fails(2, "use a multiple of its block size of 512 bytes");
}

#[test]
fn accounts_that_are_none() {
    ramdisk("serve --portal 127.0.0.1:0 --chap alice").fails(2, "--chap wants USER:SECRET, both not empty");
    ramdisk("serve --portal 127.0.0.1:0 --mutual-chap target:secret")
        .fails(2, "--mutual-chap is of no use without --chap USER:SECRET");
    iscsi("discover alice@127.0.0.1").fails(2, "or write user%secret@host");
}

#[test]
fn secrets_that_are_wrong() {
    let server = Serving::ramdisk(&format!(
        "--target {TARGET} --lun 1M --chap alice:a-secret-of-alice --mutual-chap disk:a-secret-of-disks"
    ));
    let portal = server.portal();
    let sentence = "the target does not accept the credentials; check the CHAP user and secret";
    for url in ["alice%not-alices-secret@", "bob%a-secret-of-alice@", ""] {
        iscsi(&format!("info iscsi://{url}{portal}/{TARGET}/0")).fails(4, sentence);
        iscsi(&format!("discover iscsi://{url}{portal}")).fails(4, sentence);
    }
    let mutual = |secret: &str| {
        iscsi(&format!(
            "login-test iscsi://alice%a-secret-of-alice@{portal}/{TARGET}/0?target_user=disk&target_password={secret}"
        ))
    };
    mutual("not-the-disks-secret").fails(4, "the target did not prove who it is");
    assert!(mutual("a-secret-of-disks").ok().contains("CHAP, both ways"));
}

#[test]
fn a_target_that_is_not_there() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M"));
    let url = format!("iscsi://{}/iqn.2026-11.example:other/0", server.portal());
    for job in ["info", "luns", "login-test", "verify", "bench"] {
        iscsi(&format!("{job} {url}")).fails(4, "there is no target of this name at this address");
    }
}

#[test]
fn a_lun_that_is_not_there() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M"));
    for job in ["info", "verify", "bench"] {
        iscsi(&format!("{job} {}", server.url(7))).fails(1, "has no LUN 7 for this initiator: `iscsi luns` lists");
    }
}

#[test]
fn files_that_are_missing() {
    ramdisk("serve --portal 127.0.0.1:0 --lun file:/no/such/disk.img")
        .fails(1, "there is no file /no/such/disk.img: check the path");
    ramdisk("serve --portal 127.0.0.1:0 --lun file:").fails(2, "names no file: write file:PATH");
    ramdisk("serve --config /no/such/file.toml").fails(1, "there is no /no/such/file.toml: check the path");
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M"));
    iscsi(&format!("copy /no/such/file {}", server.url(0))).fails(1, "there is no /no/such/file: check the path");
    iscsi(&format!("copy {} /no/such/file", server.url(0))).fails(1, "there is no /no/such/file: check the path");
}

#[test]
fn urls_that_are_malformed() {
    iscsi("info http://127.0.0.1/x").fails(2, "is no iSCSI URL: it has to look like iscsi://");
    iscsi("info iscsi://127.0.0.1").fails(2, "the URL names no target");
    iscsi(&format!("info iscsi://127.0.0.1:99999/{TARGET}/0")).fails(2, "\"99999\" is no port");
    iscsi(&format!("info iscsi://127.0.0.1/{TARGET}/first")).fails(2, "\"first\" is no LUN");
    iscsi(&format!("info iser://127.0.0.1/{TARGET}/0?transport=tcp")).fails(2, "iser or auto; TCP alone is iscsi://");
    iscsi(&format!("info iser://127.0.0.1/{TARGET}/0?rdma=roce")).fails(2, "iwarp, verbs or auto");
    iscsi(&format!("info iscsi://127.0.0.1/{TARGET}/0?rdma=iwarp")).fails(2, "write iser://, or add transport=auto");
    iscsi("discover iser://127.0.0.1")
        .fails(2, "discovery is by TCP, for targets with iSER too: write iscsi://127.0.0.1");
    iscsi("discover 127.0.0.1:port").fails(2, "is no port");
    iscsi(&format!("discover iscsi://127.0.0.1/{TARGET}/0")).fails(2, "write 127.0.0.1, without a target");
}

#[test]
fn iser_options_that_lead_nowhere() {
    ramdisk("serve --portal 127.0.0.1:0 --rdma iwarp").fails(2, "no portal has it: write --portal ADDR:PORT,iser");
    ramdisk("serve --portal 127.0.0.1:0,iser --registered-memory lots").fails(2, "--registered-memory lots: ");
    let ended = ramdisk("serve --portal 127.0.0.1:0,iser --rdma roce");
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("[possible values: iwarp, verbs, both]"), "{}", ended.stderr);
}

#[test]
fn no_rdma_device() {
    if std::fs::read_dir("/sys/class/infiniband").is_ok_and(|devices| devices.count() > 0) {
        eprintln!("this machine has an RDMA device: nothing to see here");
        return;
    }
    for rdma in ["verbs", "both"] {
        ramdisk(&format!("serve --portal 127.0.0.1:0,iser --rdma {rdma}"))
            .fails(1, "or use --rdma iwarp, which needs nothing");
    }
    let server = Serving::iser(&format!("--target {TARGET} --lun 1M"));
    assert!(server.said.contains("iSER over iwarp, in user space"), "{}", server.said);
    assert!(server.said.contains("Not over verbs: "), "{}", server.said);
    iscsi(&format!("info {}?rdma=verbs", server.iser_url(0))).fails(3, "rdma=iwarp needs none");
}

#[test]
fn iser_at_a_target_without_it() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M"));
    for job in ["info", "luns", "login-test", "verify", "bench"] {
        let started = Instant::now();
        iscsi(&format!("{job} {}?rdma=iwarp", server.iser_url(0))).fails(3, "offers no iSER");
        assert!(started.elapsed().as_secs() < 10);
    }
    let started = Instant::now();
    let info = iscsi(&format!("info {}?transport=auto --json", server.url(0))).json();
    assert_eq!(info["session"]["Transport"], "tcp");
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
}

#[test]
fn nobody_listens() {
    let (listener, address) = listener();
    drop(listener);
    iscsi(&format!("info iscsi://{address}/{TARGET}/0")).fails(3, "refuses the connection: check that the target runs");
    iscsi(&format!("discover {address}")).fails(3, "refuses the connection: check that the target runs");
    iscsi(&format!("info iser://{address}/{TARGET}/0")).fails(3, "refuses the connection: check that the target runs");
}

/// Serves what `answer` does to the first bytes of each connection.
fn peer(answer: &'static [u8]) -> String {
    let (listener, address) = listener();
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for mut stream in listener.incoming().flatten() {
            // What the peer sends does not matter, nor whether it is still there.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
            silent.push(stream);
        }
    });
    address
}

#[test]
fn a_peer_that_is_no_iscsi() {
    let address =
        peer(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>400</html>\r\n");
    let sentence = format!("what answers at {address} does not speak iSCSI: check the port");
    iscsi(&format!("info iscsi://{address}/{TARGET}/0")).fails(3, &sentence);
    iscsi(&format!("discover {address}")).fails(3, &sentence);
}

#[test]
fn a_peer_that_goes_silent() {
    let address = peer(b"");
    for line in [format!("info iscsi://{address}/{TARGET}/0"), format!("discover {address}")] {
        let started = Instant::now();
        iscsi(&format!("{line} --timeout 1")).fails(3, "was silent for 1s during login");
        assert!(started.elapsed().as_secs() < 10);
    }
}

#[test]
fn a_copy_that_does_not_fit() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M"));
    let large = TempFile::new("large", &vec![1; 2 << 20]);
    iscsi(&format!("copy {} {}", large.path(), server.url(0)))
        .fails(1, "holds 1.0 MiB, which is less than the 2.0 MiB");
    let odd = TempFile::new("odd", &[1; 1000]);
    iscsi(&format!("copy {} {}", odd.path(), server.url(0))).fails(1, "is no whole number of blocks of 512 bytes");
}

#[test]
fn a_write_to_a_protected_lun() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M --read-only"));
    let file = TempFile::new("protected", &[1; 512]);
    let ended = iscsi(&format!("copy {} {}", file.path(), server.url(0)));
    ended.fails(1, "WRITE");
}

#[test]
fn data_that_differ_have_their_own_exit_code() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M"));
    iscsi(&format!("verify {} --check-only", server.url(0))).fails(5, "sector 0 differs");
}

#[test]
fn a_bad_configuration_names_the_line() {
    let unknown = TempFile::new("unknown.toml", b"portal = [\"127.0.0.1:0\"]\n\nlunch = 3\n");
    ramdisk(&format!("serve --config {}", unknown.path()))
        .fails(2, &format!("{}, line 3: unknown field `lunch`", unknown.path()));
    let broken = TempFile::new("broken.toml", b"read_only = true\nchap = [\n");
    ramdisk(&format!("serve --config {}", broken.path())).fails(2, "line ");
    let size = TempFile::new("size.toml", b"[[target]]\nlun = [\"1Q\"]\n");
    ramdisk(&format!("serve --config {}", size.path())).fails(2, "LUN \"1Q\"");
}
