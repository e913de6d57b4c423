//! The grammar of values (RFC 7143 6.1).

use nom::branch::alt;
use nom::bytes::complete::{tag, tag_no_case};
use nom::character::complete::{char, digit1, hex_digit1};
use nom::combinator::{all_consuming, map_opt, map_res, value, verify};
use nom::sequence::{preceded, separated_pair};
use nom::{IResult, Parser};

pub use crate::chap::{BinaryError, decode_binary, encode_base64, encode_hex};

/// boolean-value: `Yes` or `No`.
///
/// ```
/// use iscsi_proto::text::value::boolean;
/// assert_eq!(boolean("Yes"), Some(true));
/// assert_eq!(boolean("yes"), None);
/// ```
#[must_use]
pub fn boolean(text: &str) -> Option<bool> {
    whole(alt((value(true, tag("Yes")), value(false, tag("No")))).parse(text))
}

/// The word for a boolean.
#[must_use]
pub const fn yes_no(yes: bool) -> &'static str {
    if yes { "Yes" } else { "No" }
}

/// numerical-value: a decimal-constant without leading zeros, or a hex-constant, below 2^64.
///
/// ```
/// use iscsi_proto::text::value::number;
/// assert_eq!(number("8192"), Some(8192));
/// assert_eq!(number("0x2000"), Some(8192));
/// assert_eq!(number("08192"), None);
/// ```
#[must_use]
pub fn number(text: &str) -> Option<u64> {
    all_consuming(numerical_value).parse(text).ok().map(|(_, number)| number)
}

/// numerical-range: two numbers with a tilde between them, the second not the lower.
#[must_use]
pub fn range(text: &str) -> Option<(u64, u64)> {
    let range = verify(separated_pair(numerical_value, char('~'), numerical_value), |(low, high)| low <= high);
    all_consuming(range).parse(text).ok().map(|(_, range)| range)
}

/// list-of-values: what stands between the commas.
pub fn list(text: &str) -> impl Iterator<Item = &str> + Clone {
    text.split(',')
}

fn numerical_value(text: &str) -> IResult<&str, u64> {
    alt((hex_constant, decimal_constant)).parse(text)
}

fn hex_constant(text: &str) -> IResult<&str, u64> {
    map_opt(preceded(tag_no_case("0x"), hex_digit1), |digits: &str| {
        // Leading zeros are discouraged, not forbidden.
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 16).ok() }
    })
    .parse(text)
}

fn decimal_constant(text: &str) -> IResult<&str, u64> {
    let digits = verify(digit1, |digits: &str| digits == "0" || !digits.starts_with('0'));
    map_res(digits, |digits: &str| digits.parse()).parse(text)
}

fn whole<T>(result: IResult<&str, T>) -> Option<T> {
    result.ok().filter(|(rest, _)| rest.is_empty()).map(|(_, value)| value)
}
