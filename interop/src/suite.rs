//! libiscsi's conformance suite, `iscsi-test-cu`: about 230 tests, one test a process.
//!
//! One process a test, because a test that crashes the tool would otherwise take the rest with it, and
//! because a session that one test broke must not fail the next. The tool counts a test that skipped
//! itself as passed; here the two are told apart.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process;
use crate::{Failure, Result, packages};

/// The tool's exit status after an assertion that failed is 0 as well, so its output decides.
const TOOL: &str = "iscsi-test-cu";

/// Asserts that say nothing about the target, by their place in version 1.19 of the tool.
const TOOL_FAULTS: [&str; 4] = [
    // It flushes its out queue at once, so that the length of 1 that two of its tests wait for is never seen.
    "iscsi_out_queue_length(sd->iscsi_ctx),1)",
    // The callback runs once more, without data, when the test logs out: the reset was answered long before.
    "CU_ASSERT_EQUAL(reconnect_succeeded,1)",
    // It asks for the state of LBA i + 1 and wants a descriptor of LBA i + (blocks of a physical block).
    "test_get_lba_status_unmap_single.c:135 ",
    // It sends a block of FFh with UNMAP and wants zeros. A device server may not deallocate blocks that
    // would then read as something else than what was sent (SBC-4, WRITE SAME and unmap operations).
    "test_writesame10_unmap_until_end.c:71 ",
];

/// One run of the suite against one LUN. Whatever the LUN holds is destroyed.
#[derive(Debug, Clone)]
pub struct Suite {
    url: String,
    read_only_url: Option<String>,
    removable_url: Option<String>,
    second_portal_url: Option<String>,
    limit: Duration,
}

/// How one test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Something was checked, and all of it held.
    Pass,
    /// The test skipped itself: a command or a feature is absent.
    Skip,
    /// Only asserts failed that are known to be wrong in the tool.
    ToolFault,
    /// An assert about the target failed.
    Fail,
    /// The tool never reached the test: no connection, no login.
    NoConnection,
    /// The tool died of a signal.
    Crash,
    /// The test did not end in time.
    Timeout,
}

/// One test, how it ended, and the tool's words about it.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The test's name, `FAMILY.SUITE.TEST`.
    pub test: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The first assert that failed, or the reason of the skip.
    pub note: String,
    /// How long it took.
    pub took: Duration,
}

/// All verdicts of a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// In the order in which the tests ran.
    pub verdicts: Vec<Verdict>,
}

