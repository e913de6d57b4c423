//! The lines that a person types on Linux to attach the disks.

use std::net::SocketAddr;

use target_core::node::TargetConfig;

use crate::layout::Layout;

/// A portal as one types it on the other machine.
fn reachable(portal: SocketAddr) -> String {
    // 0.0.0.0 is where we listen, not where anybody connects to.
    let host = if portal.ip().is_unspecified() { "THIS-MACHINE".to_owned() } else { portal.ip().to_string() };
    if host.contains(':') { format!("[{host}]:{}", portal.port()) } else { format!("{host}:{}", portal.port()) }
}

/// What is typed for the disks of `name` at `portal`, over TCP or over iSER.
fn steps(name: &str, portal: SocketAddr, iser: bool, layout: &Layout) -> String {
    let portal = reachable(portal);
    // The configuration makes discovery authenticate like the rest, which open-iscsi keeps in a record of its own.
    let mut secrets: Vec<(&str, &str)> = Vec::new();
    if let Some(user) = layout.chap.first() {
        secrets.extend([("authmethod", "CHAP"), ("username", user.user.as_str()), ("password", "SECRET")]);
        if let Some(user) = &layout.mutual_chap {
            secrets.extend([("username_in", user.user.as_str()), ("password_in", "SECRET")]);
        }
    }
    let discovery = format!("  iscsiadm -m discoverydb -t sendtargets -p {portal}");
    let node = format!("  iscsiadm -m node -T {name} -p {portal}");
    let mut lines = String::new();
    if secrets.is_empty() {
        lines += &format!("  iscsiadm -m discovery -t sendtargets -p {portal}\n");
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
    let mut tcp = String::from("To attach on Linux (open-iscsi):\n");
    let mut iser = String::new();
    for node in config.nodes() {
        let mut portals = node.portal_groups().iter().flat_map(|group| group.portals());
        if let Some(portal) = portals.clone().next() {
            tcp += &steps(node.name().as_str(), portal.bound_address(), false, layout);
        }
        if let Some(portal) = portals.find(|portal| portal.iser()) {
            iser += &steps(node.name().as_str(), portal.bound_address(), true, layout);
        }
    }
    if iser.is_empty() {
        return tcp;
    }
    format!(
        "{tcp}Or over iSER (ib_iser over any RDMA device; without one: modprobe siw; rdma link add siw0 type siw netdev eth0):\n{iser}"
    )
}
