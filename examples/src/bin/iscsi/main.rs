//! `iscsi`: look at targets, test them, move data, measure. One module a job.
#![forbid(unsafe_code)]

mod args;
mod attach;
mod bench;
mod copy;
mod discover;
mod info;
mod open_disk;
mod secrets;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use examples::ending::{Ending, failed, finish};
use examples::hidden;

use args::{Cli, Job};

fn main() -> ExitCode {
    let cli = Cli::parse_from(hidden::arguments(|_, argument| hidden::url(argument)));
    finish("iscsi", run(&cli))
}

fn run(cli: &Cli) -> Result<(), Ending> {
    if let Job::Bench(args) = &cli.job {
        return bench::run(cli, args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        match &cli.job {
            Job::Discover { address } => discover::run(cli, address).await,
            Job::LoginTest { url } => info::login_test(cli, url).await,
            Job::Info { url } => info::info(cli, url).await,
            Job::Luns { url } => info::luns(cli, url).await,
            Job::Copy(args) => copy::run(cli, args).await,
            Job::Verify(args) => verify::run(cli, args).await,
            Job::Bench(_) => Ok(()),
        }
    })
}
