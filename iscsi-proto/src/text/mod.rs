//! The text of Login and Text PDUs (RFC 7143 6.1): key=value pairs, each ended by a null byte.
//!
//! [`Pairs`] reads them without copying, [`TextBuffer`] gathers a text that comes in several PDUs (C bit),
//! [`TextWriter`] builds one and [`TextPieces`] cuts it to the size of PDUs. [`value`] has the grammar of values.
//! [`exchange`] runs Text Requests and Responses of the Full Feature Phase, [`targets`] reads and writes the answer to
//! SendTargets.
//!
//! ```
//! use iscsi_proto::text::{Pair, Pairs, TextWriter};
//! let mut writer = TextWriter::new();
//! writer.push("SendTargets", "All");
//! assert_eq!(writer.as_bytes(), b"SendTargets=All\0");
//! let pairs: Result<Vec<Pair>, _> = Pairs::new(writer.as_bytes()).collect();
//! assert_eq!(pairs.unwrap(), [Pair { key: "SendTargets", value: "All" }]);
//! ```

use alloc::string::String;
use alloc::vec::Vec;

use nom::Parser;
use nom::bytes::complete::{tag, take_till, take_while1};
use nom::sequence::{separated_pair, terminated};

pub mod exchange;
pub mod targets;
#[cfg(test)]
mod text_tests;
pub mod value;

/// The most characters of a key's name (RFC 7143 6.1, standard-label).
pub const MAX_KEY: usize = 63;
/// The most bytes of a value that this stack reads: a CHAP value of 1024 bytes takes 2050, a name 223.
pub const MAX_VALUE: usize = 8192;

/// Texts of at most so many bytes take no more memory than they have: a login that comes in pieces, say.
const EXACT: usize = 16 << 10;

/// The answer to a key that is not understood (RFC 7143 6.2).
pub const NOT_UNDERSTOOD: &str = "NotUnderstood";
/// The answer to a key that has no meaning here (RFC 7143 6.2).
pub const IRRELEVANT: &str = "Irrelevant";
/// The answer to a value that cannot be (RFC 7143 6.2).
pub const REJECT: &str = "Reject";
/// The value of a missing function in a list (RFC 7143 6.2.1).
pub const NONE: &str = "None";

/// How much text is taken in one logical text (RFC 7143 6.1: from a first PDU to the one without C bit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextLimits {
    /// The most bytes; 65,536 by default, the least that RFC 7143 6.1 asks for with long authentication items. Never
    /// set it below 8192.
    pub max_bytes: usize,
    /// The most pairs; 256 by default.
    pub max_pairs: usize,
}

impl Default for TextLimits {
    fn default() -> Self {
        Self { max_bytes: 65_536, max_pairs: 256 }
    }
}

/// Why a text cannot be read. Offsets count bytes from the start of the logical text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A pair has no `=`.
    #[error("the pair at byte {at} has no '=' after its key")]
    NoEquals {
        /// Where the pair starts.
        at: usize,
    },
    /// A key's name breaks the rules of a standard-label.
    #[error("the key at byte {at} is no label of 1 to {MAX_KEY} letters, digits and .-+@_ that starts with a letter")]
    KeyName {
        /// Where the pair starts.
        at: usize,
    },
    /// A value is no UTF-8.
    #[error("the value of {key} at byte {at} is not UTF-8")]
    NotUtf8 {
        /// The key.
        key: String,
        /// Where the pair starts.
        at: usize,
    },
    /// A value is longer than [`MAX_VALUE`].
    #[error("the value of {key} at byte {at} has {len} bytes, {MAX_VALUE} are the most")]
    ValueTooLong {
        /// The key.
        key: String,
        /// Where the pair starts.
        at: usize,
        /// Its bytes.
        len: usize,
    },
    /// The text ends within a pair.
    #[error("the pair at byte {at} has no null byte at its end")]
    Unterminated {
        /// Where the pair starts.
        at: usize,
    },
    /// The text is longer than [`TextLimits::max_bytes`].
    #[error("the text is longer than the {limit} bytes that are taken")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// The text has more pairs than [`TextLimits::max_pairs`].
    #[error("the text has more than the {limit} pairs that are taken")]
    TooManyPairs {
        /// The limit.
        limit: usize,
    },
}

/// One key and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The key's name.
    pub key: &'a str,
    /// The value, without the null byte.
    pub value: &'a str,
}

/// Reads the pairs of a whole logical text, without copying. After an error it ends, unless it is to
/// [go on](Self::past_errors).
///
/// Null bytes between pairs are passed over: some peers count the padding of the data segment in its length.
#[derive(Debug, Clone)]
pub struct Pairs<'a> {
    text: &'a [u8],
    at: usize,
    goes_on: bool,
}

