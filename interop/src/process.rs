//! Child processes that cannot outlive their test.
//!
//! Three guards: a [`Running`] kills its child when dropped; the child is started with a parent-death
//! signal (`setpriv --pdeathsig`), which covers a test process that is killed; and every wait has a
//! limit. Nothing is ever ended by name, only by process id.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::{Context, Failure, Result};

/// Bytes of output that are kept per child. More is read and dropped, so that the child never blocks.
const OUTPUT_LIMIT: usize = 32 << 20;

/// How long output is awaited after the child's end; a grandchild may hold the pipe for ever.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

const POLL: Duration = Duration::from_millis(10);

/// A child process that is running, or has ended and was not yet asked.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    output: Arc<Output>,
}

#[derive(Debug, Default)]
struct Output {
    state: Mutex<OutputState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OutputState {
    both: Vec<u8>,
    stdout: Vec<u8>,
    open_pipes: usize,
}

/// A child process that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The command as a person would type it.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it printed, stdout and stderr in the order of arrival.
    pub output: String,
    /// What it printed to stdout.
    pub stdout: String,
}

impl Running {
    /// Starts the command with no stdin and with its output captured.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(command: &Command) -> Result<Self> {
        let name = describe(command);
        let mut guarded = under_parent_death_signal(command);
        guarded.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = guarded.spawn().context(format!("cannot start `{name}`"))?;
        let output = Arc::new(Output::default());
        output.lock().open_pipes = 2;
        if let Some(pipe) = child.stdout.take() {
            drain(pipe, Arc::clone(&output), true);
        }
        if let Some(pipe) = child.stderr.take() {
            drain(pipe, Arc::clone(&output), false);
        }
        Ok(Self { name, child, output })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().both).into_owned()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until its output has `text`.
    ///
    /// # Errors
    /// When it ends first, or the limit passes. The sentence has the output.
    pub fn wait_for_text(&mut self, text: &str, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let alive = self.is_running();
            if self.output().contains(text) {
                return Ok(());
            }
            if !alive {
                return Err(self.complaint(&format!("ended before it printed {text:?}")));
            }
            if Instant::now() >= end {
                return Err(self.complaint(&format!("did not print {text:?} in {limit:?}")));
            }
            thread::sleep(POLL);
        }
    }

    /// A failure of this process, with its output.
    pub fn complaint(&self, what: &str) -> Failure {
        Failure::new(format!("`{}` {what}; it printed:\n{}", self.name, self.output()))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the limit passes: the process is killed then.
    pub fn wait(mut self, limit: Duration) -> Result<Finished> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().context(format!("waiting for `{}`", self.name))? {
                self.output.wait_closed(DRAIN_LIMIT);
                let stdout = String::from_utf8_lossy(&self.output.lock().stdout).into_owned();
                return Ok(Finished { command: self.name.clone(), status, output: self.output(), stdout });
            }
            if Instant::now() >= end {
                return Err(self.complaint(&format!("did not end in {limit:?} and was killed")));
            }
            thread::sleep(POLL);
        }
    }

    /// Sends SIGINT, as Ctrl-C does, and waits for the end.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    pub fn interrupt(self, limit: Duration) -> Result<Finished> {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::INT)
            .context(format!("cannot interrupt `{}`", self.name))?;
        self.wait(limit)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Itself, when the exit code is 0.
    ///
    /// # Errors
    /// With the command, its exit status and its output otherwise.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            Ok(self)
        } else {
            Err(Failure::new(format!("`{}` ended with {}; it printed:\n{}", self.command, self.status, self.output)))
        }
    }

    /// Itself, when the output has every one of `texts`.
    ///
    /// # Errors
    /// Naming the first text that is missing, with the whole output.
    pub fn prints(self, texts: &[&str]) -> Result<Self> {
        match texts.iter().find(|text| !self.output.contains(**text)) {
            None => Ok(self),
            Some(text) => {
                Err(Failure::new(format!("`{}` did not print {text:?}; it printed:\n{}", self.command, self.output)))
            }
        }
    }

    /// The exit code, or `None` after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// Runs a command to its end, whatever its exit code.
///
/// # Errors
/// When it cannot be started, or does not end within `limit` (it is killed then).
pub fn run(command: &Command, limit: Duration) -> Result<Finished> {
    Running::start(command)?.wait(limit)
}

impl Output {
    fn lock(&self) -> std::sync::MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_closed(&self, limit: Duration) {
        let _ = self.changed.wait_timeout_while(self.lock(), limit, |state| state.open_pipes > 0);
    }
}

fn drain(mut pipe: impl Read + Send + 'static, output: Arc<Output>, is_stdout: bool) {
    thread::spawn(move || {
        let mut chunk = [0; 8192];
        while let Ok(count @ 1..) = pipe.read(&mut chunk) {
            let mut state = output.lock();
            if state.both.len() + count <= OUTPUT_LIMIT {
                state.both.extend_from_slice(&chunk[..count]);
                if is_stdout {
                    state.stdout.extend_from_slice(&chunk[..count]);
                }
            }
        }
        output.lock().open_pipes -= 1;
        output.changed.notify_all();
    });
}

/// The command as a person would type it.
fn describe(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(name).chain(command.get_args()).map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// The same command, with SIGKILL when the thread that starts it ends. `setpriv` (util-linux) replaces
/// itself with the program, so the process id is the program's own.
fn under_parent_death_signal(command: &Command) -> Command {
    let mut guarded = Command::new("setpriv");
    guarded.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        guarded.current_dir(directory);
    }
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => guarded.env(key, value),
            None => guarded.env_remove(key),
        };
    }
    guarded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn exists(pid: u32) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn output_and_exit_code_come_back() {
        let finished = run(&shell("echo out; echo err >&2; exit 3"), Duration::from_secs(10)).unwrap();
        assert_eq!(finished.code(), Some(3));
        assert!(finished.output.contains("out") && finished.output.contains("err"));
        assert!(finished.clone().success().unwrap_err().to_string().contains("err"));
        assert!(finished.prints(&["out", "absent"]).unwrap_err().to_string().contains("absent"));
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let running = Running::start(&shell("exec sleep 60")).unwrap();
        let pid = running.pid();
        assert!(exists(pid));
        drop(running);
        assert!(!exists(pid));
    }

    #[test]
    fn a_child_past_its_limit_is_killed() {
        let running = Running::start(&shell("echo begun; exec sleep 60")).unwrap();
        let pid = running.pid();
        let sentence = running.wait(Duration::from_millis(300)).unwrap_err().to_string();
        assert!(sentence.contains("did not end") && sentence.contains("begun"), "{sentence}");
        assert!(!exists(pid));
    }

    #[test]
    fn an_interrupt_reaches_the_child() {
        // A test run that itself was started in the background has children that ignore the signal, and a shell can
        // trap none that it came with ignored.
        let script = "trap 'echo caught; exit 0' INT; echo ready; while :; do sleep 0.05; done";
        let mut child = Command::new("env");
        child.args(["--default-signal=INT", "sh", "-c", script]);
        let mut running = Running::start(&child).unwrap();
        running.wait_for_text("ready", Duration::from_secs(10)).unwrap();
        running.interrupt(Duration::from_secs(10)).unwrap().success().unwrap().prints(&["caught"]).unwrap();
    }

    #[test]
    fn text_that_never_comes_is_a_failure_with_the_output() {
        let mut running = Running::start(&shell("echo something else")).unwrap();
        let sentence = running.wait_for_text("ready", Duration::from_secs(10)).unwrap_err().to_string();
        assert!(sentence.contains("ended before") && sentence.contains("something else"), "{sentence}");
    }
}
