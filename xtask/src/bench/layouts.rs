//! The layouts of a remote RAM disk in the virtual machine, with Linux's ib_iser and fio: LIO's and ours in turn, in
//! one boot.

use std::time::Duration;

use interop::Result;
use interop::vm::{Guest, Job};

use super::Arguments;

pub(super) fn run(arguments: &Arguments) -> Result<bool> {
    let job = Job::named("layouts.sh")
        .with_programs()?
        .with("RUNTIME", arguments.runtime.to_string())
        .with("ROUNDS", arguments.rounds.to_string())
        .limit(Duration::from_secs(1800));
    let report = Guest::made()?.run(&job)?;
    print!("{}", report.output);
    Ok(report.code == 0)
}