impl<'a> Pairs<'a> {
    /// Over this text.
    #[must_use]
    pub const fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, goes_on: false }
    }

    /// The same, going on behind the next null byte after an error: for answers of which a part is better than nothing.
    ///
    /// ```
    /// use iscsi_proto::text::Pairs;
    /// let text = b"A=1\0what is this\0B=2\0";
    /// assert_eq!(Pairs::new(text).count(), 2);
    /// assert_eq!(Pairs::new(text).past_errors().filter_map(Result::ok).count(), 2);
    /// ```
    #[must_use]
    pub const fn past_errors(self) -> Self {
        Self { goes_on: true, ..self }
    }

    fn parse(&mut self, rest: &'a [u8]) -> Result<Pair<'a>, TextError> {
        let at = self.at;
        let (after, (key, value)) = pair(rest).map_err(|_| diagnose(rest, at))?;
        self.at = self.text.len() - after.len();
        // The label's characters are ASCII.
        let key = core::str::from_utf8(key).map_err(|_| TextError::KeyName { at })?;
        if key.len() > MAX_KEY || !key.starts_with(|first: char| first.is_ascii_alphabetic()) {
            return Err(TextError::KeyName { at });
        }
        if value.len() > MAX_VALUE {
            return Err(TextError::ValueTooLong { key: key.into(), at, len: value.len() });
        }
        let value = core::str::from_utf8(value).map_err(|_| TextError::NotUtf8 { key: key.into(), at })?;
        Ok(Pair { key, value })
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<Pair<'a>, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.text.get(self.at..)?;
        let nulls = rest.iter().take_while(|byte| **byte == 0).count();
        self.at += nulls;
        let rest = rest.get(nulls..).filter(|rest| !rest.is_empty())?;
        let start = self.at;
        let pair = self.parse(rest);
        if pair.is_err() {
            let end = rest.iter().position(|byte| *byte == 0).filter(|_| self.goes_on);
            self.at = end.map_or(self.text.len(), |end| start + end);
        }
        Some(pair)
    }
}

/// key-name "=" value NUL. RFC 7143 6.1 wants a capital letter at the start, but names two keys with a small one itself
/// (iSCSIProtocolLevel, iSERHelloRequired), and one with a `#` (X#NodeArchitecture).
fn pair(text: &[u8]) -> nom::IResult<&[u8], (&[u8], &[u8])> {
    terminated(separated_pair(take_while1(is_label), tag(&b"="[..]), take_till(|byte| byte == 0)), tag(&b"\0"[..]))
        .parse(text)
}

const fn is_label(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+' | b'@' | b'_' | b'#')
}

/// What is wrong with a pair that does not parse.
fn diagnose(rest: &[u8], at: usize) -> TextError {
    let pair = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    match pair.iter().position(|byte| !is_label(*byte)) {
        _ if pair.len() == rest.len() => TextError::Unterminated { at },
        None => TextError::NoEquals { at },
        Some(_) if !pair.contains(&b'=') => TextError::NoEquals { at },
        Some(_) => TextError::KeyName { at },
    }
}

/// Gathers one logical text from the data segments of several PDUs, within [`TextLimits`].
#[derive(Debug, Clone, Default)]
pub struct TextBuffer {
    limits: TextLimits,
    text: Vec<u8>,
}

impl TextBuffer {
    /// An empty buffer with these limits.
    #[must_use]
    pub const fn new(limits: TextLimits) -> Self {
        Self { limits, text: Vec::new() }
    }

    /// Adds a PDU's data segment.
    ///
    /// # Errors
    /// [`TextError::TooLong`], with nothing added.
    pub fn push(&mut self, data: &[u8]) -> Result<(), TextError> {
        if data.len() > self.limits.max_bytes.saturating_sub(self.text.len()) {
            return Err(TextError::TooLong { limit: self.limits.max_bytes });
        }
        if self.text.len() + data.len() <= EXACT {
            self.text.reserve_exact(data.len());
        }
        self.text.extend_from_slice(data);
        Ok(())
    }

    /// Checks the whole text.
    ///
    /// # Errors
    /// [`TextError`]: the first error in the text, or too many pairs.
    pub fn check(&self) -> Result<(), TextError> {
        let mut count = 0;
        for pair in Pairs::new(&self.text) {
            pair?;
            count += 1;
            if count > self.limits.max_pairs {
                return Err(TextError::TooManyPairs { limit: self.limits.max_pairs });
            }
        }
        Ok(())
    }

    /// Checks the whole text and returns its pairs.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn pairs(&self) -> Result<impl Iterator<Item = Pair<'_>> + Clone, TextError> {
        self.check()?;
        Ok(Pairs::new(&self.text).map_while(Result::ok))
    }

    /// The bytes gathered.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Whether nothing was gathered.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Forgets the text and gives its memory back.
    pub fn clear(&mut self) {
        self.text = Vec::new();
    }
}

/// Builds a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextWriter {
    text: Vec<u8>,
}

impl TextWriter {
    /// An empty text.
    #[must_use]
    pub const fn new() -> Self {
        Self { text: Vec::new() }
    }

    /// Adds a pair. A null byte in the value, which would start another pair, ends it.
    pub fn push(&mut self, key: &str, value: &str) {
        let value = value.split('\0').next().unwrap_or_default();
        self.text.extend_from_slice(key.as_bytes());
        self.text.push(b'=');
        self.text.extend_from_slice(value.as_bytes());
        self.text.push(0);
    }

    /// The text.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Whether there is no pair.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The text, to be sent in data segments of at most `limit` bytes (the peer's MaxRecvDataSegmentLength; 8192 in
    /// login).
    #[must_use]
    pub fn into_pieces(self, limit: usize) -> TextPieces {
        TextPieces { text: self.text, at: 0, limit: limit.max(1) }
    }
}

/// A text cut into data segments. A pair may cross them (RFC 7143 6.1).
#[derive(Debug, Clone, Default)]
pub struct TextPieces {
    text: Vec<u8>,
    at: usize,
    limit: usize,
}

impl TextPieces {
    /// The next data segment, and whether more follow (the C bit). Empty when all were taken.
    pub fn next_piece(&mut self) -> (&[u8], bool) {
        let start = self.at;
        self.at = self.text.len().min(start.saturating_add(self.limit));
        (self.text.get(start..self.at).unwrap_or_default(), self.has_more())
    }

    /// Whether pieces are left.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.at < self.text.len()
    }
}
