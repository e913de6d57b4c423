//! Making the guest: Debian's kernel and modules, and an initrd that hands over to the host's root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Guest, directory};
use crate::process::run;
use crate::{Context, Failure, Result, packages, programs};

/// Time for the download of a kernel package (about 100 MB).
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(900);

const LIMIT: Duration = Duration::from_secs(120);

/// What the initrd loads before it can mount the host's root; `modprobe` adds what these depend on.
const EARLY_MODULES: [&str; 4] = ["9pnet_virtio", "9p", "overlay", "virtio_net"];

/// Commands that the initrd's `init` uses, all of them busybox.
const APPLETS: [&str; 8] = ["sh", "mount", "mkdir", "insmod", "ln", "switch_root", "cat", "sed"];

impl Guest {
    /// The guest, made now if it is not there yet. Made once per directory; tests that come at the same
    /// time wait for each other.
    ///
    /// # Errors
    /// When a package is missing or the kernel cannot be downloaded.
    pub fn made() -> Result<Self> {
        let directory = std::path::absolute(directory()).context("the guest's directory")?;
        fs::create_dir_all(directory.join("runs")).context(format!("making {}", directory.display()))?;
        let _lock = Lock::take(&directory.join("make.lock"))?;
        let kernel_root = directory.join("kernel");
        if !kernel_root.exists() {
            fetch_kernel(&directory, &kernel_root)?;
        }
        let modules_root = [kernel_root.join("lib/modules"), kernel_root.join("usr/lib/modules")]
            .into_iter()
            .find(|path| path.is_dir())
            .ok_or_else(|| Failure::new(format!("no modules in {}: remove it and try again", kernel_root.display())))?;
        let release = only_entry(&modules_root)?;
        let recipe = programs::checkout().join("interop/guest/init.sh");
        let initrd = directory.join(format!("initrd-{:016x}", fingerprint(&recipe, &release)?));
        if !initrd.exists() {
            make_initrd(&directory, &modules_root, &release, &recipe, &initrd)?;
        }
        Ok(Self {
            kernel: kernel_root.join(format!("boot/vmlinuz-{release}")),
            modules: modules_root.join(&release),
            directory,
            release,
            initrd,
        })
    }

    /// The guest's kernel release, as `uname -r` prints it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Where the guest and its runs are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn kernel(&self) -> &Path {
        &self.kernel
    }

    pub(super) fn modules(&self) -> &Path {
        &self.modules
    }

    pub(super) fn initrd(&self) -> &Path {
        &self.initrd
    }
}

/// An advisory lock on a file, held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(path: &Path) -> Result<Self> {
        let file = File::create(path).context(format!("making {}", path.display()))?;
        file.lock().context(format!("locking {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

/// Downloads the kernel package and unpacks it. The directory appears under its name only when whole.
fn fetch_kernel(directory: &Path, kernel_root: &Path) -> Result<()> {
    let package = kernel_package()?;
    let work = directory.join(format!("fetch-{}", std::process::id()));
    fs::create_dir_all(&work).context(format!("making {}", work.display()))?;
    let mut download = Command::new("apt-get");
    download.args(["download", &package]).current_dir(&work);
    run(&download, DOWNLOAD_LIMIT)?.success()?;
    let archive = only_entry(&work)?;
    let tree = work.join("tree");
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("--extract").arg(work.join(archive)).arg(&tree);
    run(&unpack, LIMIT)?.success()?;
    let modules = ["lib/modules", "usr/lib/modules"].map(|path| tree.join(path)).into_iter().find(|path| path.is_dir());
    let release = only_entry(&modules.ok_or_else(|| Failure::new(format!("{package} has no modules")))?)?;
    // modules.dep and its kin are made by the package's install script, which did not run.
    let mut depmod = packages::command("depmod")?;
    depmod.arg("--basedir").arg(&tree).arg(&release);
    run(&depmod, LIMIT)?.success()?;
    fs::rename(&tree, kernel_root).context(format!("naming {}", kernel_root.display()))?;
    fs::remove_dir_all(&work).context(format!("removing {}", work.display()))
}

/// The newest image that Debian's meta package stands for: from backports where that suite is known
/// (Debian 12's own kernel is too old for some of the jobs), else from the release itself.
fn kernel_package() -> Result<String> {
    let codename = codename().unwrap_or_default();
    for meta in [format!("linux-image-amd64/{codename}-backports"), "linux-image-amd64".to_owned()] {
        let mut depends = Command::new("apt-cache");
        depends.args(["depends", "--important", &meta]);
        let output = run(&depends, LIMIT)?.stdout;
        let image = output.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        if let Some(image) = image.map(str::trim).find(|name| name.starts_with("linux-image-")) {
            return Ok(image.to_owned());
        }
    }
    Err(Failure::new("apt knows no package linux-image-amd64: run `cargo xtask setup`, which updates its lists"))
}

fn codename() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).map(str::to_owned)
}

