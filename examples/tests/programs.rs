//! The programs at work: what they serve, show, copy, check and measure.
#![expect(dead_code, reason = "each test program uses a part of the module")]

mod program;

use program::{EMBED, RAMDISK, Serving, TARGET, TempFile, iscsi, ramdisk};

#[test]
fn ctrl_c_ends_serve_cleanly() {
    let server = Serving::ramdisk("");
    assert!(server.said.contains("1GiB, rw"), "{}", server.said);
    assert!(server.said.contains("iscsiadm -m discovery -t sendtargets"), "{}", server.said);
    let (code, rest) = server.interrupt();
    assert_eq!(code, Some(0), "{rest}");
    assert!(rest.contains("Ending"), "{rest}");
}

#[test]
fn several_targets_luns_and_portals() {
    let image = TempFile::new("image", &vec![7; 1 << 20]);
    let server = Serving::ramdisk(&format!(
        "--portal 127.0.0.2:0 --target {TARGET} --lun 16M --lun null:1T --lun file:{} \
         --target iqn.2026-11.example:two --lun 32M",
        image.path()
    ));
    let found = iscsi(&format!("discover {} --json", server.portal())).json();
    let targets = found["targets"].as_array().unwrap();
    assert_eq!(targets.len(), 2, "{found}");
    assert_eq!(targets[0]["portals"].as_array().unwrap().len(), 2, "{found}");
    let text = iscsi(&format!("discover {}", server.portal())).ok();
    assert!(text.contains(&format!("{},1 {TARGET}", server.portal())), "{text}");
    let luns = iscsi(&format!("luns {} --json", server.url(0))).json();
    let sizes: Vec<_> = luns["luns"].as_array().unwrap().iter().map(|lun| lun["bytes"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [16 << 20, 1 << 40, 1 << 20], "{luns}");
    let last = format!("iscsi://{}/iqn.2026-11.example:two/0", server.portals().pop().unwrap());
    assert!(iscsi(&format!("luns {last}")).ok().contains("LUN 0: ISCSI-RS RAM DISK"));
    let back = TempFile::new("image-back", b"");
    iscsi(&format!("copy {} {}", server.url(2), back.path())).ok();
    assert!(back.read() == image.read());
}

#[test]
fn info_shows_the_disk_and_the_session() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 50G --read-only"));
    let text = iscsi(&format!("info {}", server.url(0))).ok();
    for line in
        ["Vendor", "Product", "Revision", "50.0 GiB", "Write protect             on", "Write cache", "Read cache"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    let info = iscsi(&format!("info {} --json --initiator iqn.2026-11.example:me", server.url(0))).json();
    assert_eq!(info["session"]["Initiator"], "iqn.2026-11.example:me");
    assert_eq!(info["session"]["Target"], TARGET);
    assert_eq!(info["disk"]["Product"], "RAM DISK");
}

#[test]
fn chap_both_ways_with_digests() {
    let server = Serving::ramdisk(&format!(
        "--target {TARGET} --lun 16M --chap alice:a-secret-of-alice --mutual-chap disk:a-secret-of-disks"
    ));
    let account = "alice%a-secret-of-alice@";
    let url = format!(
        "iscsi://{account}{}/{TARGET}/0?target_user=disk&target_password=a-secret-of-disks\
         &header-digest=crc32c&data-digest=crc32c",
        server.portal()
    );
    let text = iscsi(&format!("login-test {url}")).ok();
    assert!(text.contains("CHAP, both ways") && text.contains("CRC32C"), "{text}");
    assert!(iscsi(&format!("verify {url}")).ok().contains("16.0 MiB verified"));
    assert!(iscsi(&format!("discover iscsi://{account}{}", server.portal())).ok().contains(TARGET));
}

#[test]
fn only_named_initiators_may_log_in() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 1M --initiator iqn.2026-11.example:me"));
    iscsi(&format!("info {}", server.url(0))).fails(4, "access list");
    iscsi(&format!("info {} --initiator iqn.2026-11.example:me", server.url(0))).ok();
}

#[test]
fn a_configuration_file_and_json() {
    let file = TempFile::new(
        "good.toml",
        b"portal = [\"127.0.0.1:0\"]\nread_only = false\n[[target]]\nname = \"iqn.2026-11.example:disk\"\n\
          lun = [\"1M\", \"null:2M\"]\n[[target]]\nlun = [\"3M\"]\n",
    );
    let server = Serving::start(RAMDISK, &["serve", "--config", file.path(), "--json"], "}");
    let shown: serde_json::Value = serde_json::from_str(&server.said).unwrap();
    let targets = shown["targets"].as_array().unwrap();
    assert_eq!(targets[0]["name"], TARGET);
    assert_eq!(targets[0]["luns"][1]["bytes"], 2 << 20);
    assert!(targets[1]["name"].as_str().unwrap().starts_with("iqn."), "{shown}");
    let portal = targets[0]["portals"][0]["address"].as_str().unwrap();
    iscsi(&format!("info iscsi://{portal}/{TARGET}/1")).ok();
    assert_eq!(server.interrupt(), (Some(0), String::new()));
}