impl Suite {
    /// A run against the LUN that a URL names.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            read_only_url: None,
            removable_url: None,
            second_portal_url: None,
            // One test waits for more than a minute by itself.
            limit: Duration::from_secs(120),
        }
    }

    /// A write-protected LUN, for the tests about write protection.
    pub fn read_only(mut self, url: impl Into<String>) -> Self {
        self.read_only_url = Some(url.into());
        self
    }

    /// A LUN with a removable medium, for the tests about the medium.
    pub fn removable(mut self, url: impl Into<String>) -> Self {
        self.removable_url = Some(url.into());
        self
    }

    /// The same LUN through another portal, for the multipath tests; without it the same portal is used twice.
    pub fn second_portal(mut self, url: impl Into<String>) -> Self {
        self.second_portal_url = Some(url.into());
        self
    }

    /// Seconds that one test may take; 120 unless told.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The names of all tests that this version of the tool has.
    ///
    /// # Errors
    /// When the tool is not installed or lists nothing.
    pub fn list() -> Result<Vec<String>> {
        let mut command = packages::command(TOOL)?;
        command.arg("--list");
        let listed = process::run(&command, Duration::from_secs(20))?.stdout;
        let tests: Vec<String> = listed
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("SCSI.") || line.starts_with("iSCSI."))
            .filter(|line| line.split('.').count() == 3)
            .map(str::to_owned)
            .collect();
        if tests.is_empty() {
            return Err(Failure::new(format!("{TOOL} --list printed no test:\n{listed}")));
        }
        Ok(tests)
    }

    /// Runs the tests that `wanted` picks, in the tool's order.
    ///
    /// # Errors
    /// When the tool is not installed or cannot be started. What the tests say is in the report.
    pub fn run(&self, wanted: impl Fn(&str) -> bool) -> Result<Report> {
        let mut report = Report::default();
        for test in Self::list()?.into_iter().filter(|test| wanted(test)) {
            report.verdicts.push(self.run_one(test)?);
        }
        Ok(report)
    }

    fn run_one(&self, test: String) -> Result<Verdict> {
        let begin = Instant::now();
        let finished = process::run(&self.command(&test)?, self.limit);
        let took = begin.elapsed();
        let (outcome, note) = match finished {
            Err(failure) if took >= self.limit => (Outcome::Timeout, last_line(&failure.to_string())),
            Err(failure) => return Err(failure),
            Ok(finished) => judge(&test, finished.code(), &finished.output),
        };
        Ok(Verdict { test, outcome, note, took })
    }

    fn command(&self, test: &str) -> Result<Command> {
        let family = test.split('.').nth(1).unwrap_or_default();
        let mut command = packages::command(TOOL)?;
        command.args(["--dataloss", "--allow-sanitize", "--test", test]);
        // Both may use the LUN; named here so that a target with an access list can name them too.
        command.args(["--initiator-name", Self::INITIATORS[0], "--initiator-name-2", Self::INITIATORS[1]]);
        match (family, &self.read_only_url, &self.removable_url) {
            ("ReadOnly", Some(url), _) => command.arg(url),
            ("PreventAllow" | "StartStopUnit" | "NoMedia", _, Some(url)) => command.arg(url),
            ("MultipathIO", _, _) => command.arg(&self.url).arg(self.second_portal_url.as_ref().unwrap_or(&self.url)),
            _ => command.arg(&self.url),
        };
        Ok(command)
    }

    /// The names that the suite's two initiators log in with.
    pub const INITIATORS: [&'static str; 2] = ["iqn.2026-01.org.example:suite-1", "iqn.2026-01.org.example:suite-2"];
}

/// Reads the outcome from what the tool printed.
fn judge(test: &str, code: Option<i32>, output: &str) -> (Outcome, String) {
    if code.is_none() {
        return (Outcome::Crash, last_line(output));
    }
    let Some([tests_run, tests_failed]) = summary(output, "tests") else {
        return (Outcome::NoConnection, last_line(output));
    };
    if tests_run == 0 {
        return (Outcome::NoConnection, last_line(output));
    }
    let asserts: Vec<&str> = output.lines().map(str::trim).filter(|line| is_failed_assert(line)).collect();
    if tests_failed > 0 {
        let wrong = asserts.iter().find(|line| !TOOL_FAULTS.iter().any(|fault| line.contains(fault)));
        return match wrong {
            None if !asserts.is_empty() => (Outcome::ToolFault, asserts[0].to_owned()),
            _ => {
                let words = output.lines().find_map(|line| line.split_once("[FAILED]"));
                let note = words.map(|(_, words)| words.trim()).or(wrong.copied()).unwrap_or_default();
                (Outcome::Fail, note.to_owned())
            }
        };
    }
    let skips: Vec<&str> = own_words(output)
        .lines()
        .filter_map(|line| line.split_once("[SKIPPED]"))
        .map(|(_, words)| words.trim())
        .collect();
    let asserts_run = summary(output, "asserts").map_or(0, |[run, _]| run);
    // A skip itself counts as one assert. Setting up (READ CAPACITY and the like) asserts too, so a test
    // whose own command is absent is a skip whatever else it counted.
    let own = skips.iter().any(|words| names_own_command(test, words));
    match skips.first() {
        Some(words) if own || asserts_run <= skips.len() => (Outcome::Skip, (*words).to_owned()),
        Some(words) => (Outcome::Pass, format!("part-skipped: {words}")),
        None => (Outcome::Pass, String::new()),
    }
}

/// What the test itself printed. The tool looks for persistent reservations before and after every test
/// and prints a skip for that too, which says nothing about the test.
fn own_words(output: &str) -> &str {
    let body = output.split_once("\nSuite: ").map_or(output, |(_, body)| body);
    let end = ["...passed", "\npassed"].into_iter().filter_map(|end| body.find(end)).min();
    body.get(..end.unwrap_or(body.len())).unwrap_or(body)
}

