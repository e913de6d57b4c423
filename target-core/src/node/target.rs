//! A target node: its name, LUNs, portal groups, and who may use them.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;

use iscsi_proto::login::ChapAccount;
use iscsi_proto::name::IscsiName;

use super::{Acl, Attributes, ConfigError, Portal, PortalGroup};
use crate::lu::{LogicalUnit, LunMap};
use crate::registry::Registry;
use crate::task::TargetPort;
use iscsi_memory::Lock;

/// Initiators that demo mode let in and [`Attributes::cache_dynamic_acls`] keeps in mind; the oldest is forgotten
/// first.
const DYNAMIC_ACLS: usize = 256;

/// The largest LUN of the flat space addressing method (SAM-5 4.7.7.4).
const MAX_LUN: u16 = 0x3fff;

/// What an initiator is granted at a target node.
#[derive(Debug, Clone)]
pub struct Access {
    /// The LUNs it sees.
    pub luns: Arc<LunMap>,
    /// CHAP accounts it may log in with; empty when it needs none.
    pub accounts: Vec<ChapAccount>,
    /// Whether it is sent NOP-In unasked.
    pub nop_in: bool,
    /// Whether demo mode let it in.
    pub dynamic: bool,
}

/// An ACL in force.
#[derive(Debug)]
pub(super) struct NodeAcl {
    pub(super) initiator: IscsiName,
    pub(super) accounts: Vec<ChapAccount>,
    pub(super) luns: Arc<LunMap>,
    pub(super) mapped: Vec<super::AclLun>,
    pub(super) nop_in: bool,
}

/// A target node (iSCSI target): what an initiator names in TargetName.
#[derive(Debug)]
pub struct TargetNode {
    pub(super) name: IscsiName,
    pub(super) alias: Option<String>,
    pub(super) attributes: Attributes,
    pub(super) luns: Arc<LunMap>,
    pub(super) demo_luns: Arc<LunMap>,
    pub(super) groups: Vec<PortalGroup>,
    pub(super) acls: Vec<NodeAcl>,
    pub(super) accounts: Vec<ChapAccount>,
    pub(super) dynamic: Lock<VecDeque<IscsiName>>,
}

impl TargetNode {
    /// A builder for a node; it is built as part of a [`super::TargetConfig`].
    #[must_use]
    pub fn builder() -> TargetNodeBuilder {
        TargetNodeBuilder::default()
    }

    /// The node's name.
    #[must_use]
    pub const fn name(&self) -> &IscsiName {
        &self.name
    }

    /// TargetAlias, if it has one.
    #[must_use]
    pub fn alias(&self) -> Option<&str> {
        self.alias.as_deref()
    }

    /// Its switches.
    #[must_use]
    pub const fn attributes(&self) -> Attributes {
        self.attributes
    }

    /// All its LUNs.
    #[must_use]
    pub const fn luns(&self) -> &Arc<LunMap> {
        &self.luns
    }

    /// Its portal groups.
    #[must_use]
    pub fn portal_groups(&self) -> &[PortalGroup] {
        &self.groups
    }

    /// Its SCSI target ports, one for each portal group.
    pub(crate) fn ports(&self) -> Arc<[TargetPort]> {
        let port = |group: &PortalGroup| TargetPort {
            portal_group_tag: group.tag(),
            relative: group.relative_port(),
            group: group.target_port_group(),
        };
        self.groups.iter().map(port).collect()
    }

    /// The portal group that a connection to the local address `local` comes in by. An exact address goes before
    /// 0.0.0.0 and \[::\].
    #[must_use]
    pub fn group_at(&self, local: SocketAddr) -> Option<&PortalGroup> {
        let find = |exact: bool| {
            self.groups.iter().find(|group| {
                let mut portals = group.portals().iter();
                portals.any(|portal| portal.accepts(local) && (!exact || !portal.address().ip().is_unspecified()))
            })
        };
        find(true).or_else(|| find(false))
    }

