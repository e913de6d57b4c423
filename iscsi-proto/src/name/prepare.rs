//! The stringprep profile for iSCSI names (RFC 3722).

use alloc::string::String;

use super::NameError;

/// Prepares a name for comparison.
pub(super) fn prepare(text: &str) -> Result<String, NameError> {
    if text.is_ascii() {
        // Mapping and normalization leave of ASCII only the change to lower case.
        let name = text.to_ascii_lowercase();
        return match name.chars().find(|character| prohibited_ascii(*character)) {
            Some(character) => Err(NameError::Character { character }),
            None => Ok(name),
        };
    }
    prepare_unicode(text)
}

/// The ASCII characters of RFC 3722 6.2, after mapping; the space is in table C.1.1.
fn prohibited_ascii(character: char) -> bool {
    character.is_ascii() && !matches!(character, 'a'..='z' | '0'..='9' | '-' | '.' | ':')
}

#[cfg(not(feature = "std"))]
fn prepare_unicode(text: &str) -> Result<String, NameError> {
    // The tables' crate needs std. RFC 7143 4.2.7.2 lets an implementation do without them that keeps to ASCII.
    let character = text.chars().find(|character| !character.is_ascii());
    Err(NameError::AsciiOnly(character.unwrap_or_default()))
}

#[cfg(feature = "std")]
fn prepare_unicode(text: &str) -> Result<String, NameError> {
    // Nameprep is the same profile but for some of what is prohibited: mapping by B.1 and B.2, form KC, tables C.1.2
    // and C.2.2 to C.9, the bidirectional check, no unassigned code points (RFC 3491; RFC 3722 sections 4 to 8).
    let name = match stringprep::nameprep(text) {
        Ok(name) => name.into_owned(),
        Err(_) => return Err(why_not(text)),
    };
    // RFC 3722 6.1 and 6.2
    match name.chars().find(|character| prohibited_ascii(*character) || *character == '\u{3002}') {
        Some(character) => Err(NameError::Character { character }),
        None => Ok(name),
    }
}

/// What nameprep refused.
#[cfg(feature = "std")]
fn why_not(text: &str) -> NameError {
    let alone = |character: &char| stringprep::nameprep(character.encode_utf8(&mut [0; 4])).is_err();
    match text.chars().find(alone) {
        Some(character) => NameError::Character { character },
        None => NameError::Bidirectional,
    }
}
