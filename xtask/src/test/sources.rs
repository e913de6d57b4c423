//! Checks of the sources that no compiler makes: dependencies that no code names.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use interop::{Context, Failure, Result};
use serde::Deserialize;

use crate::shell::cargo;

/// Directories that hold no sources of ours.
const NO_SOURCES: [&str; 2] = [".git", "corpus"];

/// The file by which cargo marks a directory of what it built.
const BUILD_MARK: &str = ".rustc_info.json";

/// Every dependency is named in the code that it is declared for: `[dependencies]` below `src`, the others anywhere in
/// the package. The lock files are up to date.
pub(super) fn dependencies() -> Result<()> {
    let mut unused = Vec::new();
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        unused.extend(unused_dependencies(manifest)?);
    }
    if unused.is_empty() { Ok(()) } else { Err(Failure::new(unused.join("\n"))) }
}

/// The Rust files of a directory and of those below it.
fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).context(format!("reading {}", directory.display()))? {
        let path = entry.context(format!("reading {}", directory.display()))?.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if path.is_dir() {
            if !NO_SOURCES.contains(&name) && !path.join(BUILD_MARK).exists() {
                files.extend(rust_files(&path)?);
            }
        } else if path.extension() == Some(OsStr::new("rs")) {
            files.push(path);
        }
    }
    Ok(files)
}

/// What `cargo metadata` tells, as far as it is asked for here.
#[derive(Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Option<Resolve>,
}

#[derive(Deserialize)]
pub(super) struct Package {
    pub(super) name: String,
    id: String,
    manifest_path: PathBuf,
    pub(super) features: std::collections::BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    /// The name by which code speaks of it.
    name: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// None for `[dependencies]`.
    kind: Option<String>,
}

/// Asks cargo about the workspace of this manifest.
pub(super) fn metadata(manifest: &str) -> Result<Metadata> {
    let arguments = ["metadata", "--format-version", "1", "--locked", "--all-features", "--manifest-path", manifest];
    let output = cargo(&arguments).output().context("cargo metadata")?;
    if !output.status.success() {
        return Err(Failure::new(format!(
            "{manifest}: cargo metadata failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        )));
    }
    serde_json::from_slice(&output.stdout).context(format!("reading what cargo metadata tells of {manifest}"))
}

fn unused_dependencies(manifest: &str) -> Result<Vec<String>> {
    let metadata = metadata(manifest)?;
    let mut unused = Vec::new();
    let nodes = metadata.resolve.map(|resolve| resolve.nodes).unwrap_or_default();
    for package in metadata.packages.iter().filter(|package| metadata.workspace_members.contains(&package.id)) {
        let directory = package.manifest_path.parent().unwrap_or(Path::new("."));
        let everywhere = crates_named(&rust_files(directory)?)?;
        let sources = directory.join("src");
        let in_sources = if sources.is_dir() { crates_named(&rust_files(&sources)?)? } else { everywhere.clone() };
        let dependencies = nodes.iter().filter(|node| node.id == package.id).flat_map(|node| &node.deps);
        for Dependency { name, dep_kinds } in dependencies {
            for Kind { kind } in dep_kinds {
                let (table, named) = match kind.as_deref() {
                    None => ("dependencies", in_sources.contains(name)),
                    Some(_) => ("dev- or build-dependencies", everywhere.contains(name)),
                };
                if !named {
                    unused.push(format!("{}: no code names {name}, which is among its {table}", package.name));
                }
            }
        }
    }
    Ok(unused)
}

/// Words that stand in code as the beginning of a path: `name::…`, or `use name`.
fn crates_named(files: &[PathBuf]) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for path in files {
        let text = fs::read_to_string(path).context(format!("reading {}", path.display()))?;
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            names_of_line(line, &mut names);
        }
    }
    Ok(names)
}

fn names_of_line(line: &str, names: &mut BTreeSet<String>) {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    for (at, _) in line.match_indices("::") {
        let before = line.get(..at).unwrap_or_default();
        let start = before.rfind(|letter| !is_word(letter)).map_or(0, |at| at + 1);
        names.insert(before.get(start..).unwrap_or_default().to_owned());
    }
    if let Some((_, behind)) = line.split_once("use ") {
        names.insert(behind.split(|letter| !is_word(letter)).next().unwrap_or_default().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_named_by_a_path_or_a_use() {
        let mut names = BTreeSet::new();
        names_of_line("    use rustix as sys;", &mut names);
        names_of_line("fn f(x: nom::IResult<&str>) -> Vec<toml> { (fastrand::u8(..), a) }", &mut names);
        let named = |name: &str| names.contains(name);
        assert!(named("rustix") && named("nom") && named("fastrand"));
        assert!(!named("toml") && !named("sys") && !named("x"));
    }
}