    /// What `initiator` is granted; `None` when it may not use this node, nor know of it.
    #[must_use]
    pub fn access(&self, initiator: &IscsiName) -> Option<Access> {
        let needed = |accounts: &[ChapAccount]| match (self.attributes.authentication, accounts.is_empty()) {
            (false, _) => Vec::new(),
            (true, true) => self.accounts.clone(),
            (true, false) => accounts.to_vec(),
        };
        if let Some(acl) = self.acls.iter().find(|acl| acl.initiator == *initiator) {
            let accounts = needed(&acl.accounts);
            return Some(Access { luns: acl.luns.clone(), accounts, nop_in: acl.nop_in, dynamic: false });
        }
        self.attributes.generate_node_acls.then(|| Access {
            luns: self.demo_luns.clone(),
            accounts: needed(&[]),
            nop_in: true,
            dynamic: true,
        })
    }

    /// Sessions of `registry` use the node from now on: it meets the other servers at all units that any initiator sees
    /// here, since a reset of the target reaches all sessions with it.
    pub(crate) fn join(&self, registry: &Arc<Registry>) {
        let maps = self.acls.iter().map(|acl| &acl.luns).chain([&self.luns, &self.demo_luns]);
        maps.for_each(|luns| luns.join(registry));
    }

    /// Keeps in mind an initiator that demo mode let in, if the attributes say so.
    pub(crate) fn remember(&self, initiator: &IscsiName) {
        if self.attributes.cache_dynamic_acls {
            let mut dynamic = self.dynamic.lock();
            if !dynamic.contains(initiator) {
                if dynamic.len() == DYNAMIC_ACLS {
                    dynamic.pop_front();
                }
                dynamic.push_back(initiator.clone());
            }
        }
    }

    /// Initiators that demo mode let in and that are still kept in mind.
    #[must_use]
    pub fn dynamic_acls(&self) -> Vec<IscsiName> {
        self.dynamic.lock().iter().cloned().collect()
    }
}

/// Describes a [`TargetNode`]. Everything is checked when the [`super::TargetConfig`] is built.
#[derive(Debug, Default)]
pub struct TargetNodeBuilder {
    name: Option<String>,
    alias: Option<String>,
    attributes: Attributes,
    luns: Vec<(u16, Arc<LogicalUnit>, bool)>,
    groups: Vec<PortalGroup>,
    acls: Vec<Acl>,
    accounts: Vec<ChapAccount>,
}

impl TargetNodeBuilder {
    /// The node's iSCSI name (iqn., eui. or naa.). Without one a name is made up.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// TargetAlias, at most 255 bytes.
    #[must_use]
    pub fn alias(mut self, alias: impl Into<String>) -> Self {
        self.alias = Some(alias.into());
        self
    }

    /// Attaches a logical unit as LUN `number`, 0 to 16383.
    #[must_use]
    pub fn lun(mut self, number: u16, unit: Arc<LogicalUnit>) -> Self {
        self.luns.push((number, unit, false));
        self
    }

    /// Attaches a logical unit that nobody may write to through this node.
    #[must_use]
    pub fn read_only_lun(mut self, number: u16, unit: Arc<LogicalUnit>) -> Self {
        self.luns.push((number, unit, true));
        self
    }

    /// Adds a TCP portal to portal group 1.
    #[must_use]
    pub fn portal(mut self, address: SocketAddr) -> Self {
        match self.groups.iter_mut().find(|group| group.tag() == 1) {
            Some(group) => group.push(Portal::new(address)),
            None => self.groups.push(PortalGroup::new(1).portal(Portal::new(address))),
        }
        self
    }

    /// Adds a portal group.
    #[must_use]
    pub fn portal_group(mut self, group: PortalGroup) -> Self {
        self.groups.push(group);
        self
    }

    /// Sets all switches.
    #[must_use]
    pub const fn attributes(mut self, attributes: Attributes) -> Self {
        self.attributes = attributes;
        self
    }

    /// Switches security off: [`Attributes::open`].
    #[must_use]
    pub const fn open(self) -> Self {
        self.attributes(Attributes::open())
    }

    /// Adds an ACL.
    #[must_use]
    pub fn acl(mut self, acl: Acl) -> Self {
        self.acls.push(acl);
        self
    }

    /// Adds a CHAP account for all initiators whose ACL has none of its own, and for demo mode.
    #[must_use]
    pub fn account(mut self, account: ChapAccount) -> Self {
        self.accounts.push(account);
        self
    }

