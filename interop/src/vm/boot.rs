//! Booting the guest for one job.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::Guest;
use super::image::Lock;
use crate::process::Running;
use crate::{Context, Failure, Result, packages, programs};

/// Run directories that are kept for a look at what happened.
const RUNS_KEPT: usize = 15;

/// A job for the guest: a script of `interop/jobs` and what it is told through its environment.
#[derive(Debug, Clone)]
pub struct Job {
    script: PathBuf,
    environment: Vec<(String, String)>,
    mebibytes: u32,
    limit: Duration,
}

/// What a job said.
#[derive(Debug, Clone)]
pub struct Report {
    /// The job's exit code.
    pub code: i32,
    /// What it printed.
    pub output: String,
    /// The run directory, where files are that the job wrote to `/interop`.
    pub directory: PathBuf,
}

impl Job {
    /// A job of `interop/jobs`, with 4 GiB of memory and ten minutes.
    pub fn named(name: &str) -> Self {
        Self::script(programs::checkout().join("interop/jobs").join(name))
    }

    /// A job from any script.
    pub fn script(script: impl Into<PathBuf>) -> Self {
        Self { script: script.into(), environment: Vec::new(), mebibytes: 4096, limit: Duration::from_secs(600) }
    }

    /// Sets an environment variable of the job.
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.environment.push((key.to_owned(), value.into()));
        self
    }

    /// Tells the job where the workspace's programs are: `RAMDISK` and `ISCSI`.
    ///
    /// # Errors
    /// When they do not build.
    pub fn with_programs(self) -> Result<Self> {
        let programs = programs::programs()?;
        let text = |path: &Path| path.display().to_string();
        Ok(self.with("RAMDISK", text(&programs.ramdisk)).with("ISCSI", text(&programs.iscsi)))
    }

    /// The guest's memory in MiB; half of it at most is room for files that the job makes.
    pub fn memory(mut self, mebibytes: u32) -> Self {
        self.mebibytes = mebibytes;
        self
    }

    /// How long the guest may run, boot included, once it is this job's turn.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

impl Guest {
    /// Boots the guest, runs the job in it and powers off. One guest runs at a time per guest directory:
    /// two on a small machine would only make each other miss their limits.
    ///
    /// # Errors
    /// When the guest does not start, or does not end within the job's limit: with its output so far and
    /// the end of the kernel's log. What the job finds is in the report.
    pub fn run(&self, job: &Job) -> Result<Report> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let script = fs::read_to_string(&job.script).context(format!("reading {}", job.script.display()))?;
        let needs_siw = script.lines().any(|line| line == "# needs: siw");
        let siw = if needs_siw { Some(self.soft_iwarp()?) } else { None };
        let _turn = Lock::take(&self.directory().join("boot.lock"))?;
        let stem = job.script.file_stem().unwrap_or_default().to_string_lossy();
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let run = self.directory().join("runs").join(format!("{stem}-{}-{number}", std::process::id()));
        // A process id may come again; what an earlier run left must not pass for this one's.
        let _ = fs::remove_dir_all(&run);
        self.forget_old_runs();
        self.fill_run_directory(&run, job, siw.as_deref())?;
        let machine = Running::start(&self.qemu(&run, job.mebibytes)?)?;
        let ended = machine.wait(job.limit);
        let read = |name: &str| {
            fs::read(run.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
        };
        let output = read("output");
        let told = |what: &str| {
            let console = read("console");
            let tail: Vec<&str> = console.lines().rev().take(30).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            Failure::new(format!(
                "the job {stem} in the virtual machine {what}; it printed:\n{output}\n\
                 and the guest's console ended with:\n{}",
                tail.join("\n")
            ))
        };
        if let Err(failure) = ended.and_then(crate::process::Finished::success) {
            return Err(told(&format!("was not done ({failure})")));
        }
        match read("code").trim().parse() {
            Ok(code) => Ok(Report { code, output, directory: run }),
            Err(_) => Err(told("left no exit code: its kernel stopped before the job ended")),
        }
    }

