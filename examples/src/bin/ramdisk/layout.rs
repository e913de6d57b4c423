//! What `ramdisk serve` is to export: from the command line, from a TOML file, or from both.

use std::path::{Path, PathBuf};

use clap::ArgMatches;
use examples::ending::{Ending, no_file, usage};
use iscsi_proto::chap::{MAX_SECRET, MIN_SECRET};
use serde::Deserialize;

use crate::args::{RdmaChoice, ServeArgs};
use crate::attributes::Attributes;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortalSpec {
    /// `ADDR:PORT`, not resolved yet.
    pub(crate) address: String,
    /// iSER beside TCP.
    pub(crate) iser: bool,
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

/// What a LUN keeps its blocks in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreSpec {
    /// RAM of this many bytes.
    Ram(u64),
    /// A file or block device.
    File(PathBuf),
    /// Nothing: reads give zeroes, writes vanish.
    Null(u64),
}

impl StoreSpec {
    /// Parses `SIZE`, `file:PATH` or `null:SIZE`.
    pub(crate) fn parse(text: &str) -> Result<Self, Ending> {
        let size = |text: &str| {
            target_core::store::parse_size(text)
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
pub(crate) struct Account {
    pub(crate) user: String,
    pub(crate) secret: String,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
pub(crate) struct TargetLayout {
    /// Its name; made up when there is none.
    pub(crate) name: Option<String>,
    /// LUN 0, 1, …
    pub(crate) luns: Vec<StoreSpec>,
}

/// All that is to be exported.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Layout {
    pub(crate) portals: Vec<PortalSpec>,
    /// What carries iSER, if anybody said it.
    pub(crate) rdma: Option<RdmaChoice>,
    /// Most bytes of registered memory, if anybody said it.
    pub(crate) registered_memory: Option<u64>,
    pub(crate) targets: Vec<TargetLayout>,
    pub(crate) chap: Vec<Account>,
    pub(crate) mutual_chap: Option<Account>,
    pub(crate) initiators: Vec<String>,
    pub(crate) read_only: bool,
    pub(crate) attributes: Attributes,
    /// RAM LUNs are the same disks with each start.
    pub(crate) lasting_identity: bool,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct File {
    portal: Vec<String>,
    rdma: Option<RdmaChoice>,
    registered_memory: Option<String>,
    target: Vec<FileTarget>,
    chap: Vec<String>,
    mutual_chap: Option<String>,
    initiator: Vec<String>,
    read_only: bool,
    attribute: Vec<String>,
    lasting_identity: bool,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct FileTarget {
    name: Option<String>,
    lun: Vec<String>,
}

fn read_file(path: &Path) -> Result<File, Ending> {
    let text = std::fs::read_to_string(path).map_err(|error| no_file(path.display(), &error))?;
    toml::from_str(&text).map_err(|error| {
        let line =
            error.span().map_or(1, |span| 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count());
        // The parser draws the place over several lines; its message alone is the sentence.
        usage(format!("{}, line {line}: {}", path.display(), error.message().trim().replace('\n', "; ")))
    })
}

impl Layout {
    /// Puts the layout together: the file's part first, the command line's behind it, defaults where neither says
    /// anything.
    pub(crate) fn gather(args: &ServeArgs, matches: &ArgMatches) -> Result<Self, Ending> {
        let file = args.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let mut layout = Self {
            read_only: args.read_only || file.read_only,
            lasting_identity: args.lasting_identity || file.lasting_identity,
            ..Self::default()
        };
        for attribute in file.attribute.iter().chain(&args.attribute) {
            layout.attributes.set(attribute)?;
        }
        for portal in file.portal.iter().chain(&args.portal) {
            layout.portals.push(PortalSpec::parse(portal)?);
        }
        layout.rdma = args.rdma.or(file.rdma);
        if let Some(size) = args.registered_memory.as_ref().or(file.registered_memory.as_ref()) {
            let bytes = target_core::store::parse_size(size);
            layout.registered_memory =
                Some(bytes.map_err(|error| usage(format!("--registered-memory {size}: {error}")))?);
        }
        layout.check_iser()?;
        for target in file.target {
            let luns = target.lun.iter().map(|lun| StoreSpec::parse(lun)).collect::<Result<_, _>>()?;
            layout.targets.push(TargetLayout { name: target.name, luns });
        }
        layout.targets.extend(in_order(args, matches)?);
        for account in file.chap.iter().chain(&args.chap) {
            layout.chap.push(Account::parse("--chap", account)?);
        }
        if let Some(account) = args.mutual_chap.as_ref().or(file.mutual_chap.as_ref()) {
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
        layout.initiators = file.initiator;
        layout.initiators.extend(args.initiator.iter().cloned());
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
    pub(crate) fn iser(&self) -> bool {
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

/// Gives each `--lun` to the `--target` before it on the command line; LUNs before any target belong to one with a
/// made-up name.
fn in_order(args: &ServeArgs, matches: &ArgMatches) -> Result<Vec<TargetLayout>, Ending> {
    let places = |name: &str| matches.indices_of(name).into_iter().flatten();
    let targets = places("target").zip(&args.target).map(|(at, name)| (at, Ok(name)));
    let luns = places("lun").zip(&args.lun).map(|(at, lun)| (at, Err(lun)));
    let mut all: Vec<_> = targets.chain(luns).collect();
    all.sort_by_key(|(at, _)| *at);
    let mut layouts: Vec<TargetLayout> = Vec::new();
    for (_, item) in all {
        match item {
            Ok(name) => layouts.push(TargetLayout { name: Some(name.clone()), luns: Vec::new() }),
            Err(lun) => {
                if layouts.is_empty() {
                    layouts.push(TargetLayout::default());
                }
                if let Some(last) = layouts.last_mut() {
                    last.luns.push(StoreSpec::parse(lun)?);
                }
            }
        }
    }
    Ok(layouts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Job};
    use clap::{CommandFactory, FromArgMatches};

    fn gather(line: &str) -> Result<Layout, Ending> {
        let matches = Cli::command().try_get_matches_from(line.split(' ')).unwrap();
        let Job::Serve(args) = Cli::from_arg_matches(&matches).unwrap().job else { panic!("not serve") };
        Layout::gather(&args, matches.subcommand_matches("serve").unwrap())
    }

    #[test]
    fn luns_belong_to_the_target_before_them() {
        let layout =
            gather("ramdisk serve --target iqn.a --lun 1G --lun null:2G --target iqn.b --lun file:/x").unwrap();
        assert_eq!(layout.targets[0].luns, [StoreSpec::Ram(1 << 30), StoreSpec::Null(2 << 30)]);
        assert_eq!(
            layout.targets[1],
            TargetLayout { name: Some("iqn.b".into()), luns: vec![StoreSpec::File("/x".into())] }
        );
    }

    #[test]
    fn nothing_given_is_one_target_with_one_gibibyte() {
        let layout = gather("ramdisk serve").unwrap();
        assert_eq!(layout.portals, [PortalSpec { address: "127.0.0.1:3260".into(), iser: false }]);
        assert!(!layout.iser());
        assert_eq!(layout.targets, [TargetLayout { name: None, luns: vec![StoreSpec::Ram(1 << 30)] }]);
    }

    #[test]
    fn attributes_are_set_in_order() {
        let layout = gather("ramdisk serve --attribute emulate_tas=1 --attribute tmr_cold_reset=0 --lasting-identity");
        let layout = layout.unwrap();
        assert!(layout.attributes.unit.emulate_tas && !layout.attributes.node.tmr_cold_reset);
        assert!(layout.lasting_identity);
        let layout = gather("ramdisk serve --attribute stop_unit=1 --attribute stop_unit=0").unwrap();
        assert_eq!(layout.attributes, Attributes::default());
        assert!(gather("ramdisk serve --attribute stop=1").unwrap_err().to_string().contains("stop_unit"));
    }

    #[test]
    fn iser_belongs_to_a_portal() {
        let layout =
            gather("ramdisk serve --portal a:1 --portal [::1]:2,iser --rdma both --registered-memory 1M").unwrap();
        assert_eq!(layout.portals[1], PortalSpec { address: "[::1]:2".into(), iser: true });
        assert_eq!(
            (layout.iser(), layout.rdma, layout.registered_memory),
            (true, Some(RdmaChoice::Both), Some(1 << 20))
        );
        let told = |line: &str| gather(line).unwrap_err().to_string();
        assert!(told("ramdisk serve --portal a:1 --rdma verbs").contains("--portal ADDR:PORT,iser"));
        assert!(told("ramdisk serve --registered-memory 1M").contains("--registered-memory is about iSER"));
        assert!(told("ramdisk serve --portal a:1,rdma").contains("write a:1, or a:1,iser"));
    }

    #[test]
    fn a_bad_size_and_a_bad_account_get_a_sentence() {
        assert!(gather("ramdisk serve --lun 12Q").unwrap_err().to_string().contains("12Q"));
        let told = |line: &str| gather(line).unwrap_err().to_string();
        assert!(told("ramdisk serve --chap nosecret").contains("USER:SECRET"));
        let short = told("ramdisk serve --chap alice:eleven-byte");
        assert!(short.contains("--chap alice: the secret has 11 bytes") && short.contains("12 to 255"), "{short}");
        assert!(!short.contains("eleven"), "no secret is shown");
        let one = told("ramdisk serve --chap alice:twelve-bytes --mutual-chap disk:twelve-bytes");
        assert!(one.contains("has the secret of alice"), "{one}");
    }
}
