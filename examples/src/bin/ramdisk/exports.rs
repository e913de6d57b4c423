//! From a layout to stores, logical units and the target's configuration.

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use backstore::{Backstore, FileOptions, FileStore, NullStore, RamStore};
use examples::ending::{Ending, failed, usage};
use examples::layout::{Account, Layout, PortalSpec, StoreSpec, TargetLayout};
use examples::report::bytes;
use iscsi_memory::MemoryBudget;
use iscsi_proto::chap::ChapSecret;
use iscsi_proto::login::ChapAccount;
use iscsi_proto::name::IscsiName;
use target_core::lu::{Identity, LogicalUnit};
use target_core::node::{Acl, Portal, PortalGroup, TargetConfig, TargetNode};

/// Opens a LUN's store.
fn open(
    spec: &StoreSpec,
    read_only: bool,
    memory: &Arc<MemoryBudget>,
) -> Result<(Arc<dyn Backstore>, &'static str), Ending> {
    Ok(match spec {
        StoreSpec::Ram(bytes) => {
            let builder = RamStore::builder(*bytes).memory_budget(memory.clone());
            (Arc::new(builder.open().map_err(usage)?), "RAM DISK")
        }
        StoreSpec::Null(bytes) => (Arc::new(NullStore::new(*bytes)), "NULL DISK"),
        StoreSpec::File(path) => {
            let store = FileStore::open(path, &FileOptions { read_only, ..FileOptions::default() }).map_err(failed)?;
            (Arc::new(store), "FILE DISK")
        }
    })
}

/// A logical unit whose lasting names follow from `seed`: the target's name and the LUN.
pub(crate) fn logical_unit(store: Arc<dyn Backstore>, product: &str, seed: &str) -> Result<LogicalUnit, Ending> {
    LogicalUnit::new(store, Identity::from_seed(seed).with_product(product)).map_err(failed)
}

/// A number that another start of the program does not have.
fn this_start() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// What tells a file from others, also from one that takes its place: an initiator is not to go on with another disk.
/// The place of a device does, whose file is made anew with each start of the machine.
fn which_file(path: &Path) -> String {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let place = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let place = place.display();
    match path.metadata() {
        Ok(metadata) if !metadata.file_type().is_block_device() => {
            let made = metadata.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            format!(",{place},{},{}", metadata.ino(), made.unwrap_or_default().as_nanos())
        }
        _ => format!(",{place}"),
    }
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
    memory: &Arc<MemoryBudget>,
) -> Result<target_core::node::TargetNodeBuilder, Ending> {
    let mut attributes = layout.attributes.node;
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
        let (store, product) = open(spec, layout.read_only, memory)?;
        let mut seed = format!("{name},{lun}");
        match spec {
            _ if layout.lasting_identity => {}
            StoreSpec::Ram(_) => seed += &format!(",{:016x}", this_start()),
            StoreSpec::File(path) => seed += &which_file(path),
            StoreSpec::Null(_) => {}
        }
        let unit = logical_unit(store, product, &seed)?;
        let unit = Arc::new(unit.with_limits(layout.attributes.limits).with_attributes(layout.attributes.unit));
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

/// What there is to say when the RAM LUNs together are larger than the memory that they share.
fn thin(layout: &Layout, limit: u64) -> Option<String> {
    let luns = layout.targets.iter().flat_map(|target| &target.luns);
    let sizes = luns.map(|lun| if let StoreSpec::Ram(bytes) = lun { *bytes } else { 0 });
    let total = sizes.fold(0, u64::saturating_add);
    (total > limit).then(|| {
        format!(
            "The RAM LUNs hold {} together and share {} of memory: writes beyond that end with SPACE ALLOCATION \
             FAILED.",
            bytes(total),
            bytes(limit)
        )
    })
}

/// Opens all stores and puts the configuration together.
pub(crate) fn configure(layout: &Layout) -> Result<TargetConfig, Ending> {
    let portals =
        layout.portals.iter().map(|portal| Ok((address(portal)?, portal.iser))).collect::<Result<Vec<_>, _>>()?;
    // One for all: filled together, they must not make the system kill the program.
    let memory = MemoryBudget::new(RamStore::default_memory_limit().unwrap_or(u64::MAX));
    let mut config = TargetConfig::builder();
    for (n, target) in layout.targets.iter().enumerate() {
        let name = target.name.clone().map_or_else(|| made_up_name(n), Ok)?;
        config = config.node(node(layout, target, &name, &portals, &memory)?);
    }
    for user in &layout.chap {
        config = config.discovery_account(account(user, layout.mutual_chap.as_ref()));
    }
    let config = config.build().map_err(usage)?;
    if let Some(warning) = thin(layout, memory.limit()) {
        // Nobody may be reading any more; the disks are served all the same.
        let _ = writeln!(std::io::stderr(), "{warning}");
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serials(layout: &Layout) -> Vec<String> {
        let config = configure(layout).unwrap();
        config.nodes()[0].luns().iter().map(|lun| lun.unit.identity().serial().to_owned()).collect()
    }

    #[test]
    fn a_ram_lun_is_another_disk_with_each_start_unless_it_is_to_last() {
        let luns = vec![StoreSpec::Ram(1 << 20), StoreSpec::Null(1 << 20)];
        let targets = vec![TargetLayout { name: Some("iqn.2026-11.example:disk".into()), luns }];
        let portals = vec![PortalSpec { address: "127.0.0.1:0".into(), iser: false }];
        let mut layout = Layout { targets, portals, lasting_identity: true, ..Layout::default() };
        let lasting = serials(&layout);
        assert_eq!(serials(&layout), lasting);
        layout.lasting_identity = false;
        let (first, second) = (serials(&layout), serials(&layout));
        assert!(first[0] != second[0] && first[0] != lasting[0]);
        assert_eq!((&first[1], &second[1]), (&lasting[1], &lasting[1]), "only memory is lost");
    }

    #[test]
    fn attributes_reach_what_they_are_about() {
        let mut layout = Layout {
            targets: vec![TargetLayout { name: None, luns: vec![StoreSpec::Ram(1 << 20)] }],
            portals: vec![PortalSpec { address: "127.0.0.1:0".into(), iser: false }],
            ..Layout::default()
        };
        for attribute in ["emulate_tas=1", "max_write_same_len=77", "tmr_warm_reset=0"] {
            layout.attributes.set(attribute).unwrap();
        }
        let config = configure(&layout).unwrap();
        let lun = config.nodes()[0].luns().get(0).unwrap();
        assert!(lun.unit.attributes().emulate_tas && lun.unit.limits().max_write_same == 77);
        assert!(!config.nodes()[0].attributes().tmr_warm_reset);
    }

    #[test]
    fn luns_larger_than_the_memory_are_told_of() {
        let layout = |sizes: &[u64]| Layout {
            targets: vec![TargetLayout {
                name: None,
                luns: sizes.iter().map(|bytes| StoreSpec::Ram(*bytes)).collect(),
            }],
            ..Layout::default()
        };
        assert_eq!(thin(&layout(&[4 << 30, 12 << 30]), 16 << 30), None);
        assert!(thin(&layout(&[48 << 30, 16 << 30]), 16 << 30).is_some_and(|text| text.contains("64")));
        assert!(thin(&layout(&[u64::MAX, u64::MAX]), 16 << 30).is_some());
    }
}
