//! Builds that nobody here runs: every set of features, and other machines.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use interop::{Context, Failure, Result};

use super::sources;
use crate::shell::{self, cargo};

/// The crates that others build on.
pub(super) const LIBRARIES: [&str; 8] = [
    "iscsi-memory",
    "backstore",
    "scsi-proto",
    "iscsi-proto",
    "iscsi-driver",
    "iser-transport",
    "target-core",
    "initiator-core",
];

/// Crates whose cores build without std.
const NO_STD: [&str; 7] =
    ["iscsi-memory", "backstore", "scsi-proto", "iscsi-proto", "iser-transport", "target-core", "initiator-core"];

/// Features that need what is not on every machine, and that nothing here builds with.
const NOT_BUILT: [&str; 1] = ["ibverbs"];

/// Another machine, and what of it is unlike this one.
pub(crate) struct Machine {
    /// The target's name.
    pub(crate) triple: &'static str,
    unlike: &'static str,
    std: bool,
}

/// Every machine that the libraries are compiled for besides this one.
pub(crate) const MACHINES: [Machine; 4] = [
    Machine { triple: "i686-unknown-linux-gnu", unlike: "32 bits", std: true },
    Machine { triple: "s390x-unknown-linux-gnu", unlike: "big-endian", std: true },
    Machine { triple: "powerpc-unknown-linux-gnu", unlike: "no 64-bit atomics, 32 bits, big-endian", std: true },
    Machine { triple: "thumbv7m-none-eabi", unlike: "no 64-bit atomics, no operating system", std: false },
];

/// The cores, with no default features.
pub(super) fn no_std() -> Result<()> {
    // Each by itself: together, one crate's features would switch on another's.
    NO_STD
        .iter()
        .try_for_each(|name| shell::run(&mut cargo(&["check", "--quiet", "--package", name, "--no-default-features"])))
}

/// Every set of features that is different from the others by what it brings along, without a warning.
pub(super) fn features() -> Result<()> {
    let metadata = sources::metadata("Cargo.toml")?;
    let mut failures = Vec::new();
    for package in metadata.packages.iter().filter(|package| LIBRARIES.contains(&package.name.as_str())) {
        for set in feature_sets(&package.features) {
            let set = set.join(",");
            let arguments =
                ["check", "--quiet", "--package", &package.name, "--no-default-features", "--features", &set];
            failures.extend(silent(&arguments).err());
        }
    }
    let sentences: Vec<String> = failures.iter().map(ToString::to_string).collect();
    if failures.is_empty() { Ok(()) } else { Err(Failure::new(sentences.join("\n"))) }
}

/// Runs cargo, which is to say nothing: a warning is a failure.
fn silent(arguments: &[&str]) -> Result<()> {
    println!("$ cargo {}", arguments.join(" "));
    let output = cargo(arguments).output().context("starting cargo")?;
    if output.status.success() && output.stderr.is_empty() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failure::new(format!("`cargo {}` ({}):\n{said}", arguments.join(" "), output.status)))
}

/// The sets of features that differ once all that each implies is counted in, each by its fewest names. The empty set
/// is not among them: the step `no-std` builds it.
fn feature_sets(features: &BTreeMap<String, Vec<String>>) -> Vec<Vec<String>> {
    let names: Vec<&String> = features
        .iter()
        // An optional dependency has a feature of its own name where nothing speaks of `dep:`.
        .filter(|(name, implied)| *name != "default" && implied.first() != Some(&format!("dep:{name}")))
        .map(|(name, _)| name)
        .filter(|name| !NOT_BUILT.contains(&name.as_str()))
        .collect();
    let mut sets: BTreeMap<BTreeSet<&str>, Vec<String>> = BTreeMap::new();
    for chosen in 1..1_u32 << names.len() {
        let set: Vec<String> =
            names.iter().enumerate().filter(|(at, _)| chosen >> at & 1 == 1).map(|(_, name)| (*name).clone()).collect();
        let mut all = BTreeSet::new();
        set.iter().for_each(|name| imply(features, name, &mut all));
        let fewest = sets.entry(all).or_insert_with(|| set.clone());
        if set.len() < fewest.len() {
            *fewest = set;
        }
    }
    sets.into_values().collect()
}

fn imply<'a>(features: &'a BTreeMap<String, Vec<String>>, name: &str, all: &mut BTreeSet<&'a str>) {
    if let Some((name, implied)) = features.get_key_value(name)
        && all.insert(name)
    {
        implied.iter().for_each(|other| imply(features, other, all));
    }
}

/// The libraries, for machines unlike this one. Where rustup can fetch no standard libraries, as behind a mirror that has
/// toolchains only, the output says for which machines nothing was compiled.
pub(super) fn machines() -> Result<()> {
    let missing = missing_machines();
    let mut outcome = Ok(());
    for Machine { triple, unlike, std } in &MACHINES {
        if missing.contains(triple) {
            println!("{triple}: NOT COMPILED, its standard library is not there");
            continue;
        }
        println!("{triple}: {unlike}");
        let packages = if *std { &LIBRARIES[..] } else { &NO_STD[..] };
        let mut command = cargo(&["check", "--quiet", "--target", triple]);
        if !std {
            command.arg("--no-default-features");
        }
        for name in packages {
            command.args(["--package", name]);
        }
        outcome = outcome.and(shell::run(&mut command));
    }
    outcome
}

/// Those of [`MACHINES`] whose standard library is not there.
pub(crate) fn missing_machines() -> Vec<&'static str> {
    let listed = Command::new("rustup").args(["target", "list", "--installed"]).current_dir(shell::checkout()).output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let is_missing = |triple: &&str| !listed.lines().any(|line| line == *triple);
    MACHINES.iter().map(|machine| machine.triple).filter(is_missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_that_come_to_the_same_are_built_once() {
        let feature = |name: &str, implied: &[&str]| {
            (name.to_owned(), implied.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>())
        };
        let features = BTreeMap::from([
            feature("default", &["std"]),
            feature("std", &["dep:libc"]),
            feature("tokio", &["std", "dep:tokio"]),
            feature("libc", &["dep:libc"]),
            feature("extra", &[]),
        ]);
        let mut sets = feature_sets(&features);
        sets.sort();
        assert_eq!(sets, [vec!["extra"], vec!["extra", "std"], vec!["extra", "tokio"], vec!["std"], vec!["tokio"]]);
    }
}
