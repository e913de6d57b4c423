//! Reading iscsi-test-cu's output: each outcome from the words that the tool prints for it.

use super::*;

fn printed(body: &str, tests: &str, asserts: &str) -> String {
    format!(
        "\nSuite: X\n{body}\nRun Summary:    Type  Total    Ran Passed Failed Inactive\n              \
         suites      1      1    n/a      0        0\n               tests      {tests}        0\n             \
         asserts   {asserts}      n/a\n\nTests completed with return value: 0\n"
    )
}

#[test]
fn a_pass_is_a_pass() {
    let output = printed("  Test: Simple ...passed", "1      1      1      0", "512    512    512      0");
    assert_eq!(judge("SCSI.Read10.Simple", Some(0), &output).0, Outcome::Pass);
}

#[test]
fn a_test_that_only_skipped_is_a_skip() {
    let output = printed(
        "  Test: Reset ...    [SKIPPED] --allow-sanitize flag is not set. Skipping test.\npassed",
        "1      1      1      0",
        "1      1      1      0",
    );
    let (outcome, note) = judge("SCSI.Sanitize.Reset", Some(0), &output);
    assert_eq!(outcome, Outcome::Skip);
    assert!(note.starts_with("--allow-sanitize"));
}

#[test]
fn a_skip_around_the_test_says_nothing_about_it() {
    let around = "    [SKIPPED] PERSISTENT RESERVE IN is not implemented.\n";
    let body = format!("  Test: Simple ...passed{around}");
    let output = format!("{around}{}", printed(&body, "1      1      1      0", "1      1      1      0"));
    assert_eq!(judge("SCSI.ReadCapacity10.Simple", Some(0), &output), (Outcome::Pass, String::new()));
    let body = format!("  Test: Simple ...{around}passed{around}");
    let output = format!("{around}{}", printed(&body, "1      1      1      0", "1      1      1      0"));
    assert_eq!(judge("SCSI.PrinReadKeys.Simple", Some(0), &output).0, Outcome::Skip);
}

#[test]
fn a_test_whose_own_command_is_absent_is_a_skip_whatever_it_counted() {
    let output = printed(
        "  Test: Simple ...    [SKIPPED] COMPAREANDWRITE is not implemented.\npassed",
        "1      1      1      0",
        "9      9      9      0",
    );
    assert_eq!(judge("SCSI.CompareAndWrite.Simple", Some(0), &output).0, Outcome::Skip);
    assert_eq!(judge("iSCSI.MultipathIO.CompareAndWrite", Some(0), &output).0, Outcome::Skip);
    let (outcome, note) = judge("SCSI.Write10.Simple", Some(0), &output);
    assert_eq!(outcome, Outcome::Pass);
    assert!(note.starts_with("part-skipped"));
}

#[test]
fn a_failed_assert_is_a_failure_unless_the_tool_is_at_fault() {
    let wrong = printed(
        "  Test: A ...FAILED\n    1. test_a.c:157  - CU_ASSERT_EQUAL(status,0)",
        "1      1      0      1",
        "8      8      7      1",
    );
    let (outcome, note) = judge("iSCSI.iSCSITMF.A", Some(0), &wrong);
    assert_eq!(outcome, Outcome::Fail);
    assert!(note.contains("status,0"));
    let tool = printed(
        "  Test: A ...FAILED\n    1. test_a.c:80  - CU_ASSERT_EQUAL(iscsi_out_queue_length(sd->iscsi_ctx),1)",
        "1      1      0      1",
        "8      8      7      1",
    );
    assert_eq!(judge("iSCSI.iSCSITMF.A", Some(0), &tool).0, Outcome::ToolFault);
}

#[test]
fn a_tool_that_never_reached_the_test_or_died_is_no_pass() {
    let never = printed("", "0      0      0      0", "0      0      0      0");
    assert_eq!(judge("SCSI.Read10.Simple", Some(0), &never).0, Outcome::NoConnection);
    assert_eq!(judge("SCSI.Read10.Simple", Some(10), "Failed to login").0, Outcome::NoConnection);
    assert_eq!(judge("SCSI.Read10.Simple", None, "").0, Outcome::Crash);
}

#[test]
fn an_expectation_that_is_not_met_is_named() {
    let verdict =
        |test: &str, outcome| Verdict { test: test.to_owned(), outcome, note: "why".to_owned(), took: Duration::ZERO };
    let report = Report { verdicts: vec![verdict("SCSI.A.B", Outcome::Pass), verdict("SCSI.A.C", Outcome::Skip)] };
    report.expect("# comment\nSCSI.A.B  # good\n\n").unwrap();
    let sentence = report.expect("SCSI.A.B\nSCSI.A.C\nSCSI.A.D\n").unwrap_err().to_string();
    assert!(sentence.contains("Skip SCSI.A.C why") && sentence.contains("SCSI.A.D did not run"), "{sentence}");
    assert_eq!(report.passed(), "SCSI.A.B\n");
}
