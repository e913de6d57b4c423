//! SendTargets: its question, and the target records of its answer (RFC 7143 Appendix C, 13.8).

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use super::{Pair, Pairs, TextError, TextWriter};
use crate::keys::Key;
use crate::name::MAX_NAME;

/// The TCP port of a target address that names none (RFC 7143 13.8).
pub const DEFAULT_PORT: u16 = 3260;

/// What a SendTargets asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendTargets<'a> {
    /// `All`: every target that the initiator may see. MUST NOT be supported in a normal session.
    All,
    /// One target.
    Named(&'a str),
    /// Nothing: the target that the session is logged in to.
    Current,
}

impl<'a> SendTargets<'a> {
    /// Reads the key's value.
    #[must_use]
    pub fn from_value(value: &'a str) -> Self {
        match value {
            "All" => Self::All,
            "" => Self::Current,
            name => Self::Named(name),
        }
    }

    /// The key's value.
    #[must_use]
    pub const fn value(self) -> &'a str {
        match self {
            Self::All => "All",
            Self::Named(name) => name,
            Self::Current => "",
        }
    }
}

/// A TargetAddress: where a portal listens, and its group.
///
/// ```
/// use iscsi_proto::text::targets::TargetAddress;
/// let address: TargetAddress = "[2001:db8::1]:3261,2".parse().unwrap();
/// assert_eq!((address.host.as_str(), address.port, address.group_tag), ("2001:db8::1", 3261, Some(2)));
/// assert_eq!(address.to_string(), "[2001:db8::1]:3261,2");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TargetAddress {
    /// DNS name, IPv4 address, or IPv6 address without its brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Portal group tag; always there in an answer to SendTargets, never in a redirection.
    pub group_tag: Option<u16>,
}

/// A TargetAddress that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no target address; it must be host[:port][,group], an IPv6 host in brackets")]
pub struct AddressError(String);

impl FromStr for TargetAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(crate::keys::shown(text));
        let (place, group_tag) = match text.rsplit_once(',') {
            Some((place, tag)) => {
                let tag = super::value::number(tag).and_then(|tag| u16::try_from(tag).ok());
                (place, Some(tag.ok_or_else(wrong)?))
            }
            None => (text, None),
        };
        let (host, port) = if let Some(rest) = place.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(wrong()),
            }
        } else {
            match place.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            }
        };
        let port = match port {
            Some(port) => {
                super::value::number(port).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
            }
            None => Some(DEFAULT_PORT),
        };
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '[' | ']' | ',' | '/' | '=');
        if host.is_empty() || host.len() > 255 || !host.chars().all(plain) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_string(), port: port.ok_or_else(wrong)?, group_tag })
    }
}

impl fmt::Display for TargetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)?;
        } else {
            write!(f, "{}:{}", self.host, self.port)?;
        }
        match self.group_tag {
            Some(tag) => write!(f, ",{tag}"),
            None => Ok(()),
        }
    }
}

/// One target of an answer to SendTargets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRecord {
    /// TargetName.
    pub name: String,
    /// Its portals.
    pub addresses: Vec<TargetAddress>,
}

impl TargetRecord {
    /// Writes the record.
    pub fn write(&self, out: &mut TextWriter) {
        out.push(Key::TargetName.name(), &self.name);
        for address in &self.addresses {
            out.push(Key::TargetAddress.name(), &address.to_string());
        }
    }
}

/// What is odd in an answer to SendTargets; it costs what it is about, and no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetsError {
    /// An address came before any name.
    #[error("the answer to SendTargets has a TargetAddress before any TargetName")]
    NoName,
    /// A target's name is none.
    #[error("the answer to SendTargets names a target {0:?}, which is no name")]
    Name(String),
    /// An address is malformed.
    #[error("the answer to SendTargets is wrong: {0}")]
    Address(#[from] AddressError),
    /// A pair cannot be read.
    #[error("the answer to SendTargets is wrong: {0}")]
    Text(#[from] TextError),
    /// Another key came, or the target refused the question.
    #[error("the target answered SendTargets with {key}={value}")]
    OtherKey {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
}

/// What an answer to SendTargets holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetList {
    /// The targets that can be read, in the order of the answer.
    pub records: Vec<TargetRecord>,
    /// What was passed over.
    pub odd: Vec<TargetsError>,
}

impl TargetList {
    /// Reads an answer. What cannot be read is passed over, so that one odd record does not hide the others; the
    /// addresses of a target whose name cannot be read go with it.
    ///
    /// ```
    /// use iscsi_proto::text::targets::TargetList;
    /// let list = TargetList::read(b"TargetName=iqn.2004-10.com.example:a\0TargetAddress=[::1\0what is this\0");
    /// assert_eq!((list.records.len(), list.records[0].addresses.len(), list.odd.len()), (1, 0, 2));
    /// ```
    #[must_use]
    pub fn read(answer: &[u8]) -> Self {
        let mut list = Self::default();
        // Whether the addresses that come next are those of a target that is passed over.
        let mut passed_over = false;
        for pair in Pairs::new(answer).past_errors() {
            let Pair { key, value } = match pair {
                Ok(pair) => pair,
                Err(error) => {
                    passed_over |= matches!(
                        &error,
                        TextError::NotUtf8 { key, .. } | TextError::ValueTooLong { key, .. }
                            if Key::from_name(key) == Some(Key::TargetName)
                    );
                    list.odd.push(error.into());
                    continue;
                }
            };
            match (Key::from_name(key), list.records.last_mut()) {
                // Names that RFC 7143 4.2.7 does not allow are in use, so only what cannot be anybody's is passed over.
                (Some(Key::TargetName), _) => {
                    let graphic = |c: char| !c.is_control() && !c.is_whitespace();
                    passed_over = value.is_empty() || value.len() > MAX_NAME || !value.chars().all(graphic);
                    if passed_over {
                        list.odd.push(TargetsError::Name(crate::keys::shown(value)));
                    } else {
                        list.records.push(TargetRecord { name: value.to_string(), addresses: Vec::new() });
                    }
                }
                (Some(Key::TargetAddress), _) if passed_over => {}
                (Some(Key::TargetAddress), None) => list.odd.push(TargetsError::NoName),
                (Some(Key::TargetAddress), Some(record)) => match value.parse() {
                    Ok(address) => record.addresses.push(address),
                    Err(error) => list.odd.push(TargetsError::Address(error)),
                },
                _ => list.odd.push(TargetsError::OtherKey { key: key.to_string(), value: crate::keys::shown(value) }),
            }
        }
        list
    }
}
