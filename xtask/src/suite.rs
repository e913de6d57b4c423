//! `cargo xtask suite`: libiscsi's conformance suite against any target, by hand.

use std::path::PathBuf;

use interop::suite::{Outcome, Suite};
use interop::{Context, Result};

/// What to test, and with which tests.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The LUN, as iscsi://HOST:PORT/IQN/LUN; what it holds is destroyed
    url: String,
    /// Only tests whose name has this in it, for example SCSI.Read10
    #[arg(long, default_value = "")]
    only: String,
    /// A write-protected LUN, for the tests about write protection
    #[arg(long, value_name = "URL")]
    read_only: Option<String>,
    /// Writes the names of the tests that passed to this file
    #[arg(long, value_name = "FILE")]
    passed: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let mut suite = Suite::new(&arguments.url);
    if let Some(url) = &arguments.read_only {
        suite = suite.read_only(url);
    }
    let report = suite.run(|test| test.contains(&arguments.only))?;
    print!("{report}");
    if let Some(file) = &arguments.passed {
        std::fs::write(file, report.passed()).context(format!("writing {}", file.display()))?;
    }
    Ok(report.verdicts.iter().all(|it| matches!(it.outcome, Outcome::Pass | Outcome::Skip | Outcome::ToolFault)))
}
