//! The programs as a person runs them: started with arguments, judged by what they print and by their exit code. None
//! outlives its test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) const RAMDISK: &str = env!("CARGO_BIN_EXE_ramdisk");
pub(crate) const ISCSI: &str = env!("CARGO_BIN_EXE_iscsi");
pub(crate) const EMBED: &str = env!("CARGO_BIN_EXE_embed");
/// The target of most tests.
pub(crate) const TARGET: &str = "iqn.2026-11.example:disk";

/// How long a program may take that ends by itself. The demo, not optimised and beside other tests, takes minutes.
const LIMIT: Duration = Duration::from_secs(400);

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Asserts the exit code and that stderr is one sentence of the program's with `part` in it.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, part: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.contains(part), "{part:?} is not in {:?}", self.stderr);
        assert_eq!(self.stderr.trim_end().lines().count(), 1, "not one sentence: {:?}", self.stderr);
        assert!(!self.stderr.contains("os error") && !self.stderr.contains("panicked"), "{:?}", self.stderr);
    }

    /// Asserts success, and gives what it printed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// Kills its child when dropped.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, which is just as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(program: &str, args: &[&str]) -> Guard {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Guard(command.spawn().unwrap())
}

/// What a program has for standard input, and output.
#[derive(Debug)]
pub(crate) enum Input {
    /// An input that has ended.
    None,
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file.
    File(std::fs::File),
    /// An output that takes nothing for want of space.
    Full,
    /// An output that nobody reads any more.
    Unread,
}

/// A program that has ended, which may have put out anything.
#[derive(Debug)]
pub(crate) struct EndedRaw {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl EndedRaw {
    /// The same with text.
    pub(crate) fn text(self) -> Ended {
        Ended { code: self.code, stdout: String::from_utf8_lossy(&self.stdout).into_owned(), stderr: self.stderr }
    }
}

/// Runs a program to its end.
#[track_caller]
pub(crate) fn run_with(program: &str, args: &[&str], input: Input) -> EndedRaw {
    run_in(program, args, input, &[])
}

/// The same with variables in its environment.
#[track_caller]
pub(crate) fn run_in(program: &str, args: &[&str], input: Input, variables: &[(&str, &str)]) -> EndedRaw {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.envs(variables.iter().copied());
    let mut bytes = None;
    match input {
        Input::None => {}
        Input::Bytes(content) => bytes = Some(content),
        Input::File(file) => drop(command.stdin(file)),
        Input::Full => drop(command.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())),
        Input::Unread => drop(command.stdout(std::io::pipe().unwrap().1)),
    }
    let mut guard = Guard(command.spawn().unwrap());
    // The command holds the files that it was given.
    drop(command);
    if let Some(mut stdin) = guard.0.stdin.take() {
        // One that ends early does not read it all.
        std::thread::spawn(move || drop(stdin.write_all(&bytes.unwrap_or_default())));
    }
    let reader = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut content = Vec::new();
            if let Some(mut pipe) = pipe {
                pipe.read_to_end(&mut content).unwrap();
            }
            content
        })
    };
    let stdout = reader(guard.0.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let stderr = reader(guard.0.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let code = wait(&mut guard.0).unwrap_or_else(|| panic!("{program} {args:?} did not end"));
    EndedRaw { code, stdout: stdout.join().unwrap(), stderr: String::from_utf8(stderr.join().unwrap()).unwrap() }
}

/// Runs a program to its end.
#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) -> Ended {
    run_with(program, args, Input::None).text()
}

/// A program that goes on.
pub(crate) struct Running(Guard);

/// Starts a program whose input stays open.
#[track_caller]
pub(crate) fn start(program: &str, args: &[&str]) -> Running {
    Running(spawn(program, args))
}

impl Running {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.0.0.id()
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.0.0.try_wait().unwrap().is_none()
    }

    /// Reads what it tells on its standard error, up to the line that has `part` in it.
    #[track_caller]
    pub(crate) fn complains(&mut self, part: &str) -> String {
        let mut said = String::new();
        let mut stderr = BufReader::new(self.0.0.stderr.take().unwrap());
        loop {
            let before = said.len();
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "it ended without {part:?}: {said}");
            if said[before..].contains(part) {
                return said;
            }
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        let code = wait(&mut self.0.0).expect("it ends within the limit");
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.0.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        self.0.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Ended { code, stdout, stderr }
    }
}

