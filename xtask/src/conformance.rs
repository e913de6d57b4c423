//! `cargo xtask conformance`: whether the table of the RFCs' requirements holds together.
//!
//! `docs/conformance/musts.tsv` says for each requirement what became of it, and where. What the table cites has to be
//! there: files by their paths, tests by the name of their function. The counts in the README beside it follow from the
//! table.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use interop::{Context, Failure, Result};

use crate::shell::checkout;

/// Checks the table; with `--write`, brings the README's counts up to date first.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Arguments {
    /// Write the counts into the README
    #[arg(long)]
    write: bool,
}

const HEAD: [&str; 9] = ["rfc", "section", "line", "side", "level", "requirement", "state", "where", "note"];
const STATES: [&str; 6] = ["met", "met, untested", "partly", "not met", "other issue", "outside"];
const BEGIN: &str = "<!-- counts: `cargo xtask conformance --write` -->\n";
const END: &str = "<!-- end of counts -->\n";

/// Of one line, what the checks need.
struct Row<'a> {
    line: usize,
    rfc: &'a str,
    /// What tells it from all others.
    key: Vec<&'a str>,
    state: &'a str,
    /// Code, and behind a semicolon the tests that show it.
    places: &'a str,
    note: &'a str,
}

pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let directory = checkout().join("docs/conformance");
    let table = read(&directory.join("musts.tsv"))?;
    let mut faults = Vec::new();
    let rows = rows(&table, &mut faults);
    check(&rows, &checkout(), &mut faults);

    let path = directory.join("README.md");
    let readme = read(&path)?;
    let counts = counts(&rows);
    let current = with_counts(&readme, &counts)
        .ok_or_else(|| Failure::new(format!("{} has no place for the counts: {BEGIN}", path.display())))?;
    if arguments.write {
        fs::write(&path, &current).context(format!("writing {}", path.display()))?;
    } else if current != readme {
        faults.push("the counts in README.md are old: run `cargo xtask conformance --write`".to_owned());
    }
    print!("{counts}");
    faults.iter().for_each(|fault| println!("{fault}"));
    Ok(faults.is_empty())
}

/// The same as a step of `cargo xtask test`.
pub(crate) fn check_all() -> Result<()> {
    if run(&Arguments::default())? { Ok(()) } else { Err(Failure::new("the table of requirements does not hold")) }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).context(format!("reading {}", path.display()))
}

fn rows<'a>(table: &'a str, faults: &mut Vec<String>) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for (at, text) in table.lines().enumerate() {
        let line = at + 1;
        let fields: Vec<&str> = text.split('\t').collect();
        if at == 0 {
            if fields != HEAD {
                faults.push(format!("musts.tsv:1: the head is not {}", HEAD.join(", ")));
            }
            continue;
        }
        let &[rfc, section, place, side, _, requirement, state, places, note] = fields.as_slice() else {
            faults.push(format!("musts.tsv:{line}: {} fields instead of {}", fields.len(), HEAD.len()));
            continue;
        };
        rows.push(Row { line, rfc, key: vec![rfc, section, place, side, requirement], state, places, note });
    }
    rows
}

