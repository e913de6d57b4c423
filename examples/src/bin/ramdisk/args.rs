//! The command line of `ramdisk`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use examples::attributes;
use examples::ending::EXIT_CODES;
use examples::layout::RdmaChoice;

/// A remote RAM disk: this machine's memory as a disk for other machines, over iSCSI.
#[derive(Debug, Parser)]
#[command(name = "ramdisk", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) job: Job,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// Export LUNs until Ctrl-C.
    Serve(ServeArgs),
    /// Run the whole story on this machine, told step by step: store, target, LUN, portal, discovery, login, I/O over
    /// TCP, the same over iSER, RAID 0.
    Demo(DemoArgs),
}

const ORDER: &str = "\
Targets and LUNs go together in order: a --lun belongs to the --target before it. With nothing given there is one target
with a made-up name, one 1 GiB RAM LUN and the portal 127.0.0.1:3260.";

const EXAMPLES: &str = "\
Examples:
  ramdisk serve
  ramdisk serve --portal 0.0.0.0:3260 --target iqn.2026-11.example.ramdisk:disks --lun 50G --lun file:/srv/disk.img
  ramdisk serve --portal 0.0.0.0:3260,iser --lun 50G
  ramdisk serve --chap alice:a-secret-of-12-bytes --mutual-chap ramdisk:another-12-bytes \\
    --initiator iqn.1993-08.org.debian:01:host";

#[derive(Debug, Args)]
#[command(after_help = format!("{ORDER}\n\n{}\n\n{EXAMPLES}", attributes::HELP))]
pub(crate) struct ServeArgs {
    /// Listen on this address, with `,iser` for iSER beside TCP; may be given again. Port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT[,iser]")]
    pub(crate) portal: Vec<String>,
    /// What carries iSER. Without it, both if this machine has an RDMA device, else iWARP in user space.
    #[arg(long, value_enum)]
    pub(crate) rdma: Option<RdmaChoice>,
    /// Register at most so much memory with RDMA devices at a time (`256M`).
    #[arg(long, value_name = "SIZE")]
    pub(crate) registered_memory: Option<String>,
    /// A target by its name; the LUNs that follow belong to it. May be given again.
    #[arg(long, value_name = "IQN")]
    pub(crate) target: Vec<String>,
    /// A LUN of the target before it: RAM of a size (`1G`, `512M`), a file or block device (`file:PATH`), or nothing at
    /// all (`null:SIZE`).
    #[arg(long, value_name = "SIZE|file:PATH|null:SIZE")]
    pub(crate) lun: Vec<String>,
    /// Initiators must log in with this CHAP name and secret (12 bytes or more); may be given again.
    #[arg(long, value_name = "USER:SECRET")]
    pub(crate) chap: Vec<String>,
    /// The target proves itself with this CHAP name and secret (12 bytes or more, and another one than theirs); needs
    /// --chap.
    #[arg(long, value_name = "USER:SECRET")]
    pub(crate) mutual_chap: Option<String>,
    /// Only these initiators may log in; may be given again. Without it, any may.
    #[arg(long, value_name = "IQN")]
    pub(crate) initiator: Vec<String>,
    /// Initiators may read only.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Set an attribute, see below; may be given again.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) attribute: Vec<String>,
    /// RAM and file LUNs keep their serial number and designator over starts. Without it RAM LUNs are other disks with
    /// each start, and file LUNs where another file is in their place, so that no initiator takes one for the one that
    /// it knew.
    #[arg(long)]
    pub(crate) lasting_identity: bool,
    /// Take the configuration from a TOML file, whose keys are the long options with `_` for `-` (`[[target]]` has
    /// `name` and `lun`); the other options add to it.
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) config: Option<PathBuf>,
    /// Show IOPS, throughput and latency of each session, and what RDMA moved, every second.
    #[arg(long)]
    pub(crate) stats: bool,
    /// Worker threads; 0 takes one per core.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) workers: usize,
    /// Print the configuration as JSON instead of a tree.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Size of the first RAM store; it costs nothing until it is written.
    #[arg(long, default_value = "50G", value_name = "SIZE")]
    pub(crate) size: String,
    /// Seconds for each measurement of the table.
    #[arg(long, default_value_t = 1, value_name = "SECONDS")]
    pub(crate) runtime: u64,
    /// Commands in flight for each LUN.
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub(crate) iodepth: usize,
    /// Print the table's figures as JSON at the end.
    #[arg(long)]
    pub(crate) json: bool,
}