    /// Keeps the newest run directories only; some hold captures of many megabytes.
    fn forget_old_runs(&self) {
        let entries = fs::read_dir(self.directory().join("runs")).into_iter().flatten().flatten();
        let mut runs: Vec<_> =
            entries.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
        runs.sort();
        for (_, old) in runs.iter().rev().skip(RUNS_KEPT) {
            let _ = fs::remove_dir_all(old);
        }
    }

    fn fill_run_directory(&self, run: &Path, job: &Job, siw: Option<&Path>) -> Result<()> {
        let what = || format!("filling {}", run.display());
        let checkout = programs::checkout();
        fs::create_dir_all(run).context(what())?;
        fs::copy(checkout.join("interop/guest/first-process.sh"), run.join("first-process")).context(what())?;
        let own = [
            ("JOB", job.script.display().to_string()),
            ("JOBS", checkout.join("interop/jobs").display().to_string()),
            ("CHECKOUT", checkout.display().to_string()),
            ("MODULES", self.modules().display().to_string()),
            ("GUEST", self.directory().display().to_string()),
        ];
        let siw = siw.map(|path| ("SIW", path.display().to_string()));
        let own = own.into_iter().chain(siw).map(|(key, value)| (key.to_owned(), value));
        let lines: String = own
            .chain(job.environment.iter().cloned())
            .map(|(key, value)| format!("export {key}='{}'\n", value.replace('\'', r"'\''")))
            .collect();
        fs::write(run.join("environment"), lines).context(what())
    }

    fn qemu(&self, run: &Path, mebibytes: u32) -> Result<std::process::Command> {
        // A comma in a QEMU option's value is written twice.
        let option = |path: &Path| path.display().to_string().replace(',', ",,");
        let mut command = packages::command("qemu-system-x86_64")?;
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", &mebibytes.to_string()]);
        command.args(["-nodefaults", "-no-reboot", "-display", "none"]);
        command.arg("-serial").arg(format!("file:{}", run.join("console").display()));
        command.arg("-kernel").arg(self.kernel()).arg("-initrd").arg(self.initrd());
        command.args(["-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off"]);
        // multidevs=remap: the host's root may span several file systems.
        command.args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]);
        command.arg("-virtfs").arg(format!("local,path={},mount_tag=run,security_model=none", option(run)));
        command.args(["-device", "virtio-rng-pci", "-nic", "user,model=virtio-net-pci,restrict=on"]);
        Ok(command)
    }
}

impl Report {
    /// Checks that the job ended well and that each of the named checks passed. A job prints
    /// `PASS name` or `FAIL name: why` for each of its checks; naming them here makes a job that ends
    /// early, or forgets one, a failure.
    ///
    /// # Errors
    /// With the failed or absent checks and the whole output.
    pub fn passed(self, checks: &[&str]) -> Result<Self> {
        let lines = || self.output.lines();
        let mut wrong: Vec<String> =
            lines().filter(|line| line.starts_with("FAIL ")).map(|line| format!("  {line}")).collect();
        let absent = checks.iter().filter(|check| !lines().any(|line| line == format!("PASS {check}")));
        wrong.extend(absent.map(|check| format!("  no line `PASS {check}`")));
        if self.code != 0 {
            wrong.push(format!("  the job's exit code is {}", self.code));
        }
        if wrong.is_empty() {
            return Ok(self);
        }
        Err(Failure::new(format!("in the virtual machine:\n{}\nthe job printed:\n{}", wrong.join("\n"), self.output)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(code: i32, output: &str) -> Report {
        Report { code, output: output.to_owned(), directory: PathBuf::new() }
    }

    #[test]
    fn a_check_that_failed_or_never_came_is_named() {
        report(0, "PASS login\nwords\nPASS logout\n").passed(&["login", "logout"]).unwrap();
        let sentence = report(0, "PASS login\n").passed(&["login", "logout"]).unwrap_err().to_string();
        assert!(sentence.contains("no line `PASS logout`"), "{sentence}");
        let sentence = report(0, "PASS login\nFAIL fsck: dirty\n").passed(&["login"]).unwrap_err().to_string();
        assert!(sentence.contains("FAIL fsck: dirty"), "{sentence}");
        let sentence = report(2, "PASS login\n").passed(&["login"]).unwrap_err().to_string();
        assert!(sentence.contains("exit code is 2"), "{sentence}");
    }
}
