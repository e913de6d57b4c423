//! iSCSI URLs, in the spelling that libiscsi and QEMU made common:
//! `iscsi://[user[%secret]@]host[:port]/target[/lun][?option=value&...]`, and `iser://` likewise for iSER.
//!
//! What libiscsi reads is read alike, with these differences: a LUN may be left out; percent escapes hold in secrets
//! and option values too, where libiscsi takes them as they stand, so that a percent sign of a secret is written `%25`
//! here; a name with escapes (`a%40b:secret`) is a name, unless it begins as the iSCSI names do, which need none.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use iscsi_proto::chap::{Algorithm, ChapSecret};
use iscsi_proto::parameters::Digest;

/// The port that IANA gave to iSCSI (RFC 7143 14).
pub const DEFAULT_PORT: u16 = 3260;

const SHAPE: &str = "iscsi://[user[%secret]@]host[:port]/iqn.2004-10.com.example:disk/0";

/// Why a URL or a portal address cannot be used. Each sentence shows what a right one looks like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It begins with neither `iscsi://` nor `iser://`.
    #[error("\"{0}\" is no iSCSI URL: it has to look like {SHAPE}, or the same with iser:// for iSER")]
    Scheme(String),
    /// No host, or one that cannot be read.
    #[error(
        "\"{0}\" is no host or host:port: write a name, an IPv4 address, or an IPv6 address in brackets such as \
         [fe80::1]:3260"
    )]
    Host(String),
    /// The port is no number from 1 to 65535.
    #[error("\"{0}\" is no port: it has to be a number from 1 to 65535, and is usually 3260")]
    Port(String),
    /// No target name behind the host.
    #[error("the URL names no target: it has to look like {SHAPE}")]
    NoTarget,
    /// The LUN is no number from 0 to 16383, or more follows it.
    #[error("\"{0}\" is no LUN: behind the target's name stands a number from 0 to 16383, as in {SHAPE}")]
    Lun(String),
    /// A percent sign without two hexadecimal digits, or bytes that are no UTF-8.
    #[error(
        "the {part} of the URL has a percent sign, at its byte {at}, that is followed by no two hexadecimal digits of \
         UTF-8; write a percent sign itself as %25"
    )]
    Percent {
        /// What has it: a secret is not shown.
        part: &'static str,
        /// Where in it, in bytes.
        at: usize,
    },
    /// It cannot be read, and what is wrong with it may be a part of a secret, which is not shown.
    #[error(
        "the URL cannot be read, and is not shown because of its secret: it has to look like {SHAPE}; in a secret a \
         question mark is written as %3F, and in an option's value an ampersand as %26"
    )]
    Secret,
    /// An option that is not known.
    #[error(
        "the URL option \"{0}\" is not known: there are header_digest, data_digest, auth, target_user, target_password, \
         initiator, iser, transport and rdma"
    )]
    UnknownOption(String),
    /// The option `rdma`, where TCP carries the session.
    #[error(
        "the URL option rdma says what carries iSER, but the URL asks for TCP: write iser://, or add transport=auto"
    )]
    RdmaWithoutIser,
    /// An option with a value that it cannot have.
    #[error("the URL option {option} cannot be \"{value}\": it has to be {expected}")]
    OptionValue {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What it can be.
        expected: &'static str,
    },
}

/// Host and port of a target's portal. The host is a name or an address without brackets.
///
/// ```
/// use initiator_core::Portal;
/// let portal: Portal = "[::1]:3261".parse().unwrap();
/// assert_eq!((portal.host.as_str(), portal.port), ("::1", 3261));
/// assert_eq!("storage".parse::<Portal>().unwrap().to_string(), "storage:3260");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Portal {
    /// Name, IPv4 address or IPv6 address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl FromStr for Portal {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let bad = || UrlError::Host(text.to_owned());
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, behind) = rest.split_once(']').ok_or_else(bad)?;
            let port = match behind {
                "" => None,
                behind => Some(behind.strip_prefix(':').ok_or_else(bad)?),
            };
            (host, port)
        } else {
            match text.split_once(':') {
                // More than one colon is an IPv6 address that lacks its brackets.
                Some((_, port)) if port.contains(':') => return Err(bad()),
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/?#@[]".contains(c)) {
            return Err(bad());
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err(UrlError::Port(port.to_owned())),
                Ok(number) => number,
            },
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A CHAP name and its secret.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The name (CHAP_N).
    pub user: String,
    /// The secret; never printed.
    pub secret: ChapSecret,
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        self.user == other.user && self.secret.as_bytes() == other.secret.as_bytes()
    }
}

