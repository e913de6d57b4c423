//! What is exported, to whom and where: target nodes, their portal groups and portals, LUN maps, ACLs and attributes.
//!
//! A [`TargetConfig`] is built once and then read-only; sessions share it by `Arc`. What changes at run time (the port
//! behind an ephemeral portal, what serves a portal, ACLs that demo mode keeps) is inside, and rarely touched.
//! [`TargetConfig`] prints itself as a tree.

mod acl;
mod config;
mod portal;
mod target;
mod tree;

#[cfg(test)]
mod node_tests;

pub use acl::{Acl, AclLun, Attributes};
pub use config::{ConfigError, TargetConfig, TargetConfigBuilder};
pub use portal::{Portal, PortalGroup, Service};
pub use target::{Access, TargetNode, TargetNodeBuilder};
