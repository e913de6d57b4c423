//! tgt, the user-space target, as another target for our initiator.
//!
//! Each [`Tgt`] is a daemon of its own: own control socket (`TGT_IPC_SOCKET`), own portal,
//! foreground, so that several can run side by side and beside one that the machine may run otherwise. In tgt a
//! target's LUN 0 is a controller; disks start at LUN 1.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::process::{self, Running};
use crate::programs::{free_port, wait_for_listener};
use crate::{Context, Failure, Result, packages};

const LIMIT: Duration = Duration::from_secs(20);

/// A running tgtd with one target.
#[derive(Debug)]
pub struct Tgt {
    running: Running,
    port: u16,
    directory: PathBuf,
    disks: u32,
}

impl Tgt {
    /// The target's name.
    pub const TARGET: &'static str = "iqn.2026-01.org.example:tgt";

    /// Starts a daemon with one target that lets every initiator in, with as many disks of `mebibytes`
    /// each, LUN 1 and on.
    ///
    /// # Errors
    /// When tgt is not installed, or does not start.
    pub fn start(disks: u32, mebibytes: u64) -> Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let port = free_port()?;
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("interop-tgt-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).context(format!("making {}", directory.display()))?;
        let mut command = packages::command("tgtd")?;
        command.args(["--foreground", "--iscsi", &format!("portal=127.0.0.1:{port}")]);
        command.env("TGT_IPC_SOCKET", directory.join("control"));
        let running = Running::start(&command)?;
        let mut tgt = Self { running, port, directory, disks };
        wait_for_listener(port, &mut tgt.running, LIMIT)?;
        tgt.wait_for_control()?;
        tgt.admin(&["--mode", "target", "--op", "new", "--tid", "1", "--targetname", Self::TARGET])?;
        for lun in 1..=disks {
            let path = tgt.directory.join(format!("disk{lun}"));
            let file = File::create(&path).context(format!("making {}", path.display()))?;
            file.set_len(mebibytes << 20).context(format!("sizing {}", path.display()))?;
            let (lun, path) = (lun.to_string(), path.display().to_string());
            tgt.admin(&[
                "--mode",
                "logicalunit",
                "--op",
                "new",
                "--tid",
                "1",
                "--lun",
                &lun,
                "--backing-store",
                &path,
            ])?;
            // thin_provisioning makes UNMAP known; without it there is none to test.
            let parameters = ["--params", "thin_provisioning=1"];
            tgt.admin(
                &[&["--mode", "logicalunit", "--op", "update", "--tid", "1", "--lun", &lun], &parameters[..]].concat(),
            )?;
        }
        tgt.admin(&["--mode", "target", "--op", "bind", "--tid", "1", "--initiator-address", "ALL"])?;
        Ok(tgt)
    }

    /// Demands one-way CHAP from now on.
    ///
    /// # Errors
    /// When tgt refuses the account.
    pub fn demand_chap(&mut self, user: &str, secret: &str) -> Result<()> {
        self.account(user, secret, false)
    }

    /// Makes the target prove itself too, in sessions that ask for it.
    ///
    /// # Errors
    /// When tgt refuses the account.
    pub fn prove_itself(&mut self, user: &str, secret: &str) -> Result<()> {
        self.account(user, secret, true)
    }

    fn account(&mut self, user: &str, secret: &str, outgoing: bool) -> Result<()> {
        self.admin(&["--mode", "account", "--op", "new", "--user", user, "--password", secret])?;
        let mut bind = vec!["--mode", "account", "--op", "bind", "--tid", "1", "--user", user];
        if outgoing {
            bind.push("--outgoing");
        }
        self.admin(&bind)
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// The address of its portal, `127.0.0.1:PORT`.
    pub fn portal(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port of its portal.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many disks it has.
    pub fn disks(&self) -> u32 {
        self.disks
    }

    /// The URL of a disk; the first is LUN 1.
    pub fn url(&self, lun: u32) -> String {
        format!("iscsi://{}/{}/{lun}", self.portal(), Self::TARGET)
    }

    /// The same with CHAP credentials.
    pub fn url_as(&self, user: &str, secret: &str, lun: u32) -> String {
        format!("iscsi://{user}%{secret}@{}/{}/{lun}", self.portal(), Self::TARGET)
    }

    fn admin(&self, arguments: &[&str]) -> Result<()> {
        process::run(&self.admin_command(arguments)?, LIMIT)?.success().map(drop)
    }

    fn admin_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = packages::command("tgtadm")?;
        command.args(["--lld", "iscsi"]).args(arguments).env("TGT_IPC_SOCKET", self.directory.join("control"));
        Ok(command)
    }

    fn wait_for_control(&mut self) -> Result<()> {
        let end = Instant::now() + LIMIT;
        let show = self.admin_command(&["--mode", "target", "--op", "show"])?;
        loop {
            let finished = process::run(&show, LIMIT)?;
            if finished.status.success() {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(Failure::new(format!("tgtd does not answer tgtadm:\n{}", finished.output)));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Tgt {
    fn drop(&mut self) {
        // The daemon is killed when `running` drops; its disks and its control socket would stay behind.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