impl Eq for Credentials {}

/// Which transport a session uses. Each new connection of the session chooses anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// Plain iSCSI over TCP.
    #[default]
    Tcp,
    /// iSER, and nothing else.
    Iser,
    /// iSER where the target has it, else TCP: within a second it is known which.
    Auto,
}

/// What carries iSER.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rdma {
    /// Verbs where the machine has an RDMA device with a route to the target and the target answers there, else iWARP
    /// in user space.
    #[default]
    Auto,
    /// iWARP in user space, over an ordinary TCP connection to the target's port.
    Iwarp,
    /// An RDMA device by the verbs of the system: InfiniBand, RoCE or iWARP hardware, or the kernel's soft devices.
    Verbs,
}

/// A parsed URL.
///
/// [`Display`](fmt::Display) writes it without its secrets; [`Url::to_string_with_secrets`] writes one that parses back
/// to the same.
///
/// ```
/// use initiator_core::Url;
/// let url: Url = "iscsi://joe%s3cret@[::1]:3261/iqn.2004-10.com.example:disk/2?header-digest=crc32c".parse().unwrap();
/// assert_eq!(url.target, "iqn.2004-10.com.example:disk");
/// assert_eq!(url.lun, Some(2));
/// assert_eq!(url.to_string(), "iscsi://joe@[::1]:3261/iqn.2004-10.com.example:disk/2?header-digest=crc32c");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// The portal.
    pub portal: Portal,
    /// The target's name.
    pub target: String,
    /// The LUN, where one is named: 0 to 16383.
    pub lun: Option<u16>,
    /// Who logs in. A user without a secret gets an empty one, which the caller replaces (from a prompt, from the
    /// environment).
    pub credentials: Option<Credentials>,
    /// Who the target has to prove to be: options `target_user` and `target_password`.
    pub target_credentials: Option<Credentials>,
    /// Option `header-digest`: values in order of preference.
    pub header_digest: Option<Vec<Digest>>,
    /// Option `data-digest`: values in order of preference.
    pub data_digest: Option<Vec<Digest>>,
    /// Option `auth`: the only algorithm of CHAP that is offered; all of them without.
    pub auth: Option<Algorithm>,
    /// Option `initiator`: the initiator's name.
    pub initiator: Option<String>,
    /// Option `transport`: `tcp`, `iser` or `auto`. `iser://` says it with the scheme, where TCP is no choice.
    pub transport: Transport,
    /// Option `rdma`: `iwarp`, `verbs` or `auto`; only with iSER, and not written without.
    pub rdma: Rdma,
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        Self::parse(text)
            .map_err(|error| if error.quotes() && may_quote_a_secret(text) { UrlError::Secret } else { error })
    }
}

/// Whether parts of a URL that cannot be read may be parts of a secret: the @ behind a user stands where none does, so
/// that what ended the part before it may have been in the secret; or there is an option with a secret, and what ended
/// that may have been in it.
fn may_quote_a_secret(text: &str) -> bool {
    let Some((_, rest)) = text.split_once("://") else { return text.contains('@') };
    rest.split_once('?').is_some_and(|(_, options)| options.contains('@') || options.contains("target_password="))
}

impl UrlError {
    /// Whether its sentence shows a part of the URL.
    const fn quotes(&self) -> bool {
        match self {
            Self::Scheme(_) | Self::Host(_) | Self::Port(_) | Self::Lun(_) | Self::UnknownOption(_) => true,
            Self::OptionValue { value, .. } => !value.is_empty(),
            Self::NoTarget | Self::Percent { .. } | Self::Secret | Self::RdmaWithoutIser => false,
        }
    }
}

