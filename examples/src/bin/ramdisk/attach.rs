//! The lines that a person types on Linux to attach the disks.

use std::net::SocketAddr;

use examples::layout::Layout;
use target_core::node::{Portal, Service, TargetConfig};

/// A portal as one types it on the other machine.
fn reachable(portal: SocketAddr) -> String {
    // 0.0.0.0 is where we listen, not where anybody connects to.
    let host = if portal.ip().is_unspecified() { "THIS-MACHINE".to_owned() } else { portal.ip().to_string() };
    if host.contains(':') { format!("[{host}]:{}", portal.port()) } else { format!("{host}:{}", portal.port()) }
}

/// What is typed for the disks of `name` at `portal`, over TCP or over iSER, once they are found at `found`.
fn steps(name: &str, found: SocketAddr, portal: SocketAddr, iser: bool, layout: &Layout) -> String {
    let (found, portal) = (reachable(found), reachable(portal));
    // The configuration makes discovery authenticate like the rest, which open-iscsi keeps in a record of its own.
    let mut secrets: Vec<(&str, &str)> = Vec::new();
    if let Some(user) = layout.chap.first() {
        secrets.extend([("authmethod", "CHAP"), ("username", user.user.as_str()), ("password", "SECRET")]);
        if let Some(user) = &layout.mutual_chap {
            secrets.extend([("username_in", user.user.as_str()), ("password_in", "SECRET")]);
        }
    }
    let discovery = format!("  iscsiadm -m discoverydb -t sendtargets -p {found}");
    let node = format!("  iscsiadm -m node -T {name} -p {portal}");
    let mut lines = String::new();
    if secrets.is_empty() {
        lines += &format!("  iscsiadm -m discovery -t sendtargets -p {found}\n");
    } else {
        lines += &format!("{discovery} -o new\n");
        for (field, value) in &secrets {
            lines += &format!("{discovery} -o update -n discovery.sendtargets.auth.{field} -v {value}\n");
        }
        lines += &format!("{discovery} --discover\n");
    }
    for (field, value) in &secrets {
        lines += &format!("{node} -o update -n node.session.auth.{field} -v {value}\n");
    }
    if iser {
        lines += &format!("{node} -o update -n iface.transport_name -v iser\n");
    }
    lines + &format!("{node} --login\n")
}

/// The lines for all targets: over TCP, and over iSER for those that have a portal with it.
pub(crate) fn lines(config: &TargetConfig, layout: &Layout) -> String {
    let (mut tcp, mut iser) = (String::new(), String::new());
    for node in config.nodes() {
        let portals = || node.portal_groups().iter().flat_map(|group| group.portals());
        let with_iser = || portals().filter(|portal| portal.iser());
        // An iWARP device may have the port of a portal for itself. Discovery is by TCP, so it takes another one then.
        let plain = |portal: &&Portal| portal.service().is_none_or(|service| service.tcp);
        let first = portals().find(plain);
        if let Some(portal) = first {
            let portal = portal.bound_address();
            tcp += &steps(node.name().as_str(), portal, portal, false, layout);
        }
        if let Some(portal) = with_iser().find(plain).or_else(|| with_iser().next()) {
            let found = Some(portal).filter(plain).or(first).unwrap_or(portal);
            iser += &steps(node.name().as_str(), found.bound_address(), portal.bound_address(), true, layout);
        }
    }
    let tcp = if tcp.is_empty() {
        "No portal takes plain iSCSI, over which Linux discovers targets: add one with --portal ADDR:PORT.\n".to_owned()
    } else {
        format!("To attach on Linux (open-iscsi):\n{tcp}")
    };
    if iser.is_empty() {
        return tcp;
    }
    let served = |by: fn(Service) -> bool| config.portals().filter_map(Portal::service).any(by);
    let soft = "without one: modprobe siw; rdma link add siw0 type siw netdev eth0";
    let device = match (served(|service| service.iwarp), served(|service| service.verbs)) {
        (true, true) => format!("an RDMA device of this machine's kind, or an iWARP one; {soft}"),
        (false, true) => "an RDMA device of this machine's kind".to_owned(),
        (_, false) => format!("an iWARP device; {soft}"),
    };
    format!("{tcp}Or over iSER (ib_iser over {device}):\n{iser}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use target_core::node::{PortalGroup, TargetNode};

    fn config(portals: &[(&str, bool, Service)]) -> TargetConfig {
        let group = portals.iter().fold(PortalGroup::new(1), |group, (address, iser, service)| {
            let portal = Portal::new(address.parse().unwrap());
            let portal = if *iser { portal.with_iser() } else { portal };
            portal.set_service(*service);
            group.portal(portal)
        });
        let node = TargetNode::builder().name("iqn.2026-11.example:a").open().portal_group(group);
        TargetConfig::builder().node(node).build().unwrap()
    }

    #[test]
    fn a_portal_that_a_device_has_for_itself_is_discovered_at_another() {
        let alone = Service { tcp: false, iwarp: false, verbs: true };
        let plain = Service { tcp: true, ..Service::default() };
        let both = config(&[("10.0.0.1:3260", true, alone), ("10.0.0.1:3261", false, plain)]);
        let text = lines(&both, &Layout::default());
        assert!(!text.contains("sendtargets -p 10.0.0.1:3260"), "{text}");
        assert!(text.contains("-p 10.0.0.1:3260 -o update -n iface.transport_name -v iser"), "{text}");
        assert!(text.contains("(ib_iser over an RDMA device of this machine's kind):"), "{text}");
        let text = lines(&config(&[("10.0.0.1:3260", true, alone)]), &Layout::default());
        assert!(text.starts_with("No portal takes plain iSCSI"), "{text}");
    }
}
