//! Secrets: where they may come from, and who does not see them.
#![expect(dead_code, reason = "each test program uses a part of the module")]

mod program;

use std::os::unix::fs::PermissionsExt;

use program::{ISCSI, Input, Serving, TARGET, TempFile, iscsi, run_in, shown_arguments};

const OWN: &str = "a-secret-of-alice";
const TARGETS: &str = "a-secret-of-disks";

fn server() -> Serving {
    Serving::ramdisk(&format!("--target {TARGET} --lun 1M --chap alice:{OWN} --mutual-chap disk:{TARGETS}"))
}

fn private(name: &str, content: &str) -> TempFile {
    let file = TempFile::new(name, content.as_bytes());
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    file
}

#[test]
fn a_file_of_the_owners_alone_has_the_secret() {
    let server = server();
    let portal = server.portal();
    let file = private("secret", &format!("{OWN}\n"));
    let with = |job: &str, url: &str| iscsi(&format!("{job} {url} --password-file {}", file.path()));
    let url = format!("iscsi://alice@{portal}/{TARGET}/0");
    assert!(with("login-test", &url).ok().contains("CHAP"));
    assert!(with("discover", &format!("iscsi://alice@{portal}")).ok().contains(TARGET));
    with("info", &server.url(0)).fails(2, "lacks its name: write user@host");
    iscsi(&format!("info {url}")).fails(2, "the account alice lacks its secret: give it by --password-file FILE");
    // One that the URL has goes first.
    with("info", &format!("iscsi://alice%not-alices-secret@{portal}/{TARGET}/0")).fails(4, "check the CHAP user");
    for mode in [0o640, 0o604, 0o622] {
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        with("info", &url).fails(1, "may be read or written by others: give it to its owner alone with `chmod 600");
    }
    iscsi(&format!("info {url} --password-file /no/such/file")).fails(1, "there is no /no/such/file");
    let empty = private("secret-empty", "");
    iscsi(&format!("info {url} --password-file {}", empty.path())).fails(2, "it is empty");
}

#[test]
fn a_file_in_open_iscsis_manner_has_both_accounts() {
    let server = server();
    let record = private(
        "record",
        &format!(
            "# BEGIN RECORD 2.1.8\nnode.name = {TARGET}\nnode.session.auth.authmethod = CHAP\n\
             node.session.auth.username = alice\nnode.session.auth.password = {OWN}\n\
             node.session.auth.username_in = disk\nnode.session.auth.password_in = {TARGETS}\n# END RECORD\n"
        ),
    );
    let told = iscsi(&format!("login-test {} --password-file {}", server.url(0), record.path())).ok();
    assert!(told.contains("CHAP, both ways"), "{told}");
    assert!(iscsi(&format!("discover {} --password-file {}", server.portal(), record.path())).ok().contains(TARGET));
}

#[test]
fn the_environment_has_the_secret() {
    let server = server();
    let run =
        |variables: &[(&str, &str)]| run_in(ISCSI, &["login-test", &server.url(0)], Input::None, variables).text();
    let own = [("LIBISCSI_CHAP_USERNAME", "alice"), ("LIBISCSI_CHAP_PASSWORD", OWN)];
    assert!(run(&own).ok().contains("CHAP"));
    let targets = [("LIBISCSI_CHAP_TARGET_USERNAME", "disk"), ("LIBISCSI_CHAP_TARGET_PASSWORD", TARGETS)];
    assert!(run(&[own, targets].concat()).ok().contains("CHAP, both ways"));
    run(&[own[0], ("LIBISCSI_CHAP_PASSWORD", "not-alices-secret")]).fails(4, "check the CHAP user and secret");
    run(&[]).fails(4, "check the CHAP user and secret");
}

#[test]
fn the_list_of_processes_shows_no_secret() {
    let server = server();
    let shown = shown_arguments(server.pid(), "alice:***");
    assert!(!shown.contains(OWN) && !shown.contains(TARGETS), "{shown}");
    assert!(shown.contains("disk:***") && shown.contains(TARGET), "{shown}");
    let url = format!(
        "iscsi://alice%{OWN}@{}/{TARGET}/0?target_user=disk&target_password={TARGETS}&initiator=iqn.2026-11.example:me",
        server.portal()
    );
    // It reads its input for ever.
    let mut copy = program::start(ISCSI, &["copy", "-", &url]);
    let shown = shown_arguments(copy.pid(), "alice%***@");
    assert!(!shown.contains(OWN) && !shown.contains(TARGETS), "{shown}");
    assert!(shown.contains("target_password=***&initiator=iqn.2026-11.example:me"), "{shown}");
    assert!(copy.is_running());
}
