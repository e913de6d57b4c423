//! Options out of a TOML file, whose keys are the long options with `_` for `-`.

use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::Options;

/// What is wrong with a file: the line, and a sentence of one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {sentence}")]
pub struct BadFile {
    /// The line, from 1 on.
    pub line: usize,
    /// What is wrong there. Secrets are not in it.
    pub sentence: String,
}

impl Options {
    /// Reads a file's text.
    ///
    /// ```
    /// use examples::layout::Options;
    /// let options = Options::from_toml("portal = [\"127.0.0.1:0\"]\n[[target]]\nlun = [\"1G\"]").unwrap();
    /// assert_eq!(options.target[0].lun, ["1G"]);
    /// let bad = Options::from_toml("read_only = true\nlunch = 3").err().unwrap();
    /// assert!(bad.line == 2 && bad.sentence.contains("lunch"));
    /// ```
    ///
    /// # Errors
    /// Text that is no TOML, and keys and values that there are not.
    pub fn from_toml(text: &str) -> Result<Self, BadFile> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().map_or(0, |span| span.start);
            BadFile {
                line: 1 + text.bytes().take(before).filter(|byte| *byte == b'\n').count(),
                // The parser draws the place over several lines; its message alone is the sentence.
                sentence: error.message().trim().replace('\n', "; "),
            }
        })
    }
}

/// Reads `chap`. The parser's own error would show what was written, which may be a secret.
pub(super) fn secrets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Vec::deserialize(deserializer).map_err(|_| D::Error::custom("chap wants a list: [\"USER:SECRET\"]"))
}

/// Reads `mutual_chap`, as [`secrets`] reads `chap`.
pub(super) fn one_secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer).map_err(|_| D::Error::custom("mutual_chap wants \"USER:SECRET\""))
}
