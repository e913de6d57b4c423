//! Sizes as people write them.

use alloc::string::{String, ToString};

/// Why a size was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It is not a number with a unit.
    #[error(
        "'{0}' is not a size: write a number of bytes, or a number with a unit, such as 512, 64M, 50G, 50GiB or 1.5T"
    )]
    Malformed(String),
    /// The unit is not known.
    #[error("'{unit}' in the size '{text}' is not a unit: use K, M, G, T or P (powers of 1024)")]
    Unit {
        /// The size as it was given.
        text: String,
        /// The part that is no unit.
        unit: String,
    },
    /// It does not fit 64 bits, or is not a whole number of bytes.
    #[error("the size '{0}' is not a whole number of bytes below 16 EiB: give a smaller size, or more bytes")]
    Range(String),
}

/// Bytes of a size such as `512`, `64k`, `50G`, `50GiB`, `1.5T`. Units are powers of 1024 whether written `G`, `GB` or
/// `GiB`, in either case; blanks around number and unit are skipped.
///
/// # Errors
/// [`SizeError`], a sentence for the person who typed it.
///
/// ```
/// use backstore::parse_size;
/// assert_eq!(parse_size("50G"), Ok(50 << 30));
/// assert_eq!(parse_size("1.5 KiB"), Ok(1536));
/// assert!(parse_size("50 apples").unwrap_err().to_string().contains("not a unit"));
/// ```
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed(text.to_string());
    let range = || SizeError::Range(text.to_string());
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let unit = unit.trim();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err(malformed());
    }
    let Some(shift) = shift_of(unit) else {
        return Err(if unit.chars().all(char::is_alphabetic) {
            SizeError::Unit { text: text.to_string(), unit: unit.to_string() }
        } else {
            malformed()
        });
    };
    let unit = 1u128 << shift;
    let whole: u64 = whole.parse().map_err(|_| range())?;
    let mut bytes = u128::from(whole) * unit;
    if !fraction.is_empty() {
        let digits = u32::try_from(fraction.len()).map_err(|_| range())?;
        let scale = 10u128.checked_pow(digits).filter(|_| digits <= 18).ok_or_else(range)?;
        let parts = fraction.parse::<u128>().map_err(|_| range())? * unit;
        // A third of a GiB is no whole number of bytes: what is written is rounded down, but bytes themselves have no
        // parts.
        if shift == 0 && parts != 0 {
            return Err(range());
        }
        bytes += parts / scale;
    }
    u64::try_from(bytes).map_err(|_| range())
}

fn shift_of(unit: &str) -> Option<u32> {
    let mut letters = unit.bytes().map(|b| b.to_ascii_lowercase());
    let shift = match letters.next() {
        None | Some(b'b') if unit.len() <= 1 => return Some(0),
        Some(b'k') => 10,
        Some(b'm') => 20,
        Some(b'g') => 30,
        Some(b't') => 40,
        Some(b'p') => 50,
        _ => return None,
    };
    match (letters.next(), letters.next(), letters.next()) {
        (None, ..) | (Some(b'b'), None, _) | (Some(b'i'), Some(b'b'), None) | (Some(b'i'), None, _) => Some(shift),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_size() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512b", 512),
            ("64k", 64 << 10),
            ("64KB", 64 << 10),
            (" 2 MiB ", 2 << 20),
            ("50G", 50 << 30),
            ("50GiB", 50 << 30),
            ("50gi", 50 << 30),
            ("1T", 1 << 40),
            ("1.5T", 3 << 39),
            ("0.5k", 512),
            ("3P", 3 << 50),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn every_error_has_its_sentence() {
        for (text, part) in [
            ("", "is not a size"),
            ("G", "is not a size"),
            ("-5G", "is not a size"),
            ("1.2.3G", "is not a size"),
            ("5.", "is not a size"),
            (".5G", "is not a size"),
            ("5G3", "is not a size"),
            ("5 G B", "is not a size"),
            ("5X", "'X' in the size '5X' is not a unit"),
            ("5Gibs", "is not a unit"),
            ("5bb", "is not a unit"),
            ("1.5", "whole number of bytes"),
            ("16384P", "below 16 EiB"),
            ("99999999999999999999", "below 16 EiB"),
            ("1.0000000000000000000000001G", "whole number"),
        ] {
            let error = parse_size(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