/// Numbers `Ran` and `Failed` of a row of CUnit's summary: kind, total, ran, passed, failed, inactive.
fn summary(output: &str, row: &str) -> Option<[usize; 2]> {
    let line = output.lines().rev().find(|line| line.split_whitespace().next() == Some(row))?;
    let mut columns = line.split_whitespace().skip(2);
    let ran = columns.next()?.parse().ok()?;
    let failed = columns.nth(1)?.parse().ok()?;
    Some([ran, failed])
}

/// CUnit prints a failed assert as `1. file.c:157  - CU_ASSERT...`.
fn is_failed_assert(line: &str) -> bool {
    line.split_once(". ").is_some_and(|(number, rest)| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) && rest.contains(".c:")
    })
}

/// Whether a skip says that the very command the test is about is not implemented.
fn names_own_command(test: &str, words: &str) -> bool {
    let letters = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphabetic).map(|letter| letter.to_ascii_lowercase()).collect()
    };
    let words = letters(words);
    let suite = match test.split('.').nth(1).unwrap_or_default() {
        "MultipathIO" => "compareandwrite".to_owned(),
        suite => letters(suite),
    };
    words.contains("notimplemented") && words.starts_with(&suite)
}

fn last_line(text: &str) -> String {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
}

impl Report {
    /// How many tests ended so.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.verdicts.iter().filter(|verdict| verdict.outcome == outcome).count()
    }

    /// Checks the report against an expectation list: one name of a test a line, all of which must
    /// pass; `#` begins a comment.
    ///
    /// # Errors
    /// Naming each test that is on the list and did not pass, and each that the tool does not have.
    pub fn expect(&self, list: &str) -> Result<()> {
        let found: BTreeMap<&str, &Verdict> =
            self.verdicts.iter().map(|verdict| (verdict.test.as_str(), verdict)).collect();
        let expected = list.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let broken: Vec<String> = expected
            .filter(|name| !name.is_empty())
            .filter_map(|name| match found.get(name) {
                Some(verdict) if verdict.outcome == Outcome::Pass => None,
                Some(verdict) => Some(format!("  {verdict}")),
                None => Some(format!("  {name} did not run: this version of the tool does not have it")),
            })
            .collect();
        if broken.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{} tests of {TOOL} that must pass did not:\n{}\n{self}",
            broken.len(),
            broken.join("\n")
        )))
    }

    /// The names of the tests that passed, one a line: the next expectation list.
    pub fn passed(&self) -> String {
        let names = self.verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Pass);
        names.map(|verdict| format!("{}\n", verdict.test)).collect()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {}", self.outcome, self.test, self.note)
    }
}

impl fmt::Display for Report {
    /// A table by family, then a line for each test that neither passed nor skipped itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Outcome::{Crash, Fail, NoConnection, Pass, Skip, Timeout, ToolFault};
        const COLUMNS: [Outcome; 7] = [Pass, Skip, Fail, ToolFault, Crash, Timeout, NoConnection];
        let mut families: BTreeMap<&str, [usize; 7]> = BTreeMap::new();
        let mut all = [0; 7];
        for verdict in &self.verdicts {
            let family = verdict.test.rsplit_once('.').map_or("", |(family, _)| family);
            let column = COLUMNS.iter().position(|outcome| *outcome == verdict.outcome).unwrap_or(0);
            families.entry(family).or_default()[column] += 1;
            all[column] += 1;
        }
        writeln!(f, "{:<36} pass  skip  fail  tool crash  time  conn", "family")?;
        for (family, counts) in families.into_iter().chain([("all", all)]) {
            write!(f, "{family:<36}")?;
            counts.iter().try_for_each(|count| write!(f, "{count:>5} "))?;
            writeln!(f)?;
        }
        for verdict in self.verdicts.iter().filter(|verdict| !matches!(verdict.outcome, Pass | Skip)) {
            writeln!(f, "{verdict}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "suite_tests.rs"]
mod suite_tests;