/// Sends a signal to a process that a test has started.
pub(crate) fn signal(pid: u32, name: &str) {
    let signal = match name {
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        "INT" => Signal::INT,
        other => panic!("no signal {other} is used here"),
    };
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// What the system shows of the arguments of a process, once `part` is in it.
#[track_caller]
pub(crate) fn shown_arguments(pid: u32, part: &str) -> String {
    let until = Instant::now() + LIMIT;
    loop {
        let shown = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let shown = String::from_utf8(shown).unwrap().replace('\0', " ");
        if shown.contains(part) {
            return shown;
        }
        assert!(Instant::now() < until, "{part:?} is not in {shown:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The exit code, or `None` if the limit passes.
fn wait(child: &mut Child) -> Option<Option<i32>> {
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Runs `iscsi` with arguments that blanks part.
#[track_caller]
pub(crate) fn iscsi(line: &str) -> Ended {
    run(ISCSI, &line.split(' ').collect::<Vec<_>>())
}

/// Runs a `ramdisk` that is to end by itself.
#[track_caller]
pub(crate) fn ramdisk(line: &str) -> Ended {
    run(RAMDISK, &line.split(' ').collect::<Vec<_>>())
}

/// A server that runs until it is dropped or interrupted.
pub(crate) struct Serving {
    guard: Guard,
    stdout: BufReader<ChildStdout>,
    /// What it printed until it served.
    pub(crate) said: String,
}

impl Serving {
    /// Starts a program and reads what it prints up to the line that begins with `until`.
    #[track_caller]
    pub(crate) fn start(program: &str, args: &[&str], until: &str) -> Self {
        let mut guard = spawn(program, args);
        let mut stdout = BufReader::new(guard.0.stdout.take().unwrap());
        let mut said = String::new();
        loop {
            let before = said.len();
            if stdout.read_line(&mut said).unwrap() == 0 {
                let mut error = String::new();
                guard.0.stderr.take().unwrap().read_to_string(&mut error).unwrap();
                panic!("{args:?} ended: {error}");
            }
            if said[before..].starts_with(until) {
                return Self { guard, stdout, said };
            }
        }
    }

    /// `ramdisk serve` whose output goes into a file that takes nothing; it is not known when it serves.
    #[track_caller]
    pub(crate) fn mute(stdout: std::fs::File, line: &str) -> Running {
        let mut command = Command::new(RAMDISK);
        command.args(["serve", "--portal", "127.0.0.1:0"]).args(line.split(' '));
        command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped());
        Running(Guard(command.spawn().unwrap()))
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.guard.0.try_wait().unwrap().is_none()
    }

    /// `ramdisk serve` on a free port, with more arguments that blanks part.
    #[track_caller]
    pub(crate) fn ramdisk(line: &str) -> Self {
        Self::at("127.0.0.1:0", line)
    }

    /// The same, with iSER.
    #[track_caller]
    pub(crate) fn iser(line: &str) -> Self {
        Self::at("127.0.0.1:0,iser", line)
    }

    #[track_caller]
    fn at(portal: &str, line: &str) -> Self {
        let mut args = vec!["serve", "--portal", portal];
        args.extend(line.split(' ').filter(|arg| !arg.is_empty()));
        Self::start(RAMDISK, &args, "Serving.")
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.guard.0.id()
    }

    /// The addresses that it printed in its tree, each once.
    pub(crate) fn portals(&self) -> Vec<String> {
        let mut portals: Vec<String> = Vec::new();
        let words =
            self.said.lines().filter_map(|line| line.trim_start_matches([' ', '|']).strip_prefix("o- 127.0.0."));
        for word in words {
            let portal = format!("127.0.0.{}", word.split(' ').next().unwrap());
            if !portals.contains(&portal) {
                portals.push(portal);
            }
        }
        portals
    }

    /// Its first portal.
    pub(crate) fn portal(&self) -> String {
        self.portals().remove(0)
    }

    /// The URL of a LUN of [`TARGET`].
    pub(crate) fn url(&self, lun: u16) -> String {
        format!("iscsi://{}/{TARGET}/{lun}", self.portal())
    }

    /// The same over iSER.
    pub(crate) fn iser_url(&self, lun: u16) -> String {
        self.url(lun).replace("iscsi://", "iser://")
    }

    /// Reads what it prints from now on, up to the line that has `part` in it.
    #[track_caller]
    pub(crate) fn says(&mut self, part: &str) -> String {
        let mut said = String::new();
        loop {
            let before = said.len();
            assert_ne!(self.stdout.read_line(&mut said).unwrap(), 0, "it ended without {part:?}: {said}");
            if said[before..].contains(part) {
                return said;
            }
        }
    }

    /// Sends SIGINT, as Ctrl-C does; gives the exit code and what it still printed.
    pub(crate) fn interrupt(mut self) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.guard.0), Signal::INT).unwrap();
        let code = wait(&mut self.guard.0).expect("it ends within the limit");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (code, rest)
    }

    /// Presses Enter.
    pub(crate) fn enter(mut self) -> Option<i32> {
        self.guard.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        wait(&mut self.guard.0).expect("it ends within the limit")
    }
}

/// A listener of the test's own.
pub(crate) fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// A file that is removed with its guard.
pub(crate) struct TempFile(PathBuf);

impl TempFile {
    /// A file with this content.
    pub(crate) fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("programs-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    pub(crate) fn read(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // A test may have removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}
