//! From a layout to stores, logical units and the target's configuration.

use std::net::SocketAddr;
use std::sync::Arc;

use examples::ending::{Ending, failed, usage};
use iscsi_proto::chap::ChapSecret;
use iscsi_proto::login::ChapAccount;
use iscsi_proto::name::IscsiName;
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{Acl, Attributes, Portal, PortalGroup, TargetConfig, TargetNode};
use target_core::store::{Backstore, FileOptions, FileStore, NullStore, RamStore};

use crate::layout::{Account, Layout, PortalSpec, StoreSpec, TargetLayout};

/// What the RAM LUNs of one program may take together, so that all of them filled do not make the system kill it.
#[derive(Debug, Clone, Copy)]
struct MemoryShare {
    /// Bytes of memory for all of them.
    limit: u64,
    /// Bytes of all of them.
    total: u64,
}

impl MemoryShare {
    fn new(limit: u64, layout: &Layout) -> Self {
        let luns = layout.targets.iter().flat_map(|target| &target.luns);
        let sizes = luns.map(|lun| if let StoreSpec::Ram(bytes) = lun { *bytes } else { 0 });
        Self { limit, total: sizes.fold(0, u64::saturating_add) }
    }

    /// The memory limit of a LUN: as much of the whole as its size is of all sizes, in pages.
    fn of(self, bytes: u64) -> u64 {
        if self.total <= self.limit {
            return self.limit;
        }
        let share = u128::from(self.limit) * u128::from(bytes) / u128::from(self.total);
        (share as u64).next_multiple_of(4096)
    }
}

/// Opens a LUN's store.
fn open(spec: &StoreSpec, read_only: bool, share: MemoryShare) -> Result<(Arc<dyn Backstore>, &'static str), Ending> {
    Ok(match spec {
        StoreSpec::Ram(bytes) => {
            let builder = RamStore::builder(*bytes).memory_limit(share.of(*bytes));
            (Arc::new(builder.open().map_err(usage)?), "RAM DISK")
        }
        StoreSpec::Null(bytes) => (Arc::new(NullStore::new(*bytes)), "NULL DISK"),
        StoreSpec::File(path) => {
            let store = FileStore::open(path, &FileOptions { read_only, ..FileOptions::default() }).map_err(failed)?;
            (Arc::new(store), "FILE DISK")
        }
    })
}

/// A logical unit whose lasting names follow from the target's name and the LUN.
pub(crate) fn logical_unit(
    store: Arc<dyn Backstore>,
    product: &str,
    target: &str,
    lun: usize,
) -> Result<Arc<LogicalUnit>, Ending> {
    let identity = Identity::from_seed(&format!("{target},{lun}")).with_product(product);
    Ok(Arc::new(LogicalUnit::new(store, identity).map_err(failed)?))
}

fn account(account: &Account, mutual: Option<&Account>) -> ChapAccount {
    ChapAccount {
        user: account.user.clone(),
        secret: ChapSecret::new(account.secret.as_bytes()),
        mutual: mutual.map(|mutual| (mutual.user.clone(), ChapSecret::new(mutual.secret.as_bytes()))),
    }
}

/// Resolves a portal's `ADDR:PORT`; a name takes its first address.
fn address(portal: &PortalSpec) -> Result<SocketAddr, Ending> {
    use std::net::ToSocketAddrs;
    let text = portal.address.as_str();
    let bad = |why: &dyn std::fmt::Display| {
        usage(format!("portal {text:?}: {why}; write ADDR:PORT, such as 127.0.0.1:3260 or [::1]:3260"))
    };
    text.to_socket_addrs().map_err(|error| bad(&error))?.next().ok_or_else(|| bad(&"the name has no address"))
}

fn node(
    layout: &Layout,
    target: &TargetLayout,
    name: &str,
    portals: &[(SocketAddr, bool)],
    share: MemoryShare,
) -> Result<target_core::node::TargetNodeBuilder, Ending> {
    let mut attributes = Attributes::open();
    attributes.authentication = !layout.chap.is_empty();
    attributes.generate_node_acls = layout.initiators.is_empty();
    let group = portals.iter().fold(PortalGroup::new(1), |group, (address, iser)| {
        let portal = Portal::new(*address);
        group.portal(if *iser { portal.with_iser() } else { portal })
    });
    let mut node = TargetNode::builder().name(name).attributes(attributes).portal_group(group);
    for initiator in &layout.initiators {
        node = node.acl(Acl::new(initiator));
    }
    for user in &layout.chap {
        node = node.account(account(user, layout.mutual_chap.as_ref()));
    }
    for (lun, spec) in target.luns.iter().enumerate() {
        let (store, product) = open(spec, layout.read_only, share)?;
        let unit = logical_unit(store, product, name, lun)?;
        let number = u16::try_from(lun).map_err(usage)?;
        node = if layout.read_only { node.read_only_lun(number, unit) } else { node.lun(number, unit) };
    }
    Ok(node)
}

/// A made-up target name: the same one each time on one machine, so that initiators find their disk again.
pub(crate) fn made_up_name(n: usize) -> Result<String, Ending> {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let seed = format!("{}{n}", machine.trim());
    Ok(IscsiName::generate("iqn.2026-11.example.ramdisk", seed.as_bytes()).map_err(failed)?.to_string())
}

/// Opens all stores and puts the configuration together.
pub(crate) fn configure(layout: &Layout) -> Result<TargetConfig, Ending> {
    let portals =
        layout.portals.iter().map(|portal| Ok((address(portal)?, portal.iser))).collect::<Result<Vec<_>, _>>()?;
    let share = MemoryShare::new(RamStore::default_memory_limit().unwrap_or(u64::MAX), layout);
    let mut config = TargetConfig::builder();
    for (n, target) in layout.targets.iter().enumerate() {
        let name = target.name.clone().map_or_else(|| made_up_name(n), Ok)?;
        config = config.node(node(layout, target, &name, &portals, share)?);
    }
    for user in &layout.chap {
        config = config.discovery_account(account(user, layout.mutual_chap.as_ref()));
    }
    config.build().map_err(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_luns_share_the_memory_by_their_sizes() {
        let layout = |sizes: &[u64]| Layout {
            targets: vec![TargetLayout {
                name: None,
                luns: sizes.iter().map(|bytes| StoreSpec::Ram(*bytes)).collect(),
            }],
            ..Layout::default()
        };
        let fits = MemoryShare::new(16 << 30, &layout(&[4 << 30, 8 << 30]));
        assert_eq!(fits.of(4 << 30), 16 << 30, "what fits needs no bound of its own");
        let thin = MemoryShare::new(16 << 30, &layout(&[48 << 30, 16 << 30]));
        assert_eq!((thin.of(48 << 30), thin.of(16 << 30)), (12 << 30, 4 << 30));
        assert_eq!(MemoryShare::new(1 << 30, &layout(&[u64::MAX, u64::MAX])).of(u64::MAX), 1 << 30);
    }
}