fn check(rows: &[Row<'_>], root: &Path, faults: &mut Vec<String>) {
    let mut seen = HashSet::new();
    let mut files = HashMap::new();
    for row in rows {
        let mut fault = |what: String| faults.push(format!("musts.tsv:{}: {what}", row.line));
        if !seen.insert(&row.key) {
            fault("the requirement is there twice".to_owned());
        }
        if !STATES.contains(&row.state) {
            fault(format!("the state {:?} is none of {}", row.state, STATES.join(" / ")));
        }
        let (code, tests) = row.places.split_once("; ").unwrap_or((row.places, ""));
        if row.state == "met" && tests.is_empty() {
            fault("it is met, and no test shows it".to_owned());
        }
        if row.state.starts_with("met") && code.is_empty() {
            fault("it is met, and no code is named".to_owned());
        }
        if !row.state.starts_with("met") && row.note.is_empty() {
            fault(format!("the state {:?} needs a note", row.state));
        }
        for path in list(code) {
            if !root.join(path).is_file() {
                fault(format!("there is no file {path}"));
            }
        }
        for test in list(tests) {
            if let Err(why) = find_test(test, root, &mut files) {
                fault(why);
            }
        }
    }
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(", ").filter(|item| !item.is_empty())
}

/// Finds `path::function`: a function of that name with a test attribute before it.
fn find_test(test: &str, root: &Path, files: &mut HashMap<String, String>) -> Result<(), String> {
    let (path, name) = test.rsplit_once("::").ok_or_else(|| format!("{test:?} is no path::function"))?;
    if !files.contains_key(path) {
        let text = fs::read_to_string(root.join(path)).map_err(|error| format!("{path}: {error}"))?;
        files.insert(path.to_owned(), text);
    }
    let text = files.get(path).map_or("", String::as_str);
    // Tests within `proptest!` have the attribute as well.
    let at = text.find(&format!("fn {name}(")).ok_or_else(|| format!("{path} has no function {name}"))?;
    let before = text.get(..at).unwrap_or_default();
    let attributes = before.rsplit(['}', ';', '{']).next().unwrap_or_default();
    if attributes.contains("#[test]") || attributes.contains("#[tokio::test") {
        Ok(())
    } else {
        Err(format!("{name} of {path} is no test"))
    }
}

/// A table of Markdown: a line for each RFC, a column for each state.
fn counts(rows: &[Row<'_>]) -> String {
    let mut count: BTreeMap<&str, [usize; STATES.len()]> = BTreeMap::new();
    let mut total = [0; STATES.len()];
    for row in rows {
        if let Some(column) = STATES.iter().position(|state| *state == row.state) {
            count.entry(row.rfc).or_default()[column] += 1;
            total[column] += 1;
        }
    }
    let mut text = format!("| RFC | {} | all |\n|---|{}---:|\n", STATES.join(" | "), "---:|".repeat(STATES.len()));
    for (name, line) in count.iter().map(|(rfc, line)| (*rfc, line)).chain([("all", &total)]) {
        let cells: Vec<String> = line.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "| {name} | {} | {} |", cells.join(" | "), line.iter().sum::<usize>());
    }
    text
}

/// The README with these counts between its marks.
fn with_counts(readme: &str, counts: &str) -> Option<String> {
    let (head, rest) = readme.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{BEGIN}{counts}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(line: &str) -> String {
        let table = format!("{}\n{line}\n", HEAD.join("\t"));
        let mut faults = Vec::new();
        let rows = rows(&table, &mut faults);
        check(&rows, &checkout(), &mut faults);
        faults.join("\n")
    }

    #[test]
    fn what_is_cited_has_to_be_there() {
        let row = |state: &str, places: &str, note: &str| {
            faults(&format!("7143\t1\t2\tboth\tMUST\tDo it\t{state}\t{places}\t{note}"))
        };
        let code = "xtask/src/conformance.rs";
        assert_eq!(row("met", &format!("{code}; {code}::what_is_cited_has_to_be_there"), ""), "");
        assert!(row("met", &format!("{code}; {code}::find_test"), "").contains("is no test"));
        assert!(row("met", &format!("{code}; {code}::nothing"), "").contains("has no function nothing"));
        assert!(row("met", "no/such/file.rs; no/such/file.rs::a", "").contains("no file no/such/file.rs"));
        assert!(row("met", code, "").contains("no test shows it"));
        assert_eq!(row("met, untested", code, "A constant"), "");
        assert!(row("partly", code, "").contains("needs a note"));
        assert!(row("done", "", "").contains("is none of"));
        assert!(faults("7143\t1").contains("2 fields"));
        let same = "7143\t1\t2\tboth\tMUST\tDo it\toutside\t\tA definition";
        assert!(faults(&format!("{same}\n{same}")).contains("twice"));
    }

    #[test]
    fn counts_are_put_between_the_marks() {
        let readme = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(with_counts(&readme, "new\n"), Some(format!("a\n{BEGIN}new\n{END}b\n")));
        assert_eq!(with_counts("a", "new"), None);
    }
}
