//! Making `siw.ko`, the kernel's soft-iWARP, which Debian's kernel packages leave out.
//!
//! Only this one module is compiled: against the headers of the guest's kernel, from Debian's source package of the
//! same version. All of it happens below the guest's directory; nothing is installed on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Guest;
use super::image::{Lock, only_entry};
use crate::process::run;
use crate::{Context, Failure, Result, packages};

/// Time for the download of the kernel's source (about 150 MB).
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(900);

/// Time for unpacking the source and compiling the module.
const BUILD_LIMIT: Duration = Duration::from_secs(600);

/// Where the module's source is in the kernel's.
const SOURCE: &str = "drivers/infiniband/sw/siw";

impl Guest {
    /// The path of `siw.ko` for the guest's kernel, made now if it is not there yet.
    ///
    /// # Errors
    /// When apt has no headers or source of this kernel any more, or the module does not compile.
    pub fn soft_iwarp(&self) -> Result<PathBuf> {
        let _lock = Lock::take(&self.directory().join("make.lock"))?;
        let module = self.directory().join(format!("siw-mended-{}.ko", self.release()));
        if !module.exists() {
            let work = self.directory().join(format!("siw-{}", std::process::id()));
            fs::create_dir_all(&work).context(format!("making {}", work.display()))?;
            let built = download(&work, self.release()).and_then(|tree| compile(&work, &tree, self.release()))?;
            fs::rename(&built, &module).context(format!("naming {}", module.display()))?;
            fs::remove_dir_all(&work).context(format!("removing {}", work.display()))?;
        }
        Ok(module)
    }
}

/// Downloads and unpacks the headers, what they need, and the source, into one tree.
fn download(work: &Path, release: &str) -> Result<PathBuf> {
    let headers = format!("linux-headers-{release}");
    let mut depends = Command::new("apt-cache");
    depends.args(["depends", "--important", &headers]);
    let parts = run(&depends, DOWNLOAD_LIMIT)?.stdout;
    let parts = parts.lines().filter_map(|line| line.trim().strip_prefix("Depends: ").map(str::trim));
    let parts = parts.filter(|name| name.ends_with("-common") || name.starts_with("linux-kbuild-"));
    let mut show = Command::new("apt-cache");
    show.args(["show", &headers]);
    let shown = run(&show, DOWNLOAD_LIMIT)?.stdout;
    let version = shown.lines().find_map(|line| line.strip_prefix("Version: ")).ok_or_else(|| {
        Failure::new(format!(
            "apt knows no package {headers}: run `apt-get update`; if it is gone from the archive, remove {} and let \
             `cargo xtask setup` take the present kernel",
            work.parent().unwrap_or(work).display()
        ))
    })?;
    let source = format!("linux-source-{}={version}", series(release));
    let debs = work.join("debs");
    fs::create_dir_all(&debs).context(format!("making {}", debs.display()))?;
    let mut fetch = Command::new("apt-get");
    fetch.arg("download").arg(&headers).args(parts).arg(&source).current_dir(&debs);
    run(&fetch, DOWNLOAD_LIMIT)?.success()?;
    let tree = work.join("tree");
    for package in fs::read_dir(&debs).context(format!("reading {}", debs.display()))?.flatten() {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(package.path()).arg(&tree);
        run(&unpack, BUILD_LIMIT)?.success()?;
    }
    Ok(tree)
}

/// `6.12` of `6.12.95+deb12-amd64`.
fn series(release: &str) -> String {
    let mut numbers = release.split(['.', '+', '-']);
    [numbers.next(), numbers.next()].map(Option::unwrap_or_default).join(".")
}

/// Compiles the module and returns its path.
fn compile(work: &Path, tree: &Path, release: &str) -> Result<PathBuf> {
    let headers = tree.join(format!("usr/src/linux-headers-{release}"));
    // The headers' Makefile is one line that names the place where the package would be installed.
    let makefile = headers.join("Makefile");
    let text = fs::read_to_string(&makefile).context(format!("reading {}", makefile.display()))?;
    let here = text.replace("/usr/src/", &format!("{}/", tree.join("usr/src").display()));
    fs::write(&makefile, here).context(format!("writing {}", makefile.display()))?;

    let archive = tree.join(format!("usr/src/linux-source-{}.tar.xz", series(release)));
    let sources = work.join("source");
    fs::create_dir_all(&sources).context(format!("making {}", sources.display()))?;
    // `tar` starts the program `xz` for this.
    packages::program("xz")?;
    let mut unpack = Command::new("tar");
    unpack.arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(&sources);
    unpack.args(["--wildcards", &format!("*/{SOURCE}/*")]);
    run(&unpack, BUILD_LIMIT)?.success()?;
    let directory = sources.join(only_entry(&sources)?).join(SOURCE);
    mend_split_headers(&directory)?;

    let mut make = packages::command("make")?;
    make.arg("--silent").arg("-C").arg(&headers).arg(format!("M={}", directory.display()));
    // Type information for debuggers would need a program more, and the kernel's own.
    make.args(["CONFIG_RDMA_SIW=m", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    run(&make, BUILD_LIMIT)?.success()?;
    let module = directory.join("siw.ko");
    let mut strip = packages::command("strip")?;
    strip.arg("--strip-debug").arg(&module);
    run(&strip, BUILD_LIMIT)?.success()?;
    Ok(module)
}

/// Linux up to 6.12.95 counts the second part of an untagged header anew when that part comes in two packets, and then
/// writes behind the header: the connection breaks, or the guest's kernel crashes. Later versions count as here.
fn mend_split_headers(directory: &Path) -> Result<()> {
    let file = directory.join("siw_qp_rx.c");
    let text = fs::read_to_string(&file).context(format!("reading {}", file.display()))?;
    let mended = text.replace(
        "bytes = min_t(int, hdrlen - MIN_DDP_HDR, srx->skb_new);",
        "bytes = min_t(int, hdrlen - srx->fpdu_part_rcvd, srx->skb_new);",
    );
    fs::write(&file, mended).context(format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::series;

    #[test]
    fn the_series_names_the_source_package() {
        assert_eq!(series("6.12.95+deb12-amd64"), "6.12");
        assert_eq!(series("6.1.0-37-amd64"), "6.1");
    }
}
