//! How a program ends: one sentence that says what to do, and an exit code that a script can tell apart.

use std::process::ExitCode;
use std::{fmt, io};

/// Why a program ends early. Exit codes are stable; `--help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Why {
    /// 1: the work failed.
    Failed = 1,
    /// 2: the command line is wrong (clap's own code).
    Usage = 2,
    /// 3: the other side cannot be reached, or does not speak iSCSI.
    Unreachable = 3,
    /// 4: the other side refused the login.
    Refused = 4,
    /// 5: data read back differ from data written.
    Mismatch = 5,
    /// 141: nobody reads the output any more. Programs that SIGPIPE ends have the same code in a shell.
    Unread = 141,
}

/// The list of exit codes for `--help`.
pub const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 unreachable or no iSCSI, \
     4 login refused, 5 data differ, 141 nobody reads the output";

/// An ending with its sentence.
#[derive(Debug)]
pub struct Ending {
    why: Why,
    sentence: String,
}

impl Ending {
    /// An ending for a reason, with the sentence to print.
    pub fn new(why: Why, sentence: impl fmt::Display) -> Self {
        Self { why, sentence: sentence.to_string() }
    }

    /// The reason.
    #[must_use]
    pub fn why(&self) -> Why {
        self.why
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Ending {}

/// Shorthand for an [`Ending`] that failed.
pub fn failed(sentence: impl fmt::Display) -> Ending {
    Ending::new(Why::Failed, sentence)
}

/// Shorthand for an [`Ending`] by a wrong command line.
pub fn usage(sentence: impl fmt::Display) -> Ending {
    Ending::new(Why::Usage, sentence)
}

/// An [`Ending`] for a file that cannot be used.
pub fn no_file(path: impl fmt::Display, error: &io::Error) -> Ending {
    failed(match error.kind() {
        io::ErrorKind::NotFound => format!("there is no {path}: check the path"),
        io::ErrorKind::PermissionDenied => {
            format!("{path} may not be opened: change its permissions, or run as a user who may")
        }
        io::ErrorKind::ResourceBusy => {
            format!("{path} is in use: unmount it, or end the program that has it, or take another one")
        }
        io::ErrorKind::ReadOnlyFilesystem => format!("{path} can only be read: take another one to write to"),
        io::ErrorKind::StorageFull => format!("the file system of {path} is full: make room, or take another one"),
        _ => format!("{path}: {error}"),
    })
}

/// Prints the sentence, if there is one, and gives the exit code.
#[must_use]
pub fn finish(program: &str, result: Result<(), Ending>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(ending) => {
            crate::tell!("{program}: {ending}");
            ExitCode::from(ending.why as u8)
        }
    }
}
