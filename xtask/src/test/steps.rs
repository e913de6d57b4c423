//! The steps of `cargo xtask test`, in the order in which they tell most per second.

use interop::{Failure, Result};

use super::{Arguments, Step, builds, fuzz, sources};
use crate::shell::{self, cargo};
use crate::{conformance, setup};

/// The target of sanitizer builds; naming one keeps build scripts out of their flags.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Crates whose tests are steps of their own.
const OWN_STEPS: [&str; 4] = ["--exclude", "sim", "--exclude", "interop"];

pub(super) const STEPS: &[Step] = &[
    Step { name: "setup", purpose: "install what is missing", run: install },
    Step { name: "fmt", purpose: "formatting", run: |_| shell::run(&mut cargo(&["fmt", "--all", "--check"])) },
    Step { name: "clippy", purpose: "lints, every target, warnings are errors", run: clippy },
    Step { name: "unused", purpose: "every dependency is named in the code", run: |_| sources::dependencies() },
    Step { name: "no-std", purpose: "the cores build with no default features", run: |_| builds::no_std() },
    Step { name: "features", purpose: "the libraries build with every set of features", run: |_| builds::features() },
    Step {
        name: "machines",
        purpose: "32 bits, big-endian, no 64-bit atomics: it compiles",
        run: |_| builds::machines(),
    },
    Step { name: "doc", purpose: "documentation builds, warnings are errors", run: doc },
    Step { name: "musts", purpose: "the table of the RFCs' requirements", run: |_| conformance::check_all() },
    Step { name: "unit", purpose: "unit and integration tests of the crates", run: unit },
    Step { name: "doctest", purpose: "examples in the documentation", run: doc_tests },
    Step { name: "sim", purpose: "the simulator, seed after seed", run: sim },
    Step { name: "interop", purpose: "other people's programs on this machine", run: interop_host },
    Step { name: "vm", purpose: "the Linux kernel in the virtual machine", run: interop_vm },
    Step { name: "asan", purpose: "AddressSanitizer over memory, and over queue pairs of verbs", run: asan },
    Step { name: "fuzz", purpose: "every fuzz target for a while", run: fuzz::run },
    Step { name: "deny", purpose: "licences, sources and bans of dependencies", run: deny },
];

/// Integration tests that boot the virtual machine, by nextest's and libtest's common name filter.
const VM_TESTS: [&str; 4] = ["kernel_initiator", "lio_with_and_without_chap", "iser", "multipath"];

fn install(_: &Arguments) -> Result<()> {
    match setup::run(&setup::Arguments::default())? {
        true => Ok(()),
        false => Err(Failure::new("something could not be installed")),
    }
}

fn clippy(_: &Arguments) -> Result<()> {
    shell::run(&mut cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
}

fn doc(_: &Arguments) -> Result<()> {
    let mut command = cargo(&["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
    shell::run(command.env("RUSTDOCFLAGS", "--deny warnings"))
}

/// nextest where it is there: it runs the tests of all crates side by side.
fn tests(arguments: &[&str]) -> Result<()> {
    if shell::has("cargo-nextest") {
        // A crate may have no test yet, or none that a filter leaves.
        let run = ["nextest", "run", "--no-fail-fast", "--no-tests", "pass", "--status-level", "fail"];
        shell::run(&mut cargo(&[&run[..], arguments].concat()))
    } else {
        shell::run(&mut cargo(&[&["test", "--no-fail-fast", "--tests"], arguments].concat()))
    }
}

fn unit(_: &Arguments) -> Result<()> {
    tests(&[&["--workspace"], &OWN_STEPS[..]].concat())
}

fn doc_tests(_: &Arguments) -> Result<()> {
    shell::run(&mut cargo(&["test", "--quiet", "--workspace", "--doc"]))
}

fn sim(arguments: &Arguments) -> Result<()> {
    shell::run(
        cargo(&["test", "--release", "--package", "sim", "--no-fail-fast"])
            .env("SIM_SEEDS", arguments.seeds.to_string()),
    )
}

/// One test at a time: they start servers, capture traffic and measure, on what may be two cores.
fn interop_tests(arguments: &[&str], filter: &[&str]) -> Result<()> {
    let run = [&["test", "--package", "interop", "--no-fail-fast"], arguments, &["--", "--test-threads", "1"], filter];
    shell::run(&mut cargo(&run.concat()))
}

fn interop_host(_: &Arguments) -> Result<()> {
    let files = ["--lib", "--test", "iwarp", "--test", "libiscsi", "--test", "qemu", "--test", "other_targets"];
    interop_tests(&files, &["--skip", VM_TESTS[1]])
}

fn interop_vm(_: &Arguments) -> Result<()> {
    let kernel = interop_tests(&["--test", VM_TESTS[0]], &[]);
    let lio = interop_tests(&["--test", "other_targets"], &[VM_TESTS[1]]);
    let iser = interop_tests(&["--test", VM_TESTS[2]], &[]);
    let multipath = interop_tests(&["--test", VM_TESTS[3]], &[]);
    kernel.and(lio).and(iser).and(multipath)
}

fn asan(_: &Arguments) -> Result<()> {
    let tests = |arguments: &[&str], filter: &[&str]| {
        let mut command = cargo(&["+nightly", "test", "--package"]);
        // A target directory of its own: the flags would otherwise rebuild everything to and fro.
        command.args(arguments).args(["--target", TRIPLE, "--target-dir", "target/asan", "--"]).args(filter);
        shell::run(command.env("RUSTFLAGS", "-Zsanitizer=address"))
    };
    let memory = tests(&["iscsi-memory", "--all-features", "--tests"], &[]);
    // Queue pairs of verbs, over devices that move bytes by their addresses.
    memory.and(tests(&["iser-transport", "--lib"], &["verbs::"]))
}

fn deny(_: &Arguments) -> Result<()> {
    // Advisories are a database on GitHub; what needs nothing but crates.io is checked here.
    let check = ["check", "--hide-inclusion-graph", "licenses", "bans", "sources"];
    shell::run(&mut cargo(&[&["deny", "--all-features"], &check[..]].concat()))
}
