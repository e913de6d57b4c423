//! `cargo xtask setup`: everything that the tests need beyond Rust itself and a network.
//!
//! Looks first and installs only what is missing, so that a second run changes nothing and needs no
//! rights. Debian and its derivatives; elsewhere it says what to install by hand.

use std::fs;
use std::path::Path;
use std::process::Command;

use interop::packages::{PACKAGES, Package};
use interop::vm::Guest;
use interop::{Context, Failure, Result};

use crate::shell;
use crate::test::builds::missing_machines;

/// What to leave out.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Arguments {
    /// Do not make the virtual machine
    #[arg(long)]
    pub(crate) no_vm: bool,
    /// Do not install Rust tools (cargo-nextest, cargo-deny, cargo-fuzz), the nightly toolchain, nor standard
    /// libraries of other machines
    #[arg(long)]
    pub(crate) no_rust: bool,
    /// Say what is missing, install nothing; exit code 1 if something is
    #[arg(long)]
    check: bool,
}

/// Rust programs, all from crates.io.
const RUST_TOOLS: [&str; 3] = ["cargo-nextest", "cargo-deny", "cargo-fuzz"];

pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let missing: Vec<&Package> = PACKAGES.iter().filter(|package| !package.is_present()).collect();
    for package in &missing {
        let what = package.missing().unwrap_or_default();
        println!("setup: {what} is missing ({}: {})", package.name, package.purpose);
    }
    let tools: Vec<&str> = RUST_TOOLS.into_iter().filter(|tool| !arguments.no_rust && !shell::has(tool)).collect();
    for tool in &tools {
        println!("setup: the program {tool} is missing");
    }
    let nightly = arguments.no_rust || has_nightly();
    if !nightly {
        println!("setup: the nightly toolchain is missing (fuzzing and AddressSanitizer)");
    }
    let components = missing_components();
    for component in &components {
        println!("setup: the component {component} of the stable toolchain is missing");
    }
    let machines = if arguments.no_rust { Vec::new() } else { missing_machines() };
    for machine in &machines {
        println!("setup: the standard library of {machine} is missing (the libraries are compiled for it)");
    }
    if arguments.check {
        let rust = tools.is_empty() && nightly && components.is_empty() && machines.is_empty();
        return Ok(missing.is_empty() && rust);
    }
    install_packages(&missing, !arguments.no_vm)?;
    for component in components {
        shell::run(Command::new("rustup").args(["component", "add", component]).current_dir(shell::checkout()))?;
    }
    for machine in machines {
        // The step that compiles for it says that it could not, should it be wanted.
        if let Err(error) =
            shell::run(Command::new("rustup").args(["target", "add", machine]).current_dir(shell::checkout()))
        {
            println!("setup: WARNING: no standard library of {machine}: {error}");
        }
    }
    if !nightly {
        shell::run(Command::new("rustup").args(["toolchain", "install", "nightly", "--profile", "minimal"]))?;
    }
    for tool in tools {
        let root = shell::tools().display().to_string();
        shell::run(&mut shell::cargo(&["install", "--locked", "--root", &root, tool]))?;
    }
    if !arguments.no_vm {
        let guest = Guest::made()?;
        println!("setup: the virtual machine has Linux {}, in {}", guest.release(), guest.directory().display());
    }
    println!("setup: everything is there");
    Ok(true)
}

/// Installs the packages, and brings apt's lists up to date when the virtual machine's kernel is still
/// to be downloaded.
fn install_packages(missing: &[&Package], vm: bool) -> Result<()> {
    let kernel_needed = vm && !interop::vm::directory().join("kernel").exists();
    if missing.is_empty() && !kernel_needed {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
        return Err(Failure::new(format!(
            "this system has no apt-get: install by hand what these Debian packages have: {}",
            names.join(" ")
        )));
    }
    let backports = backports_suite()?;
    apt(&["update", "--quiet"])?;
    for from_backports in [true, false] {
        let names: Vec<&str> = missing.iter().filter(|it| it.backports == from_backports).map(|it| it.name).collect();
        if names.is_empty() {
            continue;
        }
        let mut arguments = vec!["install", "--yes", "--quiet", "--no-install-recommends"];
        if let Some(suite) = backports.as_deref().filter(|_| from_backports) {
            arguments.extend(["--target-release", suite]);
        }
        apt(&[arguments, names].concat())?;
    }
    Ok(())
}

/// On Debian 12: the backports suite, added to apt's sources if it is not there. Its own QEMU and kernel
/// are too old for some of the jobs; those of every later release are not.
fn backports_suite() -> Result<Option<String>> {
    let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let has = |line: &str| release.lines().any(|it| it == line);
    if !(has("ID=debian") && has("VERSION_CODENAME=bookworm")) {
        return Ok(None);
    }
    let suite = "bookworm-backports";
    let mut sources: Vec<String> = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|it| it == "list" || it == "sources") {
            sources.push(fs::read_to_string(path).unwrap_or_default());
        }
    }
    let known = sources.iter().flat_map(|text| text.lines()).any(|line| !line.starts_with('#') && line.contains(suite));
    if !known {
        let mirror = sources.iter().find_map(|text| debian_mirror(text));
        let mirror = mirror.ok_or_else(|| {
            Failure::new(format!(
                "apt's sources name no archive of Debian's that ends in /debian: add {suite} to them yourself"
            ))
        })?;
        println!("setup: adding {suite} of {mirror} to apt's sources");
        let line = format!("deb {mirror} {suite} main");
        let script = format!("echo '{line}' > /etc/apt/sources.list.d/{suite}.list");
        shell::run(as_root("sh").args(["-c", &script]))?;
    }
    Ok(Some(suite.to_owned()))
}

/// The mirror that a sources file (of either format) takes the main archive from.
fn debian_mirror(text: &str) -> Option<String> {
    text.lines()
        .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
        .flat_map(str::split_whitespace)
        .find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

fn apt(arguments: &[&str]) -> Result<()> {
    shell::run(as_root("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments))
}

/// The program as root: itself, or through sudo.
fn as_root(program: &str) -> Command {
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0\n"));
    if root {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["--preserve-env=DEBIAN_FRONTEND", program]);
    sudo
}

fn has_nightly() -> bool {
    let listed = Command::new("rustup").args(["toolchain", "list"]).output();
    listed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).lines().any(|line| line.starts_with("nightly")))
}

fn missing_components() -> Vec<&'static str> {
    [("rustfmt", "cargo-fmt"), ("clippy", "cargo-clippy")]
        .into_iter()
        .filter(|(_, program)| !Command::new(program).arg("--version").output().is_ok_and(|it| it.status.success()))
        .map(|(component, _)| component)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::debian_mirror;

    #[test]
    fn the_mirror_is_found_in_both_formats_of_apt() {
        let new = "Types: deb\n# http://snapshot.example/archive/debian\n\
                   URIs: http://mirror.example/debian\nSuites: bookworm\n";
        assert_eq!(debian_mirror(new).as_deref(), Some("http://mirror.example/debian"));
        let old = "deb [arch=amd64] https://mirror.example/debian/ bookworm main\n";
        assert_eq!(debian_mirror(old).as_deref(), Some("https://mirror.example/debian/"));
        assert_eq!(debian_mirror("URIs: http://mirror.example/debian-security\n"), None);
    }
}
