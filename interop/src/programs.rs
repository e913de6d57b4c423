//! The workspace's own programs: built once in release mode, started on a free port, ended by SIGINT.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{self, Finished, Running};
use crate::{Context, Failure, Result};

/// Time that a cold release build of the programs may take on a small machine.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);

/// Time that `ramdisk serve` may take until it serves.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Time that `ramdisk serve` may take to end after SIGINT.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Paths of the workspace's programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The target: `ramdisk`.
    pub ramdisk: PathBuf,
    /// The initiator: `iscsi`.
    pub iscsi: PathBuf,
}

/// The root of the checkout.
pub fn checkout() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The programs, built by `cargo build --release -p examples` when this process asks for the first time.
/// The environment variables `RAMDISK_BIN` and `ISCSI_BIN`, both set, name other builds to test instead.
///
/// # Errors
/// When they do not build.
pub fn programs() -> Result<Programs> {
    static BUILT: OnceLock<Result<Programs>> = OnceLock::new();
    BUILT.get_or_init(locate).clone()
}

fn locate() -> Result<Programs> {
    if let (Some(ramdisk), Some(iscsi)) = (std::env::var_os("RAMDISK_BIN"), std::env::var_os("ISCSI_BIN")) {
        let absolute = |path| std::path::absolute(&path).context(format!("the path {path:?}"));
        return Ok(Programs { ramdisk: absolute(ramdisk)?, iscsi: absolute(iscsi)? });
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--release", "--package", "examples", "--bins", "--message-format=json-render-diagnostics"])
        .current_dir(checkout());
    let finished = process::run(&build, BUILD_LIMIT)?.success()?;
    Ok(Programs { ramdisk: executable(&finished, "ramdisk")?, iscsi: executable(&finished, "iscsi")? })
}

/// Where cargo put a program, by what it said of the build.
fn executable(build: &Finished, name: &str) -> Result<PathBuf> {
    let messages = build.stdout.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    messages
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| Failure::new(format!("`{}` built no program {name}", build.command)))
}

/// The program that runs the cases of queue pairs over RDMA devices, built without optimization.
///
/// # Errors
/// When it does not build.
pub fn verbs_conformance() -> Result<PathBuf> {
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--package", "iser-transport", "--features", "verbs,conformance"]);
    build.args(["--example", "verbs_conformance", "--message-format=json-render-diagnostics"]).current_dir(checkout());
    executable(&process::run(&build, BUILD_LIMIT)?.success()?, "verbs_conformance")
}

/// A free port of 127.0.0.1. Another program may take it before it is used; callers that start a
/// listener try again with another.
///
/// # Errors
/// When the system has none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr().context("the port just bound")?.port())
}

/// Waits until something listens on a port of 127.0.0.1 while `owner` is running.
///
/// # Errors
/// When `owner` ends, or the limit passes.
pub fn wait_for_listener(port: u16, owner: &mut Running, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    loop {
        if !owner.is_running() {
            return Err(owner.complaint("ended before it listened"));
        }
        if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(owner.complaint(&format!("did not listen on {address} in {limit:?}")));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A `ramdisk serve` that serves on its own port of 127.0.0.1.
#[derive(Debug)]
pub struct Ramdisk {
    running: Running,
    port: u16,
}

impl Ramdisk {
    /// The target's name in tests that need only one.
    pub const TARGET: &'static str = "iqn.2026-01.org.example:interop";

    /// Starts `ramdisk serve --portal 127.0.0.1:PORT ARGUMENTS...` and waits until it serves.
    ///
    /// # Errors
    /// When the programs do not build, or it ends or stays silent instead of serving.
    pub fn serve<I, S>(arguments: I) -> Result<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        Self::serve_by("", arguments)
    }

    /// The same with iSER on the portal, too, on the user-space iWARP provider.
    ///
    /// # Errors
    /// As for [`serve`](Self::serve).
    pub fn serve_iser<I, S>(arguments: I) -> Result<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        Self::serve_by(",iser", arguments)
    }

    fn serve_by<I, S>(transports: &str, arguments: I) -> Result<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        let port = free_port()?;
        let mut command = Command::new(programs()?.ramdisk);
        command.args(["serve", "--portal", &format!("127.0.0.1:{port}{transports}")]);
        if !transports.is_empty() {
            command.args(["--rdma", "iwarp"]);
        }
        command.args(arguments);
        let mut running = Running::start(&command)?;
        wait_for_listener(port, &mut running, START_LIMIT)?;
        Ok(Self { running, port })
    }

    /// Serves one target, [`TARGET`](Self::TARGET), with one RAM LUN of the given size (`64M`, `1G`).
    ///
    /// # Errors
    /// As for [`serve`](Self::serve).
    pub fn serve_one(size: &str) -> Result<Self> {
        Self::serve(["--target", Self::TARGET, "--lun", size])
    }

    /// The address of its portal, `127.0.0.1:PORT`.
    pub fn portal(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port of its portal.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a LUN of [`TARGET`](Self::TARGET).
    pub fn url(&self, lun: u32) -> String {
        format!("iscsi://{}/{}/{lun}", self.portal(), Self::TARGET)
    }

    /// The same by iSER, on the user-space iWARP provider whatever else the machine has.
    pub fn iser_url(&self, lun: u32) -> String {
        format!("iser://{}/{}/{lun}?rdma=iwarp", self.portal(), Self::TARGET)
    }

    /// The same with CHAP credentials, in libiscsi's form.
    pub fn url_as(&self, user: &str, secret: &str, lun: u32) -> String {
        format!("iscsi://{user}%{secret}@{}/{}/{lun}", self.portal(), Self::TARGET)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        self.running.output()
    }

    /// Sends SIGINT and checks that it ends in time, with exit code 0 and no panic on the way.
    ///
    /// # Errors
    /// When it does not.
    pub fn stop(self) -> Result<Finished> {
        let finished = self.running.interrupt(STOP_LIMIT)?.success()?;
        if finished.output.contains("panicked at") {
            return Err(Failure::new(format!("`{}` panicked:\n{}", finished.command, finished.output)));
        }
        Ok(finished)
    }
}

/// A command that runs our `iscsi` program.
///
/// # Errors
/// When the programs do not build.
pub fn iscsi<I, S>(arguments: I) -> Result<Command>
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    let mut command = Command::new(programs()?.iscsi);
    command.args(arguments);
    Ok(command)
}
