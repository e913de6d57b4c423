//! What the fuzz target `configuration` runs. Its corpus is replayed by the tests here.

use super::{Layout, Options};
use crate::ending::Why;

/// A secret that may be in accounts, and must not be in what is told of them.
const SECRET: &str = "twelve-bytes";

/// Any text as a configuration file.
///
/// # Panics
/// If what is made of it cannot be, or what is told of it is no sentence that names a line and no secret.
pub fn configuration(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let told = match Options::from_toml(&text) {
        Ok(options) => {
            assert!(Options::default().and(options.clone()) == options, "nothing before changes nothing");
            assert!(options.clone().and(Options::default()) == options, "nothing behind changes nothing");
            match Layout::of(options) {
                Ok(layout) => return check(&layout),
                Err(ending) => {
                    assert_eq!(ending.why(), Why::Usage);
                    ending.to_string()
                }
            }
        }
        Err(bad) => {
            assert!((1..=1 + text.matches('\n').count()).contains(&bad.line), "there is no line {}", bad.line);
            assert!(!bad.sentence.contains('\n'), "one line: {}", bad.sentence);
            bad.sentence
        }
    };
    assert!(!told.is_empty());
    assert!(!is_secret(&text) || !told.contains(SECRET), "a secret is told: {told}");
}

/// Whether [`SECRET`] stands where secrets do, and nowhere else.
fn is_secret(text: &str) -> bool {
    let Ok(mut table) = text.parse::<toml::Table>() else { return false };
    let accounts = ["chap", "mutual_chap"].map(|key| table.remove(key));
    let shown = |value: &dyn core::fmt::Debug| format!("{value:?}").contains(SECRET);
    accounts.iter().any(|account| shown(account)) && !shown(&table)
}

/// What every layout has.
fn check(layout: &Layout) {
    assert!(!layout.portals.is_empty() && !layout.targets.is_empty());
    assert!(layout.targets.iter().all(|target| !target.luns.is_empty()));
    assert!(layout.iser() || (layout.rdma, layout.registered_memory) == (None, None));
    let accounts = || layout.chap.iter().chain(&layout.mutual_chap);
    assert!(accounts().all(|account| !account.user.is_empty() && (12..=255).contains(&account.secret.len())));
    if let Some(own) = &layout.mutual_chap {
        assert!(!layout.chap.is_empty() && layout.chap.iter().all(|other| other.secret != own.secret));
    }
    assert!(
        accounts()
            .all(|account| !format!("{account:?}").contains(&account.secret) || account.user.contains(&account.secret))
    );
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    const WHOLE: &str = "portal = [\"127.0.0.1:0\", \"[::1]:3260,iser\"]
rdma = \"iwarp\"
registered_memory = \"64M\"
chap = [\"alice:twelve-bytes\"]
mutual_chap = \"disk:other-twelve\"
initiator = [\"iqn.2026-11.example:me\"]
read_only = true
lasting_identity = true
attribute = [\"emulate_tas=1\", \"max_transfer=65536\"]
[[target]]
name = \"iqn.2026-11.example:disk\"
lun = [\"1G\", \"null:2M\", \"ram:3T\"]
[[target]]
lun = [\"file:/x\"]
";
    /// The seeds made by hand. With `WRITE_CORPUS=1` the test below writes them.
    const SEEDS: [(&str, &str); 5] = [
        ("whole", WHOLE),
        ("secret_alone", "chap = \"alice:twelve-bytes\"\nmutual_chap = [\"twelve-bytes\"]\n"),
        ("secret_in_a_table", "[[chap]]\nuser = \"alice\"\npassword = \"twelve-bytes\"\n"),
        ("no_portal_for_iser", "rdma = \"both\"\nportal = [\"a:1,rdma\"]\n"),
        ("unknown", "read_only = 1\n\n[target]\nlunch = [1979-05-27, nan, 0x1F, '''\n''']\n"),
    ];

    fn corpus() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/configuration")
    }

    #[test]
    fn the_corpus_passes() {
        let files: Vec<_> = std::fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= SEEDS.len());
        for file in files {
            let data = std::fs::read(&file).unwrap();
            assert!(std::panic::catch_unwind(|| configuration(&data)).is_ok(), "{} fails", file.display());
        }
    }

    #[test]
    fn a_whole_file_is_read_whole() {
        let layout = Layout::of(Options::from_toml(WHOLE).ok().unwrap()).unwrap();
        assert_eq!((layout.portals.len(), layout.targets.len(), layout.targets[0].luns.len()), (2, 2, 3));
        assert!(layout.read_only && layout.lasting_identity && layout.attributes.unit.emulate_tas);
        assert_eq!(layout.mutual_chap.unwrap().user, "disk");
    }

    #[test]
    fn no_secret_is_told() {
        for text in
            ["chap = \"alice:twelve-bytes\"", "chap = [{ \"twelve-bytes\" = 1 }]", "mutual_chap = [\"twelve-bytes\"]"]
        {
            let bad = Options::from_toml(text).err().unwrap();
            assert!(bad.line == 1 && bad.sentence.contains("USER:SECRET"), "{bad}");
            assert!(is_secret(text) && !bad.sentence.contains(SECRET), "{bad}");
        }
    }

    /// `WRITE_CORPUS=1 cargo test -p examples --lib` puts them there first.
    #[test]
    fn the_seeds_made_by_hand_are_in_the_corpus() {
        for (name, text) in SEEDS {
            let file = corpus().join(name);
            if std::env::var_os("WRITE_CORPUS").is_some() {
                std::fs::create_dir_all(corpus()).unwrap();
                std::fs::write(&file, text).unwrap();
            }
            let there = std::fs::read(&file).is_ok_and(|there| there == text.as_bytes());
            assert!(there, "{}: run with WRITE_CORPUS=1", file.display());
        }
    }
}