    /// `made_up` gives a name to a node that has none.
    pub(super) fn build(
        self,
        made_up: impl FnOnce() -> Result<IscsiName, ConfigError>,
    ) -> Result<TargetNode, ConfigError> {
        let name = match self.name.clone() {
            Some(name) => IscsiName::new(&name).map_err(|error| ConfigError::TargetName { name, error })?,
            None => made_up()?,
        };
        if let Some(alias) = &self.alias
            && (alias.len() > 255 || alias.contains('\0'))
        {
            return Err(ConfigError::Alias { node: name });
        }
        self.check_portals(&name)?;
        let map = |luns: &[(u16, Arc<LogicalUnit>, bool)], all_read_only: bool| {
            let mut map = LunMap::builder();
            for (at, (number, unit, read_only)) in luns.iter().enumerate() {
                if *number > MAX_LUN {
                    return Err(ConfigError::LunOutOfRange { node: name.clone(), lun: *number });
                }
                if luns.iter().skip(at + 1).any(|(other, ..)| other == number) {
                    return Err(ConfigError::DuplicateLun { node: name.clone(), lun: *number });
                }
                map = map.insert(*number, unit.clone(), *read_only || all_read_only);
            }
            Ok(Arc::new(map.build()))
        };
        let luns = map(&self.luns, false)?;
        let demo_luns = if self.attributes.demo_mode_write_protect { map(&self.luns, true)? } else { luns.clone() };
        let mut acls: Vec<NodeAcl> = Vec::new();
        for acl in self.acls {
            let initiator = IscsiName::new(&acl.initiator)
                .map_err(|error| ConfigError::InitiatorName { name: acl.initiator.clone(), error })?;
            if acls.iter().any(|other| other.initiator == initiator) {
                return Err(ConfigError::DuplicateAcl { node: name, initiator });
            }
            let seen = if acl.luns.is_empty() {
                luns.clone()
            } else {
                let mut mapped = Vec::new();
                for entry in &acl.luns {
                    let Some((_, unit, read_only)) = self.luns.iter().find(|(number, ..)| *number == entry.lun) else {
                        return Err(ConfigError::MappedLun { node: name, initiator, lun: entry.lun });
                    };
                    mapped.push((entry.number, unit.clone(), *read_only || entry.read_only));
                }
                map(&mapped, false)?
            };
            acls.push(NodeAcl { initiator, accounts: acl.accounts, luns: seen, mapped: acl.luns, nop_in: acl.nop_in });
        }
        if self.attributes.authentication && self.accounts.is_empty() {
            if self.attributes.generate_node_acls {
                return Err(ConfigError::NoAccount { node: name });
            }
            if let Some(acl) = acls.iter().find(|acl| acl.accounts.is_empty()) {
                return Err(ConfigError::NoAccountFor { node: name, initiator: acl.initiator.to_string() });
            }
        }
        Ok(TargetNode {
            name,
            alias: self.alias,
            attributes: self.attributes,
            luns,
            demo_luns,
            groups: self.groups,
            acls,
            accounts: self.accounts,
            dynamic: Lock::default(),
        })
    }

    fn check_portals(&self, name: &IscsiName) -> Result<(), ConfigError> {
        if self.groups.iter().all(|group| group.portals().is_empty()) {
            return Err(ConfigError::NoPortal { node: name.clone() });
        }
        let mut seen = Vec::new();
        for (at, group) in self.groups.iter().enumerate() {
            if self.groups.iter().skip(at + 1).any(|other| other.tag() == group.tag()) {
                return Err(ConfigError::DuplicateGroup { node: name.clone(), tag: group.tag() });
            }
            let identifier = group.relative_port();
            if identifier == 0 || self.groups.iter().skip(at + 1).any(|other| other.relative_port() == identifier) {
                return Err(ConfigError::RelativePort { node: name.clone(), identifier });
            }
            for portal in group.portals() {
                let address = portal.address();
                if seen.contains(&address) {
                    return Err(ConfigError::DuplicatePortal { node: name.clone(), address });
                }
                seen.push(address);
            }
        }
        Ok(())
    }
}
