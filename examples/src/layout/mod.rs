//! What `ramdisk serve` is to export: options, as the command line and a TOML file give them, and what they mean.

mod file;
#[doc(hidden)]
pub mod fuzzed;
mod options;

use std::fmt;
use std::path::PathBuf;

use backstore::parse_size;
use clap::ValueEnum;
use iscsi_proto::chap::{MAX_SECRET, MIN_SECRET};

use crate::attributes::Attributes;
use crate::ending::{Ending, usage};

pub use file::BadFile;
pub use options::{Options, TargetOptions};

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortalSpec {
    /// `ADDR:PORT`, not resolved yet.
    pub address: String,
    /// iSER beside TCP.
    pub iser: bool,
}

impl PortalSpec {
    /// Parses `ADDR:PORT` or `ADDR:PORT,iser`.
    fn parse(text: &str) -> Result<Self, Ending> {
        let (address, iser) = match text.split_once(',') {
            None => (text, false),
            Some((address, "iser")) => (address, true),
            Some((address, other)) => {
                return Err(usage(format!(
                    "portal {text:?}: {other:?} is nothing that a portal can have: write {address}, or {address},iser \
                     for iSER beside TCP"
                )));
            }
        };
        Ok(Self { address: address.to_owned(), iser })
    }
}

/// What carries iSER on the portals that have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RdmaChoice {
    /// iWARP in user space, on the portal's own TCP port; needs nothing of the machine.
    Iwarp,
    /// RDMA devices, hardware or the kernel's soft ones.
    Verbs,
    /// Both.
    Both,
}

/// What a LUN keeps its blocks in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreSpec {
    /// RAM of this many bytes.
    Ram(u64),
    /// A file or block device.
    File(PathBuf),
    /// Nothing: reads give zeroes, writes vanish.
    Null(u64),
}

impl StoreSpec {
    /// Parses `SIZE`, `ram:SIZE`, `file:PATH` or `null:SIZE`.
    ///
    /// ```
    /// use examples::layout::StoreSpec;
    /// assert_eq!(StoreSpec::parse("1G").unwrap(), StoreSpec::Ram(1 << 30));
    /// assert!(StoreSpec::parse("12Q").unwrap_err().to_string().contains("12Q"));
    /// ```
    ///
    /// # Errors
    /// What cannot be read, in a sentence.
    pub fn parse(text: &str) -> Result<Self, Ending> {
        let size = |bytes: &str| {
            parse_size(bytes)
                .map_err(|error| usage(format!("LUN {text:?}: {error}; give SIZE, file:PATH or null:SIZE")))
        };
        Ok(match text.split_once(':') {
            Some(("file", "")) => return Err(usage("LUN \"file:\" names no file: write file:PATH")),
            Some(("file", path)) => Self::File(path.into()),
            Some(("null", bytes)) => Self::Null(size(bytes)?),
            Some(("ram", bytes)) => Self::Ram(size(bytes)?),
            _ => Self::Ram(size(text)?),
        })
    }
}

/// A CHAP name and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// The name, not empty.
    pub user: String,
    /// The secret, of 12 to 255 bytes.
    pub secret: String,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:…", self.user)
    }
}

impl Account {
    fn parse(option: &str, text: &str) -> Result<Self, Ending> {
        match text.split_once(':') {
            Some((user, secret)) if !user.is_empty() && !secret.is_empty() => {
                // RFC 7143 9.2.1: the target refuses every login with a shorter one.
                if !(MIN_SECRET..=MAX_SECRET).contains(&secret.len()) {
                    return Err(usage(format!(
                        "{option} {user}: the secret has {} bytes, and nobody could log in with it: give one of \
                         {MIN_SECRET} to {MAX_SECRET} bytes",
                        secret.len()
                    )));
                }
                Ok(Self { user: user.into(), secret: secret.into() })
            }
            _ => Err(usage(format!("{option} wants USER:SECRET, both not empty"))),
        }
    }
}

/// One target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetLayout {
    /// Its name; made up when there is none.
    pub name: Option<String>,
    /// LUN 0, 1, …
    pub luns: Vec<StoreSpec>,
}

