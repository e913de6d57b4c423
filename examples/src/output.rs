//! What programs print: an output that is full, or that nobody reads any more, is a sentence and an exit code.

use std::fmt;
use std::io::{self, Write};

use crate::ending::{Ending, Why, failed};

/// Prints as `print!` does.
///
/// # Errors
/// What stands in the way.
pub fn print(text: fmt::Arguments<'_>) -> Result<(), Ending> {
    io::stdout().lock().write_fmt(text).map_err(|error| unprinted(&error))
}

/// The ending of a program whose output cannot be written.
#[must_use]
pub fn unprinted(error: &io::Error) -> Ending {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ending::new(Why::Unread, "whoever reads the output has gone away"),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            failed("the output finds no space left: make room, or send it to another place")
        }
        _ => failed(format!("the output cannot be written: {error}")),
    }
}

/// Prints a line.
///
/// # Errors
/// What stands in the way.
pub fn line(text: fmt::Arguments<'_>) -> Result<(), Ending> {
    print(format_args!("{text}\n"))
}

/// Prints a line to the standard output, as `println!` does; gives the ending of the program where that fails.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}

/// Tells something on the standard error, if anybody is there to read it: the work goes on without.
#[macro_export]
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_fail_has_its_sentence() {
        let told = |kind: io::ErrorKind| {
            let ending = unprinted(&kind.into());
            (ending.why(), ending.to_string())
        };
        assert_eq!(told(io::ErrorKind::BrokenPipe).0, Why::Unread);
        let (why, sentence) = told(io::ErrorKind::StorageFull);
        assert!(why == Why::Failed && sentence.contains("no space left"), "{sentence}");
    }
}
