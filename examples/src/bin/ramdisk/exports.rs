//! From a layout to stores, logical units and the target's configuration.

use std::net::SocketAddr;
use std::sync::Arc;

use examples::ending::{Ending, failed, usage};
use iscsi_proto::chap::ChapSecret;
use iscsi_proto::login::ChapAccount;
use iscsi_proto::name::IscsiName;
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{Acl, Attributes, TargetConfig, TargetNode};
use target_core::store::{Backstore, FileOptions, FileStore, NullStore, RamStore};

use crate::layout::{Account, Layout, StoreSpec, TargetLayout};

/// Opens a LUN's store.
pub(crate) fn open(spec: &StoreSpec, read_only: bool) -> Result<(Arc<dyn Backstore>, &'static str), Ending> {
    Ok(match spec {
        StoreSpec::Ram(bytes) => (Arc::new(RamStore::new(*bytes).map_err(failed)?), "RAM DISK"),
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

/// Resolves `ADDR:PORT`; a name takes its first address.
fn address(text: &str) -> Result<SocketAddr, Ending> {
    use std::net::ToSocketAddrs;
    let bad = |why: &dyn std::fmt::Display| {
        usage(format!("portal {text:?}: {why}; write ADDR:PORT, such as 127.0.0.1:3260 or [::1]:3260"))
    };
    text.to_socket_addrs().map_err(|error| bad(&error))?.next().ok_or_else(|| bad(&"the name has no address"))
}

fn node(
    layout: &Layout,
    target: &TargetLayout,
    name: &str,
    portals: &[SocketAddr],
) -> Result<target_core::node::TargetNodeBuilder, Ending> {
    let mut attributes = Attributes::open();
    attributes.authentication = !layout.chap.is_empty();
    attributes.generate_node_acls = layout.initiators.is_empty();
    let mut node = TargetNode::builder().name(name).attributes(attributes);
    for portal in portals {
        node = node.portal(*portal);
    }
    for initiator in &layout.initiators {
        node = node.acl(Acl::new(initiator));
    }
    for user in &layout.chap {
        node = node.account(account(user, layout.mutual_chap.as_ref()));
    }
    for (lun, spec) in target.luns.iter().enumerate() {
        let (store, product) = open(spec, layout.read_only)?;
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
    let portals = layout.portals.iter().map(|portal| address(portal)).collect::<Result<Vec<_>, _>>()?;
    let mut config = TargetConfig::builder();
    for (n, target) in layout.targets.iter().enumerate() {
        let name = target.name.clone().map_or_else(|| made_up_name(n), Ok)?;
        config = config.node(node(layout, target, &name, &portals)?);
    }
    for user in &layout.chap {
        config = config.discovery_account(account(user, layout.mutual_chap.as_ref()));
    }
    config.build().map_err(usage)
}