/// All that is to be exported.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// Where to listen.
    pub portals: Vec<PortalSpec>,
    /// What carries iSER, if anybody said it.
    pub rdma: Option<RdmaChoice>,
    /// Most bytes of registered memory, if anybody said it.
    pub registered_memory: Option<u64>,
    /// The targets.
    pub targets: Vec<TargetLayout>,
    /// What initiators log in with; none if nobody has to.
    pub chap: Vec<Account>,
    /// What the targets prove themselves with.
    pub mutual_chap: Option<Account>,
    /// The initiators that may log in; none if any may.
    pub initiators: Vec<String>,
    /// Initiators may read only.
    pub read_only: bool,
    /// Attributes of targets and LUNs.
    pub attributes: Attributes,
    /// RAM LUNs are the same disks with each start.
    pub lasting_identity: bool,
}

impl Layout {
    /// What options mean: with defaults where they say nothing.
    ///
    /// ```
    /// use examples::layout::{Layout, Options};
    /// let layout = Layout::of(Options::default()).unwrap();
    /// assert_eq!((layout.portals[0].address.as_str(), layout.targets.len()), ("127.0.0.1:3260", 1));
    /// ```
    ///
    /// # Errors
    /// What cannot be, in a sentence.
    pub fn of(options: Options) -> Result<Self, Ending> {
        let mut layout = Self {
            read_only: options.read_only,
            lasting_identity: options.lasting_identity,
            rdma: options.rdma,
            initiators: options.initiator,
            ..Self::default()
        };
        for attribute in &options.attribute {
            layout.attributes.set(attribute)?;
        }
        for portal in &options.portal {
            layout.portals.push(PortalSpec::parse(portal)?);
        }
        if let Some(size) = &options.registered_memory {
            let bytes = parse_size(size);
            layout.registered_memory =
                Some(bytes.map_err(|error| usage(format!("--registered-memory {size}: {error}")))?);
        }
        layout.check_iser()?;
        for target in options.target {
            let luns = target.lun.iter().map(|lun| StoreSpec::parse(lun)).collect::<Result<_, _>>()?;
            layout.targets.push(TargetLayout { name: target.name, luns });
        }
        for account in &options.chap {
            layout.chap.push(Account::parse("--chap", account)?);
        }
        if let Some(account) = &options.mutual_chap {
            // A target proves itself to those who have proved themselves (RFC 7143 12.1.3).
            if layout.chap.is_empty() {
                return Err(usage("--mutual-chap is of no use without --chap USER:SECRET, for the initiators"));
            }
            let own = Account::parse("--mutual-chap", account)?;
            // RFC 7143 9.2.1: who answered a challenge with it could have the other side answer it.
            if let Some(user) = layout.chap.iter().find(|user| user.secret == own.secret) {
                return Err(usage(format!(
                    "--mutual-chap has the secret of {}, and nobody could log in: give the target one of its own",
                    user.user
                )));
            }
            layout.mutual_chap = Some(own);
        }
        if layout.portals.is_empty() {
            layout.portals.push(PortalSpec { address: "127.0.0.1:3260".into(), iser: false });
        }
        if layout.targets.is_empty() {
            layout.targets.push(TargetLayout::default());
        }
        for target in &mut layout.targets {
            if target.luns.is_empty() {
                target.luns.push(StoreSpec::Ram(1 << 30));
            }
        }
        Ok(layout)
    }

    /// Whether a portal has iSER.
    #[must_use]
    pub fn iser(&self) -> bool {
        self.portals.iter().any(|portal| portal.iser)
    }

    /// Options for iSER without a portal that has it are a mistake, not a wish.
    fn check_iser(&self) -> Result<(), Ending> {
        let option = match (self.rdma, self.registered_memory) {
            _ if self.iser() => return Ok(()),
            (Some(_), _) => "--rdma",
            (None, Some(_)) => "--registered-memory",
            (None, None) => return Ok(()),
        };
        Err(usage(format!("{option} is about iSER, but no portal has it: write --portal ADDR:PORT,iser")))
    }
}
