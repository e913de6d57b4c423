//! The configuration: what is refused, who may see what, and how it prints.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;

use async_trait::async_trait;
use iscsi_proto::chap::ChapSecret;
use iscsi_proto::login::ChapAccount;
use iscsi_proto::name::IscsiName;

use super::*;
use crate::lu::{Identity, LogicalUnit};
use backstore::{Backstore, Geometry, StoreError};

struct Blank;

#[async_trait]
impl Backstore for Blank {
    fn geometry(&self) -> Geometry {
        Geometry::of_bytes(50 << 30)
    }
    async fn read(&self, _: u64, data: &mut [u8]) -> Result<(), StoreError> {
        data.fill(0);
        Ok(())
    }
    async fn write(&self, _: u64, _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }
}

fn disk() -> Arc<LogicalUnit> {
    Arc::new(LogicalUnit::new(Arc::new(Blank), Identity::from_seed("disk")).unwrap())
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn name(text: &str) -> IscsiName {
    IscsiName::new(text).unwrap()
}

fn account(user: &str) -> ChapAccount {
    ChapAccount { user: user.into(), secret: ChapSecret::new("twelve bytes."), mutual: None }
}

fn plain() -> TargetNodeBuilder {
    TargetNode::builder().name("iqn.2026-11.example:a").portal(at("127.0.0.1:3260")).open()
}

fn build(node: TargetNodeBuilder) -> Result<TargetConfig, ConfigError> {
    TargetConfig::builder().node(node).build()
}

fn refusal(node: TargetNodeBuilder) -> String {
    build(node).unwrap_err().to_string()
}

#[test]
fn attributes_have_the_defaults_of_lio() {
    let Attributes { authentication, demo_mode_write_protect, generate_node_acls, cache_dynamic_acls, .. } =
        Attributes::default();
    assert!(authentication && demo_mode_write_protect && !generate_node_acls && !cache_dynamic_acls);
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    assert!(refusal(plain().name("disk1")).contains("must start with iqn."));
    assert!(refusal(plain().lun(0, disk()).lun(0, disk())).contains("LUN 0 twice"));
    assert!(refusal(plain().lun(16384, disk())).contains("from 0 to 16383"));
    assert!(refusal(plain().portal(at("127.0.0.1:3260"))).contains("the portal 127.0.0.1:3260 twice"));
    assert!(refusal(plain().portal_group(PortalGroup::new(1))).contains("two portal groups with the tag 1"));
    for identifier in [0, 1] {
        let group = PortalGroup::new(2).with_relative_port(identifier);
        assert!(refusal(plain().portal_group(group)).contains(&format!("identifier {identifier} twice, or it is 0")));
    }
    assert!(refusal(TargetNode::builder().open()).contains("no portal"));
    assert!(refusal(plain().alias("a\0b")).contains("alias"));
    assert!(refusal(plain().acl(Acl::new("me"))).contains("initiator name \"me\""));
    let acl = || Acl::new("iqn.2026-11.example:me");
    assert!(refusal(plain().acl(acl()).acl(acl())).contains("two ACLs"));
    assert!(refusal(plain().acl(acl().map_lun(0, 7))).contains("no LUN 7"));
    assert!(refusal(plain().lun(1, disk()).acl(acl().map_lun(0, 1).map_lun(0, 1))).contains("LUN 0 twice"));
    let strict = || plain().attributes(Attributes::default());
    assert!(refusal(strict().acl(acl())).contains("no CHAP account for iqn.2026-11.example:me"));
    let demo = Attributes { generate_node_acls: true, ..Attributes::default() };
    assert!(refusal(plain().attributes(demo)).contains("no CHAP account; add one"));
    assert!(build(strict().acl(acl().account(account("me")))).is_ok());
    assert_eq!(TargetConfig::builder().build().unwrap_err(), ConfigError::NoNode);
    let twice = TargetConfig::builder().node(plain()).node(plain()).build();
    assert_eq!(twice.unwrap_err(), ConfigError::DuplicateNode(name("iqn.2026-11.example:a")));
}

#[test]
fn names_are_made_up_alike_from_one_seed() {
    let names = |seed: &[u8]| -> Vec<String> {
        let node = || TargetNode::builder().portal(at("127.0.0.1:3260")).open();
        let config = TargetConfig::builder().name_seed(seed).node(node()).node(node()).build().unwrap();
        config.nodes().iter().map(|node| node.name().to_string()).collect()
    };
    assert_eq!(names(b"host"), names(b"host"));
    assert_ne!(names(b"host"), names(b"other"));
    assert_ne!(names(b"host")[0], names(b"host")[1]);
}

#[test]
fn an_acl_masks_luns_and_without_one_nobody_knows_of_the_node() {
    let node = plain()
        .attributes(Attributes::default())
        .account(account("all"))
        .lun(0, disk())
        .lun(1, disk())
        .read_only_lun(2, disk())
        .acl(Acl::new("iqn.2026-11.example:masked").map_read_only_lun(0, 1).map_lun(5, 2).account(account("own")))
        .acl(Acl::new("iqn.2026-11.example:whole").without_nop_in());
    let config = build(node).unwrap();
    let node = &config.nodes()[0];
    let masked = node.access(&name("iqn.2026-11.example:masked")).unwrap();
    let seen: Vec<_> = masked.luns.iter().map(|lun| (lun.number, lun.read_only)).collect();
    assert_eq!(seen, [(0, true), (5, true)]);
    assert_eq!((masked.accounts[0].user.as_str(), masked.nop_in, masked.dynamic), ("own", true, false));
    let whole = node.access(&name("iqn.2026-11.example:whole")).unwrap();
    assert_eq!((whole.luns.iter().count(), whole.accounts[0].user.as_str(), whole.nop_in), (3, "all", false));
    assert!(node.access(&name("iqn.2026-11.example:other")).is_none());
}

#[test]
fn demo_mode_protects_from_writes_unless_told_otherwise() {
    let attributes = |protect| Attributes {
        authentication: false,
        demo_mode_write_protect: protect,
        generate_node_acls: true,
        cache_dynamic_acls: true,
        ..Attributes::default()
    };
    for protect in [true, false] {
        let config = build(plain().lun(0, disk()).attributes(attributes(protect))).unwrap();
        let node = &config.nodes()[0];
        let anyone = name("iqn.2026-11.example:anyone");
        let access = node.access(&anyone).unwrap();
        assert_eq!((access.luns.get(0).unwrap().read_only, access.dynamic), (protect, true));
        assert!(access.accounts.is_empty());
        node.remember(&anyone);
        node.remember(&anyone);
        assert_eq!(node.dynamic_acls(), [anyone]);
    }
}

#[test]
fn portals_know_their_connections() {
    let node = plain()
        .portal(at("[::]:3261"))
        .portal_group(PortalGroup::new(7).portal(Portal::new(at("127.0.0.2:3261")).with_iser()));
    let config = build(node).unwrap();
    let node = &config.nodes()[0];
    let tag = |local| node.group_at(at(local)).map(PortalGroup::tag);
    assert_eq!(tag("127.0.0.1:3260"), Some(1));
    assert_eq!(tag("127.0.0.1:3262"), None);
    assert_eq!(tag("10.1.1.1:3261"), Some(1));
    assert_eq!(tag("127.0.0.2:3261"), Some(7), "the exact address goes first");
    let any = &node.portal_groups()[0].portals()[1];
    assert_eq!(any.address_for(at("[::ffff:10.1.1.1]:3261")), at("10.1.1.1:3261"));
    assert_eq!(any.address_for(at("[2001:db8::1]:3261")), at("[2001:db8::1]:3261"));
    let ephemeral = Portal::new(at("127.0.0.1:0"));
    ephemeral.set_bound_port(4711);
    assert!(ephemeral.accepts(at("127.0.0.1:4711")));
    assert_eq!(config.addresses().len(), 3);
}

#[test]
fn the_tree_shows_everything() {
    let node = plain()
        .alias("one")
        .lun(0, disk())
        .acl(Acl::new("iqn.2026-11.example:me").map_read_only_lun(3, 0).account(account("me")));
    let config = build(node).unwrap();
    let tree = config.to_string();
    for part in [
        "o- iscsi ",
        "  o- iqn.2026-11.example:a ",
        "[one, portal groups: 1]",
        "o- tpg1 ",
        "[any initiator writes, no-auth]",
        "| o- iqn.2026-11.example:me ",
        "[mapped LUNs: 1, own account]",
        "o- mapped_lun3 ",
        "[lun0 (ro)]",
        "50GiB, rw]",
        "  o- 127.0.0.1:3260 ",
    ] {
        assert!(tree.contains(part), "{part:?} is not in\n{tree}");
    }
    assert!(!tree.contains("twelve"), "no secret is shown");
}
