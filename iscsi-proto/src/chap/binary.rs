//! Binary values in text keys: hexadecimal or base64 constants (RFC 7143 6.1).

use alloc::string::String;
use alloc::vec::Vec;

/// A value that is no binary value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BinaryError {
    /// Neither `0x` nor `0b` stands at the start.
    #[error("it must start with 0x (hexadecimal) or 0b (base64)")]
    Prefix,
    /// Nothing follows the prefix.
    #[error("nothing follows its prefix")]
    Empty,
    /// A character does not belong to the encoding.
    #[error("the character at position {0} does not belong to its encoding")]
    Character(usize),
    /// A base64 group is incomplete or its padding is misplaced.
    #[error("its last base64 group is incomplete")]
    Group,
    /// The value is longer than the key allows.
    #[error("it is longer than the {0} bytes that are allowed")]
    TooLong(usize),
}

/// `0x` and two lower case digits per byte.
pub fn encode_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("0x");
    for byte in bytes {
        for nibble in [byte >> 4, byte & 0x0f] {
            text.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
        }
    }
    text
}

/// `0b` and base64 with padding (RFC 4648 4).
pub fn encode_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + bytes.len().div_ceil(3) * 4);
    text.push_str("0b");
    for group in bytes.chunks(3) {
        let mut wide = 0u32;
        for at in 0..3 {
            wide = wide << 8 | u32::from(group.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            if at <= group.len() {
                text.push(base64_digit(wide >> (18 - 6 * at) & 0x3f));
            } else {
                text.push('=');
            }
        }
    }
    text
}

fn base64_digit(value: u32) -> char {
    let value = value as u8;
    char::from(match value {
        0..26 => b'A' + value,
        26..52 => b'a' + (value - 26),
        52..62 => b'0' + (value - 52),
        62 => b'+',
        _ => b'/',
    })
}

fn base64_value(digit: u8) -> Option<u32> {
    Some(u32::from(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

/// Reads a hexadecimal or base64 constant of at most `max` bytes.
///
/// The prefixes and hexadecimal digits may be of either case. An odd number of hexadecimal digits has its missing zero
/// at the front, so that n digits are (n + 1) / 2 bytes. Base64 may come without its padding.
///
/// # Errors
/// [`BinaryError`]. The length is checked before anything is allocated.
pub fn decode_binary(text: &str, max: usize) -> Result<Vec<u8>, BinaryError> {
    match text.as_bytes() {
        [b'0', b'x' | b'X', digits @ ..] => decode_hex(digits, max),
        [b'0', b'b' | b'B', digits @ ..] => decode_base64(digits, max),
        _ => Err(BinaryError::Prefix),
    }
}

fn decode_hex(digits: &[u8], max: usize) -> Result<Vec<u8>, BinaryError> {
    if digits.is_empty() {
        return Err(BinaryError::Empty);
    }
    if digits.len().div_ceil(2) > max {
        return Err(BinaryError::TooLong(max));
    }
    let mut bytes = Vec::with_capacity(digits.len().div_ceil(2));
    let mut pending = (!digits.len().is_multiple_of(2)).then_some(0u8);
    for (at, digit) in digits.iter().enumerate() {
        let nibble = char::from(*digit).to_digit(16).ok_or(BinaryError::Character(at + 2))? as u8;
        pending = match pending {
            Some(high) => {
                bytes.push(high << 4 | nibble);
                None
            }
            None => Some(nibble),
        };
    }
    Ok(bytes)
}

fn decode_base64(digits: &[u8], max: usize) -> Result<Vec<u8>, BinaryError> {
    let padding = digits.iter().rev().take_while(|digit| **digit == b'=').count();
    let digits = digits.get(..digits.len() - padding).unwrap_or(digits);
    if digits.is_empty() {
        return Err(BinaryError::Empty);
    }
    if digits.len() / 4 * 3 > max {
        return Err(BinaryError::TooLong(max));
    }
    if padding != 0 && (padding > 2 || !(digits.len() + padding).is_multiple_of(4)) {
        return Err(BinaryError::Group);
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut wide, mut bits) = (0u32, 0);
    for (at, digit) in digits.iter().enumerate() {
        wide = wide << 6 | base64_value(*digit).ok_or(BinaryError::Character(at + 2))?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((wide >> bits) as u8);
            wide &= (1 << bits) - 1;
        }
    }
    if bits == 6 {
        return Err(BinaryError::Group); // one digit alone holds no byte
    }
    if bytes.len() > max {
        return Err(BinaryError::TooLong(max));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        // RFC 4648 10
        for (bytes, text) in [
            ("f", "0bZg=="),
            ("fo", "0bZm8="),
            ("foo", "0bZm9v"),
            ("foob", "0bZm9vYg=="),
            ("fooba", "0bZm9vYmE="),
            ("foobar", "0bZm9vYmFy"),
        ] {
            assert_eq!(encode_base64(bytes.as_bytes()), text);
            assert_eq!(decode_binary(text, 6).unwrap(), bytes.as_bytes());
            let bare = text.trim_end_matches('=').replacen("0b", "0B", 1);
            assert_eq!(decode_binary(&bare, 6).unwrap(), bytes.as_bytes());
        }
        assert_eq!(encode_hex(&[0, 0xab, 0xff]), "0x00abff");
        assert_eq!(decode_binary("0XaBc", 2).unwrap(), [0x0a, 0xbc]);
    }

    #[test]
    fn wrong_values_are_told_apart() {
        let error = |text| decode_binary(text, 4).unwrap_err();
        assert_eq!(error("1234"), BinaryError::Prefix);
        assert_eq!(error(""), BinaryError::Prefix);
        assert_eq!(error("0x"), BinaryError::Empty);
        assert_eq!(error("0b=="), BinaryError::Empty);
        assert_eq!(error("0x12g4"), BinaryError::Character(4));
        assert_eq!(error("0bZm9_"), BinaryError::Character(5));
        assert_eq!(error("0bZ"), BinaryError::Group);
        assert_eq!(error("0bZm9v="), BinaryError::Group);
        assert_eq!(error("0x0011223344"), BinaryError::TooLong(4));
        assert_eq!(error("0bZm9vYmE="), BinaryError::TooLong(4));
    }

    proptest! {
        #[test]
        fn both_encodings_round_trip(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            for text in [encode_hex(&bytes), encode_base64(&bytes), encode_hex(&bytes).to_uppercase()] {
                prop_assert_eq!(&decode_binary(&text, bytes.len()).unwrap(), &bytes);
                prop_assert!(decode_binary(&text, bytes.len() - 1).is_err());
            }
        }

        #[test]
        fn any_text_decodes_or_not(prefix in "0[xXbB]?", rest: String) {
            let _ = decode_binary(&(prefix + &rest), 16);
        }
    }
}
