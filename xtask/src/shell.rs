//! Running other programs with their output shown.

use std::path::Path;
use std::process::Command;

use interop::{Context, Failure, Result};

/// Runs the command with its output shown, and waits for its end.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let words = describe(command);
    println!("$ {words}");
    let status = command.status().context(format!("cannot start `{words}`"))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("`{words}` ended with {status}"))) }
}

/// `cargo` with these arguments, in the checkout, with the tools of `target/tools` in reach.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    // Not the `cargo` of $CARGO: that one is bound to a toolchain and does not know `+nightly`.
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(checkout()).env("PATH", path_with_tools());
    // This program was itself started by cargo, whose variables would confuse the next.
    for variable in ["CARGO", "RUSTUP_TOOLCHAIN", "CARGO_MANIFEST_DIR", "CARGO_PKG_NAME"] {
        command.env_remove(variable);
    }
    command
}

/// The root of the checkout.
pub(crate) fn checkout() -> std::path::PathBuf {
    interop::programs::checkout()
}

/// Where `cargo xtask setup` puts Rust programs.
pub(crate) fn tools() -> std::path::PathBuf {
    checkout().join("target/tools")
}

/// Whether a program is in `PATH` or among the installed tools.
pub(crate) fn has(program: &str) -> bool {
    std::env::split_paths(&path_with_tools()).any(|directory| directory.join(program).is_file())
}

fn path_with_tools() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME")
        .map(std::path::PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let own = std::iter::once(tools().join("bin")).chain(home.map(|home| home.join("bin")));
    let directories = std::env::split_paths(&path).chain(own);
    std::env::join_paths(directories).unwrap_or(path)
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let variables = command.get_envs().filter_map(|(key, value)| {
        let key = key.to_str()?;
        (key.starts_with("RUST") && value.is_some()).then(|| format!("{key}={:?} ", value.unwrap_or_default()))
    });
    let words = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    variables.collect::<String>() + &words
}
