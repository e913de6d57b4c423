//! The whole configuration: several target nodes, and what holds for all of them.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;

use iscsi_proto::login::ChapAccount;
use iscsi_proto::name::{IscsiName, NameError};

use super::{Portal, TargetNode, TargetNodeBuilder};

/// What a made-up name starts with: a domain that is nobody's (RFC 2606).
const MADE_UP: &str = "iqn.2026-11.example.target";

/// A configuration that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The target's name is none.
    #[error("the target name {name:?} cannot be used: {error}")]
    TargetName {
        /// As given.
        name: String,
        /// What is wrong.
        error: NameError,
    },
    /// The initiator's name in an ACL is none.
    #[error("the initiator name {name:?} in an ACL cannot be used: {error}")]
    InitiatorName {
        /// As given.
        name: String,
        /// What is wrong.
        error: NameError,
    },
    /// Two nodes have the same name.
    #[error("the target {0} is there twice; give each target a name of its own")]
    DuplicateNode(IscsiName),
    /// TargetAlias is too long or holds a zero byte.
    #[error("the alias of target {node} must have at most 255 bytes and no zero byte")]
    Alias {
        /// The node.
        node: IscsiName,
    },
    /// A LUN that cannot be addressed.
    #[error("target {node} cannot have a LUN {lun}; numbers go from 0 to 16383")]
    LunOutOfRange {
        /// The node.
        node: IscsiName,
        /// The number.
        lun: u16,
    },
    /// A LUN is there twice.
    #[error("target {node} has LUN {lun} twice; give each disk a number of its own")]
    DuplicateLun {
        /// The node, or the initiator's view of it.
        node: IscsiName,
        /// The number.
        lun: u16,
    },
    /// An ACL maps a LUN that the node has not.
    #[error("target {node} has no LUN {lun} that the ACL of {initiator} could map; attach it first")]
    MappedLun {
        /// The node.
        node: IscsiName,
        /// The ACL's initiator.
        initiator: IscsiName,
        /// The LUN that is not there.
        lun: u16,
    },
    /// Two ACLs for one initiator.
    #[error("target {node} has two ACLs for {initiator}; make them one")]
    DuplicateAcl {
        /// The node.
        node: IscsiName,
        /// The initiator.
        initiator: IscsiName,
    },
    /// No portal.
    #[error("target {node} has no portal; add an address such as 127.0.0.1:3260")]
    NoPortal {
        /// The node.
        node: IscsiName,
    },
    /// A portal is there twice in one node.
    #[error("target {node} has the portal {address} twice")]
    DuplicatePortal {
        /// The node.
        node: IscsiName,
        /// The address.
        address: SocketAddr,
    },
    /// A relative target port identifier that is none, or that two portal groups have.
    #[error(
        "target {node} has the relative target port identifier {identifier} twice, or it is 0; give each portal \
         group one of its own"
    )]
    RelativePort {
        /// The node.
        node: IscsiName,
        /// The identifier.
        identifier: u16,
    },
    /// Two portal groups with one tag.
    #[error("target {node} has two portal groups with the tag {tag}")]
    DuplicateGroup {
        /// The node.
        node: IscsiName,
        /// The tag.
        tag: u16,
    },
    /// Authentication is on in demo mode, and there is no account.
    #[error("target {node} asks for authentication but has no CHAP account; add one, or switch `authentication` off")]
    NoAccount {
        /// The node.
        node: IscsiName,
    },
    /// Authentication is on, and neither node nor ACL has an account.
    #[error(
        "target {node} asks for authentication but has no CHAP account for {initiator}; add one to its ACL, or switch \
         `authentication` off"
    )]
    NoAccountFor {
        /// The node.
        node: IscsiName,
        /// The initiator.
        initiator: String,
    },
    /// There is nothing to export.
    #[error("there is no target to export; add at least one")]
    NoNode,
}

/// All target nodes, and what discovery asks for. Its [`Display`](core::fmt::Display) is a tree.
#[derive(Debug)]
pub struct TargetConfig {
    pub(super) nodes: Vec<Arc<TargetNode>>,
    pub(super) discovery_accounts: Vec<ChapAccount>,
}

impl TargetConfig {
    /// A builder.
    #[must_use]
    pub fn builder() -> TargetConfigBuilder {
        TargetConfigBuilder::default()
    }

    /// The target nodes in order.
    #[must_use]
    pub fn nodes(&self) -> &[Arc<TargetNode>] {
        &self.nodes
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &IscsiName) -> Option<&Arc<TargetNode>> {
        self.nodes.iter().find(|node| node.name == *name)
    }

    /// Accounts of which a discovery session must show one; empty when it needs none.
    #[must_use]
    pub fn discovery_accounts(&self) -> &[ChapAccount] {
        &self.discovery_accounts
    }

    /// All portals of all nodes; those that nodes share come once for each.
    pub fn portals(&self) -> impl Iterator<Item = &Portal> {
        self.nodes.iter().flat_map(|node| node.groups.iter()).flat_map(|group| group.portals())
    }

    /// The addresses to listen on, each once, in order.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for portal in self.portals() {
            if !addresses.contains(&portal.address()) {
                addresses.push(portal.address());
            }
        }
        addresses
    }
}

/// Describes a [`TargetConfig`].
#[derive(Debug, Default)]
pub struct TargetConfigBuilder {
    nodes: Vec<TargetNodeBuilder>,
    discovery_accounts: Vec<ChapAccount>,
    name_seed: Vec<u8>,
}

impl TargetConfigBuilder {
    /// Adds a node.
    #[must_use]
    pub fn node(mut self, node: TargetNodeBuilder) -> Self {
        self.nodes.push(node);
        self
    }

    /// Makes discovery sessions authenticate: by this account or another one that is added.
    #[must_use]
    pub fn discovery_account(mut self, account: ChapAccount) -> Self {
        self.discovery_accounts.push(account);
        self
    }

    /// What made-up names are made of, besides the node's place in order: the same seed gives the same names. Something
    /// that tells this machine or program from others (a host name, a machine's identifier) is a good one.
    #[must_use]
    pub fn name_seed(mut self, seed: &[u8]) -> Self {
        self.name_seed = seed.to_vec();
        self
    }

    /// Checks and builds everything.
    ///
    /// # Errors
    /// [`ConfigError`], one sentence that says which part is wrong.
    pub fn build(self) -> Result<TargetConfig, ConfigError> {
        if self.nodes.is_empty() {
            return Err(ConfigError::NoNode);
        }
        let mut nodes: Vec<Arc<TargetNode>> = Vec::new();
        for (at, node) in self.nodes.into_iter().enumerate() {
            let node = node.build(|| {
                let mut seed = self.name_seed.clone();
                seed.extend_from_slice(&(at as u64).to_be_bytes());
                IscsiName::generate(MADE_UP, &seed)
                    .map_err(|error| ConfigError::TargetName { name: MADE_UP.to_string(), error })
            })?;
            if nodes.iter().any(|other| other.name == node.name) {
                return Err(ConfigError::DuplicateNode(node.name));
            }
            nodes.push(Arc::new(node));
        }
        Ok(TargetConfig { nodes, discovery_accounts: self.discovery_accounts })
    }
}
