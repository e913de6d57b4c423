//! The name that this machine logs in under where none is given.
//!
//! A target tells initiators apart by their names, in access lists, in persistent reservations, and when it takes a
//! login for one that comes back. So each machine has its own, made once and kept, as open-iscsi does it.

use alloc::string::String;
use std::fs::{self, DirBuilder, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{env, io};

use iscsi_proto::name::IscsiName;

use crate::error::Error;

/// Where open-iscsi keeps the machine's name.
const OPEN_ISCSI: &str = "/etc/iscsi/initiatorname.iscsi";
/// What names that are made here begin with; random digits follow.
const PREFIX: &str = "iqn.2026-11.com.example.iscsi:";

/// The initiator name of this machine: what sessions and discoveries log in under that were given none.
///
/// It is, in this order, that of open-iscsi (`/etc/iscsi/initiatorname.iscsi`, a line `InitiatorName=iqn.…`), if this
/// process may read it; the one in `iscsi/initiatorname.iscsi` of the user's state directory (`$XDG_STATE_HOME`, else
/// `~/.local/state`), which is made there of random digits if there is none yet; where that cannot be written, one of
/// random digits that lasts as long as the process. It stays the same for the life of the process.
///
/// ```
/// let name = initiator_core::default_initiator_name().unwrap();
/// assert!(name.starts_with("iqn.") || name.starts_with("eui.") || name.starts_with("naa."));
/// assert_eq!(initiator_core::default_initiator_name().unwrap(), name);
/// ```
///
/// # Errors
/// [`Error::NoRandomness`], where a name is to be made and the system gives no random bytes.
pub fn default_initiator_name() -> Result<String, Error> {
    static NAME: OnceLock<String> = OnceLock::new();
    if let Some(name) = NAME.get() {
        return Ok(name.clone());
    }
    let name = find(Path::new(OPEN_ISCSI), state_directory().as_deref(), &crate::entropy::bytes)?;
    Ok(NAME.get_or_init(|| name).clone())
}

fn state_directory() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))
}

fn find(open_iscsi: &Path, state: Option<&Path>, random: &dyn Fn() -> Result<[u8; 6], Error>) -> Result<String, Error> {
    if let Some(name) = read(open_iscsi) {
        return Ok(name);
    }
    let own = state.map(|directory| directory.join("iscsi/initiatorname.iscsi"));
    if let Some(name) = own.as_deref().and_then(read) {
        return Ok(name);
    }
    let digits: String = random()?.iter().map(|byte| alloc::format!("{byte:02x}")).collect();
    let made = alloc::format!("{PREFIX}{digits}");
    // Who came first has made the name of all.
    let kept = own.and_then(|path| keep(&path, &made, &digits).ok().and_then(|()| read(&path)));
    Ok(kept.unwrap_or(made))
}

/// The name in a file of open-iscsi's form.
fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let name = text.lines().find_map(|line| line.trim().strip_prefix("InitiatorName="))?.trim();
    IscsiName::new(name).ok().map(|_| name.into())
}

/// Writes the file, unless there is one with a name: whole, or not at all. Who comes second waits by a lock of the
/// directory, since not every file system has links or a way to rename that spares what is there; where one has no
/// locks either, two that make the first name at the same moment may take two.
fn keep(path: &Path, name: &str, digits: &str) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(directory)?;
    // A directory is opened as a file is on the systems that have a lock for it.
    let lock = File::open(directory).ok().filter(|directory| directory.lock().is_ok());
    if read(path).is_none() {
        let whole = directory.join(alloc::format!("initiatorname.{digits}"));
        fs::write(&whole, alloc::format!("InitiatorName={name}\n"))?;
        fs::rename(&whole, path)?;
    }
    drop(lock);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that goes with the test.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(alloc::format!("initiator-name-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const NOWHERE: &str = "/nowhere/initiatorname.iscsi";

    fn digits(n: u8) -> impl Fn() -> Result<[u8; 6], Error> {
        move || Ok([n; 6])
    }

    fn none() -> Result<[u8; 6], Error> {
        Err(Error::NoRandomness(crate::error::words("there is none")))
    }

    #[test]
    fn the_machines_name_is_that_of_open_iscsi() {
        let home = Directory::new("etc");
        let file = home.0.join("initiatorname.iscsi");
        fs::write(&file, "## made at install time\n\nInitiatorName=iqn.1993-08.org.debian:01:abc  \n").unwrap();
        assert_eq!(find(&file, Some(&home.0), &none).unwrap(), "iqn.1993-08.org.debian:01:abc");
        assert!(!home.0.join("iscsi").exists(), "none is made");
        for text in [
            "GenerateName=yes\n",
            "InitiatorName=\n",
            "InitiatorName=not a name\n",
            "#InitiatorName=iqn.2004-10.com.example:a\n",
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(find(&file, None, &digits(1)).unwrap(), "iqn.2026-11.com.example.iscsi:010101010101", "{text}");
        }
    }

    #[test]
    fn a_name_is_made_once_and_kept() {
        let home = Directory::new("state");
        let names: std::collections::BTreeSet<_> = std::thread::scope(|scope| {
            let makers: Vec<_> = (1..9)
                .map(|n| scope.spawn(move || find(Path::new(NOWHERE), Some(&home_path()), &digits(n)).unwrap()))
                .collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        fn home_path() -> PathBuf {
            env::temp_dir().join(alloc::format!("initiator-name-state-{}", std::process::id()))
        }
        assert_eq!(names.len(), 1, "all take the name of the first: {names:?}");
        assert_eq!(find(Path::new(NOWHERE), Some(&home.0), &none).unwrap(), *names.first().unwrap());
        let left: Vec<_> =
            fs::read_dir(home.0.join("iscsi")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["initiatorname.iscsi"]);
    }

    #[test]
    fn a_file_without_a_name_gets_one() {
        let home = Directory::new("empty");
        fs::create_dir_all(home.0.join("iscsi")).unwrap();
        fs::write(home.0.join("iscsi/initiatorname.iscsi"), "").unwrap();
        let name = find(Path::new(NOWHERE), Some(&home.0), &digits(1)).unwrap();
        assert_eq!(find(Path::new(NOWHERE), Some(&home.0), &digits(2)).unwrap(), name);
    }

    #[test]
    fn where_nothing_can_be_kept_a_name_is_made_of_random_digits() {
        let home = Directory::new("file");
        let file = home.0.join("no-directory");
        fs::write(&file, "").unwrap();
        for state in [None, Some(file.as_path())] {
            let name = find(Path::new(NOWHERE), state, &digits(0xab)).unwrap();
            assert_eq!(name, "iqn.2026-11.com.example.iscsi:abababababab");
            assert!(matches!(find(Path::new(NOWHERE), state, &none), Err(Error::NoRandomness(_))));
        }
    }
}