impl Url {
    fn parse(text: &str) -> Result<Self, UrlError> {
        let (transport, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("iscsi") => (Transport::Tcp, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("iser") => (Transport::Iser, rest),
            // What stands behind the scheme may hold a secret.
            Some((scheme, _)) => return Err(UrlError::Scheme(alloc::format!("{scheme}://"))),
            None => return Err(UrlError::Scheme(text.to_owned())),
        };
        let (rest, options) = match rest.split_once('?') {
            Some((rest, options)) => (rest, options),
            None => (rest, ""),
        };
        // The last @ before the path ends the user: a secret may hold one. A secret may also hold a slash; names of
        // targets hold no @ (RFC 3722), so that one behind the first slash ends a user too.
        let (authority, path) = split_path(rest);
        let (user, portal, path) = match (authority.rsplit_once('@'), rest.rsplit_once('@')) {
            (Some((user, portal)), _) => (Some(user), portal, path),
            (None, Some((user, behind))) => {
                let (portal, path) = split_path(behind);
                (Some(user), portal, path)
            }
            (None, None) => (None, authority, path),
        };
        // RFC 6874 writes the percent sign before an IPv6 scope as %25.
        let portal = portal.replacen("%25", "%", 1).parse()?;
        let credentials = user.map(parse_user).transpose()?;
        let path = path.unwrap_or("").trim_end_matches('/');
        let (target, lun) = match path.split_once('/') {
            Some((target, lun)) => (target, Some(parse_lun(lun)?)),
            None => (path, None),
        };
        if target.is_empty() {
            return Err(UrlError::NoTarget);
        }
        let mut url = Self {
            portal,
            target: decode(target, "target's name")?,
            lun,
            credentials,
            target_credentials: None,
            header_digest: None,
            data_digest: None,
            auth: None,
            initiator: None,
            transport,
            rdma: Rdma::Auto,
        };
        url.parse_options(options)?;
        Ok(url)
    }
}

fn split_path(rest: &str) -> (&str, Option<&str>) {
    match rest.split_once('/') {
        Some((authority, path)) => (authority, Some(path)),
        None => (rest, None),
    }
}

fn parse_lun(text: &str) -> Result<u16, UrlError> {
    text.parse().ok().filter(|lun| *lun <= 0x3fff).ok_or_else(|| UrlError::Lun(text.to_owned()))
}

/// Whether a user begins as an iSCSI name does (RFC 7143 4.2.7).
fn is_iscsi_name(text: &str) -> bool {
    let begins = |kind: &&str| text.get(..kind.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(kind));
    ["iqn.", "eui.", "naa."].iter().any(begins)
}

/// `user%secret` as libiscsi has it, or `user:secret` where each percent sign before the colon is an encoded character.
/// iSCSI names as users hold colons and no escapes (RFC 7143 4.2.7.2), so that the first percent sign ends them.
fn parse_user(text: &str) -> Result<Credentials, UrlError> {
    let is_name = is_iscsi_name(text);
    let by_percent = text.split_once('%');
    let (user, secret) = match (text.split_once(':'), by_percent) {
        (_, Some((user, secret))) if is_name => (user.to_owned(), decode(secret, "secret")?),
        (Some((user, secret)), _) if decode(user, "user").is_ok() => (decode(user, "user")?, decode(secret, "secret")?),
        (_, Some((user, secret))) => (user.to_owned(), decode(secret, "secret")?),
        (_, None) => (text.to_owned(), String::new()),
    };
    Ok(Credentials { user, secret: ChapSecret::new(secret) })
}

fn decode(text: &str, part: &'static str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    let mut last = 0;
    while let [byte, tail @ ..] = rest {
        let at = text.len() - rest.len();
        rest = tail;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        last = at;
        let bad = || UrlError::Percent { part, at };
        let [high, low, tail @ ..] = tail else { return Err(bad()) };
        let digit = |c: u8| (c as char).to_digit(16).ok_or_else(bad);
        bytes.push((digit(*high)? << 4 | digit(*low)?) as u8);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Percent { part, at: last })
}

fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$'()*+,;".contains(&byte) {
            out.push(byte.into());
        } else {
            escape(byte, out);
        }
    }
}

