//! iSCSI names: checked, prepared and made up (RFC 7143 4.2.7, RFC 3722, RFC 3980).

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::{fmt, str};

mod prepare;

/// The most bytes of an iSCSI name (RFC 7143 4.2.7.2).
pub const MAX_NAME: usize = 223;

/// The name of an iSCSI node, in its prepared form, so that names compare byte for byte.
///
/// Made from text, which is prepared first: upper case becomes lower case, compatible characters become one
/// (RFC 3722). What remains must be one of the three formats of RFC 7143 4.2.7.3.
///
/// ```
/// use iscsi_proto::name::{IscsiName, NameKind};
/// let name: IscsiName = "IQN.2026-11.example.RAMDisk:Disk1".parse()?;
/// assert_eq!(name.as_str(), "iqn.2026-11.example.ramdisk:disk1");
/// assert_eq!(name.kind(), NameKind::Iqn);
/// assert!("naa.52004567ba64678d".parse::<IscsiName>().is_ok());
///
/// let error = "iqn.26-11.example:disk".parse::<IscsiName>().unwrap_err();
/// assert!(error.to_string().contains("iqn.2026-11."), "{error}");
/// # Ok::<(), iscsi_proto::name::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IscsiName(String);

/// The format of a name (RFC 7143 4.2.7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NameKind {
    /// `iqn.`: a date, a reversed domain name and what its owner likes.
    Iqn,
    /// `eui.`: an EUI-64 identifier in 16 hexadecimal digits.
    Eui,
    /// `naa.`: a network address authority identifier in 16 or 32 hexadecimal digits.
    Naa,
}

/// Text that is no iSCSI name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing.
    #[error("an iSCSI name cannot be empty; one looks like iqn.2026-11.example.ramdisk:disk1")]
    Empty,
    /// The name is too long.
    #[error("an iSCSI name has at most {MAX_NAME} bytes, this one has {0}")]
    TooLong(usize),
    /// The name starts with none of the three type designators.
    #[error("{0:?} is no iSCSI name: it must start with iqn., eui. or naa., as iqn.2026-11.example.ramdisk:disk1 does")]
    Kind(String),
    /// The date of an `iqn.` name is no date.
    #[error(
        "{0:?} has no year and month after iqn.; a right name starts like iqn.2026-11. (year, dash, month 01 to 12, \
         dot)"
    )]
    Date(String),
    /// The naming authority of an `iqn.` name is no reversed domain name.
    #[error(
        "{0:?} has no reversed domain name after the date; a right name continues like iqn.2026-11.example.ramdisk, \
         then a colon and a text of your own"
    )]
    Authority(String),
    /// An `eui.` name has not 16 hexadecimal digits.
    #[error("{0:?}: eui. must be followed by 16 hexadecimal digits, as in eui.02004567a425678d")]
    Eui(String),
    /// A `naa.` name has neither 16 nor 32 hexadecimal digits.
    #[error("{0:?}: naa. must be followed by 16 or 32 hexadecimal digits, as in naa.52004567ba64678d")]
    Naa(String),
    /// A character that names cannot hold.
    #[error(
        "{character:?} cannot stand in an iSCSI name; of the ASCII characters only letters, digits, dash, dot and \
         colon can"
    )]
    Character {
        /// The character, as prepared.
        character: char,
    },
    /// Right-to-left and left-to-right characters are mixed against RFC 3454 section 6.
    #[error(
        "the name mixes right-to-left and left-to-right characters; a right-to-left name must start and end with \
         right-to-left characters and hold no left-to-right ones"
    )]
    Bidirectional,
    /// The build has no tables for characters outside ASCII.
    #[error(
        "{0:?} is outside ASCII; this build knows ASCII names only, enable the feature std of iscsi-proto for others"
    )]
    AsciiOnly(char),
}

impl IscsiName {
    /// Prepares and checks a name.
    ///
    /// # Errors
    /// [`NameError`], which says what is wrong and what a right name looks like.
    pub fn new(text: &str) -> Result<Self, NameError> {
        // Preparation can shorten a text, but not without limit: a text of many times the length is refused unread.
        if text.len() > 8 * MAX_NAME {
            return Err(NameError::TooLong(text.len()));
        }
        let name = prepare::prepare(text)?;
        check(&name)?;
        Ok(Self(name))
    }

