//! The fuzz step: every target of `fuzz/Cargo.toml`, two at a time, from its checked-in corpus.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use interop::{Context, Failure, Result};

use super::Arguments;
use crate::shell::{self, cargo, checkout};

/// Targets that run side by side.
const SIDE_BY_SIDE: usize = 2;

/// Seconds beyond its own time that a target may take to start and end.
const GRACE: Duration = Duration::from_secs(60);

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let targets = targets(&checkout().join("fuzz/Cargo.toml"))?;
    // One build for all; side by side they would wait for each other's lock.
    shell::run(&mut cargo(&["+nightly", "fuzz", "build"]))?;
    let mut failures = Vec::new();
    for batch in targets.chunks(SIDE_BY_SIDE) {
        let mut running = Vec::new();
        for target in batch {
            running.push(Run::start(target, arguments.fuzz_time)?);
        }
        failures.extend(running.into_iter().filter_map(|run| run.finish().err()));
    }
    if failures.is_empty() {
        return Ok(());
    }
    let sentences: Vec<String> = failures.iter().map(ToString::to_string).collect();
    Err(Failure::new(sentences.join("\n")))
}

/// The names of the binaries of the fuzz package.
fn targets(manifest: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(manifest).context(format!("reading {}", manifest.display()))?;
    let table: toml::Table = text.parse().context(format!("reading {}", manifest.display()))?;
    let binaries = table.get("bin").and_then(toml::Value::as_array).into_iter().flatten();
    let names: Vec<String> = binaries.filter_map(|binary| binary.get("name")?.as_str().map(str::to_owned)).collect();
    if names.is_empty() {
        return Err(Failure::new(format!("{} has no fuzz target", manifest.display())));
    }
    Ok(names)
}

/// One target under way.
struct Run {
    target: String,
    child: Child,
    log: PathBuf,
    end: Instant,
}

impl Run {
    fn start(target: &str, seconds: u32) -> Result<Self> {
        let fuzz = checkout().join("fuzz");
        // What libFuzzer finds goes to a corpus below target/; the checked-in one only seeds it.
        let grown = checkout().join("target/fuzz-corpus").join(target);
        fs::create_dir_all(&grown).context(format!("making {}", grown.display()))?;
        let mut corpora = vec![grown.display().to_string()];
        let seeds = fuzz.join("corpus").join(target);
        if seeds.is_dir() {
            corpora.push(seeds.display().to_string());
        }
        let log = checkout().join("target").join(format!("fuzz-{target}.log"));
        let file = File::create(&log).context(format!("making {}", log.display()))?;
        let errors = file.try_clone().context(format!("making {}", log.display()))?;
        let mut command = cargo(&["+nightly", "fuzz", "run", target]);
        command.args(&corpora).arg("--");
        command.arg(format!("-max_total_time={seconds}"));
        command.args(["-rss_limit_mb=2048", "-timeout=20", "-print_final_stats=1"]);
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        let child = child.context(format!("starting the fuzz target {target}"))?;
        Ok(Self {
            target: target.to_owned(),
            child,
            log,
            end: Instant::now() + Duration::from_secs(seconds.into()) + GRACE,
        })
    }

    fn finish(mut self) -> Result<()> {
        let status = loop {
            match self.child.try_wait().context(format!("waiting for {}", self.target))? {
                Some(status) => break status,
                None if Instant::now() >= self.end => {
                    return Err(Failure::new(format!("the fuzz target {} did not end in time", self.target)));
                }
                None => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        let log = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let runs = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        if status.success()
            && let Some(runs) = runs
        {
            println!("fuzz: {:<24} {} runs, nothing found", self.target, runs.trim());
            return Ok(());
        }
        let tail: Vec<&str> = log.lines().rev().take(40).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        Err(Failure::new(format!("the fuzz target {} failed ({status}):\n{}", self.target, tail.join("\n"))))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
