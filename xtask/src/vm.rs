//! `cargo xtask vm`: one job in the virtual machine, by hand.

use std::path::PathBuf;
use std::time::Duration;

use interop::vm::{Guest, Job};
use interop::{Context, Failure, Result, programs};

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The job: a bash script, or the name of one of interop/jobs, for example attach
    job: PathBuf,
    /// Variables for the job's environment, for example MODE=chap
    #[arg(value_name = "KEY=VALUE")]
    environment: Vec<String>,
    /// Seconds until the virtual machine is ended
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// The virtual machine's memory in MiB
    #[arg(long, default_value_t = 4096)]
    memory: u32,
    /// Do not build our programs for the job
    #[arg(long)]
    no_programs: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let own = programs::checkout().join("interop/jobs").join(&arguments.job).with_extension("sh");
    let script = if own.exists() { &own } else { &arguments.job };
    let script = script.canonicalize().context(format!("the job {}", arguments.job.display()))?;
    let mut job = Job::script(script).limit(Duration::from_secs(arguments.limit)).memory(arguments.memory);
    if !arguments.no_programs {
        job = job.with_programs()?;
    }
    for pair in &arguments.environment {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| Failure::new(format!("{pair:?} is not of the form KEY=VALUE")))?;
        job = job.with(key, value);
    }
    let guest = Guest::made()?;
    let report = guest.run(&job)?;
    print!("{}", report.output);
    println!("exit code {}; files of this run are in {}", report.code, report.directory.display());
    Ok(report.code == 0)
}
