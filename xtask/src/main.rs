//! Jobs around the code, as subcommands of `cargo xtask`.
//!
//! Each subcommand is a module with an `Arguments` (clap) and a `run`, which returns whether all went
//! well; an `Err` is a sentence for the person who typed the command.

mod bench;
mod conformance;
mod mutations;
mod setup;
mod shell;
mod suite;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Jobs around the code", arg_required_else_help = true)]
struct Xtask {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Measure the target beside tgt and a bare echo.
    Bench(bench::Arguments),
    /// Install what the tests need: Debian packages, Rust tools, the virtual machine's kernel.
    Setup(setup::Arguments),
    /// Run every test there is, step by step, and print one table at the end.
    Test(test::Arguments),
    /// Run libiscsi's conformance suite against any target.
    Suite(suite::Arguments),
    /// Check the table of the RFCs' requirements.
    Conformance(conformance::Arguments),
    /// Plant the bugs of `sim/mutations.toml` in a copy of the sources, and show that each is found.
    Mutations(mutations::Arguments),
    /// Boot the virtual machine and run one job in it.
    Vm(vm::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Xtask::parse().job {
        Job::Bench(arguments) => bench::run(&arguments),
        Job::Setup(arguments) => setup::run(&arguments),
        Job::Test(arguments) => test::run(&arguments),
        Job::Suite(arguments) => suite::run(&arguments),
        Job::Conformance(arguments) => conformance::run(&arguments),
        Job::Mutations(arguments) => mutations::run(&arguments),
        Job::Vm(arguments) => vm::run(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}