    /// Makes a name up: `prefix`, a dot or colon as needed, and twelve hexadecimal digits of `seed`.
    ///
    /// `prefix` is a name that you may give out names under, such as `iqn.2026-11.example.ramdisk`; what follows is the
    /// same for the same seed, so that a seed that lasts (a machine's identifier, a path) gives a name that lasts.
    ///
    /// ```
    /// use iscsi_proto::name::IscsiName;
    /// let name = IscsiName::generate("iqn.2026-11.example.ramdisk", &[1, 2, 3])?;
    /// assert!(name.as_str().starts_with("iqn.2026-11.example.ramdisk:"));
    /// assert_eq!(name, IscsiName::generate("iqn.2026-11.example.ramdisk", &[1, 2, 3])?);
    /// # Ok::<(), iscsi_proto::name::NameError>(())
    /// ```
    ///
    /// # Errors
    /// [`NameError`] when `prefix` is no `iqn.` name or leaves no room.
    pub fn generate(prefix: &str, seed: &[u8]) -> Result<Self, NameError> {
        use sha2::{Digest, Sha256};
        if !prefix.starts_with("iqn.") {
            return Err(NameError::Kind(prefix.to_owned()));
        }
        let digest = Sha256::digest(seed);
        let digits = digest.iter().take(6).fold(0u64, |all, byte| all << 8 | u64::from(*byte));
        let separator = match prefix.chars().next_back() {
            Some(':' | '.' | '-') => "",
            _ if prefix.contains(':') => ".",
            _ => ":",
        };
        Self::new(&format!("{prefix}{separator}{digits:012x}"))
    }

    /// The prepared name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The format of the name.
    #[must_use]
    pub fn kind(&self) -> NameKind {
        match self.0.as_bytes() {
            [b'e', ..] => NameKind::Eui,
            [b'n', ..] => NameKind::Naa,
            _ => NameKind::Iqn,
        }
    }
}

/// Checks a prepared name's length and format.
fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong(name.len()));
    }
    let whole = || name.to_owned();
    let hex = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if let Some(rest) = name.strip_prefix("iqn.") {
        check_iqn(name, rest)
    } else if let Some(digits) = name.strip_prefix("eui.") {
        // RFC 7143 4.2.7.5
        if digits.len() == 16 && hex(digits) { Ok(()) } else { Err(NameError::Eui(whole())) }
    } else if let Some(digits) = name.strip_prefix("naa.") {
        // RFC 3980 4.1: 64 or 128 bits
        if matches!(digits.len(), 16 | 32) && hex(digits) { Ok(()) } else { Err(NameError::Naa(whole())) }
    } else {
        Err(NameError::Kind(whole()))
    }
}

/// Checks what follows `iqn.` (RFC 7143 4.2.7.4).
fn check_iqn(name: &str, rest: &str) -> Result<(), NameError> {
    let authority = match rest.as_bytes() {
        [y1, y2, y3, y4, b'-', m1, m2, b'.', ..]
            if [y1, y2, y3, y4].iter().all(|digit| digit.is_ascii_digit())
                && matches!((m1, m2), (b'0', b'1'..=b'9') | (b'1', b'0'..=b'2')) =>
        {
            rest.get(8..).unwrap_or_default()
        }
        _ => return Err(NameError::Date(name.to_owned())),
    };
    let domain = authority.split_once(':').map_or(authority, |(domain, _)| domain);
    let label = |label: &str| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-');
    if domain.split('.').all(label) { Ok(()) } else { Err(NameError::Authority(name.to_owned())) }
}

impl str::FromStr for IscsiName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl TryFrom<&str> for IscsiName {
    type Error = NameError;

    fn try_from(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl AsRef<str> for IscsiName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl core::borrow::Borrow<str> for IscsiName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for IscsiName {
    /// Compares with a name that is prepared already.
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl fmt::Display for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IscsiName({})", self.0)
    }
}

#[cfg(test)]
#[path = "name_tests.rs"]
mod tests;
