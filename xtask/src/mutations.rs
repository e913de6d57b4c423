//! `cargo xtask mutations`: plants the bugs of `sim/mutations.toml`, one at a time, in a copy of the sources, and shows
//! that each is found.
//!
//! Each entry names a file, a text in it, what to put there instead, and the test, or the seeds of the simulator, that
//! have to fail then. A text that is not in its file exactly once, a planted bug that does not build, and a test that
//! does not exist are failures of the table. What finds them must pass on the unchanged copy, which `--sound` shows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use interop::{Context, Failure, Result};
use serde::Deserialize;

use crate::shell::{cargo, checkout};

/// How long a test may run on a planted bug before it counts as hung, which is one way of being found.
const MOST_TIME: Duration = Duration::from_secs(600);
/// What nextest ends with when tests failed.
const TESTS_FAILED: i32 = 100;

/// Which bugs to plant.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Plant only these bugs
    names: Vec<String>,
    /// Name the bugs and their tests, check that their texts are where they are said to be, and end
    #[arg(long)]
    list: bool,
    /// Run what finds each on the unchanged sources first: it has to pass there
    #[arg(long)]
    sound: bool,
}

#[derive(Debug, Deserialize)]
struct Table {
    mutation: Vec<Mutation>,
}

/// One planted bug.
#[derive(Debug, Deserialize)]
struct Mutation {
    name: String,
    file: PathBuf,
    from: String,
    to: String,
    finder: Finder,
}

/// What has to find it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Finder {
    /// A test of a package.
    Test { package: String, name: String },
    /// The simulator, within so many seeds; `kind` is an argument of it, such as `--meeting`.
    Seeds { transport: String, kind: Option<String>, within: u32 },
}

impl std::fmt::Display for Finder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Test { package, name } => write!(f, "{package} {name}"),
            Self::Seeds { transport, kind, within } => {
                write!(f, "sim {}, {within} seeds over {transport}", kind.as_deref().unwrap_or("seeds"))
            }
        }
    }
}

impl Mutation {
    /// The file's text with the bug in it.
    fn planted(&self, tree: &Path) -> Result<String> {
        let path = tree.join(&self.file);
        let text = fs::read_to_string(&path).context(format!("reading {}", path.display()))?;
        match text.matches(self.from.as_str()).count() {
            1 => Ok(text.replacen(&self.from, &self.to, 1)),
            count => Err(Failure::new(format!(
                "{}: its text is {count} times in {}, it has to be there once: adapt sim/mutations.toml",
                self.name,
                self.file.display()
            ))),
        }
    }