#[test]
fn a_file_travels_through_a_lun_and_back() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 8M"));
    let content: Vec<u8> = (0..8u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let there = TempFile::new("there", &content);
    let back = TempFile::new("back", b"longer or shorter before");
    let told = iscsi(&format!("copy {} {} --json", there.path(), server.url(0))).json();
    assert_eq!(told["bytes"], 8 << 20);
    assert!(
        iscsi(&format!("copy {} {} --bs 64K --iodepth 4", server.url(0), back.path())).ok().contains("8.0 MiB copied")
    );
    assert!(back.read() == content);
}

#[test]
fn bench_gives_figures() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 16M --lun 16M"));
    let url = server.url(0);
    for rw in ["randread", "randwrite", "read", "write", "randrw"] {
        let text = iscsi(&format!("bench {url} --rw {rw} --iodepth 8 --number-ios 1000")).ok();
        assert!(text.contains(&format!("rw={rw}")) && text.contains("IOPS"), "{text}");
    }
    let figures = iscsi(&format!("bench {url} {} --threads 2 --runtime 1 --json", server.url(1))).json();
    assert!(figures["read"]["iops"].as_f64().is_some_and(|iops| iops > 100.0), "{figures}");
    assert!(figures["read"]["latency_us"]["p99"].as_f64().is_some_and(|latency| latency > 0.0), "{figures}");
}

#[test]
fn a_portal_serves_tcp_and_iser() {
    let mut server = Serving::iser(&format!("--rdma iwarp --stats --target {TARGET} --lun 16M --lun 8M"));
    assert!(server.said.contains("[tcp, iser over iwarp]"), "{}", server.said);
    assert!(server.said.contains("iSER over iwarp, in user space"), "{}", server.said);
    let record =
        format!("iscsiadm -m node -T {TARGET} -p {} -o update -n iface.transport_name -v iser", server.portal());
    assert!(server.said.contains(&record), "{}", server.said);

    assert_eq!(iscsi(&format!("info {} --json", server.url(0))).json()["session"]["Transport"], "tcp");
    for url in [server.iser_url(0), format!("{}?transport=auto&rdma=iwarp", server.url(0))] {
        let session = iscsi(&format!("info {url} --json")).json()["session"].take();
        assert_eq!(session["Transport"], "iser", "{session}");
        assert_eq!(session["Provider"], "iwarp", "{session}");
        assert_eq!(session["RDMAExtensions"], "Yes", "{session}");
        assert!(session["RDMA Read depth"].as_str().is_some_and(|depth| depth != "0"), "{session}");
    }
    assert!(iscsi(&format!("luns {}", server.iser_url(0))).ok().contains("LUN 1: ISCSI-RS RAM DISK"));
    assert!(iscsi(&format!("login-test {}", server.iser_url(0))).ok().contains("TargetRecvDataSegmentLength"));

    // Written over one transport, read over the other.
    assert!(iscsi(&format!("verify {}", server.iser_url(0))).ok().contains("16.0 MiB verified"));
    assert!(iscsi(&format!("verify {} --check-only --bs 512", server.url(0))).ok().contains("16.0 MiB verified"));
    iscsi(&format!("copy {} {} --bs 1M", server.iser_url(1), server.iser_url(0))).ok();
    let figures = iscsi(&format!("bench {} --rw randrw --runtime 2 --json", server.iser_url(0))).json();
    assert!(figures["write"]["iops"].as_f64().is_some_and(|iops| iops > 100.0), "{figures}");
    let said = server.says("iser over iwarp (user space)");
    assert!(said.contains("RDMA-written") && said.contains("copied by CPU"), "{said}");
    assert_eq!(server.interrupt().0, Some(0));
}

