//! The command line of `iscsi`.

use clap::{Args, Parser, Subcommand, ValueEnum};
use examples::ending::EXIT_CODES;

/// What a URL looks like, for `--help`.
const URLS: &str = "\
A URL is iscsi://[user[%secret]@]host[:port]/iqn/lun, over TCP, or the same with iser://, over iSER. ?transport=auto
takes iSER where the target has it, else TCP. ?rdma=iwarp (user space) or ?rdma=verbs (an RDMA device) says what carries
iSER; without it, whichever works.

Secrets are better kept out of the command line: write user@host and give --password-file FILE, or set
LIBISCSI_CHAP_USERNAME and LIBISCSI_CHAP_PASSWORD, for mutual CHAP LIBISCSI_CHAP_TARGET_USERNAME and ..._PASSWORD too.";

/// Look at iSCSI targets, test them, and move data to and from them, with no kernel module and no privileges.
#[derive(Debug, Parser)]
#[command(name = "iscsi", version, after_help = URLS, after_long_help = format!("{URLS}\n\n{EXIT_CODES}"))]
pub(crate) struct Cli {
    /// Log in under this initiator name.
    #[arg(long, global = true, value_name = "IQN")]
    pub(crate) initiator: Option<String>,
    /// Give the result as JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Give up on a portal that does not take the connection, or a target that does not finish the login, after so many
    /// seconds.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 15)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) timeout: u64,
    /// Try again for so many seconds when a target is lost in the middle of the work; 0 gives up at once.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 120)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=86400))]
    pub(crate) retry: u64,
    /// Ask a target that has been silent for so many seconds whether it is there (NOP-Out); 0 never asks.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub(crate) noop_interval: u64,
    /// Take a connection for dead when that question is not answered for so many seconds.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) noop_timeout: u64,
    /// Take the CHAP secret from a file that its owner alone may read (mode 0600): the secret alone, its name standing
    /// in the URL, or lines as open-iscsi has them (node.session.auth.username = NAME, ….password, ….username_in,
    /// ….password_in).
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) password_file: Option<String>,
    #[command(subcommand)]
    pub(crate) job: Job,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// Ask a portal for its targets (SendTargets).
    Discover {
        // Given as an attribute: rustdoc takes brackets in a doc comment for links.
        #[arg(help = "The portal: HOST[:PORT], or a URL iscsi://[user%secret@]host[:port]")]
        address: String,
    },
    /// Log in, show what was negotiated, log out.
    LoginTest {
        /// The target.
        url: String,
    },
    /// Show the disk and the session.
    Info {
        /// The LUN.
        url: String,
    },
    /// List the LUNs of a target.
    Luns {
        /// The target; a LUN in it is not looked at.
        url: String,
    },
    /// Copy a disk, a file or a pipe onto another, and make it durable.
    Copy(CopyArgs),
    /// Measure IOPS and latency, in fio's words.
    Bench(BenchArgs),
    /// Write a seeded pattern and check it. Overwrites the disk. Ctrl-C ends it after a check of what it has written.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// A URL, a file, a block device, or - for standard input.
    pub(crate) from: String,
    /// A URL, a file, which is created or overwritten, a block device, or - for standard output.
    pub(crate) to: String,
    /// Another path to the disk that is read, where FROM is a URL; any number of them. I/O goes over all, and goes on
    /// while one is left.
    #[arg(long, value_name = "URL")]
    pub(crate) from_path: Vec<String>,
    /// Another path to the disk that is written, where TO is a URL.
    #[arg(long, value_name = "URL")]
    pub(crate) to_path: Vec<String>,
    /// Read both again at the end, and compare.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Copy an image as it is, though it is one of a kind (qcow2) that has the disk in another form.
    #[arg(long)]
    pub(crate) raw: bool,
    /// Bytes of one request.
    #[arg(long, default_value = "1M", value_name = "SIZE")]
    pub(crate) bs: String,
    /// Requests in flight.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub(crate) iodepth: usize,
}

/// The pattern of accesses, named as fio names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rw {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    Randread,
    /// Random writes.
    Randwrite,
    /// Random reads and writes, half and half.
    Randrw,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The LUNs; each gets a session of its own. Modes that write overwrite them.
    #[arg(required = true)]
    pub(crate) url: Vec<String>,
    /// Another path to the LUN, of which there is one then; any number of them. I/O goes over all, and goes on while
    /// one is left.
    #[arg(long, value_name = "URL")]
    pub(crate) path: Vec<String>,
    /// The pattern of accesses.
    #[arg(long, value_enum, default_value = "randread")]
    pub(crate) rw: Rw,
    /// Bytes of one request.
    #[arg(long, default_value = "512", value_name = "SIZE")]
    pub(crate) bs: String,
    /// Requests in flight on each LUN.
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub(crate) iodepth: usize,
    /// Seconds to run.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub(crate) runtime: u64,
    /// Use only the first SIZE bytes of each LUN.
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<String>,
    /// End after this many requests on each LUN, whatever the time.
    #[arg(long, value_name = "N")]
    pub(crate) number_ios: Option<u64>,
    /// Seed of the random places.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Threads; each LUN belongs to one of them.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) threads: usize,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The LUN.
    pub(crate) url: String,
    /// Another path to the same LUN; any number of them. I/O goes over all, and goes on while one is left.
    #[arg(long, value_name = "URL")]
    pub(crate) path: Vec<String>,
    /// Write and check so many times.
    #[arg(long, default_value_t = 1, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) passes: u32,
    /// Use only the first SIZE bytes.
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<String>,
    /// Bytes of one request.
    #[arg(long, default_value = "64K", value_name = "SIZE")]
    pub(crate) bs: String,
    /// Requests in flight.
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub(crate) iodepth: usize,
    /// Seed of the pattern.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Check only what an earlier run with the same seed wrote.
    #[arg(long)]
    pub(crate) check_only: bool,
}
