//! What a session, a target and a disk tell about themselves.

use std::net::SocketAddr;

use iscsi_proto::datamover::MoverReport;
use iscsi_proto::parameters::Parameters;

use crate::config::SessionConfig;
use crate::url::Portal;

/// What a discovery found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Discovered {
    /// The targets, in the order in which they were told.
    pub targets: Vec<DiscoveredTarget>,
    /// What of the answer could not be read, a sentence each. It costs no more than what it is about.
    pub odd: Vec<String>,
}

/// A target that SendTargets named (RFC 7143 appendix C).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// The target's name.
    pub name: String,
    /// Its portals, in the order in which the target gave them. Where it gave none, the portal that was asked (RFC 7143
    /// appendix C).
    pub portals: Vec<DiscoveredPortal>,
}

/// A portal of a discovered target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredPortal {
    /// Host name or address, without brackets.
    pub addr: String,
    /// TCP port.
    pub port: u16,
    /// Portal group tag.
    pub tpgt: u16,
}

impl SessionConfig {
    /// A session to a target that was discovered: to its first portal, or to the others of that one's group where it is
    /// gone. `None` for a target without portals.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), initiator_core::Error> {
    /// use initiator_core::{DiscoveryConfig, Session, SessionConfig, discover};
    /// let found = discover(&"127.0.0.1".parse()?, &DiscoveryConfig::default()).await?;
    /// let config = found.targets.first().and_then(SessionConfig::of_target).expect("a target");
    /// let session = Session::connect(config).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn of_target(target: &DiscoveredTarget) -> Option<Self> {
        let group = target.portals.first()?.tpgt;
        let of_group = target.portals.iter().filter(|portal| portal.tpgt == group);
        let mut portals = of_group.map(|portal| Portal { host: portal.addr.clone(), port: portal.port });
        let mut config = Self::new(portals.next()?, target.name.clone());
        config.portals = portals.collect();
        Some(config)
    }
}

/// How the two sides have proven who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication {
    /// Not at all.
    None,
    /// The initiator by CHAP.
    Chap,
    /// Both by CHAP.
    MutualChap,
}

/// A session as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// The target's name.
    pub target_name: String,
    /// TargetAlias.
    pub target_alias: Option<String>,
    /// The portal that the session is connected to.
    pub portal: SocketAddr,
    /// Our end of the connection.
    pub local: SocketAddr,
    /// Transport: `tcp` or `iser`.
    pub transport: &'static str,
    /// What provides it: `tcp`, `iwarp` (in user space) or `verbs`.
    pub provider: &'static str,
    /// The RDMA device, where there is one.
    pub device: Option<String>,
    /// RDMA Reads that the target may have in flight, as negotiated; `None` over TCP.
    pub read_depth: Option<u16>,
    /// TargetPortalGroupTag.
    pub tpgt: Option<u16>,
    /// Our name.
    pub initiator_name: String,
    /// ISID.
    pub isid: [u8; 6],
    /// TSIH; 0 from a target that tells none, against RFC 7143 11.13.3.
    pub tsih: u16,
    /// CID of the connection.
    pub cid: u16,
    /// Who has proven who they are.
    pub authentication: Authentication,
    /// The negotiated values; the target's times (DefaultTime2Wait, DefaultTime2Retain) are among them.
    pub parameters: Parameters,
}

/// What has happened in a session since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionStats {
    /// Whether it is connected and logged in now.
    pub connected: bool,
    /// How often its connection was built anew.
    pub reconnects: u64,
    /// Commands done.
    pub commands: u64,
    /// Commands sent again: after a reconnect, BUSY, TASK SET FULL, a unit attention, ABORTED COMMAND.
    pub repeated: u64,
    /// Unit attentions met.
    pub unit_attentions: u64,
    /// What the mover of the last connection did; `None` over TCP.
    pub mover: Option<MoverReport>,
}

/// What a disk is: from INQUIRY, vital product data, READ CAPACITY and MODE SENSE.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskInfo {
    /// LUN.
    pub lun: u16,
    /// PERIPHERAL DEVICE TYPE: 0 for a disk.
    pub device_type: u8,
    /// T10 VENDOR IDENTIFICATION.
    pub vendor: String,
    /// PRODUCT IDENTIFICATION.
    pub product: String,
    /// PRODUCT REVISION LEVEL.
    pub revision: String,
    /// VERSION of SPC: 6 for SPC-4, 7 for SPC-5.
    pub version: u8,
    /// VPD pages that the device has.
    pub vpd_pages: Vec<u8>,
    /// Unit serial number (VPD 80h).
    pub serial: Option<String>,
    /// Designators (VPD 83h) as text: `naa.600…`, `t10.…`, `eui.…`, or `name`.
    pub designators: Vec<String>,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Logical block length in bytes.
    pub block_size: u32,
    /// Physical block length in bytes.
    pub physical_block_size: u32,
    /// Whether writes are refused (WP of MODE SENSE).
    pub write_protected: bool,
    /// Whether written data may sit in a volatile cache (WCE of mode page 08h); `None` without that page.
    pub write_cache: Option<bool>,
    /// Whether reads may be served from a cache (RCD clear in mode page 08h); `None` without that page.
    pub read_cache: Option<bool>,
    /// Whether DPO and FUA are supported.
    pub dpo_fua: bool,
    /// Whether the disk is thin provisioned (LBPME).
    pub thin: bool,
    /// Whether UNMAP is supported (LBPU).
    pub unmap: bool,
    /// Whether WRITE SAME(16) can unmap (LBPWS).
    pub write_same_unmap: bool,
    /// Whether unmapped blocks read as zero (LBPRZ).
    pub unmapped_reads_zero: bool,
    /// MAXIMUM TRANSFER LENGTH in blocks; 0 where the device tells no limit.
    pub max_transfer_blocks: u32,
    /// OPTIMAL TRANSFER LENGTH in blocks; 0 where it tells none.
    pub optimal_transfer_blocks: u32,
    /// MAXIMUM UNMAP LBA COUNT; 0 where it tells none.
    pub max_unmap_blocks: u32,
    /// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT; 0 where it tells none.
    pub max_unmap_descriptors: u32,
    /// OPTIMAL UNMAP GRANULARITY in blocks; 0 where it tells none.
    pub unmap_granularity: u32,
    /// MAXIMUM WRITE SAME LENGTH in blocks; 0 where it tells none.
    pub max_write_same_blocks: u64,
    /// MAXIMUM COMPARE AND WRITE LENGTH in blocks; 0 where COMPARE AND WRITE is not supported.
    pub max_compare_and_write_blocks: u8,
    /// MEDIUM ROTATION RATE: 1 for a medium that does not rotate; `None` where it is not told.
    pub rotation: Option<u16>,
}

impl DiskInfo {
    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size.into())
    }
}

/// A run of blocks of one provisioning status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Whether the blocks are mapped; else they are deallocated (or anchored).
    pub mapped: bool,
}