#[test]
fn the_demo_runs_to_its_end() {
    let text = ramdisk("demo --runtime 1 --size 1G --json").ok();
    assert!(text.contains("RAID 0"), "{text}");
    assert!(text.contains("transport iser over iwarp (user space)"), "{text}");
    // Requests of the story are larger than what travels with a command: all of them move by RDMA, and next to nothing
    // is copied.
    let copied =
        text.split("its processor copied ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    assert!(copied.is_some_and(|percent| percent < 10.0), "{text}");
    let json = text.find("\n{").expect("the figures");
    let figures: serde_json::Value = serde_json::from_str(&text[json..]).unwrap();
    let layouts = figures["layouts"].as_array().unwrap();
    for transport in ["tcp", "iser"] {
        let of: Vec<_> = layouts.iter().filter(|entry| entry["transport"] == transport).collect();
        assert_eq!(of.len(), 4, "{figures}");
        assert!(of.iter().all(|entry| entry["randread"]["iops"].as_f64().is_some_and(|iops| iops > 0.0)), "{figures}");
        assert!(of[0]["write"]["bytes_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{figures}");
    }
}

#[test]
fn embed_serves_in_under_50_lines() {
    assert!(include_str!("../src/bin/embed.rs").lines().count() < 50);
    let server = Serving::start(EMBED, &["127.0.0.1:0"], "Serving.");
    let url = format!("iscsi://{}/iqn.2026-11.example.embed:vec/0", server.portal());
    assert!(iscsi(&format!("verify {url} --size 4M")).ok().contains("verified"));
    assert_eq!(server.enter(), Some(0));
}

#[test]
fn every_job_that_moves_data_takes_several_paths() {
    let two = format!("--portal 127.0.0.2:0 --target {TARGET} --lun 4M --lun 4M");
    let server = Serving::ramdisk(&two);
    let [first, second] = &server.portals()[..] else { panic!("{}", server.said) };
    let url = |portal: &str, lun: u16| format!("iscsi://{portal}/{TARGET}/{lun}");
    let verified = iscsi(&format!("verify {} --path {} --json", url(first, 0), url(second, 0))).json();
    assert_eq!((verified["verified_bytes"].as_u64(), verified["passes"].as_u64()), (Some(4 << 20), Some(1)));
    // From two paths to two paths.
    let copy = format!("copy {} {} --verify", url(first, 0), url(first, 1));
    let told = iscsi(&format!("{copy} --from-path {} --to-path {} --json", url(second, 0), url(second, 1))).json();
    assert_eq!((told["bytes"].as_u64(), told["verified"].as_bool()), (Some(4 << 20), Some(true)));
    iscsi(&format!("verify {} --check-only", url(second, 1))).ok();
    for rw in ["randread", "randwrite", "read", "write", "randrw"] {
        let paths = format!("bench {} --path {} --rw {rw}", url(first, 1), url(second, 1));
        let figures = iscsi(&format!("{paths} --iodepth 8 --number-ios 1000 --json")).json();
        let ios = |side: &str| figures[side]["ios"].as_u64().unwrap_or(0);
        assert_eq!(ios("read") + ios("write"), 1000, "{figures}");
    }
    // One path that does not lead there costs nothing; one that leads elsewhere is refused.
    let (_listener, nowhere) = program::listener();
    let away = format!("verify {} --path {} --timeout 1", url(first, 0), url(&nowhere, 0));
    let ended = iscsi(&away);
    assert!(ended.stderr.contains(&format!("no path by {nowhere}")), "{ended:?}");
    ended.ok();
    iscsi(&format!("verify {} --path {}", url(first, 0), url(second, 1))).fails(1, "another disk");
    // Not onto itself, by whatever paths.
    iscsi(&format!("copy {0} {1} --to-path {0}", url(first, 0), url(second, 0))).fails(2, "are the same");
    iscsi(&format!("copy /dev/null {} --from-path {}", url(first, 0), url(second, 0))).fails(2, "--from-path");
    iscsi(&format!("copy {} - --to-path {}", url(first, 0), url(second, 0))).fails(2, "--to-path");
    iscsi(&format!("bench {} {} --path {}", url(first, 0), url(first, 1), url(second, 0))).fails(2, "the one LUN");
}

#[test]
fn ctrl_c_ends_a_verification_after_a_check_of_what_it_has_written() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 8M"));
    let verify = program::start(program::ISCSI, &["verify", &server.url(0), "--passes", "1000000", "--json"]);
    // It has its own way to take the signal once it writes.
    let writes = || {
        let disk = program::run_with(program::ISCSI, &["copy", &server.url(0), "-"], program::Input::None);
        disk.stdout.iter().any(|byte| *byte != 0)
    };
    while !writes() {}
    program::signal(verify.pid(), "INT");
    let ended = verify.end().json();
    assert!(ended["passes"].as_u64().is_some_and(|passes| passes >= 1), "{ended}");
    assert!(ended["verified_bytes"].as_u64().is_some_and(|bytes| bytes <= 8 << 20), "{ended}");
}

/// A portal before another one, which cuts its first connection after so many bytes.
fn cuts_once(to: String, after: u64) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for (n, near) in listener.incoming().flatten().enumerate() {
            let far = std::net::TcpStream::connect(&to).unwrap();
            let most = if n == 0 { after } else { u64::MAX };
            for (from, to, most) in [(&near, &far, most), (&far, &near, u64::MAX)] {
                let (from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut std::io::Read::take(&from, most), &mut to);
                    let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
                });
            }
        }
    });
    port
}

#[test]
fn a_target_that_is_lost_and_comes_back_is_told() {
    let server = Serving::ramdisk(&format!("--target {TARGET} --lun 4M"));
    let port = cuts_once(server.portal().to_string(), 1 << 20);
    let ended = iscsi(&format!("verify iscsi://127.0.0.1:{port}/{TARGET}/0"));
    let stderr = ended.stderr.clone();
    ended.ok();
    let lines: Vec<_> = stderr.lines().collect();
    let [lost, back] = lines[..] else { panic!("{stderr}") };
    assert!(lost.starts_with(&format!("iscsi: lost the target at 127.0.0.1:{port} (")), "{lost}");
    assert!(lost.ends_with("), trying again for 120 s"), "{lost}");
    assert_eq!(back, format!("iscsi: the target is back, at 127.0.0.1:{port}"));
}