/// Packs busybox, `init` and the early modules into a cpio archive, uncompressed.
fn make_initrd(directory: &Path, modules_root: &Path, release: &str, recipe: &Path, initrd: &Path) -> Result<()> {
    let busybox = packages::program("busybox")?;
    let work = directory.join(format!("initrd-{}", std::process::id()));
    let tree = work.join("tree");
    for name in ["bin", "dev", "proc", "sys", "host", "overlay", "newroot", "modules"] {
        fs::create_dir_all(tree.join(name)).context("making the initrd's directories")?;
    }
    fs::copy(&busybox, tree.join("bin/busybox")).context("copying busybox")?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).context("linking busybox")?;
    }
    fs::copy(recipe, tree.join("init")).context("copying the initrd's init")?;
    set_executable(&tree.join("init"))?;
    for (number, module) in early_modules(modules_root, release)?.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let plain = name.trim_end_matches(".xz");
        // Two digits keep the order of loading in the order of names.
        let target = tree.join("modules").join(format!("{number:02}-{plain}"));
        if plain == name {
            fs::copy(module, &target).context(format!("copying {name}"))?;
        } else {
            shell(&busybox, &format!("\"$BUSYBOX\" xzcat < '{}' > '{}'", quoted(module), quoted(&target)))?;
        }
    }
    let packed = work.join("initrd");
    let script =
        format!("cd '{}' && \"$BUSYBOX\" find . | \"$BUSYBOX\" cpio -o -H newc > '{}'", quoted(&tree), quoted(&packed));
    shell(&busybox, &script)?;
    fs::rename(&packed, initrd).context(format!("naming {}", initrd.display()))?;
    fs::remove_dir_all(&work).context(format!("removing {}", work.display()))
}

/// The early modules and all they depend on, in the order of loading.
fn early_modules(modules_root: &Path, release: &str) -> Result<Vec<PathBuf>> {
    // modprobe appends `lib/modules` to the directory it is given.
    let base = modules_root.ancestors().nth(2).unwrap_or(modules_root);
    let mut found: Vec<PathBuf> = Vec::new();
    for module in EARLY_MODULES {
        let mut command = packages::command("modprobe")?;
        command.arg("--dirname").arg(base).args(["--set-version", release, "--show-depends", module]);
        for line in run(&command, LIMIT)?.success()?.stdout.lines() {
            let path = line.trim().strip_prefix("insmod ").map(|path| PathBuf::from(path.trim()));
            if let Some(path) = path
                && !found.contains(&path)
            {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn shell(busybox: &Path, script: &str) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).env("BUSYBOX", busybox);
    run(&command, LIMIT)?.success().map(drop)
}

/// A path inside single quotes of a shell script.
fn quoted(path: &Path) -> String {
    path.display().to_string().replace('\'', r"'\''")
}

fn set_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context(format!("chmod {}", path.display()))
}

pub(super) fn only_entry(directory: &Path) -> Result<String> {
    let what = || format!("reading {}", directory.display());
    let mut entries = fs::read_dir(directory).context(what())?;
    let entry = entries.next().ok_or_else(|| Failure::new(format!("{} is empty", directory.display())))?;
    Ok(entry.context(what())?.file_name().to_string_lossy().into_owned())
}

/// Changes when the initrd must be made anew: FNV-1a over all that goes into it.
fn fingerprint(recipe: &Path, release: &str) -> Result<u64> {
    let script = fs::read(recipe).context(format!("reading {}", recipe.display()))?;
    let names = EARLY_MODULES.iter().chain(&APPLETS).flat_map(|name| name.bytes().chain([0]));
    let bytes = script.into_iter().chain(release.bytes()).chain(names);
    Ok(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}