    /// Builds its finder in the copy and runs it: what that ended with, none if it did not end in time, and its last
    /// line.
    fn run_finder(&self, tree: &Path) -> Result<(Option<i32>, String)> {
        let target = checkout().join("target/mutations/target");
        let (build, run) = match &self.finder {
            Finder::Test { package, name } => {
                let words = ["nextest", "run", "--package", package, "--filterset", &format!("test(={name})")];
                (cargo(&[&words[..], &["--no-run"]].concat()), cargo(&[&words[..], &["--no-tests", "fail"]].concat()))
            }
            Finder::Seeds { transport, kind, within } => {
                let seeds = format!("0..{within}");
                let mut run = Command::new(target.join("debug/sim"));
                run.args(["--first", "--transport", transport, "--seeds", &seeds]).args(kind);
                (cargo(&["build", "--package", "sim"]), run)
            }
        };
        let log = tree.join("../log");
        let run_in_tree = |mut command: Command, limit: Duration| -> Result<Option<i32>> {
            let file = || fs::File::create(&log).context(format!("making {}", log.display()));
            command.current_dir(tree).env("CARGO_TARGET_DIR", &target).env("CARGO_TERM_COLOR", "never");
            let mut child =
                command.stdin(Stdio::null()).stdout(file()?).stderr(Stdio::null()).spawn().context("starting it")?;
            let end = Instant::now() + limit;
            while Instant::now() < end {
                if let Some(status) = child.try_wait().context("waiting for it")? {
                    return Ok(Some(status.code().unwrap_or(-1)));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
            Ok(None)
        };
        if run_in_tree(build, 3 * MOST_TIME)? != Some(0) {
            return Err(Failure::new(format!("{}: does not build", self.name)));
        }
        let code = run_in_tree(run, MOST_TIME)?;
        let log = fs::read_to_string(&log).unwrap_or_default();
        Ok((code, log.lines().last().unwrap_or_default().to_owned()))
    }

    /// Whether it is found, and how.
    fn is_found(&self, tree: &Path) -> Result<String> {
        let path = tree.join(&self.file);
        let original = fs::read(&path).context(format!("reading {}", path.display()))?;
        fs::write(&path, self.planted(tree)?).context(format!("writing {}", path.display()))?;
        let outcome = self.run_finder(tree);
        fs::write(&path, original).context(format!("writing {}", path.display()))?;
        match (outcome?, &self.finder) {
            ((None, _), _) => Ok("it hung".into()),
            ((Some(TESTS_FAILED), _), Finder::Test { .. }) => Ok("the test failed".into()),
            ((Some(1), last), Finder::Seeds { .. }) => Ok(last),
            ((Some(0), _), finder) => Err(Failure::new(format!("{}: not found by {finder}", self.name))),
            ((Some(code), _), finder) => Err(Failure::new(format!("{}: {finder} ended with {code}", self.name))),
        }
    }

    fn is_sound(&self, tree: &Path) -> Result<()> {
        match self.run_finder(tree)? {
            (Some(0), _) => Ok(()),
            other => Err(Failure::new(format!("{}: {} does not pass without it: {other:?}", self.name, self.finder))),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let table = checkout().join("sim/mutations.toml");
    let text = fs::read_to_string(&table).context(format!("reading {}", table.display()))?;
    let table: Table = toml::from_str(&text).context("reading sim/mutations.toml")?;
    if let Some(unknown) = arguments.names.iter().find(|name| !table.mutation.iter().any(|it| it.name == **name)) {
        return Err(Failure::new(format!("there is no {unknown:?}: `cargo xtask mutations --list` names them")));
    }
    let chosen =
        table.mutation.iter().filter(|mutation| arguments.names.is_empty() || arguments.names.contains(&mutation.name));
    let mut failed = 0;
    let tree = if arguments.list { checkout() } else { copy()? };
    for mutation in chosen {
        let begin = Instant::now();
        let outcome = if arguments.list {
            mutation.planted(&tree).map(|_| "there".to_owned())
        } else {
            let sound = if arguments.sound { mutation.is_sound(&tree) } else { Ok(()) };
            sound.and_then(|()| mutation.is_found(&tree))
        };
        let seconds = begin.elapsed().as_secs_f64();
        let (word, how) = match outcome {
            Ok(how) => ("ok", how),
            Err(failure) => ("FAILED", failure.to_string()),
        };
        failed += u32::from(word != "ok");
        println!("{word:<6} {seconds:>6.1} s  {:<36} {}: {how}", mutation.name, mutation.finder);
    }
    Ok(failed == 0)
}

/// A copy of the files under version control, as they are in the work tree. What has not changed since the last time
/// keeps its age.
fn copy() -> Result<PathBuf> {
    let from = checkout();
    let tree = from.join("target/mutations/tree");
    let mut command = Command::new("git");
    let listed = command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(&from);
    let listed = listed.output().context("starting git")?;
    for name in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|name| !name.is_empty()) {
        let (source, copy) = (from.join(name), tree.join(name));
        // A file that is listed and was removed in the work tree.
        let Ok(content) = fs::read(&source) else { continue };
        if fs::read(&copy).is_ok_and(|old| old == content) {
            continue;
        }
        if let Some(directory) = copy.parent() {
            fs::create_dir_all(directory).context(format!("making {}", directory.display()))?;
        }
        fs::write(&copy, content).context(format!("writing {}", copy.display()))?;
    }
    Ok(tree)
}