fn escape(byte: u8, out: &mut String) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    out.push('%');
    out.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
}

fn parse_digests(option: &'static str, value: &str) -> Result<Vec<Digest>, UrlError> {
    value
        .split(',')
        .map(|word| match word.to_ascii_lowercase().as_str() {
            "none" => Ok(Digest::None),
            "crc32c" => Ok(Digest::Crc32c),
            _ => Err(UrlError::OptionValue {
                option,
                value: value.to_owned(),
                expected: "none, crc32c, or both separated by a comma in order of preference",
            }),
        })
        .collect()
}

/// The words of libiscsi for the algorithms of CHAP.
const AUTH: [(&str, Algorithm); 4] = [
    ("md5", Algorithm::Md5),
    ("sha1", Algorithm::Sha1),
    ("sha-256", Algorithm::Sha256),
    ("sha3-256", Algorithm::Sha3_256),
];

const fn digest_name(digest: Digest) -> &'static str {
    match digest {
        Digest::None => "none",
        Digest::Crc32c => "crc32c",
    }
}

impl Url {
    fn parse_options(&mut self, options: &str) -> Result<(), UrlError> {
        let (mut target_user, mut target_secret, mut says_rdma) = (None, None, false);
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = decode(value, "options")?;
            match name {
                "header-digest" | "header_digest" => {
                    self.header_digest = Some(parse_digests("header-digest", &value)?);
                }
                "data-digest" | "data_digest" => self.data_digest = Some(parse_digests("data-digest", &value)?),
                "auth" => {
                    let known = AUTH.iter().find(|(word, _)| *word == value);
                    let expected = "md5, sha1, sha-256 or sha3-256";
                    let Some((_, algorithm)) = known else {
                        return Err(UrlError::OptionValue { option: "auth", value, expected });
                    };
                    self.auth = Some(*algorithm);
                }
                "target_user" => target_user = Some(value),
                "target_password" => target_secret = Some(value),
                "initiator" => self.initiator = Some(value),
                "transport" => {
                    self.transport = match value.as_str() {
                        "auto" => Transport::Auto,
                        "iser" => Transport::Iser,
                        "tcp" if self.transport == Transport::Tcp => Transport::Tcp,
                        _ => {
                            let expected = match self.transport {
                                Transport::Tcp => "tcp, iser or auto",
                                Transport::Iser | Transport::Auto => "iser or auto; TCP alone is iscsi://",
                            };
                            return Err(UrlError::OptionValue { option: "transport", value, expected });
                        }
                    }
                }
                // As libiscsi has it.
                "iser" => self.transport = Transport::Iser,
                "rdma" => {
                    says_rdma = true;
                    self.rdma = match value.as_str() {
                        "auto" => Rdma::Auto,
                        "iwarp" => Rdma::Iwarp,
                        "verbs" => Rdma::Verbs,
                        _ => {
                            let expected = "iwarp, verbs or auto";
                            return Err(UrlError::OptionValue { option: "rdma", value, expected });
                        }
                    }
                }
                _ => return Err(UrlError::UnknownOption(name.to_owned())),
            }
        }
        if says_rdma && self.transport == Transport::Tcp {
            return Err(UrlError::RdmaWithoutIser);
        }
        self.target_credentials = match (target_user, target_secret) {
            (None, None) => None,
            (Some(user), Some(secret)) => Some(Credentials { user, secret: ChapSecret::new(secret) }),
            (user, _) => {
                return Err(UrlError::OptionValue {
                    option: if user.is_some() { "target_password" } else { "target_user" },
                    value: String::new(),
                    expected: "given together with its other half: target_user=NAME&target_password=SECRET",
                });
            }
        };
        Ok(())
    }

    /// The URL with its secrets, for handing it to another program. It parses back to an equal one.
    #[must_use]
    pub fn to_string_with_secrets(&self) -> String {
        self.write(true)
    }

    fn write(&self, secrets: bool) -> String {
        let mut out = String::from(if self.transport == Transport::Iser { "iser://" } else { "iscsi://" });
        if let Some(Credentials { user, secret }) = &self.credentials {
            // A colon of an iSCSI name is no separator as long as a percent sign follows.
            let plain =
                is_iscsi_name(user) && user.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.:".contains(&byte));
            if plain {
                out.push_str(user);
            } else {
                let rest = if is_iscsi_name(user) {
                    // With its first letter encoded it reads as no iSCSI name, whose first percent sign would end it.
                    escape(user.as_bytes()[0], &mut out);
                    &user[1..]
                } else {
                    user
                };
                encode(rest, &mut out);
            }
            let secret = core::str::from_utf8(secret.as_bytes()).unwrap_or("");
            let escaped = out.contains('%');
            if plain && (!secrets || secret.is_empty()) && user.contains(':') {
                // Without a secret the colon would separate.
                out.push('%');
            }
            if secrets && (!secret.is_empty() || escaped) {
                // A name with encoded characters takes the form with a colon, in which its percent signs are no
                // separator.
                out.push(if escaped { ':' } else { '%' });
                encode(secret, &mut out);
            }
            out.push('@');
        }
        // As it is read: with the first percent sign, that of an IPv6 scope, encoded (RFC 6874).
        out.push_str(&self.portal.to_string().replacen('%', "%25", 1));
        out.push('/');
        // A colon is common in target names and means nothing here.
        for (i, part) in self.target.split(':').enumerate() {
            if i > 0 {
                out.push(':');
            }
            encode(part, &mut out);
        }
        if let Some(lun) = self.lun {
            out.push('/');
            out.push_str(&lun.to_string());
        }
        let mut separator = '?';
        let mut option = |name: &str, value: &str| {
            out.push(separator);
            separator = '&';
            out.push_str(name);
            out.push('=');
            encode(value, &mut out);
        };
        let digests = |list: &[Digest]| list.iter().map(|digest| digest_name(*digest)).collect::<Vec<_>>().join(",");
        if let Some(list) = &self.header_digest {
            option("header-digest", &digests(list));
        }
        if let Some(list) = &self.data_digest {
            option("data-digest", &digests(list));
        }
        if let Some((word, _)) = AUTH.iter().find(|(_, algorithm)| Some(*algorithm) == self.auth) {
            option("auth", word);
        }
        if let Some(Credentials { user, secret }) = self.target_credentials.as_ref().filter(|_| secrets) {
            option("target_user", user);
            option("target_password", core::str::from_utf8(secret.as_bytes()).unwrap_or(""));
        }
        if let Some(initiator) = &self.initiator {
            option("initiator", initiator);
        }
        if self.transport == Transport::Auto {
            option("transport", "auto");
        }
        match self.rdma {
            _ if self.transport == Transport::Tcp => {}
            Rdma::Auto => {}
            Rdma::Iwarp => option("rdma", "iwarp"),
            Rdma::Verbs => option("rdma", "verbs"),
        }
        out
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.write(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Url, UrlError> {
        text.parse()
    }

    #[test]
    fn the_common_spellings() {
        let url = parse("iscsi://127.0.0.1/iqn.2004-10.com.example:a/0").unwrap();
        assert_eq!((url.portal.port, url.lun, url.credentials.is_none()), (3260, Some(0), true));
        let url = parse("iscsi://joe%pass%40word@host:99/iqn.a:b/16383").unwrap();
        let credentials = url.credentials.unwrap();
        assert_eq!((credentials.user.as_str(), credentials.secret.as_bytes()), ("joe", &b"pass@word"[..]));
        let url = parse("iscsi://a%40b:c@host/iqn.a:b").unwrap();
        assert_eq!((url.credentials.unwrap().user.as_str(), url.lun), ("a@b", None));
        let url = parse("iscsi://h/t/1?target_user=t&target_password=u%26v&data_digest=crc32c,none").unwrap();
        assert_eq!(url.target_credentials.unwrap().secret.as_bytes(), b"u&v");
        assert_eq!(url.data_digest, Some(alloc::vec![Digest::Crc32c, Digest::None]));
    }

    #[test]
    fn the_transport_is_told_by_the_scheme_or_by_an_option() {
        for (text, transport, rdma) in [
            ("iscsi://h/t/0", Transport::Tcp, Rdma::Auto),
            ("iscsi://h/t/0?transport=tcp", Transport::Tcp, Rdma::Auto),
            ("iser://h/t/0", Transport::Iser, Rdma::Auto),
            ("ISER://joe%secret@h:99/t/0?rdma=iwarp", Transport::Iser, Rdma::Iwarp),
            ("iscsi://h/t/0?transport=iser&rdma=verbs", Transport::Iser, Rdma::Verbs),
            ("iscsi://h/t/0?iser", Transport::Iser, Rdma::Auto),
            ("iscsi://h/t/0?transport=auto", Transport::Auto, Rdma::Auto),
            ("iser://h/t/0?transport=auto", Transport::Auto, Rdma::Auto),
        ] {
            let url = parse(text).unwrap();
            assert_eq!((url.transport, url.rdma), (transport, rdma), "{text}");
        }
        assert_eq!(parse("iser://h/t/0?rdma=verbs").unwrap().to_string(), "iser://h:3260/t/0?rdma=verbs");
        assert_eq!(parse("iscsi://h/t/0?transport=auto").unwrap().to_string(), "iscsi://h:3260/t/0?transport=auto");
    }

    #[test]
    fn each_mistake_has_its_sentence() {
        for (text, words) in [
            ("http://h/t/0", "is no iSCSI URL"),
            ("h/t/0", "iscsi://[user[%secret]@]host[:port]/iqn"),
            ("iser://h/t/0?transport=tcp", "TCP alone is iscsi://"),
            ("iscsi://h/t/0?transport=pigeon", "tcp, iser or auto"),
            ("iser://h/t/0?rdma=roce", "iwarp, verbs or auto"),
            ("iscsi://h/t/0?rdma=iwarp", "write iser://, or add transport=auto"),
            ("iscsi:///t/0", "is no host"),
            ("iscsi://fe80::1/t/0", "in brackets"),
            ("iscsi://h:0/t/0", "from 1 to 65535"),
            ("iscsi://h:x/t/0", "from 1 to 65535"),
            ("iscsi://h", "names no target"),
            ("iscsi://h/", "names no target"),
            ("iscsi://h/t/x", "\"x\" is no LUN"),
            ("iscsi://h/t/16384", "from 0 to 16383"),
            ("iscsi://h/t/0/1", "is no LUN"),
            ("iscsi://h/t%zz/0", "the target's name of the URL has a percent sign, at its byte 1"),
            ("iscsi://joe%ab%4@h/t/0", "the secret of the URL has a percent sign, at its byte 2"),
            ("iscsi://h/t/0?auth=rot13", "md5, sha1, sha-256 or sha3-256"),
            ("iscsi://h/t/0?colour=red", "\"colour\" is not known"),
            ("iscsi://h/t/0?header-digest=md5", "none, crc32c"),
            ("iscsi://h/t/0?target_user=a", "target_password"),
        ] {
            let sentence = parse(text).unwrap_err().to_string();
            assert!(sentence.contains(words), "{text}: {sentence}");
        }
    }

    #[test]
    fn what_libiscsi_reads_is_read_alike() {
        let me = "iqn.2004-10.com.example:me";
        for (text, user, secret) in [
            ("iscsi://iqn.2004-10.com.example:me%secret@h/t/0", me, "secret"),
            ("iscsi://iqn.2004-10.com.example:me%25abc:d@h/t/0", me, "25abc:d"),
            ("iscsi://joe%a/b@h/t/0", "joe", "a/b"),
            ("iscsi://joe:secret@h/t/0", "joe", "secret"),
        ] {
            let url = parse(text).unwrap();
            let own = url.credentials.clone().unwrap();
            assert_eq!((own.user.as_str(), own.secret.as_bytes()), (user, secret.as_bytes()), "{text}");
            assert_eq!((url.target.as_str(), url.portal.host.as_str()), ("t", "h"), "{text}");
            assert_eq!(parse(&url.to_string_with_secrets()), Ok(url), "{text}");
        }
        for text in ["iscsi://[fe80::1%eth0]:99/t/0", "iscsi://[fe80::1%25eth0]:99/t/0"] {
            let url = parse(text).unwrap();
            assert_eq!((url.portal.host.as_str(), url.portal.port), ("fe80::1%eth0", 99));
            assert!(url.to_string().contains("[fe80::1%25eth0]:99"));
            assert_eq!(parse(&url.to_string()), Ok(url));
        }
        let url = parse("iscsi://u%p@h/t/0?header_digest=crc32c&data_digest=none&auth=sha-256&iser").unwrap();
        assert_eq!((url.auth, url.transport), (Some(Algorithm::Sha256), Transport::Iser));
        // A user without a secret keeps its colon.
        let url = Url { credentials: Some(Credentials { user: me.to_owned(), secret: ChapSecret::new("") }), ..url };
        assert_eq!(parse(&url.to_string_with_secrets()), Ok(url));
    }

    #[test]
    fn secrets_are_not_shown_by_errors_either() {
        for text in [
            "iscsi://joe%hid?den@h/t/0",
            "iscsi://joe%hid/0?den@h/t/0",
            "iscsi://joe%a@hid?den@h/t/0",
            "iscsi://joe%hid?auth=den@h/t/0",
            "iscsi://joe%x:hid?den@h/t/0",
            "iscsi://h/t/0?target_user=t&target_password=a&hidden",
            "iscsi://h/t/0?target_user=t&target_password=a&auth=hidden",
            "joe%hidden@h/t/0",
            "iscsi:/joe%hidden@h/t/0",
        ] {
            let error = text.parse::<Url>().unwrap_err();
            assert!(!error.to_string().contains("hid") && !error.to_string().contains("den"), "{text}: {error}");
        }
        let told = |text: &str| text.parse::<Url>().unwrap_err().to_string();
        assert!(told("iscsi://joe%a@h/t/x").contains('x') && told("iscsi://h/t?bad=1").contains("bad"));
    }

    #[test]
    fn secrets_are_not_displayed() {
        for bad in ["http://joe%hidden@h/t/0", "iscsi://joe%hidden%@h/t/0", "iscsi://joe%hidden@/t/0"] {
            let error = parse(bad).unwrap_err();
            assert!(!error.to_string().contains("hidden"), "{error}");
        }
        let url = parse("iscsi://joe%hidden@h/t/0?target_user=x&target_password=unseen").unwrap();
        for text in [url.to_string(), alloc::format!("{url:?}")] {
            assert!(!text.contains("hidden") && !text.contains("unseen"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_parses_back(user in "((iqn|EUI|naa)\\.)?[^\\p{Cc}]{1,8}", secret in "\\PC{0,12}",
            host in "[a-z][a-z0-9%.-]{0,12}", target in "[a-z][a-z0-9:.%/@ -]{0,20}", lun in proptest::option::of(0u16..0x4000), mutual: bool,
                transport in prop_oneof![Just(Transport::Tcp), Just(Transport::Iser), Just(Transport::Auto)],
                    rdma in prop_oneof![Just(Rdma::Auto), Just(Rdma::Iwarp), Just(Rdma::Verbs)]) {
            let credentials = Credentials { user, secret: ChapSecret::new(secret) };
            let url = Url {
                portal: Portal { host, port: 1 },
                target,
                lun,
                target_credentials: mutual.then(|| credentials.clone()),
                credentials: Some(credentials),
                header_digest: Some(alloc::vec![Digest::Crc32c]),
                data_digest: None,
                auth: mutual.then_some(Algorithm::Sha256),
                initiator: Some("iqn.2004-10.com.example:me".to_owned()),
                transport,
                rdma: if transport == Transport::Tcp { Rdma::Auto } else { rdma },
            };
            prop_assert_eq!(parse(&url.to_string_with_secrets()), Ok(url));
        }

        #[test]
        fn any_text_parses_or_not(text: String) {
            let _ = parse(&alloc::format!("iscsi://{text}"));
        }
    }
}
