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
use examples::ending::{finish, usage};
use examples::hidden;

use args::{Cli, Job};

fn main() -> ExitCode {
    let arguments = hidden::arguments(|before, argument| match argument.split_once('=') {
        Some((option @ ("--chap" | "--mutual-chap"), value)) => Some(format!("{option}={}", hidden::account(value)?)),
        _ if before.is_some_and(|before| matches!(before, "--chap" | "--mutual-chap")) => hidden::account(argument),
        _ => None,
    });
    let matches = Cli::command().get_matches_from(arguments);
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
