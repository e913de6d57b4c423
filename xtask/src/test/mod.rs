//! `cargo xtask test`: every test there is, step by step, with one table at the end.
//!
//! A step that fails does not stop the others, because one run should tell all that is wrong. The exit
//! code is 0 only when every step that ran passed. `--only` and `--skip` choose among the steps;
//! `--list` names them.

pub(crate) mod builds;
mod fuzz;
mod sources;
mod steps;

use std::time::{Duration, Instant};

use interop::{Failure, Result};

/// Which steps to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run only these steps (may be given several times, or with commas)
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    only: Vec<String>,
    /// Leave these steps out
    #[arg(long, value_name = "STEP", value_delimiter = ',', conflicts_with = "only")]
    skip: Vec<String>,
    /// Name the steps and end
    #[arg(long)]
    list: bool,
    /// Seeds for the simulator: so many over TCP and over loopback each, shares of it over iWARP and in the worlds in
    /// which rare things meet
    #[arg(long, default_value_t = 3000)]
    seeds: u32,
    /// Seconds that each fuzz target runs
    #[arg(long, default_value_t = 40, value_name = "SECONDS")]
    fuzz_time: u32,
}

/// One step: a name to choose it by, what it does, and the doing.
struct Step {
    name: &'static str,
    purpose: &'static str,
    run: fn(&Arguments) -> Result<()>,
}

struct Row {
    step: &'static Step,
    outcome: Result<()>,
    took: Duration,
}

pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        steps::STEPS.iter().for_each(|step| println!("{:<10} {}", step.name, step.purpose));
        return Ok(true);
    }
    let known = |name: &&String| !steps::STEPS.iter().any(|step| step.name == name.as_str());
    if let Some(unknown) = arguments.only.iter().chain(&arguments.skip).find(known) {
        return Err(Failure::new(format!("there is no step {unknown:?}: `cargo xtask test --list` names them")));
    }
    let begin = Instant::now();
    let mut rows = Vec::new();
    for step in steps::STEPS.iter().filter(|step| is_chosen(step.name, arguments)) {
        println!("\n=== {}: {}", step.name, step.purpose);
        let begin = Instant::now();
        let outcome = (step.run)(arguments);
        if let Err(failure) = &outcome {
            println!("{failure}");
        }
        rows.push(Row { step, outcome, took: begin.elapsed() });
    }
    print_table(&rows, begin.elapsed());
    Ok(rows.iter().all(|row| row.outcome.is_ok()))
}

fn is_chosen(name: &str, arguments: &Arguments) -> bool {
    let among = |list: &[String]| list.iter().any(|it| it == name);
    if arguments.only.is_empty() { !among(&arguments.skip) } else { among(&arguments.only) }
}

fn print_table(rows: &[Row], whole: Duration) {
    println!("\n{:<10} {:<6} {:>8}  what", "step", "", "seconds");
    for row in rows {
        let outcome = if row.outcome.is_ok() { "ok" } else { "FAILED" };
        println!("{:<10} {outcome:<6} {:>8.1}  {}", row.step.name, row.took.as_secs_f64(), row.step.purpose);
    }
    let failed = rows.iter().filter(|row| row.outcome.is_err()).count();
    let verdict = if failed == 0 { "all passed".to_owned() } else { format!("{failed} FAILED") };
    println!("{:<10} {:<6} {:>8.1}  {} steps, {verdict}", "whole", "", whole.as_secs_f64(), rows.len());
    // Once more at the end, because the middle of a long log is what a viewer leaves out.
    for row in rows {
        if let Err(failure) = &row.outcome {
            println!("\n{}: {failure}", row.step.name);
        }
    }
}
