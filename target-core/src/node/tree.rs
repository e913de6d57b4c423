//! The configuration as a tree, in the manner of targetcli's `ls`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::{TargetConfig, TargetNode};
use crate::lu::MappedLun;

/// Width of a line, dots included.
const WIDTH: usize = 100;

/// A node of the tree: its name, what is told of it in brackets, and what is below.
struct Branch {
    name: String,
    summary: String,
    below: Vec<Branch>,
}

impl Branch {
    fn new(name: impl Into<String>, summary: impl Into<String>, below: Vec<Self>) -> Self {
        Self { name: name.into(), summary: summary.into(), below }
    }

    /// `indent` stands before the branch's own line, `rail` before the lines of what is below it.
    fn write(&self, f: &mut fmt::Formatter<'_>, indent: &str, rail: &str) -> fmt::Result {
        let used = indent.chars().count() + self.name.chars().count() + self.summary.chars().count() + 7;
        let dots = ".".repeat(WIDTH.saturating_sub(used).max(3));
        writeln!(f, "{indent}o- {} {dots} [{}]", self.name, self.summary)?;
        let last = self.below.len().saturating_sub(1);
        for (at, branch) in self.below.iter().enumerate() {
            let below = if at < last { format!("{rail}| ") } else { format!("{rail}  ") };
            branch.write(f, rail, &below)?;
        }
        Ok(())
    }
}

/// A size in bytes as people write it: exact where it is a whole number of a unit, else with one decimal.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let step = (bytes.ilog2() / 10).min(6);
    let unit = UNITS.get(step as usize - 1).copied().unwrap_or_default();
    let one = 1u64 << (step * 10);
    if bytes.is_multiple_of(one) {
        format!("{}{unit}", bytes / one)
    } else {
        format!("{:.1}{unit}", bytes as f64 / one as f64)
    }
}

fn lun(mapped: &MappedLun) -> Branch {
    let identity = mapped.unit.identity();
    let access = if mapped.read_only || mapped.unit.is_write_protected() { "ro" } else { "rw" };
    let summary = format!(
        "{} {}, serial {}, {}, {access}",
        identity.vendor(),
        identity.product(),
        identity.serial(),
        size(mapped.unit.geometry().bytes())
    );
    Branch::new(format!("lun{}", mapped.number), summary, Vec::new())
}

fn access_lists(node: &TargetNode) -> Branch {
    let mut acls: Vec<_> = Vec::new();
    for acl in &node.acls {
        let mapped = acl.mapped.iter().map(|mapped| {
            let access = if mapped.read_only { "ro" } else { "rw" };
            Branch::new(format!("mapped_lun{}", mapped.number), format!("lun{} ({access})", mapped.lun), Vec::new())
        });
        let below: Vec<_> = mapped.collect();
        let mut summary =
            if below.is_empty() { String::from("all LUNs") } else { format!("mapped LUNs: {}", below.len()) };
        if !acl.accounts.is_empty() {
            summary.push_str(", own account");
        }
        if !acl.nop_in {
            summary.push_str(", no NOP-In");
        }
        acls.push(Branch::new(acl.initiator.as_str(), summary, below));
    }
    for initiator in node.dynamic_acls() {
        acls.push(Branch::new(initiator.as_str(), "dynamic", Vec::new()));
    }
    Branch::new("acls", format!("ACLs: {}", acls.len()), acls)
}

fn node(node: &TargetNode) -> Branch {
    let attributes = node.attributes;
    let mutual = node.accounts.iter().chain(node.acls.iter().flat_map(|acl| &acl.accounts));
    let authentication = match (attributes.authentication, mutual.into_iter().any(|account| account.mutual.is_some())) {
        (false, _) => "no-auth",
        (true, false) => "CHAP",
        (true, true) => "mutual CHAP",
    };
    let demo = match (attributes.generate_node_acls, attributes.demo_mode_write_protect) {
        (false, _) => "acls only",
        (true, true) => "any initiator reads",
        (true, false) => "any initiator writes",
    };
    let groups = node.groups.iter().map(|group| {
        let portals = group.portals().iter().map(|portal| {
            let transports = match portal.service() {
                Some(service) => format!("{service}"),
                None if portal.iser() => String::from("tcp, iser"),
                None => String::from("tcp"),
            };
            Branch::new(format!("{}", portal.bound_address()), transports, Vec::new())
        });
        let portals: Vec<_> = portals.collect();
        let luns: Vec<_> = node.luns.iter().map(|mapped| lun(&mapped)).collect();
        let below = alloc::vec![
            access_lists(node),
            Branch::new("luns", format!("LUNs: {}", luns.len()), luns),
            Branch::new("portals", format!("portals: {}", portals.len()), portals),
        ];
        Branch::new(format!("tpg{}", group.tag()), format!("{demo}, {authentication}"), below)
    });
    let groups: Vec<_> = groups.collect();
    let mut summary = format!("portal groups: {}", groups.len());
    if let Some(alias) = &node.alias {
        summary = format!("{alias}, {summary}");
    }
    Branch::new(node.name.as_str(), summary, groups)
}

impl fmt::Display for TargetConfig {
    /// The whole configuration, one line for each thing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<_> = self.nodes.iter().map(|each| node(each)).collect();
        let discovery = if self.discovery_accounts.is_empty() { "" } else { ", discovery by CHAP" };
        Branch::new("iscsi", format!("targets: {}{discovery}", nodes.len()), nodes).write(f, "", "  ")
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(512), "512B");
        assert_eq!(size(50 << 30), "50GiB");
        assert_eq!(size((1 << 20) + (1 << 19)), "1.5MiB");
        assert_eq!(size(u64::MAX), "16.0EiB");
    }
}
