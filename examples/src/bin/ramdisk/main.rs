//! `ramdisk`: a remote RAM disk to serve, and the whole story of one to watch.
#![forbid(unsafe_code)]

mod args;
mod attach;
mod demo;
mod exports;
mod iser;
mod options;
mod serve;
mod stats;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use examples::ending::{finish, usage, with_the_reader};

use args::{Cli, Job};

fn main() -> ExitCode {
    with_the_reader();
    let matches = Cli::command().get_matches();
    let result = match Cli::from_arg_matches(&matches).map_err(usage) {
        Ok(Cli { job: Job::Serve(args) }) => {
            // The order of --target and --lun tells which LUN is whose; only the matches know it.
            matches.subcommand_matches("serve").map_or(Ok(()), |matches| serve::run(&args, matches))
        }
        Ok(Cli { job: Job::Demo(args) }) => demo::run(&args),
        Err(ending) => Err(ending),
    };
    finish("ramdisk", result)
}
